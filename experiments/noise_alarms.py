"""Count how often a model with thresholds detects a bird in noise without one.

    python -m experiments.noise_alarms --model_dir runs/cnn
    python -m experiments.noise_alarms --model_dir runs/cnn --threshold 0.5      # a model without fitted thresholds

Synthesises clips of each kind of noise of `utils.data.synthetic_noise` at each of `LEVELS_DB`, of the length that the
model was trained on. Prints, for each, the share of clips in which at least one label is detected, with its 95 %
interval, and the label that is detected most often. No clip of a data set is read: val has no noise without a bird, so
its thresholds say nothing about it.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.core import cli
from utils.core.errors import UsageError
from utils.data import synthetic_noise
from utils.models import decision, encoders, model_folder
from utils.models.loaded_model import LoadedModel
from utils.scores import intervals, thresholds

log = logging.getLogger(Path(__file__).stem)

LEVELS_DB = (-50, -35, -20)
BATCH = 16


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--model_dir", type=Path, required=True, help="run folder or model folder")
    parser.add_argument(
        "--threshold", type=cli.fraction, help="one threshold for all labels (default: the fitted ones)"
    )
    parser.add_argument("--clips", type=cli.positive_int, default=40, help="clips of each kind and level")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the noise")
    parser.set_defaults(log_level="info")
    return parser


def limits_of(args: argparse.Namespace, config: object) -> list[float | None]:
    """Return the threshold of each label, by id.

    Raises
    ------
    UsageError
        If the model has none and none is given.
    """
    labels = [config.id2label[i] for i in range(config.num_labels)]
    fitted = decision.read(config, str(args.model_dir))
    if args.threshold is not None:
        return [args.threshold] * len(labels)
    if fitted is None:
        raise UsageError(f"{args.model_dir} has no fitted thresholds: give --threshold, or {decision.AGAIN}")
    return [fitted["thresholds"][label] for label in labels]


def detected_in(loaded: LoadedModel, sounds: list[np.ndarray], limits: Sequence[float | None]) -> np.ndarray:
    """Return whether each label is detected in each clip, shape (n_clips, n_classes)."""
    logits = []
    with torch.inference_mode():
        for first in range(0, len(sounds), BATCH):
            inputs = loaded.prepare(sounds[first : first + BATCH], loaded.extractor.sampling_rate)
            logits.append(loaded.model(**inputs).logits.float().numpy())
    return thresholds.detections(decision.scores(np.concatenate(logits), loaded.config), limits)


def share(n: int, n_all: int) -> str:
    """Return a share with its Wilson interval."""
    part = n / n_all
    low, high = intervals.share_interval(part, np.sqrt(part * (1 - part) / n_all), n_all, n_all)
    return f"{part:.3f} [{low:.3f}, {high:.3f}]"


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    model_folder.model_input(args.model_dir)
    loaded = encoders.load_model(args.model_dir, "cpu")
    limits, rate_hz = limits_of(args, loaded.config), loaded.extractor.sampling_rate
    n_samples = round(loaded.config.clip_seconds * rate_hz)
    print(f"{sum(one is not None for one in limits)} of {len(limits)} labels have a threshold; {args.clips} clips each")
    print(f"{'noise':<8} {'level':>7}  share of clips with a detection, most frequent label")
    n_alarms = n_clips = 0
    for number, kind in enumerate(synthetic_noise.KINDS):
        for level_db in LEVELS_DB:
            rng = np.random.default_rng([args.seed, number, -level_db])
            sounds = [synthetic_noise.noise(kind, rng, n_samples, rate_hz, level_db) for _ in range(args.clips)]
            detected = detected_in(loaded, sounds, limits)
            named = Counter(loaded.labels[i] for i in np.nonzero(detected)[1]).most_common(1)
            n, n_alarms = int(detected.any(axis=1).sum()), n_alarms + int(detected.any(axis=1).sum())
            n_clips += args.clips
            print(f"{kind:<8} {level_db:>4} dB  {share(n, args.clips)}  {named[0][0] if named else ''}")
    print(f"{'all':<8} {'':>7}  {share(n_alarms, n_clips)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
