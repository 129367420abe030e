"""Whatever is wrong with the input of stage 01: a clear error, or a line in skipped.csv, and nothing is lost."""

import errno
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.sounds import song, write
from tests.stages import ROOT, digests, load_stage
from utils.data import audio, clips, preparation, recordings, spool

stage = load_stage("01_data_processing")

LABELS = ("Crow", "Wren")


def good_files(raw_dir, n=8):
    """Write `n` good recordings of two labels, one second each."""
    for i in range(n):
        write(raw_dir / LABELS[i % 2] / f"XC{i}.wav", song(1, 16000, seed=i), 16000)
    return raw_dir


@pytest.fixture
def raw_dir(tmp_path):
    return good_files(tmp_path / "raw")


def run(raw_dir, *more):
    output_dir = raw_dir.parent / "out"
    argv = ["--raw_dir", raw_dir, "--output_dir", output_dir, "--min_recordings", 2, "--num_workers", 1]
    return stage.main([str(word) for word in [*argv, *more]])


def read_clips(raw_dir):
    return pd.read_parquet(raw_dir.parent / "out" / "clips-00000.parquet")


def skipped(raw_dir):
    """Return the reasons in skipped.csv by file, after checking that every file is there or among the clips."""
    table = pd.read_csv(raw_dir.parent / "out" / "skipped.csv", dtype=str, keep_default_na=False)
    used = set(read_clips(raw_dir).source_path)
    assert not used & set(table.file)
    return dict(zip(table.file, table.reason, strict=True))


def test_no_more_workers_are_started_than_there_are_files(raw_dir, monkeypatch, caplog):
    started, pool = [], stage.workers.worker_pool
    monkeypatch.setattr(stage.workers, "worker_pool", lambda n: started.append(n) or pool(1))
    assert run(raw_dir, "--num_workers", 999) == 0
    assert run(raw_dir, "--num_workers", 999, "--shard", "1/2") == 0
    n_files = len(list(raw_dir.rglob("*.wav")))
    assert started == [n_files] * 2
    assert caplog.text.count(f"worker processes: {n_files};") == 2


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system in which no folder can be made")
def test_an_output_folder_that_cannot_be_made(raw_dir, caplog):
    assert run(raw_dir, "--output_dir", "/proc/no_such_folder") == 3
    assert "/proc/no_such_folder: no folder can be made there; choose another --output_dir" in caplog.text


# ------------------------------------------------------------------------------ files that give no sound

