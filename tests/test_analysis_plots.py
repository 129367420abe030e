"""Figures of layers: the numbers drawn are those given, on the scales promised, with nothing hidden or overlapping."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import FillBetweenPolyCollection, LineCollection, PatchCollection
from matplotlib.colors import to_rgba

from tests.figures import check_same_bytes, lines, no_overlap
from utils.figures import analysis_plots
from utils.figures.analysis_plots import Runs, Similarity
from utils.layers import drawing
from utils.layers.analysis import table_of_runs


def distances_by_length(distances):
    """Return distances between layers as the figure takes them, by way of the table that stage 04 writes."""
    return drawing.by_length(table_of_runs(angular_distance=distances), "angular_distance")


def convexity(n_blocks):
    layer = np.arange(n_blocks + 1)
    value = 0.5 - 0.3 * layer / (n_blocks + 1)
    return pd.DataFrame(
        {
            "layer": layer,
            "convexity": value,
            "convexity_low": value - 0.03,
            "convexity_high": value + 0.04,
            "null_of_groups": 0.05,
            "pooled_convexity": value + 0.02,
            "direct_share": 0.1,
            "unreachable_share": 0.01,
        }
    )


def probe(n_blocks):
    layer = np.arange(n_blocks + 1)
    return pd.DataFrame(
        {
            "layer": layer,
            "accuracy": 0.6,
            "accuracy_low": 0.5,
            "accuracy_high": 0.7,
            "macro_f1": 0.55,
            "majority": 0.05,
        }
    )


def influence(n_blocks):
    layer = np.arange(n_blocks)
    influences = {"block_influence": 0.1 + 0.01 * layer, "knn_block_influence": 0.5}
    return pd.DataFrame({"layer": layer, **influences, "knn_block_influence_null": 0.97 - 0.01 * layer})


def symmetric(n_layers, seed=0):
    values = np.random.default_rng(seed).uniform(0.1, 0.9, (n_layers, n_layers))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return values


def maps(n_blocks):
    return {
        "CKA": Similarity(symmetric(n_blocks + 1), 0.0, 2 if n_blocks > 2 else None),
        "mutual kNN": Similarity(symmetric(n_blocks + 1, 1), 0.03),
        "cosine": Similarity(symmetric(n_blocks + 1, 2) - 0.3, np.array([0.01, 0.2])),
    }


def everything(n_blocks):
    return {
        "convexity": convexity(n_blocks),
        "euclidean_convexity": convexity(n_blocks),
        "probe": probe(n_blocks),
        "influence": influence(n_blocks),
        "similarity": maps(n_blocks),
        "angular_distance": distances_by_length(0.3 * symmetric(n_blocks + 1)),
        "linear_residual": Runs(distances_by_length(0.5 * symmetric(n_blocks + 1)), np.array([0.8, 0.95])),
    }


def classes(n_classes, n_blocks=6):
    rng = np.random.default_rng(0)
    names = [f"{('Great', 'White-throated', 'Little')[i % 3]} Bird {i:03d}" for i in range(n_classes)]
    rows = [(layer, name, rng.random(), i + 2) for i, name in enumerate(names) for layer in range(n_blocks + 1)]
    return pd.DataFrame(rows, columns=["layer", "label", "convexity", "n_clips"])


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of figures that the test draws; none is written."""
    figures = []
    monkeypatch.setattr(analysis_plots, "save_figure", lambda fig, path: figures.append(fig))
    return figures


def n_hatched(axes):
    cells = sum(len(c.get_paths()) for c in axes.collections if isinstance(c, PatchCollection) and c.get_hatch())
    return cells + sum(bool(patch.get_hatch()) for patch in axes.patches)


# ---------------------------------------------------------------------------------------------- curves


def test_same_content_gives_the_same_bytes(tmp_path):
    tables = everything(2)
    shown = {name: tables[name] for name in ("convexity", "influence", "angular_distance")}
    check_same_bytes(lambda path: analysis_plots.overview_figure(path, **shown), tmp_path)


