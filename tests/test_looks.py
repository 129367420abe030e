"""How often test clips were scored is counted from the results beside this one."""

import argparse
import logging

from utils.core import runs
from utils.scores.looks import count_looks

DATA = runs.Input("processed_data/birds/folds", f"{'a' * 64}/fold-1-of-5")


def looks(n_earlier, n_replaced=0):
    return {"n_earlier_looks_at_test": n_earlier, "n_replaced_looks_at_test": n_replaced}


def leave_result(folder, data=DATA, stage="03_model_validation", **arguments):
    args = argparse.Namespace(**{"output_dir": folder, "overwrite": False, "seed": 0, **arguments})
    with runs.open_run(stage, args, {"data_dir": data}) as this_run:
        this_run.metrics |= count_looks(folder, data, arguments["split" if "split" in arguments else "report_split"])
        (folder / "out.csv").write_text("x\n")
    return this_run.metrics


def test_only_results_of_the_same_test_clips_are_counted(tmp_path, caplog):
    root = tmp_path / "validation_results"
    caplog.set_level(logging.INFO)
    mine = root / "birds" / "w2v" / "fold-1.seed-1"
    assert count_looks(mine, DATA, "val") == {}
    root.mkdir()
    assert count_looks(mine, DATA, "test") == looks(0)
    assert "these test clips" not in caplog.text
    leave_result(root / "birds" / "cnn" / "fold-1.seed-1", split="test")
    leave_result(root / "birds" / "w2v.sweep" / "fold-1.seed-1", report_split="test", stage="05_pruning")
    analysed = tmp_path / "analysis_results"
    leave_result(analysed / "birds" / "w2v.all-clips" / "fold-1.seed-1", split="all", stage="04_analysis")
    leave_result(analysed / "birds" / "w2v" / "fold-1.seed-1", split="val", stage="04_analysis")
    other_fold = runs.Input(DATA.path, f"{'a' * 64}/fold-2-of-5")
    leave_result(root / "birds" / "cnn" / "fold-2.seed-1", other_fold, split="test")
    leave_result(root / "birds" / "on-val" / "fold-1.seed-1", split="val")
    leave_result(mine, split="test")  # this very result, when it is made again
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    assert count_looks(mine, DATA, "test") == looks(3)
    assert count_looks(mine, DATA, "all") == looks(4)  # the other fold's clips, too
    assert f"these test clips were used before (3 results in {root} and {analysed}, with those" in caplog.text
    theirs = analysed / "birds" / "cnn" / "fold-1.seed-1"
    assert count_looks(theirs, DATA, "test") == looks(4)  # mine too


def test_results_that_were_replaced_are_counted(tmp_path):
    mine, other = (tmp_path / "validation_results" / name for name in ("mine", "other"))
    for number in range(4):
        assert leave_result(mine, split="test", overwrite=True, seed=number) == looks(number, number)
    assert leave_result(other, split="test") == looks(4)
    assert leave_result(mine, split="test", overwrite=True, seed=4) == looks(5, 4)
    assert count_looks(other, runs.Input(DATA.path, "b" * 64), "test") == looks(0), "other clips"


def test_a_result_that_was_stopped_is_not_counted(tmp_path):
    root = tmp_path / "validation_results"
    leave_result(root / "other", split="test")
    record = root / "other" / "run.json"
    record.write_text(record.read_text().replace('"complete"', '"interrupted"'))
    assert count_looks(root / "mine", DATA, "test") == looks(0)


def test_all_clips_are_those_of_each_fold(tmp_path):
    root = tmp_path / "analysis_results"
    leave_result(root / "without-fold", runs.Input(DATA.path, "a" * 64), split="all", stage="04_analysis")
    leave_result(root / "other", runs.Input(DATA.path, f"{'a' * 64}/fold-2-of-5"), split="all", stage="04_analysis")
    leave_result(root / "other-data", runs.Input(DATA.path, "b" * 64), split="all", stage="04_analysis")
    assert count_looks(root / "mine", DATA, "test") == looks(2)
