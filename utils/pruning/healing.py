"""Healing: a brief fine-tuning of a pruned model, of its head alone or of more, and its effect on the scores."""

import argparse
import dataclasses
import logging
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from utils.core import cli, runs
from utils.core.files import sha256_of_file
from utils.data.clips import Clips
from utils.models import architectures, distillation, encoders, frozen_encoder, training, training_arguments
from utils.models.loaded_model import LoadedModel
from utils.pruning.layer_selection import Keep
from utils.pruning.repair import Repairer, repaired_copy
from utils.pruning.subset_scores import SubsetScores
from utils.scores import verdicts

log = logging.getLogger(__name__)

# A head on fixed features can use ten times the learning rate of an encoder (the default of 02_finetuning.py).
HEAD_RATE_FACTOR = 10.0


def settings_for(n_epochs: int, seed: int) -> training.TrainingSettings:
    """Return the default hyper-parameters of 02_finetuning.py, with the given number of epochs and seed."""
    parser = argparse.ArgumentParser()
    training_arguments.add_arguments(parser)
    flags = vars(parser.parse_args([]))
    augment = training_arguments.augmentations(flags["augment"], flags["per_device_train_batch_size"])
    flags |= {"num_train_epochs": n_epochs, "seed": seed, "augment": augment}
    return training.TrainingSettings(
        **{field.name: flags[field.name] for field in dataclasses.fields(training.TrainingSettings)}
    )


def heal_subset(
    loaded: LoadedModel,
    keep: Keep,
    folder: Path,
    part: str,
    train_clips: Clips,
    val_clips: Clips,
    settings: training.TrainingSettings,
    work_dir: Path,
    batch_size: int,
    teaches: bool = False,
    repairer: Repairer | None = None,
) -> None:
    """Prune a copy of a model, fine-tune it and save it, unless an earlier call has done so.

    Parameters
    ----------
    loaded : LoadedModel
        In evaluation mode; it is not changed.
    keep : tuple of int
        Blocks to keep.
    folder : Path
        Model folder to write; its parent folder is replaced.
    part, train_clips, val_clips, settings, work_dir, batch_size
        As for `heal`.
    teaches : bool
        Whether the copy learns from the whole model too.
    repairer : Repairer, optional
        Repairs the pruned copy before it is trained.
    """
    if folder.is_dir():
        log.info("%s exists already", folder)
        return
    shutil.rmtree(folder.parent, ignore_errors=True)  # a killed run may have left a part of it
    folder.parent.mkdir()
    pruned = repaired_copy(loaded, keep, repairer)
    teachers = distillation.Teachers([loaded]) if teaches else None
    heal(pruned, part, train_clips, val_clips, settings, work_dir, batch_size, teachers)
    encoders.save_model(pruned, folder)
    encoders.log_without_classifier(pruned.config)


def compare(folder: Path, keep: Keep, before_on: dict[str, SubsetScores], device: str) -> dict[str, float]:
    """Score a healed model and the same subset before healing, on each split.

    Parameters
    ----------
    folder : Path
        The model folder of `heal_subset`.
    keep : tuple of int
        Its blocks, with the numbers of the swept model.
    before_on : dict of str to SubsetScores
        Scores before healing by a name for the split; the subset must have been run.
    device : str
        ``cpu`` or ``cuda``.

    Returns
    -------
    dict of str to float
        For each split ``<name>_accuracy_before, …_after, <name>_macro_f1_before, …_after``, and
        ``<name>_difference`` in accuracy with its paired 95 % interval, ``…_low`` and ``…_high``.
    """
    healed = encoders.load_model(folder, device)
    digest = sha256_of_file(folder / "model.safetensors")
    whole = tuple(range(len(keep)))
    row: dict[str, float] = {}
    for name, before in before_on.items():
        after = before.of_other_model(healed, digest)
        after.run([whole])
        row[f"{name}_accuracy_before"], row[f"{name}_macro_f1_before"] = before.score(keep)
        row[f"{name}_accuracy_after"], row[f"{name}_macro_f1_after"] = after.score(whole)
        difference, low, high = after.difference(whole, before.predicted(keep))
        row |= {f"{name}_difference": difference, f"{name}_difference_low": low, f"{name}_difference_high": high}
        log.info(
            "healed layers %s: %s accuracy %.3f -> %.3f, difference %+.3f  (95 %% interval %+.3f to %+.3f: %s)",
            *(cli.format_layer_list(keep), before.split, before.score(keep)[0], after.score(whole)[0]),
            *(difference, low, high, verdicts.on_others(before.kept_together)),
        )
    return row


def heal(
    loaded: LoadedModel,
    part: str,
    train_clips: Clips,
    val_clips: Clips,
    settings: training.TrainingSettings,
    work_dir: Path,
    batch_size: int,
    teachers: distillation.Teachers | None = None,
) -> None:
    """Fine-tune a pruned model in place; keep the epoch with the best macro F1 on `val_clips`.

    Parameters
    ----------
    loaded : LoadedModel
        In evaluation mode, before and after.
    part : {"head", "last", "all"}
        The part to train. ``head``: what fine-tuning adds to a base model, on features that are computed once, with no
        augmentation (see `frozen_encoder`). ``last``: these, the last block and a norm between the two. ``all``:
        everything.
    train_clips, val_clips : Clips
        Clips to train on, and clips to choose the epoch.
    settings : TrainingSettings
        Hyper-parameters.
    work_dir : Path
        Folder for checkpoints; after a stop the next call continues from them.
    batch_size : int
        Clips per batch when the features are computed.
    teachers : Teachers, optional
        Models from which it learns too.

    Raises
    ------
    InputError
        If the loss becomes NaN or infinite.
    """
    model, frozen = loaded.model, None
    work_dir.mkdir(exist_ok=True)
    work = runs.Run(output_dir=work_dir, attempts=1)
    if part == "head":
        rate = settings.learning_rate * HEAD_RATE_FACTOR
        settings = dataclasses.replace(settings, augment=(), head_learning_rate=rate)
        clips, bf16 = (
            {"train": train_clips, "val": val_clips},
            training.uses_bf16(settings.mixed_precision, loaded.device),
        )
        frozen = frozen_encoder.compute(loaded, clips, batch_size, work, {}, bf16)
    else:
        encoders.configure_for_training(model, train_clips, settings.augment)
        if part == "last":
            freeze_all_but_last(model)
    training.train(loaded, train_clips, val_clips, settings, work, resume=True, teachers=teachers, frozen=frozen)
    model.requires_grad_(True).to(loaded.device).eval()


def freeze_all_but_last(model: PreTrainedModel) -> None:
    """Make only the head, the last block and what is between the two trainable."""
    architecture, blocks = architectures.architecture_of(model.config), architectures.blocks_of(model)
    encoders.freeze(model, feature_encoder=True, layers=list(range(len(blocks) - 1)))
    model.requires_grad_(False)
    learning = [*blocks[-1:], architectures.final_norm_of(model)]
    if architecture.upsampling is not None and not architectures.sums_layers(model.config):
        learning.append(model.get_submodule(architecture.upsampling))
    for part in (*encoders.head_parameters(model), *(module for module in learning if module is not None)):
        part.requires_grad_(True)
