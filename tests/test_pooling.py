"""03 --pool: the pooled folds are scored as if they were one result, and what cannot be pooled is refused."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from experiments import figures
from tests.results import write_result
from tests.stages import load_stage
from utils.core.files import sha256_of_file
from utils.scores import evaluation, intervals, predictions, summary

stage = load_stage("03_model_validation")
pytestmark = pytest.mark.usefixtures("blank_figures")

LABELS = ["Crow", "Rook", "Wren"]
HEARD = {"n_clips": 24, "same_species": 1, "other_species": 2, "unknown": 3}


def write_fold(results_dir, fold, name=None, n_folds=3, data="d1", **values):
    """Leave the result of a fold of 24 clips in 8 groups; return its folder and what the model says."""
    rng = np.random.default_rng(fold)
    groups = np.repeat([f"g{number}" for number in 8 * rng.permutation(8) + fold], 3).tolist()
    label_ids = np.arange(24) // 3 % len(LABELS)
    logits = (rng.normal(size=(24, 3)) + 1.5 * np.eye(3)[label_ids]).astype(np.float32)
    name = name or f"birds/w2v.blocks-0-3/fold-{fold}.seed-42"
    numbers = {"latency_ms_median": 10 * fold, "macro_auroc": fold / 10, "macro_average_precision": fold / 5}
    numbers |= {"data_sha256": f"{data}/fold-{fold}-of-{n_folds}", "split": "test", "model_dir": f"runs/{fold}"}
    numbers["n_recordings_trained_on"] = 0
    write_result(
        *(results_dir, name, logits.argmax(axis=1), label_ids, groups),
        **{"logits": logits, "labels": LABELS, "heard": HEARD, "n_layers": 4, **numbers, **values},
    )
    clip_ids = [f"{group}:{i}" for i, group in enumerate(groups)]
    return results_dir / name, pd.DataFrame({"clip_id": clip_ids, "group": groups, "label_id": label_ids}), logits


@pytest.fixture
def folds(tmp_path):
    return [write_fold(tmp_path / "validation_results", fold) for fold in (1, 2, 3)]


def pool(folders, *more):
    return stage.main(["--pool", *map(str, folders), *map(str, more)])


def test_the_pooled_result_is_that_of_all_clips_together(folds, tmp_path, caplog):
    assert pool([folds[i][0] for i in (2, 0, 1)]) == 0
    folder = tmp_path / "validation_results/birds/w2v.blocks-0-3/fold-all.seed-42"

    table = pd.concat([table for _, table, _ in folds], ignore_index=True)
    logits = np.concatenate([logits for _, _, logits in folds])
    order = np.argsort(table["clip_id"], kind="stable")
    table, logits = table.iloc[order], logits[order]
    written, labels = predictions.read_predictions(folder)
    assert labels == LABELS and written["clip_id"].tolist() == sorted(table["clip_id"]) and len(written) == 72
    for column in ("label_id", "group"):
        assert written[column].tolist() == table[column].tolist()
    np.testing.assert_array_equal(predictions.read_logits(folder), logits)
    assert predictions.read_recording_ids(folder) == table["group"].tolist()

    label_ids, predicted_ids = table["label_id"].to_numpy(), logits.argmax(axis=1)
    row = summary.read_metrics(folder / "metrics.csv").iloc[0]
    assert row["accuracy"] == pytest.approx((label_ids == predicted_ids).mean(), abs=1e-6)
    assert row["macro_f1"] == pytest.approx(f1_score(label_ids, predicted_ids, average="macro"), abs=1e-6)
    for name, ends in intervals.score_intervals(label_ids, predicted_ids, table["group"].to_numpy()).items():
        np.testing.assert_allclose([row[f"{name}_low"], row[f"{name}_high"]], ends, atol=1e-6)
    assert row["expected_calibration_error"] == pytest.approx(
        evaluation.expected_calibration_error(evaluation.calibration(label_ids, logits)), abs=1e-6
    )
    assert (row["n_clips"], row["n_recordings"], row["n_classes"], row["n_groups"]) == (72, 24, 3, 24)
    assert (row["macro_auroc"], row["macro_average_precision"]) == pytest.approx((0.2, 0.4)), "means over the folds"
    assert (row["latency_ms_median"], row["n_layers"]) == (20, 4)
    assert (row["split"], row["data_sha256"], row["seed"]) == ("test", "d1/all-3-folds", 1)
    assert (row["model_dir"], row["latency_doubt"]) == ("runs/1 | runs/2 | runs/3", "no")
    assert row["model_name"] == "birds/w2v.blocks-0-3/fold-all.seed-42"
    record = json.loads((folder / "run.json").read_text())
    assert record["metrics"]["heard_in_train"] == {name: 3 * n for name, n in HEARD.items()}
    order = "3 folds: " + ", ".join(f"birds/w2v.blocks-0-3/fold-{k}.seed-42" for k in (1, 2, 3))
    assert order in caplog.text, "in the order of the folds, not of the command line"
    names = set(pd.read_csv(folder.parents[2] / "summary.csv")["model_name"])
    assert names == {f"birds/w2v.blocks-0-3/fold-{k}.seed-42" for k in (1, 2, 3, "all")}


def test_the_order_of_the_folders_changes_nothing(folds, tmp_path, caplog):
    folders = [folder for folder, _, _ in folds]
    assert pool(folders, "--output_dir", tmp_path / "one") == pool(folders[::-1], "--output_dir", tmp_path / "two") == 0
    for name in ("predictions.parquet", "confusion_matrix.csv", "classification_report.csv"):
        assert sha256_of_file(tmp_path / "one" / name) == sha256_of_file(tmp_path / "two" / name)
    assert pool(folders[::-1], "--output_dir", tmp_path / "one") == 0
    assert "nothing to do" in caplog.text


def test_the_same_pattern_of_names_again_does_nothing(folds, caplog):
    folders = [folder for folder, _, _ in folds]
    assert pool(folders) == 0
    pooled = folders[0].with_name("fold-all.seed-42")
    assert pool([*folders, pooled], "--seed", "7") == 0, "a seed changes nothing"
    assert "nothing to do" in caplog.text
    assert pool([pooled]) == 3
    assert f"{pooled} is pooled already: leave it out; --pool takes the single folds" in caplog.text


def test_a_fold_is_not_overwritten_by_the_pool(folds, caplog):
    folders = [folder for folder, _, _ in folds]
    assert pool(folders, "--output_dir", folders[0], "--overwrite") == 3
    assert "fold 1 of 3 is missing" in caplog.text


def test_what_differs_between_the_models_is_told(tmp_path, caplog):
    small = {"n_parameters": 12345, "gmacs_per_clip": 0.0021, "gmacs_front_end": 0.0021}
    told = [{"device": "a", "latency_doubt": "other work"}, {"device": "b", "latency_doubt": "no"}, {"device": "a"}]
    for fold, values in enumerate(told, start=1):
        values |= small | {"seed": fold, "kept_layers": f"0-{fold}", "n_recordings_trained_on": fold}
        write_fold(tmp_path, fold, f"fold-{fold}", **values)
    assert pool([tmp_path / f"fold-{fold}" for fold in (1, 2, 3)], "--output_dir", tmp_path / "all") == 0
    row = summary.read_metrics(tmp_path / "all" / "metrics.csv").iloc[0]
    assert (row["device"], row["kept_layers"], row["latency_doubt"]) == ("a | b", "0-1 | 0-2 | 0-3", "other work")
    assert row["n_recordings_trained_on"] == 6 and np.isnan(row["seed"])
    assert "3 of 3 folds are scored by models that were trained on their recordings" in caplog.text
    assert "the folds are of different models: kept_layers differ" in caplog.text
    assert "4 layers, 0.0123 M parameters, 0.0021 GMACs per clip (front end 0.0021)" in caplog.text
    assert caplog.text.count(" 0.0123 ") == 5, "in the log line, and in the four rows of the summary"


REFUSED = {
    "not a fold": ({"data_sha256": "d1"}, "is not the result of a fold: score the model with 03_model_validation"),
    "all folds": ({"data_sha256": "d1/all-3-folds"}, "is pooled already: leave it out"),
    "other data": ({"data": "d2"}, "2 different data sets, splits or sets of classes"),
    "another number of folds": ({"n_folds": 4}, "2 different data sets, splits or sets of classes"),
    "another split": ({"split": "val"}, "2 different data sets, splits or sets of classes"),
    "other labels": ({"labels": ["Crow", "Rook", "Kite"]}, "2 different data sets, splits or sets of classes"),
    "a fold twice": (
        {"data_sha256": "d1/fold-1-of-3"},
        r"fold-1.seed-42 and .*fold-3.seed-42 are both of fold 1; give",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fold_that_does_not_belong_is_refused(case, tmp_path, caplog, capfd):
    values, message = REFUSED[case]
    folders = [write_fold(tmp_path / "validation_results", fold)[0] for fold in (1, 2)]
    folders += [write_fold(tmp_path / "validation_results", 3, **values)[0]]
    refused(folders, message, caplog, capfd)


def test_results_of_an_early_version_that_do_not_name_their_labels(tmp_path, caplog, capfd):
    for fold in (1, 2, 3):
        values = {"data_sha256": f"d1/fold-{fold}-of-3", "split": "test"}
        write_result(tmp_path / "results", f"birds/w2v/fold-{fold}.seed-1", [0, 1], [0, 1], "ab", **values)
    folders = sorted((tmp_path / "results" / "birds" / "w2v").iterdir())
    refused(folders, "fold-1.seed-1 does not name its labels; run 03_model_validation.py again", caplog, capfd)
    assert figures.main([str(folders[1])]) == 0
    assert f"left out: {folders[1] / predictions.NAME} does not name its labels; run 03_model" in caplog.text


def refused(folders, message, caplog, capfd, code=3):
    before = {path.name for path in folders[0].parent.iterdir()}
    assert pool(folders) == code
    assert re.search(message, caplog.text), caplog.text
    assert "Traceback" not in capfd.readouterr().err
    assert {path.name for path in folders[0].parent.iterdir()} == before


def test_a_fold_is_not_compared_with_all_folds(folds, caplog):
    assert pool([folder for folder, _, _ in folds]) == 0
    assert "WARNING" not in {record.levelname for record in caplog.records if record.name.endswith("pooling")}
    pooled = folds[0][0].with_name("fold-all.seed-42")
    assert stage.main(["--compare", str(folds[0][0]), str(pooled)]) == 3
    assert "data (data_sha256) d1/fold-1-of-3 and d1/all-3-folds;" in caplog.text and "(--pool)" in caplog.text


DAMAGED = {  # what replaces a column of predictions.parquet
    "no logits": ("logits", None, "logits cannot be read"),
    "no recordings": ("recording_id", None, "recording_id cannot be read"),
    "text": ("logits", ["a"] * 24, "not a table of numbers"),
    "other lengths": ("logits", [[0.0], *[[0.0, 1.0, 2.0]] * 23], "not a table of numbers"),
    "numbers that are not finite": ("logits", [[0.0, 1.0, float("nan")]] * 24, "not a table of finite numbers"),
    "fewer classes": ("logits", [[0.0, 1.0]] * 24, "its logits are not those of its predictions"),
    "logits of other clips": ("logits", [[0.0, 1.0, 2.0]] * 24, "its logits are not those of its predictions"),
    "clips of another fold": ("clip_id", "of fold 1", "clip g.* is in two folds"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_predictions_that_do_not_fit_are_refused(case, folds, caplog, capfd):
    name, values, message = DAMAGED[case]
    path = folds[1][0] / predictions.NAME
    table = pq.read_table(path)
    if values == "of fold 1":
        values = folds[0][1]["clip_id"].tolist()
    table = table.drop([name]) if values is None else table.set_column(table.schema.names.index(name), name, [values])
    pq.write_table(table, path)
    record = json.loads((folds[1][0] / "run.json").read_text())
    for output in record["outputs"]:
        if output["path"] == predictions.NAME:
            output |= {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (folds[1][0] / "run.json").write_text(json.dumps(record))
    assert pool([folder for folder, *_ in folds]) == 3
    assert re.search(message, caplog.text), caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_folds_that_are_missing_are_named(folds, caplog, capfd):
    refused([folds[1][0]], "fold 1, 3 of 3 is missing: give the results of all folds", caplog, capfd)


def test_clips_of_train_are_not_pooled(tmp_path, caplog, capfd):
    folders = [write_fold(tmp_path / "validation_results", fold, split="train")[0] for fold in (1, 2, 3)]
    refused(folders, "of train, where each clip is in several folds", caplog, capfd)


def test_what_is_no_result_is_refused(folds, tmp_path, caplog, capfd):
    (tmp_path / "validation_results/birds/w2v.blocks-0-3/fold-4.seed-42").mkdir()
    missing = tmp_path / "validation_results/birds/w2v.blocks-0-3/fold-5.seed-42"
    for folder in (missing.with_name("fold-4.seed-42"), missing):
        refused([folds[0][0], folds[1][0], folder], folder.name, caplog, capfd)


@pytest.mark.parametrize(
    "names", [("a", "b", "c"), ("birds/x/fold-1.seed-1", "birds/y/fold-2.seed-1", "birds/x/fold-3.seed-1")]
)
def test_folders_whose_names_do_not_tell_need_a_place(names, tmp_path, caplog):
    results_dir = tmp_path / "validation_results"
    folders = [write_fold(results_dir, fold, name)[0] for fold, name in enumerate(names, start=1)]
    assert pool(folders) == 2
    assert "--pool takes the folds of one model" in caplog.text and "give --output_dir" in caplog.text
    assert pool(folders, "--output_dir", results_dir / "pooled") == 0
    assert summary.read_metrics(results_dir / "pooled" / "metrics.csv").iloc[0]["n_clips"] == 72


@pytest.mark.parametrize("way", ["--pool", "--compare"])
@pytest.mark.parametrize("flag", [("--fold", "1"), ("--split", "val"), ("--data_dir", "x"), ("--review", "3")])
def test_flags_of_scoring_are_refused(folds, way, flag, capfd):
    assert stage.main([way, *(str(folder) for folder, *_ in folds), *flag]) == 2
    assert f"{flag[0]} is for scoring a model" in capfd.readouterr().err


@pytest.mark.parametrize("way", [["--pool", "x"], ["--model_dir", "x"]])
def test_a_margin_is_refused_where_nothing_is_compared(way, capfd):
    assert stage.main([*way, "--margin", "0.05"]) == 2
    assert "--margin is for --compare" in capfd.readouterr().err
