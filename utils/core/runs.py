"""The life of an output folder: locked, recorded in run.json, resumed, refused or replaced; logging and seeds.

A stage does all its work inside ``with open_run(...) as run:``. The folder's ``run.json`` says
``running`` from the first moment, and ``complete``, ``interrupted`` or ``failed`` at the end. A folder
without a complete ``run.json`` is not a result, and no later stage reads it.
"""

import argparse
import contextlib
import datetime
import fcntl
import importlib.metadata
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from utils.core import replacing
from utils.core.errors import (
    AlreadyComplete,
    InputError,
    Interrupted,
    OutputExistsError,
    StageError,
    UsageError,
    advice_on,
)
from utils.core.files import PARTIAL_SUFFIX, sha256_of_file, sha256_of_lines, write_json
from utils.core.records import (
    LOCK_NAME,
    LOG_NAME,
    MOVING_NAME,
    RECORD_NAME,
    SCHEMA_VERSION,
    DamagedRecord,
    check_outputs,
    find_damage,
    matches,
    read_record,
    walk,
)
from utils.core.text import printable

log = logging.getLogger(__name__)

# Not part of what was asked for: they change where, how fast and how loudly, never the result.
PRESENTATION_ARGUMENTS = frozenset({"output_dir", "overwrite", "log_level", "device"})
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# LSF signals every process of a job, and jobs/launch.py passes on to its own what it gets: that is one request.
REPEAT_S = 2.0
PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "datasets", "pyarrow", "numpy", "pandas")
PACKAGES += ("scikit-learn", "matplotlib", "soundfile", "av", "soxr")
PROGRESS_EVERY_S = 30.0
NOT_OURS = "%s: not in %s, as this stage does not write such files: %s"


# ---------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Input:
    """Something that a stage reads: its path as the user wrote it, and the digest of its content.

    `sha256` is None for what has no local content. `is_local` is False for a name, such as that of a model on a hub.
    """

    path: str
    sha256: str | None
    is_local: bool = True


