"""``recordings.csv`` of a data set: a row a recording. 01 writes it, and what a model has heard is looked up in it."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core.files import sha256_of_lines, write_csv
from utils.data.splits import SPLITS

if TYPE_CHECKING:
    from utils.data.preparation import Recorded
    from utils.data.spool import Stretch

NAME = "recordings.csv"


def write_recordings(
    output_dir: Path, sample_rate_hz: int, recorded: Sequence["Recorded"], stretches: Sequence["Stretch"]
) -> int:
    """Write ``recordings.csv``, a row a recording; return the number of rows.

    ``sha256`` is that of the decoded PCM, or of the list of them where a recording has several files.
    Split by clip, a recording can have several groups, then none is named, and several splits.
    """
    files_of = defaultdict(list)
    for r, stretch in zip(recorded, stretches, strict=True):
        files_of[r.file.recording_id].append((r, stretch))
    rows = []
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
                "|".join(name for name in SPLITS if name in splits),
                round(sum(sound.n_samples for sound in sounds) / sample_rate_hz, 6),
                sum(len(stretch) for _, stretch in own),
                len(own),
                "|".join(map(str, rates)),
                "|".join(sorted({sound.channel for sound in sounds})),
                *(sounds[0].start.time, sounds[0].start.source),
                checksums[0] if len(checksums) == 1 else sha256_of_lines(checksums),
            ]
        )
    columns = ["recording_id", "label", "recordist", "licence", "group", "split", "duration_s", "n_clips", "n_files"]
    write_csv(
        output_dir / NAME,
        [*columns, "sample_rate_hz", "channel", "recorded_at", "recorded_at_from", "sha256"],
        rows,
    )
    return len(rows)


def read_recordings(data_dir: Path) -> list[dict[str, str]]:
    """Return the rows of a data set; none where there is no such file."""
    path = data_dir / NAME
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row.get("recording_id") is not None]
