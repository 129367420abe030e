"""Tables of labels with times: the formats, and all tables of a folder. One room reads and writes a format.

| format | program | label | sound file | start and end |
|---|---|---|---|---|
| raven | Raven | Annotation (1) | Begin Path, Begin File (2) | File Offset (s) (3) |
| audacity | Audacity | third cell | name of the table | first and second cell |
| birdnet | BirdNET-Analyzer | Common name | File | Start (s), End (s) |
| kaleidoscope | Kaleidoscope | MANUAL ID (4) | INDIR, FOLDER, IN FILE | OFFSET, DURATION |
| csv | spreadsheets, 08 | label | file | start, end |

BirdNET-Analyzer also writes the formats of the other programs. (1) Or the first one of Label, Species, Common Name,
Species Code, Tag, Call Type. (2) Without both, the name of the table. (3) Without it, Begin Time (s); the length is
that from Begin Time (s) to End Time (s). (4) If any row of the table has one; a row without one then leaves its stretch
unknown, and the clips that it touches are left out. Otherwise the first one of common_name, TOP1MATCH, AUTO ID,
scientific_name.

A table that is named after its sound file has the name of the file, with or without its suffix, and one of the endings
.txt, .labels.txt, .selections.txt, .Table.1.selections.txt, .BirdNET.selection.table.txt, .BirdNET.results.txt,
.BirdNET.results.csv, .BirdNET.results.kaleidoscope.csv. A table without rows says that its file is silent. A label
without a length is a point: it belongs to the window into which it falls, on a border to the later one.
"""

import logging
import os
from pathlib import Path
from types import ModuleType

from utils.core.errors import InputError
from utils.core.records import LOG_NAME, read_record
from utils.core.text import printable
from utils.data import annotation_csv, audacity_labels, birdnet_tables, kaleidoscope_tables, raven_tables
from utils.data.timed_labels import Annotation, Table, file_of_table, text_of

__all__ = ["FORMATS", "Annotation", "Table", "read", "read_all"]

log = logging.getLogger(__name__)

# Each room has: SUFFIX, the end of the name of a table that is written; HOLDS_SEVERAL_FILES, whether one table can hold
# the labels of several sound files; recognises(name, text); read(path, text, name, label_column);
# write(path, detections, durations_s, raw_dir, top_hz). The first room that recognises a table reads it.
FORMATS: dict[str, ModuleType] = {
    "raven": raven_tables,
    "birdnet": birdnet_tables,
    "kaleidoscope": kaleidoscope_tables,
    "csv": annotation_csv,
    "audacity": audacity_labels,
}
SUFFIXES = (".txt", ".tsv", ".csv")
# Beside tables: the list of their files, and the settings of BirdNET-Analyzer.
NO_TABLES = (raven_tables.LIST_SUFFIX, "BirdNET_analysis_params.csv")
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
            table = room.read(path, text, name, label_column)
            table.named_after = {file_of_table(name)} & {*table.files}
            return table
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
        If `path` is missing or cannot be read, or no table is found.
    """
    path = Path(path)
    if not path.is_dir():
        return read(path, label_column)
    tables = []
    files, problems = _files_of(path)
    for file in files:
        try:
            tables.append(read(file, label_column, path))
        except InputError as error:
            reason = str(error).removeprefix(str(file)).lstrip(" ,")
            problems.append(f"{file.relative_to(path).as_posix()}: {reason}")
    if not tables:
        more = f": {problems[0]}" if problems else f" ({', '.join(SUFFIXES)})"
        raise InputError(f"{path} holds no table of labels with times{more}; {EXPECTED}")
    whole = Table(", ".join(sorted({table.format for table in tables})), problems=problems)
    whole.annotations = list(dict.fromkeys(a for table in tables for a in table.annotations))
    whole.files = list(dict.fromkeys(file for table in tables for file in table.files))
    for file in whole.files:
        heard = [table.heard.get(file) for table in tables if file in table.files]
        if None not in heard:  # else one table tells all of it
            whole.heard[file] = sorted({stretch for own in heard for stretch in own})
    whole.named_after = {file for table in tables for file in table.named_after}
    whole.problems += [problem for table in tables for problem in table.problems]
    return whole


def _files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files that may be tables, and the subfolders that cannot be read, with the reason."""
    problems = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise InputError(f"{folder} cannot be read ({error.strerror}); change its permissions") from error
        where = Path(error.filename).relative_to(folder).as_posix()
        problems.append(f"{where}: the folder cannot be read: {error.strerror}")

    found = [
        Path(where) / name
        for where, _, names in os.walk(folder, onerror=note)
        for name in sorted({*names} - _files_of_stage(Path(where)))
    ]
    files = [f for f in found if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()]
    return sorted(file for file in files if not file.name.endswith(NO_TABLES)), problems


def _files_of_stage(folder: Path) -> set[str]:
    """Return the names of what a stage wrote into its output folder: 08's own detections are no annotations."""
    try:
        record = read_record(folder)
    except InputError:  # a file of another program
        return set()
    return {LOG_NAME, *(output["path"] for output in record["outputs"])} if record else set()
