"""Lock, record, resume, refuse or replace an output folder; logging, seeds and devices.

A stage does all its work inside ``with open_run(...) as run:``. The status in ``run.json`` is ``running`` from the
start, and ``complete``, ``interrupted`` or ``failed`` at the end. A folder without a complete ``run.json`` is not a
result, and no later stage reads it.
"""

import argparse
import contextlib
import datetime
import fcntl
import hashlib
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
from utils.core.files import PARTIAL_SUFFIX, sha256_of_file, sha256_of_lines, write_json, write_text
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
from utils.core.text import counted, printable

log = logging.getLogger(__name__)

# These arguments change the place, speed or messages of a run, never its result.
PRESENTATION_ARGUMENTS = frozenset({"output_dir", "overwrite", "log_level", "device"})
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
# LSF signals every process of a job, and jobs/launch.py forwards its signals: several signals are then one request.
REPEAT_S = 2.0
PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "datasets", "pyarrow", "numpy", "pandas")
PACKAGES += ("scikit-learn", "matplotlib", "soundfile", "av", "soxr", "onnx", "onnxruntime")
PROGRESS_EVERY_S = 30.0
NOT_OURS = "%s: not listed in %s, because this stage does not write such files: %s"


# ---------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Input:
    """An input of a stage: its path as the user wrote it, and the digest of its content.

    `sha256` is None without local content. `is_local` is False for a name, such as that of a model on a hub.
    """

    path: str
    sha256: str | None
    is_local: bool = True


def file_input(path: Path) -> Input:
    """Describe a file.

    Raises
    ------
    InputError
        If there is no such file, or it is a folder.
    """
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; expected a file, such as one in this folder")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; correct the path")
    return Input(str(path), sha256_of_file(path))


