"""Store decoded recordings as PCM in a spool folder, then cut them into clips in Parquet parts.

The functions here are the tasks of stage 01's worker processes. Each task can be killed at any moment and repeated: a
PCM file is valid once its marker exists, and the marker is renamed into place last.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mutagen
import numpy as np
import soundfile
import soxr

from utils.core.errors import InputError, machine_fault
from utils.core.files import BROKEN, read_json, sha256_of_file, sha256_of_lines
from utils.data import audio, clips, containers, landmarks, recorders, sources, tags
from utils.data.recordings import Skipped
from utils.data.windows import Window

MARKER_SUFFIX = ".json"
GLUED = "the AudioMoth's trigger left out silent sections: times in it are not times of day"


@functools.cache
def decoded_by() -> str:
    """Name the versions that decode: the last bit of PCM may differ between them, so PCM of others is not reused."""
    import av  # loaded only for decoding: see `sources`

    modules = audio, sources, containers, tags, recorders, landmarks
    ours = sha256_of_lines(sha256_of_file(Path(module.__file__)) for module in modules)[:12]
    ffmpeg = f"FFmpeg {av.ffmpeg_version_info} (PyAV {av.__version__})"
    others = f"libsndfile {soundfile.__libsndfile_version__}, {ffmpeg}, soxr {soxr.__version__}"
    return f"{others}, mutagen {mutagen.version_string}, our code {ours}"


@dataclass(frozen=True)
class Listed:
    """A sound file as it was listed; if it changes, it is decoded again.

    Attributes
    ----------
    path : str
        Path relative to the folder of recordings.
    size, mtime_ns : int
        Size in bytes, and time of the last change.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Spooled:
    """A sound file whose PCM is in a spool folder.

    Attributes
    ----------
    path : str
        Path relative to the folder of recordings.
    n_samples : int
        Number of samples at the target rate.
    sha256 : str
        Digest of the PCM: int16, little-endian.
    source_rate_hz : int
    channel : str
        The channel of the file; see `audio.Decoded`.
    warnings : tuple of str
    tags : Tags
        Data on the recording from the tags of the file.
    start : Start
        Start time of the recording.
    peaks : str
        Peaks of the spectrum, for `near_copies`; see `landmarks`.
    """

    path: str
    n_samples: int
    sha256: str
    source_rate_hz: int
    channel: str
    warnings: tuple[str, ...]
    tags: tags.Tags
    start: recorders.Start
    peaks: str

    @classmethod
    def from_json(cls, value: dict) -> "Spooled":
        """Return a `Spooled` from the JSON of `dataclasses.asdict`."""
        parts = {"tags": tags.Tags(**value["tags"]), "start": recorders.Start(**value["start"])}
        return cls(**{**value, "warnings": tuple(value["warnings"]), **parts})


@dataclass(frozen=True)
class DecodeTask:
    """Files to decode one after the other; see `decode_files`."""

    raw_dir: Path
    spool_dir: Path
    sample_rate_hz: int
    channel: str
    files: tuple[Listed, ...]


def decode_files(task: DecodeTask) -> list[Spooled | Skipped]:
    """Decode files into the spool folder, or reuse the finished files of a killed attempt.

    Returns
    -------
    list of Spooled or Skipped
        Results in the order of ``task.files``.
    """
    return [_decode_file(task, file) for file in task.files]


def _decode_file(task: DecodeTask, file: Listed) -> Spooled | Skipped:
    pcm_path = task.spool_dir / pcm_name(file.path)
    marker_path = pcm_path.with_suffix(MARKER_SUFFIX)
    how = {"rate": task.sample_rate_hz, "channel": task.channel, "by": decoded_by()}
    made_from = {"size": file.size, "mtime_ns": file.mtime_ns, **how}
    finished = _read_marker(marker_path, pcm_path, made_from)
    if finished is not None:
        return finished
    marker_path.unlink(missing_ok=True)
    if pcm_path.is_file():
        pcm_path.unlink()  # do not write into it: an old result may hold a link to this file
    with pcm_path.open("wb", buffering=0) as pcm_file:
        digest = hashlib.sha256()

        def sink(pcm: np.ndarray) -> None:
            data = memoryview(pcm.astype("<i2", copy=False)).cast("B")
            digest.update(data)
            if not pcm.any():  # keep hours of zeros in a sparse file as a hole
                pcm_file.seek(len(data), os.SEEK_CUR)
                return
            while data:  # an unbuffered write may write only a part; the next one then raises the error
                data = data[pcm_file.write(data) :]

        def new_sink() -> audio.Sink:
            nonlocal digest
            digest = hashlib.sha256()
            if pcm_file.tell():
                pcm_file.seek(0)
                pcm_file.truncate()
            return sink

        try:
            decoded = audio.decode(task.raw_dir / file.path, task.sample_rate_hz, new_sink, task.channel)
            pcm_file.truncate(pcm_file.tell())  # includes a hole at the end in the file
        except audio.Undecodable as reason:
            pcm_path.unlink()
            check_unchanged(task.raw_dir, file)
            return Skipped(file.path, str(reason))
    try:
        found = tags.read_tags(task.raw_dir / file.path)
    except OSError as error:
        raise machine_fault(task.raw_dir / file.path, error) from error
    start = recorders.read_start(task.raw_dir / file.path)
    with pcm_path.open("rb") as pcm_file:
        peaks = landmarks.find_peaks(pcm_file)
    warnings = decoded.warnings
    if start.is_glued:
        warnings += (GLUED,)
    spooled = Spooled(
        *(file.path, decoded.n_samples, digest.hexdigest()),
        *(decoded.source_rate_hz, decoded.channel, warnings, found, start, peaks),
    )
    check_unchanged(task.raw_dir, file)
    # Not flushed to disk: after a crash of the machine, the checksum finds missing data.
    partial = marker_path.with_suffix(".partial")
    partial.write_text(json.dumps({"made_from": made_from, "spooled": asdict(spooled)}), encoding="utf-8")
    partial.replace(marker_path)
    return spooled


