"""The latencies of `make study`, measured side by side."""

import pandas as pd
import pytest
import torch

from benchmarks import latencies
from tests.data import small_model, write_processed
from utils import encoders, latency


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latencies")
    (folder / "runs").mkdir()
    torch.manual_seed(0)
    for name, keep in (("whole", [0, 1]), ("none", [])):
        model, extractor = small_model("wav2vec2")
        encoders.prune_model(model, keep)
        for seed in (1, 2):
            encoders.save_model(model, extractor, folder / "runs" / f"birds-{name}-{seed}")
    (folder / "runs" / "birds-whole-clip-2").mkdir()  # by another split: the same model once more
    (folder / "results").mkdir()
    return folder, write_processed(folder / "data")


def main(folder, data_dir, *more):
    words = ["--runs_dir", folder / "runs", "--data_dir", data_dir, "--results_dir", folder / "results"]
    return latencies.main([str(word) for word in (*words, "--seconds", 0.01, *more)])


def test_each_model_of_one_seed_has_a_row(folders, capsys):
    assert main(*folders, "--name", "birds", "--seed", 2) == 0
    table = pd.read_csv(folders[0] / "results" / "birds-latency.csv")
    assert list(table.columns) == latencies.COLUMNS
    assert sorted(table["model"]) == ["none", "whole"]
    assert table["latency_ms"].is_monotonic_increasing and (table["n_rounds"] == latency.N_ROUNDS).all()
    assert ((table["latency_ms_low"] <= table["latency_ms"]) & (table["latency_ms"] <= table["latency_ms_high"])).all()
    n_parameters = table.set_index("model")["n_parameters"]
    assert n_parameters["none"] < n_parameters["whole"]
    assert "whole" in capsys.readouterr().out


def test_no_such_runs(folders, caplog):
    assert main(*folders, "--name", "wetland") == 3
    assert "has no run wetland-<model>-1" in caplog.text
