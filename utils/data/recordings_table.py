"""``recordings.csv`` of a data set, one row per recording. 01 writes it. It names the recordist and the split."""

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.errors import InputError
from utils.core.files import sha256_of_lines, write_csv
from utils.core.text import counted, some
from utils.data.splits import FOLDS, NAMES_OF_SPLITS, SPLITS, Heard, split_in_fold, who_was_heard

if TYPE_CHECKING:
    from utils.data.preparation import Recorded
    from utils.data.spool import Stretch

log = logging.getLogger(__name__)

NAME = "recordings.csv"


def write_recordings(
    output_dir: Path, sample_rate_hz: int, recorded: Sequence["Recorded"], stretches: Sequence["Stretch"]
) -> int:
    """Write ``recordings.csv``, one row per recording; return the number of rows.

    ``sha256`` is the checksum of the decoded PCM; for several files, of the list of their checksums. In a split by
    clip a recording can have several splits and several groups; then ``group`` is empty. Where clips have labels of
    their own, ``label`` is the one that most clips of the recording have, and a last column ``labels`` has all.
    """
    files_of = defaultdict(list)
    for r, stretch in zip(recorded, stretches, strict=True):
        files_of[r.file.recording_id].append((r, stretch))
    rows = []
    is_annotated = any(r.windows is not None for r in recorded)
    for recording_id, own in files_of.items():
        sounds = [r.sound for r, _ in own]
        groups = {group for _, stretch in own for group in stretch.groups}
        splits = {name for _, stretch in own for name in stretch.splits}
        rates = sorted({sound.source_rate_hz for sound in sounds})
        checksums = [sound.sha256 for sound in sounds]
        rows.append(
            [
                recording_id,
                own[0][0].file.label,
                "|".join(sorted({r.file.recordist for r, _ in own if r.file.recordist is not None})),
                "|".join(sorted({r.file.licence for r, _ in own if r.file.licence is not None})),
                groups.pop() if len(groups) == 1 else "",
                "|".join(name for name in NAMES_OF_SPLITS if name in splits),
                round(sum(sound.n_samples for sound in sounds) / sample_rate_hz, 6),
                sum(len(stretch) for _, stretch in own),
                len(own),
                "|".join(map(str, rates)),
                "|".join(sorted({sound.channel for sound in sounds})),
                *(sounds[0].start.time, sounds[0].start.source),
                checksums[0] if len(checksums) == 1 else sha256_of_lines(checksums),
                "|".join(sorted({r.file.collection for r, _ in own if r.file.collection is not None})),
                *(["|".join(sorted({label for r, _ in own for label in r.labels}))] if is_annotated else []),
            ]
        )
    columns = ["recording_id", "label", "recordist", "licence", "group", "split", "duration_s", "n_clips", "n_files"]
    write_csv(
        output_dir / NAME,
        [
            *(*columns, "sample_rate_hz", "channel", "recorded_at", "recorded_at_from", "sha256", "collection"),
            *(["labels"] if is_annotated else []),
        ],
        rows,
    )
    return len(rows)


def check_labels(labels: Iterable[str]) -> None:
    """Raise `InputError` if a label cannot stand in ``labels``."""
    if divided := sorted(label for label in labels if "|" in label):
        raise InputError(
            f"{counted(len(divided), 'label has', 'labels have')} a |, which separates the labels of a recording in "
            f"{NAME}: {some(divided)}; write them without |"
        )


def read_recordings(data_dir: Path, fold: int | None = None) -> list[dict[str, str]]:
    """Return the rows of a data set; an empty list if there is no such file.

    With `fold`, ``split`` names the splits when this fold is tested.
    """
    path = Path(data_dir) / NAME
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("recording_id") is not None]
    if fold is not None:
        names = [row.get("split", "").split("|") for row in rows]
        n_folds = len({name for own in names for name in own} & set(FOLDS))
        for row, own in zip(rows, names, strict=True):
            splits = {split_in_fold(name, fold, n_folds) for name in own}
            row["split"] = "|".join(name for name in SPLITS if name in splits)
    return rows


def labels_of(row: Mapping[str, str]) -> list[str]:
    """Return the labels of a recording; none if it is silent."""
    labels = row["labels"].split("|") if row.get("labels") is not None else [row.get("label", "")]
    return [label for label in labels if label]


def recordings_of_split(data_dir: Path, split: str, fold: int | None = None) -> list[str]:
    """Return the ids of the recordings of a split; an empty list if there is no ``recordings.csv``."""
    rows = read_recordings(data_dir, fold)
    return [row["recording_id"] for row in rows if split in row.get("split", "").split("|")]


def heard_in_train(recording_ids: Iterable[str], data_dir: Path, fold: int | None = None) -> Heard | None:
    """Count clips, given their recordings, by whether train has their recordist; None without a ``recordings.csv``."""
    rows = {row["recording_id"]: row for row in read_recordings(data_dir, fold)}
    if not rows:
        return None

    def item(name: str, recording_id: str, n_clips: int) -> tuple[str, list[str], list[str], int]:
        row = rows.get(recording_id, {})
        return name, labels_of(row), [text for text in row.get("recordist", "").split("|") if text], n_clips

    train = [item("train", name, 0) for name, row in rows.items() if "train" in row.get("split", "").split("|")]
    scored = Counter(recording_ids).items()
    return who_was_heard([*train, *(item("scored", name, n) for name, n in scored)], "scored")


def warn_of_labels_of_one_collection(data_dir: Path) -> None:
    """Name, in a warning, the labels whose recordings are all of one collection, if there are several collections."""
    collections_of = defaultdict(set)
    for row in read_recordings(data_dir):
        for label in labels_of(row):
            collections_of[label].add(row.get("collection") or "")
    known = set().union(*collections_of.values()) - {""}
    alone = {label: found.pop() for label, found in sorted(collections_of.items()) if len(found) == 1}
    named = [f"{label} ({collection})" for label, collection in alone.items() if collection]
    if len(known) > 1 and named:
        log.warning(
            "%d of %d labels have recordings of one collection only, so a model can recognise the collection instead "
            "of the species: %s",
            *(len(named), len(collections_of), some(named)),
        )
