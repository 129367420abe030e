"""Stage 01 end to end, on synthesised recordings."""

import dataclasses
import hashlib
import json
import multiprocessing
import random
import re
import shutil
import signal
import sys
import textwrap
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from mutagen.id3 import ID3, TPE1, WCOP, WOAF

from tests.sounds import song, write
from tests.stages import ROOT, digests, load_stage
from utils.core.files import sha256_of_lines
from utils.data import audio, clips, preparation, splits, spool

stage = load_stage("01_data_processing")

LABELS = ["Crow", "Great Tit", "Wren"]
KINDS = [("wav", 44100, 2), ("flac", 16000, 1), ("ogg", 32000, 1), ("mp3", 48000, 2), ("wav", 8000, 1)]


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    """Return a folder of 3 species with 8 recordings each, of several lengths and formats."""
    raw_dir = tmp_path_factory.mktemp("raw")
    for i in range(24):
        suffix, rate_hz, n_channels = KINDS[i % len(KINDS)]
        label = LABELS[i % 3]
        write(raw_dir / f"{label}_sound" / f"XC{100 + i}.{suffix}", song(1 + i / 2, rate_hz, n_channels, i), rate_hz)
    return raw_dir


def run(raw_dir, output_dir, *more):
    argv = ["--raw_dir", raw_dir, "--output_dir", output_dir, "--min_recordings", 3, "--num_workers", 1]
    argv += ["--min_remainder_seconds", 0.1]
    return stage.main([str(word) for word in [*argv, *more]])


LICENCE = "http://creativecommons.org/licenses/by-nc-sa/4.0/"


