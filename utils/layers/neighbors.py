"""Exact nearest neighbours of feature vectors, block by block, the same on any machine and number of threads."""

import numpy as np

from utils.core.errors import InputError

METRICS = ("euclidean", "cosine")
# Bounds a block of keys, and one of differences, in memory: 64 MiB each, whatever the number of clips.
BLOCK_BYTES = 2**26
# Candidates beyond k: enough that the bound on the rounding error settles nearly every row.
MARGIN = 16
# Rows ranked at once where the bound does not settle it, which may be all of them.
N_POSSIBLE = 512


def nearest_neighbors(features: np.ndarray, k: int, metric: str = "euclidean") -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest other rows of every row, nearest first.

    Exact: candidates come from a matrix product in float32, whose keys are lower bounds of the squared
    distances, the largest possible rounding error taken off; the candidates are ranked by direct
    differences in float64, which do not cancel for near duplicates. A row is done if the bound of every
    other row lies above its k-th distance; if not, all rows that the bounds leave possible are ranked.
    Rows at the same distance come in the order of their indices, so that nothing depends on threads or
    blocks. A row is never its own neighbour, whatever its duplicates: it is left out by index.

    The bound: a product of d terms in float32 errs by at most d u / (1 - d u) |a| |b|, u = 2^-24, in any
    order of summation (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
    Features are centred first, which changes no Euclidean distance and makes it narrow.

    Parameters
    ----------
    features : ndarray of float, shape (n, d)
        A row a clip, finite.
    k : int
        Neighbours of each row, 1 to n - 1.
    metric : {"euclidean", "cosine"}
        For ``cosine`` rows are scaled to length 1, not centred, and the distance is 1 - cos; a zero row
        is at cosine 0, distance 1, from all.

    Returns
    -------
    indices : ndarray of int64, shape (n, k)
    distances : ndarray of float64, shape (n, k)

    Raises
    ------
    InputError
        If a feature is not finite, or there are not more than `k` rows.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}, expected one of {', '.join(METRICS)}")
    n, d = features.shape
    if not 1 <= k < n:
        raise InputError(
            f"{k} nearest neighbours asked for, of {n} clips: expected at least 1 and fewer than there are clips; "
            "give a smaller --num_neighbors or more clips"
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
        # All other rows have a key that is no less than the largest of the candidates'.
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
    """Feature vectors at a scale where no square overflows: centred, or of length 1.

    Attributes
    ----------
    exponent : int
        Euclidean distances are 2 to this power times those of the features.
    squares : ndarray of float64, shape (n,)
        Squared lengths.
    """

    def __init__(self, features: np.ndarray, metric: str):
        points = features.astype(np.float64)
        if not np.isfinite(points).all():
            bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
            raise InputError(
                f"features of {len(bad)} of {len(points)} clips are not finite, first that of row {bad[0]}; expected "
                "finite numbers: the model's weights or the clips are broken, make them again"
            )
        # By a power of two, so that no bit changes.
        self.exponent = int(np.frexp(np.abs(points).max(initial=0.0))[1])
        points = np.ldexp(points, -self.exponent)
        if metric == "euclidean":
            points -= points.mean(axis=0)
            self._zero = np.zeros(len(points))
            self._lengths = np.linalg.norm(points, axis=1)
            self.squares = self._lengths**2
        else:
            # Twice: the first time brings a tiny row to a size whose square does not underflow.
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
        """Return exact squared distances, between rows of one shape once broadcast."""
        differences = self._points[others]
        differences -= self._points[rows]
        # A zero row is not at half the distance of two unit vectors at right angles, as it would be here.
        return np.einsum("...d,...d->...", differences, differences) + self._zero[rows] + self._zero[others]

    def nearest_of(self, row: int, possible: np.ndarray, k: int, is_copy: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` nearest of some rows and their squared distances; `is_copy` where these are known to be 0."""
        exact = np.empty(0)
        for first in range(0, len(possible), N_POSSIBLE):
            exact = np.concatenate([exact, self.squared_distances(row, possible[first : first + N_POSSIBLE])])
            if is_copy and (exact == 0).sum() >= k:
                break  # the k first copies of a row are its neighbours, however many there are
        order = np.argsort(exact, kind="stable")[:k]
        return possible[order], exact[order]


def _or_one(lengths: np.ndarray) -> np.ndarray:
    return np.where(lengths > 0, lengths, 1.0)
