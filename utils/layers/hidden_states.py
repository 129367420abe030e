"""Hidden states of all layers: one vector per clip and layer, and how much frames change from layer to layer.

Layer 0 is the input of block 0, layer l the output of block l - 1, before any final norm. One forward pass
per batch gives both. States of single frames are used at once and never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, runs
from utils.core.errors import InputError
from utils.core.files import write_text
from utils.data import clip_arrays

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd
    import torch

    from utils.models import encoder_parts, predict

if TYPE_CHECKING:
    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel

CLIP_COLUMNS = ["clip_id", "recording_id", "group", "label", "label_id", "split"]


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of clips in an encoder.

    Attributes
    ----------
    pooled : ndarray of float32, shape (n_layers + 1, n_clips, hidden_size)
        Means over the valid frames of a clip; memory-mapped, each layer is contiguous.
    cosine : ndarray of float32, shape (n_clips, n_layers + 1, n_layers + 1)
        Mean over the frames of a clip of the cosine between a frame's states at two layers.
    angle : ndarray of float32, shape (n_clips, n_layers + 1, n_layers + 1)
        The same for the angle, as a share of pi.
    table : DataFrame
        ``clip_id, recording_id, group, label, label_id, split`` of the clips.
    """

    pooled: np.ndarray
    cosine: np.ndarray
    angle: np.ndarray
    table: pd.DataFrame


def file_names(name: str) -> list[str]:
    """Return the names of the files that `extract` writes for `name`."""
    return [*clip_arrays.file_names(name, ("", "_frames")), f"{name}_clips.csv"]


def extract(loaded: LoadedModel, clips: Clips, batch_size: int, folder: Path, name: str, key: dict) -> HiddenStates:
    """Return the hidden states of all clips, from the encoder or from an earlier call with the same key.

    A call can be killed at any moment, and torchrun's processes share the clips; see `clip_arrays.compute`.

    Parameters
    ----------
    loaded, clips, batch_size
        As for `predict.predict`.
    folder : Path
        Folder of ``<name>.npy`` (see `HiddenStates.pooled`), ``<name>_frames.npy`` (cosine and angle),
        ``<name>_clips.csv`` and ``<name>.json`` (the key and the number of clips that are done).
    name : str
    key : dict
        Digests of model and data, on which the states depend besides the clips; ready for JSON.

    Raises
    ------
    InputError
        If a hidden state is not finite, or the model has no blocks.
    OSError
        If the disk has no room for the states; their size is reserved before the first pass.
    """
    model, n_hidden = loaded.model, encoder_parts.EncoderParts(loaded.model).n_layers + 1
    shapes = {"": (n_hidden, model.config.hidden_size), "_frames": (2, n_hidden, n_hidden)}
    table = clips.table[CLIP_COLUMNS]
    if runs.is_first_process():
        write_text(folder / f"{name}_clips.csv", table.to_csv(index=False))
    pooled, frames = clip_arrays.compute(
        *(clips, folder, name, {**key, "batch_size": batch_size, "device": loaded.device}, shapes, batch_size),
        partial(_run, loaded, batch_size),
    )
    return HiddenStates(pooled, frames[0], frames[1], table)


def _run(loaded: LoadedModel, batch_size: int, clips: Clips, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pooled states, and the cosine and angle of the frames, batch by batch."""
    parts, n_samples = encoder_parts.EncoderParts(loaded.model), len(clips.audio(0))
    with torch.inference_mode():
        for inputs in predict.input_batches(loaded, clips, batch_size, desc="hidden states", first=first):
            layers = [state.hidden_states for state in parts.hidden_layers(inputs)]
            valid = encoder_parts.valid_frames(loaded, n_samples, layers[0].shape[1])
            if not valid.all():
                layers = [layer[:, valid] for layer in layers]
            pooled = torch.stack([layer.mean(dim=1) for layer in layers]).float().cpu().numpy()
            rows = slice(first, first + pooled.shape[1])
            _check_finite(pooled, clips.table["clip_id"].iloc[rows])
            first = rows.stop
            yield pooled, frame_similarity(layers).cpu().numpy()


def frame_similarity(layers: list[torch.Tensor]) -> torch.Tensor:
    """Compare the states of every frame at all pairs of layers, and average over the frames of a clip.

    Parameters
    ----------
    layers : list of Tensor, each of shape (batch, frames, hidden_size)
        Hidden states by layer.

    Returns
    -------
    Tensor of float32, shape (2, batch, n_layers, n_layers)
        Mean cosine, and mean angle as a share of pi (Gromov et al. 2024, eq. 6, but over all frames instead
        of the last token).
    """
    means = []
    for clip in zip(*layers, strict=True):  # one clip at a time: a stack of a whole batch would double the memory
        frames = torch.nn.functional.normalize(torch.stack(clip, dim=1).float(), dim=-1)  # (frames, layers, size)
        cosine = (frames @ frames.mT).clamp(-1, 1)
        means.append(torch.stack([cosine.mean(dim=0), cosine.arccos().mean(dim=0) / torch.pi]))
    return torch.stack(means, dim=1)


def _check_finite(pooled: np.ndarray, clip_ids: pd.Series) -> None:
    bad = np.argwhere(~np.isfinite(pooled).all(axis=2))
    if len(bad):
        layer, clip = bad[0]
        what = "the input of block 0" if layer == 0 else f"the output of block {layer - 1}"
        raise InputError(
            f"the hidden states of layer {layer} ({what}) are NaN or infinite for the clip {clip_ids.iloc[clip]}; "
            "expected finite numbers: the weights of the model are broken"
        )
