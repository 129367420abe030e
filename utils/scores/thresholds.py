"""A threshold for each label, with a target precision on unseen recordists: fitted on val, and checked on other clips.

The rule. At a score, the precision of a label is the share of right clips among all with at least this score. On val,
most labels are of few recordists, so this share alone is too high: the lowest score at which it reaches the target is
chosen by chance. Therefore the precision of a label is estimated from two sources: its own detections, which count as
their effective number of recordists, and the detections of all other labels at the same score, which count as
`N_OTHERS` recordists. The threshold is the lowest score at which the precision is at least the target with a
probability of `SURE`, and at which right detections are of at least `MIN_GROUPS` recordists. Otherwise the label has no
threshold. In simulations (`drills.thresholds`), about this share of the labels with a threshold reach the target on
unseen recordists, and so do all their detections together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.special import betainc

from utils.core.text import counted
from utils.scores import intervals, verdicts

SURE = 0.8
N_OTHERS = 4
MIN_GROUPS = 2
DIGITS = 4  # of a threshold
POOLED = "all labels with a threshold"


def fit(
    scores: np.ndarray, truth: np.ndarray, known: np.ndarray, groups: np.ndarray, target: float
) -> tuple[list[float | None], list[str]]:
    """Return the threshold of each label by the rule above, or None; and why a label has none.

    Parameters
    ----------
    scores : ndarray of float, shape (n_clips, n_classes)
        Calibrated, from 0 to 1, so that scores of different labels can be compared.
    truth, known : ndarray of bool, shape (n_clips, n_classes)
        Whether a clip holds a label; whether this is known.
    groups : ndarray, shape (n_clips,)
        Groups that the split keeps together.
    target : float
        Precision, from 0 to 1.

    Returns
    -------
    thresholds : list of float or None
        Rounded down to `DIGITS`.
    reasons : list of str
        Empty where there is a threshold.
    """
    scores = np.floor(np.asarray(scores) * 10**DIGITS) / 10**DIGITS
    groups = np.unique(groups, return_inverse=True)[1]
    all_scores, all_right = _sorted(scores[known], truth[known])
    n_right_of_all = np.concatenate([[0], np.cumsum(all_right)])
    thresholds: list[float | None] = []
    reasons = []
    for column in range(scores.shape[1]):
        use = known[:, column]
        cuts = cuts_of(scores[use, column], truth[use, column], groups[use])
        n_all = np.searchsorted(-all_scores, -cuts["score"], side="right")
        n_others, right_of_others = n_all - cuts["n"], n_right_of_all[n_all] - cuts["n_right"]
        prior = (right_of_others + 0.5) / (n_others + 1)
        right = cuts["effective"] * cuts["n_right"] / cuts["n"] + N_OTHERS * prior
        wrong = cuts["effective"] + N_OTHERS - right
        sure = 1 - betainc(right, wrong, target)
        enough = (cuts["n_groups_right"] >= MIN_GROUPS) & (cuts["score"] > 0)
        fits = np.flatnonzero((sure >= SURE) & enough)
        thresholds.append(float(cuts["score"][fits[-1]]) if len(fits) else None)
        n_groups = len(np.unique(groups[use][truth[use, column]]))
        reasons.append("" if len(fits) else _reason(n_groups, sure[enough], target))
    return thresholds, reasons


def _reason(n_groups: int, sure: np.ndarray, target: float) -> str:
    if n_groups < MIN_GROUPS:
        return f"{counted(n_groups, 'group') if n_groups else 'no groups'} with a clip of it; {MIN_GROUPS} are needed"
    best = np.floor(100 * sure.max(initial=0)) / 100  # rounded up, it would seem to suffice
    return (
        f"at no score is a precision of {target:g} reached with a probability of {SURE:g}; the highest probability is "
        f"{best:.2f}"
    )


def _sorted(scores: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return scores from high to low, and other arrays in that order."""
    order = np.argsort(-scores, kind="stable")
    return [scores[order], *(other[order] for other in others)]