def test_convexity_draws_curve_interval_null_and_shares(drawn):
    table = convexity(4)
    analysis_plots.convexity_figure(table, "unused", ylabel="Euclidean convexity", title="a model")
    above, below = drawn[0].axes
    assert above.get_ylabel() == "Euclidean convexity"
    assert above.get_title(loc="left") == "a model"
    curves = lines(above)
    np.testing.assert_allclose(curves["class mean, 95 % interval"].get_ydata(), table["convexity"])
    np.testing.assert_allclose(curves["all pairs pooled"].get_ydata(), table["pooled_convexity"])
    np.testing.assert_allclose(curves["null: labels permuted between groups"].get_ydata(), 0.05)
    band = next(c for c in above.collections if isinstance(c, FillBetweenPolyCollection)).get_datalim(above.transData)
    np.testing.assert_allclose([band.y0, band.y1], [table["convexity_low"].min(), table["convexity_high"].max()])
    np.testing.assert_allclose(lines(below)["joined by an edge"].get_ydata(), 0.1)
    np.testing.assert_allclose(lines(below)["without a path"].get_ydata(), 0.01)


def test_a_null_that_equals_the_curve_is_on_top_of_it(drawn):
    table = convexity(3)
    analysis_plots.convexity_figure(table.assign(null_of_groups=table["convexity"]), "unused")
    null, *others = sorted(drawn[0].axes[0].lines, key=lambda line: -line.get_zorder())
    assert null.get_label().startswith("null") and null.get_zorder() > max(line.get_zorder() for line in others)
    assert null.get_linestyle() == ":", "the curve is visible through it"


def test_layers_where_convexity_says_nothing_are_circled(drawn):
    table = convexity(3).assign(mostly_direct=[True, False, False, True])
    analysis_plots.convexity_figure(table, "unused")
    circles = lines(drawn[0].axes[0])["most pairs are neighbours"]
    np.testing.assert_allclose(circles.get_data(), [[0, 3], table["convexity"].iloc[[0, 3]]])
    analysis_plots.convexity_figure(table.assign(mostly_direct=False), "unused")
    assert "most pairs are neighbours" not in lines(drawn[1].axes[0])


@pytest.mark.parametrize("n_blocks", [0, 1, 6, 24])
def test_legend_covers_no_curve(drawn, n_blocks):
    analysis_plots.convexity_figure(convexity(n_blocks), "unused")
    analysis_plots.probe_figure(probe(n_blocks), "unused")
    for fig in drawn:
        for axes in fig.axes:
            fig.draw_without_rendering()
            top = max(np.max(line.get_ydata()) for line in axes.lines)
            assert axes.get_legend().get_window_extent().y0 > axes.transData.transform((0, top))[1]
        assert no_overlap(fig)


def test_layers_without_a_number_are_hatched(drawn):
    table = convexity(6)
    table.loc[[2, 5], ["convexity", "convexity_low", "convexity_high"]] = np.nan
    analysis_plots.convexity_figure(table, "unused")
    axes = drawn[0].axes[0]
    centres = [patch.get_x() + patch.get_width() / 2 for patch in axes.patches if patch.get_hatch()]
    assert centres == [2, 5]
    assert axes.get_legend().get_texts()[-1].get_text() == "no number"


def test_columns_that_are_not_there_are_left_out(drawn):
    analysis_plots.convexity_figure(convexity(3)[["layer", "convexity"]], "unused")
    analysis_plots.probe_figure(probe(3)[["layer", "accuracy"]], "unused")
    assert [list(lines(axes)) for fig in drawn for axes in fig.axes] == [["class mean"], ["accuracy"]]


# ------------------------------------------------------------------------------------- classes apart


def test_few_classes_are_lines_sorted_by_their_mean(drawn):
    table = classes(3)
    analysis_plots.class_convexity_figure(table, "unused", ylabel="convexity")
    means = table.groupby("label")["convexity"].mean().sort_values(ascending=False)
    drawn_lines = lines(drawn[0].axes[0])
    assert [label.rpartition(" (")[0] for label in drawn_lines] == list(means.index)
    for label, line in drawn_lines.items():
        name, _, n_clips = label.rpartition(" (")
        rows = table[table["label"] == name]
        np.testing.assert_allclose(line.get_ydata(), rows["convexity"])
        assert n_clips == f"{rows['n_clips'].iloc[0]})"


