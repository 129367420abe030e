"""95 % intervals of scores, by the groups of clips: of a model, of differences, of many models, and of a recipe.

Clips of one recordist resemble each other, so the unit is the group that the split keeps together. All intervals use
the delete-one-group jackknife: each score is computed again without each group in turn. It has no random draws, so a
printed end never depends on a seed. `drills.coverage` measures how often each interval contains the true value.
"""

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from utils.core.text import counted

log = logging.getLogger(__name__)

INTERVAL_PERCENT = 95.0
LEVEL = INTERVAL_PERCENT / 100
NORMAL = float(stats.norm.ppf((1 + LEVEL) / 2))
SCORES = ("accuracy", "macro_f1")
# Numbers in memory at once: 32 MiB of float64.
NUMBERS_AT_ONCE = 4_000_000
# With fewer, a log line warns that an interval is rough.
FEW_GROUPS = 30
N_DRAWS = 100_000
LEAST_TRAININGS = 3
# A smaller standard error is a rounding error.
ROUNDING = 1e-12


# ------------------------------------------------------------------------------------------- jackknife


class Counts(NamedTuple):
    """Numbers of clips by group and class, each of shape (..., n_groups, n_classes)."""

    n_true: np.ndarray
    n_predicted: np.ndarray
    n_hits: np.ndarray


class Jackknife(NamedTuple):
    """Scores, and the same without each group.

    Attributes
    ----------
    estimate : ndarray, shape (n_scores, ...)
        In the order of `SCORES`.
    left_out : ndarray, shape (n_scores, ..., n_groups)
    """

    estimate: np.ndarray
    left_out: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Standard error of each estimate; see `standard_error`."""
        return standard_error(self.left_out)

    @property
    def bias(self) -> np.ndarray:
        """Quenouille's estimate of how much too high each estimate is, because the groups are few."""
        return (self.left_out.shape[-1] - 1) * (self.left_out.mean(axis=-1) - self.estimate)


