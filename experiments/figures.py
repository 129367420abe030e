"""Draw all figures of runs and results again, from their tables and predictions.

    make figures                                             # all results in the repository
    python -m experiments.figures                            # the same, without the figures of studies
    python -m experiments.figures runs validation_results    # your own

A figure is never an input: no stage needs one. Takes folders of runs or results, or folders that hold many. Incomplete
ones are left out with a warning. experiments.study_table and ladder_table print the tables of a study and draw its
figures.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from utils.core import cli, names, records
from utils.core.errors import InputError
from utils.figures import plots
from utils.layers.drawing import draw_analysis
from utils.pruning.drawing import draw_sweep
from utils.scores import predictions, summary
from utils.scores.drawing import draw_comparison, draw_result

log = logging.getLogger(__name__)

DEFAULT_FOLDERS = [Path(kind, names.PUBLISHED) for kind in ("validation_results", "analysis_results")]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="*", default=DEFAULT_FOLDERS, help="of runs or results, or of many")
    parser.add_argument("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Draw the figures of every folder, then the summaries of results."""
    roots = set()
    for given in args.folders:
        if not given.is_dir():
            raise InputError(f"{given}: no such folder")
        is_result = os.path.lexists(given / records.RECORD_NAME)
        folders = [given] if is_result else list(names.result_folders(given))
        if not folders:
            raise InputError(f"{given} holds no run and no result: no folder in it has a {records.RECORD_NAME}")
        n_drawn = sum(draw(folder) for folder in folders)
        log.info("%s: drew the figures of %d of %d runs and results", given, n_drawn, len(folders))
        roots |= {names.root_of(folder) for folder in folders if (folder / predictions.NAME).is_file()}
    for root in sorted(roots):
        summary.rebuild_summary(root)


def draw(folder: Path) -> bool:
    """Draw the figures of a run or a result; return whether this succeeded, and warn if not."""
    try:
        record = records.read_record(folder)
        if record["status"] != "complete":
            raise InputError(f"{folder} is not complete: its {records.RECORD_NAME} says {record['status']!r}")
        drawing = drawing_of(record)
        if drawing is None:
            return False
        drawing(folder)
    except (InputError, OSError, ValueError, KeyError) as error:
        log.warning("left out: %s", error)
        return False
    return True


def drawing_of(record: dict) -> Callable[[Path], None] | None:
    """Return the function that draws the figures of a stage's output folder; None for a stage without figures."""
    if record["stage"] == summary.STAGE:
        return draw_result if record["arguments"].get("compare") is None else draw_comparison
    of_stage = {"04_analysis": draw_analysis, "05_pruning": draw_sweep}
    return of_stage.get(record["stage"], draw_curves if record["stage"] in ("02_finetuning", "06_cnn") else None)


def draw_curves(folder: Path) -> None:
    """Draw ``training_curves`` from ``metrics.csv`` of a run."""
    record = records.read_record(folder)
    counts = (record.get("metrics", {}).get(name) for name in ("n_val_clips", "n_val_groups"))
    title = plots.caption(names.of_folder(folder), record["arguments"]["data_dir"], {"val": tuple(counts)})
    plots.training_curves(pd.read_csv(folder / "metrics.csv"), folder / "training_curves", title)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
