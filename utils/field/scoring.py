"""Scores of recordings: decoding, windows, the network, and which windows are above a threshold, file by file.

The functions here are the tasks of stage 08's worker processes. Each task can be killed at any moment and repeated: the
results of a file are valid once its marker exists, and the marker is renamed into place last.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from utils.core import lazy, workers
from utils.core.errors import InputError
from utils.core.files import BROKEN, read_json, sha256_of_file, sha256_of_lines
from utils.data import audio, clips, preparation, recorders, spool
from utils.data.recordings import Skipped
from utils.field import detections, window_stream
from utils.field.window_stream import WindowFormat, WindowStream
from utils.models import decision, model_folder
from utils.models.exported import ExportedModel

with lazy.imported_on_first_use():
    import torch

    from utils.models import encoders, loaded_model, onednn

if TYPE_CHECKING:
    from utils.models.loaded_model import LoadedModel

SCORES_SUFFIX, DETECTIONS_SUFFIX = ".scores", ".detections"
SUFFIXES = (SCORES_SUFFIX, DETECTIONS_SUFFIX, spool.MARKER_SUFFIX)
# Seconds each, once instead of in every worker.
PRELOADED = ("av", "soundfile", "soxr")
TORCH = ("torch", "transformers.modeling_utils", "transformers.models.auto.feature_extraction_auto")
ONNX = ("onnxruntime",)
ENGINES = ("torch", "transformers", "onnxruntime", "numpy")
MOST_DECODERS = 4  # threads that decode for one GPU

Score = Callable[[np.ndarray], concurrent.futures.Future]


@functools.cache
def scored_by() -> str:
    """Name the versions that score: the last digits may differ between them, so results of others are not reused."""
    modules = Path(__file__), *(Path(module.__file__) for module in (clips, detections, window_stream))
    ours = sha256_of_lines(map(sha256_of_file, modules))[:12]
    versions = []
    for name in ENGINES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # an exported file needs no torch
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return f"{spool.decoded_by()}; {', '.join(versions)}, our code {ours}"


@dataclass(frozen=True)
class Scored:
    """A recording whose results are in a folder, under names of its own; see `results_path`.

    Attributes
    ----------
    path : str
        Path relative to the folder of recordings.
    n_samples, n_windows, n_detections : int
        Samples at the rate of the model.
    sample_rate_hz : int
        Rate of the model.
    source_rate_hz : int
        Rate of the file.
    sha256 : str
        Digest of the results.
    warnings : tuple of str
    start : Start
        Start time of the recording.
    """

    path: str
    n_samples: int
    n_windows: int
    n_detections: int
    sample_rate_hz: int
    source_rate_hz: int
    sha256: str
    warnings: tuple[str, ...]
    start: recorders.Start

    @classmethod
    def from_json(cls, value: dict) -> Scored:
        """Return a `Scored` from the JSON of `dataclasses.asdict`."""
        return cls(**value | {"warnings": tuple(value["warnings"]), "start": recorders.Start(**value["start"])})

    @property
    def duration_s(self) -> float:
        """Length of the recording in s."""
        return self.n_samples / self.sample_rate_hz


@dataclass(frozen=True)
class How:
    """What a task needs besides its files.

    Attributes
    ----------
    raw_dir, results_dir, model_dir : Path
    model_sha256 : str
        Digest of the model and its calibration.
    device : {"cpu", "cuda"}
    windows : WindowFormat
    channel : str
        As for `audio.decode`.
    thresholds : tuple of float
        By label id; infinite for a label without one.
    batch_size : int
        Windows in a batch.
    keeps_scores : bool
        Whether to keep the score of every window and label.
    """

    raw_dir: Path
    results_dir: Path
    model_dir: Path
    model_sha256: str
    device: str
    windows: WindowFormat
    channel: str
    thresholds: tuple[float, ...]
    batch_size: int
    keeps_scores: bool

    def made_from(self, file: spool.Listed) -> dict:
        """Return all that the results of a file depend on."""
        about = {"model": self.model_sha256, "windows": asdict(self.windows), "channel": self.channel}
        about |= {"batch_size": self.batch_size, "keeps_scores": self.keeps_scores, "by": scored_by()}
        # As text, because JSON has no infinity.
        return {"size": file.size, "mtime_ns": file.mtime_ns, "thresholds": list(map(str, self.thresholds)), **about}


def results_path(results_dir: Path, path: str, suffix: str) -> Path:
    """Return where a folder holds the results of the recording at `path`: its marker, scores or detections."""
    return (results_dir / spool.pcm_name(path)).with_suffix(suffix)


def read_detections(results_dir: Path, path: str) -> np.ndarray:
    """Return the detections of a recording, of the type `detections.DETECTION`."""
    return np.fromfile(results_path(results_dir, path, DETECTIONS_SUFFIX), detections.DETECTION)


def read_scores(results_dir: Path, scored: Scored) -> np.ndarray:
    """Return the scores of a recording, float32 of shape (n_windows, n_labels), where they were kept."""
    scores = np.fromfile(results_path(results_dir, scored.path, SCORES_SUFFIX), "<f4")
    return scores.reshape(scored.n_windows, -1)


# ------------------------------------------------------------------------------------------------ the network


def load(model_dir: Path, device: str) -> LoadedModel | ExportedModel:
    """Load a model, or an exported file without PyTorch."""
    return ExportedModel(model_dir) if model_folder.is_exported(model_dir) else encoders.load_model(model_dir, device)


def logits_of(loaded: LoadedModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the logits of prepared windows, float32 of shape (n, n_labels)."""
    with torch.inference_mode():
        inputs = {name: tensor.to(loaded.device) for name, tensor in inputs.items()}
        return loaded.model(**inputs).logits.float().cpu().numpy()