def read_csv(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_parts(output_dir):
    return pd.concat([pd.read_parquet(p) for p in sorted(output_dir.glob("clips-*.parquet"))], ignore_index=True)


@pytest.fixture(scope="module")
def processed(raw_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("one") / "processed"
    assert run(raw_dir, output_dir, "--clip_seconds", 2) == 0
    return output_dir


# ------------------------------------------------------------------------------------------ what is written


def test_the_folder_holds_what_the_contract_names_and_no_more(processed):
    names = {"clips-00000.parquet", "label_mappings.json", "recordings.csv", "split_report.csv", "skipped.csv"}
    assert {p.name for p in processed.iterdir()} == names | {"run.json", "log.txt", ".lock"}
    assert re.search(r"device cpu \(.+ files, \d+ labels; clips of ", (processed / "log.txt").read_text())
    record = json.loads((processed / "run.json").read_text())
    assert record["status"] == "complete"
    assert {output["path"] for output in record["outputs"]} == names
    assert record["metrics"]["n_files"] == record["metrics"]["n_recordings"] == 24
    assert sum(record["metrics"]["n_clips"].values()) == len(pd.read_parquet(processed / "clips-00000.parquet"))


def test_a_clip_is_its_place_in_the_resampled_recording(raw_dir, processed):
    table = read_parts(processed)
    assert list(zip(table.recording_id, table.clip_index, strict=True)) == sorted(
        zip(table.recording_id, table.clip_index, strict=True)
    )
    assert (table.clip_id == table.recording_id + ":" + table.clip_index.astype(str)).all()
    assert set(table.audio.map(len)) == {32000}
    for path, rows in table.groupby("source_path"):
        samples, rate_hz = soundfile.read(raw_dir / path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        whole = mono if rate_hz == 16000 else soxr.resample(mono, rate_hz, 16000)
        expected = np.rint(whole * 32768)
        assert rows.duration_s.sum() == pytest.approx(len(whole) / 16000, abs=0.1)
        for row in rows.itertuples():
            start, length = round(row.start_s * 16000), round(row.duration_s * 16000)
            assert start == row.clip_index * 32000
            piece = expected[start : start + length]
            repeated = np.tile(piece, 32000 // len(piece) + 1)[:32000]
            assert np.abs(row.audio - repeated).max() <= 1


def test_labels_and_splits(processed):
    labels = clips.read_labels(processed)
    assert labels == LABELS
    table = read_parts(processed)
    assert (table.label == table.label_id.map(dict(enumerate(labels)))).all()
    assert set(table.split) == {"train", "val", "test"}
    assert (table.groupby("group").split.nunique() == 1).all()
    assert (table.groupby("label").split.nunique() == 3).all()


def test_tables_agree_with_the_clips(raw_dir, processed):
    table = read_parts(processed)
    recordings = pd.read_csv(processed / "recordings.csv").set_index("recording_id")
    by_recording = table.groupby("recording_id")
    assert (recordings.n_clips == by_recording.size()).all()
    assert (recordings.split == by_recording.split.first()).all()
    assert (recordings.group == by_recording.group.first()).all()
    first = table[table.recording_id == "XC101"]
    pcm = (soundfile.read(raw_dir / first.source_path.iloc[0], dtype="int16")[0]).astype("<i2")
    assert recordings.sha256["XC101"] == hashlib.sha256(pcm.tobytes()).hexdigest()
    assert recordings.duration_s["XC101"] == len(pcm) / 16000
    report = pd.read_csv(processed / "split_report.csv").set_index(["label", "split"])
    by_cell = table.groupby(["label", "split"])
    assert len(report) == 9
    assert report.clips.to_dict() == by_cell.size().to_dict()
    assert report.recordings.to_dict() == by_cell.recording_id.nunique().to_dict()
    assert report.groups.to_dict() == by_cell.group.nunique().to_dict()


def test_the_clips_are_read_by_our_reader_and_by_datasets(processed, tmp_path):
    datasets = pytest.importorskip("datasets")
    table = read_parts(processed)
    read = clips.read_clips(processed)
    assert (read.sample_rate_hz, read.clip_seconds) == (16000, 2.0)
    np.testing.assert_array_equal(read.audio(5) * 32768, table.audio[5])
    loaded = datasets.load_dataset(
        "parquet", data_files=str(processed / "clips-*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert loaded[5]["audio"] == table.audio[5].tolist()
    assert loaded["clip_id"][:] == table.clip_id.tolist()


# ---------------------------------------------------------------------------------------------- arguments


def test_a_short_rest_is_no_clip_and_filled_clips_are_counted(tmp_path, caplog):
    seconds = {"Crow": [5.15, 5.15, 5.15, 0.5], "Wren": [5.15, 6.5, 12, 5]}
    for label, lengths in seconds.items():
        for i, length in enumerate(lengths):
            write(tmp_path / "raw" / label / f"{label}{i}a.wav", song(length, 16000, seed=i + ord(label[0])), 16000)
    with caplog.at_level("INFO"):
        assert run(tmp_path / "raw", tmp_path / "out", "--min_remainder_seconds", 1) == 0
    table = read_parts(tmp_path / "out")
    assert sorted(table.duration_s.round(2)) == pytest.approx([0.5, 1.5, 2] + [5] * 8)
    assert "3 of 11 clips are shorter than 5 s (median 1.50 s) and are repeated to this length" in caplog.text
    assert "the rests of 4 recordings after the last clip are left out: 0.60 s in all" in caplog.text
    report = pd.read_csv(tmp_path / "out" / "split_report.csv")
    assert (report.short_clips.sum(), report.clips.sum()) == (3, 11)


def test_the_channel_that_was_used_stands_in_the_table(tmp_path):
    for i in range(6):
        sound = song(1, 16000, 1 + i % 3, seed=i)
        if i == 1:
            sound[:, 1] *= -1
        write(tmp_path / "raw" / LABELS[i % 2] / f"XC{i}.wav", sound, 16000)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    channels = read_csv(tmp_path / "out" / "recordings.csv").set_index("recording_id").channel
    assert channels["XC0"] == "mono" and channels["XC2"] == "mean of 3" and channels["XC4"] == "mean of 2"
    assert channels["XC1"].startswith(("1 of 2: the channels cancel by ", "2 of 2: the channels cancel by "))
    assert run(tmp_path / "raw", tmp_path / "right", "--channel", "right", "--min_recordings", 1) == 0
    skipped = read_csv(tmp_path / "right" / "skipped.csv").set_index("file").reason
    assert set(skipped) == {"has no channel right: it has 1; choose another --channel"} and len(skipped) == 2


@pytest.mark.parametrize("name", ["middle", "0", "-1", "1.5", ""])
def test_a_channel_that_is_none(tmp_path, name, capsys):
    assert run(tmp_path, tmp_path / "out", f"--channel={name}") == 2
    assert "expected mean, left, right, best or a number; the first is 1" in capsys.readouterr().err


def test_sample_rate_and_clip_length(raw_dir, tmp_path):
    assert run(raw_dir, tmp_path / "out", "--sample_rate", 8000, "--clip_seconds", 1.5, "--remainder", "drop") == 0
    table = read_parts(tmp_path / "out")
    assert set(table.audio.map(len)) == {12000}
    assert set(table.duration_s) == {1.5}
    skipped = read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped.file.tolist() == ["Crow_sound/XC100.wav"]
    assert skipped.reason[0] == "too short: 1 s, less than 1.5 s (--clip_seconds with --remainder drop)"


def test_labels_with_few_recordings_are_left_out_by_name(raw_dir, tmp_path, caplog):
    raw = tmp_path / "raw"
    raw.mkdir()
    for folder in raw_dir.iterdir():
        (raw / folder.name).symlink_to(folder)
    write(raw / "Rook" / "XC900.wav", song(1, 16000), 16000)
    write(raw / "Rook" / "XC900_part2.wav", song(1, 16000, seed=1), 16000)
    assert run(raw, tmp_path / "out", "--min_recordings", 2) == 0
    assert "1 label has fewer than 2 recordings, left out: Rook (1)" in caplog.text
    assert clips.read_labels(tmp_path / "out") == LABELS
    skipped = read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped.file.tolist() == ["Rook/XC900.wav", "Rook/XC900_part2.wav"]
    assert set(skipped.reason) == {"its label Rook has 1 recording, fewer than --min_recordings 2"}


def test_a_label_that_falls_below_the_minimum_by_bad_files_is_left_out(tmp_path, caplog):
    for label in ("Crow", "Rook", "Wren"):
        for i in range(3):
            seed = 10 * "CRW".index(label[0]) + i
            write(tmp_path / "raw" / label / f"XC{seed}.wav", song(1, 16000, seed=seed), 16000)
    (tmp_path / "raw" / "Rook" / "XC11.wav").write_text("no sound")
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    assert "left out: Rook (2)" in caplog.text
    assert clips.read_labels(tmp_path / "out") == ["Crow", "Wren"]
    assert len(read_csv(tmp_path / "out" / "skipped.csv")) == 3


def test_metadata_gives_labels_recordings_and_recordists(tmp_path):
    rows = ["file,label,recording_id,recordist,lic"]
    for i in range(24):
        write(tmp_path / "raw" / f"{i}.wav", song(1.2, 16000, seed=i), 16000)
        who = "Ann" if i < 8 else "Bob" if i < 16 else "Cem"
        rows.append(f"{i}.wav,{LABELS[i % 2]},R{i // 4 * 2 + i % 2},{who},{LICENCE if i < 8 else ''}")
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("\n".join(rows))
    assert run(tmp_path / "raw", tmp_path / "out", "--metadata", metadata, "--clip_seconds", 1) == 0
    recordings = read_csv(tmp_path / "out" / "recordings.csv").set_index("recording_id")
    assert len(recordings) == 12
    assert set(recordings.n_files) == {"2"}
    columns = ["label", "recordist", "licence", "group"]
    assert recordings.loc["R0", columns].tolist() == ["Crow", "Ann", LICENCE, "Ann"]
    assert set(recordings.licence) == {LICENCE, ""}
    table = read_parts(tmp_path / "out")
    first = table[table.recording_id == "R0"]
    assert first.source_path.tolist() == ["0.wav", "0.wav", "2.wav", "2.wav"]
    assert first.clip_index.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(first.start_s, [0, 1, 0, 1])
    np.testing.assert_allclose(first.duration_s, [1, 0.2, 1, 0.2], rtol=1e-6)
    sha256 = [
        hashlib.sha256(soundfile.read(tmp_path / "raw" / name, dtype="int16")[0].tobytes()).hexdigest()
        for name in ("0.wav", "2.wav")
    ]
    assert recordings.sha256["R0"] == sha256_of_lines(sha256)


def test_split_by_clip_tells_the_truth_about_recordings(raw_dir, tmp_path):
    assert run(raw_dir, tmp_path / "out", "--split_by", "clip", "--clip_seconds", 0.5) == 0
    table = read_parts(tmp_path / "out")
    recordings = read_csv(tmp_path / "out" / "recordings.csv").set_index("recording_id")
    assert set(recordings.group) == {""}
    assert recordings.split.str.contains("|", regex=False).any()
    for recording_id, rows in table.groupby("recording_id"):
        assert set(recordings.split[recording_id].split("|")) == set(rows.split)


def test_another_seed_gives_another_split(raw_dir, processed, tmp_path):
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2, "--seed", 7) == 0
    one, other = read_parts(processed), read_parts(tmp_path / "out")
    assert one.clip_id.equals(other.clip_id)
    assert not one.split.equals(other.split)


# -------------------------------------------------------------------------------------- folds, collections


@pytest.fixture(scope="module")
def by_people(tmp_path_factory):
    """Return a folder of 42 recordings of 3 species, with a table: 8 people have two species each, 10 are unknown."""
    raw_dir = tmp_path_factory.mktemp("people") / "raw"
    rows = ["file,label,recordist,collection,archive"]
    for i in range(42):
        person, label = i % 8, LABELS[(i % 8 + i // 8 % 2) % 3]
        write(raw_dir / f"{i:02d}.wav", song(1.2, 16000, seed=i), 16000)
        rows.append(f"{i:02d}.wav,{label},{f'Person {person}' if i < 32 else ''},C{i % 2},{'A' if i % 3 else ''}")
    (raw_dir / "table.csv").write_text("\n".join(rows))
    return raw_dir


def run_by_people(by_people, output_dir, *more):
    return run(by_people, output_dir, "--metadata", by_people / "table.csv", "--clip_seconds", 1, *more)


@pytest.fixture(scope="module")
def in_folds(by_people, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("folds") / "out"
    assert run_by_people(by_people, output_dir, "--folds", 4) == 0
    return output_dir


def heard_by_hand(recordings, test="test", train=("train",)):
    """Return the counts of `Heard`, as dict, from rows of ``recordings.csv``."""
    known = recordings[recordings.split.isin(train) & (recordings.recordist != "")]
    counts = dict.fromkeys(("n_clips", "same_species", "other_species", "unknown"), 0)
    for row in recordings[recordings.split == test].itertuples():
        own = known[known.recordist == row.recordist]
        what = "unknown" if row.recordist == "" else "same_species" if row.label in set(own.label) else "other_species"
        counts["n_clips"] += int(row.n_clips)
        if what == "unknown" or len(own):
            counts[what] += int(row.n_clips)
    return counts


def test_all_that_is_written_names_folds(in_folds):
    table, recordings = read_parts(in_folds), read_csv(in_folds / "recordings.csv")
    names = ["fold-1", "fold-2", "fold-3", "fold-4"]
    assert set(table.split) == set(names)
    assert (table.groupby("group").split.nunique() == 1).all() and (table.groupby("label").split.nunique() == 4).all()
    known = recordings[recordings.recordist != ""]
    assert (known.groupby("recordist").split.nunique() == 1).all(), "a person is in one fold, whatever the species"
    assert recordings.set_index("recording_id").split.equals(table.groupby("recording_id").split.first())
    report = pd.read_csv(in_folds / "split_report.csv").set_index(["label", "split"])
    assert report.index.tolist() == [(label, name) for label in LABELS for name in ["train", *names]]
    by_cell = table.groupby(["label", "split"])
    assert report.clips[report.clips > 0].to_dict() == by_cell.size().to_dict()
    assert report.groups[report.groups > 0].to_dict() == by_cell.group.nunique().to_dict()
    assert not report.xs("train", level="split").clips.any()
    metrics = json.loads((in_folds / "run.json").read_text())["metrics"]
    assert metrics["n_clips"] == {"train": 0, **table.split.value_counts().to_dict()}
    assert metrics["heard_in_train"] == {"n_clips": 84, "same_species": 0, "other_species": 0, "unknown": 20}
    said = "test clips: 84; recordist heard in train with the same species 0 (0%), with another species 0 (0%)"
    assert f"{said}, unknown 20 (24%)" in (in_folds / "log.txt").read_text()


@pytest.mark.parametrize("unit", ["recordist", "recordist_and_species", "recording"])
def test_who_was_heard_agrees_with_a_hand_count(by_people, tmp_path, unit):
    assert run_by_people(by_people, tmp_path / "one", "--split_by", unit) == 0
    heard = json.loads((tmp_path / "one" / "run.json").read_text())["metrics"]["heard_in_train"]
    recordings = read_csv(tmp_path / "one" / "recordings.csv")
    assert heard == heard_by_hand(recordings)
    assert dataclasses.asdict(clips.read_clips(tmp_path / "one", "test").heard_in_train) == heard
    assert (heard["other_species"] > 0, heard["same_species"] > 0) == {
        "recordist": (False, False),
        "recordist_and_species": (True, False),
        "recording": (heard["other_species"] > 0, True),
    }[unit]


def test_who_was_heard_over_all_folds_agrees_with_a_hand_count(by_people, tmp_path):
    assert run_by_people(by_people, tmp_path / "out", "--folds", 3, "--split_by", "recordist_and_species") == 0
    recordings = read_csv(tmp_path / "out" / "recordings.csv")
    by_hand = Counter()
    for fold in (1, 2, 3):
        one = heard_by_hand(recordings, f"fold-{fold}", ("train", f"fold-{(fold + 1) % 3 + 1}"))
        assert dataclasses.asdict(clips.read_clips(tmp_path / "out", "test", fold=fold).heard_in_train) == one
        by_hand.update(one)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]["heard_in_train"] == dict(by_hand)
    assert by_hand["other_species"] > 0 and by_hand["n_clips"] == 84


def test_folds_merged_from_shards_are_the_same_bytes(by_people, in_folds, tmp_path):
    for number in (1, 2):
        assert run_by_people(by_people, tmp_path / "out", "--shard", f"{number}/2") == 0
    assert run_by_people(by_people, tmp_path / "out", "--folds", 4, "--merge_shards", 2) == 0
    assert digests(tmp_path / "out") == digests(in_folds)


@pytest.mark.parametrize("number", ["2", "21", "x", "0", "-3", "4.0"])
def test_no_such_number_of_folds(by_people, tmp_path, capsys, number):
    assert run_by_people(by_people, tmp_path / "out", f"--folds={number}") == 2
    assert f"{number!r} is not a number of folds; expected 3 to 20" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_folds_than_groups(by_people, tmp_path, caplog):
    assert run_by_people(by_people, tmp_path / "out", "--folds", 20) == 2
    assert "--folds 20: there are only 18 groups; give fewer folds" in caplog.text
    assert not (tmp_path / "out" / "clips-00000.parquet").exists()


def test_other_folds_are_another_data_set(by_people, in_folds, caplog):
    assert run_by_people(by_people, in_folds, "--folds", 4) == 0
    assert run_by_people(by_people, in_folds, "--folds", 5) == 4
    assert "it was made with --folds 4, now it is 5" in caplog.text
    assert run_by_people(by_people, in_folds) == 4
    assert "it was made with --folds 4, now it is not given" in caplog.text


def test_the_collection_of_a_recording(by_people, in_folds, tmp_path, caplog):
    collections = read_csv(in_folds / "recordings.csv").collection
    assert collections.tolist() == [f"C{i % 2}" for i in range(42)], "a column of that name is taken"
    assert run_by_people(by_people, tmp_path / "out", "--collection_column", "Archive") == 0
    collections = read_csv(tmp_path / "out" / "recordings.csv").collection
    assert collections.tolist() == ["A" if i % 3 else "" for i in range(42)]
    assert "collection from column archive" in caplog.text
    assert "recordings of one collection only" not in caplog.text
    assert run_by_people(by_people, tmp_path / "by label", "--collection_column", "label") == 0
    assert "3 of 3 labels have recordings of one collection only" in caplog.text
    assert run_by_people(by_people, tmp_path / "out") == 4, "the table would have another content"


def test_no_such_collection_column(by_people, tmp_path, caplog):
    assert run_by_people(by_people, tmp_path / "out", "--collection_column", "museum") == 3
    assert "table.csv" in caplog.text and "museum" in caplog.text
    assert run(by_people, tmp_path / "out", "--collection_column", "archive") == 2
    assert "--collection_column names a column of --metadata: give --metadata too" in caplog.text
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------- duplicates


def test_equal_sound_under_one_label_shares_a_group_and_under_two_is_left_out(tmp_path, caplog):
    for i in range(12):
        write(tmp_path / "raw" / LABELS[i % 2] / f"XC{i}.wav", song(1, 16000, seed=i), 16000)
    same, contradictory = ((song(1, 16000, seed=seed) * 32768).astype(np.int16) for seed in (98, 99))
    write(tmp_path / "raw" / "Crow" / "XC50.wav", same, 16000)
    write(tmp_path / "raw" / "Crow" / "XC51.flac", same, 16000)
    write(tmp_path / "raw" / "Crow" / "XC60.wav", contradictory, 16000)
    write(tmp_path / "raw" / "Great Tit" / "XC61.wav", contradictory, 16000)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    recordings = read_csv(tmp_path / "out" / "recordings.csv").set_index("recording_id")
    assert recordings.group["XC50"] == recordings.group["XC51"]
    assert recordings.group.nunique() == 13
    skipped = read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped.file.tolist() == ["Crow/XC60.wav", "Great Tit/XC61.wav"]
    assert skipped.reason[0] == "the same sound as Great Tit/XC61.wav, under another label (Crow, Great Tit)"
    assert "the same sound, kept on one side of the split: Crow/XC50.wav, Crow/XC51.flac" in caplog.text


# ---------------------------------------------------------------------------- again, otherwise, in parallel


def test_the_same_command_again_has_nothing_to_do(raw_dir, processed, caplog):
    before = {p: p.stat().st_mtime_ns for p in processed.iterdir() if p.name != ".lock"}
    (processed / preparation.SCRATCH_NAME).mkdir()  # as a kill in the last moment leaves it
    assert run(raw_dir, processed, "--clip_seconds", 2, "--num_workers", 2) == 0
    assert "nothing to do" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in processed.iterdir() if p.name != ".lock"}


def test_other_arguments_are_refused_until_overwrite(raw_dir, tmp_path, caplog):
    assert run(raw_dir, tmp_path / "out") == 0
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2) == 4
    assert "--clip_seconds 5.0, now it is 2.0" in caplog.text
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2, "--overwrite") == 0
    assert set(read_parts(tmp_path / "out").audio.map(len)) == {32000}


@pytest.mark.parametrize(
    ("then", "now", "other"),
    [
        ("recordist", "recordist_and_species", "recordist"),
        ("strict_recordist", "recordist", "recordist_and_species"),
        ("clip", "clip", "recordist"),
    ],
)
def test_the_split_of_an_earlier_version_is_not_taken_for_another(raw_dir, tmp_path, caplog, then, now, other):
    assert run(raw_dir, tmp_path / "out", "--split_by", now) == 0
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    asked = {name: value for name, value in record["asked"].items() if name not in ("folds", "collection_column")}
    path.write_text(json.dumps(record | {"asked": asked | {"split_by": then}}))
    assert run(raw_dir, tmp_path / "out", "--split_by", now) == 0
    assert "nothing to do" in caplog.text
    assert run(raw_dir, tmp_path / "out", "--split_by", other) == 4
    called = "" if now == then else f", which was called {then} then"
    assert f"it was made with --split_by {now}{called}, now it is {other}" in caplog.text
    assert run(raw_dir, tmp_path / "out", "--split_by", other, "--overwrite") == 0
    assert json.loads(path.read_text())["asked"]["split_by"] == other
    assert "renamed" not in path.read_text()


def test_changed_recordings_are_noticed(tmp_path, caplog):
    for i in range(8):
        write(tmp_path / "raw" / LABELS[i % 2] / f"XC{i}.wav", song(1, 16000, seed=i), 16000)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    write(tmp_path / "raw" / "Crow" / "XC0.wav", song(2, 16000, seed=50), 16000)
    assert run(tmp_path / "raw", tmp_path / "out") == 4
    assert "the content of --raw_dir" in caplog.text


@pytest.mark.parametrize("num_workers", [2, 4])
def test_the_number_of_workers_changes_nothing(raw_dir, tmp_path, monkeypatch, num_workers):
    # Parts of 10 clips, so that there are several; the workers get them as planned.
    monkeypatch.setattr(preparation, "CLIPS_PER_PART", 10)
    assert run(raw_dir, tmp_path / "one") == 0
    assert run(raw_dir, tmp_path / "several", "--num_workers", num_workers) == 0
    assert len(list((tmp_path / "one").glob("clips-*.parquet"))) > 3
    assert digests(tmp_path / "one") == digests(tmp_path / "several")


def test_a_resumed_run_decodes_only_what_is_missing(raw_dir, processed, tmp_path, monkeypatch, caplog):
    decode, n_decoded = audio.decode, []

    def stop_after_ten(path, *more):
        n_decoded.append(path)
        if len(n_decoded) == 11:
            signal.raise_signal(signal.SIGTERM)
        return decode(path, *more)

    monkeypatch.setattr(audio, "decode", stop_after_ten)
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2) == 75
    assert "run the same command again" in caplog.text
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "interrupted"
    spooled = sorted((tmp_path / "out" / preparation.SCRATCH_NAME).glob("*.pcm"), key=lambda p: p.stat().st_mtime_ns)
    spooled[0].write_bytes(b"damaged by a crash of the machine")
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2) == 0
    assert len(n_decoded) == 11 + 24 - 10 + 1
    assert digests(tmp_path / "out") == digests(processed)


def test_parts_of_another_plan_do_not_stay(raw_dir, processed, tmp_path, monkeypatch):
    written = []

    def stop_after_two(task):
        written.append(task.path.name)
        if len(written) == 3:
            signal.raise_signal(signal.SIGINT)
        return write_part(task)

    write_part = spool.write_part
    monkeypatch.setattr(spool, "write_part", stop_after_two)
    monkeypatch.setattr(preparation, "CLIPS_PER_PART", 10)
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2) == 75
    monkeypatch.setattr(preparation, "CLIPS_PER_PART", 1024)  # a version of the program that plans otherwise
    assert run(raw_dir, tmp_path / "out", "--clip_seconds", 2) == 0
    assert written == [clips.part_name(i) for i in (0, 1, 2, 0)]
    assert digests(tmp_path / "out") == digests(processed)


def run_with_small_parts(*argv):
    preparation.CLIPS_PER_PART = 10
    sys.exit(run(*argv))


def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    raw_dir, output_dir = tmp_path / "raw", tmp_path / "out"
    for i in range(24):
        path = raw_dir / LABELS[i % 3] / f"XC{i}.{'flac' if i % 2 else 'ogg'}"
        write(path, song(5 + i / 2, 48000, 1, i), 48000)
    context = multiprocessing.get_context("forkserver")  # starts in milliseconds, libraries imported

    def start(num_workers):
        """Start the stage as a process of its own; return when it has opened its output folder."""
        argv = raw_dir, output_dir, "--num_workers", num_workers, "--log_level", "error"
        process = context.Process(target=run_with_small_parts, args=argv)
        process.start()
        while process.is_alive() and not (output_dir / "run.json").exists():
            time.sleep(0.001)
        return process

    def finish(process):
        process.join()
        return process.exitcode

    process = start(2)
    since = time.monotonic()
    assert finish(process) == 0
    duration_s = time.monotonic() - since
    expected = digests(output_dir)
    assert len(expected) > 10

    rng = random.Random(0)
    n_killed = 0
    while n_killed < 20:
        if json.loads((output_dir / "run.json").read_text())["status"] == "complete":
            shutil.rmtree(output_dir)  # a kill after the very last step leaves its work in progress too
        process = start(num_workers=1 + n_killed % 3)
        time.sleep(rng.uniform(0, duration_s))
        process.kill()  # it alone: that its workers end in time is part of what is tested
        if finish(process) == -signal.SIGKILL:
            n_killed += 1
        else:
            assert digests(output_dir) == expected
    assert finish(start(2)) == 0
    assert digests(output_dir) == expected


def test_the_plan_of_parts_keeps_every_clip_once_and_in_order():
    stretches = [
        spool.Stretch(f"{i}.wav", f"{i}", "a", 0, 0, tuple((j, 1) for j in range(n)), ("g",) * n, ("train",) * n)
        for i, n in enumerate([3, 1, 7, 2])
    ]
    parts = preparation.plan_parts(stretches, 4)
    assert [sum(len(stretch) for stretch in part) for part in parts] == [4, 4, 4, 1]
    planned = [(s.source_path, s.first_index + i, cut) for part in parts for s in part for i, cut in enumerate(s.cuts)]
    assert planned == [(s.source_path, i, cut) for s in stretches for i, cut in enumerate(s.cuts)]


def test_files_are_batched_completely():
    files = [spool.Listed(f"{i}.wav", 10 ** (i % 5), 0) for i in range(500)]
    batches = list(preparation.batches(files, 2))
    assert sorted(file.path for batch in batches for file in batch) == sorted(file.path for file in files)
    assert max(len(batch) for batch in batches) <= preparation.FILES_PER_TASK
    assert len(batches) > 32


def test_help_shows_the_command(capsys):
    assert stage.main(["--help"]) == 0
    assert "python 01_data_processing.py --raw_dir recordings" in capsys.readouterr().out


@pytest.mark.shared
def test_real_recordings(shared_dir, tmp_path):
    raw_dir = shared_dir / "data" / "birds20"
    metadata = raw_dir / "metadata.csv"
    assert run(raw_dir, tmp_path / "out", "--metadata", metadata, "--min_recordings", 7) == 0
    table, source = read_parts(tmp_path / "out"), pd.read_csv(metadata).set_index("file")
    durations = table.groupby("source_path").duration_s.sum()
    assert len(durations) == len(source)
    assert (durations - source.duration_s).abs().max() < 0.2
    assert len(read_csv(tmp_path / "out" / "skipped.csv")) == 0
    recordists = table.source_path.map(source.recordist) + table.label
    assert (table.groupby(recordists.dropna()).split.nunique() == 1).all()


def test_the_documented_lines_load_the_splits_as_splits(processed, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "recordings.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"(    from datasets import DatasetDict.*?)\n\n[A-Z]", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "processed_data").symlink_to(processed)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = {}
    exec(textwrap.dedent(lines), names)
    expected = read_parts(processed)
    assert list(names["clips"]) == list(splits.SPLITS)
    for split, loaded in names["clips"].items():
        assert loaded["clip_id"] == expected.loc[expected.split == split, "clip_id"].tolist()
        assert len(loaded) > 0


# ------------------------------------------------------------------------------------- who recorded it, and units


def tagged_songs(raw_dir, n_people=4, n_each=3):
    """Write mp3 files of two species as xeno-canto serves them, by `n_people` recordists who differ by a letter."""
    for i in range(2 * n_people * n_each):
        path = write(raw_dir / ("Crow", "Wren")[i % 2] / f"song {i}.mp3", song(1, 16000, seed=i), 16000)
        tags = ID3()
        person = i // 2 % n_people
        name = f"Person Number {'ABCDEFGH'[person] * 3}"
        tags.add(TPE1(encoding=3, text=name.upper() if i % 3 == 0 else name))
        tags.add(WOAF(url=f"https://xeno-canto.org/{1000 + i}"))
        if i % 3 == 0:
            tags.add(WCOP(url=LICENCE))
        tags.save(path)
    return raw_dir


def test_untouched_downloads_are_split_by_the_recordists_of_their_tags(tmp_path, caplog):
    raw_dir = tagged_songs(tmp_path / "raw")
    assert run(raw_dir, tmp_path / "out") == 0
    table = read_csv(tmp_path / "out/recordings.csv")
    assert set(table.recording_id) == {f"XC{1000 + i}" for i in range(24)}
    assert table.recordist.nunique() == 4
    of_tags = ["" if (int(name.removeprefix("XC")) - 1000) % 3 else LICENCE for name in table.recording_id]
    assert table.licence.tolist() == of_tags, "who publishes results must credit recordings by their licence"
    assert (table.groupby(["recordist", "label"]).split.nunique() == 1).all()
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["metrics"]["kept_together"] == "recordist"
    assert record["metrics"]["n_recordings_with_recordist"] == 24 and record["metrics"]["n_recordists"] == 4
    assert "24 of 24 files have a recordist: 0 from the table, 24 from tags of xeno-canto" in caplog.text


def test_shards_and_a_resumed_run_read_the_same_tags(tmp_path):
    raw_dir = tagged_songs(tmp_path / "raw")
    assert run(raw_dir, tmp_path / "whole") == 0
    for number in (1, 2):
        assert run(raw_dir, tmp_path / "merged", "--shard", f"{number}/2") == 0
    assert run(raw_dir, tmp_path / "merged", "--merge_shards", 2) == 0
    assert digests(tmp_path / "whole") == digests(tmp_path / "merged")


def test_a_list_of_same_recordists_merges_them_and_counts_as_an_input(tmp_path, caplog):
    raw_dir = tagged_songs(tmp_path / "raw")
    same = tmp_path / "same.csv"
    same.write_text("Person Number AAA,Person Number BBB\nperson number ccc,Person Number DDD\n")
    assert run(raw_dir, tmp_path / "out", "--same_recordist", same) == 0
    assert set(read_csv(tmp_path / "out/recordings.csv").recordist) == {"Person Number AAA", "person number ccc"}
    same.write_text("Person Number AAA,Person Number BBB\n")
    assert run(raw_dir, tmp_path / "out", "--same_recordist", same) == 4
    same.write_text("Person Number AAA\n")
    assert run(raw_dir, tmp_path / "other", "--same_recordist", same) == 3
    assert not (tmp_path / "other").exists()


def test_similar_recordists_are_listed_and_the_list_can_be_given_back(tmp_path, caplog):
    names = ["Lars Lachmann", "L. Lachmann", "Marc Anderson", "Ada Lovelace"]
    rows = ["file,label,recordist"]
    for i in range(16):
        write(tmp_path / "raw" / f"{i}.wav", song(1, 16000, seed=i), 16000)
        rows.append(f"{i}.wav,{('Crow', 'Wren')[i % 2]},{names[i // 2 % 4]}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    assert run(tmp_path / "raw", tmp_path / "out", "--metadata", tmp_path / "list.csv") == 0
    listed = tmp_path / "out" / preparation.SIMILAR_NAME
    assert listed.read_text() == "recordist,same_as\nL. Lachmann,Lars Lachmann\n"
    assert "L. Lachmann (4 files), Lars Lachmann (4): one name is within the other" in caplog.text
    copy = shutil.copy(listed, tmp_path / "same.csv")
    argv = ["--metadata", tmp_path / "list.csv", "--same_recordist", copy]
    assert run(tmp_path / "raw", tmp_path / "merged", *argv) == 0
    assert read_csv(tmp_path / "merged/recordings.csv").recordist.nunique() == 3
    assert not (tmp_path / "merged" / preparation.SIMILAR_NAME).exists()


def test_the_unit_of_the_split_is_said_where_few_recordists_are_known(tmp_path, caplog):
    rows = ["file,label,recordist"]
    for i in range(16):
        write(tmp_path / "raw" / f"{i}.wav", song(1, 16000, seed=i), 16000)
        rows.append(f"{i}.wav,{('Crow', 'Wren')[i % 2]},{'Ada' if i < 4 else 'unknown'}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")

    def unit(*more):
        output_dir = tmp_path / f"out{len(more)}{more[-1]}"
        assert run(tmp_path / "raw", output_dir, "--metadata", tmp_path / "list.csv", *more) == 0
        return json.loads((output_dir / "run.json").read_text())["metrics"]["kept_together"]

    assert unit("--val_fraction", 0) == "recordist for 25 % of the recordings, recording for the rest"
    both = "recordist and species for 25 % of the recordings, recording for the rest"
    assert unit("--split_by", "recordist_and_species") == both
    assert unit("--split_by", "recording") == "recording"
    assert "no recordist is known" not in caplog.text
    (tmp_path / "list.csv").write_text("\n".join(rows).replace("Ada", "?") + "\n")
    assert unit("--seed", 1) == "recording"
    assert "no recordist is known, so the split is by recording" in caplog.text
    assert "split by recording" in caplog.text


def test_pieces_under_several_labels_are_on_one_side(tmp_path):
    for tape in range(6):
        for i in range(4):
            name = f"0.9{i}_{i}_tape{tape}_{3 * i}.0s_{3 * i + 3}.0s.wav"
            write(tmp_path / "raw" / ("Crow", "Wren")[i % 2] / name, song(1, 16000, seed=4 * tape + i), 16000)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    table = read_csv(tmp_path / "out/recordings.csv")
    assert len(table) == 12
    assert (table.groupby(table.recording_id.str.extract(r"(tape\d)")[0]).split.nunique() == 1).all()


@pytest.mark.parametrize("names", [("NA", "None", "nan"), ("null", "N/A", "inf")])
def test_classes_that_other_programs_read_as_missing_stay_classes_here(tmp_path, caplog, names):
    rows = ["file,label"]
    for i in range(12):
        write(tmp_path / "raw" / f"{i}.wav", song(1, 16000, seed=i), 16000)
        rows.append(f"{i}.wav,{names[i % 3]}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    assert run(tmp_path / "raw", tmp_path / "out", "--metadata", tmp_path / "list.csv") == 0
    assert clips.read_labels(tmp_path / "out") == sorted(names)
    assert set(read_csv(tmp_path / "out/split_report.csv").label) == set(names)
    assert "are read as missing by pandas and R" in caplog.text
