"""Start-up time and memory of every stage, compared with another checkout of this project.

    python -m benchmarks.bench_startup
    python -m benchmarks.bench_startup --other ../checkout-before --rounds 5
    python -m benchmarks.bench_startup --complete --other ../checkout-before

Starts every stage with --help and with an unknown flag, in turn with the other checkout. Prints the medians of
wall-clock seconds and the highest memory. With --complete, each checkout first runs all stages on synthetic birds and
`tiny`, which takes minutes. Each stage is then timed on its complete results, when it has nothing to do.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from utils.core import cli, lazy
from utils.core.errors import InputError

with lazy.imported_on_first_use():  # the memory of a process includes that of its parent
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE, KIBIBYTE = 1e6, 1024
COMPLETE = {
    "01_data_processing.py": "--raw_dir raw --metadata raw/metadata.csv --min_recordings 5 --output_dir data",
    "02_finetuning.py": "--base_model tiny --num_train_epochs 1 --data_dir data --output_dir runs/tiny",
    "03_model_validation.py": "--model_dir runs/tiny --data_dir data --output_dir validation_results/tiny",
    "04_analysis.py": "--model_dir runs/tiny --data_dir data --split train --output_dir analysis_results/tiny",
    "05_pruning.py": "--model_dir runs/tiny --data_dir data --strategies backward --output_dir validation_results/p",
    "06_cnn.py": "--architecture melspectrogram --width 0.1 --num_train_epochs 1 --data_dir data --output_dir runs/cnn",
    "07_manual_pruning.py": "--model_dir runs/tiny --keep_layers 0-1 --output_dir runs/tiny-0-1",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--other", type=Path, default=None, help="another checkout to compare with (default: none)")
    parser.add_argument("--rounds", type=cli.positive_int, default=3, help="starts per command")
    parser.add_argument("--complete", action="store_true", help="also time stages that have nothing to do")
    parser.add_argument("--log_level", choices=["info", "warning"], default="warning", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Time all commands in turn; print the table."""
    checkouts = {"here": ROOT} | ({} if args.other is None else {"other": args.other.resolve()})
    if args.other is not None and not (checkouts["other"] / "01_data_processing.py").is_file():
        raise InputError(f"--other {args.other}: it is not a checkout of this project")
    commands = {(script, "--help"): ["--help"] for script in COMPLETE}
    commands |= {(script, "usage error"): ["--output_dri", "x"] for script in COMPLETE}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in checkouts}
        for name, checkout in checkouts.items():
            folders[name].mkdir()
            if args.complete:
                subprocess.run(
                    [sys.executable, "-m", "experiments.synthetic_birds", "--output_dir", folders[name] / "raw"],
                    cwd=ROOT,
                    check=True,
                    stderr=subprocess.DEVNULL,
                )
                for script, words in COMPLETE.items():
                    start(checkout, script, words.split(), folders[name], expected=(0,))
        if args.complete:
            commands |= {(script, "nothing to do"): words.split() for script, words in COMPLETE.items()}
        rows = []
        for (script, what), words in commands.items():
            found = {name: [] for name in checkouts}
            for _ in range(args.rounds):
                for name, checkout in checkouts.items():
                    found[name].append(start(checkout, script, words, folders[name], expected=(0, 2)))
            row = {"stage": script, "what": what}
            for name, measured in found.items():
                row[f"s, {name}"] = statistics.median(seconds for seconds, _ in measured)
                row[f"MB, {name}"] = max(megabytes for _, megabytes in measured)
            if args.other is not None:
                row["ratio of s"] = row["s, here"] / row["s, other"]
            rows.append(row)
            print(".", end="", flush=True)
    print("\n" + pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))


def start(
    checkout: Path, script: str, words: Sequence[str], folder: Path, expected: Sequence[int]
) -> tuple[float, float]:
    """Run a stage; return its wall-clock seconds and its peak resident memory in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, checkout / script, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in expected:
        raise InputError(f"{script} {' '.join(words)} ended with {process.returncode}: {told.decode()[-500:]}")
    return time.perf_counter() - begin, usage.ru_maxrss * KIBIBYTE / MEGABYTE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
