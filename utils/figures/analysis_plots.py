"""Figures of 04_analysis.py: convexity, probe, similarity, influence, angular distance, linear residual, and an
overview.

Each ``draw_…`` function fills one pair of axes, and must be called inside `plots.style`. Each ``…_figure``
function saves a figure as PDF and PNG. The overview uses the same ``draw_…`` functions. A measured value that
is NaN is hatched in grey; a metric that was not measured is left out.
"""

import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PatchCollection
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from utils.figures.plots import COLOURS, GREY, LIGHT_GREY, MARKERS, save_figure, shorten, style

MISSING = {"facecolor": LIGHT_GREY, "edgecolor": GREY, "hatch": "/////", "linewidth": 0}
# Its lightness rises evenly, so it can be read in grey: light means similar, or near.
COLOUR_MAP = "viridis"
HIDDEN_LAYER = "hidden layer (0: first block's input)"
LINES_UP_TO = len(COLOURS)
MAP_UP_TO = 60  # classes
ROW_INCHES = 0.17
LEGEND_ROW_INCHES = 0.15
TICK_INCHES = 0.22
PAGE_INCHES = 11.69  # width of A4, landscape
MAP_INCHES = 2.8
# Room for titles and labels: between columns, between rows, and below a row with a colour bar.
ROOM_BESIDE_INCHES, ROOM_INCHES, ROOM_WITH_BAR_INCHES = 0.85, 0.95, 1.65


class Similarity(NamedTuple):
    """A similarity matrix with its null and its block boundary.

    Attributes
    ----------
    matrix : DataFrame or ndarray of float, shape (n_hidden, n_other_hidden)
        Similarity of hidden layers, of one model or of two.
    null : float or ndarray of float
        Similarity expected by chance. The range of an array is drawn; NaN is not drawn.
    boundary : int or None
        First hidden layer of the second block of a model's own matrix; see `similarity.two_block_boundary`.
    """

    matrix: pd.DataFrame | np.ndarray
    null: float | np.ndarray
    boundary: int | None = None


# ---------------------------------------------------------------------------------------------- curves


def convexity_figure(
    table: pd.DataFrame, path: Path, ylabel: str = "graph convexity", title: str | None = None
) -> None:
    """Draw convexity by hidden layer with interval and null, and below it the shares of direct and unreachable pairs.

    Parameters
    ----------
    table : DataFrame
        One row per hidden layer: ``layer, convexity``; if known ``convexity_low, convexity_high,
        null_of_groups, pooled_convexity, direct_share, unreachable_share, mostly_direct``. Layers with
        ``mostly_direct`` are circled.
    path : Path
        Name without suffix.
    ylabel : str
        Name of the measure, such as Euclidean convexity.
    title : str or None
    """
    shares = [column for column in ("direct_share", "unreachable_share") if _has_numbers(table, column)]
    with style():
        fig = Figure(figsize=(4.8, 4.4 if shares else 3.2), layout="constrained")
        if shares:
            axes, below = fig.subplots(2, 1, sharex=True, height_ratios=(5, 2))
            _draw_pair_shares(below, table, shares)
        else:
            axes = fig.subplots()
        draw_convexity(axes, table, ylabel)
        if shares:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
            fig.align_ylabels()
        if title:
            axes.set_title(title, loc="left")
        save_figure(fig, path)


def draw_convexity(axes: Axes, table: pd.DataFrame, ylabel: str = "graph convexity") -> None:
    """Draw the upper part of `convexity_figure`."""
    _draw_curve(axes, table, "convexity", "class mean", 0)
    if _has_numbers(table, "pooled_convexity"):
        _draw_line(axes, table, "pooled_convexity", "all pairs pooled", 1)
    _draw_null(axes, table, "null_of_groups", "null: labels permuted between groups")
    if "mostly_direct" in table and table["mostly_direct"].any():
        doubtful = table[table["mostly_direct"]]
        axes.plot(
            doubtful["layer"],
            doubtful["convexity"],
            linestyle="none",
            marker="o",
            markersize=9,
            markerfacecolor="none",
            color=COLOURS[0],
            label="most pairs are neighbours",
        )
    _finish_curves(axes, table, "convexity", ylabel)


