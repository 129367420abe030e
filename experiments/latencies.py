"""Measure the latencies of all models of a study side by side, in one process on one machine.

    python -m experiments.latencies --results_dir study/validation_results --runs_dir study/runs --name birds20 \\
        --data_dir study/processed_data/birds20/folds

The latencies in summary.csv were measured in separate processes, perhaps under different load. This script times every
model that has a result. It takes one run of each, of any fold and seed, because the weights do not change the latency.
In every round each model is timed in turn on the same clip, so that other load on the machine affects all models. The
latency is the median over the rounds; the table also has their range. Other load is recorded, and latency_doubt says
why a latency cannot be trusted. A model that has a result but no run any more keeps its former latency, with the doubt
"apart": it was not measured beside the others.
Writes <results_dir>/<name>/latency.csv, which experiments.study_table and experiments.ways_table read.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from experiments import study_table
from utils.core import cli, names, runs
from utils.core.errors import InputError
from utils.core.files import write_text
from utils.data import clips
from utils.models import encoders, latency, model_folder
from utils.scores.summary import METRICS_NAME, NO_DOUBT

APART = "apart"
log = logging.getLogger(__name__)

COLUMNS = ["model", "n_parameters", "latency_ms", "latency_ms_low", "latency_ms_high", "n_rounds", "device"]
COLUMNS += ["latency_ms_p95", "n_threads", "load_average", "cpu_busy_share", "latency_doubt"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--runs_dir", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--name", required=True, help="data set")
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
    folders = runs_of_results(args.runs_dir, args.results_dir, args.name)
    if not folders:
        raise InputError(f"{args.runs_dir} has no run {args.name}/<model> with a result; run make study")
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
    path = args.results_dir / args.name / study_table.LATENCIES_NAME
    table = pd.DataFrame([*rows, *former(path, folders)], columns=COLUMNS).sort_values("latency_ms", ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    print(table.to_string(index=False, float_format="%.1f"))
    scored = {folder.parent.parent.name for folder in path.parent.glob(f"*/*/{METRICS_NAME}")}
    if without := sorted(scored - set(table["model"])):
        log.warning(
            "no latency of %s: a model is measured if %s/<model>/<part> is its run folder",
            *(", ".join(without), args.runs_dir / args.name),
        )


def former(path: Path, measured: Collection[str]) -> list[dict]:
    """Return the rows of an earlier table whose models have results, but are not measured now."""
    rows = study_table.read_latencies(path).to_dict("records")
    rows = [row for row in rows if row["model"] not in measured and (path.parent / row["model"]).is_dir()]
    for row in rows:
        doubts = [doubt for doubt in row["latency_doubt"].split() if doubt not in (NO_DOUBT, APART)]
        row["latency_doubt"] = " ".join([*doubts, APART])
    return rows


def models_without(runs_dir: Path, results_dir: Path, data_set: str) -> set[str]:
    """Return the models that could be measured and are not in the table."""
    known = study_table.read_latencies(results_dir / data_set / study_table.LATENCIES_NAME)["model"]
    return set(runs_of_results(runs_dir, results_dir, data_set)) - set(known)


def runs_of_results(runs_dir: Path, results_dir: Path, data_set: str) -> dict[str, Path]:
    """Return a saved model for each name that has a result, such as ``{"cnn": Path("runs/birds/cnn/seed-1")}``."""
    folders: dict[str, Path] = {}
    for path in sorted(runs_dir.glob(f"{data_set}/*/*")):
        name = names.parse(path.relative_to(runs_dir).as_posix())
        has_result = name is not None and (results_dir / data_set / name.full_model).is_dir()
        if has_result and (model_folder.resolve_model_dir(path) / model_folder.CONFIG_NAME).is_file():
            folders.setdefault(name.full_model, path)
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
