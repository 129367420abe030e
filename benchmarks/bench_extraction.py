"""Speed of collecting the hidden states of all layers, compared with a bare forward loop over the same batches.

    python -m benchmarks.bench_extraction
    python -m benchmarks.bench_extraction --n_clips 64 --rounds 5

The model is a full-size wav2vec2-base (12 blocks) with random weights; a clip is 5 s of noise. The bare loop reads the
same clips, extracts the same features and discards the logits. In addition, 04 averages the frames of 13 layers,
compares every frame for all 78 pairs of layers, and writes to disk. The two alternate.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.noise import new_model, noise_clips
from utils.layers import hidden_states
from utils.models import predict

CLIP_SECONDS = 5.0
GOAL = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_clips", type=int, default=16, help="clips per round (default: 16)")
    parser.add_argument("--batch_size", type=int, default=4, help="clips per batch (default: 4)")
    results.add_arguments(parser)
    args = parser.parse_args()
    loaded, number = new_model(), itertools.count()
    with tempfile.TemporaryDirectory() as scratch, results.Table(__file__, args.results) as table:
        data = noise_clips(Path(scratch) / "clips", args.n_clips, CLIP_SECONDS)

        def bare() -> None:
            with torch.inference_mode():
                for inputs in predict.input_batches(loaded, data, args.batch_size, desc="bare"):
                    loaded.model(**inputs)

        def collected() -> None:
            key = {"round": next(number)}
            hidden_states.extract(loaded, data, args.batch_size, Path(scratch), "states", key)

        seconds = results.in_turn({"bare": bare, "collected": collected}, args.rounds)
        table.add(
            f"hidden states of all layers of wav2vec2-base, {args.n_clips} clips of {CLIP_SECONDS:g} s",
            "bare forward loop",
            *(seconds["collected"], seconds["bare"], "s"),
            goal=GOAL,
        )


if __name__ == "__main__":
    main()
