"""The tables and the figure of pruning before and after fine-tuning, on results written by hand."""

import shutil

import numpy as np
import pandas as pd
import pytest

from experiments import ladder_table
from tests.results import write_result
from utils.pruning import best
from utils.scores import intervals, summary, verdicts

SEEDS = ("1", "2")
N_CLIPS = 40
# How many clips the models with so many blocks get right, in either seed.
RIGHT = {0: (4, 8), 1: (18, 22), 2: (20, 24)}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Return results of three models for each of two seeds, and of a sweep of the whole ones."""
    results_dir = tmp_path_factory.mktemp("ladder") / "validation_results"
    results_dir.mkdir()
    label_ids, groups = np.arange(N_CLIPS) % 4, [f"g{i // 4}" for i in range(N_CLIPS)]
    for number, seed in enumerate(SEEDS):
        for n_layers, right in RIGHT.items():
            keep = ["none", "0", "0-1"][n_layers]
            predicted_ids = np.where(np.arange(N_CLIPS) < right[number], label_ids, (label_ids + 1) % 4)
            values = {"kept_layers": keep, "n_layers": n_layers, "n_classes": 4, "data_sha256": seed}
            cost = {"n_parameters": 1_000_000 * (n_layers + 1), "latency_ms_median": 10 + 5 * n_layers}
            write_result(
                results_dir, f"birds/base.blocks-{keep}/seed-{seed}", predicted_ids, label_ids, groups, **values, **cost
            )
        folder = results_dir / "birds" / "base.blocks-0-1.sweep" / f"seed-{seed}"
        folder.mkdir(parents=True)
        full = RIGHT[2][number] / N_CLIPS
        rows = [
            ("full", 2, full),
            ("forward", 1, full - 0.05),
            ("backward", 1, full - 0.2),
            ("random", 1, full - 0.1),
            ("random", 1, full - 0.2),
            ("exhaustive", 1, full),
            ("convexity_peak", 2 - number, full),  # all blocks for the first seed
        ]
        table = pd.DataFrame(rows, columns=["strategy", "n_layers", "report_accuracy"])
        table.to_csv(folder / "pruning.csv", index=False)
        chosen = {"by_depth": {"1": {"keep": [1], "report_accuracy": full - 0.05}}}
        best.write_best(folder, {"model_sha256": "0", "model_dir": "runs/birds"}, chosen)
    write_result(results_dir, "other/base.blocks-0-1/seed-1", [0], [0], ["g"], kept_layers="0-1")
    write_result(results_dir, "birds.by-clip/base.blocks-0-1/seed-1", [0], [0], ["g"], kept_layers="0-1")
    summary.rebuild_summary(results_dir)
    return results_dir


def main(results_dir, name="birds", model="base"):
    return ladder_table.main(["--results_dir", str(results_dir), "--name", name, "--model", model])


def test_latencies_measured_side_by_side_come_first(ladder, capsys):
    path = ladder / "birds" / "latency.csv"
    models = [f"base.blocks-{layers}" for layers in ("none", "0", "0-1")]
    pd.DataFrame({"model": models, "latency_ms": [77, 88, 99], "latency_doubt": "no"}).to_csv(path, index=False)
    try:
        assert main(ladder) == 0
    finally:
        path.unlink()
    cells = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines()]
    assert [latency for blocks, _, latency in cells[2:5]] == ["77", "88", "99"]


def test_tables_and_figure(ladder, capsys):
    assert main(ladder) == 0
    lines = capsys.readouterr().out.splitlines()
    label_ids = np.tile(np.arange(N_CLIPS) % 4, 2)
    groups = np.array([f"g{i // 4}" for i in range(N_CLIPS)] * 2)
    hits = {n: np.concatenate([np.arange(N_CLIPS) < right for right in RIGHT[n]]) for n in RIGHT}
    predicted_ids = [np.where(hits[n], label_ids, (label_ids + 1) % 4) for n in (0, 1, 2)]
    models = [intervals.jackknife(intervals.count(label_ids, ids, groups)) for ids in predicted_ids]
    found = intervals.differences(models, [(0, 2), (1, 2)])["accuracy"]
    assert found.estimate[1] == pytest.approx(-0.05)
    shown = [
        "{:+.3f} [{:+.3f}, {:+.3f}] | {}".format(*ends, verdicts.of_pair(found, n, 0.02))
        for n, ends in enumerate(zip(found.estimate, found.low_of_all, found.high_of_all, strict=True))
    ]
    assert all("] | undecidable here: about " in cells for cells in shown)
    assert lines[2:5] == [
        f"| 0 | 1.0 | 10 | 0.10, 0.20 | **0.15** | {shown[0]} |  |  |  |",
        f"| 1 | 2.0 | 15 | 0.45, 0.55 | **0.50** | {shown[1]} | 0.45 (1), 0.55 (1) | **0.50** | 0.40 |",
        "| 2 | 3.0 | 20 | 0.50, 0.60 | **0.55** |  |  | 0.50, 0.60 | **0.55** |  |",
    ]
    assert lines[5] == ""
    assert lines[6:] == [
        "| rule, by number of blocks kept | 1 | to random, each seed | mean |",
        "|---|---|---|---|",
        "| convexity_peak | 0.60 | none, +0.150 | **+0.150** |",
        "| forward | 0.50 | +0.100, +0.100 | **+0.100** |",
        "| random | 0.40 |  |  |",
        "| backward | 0.35 | -0.050, -0.050 | **-0.050** |",
    ]
    assert {path.name for path in ladder.glob("birds/base.ladder.*")} == {"base.ladder.pdf", "base.ladder.png"}


def test_what_is_missing_is_named(ladder, tmp_path, caplog):
    assert main(ladder, name="wetland") == 3
    assert "or experiments.study" in caplog.text
    assert main(ladder, model="bas") == 3
    assert "has no birds/bas.blocks-<layers>/seed-<n>; run experiments.study" in caplog.text
    copy = tmp_path / "copy"
    shutil.copytree(ladder, copy)
    (copy / "birds" / "base.blocks-0-1.sweep" / "seed-2" / "best.json").unlink()
    assert main(copy) == 3
    assert "run 05_pruning.py on birds/base.blocks-0-1/seed-2" in caplog.text


def test_models_of_other_clips_are_not_compared(ladder, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(ladder, copy)
    shutil.rmtree(copy / "birds" / "base.blocks-0" / "seed-2")
    values = {"kept_layers": "0", "n_layers": 1, "n_classes": 4, "data_sha256": "2"}
    write_result(copy, "birds/base.blocks-0/seed-2", [0, 1], [0, 1], ["g0", "g1"], **values)
    summary.rebuild_summary(copy)
    assert main(copy) == 3
    assert "were scored on different clips" in caplog.text


def test_without_random_subsets_there_is_no_table_of_the_rules(ladder, tmp_path, capsys, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(ladder, copy)
    for path in copy.glob("birds/*.sweep/*/pruning.csv"):
        table = pd.read_csv(path)
        table[table["strategy"] != "random"].to_csv(path, index=False)
    assert main(copy) == 0
    printed = capsys.readouterr().out
    assert "| 1 | 2.0 | 15 | 0.45, 0.55 |" in printed and "| rule," not in printed
    assert "no table of the rules: the sweeps have no random subsets" in caplog.text
