"""The pool of worker processes: results, errors, deaths."""

import errno
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.stages import ROOT
from utils.core import workers
from utils.core.errors import InputError
from utils.core.workers import available_cpus, worker_pool


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("n_tasks", [0, 1, 50])
def test_every_task_gives_its_result_once(num_workers, n_tasks):
    with worker_pool(num_workers) as pool_map:
        for _ in range(2):
            assert sorted(pool_map(math.sqrt, range(n_tasks))) == [math.sqrt(i) for i in range(n_tasks)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_keep_their_type_and_number(tmp_path, num_workers):
    with pytest.raises(FileNotFoundError) as caught, worker_pool(num_workers) as pool_map:
        list(pool_map(os.stat, [str(tmp_path), str(tmp_path / "gone")]))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "gone")
    if num_workers > 1:
        assert "in a worker process" in caught.value.__notes__[0]


def test_a_worker_that_dies_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="fewer --num_workers or more memory"), worker_pool(2) as pool_map:
        list(pool_map(os._exit, [1]))


def test_workers_end_with_the_block_even_in_the_middle_of_a_task():
    with pytest.raises(KeyError), worker_pool(2) as pool_map:
        pids = set(pool_map(_pid_after, [0.2] * 4))
        next(pool_map(time.sleep, [0, 600]))
        raise KeyError
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_the_whole_group_leaves_the_decision_to_the_parent(number):
    with worker_pool(2) as pool_map:
        pids = set(pool_map(_pid_after, [0.2] * 4))
        for pid in pids:
            os.kill(pid, number)
        assert sorted(pool_map(math.sqrt, [1, 4, 9])) == [1, 2, 3]


def _pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def test_workers_die_with_a_parent_that_is_killed():
    code = """
import time
from utils.core.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool_map:
        for _ in pool_map(time.sleep, [0, 0, 0, 600, 600]):
            print("started", flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "started\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_available_cpus():
    assert 1 <= available_cpus() <= os.cpu_count()


def test_too_few_open_files_for_the_workers(monkeypatch):
    limits = []
    monkeypatch.setattr(workers.resource, "setrlimit", lambda kind, values: limits.append(values))
    monkeypatch.setattr(workers.resource, "getrlimit", lambda kind: (40, 1000))
    workers._allow_open_files(12)
    assert limits == [(workers.OPEN_FILES + 12 * workers.OPEN_FILES_PER_WORKER, 1000)]
    monkeypatch.setattr(workers.resource, "getrlimit", lambda kind: (40, 64))
    with pytest.raises(InputError, match=r"--num_workers 12 need about 84 open files.*allows 64.*--num_workers 5"):
        workers._allow_open_files(12)
