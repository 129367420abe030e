"""The table and the figure of the ways to make a model smaller, on results written by hand."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments import ways_table
from tests.figures import lines, no_overlap
from tests.results import write_result
from utils.core import names
from utils.figures import plots
from utils.scores import comparison, intervals

pytestmark = pytest.mark.usefixtures("blank_figures")

N_CLIPS, PART = 60, "fold-1.seed-1"
MODELS = {
    "base": ("whole", 6, 48, 100.0),
    "base.frozen": ("only the head trained", 6, 33, 100.0),
    "small": ("other encoder", 4, 32, 60.0),
    "small.frozen": ("other encoder", 4, 25, 60.0),  # its four blocks are not those of base
    "base.after-4.repaired": ("repaired", 4, 45, 70.0),
    "base.after-4": ("removed", 4, 20, 70.0),
    "base.blocks-0-3": ("pruned before", 4, 35, 70.0),
    "base.blocks-0-3.ffn-50": ("narrower", 4, 25, 50.0),
    "base.after-4.ffn-50.repaired": ("narrower, repaired", 4, 40, 50.0),
    "base.blocks-0-5.ffn-50.repaired.frozen": ("narrower, repaired, head trained", 6, 43, 75.0),
    "base.blocks-0-2.taught": ("pruned before, taught", 3, 44, 55.0),
    "base.after-5.repaired.healed": ("repaired, healed", 5, 46, 85.0),
    "base.after-2.repaired.frozen": ("repaired, head trained", 2, 41, 40.0),
    "base.after-1.repaired.taught": ("repaired, taught", 1, 42, 30.0),
    "cnn-melspectrogram": ("CNN", 0, 30, 20.0),
    "cnn-melspectrogram.taught": ("CNN, taught", 0, 40, 20.0),
}


@pytest.fixture
def results_dir(tmp_path):
    results_dir = tmp_path / "validation_results"
    label_ids, groups = np.arange(N_CLIPS) % 5, [f"g{i // 3}" for i in range(N_CLIPS)]
    for model, (_, n_layers, n_right, _) in MODELS.items():
        predicted = np.where(np.arange(N_CLIPS) % 59 < n_right, label_ids, (label_ids + 1) % 5)
        write_result(results_dir, f"birds/{model}/{PART}", predicted, label_ids, groups, n_layers=n_layers)
    rows = [{"model": model, "latency_ms": ms, "latency_doubt": "no"} for model, (_, _, _, ms) in MODELS.items()]
    pd.DataFrame(rows).to_csv(results_dir / "birds" / "latency.csv", index=False)
    return results_dir


def run(results_dir, *words):
    return ways_table.main(["--results_dir", str(results_dir), "--name", "birds", "--part", PART, *words])


@pytest.mark.drawn
def test_every_model_has_its_way_and_its_difference_to_the_whole(results_dir, capsys):
    assert run(results_dir, "--model", "base") == 0
    table = pd.read_csv(results_dir / "birds" / "ways.csv", index_col="model")
    assert {model: row["way"] for model, row in table.iterrows()} == {name: way for name, (way, *_) in MODELS.items()}
    assert table.loc["base.after-4", "latency_ms"] == 70 and np.isnan(table.loc["base", "difference"])
    # The intervals are those of all differences together.
    scored = {name: pd.read_parquet(results_dir / "birds" / name / PART / "predictions.parquet") for name in MODELS}
    others = [name for name in table.index if name != "base"]
    whole = scored["base"]
    found = intervals.accuracy_differences(
        *(whole["label_id"].to_numpy(), np.stack([scored[name]["predicted_id"] for name in others])),
        *(whole["predicted_id"].to_numpy(), whole["group"].to_numpy()),
    )
    np.testing.assert_allclose(table.loc[others, "difference"], found.estimate, atol=1e-6)
    np.testing.assert_allclose(table.loc[others, "difference_low_of_all"], found.low_of_all, rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    of_all, by_size = printed.split("\n\n")
    assert of_all.count("\n| ") == len(MODELS) and "| removed | base.after-4 | 4 |" in of_all
    assert by_size.count("\n| ") == 4
    assert all((results_dir / "birds" / f"ways.{suffix}").stat().st_size > 1000 for suffix in ("png", "pdf"))


def test_ways_of_one_size_are_compared_with_each_other(results_dir, capsys):
    assert run(results_dir, "--model", "base") == 0
    table = pd.read_csv(results_dir / "birds" / "ways_by_size.csv")
    of_a_size = ["base.after-4.repaired", "base.after-4", "base.blocks-0-3"]
    of_a_size += ["cnn-melspectrogram.taught", "cnn-melspectrogram"]
    scored = [comparison.read_scored(results_dir / "birds" / model / PART) for model in of_a_size]
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    expected = comparison.comparison_table(scored, seed=0, margin=0.02, pairs=pairs)
    pd.testing.assert_frame_equal(table[expected.columns], expected, check_dtype=False, rtol=1e-4, atol=1e-6)
    firsts, seconds = ["repaired", "repaired", "removed"], ["removed", "pruned before", "pruned before"]
    assert table["first_way"].tolist() == [*firsts, "CNN, taught"]
    assert table["second_way"].tolist() == [*seconds, "CNN"] and table["n_layers"].tolist() == [4, 4, 4, 0]
    n_right = [45 - 20, 45 - 35, 20 - 35, 40 - 30]  # one more of the last of 60 clips, of each model, is right
    np.testing.assert_allclose(table["accuracy_difference"], np.array(n_right) / N_CLIPS, atol=1e-6)
    printed = capsys.readouterr().out
    assert "| 4 | repaired − removed | +0.417 [" in printed and "|  | CNN, taught − CNN | +0.167 [" in printed


def test_pairs_of_any_size_are_compared_when_asked_for(results_dir, capsys, caplog):
    asked = ["base.blocks-0-2.taught", "base.after-4", "cnn-melspectrogram"]
    assert run(results_dir, "--model", "base", "--pairs", *asked, "--pairs", *asked[:2]) == 0
    of_three, of_two = capsys.readouterr().out.split("\n\n")[-2:]
    scored = [comparison.read_scored(results_dir / "birds" / model / PART) for model in asked]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = comparison.comparison_table(scored, seed=0, margin=0.02, pairs=pairs)
    rows = [line.split(" | ") for line in of_three.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| {asked[first]} − {asked[second]}" for first, second in pairs]
    for row, (_, one) in zip(rows, expected.iterrows(), strict=True):
        assert row[1].startswith(f"{one['accuracy_difference']:+.3f} [{one['accuracy_low_of_all']:+.3f}, ")
        assert row[2:] == [f"{one['accuracy_p_holm']:.3f}", f"{one['accuracy_verdict']} |"]
    assert len(of_two.splitlines()) == 3
    for words, trouble in ((("base", "other"), "no result of other"), (("base", "base"), "each once")):
        assert run(results_dir, "--model", "base", "--pairs", *words) == 2
        assert f"--pairs {' '.join(words)}: " in caplog.text and trouble in caplog.text


def test_no_two_ways_have_a_size_in_common(results_dir, capsys):
    for model in ("base.after-4", "base.blocks-0-3", "cnn-melspectrogram.taught"):
        shutil.rmtree(results_dir / "birds" / model)
    assert run(results_dir, "--model", "base") == 0
    assert not (results_dir / "birds" / "ways_by_size.csv").exists() and "−" not in capsys.readouterr().out


def test_pooled_results_have_a_table_of_their_folds(results_dir, capsys):
    folder = results_dir / "birds"
    for model in MODELS:
        (folder / model / PART).rename(folder / model / "fold-all.seed-1")
        for fold in (10, 2, 1):
            shutil.copytree(folder / model / "fold-all.seed-1", folder / model / f"fold-{fold}.seed-1")
    metrics = folder / "base.after-4" / "fold-10.seed-1" / "metrics.csv"
    table = pd.read_csv(metrics, dtype={"kept_layers": str})
    table.assign(accuracy=0.125, kept_layers="0,2-4").to_csv(metrics, index=False)
    shutil.rmtree(folder / "cnn-melspectrogram" / "fold-2.seed-1")
    words = ["--results_dir", str(results_dir), "--name", "birds", "--part", "fold-all.seed-1", "--model", "base"]
    assert ways_table.main(words) == 0
    by_fold = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert by_fold[0] == "| model | fold 1 | fold 2 | fold 10 |" and len(by_fold) == 2 + len(MODELS)
    (row,) = (line for line in by_fold if line.startswith("| base.after-4 |"))
    of_all = pd.read_csv(folder / "base.after-4" / "fold-all.seed-1" / "metrics.csv", dtype={"kept_layers": str}).iloc[
        0
    ]
    same = f"{of_all['accuracy']:.3f} ({of_all['kept_layers']})"
    assert row == f"| base.after-4 | {same} | {same} | 0.125 (0,2-4) |"
    (row,) = (line for line in by_fold if line.startswith("| cnn-melspectrogram |"))
    assert "(" not in row and row.split(" | ")[2] == ""


def test_several_trainings_are_pooled(results_dir, capsys, caplog):
    folder, parts = results_dir / "birds", ("fold-all.seed-1", "fold-all.seed-2")
    for model in MODELS:
        (folder / model / PART).rename(folder / model / parts[0])
        shutil.copytree(folder / model / parts[0], folder / model / parts[1])
        for seed in (1, 2):
            shutil.copytree(folder / model / parts[0], folder / model / f"fold-1.seed-{seed}")
    shutil.rmtree(folder / "cnn-melspectrogram" / parts[1])
    label_ids, groups = np.arange(N_CLIPS) % 5, [f"g{i // 3}" for i in range(N_CLIPS)]
    again = np.where(np.arange(N_CLIPS) < 50, label_ids, (label_ids + 1) % 5)
    for name in (parts[1], "fold-1.seed-2"):
        shutil.rmtree(folder / "base.after-4" / name)
        values = {"n_layers": 4, "kept_layers": "0,2-4"}
        write_result(results_dir, f"birds/base.after-4/{name}", again, label_ids, groups, **values)
    words = ["--results_dir", str(results_dir), "--name", "birds", "--model", "base"]
    assert ways_table.main([*words, "--part", *parts]) == 0
    assert "cnn-melspectrogram is left out: it has no result fold-all.seed-2" in caplog.text
    table = pd.read_csv(folder / "ways.csv", index_col="model")
    assert set(table.index) == {*MODELS} - {"cnn-melspectrogram"}
    first = pd.read_parquet(folder / "base.after-4" / parts[0] / "predictions.parquet")["predicted_id"].to_numpy()
    whole = pd.read_parquet(folder / "base" / parts[0] / "predictions.parquet")["predicted_id"].to_numpy()
    pooled = (np.tile(label_ids, 2), np.concatenate([first, again]), np.array(groups * 2))
    row = table.loc["base.after-4"]
    assert row["accuracy"] == pytest.approx((pooled[0] == pooled[1]).mean(), abs=1e-6)
    low, high = intervals.score_intervals(*pooled)["accuracy"]
    np.testing.assert_allclose(row[["accuracy_low", "accuracy_high"]].tolist(), [low, high], atol=1e-6)
    difference = intervals.paired_difference(*pooled[:2], np.tile(whole, 2), pooled[2])["accuracy"]
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(difference, abs=1e-5)
    by_size = pd.read_csv(folder / "ways_by_size.csv")
    assert (by_size["n_clips"] == 2 * N_CLIPS).all() and (by_size["n_groups"] == N_CLIPS // 3).all()
    by_fold = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert by_fold[0] == "| model | fold 1 |" and "| base.after-4 | 0.350 (x), 0.833 (0,2-4) |" in by_fold
    assert "| base | 0.817, 0.817 (x) |" in by_fold
    shutil.rmtree(folder / "base" / parts[1])
    assert ways_table.main([*words, "--part", *parts]) == 3
    assert "has no result birds/base/fold-all.seed-2: score the whole model by stage 03" in caplog.text


def test_the_whole_model_of_a_study(results_dir):
    whole = "base.blocks-0-5"
    (results_dir / "birds" / "base").rename(results_dir / "birds" / whole)
    latencies = results_dir / "birds" / "latency.csv"
    latencies.write_text(latencies.read_text().replace("base,", f"{whole},"))
    assert run(results_dir, "--model", whole) == 0
    ways = pd.read_csv(results_dir / "birds" / "ways.csv", index_col="model")["way"]
    assert ways.drop(whole).to_dict() == {name: way for name, (way, *_) in MODELS.items() if name != "base"}
    assert ways[whole] == "whole"


def of_figure(model, way, n_layers, latency_ms, accuracy, doubt="no"):
    ends = {"accuracy_low": accuracy - 0.04, "accuracy_high": accuracy + 0.04}
    row = {"model": model, "way": way, "n_layers": n_layers, "latency_ms": latency_ms, "accuracy": accuracy}
    return row | ends | {"latency_doubt": doubt}


@pytest.fixture
def drawn(monkeypatch):
    """Return a function that draws a table of models, and returns the panels by their title."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda fig, path: figures.append(fig))

    def draw(rows, xlabel="latency"):
        ways_table.draw(pd.DataFrame([of_figure("base", "whole", 6, 130.0, 0.59), *rows]), None, "birds", xlabel)
        return {axes.get_legend().get_title().get_text(): axes for axes in figures[-1].axes}

    return draw