def _draw_pair_shares(axes: Axes, table: pd.DataFrame, columns: list[str]) -> None:
    labels = {"direct_share": "joined by an edge", "unreachable_share": "without a path"}
    for number, column in enumerate(columns, start=2):
        _draw_line(axes, table, column, labels[column], number)
    _finish_curves(axes, table, columns[0], "share of pairs")


def probe_figure(table: pd.DataFrame, path: Path, title: str | None = None) -> None:
    """Draw the scores of a linear probe by hidden layer, with their interval and the majority level.

    Parameters
    ----------
    table : DataFrame
        One row per hidden layer: ``layer, accuracy``; if known ``accuracy_low, accuracy_high, macro_f1,
        majority``.
    path : Path
        Name without suffix.
    title : str or None
    """
    with style():
        fig = Figure(figsize=(4.8, 3.2), layout="constrained")
        axes = fig.subplots()
        draw_probe(axes, table)
        if title:
            axes.set_title(title, loc="left")
        save_figure(fig, path)


def draw_probe(axes: Axes, table: pd.DataFrame) -> None:
    """Draw `probe_figure`."""
    _draw_curve(axes, table, "accuracy", "accuracy", 0)
    if _has_numbers(table, "macro_f1"):
        _draw_line(axes, table, "macro_f1", "macro F1", 1)
    _draw_null(axes, table, "majority", "accuracy of the most frequent label")
    _finish_curves(axes, table, "accuracy", "score of a linear probe")


def _has_numbers(table: pd.DataFrame, column: str) -> bool:
    return column in table and table[column].notna().any()


def _draw_curve(axes: Axes, table: pd.DataFrame, column: str, label: str, number: int) -> None:
    """Draw a column with its interval: a band, and a bar at each layer, because a single layer has no band."""
    low, high = f"{column}_low", f"{column}_high"
    if _has_numbers(table, low) and _has_numbers(table, high):
        colour = COLOURS[number]
        axes.fill_between(table["layer"], table[low], table[high], color=colour, alpha=0.18, linewidth=0)
        axes.vlines(table["layer"], table[low], table[high], color=colour, linewidth=0.9, alpha=0.7)
        label += ", 95 % interval"
    _draw_line(axes, table, column, label, number)


def _draw_line(axes: Axes, table: pd.DataFrame, column: str, label: str, number: int) -> None:
    axes.plot(
        table["layer"],
        table[column],
        color=COLOURS[number],
        marker=MARKERS[number],
        linestyle="-" if number == 0 else "--",
        linewidth=1.5 if number == 0 else 1.0,
        markersize=4,
        label=label,
    )


def _draw_null(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    if _has_numbers(table, column):
        axes.plot(
            table["layer"],
            table[column],
            color="black",
            linestyle=":",
            linewidth=1,
            marker="_" if table[column].count() == 1 else None,  # a dotted line needs two points
            markersize=7,
            zorder=3,  # on top: elsewhere a curve that equals it hides it
            label=label,
        )


def _finish_curves(axes: Axes, table: pd.DataFrame, column: str, ylabel: str) -> None:
    """Hatch the layers without a number, set the axes, and put the legend into free room at the top."""
    handles, labels = axes.get_legend_handles_labels()
    if table[column].isna().any():
        handles.append(Rectangle((0, 0), 1, 1, **MISSING))
        labels.append("no number")
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines] + [_interval_ends(table, column)])
    drawn = drawn[np.isfinite(drawn.astype(float))]
    top = _reserve_top(axes, min(drawn, default=0.0), max(drawn, default=1.0), len(handles))
    for layer in table.loc[table[column].isna(), "layer"]:
        axes.axvspan(layer - 0.5, layer + 0.5, ymax=top, zorder=0.5, **MISSING)
    axes.legend(handles, labels, loc="upper left", borderaxespad=0.1, fontsize=7.5, handlelength=2.6, labelspacing=0.3)
    axes.set(xlabel=HIDDEN_LAYER, ylabel=ylabel, xlim=(table["layer"].min() - 0.5, table["layer"].max() + 0.5))
    count_along(axes.xaxis, table["layer"].min(), table["layer"].max())


