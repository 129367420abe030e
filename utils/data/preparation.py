"""The steps of stage 01, from found recordings to written clips.

Worker processes decode and write (`spool`). The choices here depend on the recordings and the settings alone,
never on the order in which files were decoded.
"""

import itertools
import logging
import os
import posixpath
import shutil
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from utils.core import runs, workers
from utils.core.errors import FAULTS_OF_A_FILE, InputError, machine_fault
from utils.core.files import read_json, sha256_of_lines, write_csv, write_json
from utils.core.text import counted, formulas, printable, some
from utils.data import audio, clips, near_copies, sources, splits, spool
from utils.data.recordings import Skipped, SourceFile
from utils.data.recordists import similar_names
from utils.data.splits import assign_folds, assign_splits, group_keys, merge_groups
from utils.data.windows import Window

SCRATCH_NAME = ".work"
PLAN_NAME = "plan.json"
SIMILAR_NAME = "similar_recordists.csv"
NEAR_COPIES_NAME = "near_copies.csv"
CLIPS_PER_PART = 1024
BYTES_PER_PART = 2**26  # of PCM
FILES_PER_TASK = 8
BYTES_PER_TASK = 2**24  # of source files
TASKS_PER_WORKER = 16  # at least, if there are enough files: then all workers end at about the same time
NAMED_IN_LOG = 20
SILENCE = "(silence)"  # in messages
HEADERS_READ = 20  # of the largest files of a suffix, and as many of all, to estimate the length of the others
COMPRESSED_BYTES_PER_S = 16_000.0  # 128 kbit/s, of formats whose headers give no length
CLIPS_PER_PCM = 0.8  # bytes; measured 0.6 to 0.75
SURE_SHARE = 0.8  # of an estimate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipFormat:
    """Length and sample rate of clips, and the shortest sound that gives one.

    Attributes
    ----------
    sample_rate_hz : int
    clip_seconds : float
        Length of a clip.
    min_seconds : float
        Recordings shorter than this give no clip.
    min_remainder_seconds : float
        Nor do rests after the last whole clip of a recording that are shorter than this.
    remainder : {"pad", "drop"}
        Whether the end of a recording that does not fill a clip is repeated or left out.
    """

    sample_rate_hz: int
    clip_seconds: float
    min_seconds: float
    min_remainder_seconds: float
    remainder: str

    @property
    def clip_samples(self) -> int:
        """Samples of a clip."""
        return round(self.clip_seconds * self.sample_rate_hz)

    def cut(self, n_samples: int) -> list[tuple[int, int]]:
        """Return start and length, in samples, of the clips of a recording."""
        least = [round(seconds * self.sample_rate_hz) for seconds in (self.min_seconds, self.min_remainder_seconds)]
        return audio.cut(n_samples, self.clip_samples, *least, self.remainder)


def list_files(raw_dir: Path, paths: Sequence[str]) -> tuple[dict[str, spool.Listed], list[Skipped]]:
    """Return size and time of every file, by path, and the files that cannot be read.

    Raises
    ------
    InputError
        If a file that was found is gone, or the machine cannot read it.
    """
    listed, vanished = {}, []
    for path in paths:
        try:
            status = (raw_dir / path).stat()
        except OSError as error:
            if error.errno not in FAULTS_OF_A_FILE:
                raise machine_fault(raw_dir / path, error) from error
            vanished.append(Skipped(path, f"cannot be read: {error.strerror}"))
            continue
        listed[path] = spool.Listed(path, status.st_size, status.st_mtime_ns)
    return listed, vanished


def listing_sha256(listed: Iterable[spool.Listed]) -> str:
    """Return one digest for the names, sizes and times of files."""
    return sha256_of_lines(f"{file.size} {file.mtime_ns} {file.path}" for file in listed)


@dataclass(frozen=True)
class Decoded:
    """Results of decoding sound files, by this process or by others.

    Attributes
    ----------
    sounds : dict of str to Spooled
        By path.
    spool_dirs : dict of str to Path
        Folder that holds a sound's PCM, by path of the sound file.
    undecodable : list of Skipped
        Sorted by path.
    """

    sounds: dict[str, spool.Spooled]
    spool_dirs: dict[str, Path]
    undecodable: list[Skipped]


