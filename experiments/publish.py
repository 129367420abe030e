"""Copy the complete results of a study to those that come with the code, without the files that can be made again.

    python -m experiments.publish --name birds34       # study/validation_results -> validation_results/published
    python -m experiments.publish --name birds34 --results_dir study/analysis_results \
        --published_dir analysis_results/published     # the tables of stage 04

Figures, reports and logs are left out: `make figures` makes them from the tables and predictions. The copied run.json
lists only the copied files; it is otherwise unchanged. A later study goes on from these results: see
`experiments.study`.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import study_table
from utils.core import cli, names, records
from utils.core.errors import InputError
from utils.core.files import write_json
from utils.core.text import counted
from utils.pruning import best, pruning_table, recommendation
from utils.scores import by_collection, predictions, summary

log = logging.getLogger(__name__)

KEPT = (summary.METRICS_NAME, predictions.NAME, by_collection.NAME, pruning_table.CSV_NAME, best.NAME)
ANALYSIS, LIST_OF_CLIPS = "04_analysis", "_clips.csv"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="data set")
    add("--results_dir", type=Path, default=Path("study/validation_results"), help="results of the study")
    add("--published_dir", type=Path, default=study_table.RESULTS_DIR, help="folder to copy them to")
    add("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Copy every complete result that is not there yet; a result that is there is replaced."""
    folders = [folder for folder in names.result_folders(args.results_dir) if of_data_set(folder, args)]
    if not folders:
        raise InputError(f"{args.results_dir} has no result of {args.name}: run experiments.study first")
    n_copied = 0
    for folder in folders:
        record = records.read_record(folder)
        if record["status"] != "complete":
            log.warning("left out: %s is not complete", folder)
            continue
        record["outputs"] = [output for output in record["outputs"] if is_kept(record["stage"], output["path"])]
        records.check_outputs(folder, record)
        target = args.published_dir / folder.relative_to(args.results_dir)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for output in record["outputs"]:
            shutil.copyfile(folder / output["path"], target / output["path"])
        write_json(target / records.RECORD_NAME, record)
        n_copied += 1
    summary.rebuild_summary(args.published_dir)
    latencies = Path(args.name, study_table.LATENCIES_NAME)
    if (args.results_dir / latencies).exists():
        shutil.copyfile(args.results_dir / latencies, args.published_dir / latencies)
    log.info("%s: %s of %s", args.published_dir, counted(n_copied, "result"), args.name)


def is_kept(stage: str, path: str) -> bool:
    """Return whether an output of a stage is published: of stage 04 all tables, but not the lists of clips."""
    if stage == ANALYSIS:
        return path == recommendation.NAME or (path.endswith(".csv") and not path.endswith(LIST_OF_CLIPS))
    return path in KEPT


def of_data_set(folder: Path, args: argparse.Namespace) -> bool:
    name = names.parse(folder.relative_to(args.results_dir).as_posix())
    return name is not None and name.data_set == args.name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
