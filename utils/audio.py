"""From a sound file to samples: decode, mix to mono and resample, block by block.

Memory does not depend on the length of a file. Resampling comes before anything is cut, so that a
clip of 5 s is 5 s of sound whatever the sample rate of its source.
"""

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from utils.clips import PCM_SCALE

BLOCK_VALUES = 2**16  # samples of all channels that are decoded at once
LEAST_RATE_HZ = 1000  # below it a header is broken, and resampling would blow up the file
MISSING_S = 0.5  # a file that gives so much less than its header promises was cut off
LOUDEST_PEAK = 2.0  # decoders overshoot full scale a little; beyond this a file is scaled wrongly
LEFTOVER_BYTES = 2**16  # tags behind the sound are smaller than this
# Decoders whose length is an estimate or that stop after the first of several streams.
UNSURE_OF_THEIR_END = ("MP3", "OGG")


class Undecodable(Exception):
    """A file that gives no usable sound; the message is the reason, for a reader who knows the file."""


@dataclass(frozen=True)
class Decoded:
    """What a file turned out to hold.

    Attributes
    ----------
    n_samples : int
        Samples at the target rate.
    source_rate_hz, source_channels : int
        As the file has them.
    warnings : tuple of str
        What is wrong with a file that could be used all the same.
    """

    n_samples: int
    source_rate_hz: int
    source_channels: int
    warnings: tuple[str, ...]


def decode(path: Path, sample_rate_hz: int, sink: Callable[[np.ndarray], object]) -> Decoded:
    """Decode a file to mono int16 PCM at a sample rate, and hand it on block by block.

    Channels are averaged, samples beyond full scale clipped. A 16-bit mono file at the target rate
    keeps its exact samples. A file that breaks off, or is damaged in the middle, is used up to there.

    Parameters
    ----------
    path : Path
        File of any format that libsndfile reads.
    sample_rate_hz : int
        Sample rate to hand on.
    sink : callable
        Takes int16 of shape (n,), several times. Its exceptions are passed on.

    Returns
    -------
    Decoded

    Raises
    ------
    Undecodable
        If there is nothing to decode, or what is decoded is silence or no number.
    """
    try:
        file = Path(path).open("rb", buffering=0)  # noqa: SIM115
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Undecodable(f"cannot be opened: {error.strerror}") from error
    with file:
        if size == 0:
            raise Undecodable("empty: the file has 0 bytes")
        with _open(file.fileno()) as sound:
            return _Decoding(Path(path), file, sound, sample_rate_hz, sink).run()


class _Stream(soundfile.SoundFile):
    """A file that is read from its start to its end.

    On a file that it takes for seekable, soundfile seeks after every read to where it is already. For an
    mp3 that resets the decoder: the first thousand samples of every block but the first come out as zeros.
    """

    def seekable(self) -> bool:
        return False


def _open(file: object) -> _Stream:
    try:
        return _Stream(file, closefd=False)
    except soundfile.LibsndfileError as error:
        raise Undecodable(f"no sound that libsndfile can read: {error.error_string.rstrip('.')}") from error


