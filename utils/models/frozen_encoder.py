"""Training of a head alone: the frozen encoder hears each clip once, and its features are kept on disk.

A head costs next to nothing, and an encoder that does not change gives the same features in each epoch. So the features
of all clips are computed before the training. They are what the head reads: with the mean over frames one vector a
clip, with a weighted sum of layers one vector for each layer, with attention all frames. Only clips as they are can be
kept: augmentation would change them in each epoch. Dropout in the encoder is off.

The files are reused if model, data and settings are the same, also by a run that ``--overwrite`` starts with other
learning rates or another seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from utils.core import runs
from utils.core.errors import InputError, Interrupted
from utils.data import clip_arrays
from utils.data.clips import Clips
from utils.models import encoder_parts, encoders, onednn, predict
from utils.models.architectures import architecture_of, pooling_of, sums_layers
from utils.models.loaded_model import LoadedModel
from utils.models.training_arguments import FEATURES_NAME

log = logging.getLogger(__name__)

FEATURES = "features"  # the input of a head, in a batch


class Head(nn.Module):
    """The parts that fine-tuning adds to a base model, from features to logits; they are those of the model itself.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model; training the head trains it in place.
    """

    main_input_name = FEATURES

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self._names = architecture_of(model.config).head
        for name in self._names:
            self.add_module(name, model.get_submodule(name))
        self.register_parameter("layer_weights", model.layer_weights if sums_layers(model.config) else None)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``logits``, shape (batch, n_classes), of what `encoder_parts.EncoderParts.features` returns."""
        if self.layer_weights is not None:
            features = encoder_parts.weighted_sum(features, self.layer_weights)
        return {"logits": encoder_parts.through_head(self, self._names, features)}


class FeatureClips:
    """Clips with their features in place of their audio: a map-style data set.

    Parameters
    ----------
    clips : Clips
    features : ndarray of float32, shape (n_read, n_clips, …)
        What the head reads of each clip: several vectors if it sums layers, otherwise one array, and ``n_read`` is 1.
    """

    def __init__(self, clips: Clips, features: np.ndarray):
        self.clips, self._features = clips, features

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict:
        """Return ``features`` of a clip, and what `Clips.without_audio` returns."""
        read = self._features[:, index]
        return {**self.clips.without_audio(index), FEATURES: read if len(read) > 1 else read[0]}


class FrozenEncoder(NamedTuple):
    """What a training reads in place of a model and its clips; see `compute`."""

    head: Head
    train: FeatureClips
    val: FeatureClips


def compute(
    loaded: LoadedModel,
    clips: Mapping[str, Clips],
    batch_size: int,
    run: runs.Run,
    key: dict,
    bf16: bool,
) -> FrozenEncoder:
    """Return the head of a model, and clips with their features, from the encoder or from an earlier call.

    A call can be killed at any moment, and torchrun's processes share the clips; see `clip_arrays.compute`. An earlier
    result is used if key, clips, and encoder are the same.

    Parameters
    ----------
    loaded : LoadedModel
        In evaluation mode.
    clips : mapping of str to Clips
        Those of ``train`` and ``val``.
    batch_size : int
        Clips per batch.
    run : runs.Run
        Open run folder, with ``defer_signals``; the files are in its folder ``features``.
    key : dict
        Digests of model and data; ready for JSON. The weights of the encoder are compared, too.
    bf16 : bool
        Compute matrix products in bfloat16, as the training does.

    Raises
    ------
    Interrupted
        If a signal came; what is done is saved.
    InputError
        If a feature is not finite, or the model does not give the same logits by its parts as in one piece.
    OSError
        If the disk has no room for the features.
    """
    encoder_parts.check_parts(loaded, clips["val"])
    folder = run.output_dir / FEATURES_NAME
    folder.mkdir(exist_ok=True)
    key = {
        **{**key, "weights": sha256_of_encoder(loaded.model), "extractor": loaded.extractor.to_json_string()},
        **{"pooling": pooling_of(loaded.config), "bf16": bf16, "batch_size": batch_size, "device": loaded.device},
    }
    found = {}
    for split, of_split in clips.items():
        shape = _features(loaded, loaded.prepare([of_split.audio(0)], of_split.sample_rate_hz), bf16)[:, 0].shape
        log.info("features of %s: %.3g MB in %s", split, 4e-6 * math.prod(shape) * len(of_split), folder)
        batches = partial(_batches, loaded, batch_size, bf16, f"features of {split}", run)
        (features,) = clip_arrays.compute(of_split, folder, split, key, {"": shape}, batch_size, batches)
        found[split] = FeatureClips(of_split, features)
    return FrozenEncoder(Head(loaded.model), **found)


def _batches(
    loaded: LoadedModel, batch_size: int, bf16: bool, desc: str, run: runs.Run, clips: Clips, first: int
) -> Iterator[tuple[np.ndarray]]:
    """Yield the features of clips, batch by batch."""
    for inputs in predict.input_batches(loaded, clips, batch_size, desc=desc, first=first):
        features = _features(loaded, inputs, bf16)
        bad = np.argwhere(~np.isfinite(features))
        if len(bad):
            raise InputError(
                f"the encoder gives numbers that are NaN or infinite for the clip "
                f"{clips.table['clip_id'].iloc[first + bad[0][1]]}; expected finite numbers: its weights are broken"
            )
        first += features.shape[1]
        yield (features,)
        if run.stop_signal is not None:
            raise Interrupted(
                f"stopped by {run.stop_signal}, {desc} are saved for {first} of {len(clips)} clips: run the same "
                "command again to continue"
            )


@torch.inference_mode()
def _features(loaded: LoadedModel, inputs: dict[str, torch.Tensor], bf16: bool) -> np.ndarray:
    """Return the features of a batch, float32 of shape (n_read, batch, …)."""
    parts = encoder_parts.EncoderParts(loaded.model)
    with (
        contextlib.nullcontext() if bf16 else onednn.linear_layers(loaded.model, loaded.device),
        torch.autocast(loaded.device, torch.bfloat16, enabled=bf16),
    ):
        features = parts.features(parts.hidden_layers(inputs)).float().cpu().numpy()
    return features.swapaxes(0, 1) if sums_layers(loaded.config) else features[None]


def sha256_of_encoder(model: PreTrainedModel) -> str:
    """Return the digest of all weights of a model but its head: their names, shapes and numbers."""
    digest, head = hashlib.sha256(), encoders.head_prefixes(model)
    for name, value in model.state_dict().items():
        if not name.startswith(head):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
