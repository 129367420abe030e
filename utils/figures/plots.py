"""Figures: one style, colour-blind safe and legible in black and white, saved as PDF and PNG."""

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from anyascii import anyascii
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from utils.core import names
from utils.core.files import atomic_path
from utils.core.text import printable

# Okabe & Ito 2008, in the order of contrast on white; the markers distinguish them in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FILLS = ("full", "none", "left", "bottom", "right", "top")
# Kinds of models in a study, with their markers.
KINDS = {"whole": "o", "pruned before": "s", "pruned after": "^", "CNN": "X", "not noted": "."}
GREY = "#7F7F7F"
LIGHT_GREY = "#E3E3E3"
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so a figure is the same on every machine
    "font.size": 8.5,
    "grid.color": LIGHT_GREY,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.dpi": 200,
    "text.parse_math": False,  # a dollar sign in a label is not mathematics
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
LONGEST_LABEL = 40
NUMBERS_UP_TO = 25
CELL_INCHES = 0.17
LEAST_ROWS = 12
MATRIX_UP_TO = 60  # labels; a larger matrix does not fit on a screen, and one of 300 labels needed 6 GB
WORST_CONFUSIONS = 40
BEST_SHOWN = 15
MOST_ROWS = 200  # of a figure with one line per pair; Matplotlib can draw at most 65,536 pixels


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw figures in the common style, independent of the user's Matplotlib settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save_figure(fig: Figure, path: Path, suffixes: Sequence[str] = (".pdf", ".png")) -> None:
    """Save a figure, atomically, with the same bytes for the same content.

    Parameters
    ----------
    fig : Figure
    path : Path
        Name without suffix; a dot in it is kept.
    suffixes : sequence of str
        Formats.
    """
    undated = {".pdf": {"CreationDate": None}, ".png": {"Software": None}}
    path = Path(path)
    for suffix in suffixes:
        drawn = io.BytesIO()  # on a full disk Matplotlib's PDF writer raises an unrelated error
        fig.savefig(drawn, format=suffix[1:], metadata=undated[suffix])
        with atomic_path(path.with_name(path.name + suffix)) as partial:
            partial.write_bytes(drawn.getbuffer())


@functools.cache
def _drawn_characters() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont(STYLE["font.family"], fallback_to_default=False))
    return frozenset({*font.get_charmap(), ord("\n")})


def drawable(text: str) -> str:
    r"""Return a text that the font can draw: it spells other characters in Latin letters, or escapes them.

    ``大山雀`` becomes ``DaShanQue``, a character without a Latin spelling ``\ue000``. CSV files keep the original.
    """
    known = _drawn_characters()
    return "".join(c if ord(c) in known else printable(anyascii(c)) or ascii(c)[1:-1] for c in text)


def model_label(name: str) -> str:
    """Return the label of a run or a result without its data set."""
    parsed = names.parse(name)
    if parsed is None:
        return name
    return f"{parsed.without(names.SWEEP).full_model}, {parsed.part.replace('-', ' ').replace('.', ', ')}"


def caption(name: str, data_dir: Path, splits: Mapping[str, tuple[int | None, int | None]]) -> str:
    """Return the caption of a figure: model, data set, split, numbers of clips and groups.

    Parameters
    ----------
    name : str
        Name of the run or the result; see `names.of_folder`.
    data_dir : Path
        Folder of the clips; it names the data set if `name` does not follow the layout.
    splits : mapping of str to (int or None, int or None)
        Numbers of clips and groups by split; None if an early version did not record them.
    """
    parsed = names.parse(name)
    data_set = names.of_data(data_dir) if parsed is None else parsed.data_folder
    texts = [
        split if None in (n_clips, n_groups) else f"{split}: {n_clips:,} clips in {n_groups:,} groups"
        for split, (n_clips, n_groups) in splits.items()
    ]
    return drawable(f"{model_label(name)}, on {data_set}; {'; '.join(texts)}")


def shorten(label: str, longest: int = LONGEST_LABEL) -> str:
    """Return a drawable label; its middle is left out if it is longer than `longest` characters."""
    label = drawable(label)
    if len(label) <= longest:
        return label
    head = longest // 2
    return f"{label[:head]}…{label[head + 1 - longest :]}"


# --------------------------------------------------------------------------------------- one evaluation