def test_missing_numbers_of_few_classes_stand_above_the_axes(drawn):
    table = classes(3)
    table.loc[table.index[4], "convexity"] = np.nan
    analysis_plots.class_convexity_figure(table, "unused")
    axes = drawn[0].axes[0]
    hollow = [line for line in axes.lines if line.get_fillstyle() == "none"]
    assert [list(line.get_xdata()) for line in hollow] == [[4]]
    assert min(line.get_ydata()[0] for line in hollow) > 1  # in shares of the axes' height


@pytest.mark.parametrize("n_classes", [8, 60])
def test_many_classes_are_a_heat_map(drawn, n_classes):
    table = classes(n_classes)
    table.loc[[3, 9], "convexity"] = np.nan
    table.loc[table["label"] == "Little Bird 002", "convexity"] = np.nan
    analysis_plots.class_convexity_figure(table, "unused")
    axes = drawn[0].axes[0]
    by_class = table.pivot(index="label", columns="layer", values="convexity")
    order = by_class.mean(axis=1).sort_values(ascending=False).index
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array().astype(float), np.nan), by_class.loc[order])
    assert n_hatched(axes) == 2 + 7
    labels = axes.get_yticklabels()
    assert [label.get_text().rpartition(" (")[0] for label in labels] == list(order)
    assert no_overlap(drawn[0])


@pytest.mark.parametrize("n_with_a_number", [1000, 650, 61, 40, 0])
def test_of_a_thousand_classes_the_extremes_are_drawn(drawn, n_with_a_number):
    table = classes(1000)
    table.loc[table["label"].isin(sorted(set(table["label"]))[n_with_a_number:]), "convexity"] = np.nan
    analysis_plots.class_convexity_figure(table, "unused")
    means = table.groupby("label")["convexity"].mean().dropna().sort_values(ascending=False)
    names = [label.get_text().rpartition(" (")[0] for label in drawn[0].axes[0].get_yticklabels()]
    if n_with_a_number > 60:
        assert names == [*means.index[:30], *means.index[-30:]]
    elif n_with_a_number:
        assert names == list(means.index)
    assert f"of {n_with_a_number:,} classes" in drawn[0].get_suptitle()
    assert max(drawn[0].get_size_inches()) < 20


# ------------------------------------------------------------------------------------------ heat maps


def test_similarities_share_a_scale_and_show_null_and_boundary(drawn):
    given = maps(4)
    analysis_plots.similarity_figure(given, "unused")
    panels = drawn[0].axes
    bars = [axes.child_axes[0] for axes in panels]
    least = given["cosine"].matrix.min()
    assert analysis_plots.lowest_similarity(given) == least < 0
    for axes, (name, similarity) in zip(panels, given.items(), strict=True):
        assert axes.get_title(loc="left") == name
        np.testing.assert_allclose(axes.images[0].get_array(), similarity.matrix)
        assert axes.images[0].origin == "lower"
        assert axes.images[0].get_clim() == (least, 1)
    # Between hidden layers 1 and 2, across and up, each a white line on a black one.
    assert [(set(line.get_xdata()), set(line.get_ydata())) for line in panels[0].lines] == [
        *[({0, 1}, {1.5})] * 2,
        *[({1.5}, {0, 1})] * 2,
    ]
    assert not panels[1].lines
    assert [[line.get_xdata()[0] for line in bar.lines] for bar in bars] == [[0, 0], [0.03, 0.03], [0.01, 0.2]]
    assert [bar.get_xlabel().splitlines()[1] for bar in bars] == ["▼ null 0.00", "▼ null 0.03", "▼ null 0.01 to 0.20"]
    assert [bar.get_xlabel().splitlines()[0] for bar in bars] == [
        "similarity; lines: two groups of layers",
        *["similarity"] * 2,
    ]


