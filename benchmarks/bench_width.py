"""Speed and size of narrower models with fewer blocks, beside a whole wav2vec2-base, on one thread.

    python -m benchmarks.bench_width
    python -m benchmarks.bench_width --seconds 2.5 --rounds 20

Full-size models with random weights: wav2vec2-base, and the encoder of Whisper-base with its window cropped to the
clip. Units are cut at random, which does not matter for speed; every model is saved, loaded by plain `from_pretrained`,
and compared with the one in memory. Then all run in turn, one clip at a time, with feature extraction. The times are
medians of the CPU time of the process, so that other processes disturb them little; the range is from the lowest to the
highest. Two goals: with half of the channels and of the blocks, 3 times as fast; with at most 5 % of the parameters, 10
times as fast.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.noise import SAMPLE_RATE_HZ, new_model, new_whisper
from utils.core import runs
from utils.models import architectures, encoders, latency, loading
from utils.models.loaded_model import LoadedModel
from utils.pruning import width

HALVES, GOAL_HALVES = (1 / 2, 1, 1 / 2), 3
SMALL, GOAL_SMALL = 0.05, 10
# Blocks, FFN units and channels that are kept, as shares of the whole model.
CASES = {
    "wav2vec2": [
        *((1, 1, 1), (1 / 2, 1, 1), (1, 1, 1 / 2), HALVES, (1 / 2, 1 / 2, 1 / 2), (1 / 2, 1 / 4, 1 / 2)),
        *((1 / 4, 1 / 4, 1 / 4), (1 / 12, 1 / 4, 1 / 4)),
    ],
    "whisper": [(1, 1, 1), (1 / 2, 1, 1), (1 / 2, 1 / 2, 1), (1 / 6, 1, 1), (1 / 3, 1 / 4, 1), (1 / 2, 1 / 32, 1)],
}


def smaller(whole: LoadedModel, shares: tuple[float, float, float], audio: np.ndarray, folder: Path) -> LoadedModel:
    """Return a smaller copy of a model, after it was saved and loaded; the copy in memory gives the same logits."""
    blocks, units, channels = shares
    loaded = encoders.pruned_copy(whole, range(round(blocks * whole.config.num_hidden_layers)))
    asked = {"ffn_size": float(units), "conv_channels": float(channels) if channels < 1 else None}
    changes = width.changes_of(loaded.config, asked)
    rng = np.random.default_rng(0)
    drawn = {
        name: [rng.random(loaded.model.get_submodule(c.reader).weight.shape[1]) for c in channels]
        for name in changes
        for channels in [width.channels_of(loaded.model, name)]
    }
    width.narrow(loaded.model, drawn, changes, width.ACTIVATION)
    loaded.model.save_pretrained(folder / "model")
    reloaded = encoders.load_model(folder / "model", "cpu").model
    with torch.inference_mode():
        inputs = loaded.prepare([audio], SAMPLE_RATE_HZ)
        difference = float((loaded.model(**inputs).logits - reloaded(**inputs).logits).abs().max())
    if difference > 1e-5:
        raise RuntimeError(f"{shares}: the loaded model gives other logits, by {difference:.2g}")
    return dataclasses.replace(loaded, model=reloaded)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="length of a clip, in seconds (default: 5)")
    parser.add_argument("--rounds", type=int, default=10, help="passes of each model (default: 10)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    loading.quiet_transformers()
    n_samples = round(args.seconds * SAMPLE_RATE_HZ)
    audio = (0.1 * np.random.default_rng(0).standard_normal(n_samples)).astype(np.float32)
    models = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, whole in {"wav2vec2": new_model(), "whisper": new_whisper(args.seconds)}.items():
            for shares in CASES[kind]:
                models[kind, shares] = smaller(whole, shares, audio, Path(name))
    seconds: dict[tuple, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(args.rounds + 1):  # the first warms up
            for name, loaded in models.items():
                start = time.process_time()
                loaded.model(**loaded.prepare([audio], SAMPLE_RATE_HZ))
                seconds[name].append(time.process_time() - start)
    times = {name: [1e3 * found for found in of_model[1:]] for name, of_model in seconds.items()}
    first = next(iter(models))
    n_whole, ms_whole = encoders.count_parameters(models[first].model), statistics.median(times[first])
    table = pd.DataFrame(
        {
            "model": kind,
            "blocks": loaded.config.num_hidden_layers,
            "FFN": architectures.widths_of(loaded.config)["ffn_size"],
            "channels": "–" if kind == "whisper" else loaded.config.conv_dim[0],
            "parameters": (n := encoders.count_parameters(loaded.model)),
            "share": n / n_whole,
            "GMACs": latency.count_macs(loaded.model, loaded.prepare([audio], SAMPLE_RATE_HZ))[0] / 1e9,
            "ms": round(statistics.median(found)),
            "range": f"{min(found):.0f} to {max(found):.0f}",
            "speed-up": ms_whole / statistics.median(found),
        }
        for ((kind, _), loaded), found in zip(models.items(), times.values(), strict=True)
    )
    print(f"{runs.device_name('cpu')}, one thread, a clip of {args.seconds:g} s; what each model keeps:")
    print(table.to_string(index=False, float_format="%.3f"))
    halves = table["speed-up"][CASES["wav2vec2"].index(HALVES)]
    small = table.loc[table["share"] <= SMALL, "speed-up"].max()
    print(f"half of the channels and of the blocks: {halves:.2f} times as fast (goal {GOAL_HALVES})")
    print(f"at most {SMALL:.0%} of the parameters: up to {small:.1f} times as fast (goal {GOAL_SMALL})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
