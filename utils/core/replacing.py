"""Replace an old result by a new one: keep it until the new one is complete, then delete the files in its record.

``--overwrite`` moves the outputs of a stage into ``<output folder>/replaced-<time>``. After a kill at any moment, the
whole old result is either in its old place or in that folder. When the new result is complete, the files that the old
``run.json`` lists are deleted. All other files, such as those of a user, stay where they are.
"""

import contextlib
import datetime
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from utils.core.errors import InputError, UsageError
from utils.core.files import atomic_path, write_json
from utils.core.records import MOVING_NAME, RECORD_NAME, matches, read_record, walk

log = logging.getLogger(__name__)

NAMED_IN_LOG = 12


def check_apart(output_dir: Path, inputs: Mapping[str, Path | str]) -> None:
    """Refuse an output folder that equals, contains or is inside an input of the stage, or is inside another result.

    Folders are compared by device and inode, so that links and other spellings of a path make no difference.

    Parameters
    ----------
    output_dir : Path
        May not exist yet.
    inputs : mapping of str to path
        By the name of the argument; a path that does not exist is ignored.

    Raises
    ------
    UsageError
    """
    above_output = _identities(output_dir)
    for name, path in inputs.items():
        above_input = _identities(path) if Path(path).exists() else []
        if not above_input:
            continue
        if above_input[0] == above_output[0]:
            relation = "is"
        elif above_input[0] in above_output:
            relation = "is inside"
        elif above_output[0] is not None and above_output[0] in above_input:
            relation = "holds"
        else:
            continue
        raise UsageError(
            f"--output_dir {output_dir} {relation} {path} of --{name}: a result there could destroy its own input; "
            "choose another --output_dir"
        )
    for folder in Path(os.path.realpath(output_dir)).parents:
        with contextlib.suppress(InputError, OSError):
            record = read_record(folder)
            if record is not None and record["status"] != "failed":
                raise UsageError(
                    f"--output_dir {output_dir} is inside {folder}, an output folder of {record['stage']}.py: "
                    "every result has a folder of its own; choose another --output_dir"
                )


def _identities(path: Path | str) -> list[tuple[int, int] | None]:
    """Return device and inode of a path and of every folder above it; None for a path that does not exist."""
    real, found = Path(os.path.realpath(path)), []
    for each in (real, *real.parents):
        try:
            status = each.stat()
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found


# --------------------------------------------------------------------------------- making room, and back


def is_empty(folder: Path, record: dict, disposable: Iterable[str], kept: Path | None = None) -> bool:
    """Return whether an unfinished run has left nothing that is worth keeping.

    Parameters
    ----------
    folder : Path
    record : dict
        Its ``run.json``.
    disposable : iterable of str
        Patterns of files that are not worth keeping.
    kept : Path, optional
        The old result; links to its files are not worth keeping either.
    """
    own = Written(record)
    return all(
        (own.patterns and path not in own)
        or matches(path, disposable)
        or (kept is not None and (kept / path).exists() and (kept / path).samefile(folder / path))
        for path in walk(folder)
    )


def set_aside(folder: Path, record: dict | None, writes: Iterable[str], reusable: Iterable[str]) -> str:
    """Move the files of a run, and the files in the way of the next run, into ``<folder>/.replacing``.

    The move is valid once a new ``run.json`` names the returned folder; `finish_move` then renames ``.replacing`` to
    it.

    Parameters
    ----------
    folder : Path
    record : dict or None
        Its ``run.json``; None if it is damaged.
    writes : iterable of str
        Patterns of the files that the next run writes.
    reusable : iterable of str
        Top-level names that the next run may use unchanged: they are linked, not moved. The next run must not write
        into these files; it may only replace them.

    Returns
    -------
    str
        Name of the future folder.
    """
    moving, reusable = folder / MOVING_NAME, set(reusable)
    moving.mkdir()
    old = Written(record)
    moved = [name for name in sorted(old.scratch - reusable) if os.path.lexists(folder / name)]
    for name in moved:
        (folder / name).rename(moving / name)
    for path in list(walk(folder, skip=old.scratch)):
        if path in old or matches(path, writes):
            (moving / path).parent.mkdir(parents=True, exist_ok=True)
            if path.partition("/")[0] in reusable:
                _link(folder / path, moving / path)
            else:
                (folder / path).rename(moving / path)
                _remove_empty((folder / path).parent, folder)
                moved.append(path)
    with atomic_path(moving / RECORD_NAME) as partial:
        shutil.copyfile(folder / RECORD_NAME, partial)
    name = _new_name(folder)
    log.info(
        "--overwrite: the old content is kept in %s until the new result is complete, which needs space for both: %s",
        folder / name,
        some(moved) or "nothing",
    )
    return name


