"""Print the scores of one model under three ways of splitting, as a table in Markdown; a part of `make study`.

    python -m experiments.leak_table --name birds20 --model whisper-base.blocks-0-1

Reads the results of experiments.study: <name>/<model>/seed-<n> by recordist, <name>.by-recording/<model>/seed-<n>,
<name>.by-clip/<model>/seed-<n>. Each interval is for the test clips of one seed. Below the table, the leak: the
difference of two ways of splitting on the clips that both have in test, clip by clip, with the recordist as the unit.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import study_table
from utils.core import cli, names
from utils.core.errors import InputError
from utils.data.splits import SPLIT_BY
from utils.scores import comparison, intervals, verdicts


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
    print("\n".join([*lines, "", *leaks(rows, args.model, args.results_dir)]))


def leaks(rows: pd.DataFrame, model: str, results_dir: Path) -> list[str]:
    """Return, of each other way of splitting, how much more accurate it makes the model on the same clips.

    Raises
    ------
    InputError
        If the results have different classes.
    """
    scored = study_table.read_seeds(rows, results_dir)
    strict = scored.get(study_table.label(model, names.DEFAULT_SPLIT), [])
    lines = []
    for split_by in SPLIT_BY:
        loose = scored.get(study_table.label(model, split_by), [])
        if split_by != names.DEFAULT_SPLIT and loose and strict:
            lines.append(
                f"split by {split_by} - split by {names.DEFAULT_SPLIT}, on the same clips: {leak(loose, strict)}"
            )
    return lines


def leak(loose: Sequence[comparison.Scored], strict: Sequence[comparison.Scored]) -> str:
    """Return the difference of two ways of splitting, in words.

    A clip counts once for each pair of seeds that both have it in test. The unit of the interval is the group of the
    strict split: a recordist's clips stay together.
    """
    pairs = []
    for first, second in itertools.product(loose, strict):
        if first.labels != second.labels:
            raise InputError(
                f"{first.name} and {second.name} have different classes; score both on the same recordings"
            )
        other = first.predictions.set_index("clip_id")["predicted_id"].rename("loose_id")
        pairs.append(second.predictions.join(other, on="clip_id", how="inner"))
    clips = pd.concat(pairs)
    if clips.empty:
        return "no clip is in test of both"
    columns = [clips[name].to_numpy() for name in ("label_id", "loose_id", "predicted_id", "group")]
    found, p_values = intervals.paired_difference(*columns), verdicts.sign_flip_p_values(*columns)
    said = ", ".join(
        "{} {:+.3f} [{:+.3f}, {:+.3f}], p {}".format(
            word, *found[name], "< 0.001" if p_values[name] < 0.0005 else f"{p_values[name]:.3f}"
        )
        for name, word in (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
    )
    n_clips, n_groups = clips["clip_id"].nunique(), clips["group"].nunique()
    return f"{said} ({n_clips} clips of {n_groups} groups, {len(clips)} pairs of answers)"


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
