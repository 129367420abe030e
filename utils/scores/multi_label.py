"""Scores of clips that have several labels, or none: as BirdSet defines them, with 95 % intervals by group.

BirdSet: Rauch et al., arXiv 2403.10380, section 5. Silence is a clip without a label. A label of which nobody knows
whether it is in a clip (a secondary label) counts neither for nor against the model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from utils.scores import intervals

log = logging.getLogger(__name__)

# Of all labels together.
SCORES = (
    *("accuracy", "macro_average_precision", "macro_auroc", "macro_f1", "precision", "recall"),
    "false_alarms_per_hour",
)
# Of two models on the same clips. The others depend on the thresholds of each model. A margin is one of the first.
COMPARED = ("macro_average_precision", "accuracy")
# With few clips of a label these are biased, so their intervals also hold the score without the estimated bias.
BIASED = ("macro_average_precision", "macro_f1")
OF_LABELS = ("average_precision", "auroc", "precision", "recall", "f1", "false_alarms_per_hour")
TOP_K = 5
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Answers:
    """The answers of a model, beside the truth.

    Attributes
    ----------
    targets : ndarray of bool, shape (n_clips, n_classes)
        Whether a clip has a label.
    is_known : ndarray of bool, shape (n_clips, n_classes)
        False for secondary labels.
    logits : ndarray of float, shape (n_clips, n_classes)
        The model's outputs.
    is_detected : ndarray of bool, shape (n_clips, n_classes)
        Whether the score of a label reaches its threshold.
    groups : ndarray, shape (n_clips,)
        Groups that the split keeps together.
    seconds : ndarray of float, shape (n_clips,)
        Length of each clip.
    model : ndarray of int, shape (n_clips,), or None
        Number of the model that answered. Outputs of two models have no common scale, so a ranking of clips by outputs
        is that of one model, and the score is the mean over the models. Default: one model.
    """

    targets: np.ndarray
    is_known: np.ndarray
    logits: np.ndarray
    is_detected: np.ndarray
    groups: np.ndarray
    seconds: np.ndarray
    model: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> Answers:
        """Return the answers on some clips."""
        return Answers(*(None if values is None else values[rows] for values in vars(self).values()))


class Result(NamedTuple):
    """Answers and their scores; see `score_all`."""

    answers: Answers
    scores: dict[str, float]
    labels: pd.DataFrame


def joined(parts: Sequence[Answers], of_one_model: bool = False) -> Answers:
    """Return the answers of several models, or of one, each on its own clips, as those of one recipe."""
    numbered = [replace(part, model=np.full(len(part.groups), i * (not of_one_model))) for i, part in enumerate(parts)]
    return Answers(
        *(np.concatenate(values) for values in zip(*(vars(part).values() for part in numbered), strict=True))
    )


# -------------------------------------------------------------------------------------------- rankings


class _Ranking:
    """The clips of one model in the order of the outputs, for each label; clips with equal outputs share a place."""

    def __init__(self, targets: np.ndarray, is_known: np.ndarray, logits: np.ndarray):
        self._order = np.argsort(-logits, axis=0, kind="stable")
        outputs, places = (np.take_along_axis(logits, self._order, axis=0), np.arange(len(logits))[:, None])
        differs = outputs[1:] != outputs[:-1]
        edge = np.ones((1, logits.shape[1]), bool)
        self._first = np.maximum.accumulate(np.where(np.concatenate([edge, differs]), places, 0), axis=0)
        ends = np.where(np.concatenate([differs, edge]), places, len(logits))
        self._last = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
        self._present, self._absent = (
            np.take_along_axis(is_here & is_known, self._order, axis=0) for is_here in (targets, ~targets)
        )

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return average precision and AUROC of every label, over clips with the weights 0 or 1; shape (n_classes,)."""
        of_place = weights[self._order]
        present, absent = of_place * self._present, of_place * self._absent
        n_present, n_absent = present.cumsum(axis=0), absent.cumsum(axis=0)
        all_present, all_absent = n_present[-1], n_absent[-1]
        above = np.take_along_axis(n_absent - absent, self._first, axis=0)
        n_present, n_absent = (np.take_along_axis(counts, self._last, axis=0) for counts in (n_present, n_absent))
        precision = n_present / np.maximum(n_present + n_absent, 1)
        below = all_absent - (above + n_absent) / 2  # an absent label with an equal output counts half
        with np.errstate(invalid="ignore"):
            return (present * precision).sum(axis=0) / all_present, (present * below).sum(axis=0) / (
                all_present * all_absent
            )


