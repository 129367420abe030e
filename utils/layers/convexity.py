"""Convexity of classes in a layer: graph convexity, and Euclidean convexity by the network's predictions.

Source of both: Tětková et al., "On convex decision regions in deep network representations", arXiv
2305.17154. The code is plain NumPy and SciPy; the network is passed as a function that predicts.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from utils.layers.neighbors import nearest_neighbors
from utils.scores.intervals import share_interval, standard_error

log = logging.getLogger(__name__)

# A sparse matrix has no edge where the distance is zero.
SMALLEST_DISTANCE = 1e-12
FEWEST_SOURCES = 30
MOSTLY_DIRECT = 0.5  # if a greater share of pairs is joined by an edge, convexity is not informative
N_PERMUTATIONS = 20  # of the null level: the standard error of its mean is about 0.003 with 130 groups
# Memory limit of the distances and predecessors of one call of Dijkstra: 64 MiB at 12 bytes per vertex.
DIJKSTRA_BYTES = 2**26


def warn_of_direct_pairs(direct_shares: Sequence[float]) -> None:
    """Warn of layers where most pairs are neighbours: a path without interior points cannot leave a class.

    Parameters
    ----------
    direct_shares : sequence of float
        Share of the pairs that are joined by an edge, by layer.
    """
    shares = np.asarray(direct_shares, dtype=np.float64)
    mostly = np.flatnonzero(shares > MOSTLY_DIRECT)
    if len(mostly):
        log.warning(
            "graph convexity: in %d of %d layers (%s) more than half of the pairs of clips are joined by an edge, up "
            "to %.0f %%; convexity is not informative there, because such a path has no interior points; use more "
            "clips per class, or fewer neighbours (--num_neighbors of 04_analysis.py)",
            *(len(mostly), len(shares), ", ".join(map(str, mostly)), 100 * np.nanmax(shares)),
        )


@dataclass(frozen=True)
class ClassConvexity:
    """Graph convexity of every class; arrays of shape (n_classes,), NaN for a class with fewer than two points.

    Attributes
    ----------
    n_points : ndarray of int
    n_pairs : ndarray of int
        Ordered pairs that were scored: all pairs, or all pairs that begin at a sampled source.
    convexity : ndarray
        Mean score of the pairs, in [0, 1].
    standard_error : ndarray
        std(ddof=1) of the pairs' scores divided by the square root of the number of points.
    sampling_error : ndarray
        Standard error from the sampling of sources alone; 0 where all pairs were scored.
    direct_share, unreachable_share : ndarray
        Share of pairs joined by an edge, which score 1, and of pairs without a path, which score 0.
    null : ndarray
        Convexity expected if labels are permuted between groups; see `permute_labels`.
    """

    n_points: np.ndarray
    n_pairs: np.ndarray
    convexity: np.ndarray
    standard_error: np.ndarray
    sampling_error: np.ndarray
    direct_share: np.ndarray
    unreachable_share: np.ndarray
    null: np.ndarray


@dataclass(frozen=True)
class GraphConvexity:
    """Graph convexity of a layer; NaN where no class has two points.

    Attributes
    ----------
    convexity : float
        Mean over the classes with at least two points: the main result.
    low, high : float
        95 % interval from the jackknife over groups, the graph held fixed; NaN if there is only one group.
    pooled : float
        Mean over the classes, each weighted by its number of possible pairs.
    sampling_error : float
        Standard error of `convexity` from the sampling of sources alone.
    direct_share, unreachable_share, null : float
        Means over the same classes as `convexity`.
    classes : ClassConvexity
    """

    convexity: float
    low: float
    high: float
    pooled: float
    sampling_error: float
    direct_share: float
    unreachable_share: float
    null: float
    classes: ClassConvexity


# ------------------------------------------------------------------------------------- graph convexity


def graph_convexity(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    n_classes: int,
    k: int = 10,
    num_pairs: int = 5000,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> GraphConvexity:
    """Return how far the shortest paths between points of a class stay in the class.

    The score of a pair of points is the share of interior points of its shortest path in `knn_graph` that
    belong to its class. It is 1 if the two points are joined by an edge, and 0 if there is no path. If a
    class has at most `num_pairs` ordered pairs, all are scored. In a larger class sources are drawn without
    replacement: at least 30, and enough for `num_pairs`. One run of Dijkstra's algorithm scores a source with
    all other points of the class. Every source has the same number of targets and the same probability, so
    the mean is unbiased. Its standard error is std(means of sources, ddof=1) / √m · √(1 - m / n_c) for m of
    n_c sources (Cochran, "Sampling Techniques", 1977, eq. 2.20, 9A.3).

    The null level is the mean over permutations of the labels between groups; see `permute_labels`. The shortest paths
    do not depend on labels, so those from the sources serve all permutations. Where sources were sampled, each counts
    as many times as there are points of its class for a source.

    Where features are equal, the order of the rows decides: duplicates are joined to their first k copies. In
    a constant layer all paths lead through the first k rows. A score then depends on the classes of these
    rows and not on the layer; the mean over classes stays near its null.

    Parameters
    ----------
    features : ndarray of float, shape (n, d)
        One row per clip; finite.
    labels : ndarray of int, shape (n,)
        Classes, 0 to `n_classes` - 1.
    groups : ndarray, shape (n,)
        Group of each clip, such as its recordist; the interval is over groups. Any sortable values.
    n_classes : int
    k : int
        Neighbours of each clip in the graph.
    num_pairs : int
        Sources are sampled in a class with more ordered pairs than this.
    seed : int
        Seed of the sources and of the null level.
    n_permutations : int
        Permutations of the null level; it is NaN with 0.

    Raises
    ------
    InputError
        If a feature is not finite, or there are `k` rows or fewer.
    """
    graph = knn_graph(features, k)
    return convexity_of_graph(graph, labels, groups, n_classes, num_pairs, seed, n_permutations)


def knn_graph(features: np.ndarray, k: int) -> csr_array:
    """Return the undirected union graph of the k nearest Euclidean neighbours.

    Two points are joined if either is among the k nearest of the other. The weight is their distance, or
    1e-12 where it is 0, so that duplicates stay joined.

    Parameters
    ----------
    features : ndarray of float, shape (n, d)
    k : int

    Returns
    -------
    csr_array of float64, shape (n, n)
        Symmetric.

    Raises
    ------
    InputError
        If a feature is not finite, or there are `k` rows or fewer.
    """
    indices, distances = nearest_neighbors(features, k)
    n = len(indices)
    weights = np.where(distances > 0, distances, SMALLEST_DISTANCE)
    ends = indices.ravel().astype(np.int32), np.arange(0, n * k + 1, k, np.int32)
    directed = csr_array((weights.ravel(), *ends), shape=(n, n))
    return csr_array(directed.maximum(directed.T))


def convexity_of_graph(
    graph: csr_array,
    labels: np.ndarray,
    groups: np.ndarray,
    n_classes: int,
    num_pairs: int = 5000,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> GraphConvexity:
    """Return the convexity of classes in a given graph, symmetric with positive weights; see `graph_convexity`."""
    labels = np.asarray(labels)
    n_points = np.bincount(labels, minlength=n_classes)
    there = n_points >= 2
    rng = np.random.default_rng(seed)
    sources = np.concatenate([_draw_sources(np.flatnonzero(labels == c), num_pairs, rng) for c in range(n_classes)])
    permuted = permute_labels(labels, groups, n_permutations, seed)
    (source, target, score, n_interior), null = _score_pairs(graph, labels, sources, permuted, n_classes)

    class_of_pair = labels[source]
    n_pairs = np.bincount(class_of_pair, minlength=n_classes)

    def class_means(values: np.ndarray) -> np.ndarray:
        return _ratio(np.bincount(class_of_pair, values, n_classes), n_pairs)

    convexity = class_means(score)
    spread = np.bincount(class_of_pair, (score - convexity[class_of_pair]) ** 2, n_classes)
    null[~there] = np.nan
    classes = ClassConvexity(
        n_points=n_points,
        n_pairs=n_pairs,
        convexity=convexity,
        standard_error=np.sqrt(_ratio(spread, n_pairs - 1.0)) / np.sqrt(np.maximum(n_points, 1)),
        sampling_error=np.where(there, _sampling_errors(source, score, labels, n_points), np.nan),
        direct_share=class_means(n_interior == 0),
        unreachable_share=class_means(n_interior < 0),
        null=null,
    )

    def overall(values: np.ndarray) -> float:
        known = values[there & np.isfinite(values)]  # a class can lack a null level
        return float(known.mean()) if len(known) else float("nan")

    possible = n_points[there] * (n_points[there] - 1.0)
    low, high = pair_interval(source, target, score, labels, groups)
    return GraphConvexity(
        convexity=overall(convexity),
        low=low,
        high=high,
        pooled=float(np.average(convexity[there], weights=possible)) if there.any() else float("nan"),
        sampling_error=float(np.sqrt(overall(classes.sampling_error**2) / max(1, there.sum()))),
        direct_share=overall(classes.direct_share),
        unreachable_share=overall(classes.unreachable_share),
        null=overall(null),
        classes=classes,
    )


def permute_labels(labels: np.ndarray, groups: np.ndarray, n_permutations: int, seed: int = 0) -> np.ndarray:
    """Permute labels between groups: clips that share a group and a label get one label, that of another such unit.

    Clips of one recordist resemble each other whatever their label. A permutation of clips would part them, and its
    level would be two to three times too low. A recordist with several species is one unit per species, so the clips of
    each species keep a common label, and two units of the recordist are as likely to get the same label as any two.

    Units differ in size, and a unit gets one label, whatever its size. So each label keeps its number of units, and its
    number of clips varies between permutations around the mean for this number of units: in `birds20` 17.6 clips per
    label with a standard deviation of 5, in the data 2. If the units of one recordist could not get the same label, the
    level there would be lower by 0.003 to 0.018, so this one is on the safe side.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    groups : ndarray, shape (n,)
        Any sortable values.
    n_permutations : int
    seed : int

    Returns
    -------
    ndarray of int, shape (n_permutations, n)
    """
    group_index = np.unique(groups, return_inverse=True)[1]
    units, unit_of_clip = np.unique(np.column_stack([group_index, labels]), axis=0, return_inverse=True)
    rng = np.random.default_rng((seed, 1))  # its own, so that sources do not depend on the number of permutations
    drawn = rng.permuted(np.tile(units[:, 1], (n_permutations, 1)), axis=1)
    return drawn[:, unit_of_clip.ravel()]


def _draw_sources(points: np.ndarray, num_pairs: int, rng: np.random.Generator) -> np.ndarray:
    n_targets = len(points) - 1
    if n_targets < 1:
        return points[:0]
    if len(points) * n_targets <= num_pairs:
        return points
    n_sources = min(len(points), max(FEWEST_SOURCES, -(-num_pairs // n_targets)))
    return np.sort(rng.choice(points, n_sources, replace=False))


def _score_pairs(
    graph: csr_array, labels: np.ndarray, sources: np.ndarray, permuted: np.ndarray, n_classes: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Score the pairs from the sources, and those of permuted labels on the same paths.

    Returns
    -------
    pairs : (ndarray, ndarray, ndarray, ndarray)
        Source, target, score and number of interior vertices (-1 if unreachable) of every scored pair.
    null : ndarray of float64, shape (n_classes,)
        Mean over the permutations of the convexity of each class; NaN if no permutation gives it a pair.
    """
    n_sources = np.bincount(labels[sources], minlength=n_classes)
    weights = np.divide(
        np.bincount(labels, minlength=n_classes), n_sources, where=n_sources > 0, out=np.zeros(n_classes)
    )
    n_at_once = max(1, DIJKSTRA_BYTES // (12 * graph.shape[0]))
    parts, sums = [], np.zeros((2, len(permuted), n_classes))
    for begin in range(0, len(sources), n_at_once):
        chunk = sources[begin : begin + n_at_once]
        # The matrix is symmetric, so both directions are equal; directed=True avoids a transposed copy in SciPy.
        _, predecessors = dijkstra(graph, directed=True, indices=chunk, return_predecessors=True)
        row, target = _pairs_of(chunk, labels)
        parts.append((chunk[row], target, *_walk(predecessors, chunk, row, target, labels)))
        for number, of_permutation in enumerate(permuted):
            row, target = _pairs_of(chunk, of_permutation)
            score, _ = _walk(predecessors, chunk, row, target, of_permutation)
            weight = weights[labels[chunk[row]]]
            for total, values in zip(sums, (weight * score, weight), strict=True):
                total[number] += np.bincount(of_permutation[target], values, n_classes)
    levels = _ratio(*sums)
    n_levels = np.isfinite(levels).sum(axis=0)
    null = _ratio(np.nan_to_num(levels).sum(axis=0), n_levels)
    if not parts:
        return (np.empty(0, int), np.empty(0, int), np.empty(0), np.empty(0, int)), null
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), null


