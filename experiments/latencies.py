"""Measure the latencies of all models of a study side by side, in one process on one machine.

    python -m experiments.latencies --results_dir study/validation_results --runs_dir study/runs --name birds20 \\
        --data_dir study/processed_data/birds20/folds --fold 1

The latencies in summary.csv were measured in separate processes, perhaps under different load. This script takes the
runs <name>/<model>/fold-<k>.seed-<n> of one fold and seed, because the weights do not change the latency. In every
round each model is timed in turn on the same clip, so that other load on the machine affects all models. The latency is
the median over the rounds; the table also has their range. Other load is recorded, and latency_doubt says why a latency
cannot be trusted.
Writes <results_dir>/<name>/latency.csv, which experiments.study_table reads.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import study_table
from utils.core import cli, names, runs
from utils.core.errors import InputError
from utils.core.files import write_text
from utils.data import clips
from utils.models import encoders, latency

log = logging.getLogger(__name__)

COLUMNS = ["model", "n_parameters", "latency_ms", "latency_ms_low", "latency_ms_high", "n_rounds", "device"]
COLUMNS += ["latency_ms_p95", "n_threads", "load_average", "cpu_busy_share", "latency_doubt"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--name", required=True, help="data set")
    parser.add_argument("--seed", type=cli.non_negative_int, default=1, help="seed whose models are timed")
    parser.add_argument("--fold", default=None, help="fold whose models are timed (default: models without folds)")
    parser.add_argument("--data_dir", type=Path, required=True, help="output folder of 01; the first clip is used")
    parser.add_argument("--results_dir", type=Path, default=Path("validation_results"), help="folder of all results")
    parser.add_argument(
        "--seconds", type=cli.positive_float, default=5.0, help="seconds for each model, in 20 to 100 passes"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="device to time on")
    parser.add_argument("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Time the models; write the table and print it."""
    found = {path: names.parse(path.relative_to(args.runs_dir).as_posix()) for path in args.runs_dir.glob("*/*/*")}
    wanted = (args.name, names.DEFAULT_SPLIT, args.fold, args.seed)
    part = names.Name(args.name, "m", args.seed, fold=args.fold).part
    folders = {
        name.full_model: path
        for path, name in sorted(found.items())
        if name is not None and (name.data_set, name.split_by, name.fold, name.seed) == wanted
    }
    if not folders:
        raise InputError(f"{args.runs_dir} has no run {args.name}/<model>/{part}; run make study")
    device = runs.resolve_device(args.device)
    data = clips.read_clips(args.data_dir)
    models = {name: encoders.load_model(folder, device) for name, folder in folders.items()}
    times = latency.measure_in_turn(models, data.audio(0), data.sample_rate_hz, args.seconds)
    rows = [
        {
            "model": name,
            "n_parameters": encoders.count_parameters(models[name].model),
            "latency_ms": found.latency_ms_median,
            "n_rounds": latency.N_ROUNDS,
            **dataclasses.asdict(found),
            "device": runs.device_name(device),
        }
        for name, found in times.items()
    ]
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("latency_ms", ignore_index=True)
    path = args.results_dir / args.name / study_table.LATENCIES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    print(table.to_string(index=False, float_format="%.1f"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