def confusion_figure(counts: pd.DataFrame, path: Path, title: str | None = None) -> None:
    """Draw a confusion matrix; with more than 60 labels, the most frequent confusions.

    Parameters
    ----------
    counts : DataFrame of int, shape (n_classes, n_classes)
        Index: true labels; columns: predicted ones; see `evaluation.confusion_table`.
    path : Path
        Name without suffix.
    title : str or None
        Such as a `caption`.
    """
    draw = _confusion_matrix if len(counts) <= MATRIX_UP_TO else _worst_confusions
    with style():
        save_figure(draw(counts, title), path)


def _confusion_matrix(counts: pd.DataFrame, title: str | None) -> Figure:
    """Return a matrix with one row per true label, coloured by the share of the row's clips.

    The figure grows with the classes, so that labels stay legible at 100 % zoom. With up to 25 classes the
    cells show the counts. A row without clips is grey.
    """
    order = sorted(counts.index)
    counts = counts.loc[order, order]
    values = counts.to_numpy()
    n_of_row = values.sum(axis=1, keepdims=True)
    shares = np.divide(values, n_of_row, out=np.full(values.shape, np.nan), where=n_of_row > 0)
    n = len(order)
    with_numbers = n <= NUMBERS_UP_TO
    side = max(2.4, n * (CELL_INCHES * 1.7 if with_numbers else CELL_INCHES))
    fig = Figure(figsize=(side + 1.0, side))
    axes = fig.add_axes((0, 0, side / (side + 1.0), 1))
    colour_map = matplotlib.colormaps["Blues"].with_extremes(bad=LIGHT_GREY)
    # The square root keeps a confusion of one clip in twenty visible beside a full diagonal.
    image = axes.imshow(shares, cmap=colour_map, norm=PowerNorm(0.5, 0, 1))
    labels = [shorten(label) for label in order]
    size = 8 if with_numbers else 7
    axes.set_xticks(range(n), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(n), labels, fontsize=size)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white" if with_numbers else LIGHT_GREY, linewidth=0.8 if with_numbers else 0.4)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if title:
        axes.set_title(title, loc="left")
    if with_numbers:
        for row, column in np.argwhere(values > 0):
            dark = shares[row, column] > 0.3  # the darker half of the colours
            axes.text(
                column,
                row,
                str(values[row, column]),
                ha="center",
                va="center",
                fontsize=min(7, 28 / len(str(values.max()))),  # the widest count fills its cell
                color="white" if dark else "black",
            )
    bar_height = min(1.0, 4.0 / side)
    bar_axes = fig.add_axes(((side + 0.15) / (side + 1.0), 1 - bar_height, 0.15 / (side + 1.0), bar_height))
    bar = fig.colorbar(image, cax=bar_axes, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5 %", "20 %", "50 %", "100 %"])
    bar.ax.minorticks_off()
    bar.set_label("share of the true label's clips")
    bar.outline.set_visible(False)
    return fig


def _worst_confusions(counts: pd.DataFrame, above: str | None) -> Figure:
    """Return one bar per pair of true and wrong label: the pairs with the most clips, then with the largest share."""
    values = counts.to_numpy()
    n_of_label, n_wrong = values.sum(axis=1), values.sum() - np.trace(values)
    true, predicted = np.nonzero(values * ~np.eye(len(values), dtype=bool))
    n_clips = values[true, predicted]
    order = np.lexsort((predicted, true, -n_clips / n_of_label[true], -n_clips))[:WORST_CONFUSIONS]
    true, predicted, n_clips, n_pairs = true[order], predicted[order], n_clips[order], len(true)
    rows = np.arange(len(order))
    fig = Figure(figsize=(7.5, 1.2 + 0.2 * max(len(order), 3)), layout="constrained")
    axes = fig.add_subplot()
    axes.barh(rows, n_clips, color=COLOURS[0])
    for row, n, n_true in zip(rows, n_clips, n_of_label[true], strict=True):
        axes.annotate(
            f"{n / n_true:.0%} of {n_true:,}", (n, row), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    pairs = zip(counts.index[true], counts.columns[predicted], strict=True)
    axes.set_yticks(rows, [f"{shorten(a)} → {shorten(b)}" for a, b in pairs])
    axes.set_ylim(max(len(order), 3) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * n_clips.max(initial=1))  # room for the text beside the longest bar
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("clips of the true label (left) that are predicted as the other one")
    title = f"No confusion among {len(counts):,} labels: all {values.sum():,} clips are right"
    if n_wrong:
        share = f"{n_clips.sum() / n_wrong:.0%} of the {n_wrong:,} wrong clips"
        title = f"The {len(order)} most frequent confusions of {n_pairs:,} among {len(counts):,} labels: {share}"
    fig.suptitle("\n".join(filter(None, [above, title])), x=0.01, ha="left", fontsize=10)
    return fig


def reliability_figure(bins: pd.DataFrame, expected_error: float, path: Path, title: str | None = None) -> None:
    """Draw accuracy against confidence, and below it the number of clips by confidence.

    Parameters
    ----------
    bins : DataFrame
        As `evaluation.calibration` returns it.
    expected_error : float
        The expected calibration error, for the title.
    path : Path
        Without suffix.
    title : str or None
        Such as a `caption`.
    """
    filled = bins[bins["n_clips"] > 0]
    with style():
        fig = Figure(figsize=(3.6, 4.2))
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
        top.vlines(
            filled["confidence"],
            filled["accuracy"],
            filled["confidence"],
            color=COLOURS[1],
            linewidth=1.2,
            label="gap",
        )
        top.plot(
            filled["confidence"],
            filled["accuracy"],
            color=COLOURS[0],
            marker="o",
            markersize=4,
            label="model",
        )
        top.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="accuracy")
        error = f"expected calibration error {expected_error:.3f}"
        above = title.replace("; ", "\n") if title else None
        top.set_title("\n".join(filter(None, [above, error])), loc="left", pad=20)
        top.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, fontsize=7.5, columnspacing=1.2)
        bottom.bar(
            bins["above"],
            bins["n_clips"],
            width=bins["to"] - bins["above"],
            align="edge",
            color=COLOURS[0],
            edgecolor="white",
        )
        bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="clips")
        bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        bottom.grid(axis="x", visible=False)
        fig.align_ylabels()
        fig.subplots_adjust(hspace=0.08)
        save_figure(fig, path)


