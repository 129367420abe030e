"""Euclidean convexity: does the network predict the class of two clips for the points between them too?"""

from functools import partial

import numpy as np
import pandas as pd
import torch

from utils.core.runs import progress
from utils.data.clips import Clips
from utils.layers.convexity import euclidean_scores, pair_interval, sample_pairs
from utils.models.encoder_parts import EncoderParts, State
from utils.models.loaded_model import LoadedModel

PAIRS_AT_ONCE = 4


def euclidean_convexity(
    loaded: LoadedModel, clips: Clips, logits: np.ndarray, num_pairs: int, num_points: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score the segments between clips of a decision region, at every layer.

    A decision region is the set of points that the model predicts as one class; true labels play no role
    (Tětková et al., arXiv 2305.17154, section 2.2). After the last non-linear layer every region is convex
    and scores 1.

    Parameters
    ----------
    loaded : LoadedModel
        Fine-tuned, in evaluation mode.
    clips : Clips
    logits : ndarray, shape (n_clips, n_classes)
        Logits of the clips.
    num_pairs : int
        Pairs of clips of each class; all pairs where there are fewer.
    num_points : int
        Points on each segment.
    seed : int
        Seed of the pairs.

    Returns
    -------
    layers : DataFrame
        ``layer, convexity, convexity_low, convexity_high``: mean over the classes, 95 % interval
        over groups. NaN if no class has two clips.
    classes : DataFrame
        ``layer, label_id, label, n_predicted, n_pairs, convexity``; NaN for a class that the model predicts for
        fewer than two clips.
    """
    parts = EncoderParts(loaded.model)
    predicted_ids = logits.argmax(axis=1)
    pairs = sample_pairs(predicted_ids, num_pairs, np.random.default_rng(seed))
    chunks = np.array_split(pairs, range(PAIRS_AT_ONCE, len(pairs), PAIRS_AT_ONCE)) if len(pairs) else []
    scores = [[] for _ in range(parts.n_layers + 1)]
    with torch.inference_mode():
        for chunk in progress(chunks, len(chunks), "Euclidean convexity", "batches of pairs"):
            first, second = (_hidden_layers(parts, loaded, clips, ends) for ends in chunk.T)
            class_ids = predicted_ids[chunk[:, 0]]
            for layer in range(parts.n_layers + 1):
                predict_at = partial(_predict_between, parts, first[: layer + 1], second[: layer + 1])
                scores[layer].append(euclidean_scores(predict_at, class_ids, num_points))
    return _tables(clips, predicted_ids, pairs, [np.concatenate([*s, []]) for s in scores])


def _predict_between(parts: EncoderParts, first: list[State], second: list[State], share: float) -> np.ndarray:
    """Predict the classes of points between the two clips of each pair, at the last of the given layers."""
    path = [
        a.with_hidden_states(share * a.hidden_states + (1 - share) * b.hidden_states)
        for a, b in zip(first, second, strict=True)
    ]
    for block in range(len(first) - 1, parts.n_layers):
        path.append(parts.block(block, path[-1]))
    return parts.logits(path, range(parts.n_layers)).argmax(dim=1).cpu().numpy()


def _hidden_layers(parts: EncoderParts, loaded: LoadedModel, clips: Clips, indices: np.ndarray) -> list[State]:
    audio = [clips.audio(index) for index in indices]
    return list(parts.hidden_layers(loaded.prepare(audio, clips.sample_rate_hz)))


def _tables(
    clips: Clips, predicted_ids: np.ndarray, pairs: np.ndarray, scores: list[np.ndarray]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    n_classes = len(clips.labels)
    class_of_pair = predicted_ids[pairs[:, 0]]
    n_pairs = np.bincount(class_of_pair, minlength=n_classes)
    groups = clips.table["group"].to_numpy()
    layers, classes = [], []
    for layer, score in enumerate(scores):
        sums = np.bincount(class_of_pair, score, n_classes)
        means = np.divide(sums, n_pairs, out=np.full(n_classes, np.nan), where=n_pairs > 0)
        low, high = pair_interval(pairs[:, 0], pairs[:, 1], score, predicted_ids, groups)
        overall = float(np.nanmean(means)) if n_pairs.any() else float("nan")
        layers.append({"layer": layer, "convexity": overall, "convexity_low": low, "convexity_high": high})
        classes.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "label_id": np.arange(n_classes),
                    "label": clips.labels,
                    "n_predicted": np.bincount(predicted_ids, minlength=n_classes),
                    "n_pairs": n_pairs,
                    "convexity": means,
                }
            )
        )
    return pd.DataFrame(layers), pd.concat(classes, ignore_index=True)
