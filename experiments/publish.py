"""Copy the complete results of a study to those that come with the code, without the files that can be made again.

    python -m experiments.publish --name birds34       # study/validation_results -> validation_results/published
    python -m experiments.publish --name birds34 --results_dir study/analysis_results   # -> analysis_results/published

Takes results of stages 03 to 05. A result that is not complete is left out, with a warning; one that is there already
is replaced. Figures, reports and logs are left out: `make figures` makes them from the tables and predictions. The
copied run.json lists only the copied files; it is otherwise unchanged. A later study goes on from these results: see
`experiments.study`.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from experiments import study_table
from utils.core import cli, names, records
from utils.core.errors import InputError, UsageError
from utils.core.files import write_json
from utils.core.text import counted
from utils.models import fitted_thresholds
from utils.pruning import best, pruning_table, recommendation
from utils.scores import by_collection, predictions, summary

log = logging.getLogger(__name__)

SCORES, ANALYSIS, SWEEP = "03_model_validation", "04_analysis", "05_pruning"
KEPT = {  # patterns of files
    SCORES: (summary.METRICS_NAME, predictions.NAME, by_collection.NAME, fitted_thresholds.NAME),
    ANALYSIS: (recommendation.NAME, "*.csv"),
    SWEEP: (pruning_table.CSV_NAME, best.NAME),
}
LISTS_OF_CLIPS = "*_clips.csv"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="data set")
    add("--results_dir", type=Path, default=Path("study/validation_results"), help="results of the study")
    add(
        "--published_dir",
        type=Path,
        default=None,
        help="folder to copy them to (default: <name of results_dir>/published)",
    )
    add("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Copy every complete result; a result that is there already is replaced."""
    published_dir = args.published_dir or Path(args.results_dir.resolve().name, names.PUBLISHED)
    if published_dir.resolve() == args.results_dir.resolve():
        raise UsageError(f"--published_dir {published_dir} is --results_dir: give another folder")
    folders = names.result_folders(args.results_dir) if args.results_dir.is_dir() else ()
    records_of = {folder: records.read_record(folder) for folder in folders if of_data_set(folder, args)}
    unfinished = [folder for folder, record in records_of.items() if record["status"] != "complete"]
    for folder in unfinished:
        log.warning("left out: %s is not complete", folder)
        del records_of[folder]
    if not records_of:
        among = f" among {len(unfinished)}" if unfinished else ""
        raise InputError(
            f"{args.results_dir} has no complete result of {args.name}{among}; expected folders such as "
            f"{args.name}/<model>/fold-1.seed-1: give the validation_results or analysis_results of a study as "
            "--results_dir, or run experiments.study first"
        )
    targets = {folder: published_dir / folder.relative_to(args.results_dir) for folder in records_of}
    for folder, record in records_of.items():
        check_stage(folder, record, targets[folder])
        records.check_outputs(folder, record)
        record["outputs"] = [output for output in record["outputs"] if is_kept(record["stage"], output["path"])]
    for folder, record in records_of.items():
        target = targets[folder]
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for output in record["outputs"]:
            shutil.copyfile(folder / output["path"], target / output["path"])
        write_json(target / records.RECORD_NAME, record)
    summary.rebuild_summary(published_dir)
    latencies = Path(args.name, study_table.LATENCIES_NAME)
    if (args.results_dir / latencies).exists():
        shutil.copyfile(args.results_dir / latencies, published_dir / latencies)
    log.info("%s: %s of %s", published_dir, counted(len(records_of), "result"), args.name)


def check_stage(folder: Path, record: dict, target: Path) -> None:
    """Refuse what is no result, and a target that is the result of another stage."""
    stage = record["stage"]
    if stage not in KEPT:
        raise InputError(f"{folder} was made by {stage}; expected results of {', '.join(KEPT)}: see --results_dir")
    there = records.read_record(target)
    if there is not None and there["stage"] != stage:
        raise InputError(
            f"{target} is a result of {there['stage']} and would be replaced by one of {stage}: give the "
            "--published_dir of these results"
        )


def is_kept(stage: str, path: str) -> bool:
    """Return whether an output of a stage is published: of stage 04 all tables, but not the lists of clips."""
    return any(fnmatch(path, pattern) for pattern in KEPT[stage]) and not fnmatch(path, LISTS_OF_CLIPS)


def of_data_set(folder: Path, args: argparse.Namespace) -> bool:
    name = names.parse(folder.relative_to(args.results_dir).as_posix())
    return name is not None and name.data_set == args.name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
