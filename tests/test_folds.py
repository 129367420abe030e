"""Stages 02 to 06 on a data set of three folds: what each reads, records and warns of."""

import dataclasses
import json
import re

import pandas as pd
import pytest

from tests.data import LABELS, write_processed
from tests.stages import load_stage
from utils.data import clips
from utils.scores import by_collection, predictions

pytestmark = pytest.mark.usefixtures("quick_models", "blank_figures")
# Ann is in fold 1 with a crow and in fold 3 with a crow and a tit.
PEOPLE = {"Crow/fold-10": "Ann", "Crow/fold-30": "Ann", "Great Tit/fold-10": "Bob", "Blackbird/fold-31": "Bob"}
TRAINING = ("--num_train_epochs", 1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    names = [f"{label}/fold-{fold}{number}" for label in LABELS for fold in (1, 2, 3) for number in (0, 1)]
    collections = {name: "C1" if name.startswith(LABELS[0]) else "C2" for name in names}
    folder = tmp_path_factory.mktemp("data") / "birds" / "folds"
    return write_processed(folder, folds=3, recordists=PEOPLE, collections=collections)


def main(stage, data_dir, output_dir, *words):
    words = [*words, "--data_dir", data_dir, "--output_dir", output_dir, "--device", "cpu"]
    return load_stage(stage).main([str(word) for word in words])


@pytest.fixture(scope="module")
def read_by_02(data_dir, tmp_path_factory):
    """Train on fold 1; return the folder of the run and the clips whose sound was read."""
    run_dir, read = tmp_path_factory.mktemp("runs") / "fold-1", set()
    audio = clips.Clips.audio

    def noted(self, index):
        read.add(self.table["clip_id"].iloc[index])
        return audio(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips.Clips, "audio", noted)
        assert main("02_finetuning", data_dir, run_dir, "--fold", 1, "--base_model", "tiny", *TRAINING) == 0
    return run_dir, read


@pytest.fixture(scope="module")
def run_dir(read_by_02):
    return read_by_02[0]


def test_training_reads_no_clip_of_the_tested_fold(data_dir, read_by_02):
    run_dir, read = read_by_02
    table = clips.read_clips(data_dir).table
    assert read == set(table["clip_id"][table["split"] != "fold-1"])
    record = json.loads((run_dir / "run.json").read_text())
    assert record["inputs"][0]["sha256"] == clips.data_input(data_dir, 1).sha256
    assert record["arguments"]["fold"] == 1
    history = json.loads((run_dir / "model" / "training_recordings.json").read_text())
    heard, chose = (pd.Series(history[role]).str.startswith("name:").sum() for role in ("train", "val"))
    assert heard == chose == 6


def test_folds_are_scored_and_pooled_and_clips_that_were_heard_are_told_of(data_dir, run_dir, tmp_path, caplog):
    results = {fold: tmp_path / "validation_results" / f"fold-{fold}" for fold in (1, 2, 3)}
    for fold, warning in {
        1: None,
        2: "6 of the 6 test recordings of .* chose the epoch of .*",
        3: ".* was trained on 6 of the 6 test recordings of .*",
    }.items():
        caplog.clear()
        assert main("03_model_validation", data_dir, results[fold], "--model_dir", run_dir, "--fold", fold) == 0
        warnings = "\n".join(record.getMessage() for record in caplog.records if "too high" in record.msg)
        assert re.fullmatch(warning, warnings) if warning else not warnings
        scored, _ = predictions.read_predictions(results[fold])
        table = clips.read_clips(data_dir).table
        assert scored["clip_id"].tolist() == table["clip_id"][table["split"] == f"fold-{fold}"].tolist()
    metrics = {fold: json.loads((folder / "run.json").read_text())["metrics"] for fold, folder in results.items()}
    assert metrics[1]["data_sha256"] == f"{clips.data_input(data_dir).sha256}/fold-1-of-3"
    assert metrics[1]["heard_in_train"] == {"n_clips": 12, "same_species": 2, "other_species": 2, "unknown": 8}
    said = "test: recordist heard in train with the same species 2 (17%), with another species 2 (17%), unknown 8 (67%)"
    assert said in (results[1] / "log.txt").read_text()

    pooled = tmp_path / "validation_results" / "all"
    words = ["--pool", *map(str, results.values()), "--output_dir", str(pooled)]
    assert load_stage("03_model_validation").main(words) == 0
    scored, labels = predictions.read_predictions(pooled)
    assert scored["clip_id"].tolist() == sorted(clips.read_clips(data_dir).table["clip_id"]) and labels == LABELS
    heard = json.loads((pooled / "run.json").read_text())["metrics"]["heard_in_train"]
    assert heard == {name: sum(one["heard_in_train"][name] for one in metrics.values()) for name in heard}
    assert heard["n_clips"] == 36

    # C1 has the first label alone; C2 the others, equally often, so that the guess is the second.
    for folder, n_clips in ((results[1], 12), (pooled, 36)):
        found = pd.read_csv(folder / by_collection.NAME).set_index("collection")
        assert found["n_clips"].tolist() == [n_clips // 3, 2 * n_clips // 3, n_clips, n_clips]
        expected = {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((1 + 2 / 3 + 0) / 3)}
        recorded = json.loads((folder / "run.json").read_text())["metrics"]["collections"]
        assert recorded[by_collection.ALONE] == expected
        assert found.loc[by_collection.MEAN, "accuracy"] == pytest.approx(found["accuracy"].iloc[:2].mean(), abs=1e-6)
        log = (folder / "log.txt").read_text()
        assert "3 of 3 labels have recordings of one collection only" in log
        model = "these models" if folder == pooled else "this model"
        assert f"by collection, with the 95 % interval of {model} on other recordings" in log


def test_an_analysis_and_a_sweep_are_of_a_fold(data_dir, run_dir, tmp_path, caplog):
    words = ("--model_dir", run_dir, "--fold", 1)
    analyse = ("--split", "val", "--metrics", "block_influence")
    assert main("04_analysis", data_dir, tmp_path / "analysis", *words, *analyse) == 0
    heard = json.loads((tmp_path / "analysis" / "run.json").read_text())["metrics"]["heard_in_train"]
    assert heard == dataclasses.asdict(clips.read_clips(data_dir, "val", fold=1).heard_in_train)
    sweep = ("--strategies", "forward", "block_influence", "--analysis_dir", tmp_path / "analysis")
    assert main("05_pruning", data_dir, tmp_path / "sweep", *words, *sweep) == 0
    for name in ("analysis", "sweep"):
        inputs = json.loads((tmp_path / name / "run.json").read_text())["inputs"]
        assert clips.data_input(data_dir, 1).sha256 in [given["sha256"] for given in inputs]
    assert "chose the epoch" not in caplog.text and "was trained on" not in caplog.text
    assert main("05_pruning", data_dir, tmp_path / "sweep", "--model_dir", run_dir, "--fold", 3, *sweep) == 4
    assert "it was made with --fold 1, now it is 3" in caplog.text
    assert main("05_pruning", data_dir, tmp_path / "other", "--model_dir", run_dir, "--fold", 3, *sweep) == 3
    assert "was measured on another fold of" in caplog.text and "run 04_analysis.py with the same --fold" in caplog.text


def test_a_cnn_is_trained_on_a_fold(data_dir, tmp_path):
    assert main("06_cnn", data_dir, tmp_path / "cnn", "--fold", 2, *STAGES["06_cnn"], *TRAINING) == 0
    history = json.loads((tmp_path / "cnn" / "model" / "training_recordings.json").read_text())
    table = clips.read_clips(data_dir, "train", fold=2).table
    assert history["data_sha256"] == [clips.data_input(data_dir, 2).sha256]
    assert sum(key.startswith("name:") for key in history["train"]) == table["recording_id"].nunique()
    assert set(table["recording_id"].str.extract("(fold-.)")[0]) == {"fold-1"}


STAGES = {
    "02_finetuning": ("--base_model", "tiny"),
    "03_model_validation": ("--model_dir",),
    "04_analysis": ("--model_dir",),
    "05_pruning": ("--model_dir",),
    "06_cnn": ("--architecture", "melspectrogram"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_fold_has_to_be_given_and_to_be_there(stage, data_dir, run_dir, tmp_path, caplog, capsys):
    words = [*STAGES[stage], *([run_dir] if "--model_dir" in STAGES[stage] else [])]
    assert main(stage, data_dir, tmp_path / "out", *words) == 2
    assert "is divided into 3 folds: say which one is tested, --fold 1 to 3" in caplog.text
    assert main(stage, data_dir, tmp_path / "out", *words, "--fold", 4) == 2
    assert "--fold 4: " in caplog.text and "has 3 folds; expected 1 to 3" in caplog.text
    assert main(stage, data_dir, tmp_path / "out", *words, "--fold", 0) == 2
    assert "argument --fold: '0' is not an integer of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
