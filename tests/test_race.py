"""The race of subsets finds the winners of the full search, runs fewer blocks, and goes on after a stop."""

import numpy as np
import pandas as pd
import pytest

from drills import race as drill
from tests.data import write_processed
from tests.test_05_pruning import UNTIMED, Recorder, best_of, main, table_of, write_run
from utils.data import clips
from utils.models import encoders
from utils.pruning import race, subset_scores
from utils.pruning.layer_selection import all_subsets
from utils.pruning.layer_sweep import trie_cost
from utils.pruning.subset_scores import SubsetScores
from utils.scores import intervals

pytestmark = pytest.mark.usefixtures("quick_models")


def test_no_winner_is_missed_on_drawn_answers(capsys):
    for seed, blocks in (("0", "6"), ("50", "5"), ("90", "1")):
        assert drill.main(["--draws", "15", "--blocks", blocks, "--seed", seed]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["best", "accuracy"]
    assert sum(int(line[14:20]) for line in printed if not line.startswith("best")) == 45


def test_the_drill_sees_a_winner_that_is_missed(monkeypatch):
    count = race._n_errors

    def too_few(scores, keeps, clips):
        return {keep: n - 3 * (len(clips) == drill.N_CLIPS) for keep, n in count(scores, keeps, clips).items()}

    monkeypatch.setattr(race, "_n_errors", too_few)
    assert drill.main(["--draws", "3", "--blocks", "6"]) == 1
    scores = drill.DrawnScores([(0,)], np.ones((1, 3), bool))
    with pytest.raises(ValueError, match="was not run"):
        scores.is_right([(0,)], np.arange(3))


@pytest.mark.parametrize("seed", range(10))
def test_all_that_are_as_good_as_the_winner_have_all_clips(seed):
    rng = np.random.default_rng(seed)
    keeps = list(all_subsets(6))
    is_right = drill.draw_answers(keeps, 6, rng)[:, : rng.integers(5, 400)]
    answers, n_right = drill.DrawnScores(keeps, is_right), is_right.sum(axis=1)
    leaders = [tuple(range(6)), *(keeps[row] for row in rng.permutation(len(keeps))[: seed % 5])]
    out = race.run(answers, keeps, leaders, seed)
    has_all = answers.is_run.all(axis=1)
    assert out == sorted(keep for keep, row in answers.rows.items() if not has_all[row])
    for size in range(1, 7):
        own = [row for keep, row in answers.rows.items() if len(keep) == size]
        assert all(has_all[row] for row in own if n_right[row] == n_right[own].max())


def test_a_block_is_not_run_once_all_that_need_it_are_out(monkeypatch):
    keeps, walks = list(all_subsets(8)), []
    # Without block 1 a subset is wrong on the first three quarters; all is right on the others.
    is_right = np.array([[1 in keep or clip >= 60 for clip in range(80)] for keep in keeps])
    answers = drill.DrawnScores(keeps, is_right)
    monkeypatch.setattr(drill, "trie_cost", lambda some: walks.append(some) or trie_cost(some))
    out = race.run(answers, keeps, [tuple(range(8))])
    assert set(out) == {keep for keep in keeps if 1 not in keep and len(keep) > 1}
    for walked in walks[2:]:  # the first two are the leader, and all on the first clips
        assert all(keep[:2] == (0, 1) or keep == (0,) for keep in walked)
    assert answers.n_passes < trie_cost(keeps)[0] * 80


def test_a_hard_clip_comes_before_an_easy_one(monkeypatch):
    monkeypatch.setattr(race, "FEWEST_CLIPS", 8)
    keeps = [(0, 1), (0, 2), (0, 1, 2)]
    is_right = np.ones((3, 100), bool)
    is_right[2, :8] = False  # the leader, of another size
    is_right[1, 5] = False
    answers = drill.DrawnScores(keeps, is_right)
    assert race.run(answers, keeps, [(0, 1, 2)]) == [(0, 2)]
    assert answers.is_run[1].sum() == 8 and answers.is_run[1, :8].all()


def test_nothing_races_alone():
    assert race.run(drill.DrawnScores([(0,)], np.ones((1, 3), bool)), [], [(0,)]) == []
    assert race.run(drill.DrawnScores([(0,)], np.ones((1, 3), bool)), [(0,)], []) == []


# ------------------------------------------------------------------------------------------ with a model


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed", seed=1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "birds", data_dir)


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch):
    monkeypatch.setattr(race, "FEWEST_CLIPS", 3)


RACE, FULL = ("--strategies", "backward", "race"), ("--strategies", "backward", "exhaustive")


@pytest.fixture(scope="module")
def swept(data_dir, run_dir, tmp_path_factory):
    """Return the folder of a sweep by the full search."""
    output_dir = tmp_path_factory.mktemp("full") / "out"
    assert main(run_dir, data_dir, output_dir, *FULL) == 0
    return output_dir


