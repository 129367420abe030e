"""The table of benchmarks: ratios against hand-computed ones, rows that are replaced, figures in docs/speed.md."""

import argparse
import importlib.util

import pandas as pd
import pytest

from benchmarks import results
from tests.stages import ROOT


def test_ways_take_turns_after_a_round_that_does_not_count():
    done, times = [], iter(range(100))
    seconds = results.in_turn({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2, lambda: next(times))
    assert done == ["a", "b"] * 3
    assert seconds == {"a": [1, 1], "b": [1, 1]}


def test_a_ratio_is_the_median_of_the_rounds_and_rows_are_replaced(tmp_path, capsys):
    path = tmp_path / "results.csv"
    for ours in ([2.0, 1.0, 4.0], [1.0, 1.0, 1.0]):
        with results.Table("benchmarks/bench_some.py", path) as table:
            ratio = table.add("a claim", "another way", ours, [4.0, 3.0, 4.0], "s", goal=2)
        if ours[0] == 2:
            first = results.read(path).iloc[0]
            assert ratio == 2 and first[["ours", "other", "ratio"]].tolist() == [2, 4, 2]
            assert first[["ratio_low", "ratio_high", "n_rounds", "goal"]].tolist() == [1, 3, 3, 2]
    with results.Table("benchmarks/bench_other.py", path) as table:
        table.add("a count", "all", 50, 20_000, "passes")
    found = results.read(path)
    assert found["benchmark"].tolist() == ["bench_other", "bench_some"]
    assert found["ratio"].tolist() == [400, 4]
    assert "50 passes" in capsys.readouterr().out
    told = results.markdown(found)
    assert "| a count | 50 passes | all | 20,000 passes | 400 |  |" in told
    assert "| a claim | 1 s | another way | 4 s | 4 (3 to 4) | 2 |" in told


def test_a_benchmark_that_fails_writes_nothing(tmp_path):
    path = tmp_path / "results.csv"
    with pytest.raises(RuntimeError), results.Table("bench_some.py", path) as table:
        table.add("a claim", "another way", [1.0], [2.0], "s")
        raise RuntimeError
    assert not path.exists()


def test_own_work_does_not_count_as_load(tmp_path, monkeypatch):
    """In 10 s the CPUs were busy for 14 s, of which 8 s were ours."""
    own, busy, clock = iter((5, 13)), iter((100, 114)), iter((50, 60))
    monkeypatch.setattr(results, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(results, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(results.time, "perf_counter", lambda: next(clock))
    with results.Table("bench_some.py", tmp_path / "results.csv") as table:
        table.add("a claim", "another way", [1.0], [2.0], "s")
    assert results.read(tmp_path / "results.csv")["busy_elsewhere"].item() == 0.6


def test_make_bench_runs_every_benchmark_that_has_rows():
    parser = argparse.ArgumentParser()
    results.add_arguments(parser)
    assert parser.parse_args([]).rounds >= 5
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("BENCHMARKS = "))
    names = {f"bench_{name}" for name in line.split()[2:]}
    for name in names:
        assert importlib.util.find_spec(f"benchmarks.{name}"), name
    assert {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")} - names == {"bench_startup"}


@pytest.mark.skipif(not results.PATH.exists(), reason="no benchmark has been run yet")
def test_the_figures_in_the_docs_are_rows_of_the_table():
    table = results.read()
    assert list(table) == results.COLUMNS and not table[results.KEY].duplicated().any()
    assert results.markdown(table) in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert pd.to_numeric(table["ratio"]).gt(0).all()
