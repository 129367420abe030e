"""What a model costs to run: multiply-accumulates, time, memory, and the front end's share of them.

The front end is everything before the first block: dropping blocks cannot make it cheaper. It includes
the feature extractor, which is timed; a mel spectrogram made there is no operation of the network and
is not in the multiply-accumulates.
"""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, SequenceFeatureExtractor

from utils.encoders import front_end_forward, prepare

MIN_REPEATS = 20
MAX_REPEATS = 100
N_WARM_UP = 3
BUDGET_S = 10.0
N_BATCHES = 3
KIBIBYTE, MEGABYTE = 1024, 1e6


def count_macs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Count the multiply-accumulates of a forward pass: those of matrix products and convolutions.

    Additions of biases, normalisations and activations are left out, as is the custom.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model.
    inputs : dict of str to Tensor
        What `encoders.prepare` returns; on the model's device.

    Returns
    -------
    total, front_end : int
        For all clips in `inputs`.
    """
    with torch.no_grad(), _eager_attention(model):
        return _macs_of(lambda: model(**inputs)), _macs_of(lambda: front_end_forward(model, inputs))


def _macs_of(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2  # PyTorch counts a multiplication and an addition apart


@contextlib.contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make the products of attention visible: the counter does not know the fused kernel of CPUs."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass(frozen=True)
class Cost:
    """What `measure_cost` found.

    Attributes
    ----------
    gmacs_per_clip, gmacs_front_end : float
        Billions of multiply-accumulates of one clip; see `count_macs`.
    latency_ms_median, latency_ms_p95 : float
        From audio in memory to logits, one clip at a time, feature extraction included.
    latency_front_end_ms : float
        The part of that before the first block (median).
    real_time_factor : float
        Seconds of computing for a second of audio, one clip at a time: below 1 is faster than real time.
    throughput_clips_per_s : float
        In batches of `batch_size`, feature extraction included.
    peak_memory_mb : float
        In MB (10^6 bytes), for one clip. On a GPU what PyTorch allocated, weights included; on a CPU the resident
        memory of the whole process, interpreter and libraries included.
    n_repeats, batch_size, n_threads : int
    dtype : str
    """

    gmacs_per_clip: float
    gmacs_front_end: float
    latency_ms_median: float
    latency_ms_p95: float
    latency_front_end_ms: float
    real_time_factor: float
    throughput_clips_per_s: float
    peak_memory_mb: float
    n_repeats: int
    batch_size: int
    n_threads: int
    dtype: str


def measure_cost(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    audio: np.ndarray,
    sample_rate_hz: int,
    batch_size: int,
    device: str,
    budget_s: float = BUDGET_S,
) -> Cost:
    """Time a model on one clip, after a warm-up; count its operations and its memory.

    Whole passes and front ends alternate, so that a change of the machine's load or clock reaches
    both. They are repeated 20 to 100 times, and not begun again after `budget_s`.

    Parameters
    ----------
    model : PreTrainedModel
        Audio-classification model in evaluation mode, on `device`.
    extractor : SequenceFeatureExtractor
        Its feature extractor.
    audio : ndarray of float32, shape (n_samples,)
        A clip.
    sample_rate_hz : int
    batch_size : int
        For the throughput.
    device : str
        ``cpu`` or ``cuda``.
    budget_s : float
        Seconds after which 20 repetitions are enough.
    """

    def inputs_of(clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
        inputs = prepare(extractor, clips, sample_rate_hz, model.main_input_name)
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def whole(clips: list[np.ndarray]) -> None:
        model(**inputs_of(clips))
        _synchronise(device)

    def front_end(clips: list[np.ndarray]) -> None:
        front_end_forward(model, inputs_of(clips))
        _synchronise(device)

    clip = [audio]
    with torch.inference_mode():
        peak_memory_mb = _peak_memory_mb(lambda: whole(clip), device)
        for _ in range(N_WARM_UP):
            whole(clip)
            front_end(clip)
        whole_s, front_end_s = [], []
        start = time.perf_counter()
        while len(whole_s) < MAX_REPEATS and (len(whole_s) < MIN_REPEATS or time.perf_counter() - start < budget_s):
            whole_s.append(_seconds(lambda: whole(clip)))
            front_end_s.append(_seconds(lambda: front_end(clip)))
        batch = clip * batch_size
        whole(batch)
        batch_s = [_seconds(lambda: whole(batch)) for _ in range(N_BATCHES)]
    median_s = float(np.median(whole_s))
    macs, macs_front_end = count_macs(model, inputs_of(clip))
    return Cost(
        gmacs_per_clip=macs / 1e9,
        gmacs_front_end=macs_front_end / 1e9,
        latency_ms_median=1e3 * median_s,
        latency_ms_p95=1e3 * float(np.percentile(whole_s, 95)),
        latency_front_end_ms=1e3 * float(np.median(front_end_s)),
        real_time_factor=median_s / (len(audio) / sample_rate_hz),
        throughput_clips_per_s=batch_size / float(np.median(batch_s)),
        peak_memory_mb=peak_memory_mb,
        n_repeats=len(whole_s),
        batch_size=batch_size,
        n_threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_memory_mb(call: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / MEGABYTE
    _reset_peak_resident()
    call()
    return _peak_resident_mb()


def _reset_peak_resident() -> None:
    # Linux forgets the peak on request. Where it cannot, the peak is that since the process began, which
    # is the same unless loading the model took more than running it.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * KIBIBYTE / MEGABYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else KIBIBYTE) / MEGABYTE
