"""Import the numbered scripts, or start them as forks of a server that has imported the same packages.

The import of PyTorch and transformers takes seconds. This is longer than a small stage, and much longer than a finished
stage needs.
"""

import gc
import importlib.util
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = [
    "av",
    "torch.utils.tensorboard",
    "utils.data.annotated",
    "utils.data.preparation",
    "utils.data.shards",
    "utils.figures.analysis_plots",
    "utils.figures.pruning_plots",
    "utils.layers.convexity",
    "utils.layers.probes",
    "utils.models.training",
    "utils.pruning.healing",
    "utils.pruning.pruning_table",
]
CONTEXT = multiprocessing.get_context("forkserver")


def load_stage(name: str) -> ModuleType:
    """Import a numbered script, such as ``01_data_processing``, as a module; its name is no Python identifier."""
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_stage(
    script: str, words: Sequence[str], printed: Path, prepare: Callable[[], None] | None = None
) -> BaseProcess:
    """Start a stage; return when its process handles signals, or has died before.

    Parameters
    ----------
    script : str
        File name of the stage.
    words : sequence of str
        Its arguments.
    printed : Path
        File to which its output is appended.
    prepare : callable, optional
        Called first in the new process; must be picklable.
    """
    CONTEXT.set_forkserver_preload(IMPORTED)
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_become, args=(script, list(words), printed, prepare, there))
    process.start()
    there.close()
    wait([here, process.sentinel])
    here.close()
    return process


def _become(
    script: str, words: list[str], printed: Path, prepare: Callable[[], None] | None, is_ready: Connection
) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # like jobs/stage.sh
    gc.freeze()  # a collection would copy all pages of what the server has imported
    is_ready.close()  # start_stage waits for this
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if prepare is not None:
        prepare()
    sys.argv = [script, *words]
    runpy.run_path(str(ROOT / script), run_name="__main__")
