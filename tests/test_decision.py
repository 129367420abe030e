"""The field ``decision`` of a config: its scores, what is refused, and that the model stays the same one."""

import argparse
import json

import numpy as np
import pytest
from scipy.special import expit, softmax
from transformers import AutoConfig

from tests.data import LABELS, small_model
from utils.core import runs
from utils.core.errors import InputError
from utils.models import classify, decision, encoders, model_folder

DECISION = {
    "target_precision": 0.9,
    "calibration": {"kind": "temperature", "temperature": 2.0},
    "thresholds": {"Blackbird": 0.5, "Crow": None, "Great Tit": 1},
    "reasons": {"Crow": "no clip on val"},
    "fitted_on": {"data_sha256": "1" * 64, "split": "val"},
}
PLATT = {"kind": "platt", "slope": 0.5, "intercept": -1.0}
LOGITS = np.array([[3.0, -1.0, 0.5], [800.0, -800.0, 0.0]], dtype=np.float32)


@pytest.fixture
def run_dir(tmp_path):
    """Return a complete run of 02 with a model in it."""
    folder = tmp_path / "run"
    with runs.open_run("02_finetuning", argparse.Namespace(output_dir=folder, overwrite=False, seed=0), {}):
        encoders.save_model(small_model("wav2vec2"), folder / "model")
    return folder


def config_of(**changes):
    return {"id2label": dict(enumerate(LABELS)), **changes}


def written(folder, value=None):
    decision.write(folder / "model" / "config.json", value or DECISION)
    return folder / "model" / "config.json"


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of(), softmax(LOGITS.astype(float), axis=1)),
        (config_of(decision=DECISION), softmax(LOGITS.astype(float) / 2, axis=1)),
        (config_of(problem_type=decision.MULTI_LABEL), expit(LOGITS.astype(float))),
        (
            config_of(problem_type=decision.MULTI_LABEL, decision=DECISION | {"calibration": PLATT}),
            expit(LOGITS.astype(float) / 2 - 1),
        ),
        (config_of(problem_type=decision.MULTI_LABEL, decision=DECISION), expit(LOGITS.astype(float) / 2)),
    ],
)
def test_scores_are_calibrated_probabilities_here_and_in_classify(config, expected):
    with np.errstate(all="raise", under="ignore"):
        found = decision.scores(LOGITS, config)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)
    loaded = small_model("wav2vec2").config
    loaded.problem_type, loaded.decision = config.get("problem_type"), config.get("decision")
    np.testing.assert_allclose(decision.scores(LOGITS, loaded), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(classify.scores_of(LOGITS, loaded), expected, rtol=1e-12, atol=1e-300)


def test_thresholds_are_in_the_order_of_the_labels():
    config = config_of(decision=DECISION | {"thresholds": {"Great Tit": 0.2, "Crow": None, "Blackbird": 0.1}})
    assert list(decision.read(config)["thresholds"].items()) == [("Blackbird", 0.1), ("Crow", None), ("Great Tit", 0.2)]
    assert list(decision.thresholds(config).items()) == [("Blackbird", 0.1), ("Crow", None), ("Great Tit", 0.2)]
    assert decision.read(config_of()) is None


def test_without_a_decision_a_threshold_is_a_half_where_a_clip_has_several_labels():
    assert set(decision.thresholds(config_of()).values()) == {None}
    found = decision.thresholds(config_of(problem_type=decision.MULTI_LABEL))
    assert found == dict.fromkeys(["Blackbird", "Crow", "Great Tit"], decision.UNFITTED)


# ---------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"thresholds": None}, "thresholds None, expected an object"),
        ({"calibration": []}, r"calibration \[\], expected an object"),
        ({"target_precision": 1}, "target_precision 1, expected a number between 0 and 1"),
        ({"target_precision": True}, "target_precision True"),
        ({"calibration": {"kind": "isotonic"}}, "calibration 'isotonic', expected temperature"),
        ({"calibration": PLATT}, "calibration 'platt', expected temperature"),
        ({"calibration": {"kind": "temperature", "temperature": 0}}, "expected temperature, the first above 0"),
        ({"calibration": {"kind": "temperature", "temperature": float("nan")}}, "the first above 0"),
        ({"thresholds": DECISION["thresholds"] | {"Crow": 1.5}}, "the threshold 1.5 of Crow, expected a number from 0"),
        ({"thresholds": DECISION["thresholds"] | {"Crow": "0.5"}}, "the threshold '0.5' of Crow"),
        ({"thresholds": {"Blackbird": 0.5}}, "other labels: Crow, Great Tit are not in both"),
        ({"thresholds": DECISION["thresholds"] | {"Wren": 0.5}}, "other labels: Wren is not in both"),
        ({"fitted_on": {"split": "val"}}, "fitted_on without its data_sha256"),
        ({"reasons": None}, "reasons None, expected an object"),
    ],
)
def test_a_decision_that_cannot_be_is_named(changes, words):
    with pytest.raises(InputError, match=words) as refusal:
        decision.read(config_of(decision=DECISION | changes), "runs/birds")
    assert "runs/birds" in str(refusal.value) and "--fit_thresholds" in str(refusal.value)