def test_other_networks_are_not_sizes_of_one_model(drawn):
    rows = [of_figure(f"cnn-{name}", "CNN", 0, ms, 0.4) for name, ms in (("melspectrogram", 19.0), ("waveform", 25.0))]
    rows += [of_figure(name, "other encoder", 4, ms, 0.5) for name, ms in (("small", 60.0), ("tiny", 40.0))]
    panel = drawn(rows)["Other models"]
    found = {label: line.get_ydata().tolist() for label, line in lines(panel).items()}
    cnns = {f"CNN alone: cnn-{name}": [0.4] for name in ("melspectrogram", "waveform")}
    assert no_overlap(panel.figure)
    assert found == {f"other encoder: {name}": [0.5] for name in ("small", "tiny")} | cnns


def test_every_family_has_a_panel_with_the_whole_model(drawn):
    rows = [of_figure(f"base.{number}", way, 3, 70.0, 0.3) for number, way in enumerate(ways_table.WAYS) if number]
    panels = drawn(rows)
    assert [*panels] == [*ways_table.FAMILIES]
    assert {ways_table.WHOLE, *(way for ways in ways_table.FAMILIES.values() for way in ways)} == {*ways_table.WAYS}
    for axes, ways in zip(panels.values(), ways_table.FAMILIES.values(), strict=True):
        assert [*lines(axes)] == [*ways.values()]
        assert [130.0] in [list(line.get_xdata()) for line in axes.lines]
        assert (axes.get_xlim(), axes.get_ylim()) == (
            panels["Other models"].get_xlim(),
            panels["Other models"].get_ylim(),
        )


