"""Figures: deterministic files, labels that do not overlap, nothing of the user's settings changed."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.figures import plots
from utils.scores import evaluation


def birds(n):
    return [f"{('Great', 'White-throated', 'Little')[i % 3]} Bird {i:03d}" for i in range(n)]


def confusion(n_classes, n_clips=None):
    rng = np.random.default_rng(0)
    label_ids = rng.integers(n_classes, size=n_clips or 30 * n_classes)
    predicted_ids = np.where(rng.random(len(label_ids)) < 0.7, label_ids, rng.integers(n_classes, size=len(label_ids)))
    return evaluation.confusion_table(label_ids, predicted_ids, birds(n_classes))


def summary(n_models, n_sets=1):
    rng = np.random.default_rng(0)
    accuracy, layers = rng.uniform(0.2, 0.9, n_models), rng.integers(1, 13, n_models)
    return pd.DataFrame(
        {
            "model_name": [f"birds20_recordist_whisper_base_seed_{i:02d}" for i in range(n_models)],
            "data_sha256": [str(i % n_sets) for i in range(n_models)],
            "split": "test",
            "n_clips": [300 + i % n_sets for i in range(n_models)],
            "n_recordings": 90,
            "n_classes": 20,
            "accuracy": accuracy,
            "accuracy_low": accuracy - 0.05,
            "accuracy_high": accuracy + 0.04,
            "n_parameters": 7_087_872 * layers + 9_523_107,
            "latency_ms_median": 100.0 + 30 * layers,
            "device": "a processor",
            "kind": [list(plots.KINDS)[i % len(plots.KINDS)] for i in range(n_models)],
        }
    )


def comparison(n_pairs):
    values = np.linspace(-0.3, 0.3, n_pairs)
    scores = {"difference": values, "low": values - 0.1, "high": values + 0.1, "p_holm": np.abs(values) < 0.2}
    columns = {f"{name}_{key}": value for name in ("accuracy", "macro_f1") for key, value in scores.items()}
    names = summary(n_pairs + 1)["model_name"]
    return pd.DataFrame({"first": names[:-1], "second": names[1:].to_numpy(), **columns})


SCORE_COLUMNS = [f"{score}{end}" for score in ("accuracy", "macro_f1") for end in ("", "_low", "_high")]
CURVES = pd.DataFrame(
    {
        "epoch": [1.0, 2.0, 3.0],
        "step": [10, 20, 30],
        "train_loss": [np.nan, 1.5, 1.0],
        "eval_loss": [2.0, 1.8, 1.9],
        "eval_accuracy": [0.2, 0.4, 0.5],
        "eval_macro_f1": [0.1, 0.4, 0.3],
        "learning_rate": [1e-4, 5e-5, 0.0],
    }
)
COLLECTIONS = pd.DataFrame(
    [
        {"collection": name, "n_clips": n, **dict(zip(SCORE_COLUMNS, values, strict=True))}
        for name, n, values in (
            ("xeno-canto", 1200, (0.6, 0.5, 0.7, 0.4, 0.3, 0.5)),
            ("nan", 3, (0.3, np.nan, np.nan, 0.2, np.nan, np.nan)),
            ("mean over collections", 1203, (0.45, 0.4, 0.5, 0.3, 0.2, 0.4)),
            ("knowing the collection alone", 1203, (0.2, 0.1, 0.3, 0.05, 0.01, 0.1)),
        )
    ]
)
LOGITS = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
DRAWINGS = {
    "confusion": (lambda path: plots.confusion_figure(confusion(3), path), {".pdf", ".png"}),
    "reliability": (
        lambda path: plots.reliability_figure(evaluation.calibration(np.arange(50) % 4, LOGITS), 0.5, path),
        {".pdf", ".png"},
    ),
    "collections": (lambda path: plots.collections_figure(COLLECTIONS, path), {".pdf", ".png"}),
    "training": (lambda path: plots.training_curves(CURVES, path), {".png"}),
    "summary": (lambda path: plots.summary_figure(summary(4, 2), path), {".png"}),
    "comparison": (lambda path: plots.comparison_figure(comparison(3), path), {".pdf", ".png"}),
}


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of figures that the test draws; none is written."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda fig, path, suffixes=(): figures.append(fig))
    return figures


def boxes(fig, texts):
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw_without_rendering()
    return [text.get_window_extent(renderer) for text in texts if text.get_text()]


def no_overlap(boxes):
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_collections_with_their_mean_and_the_level_of_the_collection_alone(drawn):
    plots.collections_figure(COLLECTIONS, "unused", "a title")
    of_accuracy, of_f1 = drawn[0].axes
    assert [text.get_text() for text in of_accuracy.get_yticklabels()] == [
        "xeno-canto (1,200)",
        "nan (3)",
        "mean (1,203 clips)",
    ]
    for axes, alone, values, mean in ((of_accuracy, 0.2, [0.6, 0.3], 0.45), (of_f1, 0.05, [0.4, 0.2], 0.3)):
        level, points, middle = axes.lines
        assert list(level.get_xdata()) == [alone, alone] and list(points.get_xdata()) == values
        assert list(middle.get_xdata()) == [mean]
        intervals = [segment for lines in axes.collections for segment in lines.get_segments() if len(segment)]
        assert len(intervals) == 2, "of one collection and of the mean"
    many = pd.concat([COLLECTIONS.iloc[:1].assign(n_clips=n) for n in range(300)] + [COLLECTIONS.iloc[-2:]])
    plots.collections_figure(many.reset_index(drop=True), "unused")
    assert "The 200 largest of 300 collections" in drawn[1].get_suptitle()


@pytest.mark.parametrize("name", DRAWINGS)
def test_same_content_gives_the_same_bytes(tmp_path, name):
    draw, suffixes = DRAWINGS[name]
    for stem in ("first.v1", "second"):
        draw(tmp_path / stem)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}{suffix}" for stem in ("first.v1", "second") for suffix in suffixes
    }
    for suffix in suffixes:
        content = (tmp_path / f"second{suffix}").read_bytes()
        assert content == (tmp_path / f"first.v1{suffix}").read_bytes()
        assert content.startswith({".pdf": b"%PDF", ".png": b"\x89PNG"}[suffix])
        assert b"CreationDate" not in content


def test_the_users_settings_neither_matter_nor_change(tmp_path):
    draw, _ = DRAWINGS["reliability"]
    draw(tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):
        draw(tmp_path / "odd")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "odd.png").read_bytes()


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="space"):
        plots.training_curves(CURVES, tmp_path / "curves")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_classes", [2, 20, 60])
def test_labels_of_a_confusion_matrix_do_not_overlap(drawn, n_classes):
    plots.confusion_figure(confusion(n_classes), "unused")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == sorted(birds(n_classes))
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert no_overlap(boxes(drawn[0], labels))
        assert min(label.get_fontsize() for label in labels) >= 7


def test_confusion_matrix_shows_shares_of_rows_and_counts(drawn):
    counts = pd.DataFrame([[3, 1, 0], [0, 0, 0], [0, 0, 2]], index=["b", "a", "c"], columns=["b", "a", "c"])
    plots.confusion_figure(counts, "unused")
    axes = drawn[0].axes[0]
    shares = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    np.testing.assert_allclose(shares, [[np.nan] * 3, [0.25, 0.75, 0], [0, 0, 1]])
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {(1, 0): "1", (1, 1): "3", (2, 2): "2"}


def test_counts_are_left_out_where_they_would_not_fit(drawn):
    plots.confusion_figure(confusion(plots.NUMBERS_UP_TO + 1), "unused")
    assert not drawn[0].axes[0].texts


@pytest.mark.parametrize("n_classes", [61, 1000])
def test_of_many_labels_the_worst_confusions_are_drawn(drawn, n_classes):
    counts = confusion(n_classes)
    plots.confusion_figure(counts, "unused")
    axes = drawn[0].axes[0]
    pairs = [
        (n, n / counts.loc[true].sum(), f"{true} → {predicted}")
        for true, row in zip(counts.index, counts.to_numpy(), strict=True)
        for predicted, n in zip(counts.columns, row, strict=True)
        if n and true != predicted
    ]
    pairs.sort(key=lambda pair: pair[:2], reverse=True)
    assert [bar.get_width() for bar in axes.patches] == [n for n, _, _ in pairs[:40]]
    assert {label.get_text() for label in axes.get_yticklabels()} <= {
        name for n, share, name in pairs if (n, share) >= pairs[39][:2]
    }
    n_wrong = counts.to_numpy().sum() - np.trace(counts)
    assert f"of {len(pairs):,} among {n_classes:,} labels" in drawn[0].get_suptitle()
    assert f"of the {n_wrong:,} wrong clips" in drawn[0].get_suptitle()
    assert no_overlap(boxes(drawn[0], axes.get_yticklabels()))
    assert max(drawn[0].get_size_inches()) < 12


def test_of_many_labels_without_a_confusion_the_figure_says_so(drawn):
    names = birds(61)
    plots.confusion_figure(pd.DataFrame(np.diag([3] * 61), index=names, columns=names), "unused")
    assert drawn[0].get_suptitle() == "No confusion among 61 labels: all 183 clips are right"


def test_of_many_models_the_best_and_those_asked_for_are_drawn(drawn):
    table = summary(100, 3).sort_values("accuracy", ascending=False, ignore_index=True)
    table["model_name"] = [f"birds.by-clip/m{i}.blocks-0/seed-1" for i in range(100)]
    asked = list(table["model_name"][[3, 98]])
    plots.summary_figure(table, "unused", asked=asked)
    rows = drawn[0].axes[0]
    shown = {f"m{i}.blocks-0, seed 1" for i in [*range(15), 98]}
    assert {text.get_text() for text in rows.get_yticklabels()} == shown
    assert drawn[0].get_suptitle() == "16 of 100 models: the 15 most accurate and 1 asked for; summary.csv has all"
    headings = [text.get_text() for text in rows.texts]
    assert any(
        re.fullmatch(r"birds.by-clip, 30\d test clips of 90 recordings, 20 classes: \d+ of 33 models", text)
        for text in headings
    )
    assert drawn[0].get_size_inches()[1] < 8
    plots.summary_figure(table.head(15), "unused")
    assert drawn[1].get_suptitle() == "all 15 models"
    plots.summary_figure(table.head(1).assign(accuracy=1.0), "unused")
    assert drawn[2].get_suptitle() == "1 model"
    points = [line for axes in drawn[2].axes for line in axes.lines if 1.0 in (*line.get_xdata(), *line.get_ydata())]
    assert len(points) >= 3 and not any(line.get_clip_on() for line in points if len(line.get_xdata())), "whole markers"


def test_more_pairs_than_a_picture_can_hold(drawn):
    table = comparison(1770)  # of 60 models
    plots.comparison_figure(table.assign(accuracy_p_holm=np.arange(1770)[::-1] / 1770), "unused")
    names = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert len(names) == plots.MOST_ROWS
    assert all(
        name.startswith(plots.shorten(first, 32)) for name, first in zip(names, table["first"][-200:], strict=True)
    )
    assert "200 pairs of 1,770" in drawn[0].get_suptitle()


@pytest.mark.parametrize("largest", [999, 123_456])
def test_counts_stay_in_their_cells(drawn, largest):
    names = birds(20)
    counts = pd.DataFrame(np.diag([largest] * 20), index=names, columns=names)
    plots.confusion_figure(counts, "unused")
    axes = drawn[0].axes[0]
    widest = max(box.width for box in boxes(drawn[0], axes.texts))
    assert widest < axes.get_window_extent().width / 20


@pytest.mark.parametrize(
    "label",
    ["Price $5 and $6", "two\nlines", "Zoë's 鳥", "大山雀", "コマドリ", "붉은머리오목눈이", "\ue000\x07🐦", "x" * 300],
)
@pytest.mark.filterwarnings("error:Glyph")
def test_any_label_can_be_drawn_without_boxes(tmp_path, label):
    table = pd.DataFrame([[1, 0], [0, 1]], index=[label, "b"], columns=[label, "b"])
    plots.confusion_figure(table, tmp_path / "figure")
    assert (tmp_path / "figure.png").stat().st_size < 500_000


def test_characters_that_the_font_has_not_are_spelt_in_latin_letters():
    assert plots.drawable("大山雀 Parus, Zoë, Дрозд") == "DaShanQue Parus, Zoë, Дрозд"
    assert plots.shorten("コマドリ") == "komadori"
    assert plots.drawable("\ue000") == r"\ue000"


def test_captions():
    splits = {"val": (30, 9), "test": (None, None)}
    name = "birds.by-clip/w2v.blocks-0.sweep/seed-1"
    assert plots.caption(name, "x", splits) == (
        "w2v.blocks-0, seed 1, on birds.by-clip; val: 30 clips in 9 groups; test"
    )
    assert plots.caption("麻雀", "processed_data/wetland/seed-3", {"test": (1000, 1)}) == (
        "MaQue, on wetland; test: 1,000 clips in 1 groups"
    )


def test_shorten_keeps_both_ends():
    assert plots.shorten("short") == "short"
    long = "birds20_" + "x" * 50 + "_seed_7"
    short = plots.shorten(long)
    assert len(short) == 40
    assert short.startswith("birds20_")
    assert short.endswith("_seed_7")


@pytest.mark.parametrize(("n_models", "n_sets"), [(1, 1), (15, 3), (9, 9)])
def test_names_in_the_summary_do_not_overlap(drawn, n_models, n_sets):
    table = summary(n_models, n_sets)
    plots.summary_figure(table, "unused")
    names, *panels = drawn[0].axes
    assert sorted(text.get_text() for text in names.get_yticklabels()) == sorted(table["model_name"])
    assert no_overlap(boxes(drawn[0], names.get_yticklabels()))
    assert len(names.texts) == n_sets  # a heading for each set of clips
    for panel in panels:
        ticks = [text for text in panel.get_xticklabels() if text.get_text()]
        assert len(ticks) >= 1
        assert no_overlap(boxes(drawn[0], panel.get_xticklabels()))


@pytest.mark.parametrize("kind", ["whole", "CNN"])
@pytest.mark.filterwarnings("error")
def test_markers_leave_room_for_the_panels_of_the_summary(tmp_path, kind):
    # Kinds without a model have an empty line, whose place counts if it is not clipped.
    plots.summary_figure(summary(30, 4).assign(kind=kind), tmp_path / "summary")
    assert (tmp_path / "summary.png").stat().st_size > 10_000


def test_summary_sorts_by_accuracy_and_draws_intervals(drawn):
    table = summary(5)
    plots.summary_figure(table, "unused")
    names = drawn[0].axes[0]
    best_first = table.sort_values("accuracy", ascending=False)
    assert [text.get_text() for text in names.get_yticklabels()] == list(best_first["model_name"])
    ends = np.array([segment[:, 0] for segment in names.collections[0].get_segments()])
    np.testing.assert_allclose(ends, best_first[["accuracy_low", "accuracy_high"]])


def test_summary_marks_what_a_model_is(drawn):
    table = summary(len(plots.KINDS))
    costs = 2.0 ** np.arange(len(table))  # no two models in one place
    table = table.assign(n_parameters=1e6 * costs, latency_ms_median=costs)
    plots.summary_figure(table, "unused")
    for axes, column in zip(drawn[0].axes[1:], ("n_parameters", "latency_ms_median"), strict=True):
        for _, row in table.iterrows():
            marked = [line for line in axes.lines if row[column] in line.get_xdata()]
            assert [line.get_marker() for line in marked] == [plots.KINDS[row["kind"]]]
    legend = drawn[0].axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(plots.KINDS)


def test_summary_says_how_many_latencies_are_doubtful(drawn):
    for n_doubtful in (0, 2):
        plots.summary_figure(summary(3), "unused", pd.Series(np.arange(3) < n_doubtful))
    certain, doubtful = (figure.axes[2].get_xlabel() for figure in drawn)
    assert certain.startswith("latency of one clip (ms)\n")
    assert doubtful.startswith("latency of one clip (ms), 2 of 3 doubtful\n")


def test_sets_of_clips_are_told_apart_without_colour(drawn):
    plots.summary_figure(summary(8, 2).assign(kind="whole"), "unused")
    marked = [line for line in drawn[0].axes[0].lines if len(line.get_xdata())]
    assert len({line.get_fillstyle() for line in marked}) == 2


@pytest.mark.parametrize("n_pairs", [1, 15])
def test_comparison_names_every_pair_and_fills_what_is_sure(drawn, n_pairs):
    table = comparison(n_pairs)
    plots.comparison_figure(table, "unused")
    left, right = drawn[0].axes
    assert len([text for text in left.get_yticklabels() if "−" in text.get_text()]) == n_pairs
    assert no_overlap(boxes(drawn[0], left.get_yticklabels()))
    assert no_overlap(boxes(drawn[0], [left.xaxis.label, right.xaxis.label]))
    for axes, name in ((left, "accuracy"), (right, "macro_f1")):
        filled = [x for line in axes.lines if line.get_markerfacecolor() != "white" for x in line.get_xdata()]
        sure = table.loc[table[f"{name}_p_holm"] < 0.05, f"{name}_difference"]
        assert set(sure) == set(filled) - {0}  # the line at zero


def test_comparison_draws_both_kinds_of_intervals(drawn):
    """The thin lines are those of all pairs together, by which a margin is judged; early tables have none."""
    table = comparison(3)
    ends = {
        f"{name}_{end}_of_all": table[f"{name}_{end}"] * 2
        for name in ("accuracy", "macro_f1")
        for end in ("low", "high")
    }
    plots.comparison_figure(table.assign(**ends), "unused")
    plots.comparison_figure(table, "unused")
    for axes, name in zip(drawn[0].axes, ("accuracy", "macro_f1"), strict=True):
        thick, thin = (sorted(path.vertices[:, 0].tolist() for path in lines.get_paths()) for lines in axes.collections)
        by_itself = sorted(table[[f"{name}_low", f"{name}_high"]].to_numpy().tolist())
        assert thick == by_itself and thin == [[2 * low, 2 * high] for low, high in by_itself]
    assert "thin: intervals of all pairs together" in drawn[0].get_suptitle()
    assert "thin" not in drawn[1].get_suptitle() and [len(axes.collections) for axes in drawn[1].axes] == [1, 1]


def test_summary_without_intervals_is_drawn(drawn):
    plots.summary_figure(summary(2).assign(accuracy_low=np.nan, accuracy_high=np.nan), "unused")
    low, high = drawn[0].axes[0].get_xlim()
    assert low < high


@pytest.mark.parametrize("n_rows", [1, 3])
def test_training_curves_mark_the_best_epoch(drawn, n_rows):
    plots.training_curves(CURVES.head(n_rows), "unused")
    legend = [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()]
    assert legend[-1] == {1: "best macro F1 0.100, epoch 1", 3: "best macro F1 0.400, epoch 2"}[n_rows]