@contextlib.contextmanager
def in_torch(loaded: LoadedModel) -> Iterator[tuple[Callable, Callable]]:
    """Yield a function from windows to inputs, and one from inputs to logits; PyTorch computes in one thread."""
    if loaded.device == "cpu":
        loaded = dataclasses.replace(loaded, model=onednn.with_folded_norms(loaded.model))

    def prepare(windows: np.ndarray) -> dict[str, torch.Tensor]:
        return loaded_model.prepare(
            loaded.extractor, list(windows), loaded.sample_rate_hz, loaded.model.main_input_name
        )

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with onednn.linear_layers(loaded.model, loaded.device):
            yield prepare, functools.partial(logits_of, loaded)
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def scoring(loaded: LoadedModel | ExportedModel, n_threads: int) -> Iterator[Score]:
    """Yield a function from windows to a future of their scores, float64 of shape (n, n_labels).

    A batch is scored by one thread: the order of summation, and so the last digits, do not depend on the number of
    threads.

    Parameters
    ----------
    loaded : LoadedModel or ExportedModel
        In evaluation mode.
    n_threads : int
        Threads that score while the caller decodes; 0 scores in the caller's thread. On a GPU there is one, and the
        caller's thread prepares the input.
    """
    on_gpu = loaded.device != "cpu"
    pool = concurrent.futures.ThreadPoolExecutor(1 if on_gpu else n_threads) if n_threads else None
    is_file = isinstance(loaded, ExportedModel)
    engine = contextlib.nullcontext((np.asarray, loaded.logits)) if is_file else in_torch(loaded)
    with contextlib.ExitStack() as stack:
        prepare, give_logits = stack.enter_context(engine)
        if pool is not None:
            stack.callback(pool.shutdown, cancel_futures=True)

        def finish(inputs: object) -> np.ndarray:
            logits = give_logits(inputs)
            is_finite = np.isfinite(logits).all()
            return decision.scores(logits, loaded.config) if is_finite else np.full(logits.shape, np.nan)

        def score(windows: np.ndarray) -> concurrent.futures.Future:
            if pool is None:
                done: concurrent.futures.Future = concurrent.futures.Future()
                done.set_result(finish(prepare(windows)))
                return done
            if on_gpu:
                return pool.submit(finish, prepare(windows))
            return pool.submit(lambda: finish(prepare(windows)))

        yield score
        if pool is not None:
            pool.shutdown()


# ------------------------------------------------------------------------------------------------ one recording


class _Stopped(Exception):
    """The stage ends: a thread that decodes ends, too."""


