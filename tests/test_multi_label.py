"""Scores of several labels a clip against scikit-learn, plain loops and numbers by hand."""

import numpy as np
import pytest
import sklearn.metrics as reference
from scipy import stats

from utils.scores import intervals, multi_label

FIRST_FIVE = ("accuracy", "macro_average_precision", "macro_auroc", "macro_f1", "precision")


def answers_of(targets, logits, groups=None, is_known=None, is_detected=None, seconds=None, model=None):
    targets, logits = np.asarray(targets, bool), np.asarray(logits, float)
    n_clips = len(targets)
    return multi_label.Answers(
        targets,
        np.ones_like(targets) if is_known is None else np.asarray(is_known, bool),
        logits,
        logits >= 0 if is_detected is None else np.asarray(is_detected, bool),
        np.arange(n_clips) if groups is None else np.asarray(groups),
        np.full(n_clips, 3.6) if seconds is None else np.asarray(seconds, float),
        model,
    )


@pytest.fixture
def answers():
    """Return 120 clips of 12 groups with 5 labels, of which one never occurs; a third is silence; outputs have ties."""
    rng = np.random.default_rng(2)
    targets = rng.random((120, 5)) < [0.5, 0.3, 0.2, 0.0, 0.1]
    targets[rng.random(120) < 0.3] = False
    logits = (rng.normal(size=targets.shape) + 1.5 * targets - 0.5).round(1)
    is_known = targets | (rng.random(targets.shape) < 0.9)
    return answers_of(targets, logits, rng.integers(12, size=120), is_known)


def by_scikit_learn(answers):
    """Return the first six scores, label by label from the known clips."""
    precisions, areas, f1, rows = [], [], [], range(answers.targets.shape[1])
    for c in rows:
        known = answers.is_known[:, c]
        truth, logits = answers.targets[known, c], answers.logits[known, c]
        if truth.any():
            precisions.append(reference.average_precision_score(truth, logits))
            areas.append(reference.roc_auc_score(truth, logits))
            f1.append(reference.f1_score(truth, answers.is_detected[known, c]))
    known = answers.is_known
    truth, detected = answers.targets[known], answers.is_detected[known]
    hits = [
        truth[np.where(known, logits, -np.inf).argmax()]
        for truth, known, logits in zip(answers.targets, answers.is_known, answers.logits, strict=True)
        if truth.any()
    ]
    pooled = [reference.precision_score(truth, detected), reference.recall_score(truth, detected)]
    return [np.mean(hits), np.mean(precisions), np.mean(areas), np.mean(f1), *pooled]


def test_scores_agree_with_scikit_learn(answers):
    _, scores, labels = multi_label.score_all(answers)
    expected = by_scikit_learn(answers)
    assert [scores[name] for name in multi_label.SCORES[:6]] == pytest.approx(expected, abs=1e-12)
    assert labels["average_precision"].isna().tolist() == [False, False, False, True, False]
    assert labels["support"].tolist() == answers.targets.sum(axis=0).tolist()
    assert scores["macro_average_precision"] == pytest.approx(labels["average_precision"].mean())
    assert multi_label.macro_average_precision(answers.targets, answers.is_known, answers.logits) == pytest.approx(
        scores["macro_average_precision"]
    )
    shares = [answers.targets[answers.is_known[:, c], c].mean() for c in (0, 1, 2, 4)]
    assert scores["chance_average_precision"] == pytest.approx(np.mean(shares))


def test_intervals_are_those_of_the_jackknife_over_groups(answers):
    _, scores, labels = multi_label.score_all(answers)
    without = np.array([by_scikit_learn(answers.of(answers.groups != group)) for group in range(12)])
    error = np.sqrt(11 / 12 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    for number, name in enumerate(FIRST_FIVE):
        n_cases = {
            "accuracy": answers.targets.any(axis=1).sum(),
            "precision": (answers.is_detected & answers.is_known).sum(),
        }
        counted = {"accuracy": answers.targets.any(axis=1), "precision": answers.is_detected & answers.is_known}
        cases = counted.get(name, answers.targets).reshape(120, -1).sum(axis=1)
        sizes = np.array([cases[answers.groups == group].sum() for group in range(12)])
        t = stats.t.ppf(0.975, sizes.sum() ** 2 / (sizes**2).sum() - 1)
        low, high = intervals.share_interval(scores[name], error[number], 12, n_cases.get(name, 120), t)
        if name in multi_label.BIASED:  # the interval also holds the score without its bias
            bias = 11 * (without[:, number].mean() - scores[name])
            low, high = min(low, low - bias), max(high, high - bias)
        assert (scores[f"{name}_low"], scores[f"{name}_high"]) == pytest.approx((low, high)), name
    assert (labels["recall_low"] < labels["recall"])[[0, 1, 2, 4]].all()
    found = multi_label.compared(answers)
    assert np.allclose(found.left_out.T, without[:, [1, 0]])


def test_an_unknown_label_counts_neither_for_nor_against(answers):
    changed = np.where(answers.is_known, answers.logits, 9.0)
    one, other = (
        multi_label.score_all(answers_of(answers.targets, logits, answers.groups, answers.is_known)).scores
        for logits in (answers.logits, changed)
    )
    assert one == pytest.approx(other, nan_ok=True)


def test_top_accuracy_leaves_silence_out_and_passes_over_unknown_labels():
    targets = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
    logits = np.array([[0.1, 0.9, 0.2], [9, 0, 0], [0.5, 0.6, 0.1], [0.9, 0.5, 0.1]])
    known = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]], bool)
    hits = multi_label.top_accuracy(targets, known, logits)
    assert hits[[0, 2, 3]].tolist() == [1, 0, 1] and np.isnan(hits[1])
    assert multi_label.top_accuracy(targets, known, logits, k=2)[2] == 1


