"""Synthetic birds: deterministic, varied, audible, and with the leak that a split by clip hides."""

import json
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments import synthetic_birds
from utils.core.errors import OutputExistsError
from utils.core.files import sha256_of_file
from utils.data import synthetic
from utils.data.recordings import find_recordings
from utils.data.synthetic import SETTINGS_NAME, SONGS, write_recordings

RATE_HZ = 16000
N_FFT = 512
SMALL = {"n_species": 3, "recordists_per_species": 2, "recordings_per_recordist": 1, "seconds": (0.5, 0.6)}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    raw_dir = tmp_path_factory.mktemp("birds")
    write_recordings(raw_dir, seconds=(4.0, 6.0))
    return raw_dir


@pytest.fixture(scope="module")
def table(birds):
    return pd.read_csv(birds / "metadata.csv", dtype=str, keep_default_na=False)


def digests(raw_dir):
    return {path.relative_to(raw_dir): sha256_of_file(path) for path in raw_dir.rglob("*") if path.is_file()}


def decoded(path):
    return soundfile.read(path, always_2d=True)[0]


# ---------------------------------------------------------------------------------------------- what is made


def test_the_table_and_the_folders_name_the_same_recordings(birds, table):
    files, skipped = find_recordings(birds, birds / "metadata.csv")
    assert skipped == []
    assert len(files) == len(table) == 8 * 6 * 2
    from_folders, skipped = find_recordings(birds)
    assert skipped == []
    assert {f.path: f.label for f in from_folders} == {f.path: f.label for f in files}


def test_recordists_cover_one_or_two_species(table):
    species = table.groupby("recordist")["label"].nunique()
    assert set(species) == {1, 2}
    assert (table.groupby("label")["recordist"].nunique() == 6).all()


def test_formats_rates_and_channels_vary_within_and_across_species(birds, table):
    infos = [soundfile.info(birds / file) for file in table["file"]]
    subtypes = {(info.format, info.subtype) for info in infos}
    assert subtypes >= {("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")}
    assert {"MP3", "OGG"} <= {info.format for info in infos}
    assert {info.samplerate for info in infos} == {8000, 16000, 22050, 32000, 44100, 48000}
    assert Counter(info.channels for info in infos) == {1: 48, 2: 48}
    rates = defaultdict(set)
    for label, info in zip(table["label"], infos, strict=True):
        rates[label].add(info.samplerate)
        assert 3.9 < info.duration < 6.1
    assert all(len(r) >= 4 for r in rates.values())  # so that a rate does not give a species away


def test_every_recording_can_be_heard_and_none_is_clipped(birds, table):
    for file in table["file"]:
        samples = decoded(birds / file)
        assert np.isfinite(samples).all()
        assert 0.02 < np.abs(samples).max() < 0.9


def test_songs_survive_every_sample_rate_they_are_recorded_at(birds, table):
    """The band of a song, dialects included, lies below the Nyquist frequency of its recordings."""
    song_of = {song.species: song for song in SONGS}
    for file, label in zip(table["file"], table["label"], strict=True):
        assert song_of[label].highest_hz < 0.45 * soundfile.info(birds / file).samplerate


def test_a_whistle_stands_where_its_species_sings(birds, table):
    # The Ticktail's two notes, a quarter of an octave above and below 3,200 Hz, are the loudest of their surroundings.
    n_right = 0
    own = table[table["label"] == "Ashen Ticktail"]
    for file in own["file"]:
        samples, rate = soundfile.read(birds / file, always_2d=True)
        power = np.abs(np.fft.rfft(samples.mean(axis=1))) ** 2
        octaves = np.log2(np.fft.rfftfreq(len(samples), 1 / rate)[1:] / 3200)
        near = (octaves > -1) & (octaves < 0.8)
        found = octaves[near][np.argsort(power[1:][near])[-50:]]
        n_right += np.mean(np.abs(np.abs(found) - 0.25) < 0.3) > 0.8
    assert n_right >= 0.75 * len(own)


# --------------------------------------------------------------------------------------------- determinism


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_recordings(tmp_path / name, **SMALL)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert one.keys() == two.keys()
    for path in one:
        if path.suffix == ".ogg":  # its serial number is random
            assert np.array_equal(decoded(tmp_path / "one" / path), decoded(tmp_path / "two" / path))
        else:
            assert one[path] == two[path]


def test_float_files_hold_no_time_of_writing(tmp_path):
    samples = np.linspace(-0.5, 0.5, 800)[:, None]
    synthetic.write_audio(tmp_path / "a.wav", samples, 8000, "FLOAT")
    data = (tmp_path / "a.wav").read_bytes()
    assert data[data.index(b"PEAK") + 12 :][:4] == bytes(4)
    assert np.allclose(decoded(tmp_path / "a.wav"), samples)


def test_another_seed_gives_other_recordings(tmp_path):
    write_recordings(tmp_path / "one", **SMALL)
    write_recordings(tmp_path / "two", **SMALL, seed=1)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    audio = [path for path in one if path.suffix not in (".csv", ".json")]
    assert all(one[path] != two[path] for path in audio)


# -------------------------------------------------------------------------------------- complete, completed, refused


