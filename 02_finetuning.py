"""Fine-tune an audio encoder, whole or already pruned, on the clips of stage 01.

    python 02_finetuning.py --data_dir processed_data --base_model facebook/wav2vec2-base --output_dir runs/wav2vec2
    python 02_finetuning.py --base_model facebook/wav2vec2-base --keep_layers 0-5 --output_dir runs/wav2vec2-0-5
    python 02_finetuning.py --base_model birdaves-biox-base.torchaudio.pt --output_dir runs/birdaves
    python 02_finetuning.py --base_model runs/wav2vec2 --keep_layers 0-5 --teacher_dir runs/wav2vec2 --output_dir runs/a
    python 02_finetuning.py --base_model facebook/wav2vec2-base --freeze_encoder --output_dir runs/head
    python 02_finetuning.py --base_model tiny --num_train_epochs 5 --output_dir runs/tiny     # in a minute on a CPU
    torchrun --nproc_per_node 4 02_finetuning.py --output_dir runs/wav2vec2                   # on four GPUs

The help of --base_model lists the encoders. The stage trains on `train` and keeps the checkpoint with the best macro F1
on `val`; where a clip can have several labels, with the best macro average precision. It never reads `test`.

SIGTERM, SIGINT or SIGUSR2 stops it: it saves a checkpoint and exits with 75. The same command continues from there
and ends with the same weights as a run that was never stopped.

Writes <output_dir>/model (plain `from_pretrained` loads it; its `classify.py` classifies files), metrics.csv,
training_curves.png, tensorboard/, log.txt and run.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, lazy
from utils.core.errors import UsageError
from utils.models import architectures, training_arguments

with lazy.imported_on_first_use():
    from utils.data import clips
    from utils.models import encoder_window, encoders, model_folder, start_line, training

if TYPE_CHECKING:
    from utils.models.loaded_model import LoadedModel

log = logging.getLogger(Path(__file__).stem)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument(
        "--base_model",
        default="facebook/wav2vec2-base",
        help=f"pre-trained encoder ({architectures.NAMES}): name on the hub, folder, a checkpoint of AVES or BirdAVES "
        "(aves.pt, with its aves.model_config.json beside it) or of BEATs (.pt or .safetensors), or 'tiny' (small, "
        "built in, random weights); or run folder of 06_cnn.py, to train a CNN further",
    )
    parser.add_argument(
        "--keep_layers", default=None, help="prune first: layers to keep, such as 0-3,7, or none (default: all)"
    )
    parser.add_argument("--freeze_feature_encoder", action="store_true", help="do not train the first convolutions")
    parser.add_argument(
        "--freeze_layers", default="none", help="layers not to train, such as 0-3,7, counted after pruning, or none"
    )
    parser.add_argument(
        "--freeze_encoder",
        action="store_true",
        default=None,
        help="train only the head: the encoder hears each clip once, as it is, and its features are kept on disk",
    )
    parser.add_argument(
        "--pooling",
        choices=architectures.POOLINGS,
        default=None,
        help="how the frames of a clip become one vector: their mean; weighted means with learned weights (attention "
        "over frames); or the mean of a weighted sum of all layers (default: as in the base model, usually mean)",
    )
    parser.add_argument(
        "--encoder_window",
        choices=architectures.WINDOWS,
        default=architectures.CLIP_WINDOW,
        help="Whisper's window (30 s in published models): crop it to the clip, or compute it in full with its silence",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only load and prune the base model, and find the teachers, to check them without clips",
    )
    cli.add_data_arguments(parser)
    training_arguments.add_arguments(parser)
    training_arguments.add_teacher_arguments(parser, has_blocks=True)
    cli.add_common_arguments(parser, output_dir=None)
    return parser


def run(args: argparse.Namespace) -> None:
    """Fine-tune and write a run folder."""
    if args.freeze_encoder:
        training_arguments.check_frozen(args)
    args.augment = training_arguments.augmentations(args.augment, args.per_device_train_batch_size, args.freeze_encoder)
    if vars(args).pop("check"):
        training_arguments.teacher_inputs(args)
        model_folder.any_model_input(args.base_model, "--base_model")
        loaded = load(args, labels=["a", "b"])
        log.info("%s can be fine-tuned: %s", args.base_model, start_line.describe_model(loaded.model))
        return

    def build(train_clips: clips.Clips) -> LoadedModel:
        return load(args, train_clips.labels, train_clips)

    inputs = {
        "data_dir": clips.data_input(args.data_dir, args.fold),
        "base_model": model_folder.any_model_input(args.base_model, "--base_model"),
        **training_arguments.teacher_inputs(args),
    }
    with training_arguments.open_run_folder(Path(__file__).stem, args, inputs) as this_run:
        training.train_in_run_folder(this_run, args, inputs, build)


def load(args: argparse.Namespace, labels: list[str], train_clips: clips.Clips | None = None) -> LoadedModel:
    """Return the model to train, after checking that any clips suit it."""
    loaded = encoders.load_base_model(args.base_model, labels, pooling=args.pooling)
    model = loaded.model
    if train_clips is not None:
        encoders.check_base_matches(loaded, train_clips)
        loaded = encoder_window.fit_window(loaded, train_clips.clip_seconds, args.encoder_window, args.base_model)
    if args.keep_layers is not None:
        keep = cli.parse_layer_list(args.keep_layers, model.config.num_hidden_layers)
        encoders.prune_model(model, keep)
    frozen = cli.parse_layer_list(args.freeze_layers, model.config.num_hidden_layers)
    encoders.freeze(model, args.freeze_feature_encoder, frozen)
    if args.freeze_encoder and not model.config.num_hidden_layers:
        raise UsageError("--freeze_encoder needs a block, and this model has none; leave it out")
    return loaded


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
