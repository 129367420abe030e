"""An emulated LSF: a `bsub` for PATH that takes and refuses what the real one does, and a cluster that runs the jobs.

After the bsub reference of IBM Spectrum LSF 10.1. What the tests lean on: an option on the command line overrides
that in the script; the job starts in the folder it was submitted from, with the environment of bsub; the wrapper
around it survives signals and hands on its exit code; a signal goes to every process of the job; what a run that is
queued again has printed is lost; without a limit of the administrator it is queued again for ever.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FLAGS = {"-ar", "-B", "-H", "-I", "-Ip", "-Is", "-K", "-N", "-r", "-rn", "-ti", "-ul", "-x"}
WITH_VALUE = {
    *("-a", "-app", "-b", "-C", "-c", "-clusters", "-cwd", "-D", "-E", "-Ep", "-e", "-env", "-eo", "-ext", "-F", "-f"),
    *("-G", "-g", "-gpu", "-hl", "-i", "-is", "-J", "-Jd", "-jsdl", "-k", "-L", "-Lp", "-M", "-m", "-mig", "-n", "-o"),
    *("-oo", "-outdir", "-P", "-p", "-Q", "-q", "-R", "-rnc", "-S", "-s", "-sla", "-sp", "-T", "-t", "-U", "-u", "-v"),
    *("-W", "-We", "-w", "-wa", "-wt"),
}
QUEUES = ("normal", "gpua100", "gpuv100")  # the first is the default
JOB_FILE = "#!/bin/sh\ntrap : TERM USR1 USR2 INT HUP\n{shell}\nExitStat=$?\nwait\nexit $ExitStat\n"
MOST_STARTS = 50  # so that a loop ends the test, not the day
PATIENCE_S = 900.0


class Refused(Exception):
    """bsub does not take the job; the text is LSF's."""


def read_options(words: list[str]) -> tuple[dict[str, str | bool], list[str]]:
    """Return options and what follows them, the command."""
    options, words = {}, list(words)
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in FLAGS:
            options[word] = True
        elif word not in WITH_VALUE:
            raise Refused(f"{word}: Illegal option")
        elif not words:
            raise Refused(f"Option {word} requires an argument")
        else:
            options[word] = words.pop(0)
    return options, words


def minutes(text: str) -> int:
    """Return ``[hour:]minute`` in minutes."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text)
    if not match:
        raise Refused("Bad argument for option -W or -wt")
    return 60 * int(match[1] or 0) + int(match[2])


def check(options: dict[str, str | bool], known_ids: set[int]) -> None:
    """Refuse values that LSF refuses."""
    for name, pattern in {
        "-n": r"[1-9]\d*",
        "-Q": r"(all|~?\d+)( ~?\d+)*",
        "-wa": r"[A-Z]+[12]?",
        "-J": r"[^\[\]/ ]+(\[1-[1-9]\d*\])?",
        "-gpu": r"num=[1-9]\d*(:mode=(shared|exclusive_process))?(:j_exclusive=(yes|no))?",
        "-R": r"((select|order|rusage|span|same)\[[^\[\]]+\])( (select|order|rusage|span|same)\[[^\[\]]+\])*",
    }.items():
        if name in options and not re.fullmatch(pattern, options[name]):
            raise Refused(f"Bad argument for option {name}: {options[name]}")
    for name in ("-W", "-wt"):
        minutes(options.get(name, "1"))
    if options.get("-q", QUEUES[0]) not in QUEUES:
        raise Refused(f"{options['-q']}: No such queue")
    if ("-wa" in options) != ("-wt" in options):
        raise Refused("-wa and -wt must be given together")
    if "-ti" in options and "-w" not in options:
        raise Refused("-ti can only be used with -w")
    if not awaited(options) <= known_ids:
        raise Refused("Invalid dependency condition: no matching job found")


def awaited(options: dict[str, str | bool]) -> set[int]:
    """Return the ids in ``done(1) && done(2)``."""
    if "-w" not in options:
        return set()
    parts = [re.fullmatch(r"\s*done\((\d+)\)\s*", part) for part in options["-w"].split("&&")]
    if not all(parts):
        raise Refused("Bad dependency condition syntax")
    return {int(part[1]) for part in parts}


def options_of_script(script: str) -> dict[str, str | bool]:
    """Return the options on the ``#BSUB`` lines of a script."""
    options = {}
    for line in script.splitlines():
        if line.startswith("#BSUB"):
            options |= read_options(shlex.split(line.removeprefix("#BSUB")))[0]
    return options


