"""Tables ``file,start,end,label``: a CSV that a spreadsheet or 08 writes. Read and written here.

Cells may be separated by commas, semicolons or tabs. A row with a file and nothing else says that the file was
listened to and is silent. The answers of a review page have a column ``answer``: each row says what is in a window that
was listened to, with an empty label for nothing. Nothing is known of the rest of the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.core.files import write_csv
from utils.data.timed_labels import (
    Annotation,
    Table,
    channel_of,
    file_named,
    first_line,
    label_column_in,
    number_of,
    optional_number,
    optional_seconds,
    ordered,
    plain,
    quoted_rows,
    seconds,
)

SUFFIX = ".labels.csv"
HOLDS_SEVERAL_FILES = True
# Accepted names of a column, in the spelling of `plain`.
COLUMNS = {
    "file": ("file", "filename", "file_name", "path", "filepath", "audio_file"),
    "start": ("start", "start_s", "start_time", "start_time_s", "begin", "begin_s", "onset", "onset_s"),
    "end": ("end", "end_s", "end_time", "end_time_s", "stop", "stop_s", "offset_s"),
    "score": ("score", "confidence"),
    "low": ("low_hz", "low_f", "low_freq_hz"),
    "high": ("high_hz", "high_f", "high_freq_hz"),
    "channel": ("channel",),
}
LABEL_COLUMNS = ("label", "annotation", "species", "primary_label", "common_name")
TIMES = ("file", "start", "end")
ANSWER = "answer"  # column of a table that a review page saved


def recognises(name: str, text: str) -> bool:
    """Return whether the first line names a file, a start and an end."""
    header = first_line(text)
    return set(TIMES) <= set(_places([plain(title) for title in header.split(_separator(header))]))


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _places(titles: Sequence[str]) -> dict[str, int]:
    return {
        field: next(titles.index(name) for name in own if name in titles)
        for field, own in COLUMNS.items()
        if set(own) & set(titles)
    }


def read(path: Path, text: str, name: str, label_column: str | None = None) -> Table:
    """Read a table.

    Parameters
    ----------
    path : Path
        For messages.
    text : str
    name : str
        Path of the table within the folder of the tables, for messages.
    label_column : str, optional
        Column that holds the label.

    Raises
    ------
    InputError
        If a quotation mark is not closed, or no column holds the label.
    """
    separator = _separator(first_line(text))
    rows = quoted_rows(path, text, separator)
    titles = [plain(title) for title in next(rows)[1]]
    label = titles.index(label_column_in(path, titles, label_column, LABEL_COLUMNS))
    places = _places(titles) | {"label": label}
    is_review = ANSWER in titles
    table = Table("csv")
    for number, cells in rows:
        place = f"{name}, row {number}"
        if len(cells) != len(titles) and any(cells[len(titles) :]):
            table.problems.append(f"{place}: {len(cells)} cells; expected {len(titles)}")
            continue
        cells += [""] * (len(titles) - len(cells))
        found = {field: cells[i] for field, i in places.items()}
        file = file_named(found["file"])
        if not file:
            table.problems.append(f"{place}: it names no file")
        elif not any(found[field] for field in ("start", "end", "label")):
            table.cover(file)
        else:
            _add(table, place, file, found, is_review)
    return table


def _add(table: Table, place: str, file: str, found: Mapping[str, str], is_review: bool) -> None:
    heard = table.heard.setdefault(file, []) if is_review else None
    try:
        start_s, end_s = number_of(found["start"]), number_of(found["end"])
    except ValueError:
        table.cover(file)
        table.problems.append(
            f"{place}: start {found['start']!r} and end {found['end']!r} are not two numbers of seconds"
        )
        return
    if heard is not None and 0 <= start_s < end_s:
        heard.append((start_s, end_s))
        if not found["label"]:
            table.cover(file)
            return
    numbers = [optional_number(found.get(field, "")) for field in ("score", "low", "high")]
    table.add(place, Annotation(file, start_s, end_s, found["label"], *numbers, channel_of(found.get("channel", ""))))


def write(
    path: Path, detections: Sequence[Annotation], durations_s: Mapping[str, float], raw_dir: Path, top_hz: float
) -> None:
    """Write ``file,start,end,label,score``; a file without a detection has a row of its own.

    Parameters
    ----------
    path : Path
    detections : sequence of Annotation
    durations_s : mapping of str to float
        All files of the table, in order, with their length in seconds.
    raw_dir, top_hz
        Not used: other formats need the folder of the files, and the highest frequency that the model hears.
    """
    rows = [
        [a.file, seconds(a.start_s), seconds(a.end_s), a.label, optional_seconds(a.score)]
        for a in ordered(detections, list(durations_s))
    ]
    with_a_row = {a.file for a in detections}
    rows += [[file, "", "", "", ""] for file in durations_s if file not in with_a_row]
    places = {file: i for i, file in enumerate(durations_s)}
    write_csv(path, ["file", "start", "end", "label", "score"], sorted(rows, key=lambda row: places[row[0]]))
