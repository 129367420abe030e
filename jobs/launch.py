"""torchrun for batch jobs: signals of LSF reach the stage, and LSF receives the exit code of the stage.

    python -m jobs.launch --nproc_per_node 4 02_finetuning.py --output_dir runs/wav2vec2

Accepts the arguments of torchrun; all processes run on this machine. Without this, torchrun would die of SIGUSR2, kill
a stage 30 s after SIGTERM, even during a longer checkpoint, and always end with 1 after a failure.
"""

import contextlib
import signal
import sys
from collections.abc import Sequence

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from utils.core.errors import Interrupted
from utils.core.runs import STOP_SIGNALS

# On these signals torchrun itself ends all processes; STOP_SIGNALS are not among them.
SIGNALS_OF_TORCHRUN = "SIGHUP,SIGQUIT"


def pass_on(number: int, frame: object) -> None:
    """Send a signal to the processes of the stage, which save a checkpoint and end; without any, end at once."""
    processes = psutil.Process().children()
    if not processes:
        sys.exit(Interrupted.exit_code)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage in several processes; return the exit code of the first process that failed, or 0.

    A process that died of a signal has the exit code 128 plus the number of the signal, as in a shell.
    """
    words = ["--standalone", "--signals_to_handle", SIGNALS_OF_TORCHRUN, *(sys.argv[1:] if argv is None else argv)]
    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    try:
        torchrun.run(torchrun.parse_args(words))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
