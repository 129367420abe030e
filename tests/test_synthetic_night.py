"""The synthetic night: the same bytes each time, songs where the table says, a place of its own."""

import numpy as np
import pandas as pd
import pytest
import soundfile

from experiments import synthetic_birds
from utils.core.errors import OutputExistsError
from utils.data import recorders
from utils.data.synthetic import SONGS
from utils.data.synthetic_night import PLANTED_NAME, write_night

SHORT = {"n_files": 2, "seconds": 40.0}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    return write_night(tmp_path_factory.mktemp("night"), **SHORT)


def test_files_start_at_hours_of_one_night_and_the_table_knows_each(night):
    files = sorted(night.parent.glob("*.wav"))
    assert [recorders.read_start(file).time for file in files] == ["2026-06-01T21:00:00", "2026-06-01T23:00:00"]
    planted = pd.read_csv(night)
    assert set(planted["file"]) == {file.name for file in files}
    assert set(planted["label"]) <= {song.species for song in SONGS}
    assert (planted["start"] >= 0).all() and (planted["end"] <= 40).all()
    assert (planted["end"] - planted["start"]).between(2.5, 6).all()
    assert all(soundfile.info(file).duration == 40 for file in files)


def test_it_is_louder_where_the_table_has_a_song(night):
    for file, songs in pd.read_csv(night).groupby("file"):
        samples, rate_hz = soundfile.read(night.parent / file)
        sings = np.zeros(len(samples), bool)
        for start, end in zip(songs["start"], songs["end"], strict=True):
            sings[round(start * rate_hz) : round(end * rate_hz)] = True
        assert 0.2 < sings.mean() < 0.9
        # A song has at least 6 dB more power than the background, so that with it there is five times the power.
        assert np.mean(samples[sings] ** 2) > 3 * np.mean(samples[~sings] ** 2)


def test_same_arguments_same_bytes_and_other_arguments_are_refused(night, tmp_path):
    again = write_night(tmp_path / "again", **SHORT)
    for path in night.parent.iterdir():
        assert (again.parent / path.name).read_bytes() == path.read_bytes()
    (again.parent / "MEADOW_20260601_230000.wav").unlink()  # an unfinished folder is completed
    write_night(again.parent, **SHORT)
    assert len(list(again.parent.glob("*.wav"))) == 2
    with pytest.raises(OutputExistsError, match="other arguments"):
        write_night(again.parent, n_files=1)
    write_night(again.parent, n_files=1, seconds=20.0, overwrite=True)
    assert len(list(again.parent.glob("*.wav"))) == 1


def test_the_script_writes_it_beside_the_collection(tmp_path, monkeypatch):
    small = ["--n_species", "2", "--recordists_per_species", "1", "--recordings_per_recordist", "1"]
    words = [
        "--output_dir",
        str(tmp_path / "raw"),
        *small,
        "--max_seconds",
        "6.5",
        "--night_dir",
        str(tmp_path / "night"),
    ]
    assert synthetic_birds.main(words) == 0
    planted = pd.read_csv(tmp_path / "night" / PLANTED_NAME)
    assert set(planted["label"]) <= {song.species for song in SONGS[:2]} and len(set(planted["file"])) == 5
