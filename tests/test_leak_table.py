"""The table of what other splits claim."""

import pandas as pd

from experiments import leak_table
from tests.results import metrics_row
from utils.scores import summary


def write_summary(path, rows: dict[str, tuple[float, float]]) -> None:
    frame = [
        metrics_row(
            name,
            n_clips=50,
            **{"accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.1},
            **{"macro_f1": f1, "macro_f1_low": f1 - 0.2, "macro_f1_high": f1 + 0.2},
        )
        for name, (accuracy, f1) in rows.items()
    ]
    summary.write_metrics(path, pd.DataFrame(frame))


def main(results_dir, name="birds"):
    return leak_table.main(["--results_dir", str(results_dir), "--name", name, "--model", "base.blocks-0-1"])


def test_table(tmp_path, capsys):
    rows = {
        "birds.by-clip/base.blocks-0-1/seed-1": (0.7, 0.6),
        "birds/base.blocks-0-1/seed-1": (0.3, 0.25),
        "birds/base.blocks-0-1/seed-2": (0.4, 0.35),
        "birds/base.blocks-0/seed-1": (0.9, 0.9),
        "birds/base.blocks-0-1/seed-2-again": (0.9, 0.9),
        "other/base.blocks-0-1/seed-1": (0.9, 0.9),
        "birds": (0.9, 0.9),
    }
    write_summary(tmp_path / "summary.csv", rows)
    assert main(tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| recordist | 50, 50 | 0.30 [0.20, 0.40]<br>0.40 [0.30, 0.50] | **0.35** "
        "| 0.25 [0.05, 0.45]<br>0.35 [0.15, 0.55] | **0.30** |",
        "| clip | 50 | 0.70 [0.60, 0.80] | **0.70** | 0.60 [0.40, 0.80] | **0.60** |",
    ]


def test_no_such_name_or_table(tmp_path, caplog):
    write_summary(tmp_path / "summary.csv", {"birds.by-clip/base/seed-1": (0.7, 0.6)})
    assert main(tmp_path, name="wetland") == 3
    assert "has no result wetland/<model>/seed-<n>" in caplog.text
    assert main(tmp_path) == 3
    assert "has no birds/base.blocks-0-1/seed-<n>; run experiments.study" in caplog.text
    assert main(tmp_path / "none") == 3
