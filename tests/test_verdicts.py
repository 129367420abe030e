"""P values against every exchange made by hand, margins by the formula, the optimism of a best by copied resamples."""

import itertools

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy import stats

from utils.scores import evaluation, intervals, verdicts

# --------------------------------------------------------------------------------------------- margins


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.019, 0.05, "shown"),
        (-0.02, 0.05, "shown"),
        (0.01, 0.05, "shown"),
        (-0.08, -0.021, "not shown"),
        (-0.08, -0.02, "undecidable here"),
        (-0.03, 0.05, "undecidable here"),
        (np.nan, np.nan, "undecidable here"),
    ],
)
def test_a_margin_has_three_answers(low, high, answer):
    assert verdicts.within_margin(low, high, 0.02, 57, error=0.02).answer == answer


def test_groups_that_are_needed_by_the_formula():
    found = verdicts.within_margin(-0.07, 0.03, 0.02, 133, error=0.024)
    needed = 133 * ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.024 / 0.02) ** 2
    assert found.n_groups_needed == np.ceil(needed) == 1504
    assert str(found) == "undecidable here: about 1,500 groups are needed"
    wider = verdicts.within_margin(-0.09, 0.05, 0.02, 133, error=0.024, critical=2.8)
    assert wider.n_groups_needed == np.ceil(133 * ((2.8 + stats.norm.ppf(0.8)) * 0.024 / 0.02) ** 2)


def test_groups_that_are_needed_have_the_power_that_they_promise():
    rng, n, margin, spread = np.random.default_rng(0), 40, 0.1, 0.5
    needed = verdicts.within_margin(-1, 1, margin, n, spread / np.sqrt(n)).n_groups_needed
    error = spread / np.sqrt(needed)
    lows = rng.normal(0, error, 20_000) - stats.norm.ppf(0.975) * error
    shown = [verdicts.within_margin(low, 1, margin, needed, error).answer == "shown" for low in lows]
    assert np.mean(shown) == pytest.approx(0.80, abs=0.01)


def test_no_number_of_groups_where_it_would_mislead():
    near = verdicts.within_margin(-0.021, -0.019, 0.02, 500, error=0.0005)
    assert (near.n_groups_needed, str(near)) == (None, "undecidable here")
    assert str(verdicts.within_margin(np.nan, np.nan, 0.02, 1, np.nan)) == "undecidable here"
    assert str(verdicts.within_margin(-0.01, 0.01, 0.0, 50, 0.005)) == "undecidable here", "no margin, no number"


def test_equal_answers_are_shown_only_by_enough_groups():
    def of(n_groups):
        critical = intervals.critical_value(n_groups)
        low, high = intervals.difference_interval(0.0, 0.0, n_groups, critical)
        return verdicts.within_margin(low, high, 0.02, n_groups, 0.0, critical)

    assert of(57).answer == "undecidable here" and of(57).n_groups_needed == 183  # log(0.025) / log(0.98)
    assert of(183).answer == "shown" and of(182).answer == "undecidable here"


@pytest.mark.parametrize(("number", "rounded"), [(7, 7), (1506, 1500), (2191, 2200), (99_600, 100_000)])
def test_two_digits(number, rounded):
    assert verdicts.two_digits(number) == rounded


# ---------------------------------------------------------------------------------------- best of many


def test_optimism_agrees_with_resamples_that_are_copied_out():
    rng = np.random.default_rng(3)
    n_clips = rng.integers(1, 5, 12)
    n_hits = rng.binomial(n_clips, 0.5, size=(4, 12))
    accuracies = n_hits.sum(axis=1) / n_clips.sum()
    gains = []
    for weights in np.concatenate(list(intervals.resample_weights(12, 200, seed=5))).astype(int):
        drawn = np.repeat(np.arange(12), weights)
        scores = n_hits[:, drawn].sum(axis=1) / n_clips[drawn].sum()
        gains.append(scores.max() - accuracies[scores.argmax()])
    found = verdicts.optimism_of_best(n_hits, n_clips, 200, seed=5)
    assert found == pytest.approx(np.mean(gains))
    assert verdicts.optimism_of_best(n_hits[:1], n_clips, 4000) == pytest.approx(0, abs=0.01), "nothing was chosen"


