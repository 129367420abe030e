"""Running the numbered scripts, and comparing what they leave."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.stage_processes import load_stage as load_stage  # for the tests
from experiments.stage_processes import start_stage

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def stopped_at_loss(monkeypatch, number: int) -> Iterator[None]:
    """Send this process SIGUSR2 when it computes its training loss for the n-th time."""
    from utils.models import training  # takes seconds to import, and the emulated batch systems import this room

    real, n_losses = training.Loss.__call__, 0

    def loss(self, outputs, labels, num_items_in_batch=None):
        nonlocal n_losses
        if outputs["logits"].requires_grad:
            n_losses += 1
            if n_losses == number:
                os.kill(os.getpid(), signal.SIGUSR2)
        return real(self, outputs, labels, num_items_in_batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Loss, "__call__", loss)
        yield


def digests(output_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in an output folder but the run's own record, log and lock."""
    own = ("run.json", "log.txt", ".lock")
    paths = sorted(p for p in output_dir.rglob("*") if p.name not in own and p.is_file())
    return {str(p.relative_to(output_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def run_apart(script: str, words: Sequence, printed: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run a stage as a process of its own, without the seconds that the imports take; return its exit code."""
    process = start_stage(script, [str(word) for word in words], printed, prepare)
    process.join()
    return process.exitcode


def without_figures() -> None:
    """Have this process compose its figures and save empty files for them; time every model a few times only."""
    from matplotlib.figure import Figure

    from utils.models import latency

    Figure.savefig = lambda self, file, **options: None
    latency.MAX_PASSES = 1


def launch_together(python: Path, n_processes: int, script: str, *words) -> int:
    """Run a stage in several processes under torchrun, as jobs do; return the exit code.

    Parameters
    ----------
    python : Path
        See the fixture `warm_python`.
    n_processes : int
    script : str
    *words
        Of the stage.
    """
    command = [python, ROOT / script, *words]
    return launch_as_job("--no-python", "--nproc_per_node", n_processes, *command)


def launch_as_job(*words) -> int:
    """Call `jobs.launch`, which sets handlers of signals, and set the ones before again; return the exit code."""
    from jobs import launch  # takes seconds to import

    before = {number: signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}}
    try:
        return launch.main([str(word) for word in words])
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
