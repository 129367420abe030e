"""Train a convolutional network from scratch on the clips of stage 01: the baseline for an encoder.

    python 06_cnn.py --architecture melspectrogram --data_dir processed_data --output_dir runs/cnn
    python 06_cnn.py --architecture melspectrogram --pcen --width 2 --output_dir runs/cnn-pcen-wide
    python 06_cnn.py --architecture melspectrogram --teacher_dir runs/wav2vec2 --output_dir runs/cnn-taught
    python 06_cnn.py --architecture waveform --output_dir runs/cnn-waveform
    python 06_cnn.py --architecture melspectrogram --width 0.25 --num_train_epochs 5 --output_dir runs/small

melspectrogram  a residual network of 1.2 M parameters on log-mel spectrograms, for clips of any length
waveform        two convolutions and two dense layers on the samples, without a spectrogram; the longer the clips, the
                more parameters it has

Trains like 02_finetuning.py, with the same flags and the same run folder. It keeps the checkpoint with the best macro
F1 on `val` (macro average precision where a clip can have several labels) and never reads `test`. After a stop, the
same command continues. 03_model_validation.py scores the model.
The model has no transformer blocks: 04 and 05 refuse it, and 07 does nothing but --export onnx.

Writes <output_dir>/model (its `classify.py` classifies files; `from_pretrained` loads it after `import bird_cnn`, a
file in that folder), metrics.csv, training_curves.png, tensorboard/, log.txt and run.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, lazy
from utils.models import architectures, training_arguments

with lazy.imported_on_first_use():
    from utils.data import clips
    from utils.models import cnn, training

if TYPE_CHECKING:
    from utils.models.loaded_model import LoadedModel


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--architecture", choices=architectures.CNNS, required=True, help="network to train")
    parser.add_argument(
        "--width",
        type=cli.positive_float,
        default=1.0,
        help="factor on the channels of every convolution and the units of the hidden dense layer",
    )
    parser.add_argument(
        "--pcen",
        action="store_true",
        help="per-channel energy normalisation of the spectrogram in place of its logarithm",
    )
    cli.add_data_arguments(parser)
    training_arguments.add_arguments(parser)
    training_arguments.add_teacher_arguments(parser, has_blocks=False)
    # Random weights need larger and more training steps than a pre-trained encoder.
    parser.set_defaults(learning_rate=1e-3, num_train_epochs=50, early_stopping_patience=10)
    cli.add_common_arguments(parser, output_dir=None)
    return parser


def run(args: argparse.Namespace) -> None:
    """Train and write a run folder."""
    args.augment = training_arguments.augmentations(args.augment, args.per_device_train_batch_size)

    def build(train_clips: clips.Clips) -> LoadedModel:
        return cnn.build_cnn(
            args.architecture,
            train_clips.labels,
            train_clips.sample_rate_hz,
            train_clips.clip_seconds,
            args.width,
            args.pcen,
        )

    inputs = {"data_dir": clips.data_input(args.data_dir, args.fold), **training_arguments.teacher_inputs(args)}
    with training_arguments.open_run_folder(Path(__file__).stem, args, inputs) as this_run:
        training.train_in_run_folder(this_run, args, inputs, build)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
