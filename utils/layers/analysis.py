"""Tables of every layer from its hidden states: convexity, similarity, influence, probes, and their nulls.

A similarity of layers is one entry of `SIMILARITIES`: 04 offers, measures, writes and draws every entry.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.core import lazy
from utils.core.errors import InputError
from utils.core.text import some

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.layers import convexity, probes, similarity
    from utils.scores import evaluation, intervals


if TYPE_CHECKING:
    from utils.layers.hidden_states import HiddenStates

log = logging.getLogger(__name__)

NUM_NEIGHBORS = 10  # of a clip, by default
NUM_PAIRS = 5000  # of clips of a class, by default
OF_CLASSES = ("graph_convexity", "euclidean_convexity", "probe")
OF_FRAMES = ("block_influence", "angular_distance", "linear_residual")


@dataclass(frozen=True)
class Similarity:
    """A metric that compares layers.

    Attributes
    ----------
    title : str
        Its name in figures.
    compare : callable
        Takes the states, shape (n_layers_a + 1, n_clips, size_a), the states of the same clips in another model or
        None, the table of the clips, a number of neighbours and a seed. Returns the matrix of all pairs of layers,
        and the matrix that is expected of unrelated layers, each of shape (n_layers_a + 1, n_layers_b + 1).
    between_models : bool
        Whether it can compare two models: a rotation of a model's axes does not change it.
    by_default : bool
        Whether it is measured if --metrics is not given.
    null_model : str
        What two unrelated layers are, for the null level.
    """

    title: str
    compare: Callable[[np.ndarray, np.ndarray | None, pd.DataFrame, int, int], tuple[np.ndarray, np.ndarray]]
    between_models: bool
    by_default: bool
    null_model: str


def _units_of(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["recording_id"].to_numpy(), table["group"].to_numpy()


def _cka(kind: str) -> Callable:
    def compare(states, other, table, num_neighbors, seed):
        return similarity.cka_and_null(states, other, kind, *_units_of(table), seed=seed)

    return compare


def _mutual_knn(states, other, table, num_neighbors, seed):
    return similarity.mutual_knn_and_null(states, other, num_neighbors, *_units_of(table))


def _cosine(states, other, table, num_neighbors, seed):
    return similarity.cosine(states)[0], similarity.cosine_null(states)


OF_GROUPS = "independent layers that know the recording and the group of a clip"
SIMILARITIES = {
    "cka": Similarity("CKA", _cka("debiased"), True, True, OF_GROUPS),
    "cka_biased": Similarity("CKA, biased", _cka("biased"), True, False, OF_GROUPS),
    "cka_rbf": Similarity("CKA, RBF kernel", _cka("rbf"), True, False, OF_GROUPS),
    "mutual_knn": Similarity(
        *("mutual kNN", _mutual_knn, True, True),
        "neighbours shuffled among clips of the same recording, others of the same group, and clips of other groups",
    ),
    "cosine": Similarity("cosine", _cosine, False, True, "all clips shuffled"),
}
BETWEEN_MODELS = tuple(name for name, metric in SIMILARITIES.items() if metric.between_models)
METRICS = (*OF_CLASSES, *SIMILARITIES, *OF_FRAMES)
ON_REQUEST = (
    "euclidean_convexity",
    *(name for name, metric in SIMILARITIES.items() if not metric.by_default),
)


# ---------------------------------------------------------------------------------------------- classes


def convexity_of_layers(
    hidden: HiddenStates,
    n_classes: int,
    num_neighbors: int,
    num_pairs: int,
    seed: int,
    n_permutations: int | None = None,
) -> list[convexity.GraphConvexity]:
    """Return the graph convexity of every layer, and warn where it is not informative; see `convexity`."""
    label_ids, groups = hidden.table["label_id"].to_numpy(), hidden.table["group"].to_numpy()
    n_permutations = convexity.N_PERMUTATIONS if n_permutations is None else n_permutations
    how = (n_classes, num_neighbors, num_pairs, seed, n_permutations)
    found = [convexity.graph_convexity(states, label_ids, groups, *how) for states in hidden.pooled]
    convexity.warn_of_direct_pairs([of_layer.direct_share for of_layer in found])
    return found


def graph_convexity(
    hidden: HiddenStates, labels: list[str], num_neighbors: int, num_pairs: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the graph convexity of every layer, and of every layer and class; see `convexity.graph_convexity`.

    Returns
    -------
    layers : DataFrame
        ``layer, convexity, convexity_low, convexity_high, null_of_groups, pooled_convexity, sampling_error,
        direct_share, unreachable_share, mostly_direct``; the last marks layers where convexity is not informative.
    classes : DataFrame
        ``layer, label_id, label, n_clips, n_pairs, convexity, standard_error, sampling_error, null_of_groups,
        direct_share, unreachable_share``. ``null_of_groups`` is the mean over permutations of the labels between
        groups; see `convexity.permute_labels`.

    Raises
    ------
    InputError
        If no class has two clips, or if the number of clips is not larger than the number of neighbours.
    """
    n_clips = np.bincount(hidden.table["label_id"], minlength=len(labels))
    alone = [label for label, n in zip(labels, n_clips, strict=True) if n < 2]
    if len(alone) == len(labels):
        raise InputError(
            "graph convexity compares clips of the same class, but no class has two clips here; choose a larger --split"
        )
    if alone:
        log.warning(
            "%d of %d classes have fewer than two clips and no convexity: %s", len(alone), len(labels), some(alone)
        )
    layers, classes = [], []
    for layer, found in enumerate(convexity_of_layers(hidden, len(labels), num_neighbors, num_pairs, seed)):
        layers.append(
            {
                "layer": layer,
                "convexity": found.convexity,
                "convexity_low": found.low,
                "convexity_high": found.high,
                "null_of_groups": found.null,
                "pooled_convexity": found.pooled,
                "sampling_error": found.sampling_error,
                "direct_share": found.direct_share,
                "unreachable_share": found.unreachable_share,
                "mostly_direct": found.direct_share > convexity.MOSTLY_DIRECT,
            }
        )
        per_class = found.classes
        classes.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "label_id": np.arange(len(labels)),
                    "label": labels,
                    "n_clips": per_class.n_points,
                    "n_pairs": per_class.n_pairs,
                    "convexity": per_class.convexity,
                    "standard_error": per_class.standard_error,
                    "sampling_error": per_class.sampling_error,
                    "null_of_groups": per_class.null,
                    "direct_share": per_class.direct_share,
                    "unreachable_share": per_class.unreachable_share,
                }
            )
        )
    return pd.DataFrame(layers), pd.concat(classes, ignore_index=True)