def average_precisions(targets: np.ndarray, is_known: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the average precision of every label, shape (n_classes,); NaN for a label that no clip has.

    It is the mean, over the clips with the label, of the precision among the clips with an output at least as high: the
    area under the curve of precision and recall by steps, as in scikit-learn.
    """
    return _Ranking(targets, is_known, logits).areas(np.ones(len(logits)))[0]


def macro_average_precision(targets: np.ndarray, is_known: np.ndarray, logits: np.ndarray) -> float:
    """Return BirdSet's cmAP: the mean average precision of the labels that occur; NaN if there is none."""
    return _mean(average_precisions(targets, is_known, logits))


def top_accuracy(targets: np.ndarray, is_known: np.ndarray, logits: np.ndarray, k: int = 1) -> np.ndarray:
    """Return, for each clip, 1 if a label of the clip is among the `k` with the highest outputs, 0 if not.

    Unknown labels are passed over. NaN for silence, which BirdSet's top-1 accuracy leaves out.
    """
    order = np.argsort(-np.where(is_known, logits, -np.inf), axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(targets, order, axis=1).any(axis=1).astype(float)
    return np.where(targets.any(axis=1), hits, np.nan)


def chance_level(targets: np.ndarray, is_known: np.ndarray) -> float:
    """Return the macro average precision of a model that guesses: the mean share of clips that have a label."""
    n_clips = is_known.sum(axis=0)
    shares = np.divide(targets.sum(axis=0), n_clips, out=np.full(n_clips.shape, np.nan), where=n_clips > 0)
    return _mean(np.where(shares > 0, shares, np.nan))


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


# ---------------------------------------------------------------------------------------------- scores


class _Scorer:
    """Scores of answers, over all clips or without some of them."""

    def __init__(self, answers: Answers):
        self._answers = answers
        model = np.zeros(len(answers.groups), int) if answers.model is None else answers.model
        of_models = [np.flatnonzero(model == number) for number in np.unique(model)]
        self._rankings = [
            (rows, _Ranking(answers.targets[rows], answers.is_known[rows], answers.logits[rows])) for rows in of_models
        ]
        is_detected = answers.is_detected & answers.is_known
        self._counted = [table.astype(float) for table in (answers.targets, is_detected, answers.targets & is_detected)]
        self.is_background = (~answers.targets & answers.is_known).all(axis=1)
        self._alarms = (is_detected & self.is_background[:, None]).astype(float)
        self.hours = answers.seconds * self.is_background / SECONDS_PER_HOUR
        hits = top_accuracy(answers.targets, answers.is_known, answers.logits)
        self._has_label, self._hits = np.isfinite(hits), np.nan_to_num(hits)

    def __call__(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `SCORES`, and `OF_LABELS` of every label, shape (6, n_classes), over clips with the weights 0 or 1."""
        areas = np.stack([ranking.areas(weights[rows]) for rows, ranking in self._rankings])  # (models, 2, classes)
        means = np.array([[_mean(of_labels) for of_labels in of_model] for of_model in areas])
        n_true, n_detected, n_hits = (weights @ table for table in self._counted)
        alarms, hours = weights @ self._alarms, weights @ self.hours
        f1 = np.where(n_true > 0, 2 * n_hits / np.maximum(n_true + n_detected, 1), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled = [n_hits.sum() / n_detected.sum(), n_hits.sum() / n_true.sum(), alarms.sum() / hours]
            accuracy = (weights @ self._hits) / (weights @ self._has_label)
            of_labels = [n_hits / n_detected, n_hits / n_true, f1, np.where(hours > 0, alarms / hours, np.nan)]
        over_models = [[_mean(of_label) for of_label in area.T] for area in areas.swapaxes(0, 1)]
        return (
            np.array([accuracy, *(_mean(column) for column in means.T), _mean(f1), *pooled]),
            np.array([*over_models, *of_labels]),
        )

    def jackknife(self) -> tuple[intervals.Jackknife, intervals.Jackknife]:
        """Return `SCORES` and the same without each group, then `OF_LABELS` of every label in the same way.

        A score without a group is NaN if no case of it is left.
        """
        _, index = np.unique(self._answers.groups, return_inverse=True)
        left_out = [self((index != group).astype(float)) for group in range(index.max() + 1)]
        return tuple(
            intervals.Jackknife(estimate, np.stack(without, axis=-1))
            for estimate, without in zip(self(np.ones(len(index))), zip(*left_out, strict=True), strict=True)
        )

    def n_cases(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of cases that each of `SCORES` counts, and how many of them each group has."""
        answers, (n_true, n_detected, _) = self._answers, (table.sum(axis=1) for table in self._counted)
        labelled, background = self._has_label.astype(float), self.is_background.astype(float)
        everything = np.ones(len(answers.groups))
        cases = np.array([labelled, everything, everything, everything, n_detected, n_true, background])
        in_groups = np.array([labelled, n_true, n_true, n_true, n_detected, n_true, background])
        return cases.sum(axis=1), intervals.of_each_group(in_groups.T, answers.groups)


def point_scores(answers: Answers) -> dict[str, float]:
    """Return `SCORES` without intervals."""
    overall, _ = _Scorer(answers)(np.ones(len(answers.groups)))
    return dict(zip(SCORES, map(float, overall), strict=True))


def compared(answers: Answers) -> intervals.Jackknife:
    """Return the scores `COMPARED` of a model, and the same without each group."""
    found, _ = _Scorer(answers).jackknife()
    rows = [SCORES.index(name) for name in COMPARED]
    return intervals.Jackknife(found.estimate[rows], found.left_out[rows])


def rate_interval(
    rate: float, error: float, hours: float, least_hours: float, critical: float = intervals.NORMAL
) -> tuple[float, float]:
    """Return Garwood's exact 95 % interval of a rate, on its effective number of hours.

    That is the number of hours in which independent alarms would have the same standard error, and at most `hours`. If
    no group changes the rate, the standard error is 0; then it is `least_hours`: one clip of each group. So the
    interval always has a width. With a `critical` value of Student's t, for a standard error from few groups, the hours
    are fewer by the square of its ratio to the normal one. Sources: Garwood, "Fiducial limits for the Poisson
    distribution", Biometrika 28, 1936; effective numbers as in `intervals.share_interval`.
    """
    if not np.isfinite([rate, error]).all():
        return float("nan"), float("nan")
    effective = least_hours
    if error > intervals.ROUNDING:
        effective = rate / error**2 * (intervals.NORMAL / critical) ** 2
    effective = min(effective, hours)
    n_alarms, tail = rate * effective, (1 - intervals.LEVEL) / 2
    low = stats.chi2.ppf(tail, 2 * n_alarms) / 2 / effective if n_alarms > 0 else 0.0
    return float(low), float(stats.chi2.ppf(1 - tail, 2 * n_alarms + 2) / 2 / effective)


def score_all(answers: Answers) -> Result:
    """Return the scores with their intervals, named as in ``metrics.csv``, and those of every label.

    Returns
    -------
    answers : Answers
        As given.
    scores : dict of str to float
        `SCORES`, each with ``_low`` and ``_high``; ``top5_accuracy, n_groups, n_background_clips, background_hours``
        and ``chance_average_precision``. ``accuracy`` is BirdSet's top-1 accuracy: the label with the highest output is
        one of the clip's; ``macro_average_precision`` is its cmAP. ``macro_f1, precision`` and ``recall`` are those of
        the detections; the last two of all labels together. Labels without a clip are left out of the means
        (torchmetrics, which BirdSet uses, counts them as 0). ``false_alarms_per_hour`` counts the detections, of all
        labels, in clips of silence. NaN where there is no case, and the ends where only one group has cases.
    labels : DataFrame
        ``label_id``; `OF_LABELS`, the first and precision and recall with ``_low`` and ``_high``; ``support``.
    """
    scorer = _Scorer(answers)
    overall, of_labels = scorer.jackknife()
    n_cases, in_groups = scorer.n_cases()
    if len(np.unique(answers.groups)) < 2:
        log.warning("all clips are of one group, so there is no interval: it is NaN")
    low, high = _share_ends(overall, in_groups, n_cases, np.isin(SCORES, BIASED))
    hours = float(scorer.hours.sum())
    least_hours = hours * min(1.0, np.count_nonzero(in_groups[-1]) / max(n_cases[-1], 1))
    critical = float(intervals.critical_values_of_cases(in_groups[-1]))
    low[-1], high[-1] = rate_interval(overall.estimate[-1], overall.error[-1], hours, least_hours, critical)
    scores: dict[str, float] = {}
    for name, *values in zip(SCORES, overall.estimate, low, high, strict=True):
        scores |= dict(zip((name, f"{name}_low", f"{name}_high"), map(float, values), strict=True))
    top = top_accuracy(answers.targets, answers.is_known, answers.logits, TOP_K)
    scores |= {
        "top5_accuracy": _mean(top),
        "n_groups": len(np.unique(answers.groups)),
        "n_background_clips": int(scorer.is_background.sum()),
        "background_hours": hours,
        "chance_average_precision": chance_level(answers.targets, answers.is_known),
    }
    return Result(answers, scores, _table_of_labels(answers, of_labels))


def _share_ends(
    found: intervals.Jackknife, in_groups: np.ndarray, n_cases: np.ndarray, is_biased: np.ndarray | bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of each score, as of accuracy, from its cases in each group; none where only one has cases.

    If a score is biased, the interval is that of the score and that of the score without its bias, together.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        error = found.error
        estimate = np.clip(found.estimate, 0, 1)  # a rate is not a share; its ends are replaced
        n_groups, critical = np.count_nonzero(in_groups, axis=1), intervals.critical_values_of_cases(in_groups)
        low, high = intervals.share_interval(estimate, np.nan_to_num(error), n_groups, n_cases, critical)
        bias = np.where(is_biased, found.bias, 0)
    low, high = np.maximum(low - np.maximum(bias, 0), 0), np.minimum(high - np.minimum(bias, 0), 1)
    return tuple(np.where(np.isfinite(error) & (n_groups > 1), end, np.nan) for end in (low, high))


def _table_of_labels(answers: Answers, found: intervals.Jackknife) -> pd.DataFrame:
    support = answers.targets.sum(axis=0)
    is_detected = answers.is_detected & answers.is_known
    cases = {"average_precision": answers.targets, "precision": is_detected, "recall": answers.targets}
    columns: dict[str, np.ndarray] = {"label_id": np.arange(len(support))}
    for number, name in enumerate(OF_LABELS):
        columns[name] = found.estimate[number]
        if name in cases:
            own = intervals.Jackknife(found.estimate[number], found.left_out[number])
            in_groups = intervals.of_each_group(cases[name], answers.groups)
            columns[f"{name}_low"], columns[f"{name}_high"] = _share_ends(own, in_groups, cases[name].sum(axis=0))
    return pd.DataFrame({**columns, "support": support})