LOUD = np.full(16000, 0.25)
BAD_FILES = {
    "text.wav": (lambda path: path.write_text("no sound"), "no sound that libsndfile or FFmpeg can read"),
    "zero.wav": (lambda path: path.write_bytes(b""), "empty: the file has 0 bytes"),
    "one.wav": (lambda path: write(path, LOUD[:1], 16000), "too short: 6.25e-05 s, less than 0.1 s (--min_seconds)"),
    "silent.flac": (lambda path: write(path, 0 * LOUD, 16000), "silent: every sample of it is 0"),
    "nan.wav": (
        lambda path: write(path, np.append(LOUD, np.nan), 16000, subtype="FLOAT"),
        "holds NaN or infinity, first at 1.000 s",
    ),
    "infinity.wav": (
        lambda path: write(path, np.append(LOUD, -np.inf), 16000, subtype="DOUBLE"),
        "holds NaN or infinity, first at 1.000 s",
    ),
    "header.mp3": (
        lambda path: path.write_bytes(write(path, song(3, 44100), 44100).read_bytes()[:60]),
        "no sound that libsndfile or FFmpeg can read",
    ),
    "nowhere.wav": (lambda path: path.symlink_to("gone.wav"), "a link without a target"),
    "loop.wav": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "rate.wav": (lambda path: write(path, LOUD, 1), "its header gives a sample rate of 1 Hz; expected 1000 or more"),
    "phone.m4a": (lambda path: path.write_bytes(b"no sound at all"), "no sound that libsndfile or FFmpeg can read"),
    "song meter.wac": (lambda path: path.write_bytes(b"sound all the same"), "to .wav or .flac"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_its_reason(raw_dir, name):
    make, reason = BAD_FILES[name]
    make(raw_dir / "Crow" / name)
    assert run(raw_dir) == 0
    found = skipped(raw_dir)
    assert list(found) == [f"Crow/{name}"]
    assert reason in found[f"Crow/{name}"]
    assert len(read_clips(raw_dir)) == 8


def test_bad_files_are_the_same_for_worker_processes(raw_dir):
    for name, (make, _) in BAD_FILES.items():
        make(raw_dir / "Crow" / name)
    assert run(raw_dir, "--num_workers", 2) == 0
    found = skipped(raw_dir)
    assert sorted(found) == sorted(f"Crow/{name}" for name in BAD_FILES)
    assert all(reason in found[f"Crow/{name}"] for name, (_, reason) in BAD_FILES.items())


def test_a_folder_that_loops_is_read_once(raw_dir):
    (raw_dir / "Crow" / "again").symlink_to(raw_dir)
    assert run(raw_dir) == 0
    assert len(read_clips(raw_dir)) == 8
    assert "already" in skipped(raw_dir)["Crow/again"]


def test_an_unreadable_file(raw_dir, monkeypatch):
    # Simulated, because nothing is unreadable for root.
    path_open = pathlib.Path.open

    def refuse(path, *args, **kwargs):
        if path.name == "XC0.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    assert run(raw_dir) == 0
    assert skipped(raw_dir) == {"Crow/XC0.wav": "cannot be opened: Permission denied"}


# ------------------------------------------------------------------------------------ faults of the machine


def status_of(raw_dir):
    return json.loads((raw_dir.parent / "out" / "run.json").read_text())["status"]


@pytest.mark.parametrize(
    ("module", "name"), [(recordings, "find_recordings"), (preparation, "list_files")], ids=["found", "listed"]
)
def test_a_file_that_vanishes_after_it_was_found_or_listed(raw_dir, monkeypatch, caplog, module, name):
    step = getattr(module, name)

    def then_remove(*args, **kwargs):
        found = step(*args, **kwargs)
        (raw_dir / "Crow" / "XC0.wav").unlink()
        return found

    monkeypatch.setattr(module, name, then_remove)
    assert run(raw_dir) == 3
    assert "XC0.wav cannot be read any more (No such file or directory)" in caplog.text
    assert "run the same command again" in caplog.text and "Traceback" not in caplog.text
    assert not list(raw_dir.parent.glob("out/clips-*"))
    if name == "list_files":
        assert status_of(raw_dir) == "failed"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_disk_that_cannot_be_listed_is_no_folder_without_recordings(raw_dir, monkeypatch, caplog, code, call):
    def fail_at(place, function):
        def call_or_fail(path, *args, **kwargs):
            if str(path).endswith(place):
                raise OSError(code, os.strerror(code), str(path))
            return function(path, *args, **kwargs)

        return call_or_fail

    if call == "scandir":
        monkeypatch.setattr(os, "scandir", fail_at("Wren", os.scandir))
    else:
        monkeypatch.setattr(pathlib.Path, "stat", fail_at("XC5.wav", pathlib.Path.stat))
    assert run(raw_dir, "--min_recordings", 1) == 3
    assert f"cannot be read any more ({os.strerror(code)})" in caplog.text
    assert "Traceback" not in caplog.text
    assert not (raw_dir.parent / "out").exists()
    monkeypatch.undo()
    assert run(raw_dir) == 0


def test_an_empty_folder_in_place_of_an_unmounted_disk(raw_dir, monkeypatch, caplog):
    assert run(raw_dir) == 0
    before = digests(raw_dir.parent / "out")
    raw_dir.rename(raw_dir.parent / "away")
    raw_dir.mkdir()
    assert run(raw_dir, "--overwrite") == 3
    assert "holds no audio" in caplog.text
    assert digests(raw_dir.parent / "out") == before
    raw_dir.rmdir()
    (raw_dir.parent / "away").rename(raw_dir)
    assert run(raw_dir) == 0

    scandir = os.scandir

    def unmount_after(path):  # the last folder is read, and the disk is gone before the files are looked at
        entries = scandir(path)
        if str(path).endswith("Crow"):
            raw_dir.rename(raw_dir.parent / "away")
            raw_dir.mkdir()
        return entries

    monkeypatch.setattr(os, "scandir", unmount_after)
    (raw_dir.parent / "out").rename(raw_dir.parent / "old")
    assert run(raw_dir) == 3
    assert "cannot be read any more" in caplog.text
    assert not (raw_dir.parent / "out").exists()


def test_with_a_table_too_the_folder_must_stay(raw_dir, monkeypatch, caplog):
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_text("\n".join(["file,label", *(f"{LABELS[i % 2]}/XC{i}.wav,{LABELS[i % 2]}" for i in range(8))]))
    is_file = pathlib.Path.is_file

    def gone_from(path):
        if path.name == "XC4.wav" and raw_dir.exists():
            raw_dir.rename(raw_dir.parent / "away")
        return is_file(path)

    monkeypatch.setattr(pathlib.Path, "is_file", gone_from)
    assert run(raw_dir, "--metadata", metadata, "--min_recordings", 1) == 3
    assert "cannot be read any more" in caplog.text and "Traceback" not in caplog.text
    assert not (raw_dir.parent / "out").exists()


def test_a_recording_that_is_still_being_copied(raw_dir, monkeypatch, caplog):
    path = raw_dir / "Crow" / "XC0.wav"
    decode = audio.decode

    def decode_while_it_grows(given, *args, **kwargs):
        result = decode(given, *args, **kwargs)
        if given.name == path.name:
            with path.open("ab") as file:
                file.write(bytes(3200))
        return result

    monkeypatch.setattr(audio, "decode", decode_while_it_grows)
    assert run(raw_dir) == 3
    assert "XC0.wav changed while it was read (32044 bytes before, 35244 now): is it still being copied" in caplog.text
    assert status_of(raw_dir) == "failed"


def test_a_file_that_is_gone_for_good_is_left_out_by_the_next_run(raw_dir, monkeypatch, caplog):
    decode = audio.decode

    def remove_while_decoding(path, *args, **kwargs):
        (raw_dir / "Wren" / "XC7.wav").unlink(missing_ok=True)
        return decode(path, *args, **kwargs)

    monkeypatch.setattr(audio, "decode", remove_while_decoding)
    assert run(raw_dir) == 3
    assert "XC7.wav cannot be read any more" in caplog.text
    monkeypatch.undo()
    assert run(raw_dir) == 0  # not "exists and differs": it had left no result
    assert len(read_clips(raw_dir)) == 7


@pytest.mark.parametrize("n_before", [0, 3, 7])
def test_the_folder_taken_away_while_it_is_decoded_and_put_back(raw_dir, monkeypatch, caplog, n_before):
    assert run(raw_dir) == 0
    undisturbed = digests(raw_dir.parent / "out")
    shutil.rmtree(raw_dir.parent / "out")
    decode, n_decoded = audio.decode, iter(range(100))

    def take_away(*args, **kwargs):
        if next(n_decoded) == n_before:
            raw_dir.rename(raw_dir.parent / "away")
        return decode(*args, **kwargs)

    monkeypatch.setattr(audio, "decode", take_away)
    assert run(raw_dir) == 3
    assert "cannot be read any more" in caplog.text and "Traceback" not in caplog.text
    assert status_of(raw_dir) == "failed"
    assert run(raw_dir) == 3  # still away
    assert "no such folder" in caplog.text
    (raw_dir.parent / "away").rename(raw_dir)
    assert run(raw_dir) == 0
    assert digests(raw_dir.parent / "out") == undisturbed


# ---------------------------------------------------------------------------- odd files that give sound


def test_a_truncated_mp3_gives_what_it_holds_and_a_warning(raw_dir, caplog):
    path = write(raw_dir / "Crow" / "XC90.mp3", song(8, 44100), 44100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert run(raw_dir) == 0
    assert skipped(raw_dir) == {}
    table = read_clips(raw_dir)
    assert 3.5 < table[table.recording_id == "XC90"].duration_s.sum() < 4.5
    assert "used as it is: Crow/XC90.mp3: breaks off: its header promises 8.00 s" in caplog.text


ODD_FILES = {
    "5 channels.wav": {"n_channels": 5},
    "8 kHz.wav": {"rate_hz": 8000},
    "11 kHz.flac": {"rate_hz": 11025},
    "44 kHz.ogg": {"rate_hz": 44100},
    "96 kHz.flac": {"rate_hz": 96000},
    "8 bit.wav": {"subtype": "PCM_U8"},
    "24 bit.flac": {"subtype": "PCM_24"},
    "float.wav": {"subtype": "FLOAT"},
    "-dash.wav": {},
    "it's \"quoted\", isn't it.wav": {},
    "Grünfink – 山雀 🐦.wav": {},
    "UPPER CASE.WAV": {"format": "WAV"},
}


def test_odd_files_simply_work(raw_dir):
    for seed, (name, how) in enumerate(ODD_FILES.items(), start=100):
        rate_hz, n_channels = how.pop("rate_hz", 16000), how.pop("n_channels", 1)
        write(raw_dir / "Wren" / name, song(2, rate_hz, n_channels, seed), rate_hz, **how)
    assert run(raw_dir) == 0
    assert skipped(raw_dir) == {}
    table = read_clips(raw_dir).set_index("source_path")
    assert len(table) == 8 + len(ODD_FILES)
    for name in ODD_FILES:
        assert table.duration_s[f"Wren/{name}"] == pytest.approx(2, abs=0.01), name


def test_odd_names_of_folders(tmp_path):
    raw_dir = tmp_path / 'a folder\'s "name"'
    for label in ("-Crow's", "Grünfink 山雀"):
        for i in range(3):
            seed = len(label) * 10 + i
            write(raw_dir / label / f"{i}.wav", song(1, 16000, seed=seed), 16000)
    assert run(raw_dir) == 0
    assert clips.read_labels(tmp_path / "out") == ["-Crow's", "Grünfink 山雀"]


# ----------------------------------------------------------------------------------- the folder as a whole


def test_no_such_folder(tmp_path, caplog):
    assert run(tmp_path / "gone") == 3
    assert f"{tmp_path / 'gone'}: no such folder" in caplog.text
    assert not (tmp_path / "out").exists()


def test_no_audio_in_the_folder(tmp_path, caplog):
    (tmp_path / "raw" / "Crow").mkdir(parents=True)
    (tmp_path / "raw" / "Crow" / "notes.txt").write_text("heard a crow")
    assert run(tmp_path / "raw") == 3
    assert "holds no audio" in caplog.text


def test_only_bad_audio_in_the_folder(tmp_path, caplog):
    for i in range(4):
        (tmp_path / "raw" / LABELS[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / LABELS[i % 2] / f"{i}.wav").write_text("no sound")
    assert run(tmp_path / "raw") == 3
    assert "no label is left with 2 recordings or more; two labels are needed" in caplog.text
    assert "left out: Crow/0.wav: no sound that libsndfile or FFmpeg can read" in caplog.text
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_fewer_than_two_labels(raw_dir, caplog):
    write(raw_dir / "Crow" / "XC90.wav", song(1, 16000, seed=90), 16000)
    assert run(raw_dir, "--min_recordings", 5) == 3
    assert "only Crow is left with 5 recordings or more; two labels are needed: lower --min_recordings" in caplog.text
    assert "Wren has 4 recordings" in caplog.text
    assert run(raw_dir, "--min_recordings", 6, "--overwrite") == 3
    assert "no label is left with 6 recordings or more" in caplog.text


def test_without_sound_the_advice_is_not_to_lower_min_recordings(tmp_path, caplog):
    for label in LABELS:
        write(tmp_path / "raw" / label / f"{label}.wav", np.zeros(3200), 16000)
    assert run(tmp_path / "raw", "--min_recordings", 1) == 3
    assert (
        "no label is left with 1 recording or more; two labels are needed: give more recordings; the first of 2 left "
        "out, Crow/Crow.wav: silent: every sample of it is 0" in caplog.text
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label_level", 3], "--label_level 3: the deepest file below {} has 1 folder; give a level that files have"),
        (["--recordist_level", 5], "--recordist_level 5: the deepest file below {} has 1 folder; give a level that"),
        (["--recordist_level", 1], "--recordist_level 1: the folders of this level are the labels, such as Crow; give"),
    ],
)
def test_levels_of_folders_that_cannot_be_meant(raw_dir, caplog, more, message):
    assert run(raw_dir, *more) == 3
    assert message.format(raw_dir) in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sound,label\nCrow/XC0.wav,Crow\n", "no column for the file"),
        ("file,kind\nCrow/XC0.wav,song\n", "no column for the label"),
        ("", "cannot be read"),
        ("file,label\n", "a header and no rows"),
        ("file;label\nCrow/XC0.wav;Crow\n", "separated by semicolons"),
        ("file,label\ngone.wav,Crow\n", "no file is left"),
    ],
)
def test_metadata_that_says_nothing(raw_dir, caplog, content, message):
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_text(content)
    assert run(raw_dir, "--metadata", metadata) == 3
    assert message in caplog.text


def test_no_such_metadata(raw_dir, caplog):
    assert run(raw_dir, "--metadata", raw_dir / "gone.csv") == 3
    assert "gone.csv: no such file" in caplog.text


def test_bad_rows_of_metadata_are_named(raw_dir):
    outside = write(raw_dir.parent / "outside.wav", song(1, 16000, seed=70), 16000)
    rows = ["file,label", *(f"{LABELS[i % 2]}/XC{i}.wav,{LABELS[i % 2]}" for i in range(8))]
    rows += [
        "gone.wav,Crow",
        "../outside.wav,Crow",
        f"{outside},Crow",
        "Crow/XC0.wav,Wren",
        "Crow,Crow",
        "Wren/XC1.wav,",
    ]
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_text("\n".join(rows))
    assert run(raw_dir, "--metadata", metadata) == 0
    table = pd.read_csv(raw_dir.parent / "out" / "skipped.csv")
    reasons = table.groupby("file").reason.first()
    assert "no such file" in reasons["gone.wav"]
    assert "leaves the folder" in reasons["../outside.wav"]
    assert "absolute" in reasons[str(outside)]
    assert "several labels" in reasons["Crow/XC0.wav"]
    assert "it is a folder" in reasons["Crow"]
    assert "label empty" in reasons["Wren/XC1.wav"]
    assert set(read_clips(raw_dir).source_path) == {f"{LABELS[i % 2]}/XC{i}.wav" for i in range(1, 8)}


def test_a_row_that_is_there_twice_counts_once(raw_dir):
    rows = ["file,label", *(f"{LABELS[i % 2]}/XC{i}.wav,{LABELS[i % 2]}" for i in range(8)), "Crow/XC0.wav,Crow"]
    (raw_dir.parent / "metadata.csv").write_text("\n".join(rows))
    assert run(raw_dir, "--metadata", raw_dir.parent / "metadata.csv") == 0
    assert len(read_clips(raw_dir)) == 8
    table = pd.read_csv(raw_dir.parent / "out" / "skipped.csv")
    assert table.file.tolist() == ["Crow/XC0.wav"]
    assert "metadata.csv names it 2 times" in table.reason[0]


# ---------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--clip_seconds", "0.00001"], "is a clip of 0 samples"),
        (["--clip_seconds", "1000000"], "samples; the later stages need 400 to"),
        (["--sample_rate", "1", "--clip_seconds", "1"], "is a clip of 1 samples; the later stages need 400 to"),
        (["--clip_seconds", "0.0249"], "is a clip of 398 samples; the later stages need 400 to"),
        (["--min_seconds", "6"], "--min_seconds 6.0 is longer than --clip_seconds 5.0"),
        (["--val_fraction", "0.5", "--test_fraction", "0.5"], "leave nothing to train on"),
        (["--folds", "5", "--val_fraction", "0.2"], "val is one of them: leave --val_fraction out"),
    ],
)
def test_values_that_do_not_go_together(raw_dir, caplog, more, message):
    assert run(raw_dir, *more) == 2
    assert message in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        ["--sample_rate", "0"],
        ["--clip_seconds", "-1"],
        ["--clip_seconds", "nan"],
        ["--remainder", "keep"],
        ["--split_by", "species"],
        ["--val_fraction", "1"],
        ["--num_workers", "0"],
        ["--clip_sec", "5"],
    ],
)
def test_bad_values(raw_dir, capsys, more):
    assert run(raw_dir, *more) == 2
    assert more[0] in capsys.readouterr().err


