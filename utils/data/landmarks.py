"""Peaks of the spectrum of a recording; `near_copies` uses them to find recordings of the same sound.

They are found while a recording is decoded. They change little if the sound is encoded again, resampled, amplified or
inverted (Wang 2003, An industrial-strength audio search algorithm, ISMIR).
"""

import base64
from typing import BinaryIO

import numpy as np

from utils.core import lazy

with lazy.imported_on_first_use():
    import scipy

WINDOW, HOP = 512, 256  # samples
N_BANDS = 6
REACH = 6  # frames on each side in which no other peak of the band is higher
FAINTEST = 1e3  # power of a peak; the rounding noise of 16 bits is below it
FRAMES_PER_READ = 256  # with more, malloc asks the system for new pages for each array

_TAPER = np.hanning(WINDOW).astype(np.float32)
_EDGES = np.rint(np.geomspace(8, 240, N_BANDS + 1)).astype(int)  # bins; 250 Hz to 7.5 kHz at 16 kHz


def find_peaks(file: BinaryIO) -> str:
    """Return the peaks of a file of int16 PCM as text, for `unpack`. Memory does not depend on its length."""
    n_samples = file.seek(0, 2) // 2
    n_frames = max(0, 1 + (n_samples - WINDOW) // HOP)
    frames, bins = [np.empty(0, np.int32)], [np.empty(0, np.uint8)]
    for start in range(0, n_frames, FRAMES_PER_READ):
        stop = min(n_frames, start + FRAMES_PER_READ)
        first, last = max(0, start - REACH), min(n_frames, stop + REACH) - 1
        file.seek(2 * first * HOP)
        pcm = np.frombuffer(file.read(2 * ((last - first) * HOP + WINDOW)), "<i2")
        at, of = _peaks(pcm) if pcm.any() else (frames[0], bins[0])
        own = (at >= start - first) & (at < stop - first)
        frames.append(at[own] + first)
        bins.append(of[own])
    return base64.b85encode(np.concatenate(frames).astype("<i4").tobytes() + np.concatenate(bins).tobytes()).decode()


def unpack(peaks: str) -> tuple[np.ndarray, np.ndarray]:
    """Return frame, int32 of shape (n,) and ascending, and frequency bin, uint8, of peaks."""
    data = base64.b85decode(peaks)
    n_peaks = len(data) // 5
    return np.frombuffer(data, "<i4", n_peaks), np.frombuffer(data, np.uint8, n_peaks, 4 * n_peaks)


def _peaks(pcm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frame and bin of the peaks of int16 PCM, at least a frame long."""
    frames = np.lib.stride_tricks.sliding_window_view(pcm, WINDOW)[::HOP] * _TAPER
    spectrum = scipy.fft.rfft(frames, axis=1, overwrite_x=True)
    spectrum = spectrum[:, _EDGES[0] : _EDGES[-1]]
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    # Positive floats have the order of their bits. So one maximum finds the loudest bin and its power: the last eight
    # bits, at most 0.003 % of the power, hold the bin.
    bits = power.view(np.int32)
    bits &= ~0xFF
    bits |= np.arange(_EDGES[0], _EDGES[-1], dtype=np.int32)
    loudest = np.maximum.reduceat(bits, _EDGES[:-1] - _EDGES[0], axis=1)
    bins = (loudest & 0xFF).astype(np.uint8)
    n_frames = len(power)
    padded = np.zeros((n_frames + 2 * REACH, N_BANDS), np.float32)
    own = padded[REACH : REACH + n_frames]
    own[:] = (loudest & ~0xFF).view(np.float32)
    highest = padded
    for shift in (1, 2, 4, 5):  # the maximum of 2, 4, 8 and 2 REACH + 1 rows
        highest = np.maximum(highest[:-shift], highest[shift:])
    at, band = np.nonzero((own >= highest) & (own > FAINTEST))
    return at, bins[at, band]
