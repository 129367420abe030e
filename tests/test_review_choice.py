"""Which windows are reviewed: the best, near the threshold, at random; the worst mistakes of a model."""

import numpy as np
import pytest

from utils.scores import review_choice
from utils.scores.review_choice import Choice, Chosen, worst_mistakes

THRESHOLDS = [0.5, np.nan, 0.9]


def night(n_files=6, n_windows=40):
    rng = np.random.default_rng(0)
    return {i: (f"night-{i}.wav", rng.random((n_windows, len(THRESHOLDS)))) for i in range(n_files)}


def chosen(files, n=3, seed=0):
    choice = Choice(THRESHOLDS, n, seed)
    for number, (name, scores) in files.items():
        choice.add(number, name, scores)
    return choice.chosen()


def test_best_near_and_random_of_each_label_are_those_of_a_sorted_list():
    files = night()
    found = chosen(files)
    for label_id, threshold in enumerate(THRESHOLDS):
        own = [one for one in found if one.label_id == label_id]
        assert len({(one.file, one.window) for one in own}) == len(own), "a window comes once per label"
        all_scores = {(i, w): float(s[w, label_id]) for i, (_, s) in files.items() for w in range(len(s))}
        assert all(all_scores[one.file, one.window] == one.score for one in own)
        by_score = sorted(all_scores, key=lambda place: -all_scores[place])
        assert [(one.file, one.window) for one in own if one.why == "best"] == by_score[:3]
        near = {(one.file, one.window) for one in own if one.why == "threshold"}
        if np.isnan(threshold):
            assert not near
        else:
            assert near == set(sorted(by_score[3:], key=lambda place: abs(all_scores[place] - threshold))[:3])
        assert sum(one.why == "random" for one in own) == 3
    assert found == sorted(
        found, key=lambda one: (one.label_id, review_choice.KINDS.index(one.why), -one.score, one.file, one.window)
    )


def test_the_choice_depends_neither_on_the_order_of_files_nor_on_what_is_dropped_on_the_way(monkeypatch):
    files = night(30)
    expected = chosen(files)
    assert chosen(dict(reversed(files.items()))) == expected
    monkeypatch.setattr(review_choice, "MOST_ROWS", 200)
    assert chosen(files) == expected
    assert chosen(dict(reversed(files.items()))) == expected


def test_memory_does_not_grow_with_the_files(monkeypatch):
    monkeypatch.setattr(review_choice, "MOST_ROWS", 500)
    choice = Choice(THRESHOLDS, 3)
    for number in range(100):
        choice.add(number, f"{number}", np.random.default_rng(number).random((20, 3)))
        assert sum(map(len, choice._rows)) <= 500 + 3 * 2 * 18 + 60


def test_another_seed_draws_others_at_random_only():
    one, other = chosen(night(), seed=0), chosen(night(), seed=1)
    assert [x for x in one if x.why != "random"] == [x for x in other if x.why != "random"]
    assert [x for x in one if x.why == "random"] != [x for x in other if x.why == "random"]


def test_every_window_has_the_same_chance_of_the_draw():
    counts = np.zeros(10)
    for seed in range(1000):
        choice = Choice([np.nan], 1, seed)
        choice.add(0, "a", np.arange(5.0)[:, None])
        choice.add(1, "b", np.arange(5.0, 10.0)[:, None])
        (draw,) = [one for one in choice.chosen() if one.why == "random"]
        counts[5 * draw.file + draw.window] += 1
    assert counts[9] == 0, "the best one is not drawn again"
    assert counts[:9].min() > 70 and counts[:9].max() < 155  # 111 are expected, standard deviation 10


def test_equal_scores_are_taken_in_the_order_of_files_and_windows():
    files = {i: (f"{i}", np.full((2, 3), 0.7)) for i in (2, 0, 1)}
    best = [(one.file, one.window) for one in chosen(files) if (one.label_id, one.why) == (0, "best")]
    assert best == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize("files", [{}, {0: ("empty.wav", np.empty((0, 3)))}])
def test_nothing_to_choose_from(files):
    assert chosen(files) == []


def test_fewer_windows_than_asked_come_once():
    found = chosen({0: ("a", np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))}, n=5)
    assert len(found) == 6 and {one.why for one in found} == {"best"}


def test_the_worst_mistakes_are_wrong_predictions_with_the_highest_scores():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.95, 0.05]])
    is_true = np.eye(2, dtype=bool)[[0, 1, 1, 1, 1]]
    is_predicted = np.eye(2, dtype=bool)[scores.argmax(axis=1)]
    assert worst_mistakes(scores, is_true, is_predicted, 2) == [
        Chosen(0, "mistake", 0, 4, 0.95),
        Chosen(0, "mistake", 0, 1, 0.8),
    ]
