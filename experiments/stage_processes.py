"""The numbered scripts as processes that start at once: forks of a server that has imported what they import.

To import PyTorch and transformers takes seconds, longer than a small stage, and far longer than to see that a finished
one has nothing to do.
"""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = [
    "utils.data.preparation",
    "utils.figures.analysis_plots",
    "utils.figures.pruning_plots",
    "utils.layers.convexity",
    "utils.layers.probes",
    "utils.models.training",
    "utils.pruning.healing",
    "utils.pruning.pruning_table",
]
CONTEXT = multiprocessing.get_context("forkserver")


def start_stage(
    script: str, words: Sequence[str], printed: Path, prepare: Callable[[], None] | None = None
) -> BaseProcess:
    """Start a stage; return when it is a process of its own, which signals reach, or has died before it was.

    Parameters
    ----------
    script : str
        File name of the stage.
    words : sequence of str
        Its command line.
    printed : Path
        File to add to what it prints.
    prepare : callable, optional
        Is called in the new process first; pickled.
    """
    CONTEXT.set_forkserver_preload(IMPORTED)
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_become, args=(script, list(words), printed, prepare, there))
    process.start()
    there.close()
    wait([here, process.sentinel])
    here.close()
    return process


def _become(
    script: str, words: list[str], printed: Path, prepare: Callable[[], None] | None, is_ready: Connection
) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as jobs/stage.sh leaves it
    is_ready.close()  # all that the one who started it waits for
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if prepare is not None:
        prepare()
    sys.argv = [script, *words]
    runpy.run_path(str(ROOT / script), run_name="__main__")
