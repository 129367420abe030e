"""Speed of collecting the hidden states of all layers, compared with a bare forward loop over the same batches.

    python -m benchmarks.bench_extraction
    python -m benchmarks.bench_extraction --n_clips 64 --rounds 5

The model is a full-size wav2vec2-base (12 blocks) with random weights; a clip is 5 s of noise. The bare loop reads the
same clips, extracts the same features and discards the logits. In addition, 04 averages the frames of 13 layers,
compares every frame for all 78 pairs of layers, and writes to disk. The two alternate.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.noise import new_model, noise_clips
from utils.layers import hidden_states
from utils.models import predict

CLIP_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_clips", type=int, default=16, help="clips per round (default: 16)")
    parser.add_argument("--batch_size", type=int, default=4, help="clips per batch (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are reported (default: 5)")
    args = parser.parse_args()
    loaded = new_model()
    with tempfile.TemporaryDirectory() as scratch:
        data = noise_clips(Path(scratch) / "clips", args.n_clips, CLIP_SECONDS)

        def bare() -> None:
            with torch.inference_mode():
                for inputs in predict.input_batches(loaded, data, args.batch_size, desc="bare"):
                    loaded.model(**inputs)

        def collected(number: int) -> None:
            key = {"round": number}
            hidden_states.extract(loaded, data, args.batch_size, Path(scratch), "states", key)

        bare()
        seconds: dict[str, list[float]] = {"bare": [], "collected": []}
        for number in range(args.rounds):
            for name, way in (("bare", bare), ("collected", lambda number=number: collected(number))):
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)
    ratios = [c / b for c, b in zip(seconds["collected"], seconds["bare"], strict=True)]
    print(f"wav2vec2-base, {args.n_clips} clips of {CLIP_SECONDS:g} s, {torch.get_num_threads()} threads")
    print(f"bare forward loop   {statistics.median(seconds['bare']):7.2f} s")
    print(f"all hidden states   {statistics.median(seconds['collected']):7.2f} s")
    print(f"ratio               {statistics.median(ratios):7.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
