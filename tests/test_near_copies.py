"""Recordings that are one sound are found in every disguise, and others are not."""

import dataclasses
import itertools
import logging

import numpy as np
import pandas as pd
import pytest
import soxr

from drills import near_copies as drill
from tests.sounds import calls, write
from tests.stages import digests, load_stage
from utils.core import workers
from utils.core.errors import InputError
from utils.data import landmarks, near_copies, preparation, spool
from utils.data.recordings import SourceFile

stage = load_stage("01_data_processing")
RATE_HZ = 16_000
LABELS = ["Crow", "Wren"]


def join(folder, sounds, pool_map=map):
    """Return what is found among sounds, float32 by name, once they are PCM."""
    folder.mkdir(exist_ok=True)
    decoded = []
    for name, sound in sounds.items():
        path = folder / spool.pcm_name(name)
        pcm = np.rint(np.clip(sound, -1, 1) * 32767).astype("<i2")
        pcm.tofile(path)
        with path.open("rb") as file:
            decoded.append(drill.Sound(name, len(pcm), str(hash(pcm.tobytes())), landmarks.find_peaks(file)))
    return near_copies.find(decoded, dict.fromkeys(sounds, folder), RATE_HZ, pool_map)


# ------------------------------------------------------------------------------------------------- landmarks


def test_peaks_are_the_highest_of_their_band_and_surroundings(tmp_path, monkeypatch):
    pcm = np.rint(8000 * calls(3, seed=1)).astype("<i2")
    pcm.tofile(tmp_path / "pcm")
    with (tmp_path / "pcm").open("rb") as file:
        frames, bins = landmarks.unpack(landmarks.find_peaks(file))
        monkeypatch.setattr(landmarks, "FRAMES_PER_READ", 13)
        assert [part.tolist() for part in landmarks.unpack(landmarks.find_peaks(file))] == [
            frames.tolist(),
            bins.tolist(),
        ]
    starts = range(0, len(pcm) - 511, 256)
    power = np.array([np.abs(np.fft.rfft(pcm[start : start + 512] * np.hanning(512))) ** 2 for start in starts])
    expected = []
    for low, high in itertools.pairwise(landmarks._EDGES):
        band = power[:, low:high]
        for i, row in enumerate(band):
            if row.max() > 1e3 and row.max() >= band[max(0, i - 6) : i + 7].max():
                expected.append((i, low + int(row.argmax())))
    assert sorted(zip(frames.tolist(), bins.tolist(), strict=True)) == sorted(expected)
    assert 30 < len(frames) < 250


@pytest.mark.parametrize("n_samples", [0, 1, 511])
def test_a_recording_shorter_than_a_frame_has_no_peaks(n_samples, tmp_path):
    (tmp_path / "pcm").write_bytes(bytes(2 * n_samples))
    with (tmp_path / "pcm").open("rb") as file:
        assert [len(part) for part in landmarks.unpack(landmarks.find_peaks(file))] == [0, 0]


# ------------------------------------------------------------------------------------- what is and is not found


def decoded_by_01(tmp_path, pool_map=map):
    return drill.join(drill.decode(tmp_path / "raw", tmp_path / "spool", pool_map), tmp_path / "spool", pool_map)


