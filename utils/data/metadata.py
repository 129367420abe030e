"""The metadata table of recordings: its columns, and checks for content that would be misunderstood."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.core import lazy
from utils.core.errors import InputError
from utils.data.recording_ids import XENO_CANTO_ID, tidy

with lazy.imported_on_first_use():
    import pandas as pd

log = logging.getLogger(__name__)

# Accepted columns; the first one in the table is used, and those of a tuple are joined by a space.
COLUMNS = {
    "label": [
        ("label",),
        ("primary_label",),
        ("ebird_code",),
        ("species_code",),
        ("gen", "sp"),
        ("genus", "species"),
        ("species",),
        ("scientific_name",),
        ("scientificname",),
        ("scientific name",),
        ("en",),
        ("common_name",),
        ("common name",),
    ],
    "recording_id": [("recording_id",), ("xc_id",), ("id",)],
    "recordist": [("recordist",), ("rec",), ("author",)],
    "licence": [("licence",), ("license",), ("lic",)],
    "collection": [("collection",)],
}
# The column with the most existing files is used: xeno-canto's `file` is an address, its `file-name` the uploader's
# name.
FILE_COLUMNS = ("file-name", "file_name", "file", "filename", "path", "filepath", "file_path")
XENO_CANTO_ID_COLUMNS = ("xc_id", "id")  # hold only numbers; xeno-canto shows them as XC123
# Columns that name other species in the recording.
OTHER_SPECIES = ("secondary_labels", "secondary_label", "background", "also", "other_species", "background_species")
EMPTY_LISTS = ("", "[]", "['']", '[""]', "{}", "-", "nan", "none", "na")

# A number in one of these columns is a time within a file: the label of the row describes only a section.
START = re.compile(
    r"(?:start|begin|onset|offset|timestamp|t_?min|xmin|t_?start|(?:segment|clip|window|chunk)_start|time_start)"
    r"(?:_?time)?(?:_(?:s|sec|secs|seconds|ms|samples?))?"
)
END = re.compile(
    r"(?:end|stop|offset|duration|length|t_?max|xmax|t_?end|(?:segment|clip|window|chunk)_end|time_end)"
    r"(?:_?time)?(?:_(?:s|sec|secs|seconds|ms|samples?))?"
)
PLACES_IF_REPEATED = ("time", "seconds", "from", "second")  # metadata of a recording, if a file has only one row
LARGEST_SECOND = 10_000_000  # larger numbers are dates, as seconds since 1970
TIME_OF_DAY = r"(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?"  # 0630, 063000
FIX = "expected a comma-separated table in UTF-8 with a header such as file,label,recording_id,recordist"


@dataclass(frozen=True)
class Row:
    """A row that is not blank.

    Attributes
    ----------
    place : str
        Name of the table and number of the row, as in a spreadsheet.
    files : dict of str to str
        Name of the file, by column.
    label : str
    names : tuple of str
        All texts of the label columns; a folder of the species may be named after any of them.
    recording_id, recordist, licence, collection : str
        Empty if the table does not name it.
    others : tuple of str
        Other species in the recording, by name.
    """

    place: str
    files: dict[str, str]
    label: str
    names: tuple[str, ...]
    recording_id: str
    recordist: str
    licence: str
    collection: str
    others: tuple[str, ...]

    @property
    def xeno_canto_id(self) -> str | None:
        """The recording id, if it is an id of xeno-canto."""
        return self.recording_id if XENO_CANTO_ID.fullmatch(self.recording_id) else None


def read_rows(
    metadata: Path,
    collection_column: str | None = None,
    needs_label: bool = True,
    uses_others: bool = False,
) -> list[Row]:
    """Read a table of recordings; warn of columns that are not used.

    Parameters
    ----------
    metadata : Path
    collection_column : str, optional
        Column that names the collection of a recording.
    needs_label : bool
        Whether the label is used, and a table without one is refused.
    uses_others : bool
        Whether the columns `OTHER_SPECIES` are used; a table without such a column is refused then.

    Raises
    ------
    InputError
        If it cannot be read, lacks a column for file or label, or labels sections within files.
    """
    table = _read_table(metadata)
    _refuse_stretches(table, metadata)
    names = {field: _columns_of(field, table) for field in COLUMNS}
    if collection_column is not None:
        names["collection"] = (collection_column.strip().lower(),)
        if names["collection"][0] not in table.columns:
            raise _no_column("collection", [names["collection"]], table, metadata)
    file_columns = [name for name in FILE_COLUMNS if name in table.columns]
    has_xeno_canto_id = names["recording_id"] and names["recording_id"][0] in XENO_CANTO_ID_COLUMNS
    if not file_columns and not has_xeno_canto_id:
        raise _no_column("file", [(name,) for name in FILE_COLUMNS], table, metadata)
    if not names["label"] and needs_label:
        raise _no_column("label", COLUMNS["label"], table, metadata)
    used = [
        f"{field} from column {' with '.join(own)}"
        for field, own in names.items()
        if own and (needs_label or field != "label")
    ]
    log.info("%s: %s", metadata, ", ".join(used) or "only the column of the file is used")
    if uses_others and not set(OTHER_SPECIES) & set(table.columns):
        raise _no_column("secondary labels", [(name,) for name in OTHER_SPECIES], table, metadata)
    if not uses_others:
        _warn_of_other_species(table, metadata)

    def texts(columns: tuple[str, ...]) -> list[str]:
        return [tidy(" ".join(cells)) for cells in zip(*(table[name] for name in columns), strict=True)]

    of_field = {field: texts(own) if own else [""] * len(table) for field, own in names.items()}
    species = [texts(own) for own in COLUMNS["label"] if set(own) <= set(table.columns)]
    files = [table[name].str.strip() for name in file_columns]
    others = [table[name] for name in OTHER_SPECIES if uses_others and name in table.columns]
    rows = []
    for i, number in enumerate(table.index):
        recording_id = of_field["recording_id"][i]
        if has_xeno_canto_id and recording_id.isdecimal():
            recording_id = f"XC{recording_id}"
        if XENO_CANTO_ID.fullmatch(recording_id):
            recording_id = recording_id.upper()
        rows.append(
            Row(
                place=f"{metadata.name}, row {number + 2}",  # the header is row 1
                files={name: column.iat[i] for name, column in zip(file_columns, files, strict=True)},
                label=of_field["label"][i],
                names=tuple(column[i] for column in species),
                recording_id=recording_id,
                recordist=of_field["recordist"][i],
                licence=of_field["licence"][i],
                collection=of_field["collection"][i],
                others=tuple(sorted({name for column in others for name in names_in(column.iat[i])})),
            )
        )
    return rows


def names_in(text: str) -> list[str]:
    """Return the names in a cell: a list in the notation of Python, as in BirdCLEF, or separated by ; or | or commas.

    Examples
    --------
    >>> names_in("['eurrob1', 'comcha']")
    ['eurrob1', 'comcha']
    >>> names_in("Turdus merula; Parus major")
    ['Turdus merula', 'Parus major']
    """
    if text.strip().lower() in EMPTY_LISTS:
        return []
    try:
        names = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if not isinstance(names, list | tuple | set):
        names = re.split(r"[;|]" if re.search(r"[;|]", text) else ",", text.strip().strip("[]{}"))
    return [name for name in (tidy(str(name)) for name in names) if name]


def _read_table(metadata: Path) -> pd.DataFrame:
    if not metadata.is_file():
        raise InputError(f"{metadata}: no such file; {FIX}")
    try:
        # Blank lines are kept at first, so that row numbers in messages match those of a spreadsheet.
        table = pd.read_csv(metadata, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except UnicodeDecodeError as error:
        raise InputError(f"{metadata} is not UTF-8 ({error}): save it as UTF-8") from error
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{metadata} cannot be read ({str(error).strip()}); {FIX}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{metadata}: its rows have more fields than its header; {FIX}")
    table.columns = [str(name).strip().lower() for name in table.columns]
    for name, separator in (("semicolons", ";"), ("tabs", "\t")):
        if len(table.columns) == 1 and separator in table.columns[0]:
            columns = [column.strip() for column in table.columns[0].split(separator)]
            if any(_is_start(column) for column in columns) and any(_is_end(column) for column in columns):
                raise _stretches(metadata, [column for column in columns if _is_start(column) or _is_end(column)])
            raise InputError(f"{metadata} is separated by {name}: save it with commas")
    table = table.loc[:, ~table.columns.duplicated()].fillna("")
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise InputError(f"{metadata} has a header and no rows; {FIX}")
    return table


def _columns_of(field: str, table: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns that hold a field; none if it is missing."""
    for names in COLUMNS[field]:
        if names == ("id",) and "gen" not in table.columns:
            continue  # not xeno-canto's: it may count rows and give each piece of a recording another id
        if set(names) <= set(table.columns):
            return names
    return ()


