"""Detections beside the songs that are there: hand-counted."""

import numpy as np
import pytest

from experiments import detection_scores
from utils.data.annotations import Annotation

SONGS = [
    Annotation("night.wav", 0.0, 4.0, "wren"),
    Annotation("night.wav", 10.0, 12.0, "wren"),
    Annotation("night.wav", 2.0, 5.0, "owl"),
    Annotation("dawn.wav", 0.0, 0.2, "owl"),
]
DETECTED = [
    Annotation("2026/night.wav", 3.5, 6.5, "wren"),  # half a second of the first song: just right
    Annotation("2026/night.wav", 11.6, 15.0, "wren"),  # 0.4 s of the second one
    Annotation("2026/night.wav", 3.0, 6.0, "owl"),
    Annotation("2026/dawn.wav", 0.0, 3.0, "owl"),  # all of a song that is shorter than half a second
    Annotation("2026/dawn.wav", 0.0, 3.0, "wren"),
]


def test_counts_are_those_of_a_hand():
    table = detection_scores.count(DETECTED, SONGS, 0.5).set_index("label")
    assert list(table.index) == ["owl", "wren", "all"]
    assert table.loc["wren"].to_list() == [2, 1, 0.5, 3, 1, pytest.approx(1 / 3)]
    assert table.loc["owl"].to_list() == [2, 2, 1.0, 2, 2, 1.0]
    assert table.loc["all"].to_list() == [4, 3, 0.75, 5, 3, 0.6]
    assert detection_scores.count(DETECTED, SONGS, 0.3).set_index("label").loc["wren", "right"] == 2


def test_files_of_one_name_are_told_apart_by_their_folder():
    songs = [Annotation("a/x.wav", 0.0, 2.0, "wren"), Annotation("b/x.wav", 10.0, 12.0, "wren")]
    detected = [Annotation("a/x.wav", 10.0, 12.0, "wren"), Annotation("b/x.wav", 10.0, 12.0, "wren")]
    of_all = detection_scores.count(detected, songs, 0.5).set_index("label").loc["all"]
    assert (of_all["found"], of_all["right"]) == (1, 1)


def test_tables_of_other_files_are_told(caplog):
    table = detection_scores.count([Annotation("dusk.wav", 0.0, 3.0, "owl")], SONGS, 0.5).set_index("label")
    assert table.loc["all", "recall"] == 0
    assert "detections are in dusk.wav, songs in dawn.wav. Files are compared by name" in caplog.text


def test_of_nothing_there_is_no_share():
    table = detection_scores.count([], SONGS, 0.5).set_index("label")
    assert table.loc["all", "recall"] == 0 and np.isnan(table.loc["all", "precision"])
    assert np.isnan(detection_scores.count(DETECTED, [], 0.5).set_index("label").loc["all", "recall"])


def test_it_reads_tables_and_prints_and_writes_one(tmp_path, capsys, caplog):
    detected, truth = tmp_path / "detections.csv", tmp_path / "planted.csv"
    detected.write_text("file,start_s,end_s,label,score,threshold,recorded_at\nnight.wav,0.0,3.0,wren,0.9,0.5,\n")
    truth.write_text("file,start,end,label\nnight.wav,1.0,2.0,wren\nnight.wav,5.0,6.0,wren\nnight.wav,x,6.0,wren\n")
    words = ["--detections", str(detected), "--truth", str(truth), "--output", str(tmp_path / "scores.csv")]
    assert detection_scores.main(words) == 0
    assert "0.50" in capsys.readouterr().out
    assert [message.startswith("left out: ") and "planted.csv" in message for message in caplog.messages] == [True]
    assert (tmp_path / "scores.csv").read_text().splitlines()[-1] == "all,2,1,0.5,1,1,1"


def test_a_missing_table_is_named(tmp_path, caplog):
    words = ["--detections", str(tmp_path / "none.csv"), "--truth", str(tmp_path / "none.csv")]
    assert detection_scores.main(words) == 3
    assert "none.csv cannot be read" in caplog.text
