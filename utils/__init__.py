"""What two or more stages need. Nothing here parses a command line, chooses a path or exits."""

import os
import signal
import sys
from pathlib import Path

# A thread of PyTorch that waits for another sleeps, and leaves its CPU to whom it is waiting for. By default it spins:
# beside one busy process two threads on two CPUs then take seven times as long as one. The OpenMP library reads this
# when it is loaded, with PyTorch, so no stage imports that before this package.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _leave(number: int, frame: object) -> None:
    """End a program that has not begun: there is nothing to close, and no traceback to show."""
    os.write(2, b"stopped by SIGINT: run the same command again to go on\n")
    os._exit(75)


# Programs of this project load for half a second before `cli.run_stage` catches Ctrl-C.
_program = getattr(sys.modules.get("__main__"), "__file__", None)
_is_ours = _program and Path(__file__).resolve().parent.parent in Path(_program).resolve().parents[:2]
if _is_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
