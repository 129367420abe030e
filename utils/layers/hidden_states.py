"""Hidden states of all layers: one vector per clip and layer, and how much frames change from layer to layer.

Layer 0 is the input of block 0, layer l the output of block l - 1, before any final norm. One forward pass
per batch gives both. States of single frames are used at once and never stored.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, runs
from utils.core.errors import InputError
from utils.core.files import BROKEN, read_json, sha256_of_lines, write_json, write_text

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd
    import torch

    from utils.models import encoder_parts, predict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

CLIP_COLUMNS = ["clip_id", "recording_id", "group", "label", "label_id", "split"]
SAVE_EVERY_S = 10.0


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
    return [f"{name}.npy", f"{name}_frames.npy", f"{name}_clips.csv", f"{name}.json"]


def extract(loaded: LoadedModel, clips: Clips, batch_size: int, folder: Path, name: str, key: dict) -> HiddenStates:
    """Return the hidden states of all clips, from the encoder or from an earlier call with the same key.

    A call can be killed at any moment. The next call with the same key continues from the last save, with the
    same batches, and writes the same bytes. Processes that torchrun started share the clips, and the first
    process joins their files. If the same number of processes starts again, they continue as well.

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
    key = {**key, "batch_size": batch_size, "device": loaded.device}
    states = _States(loaded.model, clips, folder, name, key)
    # Every process reads the files before any process changes them.
    done = runs.from_all_processes(lambda: states.n_done == len(clips))
    if runs.n_processes() == 1:
        _extract_alone(loaded, batch_size, states)
    elif not all(done):
        _extract_together(loaded, batch_size, states)
    return states.load()


class _States:
    """The files of the hidden states of some clips, complete or in progress; see `extract`."""

    def __init__(self, model: PreTrainedModel, clips: Clips, folder: Path, name: str, key: dict):
        n_hidden = encoder_parts.EncoderParts(model).n_layers + 1
        self.clips, self._folder, self._name = clips, folder, name
        self.key = {**key, "clip_ids": sha256_of_lines(clips.table["clip_id"])}
        self._shapes = {
            folder / f"{name}.npy": (n_hidden, len(clips), model.config.hidden_size),
            folder / f"{name}_frames.npy": (2, len(clips), n_hidden, n_hidden),
        }
        self._progress_path = folder / f"{name}.json"

    @property
    def n_done(self) -> int | None:
        """Number of clips that an earlier call with this key has saved; None if it left no usable files."""
        try:
            progress = read_json(self._progress_path, dict, "")
            if progress["key"] != self.key:
                return None
            for path, shape in self._shapes.items():
                if np.lib.format.open_memmap(path, mode="r").shape != shape:
                    return None
            n_done = progress["n_done"]
            return n_done if type(n_done) is int and 0 <= n_done <= len(self.clips) else None
        except BROKEN:
            return None

    def reserve(self) -> None:
        """Create the files anew, with room for all clips."""
        self._progress_path.unlink(missing_ok=True)
        for path, shape in self._shapes.items():
            _reserve(path, shape)
        table = self.clips.table[CLIP_COLUMNS]
        write_text(self._folder / f"{self._name}_clips.csv", table.to_csv(index=False))

    def open(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pooled states, and cosine and angle of the frames, to read and write."""
        return tuple(np.lib.format.open_memmap(path, mode="r+") for path in self._shapes)

    def save(self, n_done: int, arrays: Iterable[np.ndarray]) -> None:
        """Record that the first `n_done` clips are in the arrays."""
        for array in arrays:
            array.flush()
        write_json(self._progress_path, {"key": self.key, "n_done": n_done})

    def load(self) -> HiddenStates:
        pooled, frames = self.open()
        return HiddenStates(pooled, frames[0], frames[1], self.clips.table[CLIP_COLUMNS])

    def of_share(self, model: PreTrainedModel, share: range, number: int, n_shares: int) -> _States:
        """Return the files of the clips that one of several processes computes."""
        key = {name: value for name, value in self.key.items() if name != "clip_ids"}
        return _States(model, self.clips.only(share), self._folder, f"{self._name}-{number}-of-{n_shares}", key)

    def put_together(self, shares: Iterable[_States]) -> None:
        """Copy the files of the shares into these files, in order, and delete them."""
        self.reserve()
        arrays, n_done = self.open(), 0
        for share in shares:
            rows = slice(n_done, n_done + len(share.clips))
            for array, own in zip(arrays, share.open(), strict=True):
                array[:, rows] = own
            n_done = rows.stop
        self.save(n_done, arrays)
        self.remove_shares()

    def remove_shares(self) -> None:
        """Delete the files of all shares, also those of another number of processes."""
        for path in self._folder.glob(f"{self._name}-*-of-*"):
            path.unlink()


def _extract_alone(loaded: LoadedModel, batch_size: int, states: _States) -> None:
    """Run those clips of `states` through the encoder that are not done yet."""
    parts, clips, n_done = encoder_parts.EncoderParts(loaded.model), states.clips, states.n_done
    if n_done is None:
        states.reserve()
        n_done = 0
    elif n_done:
        log.info("hidden states: %d of %d clips were done before", n_done, len(clips))
    if n_done < len(clips):
        pooled, frames = states.open()
        saved_at = time.monotonic()
        n_samples = len(clips.audio(0))
        with torch.inference_mode():
            for inputs in predict.input_batches(loaded, clips, batch_size, desc="hidden states", first=n_done):
                layers = [state.hidden_states for state in parts.hidden_layers(inputs)]
                valid = encoder_parts.valid_frames(loaded, n_samples, layers[0].shape[1])
                if not valid.all():
                    layers = [layer[:, valid] for layer in layers]
                rows = slice(n_done, n_done + len(layers[0]))
                pooled[:, rows] = torch.stack([layer.mean(dim=1) for layer in layers]).float().cpu().numpy()
                _check_finite(pooled[:, rows], clips.table["clip_id"].iloc[rows])
                frames[:, rows] = frame_similarity(layers).cpu().numpy()
                n_done = rows.stop
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    states.save(n_done, (pooled, frames))
                    saved_at = time.monotonic()
        states.save(n_done, (pooled, frames))
    if runs.n_processes() == 1:
        states.remove_shares()


def _extract_together(loaded: LoadedModel, batch_size: int, states: _States) -> None:
    """Let every process run its share of the clips into its own files; the first process joins them."""
    ranges = runs.from_all_processes(lambda: runs.own_share(len(states.clips), batch_size))
    shares = [states.of_share(loaded.model, own, number, len(ranges)) for number, own in enumerate(ranges, start=1)]
    own = shares[runs.process_number()]
    runs.from_all_processes(lambda: _extract_alone(loaded, batch_size, own))
    runs.from_all_processes(lambda: states.put_together(shares) if runs.is_first_process() else None)


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


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    if path.is_file():
        path.unlink()  # never overwritten: an old result may have a hard link to this file
    # A full disk must raise an error here: writing to a memory map on a full disk kills the process.
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    del array
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _check_finite(pooled: np.ndarray, clip_ids: pd.Series) -> None:
    bad = np.argwhere(~np.isfinite(pooled).all(axis=2))
    if len(bad):
        layer, clip = bad[0]
        what = "the input of block 0" if layer == 0 else f"the output of block {layer - 1}"
        raise InputError(
            f"the hidden states of layer {layer} ({what}) are NaN or infinite for the clip {clip_ids.iloc[clip]}; "
            "expected finite numbers: the weights of the model are broken"
        )