@dataclass(frozen=True)
class Recorded:
    """A sound file that gives clips, its decoded sound, and the first sample and length of each clip.

    `place` is its place in a sound that other files share; None if no other file does. `windows` has the labels of each
    clip; None if all have the label of the file.
    """

    file: SourceFile
    sound: spool.Spooled
    cuts: tuple[tuple[int, int], ...]
    place: near_copies.Place | None = None
    windows: tuple[Window, ...] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the clips, by name."""
        if self.windows is None:
            return (self.file.label,)
        return tuple(sorted({label for window in self.windows for label in window.labels}))


# --------------------------------------------------------------------------------------- what is left out


def drop_rare_labels(files: Sequence[SourceFile], min_recordings: int) -> tuple[list[SourceFile], list[Skipped]]:
    """Leave out labels with fewer than `min_recordings` recordings, by name in the log."""
    recordings = defaultdict(set)
    for file in files:
        # Before the tags are read, each path counts as one recording.
        recordings[file.label].add(file.path if file.is_named_by_path else file.recording_id)
    rare = {label: len(ids) for label, ids in sorted(recordings.items()) if len(ids) < min_recordings}
    if rare:
        names = some([f"{label} ({n})" for label, n in rare.items()], NAMED_IN_LOG)
        n_rare = counted(len(rare), "label has", "labels have")
        log.warning("%s fewer than %d recordings, left out: %s", n_rare, min_recordings, names)
    reason = "its label {} has {}, fewer than --min_recordings {}"
    skipped = [
        Skipped(file.path, reason.format(file.label, counted(rare[file.label], "recording"), min_recordings))
        for file in files
        if file.label in rare
    ]
    return [file for file in files if file.label not in rare], skipped


def check_two_labels(
    labels: Collection[str], found: Collection[str], left_out: Sequence[Skipped], raw_dir: Path, min_recordings: int
) -> None:
    """Raise `InputError` unless two labels are left of those that were found."""
    if len(labels) >= 2:
        return
    rest = f"only {min(labels)} is" if labels else "no label is"
    advice = "lower --min_recordings or give more recordings" if len(found) > len(labels) else "give more recordings"
    first = f"; the first of {len(left_out)} left out, {_first(left_out)}" if left_out else ""
    raise InputError(
        f"{raw_dir}: {rest} left with {counted(min_recordings, 'recording')} or more; two labels are needed: "
        f"{advice}{first}"
    )


def check_any_left(left: Collection, skipped: Sequence[Skipped], raw_dir: Path) -> None:
    """Raise `InputError` if no recording is left."""
    if not left:
        raise InputError(
            f"{raw_dir}: no recording is left of {len(skipped)}, all are skipped; the first, {_first(skipped)}"
        )


def _first(skipped: Sequence[Skipped]) -> str:
    return f"{skipped[0].file}: {skipped[0].reason}"


def find_near_copies(
    output_dir: Path,
    sample_rate_hz: int,
    pool_map: workers.Map,
    recorded: Sequence[Recorded],
    spool_dirs: Mapping[str, Path],
) -> list[Recorded]:
    """Find the place of each file in a sound that several share; write ``near_copies.csv`` if there are any."""
    copies = near_copies.find([r.sound for r in recorded], spool_dirs, sample_rate_hz, pool_map)
    if not copies:
        return list(recorded)
    path = output_dir / NEAR_COPIES_NAME
    rows = [[c.path, c.other, f"{c.lag / sample_rate_hz:.4f}", f"{c.correlation:.3f}"] for c in copies]
    write_csv(path, ["file", "same_sound_as", "lag_s", "correlation"], rows)
    places = near_copies.places(copies)
    log.info("%d files share sound with other files; %s lists the pairs", len(places), path)
    return [replace(r, place=places.get(r.file.path)) for r in recorded]


def drop_contradictions(recorded: Sequence[Recorded]) -> tuple[list[Recorded], list[Skipped]]:
    """Leave out files with the same sound under two labels; log files with the same sound under one label.

    Files that share less than a quarter of the shorter one are kept: each label may be right for the sound that the
    other file lacks.
    """
    same = defaultdict(list)
    for r in recorded:
        if r.place is not None:
            same[r.place.sound].append(r)
    skipped = {}
    twice = []
    for sharers in same.values():
        labels = np.array([r.file.label for r in sharers])
        lengths = np.array([r.sound.n_samples for r in sharers])
        starts = np.array([r.place.start for r in sharers])
        stops = starts + lengths
        for i, r in enumerate(sharers):
            shared = np.minimum(stops, stops[i]) - np.maximum(starts, starts[i])
            others = np.flatnonzero(
                (labels != labels[i]) & (shared >= near_copies.LEAST_SHARE * np.minimum(lengths, lengths[i]))
            )
            if len(others):
                other = sharers[others[0]].file
                reason = f"the same sound as {other.path}, under another label ({r.file.label}, {other.label})"
                skipped[r.file.path] = Skipped(r.file.path, reason)
        kept = [r.file.path for r in sharers if r.file.path not in skipped]
        if len(kept) > 1:
            twice.append(some(kept))
    report(twice, "the same sound, kept on one side of the split")
    return [r for r in recorded if r.file.path not in skipped], list(skipped.values())


def report_odd_sounds(sounds: Mapping[str, spool.Spooled]) -> None:
    """Warn of sounds that differ from the headers of their files, but are used."""
    report([f"{path}: {text}" for path, sound in sorted(sounds.items()) for text in sound.warnings], "used as it is")


def report(lines: Sequence[str], what: str) -> None:
    """Warn of `what`, one log line for each of the first `lines`."""
    for line in lines[:NAMED_IN_LOG]:
        log.warning("%s: %s", what, printable(line))
    if len(lines) > NAMED_IN_LOG:
        log.warning("%s: %d more", what, len(lines) - NAMED_IN_LOG)


# ------------------------------------------------------------------------------------------------ decoding


def check_scratch(
    raw_dir: Path, spool_dir: Path, sample_rate_hz: int, files: Sequence[spool.Listed], writes_clips: bool
) -> None:
    """Compare the space that decoded sound needs with the free space, before decoding.

    Parameters
    ----------
    raw_dir, spool_dir : Path
        The spool folder exists; its files count as free space.
    sample_rate_hz : int
        Of the decoded sound.
    files : sequence of Listed
        To decode.
    writes_clips : bool
        Whether the clips are written there too.

    Raises
    ------
    InputError
        If the sound does not fit, with a margin for the error of the estimate.
    """
    seconds = estimate_seconds(raw_dir, files)
    needed = 2 * sample_rate_hz * sum(seconds.values()) * (1 + CLIPS_PER_PCM * writes_clips)
    free = shutil.disk_usage(spool_dir).free + sum(entry.stat().st_size for entry in os.scandir(spool_dir))
    if needed * SURE_SHARE <= free and needed < free:
        return
    longest = max(seconds, key=seconds.__getitem__)
    status = (raw_dir / longest).stat()
    text = (
        f"{spool_dir}: about {sum(seconds.values()) / 3600:.3g} h of sound need {needed / 1e9:.3g} GB here during "
        f"the run, and {free / 1e9:.3g} GB are free (a quota may allow less). The longest file is {longest}: about "
        f"{seconds[longest] / 3600:.3g} h in {status.st_size:,} bytes, of which {512 * status.st_blocks:,} are on disk"
    )
    if needed * SURE_SHARE > free:
        raise InputError(f"{text}; free some space, choose an --output_dir on a larger disk, or leave such files out")
    log.warning("%s", text)


def estimate_seconds(raw_dir: Path, files: Sequence[spool.Listed]) -> dict[str, float]:
    """Estimate the length of every file from its size and from the headers of some files with the same suffix."""
    by_suffix = defaultdict(list)
    for file in files:
        by_suffix[posixpath.splitext(file.path)[1].lower()].append(file)
    seconds = {}
    for alike in by_suffix.values():
        alike.sort(key=lambda file: (-file.size, file.path))
        asked = {*alike[:HEADERS_READ], *alike[:: 1 + len(alike) // HEADERS_READ]}
        known = {file: length for file in asked if (length := sources.promised_seconds(raw_dir / file.path))}
        n_bytes = sum(file.size for file in known)
        rate = sum(known.values()) / n_bytes if n_bytes else 0.0 if known else 1 / COMPRESSED_BYTES_PER_S
        seconds |= {file.path: known.get(file, file.size * rate) for file in alike}
    return seconds


def decode(
    raw_dir: Path,
    spool_dir: Path,
    sample_rate_hz: int,
    channel: str,
    pool_map: workers.Map,
    num_workers: int,
    files: Sequence[spool.Listed],
) -> Decoded:
    """Decode files into a spool folder; `channel` as for `audio.decode`."""
    # Absolute, because workers need not run in the same folder.
    raw_dir, spool_dir = raw_dir.absolute(), spool_dir.absolute()
    spool_dir.mkdir(exist_ok=True)
    tasks = [
        spool.DecodeTask(raw_dir, spool_dir, sample_rate_hz, channel, tuple(batch))
        for batch in batches(files, num_workers)
    ]
    results = (result for batch in pool_map(spool.decode_files, tasks) for result in batch)
    results = list(runs.progress(results, len(files), "decoding", "files"))
    sounds = {result.path: result for result in results if isinstance(result, spool.Spooled)}
    undecodable = sorted((r for r in results if isinstance(r, Skipped)), key=lambda skip: skip.file)
    return Decoded(sounds, dict.fromkeys(sounds, spool_dir), undecodable)


def batches(files: Sequence[spool.Listed], num_workers: int) -> Iterator[list[spool.Listed]]:
    """Divide files into tasks: large files first and alone, so that the workers end at about the same time."""
    limit = min(BYTES_PER_TASK, sum(file.size for file in files) / (TASKS_PER_WORKER * num_workers))
    batch, n_bytes = [], 0
    for file in sorted(files, key=lambda file: (-file.size, file.path)):
        batch.append(file)
        n_bytes += file.size
        if n_bytes >= limit or len(batch) == FILES_PER_TASK:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def cut(
    clip_format: ClipFormat, decoded: Sequence[tuple[SourceFile, spool.Spooled]]
) -> tuple[list[Recorded], list[Skipped]]:
    """Cut every file into clips; return also the files that give none."""
    recorded, too_short = [], []
    for file, sound in decoded:
        cuts = clip_format.cut(sound.n_samples)
        if cuts:
            recorded.append(Recorded(file, sound, tuple(cuts)))
            continue
        least_s, flag = clip_format.min_seconds, "--min_seconds"
        if clip_format.remainder == "drop":
            least_s, flag = clip_format.clip_seconds, "--clip_seconds with --remainder drop"
        length = f"{sound.n_samples / clip_format.sample_rate_hz:.6g} s"
        reason = f"too short: {length}, less than {least_s:g} s ({flag})"
        too_short.append(Skipped(file.path, "; ".join([reason, *sound.warnings])))
    return recorded, too_short


def report_short_clips(clip_format: ClipFormat, recorded: Sequence[Recorded]) -> None:
    """Log how many short clips were filled, how to avoid this, and how much sound is left out."""
    lengths = [length for r in recorded for _, length in r.cuts if length < clip_format.clip_samples]
    n_clips = sum(len(r.cuts) for r in recorded)
    if lengths:
        log.info(
            "%d of %d clips are shorter than %g s (median %.2f s) and are repeated to this length; to avoid this give "
            "--remainder drop, a shorter --clip_seconds, or a longer --min_remainder_seconds (now %g)",
            *(len(lengths), n_clips, clip_format.clip_seconds),
            *(statistics.median(lengths) / clip_format.sample_rate_hz, clip_format.min_remainder_seconds),
        )
    # Not `r.cuts`: clips that are left out for their labels are no rests.
    rests = [r.sound.n_samples - sum(clip_format.cut(r.sound.n_samples)[-1]) for r in recorded]
    if n_left_out := sum(rest > 0 for rest in rests):
        log.info(
            "the rests of %s after the last clip are left out: %.2f s in all",
            *(counted(n_left_out, "recording"), sum(rests) / clip_format.sample_rate_hz),
        )


# ------------------------------------------------------------------------------------------ split and clips


def split(
    recorded: Sequence[Recorded],
    split_by: str,
    val_fraction: float,
    test_fraction: float,
    n_folds: int | None,
    seed: int,
) -> tuple[list[spool.Stretch], list[str]]:
    """Give every clip its index, group and split, or its fold if `n_folds` is given.

    Returns
    -------
    stretches : list of Stretch
        The clips by file.
    warnings : list of str
        Labels that are not in every split, and empty splits.
    """
    label_ids = {label: i for i, label in enumerate(all_labels(recorded))} | {"": clips.NO_LABEL_ID}
    by_clip = split_by == "clip"
    clip_samples = max(length for r in recorded for _, length in r.cuts)
    next_index: Counter[str] = Counter()
    first_indices, keys, strata = [], [], []
    for r in recorded:
        first = next_index[r.file.recording_id]
        next_index[r.file.recording_id] += len(r.cuts)
        first_indices.append(first)
        for i in range(len(r.cuts)) if by_clip else [0]:
            clip_id = f"{r.file.recording_id}:{first + i}"
            owner = r.file.recordist, r.file.recording_id
            own_keys = group_keys(split_by, r.file.label, *owner, r.sound.sha256, clip_id, r.file.origin)
            keys.append(own_keys + near_copies.keys(r.place, r.cuts[i] if by_clip else None, clip_samples))
            strata.append(_strata(r, i if by_clip else None))
    groups = merge_groups(keys)
    counted = [(group, *item) for group, own in zip(groups, strata, strict=True) for item in own.items()]
    columns = [list(column) for column in zip(*counted, strict=True)]  # groups, labels, numbers of clips
    if n_folds is None:
        split_of, warnings = assign_splits(*columns, val_fraction, test_fraction, seed)
    else:
        split_of, warnings = assign_folds(*columns, n_folds, seed)
    stretches = []
    remaining = iter(groups)
    for r, first in zip(recorded, first_indices, strict=True):
        n = len(r.cuts)
        own = tuple(next(remaining) for _ in range(n)) if by_clip else (next(remaining),) * n
        label_id = label_ids[r.file.label]
        splits = tuple(split_of[group] for group in own)
        several = None if r.windows is None else tuple((label_ids[window.label], window) for window in r.windows)
        stretch = spool.Stretch(
            *(r.file.path, r.file.recording_id, r.file.label, label_id, first, r.cuts, own, splits, several)
        )
        stretches.append(stretch)
    return stretches, warnings


def all_labels(recorded: Sequence[Recorded]) -> list[str]:
    """Return the labels of a data set, by label id."""
    return sorted({label for r in recorded for label in r.labels})


def _strata(r: Recorded, clip: int | None) -> Counter[str]:
    """Return the number of clips by label, of a file or of one of its clips; silence counts as a label.

    So do clips with secondary labels alone, which may or may not be silent.
    """
    if r.windows is None:
        return Counter({r.file.label: len(r.cuts) if clip is None else 1})
    windows = r.windows if clip is None else [r.windows[clip]]
    return Counter(label or SILENCE for window in windows for label in window.counts_for)


def who_was_heard(
    recorded: Sequence[Recorded], stretches: Sequence[spool.Stretch], n_folds: int | None
) -> splits.Heard:
    """Count the test clips whose recordist is in train; with folds, those of each test fold."""
    heard = splits.Heard()
    for fold in range(1, (n_folds or 1) + 1):
        items = []
        for r, stretch in zip(recorded, stretches, strict=True):
            recordists = [] if r.file.recordist is None else [r.file.recordist]
            for name, n_clips in Counter(stretch.splits).items():
                own = name if n_folds is None else splits.split_in_fold(name, fold, n_folds)
                items.append((own, r.labels, recordists, n_clips))
        heard += splits.who_was_heard(items)
    return heard


def plan_parts(stretches: Sequence[spool.Stretch], clips_per_part: int) -> list[tuple[spool.Stretch, ...]]:
    """Divide clips, in their order, into parts of `clips_per_part`; the last one may have fewer."""
    parts: list[list[spool.Stretch]] = []
    room = 0
    for stretch in stretches:
        start = 0
        while start < len(stretch):
            if room == 0:
                parts.append([])
                room = clips_per_part
            piece = stretch.between(start, start + room)
            parts[-1].append(piece)
            start += len(piece)
            room -= len(piece)
    return [tuple(part) for part in parts]


def write_parts(
    output_dir: Path,
    clip_format: ClipFormat,
    pool_map: workers.Map,
    recorded: Sequence[Recorded],
    stretches: Sequence[spool.Stretch],
    spool_dirs: Mapping[str, Path],
) -> int:
    """Write the clips; keep the parts of an earlier attempt if it planned the same ones. Return their number."""
    clip_bytes = 2 * clip_format.clip_samples
    parts = plan_parts(stretches, max(1, min(CLIPS_PER_PART, BYTES_PER_PART // clip_bytes)))
    output_dir = output_dir.absolute()
    clip_kind = clip_format.sample_rate_hz, clip_format.clip_seconds
    tasks = []
    for number, part in enumerate(parts):
        paths = tuple(spool_dirs[stretch.source_path] / spool.pcm_name(stretch.source_path) for stretch in part)
        tasks.append(spool.PartTask(output_dir / clips.part_name(number), *clip_kind, part, paths))
    versions = [f"pyarrow {pa.__version__}, schema {clips.SCHEMA_VERSION}", f"{len(parts)} parts"]
    pcm_sha256 = {r.file.path: r.sound.sha256 for r in recorded}
    content = (f"{pcm_sha256[stretch.source_path]} {stretch}" for part in parts for stretch in part)
    plan = {"sha256": sha256_of_lines(itertools.chain(versions, content))}
    plan_path = output_dir / SCRATCH_NAME / PLAN_NAME
    if not _is_planned(plan_path, plan):
        for path in output_dir.glob(clips.PART_NAMES):
            path.unlink()
        write_json(plan_path, plan)
    missing = [task for task in tasks if not task.path.exists()]
    written = pool_map(spool.write_part, missing)
    for _ in runs.progress(written, len(tasks), "writing", "parts", len(tasks) - len(missing)):
        pass
    return len(parts)


def _is_planned(path: Path, plan: dict) -> bool:
    """Return whether an earlier attempt saved this plan; a damaged file counts as no plan."""
    try:
        return read_json(path, dict, "") == plan
    except InputError:
        return False


# -------------------------------------------------------------------------------------------------- tables


def write_skipped(output_dir: Path, skipped: Sequence[Skipped]) -> None:
    """Write ``skipped.csv``: every file that gives no clip, with the reason."""
    write_csv(output_dir / "skipped.csv", ["file", "reason"], [[skip.file, skip.reason] for skip in skipped])


def warn_of_formulas(recorded: Sequence[Recorded], skipped: Sequence[Skipped]) -> None:
    """Warn of texts that a spreadsheet may run as formulas when it opens a CSV of this data set."""
    files = [r.file for r in recorded]
    texts = [f.recording_id for f in files] + all_labels(recorded)
    texts += [text for f in files for text in (f.recordist, f.licence, f.collection) if text]
    copies = (r.file.path for r in recorded if r.place is not None)  # they stand in near_copies.csv
    found = formulas([*texts, *copies, *(skip.file for skip in skipped)])
    if found:
        log.warning(
            "%d ids, labels, recordists, licences, collections or files begin with =, +, - or @: a spreadsheet may "
            "run them as formulas when it opens a CSV; rename them, or import these columns as text: %s",
            *(len(found), printable(some(found, 5))),
        )


def write_similar_recordists(output_dir: Path, recorded: Sequence[Recorded]) -> None:
    """Write ``similar_recordists.csv`` if any two names may be one person; nothing is merged."""
    counts = Counter(r.file.recordist for r in recorded if r.file.recordist is not None)
    pairs = similar_names(counts)
    if not pairs:
        return
    path = output_dir / SIMILAR_NAME
    write_csv(path, ["recordist", "same_as"], [[one, other] for one, other, _ in pairs])
    lines = [
        f"{one} ({counted(counts[one], 'file')}), {other} ({counts[other]}): {reason}" for one, other, reason in pairs
    ]
    report(lines, "recordists with similar names, treated as two")
    log.warning(
        "%s lists %s of recordists with similar names. If a pair is one person, recordings by that person can be "
        "on both sides of the split: copy the file, delete the rows of two different persons, and give it with "
        "--same_recordist",
        *(path, counted(len(pairs), "pair")),
    )


def write_split_report(
    output_dir: Path, clip_samples: int, stretches: Sequence[spool.Stretch], n_folds: int | None
) -> None:
    """Write ``split_report.csv``: recordings, clips, clips that were filled, and groups per label and split or fold.

    A clip counts for all labels of `Window.counts_for`.
    """
    n_clips: Counter[tuple[str, str]] = Counter()
    n_short: Counter[tuple[str, str]] = Counter()
    recordings, groups = defaultdict(set), defaultdict(set)
    for stretch in stretches:
        for i, ((_, length), group, name) in enumerate(zip(stretch.cuts, stretch.groups, stretch.splits, strict=True)):
            for cell in ((label, name) for label in stretch.labels_of(i)):
                n_clips[cell] += 1
                n_short[cell] += length < clip_samples
                recordings[cell].add(stretch.recording_id)
                groups[cell].add(group)
    labels = sorted({label for label, _ in n_clips})
    cells = [(label, name) for label in labels for name in splits.names_of_parts(n_folds)]
    rows = [[*cell, len(recordings[cell]), n_clips[cell], n_short[cell], len(groups[cell])] for cell in cells]
    columns = ["label", "split", "recordings", "clips", "short_clips", "groups"]
    write_csv(output_dir / "split_report.csv", columns, rows)
