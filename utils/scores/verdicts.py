"""Compare models: p values, the margin of non-inferiority, and the optimism of choosing the best of many."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.scores import intervals

N_SIGN_FLIPS = 9999
N_RESAMPLES = 10_000
POWER = 0.80
# Differences that are equal in exact arithmetic may differ in their last bits.
ROUNDING = 1e-9
# What an interval of a difference covers, in the words of a log.
# What an interval is about, by what the split keeps together.
OTHERS = {
    "recordist": "other recordists",
    "recordist_and_species": "other recordists or species",
    "recording": "other recordings",
    "clip": "other clips",
}
SHOWN, NOT_SHOWN, UNDECIDABLE = "shown", "not shown", "undecidable here"


# --------------------------------------------------------------------------------------------- margins


@dataclass(frozen=True)
class Verdict:
    """The answer of a non-inferiority test.

    Attributes
    ----------
    answer : str
        `SHOWN`, `NOT_SHOWN` or `UNDECIDABLE`.
    n_groups_needed : int or None
        Only if it is undecidable: number of groups with which two equal models would be `SHOWN`. None if there are
        enough groups, because the difference is close to the margin; or if there is only one group.
    """

    answer: str
    n_groups_needed: int | None = None

    def __str__(self) -> str:
        if self.n_groups_needed is None:
            return self.answer
        return f"{self.answer}: about {two_digits(self.n_groups_needed):,} groups are needed"


def others(kept_together: str) -> str:
    """Return on what an interval is, in words, such as ``other recordists``."""
    return OTHERS.get(kept_together, "other groups")


def on_others(kept_together: str) -> str:
    """Return what the interval of a difference is about."""
    return f"these two models on {others(kept_together)}"


def within_margin(
    low: float, high: float, margin: float, n_groups: int, error: float, critical: float = intervals.NORMAL
) -> Verdict:
    """Test non-inferiority: whether a model is shown to be worse than a reference by no more than a margin.

    ``shown`` if the whole interval of the difference, model minus reference, is above ``-margin``; ``not shown`` if the
    whole interval is below it; ``undecidable here`` if it contains ``-margin``. With the needed number of groups the
    interval of two equal models lies above ``-margin`` with a probability of 80 %:
    ``n_groups × ((critical + z.80) × error / margin)²``. Sources: Piaggio et al., "Reporting of noninferiority and
    equivalence randomized trials", JAMA 308, 2012; sample size: Julious, Statistics in Medicine 23, 2004, section 5.

    Parameters
    ----------
    low, high : float
        Ends of the interval; of the simultaneous interval if there are several models.
    margin : float
        Largest acceptable loss, 0 or more.
    n_groups : int
    error : float
        Standard error of the difference.
    critical : float
        Of the interval, in standard errors.
    """
    if low >= -margin - ROUNDING:
        return Verdict(SHOWN)
    if high < -margin - ROUNDING:
        return Verdict(NOT_SHOWN)
    if not margin or not np.isfinite(error):
        return Verdict(UNDECIDABLE)
    of_error = n_groups * ((critical + stats.norm.ppf(POWER)) * error / margin) ** 2
    # The share of recordists that are not in the data must be below the margin, too: see intervals.unseen_share.
    of_unseen = np.log1p(-intervals.unseen_share(n_groups, critical)) * n_groups / np.log1p(-margin)
    needed = max(of_error, of_unseen)
    return Verdict(UNDECIDABLE, int(np.ceil(needed)) if needed > n_groups else None)


def of_pair(found: intervals.Differences, number: int, margin: float) -> Verdict:
    """Return whether the first model of a pair is within a margin of the second, by simultaneous intervals."""
    low, high, error = (float(ends[number]) for ends in (found.low_of_all, found.high_of_all, found.error))
    return within_margin(low, high, margin, found.n_groups, error, found.critical)


def two_digits(number: int) -> int:
    """Return a number rounded to two significant digits."""
    return int(float(f"{number:.1e}"))


# ---------------------------------------------------------------------------------------- best of many


def optimism_of_best(n_hits: np.ndarray, n_clips: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0) -> float:
    """Return the optimism in the accuracy of the best of several models, which comes from the choice.

    In each resample of the groups the best model is chosen again. The optimism is its accuracy there minus its accuracy
    on all clips, as a mean. With six equal models this removes 70 % of the gain from the choice, because the best model
    on all clips still wins most often in the resamples. Source: Tibshirani & Tibshirani, "A bias correction for the
    minimum error rate in cross-validation", Annals of Applied Statistics 3, 2009, with resamples of groups in place of
    folds.

    Parameters
    ----------
    n_hits : ndarray, shape (n_models, n_groups)
        Numbers of correctly classified clips.
    n_clips : ndarray, shape (n_groups,)
    n_resamples : int
    seed : int
    """
    n_hits, n_clips = np.asarray(n_hits, dtype=float), np.asarray(n_clips, dtype=float)
    accuracies = n_hits.sum(axis=1) / n_clips.sum()
    total = 0.0
    for weights in intervals.resample_weights(len(n_clips), n_resamples, seed):
        drawn = (weights @ n_hits.T) / (weights @ n_clips)[:, None]
        best = drawn.argmax(axis=1)
        total += (drawn[np.arange(len(drawn)), best] - accuracies[best]).sum()
    return total / n_resamples


# -------------------------------------------------------------------------------------------- p values


def sign_flip_p_values(
    label_ids: np.ndarray,
    first_predicted_ids: np.ndarray,
    second_predicted_ids: np.ndarray,
    groups: np.ndarray,
    n_draws: int = N_SIGN_FLIPS,
    seed: int = 0,
) -> dict[str, float]:
    """Return two-sided p values of a sign-flip test: the probability that two equal models differ at least this much.

    If the models are equal, their answers can be exchanged in any group. This flips the sign of the group's share in
    the difference of accuracies. Macro F1 is not a sum over groups, so it is computed from the exchanged answers.
    Groups with the same answers of both models change nothing. If the others can be exchanged in at most `n_draws`
    ways, all are counted. Otherwise `n_draws` are drawn and counted with the observed one, so that p is not 0. Sources:
    Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005, §3; Phipson & Smyth, "Permutation p-values
    should never be zero", Statistical Applications in Genetics and Molecular Biology 9, 2010, §4.

    Parameters
    ----------
    label_ids, first_predicted_ids, second_predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        Clips of one group are exchanged together.
    n_draws : int
    seed : int

    Returns
    -------
    dict of str to float
        Of ``accuracy`` and ``macro_f1``.
    """
    models = [np.asarray(first_predicted_ids), np.asarray(second_predicted_ids)]
    n_classes = int(max(ids.max() for ids in (np.asarray(label_ids), *models))) + 1
    tables = (intervals.count(label_ids, ids, groups, n_classes=n_classes) for ids in models)
    return dict(zip(intervals.SCORES, p_values_of_counts(*tables, n_draws, seed).tolist(), strict=True))


def p_values_of_counts(
    first: intervals.Counts, second: intervals.Counts, n_draws: int = N_SIGN_FLIPS, seed: int = 0
) -> np.ndarray:
    """Return the result of `sign_flip_p_values` from the counts of both models, as an array."""
    (n_true, *first), (_, *second) = first, second
    totals = n_true.sum(axis=0)[None, :]
    sums = [table.sum(axis=0)[None, :] for table in (*first, *second)]
    # Change of the counts of the first model when a group is exchanged.
    shifts = [theirs - ours for ours, theirs in zip(first, second, strict=True)]
    differing = np.flatnonzero(np.any([shift.any(axis=1) for shift in shifts], axis=0))
    shifts = [shift[differing] for shift in shifts]

    def differences(exchanged: np.ndarray) -> np.ndarray:
        moved, n_clips = [exchanged @ shift for shift in shifts], totals.repeat(len(exchanged), axis=0)
        of_first = intervals.scores_of_counts(n_clips, sums[0] + moved[0], sums[1] + moved[1])
        of_second = intervals.scores_of_counts(n_clips, sums[2] - moved[0], sums[3] - moved[1])
        return np.abs(of_first - of_second)

    observed = differences(np.zeros((1, len(differing))))
    exact = 2 ** len(differing) <= n_draws
    n_ways = 2 ** len(differing) if exact else n_draws
    rng = np.random.default_rng(seed)
    at_once = max(1, intervals.NUMBERS_AT_ONCE // max(n_true.shape[1], len(differing)))
    as_far = np.zeros(2)
    for start in range(0, n_ways, at_once):
        ways = np.arange(start, min(start + at_once, n_ways))
        if exact:
            exchanged = (ways[:, None] >> np.arange(len(differing))) & 1
        else:
            exchanged = rng.integers(2, size=(len(ways), len(differing)))
        as_far += (differences(exchanged.astype(float)) >= observed - ROUNDING).sum(axis=1)
    return as_far / n_ways if exact else (as_far + 1) / (n_ways + 1)


def holm_adjusted(p_values: np.ndarray, n_tests: int | None = None) -> np.ndarray:
    """Return p values adjusted for their number (Holm 1979): those below 0.05 are significant at 0.05.

    If they were chosen from `n_tests`, such as the comparisons with the best of several models, they are adjusted for
    all of these.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * ((n_tests or len(p_values)) - np.arange(len(p_values)))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
