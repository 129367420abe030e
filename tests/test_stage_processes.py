"""A stage as a process: its start is waited for, and so is its death while it starts."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments.stage_processes import start_stage

PATIENCE_S = 120


class DiesWhileItStarts:
    """Kills the process that unpickles it: the new one, before its own code runs."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return signal.raise_signal, (self.number,)


def start(tmp_path, *words, **options):
    """Start a stage; fail if that takes too long to be anything but a wait for ever."""
    pool = ThreadPoolExecutor(1)
    started = pool.submit(start_stage, "01_data_processing.py", words, tmp_path / "printed.txt", **options)
    pool.shutdown(wait=False)
    return started.result(timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_that_dies_while_it_starts_is_noticed(number, tmp_path):
    process = start(tmp_path, DiesWhileItStarts(number))
    process.join(PATIENCE_S)
    assert process.exitcode == -number
    assert not (tmp_path / "printed.txt").exists()


def test_a_stage_that_starts_is_reached_by_signals(tmp_path):
    process = start(tmp_path, "--help")
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert "--raw_dir" in (tmp_path / "printed.txt").read_text()
