"""The flags and the run folder of a training, shared by stages 02 and 06. Parsing them loads no large library."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from utils.core import cli, runs
from utils.core.errors import InputError, UsageError
from utils.models import model_folder

CHECKPOINTS_NAME = "checkpoints"
TENSORBOARD_NAME = "tensorboard"
FEATURES_NAME = "features"
MODEL_NAME = "model"
ONE_LABEL, SEVERAL_LABELS = "single_label", "multi_label"
# Of --teacher_dir, where the flags are not given.
DISTILLATION_WEIGHT, TEMPERATURE = 0.5, 2.0
AUGMENTATIONS = ("roll", "gain", "noise", "mixup", "specaugment")
OF_TWO_CLIPS = ("noise", "mixup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the hyper-parameters that stages 02 and 06 share: the fields of `training.TrainingSettings`."""
    add = parser.add_argument
    add(
        "--problem_type",
        choices=[ONE_LABEL, SEVERAL_LABELS],
        default=None,
        help="softmax over labels that exclude each other, without the clips of silence, or a sigmoid for each label "
        "(default: multi_label if 01 had --annotations or --secondary_labels, otherwise single_label)",
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
        help="the same for the head (default: that of --learning_rate)",
    )
    add("--weight_decay", type=cli.non_negative_float, default=0.01, help="weight decay of AdamW")
    add("--warmup_ratio", type=cli.fraction, default=0.1, help="share of all steps in which the learning rate rises")
    add(
        "--label_smoothing_factor",
        type=cli.fraction,
        default=0.1,
        help="share of a target distributed over all classes; with multi_label, over presence and absence",
    )
    add(
        "--class_weights",
        choices=["balanced", "none"],
        default="balanced",
        help="balanced: a clip of a rare class weighs more in the loss",
    )
    add(
        "--augment",
        nargs="+",
        choices=[*AUGMENTATIONS, "none"],
        default=None,
        help="random changes to training clips: roll moves the sound in time, gain makes it louder or softer, noise "
        "adds another clip of the batch as noise, mixup mixes two clips of the batch and their labels, specaugment "
        "masks parts of a spectrogram, or frames inside wav2vec2 and similar models, as their config says (default: "
        "all; with one clip a batch, all but noise and mixup; for a head on a frozen encoder, none)",
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


def check_frozen(args: argparse.Namespace) -> None:
    """Check the flags of a training with ``--freeze_encoder``, for which the encoder hears each clip once.

    Raises
    ------
    UsageError
        If a flag needs the sound of the clips in each epoch, or the encoder's gradients.
    """
    reasons = {
        "freeze_feature_encoder": "the whole encoder is frozen",
        "freeze_layers": "the whole encoder is frozen",
        "gradient_checkpointing": "the encoder has no gradients",
        "teacher_views": "the teacher hears each clip once, too",
        "hidden_weight": "the hidden states of a frozen encoder cannot come closer to the teacher's",
        "unlabelled_dir": "only the clips of train and val are kept as features",
    }
    for name, reason in reasons.items():
        if getattr(args, name) not in (None, False, "none"):
            raise UsageError(f"--freeze_encoder cannot be combined with --{name}: {reason}; leave one out")
    if augmentations(args.augment, args.per_device_train_batch_size, is_frozen=True):
        raise UsageError(
            f"--freeze_encoder cannot be combined with --augment {' '.join(args.augment)}: the encoder hears each clip "
            "once, as it is; leave --augment out, or freeze less, by --freeze_feature_encoder and --freeze_layers"
        )


def add_teacher_arguments(parser: argparse.ArgumentParser, has_blocks: bool) -> None:
    """Add the flags of knowledge distillation; None stands for their defaults. A student without blocks has fewer."""
    add = parser.add_argument
    add(
        "--teacher_dir",
        type=Path,
        nargs="+",
        default=None,
        metavar="DIR",
        help="learn from a trained model too (knowledge distillation): run folder of 02 or 06, or model folder, with "
        "the labels of the data; of several, from the mean of their probabilities (default: none)",
    )
    add(
        "--distillation_weight",
        type=cli.share,
        default=None,
        help="with --teacher_dir: share of the loss that compares with the teacher; the rest compares with the labels "
        f"(default: {DISTILLATION_WEIGHT:g})",
    )
    add(
        "--temperature",
        type=cli.positive_float,
        default=None,
        help="with --teacher_dir: divisor of the logits of teacher and student; a higher one shows more of the "
        f"teacher's doubts (default: {TEMPERATURE:g})",
    )
    add(
        "--teacher_views",
        type=cli.positive_int,
        default=None,
        metavar="V",
        help="with --teacher_dir: repeat the batches and their augmentation after V epochs, and keep the teacher's "
        "answers; later epochs need no teacher (default: new batches in each epoch)",
    )

    add(
        "--unlabelled_dir",
        type=Path,
        default=None,
        help="with --teacher_dir: clips that 01 cut with --unlabelled, which the student hears too and learns from the "
        "teacher alone; recordings of val or test among them are left out (default: none)",
    )
    if has_blocks:
        add(
            "--hidden_weight",
            type=cli.positive_float,
            default=None,
            metavar="B",
            help="with --teacher_dir: also add B times the relative squared error between the hidden states of student "
            "and teacher, block by block, through linear projections that are fitted and thrown away (default: 0)",
        )


def teacher_inputs(args: argparse.Namespace) -> dict[str, runs.Input]:
    """Check the flags of `add_teacher_arguments`, and describe each teacher as an input of the stage.

    Raises
    ------
    UsageError
        If a flag needs ``--teacher_dir``, and it is not given; or a teacher is named twice.
    InputError
        If a teacher's folder is missing or has a fault.
    """
    if not args.teacher_dir:
        for name in ("distillation_weight", "temperature", "teacher_views", "hidden_weight", "unlabelled_dir"):
            if getattr(args, name, None) is not None:
                raise UsageError(f"--{name} sets how the student learns from a teacher: give its folder, --teacher_dir")
        return {}
    if getattr(args, "hidden_weight", None) is not None:
        if len(args.teacher_dir) > 1:
            raise UsageError("--hidden_weight compares the hidden states of one teacher: give one --teacher_dir")
        if args.teacher_views is not None:
            raise UsageError(
                "--hidden_weight needs the teacher in each epoch, and --teacher_views keeps only its probabilities: "
                "leave one out"
            )
    inputs = {}
    for number, folder in enumerate(args.teacher_dir, start=1):
        if not (folder.is_dir() or folder.is_file()):
            raise InputError(
                f"--teacher_dir {folder}: no such folder; expected the output of 02_finetuning.py or 06_cnn.py"
            )
        name = "teacher_dir" if number == 1 else f"teacher_dir_{number}"
        inputs[name] = model_folder.any_model_input(folder, "--teacher_dir")
    if len({found.sha256 for found in inputs.values()}) < len(inputs):
        raise UsageError("--teacher_dir names a model twice: it would count twice in the mean; name each teacher once")
    if args.unlabelled_dir is not None:
        inputs["unlabelled_dir"] = runs.folder_input(args.unlabelled_dir, stages=["01_data_processing"])
    return inputs


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
        scratch=(CHECKPOINTS_NAME, TENSORBOARD_NAME, FEATURES_NAME),
        reusable=(FEATURES_NAME,),
        defer_signals=True,
    )


def augmentations(names: Sequence[str] | None, batch_size: int, is_frozen: bool = False) -> tuple[str, ...]:
    """Return the augmentations of ``--augment``; by default all that the batch allows, and none for a frozen encoder.

    Raises
    ------
    UsageError
        If ``none`` is combined with others, or an augmentation needs a second clip in the batch.
    """
    if names is None:
        return () if is_frozen else tuple(name for name in AUGMENTATIONS if batch_size > 1 or name not in OF_TWO_CLIPS)
    if "none" in names and len(names) > 1:
        raise UsageError(f"--augment none cannot be combined with others, got {' '.join(names)}")
    if batch_size == 1 and (alone := [name for name in OF_TWO_CLIPS if name in names]):
        raise UsageError(
            f"--augment {' '.join(alone)} takes a second clip from the batch, and --per_device_train_batch_size is 1: "
            "give 2 or more, or leave it out"
        )
    return tuple(name for name in AUGMENTATIONS if name in names)