def check_unchanged(raw_dir: Path, file: Listed) -> None:
    """Raise `InputError` if a file differs from the listed one: half of it may have been decoded before it changed."""
    path = raw_dir / file.path
    try:
        status = path.stat()
    except OSError as error:
        raise machine_fault(path, error) from error
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise InputError(
            f"{path} changed while it was read ({file.size} bytes before, {status.st_size} now): is it still being "
            "copied or recorded? When that has finished, run the same command again"
        )


def _read_marker(marker_path: Path, pcm_path: Path, made_from: dict) -> Spooled | None:
    """Return the result of an earlier attempt, if it is whole and made from the same file."""
    try:
        marker = read_json(marker_path, dict, "")
        spooled = Spooled.from_json(marker["spooled"])
        if marker["made_from"] == made_from and sha256_of_file(pcm_path) == spooled.sha256:
            return spooled
    except BROKEN:
        pass  # killed before it was finished
    return None


def pcm_name(path: str) -> str:
    """Return the name, in a spool folder, of the PCM file of the sound file at `path`."""
    return f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.pcm"


@dataclass(frozen=True)
class Stretch:
    """Consecutive clips of one sound file.

    Attributes
    ----------
    source_path, recording_id, label : str
    label_id : int
    n_samples : int
        Length of the file.
    first_index : int
        ``clip_index`` of the first clip; the numbers continue over the files of a recording.
    cuts : tuple of (int, int)
        First sample and length of every clip.
    groups, splits : tuple of str
        Group and split of every clip.
    windows : tuple of (int, Window), optional
        Label id and labels of every clip. None if each has the label of the file and no other.
    """

    source_path: str
    recording_id: str
    label: str
    label_id: int
    first_index: int
    cuts: tuple[tuple[int, int], ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    windows: tuple[tuple[int, Window], ...] | None = None

    def __len__(self) -> int:
        return len(self.cuts)

    def between(self, start: int, stop: int) -> "Stretch":
        """Return the clips from `start` to `stop`, counted within this object."""
        return Stretch(
            self.source_path,
            self.recording_id,
            self.label,
            self.label_id,
            self.first_index + start,
            self.cuts[start:stop],
            self.groups[start:stop],
            self.splits[start:stop],
            None if self.windows is None else self.windows[start:stop],
        )

    def labels_of(self, i: int) -> tuple[str, ...]:
        """Return what a clip, counted within this object, counts for; see `Window.counts_for`."""
        return (self.label,) if self.windows is None else self.windows[i][1].counts_for


@dataclass(frozen=True)
class PartTask:
    """A part of the data set to write from the PCM of its `Stretch` objects; see `write_part`."""

    path: Path
    sample_rate_hz: int
    clip_seconds: float
    stretches: tuple[Stretch, ...]
    pcm_paths: tuple[Path, ...]


def write_part(task: PartTask) -> int:
    """Cut a part's clips from the spooled PCM and write them; return their number."""
    return clips.write_part(task.path, _rows(task), task.sample_rate_hz, task.clip_seconds)


def _rows(task: PartTask) -> Iterator[dict]:
    clip_samples = round(task.clip_seconds * task.sample_rate_hz)
    for stretch, pcm_path in zip(task.stretches, task.pcm_paths, strict=True):
        with pcm_path.open("rb") as file:
            for i, (start, length) in enumerate(stretch.cuts):
                file.seek(2 * start)
                samples = np.frombuffer(file.read(2 * length), "<i2")
                if len(samples) != length:
                    raise InputError(
                        f"{file.name} is shorter than before: another program changes {pcm_path.parent}; "
                        "run the same command again"
                    )
                index = stretch.first_index + i
                label, label_id, lists = stretch.label, stretch.label_id, {}
                if stretch.windows is not None:
                    label_id, window = stretch.windows[i]
                    label, lists = window.label, {"labels": window.labels, "secondary_labels": window.secondary}
                yield {
                    "clip_id": f"{stretch.recording_id}:{index}",
                    "recording_id": stretch.recording_id,
                    "group": stretch.groups[i],
                    "source_path": stretch.source_path,
                    "clip_index": index,
                    "start_s": start / task.sample_rate_hz,
                    "duration_s": length / task.sample_rate_hz,
                    "label": label,
                    "label_id": label_id,
                    "split": stretch.splits[i],
                    "audio": audio.pad_by_repetition(samples, clip_samples),
                    **lists,
                }
