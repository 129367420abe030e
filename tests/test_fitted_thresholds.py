"""03 --fit_thresholds, and 03 on a model with thresholds: files, model folder, messages, and every refusal."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.data import LABELS, write_processed
from tests.stages import digests, load_stage
from tests.test_03_model_validation import write_run
from utils.core.errors import InputError
from utils.data import clips
from utils.models import decision, encoders, fitted_thresholds, latency, model_folder, predict
from utils.scores import thresholds

stage = load_stage("03_model_validation")
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module", autouse=True)
def perfect():
    """Time every model a few times only; in place of a trained model, logits that are right but for some clips."""

    def logits(loaded, split_clips, batch_size):
        ids = split_clips.table["label_id"].to_numpy()
        rng = np.random.default_rng(0)
        wrong = rng.random(len(ids)) < 0.05
        said = np.where(wrong, (ids + 1) % len(split_clips.labels), ids)
        return (3 * np.eye(len(split_clips.labels))[said] + rng.normal(size=(len(ids), 3)) / 3).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MAX_PASSES", 1)
        patch.setattr(predict, "predict", logits)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    sizes = {"train": 2, "val": 30, "test": 30}
    return write_processed(tmp_path_factory.mktemp("data") / "processed", recordings_per_class=sizes)


@pytest.fixture
def run_dir(tmp_path, data_dir):
    return write_run(tmp_path / "runs" / "birds", data_dir)


def main(run_dir, data_dir, output_dir, *more):
    words = ["--model_dir", run_dir, "--data_dir", data_dir, "--output_dir", output_dir, "--device", "cpu", *more]
    return stage.main([str(word) for word in words])


def fit(run_dir, data_dir, *more):
    output_dir = run_dir.parent.parent / "fitted"
    return main(run_dir, data_dir, output_dir, "--fit_thresholds", *more), output_dir


def config_of(run_dir):
    return json.loads((run_dir / "model" / "config.json").read_text())


def test_thresholds_are_in_the_model_and_in_the_table(run_dir, data_dir, caplog):
    caplog.set_level("INFO")
    before = model_folder.model_input(run_dir).sha256
    code, output_dir = fit(run_dir, data_dir, "--target_precision", 0.8)
    assert code == 0 and {path.name for path in output_dir.iterdir()} == {
        "thresholds.csv",
        "run.json",
        "log.txt",
        ".lock",
    }
    fitted = decision.read(encoders.load_model(run_dir, "cpu").config)
    assert fitted["target_precision"] == 0.8 and all(fitted["thresholds"].values()) and fitted["reasons"] == {}
    assert fitted["fitted_on"] == {"data_sha256": clips.data_input(data_dir).sha256, "split": "val"}
    assert model_folder.model_input(run_dir).sha256 == before
    table = pd.read_csv(output_dir / "thresholds.csv")
    assert list(table["label"]) == [*LABELS, thresholds.POOLED]
    assert list(table["threshold"][:-1]) == list(fitted["thresholds"].values())
    assert (table["precision_low"] < table["precision"]).all() and (table["n_clips"][:-1] == 60).all()
    for words in ("on val, with which they were fitted", "3 of 3 labels have a threshold", "calibration (temperature"):
        assert words in caplog.text
    metrics = json.loads((output_dir / "run.json").read_text())["metrics"]
    assert metrics["decision"] == config_of(run_dir)["decision"]
    assert metrics["calibration_error_after"] < metrics["calibration_error_before"]


def test_only_val_is_read(run_dir, data_dir, monkeypatch):
    read, asked = clips.read_clips, []
    monkeypatch.setattr(
        clips, "read_clips", lambda folder, split, *more: asked.append(split) or read(folder, split, *more)
    )
    assert fit(run_dir, data_dir, "--split", "val")[0] == 0
    assert asked == ["val"]


def test_a_complete_fit_gives_a_copy_of_the_model_its_thresholds(run_dir, data_dir, caplog):
    _, output_dir = fit(run_dir, data_dir)
    files, fitted = digests(output_dir), config_of(run_dir)["decision"]
    path = run_dir / "model" / "config.json"
    path.write_text(decision.without(path.read_text()))
    caplog.set_level("INFO")
    assert fit(run_dir, data_dir)[0] == 0 and "nothing to do" in caplog.text
    assert config_of(run_dir)["decision"] == fitted and digests(output_dir) == files
    content = path.read_bytes()
    assert fit(run_dir, data_dir)[0] == 0 and path.read_bytes() == content


def test_test_clips_are_scored_at_the_thresholds(run_dir, data_dir, tmp_path, caplog):
    results = tmp_path / "results" / "birds"
    assert main(run_dir, data_dir, results) == 0
    assert not (results / "thresholds.csv").exists()
    assert main(run_dir, data_dir, results) == 0, "nothing to do"
    fit(run_dir, data_dir)
    assert main(run_dir, data_dir, results) == 4, "a model with thresholds has another result"
    caplog.set_level("INFO")
    caplog.clear()
    assert main(run_dir, data_dir, results, "--overwrite") == 0
    assert "all their detections together: precision 0.9" in caplog.text and "they were fitted" not in caplog.text
    loaded = encoders.load_model(run_dir, "cpu")
    test_clips = clips.read_clips(data_dir, "test")
    logits = predict.predict(loaded, test_clips, 4)
    table = pd.read_csv(results / "thresholds.csv", dtype={"reason": str}).fillna({"reason": ""})
    own = fitted_thresholds.score(test_clips, logits, loaded.config, decision.read(loaded.config))
    pd.testing.assert_frame_equal(table, own, rtol=1e-5)
    detected = decision.scores(logits, loaded.config) >= list(config_of(run_dir)["decision"]["thresholds"].values())
    assert table.iloc[-1]["n_detections"] == detected.sum()
    assert table.iloc[-1]["n_right"] == (detected & (test_clips.targets > 0)).sum()
    metrics = json.loads((results / "run.json").read_text())["metrics"]["at_thresholds"]
    assert metrics["n_thresholds"] == 3 and metrics["verdict"] == table.iloc[-1]["verdict"]


def test_several_labels_and_secondary_ones(data_dir):
    """Sigmoids are calibrated on all known pairs; a clip whose label is secondary counts for and against nothing."""
    val_clips, config = clips.read_clips(data_dir, "val"), encoders.tiny_model(LABELS).config
    config.problem_type = decision.MULTI_LABEL
    logits = 2 * predict.predict(None, val_clips, 4) - 4
    fitted = fitted_thresholds.fit(val_clips, logits, config, 0.8, "0" * 64)
    assert fitted["calibration"]["kind"] == "platt" and all(fitted["thresholds"].values())
    config.decision = fitted
    assert decision.read(config) == fitted
    known = np.ones_like(val_clips.is_known)
    known[::2, 0] = False
    val_clips.__dict__["is_known"] = known
    table = fitted_thresholds.score(val_clips, logits, config, fitted)
    assert table.loc[0, "n_clips"] == (val_clips.targets[1::2, 0] > 0).sum()


def test_a_label_that_val_cannot_tell_has_none_and_says_why(run_dir, tmp_path, caplog):
    few = write_processed(tmp_path / "few", recordings_per_class={"train": 2, "val": 1, "test": 1})
    run_dir = write_run(tmp_path / "runs" / "few", few)
    caplog.set_level("INFO")
    assert fit(run_dir, few)[0] == 0
    fitted = config_of(run_dir)["decision"]
    assert list(fitted["thresholds"].values()) == [None] * 3
    assert set(fitted["reasons"].values()) == {"1 group with a clip of it; 2 are needed"}
    assert "0 of 3 labels have a threshold; target precision 0.9 on val" in caplog.text
    assert main(run_dir, few, tmp_path / "results" / "few") == 0


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--fit_thresholds", "--split", "test"], 2, "--fit_thresholds scores val, not test"),
        (["--fit_thresholds", "--split", "train"], 2, "--fit_thresholds scores val, not train"),
        (["--fit_thresholds", "--target_precision", "0"], 2, "--target_precision 0 is met by every detection"),
        (["--fit_thresholds", "--target_precision", "1"], 2, "'1' is not a number of at least 0 and below 1"),
        (["--fit_thresholds", "--review", "3"], 2, "--review is for scores"),
        (["--target_precision", "0.8"], 2, "--target_precision is for --fit_thresholds"),
    ],
)
def test_flags_that_do_not_go_together(words, code, message, run_dir, data_dir, tmp_path, capfd):
    before = config_of(run_dir)
    assert main(run_dir, data_dir, tmp_path / "refused", *words) == code
    assert message in capfd.readouterr().err
    assert config_of(run_dir) == before and not (tmp_path / "refused").exists()


@pytest.mark.parametrize("way", ["--compare", "--pool"])
def test_results_have_no_thresholds_to_fit(way, tmp_path, capfd):
    assert stage.main([way, str(tmp_path), str(tmp_path), "--fit_thresholds"]) == 2
    assert f"--fit_thresholds is for scoring a model: the results that {way} takes" in capfd.readouterr().err


def test_one_recordist_on_val_is_refused(run_dir, data_dir):
    val_clips = clips.read_clips(data_dir, "val")
    val_clips.table["group"] = "one"
    with pytest.raises(InputError, match="the clips of val are of one group; thresholds need 2 or more"):
        fitted_thresholds.fit(val_clips, np.zeros((len(val_clips), 3)), encoders.tiny_model(LABELS).config, 0.9, "0")


def test_a_broken_decision_is_named_before_anything_is_scored(run_dir, data_dir, tmp_path, capfd):
    fit(run_dir, data_dir)
    broken = shutil.copytree(run_dir / "model", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["decision"]["thresholds"]["Crow"] = 2
    (broken / "config.json").write_text(json.dumps(config))
    assert main(broken, data_dir, tmp_path / "results" / "broken") == 3
    assert "the threshold 2 of Crow, expected a number from 0 to 1, or null" in capfd.readouterr().err
