"""A label with times, a table of such labels, and the reading and writing of the cells of all formats."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from utils.core.errors import InputError
from utils.core.text import printable
from utils.data.recording_ids import tidy

WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\|[^/]*\\[^/]*$")
# Endings of tables that are named after their sound file: of Raven, Audacity, BirdNET-Analyzer and 08.
TABLE_ENDING = re.compile(
    r"(?:\.birdnet)?(?:\.table\.\d+)?(?:\.selections?|\.selection\.table|\.results|\.labels?)?(?:\.kaleidoscope|\.r)?"
    r"\.(?:txt|tsv|csv)\Z",
    re.IGNORECASE,
)

NAMED_AFTER_FILE = re.compile(r"[^/]\.(?:birdnet(?:\.results)?(?:\.kaleidoscope)?|kaleidoscope)\.csv\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Annotation:
    """A label with times.

    Attributes
    ----------
    file : str
        The sound file as the table names it, with ``/`` between folders: an absolute path, a path within the folder of
        the recordings, or a bare name. It has no suffix if only the name of the table says which file it is
        (``site/night`` for ``site/night.Table.1.selections.txt``).
    start_s, end_s : float
        Seconds from the start of this file. They are equal for a point.
    label : str
    score : float, optional
    low_hz, high_hz : float, optional
    channel : int, optional
        The first one is 1.
    """

    file: str
    start_s: float
    end_s: float
    label: str
    score: float | None = None
    low_hz: float | None = None
    high_hz: float | None = None
    channel: int | None = None


@dataclass
class Table:
    """A table of labels with times.

    Attributes
    ----------
    format : str
        Name of its format in ``annotations.FORMATS``.
    annotations : list of Annotation
    files : list of str
        All sound files that the table covers, spelled as in `annotations`. A file without an annotation is silent.
    problems : list of str
        Rows that were left out, each with its place and the reason.
    heard : dict of str to list of (float, float)
        The only stretches, in seconds, of which the table says what is in them, by file. A file that is not in it was
        listened to from its start to its end.
    named_after : set of str
        Those of `files` that are the name of the table.
    """

    format: str
    annotations: list[Annotation] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    heard: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    named_after: set[str] = field(default_factory=set)
    _covered: set[str] = field(default_factory=set, repr=False, compare=False)

    def cover(self, file: str) -> None:
        """Note that the table covers a sound file."""
        if file not in self._covered:
            self._covered.add(file)
            self.files.append(file)

    def leave_unknown(self, file: str, stretches: Iterable[tuple[float, float]]) -> None:
        """Note that the table does not say what is in these stretches of a file."""
        heard, end_s = [], 0.0
        for start_s, stop_s in sorted(stretches):
            if start_s > end_s:
                heard.append((end_s, start_s))
            end_s = max(end_s, stop_s)
        self.heard[file] = [*heard, (end_s, math.inf)]

    def cover_own_file(self, name: str) -> None:
        """Note that a table without rows covers the sound file that its name names, or that there is none."""
        if NAMED_AFTER_FILE.search(name):
            self.cover(file_of_table(name))
        else:
            self.problems.append(f"{name} has no rows, and its name does not say which file is silent")

    def add(self, place: str, annotation: Annotation) -> None:
        """Add an annotation and cover its file; name it as a problem if it has no label or impossible times."""
        annotation = replace(annotation, label=tidy(annotation.label))
        self.cover(annotation.file)
        if problem := _problem(annotation):
            self.problems.append(f"{place}: {problem}")
        else:
            self.annotations.append(annotation)


def _problem(annotation: Annotation) -> str | None:
    start_s, end_s = annotation.start_s, annotation.end_s
    if not annotation.label:
        return f"the label from {start_s} s to {end_s} s is empty"
    if start_s < 0:
        return f"{printable(annotation.label)} begins at {start_s} s, before the file"
    if end_s < start_s:
        return f"{printable(annotation.label)} ends at {end_s} s, before it begins at {start_s} s"
    return None


# ------------------------------------------------------------------------------------------------------------- reading


def text_of(data: bytes) -> str:
    """Return the text of a table: UTF-8 or UTF-16 with or without a byte order mark, else Windows-1252 or Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if data[:4].count(0):  # the first characters of a table are ASCII
        return data.decode("utf-16-be" if data[0] == 0 else "utf-16-le", errors="replace")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def number_of(text: str) -> float:
    """Return a number written with a decimal point or comma.

    Raises
    ------
    ValueError
        If it is not a finite number.
    """
    value = float(text.strip().replace(",", "."))
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text!r}")
    return value


