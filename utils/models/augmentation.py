"""Random changes to training clips; they are made in the collator and never stored.

All random numbers come from a generator seeded with (seed, epoch, clips of the batch). They are therefore the same for
any number of data-loader workers and processes, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

MAX_GAIN_DB = 6.0
NOISE_PROBABILITY = 0.5
NOISE_SNR_DB = (3.0, 30.0)
MIXUP_PROBABILITY = 0.5
MIXUP_ALPHA = 0.4
N_SPEC_MASKS = 2
UNKNOWN = -100.0  # the target of a label that may or may not be in a clip; the Trainer does not count it either
MAX_SPEC_MASK_FRACTION = 0.15


def batch_generator(seed: int, epoch: int, clip_indices: Sequence[int]) -> np.random.Generator:
    """Return the generator of a batch; it does not depend on earlier random numbers."""
    return np.random.default_rng([seed, epoch, *clip_indices])


def augment_audio(
    audio: np.ndarray, targets: np.ndarray, names: Sequence[str], rng: np.random.Generator, several: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Roll, scale, mix with noise and mix up a batch of clips.

    Parameters
    ----------
    audio : ndarray of float32, shape (batch, n_samples)
        Clips.
    targets : ndarray of float32, shape (batch, n_classes)
        Rows that sum to 1; with several labels a clip, 1, 0 or `UNKNOWN`.
    names : sequence of str
        Those of `AUGMENTATIONS` to apply.
    rng : numpy.random.Generator
        From `batch_generator`.
    several : bool
        Whether a clip can have several labels, or none.

    Returns
    -------
    tuple of ndarray
        Audio and targets, of the same shapes. Mixup changes the targets. With several labels, noise does too: whether
        one can still hear a label of the clip that serves as noise is not known.
    """
    audio, targets = audio.copy(), targets.copy()
    n_clips, n_samples = audio.shape
    if "roll" in names:
        # Clips start anywhere in a recording and are padded by repetition, so their start has no meaning.
        for clip, shift in zip(audio, rng.integers(n_samples, size=n_clips), strict=True):
            clip[:] = np.roll(clip, shift)
    if "noise" in names and n_clips > 1:
        partner = _other_order(n_clips, rng)
        noise = audio[partner]
        snr_db = rng.uniform(*NOISE_SNR_DB, size=n_clips)
        scale = _rms(audio) / np.maximum(_rms(noise), 1e-8) * 10 ** (-snr_db / 20)
        scale[rng.random(n_clips) >= NOISE_PROBABILITY] = 0.0
        audio += noise * scale[:, None].astype(np.float32)
        if several:
            unsure = (scale > 0)[:, None] & (targets[partner] != 0) & (targets == 0)
            targets[unsure] = UNKNOWN
    if "mixup" in names and n_clips > 1:
        # mixup: Zhang et al. 2018, arXiv 1710.09412, eq. 1. Clips are first scaled to the same level (Tokozume et al.
        # 2018), so that the share of a clip in the sound is its share in the target.
        share = rng.beta(MIXUP_ALPHA, MIXUP_ALPHA, size=n_clips)
        share = np.maximum(share, 1 - share)
        share[rng.random(n_clips) >= MIXUP_PROBABILITY] = 1.0
        partner = _other_order(n_clips, rng)
        level = _rms(audio) / np.maximum(_rms(audio[partner]), 1e-8)
        share = share[:, None].astype(np.float32)
        audio = share * audio + (1 - share) * audio[partner] * level[:, None].astype(np.float32)
        # A label that is unknown in one of the two clips is unknown in their mixture.
        unsure = (targets == UNKNOWN) | ((share < 1) & (targets[partner] == UNKNOWN))
        targets = np.where(unsure, UNKNOWN, share * targets + (1 - share) * targets[partner]).astype(np.float32)
    if "gain" in names:
        gain_db = rng.uniform(-MAX_GAIN_DB, MAX_GAIN_DB, size=n_clips)
        audio *= 10 ** (gain_db[:, None].astype(np.float32) / 20)
    return audio, targets


def mask_spectrogram(features: torch.Tensor, n_mels: int, rng: np.random.Generator) -> torch.Tensor:
    """Replace random bands and spans of spectrograms by their mean (SpecAugment, Park et al. 2019, §2).

    Parameters
    ----------
    features : Tensor, shape (batch, n_mels, n_frames) or (batch, n_frames, n_mels)
        Spectrograms.
    n_mels : int
        Number of mel bands; it identifies the axis of the bands.
    rng : numpy.random.Generator
        From `batch_generator`.

    Returns
    -------
    Tensor
        Masked copy.
    """
    features = features.clone()
    mel_axis = 1 if features.shape[1] == n_mels else 2
    for spectrogram in features:
        fill = spectrogram.mean()
        for axis in (mel_axis - 1, 2 - mel_axis):
            length = spectrogram.shape[axis]
            for _ in range(N_SPEC_MASKS):
                width = int(rng.integers(int(MAX_SPEC_MASK_FRACTION * length) + 1))
                start = int(rng.integers(length - width + 1))
                spectrogram.narrow(axis, start, width).fill_(fill)
    return features


def _rms(audio: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(audio, dtype=np.float64), axis=1))


def _other_order(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random cycle: an order in which no item keeps its place."""
    order = rng.permutation(n)
    partner = np.empty(n, dtype=int)
    partner[order] = np.roll(order, 1)
    return partner
