"""Inject every fault that the pipeline must survive into every stage, and count the survived tries.

    python -m drills.faults                                # every drill, every stage, ten times
    python -m drills.faults --drills sigkill full_disk --stages 01 02 --tries 50
    python -m drills.faults --drills sigkill --stages 08 --tries 20 --num_workers 3     # worker processes

A stage survives a fault if three things hold: it ends with the exit code and the message of the README; no other stage
accepts its unfinished output as a result; and the same command, run again, leaves the files of an undisturbed run.
Prints the table of docs/reliability.md. Every failure is reported in full, its folder is kept, and the exit code is 1.

The full disk and the read-only disk are small file systems in memory. They need Linux, and root or user namespaces
(`unshare`). Without these, the two drills are left out with a warning.
"""

import argparse
import contextlib
import csv
import functools
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd

from experiments.stage_processes import start_stage
from utils.core import cli, records, replacing, runs
from utils.core.errors import InputError, StageError, UsageError
from utils.core.files import sha256_of_file
from utils.data import spool, synthetic

log = logging.getLogger(__name__)

IN_NAMESPACE = "DRILLS_IN_NAMESPACE"
# Values that differ between two equal runs: measured times, and the name of the output folder.
MEASURED = re.compile(
    "latency|load_average|cpu_busy|seconds|throughput|real_time_factor|peak_memory|git_commit|model_name"
)
TRAINING = ["--num_train_epochs", "2", "--early_stopping_patience", "2", "--learning_rate", "1e-3"]
DETECTION = ["--threshold", "0.4", "--overlap_seconds", "0.5", "--formats", "raven", "csv", "--save_scores"]
DAY_S = 86_400.0
LEAST_TMPFS_BYTES = 16_384
MOST_MORE_BYTES = 600e6  # address space that a small stage needs besides its imports
KILLED_FOR_MEMORY = {-signal.SIGABRT, -signal.SIGSEGV, 127}  # by a C library, before Python notices it


class NotSurvived(Exception):
    """A stage did not survive a fault; the message says how it failed."""


