"""Stage 03 from end to end on a tiny model: what it writes, and every way to give it bad input."""

import argparse
import json
import logging
import re
import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as reference
import torch
from datasets import load_dataset

from experiments import figures
from tests.data import LABELS, write_annotated, write_processed
from tests.results import write_result
from tests.stages import load_stage
from utils.core import runs
from utils.core.errors import InputError
from utils.core.files import sha256_of_file
from utils.data import clips
from utils.figures import plots, review_page
from utils.models import encoders, latency
from utils.scores import comparison, evaluation, intervals, predictions, summary, verdicts

stage = load_stage("03_model_validation")
pytestmark = pytest.mark.usefixtures("blank_figures")

ARTIFACTS = {
    "metrics.csv",
    "classification_report.csv",
    "confusion_matrix.csv",
    "confusion_matrix.pdf",
    "confusion_matrix.png",
    "reliability.pdf",
    "reliability.png",
    "predictions.parquet",
    "run.json",
    "log.txt",
    ".lock",
}


@pytest.fixture(scope="module", autouse=True)
def few_repeats():
    """Time every model a few times only: no test looks at how long it took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MAX_PASSES", 1)
        yield


def write_run(
    run_dir, data_dir, labels=LABELS, clip_seconds=0.5, sample_rate_hz=16_000, keep=None, break_weights=False
):
    """Leave what stage 02 leaves; a model with random weights."""
    torch.manual_seed(0)
    loaded = encoders.tiny_model(list(labels), sample_rate_hz)
    model = loaded.model
    model.config.clip_seconds = clip_seconds
    model.config.data_sha256 = clips.data_input(data_dir).sha256
    if keep is not None:
        encoders.prune_model(model, keep)
    args = argparse.Namespace(output_dir=run_dir, overwrite=False, seed=0)
    with runs.open_run("02_finetuning", args, {"data_dir": clips.data_input(data_dir)}):
        encoders.save_model(loaded, run_dir / "model")
        if break_weights:  # as a training that ran away would leave them
            torch.nn.init.constant_(model.classifier.weight, float("nan"))
            model.save_pretrained(run_dir / "model")
    return run_dir


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "birds", data_dir)


@pytest.fixture(scope="module")
def result(tmp_path_factory, data_dir, run_dir):
    """Return the folder of one validation; tests only read it."""
    output_dir = tmp_path_factory.mktemp("results") / "birds-test"
    assert main(run_dir, data_dir, output_dir) == 0
    return output_dir


def main(run_dir, data_dir, output_dir, *more):
    arguments = ["--model_dir", run_dir, "--data_dir", data_dir, "--output_dir", output_dir, "--batch_size", 4]
    return stage.main([str(word) for word in (*arguments, "--device", "cpu", *more)])


def refused(capfd, run_dir, data_dir, tmp_path, *more):
    """Run the stage, check that it says no without a traceback, and return what it said."""
    output_dir = tmp_path / "results" / "refused"
    assert main(run_dir, data_dir, output_dir, *more) == 3
    text = capfd.readouterr().err
    assert "Traceback" not in text
    assert not (output_dir.parent / "summary.csv").exists()
    return text


# --------------------------------------------------------------------------------------------- the review page


def test_review_writes_the_worst_mistakes_of_each_label(data_dir, run_dir, result, tmp_path):
    assert main(run_dir, data_dir, tmp_path / "result", "--review", "2") == 0
    record = json.loads((tmp_path / "result" / "run.json").read_text())
    assert review_page.NAME in {output["path"] for output in record["outputs"]}
    (page,) = re.findall(
        r'<script type="application/json" id="page">(.*?)</script>', (tmp_path / "result/review.html").read_text()
    )
    table = clips.read_clips(data_dir, "test").table
    logits = predictions.read_logits(result).astype(float)
    powers = np.exp(logits)
    expected = []
    for label_id, label in enumerate(LABELS):
        wrong = [i for i in range(len(table)) if logits[i].argmax() == label_id != table["label_id"][i]]
        for i in sorted(wrong, key=lambda i: -powers[i, label_id] / powers[i].sum())[:2]:
            expected.append([label, table["source_path"][i], str(table["start_s"][i]), [table["label"][i]]])
    found = json.loads(page)["items"]
    assert expected and [[one["label"], one["file"], one["start"], one["named"]] for one in found] == expected
    assert {one["why"] for one in found} == {"mistake"} and {float(one["end"]) for one in found} <= {0.5, 1.0}


def test_a_label_that_a_clip_also_has_is_no_mistake_of_a_model_with_one_label(run_dir, tmp_path):
    data_dir = write_annotated(tmp_path / "data")
    assert main(run_dir, data_dir, tmp_path / "result", "--review", "99") == 0
    page = re.findall(
        r'<script type="application/json" id="page">(.*?)</script>', (tmp_path / "result/review.html").read_text()
    )
    found = json.loads(page[0])["items"]
    heard = clips.read_clips(data_dir, "test").without_silence()
    answers = predictions.read_predictions(tmp_path / "result")[0]["predicted_id"].to_numpy()
    wrong = (heard.targets[range(len(heard)), answers] == 0) & heard.is_known[range(len(heard)), answers]
    assert 0 < len(found) == wrong.sum() < (answers != heard.table["label_id"]).sum()
    labels_of = {(row.source_path, str(row.start_s)): list(row.labels) for row in heard.table.itertuples()}
    assert all(one["named"] == labels_of[one["file"], one["start"]] for one in found)


# ------------------------------------------------------------------------------------------- artifacts


def test_all_artifacts_are_written_and_recorded(result):
    assert {path.name for path in result.iterdir()} == ARTIFACTS
    record = json.loads((result / "run.json").read_text())
    assert (record["stage"], record["status"]) == ("03_model_validation", "complete")
    assert {output["path"] for output in record["outputs"]} == ARTIFACTS - {"run.json", "log.txt", ".lock"}
    assert {"cost_s", "prediction_s", "scores_s", "writing_s"} <= set(record["timings"])


def test_metrics_describe_the_model_and_the_data(result, run_dir, data_dir):
    rows = pd.read_csv(result / "metrics.csv")
    assert list(rows.columns) == list(summary.METRICS_COLUMNS)
    assert len(rows) == 1
    row = rows.iloc[0]
    model = encoders.load_model(run_dir, "cpu").model
    table = clips.read_clips(data_dir, "test").table
    expected = {
        "model_name": "birds-test",
        "model_dir": str(run_dir),
        "split": "test",
        "n_clips": len(table),
        "n_recordings": table["recording_id"].nunique(),
        "n_classes": 3,
        "n_layers": 4,
        "kept_layers": "0-3",
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "float32",
        "kind": "whole",
        "kept_together": "recording",
        "seed": 42,
        "data_sha256": clips.data_input(data_dir).sha256,
    }
    assert row[list(expected)].to_dict() == expected
    record = json.loads((result / "run.json").read_text())
    assert row["device"] == record["device"] != ""
    if record["git"]:
        assert row["git_commit"] == record["git"]["commit"]
    assert 0 < row["gmacs_front_end"] < row["gmacs_per_clip"]
    assert row["real_time_factor"] == pytest.approx(row["latency_ms_median"] / 1000 / 0.5, rel=1e-4)
    assert row["peak_memory_mb"] > 0
    assert row["throughput_clips_per_s"] > 0


def test_predictions_reloaded_give_the_metrics(result, run_dir, data_dir):
    row = pd.read_csv(result / "metrics.csv").iloc[0]
    predictions = pd.read_parquet(result / "predictions.parquet")
    assert list(predictions.columns) == ["clip_id", "recording_id", "label_id", "predicted_id", "logits", "group"]
    test_clips = clips.read_clips(data_dir, "test")
    for column in ("clip_id", "recording_id", "label_id", "group"):
        assert list(predictions[column]) == list(test_clips.table[column])

    loaded = encoders.load_model(run_dir, "cpu")
    logits = np.stack(predictions["logits"])
    with torch.no_grad():  # one clip at a time: no clip may depend on its batch
        for i in range(len(test_clips)):
            inputs = loaded.prepare([test_clips.audio(i)], 16_000)
            np.testing.assert_allclose(loaded.model(**inputs).logits[0].numpy(), logits[i], atol=1e-5)

    assert list(predictions["predicted_id"]) == list(logits.argmax(axis=1))
    scores = evaluation.score_all(predictions, logits)
    assert row[list(scores)].to_dict() == pytest.approx(scores, rel=1e-5)
    assert row["accuracy"] == pytest.approx(
        reference.accuracy_score(predictions["label_id"], predictions["predicted_id"]), rel=1e-5
    )
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_predictions_are_read_with_no_code_of_ours(result, tmp_path):
    rows = load_dataset(
        "parquet", data_files=str(result / "predictions.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert len(rows[0]["logits"]) == 3


def test_report_and_confusion_matrix_agree_with_the_predictions(result):
    predictions = pd.read_parquet(result / "predictions.parquet")
    report = pd.read_csv(result / "classification_report.csv")
    assert list(report.columns) == ["label_id", "label", "precision", "recall", "f1", "support"]
    confusion = pd.read_csv(result / "confusion_matrix.csv", index_col="label")
    assert list(confusion.index) == list(confusion.columns) == list(report["label"]) == LABELS
    np.testing.assert_array_equal(
        confusion, reference.confusion_matrix(predictions["label_id"], predictions["predicted_id"], labels=range(3))
    )
    row = pd.read_csv(result / "metrics.csv").iloc[0]
    assert report["f1"][report["support"] > 0].mean() == pytest.approx(row["macro_f1"], rel=1e-5)


@pytest.mark.drawn
def test_scores_and_figures_are_the_same_every_time(result, run_dir, data_dir, tmp_path):
    again = tmp_path / result.name  # the figures name the result
    assert main(run_dir, data_dir, again) == 0
    for name in ARTIFACTS - {"metrics.csv", "run.json", "log.txt", ".lock"}:
        assert (again / name).read_bytes() == (result / name).read_bytes(), name
    first, second = (pd.read_csv(folder / "metrics.csv").iloc[0] for folder in (result, again))
    scores = [name for name in summary.METRICS_COLUMNS if "accuracy" in name or "f1" in name or "macs" in name]
    assert first[scores].equals(second[scores])


def test_log_tells_the_scores(result):
    text = (result / "log.txt").read_text()
    row = pd.read_csv(result / "metrics.csv").iloc[0]
    expected = (
        f"accuracy  {row['accuracy']:.3f}  (95 % interval {row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}: "
        "this model on other recordings)"
    )
    assert expected in text
    assert "clips of test, split by recording; 3 classes, chance 0.333, majority 0.333 (test)" in text
    assert "test: 9 groups are few" in text
    assert "test, split by recording: 18 clips of 9 recordings in 9 groups, 3 classes" in text


@pytest.mark.parametrize(("keep", "text"), [([0, 2, 3], "0,2-3"), ([], "none")])
def test_a_pruned_model_says_which_layers_it_kept(data_dir, tmp_path, keep, text):
    run_dir = write_run(tmp_path / "pruned", data_dir, keep=keep)
    assert main(run_dir, data_dir, tmp_path / "results" / "pruned") == 0
    row = summary.read_metrics(tmp_path / "results" / "pruned" / "metrics.csv").iloc[0]
    assert (row["kept_layers"], row["n_layers"]) == (text, len(keep))


def test_model_folder_itself_and_a_copy_without_its_run_are_taken(result, run_dir, data_dir, tmp_path):
    shutil.copytree(run_dir / "model", tmp_path / "plain")
    for number, folder in enumerate((run_dir / "model", tmp_path / "plain")):
        assert main(folder, data_dir, tmp_path / "results" / str(number), "--max_clips_per_class", 2) == 0
        assert pd.read_csv(tmp_path / "results" / str(number) / "metrics.csv")["n_clips"][0] == 6


def test_output_dir_is_by_default_the_name_of_the_run(run_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (run_dir, run_dir / "model"):
        assert stage.main(["--model_dir", str(folder), "--data_dir", str(data_dir), "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "validation_results").iterdir()} == {
        "birds",
        "summary.csv",
        "summary.png",
        ".lock",
    }


@pytest.mark.drawn
def test_split_without_a_class_is_scored_and_the_class_is_named(tmp_path, caplog):
    data_dir = write_processed(tmp_path / "data", recordings_per_class={"train": 2, "test": 2})
    run_dir = write_run(tmp_path / "run", data_dir)
    without_crow = tmp_path / "without"
    rows = [row for part in (0, 1) for row in pd.read_parquet(data_dir / clips.part_name(part)).to_dict("records")]
    rows = [row for row in rows if row["label"] != "Crow"]
    args = argparse.Namespace(output_dir=without_crow, overwrite=False, seed=0)
    with runs.open_run("01_data_processing", args, {}):
        clips.write_part(without_crow / clips.part_name(0), rows, 16_000, 0.5)
        clips.write_labels(without_crow, LABELS)
    assert main(run_dir, without_crow, tmp_path / "results" / "r") == 0
    assert "1 of 3 labels have no clip here and no score: Crow" in caplog.text
    # The model was trained on the other data set, where all these clips were too.
    assert "some of its training clips may be among the clips" in caplog.text
    assert np.isfinite(pd.read_csv(tmp_path / "results" / "r" / "metrics.csv")["macro_f1"][0])


@pytest.mark.drawn
def test_one_group_gives_scores_without_intervals(tmp_path, caplog):
    data_dir = write_processed(tmp_path / "data", labels=["a", "b"], recordings_per_class={"test": 1})
    rows = [row for part in (0, 1) for row in pd.read_parquet(data_dir / clips.part_name(part)).to_dict("records")]
    one_group = tmp_path / "one"
    args = argparse.Namespace(output_dir=one_group, overwrite=False, seed=0)
    with runs.open_run("01_data_processing", args, {}):
        clips.write_part(one_group / clips.part_name(0), [{**row, "group": "g"} for row in rows], 16_000, 0.5)
        clips.write_labels(one_group, ["a", "b"])
    run_dir = write_run(tmp_path / "run", one_group, labels=["a", "b"])
    assert main(run_dir, one_group, tmp_path / "results" / "r") == 0
    assert "one group" in caplog.text
    row = summary.read_metrics(tmp_path / "results" / "r" / "metrics.csv").iloc[0]
    assert np.isnan([row["accuracy_low"], row["macro_f1_high"]]).all()
    assert json.loads((tmp_path / "results" / "r" / "run.json").read_text())["metrics"]["accuracy_low"] is None
    assert ",nan," in (tmp_path / "results" / "summary.csv").read_text()


# -------------------------------------------------------------------------------------- existing output


@pytest.mark.drawn
def test_figures_are_drawn_again_from_what_is_left(run_dir, data_dir, tmp_path, capsys):
    results_dir = tmp_path / "validation_results"
    output_dir = results_dir / "birds" / "w2v" / "seed-1"
    assert main(run_dir, data_dir, output_dir) == 0
    assert main(run_dir, data_dir, results_dir / "other") == 0
    compared = ["--compare", str(output_dir), str(results_dir / "other")]
    assert stage.main(compared) == 0
    drawn = {path: path.read_bytes() for suffix in ("pdf", "png") for path in results_dir.rglob(f"*.{suffix}")}
    comparison_dir = results_dir / "comparison-birds.w2v.seed-1-other"
    assert {output_dir / "reliability.png", comparison_dir / "comparison.png", results_dir / "summary.png"} <= set(
        drawn
    )
    for path in drawn:
        path.unlink()
    assert main(run_dir, data_dir, output_dir) == 0 and stage.main(compared) == 0, "no figure is missed"
    assert "nothing to do" in capsys.readouterr().err
    (output_dir / "confusion_matrix.csv").unlink()  # as of the results that came with the code
    assert figures.main([str(results_dir)]) == 0
    assert {path: path.read_bytes() for path in drawn} == drawn


def test_existing_output_is_skipped_refused_or_replaced(run_dir, data_dir, tmp_path, capfd):
    output_dir = tmp_path / "results" / "birds"
    assert main(run_dir, data_dir, output_dir) == 0
    started = json.loads((output_dir / "run.json").read_text())["started_at"]
    (output_dir.parent / "summary.csv").unlink()
    assert main(run_dir, data_dir, output_dir) == 0
    assert "nothing to do" in capfd.readouterr().err
    assert json.loads((output_dir / "run.json").read_text())["started_at"] == started
    assert (output_dir.parent / "summary.csv").is_file()  # as after a kill between the two

    assert main(run_dir, data_dir, output_dir, "--split", "val") == 4
    assert "--split test, now it is val" in capfd.readouterr().err
    assert main(run_dir, data_dir, output_dir, "--split", "val", "--overwrite") == 0
    rows = pd.read_csv(output_dir.parent / "summary.csv")
    assert rows["split"].to_list() == ["val"]


@pytest.mark.drawn
def test_summary_is_rebuilt_from_the_folders(run_dir, data_dir, tmp_path):
    results_dir = tmp_path / "results"
    for name, split in (("second", "val"), ("first", "test")):
        assert main(run_dir, data_dir, results_dir / name, "--split", split) == 0
    assert summary.read_metrics(results_dir / "summary.csv")["model_name"].to_list() == ["first", "second"]
    shutil.rmtree(results_dir / "second")
    assert main(run_dir, data_dir, results_dir / "first") == 0
    assert summary.read_metrics(results_dir / "summary.csv")["model_name"].to_list() == ["first"]
    assert (results_dir / "summary.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------- bad inputs


def test_other_labels_are_refused_with_the_fix(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, labels=["Blackbird", "Crow", "Robin", "Wren"])
    text = refused(capfd, run_dir, data_dir, tmp_path)
    assert f"labels differ: the model has 4, {data_dir} has 3" in text
    assert "run 02_finetuning.py on this data" in text


def test_another_order_of_labels_is_refused(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, labels=LABELS[::-1])
    assert "another order" in refused(capfd, run_dir, data_dir, tmp_path)


def test_another_sample_rate_is_refused_with_the_fix(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, sample_rate_hz=32_000)
    text = refused(capfd, run_dir, data_dir, tmp_path)
    assert "the model expects 32000 Hz" in text
    assert "--sample_rate 32000" in text


def test_another_clip_length_is_refused_with_the_fix(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, clip_seconds=5.0)
    text = refused(capfd, run_dir, data_dir, tmp_path)
    assert "trained on 5 s" in text
    assert "--clip_seconds 5" in text


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "it is damaged"),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "was changed or is damaged"),
    ],
)
def test_harmed_part_is_refused(run_dir, data_dir, tmp_path, capfd, harm, words):
    harmed = tmp_path / "data"
    shutil.copytree(data_dir, harmed)
    harm(harmed / clips.part_name(1))
    text = refused(capfd, run_dir, harmed, tmp_path)
    assert f"{harmed / clips.part_name(1)}" in text
    assert words in text
    assert "01_data_processing.py again" in text


def test_no_such_folders_are_refused(run_dir, data_dir, tmp_path, capfd):
    assert "no such folder" in refused(capfd, tmp_path / "none", data_dir, tmp_path)
    assert "no such folder" in refused(capfd, run_dir, tmp_path / "none", tmp_path)


def test_split_without_clips_is_refused(tmp_path, capfd):
    data_dir = write_processed(tmp_path / "data", recordings_per_class={"train": 1})
    run_dir = write_run(tmp_path / "run", data_dir)
    text = refused(capfd, run_dir, data_dir, tmp_path)
    assert "no clips of the split 'test'" in text
    assert "'train': 6" in text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_half_written_model_is_refused(run_dir, data_dir, tmp_path, capfd, name):
    half = tmp_path / "half"
    shutil.copytree(run_dir / "model", half)
    (half / name).unlink()
    assert str(half) in refused(capfd, half, data_dir, tmp_path)


def test_run_that_is_not_complete_is_refused(run_dir, data_dir, tmp_path, capfd):
    unfinished = tmp_path / "run"
    shutil.copytree(run_dir, unfinished)
    record = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert "'interrupted'" in refused(capfd, unfinished, data_dir, tmp_path)


def test_model_that_says_nan_is_refused(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, break_weights=True)
    text = refused(capfd, run_dir, data_dir, tmp_path)
    assert "NaN or infinite for 18 of 18 clips (first: Blackbird/test0:0)" in text
    record = json.loads((tmp_path / "results" / "refused" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 3)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model_dir", "m", "--split", "all"],
        ["--model_dir", "m", "--batch_size", "0"],
        ["--model_dir", "m", "--max_clips_per_class", "-1"],
        ["--model_dir", "m", "--batch", "4"],
    ],
)
def test_usage_errors(words, capfd):
    assert stage.main(words) == 2
    assert "; see " in (text := capfd.readouterr().err) and text.endswith("--help\n")


def test_help_shows_the_command_and_every_default(capfd):
    assert stage.main(["--help"]) == 0
    text = capfd.readouterr().out
    assert "python 03_model_validation.py --model_dir" in text
    assert "validation_results/<name of the model's run>" in text


# ---------------------------------------------------------------------------------------------- summary


@pytest.fixture
def results_dir(result, tmp_path):
    shutil.copytree(result, tmp_path / "good")
    return tmp_path


def spoil(folder, **changes):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **changes}))


def test_summary_leaves_out_what_is_no_whole_result(results_dir, caplog):
    for name in ("altered", "failed", "running", "no_json", "other_stage", "training"):
        shutil.copytree(results_dir / "good", results_dir / name)
    (results_dir / "altered" / "metrics.csv").write_text("accuracy\n1.0\n")
    spoil(results_dir / "failed", status="failed")
    spoil(results_dir / "running", status="running")
    (results_dir / "no_json" / "run.json").write_text("{")
    spoil(results_dir / "other_stage", outputs=[])
    spoil(results_dir / "training", stage="02_finetuning", status="failed")
    (results_dir / "plain_folder").mkdir()
    with caplog.at_level(logging.WARNING):
        summary.rebuild_summary(results_dir)
    pd.testing.assert_frame_equal(
        summary.read_metrics(results_dir / "summary.csv"), summary.read_metrics(results_dir / "good" / "metrics.csv")
    )
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3
    for name in ("altered", "failed", "no_json"):
        assert any(str(results_dir / name) in text for text in warnings)


@pytest.mark.drawn
def test_rebuilding_twice_changes_nothing(results_dir):
    summary.rebuild_summary(results_dir)
    first = {name: (results_dir / name).read_bytes() for name in ("summary.csv", "summary.png")}
    summary.rebuild_summary(results_dir)
    assert first == {name: (results_dir / name).read_bytes() for name in first}


def test_summary_of_nothing_is_not_written(tmp_path):
    summary.rebuild_summary(tmp_path)
    assert not (tmp_path / "summary.csv").exists()


def test_a_users_own_summary_is_left_alone(run_dir, data_dir, tmp_path, capfd):
    (tmp_path / "summary.csv").write_text("year,birds\n2020,7\n")
    assert main(run_dir, data_dir, tmp_path / "result") == 4
    assert "is not a summary of validation results" in capfd.readouterr().err
    assert (tmp_path / "summary.csv").read_text() == "year,birds\n2020,7\n"


def test_text_that_looks_like_a_missing_value_stays_text(results_dir):
    rows = summary.read_metrics(results_dir / "good" / "metrics.csv")
    rows = rows.assign(model_name="NA", kept_layers="3", git_commit="", accuracy_low=np.nan)
    summary.write_metrics(results_dir / "metrics.csv", rows)
    back = summary.read_metrics(results_dir / "metrics.csv")
    pd.testing.assert_frame_equal(back, rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("model_name\nx\n", "no column model_dir"),
        (",".join(summary.METRICS_COLUMNS) + "\n", "no row"),
        (
            ",".join(summary.METRICS_COLUMNS) + "\n" + "x," * (len(summary.METRICS_COLUMNS) - 1) + "x\n",
            "is not a number",
        ),
    ],
)
def test_metrics_of_another_form_are_refused(tmp_path, text, words):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        summary.read_metrics(tmp_path / "metrics.csv")


def test_results_of_an_earlier_version_are_read_without_their_kind(results_dir):
    rows = pd.read_csv(results_dir / "good" / "metrics.csv")
    rows.drop(columns=list(summary.DEFAULTS)).to_csv(results_dir / "earlier.csv", index=False)
    row = summary.read_metrics(results_dir / "earlier.csv").iloc[0]
    assert (row["kind"], row["kept_together"]) == ("not noted", "an unknown unit")


def test_summary_table_says_what_the_csv_says(results_dir):
    table = summary.summary_table(summary.rebuild_summary(results_dir))
    row = summary.read_metrics(results_dir / "summary.csv").iloc[0]
    for name in ("accuracy", "macro_f1"):
        assert f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" in table
    assert row["model_name"] in table and row["kept_layers"] in table
    assert len(table.splitlines()) == 2


# ---------------------------------------------------------------------------------------- comparisons


@pytest.fixture(scope="module")
def two_results(tmp_path_factory, data_dir):
    """Return the folders of two models, the second one pruned, scored on the same clips."""
    folder = tmp_path_factory.mktemp("compared")
    for name, keep in (("whole", None), ("half", [0, 1])):
        run_dir = write_run(folder / "runs" / name, data_dir, keep=keep)
        assert main(run_dir, data_dir, folder / "results" / name) == 0
    return [folder / "results" / name for name in ("whole", "half")]


def compare(folders, *more):
    return stage.main([str(word) for word in ("--compare", *folders, *more)])


@pytest.mark.drawn
def test_comparison_says_what_the_predictions_say(two_results, tmp_path):
    assert compare(two_results, "--output_dir", tmp_path / "out", "--seed", 3) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"comparison.csv", "comparison.pdf", "run.json"}
    rows = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(rows["kept_together"]) == {"recording"}
    assert len(rows) == 1
    row = rows.iloc[0]
    whole, half = (pd.read_parquet(folder / "predictions.parquet") for folder in two_results)
    hits = [table["predicted_id"] == table["label_id"] for table in (whole, half)]
    assert (row["first"], row["second"]) == ("whole", "half")
    assert (row["n_clips"], row["n_groups"]) == (len(whole), whole["group"].nunique())
    assert row["accuracy_difference"] == pytest.approx(hits[0].mean() - hits[1].mean(), abs=1e-5)
    columns = [whole["label_id"], whole["predicted_id"], half["predicted_id"], whole["group"]]
    for name, expected in intervals.paired_difference(*(c.to_numpy() for c in columns)).items():
        assert row[[f"{name}_difference", f"{name}_low", f"{name}_high"]].tolist() == pytest.approx(expected, abs=1e-5)
    for name, expected in verdicts.sign_flip_p_values(*(c.to_numpy() for c in columns), seed=3).items():
        assert row[f"{name}_verdict"].split(":")[0] in ("shown", "not shown", "undecidable here")
        assert row[[f"{name}_p", f"{name}_p_holm"]].tolist() == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize("n_models", [2, 3])
def test_the_log_names_the_intervals_of_a_comparison(n_models, tmp_path, caplog):
    """Of several pairs it has the simultaneous ones, which the verdicts are from; of one pair these are its own."""
    rng, label_ids = np.random.default_rng(0), np.arange(80) % 4
    groups = [f"g{i // 4}" for i in range(80)]
    folders = [tmp_path / f"m{number}" for number in range(n_models)]
    for folder in folders:
        predicted_ids = np.where(rng.random(80) < 0.6, label_ids, (label_ids + 1) % 4)
        write_result(tmp_path, folder.name, predicted_ids, label_ids, groups, n_classes=4)
    assert compare(folders, "--output_dir", tmp_path / "out") == 0
    rows = pd.read_csv(tmp_path / "out" / "comparison.csv")
    ends = rows[["accuracy_difference", "accuracy_low_of_all", "accuracy_high_of_all"]].to_numpy()
    for text in ("m0 minus m1: accuracy {:+.3f} [{:+.3f}, {:+.3f}], p".format(*ends[0]), "by these intervals: "):
        assert text in caplog.text
    assert (rows["accuracy_low_of_all"] < rows["accuracy_low"]).all() == (n_models > 2)
    said = {2: "intervals of differences: these", 3: "differences, which hold for all 3 pairs together: these"}
    assert f"{said[n_models]} two models on other groups" in caplog.text


def test_a_comparison_has_a_direction(tmp_path, caplog):
    label_ids, groups = np.arange(20) % 4, [f"g{i // 2}" for i in range(20)]
    folders = [tmp_path / name for name in "ab"]
    for folder, n_right in zip(folders, (15, 10), strict=True):
        predicted_ids = np.where(np.arange(20) < n_right, label_ids, (label_ids + 1) % 4)
        write_result(tmp_path, folder.name, predicted_ids, label_ids, groups, n_classes=4)
    assert compare(folders, "--output_dir", tmp_path / "out") == 0
    assert compare(folders[::-1], "--output_dir", tmp_path / "out") == 4
    assert pd.read_csv(tmp_path / "out" / "comparison.csv")["accuracy_difference"].item() == 0.25
    assert compare(folders[::-1], "--output_dir", tmp_path / "out", "--overwrite") == 0
    assert pd.read_csv(tmp_path / "out" / "comparison.csv")["accuracy_difference"].item() == -0.25


def test_models_that_are_called_like_a_missing_value_are_compared(tmp_path):
    names = ["vr2/null", "None", "nan"]
    for name in names:
        write_result(tmp_path, f"validation_results/{name}", [0, 1, 0, 1], [0, 1, 1, 1], "abcd", n_classes=2)
    assert compare([tmp_path / "validation_results" / name for name in names], "--output_dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "comparison.png").is_file()


@pytest.mark.parametrize(("unit", "words"), [("recording", "recordings"), ("clip", "clips"), ("x", "groups")])
def test_an_interval_is_about_what_the_split_keeps_together(unit, words, tmp_path, caplog):
    label_ids, groups = np.arange(20) % 4, [f"g{i // 2}" for i in range(20)]
    for name in "ab":
        write_result(tmp_path, name, label_ids, label_ids, groups, n_classes=4, kept_together=unit)
    assert compare([tmp_path / "a", tmp_path / "b"], "--output_dir", tmp_path / "out") == 0
    assert f"these two models on other {words}" in caplog.text


def test_comparison_lies_beside_the_results_and_is_none_of_them(two_results, run_dir, data_dir):
    results_dir = two_results[0].parent
    assert compare(two_results) == 0
    assert compare(two_results) == 0  # nothing to do
    assert (results_dir / "comparison-whole-half" / "comparison.csv").is_file()
    assert compare(reversed(two_results)) == 0  # other signs: another folder
    assert (results_dir / "comparison-half-whole" / "comparison.csv").is_file()
    table = summary.rebuild_summary(results_dir)
    assert sorted(table["model_name"]) == ["half", "whole"]


def test_a_second_comparison_does_not_meet_the_first(two_results, caplog):
    third = two_results[0].parent / "quarter"
    shutil.copytree(two_results[1], third)
    assert compare([two_results[0], third]) == 0
    said = "2 models: whole, quarter; 18 clips, split by recording; 3 classes, chance 0.333, majority 0.333 (test)"
    assert said in caplog.text
    assert compare([two_results[1], third]) == 0
    assert (third.parent / "comparison-half-quarter" / "comparison.csv").is_file()
    shutil.rmtree(third)


@pytest.mark.parametrize("names", [[f"model-{number:02d}" for number in range(40)], ["ö" * 200, "b"], ["a" * 119, "b"]])
def test_names_of_many_or_long_models_fit_into_a_folder_name(names, tmp_path):
    name = comparison.folder_name(names)
    (tmp_path / name).mkdir()
    assert len(name.encode()) <= comparison.LONGEST_NAME and name.startswith(f"comparison-{names[0][:10]}")
    assert name != comparison.folder_name(names[::-1])


def refuses_to_compare(capfd, folders, tmp_path, code=3):
    assert compare(folders, "--output_dir", tmp_path / "out") == code
    assert not (tmp_path / "out").exists()
    return capfd.readouterr().err


def test_models_scored_on_other_clips_are_not_compared(two_results, data_dir, tmp_path, capfd):
    run_dir = two_results[0].parent.parent / "runs" / "whole"
    for name, more, words in (
        ("val", ("--split", "val"), "split test and val"),
        ("few", ("--max_clips_per_class", 2), "18 and 6 of the same split"),
    ):
        assert main(run_dir, data_dir, tmp_path / name, *more) == 0
        assert words in refuses_to_compare(capfd, [two_results[0], tmp_path / name], tmp_path)
    other_data = write_processed(tmp_path / "other", seed=1)
    assert main(run_dir, other_data, tmp_path / "elsewhere") == 0
    assert "data (data_sha256)" in refuses_to_compare(capfd, [two_results[0], tmp_path / "elsewhere"], tmp_path)


def test_what_cannot_be_compared_is_refused(two_results, data_dir, tmp_path, capfd):
    assert "no such folder" in refuses_to_compare(capfd, [two_results[0], tmp_path / "none"], tmp_path)
    assert "was made by 01_data_processing.py" in refuses_to_compare(capfd, [two_results[0], data_dir], tmp_path)
    harmed = tmp_path / "harmed"
    shutil.copytree(two_results[0], harmed)
    (harmed / "predictions.parquet").write_bytes(b"PAR1")
    assert "it is damaged" in refuses_to_compare(capfd, [two_results[1], harmed], tmp_path)
    assert "two or more" in refuses_to_compare(capfd, two_results[:1], tmp_path, code=2)
    assert "two or more" in refuses_to_compare(capfd, two_results[:1] * 2, tmp_path, code=2)
    assert stage.main(["--compare", str(two_results[0]), "--model_dir", "x"]) == 2
    assert stage.main([]) == 2


def rewritten(folder, copy, metadata=None, **columns):
    """Copy a results folder, with other predictions that its run.json vouches for."""
    shutil.copytree(folder, copy)
    path = copy / "predictions.parquet"
    table = pq.read_table(path)
    stored = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values(table[name].to_pylist()))
    pq.write_table(table.replace_schema_metadata({**stored, **(metadata or {})}), path)
    record = json.loads((copy / "run.json").read_text())
    for output in record["outputs"]:
        if output["path"] == path.name:
            output |= {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (copy / "run.json").write_text(json.dumps(record))
    return copy


OTHER_PREDICTIONS = {
    "other labels": (
        {"metadata": {"labels": json.dumps(["Blackbird", "Crow", "Wren"])}},
        "have different classes: only whole has Great Tit and only copy has Wren; score both",
    ),
    "another order": (
        {"metadata": {"labels": json.dumps(["Crow", "Blackbird", "Great Tit"])}},
        "have different classes: the same labels, in another order",
    ),
    "no list": ({"metadata": {"labels": "7"}}, "its metadata have no list of labels"),
    "deep labels": ({"metadata": {"labels": "[" * 100_000}}, "predictions.parquet cannot be read"),
    "schema": ({"metadata": {"schema_version": "9"}}, "schema_version 9; this version of the program reads 1"),
    "class beyond": (
        {"predicted_id": lambda ids: pa.array([7, *ids[1:]])},
        "predicted_id 7 in 1 clip(s); expected 0 to 2",
    ),
    "class below": ({"label_id": lambda ids: pa.array([-1, *ids[1:]])}, "label_id -1 in 1 clip(s)"),
    "text": ({"label_id": lambda ids: pa.array(map(str, ids))}, "label_id (string, 0 missing); expected text or whole"),
    "missing": ({"group": lambda names: pa.array([None, *names[1:]])}, "group (string, 1 missing)"),
    "another clip": (
        {"clip_id": lambda ids: pa.array(["x:0", *ids[1:]])},
        "; row 0 has clip_id Blackbird/test0:0 and x:0",
    ),
}


@pytest.mark.parametrize("harm", OTHER_PREDICTIONS)
def test_predictions_of_other_classes_or_another_form_are_not_compared(two_results, tmp_path, capfd, harm):
    changes, words = OTHER_PREDICTIONS[harm]
    copy = rewritten(two_results[1], tmp_path / "copy", **changes)
    assert words in refuses_to_compare(capfd, [two_results[0], copy], tmp_path)


def test_results_of_an_early_version_have_their_labels_in_the_report(two_results, tmp_path):
    early = shutil.copytree(two_results[1], tmp_path / "early")
    table = pq.read_table(early / "predictions.parquet")
    pq.write_table(table.replace_schema_metadata(None), early / "predictions.parquet")
    scored = comparison.read_scored(early)
    assert scored.labels == LABELS == comparison.read_scored(two_results[1]).labels
    assert comparison.paired_difference([(scored, comparison.read_scored(two_results[0]))])


@pytest.mark.drawn
def test_a_thousand_labels_are_a_table_and_a_small_figure(tmp_path, caplog):
    labels = [f"Genus species {i:04d}" for i in range(1000)]
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label_id": rng.integers(600, size=900), "clip_id": map(str, range(900))})
    table = table.assign(recording_id=table["clip_id"], group=table["clip_id"])
    (tmp_path / "out").mkdir()
    logits = rng.standard_normal((900, 1000)).astype(np.float32)
    stage.write_tables(tmp_path / "out", table, labels, logits)
    confusion = pd.read_csv(tmp_path / "out" / "confusion_matrix.csv", index_col=0)
    assert confusion.shape == (1000, 1000)
    plots.confusion_figure(confusion, tmp_path / "out" / "confusion_matrix", title="a model")
    height, width, _ = matplotlib.image.imread(tmp_path / "out" / "confusion_matrix.png").shape
    assert max(height, width) < 2500  # a matrix would have 36,000
    named = next(message for message in caplog.messages if "have no clip here" in message)
    assert len(named) < 400 and " more" in named


def test_escapes_in_names_of_folders_reach_no_table(two_results, tmp_path, capfd):
    odd = shutil.copytree(two_results[1], tmp_path / "\x1b[2Jhalf")
    assert compare([two_results[0], odd], "--output_dir", tmp_path / "out") == 0
    texts = [(tmp_path / "out" / "comparison.csv").read_text(), capfd.readouterr().err]
    metrics = summary.read_metrics(odd / "metrics.csv").assign(model_name="\x1b[2J", model_dir="a\u202eb")
    summary.write_metrics(tmp_path / "metrics.csv", metrics)
    texts.append((tmp_path / "metrics.csv").read_text())
    assert all(line.isprintable() for text in texts for line in text.split("\n"))
    assert "\\x1b[2Jhalf" in texts[0] and "\\x1b[2J,a\\u202eb" in texts[2]