def _interval_ends(table: pd.DataFrame, column: str) -> np.ndarray:
    ends = table.reindex(columns=[f"{column}_low", f"{column}_high"]).to_numpy(dtype=float)
    return ends.ravel()


def _reserve_top(axes: Axes, low: float, high: float, n_rows: int) -> float:
    """Set the y axis from 0 (or `low`, if negative) to `high`, with `n_rows` of a legend above it.

    Returns
    -------
    float
        Share of the axes' height below the legend.
    """
    bottom = min(0.0, 1.05 * low)
    high = high if high > bottom else 1.0
    inches = _inches(axes)[1] * 0.85  # labels need some
    share = min(0.6, 0.03 + n_rows * LEGEND_ROW_INCHES / inches)
    axes.set_ylim(bottom, bottom + (high - bottom) / (1 - share))
    locator = MaxNLocator(max(2, round(3 * inches * (1 - share))), steps=(1, 2, 2.5, 5, 10))
    axes.set_yticks([tick for tick in locator.tick_values(bottom, high) if bottom <= tick <= high * 1.08])
    return 1 - share


def _inches(axes: Axes) -> tuple[float, float]:
    """Return width and height of axes, with the room for their labels."""
    box = axes.get_window_extent()
    dpi = axes.get_figure(root=True).dpi
    return box.width / dpi, box.height / dpi


def count_along(axis: Axis, first: int, last: int) -> None:
    """Number layers `first` to `last` along an axis: all, or every second, third, … if room is short."""
    most = max(1, int(_inches(axis.axes)["xy".index(axis.axis_name)] / TICK_INCHES))
    step = next(step for step in itertools.count(1) if last - first < step * most)
    axis.set_ticks(range(int(first), int(last) + 1, step))


# -------------------------------------------------------------------------------------- classes apart


def class_convexity_figure(
    table: pd.DataFrame, path: Path, ylabel: str = "graph convexity", title: str | None = None
) -> None:
    """Draw the convexity of every class by hidden layer: as lines for up to 7 classes, else as a heat map.

    Classes are sorted by their mean over the layers, the most convex first. Of more than 60 classes the 30
    most and the 30 least convex are drawn.

    Parameters
    ----------
    table : DataFrame
        One row per class and hidden layer: ``layer, label, convexity, n_clips``.
    path : Path
        Name without suffix.
    ylabel : str
        Name of the measure.
    title : str or None
    """
    by_class = table.pivot(index="label", columns="layer", values="convexity")
    order = by_class.mean(axis=1).sort_values(ascending=False, kind="stable").index
    if len(order) > MAP_UP_TO:
        there, half = order[by_class.loc[order].notna().any(axis=1)], MAP_UP_TO // 2
        order = there[:half].union(there[half:][-half:], sort=False) if len(there) else order[:half]
        title = f"{title or ylabel}: the most and the least convex {len(order)} of {len(there):,} classes with a number"
    by_class = by_class.loc[order]
    n_clips = table.groupby("label")["n_clips"].max()
    labels = [f"{shorten(str(label))} ({n_clips[label]:.0f})" for label in order]
    with style():
        if len(by_class) <= LINES_UP_TO:
            fig = Figure(figsize=(6.4, 3.2), layout="constrained")
            axes = fig.subplots()
            draw_class_lines(axes, by_class, labels, ylabel)
        else:
            width = 0.17 * by_class.shape[1]
            fig = Figure(figsize=(max(2.2, width) + 3.2, ROW_INCHES * len(by_class) + 1.3), layout="constrained")
            axes = fig.subplots()
            draw_class_map(axes, by_class, labels, ylabel)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=10)
        save_figure(fig, path)