def test_no_point_of_a_crowded_figure_is_hidden(drawn):
    ways = ("pruned before", "pruned before, taught", "only the head trained")
    rows = [
        of_figure(f"base.{way}.{n}", way, n, 10.0 + 21 * n, 0.3 + 0.05 * n + 0.004 * number, "load" * (n == 3) or "no")
        for number, way in enumerate(ways)
        for n in range(1, 6)
    ]
    axes = drawn(rows)["First blocks only"]
    to_points = 72 / axes.figure.dpi
    points = np.concatenate([line.get_xydata() for line in lines(axes).values()])
    points = axes.transData.transform(points) * to_points
    apart = np.linalg.norm(points[:, None] - points, axis=2) + 99 * np.eye(len(points))
    assert len(points) == 15 and apart.min() > 2.5
    assert [text.get_text() for text in axes.texts] == ["6", *"12345" * 3]
    places = [axes.transData.transform(text.xy) * to_points + text.get_position() for text in axes.texts]
    assert np.linalg.norm(np.array(places)[:, None] - points, axis=2).min() > 3, "no number is on a point"
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert len(hollow) == 3 and "Hollow: a doubtful latency" in axes.figure.get_suptitle()


def test_the_axis_names_what_was_timed():
    latencies = pd.DataFrame({"device": ["AMD EPYC"] * 2, "n_threads": [1, 1]})
    whole = pd.Series({"latency_ms_median": 80.0, "real_time_factor": 0.016})
    label = ways_table.latency_label(latencies, whole)
    assert label == "latency of one clip of 5 s (ms; AMD EPYC, 1 thread, logarithmic axis)"
    label = ways_table.latency_label(latencies[[]], whole * np.nan)
    assert label == "latency of one clip (ms; logarithmic axis)"


