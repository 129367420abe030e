"""Print what three ways of splitting claim for the same model: a table of `make study`, in Markdown.

    python -m experiments.leak_table --summary validation_results/summary.csv --name birds

Reads the rows that experiments.study left: <name>-<seed> by recordist, <name>-recording-<seed>, <name>-clip-<seed>. An
interval is that of one seed's test clips.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.core import cli
from utils.core.errors import InputError
from utils.data.splits import SPLIT_BY
from utils.scores import summary


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--summary", type=Path, default=Path("validation_results/summary.csv"), help="table to read")
    parser.add_argument("--name", default="birds", help="what the names of its results begin with")
    parser.add_argument("--log_level", choices=["info", "warning"], default="info", help="least level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    rows = summary.read_metrics(args.summary)
    lines = ["| split by | test clips | accuracy | mean | macro F1 | mean |", "|---|---|---|---|---|---|"]
    for split_by in SPLIT_BY:
        name = args.name if split_by == SPLIT_BY[0] else f"{args.name}-{split_by}"
        own = rows[rows["model_name"].str.fullmatch(rf"{re.escape(name)}-\d+")]
        if len(own):
            lines.append(table_line(split_by, own))
    if len(lines) == 2:
        raise InputError(f"{args.summary} has no row {args.name}-<seed>; run experiments.study")
    print("\n".join(lines))


def table_line(split_by: str, rows: pd.DataFrame) -> str:
    """Return the line of one way of splitting, all its seeds side by side."""
    cells = [split_by, ", ".join(str(n) for n in rows["n_clips"])]
    for name in ("accuracy", "macro_f1"):
        scores = [f"{r[name]:.2f} [{r[f'{name}_low']:.2f}, {r[f'{name}_high']:.2f}]" for _, r in rows.iterrows()]
        cells += ["<br>".join(scores), f"**{rows[name].mean():.2f}**"]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
