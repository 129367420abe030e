"""Evaluating many pruned versions of one model at little more than the cost of their different parts.

Kept lists that begin alike share all blocks up to where they part, and all share the front end. So each
batch of clips walks the trie of the lists depth first: a node is one block applied to one hidden state, a
leaf is pooling and head. In lexicographic order every list continues the part of its predecessor's path
that the two share, so that a path of at most depth + 1 hidden states is all that is ever kept.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel, SequenceFeatureExtractor

from utils.core import runs
from utils.core.errors import InputError, UsageError
from utils.data.clips import Clips
from utils.models import memory, onednn, predict
from utils.models.encoder_parts import EncoderParts, State
from utils.models.encoders import check_keep, prepare

log = logging.getLogger(__name__)

Keep = tuple[int, ...]

# Kernels work in memory of their own besides their inputs and outputs. oneDNN's convolutions copy both
# into another layout, and the allocator leaves gaps: together as much again as the tensors themselves.
OVERHEAD = 2.0
# What the first run of each kernel leaves behind, whatever the batch.
KERNELS_MB = 60.0


def trie_cost(keeps: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Count the block passes of a clip through all different lists, shared and one list at a time.

    Returns
    -------
    n_nodes : int
        Nodes of the trie of the lists.
    n_blocks_one_by_one : int
        Sum of their lengths.
    """
    n_nodes, previous = 0, ()
    ordered = _ordered(keeps)
    for keep in ordered:
        n_nodes += len(keep) - _shared(previous, keep)
        previous = keep
    return n_nodes, sum(len(keep) for keep in ordered)