def _new_name(folder: Path) -> str:
    name = f"replaced-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (folder / name).exists())


def finish_move(folder: Path, record: dict | None) -> None:
    """Rename the moved files to the folder that the record names; without such a record, put them back."""
    moving = folder / MOVING_NAME
    if not moving.is_dir():
        return
    name = (record or {}).get("replaces", [""])[-1:]
    if name and name[0] and not (folder / name[0]).exists():
        moving.rename(folder / name[0])
        return
    (moving / RECORD_NAME).unlink(missing_ok=True)
    put_back(folder, MOVING_NAME, ())
    if moving.is_dir():
        moving.rename(folder / _new_name(folder))


def put_back(folder: Path, name: str, reusable: Iterable[str]) -> None:
    """Move the content of ``folder/name`` back to where it was, its ``run.json`` last.

    Files of a later run under `reusable` names are replaced. If another file now has the same name, both files stay.
    """
    source = folder / name
    for path in list(walk(source)):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(source / path):  # two links to one file
            (source / path).unlink()
        elif not os.path.lexists(target) or path.partition("/")[0] in reusable:
            (source / path).replace(target)
    if (source / RECORD_NAME).exists():
        (source / RECORD_NAME).replace(folder / RECORD_NAME)
    remove_empty_folders(source)


def restore(folder: Path, name: str, reusable: Iterable[str]) -> None:
    """Put an old result back in place of a run that left nothing; a later call finishes an interrupted one.

    Until the old result is whole again, its record has the status ``failed``.
    """
    source = folder / name
    if (source / RECORD_NAME).exists():
        write_json(folder / RECORD_NAME, {**read_record(source), "status": "failed", "restores": name})
    put_back(folder, name, reusable)
    log.warning("the old result is back in %s", folder)


def discard(folder: Path, names: Iterable[str]) -> None:
    """Delete the files of old results that their own records list; log the deleted files and those that stay."""
    for name in names:
        source = folder / name
        if not source.is_dir():
            continue
        with contextlib.suppress(InputError):
            old = Written(read_record(source))
            doomed = [path for path in walk(source) if path in old and old.is_unchanged(path, source)]
            n_bytes = sum(os.lstat(source / path).st_size for path in doomed)
            for path in doomed:
                (source / path).unlink()
            if doomed:
                log.info("deleted of the old result: %s (%.3g MB)", some(doomed), n_bytes / 1e6)
        left = list(walk(source))
        if left:
            log.warning(
                "%s keeps files that no %s lists or that were changed: %s; delete it yourself if it is not needed",
                *(source, RECORD_NAME, some(left)),
            )
            continue
        (source / RECORD_NAME).unlink(missing_ok=True)
        remove_empty_folders(source)


class Written:
    """The files that a run wrote, according to its ``run.json``; none if the record is damaged.

    The record of a complete run lists its files. That of an unfinished run has only the patterns of its stage.
    """

    def __init__(self, record: dict | None):
        record = record or {}
        self.scratch = set(record.get("scratch", ()))
        self.is_complete = record.get("status") == "complete"
        self.sizes = {output["path"]: output["bytes"] for output in record.get("outputs", ())}
        self.folders = {str(above) for path in self.sizes for above in PurePosixPath(path).parents}
        self.patterns = record.get("writes", ())

    def __contains__(self, path: str) -> bool:
        """Return whether the run wrote a file; a link in place of an output folder counts, too."""
        if path.partition("/")[0] in self.scratch:
            return True
        return path in self.sizes or path in self.folders if self.is_complete else matches(path, self.patterns)

    def is_unchanged(self, path: str, folder: Path) -> bool:
        """Return whether a file of the run has the recorded size; True if no size is recorded."""
        return path not in self.sizes or (folder / path).stat().st_size == self.sizes[path]


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, target)


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and the folders above it, below `top`, as long as they are empty."""
    while folder != top:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def remove_empty_folders(folder: Path) -> None:
    """Remove a folder and its subfolders if they hold no file; keep each folder that holds one."""
    for where, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(where).rmdir()


def some(paths: Sequence[str]) -> str:
    """Name paths by their top-level name in the folder, a dozen at most."""
    names = list(dict.fromkeys(f"{path.partition('/')[0]}/" if "/" in path else path for path in paths))
    more = f" and {len(names) - NAMED_IN_LOG} more" if len(names) > NAMED_IN_LOG else ""
    return ", ".join(names[:NAMED_IN_LOG]) + more
