"""Distribute sound files over many jobs (``--shard 3/8``), and merge what they made of them.

The folder of a shard holds a spool like that of the stage itself, the list of all files as its job found them, and the
results for its own files.
"""

import argparse
import heapq
import json
import logging
import posixpath
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from utils.core import cli, runs, workers
from utils.core.errors import InputError
from utils.core.files import BROKEN, read_json, write_text
from utils.data import preparation, spool
from utils.data.recordings import Skipped

SPOOL_NAME = "spool"
LISTING_NAME = "listing.json"
DECODED_NAME = "decoded.json"
BYTES_PER_FILE = 2**16  # added to the size of each file, so that tiny files are also distributed evenly
NAMED_IN_MESSAGE = 3
MOST_SHARDS = 999_999
MOST_NUMBERS = 200  # characters in a list of shards

log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """The share of a job among `n`; `number` counts from 1."""

    number: int
    n: int

    def __str__(self) -> str:
        return f"{self.number}/{self.n}"


def shard(text: str) -> Shard:
    """Parse ``3/8``."""
    match = re.fullmatch(r"0*(\d+)/0*(\d+)", text, flags=re.ASCII)
    if match and len(match[2]) > len(str(MOST_SHARDS)):
        raise argparse.ArgumentTypeError(f"{text!r} asks for too many shards; there can be {MOST_SHARDS:,}")
    if not match or len(match[1]) > len(match[2]) or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard such as 3/8; the first of 8 is 1/8, the last 8/8")
    return Shard(int(match[1]), int(match[2]))


