"""The latencies of `make study`, measured side by side."""

import pandas as pd
import pytest
import torch

from benchmarks import latency_under_load
from experiments import latencies
from tests.data import small_model, write_processed
from utils.models import encoders, latency


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latencies")
    torch.manual_seed(0)
    for name, keep in (("whole", [0, 1]), ("none", [])):
        loaded = small_model("wav2vec2")
        encoders.prune_model(loaded.model, keep)
        for seed in (1, 2):
            (folder / "runs" / "birds" / name).mkdir(parents=True, exist_ok=True)
            encoders.save_model(loaded, folder / "runs" / "birds" / name / f"seed-{seed}")
    (folder / "runs" / "birds.by-clip" / "whole" / "seed-2").mkdir(
        parents=True
    )  # by another split: the same model once more
    (folder / "results").mkdir()
    return folder, write_processed(folder / "data")


def main(folder, data_dir, *more):
    words = ["--runs_dir", folder / "runs", "--data_dir", data_dir, "--results_dir", folder / "results"]
    return latencies.main([str(word) for word in (*words, "--seconds", 0.01, *more)])


def test_each_model_of_one_seed_has_a_row(folders, capsys):
    assert main(*folders, "--name", "birds", "--seed", 2) == 0
    table = pd.read_csv(folders[0] / "results" / "birds" / "latency.csv")
    assert list(table.columns) == latencies.COLUMNS
    assert sorted(table["model"]) == ["none", "whole"]
    assert table["latency_ms"].is_monotonic_increasing and (table["n_rounds"] == latency.N_ROUNDS).all()
    assert ((table["latency_ms_low"] <= table["latency_ms"]) & (table["latency_ms"] <= table["latency_ms_high"])).all()
    n_parameters = table.set_index("model")["n_parameters"]
    assert n_parameters["none"] < n_parameters["whole"]
    assert "whole" in capsys.readouterr().out


def test_no_such_runs(folders, caplog):
    assert main(*folders, "--name", "wetland") == 3
    assert "has no run wetland/<model>/seed-1" in caplog.text


def test_times_under_load_are_judged_by_ratio_and_order():
    quiet, beside = latency_under_load.QUIET, "beside one, 2 threads"
    rows = [
        *((quiet, 0, 100.0), (quiet, 6, 150.0), (quiet, 12, 200.0)),
        *((beside, 0, 149.0), (beside, 6, 230.0), (beside, 12, 220.0)),  # true; 1.53 times; fewer blocks were slower
    ]
    table = latency_under_load.judge(pd.DataFrame(rows, columns=["way", "blocks", "latency_ms_median"]))
    assert table["ratio"].round(2).tolist() == [1, 1, 1, 1.49, 1.53, 1.1]
    assert table["is_true"].tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize(("doubt", "code"), [("load", 0), ("no", 3)])
def test_a_wrong_time_that_is_not_marked_ends_with_3(doubt, code, monkeypatch, capsys):
    def measure(args, n_threads, policy, beside):
        factor, own = (5.0, doubt) if beside else (1.0, "no")
        return {n: {"latency_ms_median": factor * (10 + n), "latency_doubt": own} for n in args.blocks}

    monkeypatch.setattr(latency_under_load, "measure", measure)
    assert latency_under_load.main(["--blocks", "0", "12"]) == code
    assert ("are true or marked" in capsys.readouterr().out) == (code == 0)
