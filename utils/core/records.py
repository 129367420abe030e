"""``run.json``, the record of a run: its schema, reading it, and comparing it with a folder."""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from utils.core.errors import InputError
from utils.core.files import name_of, read_json, sha256_of_file

SCHEMA_VERSION = 1
RECORD_NAME = "run.json"
LOG_NAME = "log.txt"
LOCK_NAME = ".lock"
FIGURE_SUFFIXES = (".pdf", ".png")
STATUSES = ("running", "complete", "interrupted", "failed")
# Status while an old result makes room, until the new one is complete; see `replacing`.
MOVING_NAME = ".replacing"
REPLACED = re.compile(r"replaced-\d{8}T\d{6}Z(-\d+)?")
# By stage and argument: an argument that came with new names of values, and the new names by the old ones. A record
# without that argument has the old names.
RENAMED = {
    ("01_data_processing", "split_by"): (
        "folds",
        {"recordist": "recordist_and_species", "strict_recordist": "recordist"},
    )
}
AGAIN = "delete the folder yourself, and run the stage that made it again"


class DamagedRecord(InputError):
    """A ``run.json`` that is not JSON: truncated or overwritten. A record of another program raises `InputError`."""


def read_record(folder: Path) -> dict | None:
    """Return the ``run.json`` of a folder, or None if there is none.

    What was ``asked`` of an earlier version is in today's words; ``renamed`` then has the former ones.

    Raises
    ------
    DamagedRecord
        If it cannot be read as JSON.
    InputError
        If it is a run record of another version, or not a run record.
    """
    path = Path(folder) / RECORD_NAME
    if not os.path.lexists(path):
        return None
    try:
        record = read_json(path, object, AGAIN)
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise DamagedRecord(str(error)) from error.__cause__
    if isinstance(record, dict) and "stage" in record and record.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {record.get('schema_version')!r}, expected {SCHEMA_VERSION}: it is of another "
            f"version of this program; {AGAIN}"
        )
    trouble = _trouble(record)
    if trouble:
        raise InputError(f"{path} is not a run record: {trouble}; {AGAIN}")
    _put_in_todays_words(record)
    return record


def _put_in_todays_words(record: dict) -> None:
    asked = record.get("asked", {})
    for (stage, argument), (came_with, new_names) in RENAMED.items():
        was = asked.get(argument)
        if record["stage"] == stage and came_with not in asked and isinstance(was, str) and was in new_names:
            asked |= {argument: new_names[was], came_with: None}
            record["renamed"] = {argument: was}


def _trouble(record: object) -> str | None:
    """Return how a value breaks the schema; None if it follows it."""
    expected = {"stage": str, "status": str, "arguments": dict, "inputs": list, "outputs": list, "attempts": int}
    optional = {"asked": dict, "metrics": dict, "writes": list, "scratch": list, "replaces": list, "restores": str}
    optional["renamed"] = dict
    if not isinstance(record, dict) or expected.keys() - record.keys():
        return f"expected the keys {', '.join(expected)}"
    for name, kind in (expected | {name: kind for name, kind in optional.items() if name in record}).items():
        if type(record[name]) is not kind:
            return f"{name!r} holds {name_of(type(record[name]))}, expected {name_of(kind)}"
    if not re.fullmatch(r"[\w.-]+", record["stage"], re.ASCII) or record["status"] not in STATUSES:
        return f"expected the name of a stage, and a status of {', '.join(STATUSES)}"
    for name in ("writes", "scratch", "replaces"):
        if not all(isinstance(value, str) for value in record.get(name, ())):
            return f"{name!r} holds something other than text"
    replaced = [*record.get("replaces", ()), *([record["restores"]] if "restores" in record else ())]
    if not all(REPLACED.fullmatch(name) for name in replaced):
        return "'replaces' or 'restores' holds another name than that of a replaced result"
    if not all(is_plain_path(name) and "/" not in name for name in record.get("scratch", ())):
        return "'scratch' holds something other than names in the folder"
    for row in record["inputs"]:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or "sha256" not in row:
            return "a row of 'inputs' has no name or no sha256"
        if not isinstance(row["sha256"], str | None):
            return "a sha256 in 'inputs' is not text"
    for row in record["outputs"]:
        if not isinstance(row, dict) or {"path", "bytes", "sha256"} - row.keys():
            return "a row of 'outputs' lacks one of path, bytes and sha256"
        if not is_plain_path(row["path"]):
            return f"'outputs' lists {row['path']!r:.80}, expected the path of a file in the folder"
        if type(row["bytes"]) is not int or row["bytes"] < 0 or not isinstance(row["sha256"], str):
            return f"the size or the sha256 of {row['path']!r:.80} is of another type"
        changed = row.get("changed", [])
        if not isinstance(changed, list) or not all(
            isinstance(version, dict) and {"bytes", "sha256"} <= version.keys() for version in changed
        ):
            return f"'changed' of {row['path']!r:.80} is no list of versions with bytes and sha256"
    return None


