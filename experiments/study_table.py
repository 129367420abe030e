"""Compare all models of a study over all its seeds: a table in Markdown and CSV, a figure, and the answers.

    python -m experiments.study_table --name birds20                            # the results in the repository
    python -m experiments.study_table --name birds34 birds20                    # two data sets, side by side
    python -m experiments.study_table --results_dir study/validation_results --name birds20

Takes the results <name>/<model>/seed-<n> of `make study`. Scores are for the test clips of all seeds together. The
unit of a 95 % interval is the group, with its clips of every seed in which it is in the test split. There are two: of
these models on other recordists, and of another model trained by this recipe (from three trainings). A difference is
the accuracy minus that of the most accurate model, clip by clip. The best was chosen by the same clips, so the
intervals of the differences are simultaneous for all pairs of models, and the p values are adjusted for as many. The
last column says whether a model is shown to be no worse than the best by more than 0.02. Results of other splits, such
as <name>.by-clip/<model>/seed-<n>, are printed separately: they show the scores that another split gives. Latencies
are from <name>/latency.csv, which experiments.latencies measured side by side. Without that file they are those of
stage 03, measured one after the other.

Writes <results_dir>/<name>/study.csv, .pdf and .png.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.core import cli, names
from utils.core.errors import InputError
from utils.core.files import write_text
from utils.core.text import counted
from utils.figures import plots
from utils.scores import comparison, intervals, summary, verdicts

log = logging.getLogger(__name__)

MARGIN = 0.02
RESULTS_DIR = Path("validation_results", names.PUBLISHED)
TABLE_NAME, LATENCIES_NAME = "study", "latency.csv"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--name", nargs="+", required=True, help="data set, or several")
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--results_dir --log_level``, which the tables of a study share."""
    parser.add_argument("--results_dir", type=Path, default=RESULTS_DIR, help="folder of all results")
    parser.add_argument("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")


def run(args: argparse.Namespace) -> None:
    """Print the table and the answers of every study; write the tables and the figures."""
    tables = {name: report(args.results_dir, name) for name in args.name}
    if len(tables) > 1:
        print("\n".join(["", *markdown_of_all(tables)]))


def report(results_dir: Path, name: str) -> pd.DataFrame:
    """Print the table and the answers of one study; write and return the table, and draw the figure."""
    rows = read_rows(results_dir, name)
    of_leak = rows["split_by"] != names.DEFAULT_SPLIT
    table = with_side_by_side(study(rows[~of_leak], results_dir), results_dir / name)
    claims = pooled_scores(rows[of_leak], read_seeds(rows[of_leak], results_dir), results_dir)
    write_text(results_dir / name / f"{TABLE_NAME}.csv", table.to_csv(index=False, float_format="%.6g"))
    draw(table, results_dir / name / TABLE_NAME, name)
    print("\n".join([*markdown(table), "", *answers(table, claims)]))
    return table


def read_rows(results_dir: Path, name: str) -> pd.DataFrame:
    """Return the rows of ``summary.csv`` that belong to a study, with the columns ``model, split_by, seed``.

    ``model`` is the name from `label`.

    Raises
    ------
    InputError
        If there are no such rows.
    """
    rows = summary.read_metrics(results_dir / f"{summary.SUMMARY_NAME}.csv")
    parsed = rows["model_name"].map(names.parse)
    is_own = parsed.map(lambda one: one is not None and one.data_set == name and one.fold in (None, names.ALL_FOLDS))
    rows, parsed = rows[is_own], parsed[is_own]
    if rows.empty:
        raise InputError(f"{results_dir} has no result {name}/<model>/seed-<n>; run make study, or experiments.study")
    is_pooled = parsed.map(lambda one: one.fold is not None)
    if is_pooled.any() and not is_pooled.all():
        log.warning(
            "%s of %s are left out: they are of no fold, and others are pooled over folds, on other test clips; the "
            "first is %s",
            *(counted((~is_pooled).sum(), "result"), name, rows["model_name"][~is_pooled].iloc[0]),
        )
        rows, parsed = rows[is_pooled], parsed[is_pooled]
    return rows.assign(
        model=[label(one.full_model, one.split_by) for one in parsed],
        split_by=[one.split_by for one in parsed],
        seed=[one.seed for one in parsed],
    )


def label(model: str, split_by: str) -> str:
    """Return the name of a model in the tables; it names the way of splitting, unless this is the default."""
    return model if split_by == names.DEFAULT_SPLIT else f"{model} by {split_by}"