def folder_input(path: Path, stages: Iterable[str] = ()) -> Input:
    """Describe the output folder of an earlier stage, after checking that it is whole.

    Every output in its ``run.json`` is compared with its recorded size and SHA-256. A missing, truncated or changed
    file is therefore found before any work is done.

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
            f"{path} is not complete: the status in its {RECORD_NAME} is {record['status']!r}; "
            f"run {record['stage']}.py again until it ends with exit code 0{kept}"
        )
    check_outputs(path, record)
    return Input(str(path), sha256_of_lines([f"{o['sha256']}  {o['path']}" for o in record["outputs"]]))


def change_output(path: Path, text: str) -> None:
    """Write a text file again, atomically; if it is an output of a run, the record accepts both versions.

    The run stays complete, and keeps its digest. The record is written first, so that the file is whole by its record
    after a kill at any moment.

    Parameters
    ----------
    path : Path
        At the top of the run folder or up to two folders below.
    text : str
    """
    for folder in (path.parent, *path.parent.resolve().parents[:2]):
        record, name = read_record(folder), (path.parent.resolve() / path.name).relative_to(folder.resolve()).as_posix()
        for output in record["outputs"] if record is not None else ():
            if output["path"] == name:
                was = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
                content = text.encode()
                new = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                original = {key: output[key] for key in new}
                output["changed"] = [version for version in (was, new) if version != original]
                write_json(folder / RECORD_NAME, record)
    write_text(path, text)


# ------------------------------------------------------------------------------------------------ runs


@dataclass
class Run:
    """An open output folder.

    Attributes
    ----------
    output_dir : Path
        The folder.
    attempts : int
        Number of times that this run was started; above 1, an earlier attempt may have left work to resume.
    metrics, timings : dict
        Values that ``run.json`` records under these names; the stage fills them.
    device : str or None
        Name of the device that did the work; the stage sets it.
    stop_signal : str or None
        Name of the signal that asked the stage to stop, where it was opened with ``defer_signals``.
    scratch : set of str
        Top-level names in the folder that are not outputs (work in progress, logs of other tools).
    is_ending : bool
        True once the stage has stopped or failed and only its record must still be written: signals are then ignored.
        With several processes, the first that ends makes torchrun send SIGTERM to the others.
    is_checking : bool
        True while the inputs are checked, before any work is done; see `checking`.
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
        """Return ``cpu`` or ``cuda`` for the value of ``--device``, and record its name; see `resolve_device`."""
        with self.checking():
            device = resolve_device(asked)
        self.device = device_name(device)
        return device

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """Remove a new folder if the block finds an unfit input: no work has been done yet."""
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
    """Open ``args.output_dir`` for a stage; whatever the error, close it with a correct ``run.json``.

    The stage may use a new or empty folder, and one in which a run left no result. With the same arguments and inputs,
    a complete folder is skipped (`AlreadyComplete`) and an unfinished one is resumed. Any other folder is refused;
    ``--overwrite`` replaces it if it is a run folder. The old result is kept until the new one is complete; see
    `replacing`.

    Parameters
    ----------
    stage : str
        Name of the script without its suffix, such as ``02_finetuning``.
    args : argparse.Namespace
        Parsed arguments; ``output_dir``, ``overwrite`` and ``seed`` are read here.
    inputs : dict of str to Input
        Inputs of the stage, by the name of the argument; compared by content, not by path.
    outputs : iterable of str
        Patterns of the files that the stage writes, relative to the folder; ``*`` matches slashes, too. Other files in
        the folder belong to the user: they are not listed in ``run.json`` and never deleted.
    result_neutral : iterable of str
        Arguments, besides the common ones, that cannot change the result (``num_workers``).
    scratch : iterable of str
        Top-level names in the folder that are not outputs and are left out of ``run.json``.
    reusable : iterable of str
        Top-level names that ``--overwrite`` keeps: the stage checks whether they are still valid. It may replace these
        files but never writes into them.
    disposable : iterable of str
        Patterns of files that are not a result: if a run left only these, other arguments may use its folder.
    defer_signals : bool
        False: SIGTERM, SIGINT and SIGUSR2 raise `Interrupted` at once. True: the first signal, and each one within
        `REPEAT_S` after it, only sets ``Run.stop_signal``; the stage must then soon raise `Interrupted`.
    recompute : bool
        Replace every folder that this program made, even a complete one with the same arguments.

    Yields
    ------
    Run

    Raises
    ------
    AlreadyComplete, OutputExistsError, InputError
    UsageError
        If the folder equals, contains or is inside an input, or is inside another result; no file was changed.
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
    """Write the log of the folder and its ``run.json``, which is correct from the first moment to the last."""
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
                if folder.is_there():  # and does not belong to another run by now
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
    """Return the ``run.json`` of a new attempt."""
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
    """Return the number of this process among those that torchrun started; 0 if there is only one."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Return whether this process writes: the only one, or the first of those that torchrun started."""
    return process_number() == 0


def n_processes() -> int:
    """Return the number of processes that share the work: 1, or the number that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_share(n_items: int, multiple: int = 1) -> range:
    """Return the indices of the `n_items` items for this process: all, or an equal, contiguous share.

    Parameters
    ----------
    n_items : int
    multiple : int
        Each share begins at a multiple of it, so that batches are those of a single process.
    """
    n_batches, number = -(-n_items // multiple), process_number()
    first, last = (n * n_batches // n_processes() * multiple for n in (number, number + 1))
    return range(min(first, n_items), min(last, n_items))


def from_all_processes(call: Callable[[], object]) -> list:
    """Call a function in every process; return the list of all results, in the order of the processes, in each.

    An error that a user can fix, or a stop, in one process is raised in all of them. Otherwise the other processes
    would wait for ever.
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
    """Call `decide` in the first process only; return its result or raise its error in all processes."""
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
        torch.distributed.barrier()  # no process may end while another still receives
        raise outcome[0]
    return outcome[0]