def test_scale_begins_at_zero_unless_told(drawn):
    given = {"CKA": Similarity(pd.DataFrame(symmetric(3)), np.nan)}
    analysis_plots.similarity_figure(given, "unused")
    analysis_plots.similarity_figure(given, "unused", lowest=-0.5)
    assert [fig.axes[0].images[0].get_clim() for fig in drawn] == [(0, 1), (-0.5, 1)]
    assert not drawn[0].axes[0].child_axes[0].lines  # no null, no mark


def test_two_models_are_named_on_the_axes(drawn):
    between = np.random.default_rng(0).random((3, 7))
    between[1, 4] = np.nan
    analysis_plots.similarity_figure({"CKA": Similarity(between, 0.01)}, "unused", models=("rows", "columns"))
    axes = drawn[0].axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("hidden layer of\nrows", "hidden layer of\ncolumns")
    assert axes.images[0].get_array().shape == (3, 7)
    assert n_hatched(axes) == 1
    assert "hatched: no number" in axes.child_axes[0].get_xlabel()


def test_distances_by_length():
    distances = np.arange(16.0).reshape(4, 4)
    expected = [[1, 2, 3], [6, 7, np.nan], [11, np.nan, np.nan]]
    np.testing.assert_array_equal(distances_by_length(distances), expected)
    assert distances_by_length(np.zeros((1, 1))).shape == (0, 0)


@pytest.mark.parametrize("n_blocks", [1, 6, 24])
def test_triangle_rings_the_least_distance_of_every_length(drawn, n_blocks):
    distances = symmetric(n_blocks + 1)
    by_length = distances_by_length(distances)
    analysis_plots.angular_distance_figure(by_length, "unused")
    axes = drawn[0].axes[0]
    expected = [
        (min(range(n_blocks + 1 - n), key=lambda start, n=n: distances[start, start + n]), n)
        for n in range(1, n_blocks + 1)
    ]
    assert list(zip(*axes.lines[0].get_data(), strict=True)) == expected
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array().astype(float), np.nan), by_length.T)
    assert n_hatched(axes) == 0


def test_triangle_hatches_what_has_no_number(drawn):
    by_length = distances_by_length(symmetric(4))
    by_length[1, 0] = by_length[:2, 1] = np.nan
    analysis_plots.angular_distance_figure(pd.DataFrame(by_length), "unused")
    axes = drawn[0].axes[0]
    assert n_hatched(axes) == 3
    assert list(axes.lines[0].get_ydata()) == [1, 3]


# ------------------------------------------------------------------------------------------ influence


def test_influence_draws_a_bar_a_block(drawn):
    table = influence(5)
    table.loc[3, "block_influence"] = np.nan
    analysis_plots.influence_figure(table, "unused")
    first, second = drawn[0].axes
    for axes, column in ((first, "block_influence"), (second, "knn_block_influence")):
        bars = [patch for patch in axes.patches if not patch.get_hatch()]
        assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(range(5))
        np.testing.assert_allclose([bar.get_height() for bar in bars], table[column])
        assert to_rgba(analysis_plots.COLOURS[0]) == bars[0].get_facecolor()
    assert (n_hatched(first), n_hatched(second)) == (1, 0)
    (nulls,) = (c for c in second.collections if isinstance(c, LineCollection))
    np.testing.assert_allclose([segment[:, 1].mean() for segment in nulls.get_segments()], 0.97 - 0.01 * np.arange(5))
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["null: unrelated layers, 0.93 to 0.97"]
    assert not any(isinstance(c, LineCollection) for c in first.collections)


def test_labels_of_influence_are_no_longer_than_their_axes(drawn):
    analysis_plots.influence_figure(influence(6), "unused", title="a model with a very long name, on a data set; val")
    assert no_overlap(drawn[0])
    analysis_plots.overview_figure("unused", **everything(6))
    drawn[1].draw_without_rendering()
    for axes in [*drawn[0].axes, *drawn[1].axes]:
        label, box = axes.yaxis.label.get_window_extent(), axes.get_window_extent()
        assert box.y0 <= label.y0 and label.y1 <= box.y1