def read_latencies(path: Path) -> pd.DataFrame:
    """Return the table of `experiments.latencies`; without rows if there is no such file.

    Raises
    ------
    InputError
        If it cannot be read, or lacks a column.
    """
    if not path.exists():
        return pd.DataFrame(columns=["model", "latency_doubt"])
    again = "delete it, and run experiments.latencies"
    try:
        latencies = pd.read_csv(path, dtype={"model": str}, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {again}") from error
    missing = [column for column in ("model", "latency_ms") if column not in latencies]
    if missing or not pd.api.types.is_numeric_dtype(latencies["latency_ms"]):
        raise InputError(f"{path} has no column {missing[0] if missing else 'latency_ms of numbers'}; {again}")
    if "latency_doubt" not in latencies:  # written by an earlier version
        latencies["latency_doubt"] = summary.DEFAULTS["latency_doubt"]
    return latencies


def side_by_side(path: Path, models: pd.Series) -> pd.DataFrame:
    """Return the latency of every model, in ms, and the reason to doubt it, from the table of `experiments.latencies`.

    Raises
    ------
    InputError
        If there is no table, or one of the models is not in it.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; measure the latencies by python -m experiments.latencies")
    latencies = read_latencies(path).set_index("model")
    missing = sorted(set(models) - set(latencies.index))
    if missing:
        raise InputError(
            f"{path} has no latency of {', '.join(missing)}; run experiments.latencies again, with a run folder of "
            "each in its --runs_dir. If you delete the table, experiments.study_table takes the latencies of stage 03"
        )
    return latencies


def with_side_by_side(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return a table of models with the latencies of `side_by_side` in place of those of stage 03, if there are any."""
    if not (folder / LATENCIES_NAME).exists():
        return table
    measured = side_by_side(folder / LATENCIES_NAME, table["model"])
    return table.assign(
        latency_ms_median=table["model"].map(measured["latency_ms"]),
        latency_doubt=table["model"].map(measured["latency_doubt"]),
    )


def read_seeds(rows: pd.DataFrame, results_dir: Path) -> dict[str, list[comparison.Scored]]:
    """Return the results of every model, by seed."""
    return {
        model: [comparison.read_one_label(results_dir / name) for name in own.sort_values("seed")["model_name"]]
        for model, own in rows.groupby("model")
    }


def trainings_of(rows: pd.DataFrame, scored: list[comparison.Scored], results_dir: Path) -> list[comparison.Scored]:
    """Return the result of each training of one model: of each seed, or of each fold and seed."""
    name = names.parse(rows["model_name"].iloc[0])
    if name.fold is None:
        return scored
    folders = sorted((results_dir / name.data_folder / name.full_model).glob("fold-[0-9]*.seed-*"))
    return [comparison.read_one_label(folder) for folder in folders]


def pooled_scores(rows: pd.DataFrame, scored: dict[str, list[comparison.Scored]], results_dir: Path) -> pd.DataFrame:
    """Return each model's scores over the clips of all its seeds, with intervals; one row per model."""
    found = []
    for model, own in rows.groupby("model"):
        of_all = comparison.joined(scored[model])
        row = {
            "model": model,
            "kind": own["kind"].iloc[0],
            "n_seeds": len(own),
            **of_all.metrics[["n_clips", "n_groups"]],
            "n_layers": own["n_layers"].iloc[0],
            "n_parameters": int(own["n_parameters"].median()),
            "gmacs_per_clip": own["gmacs_per_clip"].median(),
            "latency_ms_median": own["latency_ms_median"].median(),
            "latency_doubt": " ".join(sorted(set(own["latency_doubt"]))),
            **of_all.metrics[list(comparison.SCORES)],
            "accuracy_of_seeds": " ".join(f"{accuracy:.3f}" for accuracy in own["accuracy"]),
        }
        of_recipe = comparison.recipe_intervals(trainings_of(own, scored[model], results_dir))
        for name in comparison.SCORES:
            row |= dict(of_all.metrics[[f"{name}_low", f"{name}_high"]])
            row[f"{name}_recipe"], row[f"{name}_recipe_low"], row[f"{name}_recipe_high"] = of_recipe[name]
        found.append(row)
    return pd.DataFrame(found)


def study(rows: pd.DataFrame, results_dir: Path) -> pd.DataFrame:
    """Return the scores of every model and its difference to the most accurate one, best first.

    A model that lacks a seed is left out with a warning, because the test clips of some seeds are harder.

    Raises
    ------
    InputError
        If models were scored on different clips of one seed.
    """
    seeds = rows.groupby("model")["seed"].nunique()
    for model in seeds.index[seeds < seeds.max()]:
        log.warning(
            "%s is left out: it has %d of %d seeds; run make study until it ends", model, seeds[model], seeds.max()
        )
    rows = rows[rows["model"].map(seeds) == seeds.max()]
    scored = read_seeds(rows, results_dir)
    table = pooled_scores(rows, scored, results_dir).sort_values(
        ["accuracy", "n_parameters", "macro_f1"], ascending=[False, True, False], ignore_index=True
    )
    return table.assign(**differences_to_best([scored[model] for model in table["model"]]))


def differences_to_best(scored: list[list[comparison.Scored]]) -> dict[str, list]:
    """Return the columns that compare all models with the first one, which is the most accurate.

    Returns
    -------
    dict of str to list
        ``difference`` in accuracy; ``difference_low, difference_high``, the ends of its interval by itself;
        ``difference_low_of_all, difference_high_of_all``, simultaneous for all pairs of models; ``difference_p`` of the
        sign-flip test and ``difference_p_holm``, adjusted for all pairs; ``within_margin``, the verdict; and, for the
        best, ``optimism``: see `verdicts.optimism_of_best`.
    """
    pairs = [(i, j) for j in range(len(scored)) for i in range(j + 1, len(scored))]  # those with the best come first
    columns: dict[str, list] = {"difference": [0.0], "difference_p": [np.nan], "within_margin": [""]}
    ends = ("low", "high", "low_of_all", "high_of_all")
    columns |= {f"difference_{end}": [np.nan] for end in ends}
    for other in scored[1:]:
        columns["difference_p"].append(
            comparison.sign_flip_p_values(list(zip(other, scored[0], strict=True)))["accuracy"]
        )
    models = [comparison.jackknife_of(results) for results in scored]
    found = intervals.differences(models, pairs)["accuracy"] if pairs else None
    for number in range(len(scored) - 1):
        of_pair = found.of_pair(number)
        columns["difference"].append(of_pair["difference"])
        for end in ends:
            columns[f"difference_{end}"].append(of_pair[end])
        columns["within_margin"].append(str(verdicts.of_pair(found, number, MARGIN)))
    columns["difference_p_holm"] = [np.nan, *verdicts.holm_adjusted(columns["difference_p"][1:], len(pairs))]
    columns["optimism"] = [optimism(scored), *[np.nan] * (len(scored) - 1)]
    return columns


def optimism(scored: list[list[comparison.Scored]]) -> float:
    """Return by how much the accuracy of the best of these models is too high, because it was chosen."""
    hits = []
    for results in scored:
        clips = pd.concat([one.predictions for one in results])
        counts = intervals.count(*(clips[name].to_numpy() for name in comparison.COUNTED))
        hits.append(counts.n_hits.sum(axis=1))
    return verdicts.optimism_of_best(np.array(hits), counts.n_true.sum(axis=1))


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table: one line per model."""
    lines = [
        "| | model | | blocks | parameters (millions) | GMACs | latency (ms) | accuracy, these models "
        "| accuracy, this recipe | macro F1, these models | macro F1, this recipe | minus the best | p (Holm) "
        f"| no worse than the best by {MARGIN:g} |",
        "|---" * 14 + "|",
    ]
    for number, row in table.iterrows():
        cells = [
            str(number + 1),
            *description(row),
            *(cell for name in comparison.SCORES for cell in (score(row, name), of_recipe(row, name))),
            *to_best(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def of_recipe(row: pd.Series, name: str) -> str:
    """Return the interval of a score of the recipe; empty where there are too few trainings."""
    low, high = row[f"{name}_recipe_low"], row[f"{name}_recipe_high"]
    return "" if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def to_best(row: pd.Series) -> list[str]:
    """Return the cells that compare a model with the best; empty for the best."""
    if np.isnan(row["difference_p"]):
        return ["", "", ""]
    return [difference(row), f"{row['difference_p_holm']:.3f}", row["within_margin"]]


def difference(row: pd.Series) -> str:
    """Return the difference to the best with its simultaneous interval."""
    return f"{row['difference']:+.3f} [{row['difference_low_of_all']:+.3f}, {row['difference_high_of_all']:+.3f}]"


def markdown_of_all(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Return the lines of a table of several studies: one line per model that all have."""
    first = next(iter(tables))
    common = set.intersection(*(set(table["model"]) for table in tables.values()))
    by_model = {name: table.set_index("model") for name, table in tables.items()}
    lines = [
        "| model | | blocks | parameters (millions) | GMACs | latency (ms) | "
        + " | ".join(f"accuracy, {name}" for name in tables)
        + " |",
        "|---" * (6 + len(tables)) + "|",
    ]
    for _, row in tables[first].iterrows():
        if row["model"] in common:
            scores = [score(by_model[name].loc[row["model"]], "accuracy") for name in tables]
            lines.append(f"| {' | '.join([*description(row), *scores])} |")
    return lines


def description(row: pd.Series) -> list[str]:
    """Return the cells for the name, kind, size and cost of a model."""
    return [
        row["model"],
        row["kind"],
        "" if row["kind"] == "CNN" else str(row["n_layers"]),
        f"{row['n_parameters'] / 1e6:.1f}",
        f"{row['gmacs_per_clip']:.2f}",
        f"{row['latency_ms_median']:.0f}" + "?" * is_doubtful(row),
    ]


def is_doubtful(row: pd.Series) -> bool:
    """Return whether a latency is doubtful: measured under load, unsteady, or not in the order of the blocks."""
    return not {*row["latency_doubt"].split()} <= {summary.NO_DOUBT, *summary.DEFAULTS["latency_doubt"].split()}


def score(row: pd.Series, name: str, form: str = ".3f") -> str:
    """Return a score with its interval."""
    return f"{row[name]:{form}} [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"


def answers(table: pd.DataFrame, claims: pd.DataFrame) -> list[str]:
    """Return the answers of the study as sentences with their intervals."""
    best = table.iloc[0]
    near = table[table["difference"] >= -MARGIN]

    def sentence(what: str, row: pd.Series) -> str:
        said = (
            f"{what}: {row['model']}, accuracy {score(row, 'accuracy')}, {row['n_parameters'] / 1e6:.1f} M parameters, "
            f"{row['latency_ms_median']:.0f}{'?' * is_doubtful(row)} ms"
        )
        if np.isnan(row["difference_p"]):
            return said
        return f"{said}; minus the best {difference(row)}; no worse by more than {MARGIN:g}: {row['within_margin']}"

    corrected = (
        f"{best['accuracy'] - best['optimism']:.3f} without the optimism of choosing it ({best['optimism']:.3f})"
    )
    lines = [
        f"{sentence(f'best accuracy of {len(table)}', best)}; {corrected}",
        sentence(f"smallest within {MARGIN:g} of it", near.loc[near["n_parameters"].idxmin()]),
        sentence(f"fastest within {MARGIN:g} of it", near.loc[near["latency_ms_median"].idxmin()]),
    ]
    if claims.empty:
        return lines
    by_model = pd.concat([table, claims]).set_index("model")
    for claimed in claims["model"]:
        model, _, split = claimed.rpartition(" by ")
        line = f"{model}, split by {split}: accuracy {score(by_model.loc[claimed], 'accuracy')}"
        if model in by_model.index:
            line += f"; split by {names.DEFAULT_SPLIT}: accuracy {score(by_model.loc[model], 'accuracy')}"
        lines.append(line)
    return lines


def draw(table: pd.DataFrame, path: Path, name: str) -> None:
    """Draw accuracy with its interval against parameters and latency: one point per model, numbered as in the table."""
    with plots.style():
        fig = Figure(figsize=(9.5, 3.8), layout="constrained")
        panels = fig.subplots(1, 2, sharey=True)
        for axes, column, unit in zip(panels, ("n_parameters", "latency_ms_median"), (1e6, 1.0), strict=True):
            sides = free_sides(np.log(table[column].to_numpy(dtype=float)), table["accuracy"].to_numpy())
            for number, (kind, marker) in enumerate(plots.KINDS.items()):
                own = table[table["kind"] == kind]
                if own.empty:
                    continue
                color = plots.COLOURS[number]
                axes.vlines(own[column], own["accuracy_low"], own["accuracy_high"], color=color, linewidth=1, alpha=0.5)
                axes.plot(own[column], own["accuracy"], linestyle="none", marker=marker, color=color, label=kind)
                for place, row in own.iterrows():
                    axes.annotate(
                        str(place + 1),
                        (row[column], row["accuracy"]),
                        xytext=(4, 3) if sides[place] == "right" else (-4, 3),
                        ha="left" if sides[place] == "right" else "right",
                        textcoords="offset points",
                        fontsize=7,
                    )
            plots.set_log_axis(axes, table[column], unit)
        panels[0].set(xlabel="parameters (millions)", ylabel="accuracy of test clips, with its 95 % interval")
        panels[1].set_xlabel("latency of one clip (ms)")
        key = "\n".join(f"{place + 1}  {plots.shorten(model)}" for place, model in table["model"].items())
        panels[1].text(1.04, 1, key, transform=panels[1].transAxes, va="top", fontsize=7, linespacing=1.5)
        panels[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(plots.KINDS), fontsize=7.5)
        first = table.iloc[0]
        clips = f"{first['n_clips']:,} test clips of {first['n_seeds']} seeds in {first['n_groups']:,} groups"
        fig.suptitle(plots.drawable(f"{name}: {clips}"), x=0.01, ha="left", fontsize=10)
        plots.save_figure(fig, path)


def free_sides(x: np.ndarray, y: np.ndarray) -> list[str]:
    """Return the side of each point for its number: not the side of the nearest other point.

    Parameters
    ----------
    x, y : ndarray, shape (n_points,)
        Positions on the scale of the figure, up to a factor.

    Returns
    -------
    list of {"left", "right"}
    """
    points = np.column_stack([values / (np.ptp(values) or 1.0) for values in (x, y)])
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    return ["left" if (x[j], j) > (x[i], i) and len(x) > 1 else "right" for i, j in enumerate(nearest)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
