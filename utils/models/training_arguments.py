"""The flags and the run folder of a training, shared by stages 02 and 06. Parsing them loads no large library."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager

from utils.core import cli, runs
from utils.core.errors import UsageError

CHECKPOINTS_NAME = "checkpoints"
TENSORBOARD_NAME = "tensorboard"
MODEL_NAME = "model"
ONE_LABEL, SEVERAL_LABELS = "single_label", "multi_label"
AUGMENTATIONS = ("roll", "gain", "noise", "mixup", "specaugment")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the hyper-parameters that stages 02 and 06 share: the fields of `training.TrainingSettings`."""
    add = parser.add_argument
    add(
        "--problem_type",
        choices=[ONE_LABEL, SEVERAL_LABELS],
        default=None,
        help="softmax over labels that exclude each other, without the clips of silence, or a sigmoid for each label "
        "(default: multi_label if the labels of the data have times, otherwise single_label)",
    )
    add("--num_train_epochs", type=cli.positive_int, default=20, help="maximum number of epochs")
    add("--per_device_train_batch_size", type=cli.positive_int, default=8, help="clips per batch and device")
    add("--per_device_eval_batch_size", type=cli.positive_int, default=16, help="the same for evaluation")
    add("--gradient_accumulation_steps", type=cli.positive_int, default=1, help="batches per optimizer step")
    add("--learning_rate", type=cli.positive_float, default=1e-4, help="peak learning rate of AdamW, falling linearly")
    add(
        "--head_learning_rate",
        type=cli.positive_float,
        default=None,
        help="the same for the head, whose weights are new (default: that of --learning_rate)",
    )
    add("--weight_decay", type=cli.non_negative_float, default=0.01, help="weight decay of AdamW")
    add("--warmup_ratio", type=cli.fraction, default=0.1, help="share of all steps in which the learning rate rises")
    add(
        "--label_smoothing_factor",
        type=cli.fraction,
        default=0.1,
        help="share of a target distributed over all classes; with multi_label, over presence and absence",
    )
    add("--class_weights", choices=["balanced", "none"], default="balanced", help="class weights in the loss")
    add(
        "--augment",
        nargs="+",
        choices=[*AUGMENTATIONS, "none"],
        default=list(AUGMENTATIONS),
        help="random changes to training clips; specaugment needs a model with a spectrogram as input",
    )
    add(
        "--early_stopping_patience",
        type=cli.positive_int,
        default=5,
        help="stop after this many epochs without a higher val macro F1 (multi_label: macro average precision)",
    )
    add(
        "--mixed_precision",
        choices=["auto", "bf16", "no"],
        default="auto",
        help="bf16 computes matrix products in bfloat16; auto does so on GPUs and AMD CPUs with bfloat16 support",
    )
    add("--gradient_checkpointing", action="store_true", help="use less memory, but a third more computing")
    add(
        "--dataloader_num_workers",
        type=cli.non_negative_int,
        default=None,
        help="processes that read clips (default: 0 on a CPU, up to 8 on a GPU)",
    )
    add(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto continues from the last checkpoint of a stopped run",
    )


def open_run_folder(
    stage: str, args: argparse.Namespace, inputs: dict[str, runs.Input]
) -> AbstractContextManager[runs.Run]:
    """Open the run folder of a training; see `runs.open_run`."""
    return runs.open_run(
        stage,
        args,
        inputs,
        outputs=(f"{MODEL_NAME}/*", "metrics.csv", "training_curves.*"),
        result_neutral={"dataloader_num_workers", "resume"},
        scratch=(CHECKPOINTS_NAME, TENSORBOARD_NAME),
        defer_signals=True,
    )


def augmentations(names: Sequence[str]) -> tuple[str, ...]:
    """Return the augmentations of ``--augment``.

    Raises
    ------
    UsageError
        If ``none`` is combined with others.
    """
    if "none" in names and len(names) > 1:
        raise UsageError(f"--augment none cannot be combined with others, got {' '.join(names)}")
    return tuple(name for name in AUGMENTATIONS if name in names)