def predict_subsets(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    clips: Clips,
    keeps: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: str,
    memory_limit_mb: float | None = None,
    among: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return the classes that every pruned version of a model predicts.

    Enough for accuracy, macro F1 and their bootstrap, and small: all 2,048 subsets on 20,000 clips take
    82 MB.

    Parameters
    ----------
    model, extractor, clips, keeps, batch_size, device, memory_limit_mb
        As for `evaluate_subsets`.
    among : tuple of int, optional
        As for `predict.input_batches`.

    Returns
    -------
    ndarray of int16 (int32 beyond 32,767 classes), shape (n_subsets, n_clips)

    Raises
    ------
    UsageError, InputError
        As `evaluate_subsets`.
    """
    dtype = np.promote_types(np.int16, np.min_scalar_type(-model.config.num_labels))
    predicted_ids = np.empty((len(keeps), len(clips)), dtype)
    for where, logits in _sweep(model, extractor, clips, keeps, batch_size, device, memory_limit_mb, among):
        predicted_ids[:, where] = logits.argmax(axis=2)
    return predicted_ids


def evaluate_subsets(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    clips: Clips,
    keeps: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: str,
    memory_limit_mb: float | None = None,
) -> np.ndarray:
    """Return the logits of every pruned version of a model: those that it would give by itself.

    On a GPU matrix products are computed in bfloat16 where it can, on a CPU in float32.

    Parameters
    ----------
    model : PreTrainedModel
        Audio-classification model in evaluation mode, on `device`; it is not changed.
    extractor : SequenceFeatureExtractor
        Its feature extractor.
    clips : Clips
        What to classify.
    keeps : sequence of sequences of int
        Blocks that each subset keeps, ascending, in the numbering of `model`; an empty list leaves the
        front end alone. Equal lists are evaluated once.
    batch_size : int
        Clips at once, at most.
    device : str
        ``cpu`` or ``cuda``.
    memory_limit_mb : float, optional
        Most memory, in MB (10^6 bytes), that the work may take besides the model and the result, on the
        device. As many clips are taken at once as fit. What a clip takes is measured: the highest sum of
        all tensors alive while it runs through the deepest list with every hidden state kept, times
        `OVERHEAD`, and the logits of all subsets.

    Returns
    -------
    ndarray of float32, shape (n_subsets, n_clips, n_classes)
        In the order of `keeps`.

    Raises
    ------
    UsageError
        If a list is not possible for this model, or the memory limit is too small for a single clip.
    InputError
        If the model has no blocks, or a logit is not finite.
    """
    all_logits = np.empty((len(keeps), len(clips), model.config.num_labels), np.float32)
    for where, logits in _sweep(model, extractor, clips, keeps, batch_size, device, memory_limit_mb):
        all_logits[:, where] = logits
    return all_logits


def pooled_states(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    clips: Clips,
    keep: Sequence[int],
    *,
    batch_size: int,
    device: str,
) -> np.ndarray:
    """Return what the head of a pruned model gets to see of every clip; always in float32.

    With these at hand a head is trained without running the encoder again:
    `encoder_parts.EncoderParts.head` turns them into the logits, and carries gradients.

    Parameters
    ----------
    model, extractor, clips, batch_size, device
        As for `evaluate_subsets`.
    keep : sequence of int
        Blocks that are kept, ascending, in the numbering of `model`.

    Returns
    -------
    ndarray of float32, shape (n_clips, hidden_size)
        See `encoder_parts.EncoderParts.pool`.

    Raises
    ------
    UsageError
        If the list is not possible for this model.
    InputError
        If the model has no blocks, or a state is not finite.
    """
    parts = EncoderParts(model)
    ordered = _checked(model, [keep])
    pooled = []
    for inputs in predict.input_batches(model, extractor, clips, batch_size, device, desc="pooling"):
        with torch.inference_mode(), onednn.linear_layers(model, device):
            pooled += [parts.pool(path, keep).cpu().numpy() for keep, path in _walk(parts, inputs, ordered)]
    states = np.concatenate(pooled)
    _check_finite(states[None], ordered, clips, 0, "pooled states")
    return states


def _ordered(keeps: Sequence[Sequence[int]]) -> list[Keep]:
    return sorted({tuple(keep) for keep in keeps})


def _shared(first: Keep, second: Keep) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _checked(model: PreTrainedModel, keeps: Sequence[Sequence[int]]) -> list[Keep]:
    ordered = _ordered(keeps)
    for keep in ordered:
        check_keep(model.config, list(keep))
    return ordered


def _sweep(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    clips: Clips,
    keeps: Sequence[Sequence[int]],
    batch_size: int,
    device: str,
    memory_limit_mb: float | None,
    among: tuple[int, int] | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield which clips a batch holds, and their logits, shape (n_subsets, batch, n_classes), float32."""
    ordered = _checked(model, keeps)
    if not ordered:
        return
    parts = EncoderParts(model)
    log.debug("%d subsets share %d block passes instead of %d", len(ordered), *trie_cost(ordered))

    need = partial(memory_need, model, extractor, clips, ordered, batch_size, device, memory.used_bytes(device))
    if memory_limit_mb is not None:
        inputs = _one_clip(parts, extractor, clips, device)
        batch_size = min(batch_size, _clips_that_fit(parts, inputs, ordered, device, memory_limit_mb))
        log.info("%g MB hold batches of %d clips", memory_limit_mb, batch_size)
    row_of = {keep: row for row, keep in enumerate(ordered)}
    rows = [row_of[tuple(keep)] for keep in keeps]
    start = 0
    for inputs in predict.input_batches(model, extractor, clips, batch_size, device, desc="sweeping", among=among):
        logits = memory.advised(partial(_logits, parts, inputs, ordered, device), need, memory.used_bytes(device))
        _check_finite(logits, ordered, clips, start, "logits")
        yield slice(start, start + logits.shape[1]), logits[rows]
        start += logits.shape[1]


def _logits(parts: EncoderParts, inputs: dict[str, torch.Tensor], ordered: list[Keep], device: str) -> np.ndarray:
    leaves = runs.progress(_walk(parts, inputs, ordered), len(ordered), "this batch", "subsets")
    with torch.inference_mode(), _computing(parts.model, device):
        # All at once to the host: waiting for every leaf would leave a GPU idle.
        return torch.stack([parts.logits(path, keep).float() for keep, path in leaves]).cpu().numpy()


def _walk(
    parts: EncoderParts, inputs: dict[str, torch.Tensor], ordered: list[Keep]
) -> Iterator[tuple[Keep, list[State]]]:
    """Yield each list with the states along its path; the path is one list, and changes with the next."""
    path, previous = [parts.front_end(inputs)], ()
    for keep in ordered:
        shared = _shared(previous, keep)
        del path[shared + 1 :]
        for layer in keep[shared:]:
            path.append(parts.block(layer, path[-1]))
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


def memory_need(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    clips: Clips,
    keeps: Sequence[Keep],
    batch_size: int,
    device: str,
    before: int,
) -> str:
    """Return how much memory a walk needs, as the end of a message.

    Parameters
    ----------
    model, extractor, clips, keeps, batch_size, device
        As for `evaluate_subsets`.
    before : int
        Bytes that the process had before it.
    """
    parts = EncoderParts(model)
    mb_fixed, mb_a_clip = _memory_mb(parts, _one_clip(parts, extractor, clips, device), keeps, device)
    many, one = (before + memory.MEGABYTE * (mb_fixed + n * mb_a_clip) for n in (batch_size, 1))
    return (
        f"with {batch_size} clips at once this needs up to {memory.more(many)}, with one up to {memory.amount(one)}; "
        "give the job that much, or fewer clips at once (--batch_size), and run it again"
    )


def _one_clip(
    parts: EncoderParts, extractor: SequenceFeatureExtractor, clips: Clips, device: str
) -> dict[str, torch.Tensor]:
    inputs = prepare(extractor, [clips[0]["audio"]], clips.sample_rate_hz, parts.model.main_input_name)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _memory_mb(
    parts: EncoderParts, inputs: dict[str, torch.Tensor], ordered: list[Keep], device: str
) -> tuple[float, float]:
    """Return the MB that a sweep takes besides the model, whatever the batch, and for each clip in it.

    A batch of n takes at most n times what one clip takes: what does not grow with n is counted n times.
    """
    deepest = max(ordered, key=len)
    with torch.no_grad(), _computing(parts.model, device), memory.LiveBytes() as live:
        _run(parts, inputs, deepest)
        cached = live.now  # such as weights that autocast keeps in bfloat16
        live.highest = live.now
        _run(parts, inputs, deepest)
    n_input_bytes = sum(tensor.nbytes for tensor in inputs.values())
    n_logit_bytes = 4 * parts.model.config.num_labels * len(ordered)
    mb_a_clip = OVERHEAD * (live.highest - cached + n_input_bytes + n_logit_bytes) / memory.MEGABYTE
    return KERNELS_MB + cached / memory.MEGABYTE, mb_a_clip


def _clips_that_fit(
    parts: EncoderParts, inputs: dict[str, torch.Tensor], ordered: list[Keep], device: str, memory_limit_mb: float
) -> int:
    """Return how many clips at once stay within the limit; `inputs` are those of one clip."""
    mb_fixed, mb_a_clip = _memory_mb(parts, inputs, ordered, device)
    n_clips = int((memory_limit_mb - mb_fixed) // mb_a_clip)
    if n_clips < 1:
        raise UsageError(
            f"--memory_limit_mb {memory_limit_mb:g} is too little: one clip at a time through "
            f"{len(max(ordered, key=len))} blocks takes up to {np.ceil(mb_fixed + mb_a_clip):.0f} MB besides the "
            "model; give that much or more"
        )
    return n_clips


def _run(parts: EncoderParts, inputs: dict[str, torch.Tensor], keep: Keep) -> None:
    for _, path in _walk(parts, inputs, [keep]):
        parts.logits(path, keep)
