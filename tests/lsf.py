"""An emulated LSF: a `bsub` for PATH that takes and refuses what the real one does, and a cluster that runs the jobs.

After the bsub reference of IBM Spectrum LSF 10.1. What the tests lean on: an option on the command line overrides
that in the script; the job starts in the folder it was submitted from, with the environment of bsub; the wrapper
around it survives signals and hands on its exit code; a signal goes to every process of the job; what a run that is
queued again has printed is lost; without a limit of the administrator it is queued again for ever.
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests import batch
from tests.batch import Job, Options, Refused, Start, Task, queue

FLAGS = {"-ar", "-B", "-H", "-I", "-Ip", "-Is", "-K", "-N", "-r", "-rn", "-ti", "-ul", "-x"}
WITH_VALUE = {
    *("-a", "-app", "-b", "-C", "-c", "-clusters", "-cwd", "-D", "-E", "-Ep", "-e", "-env", "-eo", "-ext", "-F", "-f"),
    *("-G", "-g", "-gpu", "-hl", "-i", "-is", "-J", "-Jd", "-jsdl", "-k", "-L", "-Lp", "-M", "-m", "-mig", "-n", "-o"),
    *("-oo", "-outdir", "-P", "-p", "-Q", "-q", "-R", "-rnc", "-S", "-s", "-sla", "-sp", "-T", "-t", "-U", "-u", "-v"),
    *("-W", "-We", "-w", "-wa", "-wt"),
}
QUEUES = ("normal", "gpua100", "gpuv100")  # the first is the default
JOB_FILE = "#!/bin/sh\ntrap : TERM USR1 USR2 INT HUP\n{shell}\nExitStat=$?\nwait\nexit $ExitStat\n"


def read_options(words: list[str]) -> tuple[Options, list[str]]:
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


def check(options: Options, known_ids: set[int]) -> None:
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


def awaited(options: Options) -> set[int]:
    """Return the ids in ``done(1) && done(2)``."""
    if "-w" not in options:
        return set()
    parts = [re.fullmatch(r"\s*done\((\d+)\)\s*", part) for part in options["-w"].split("&&")]
    if not all(parts):
        raise Refused("Bad dependency condition syntax")
    return {int(part[1]) for part in parts}


def options_of_script(script: str) -> Options:
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
    job_id = queue(folder, script, options, check)
    where = f"queue <{options['-q']}>" if "-q" in options else f"default queue <{QUEUES[0]}>"
    return f"Job <{job_id}> is submitted to {where}."


def answer() -> None:
    """Be `bsub`."""
    batch.main({"bsub": bsub}, last_words=". Job not submitted.", exit_code=255)


class Cluster(batch.Cluster):
    """An emulated LSF.

    Attributes
    ----------
    mail : list of str
        Names of the jobs about which LSF wrote an e-mail.
    minute_s : float
        How long a minute of wall time is.
    """

    commands = ("bsub",)
    drops_orphans = ("-ti", True)
    awaited = staticmethod(awaited)

    def __init__(self, folder: Path, minute_s: float = 0.01):
        super().__init__(folder)
        self.minute_s, self.mail = minute_s, []

    def name_and_tasks(self, options: Options, job_id: str) -> tuple[str, int]:
        name, n_tasks = re.fullmatch(r"(.*?)(?:\[1-(\d+)\])?", options.get("-J", job_id)).groups()
        return name, int(n_tasks or 0)

    def prepare(self, job: Job, task: Task) -> Start:
        options, spool = job.options, self.folder / f"{job.job_id}.{task.index}"
        shell, job_file = spool.with_suffix(".shell"), spool.with_suffix(".sh")
        shell.write_text(job.script)
        shell.chmod(0o700)
        job_file.write_text(JOB_FILE.format(shell=shlex.quote(str(shell))))
        environment = {
            "LSB_JOBID": str(job.job_id),
            "LSB_JOBINDEX": str(task.index),
            "LSB_JOBNAME": options.get("-J", ""),
            "LSB_QUEUE": options.get("-q", QUEUES[0]),
            "LSB_DJOB_NUMPROC": options.get("-n", "1"),
            "LS_SUBCWD": str(job.cwd),
        }
        return Start(["/bin/sh", str(job_file)], environment, spool.with_suffix(".out"), spool.with_suffix(".err"))

    def end_of_wall_time(self, job: Job, process: subprocess.Popen) -> None:
        options = job.options
        if "-wa" in options:
            time.sleep((minutes(options["-W"]) - minutes(options["-wt"])) * self.minute_s)
            signal_all(process.pid, getattr(signal, f"SIG{options['-wa']}"))

    def is_queued_again(self, job: Job, task: Task, code: int) -> bool:
        return str(code) in job.options.get("-Q", "").split()

    def close(self, job: Job, task: Task, start: Start) -> None:
        for name, path in {"-o": start.stdout, "-e": start.stderr}.items():
            target = job.options.get(name, "").replace("%J", str(job.job_id)).replace("%I", str(task.index))
            if not target or not (job.cwd / target).parent.is_dir():
                self.mail.append(job.name)
                continue
            with (job.cwd / target).open("ab") as file:
                file.write(path.read_bytes())
        if "-N" in job.options:
            self.mail.append(job.name)


def signal_all(pid: int, number: int) -> None:
    """Signal every process of a job, those too that have left its process group."""
    with contextlib.suppress(psutil.NoSuchProcess):
        job = psutil.Process(pid)
        for process in [job, *job.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
