"""Compare a repeated study with the committed one: are its models as accurate?

    make study-birds20
    python -m experiments.reproduced --name birds20      # study/validation_results, validation_results/published

Takes all models and all other splits of a study, with the seeds that both studies have. Scores are those of the test
clips of these seeds together. A score is reproduced if it is in the 95 % interval of the committed score. The paired
difference shows how much the repeated training changed the accuracy on the same clips.
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
    add("--results_dir", type=Path, default=Path("study/validation_results"), help="results of the repeated study")
    add("--committed_dir", type=Path, default=study_table.RESULTS_DIR, help="results to compare them with")
    add("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table and the number of reproduced scores."""
    print("\n".join(markdown(compare(args.results_dir, args.committed_dir, args.name))))


def compare(results_dir: Path, committed_dir: Path, name: str) -> pd.DataFrame:
    """Return one row per model that both studies have, the best in the committed study first.

    Returns
    -------
    DataFrame
        ``model, n_seeds``; for ``accuracy`` and ``macro_f1`` the committed score with its interval ``_low, _high``, the
        repeated score ``_again``, and ``_within``: whether this is in the interval; ``difference, difference_low,
        difference_high``: repeated minus committed accuracy, clip by clip, NaN if the data differ.

    Raises
    ------
    InputError
        If they have no model in common, or if a model was scored on other clips of the same data.
    """
    again, committed = study_table.read_rows(results_dir, name), study_table.read_rows(committed_dir, name)
    both = ["model", "seed"]
    again, committed = again.merge(committed[both]), committed.merge(again[both])
    if again.empty:
        raise InputError(f"{results_dir} and {committed_dir} have no model and seed of {name} in common")
    scored, before = study_table.read_seeds(again, results_dir), study_table.read_seeds(committed, committed_dir)
    table = study_table.pooled_scores(committed, before, committed_dir).set_index("model")
    pairs = {model: list(zip(scored[model], before[model], strict=True)) for model in table.index}
    differences = [paired_difference(pairs[model]) for model in table.index]
    table[["difference", "difference_low", "difference_high"]] = np.array(differences)
    scores = study_table.pooled_scores(again, scored, results_dir).set_index("model")
    for column in comparison.SCORES:
        table[f"{column}_again"] = scores[column]
        table[f"{column}_within"] = scores[column].between(table[f"{column}_low"], table[f"{column}_high"])
    return table.sort_values("accuracy", ascending=False).reset_index()


def paired_difference(pairs: Sequence[tuple[comparison.Scored, comparison.Scored]]) -> tuple[float, float, float]:
    """Return the difference in accuracy with its interval; NaN if a pair was not scored on the same data."""
    if any(again.metrics["data_sha256"] != before.metrics["data_sha256"] for again, before in pairs):
        return (np.nan, np.nan, np.nan)
    return comparison.paired_difference(pairs)["accuracy"]


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table and a summary line."""
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
