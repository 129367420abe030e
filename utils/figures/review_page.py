"""``review.html``: one page on which a person hears sounds, answers yes, no or another label, and saves a table.

The page is one file that loads nothing: spectrograms and sounds stand in it. A sound is an MP3, which every browser
plays. On 5 s of 39 recordings of birds at 16 kHz it has a mean of 20 kB; WAV has 160 kB, FLAC 88 kB. Ogg Vorbis is no
smaller, is not played by every Safari, and has other bytes at each encoding.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.core import lazy
from utils.core.files import atomic_path
from utils.core.text import printable

with lazy.imported_on_first_use():
    import numpy as np
    import PIL.Image as pillow
    import soundfile
    import soxr

NAME = "review.html"
TEMPLATE = Path(__file__).with_suffix(".html")
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MP3_COMPRESSION = 0.5  # of 0 to 1, at a variable bit rate; about 31 kbit/s at 16 kHz
PICTURE_WIDTH, PICTURE_HEIGHT = 400, 128  # pixels
JPEG_QUALITY = 60
WINDOW_S = 0.032
DEEPEST_DB = 70.0  # below the loudest point; what is lower is white
QUIET_SHARE = 0.3  # of the points of a spectrogram, which are white


@dataclass(frozen=True)
class Media:
    """A sound and its picture, as they stand in the page: an MP3, a JPEG, and the highest frequency of both in kHz."""

    sound: bytes
    picture: bytes
    khz: float


@dataclass(frozen=True)
class Item:
    """A question of the page.

    Attributes
    ----------
    label : str
        The label that the question names.
    why : {"best", "threshold", "random", "mistake"}
        What it was chosen for.
    file : str
        Its recording, as a table of annotations names it.
    start_s, end_s : float
        Its place in the recording.
    score : float
        Score of `label`.
    media : Media
        From `encode`.
    threshold : float or None
        Threshold of `label`, where it has one.
    recorded_at : str
        Time of day, where it is known.
    named : tuple of str or None
        The labels that the data have for this sound; None if it has not been labelled.
    """

    label: str
    why: str
    file: str
    start_s: float
    end_s: float
    score: float
    media: Media
    threshold: float | None = None
    recorded_at: str = ""
    named: tuple[str, ...] | None = None


def write_page(path: Path, title: str, labels: Sequence[str], items: Iterable[Item]) -> int:
    """Write the page, atomically, with the same bytes for the same content.

    Parameters
    ----------
    path : Path
    title : str
    labels : sequence of str
        The known labels, which the field for another label offers.
    items : iterable of Item
        In the order of the page; one is held in memory at a time.

    Returns
    -------
    int
        Number of items.
    """
    head, code = TEMPLATE.read_text(encoding="utf-8").replace("<!--TITLE-->", html.escape(title)).split("<!--SOUNDS-->")
    digest, described = hashlib.sha256(), []
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as page:
        page.write(head)
        for number, item in enumerate(items):
            for kind, data in (("picture", item.media.picture), ("sound", item.media.sound)):
                block = f'<script type="text/plain" id="{kind}-{number}">{base64.b64encode(data).decode()}</script>\n'
                digest.update(block.encode())
                page.write(block)
            described.append(_described(item))
        asked = list(dict.fromkeys(item["label"] for item in described))
        content = {"title": title, "labels": list(labels), "labels_asked": asked, "items": described}
        digest.update(_as_json(content).encode())
        content["digest"] = digest.hexdigest()
        page.write(f'<script type="application/json" id="page">{_as_json(content)}</script>{code}')
    return len(described)


def _described(item: Item) -> dict[str, object]:
    return {
        "label": item.label,
        "why": item.why,
        "file": printable(item.file),  # as every table of this program writes it
        "start": repr(round(float(item.start_s), 6)),  # with a decimal point, as in every table of times
        "end": repr(round(float(item.end_s), 6)),
        "score": _rounded(item.score),
        "threshold": None if item.threshold is None else _rounded(item.threshold),
        "recorded_at": item.recorded_at,
        "named": None if item.named is None else list(item.named),
        "khz": item.media.khz,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _as_json(value: object) -> str:
    """Return JSON that cannot end the element of HTML in which it stands."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def encode(samples: np.ndarray, sample_rate_hz: int) -> Media:
    """Return a sound, float32 of shape (n_samples,) in [-1, 1], with its picture."""
    samples = np.asarray(samples, dtype=np.float32)
    return Media(sound(samples, sample_rate_hz), picture(samples, sample_rate_hz), sample_rate_hz / 2000)


def sound(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """Return the MP3 of a sound; another sample rate than those of MP3 becomes the next higher one."""
    rate_hz = next((rate for rate in MP3_RATES_HZ if rate >= sample_rate_hz), MP3_RATES_HZ[-1])
    if rate_hz != sample_rate_hz:
        samples = soxr.resample(samples, sample_rate_hz, rate_hz)
    encoded = io.BytesIO()
    how = {"bitrate_mode": "VARIABLE", "compression_level": MP3_COMPRESSION}
    soundfile.write(encoded, samples, rate_hz, format="MP3", subtype="MPEG_LAYER_III", **how)
    return encoded.getvalue()


def picture(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """Return a spectrogram as a grey JPEG: loud is dark, 0 Hz at the bottom, half the sample rate at the top."""
    decibels = spectrogram_db(samples, sample_rate_hz)
    high = decibels.max()
    low = max(np.quantile(decibels, QUIET_SHARE), high - DEEPEST_DB)
    grey = np.clip((decibels - low) / max(high - low, 1e-6), 0, 1)
    image = pillow.fromarray(np.rint(255 * (1 - grey[::-1])).astype(np.uint8))
    encoded = io.BytesIO()
    size = PICTURE_WIDTH, PICTURE_HEIGHT
    image.resize(size, pillow.Resampling.BILINEAR).save(encoded, format="JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def spectrogram_db(samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Return the power of a sound in decibels, float64 of shape (n_frequencies, n_frames), lowest frequency first."""
    n_window = max(16, round(WINDOW_S * sample_rate_hz))
    around = np.pad(samples, n_window // 2)
    step = max(1, len(samples) // PICTURE_WIDTH)
    frames = np.lib.stride_tricks.sliding_window_view(around, n_window)[::step] * np.hanning(n_window)
    return 10 * np.log10(np.abs(np.fft.rfft(frames, axis=1).T) ** 2 + 1e-12)
