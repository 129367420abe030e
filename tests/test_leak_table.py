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


def test_table(tmp_path, capsys):
    rows = {
        "birds-clip-1": (0.7, 0.6),
        "birds-1": (0.3, 0.25),
        "birds-2": (0.4, 0.35),
        "birds-2-again": (0.9, 0.9),
        "other-1": (0.9, 0.9),
    }
    write_summary(tmp_path / "summary.csv", rows)
    assert leak_table.main(["--summary", str(tmp_path / "summary.csv"), "--name", "birds"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| recordist | 50, 50 | 0.30 [0.20, 0.40]<br>0.40 [0.30, 0.50] | **0.35** "
        "| 0.25 [0.05, 0.45]<br>0.35 [0.15, 0.55] | **0.30** |",
        "| clip | 50 | 0.70 [0.60, 0.80] | **0.70** | 0.60 [0.40, 0.80] | **0.60** |",
    ]


def test_no_such_name_or_table(tmp_path, caplog):
    write_summary(tmp_path / "summary.csv", {"birds-clip-1": (0.7, 0.6)})
    assert leak_table.main(["--summary", str(tmp_path / "summary.csv"), "--name", "wetland"]) == 3
    assert "run experiments.study" in caplog.text
    assert leak_table.main(["--summary", str(tmp_path / "none.csv")]) == 3
