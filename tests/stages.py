"""Loading the numbered scripts, whose names are no Python identifiers, and comparing what they leave."""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_stage(name: str) -> ModuleType:
    """Import a numbered script, such as ``01_data_processing``, as a module."""
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digests(output_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in an output folder but the run's own record, log and lock."""
    paths = sorted(p for p in output_dir.rglob("*") if p.name not in ("run.json", "log.txt", ".lock"))
    return {str(p.relative_to(output_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