def test_false_alarms_by_hand():
    """Three background clips of 3.6 s are 0.003 h; two false alarms in one of them; one clip's label is not known."""
    targets = [[1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    logits = [[1, 1], [1, 1], [-1, -1], [-1, -1], [1, -1]]
    known = [[1, 1], [1, 1], [1, 1], [1, 1], [1, 0]]
    _, scores, labels = multi_label.score_all(answers_of(targets, logits, [0, 1, 2, 3, 3], known))
    assert scores["n_background_clips"] == 3 and scores["background_hours"] == pytest.approx(0.003)
    assert scores["false_alarms_per_hour"] == pytest.approx(2 / 0.003)
    assert labels["false_alarms_per_hour"].tolist() == pytest.approx([1 / 0.003, 1 / 0.003])
    rates = [2 / 0.003, 0, 2 / 0.002, 2 / 0.002]
    error = np.sqrt(3 / 4 * ((rates - np.mean(rates)) ** 2).sum())
    t = stats.t.ppf(0.975, 2)  # three groups have one silent clip each
    hours = (2 / 0.003) / error**2 * (stats.norm.ppf(0.975) / t) ** 2
    n = 2 / 0.003 * hours
    expected = stats.chi2.ppf([0.025, 0.975], [2 * n, 2 * n + 2]) / 2 / hours
    assert [scores["false_alarms_per_hour_low"], scores["false_alarms_per_hour_high"]] == pytest.approx(expected)


def test_no_interval_is_without_width(answers):
    perfect = answers_of(answers.targets, 2.0 * answers.targets - 1, answers.groups)
    _, scores, _ = multi_label.score_all(perfect)
    for name in multi_label.SCORES:
        assert scores[f"{name}_low"] < scores[f"{name}_high"], name
    assert scores["precision"] == 1 and scores["false_alarms_per_hour"] == 0
    # One silent clip of each of the groups, and no alarm: 3.69 alarms would still be likely in so many hours.
    n_groups = len(np.unique(answers.groups[~answers.targets.any(axis=1)]))
    assert scores["false_alarms_per_hour_high"] == pytest.approx(-np.log(0.025) / (n_groups * 3.6 / 3600))
    assert multi_label.rate_interval(float("nan"), 0.0, 1.0, 1.0) == pytest.approx((np.nan, np.nan), nan_ok=True)


def test_one_group_has_no_interval(caplog):
    _, scores, _ = multi_label.score_all(answers_of([[1, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0, 1]], [7, 7, 7]))
    assert scores["accuracy"] == 1.0 and np.isnan(scores["accuracy_low"]) and np.isnan(scores["precision_high"])
    assert np.isnan(scores["false_alarms_per_hour_low"]) and "one group" in caplog.text


def test_nothing_to_rank_is_nan():
    silence = answers_of([[0, 0], [0, 0]], [[-1, -2], [-1, -3]])
    _, scores, _ = multi_label.score_all(silence)
    assert all(np.isnan(scores[name]) for name in (*multi_label.SCORES[:6], "chance_average_precision"))
    assert scores["false_alarms_per_hour"] == 0 and scores["false_alarms_per_hour_high"] > 0


def test_rankings_of_two_models_are_not_mixed(answers):
    halves = [answers.of(answers.groups < 6), answers.of(answers.groups >= 6)]
    of_halves = [multi_label.score_all(half).scores["macro_average_precision"] for half in halves]
    halves[1] = multi_label.Answers(**{**vars(halves[1]), "logits": halves[1].logits + 100})
    joined = multi_label.score_all(multi_label.joined(halves)).scores
    assert joined["macro_average_precision"] == pytest.approx(np.mean(of_halves))
    assert joined["precision"] == pytest.approx(multi_label.score_all(answers).scores["precision"])