def bsub(folder: Path, words: list[str]) -> str:
    """Queue the script on standard input; return LSF's answer."""
    given, command = read_options(words)
    if command:
        raise Refused("the emulation takes the job from standard input only")
    script = sys.stdin.read()
    if not script.strip():
        raise Refused("Empty job")
    options = options_of_script(script) | given
    known_ids = {int(path.stem) for path in folder.glob("*.json")}
    check(options, known_ids)
    job_id = max(known_ids, default=100) + 1
    job = {"options": options, "script": script, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
    (folder / f"{job_id}.json").write_text(json.dumps(job))
    queue = f"queue <{options['-q']}>" if "-q" in options else f"default queue <{QUEUES[0]}>"
    return f"Job <{job_id}> is submitted to {queue}."


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
    options: dict[str, str | bool]
    script: str
    cwd: Path
    environment: dict[str, str]
    tasks: list[Task]

    @property
    def state(self) -> str:
        """``PEND``, ``DONE``, ``EXIT``, or ``ORPHAN`` if LSF took it out of the queue."""
        states = {task.state for task in self.tasks}
        return states.pop() if len(states) == 1 else "EXIT" if "EXIT" in states else "PEND"

    @property
    def exit_codes(self) -> list[int]:
        """Return those of every start."""
        return [code for task in self.tasks for code in task.exit_codes]


def read_job(path: Path) -> Job:
    """Return a job as `bsub` left it."""
    job = json.loads(path.read_text())
    name, n_tasks = re.fullmatch(r"(.*?)(?:\[1-(\d+)\])?", job["options"].get("-J", path.stem)).groups()
    tasks = [Task(index) for index in range(1, int(n_tasks) + 1)] if n_tasks else [Task(0)]
    return Job(int(path.stem), name, job["options"], job["script"], Path(job["cwd"]), job["environment"], tasks)


class Cluster:
    """A folder of submitted jobs, and the means to run them.

    Attributes
    ----------
    jobs : dict of str to Job
        By name, after `run`; the last of a name.
    run_order : list of str
        Name of the job of every start.
    mail : list of str
        Names of the jobs about which LSF wrote an e-mail.
    wall_time_after : dict of str to Path
        For the first start of a job of that name the clock starts when this file is there; a minute is `minute_s`
        long. All other jobs end in time.
    """

    def __init__(self, folder: Path, minute_s: float = 0.01):
        self.folder, self.minute_s = folder, minute_s
        self.jobs, self.run_order, self.mail, self.wall_time_after = {}, [], [], {}
        self._by_id = {}
        (folder / "bin").mkdir(parents=True)
        command = folder / "bin" / "bsub"
        command.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__, str(folder)])} "$@"\n')
        command.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with bsub on it."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(self) -> None:
        """Run all jobs in the order of their dependencies, one after the other."""
        for path in sorted(self.folder.glob("*.json")):
            if int(path.stem) not in self._by_id:
                self._by_id[int(path.stem)] = read_job(path)
        self.jobs = {job.name: job for job in self._by_id.values()}
        changed = True
        while changed:
            changed = False
            for job in self._by_id.values():
                parents = {self._by_id[parent].state for parent in awaited(job.options)}
                for task in job.tasks if job.state == "PEND" else ():
                    if parents <= {"DONE"} and task.state == "PEND":
                        self._start(job, task)
                        changed = True
                    elif parents & {"EXIT", "ORPHAN"} and "-ti" in job.options:
                        task.state, changed = "ORPHAN", True

    def _start(self, job: Job, task: Task) -> None:
        assert len(task.exit_codes) < MOST_STARTS, f"{job.name} is queued again and again"
        options, spool = job.options, self.folder / f"{job.job_id}.{task.index}"
        shell, job_file = spool.with_suffix(".shell"), spool.with_suffix(".sh")
        shell.write_text(job.script)
        shell.chmod(0o700)
        job_file.write_text(JOB_FILE.format(shell=shlex.quote(str(shell))))
        environment = {
            **job.environment,
            "LSB_JOBID": str(job.job_id),
            "LSB_JOBINDEX": str(task.index),
            "LSB_JOBNAME": options.get("-J", ""),
            "LSB_QUEUE": options.get("-q", QUEUES[0]),
            "LSB_DJOB_NUMPROC": options.get("-n", "1"),
            "LS_SUBCWD": str(job.cwd),
        }
        printed = {name: spool.with_suffix(suffix) for name, suffix in {"-o": ".out", "-e": ".err"}.items()}
        with printed["-o"].open("wb") as out, printed["-e"].open("wb") as err:
            process = subprocess.Popen(
                ["/bin/sh", str(job_file)],
                cwd=job.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            if job.name in self.wall_time_after and not task.exit_codes:
                self._wall_time(process, options, self.wall_time_after[job.name])
            code = process.wait(PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # LSF leaves nothing of a job behind
                os.killpg(process.pid, signal.SIGKILL)
        task.exit_codes.append(code)
        self.run_order.append(job.name)
        if str(code) in options.get("-Q", "").split():
            return
        task.state = "EXIT" if code else "DONE"
        for name, path in printed.items():
            target = options.get(name, "").replace("%J", str(job.job_id)).replace("%I", str(task.index))
            if not target or not (job.cwd / target).parent.is_dir():
                self.mail.append(job.name)
                continue
            with (job.cwd / target).open("ab") as file:
                file.write(path.read_bytes())
        if "-N" in options:
            self.mail.append(job.name)

    def _wall_time(self, process: subprocess.Popen, options: dict[str, str | bool], after: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not after.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if "-wa" in options:
            time.sleep((minutes(options["-W"]) - minutes(options["-wt"])) * self.minute_s)
            signal_all(process.pid, getattr(signal, f"SIG{options['-wa']}"))


def signal_all(pid: int, number: int) -> None:
    """Signal every process of a job, those too that have left its process group."""
    with contextlib.suppress(psutil.NoSuchProcess):
        job = psutil.Process(pid)
        for process in [job, *job.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


if __name__ == "__main__":
    try:
        print(bsub(Path(sys.argv[1]), sys.argv[2:]))
    except Refused as refusal:
        print(f"{refusal}. Job not submitted.", file=sys.stderr)
        sys.exit(255)