def count(
    label_ids: np.ndarray,
    predicted_ids: np.ndarray,
    groups: np.ndarray,
    names: np.ndarray | None = None,
    n_classes: int | None = None,
) -> Counts:
    """Count the clips of each group by their class, by the predicted class, and those where both agree.

    Parameters
    ----------
    label_ids, predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        Any values that can be sorted; the tables have the groups in their order.
    names : ndarray, optional
        All groups, sorted, also those without a clip here.
    n_classes : int, optional
        By default, up to the highest class.
    """
    label_ids, predicted_ids = np.asarray(label_ids), np.asarray(predicted_ids)
    names = np.unique(groups) if names is None else names
    group_index = np.searchsorted(names, groups)
    shape = len(names), n_classes or int(max(label_ids.max(), predicted_ids.max())) + 1

    def table(classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        cells = np.bincount(group_index * shape[1] + classes, weights, minlength=shape[0] * shape[1])
        return cells.reshape(shape).astype(float)

    return Counts(table(label_ids), table(predicted_ids), table(label_ids, label_ids == predicted_ids))


def of_each_group(of_clips: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the sums of columns over the clips of each group, shape (n_columns, n_groups)."""
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), of_clips.shape[1]))
    np.add.at(sums, index, of_clips)
    return sums.T


def scores_of_counts(n_true: np.ndarray, n_predicted: np.ndarray, n_hits: np.ndarray) -> np.ndarray:
    """Return accuracy and macro F1 of counts by class.

    Parameters
    ----------
    n_true, n_predicted, n_hits : ndarray, shape (..., n_classes)

    Returns
    -------
    ndarray, shape (2, ...)
        Macro F1 is the mean over the classes that have clips, as in `evaluation.macro_f1`.
    """
    occurs = n_true > 0
    # F1 = 2 TP / (2 TP + FP + FN). TP + FN are the clips of a class, TP + FP those predicted as it.
    f1 = np.divide(2 * n_hits, n_true + n_predicted, out=np.zeros(np.broadcast(n_hits, n_true).shape), where=occurs)
    return np.stack([n_hits.sum(axis=-1) / n_true.sum(axis=-1), f1.sum(axis=-1) / occurs.sum(axis=-1)])


def jackknife(counts: Counts) -> Jackknife:
    """Return accuracy and macro F1, and both without each group; NaN if there is only one group.

    Source: Shao & Tu, "The Jackknife and Bootstrap", 1995, section 2.1; groups as units: Korn & Graubard, "Analysis of
    Health Surveys", 1999, section 2.5.
    """
    totals = [table.sum(axis=-2) for table in counts]
    n_groups = counts.n_true.shape[-2]
    at_once = max(1, NUMBERS_AT_ONCE // max(1, counts.n_hits.size // n_groups))
    left_out = []
    with np.errstate(invalid="ignore"):
        for start in range(0, n_groups, at_once):
            some = (..., slice(start, start + at_once), slice(None))
            remaining = (total[..., None, :] - table[some] for total, table in zip(totals, counts, strict=True))
            left_out.append(scores_of_counts(*remaining))
    return Jackknife(scores_of_counts(*totals), np.concatenate(left_out, axis=-1))


def standard_error(left_out: np.ndarray) -> np.ndarray:
    """Return the jackknife standard error of statistics that were computed without each group (last axis)."""
    n_groups = left_out.shape[-1]
    deviations = left_out - left_out.mean(axis=-1, keepdims=True)
    return np.sqrt((n_groups - 1) / n_groups * (deviations**2).sum(axis=-1))


def resample_weights(n_groups: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw groups with replacement, `n_groups` at a time; yield the number of draws of each group.

    Yields
    ------
    ndarray of float64, shape (n, n_groups)
        As many rows as fit in memory; `n_resamples` in all.
    """
    rng = np.random.default_rng(seed)
    at_once = max(1, NUMBERS_AT_ONCE // n_groups)
    for start in range(0, n_resamples, at_once):
        n = min(at_once, n_resamples - start)
        drawn = rng.integers(n_groups, size=(n, n_groups)) + n_groups * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups).astype(np.float64)


# ------------------------------------------------------------------------------------------- intervals


def critical_value(n_groups: int) -> float:
    """Return the two-sided critical value of a single difference: Student's t with ``n_groups - 1`` degrees."""
    return float(stats.t.ppf((1 + LEVEL) / 2, n_groups - 1)) if n_groups > 1 else float("nan")


def degrees_of_freedom(n_true: np.ndarray) -> np.ndarray:
    """Return the degrees of freedom of the standard errors of accuracy and macro F1, at least 1.

    A few recordists often have most of the clips, and some labels have few recordists. Then a standard error is as
    uncertain as that of fewer equal groups. Their number minus 1 is returned. For accuracy this number is
    ``(sum n)² / sum n²``, with n the clips of a group. For macro F1 it is ``(sum v)² / sum v²``, with v the sum over
    labels of the squared share of the label's clips that are of the group; labels are taken as independent.

    Sources: effective number: Kish, "Survey Sampling", 1965, section 11.7; for a t distribution: Carter, Schnepel &
    Steigerwald, "Asymptotic behavior of a t-test robust to cluster heterogeneity", Review of Economics and Statistics
    99, 2017; of a sum of variances: Satterthwaite, Biometrics Bulletin 2, 1946.

    Parameters
    ----------
    n_true : ndarray, shape (..., n_groups, n_classes)
        Of `Counts`.

    Returns
    -------
    ndarray, shape (2, ...)
    """
    of_groups, of_labels = n_true.sum(axis=-1), n_true.sum(axis=-2, keepdims=True)
    shares = np.divide(n_true, of_labels, out=np.zeros(n_true.shape), where=of_labels > 0)
    return np.maximum(effective_groups(np.stack([of_groups, (shares**2).sum(axis=-1)])) - 1, 1)


def effective_groups(weights: np.ndarray) -> np.ndarray:
    """Return how many equal groups say as much as groups with these weights (last axis): `degrees_of_freedom`."""
    weights = np.asarray(weights, dtype=float)
    squares = (weights**2).sum(axis=-1)
    return np.divide(weights.sum(axis=-1) ** 2, squares, out=np.ones(squares.shape), where=squares > 0)


def critical_values(n_true: np.ndarray) -> np.ndarray:
    """Return the two-sided critical values of accuracy and macro F1, of `degrees_of_freedom`, shape (2, ...)."""
    return stats.t.ppf((1 + LEVEL) / 2, degrees_of_freedom(n_true))


def critical_values_of_cases(n_cases: np.ndarray) -> np.ndarray:
    """Return the two-sided critical value of a share, from its cases in each group (last axis), as for accuracy."""
    return stats.t.ppf((1 + LEVEL) / 2, np.maximum(effective_groups(n_cases) - 1, 1))


def share_interval(
    estimate: np.ndarray, error: np.ndarray, n_groups: int, n_clips: int, critical: float = NORMAL
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's interval of a score in [0, 1] on its effective number of clips.

    The effective number is that of independent clips with the same standard error, and at most the number of clips.
    If no group changes the score, the standard error is 0; then it is the number of groups. So the interval always has
    a width and stays in [0, 1].

    Sources: Wilson, "Probable inference", JASA 22, 1927; effective number: Korn & Graubard, "Confidence intervals for
    proportions with small expected number of positive counts estimated from survey data", Survey Methodology 24, 1998.

    Parameters
    ----------
    estimate, error : ndarray
        Scores and their standard errors.
    n_groups, n_clips : int, or ndarray of int
        If an array, of each score.
    critical : float
        In standard errors.
    """
    estimate, error = np.asarray(estimate, dtype=float), np.asarray(error, dtype=float)
    spread, has_error = estimate * (1 - estimate), error > ROUNDING
    n = np.divide(spread, error**2, out=np.full(np.shape(spread), n_groups, float), where=has_error)
    n = np.clip(n, ROUNDING, n_clips)
    middle = (estimate + critical**2 / (2 * n)) / (1 + critical**2 / n)
    half = critical / (1 + critical**2 / n) * np.sqrt(np.maximum(spread, 0) / n + critical**2 / (4 * n**2))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def unseen_share(n_groups: int, critical: float) -> float:
    """Return how large the share of a kind of group can be of which none is among the groups.

    It is the upper end at 0 of the exact interval of a share with the level of `critical` (Clopper & Pearson,
    Biometrika 26, 1934), with Student's t of ``n_groups - 1`` degrees: about 3.7 / `n_groups` for one comparison.
    """
    return float(1 - stats.t.sf(critical, n_groups - 1) ** (1 / n_groups))


def difference_interval(
    difference: np.ndarray, error: np.ndarray, n_groups: int, critical: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``difference ± critical × error``, or a wider interval if few groups differ.

    A model may fail on a kind of recordist that is not in these data; see `unseen_share`. In them the difference can be
    from -1 to 1. The interval covers this too. So two models with the same answers also have an interval, and one
    differing clip does not make it narrower. Both scores are from 0 to 1, so the ends are from -1 to 1.
    """
    difference, error = np.asarray(difference, dtype=float), np.asarray(error, dtype=float)
    unseen = unseen_share(n_groups, critical)
    low = np.minimum(difference - critical * error, difference * (1 - unseen) - unseen)
    high = np.maximum(difference + critical * error, difference * (1 - unseen) + unseen)
    return np.maximum(low, -1), np.minimum(high, 1)


def score_ends(found: Jackknife, n_true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % intervals of accuracy and macro F1 of one model, shape (2, ...).

    They are those of `share_interval` with `critical_values`.

    Parameters
    ----------
    found : Jackknife
    n_true : ndarray, shape (..., n_groups, n_classes)
        Of `Counts`.
    """
    n_groups, n_clips = n_true.shape[-2], n_true.sum(axis=(-1, -2))
    return share_interval(found.estimate, found.error, n_groups, n_clips, critical_values(n_true))


def score_intervals(
    label_ids: np.ndarray, predicted_ids: np.ndarray, groups: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals of accuracy and macro F1: of this model, on other recordists like these.

    See `score_ends`. `drills.coverage` measures how often they hold the true value; docs/intervals.md has the table.

    Parameters
    ----------
    label_ids, predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        Groups that the split keeps together; any values that can be sorted.

    Returns
    -------
    dict of str to (float, float)
        Lower and upper end; NaN, with a warning in the log, if all clips are of one group.
    """
    counts = count(label_ids, predicted_ids, groups)
    if len(counts.n_true) < 2:
        log.warning("all clips are of one group, so there is no interval: it is NaN")
        return dict.fromkeys(SCORES, (float("nan"), float("nan")))
    ends = score_ends(jackknife(counts), counts.n_true)
    return {name: (float(low), float(high)) for name, low, high in zip(SCORES, *ends, strict=True)}


def warn_of_few_groups(split: str, n_groups: int) -> None:
    """Warn if the intervals of scores on a split are rough because the split has few groups."""
    if n_groups < FEW_GROUPS:
        found = counted(n_groups, "group is", "groups are")
        log.warning("%s: %s few: intervals from fewer than %d are rough", split, found, FEW_GROUPS)


def paired_difference(
    label_ids: np.ndarray, first_predicted_ids: np.ndarray, second_predicted_ids: np.ndarray, groups: np.ndarray
) -> dict[str, tuple[float, float, float]]:
    """Return the scores of the first model minus those of the second on the same clips, with 95 % intervals.

    The jackknife removes the same group from both, so the difficulty of clips for both models cancels. The interval of
    the difference is much narrower than those of the two scores. See `difference_interval`.

    Parameters
    ----------
    label_ids, first_predicted_ids, second_predicted_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        Groups that the split keeps together.

    Returns
    -------
    dict of str to (float, float, float)
        First minus second in ``accuracy`` and ``macro_f1``, then the lower and the upper end, which are NaN if all
        clips are of one group.
    """
    models = [jackknife(count(label_ids, ids, groups)) for ids in (first_predicted_ids, second_predicted_ids)]
    return {
        name: (float(found.estimate[0]), float(found.low[0]), float(found.high[0]))
        for name, found in differences(models, [(0, 1)]).items()
    }


# ---------------------------------------------------------------------------------- many models at once


@dataclass(frozen=True)
class Differences:
    """Differences of pairs of models in one score.

    Attributes
    ----------
    estimate, error : ndarray, shape (n_pairs,)
        First minus second, and its standard error.
    low, high : ndarray, shape (n_pairs,)
        Ends of the 95 % interval of each pair by itself.
    critical : float
        Of all pairs together, in standard errors.
    low_of_all, high_of_all : ndarray, shape (n_pairs,)
        Ends of simultaneous 95 % intervals: all of them contain their true values with a probability of 95 %.
    n_groups : int
    """

    estimate: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    critical: float
    low_of_all: np.ndarray
    high_of_all: np.ndarray
    n_groups: int

    def of_pair(self, number: int) -> dict[str, float]:
        """Return ``difference, low, high, low_of_all, high_of_all`` of a pair."""
        values = (self.estimate, self.low, self.high, self.low_of_all, self.high_of_all)
        names = ("difference", "low", "high", "low_of_all", "high_of_all")
        return {name: float(value[number]) for name, value in zip(names, values, strict=True)}


def differences(
    models: Sequence[Jackknife], pairs: Sequence[tuple[int, int]], names: Sequence[str] = SCORES
) -> dict[str, Differences]:
    """Return the differences of pairs of models that were scored on the same clips, each by itself and all together.

    Parameters
    ----------
    models : sequence of Jackknife
        On the same groups.
    pairs : sequence of (int, int)
        Numbers of the first and the second model; the difference is first minus second.
    names : sequence of str
        Of the scores.
    """
    first, second = np.array(pairs).T
    found = {}
    for number, name in enumerate(names):
        estimates = np.array([model.estimate[number] for model in models])
        left_out = np.array([model.left_out[number] for model in models])
        found[name] = _differences(estimates[first] - estimates[second], left_out[first] - left_out[second])
    return found


def p_of_t(difference: float, error: float, n_groups: int) -> float:
    """Return the two-sided p value of a difference by Student's t; 1 if no group changes it, NaN with one group."""
    if error <= ROUNDING:
        return 1.0
    return float(2 * stats.t.sf(abs(difference) / error, n_groups - 1))


def accuracy_differences(
    label_ids: np.ndarray, predicted_ids: np.ndarray, reference_ids: np.ndarray, groups: np.ndarray, n_others: int = 0
) -> Differences:
    """Return the differences in accuracy of many models to one, each by itself and all together.

    Parameters
    ----------
    label_ids, reference_ids, groups : ndarray, shape (n_clips,)
    predicted_ids : ndarray of int, shape (n_models, n_clips)
    n_others : int
        As for `simultaneous_critical_value`.
    """
    names, group_index = np.unique(groups, return_inverse=True)
    n_clips = np.bincount(group_index)
    gains = (predicted_ids == label_ids).astype(float) - (reference_ids == label_ids)
    gain = np.stack([np.bincount(group_index, one, len(names)) for one in gains])
    total = gain.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # without the only group
        left_out = (total - gain) / (n_clips.sum() - n_clips)
    return _differences(total[:, 0] / n_clips.sum(), left_out, n_others)


def _differences(estimate: np.ndarray, left_out: np.ndarray, n_others: int = 0) -> Differences:
    n_groups = left_out.shape[-1]
    error, critical = standard_error(left_out), simultaneous_critical_value(left_out, n_others=n_others)
    return Differences(
        *(estimate, error),
        *difference_interval(estimate, error, n_groups, critical_value(n_groups)),
        critical,
        *difference_interval(estimate, error, n_groups, critical),
        n_groups,
    )


def simultaneous_critical_value(
    left_out: np.ndarray, seed: int = 0, n_draws: int | None = None, n_others: int = 0
) -> float:
    """Return the critical value of all comparisons together: the 95 % point of the largest ``|t|`` among them (max-t).

    The joint distribution of the t values is a multivariate t with the correlations from the jackknife: the limit of a
    joint bootstrap over groups. With one comparison it is `critical_value`. Its standard error is about 0.006 with
    100,000 draws, and 0.02 with 20,000 draws, as for 2,000 comparisons.

    Sources: Westfall & Young, "Resampling-Based Multiple Testing", 1993, chapter 2; multivariate t: Hothorn, Bretz &
    Westfall, "Simultaneous inference in general parametric models", Biometrical Journal 50, 2008, section 3.

    Parameters
    ----------
    left_out : ndarray, shape (n_comparisons, n_groups)
        Statistics that were computed without each group.
    seed, n_draws : int
    n_others : int
        Comparisons whose statistics are not known, among which the choice was made, too. Each counts with its whole
        probability of being beyond the critical value (Bonferroni), so it is too high rather than too low.
    """
    n_groups = left_out.shape[-1]
    deviations = left_out - left_out.mean(axis=-1, keepdims=True)
    lengths = np.linalg.norm(deviations, axis=-1, keepdims=True)
    differs = lengths[:, 0] > ROUNDING
    directions = np.unique((deviations[differs] / lengths[differs]).round(9), axis=0)
    if n_groups < 2 or len(directions) + n_others < 2:
        return critical_value(n_groups)
    if len(directions) < 2:
        return float(stats.t.isf((1 - LEVEL) / 2 / (len(directions) + n_others), n_groups - 1))
    if len(directions) < n_groups:  # a root of the correlations needs fewer draws
        values, vectors = np.linalg.eigh(directions @ directions.T)
        directions = vectors * np.sqrt(np.maximum(values, 0))
    n_draws = n_draws or min(N_DRAWS, max(10_000, 10 * NUMBERS_AT_ONCE // len(directions)))
    rng = np.random.default_rng(seed)
    largest = []
    at_once = max(1, NUMBERS_AT_ONCE // max(directions.shape))
    for start in range(0, n_draws, at_once):
        drawn = rng.standard_normal((min(at_once, n_draws - start), directions.shape[1]))
        largest.append(np.abs(drawn @ directions.T).max(axis=1))
    scales = np.sqrt(rng.chisquare(n_groups - 1, n_draws) / (n_groups - 1))
    largest = np.concatenate(largest) / scales
    if not n_others:
        return float(np.quantile(largest, LEVEL))
    largest.sort()
    of_others = 2 * n_others * stats.t.sf(largest, n_groups - 1)
    possible = largest[1 - np.arange(1, n_draws + 1) / n_draws + of_others <= 1 - LEVEL]
    return float(possible[0]) if len(possible) else float(stats.t.isf((1 - LEVEL) / 2 / n_others, n_groups - 1))


# ------------------------------------------------------------------------------------ a training recipe


class Training(NamedTuple):
    """Answers of one training of a recipe.

    Attributes
    ----------
    test_set : hashable
        Equal for trainings that were scored on the same clips.
    label_ids, predicted_ids, groups : ndarray, shape (n_clips,)
    """

    test_set: Hashable
    label_ids: np.ndarray
    predicted_ids: np.ndarray
    groups: np.ndarray


def recipe_intervals(trainings: Sequence[Training]) -> dict[str, tuple[float, float, float]]:
    """Return the scores of a model trained by a recipe, with 95 % intervals: another training, on other recordists.

    The interval of one model does not include the variance between trainings: in a simulation it covers the score of
    the recipe in 69 to 97 % of the cases. Here the variance has two parts. The part of the groups is from the jackknife
    of the answers of all trainings together. The part of the training is the variance between trainings on the same
    test clips, minus the part that comes from the finite number of groups. If each test set has one training, it is the
    variance between test sets minus that of their groups. The degrees of freedom are Satterthwaite's, of these parts
    (of the groups: `degrees_of_freedom`); the ends are those of `share_interval`.

    Sources: crossed random effects of models and cases: Gallas, "One-shot estimate of MRMC variance: AUC", Academic
    Radiology 13, 2006; Bouthillier et al., "Accounting for variance in machine learning benchmarks", MLSys 2021;
    Satterthwaite, Biometrics Bulletin 2, 1946. The corrected resampled t (Nadeau & Bengio, Machine Learning 52, 2003)
    covered 82 to 100 % in the same simulation, these intervals 94 to 98 %.

    Parameters
    ----------
    trainings : sequence of Training
        Three or more.

    Returns
    -------
    dict of str to (float, float, float)
        Accuracy and macro F1 over all answers, then the lower and the upper end; NaN if all clips are of one group.

    Raises
    ------
    ValueError
        If there are fewer than three trainings.
    """
    if len(trainings) < LEAST_TRAININGS:
        raise ValueError(f"{len(trainings)} training(s); an interval of a recipe needs {LEAST_TRAININGS} or more")
    names = np.unique(np.concatenate([training.groups for training in trainings]))
    n_classes = max(int(max(t.label_ids.max(), t.predicted_ids.max())) for t in trainings) + 1
    tables = [count(t.label_ids, t.predicted_ids, t.groups, names, n_classes) for t in trainings]
    estimate, low, high = recipe_of_counts(tables, [training.test_set for training in trainings])
    if len(names) < 2:
        log.warning("all clips are of one group, so the recipe has no interval: it is NaN")
        low = high = np.full(2, np.nan)
    ends = zip(SCORES, estimate, low, high, strict=True)
    return {name: (float(value), float(least), float(most)) for name, value, least, most in ends}


def recipe_of_counts(
    tables: Sequence[Counts], test_sets: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the result of `recipe_intervals` from the counts of each training on all groups, as arrays (2, ...)."""
    members: dict[Hashable, list[int]] = {}
    for number, test_set in enumerate(test_sets):
        members.setdefault(test_set, []).append(number)

    def jackknife_of(numbers: Sequence[int]) -> Jackknife:
        total = [sum(some) for some in zip(*(tables[number] for number in numbers), strict=True)]
        has_clips = total[0].any(axis=-1).reshape(-1, total[0].shape[-2]).any(axis=0)
        return jackknife(Counts(*(table[..., has_clips, :] for table in total)))

    n_answers = np.array([table.n_true.sum(axis=(-1, -2)) for table in tables])
    together = jackknife_of(range(len(tables)))
    alone = [jackknife_of([number]) for number in range(len(tables))]
    scores, variances = np.array([one.estimate for one in alone]), np.array([one.error**2 for one in alone])
    repeated = [numbers for numbers in members.values() if len(numbers) > 1]
    if repeated:
        degrees = sum(len(numbers) - 1 for numbers in repeated)
        between = sum(scores[numbers].var(axis=0, ddof=1) * (len(numbers) - 1) for numbers in repeated) / degrees
        # In the mean of n trainings, the variance of groups that are hard for all trainings is not divided by n; that
        # of groups that are hard for one training is.
        mixed = sum(
            (variances[numbers].mean(axis=0) - jackknife_of(numbers).error ** 2) * len(numbers) for numbers in repeated
        )
        within = np.maximum(mixed / degrees, 0)
    else:
        degrees, between, within = len(scores) - 1, scores.var(axis=0, ddof=1), variances.mean(axis=0)
    shares = [n_answers[numbers].sum(axis=0) / n_answers.sum(axis=0) for numbers in members.values()]
    factor = sum(share**2 / len(numbers) for share, numbers in zip(shares, members.values(), strict=True))
    n_groups, degrees_of_groups = together.left_out.shape[-1], degrees_of_freedom(sum(table.n_true for table in tables))
    of_groups = together.error**2
    variance = of_groups + np.maximum(between - within, 0) * factor
    uncertain = of_groups**2 / degrees_of_groups + (between * factor) ** 2 / degrees
    freedom = np.divide(variance**2, uncertain, out=degrees_of_groups.copy(), where=uncertain > 0)
    critical = stats.t.ppf((1 + LEVEL) / 2, freedom)
    ends = share_interval(together.estimate, np.sqrt(variance), n_groups, n_answers.sum(axis=0), critical)
    return together.estimate, *ends
