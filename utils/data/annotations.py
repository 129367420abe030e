"""Tables of labels with times: the formats, and all tables of a folder. One room reads and writes a format.

| format | programs | labels from | sound file from |
|---|---|---|---|
| ``csv`` | spreadsheets, 08 | ``label`` | ``file`` |
"""

import logging
from pathlib import Path
from types import ModuleType

from utils.core.errors import InputError
from utils.core.text import printable
from utils.data import annotation_csv
from utils.data.timed_labels import Annotation, Table, past_the_end, text_of

__all__ = ["FORMATS", "Annotation", "Table", "past_the_end", "read", "read_all"]

log = logging.getLogger(__name__)

# Each room has: SUFFIX, the end of the name of a table that is written; HOLDS_SEVERAL_FILES, whether one table can hold
# the labels of several sound files; recognises(name, text); read(path, text, name, label_column);
# write(path, detections, durations_s, raw_dir, top_hz). The first room that recognises a table reads it.
FORMATS: dict[str, ModuleType] = {
    "csv": annotation_csv,
}
SUFFIXES = (".txt", ".tsv", ".csv")
EXPECTED = f"expected one of the formats {', '.join(FORMATS)}, as its program saves it; see docs/annotations.md"


def read(path: Path, label_column: str | None = None, folder: Path | None = None) -> Table:
    """Read one table of labels; its first lines tell its format.

    Parameters
    ----------
    path : Path
    label_column : str, optional
        Column that holds the label, where it has not one of the usual names.
    folder : Path, optional
        Folder of the tables. A table that is named after its sound file keeps its place in this folder. By default the
        folder of `path`.

    Returns
    -------
    Table

    Raises
    ------
    InputError
        If it cannot be read, or is in no known format.
    """
    path = Path(path)
    try:
        text = text_of(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    name = path.relative_to(folder or path.parent).as_posix()
    for room in FORMATS.values():
        if room.recognises(name, text):
            return room.read(path, text, name, label_column)
    first = printable(text.strip().split("\n", 1)[0].strip()[:80])
    raise InputError(f"{path} is not a table of labels with times (first line: {first!r}); {EXPECTED}")


def read_all(path: Path, label_column: str | None = None) -> Table:
    """Read a table, or all tables of a folder and its subfolders, as one.

    A file of a folder that is not a table is named among the problems. Annotations that stand in several tables count
    once.

    Returns
    -------
    Table
        Its format is the formats that were found, joined by commas.

    Raises
    ------
    InputError
        If `path` is missing, or no table is found.
    """
    path = Path(path)
    if not path.is_dir():
        return read(path, label_column)
    tables, problems = [], []
    for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()):
        if file.name.startswith("."):
            continue
        try:
            tables.append(read(file, label_column, path))
        except InputError as error:
            problems.append(str(error))
    if not tables:
        more = f": {problems[0]}" if problems else f" ({', '.join(SUFFIXES)})"
        raise InputError(f"{path} holds no table of labels with times{more}; {EXPECTED}")
    whole = Table(", ".join(sorted({table.format for table in tables})), problems=problems)
    whole.annotations = list(dict.fromkeys(a for table in tables for a in table.annotations))
    whole.files = list(dict.fromkeys(file for table in tables for file in table.files))
    whole.problems += [problem for table in tables for problem in table.problems]
    return whole
