"""Repair of pruned models in closed form: the kept blocks learn, by least squares, to give what the whole model gave.

A pruned model reads other states than the whole one: where blocks are missing, the next kept block gets the states of
an earlier one. Here the last linear layer of each kept block is fitted anew, so that the output of the block is the
state that the next kept block reads in the whole model. Only the sum of two parts is changed: the layer's output is
added to the residual stream, and its input, the activations of the feed-forward network, stays. So this is a linear
regression with a solution in closed form. It needs no labels and no gradients, and the result is a plain model of the
same shape, without one parameter more.

ReplaceMe (arXiv 2505.02819) and TOAST (arXiv 2410.04941) fit one linear map for one run of removed blocks, and
ReplaceMe folds it into the block before the run. Three things differ here:

- The regression is on the activations, not on the layer's output: 4 times as many inputs, at no cost in the model.
- The kept blocks after the gap are fitted too, one after the other, each on the states of the pruned model with all
  blocks before it already repaired. Without this the error of the first fit grows in the blocks behind it.
- So several gaps can be repaired, and a gap at the very beginning.

In a block that ends with a norm (wav2vec 2.0 base), the norm of the last removed block takes the place of the block's
own, and the states are fitted before it: a norm is not linear. The scale of each frame has no effect behind the norm;
the target gets the scale that the pruned model has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from utils.core import runs
from utils.core.errors import UsageError
from utils.data.clips import Clips
from utils.layers import ridge
from utils.models import architectures, encoders, onednn, predict
from utils.models.encoder_parts import EncoderParts, OpenBlock, State
from utils.models.loaded_model import LoadedModel
from utils.pruning.layer_selection import Keep
from utils.pruning.pruning_plan import LINEAR

# Penalty on the change of a weight, relative to the mean variance of an activation.
RIDGE = 0.1
MOST_ROWS = 8_192  # frames in the regressions; of more, evenly spaced ones are taken
MOST_BYTES = 500e6  # of repaired layers at once
MOST_STATE_BYTES = 1e9  # of states of pruned models at once


class Projection(NamedTuple):
    """The last linear layer of a repaired block, and the norm after it.

    Attributes
    ----------
    weight : Tensor, shape (hidden_size, n_units)
    bias : Tensor, shape (hidden_size,)
    norm : Module or None
        The norm of the block whose output this block now gives.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    norm: nn.Module | None


# By the kept blocks up to a block, and by the block that reads its output (the number of blocks: the head reads it).
Repairs = dict[tuple[Keep, int], Projection]


def check_possible(config: PreTrainedConfig) -> None:
    """Check that a model can be repaired.

    Raises
    ------
    UsageError
        If its head reads more than the last state, or its blocks do not end with a linear layer.
    """
    if architectures.sums_layers(config):
        raise UsageError(
            "--repair linear: a model with use_weighted_layer_sum (02 --pooling layers) reads all its layers, not only "
            "the last; leave --repair out"
        )
    if getattr(config, "adapter_attn_dim", None) is not None:
        raise UsageError("--repair linear: the blocks of this model end with adapters (adapter_attn_dim)")


