"""Arrays of float32 with values for each clip, on disk: written batch by batch, continued after a kill, memory-mapped.

The files of a result ``name`` are ``<name><suffix>.npy``, one for each array, and ``<name>.json``: the key, and the
number of clips that are done; when all are, also the digests of the files. The second axis of every array is the clip,
so that each layer is contiguous.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, runs
from utils.core.errors import Interrupted
from utils.core.files import BROKEN, read_json, sha256_of_file, sha256_of_lines, write_json

with lazy.imported_on_first_use():
    import numpy as np

if TYPE_CHECKING:
    from utils.data.clips import Clips

log = logging.getLogger(__name__)

SAVE_EVERY_S = 10.0

# Takes clips and the index of the first one to run; yields, batch by batch, the values for each array.
Run = Callable[["Clips", int], "Iterator[tuple[np.ndarray, ...]]"]


def file_names(name: str, suffixes: Iterable[str]) -> list[str]:
    """Return the names of the files that `compute` writes."""
    return [*(f"{name}{suffix}.npy" for suffix in suffixes), f"{name}.json"]


def compute(
    clips: Clips,
    folder: Path,
    name: str,
    key: dict,
    shapes: Mapping[str, tuple[int, ...]],
    batch_size: int,
    run: Run,
) -> tuple[np.ndarray, ...]:
    """Return arrays of all clips, computed now or by an earlier call with the same key.

    A call can be killed at any moment. The next call with the same key continues from the last save, with the
    same batches, and writes the same bytes. Processes that torchrun started share the clips, and the first
    process joins their files. If the same number of processes starts again, they continue as well.

    Parameters
    ----------
    clips : Clips
    folder : Path
        An existing folder.
    name : str
        Begin of the names of the files, and what messages call the result.
    key : dict
        All that the values depend on besides the ids of the clips; ready for JSON.
    shapes : mapping of str to tuple of int
        For each array, by the suffix of its file: its shape without the axis of the clips, which is the second.
    batch_size : int
        Clips per batch; processes begin at a multiple of it.
    run : callable
        See `Run`.

    Returns
    -------
    tuple of ndarray of float32
        In the order of `shapes`; memory-mapped: changes stay in memory.

    Raises
    ------
    OSError
        If the disk has no room; the size of all arrays is reserved before the first batch.
    """
    arrays = _Arrays(clips, Path(folder), name, key, shapes)
    # Every process reads the files before any process changes them.
    done = runs.from_all_processes(lambda: arrays.n_done == len(clips))
    if runs.n_processes() == 1:
        _compute_alone(arrays, run)
    elif not all(done):
        _compute_together(arrays, batch_size, run)
    return arrays.open("c")


class _Arrays:
    """The files of some clips, complete or in progress; see `compute`."""

    def __init__(self, clips: Clips, folder: Path, name: str, key: dict, shapes: Mapping[str, tuple[int, ...]]):
        self.clips, self.name, self._folder, self._given = clips, name, folder, (key, shapes)
        self._key = {**key, "clip_ids": sha256_of_lines(clips.table["clip_id"])}
        self._shapes = {
            folder / f"{name}{suffix}.npy": (shape[0], len(clips), *shape[1:]) for suffix, shape in shapes.items()
        }
        self._progress_path = folder / f"{name}.json"

    @property
    def n_done(self) -> int | None:
        """Number of clips that an earlier call with this key has saved; None if it left no usable files."""
        try:
            progress = read_json(self._progress_path, dict, "")
            if progress["key"] != self._key:
                return None
            for path, shape in self._shapes.items():
                if np.lib.format.open_memmap(path, mode="r").shape != shape:
                    return None
            n_done = progress["n_done"]
            if n_done == len(self.clips) and progress["sha256"] != self._digests():
                log.warning("%s: a file was changed or is damaged: it is computed again", self._progress_path.parent)
                return None
            return n_done if type(n_done) is int and 0 <= n_done <= len(self.clips) else None
        except BROKEN:
            return None

    def _digests(self) -> list[str]:
        return [sha256_of_file(path) for path in self._shapes]

    def reserve(self) -> None:
        """Create the files anew, with room for all clips."""
        self._progress_path.unlink(missing_ok=True)
        for path, shape in self._shapes.items():
            _reserve(path, shape)

    def open(self, mode: str = "r+") -> tuple[np.ndarray, ...]:
        """Return the arrays; see the modes of ``numpy.memmap``."""
        return tuple(np.lib.format.open_memmap(path, mode=mode) for path in self._shapes)

    def save(self, n_done: int, arrays: Iterable[np.ndarray]) -> None:
        """Record that the first `n_done` clips are in the arrays."""
        for array in arrays:
            array.flush()
        digests = {"sha256": self._digests()} if n_done == len(self.clips) else {}
        write_json(self._progress_path, {"key": self._key, "n_done": n_done} | digests)

    def of_share(self, share: range, number: int, n_shares: int) -> _Arrays:
        """Return the files of the clips that one of several processes computes."""
        return _Arrays(self.clips.only(share), self._folder, f"{self.name}-{number}-of-{n_shares}", *self._given)

    def put_together(self, shares: Iterable[_Arrays]) -> None:
        """Copy the files of the shares into these files, in order, and delete them."""
        self.reserve()
        arrays, n_done = self.open(), 0
        for share in shares:
            rows = slice(n_done, n_done + len(share.clips))
            for array, own in zip(arrays, share.open("r"), strict=True):
                array[:, rows] = own
            n_done = rows.stop
        self.save(n_done, arrays)
        self.remove_shares()

    def remove_shares(self) -> None:
        """Delete the files of all shares, also those of another number of processes."""
        for path in self._folder.glob(f"{self.name}-*-of-*"):
            path.unlink()


def _compute_alone(arrays: _Arrays, run: Run) -> None:
    """Compute the values of those clips that are not done yet."""
    clips, n_done = arrays.clips, arrays.n_done
    if n_done is None:
        arrays.reserve()
        n_done = 0
    elif n_done:
        log.info("%s: %d of %d clips were done before", arrays.name.replace("_", " "), n_done, len(clips))
    if n_done < len(clips):
        files = arrays.open()
        saved_at = time.monotonic()
        try:
            for values in run(clips, n_done):
                rows = slice(n_done, n_done + values[0].shape[1])
                for file, own in zip(files, values, strict=True):
                    file[:, rows] = own
                n_done = rows.stop
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    arrays.save(n_done, files)
                    saved_at = time.monotonic()
        except Interrupted:
            arrays.save(n_done, files)
            raise
        arrays.save(n_done, files)
    if runs.n_processes() == 1:
        arrays.remove_shares()


def _compute_together(arrays: _Arrays, batch_size: int, run: Run) -> None:
    """Let every process compute its share of the clips in its own files; the first process joins them."""
    ranges = runs.from_all_processes(lambda: runs.own_share(len(arrays.clips), batch_size))
    shares = [arrays.of_share(own, number, len(ranges)) for number, own in enumerate(ranges, start=1)]
    own = shares[runs.process_number()]
    runs.from_all_processes(lambda: _compute_alone(own, run))
    runs.from_all_processes(lambda: arrays.put_together(shares) if runs.is_first_process() else None)


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    if path.is_file():
        path.unlink()  # never overwritten: an old result may have a hard link to this file
    # A full disk must raise an error here: writing to a memory map on a full disk kills the process.
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    del array
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
