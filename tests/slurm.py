"""An emulated Slurm: `sbatch` and `scontrol` for PATH that take and refuse what the real ones do, and a cluster.

After the manuals of Slurm 24.11. What the tests lean on: an option on the command line overrides that in the script;
the job starts in the folder it was submitted from, with the environment of sbatch; the script itself is the process
whose exit code counts; ``--signal=B:`` signals it alone, and scancel all processes; a job goes back into the queue when
`scontrol requeue` asks for it, under the same id, whatever its exit code; afterok waits for all tasks of an array.
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
from pathlib import Path

from tests.lsf import MOST_STARTS, PATIENCE_S, Job, Refused, Task

FLAGS = {"--requeue", "--no-requeue", "--exclusive", "--hold"}
WITH_VALUE = {
    *("--array", "--account", "--constraint", "--cpus-per-task", "--dependency", "--error", "--export", "--gres"),
    *("--job-name", "--kill-on-invalid-dep", "--mail-type", "--mail-user", "--mem", "--nodes", "--ntasks"),
    *("--open-mode", "--output", "--partition", "--qos", "--signal", "--time"),
}
PARTITIONS = ("normal", "gpu")  # the first is the default


def read_options(words: list[str]) -> dict[str, str | bool]:
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


def options_of_script(script: str) -> dict[str, str | bool]:
    """Return the options on the ``#SBATCH`` lines of a script, which end with its first command."""
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            options |= read_options(shlex.split(line.removeprefix("#SBATCH")))
        elif line.strip() and not line.startswith("#"):
            break
    return options


def check(options: dict[str, str | bool], known_ids: set[int]) -> None:
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


def awaited(options: dict[str, str | bool]) -> set[int]:
    """Return the ids in ``afterok:1:2``."""
    return {int(text) for text in options.get("--dependency", "afterok").split(":")[1:]}


def sbatch(folder: Path, words: list[str]) -> str:
    """Queue the script on standard input; return Slurm's answer."""
    given, script = read_options(words), sys.stdin.read()
    if not script.startswith("#!"):
        raise Refused("sbatch: error: This does not look like a batch script")
    options = options_of_script(script) | given
    known_ids = {int(path.stem) for path in folder.glob("*.json")}
    check(options, known_ids)
    job_id = max(known_ids, default=100) + 1
    job = {"options": options, "script": script, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
    (folder / f"{job_id}.json").write_text(json.dumps(job))
    return f"Submitted batch job {job_id}"


def scontrol(folder: Path, words: list[str]) -> str:
    """Note that a job asks to go back into the queue."""
    verb, job_id = words
    if verb != "requeue":
        raise Refused(f"scontrol: invalid keyword: {verb}")
    (folder / f"{job_id}.requeue").touch()
    return ""


class Cluster:
    """A folder of submitted jobs, and the means to run them.

    Attributes
    ----------
    jobs : dict of str to Job
        By name, after `run`; the last of a name.
    run_order : list of str
        Name of the job of every start.
    wall_time_after : dict of str to Path
        For the first start of a job of that name the clock starts when this file is there. All others end in time.
    cancel_after : dict of str to Path
        When this file is there, every process of the job of that name is sent SIGTERM, as by scancel.
    """

    def __init__(self, folder: Path):
        self.folder, self.jobs, self.run_order = folder, {}, []
        self.wall_time_after, self.cancel_after = {}, {}
        self._by_id = {}
        (folder / "bin").mkdir(parents=True)
        for name in ("sbatch", "scontrol"):
            command = folder / "bin" / name
            words = shlex.join([sys.executable, "-m", "tests.slurm", name, str(folder)])
            command.write_text(f'#!/bin/sh\nPYTHONPATH={Path(__file__).parents[1]} exec {words} "$@"\n')
            command.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with the commands on it."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(self) -> None:
        """Run all jobs in the order of their dependencies, one after the other."""
        for path in sorted(self.folder.glob("*.json")):
            if int(path.stem) not in self._by_id:
                job = json.loads(path.read_text())
                n_tasks = int(job["options"].get("--array", "1-0").removeprefix("1-"))
                tasks = [Task(index) for index in range(1, n_tasks + 1)] or [Task(0)]
                name = job["options"]["--job-name"]
                self._by_id[int(path.stem)] = Job(
                    int(path.stem), name, job["options"], job["script"], Path(job["cwd"]), job["environment"], tasks
                )
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
                    elif parents & {"EXIT", "ORPHAN"} and job.options.get("--kill-on-invalid-dep") == "yes":
                        task.state, changed = "ORPHAN", True

    def _start(self, job: Job, task: Task) -> None:
        assert len(task.exit_codes) < MOST_STARTS, f"{job.name} is queued again and again"
        options, own_id = job.options, job.job_id + 1000 * task.index  # a task of an array has an id of its own
        script = self.folder / f"{own_id}.sh"
        script.write_text(job.script)
        script.chmod(0o700)
        environment = {
            **job.environment,
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
            assert (job.cwd / target).parent.is_dir(), "Slurm fails a job whose log has no folder"
            files.append((job.cwd / target).open("ab" if options.get("--open-mode") == "append" else "wb"))
        process = subprocess.Popen(
            [script],
            cwd=job.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=files[0],
            stderr=files[1],
            start_new_session=True,
        )
        try:
            if job.name in self.wall_time_after and not task.exit_codes:
                self._wait_for(self.wall_time_after[job.name], process)
                batch, number, _ = re.fullmatch(r"(B:)?(\w+)@(\d+)", options["--signal"]).groups()
                assert batch, "without B: Slurm signals the steps of srun, of which there are none"
                process.send_signal(getattr(signal, f"SIG{number}"))
            if job.name in self.cancel_after:
                self._wait_for(self.cancel_after[job.name], process)
                os.killpg(process.pid, signal.SIGTERM)
            code = process.wait(PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # Slurm leaves nothing of a job behind
                os.killpg(process.pid, signal.SIGKILL)
            for file in files:
                file.close()
        task.exit_codes.append(code)
        self.run_order.append(job.name)
        requeue = self.folder / f"{own_id}.requeue"
        if requeue.exists() and options.get("--requeue"):
            requeue.unlink()
            return
        task.state = "EXIT" if code else "DONE"

    def _wait_for(self, path: Path, process: subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)


if __name__ == "__main__":
    try:
        print({"sbatch": sbatch, "scontrol": scontrol}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:]))
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(1)