def collections_figure(scores: pd.DataFrame, path: Path, title: str | None = None) -> None:
    """Draw accuracy and macro F1 of each collection with its interval, and the level of knowing the collection alone.

    Parameters
    ----------
    scores : DataFrame
        As `by_collection.score` returns it: the last two rows are the mean, and the guess from the collection alone.
    path : Path
        Without suffix.
    title : str or None
        Such as a `caption`.
    """
    of_each, mean, alone, some = scores.iloc[:-2], scores.iloc[-2], scores.iloc[-1], None
    if len(of_each) > MOST_ROWS:
        some = f"The {MOST_ROWS} largest of {len(of_each):,} collections"
        of_each = of_each.nlargest(MOST_ROWS, "n_clips").sort_index()
    rows = np.arange(len(of_each))
    with style():
        fig = Figure(figsize=(6.8, 1.5 + 0.24 * len(of_each)), layout="constrained")
        panels = fig.subplots(1, 2, sharey=True)
        for number, (axes, (name, score)) in enumerate(
            zip(panels, {"accuracy": "accuracy", "macro_f1": "macro F1"}.items(), strict=True)
        ):
            axes.axvline(
                alone[name], color=GREY, linestyle="--", linewidth=1, label="knowing the collection alone, all clips"
            )
            axes.hlines(rows, of_each[f"{name}_low"], of_each[f"{name}_high"], color=COLOURS[number])
            axes.plot(of_each[name], rows, linestyle="none", marker="o", markersize=5, color=COLOURS[number])
            axes.hlines(len(rows), mean[f"{name}_low"], mean[f"{name}_high"], color="black")
            axes.plot(mean[name], len(rows), linestyle="none", marker="D", markersize=5, color="black")
            axes.set(xlabel=f"{score} [95 %]", xlim=(-0.02, 1.02))
            axes.grid(axis="y", visible=False)
        labels = [f"{shorten(str(row['collection']), 32)} ({row['n_clips']:,})" for _, row in of_each.iterrows()]
        panels[0].set_yticks([*rows, len(rows)], [*map(drawable, labels), f"mean ({mean['n_clips']:,} clips)"])
        for axes in panels:
            axes.tick_params(axis="y", length=0)
        panels[0].set_ylim(len(rows) + 0.6, -0.6)
        handles, names = panels[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower right", fontsize=7.5)
        fig.suptitle("\n".join(filter(None, [title, some])), x=0.01, ha="left")
        save_figure(fig, path)


# -------------------------------------------------------------------------------------------- training


def training_curves(metrics: pd.DataFrame, path: Path, title: str | None = None) -> None:
    """Draw losses, validation scores and learning rate by epoch; save a PNG.

    Parameters
    ----------
    metrics : DataFrame
        One row per evaluation: ``epoch, step, train_loss, eval_loss, eval_accuracy, eval_macro_f1,
        learning_rate``; NaN where there is no number. With several labels a clip, ``eval_macro_average_precision`` in
        place of macro F1.
    path : Path
        Name without suffix.
    title : str or None
        Such as a `caption`.
    """
    epoch = metrics["epoch"]
    marker = {"marker": "o", "markersize": 3} if len(metrics) <= 50 else {}
    with style():
        fig = Figure(figsize=(9.5, 2.7))
        losses, scores, rate = fig.subplots(1, 3, width_ratios=(3, 3, 2))
        losses.plot(epoch, metrics["train_loss"], label="training", **marker)
        losses.plot(epoch, metrics["eval_loss"], label="validation", linestyle="--", **marker)
        losses.set(ylabel="loss")
        choosing, name = ("eval_macro_f1", "macro F1")
        if choosing not in metrics:
            choosing, name = ("eval_macro_average_precision", "macro average precision")
        scores.plot(epoch, metrics[choosing], label=name, **marker)
        scores.plot(epoch, metrics["eval_accuracy"], label="accuracy", linestyle="--", **marker)
        scores.set(ylabel="score on the validation split", ylim=(-0.02, 1.02))
        if metrics[choosing].notna().any():
            best = metrics[choosing].idxmax()
            scores.plot(
                epoch[best],
                metrics[choosing][best],
                linestyle="none",
                marker="*",
                markersize=11,
                color="black",
                label=f"best {name} {metrics[choosing][best]:.3f}, epoch {epoch[best]:g}",
            )
        rate.plot(epoch, metrics["learning_rate"], color=GREY, **marker)
        rate.set(ylabel="learning rate")
        rate.ticklabel_format(axis="y", scilimits=(0, 0))
        for axes in (losses, scores, rate):
            axes.set(xlabel="epoch", xlim=(0, max(1.0, epoch.max()) * 1.03))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        losses.legend()
        scores.legend(fontsize=7)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=10)
        fig.tight_layout()
        save_figure(fig, path, suffixes=(".png",))


