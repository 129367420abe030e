"""The latencies of `make study`, measured side by side."""

import shutil

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
    of_all = folder / "runs" / "birds" / "whole"
    (of_all / "fold-1.seed-1").mkdir()  # a training that was stopped: it has no model yet
    shutil.copytree(of_all / "seed-1", folder / "runs" / "birds" / "head" / "seed-1")  # has no result
    shutil.copytree(of_all / "seed-1", folder / "runs" / "birds.by-clip" / "whole" / "seed-1")
    for name in ("whole", "none", "head.frozen"):
        (folder / "results" / "birds" / name / "seed-2").mkdir(parents=True)
        (folder / "results" / "birds" / name / "seed-2" / "metrics.csv").touch()
    return folder, write_processed(folder / "data")


def main(folder, data_dir, *more):
    words = ["--runs_dir", folder / "runs", "--data_dir", data_dir, "--results_dir", folder / "results"]
    return latencies.main([str(word) for word in (*words, "--seconds", 0.01, *more)])


def test_each_model_with_a_result_has_one_row(folders, capsys, caplog):
    assert main(*folders, "--name", "birds") == 0
    table = pd.read_csv(folders[0] / "results" / "birds" / "latency.csv")
    assert list(table.columns) == latencies.COLUMNS
    assert sorted(table["model"]) == ["none", "whole"]
    assert table["latency_ms"].is_monotonic_increasing and (table["n_rounds"] == latency.N_ROUNDS).all()
    assert ((table["latency_ms_low"] <= table["latency_ms"]) & (table["latency_ms"] <= table["latency_ms_high"])).all()
    n_parameters = table.set_index("model")["n_parameters"]
    assert n_parameters["none"] < n_parameters["whole"]
    assert "whole" in capsys.readouterr().out
    assert "no latency of head.frozen: a model is measured if" in caplog.text


def test_a_model_whose_run_is_gone_keeps_its_time_with_a_doubt(folders, tmp_path):
    source, data_dir = folders
    results, table = tmp_path / "results" / "birds", tmp_path / "results" / "birds" / "latency.csv"
    shutil.copytree(source / "results" / "birds", results, ignore=shutil.ignore_patterns("*.csv"))
    for name in ("gone", "slow"):
        (results / name).mkdir()
    rows = {"model": ["gone", "none", "dropped", "slow"], "latency_ms": [1e6, 7.0, 7.0, 2e6]}
    pd.DataFrame(rows | {"latency_doubt": ["no", "no", "no", "load"]}).to_csv(table, index=False)
    (tmp_path / "runs").symlink_to(source / "runs")
    assert latencies.models_without(tmp_path / "runs", results.parent, "birds") == {"whole"}
    assert main(tmp_path, data_dir, "--name", "birds") == 0
    measured = pd.read_csv(table).set_index("model")
    assert list(measured.index[-2:]) == ["gone", "slow"] and {*measured.index[:-2]} == {"none", "whole"}
    assert measured.loc["gone", ["latency_ms", "latency_doubt"]].tolist() == [1e6, "apart"]
    assert measured.loc["slow", "latency_doubt"] == "load apart" and measured.loc["none", "latency_ms"] < 1e6
    assert not latencies.models_without(tmp_path / "runs", results.parent, "birds")


def test_no_such_runs(folders, caplog):
    assert main(*folders, "--name", "wetland") == 3
    assert "has no run wetland/<model> with a result" in caplog.text


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