def _no_column(field: str, accepted: Iterable[tuple[str, ...]], table: pd.DataFrame, metadata: Path) -> InputError:
    expected = ", ".join(" with ".join(names) for names in accepted)
    return InputError(
        f"{metadata} has no column for the {field}: found {', '.join(table.columns)}; expected one of {expected}"
    )


# ------------------------------------------------------------------------------------------------ sections within files


def _plain(column: str) -> str:
    """Return the name of a column in one spelling: ``Begin Time (s)`` is ``begin_time_s``."""
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def _is_start(column: str) -> bool:
    return START.fullmatch(_plain(column)) is not None


def _is_end(column: str) -> bool:
    return END.fullmatch(_plain(column)) is not None


def _refuse_stretches(table: pd.DataFrame, metadata: Path) -> None:
    """Raise `InputError` if the rows describe sections within files."""
    file_columns = [name for name in FILE_COLUMNS if name in table.columns]
    is_repeated = any(table.loc[table[name] != "", name].duplicated().any() for name in file_columns)
    starts = []
    for column in table.columns:
        is_start = _is_start(column)
        if not is_start and not (is_repeated and _plain(column) in PLACES_IF_REPEATED):
            continue
        values = table[column].str.strip()
        values = values[values != ""]
        numbers = pd.to_numeric(values[~values.str.fullmatch(TIME_OF_DAY)], errors="coerce")
        is_place = (numbers.abs() < LARGEST_SECOND).any()
        # A time of day is metadata of a recording; several of them for one file are sections of it.
        if is_place or (is_start and is_repeated and len(values)):
            starts.append(column)
    if starts:
        ends = [column for column in table.columns if column not in starts and _is_end(column)]
        row = table[starts + ends].iloc[0]
        raise _stretches(metadata, starts + ends, ", ".join(f"{name} {value}" for name, value in row.items()))


def _stretches(metadata: Path, columns: list[str], example: str = "") -> InputError:
    example = f" (the first row: {example})" if example else ""
    return InputError(
        f"{metadata} describes the sound in sections within files, in the columns {', '.join(columns)}{example}; "
        "expected labels of whole files. Cut the sections out, give each piece its own row, and give all pieces of a "
        "recording the same recording_id. If the label is true for the whole file, remove these columns. A table of "
        "labels with times is given with --annotations"
    )


def _warn_of_other_species(table: pd.DataFrame, metadata: Path) -> None:
    for column in OTHER_SPECIES:
        if column in table.columns:
            n_rows = (~table[column].str.strip().str.lower().isin(EMPTY_LISTS)).sum()
            if n_rows:
                log.warning(
                    "%s: in %d of %d rows the column %s names other species in the recording: it is not "
                    "used, because each recording has one label (--secondary_labels uses it)",
                    *(metadata, n_rows, len(table), column),
                )
