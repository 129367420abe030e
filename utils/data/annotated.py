"""Labels of clips in stage 01: from tables of labels with times, and from the other species that metadata names."""

import functools
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core.files import sha256_of_lines
from utils.core.text import counted, printable, some
from utils.data.annotations import Annotation, read_all
from utils.data.preparation import NAMED_IN_LOG, Recorded, report
from utils.data.recording_ids import tidy
from utils.data.recordings import Skipped, SourceFile
from utils.data.windows import Window, are_within, labels_of_windows

BACKGROUND = ("noise", "silence", "background", "no_call", "nocall")
PAST_THE_END_S = 0.1  # decoders differ by a few hundredths of a second in the length of an mp3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotations:
    """The labels with times of a data set, and how windows get them.

    Attributes
    ----------
    by_name : dict of str to list of Annotation
        Labels that are classes, by the name that the tables have for their file.
    names : list of str
        All files that the tables cover.
    skipped : list of Skipped
        Rows and tables that are left out.
    min_overlap_s : float
        A window has a label that overlaps it by this or more.
    heard : dict of str to list of (float, float)
        The only stretches that are known, in seconds, by the name of the file; see `annotations.Table`.
    sha256 : str
        Digest of the content of all tables.
    named_after : frozenset of str
        Those of `names` that are the name of a table.
    """

    by_name: dict[str, list[Annotation]]
    names: list[str]
    skipped: list[Skipped]
    min_overlap_s: float
    heard: dict[str, list[tuple[float, float]]]
    sha256: str
    named_after: frozenset[str] = frozenset()

    def are_known(self, file: SourceFile, bounds: Sequence[tuple[float, float]]) -> list[bool]:
        """Return whether a table tells all that is in each window of a file; `bounds` are in seconds."""
        covering = [name for name in file.names if name in self.covered]
        if any(name not in self.heard for name in covering):
            return [True] * len(bounds)
        return are_within(bounds, (stretch for name in covering for stretch in self.heard[name]))

    @functools.cached_property
    def covered(self) -> frozenset[str]:
        """`names`, to look them up."""
        return frozenset(self.names)

    def of(self, file: SourceFile) -> list[Annotation]:
        """Return the labels of a file, once each."""
        own = (replace(a, file=file.path, score=None) for name in file.names for a in self.by_name.get(name, ()))
        return list(dict.fromkeys(own))


def read(path: Path, label_column: str | None, background: Collection[str], min_overlap_s: float) -> Annotations:
    """Read tables of labels with times; see `annotations.read_all`. Labels of `background` are not classes."""
    table = read_all(path, label_column)
    not_classes = {_plain(name) for name in background}
    by_name, n_background = defaultdict(list), Counter()
    for a in table.annotations:
        label = printable(tidy(a.label))
        if _plain(label) in not_classes:
            n_background[label] += 1
        else:
            by_name[a.file].append(replace(a, label=label))
    n_labels = len({a.label for own in by_name.values() for a in own})
    log.info(
        "%s (%s): %s with times, of %s, in %s; %s without a label; %s of background (%s)",
        *(path, table.format, counted(sum(map(len, by_name.values())), "label"), counted(n_labels, "kind")),
        *(counted(n, "file") for n in (len(by_name), len(table.files) - len(by_name))),
        *(counted(n_background.total(), "row"), ", ".join(sorted(n_background)) or "none"),
    )
    report(table.problems, "left out of the annotations")
    places = [problem.partition(": ") for problem in table.problems]
    skipped = [Skipped(place, reason or "left out of the annotations") for place, _, reason in places]
    digest = sha256_of_lines(
        map(repr, (*table.annotations, *table.files, *table.problems, *sorted(table.heard.items())))
    )
    named_after = frozenset(table.named_after)
    return Annotations(dict(by_name), table.files, skipped, min_overlap_s, table.heard, digest, named_after)


def without_labels(paths: Sequence[str]) -> Annotations:
    """Return tables that cover files and name no label, for files that nobody has labelled."""
    return Annotations({}, [*paths], [], 0.0, {}, sha256_of_lines(paths))


def _plain(label: str) -> str:
    return " ".join(label.casefold().replace("_", " ").split())


def count_recordings(annotations: Annotations, files: Sequence[SourceFile]) -> dict[str, int]:
    """Return the number of recordings of each label, before any is decoded: some may be in no window."""
    recordings = defaultdict(set)
    for file in files:
        for a in annotations.of(file):
            recordings[a.label].add(file.path if file.is_named_by_path else file.recording_id)
    return {label: len(ids) for label, ids in recordings.items()}