# --------------------------------------------------------------------------------------------- summary


def summary_figure(
    summary: pd.DataFrame, path: Path, is_doubtful: pd.Series | None = None, asked: Sequence[str] = ()
) -> None:
    """Draw the accuracy of the best models with its interval, and against their size and latency; save a PNG.

    Of more than 15 models the 15 most accurate and the requested ones are drawn; the title states the total.
    The left panel has one line per model, best first, so that names do not overlap. The marker shows the kind
    of a model: CNN, whole, or pruned before or after fine-tuning. Models that were scored on different clips
    are in separate blocks, each with its own colour and filling: their scores are not comparable.

    Parameters
    ----------
    summary : DataFrame
        One row per model, with the columns of ``metrics.csv``.
    path : Path
        Name without suffix.
    is_doubtful : Series of bool or None
        For each row, whether its latency is doubtful; the label of the axis counts these rows.
    asked : sequence of str
        Models that are drawn in any case.
    """
    n_models, of_clips = len(summary), ["data_sha256", "split", "n_clips"]
    n_of_set = summary.groupby(of_clips, dropna=False)["model_name"].transform("size")
    summary = summary.assign(n_of_set=n_of_set).sort_values(["accuracy", "model_name"], ascending=[False, True])
    summary = summary[(np.arange(n_models) < BEST_SHOWN) | summary["model_name"].isin(asked)]
    n_doubtful = 0 if is_doubtful is None else is_doubtful[summary.index].sum()
    doubt = f", {n_doubtful} of {len(summary)} doubtful" if n_doubtful else ""
    clip_sets = [models for _, models in summary.groupby(of_clips, dropna=False)]
    clip_sets.sort(key=lambda models: models["model_name"].min())  # by name: a reader does not know their digests
    n_rows = len(summary) + len(clip_sets)
    limits = _score_limits(summary)
    with style():
        fig = Figure(figsize=(9.5, 1.2 + 0.2 * max(n_rows, LEAST_ROWS)), layout="constrained")
        grid = fig.add_gridspec(2, 2, width_ratios=(3, 2))
        lines = fig.add_subplot(grid[:, 0])
        by_size, by_latency = fig.add_subplot(grid[0, 1]), fig.add_subplot(grid[1, 1])
        axes_of = {by_size: "n_parameters", by_latency: "latency_ms_median"}
        row, ticks = 0, {}
        for number, models in enumerate(clip_sets):
            here = row + 1 + np.arange(len(models))
            look = {"color": COLOURS[number % len(COLOURS)], "fillstyle": FILLS[number % len(FILLS)]}
            lines.text(
                *(0.01, row, _clips_of(models)),
                transform=lines.get_yaxis_transform(),
                va="center",
                fontsize=7.5,
                color=look["color"],
            )
            _draw_models(models, here, lines, axes_of, look)
            ticks.update(zip(here, map(model_label, models["model_name"]), strict=True))
            row += 1 + len(models)
        lines.set_yticks(list(ticks), [shorten(name) for name in ticks.values()])
        lines.tick_params(axis="y", length=0)
        lines.set(
            xlim=limits, ylim=(max(n_rows, LEAST_ROWS) - 0.4, -0.6), xlabel="accuracy of clips, with its 95 % interval"
        )
        for axes, column, unit in ((by_size, "n_parameters", 1e6), (by_latency, "latency_ms_median", 1.0)):
            axes.set(ylabel="accuracy", ylim=limits)
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
            set_log_axis(axes, summary[column], unit)
        for kind in KINDS:
            if (summary["kind"] == kind).any():
                by_size.plot([], [], color="black", linestyle="none", markersize=4.5, marker=KINDS[kind], label=kind)
        by_size.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=7, handletextpad=0.1, columnspacing=0.8
        )
        by_size.set_xlabel("parameters (millions)")
        devices = sorted(set(summary["device"].astype(str)))
        by_latency.set_xlabel(f"latency of one clip (ms){doubt}\n" + shorten(" and ".join(devices), 50))
        fig.suptitle(_shown(len(summary), n_models), x=0.01, ha="left", fontsize=10)
        save_figure(fig, path, suffixes=(".png",))


