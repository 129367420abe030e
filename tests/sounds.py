"""Sound files for tests, written with libsndfile."""

import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile


def song(seconds: float, rate_hz: int, n_channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return a whistle over noise within [-0.5, 0.5], float64 of shape (n, channels); each seed differs."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    whistle = 0.3 * np.sin(2 * np.pi * (800 + 100 * (seed % 20)) * t + 3 * np.sin(2 * np.pi * 5 * t))
    return whistle[:, None] + 0.02 * np.clip(rng.standard_normal((len(t), n_channels)), -5, 5)


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
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options={**(options or {}), **muxer}) as output:
            stream = output.add_stream(codec, rate=rate_hz, layout=layout)
            if codec.startswith("wma"):
                stream.bit_rate = 64_000
            if quality is not None:
                stream.codec_context.qscale = True
                stream.codec_context.global_quality = round(quality * 118)  # FF_QP2LAMBDA
            data = np.ascontiguousarray(samples.T, np.float32)
            frame = av.AudioFrame.from_ndarray(data, format="fltp", layout=layout)
            frame.sample_rate = rate_hz
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(stream.codec_context.format.name, layout, rate_hz, frame_size=size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
        return Path(file.name).read_bytes()
