"""Check every printed number of the study against the committed predictions: `make study-check`.

    python -m experiments.study_check

1. The scores in each metrics.csv are computed again from its predictions.parquet.
2. The commands that RESULTS.md names for its tables are run again. Each row that they print must be in RESULTS.md, and
   each row of these tables in RESULTS.md must be printed. The tables that they write must equal the committed ones.
3. Each number in the section "Results" of README.md that has decimals or several digits must be in RESULTS.md. The
   numbers in a row of a table there must be in one row of RESULTS.md.

Nothing is written. Exit code 3 if a number differs; the message names it.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import logging
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from experiments import study_table
from utils.core import cli, names
from utils.core.errors import InputError
from utils.core.text import counted, some
from utils.scores import comparison, evaluation, predictions, summary

log = logging.getLogger(__name__)

TABLES = ("study_table", "ladder_table", "leak_table", "ways_table")
# Scores that need only the predictions. Intervals are checked in results that have the column of their method.
SCORES = ("accuracy", "macro_f1", "weighted_f1", "top5_accuracy", "macro_auroc", "macro_average_precision")
INTERVALS = ("accuracy_low", "accuracy_high", "macro_f1_low", "macro_f1_high")
NUMBER = re.compile(r"(?<![\w.,])(?:\d+\.\d+|\d{1,3}(?:,\d{3})+|\d{2,})\b")  # such as 0.594 or 1,181 or 142
DIGITS = 1e-5  # metrics.csv has six significant digits


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add("--results_dir", type=Path, default=study_table.RESULTS_DIR, help="committed results")
    add("--results", type=Path, default=Path("RESULTS.md"), help="document with the tables")
    add("--readme", type=Path, default=Path("README.md"), help="document with a section Results")
    add("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Check all numbers; raise `InputError` with all differences."""
    for path in (args.results_dir, args.results, args.readme):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; run this in the root of the repository")
    wrong = check_scores(args.results_dir)
    text = args.results.read_text(encoding="utf-8")
    printed, stale = run_again(commands(text), args.results_dir)
    wrong += check_tables(text, printed, args.results.name) + stale
    wrong += check_numbers(section(args.readme.read_text(encoding="utf-8"), "Results"), text, args.readme.name)
    if wrong:
        found = counted(len(wrong), "number does", "numbers do")
        raise InputError(f"{found} not agree with the predictions: " + "; ".join(wrong))
    log.info("all numbers agree with the committed predictions")


def check_scores(results_dir: Path) -> list[str]:
    """Return the scores in ``metrics.csv`` that do not agree with the predictions in the same folder."""
    wrong, n_folders = [], 0
    for folder in names.result_folders(results_dir):
        if not (folder / predictions.NAME).is_file():
            continue
        n_folders += 1
        scored = comparison.read_scored(folder)
        table = scored.predictions.assign(recording_id=predictions.read_recording_ids(folder))
        again = evaluation.score_all(table, predictions.read_logits(folder))
        is_pooled = (names.parse(scored.name) or names.Name("x", "y", 0)).fold == names.ALL_FOLDS
        columns = [name for name in SCORES if not (is_pooled and name.startswith("macro_a"))]
        columns += INTERVALS if np.isfinite(scored.metrics["n_groups"]) else ()
        for name in columns:
            if not np.isclose(again[name], scored.metrics[name], atol=DIGITS, equal_nan=True):
                wrong.append(
                    f"{folder / summary.METRICS_NAME} has {name} {scored.metrics[name]}, not {again[name]:.6g}"
                )
    log.info("%s: the scores of %d results were computed again", results_dir, n_folders)
    return wrong


def commands(text: str) -> list[list[str]]:
    """Return the words of the commands in a document that print tables, without ``python -m``."""
    found = re.findall(rf"`python -m experiments\.((?:{'|'.join(TABLES)}) [^`]*)`", text)
    return [shlex.split(command) for command in dict.fromkeys(found)]


def run_again(of_commands: Iterable[Sequence[str]], results_dir: Path) -> tuple[list[str], list[str]]:
    """Run the commands on a copy of the results.

    Returns
    -------
    printed : list of str
        The lines that they print.
    stale : list of str
        The tables of `results_dir` that the commands write with other content.
    """
    printed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(results_dir, Path(folder) / names.PUBLISHED)
        for script, *words in of_commands:
            module, text = importlib.import_module(f"experiments.{script}"), io.StringIO()
            try:
                with contextlib.redirect_stdout(text):
                    module.run(module.build_parser().parse_args([*words, "--results_dir", str(copy)]))
            except InputError as error:  # the user knows the results, not their copy
                raise InputError(str(error).replace(str(copy), str(results_dir))) from error
            lines = text.getvalue().splitlines()
            printed += lines
            log.info("%s: %s", shlex.join([script, *words]), counted(len(lines), "line"))
        tables = sorted(results_dir.glob("*/*.csv"))
        stale = [path for path in tables if path.read_bytes() != (copy / path.relative_to(results_dir)).read_bytes()]
    return printed, [f"{path} is not the table that the predictions give" for path in stale]


def check_tables(text: str, printed: Sequence[str], name: str) -> list[str]:
    """Return the printed rows that are not in the document, and the rows of these tables that were not printed."""
    lines = text.splitlines()
    rows = [line for line in printed if line.startswith("|")]
    wrong = [f"{name} lacks the row {row}" for row in dict.fromkeys(rows) if row not in lines]
    headers = {above for above, line in itertools.pairwise(printed) if line.startswith("|---")}
    is_checked = False
    for line in lines:
        is_checked = (is_checked or line in headers) and line.startswith("|")
        if is_checked and line not in rows:
            wrong.append(f"{name} has the row {line}, which no command prints")
    return wrong


def section(text: str, title: str) -> str:
    """Return the section of a Markdown document below ``## title``."""
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def check_numbers(text: str, source: str, name: str) -> list[str]:
    """Return the numbers in `text` that are not in `source`, and the rows whose numbers are not in one of its rows."""
    known = set(NUMBER.findall(source))
    missing = [one for one in dict.fromkeys(NUMBER.findall(text)) if one not in known]
    wrong = [f"{name} has {some(missing)}, not in the tables"] if missing else []
    rows = [_cells(line) for line in source.splitlines() if line.startswith("|")]
    for line in text.splitlines():
        numbers = {cell for cell in _cells(line) if NUMBER.match(cell.lstrip("+-"))} if line.startswith("|") else set()
        if numbers and not any(numbers <= row for row in rows):
            wrong.append(f"{name} has the row {line}, whose numbers are not in one row of the tables")
    return wrong


def _cells(row: str) -> set[str]:
    return {cell.strip() for cell in row.split("|")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
