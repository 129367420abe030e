"""The cost of running a model: multiply-accumulates, time, memory, and the front end's share of them.

The front end is everything before the first block: dropping blocks does not make it faster. It includes the feature
extractor, which is timed. A mel spectrogram of the feature extractor is not an operation of the network, so the
multiply-accumulates do not include it.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from utils.core.text import counted
from utils.core.workers import available_cpus
from utils.models.architectures import has_blocks, widths_of
from utils.models.encoders import front_end_forward
from utils.models.exported_network import ExportedNetwork
from utils.models.loaded_model import LoadedModel
from utils.scores.summary import NO_DOUBT

log = logging.getLogger(__name__)

N_ROUNDS = 5
MIN_PASSES, MAX_PASSES = 4, 20  # per model and round
N_WARM_UP = 3
BUDGET_S = 10.0
N_BATCHES = 3
KIBIBYTE, MEGABYTE = 1024, 1e6
# A time is doubtful if the threads lacked more CPUs than this, or if the 95th percentile exceeds this multiple of the
# median.
MISSING_CPUS = 0.2
UNSTEADY = 1.5
ADVICE = "compare models by GMACs, or measure again on a quiet machine"

Name = TypeVar("Name", bound=Hashable)


def count_macs(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Count the multiply-accumulates of a forward pass: those of matrix products and convolutions.

    Additions of biases, normalisations and activations are not counted, as is usual.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model. The file of an exported one records those of a clip.
    inputs : dict of str to Tensor
        Result of `LoadedModel.prepare`.

    Returns
    -------
    total, front_end : int
        Sums over all clips in `inputs`.
    """
    if isinstance(model, ExportedNetwork):
        sizes = model.exported.sizes
        return sizes["macs_per_clip"], sizes["macs_front_end"]
    # Some networks make new tensors without naming a device (SEW-D).
    with torch.no_grad(), eager_attention(model), torch.device(inputs[model.main_input_name].device):
        return _macs_of(lambda: model(**inputs)), _macs_of(lambda: front_end_forward(model, inputs))