@dataclass
class _Results:
    """Collects the scores of a recording in the order of its windows."""

    how: How
    scores_file: BinaryIO | None
    n_windows: int = 0
    windows: list[np.ndarray] = field(default_factory=list)  # those above a threshold, with label and score
    label_ids: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, scores: np.ndarray) -> None:
        """Add the scores of the next windows, shape (n, n_labels)."""
        scores = scores.astype("<f4")  # as in scores.parquet, from which the same detections follow
        rows, labels = np.nonzero(scores >= np.array(self.how.thresholds, "<f4"))
        self.windows.append(self.n_windows + rows)
        self.label_ids.append(labels)
        self.scores.append(scores[rows, labels])
        self.n_windows += len(scores)
        if self.scores_file is not None:
            self.scores_file.write(scores.tobytes())

    def detections(self, n_samples: int) -> np.ndarray:
        """Return the detections, of the type `detections.DETECTION`."""
        hits = (np.concatenate(part) for part in (self.windows, self.label_ids, self.scores))
        return detections.merge(*hits, self.how.windows, n_samples)


def _listen(how: How, path: str, scores_path: Path, score: Score, n_ahead: int, stop: threading.Event) -> tuple:
    """Decode and score a recording; return the `audio.Decoded` and its `_Results`."""
    pending: deque[concurrent.futures.Future] = deque()
    with contextlib.ExitStack() as stack:
        scores_file = stack.enter_context(scores_path.open("wb")) if how.keeps_scores else None
        results = stream = None

        def collect(n_most: int) -> None:
            while len(pending) > n_most:
                scores = pending.popleft().result()
                if np.isnan(scores).any():
                    raise InputError(
                        f"the model gives logits that are NaN or infinite for {path}: its weights are broken, train "
                        "it again with a lower --learning_rate"
                    )
                results.add(scores)

        def take(windows: np.ndarray) -> None:
            if stop.is_set():
                raise _Stopped
            pending.append(score(windows))
            collect(n_ahead)

        def new_sink() -> WindowStream:
            nonlocal results, stream
            concurrent.futures.wait(pending)
            pending.clear()
            if scores_file is not None:
                scores_file.seek(0)
                scores_file.truncate()
            results, stream = _Results(how, scores_file), WindowStream(how.windows, how.batch_size, take)
            return stream

        decoded = audio.decode(how.raw_dir / path, how.windows.sample_rate_hz, new_sink, how.channel)
        stream.finish()
        collect(0)
    return decoded, results


def score_file(
    how: How, file: spool.Listed, score: Score, n_ahead: int, stop: threading.Event | None = None
) -> Scored | Skipped:
    """Score a recording, or reuse the finished results of a killed attempt.

    Parameters
    ----------
    how : How
    file : Listed
    score : callable
        From `scoring`.
    n_ahead : int
        Batches that may wait for their scores while the next ones are decoded.
    stop : Event, optional
        Once it is set, the function raises an exception of its own.
    """
    path_of = functools.partial(results_path, how.results_dir, file.path)
    marker_path, made_from = path_of(spool.MARKER_SUFFIX), how.made_from(file)
    finished = _read_marker(how, marker_path, made_from)
    if finished is not None:
        return finished
    marker_path.unlink(missing_ok=True)
    for suffix in (SCORES_SUFFIX, DETECTIONS_SUFFIX):  # do not write into them: an old result may hold links to them
        path_of(suffix).unlink(missing_ok=True)
    scores_path, detections_path = path_of(SCORES_SUFFIX), path_of(DETECTIONS_SUFFIX)
    try:
        decoded, results = _listen(how, file.path, scores_path, score, n_ahead, stop or threading.Event())
    except audio.Undecodable as reason:
        scores_path.unlink(missing_ok=True)
        spool.check_unchanged(how.raw_dir, file)
        return Skipped(file.path, str(reason))
    start, warnings = recorders.read_start(how.raw_dir / file.path), decoded.warnings
    spool.check_unchanged(how.raw_dir, file)
    if start.is_glued:
        warnings += (spool.GLUED,)
    if not results.n_windows:
        scores_path.unlink(missing_ok=True)
        reason = f"too short for a window of this model: {decoded.n_samples / how.windows.sample_rate_hz:.6g} s"
        return Skipped(file.path, "; ".join([reason, *warnings]))
    found = results.detections(decoded.n_samples)
    found.tofile(detections_path)
    scored = Scored(
        *(file.path, decoded.n_samples, results.n_windows, len(found)),
        *(how.windows.sample_rate_hz, decoded.source_rate_hz, _digest(how, file.path), warnings, start),
    )
    # Not flushed to disk: after a crash of the machine, the checksum finds missing data.
    partial = marker_path.with_suffix(".partial")
    partial.write_text(json.dumps({"made_from": made_from, "scored": asdict(scored)}), encoding="utf-8")
    partial.replace(marker_path)
    return scored


