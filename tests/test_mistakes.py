"""The worst mistakes of a model with a sigmoid per label; for one label a clip, see test_03_model_validation.py."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd

from utils.models import mistakes
from utils.models.loaded_model import MULTI_LABEL

LABELS = ["Crow", "Jay"]
SCORES = np.array([[0.9, 0.6], [0.7, 0.95], [0.55, 0.2], [0.8, 0.1]])


def clips():
    """Return four clips: a crow, silence, a crow, and what may be a crow; the last is half as long."""
    labels = [("Crow",), (), ("Crow",), ()]
    table = pd.DataFrame({"labels": labels, "source_path": "a.wav", "start_s": np.arange(4) * 2.0, "duration_s": 2.0})
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


def items(tmp_path, thresholds=None, n=5):
    config = SimpleNamespace(problem_type=MULTI_LABEL, id2label=dict(enumerate(LABELS)))
    if thresholds is not None:
        config.decision = {
            "target_precision": 0.9,
            "calibration": {"kind": "temperature", "temperature": 1.0},
            "thresholds": thresholds,
            "reasons": {},
            "fitted_on": {"data_sha256": "x", "split": "val"},
        }
    logits = np.log(SCORES / (1 - SCORES))
    mistakes.write_review(tmp_path / "review.html", "x", clips(), logits, config, n)
    page = (tmp_path / "review.html").read_text()
    found = json.loads(re.search(r'id="page">(.*?)</script>', page)[1])["items"]
    return [(one["label"], float(one["start"]) / 2, one["threshold"], one["named"]) for one in found]


def test_a_score_above_the_threshold_is_a_mistake_where_the_label_is_known_to_be_absent(tmp_path):
    assert items(tmp_path, {"Crow": 0.75, "Jay": None}) == [("Jay", 1.0, None, []), ("Jay", 0.0, None, ["Crow"])]
    assert items(tmp_path, {"Crow": 0.5, "Jay": 0.7}) == [("Crow", 1.0, 0.5, []), ("Jay", 1.0, 0.7, [])]


def test_without_thresholds_a_mistake_has_a_score_of_a_half_or_more(tmp_path):
    assert items(tmp_path) == [("Crow", 1.0, None, []), ("Jay", 1.0, None, []), ("Jay", 0.0, None, ["Crow"])]
    assert items(tmp_path, n=1) == [("Crow", 1.0, None, []), ("Jay", 1.0, None, [])]
