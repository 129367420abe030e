"""Narrower models: which units of the feed-forward networks, channels of the convolutions, and heads are cut.

Channels within a model are written by some layers and read by one. Without a channel, the writers have one output
fewer and the reader one input fewer; both remain plain layers. Every block keeps the same number of units, because a
config holds one number for all blocks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy
from utils.core.errors import InputError, UsageError
from utils.core.files import atomic_path, sha256_of_lines
from utils.models import architectures

with lazy.imported_on_first_use():
    import numpy as np
    import torch

    from utils.models import augmentation, encoder_parts, encoders, predict, training

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

ACTIVATION, TAYLOR = IMPORTANCES = ("activation", "taylor")
BATCH_SIZE = 4
MOST_CLIPS = 512
SAVE_EVERY_S = 10.0


# ----------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Channels:
    """Channels within a model that can be cut. Modules are paths from the whole model.

    Attributes
    ----------
    writers : tuple of str
        Linear layers or convolutions with these channels as output.
    norms : tuple of str
        Norms of these channels between the writers and the reader.
    reader : str
        The linear layer or convolution with these channels as input.
    axis : int
        The axis of the channels in the input of the reader.
    size : int
        Number of neighbouring channels that are cut together: 1, or the size of a head.
    """

    writers: tuple[str, ...]
    norms: tuple[str, ...]
    reader: str
    axis: int = -1
    size: int = 1


def channels_of(model: PreTrainedModel, width: str) -> list[Channels]:
    """Return the channels of a width of `architectures.widths_of`: one entry for each place where they are cut.

    It is a block, or a convolution; two entries follow each other if a block has two feed-forward networks.
    """
    architecture = architectures.architecture_of(model.config)
    if width == "conv_channels":
        return _of_convolutions(model, architecture)
    blocks = [f"{architecture.blocks}.{layer}" for layer in range(len(architectures.blocks_of(model)))]
    if width == "ffn_size":
        networks = [each for each in (architecture.feed_forward, architecture.other_feed_forward) if each is not None]
        return [Channels((f"{block}.{first}",), (), f"{block}.{last}") for block in blocks for first, last in networks]
    *writers, reader = architecture.attention
    size = model.get_submodule(f"{blocks[0]}.{reader}").in_features // model.config.num_attention_heads if blocks else 1
    return [
        Channels(tuple(f"{block}.{name}" for name in writers), (), f"{block}.{reader}", size=size) for block in blocks
    ]


def _of_convolutions(model: PreTrainedModel, architecture: architectures.Architecture) -> list[Channels]:
    path, projection = architecture.convolutions, architecture.feature_projection
    layers = [f"{path}.{number}" for number in range(len(model.get_submodule(path)))]
    found = []
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        norms = [f"{layer}.layer_norm"] if hasattr(model.get_submodule(layer), "layer_norm") else []
        if after is None and hasattr(model.get_submodule(projection), "layer_norm"):  # HuBERT can have none
            norms.append(f"{projection}.layer_norm")
        reader, axis = (f"{projection}.projection", -1) if after is None else (f"{after}.conv", 1)
        found.append(Channels((f"{layer}.conv",), tuple(norms), reader, axis))
    return found


# ---------------------------------------------------------------------------------------------- sizes


def changes_of(config: PreTrainedConfig, asked: dict[str, int | float | None]) -> dict[str, dict[str, object]]:
    """Return how a narrower model changes the values of a config.

    Parameters
    ----------
    config : PreTrainedConfig
    asked : dict of str to int, float or None
        For each width of `architectures.widths_of` a number, or a share, of which the nearest number from 1 is taken;
        None leaves it.

    Returns
    -------
    dict of str to dict
        For each width that is asked for, the keys of a config and their new values.

    Raises
    ------
    UsageError
        If the architecture has no such width, or the model has fewer units.
    """
    architecture, widths = architectures.architecture_of(config), architectures.widths_of(config)
    changes: dict[str, dict[str, object]] = {}
    for width, number in asked.items():
        if number is None:
            continue
        if width not in widths:
            raise UsageError(f"--{width}: {_WHY_NOT[width].format(architecture.name)}; leave it out")
        if width == "conv_channels":
            changes[width] = {"conv_dim": [_part(n, number) for n in config.conv_dim]}
            continue
        if number > widths[width]:
            raise UsageError(f"--{width} {number}: this model has {widths[width]} in each block; give at most as many")
        changes[width] = {_KEYS.get(width, architecture.feed_forward_size): _part(widths[width], number)}
        if width == "heads":
            changes[width]["head_dim"] = getattr(config, "head_dim", config.hidden_size // widths[width])
    return changes


_KEYS = {"heads": "num_attention_heads"}
_WHY_NOT = {
    "conv_channels": "{} has no convolutions that can be cut",
    "heads": "the attention of {} has as many heads as fit the hidden size, so no config holds fewer",
}


def _part(n: int, number: int | float) -> int:
    return number if isinstance(number, int) else max(1, round(number * n))


# ----------------------------------------------------------------------------------------- importance


def clips_to_measure(clips: Clips) -> Clips:
    """Return at most `MOST_CLIPS` of the clips, at equal distances: more would hardly change the order of the units."""
    if len(clips) <= MOST_CLIPS:
        return clips
    log.info("importance: measured on %d of %d clips, at equal distances", MOST_CLIPS, len(clips))
    chosen = np.linspace(0, len(clips) - 1, MOST_CLIPS).round().astype(int)
    return replace(clips, table=clips.table.iloc[chosen].reset_index(drop=True))


Importance = dict[str, list["np.ndarray"]]


def measure(
    loaded: LoadedModel,
    clips: Clips,
    method: str,
    widths: Sequence[str],
    path: Path,
    key: dict,
) -> Importance:
    """Measure how much each unit of a model matters for clips.

    A call can be killed at any moment; the next call with the same key continues, and returns the same numbers.

    Parameters
    ----------
    loaded : LoadedModel
        In evaluation mode; it is not changed.
    clips : Clips
        Clips of train; see `clips_to_measure`.
    method : str
        One of `IMPORTANCES`. ``activation``: the mean over frames of the absolute input of the reader, times the norm
        of its weights for this channel. This is the mean size of the contribution to the output of the reader; a head
        has the sum of its channels. ``taylor``: the mean over clips of ``|sum of activation * gradient|`` over the
        frames (and channels) of a unit; the gradient is that of the loss of the clip. To first order, it is by how much
        the loss of a clip changes without the unit (Molchanov et al. 2017, eq. 8; Molchanov et al. 2019, eq. 8, which
        squares it).
    widths : sequence of str
        Of `architectures.widths_of`.
    path : Path
        File in which the sums are stored until all clips are done; it stays.
    key : dict
        Digests of model and data, on which the numbers depend besides the clips; ready for JSON.

    Returns
    -------
    dict of str to list of ndarray
        For each width one array for each entry of `channels_of`: float64, one number per unit.

    Raises
    ------
    InputError
        If a number is not finite.
    """
    clips = clips_to_measure(clips)
    groups = {width: channels_of(loaded.model, width) for width in widths}
    flat = [channels for own in groups.values() for channels in own]
    key = {**key, "importance": method, "widths": list(widths), "device": loaded.device}
    stamp = json.dumps({**key, "clip_ids": sha256_of_lines(clips.table["clip_id"])})
    sums, n_done = _read(path, stamp) or ([0.0 for _ in flat], 0)
    if 0 < n_done < len(clips):
        log.info("importance: %d of %d clips were done before", n_done, len(clips))
    add = _activation_sums if method == ACTIVATION else _taylor_sums
    saved_at = time.monotonic()
    if n_done < len(clips):
        for inputs in predict.input_batches(loaded, clips, BATCH_SIZE, desc="importance", first=n_done):
            batch = range(n_done, n_done + len(next(iter(inputs.values()))))
            found = add(loaded, flat, clips, batch, inputs)
            sums = [old + new.double().cpu().numpy() for old, new in zip(sums, found, strict=True)]
            n_done = batch.stop
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                _write(path, stamp, sums, n_done)
                saved_at = time.monotonic()
        _write(path, stamp, sums, n_done)
    if not all(np.isfinite(numbers).all() for numbers in sums):
        raise InputError(
            "the importance of some units is NaN or infinite; expected finite numbers: the weights of the model are "
            "broken, train it again with a lower --learning_rate"
        )
    numbers = iter(sums)
    return {width: [next(numbers) / len(clips) for _ in own] for width, own in groups.items()}


def _activation_sums(
    loaded: LoadedModel, groups: Sequence[Channels], clips: Clips, batch: range, inputs: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    n_samples, sums = len(clips.audio(batch.start)), [torch.zeros(()) for _ in groups]

    def add(number: int, read: torch.Tensor) -> None:
        channels = groups[number]
        frames = read.movedim(channels.axis, -1)
        if channels.axis == -1:  # after the convolutions of a waveform, no frame is padding
            frames = frames[:, encoder_parts.valid_frames(loaded, n_samples, frames.shape[1])]
        weight = loaded.model.get_submodule(channels.reader).weight
        contribution = frames.abs().mean(dim=1).sum(dim=0) * weight.transpose(0, 1).flatten(1).norm(dim=1)
        sums[number] = contribution.unflatten(0, (-1, channels.size)).sum(dim=1)

    with torch.inference_mode(), _reading(loaded.model, groups, add):
        loaded.model(**inputs)
    return sums


def _taylor_sums(
    loaded: LoadedModel, groups: Sequence[Channels], clips: Clips, batch: range, inputs: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    rows, read = slice(batch.start, batch.stop), {}
    targets = np.where(clips.is_known[rows], clips.targets[rows], augmentation.UNKNOWN)
    labels = torch.from_numpy(targets.astype(np.float32)).to(loaded.device)
    loss_of, n_labels = training.Loss(None, 0.0, loaded.is_multi_label), torch.tensor(labels.shape[1])
    with torch.enable_grad(), _reading(loaded.model, groups, read.__setitem__):
        # The sum over the clips of the batch, so that the gradient of each clip is that of its own loss.
        loss = loss_of(loaded.model(**inputs), labels, n_labels)
    states = [read[number] for number in range(len(groups))]
    sums = []
    for channels, activation, gradient in zip(groups, states, torch.autograd.grad(loss, states), strict=True):
        of_clips = (activation.detach() * gradient).movedim(channels.axis, -1).sum(dim=1)
        sums.append(of_clips.unflatten(1, (-1, channels.size)).sum(dim=2).abs().sum(dim=0))
    return sums


@contextlib.contextmanager
def _reading(
    model: PreTrainedModel, groups: Sequence[Channels], use: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Call `use` with the number of each entry of `groups` and the input of its reader."""
    handles = [
        model.get_submodule(channels.reader).register_forward_pre_hook(lambda _, args, n=number: use(n, args[0]))
        for number, channels in enumerate(groups)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _write(path: Path, stamp: str, sums: Sequence[np.ndarray], n_done: int) -> None:
    with atomic_path(path) as partial:
        np.savez(partial, *sums, stamp=stamp, n_done=n_done)


def _read(path: Path, stamp: str) -> tuple[list[np.ndarray], int] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["stamp"] != stamp:
                return None
            return [file[f"arr_{number}"] for number in range(len(file.files) - 2)], int(file["n_done"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


# ------------------------------------------------------------------------------------------------ cut


def narrow(model: PreTrainedModel, importance: Importance, changes: dict[str, dict[str, object]], method: str) -> None:
    """Cut, in place, the least important units, and record this in the model's config.

    ``config.width_from`` holds the widths of the base model, also after several cuts, and ``config.width_importance``
    the method of the last one.

    Parameters
    ----------
    model : PreTrainedModel
    importance : dict
        From `measure`, for all widths in `changes`.
    changes : dict
        From `changes_of`.
    method : str
        One of `IMPORTANCES`.
    """
    config, before = model.config, architectures.widths_of(model.config)
    for width, values in changes.items():
        groups, first = channels_of(model, width), next(iter(values.values()))
        numbers = first if isinstance(first, list) else [first] * len(groups)
        for channels, of_units, number in zip(groups, importance[width], numbers, strict=True):
            cut(model, channels, most_important(of_units, number))
        for name, value in values.items():
            setattr(config, name, value)
    if architectures.widths_of(config) != before:
        config.width_from = {**before, **getattr(config, "width_from", {})}
        config.width_importance = method
        encoders.note_pruning(config)


def most_important(of_units: np.ndarray, number: int) -> np.ndarray:
    """Return the `number` units of the highest importance, ascending; of equal ones, the first."""
    return np.sort(np.argsort(-of_units, kind="stable")[:number])


def cut(model: PreTrainedModel, channels: Channels, units: np.ndarray) -> None:
    """Keep, in place, only some units of `channels`.

    Parameters
    ----------
    model : PreTrainedModel
    channels : Channels
    units : ndarray of int
        The units to keep, ascending.
    """
    kept = torch.as_tensor((units[:, None] * channels.size + np.arange(channels.size)).reshape(-1))
    for name in (*channels.writers, *channels.norms):
        module = model.get_submodule(name)
        for parameter in ("weight", "bias"):
            _select(module, parameter, 0, kept)
        for attribute, n in _OUTPUTS.items():
            if hasattr(module, attribute):
                setattr(module, attribute, n(len(kept)))
    reader = model.get_submodule(channels.reader)
    _select(reader, "weight", 1, kept)
    setattr(reader, "in_channels" if hasattr(reader, "in_channels") else "in_features", len(kept))


# Sizes that a module keeps beside its weights. The group norm of wav2vec2 has one group for each channel.
_OUTPUTS = {
    **dict.fromkeys(("out_features", "out_channels", "num_channels", "num_groups"), int),
    "normalized_shape": lambda n: (n,),
}


def _select(module: torch.nn.Module, name: str, axis: int, kept: torch.Tensor) -> None:
    parameter = getattr(module, name)
    if parameter is not None:
        selected = parameter.detach().index_select(axis, kept.to(parameter.device))
        setattr(module, name, torch.nn.Parameter(selected, requires_grad=parameter.requires_grad))
