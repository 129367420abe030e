"""Cost of a sweep in which every subset is repaired, compared with the plain sweep, in one run.

    python -m benchmarks.bench_repair
    python -m benchmarks.bench_repair --model wav2vec2 --repair_clips 64 --swept_clips 1000 --rounds 3

A full-size Whisper-base encoder, or the first six blocks of a wav2vec2-base, with random weights; all 32 subsets that
keep block 0. Round by round, in turn: the plain sweep of some clips, the fits of the repair, and the sweep of the
repaired subsets. Times are those of the processor, so that other processes disturb them little. A sweep takes the same
time for each batch, so it is measured on few clips, and counted for as many as --swept_clips. The cost of the fits does
not grow with these clips, so the ratio falls with their number. Peak memory is that of the process, and includes
PyTorch.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.noise import new_model, new_whisper, noise_clips
from utils.pruning.layer_selection import all_subsets
from utils.pruning.layer_sweep import predict_subsets
from utils.pruning.pruning_plan import REPAIR_CLIPS
from utils.pruning.repair import Repairer

GOAL = 1 / 1.5
N_BLOCKS = 6


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", choices=["whisper", "wav2vec2"], default="whisper", help="encoder")
    parser.add_argument("--clips", type=int, default=16, help="clips that are swept (default: 16)")
    parser.add_argument("--swept_clips", type=int, default=437, help="clips of the whole sweep (default: 437)")
    parser.add_argument(
        "--repair_clips", type=int, default=REPAIR_CLIPS, help=f"clips to fit on (default: {REPAIR_CLIPS})"
    )
    parser.add_argument("--seconds", type=float, default=5, help="length of a clip, in seconds (default: 5)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips per batch (default: 16)")
    results.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the seconds of each part, the ratio, and the peak memory."""
    args = build_parser().parse_args(argv)
    loaded = new_model(N_BLOCKS) if args.model == "wav2vec2" else new_whisper(args.seconds)
    keeps = list(all_subsets(N_BLOCKS))
    seconds: dict[str, list[float]] = {"plain": [], "fits": [], "repaired": []}

    def timed(what: str, call: Callable[[], object]) -> object:
        start = time.process_time()
        result = call()
        factor = 1 if what == "fits" else args.swept_clips / args.clips
        seconds[what].append(factor * (time.process_time() - start))
        return result

    with tempfile.TemporaryDirectory() as name, results.Table(__file__, args.results) as table:
        drawn = noise_clips(Path(name) / "clips", max(args.clips, args.repair_clips), args.seconds)
        clips, some = (drawn.drawn(n, seed=0) for n in (args.clips, args.repair_clips))
        predict_subsets(loaded, some, keeps[:1], args.batch_size)  # warms up
        for _ in range(args.rounds):
            timed("plain", lambda: predict_subsets(loaded, clips, keeps, args.batch_size))
            repairs = timed("fits", lambda: Repairer(loaded, some, args.batch_size).fit(keeps))
            timed("repaired", partial(predict_subsets, loaded, clips, keeps, args.batch_size, repairs=repairs))
        claim = (
            f"sweep with repair of {len(keeps)} subsets of {N_BLOCKS} blocks, {args.model}, {args.swept_clips} clips "
        )
        claim += f"of {args.seconds:g} s, repair on {args.repair_clips}"
        repaired = [fits + swept for fits, swept in zip(seconds["fits"], seconds["repaired"], strict=True)]
        table.add(claim, "plain sweep", repaired, seconds["plain"], "s of CPU", GOAL)
    for what, values in seconds.items():
        print(f"{what:<10}{statistics.median(values):>9.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
