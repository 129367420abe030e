"""Cost of a sweep in which every subset is repaired, compared with the plain sweep, in one run.

    python -m benchmarks.bench_repair
    python -m benchmarks.bench_repair --clips 400 --repair_clips 128 --rounds 3

The first six blocks of a full-size wav2vec2-base with random weights; all 32 subsets that keep block 0. Round by
round, in turn: the plain sweep of the clips, the fits of the repair on some of the clips, and the sweep of the
repaired subsets. The cost of the fits does not grow with the clips that are scored, so the ratio falls with their
number. Peak memory is that of the process, and includes PyTorch.
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

import torch

from benchmarks.noise import new_model, noise_clips
from utils.pruning.layer_selection import all_subsets
from utils.pruning.layer_sweep import predict_subsets
from utils.pruning.repair import Repairer, draw_clips

GOAL = 1.5
N_BLOCKS = 6


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--clips", type=int, default=64, help="clips to classify (default: 64)")
    parser.add_argument("--repair_clips", type=int, default=16, help="clips to fit the repair on (default: 16)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a clip, in seconds (default: 5)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips per batch (default: 16)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (default: 1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the seconds of each part, and the ratio."""
    args = build_parser().parse_args(argv)
    loaded, keeps = new_model(N_BLOCKS), list(all_subsets(N_BLOCKS))
    seconds: dict[str, list[float]] = {"plain": [], "fits": [], "repaired": []}

    def timed(what: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = call()
        seconds[what].append(time.perf_counter() - start)
        return result

    with tempfile.TemporaryDirectory() as name:
        clips = noise_clips(Path(name) / "clips", args.clips, args.seconds)
        some = draw_clips(clips, args.repair_clips, seed=0)
        predict_subsets(loaded, some, keeps[:1], args.batch_size)  # warms up
        for _ in range(args.rounds):
            timed("plain", lambda: predict_subsets(loaded, clips, keeps, args.batch_size))
            repairs = timed("fits", lambda: Repairer(loaded, some, args.batch_size).fit(keeps))
            timed("repaired", partial(predict_subsets, loaded, clips, keeps, args.batch_size, repairs=repairs))
    of_round = [(fits + repaired) / plain for plain, fits, repaired in zip(*seconds.values(), strict=True)]
    print(
        f"{len(keeps)} subsets of {N_BLOCKS} blocks, {args.clips} clips of {args.seconds:g} s, repair on "
        f"{args.repair_clips}, {torch.get_num_threads()} threads"
    )
    for what, values in seconds.items():
        print(f"{what:<10}{statistics.median(values):>9.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"ratio     {statistics.median(of_round):>9.2f} ({min(of_round):.2f} to {max(of_round):.2f}; goal {GOAL}), "
        f"peak memory {peak:.1f} GB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
