"""Synthetic noise: its level, its spectrum, and the experiment that counts false alarms in it."""

import numpy as np
import pytest

from experiments import noise_alarms
from tests.data import LABELS
from utils.data import synthetic_noise
from utils.models import decision, encoders

RATE_HZ = 16_000


@pytest.mark.parametrize("kind", synthetic_noise.KINDS)
def test_noise_has_its_level_and_is_that_of_its_seed(kind):
    first, same, other = (
        synthetic_noise.noise(kind, np.random.default_rng(seed), 5 * RATE_HZ, RATE_HZ, -40) for seed in (1, 1, 2)
    )
    assert first.dtype == np.float32 and first.shape == (5 * RATE_HZ,)
    assert 10 * np.log10(2 * (first.astype(float) ** 2).mean()) == pytest.approx(-40, abs=1.5)
    assert (first == same).all() and not (first == other).all()
    assert np.abs(synthetic_noise.noise(kind, np.random.default_rng(1), RATE_HZ, RATE_HZ, 0)).max() <= 1


@pytest.mark.parametrize(("kind", "fall_db"), [("white", 0), ("pink", 3), ("brown", 6)])
def test_colours_fall_as_they_should(kind, fall_db):
    sound = synthetic_noise.noise(kind, np.random.default_rng(0), 20 * RATE_HZ, RATE_HZ, -30)
    power = np.abs(np.fft.rfft(sound)) ** 2
    hz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    octaves = [power[(hz >= low) & (hz < 2 * low)].mean() for low in (500, 1000, 2000)]
    np.testing.assert_allclose(-np.diff(10 * np.log10(octaves)), fall_db, atol=0.5)


@pytest.fixture
def model_dir(tmp_path):
    loaded = encoders.tiny_model(LABELS)
    loaded.config.clip_seconds = 0.5
    encoders.save_model(loaded, tmp_path / "model")
    return tmp_path / "model"


def main(model_dir, *words):
    return noise_alarms.main(["--model_dir", str(model_dir), "--clips", "2", *words])


def test_alarms_are_counted_with_one_threshold_and_with_fitted_ones(model_dir, capsys):
    assert main(model_dir, "--threshold", "0.01") == 0
    printed = capsys.readouterr().out
    n_rows = len(synthetic_noise.KINDS) * len(noise_alarms.LEVELS_DB)
    assert printed.count("1.000 [") == n_rows + 1 and "3 of 3 labels have a threshold" in printed
    value = {
        **{"target_precision": 0.9, "calibration": {"kind": "temperature", "temperature": 1.0}},
        **{"thresholds": {"Blackbird": 0.99, "Crow": None, "Great Tit": 0.99}, "reasons": {}},
        "fitted_on": {"data_sha256": "0", "split": "val"},
    }
    decision.write(model_dir / "config.json", value)
    assert main(model_dir) == 0
    printed = capsys.readouterr().out
    assert printed.count("0.000 [") == n_rows + 1 and "2 of 3 labels have a threshold" in printed


def test_a_model_without_thresholds_needs_one(model_dir, capfd):
    assert main(model_dir) == 2
    assert "has no fitted thresholds: give --threshold" in capfd.readouterr().err