class _Decoding:
    """One file on its way from `decode`'s arguments to its result."""

    def __init__(self, path, file, sound, sample_rate_hz, sink):
        self.path, self.file, self.sound, self.sink = path, file, sound, sink
        self.rate = sound.samplerate
        if self.rate < LEAST_RATE_HZ:
            raise Undecodable(f"its header gives a sample rate of {self.rate} Hz; expected {LEAST_RATE_HZ} or more")
        self.warnings: list[str] = []
        self.n_frames = self.n_samples = 0
        self.peak = 0.0
        self.is_silent = True
        self.resampler = None
        if self.rate != sample_rate_hz:
            self.resampler = soxr.ResampleStream(self.rate, sample_rate_hz, 1, dtype="float32")

    def run(self) -> Decoded:
        for block in self.blocks():
            mono = self.mix(block)
            self.put(mono if self.resampler is None else self.resampler.resample_chunk(mono))
        if self.n_frames == 0:
            raise Undecodable("; ".join(["no sound in it", *self.warnings]))
        if self.resampler is not None:
            self.put(self.resampler.resample_chunk(np.empty(0, np.float32), last=True))
        if self.is_silent:
            raise Undecodable("silent: every sample of its mono mix is 0")
        if self.peak > LOUDEST_PEAK:
            self.warnings.append(f"peaks at {self.peak:.3g} times full scale and is clipped: save it within [-1, 1]")
        return Decoded(self.n_samples, self.rate, self.sound.channels, tuple(self.warnings))

    def mix(self, block: np.ndarray) -> np.ndarray:
        """Average the channels: float32 (n, channels) to (n,). Adding columns is ten times as fast as ``mean``."""
        mono = block[:, 0].copy()
        for channel in range(1, block.shape[1]):
            mono += block[:, channel]
        if block.shape[1] > 1:
            mono /= block.shape[1]
        low, high = float(mono.min()), float(mono.max())
        if not np.isfinite([low, high]).all():
            first_s = (self.n_frames - len(mono) + np.flatnonzero(~np.isfinite(mono))[0]) / self.rate
            raise Undecodable(f"holds NaN or infinity, first at {first_s:.3f} s")
        self.peak = max(self.peak, -low, high)
        return mono

    def put(self, samples: np.ndarray) -> None:
        """Hand on float32 samples in [-1, 1] as int16; `samples` is overwritten."""
        if not len(samples):
            return
        with np.errstate(over="ignore"):  # what no longer fits is clipped below, and reported by its peak
            samples *= np.float32(PCM_SCALE)
        np.rint(samples, out=samples)
        np.clip(samples, -PCM_SCALE, PCM_SCALE - 1, out=samples)
        pcm = samples.astype(np.int16)
        self.is_silent = self.is_silent and not pcm.any()
        self.n_samples += len(pcm)
        self.sink(pcm)

    def blocks(self) -> Iterator[np.ndarray]:
        """Decode: yield float32 of shape (n, channels), valid until the next one."""
        yield from self.read_all(self.sound)
        promised = self.sound.frames
        if self.sound.format in UNSURE_OF_THEIR_END and self.bytes_left() > LEFTOVER_BYTES:
            # The length of an mp3 of variable bit rate without a Xing header is guessed from its first
            # frame, and libsndfile reads no further. With no length given it reads to the end.
            with _LengthUnknown(self.path) as file, _open(file) as sound:
                yield from self.read_all(sound, skip=self.n_frames)
                left = os.fstat(file.fileno()).st_size - file.tell()
                if left > LEFTOVER_BYTES:
                    self.warnings.append(f"{left} bytes behind the end of its first stream cannot be read")
        elif promised - self.n_frames > MISSING_S * self.rate:
            self.warnings.append(
                f"breaks off: its header promises {promised / self.rate:.2f} s, "
                f"{self.n_frames / self.rate:.2f} s could be decoded"
            )

    def read_all(self, sound: soundfile.SoundFile, skip: int = 0) -> Iterator[np.ndarray]:
        buffer = np.empty((max(1, BLOCK_VALUES // sound.channels), sound.channels), np.float32)
        while True:
            # On an error libsndfile does not say how much it decoded before: the NaN that are left do.
            buffer.fill(np.nan)
            error = None
            try:
                n = sound.buffer_read_into(buffer, "float32")
            except soundfile.LibsndfileError as problem:
                error = problem
                n = len(buffer) - int(np.isnan(buffer[:, -1]).sum())
            block = buffer[min(skip, n) : n]
            skip -= n - len(block)
            self.n_frames += len(block)
            if len(block):
                yield block
            if error is not None:
                self.warnings.append(
                    f"damaged after {self.n_frames / self.rate:.2f} s ({error.error_string.rstrip('.')})"
                )
            if error is not None or n == 0:
                return

    def bytes_left(self) -> int:
        position = os.lseek(self.file.fileno(), 0, os.SEEK_CUR)
        return os.fstat(self.file.fileno()).st_size - position


class _LengthUnknown(io.FileIO):
    """A file that claims to end at 0, which libsndfile takes for an unknown length."""

    def __init__(self, path: Path):
        super().__init__(path, "rb")
        self.is_at_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.is_at_end = whence == os.SEEK_END
        return super().seek(offset, whence)

    def tell(self) -> int:
        return 0 if self.is_at_end else super().tell()


def cut(n_samples: int, clip_samples: int, least_samples: int, remainder: str) -> list[tuple[int, int]]:
    """Cut a recording into clips, one after the other.

    Parameters
    ----------
    n_samples : int
        Length of the recording.
    clip_samples : int
        Length of a clip.
    least_samples : int
        A remainder shorter than this is left out.
    remainder : {"pad", "drop"}
        What happens to a piece shorter than a clip: ``pad`` keeps it, to be padded; ``drop`` leaves it out.

    Returns
    -------
    list of (int, int)
        First sample and length of every clip; the length is `clip_samples` for all but the last.
    """
    clips = [(start, clip_samples) for start in range(0, n_samples - clip_samples + 1, clip_samples)]
    n_left = n_samples - len(clips) * clip_samples
    if remainder == "pad" and n_left >= max(1, least_samples):
        clips.append((n_samples - n_left, n_left))
    return clips


def pad_by_repetition(samples: np.ndarray, n_samples: int) -> np.ndarray:
    """Return `samples`, shape (n,), repeated from its start until it has the shape (n_samples,).

    Zeros would change what a network that normalises over time sees of the sound itself.
    """
    return np.resize(samples, n_samples)
