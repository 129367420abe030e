"""Memory of a command with all its processes."""

import subprocess
import time

import psutil

SAMPLE_EVERY_S = 0.05


def peaks_of(child: subprocess.Popen) -> tuple[float, float]:
    """Return the highest sampled sums of RSS and of PSS over a process and its descendants, in MB, until it ends.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    stage = psutil.Process(child.pid)
    rss = pss = 0.0
    while child.poll() is None:
        total_rss = total_pss = 0
        try:
            for process in [stage, *stage.children(recursive=True)]:
                found = process.memory_full_info()
                total_rss += found.rss
                total_pss += found.pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass  # a process ended meanwhile
        rss, pss = max(rss, total_rss), max(pss, total_pss)
        time.sleep(SAMPLE_EVERY_S)
    if child.returncode:
        raise RuntimeError(f"{child.args} ended with {child.returncode}")
    return rss / 1e6, pss / 1e6