def probe(hidden: HiddenStates, train: HiddenStates | None, seed: int) -> pd.DataFrame:
    """Return the scores of a linear probe on every layer; see `probes`.

    Parameters
    ----------
    hidden : HiddenStates
        Clips to score.
    train : HiddenStates or None
        Clips to train on. None cross-validates over the groups of `hidden`.
    seed : int
        Seed of the folds.

    Returns
    -------
    DataFrame
        ``layer, accuracy, accuracy_low, accuracy_high, macro_f1, macro_f1_low, macro_f1_high, majority``; majority
        is the share of the most frequent class among the clips to score: no constant answer has a higher accuracy.

    Raises
    ------
    InputError
        If the clips to train on have fewer than two classes, or no class of the clips to score.
    """
    label_ids, groups = hidden.table["label_id"].to_numpy(), hidden.table["group"].to_numpy()
    train_ids = label_ids if train is None else train.table["label_id"].to_numpy()
    probes.check_classes(train_ids)
    known = np.isin(label_ids, train_ids)
    if not known.any():
        raise InputError(
            "no clip of this split has a label of the train clips, so a probe cannot be scored; "
            "leave probe out of --metrics, or run 01_data_processing.py with other fractions"
        )
    if not known.all():
        log.warning(
            "%d of %d clips have a label that no train clip has: a probe gets them wrong", (~known).sum(), len(known)
        )
    rows = []
    for layer, states in enumerate(hidden.pooled):
        if train is None:
            predicted_ids = probes.cross_validate(states, label_ids, groups, seed)
        else:
            predicted_ids = probes.fit_and_predict(train.pooled[layer], train_ids, states)
        ends = intervals.score_intervals(label_ids, predicted_ids, groups)
        scores = {
            "accuracy": float((predicted_ids == label_ids).mean()),
            "macro_f1": evaluation.macro_f1(label_ids, predicted_ids),
        }
        row = {"layer": layer}
        for name, value in scores.items():
            row |= {name: value, f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
        rows.append(row | {"majority": np.bincount(label_ids).max() / len(label_ids)})
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class LayerSimilarity:
    """A similarity of all pairs of layers.

    Attributes
    ----------
    matrix, null : ndarray of float64, shape (n_layers_a + 1, n_layers_b + 1)
        The similarity, and the similarity that is expected of unrelated layers; see `Similarity.null_model`.
    blocks : TwoBlocks or None
        The two blocks of the matrix of one model; None for two models, and if there is no boundary.
    """

    matrix: np.ndarray
    null: np.ndarray
    blocks: similarity.TwoBlocks | None


def similarity_of_layers(
    metric: str, states: np.ndarray, other: np.ndarray | None, table: pd.DataFrame, num_neighbors: int, seed: int
) -> LayerSimilarity:
    """Compare all pairs of layers of one model, or all layers of one with all of another.

    Parameters
    ----------
    metric : str
        One of `SIMILARITIES`; with `other`, of `BETWEEN_MODELS`.
    states : ndarray of float32, shape (n_layers_a + 1, n_clips, size_a)
    other : ndarray of float32, shape (n_layers_b + 1, n_clips, size_b), or None
        States of the same clips in another model.
    table : DataFrame
        ``recording_id`` and ``group`` of the clips.
    num_neighbors : int
        Neighbours of each clip in mutual kNN.
    seed : int
        Seed of the sample of clips that sets the width of the RBF kernel; see `similarity.cka`.
    """
    matrix, null = SIMILARITIES[metric].compare(states, other, table, num_neighbors, seed)
    return LayerSimilarity(matrix, null, similarity.two_block_boundary(matrix) if other is None else None)


def influence(cosine: np.ndarray | None, knn: LayerSimilarity | None) -> pd.DataFrame:
    """Return the influence of every block.

    ``layer``, and where measured ``block_influence, knn_block_influence, knn_block_influence_null``; the last is that
    of a block whose input and output are unrelated.

    Parameters
    ----------
    cosine : ndarray, shape (n_layers + 1, n_layers + 1), or None
        Mean cosine of frames between layers.
    knn : LayerSimilarity or None
        Mutual kNN of the layers.
    """
    known = {"block_influence": cosine}
    if knn is not None:
        known |= {"knn_block_influence": knn.matrix, "knn_block_influence_null": knn.null}
    columns = {name: similarity.block_influence(matrix) for name, matrix in known.items() if matrix is not None}
    return pd.DataFrame(columns).rename_axis(index="layer").reset_index()


def mean_over_clips(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis, computed in float64."""
    return values.mean(axis=0, dtype=np.float64)


def table_of_runs(**columns: np.ndarray) -> pd.DataFrame:
    """Return numbers of every run of blocks, as ``first_layer, n_layers`` and one column for each argument.

    Parameters
    ----------
    columns : ndarray, shape (n_layers + 1, n_layers + 1)
        Entry [i, j], i < j, is that of the run between hidden layers i and j.
    """
    n_layers = len(next(iter(columns.values()))) - 1
    return pd.DataFrame(
        [
            {"first_layer": first, "n_layers": n} | {name: values[first, first + n] for name, values in columns.items()}
            for n in range(1, n_layers + 1)
            for first in range(n_layers - n + 1)
        ]
    )


def two_block_boundaries(similarities: dict[str, LayerSimilarity]) -> dict[str, dict | None]:
    """Return the two blocks of each similarity, by metric; ready for JSON."""
    return {name: found.blocks and dataclasses.asdict(found.blocks) for name, found in similarities.items()}
