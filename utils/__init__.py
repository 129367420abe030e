"""Code that two or more stages share."""

import os
import signal
import sys
from pathlib import Path

# With this setting, a thread of PyTorch that waits for another one sleeps and frees its CPU. By default it spins:
# beside one busy process, two threads on two CPUs then take seven times as long as one. The OpenMP library reads the
# setting when PyTorch is loaded, so every stage imports this package first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _leave(number: int, frame: object) -> None:
    """End a program that is still loading: nothing must be closed, and no traceback is printed."""
    os.write(2, b"stopped by SIGINT: run the same command again to continue\n")
    os._exit(75)


# A program of this project loads for half a second before `cli.run_stage` handles Ctrl-C.
_program = getattr(sys.modules.get("__main__"), "__file__", None)
_is_ours = _program and Path(__file__).resolve().parent.parent in Path(_program).resolve().parents[:2]
if _is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
