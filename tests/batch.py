"""What the emulated batch systems have in common: a folder of submitted jobs, and the means to run them.

`tests.lsf` and `tests.slurm` know the options, the answers and the habits of theirs.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.stages import ROOT

MOST_STARTS = 50  # so that a loop ends the test, not the day
PATIENCE_S = 900.0

Options = dict[str, str | bool]


class Refused(Exception):
    """The batch system does not take the job; the text is its own."""


@dataclass
class Task:
    """A job, or one of a job array."""

    index: int
    state: str = "PEND"
    exit_codes: list[int] = field(default_factory=list)


@dataclass
class Job:
    """What was submitted, and how it went."""

    job_id: int
    name: str
    options: Options
    script: str
    cwd: Path
    environment: dict[str, str]
    tasks: list[Task]

    @property
    def state(self) -> str:
        """``PEND``, ``DONE``, ``EXIT``, or ``ORPHAN`` if it was taken out of the queue."""
        states = {task.state for task in self.tasks}
        return states.pop() if len(states) == 1 else "EXIT" if "EXIT" in states else "PEND"

    @property
    def exit_codes(self) -> list[int]:
        """Return those of every start."""
        return [code for task in self.tasks for code in task.exit_codes]


@dataclass(frozen=True)
class Start:
    """How a task is started: its command, what the environment says of it, and where it prints to."""

    command: list[str]
    environment: dict[str, str]
    stdout: Path
    stderr: Path
    appends: bool = False


def queue(folder: Path, script: str, options: Options, check: Callable[[Options, set[int]], None]) -> int:
    """Note a job that `check` does not refuse; return its id."""
    known_ids = {int(path.stem) for path in folder.glob("*.json")}
    check(options, known_ids)
    job_id = max(known_ids, default=100) + 1
    job = {"options": options, "script": script, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
    (folder / f"{job_id}.json").write_text(json.dumps(job))
    return job_id


def main(commands: dict[str, Callable[[Path, list[str]], str]], last_words: str, exit_code: int) -> None:
    """Answer as one of the `commands` that a cluster has put on PATH."""
    name, folder, *words = sys.argv[1:]
    try:
        print(commands[name](Path(folder), words))
    except Refused as refusal:
        print(f"{refusal}{last_words}", file=sys.stderr)
        sys.exit(exit_code)


class Cluster:
    """A folder of submitted jobs, and the means to run them; a subclass is a batch system.

    The subclass adds ``name_and_tasks(options, job_id)``, with 0 tasks for no array; ``awaited(options)``, the ids of
    the jobs before; ``prepare(job, task)``, a `Start`; ``end_of_wall_time(job, process)``, which signals it; and
    ``is_queued_again(job, task, code)``. Its module has an `answer`, which is what a command on PATH does.

    Attributes
    ----------
    commands : tuple of str
        Names of what is on PATH.
    drops_orphans : tuple of str and value
        Option with which a job leaves the queue if one before it has failed.
    jobs : dict of str to Job
        By name, after `run`; the last of a name.
    run_order : list of str
        Name of the job of every start.
    wall_time_after : dict of str to Path
        For the first start of a job of that name the clock starts when this file is there. All others end in time.
    """

    def __init__(self, folder: Path):
        self.folder, self.jobs, self.run_order, self.wall_time_after = folder, {}, [], {}
        self._by_id: dict[int, Job] = {}
        (folder / "bin").mkdir(parents=True)
        # Not by PYTHONPATH, which the jobs would inherit.
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from {type(self).__module__} import answer; answer()"
        for name in self.commands:
            command = folder / "bin" / name
            command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", code, name, str(folder)])} "$@"\n')
            command.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with the commands on it."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(self) -> None:
        """Run all jobs in the order of their dependencies, one after the other."""
        for path in sorted(self.folder.glob("*.json")):
            job_id = int(path.stem)
            if job_id not in self._by_id:
                job = json.loads(path.read_text())
                name, n_tasks = self.name_and_tasks(job["options"], path.stem)
                tasks = [Task(index) for index in range(1, n_tasks + 1)] or [Task(0)]
                how = job["options"], job["script"], Path(job["cwd"]), job["environment"]
                self._by_id[job_id] = Job(job_id, name, *how, tasks)
        self.jobs = {job.name: job for job in self._by_id.values()}
        (option, value), changed = self.drops_orphans, True
        while changed:
            changed = False
            for job in self._by_id.values():
                parents = {self._by_id[parent].state for parent in self.awaited(job.options)}
                for task in job.tasks if job.state == "PEND" else ():
                    if parents <= {"DONE"} and task.state == "PEND":
                        self._start(job, task)
                        changed = True
                    elif parents & {"EXIT", "ORPHAN"} and job.options.get(option) == value:
                        task.state, changed = "ORPHAN", True

    def _start(self, job: Job, task: Task) -> None:
        assert len(task.exit_codes) < MOST_STARTS, f"{job.name} is queued again and again"
        start = self.prepare(job, task)
        mode = "ab" if start.appends else "wb"
        with start.stdout.open(mode) as stdout, start.stderr.open(mode) as stderr:
            process = subprocess.Popen(
                start.command,
                cwd=job.cwd,
                env=job.environment | start.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                if job.name in self.wall_time_after and not task.exit_codes:
                    wait_for(self.wall_time_after[job.name], process)
                    self.end_of_wall_time(job, process)
                self.meddle(job, process)
                code = process.wait(PATIENCE_S)
            finally:
                with contextlib.suppress(ProcessLookupError):  # a batch system leaves nothing of a job behind
                    os.killpg(process.pid, signal.SIGKILL)
        task.exit_codes.append(code)
        self.run_order.append(job.name)
        if not self.is_queued_again(job, task, code):
            task.state = "EXIT" if code else "DONE"
            self.close(job, task, start)

    def meddle(self, job: Job, process: subprocess.Popen) -> None:
        """Do what a test wants done to a job that runs."""

    def close(self, job: Job, task: Task, start: Start) -> None:
        """Do what the batch system does when a task has ended for good."""


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait for a file, or for the end of the process."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
