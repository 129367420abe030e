"""How well a linear map does the work of a run of blocks.

A run of blocks changes the hidden state of a frame from x to x + c. A linear map of x, fitted by ridge regression,
predicts c. The linear residual is its squared error relative to the squared change, on frames of clips of other groups:
sum |c - predicted|² / sum |c|². A block leaves most of a state as it is, so x itself predicts x + c well. The error is
relative to the change alone, which is the error of a model without these blocks. 0: a linear map does all that they do;
1: it is as wrong as no map; above 1: it is worse than no map.

The null level is that of maps that are fitted on the changes of other clips. It is below 1 where all frames change
alike, because a map has an intercept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.core import lazy
from utils.core.errors import InputError

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd
    import torch

    from utils.layers import ridge
    from utils.models import encoder_parts, onednn, predict

if TYPE_CHECKING:
    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel

MOST_CLIPS = 256
MOST_FRAMES = 8_192  # of all clips together, for each layer
PENALTY = 1e-2  # relative to the mean variance of a channel


@dataclass(frozen=True)
class LinearResidual:
    """The linear residual of every run of blocks.

    Attributes
    ----------
    residual, null : ndarray of float64, shape (n_layers + 1, n_layers + 1)
        Entry [i, j], i < j, is that of the run between hidden layers i and j; the others are NaN.
    """

    residual: np.ndarray
    null: np.ndarray


def linear_residual(loaded: LoadedModel, clips: Clips, batch_size: int, seed: int) -> LinearResidual:
    """Measure the linear residual of every run of blocks of a model.

    The clips are divided into two halves without a common group, or without a common recording if there is only one
    group. Each half is predicted by maps that are fitted on the other.

    Parameters
    ----------
    loaded, clips, batch_size
        As for `predict.predict`; of more than `MOST_CLIPS` clips so many are drawn.
    seed : int
        Seed of the draw and of the halves.

    Raises
    ------
    InputError
        If all clips are of one recording, or a hidden state is not finite.
    """
    rng = np.random.default_rng(seed)
    clips = clips.drawn(MOST_CLIPS, rng)
    in_first = first_half(clips.table, rng)
    return residual_of_states(_frames(loaded, clips, batch_size), in_first)


def first_half(table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Return which clips are in the first of two halves of nearly equal size without a common group.

    Raises
    ------
    InputError
        If all clips are of one recording.
    """
    unit = table["group"] if table["group"].nunique() > 1 else table["recording_id"]
    names, of_clip, n_clips = np.unique(unit.astype(str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(
            "linear_residual fits on some recordings and measures on others, but all clips are of one recording; "
            "choose a larger --split, or leave it out of --metrics"
        )
    half, sizes = np.zeros(len(names), int), [0, 0]
    for unit_number in sorted(rng.permutation(len(names)), key=lambda number: -n_clips[number]):
        half[unit_number] = np.argmin(sizes)
        sizes[half[unit_number]] += n_clips[unit_number]
    return half[of_clip] == 0


def _frames(loaded: LoadedModel, clips: Clips, batch_size: int) -> torch.Tensor:
    """Return some frames of every clip at every layer, float32 of shape (n_layers + 1, n_clips, n_frames, size)."""
    parts, batches = encoder_parts.EncoderParts(loaded.model), []
    n_samples, most = len(clips.audio(0)), max(1, MOST_FRAMES // len(clips))
    with torch.inference_mode(), onednn.linear_layers(loaded.model, loaded.device):
        for inputs in predict.input_batches(loaded, clips, batch_size, desc="linear maps"):
            layers = [state.hidden_states for state in parts.hidden_layers(inputs)]
            (valid,) = torch.where(encoder_parts.valid_frames(loaded, n_samples, layers[0].shape[1]))
            chosen = valid[:: -(-len(valid) // most)]
            batches.append(torch.stack([layer[:, chosen].float() for layer in layers]))
    return torch.cat(batches, dim=1)


def residual_of_states(states: torch.Tensor, in_first: np.ndarray) -> LinearResidual:
    """Return the linear residual of every run of blocks.

    Parameters
    ----------
    states : Tensor of float32, shape (n_layers + 1, n_clips, n_frames, size)
    in_first : ndarray of bool, shape (n_clips,)
        The clips of the first half.

    Raises
    ------
    InputError
        If a hidden state is not finite.
    """
    if not states.isfinite().all():
        raise InputError("hidden states are NaN or infinite: the weights of the model are broken")
    n_hidden = len(states)
    wrong, null_wrong, total = np.zeros((3, n_hidden, n_hidden))
    with torch.inference_mode():
        for fitted in (in_first, ~in_first):
            fit, held_out = (states[:, torch.from_numpy(of).to(states.device)] for of in (fitted, ~fitted))
            for first in range(n_hidden - 1):
                own = _changes(fit, first)
                # Far apart in the table, so that few pairs are of one recording.
                other = {-last: change.roll(len(change) // 2, dims=0) for last, change in own.items()}
                sums = ridge.Ridge(states.shape[-1], states.device)
                sums.add(fit[first].flatten(0, 1), {name: c.flatten(0, 1) for name, c in (own | other).items()})
                maps, inputs = sums.solve(PENALTY), held_out[first].flatten(0, 1)
                for last, change in _changes(held_out, first).items():
                    total[first, last] += _squares(change)
                    for error, name in ((wrong, last), (null_wrong, -last)):
                        weights = maps[name].T.float().contiguous()
                        predicted = onednn.linear(inputs, weights[:, :-1].contiguous(), weights[:, -1].contiguous())
                        error[first, last] += _squares(change.flatten(0, 1) - predicted)
    unchanged = np.where(np.tri(n_hidden, dtype=bool), np.nan, 0.0)  # 0: blocks that change nothing
    residual, null = (np.divide(error, total, out=unchanged.copy(), where=total > 0) for error in (wrong, null_wrong))
    return LinearResidual(residual, null)


def _squares(values: torch.Tensor) -> float:
    return float((values.double() ** 2).sum())


def _changes(states: torch.Tensor, first: int) -> dict[int, torch.Tensor]:
    return {last: states[last] - states[first] for last in range(first + 1, len(states))}
