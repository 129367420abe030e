"""Scores of clips and of recordings, and calibration, from label ids and logits."""

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from utils.scores import intervals

TOP_K = 5
N_CALIBRATION_BINS = 15


# ---------------------------------------------------------------------------------------------- scores


def score(label_ids: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return the scores of clips.

    Macro F1 is the mean over the classes that occur among `label_ids`: a class without a clip would always score 0.
    Average precision and AUROC also leave out a class to which all clips belong. Both rank the clips by the softmax
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
        expected_calibration_error, expected_calibration_error_if_calibrated``; NaN if there is no class to average.
    """
    predicted_ids = logits.argmax(axis=1)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    present = np.unique(label_ids)
    ranked = [c for c in present if (label_ids == c).sum() < len(label_ids)]
    precisions = [average_precision_score(label_ids == c, probabilities[:, c]) for c in ranked]
    bins = calibration(label_ids, logits)
    areas = [roc_auc_score(label_ids == c, probabilities[:, c]) for c in ranked]
    return {
        "accuracy": float((predicted_ids == label_ids).mean()),
        "macro_f1": macro_f1(label_ids, predicted_ids),
        "weighted_f1": float(f1_score(label_ids, predicted_ids, labels=present, average="weighted", zero_division=0)),
        "top5_accuracy": top_k_accuracy(label_ids, logits, TOP_K),
        "macro_average_precision": float(np.mean(precisions)) if ranked else float("nan"),
        "macro_auroc": float(np.mean(areas)) if ranked else float("nan"),
        "expected_calibration_error": expected_calibration_error(bins),
        "expected_calibration_error_if_calibrated": error_if_calibrated(bins),
    }


def score_all(table: pd.DataFrame, logits: np.ndarray) -> dict[str, float]:
    """Return the scores of clips with their intervals, and those of recordings, named as in ``metrics.csv``.

    Parameters
    ----------
    table : DataFrame
        ``label_id``, ``recording_id`` and ``group`` of each clip, as in `Clips.table`.
    logits : ndarray of float, shape (n_clips, n_classes)
        The model's outputs.
    """
    label_ids, recording_ids = table["label_id"].to_numpy(), table["recording_id"].to_numpy()
    groups = table["group"].to_numpy()
    scores = score(label_ids, logits) | {"n_groups": len(np.unique(groups))}
    for name, (low, high) in intervals.score_intervals(label_ids, logits.argmax(axis=1), groups).items():
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

    If logits are equal, the lower class comes first, as in ``argmax``, so that top 1 is the accuracy.
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

    The recall of a class without a clip is NaN, and so is the precision of a class that was never predicted. The mean
    of ``f1`` over classes with ``support`` is the macro F1.

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
    """Return the counts of clips: one row per true label, one column per predicted label, both by label id."""
    counts = confusion_matrix(label_ids, predicted_ids, labels=np.arange(len(labels)))
    return pd.DataFrame(counts, index=pd.Index(labels, name="label"), columns=labels)


# ----------------------------------------------------------------------------------------- calibration


def calibration(label_ids: np.ndarray, logits: np.ndarray, n_bins: int = N_CALIBRATION_BINS) -> pd.DataFrame:
    """Compare the confidence, the probability of the predicted class, with the accuracy.

    Returns
    -------
    DataFrame
        One row per bin; bins have equal width in confidence: ``above, to``, its edges, the second inclusive;
        ``n_clips``; ``confidence, accuracy``, means over its clips, NaN if it is empty.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    confidence = softmax(logits.astype(np.float64), axis=1).max(axis=1)
    return bins_of(confidence, logits.argmax(axis=1) == label_ids, n_bins)


def bins_of(confidence: np.ndarray, correct: np.ndarray, n_bins: int = N_CALIBRATION_BINS) -> pd.DataFrame:
    """Return the bins of `calibration` for any scores, each with whether it is right."""
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
    """Return the mean gap between accuracy and confidence, weighted by the clips of the bins (Guo 2017, eq. 3)."""
    gaps = (bins["accuracy"] - bins["confidence"]).abs().fillna(0)
    return float((bins["n_clips"] * gaps).sum() / bins["n_clips"].sum())


def error_if_calibrated(bins: pd.DataFrame) -> float:
    """Return the mean expected calibration error of a perfectly calibrated model on this number of clips.

    It is not 0. In a bin of n clips with mean confidence p the number of right answers is binomial. The gap is its mean
    absolute deviation, ``2 (k + 1) C(n, k + 1) p^(k + 1) (1 - p)^(n - k)`` with k the whole part of n p. It is larger
    still because clips of one recordist resemble each other. Source: De Moivre's formula, in Diaconis & Zabell, "Closed
    form summation for classical distributions", Statistical Science 6, 1991.

    Parameters
    ----------
    bins : DataFrame
        From `calibration`.
    """
    n_clips = bins["n_clips"].to_numpy()
    n, p = n_clips[n_clips > 0], np.minimum(bins["confidence"].to_numpy()[n_clips > 0], 1)
    least = np.minimum(np.floor(n * p), n - 1)
    # (k + 1) C(n, k + 1) = n C(n - 1, k), so that the formula is a binomial probability of n - 1 clips.
    return float((2 * n * p * (1 - p) * binom.pmf(least, n - 1, p)).sum() / n_clips.sum())
