"""Exact nearest neighbours of feature vectors, the same on any machine and with any number of threads."""

import numpy as np

from utils.core.errors import InputError

METRICS = ("euclidean", "cosine")
# Memory limit of a block of keys and of a block of differences: 64 MiB each, for any number of clips.
BLOCK_BYTES = 2**26
# Candidates beyond k. With these the bound on the rounding error decides nearly every row.
MARGIN = 16
# Rows that are ranked together where the bound does not decide.
N_POSSIBLE = 512


def nearest_neighbors(features: np.ndarray, k: int, metric: str = "euclidean") -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest other rows of every row, nearest first.

    The result is exact. A matrix product in float32 gives a key for each pair: a lower bound of the squared
    distance, with the largest possible rounding error subtracted. The rows with the smallest keys are the
    candidates. They are ranked by direct differences in float64, which do not cancel for near duplicates. A
    row is done if the bounds of all other rows are above its k-th distance. If not, all rows that the bounds
    allow are ranked. Rows at the same distance are ordered by index, so the result does not depend on threads
    or blocks. A row is never its own neighbour: it is excluded by index, also where it has duplicates.

    The bound: a product of d terms in float32 has an error of at most d u / (1 - d u) |a| |b|, u = 2^-24, in
    any order of summation (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
    Features are centred first. This changes no Euclidean distance and makes the bound tighter.

    Parameters
    ----------
    features : ndarray of float, shape (n, d)
        One row per clip; finite.
    k : int
        Neighbours of each row, 1 to n - 1.
    metric : {"euclidean", "cosine"}
        For ``cosine`` rows are scaled to length 1, not centred, and the distance is 1 - cos. A zero row has
        cosine 0 and distance 1 to every row.

    Returns
    -------
    indices : ndarray of int64, shape (n, k)
    distances : ndarray of float64, shape (n, k)

    Raises
    ------
    InputError
        If a feature is not finite, or there are `k` rows or fewer.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}, expected one of {', '.join(METRICS)}")
    n, d = features.shape
    if not 1 <= k < n:
        raise InputError(
            f"cannot find {k} nearest neighbours among {n} clips: expected at least 1 and fewer than the number of "
            "clips; give a smaller --num_neighbors or more clips"
        )
    points = _Points(features, metric)
    left, right, offsets = points.key_factors()
    n_candidates = min(k + MARGIN, n - 1)
    n_rows = max(1, BLOCK_BYTES // (4 * n))
    n_ranked = max(1, BLOCK_BYTES // (8 * d * n_candidates))
    indices = np.empty((n, k), np.int64)
    squared = np.empty((n, k))
    for start in range(0, n, n_rows):
        keys = left[start : start + n_rows] @ right.T
        keys *= -2
        keys += offsets
        rows = np.arange(start, start + len(keys))
        keys[np.arange(len(keys)), rows] = np.inf
        candidates = np.argpartition(keys, n_candidates - 1, axis=1)[:, :n_candidates]
        # The key of every other row is at least the largest key of the candidates.
        bounds = np.take_along_axis(keys, candidates, axis=1).max(axis=1) + points.squares[rows]
        candidates.sort(axis=1)
        for part in np.split(np.arange(len(keys)), range(n_ranked, len(keys), n_ranked)):
            exact = points.squared_distances(rows[part, None], candidates[part])
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            indices[rows[part]] = np.take_along_axis(candidates[part], order, axis=1)
            squared[rows[part]] = np.take_along_axis(exact, order, axis=1)
        if n_candidates == n - 1:
            continue
        for i in np.flatnonzero(bounds <= squared[rows, -1]):
            row, farthest = rows[i], squared[rows[i], -1]
            possible = np.flatnonzero(keys[i] + points.squares[row] <= farthest)
            indices[row], squared[row] = points.nearest_of(row, possible, k, is_copy=farthest == 0)
    return indices, squared / 2 if metric == "cosine" else np.ldexp(np.sqrt(squared), points.exponent)


class _Points:
    """Feature vectors, centred or of length 1, and scaled so that no square overflows.

    Attributes
    ----------
    exponent : int
        A Euclidean distance of the features is 2 to this power times that of the scaled vectors.
    squares : ndarray of float64, shape (n,)
        Squared lengths.
    """

    def __init__(self, features: np.ndarray, metric: str):
        points = features.astype(np.float64)
        if not np.isfinite(points).all():
            bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
            raise InputError(
                f"features of {len(bad)} of {len(points)} clips are not finite, the first in row {bad[0]}; expected "
                "finite numbers: the weights of the model or the clips are broken; create them again"
            )
        # A power of two as the factor causes no rounding.
        self.exponent = int(np.frexp(np.abs(points).max(initial=0.0))[1])
        points = np.ldexp(points, -self.exponent)
        if metric == "euclidean":
            points -= points.mean(axis=0)
            self._zero = np.zeros(len(points))
            self._lengths = np.linalg.norm(points, axis=1)
            self.squares = self._lengths**2
        else:
            # Scale twice: the first time makes a tiny row so large that its square does not underflow.
            points /= _or_one(np.abs(points).max(axis=1))[:, None]
            lengths = np.linalg.norm(points, axis=1)
            self._zero = (lengths == 0).astype(np.float64)
            points /= _or_one(lengths)[:, None]
            self._lengths, self.squares = np.ones(len(points)), np.ones(len(points))
        self._points = points

    def key_factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the factors of the keys, and the offsets of their columns, all float32.

        The key of a pair is |b|^2 - 2 ab - error |a| |b|; the last column of the product holds the error.
        """
        d, unit = self._points.shape[1], 2.0**-24
        error = 1.05 * (d + 8) * unit
        left = np.column_stack([self._points, self._lengths]).astype(np.float32)
        right = np.column_stack([self._points, error * self._lengths]).astype(np.float32)
        offsets = (self.squares * (1 - 8 * unit)).astype(np.float32) - np.float32(d) * np.finfo(np.float32).tiny
        return left, right, offsets

    def squared_distances(self, rows: np.ndarray | int, others: np.ndarray) -> np.ndarray:
        """Return exact squared distances between rows; the two arrays of indices are broadcast."""
        differences = self._points[others]
        differences -= self._points[rows]
        # Without the added terms a zero row would be at half the squared distance of two orthogonal unit vectors.
        return np.einsum("...d,...d->...", differences, differences) + self._zero[rows] + self._zero[others]

    def nearest_of(self, row: int, possible: np.ndarray, k: int, is_copy: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` nearest of the possible rows and their squared distances; `is_copy`: these are all 0."""
        exact = np.empty(0)
        for first in range(0, len(possible), N_POSSIBLE):
            exact = np.concatenate([exact, self.squared_distances(row, possible[first : first + N_POSSIBLE])])
            if is_copy and (exact == 0).sum() >= k:
                break  # the first k copies of a row are its neighbours, also where there are more
        order = np.argsort(exact, kind="stable")[:k]
        return possible[order], exact[order]


def _or_one(lengths: np.ndarray) -> np.ndarray:
    return np.where(lengths > 0, lengths, 1.0)
