"""Calibration and thresholds against closed forms, scikit-learn and plain loops; and the drill that chose the rule."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_score, recall_score

from drills import thresholds as drill
from utils.scores import calibration, evaluation, intervals, thresholds, verdicts

rng_of = np.random.default_rng


def data(seed=0, n_groups=60, n_labels=5, strength=3.0, several=False):
    """Draw logits, truth and groups: several clips a group, which hold its label, or any labels."""
    rng = rng_of(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, 5, n_groups))
    truth = np.arange(n_labels) == rng.integers(0, n_labels, n_groups)[groups][:, None]
    if several:
        truth = rng.random(truth.shape) < 0.3
    logits = strength * truth + rng.normal(size=(n_groups, n_labels))[groups] + rng.normal(size=truth.shape)
    return 3 * logits - 4 * several, truth, groups


# ------------------------------------------------------------------------------------------- calibration


def test_the_temperature_is_that_of_the_closed_form():
    """If all clips have the logits ±a, the best temperature makes their probability the share of right ones."""
    a, n, n_right = 2.0, 100, 80
    logits = np.tile([a, -a], (n, 1))
    truth = np.zeros((n, 2), dtype=bool)
    truth[:n_right, 0], truth[n_right:, 1] = True, True
    groups = rng_of(0).permutation(n)
    found = calibration.fit(logits, truth, np.ones_like(truth), groups, False)
    assert found["temperature"] == pytest.approx(2 * a / logit(n_right / n), rel=1e-4)
    scores = calibration.calibrated(logits, found, False)
    bins = calibration.bins(scores, truth, np.ones_like(truth), False)
    assert evaluation.expected_calibration_error(bins) == pytest.approx(0, abs=1e-5)


def test_the_temperature_is_the_slope_of_a_logistic_regression_without_intercept():
    logits, truth, groups = data(n_labels=2)
    found = calibration.fit(logits, truth, np.ones_like(truth), groups, False)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    model.fit((logits[:, 1] - logits[:, 0])[:, None], truth[:, 1])
    assert 1 / found["temperature"] == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_platt_scaling_is_the_logistic_regression_of_his_targets_on_known_pairs():
    logits, truth, groups = data(several=True)
    known = rng_of(1).random(truth.shape) < 0.8
    found = calibration.fit(logits, truth, known, groups, True)
    x, y = logits[known], truth[known]
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(np.tile(x, 2)[:, None], np.repeat([1, 0], len(x)), sample_weight=np.concatenate([target, 1 - target]))
    assert found["kind"] == "platt"
    assert found["slope"] == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert found["intercept"] == pytest.approx(model.intercept_[0], rel=1e-4)
    scores = calibration.calibrated(logits, found, True)
    np.testing.assert_allclose(scores, expit(found["slope"] * logits + found["intercept"]), rtol=1e-12)
    before, after = (
        evaluation.expected_calibration_error(calibration.bins(one, truth, known, True))
        for one in (expit(logits), scores)
    )
    assert after < before / 2


def test_perfect_scores_have_a_fit():
    truth = np.eye(3, dtype=bool)[np.arange(30) % 3]
    for is_multi_label in (False, True):
        found = calibration.fit(40 * truth - 20.0, truth, np.ones_like(truth), np.arange(30), is_multi_label)
        assert np.isfinite(calibration.calibrated(40 * truth - 20.0, found, is_multi_label)).all()


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_what_val_does_not_support_is_left_as_it_is(is_multi_label):
    logits, truth, groups = data(several=is_multi_label)
    known = np.ones_like(truth)
    one_group, no_label = np.zeros_like(groups), np.zeros_like(truth)
    assert calibration.fit(logits, truth, known, one_group, is_multi_label) == calibration.AS_IT_IS
    assert calibration.fit(logits, no_label, known, groups, is_multi_label) == calibration.AS_IT_IS
    how = calibration.fit(logits, truth, known, groups, is_multi_label)
    calibrated = np.log(calibration.calibrated(logits, how, is_multi_label) + 1e-300)
    if not is_multi_label:  # a second time, nothing is better than what is there
        again = calibration.fit(calibrated, truth, known, groups, False)
        assert again.get("temperature") == pytest.approx(1, abs=0.01)
    backwards = calibration.fit(-logits, truth, known, groups, is_multi_label)
    assert backwards["kind"] == "temperature", "no calibration turns the order of scores round"


# -------------------------------------------------------------------------------------------- thresholds


def by_loops(scores, truth, known, groups, target):
    """Return the thresholds by the rule, from its description alone."""
    scores = np.floor(scores * 10_000) / 10_000
    found = []
    for c in range(scores.shape[1]):
        best = None
        for cut in sorted(set(scores[known[:, c], c]), reverse=True):
            here = known & (scores >= cut)
            own, right = here[:, c], here[:, c] & truth[:, c]
            others = here.sum() - own.sum(), (here & truth).sum() - right.sum()
            sizes = np.unique(groups[own], return_counts=True)[1]
            effective, share = sizes.sum() ** 2 / (sizes**2).sum(), right.sum() / own.sum()
            prior = (others[1] + 0.5) / (others[0] + 1)
            a = effective * share + 4 * prior
            if beta(a, effective + 4 - a).sf(target) >= 0.8 and len(set(groups[right])) >= 2 and cut > 0:
                best = cut
        found.append(best)
    return found


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("several", [False, True])
def test_the_rule_is_as_it_is_described(several, target):
    logits, truth, groups = data(several=several, strength=2)
    scores = calibration.calibrated(logits / 3, calibration.AS_IT_IS, several)
    known = rng_of(1).random(truth.shape) < 0.9
    found, reasons = thresholds.fit(scores, truth, known, groups, target)
    assert found == by_loops(scores, truth, known, groups, target)
    assert any(found) and [bool(reason) for reason in reasons] == [one is None for one in found]


def test_why_a_label_has_no_threshold():
    n = 40
    groups = np.arange(n)
    truth = np.zeros((n, 4), dtype=bool)
    truth[:20, 0], truth[20, 1], truth[21:, 3] = True, True, True
    scores = np.where(truth, 0.9, 0.1)
    scores[:, 3] = 0.5  # the same for all clips
    found, reasons = thresholds.fit(scores, truth, np.ones_like(truth), groups, 0.9)
    assert found == [0.9, None, None, None]
    assert reasons[1:] == [
        "1 group with a clip of it; 2 are needed",
        "no groups with a clip of it; 2 are needed",
        "at no score is a precision of 0.9 reached with a probability of 0.8; the highest probability is 0.00",
    ]
    reason = thresholds._reason(2, np.array([0.7969]), 0.9)
    assert reason.endswith("0.8; the highest probability is 0.79"), "rounded, it would seem to suffice"
    found, reasons = thresholds.fit(np.zeros((0, 2)), *(2 * [np.zeros((0, 2), bool)]), np.zeros(0), 0.9)
    assert found == [None, None] and reasons[0].startswith("no groups")


def test_many_clips_of_one_recordist_count_as_one():
    truth = np.ones((41, 1), dtype=bool)
    scores = np.full((41, 1), 0.9)
    few = np.minimum(np.arange(41), 1)  # one clip of one recordist, forty of another
    assert thresholds.fit(scores, truth, np.ones_like(truth), few, 0.9)[0] == [None]
    assert thresholds.fit(scores, truth, np.ones_like(truth), np.arange(41), 0.9)[0] == [0.9]


def test_precision_and_recall_are_those_of_scikit_learn_with_the_intervals_of_the_house():
    logits, truth, groups = data(strength=2)
    scores, known = calibration.calibrated(logits / 3, calibration.AS_IT_IS, False), np.ones_like(truth)
    limits = [0.5, 0.6, 0.7, 0.99999, None]
    labels = list("abcde")
    table = thresholds.at_thresholds(scores, truth, known, groups, labels, limits, 0.9).set_index("label")
    for i, label in enumerate(labels[:3]):
        detected, row = scores[:, i] >= limits[i], table.loc[label]
        assert row["precision"] == pytest.approx(precision_score(truth[:, i], detected))
        assert row["recall"] == pytest.approx(recall_score(truth[:, i], detected))
        # A share of detections is an accuracy: that of "it is right" on the detections alone.
        right = truth[detected, i].astype(int)
        low, high = intervals.score_intervals(np.ones_like(right), right, groups[detected])["accuracy"]
        assert (row["precision_low"], row["precision_high"]) == pytest.approx((low, high))
        assert row["n_detections"] == detected.sum() and row["n_detected_groups"] == len(set(groups[detected]))
    assert table.loc["e", "n_detections"] == 0 and table.loc["e", "verdict"] == "" and table.loc["e", "recall"] == 0
    assert np.isnan(table.loc["e", "threshold"]) and np.isnan(table.loc["e", "precision"])
    pooled, has = table.loc[thresholds.POOLED], [0, 1, 2, 3]
    detected = thresholds.detections(scores, limits)[:, has]
    assert pooled["precision"] == pytest.approx(truth[:, has][detected].mean())
    assert pooled["recall"] == pytest.approx(detected[truth[:, has]].mean())


def test_clips_in_which_nobody_knows_are_left_out():
    truth, known = np.array([[True], [False], [True]]), np.array([[True], [False], [False]])
    table = thresholds.at_thresholds(np.ones((3, 1)), truth, known, np.arange(3), ["a"], [0.5], 0.9)
    assert (table.loc[0, ["n_clips", "n_detections", "n_right"]] == 1).all()
    assert np.isnan(table.loc[0, "precision_low"]) and table.loc[0, "verdict"] == "", "one group has no interval"


def test_the_verdicts():
    groups = np.arange(200)
    truth = np.stack([groups >= 0, groups % 2 == 0, groups % 10 > 0], axis=1)
    table = thresholds.at_thresholds(
        np.ones((200, 3)), truth, np.ones_like(truth), groups, list("abc"), [0.5, 0.5, 0.5], 0.9
    )
    assert list(table["verdict"][:3]) == [verdicts.SHOWN, verdicts.NOT_SHOWN, verdicts.UNDECIDABLE]


# ------------------------------------------------------------------------------------------- the drill


def test_the_drill_prints_a_row_for_each_rule_and_says_if_one_is_outside(monkeypatch, capsys):
    monkeypatch.setattr(drill, "WORLDS", [drill.World(5.5, 0.3, False, 2)])
    assert drill.main(["--draws", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in drill.RULES) and "outside" not in printed
    monkeypatch.setattr(drill, "EXPECTED", (0.2, 0.7))
    assert drill.main(["--draws", "2"]) == 1
    assert "outside" in capsys.readouterr().out