def draw_class_lines(axes: Axes, by_class: pd.DataFrame, labels: list[str], ylabel: str) -> None:
    """Draw one line per class (at most 7), with a legend beside the axes.

    Parameters
    ----------
    axes : Axes
    by_class : DataFrame of float, shape (n_classes, n_hidden)
        Columns are hidden layers.
    labels : list of str
        Names of the rows.
    ylabel : str
        Name of the measure.
    """
    layers = by_class.columns
    for number, (label, values) in enumerate(zip(labels, by_class.to_numpy(), strict=True)):
        look = {"color": COLOURS[number], "marker": MARKERS[number]}
        axes.plot(layers, values, linewidth=1, markersize=4, label=label, **look)
    missing = by_class.isna().to_numpy()
    handles, labels = axes.get_legend_handles_labels()
    classes = np.flatnonzero(missing.any(axis=1))
    for place, row in enumerate(classes):
        look = {"color": COLOURS[row], "marker": MARKERS[row], "fillstyle": "none", "markersize": 4}
        where = layers[missing[row]]
        height = np.full(len(where), 1.03 + 0.05 * place)  # above the axes: they have no value
        across = axes.get_xaxis_transform()
        axes.plot(where, height, transform=across, clip_on=False, linestyle="none", **look)
    if len(classes):
        strip = Rectangle((0, 1), 1, 0.01 + 0.05 * len(classes), transform=axes.transAxes, clip_on=False, zorder=0)
        strip.set(facecolor=LIGHT_GREY, linewidth=0)
        axes.add_artist(strip)
        handles.append(Rectangle((0, 0), 1, 1, facecolor=LIGHT_GREY, linewidth=0))
        labels.append("no number")
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1, 1), title="class (clips)", alignment="left")
    axes.set(xlabel=HIDDEN_LAYER, ylabel=ylabel, xlim=(layers.min() - 0.5, layers.max() + 0.5))
    top = by_class.max(axis=None)
    axes.set_ylim(0, 1.05 * top if top > 0 else 1)
    count_along(axes.xaxis, layers.min(), layers.max())


def draw_class_map(axes: Axes, by_class: pd.DataFrame, labels: list[str], ylabel: str) -> None:
    """Draw one row per class, coloured by its convexity; parameters as `draw_class_lines`."""
    values = by_class.to_numpy(dtype=float)
    layers = by_class.columns
    top = np.nanmax(values, initial=0)
    extent = (layers.min() - 0.5, layers.max() + 0.5, len(values) - 0.5, -0.5)
    image = axes.imshow(values, cmap=COLOUR_MAP, vmin=0, vmax=top or 1, aspect="auto", extent=extent)
    _hatch_cells(axes, [(layers[column], row) for row, column in np.argwhere(np.isnan(values))])
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("hidden layer")
    axes.set_ylabel("class (clips), sorted by the mean over the layers")
    count_along(axes.xaxis, layers.min(), layers.max())
    bar = axes.figure.colorbar(image, ax=axes, aspect=25, shrink=min(1.0, 25 / len(values)), anchor=(0, 1), pad=0.02)
    bar.set_label(", ".join([ylabel, *_note_missing(values)]))
    bar.outline.set_visible(False)


def _hatch_cells(axes: Axes, centres: list[tuple[float, float]]) -> None:
    """Hatch cells of side 1 with these centres (x, y)."""
    cells = [Rectangle((x - 0.5, y - 0.5), 1, 1) for x, y in centres]
    if cells:
        axes.add_collection(PatchCollection(cells, **MISSING), autolim=False)


# ------------------------------------------------------------------------------------------ heat maps


