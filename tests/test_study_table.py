"""The table, the figure and the answers of `make study`, on results written by hand."""

import shutil

import numpy as np
import pandas as pd
import pytest

from experiments import study_table
from tests.results import write_result
from utils.scores import comparison, intervals, summary, verdicts

pytestmark = pytest.mark.usefixtures("blank_figures")

N_CLIPS = 60
LABEL_IDS = np.arange(N_CLIPS) % 3
GROUPS = [f"g{i // 5}" for i in range(N_CLIPS)]


def answers_of(n_right, seed):
    rng = np.random.default_rng(seed)
    right = rng.permutation(N_CLIPS) < n_right
    return np.where(right, LABEL_IDS, (LABEL_IDS + 1) % 3)


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory):
    results_dir = tmp_path_factory.mktemp("study") / "validation_results"
    results_dir.mkdir()
    models = {
        "whole": ("whole", 12, 50e6, 90.0, (48, 50)),
        "half": ("pruned before", 6, 25e6, 50.0, (48, 49)),
        "cnn": ("CNN", 0, 1e6, 9.0, (30, 32)),
        "half by clip": ("pruned before", 6, 25e6, 50.0, (58, 60)),
    }
    for model, (kind, n_layers, n_parameters, latency, n_right) in models.items():
        model, _, split = model.partition(" by ")
        data_set = f"birds.by-{split}" if split else "birds"
        for seed, n in enumerate(n_right):
            values = {"kind": kind, "n_layers": n_layers, "n_parameters": int(n_parameters), "gmacs_per_clip": 2.0}
            values |= {"latency_ms_median": latency, "data_sha256": f"{split}{seed}"}
            answers = answers_of(n, seed)
            write_result(results_dir, f"{data_set}/{model}/seed-{seed}", answers, LABEL_IDS, GROUPS, **values)
    summary.rebuild_summary(results_dir)
    return results_dir


def main(results_dir, name="birds"):
    return study_table.main(["--results_dir", str(results_dir), "--name", name])


@pytest.mark.drawn
def test_table_pools_the_seeds(results_dir, capsys):
    assert main(results_dir) == 0
    table = pd.read_csv(results_dir / "birds" / "study.csv").set_index("model")
    assert list(table.index) == ["whole", "half", "cnn"]  # best first, and no split by clip among them
    label_ids, groups = np.tile(LABEL_IDS, 2), np.array(GROUPS * 2)
    pooled = {
        m: np.concatenate([answers_of(n, seed) for seed, n in enumerate(right)])
        for m, right in {"whole": (48, 50), "half": (48, 49), "cnn": (30, 32)}.items()
    }
    for model, predicted_ids in pooled.items():
        row = table.loc[model]
        assert row["accuracy"] == pytest.approx((predicted_ids == label_ids).mean(), abs=1e-5)
        interval = intervals.score_intervals(label_ids, predicted_ids, groups)["accuracy"]
        assert row[["accuracy_low", "accuracy_high"]].tolist() == pytest.approx(interval, abs=1e-5)
        if model == "whole":
            assert row["difference"] == 0 and np.isnan(row["difference_p"])
            continue
        difference = intervals.paired_difference(label_ids, predicted_ids, pooled["whole"], groups)["accuracy"]
        columns = ["difference", "difference_low", "difference_high"]
        assert row[columns].tolist() == pytest.approx(difference, abs=1e-5)
        p = verdicts.sign_flip_p_values(label_ids, predicted_ids, pooled["whole"], groups)["accuracy"]
        assert row["difference_p"] == pytest.approx(p, rel=1e-5)
    models = [intervals.jackknife(intervals.count(label_ids, ids, groups)) for ids in pooled.values()]
    found = intervals.differences(models, [(1, 0), (2, 0), (2, 1)])["accuracy"]
    ends = table.loc[["half", "cnn"], ["difference_low_of_all", "difference_high_of_all"]].to_numpy()
    np.testing.assert_allclose(ends, np.transpose([found.low_of_all, found.high_of_all])[:2], atol=1e-5)
    assert table["difference_p_holm"].tolist()[1:] == pytest.approx(
        verdicts.holm_adjusted(table["difference_p"].iloc[1:], 3), rel=1e-5
    )
    hits = [intervals.count(label_ids, ids, groups).n_hits.sum(axis=1) for ids in pooled.values()]
    assert table["optimism"].iloc[0] == pytest.approx(verdicts.optimism_of_best(hits, np.full(12, 10)), abs=1e-5)
    assert table["accuracy_recipe_low"].isna().all(), "two trainings make no recipe"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["whole", "half", "cnn"]
    assert [line.split("|")[4].strip() for line in lines[2:5]] == ["12", "6", ""]
    assert {path.suffix for path in results_dir.glob("birds/study.*")} == {".csv", ".pdf", ".png"}


