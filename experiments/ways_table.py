"""Compare the ways to make a model smaller: accuracy against measured latency, as a table in Markdown and a figure.

    python -m experiments.ways_table --name birds34 --model whisper-base --part fold-1.seed-1
    python -m experiments.ways_table --name birds34 --model whisper-base.blocks-0-5 --part fold-all.seed-1

The second command compares the models of experiments.study; --model names the whole one. Several parts, such as
fold-all.seed-1 fold-all.seed-2, are several trainings of each model: then a score is over the test clips of all of
them, and the unit of an interval is still the group, with its clips of every training. Takes the results
<name>/<model>…/<part> of stage 03, and <name>/latency.csv, which experiments.latencies measured side by side. The way
of a model follows from its name: the whole model; .blocks-0-3, pruned before fine-tuning; .after-3, blocks removed
after fine-tuning; .ffn-50, blocks made narrower after fine-tuning; .repaired, their kept blocks repaired (.frozen,
.healed or .taught after it: then the head, all layers, or all layers with a teacher were trained); .frozen, only the
head trained; .taught, with a teacher; and other networks. A difference is the accuracy minus that of the whole model,
clip by clip, with intervals that are simultaneous for all models. The last column says whether a model is shown to be
no worse by 0.02.

A second table compares the ways that keep the same number of blocks with each other, and a CNN with its taught version;
its intervals are simultaneous, and its p values adjusted, for all of its rows. Of pooled results a third table has the
accuracy of each fold, and of each training. --pairs names models of any size; a table compares all pairs of them, for
all of its rows together.

The figure has a panel for each family of ways. A line joins the sizes of one network by one way.

Writes <results_dir>/<name>/ways.csv, .pdf and .png, and ways_by_size.csv.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments import study_table
from utils.core import cli, names
from utils.core.errors import InputError, UsageError
from utils.core.files import write_text
from utils.core.text import counted
from utils.figures import plots
from utils.scores import comparison, intervals, summary, verdicts

log = logging.getLogger(__name__)

TABLE_NAME, BY_SIZE_NAME = "ways", "ways_by_size"
LOOKS = list(zip(plots.COLOURS[:-1], plots.MARKERS[1:], strict=True))  # a black circle is the whole model
DODGE = 1.03  # between two ways of a panel, so that points at one latency do not hide each other
WHOLE, BEFORE, REMOVED, REPAIRED = "whole", "pruned before", "removed", "repaired"
CNN, CNN_TAUGHT = "CNN", "CNN, taught"
TAUGHT, FROZEN, OTHER = "pruned before, taught", "only the head trained", "other encoder"
MORE = "other way"  # of the same encoder
AFTER_REPAIR = {
    names.FROZEN: "repaired, head trained",
    names.HEALED: "repaired, healed",
    names.TAUGHT: "repaired, taught",
}
MADE_BY = {"blocks", "after", "ffn", names.REPAIRED, *AFTER_REPAIR}
NARROWER = {
    way: f"narrower{'' if way == REMOVED else f', {way}'}" for way in (REMOVED, REPAIRED, *AFTER_REPAIR.values())
}
# Ways of which models of one size are compared.
OF_A_SIZE = (REPAIRED, *AFTER_REPAIR.values(), TAUGHT, REMOVED, BEFORE, FROZEN, CNN_TAUGHT, CNN)
# In the order of the table.
WAYS = (
    WHOLE,
    REPAIRED,
    *AFTER_REPAIR.values(),
    *NARROWER.values(),
    TAUGHT,
    REMOVED,
    BEFORE,
    FROZEN,
    OTHER,
    MORE,
    CNN_TAUGHT,
    CNN,
)
# The panels of the figure, and the words for their ways there.
AFTER = (
    "not repaired",
    "the rest repaired",
    "the rest repaired, then the head trained",
    "the rest repaired, then all layers trained",
    "the rest repaired, then trained with the whole model as teacher",
)
FAMILIES = {
    "First blocks only": {
        BEFORE: "fine-tuned",
        TAUGHT: "fine-tuned with the whole model as teacher",
        FROZEN: "pre-trained, only the head trained",
    },
    "Blocks removed after fine-tuning": dict(zip((REMOVED, REPAIRED, *AFTER_REPAIR.values()), AFTER, strict=True)),
    "FFN units removed after fine-tuning": dict(zip(NARROWER.values(), AFTER, strict=True)),
    "Other models": {OTHER: "other encoder", MORE: "made in another way", CNN_TAUGHT: "CNN, taught", CNN: "CNN alone"},
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--name", required=True, help="data set")
    parser.add_argument("--model", required=True, help="short name of the whole model")
    parser.add_argument(
        "--part", nargs="+", required=True, help="the last part of the names, or several, such as fold-all.seed-1"
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        action="append",
        default=[],
        metavar="MODEL",
        help="also compare these models with each other; give it again for another table (default: none)",
    )
    study_table.add_arguments(parser)
    return parser


def way_of(name: names.Name, whole: names.Name) -> str:
    """Return how a model was made smaller, one of `WAYS`."""
    kinds = {variant.partition("-")[0] for variant in name.variants}
    if name == whole:
        return WHOLE
    if name.model.startswith("cnn"):
        return CNN_TAUGHT if names.TAUGHT in kinds else CNN
    if name.model != whole.model:  # its blocks have another size, so that its number of blocks is not comparable
        return OTHER
    is_trained_after = kinds & {*AFTER_REPAIR} and kinds & {"after", "ffn"} and names.REPAIRED not in kinds
    if kinds - MADE_BY or is_trained_after or kinds == {"blocks", names.HEALED}:
        return MORE
    repaired = AFTER_REPAIR.get(name.variants[-1], REPAIRED) if names.REPAIRED in kinds else None
    if "ffn" in kinds:
        return NARROWER[repaired or REMOVED]
    if repaired:
        return repaired
    if names.TAUGHT in kinds:
        return TAUGHT
    if names.FROZEN in kinds:
        return FROZEN
    return BEFORE if "blocks" in kinds else REMOVED if "after" in kinds else OTHER


def run(args: argparse.Namespace) -> None:
    """Print the table; write it, and draw the figure."""
    twice = [part for part in args.part if args.part.count(part) > 1]
    if twice:
        raise UsageError(f"--part names {twice[0]} twice: its clips would count twice; name each training once")
    table, scored = compare(args.results_dir, args.name, args.model, args.part)
    for models in args.pairs:
        missing = [model for model in models if model not in scored]
        if missing or len(set(models)) < max(len(models), 2):
            trouble = f"no result of {missing[0]}" if missing else "give two models or more, each once"
            raise UsageError(f"--pairs {' '.join(models)}: {trouble}; there are {', '.join(scored)}")
    folder = args.results_dir / args.name
    write_text(folder / f"{TABLE_NAME}.csv", table.to_csv(index=False, float_format="%.6g"))
    latencies = study_table.read_latencies(folder / study_table.LATENCIES_NAME)
    draw(table, folder / TABLE_NAME, args.name, latency_label(latencies, scored[args.model].metrics))
    print("\n".join(markdown(table)))
    by_size = compare_by_size(table, scored)
    if by_size is not None:
        write_text(folder / f"{BY_SIZE_NAME}.csv", by_size.to_csv(index=False, float_format="%.6g"))
        print("", *markdown_by_size(by_size), sep="\n")
    if by_fold := markdown_by_fold(list(table["model"]), folder, args.part):
        print("", *by_fold, sep="\n")
    for models in args.pairs:
        print("", *markdown_of_pairs(models, scored), sep="\n")


def read_models(results_dir: Path, name: str, model: str, parts: Sequence[str]) -> dict[names.Name, comparison.Scored]:
    """Return the results of each model, of all parts together; a model that lacks a part is left out with a warning.

    The keys are the names of the first part.

    Raises
    ------
    InputError
        If the whole model lacks a part, or a result cannot be read.
    """
    folders = [path for part in parts for path in (results_dir / name).glob(f"*/{part}")]
    folders = [path for path in folders if (path / summary.METRICS_NAME).is_file()]
    found = {}
    for own in sorted({path.parent for path in folders}):
        missing = [part for part in parts if own / part not in folders]
        parsed = names.parse(names.of_folder(own / parts[0]))
        if missing and own.name != model:
            log.warning("%s is left out: it has no result %s", own.name, ", ".join(missing))
        elif not missing and parsed is not None:
            found[parsed] = comparison.joined([comparison.read_one_label(own / part) for part in parts])
    if model not in {one.full_model for one in found}:
        missing = next((part for part in parts if results_dir / name / model / part not in folders), parts[0])
        there = sorted({path.parent.name for path in (results_dir / name / model).glob(f"*/{summary.METRICS_NAME}")})
        has = f"; this model has {', '.join(there)}" if there else ""
        raise InputError(
            f"{results_dir} has no result {name}/{model}/{missing}: score the whole model by stage 03{has}"
        )
    return found


def compare(
    results_dir: Path, name: str, model: str, parts: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, comparison.Scored]]:
    """Return a row for each model: its way, size, latency, accuracy, and the difference to the whole model.

    Returns
    -------
    table : DataFrame
    scored : dict of str to Scored
        The results, by model.

    Raises
    ------
    InputError
        If the whole model or its latency is missing, there is no other model, or models were scored on different clips.
    """
    found = list(read_models(results_dir, name, model, parts).items())
    if len(found) == 1:
        raise InputError(
            f"{results_dir}/{name} has no model but {model} with results of {' and '.join(parts)}: there is nothing to "
            "compare it with; score the smaller models by stage 03, and pool their folds, if this one is pooled"
        )
    whole_name, whole = next(pair for pair in found if pair[0].full_model == model)
    for _, scored in found:
        comparison.check_same_clips(whole, scored)
    rows = pd.DataFrame(
        [
            {
                "model": one.full_model,
                "way": way_of(one, whole_name),
                "n_layers": scored.metrics["n_layers"],
                **scored.metrics[["n_parameters", "gmacs_per_clip", "accuracy", "accuracy_low", "accuracy_high"]],
            }
            for one, scored in found
        ]
    )
    latencies = results_dir / name / study_table.LATENCIES_NAME
    measured = study_table.side_by_side(latencies, rows["model"])
    for column in ("latency_ms", "latency_doubt"):
        rows[column] = rows["model"].map(measured[column])
    clips = whole.predictions
    others = [number for number, (_, scored) in enumerate(found) if scored is not whole]
    differences = intervals.accuracy_differences(
        *(clips["label_id"].to_numpy(), np.stack([found[number][1].predictions["predicted_id"] for number in others])),
        *(clips["predicted_id"].to_numpy(), clips["group"].to_numpy()),
    )
    for number, row in enumerate(others):
        found_here = {f"difference_{key}": value for key, value in differences.of_pair(number).items()}
        found_here["difference"] = found_here.pop("difference_difference")
        found_here["within_margin"] = str(verdicts.of_pair(differences, number, study_table.MARGIN))
        rows.loc[row, list(found_here)] = list(found_here.values())
    order = rows["way"].map(WAYS.index)
    rows = rows.assign(order=order).sort_values(["order", "n_parameters"], ascending=[True, False])
    return rows.drop(columns="order"), {one.full_model: scored for one, scored in found}


def compare_by_size(table: pd.DataFrame, scored: dict[str, comparison.Scored]) -> pd.DataFrame | None:
    """Return a row for each pair of models of `compare` of one size, by two of `OF_A_SIZE`; None without pairs.

    Of one size are encoders with as many blocks, and CNNs of one architecture.

    The columns are those of `comparison.comparison_table`, after ``n_layers, first_way, second_way``.
    """
    table = table[table["way"].isin(OF_A_SIZE)].sort_values("n_layers", ascending=False, kind="stable")
    is_cnn = table["way"].isin((CNN, CNN_TAUGHT))
    table["size"] = table["model"].str.split(".").str[0].where(is_cnn, table["n_layers"])
    rows = list(table[["n_layers", "way", "size"]].itertuples(index=False))
    pairs = [
        (first, second)
        for first, second in itertools.combinations(range(len(rows)), 2)
        if rows[first].size == rows[second].size and rows[first].way != rows[second].way
    ]
    if not pairs:
        return None
    models = [scored[model] for model in table["model"]]
    found = comparison.comparison_table(models, seed=0, margin=study_table.MARGIN, pairs=pairs)
    ways = [(rows[first].n_layers, rows[first].way, rows[second].way) for first, second in pairs]
    return pd.concat([pd.DataFrame(ways, columns=["n_layers", "first_way", "second_way"]), found], axis=1)


def markdown_by_size(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table of `compare_by_size` in Markdown."""
    lines = ["| blocks | | accuracy, first − second | p (Holm) | first no worse by 0.02 |", "|---" * 5 + "|"]
    for _, row in table.iterrows():
        cells = [str(row["n_layers"] or ""), f"{row['first_way']} − {row['second_way']}", *difference_cells(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def markdown_of_pairs(models: Sequence[str], scored: dict[str, comparison.Scored]) -> list[str]:
    """Return the lines of a table of all pairs of some models in Markdown, as ``03 --compare`` compares them."""
    found = comparison.comparison_table([scored[model] for model in models], seed=0, margin=study_table.MARGIN)
    lines = ["| first − second | accuracy | p (Holm) | first no worse by 0.02 |", "|---" * 4 + "|"]
    for (first, second), (_, row) in zip(itertools.combinations(models, 2), found.iterrows(), strict=True):
        lines.append(f"| {' | '.join([f'{first} − {second}', *difference_cells(row)])} |")
    return lines


def difference_cells(row: pd.Series) -> list[str]:
    """Return difference with interval, p value and verdict of a row of `comparison.comparison_table`."""
    ends = (row[f"accuracy_{end}"] for end in ("difference", "low_of_all", "high_of_all"))
    return ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*ends), f"{row['accuracy_p_holm']:.3f}", row["accuracy_verdict"]]