def test_names_of_ways_are_names_of_runs():
    for model in MODELS:
        parsed = names.parse(f"birds/{model}/{PART}")
        assert parsed is not None and parsed.full_model == model


def test_a_result_whose_files_do_not_belong_together_is_refused(results_dir, caplog):
    metrics = results_dir / "birds" / "base.after-4" / PART / "metrics.csv"
    pd.read_csv(metrics).assign(n_clips=59).to_csv(metrics, index=False)
    assert run(results_dir, "--model", "base") == 3
    assert f"base.after-4/{PART}/predictions.parquet has 60 clips, metrics.csv has 59; run 03_" in caplog.text


def test_a_missing_model_is_named(results_dir, caplog):
    assert run(results_dir, "--model", "other") == 3
    assert "no result birds/other/fold-1.seed-1: score the whole model by stage 03\n" in caplog.text
    words = ["--results_dir", str(results_dir), "--name", "birds", "--model", "base"]
    assert ways_table.main([*words, "--part", "fold-1"]) == 3
    assert "no result birds/base/fold-1: score the whole model by stage 03; this model has fold-1.seed-1" in caplog.text
    (results_dir / "birds" / "latency.csv").write_text("model,latency_ms,latency_doubt\nbase,1,no\n")
    assert run(results_dir, "--model", "base") == 3
    assert "has no latency of" in caplog.text
    (results_dir / "birds" / "latency.csv").unlink()
    assert run(results_dir, "--model", "base") == 3
    assert "latency.csv: no such file; measure the latencies by python -m experiments.latencies" in caplog.text


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("base.pruned", "other way"),
        ("base.onnx.int8", "other way"),
        ("base.after-2.taught", "other way"),
        ("base.after-2.frozen", "other way"),
        ("base.after-2.healed", "other way"),
        ("base.blocks-0-1.ffn-50.healed", "other way"),
        ("base.blocks-0-1.healed", "other way"),
        ("small.pruned", "other encoder"),
    ],
)
def test_a_model_that_was_made_in_another_way_has_no_way_of_the_study(model, way):
    whole, name = (names.parse(f"birds/{text}/seed-1") for text in ("base", model))
    assert ways_table.way_of(name, whole) == way and way in ways_table.WAYS


def test_a_model_with_several_labels_a_clip_is_refused(results_dir, caplog, monkeypatch):
    read = comparison.read_scored
    monkeypatch.setattr(comparison, "read_scored", lambda folder: replace(read(folder), answers=1))
    assert run(results_dir, "--model", "base") == 3
    assert "gives a clip several labels or none; the tables of a study are of one label a clip" in caplog.text


def test_a_training_that_is_named_twice_is_refused(results_dir, caplog):
    assert run(results_dir, PART, "--model", "base") == 2
    assert "--part names fold-1.seed-1 twice" in caplog.text


def test_a_whole_model_alone_is_refused(results_dir, caplog):
    for model in set(MODELS) - {"base"}:
        shutil.rmtree(results_dir / "birds" / model)
    assert run(results_dir, "--model", "base") == 3
    assert "has no model but base with results of fold-1.seed-1" in caplog.text
