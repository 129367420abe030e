"""Write files whole or not at all, and identify files by their checksum."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils.core.errors import InputError
from utils.core.text import printable

PARTIAL_SUFFIX = ".partial"
MOST_BYTES_OF_NAME = 255 - len(f".{PARTIAL_SUFFIX}")  # of a file that `atomic_path` can write, on usual file systems


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block succeeds.

    The file is flushed to disk before the rename. After a crash of the machine, `path` is therefore either the old file
    or the whole new one. If the block fails, the temporary file is removed. The temporary name keeps the suffix of
    `path`, because some writers choose the format by it.

    Parameters
    ----------
    path : Path
        Final name. Its folder must exist.

    Yields
    ------
    Path
        Name to write to.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}{PARTIAL_SUFFIX}{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV, atomically, without control characters."""
    text = io.StringIO()
    cells = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows([columns, *cells])
    write_text(path, text.getvalue())


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, atomically. NaN is an error: JSON has no NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


# A notes file of this program can raise these errors if it is truncated or belongs to another program. It is then
# rewritten.
BROKEN = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


NAMES_OF_KINDS = {dict: "an object {…}", list: "a list […]", str: "a text", bool: "true or false"}
NAMES_OF_KINDS |= {int: "a whole number", float: "a number", type(None): "null"}


def name_of(kind: type) -> str:
    """Return the name of a type of JSON value, in words for people who do not know Python."""
    return NAMES_OF_KINDS[kind]


def read_json(path: Path, kind: type, remedy: str) -> object:
    """Read a JSON file that this program wrote.

    Parameters
    ----------
    path : Path
    kind : type
        Expected type of the value: ``dict``, ``list``, or ``object`` for any type.
    remedy : str
        What the user can do if the file is missing or damaged; it ends the message.

    Raises
    ------
    InputError
        If it is missing, cannot be read, is not JSON, or holds a value of another type.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {remedy}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{path} cannot be read as JSON (it is nested too deeply); {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(value, kind):
        raise InputError(f"{path} holds {name_of(type(value))}; expected {name_of(kind)}; {remedy}")
    return value


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the bytes of a file, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_lines(lines: Iterable[str]) -> str:
    """Return the hexadecimal SHA-256 of `lines`, each followed by a newline."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()