def markdown_by_fold(models: Sequence[str], folder: Path, parts: Sequence[str]) -> list[str]:
    """Return the lines of a table of the accuracy and the kept blocks in each fold in Markdown; none if not pooled."""
    pooled = [names.parse(f"{folder.name}/{models[0]}/{part}") for part in parts]
    if any(name.fold != names.ALL_FOLDS for name in pooled):
        return []
    trainings = [replace(name, fold=None).part for name in pooled]
    found = (
        path.name.partition(".")[0] for part in trainings for path in (folder / models[0]).glob(f"fold-[0-9]*.{part}")
    )
    folds = sorted(set(found), key=lambda fold: int(fold.removeprefix("fold-")))
    lines = [f"| model | {' | '.join(fold.replace('-', ' ') for fold in folds)} |", "|---" * (1 + len(folds)) + "|"]
    for model in models:
        cells = [cell_of_fold([folder / model / f"{fold}.{part}" for part in trainings]) for fold in folds]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines


def cell_of_fold(folders: Sequence[Path]) -> str:
    """Return the accuracy of each training on a fold, and the blocks that it kept; blocks of all are named once."""
    paths = (folder / summary.METRICS_NAME for folder in folders)
    rows = [summary.read_metrics(path).iloc[0] for path in paths if path.is_file()]  # a study may not be complete yet
    kept = [f" ({row['kept_layers']})" if row["n_layers"] else "" for row in rows]
    is_same = len(set(kept)) == 1
    cells = [f"{row['accuracy']:.3f}{'' if is_same else own}" for row, own in zip(rows, kept, strict=True)]
    return ", ".join(cells) + (kept[0] if is_same else "")


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of the table in Markdown."""
    head = (
        "way",
        "model",
        "blocks",
        "parameters (millions)",
        "latency (ms)",
        "accuracy",
        "minus the whole",
        "within 0.02",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for _, row in table.iterrows():
        cells = [row["way"], row["model"], str(row["n_layers"] or ""), f"{row['n_parameters'] / 1e6:.3g}"]
        cells += [f"{row['latency_ms']:.0f}" + "?" * study_table.is_doubtful(row), study_table.score(row, "accuracy")]
        is_whole = np.isnan(row["difference"])
        cells += ["", ""] if is_whole else [study_table.difference(row), row["within_margin"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def latency_label(latencies: pd.DataFrame, whole: pd.Series) -> str:
    """Return the label of the axis of latencies; it names clip length, processor and threads where they are noted."""
    seconds = whole["latency_ms_median"] / whole["real_time_factor"] / 1000
    device, n_threads = (set(latencies.get(column, pd.Series()).dropna()) for column in ("device", "n_threads"))
    length = f" of {seconds:.3g} s" if np.isfinite(seconds) else ""
    threads = [counted(round(n), "thread") for n in n_threads]
    return f"latency of one clip{length} (ms; {', '.join([*sorted(device), *threads, 'logarithmic axis'])})"


def draw(table: pd.DataFrame, path: Path, name: str, xlabel: str) -> None:
    """Draw accuracy against latency: a panel for each family of ways, with the whole model and a line for each way."""
    table = table.assign(network=table["model"].str.split(".").str[0]).sort_values("latency_ms")
    is_whole, doubtful = table["way"] == WHOLE, table.apply(study_table.is_doubtful, axis=1)
    series = [*table.groupby(["way", "network"])]
    families = [(ways, [one for way in ways for one in series if one[0][0] == way]) for ways in FAMILIES.values()]
    families = [(title, *family) for title, family in zip(FAMILIES, families, strict=True) if family[1]]
    farthest = DODGE ** ((max(len(own) for *_, own in families) - 1) / 2) - 1
    notes = (
        f"{name}. Numbers: blocks that are left. Bars: 95 % intervals. Black circle and dotted line: the whole model."
    )
    notes += f"\nPoints are moved sideways by up to {100 * farthest:.0f} %, so that they do not hide each other."
    notes += " Hollow: a doubtful latency." * int(doubtful.any())
    n_rows, n_columns = -(-len(families) // 2), min(2, len(families))
    with plots.style():
        fig = Figure(figsize=(4.3 * n_columns, 3.9 * n_rows + 0.5), layout="constrained")
        panels = fig.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
        for axes in panels[len(families) :]:
            axes.remove()
        for axes, (title, ways, own) in zip(panels, families, strict=False):
            axes.axhline(table.loc[is_whole, "accuracy"].item(), color="black", linewidth=0.8, linestyle=(0, (1, 3)))
            plots.set_log_axis(axes, table["latency_ms"], 1.0)
            _draw_models(axes, table[is_whole], doubtful, {"color": "black", "marker": "o", "linestyle": "none"})
            for number, ((way, network), models) in enumerate(own):
                look = dict(zip(("color", "marker"), LOOKS[number % len(LOOKS)], strict=True))
                look |= {"linestyle": "none" if way in (OTHER, MORE) else "-" if number < len(LOOKS) else "--"}
                models = models.assign(latency_ms=models["latency_ms"] * DODGE ** (number - (len(own) - 1) / 2))
                is_of_whole = network == table.loc[is_whole, "network"].item()
                label = plots.drawable(ways[way] if is_of_whole else f"{ways[way]}: {network}")
                _draw_models(axes, models, doubtful, look, label)
            axes.legend(
                title=title,
                title_fontproperties={"weight": "bold", "size": 8.5},
                alignment="left",
                fontsize=7.5,
                loc="lower left",
                bbox_to_anchor=(-0.02, 1),
            )
        fig.supxlabel(plots.drawable(xlabel), fontsize=9)
        fig.supylabel("accuracy", fontsize=9)
        fig.suptitle(plots.drawable(notes), x=0.01, ha="left", fontsize=8.5)
        fig.draw_without_rendering()  # places are known then
        for axes in fig.axes:
            _number_points(axes)
        plots.save_figure(fig, path)


def _draw_models(axes: Axes, models: pd.DataFrame, doubtful: pd.Series, look: dict, label: str | None = None) -> None:
    x, y, is_doubtful = models["latency_ms"], models["accuracy"], doubtful[models.index]
    axes.vlines(x, models["accuracy_low"], models["accuracy_high"], color=look["color"], linewidth=0.6, alpha=0.6)
    axes.plot(x, y, **look, markersize=4.5, linewidth=1, label=label)
    axes.plot(x[is_doubtful], y[is_doubtful], **look | {"linestyle": "none"}, markersize=4.5, markerfacecolor="white")
    for place in models.index[models["n_layers"] > 0]:
        axes.annotate(
            *(str(models.loc[place, "n_layers"]), (x[place], y[place]), (0, 0)),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7,
            color=look["color"],
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )


def _number_points(axes: Axes) -> None:
    """Move the number of each point to the side where the points, intervals, lines and other numbers are farthest."""
    points_of = 72 / axes.figure.dpi
    ends = [segment for bars in axes.collections for segment in bars.get_segments()]
    ends += [pair for line in axes.lines[1:] for pair in itertools.pairwise(line.get_xydata())]
    ends += [np.repeat(line.get_xydata()[:1], 2, axis=0) for line in axes.lines[1:] if len(line.get_xydata())]
    ends = axes.transData.transform(np.concatenate(ends)).reshape(-1, 2, 2) * points_of
    along = np.linspace(0, 1, 40)[:, None, None]
    taken = (ends[:, 0] * (1 - along) + ends[:, 1] * along).reshape(-1, 2)  # points on each, in 1/72 inch
    angles = np.arange(16) * np.pi / 8
    around = 7 * np.column_stack([np.cos(angles), np.sin(angles)])
    for number in axes.texts:
        sides = axes.transData.transform(number.xy) * points_of + around
        distances = np.linalg.norm(sides[:, None] - taken, axis=2).min(axis=1)
        number.set_position(around[distances.argmax()])
        taken = np.vstack([taken, sides[distances.argmax()]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
