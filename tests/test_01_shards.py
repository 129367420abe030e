"""Stage 01 by many jobs: the same bytes as by one, and a refusal that helps wherever that cannot be had."""

import fcntl
import importlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.sounds import song, write
from tests.stages import digests, load_stage
from utils.core import runs
from utils.data import audio, preparation, shards, spool

stage = load_stage("01_data_processing")

LABELS = ("Crow", "Great Tit", "Wren")
KINDS = [("wav", 44100, 2), ("flac", 16000, 1), ("ogg", 32000, 1), ("wav", 8000, 1)]
N_JOBS = [1, 3, 8]


def run(root, *more):
    argv = [
        "--raw_dir",
        root / "raw",
        "--min_recordings",
        3,
        "--clip_seconds",
        1,
        "--min_remainder_seconds",
        0.1,
        "--num_workers",
        1,
    ]
    return stage.main([str(word) for word in [*argv, *more]])


def decode_all(root, output_dir, n, *more):
    for number in range(1, n + 1):
        assert run(root, "--output_dir", output_dir, "--shard", f"{number}/{n}", *more) == 0


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


def decoded_by(output_dir, n):
    """Return which of `n` jobs has seen a file, by path."""
    found = {}
    for number in range(1, n + 1):
        content = json.loads((shards.shard_dir(output_dir, number, n) / "decoded.json").read_text())
        paths = [s["path"] for s in content["sounds"]] + [s["file"] for s in content["undecodable"]]
        assert not found.keys() & set(paths)
        found |= dict.fromkeys(paths, number)
    return found


