"""Scores of a classifier: of clips, of recordings, with bootstrap intervals and calibration.

Plain NumPy and scikit-learn: it takes label ids and logits, and knows no model.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

log = logging.getLogger(__name__)

TOP_K = 5
N_CALIBRATION_BINS = 15
N_RESAMPLES = 2000
N_SIGN_FLIPS = 9999
INTERVAL_PERCENT = 95.0
# Bounds the weights of the bootstrap in memory: 32 MiB, whatever the number of groups.
WEIGHTS_AT_ONCE = 4_000_000
# Below it, percentile intervals from a bootstrap over groups are known to be too narrow.
FEW_GROUPS = 30


# ---------------------------------------------------------------------------------------------- scores


def score(label_ids: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the scores of clips.

    Macro averages run over the classes that the clips can speak about: F1 over those that occur among
    `label_ids` (a class without a clip would score 0 whatever the model does), average precision and
    AUROC over those that occur and are not all there is. Both rank the clips by the softmax
    probability of a class, one class against the rest.

    Parameters
    ----------
    label_ids : ndarray of int, shape (n_clips,)
        True classes.
    logits : ndarray of float, shape (n_clips, n_classes)
        The model's outputs.

    Returns
    -------
    dict of str to float
        ``accuracy, macro_f1, weighted_f1, top5_accuracy, macro_average_precision, macro_auroc,
        expected_calibration_error``; NaN where there is no class to average over.
    """
    predicted_ids = logits.argmax(axis=1)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    present = np.unique(label_ids)
    ranked = [c for c in present if (label_ids == c).sum() < len(label_ids)]
    precisions = [average_precision_score(label_ids == c, probabilities[:, c]) for c in ranked]
    areas = [roc_auc_score(label_ids == c, probabilities[:, c]) for c in ranked]
    return {
        "accuracy": float((predicted_ids == label_ids).mean()),
        "macro_f1": macro_f1(label_ids, predicted_ids),
        "weighted_f1": float(f1_score(label_ids, predicted_ids, labels=present, average="weighted", zero_division=0)),
        "top5_accuracy": top_k_accuracy(label_ids, logits, TOP_K),
        "macro_average_precision": float(np.mean(precisions)) if ranked else float("nan"),
        "macro_auroc": float(np.mean(areas)) if ranked else float("nan"),
        "expected_calibration_error": expected_calibration_error(calibration(label_ids, logits)),
    }


def score_all(table: pd.DataFrame, logits: np.ndarray, seed: int) -> dict[str, float]:
    """Return the scores of clips with their intervals, and those of recordings, named as in ``metrics.csv``.

    Parameters
    ----------
    table : DataFrame
        ``label_id``, ``recording_id`` and ``group`` of each clip, as in `Clips.table`.
    logits : ndarray of float, shape (n_clips, n_classes)
        The model's outputs.
    seed : int
        Seed of the bootstrap over ``group``.
    """
    label_ids, recording_ids = table["label_id"].to_numpy(), table["recording_id"].to_numpy()
    scores = score(label_ids, logits)
    groups = table["group"].to_numpy()
    for name, (low, high) in bootstrap_intervals(label_ids, logits.argmax(axis=1), groups, seed=seed).items():
        scores[f"{name}_low"], scores[f"{name}_high"] = low, high
    _, recording_label_ids, mean_logits = recording_logits(recording_ids, label_ids, logits)
    recording_predicted_ids = mean_logits.argmax(axis=1)
    scores["recording_accuracy"] = float((recording_predicted_ids == recording_label_ids).mean())
    scores["recording_macro_f1"] = macro_f1(recording_label_ids, recording_predicted_ids)
    return scores


