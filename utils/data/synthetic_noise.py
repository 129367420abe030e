"""Synthetic noise without a bird: weather, machines, electronics, as in those classes of ESC-50."""

from collections.abc import Callable

import numpy as np

FULL_SCALE_SINE = 2**-0.5


def coloured(rng: np.random.Generator, n_samples: int, rate_hz: int, db_per_octave: float) -> np.ndarray:
    """Return Gaussian noise whose power falls by so many dB per octave: 0 is white, 3 pink, 6 brown."""
    frequencies_hz = np.maximum(np.fft.rfftfreq(n_samples, 1 / rate_hz), 20)
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    return np.fft.irfft(spectrum * 10 ** (-db_per_octave * np.log2(frequencies_hz / 1000) / 20), n_samples)


def _slow(rng: np.random.Generator, n_samples: int, rate_hz: int, changes_per_s: float) -> np.ndarray:
    """Return a random curve from 0 to 1 that bends about so many times per second."""
    n_points = max(2, round(n_samples / rate_hz * changes_per_s) + 2)
    points = rng.random(n_points)
    return np.interp(np.linspace(0, n_points - 1, n_samples), np.arange(n_points), points)


def _drops(
    rng: np.random.Generator, n_samples: int, rate_hz: int, per_s: float, lasts_s: float, lowest_hz: float
) -> np.ndarray:
    """Return short decaying sounds of random pitch and loudness at random times."""
    sound = np.zeros(n_samples)
    time_s = np.arange(max(1, round(5 * lasts_s * rate_hz))) / rate_hz
    for start in rng.integers(0, n_samples, rng.poisson(per_s * n_samples / rate_hz)):
        pitch_hz = rng.uniform(lowest_hz, 0.45 * rate_hz)
        drop = rng.exponential() * np.exp(-time_s / lasts_s) * np.sin(2 * np.pi * pitch_hz * time_s + rng.uniform(0, 6))
        sound[start : start + len(drop)] += drop[: n_samples - start]
    return sound


def rain(rng: np.random.Generator, n_samples: int, rate_hz: int) -> np.ndarray:
    """Return a hiss with several hundred drops per second."""
    drops = _drops(rng, n_samples, rate_hz, rng.uniform(100, 500), 0.002, 1000)
    return coloured(rng, n_samples, rate_hz, 2) / 3 + drops


def wind(rng: np.random.Generator, n_samples: int, rate_hz: int) -> np.ndarray:
    """Return low noise in gusts."""
    return coloured(rng, n_samples, rate_hz, rng.uniform(5, 8)) * (0.1 + _slow(rng, n_samples, rate_hz, 1) ** 2)


def hum(rng: np.random.Generator, n_samples: int, rate_hz: int) -> np.ndarray:
    """Return mains hum of 50 or 60 Hz with its multiples, over a faint hiss."""
    time_s, base_hz = np.arange(n_samples) / rate_hz, rng.choice([50, 60])
    tones = [np.sin(2 * np.pi * k * base_hz * time_s + rng.uniform(0, 6)) / k for k in range(1, 13)]
    return np.sum(tones, axis=0) + 0.01 * rng.standard_normal(n_samples)


def clicks(rng: np.random.Generator, n_samples: int, rate_hz: int) -> np.ndarray:
    """Return single clicks, as of a bad contact or a hand on the recorder, over a faint hiss."""
    sharp = _drops(rng, n_samples, rate_hz, rng.uniform(1, 10), 0.001, 100)
    return sharp + 0.003 * rng.standard_normal(n_samples)


def engine(rng: np.random.Generator, n_samples: int, rate_hz: int) -> np.ndarray:
    """Return an engine: a low tone that drifts, with many multiples, and the noise of its exhaust."""
    base_hz = rng.uniform(25, 90) * (1 + 0.2 * _slow(rng, n_samples, rate_hz, 0.5))
    phase = 2 * np.pi * np.cumsum(base_hz) / rate_hz
    tones = np.sum([np.sin(k * phase + rng.uniform(0, 6)) / k**0.8 for k in range(1, 21)], axis=0)
    return tones + (1 + np.sin(phase)) * coloured(rng, n_samples, rate_hz, 4)


KINDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "white": lambda rng, n, rate_hz: coloured(rng, n, rate_hz, 0),
    "pink": lambda rng, n, rate_hz: coloured(rng, n, rate_hz, 3),
    "brown": lambda rng, n, rate_hz: coloured(rng, n, rate_hz, 6),
    **{"rain": rain, "wind": wind, "hum": hum, "clicks": clicks, "engine": engine},
}


def noise(kind: str, rng: np.random.Generator, n_samples: int, rate_hz: int, level_db: float) -> np.ndarray:
    """Return noise of one of `KINDS` at a level.

    Parameters
    ----------
    kind : str
    rng : Generator
    n_samples, rate_hz : int
    level_db : float
        Root mean square, in dB below that of a sine at full scale. Peaks beyond full scale are clipped.

    Returns
    -------
    ndarray of float32, shape (n_samples,)
        In [-1, 1].
    """
    sound = KINDS[kind](rng, n_samples, rate_hz)
    sound = sound - sound.mean()
    root = np.sqrt((sound**2).mean())
    return np.clip(sound / root * FULL_SCALE_SINE * 10 ** (level_db / 20), -1, 1).astype(np.float32)