def _pairs_of(chunk: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of a source with another point of its class, as row of the chunk and target."""
    members = np.argsort(labels, kind="stable")
    n_points = np.bincount(labels)
    first_member = np.cumsum(n_points) - n_points
    n_targets = n_points[labels[chunk]]
    row = np.repeat(np.arange(len(chunk)), n_targets)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(n_targets) - n_targets, n_targets)
    target = members[first_member[labels[chunk]][row] + rank]
    other = target != chunk[row]
    return row[other], target[other]


def _walk(
    predecessors: np.ndarray, chunk: np.ndarray, row: np.ndarray, target: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Walk all paths back from target to source; return scores and numbers of interior vertices."""
    source = chunk[row]
    at = predecessors[row, target]
    reached = at >= 0
    n_interior, n_inside = np.zeros(len(row), int), np.zeros(len(row), int)
    walking = np.flatnonzero(reached & (at != source))
    while len(walking):
        vertex, start = at[walking], source[walking]
        n_interior[walking] += 1
        n_inside[walking] += labels[vertex] == labels[start]
        vertex = predecessors[row[walking], vertex]
        at[walking] = vertex
        walking = walking[vertex != start]
    score = np.where(n_interior > 0, n_inside / np.maximum(n_interior, 1), reached)
    return score, np.where(reached, n_interior, -1)


def _sampling_errors(source: np.ndarray, score: np.ndarray, labels: np.ndarray, n_points: np.ndarray) -> np.ndarray:
    n_classes = len(n_points)
    sources, source_of_pair = np.unique(source, return_inverse=True)
    means = _ratio(np.bincount(source_of_pair, score), np.bincount(source_of_pair))
    class_of_source = labels[sources]
    n_sources = np.bincount(class_of_source, minlength=n_classes)
    class_means = _ratio(np.bincount(class_of_source, means, n_classes), n_sources)
    spread = np.bincount(class_of_source, (means - class_means[class_of_source]) ** 2, n_classes)
    variance = _ratio(spread, (n_sources - 1.0) * n_sources)
    return np.sqrt(variance * (1 - n_sources / np.maximum(n_points, 1)))


def pair_interval(
    source: np.ndarray, target: np.ndarray, score: np.ndarray, class_ids: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Return the 95 % interval of the mean over classes of the pairs' scores, from the jackknife over groups.

    A group is left out with all pairs that have an end in it; the graph, and so the score of the other pairs, stays as
    it is. The mean of pairs is a U-statistic, for which this jackknife is consistent (Arvesen, "Jackknifing
    U-statistics", Annals of Mathematical Statistics 40, 1969). See `intervals.share_interval` for the interval.

    Parameters
    ----------
    source, target : ndarray of int, shape (n_pairs,)
        Points at the ends of each pair.
    score : ndarray of float, shape (n_pairs,)
        In [0, 1].
    class_ids : ndarray of int, shape (n,)
        Class of every point; both ends of a pair have the same class.
    groups : ndarray, shape (n,)
        Group of every point.

    Returns
    -------
    low, high : float
        NaN if there is only one group or no pair, or if no pair is left without a group.
    """
    names, group_index = np.unique(groups, return_inverse=True)
    if len(names) < 2 or not len(source):
        return float("nan"), float("nan")
    first, second, class_of_pair = group_index[source], group_index[target], class_ids[source]
    shape = len(names), int(class_of_pair.max()) + 1

    def with_group(values: np.ndarray) -> np.ndarray:
        """Return the sums of the pairs that have an end in a group, by group and class."""
        sums = [
            np.bincount(group * shape[1] + class_of_pair, values * is_new, shape[0] * shape[1])
            for group, is_new in ((first, 1.0), (second, first != second))
        ]
        return sum(sums).reshape(shape)

    def mean_over_classes(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return _ratio(np.nan_to_num(_ratio(sums, counts)).sum(axis=-1), (counts > 0).sum(axis=-1))

    ones = np.ones(len(score))
    sums, counts = (np.bincount(class_of_pair, values, shape[1]) for values in (score, ones))
    left_out = mean_over_classes(sums - with_group(score), counts - with_group(ones))
    left_out = left_out[np.isfinite(left_out)]
    if len(left_out) < 2:  # without any group there is no pair
        return float("nan"), float("nan")
    n_points = len(np.union1d(source, target))
    low, high = share_interval(mean_over_classes(sums, counts), standard_error(left_out), len(names), n_points)
    return float(low), float(high)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


# --------------------------------------------------------------------------------- Euclidean convexity


def sample_pairs(class_ids: np.ndarray, num_pairs_per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Draw unordered pairs of points of the same class without replacement; all pairs where there are fewer.

    Parameters
    ----------
    class_ids : ndarray of int, shape (n,)
    num_pairs_per_class : int
    rng : Generator

    Returns
    -------
    ndarray of int64, shape (n_pairs, 2)
        Indices of the points of each pair, the lower one first; sorted by class. A class with fewer than two
        points has no pairs.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for c in np.unique(class_ids):
        points = np.flatnonzero(class_ids == c)
        n_possible = len(points) * (len(points) - 1) // 2
        drawn = np.sort(rng.choice(n_possible, min(num_pairs_per_class, n_possible), replace=False))
        # Pair p of the triangle 01, 02, 12, 03, 13, 23, …
        second = ((1 + np.sqrt(1 + 8 * drawn)) / 2).astype(np.int64)
        pairs.append(np.column_stack([points[drawn - second * (second - 1) // 2], points[second]]))
    return np.concatenate(pairs)


def euclidean_scores(
    predict_at: Callable[[float], np.ndarray], class_ids: np.ndarray, num_points: int = 10
) -> np.ndarray:
    """Return, for each pair of clips of a class, the share of the segment between them predicted as that class.

    The segment joins the hidden states of two clips at one layer. The rest of the network predicts from
    `num_points` equidistant points between them, without the ends. The mean over the pairs of a class is its
    Euclidean convexity (arXiv 2305.17154).

    Parameters
    ----------
    predict_at : callable
        Maps a share s, 0 to 1, to the classes predicted from s · first + (1 - s) · second of every pair,
        shape (n_pairs,).
    class_ids : ndarray of int, shape (n_pairs,)
        Class id of both ends in the network.
    num_points : int
        Points on each segment.

    Returns
    -------
    ndarray of float64, shape (n_pairs,)
        In [0, 1].
    """
    shares = np.arange(1, num_points + 1) / (num_points + 1)
    return np.mean([np.asarray(predict_at(float(share))) == class_ids for share in shares], axis=0)