def test_optimism_of_models_that_are_alike_is_what_the_best_of_them_gains():
    rng, gains, found = np.random.default_rng(6), [], []
    for _ in range(60):
        n_hits = rng.binomial(2, 0.5, size=(6, 80))
        gains.append(n_hits.sum(axis=1).max() / 160 - 0.5)
        found.append(verdicts.optimism_of_best(n_hits, np.full(80, 2), 400))
    assert 0.6 < np.mean(found) / np.mean(gains) < 1, "it takes off most of what the choice gains, never more"


# ------------------------------------------------------------------------------------------ sign flips


def brute_force_p_values(label_ids, first, second, groups):
    """Exchange the answers of every set of groups, clip by clip, and score with scikit-learn.

    The first group is left as it is: with it exchanged, all differences are those of the other groups, negated.
    """

    def difference(a, b):
        return np.array(
            [
                reference.accuracy_score(label_ids, a) - reference.accuracy_score(label_ids, b),
                evaluation.macro_f1(label_ids, a) - evaluation.macro_f1(label_ids, b),
            ]
        )

    observed = np.abs(difference(first, second))
    names, as_far = np.unique(groups), np.zeros(2)
    for flips in itertools.product([False, True], repeat=len(names) - 1):
        exchanged = np.isin(groups, names[1:][list(flips)])
        a, b = np.where(exchanged, second, first), np.where(exchanged, first, second)
        as_far += np.abs(difference(a, b)) >= observed - 1e-9
    return as_far / 2 ** (len(names) - 1)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_agree_with_every_exchange_made_by_hand(seed):
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(8, size=30))
    label_ids = rng.integers(4, size=30)
    first, second = (np.where(rng.random(30) < p, label_ids, rng.integers(4, size=30)) for p in (0.6, 0.3))
    same = np.isin(groups, np.unique(groups)[:2])  # groups that are answered alike change nothing
    second[same] = first[same]
    expected = brute_force_p_values(label_ids, first, second, groups)
    found = verdicts.sign_flip_p_values(label_ids, first, second, groups)
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)
    drawn = verdicts.sign_flip_p_values(label_ids, first, second, groups, n_draws=15, seed=1)
    assert list(drawn.values()) == pytest.approx(expected, abs=4 * 0.5 / 15**0.5)
    assert all(p * 16 == pytest.approx(round(p * 16)) and p > 0 for p in drawn.values())


def test_sign_flips_know_a_difference_when_they_see_one():
    label_ids, groups = np.zeros(40, int), np.arange(40)
    right, wrong = np.zeros(40, int), np.ones(40, int)
    # Ten groups that one model alone gets right: of 2**10 signs two are as far as that.
    first, second = right, np.where(groups < 10, wrong, right)
    assert verdicts.sign_flip_p_values(label_ids, first, second, groups)["accuracy"] == pytest.approx(2 / 2**10)
    assert verdicts.sign_flip_p_values(label_ids, first, wrong, groups)["accuracy"] == 1 / 10_000
    assert verdicts.sign_flip_p_values(label_ids, first, first, groups) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_sign_flips_of_models_that_are_alike_have_uniform_p_values():
    rng = np.random.default_rng(0)
    groups, label_ids = np.repeat(np.arange(30), 4), np.zeros(120, int)
    p_values = []
    for seed in range(200):
        first, second = (rng.random((2, 30, 1)) + 0.3 * rng.random((2, 30, 4)) > 0.6).reshape(2, -1).astype(int)
        p_values.append(verdicts.sign_flip_p_values(label_ids, first, second, groups, 199, seed)["accuracy"])
    # Standard error of the share under 0.2 is 0.028.
    assert np.mean(np.array(p_values) <= 0.2) == pytest.approx(0.2, abs=0.1)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 0.05


def test_p_values_by_holm_by_hand():
    assert verdicts.holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm_adjusted([0.5, 0.9]) == pytest.approx([1, 1])
    assert verdicts.holm_adjusted([0.2]) == pytest.approx([0.2])
    assert verdicts.holm_adjusted([0.01, 0.005], 4) == pytest.approx([0.03, 0.02]), "a choice from four"
