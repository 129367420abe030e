"""Detections: windows above a threshold, merged; ``detections.csv`` and the tables of other programs."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from utils.core.errors import InputError
from utils.core.files import MOST_BYTES_OF_NAME, atomic_path
from utils.core.text import counted, printable
from utils.data import annotations
from utils.data.recorders import Start
from utils.data.timed_labels import Annotation, seconds
from utils.field.window_stream import WindowFormat

NAME = "detections.csv"
COLUMNS = ("file", "start_s", "end_s", "label", "score", "threshold", "recorded_at")
DETECTION = np.dtype([("start", "<i8"), ("end", "<i8"), ("label_id", "<i4"), ("score", "<f8")])  # start, end in samples
COMBINED_NAME = "all"


def merge(
    window_numbers: np.ndarray, label_ids: np.ndarray, scores: np.ndarray, windows: WindowFormat, n_samples: int
) -> np.ndarray:
    """Merge windows above a threshold: windows of one label that overlap or touch become one detection.

    It starts with the first window and ends with the last one, at the latest with the recording. Its score is the
    highest. Two detections of a label therefore neither overlap nor touch.

    Parameters
    ----------
    window_numbers, label_ids : ndarray of int, shape (n,)
        A window and a label that is above its threshold there.
    scores : ndarray of float64, shape (n,)
    windows : WindowFormat
    n_samples : int
        Length of the recording.

    Returns
    -------
    ndarray of `DETECTION`, shape (n_detections,)
        Sorted by start and label id.
    """
    order = np.lexsort((window_numbers, label_ids))
    starts, label_ids, scores = window_numbers[order] * windows.hop, label_ids[order], scores[order]
    ends = np.minimum(starts + windows.size, n_samples)
    is_first = np.ones(len(starts), bool)
    is_first[1:] = (label_ids[1:] != label_ids[:-1]) | (starts[1:] > ends[:-1])
    firsts = np.flatnonzero(is_first)
    merged = np.empty(len(firsts), DETECTION)
    if len(firsts):
        merged["start"], merged["label_id"] = starts[firsts], label_ids[firsts]
        merged["end"] = ends[np.append(firsts[1:], len(starts)) - 1]
        merged["score"] = np.maximum.reduceat(scores, firsts)
    return np.sort(merged, order=["start", "label_id"])


def as_annotations(path: str, found: np.ndarray, labels: Sequence[str], sample_rate_hz: int) -> list[Annotation]:
    """Return the detections of a recording, sorted by start and label."""
    rows = (
        Annotation(path, start / sample_rate_hz, end / sample_rate_hz, labels[label_id], score)
        for start, end, label_id, score in found.tolist()
    )
    return sorted(rows, key=lambda row: (row.start_s, row.label))


def time_of_day(start: Start, start_s: float) -> str:
    """Return the time of day of a moment of a recording, ISO 8601; empty if it is not known."""
    if not start.time or start.is_glued:
        return ""
    return (datetime.fromisoformat(start.time) + timedelta(seconds=start_s)).isoformat(timespec="milliseconds")


def write_csv(
    path: Path, recordings: Iterable[tuple[Start, list[Annotation]]], thresholds: Mapping[str, float | None]
) -> None:
    """Write ``detections.csv`` atomically, row by row.

    Parameters
    ----------
    path : Path
    recordings : iterable of (Start, list of Annotation)
        Start time and detections of each recording, in the order of the table.
    thresholds : mapping of str to float or None
        By label.
    """
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for start, found in recordings:
            for row in found:
                times = seconds(row.start_s), seconds(row.end_s)
                numbers = f"{row.score:.4f}", f"{thresholds[row.label]:.4f}"
                moment = time_of_day(start, row.start_s)
                writer.writerow([printable(row.file), *times, printable(row.label), *numbers, moment])


def check_names(files: Iterable[str], name: str, combined: bool) -> None:
    """Check, before anything is computed, that each recording's table can have the name that `write_tables` gives it.

    Parameters
    ----------
    files : iterable of str
        Paths of the recordings.
    name, combined
        As for `write_tables`.

    Raises
    ------
    InputError
        If the name of a table is longer than that of a file can be.
    """
    room = annotations.FORMATS[name]
    most = MOST_BYTES_OF_NAME - len(room.SUFFIX)
    sizes = {} if combined else {file: len(os.fsencode(Path(file).name)) for file in files}
    too_long = [file for file, size in sizes.items() if size > most]
    if too_long:
        instead = (
            "give --combined for one table of all" if room.HOLDS_SEVERAL_FILES else f"leave {name} out of --formats"
        )
        raise InputError(
            f"{counted(len(too_long), 'recording has a name', 'recordings have names')} too long for a table of "
            f"{name}, which adds {room.SUFFIX}: expected at most {most} bytes, found {sizes[too_long[0]]} in "
            f"{printable(too_long[0])}; rename the recording, or {instead}"
        )


def write_tables(
    folder: Path,
    name: str,
    recordings: Iterable[tuple[str, float, list[Annotation]]],
    raw_dir: Path,
    top_hz: float,
    combined: bool,
) -> int:
    """Write the detections in a format that another program reads; return the number of tables.

    Parameters
    ----------
    folder : Path
        Tables go into its subfolder `name`, in folders like those of the recordings.
    name : str
        Of `annotations.FORMATS`.
    recordings : iterable of (str, float, list of Annotation)
        Path, length in s and detections of each recording.
    raw_dir : Path
    top_hz : float
        Highest frequency that the model hears.
    combined : bool
        One table for all recordings.
    """
    room, n = annotations.FORMATS[name], 0
    for table_name, some in _tables(recordings, combined):
        path = folder / name / f"{table_name}{room.SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        durations_s = {file: duration_s for file, duration_s, _ in some}
        room.write(path, [row for *_, found in some for row in found], durations_s, raw_dir.absolute(), top_hz)
        n += 1
    return n


def _tables(recordings: Iterable[tuple], combined: bool) -> Iterator[tuple[str, list[tuple]]]:
    if combined:
        yield COMBINED_NAME, list(recordings)
    else:
        yield from ((recording[0], [recording]) for recording in recordings)
