"""Which windows a person reviews: the best, those near the threshold, some at random; the worst mistakes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("best", "threshold", "random")  # in the order of the choice
MOST_ROWS = 2**20  # held before those that cannot be chosen are dropped
ROW = np.dtype([("label_id", "i4"), ("file", "i8"), ("window", "i8"), ("score", "f8"), ("draw", "f8")])


class Chosen(NamedTuple):
    """A window to review: `file` and `window` count from 0, `why` is a key of ``review_page``."""

    label_id: int
    why: str
    file: int
    window: int
    score: float


class Choice:
    """Chooses, per label, the N best windows, N of the others near the threshold, and N of the rest at random.

    The files can come in any order and from any number of workers: the choice is the same. Memory does not grow with
    the number of files.

    Parameters
    ----------
    thresholds : sequence of float
        By label; NaN where a label has none, and then none of its windows is chosen as near to it.
    n : int
        Of each kind, per label.
    seed : int
        Of the draw.
    """

    def __init__(self, thresholds: Sequence[float], n: int, seed: int = 0):
        self.thresholds, self.n, self.seed = np.asarray(thresholds, dtype=np.float64), n, seed
        self._rows = [np.empty(0, ROW)]
        self._n_rows = self._n_needed = 0

    def add(self, file: int, name: str, scores: np.ndarray) -> None:
        """Take the scores of a file.

        Parameters
        ----------
        file : int
            Its place among all files; of two windows with equal scores the one of the first file is chosen.
        name : str
            Its name, on which the draw depends.
        scores : array of float, shape (n_windows, n_labels)
        """
        digest = hashlib.sha256(f"{self.seed} {name}".encode(errors="surrogatepass")).digest()
        draw = np.random.default_rng(int.from_bytes(digest[:8]))
        n_at_once = max(1, MOST_ROWS // max(1, scores.shape[1]))
        for first in range(0, len(scores), n_at_once):
            some = scores[first : first + n_at_once]
            rows = np.empty(some.shape, ROW)
            rows["label_id"], rows["file"] = np.arange(some.shape[1]), file
            rows["window"] = np.arange(first, first + len(some))[:, None]
            rows["score"], rows["draw"] = some, draw.random(some.shape)
            self._rows.append(rows.ravel())
            self._n_rows += rows.size
            if self._n_rows > MOST_ROWS + 2 * self._n_needed:
                self._rows = [self._possible(np.concatenate(self._rows))]
                self._n_rows = self._n_needed = len(self._rows[0])

    def _possible(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows that can be chosen, whatever is added: each kind can lose its first ones to those before."""
        keys = self._keys(rows)
        keys = self._keys(rows)
        return rows[np.any([_first(rows, key, (i + 1) * self.n) for i, key in enumerate(keys.values())], axis=0)]

    def _keys(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        distance = np.abs(rows["score"] - self.thresholds[rows["label_id"]])
        return dict(zip(KINDS, (-rows["score"], distance, rows["draw"]), strict=True))

    def chosen(self) -> list[Chosen]:
        """Return the windows by label, kind and falling score; a window at most once per label."""
        rows, found = np.concatenate(self._rows), []
        for number, why in enumerate(KINDS):
            is_chosen = _first(rows, self._keys(rows)[why], self.n)
            found += [
                (label_id, number, -score, file, window)
                for label_id, file, window, score, _ in rows[is_chosen].tolist()
            ]
            rows = rows[~is_chosen]
        return [
            Chosen(label_id, KINDS[number], file, window, -below)
            for label_id, number, below, file, window in sorted(found)
        ]


def _first(rows: np.ndarray, keys: np.ndarray, n: int) -> np.ndarray:
    """Return whether each row is among the `n` of its label with the lowest keys; a row without a key is not."""
    order = np.lexsort((rows["window"], rows["file"], keys, rows["label_id"]))
    order = order[~np.isnan(keys[order])]
    labels = rows["label_id"][order]
    rank = np.arange(len(order)) - np.searchsorted(labels, labels)
    is_first = np.zeros(len(rows), dtype=bool)
    is_first[order[rank < n]] = True
    return is_first


def worst_mistakes(scores: np.ndarray, is_true: np.ndarray, is_predicted: np.ndarray, n: int) -> list[Chosen]:
    """Return, per label, the `n` clips with the highest scores among those for which the label is predicted wrongly.

    Parameters
    ----------
    scores : array of float, shape (n_clips, n_labels)
    is_true, is_predicted : array of bool, shape (n_clips, n_labels)
    n : int

    Returns
    -------
    list of Chosen
        By label and falling score; `window` is the number of the clip, `file` is 0.
    """
    found = []
    for label_id in range(scores.shape[1]):
        wrong = np.flatnonzero(is_predicted[:, label_id] & ~is_true[:, label_id])
        worst = wrong[np.argsort(-scores[wrong, label_id], kind="stable")][:n]
        found += [Chosen(label_id, "mistake", 0, int(clip), float(scores[clip, label_id])) for clip in worst]
    return found
