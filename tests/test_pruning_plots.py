"""Figures of pruning: grids that match the lists, scores that match the table, fronts that match brute force."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_rgba

from tests.figures import check_same_bytes, lines, no_overlap
from utils.core.cli import format_layer_list
from utils.core.errors import UsageError
from utils.figures import pruning_plots
from utils.pruning.pruning_plan import STRATEGIES


def row(strategy, keep, n_blocks, search, report=np.nan, **others):
    return {
        "strategy": strategy,
        "n_removed": n_blocks - len(keep),
        "kept_layers": format_layer_list(keep),
        "n_layers": len(keep),
        "n_parameters": 7_087_872 * len(keep) + 9_523_107,
        "search_accuracy": search,
        "search_macro_f1": search - 0.1,
        "report_accuracy": report,
        "report_accuracy_low": report - 0.04,
        "report_accuracy_high": report + 0.03,
        "latency_ms_median": 100.0 + 20 * len(keep),
        **others,
    }


def sweep(n_blocks, strategies=STRATEGIES, n_candidates=1, seed=0):
    """Return a table of random subsets, `n_candidates` a strategy and depth, better the more they keep."""
    rng = np.random.default_rng(seed)
    rows = [row("full", range(n_blocks), n_blocks, 0.9, 0.85)]
    for strategy in strategies:
        for n_kept in range(n_blocks - 1, 0, -1):
            for _ in range(n_candidates):
                others = rng.choice(np.arange(1, n_blocks), n_kept - 1, replace=False)
                score = 0.2 + 0.65 * n_kept / n_blocks + rng.uniform(-0.05, 0.05)
                rows.append(row(strategy, [0, *sorted(others.tolist())], n_blocks, score, score - 0.05))
    return pd.DataFrame(rows)


SMALL = pd.DataFrame(
    [
        row("full", [0, 1, 2], 3, 0.8, 0.75),
        row("greedy", [0, 1], 3, 0.7, 0.72),
        row("greedy", [0, 2], 3, 0.78, 0.6),
        row("greedy", [0], 3, 0.5, np.nan),
        row("random", [0, 1], 3, 0.7, 0.72),
        row("random", [0, 2], 3, 0.78, 0.6),
        row("random", [0], 3, 0.5, 0.4),
    ]
)


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of figures that the test draws; none is written."""
    figures = []
    monkeypatch.setattr(pruning_plots, "save_figure", lambda fig, path: figures.append(fig))
    return figures


def kept_cells(axes):
    """Return the filled cells of a grid as (row, block)."""
    filled = next(c for c in axes.collections if tuple(c.get_facecolor()[0]) == to_rgba(pruning_plots.COLOURS[0]))
    boxes = [path.get_extents() for path in filled.get_paths()]
    return {(round((box.y0 + box.y1) / 2), round((box.x0 + box.x1) / 2)) for box in boxes}


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: pruning_plots.kept_grids_figure(SMALL, path, title="a model"),
        lambda path: pruning_plots.strategies_figure(SMALL, path, margin=0.02, title="a model"),
        lambda path: pruning_plots.pareto_figure(SMALL, path, title="a model"),
    ],
    ids=["kept_grids", "strategies", "pareto"],
)
def test_same_content_gives_the_same_bytes(tmp_path, draw):
    check_same_bytes(draw, tmp_path)


def test_a_table_that_was_read_again_gives_the_same_figure(tmp_path):
    table = pd.DataFrame([row("full", [0, 1], 2, 0.8, 0.7), row("single", [0], 2, 0.6)])
    table.to_csv(tmp_path / "pruning.csv", index=False)
    pruning_plots.kept_grids_figure(table, tmp_path / "from_memory")
    pruning_plots.kept_grids_figure(pd.read_csv(tmp_path / "pruning.csv"), tmp_path / "from_file")
    assert (tmp_path / "from_memory.png").read_bytes() == (tmp_path / "from_file.png").read_bytes()


# ------------------------------------------------------------------------------------- kept and removed