def optional_number(text: str) -> float | None:
    """Return the number in a cell; None if there is none."""
    try:
        return number_of(text)
    except ValueError:
        return None


def channel_of(text: str) -> int | None:
    """Return the channel in a cell; None if there is none."""
    number = optional_number(text)
    return int(number) if number is not None and number >= 1 else None


def file_named(text: str) -> str:
    """Return a path as a table names it, with ``/`` between folders."""
    text = text.strip()
    return PureWindowsPath(text).as_posix() if WINDOWS_PATH.match(text) else text


def file_of_table(name: str) -> str:
    """Return the name of the sound file after which a table is named; `name` may have folders.

    Examples
    --------
    >>> file_of_table("site/night.Table.1.selections.txt")
    'site/night'
    >>> file_of_table("night.wav.BirdNET.results.csv")
    'night.wav'
    """
    path = PurePosixPath(name)
    return str(path.with_name(TABLE_ENDING.sub("", path.name) or path.name))


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is not blank, without its line end.

    Only CR and LF end a line: ``str.splitlines`` would also break one at rarer characters in a label.
    """
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.strip():
            yield number, line


def first_line(text: str) -> str:
    """Return the first line that is not blank; empty if there is none."""
    return next((line for _, line in lines_of(text)), "")


def unquoted_rows(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a table that quotes nothing: a quotation mark is a character."""
    for number, line in lines_of(text):
        yield number, line.split(separator)


def quoted_rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line, and the cells, of each row of a table with quotation marks around cells.

    Raises
    ------
    InputError
        If a quotation mark is not closed: it would swallow rows.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = 1
    try:
        for cells in reader:
            if reader.line_num > number:
                raise csv.Error("a cell goes over several lines")
            if any(cell.strip() for cell in cells):
                yield number, [cell.strip() for cell in cells]
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, row {number}: {error}; a quotation mark within a cell is written twice, and the cell within "
            'quotation marks: "the ""rook"""'
        ) from error


def rows_quoted_or_not(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a CSV of a program that may not quote a cell with a comma.

    A line that has as many cells as the header if quotation marks count is read so; any other is cut at each comma.
    """
    n_cells = None
    for number, line in lines_of(text):
        cells = next(csv.reader([line]))
        n_cells = n_cells or len(cells)
        yield number, cells if len(cells) == n_cells else line.split(",")


def plain(name: str) -> str:
    """Return the name of a column in one spelling: ``Begin Time (s)`` is ``begin_time_s``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def label_column_in(path: Path, titles: Sequence[str], label_column: str | None, usual: Sequence[str]) -> str:
    """Return the column that holds the label: `label_column`, or the first of the usual ones.

    Parameters
    ----------
    path : Path
        For the message.
    titles : sequence of str
        All columns, in the spelling of `plain`, in which the result is too.
    label_column : str or None
    usual : sequence of str

    Raises
    ------
    InputError
        If there is no such column.
    """
    wanted = [label_column] if label_column else usual
    for title in map(plain, wanted):
        if title in titles:
            return title
    raise InputError(
        f"{path} has no column for the label: found {', '.join(map(printable, titles))}; expected "
        f"{' or '.join(wanted)}; --label_column names another one"
    )


# ------------------------------------------------------------------------------------------------------------- writing


def seconds(value: float) -> str:
    """Return a time or a number with a decimal point and at most six decimals: ``3.0``, ``0.000023``.

    A microsecond is less than half a sample at 384 kHz. crowsetta 5.1.2 refuses a column of whole numbers.
    """
    whole, decimals = f"{value:.6f}".split(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def optional_seconds(value: float | None) -> str:
    """Return a number as `seconds` does; empty if there is none."""
    return "" if value is None else seconds(value)


def cell(text: str) -> str:
    """Return a text for a table that quotes nothing: tabs and line ends become spaces."""
    return printable(" ".join(re.split(r"[\t\r\n]+", text)))


def file_name(file: str) -> str:
    """Return the last part of a path, as `file_named` gives it."""
    return file.rsplit("/", 1)[-1]


def ordered(detections: Sequence[Annotation], files: Sequence[str]) -> list[Annotation]:
    """Return detections in the order of their files, then of time and label."""
    places = {file: i for i, file in enumerate(files)}
    return sorted(detections, key=lambda a: (places[a.file], a.start_s, a.end_s, a.label))
