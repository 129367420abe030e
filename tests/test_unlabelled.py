"""Recordings without labels: cut by 01, kept apart from val and test, and heard by a student with its teacher."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.data import small_model
from tests.sounds import calls, write
from tests.stages import load_stage
from utils.core import runs
from utils.core.files import write_csv
from utils.data.clips import read_clips
from utils.data.unlabelled import WithUnlabelled, read_unlabelled
from utils.models import encoders, training, training_history
from utils.models.augmentation import UNKNOWN

preparing, cnn_stage = load_stage("01_data_processing"), load_stage("06_cnn")
pytestmark = pytest.mark.usefixtures("blank_figures")
LABELS = ["Crow", "Wren"]


def cut(raw_dir, output_dir, *more) -> int:
    words = ("--raw_dir", raw_dir, "--output_dir", output_dir, "--clip_seconds", 1, "--num_workers", 1, *more)
    return preparing.main([*map(str, words)])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twelve recordings of 3 s, each by another person."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for i in range(12):
        write(folder / "raw" / f"{i}.wav", calls(3, seed=i), 16_000)
        rows.append([f"{i}.wav", LABELS[i % 2], f"XC{i}", f"Person {i}"])
    write_csv(folder / "table.csv", ["file", "label", "recording_id", "recordist"], rows)
    table = ("--metadata", folder / "table.csv", "--val_fraction", 0.25, "--test_fraction", 0.25)
    assert cut(folder / "raw", folder / "out", "--min_recordings", 1, *table) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def unlabelled(labelled, tmp_path_factory):
    """Two new recordings, and four that tell of val or test: by name, by sound, nearly by sound, and by recordist."""
    folder, of_split = tmp_path_factory.mktemp("unlabelled"), pd.read_csv(labelled / "recordings.csv")
    test, val = (of_split.loc[of_split["split"] == split, "recording_id"].tolist() for split in ("test", "val"))
    train = of_split.loc[of_split["split"] == "train", "recording_id"].tolist()
    number = {name: int(name.removeprefix("XC")) for name in of_split["recording_id"]}
    sounds = {
        "new/a": (calls(3, seed=50), ""),
        "new/b": (calls(2, seed=51), "Somebody Else"),
        "trained": (calls(3, seed=number[train[0]]), ""),
        "named": (calls(3, seed=52), ""),
        "same": (calls(3, seed=number[test[1]]), ""),
        "nearly": (0.4 * calls(3, seed=number[val[0]])[5000:], ""),
        "person": (calls(3, seed=53), f"{number[test[0]]}, PÉRSON"),  # another spelling
    }
    rows = []
    for name, (sound, recordist) in sounds.items():
        write(folder / "raw" / f"{name}.wav", sound, 16_000)
        rows.append([f"{name}.wav", "", test[0] if name == "named" else f"U-{name}", recordist])
    write_csv(folder / "table.csv", ["file", "label", "recording_id", "recordist"], rows)
    assert cut(folder / "raw", folder / "out", "--unlabelled", "--metadata", folder / "table.csv") == 0
    return folder / "out", {"named": test[0], "same": test[1], "nearly": val[0], "person": test[0]}


def test_01_cuts_recordings_without_labels(unlabelled, tmp_path):
    clips = read_clips(unlabelled[0], unlabelled=True)
    assert len(clips) == 19 and clips.labels == [] and set(clips.table["label_id"]) == {-1}
    assert set(clips.table["split"]) == {"train"}
    table = pd.read_csv(unlabelled[0] / "recordings.csv").set_index("recording_id")
    assert table["recordist"]["U-new/b"] == "Somebody Else" and table["label"].isna().all()
    assert (clips.audio(0) != 0).any()
    write(tmp_path / "raw" / "any folder" / "one.wav", calls(2, seed=3), 16_000)
    assert cut(tmp_path / "raw", tmp_path / "out", "--unlabelled") == 0, "no table, one folder, one recording"
    assert cut(tmp_path / "raw", tmp_path / "out", "--unlabelled") == 0, "complete: nothing to do"


def test_01_says_nothing_of_a_split_or_of_labels_that_are_not_made(tmp_path, caplog):
    for name in ("a", "b"):
        write(tmp_path / "raw" / f"{name}.wav", calls(2, seed=3), 16_000)  # the same sound
    write_csv(tmp_path / "table.csv", ["file", "label", "licence"], [["a.wav", "Crow", "CC0"]])
    with caplog.at_level("INFO"):
        assert cut(tmp_path / "raw", tmp_path / "out", "--unlabelled", "--metadata", tmp_path / "table.csv") == 0
    assert "--metadata has no row for 1 file: b.wav" in caplog.text and "2 files share sound" in caplog.text
    assert f"{tmp_path / 'out'}: 2 files, 2 recordings, 0.00 h, 4 clips; 0 in skipped.csv" in caplog.text
    assert "table.csv: licence from column licence" in caplog.text
    assert not [word for word in ("split", "recordist is known", "--annotations", "label from") if word in caplog.text]


@pytest.mark.parametrize(("samples", "reason"), [(np.zeros(16_000), "silent"), (calls(0.05, 1), "too short: 0.05 s")])
def test_01_without_a_recording_that_can_be_used(tmp_path, caplog, samples, reason):
    for name in ("a", "b", "c"):
        write(tmp_path / "raw" / f"{name}.wav", samples, 16_000)
    assert cut(tmp_path / "raw", tmp_path / "out", "--unlabelled") == 3
    assert f"no recording is left of 3, all are skipped; the first, a.wav: {reason}" in caplog.text
    assert "Traceback" not in caplog.text


def test_recordings_that_tell_of_val_or_test_are_left_out_by_name(labelled, unlabelled, caplog):
    folder, of = unlabelled
    clips = read_unlabelled(folder, read_clips(labelled, "train"))
    assert set(clips.table["recording_id"]) == {"U-new/a", "U-new/b", "U-trained"}
    assert "4 of 7 unlabelled recordings are left out" in caplog.text
    assert f"{of['named']} (its name is in test)" in caplog.text
    assert f"U-same (it shares sound with {of['same']} of test)" in caplog.text
    assert f"U-nearly (it shares sound with {of['nearly']} of val)" in caplog.text
    assert f"U-person (its recordist person {of['person'].removeprefix('XC')} is in test)" in caplog.text


def test_an_unlabelled_clip_has_no_task_loss_and_neither_has_its_mixture(labelled, unlabelled):
    train = read_clips(labelled, "train")
    dataset = WithUnlabelled(train, read_clips(unlabelled[0], unlabelled=True))
    assert len(dataset) == len(train) + 19
    items = [dataset[i] for i in (0, 1, len(train), len(dataset) - 1)]
    assert [item["index"] for item in items] == [0, 1, len(train), len(dataset) - 1]
    loaded = small_model("wav2vec2", labels=LABELS)
    collator = training.Collator(loaded.extractor, "input_values", train, (), 0)
    labels = collator(items)["labels"]
    assert (labels[2:] == UNKNOWN).all() and (labels[:2].sum(dim=1) == 1).all()
    logits, n_items = torch.randn(4, 2), torch.tensor(8)
    loss = training.Loss(torch.tensor([1.0, 3.0]), 0.1, skips_unknown=True)
    alone = training.Loss(torch.tensor([1.0, 3.0]), 0.1)({"logits": logits[:2]}, labels[:2], n_items)
    torch.testing.assert_close(loss({"logits": logits}, labels, n_items), alone)
    assert float(loss({"logits": logits[2:]}, labels[2:], n_items)) == 0
    mixing = training.Collator(loaded.extractor, "input_values", train, ("mixup",), 0)
    found = [mixing(items)["labels"] for mixing.epoch in range(20)]
    n_unknown = [int((own == UNKNOWN).all(dim=1).sum()) for own in found]
    assert min(n_unknown) == 2 and max(n_unknown) > 2
    assert all(((own == UNKNOWN).all(dim=1) | (own != UNKNOWN).all(dim=1)).all() for own in found)


def words(labelled, output_dir, *more):
    words = ("--data_dir", labelled, "--output_dir", output_dir, "--architecture", "melspectrogram", "--width", 0.125)
    return [*map(str, (*words, "--num_train_epochs", 1, "--device", "cpu", *more))]


def test_a_student_hears_them_with_its_teacher(labelled, unlabelled, tmp_path, caplog):
    torch.manual_seed(0)
    teacher = small_model("whisper", labels=LABELS)
    encoders.save_model(teacher, tmp_path / "teacher")
    taught = ("--teacher_dir", tmp_path / "teacher", "--teacher_views", 1)
    assert cnn_stage.main(words(labelled, tmp_path / "run", *taught, "--unlabelled_dir", unlabelled[0])) == 0
    assert "8 unlabelled clips of 3 recordings" in caplog.text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "unlabelled_dir" in {entry["name"] for entry in record["inputs"]}
    student = encoders.load_model(tmp_path / "run", "cpu").model
    digests = {entry["name"]: entry["sha256"] for entry in record["inputs"]}
    assert student.config.trained_on == [digests["unlabelled_dir"], digests["data_dir"]]
    known = training_history.warn_of_known_recordings(
        student, "student", runs.Input(str(unlabelled[0]), "other"), {"test": ["U-new/a", "U-same"]}
    )
    assert known == {"test": 1}, "it is trained on those that it heard"
    assert np.isfinite(pd.read_csv(tmp_path / "run" / "metrics.csv")["train_loss"]).all()


def test_bad_input_is_refused_with_the_fix(labelled, unlabelled, tmp_path, caplog):
    def refused(code, text, call, *args):
        caplog.clear()
        assert call(*args) == code
        assert text in caplog.text and "Traceback" not in caplog.text

    refused(
        2, "give its folder, --teacher_dir", cnn_stage.main, words(labelled, tmp_path / "a", "--unlabelled_dir", "x")
    )
    encoders.save_model(small_model("wav2vec2", labels=LABELS), tmp_path / "teacher")
    taught = ("--teacher_dir", tmp_path / "teacher", "--unlabelled_dir")
    refused(3, "no such folder", cnn_stage.main, words(labelled, tmp_path / "b", *taught, tmp_path / "none"))
    refused(3, "it has labels", cnn_stage.main, words(labelled, tmp_path / "c", *taught, labelled))
    refused(3, "Give it as --unlabelled_dir", cnn_stage.main, words(unlabelled[0], tmp_path / "d"))
    write(tmp_path / "raw" / "one.wav", calls(4, seed=3), 16_000)
    assert cut(tmp_path / "raw", tmp_path / "longer", "--unlabelled", "--clip_seconds", 2) == 0
    refused(3, "its clip length is 2 s", cnn_stage.main, words(labelled, tmp_path / "e", *taught, tmp_path / "longer"))
    write(tmp_path / "again" / "one.wav", read_sound(labelled), 16_000)
    assert cut(tmp_path / "again", tmp_path / "known", "--unlabelled") == 0
    refused(3, "no recording is left", cnn_stage.main, words(labelled, tmp_path / "f", *taught, tmp_path / "known"))
    for flag in (
        *(("--folds", 3), ("--annotations", "x"), ("--secondary_labels", "--metadata", "x"), ("--shard", "1/2")),
        *(("--min_recordings", 2), ("--split_by", "clip"), ("--val_fraction", 0), ("--background", "x")),
        *(("--min_overlap_s", 0.1), ("--label_column", "x")),
    ):
        refused(2, f"leave {flag[0]} out", cut, tmp_path / "raw", tmp_path / "g", "--unlabelled", *flag)


def read_sound(labelled):
    test = read_clips(labelled, "test")
    return np.concatenate([test.audio(i) for i in range(3)])
