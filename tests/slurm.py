"""An emulated Slurm: `sbatch` and `scontrol` for PATH that take and refuse what the real ones do, and a cluster.

After the manuals of Slurm 24.11. What the tests lean on: an option on the command line overrides that in the script;
the job starts in the folder it was submitted from, with the environment of sbatch; the script itself is the process
whose exit code counts; ``--signal=B:`` signals it alone, and scancel all processes; a job goes back into the queue when
`scontrol requeue` asks for it, under the same id, whatever its exit code; afterok waits for all tasks of an array.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests import batch
from tests.batch import Job, Options, Refused, Start, Task, queue

FLAGS = {"--requeue", "--no-requeue", "--exclusive", "--hold"}
WITH_VALUE = {
    *("--array", "--account", "--constraint", "--cpus-per-task", "--dependency", "--error", "--export", "--gres"),
    *("--job-name", "--kill-on-invalid-dep", "--mail-type", "--mail-user", "--mem", "--nodes", "--ntasks"),
    *("--open-mode", "--output", "--partition", "--qos", "--signal", "--time"),
}
PARTITIONS = ("normal", "gpu")  # the first is the default


def read_options(words: list[str]) -> Options:
    """Return the options; a word that is none is the script, which the emulation takes from standard input only."""
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name in FLAGS and not equals:
            options[name] = True
        elif name in WITH_VALUE and value:
            options[name] = value
        else:
            raise Refused(f"sbatch: unrecognized option '{word}'")
    return options


def options_of_script(script: str) -> Options:
    """Return the options on the ``#SBATCH`` lines of a script, which end with its first command."""
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            options |= read_options(shlex.split(line.removeprefix("#SBATCH")))
        elif line.strip() and not line.startswith("#"):
            break
    return options


def check(options: Options, known_ids: set[int]) -> None:
    """Refuse values that Slurm refuses."""
    for name, pattern in {
        "--array": r"1-[1-9]\d*",
        "--cpus-per-task": r"[1-9]\d*",
        "--gres": r"gpu:([a-z]\w*:)?[1-9]\d*",
        "--kill-on-invalid-dep": "yes|no",
        "--mail-type": r"(NONE|BEGIN|END|FAIL|REQUEUE|ALL)(,(END|FAIL|REQUEUE))*",
        "--mem": r"[1-9]\d*[KMGT]?",
        "--open-mode": "append|truncate",
        "--signal": r"(B:)?[A-Z]+[12]?(@\d{1,5})?",
        "--time": r"\d+|(\d+-)?\d+:\d\d:\d\d|\d+:\d\d",
        "--dependency": r"afterok(:\d+)+",
    }.items():
        if name in options and not re.fullmatch(pattern, options[name]):
            raise Refused(f"sbatch: error: Invalid {name} specification: {options[name]}")
    if options.get("--partition", PARTITIONS[0]) not in PARTITIONS:
        raise Refused(f"sbatch: error: invalid partition specified: {options['--partition']}")
    if not awaited(options) <= known_ids:
        raise Refused("sbatch: error: Batch job submission failed: Job dependency problem")


def awaited(options: Options) -> set[int]:
    """Return the ids in ``afterok:1:2``."""
    return {int(text) for text in options.get("--dependency", "afterok").split(":")[1:]}


def sbatch(folder: Path, words: list[str]) -> str:
    """Queue the script on standard input; return Slurm's answer."""
    given, script = read_options(words), sys.stdin.read()
    if not script.startswith("#!"):
        raise Refused("sbatch: error: This does not look like a batch script")
    return f"Submitted batch job {queue(folder, script, options_of_script(script) | given, check)}"


def scontrol(folder: Path, words: list[str]) -> str:
    """Note that a job asks to go back into the queue."""
    verb, job_id = words
    if verb != "requeue":
        raise Refused(f"scontrol: invalid keyword: {verb}")
    (folder / f"{job_id}.requeue").touch()
    return ""


def answer() -> None:
    """Be `sbatch` or `scontrol`."""
    batch.main({"sbatch": sbatch, "scontrol": scontrol}, last_words="", exit_code=1)


class Cluster(batch.Cluster):
    """An emulated Slurm.

    Attributes
    ----------
    cancel_after : dict of str to Path
        When this file is there, every process of the job of that name is sent SIGTERM, as by scancel.
    """

    commands = ("sbatch", "scontrol")
    drops_orphans = ("--kill-on-invalid-dep", "yes")
    awaited = staticmethod(awaited)

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.cancel_after: dict[str, Path] = {}

    def name_and_tasks(self, options: Options, job_id: str) -> tuple[str, int]:
        return options["--job-name"], int(options.get("--array", "1-0").removeprefix("1-"))

    def prepare(self, job: Job, task: Task) -> Start:
        options, own_id = job.options, self._own_id(job, task)
        script = self.folder / f"{own_id}.sh"
        script.write_text(job.script)
        script.chmod(0o700)
        environment = {
            "SLURM_JOB_ID": str(own_id),
            "SLURM_JOB_NAME": job.name,
            "SLURM_JOB_PARTITION": options.get("--partition", PARTITIONS[0]),
            "SLURM_CPUS_PER_TASK": options.get("--cpus-per-task", "1"),
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_RESTART_COUNT": str(len(task.exit_codes)),
            "SLURM_SUBMIT_DIR": str(job.cwd),
        }
        if task.index:
            environment |= {"SLURM_ARRAY_JOB_ID": str(job.job_id), "SLURM_ARRAY_TASK_ID": str(task.index)}
        files = []
        for name in ("--output", "--error"):
            target = options.get(name, "slurm-%j.out")
            for mark, value in {"%j": own_id, "%A": job.job_id, "%a": task.index}.items():
                target = target.replace(mark, str(value))
            files.append(job.cwd / target)
            assert files[-1].parent.is_dir(), "Slurm fails a job whose log has no folder"
        return Start([str(script)], environment, *files, appends=options.get("--open-mode") == "append")

    def end_of_wall_time(self, job: Job, process: subprocess.Popen) -> None:
        batch_alone, number, _ = re.fullmatch(r"(B:)?(\w+)@(\d+)", job.options["--signal"]).groups()
        assert batch_alone, "without B: Slurm signals the steps of srun, of which there are none"
        process.send_signal(getattr(signal, f"SIG{number}"))

    def meddle(self, job: Job, process: subprocess.Popen) -> None:
        if job.name in self.cancel_after:
            batch.wait_for(self.cancel_after[job.name], process)
            os.killpg(process.pid, signal.SIGTERM)

    def is_queued_again(self, job: Job, task: Task, code: int) -> bool:
        asked = self.folder / f"{self._own_id(job, task)}.requeue"
        if not asked.exists() or not job.options.get("--requeue"):
            return False
        asked.unlink()
        return True

    def _own_id(self, job: Job, task: Task) -> int:
        return job.job_id + 1000 * task.index  # a task of an array has an id of its own
