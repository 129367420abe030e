"""Whether a study made again has the scores that are committed, on results written by hand."""

import numpy as np
import pytest

from experiments import reproduced
from tests.results import write_result
from utils.scores import evaluation, intervals, summary

pytestmark = pytest.mark.usefixtures("blank_figures")

N_CLIPS = 60
LABEL_IDS = np.arange(N_CLIPS) % 3
GROUPS = [f"g{i // 5}" for i in range(N_CLIPS)]


def answers_of(n_right):
    """The first clips are right."""
    return np.where(np.arange(N_CLIPS) < n_right, LABEL_IDS, (LABEL_IDS + 1) % 3)


def write_study(results_dir, n_right, label_ids=LABEL_IDS, **values):
    results_dir.mkdir(parents=True)
    for name, n in n_right.items():
        write_result(results_dir, name, answers_of(n), label_ids, GROUPS, **values)
    summary.rebuild_summary(results_dir)
    return results_dir


@pytest.fixture(scope="module")
def committed_dir(tmp_path_factory):
    n_right = {"birds/whole/seed-1": 40, "birds/whole/seed-2": 50, "birds/half/seed-1": 30, "birds/half/seed-2": 30}
    n_right |= {"birds.by-clip/half/seed-1": 55, "birds/cnn/seed-1": 20}
    return write_study(tmp_path_factory.mktemp("committed") / "results", n_right)


def main(results_dir, committed_dir, name="birds"):
    words = ["--results_dir", str(results_dir), "--committed_dir", str(committed_dir), "--name", name]
    return reproduced.main(words)


def test_scores_are_of_the_seeds_that_both_have(committed_dir, tmp_path, capsys):
    again_dir = write_study(
        tmp_path / "again",
        {
            **{"birds/whole/seed-1": 43, "birds/half/seed-1": 35, "birds/half/seed-2": 28},
            **{"birds.by-clip/half/seed-1": 1, "birds/new/seed-1": 9},
        },
    )
    table = reproduced.compare(again_dir, committed_dir, "birds").set_index("model")
    assert list(table.index) == ["half by clip", "whole", "half"], "best first, and none that one of them lacks"
    assert table["n_seeds"].to_dict() == {"half by clip": 1, "whole": 1, "half": 2}
    assert table["accuracy"].to_dict() == pytest.approx({"half by clip": 55 / 60, "whole": 40 / 60, "half": 60 / 120})
    assert table["accuracy_again"].to_dict() == pytest.approx(
        {"half by clip": 1 / 60, "whole": 43 / 60, "half": 63 / 120}
    )
    assert table["difference"].to_dict() == pytest.approx({"half by clip": -54 / 60, "whole": 3 / 60, "half": 3 / 120})
    interval = intervals.score_intervals(LABEL_IDS, answers_of(40), np.array(GROUPS))
    for name, again in (("accuracy", 43 / 60), ("macro_f1", evaluation.macro_f1(LABEL_IDS, answers_of(43)))):
        row = table.loc["whole"]
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(interval[name])
        assert row[f"{name}_again"] == pytest.approx(again)
        assert row[f"{name}_within"] == (interval[name][0] <= again <= interval[name][1])
    assert not table.loc["half by clip", "accuracy_within"]
    assert main(again_dir, committed_dir) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| **0.017, outside** |" in next(line for line in lines if line.startswith("| half by clip |"))
    n_within = [table[f"{name}_within"].sum() for name in ("accuracy", "macro_f1")]
    assert lines[-1] == f"within the intervals: {n_within[0]} of 3 by accuracy, {n_within[1]} of 3 by macro_f1"


def test_a_study_reproduces_itself(committed_dir):
    table = reproduced.compare(committed_dir, committed_dir, "birds")
    assert len(table) == 4
    assert (table["difference"] == 0).all()
    assert (table["accuracy"] == table["accuracy_again"]).all()
    assert table[["accuracy_within"]].all(axis=None)


def test_scores_on_other_data_have_no_difference_clip_by_clip(committed_dir, tmp_path, capsys):
    again_dir = write_study(tmp_path / "again", {"birds/cnn/seed-1": 25}, data_sha256="other")
    assert main(again_dir, committed_dir) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("| cnn | 1 | 0.333 [")
    assert "| 0.417 |" in line
    assert line.endswith("| other data |")


def test_studies_that_cannot_be_compared_end_with_the_reason(committed_dir, tmp_path, caplog):
    assert main(committed_dir, committed_dir, name="ducks") == 3
    assert "has no result ducks/<model>/seed-<n>" in caplog.text
    assert main(write_study(tmp_path / "other", {"birds/other/seed-1": 5}), committed_dir) == 3
    assert "no model and seed of birds in common" in caplog.text
    assert main(write_study(tmp_path / "clips", {"birds/cnn/seed-1": 5}, np.roll(LABEL_IDS, 1)), committed_dir) == 3
    assert "birds/cnn/seed-1 and birds/cnn/seed-1 were scored on different clips" in caplog.text
