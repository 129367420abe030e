"""The first log line of every stage: its device, its inputs, and the level of guessing."""

import logging
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedModel

from utils.core import runs
from utils.core.text import counted
from utils.data.clips import Clips
from utils.models import architectures, encoders
from utils.scores import multi_label

log = logging.getLogger(__name__)


def log_start(asked: str, device: str, models: Mapping[str, PreTrainedModel], clips: Mapping[str, Clips]) -> None:
    """Log device, models and clips, so that the user notices a wrong one before hours of computing.

    Parameters
    ----------
    asked : str
        Value of ``--device``.
    device : str
        ``cpu`` or ``cuda``: the device of the stage.
    models : mapping of str to PreTrainedModel
        By the user's name.
    clips : mapping of str to Clips
        By split; scores are measured on the last one.
    """
    if device == "cpu":
        runs.log_cpu_only(asked)
    parts = [f"device {device} ({runs.device_name(device)})"]
    parts += [f"model {name}: {describe_model(model)}" for name, model in models.items()]
    if clips:
        parts += [describe_clips(clips)]
    log.info("%s", "; ".join(parts))
    split, scored = list(clips.items())[-1] if clips else ("train", None)
    if split in ("val", "test") and (heard := scored.heard_in_train):
        log.info("%s: %s", split, heard)


def describe_model(model: PreTrainedModel) -> str:
    """Return architecture, number of blocks and number of parameters: ``wav2vec2, 12 blocks, 94.6 M parameters``.

    A model with a part narrowed has its width, too: ``ffn_size 1536 of 3072``.
    """
    words = [model.config.model_type]
    if architectures.has_blocks(model.config):
        n_blocks = model.config.num_hidden_layers
        words.append(counted(n_blocks, "block"))
        before = getattr(model.config, "width_from", {})
        cut = {name: width for name, width in architectures.widths_of(model.config).items() if name in before}
        words += [f"{name} {width} of {before[name]}" for name, width in cut.items() if width != before[name]]
    words.append(f"{encoders.count_parameters(model) / 1e6:.3g} M parameters")
    return ", ".join(words)


def describe_clips(clips: Mapping[str, Clips]) -> str:
    """Return numbers of clips and classes, the unit of the split, and the accuracies of two guesses.

    One guess names a random class, the other always the largest. Everything except the numbers of clips refers to the
    last split. Chance counts all classes of the model, with or without clips in this split.
    """
    split, scored = list(clips.items())[-1]
    level = guessing_several if scored.is_annotated else guessing
    truth = (scored.targets, scored.is_known) if scored.is_annotated else (scored.table["label_id"].to_numpy(),)
    counts = ", ".join(f"{len(of_split):,} clips of {name}" for name, of_split in clips.items())
    return f"{counts}, split by {scored.kept_together}; {level(*truth, len(scored.labels), split)}"


def guessing(label_ids: np.ndarray, n_classes: int, split: str) -> str:
    """Return number of classes, chance and majority level: ``50 classes, chance 0.020, majority 0.087 (test)``."""
    n_clips = np.bincount(label_ids, minlength=n_classes)
    without = f" ({(n_clips == 0).sum()} without a clip of {split})" * bool((n_clips == 0).any())
    return f"{n_classes} classes{without}, chance {1 / n_classes:.3f}, majority {majority(label_ids):.3f} ({split})"


def majority(label_ids: np.ndarray) -> float:
    """Return the accuracy of always naming the most frequent label."""
    return np.bincount(label_ids).max() / len(label_ids)


def guessing_several(targets: np.ndarray, is_known: np.ndarray, n_classes: int, split: str) -> str:
    """Return number of classes, share of silence and chance level of clips with several labels, or none.

    Such as ``50 classes, 0.310 of the clips without a label, chance macro average precision 0.021 (test)``.
    """
    without = f" ({(~targets.any(axis=0)).sum()} without a clip of {split})" * bool((~targets.any(axis=0)).any())
    chance = multi_label.chance_level(targets > 0, is_known)
    silent = 1 - targets.any(axis=1).mean()
    return (
        f"{n_classes} classes{without}, {silent:.3f} of the clips without a label, chance macro average precision "
        f"{chance:.3f} ({split})"
    )
