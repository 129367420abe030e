"""Scores by collection, and the scores of a guess from the collection alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.core import lazy
from utils.data import recordings_table

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.data import clips
    from utils.scores import evaluation, intervals

NAME = "scores_by_collection.csv"
UNKNOWN = "unknown"
MEAN = "mean over collections"
ALONE = "knowing the collection alone"


def collections_of(
    recording_ids: Iterable[str], labels: Sequence[str], data_dir: Path, fold: int | None = None
) -> pd.DataFrame:
    """Return the collection of each clip, and the label that one would guess from the collection alone.

    The guess is the most frequent label among the train clips of the collection; of equally frequent labels, the one
    with the lowest id. If the collection is unknown or has no train clip, the guess is that of all train clips.

    Parameters
    ----------
    recording_ids : iterable of str, one per clip
    labels : sequence of str
        By label id.
    data_dir : Path
        Its ``recordings.csv`` gives the collection and the split of each recording; where a split divides recordings,
        its clips tell how many of them are in train.
    fold : int, optional
        The fold that is tested, if the data set has folds.

    Returns
    -------
    DataFrame
        One row per clip: ``collection``, empty if unknown, and ``guessed_id``, the number of labels if there is no
        train clip.
    """
    rows, ids = recordings_table.read_recordings(data_dir, fold), {label: i for i, label in enumerate(labels)}
    of_recording = {row["recording_id"]: row.get("collection") or "" for row in rows}
    in_train = None  # clips of each recording, where a split by clip divides recordings
    if any("|" in row.get("split", "") for row in rows):
        in_train = Counter(clips.read_clips(data_dir, "train", fold=fold).table["recording_id"])
    n_clips: defaultdict[str, Counter[int]] = defaultdict(Counter)  # of train, by collection; "" is all
    for row in rows:
        if "train" in row.get("split", "").split("|") and row.get("label") in ids:
            n_here = int(row["n_clips"]) if in_train is None else in_train[row["recording_id"]]
            for name in {"", of_recording[row["recording_id"]]}:
                n_clips[name][ids[row["label"]]] += n_here
    guess_of = {name: min(counts, key=lambda i: (-counts[i], i)) for name, counts in n_clips.items()}
    collections = [of_recording.get(name, "") for name in recording_ids]
    guesses = [guess_of.get(name, guess_of.get("", len(labels))) for name in collections]
    return pd.DataFrame({"collection": collections, "guessed_id": guesses})


def score(table: pd.DataFrame, collections: pd.DataFrame) -> pd.DataFrame | None:
    """Return the scores of each collection, their mean, and the scores of a guess from the collection alone.

    Parameters
    ----------
    table : DataFrame
        ``label_id, predicted_id, group`` of each clip.
    collections : DataFrame
        As `collections_of` returns it, of the same clips.

    Returns
    -------
    DataFrame or None
        ``collection, n_clips, n_groups, n_labels``, and ``accuracy`` and ``macro_f1`` with their 95 % intervals: one
        row per collection, one of the clips of unknown collection if there are any, then `MEAN` (without the unknown)
        and `ALONE` (of all clips). Macro F1 is over the labels that occur in a row's clips; that of `MEAN` is the mean
        of the rows. None if there are fewer than two collections.
    """
    of_clip = collections["collection"].to_numpy()
    names = sorted(set(of_clip) - {""})
    if len(names) < 2:
        return None
    label_ids, predicted_ids, groups = (table[name].to_numpy() for name in ("label_id", "predicted_id", "group"))

    def row_of(name: str, here: np.ndarray, answers: np.ndarray) -> dict:
        scores = (answers[here] == label_ids[here]).mean(), evaluation.macro_f1(label_ids[here], answers[here])
        ends = [(np.nan, np.nan)] * len(scores)  # of one group, without a warning for each collection
        if len(np.unique(groups[here])) > 1:
            ends = intervals.score_intervals(label_ids[here], answers[here], groups[here]).values()
        return _row(name, here, table, zip(scores, ends, strict=True))

    rows = [row_of(name, of_clip == name, predicted_ids) for name in names]
    if (unknown := of_clip == "").any():
        rows.append(row_of(UNKNOWN, unknown, predicted_ids))
    rows.append(_row(MEAN, ~unknown, table, _mean_over(names, of_clip, label_ids, predicted_ids, groups)))
    rows.append(row_of(ALONE, np.full(len(table), True), collections["guessed_id"].to_numpy()))
    return pd.DataFrame(rows)


def read(folder: Path) -> pd.DataFrame:
    """Return the table of a result, as `score` returned it; a collection may be called ``nan`` or ``1``."""
    return pd.read_csv(folder / NAME, dtype={"collection": str}, keep_default_na=False, na_values=[""])


def _row(name: str, here: np.ndarray, table: pd.DataFrame, scores: Iterable[tuple[float, tuple[float, float]]]) -> dict:
    counts = {"n_clips": int(here.sum()), "n_groups": table["group"][here].nunique()}
    row = {"collection": name, **counts, "n_labels": table["label_id"][here].nunique()}
    for score_name, (value, (low, high)) in zip(intervals.SCORES, scores, strict=True):
        row |= {score_name: float(value), f"{score_name}_low": float(low), f"{score_name}_high": float(high)}
    return row


def _mean_over(
    names: Sequence[str], of_clip: np.ndarray, label_ids: np.ndarray, predicted_ids: np.ndarray, groups: np.ndarray
) -> list[tuple[float, tuple[float, float]]]:
    """Return the mean of each score over collections, with its interval."""
    known = np.unique(groups[of_clip != ""])
    n_classes = int(max(label_ids.max(), predicted_ids.max())) + 1
    counts = [
        intervals.count(label_ids[here], predicted_ids[here], groups[here], known, n_classes)
        for here in (of_clip == name for name in names)
    ]
    means, *ends = mean_interval(intervals.Counts(*(np.stack(of_all) for of_all in zip(*counts, strict=True))))
    return list(zip(means, zip(*ends, strict=True), strict=True))


def mean_interval(counts: intervals.Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of accuracy and of macro F1 over collections, and its interval by the jackknife over all groups.

    Parameters
    ----------
    counts : Counts
        Of shape (n_collections, n_groups, n_classes): the same groups in each collection.

    Returns
    -------
    means, low, high : ndarray, shape (2,)
        The ends are NaN if there is one group.
    """
    found, n_true = intervals.jackknife(counts), counts.n_true.sum(axis=-1)
    means = found.estimate.mean(axis=1)
    if n_true.shape[1] < 2:
        return means, np.full(2, np.nan), np.full(2, np.nan)
    # Without its only group, a collection has no score, and the mean is over the others.
    has_score = np.isfinite(found.left_out)
    left_out = np.nan_to_num(found.left_out).sum(axis=1) / np.maximum(has_score.sum(axis=1), 1)
    # A mean of collections is like macro F1, a mean of labels.
    critical = intervals.critical_values(n_true.T)[1]
    error = intervals.standard_error(left_out)
    return means, *intervals.share_interval(means, error, n_true.shape[1], int(n_true.sum()), critical)
