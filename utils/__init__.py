"""What two or more stages need. Nothing here parses a command line, chooses a path or exits."""

import os

# A thread of PyTorch that waits for another sleeps, and leaves its CPU to whom it is waiting for. By default it spins:
# beside one busy process two threads on two CPUs then take seven times as long as one. The OpenMP library reads this
# when it is loaded, with PyTorch, so no stage imports that before this package.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