def file_input(path: Path) -> Input:
    """Describe a file.

    Raises
    ------
    InputError
        If there is no such file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    return Input(str(path), sha256_of_file(path))


def folder_input(path: Path, stages: Iterable[str] = ()) -> Input:
    """Describe the output folder of an earlier stage, after checking that it is whole.

    Every output named in its ``run.json`` is compared with its recorded size and SHA-256, so a
    missing, truncated or altered file is found before any work is done.

    Parameters
    ----------
    path : Path
        Output folder of an earlier stage.
    stages : iterable of str
        Stages that may have made it; empty accepts all.

    Raises
    ------
    InputError
        If the folder is missing, incomplete, damaged, or was made by another stage.
    """
    path = Path(path)
    stages = tuple(stages)
    wanted = " or ".join(f"{stage}.py" for stage in stages) or "a stage"
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected the output of {wanted}")
    record = read_record(path)
    if record is None:
        raise InputError(f"{path} has no {RECORD_NAME}, so it is not an output of {wanted}; run that first")
    if stages and record["stage"] not in stages:
        raise InputError(f"{path} was made by {record['stage']}.py; expected the output of {wanted}")
    if record["status"] != "complete":
        kept = f"; the result before it is kept in {path / record['replaces'][-1]}" if record.get("replaces") else ""
        raise InputError(
            f"{path} is not complete: its {RECORD_NAME} says {record['status']!r}; "
            f"run {record['stage']}.py again until it ends with exit code 0{kept}"
        )
    check_outputs(path, record)
    return Input(str(path), sha256_of_lines([f"{o['sha256']}  {o['path']}" for o in record["outputs"]]))


# ------------------------------------------------------------------------------------------------ runs


@dataclass
class Run:
    """An open output folder.

    Attributes
    ----------
    output_dir : Path
        The folder.
    attempts : int
        Number of times that this run was started; above 1 something may be left to resume from.
    metrics, timings : dict
        What ``run.json`` records under these names; a stage fills them.
    device : str or None
        Name of the device that did the work; a stage sets it.
    stop_signal : str or None
        Name of the signal that asked the stage to stop, where it was opened with ``defer_signals``.
    scratch : set of str
        Top-level names in the folder that are not outputs (work in progress, logs of other tools).
    is_ending : bool
        True once the stage has stopped or failed, and only its record is still to be written: signals no longer
        count. With several processes, the one that ends first has torchrun send SIGTERM to the others.
    is_checking : bool
        True while the inputs are looked at, before anything is done; see `checking`.
    """

    output_dir: Path
    attempts: int
    metrics: dict = field(default_factory=dict)
    timings: dict = field(default_factory=dict)
    device: str | None = None
    stop_signal: str | None = None
    scratch: set[str] = field(default_factory=set)
    is_ending: bool = False
    is_checking: bool = False

    def choose_device(self, asked: str) -> str:
        """Return ``cpu`` or ``cuda`` for the value of ``--device``, and note its name; see `resolve_device`."""
        with self.checking():
            device = resolve_device(asked)
        self.device = device_name(device)
        return device

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """Leave no new folder behind if an input turns out to be unfit within the block: nothing has been done yet."""
        before, self.is_checking = self.is_checking, True
        yield
        self.is_checking = before

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the wall-clock seconds of a block as ``timings[name + "_s"]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[f"{name}_s"] = round(time.perf_counter() - start, 3)


@contextlib.contextmanager
def open_run(
    stage: str,
    args: argparse.Namespace,
    inputs: dict[str, Input],
    *,
    outputs: Iterable[str] = ("*",),
    result_neutral: Iterable[str] = (),
    scratch: Iterable[str] = (),
    reusable: Iterable[str] = (),
    disposable: Iterable[str] = (),
    defer_signals: bool = False,
    recompute: bool = False,
) -> Iterator[Run]:
    """Open ``args.output_dir`` for a stage; close it with a truthful ``run.json`` whatever happens.

    A new or empty folder is taken, and so is one where a run left no result. One with the same arguments and inputs
    is skipped if complete (`AlreadyComplete`) and resumed if not. Any other is refused, or replaced with
    ``--overwrite`` if it is a run folder. The old result is kept aside until the new one is complete; see `replacing`.

    Parameters
    ----------
    stage : str
        Name of the script without its suffix, such as ``02_finetuning``.
    args : argparse.Namespace
        Parsed arguments; ``output_dir``, ``overwrite`` and ``seed`` are read here.
    inputs : dict of str to Input
        What the stage reads, by the name of the argument; compared by content, not by path.
    outputs : iterable of str
        Patterns of the files that the stage writes, relative to the folder; ``*`` stands for slashes, too. Other
        files in the folder belong to the user: they are not listed in ``run.json``, and never deleted.
    result_neutral : iterable of str
        Arguments, besides the common ones, that cannot change the result (``num_workers``).
    scratch : iterable of str
        Top-level names in the folder that are not outputs and are left out of ``run.json``.
    reusable : iterable of str
        Top-level names that ``--overwrite`` leaves: the stage itself tells whether they are still good. It replaces
        these files and never writes into them.
    disposable : iterable of str
        Patterns of files that are not a result: a run that left nothing else is taken over with other arguments.
    defer_signals : bool
        False: SIGTERM, SIGINT and SIGUSR2 raise `Interrupted` at once. True: the first one, and what comes within
        `REPEAT_S` of it, only sets ``Run.stop_signal``, and the stage must end itself soon by raising `Interrupted`.
    recompute : bool
        Replace the folder whatever it holds of this program.

    Yields
    ------
    Run

    Raises
    ------
    AlreadyComplete, OutputExistsError, InputError
    UsageError
        If the folder is, holds or lies in an input, or lies in another result; nothing was touched.
    """
    output_dir = Path(args.output_dir)
    replacing.check_apart(output_dir, {name: each.path for name, each in inputs.items() if each.is_local})
    folder = _Folder(output_dir, stage, _asked(args, inputs, result_neutral), inputs)
    folder.writes, folder.scratch = sorted(outputs), sorted(scratch)
    folder.reusable, folder.disposable = set(reusable), set(disposable)
    with contextlib.ExitStack() as lock:

        def admit() -> int:
            lock.enter_context(folder.locked())
            folder.admit(args.overwrite, recompute)
            return folder.attempts

        run = Run(output_dir=output_dir, attempts=_first_process_decides(admit, args), scratch=set(scratch))
        with _recorded(folder, run, args, defer_signals) if is_first_process() else _stop_signals(run, defer_signals):
            yield run


@contextlib.contextmanager
def _recorded(folder: "_Folder", run: Run, args: argparse.Namespace, defer_signals: bool) -> Iterator[None]:
    """Keep the folder's log and its ``run.json``, which tells the truth from the first moment to the last."""
    record = _new_record(folder, run, args)
    folder.begin(record)
    start = time.perf_counter()
    try:
        with _log_file(run.output_dir / LOG_NAME), _stop_signals(run, defer_signals):
            log.info("%s: attempt %d, writing to %s", folder.stage, run.attempts, run.output_dir)
            status, exit_code = "failed", 1
            try:
                yield
                folder.check_still_there()
                status, exit_code = "complete", 0
            except Interrupted as stop:
                status, exit_code = "interrupted", stop.exit_code
                raise
            except StageError as error:
                log.debug("the stage ends with exit code %d: %s", error.exit_code, error)
                exit_code = error.exit_code
                raise
            except Exception as error:
                folder.check_still_there(error)
                exit_code = 1 if advice_on(error) is None else InputError.exit_code
                raise
            finally:
                run.is_ending = status != "complete"
                record.update(status=status, exit_code=exit_code, finished_at=_now(), device=run.device)
                record["timings"] = {**run.timings, "total_s": round(time.perf_counter() - start, 3)}
                record["metrics"] = run.metrics
                if status == "complete":
                    record["outputs"] = _list_outputs(run.output_dir, folder.writes, run.scratch)
                if folder.is_there():  # and is not another run's by now
                    _close_record(run.output_dir, record, strict=status == "complete")
                if status == "complete":
                    log.info("done in %.1f s: %s", time.perf_counter() - start, run.output_dir)
                    replacing.discard(run.output_dir, folder.replaces)
                elif status == "failed":
                    folder.give_up(record)
    except (UsageError, InputError) as error:
        if run.is_checking or isinstance(error, UsageError):
            folder.leave_no_trace()
        raise