def macro_f1(label_ids: np.ndarray, predicted_ids: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur among `label_ids`; see `score`."""
    present = np.unique(label_ids)
    return float(f1_score(label_ids, predicted_ids, labels=present, average="macro", zero_division=0))


def top_k_accuracy(label_ids: np.ndarray, logits: np.ndarray, k: int) -> float:
    """Return the share of clips whose class is among the `k` highest logits (all, if there are fewer).

    Of equal logits the lower class comes first, as in ``argmax``, so that top 1 is the accuracy.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float((order == np.asarray(label_ids)[:, None]).any(axis=1).mean())


def recording_logits(
    recording_ids: np.ndarray, label_ids: np.ndarray, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average the logits of the clips of each recording.

    Parameters
    ----------
    recording_ids : ndarray of str, shape (n_clips,)
    label_ids : ndarray of int, shape (n_clips,)
        The same for all clips of a recording.
    logits : ndarray of float, shape (n_clips, n_classes)

    Returns
    -------
    recordings : ndarray of str, shape (n_recordings,)
        Sorted.
    recording_label_ids : ndarray of int, shape (n_recordings,)
    mean_logits : ndarray of float64, shape (n_recordings, n_classes)
    """
    recordings, first, index = np.unique(recording_ids, return_index=True, return_inverse=True)
    sums = np.zeros((len(recordings), logits.shape[1]))
    np.add.at(sums, index, logits)
    return recordings, np.asarray(label_ids)[first], sums / np.bincount(index)[:, None]


def per_class_report(label_ids: np.ndarray, predicted_ids: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """Return precision, recall, F1 and number of clips of every class.

    What is not defined is NaN: the recall of a class without a clip, the precision of one that was
    never predicted. The mean of ``f1`` over classes with ``support`` is the macro F1.

    Returns
    -------
    DataFrame
        Columns ``label_id, label, precision, recall, f1, support``, by label id.
    """
    precision, recall, f1, support = precision_recall_fscore_support(
        label_ids, predicted_ids, labels=np.arange(len(labels)), zero_division=np.nan
    )
    return pd.DataFrame(
        {
            "label_id": np.arange(len(labels)),
            "label": labels,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support,
        }
    )


def confusion_table(label_ids: np.ndarray, predicted_ids: np.ndarray, labels: list[str]) -> pd.DataFrame:
    """Return the counts of clips: a row a true label, a column a predicted one, both by label id."""
    counts = confusion_matrix(label_ids, predicted_ids, labels=np.arange(len(labels)))
    return pd.DataFrame(counts, index=pd.Index(labels, name="label"), columns=labels)


# ----------------------------------------------------------------------------------------- calibration


def calibration(label_ids: np.ndarray, logits: np.ndarray, n_bins: int = N_CALIBRATION_BINS) -> pd.DataFrame:
    """Compare the probability of the predicted class with how often it is the true one.

    Returns
    -------
    DataFrame
        A row for each of the bins, which are of equal width in confidence: ``above, to``, its edges, of which it
        holds the second; ``n_clips``; ``confidence, accuracy``, means over its clips, NaN where there are none.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    confidence = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    correct = logits.argmax(axis=1) == label_ids
    edges = np.linspace(0, 1, n_bins + 1)
    index = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, n_bins - 1)
    n_clips = np.bincount(index, minlength=n_bins)
    divisor = np.where(n_clips, n_clips, np.nan)
    means = {
        "confidence": np.bincount(index, confidence, n_bins) / divisor,
        "accuracy": np.bincount(index, correct, n_bins) / divisor,
    }
    return pd.DataFrame({"above": edges[:-1], "to": edges[1:], "n_clips": n_clips, **means})


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Return the mean gap between accuracy and confidence, bins weighted by their clips (Guo et al. 2017, eq. 3)."""
    gaps = (bins["accuracy"] - bins["confidence"]).abs().fillna(0)
    return float((bins["n_clips"] * gaps).sum() / bins["n_clips"].sum())


# ------------------------------------------------------------------------------------------- bootstrap


def resample_weights(n_groups: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw groups with replacement, `n_groups` at a time; yield how often each was drawn.

    Two models that are evaluated on the same clips get the same draws from the same seed, so that
    their difference can be taken draw by draw.

    Yields
    ------
    ndarray of float64, shape (n, n_groups)
        As many rows as fit in memory; `n_resamples` in all.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // n_groups)
    for start in range(0, n_resamples, at_once):
        n = min(at_once, n_resamples - start)
        drawn = rng.integers(n_groups, size=(n, n_groups)) + n_groups * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups).astype(np.float64)


def bootstrap_scores(
    label_ids: np.ndarray, predicted_ids: np.ndarray, groups: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return accuracy and macro F1 of resamples in which whole groups are drawn with replacement.

    Clips of a recording, and recordings of a recordist, resemble each other; drawing them one by one
    would make an interval much too narrow. Exact for each resample: a score is a function of counts
    that add over groups, so a draw is a weight of each group. Source: Efron & Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapters 8 and 13.

    Parameters
    ----------
    label_ids, predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        What is drawn together; any values that can be sorted.
    n_resamples : int
    seed : int

    Returns
    -------
    dict of str to ndarray of float64, shape (n_resamples,)
        ``accuracy`` and ``macro_f1``; the latter over the classes that occur in the resample.
    """
    n_groups = len(np.unique(groups))
    n_classes = int(max(np.max(label_ids), np.max(predicted_ids))) + 1
    counts = _group_counts(label_ids, predicted_ids, groups, n_classes)
    scores = [
        _scores_of_counts(*(weights @ table for table in counts))
        for weights in resample_weights(n_groups, n_resamples, seed)
    ]
    accuracy, f1 = (np.concatenate(values) for values in zip(*scores, strict=True))
    return {"accuracy": accuracy, "macro_f1": f1}


def _group_counts(
    label_ids: np.ndarray, predicted_ids: np.ndarray, groups: np.ndarray, n_classes: int
) -> tuple[csr_array, csr_array, csr_array]:
    """Return how many clips of each class a group has, are called so, and both: each of shape (n_groups, n_classes)."""
    label_ids, predicted_ids = np.asarray(label_ids), np.asarray(predicted_ids)
    names, group_index = np.unique(groups, return_inverse=True)

    def counts_of(classes: np.ndarray, weights: np.ndarray) -> csr_array:
        return csr_array((weights.astype(float), (group_index, classes)), shape=(len(names), n_classes))

    every_clip = np.ones(len(label_ids))
    hits = label_ids == predicted_ids
    return counts_of(label_ids, every_clip), counts_of(predicted_ids, every_clip), counts_of(label_ids, hits)


def _scores_of_counts(n_true: np.ndarray, n_predicted: np.ndarray, n_hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracy and macro F1 of each row of counts, of shape (n, n_classes)."""
    occurs = n_true > 0
    # F1 = 2 TP / (2 TP + FP + FN), and TP + FN are the clips of a class, TP + FP those called so.
    f1_of_class = np.divide(2 * n_hits, n_true + n_predicted, out=np.zeros_like(n_hits), where=occurs)
    return n_hits.sum(axis=1) / n_true.sum(axis=1), f1_of_class.sum(axis=1) / occurs.sum(axis=1)


def bootstrap_intervals(
    label_ids: np.ndarray, predicted_ids: np.ndarray, groups: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return 95 % percentile intervals of accuracy and macro F1; see `bootstrap_scores`.

    With few groups they are somewhat too narrow, and where every group scores the same, as at 0 or 1,
    they have no width: a resample can show no outcome that the clips did not.

    Returns
    -------
    dict of str to (float, float)
        Lower and upper end; NaN, with a warning in the log, if there is only one group to draw from.
    """
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        log.warning("all clips are of one group: there is nothing to resample, and the intervals are NaN")
        return {name: (float("nan"), float("nan")) for name in ("accuracy", "macro_f1")}
    tail = (100 - INTERVAL_PERCENT) / 2
    scores = bootstrap_scores(label_ids, predicted_ids, groups, n_resamples, seed)
    return {
        name: tuple(float(end) for end in np.percentile(values, [tail, 100 - tail])) for name, values in scores.items()
    }


def warn_of_few_groups(split: str, n_groups: int) -> None:
    """Warn where intervals of scores on a split are from a bootstrap over so few groups that they are too narrow."""
    if n_groups < FEW_GROUPS:
        log.warning(
            "%s: %d groups are few: intervals from a bootstrap over fewer than %d are rough and too narrow",
            *(split, n_groups, FEW_GROUPS),
        )


def paired_difference(
    label_ids: np.ndarray,
    first_predicted_ids: np.ndarray,
    second_predicted_ids: np.ndarray,
    groups: np.ndarray,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Return how much better the first of two models is on the same clips, with 95 % percentile intervals.

    Both are scored on the same draws of groups, so what makes clips hard for both cancels: the interval
    is that of the difference, and much narrower than those of the two scores. See `bootstrap_scores`.

    Parameters
    ----------
    label_ids, first_predicted_ids, second_predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        What is drawn together.
    n_resamples : int
    seed : int

    Returns
    -------
    dict of str to (float, float, float)
        First minus second in ``accuracy`` and ``macro_f1``, then the lower and the upper end, which are NaN
        if there is only one group to draw from.
    """
    label_ids, groups = np.asarray(label_ids), np.asarray(groups)
    models = [np.asarray(first_predicted_ids), np.asarray(second_predicted_ids)]
    accuracy = [float((predicted_ids == label_ids).mean()) for predicted_ids in models]
    f1 = [macro_f1(label_ids, predicted_ids) for predicted_ids in models]
    observed = {"accuracy": accuracy[0] - accuracy[1], "macro_f1": f1[0] - f1[1]}
    if len(np.unique(groups)) < 2:
        return {name: (value, float("nan"), float("nan")) for name, value in observed.items()}
    first, second = (bootstrap_scores(label_ids, model, groups, n_resamples, seed) for model in models)
    tail = (100 - INTERVAL_PERCENT) / 2
    return {
        name: (value, *(float(end) for end in np.percentile(first[name] - second[name], [tail, 100 - tail])))
        for name, value in observed.items()
    }


def sign_flip_p_values(
    label_ids: np.ndarray,
    first_predicted_ids: np.ndarray,
    second_predicted_ids: np.ndarray,
    groups: np.ndarray,
    n_draws: int = N_SIGN_FLIPS,
    seed: int = 0,
) -> dict[str, float]:
    """Return how often two models that are alike would differ as much as these do: two-sided p values.

    If they are alike, each group could as well have had their answers exchanged. That flips the sign of the
    group's share in the difference of accuracies, and does the like for macro F1, which is not a sum over
    groups. Groups that both answer alike change nothing; all ways to exchange the other ones are counted
    where there are no more than `n_draws`, else as many are drawn, and the one that was seen is counted with
    them, so that p is never 0. Sources: Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses",
    2005, §3; Phipson & Smyth 2010, "Permutation P-values should never be zero", §4.

    Parameters
    ----------
    label_ids, first_predicted_ids, second_predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        What is exchanged together.
    n_draws : int
    seed : int

    Returns
    -------
    dict of str to float
        Of ``accuracy`` and ``macro_f1``.
    """
    label_ids = np.asarray(label_ids)
    models = [np.asarray(first_predicted_ids), np.asarray(second_predicted_ids)]
    n_classes = int(max(ids.max() for ids in (label_ids, *models))) + 1
    n_true, *first = _group_counts(label_ids, models[0], groups, n_classes)
    _, *second = _group_counts(label_ids, models[1], groups, n_classes)
    totals = n_true.sum(axis=0)[None, :]
    sums = [table.sum(axis=0)[None, :] for table in (*first, *second)]
    # What a group moves from one model to the other where it is exchanged.
    shifts = [(theirs - ours).toarray() for ours, theirs in zip(first, second, strict=True)]
    differing = np.flatnonzero(np.any([shift.any(axis=1) for shift in shifts], axis=0))
    shifts = [shift[differing] for shift in shifts]

    def differences(exchanged: np.ndarray) -> np.ndarray:
        moved, n_clips = [exchanged @ shift for shift in shifts], totals.repeat(len(exchanged), axis=0)
        of_first = _scores_of_counts(n_clips, sums[0] + moved[0], sums[1] + moved[1])
        of_second = _scores_of_counts(n_clips, sums[2] - moved[0], sums[3] - moved[1])
        return np.abs(np.array(of_first) - np.array(of_second))

    observed = differences(np.zeros((1, len(differing))))
    exact = 2 ** len(differing) <= n_draws
    n_ways = 2 ** len(differing) if exact else n_draws
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // max(n_classes, len(differing)))
    as_far = np.zeros(2)
    for start in range(0, n_ways, at_once):
        ways = np.arange(start, min(start + at_once, n_ways))
        if exact:
            exchanged = (ways[:, None] >> np.arange(len(differing))) & 1
        else:
            exchanged = rng.integers(2, size=(len(ways), len(differing)))
        # Differences that are equal in exact arithmetic may differ in their last bit.
        as_far += (differences(exchanged.astype(float)) >= observed - 1e-12).sum(axis=1)
    p_values = as_far / n_ways if exact else (as_far + 1) / (n_ways + 1)
    return dict(zip(("accuracy", "macro_f1"), p_values.tolist(), strict=True))


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """Return p values adjusted for their number: those under 0.05 hold together at 0.05 (Holm 1979)."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