def test_raw_dir_in_the_output_folder(raw_dir, caplog):
    assert run(raw_dir, "--output_dir", raw_dir.parent, "--overwrite") == 2
    assert f"holds {raw_dir} of --raw_dir" in caplog.text
    assert run(raw_dir, "--output_dir", raw_dir, "--overwrite") == 2
    assert run(raw_dir, "--output_dir", raw_dir / "processed") == 2
    assert not (raw_dir / "processed").exists()


@pytest.mark.users_files
def test_a_table_in_the_output_folder_is_not_deleted(raw_dir, caplog):
    assert run(raw_dir) == 0
    metadata = raw_dir.parent / "out" / "metadata.csv"
    files = [path.relative_to(raw_dir) for path in sorted(raw_dir.rglob("*.wav"))]
    metadata.write_text("file,label\n" + "".join(f"{path},{path.parent}\n" for path in files))
    assert run(raw_dir, "--metadata", metadata, "--overwrite") == 2
    assert f"holds {metadata} of --metadata" in caplog.text
    table = metadata.read_bytes()
    assert run(raw_dir, "--clip_seconds", "1", "--overwrite") == 0, "the table is not of this run"
    assert metadata.read_bytes() == table


def test_a_failed_run_without_a_result_is_taken_over(raw_dir, caplog):
    """The advice of the message is followed, and then the folder is free."""
    assert run(raw_dir, "--min_recordings", "9") == 3
    assert run(raw_dir, "--min_recordings", "2") == 0
    assert "taken over" in caplog.text


