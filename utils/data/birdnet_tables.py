"""CSVs of BirdNET-Analyzer: ``Start (s),End (s),Scientific name,Common name,Confidence,File``. Read and written here.

BirdNET-Analyzer 2.4.0 quotes nothing. A comma in a folder therefore gives a row more cells than the header has. The
cells before the file are then counted from the left, and those after it from the right. Ours are quoted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.core.files import write_csv
from utils.data.timed_labels import (
    Annotation,
    Table,
    file_named,
    first_line,
    label_column_in,
    number_of,
    optional_seconds,
    ordered,
    plain,
    rows_quoted_or_not,
    seconds,
)

SUFFIX = ".birdnet.csv"
HOLDS_SEVERAL_FILES = True
COLUMNS = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")
LABEL_COLUMNS = ("Common name",)
TITLES = [plain(title) for title in COLUMNS]


def recognises(name: str, text: str) -> bool:
    """Return whether the header begins with the columns of BirdNET-Analyzer."""
    return [plain(title) for title in first_line(text).split(",")[: len(TITLES)]] == TITLES


def read(path: Path, text: str, name: str, label_column: str | None = None) -> Table:
    """Read a CSV of BirdNET-Analyzer.

    Parameters
    ----------
    path : Path
        For messages.
    text : str
    name : str
        Path of the table within the folder of the tables. It names the sound file of a table without rows.
    label_column : str, optional
        ``Common name`` (default) or ``Scientific name``.

    Raises
    ------
    InputError
        If there is no such column before that of the file.
    """
    table = Table("birdnet")
    rows = rows_quoted_or_not(text)
    header = [plain(title) for title in next(rows)[1]]
    n_columns = len(header)
    label = TITLES.index(label_column_in(path, header[: len(TITLES) - 1], label_column, LABEL_COLUMNS))
    n_left = TITLES.index("file")
    has_rows = False
    for number, cells in rows:
        has_rows = True
        place = f"{name}, row {number}"
        n_right = len(cells) - (n_columns - n_left - 1)
        try:
            if len(cells) < n_columns:
                raise ValueError
            start_s, end_s, score = number_of(cells[0]), number_of(cells[1]), number_of(cells[4]) if cells[4] else None
        except ValueError:
            table.problems.append(f"{place}: it does not have the cells {', '.join(COLUMNS)}")
            continue
        file = file_named(",".join(cells[n_left:n_right]))
        table.add(place, Annotation(file, start_s, end_s, cells[label].strip(), score))
    if not has_rows:
        table.cover_own_file(name)
    return table


def write(
    path: Path, detections: Sequence[Annotation], durations_s: Mapping[str, float], raw_dir: Path, top_hz: float
) -> None:
    """Write a CSV as BirdNET-Analyzer does, with quotation marks where they are needed.

    Parameters
    ----------
    path : Path
    detections : sequence of Annotation
        The label is written as the scientific and the common name.
    durations_s : mapping of str to float
        All files of the table, in order.
    raw_dir : Path
        Folder of the files, as it shall stand in the table.
    top_hz
        Not used.
    """
    rows = [
        [
            *(seconds(a.start_s), seconds(a.end_s), a.label, a.label, optional_seconds(a.score)),
            (Path(raw_dir) / a.file).as_posix(),
        ]
        for a in ordered(detections, list(durations_s))
    ]
    write_csv(path, COLUMNS, rows)