def test_grid_and_scores_agree_with_the_table(drawn):
    pruning_plots.kept_grids_figure(SMALL, "unused")
    grid, scores = drawn[0].axes[:2]
    # Of each depth the best on val.
    assert kept_cells(grid) == {(0, 0), (0, 2), (1, 0)}
    assert [(label.get_position()[1], label.get_text()) for label in grid.get_yticklabels()] == [
        (0, "removed 1"),
        (1, "2"),
    ]
    curves = lines(scores)
    np.testing.assert_allclose(curves["val (chosen here)"].get_data(), [[0.78, 0.5], [0, 1]])
    np.testing.assert_allclose(curves["test (reported), 95 % interval"].get_data(), [[0.6, np.nan], [0, 1]])
    assert set(curves["full model, val (chosen here)"].get_xdata()) == {0.8}
    assert set(curves["full model, test (reported)"].get_xdata()) == {0.75}
    ends = [path.vertices[:, 0] for path in scores.collections[0].get_paths()]
    np.testing.assert_allclose(ends[:1], [[0.56, 0.63]])
    assert grid.get_ylim() == scores.get_ylim()


def test_long_tables_show_the_best_of_each_depth_and_say_so(drawn):
    table = sweep(6, ["exhaustive"], 9)
    pruning_plots.kept_grids_figure(table, "unused")
    grid, scores = drawn[0].axes
    best = table[table["strategy"] == "exhaustive"].groupby("n_removed")["search_accuracy"].max()
    assert lines(scores)["val (chosen here)"].get_xdata().tolist() == best.tolist()
    assert grid.texts[0].get_text() == "exhaustive (45 candidates)"


def test_best_of_each_depth_breaks_ties_by_macro_f1_and_then_by_order():
    rows = pd.DataFrame(
        [
            row("a", [0, 1], 3, 0.7, search_macro_f1=0.5),
            row("a", [0, 2], 3, 0.7, search_macro_f1=0.6),
            row("a", [1, 2], 3, 0.7, search_macro_f1=0.6),
            row("a", [1], 3, np.nan),
            row("a", [0], 3, 0.1),
        ]
    )
    assert list(pruning_plots.best_of_each_depth(rows)["kept_layers"]) == ["0,2", "0"]


def test_candidates_without_a_number_are_hatched(drawn):
    table = SMALL.copy()
    table.loc[3, "search_accuracy"] = np.nan
    pruning_plots.kept_grids_figure(table, "unused")
    scores = drawn[0].axes[1]
    assert [patch.get_y() + patch.get_height() / 2 for patch in scores.patches if patch.get_hatch()] == [1]
    assert "no number" in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_a_list_of_another_model_is_refused():
    with pytest.raises(UsageError, match="there is no layer 7"):
        pruning_plots.kept_grids_figure(SMALL.replace("0,2", "0,7"), "unused")


# -------------------------------------------------------------------------------------- all strategies


def test_kept_grids_show_each_strategy_on_one_scale(drawn):
    pruning_plots.kept_grids_figure(SMALL, "unused")
    greedy, greedy_scores, random, random_scores = drawn[0].axes
    assert (greedy.texts[0].get_text(), random.texts[0].get_text()) == (
        "greedy (3 candidates)",
        "random (3 candidates)",
    )
    assert kept_cells(greedy) == {(0, 0), (0, 2), (1, 0)}
    assert greedy_scores.get_xlim() == random_scores.get_xlim()


@pytest.mark.parametrize("n_blocks", [4, 24])
def test_texts_of_all_grids_do_not_overlap(drawn, n_blocks):
    pruning_plots.kept_grids_figure(sweep(n_blocks), "unused", title="a model")
    assert no_overlap(drawn[0])
    names = [axes.texts[0].get_text() for axes in drawn[0].axes[::2]]
    assert names == list(STRATEGIES)