def test_studies_side_by_side_have_the_models_that_both_have(results_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy)
    for seed in (0, 1):  # a second study, in which the CNN wins
        for model, n_right in {"cnn": 54, "whole": 42, "other": 40}.items():
            write_result(copy, f"ducks/{model}/seed-{seed}", answers_of(n_right, seed), LABEL_IDS, GROUPS, kind="CNN")
    summary.rebuild_summary(copy)
    assert study_table.main(["--results_dir", str(copy), "--name", "birds", "ducks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(n for n, line in enumerate(lines) if "accuracy, birds | accuracy, ducks" in line)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[header + 2 :]]
    assert [row[0] for row in cells] == ["whole", "cnn"]
    assert [row[1:4] for row in cells] == [["whole", "12", "50.0"], ["CNN", "", "1.0"]], "as the first study has them"
    assert [row[6].split()[0] for row in cells] == ["0.817", "0.517"]
    assert [row[7].split()[0] for row in cells] == ["0.700", "0.900"]


def test_answers_keep_to_what_is_shown(results_dir, capsys):
    assert main(results_dir) == 0
    best, smallest, fastest, claim = capsys.readouterr().out.splitlines()[6:]
    assert best.startswith("best accuracy of 3: whole, accuracy 0.817 [")
    assert smallest.startswith("smallest within 0.02 of it: half, accuracy 0.808 [")
    assert fastest.startswith("fastest within 0.02 of it: half")
    assert "25.0 M parameters, 50 ms; minus the best -0.008 [" in fastest
    assert claim.startswith("half, split by clip: accuracy 0.983 [")
    assert "]; split by recordist: accuracy 0.808 [" in claim
    row = pd.read_csv(results_dir / "birds" / "study.csv").set_index("model").loc["half"]
    assert smallest.endswith(f"; no worse by more than 0.02: {row['within_margin']}")
    assert row["within_margin"].startswith("undecidable here: about ")
    assert " without the optimism of choosing it (0.0" in best


def test_three_trainings_have_an_interval_of_the_recipe(results_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    for seed, n_right in enumerate((30, 40, 50)):
        write_result(copy, f"birds/cnn/seed-{seed}", answers_of(n_right, seed), LABEL_IDS, GROUPS, kind="CNN")
    summary.rebuild_summary(copy)
    assert main(copy) == 0
    row = pd.read_csv(copy / "birds" / "study.csv").iloc[0]
    some = [
        intervals.Training("same clips", LABEL_IDS, answers_of(n, seed), np.array(GROUPS))
        for seed, n in enumerate((30, 40, 50))
    ]
    for name, expected in intervals.recipe_intervals(some).items():
        found = row[[f"{name}_recipe", f"{name}_recipe_low", f"{name}_recipe_high"]].tolist()
        assert found == pytest.approx(expected, abs=1e-5)
    assert row["accuracy_recipe_low"] < row["accuracy_low"] < row["accuracy_high"] < row["accuracy_recipe_high"]
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
    assert cells[8] == "[{:.3f}, {:.3f}]".format(*row[["accuracy_recipe_low", "accuracy_recipe_high"]])
    assert cells[11:] == ["", "", ""], "the best is not compared with itself"


def test_number_of_a_point_keeps_away_from_the_next_point():
    assert study_table.free_sides(np.array([0.0, 0.1, 1.0, 1.0]), np.array([0.5, 0.5, 0.0, 1.0])) == [
        *("left", "right", "left", "right")
    ]
    assert study_table.free_sides(np.array([2.0]), np.array([0.5])) == ["right"]


def test_latencies_measured_side_by_side_replace_those_of_stage_03(results_dir, tmp_path, capsys, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy)
    latencies = pd.DataFrame({"model": ["cnn", "half", "whole"], "latency_ms": [3.0, 44.0, 33.0]})
    latencies["latency_doubt"] = ["no", "load order", "no"]
    latencies.to_csv(copy / "birds" / "latency.csv", index=False)
    assert main(copy) == 0
    table = pd.read_csv(copy / "birds" / "study.csv").set_index("model")
    assert table["latency_ms_median"].to_dict() == {"whole": 33.0, "half": 44.0, "cnn": 3.0}
    printed = capsys.readouterr().out
    assert "fastest within 0.02 of it: whole" in printed and "| 44? |" in printed and "| 33 |" in printed
    latencies[1:].to_csv(copy / "birds" / "latency.csv", index=False)
    assert main(copy) == 3
    assert "has no latency of cnn" in caplog.text


def test_model_without_all_seeds_is_left_out(results_dir, tmp_path, caplog, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy)
    shutil.rmtree(copy / "birds" / "whole" / "seed-1")
    summary.rebuild_summary(copy)
    assert main(copy) == 0
    assert "whole is left out: it has 1 of 2 seeds" in caplog.text
    assert capsys.readouterr().out.splitlines()[2].startswith("| 1 | half |")


def test_without_other_splits_there_is_no_claim(results_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy, ignore=shutil.ignore_patterns("birds.by-clip"))
    summary.rebuild_summary(copy)
    assert main(copy) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("fastest within 0.02 of it: half")


def test_no_such_study_or_other_clips(results_dir, tmp_path, caplog):
    assert main(results_dir, name="wetland") == 3
    assert "run make study" in caplog.text
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy)
    shutil.rmtree(copy / "birds" / "cnn" / "seed-1")
    write_result(copy, "birds/cnn/seed-1", [0, 1], [0, 1], ["g0", "g1"], data_sha256="recordist1", kind="CNN")
    summary.rebuild_summary(copy)
    assert main(copy) == 3
    assert "were scored on different clips" in caplog.text


def test_the_interval_of_a_recipe_takes_each_fold_and_seed_as_a_training(tmp_path):
    """One seed on both folds, and two more trainings on the first: the pooled result has two of four trainings."""
    results_dir = tmp_path / "validation_results"
    folder = results_dir / "birds" / "whole"
    rng, halves = np.random.default_rng(4), (range(30), range(30, N_CLIPS))
    right = {}
    for fold, seed in ((1, 1), (2, 1), (1, 2), (1, 3)):
        own = list(halves[fold - 1])
        labels = LABEL_IDS[own]
        answers = np.where(rng.random(30) < 0.6 + 0.1 * seed, labels, (labels + 1) % 3)
        right[fold, seed] = answers
        write_result(results_dir, f"birds/whole/fold-{fold}.seed-{seed}", answers, labels, [GROUPS[i] for i in own])
    answers = np.concatenate([right[1, 1], right[2, 1]])
    write_result(results_dir, "birds/whole/fold-all.seed-1", answers, LABEL_IDS, GROUPS)
    summary.rebuild_summary(results_dir)
    table = study_table.study(study_table.read_rows(results_dir, "birds"), results_dir)
    trainings = [comparison.read_scored(folder / f"fold-{fold}.seed-{seed}") for fold, seed in right]
    _, low, high = comparison.recipe_intervals(trainings)["accuracy"]
    assert table[["accuracy_recipe_low", "accuracy_recipe_high"]].iloc[0].tolist() == pytest.approx([low, high])
    assert table["accuracy"].item() == (answers == LABEL_IDS).mean(), "the score is that of the pooled folds"


def test_results_of_no_fold_are_not_counted_beside_pooled_ones(results_dir, tmp_path, capsys, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy)
    answers = answers_of(45, 0)
    for model in ("whole", "half"):
        write_result(copy, f"birds/{model}/fold-all.seed-1", answers, LABEL_IDS, GROUPS, n_layers=6, data_sha256="a")
    summary.rebuild_summary(copy)
    assert main(copy) == 0
    assert "8 results of birds are left out: they are of no fold" in caplog.text
    table = pd.read_csv(copy / "birds" / "study.csv")
    assert set(table["model"]) == {"whole", "half"} and (table["n_clips"] == N_CLIPS).all()


def test_a_model_that_is_called_like_a_missing_value_has_a_latency(tmp_path):
    (tmp_path / "latency.csv").write_text("model,latency_ms\nNone,2\n")
    assert study_table.read_latencies(tmp_path / "latency.csv")["model"].tolist() == ["None"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "cannot be read"),
        ("model,latency_doubt\nwhole,no\n", "has no column latency_ms;"),
        ("model,latency_ms\nwhole,fast\n", "has no column latency_ms of numbers;"),
    ],
)
def test_damaged_latencies_are_told(content, told, results_dir, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(results_dir, copy)
    (copy / "birds" / "latency.csv").write_text(content)
    assert main(copy) == 3
    assert f"latency.csv {told}" in caplog.text and "delete it, and run experiments.latencies" in caplog.text
