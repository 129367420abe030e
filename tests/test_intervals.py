"""Intervals against scikit-learn, loops, closed forms and calculations by hand; their coverage: drills.coverage."""

import logging

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy import stats

from utils.scores import intervals


@pytest.fixture
def answers():
    """Return label ids, predicted ids and groups of 300 clips in 7 classes, right about half the time."""
    rng = np.random.default_rng(1)
    label_ids = rng.choice(7, size=300, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.05, 0.05])
    predicted_ids = np.where(rng.random(300) < 0.5, label_ids, rng.integers(7, size=300))
    return label_ids, predicted_ids, np.array([f"g{i % 17 * (i % 3)}" for i in range(300)])


def scores_by_hand(true, predicted):
    f1 = reference.f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    return reference.accuracy_score(true, predicted), f1


# ------------------------------------------------------------------------------------------- jackknife


@pytest.mark.parametrize("numbers_at_once", [1, 50, 4_000_000])
def test_jackknife_agrees_with_a_loop_over_groups(answers, monkeypatch, numbers_at_once):
    monkeypatch.setattr(intervals, "NUMBERS_AT_ONCE", numbers_at_once)
    label_ids, predicted_ids, groups = answers
    found = intervals.jackknife(intervals.count(*answers))
    assert found.estimate == pytest.approx(scores_by_hand(label_ids, predicted_ids))
    without = [scores_by_hand(label_ids[groups != name], predicted_ids[groups != name]) for name in np.unique(groups)]
    np.testing.assert_allclose(found.left_out, np.transpose(without))
    n = len(without)
    for error, values in zip(found.error, zip(*without, strict=True), strict=True):
        assert error == pytest.approx(((n - 1) / n * sum((v - np.mean(values)) ** 2 for v in values)) ** 0.5)


def test_jackknife_of_a_mean_of_equal_groups_is_its_standard_error():
    hits = np.random.default_rng(4).random((40, 10)) < 0.6
    counts = intervals.count(np.zeros(400, int), (~hits).ravel().astype(int), np.repeat(np.arange(40), 10))
    assert intervals.jackknife(counts).error[0] == pytest.approx(hits.mean(axis=1).std(ddof=1) / np.sqrt(40))


def test_jackknife_takes_many_tables_at_once(answers):
    label_ids, predicted_ids, groups = answers
    tables = [intervals.count(label_ids, ids, groups, n_classes=7) for ids in (predicted_ids, label_ids)]
    together = intervals.jackknife(intervals.Counts(*(np.stack(pair) for pair in zip(*tables, strict=True))))
    for number, table in enumerate(tables):
        alone = intervals.jackknife(table)
        np.testing.assert_allclose(together.estimate[:, number], alone.estimate)
        np.testing.assert_allclose(together.left_out[:, number], alone.left_out)


def test_counts_of_named_groups_have_rows_without_clips():
    counts = intervals.count([0, 1], [0, 0], ["b", "d"], names=np.array(["a", "b", "c", "d"]), n_classes=3)
    assert counts.n_true.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert counts.n_predicted[:, 0].tolist() == [0, 1, 0, 1] and counts.n_hits.sum() == 1


def test_chunks_do_not_change_the_draws(monkeypatch):
    whole = np.concatenate(list(intervals.resample_weights(13, 50, seed=7)))
    assert (whole.sum(axis=1) == 13).all()
    monkeypatch.setattr(intervals, "NUMBERS_AT_ONCE", 30)
    np.testing.assert_array_equal(whole, np.concatenate(list(intervals.resample_weights(13, 50, seed=7))))


# ------------------------------------------------------------------------------------------- one model


def wilson(n_right, n, degrees):
    """Wilson's interval as the roots of (p - x)^2 = t^2 x (1 - x) / n."""
    t2, p = stats.t.ppf(0.975, degrees) ** 2, n_right / n
    return np.sort(np.roots([1 + t2 / n, -(2 * p + t2 / n), p**2]).real)


def test_interval_of_independent_clips_is_wilsons():
    label_ids, predicted_ids = np.zeros(400, int), (np.arange(400) >= 280).astype(int)
    found = intervals.score_intervals(label_ids, predicted_ids, np.arange(400))["accuracy"]
    # The jackknife has n - 1 where the binomial variance has n.
    assert found == pytest.approx(wilson(0.7 * 399, 399, 399), abs=1e-9)
    assert found == pytest.approx((0.6534, 0.7428), abs=3e-4), "Wilson's interval of 280 of 400, from a table"