def _new_record(folder: "_Folder", run: Run, args: argparse.Namespace) -> dict:
    """Return the ``run.json`` of an attempt that begins."""
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": folder.stage,
        "status": "running",
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "arguments": {k: _as_json(v) for k, v in vars(args).items()},
        "asked": folder.asked,
        "seed": args.seed,
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "device": None,
        "lsf": _lsf_job(),
        "started_at": _now(),
        "finished_at": None,
        "timings": {},
        "inputs": [{"name": name, "path": i.path, "sha256": i.sha256} for name, i in folder.inputs.items()],
        "outputs": [],
        "writes": folder.writes,
        "scratch": folder.scratch,
        "replaces": folder.replaces,
        "metrics": {},
        "attempts": run.attempts,
        "exit_code": None,
    }


def process_number() -> int:
    """Return which of the processes that torchrun started this is; 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Tell whether this process writes: the only one, or the first of those that torchrun started."""
    return process_number() == 0


def n_processes() -> int:
    """Return the number of processes that do the work together: 1, or as many as torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_share(n_items: int, multiple: int = 1) -> range:
    """Return which of `n_items` things this process sees to: all, or an even share of them, in one piece.

    Parameters
    ----------
    n_items : int
    multiple : int
        Shares begin at multiples of it, so that batches are those of a single process.
    """
    n_batches, number = -(-n_items // multiple), process_number()
    first, last = (n * n_batches // n_processes() * multiple for n in (number, number + 1))
    return range(min(first, n_items), min(last, n_items))


def from_all_processes(call: Callable[[], object]) -> list:
    """Call something in every process; return in all of them what it returned in each, in their order.

    What it raises in one of them, of the kinds that a user can mend or a stop, is raised in all: the others would wait
    for it for ever.
    """
    if n_processes() == 1:
        return [call()]
    import torch.distributed

    try:
        outcome = call()
    except (StageError, Interrupted) as error:
        outcome = error
    outcomes = [None] * n_processes()
    torch.distributed.all_gather_object(outcomes, outcome)
    for outcome in outcomes:
        if isinstance(outcome, (StageError, Interrupted)):
            raise outcome
    return outcomes


def _first_process_decides(decide: Callable[[], int], args: argparse.Namespace) -> int:
    """Call `decide` in the first process only, and return or raise in all what it returns or raises."""
    if n_processes() == 1:
        return decide()
    import torch.distributed
    from accelerate import PartialState

    PartialState(cpu=resolve_device(args.device) == "cpu")
    outcome: list[int | StageError | None] = [None]
    if is_first_process():
        try:
            outcome = [decide()]
        except StageError as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], StageError):
        torch.distributed.barrier()  # a process that left now would cut off one that is still listening
        raise outcome[0]
    return outcome[0]


def leave_process_group() -> None:
    """Take leave of the other processes that torchrun started; they would take a silent end for a crash."""
    if n_processes() > 1:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Folder:
    """An output folder that a stage asks for: who may have it, and what becomes of what is in it.

    Parameters
    ----------
    output_dir : Path
    stage : str
    asked : dict
        Arguments that decide about the result.
    inputs : dict of str to Input
    """

    def __init__(self, output_dir: Path, stage: str, asked: dict, inputs: dict[str, Input]):
        self.path, self.stage, self.asked, self.inputs = output_dir, stage, asked, inputs
        self.writes, self.scratch, self.reusable, self.disposable = [], [], set(), set()
        self.attempts, self.replaces = 1, []
        self._made: list[Path] = []
        self._is_new = False
        self._lock = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder where there is none, and hold its lock: two jobs on one folder would mix their files.

        The kernel drops the lock when its process dies, however that happens, so no lock is ever stale.
        """
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        with contextlib.ExitStack() as stack:
            while True:
                self._lock = stack.enter_context(self._open_lock())
                if self._has_lock():  # not one that another process has removed meanwhile, with the folder
                    break
            yield
        # The file stays: removing it would let a third process lock a new file beside a waiting second.

    def _open_lock(self) -> TextIO:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise OutputExistsError(f"{self.path} is a file; choose another --output_dir") from error
        except FileNotFoundError as error:  # as in /proc
            raise InputError(f"{self.path}: no folder can be made there; choose another --output_dir") from error
        file = (self.path / LOCK_NAME).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputExistsError(
                f"another process is writing to {self.path}; wait for it, or choose another --output_dir"
            ) from error
        except OSError as error:
            log.warning("%s: this file system has no locks (%s); start one job a folder", self.path, error)
        return file

    def _has_lock(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), (self.path / LOCK_NAME).stat())
        except FileNotFoundError:
            return False

    def admit(self, overwrite: bool, recompute: bool) -> None:
        """Decide whether the stage may have the folder; set ``attempts`` and ``replaces``."""
        unwritten = self.path / f".{Path(RECORD_NAME).stem}{PARTIAL_SUFFIX}{Path(RECORD_NAME).suffix}"
        content = {path.name for path in self.path.iterdir()} - {LOCK_NAME, unwritten.name}
        if not content:  # or a kill came before anything was recorded
            unwritten.unlink(missing_ok=True)
            self._is_new = True
            return
        if RECORD_NAME not in content:
            raise OutputExistsError(
                f"{self.path} holds files that no stage made ({sorted(content)[0]}, …): it is left alone, "
                "with --overwrite too; choose another --output_dir or empty it yourself"
            )
        try:
            record = read_record(self.path)
            differs = self._prepare(record)
        except DamagedRecord as error:
            record, differs = None, str(error)
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            raise OutputExistsError(f"{self.path} is left alone, with --overwrite too: {error}") from error
        if record is not None:
            record = read_record(self.path)  # as it is now that an old result is put back
            self.replaces = list(record.get("replaces", ()))
            is_complete = record["status"] == "complete"
            if is_complete and not differs:
                damage = find_damage(self.path, record["outputs"])
                differs = damage
            if is_complete and not differs:
                replacing.discard(self.path, self.replaces)
                self.replaces = []
                if not recompute:
                    raise AlreadyComplete(f"{self.path} is complete and was made with these arguments: nothing to do")
            elif not is_complete and not recompute:
                if not differs:
                    self.attempts = record["attempts"] + 1
                    return
                if replacing.is_empty(self.path, record, self.disposable, self._kept()):
                    self._go_back(record)
                    log.info("%s is taken over from a run that left no result", self.path)
                    return
        if not overwrite and not recompute:
            kept = f"; the result before that is kept in {self._kept()}" if self.replaces else ""
            raise OutputExistsError(
                f"{self.path} exists and differs: {differs}{kept}; choose another --output_dir, "
                "or --overwrite to replace it"
            )
        if record is not None and not recompute:
            self._go_back(record)
        try:
            self.replaces.append(replacing.set_aside(self.path, record, self.writes, self.reusable))
        except BaseException:
            replacing.finish_move(self.path, record)
            raise

    def _prepare(self, record: dict) -> str | None:
        """End what a killed process had begun; say how the run in the folder differs, or None."""
        if "restores" in record:
            replacing.restore(self.path, record["restores"], self.reusable)
        replacing.finish_move(self.path, record)
        for path in self.path.glob(f".*{PARTIAL_SUFFIX}*"):  # left by a kill in the middle of a write
            if path.is_file():
                path.unlink()
        return _difference(read_record(self.path), self.stage, self.asked, self.inputs)

    def _kept(self) -> Path | None:
        return self.path / self.replaces[-1] if self.replaces else None

    def _go_back(self, record: dict) -> None:
        """Put back the result that is kept aside, if that is what is asked for.

        Raises
        ------
        AlreadyComplete
            If it was.
        """
        kept = self._kept()
        with contextlib.suppress(InputError):
            old = read_record(kept) if kept else None
            if (
                old is not None
                and old["status"] == "complete"
                and _difference(old, self.stage, self.asked, self.inputs) is None
                and find_damage(kept, old["outputs"]) is None
            ):
                unfinished = replacing.set_aside(self.path, record, (), ())
                (self.path / MOVING_NAME).rename(self.path / unfinished)
                replacing.restore(self.path, kept.name, self.reusable)
                replacing.discard(self.path, [unfinished])
                raise AlreadyComplete(f"{self.path} is complete again, as it was made with these arguments")

    def begin(self, record: dict) -> None:
        """Write the record of a new attempt; only then has the old content made room for it."""
        try:
            write_json(self.path / RECORD_NAME, record)
        except BaseException:
            if (self.path / RECORD_NAME).exists():
                replacing.finish_move(self.path, read_record(self.path))
            raise
        replacing.finish_move(self.path, record)

    def is_there(self) -> bool:
        """Tell whether the folder is still the one that was opened."""
        return (self.path / RECORD_NAME).exists() and (self._has_lock() or not (self.path / LOCK_NAME).exists())

    def check_still_there(self, error: Exception | None = None) -> None:
        """Raise `InputError` if the folder was taken away from under the stage."""
        if not self.is_there():
            raise InputError(
                f"{self.path} was removed, moved or replaced while this stage wrote to it: "
                "leave the folder alone, and run the same command again"
            ) from error

    def give_up(self, record: dict) -> None:
        """After a failure, put the old result back where the new run has left nothing; else say where it is."""
        kept = self._kept()
        if kept is None or not kept.is_dir() or not self.is_there():
            return
        if replacing.is_empty(self.path, record, self.disposable, kept):
            replacing.restore(self.path, kept.name, self.reusable)
        else:
            log.warning(
                "the old result is kept in %s until this run is complete; the command that made it, with --overwrite, "
                "puts it back",
                kept,
            )

    def leave_no_trace(self) -> None:
        """Remove a folder that was made for arguments that turned out to be wrong."""
        if not self._is_new or not self.path.is_dir() or any(replacing.walk(self.path)):
            return
        for name in (LOG_NAME, RECORD_NAME, LOCK_NAME):
            (self.path / name).unlink(missing_ok=True)
        if self.path in self._made:
            replacing.remove_empty_folders(self.path)
        for path in self._made[1:]:
            with contextlib.suppress(OSError):
                path.rmdir()