# ----------------------------------------------------------------------------------------------- the output


def test_an_output_that_is_not_ours_is_left_alone(raw_dir, caplog):
    (raw_dir.parent / "out").mkdir()
    (raw_dir.parent / "out" / "thesis.tex").write_text("years of work")
    assert run(raw_dir, "--overwrite") == 4
    assert "it is left unchanged" in caplog.text
    assert (raw_dir.parent / "out" / "thesis.tex").exists()


def test_an_output_that_cannot_be_written(raw_dir, caplog):
    (raw_dir.parent / "file").write_text("")
    assert run(raw_dir, "--output_dir", raw_dir.parent / "file" / "out") == 3
    assert "choose another path" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("what", ["spool", "part"])
def test_a_full_disk(raw_dir, monkeypatch, caplog, what):
    if what == "spool":
        monkeypatch.setattr(spool, "pcm_name", lambda path: "/dev/full")
    else:
        writer = pq.ParquetWriter
        monkeypatch.setattr(clips.pq, "ParquetWriter", lambda path, *args, **how: writer("/dev/full", *args, **how))
    assert run(raw_dir) == 3
    assert "the disk is full: free some space and run the same command again" in caplog.text
    assert "Traceback" not in caplog.text
    assert json.loads((raw_dir.parent / "out" / "run.json").read_text())["status"] == "failed"
    assert not list((raw_dir.parent / "out").glob("clips-*"))
    monkeypatch.undo()
    assert run(raw_dir) == 0
    assert len(read_clips(raw_dir)) == 8
    assert skipped(raw_dir) == {}