@pytest.mark.parametrize("way", drill.WAYS)
def test_a_copy_is_found(way, tmp_path):
    sound = calls(6, seed=1, rate_hz=drill.SOURCE_HZ)
    for folder in ("a", "b"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
    drill.wav(tmp_path / "raw" / "a" / "one", sound)
    drill.WAYS[way](tmp_path / "raw" / "b" / "one", sound)
    drill.wav(tmp_path / "raw" / "a" / "other", calls(6, seed=2, rate_hz=drill.SOURCE_HZ))
    (copy,) = decoded_by_01(tmp_path)
    assert (copy.path, copy.other[:6]) == ("a/one.wav", "b/one.")
    assert copy.correlation > 0.75
    trimmed_s = float(way.split()[2]) if way.startswith("trimmed") else 0.0
    assert copy.lag / RATE_HZ == pytest.approx(-trimmed_s, abs=0.05)


def test_lag_and_correlation_are_those_of_brute_force(tmp_path):
    one = calls(4, seed=3)
    other = 0.5 * np.concatenate([calls(1.3, seed=4), one[4321:50_000], calls(2, seed=5)])
    other += 0.03 * np.random.default_rng(0).standard_normal(len(other)).astype(np.float32)
    (copy,) = join(tmp_path / "spool", {"one": one, "other": other})
    products = np.correlate(other.astype(float), one[4321:50_000].astype(float))
    assert copy.lag == int(np.abs(products).argmax()) - 4321 == round(1.3 * RATE_HZ) - 4321
    windows = [
        abs(np.corrcoef(one[start : start + 2 * RATE_HZ], other[start + copy.lag :][: 2 * RATE_HZ])[0, 1])
        for start in range(4321, 50_000 - 2 * RATE_HZ, 100)
    ]
    assert min(windows) - 0.02 < copy.correlation < max(windows) + 0.02


@pytest.mark.parametrize("seconds", [0.8, 1.5])
def test_a_short_recording_is_found(seconds, tmp_path):
    one = calls(5, seed=6)
    (copy,) = join(tmp_path / "spool", {"one": one, "cut": one[20_128 : 20_128 + round(seconds * RATE_HZ)]})
    assert copy.lag == -20_128 and copy.correlation > 0.95


def test_what_is_too_short_to_tell_is_not_joined(tmp_path):
    one = calls(5, seed=6)
    assert join(tmp_path / "spool", {"one": one, "cut": one[20_000 : 20_000 + 6400]}) == []


def different(kind):
    rng = np.random.default_rng(9)
    time_s = np.arange(5 * RATE_HZ) / RATE_HZ
    for i in range(6):
        noise = rng.standard_normal(len(time_s)).astype(np.float32)
        if kind == "calls":
            yield calls(5, seed=100 + i)
        elif kind == "noise":
            yield 0.1 * noise
        elif kind == "silence":
            yield np.round(noise * 0.6) / 32767  # what 16 bits make of silence
        elif kind == "tone":
            yield 0.2 * np.sin(2 * np.pi * 1000 * time_s + i)
        elif kind == "hum":
            yield 0.2 * np.sin(2 * np.pi * 1000 * time_s + i) + 0.01 * noise
        elif kind == "calls over hum":
            yield 0.2 * np.sin(2 * np.pi * 1000 * time_s + i) + calls(5, seed=200 + i)
        elif kind == "ticks":
            yield (0.5 * (np.arange(len(time_s)) % 1600 == 7 * i) + 0.001 * noise).astype(np.float32)


@pytest.mark.parametrize("kind", ["calls", "noise", "silence", "tone", "hum", "calls over hum", "ticks"])
def test_different_recordings_are_not_joined(kind, tmp_path):
    sounds = {f"{i}": sound for i, sound in enumerate(different(kind))}
    assert join(tmp_path / "spool", sounds) == []
    if kind in ("tone", "hum", "calls over hum"):  # whatever is proposed: steady tones correlate, and are told
        one, other = (np.rint(sounds[name] * 32767).astype(np.int16) for name in "01")
        assert near_copies.correlate(one[8000:40_000], other[7488:40_512], RATE_HZ)[1] == 0


def test_calls_over_hum_are_found(tmp_path):
    sounds = {f"{i}": sound for i, sound in enumerate(different("calls over hum"))}
    sounds["copy"] = 0.7 * sounds["3"][5000:]
    (copy,) = join(tmp_path / "spool", sounds)
    assert (copy.path, copy.other, copy.lag) == ("3", "copy", -5000)


def test_many_copies_hang_together_and_a_hash_is_compared_with_few(tmp_path):
    one = calls(4, seed=11)
    sounds = {f"{i}": one[137 * i :] * (1 - i / 50) for i in range(20)}
    sounds |= {f"other {i}": calls(4, seed=300 + i) for i in range(5)}
    copies = join(tmp_path / "spool", sounds)
    places = near_copies.places(copies)
    assert places == {f"{i}": near_copies.Place("0", 137 * i) for i in range(20)}
    assert len(copies) < 20 * 19 / 2


def test_equal_sound_is_joined_without_peaks(tmp_path):
    silent = np.zeros(100, np.float32)
    copies = join(tmp_path / "spool", {"a": silent, "b": silent, "c": silent})
    assert copies == [near_copies.Copy("a", "b", 0, 1.0), near_copies.Copy("a", "c", 0, 1.0)]


def test_one_note_in_common_is_no_reason_to_compare():
    rng = np.random.default_rng(4)

    def recording(*notes):
        """Return peaks at random, and at some frames a note of ten peaks in ten frames, the same in each recording."""
        frames, bins = np.arange(0, 900, 3, np.int32), rng.integers(8, 240, 300).astype(np.uint8)
        for start in notes:
            keep = (frames < start) | (frames >= start + 30)
            frames = np.concatenate([frames[keep], start + np.arange(10, dtype=np.int32)])
            bins = np.concatenate([bins[keep], np.arange(20, 220, 20, np.uint8)])
        order = np.argsort(frames, kind="stable")
        return frames[order], bins[order]

    def pairs(*recordings):
        return [(c.one, c.other, c.lag // landmarks.HOP) for c in near_copies.propose(recordings, RATE_HZ)]

    assert pairs(recording(300), recording(400)) == []
    assert pairs(recording(300, 600), recording(400, 700)) == [(0, 1, 100)]
    one = recording()
    assert pairs(one, one) == [(0, 1, 0)]


def test_no_recordings_and_those_without_peaks():
    assert near_copies.propose([], RATE_HZ) == []
    nothing = np.empty(0, np.int32), np.empty(0, np.uint8)
    assert near_copies.propose([nothing, nothing], RATE_HZ) == []


def test_too_many_peaks_are_refused(monkeypatch):
    monkeypatch.setattr(near_copies, "PEAK_BITS", 2)
    peaks = np.arange(4, dtype=np.int32), np.full(4, 9, np.uint8)
    with pytest.raises(InputError, match=r"4 peaks; the index of near copies holds at most 3 .*: divide"):
        near_copies.propose([peaks], RATE_HZ)


def test_neither_parts_of_the_index_nor_workers_change_the_result(tmp_path, monkeypatch):
    sounds = {f"{i}": calls(3, seed=400 + i) for i in range(6)}
    sounds |= {f"copy {i}": sounds[f"{i}"][100 * i + 77 :] for i in range(6)}
    expected = join(tmp_path / "spool", sounds)
    assert [(copy.path, copy.other) for copy in expected] == [(f"{i}", f"copy {i}") for i in range(6)]
    monkeypatch.setattr(near_copies, "HASHES_AT_ONCE", 500)
    monkeypatch.setattr(near_copies, "PAIRS_PER_TASK", 1)
    assert join(tmp_path / "spool", sounds, lambda f, tasks: map(f, reversed(list(tasks)))) == expected
    with workers.worker_pool(2) as pool_map:
        assert join(tmp_path / "spool", sounds, pool_map) == expected


# ---------------------------------------------------------------------------------------------- what follows


def test_clips_that_share_sound_share_a_key():
    rng = np.random.default_rng(0)
    clip = 1000
    for _ in range(2000):
        (one, first), (other, second) = (
            (near_copies.Place("s", int(s)), int(c)) for s, c in rng.integers(-5000, 5000, (2, 2))
        )
        keys = [set(near_copies.keys(p, (c, clip), clip)) for p, c in ((one, first), (other, second))]
        shared = clip - abs(one.start + first - other.start - second)
        if shared > clip / 10 + 1:
            assert keys[0] & keys[1]
        if shared <= 0:
            assert not keys[0] & keys[1]
    assert near_copies.keys(None, (0, clip), clip) == near_copies.keys(None, None, clip) == []
    assert near_copies.keys(near_copies.Place("s", 7), None, clip) == ["sound:s"]
    assert len(near_copies.keys(near_copies.Place("s", 0), (0, 30), clip)) == 1  # a rest


def recorded(path, label, start, n_samples):
    file = SourceFile(path, label, path, None)
    sound = dataclasses.make_dataclass("Sound", ["n_samples"])(n_samples)
    return preparation.Recorded(file, sound, ((0, n_samples),), near_copies.Place("a", start))


def test_two_labels_are_left_out_where_much_is_shared(caplog):
    files = [
        recorded("a", "Crow", 0, 1000),
        recorded("b", "Wren", 800, 1000),  # shares a fifth with a, all with d
        recorded("c", "Crow", -900, 1000),
        recorded("d", "Crow", 850, 1000),
    ]
    kept, skipped = preparation.drop_contradictions(files)
    assert [r.file.path for r in kept] == ["a", "c"]
    assert [(s.file, s.reason) for s in skipped] == [
        ("b", "the same sound as d, under another label (Wren, Crow)"),
        ("d", "the same sound as b, under another label (Crow, Wren)"),
    ]
    assert "the same sound, kept on one side of the split: a, c" in caplog.text


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    """Return recordings of which two are copies of others, trimmed, one of them under another label."""
    raw_dir = tmp_path_factory.mktemp("raw")
    sounds = {i: calls(6, seed=500 + i) for i in range(12)}
    for i, sound in sounds.items():
        write(raw_dir / LABELS[i % 2] / f"XC{i}.wav", sound, RATE_HZ)
    louder = soxr.resample(1.5 * sounds[0][8128:], RATE_HZ, 44_100)
    write(raw_dir / "Crow" / "XC50.mp3", louder, 44_100, bitrate_mode="CONSTANT", compression_level=0.6)
    write(raw_dir / "Crow" / "XC60.ogg", -sounds[1][:70_000], RATE_HZ)
    return raw_dir


def run(raw_dir, output_dir, *more):
    words = ["--raw_dir", raw_dir, "--output_dir", output_dir, "--min_recordings", 3, "--num_workers", 1]
    return stage.main([str(word) for word in [*words, "--clip_seconds", 2, *more]])


@pytest.fixture(scope="module")
def processed(raw_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("processed") / "out"
    assert run(raw_dir, output_dir) == 0
    return output_dir


def test_stage_01_lists_copies_and_leaves_out_two_labels(processed):
    copies = pd.read_csv(processed / preparation.NEAR_COPIES_NAME)
    assert copies[["file", "same_sound_as"]].values.tolist() == [
        ["Crow/XC0.wav", "Crow/XC50.mp3"],
        ["Wren/XC1.wav", "Crow/XC60.ogg"],
    ]
    assert copies.lag_s.tolist() == pytest.approx([-0.508, 0], abs=0.08)
    assert (copies.correlation > 0.8).all()
    skipped = pd.read_csv(processed / "skipped.csv")
    assert skipped.values.tolist() == [
        ["Crow/XC60.ogg", "the same sound as Wren/XC1.wav, under another label (Crow, Wren)"],
        ["Wren/XC1.wav", "the same sound as Crow/XC60.ogg, under another label (Wren, Crow)"],
    ]
    log = (processed / "log.txt").read_text()
    assert "the same sound, kept on one side of the split: Crow/XC0.wav, Crow/XC50.mp3" in log
    assert "4 files share sound with other files; " in log


@pytest.mark.parametrize("split_by", stage.splits.SPLIT_BY)
def test_copies_share_a_group_however_it_is_split(split_by, raw_dir, tmp_path):
    assert run(raw_dir, tmp_path / "out", "--split_by", split_by) == 0
    clips = pd.concat(map(pd.read_parquet, sorted((tmp_path / "out").glob("clips-*.parquet"))))
    one, copy = (clips[clips.recording_id == name] for name in ("XC0", "XC50"))
    assert len(one) == 3 and len(copy) == 3
    for _, a in one.iterrows():
        for _, b in copy.iterrows():
            start_s = b.start_s + 0.508
            if min(a.start_s + a.duration_s, start_s + b.duration_s) - max(a.start_s, start_s) > 0.25:
                assert (a.group, a.split) == (b.group, b.split)
    others = clips[~clips.recording_id.isin(["XC0", "XC50"])]
    assert others.group.nunique() == (len(others) if split_by == "clip" else others.recording_id.nunique())


def test_shards_and_workers_find_the_same_copies(raw_dir, processed, tmp_path):
    assert run(raw_dir, tmp_path / "two", "--num_workers", 2) == 0
    for number in (1, 2):
        assert run(raw_dir, tmp_path / "merged", "--shard", f"{number}/2") == 0
    assert run(raw_dir, tmp_path / "merged", "--merge_shards", 2) == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "merged") == digests(processed)


# ------------------------------------------------------------------------------------------------- the drill


def test_the_drill_prints_its_tables(tmp_path, capsys, monkeypatch, caplog):
    for i in range(3):
        write(tmp_path / "raw" / LABELS[i % 2] / f"XC{i}.wav", calls(7, seed=600 + i), RATE_HZ)
    write(tmp_path / "raw" / "Wren" / "XC7.wav", calls(7, seed=600)[9000:], RATE_HZ)
    kept = "inverted", "trimmed by 2 s, half a hop"
    monkeypatch.setattr(drill, "WAYS", {name: drill.WAYS[name] for name in kept})
    monkeypatch.setattr(drill, "N_COPIES", 3)
    words = ["--raw_dirs", str(tmp_path / "raw"), "--n_recordings", "3", "--sizes", "9"]
    assert drill.main(words) == 0
    printed = capsys.readouterr().out
    assert "| raw/Crow/XC0.wav | raw/Wren/XC7.wav | -0.562 s | 1.000 | None | different |" in printed
    for row in (*kept, drill.OVERLAP):
        assert f"| {row} | 3 = 100.0% |" in printed
    assert "| 3 of 3 | 0 |" in printed

    monkeypatch.setattr(drill, "WAYS", {"made anew": lambda path, sound: drill.wav(path, sound[::-1])})
    with caplog.at_level(logging.WARNING):
        assert drill.main([*words, "--parts", "copies"]) == 1
    assert "| made anew | 0 = 0.0% |" in capsys.readouterr().out