def test_strategies_show_lines_the_control_and_the_margin(drawn):
    pruning_plots.strategies_figure(SMALL, "unused", margin=0.02)
    search, report = drawn[0].axes
    # By blocks kept. What is best on the search split is shown of the report split too, though another is better.
    np.testing.assert_allclose(lines(search)["greedy"].get_data(), [[2, 1], [0.78, 0.5]])
    np.testing.assert_allclose(lines(report)["greedy"].get_data(), [[2], [0.6]])
    np.testing.assert_allclose(lines(search)["random, mean"].get_data(), [[1, 2], [0.5, 0.74]])
    np.testing.assert_allclose(lines(report)["random, mean"].get_data(), [[1, 2], [0.4, 0.66]])
    for axes, low, high, full in ((search, 0.5, 0.78, 0.8), (report, 0.4, 0.72, 0.75)):
        band = next(c for c in axes.collections if isinstance(c, FillBetweenPolyCollection)).get_datalim(axes.transData)
        np.testing.assert_allclose([band.y0, band.y1], [low, high])
        np.testing.assert_allclose(lines(axes)["full model"].get_ydata(), full)
        np.testing.assert_allclose(lines(axes)["full model − 0.02"].get_ydata(), full - 0.02)
    interval = next(patch for patch in report.patches if patch.get_hatch())
    assert (interval.get_y(), interval.get_height()) == pytest.approx((0.71, 0.07))
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert "full" not in labels
    assert len(labels) == len(set(labels))


def test_a_repaired_sweep_shows_what_the_best_subsets_were_before(drawn):
    table = SMALL[SMALL["strategy"] != "random"].assign(unrepaired_accuracy=[0.75, 0.3, 0.2, np.nan])
    pruning_plots.strategies_figure(table, "unused")
    before = "best of each size, without repair"
    assert before not in lines(drawn[0].axes[0])
    # Blocks 0 and 2 are best on the search split, so they are shown, though blocks 0 and 1 were better before.
    np.testing.assert_allclose(lines(drawn[0].axes[1])[before].get_data(), [[2], [0.2]])
    pruning_plots.strategies_figure(SMALL.assign(unrepaired_accuracy=np.nan), "unused")
    assert before not in lines(drawn[1].axes[1])


def test_all_strategies_look_different(drawn):
    pruning_plots.strategies_figure(sweep(6), "unused")
    curves = [line for label, line in lines(drawn[0].axes[0]).items() if label in STRATEGIES]
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor()) for line in curves}
    assert len(looks) == len(curves) == len(STRATEGIES) - 1, "random is a band"


def test_strategies_of_the_same_line_share_an_entry(drawn):
    again = SMALL[SMALL["strategy"] == "greedy"].iloc[1:]
    table = pd.concat(
        [SMALL, again.assign(strategy="beam"), again.iloc[:1].assign(strategy="single")], ignore_index=True
    )
    pruning_plots.strategies_figure(table, "unused", title="a model with a very long name, on a data set; " * 3)
    for axes in drawn[0].axes:
        curves = lines(axes)
        assert "greedy = beam" in curves and not {"greedy", "beam"} & set(curves)
        both, single = curves["greedy = beam"], curves["single"]
        assert both.get_ydata()[0] == single.get_ydata()[0]
        assert 0.01 < abs(both.get_xdata()[0] - single.get_xdata()[0]) < 0.3, "beside the other line, at its size"
    assert no_overlap(drawn[0])


def test_grids_say_which_blocks_are_kept(drawn):
    pruning_plots.kept_grids_figure(SMALL, "unused")
    legend = drawn[0].legends[0]
    entries = dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
    assert entries["kept block"].get_facecolor() == to_rgba(pruning_plots.COLOURS[0])
    assert entries["removed block"].get_facecolor() == to_rgba("white")


# --------------------------------------------------------------------------------------- Pareto fronts


def test_pareto_front_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    for n_rows in (0, 1, 2, 5, 30, 200):
        table = pd.DataFrame({"cost": rng.integers(0, 12, n_rows), "score": rng.integers(0, 12, n_rows)}, dtype=float)
        table[rng.random(table.shape) < 0.1] = np.nan
        expected = []
        for i, one in table.iterrows():
            beaten = one.isna().any() or any(
                other["cost"] <= one["cost"]
                and other["score"] >= one["score"]
                and (other["cost"] < one["cost"] or other["score"] > one["score"] or j < i)
                for j, other in table.iterrows()
            )
            if not beaten:
                expected.append(i)
        front = pruning_plots.pareto_front(table, "cost", "score")
        assert sorted(front.index) == expected
        assert front["cost"].is_monotonic_increasing
        assert front["score"].is_monotonic_increasing


