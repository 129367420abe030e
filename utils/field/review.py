"""The review page of stage 08: which windows of all recordings it shows, and their sound, decoded once more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, workers
from utils.core.errors import InputError
from utils.data import audio, preparation, spool
from utils.field import detections, scoring
from utils.field.window_stream import WindowFormat, WindowStream
from utils.figures import review_page

with lazy.imported_on_first_use():
    import numpy as np

    from utils.scores import review_choice

if TYPE_CHECKING:
    from utils.field.field_model import FieldModel

PRELOADED = ("av", "numpy", "soundfile", "soxr", "PIL.Image")
WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Task:
    """The windows of a recording whose sound is wanted, and how 08 decoded it."""

    raw_dir: Path
    file: spool.Listed
    windows: WindowFormat
    channel: str
    numbers: frozenset[int]


def encode_windows(task: Task) -> tuple[str, dict[int, review_page.Media]]:
    """Decode a recording as 08 did; return its path and the sound of the wanted windows, without what fills the last.

    Raises
    ------
    InputError
        If it is not the recording any more that 08 scored.
    """
    sounds: dict[int, np.ndarray] = {}
    n_seen, windows = 0, task.windows

    def take(batch: np.ndarray) -> None:
        nonlocal n_seen
        sounds.update({n_seen + i: batch[i].copy() for i in range(len(batch)) if n_seen + i in task.numbers})
        n_seen += len(batch)

    def new_sink() -> WindowStream:
        nonlocal n_seen, stream
        sounds.clear()
        n_seen, stream = 0, WindowStream(windows, WINDOWS_AT_ONCE, take)
        return stream

    stream = None
    try:
        decoded = audio.decode(task.raw_dir / task.file.path, windows.sample_rate_hz, new_sink, task.channel)
        stream.finish()
    except audio.Undecodable as reason:
        spool.check_unchanged(task.raw_dir, task.file)
        raise InputError(f"{task.raw_dir / task.file.path} could be read before, and now cannot: {reason}") from reason
    spool.check_unchanged(task.raw_dir, task.file)
    own = {number: samples[: decoded.n_samples - number * windows.hop] for number, samples in sounds.items()}
    return task.file.path, {number: review_page.encode(own[number], windows.sample_rate_hz) for number in sorted(own)}


def write(
    path: Path,
    model: FieldModel,
    windows: WindowFormat,
    raw_dir: Path,
    listed: Mapping[str, spool.Listed],
    found: preparation.Decoded,
    n: int,
    seed: int,
    num_workers: int,
) -> int:
    """Choose windows of all recordings and write the page; return their number.

    Parameters
    ----------
    path : Path
    model : FieldModel
    windows : WindowFormat
    raw_dir : Path
    listed : mapping of str to Listed
        All recordings, by path.
    found : Decoded
        The scored ones, whose scores were kept.
    n : int
        Windows of each kind per label; see `review_choice.Choice`.
    seed : int
    num_workers : int
    """
    scored = [found.sounds[path] for path in sorted(found.sounds)]
    thresholds = [np.nan if threshold is None else threshold for threshold in model.thresholds.values()]
    choice = review_choice.Choice(thresholds, n, seed)
    for i, recording in enumerate(scored):
        choice.add(i, recording.path, scoring.read_scores(found.spool_dirs[recording.path], recording))
    chosen, numbers = choice.chosen(), defaultdict(set)
    for one in chosen:
        numbers[scored[one.file].path].add(one.window)
    tasks = [Task(raw_dir, listed[name], windows, model.channel, frozenset(own)) for name, own in numbers.items()]
    with workers.worker_pool(max(1, min(num_workers, len(tasks))), PRELOADED) as pool_map:
        media = dict(pool_map(encode_windows, tasks))
    title = f"Detections in {raw_dir.resolve().name}"
    return review_page.write_page(path, title, model.labels, _items(model, chosen, scored, windows, media))


def _items(
    model: FieldModel,
    chosen: Sequence[review_choice.Chosen],
    scored: Sequence[scoring.Scored],
    windows: WindowFormat,
    media: Mapping[str, Mapping[int, review_page.Media]],
) -> Iterator[review_page.Item]:
    for one in chosen:
        recording, label = scored[one.file], model.labels[one.label_id]
        start = one.window * windows.hop
        start_s, end_s = (n / windows.sample_rate_hz for n in (start, min(start + windows.size, recording.n_samples)))
        yield review_page.Item(
            label=label,
            why=one.why,
            file=recording.path,
            start_s=start_s,
            end_s=end_s,
            score=one.score,
            media=media[recording.path][one.window],
            threshold=model.thresholds[label],
            recorded_at=detections.time_of_day(recording.start, start_s),
        )