def _asked(args: argparse.Namespace, inputs: dict[str, Input], result_neutral: Iterable[str]) -> dict:
    """Return the arguments that decide about the result, without the inputs."""
    compared = set(vars(args)) - PRESENTATION_ARGUMENTS - set(result_neutral) - set(inputs)
    return {name: _as_json(getattr(args, name)) for name in sorted(compared)}


def difference(
    record: dict, stage: str, args: argparse.Namespace, inputs: dict[str, Input], result_neutral: Iterable[str] = ()
) -> str | None:
    """Say how a recorded run differs from the one that `open_run` would make of these; None where it does not."""
    return _difference(record, stage, _asked(args, inputs, result_neutral), inputs)


def is_complete(
    stage: str, args: argparse.Namespace, inputs: dict[str, Input], result_neutral: Iterable[str] = ()
) -> bool:
    """Say whether ``args.output_dir`` is what `open_run` would find complete, by its record alone."""
    try:
        record = read_record(args.output_dir)
    except InputError:
        return False
    is_done = record is not None and record["status"] == "complete"
    return is_done and difference(record, stage, args, inputs, result_neutral) is None


def _difference(record: dict, stage: str, asked: dict, inputs: dict[str, Input]) -> str | None:
    """Say how a recorded run differs from the one asked for; None where it does not."""
    if record["stage"] != stage:
        return f"it was made by {record['stage']}.py"
    made_with = record.get("asked", {})
    for name in sorted(set(asked) | set(made_with)):
        if asked.get(name) != made_with.get(name):
            was, now = made_with.get(name), asked.get(name)
            made = f"without --{name}" if was is None else f"with --{name} {was}"
            return f"it was made {made}, now it is {'not given' if now is None else now}"
    made_from = {i["name"]: i["sha256"] for i in record["inputs"]}
    for name in sorted(set(inputs) | set(made_from)):
        if name not in inputs or name not in made_from:
            return f"it was made {'with' if name in made_from else 'without'} --{name}"
        if inputs[name].sha256 != made_from[name]:
            return f"the content of --{name} ({inputs[name].path}) has changed since"
    return None