def test_pareto_draws_front_report_and_full_model(drawn):
    pruning_plots.pareto_figure(SMALL, "unused")
    by_parameters, by_latency = drawn[0].axes
    parameters = [(7_087_872 * n + 9_523_107) / 1e6 for n in (1, 2, 3)]
    for axes, costs in ((by_parameters, parameters), (by_latency, [120, 140, 160])):
        curves = lines(axes)
        np.testing.assert_allclose(curves["Pareto front, val (chosen here)"].get_data(), [costs, [0.5, 0.78, 0.8]])
        reported = curves["members of the front, test (reported), 95 % interval"]
        np.testing.assert_allclose(reported.get_data(), [costs, [np.nan, 0.6, 0.75]])
        np.testing.assert_allclose(curves["full model, val (chosen here)"].get_data(), [[costs[2]], [0.8]])
        np.testing.assert_allclose(curves["full model, test (reported)"].get_data(), [[costs[2]], [0.75]])
        assert [text.get_text() for text in axes.texts] == ["0", "0,2", "0-2", "kept blocks"]


def test_pareto_without_latency_is_one_panel(drawn):
    pruning_plots.pareto_figure(SMALL.drop(columns="latency_ms_median"), "unused")
    pruning_plots.pareto_figure(SMALL.assign(latency_ms_median=np.nan), "unused")
    assert [len(fig.axes) for fig in drawn] == [1, 1]


def test_pareto_draws_operations_where_latencies_are_doubtful(drawn):
    pruning_plots.pareto_figure(SMALL.assign(gmacs_per_clip=SMALL["n_layers"]), "unused", latency_is_doubtful=True)
    _, by_operations = drawn[0].axes
    assert by_operations.get_xlabel() == "multiply-accumulates of one clip (billions)"
    np.testing.assert_allclose(lines(by_operations)["Pareto front, val (chosen here)"].get_data()[0], [1, 2, 3])


@pytest.mark.parametrize("n_members", [1, 24, 100])
def test_lists_of_the_front_do_not_overlap(drawn, n_members):
    costs = np.sort(np.random.default_rng(0).normal(size=n_members))  # crowded in the middle
    table = pd.DataFrame([row("beam", range(0, 24, 2), 24, 0.001 * i) for i in range(n_members)])
    pruning_plots.pareto_figure(table.assign(latency_ms_median=costs + 10), "unused", title="a model")
    assert len(drawn[0].axes[1].texts) == min(n_members, 32) + 1, "and what they are"
    assert no_overlap(drawn[0])


def test_spread_moves_apart_and_no_further():
    np.testing.assert_allclose(pruning_plots.spread(np.array([0.1, 0.5, 0.9]), 0.1, 1), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(pruning_plots.spread(np.array([0.1, 0.1, 0.9, 1.0]), 0.2, 1), [0.1, 0.3, 0.8, 1.0])
    places = pruning_plots.spread(np.sort(np.random.default_rng(0).random(11)), 0.1, 1)
    np.testing.assert_allclose(places, np.arange(11) / 10)
    assert pruning_plots.spread(np.array([]), 0.1, 1).shape == (0,)


# --------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("scores", ["known", "nan"])
@pytest.mark.parametrize("n_blocks", [1, 2])
def test_the_smallest_models_are_drawn(drawn, n_blocks, scores):
    table = sweep(n_blocks, ["greedy", "random"])
    if scores == "nan":
        table[[column for column in table if "accuracy" in column or "f1" in column]] = np.nan
    pruning_plots.kept_grids_figure(table, "unused")
    pruning_plots.strategies_figure(table, "unused", margin=0.02)
    pruning_plots.pareto_figure(table, "unused")
    for fig in drawn:
        fig.draw_without_rendering()


def test_a_table_without_the_full_model_is_drawn(drawn):
    table = SMALL[SMALL["n_removed"] > 0]
    pruning_plots.kept_grids_figure(table, "unused")
    pruning_plots.strategies_figure(table, "unused", margin=0.02)
    pruning_plots.pareto_figure(table, "unused")
    assert not any("full" in label for fig in drawn for axes in fig.axes for label in lines(axes))