def leave_process_group() -> None:
    """Leave the process group of torchrun; the other processes would treat a silent end as a crash."""
    if n_processes() > 1:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Folder:
    """An output folder that a stage requests: decides whether the stage may use it, and what happens to its content.

    Parameters
    ----------
    output_dir : Path
    stage : str
    asked : dict
        Arguments that affect the result.
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
        """Create the folder if needed, and hold its lock: two jobs in one folder would mix their files.

        The kernel releases the lock when the process ends for any reason, so no lock is ever stale.
        """
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        with contextlib.ExitStack() as stack:
            while True:
                self._lock = stack.enter_context(self._open_lock())
                if self._has_lock():  # False if another process has removed the folder meanwhile
                    break
            yield
        # The file stays: without it, a third process could lock a new file while a second one still waits for this one.

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
            log.warning("%s: this file system has no locks (%s); start only one job per folder", self.path, error)
        return file

    def _has_lock(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), (self.path / LOCK_NAME).stat())
        except FileNotFoundError:
            return False

    def admit(self, overwrite: bool, recompute: bool) -> None:
        """Decide whether the stage may use the folder; set ``attempts`` and ``replaces``."""
        unwritten = self.path / f".{Path(RECORD_NAME).stem}{PARTIAL_SUFFIX}{Path(RECORD_NAME).suffix}"
        content = {path.name for path in self.path.iterdir()} - {LOCK_NAME, unwritten.name}
        if not content:  # or a kill came before the first record
            unwritten.unlink(missing_ok=True)
            self._is_new = True
            return
        if RECORD_NAME not in content:
            raise OutputExistsError(
                f"{self.path} holds files that no stage made ({sorted(content)[0]}, …): it is left unchanged, "
                "even with --overwrite; choose another --output_dir or empty it yourself"
            )
        try:
            record = read_record(self.path)
            differs = self._prepare(record)
        except DamagedRecord as error:
            record, differs = None, str(error)
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            raise OutputExistsError(f"{self.path} is left unchanged, even with --overwrite: {error}") from error
        if record is not None:
            record = read_record(self.path)  # again, because an old result may have been put back
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
                    log.info("%s is taken over: the run before it left no result", self.path)
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
        """Finish what a killed process had begun; return how the run in the folder differs, or None."""
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
        """Put back the result that is kept aside, if it has the requested arguments.

        Raises
        ------
        AlreadyComplete
            If it was put back.
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
        """Write the record of a new attempt; until then, the old content is not moved for good."""
        try:
            write_json(self.path / RECORD_NAME, record)
        except BaseException:
            if (self.path / RECORD_NAME).exists():
                replacing.finish_move(self.path, read_record(self.path))
            raise
        replacing.finish_move(self.path, record)

    def is_there(self) -> bool:
        """Return whether the folder is still the one that was opened."""
        return (self.path / RECORD_NAME).exists() and (self._has_lock() or not (self.path / LOCK_NAME).exists())

    def check_still_there(self, error: Exception | None = None) -> None:
        """Raise `InputError` if the folder was removed or moved while the stage was running."""
        if not self.is_there():
            raise InputError(
                f"{self.path} was removed, moved or replaced while this stage wrote to it: "
                "do not move or change it, and run the same command again"
            ) from error

    def give_up(self, record: dict) -> None:
        """After a failure, put the old result back if the new run has left nothing; otherwise log where it is."""
        kept = self._kept()
        if kept is None or not kept.is_dir() or not self.is_there():
            return
        if replacing.is_empty(self.path, record, self.disposable, kept):
            replacing.restore(self.path, kept.name, self.reusable)
        else:
            log.warning(
                "the old result is kept in %s until this run is complete; to put it back, give "
                "the command that made it, with --overwrite",
                kept,
            )

    def leave_no_trace(self) -> None:
        """Remove a folder that was created for arguments that turned out to be wrong."""
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
    """Return the arguments that affect the result, without the inputs."""
    compared = set(vars(args)) - PRESENTATION_ARGUMENTS - set(result_neutral) - set(inputs)
    return {name: _as_json(getattr(args, name)) for name in sorted(compared)}


def difference(
    record: dict, stage: str, args: argparse.Namespace, inputs: dict[str, Input], result_neutral: Iterable[str] = ()
) -> str | None:
    """Return how a recorded run differs from the one that `open_run` would start; None if it does not."""
    return _difference(record, stage, _asked(args, inputs, result_neutral), inputs)