def similarity_figure(
    maps: Mapping[str, Similarity],
    path: Path,
    models: tuple[str, str] | None = None,
    lowest: float | None = None,
    title: str | None = None,
) -> None:
    """Draw similarity matrices of hidden layers side by side, on one colour scale.

    Parameters
    ----------
    maps : mapping of str to Similarity
        Matrices by the name of the metric.
    path : Path
        Name without suffix.
    models : tuple of two str, or None
        Names of the models of rows and columns, if they differ.
    lowest : float or None
        Similarity at which the colour scale begins; it ends at 1. The same value gives several figures the
        same scale. Default: `lowest_similarity`.
    title : str or None
        Model and clips.
    """
    lowest = lowest_similarity(maps) if lowest is None else lowest
    with style():
        fig, panels = _panels(min(len(maps), 4), [True] * len(maps), MAP_INCHES)
        for axes, (name, similarity) in zip(panels, maps.items(), strict=True):
            draw_similarity(axes, similarity, lowest, models)
            axes.set_title(name, loc="left")
        _write_above(panels[0], title)
        save_figure(fig, path)


def _write_above(axes: Axes, title: str | None) -> None:
    """Write the caption of a figure above the title of its first panel."""
    if title:
        axes.annotate(title, (0, 1), (0, 24), "axes fraction", "offset points", fontsize=11)