def test_a_race_chooses_what_the_full_search_chooses(data_dir, run_dir, swept, tmp_path):
    assert main(run_dir, data_dir, tmp_path / "out", *RACE) == 0
    table, full, best = table_of(tmp_path / "out"), table_of(swept), best_of(tmp_path / "out")
    raced = table[table["strategy"] == "race"]
    assert list(raced["kept_layers"]) == list(full.loc[full["strategy"] == "exhaustive", "kept_layers"])
    has_score = table["search_accuracy"].notna()
    n_val = full["search_clips"].max()
    assert (full["search_clips"] == n_val).all() and (has_score == (table["search_clips"] == n_val)).all()
    assert not has_score.all(), "a race that drops nothing would test nothing"
    same = ["kept_layers", "search_accuracy", "search_macro_f1"]
    pd.testing.assert_frame_equal(table.loc[has_score, same], full.loc[has_score, same])
    for depth, subset in best_of(swept)["by_depth"].items():
        assert best["by_depth"][depth]["keep"] == subset["keep"]
        assert best["by_depth"][depth]["search_accuracy"] == subset["search_accuracy"]
    n_dropped = table.loc[~has_score, "kept_layers"].nunique()
    assert (best["n_pruned"], best["n_dropped"]) == (best_of(swept)["n_pruned"], n_dropped)
    assert "n_dropped" not in best_of(swept)
    kept = best["smallest_within_margin"]
    assert (kept and kept["keep"]) == ((kept := best_of(swept)["smallest_within_margin"]) and kept["keep"])
    assert f"{n_dropped} of 4 subsets are out" in (tmp_path / "out" / "log.txt").read_text()


def test_a_search_that_needs_a_dropped_subset_completes_it(data_dir, run_dir, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    assert main(run_dir, data_dir, tmp_path / "out", "--strategies", "greedy", "beam", "race", "--beam_width", 9) == 0
    assert len(set(recorder.done)) == len(recorder.done)
    table = table_of(tmp_path / "out")
    assert table["search_accuracy"].notna().all()  # so wide a beam asks for all
    assert "n_dropped" not in best_of(tmp_path / "out")


def test_a_stopped_race_goes_on_and_ends_the_same(data_dir, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(subset_scores, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        undisturbed = Recorder(patch)
        assert main(run_dir, data_dir, tmp_path / "whole", *RACE) == 0
    output_dir, done = tmp_path / "stopped", []
    for stop_at in (3, 4, 3, 2, None):
        with monkeypatch.context() as patch:
            recorder = Recorder(patch, stop_at)
            assert main(run_dir, data_dir, output_dir, *RACE) == (0 if stop_at is None else 75)
        done += recorder.done
    assert sorted(done) == sorted(undisturbed.done)
    pd.testing.assert_frame_equal(table_of(output_dir)[UNTIMED], table_of(tmp_path / "whole")[UNTIMED])
    assert (output_dir / "best.json").read_bytes() == (tmp_path / "whole" / "best.json").read_bytes()


def test_a_race_with_repair_chooses_what_the_full_search_chooses(data_dir, run_dir, tmp_path):
    words = ("--repair", "linear", "--repair_clips", 5)
    for name, strategies in (("race", RACE), ("full", FULL)):
        assert main(run_dir, data_dir, tmp_path / name, *strategies, *words) == 0
    raced, full = best_of(tmp_path / "race"), best_of(tmp_path / "full")
    assert [raced["by_depth"][d]["keep"] for d in raced["by_depth"]] == [
        full["by_depth"][d]["keep"] for d in full["by_depth"]
    ]


def test_scores_count_their_passes_and_know_what_they_have_seen(data_dir, run_dir, tmp_path):
    loaded, val = encoders.load_model(run_dir, "cpu"), clips.read_clips(data_dir, "val")
    scores, full = (SubsetScores(loaded, val, "val", 4, tmp_path / name, {}) for name in "ab")
    for folder in "ab":
        (tmp_path / folder).mkdir()
    keeps = list(all_subsets(4))
    full.run(keeps)
    assert full.n_passes == 8 * len(val)
    some = np.array([7, 2, 11])
    scores.run(keeps, some)
    assert scores.n_passes == 8 * 3
    assert [scores.n_seen(keep) for keep in keeps] == [3] * 8 and scores.n_seen((1,)) == 0
    np.testing.assert_array_equal(scores.is_right(keeps, some), full.is_right(keeps, some))
    with pytest.raises(KeyError):
        scores.score((0,))
    scores.run([(0,), (0, 1)])
    assert scores.has((0,)) and scores.n_passes == 8 * 3 + 2 * (len(val) - 3)
    np.testing.assert_array_equal(scores.predicted((0, 1)), full.predicted((0, 1)))
    again = SubsetScores(loaded, val, "val", 4, tmp_path / "a", {})
    assert again.n_passes == scores.n_passes
    assert [again.n_seen(keep) for keep in keeps] == [scores.n_seen(keep) for keep in keeps]
    assert scores.seconds((0,)) == again.seconds((0,)) > 0


# --------------------------------------------------------------------------------------------- intervals


def test_dropped_subsets_widen_the_simultaneous_intervals():
    rng = np.random.default_rng(0)
    left_out = rng.normal(size=(30, 25))
    values = [intervals.simultaneous_critical_value(left_out[:5], n_others=n) for n in (0, 1, 25, 2000)]
    assert values == sorted(set(values))
    # All unknown: Bonferroni. It is never below the value of the known comparisons together.
    assert values[2] >= intervals.simultaneous_critical_value(left_out)
    assert intervals.simultaneous_critical_value(left_out[:1] * 0, n_others=1) == intervals.critical_value(25)
    assert intervals.simultaneous_critical_value(left_out[:1], n_others=1) > intervals.critical_value(25)
    many = intervals.simultaneous_critical_value(left_out[:5], n_others=10**6)
    assert many == pytest.approx(intervals.stats.t.isf(0.025 / 10**6, 24), rel=0.05)
