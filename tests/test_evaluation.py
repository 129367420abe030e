"""Scores against scikit-learn and plain loops, intervals against closed forms, calibration by hand."""

import itertools
import logging

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference
from scipy import stats

from utils.scores import evaluation

LABELS = ["crow", "finch", "jay", "owl", "robin", "tit", "wren"]


def softmax(logits):
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture
def answers():
    """Return label ids and logits of 300 clips in 7 classes, right about half the time."""
    rng = np.random.default_rng(1)
    label_ids = rng.choice(7, size=300, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.05, 0.05])
    logits = rng.normal(size=(300, 7)).astype(np.float32)
    logits[np.arange(300), label_ids] += 1.5
    return label_ids, logits


def test_scores_agree_with_scikit_learn(answers):
    label_ids, logits = answers
    probabilities, predicted_ids = softmax(logits), logits.argmax(axis=1)
    one_hot = np.eye(7)[label_ids]
    scores = evaluation.score(label_ids, logits)
    expected = {
        "accuracy": reference.accuracy_score(label_ids, predicted_ids),
        "macro_f1": reference.f1_score(label_ids, predicted_ids, average="macro"),
        "weighted_f1": reference.f1_score(label_ids, predicted_ids, average="weighted"),
        "top5_accuracy": reference.top_k_accuracy_score(label_ids, logits, k=5),
        "macro_average_precision": reference.average_precision_score(one_hot, probabilities, average="macro"),
        "macro_auroc": reference.roc_auc_score(label_ids, probabilities, multi_class="ovr", average="macro"),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert set(scores) == {*expected, "expected_calibration_error"}


def test_macro_scores_leave_out_classes_without_clips(answers):
    label_ids, logits = answers
    there = ~np.isin(label_ids, [2, 5])
    label_ids, logits = label_ids[there], logits[there]
    predicted_ids, probabilities = logits.argmax(axis=1), softmax(logits)
    assert (predicted_ids == 2).any()  # a class without clips is predicted
    f1, areas = [], []
    for c in (0, 1, 3, 4, 6):
        hits = np.sum((label_ids == c) & (predicted_ids == c))
        f1.append(2 * hits / (np.sum(label_ids == c) + np.sum(predicted_ids == c)))
        inside, outside = probabilities[label_ids == c, c], probabilities[label_ids != c, c]
        areas.append(np.mean(inside[:, None] > outside[None, :]))  # Mann and Whitney's U
    scores = evaluation.score(label_ids, logits)
    assert scores["macro_f1"] == pytest.approx(np.mean(f1))
    assert scores["macro_auroc"] == pytest.approx(np.mean(areas))


def test_scores_of_a_single_class_are_nan_where_nothing_can_be_ranked():
    scores = evaluation.score(np.array([1, 1]), np.array([[0.0, 1.0], [2.0, 1.0]], np.float32))
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx(2 / 3)
    assert np.isnan(scores["macro_average_precision"])
    assert np.isnan(scores["macro_auroc"])


def test_top_k_breaks_ties_as_argmax_does(answers):
    label_ids, logits = answers
    rounded = np.round(logits)
    accuracy = np.mean(rounded.argmax(axis=1) == label_ids)
    assert evaluation.top_k_accuracy(label_ids, rounded, 1) == pytest.approx(accuracy)
    equal = np.zeros((7, 7), np.float32)
    assert evaluation.top_k_accuracy(np.arange(7), equal, 5) == pytest.approx(5 / 7)


def test_top_k_of_fewer_classes_is_one():
    assert evaluation.top_k_accuracy(np.array([0, 1]), np.zeros((2, 2), np.float32), 5) == 1.0


def test_recordings_average_the_logits_of_their_clips(answers):
    label_ids, logits = answers
    recording_ids = np.array([f"r{label}-{i % 9}" for i, label in enumerate(label_ids)])
    names, ids, means = evaluation.recording_logits(recording_ids, label_ids, logits)
    expected = pd.DataFrame(logits.astype(np.float64)).groupby(recording_ids).mean()
    assert list(names) == list(expected.index)
    np.testing.assert_allclose(means, expected.to_numpy(), rtol=1e-12)
    assert [f"r{label}" for label in ids] == [name.split("-")[0] for name in names]


def test_report_agrees_with_scikit_learn_and_with_the_macro_f1(answers):
    label_ids, logits = answers
    predicted_ids = logits.argmax(axis=1)
    report = evaluation.per_class_report(label_ids, predicted_ids, LABELS).set_index("label")
    expected = reference.classification_report(label_ids, predicted_ids, target_names=LABELS, output_dict=True)
    for label in LABELS:
        row = {"f1" if name == "f1-score" else name: value for name, value in expected[label].items()}
        assert report.loc[label, list(row)].to_dict() == pytest.approx(row)
    assert list(report["label_id"]) == list(range(7))
    assert report["f1"].mean() == pytest.approx(evaluation.macro_f1(label_ids, predicted_ids))


def test_report_leaves_open_what_is_not_defined():
    report = evaluation.per_class_report(np.array([0, 0, 1]), np.array([0, 2, 0]), ["a", "b", "c", "d"])
    assert report["support"].to_list() == [2, 1, 0, 0]
    np.testing.assert_array_equal(report["precision"], [0.5, np.nan, 0, np.nan])
    np.testing.assert_array_equal(report["recall"], [0.5, 0, np.nan, np.nan])
    supported = report["f1"][report["support"] > 0]
    np.testing.assert_allclose(supported, [0.5, 0])


def test_confusion_table_counts_every_pair(answers):
    label_ids, logits = answers
    predicted_ids = logits.argmax(axis=1)
    table = evaluation.confusion_table(label_ids, predicted_ids, LABELS)
    for i, true in enumerate(LABELS):
        for j, predicted in enumerate(LABELS):
            assert table.loc[true, predicted] == np.sum((label_ids == i) & (predicted_ids == j))


def test_calibration_by_hand():
    # Two clips say 0.9, one of them rightly; one says 0.62 rightly; one is certain and right.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.38, 0.62], [1.0, 1e-300]])
    bins = evaluation.calibration(np.array([0, 1, 1, 0]), np.log(probabilities))
    assert evaluation.expected_calibration_error(bins) == pytest.approx((2 * 0.4 + 0.38 + 0) / 4)
    assert bins.n_clips.sum() == 4
    assert (bins.n_clips[13], bins.n_clips[9], bins.n_clips[14]) == (2, 1, 1)
    assert (bins.confidence[13], bins.accuracy[13]) == (pytest.approx(0.9), 0.5)
    assert np.isnan(bins.accuracy[0])


def test_calibration_agrees_with_a_loop_over_bins(answers):
    label_ids, logits = answers
    confidence, correct = softmax(logits).max(axis=1), logits.argmax(axis=1) == label_ids
    error = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert evaluation.expected_calibration_error(evaluation.calibration(label_ids, logits)) == pytest.approx(error)


# ------------------------------------------------------------------------------------------- bootstrap


def test_interval_of_independent_clips_is_the_binomial_one():
    n, rate = 400, 0.7
    label_ids = np.zeros(n, int)
    predicted_ids = (np.arange(n) >= rate * n).astype(int)
    low, high = evaluation.bootstrap_intervals(label_ids, predicted_ids, np.arange(n), 20_000, seed=3)["accuracy"]
    expected = stats.binom.ppf([0.025, 0.975], n, rate) / n
    assert [low, high] == pytest.approx(expected, abs=1.01 / n)


def test_spread_over_groups_is_the_standard_error_of_their_mean():
    rng = np.random.default_rng(4)
    n_groups, size = 40, 10
    rates = rng.beta(2, 2, n_groups)
    hits = rng.random((n_groups, size)) < rates[:, None]
    groups = np.repeat(np.arange(n_groups), size)
    scores = evaluation.bootstrap_scores(np.zeros(400, int), (~hits).ravel().astype(int), groups, 20_000, seed=5)
    expected = hits.mean(axis=1).std() / np.sqrt(n_groups)
    assert scores["accuracy"].std() == pytest.approx(expected, rel=0.03)
    of_single_clips = np.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert scores["accuracy"].std() > 1.3 * of_single_clips


def test_every_resample_scores_as_if_its_clips_were_copied_out(answers, monkeypatch):
    label_ids, logits = answers
    predicted_ids = logits.argmax(axis=1)
    groups = np.array([f"g{i % 17 * (i % 3)}" for i in range(300)])  # of unequal size
    monkeypatch.setattr(evaluation, "WEIGHTS_AT_ONCE", 200)  # in several chunks
    scores = evaluation.bootstrap_scores(label_ids, predicted_ids, groups, 40, seed=6)
    names = np.unique(groups)
    weights = np.concatenate(list(evaluation.resample_weights(len(names), 40, seed=6)))
    assert (weights.sum(axis=1) == len(names)).all()
    for draw, accuracy, f1 in zip(weights.astype(int), scores["accuracy"], scores["macro_f1"], strict=True):
        drawn = np.repeat(names, draw)
        index = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        true, predicted = label_ids[index], predicted_ids[index]
        assert accuracy == pytest.approx(reference.accuracy_score(true, predicted))
        expected = reference.f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
        assert f1 == pytest.approx(expected)


def test_chunks_do_not_change_the_draws(monkeypatch):
    whole = np.concatenate(list(evaluation.resample_weights(13, 50, seed=7)))
    monkeypatch.setattr(evaluation, "WEIGHTS_AT_ONCE", 30)
    np.testing.assert_array_equal(whole, np.concatenate(list(evaluation.resample_weights(13, 50, seed=7))))


def test_interval_holds_the_score_and_depends_on_the_seed_alone(answers):
    label_ids, logits = answers
    predicted_ids, groups = logits.argmax(axis=1), np.arange(300) // 5
    first, again, other = (
        evaluation.bootstrap_intervals(label_ids, predicted_ids, groups, seed=seed) for seed in (8, 8, 9)
    )
    assert first == again != other
    for name, (low, high) in first.items():
        assert low < evaluation.score(label_ids, logits)[name] < high


def test_one_group_has_no_interval(caplog):
    with caplog.at_level(logging.WARNING):
        intervals = evaluation.bootstrap_intervals(np.array([0, 1]), np.array([0, 0]), np.array(["a", "a"]))
    assert np.isnan(list(intervals.values())).all()
    assert "one group" in caplog.text


def test_score_all_names_the_columns_of_the_contract(answers):
    label_ids, logits = answers
    recording_ids = [f"r{label}-{i % 9}" for i, label in enumerate(label_ids)]
    table = pd.DataFrame({"label_id": label_ids, "recording_id": recording_ids, "group": recording_ids})
    scores = evaluation.score_all(table, logits, seed=0)
    _, recording_labels, means = evaluation.recording_logits(np.array(recording_ids), label_ids, logits)
    assert scores["recording_accuracy"] == reference.accuracy_score(recording_labels, means.argmax(axis=1))
    assert scores["recording_macro_f1"] == pytest.approx(
        reference.f1_score(recording_labels, means.argmax(axis=1), average="macro")
    )
    assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
    assert scores["macro_f1_low"] < scores["macro_f1"] < scores["macro_f1_high"]


def test_paired_difference_agrees_with_copied_out_resamples(answers):
    label_ids, logits = answers
    first = logits.argmax(axis=1)
    second = np.where(np.arange(300) % 4 == 0, 0, first)
    groups = np.array([f"g{i % 17 * (i % 3)}" for i in range(300)])
    found = evaluation.paired_difference(label_ids, first, second, groups, 60, seed=6)
    names = np.unique(groups)
    differences = {"accuracy": [], "macro_f1": []}
    for draw in np.concatenate(list(evaluation.resample_weights(len(names), 60, seed=6))).astype(int):
        index = np.concatenate([np.flatnonzero(groups == name) for name in np.repeat(names, draw)])
        true = label_ids[index]
        differences["accuracy"].append((first[index] == true).mean() - (second[index] == true).mean())
        f1 = [
            reference.f1_score(true, model[index], labels=np.unique(true), average="macro", zero_division=0)
            for model in (first, second)
        ]
        differences["macro_f1"].append(f1[0] - f1[1])
    for name, values in differences.items():
        assert found[name][1:] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert found["accuracy"][0] == pytest.approx((first == label_ids).mean() - (second == label_ids).mean())
    assert found["macro_f1"][0] == pytest.approx(
        evaluation.macro_f1(label_ids, first) - evaluation.macro_f1(label_ids, second)
    )


def test_paired_interval_is_that_of_the_mean_difference_of_clusters():
    # Groups of one size: the difference is a mean over groups, its error their standard deviation by sqrt(n).
    rng = np.random.default_rng(3)
    n_groups, size = 200, 5
    label_ids = np.zeros(n_groups * size, dtype=int)
    hard = np.repeat(rng.random(n_groups) < 0.4, size)  # for both: cancels
    first = np.where(hard, 1, 0)
    second = np.where(hard | (rng.random(len(label_ids)) < np.repeat(rng.choice([0.0, 0.3], n_groups), size)), 1, 0)
    found = evaluation.paired_difference(label_ids, first, second, np.arange(len(label_ids)) // size, 8000, seed=1)
    of_groups = ((first == 0).astype(float) - (second == 0)).reshape(n_groups, size).mean(axis=1)
    error = of_groups.std() / np.sqrt(n_groups)
    difference, low, high = found["accuracy"]
    assert difference == pytest.approx(of_groups.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    unpaired = np.hypot(*(np.sqrt(p * (1 - p) / n_groups) for p in ((first == 0).mean(), (second == 0).mean())))
    assert high - low < 2 * 1.96 * unpaired / 2


def test_equal_models_do_not_differ_and_one_group_has_no_interval(answers):
    label_ids, logits = answers
    predicted_ids = logits.argmax(axis=1)
    same = evaluation.paired_difference(label_ids, predicted_ids, predicted_ids, np.arange(300) // 5)
    assert same == {"accuracy": (0, 0, 0), "macro_f1": (0, 0, 0)}
    value, low, high = evaluation.paired_difference(label_ids, predicted_ids, label_ids, np.zeros(300))["accuracy"]
    assert value == pytest.approx((predicted_ids == label_ids).mean() - 1)
    assert np.isnan([low, high]).all()


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
    found = evaluation.sign_flip_p_values(label_ids, first, second, groups)
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)
    drawn = evaluation.sign_flip_p_values(label_ids, first, second, groups, n_draws=15, seed=1)
    assert list(drawn.values()) == pytest.approx(expected, abs=4 * 0.5 / 15**0.5)
    assert all(p * 16 == pytest.approx(round(p * 16)) and p > 0 for p in drawn.values())


def test_sign_flips_know_a_difference_when_they_see_one():
    label_ids, groups = np.zeros(40, int), np.arange(40)
    right, wrong = np.zeros(40, int), np.ones(40, int)
    # Ten groups that one model alone gets right: of 2**10 signs two are as far as that.
    first, second = right, np.where(groups < 10, wrong, right)
    assert evaluation.sign_flip_p_values(label_ids, first, second, groups)["accuracy"] == pytest.approx(2 / 2**10)
    assert evaluation.sign_flip_p_values(label_ids, first, wrong, groups)["accuracy"] == 1 / 10_000
    assert evaluation.sign_flip_p_values(label_ids, first, first, groups) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_sign_flips_of_models_that_are_alike_have_uniform_p_values():
    rng = np.random.default_rng(0)
    groups, label_ids = np.repeat(np.arange(30), 4), np.zeros(120, int)
    p_values = []
    for seed in range(200):
        first, second = (rng.random((2, 30, 1)) + 0.3 * rng.random((2, 30, 4)) > 0.6).reshape(2, -1).astype(int)
        p_values.append(evaluation.sign_flip_p_values(label_ids, first, second, groups, 199, seed)["accuracy"])
    # Standard error of the share under 0.2 is 0.028.
    assert np.mean(np.array(p_values) <= 0.2) == pytest.approx(0.2, abs=0.1)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 0.05


def test_p_values_by_holm_by_hand():
    assert evaluation.holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert evaluation.holm_adjusted([0.5, 0.9]) == pytest.approx([1, 1])
    assert evaluation.holm_adjusted([0.2]) == pytest.approx([0.2])
