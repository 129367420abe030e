"""`make study-check` finds a number that the predictions do not give; the documents of this repository have none."""

import re

import numpy as np
import pandas as pd
import pytest

from experiments import study_check, ways_table
from tests.data import LABELS
from tests.results import write_result
from tests.stages import ROOT
from utils.core.errors import InputError
from utils.scores import evaluation, summary


def test_every_number_of_the_documents_is_that_of_the_predictions(monkeypatch, caplog):
    monkeypatch.chdir(ROOT)
    assert study_check.main([]) == 0, caplog.text


@pytest.fixture
def results_dir(tmp_path):
    """Return a folder with one result whose metrics are true."""
    rng = np.random.default_rng(0)
    groups, label_ids = np.repeat([f"g{i}" for i in range(12)], 2).tolist(), np.arange(24) // 2 % 3
    logits = (rng.normal(size=(24, 3)) + np.eye(3)[label_ids]).astype(np.float32)
    table = pd.DataFrame({"label_id": label_ids, "group": groups, "recording_id": groups})
    write_result(
        *(tmp_path / "published", "birds/w2v/seed-1", logits.argmax(axis=1), label_ids, groups),
        **{"logits": logits, "labels": LABELS, **evaluation.score_all(table, logits)},
    )
    return tmp_path / "published"


@pytest.mark.parametrize("name", ["accuracy", "macro_f1_high", "macro_auroc"])
def test_a_score_that_was_changed_is_named(results_dir, name):
    assert study_check.check_scores(results_dir) == []
    path = results_dir / "birds" / "w2v" / "seed-1" / summary.METRICS_NAME
    metrics = summary.read_metrics(path)
    summary.write_metrics(path, metrics.assign(**{name: metrics[name] + 0.001}))
    assert [f"{path} has {name}" in text for text in study_check.check_scores(results_dir)] == [True]


def test_rows_of_tables_are_compared_in_both_ways():
    printed = ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |", "", "an answer"]
    assert study_check.check_tables("\n".join(["# Results", *printed, "| other | table |"]), printed, "R") == []
    text = "\n".join(["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 5 |", "", "| 7 | 8 |"])
    assert study_check.check_tables(text, printed, "R") == [
        "R lacks the row | 3 | 4 |",
        "R has the row | 3 | 5 |, which no command prints",
    ]


def test_the_commands_of_a_document_are_read_once():
    text = "`python -m experiments.study_table --name a` and `python -m experiments.study_table --name a`; `make study`"
    assert study_check.commands(text) == [["study_table", "--name", "a"]]


def test_a_table_that_no_longer_follows_from_the_predictions_is_named(tmp_path):
    label_ids, groups = np.arange(24) % 3, [f"g{i // 2}" for i in range(24)]
    models = {"base": (6, 20), "base.after-4": (4, 15)}
    for model, (n_layers, n_right) in models.items():
        predicted = np.where(np.arange(24) < n_right, label_ids, (label_ids + 1) % 3)
        write_result(tmp_path, f"birds/{model}/seed-1", predicted, label_ids, groups, n_layers=n_layers)
    latencies = pd.DataFrame({"model": list(models), "latency_ms": 5, "latency_doubt": "no"})
    latencies.to_csv(tmp_path / "birds" / "latency.csv", index=False)
    command = ["ways_table", "--name", "birds", "--model", "base", "--part", "seed-1"]
    assert ways_table.main([*command[1:], "--results_dir", str(tmp_path)]) == 0
    printed, stale = study_check.run_again([command], tmp_path)
    assert printed[0].startswith("| way |") and stale == []
    path = tmp_path / "birds" / "ways.csv"
    path.write_text(path.read_text().replace("removed", "repaired"))
    assert study_check.run_again([command], tmp_path) == (
        printed,
        [f"{path} is not the table that the predictions give"],
    )


def test_a_missing_result_is_named_where_it_was_looked_for(tmp_path):
    (tmp_path / "summary.csv").write_text("")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'summary.csv'} cannot be read")):
        study_check.run_again([["study_table", "--name", "birds"]], tmp_path)


def test_numbers_of_the_section_must_stand_in_the_tables(tmp_path):
    readme = "# x\n0.999\n## Results\n0.427 and +0.070 of 5 models\n## Else\n0.888\n"
    assert study_check.section(readme, "Results") == "0.427 and +0.070 of 5 models"
    assert study_check.check_numbers("0.427 and +0.070 of 5", "| 0.427 | -0.070 |", "README.md") == []
    found = study_check.check_numbers("0.427 and 0.5", "| 0.427 |", "README.md")
    assert found == ["README.md has 0.5, not in the tables"]
    # A whole number counts too; the numbers of a row must stand in one row.
    source = "1,181 clips\n| a | b | 142 | 0.5 [0.4, 0.6] |\n| a | c | 101 | 0.3 [0.2, 0.4] |\n"
    right, mixed = "| whole | 142 | 0.5 [0.4, 0.6] |", "| whole | 101 | 0.5 [0.4, 0.6] |"
    assert study_check.check_numbers(f"1,181 clips, 142 ms\n{right}\n", source, "README.md") == []
    assert study_check.check_numbers("181 clips, 780 groups", source, "README.md") == [
        "README.md has 181, 780, not in the tables"
    ]
    assert study_check.check_numbers(mixed, source, "README.md") == [
        f"README.md has the row {mixed}, whose numbers are not in one row of the tables"
    ]


def test_a_wrong_document_ends_with_code_3(results_dir, tmp_path, caplog):
    (tmp_path / "RESULTS.md").write_text("no table\n")
    (tmp_path / "README.md").write_text("## Results\n0.5\n")
    words = ["--results_dir", results_dir, "--results", tmp_path / "RESULTS.md", "--readme", tmp_path / "README.md"]
    assert study_check.main([str(word) for word in words]) == 3
    assert "1 number does not agree with the predictions: README.md has 0.5" in caplog.text


@pytest.mark.parametrize("flag", ["--results_dir", "--results", "--readme"])
def test_what_is_missing_is_named(flag, tmp_path, caplog):
    assert study_check.main([flag, str(tmp_path / "gone")]) == 3
    assert f"{tmp_path / 'gone'}: no such file or folder" in caplog.text
