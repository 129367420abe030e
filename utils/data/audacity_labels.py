r"""Label tracks of Audacity, and of BirdNET-Analyzer in Audacity's format. Read and written here.

A line has start, end and label, separated by tabs; nothing is quoted, and the file is named by the name of the table.
A line that begins with a backslash holds the frequencies of the label above it; -1 is an unknown one. A label without a
length is a point: it belongs to the window into which it falls, on a border to the later one (``windows``). An empty
file means silence.
BirdNET-Analyzer adds the confidence as a fourth cell, and writes "scientific name, common name" as the label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.core.files import write_text
from utils.data.timed_labels import (
    Annotation,
    Table,
    cell,
    file_of_table,
    first_line,
    number_of,
    optional_number,
    ordered,
    seconds,
    unquoted_rows,
)

SUFFIX = ".labels.txt"
HOLDS_SEVERAL_FILES = False
FREQUENCIES = "\\"


def recognises(name: str, text: str) -> bool:
    """Return whether the first line begins with two numbers and a tab between them, or a ``.txt`` is empty."""
    first = first_line(text)
    if not first:
        return name.lower().endswith(".txt")
    cells = first.split("\t")
    return len(cells) > 1 and all(optional_number(text) is not None for text in cells[:2])


def read(path: Path, text: str, name: str, label_column: str | None = None) -> Table:
    """Read a label track.

    Parameters
    ----------
    path : Path
        For messages.
    text : str
    name : str
        Path of the table within the folder of the tables; it names the sound file.
    label_column
        Not used: a label track has no names of columns.
    """
    table = Table("audacity")
    file = file_of_table(name)
    table.cover(file)
    is_last_added = False
    for number, cells in unquoted_rows(text, "\t"):
        place = f"{name}, row {number}"
        if cells[0].strip() == FREQUENCIES:
            if is_last_added:
                low_hz, high_hz = (
                    value if value is not None and value >= 0 else None for value in map(optional_number, cells[1:3])
                )
                table.annotations[-1] = replace(table.annotations[-1], low_hz=low_hz, high_hz=high_hz)
            continue
        n_before = len(table.annotations)
        try:
            start_s, end_s = map(number_of, cells[:2])
        except ValueError:
            table.problems.append(f"{place}: it does not begin with two numbers of seconds")
        else:
            table.add(place, Annotation(file, start_s, end_s, *_label_and_score(cells[2:])))
        is_last_added = len(table.annotations) > n_before
    return table


def _label_and_score(cells: Sequence[str]) -> tuple[str, float | None]:
    cells = [text.strip() for text in cells]
    if len(cells) == 2 and (score := optional_number(cells[1])) is not None:
        return cells[0].split(", ", 1)[-1], score
    return " ".join(cells), None


def write(
    path: Path, detections: Sequence[Annotation], durations_s: Mapping[str, float], raw_dir: Path, top_hz: float
) -> None:
    """Write a label track of one file: start, end, label. `durations_s` names the file; the rest is not used.

    Raises
    ------
    ValueError
        If there are several files: a label track does not say of which file a label is.
    """
    if len(durations_s) > 1:
        raise ValueError(f"a label track is of one file, not of {len(durations_s)}")
    lines = (
        f"{seconds(a.start_s)}\t{seconds(a.end_s)}\t{cell(a.label)}\n" for a in ordered(detections, list(durations_s))
    )
    write_text(path, "".join(lines))
