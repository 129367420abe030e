"""Worker processes that always end with the process that started them."""

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from utils.core.errors import InputError
from utils.core.runs import STOP_SIGNALS

# Per worker: a pipe, its other end, and a handle that shows its end. In addition: libraries, files and the lock.
OPEN_FILES_PER_WORKER, OPEN_FILES = 3, 48
PRELOADED = ("av", "numpy", "pandas", "pyarrow.parquet", "scipy.fft", "soundfile", "soxr", "tqdm")

Map = Callable[[Callable, Iterable], Iterator]


def available_cpus() -> int:
    """Return the number of CPUs that this process may use; a batch system often allows only some of them."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(num_workers: int, preloaded: Sequence[str] = PRELOADED) -> Iterator[Map]:
    """Start worker processes; yield a parallel ``map`` that gives results as they arrive, in no fixed order.

    With one worker the work is done in this process. An exception in a worker is raised here, with its type, its
    ``errno`` and, as a note, its traceback. When the block ends, for any reason, the workers end at once. They also end
    when this process is killed, so that no worker writes into a folder that a later attempt uses.

    Parameters
    ----------
    num_workers : int
        Number of processes, at least 1.
    preloaded : sequence of str
        Modules that are imported once, for all workers, before they start.

    Yields
    ------
    callable
        ``map(function, tasks)``. Both are pickled, so `function` must be in a module that can be imported.

    Raises
    ------
    InputError
        If a worker dies, most often because memory ran out, or if more files would be open than the system allows.
    """
    if num_workers == 1:
        yield map
        return
    _allow_open_files(num_workers)
    # A fork of this process could hang, because it copies locks that threads of a library hold. The fork server has
    # no threads; it imports the slow modules once, for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    workers: dict[Connection, multiprocessing.Process] = {}
    try:
        for _ in range(num_workers):
            here, there = context.Pipe()
            workers[here] = context.Process(target=_work, args=(there,), daemon=True)
            workers[here].start()
            there.close()
        yield lambda function, tasks: _map(list(workers), function, tasks)
    finally:
        started = [process for process in workers.values() if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()
        for connection in workers:
            connection.close()


def _allow_open_files(num_workers: int) -> None:
    """Raise the limit of open files of this process to the number that `num_workers` need.

    Raises
    ------
    InputError
        If the system does not allow that many.
    """
    needed = OPEN_FILES + OPEN_FILES_PER_WORKER * num_workers
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        if most != resource.RLIM_INFINITY and most < needed:
            fewer = max(1, (most - OPEN_FILES) // OPEN_FILES_PER_WORKER)
            raise InputError(
                f"--num_workers {num_workers} need about {needed} open files, and this system allows {most} "
                f"(ulimit -n): give --num_workers {fewer}, or have the limit raised"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def _map(connections: list[Connection], function: Callable, tasks: Iterable) -> Iterator:
    tasks = iter(tasks)
    idle, busy = connections, set()
    while True:
        try:
            for connection, task in zip(idle, tasks, strict=False):
                connection.send((function, task))
                busy.add(connection)
            idle = wait(busy) if busy else []
            answers = [connection.recv() for connection in idle]
        except (EOFError, ConnectionError) as error:
            raise InputError(
                f"one of {len(connections)} worker processes was killed, most often because the machine or the job "
                "ran out of memory: give fewer --num_workers or more memory, and run the same command again to continue"
            ) from error
        if not answers:
            return
        busy.difference_update(idle)
        for is_error, value in answers:
            if is_error:
                raise value
            yield value


def _work(connection: Connection) -> None:
    # A terminal or a batch system signals the whole process group; only the parent decides.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has died
        while True:
            function, task = connection.recv()
            try:
                answer = False, function(task)
            except Exception as error:
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = True, error
            connection.send(answer)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
