"""Scores against scikit-learn and plain loops, calibration by hand."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as reference

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
    assert set(scores) == {*expected, "expected_calibration_error", "expected_calibration_error_if_calibrated"}


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


def test_error_of_a_calibrated_model_is_that_of_its_draws():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.2, 1, 90)
    logits = np.stack([np.log(confidence), *np.log(np.tile((1 - confidence) / 9, (9, 1)))], axis=1)
    bins = evaluation.calibration(np.zeros(90, int), logits)
    errors = []
    for _ in range(3000):
        right = rng.random(90) < confidence
        errors.append(evaluation.expected_calibration_error(evaluation.calibration(np.where(right, 0, 1), logits)))
    assert evaluation.error_if_calibrated(bins) == pytest.approx(np.mean(errors), abs=0.002)


def test_error_if_calibrated_by_hand():
    # One clip of confidence 0.5: |1 - 0.5| or |0 - 0.5|. Two of 0.9: 0, 1 or 2 right, by 1.8, 0.8 and 0.2 off.
    bins = pd.DataFrame({"n_clips": [0, 1, 2, 1], "confidence": [np.nan, 0.5, 0.9, 1.0]})
    of_two = 0.01 * 1.8 + 0.18 * 0.8 + 0.81 * 0.2
    assert evaluation.error_if_calibrated(bins) == pytest.approx((0.5 + of_two + 0) / 4)


def test_score_all_names_the_columns_of_the_contract(answers):
    label_ids, logits = answers
    recording_ids = [f"r{label}-{i % 9}" for i, label in enumerate(label_ids)]
    table = pd.DataFrame({"label_id": label_ids, "recording_id": recording_ids, "group": recording_ids})
    scores = evaluation.score_all(table, logits)
    _, recording_labels, means = evaluation.recording_logits(np.array(recording_ids), label_ids, logits)
    assert scores["recording_accuracy"] == reference.accuracy_score(recording_labels, means.argmax(axis=1))
    assert scores["recording_macro_f1"] == pytest.approx(
        reference.f1_score(recording_labels, means.argmax(axis=1), average="macro")
    )
    assert scores["n_groups"] == len(set(recording_ids))
    assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
    assert scores["macro_f1_low"] < scores["macro_f1"] < scores["macro_f1_high"]
