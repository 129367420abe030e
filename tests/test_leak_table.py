"""The table of what other splits claim, and the leak on the clips that two splits both test."""

import numpy as np
import pandas as pd
import pytest

from experiments import leak_table
from tests.results import write_result
from utils.scores import intervals, summary, verdicts

pytestmark = pytest.mark.usefixtures("blank_figures")

GROUPS = [f"g{i // 4}" for i in range(40)]
LABEL_IDS = np.arange(40) % 4
WORDS = "split by clip - split by recordist, on the same clips: "


def wrong_at(*places):
    return np.where(np.isin(np.arange(40), places), (LABEL_IDS + 1) % 4, LABEL_IDS)


def write(results_dir, name, predicted_ids, rows=slice(None), **values):
    ends = {"accuracy_low": 0.2, "accuracy_high": 0.4, "macro_f1": 0.25, "macro_f1_low": 0.05, "macro_f1_high": 0.45}
    groups = np.array(GROUPS)[rows]
    write_result(results_dir, name, predicted_ids[rows], LABEL_IDS[rows], groups, **{"accuracy": 0.3, **ends, **values})


@pytest.fixture
def results_dir(tmp_path):
    write(tmp_path, "birds/base.blocks-0-1/seed-1", wrong_at(*range(0, 40, 3)))
    write(tmp_path, "birds/base.blocks-0-1/seed-2", wrong_at(*range(0, 40, 2)), accuracy=0.4)
    write(tmp_path, "birds.by-clip/base.blocks-0-1/seed-1", wrong_at(4, 5), slice(0, 24), accuracy=0.7)
    for name in ("birds/base.blocks-0/seed-1", "birds/base.blocks-0-1/seed-2-again", "other/base.blocks-0-1/seed-1"):
        write(tmp_path, name, wrong_at())
    summary.rebuild_summary(tmp_path)
    return tmp_path


def main(results_dir, name="birds", model="base.blocks-0-1"):
    return leak_table.main(["--results_dir", str(results_dir), "--name", name, "--model", model])


def test_table(results_dir, capsys):
    assert main(results_dir) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "| recordist | 40, 40 | 0.30 [0.20, 0.40]<br>0.40 [0.20, 0.40] | **0.35** "
        "| 0.25 [0.05, 0.45]<br>0.25 [0.05, 0.45] | **0.25** |",
        "| clip | 24 | 0.70 [0.20, 0.40] | **0.70** | 0.25 [0.05, 0.45] | **0.25** |",
    ]


def test_leak_is_the_difference_on_the_clips_that_both_test(results_dir, capsys):
    assert main(results_dir) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    strict = np.concatenate([wrong_at(*range(0, 40, step))[:24] for step in (3, 2)])
    loose, label_ids, groups = np.tile(wrong_at(4, 5)[:24], 2), np.tile(LABEL_IDS[:24], 2), np.array(GROUPS[:24] * 2)
    value, low, high = intervals.paired_difference(label_ids, loose, strict, groups)["accuracy"]
    p = verdicts.sign_flip_p_values(label_ids, loose, strict, groups)["accuracy"]
    assert value == pytest.approx((2 * 22 - (24 - 8) - 12) / 48)
    assert line.startswith(f"{WORDS}accuracy {value:+.3f} [{low:+.3f}, {high:+.3f}], p {p:.3f}, macro F1 ")
    assert line.endswith(" (24 clips of 6 groups, 48 pairs of answers)")


def test_splits_without_a_common_clip_or_class_have_no_leak(results_dir, capsys, caplog):
    for seed in (1, 2):
        write(results_dir, f"birds/other/seed-{seed}", wrong_at(), slice(0, 20))
    write_result(results_dir, "birds.by-clip/other/seed-1", LABEL_IDS, LABEL_IDS, [f"h{i}" for i in range(40)])
    summary.rebuild_summary(results_dir)
    assert main(results_dir, model="other") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{WORDS}no clip is in test of both"
    report = pd.DataFrame({"label": ["a", "b", "c", "d"]})
    report.to_csv(results_dir / "birds.by-clip" / "other" / "seed-1" / "classification_report.csv")
    assert main(results_dir, model="other") == 3
    assert "have different classes" in caplog.text


def test_no_such_name_or_table(tmp_path, caplog):
    write(tmp_path, "birds.by-clip/base/seed-1", wrong_at())
    summary.rebuild_summary(tmp_path)
    assert main(tmp_path, name="wetland") == 3
    assert "has no result wetland/<model>/seed-<n>" in caplog.text
    assert main(tmp_path) == 3
    assert "has no birds/base.blocks-0-1/seed-<n>; run experiments.study" in caplog.text
    assert main(tmp_path / "none") == 3