@dataclass(frozen=True)
class Stage:
    """A stage with the words of its command, without ``--output_dir``."""

    number: str
    script: str
    words: tuple[str, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()  # an argument, and the number of the stage that wrote its value
    more: tuple[str, ...] = ()  # other stages whose output is needed


STAGES = (
    Stage("01", "01_data_processing.py", ("--min_recordings", "4", "--clip_seconds", "1", "--num_workers", "2")),
    Stage("02", "02_finetuning.py", ("--base_model", "tiny", *TRAINING), (("data_dir", "01"),)),
    Stage("03", "03_model_validation.py", (), (("model_dir", "02"), ("data_dir", "01"))),
    Stage(
        "04",
        "04_analysis.py",
        ("--metrics", "graph_convexity", "cka", "probe"),
        (("model_dir", "02"), ("data_dir", "01")),
    ),
    Stage(
        "05",
        "05_pruning.py",
        ("--strategies", "backward", "greedy", "--heal", "1"),
        (("model_dir", "02"), ("data_dir", "01")),
    ),
    Stage(
        "06",
        "06_cnn.py",
        ("--architecture", "melspectrogram", "--width", "0.25", *TRAINING),
        (("data_dir", "01"),),
    ),
    Stage("07", "07_manual_pruning.py", ("--keep_layers", "0,2"), (("model_dir", "02"),), ("01",)),
    Stage("08", "08_detection.py", (*DETECTION, "--num_workers", "1"), (("model_dir", "02"),), ("01",)),
)
BY_NUMBER = {stage.number: stage for stage in STAGES}
WITH_WORKERS = ("01", "08")


@dataclass
class World:
    """The recordings, the undisturbed result of every stage, and the folder of the tries.

    Attributes
    ----------
    folder : Path
        Holds ``raw``, ``reference/<stage>`` and ``tries/<drill>-<stage>-<try>``.
    rng : random.Random
        Draws moments, sizes, files and bits.
    duration_s, peak_bytes : dict
        By the number of the stage: its undisturbed run time, and its peak use of the disk.
    num_workers : int or None
        Worker processes of `WITH_WORKERS`, after the run for ``reference``; None for those of `STAGES`.
    """

    folder: Path
    rng: random.Random
    duration_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    num_workers: int | None = None

    def reference(self, number: str) -> Path:
        """Return the folder of an undisturbed run."""
        return self.folder / "reference" / number

    @property
    def printed(self) -> Path:
        """Return the file of all output that stages print."""
        return self.folder / "printed.txt"

    @contextlib.contextmanager
    def kept(self, folder: Path) -> Iterator[None]:
        """Restore a folder, at the end, to its present content."""
        copy = folder.with_name(f"{folder.name}-kept")
        shutil.copytree(folder, copy)
        try:
            yield
        finally:
            shutil.rmtree(folder)
            copy.rename(folder)

    def start(
        self,
        stage: Stage,
        output_dir: Path,
        *more: str,
        clock_s: float = 0.0,
        prepare: Callable[[], None] | None = None,
    ) -> BaseProcess:
        """Start a stage in its own process; its output is added to `printed`."""
        words = [*stage.words, *more]
        if stage.number == "01":
            words += ["--raw_dir", str(self.folder / "raw"), "--metadata", str(self.folder / "raw" / "metadata.csv")]
        if stage.number == "08":
            words += ["--raw_dir", str(self.folder / "raw")]
        if stage.number in WITH_WORKERS and self.num_workers and output_dir != self.reference(stage.number):
            words += ["--num_workers", str(self.num_workers)]
        for argument, made_by in stage.inputs:
            words += [f"--{argument}", str(self.reference(made_by))]
        words += ["--output_dir", str(output_dir), "--device", "cpu"]
        prepare = functools.partial(set_clock, clock_s) if clock_s else prepare
        return start_stage(stage.script, words, self.printed, prepare)

    def wait_a_moment(self, stage: Stage, process: BaseProcess) -> None:
        """Wait for a random part of the run time of the stage, or until it has ended."""
        process.join(self.rng.uniform(0, self.duration_s[stage.number]))

    def wait_for_files(self, process: BaseProcess, output_dir: Path) -> None:
        """Wait until a random number of recordings have results, or until the stage has ended."""
        n_finished = self.rng.randrange(len(list((self.folder / "raw").rglob("*.wav"))))
        while process.is_alive() and len(list(output_dir.glob(f".work/*{spool.MARKER_SUFFIX}"))) <= n_finished:
            process.join(0.001)

    def expect(self, code: int, text: str, stage: Stage, output_dir: Path, *more: str, clock_s: float = 0.0) -> None:
        """Run a stage that must end with an exit code and print a text; the case of letters is ignored."""
        self.printed.unlink(missing_ok=True)
        process = self.start(stage, output_dir, *more, clock_s=clock_s)
        process.join()
        self.check_end(process, {code}, text)

    def check_end(self, process: BaseProcess, codes: set[int], text: str = "") -> None:
        """Raise unless a stage ended with one of the codes and printed the text, without a traceback."""
        printed = self.printed.read_text() if self.printed.exists() else ""
        if process.exitcode not in codes:
            trouble = f"exit code {process.exitcode}, expected {sorted(codes)}"
        elif text.lower() not in printed.lower():
            trouble = f"it did not print {text!r}"
        elif "Traceback" in printed:
            trouble = "it printed a traceback"
        else:
            return
        raise NotSurvived(f"{trouble}; it printed:\n{printed[-1500:]}")

    def expect_undisturbed(self, stage: Stage, output_dir: Path, *more: str) -> None:
        """Run a stage that must end well and leave the files of an undisturbed run."""
        self.expect(0, "", stage, output_dir, *more)
        difference = first_difference(self.reference(stage.number), output_dir)
        if difference:
            raise NotSurvived(f"the second run left other files: {difference}")


def set_clock(ahead_s: float) -> None:
    """Make the clock of this process run ahead, and jump back an hour at every tenth call."""
    real_s, looks = time.time, iter(range(sys.maxsize))

    def time_s() -> float:
        return real_s() + ahead_s - 3600 * (next(looks) // 10)

    time.time, time.time_ns = time_s, lambda: int(time_s() * 1e9)


# ------------------------------------------------------------------------------------------- comparing


def without_measured(value: object) -> object:
    """Return a JSON value without the values that are measured again in each run."""
    if isinstance(value, dict):
        return {key: without_measured(item) for key, item in value.items() if not MEASURED.search(key)}
    return [without_measured(item) for item in value] if isinstance(value, list) else value


def content_of(path: Path) -> object:
    """Return the content in which two runs must agree; for figures, which show latencies, only that they exist."""
    if path.suffix in (".png", ".pdf"):
        return path.stat().st_size > 0
    if path.suffix == ".json":
        return without_measured(json.loads(path.read_text()))
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if MEASURED.search(name)])
    return path.read_bytes()


