"""CSVs of Kaleidoscope (``cluster.csv``, ``id.csv``), and of BirdNET-Analyzer in its format. Read and written here.

A row names its file by INDIR, FOLDER and IN FILE, and its time by OFFSET and DURATION. BirdNET-Analyzer 2.4.0 quotes
nothing. A comma in a folder therefore gives a row more cells than the header has; the columns are then counted from the
right. Ours are quoted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.core.files import write_csv
from utils.data.timed_labels import (
    Annotation,
    Table,
    channel_of,
    file_name,
    file_named,
    first_line,
    label_column_in,
    number_of,
    optional_number,
    optional_seconds,
    ordered,
    plain,
    rows_quoted_or_not,
    seconds,
)

SUFFIX = ".kaleidoscope.csv"
HOLDS_SEVERAL_FILES = True
COLUMNS = ("INDIR", "FOLDER", "IN FILE", "OFFSET", "DURATION", "TOP1MATCH", "MANUAL ID", "confidence")
NEEDED = {"indir", "folder", "in_file", "offset", "duration"}
MANUAL_ID = "MANUAL ID"
LABEL_COLUMNS = ("common_name", "TOP1MATCH", "AUTO ID", "scientific_name")


def _titles(text: str) -> list[str]:
    """Return the columns; Kaleidoscope marks some of them with a star, which is left out."""
    return [plain(title) for title in first_line(text).split(",")]


def recognises(name: str, text: str) -> bool:
    """Return whether the header has the columns of Kaleidoscope for file and time."""
    return set(_titles(text)) >= NEEDED


def read(path: Path, text: str, name: str, label_column: str | None = None) -> Table:
    """Read a CSV of Kaleidoscope.

    Parameters
    ----------
    path : Path
        For messages.
    text : str
    name : str
        Path of the table within the folder of the tables. It names the sound file of a table without rows.
    label_column : str, optional
        Column that holds the label. By default ``MANUAL ID`` if it has any text: then the user has verified a part of
        the table, and it is unknown what is in the stretches of the other rows. Otherwise the first one of
        `LABEL_COLUMNS`.

    Raises
    ------
    InputError
        If no column holds the label.
    """
    table = Table("kaleidoscope")
    titles = _titles(text)
    rows = []
    for number, cells in rows_quoted_or_not(text):
        if len(cells) < len(titles):
            table.problems.append(f"{name}, row {number}: {len(cells)} cells; expected {len(titles)}")
        else:
            rows.append((f"{name}, row {number}", _by_title(titles, cells)))
    rows = rows[1:]  # without the header
    is_named = any(cells.get(plain(MANUAL_ID)) for _, cells in rows)
    usual = [MANUAL_ID] if is_named else LABEL_COLUMNS
    label = label_column_in(path, titles, label_column, usual)
    unnamed: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for place, cells in rows:
        file = file_named("/".join(part for part in (cells[title] for title in ("indir", "folder", "in_file")) if part))
        table.cover(file)
        try:
            start_s, duration_s = number_of(cells["offset"]), number_of(cells["duration"])
        except ValueError:
            table.problems.append(
                f"{place}: OFFSET {cells['offset']!r} and DURATION {cells['duration']!r} are not two numbers of seconds"
            )
            continue
        end_s = round(start_s + duration_s, 9)
        if not cells[label] and label == plain(MANUAL_ID):
            unnamed[file].append((start_s, end_s))
            continue
        channel = channel_of(str((optional_number(cells.get("channel", "")) or 0) + 1)) if "channel" in cells else None
        score = optional_number(cells.get("confidence", ""))
        table.add(place, Annotation(file, start_s, end_s, cells[label], score, channel=channel))
    for file, stretches in unnamed.items():
        table.leave_unknown(file, stretches)
    if n_unnamed := sum(map(len, unnamed.values())):
        table.problems.append(f"{name}: {n_unnamed} of {len(rows)} rows have no {MANUAL_ID}: their clips are left out")
    if not rows:
        table.cover_own_file(name)
    return table


def _by_title(titles: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Return the cells by column; if there are too many, a comma in the folder is taken for the reason.

    The columns after IN FILE are counted from the right. FOLDER is one folder, so that a cell with a slash before it
    still belongs to INDIR.
    """
    if len(cells) == len(titles):
        return {title: text.strip() for title, text in zip(titles, cells, strict=True)}
    n_right = len(titles) - titles.index("in_file") - 1
    where, right = cells[titles.index("indir") : len(cells) - n_right], cells[len(cells) - n_right :]
    n_indir = max((i for i, text in enumerate(where[:-1]) if "/" in text or "\\" in text), default=0) + 1
    found = {"indir": ",".join(where[:n_indir]), "folder": ",".join(where[n_indir:-1]), "in_file": where[-1]}
    return found | {title: text.strip() for title, text in zip(titles[len(titles) - n_right :], right, strict=True)}


def write(
    path: Path, detections: Sequence[Annotation], durations_s: Mapping[str, float], raw_dir: Path, top_hz: float
) -> None:
    """Write a CSV that Kaleidoscope opens as results; MANUAL ID is empty, for the user.

    Parameters
    ----------
    path : Path
    detections : sequence of Annotation
    durations_s : mapping of str to float
        All files of the table, in order.
    raw_dir : Path
        Folder of the files, as it shall stand in INDIR.
    top_hz
        Not used.
    """
    rows = [
        [
            *(Path(raw_dir).as_posix(), a.file.rpartition("/")[0], file_name(a.file)),
            *(seconds(a.start_s), seconds(a.end_s - a.start_s), a.label, ""),
            optional_seconds(a.score),
        ]
        for a in ordered(detections, list(durations_s))
    ]
    write_csv(path, COLUMNS, rows)