def _draw_models(
    models: pd.DataFrame, rows: np.ndarray, lines: Axes, axes_of: dict[Axes, str], look: dict[str, object]
) -> None:
    """Draw models that were scored on the same clips: one line each, and one point each in the other axes."""
    low, high, accuracy = models["accuracy_low"], models["accuracy_high"], models["accuracy"]
    lines.hlines(rows, low, high, color=look["color"])
    for axes, column in axes_of.items():
        axes.vlines(models[column], low, high, color=look["color"], linewidth=1, alpha=0.4)
    for kind, marker in KINDS.items():
        chosen = (models["kind"] == kind).to_numpy()
        # A marker at an accuracy of 1 is drawn whole, and takes no room from the axes.
        point = {"marker": marker, "linestyle": "none", "clip_on": False, "in_layout": False, **look}
        lines.plot(accuracy[chosen], rows[chosen], markersize=5, **point)
        for axes, column in axes_of.items():
            axes.plot(models[column][chosen], accuracy[chosen], markersize=4.5, **point)


def _shown(n_shown: int, n_models: int) -> str:
    if n_shown == n_models:
        return f"all {n_models:,} models" if n_models > 1 else "1 model"
    added = f" and {n_shown - BEST_SHOWN:,} asked for" if n_shown > BEST_SHOWN else ""
    return f"{n_shown:,} of {n_models:,} models: the {BEST_SHOWN} most accurate{added}; summary.csv has all"


def _clips_of(models: pd.DataFrame) -> str:
    """Return a description of the clips on which models were scored."""
    first = models.iloc[0]
    parsed = [names.parse(name) for name in models["model_name"]]
    data_sets = sorted({f"{name.data_folder}, " for name in parsed if name is not None})
    shown = f": {len(models):,} of {first['n_of_set']:,} models" if first["n_of_set"] > len(models) else ""
    clips = f"{first['n_clips']:,} {first['split']} clips of {first['n_recordings']:,} recordings"
    return drawable(f"{''.join(data_sets)}{clips}, {first['n_classes']} classes{shown}")