def are_equal(one: object, other: object) -> bool:
    """Compare two contents; numbers of a table to a millionth, because a resumed epoch sums its loss in two parts."""
    if not isinstance(one, pd.DataFrame):
        return one == other
    try:
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=0)
    except AssertionError:
        return False
    return True


def first_difference(reference: Path, folder: Path) -> str | None:
    """Return how a finished folder differs from an undisturbed one; None if it does not."""
    names = [{o["path"] for o in runs.read_record(each)["outputs"]} for each in (reference, folder)]
    if names[0] != names[1]:
        return f"files {sorted(names[0] ^ names[1])} are only in one of the two"
    for name in sorted(names[0]):
        contents = [content_of(each / name) for each in (reference, folder)]
        if not are_equal(*contents):
            return f"{name}: {contents[0]!s:.500} and {contents[1]!s:.500}"
    return None


def check_no_result(stage: Stage, folder: Path, reference: Path) -> None:
    """Raise unless every stage would refuse the folder, and every file with a final name is whole."""
    with contextlib.suppress(InputError):
        runs.folder_input(folder, [stage.script.removesuffix(".py")])
        raise NotSurvived("the unfinished output is accepted as a result")
    for output in runs.read_record(reference)["outputs"]:
        path = folder / output["path"]
        if path.exists() and not is_whole(path, reference / output["path"]):
            raise NotSurvived(f"{output['path']} is half written")


def is_whole(path: Path, reference: Path) -> bool:
    """Return whether a file equals that of an undisturbed run; a table may have fewer rows, but only whole ones."""
    if path.suffix == ".csv":
        text = path.read_text()
        return text.endswith("\n") and len({len(row) for row in csv.reader(text.splitlines())}) == 1
    if path.suffix == ".npy":
        return True  # memory-mapped and filled step by step; the JSON beside it counts the finished clips
    try:
        return are_equal(content_of(path), content_of(reference))
    except ValueError:
        return False


# ---------------------------------------------------------------------------------------------- drills


def sigkill(world: World, stage: Stage, folder: Path) -> None:
    """Kill a stage at a random moment."""
    stop(world, stage, folder, signal.SIGKILL)


def sigterm(world: World, stage: Stage, folder: Path) -> None:
    """Send SIGTERM at a random moment."""
    stop(world, stage, folder, signal.SIGTERM)


def sigusr2(world: World, stage: Stage, folder: Path) -> None:
    """Send SIGUSR2, as LSF does ahead of the wall-time, at a random moment."""
    stop(world, stage, folder, signal.SIGUSR2)


def stop(world: World, stage: Stage, folder: Path, number: signal.Signals) -> None:
    """Send a signal at a random moment, and run the stage again."""
    output_dir = folder / "out"
    process = world.start(stage, output_dir)
    if stage.number in WITH_WORKERS and world.rng.random() < 0.5:  # imports take most of so short a run
        world.wait_for_files(process, output_dir)
    else:
        world.wait_a_moment(stage, process)
    if process.exitcode is None:
        os.kill(process.pid, number)
    process.join()
    n_files = sum(path.is_file() for path in output_dir.rglob("*"))
    log.info("%s: exit code %d, %d files in its folder", folder.name, process.exitcode, n_files)
    codes = {0, -signal.SIGKILL} if number == signal.SIGKILL else {0, 75}
    if number == signal.SIGTERM and not (output_dir / runs.RECORD_NAME).exists():
        codes.add(-signal.SIGTERM)  # before the stage has anything to save
    world.check_end(process, codes)
    if process.exitcode != 0 and not is_complete(output_dir):
        check_no_result(stage, output_dir, world.reference(stage.number))
    world.expect_undisturbed(stage, output_dir)


def is_complete(folder: Path) -> bool:
    """Return whether a run had written its record before it was killed."""
    record = runs.read_record(folder)
    return record is not None and record["status"] == "complete"


def full_disk(world: World, stage: Stage, folder: Path) -> None:
    """Give a stage a disk that fills at a random moment; make it larger, and run the stage again."""
    n_bytes = world.rng.uniform(0, 1) * world.peak_bytes[stage.number]
    with tmpfs(folder / "disk") as disk:
        output_dir = disk / "out"
        while True:
            n_bytes = max(int(n_bytes), LEAST_TMPFS_BYTES)
            mount("-o", f"remount,size={n_bytes}", str(disk))
            process = world.start(stage, output_dir)
            process.join()
            if process.exitcode != 0 or n_bytes == LEAST_TMPFS_BYTES:
                break
            shutil.rmtree(output_dir)  # the disk was large enough
            n_bytes *= 0.8
        world.check_end(process, {3}, "disk is full")
        if not is_complete(output_dir):  # 03 may have failed later, at the summary of all models
            check_no_result(stage, output_dir, world.reference(stage.number))
        mount("-o", "remount,size=1G", str(disk))
        world.expect_undisturbed(stage, output_dir)


