"""Calibration of scores: temperature or Platt scaling of logits, fitted on val, and the error that remains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import expit, log_softmax

from utils.core import lazy

with lazy.imported_on_first_use():
    import pandas as pd
    import scipy.optimize

    from utils.scores import evaluation

TEMPERATURE, PLATT = "temperature", "platt"
AS_IT_IS = {"kind": TEMPERATURE, "temperature": 1.0}
TEMPERATURES = (0.05, 20.0)
N_PARTS = 5


def calibrated(logits: np.ndarray, calibration: Mapping, is_multi_label: bool) -> np.ndarray:
    """Return the scores of logits: softmax, or sigmoid for several labels, of logits that are scaled.

    Parameters
    ----------
    logits : ndarray of float, shape (n, n_classes)
    calibration : mapping
        ``kind`` ``temperature`` with ``temperature``, by which logits are divided; or ``platt`` with ``slope`` and
        ``intercept``.
    is_multi_label : bool

    Returns
    -------
    ndarray of float64, shape (n, n_classes)
    """
    logits = _scaled(logits, calibration)
    return expit(logits) if is_multi_label else np.exp(log_softmax(logits, axis=-1))


def _scaled(logits: np.ndarray, calibration: Mapping) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    if calibration["kind"] == TEMPERATURE:
        return logits / calibration["temperature"]
    return calibration["slope"] * logits + calibration["intercept"]


def fit(logits: np.ndarray, truth: np.ndarray, known: np.ndarray, groups: np.ndarray, is_multi_label: bool) -> dict:
    """Return the calibration that val supports: the one with the lowest log loss on groups that did not fit it.

    One temperature for all labels; for sigmoids, Platt scaling of all labels together is tried, too. If neither is
    better than the logits as they are, or all clips are of one group, the temperature is 1. Sources: Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, section 4.2; Platt, "Probabilistic outputs for support vector
    machines", 1999.

    Parameters
    ----------
    logits : ndarray of float, shape (n_clips, n_classes)
    truth : ndarray of bool, shape (n_clips, n_classes)
        Whether a clip holds a label. Softmax is fitted on the clips with a label.
    known : ndarray of bool, shape (n_clips, n_classes)
        False where nobody knows; sigmoids are fitted on the rest.
    groups : ndarray, shape (n_clips,)
        Groups that the split keeps together.
    is_multi_label : bool
    """
    logits, truth = np.asarray(logits, dtype=np.float64), np.asarray(truth, dtype=bool)
    known = np.asarray(known, dtype=bool) if is_multi_label else truth.any(axis=1, keepdims=True) & np.ones_like(truth)
    fits: list[Callable] = [_fit_temperature, *([_fit_platt] if is_multi_label else [])]
    names, index = np.unique(groups, return_inverse=True)
    n_parts = min(N_PARTS, len(names))
    if n_parts < 2 or not truth[known].any():
        return dict(AS_IT_IS)
    part_of = np.random.default_rng(0).permutation(len(names))[index] % n_parts
    losses = np.zeros(1 + len(fits))
    for part in range(n_parts):
        inside, out = part_of != part, part_of == part
        found = [AS_IT_IS, *(one(logits[inside], truth[inside], known[inside], is_multi_label) for one in fits)]
        losses += [_loss(_scaled(logits[out], each), truth[out], known[out], is_multi_label) for each in found]
    best = int(losses.argmin())
    return dict(AS_IT_IS) if best == 0 else fits[best - 1](logits, truth, known, is_multi_label)


def _loss(logits: np.ndarray, truth: np.ndarray, known: np.ndarray, is_multi_label: bool) -> float:
    """Return the sum of the log loss over clips with a label, or over known pairs of clip and label."""
    if is_multi_label:
        return float(np.logaddexp(0, np.where(truth, -logits, logits))[known].sum())
    return -float(log_softmax(logits, axis=1)[truth & known].sum())


def _fit_temperature(logits: np.ndarray, truth: np.ndarray, known: np.ndarray, is_multi_label: bool) -> dict:
    found = scipy.optimize.minimize_scalar(
        lambda log_t: _loss(logits / np.exp(log_t), truth, known, is_multi_label),
        bounds=np.log(TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return {"kind": TEMPERATURE, "temperature": float(np.exp(found.x))}


def _fit_platt(logits: np.ndarray, truth: np.ndarray, known: np.ndarray, is_multi_label: bool) -> dict:
    """Fit slope and intercept, with Platt's targets: slightly inside 0 and 1, so that perfect scores have a fit."""
    logits, truth = logits[known], truth[known]
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    targets = np.where(truth, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
    middle, spread = logits.mean(), logits.std() or 1.0
    standard = (logits - middle) / spread

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = numbers[0] * standard + numbers[1]
        missed = expit(scaled) - targets
        return (np.logaddexp(0, scaled) - targets * scaled).mean(), np.array(
            [(missed * standard).mean(), missed.mean()]
        )

    slope, intercept = scipy.optimize.minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9}
    ).x
    if slope <= 0:  # the scores say nothing: no Platt scaling that keeps their order
        return dict(AS_IT_IS)
    return {"kind": PLATT, "slope": float(slope / spread), "intercept": float(intercept - slope * middle / spread)}


def bins(scores: np.ndarray, truth: np.ndarray, known: np.ndarray, is_multi_label: bool) -> pd.DataFrame:
    """Return the calibration by bins, as `evaluation.calibration`: of the best label of each clip, or of each label."""
    if is_multi_label:
        return evaluation.bins_of(scores[known], truth[known])
    best = scores.argmax(axis=1)
    return evaluation.bins_of(scores.max(axis=1), truth[np.arange(len(scores)), best])
