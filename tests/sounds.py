"""Sound files for tests, written with libsndfile."""

import tempfile
from pathlib import Path

import numpy as np
import soundfile

from drills import formats


def song(seconds: float, rate_hz: int, n_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return a whistle over noise within [-0.5, 0.5], float64 of shape (n, channels); each seed differs."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    pitch_hz = 800 + 100 * (seed % 20) + 13 * (seed // 20)
    whistle = 0.3 * np.sin(2 * np.pi * pitch_hz * t + 3 * np.sin(2 * np.pi * 5 * t))
    return whistle[:, None] + 0.02 * np.clip(rng.standard_normal((len(t), n_channels)), -5, 5)


def calls(seconds, seed, rate_hz=16_000):
    """Return glides of random pitch at random times over noise, float32 of shape (n,); each seed differs."""
    rng = np.random.default_rng(seed)
    sound = 0.002 * rng.standard_normal(round(seconds * rate_hz))
    for _ in range(round(12 * seconds)):
        n = round(rng.uniform(0.05, 0.15) * rate_hz)
        start = rng.integers(0, max(1, len(sound) - n))
        pitch_hz = rng.uniform(500, 6000) + np.linspace(0, rng.uniform(-300, 300), n)
        glide = np.sin(2 * np.pi * np.cumsum(pitch_hz) / rate_hz) * np.hanning(n) * rng.uniform(0.05, 0.2)
        sound[start : start + n] += glide[: len(sound) - start]
    return sound.astype(np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int, **how) -> Path:
    """Write samples of shape (n,) or (n, channels); the format follows from the suffix, or from `how`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n_channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(path, "w", rate_hz, n_channels, **how) as file:
        for start in range(0, len(samples), 8192):  # libsndfile's Vorbis encoder crashes on long blocks
            file.write(samples[start : start + 8192])
    return path


def encode(
    samples: np.ndarray,
    rate_hz: int,
    container: str,
    codec: str,
    options: dict[str, str] | None = None,
    quality: float | None = None,
    xing: bool = True,
) -> bytes:
    """Return samples of shape (n, channels) as a file that FFmpeg encodes.

    `quality` asks for a variable bit rate; without `xing` an mp3 is written as into a pipe, with no count of frames.
    """
    muxer = {} if xing else {"write_xing": "0", "id3v2_version": "0"}
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        formats.encode(
            path, samples, rate_hz, formats.Format("", container, codec, 0, quality, (options or {}) | muxer)
        )
        return path.read_bytes()
