"""Evaluate many pruned versions of one model, and compute the parts that they share once.

Kept lists with the same first blocks share the computation of these blocks, and all lists share the front
end. So each batch of clips walks the trie of the lists depth first: a node is one block applied to one hidden
state, a leaf is pooling and head. In lexicographic order every list continues from the blocks that it shares
with the list before it. So memory holds one path of at most depth + 1 hidden states.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from utils.core import runs
from utils.core.errors import InputError
from utils.data.clips import Clips
from utils.models import memory, onednn, predict
from utils.models.encoder_parts import EncoderParts, State
from utils.models.encoders import check_keep
from utils.models.loaded_model import LoadedModel
from utils.pruning.repair import Repairs, closed

log = logging.getLogger(__name__)

Keep = tuple[int, ...]

# Kernels need working memory besides their inputs and outputs. oneDNN's convolutions copy both into another
# layout, and the allocator leaves gaps. Together this doubles the memory of the tensors.
OVERHEAD = 2.0
# Memory that the first run of each kernel allocates and keeps, for any batch size.
KERNELS_BYTES = 60e6


def trie_cost(keeps: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Count the block passes of one clip through all different lists, with and without sharing.

    Returns
    -------
    n_nodes : int
        Nodes of the trie of the lists.
    n_blocks_one_by_one : int
        Sum of the lengths of the lists.
    """
    n_nodes, previous = 0, ()
    ordered = _ordered(keeps)
    for keep in ordered:
        n_nodes += len(keep) - _shared(previous, keep)
        previous = keep
    return n_nodes, sum(len(keep) for keep in ordered)


def predict_subsets(
    loaded: LoadedModel,
    clips: Clips,
    keeps: Sequence[Sequence[int]],
    batch_size: int,
    among: tuple[int, int] | None = None,
    repairs: Repairs | None = None,
) -> np.ndarray:
    """Return the classes that every pruned version of a model predicts.

    Classes are enough for accuracy, macro F1 and their intervals, and they are small: all 2,048 subsets on
    20,000 clips take 82 MB. Secondary labels of a clip are passed over.

    Parameters
    ----------
    loaded, clips, keeps, batch_size, among, repairs
        As for `logits_by_batch`.

    Returns
    -------
    ndarray of int16 (int32 beyond 32,767 classes), shape (n_subsets, n_clips)

    Raises
    ------
    UsageError, InputError
        As `logits_by_batch`.
    """
    dtype = np.promote_types(np.int16, np.min_scalar_type(-loaded.config.num_labels))
    predicted_ids = np.empty((len(keeps), len(clips)), dtype)
    start = 0
    for logits in logits_by_batch(loaded, clips, keeps, batch_size, among, repairs):
        if clips.is_annotated:
            logits = np.where(clips.is_known[start : start + logits.shape[1]], logits, -np.inf)
        predicted_ids[:, start : start + logits.shape[1]] = logits.argmax(axis=2)
        start += logits.shape[1]
    return predicted_ids


def logits_by_batch(
    loaded: LoadedModel,
    clips: Clips,
    keeps: Sequence[Sequence[int]],
    batch_size: int,
    among: tuple[int, int] | None = None,
    repairs: Repairs | None = None,
) -> Iterator[np.ndarray]:
    """Yield, batch by batch, the logits of every pruned version of a model, the same as without sharing.

    Matrix products are computed in bfloat16 on a GPU that supports it, otherwise in float32.

    Parameters
    ----------
    loaded : LoadedModel
        In evaluation mode; it is not changed.
    clips : Clips
        Clips to classify.
    keeps : sequence of sequences of int
        Blocks that each subset keeps, ascending, in the numbering of the model; an empty list keeps
        only the front end. Equal lists are evaluated once.
    batch_size : int
        Most clips per batch.
    among : tuple of int, optional
        As for `predict.input_batches`.
    repairs : dict, optional
        Layers of `repair.Repairer.fit` for these lists. Default: every block stays as it is.

    Yields
    ------
    ndarray of float32, shape (n_subsets, batch, n_classes)
        In the order of `keeps`; no array if `keeps` is empty.

    Raises
    ------
    UsageError
        If a list is not possible for this model.
    InputError
        If the model has no blocks, a logit is not finite, or there is not enough memory.
    """
    ordered = _checked(loaded.model, keeps)
    if not ordered:
        return
    parts, device = EncoderParts(loaded.model), loaded.device
    log.debug("%d subsets share %d block passes instead of %d", len(ordered), *trie_cost(ordered))
    need = partial(memory_need, loaded, clips, ordered, batch_size)
    row_of = {keep: row for row, keep in enumerate(ordered)}
    rows = [row_of[tuple(keep)] for keep in keeps]
    start = 0
    for inputs in predict.input_batches(loaded, clips, batch_size, desc="sweeping", among=among):
        logits = memory.advised(
            partial(_logits, parts, inputs, ordered, device, repairs), need, partial(memory.used_bytes, device)
        )
        _check_finite(logits, ordered, clips, start, "logits")
        yield logits[rows]
        start += logits.shape[1]