def test_a_limit_on_file_size_half_way_with_worker_processes(raw_dir):
    write(raw_dir / "Crow" / "XC90.wav", song(30, 16000, seed=90), 16000)
    output_dir = raw_dir.parent / "out"
    argv = ["--raw_dir", raw_dir, "--output_dir", output_dir, "--min_recordings", "2", "--num_workers", "2"]
    command = [sys.executable, ROOT / "01_data_processing.py", *argv]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    process = subprocess.run(list(map(str, command)), preexec_fn=limit, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 3
    assert "larger than" in process.stderr
    assert "Traceback" not in process.stderr
    assert run(raw_dir) == 0
    assert len(read_clips(raw_dir)) == 8 + 6


def test_a_damaged_or_missing_part_is_found_and_replaced(raw_dir, caplog):
    assert run(raw_dir) == 0
    part = raw_dir.parent / "out" / "clips-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run(raw_dir) == 4
    assert "it was changed or is damaged" in caplog.text
    part.unlink()
    assert run(raw_dir) == 4
    assert "is missing, but run.json lists it" in caplog.text
    assert run(raw_dir, "--overwrite") == 0
    assert part.read_bytes() == whole


def test_names_that_are_no_unicode(raw_dir):
    name = os.fsdecode(b"Crow/K\xf6nig.wav")
    write(raw_dir / "Crow" / "temporary.wav", song(1, 16000, seed=80), 16000).rename(raw_dir / name)
    assert run(raw_dir) == 0
    assert list(skipped(raw_dir).values()) == ["its name is not valid UTF-8: rename it"]


# --------------------------------------------------------------------------------------- labels of another level


def test_folders_of_splits_are_refused_and_their_folders_are_labels_on_demand(tmp_path, caplog):
    raw_dir = tmp_path / "raw"
    for i, split in enumerate(["train", "train", "validation", "test"]):
        for j, label in enumerate(["Crow", "Wren"]):
            write(raw_dir / split / label / f"{i}.wav", song(1, 16000, seed=2 * i + j), 16000)
    assert run(raw_dir) == 3
    assert "--label_level 2" in caplog.text
    argv = ["--raw_dir", raw_dir, "--output_dir", tmp_path / "out", "--min_recordings", "2", "--num_workers", "1"]
    assert stage.main([*map(str, argv), "--label_level", "2"]) == 0
    assert clips.read_labels(tmp_path / "out") == ["Crow", "Wren"]
    assert stage.main([*map(str, argv), "--label_level", "2", "--metadata", "list.csv"]) == 2


def test_a_table_of_stretches_is_refused_by_name(raw_dir, caplog):
    metadata = raw_dir.parent / "list.csv"
    metadata.write_text("file,label,start,end\nCrow/XC0.wav,Crow,1,2\n")
    assert run(raw_dir, "--metadata", metadata) == 3
    assert "in the columns start, end" in caplog.text and "Traceback" not in caplog.text


def test_names_are_bytes_in_a_locale_without_utf8(tmp_path):
    labels = ("Grünfink", "山雀")
    raw_dir = tmp_path / "Vögel"
    rows = ["file,label"]
    for i in range(4):
        path = write(raw_dir / labels[i % 2] / f"Ä{i}.wav", song(1, 16000, seed=i), 16000)
        rows.append(f"{path.relative_to(raw_dir)},{labels[i % 2]}")
    (tmp_path / "Tabelle für 01.csv").write_text("\n".join(rows), encoding="utf-8")
    argv = ["--raw_dir", raw_dir, "--metadata", tmp_path / "Tabelle für 01.csv", "--min_recordings", "2"]
    assert stage.main([*map(str, argv), "--num_workers", "1", "--output_dir", str(tmp_path / "utf8")]) == 0
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, ROOT / "01_data_processing.py", *argv, "--num_workers", "2"]
    process = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path / "größer")], env=environment, capture_output=True
    )
    assert process.returncode == 0, process.stderr.decode()
    assert digests(tmp_path / "größer") == digests(tmp_path / "utf8")
    assert json.loads((tmp_path / "größer" / "run.json").read_text("utf-8"))["arguments"]["raw_dir"] == str(raw_dir)
    assert "Vögel" in (tmp_path / "größer" / "log.txt").read_text("utf-8")
    assert "Vögel" in process.stderr.decode("utf-8")