def _digest(how: How, path: str) -> str:
    """Return the digest of all results of a recording."""
    digest = hashlib.sha256()
    for suffix in (SCORES_SUFFIX, DETECTIONS_SUFFIX) if how.keeps_scores else (DETECTIONS_SUFFIX,):
        digest.update(sha256_of_file(results_path(how.results_dir, path, suffix)).encode())
    return digest.hexdigest()


def _read_marker(how: How, marker_path: Path, made_from: dict) -> Scored | None:
    """Return the results of an earlier attempt, if they are whole and made from the same file in the same way."""
    try:
        marker = read_json(marker_path, dict, "")
        scored = Scored.from_json(marker["scored"])
        if marker["made_from"] == made_from and _digest(how, scored.path) == scored.sha256:
            return scored
    except BROKEN:
        pass  # killed before it was finished
    return None


# --------------------------------------------------------------------------------------------- many recordings


@functools.lru_cache(maxsize=1)
def _model_of_worker(model_dir: Path, model_sha256: str) -> LoadedModel | ExportedModel:
    return load(model_dir, "cpu")


def score_in_worker(task: tuple[How, tuple[spool.Listed, ...], int]) -> list[Scored | Skipped]:
    """Score recordings in a worker process, which loads the model once; the last item is the number of threads."""
    how, files, n_threads = task
    with scoring(_model_of_worker(how.model_dir, how.model_sha256), n_threads) as score:
        return [score_file(how, file, score, n_ahead(n_threads)) for file in files]


def n_ahead(n_threads: int) -> int:
    """Return the number of batches that may wait for their scores, so that no thread waits for the decoding."""
    return n_threads and n_threads + 1


def score_all(
    how: How, files: Sequence[spool.Listed], num_workers: int, loaded: LoadedModel | ExportedModel
) -> Iterator[Scored | Skipped]:
    """Score recordings; yield their results in no fixed order.

    On a CPU each worker process scores one recording at a time; if there are fewer recordings than workers, several
    threads score each one. On a GPU this process does all, and several threads decode.

    Parameters
    ----------
    how : How
    files : sequence of Listed
    num_workers : int
        Cores to use.
    loaded : LoadedModel or ExportedModel
        Used in this process; worker processes load their own.
    """
    if loaded.device != "cpu":
        yield from _score_on_gpu(how, files, min(num_workers, MOST_DECODERS), loaded)
        return
    n_processes = min(num_workers, len(files))
    n_threads = num_workers // n_processes
    n_threads = 0 if n_threads == 1 else n_threads
    if n_processes == 1:
        with scoring(loaded, n_threads) as score:
            for file in files:
                yield score_file(how, file, score, n_ahead(n_threads))
        return
    tasks = [(how, tuple(batch), n_threads) for batch in preparation.batches(files, num_workers)]
    engine = ONNX if isinstance(loaded, ExportedModel) else TORCH
    with workers.worker_pool(n_processes, PRELOADED + engine) as pool_map:
        for batch in pool_map(score_in_worker, tasks):
            yield from batch


def _score_on_gpu(
    how: How, files: Sequence[spool.Listed], n_decoders: int, loaded: LoadedModel
) -> Iterator[Scored | Skipped]:
    stop = threading.Event()
    with (
        scoring(loaded, 1) as score,
        concurrent.futures.ThreadPoolExecutor(n_decoders) as decoders,
    ):
        try:
            tasks = [decoders.submit(score_file, how, file, score, n_ahead(1), stop) for file in files]
            for task in concurrent.futures.as_completed(tasks):
                yield task.result()
        finally:
            stop.set()
            decoders.shutdown(cancel_futures=True)