def low_memory(world: World, stage: Stage, folder: Path) -> None:
    """Give a stage less memory than it needs, of random size; lift the limit, and run the stage again."""
    output_dir = folder / "out"
    n_bytes = world.rng.uniform(0, 1) * MOST_MORE_BYTES
    while True:
        process = world.start(stage, output_dir, prepare=functools.partial(limit_addresses, int(n_bytes)))
        process.join()
        if process.exitcode != 0:
            break
        shutil.rmtree(output_dir)  # the memory was enough
        n_bytes *= 0.8
    if process.exitcode in KILLED_FOR_MEMORY:
        log.info("%s: ended by a library, exit code %d", folder.name, process.exitcode)
    else:
        world.check_end(process, {3}, "give the job")
        log.info("%s: %s", folder.name, world.printed.read_text().splitlines()[-1])
    if output_dir.exists():
        check_no_result(stage, output_dir, world.reference(stage.number))
    world.printed.unlink()
    world.expect_undisturbed(stage, output_dir)


def limit_addresses(n_more: int) -> None:
    """Limit the address space of this process to `n_more` bytes above its present size."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = n_pages * resource.getpagesize() + n_more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read_only(world: World, stage: Stage, folder: Path) -> None:
    """Let a stage write to a read-only disk, before it starts, or in a folder with an interrupted run."""
    with tmpfs(folder / "disk") as disk:
        output_dir = disk / "out"
        if world.rng.random() < 0.5:
            process = world.start(stage, output_dir)
            world.wait_a_moment(stage, process)
            process.kill()
            process.join()
            if is_complete(output_dir):
                shutil.rmtree(output_dir)
        mount("-o", "remount,ro", str(disk))
        world.expect(3, "read-only", stage, output_dir)
        mount("-o", "remount,rw,size=1G", str(disk))
        world.expect_undisturbed(stage, output_dir)


def truncated_input(world: World, stage: Stage, folder: Path) -> None:
    """Truncate a file of the stage's input at a random byte."""
    damaged_input(world, stage, folder, truncate)


def flipped_input(world: World, stage: Stage, folder: Path) -> None:
    """Flip a random bit in a file of the stage's input."""
    damaged_input(world, stage, folder, flip)


def damaged_input(world: World, stage: Stage, folder: Path, damage: Callable) -> None:
    """Damage a random output of an earlier stage; then repair it as the message advises."""
    _, made_by = world.rng.choice(stage.inputs)
    with world.kept(world.reference(made_by)):
        name = damage_one(world, world.reference(made_by), damage)
        world.expect(3, name, stage, folder / "out")
        world.expect(0, "", BY_NUMBER[made_by], world.reference(made_by), "--overwrite")
        world.expect_undisturbed(stage, folder / "out")


def damaged_output(world: World, stage: Stage, folder: Path) -> None:
    """Damage a file of a finished stage, which then does not count as finished."""
    output_dir = folder / "out"
    shutil.copytree(world.reference(stage.number), output_dir)
    name = damage_one(world, output_dir, world.rng.choice([truncate, flip]))
    world.expect(4, name, stage, output_dir)
    world.expect_undisturbed(stage, output_dir, "--overwrite")


def damage_one(world: World, folder: Path, damage: Callable) -> str:
    """Damage one of the outputs in a folder, chosen at random but not a figure; return its name."""
    listed = runs.read_record(folder)["outputs"]
    outputs = [o for o in listed if o["bytes"] and not o["path"].endswith(records.FIGURE_SUFFIXES)]
    name = world.rng.choice(outputs)["path"]
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(data, world.rng))
    return name


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes up to a random position."""
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one bit changed."""
    changed, bit = bytearray(data), rng.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def emptied_checkpoint(world: World, stage: Stage, folder: Path) -> None:
    """Stop a training, and delete some or all files of its checkpoints before it continues."""
    output_dir = folder / "out"
    process = world.start(stage, output_dir)
    while process.is_alive() and not list((output_dir / "checkpoints").glob("checkpoint-*")):
        time.sleep(0.005)
    world.wait_a_moment(stage, process)
    if process.is_alive():
        os.kill(process.pid, signal.SIGTERM)
    process.join()
    world.check_end(process, {0, 75})
    files = [path for path in (output_dir / "checkpoints").rglob("*") if path.is_file()]
    for path in files if world.rng.random() < 0.5 else world.rng.sample(files, k=min(3, len(files))):
        path.unlink()
    world.expect_undisturbed(stage, output_dir)