def small_parquet(monkeypatch):
    monkeypatch.setattr(preparation, "CLIPS_PER_PART", 10)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Return a folder of recordings of many kinds, good and bad, and what one job makes of them, in parts of 10."""
    root = tmp_path_factory.mktemp("birds")
    raw_dir = root / "raw"
    same, contradictory = ((song(2, 16000, seed=seed)[:, 0] * 32768).astype(np.int16) for seed in (90, 91))
    rows = []
    for i in range(24):
        suffix, rate_hz, n_channels = KINDS[i % 4]
        write(raw_dir / f"{i}.{suffix}", song(1 + i / 8, rate_hz, n_channels, i), rate_hz)
        recordist = "" if i % 5 == 0 else ("Ann", "Bob", "Cem")[i // 3 % 3]
        recording_id = f"R{i - 3 if i % 4 == 3 else i}"  # R0, R4, … have two files
        rows.append((f"{i}.{suffix}", LABELS[i % 3], recording_id, recordist))
    for name, label in (("same1.wav", "Crow"), ("same2.wav", "Crow")):
        write(raw_dir / name, same, 16000)
        rows.append((name, label, "", "Dee" if name == "same1.wav" else "Eve"))
    for name, label in (("two1.wav", "Crow"), ("two2.wav", "Wren")):
        write(raw_dir / name, contradictory, 16000)
        rows.append((name, label, "", ""))
    (raw_dir / "text.wav").write_text("no sound")
    write(raw_dir / "short.wav", song(0.05, 16000), 16000)
    write(raw_dir / "rare.wav", song(1, 16000, seed=70), 16000)
    rows += [("text.wav", "Wren", "", "Ann"), ("short.wav", "Wren", "", ""), ("rare.wav", "Rook", "", "")]
    rows += [("gone.wav", "Crow", "", ""), ("0.wav", "Crow", "R0", "")]
    table = pd.DataFrame(rows, columns=["file", "label", "recording_id", "recordist"])
    table.to_csv(root / "metadata.csv", index=False)
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_parquet(monkeypatch)
        assert run(root, "--metadata", root / "metadata.csv", "--output_dir", root / "whole") == 0
    return root


@pytest.fixture
def root(tmp_path):
    """Return a folder of a few small recordings, for what goes wrong."""
    for i in range(6):
        write(tmp_path / "raw" / LABELS[i % 2] / f"XC{i}.wav", song(1 + i / 10, 16000, seed=i), 16000)
    return tmp_path


def refusal(root, caplog, *more, n=2):
    """Merge, which must be refused, and return the message."""
    caplog.clear()
    assert run(root, "--output_dir", root / "out", "--merge_shards", n, *more) == 3
    assert "Traceback" not in caplog.text
    return caplog.records[-1].getMessage()


def run_what_is_advised(caplog):
    """Run the commands that a refusal names."""
    lines = [record.getMessage() for record in caplog.records]
    commands = {words for line in lines for words in re.findall(r"run (python 01.*?)(?:, and the same|, then|$)", line)}
    assert commands
    for words in sorted(commands):
        program, script, *argv = shlex.split(words)
        assert (program, script) == ("python", "01_data_processing.py")
        assert stage.main(argv) == 0
    return len(commands)


def assert_merges(root, n=2):
    """Merge, and compare with what one job makes of the recordings as they are now."""
    assert run(root, "--output_dir", root / "out", "--merge_shards", n) == 0
    assert run(root, "--output_dir", root / "expected") == 0
    assert digests(root / "out") == digests(root / "expected")


# ------------------------------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize("n", N_JOBS)
def test_many_jobs_leave_what_one_leaves(birds, tmp_path, monkeypatch, caplog, n):
    small_parquet(monkeypatch)
    out = tmp_path / "out"
    more = ["--metadata", birds / "metadata.csv"]
    decode_all(birds, out, n, *more)
    assert not out.exists()
    job_of = decoded_by(out, n)
    assert len(set(job_of.values())) == n
    assert len(job_of) == 24 + 4 + 2  # of those found, all but the rare one
    if n > 1:
        assert job_of["same1.wav"] != job_of["same2.wav"] and job_of["two1.wav"] != job_of["two2.wav"]
        assert any(job_of[f"{i}.wav"] != job_of[f"{i + 3}.wav"] for i in range(0, 24, 4))  # of one recording
    assert run(birds, "--output_dir", out, "--merge_shards", n, *more) == 0
    assert digests(out) == digests(birds / "whole")
    assert len(list(out.glob("clips-*.parquet"))) > 3
    record, expected = record_of(out), record_of(birds / "whole")
    for key in ("status", "asked", "outputs", "metrics"):
        assert record[key] == expected[key]
    assert [i["sha256"] for i in record["inputs"]] == [i["sha256"] for i in expected["inputs"]]
    skipped = pd.read_csv(out / "skipped.csv")
    assert set(skipped.file) == {"two1.wav", "two2.wav", "text.wav", "short.wav", "rare.wav", "gone.wav", "0.wav"}
    recordings = pd.read_csv(out / "recordings.csv").set_index("recording_id")
    assert recordings.n_files["R0"] == 2
    assert recordings.group["same1"] == recordings.group["same2"]
    assert f"rm -r {out}.shards/*-of-{n} removes them" in (out / "log.txt").read_text()
    assert len(list((tmp_path / "out.shards").glob("*/run.json"))) == n


def test_worker_processes_change_nothing(birds, tmp_path, monkeypatch):
    small_parquet(monkeypatch)
    more = ["--metadata", birds / "metadata.csv", "--output_dir", tmp_path / "out", "--num_workers", 2]
    for number in (2, 1):
        assert run(birds, *more, "--shard", f"{number}/2") == 0
    assert run(birds, *more, "--merge_shards", 2) == 0
    assert digests(tmp_path / "out") == digests(birds / "whole")


def test_more_jobs_than_files(root):
    decode_all(root, root / "out", 8)
    assert sorted(decoded_by(root / "out", 8).values()) == [1, 2, 3, 4, 5, 6]
    assert_merges(root, 8)


def test_the_folder_of_a_shard(tmp_path, monkeypatch):
    assert shards.shard_dir(Path("data/processed"), 3, 8) == Path("data/processed.shards/3-of-8")
    monkeypatch.chdir(tmp_path)
    assert shards.shard_dir(Path(), 1, 2) == tmp_path.parent / f"{tmp_path.name}.shards" / "1-of-2"


def test_files_are_dealt_out_evenly_by_format_and_whatever_their_order():
    rng = np.random.default_rng(0)
    sizes = {".WAV": rng.lognormal(15, 1, 300), ".mp3": rng.lognormal(12, 1.5, 500), ".flac": np.zeros(80)}
    files = [spool.Listed(f"{i}{suffix}", int(size), 0) for suffix, own in sizes.items() for i, size in enumerate(own)]
    dealt = shards.deal(files, 7)
    assert sorted(file.path for share in dealt for file in share) == sorted(file.path for file in files)
    for suffix, own in sizes.items():
        loads = [sum(file.size for file in share if file.path.endswith(suffix)) for share in dealt]
        assert max(loads) - min(loads) <= max(own) + shards.BYTES_PER_FILE
    n_empty = [sum(file.path.endswith(".flac") for file in share) for share in dealt]
    assert max(n_empty) - min(n_empty) <= 1
    shuffled = [files[i] for i in rng.permutation(len(files))]
    assert [set(shard) for shard in shards.deal(shuffled, 7)] == [set(shard) for shard in dealt]
    assert shards.deal(files, 1)[0] != [] and len(shards.deal([], 3)) == 3


def test_shards_serve_other_clips_and_other_splits(root):
    decode_all(root, root / "out", 2)
    more = ["--clip_seconds", 0.5, "--seed", 7, "--split_by", "recording", "--test_fraction", 0.3]
    assert run(root, "--output_dir", root / "out", "--merge_shards", 2, *more) == 0
    assert run(root, "--output_dir", root / "expected", *more) == 0
    assert digests(root / "out") == digests(root / "expected")


# -------------------------------------------------------------------------------- again, killed, at one time


def test_a_shard_that_is_done_has_nothing_to_do(root, caplog):
    decode_all(root, root / "out", 2)
    folder = root / "out.shards" / "1-of-2"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert run(root, "--output_dir", root / "out", "--shard", "1/2", "--seed", 3) == 0
    assert "nothing to do" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}


def test_a_merged_data_set_is_that_of_one_job_with_and_without_its_shards(root, caplog):
    decode_all(root, root / "out", 2)
    assert_merges(root)
    shutil.rmtree(root / "out.shards")
    for more in ([], ["--merge_shards", 2]):
        caplog.clear()
        assert run(root, "--output_dir", root / "out", *more) == 0
        assert "nothing to do" in caplog.text


def run_until_killed(module_name, function, n_calls, root, *more):
    """Run stage 01 in this process, which SIGKILL ends after so many calls of a function."""
    module = importlib.import_module(module_name)
    original, calls = getattr(module, function), []

    def kill_or_call(*args):
        calls.append(args)
        if len(calls) > n_calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(module, function, kill_or_call)
    preparation.CLIPS_PER_PART = 3
    run(root, *more)


def kill(*args):
    process = multiprocessing.get_context("forkserver").Process(target=run_until_killed, args=args)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_shard_and_a_killed_merge_go_on(root, monkeypatch):
    monkeypatch.setattr(preparation, "CLIPS_PER_PART", 3)
    decode, decoded = audio.decode, []
    monkeypatch.setattr(audio, "decode", lambda path, *more: decoded.append(path) or decode(path, *more))
    out = ["--output_dir", root / "out"]
    kill("utils.data.audio", "decode", 2, root, *out, "--shard", "1/2")
    assert record_of(root / "out.shards" / "1-of-2")["status"] == "running"
    decode_all(root, root / "out", 2)
    assert len(decoded) == 6 - 2

    kill("utils.data.spool", "write_part", 2, root, *out, "--merge_shards", 2)
    finished = {p.name: p.stat().st_mtime_ns for p in (root / "out").glob("clips-*.parquet")}
    assert len(finished) == 2 and not (root / "out" / "label_mappings.json").exists()
    assert_merges(root)
    assert finished == {name: (root / "out" / name).stat().st_mtime_ns for name in finished}
    assert len(list((root / "out").glob("clips-*.parquet"))) > 3


def test_a_shard_stopped_by_a_signal_says_so(root, monkeypatch, caplog):
    monkeypatch.setattr(audio, "decode", lambda *_: signal.raise_signal(signal.SIGUSR2))
    assert run(root, "--output_dir", root / "out", "--shard", "1/2") == 75
    assert "run the same command again" in caplog.text
    assert record_of(root / "out.shards" / "1-of-2")["status"] == "interrupted"


def test_two_jobs_on_one_shard_and_on_one_merge(root, caplog):
    decode_all(root, root / "out", 2)
    (root / "out").mkdir()
    for folder, more in ((root / "out.shards" / "1-of-2", ["--shard", "1/2"]), (root / "out", ["--merge_shards", 2])):
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            caplog.clear()
            assert run(root, "--output_dir", root / "out", *more) == 4
            assert f"another process is writing to {folder}" in caplog.text
            # Other shards have locks of their own.
            assert run(root, "--output_dir", root / "out", "--shard", "2/2") == 0


def test_a_shard_that_is_written_again_during_the_merge(root, monkeypatch, caplog):
    decode_all(root, root / "out", 2)
    write_parts = preparation.write_parts

    def write_both(*args):
        assert run(root, "--output_dir", root / "out", "--shard", "2/2", "--overwrite") == 0
        return write_parts(*args)

    monkeypatch.setattr(preparation, "write_parts", write_both)
    assert "2-of-2 was written again during the merge" in refusal(root, caplog)
    assert not (root / "out" / preparation.SCRATCH_NAME / preparation.PLAN_NAME).exists()
    monkeypatch.undo()
    assert_merges(root)


# ------------------------------------------------------------------------------ shards that cannot be merged


def set_status(folder, status):
    (folder / "run.json").write_text(json.dumps({**record_of(folder), "status": status}))


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest_pcm(folder):
    return max((folder / "spool").glob("*.pcm"), key=lambda path: path.stat().st_size)


FAULTS = {
    "missing": (shutil.rmtree, "it is missing", False),
    "stopped": (
        lambda folder: set_status(folder, "interrupted"),
        "it is not complete: its run.json has status 'inter",
        False,
    ),
    "running": (lambda folder: set_status(folder, "running"), "another job may be writing to it", False),
    "bit": (lambda folder: flip_bit(largest_pcm(folder)), "it was changed or is damaged", True),
    "truncated": (lambda folder: os.truncate(largest_pcm(folder), 100), "has 100 bytes", True),
    "file gone": (lambda folder: largest_pcm(folder).unlink(), "is missing, but run.json lists it", True),
    "table gone": (lambda folder: (folder / "decoded.json").unlink(), "decoded.json is missing", True),
    "record": (lambda folder: (folder / "run.json").write_text('{"stage"'), "its run.json cannot be used", True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_shard_is_named_with_the_command_that_mends_it(root, caplog, name):
    spoil, words, overwrite = FAULTS[name]
    decode_all(root, root / "out", 2)
    folder = root / "out.shards" / "2-of-2"
    spoil(folder)
    message = refusal(root, caplog)
    assert f"1 of 2 shards cannot be merged (2): {folder}: " in message
    assert words in message
    assert "--shard 2/2" in message and ("--overwrite" in message) == overwrite
    assert not list((root / "out").glob("clips-*"))
    assert run_what_is_advised(caplog) == 1
    assert_merges(root)


def test_what_is_whole_in_a_damaged_shard_is_not_decoded_again(root, monkeypatch):
    decode_all(root, root / "out", 1)
    flip_bit(largest_pcm(root / "out.shards" / "1-of-1"))
    decode, decoded = audio.decode, []
    monkeypatch.setattr(audio, "decode", lambda path, *more: decoded.append(path.name) or decode(path, *more))
    assert run(root, "--output_dir", root / "out", "--shard", "1/1", "--overwrite") == 0
    assert decoded == ["XC5.wav"]
    assert_merges(root, 1)


def test_all_missing_shards_are_listed(root, caplog):
    assert run(root, "--output_dir", root / "out", "--shard", "2/5") == 0
    message = refusal(root, caplog, n=5)
    assert "4 of 5 shards cannot be merged (1,3-5)" in message and "and the same for the others" in message
    assert run_what_is_advised(caplog) == 4
    assert_merges(root, 5)


def test_shards_of_another_number(root, caplog):
    decode_all(root, root / "out", 3)
    message = refusal(root, caplog, n=2)
    assert "holds no shard of 2, but of 3: give --merge_shards that number" in message
    assert_merges(root, 3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sample_rate", 8000], "it was made with --sample_rate 16000, now it is 8000"),
        (["--min_recordings", 2], "it was made with --min_recordings 3, now it is 2"),
    ],
)
def test_shards_of_other_arguments(root, caplog, more, words):
    decode_all(root, root / "out", 2)
    assert run(root, "--output_dir", root / "out", "--shard", "1/2", *more) == 4
    assert words in refusal(root, caplog, *more)
    assert run_what_is_advised(caplog) == 2
    assert run(root, "--output_dir", root / "out", "--merge_shards", 2, *more, "--overwrite") == 0
    assert run(root, "--output_dir", root / "expected", *more) == 0
    assert digests(root / "out") == digests(root / "expected")


def test_a_shard_of_another_library(root, caplog, monkeypatch):
    decode_all(root, root / "out", 1)
    ours = spool.decoded_by()
    monkeypatch.setattr(spool, "decoded_by", lambda: "libsndfile 1.0.0")
    message = refusal(root, caplog, n=1)
    assert f"it was decoded by {ours}, here it is libsndfile 1.0.0" in message
    assert run_what_is_advised(caplog) == 1
    assert_merges(root, 1)


def test_shards_of_a_program_that_deals_otherwise(root, caplog, monkeypatch):
    deal = shards.deal
    monkeypatch.setattr(shards, "deal", lambda files, n: deal(files, n)[::-1])
    decode_all(root, root / "out", 3)
    monkeypatch.undo()
    message = refusal(root, caplog, n=3)
    assert "2 of 3 shards cannot be merged (1,3)" in message
    assert "another version of the program assigned the files differently" in message
    assert run_what_is_advised(caplog) == 2
    for number, n_files in ((1, 2), (3, 2)):  # nothing is left of the share that it was
        assert len(list((root / "out.shards" / f"{number}-of-3" / "spool").iterdir())) == 2 * n_files
    assert_merges(root, 3)


def add(raw_dir):
    write(raw_dir / "Crow" / "XC90.wav", song(3, 16000, seed=90), 16000)


def change(raw_dir):
    write(raw_dir / "Crow" / "XC0.wav", song(2, 16000, seed=91), 16000)


def remove(raw_dir):
    (raw_dir / "Great Tit" / "XC1.wav").rename(raw_dir.parent / "moved.wav")
    add(raw_dir)
    change(raw_dir)
    write(raw_dir / "Great Tit" / "XC92.wav", song(1, 16000, seed=92), 16000)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (add, "has changed since: 1 new (Crow/XC90.wav); put the files back as they were, or run"),
        (change, "has changed since: 1 changed (Crow/XC0.wav); put"),
        (remove, "2 new (Crow/XC90.wav, Great Tit/XC92.wav), 1 changed (Crow/XC0.wav), 1 gone (Great Tit/XC1.wav)"),
    ],
)
def test_files_that_change_between_two_jobs(root, caplog, alter, words):
    assert run(root, "--output_dir", root / "out", "--shard", "1/2") == 0
    alter(root / "raw")
    assert run(root, "--output_dir", root / "out", "--shard", "2/2") == 0
    message = refusal(root, caplog)
    assert "1 of 2 shards cannot be merged (1)" in message and words in message
    assert run_what_is_advised(caplog) == 1
    assert_merges(root)


def test_a_file_that_changes_before_the_merge_and_back(root, caplog):
    decode_all(root, root / "out", 2)
    moved = root / "raw" / "Crow" / "XC4.wav"
    moved.rename(root / "moved.wav")
    write(root / "raw" / "Crow" / "XC93.wav", song(1, 16000, seed=93), 16000)
    message = refusal(root, caplog)
    assert "2 of 2 shards cannot be merged (1-2)" in message
    assert "1 new (Crow/XC93.wav), 1 gone (Crow/XC4.wav); put the files back as they were, or run" in message
    (root / "moved.wav").rename(moved)
    (root / "raw" / "Crow" / "XC93.wav").unlink()
    assert_merges(root)


def test_metadata_that_changes_between_two_jobs(root, caplog):
    metadata = root / "list.csv"
    rows = [f"{LABELS[i % 2]}/XC{i}.wav,{LABELS[i % 2]}" for i in range(6)]
    metadata.write_text("\n".join(["file,label", *rows]))
    decode_all(root, root / "out", 2, "--metadata", metadata)
    metadata.write_text("\n".join(["file,label,recordist", *(f"{row},Ann" for row in rows)]))
    message = refusal(root, caplog, "--metadata", metadata)
    assert f"the content of --metadata ({metadata}) has changed since; run python" in message
    assert "it was made with --metadata" in refusal(root, caplog)


def test_overwrite_keeps_the_old_result_until_the_shards_are_there(root, caplog):
    assert run(root, "--output_dir", root / "out") == 0
    before = digests(root / "out")
    assert "it is missing" in refusal(root, caplog, "--seed", 7, "--overwrite")
    assert digests(root / "out") == before
    assert record_of(root / "out")["status"] == "complete"


# ------------------------------------------------------------------------------------- arguments and input


@pytest.mark.parametrize("value", ["0", "-1", "1000000", "99999999", "1e3", "x", "٣", ""])
def test_no_such_number_of_shards(root, capsys, value):
    assert run(root, f"--merge_shards={value}") == 2
    assert "is not a number of shards; expected 1 to 999999" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1/1000000", "1/99999999", "99999999/1000000", f"1/{'9' * 5000}"])
def test_more_shards_than_there_can_be(root, capsys, value):
    assert run(root, "--shard", value) == 2
    assert "asks for too many shards; there can be 999,999" in capsys.readouterr().err


def test_very_many_missing_shards_are_counted_and_not_named(root, caplog, monkeypatch):
    n = 999_999
    decode_all(root, root / "out", 1)
    shutil.copytree(root / "out.shards" / "1-of-1", root / "out.shards" / f"7-of-{n}")
    asked = []
    monkeypatch.setattr(runs, "read_record", lambda folder, own=runs.read_record: asked.append(folder) or own(folder))
    message = refusal(root, caplog, n=n)
    assert f"{n} of {n} shards cannot be merged (1-999999): " in message and len(message) < 1000
    assert len(asked) < 10, "only what is there is opened"
    lines = [record.getMessage() for record in caplog.records if "cannot be merged: " in record.getMessage()]
    assert [f"{k}-of-{n}" in line for k, line in zip((1, 2, 3, 7), lines, strict=False)] == [True] * 4
    assert lines[-1] == message or "cannot be merged: 999995 more, 999998 of all are missing" in lines[-1]
    assert len(lines) < 8


@pytest.mark.parametrize("value", ["4/3", "0/3", "x", "3", "1/0", "/8", "1/2/3", "1.5/3", "٣/٨", " 1/2", ""])
def test_no_such_shard(root, capsys, value):
    assert run(root, "--shard", value) == 2
    assert "is not a shard such as 3/8; the first of 8 is 1/8, the last 8/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--shard", "1/2", "--merge_shards", "2"],
        ["--merge_shards", "0"],
        ["--merge_shards", "1/2"],
        ["--merge_shards"],
        ["--shard"],
    ],
)
def test_flags_that_say_nothing(root, capsys, more):
    assert run(root, *more) == 2
    assert more[0] in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["raw"]


def test_raw_dir_among_the_shards(root, caplog):
    shutil.move(root / "raw", root / "out.shards" / "1-of-2" / "raw")
    for more in (["--shard", "1/2"], []):
        assert run(root, "--output_dir", root / "out", "--raw_dir", root / "out.shards" / "1-of-2" / "raw", *more) == 2
    assert f"{root / 'out.shards'} holds" in caplog.text


def test_too_few_labels_are_refused_before_anything_is_decoded(root, caplog):
    assert run(root, "--output_dir", root / "out", "--shard", "1/2", "--min_recordings", 9) == 3
    assert "no label is left with 9 recordings or more" in caplog.text
    assert not (root / "out.shards" / "1-of-2" / "spool").exists()


def test_labels_that_fall_below_the_minimum_by_bad_files_in_several_shards(root, caplog):
    for label in LABELS[:2]:
        path = next((root / "raw" / label).iterdir())
        path.write_text("no sound")
    decode_all(root, root / "out", 2)
    assert len(json.loads((root / "out.shards" / "1-of-2" / "listing.json").read_text())["files"]) == 6
    assert "no label is left with 3 recordings or more" in refusal(root, caplog)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(root, monkeypatch, caplog):
    monkeypatch.setattr(spool, "pcm_name", lambda path: "/dev/full")
    assert run(root, "--output_dir", root / "out", "--shard", "1/2") == 3
    assert "the disk is full: free some space and run the same command again" in caplog.text
    assert record_of(root / "out.shards" / "1-of-2")["status"] == "failed"
    monkeypatch.undo()
    decode_all(root, root / "out", 2)
    assert_merges(root)


def test_help_shows_the_commands(capsys):
    assert stage.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--shard 3/8" in shown and "--merge_shards 8" in shown
