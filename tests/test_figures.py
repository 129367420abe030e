"""All figures drawn again: of training curves, and what is left out; those of 03, 04 and 05 are in their own tests."""

import argparse

import pandas as pd
import pytest

from experiments import figures
from utils.core import runs


def write_run(folder, stage="02_finetuning", complete=True):
    args = argparse.Namespace(output_dir=folder, data_dir="processed_data/birds", overwrite=False, seed=0)
    curves = pd.DataFrame({"epoch": [1.0, 2.0], "train_loss": [2.0, 1.0], "learning_rate": [1e-3, 1e-4]})
    curves[["eval_loss", "eval_accuracy", "eval_macro_f1"]] = 0.5
    with runs.open_run(stage, args, {}):
        curves.to_csv(folder / "metrics.csv", index=False)
        if not complete:
            raise KeyboardInterrupt
    return folder


def test_curves_of_runs_at_any_depth(tmp_path, caplog):
    nested = write_run(tmp_path / "runs" / "birds" / "w2v" / "seed-1")
    flat = write_run(tmp_path / "runs" / "cnn", "06_cnn")
    write_run(tmp_path / "runs" / "data", "01_data_processing")
    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path / "runs" / "broken", complete=False)
    (write_run(tmp_path / "runs" / "lost") / "metrics.csv").unlink()
    assert figures.main([str(tmp_path / "runs")]) == 0
    for folder in (nested, flat):
        assert (folder / "training_curves.png").stat().st_size > 1000
    assert "drew the figures of 2 of 5 runs and results" in caplog.text
    assert "broken is not complete" in caplog.text and "lost" in caplog.text


def test_nothing_to_draw(tmp_path, caplog):
    assert figures.main([str(tmp_path)]) == 3
    assert "holds no run and no result" in caplog.text
    assert figures.main([str(tmp_path / "gone")]) == 3
    assert "no such folder" in caplog.text