def _ordered(keeps: Sequence[Sequence[int]]) -> list[Keep]:
    return sorted({tuple(keep) for keep in keeps})


def _shared(first: Keep, second: Keep) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _checked(model: PreTrainedModel, keeps: Sequence[Sequence[int]]) -> list[Keep]:
    ordered = _ordered(keeps)
    for keep in ordered:
        check_keep(model.config, list(keep))
    return ordered


def _logits(
    parts: EncoderParts,
    inputs: dict[str, torch.Tensor],
    ordered: list[Keep],
    device: str,
    repairs: Repairs | None,
) -> np.ndarray:
    walk = _walk(parts, inputs, ordered) if repairs is None else _repaired_walk(parts, inputs, ordered, repairs)
    leaves = runs.progress(walk, len(ordered), "this batch", "subsets")
    with torch.inference_mode(), _computing(parts.model, device):
        # One copy to the host for all leaves: a copy per leaf would leave a GPU idle.
        return torch.stack([parts.logits(path, keep).float() for keep, path in leaves]).cpu().numpy()


def _walk(
    parts: EncoderParts, inputs: dict[str, torch.Tensor], ordered: list[Keep]
) -> Iterator[tuple[Keep, list[State]]]:
    """Yield each list with the states along its path; the path is one list object, which the next step changes."""
    path, previous = [parts.front_end(inputs)], ()
    for keep in ordered:
        shared = _shared(previous, keep)
        del path[shared + 1 :]
        for layer in keep[shared:]:
            path.append(parts.block(layer, path[-1]))
        yield keep, path
        previous = keep


def _repaired_walk(
    parts: EncoderParts, inputs: dict[str, torch.Tensor], ordered: list[Keep], repairs: Repairs
) -> Iterator[tuple[Keep, list[State]]]:
    """Do the same with repaired blocks: the output of a block depends on the block that reads it."""
    path, opened, previous = [parts.front_end(inputs)], [], ()
    for keep in ordered:
        shared = _shared(previous, keep)
        del opened[shared:], path[max(shared, 1) :]
        for n, reader in enumerate((*keep, parts.n_layers)[shared:], start=shared):
            if n:
                path.append(closed(parts, keep[n - 1], opened[n - 1], repairs.get((keep[:n], reader))))
            if n < len(keep):
                opened.append(parts.open_block(reader, path[n]))
        yield keep, path
        previous = keep


@contextlib.contextmanager
def _computing(model: PreTrainedModel, device: str) -> Iterator[None]:
    bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    with onednn.linear_layers(model, device), torch.autocast(device, torch.bfloat16, enabled=bf16):
        yield


def _check_finite(values: np.ndarray, ordered: list[Keep], clips: Clips, start: int, what: str) -> None:
    """Raise InputError unless all of `values`, shape (n_subsets, batch, …), are finite; name the first."""
    if np.isfinite(values).all():
        return
    row, clip = np.argwhere(~np.isfinite(values))[0, :2]
    raise InputError(
        f"with the blocks {list(ordered[row])} the model gives {what} that are NaN or infinite for the clip "
        f"{clips.table['clip_id'].iloc[start + clip]}; expected finite numbers: its weights are broken, "
        "train it again with a lower --learning_rate"
    )


# ---------------------------------------------------------------------------------------------- memory


def memory_need(loaded: LoadedModel, clips: Clips, keeps: Sequence[Keep], batch_size: int) -> str:
    """Return how much memory a walk needs, as the end of a message.

    The need of one clip is measured. It is the highest sum of all live tensors while the clip runs through the longest
    list with every hidden state kept, plus its inputs and the logits of all subsets, times `OVERHEAD`. A batch of n
    clips needs at most n times as much: the part that does not grow with n is counted n times.

    Parameters
    ----------
    loaded, clips, keeps, batch_size
        As for `logits_by_batch`.
    """
    before, deepest = memory.used_bytes(loaded.device, most=False), max(keeps, key=len)
    parts, inputs = EncoderParts(loaded.model), loaded.prepare([clips[0]["audio"]], clips.sample_rate_hz)
    with torch.no_grad(), _computing(loaded.model, loaded.device), memory.LiveBytes() as live:
        _run(parts, inputs, deepest)
        cached = live.now  # such as weights that autocast keeps in bfloat16
        live.highest = live.now
        _run(parts, inputs, deepest)
    n_input_bytes = sum(tensor.nbytes for tensor in inputs.values())
    n_logit_bytes = 4 * loaded.config.num_labels * len(keeps)
    of_clip = OVERHEAD * (live.highest - cached + n_input_bytes + n_logit_bytes)
    many, one = (before + KERNELS_BYTES + cached + n * of_clip for n in (batch_size, 1))
    return (
        f"with {batch_size} clips at once this needs up to {memory.more(many)}, with one up to {memory.amount(one)}; "
        "give the job that much, or fewer clips at once (--batch_size), and run it again"
    )


def _run(parts: EncoderParts, inputs: dict[str, torch.Tensor], keep: Keep) -> None:
    for _, path in _walk(parts, inputs, [keep]):
        parts.logits(path, keep)
