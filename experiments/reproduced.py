"""Compare a study that was made again with the one that is committed: are its models as accurate?

    make study-birds20
    python -m experiments.reproduced --name birds20      # study/validation_results, validation_results/published

Takes every model and every other split of a study, with the seeds that both have, and the scores of the test clips of
these seeds together. A score is reproduced if it lies within the 95 % interval of the committed one, which is from a
bootstrap over groups: other test clips could have moved that as far. How far training again moved it, on the same
clips, is the paired difference.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import study_table
from utils.core import cli
from utils.core.errors import InputError
from utils.scores import comparison


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="data set")
    add("--results_dir", type=Path, default=Path("study/validation_results"), help="results of the study made again")
    add("--committed_dir", type=Path, default=study_table.RESULTS_DIR, help="results to compare them with")
    add("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table, and how many scores are reproduced."""
    print("\n".join(markdown(compare(args.results_dir, args.committed_dir, args.name))))


def compare(results_dir: Path, committed_dir: Path, name: str) -> pd.DataFrame:
    """Return a row a model that both studies have, best first by the committed one.

    Returns
    -------
    DataFrame
        ``model, n_seeds``; for ``accuracy`` and ``macro_f1`` the score as committed with its interval ``_low, _high``,
        the other one ``_again``, and whether that is ``_within``; ``difference, difference_low, difference_high``, of
        accuracy, again minus committed, clip by clip, NaN where they had other data.

    Raises
    ------
    InputError
        If they have no model in common, or one was scored on other clips of the same data.
    """
    again, committed = study_table.read_rows(results_dir, name), study_table.read_rows(committed_dir, name)
    both = ["model", "seed"]
    again, committed = again.merge(committed[both]), committed.merge(again[both])
    if again.empty:
        raise InputError(f"{results_dir} and {committed_dir} have no model and seed of {name} in common")
    scored, before = study_table.read_seeds(again, results_dir), study_table.read_seeds(committed, committed_dir)
    table = study_table.pooled_scores(committed, before).set_index("model")
    pairs = {model: list(zip(scored[model], before[model], strict=True)) for model in table.index}
    differences = [paired_difference(pairs[model]) for model in table.index]
    table[["difference", "difference_low", "difference_high"]] = np.array(differences)
    scores = study_table.pooled_scores(again, scored).set_index("model")
    for column in comparison.SCORES:
        table[f"{column}_again"] = scores[column]
        table[f"{column}_within"] = scores[column].between(table[f"{column}_low"], table[f"{column}_high"])
    return table.sort_values("accuracy", ascending=False).reset_index()


def paired_difference(pairs: Sequence[tuple[comparison.Scored, comparison.Scored]]) -> tuple[float, float, float]:
    """Return the difference in accuracy with its interval; NaN where a pair was not scored on the same data."""
    if any(again.metrics["data_sha256"] != before.metrics["data_sha256"] for again, before in pairs):
        return (np.nan, np.nan, np.nan)
    return comparison.paired_difference(pairs)["accuracy"]


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table, and a sentence."""
    lines = [
        "| model | seeds | accuracy, committed | again | macro F1, committed | again | difference in accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        cells = [row["model"], str(row["n_seeds"])]
        for name in comparison.SCORES:
            again = f"{row[f'{name}_again']:.3f}"
            cells += [study_table.score(row, name), again if row[f"{name}_within"] else f"**{again}, outside**"]
        cells.append("other data" if np.isnan(row["difference"]) else study_table.score(row, "difference", "+.3f"))
        lines.append(f"| {' | '.join(cells)} |")
    counts = [f"{table[f'{name}_within'].sum()} of {len(table)} by {name}" for name in comparison.SCORES]
    return [*lines, "", f"within the intervals: {', '.join(counts)}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
