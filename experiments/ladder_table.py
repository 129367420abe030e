"""Compare pruning before and after fine-tuning, by the results of experiments.study: Markdown tables and a figure.

    python -m experiments.ladder_table --name birds20 --model whisper-base      # the results in the repository

Before: the models <name>/<model>.blocks-<layers>/seed-<n>, each fine-tuned with its own blocks. After: for every
size the best subset of the model with all blocks, chosen on val (best.json of its sweep), and the random subsets.
All scores are for test clips. A difference is the accuracy minus that of the whole model of the same seed. The
unit of its paired 95 % interval is the group, with its clips of every seed in which it is in the test split; the
intervals are simultaneous for all sizes. The next column says whether a size is shown to be no worse by 0.02. The
second table has the rules without search, after fine-tuning: the accuracy of the subsets that they keep, and for
each seed its difference to the random subsets of the same sizes; "none" if a rule removes no block.
"""

import argparse
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import study_table
from utils.core import cli, names
from utils.core.errors import InputError
from utils.core.text import counted
from utils.figures import plots
from utils.pruning import best, pruning_table
from utils.pruning.layer_selection import SEARCHES
from utils.pruning.pruning_table import FULL
from utils.scores import comparison, intervals, verdicts

log = logging.getLogger(__name__)

RANDOM = "random"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--name", required=True, help="data set")
    parser.add_argument("--model", required=True, help="short name of the base model")
    study_table.add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table, and draw the figure <results_dir>/<name>/<model>.ladder."""
    before = fine_tuned(args.results_dir, args.name, args.model)
    whole = {
        training: model
        for seed, pooled in whole_models(before).items()
        for training, model in folds_of(args.results_dir, pooled, seed).items()
    }
    after = pd.concat(
        [swept(args.results_dir, model, training) for training, model in whole.items()], ignore_index=True
    )
    print("\n".join([*markdown(before, after, args.results_dir), "", *rules(whole, args.results_dir)]))
    draw(before, after, args.results_dir, args.name, args.model)


def fine_tuned(results_dir: Path, name: str, model: str) -> pd.DataFrame:
    """Return the rows of the models that were pruned before fine-tuning, with the ``seed`` from their names.

    Raises
    ------
    InputError
        If there are no such models.
    """
    rows = study_table.read_rows(results_dir, name)
    rows = rows[rows["model"] == f"{model}." + rows["kept_layers"].map(names.blocks)]
    if rows.empty:
        raise InputError(f"{results_dir} has no {name}/{model}.blocks-<layers>/seed-<n>; run experiments.study")
    rows = study_table.with_side_by_side(rows, results_dir / name)
    return rows.sort_values(["n_layers", "seed"], ignore_index=True)


def whole_models(before: pd.DataFrame) -> dict[int, str]:
    """Return the name of the model with the most layers of every seed."""
    return before.sort_values("n_layers").groupby("seed")["model_name"].last().to_dict()


def folds_of(results_dir: Path, model: str, seed: int) -> dict[str, str]:
    """Return the models whose results were pooled as this one, by ``<fold>.<seed>``; the model itself by its seed."""
    name = names.parse(model)
    if name.fold != names.ALL_FOLDS:
        return {str(seed): model}
    folders = (results_dir / name.data_folder / name.full_model).glob(f"fold-*.{name.part.partition('.')[2]}")
    found = [names.parse(names.of_folder(folder)) for folder in folders]
    own = sorted((one for one in found if one.fold != names.ALL_FOLDS), key=lambda one: int(one.fold))
    return {f"{one.fold}.{seed}": str(one) for one in own}


def read_sweep(results_dir: Path, whole: str) -> tuple[dict, pd.DataFrame]:
    """Return the choices of a sweep at every size, and all its rows.

    Raises
    ------
    InputError
        If the sweep of the model is missing.
    """
    folder = results_dir / names.variant_of(whole, names.SWEEP)
    chosen = best.read_best(folder / best.NAME, f"run 05_pruning.py on {whole}")["by_depth"]
    try:
        return chosen, pruning_table.read_rows(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read ({error}); run 05_pruning.py on {whole}") from error


def swept(results_dir: Path, whole: str, seed: str) -> pd.DataFrame:
    """Return, for one whole model, the subset chosen at every size and the mean of the random subsets.

    Returns
    -------
    DataFrame
        ``seed, n_layers, keep, chosen, difference, random``: accuracies on the report split.
    """
    by_depth, table = read_sweep(results_dir, whole)
    random = table[table["strategy"] == RANDOM].groupby("n_layers")["report_accuracy"].mean()
    full = table.loc[table["strategy"] == FULL, "report_accuracy"].iloc[0]
    rows = [
        {
            "seed": seed,
            "n_layers": int(n_layers),
            "keep": cli.format_layer_list(chosen["keep"]),
            "chosen": chosen["report_accuracy"],
            "difference": chosen["report_accuracy"] - full,
            "random": random.get(int(n_layers), np.nan),
        }
        for n_layers, chosen in by_depth.items()
    ]
    whole_row = {"seed": seed, "n_layers": int(table["n_layers"].max()), "chosen": full, "difference": 0.0}
    return pd.DataFrame([*rows, whole_row]).drop_duplicates(["seed", "n_layers"])


def differences_to_whole(before: pd.DataFrame, results_dir: Path) -> dict[int, tuple[str, str]]:
    """Return the difference of each size to the whole models, over all seeds, and the verdict on it, by size.

    The intervals are simultaneous for all sizes. A size is compared with the whole models of the seeds that it has.
    """
    whole = whole_models(before)
    largest = before["n_layers"].max()
    read = functools.cache(lambda name: comparison.read_one_label(results_dir / name))
    groups = np.unique(np.concatenate([read(name).predictions["group"] for name in whole.values()]))
    sizes, models = [], []
    for n_layers, rows in before[before["n_layers"] < largest].groupby("n_layers"):
        pairs = [(read(row["model_name"]), read(whole[row["seed"]])) for _, row in rows.iterrows()]
        for first, second in pairs:
            comparison.check_same_clips(first, second)
        sizes.append(n_layers)
        models += [comparison.jackknife_of(results, groups) for results in zip(*pairs, strict=True)]
    if not sizes:
        return {}
    found = intervals.differences(models, [(2 * n, 2 * n + 1) for n in range(len(sizes))])["accuracy"]
    cells = {}
    for number, n_layers in enumerate(sizes):
        value, low, high = found.estimate[number], found.low_of_all[number], found.high_of_all[number]
        verdict = verdicts.of_pair(found, number, study_table.MARGIN)
        cells[n_layers] = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", str(verdict)
    return cells


def markdown(before: pd.DataFrame, after: pd.DataFrame, results_dir: Path) -> list[str]:
    """Return the lines of the table: one line per size."""
    lines = [
        "| blocks | parameters (millions) | latency (ms) | pruned before, each seed | mean | minus the whole "
        f"| no worse by {study_table.MARGIN:g} | pruned after, each seed (kept) | mean | random subsets |",
        "|---" * 10 + "|",
    ]
    to_whole = differences_to_whole(before, results_dir)
    largest = before["n_layers"].max()
    for n_layers, rows in before.groupby("n_layers"):
        chosen = after[after["n_layers"] == n_layers]
        cells = [
            str(n_layers),
            f"{rows['n_parameters'].iloc[0] / 1e6:.1f}",
            f"{rows['latency_ms_median'].median():.0f}",
            ", ".join(f"{accuracy:.2f}" for accuracy in rows["accuracy"]),
            f"**{rows['accuracy'].mean():.2f}**",
            *to_whole.get(n_layers, ("", "")),
            ", ".join(
                f"{r['chosen']:.2f} ({r['keep']})" if n_layers < largest else f"{r['chosen']:.2f}"
                for _, r in chosen.iterrows()
            ),
            f"**{chosen['chosen'].mean():.2f}**" if len(chosen) else "",
            f"{chosen['random'].mean():.2f}" if chosen["random"].notna().any() else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rules(whole: dict[str, str], results_dir: Path) -> list[str]:
    """Return the lines of a table of the rules: one line per rule, best first, with mean accuracies over the seeds."""
    tables = [read_sweep(results_dir, model)[1].assign(seed=seed) for seed, model in whole.items()]
    rows = pd.concat(tables, ignore_index=True)
    # A rule can propose to keep all blocks. This row is not a subset.
    rows = rows[~rows["strategy"].isin([FULL, *SEARCHES]) & (rows["n_layers"] < rows["n_layers"].max())]
    # Several subsets of one size from one strategy, such as the random ones, count as one: their mean.
    by_size = rows.groupby(["strategy", "seed", "n_layers"])["report_accuracy"].mean()
    if RANDOM not in by_size.index.get_level_values("strategy"):
        log.warning("no table of the rules: the sweeps have no random subsets, to which it compares them")
        return []
    gains = (by_size - by_size.loc[RANDOM]).groupby(["strategy", "seed"]).mean().unstack("seed")
    means = by_size.groupby(["strategy", "n_layers"]).mean().unstack("n_layers")
    sizes = " | ".join(str(n) for n in means.columns)
    lines = [
        f"| rule, by number of blocks kept | {sizes} | to random, each seed | mean |",
        "|---" * (len(means.columns) + 3) + "|",
    ]
    for strategy in gains.mean(axis=1).sort_values(ascending=False).index:
        cells = [strategy, *("" if np.isnan(mean) else f"{mean:.2f}" for mean in means.loc[strategy])]
        if strategy == RANDOM:
            cells += ["", ""]
        else:
            cells += [", ".join("none" if np.isnan(gain) else f"{gain:+.3f}" for gain in gains.loc[strategy])]
            cells += [f"**{gains.loc[strategy].mean():+.3f}**"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(before: pd.DataFrame, after: pd.DataFrame, results_dir: Path, name: str, model: str) -> None:
    """Draw accuracy against the number of blocks kept: each seed as a point, means as lines."""
    scored = [comparison.read_one_label(results_dir / whole) for whole in whole_models(before).values()]
    clips = pd.concat([one.predictions for one in scored])
    n_groups = clips["group"].nunique()
    title = f"{model} on {name}: {len(clips):,} test clips of {counted(len(scored), 'seed')} in {n_groups:,} groups"
    with plots.style():
        fig = Figure(figsize=(4.8, 3.8), layout="constrained")
        axes = fig.subplots()
        series = [
            ("pruned before fine-tuning", before, "accuracy"),
            ("pruned after it, chosen on val", after, "chosen"),
            ("pruned after it, random", after, "random"),
        ]
        for number, (label, rows, column) in enumerate(series):
            look = {"color": plots.COLOURS[number], "marker": plots.MARKERS[number]}
            means = rows.groupby("n_layers")[column].mean().dropna()
            axes.plot(means.index, means, label=label, linestyle=("-", "--", ":")[number], markersize=5, **look)
            axes.plot(rows["n_layers"], rows[column], linestyle="none", markersize=3, alpha=0.4, **look)
        axes.axhline(
            1 / before["n_classes"].iloc[0], color="black", linewidth=0.8, linestyle=(0, (1, 3)), label="chance"
        )
        axes.set(xlabel="blocks kept", ylabel="accuracy of test clips", ylim=(0, None))
        axes.set_xticks(sorted(before["n_layers"].unique()))
        axes.legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
        fig.suptitle(plots.drawable(title), x=0.01, ha="left", fontsize=9)
        plots.save_figure(fig, results_dir / name / f"{model}.ladder")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