def _macs_of(forward: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // 2  # PyTorch counts a multiplication and an addition as two


@contextlib.contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use plain attention within the block: its products are counted, and it can always be exported."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


# ------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Latency:
    """The times of one model from `measure_in_turn`.

    Attributes
    ----------
    latency_ms_median : float
        From audio in memory to logits, one clip at a time, with feature extraction: median of the rounds' medians.
    latency_ms_low, latency_ms_high : float
        Lowest and highest of the rounds' medians.
    latency_ms_p95 : float
        95th percentile of all passes.
    latency_front_end_ms : float
        The part before the first block (median); NaN for an exported file, which runs in one piece.
    n_repeats : int
        Number of passes in all rounds.
    n_threads : int
    load_average : float
        Mean number of processes that ran or waited in the last minute, with this one; NaN if it is not known.
    cpu_busy_share : float
        Share of the time of this process's CPUs that other processes used during the measurement, from 0 to 1; NaN
        likewise.
    latency_doubt : str
        ``no``, or the reasons for doubt, as words: ``load`` (fewer CPUs were free than there are threads), ``unsteady``
        (the 95th percentile is far above the median), ``order`` (a model with fewer blocks was slower).
    """

    latency_ms_median: float
    latency_ms_low: float
    latency_ms_high: float
    latency_ms_p95: float
    latency_front_end_ms: float
    n_repeats: int
    n_threads: int
    load_average: float
    cpu_busy_share: float
    latency_doubt: str


class _Candidate:
    """A model to be timed, and its times in seconds."""

    def __init__(self, loaded: LoadedModel, audio: np.ndarray, sample_rate_hz: int):
        self.loaded, self._audio, self._sample_rate_hz = loaded, audio, sample_rate_hz
        self.whole_s: list[list[float]] = []
        self.front_end_s: list[float] = []

    def inputs(self, n_clips: int = 1) -> dict[str, torch.Tensor]:
        """Return the model's input of `n_clips` copies of the clip."""
        return self.loaded.prepare([self._audio] * n_clips, self._sample_rate_hz)

    def run(self, n_clips: int = 1) -> None:
        """Run a whole prediction, and wait for its end."""
        self.loaded.model(**self.inputs(n_clips))
        _synchronise(self.loaded.device)

    def run_front_end(self) -> None:
        """Run the same up to the first block."""
        front_end_forward(self.loaded.model, self.inputs())
        _synchronise(self.loaded.device)

    def take_turn(self, n_warm_up: int, budget_s: float) -> None:
        """Time passes of the whole model and of the front end in alternation."""
        for _ in range(n_warm_up):
            self.run()
            if not self.loaded.is_exported:
                self.run_front_end()
        turn: list[float] = []
        start = time.perf_counter()
        while len(turn) < MAX_PASSES and (len(turn) < MIN_PASSES or time.perf_counter() - start < budget_s):
            turn.append(_seconds(self.run))
            if not self.loaded.is_exported:
                self.front_end_s.append(_seconds(self.run_front_end))
        self.whole_s.append(turn)

    @property
    def kind(self) -> Hashable:
        """A key that is equal for models that differ only in their blocks; the model itself if it has no blocks."""
        config = self.loaded.config
        if not has_blocks(config):
            return self
        widths = tuple(widths_of(config).items())
        return config.model_type, config.hidden_size, widths, self.inputs()[self.loaded.model.main_input_name].shape


def measure_in_turn(
    models: Mapping[Name, LoadedModel], audio: np.ndarray, sample_rate_hz: int, budget_s: float = BUDGET_S
) -> dict[Name, Latency]:
    """Time models on one clip, in turn over several rounds, and report whether the times can be trusted.

    Each round begins with another model, so that a change of the machine's load or clock affects all models. A model
    has `MIN_PASSES` to `MAX_PASSES` passes in each of `N_ROUNDS` turns. Other load on the machine is recorded, with a
    warning.

    Parameters
    ----------
    models : mapping of name to LoadedModel
        In evaluation mode, on one device.
    audio : ndarray of float32, shape (n_samples,)
        A clip.
    sample_rate_hz : int
    budget_s : float
        Seconds per model, after which `MIN_PASSES` are enough.
    """
    candidates = {name: _Candidate(loaded, audio, sample_rate_hz) for name, loaded in models.items()}
    in_order = list(candidates.values())
    n_threads = 1 if in_order[0].loaded.device == "cuda" else torch.get_num_threads()
    with torch.inference_mode(), _Load(n_threads) as load:
        for number in range(N_ROUNDS):
            first = number * len(in_order) // N_ROUNDS
            for candidate in in_order[first:] + in_order[:first]:
                candidate.take_turn(1 if number else N_WARM_UP, budget_s / N_ROUNDS)
    return dict(zip(candidates, _latencies(in_order, load), strict=True))


def _latencies(candidates: Sequence[_Candidate], load: "_Load") -> list[Latency]:
    """Return the summaries of the times, and warn if they are doubtful."""
    found = []
    for candidate in candidates:
        of_rounds = [np.median(turn) for turn in candidate.whole_s]
        p95 = np.percentile(np.concatenate(candidate.whole_s), 95)
        front_end_s = np.median(candidate.front_end_s or [np.nan])
        times = [np.median(of_rounds), min(of_rounds), max(of_rounds), p95, front_end_s]
        found.append([1e3 * float(seconds) for seconds in times])
    contradicted = slower_with_fewer(
        [(c.kind, c.loaded.config.num_hidden_layers, times[0]) for c, times in zip(candidates, found, strict=True)]
    )
    doubts = [
        ["load"] * load.is_high + ["unsteady"] * (p95 > UNSTEADY * median) + ["order"] * (number in contradicted)
        for number, (median, _, _, p95, _) in enumerate(found)
    ]
    if load.is_high:
        log.warning(
            "latency: %.1f of %s were free, the model uses %s, other processes used the rest: times are too long; %s",
            *(load.n_free_cpus, counted(load.n_cpus, "CPU"), counted(load.n_threads, "thread"), ADVICE),
        )
    if any("unsteady" in doubt for doubt in doubts):
        median, *_, p95, _ = max(found, key=lambda times: times[3] / times[0])
        log.warning(
            "latency: one pass in twenty took %.3g ms or more, but the median is %.3g ms: something disturbed it; %s",
            *(p95, median, ADVICE),
        )
    if contradicted:
        log.warning("latency: models with fewer blocks were slower than models with more; %s", ADVICE)
    return [
        Latency(
            *times,
            n_repeats=sum(map(len, candidate.whole_s)),
            n_threads=torch.get_num_threads(),
            load_average=load.average,
            cpu_busy_share=load.busy_share,
            latency_doubt=" ".join(doubt) or NO_DOUBT,
        )
        for candidate, times, doubt in zip(candidates, found, doubts, strict=True)
    ]


def slower_with_fewer(times: Sequence[tuple[Hashable, int, float]]) -> set[int]:
    """Return the indices of the models whose times contradict their numbers of blocks.

    Parameters
    ----------
    times : sequence of (kind, n_blocks, milliseconds)
        Models of one kind differ only in their blocks.
    """
    places = set()
    for (first, one), (second, other) in itertools.combinations(enumerate(times), 2):
        if one[0] == other[0] and (one[1] - other[1]) * (one[2] - other[2]) < 0:
            places |= {first, second}
    return places


class _Load:
    """The load of other processes on this process's CPUs within the block.

    Attributes
    ----------
    n_cpus, n_threads : int
        CPUs that this process may use; threads that its model uses.
    busy_share, average : float
        See `Latency`.
    """

    def __init__(self, n_threads: int):
        self.n_threads, self.n_cpus = n_threads, available_cpus()
        self.busy_share = self.average = float("nan")

    def __enter__(self) -> "_Load":
        self._start = time.perf_counter(), time.process_time(), _busy_seconds()
        return self

    def __exit__(self, *error: object) -> None:
        seconds, own, busy = (
            after - before
            for before, after in zip(
                self._start, (time.perf_counter(), time.process_time(), _busy_seconds()), strict=True
            )
        )
        if np.isfinite(busy):
            self.busy_share = float(np.clip((busy - own) / (seconds * self.n_cpus), 0, 1))
        with contextlib.suppress(OSError):
            self.average = os.getloadavg()[0]

    @property
    def n_free_cpus(self) -> float:
        """Number of CPUs that other processes left free."""
        return self.n_cpus * (1 - self.busy_share)

    @property
    def is_high(self) -> bool:
        """Whether fewer CPUs were free than there are threads; False if that is not known."""
        return bool(self.n_free_cpus < min(self.n_threads, self.n_cpus) - MISSING_CPUS)


def _busy_seconds() -> float:
    """Return the busy seconds of all CPUs of this process, summed over all processes; NaN if not known."""
    try:
        times = psutil.cpu_times(percpu=True)
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
        idle = {"idle", "iowait", "guest", "guest_nice"}  # guest time is already part of user time
        return sum(sum(v for k, v in times[cpu]._asdict().items() if k not in idle) for cpu in own)
    except (OSError, IndexError, psutil.Error):
        return float("nan")


# ------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True)
class Cost(Latency):
    """The result of `measure_cost`, in addition to the latency.

    Attributes
    ----------
    gmacs_per_clip, gmacs_front_end : float
        Billions of multiply-accumulates of one clip; see `count_macs`.
    real_time_factor : float
        Seconds of computing per second of audio, one clip at a time: below 1 is faster than real time.
    throughput_clips_per_s : float
        In batches of `batch_size`, with feature extraction.
    peak_memory_mb : float
        In MB (10^6 bytes), for one clip. On a GPU, the memory that PyTorch allocated, with the weights; on a CPU, the
        resident memory of the whole process, with the interpreter and libraries.
    batch_size : int
    dtype : str
    """

    gmacs_per_clip: float
    gmacs_front_end: float
    real_time_factor: float
    throughput_clips_per_s: float
    peak_memory_mb: float
    batch_size: int
    dtype: str


def measure_cost(loaded: LoadedModel, audio: np.ndarray, sample_rate_hz: int, batch_size: int) -> Cost:
    """Time a model on one clip; count its operations and its memory.

    Parameters
    ----------
    loaded, audio, sample_rate_hz
        As for `measure_in_turn`.
    batch_size : int
        Clips per batch for the throughput.
    """
    candidate = _Candidate(loaded, audio, sample_rate_hz)
    with torch.inference_mode():
        peak_memory_mb = _peak_memory_mb(candidate.run, loaded.device)
    latency = measure_in_turn({"": loaded}, audio, sample_rate_hz)[""]
    with torch.inference_mode():
        candidate.run(batch_size)
        batch_s = [_seconds(lambda: candidate.run(batch_size)) for _ in range(N_BATCHES)]
    macs, macs_front_end = count_macs(loaded.model, candidate.inputs())
    return Cost(
        **dataclasses.asdict(latency),
        gmacs_per_clip=macs / 1e9,
        gmacs_front_end=macs_front_end / 1e9,
        real_time_factor=latency.latency_ms_median / 1e3 / (len(audio) / sample_rate_hz),
        throughput_clips_per_s=batch_size / float(np.median(batch_s)),
        peak_memory_mb=peak_memory_mb,
        batch_size=batch_size,
        dtype=dtype_of(loaded),
    )


def dtype_of(loaded: LoadedModel) -> str:
    """Return the type of the weights, such as ``float32``; of an exported file, its precision."""
    return loaded.model.exported.precision if loaded.is_exported else str(loaded.model.dtype).removeprefix("torch.")


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
    # Linux can reset the peak memory. Without that, the peak counts from the start of the process, which is the same
    # unless loading the model needed more memory than running it.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_resident_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * KIBIBYTE / MEGABYTE
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else KIBIBYTE) / MEGABYTE