class Repairer:
    """Fits the kept blocks of pruned models of one model.

    Parameters
    ----------
    loaded : LoadedModel
        The model whose blocks are kept, in evaluation mode; it is not changed.
    clips : Clips
        Clips of train; labels are not read.
    batch_size : int
        Clips per batch.
    whole : LoadedModel, optional
        The model whose states are the target. Default: `loaded`.
    blocks : sequence of int, optional
        The number in `whole` of each block of `loaded`, if it has fewer. Default: the same numbers.

    Attributes
    ----------
    clips : Clips
    settings : dict
        What a config records of the repair; ready for JSON.

    Raises
    ------
    UsageError
        See `check_possible`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        clips: Clips,
        batch_size: int,
        whole: LoadedModel | None = None,
        blocks: Sequence[int] | None = None,
    ):
        check_possible(loaded.config)
        self._loaded, self._whole = loaded, whole or loaded
        self.clips, self._batch_size = clips, batch_size
        self._parts = EncoderParts(loaded.model)
        self._parts_of_whole = EncoderParts(self._whole.model)
        self._is_whole = whole is None
        n_layers = self._parts_of_whole.n_layers
        # Where in the whole model the input of each block is read; the head reads after the last.
        self._places = (*(blocks or range(n_layers)), n_layers)
        self._fronts: list[State] = []
        self._targets: dict[int, torch.Tensor] = {}
        self.settings = {"method": LINEAR, "n_clips": len(clips), "ridge": RIDGE}

    def _read_states(self) -> None:
        """Keep the input of block 0 of all clips, and what each block of the whole model gives in the chosen frames."""
        whole, clips, batch_size = self._whole, self.clips, self._batch_size
        parts, targets = self._parts_of_whole, {}
        with torch.inference_mode(), onednn.linear_layers(whole.model, whole.device):
            for inputs in predict.input_batches(whole, clips, batch_size, desc="repair"):
                state = parts.front_end(inputs)
                self._fronts.append(state)
                for layer in range(parts.n_layers):
                    target, state = total_and_output(parts, layer, state)
                    target = self._rows(target, len(clips))
                    if parts.output_norm(layer) is not None:
                        target = (target - target.mean(1, keepdim=True)) / target.std(1, keepdim=True, unbiased=False)
                    targets.setdefault(layer + 1, []).append(target)
        self._targets = {reader: torch.cat(rows) for reader, rows in targets.items()}
        if not self._is_whole:
            with torch.inference_mode(), onednn.linear_layers(self._loaded.model, self._loaded.device):
                batches = predict.input_batches(self._loaded, clips, batch_size, desc="repair")
                self._fronts = [self._parts.front_end(inputs) for inputs in batches]

    def _rows(self, states: torch.Tensor, n_clips: int) -> torch.Tensor:
        n_frames = states.shape[1]
        step = -(-n_frames * n_clips // MOST_ROWS)
        return states[:, ::step].flatten(0, 1).float()

    def shares(self, keeps: Sequence[Keep]) -> Iterator[list[Keep]]:
        """Divide kept lists, in lexicographic order, into shares whose repaired layers fit into `MOST_BYTES`."""
        n_bytes = 4 * self._parts.last_linear(0).weight.numel()
        share, known = [], set()
        for keep in keeps:
            new = set(places(keep, self._parts.n_layers)) - known
            if share and (len(known) + len(new)) * n_bytes > MOST_BYTES:
                yield share
                share, known = [], set()
            share.append(keep)
            known.update(places(keep, self._parts.n_layers))
        yield share

    def fit(self, keeps: Iterable[Keep]) -> Repairs:
        """Return the repaired layers of pruned models; models with the same first blocks share their fits.

        A block that reads and gives what it did in the whole model stays as it is and is not among them.
        """
        if not self._fronts:
            self._read_states()
        n_layers = self._parts.n_layers
        readers: dict[Keep, set[int]] = {}
        for keep in keeps:
            for node, reader in places(keep, n_layers):
                readers.setdefault(node, set()).add(reader)
        repairs: Repairs = {}
        with torch.inference_mode(), onednn.linear_layers(self._loaded.model, self._loaded.device):
            fitted = (
                block
                for node in sorted(node for node in readers if len(node) == 1)
                for block in self._descend(node, self._fronts, readers, repairs)
            )
            for _ in runs.progress(fitted, len(readers), "repair", "blocks"):
                pass
        return repairs

    def _descend(
        self, node: Keep, states: list[State], readers: dict[Keep, set[int]], repairs: Repairs, n_held: int = 0
    ) -> Iterator[None]:
        """Fit the last block of `node` on the states that it reads, then those after it; yield after each block.

        A block runs once for as many readers as `MOST_STATE_BYTES` allows; the states of `n_held` others wait.
        """
        block, is_exact = node[-1], self._is_whole and node == tuple(range(len(node)))
        opened = [self._parts.open_block(block, state) for state in states]
        changed = sorted(reader for reader in readers[node] if not (is_exact and reader == block + 1))
        if changed:
            fitted = self._fit_block(block, opened, changed)
            repairs.update({(node, reader): projection for reader, projection in fitted.items()})
        yield
        inner = sorted(readers[node] - {self._parts.n_layers})
        room = max(1, int(MOST_STATE_BYTES / sum(state.hidden_states.nbytes for state in states)) - n_held)
        for first in range(0, len(inner), room):
            some = inner[first : first + room]
            opened = opened or [self._parts.open_block(block, state) for state in states]
            after = {
                reader: [closed(self._parts, block, one, repairs.get((node, reader))) for one in opened]
                for reader in some
            }
            opened = []
            for reader in some:
                yield from self._descend((*node, reader), after.pop(reader), readers, repairs, n_held + len(after))

    def _fit_block(self, block: int, opened: list[OpenBlock], readers: Sequence[int]) -> dict[int, Projection]:
        """Fit the last linear layer of a block to what each reader expects, by ridge regression."""
        linear = self._parts.last_linear(block)
        n_clips = sum(len(one.features) for one in opened)
        is_normed = self._parts.output_norm(block) is not None
        sums, n_done = ridge.Ridge(linear.in_features, linear.weight.device), 0
        for one in opened:
            features, residual = (self._rows(part, n_clips) for part in (one.features, one.residual))
            rows = slice(n_done, n_done + len(residual))
            n_done = rows.stop
            wanted = {reader: self._targets[self._places[reader]][rows] for reader in readers}
            scale = None
            if is_normed:  # the scale that the frame has now; the error behind the norm counts
                total = residual + one.scale * onednn.linear(features, linear.weight, linear.bias)
                mean, scale = total.mean(1, keepdim=True), total.std(1, keepdim=True, unbiased=False)
                wanted = {reader: target * scale + mean for reader, target in wanted.items()}
            changes = {reader: (target - residual) / one.scale for reader, target in wanted.items()}
            sums.add(features, changes, scale)
        fitted = sums.solve(RIDGE, linear.weight.T)
        return {
            reader: Projection(
                *(solution[:-1].T.float(), solution[-1].float()),
                self._parts_of_whole.output_norm(self._places[reader] - 1),
            )
            for reader, solution in fitted.items()
        }


def places(keep: Keep, n_layers: int) -> list[tuple[Keep, int]]:
    """Return for each block of a pruned model the kept blocks up to it, and the block that reads its output."""
    return [(keep[:n], reader) for n, reader in enumerate((*keep[1:], n_layers), start=1)]


def closed(parts: EncoderParts, layer: int, opened: OpenBlock, projection: Projection | None) -> State:
    """Return the output of a block, repaired or as it is."""
    if projection is None:
        linear = parts.last_linear(layer)
        projection = Projection(linear.weight, linear.bias, parts.output_norm(layer))
    return opened.closed(*projection)


def total_and_output(parts: EncoderParts, layer: int, state: State) -> tuple[torch.Tensor, State]:
    """Return the sum before the norm at the end of a block, and its output; without a norm they are equal."""
    linear, opened = parts.last_linear(layer), parts.open_block(layer, state)
    total = opened.closed(linear.weight, linear.bias, None)
    norm = parts.output_norm(layer)
    return total.hidden_states, total if norm is None else total.with_hidden_states(norm(total.hidden_states))


def repaired_copy(loaded: LoadedModel, keep: Keep, repairer: Repairer | None) -> LoadedModel:
    """Return a pruned copy of a model, repaired if there is a repairer; ``config.repair`` records its settings."""
    pruned = encoders.pruned_copy(loaded, keep)
    repairs = repairer.fit([keep]) if repairer else {}
    if not repairs:
        return pruned
    parts = EncoderParts(pruned.model)
    pruned.config.repair = repairer.settings
    with torch.no_grad():
        for number, place in enumerate(places(keep, loaded.config.num_hidden_layers)):
            if place not in repairs:
                continue
            weight, bias, norm = repairs[place]
            parts.last_linear(number).weight.copy_(weight)
            parts.last_linear(number).bias.copy_(bias)
            if norm is not None:
                parts.output_norm(number).load_state_dict(norm.state_dict())
    return pruned
