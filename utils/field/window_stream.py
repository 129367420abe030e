"""Windows of a recording, cut from its sound while it is decoded, so that memory does not depend on its length."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from utils.core.errors import UsageError
from utils.data import audio
from utils.data.clips import PCM_SCALE


@dataclass(frozen=True)
class WindowFormat:
    """How recordings are cut into windows; all lengths are in samples.

    Attributes
    ----------
    sample_rate_hz : int
    size : int
        Length of a window: that of the clips of the training.
    hop : int
        From the start of a window to that of the next one, at most `size`.
    least, least_rest : int
        A shorter recording, or a shorter last window, is left out.
    remainder : {"pad", "drop"}
        Whether the last window, if it is not full, is repeated or left out.
    """

    sample_rate_hz: int
    size: int
    hop: int
    least: int
    least_rest: int
    remainder: str

    @classmethod
    def of_model(cls, config: Mapping, sample_rate_hz: int, overlap_seconds: float) -> "WindowFormat":
        """Return the windows of a model, as stage 01 cut the clips of its training.

        Raises
        ------
        UsageError
            If the windows overlap by their whole length.
        """
        size = round(config["clip_seconds"] * sample_rate_hz)
        hop = size - round(overlap_seconds * sample_rate_hz)
        if hop < 1:
            raise UsageError(
                f"--overlap_seconds {overlap_seconds}: the windows of this model last {config['clip_seconds']:g} s; "
                "expected less"
            )
        names = "clip_least_seconds", "clip_least_rest_seconds"
        least = [max(1, round(config[name] * sample_rate_hz)) for name in names]
        return cls(sample_rate_hz, size, hop, *least, config["clip_remainder"])

    def n_windows(self, n_samples: int) -> int:
        """Return the number of windows of a recording; without overlap, the number of clips that 01 cuts.

        The last one may be cut short by the end. It is left out if it has no sound of its own.
        """
        n_whole = max(0, (n_samples - self.size) // self.hop + 1)
        end = (n_whole - 1) * self.hop + self.size if n_whole else 0
        rest = n_samples - n_whole * self.hop
        is_long_enough = rest >= (self.least_rest if n_whole else self.least)
        return n_whole + (self.remainder == "pad" and n_samples > end and is_long_enough)


class WindowStream:
    """Takes the sound of a recording block by block, and hands on its windows in batches.

    Which windows share a batch depends on the recording alone. A batch can change the last digit of a score.

    Parameters
    ----------
    windows : WindowFormat
    batch_size : int
        Windows in a batch.
    take : callable
        Accepts windows, float32 of shape (n, size) in [-1, 1), in their order.
    """

    def __init__(self, windows: WindowFormat, batch_size: int, take: Callable[[np.ndarray], object]):
        self.windows, self.batch_size, self.take = windows, batch_size, take
        self.n_samples = self.n_taken = self._filled = 0
        self._buffer = np.empty((batch_size - 1) * windows.hop + windows.size, np.int16)

    def __call__(self, pcm: np.ndarray) -> None:
        """Accept the next block of sound, int16 of shape (n,)."""
        self.n_samples += len(pcm)
        while len(pcm):
            n = min(len(pcm), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + n] = pcm[:n]
            self._filled += n
            pcm = pcm[n:]
            if self._filled == len(self._buffer):
                self._hand_on(self.batch_size)
                kept = self._buffer[self.batch_size * self.windows.hop :]  # the next window starts there
                self._buffer[: len(kept)] = kept.copy()
                self._filled = len(kept)

    def finish(self) -> None:
        """Hand on the remaining windows, after the last block."""
        n_left = self.windows.n_windows(self.n_samples) - self.n_taken
        if n_left <= 0:
            return
        start = (n_left - 1) * self.windows.hop
        self._buffer[start : start + self.windows.size] = audio.pad_by_repetition(
            self._buffer[start : self._filled][: self.windows.size], self.windows.size
        )
        self._hand_on(n_left)

    def _hand_on(self, n: int) -> None:
        every = np.lib.stride_tricks.sliding_window_view(self._buffer, self.windows.size)
        samples = every[:: self.windows.hop][:n].astype(np.float32)
        samples /= np.float32(PCM_SCALE)
        self.take(samples)
        self.n_taken += n