def _panels(n_columns: int, with_bar: Sequence[bool], inches: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and square axes, in rows from the top; a shorter last row is centred.

    Every panel has a fixed place and size, so that long labels do not shrink it.

    Parameters
    ----------
    n_columns : int
    with_bar : sequence of bool
        For every panel, whether it has a colour bar below it.
    inches : float
        Side of the axes.
    """
    rows = [with_bar[first : first + n_columns] for first in range(0, len(with_bar), n_columns)]
    heights = [inches + (ROOM_WITH_BAR_INCHES if any(row) else ROOM_INCHES) for row in rows]
    width, height = n_columns * (inches + ROOM_BESIDE_INCHES), sum(heights)
    fig = Figure(figsize=(width, height))
    panels = []
    for number, row in enumerate(rows):
        bottom = height - sum(heights[:number]) - inches
        for column in range(len(row)):
            left = (column + (n_columns - len(row)) / 2) * (inches + ROOM_BESIDE_INCHES)
            panels.append(fig.add_axes((left / width, bottom / height, inches / width, inches / height)))
    return fig, panels


def lowest_similarity(maps: Mapping[str, Similarity]) -> float:
    """Return the start of the common scale of similarity matrices: 0, or the lowest value if it is negative."""
    values = [np.ravel(np.asarray(part, dtype=float)) for matrix, null, _ in maps.values() for part in (matrix, null)]
    return float(np.nanmin(np.concatenate(values), initial=0))


def draw_similarity(
    axes: Axes, similarity: Similarity, lowest: float = 0.0, models: tuple[str, str] | None = None
) -> None:
    """Draw one matrix of `similarity_figure`, layer 0 at the lower left; the null is marked on the colour bar."""
    matrix, null, boundary = similarity
    values = np.asarray(matrix, dtype=float)
    n_rows, n_columns = values.shape
    image = axes.imshow(values, cmap=COLOUR_MAP, vmin=lowest, vmax=1, origin="lower", aspect="auto")
    axes.set_box_aspect(np.clip(n_rows / n_columns, 0.4, 2.5))
    axes.apply_aspect()
    _hatch_cells(axes, [(column, row) for row, column in np.argwhere(np.isnan(values))])
    if boundary is not None:
        for draw_line in (axes.axhline, axes.axvline):
            draw_line(boundary - 0.5, color="black", linewidth=2.2)
            draw_line(boundary - 0.5, color="white", linewidth=1)
    rows, columns = (f" of\n{shorten(name, 24)}" for name in models) if models else ("", "")
    axes.set(xlabel=f"hidden layer{columns}", ylabel=f"hidden layer{rows}")
    _finish_map(axes, (0, n_columns - 1), (0, n_rows - 1))
    bar = _bar_below(axes, image)
    notes = [*_mark_null(bar.ax, null), *_note_missing(values)]
    lines = "" if boundary is None else "; lines: two groups of layers"
    bar.set_label(f"similarity{lines}\n{', '.join(notes)}")


def _mark_null(bar_axes: Axes, null: float | np.ndarray) -> list[str]:
    """Mark the null on a colour bar; return the notes about it for the bar's label."""
    nulls = np.ravel(np.asarray(null, dtype=float))
    nulls = nulls[np.isfinite(nulls)]
    if not nulls.size:
        return []
    ends = sorted({f"{round(end, 2) + 0.0:.2f}" for end in (nulls.min(), nulls.max())}, key=float)  # 0.00, not -0.00
    for value in (nulls.min(), nulls.max()):
        bar_axes.plot(
            value, 1.3, marker="v", color="black", markersize=5, transform=bar_axes.get_xaxis_transform(), clip_on=False
        )
    return [f"▼ null {' to '.join(ends)}"]


def _note_missing(values: np.ndarray) -> list[str]:
    return ["hatched: no number"] if np.isnan(values).any() else []


def _finish_map(axes: Axes, columns: tuple[int, int], rows: tuple[int, int]) -> None:
    axes.grid(False)
    axes.tick_params(length=2)
    axes.spines[:].set_visible(False)
    count_along(axes.xaxis, *columns)
    count_along(axes.yaxis, *rows)


def _bar_below(axes: Axes, image: AxesImage) -> Colorbar:
    _, height = _inches(axes)
    bar_axes = axes.inset_axes((0, -0.74 / height, 1, 0.1 / height))
    bar = axes.figure.colorbar(image, cax=bar_axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    return bar


class Runs(NamedTuple):
    """Numbers of all runs of blocks, with their null.

    Attributes
    ----------
    values : ndarray of float, shape (n_blocks, n_blocks)
        As the distances of `angular_distance_figure`.
    null : ndarray of float
        Its range is drawn.
    """

    values: np.ndarray
    null: np.ndarray


def angular_distance_figure(distances: pd.DataFrame | np.ndarray, path: Path, title: str | None = None) -> None:
    """Draw the angular distance across every run of blocks, after fig. 4 of Gromov et al. 2024.

    Parameters
    ----------
    distances : DataFrame or ndarray of float, shape (n_blocks, n_blocks)
        Entry [l, n - 1] is the distance between hidden layers l and l + n, as a share of pi. Entries with l +
        n > n_blocks are not read.
    path : Path
        Name without suffix.
    title : str or None
    """
    _map_figure(path, title, partial(draw_angular_distance, distances=distances))


def linear_residual_figure(residual: Runs, path: Path, title: str | None = None) -> None:
    """Draw the linear residual of every run of blocks, like `angular_distance_figure`; see `layers.linear_maps`."""
    _map_figure(path, title, partial(draw_linear_residual, residual=residual))


def _map_figure(path: Path, title: str | None, draw: Callable[[Axes], None]) -> None:
    with style():
        fig, (axes,) = _panels(1, [True], MAP_INCHES)
        draw(axes)
        if title:
            axes.set_title(title, loc="left")
        save_figure(fig, path)


def draw_angular_distance(axes: Axes, distances: pd.DataFrame | np.ndarray) -> None:
    """Draw `angular_distance_figure`: one row per number of blocks; a ring marks its least distance."""
    _draw_runs(axes, Runs(distances, np.array([])), "mean angular distance (share of π)")


def draw_linear_residual(axes: Axes, residual: Runs) -> None:
    """Draw `linear_residual_figure`: one row per number of blocks; a ring marks its least residual."""
    _draw_runs(axes, residual, "squared error of a linear map / squared change")


def _draw_runs(axes: Axes, runs: Runs, label: str) -> None:
    values = np.asarray(runs.values, dtype=float).T  # (n - 1, l)
    n_blocks = len(values)
    axes.set(xlabel="first hidden layer ℓ of the run", ylabel="blocks n in the run")
    axes.set_box_aspect(1)
    if n_blocks == 0:
        _say_no_blocks(axes)
        return
    exists = np.add.outer(np.arange(1, n_blocks + 1), np.arange(n_blocks)) <= n_blocks
    extent = (-0.5, n_blocks - 0.5, 0.5, n_blocks + 0.5)
    image = axes.imshow(
        np.where(exists, values, np.nan),
        cmap=f"{COLOUR_MAP}_r",
        vmin=0,
        vmax=max(np.nanmax(values, where=exists, initial=0), np.nanmax(runs.null, initial=0)) or 1,
        origin="lower",
        aspect="auto",
        extent=extent,
    )
    missing = exists & np.isnan(values)
    _hatch_cells(axes, [(start, row + 1) for row, start in np.argwhere(missing)])
    known = np.where(exists & ~missing, values, np.inf)
    rows = np.flatnonzero(np.isfinite(known).any(axis=1))
    axes.plot(
        known[rows].argmin(axis=1),
        rows + 1,
        linestyle="none",
        marker="o",
        markersize=max(2.5, min(6, 60 / n_blocks)),
        markerfacecolor="white",
        markeredgecolor="black",
        markeredgewidth=0.9,
        clip_on=False,
    )
    _finish_map(axes, (0, n_blocks - 1), (1, n_blocks))
    axes.set(xlim=extent[:2], ylim=extent[2:])
    bar = _bar_below(axes, image)
    notes = ["○ least of n blocks", *_mark_null(bar.ax, runs.null), *_note_missing(values[exists])]
    bar.set_label(f"{label}\n{', '.join(notes)}")


def _say_no_blocks(axes: Axes) -> None:
    axes.text(0.5, 0.5, "the model has no blocks", ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set(xticks=[], yticks=[])


# ------------------------------------------------------------------------------------------ influence


def influence_figure(table: pd.DataFrame, path: Path, title: str | None = None) -> None:
    """Draw the influence of every block by both metrics, side by side, because their scales differ.

    Parameters
    ----------
    table : DataFrame
        One row per block: ``layer``, and ``block_influence``, ``knn_block_influence`` or one of them; if known
        ``knn_block_influence_null``, that of a block whose input and output are unrelated.
    path : Path
        Name without suffix.
    title : str or None
    """
    columns = [column for column in INFLUENCES if column in table]
    with style():
        fig = Figure(figsize=(3.4 * len(columns), 2.8), layout="constrained")
        for axes, column in zip(np.ravel(fig.subplots(1, len(columns))), columns, strict=True):
            draw_influence(axes, table, column)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=10)
        save_figure(fig, path)


INFLUENCES = {
    "block_influence": "block influence\n(1 − cosine of\ninput and output)",
    "knn_block_influence": "kNN block influence\n(1 − mutual kNN of\ninput and output)",
}


def draw_influence(axes: Axes, table: pd.DataFrame, column: str) -> None:
    """Draw one bar per block: one panel of `influence_figure`."""
    axes.set(xlabel="block", ylabel=INFLUENCES[column])
    if table.empty:
        _say_no_blocks(axes)
        return
    blocks, values = table["layer"], table[column].astype(float)
    axes.bar(blocks, values, width=0.75, color=COLOURS[0])
    axes.grid(axis="x", visible=False)
    handles, labels, heights = [], [], list(values.dropna())
    if _has_numbers(table, f"{column}_null"):
        null = table[f"{column}_null"].astype(float)
        heights += list(null.dropna())
        handles.append(axes.hlines(null, blocks - 0.45, blocks + 0.45, color="black", linestyle=":"))
        low, high = (f"{end:.2f}" for end in (null.min(), null.max()))
        labels.append(f"null: unrelated layers, {low}" + f" to {high}" * (low != high))
    if values.isna().any():
        handles.append(Rectangle((0, 0), 1, 1, **MISSING))
        labels.append("no number")
    top = _reserve_top(axes, min(heights, default=0.0), max(heights, default=1.0), len(handles))
    for block in blocks[values.isna()]:
        axes.axvspan(block - 0.375, block + 0.375, ymax=top, zorder=0.5, **MISSING)
    if handles:
        axes.legend(handles, labels, loc="upper left", borderaxespad=0.1, fontsize=7.5)
    axes.set_xlim(blocks.min() - 0.6, blocks.max() + 0.6)
    count_along(axes.xaxis, blocks.min(), blocks.max())


# ------------------------------------------------------------------------------------------- overview


class _Panel(NamedTuple):
    name: str
    draw: Callable[[Axes], None]
    with_bar: bool = False


def overview_figure(
    path: Path,
    *,
    convexity: pd.DataFrame | None = None,
    euclidean_convexity: pd.DataFrame | None = None,
    probe: pd.DataFrame | None = None,
    influence: pd.DataFrame | None = None,
    similarity: Mapping[str, Similarity] | None = None,
    angular_distance: pd.DataFrame | np.ndarray | None = None,
    linear_residual: Runs | None = None,
    title: str | None = None,
) -> None:
    """Draw all measurements of a model on one page; an argument that is None is left out.

    Parameters
    ----------
    path : Path
        Name without suffix.
    convexity, euclidean_convexity : DataFrame or None
        As for `convexity_figure`.
    probe : DataFrame or None
        As for `probe_figure`.
    influence : DataFrame or None
        As for `influence_figure`.
    similarity : mapping of str to Similarity, or None
        As for `similarity_figure`.
    angular_distance : DataFrame, ndarray or None
        As for `angular_distance_figure`.
    linear_residual : Runs or None
        As for `linear_residual_figure`.
    title : str or None
        Model and clips.

    Raises
    ------
    ValueError
        If nothing was measured.
    """
    panels: list[_Panel] = []
    if convexity is not None:
        panels.append(_Panel("graph convexity", partial(draw_convexity, table=convexity)))
    if euclidean_convexity is not None:
        draw = partial(draw_convexity, table=euclidean_convexity, ylabel="Euclidean convexity")
        panels.append(_Panel("Euclidean convexity", draw))
    if probe is not None:
        panels.append(_Panel("linear probe", partial(draw_probe, table=probe)))
    if influence is not None:
        for column in (column for column in INFLUENCES if column in influence):
            draw = partial(draw_influence, table=influence, column=column)
            panels.append(_Panel(INFLUENCES[column].partition("\n")[0], draw))
    if similarity:
        lowest = lowest_similarity(similarity)
        for name, one in similarity.items():
            panels.append(_Panel(name, partial(draw_similarity, similarity=one, lowest=lowest), with_bar=True))
    if angular_distance is not None:
        draw = partial(draw_angular_distance, distances=angular_distance)
        panels.append(_Panel("angular distance", draw, with_bar=True))
    if linear_residual is not None:
        draw = partial(draw_linear_residual, residual=linear_residual)
        panels.append(_Panel("linear residual", draw, with_bar=True))
    if not panels:
        raise ValueError("an overview needs at least one panel")
    n_rows = 1 if len(panels) <= 3 else 2 if len(panels) <= 8 else 3
    n_columns = ceil(len(panels) / n_rows)
    inches = min(MAP_INCHES, PAGE_INCHES / n_columns - ROOM_BESIDE_INCHES)
    with style():
        fig, places = _panels(n_columns, [panel.with_bar for panel in panels], inches)
        for letter, axes, panel in zip(string.ascii_lowercase, places, panels, strict=False):
            panel.draw(axes)
            axes.set_title(f"{letter}  {panel.name}", loc="left")
        _write_above(places[0], title)
        save_figure(fig, path)
