"""Cost of evaluating many pruned models together, compared with one model at a time.

    python -m benchmarks.bench_layer_sweep
    python -m benchmarks.bench_layer_sweep --clips 8 --batch_size 8 --rounds 8 --sample 4

A full-size wav2vec2-base with random weights and 35 classes classifies clips of noise on the CPU. There are three
sweeps: the classic ones of 12 blocks (forward, backward, middle, single), all subsets of a 6-block encoder that keep
block 0, and all 2,048 of a 12-block encoder. These ways run in turn, round by round:

- shared: utils.pruning.layer_sweep, with the reading of clips. Of the 2,048 subsets, each round runs one of eight parts
  (those that agree in blocks 1, 2 and 3) and scales it up, so eight front ends are counted instead of one;
- one at a time: the pruned model, built in memory and not timed, classifies the same clips in the same batches. This is
  done for a few subsets of evenly distributed lengths, and scaled up. It runs once with the same faster linear layers
  (utils.models.onednn) as the sweep, so that the ratio shows only the effect of sharing, and once with the standard
  layers of PyTorch.

The parts and the subsets differ from round to round, so the range of the ratios is that of the sample, too. The first
table gives the front end's time in blocks.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import results
from benchmarks.noise import SAMPLE_RATE_HZ, new_model, noise_clips
from utils.data.clips import Clips
from utils.models import onednn
from utils.models.encoder_parts import EncoderParts
from utils.models.encoders import pruned_copy
from utils.models.loaded_model import LoadedModel
from utils.models.predict import predict
from utils.pruning.layer_selection import all_subsets, candidates
from utils.pruning.layer_sweep import predict_subsets, trie_cost

Keep = tuple[int, ...]

CLASSIC = ("forward", "backward", "middle", "single")
N_SPLIT_BLOCKS = 3
N_TIMES = 5
GOALS = (4.5, 6, 14)


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# ----------------------------------------------------------------------------------------------- ratios


def parts_of_all(n_layers: int) -> list[list[Keep]]:
    """Return all subsets that keep block 0, divided by which of the blocks 1, 2, 3 they keep."""
    parts: dict[Keep, list[Keep]] = {}
    for keep in all_subsets(n_layers):
        parts.setdefault(tuple(layer for layer in keep if layer <= N_SPLIT_BLOCKS), []).append(keep)
    return list(parts.values())


def evenly(keeps: Sequence[Keep], n: int, rng: np.random.Generator) -> list[Keep]:
    """Draw `n` lists whose mean length is close to that of all: a random start, then equal steps by length."""
    by_length = sorted(rng.permutation(np.array(keeps, dtype=object)).tolist(), key=len)
    return [by_length[int((i + rng.random()) * len(keeps) / n)] for i in range(n)]


def measure(
    loaded: LoadedModel, clips: Clips, parts: Sequence[Sequence[Keep]], args: argparse.Namespace
) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of each of three ways for all lists, of each round; the shared way runs them in `parts`."""
    rng = np.random.default_rng(args.seed)
    keeps = [keep for part in parts for keep in part]
    shared, alone = [], {True: [], False: []}
    order = rng.permutation(len(parts))
    for number in range(args.rounds):
        part = parts[order[number % len(parts)]]
        shared.append(len(parts) * seconds_of(lambda p=part: predict_subsets(loaded, clips, p, args.batch_size)))
        of_sample: dict[bool, list[float]] = {True: [], False: []}
        for keep in evenly(keeps, args.sample, rng):
            pruned = pruned_copy(loaded, keep, shares_weights=True)
            for faster, seconds in of_sample.items():
                with onednn.linear_layers(pruned.model, "cpu") if faster else contextlib.nullcontext():
                    seconds.append(seconds_of(lambda p=pruned: predict(p, clips, args.batch_size)))
        for faster, seconds in of_sample.items():
            alone[faster].append(len(keeps) * statistics.mean(seconds))
    return shared, alone[True], alone[False]


def report_ratios(clips: Clips, args: argparse.Namespace, table: results.Table) -> None:
    model, small_model = new_model(), new_model(6)
    predict(small_model, clips, args.batch_size)  # warms up
    classic = {candidate.keep for rule in CLASSIC for candidate in candidates(rule, 12)}
    sweeps = {
        "four classic sweeps of 12 blocks": (model, [sorted(classic)]),
        "all subsets of 6 blocks": (small_model, [list(all_subsets(6))]),
        "all subsets of 12 blocks": (model, parts_of_all(12)),
    }
    for (name, (of, parts)), goal in zip(sweeps.items(), GOALS, strict=True):
        keeps = [keep for part in parts for keep in part]
        shared, alone, plain = measure(of, clips, parts, args)
        passes, passes_alone = trie_cost(keeps)
        claim = f"{name}, wav2vec2-base: {len(keeps):,} subsets, {args.clips} clips of {args.seconds:g} s"
        table.add(claim, "one model at a time, PyTorch's linear layers", shared, plain, "s", goal)
        table.add(claim, "one model at a time, faster linear layers", shared, alone, "s")
        table.add(f"{claim}: block passes", "one model at a time", passes, passes_alone, "passes")


def report_front_end(clips: Clips, args: argparse.Namespace) -> None:
    loaded = new_model(1)
    model, parts = loaded.model, EncoderParts(loaded.model)
    audio = [clips.audio(i % len(clips)) for i in range(args.batch_size)]
    inputs = loaded.prepare(audio, SAMPLE_RATE_HZ)
    print(
        f"\n{'batch of ' + str(args.batch_size):<26}{'front end, ms':>15}{'block, ms':>11}{'front end in blocks':>21}"
    )
    with torch.inference_mode():
        state = parts.front_end(inputs)
        for name, faster in {"as in the sweep": True, "standard layers": False}.items():
            with onednn.linear_layers(model, "cpu") if faster else contextlib.nullcontext():
                parts.block(0, state)
                times = [
                    (seconds_of(lambda: parts.front_end(inputs)), seconds_of(lambda: parts.block(0, state)))
                    for _ in range(N_TIMES)
                ]
            front_end, block = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
            print(f"{name:<26}{front_end:>15.0f}{block:>11.1f}{front_end / block:>21.1f}")


# ------------------------------------------------------------------------------------------------- main


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--clips", type=int, default=1, help="clips to classify (default: 1)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a clip, in seconds (default: 5)")
    parser.add_argument("--batch_size", type=int, default=1, help="clips per batch (default: 1)")
    parser.add_argument("--sample", type=int, default=3, help="pruned models per round, one at a time (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the drawn subsets (default: 0)")
    results.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    print(f"wav2vec2-base, {args.clips} clips of {args.seconds:g} s, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        clips = noise_clips(Path(name) / "clips", args.clips, args.seconds)
        report_front_end(clips, args)
        with results.Table(__file__, args.results) as table:
            report_ratios(clips, args, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