def label_windows(
    annotations: Annotations, recorded: Sequence[Recorded], sample_rate_hz: int
) -> tuple[list[Recorded], list[Skipped]]:
    """Return files with the labels of their windows, and the labels that begin after the end of their file."""
    labelled, are_known, skipped, ends_late, n_short = [], [], [], [], 0
    for r in recorded:
        own = annotations.of(r.file)
        duration_s = r.sound.n_samples / sample_rate_hz
        for a in own:
            where = f"{a.label} {f'from {a.start_s:g} s to' if a.end_s > a.start_s else 'at'} {a.end_s:g} s"
            if a.start_s >= duration_s:
                at = f"begins {'after' if a.start_s > duration_s else 'at'} the end of the file ({duration_s:.6g} s)"
                skipped.append(Skipped(r.file.path, f"{where} {at}"))
            elif a.end_s > duration_s + PAST_THE_END_S:
                ends_late.append(f"{r.file.path}: {where} goes past the end of the file ({duration_s:.6g} s)")
            n_short += 0 < a.end_s - a.start_s < annotations.min_overlap_s
        bounds = [(start / sample_rate_hz, (start + length) / sample_rate_hz) for start, length in r.cuts]
        windows = labels_of_windows(bounds, own, annotations.min_overlap_s)
        labelled.append(replace(r, windows=tuple(windows)))
        are_known.append(annotations.are_known(r.file, bounds))
    labelled, unknown = _only(labelled, are_known, "no clip of it lies in reviewed stretches")
    n_left_out = sum(not known for own in are_known for known in own)
    if n_left_out:
        log.info("%s left out: not in reviewed stretches", counted(n_left_out, "clip is", "clips are"))
    skipped += unknown
    report(ends_late, "used up to the end")
    if n_short:
        log.warning(
            "%s shorter than --min_overlap_s %g: secondary, left out of training and scores. To use such labels, lower "
            "--min_overlap_s",
            *(counted(n_short, "label is", "labels are"), annotations.min_overlap_s),
        )
    return labelled, skipped


def drop_contradictions(
    annotations: Annotations, recorded: Sequence[Recorded], sample_rate_hz: int
) -> tuple[list[Recorded], list[Skipped]]:
    """Leave out the windows whose sound has other labels in another file; return also the files that lose all."""
    same = defaultdict(list)
    for r in recorded:
        if r.place is not None:
            same[r.place.sound].append(r)
    bad: dict[str, set[int]] = defaultdict(set)
    twice, lines = [], []
    for sharers in same.values():
        twice.append(some([r.file.path for r in sharers]))
        for r in sharers:
            for other in sharers:
                found = (
                    _contradictory(annotations, r, other, sample_rate_hz) - bad[r.file.path] if other is not r else ()
                )
                bad[r.file.path] |= set(found)
                if found:
                    at = [f"{r.cuts[i][0] / sample_rate_hz:g} s" for i in sorted(found)]
                    lines.append(f"{r.file.path} at {some(at, 5)}: {other.file.path} has other labels for this sound")
    report(twice, "the same sound, kept on one side of the split")
    report(lines, "left out")
    is_good = [[i not in bad.get(r.file.path, ()) for i in range(len(r.cuts))] for r in recorded]
    return _only(recorded, is_good, "other files have other labels for the sound of all its windows")


def _contradictory(annotations: Annotations, r: Recorded, other: Recorded, sample_rate_hz: int) -> set[int]:
    """Return the windows of a file for whose sound the other file has other labels."""
    shift = r.place.start - other.place.start
    shared = [i for i, (start, n) in enumerate(r.cuts) if 0 <= start + shift <= other.sound.n_samples - n]
    bounds = [((r.cuts[i][0] + shift) / sample_rate_hz, (sum(r.cuts[i]) + shift) / sample_rate_hz) for i in shared]
    others = labels_of_windows(bounds, annotations.of(other.file), annotations.min_overlap_s)
    known = annotations.are_known(other.file, bounds)
    pairs = [(i, r.windows[i], theirs) for i, theirs, is_known in zip(shared, others, known, strict=True) if is_known]
    return {
        i
        for i, ours, theirs in pairs
        if {*ours.labels} - {*theirs.labels, *theirs.secondary} or {*theirs.labels} - {*ours.labels, *ours.secondary}
    }


