"""Sound files to samples: decode, mix to mono, scale and resample, block by block.

Memory use does not depend on the length of a file. Resampling comes before cutting, so that a clip of 5 s has 5 s of
sound at every sample rate of its source.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soxr

from utils.data import sources
from utils.data.clips import PCM_SCALE
from utils.data.sources import Undecodable

LEAST_RATE_HZ = 1000  # below it a header is broken, and resampling would make the file huge
CANCELLED = 0.5  # lowest power of the mean, relative to that of unrelated channels
STEPS_APART = 31  # step in samples for comparing channels; needs a tenth of the time of step 7
SILENT_BESIDE = 1e-4  # power of a channel, relative to the loudest
QUIETEST_PEAK = 2**-8  # below it, at most 8 of the 16 bits are used
SCALED_PEAK = 0.9  # leaves room for overshoot of the resampling
LOUDEST_PEAK = 2.0  # decoders slightly exceed full scale; above this, the scale of a file is wrong
CLIPPED_SHARE = 1e-3  # of the samples; a smaller share gives no warning

Sink = Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Decoded:
    """The result of decoding a file.

    Attributes
    ----------
    n_samples : int
        Samples at the target rate.
    source_rate_hz, source_channels : int
        Values of the file at its start.
    channel : str
        ``mono``, or the mix of several channels: ``mean of 2``, ``2 of 2``, with the reason if the user did not request
        it.
    warnings : tuple of str
        Faults of a file that could be used despite them.
    """

    n_samples: int
    source_rate_hz: int
    source_channels: int
    channel: str
    warnings: tuple[str, ...]


def decode(path: Path, sample_rate_hz: int, new_sink: Callable[[], Sink], channel: str = "mean") -> Decoded:
    """Decode a file to mono int16 PCM at a sample rate, and pass it on block by block.

    A 16-bit mono file at the target rate keeps its exact samples. A truncated or partly damaged file is still used.
    Most files are read once. A file is read again if the first reading finds one of these cases:

    - The mean of its channels cancels the sound (opposite polarity), or all channels except one are silent: the channel
      with most power is used.
    - Exact samples of more than 16 bits exceed full scale, or would lose most of their bits in 16: they are scaled to a
      peak of 0.9.
    - The waveform never crosses zero: its mean is subtracted.

    Parameters
    ----------
    path : Path
        File of any format that libsndfile or FFmpeg reads.
    sample_rate_hz : int
        Target sample rate.
    new_sink : callable
        Called before each reading; returns a function that accepts int16 of shape (n,), several times. After a new
        reading, the data of earlier readings are invalid. Its exceptions are passed on.
    channel : str
        ``mean``; ``left`` or ``right``, the first or the second; ``best``, the channel with most power; or a number,
        counted from 1.

    Returns
    -------
    Decoded

    Raises
    ------
    Undecodable
        If no sound can be decoded, the sound is silent or not finite, or the channel is missing.
    InputError
        If the machine cannot read the file, because the file or its disk is gone.
    """
    with sources.opened(path) as view:
        treatment = Treatment(channel)
        while True:
            with sources.source_of(view) as source:
                reading = _Reading(source, sample_rate_hz, new_sink(), treatment)
                reading.run()
            view.check()
            if (better := reading.better_treatment()) == treatment:
                return reading.result()
            treatment = better


@dataclass(frozen=True)
class Treatment:
    """The processing of samples before they are resampled.

    Attributes
    ----------
    channel : str
        Value of ``--channel``.
    chosen : dict of int to int or None
        Index of the channel to use, by the number of channels; None is their mean. Numbers of channels that are not in
        it have not been decided yet.
    reasons : dict of int to str
        Reason for a channel that the user did not request.
    offset, gain : float
        Samples become ``(sample - offset) * gain``.
    """

    channel: str
    chosen: dict[int, int | None] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    offset: float = 0.0
    gain: float = 1.0

    def index(self, n_channels: int) -> int | None:
        """Return the index of the channel to use; None for the mean."""
        if n_channels in self.chosen:
            return self.chosen[n_channels]
        number = {"left": 1, "right": 2, "mean": 0, "best": 0}.get(self.channel)
        number = int(self.channel) if number is None else number
        if number > n_channels:
            raise Undecodable(f"has no channel {self.channel}: it has {n_channels}; choose another --channel")
        return number - 1 if number else None


class _Reading:
    """One reading of a file, from its blocks to the final samples."""

    def __init__(self, source: sources.Source, sample_rate_hz: int, sink: Sink, treatment: Treatment):
        self.source, self.target_rate_hz, self.sink, self.treatment = source, sample_rate_hz, sink, treatment
        self.first: tuple[int, int] | None = None  # rate in Hz and channels
        self.rate = 0
        self.resampler = None
        self.warnings: list[str] = []
        self.seconds = 0.0
        self.products: dict[int, np.ndarray] = {}  # of pairs of channels, by the number of channels
        self.n_frames = self.n_samples = self.n_clipped = 0
        self.low, self.high, self.total = np.inf, -np.inf, 0.0  # of the mono sound before processing
        self.is_silent = True

    def run(self) -> None:
        for rate, samples in self.source.blocks():
            if rate != self.rate:
                self.change_rate(rate)
            if self.first is None:
                self.first = rate, len(samples)
            mono = self.treat(self.mix(samples))
            self.n_frames += len(mono)
            self.seconds += len(mono) / rate
            self.put(mono if self.resampler is None else self.resampler.resample_chunk(mono))
        if self.n_frames == 0:
            raise Undecodable("; ".join(["no sound in it", *self.source.warnings]))
        self.flush()

    def change_rate(self, rate: int) -> None:
        if rate < LEAST_RATE_HZ:
            raise Undecodable(f"its header gives a sample rate of {rate} Hz; expected {LEAST_RATE_HZ} or more")
        if self.rate:
            self.warnings.append(f"its sample rate changes from {self.rate} to {rate} Hz at {self.seconds:.2f} s")
        self.flush()
        self.rate = rate
        if rate != self.target_rate_hz:
            self.resampler = soxr.ResampleStream(rate, self.target_rate_hz, 1, dtype="float32")

    def flush(self) -> None:
        if self.resampler is not None:
            self.put(self.resampler.resample_chunk(np.empty(0, np.float32), last=True))
        self.resampler = None

    def mix(self, samples: np.ndarray) -> np.ndarray:
        """Return the mono sound, float32 of shape (n,), of a block of shape (channels, n)."""
        n_channels = len(samples)
        index = self.treatment.index(n_channels)
        if n_channels > 1 and self.treatment.channel in ("mean", "best") and n_channels not in self.treatment.chosen:
            # Compare differences of neighbouring samples: an offset, wind or hum must not affect the choice.
            starts = range(0, samples.shape[1] - 1, STEPS_APART)
            steps = np.empty((n_channels, len(starts)), np.float32)  # in another order einsum takes nine times as long
            np.subtract(samples[:, 1::STEPS_APART], samples[:, :-1:STEPS_APART], out=steps)
            with np.errstate(invalid="ignore", over="ignore"):  # an infinite value raises an error later
                # A matrix product would be slower: its threads wait for each other in every worker process.
                products = np.einsum("in,jn->ij", steps, steps).astype(np.float64)
            self.products[n_channels] = self.products.get(n_channels, 0.0) + products
        if index is not None or n_channels == 1:
            return samples[index or 0].copy()
        mono = samples[0] + samples[1]
        for other in samples[2:]:  # ten times as fast as `mean`
            mono += other
        mono /= n_channels
        return mono

    def treat(self, mono: np.ndarray) -> np.ndarray:
        low, high = float(mono.min()), float(mono.max())
        if not np.isfinite([low, high]).all():
            first_s = self.seconds + np.flatnonzero(~np.isfinite(mono))[0] / self.rate
            raise Undecodable(f"holds NaN or infinity, first at {first_s:.3f} s")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.low > 0 or self.high < 0:
            self.total += float(mono.sum(dtype=np.float64))
        if self.treatment.offset:
            mono -= np.float32(self.treatment.offset)
        if self.treatment.gain != 1:
            mono *= np.float32(self.treatment.gain)
        return mono

    def put(self, samples: np.ndarray) -> None:
        """Pass on float32 samples in [-1, 1] as int16; `samples` is overwritten."""
        if not len(samples):
            return
        with np.errstate(over="ignore"):  # larger values are clipped below, and counted
            samples *= np.float32(PCM_SCALE)
        np.rint(samples, out=samples)
        if max(self.high, -self.low) > 1:
            self.n_clipped += int(np.count_nonzero((samples < -PCM_SCALE) | (samples > PCM_SCALE)))
        np.clip(samples, -PCM_SCALE, PCM_SCALE - 1, out=samples)
        pcm = samples.astype(np.int16)
        self.is_silent = self.is_silent and not pcm.any()
        self.n_samples += len(pcm)
        self.sink(pcm)

    # ---------------------------------------------------------------------------------- results of a reading

    def better_treatment(self) -> Treatment:
        """Return the treatment that the sound needs; the present one if that is right."""
        treatment = self.treatment
        for n_channels, products in self.products.items():
            index, reason = _choose(treatment.channel, products)
            if index is not None:
                treatment = replace(
                    treatment,
                    chosen={**treatment.chosen, n_channels: index},
                    reasons={**treatment.reasons, n_channels: reason},
                )
        if treatment != self.treatment:
            return treatment
        offset = 0.0
        if self.low != self.high and (self.low > 0 or self.high < 0):
            offset = self.total / self.n_frames
        peak = max(self.high - offset, offset - self.low)
        gain = 1.0
        if self.source.is_fine and (peak > 1 or 0 < peak < QUIETEST_PEAK):
            gain = SCALED_PEAK / peak
        return replace(treatment, offset=offset, gain=gain)

    def result(self) -> Decoded:
        treatment = self.treatment
        if self.low == self.high and self.n_frames > 1:
            raise Undecodable(f"silent: every sample of it is {self.low:.6g}")
        if self.is_silent:
            raise Undecodable("silent: every sample of it is 0 in 16 bits")
        n_channels = self.first[1]
        index = treatment.index(n_channels)
        reason = treatment.reasons.get(n_channels, "")
        channel = (
            "mono" if n_channels == 1 else f"mean of {n_channels}" if index is None else f"{index + 1} of {n_channels}"
        )
        warnings = [*self.source.warnings, *self.warnings]
        for n, why in treatment.reasons.items():
            if why:
                warnings.append(f"channel {treatment.chosen[n] + 1} of {n} is used: {why}")
        peak = max(self.high - treatment.offset, treatment.offset - self.low)
        if treatment.offset:
            warnings.append(f"never crosses zero: its mean of {treatment.offset:.3g} was subtracted")
        if treatment.gain != 1:
            warnings.append(f"peaks at {peak:.3g} times full scale and was scaled to {SCALED_PEAK}")
        elif peak > LOUDEST_PEAK or self.n_clipped > CLIPPED_SHARE * self.n_samples:
            share = 100 * self.n_clipped / self.n_samples
            warnings.append(f"peaks at {peak:.3g} times full scale: {share:.2g} % of its samples are clipped")
        return Decoded(self.n_samples, *self.first, f"{channel}: {reason}" if reason else channel, tuple(warnings))


def _choose(asked: str, products: np.ndarray) -> tuple[int | None, str]:
    """Choose a channel, or None for the mean, from summed products of channels, shape (channels, channels)."""
    powers = np.diagonal(products)
    loudest = int(powers.argmax())
    if asked == "best":
        return loudest, ""
    if not powers[loudest] > 0:  # NaN too
        return None, ""
    n_channels = len(powers)
    of_mean = products.sum() / n_channels**2
    if of_mean < CANCELLED * powers.sum() / n_channels**2:
        lost_db = 10 * np.log10(powers[loudest] / max(of_mean, 1e-12 * powers[loudest]))
        return loudest, f"the channels cancel by {lost_db:.0f} dB in their mean"
    if np.sort(powers)[-2] < SILENT_BESIDE * powers[loudest]:
        return loudest, "the others are silent"
    return None, ""


def cut(
    n_samples: int, clip_samples: int, least_samples: int, least_rest_samples: int, remainder: str
) -> list[tuple[int, int]]:
    """Cut a recording into consecutive clips.

    Parameters
    ----------
    n_samples : int
        Length of the recording.
    clip_samples : int
        Length of a clip.
    least_samples : int
        A recording shorter than this gives no clip.
    least_rest_samples : int
        A rest after the last whole clip that is shorter than this is left out.
    remainder : {"pad", "drop"}
        What happens to a piece shorter than a clip: ``pad`` keeps it for padding; ``drop`` leaves it out.

    Returns
    -------
    list of (int, int)
        First sample and length of every clip; the length is `clip_samples` for all clips except the last.
    """
    clips = [(start, clip_samples) for start in range(0, n_samples - clip_samples + 1, clip_samples)]
    n_left = n_samples - len(clips) * clip_samples
    if remainder == "pad" and n_left >= max(1, least_rest_samples if clips else least_samples):
        clips.append((n_samples - n_left, n_left))
    return clips


def pad_by_repetition(samples: np.ndarray, n_samples: int) -> np.ndarray:
    """Return `samples`, shape (n,), repeated from its start until it has the shape (n_samples,).

    Zeros would change the model's result for the sound itself if the network normalises over time.
    """
    return np.resize(samples, n_samples)