def test_a_decision_that_is_no_object_is_named(run_dir):
    with pytest.raises(InputError, match=r"decision in its config\.json has 5, expected an object"):
        decision.read(config_of(decision=5))
    path = run_dir / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decision": 5}))
    with pytest.raises(InputError, match="decision is 5; expected an object"):
        model_folder.open_folder("runs/birds", run_dir / "model")


def test_a_decision_of_another_model_is_not_written(run_dir):
    path = run_dir / "model" / "config.json"
    before = path.read_bytes(), (run_dir / "run.json").read_bytes()
    with pytest.raises(InputError, match="other labels"):
        written(run_dir, DECISION | {"thresholds": {"Wren": 0.5}})
    assert (path.read_bytes(), (run_dir / "run.json").read_bytes()) == before


# ------------------------------------------------------------------------------------- in the model folder


def test_the_model_stays_the_same_and_its_run_whole(run_dir):
    path = run_dir / "model" / "config.json"
    bare, before = path.read_bytes(), [model_folder.model_input(folder).sha256 for folder in (run_dir, path.parent)]
    of_run = runs.folder_input(run_dir).sha256
    for threshold in (0.5, 0.25):
        value = DECISION | {"thresholds": DECISION["thresholds"] | {"Blackbird": threshold}}
        written(run_dir, value)
        assert [model_folder.model_input(folder).sha256 for folder in (run_dir, path.parent)] == before
        assert runs.folder_input(run_dir).sha256 == of_run
        config = encoders.load_model(run_dir, "cpu").config
        assert decision.read(config) == value == json.loads(path.read_text())["decision"]
    path.write_bytes(bare)
    assert runs.folder_input(run_dir).sha256 == of_run, "the file as it was made is whole, too"
    path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": 31'))
    with pytest.raises(InputError, match="was changed or is damaged"):
        model_folder.model_input(run_dir)


def test_a_kill_between_record_and_file_leaves_a_whole_run(run_dir, monkeypatch):
    written(run_dir)
    monkeypatch.setattr(runs, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        written(run_dir, DECISION | {"target_precision": 0.8})
    assert runs.folder_input(run_dir)
    assert decision.read(encoders.load_model(run_dir, "cpu").config)["target_precision"] == 0.9


@pytest.mark.parametrize("layout", [None, 2, "\r\n"])
def test_every_byte_of_another_config_comes_back(layout, run_dir, tmp_path):
    path = run_dir / "model" / "config.json"
    text = json.dumps(json.loads(path.read_text()), indent=2 if layout == "\r\n" else layout)
    path = tmp_path / "config.json"
    path.write_bytes(text.replace("\n", "\r\n" if layout == "\r\n" else "\n").encode())
    before = path.read_bytes()
    decision.write(path, DECISION)
    assert path.read_bytes() != before and decision.without(path.read_bytes().decode()).encode() == before


def test_a_config_saved_again_by_transformers_has_the_same_digest(run_dir):
    before = model_folder.model_input(run_dir / "model").sha256
    path = written(run_dir)
    config = AutoConfig.from_pretrained(path.parent)
    config.save_pretrained(path.parent)
    assert json.loads(path.read_text())["decision"] == DECISION
    assert model_folder.digest(model_folder.open_folder("model", path.parent)) == before


def test_a_model_that_a_stage_saves_has_no_thresholds(run_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    written(run_dir)
    loaded = encoders.load_model(run_dir, "cpu")
    encoders.save_model(encoders.pruned_copy(loaded, [0, 1]), tmp_path / "pruned")
    assert decision.read(encoders.load_model(tmp_path / "pruned", "cpu").config) is None
    assert "those of the model it was made from are not its own" in caplog.text
    base = encoders.load_base_model(str(run_dir), ["Robin", "Wren"])
    assert decision.read(base.config) is None


def test_as_an_input_it_is_known_by_its_content(run_dir):
    assert decision.as_input(config_of(), "config.json") == {}
    first, same, other = (
        decision.as_input(config_of(decision=value), "config.json")[decision.INPUT].sha256
        for value in (DECISION, dict(reversed(DECISION.items())), DECISION | {"target_precision": 0.8})
    )
    assert first == same != other
