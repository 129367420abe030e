"""Figures of 05_pruning.py: the blocks that each strategy keeps and their scores, accuracy by size, Pareto fronts.

All figures read ``pruning.csv`` of 05. It has one row per candidate: ``strategy, n_removed, kept_layers,
n_layers, n_parameters, search_accuracy, search_macro_f1, report_accuracy, report_accuracy_low,
report_accuracy_high``, and if measured ``latency_ms_median``. A row that was not scored on the report split
has NaN there, and no marker. Rows with ``n_removed`` 0 are the full model.

If a figure has one candidate per depth, this is the best on the search split (val), also in the panel of the
report split (test). A choice on the report split would bias the reported scores.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from utils.core.cli import parse_layer_list
from utils.figures.analysis_plots import MISSING, count_along
from utils.figures.plots import COLOURS, GREY, MARKERS, save_figure, shorten, style

CELL_INCHES = 0.17
TICK_INCHES = 0.12
PAGE_INCHES = 11.69  # width of A4, landscape
SMALL_GRID_INCHES = 1.65
LABEL_INCHES = 0.13
LONGEST_LIST = 28
LONGEST_ENTRY = 52
MARKER_POINTS = 4.0
# The split on which subsets are chosen, and the split on which they are reported.
SPLITS = ("val", "test")
PANELS = ("search", "report")  # the same splits in the names of columns
SEARCH = {"color": COLOURS[0], "marker": "o"}
REPORT = {"color": COLOURS[1], "marker": "s"}
CELLS = {
    "kept block": {"facecolor": COLOURS[0], "edgecolor": COLOURS[0], "linewidth": 0.5},
    "removed block": {"facecolor": "white", "edgecolor": "#BFBFBF", "linewidth": 0.5},
}
# Lines of the first strategies, the next, and the last, and how their markers are filled; each with all colours.
LINES = (("-", None), ("--", "white"), (":", "#BFBFBF"))


def split_labels(splits: tuple[str, str]) -> tuple[str, str]:
    """Return the labels of the search and the report split in all figures."""
    return f"{splits[0]} (chosen here)", f"{splits[1]} (reported)"


# ---------------------------------------------------------------------------------------- kept and removed


class _Inches:
    """Place axes by inches from the top left of a figure; the file is trimmed to what is drawn."""

    def __init__(self, fig: Figure, size: tuple[float, float]):
        fig.set_size_inches(size)
        self.fig, (self.width, self.height) = fig, size

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self.fig.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )


def best_of_each_depth(rows: pd.DataFrame) -> pd.DataFrame:
    """Return for each ``n_removed`` the row with the best accuracy, then macro F1, on the search split."""
    return _sorted(rows).drop_duplicates("n_removed")


def _strategies(table: pd.DataFrame) -> list[str]:
    """Return the strategies in their order, without a name that lists only the full model."""
    names, full = list(table["strategy"].unique()), full_model(table)
    if full is not None and len(names) > 1:
        of_full = table["strategy"] == full["strategy"]
        if (table.loc[of_full, "n_removed"] == 0).all():
            names.remove(full["strategy"])
    return names


def full_model(table: pd.DataFrame) -> pd.Series | None:
    """Return the first row that removes nothing, or None."""
    full = table[table["n_removed"] == 0]
    return None if full.empty else full.iloc[0]


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    by = ["n_removed", "search_accuracy", "search_macro_f1"]
    return rows.sort_values(by, ascending=[True, False, False], na_position="last")


def _n_blocks(table: pd.DataFrame) -> int:
    return int((table["n_layers"] + table["n_removed"]).iloc[0])


def draw_kept_grid(axes: Axes, rows: pd.DataFrame, n_blocks: int) -> None:
    """Draw one row per candidate and one column per block: kept blocks filled, removed ones empty.

    Parameters
    ----------
    axes : Axes
        Axes with about the proportions of the grid.
    rows : DataFrame
        Rows of ``pruning.csv``, one per depth, drawn from the top in their order.
    n_blocks : int
        Number of columns.
    """
    kept, removed = [], []
    for row, text in enumerate(rows["kept_layers"]):
        here = parse_layer_list(str(text), n_blocks)
        for block in range(n_blocks):
            cell = Rectangle((block - 0.4, row - 0.4), 0.8, 0.8)
            (kept if block in here else removed).append(cell)
    for cells, look in zip((kept, removed), CELLS.values(), strict=True):
        axes.add_collection(PatchCollection(cells, **look))
    axes.set(xlim=(-0.5, max(n_blocks, 1) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="block")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    count_along(axes.xaxis, 0, n_blocks - 1)
    depths = rows["n_removed"].to_numpy()
    labelled = _apart(np.arange(len(rows)), TICK_INCHES / _row_inches(axes, rows))
    axes.set_yticks(labelled, ["removed "[: 8 * (row == 0)] + f"{depths[row]:.0f}" for row in labelled])


def _apart(rows: np.ndarray, gap: float) -> list[int]:
    """Return the rows whose labels do not touch: the first, and then each at least `gap` below the last one."""
    chosen: list[int] = []
    for row in rows:
        if not chosen or row - chosen[-1] >= gap:
            chosen.append(int(row))
    return chosen


def _row_inches(axes: Axes, rows: pd.DataFrame) -> float:
    return axes.get_position().height * axes.figure.get_figheight() / len(rows)


def draw_scores(axes: Axes, rows: pd.DataFrame, full: pd.Series | None, splits: tuple[str, str] = SPLITS) -> None:
    """Draw the accuracies of candidates, aligned with the rows of `draw_kept_grid`.

    Parameters
    ----------
    axes : Axes
    rows : DataFrame
        Rows of ``pruning.csv``.
    full : Series or None
        The full model's row; its accuracies are vertical lines.
    splits : tuple of two str
        Names of the search and the report split.
    """
    chosen, reported = split_labels(splits)
    places = np.arange(len(rows))
    size = min(MARKER_POINTS, 0.5 * 72 * _row_inches(axes, rows))
    search, report = rows["search_accuracy"], rows["report_accuracy"]
    if full is not None:
        _draw_level(axes.axvline, full["search_accuracy"], SEARCH["color"], "--", f"full model, {chosen}")
        _draw_level(axes.axvline, full["report_accuracy"], REPORT["color"], "-.", f"full model, {reported}")
    if report.notna().any():
        axes.hlines(
            places, rows["report_accuracy_low"], rows["report_accuracy_high"], color=REPORT["color"], linewidth=1
        )
        axes.plot(report, places, linestyle="none", markersize=size, label=f"{reported}, 95 % interval", **REPORT)
    axes.plot(search, places, linestyle="none", markersize=size, label=chosen, **SEARCH)
    for row in places[search.isna()]:
        axes.axhspan(row - 0.4, row + 0.4, zorder=0.5, label="no number", **MISSING)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy")
    axes.set_xlim(_limits(rows, full))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axes.set_yticks(places, [])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_level(draw_line, value: float, colour: str, linestyle: str, label: str) -> None:
    if np.isfinite(value):
        draw_line(value, color=colour, linestyle=linestyle, linewidth=1, label=label)


def _legend_of_all(panels: Sequence[Axes]) -> tuple[list, list[str]]:
    """Return the legend entries of all panels, each label once."""
    handles: dict[str, object] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return list(handles.values()), list(handles)


SCORES = ["search_accuracy", "report_accuracy", "report_accuracy_low", "report_accuracy_high"]


def _limits(rows: pd.DataFrame, full: pd.Series | None) -> tuple[float, float]:
    """Return limits that hold all accuracies and intervals of these rows and the full model."""
    values = rows[SCORES].to_numpy(dtype=float).ravel()
    if full is not None:
        values = np.append(values, full[SCORES].to_numpy(dtype=float))
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    margin = 0.05 * max(values.max() - values.min(), 0.1)
    return values.min() - margin, values.max() + margin


# -------------------------------------------------------------------------------------- all strategies


def kept_grids_figure(
    table: pd.DataFrame, path: Path, title: str | None = None, splits: tuple[str, str] = SPLITS
) -> None:
    """Draw for every strategy the best candidate of each depth: kept and removed blocks beside the scores.

    All panels have the same scale of accuracy.

    Parameters
    ----------
    table : DataFrame
        ``pruning.csv``.
    path : Path
        Name without suffix.
    title : str or None
    splits : tuple of two str
        As for `draw_scores`.
    """
    best = {strategy: best_of_each_depth(table[table["strategy"] == strategy]) for strategy in _strategies(table)}
    n_blocks, full = _n_blocks(table), full_model(table)
    limits = _limits(pd.concat(best.values()), full)
    cell = min(CELL_INCHES, SMALL_GRID_INCHES / max(n_blocks, 1))
    grid_width, score_width = n_blocks * cell, 1.15
    width = grid_width + score_width + 0.95
    n_columns = min(len(best), max(1, int(PAGE_INCHES / width)))
    lines = [list(best)[i : i + n_columns] for i in range(0, len(best), n_columns)]
    heights = [max(len(best[strategy]) for strategy in line) * cell + 0.85 for line in lines]
    with style():
        fig = Figure()
        page = _Inches(fig, (n_columns * width, sum(heights)))
        for number, line in enumerate(lines):
            for column, strategy in enumerate(line):
                rows = best[strategy]
                place = column * width, sum(heights[:number])
                grid = page.axes(*place, grid_width, len(rows) * cell)
                scores = page.axes(place[0] + grid_width + 0.1, place[1], score_width, len(rows) * cell)
                draw_kept_grid(grid, rows, n_blocks)
                draw_scores(scores, rows, full, splits)
                scores.set_xticks(_few_ticks(*limits))
                scores.set_xlim(limits)
                n_candidates = (table["strategy"] == strategy).sum()
                note = f" ({n_candidates:,} candidates)" if n_candidates > len(rows) else ""
                grid.annotate(
                    f"{strategy}{note}", (0, 1), (0, 4), "axes fraction", "offset points", fontsize=9, va="bottom"
                )
        handles, labels = _legend_of_all(fig.axes[1::2])
        handles += [Rectangle((0, 0), 1, 1, **look) for look in CELLS.values()]
        labels += CELLS
        top = 1 + 0.25 / page.height
        fig.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, top),
            borderaxespad=0,
            ncols=2,
            title=f"the best candidate of each depth: {split_labels(splits)[0]}",
            alignment="left",
        )
        if title:
            fig.text(0, top + (0.4 + 0.17 * ceil(len(handles) / 2)) / page.height, title, fontsize=10)
        save_figure(fig, path)


def _few_ticks(low: float, high: float) -> list[float]:
    """Return two to four round numbers in a range."""
    ticks = [tick for tick in MaxNLocator(3, steps=(1, 2, 5, 10)).tick_values(low, high) if low <= tick <= high]
    return ticks if len(ticks) <= 4 else ticks[::2]


def strategies_figure(
    table: pd.DataFrame,
    path: Path,
    margin: float | None = None,
    title: str | None = None,
    splits: tuple[str, str] = SPLITS,
) -> None:
    """Draw accuracy against the number of kept blocks for all strategies, on the search and the report split.

    A line joins the best candidates of each depth. Strategies with the same line in both panels share it, and lines
    are moved sideways, so that they do not hide each other. The control (all strategies whose name begins with
    ``random``) is a band from its lowest to its highest accuracy, with the mean. A horizontal line is the
    full model, with its interval if known; a dotted line is `margin` below it. In a sweep with repair, crosses are
    the best subset of each size, chosen with repair, as it scores without it.

    Parameters
    ----------
    table : DataFrame
        ``pruning.csv``.
    path : Path
        Name without suffix.
    margin : float or None
        Accepted loss of accuracy, in units of accuracy.
    title : str or None
    """
    with style():
        fig = Figure(figsize=(10.2, 5.2), layout="constrained")
        panels = fig.subplots(1, 2, sharey=True)
        for axes, split in zip(panels, PANELS, strict=True):
            draw_strategies(axes, table, split, margin, splits)
        panels[1].set_ylabel("")
        fig.legend(*_legend_of_all(panels[::-1]), loc="outside lower left", ncols=3, fontsize=7.5)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=10)
        save_figure(fig, path)


def _equal_strategies(table: pd.DataFrame) -> list[list[str]]:
    """Return the strategies except random; those with the same line in both panels are in one list."""
    found: dict[tuple, list[str]] = {}
    for strategy in (name for name in _strategies(table) if not name.startswith("random")):
        own = table[table["strategy"] == strategy]
        best = [best_of_each_depth(own.dropna(subset=f"{s}_accuracy"))[["n_removed", f"{s}_accuracy"]] for s in PANELS]
        found.setdefault(tuple(lines.to_csv(index=False) for lines in best), []).append(strategy)
    return list(found.values())


def draw_strategies(
    axes: Axes, table: pd.DataFrame, split: str, margin: float | None = None, splits: tuple[str, str] = SPLITS
) -> None:
    """Draw one panel of `strategies_figure`; `split` is ``search`` or ``report``."""
    column, name = f"{split}_accuracy", split_labels(splits)[split == "report"]
    n_blocks, full = _n_blocks(table), full_model(table)
    known = table[table[column].notna()]
    is_random = known["strategy"].str.startswith("random")
    if full is not None and np.isfinite(full[column]):
        if split == "report" and np.isfinite([full["report_accuracy_low"], full["report_accuracy_high"]]).all():
            axes.axhspan(
                full["report_accuracy_low"],
                full["report_accuracy_high"],
                facecolor="none",
                edgecolor="#BFBFBF",
                hatch="....",
                linewidth=0,
                zorder=0.4,
                label="full model, 95 % interval",
            )
        axes.axhline(full[column], color="black", linewidth=1, label="full model")
        if margin is not None:
            axes.axhline(
                full[column] - margin, color="black", linewidth=1, linestyle=":", label=f"full model − {margin:g}"
            )
    if is_random.any():
        control = known[is_random].groupby(n_blocks - known["n_removed"])[column].agg(["min", "max", "mean"])
        band = {"color": GREY, "alpha": 0.3, "zorder": 0.5}
        axes.fill_between(
            control.index, control["min"], control["max"], linewidth=0, label="random, min to max", **band
        )
        axes.vlines(control.index, control["min"], control["max"], linewidth=4, **band)
        axes.plot(control.index, control["mean"], color=GREY, linewidth=2, linestyle="-", label="random, mean")
    # Numbered by the whole table, so that both panels use the same colours.
    groups = _equal_strategies(table)
    for number, strategies in enumerate(groups):
        best = best_of_each_depth(known[known["strategy"] == strategies[0]])
        if best.empty:
            continue
        line, filling = LINES[number // len(COLOURS) % len(LINES)]
        axes.plot(
            n_blocks - best["n_removed"] + min(0.06, 0.6 / len(groups)) * (number - (len(groups) - 1) / 2),
            best[column],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4.5,
            linewidth=1,
            linestyle=line,
            markerfacecolor=filling,
            label=fill(" = ".join(strategies), LONGEST_ENTRY),
        )
    if split == "report" and table.get("unrepaired_accuracy", pd.Series(dtype=float)).notna().any():
        before = best_of_each_depth(known[known["n_removed"] > 0])
        axes.plot(
            n_blocks - before["n_removed"],
            before["unrepaired_accuracy"],
            color=GREY,
            marker="x",
            markersize=5,
            linewidth=1,
            linestyle=":",
            label="best of each size, without repair",
        )
    if known.empty:
        axes.text(0.5, 0.5, f"no accuracy on {name}", transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xlabel="blocks kept (lines are moved sideways)", ylabel="accuracy")
    axes.set_title(name, loc="left")
    count_along(axes.xaxis, 0, n_blocks)
    axes.set_xlim(n_blocks - table["n_removed"].max() - 0.5, n_blocks + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))


# --------------------------------------------------------------------------------------- Pareto fronts


def pareto_front(table: pd.DataFrame, cost_column: str, score_column: str) -> pd.DataFrame:
    """Return the rows for which no other row is better in cost or score and at least equal in the other.

    Parameters
    ----------
    table : DataFrame
    cost_column, score_column : str
        The column to minimise and the column to maximise. Rows with NaN in either are left out.

    Returns
    -------
    DataFrame
        Sorted by rising cost, and so by rising score; of equal rows the first.
    """
    known = table.dropna(subset=[cost_column, score_column])
    known = known.sort_values([cost_column, score_column], ascending=[True, False], kind="stable")
    best_of_cheaper = known[score_column].cummax().shift(fill_value=-np.inf)
    return known[known[score_column] > best_of_cheaper]


COSTS = {
    "n_parameters": ("parameters (millions)", 1e6),
    "latency_ms_median": ("latency of one clip (ms, median)", 1.0),
    "gmacs_per_clip": ("multiply-accumulates of one clip (billions)", 1.0),
}


def pareto_figure(
    table: pd.DataFrame,
    path: Path,
    title: str | None = None,
    latency_is_doubtful: bool = False,
    splits: tuple[str, str] = SPLITS,
) -> None:
    """Draw accuracy against parameters, and against latency where it was measured, with the Pareto fronts.

    The front is that of the search split. The scores of its members on the report split are drawn too.

    Parameters
    ----------
    table : DataFrame
        ``pruning.csv``.
    path : Path
        Name without suffix.
    title : str or None
    latency_is_doubtful : bool
        Draw multiply-accumulates instead of latencies, because these cannot be trusted.
    """
    shown = ("n_parameters", "gmacs_per_clip" if latency_is_doubtful else "latency_ms_median")
    costs = [column for column in shown if column in table and table[column].notna().any()] or ["n_parameters"]
    with style():
        fig = Figure()
        page = _Inches(fig, (4.9 * len(costs), 3.2))
        longest = 0
        for number, column in enumerate(costs):
            axes = page.axes(4.9 * number, 0, 4.2, 3.2)
            longest = max(longest, draw_pareto(axes, table, column, splits))
        fig.legend(
            *_legend_of_all(fig.axes),
            loc="upper left",
            bbox_to_anchor=(0, -0.5 / 3.2),
            borderaxespad=0,
            ncols=1 + len(costs),
        )
        if title:
            fig.text(0, 1 + (0.35 + 0.065 * longest) / 3.2, title, fontsize=10, va="bottom")
        save_figure(fig, path)


def draw_pareto(axes: Axes, table: pd.DataFrame, cost_column: str, splits: tuple[str, str] = SPLITS) -> int:
    """Draw one panel of `pareto_figure`, with the kept lists of the front above the axes.

    Parameters
    ----------
    axes : Axes
        Axes of a fixed size; the lists are spread over their width.
    table : DataFrame
        ``pruning.csv``.
    cost_column : str
        A name in `COSTS`.
    splits : tuple of two str
        As for `draw_scores`.

    Returns
    -------
    int
        Length of the longest list, in characters.
    """
    xlabel, unit = COSTS[cost_column]
    chosen, reported = split_labels(splits)
    front, full = pareto_front(table, cost_column, "search_accuracy"), full_model(table)
    axes.plot(
        table[cost_column] / unit,
        table["search_accuracy"],
        linestyle="none",
        marker="o",
        markersize=3,
        color="#BFBFBF",
        markeredgewidth=0,
        label=f"candidates, {chosen}",
    )
    costs = front[cost_column] / unit
    axes.plot(
        costs,
        front["search_accuracy"],
        drawstyle="steps-post",
        markersize=MARKER_POINTS,
        label=f"Pareto front, {chosen}",
        **SEARCH,
    )
    if front["report_accuracy"].notna().any():
        axes.vlines(
            costs, front["report_accuracy_low"], front["report_accuracy_high"], color=REPORT["color"], linewidth=1
        )
        axes.plot(
            costs,
            front["report_accuracy"],
            linestyle="none",
            markersize=MARKER_POINTS,
            label=f"members of the front, {reported}, 95 % interval",
            **REPORT,
        )
    for split, look, label in (("search", SEARCH, chosen), ("report", REPORT, reported)):
        if full is not None and np.isfinite(full[f"{split}_accuracy"]):
            axes.plot(
                full[cost_column] / unit,
                full[f"{split}_accuracy"],
                linestyle="none",
                marker="*",
                markersize=11,
                markerfacecolor="white",
                markeredgecolor=look["color"],
                label=f"full model, {label}",
            )
    _set_limits(axes, table, pd.concat([front, table[table["n_removed"] == 0]]), cost_column, unit)
    axes.set(xlabel=xlabel, ylabel="accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    return _name_front(axes, costs.to_numpy(), front["search_accuracy"].to_numpy(), list(front["kept_layers"]))


def _set_limits(axes: Axes, table: pd.DataFrame, reported: pd.DataFrame, cost_column: str, unit: float) -> None:
    costs = table[cost_column].dropna() / unit
    low, high = (costs.min(), costs.max()) if len(costs) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_xlim(low - margin, high + margin)
    scores = np.append(table["search_accuracy"].to_numpy(dtype=float), reported[SCORES].to_numpy(dtype=float))
    scores = scores[np.isfinite(scores)]
    low, high = (scores.min(), scores.max()) if scores.size else (0.0, 1.0)
    margin = 0.06 * max(high - low, 0.1)
    axes.set_ylim(low - margin, high + margin)


def _name_front(axes: Axes, costs: np.ndarray, scores: np.ndarray, kept: list) -> int:
    """Write the kept lists vertically above the axes, without overlap, with a thin line to each point."""
    width = axes.get_position().width * axes.figure.get_figwidth()
    most = int(width / LABEL_INCHES)
    chosen = np.arange(len(costs))
    if len(costs) > most:
        chosen = np.unique(np.linspace(0, len(costs) - 1, most).round().astype(int))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    at = (costs[chosen] - left) / (right - left)
    heights = (scores[chosen] - bottom) / (top - bottom)
    labels = [shorten(str(kept[i]), LONGEST_LIST) for i in chosen]
    for x, place, height, label in zip(at, spread(at, LABEL_INCHES / width, 1.0), heights, labels, strict=True):
        axes.plot(
            [x, x, place],
            [height, 1.0, 1.06],
            color=GREY,
            linewidth=0.4,
            transform=axes.transAxes,
            clip_on=False,
            zorder=0.6,
        )
        axes.text(place, 1.07, label, transform=axes.transAxes, rotation=90, ha="center", va="bottom", fontsize=7)
    if labels:
        axes.text(-0.01, 1.07, "kept blocks", transform=axes.transAxes, ha="right", va="bottom", fontsize=7)
    return max(map(len, labels), default=0)


def spread(places: np.ndarray, gap: float, end: float) -> np.ndarray:
    """Move ascending places apart to at least `gap`, none beyond `end`, and return them.

    Parameters
    ----------
    places : ndarray of float
        Ascending.
    gap, end : float
        In the units of `places`; (len(places) - 1) * gap has to fit below `end`.

    Returns
    -------
    ndarray of float
    """
    steps = gap * np.arange(len(places))
    moved = np.maximum.accumulate(places - steps) + steps  # up, only as far as necessary
    from_end = end - steps[::-1]
    return np.minimum(moved, from_end)
