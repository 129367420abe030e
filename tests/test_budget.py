"""The budget of stage 05 on small models: what it considers, chooses and writes, and what 07 builds of it."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from tests.data import small_model, write_annotated, write_processed
from tests.stages import load_stage
from tests.test_05_pruning import write_run
from utils.core.cli import parse_layer_list
from utils.core.errors import InputError
from utils.data import clips
from utils.models import encoders, latency, model_folder, predict
from utils.models.model_size import SizeCounter
from utils.pruning import best, budget, repair, width
from utils.pruning.budget import SHARES, Budget, Mixture

sweep, prune = load_stage("05_pruning"), load_stage("07_manual_pruning")
pytestmark = pytest.mark.usefixtures("quick_models")
CHEAP = ("--strategies", "forward", "backward")
N_WHOLE = 210_643  # parameters of tiny


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed", seed=1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "birds", data_dir)


def main(run_dir, data_dir, output_dir, *more):
    words = ["--model_dir", run_dir, "--data_dir", data_dir, "--output_dir", output_dir, "--batch_size", 4, *CHEAP]
    return sweep.main([str(word) for word in (*words, "--device", "cpu", *more)])


def build(run_dir, best_path, output_dir, *more):
    words = ["--model_dir", run_dir, "--from", best_path, "--output_dir", output_dir, "--device", "cpu", *more]
    return prune.main([str(word) for word in words])


def best_of(output_dir):
    return json.loads((output_dir / "best.json").read_text())


@pytest.fixture(scope="module")
def result(tmp_path_factory, data_dir, run_dir):
    """Return the folder of a sweep with a budget that no model with all units meets except the smallest."""
    output_dir = tmp_path_factory.mktemp("results") / "out"
    assert main(run_dir, data_dir, output_dir, "--max_parameters", 125_000) == 0
    return output_dir


@pytest.fixture(scope="module")
def narrow_result(tmp_path_factory, data_dir, run_dir):
    """Return the folder of a sweep whose only model within the budget is narrower: one block with 96 of 128 units."""
    output_dir = tmp_path_factory.mktemp("narrow") / "out"
    assert main(run_dir, data_dir, output_dir, "--max_parameters", 109_000) == 0
    return output_dir


def test_all_mixtures_stand_in_the_table_with_their_exact_size(result, run_dir):
    table = pd.read_csv(result / "budget.csv", dtype={"kept_layers": str})
    assert len(table) == 4 * len(SHARES)
    counter = SizeCounter(encoders.load_model(run_dir, "cpu"))
    for row in table.itertuples():
        size = counter.size_of(parse_layer_list(row.kept_layers, 4), {"intermediate_size": row.ffn_size})
        assert (row.n_parameters, row.n_layers) == (size.n_parameters, len(size.kept_layers))
        assert row.gmacs_per_clip == pytest.approx(size.macs_per_clip / 1e9, rel=1e-5)
        assert row.within_budget == (row.n_parameters <= 125_000)
    # Of each depth, the widest within the budget is scored.
    fits = table[table["within_budget"]]
    assert 1 < fits["n_layers"].nunique() < 4 and (fits["ffn_size"] < 128).any()
    scored = table[table["search_accuracy"].notna()]
    assert list(scored.index) == list(fits.groupby("n_layers", sort=False)["ffn_size"].idxmax())
    order = scored.sort_values(["search_accuracy", "search_macro_f1"], ascending=False, kind="stable")
    assert list(table.index[table["is_chosen"]]) == [order.index[0]]


def test_best_json_holds_the_chosen_model(result):
    table, found = pd.read_csv(result / "budget.csv", dtype={"kept_layers": str}), best_of(result)
    assert found["budget"] == {"max_parameters": 125_000}
    chosen, row = found["within_budget"], table[table["is_chosen"]].iloc[0]
    assert (chosen["keep"], chosen["ffn_size"]) == (parse_layer_list(row["kept_layers"], 4), row["ffn_size"])
    assert chosen["search_accuracy"] == pytest.approx(row["search_accuracy"], abs=1e-5)
    assert chosen["n_parameters"] == row["n_parameters"] <= 125_000
    assert json.loads((result / "run.json").read_text())["metrics"]["within_budget"] == chosen
    assert "best within the budget (--max_parameters 125000)" in (result / "log.txt").read_text()


@pytest.mark.parametrize("several", [False, True])
def test_07_builds_the_chosen_model(several, narrow_result, run_dir, data_dir, tmp_path):
    """The saved model has the scores of best.json on both splits."""
    if several:
        data_dir = write_annotated(tmp_path / "data")
        run_dir = write_several(tmp_path / "run", data_dir)
        assert main(run_dir, data_dir, tmp_path / "out", "--max_parameters", 20_300) == 0
        result = tmp_path / "out"
    else:
        result = narrow_result
    chosen = best_of(result)["within_budget"]
    words = ("--data_dir", data_dir)
    assert build(run_dir, result / "best.json", tmp_path / "built", *words) == 0
    loaded = encoders.load_model(tmp_path / "built", "cpu")
    assert loaded.config.kept_layers == chosen["keep"] and loaded.config.intermediate_size == chosen["ffn_size"]
    assert encoders.count_parameters(loaded.model) == chosen["n_parameters"]
    if several:
        return
    assert loaded.config.intermediate_size < 128, "or the test says little"
    for split, name in (("val", "search"), ("test", "report")):
        of_split = clips.read_clips(data_dir, split)
        hits = predict.predict(loaded, of_split, 4).argmax(axis=1) == of_split.table["label_id"].to_numpy()
        assert hits.mean() == pytest.approx(chosen[f"{name}_accuracy"])
    assert build(run_dir, result / "best.json", tmp_path / "built", *words) == 0, "nothing to do"
    # A depth by name is still the subset with all units.
    assert build(run_dir, result / "best.json", tmp_path / "by-depth", "--n_layers", 2) == 0
    assert encoders.load_model(tmp_path / "by-depth", "cpu").config.intermediate_size == 128


def write_several(run_dir, data_dir):
    loaded = small_model("wav2vec2")
    loaded.config.problem_type, loaded.config.clip_seconds = "multi_label_classification", 0.5
    encoders.save_model(loaded, run_dir)
    return run_dir


def test_a_model_with_all_units_can_be_the_best(run_dir, data_dir, tmp_path):
    assert main(run_dir, data_dir, tmp_path / "out", "--max_parameters", N_WHOLE, "--max_gmacs", 9) == 0
    found = best_of(tmp_path / "out")
    chosen, depths = found["within_budget"], found["by_depth"]
    assert found["budget"] == {"max_parameters": N_WHOLE, "max_gmacs": 9}
    best_accuracy = max(subset["search_accuracy"] for subset in depths.values())
    assert chosen["search_accuracy"] == best_accuracy and chosen["ffn_size"] == 128 and "importance" not in chosen
    assert chosen["report_accuracy"] == depths[str(chosen["n_layers"])]["report_accuracy"]
    assert build(run_dir, tmp_path / "out" / "best.json", tmp_path / "built") == 0, "no clips are needed"
    assert encoders.load_model(tmp_path / "built", "cpu").config.kept_layers == chosen["keep"]


def test_a_repaired_sweep_repairs_the_narrower_models_too(run_dir, data_dir, tmp_path):
    limits = ("--max_parameters", 105_000, "--repair", "linear", "--repair_clips", 20)
    assert main(run_dir, data_dir, tmp_path / "out", *limits) == 0
    found = best_of(tmp_path / "out")
    chosen = found["within_budget"]
    assert found["repair"]["n_clips"] == 20 and chosen["ffn_size"] < 128
    whole, train = encoders.load_model(run_dir, "cpu"), clips.read_clips(data_dir, "train")
    narrow = encoders.pruned_copy(whole, chosen["keep"])
    changes = width.changes_of(narrow.config, {"ffn_size": chosen["ffn_size"]})
    measured = width.measure(narrow, train, width.ACTIVATION, list(changes), tmp_path / "sums.npz", {})
    width.narrow(narrow.model, measured, changes, width.ACTIVATION)
    repairer = repair.Repairer(narrow, train.drawn(20, 42), 4, whole, chosen["keep"])
    repaired = repair.repaired_copy(narrow, tuple(range(len(chosen["keep"]))), repairer)
    for split, name in (("val", "search"), ("test", "report")):
        of_split = clips.read_clips(data_dir, split)
        hits = predict.predict(repaired, of_split, 4).argmax(axis=1) == of_split.table["label_id"].to_numpy()
        assert hits.mean() == pytest.approx(chosen[f"{name}_accuracy"])
    assert build(run_dir, tmp_path / "out" / "best.json", tmp_path / "built", "--data_dir", data_dir) == 0
    built = encoders.load_model(tmp_path / "built", "cpu").model.state_dict()
    for name, weight in repaired.model.state_dict().items():
        assert torch.allclose(built[name], weight, rtol=1e-3, atol=1e-4), name


def test_without_a_budget_nothing_is_added(run_dir, data_dir, tmp_path):
    assert main(run_dir, data_dir, tmp_path / "out") == 0
    assert not {"budget", "within_budget"} & set(best_of(tmp_path / "out"))
    assert not (tmp_path / "out" / "budget.csv").exists()


def with_times(monkeypatch, ms_of):
    """Have each model take `ms_of` its config, in place of measured times; return the models that were timed."""
    timed = []

    def measure(models, audio, rate, budget_s=0.0):
        times = {}
        for name, loaded in models.items():
            found = dict.fromkeys((field.name for field in latency.dataclasses.fields(latency.Latency)), 0.0)
            config = loaded.config
            timed.append((config.num_hidden_layers, config.intermediate_size))
            times[name] = latency.Latency(**{**found, "latency_ms_median": ms_of(config), "latency_doubt": "load"})
        return times

    monkeypatch.setattr(latency, "measure_in_turn", measure)
    return timed


def ms_of(config):
    return 10 + config.num_hidden_layers * config.intermediate_size / 32


def test_time_is_measured_only_where_it_decides(run_dir, data_dir, tmp_path, monkeypatch):
    timed = with_times(monkeypatch, ms_of)
    assert main(run_dir, data_dir, tmp_path / "out", "--max_latency_ms", 18) == 0
    of_budget = timed[4:]  # the table of the sweep has one of each size
    assert of_budget == [*((n, 128) for n in (4, 3, 2, 1)), *((n, 96) for n in (4, 3)), *((n, 64) for n in (4, 3))]
    table = pd.read_csv(tmp_path / "out" / "budget.csv")
    scored = table[table["search_accuracy"].notna()]
    assert list(zip(scored["n_layers"], scored["ffn_size"], strict=True)) == [(4, 64), (3, 64), (2, 128), (1, 128)]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "its latency is in doubt (load)" in log and "max_latency_ms 18" in log


def test_where_nothing_fits(run_dir, data_dir, tmp_path, monkeypatch, capfd):
    for limits, words in (
        (
            ("--max_parameters", 1000),
            r"--max_parameters 1000: the cheapest model .* 1 block with 32 FFN units, and",
        ),
        (("--max_gmacs", 1e-6), "--max_gmacs 1e-06: the cheapest model"),
    ):
        capfd.readouterr()
        assert main(run_dir, data_dir, tmp_path / "no", *limits) == 2
        error = capfd.readouterr().err
        assert re.search(words, error) and "parameters, " in error
        assert not (tmp_path / "no").exists()
    with_times(monkeypatch, ms_of)
    assert main(run_dir, data_dir, tmp_path / "out", "--max_latency_ms", 5) == 0
    assert best_of(tmp_path / "out")["within_budget"] is None
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "no model is within the budget (--max_latency_ms 5); the nearest keeps layers" in log and "11 ms" in log
    capfd.readouterr()
    for more in ((), ("--data_dir", data_dir)):
        assert build(run_dir, tmp_path / "out" / "best.json", tmp_path / "built", *more) == 2
        assert "no model is within the budget of the sweep; choose one by --n_layers" in capfd.readouterr().err
    assert build(run_dir, tmp_path / "out" / "best.json", tmp_path / "built", "--n_layers", 1) == 0


def test_bad_input_of_07(narrow_result, run_dir, data_dir, tmp_path, capfd):
    def refused(code, words, *more, path=narrow_result / "best.json"):
        capfd.readouterr()
        assert build(run_dir, path, tmp_path / "built", *more) == code
        assert words in capfd.readouterr().err and not (tmp_path / "built").exists()

    refused(2, "give --data_dir, whose clips of train")
    other = write_processed(tmp_path / "other", seed=2)
    refused(3, "which would give another model", "--data_dir", other)
    content = best_of(narrow_result)
    for name, value in (("ffn_size", "many"), ("ffn_size", 0), ("importance", "luck"), ("seed", 1.5)):
        broken = {**content, "within_budget": {**content["within_budget"], name: value}}
        (tmp_path / "best.json").write_text(json.dumps(broken))
        refused(3, "the width of the model within the budget", "--data_dir", data_dir, path=tmp_path / "best.json")


def test_a_budget_goes_on_after_a_kill(result, run_dir, data_dir, tmp_path, monkeypatch):
    output_dir = tmp_path / "out"
    for owner, name in ((width, "narrow"), (budget.BudgetSearch, "described")):
        call = getattr(owner, name)

        def killed(*args, call=call):
            call(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            if name == "described":  # the first model was measured before
                monkeypatch.setattr(width, "SAVE_EVERY_S", 0.0)
            assert main(run_dir, data_dir, output_dir, "--max_parameters", 125_000) == 75
    assert main(run_dir, data_dir, output_dir, "--max_parameters", 125_000) == 0
    for name in ("best.json", "budget.csv"):
        assert (output_dir / name).read_bytes() == (result / name).read_bytes()
    assert not (output_dir / ".sweep").exists()


def test_excess_of_a_budget():
    mixture = Mixture((0,), 8, 1.0, {"n_parameters": 100, "gmacs_per_clip": 2.0})
    assert Budget(max_parameters=50, max_gmacs=8).excess(mixture) == 2 and Budget(max_gmacs=2).fits(mixture)
    assert Budget(max_latency_ms=1).fits(mixture), "no time is known"
    assert str(Budget(max_latency_ms=1.5, max_parameters=125_000)) == "--max_latency_ms 1.5, --max_parameters 125000"
    assert mixture.in_words() == "100 parameters, 2 GMACs per clip"


def test_clips_that_measure_are_at_equal_distances(data_dir, monkeypatch):
    train = clips.read_clips(data_dir, "train")
    assert width.clips_to_measure(train) is train
    monkeypatch.setattr(width, "MOST_CLIPS", 4)
    some = width.clips_to_measure(train)
    assert list(some.table["clip_id"]) == list(train.table["clip_id"].iloc[[0, 12, 23, 35]])
    assert np.array_equal(some.audio(1), train.audio(12)) and np.array_equal(some.targets[2], train.targets[23])


def test_the_flags_of_another_choice_are_none(narrow_result, run_dir):
    path, model = narrow_result / "best.json", model_folder.model_input(run_dir)
    found = best.flags_of(path, model, None, {})
    assert found["ffn_size"] < 128 and found["importance"] == "activation" and found["seed"] == 42
    assert best.flags_of(path, model, 2, {}) == {}
    assert best.flags_of(path, model, None, {"ffn_size": 32}) == {}, "the user's width, with the user's clips"
    assert best.flags_of(path, model, None, {"conv_channels": 0.5}) == found, "both are cut"
    with pytest.raises(InputError):
        best.flags_of(narrow_result / "pruning.csv", model, None, {})


def test_a_flag_that_is_given_wins_with_a_warning(narrow_result, run_dir, caplog):
    model = model_folder.model_input(run_dir)
    given = {"importance": "taylor", "seed": 42, "max_clips_per_class": None}
    found = best.flags_of(narrow_result / "best.json", model, None, given)
    assert found == {**best.flags_of(narrow_result / "best.json", model, None, {}), "importance": "taylor"}
    assert "the sweep had --importance activation, so this is not the model that it scored" in caplog.text


def test_a_warning_names_only_what_the_sweep_noted(narrow_result, run_dir, tmp_path, caplog):
    model, noted = model_folder.model_input(run_dir), json.loads((narrow_result / "best.json").read_text())
    given = {"seed": 1, "max_clips_per_class": 5}
    best.flags_of(narrow_result / "best.json", model, None, given)
    assert "the sweep had no --max_clips_per_class, --seed 42, so" in caplog.text
    for name in given:
        del noted["within_budget"][name]
    (tmp_path / "best.json").write_text(json.dumps(noted))
    caplog.clear()
    assert set(best.flags_of(tmp_path / "best.json", model, None, given)) == {"ffn_size", "importance"}
    assert not caplog.records, "an early sweep noted neither"


def test_clips_that_the_chosen_model_does_not_need_are_not_read(run_dir, data_dir, tmp_path, capfd):
    assert main(run_dir, data_dir, tmp_path / "out", "--max_parameters", 10**9) == 0
    asked = (run_dir, tmp_path / "out" / "best.json", tmp_path / "built", "--data_dir", data_dir)
    assert "importance" not in best_of(tmp_path / "out")["within_budget"]
    assert build(*asked) == 0
    assert "this model needs no clips, so --data_dir is not read" in capfd.readouterr().err
    record = json.loads((tmp_path / "built" / "run.json").read_text())
    assert [one["name"] for one in record["inputs"]] == ["model_dir", "from"]