# ------------------------------------------------------------- names that steer a terminal or a spreadsheet

ESCAPES = {
    "colour": "\x1b[31mred",
    "clear": "a\x1b[2J\x1b[Hb",
    "bell": "a\x07b",
    "line": "a\n2026-01-01 00:00:00 INFO    done",
    "return": "a\rb",
    "turned round": "a\u202egpj.b",
    "8-bit escape": "a\x9b31mb",
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_escapes_in_names_of_files_reach_neither_terminal_nor_table(raw_dir, capfd, kind):
    write(raw_dir / "Crow" / f"{ESCAPES[kind]}.wav", song(1, 16000, seed=40), 16000)
    (raw_dir / "Crow" / f"{ESCAPES[kind]}-bad.wav").write_text("no sound")
    assert run(raw_dir) == 0
    out = raw_dir.parent / "out"
    texts = [capfd.readouterr().err, (out / "log.txt").read_text("utf-8")]
    texts += [path.read_text("utf-8") for path in out.glob("*.csv")]
    assert all(line.isprintable() for text in texts for line in text.split("\n"))
    assert not any(line.startswith("2026-01-01") for text in texts for line in text.split("\n"))
    table = read_clips(raw_dir).set_index("source_path")
    assert table.recording_id[f"Crow/{ESCAPES[kind]}.wav"].isprintable()  # and the path is still that of the file
    assert len(pd.read_csv(out / "skipped.csv")) == 1


def test_escapes_in_ids_and_recordists_of_a_table_reach_neither_terminal_nor_table(raw_dir, capfd):
    rows = [f"{LABELS[i % 2]}/XC{i}.wav,{LABELS[i % 2]},id\x1b[3{i}m,A\x1b]0;title\x07" for i in range(8)]
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_text("\n".join(["file,label,recording_id,recordist", *rows, "\x1b[2J.wav,Crow,,"]))
    assert run(raw_dir, "--metadata", metadata, "--split_by", "recording") == 0
    out = raw_dir.parent / "out"
    texts = [capfd.readouterr().err, *(path.read_text("utf-8") for path in [out / "log.txt", *out.glob("*.csv")])]
    assert all(line.isprintable() for text in texts for line in text.split("\n"))
    assert "id\\x1b[30m" in set(read_clips(raw_dir).recording_id)
    columns = ["clip_id", "recording_id", "group", "label"]
    assert read_clips(raw_dir)[columns].map(str.isprintable).all(axis=None)


def test_a_spreadsheets_formulas_get_a_line(raw_dir, caplog):
    rows = [f"{LABELS[i % 2]}/XC{i}.wav,{LABELS[i % 2]},{i - 4},@person,-archive" for i in range(7)]
    rows.append('Wren/XC7.wav,Wren,"=HYPERLINK(""http://x"")",+1,')
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_text("\n".join(["file,label,recording_id,recordist,collection", *rows]))
    assert run(raw_dir, "--metadata", metadata, "--split_by", "recording") == 0
    (line,) = [message for message in caplog.messages if "a spreadsheet may run" in message]
    assert line.startswith("3 ids, labels, recordists, licences, collections or files begin with =, +, - or @")
    assert line.endswith('as text: -archive, =HYPERLINK("http://x"), @person')
    caplog.clear()
    assert run(good_files(raw_dir.parent / "raw2")) in (0, 4)
    assert "a spreadsheet may run" not in caplog.text


# -------------------------------------------------------------------------------------------------- scratch space


def with_free(monkeypatch, n_bytes):
    usage = shutil.disk_usage
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: usage(path)._replace(free=n_bytes))