def _score_limits(summary: pd.DataFrame) -> tuple[float, float]:
    low = summary[["accuracy", "accuracy_low"]].min(axis=None)
    high = summary[["accuracy", "accuracy_high"]].max(axis=None)
    margin = 0.05 * max(high - low, 0.2)
    return max(-0.01, low - margin), min(1.01, high + margin)


def set_log_axis(axes: Axes, values: pd.Series, unit: float) -> None:
    """Give an axis of sizes or times round numbers on a logarithmic scale, in multiples of `unit`."""
    low, high = values.min(), values.max()
    room = max(1.2, (5 * low / high) ** 0.5)  # a factor of five holds at least two of 1, 2, 5
    low, high = low / room, high * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / unit:g}")
    axes.xaxis.set_minor_locator(NullLocator())


# ------------------------------------------------------------------------------------------ comparison


def comparison_figure(table: pd.DataFrame, path: Path, title: str | None = None) -> None:
    """Draw the difference of every pair of models with its interval, in accuracy and in macro F1.

    With several labels a clip, in macro average precision and in accuracy.

    A thick line is the interval of a pair by itself; a thin line is simultaneous for all pairs of the table. A filled
    marker means an adjusted p value under 0.05. Of more than 200 pairs only those with the smallest
    p values of accuracy are drawn.

    Parameters
    ----------
    table : DataFrame
        As from `comparison.comparison_table`.
    path : Path
        Name without suffix.
    title : str or None
        The clips on which the models were scored.
    """
    n_pairs, scores = len(table), {"accuracy": "accuracy", "macro_f1": "macro F1"}
    if "macro_f1_difference" not in table:
        scores = {"macro_average_precision": "macro average precision", "accuracy": "accuracy"}
    has_both = n_pairs > 1 and "accuracy_low_of_all" in table  # an early version wrote one kind
    if n_pairs > MOST_ROWS:
        table = table.sort_values("accuracy_p_holm", kind="stable").head(MOST_ROWS).sort_index()
    rows = np.arange(len(table))
    with style():
        fig = Figure(figsize=(9.5, 1.1 + 0.24 * max(len(table), 3)), layout="constrained")
        panels = fig.subplots(1, 2, sharey=True)
        for number, (axes, (name, score)) in enumerate(zip(panels, scores.items(), strict=True)):
            axes.axvline(0, color="black", linewidth=0.8)
            for end, width in (("", 2.5), ("_of_all", 0.8))[: 1 + has_both]:
                ends = table[f"{name}_low{end}"], table[f"{name}_high{end}"]
                axes.hlines(rows, *ends, color=COLOURS[number], linewidth=width)
            sure = table[f"{name}_p_holm"] < 0.05
            for chosen, fill, label in ((sure, COLOURS[number], "p < 0.05"), (~sure, "white", "p ≥ 0.05")):
                axes.plot(
                    table.loc[chosen, f"{name}_difference"],
                    rows[chosen],
                    linestyle="none",
                    marker=MARKERS[number],
                    markersize=5,
                    markeredgecolor=COLOURS[number],
                    markerfacecolor=fill,
                    label=label if chosen.any() else None,
                )
            axes.set_xlabel(f"difference in {score} [95 %]")
            axes.grid(axis="y", visible=False)
            axes.legend(
                title="adjusted (Holm)", fontsize=7, title_fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=2
            )
        panels[0].set_yticks(
            rows,
            [
                f"{shorten(model_label(a), 32)} − {shorten(model_label(b), 32)}"
                for a, b in zip(table["first"], table["second"], strict=True)
            ],
        )
        panels[0].tick_params(axis="y", length=0)
        panels[0].set_ylim(max(len(table), 3) - 0.4, -0.6)
        some = f"The {len(table)} pairs of {n_pairs:,} with the smallest p values" if n_pairs > len(table) else None
        lines = "thick: interval of a pair by itself; thin: intervals of all pairs together" if has_both else None
        fig.suptitle("\n".join(filter(None, [title, some, lines])), x=0.01, ha="left")
        save_figure(fig, path)