def is_complete(
    stage: str, args: argparse.Namespace, inputs: dict[str, Input], result_neutral: Iterable[str] = ()
) -> bool:
    """Return whether `open_run` would find ``args.output_dir`` complete, from its record alone."""
    try:
        record = read_record(args.output_dir)
    except InputError:
        return False
    is_done = record is not None and record["status"] == "complete"
    return is_done and difference(record, stage, args, inputs, result_neutral) is None


def _difference(record: dict, stage: str, asked: dict, inputs: dict[str, Input]) -> str | None:
    """Return how a recorded run differs from the requested one; None if it does not."""
    if record["stage"] != stage:
        return f"it was made by {record['stage']}.py"
    made_with = record.get("asked", {})
    for name in sorted(set(asked) | set(made_with)):
        if asked.get(name) != made_with.get(name):
            was, now = _as_given(made_with.get(name)), _as_given(asked.get(name))
            made = f"without --{name}" if was is None else f"with --{name} {was}".rstrip()
            if name in record.get("renamed", {}):
                made += f", which was called {record['renamed'][name]} then"
            return f"it was made {made}, now it is {'not given' if now is None else now or 'given'}"
    made_from = {i["name"]: i["sha256"] for i in record["inputs"]}
    for name in sorted(set(inputs) | set(made_from)):
        if name not in inputs or name not in made_from:
            return f"it was made {'with' if name in made_from else 'without'} {_in_words(name)}"
        if inputs[name].sha256 != made_from[name]:
            return f"the content of {_in_words(name)} ({inputs[name].path}) has changed since"
    return None


def _in_words(name: str) -> str:
    """Return the flag of an input; of ``model_dir (its thresholds)``: ``the thresholds of --model_dir``."""
    flag, _, part = name.removesuffix(")").partition(" (its ")
    return f"the {part} of --{flag}" if part else f"--{flag}"


def _as_given(value: object) -> str | None:
    """Return the value of an argument as it is given on a command line: empty for a switch, None if not given."""
    if value is None or value is False or value == []:
        return None
    return "" if value is True else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _close_record(output_dir: Path, record: dict, strict: bool) -> None:
    try:
        write_json(output_dir / RECORD_NAME, record)
    except OSError as error:
        if strict:
            raise
        # A full disk must not hide the error that ended the stage.
        log.warning("%s could not be updated: %s", output_dir / RECORD_NAME, error)


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
    """Return the commit of this program's git checkout and whether files were changed; None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # Untracked files are mostly results and data, not code.
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
    if threading.current_thread() is not threading.main_thread():  # handlers are allowed only there
        yield
        return

    asked_at, owner = None, os.getpid()

    def stop(number, frame):
        nonlocal asked_at
        # A worker of a data loader, signalled with the whole job: its parent decides.
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
        raise Interrupted(f"stopped by {name}: run the same command again to continue")

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --------------------------------------------------------------------- logging, progress, seeds, device


def start_logging(level: str) -> None:
    """Send log lines of `level` and above to standard error, with the time; from other processes, only warnings."""
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
    """Log lines in which no character of a name can control a terminal."""

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
    """Iterate and show the progress: a bar on a terminal, otherwise a log line every 30 s.

    An earlier attempt has done the first `n_before` of `total` items; `iterable` holds the others.
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
    """Log the place and the number of the figures of a result in one line."""
    if n_figures := len(list(Path(output_dir).glob("*.png"))):
        log.info("%s: %s", counted(n_figures, "figure"), Path(output_dir) / "*.png")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    from transformers import set_seed

    set_seed(seed)


def resolve_device(name: str) -> str:
    """Return ``cpu`` or ``cuda`` for the value of ``--device``.

    Raises
    ------
    InputError
        If a GPU is requested and PyTorch finds none, or the GPU that it finds cannot be used.
    """
    if name == "cpu":
        return "cpu"
    import torch

    if name == "auto" and not torch.cuda.is_available():
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
    """Warn if ``--device cuda`` is given to a stage that works on the CPU."""
    if asked == "cuda":
        log.warning("this stage works on the CPU: --device cuda has no effect")


def device_name(device: str) -> str:
    """Return the product name of a device, such as ``NVIDIA A100-PCIE-40GB``."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "cpu"
