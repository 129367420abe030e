"""Print the scores of one model under three ways of splitting, as a table in Markdown; a part of `make study`.

    python -m experiments.leak_table --name birds25 --model whisper-base.blocks-0-1

Reads the results of experiments.study: <name>/<model>/seed-<n> by recordist, <name>.by-recording/<model>/seed-<n>,
<name>.by-clip/<model>/seed-<n>. Each interval is for the test clips of one seed.
"""

import argparse
import sys
from collections.abc import Sequence

import pandas as pd

from experiments import study_table
from utils.core import cli
from utils.core.errors import InputError
from utils.data.splits import SPLIT_BY


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--name", required=True, help="data set")
    parser.add_argument("--model", required=True, help="model with its variant, such as whisper-base.blocks-0-1")
    study_table.add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    rows = study_table.read_rows(args.results_dir, args.name).sort_values("seed")
    lines = ["| split by | test clips | accuracy | mean | macro F1 | mean |", "|---|---|---|---|---|---|"]
    for split_by in SPLIT_BY:
        own = rows[rows["model"] == study_table.label(args.model, split_by)]
        if len(own):
            lines.append(table_line(split_by, own))
    if len(lines) == 2:
        raise InputError(f"{args.results_dir} has no {args.name}/{args.model}/seed-<n>; run experiments.study")
    print("\n".join(lines))


def table_line(split_by: str, rows: pd.DataFrame) -> str:
    """Return the line of one way of splitting, with all its seeds."""
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