def test_scratch_that_will_not_fit_is_refused_before_it_is_filled(raw_dir, monkeypatch, caplog):
    write(raw_dir / "Wren" / "XC9.flac", song(10, 16000, seed=9), 16000)
    n_pcm = 2 * 16000 * (8 + 10)
    decoded = []
    decode = audio.decode
    monkeypatch.setattr(audio, "decode", lambda *args, **how: decoded.append(args[0]) or decode(*args, **how))
    with_free(monkeypatch, n_pcm // 2)
    assert run(raw_dir) == 3
    assert "0.005 h of sound need 0.00104 GB here during the run, and 0.000288 GB are free" in caplog.text
    assert "The longest file is Wren/XC9.flac: about 0.00278 h" in caplog.text
    assert not decoded and "Traceback" not in caplog.text
    with_free(monkeypatch, int(1.7 * n_pcm))  # the estimate is not that sure
    assert run(raw_dir) == 0
    assert "GB are free (a quota may allow less)" in caplog.text
    caplog.clear()
    with_free(monkeypatch, 2 * n_pcm)
    assert run(raw_dir, "--seed", 1, "--overwrite") == 0
    assert "quota" not in caplog.text


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_lengths_are_estimated_from_some_headers_and_all_sizes(tmp_path, suffix, capfd):
    seconds = [1 + i % 7 for i in range(42)]
    rate_hz = 44100 if suffix == "mp3" else 16000
    for i, n in enumerate(seconds):
        write(tmp_path / f"{i}.{suffix}", song(n, rate_hz, seed=i), rate_hz)
    files = [spool.Listed(p.name, p.stat().st_size, 0) for p in sorted(tmp_path.iterdir())]
    (tmp_path / f"bad.{suffix}").write_text("no sound")
    files.append(spool.Listed(f"bad.{suffix}", 8, 0))
    estimated = preparation.estimate_seconds(tmp_path, files)
    assert sum(estimated.values()) == pytest.approx(sum(seconds), rel=0.05)
    assert capfd.readouterr() == ("", ""), "libraries print nothing of their own"


def test_a_sparse_file_takes_no_scratch(raw_dir, monkeypatch):
    path = raw_dir / "Crow" / "XC90.wav"
    with soundfile.SoundFile(path, "w", 16000, 1, "FLOAT") as file:  # 40 MB with its end written, and a hole before
        file.write(song(1, 16000, seed=90)[:, 0])
        start = path.stat().st_size
        file.seek(0, soundfile.SEEK_END)
    with path.open("r+b") as file:
        header = bytearray(file.read(start))
        n = 10_000_000 * 4
        place = header.index(b"data") + 4
        header[place : place + 4] = n.to_bytes(4, "little")
        header[4:8] = (n + place + 4 - 8).to_bytes(4, "little")
        file.seek(0)
        file.write(header)
        file.truncate(place + 4 + n)
    assert path.stat().st_blocks * 512 < 1_000_000
    most = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        stage.shutil,
        "rmtree",
        lambda folder: most.append(sum(p.stat().st_blocks * 512 for p in folder.glob("*.pcm"))) or rmtree(folder),
    )
    assert run(raw_dir) == 0
    assert most[0] < 2_000_000  # of 20 MB
    assert read_clips(raw_dir).query("recording_id == 'XC90'").duration_s.sum() == pytest.approx(625)