def cuts_of(scores: np.ndarray, right: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Count the detections of a label at each of its scores, from high to low.

    Returns
    -------
    dict of str to ndarray, one value per different score
        ``score``; ``n`` and ``n_right``, clips; ``effective``, the number of groups of equal size that would tell as
        much, ``n² / Σ n_g²`` (Kish, "Survey Sampling", 1965, section 11.7, if the clips of a group are all alike);
        ``n_groups_right``, groups with a right clip.
    """
    scores, right, groups = _sorted(scores, right, groups)
    n = np.arange(1, len(scores) + 1)
    # A further clip of a group with k clips adds 2 k + 1 to the sum of squares.
    squares = np.cumsum(2 * _earlier(groups) + 1)
    is_new = np.zeros(len(scores), dtype=bool)
    is_new[np.flatnonzero(right)[np.unique(groups[right], return_index=True)[1]]] = True
    last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]
    of_clip = {"score": scores, "n": n, "n_right": np.cumsum(right), "effective": n**2 / squares}
    return {name: values[last] for name, values in (of_clip | {"n_groups_right": np.cumsum(is_new)}).items()}


def _earlier(groups: np.ndarray) -> np.ndarray:
    """Return, for each clip, how many of the clips before it are of its group."""
    order = np.argsort(groups, kind="stable")
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    earlier = np.empty(len(groups), dtype=int)
    earlier[order] = np.arange(len(groups)) - np.repeat(first, sizes)
    return earlier


def limits(thresholds: Iterable[float | None]) -> np.ndarray:
    """Return thresholds as numbers: infinity where there is none, which no score reaches."""
    return np.array([np.inf if threshold is None else threshold for threshold in thresholds])


def detections(scores: np.ndarray, thresholds: Iterable[float | None]) -> np.ndarray:
    """Return whether each score is a detection: at least the threshold of its label, which has one."""
    return scores >= limits(thresholds)


def at_thresholds(
    scores: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray,
    groups: np.ndarray,
    labels: Sequence[str],
    thresholds: Sequence[float | None],
    target: float,
) -> pd.DataFrame:
    """Return precision and recall at the thresholds, with 95 % intervals by groups, and whether the target is met.

    Returns
    -------
    DataFrame
        One row per label, then `POOLED`: ``label, threshold, n_clips, n_groups`` with the label, ``n_detections,
        n_detected_groups, n_right, precision, precision_low, precision_high, recall, recall_low, recall_high,
        target_precision, verdict``. The verdict is `verdicts.SHOWN` if the whole interval of the precision is at or
        above the target, `verdicts.NOT_SHOWN` if it is below, and empty without a detection. Clips in which nobody
        knows whether the label is heard are left out.
    """
    detected, has = detections(scores, thresholds) & known, np.array([one is not None for one in thresholds])
    truth = truth & known
    sums = [intervals.of_each_group(cells, groups).T for cells in (truth, detected, truth & detected)]
    rows = [
        {"label": label, "threshold": threshold, **_row(*(table[:, i] for table in sums), target)}
        for i, (label, threshold) in enumerate(zip(labels, thresholds, strict=True))
    ]
    pooled = _row(*(table[:, has].sum(axis=1) for table in sums), target)
    rows.append({"label": POOLED, "threshold": None, **pooled})
    return pd.DataFrame(rows).astype({"threshold": float})


def _row(n_true: np.ndarray, n_detected: np.ndarray, n_right: np.ndarray, target: float) -> dict[str, object]:
    """Return a row of `at_thresholds` after the threshold, from counts by group."""
    precision, recall = _ratio(n_right, n_detected), _ratio(n_right, n_true)
    verdict = ""
    if np.isfinite(precision[1]):
        low, high = precision[1] - target, precision[2] - target
        verdict = str(verdicts.within_margin(low, high, margin=0, n_groups=int((n_detected > 0).sum()), error=np.nan))
    return {
        **{"n_clips": int(n_true.sum()), "n_groups": int((n_true > 0).sum())},
        **{"n_detections": int(n_detected.sum()), "n_detected_groups": int((n_detected > 0).sum())},
        "n_right": int(n_right.sum()),
        **dict(zip(("precision", "precision_low", "precision_high"), precision, strict=True)),
        **dict(zip(("recall", "recall_low", "recall_high"), recall, strict=True)),
        **{"target_precision": target, "verdict": verdict},
    }


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> tuple[float, float, float]:
    """Return a share and its 95 % interval from counts by group; see `intervals.share_interval`."""
    parts, wholes = parts[wholes > 0], wholes[wholes > 0]
    n, n_groups = wholes.sum(), len(wholes)
    if n_groups < 2:
        return (float(parts.sum() / n) if n else np.nan), np.nan, np.nan
    share = parts.sum() / n
    error = intervals.standard_error((parts.sum() - parts) / (n - wholes))
    low, high = intervals.share_interval(share, error, n_groups, int(n), intervals.critical_values_of_cases(wholes))
    return float(share), float(low), float(high)