def test_a_complete_folder_is_left_as_it_is(tmp_path):
    write_recordings(tmp_path, **SMALL)
    audio = [path for path in tmp_path.rglob("SB*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in audio}
    write_recordings(tmp_path, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in audio} == before


def test_a_half_written_folder_is_completed(tmp_path):
    write_recordings(tmp_path / "whole", **SMALL)
    write_recordings(tmp_path / "half", **SMALL)
    (tmp_path / "half/metadata.csv").unlink()
    for path in list((tmp_path / "half").rglob("SB*[1346].*")):
        path.unlink()
    write_recordings(tmp_path / "half", **SMALL)
    whole, half = digests(tmp_path / "whole"), digests(tmp_path / "half")
    assert {p: d for p, d in whole.items() if p.suffix != ".ogg"} == {
        p: d for p, d in half.items() if p.suffix != ".ogg"
    }


def test_a_folder_of_other_arguments_is_refused_or_replaced(tmp_path):
    write_recordings(tmp_path, **SMALL)
    with pytest.raises(OutputExistsError, match="made with other arguments"):
        write_recordings(tmp_path, **(SMALL | {"n_species": 2}))
    write_recordings(tmp_path, **(SMALL | {"n_species": 2}), overwrite=True)
    assert len(find_recordings(tmp_path)[0]) == 4
    assert json.loads((tmp_path / SETTINGS_NAME).read_text())["n_species"] == 2


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputExistsError, match="not synthetic birds"):
        write_recordings(tmp_path, **SMALL, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_there_are_only_so_many_species(tmp_path):
    with pytest.raises(ValueError, match="expected 1 to"):
        write_recordings(tmp_path, n_species=len(SONGS) + 1)


# ---------------------------------------------------------------------------------------------------- the leak


def mel_filters():
    """Return 40 triangular filters on the mel scale, shape (40, N_FFT // 2 + 1)."""
    mels = 2595 * np.log10(1 + np.fft.rfftfreq(N_FFT, 1 / RATE_HZ) / 700)
    edges = np.linspace(0, 2595 * np.log10(1 + RATE_HZ / 2 / 700), 42)[:, None]
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None)


def log_mel_statistics(clip, filters):
    frames = np.lib.stride_tricks.sliding_window_view(clip, N_FFT)[:: N_FFT // 2] * np.hanning(N_FFT)
    log_mel = np.log(np.abs(np.fft.rfft(frames)) ** 2 @ filters.T + 1e-8)
    motion = np.abs(np.diff(log_mel, axis=0)).mean(axis=0)
    return np.concatenate([log_mel.mean(axis=0), log_mel.std(axis=0), np.percentile(log_mel, 90, axis=0), motion])


def test_a_split_by_clip_looks_better_than_one_by_recordist(birds, table):
    filters, n_clip = mel_filters(), 2 * RATE_HZ
    features, labels, recordings, visits = [], [], [], []
    for row in table.itertuples():
        samples, rate = soundfile.read(birds / row.file, always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate, RATE_HZ)
        for start in range(0, len(mono) - n_clip + 1, n_clip):
            features.append(log_mel_statistics(mono[start : start + n_clip], filters))
            labels.append(row.label)
            recordings.append(row.recording_id)
            visits.append(f"{row.recordist}|{row.label}")
    groups = {"clip": range(len(labels)), "recording": recordings, "recordist": visits}
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    accuracy = {}
    for name, group in groups.items():
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        accuracy[name] = cross_val_score(classifier, features, labels, groups=list(group), cv=folds).mean()
    chance = 1 / 8
    assert accuracy["clip"] > 0.95
    assert accuracy["recording"] > 0.85
    assert 4 * chance < accuracy["recordist"] < accuracy["clip"] - 0.1


# ------------------------------------------------------------------------------------------------ the script

ARGV = ["--n_species", "2", "--recordists_per_species", "1", "--recordings_per_recordist", "1"]
ARGV += ["--min_seconds", "0.5", "--max_seconds", "0.5"]


def test_the_script_writes_birds_and_does_so_once(tmp_path):
    argv = [*ARGV, "--output_dir", str(tmp_path / "demo/raw")]
    assert synthetic_birds.main(argv) == 0
    before = digests(tmp_path)
    assert synthetic_birds.main(argv) == 0
    assert digests(tmp_path) == before
    assert len(before) == 4  # two recordings, table, settings
    assert synthetic_birds.main([*argv, "--seed", "1"]) == 4
    assert synthetic_birds.main([*argv, "--seed", "1", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n_species", "99"], "--n_species 99: there are 12 synthetic species"),
        (["--min_seconds", "3", "--max_seconds", "2"], "--min_seconds 3.0 is above --max_seconds 2.0"),
        (["--n_species", "0"], "at least 1"),
    ],
)
def test_the_script_refuses_impossible_values(tmp_path, capsys, argv, message):
    assert synthetic_birds.main([*argv, "--output_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_help_of_the_script_is_its_command(capsys):
    assert synthetic_birds.main(["--help"]) == 0
    assert "python -m experiments.synthetic_birds --output_dir demo/raw" in capsys.readouterr().out
