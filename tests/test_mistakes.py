"""The worst mistakes of a model with a sigmoid per label; for one label a clip, see test_03_model_validation.py."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.stages import load_stage
from utils.models import mistakes
from utils.models.loaded_model import MULTI_LABEL

LABELS = ["Crow", "Jay"]
SCORES = np.array([[0.9, 0.6], [0.7, 0.95], [0.55, 0.2], [0.8, 0.1]])
LOGITS = np.log(SCORES / (1 - SCORES))


def clips():
    """Return four clips: a crow, silence, a crow, and what may be a crow; the last is half as long."""
    labels = [("Crow",), (), ("Crow",), ()]
    table = pd.DataFrame({"labels": labels, "source_path": "a.wav", "start_s": np.arange(4) * 2.0, "duration_s": 2.0})
    table["group"] = list("abcd")
    table.loc[3, "duration_s"] = 1.0
    return SimpleNamespace(
        table=table,
        labels=LABELS,
        is_annotated=True,
        sample_rate_hz=8000,
        targets=np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.float32),
        is_known=np.array([[1, 1], [1, 1], [1, 1], [0, 1]], bool),
        audio=lambda i: np.zeros(16_000, np.float32),
    )


def config_of(thresholds=None):
    config = SimpleNamespace(problem_type=MULTI_LABEL, id2label=dict(enumerate(LABELS)))
    if thresholds is not None:
        config.decision = {
            "target_precision": 0.9,
            "calibration": {"kind": "temperature", "temperature": 1.0},
            "thresholds": thresholds,
            "reasons": {},
            "fitted_on": {"data_sha256": "x", "split": "val"},
        }
    return config


def items(tmp_path, thresholds=None, n=5):
    mistakes.write_review(tmp_path / "review.html", "x", clips(), LOGITS, config_of(thresholds), n)
    page = (tmp_path / "review.html").read_text()
    found = json.loads(re.search(r'id="page">(.*?)</script>', page)[1])["items"]
    return [(one["label"], float(one["start"]) / 2, one["threshold"], one["named"]) for one in found]


def test_a_score_above_the_threshold_is_a_mistake_where_the_label_is_known_to_be_absent(tmp_path):
    assert items(tmp_path, {"Crow": 0.7, "Jay": 1.0}) == [("Crow", 1.0, 0.7, [])]
    assert items(tmp_path, {"Crow": 0.5, "Jay": 0.7}) == [("Crow", 1.0, 0.5, []), ("Jay", 1.0, 0.7, [])]


def test_a_label_without_a_threshold_is_never_detected_so_it_has_no_mistakes(tmp_path):
    assert items(tmp_path, {"Crow": 0.5, "Jay": None}) == [("Crow", 1.0, 0.5, [])]
    assert items(tmp_path, {"Crow": None, "Jay": None}) == []


def test_without_thresholds_a_mistake_has_a_score_of_a_half_or_more(tmp_path):
    assert items(tmp_path) == [("Crow", 1.0, 0.5, []), ("Jay", 1.0, 0.5, []), ("Jay", 0.0, 0.5, ["Crow"])]
    assert items(tmp_path, n=1) == [("Crow", 1.0, 0.5, []), ("Jay", 1.0, 0.5, [])]


@pytest.mark.parametrize("fitted", [None, {"Crow": 0.75, "Jay": None}, {"Crow": 0.5, "Jay": 0.6}])
def test_the_page_has_every_wrong_detection_of_03_and_no_other(tmp_path, fitted):
    loaded, some = SimpleNamespace(config=config_of(fitted)), clips()
    answers = load_stage("03_model_validation").score_several(loaded, some, LOGITS).answers
    wrong = answers.is_detected & ~answers.targets & answers.is_known
    assert {(label, clip) for label, clip, *_ in items(tmp_path, fitted)} == {
        (LABELS[label_id], float(clip)) for clip, label_id in np.argwhere(wrong)
    }