def number_of_shards(text: str) -> int:
    """Parse the 8 of ``3/8``, with the limits of `shard`."""
    match = re.fullmatch(r"0*([1-9]\d*)", text, flags=re.ASCII)
    if not match or len(match[1]) > len(str(MOST_SHARDS)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of shards; expected 1 to {MOST_SHARDS}")
    return int(match[1])


def add_arguments(parser: argparse.ArgumentParser, help_of_shard: str, help_of_merge: str) -> None:
    """Add ``--shard`` and ``--merge_shards``."""
    among_many = parser.add_mutually_exclusive_group()
    among_many.add_argument("--shard", type=shard, default=None, metavar="I/N", help=help_of_shard)
    among_many.add_argument("--merge_shards", type=number_of_shards, default=None, metavar="N", help=help_of_merge)


def args_of_shard(args: argparse.Namespace, shard: Shard) -> argparse.Namespace:
    """Return the arguments of the job that makes a shard, with the folder that is its own."""
    output_dir = shard_dir(args.output_dir, shard.number, shard.n)
    return argparse.Namespace(**{**vars(args), "shard": shard, "merge_shards": None, "output_dir": output_dir})


def shard_dir(output_dir: Path, number: int, n_shards: int) -> Path:
    """Return the folder of a shard, counted from 1: ``<output_dir>.shards/3-of-8``."""
    if output_dir.name in ("", ".."):  # these paths have no name
        output_dir = output_dir.resolve()
    return output_dir.parent / f"{output_dir.name}.shards" / f"{number}-of-{n_shards}"


def deal(files: Sequence[spool.Listed], n_shards: int) -> list[list[spool.Listed]]:
    """Distribute files so that all shards need about the same time to decode.

    A second of sound has many more bytes in some formats than in others, so the files of each suffix are distributed
    separately. The largest comes first, and each goes to the shard with the fewest bytes so far (Graham 1969, longest
    processing time first). Two shards then differ, for every format, at most by its largest file.

    Parameters
    ----------
    files : sequence of Listed
    n_shards : int
        At least 1.

    Returns
    -------
    list of list of Listed
        Every file once; independent of the order of `files`.
    """
    shards: list[list[spool.Listed]] = [[] for _ in range(n_shards)]
    totals = [0] * n_shards
    by_suffix = defaultdict(list)
    for file in files:
        by_suffix[posixpath.splitext(file.path)[1].lower()].append(file)
    for _, alike in sorted(by_suffix.items()):
        loads = sorted((0, total, number) for number, total in enumerate(totals))
        for file in sorted(alike, key=lambda file: (-file.size, file.path)):
            load, _, number = loads[0]
            weight = file.size + BYTES_PER_FILE
            shards[number].append(file)
            totals[number] += weight
            heapq.heapreplace(loads, (load + weight, totals[number], number))
    return shards


# ------------------------------------------------------------------------------------------- in a shard's job


def write_listing(folder: Path, listed: Sequence[spool.Listed]) -> None:
    """Record all files as they are now, so that the merge can name those that have changed."""
    rows = [[file.path, file.size, file.mtime_ns] for file in listed]
    write_text(folder / LISTING_NAME, json.dumps({"files": rows}))


def write_decoded(folder: Path, decoded: preparation.Decoded, suffixes: Collection[str]) -> None:
    """Record the results for the shard's files, and remove from its spool what an attempt on other files has left.

    `suffixes` are those of the files that the spool holds for a sound.
    """
    stems = {Path(spool.pcm_name(path)).stem for path in decoded.sounds}
    for path in (folder / SPOOL_NAME).iterdir():
        if path.stem not in stems or path.suffix not in suffixes:
            path.unlink()
    content = {
        "sounds": [asdict(sound) for _, sound in sorted(decoded.sounds.items())],
        "undecodable": [asdict(skip) for skip in decoded.undecodable],
    }
    write_text(folder / DECODED_NAME, json.dumps(content))


# ----------------------------------------------------------------------------------------------- in the merge


@dataclass(frozen=True)
class Fault:
    """Why a shard cannot be merged, whether its task must replace the shard, and an alternative remedy."""

    text: str
    overwrite: bool
    instead: str = ""


MISSING = Fault("it is missing", overwrite=False)


class Merge:
    """Merges what all shards made of their files, after checking them.

    Parameters
    ----------
    output_dir : Path
        Folder of the merged result.
    n_shards : int
    difference : callable
        Returns how the shard of a number, with its record, differs from the expected one; None if it does not.
    command : callable
        Returns the command for the shard of a number, with or without replacing it.
    made_by : str
        The versions that make a shard here; ``decoded_by`` in the metrics of its ``run.json``.
    """

    def __init__(
        self,
        output_dir: Path,
        n_shards: int,
        difference: Callable[[int, dict], str | None],
        command: Callable[[int, bool], str],
        made_by: str,
    ):
        self.output_dir = output_dir
        self.folders = {number: shard_dir(output_dir, number, n_shards) for number in range(1, n_shards + 1)}
        self.records: dict[int, dict] = {}
        self.difference = difference
        self.command = command
        self.made_by = made_by

    def read_records(self, listed: Sequence[spool.Listed]) -> None:
        """Read the ``run.json`` of every shard; `listed` are all files as they are now.

        Raises
        ------
        InputError
            If a shard is missing, incomplete, or made with other arguments, other files or other code.
        """
        self.records, faults = {}, {}
        parent = self.folders[1].parent
        present = {path.name for path in parent.glob("*-of-*")}
        others = {name.partition("-of-")[2] for name in present}
        if others and str(len(self.folders)) not in others:
            raise InputError(
                f"{parent} holds no shard of {len(self.folders)}, but of {', '.join(sorted(others))}: "
                f"give --merge_shards that number, or run {self.command(1, False)}, and the same for the others"
            )
        changes = {preparation.listing_sha256(listed): ""}  # by the listing, which is mostly the same for all shards
        for number, folder in self.folders.items():
            if folder.name not in present:
                faults[number] = MISSING
                continue
            try:
                record = runs.read_record(folder)
            except InputError as error:
                text = f"its {runs.RECORD_NAME} cannot be used ({error.__cause__ or 'it is not a run record'})"
                faults[number] = Fault(text, overwrite=True)
                continue
            if record is None:
                faults[number] = MISSING
                continue
            differs = self.difference(number, record)
            if differs is not None:
                seen = next((i["sha256"] for i in record["inputs"] if i["name"] == "raw_dir"), None)
                if seen not in changes:
                    changes[seen] = _files_changed(folder, listed)
                instead = "put the files back as they were, or " if changes[seen] else ""
                faults[number] = Fault(differs + changes[seen], overwrite=True, instead=instead)
                continue
            fault = _fault_of(record, self.made_by)
            if fault is None:
                self.records[number] = record
            else:
                faults[number] = fault
        self._refuse(faults)

    def check_files(self, pool_map: workers.Map) -> None:
        """Compare every file of every shard with its size and SHA-256 in ``run.json``.

        Raises
        ------
        InputError
            If one is missing, truncated or changed.
        """
        tasks = [CheckTask(n, self.folders[n].absolute(), record["outputs"]) for n, record in self.records.items()]
        results = runs.progress(pool_map(find_damage, tasks), len(tasks), "checking", "shards")
        self._refuse({number: Fault(damage, overwrite=True) for number, damage in results if damage is not None})

    def gather(self, files: Sequence[spool.Listed], from_json: Callable[[dict], object]) -> preparation.Decoded:
        """Return the results for all `files`; `from_json` makes that of a sound from its JSON.

        Raises
        ------
        InputError
            If they were distributed in another way.
        """
        sounds, spool_dirs, undecodable, faults = {}, {}, [], {}
        for (number, folder), dealt in zip(self.folders.items(), deal(files, len(self.folders)), strict=True):
            try:
                content = read_json(folder / DECODED_NAME, dict, "")
                own = {value["path"]: from_json(value) for value in content["sounds"]}
                skipped = [Skipped(**value) for value in content["undecodable"]]
            except BROKEN as error:
                faults[number] = Fault(f"its {DECODED_NAME} cannot be used ({type(error).__name__})", overwrite=True)
                continue
            if own.keys() | {skip.file for skip in skipped} != {file.path for file in dealt}:
                faults[number] = Fault("another version of the program assigned the files differently", overwrite=True)
            sounds |= own
            spool_dirs |= dict.fromkeys(own, (folder / SPOOL_NAME).absolute())
            undecodable += skipped
        self._refuse(faults)
        return preparation.Decoded(sounds, spool_dirs, sorted(undecodable, key=lambda skip: skip.file))

    def finish(self) -> None:
        """Check, after writing, that the shards did not change while they were read.

        Raises
        ------
        InputError
            If a shard was written again in the meantime.
        """
        changed = [number for number, folder in self.folders.items() if not self._is_as_read(number, folder)]
        if changed:
            # The output may mix old and new shards, so the next attempt must not reuse it.
            (self.output_dir / preparation.SCRATCH_NAME / preparation.PLAN_NAME).unlink(missing_ok=True)
            raise InputError(
                f"{self.folders[changed[0]]} was written again during the merge ({len(changed)} shards were): "
                "wait until that job has ended and run the same command again"
            )
        n_bytes = sum(output["bytes"] for record in self.records.values() for output in record["outputs"])
        where = f"{shlex.quote(str(self.folders[1].parent))}/*-of-{len(self.folders)}"
        log.info(
            "once this ends with exit code 0, its shards (%.3g GB) are no longer needed: rm -r %s removes them",
            n_bytes / 1e9,
            where,
        )

    def _is_as_read(self, number: int, folder: Path) -> bool:
        try:
            return runs.read_record(folder) == self.records[number]
        except InputError:
            return False

    def _refuse(self, faults: Mapping[int, Fault]) -> None:
        if not faults:
            return

        def line(number: int) -> str:
            fault = faults[number]
            command = self.command(number, fault.overwrite)
            return f"{self.folders[number]}: {fault.text}; {fault.instead}run {command}"

        missing = sorted(number for number, fault in faults.items() if fault is MISSING)
        unnamed = missing[NAMED_IN_MESSAGE:] if len(faults) > preparation.NAMED_IN_LOG else []
        named = sorted(faults.keys() - set(unnamed))
        lines = [line(number) for number in named[: preparation.NAMED_IN_LOG]]
        others = ""
        if len(faults) > 1:
            for text in lines:
                log.warning("cannot be merged: %s", text)
            if n_more := len(faults) - len(lines):
                log.warning("cannot be merged: %d more, %d of all are missing", n_more, len(missing))
            others = ", and the same for the others"
        numbers = cli.format_layer_list(sorted(faults))  # batch systems use the same syntax for arrays of jobs
        if len(numbers) > MOST_NUMBERS:
            numbers = f"{numbers[:MOST_NUMBERS].rpartition(',')[0]},…"
        raise InputError(
            f"{len(faults)} of {len(self.folders)} shards cannot be merged ({numbers}): {lines[0]}{others}, "
            "then this command again"
        )


def begin_merge(
    parser: argparse.ArgumentParser,
    stage: str,
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    of_shards: dict[str, runs.Input],
    listed: Sequence[spool.Listed],
    speed_arguments: Collection[str],
    shard_neutral: Collection[str],
    made_by: str,
) -> Merge:
    """Return the merge of a stage, after checking the records of its shards: an impossible one then changes nothing.

    A complete merge needs no shards.

    Parameters
    ----------
    parser : ArgumentParser
        Of the stage, for the commands of its shards.
    stage : str
    args : Namespace
        With ``merge_shards``.
    inputs, of_shards : dict of str to Input
        Of the merge, and of each shard.
    listed : sequence of Listed
        All files as they are now.
    speed_arguments, shard_neutral : collection of str
        Arguments that change no result, and those that change no shard.
    made_by : str
        As for `Merge`.

    Raises
    ------
    InputError
        As by `Merge.read_records`.
    """
    n = args.merge_shards
    merge = Merge(
        args.output_dir,
        n,
        lambda number, record: runs.difference(
            record, stage, args_of_shard(args, Shard(number, n)), of_shards, shard_neutral
        ),
        lambda number, overwrite: cli.command_line(
            parser, f"{stage}.py", args, shard=Shard(number, n), merge_shards=None, overwrite=overwrite
        ),
        made_by,
    )
    is_done = runs.is_complete(stage, args, inputs, speed_arguments)
    if is_done and args.overwrite:  # a damaged result would be made again
        is_done = runs.find_damage(args.output_dir, runs.read_record(args.output_dir)["outputs"]) is None
    if not is_done:
        merge.read_records(listed)
    return merge


def _fault_of(record: dict, made_by: str) -> Fault | None:
    """Return the fault of a shard that was made from the right files with the right arguments."""
    if record["status"] != "complete":
        text = f"it is not complete: its {runs.RECORD_NAME} has status {record['status']!r}, see its {runs.LOG_NAME}"
        still = "; another job may be writing to it" if record["status"] == "running" else ""
        return Fault(text + still, overwrite=False)
    decoded_by = record.get("metrics", {}).get("decoded_by")
    if decoded_by != made_by:
        text = f"it was decoded by {decoded_by}, here it is {made_by}: the sound may differ"
        return Fault(text, overwrite=True)
    return None


def _files_changed(folder: Path, listed: Sequence[spool.Listed]) -> str:
    """Name the files that have changed since a shard's job listed them; empty if none has, or if that is not known."""
    try:
        rows = read_json(folder / LISTING_NAME, dict, "")["files"]
        before = {path: (size, mtime_ns) for path, size, mtime_ns in rows if isinstance(path, str)}
    except BROKEN:
        return ""
    now = {file.path: (file.size, file.mtime_ns) for file in listed}
    kinds = {
        "new": sorted(now.keys() - before.keys()),
        "changed": sorted(path for path in now.keys() & before.keys() if now[path] != before[path]),
        "gone": sorted(before.keys() - now.keys()),
    }
    texts = []
    for kind, paths in kinds.items():
        if paths:
            more = ", …" if len(paths) > NAMED_IN_MESSAGE else ""
            texts.append(f"{len(paths)} {kind} ({', '.join(paths[:NAMED_IN_MESSAGE])}{more})")
    return f": {', '.join(texts)}" if texts else ""


@dataclass(frozen=True)
class CheckTask:
    """Files of a shard to check against its ``run.json``; see `find_damage`."""

    number: int
    folder: Path
    outputs: list[dict]


def find_damage(task: CheckTask) -> tuple[int, str | None]:
    """Return the shard's number, and its first file that is missing, truncated or changed; None if all are whole."""
    return task.number, runs.find_damage(task.folder, task.outputs)