def test_a_linear_residual_is_not_called_a_share(drawn):
    residual = Runs(np.full((2, 2), 2.84), np.array([1.2]))  # few clips: a map can be worse than none
    analysis_plots.linear_residual_figure(residual, "unused")
    (bar,) = drawn[0].axes[0].child_axes
    assert bar.get_xlabel().splitlines()[0] == "squared error of a linear map / squared change"


def test_influence_of_one_metric_is_one_panel(drawn):
    analysis_plots.influence_figure(influence(3)[["layer", "knn_block_influence"]], "unused")
    assert len(drawn[0].axes) == 1


# ------------------------------------------------------------------------------------------- overview


@pytest.mark.parametrize("n_blocks", [0, 1, 24])
def test_overview_holds_everything(drawn, n_blocks):
    analysis_plots.overview_figure("unused", **everything(n_blocks), title="a model")
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes if axes.get_title(loc="left")]
    assert titles == [
        "a  graph convexity",
        "b  Euclidean convexity",
        "c  linear probe",
        "d  block influence",
        "e  kNN block influence",
        "f  CKA",
        "g  mutual kNN",
        "h  cosine",
        "i  angular distance",
        "j  linear residual",
    ]
    assert [axes.get_ylabel().partition("\n")[0] for axes in drawn[0].axes] == [
        "graph convexity",
        "Euclidean convexity",
        "score of a linear probe",
        "block influence",
        "kNN block influence",
        *["hidden layer"] * 3,
        *["blocks n in the run"] * 2,
    ]
    assert no_overlap(drawn[0])


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["probe"], [1]),
        (["similarity"], [3]),
        (["similarity", "probe"], [2, 2]),
        (["similarity", "influence"], [3, 2]),
        (["similarity", "influence", "probe", "convexity"], [4, 3]),
    ],
)
def test_overview_leaves_out_what_was_not_measured(drawn, names, rows):
    tables = everything(3)
    analysis_plots.overview_figure("unused", **{name: tables[name] for name in names})
    places = [axes.get_position() for axes in drawn[0].axes]
    tops = sorted({round(place.y0, 3) for place in places}, reverse=True)
    assert [sum(round(place.y0, 3) == top for place in places) for top in tops] == rows
    for top in tops:  # every row stands in the middle of the first, whatever is in it
        here = [place for place in places if round(place.y0, 3) == top]
        assert here[0].x0 + here[-1].x1 == pytest.approx(places[0].x0 + places[rows[0] - 1].x1)
    assert len({(round(place.width, 3), round(place.height, 3)) for place in places}) == 1


def test_overview_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        analysis_plots.overview_figure("unused")


def test_no_number_at_all_is_drawn(drawn):
    tables = everything(3)
    for table, columns in (("convexity", slice(1, None)), ("probe", slice(1, None)), ("influence", slice(1, None))):
        tables[table] = tables[table].astype(float)
        tables[table].iloc[:, columns] = np.nan
    tables["similarity"] = {"CKA": Similarity(np.full((4, 4), np.nan), np.nan)}
    tables["angular_distance"] = np.full((3, 3), np.nan)
    tables["linear_residual"] = Runs(np.full((3, 3), np.nan), np.full(6, np.nan))
    analysis_plots.overview_figure("unused", **tables)
    drawn[0].draw_without_rendering()
    of_title = {axes.get_title(loc="left")[3:]: n_hatched(axes) for axes in drawn[0].axes if axes.get_title(loc="left")}
    assert of_title == {
        "graph convexity": 4,
        "Euclidean convexity": 0,
        "linear probe": 4,
        "block influence": 3,
        "kNN block influence": 3,
        "CKA": 16,
        "angular distance": 6,
        "linear residual": 6,
    }
    table = classes(9)
    for n_classes in (3, 9):
        few = table[table["label"].isin(table["label"].unique()[:n_classes])]
        analysis_plots.class_convexity_figure(few.assign(convexity=np.nan), "unused")