def test_clips_of_a_group_that_answer_alike_count_once():
    label_ids, predicted_ids = np.zeros(400, int), (np.arange(400) >= 280).astype(int)
    groups = np.arange(400) // 10
    found = intervals.score_intervals(label_ids, predicted_ids, groups)["accuracy"]
    assert found == pytest.approx(wilson(0.7 * 39, 39, 39), abs=1e-9)


@pytest.mark.parametrize("right", [1, 0])
def test_interval_has_a_width_where_all_groups_score_the_same(right):
    label_ids, groups = np.zeros(120, int), np.arange(120) // 3
    t2 = stats.t.ppf(0.975, 39) ** 2
    expected = np.sort([right, abs(right - t2 / (40 + t2))])
    found = intervals.score_intervals(label_ids, np.full(120, 1 - right), groups)
    assert found["accuracy"] == pytest.approx(expected, abs=1e-6)
    assert found["macro_f1"] == pytest.approx(expected, abs=1e-6)


def test_half_of_every_group_has_a_width():
    low, high = intervals.score_intervals(np.zeros(80, int), np.arange(80) % 2, np.arange(80) // 2)["accuracy"]
    assert (low, high) == pytest.approx(wilson(20, 40, 39))


def test_degrees_of_freedom_are_those_of_equal_groups_minus_one():
    equal = np.zeros((12, 3), int)
    equal[np.arange(12), np.arange(12) % 3] = 5
    np.testing.assert_allclose(intervals.degrees_of_freedom(equal), 11)
    # By hand: clips 30, 10, 10 of two labels.
    unequal = np.array([[10, 20], [10, 0], [0, 10]])
    of_labels = np.array([0.25 + 4 / 9, 0.25, 1 / 9])
    expected = [50**2 / (30**2 + 10**2 + 10**2) - 1, of_labels.sum() ** 2 / (of_labels**2).sum() - 1]
    np.testing.assert_allclose(intervals.degrees_of_freedom(unequal), np.maximum(expected, 1))
    many = np.stack([equal, np.pad(unequal, ((0, 9), (0, 1)))])
    found = intervals.degrees_of_freedom(many)
    np.testing.assert_allclose(found[:, 0], 11)
    np.testing.assert_allclose(found[:, 1], np.maximum(expected, 1))


def test_one_large_group_makes_intervals_wider():
    """As many groups and clips, and each group answers alike; half of the clips of one set are of one group."""
    label_ids = np.zeros(100, int)
    even, uneven = np.arange(100) // 5, np.r_[np.zeros(52, int), 1 + np.arange(48) % 19]
    widths = []
    for groups in (even, uneven):
        predicted_ids = np.array([0, 0, 0, 1])[groups % 4]
        found = intervals.score_intervals(label_ids, predicted_ids, groups)["accuracy"]
        counts = intervals.count(label_ids, predicted_ids, groups)
        some = intervals.jackknife(counts)
        usual = intervals.share_interval(some.estimate, some.error, 20, 100)
        widths.append((found[1] - found[0]) / (usual[1] - usual[0])[0])
    assert 1 < widths[0] < 1.1 < 1.4 < widths[1]


def test_intervals_hold_the_scores_and_no_seed_moves_them(answers):
    found = intervals.score_intervals(*answers)
    assert found == intervals.score_intervals(*answers)
    for (low, high), score in zip(found.values(), scores_by_hand(*answers[:2]), strict=True):
        assert 0 < low < score < high < 1


def test_one_group_has_no_interval_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        found = intervals.score_intervals(np.array([0, 1]), np.array([0, 0]), np.array(["a", "a"]))
    assert np.isnan(list(found.values())).all()
    assert "all clips are of one group, so there is no interval" in caplog.text


def test_few_groups_are_warned_of(caplog):
    intervals.warn_of_few_groups("val", 30)
    assert not caplog.text
    intervals.warn_of_few_groups("val", 29)
    assert "val: 29 groups are few" in caplog.text


# ----------------------------------------------------------------------------------------- differences


def test_paired_interval_is_that_of_the_mean_difference_of_clusters():
    # Groups of one size: the difference is a mean over groups, and its interval that of a t test of one sample.
    rng = np.random.default_rng(3)
    n_groups, size = 200, 5
    label_ids = np.zeros(n_groups * size, dtype=int)
    hard = np.repeat(rng.random(n_groups) < 0.4, size)  # for both: cancels
    first = np.where(hard, 1, 0)
    second = np.where(hard | (rng.random(len(label_ids)) < np.repeat(rng.choice([0.0, 0.3], n_groups), size)), 1, 0)
    found = intervals.paired_difference(label_ids, first, second, np.arange(len(label_ids)) // size)
    of_groups = ((first == 0).astype(float) - (second == 0)).reshape(n_groups, size).mean(axis=1)
    expected = stats.ttest_1samp(of_groups, 0).confidence_interval(0.95)
    assert found["accuracy"] == pytest.approx((of_groups.mean(), *expected))


def test_paired_difference_is_that_of_the_scores(answers):
    label_ids, first, groups = answers
    second = np.where(np.arange(300) % 4 == 0, 0, first)
    found = intervals.paired_difference(label_ids, first, second, groups)
    expected = np.subtract(scores_by_hand(label_ids, first), scores_by_hand(label_ids, second))
    assert [found[name][0] for name in intervals.SCORES] == pytest.approx(expected)
    turned = intervals.paired_difference(label_ids, second, first, groups)
    for name, (value, low, high) in found.items():
        assert turned[name] == pytest.approx((-value, -high, -low))
        assert low < value < high


def test_equal_models_may_differ_in_groups_that_are_not_here(answers):
    label_ids, predicted_ids, _ = answers
    groups = np.arange(300) // 5
    unseen = stats.binomtest(0, 60).proportion_ci(0.95, method="exact").high
    for value, low, high in intervals.paired_difference(label_ids, predicted_ids, predicted_ids, groups).values():
        assert (value, low, high) == pytest.approx((0, -unseen, unseen))
    wrong = (label_ids + 1) % 7
    value, low, high = intervals.paired_difference(label_ids, label_ids, wrong, groups)["accuracy"]
    assert (value, low, high) == pytest.approx((1, 1 - 2 * unseen, 1))


def test_one_clip_that_differs_does_not_make_an_interval_narrower(answers):
    label_ids, predicted_ids, _ = answers
    groups = np.arange(300) // 5
    other = predicted_ids.copy()
    other[np.argmax(predicted_ids == label_ids)] = 8
    same, one = (
        intervals.paired_difference(label_ids, ids, predicted_ids, groups)["accuracy"] for ids in (predicted_ids, other)
    )
    assert one[1] < same[1] and one[2] == pytest.approx(same[2], abs=1 / 300)


def test_a_difference_on_one_group_has_no_interval(answers):
    label_ids, predicted_ids, _ = answers
    value, low, high = intervals.paired_difference(label_ids, predicted_ids, label_ids, np.zeros(300))["accuracy"]
    assert value == pytest.approx((predicted_ids == label_ids).mean() - 1)
    assert np.isnan([low, high]).all()


# ---------------------------------------------------------------------------------- many models at once


def test_one_comparison_has_the_critical_value_of_one():
    left_out = np.random.default_rng(0).normal(size=(1, 30))
    assert intervals.simultaneous_critical_value(left_out) == pytest.approx(stats.t.ppf(0.975, 29))
    thrice = np.concatenate([left_out, left_out, 3 * left_out + 1, np.zeros((1, 30))])
    assert intervals.simultaneous_critical_value(thrice) == pytest.approx(stats.t.ppf(0.975, 29)), "one and the same"


def test_critical_values_of_independent_comparisons_by_their_closed_form():
    rng = np.random.default_rng(1)
    for n in (6, 14):
        orthogonal = np.linalg.qr(rng.normal(size=(2001, n)) - 0.0)[0].T
        orthogonal -= orthogonal.mean(axis=1, keepdims=True)
        expected = stats.norm.ppf((1 + 0.95 ** (1 / n)) / 2)
        assert intervals.simultaneous_critical_value(orthogonal) == pytest.approx(expected, abs=0.03)


def test_critical_value_of_all_pairs_is_tukeys():
    rng = np.random.default_rng(2)
    models = np.linalg.qr(rng.normal(size=(41, 5)))[0].T
    pairs = np.array([models[i] - models[j] for i in range(5) for j in range(i)])
    expected = stats.studentized_range.ppf(0.95, 5, 40) / np.sqrt(2)
    assert intervals.simultaneous_critical_value(pairs - pairs.mean(axis=1, keepdims=True)) == pytest.approx(
        expected, abs=0.06
    )


def test_more_comparisons_than_groups_and_another_seed():
    left_out = np.random.default_rng(3).normal(size=(50, 12))
    first, other = (intervals.simultaneous_critical_value(left_out, seed) for seed in (0, 1))
    assert first == pytest.approx(other, abs=0.04)
    assert 0.06 * abs(first - other) < 0.002, "an end at the study's largest standard error"
    assert first > intervals.simultaneous_critical_value(left_out[:8])


def test_differences_stand_by_themselves_and_together(answers):
    label_ids, predicted_ids, groups = answers
    others = [np.where(np.arange(300) % k == 0, 0, predicted_ids) for k in (3, 5)]
    models = [intervals.jackknife(intervals.count(label_ids, ids, groups)) for ids in (predicted_ids, *others)]
    found = intervals.differences(models, [(0, 1), (0, 2), (1, 2)])
    for number, (first, second) in enumerate([(predicted_ids, others[0]), (predicted_ids, others[1]), tuple(others)]):
        alone = intervals.paired_difference(label_ids, first, second, groups)
        for name in intervals.SCORES:
            of_pair = found[name].of_pair(number)
            assert (of_pair["difference"], of_pair["low"], of_pair["high"]) == pytest.approx(alone[name])
            assert of_pair["low_of_all"] < of_pair["low"] < of_pair["high"] < of_pair["high_of_all"]


def test_a_difference_of_scores_has_an_interval_between_minus_1_and_1():
    low, high = intervals.difference_interval([-0.3, 0.3, np.nan], 0.2, 4, 5.0)
    assert (low[0], high[1]) == (-1, 1) and high[0] < 1 and low[1] > -1 and np.isnan([low[2], high[2]]).all()


# ------------------------------------------------------------------------------------ a training recipe


def trainings_of(rng, n_trainings, n_groups=40, spread=0.0, test_set="a"):
    groups, hard = np.repeat(np.arange(n_groups), 3), rng.normal(size=n_groups)
    found = []
    for _ in range(n_trainings):
        latent = 0.3 + hard[groups] + spread * rng.normal() + rng.normal(size=len(groups))
        found.append(intervals.Training(test_set, np.zeros(len(groups), int), (latent < 0).astype(int), groups))
    return found


def test_interval_of_a_recipe_by_hand():
    rng = np.random.default_rng(5)
    some = trainings_of(rng, 3, spread=1.0)
    hits = np.array([(t.predicted_ids == 0).reshape(40, 3).mean(axis=1) for t in some])
    between = hits.mean(axis=1).var(ddof=1)
    of_groups = hits.mean(axis=0).var(ddof=1) / 40
    within = max(0, (hits.var(axis=1, ddof=1).mean() / 40 - of_groups) * 3 / 2)
    variance = of_groups + max(0, between - within) / 3
    freedom = variance**2 / (of_groups**2 / 39 + (between / 3) ** 2 / 2)
    t = stats.t.ppf(0.975, freedom)
    expected = intervals.share_interval(hits.mean(), np.sqrt(variance), 40, 360, t)
    assert intervals.recipe_intervals(some)["accuracy"] == pytest.approx((hits.mean(), *map(float, expected)))


def test_recipe_is_less_certain_than_one_of_its_models():
    rng = np.random.default_rng(6)
    folds = [training for fold in "abcde" for training in trainings_of(rng, 3, spread=1.0, test_set=fold)]
    folds = [t._replace(groups=np.char.add(t.test_set, t.groups.astype(str))) for t in folds]
    value, low, high = intervals.recipe_intervals(folds)["accuracy"]
    pooled = [np.concatenate([getattr(t, name) for t in folds]) for name in ("label_ids", "predicted_ids", "groups")]
    of_models = intervals.score_intervals(*pooled)["accuracy"]
    assert low < of_models[0] < value < of_models[1] < high
    once = intervals.recipe_intervals(folds[::3])["accuracy"]  # a training for each fold
    assert once[2] - once[1] > high - low
    mixed = intervals.recipe_intervals([*folds[:3], *folds[3::3]])["accuracy"]  # three on one fold alone
    assert mixed[2] - mixed[1] > high - low


def test_recipe_of_models_that_are_always_right_or_of_one_group():
    some = [t._replace(predicted_ids=t.label_ids) for t in trainings_of(np.random.default_rng(7), 3)]
    value, low, high = intervals.recipe_intervals(some)["accuracy"]
    assert value == high == 1 and 0.85 < low < 1
    alone = [t._replace(groups=np.zeros(len(t.groups))) for t in some]
    assert np.isnan(intervals.recipe_intervals(alone)["macro_f1"][1:]).all()


def test_two_trainings_make_no_recipe():
    with pytest.raises(ValueError, match=r"2 training\(s\); an interval of a recipe needs 3 or more"):
        intervals.recipe_intervals(trainings_of(np.random.default_rng(8), 2))