def is_plain_path(path: object) -> bool:
    """Return whether a value is a relative path, in its shortest spelling, to something inside a folder."""
    if not isinstance(path, str) or "\0" in path:
        return False
    parts = PurePosixPath(path).parts
    return bool(parts) and str(PurePosixPath(path)) == path and not path.startswith("/") and ".." not in parts


def check_outputs(folder: Path, record: dict) -> None:
    """Compare every output that `record` names with what is in `folder`.

    Raises
    ------
    InputError
        If it names no output, or if one is missing or differs in size or SHA-256; the message names that output.
    """
    damage = find_damage(folder, record["outputs"])
    if damage is not None:
        raise InputError(f"{damage}; run {record['stage']}.py again with --overwrite")


def find_damage(folder: Path, outputs: Sequence[dict]) -> str | None:
    """Describe the first of the `outputs` of a ``run.json`` that is missing or differs; None if all are whole.

    A file that a later stage has changed by `runs.change_output` is whole in each recorded version. Figures are not
    checked: they are drawn from the other files and can be drawn again.
    """
    if not outputs:
        return f"{Path(folder) / RECORD_NAME} lists no outputs, so nothing in the folder can be checked"
    outputs = [output for output in outputs if not output["path"].endswith(FIGURE_SUFFIXES)]
    for output in outputs:
        path = Path(folder) / output["path"]
        if not path.is_file():
            return f"{path} is missing, but {RECORD_NAME} lists it"
        size = path.stat().st_size
        if size not in [version["bytes"] for version in _versions(output)]:
            return f"{path} has {size} bytes, {RECORD_NAME} records {output['bytes']}: it is damaged"
    pool = ThreadPoolExecutor()  # hashing releases the interpreter lock
    try:
        digests = pool.map(lambda output: sha256_of_file(Path(folder) / output["path"]), outputs)
        for output, digest in zip(outputs, digests, strict=True):
            if digest not in [version["sha256"] for version in _versions(output)]:
                return (
                    f"{Path(folder) / output['path']} has sha256 {digest[:12]}…, {RECORD_NAME} records "
                    f"{output['sha256'][:12]}…: it was changed or is damaged"
                )
        return None
    finally:
        pool.shutdown(cancel_futures=True)  # after a signal, the remaining files are not hashed


def _versions(output: dict) -> list[dict]:
    return [output, *output.get("changed", ())]


# ------------------------------------------------------------------------------------ content of a folder


def walk(folder: Path, skip: Iterable[str] = ()) -> Iterator[str]:
    """Yield the relative paths of all files and links in a run folder, without its record, log, lock and old results.

    Links to folders are named but not followed: their targets are not in the folder.

    Parameters
    ----------
    folder : Path
    skip : iterable of str
        Other top-level names to leave out.
    """
    skipped = {RECORD_NAME, LOG_NAME, LOCK_NAME, MOVING_NAME, *skip}
    for where, folders, files in os.walk(folder):
        relative = Path(where).relative_to(folder)
        if not relative.parts:
            folders[:] = [name for name in folders if name not in skipped and not REPLACED.fullmatch(name)]
            files = [name for name in files if name not in skipped]
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        yield from sorted((relative / name).as_posix() for name in [*files, *links])


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a relative path matches one of the `patterns`; ``*`` matches slashes, too."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