def _only(
    recorded: Sequence[Recorded], is_good: Sequence[Sequence[bool]], reason: str
) -> tuple[list[Recorded], list[Skipped]]:
    """Keep the good windows of each file; return also the files without one."""
    kept, skipped = [], []
    for r, good in zip(recorded, is_good, strict=True):
        chosen = [i for i, is_kept in enumerate(good) if is_kept]
        if chosen:
            kept.append(replace(r, cuts=tuple(r.cuts[i] for i in chosen), windows=tuple(r.windows[i] for i in chosen)))
        else:
            skipped.append(Skipped(r.file.path, reason))
    return kept, skipped


def drop_rare_labels(recorded: Sequence[Recorded], min_recordings: int) -> tuple[list[Recorded], list[Skipped]]:
    """Leave out labels of fewer than `min_recordings` recordings, and the windows that have no other label.

    Such a window holds a sound of no class. It is not silence, whatever other label may be in it.
    """
    recordings = defaultdict(set)
    for r in recorded:
        for window in r.windows:
            for label in window.labels:
                recordings[label].add(r.file.recording_id)
    rare = {label: len(ids) for label, ids in sorted(recordings.items()) if len(ids) < min_recordings}
    classes = recordings.keys() - rare.keys()
    reduced, is_good = [], []
    for r in recorded:
        windows = tuple(_with_classes(window, classes) for window in r.windows)
        is_good.append(
            [
                before.is_silent or bool(after.ranked) or not (before.ranked or after.is_silent)
                for before, after in zip(r.windows, windows, strict=True)
            ]
        )
        reduced.append(replace(r, windows=windows))
    kept, skipped = _only(
        reduced, is_good, f"all its labels have fewer than --min_recordings {min_recordings} recordings"
    )
    if rare:
        log.warning(
            "%s in the clips of fewer than %d recordings: no class; left out with %s without another label: %s",
            *(counted(len(rare), "label is", "labels are"), min_recordings),
            counted(sum(not good for own in is_good for good in own), "clip"),
            some([f"{label} ({n})" for label, n in rare.items()], NAMED_IN_LOG),
        )
    return _with_main_labels(kept), skipped


def count_clips(recorded: Sequence[Recorded]) -> dict[str, int]:
    """Return how many clips have several labels, none, and labels that may or may not be in them; log it."""
    windows = [window for r in recorded for window in r.windows]
    counts = {
        "n_clips_with_several_labels": sum(len(window.labels) > 1 for window in windows),
        "n_clips_of_silence": sum(window.is_silent for window in windows),
        "n_clips_with_secondary_labels": sum(bool(window.secondary) for window in windows),
    }
    log.info(
        "of %d clips, %d have several labels, %d are silence, %d have secondary labels", len(windows), *counts.values()
    )
    return counts


def _with_classes(window: Window, classes: Collection[str]) -> Window:
    return Window(*(tuple(label for label in own if label in classes) for own in (window.ranked, window.secondary)))


def _with_main_labels(recorded: Sequence[Recorded]) -> list[Recorded]:
    """Give each file the label that most windows of its recording have; none if all are silent."""
    n_windows: dict[str, Counter[str]] = defaultdict(Counter)
    for r in recorded:
        n_windows[r.file.recording_id].update(label for window in r.windows for label in window.labels)
    main = {name: min(own, key=lambda label: (-own[label], label), default="") for name, own in n_windows.items()}
    return [replace(r, file=replace(r.file, label=main[r.file.recording_id])) for r in recorded]


def with_secondary_labels(recorded: Sequence[Recorded]) -> list[Recorded]:
    """Add, to each window, the other species that metadata names for its file.

    Of a species with a label with times in the file it is known where it is, so it is not secondary there.
    """
    classes = {label for r in recorded for label in r.labels}
    named = {label for r in recorded for label in r.file.secondary_labels}
    completed = []
    for r in recorded:
        own = r.windows or (Window((r.file.label,)),) * len(r.cuts)
        others = {*r.file.secondary_labels} & classes - {label for window in own for label in window.labels}
        windows = tuple(replace(window, secondary=tuple(sorted({*window.secondary, *others}))) for window in own)
        completed.append(replace(r, windows=windows))
    log.info("%d of the %d secondary labels in the metadata are classes", len(named & classes), len(named))
    if named - classes:
        log.info("secondary labels that are not classes are not used: %s", printable(some(sorted(named - classes))))
    return completed
