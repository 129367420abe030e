"""Speed and size of narrower models, of models of fewer blocks, and of the CNN, beside wav2vec2-base, on one thread.

    python -m benchmarks.bench_width
    python -m benchmarks.bench_width --seconds 2.5 --rounds 20

Full-size models with random weights: wav2vec2-base, the encoder of Whisper-base with its window cropped to the clip,
and the CNN of `06_cnn.py --architecture melspectrogram`, of which a teacher changes only the weights. Units are cut at
random, which does not matter for speed; every narrower model is saved, loaded by plain `from_pretrained`, and compared
with the one in memory. Then all run in turn, one clip at a time, with feature extraction. The times are medians of the
CPU time of the process, so that other processes disturb them little; the range is from the lowest to the highest. Two
goals: with half of the channels and of the blocks, 3 times as fast; with at most 5 % of the parameters, 10 times as
fast.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import results
from benchmarks.noise import N_LABELS, SAMPLE_RATE_HZ, new_model, new_whisper
from utils.models import architectures, cnn, encoders, latency, loading
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
WHOLE, CNN = ("wav2vec2", (1, 1, 1)), ("log-mel CNN", ())


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
    loaded.extractor.save_pretrained(folder / "model")
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
    results.add_arguments(parser, n_rounds=10)
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

    labels = [str(number) for number in range(N_LABELS)]
    models[CNN] = cnn.build_cnn("melspectrogram", labels, SAMPLE_RATE_HZ, args.seconds).ready("cpu")

    def forward(loaded: LoadedModel) -> None:
        loaded.model(**loaded.prepare([audio], SAMPLE_RATE_HZ))

    n_whole = encoders.count_parameters(models[WHOLE].model)
    shares = {name: encoders.count_parameters(loaded.model) / n_whole for name, loaded in models.items()}
    claims = {name: described(name[0], loaded, audio, shares[name]) for name, loaded in models.items()}
    with torch.inference_mode(), results.Table(__file__, args.results) as table:
        ways = {name: functools.partial(forward, loaded) for name, loaded in models.items()}
        taken = results.in_turn(ways, args.rounds, time.process_time)
        ms = {name: [1e3 * seconds for seconds in of_model] for name, of_model in taken.items()}
        for name in models:
            if name != WHOLE:
                goal = GOAL_SMALL if shares[name] <= SMALL else GOAL_HALVES if name == ("wav2vec2", HALVES) else None
                table.add(claims[name], "wav2vec2-base, whole", ms[name], ms[WHOLE], "ms of CPU", goal)
    return 0


def described(kind: str, loaded: LoadedModel, audio: np.ndarray, share: float) -> str:
    """Return what a model keeps, and its share of the parameters of the whole wav2vec2-base."""
    macs = latency.count_macs(loaded.model, loaded.prepare([audio], SAMPLE_RATE_HZ))[0]
    if kind == CNN[0]:
        return f"{kind}: {macs / 1e9:.2f} GMACs, {share:.1%} of the parameters"
    channels = "" if kind == "whisper" else f", {loaded.config.conv_dim[0]} channels"
    return (
        f"{kind}: {loaded.config.num_hidden_layers} blocks, {architectures.widths_of(loaded.config)['ffn_size']} FFN "
        f"units{channels}, {macs / 1e9:.2f} GMACs, {share:.1%} of the parameters"
    )


if __name__ == "__main__":
    sys.exit(main())
