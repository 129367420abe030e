"""The line that every stage begins with, against a hand count."""

import logging

import pandas as pd
import pytest

from tests.data import small_model, write_processed
from utils.data.clips import Clips, read_clips
from utils.models import cnn, encoders
from utils.models.start_line import describe_clips, describe_model, log_start


def clips_of(label_ids, tmp_path, labels=("Blackbird", "Crow", "Great Tit")):
    columns = {"part": 0, "row_group": 0, "row": 0, "split": "test", "recording_id": "r"}
    return Clips(pd.DataFrame({"label_id": label_ids}).assign(**columns), list(labels), 16_000, 0.5, tmp_path)


def test_levels_of_guessing(tmp_path):
    train, test = clips_of([0] * 2000, tmp_path), clips_of([0, 1, 1, 2], tmp_path)
    assert describe_clips({"train": train, "test": test}) == (
        "2,000 clips of train, 4 clips of test, split by an unknown unit; "
        "3 classes, chance 0.333, majority 0.500 (test)"
    )


def test_classes_without_a_clip_count_for_chance(tmp_path):
    text = describe_clips({"val": clips_of([0, 0, 0, 2], tmp_path)})
    assert text == (
        "4 clips of val, split by an unknown unit; "
        "3 classes (1 without a clip of val), chance 0.333, majority 0.750 (val)"
    )


def test_who_was_heard_is_said_of_the_clips_that_score(tmp_path, caplog):
    """Fold 1 is tested: Ann is in train with a crow, Bob with no crow, Cem is unheard, and the rest are unknown."""
    people = {"Crow/fold-30": "Ann", "Crow/fold-10": "Ann", "Blackbird/fold-30": "Bob", "Crow/fold-11": "Bob"}
    people |= {"Great Tit/fold-10": "Cem"}
    folder = write_processed(tmp_path / "data", folds=3, recordists=people)
    train, val, test = (read_clips(folder, split, fold=1) for split in ("train", "val", "test"))
    line = "recordist heard in train with the same species {}, with another species {}, unknown {}"
    with caplog.at_level(logging.INFO):
        for clips, expected in [
            ({"train": train, "test": test}, "test: " + line.format("2 (17%)", "2 (17%)", "6 (50%)")),
            ({"train": train, "val": val}, "val: " + line.format("0 (0%)", "0 (0%)", "12 (100%)")),
            ({"train": train}, None),  # nothing is scored
            ({"all": read_clips(folder, fold=1)}, None),
            ({"test": clips_of([0, 1], tmp_path)}, None),  # without recordings.csv
        ]:
            caplog.clear()
            log_start("cpu", "cpu", {}, clips)
            said = [record.getMessage() for record in caplog.records[1:]]
            assert said == ([] if expected is None else [expected])


@pytest.mark.parametrize(("keep", "words"), [([0, 1, 2], "3 blocks"), ([1], "1 block"), ([], "0 blocks")])
def test_blocks_and_parameters(keep, words):
    model = small_model("wav2vec2").model
    encoders.prune_model(model, keep)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert describe_model(model) == f"wav2vec2, {words}, {n_parameters / 1e6:.3g} M parameters"


def test_a_cnn_has_no_blocks():
    model = cnn.build_cnn("melspectrogram", ["a", "b"], 16_000, 1.0, 0.25, False).model
    assert "block" not in describe_model(model)


def test_a_device_that_is_not_used_is_told(caplog):
    with caplog.at_level(logging.INFO):
        log_start("cuda", "cpu", {}, {})
    assert "--device cuda has no effect" in caplog.text and "device cpu (" in caplog.text
    caplog.clear()
    log_start("auto", "cpu", {}, {})
    assert not [record for record in caplog.records if record.levelname != "INFO"]