def two_at_once(world: World, stage: Stage, folder: Path) -> None:
    """Start a stage twice, the second a moment after the first: one wins, the other ends with 4."""
    output_dir = folder / "out"
    delay_s = world.rng.uniform(0, 0.5 * world.duration_s[stage.number])
    for _ in range(20):
        first = world.start(stage, output_dir)
        first.join(delay_s)
        second = world.start(stage, output_dir)
        first.join()
        second.join()
        codes = sorted([first.exitcode, second.exitcode])
        if codes != [0, 0]:
            break
        shutil.rmtree(output_dir)  # they did not overlap: the second found the first one's result
        delay_s /= 2
    if codes != [0, 4]:
        raise NotSurvived(f"exit codes {first.exitcode} and {second.exitcode}, expected 0 and 4")
    world.expect_undisturbed(stage, output_dir)


def clock_backwards(world: World, stage: Stage, folder: Path) -> None:
    """Let the clock jump back while a stage runs, kill it, and run it again a day earlier by the clock."""
    output_dir = folder / "out"
    process = world.start(stage, output_dir, clock_s=DAY_S)
    world.wait_a_moment(stage, process)
    process.kill()
    process.join()
    for path in output_dir.rglob("*") if output_dir.exists() else ():
        ahead_s = path.stat().st_mtime + DAY_S
        os.utime(path, (ahead_s, ahead_s))
    world.expect(0, "", stage, output_dir, clock_s=-DAY_S)
    world.expect_undisturbed(stage, output_dir)


def corrupt_record(world: World, stage: Stage, folder: Path) -> None:
    """Replace the run.json of a finished stage by other content."""
    output_dir = folder / "out"
    shutil.copytree(world.reference(stage.number), output_dir)
    path = output_dir / runs.RECORD_NAME
    data = path.read_bytes()
    others = [b"null", b"[]", b"{}", b'{"status": "complete"}']
    content = world.rng.choice([truncate(data, world.rng), b"", b"\xff" + world.rng.randbytes(100), *others])
    path.write_bytes(content)
    check_no_result(stage, output_dir, world.reference(stage.number))
    world.expect(4, runs.RECORD_NAME, stage, output_dir)
    if content in others:  # JSON, but not of this program: it must not be changed
        world.expect(4, "left unchanged", stage, output_dir, "--overwrite")
        shutil.rmtree(output_dir)
    world.expect_undisturbed(stage, output_dir, "--overwrite")


def replaced_input(world: World, stage: Stage, folder: Path) -> None:
    """Replace an input with which a stage has been run, to its end or not."""
    argument, made_by = world.rng.choice(stage.inputs or (("raw_dir", ""),))
    original = world.reference(made_by) if made_by else world.folder / "raw"
    with world.kept(original):
        process = world.start(stage, folder / "out")
        if world.rng.random() < 0.5:
            world.wait_a_moment(stage, process)
            process.kill()
        process.join()
        if made_by:
            world.expect(0, "", BY_NUMBER[made_by], original, "--overwrite", "--seed", "7")
        else:
            victim, donor = world.rng.sample(sorted(original.rglob("*.wav")), k=2)
            shutil.copyfile(donor, victim)
        if (folder / "out" / runs.RECORD_NAME).exists():
            world.expect(4, argument, stage, folder / "out")
        else:
            shutil.rmtree(folder / "out", ignore_errors=True)  # killed before it started
    world.expect_undisturbed(stage, folder / "out")


def folder_away(world: World, stage: Stage, folder: Path) -> None:
    """Remove the folder of recordings at a random moment, as a failing network disk does, and put it back."""
    raw_dir, away, output_dir = world.folder / "raw", world.folder / "raw-away", folder / "out"
    process = world.start(stage, output_dir)
    if world.rng.random() < 0.5:
        world.wait_a_moment(stage, process)
    else:  # decoding is only a small part of so short a run
        world.wait_for_files(process, output_dir)
    raw_dir.rename(away)
    process.join(world.rng.choice([0.02, 0.2, None]))
    away.rename(raw_dir)
    process.join()
    world.check_end(process, {0, 3})
    if process.exitcode == 3:
        log.info("%s: exit code 3 after the folder was away", folder.name)
        check_no_result(stage, output_dir, world.reference(stage.number))
    world.expect_undisturbed(stage, output_dir)


# ---------------------------------------------------------------------------------- what must not be lost


