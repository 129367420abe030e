"""A Python for many short runs of the stages: a fork of one process that has imported what they import.

To import PyTorch and transformers takes seconds, and each job of a study does it anew. `WarmPython.command` is called
as `python` is; a request goes to the process that waits, whose fork runs the script, on the caller's files, in its
folder and environment. Signals are passed on, and the exit code comes back.
"""

import array
import gc
import json
import os
import runpy
import shlex
import signal
import socket
import sys
from pathlib import Path

MOST_BYTES = 2**20
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class WarmPython:
    """The process that waits, and the command that asks it; a context.

    Parameters
    ----------
    folder : Path
        Holds the command and the socket.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        self.command, self.address = folder / "python", folder / "socket"
        words = [sys.executable, "-S", "-E", __file__, "ask", str(self.address)]  # -S -E: start at once
        self.command.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        self.command.chmod(0o755)

    def __enter__(self) -> "WarmPython":
        from experiments.stage_processes import CONTEXT, IMPORTED

        CONTEXT.set_forkserver_preload(IMPORTED)
        is_ready = CONTEXT.Event()
        self.process = CONTEXT.Process(target=wait, args=(str(self.address), is_ready))
        self.process.start()
        assert is_ready.wait(120)
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.join()


def ask(address: str, words: list[str]) -> int:
    """Have a script run; return its exit code, negative for a signal."""
    request = json.dumps({"words": words, "cwd": str(Path.cwd()), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
        with connection.makefile("rwb") as stream:
            stream.write(request + b"\n")
            stream.flush()
            pid = int(stream.readline())
            for number in PASSED_ON:
                signal.signal(number, lambda number, frame: os.kill(pid, number))
            return int(stream.readline())


def wait(address: str, is_ready) -> None:
    """Run scripts for ever."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        is_ready.set()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                serve(connection)
            connection.close()


def serve(connection: socket.socket) -> None:
    """Run one script in a child; tell its process id, and its exit code at the end."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    stream = connection.makefile("rwb")
    request = json.loads(stream.readline(MOST_BYTES))
    pid = os.fork()
    if pid == 0:
        run(request, files)
    stream.write(f"{pid}\n".encode())
    stream.flush()
    stream.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    stream.flush()
    os._exit(0)


def run(request: dict, files: list[int]) -> None:
    """Become the script."""
    code = 1
    try:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as the job leaves it
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        gc.freeze()  # a collection would copy all pages of what was imported
        sys.argv = request["words"]
        if sys.argv[0] == "-u":  # as torchrun calls its Python
            sys.argv.pop(0)
        if sys.argv[0] == "-m":
            sys.argv.pop(0)
            sys.path.insert(0, request["cwd"])
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    code = ask(sys.argv[2], sys.argv[3:])
    sys.exit(code if code >= 0 else 128 - code)
