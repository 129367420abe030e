"""The drill of coverage sees an interval that is too narrow, and takes the groups of a study as they are."""

import numpy as np
import pytest

from drills import coverage
from tests.results import write_result
from utils.scores import intervals


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory):
    results_dir = tmp_path_factory.mktemp("results")
    label_ids = np.arange(120) % 3
    groups = [f"g{i % 3}.{i // 6}" for i in range(120)]
    for seed in (1, 2):
        write_result(results_dir, f"birds/whole/seed-{seed}", label_ids, label_ids, groups)
    write_result(results_dir, "birds.by-clip/whole/seed-1", label_ids, label_ids, groups)
    return results_dir


def test_groups_are_those_of_the_study(results_dir):
    whole, first = coverage.read_groups(results_dir)
    assert (whole.name, first.name) == ("birds, all", "birds, seed-1")
    assert first.n_clips.sum() == 120 and whole.n_clips.sum() == 240
    assert first.classes.shape == (60, 1) and (first.n_clips == 2).all()
    assert np.bincount(first.classes.ravel()).tolist() == [20, 20, 20]
    assert whole.some(7).n_clips.shape == (7, 1) and whole.some(100).name == "birds, 100 groups"


def test_answers_have_the_accuracy_that_was_asked_for(results_dir):
    world = coverage.World(coverage.read_groups(results_dir)[0], 600, 0)
    by_class = world.accuracy_by_class(0.7)
    truth = world.truth(by_class)
    assert truth[0] == pytest.approx(0.7)
    found = np.concatenate([intervals.jackknife(one).estimate for (one,) in world.models([0.7])], axis=1)
    assert found.mean(axis=1) == pytest.approx(truth, abs=0.01)


def test_rows_say_how_often_and_all_are_inside(results_dir, capsys, monkeypatch):
    monkeypatch.setattr(coverage, "TOLERANCE", 4)  # of some 80 rows of few draws
    words = ["--results_dir", str(results_dir), "--draws", "100", "--only"]
    assert (
        coverage.main(
            [*words, "accuracy", "difference", "simultaneous", "recipe", "pairs", "several", "two of several"]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "0 outside their range" in lines[-1]
    said = {line.split("  ")[0].strip() for line in lines}
    assert {
        "accuracy",
        "difference in macro F1",
        "Holm, any wrong",
        "recipe, accuracy, 3 trainings",
        "mean of pairs",
        "several labels, false_alarms_per_hour",
        "t test of cmAP, wrong",
    } <= said


def test_an_interval_that_is_too_narrow_is_found(results_dir, capsys, monkeypatch):
    right = intervals.share_interval
    monkeypatch.setattr(intervals, "share_interval", lambda estimate, error, *more: right(estimate, error / 3, *more))
    assert coverage.main(["--results_dir", str(results_dir), "--draws", "200", "--only", "accuracy"]) == 1
    assert "OUTSIDE" in capsys.readouterr().out


def test_without_results_there_are_no_groups(tmp_path, caplog):
    assert coverage.main(["--results_dir", str(tmp_path)]) == 3
    assert "run make study" in caplog.text