def content_below(*folders: Path) -> dict[str, str]:
    """Return the digest of every file below some folders, without locks."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != runs.LOCK_NAME)
    return {str(path): sha256_of_file(path) for path in files}


def output_in_input(world: World, stage: Stage, folder: Path) -> None:
    """Let a stage write into one of its inputs, above it, below it, and through a link to it."""
    _, made_by = world.rng.choice(stage.inputs or (("raw_dir", ""),))
    source = world.reference(made_by) if made_by else world.folder / "raw"
    (folder / "link").symlink_to(source)
    before = content_below(world.folder / "reference", world.folder / "raw")
    for output_dir in (source, source.parent, source / "new", folder / "link", source / ".." / source.name):
        world.expect(2, "choose another --output_dir", stage, output_dir, "--overwrite", "--seed", "7")
    if content_below(world.folder / "reference", world.folder / "raw") != before or (source / "new").exists():
        raise NotSurvived("an input was changed")


def users_file(world: World, stage: Stage, folder: Path) -> None:
    """Put files of a user into a finished output folder, and replace the result twice."""
    output_dir = folder / "out"
    shutil.copytree(world.reference(stage.number), output_dir)
    (output_dir / "model").mkdir(exist_ok=True)
    mine = [output_dir / "metadata_of_mine.csv", output_dir / "notes" / "1.txt", output_dir / "model" / "README.md"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    world.expect(0, "", stage, output_dir, "--overwrite", "--seed", "7")
    world.expect_undisturbed(stage, output_dir, "--overwrite")
    for path in mine:
        names = [path, *output_dir.glob(f"replaced-*/{path.relative_to(output_dir)}")]
        if not any(name.exists() and name.read_text() == "mine" for name in names):
            raise NotSurvived(f"{path} is gone")


def others_folder(world: World, stage: Stage, folder: Path) -> None:
    """Give a stage a folder of another program, which has a run.json of its own, or without run.json."""
    output_dir = folder / "out"
    output_dir.mkdir()
    (output_dir / "weights.bin").write_bytes(b"weeks of work")
    if world.rng.random() < 0.8:
        content = world.rng.choice(['{"experiment": 5}', "[]", '{"stage": "train", "status": "complete"}'])
        (output_dir / runs.RECORD_NAME).write_text(content)
    before = content_below(output_dir)
    for more in ((), ("--overwrite",)):
        world.expect(4, "left unchanged", stage, output_dir, *more)
    if content_below(output_dir) != before:
        raise NotSurvived("a stranger's file was changed")


def killed_overwrite(world: World, stage: Stage, folder: Path) -> None:
    """Kill a stage while it replaces a result; the command of the old result puts it back."""
    output_dir = folder / "out"
    shutil.copytree(world.reference(stage.number), output_dir)
    process = world.start(stage, output_dir, "--overwrite", "--seed", "7")
    world.wait_a_moment(stage, process)
    process.kill()
    process.join()
    outputs = runs.read_record(world.reference(stage.number))["outputs"]
    places = [output_dir, *output_dir.glob(".replacing"), *output_dir.glob("replaced-*")]
    if process.exitcode != 0 and not (is_complete(output_dir) and runs.read_record(output_dir)["seed"] == 7):
        for output in outputs:
            found = [place / output["path"] for place in places if (place / output["path"]).is_file()]
            if output["sha256"] not in {sha256_of_file(path) for path in found}:
                raise NotSurvived(f"{output['path']} of the old result is gone")
    world.expect_undisturbed(stage, output_dir, "--overwrite")


def taken_away(world: World, stage: Stage, folder: Path) -> None:
    """Delete or rename the output folder of a stage at a random moment; then run it again."""
    output_dir = folder / "out"
    process = world.start(stage, output_dir)
    world.wait_a_moment(stage, process)
    if output_dir.exists():
        if world.rng.random() < 0.5:
            output_dir.rename(folder / "elsewhere")
        else:
            shutil.rmtree(output_dir, ignore_errors=True)
    process.join()
    world.check_end(process, {0, 3})
    if output_dir.exists() and not is_complete(output_dir):
        shutil.rmtree(output_dir)
    world.expect_undisturbed(stage, output_dir)


def no_streams(world: World, stage: Stage, folder: Path) -> None:
    """Start a stage without standard output and error, or with closed pipes."""
    kind = world.rng.choice(["none", "closed pipe"])
    process = world.start(stage, folder / "out", prepare=functools.partial(take_streams, kind))
    process.join()
    world.check_end(process, {0})
    if "done in" not in (folder / "out" / runs.LOG_NAME).read_text():
        raise NotSurvived("its log.txt is incomplete")
    world.expect_undisturbed(stage, folder / "out")


def take_streams(kind: str) -> None:
    """Remove standard output and error from this process."""
    if kind == "none":
        os.close(1)
        os.close(2)
        sys.stdout = sys.stderr = None
    else:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        os.dup2(write, 2)


def corrected_arguments(world: World, stage: Stage, folder: Path) -> None:
    """Make a stage fail before it leaves a result, and run it again with other arguments, without --overwrite."""
    output_dir = folder / "out"
    process = world.start(stage, output_dir, "--seed", "7")
    while process.is_alive() and not (output_dir / runs.RECORD_NAME).exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    record = runs.read_record(output_dir)
    if record is not None and not replacing.is_empty(output_dir, record, [".work/*"]):
        return  # it ended first
    world.expect_undisturbed(stage, output_dir)


@dataclass(frozen=True)
class Drill:
    """A row of the table."""

    inject: Callable[[World, Stage, Path], None]
    fault: str
    how: str
    lost: str
    stages: tuple[str, ...] = tuple(BY_NUMBER)
    needs_tmpfs: bool = False


AGAIN = "nothing but the time since the last checkpoint"
WITH_INPUT = tuple(number for number in BY_NUMBER if number != "01")
DRILLS = (
    Drill(sigkill, "SIGKILL", "at a random moment of the run, then the same command", AGAIN),
    Drill(sigterm, "SIGTERM", "the same", AGAIN),
    Drill(sigusr2, "SIGUSR2 (LSF, ahead of the wall-time)", "the same", AGAIN),
    Drill(full_disk, "full disk", "a tmpfs of a random size below what the run needs", AGAIN, needs_tmpfs=True),
    Drill(low_memory, "low memory", "ulimit -v, of a random size below what the run needs", AGAIN, ("02", "05")),
    Drill(
        read_only, "read-only output", "a tmpfs remounted, before or in the middle of a run", AGAIN, needs_tmpfs=True
    ),
    Drill(truncated_input, "input truncated", "a random file, at a random byte", "nothing", WITH_INPUT),
    Drill(flipped_input, "bit of an input flipped", "a random bit of a random file", "nothing", WITH_INPUT),
    Drill(damaged_output, "finished output damaged", "a random file, truncated or a bit flipped", "nothing"),
    Drill(
        emptied_checkpoint, "checkpoints emptied", "all of their files or three, between two runs", AGAIN, ("02", "06")
    ),
    Drill(two_at_once, "two jobs on one output folder", "the second at a random moment of the first", "nothing"),
    Drill(
        clock_backwards, "clock goes backwards", "by an hour again and again, then by two days; killed between", AGAIN
    ),
    Drill(corrupt_record, "corrupt run.json", "truncated at a random byte, or rubbish", "nothing"),
    Drill(output_in_input, "output folder is, contains or is in an input", "five spellings, --overwrite", "nothing"),
    Drill(users_file, "files of a user in an output folder", "three, the result replaced twice", "nothing"),
    Drill(others_folder, "output folder of another program", "with its own run.json, or none", "nothing"),
    Drill(killed_overwrite, "SIGKILL while a result is replaced", "then the command of the old result", "nothing"),
    Drill(taken_away, "output folder taken away", "deleted or renamed at a random moment", "what was in it"),
    Drill(no_streams, "no standard output and error", "closed, or a pipe that nobody reads", "nothing"),
    Drill(corrected_arguments, "killed before it left a result", "then other arguments", "nothing"),
    Drill(replaced_input, "input replaced between two runs", "a model or data of another seed; a recording", "nothing"),
    Drill(
        folder_away, "folder of recordings away", "at a random moment, for a moment or until the end", AGAIN, ("01",)
    ),
)


# -------------------------------------------------------------------------------------------- file systems


def mount(*words: str) -> None:
    """Call the command ``mount``."""
    subprocess.run(["mount", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def tmpfs(folder: Path) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1G", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def enter_namespace() -> bool:
    """Become root of a mount namespace, by starting again; return False if this machine allows none."""
    if IN_NAMESPACE in os.environ:
        return True
    unshare = ["unshare", "--map-root-user", "--mount"]
    probe = "d=$(mktemp -d) && mount -t tmpfs -o size=64k tmpfs $d"
    try:
        subprocess.run([*unshare, "sh", "-c", probe], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    os.environ[IN_NAMESPACE] = "1"
    os.execvp("unshare", [*unshare, sys.executable, "-m", "drills.faults", *sys.argv[1:]])


# --------------------------------------------------------------------------------------------------- main


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    names = [drill.inject.__name__ for drill in DRILLS]
    parser.add_argument("--drills", nargs="+", choices=names, default=names, help="faults to inject")
    parser.add_argument("--stages", nargs="+", choices=list(BY_NUMBER), default=list(BY_NUMBER), help="stages to test")
    parser.add_argument("--tries", type=cli.positive_int, default=10, help="tries per drill and stage")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo/drills"), help="folder for all files of the drills, emptied first"
    )
    parser.add_argument(
        "--num_workers",
        type=cli.positive_int,
        help=f"worker processes of stages {' and '.join(WITH_WORKERS)}; the undisturbed run of 08 always has one",
    )
    parser.add_argument("--seed", type=cli.non_negative_int, default=42, help="seed of moments, sizes and bits")
    parser.add_argument("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def build_world(
    folder: Path, stages: Sequence[str], has_tmpfs: bool, seed: int, num_workers: int | None = None
) -> World:
    """Make the recordings, and the undisturbed runs of the stages and of the stages that they read."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "reference").is_dir():
        raise UsageError(f"--output_dir {folder} holds other files; choose a new folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder = folder.resolve()
    (folder / "reference").mkdir(parents=True)
    (folder / "tries").mkdir()
    world = World(folder, random.Random(seed), num_workers=num_workers)
    synthetic.write_recordings(folder / "raw", 4, 4, 1, (3.0, 5.0), seed, overwrite=False)
    needed = set(stages)
    for stage in reversed(STAGES):
        if stage.number in needed:
            needed |= {made_by for _, made_by in stage.inputs} | set(stage.more)
    for stage in STAGES:
        if stage.number not in needed:
            continue
        world.expect(0, "", stage, world.reference(stage.number))
        if stage.number not in stages:
            continue
        disk = tmpfs(folder / f"disk-{stage.number}") if has_tmpfs else contextlib.nullcontext(folder / "again")
        with disk as path:
            path.mkdir(exist_ok=True)
            start, peak = time.monotonic(), 0
            process = world.start(stage, path / "out")
            while process.is_alive():
                peak = max(peak, shutil.disk_usage(path).used if has_tmpfs else 0)
                process.join(0.002)
            world.duration_s[stage.number], world.peak_bytes[stage.number] = time.monotonic() - start, peak
            world.check_end(process, {0})
            difference = first_difference(world.reference(stage.number), path / "out")
            if difference:
                raise InputError(f"stage {stage.number}: two undisturbed runs disagree: {difference}")
            shutil.rmtree(path / "out")
        log.info("stage %s: %.1f s, %.2f MB on disk", stage.number, world.duration_s[stage.number], peak / 1e6)
    return world


def run(args: argparse.Namespace) -> None:
    """Run the drills and print the table."""
    has_tmpfs = IN_NAMESPACE in os.environ
    world = build_world(args.output_dir, args.stages, has_tmpfs, args.seed, args.num_workers)
    print("| fault | how it is injected | stages | tried | survived | lost |\n|---|---|---|---|---|---|")
    failures = []
    for drill in DRILLS:
        stages = [number for number in args.stages if number in drill.stages]
        if drill.inject.__name__ not in args.drills or not stages:
            continue
        if drill.needs_tmpfs and not has_tmpfs:
            log.warning("%s: left out: this machine does not allow mounting a file system in memory", drill.fault)
            continue
        n_tried = n_survived = 0
        for number in stages:
            for i in range(args.tries):
                folder = world.folder / "tries" / f"{drill.inject.__name__}-{number}-{i}"
                folder.mkdir()
                world.printed.unlink(missing_ok=True)
                n_tried += 1
                try:
                    drill.inject(world, BY_NUMBER[number], folder)
                except (NotSurvived, StageError) as trouble:
                    failures.append(f"{drill.fault}, stage {number}, {folder}: {trouble}")
                    log.warning("%s", failures[-1])
                    continue
                n_survived += 1
                shutil.rmtree(folder)
            log.info("%s, stage %s: %d of %d survived so far", drill.fault, number, n_survived, n_tried)
        names = ", ".join(stages)
        print(f"| {drill.fault} | {drill.how} | {names} | {n_tried} | {n_survived} | {drill.lost} |", flush=True)
    if failures:
        raise NotAllSurvived(f"{len(failures)} tries failed; their folders are kept")


class NotAllSurvived(StageError):
    """At least one try failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    enter_namespace()
    sys.exit(main())