def _close_record(output_dir: Path, record: dict, strict: bool) -> None:
    try:
        write_json(output_dir / RECORD_NAME, record)
    except OSError as error:
        if strict:
            raise
        # The error that ended the stage is on its way to the user; a full disk must not hide it.
        log.warning("%s could not be brought up to date: %s", output_dir / RECORD_NAME, error)


def _list_outputs(output_dir: Path, writes: Iterable[str], scratch: Iterable[str]) -> list[dict]:
    outputs, others = [], []
    for name in walk(output_dir, skip=scratch):
        path = output_dir / name
        if not path.is_file():
            continue
        if not matches(name, writes):
            others.append(name)
            continue
        outputs.append({"path": name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)})
    if others:
        log.warning(NOT_OURS, output_dir, RECORD_NAME, replacing.some(others))
    return sorted(outputs, key=lambda output: output["path"].split("/"))


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_as_json(v) for v in value]
    return value


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _git_state() -> dict | None:
    """Return the commit of the pipeline's own checkout and whether it was altered; None outside one."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # Untracked files are results and data far more often than code.
        altered = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(altered)}
    except (OSError, subprocess.SubprocessError):
        return None


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _lsf_job() -> dict:
    return {"job_id": os.environ.get("LSB_JOBID"), "queue": os.environ.get("LSB_QUEUE"), "host": socket.gethostname()}


@contextlib.contextmanager
def _stop_signals(run: Run, defer: bool) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return

    asked_at, owner = None, os.getpid()

    def stop(number, frame):
        nonlocal asked_at
        # Forked by a data loader, and signalled with the whole job: its parent decides.
        if os.getpid() != owner or run.is_ending:
            return
        name, now = signal.Signals(number).name, time.monotonic()
        if defer and asked_at is None:
            asked_at = now
            run.stop_signal = run.stop_signal or name
            log.warning("%s: stopping at the next step", name)
            return
        if defer and now - asked_at < REPEAT_S:
            return
        raise Interrupted(f"stopped by {name}: run the same command again to go on")

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------- logging, progress, seeds, device


def start_logging(level: str) -> None:
    """Send log lines of `level` and above to standard error, with the time; of other processes, warnings."""
    root = logging.getLogger()
    root.setLevel(level.upper() if is_first_process() else "WARNING")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter())
    handler.set_name("stage")
    root.addHandler(handler)
    for noisy in ("matplotlib", "fontTools", "PIL", "fsspec", "urllib3", "httpx", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def stop_logging() -> None:
    """Undo `start_logging`, so that one process can run several stages."""
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == "stage"]:
        root.removeHandler(handler)


class _Formatter(logging.Formatter):
    """Lines of text, whatever the names in them: no character of a name steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _formatter() -> logging.Formatter:
    return _Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_formatter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def progress(iterable: Iterable, total: int, desc: str, unit: str, n_before: int = 0) -> Iterator:
    """Iterate and show how far it is: a bar on a terminal, a log line every 30 s elsewhere.

    Of `total` things an earlier attempt has done the first `n_before`; the others are in `iterable`.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with logging_redirect_tqdm():
            yield from tqdm(iterable, total=total, initial=n_before, desc=desc, unit=f" {unit}", leave=False)
        return
    start = last = time.monotonic()
    for n_done, item in enumerate(iterable, start=n_before + 1):
        yield item
        now = time.monotonic()
        if now - last >= PROGRESS_EVERY_S:
            last = now
            rate = (n_done - n_before) / (now - start)
            log.info("%s: %d of %d %s, %.3g/s, %.0f s left", desc, n_done, total, unit, rate, (total - n_done) / rate)


def log_figures(output_dir: Path) -> None:
    """Log in one line where the figures of a result are, and how many."""
    if n_figures := len(list(Path(output_dir).glob("*.png"))):
        log.info("%d figures: %s", n_figures, Path(output_dir) / "*.png")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    from transformers import set_seed

    set_seed(seed)


def resolve_device(name: str) -> str:
    """Return ``cpu`` or ``cuda`` for the value of ``--device``.

    Raises
    ------
    InputError
        If a GPU is asked for and PyTorch finds none, or the one that it finds cannot be used.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    host, visible = socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES")
    where = f"{host}, CUDA_VISIBLE_DEVICES={visible}" if visible is not None else host
    if not torch.cuda.is_available():
        reason = f"the driver is missing or older than CUDA {torch.version.cuda} needs, or the job asked for no GPU"
        if not torch.backends.cuda.is_built():
            reason = f"PyTorch {torch.__version__} is built without CUDA: install one that has it"
        raise InputError(
            f"--device cuda: PyTorch finds no GPU on this machine ({where}): {reason}; see nvidia-smi, "
            "or use --device cpu"
        )
    number, n_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= n_devices:
        raise InputError(
            f"process {number + 1} of this machine has no GPU of its own ({where} shows {n_devices}): "
            "start as many processes as there are GPUs, or use --device cpu"
        )
    try:
        torch.zeros(1, device=f"cuda:{number}")
    except RuntimeError as error:  # busy in exclusive mode, or broken
        raise InputError(
            f"GPU {number} of this machine ({where}) cannot be used: {str(error).splitlines()[0]}; "
            "see nvidia-smi for what else runs on it, or use --device cpu"
        ) from error
    return "cuda"


def log_cpu_only(asked: str) -> None:
    """Warn where ``--device cuda`` is given to a stage that works on the CPU."""
    if asked == "cuda":
        log.warning("this stage works on the CPU: --device cuda changes nothing")


def device_name(device: str) -> str:
    """Return the product name of a device for the record, such as ``NVIDIA A100-PCIE-40GB``."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "cpu"
