"""Stage 05 in-process on small models: its scores, choices, resumption, healing, and every bad input."""

import argparse
import copy
import dataclasses
import fcntl
import itertools
import json
import os
import re
import signal
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForAudioClassification

from experiments import figures
from tests.data import LABELS, small_model, write_processed
from tests.stages import load_stage
from utils.core import runs
from utils.core.cli import parse_layer_list
from utils.core.files import write_json
from utils.data import clips
from utils.figures import pruning_plots
from utils.models import architectures, encoders, latency, model_folder, predict
from utils.pruning import (
    drawing,
    healing,
    layer_evidence,
    layer_selection,
    layer_sweep,
    pruning_plan,
    pruning_table,
    recommendation,
    repair,
    subset_scores,
)
from utils.pruning.layer_selection import Candidate
from utils.pruning.pruning_table import COLUMNS, choose, log_answer
from utils.pruning.subset_scores import SubsetScores
from utils.scores import evaluation, intervals, summary

stage = load_stage("05_pruning")
DRAW_SWEEP = drawing.draw_sweep
pytestmark = pytest.mark.usefixtures("quick_models")
CHEAP = ("--strategies", "forward", "greedy", "exhaustive")
UNTIMED = [name for name in COLUMNS if not name.startswith(("seconds", "latency", "load", "cpu"))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed", seed=1)


def write_run(run_dir, data_dir, name="tiny", keep=None, labels=LABELS):
    """Leave what stage 02 leaves: random blocks, large enough to matter, and a head that was fitted to them."""
    torch.manual_seed(3)
    loaded = encoders.tiny_model(labels) if name == "tiny" else small_model(name, labels)
    model = loaded.model
    model.eval().config.clip_seconds = 0.5
    for block in architectures.blocks_of(model):
        for parameter in block.parameters():
            parameter.data *= 4 if parameter.ndim > 1 else 1
    if labels == LABELS:
        fit(loaded, data_dir, n_epochs=10)
    if keep is not None:
        encoders.prune_model(model, keep)
    args = argparse.Namespace(output_dir=run_dir, overwrite=False, seed=0)
    with runs.open_run("02_finetuning", args, {"data_dir": clips.data_input(data_dir)}):
        encoders.save_model(loaded, run_dir / "model")
    return run_dir


def fit(loaded, data_dir, n_epochs):
    train, val = (clips.read_clips(data_dir, split) for split in ("train", "val"))
    settings = healing.settings_for(n_epochs, seed=0)
    with tempfile.TemporaryDirectory() as work_dir:
        healing.heal(loaded, "head", train, val, settings, Path(work_dir), 16)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data_dir):
    return write_run(tmp_path_factory.mktemp("runs") / "birds", data_dir)


def main(run_dir, data_dir, output_dir, *more):
    arguments = ["--model_dir", run_dir, "--data_dir", data_dir, "--output_dir", output_dir, "--batch_size", 4]
    return stage.main([str(word) for word in (*arguments, "--device", "cpu", *more)])


def table_of(output_dir):
    return pd.read_csv(output_dir / "pruning.csv")


def best_of(output_dir):
    return json.loads((output_dir / "best.json").read_text())


@pytest.fixture(scope="module")
def result(tmp_path_factory, data_dir, run_dir):
    """Return the folder of one whole sweep; tests only read it."""
    output_dir = tmp_path_factory.mktemp("results") / "birds-pruning"
    assert main(run_dir, data_dir, output_dir, "--iterative") == 0
    return output_dir


# ---------------------------------------------------------------------------------------------- results


def test_folder_is_whole_and_its_scratch_gone(result):
    names = {path.name for path in result.iterdir()}
    assert names == {"pruning.csv", "best.json", "run.json", "log.txt", ".lock"}
    record = json.loads((result / "run.json").read_text())
    assert (record["stage"], record["status"]) == ("05_pruning", "complete")
    assert {"rules_s", "search_s", "costs_s", "report_s"} <= set(record["timings"])
    text = (result / "log.txt").read_text()
    assert "clips of val, 18 clips of test, split by recording; 3 classes, chance 0.333" in text
    assert "test, split by recording: 18 clips" in text
    assert record["metrics"]["kept_together"] == best_of(result)["kept_together"] == "recording"
    assert record["metrics"]["smallest_within_margin"] == best_of(result)["smallest_within_margin"]


def test_rows_are_those_of_all_strategies(result):
    table = table_of(result)
    assert list(table.columns) == list(COLUMNS)
    iterative = ["block_influence_iterative", "knn_block_influence_iterative"]
    assert list(table["strategy"].unique()) == [
        *("full", *layer_selection.RULES, *iterative, "greedy", "beam", "exhaustive"),
    ]
    full = table.iloc[0]
    assert (full["n_removed"], full["kept_layers"], full["relative_accuracy"]) == (0, "0-3", 1)
    assert list(table.loc[table["strategy"] == "forward", "kept_layers"]) == ["0,2-3", "0,3", "0"]
    assert len(table[table["strategy"] == "exhaustive"]) == 7
    assert (table["n_layers"] + table["n_removed"] == 4).all()
    not_always = ("report", "relative", "repair_", "unrepaired")
    measured = table.drop(columns=[name for name in COLUMNS if name.startswith(not_always)])
    assert measured.notna().all().all()
    assert table.loc[table["strategy"] != "exhaustive", "report_accuracy"].notna().all()
    assert table["search_accuracy"].nunique() > 3, "subsets that score alike would test nothing"


@pytest.mark.parametrize("name", ["tiny", "wavlm", "wav2vec2-weighted-layer-sum"])
def test_scores_are_those_of_each_saved_pruned_model_alone(name, data_dir, run_dir, result, tmp_path):
    if name == "tiny":
        output_dir = result
    else:
        run_dir, output_dir = write_run(tmp_path / "run", data_dir, name), tmp_path / "out"
        assert main(run_dir, data_dir, output_dir, "--strategies", "backward", "exhaustive") == 0
    table = table_of(output_dir)
    of_split = {"search": clips.read_clips(data_dir, "val"), "report": clips.read_clips(data_dir, "test")}
    whole = encoders.load_model(run_dir, "cpu")
    predicted = {}
    for text in table["kept_layers"].unique():
        keep = parse_layer_list(text, whole.config.num_hidden_layers)
        encoders.save_model(encoders.pruned_copy(whole, keep), tmp_path / text)
        alone = encoders.load_model(tmp_path / text, "cpu")
        predicted[text] = {
            split: predict.predict(alone, split_clips, 5).argmax(axis=1) for split, split_clips in of_split.items()
        }
        assert set(table.loc[table["kept_layers"] == text, "n_parameters"]) == {encoders.count_parameters(alone.model)}
        macs, _ = latency.count_macs(alone.model, alone.prepare([of_split["search"].audio(0)], 16_000))
        row = table[table["kept_layers"] == text].iloc[0]
        assert row["gmacs_per_clip"] == pytest.approx(macs / 1e9, rel=1e-5)
    everything = f"0-{whole.config.num_hidden_layers - 1}"
    for row in table.itertuples():
        for split, split_clips in of_split.items():
            accuracy, macro_f1 = getattr(row, f"{split}_accuracy"), getattr(row, f"{split}_macro_f1")
            if split == "report" and np.isnan(accuracy):
                assert row.strategy == "exhaustive"
                continue
            label_ids = split_clips.table["label_id"].to_numpy()
            ids = predicted[row.kept_layers][split]
            assert accuracy == pytest.approx((ids == label_ids).mean(), abs=1e-5)
            assert macro_f1 == pytest.approx(evaluation.macro_f1(label_ids, ids), abs=1e-5)
        if not np.isnan(row.report_accuracy):
            groups, of_whole = split_clips.table["group"].to_numpy(), predicted[everything]["report"]
            interval = intervals.score_intervals(label_ids, ids, groups)["accuracy"]
            assert (row.report_accuracy_low, row.report_accuracy_high) == pytest.approx(interval, abs=1e-5)
            difference = intervals.paired_difference(label_ids, ids, of_whole, groups)["accuracy"]
            found = row.report_difference, row.report_difference_low, row.report_difference_high
            is_whole = row.kept_layers == everything
            assert found == pytest.approx((0, 0, 0) if is_whole else difference, abs=1e-5)
            assert row.relative_accuracy == pytest.approx(row.report_accuracy / table["report_accuracy"][0], rel=1e-4)


def test_searches_are_ordered_in_quality_at_every_depth(result):
    table = table_of(result)
    best = table.groupby(["strategy", "n_removed"])["search_accuracy"].max()
    for n_removed in (1, 2, 3):
        assert best["exhaustive", n_removed] >= best["beam", n_removed] >= best["greedy", n_removed]
        assert best["exhaustive", n_removed] == best.xs(n_removed, level="n_removed").max()


def test_best_json_is_what_the_table_says(result, run_dir):
    table, best = table_of(result), best_of(result)
    assert best["model_sha256"] == model_folder.model_input(run_dir).sha256
    assert (best["schema_version"], best["n_layers"], best["margin"]) == (1, 4, 0.02)
    assert (best["search_split"], best["report_split"]) == ("val", "test")
    assert list(best["by_depth"]) == ["4", "3", "2", "1"]
    for depth, subset in best["by_depth"].items():
        rows = table[table["n_layers"] == int(depth)]
        order = rows.sort_values(["search_accuracy", "search_macro_f1"], ascending=False, kind="stable")
        first = order.iloc[0]
        assert parse_layer_list(first["kept_layers"], 4) == subset["keep"]
        assert (first["strategy"], len(subset["keep"])) == (subset["strategy"], subset["n_layers"])
        for column in ("search_accuracy", "search_macro_f1", "report_accuracy"):
            assert subset[column] == pytest.approx(first[column], abs=1e-5)
        found = first[["report_difference", "report_difference_low", "report_difference_high"]]
        assert subset["report_difference"] == pytest.approx(list(found), abs=1e-5)


def test_the_answer_is_in_the_log(data_dir, run_dir, tmp_path):
    assert main(run_dir, data_dir, tmp_path / "out", *CHEAP, "--margin", 0.9) == 0
    text = (tmp_path / "out" / "log.txt").read_text()
    known_by = "at no worse than 0.9 in accuracy ({} on val, best of 7): keep 0 (forward)"
    assert f"3 of 4 blocks can be removed {known_by.format('point estimate')}" in text
    assert f"3 of 4 blocks are shown to be removable {known_by.format('simultaneous intervals')}" in text
    assert "val: 9 groups are few" in text and "test: 9 groups are few" in text
    assert "the subset was chosen among 7 by its accuracy on val" in text
    assert len(re.findall(r"\(95 % interval .* to .*: these two models on other recordings\)", text)) == 4
    best = best_of(tmp_path / "out")
    assert best["n_pruned"] == 7 and best["smallest_within_margin_by_interval"]["keep"] == [0]


def test_figures_are_drawn_from_a_real_table(result, data_dir, run_dir, tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw_sweep", DRAW_SWEEP)
        assert main(run_dir, data_dir, tmp_path / "out", "--strategies", "single") == 0
    names = ("pruning", "strategies", "pareto")
    of_sweep = {f"{name}{suffix}" for name in names for suffix in (".pdf", ".png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} - of_sweep == {path.name for path in result.iterdir()}
    drawn = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.p*")}
    for path in drawn:
        path.unlink()
    assert figures.main([str(tmp_path / "out")]) == 0
    assert {path: path.read_bytes() for path in drawn} == drawn
    assert [text for text in caplog.messages if "figures: " in text] == [
        f"{len(of_sweep) // 2} figures: {tmp_path / 'out' / '*.png'}"
    ]


def test_two_runs_give_the_same_table(data_dir, run_dir, result, tmp_path):
    assert main(run_dir, data_dir, tmp_path / "again", "--iterative") == 0
    pd.testing.assert_frame_equal(table_of(tmp_path / "again")[UNTIMED], table_of(result)[UNTIMED])
    assert (tmp_path / "again" / "best.json").read_bytes() == (result / "best.json").read_bytes()


def test_a_sweep_does_not_disturb_the_summary(result):
    assert not (result.parent / "summary.csv").exists()
    assert summary.rebuild_summary(result.parent).empty


def test_default_folder_is_named_after_the_run(data_dir, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model_dir", run_dir / "model", "--data_dir", data_dir, "--device", "cpu", *CHEAP]
    assert stage.main([str(word) for word in words]) == 0
    assert (tmp_path / "validation_results" / "birds.sweep" / "pruning.csv").is_file()


def test_a_model_that_was_pruned_before_keeps_its_numbers_of_the_base_model(data_dir, tmp_path):
    run_dir = write_run(tmp_path / "run", data_dir, keep=[0, 2, 3])
    assert main(run_dir, data_dir, tmp_path / "out", "--strategies", "forward") == 0
    table = table_of(tmp_path / "out")
    assert list(table["kept_layers"]) == ["0-2", "0,2", "0"]
    assert list(table["kept_layers_base"]) == ["0,2-3", "0,3", "0"]


def test_the_first_block_goes_only_if_asked_for(data_dir, run_dir, result, tmp_path):
    assert table_of(result)["kept_layers"].str.startswith("0").all()
    assert main(run_dir, data_dir, tmp_path / "out", "--strategies", "forward", "--remove_first_block") == 0
    assert list(table_of(tmp_path / "out")["kept_layers"]) == ["0-3", "1-3", "2-3", "3"]


def test_iterative_removes_what_matters_least_in_the_pruned_model(data_dir, run_dir, result):
    table = table_of(result)
    rows = table[table["strategy"] == "block_influence_iterative"]
    loaded = encoders.load_model(run_dir, "cpu")
    train = clips.read_clips(data_dir, "train")
    inputs = loaded.prepare([train.audio(i) for i in range(len(train))], 16_000)
    keep = [0, 1, 2, 3]
    for text in rows["kept_layers"]:
        pruned = copy.deepcopy(loaded.model)
        encoders.prune_model(pruned, keep)
        with torch.no_grad():
            states = pruned(**inputs, output_hidden_states=True).hidden_states
        influence = [1 - float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in itertools.pairwise(states)]
        keep.remove(min(keep[1:], key=lambda block: influence[keep.index(block)]))
        assert parse_layer_list(text, 4) == keep


# ---------------------------------------------------------------------------------------------- choices


@pytest.fixture
def scores_of(data_dir, tmp_path, monkeypatch):
    """Return a function that makes scores on val from a number of wrong clips a subset."""

    def make(n_wrong):
        val = clips.read_clips(data_dir, "val")
        label_ids = val.table["label_id"].to_numpy()

        def predict(loaded, some, keeps, *_):
            start = int(val.table.index[val.table["clip_id"] == some.table["clip_id"].iloc[0]][0])
            rows = []
            for keep in keeps:
                predicted = label_ids.copy()
                wrong = np.asarray(n_wrong[keep], dtype=int)
                predicted[wrong] = (predicted[wrong] + 1) % 3
                rows.append(predicted[start : start + len(some)])
            return np.array(rows, dtype=np.int16)

        monkeypatch.setattr(layer_sweep, "predict_subsets", predict)
        loaded = small_model("wav2vec2")
        scores = SubsetScores(loaded, val, "val", 4, tmp_path, {"model": "a"})
        scores.run(n_wrong)
        return scores

    return make


def test_choices_are_the_smallest_within_the_margin(scores_of):
    # 18 clips in 9 groups of two. (0, 1): two wrong of one group; (0, 2): one; (0,): six of three groups.
    whole = (0, 1, 2)
    candidates = [
        *(Candidate("full", whole, 0), Candidate("a", (0, 2), 1)),
        *(Candidate("b", (0, 1), 1), Candidate("b", (0,), 2), Candidate("c", (0, 2), 1)),
    ]
    on_val = scores_of({whole: [], (0, 2): [4], (0, 1): [4, 5], (0,): range(6)})
    found = choose(candidates, on_val, margin=0.12)
    assert list(found.by_depth) == [3, 2, 1]
    assert (found.within, found.by_depth[2]) == (candidates[1], candidates[1])
    # One group of nine is drawn up to four times: the lower end of one wrong clip is about -4 / 18.
    assert (found.within_by_interval, found.n_pruned) == (None, 3)
    assert choose(candidates, on_val, margin=0.6).within_by_interval == candidates[1]
    assert choose(candidates, on_val, margin=1 / 18).within == candidates[1], "just as much as may be lost"
    assert choose(candidates, on_val, margin=0.05).within is None
    assert choose(candidates, on_val, margin=0.4).within == candidates[3]
    assert choose(candidates, on_val, margin=0.05).to_heal() == (0, 2), "the best of those that lack the fewest"
    assert choose(candidates, on_val, margin=0.4).to_heal() == (0,)


def test_the_log_says_which_subset_is_healed_and_whether_it_could_go_as_it_is(scores_of, caplog):
    caplog.set_level("INFO")
    whole = (0, 1, 2)
    candidates = [Candidate("full", whole, 0), Candidate("a", (0, 2), 1), Candidate("b", (0,), 2)]
    on_val = scores_of({whole: [], (0, 2): [4], (0,): range(6)})

    def said(margin, keep=None, of=candidates):
        caplog.clear()
        found = choose(of, on_val, margin)
        found.log_healing(keep or found.to_heal(), keep is not None, margin, on_val)
        return caplog.messages[-1]

    start = "--heal trains layers 0,2 (2 of 3 blocks): "
    assert said(0.05) == (
        f"{start}the best with the fewest blocks removed, because no subset is within the margin. Before it, "
        "pruned - whole = -0.056 in accuracy on val: worse than the margin of 0.05, so these blocks cannot be removed "
        "without healing"
    )
    assert said(0.12).startswith(f"{start}the smallest within the margin. ")
    assert said(0.12).endswith("by the point estimate; by its interval, undecidable here: about 34 groups are needed")
    assert said(0.6, (0, 2)).endswith("within the margin of 0.6 by the point estimate; by its interval, shown")
    assert said(0.25, (0,)).startswith("--heal trains layers 0 (1 of 3 blocks): as given by --heal_keep. Before it, ")
    assert said(0.25, of=candidates[:1]) == "--heal trains the whole model: no smaller subset was scored"
    assert said(0.25, (0, 1, 2)) == "--heal trains the whole model: as given by --heal_keep"


def test_equal_answers_on_few_groups_show_nothing(scores_of):
    """In each of nine groups a subset is right as often as the whole; in others it may not be."""
    candidates = [Candidate("full", (0, 1, 2), 0), Candidate("a", (0, 2), 1)]
    on_val = scores_of({(0, 1, 2): [4], (0, 2): [4]})
    found = choose(candidates, on_val, margin=0.02)
    assert (found.within, found.within_by_interval) == (candidates[1], None)
    assert choose(candidates, on_val, margin=0.4).within_by_interval == candidates[1]


def test_what_is_shown_holds_for_all_subsets_together(scores_of):
    label_ids, groups = np.repeat([0, 1, 2], 6), np.repeat(np.arange(9), 2)
    wrong = {(0, 1, 2): [2], (0, 2): [4], (0, 1): [4, 5, 9], (1, 2): [17], (0,): range(6)}
    on_val = scores_of(wrong)
    pruned = list(wrong)[1:]
    models = [intervals.jackknife(intervals.count(label_ids, on_val.predicted(keep), groups)) for keep in wrong]
    found = intervals.differences(models, [(number, 0) for number in range(1, 5)])["accuracy"]
    for margin in (0.05, 0.2, 0.25, 0.3):
        together = on_val.within_margin(pruned, (0, 1, 2), margin)
        assert [together[keep].answer == "shown" for keep in pruned] == list(found.low_of_all >= -margin - 1e-9)
    low = found.low[0]
    assert found.low_of_all[0] < low, "one subset by itself is surer"
    assert on_val.within_margin([(0, 2)], (0, 1, 2), -low + 1e-6)[0, 2].answer == "shown"
    assert on_val.within_margin(pruned, (0, 1, 2), -low + 1e-6)[0, 2].answer == "undecidable here"
    assert on_val.within_margin([], (0, 1, 2), 0.1) == {}


def test_where_no_block_can_go_the_log_says_by_what(scores_of, caplog):
    whole = (0, 1, 2)
    on_val = scores_of({whole: [], (0, 1): range(6)})
    found = choose([Candidate("full", whole, 0), Candidate("a", (0, 1), 1)], on_val, margin=0.02)
    with caplog.at_level("INFO"):
        log_answer(found, 0.02, on_val, on_val)
    assert "no block can be removed at no worse than 0.02 in accuracy (point estimate on val, best of 1)" in caplog.text
    assert (
        "no block is shown to be removable at no worse than 0.02 in accuracy (simultaneous intervals on val"
        in caplog.text
    )
    assert "the subset was chosen" not in caplog.text


def test_ties_go_to_macro_f1_and_then_to_the_earlier_row(scores_of):
    whole = (0, 1, 2)
    label_ids = np.repeat([0, 1, 2], 6)
    first, last = [0, 1], [0, 6]  # both of one class, or one of each of two: equal accuracy
    on_val = scores_of({whole: [], (0, 2): first, (0, 1): last, (1, 2): first})
    f1 = {keep: on_val.score(keep)[1] for keep in ((0, 2), (0, 1))}
    assert label_ids.shape == (18,) and f1[0, 2] != f1[0, 1]
    better = max(f1, key=f1.get)
    candidates = [Candidate("full", whole, 0), *(Candidate("a", keep, 1) for keep in ((0, 2), (0, 1)))]
    assert choose(candidates, on_val, 0.5).within.keep == better
    assert on_val.ranks([(0, 2), (0, 1)]).index(max(on_val.ranks([(0, 2), (0, 1)]))) == [(0, 2), (0, 1)].index(better)
    equal = [Candidate("full", whole, 0), Candidate("b", (1, 2), 1), Candidate("a", (0, 2), 1)]
    assert choose(equal, on_val, 0.5).within == equal[1]
    assert choose([equal[0], equal[2], equal[1]], on_val, 0.5).within == equal[2]


# ------------------------------------------------------------------------------------------- resumption


class Recorder:
    """Stands for `layer_sweep.predict_subsets`: notes what is run, and stops at a given call."""

    def __init__(self, monkeypatch, stop_at=None):
        self.done, self.n_calls, self.stop_at = [], 0, stop_at
        self._predict = layer_sweep.predict_subsets
        monkeypatch.setattr(layer_sweep, "predict_subsets", self)

    def __call__(self, loaded, some, keeps, *options):
        self.n_calls += 1
        if self.n_calls == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        predicted = self._predict(loaded, some, keeps, *options)
        self.done += [(keep, clip_id) for keep in keeps for clip_id in some.table["clip_id"]]
        return predicted


def test_a_stopped_sweep_goes_on_and_runs_nothing_twice(data_dir, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(subset_scores, "SAVE_EVERY_S", 0.0)
    words = ("--strategies", "forward", "random", "beam", "--beam_width", 2, "--seed", 5)
    with monkeypatch.context() as patch:
        undisturbed = Recorder(patch)
        assert main(run_dir, data_dir, tmp_path / "whole", *words) == 0
    assert len(set(undisturbed.done)) == len(undisturbed.done)
    output_dir, done = tmp_path / "stopped", []
    n_search = 5 * (undisturbed.n_calls // 5 - 1)  # a walk over 18 clips is five calls; the last is the report's
    for stop_at in (3, 4, 2, None):  # in a walk on val, in the same, later on, then to the end
        with monkeypatch.context() as patch:
            recorder = Recorder(patch, stop_at)
            assert main(run_dir, data_dir, output_dir, *words) == (0 if stop_at is None else 75)
        done += recorder.done
        if stop_at is not None:
            assert json.loads((output_dir / "run.json").read_text())["status"] == "interrupted"
    assert sorted(done) == sorted(undisturbed.done)
    assert n_search >= 5
    pd.testing.assert_frame_equal(table_of(output_dir)[UNTIMED], table_of(tmp_path / "whole")[UNTIMED])
    assert (output_dir / "best.json").read_bytes() == (tmp_path / "whole" / "best.json").read_bytes()
    assert not (output_dir / ".sweep").exists()


def test_the_table_has_grown_when_the_report_is_cut_off(data_dir, run_dir, result, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(subset_scores, "SAVE_EVERY_S", 0.0)
        recorder = Recorder(patch, stop_at=8)  # five calls are the walk on val
        assert main(run_dir, data_dir, tmp_path / "out", "--iterative") == 75
    assert {clip_id.split("/")[1][:3] for _, clip_id in recorder.done[-4:]} == {"tes"}
    table = table_of(tmp_path / "out")
    assert table["report_accuracy"].isna().all() and table["gmacs_per_clip"].notna().all()
    searched = ["strategy", "kept_layers", "search_accuracy", "search_macro_f1"]
    pd.testing.assert_frame_equal(table[searched], table_of(result)[searched])
    with monkeypatch.context() as patch:
        patch.setattr(latency, "measure_in_turn", lambda *_, **__: pytest.fail("timed twice"))
        assert main(run_dir, data_dir, tmp_path / "out", "--iterative") == 0
    pd.testing.assert_frame_equal(table_of(tmp_path / "out")[UNTIMED], table_of(result)[UNTIMED])


def test_progress_of_a_sweep_that_goes_on_counts_all_batches(data_dir, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(subset_scores, "SAVE_EVERY_S", 0.0)
    words = ("--strategies", "backward", "--batch_size", 4)
    with monkeypatch.context() as patch:
        Recorder(patch, stop_at=3)  # two of the five batches of val are saved
        assert main(run_dir, data_dir, tmp_path / "out", *words) == 75
    counted, progress = [], runs.progress

    def noting(iterable, total, desc, unit, n_before=0):
        counted.append((desc, total, n_before))
        return progress(iterable, total, desc, unit, n_before)

    monkeypatch.setattr(runs, "progress", noting)
    assert main(run_dir, data_dir, tmp_path / "out", *words) == 0
    sweeping = [(total, n_before) for desc, total, n_before in counted if desc == "sweeping"]
    assert sweeping == [(5, 2), (5, 3), (5, 4), *((5, n) for n in range(5))]


@pytest.mark.parametrize("damage", ["cut", "other model"])
def test_kept_predictions_are_checked(damage, scores_of, tmp_path, monkeypatch):
    whole = (0, 1, 2)
    first = scores_of({whole: [0], (0,): [1, 2]})
    path = next(tmp_path.glob("val-*.npz"))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
        again = scores_of({whole: [0], (0,): [1, 2]})
        np.testing.assert_array_equal(first.predicted((0,)), again.predicted((0,)))
    else:
        assert not first.of_other_model(small_model("wav2vec2"), "b").has(whole)
        monkeypatch.setattr(layer_sweep, "predict_subsets", lambda *_, **__: pytest.fail("run twice"))
        assert first.of_other_model(small_model("wav2vec2"), "a").has(whole)


@pytest.mark.parametrize("doubt", ["no", "order"])
def test_the_front_is_by_operations_where_times_are_doubtful(doubt, data_dir, run_dir, tmp_path, monkeypatch):
    measure, doubtful = latency.measure_in_turn, []

    def measured(models, *words):
        found = measure(models, *words)
        return {
            size: dataclasses.replace(times, latency_doubt=doubt if size == 1 else "no")
            for size, times in found.items()
        }

    monkeypatch.setattr(latency, "measure_in_turn", measured)
    monkeypatch.setattr(drawing, "draw_sweep", DRAW_SWEEP)
    for name in ("kept_grids_figure", "strategies_figure"):
        monkeypatch.setattr(pruning_plots, name, lambda *_: None)
    monkeypatch.setattr(pruning_plots, "pareto_figure", lambda *words: doubtful.append(bool(words[3])))
    assert main(run_dir, data_dir, tmp_path / "out", "--strategies", "backward") == 0
    assert doubtful == [doubt != "no"]
    assert table_of(tmp_path / "out")["latency_doubt"].tolist() == ["no", "no", "no", doubt]


def test_the_same_again_is_done_and_anything_else_refused(data_dir, run_dir, result, capfd):
    before = (result / "pruning.csv").read_bytes()
    assert main(run_dir, data_dir, result, "--iterative") == 0
    assert main(run_dir, data_dir, result, "--iterative", "--margin", 0.1) == 4
    assert "it was made with --margin 0.02, now it is 0.1" in capfd.readouterr().err
    assert (result / "pruning.csv").read_bytes() == before


def test_a_second_sweep_in_one_folder_is_refused(data_dir, run_dir, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / runs.LOCK_NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(run_dir, data_dir, tmp_path / "out", *CHEAP) == 4
    assert "another process is writing" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------- healing


@pytest.fixture(scope="module")
def healed(data_dir, run_dir, tmp_path_factory):
    """Heal a subset of a model that does not say how its clips were cut."""
    output_dir = tmp_path_factory.mktemp("healed") / "out"
    words = ("--strategies", "backward", "--heal", 8, "--heal_keep", "0,3")
    assert main(run_dir, data_dir, output_dir, *words) == 0
    return output_dir


@pytest.fixture(scope="module")
def repaired(tmp_path_factory, data_dir, run_dir):
    """Return the folder of a sweep in which every subset is repaired."""
    output_dir = tmp_path_factory.mktemp("results") / "birds-repaired"
    words = ("--strategies", "backward", "exhaustive", "--repair", "linear", "--repair_clips", 9, "--heal", 1)
    assert main(run_dir, data_dir, output_dir, *words, "--heal_keep", "0,3") == 0
    return output_dir


def test_a_repaired_sweep_scores_what_the_repaired_models_score_alone(repaired, run_dir, data_dir):
    loaded = encoders.load_model(run_dir, "cpu")
    train, test = (clips.read_clips(data_dir, split) for split in ("train", "test"))
    repairer = repair.Repairer(loaded, train.drawn(9, seed=42), 4)
    table = table_of(repaired)
    assert "every subset is repaired on 9 clips of train" in (repaired / "log.txt").read_text()
    whole, table = table.iloc[0], table.iloc[1:]
    assert (whole["repair"], whole["n_removed"], table["repair"].unique()) == ("none", 0, ["linear"])
    assert np.isnan(whole["repair_difference"]), "the whole model is never repaired"
    reported = table.dropna(subset="report_accuracy")
    assert len(reported) >= 4
    for row in reported.itertuples():
        keep = tuple(parse_layer_list(row.kept_layers, 4))
        for model, accuracy in (
            (repair.repaired_copy(loaded, keep, repairer), row.report_accuracy),
            (encoders.pruned_copy(loaded, keep), row.unrepaired_accuracy),
        ):
            predicted = predict.predict(model, test, 4).argmax(axis=1)
            assert accuracy == pytest.approx((predicted == test.table["label_id"]).mean())
        assert row.repair_difference == pytest.approx(row.report_accuracy - row.unrepaired_accuracy, abs=1e-5)
    drawn = {"max_clips_per_class": None, "seed": 42}
    assert best_of(repaired)["repair"] == {"method": "linear", "n_clips": 9, "ridge": repair.RIDGE, **drawn}


def test_healing_starts_from_the_repaired_subset(repaired):
    row = pd.read_csv(repaired / "healing.csv").iloc[0]
    table = table_of(repaired)
    before = table.loc[table["kept_layers"] == "0,3", "report_accuracy"].iloc[0]
    assert row["report_accuracy_before"] == pytest.approx(before)
    config = json.loads((repaired / "healed" / "model" / "config.json").read_text())
    assert config["repair"]["method"] == "linear"


def test_a_sweep_without_repair_says_so(result):
    table = table_of(result)
    assert set(table["repair"]) == {"none"}
    assert table["unrepaired_accuracy"].isna().all()
    assert best_of(result)["repair"] is None


def test_healing_says_what_was_before_and_after(data_dir, run_dir, healed):
    row = pd.read_csv(healed / "healing.csv").iloc[0]
    assert (row["part"], row["epochs"], row["kept_layers"]) == ("head", 8, "0,3")
    assert not (healed / "healed" / "model" / "classify.py").exists()
    said = (healed / "log.txt").read_text()
    assert "without classify.py: the model does not record" in said
    assert "--heal trains layers 0,3 (2 of 4 blocks): as given by --heal_keep" in said
    loaded = encoders.load_model(run_dir, "cpu")
    encoders.prune_model(loaded.model, [0, 3])
    model_folder.model_input(healed / "healed")  # the run that made it is whole
    after = encoders.load_model(healed / "healed", "cpu")
    assert encoders.kept_layers(after.config) == [0, 3]
    for name, split in (("search", "val"), ("report", "test")):
        split_clips = clips.read_clips(data_dir, split)
        label_ids, groups = (split_clips.table[column].to_numpy() for column in ("label_id", "group"))
        ids = [predict.predict(m, split_clips, 4).argmax(axis=1) for m in (loaded, after)]
        for when, predicted in zip(("before", "after"), ids, strict=True):
            assert row[f"{name}_accuracy_{when}"] == pytest.approx((predicted == label_ids).mean(), abs=1e-5)
            assert row[f"{name}_macro_f1_{when}"] == pytest.approx(evaluation.macro_f1(label_ids, predicted), abs=1e-5)
        difference = intervals.paired_difference(label_ids, ids[1], ids[0], groups)["accuracy"]
        found = [row[f"{name}_difference{end}"] for end in ("", "_low", "_high")]
        assert found == pytest.approx(difference, abs=1e-5)
    assert row["search_macro_f1_after"] > row["search_macro_f1_before"]


@pytest.mark.parametrize(
    ("name", "part", "learns"),
    [
        ("wav2vec2-weighted-layer-sum", "head", ("layer_weights", "projector", "classifier")),
        ("wav2vec2-attention", "head", ("projector.queries", "projector.projection", "classifier")),
        ("wav2vec2", "last", ("projector", "classifier", "wav2vec2.encoder.layers.1")),
        (
            "wav2vec2-stable-layer-norm",
            "last",
            ("projector", "classifier", "wav2vec2.encoder.layers.1", "wav2vec2.encoder.layer_norm"),
        ),
        ("whisper", "all", ("projector", "classifier", "encoder")),
    ],
)
def test_healing_trains_the_part_that_was_asked_for(name, part, learns, data_dir, tmp_path):
    run_dir = write_run(tmp_path / "run", data_dir, name)
    words = ("--strategies", "single", "--heal", 1, "--heal_part", part, "--heal_keep", "0,2")
    assert main(run_dir, data_dir, tmp_path / "out", *words) == 0
    before = encoders.load_model(run_dir, "cpu").model
    encoders.prune_model(before, [0, 2])
    after = encoders.load_model(tmp_path / "out" / "healed", "cpu").model
    for (parameter, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if not parameter.startswith(learns):
            assert torch.equal(old, new), parameter
    changed = {
        parameter
        for parameter, old in before.named_parameters()
        if not torch.equal(old, after.get_parameter(parameter))
    }
    assert {prefix for prefix in learns if any(parameter.startswith(prefix) for parameter in changed)} == set(learns)
    assert pd.read_csv(tmp_path / "out" / "healing.csv")["part"].item() == part
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "out" / "healed" / "model")
    assert not (tmp_path / "out" / "healed" / "features").exists()


def test_healing_from_the_swept_model_names_it(data_dir, run_dir, tmp_path):
    words = ("--strategies", "single", "--heal", 1, "--heal_keep", "0,2", "--heal_teacher")
    assert main(run_dir, data_dir, tmp_path / "out", *words) == 0
    assert pd.read_csv(tmp_path / "out" / "healing.csv")["teacher"].item() == str(run_dir)


def test_healing_takes_the_chosen_subset_and_is_not_done_twice(data_dir, run_dir, tmp_path, monkeypatch):
    words = (*CHEAP, "--heal", 2, "--margin", 0.9)
    with monkeypatch.context() as patch:
        patch.setattr(pruning_table, "log_answer", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert main(run_dir, data_dir, tmp_path / "out", *words) == 75
    weights = (tmp_path / "out" / "healed" / "model" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(healing, "heal", lambda *_: pytest.fail("healed twice"))
        assert main(run_dir, data_dir, tmp_path / "out", *words) == 0
    assert (tmp_path / "out" / "healed" / "model" / "model.safetensors").read_bytes() == weights
    row = pd.read_csv(tmp_path / "out" / "healing.csv").iloc[0]
    keep = best_of(tmp_path / "out")["smallest_within_margin"]["keep"]
    assert parse_layer_list(str(row["kept_layers"]), 4) == keep


# --------------------------------------------------------------------------------------------- analysis


def write_analysis(folder, run_dir, evidence, split="train", sha256=None, stage_name="04_analysis", text=None):
    """Leave what stage 04 leaves, with numbers made by hand."""
    args = argparse.Namespace(output_dir=folder, overwrite=False, seed=0)
    with runs.open_run(stage_name, args, {}):
        value = recommendation.recommendation(4, layer_selection.Evidence(**evidence))
        value |= {"model_sha256": sha256 or model_folder.model_input(run_dir).sha256, "split": split}
        write_json(folder / "recommendation.json", value)
        if text is not None:
            (folder / "recommendation.json").write_text(text)
    return folder


INFLUENCE = {"block_influence": np.array([0.9, 0.3, 0.1, 0.2])}


def test_rules_go_by_the_numbers_of_an_analysis(data_dir, run_dir, tmp_path, monkeypatch):
    folder = write_analysis(tmp_path / "analysis", run_dir, INFLUENCE)
    monkeypatch.setattr(layer_evidence, "evidence_of_subset", lambda *_: pytest.fail("measured"))
    words = ("--strategies", "block_influence", "--analysis_dir", folder)
    assert main(run_dir, data_dir, tmp_path / "out", *words) == 0
    assert list(table_of(tmp_path / "out")["kept_layers"]) == ["0-3", "0-1,3", "0-1", "0"]


def test_an_analysis_of_other_clips_is_taken_with_a_warning(data_dir, run_dir, tmp_path, caplog):
    """Another split of the same recordings may have clips of the report in its train."""
    folder, model = tmp_path / "analysis", model_folder.model_input(run_dir)
    write_analysis(folder, run_dir, INFLUENCE)
    path, data = folder / "recommendation.json", clips.data_input(data_dir)
    for sha256, n_warnings in ((data.sha256, 0), (None, 0), ("9" * 64, 1)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": sha256}))
        caplog.clear()
        found = recommendation.read_evidence(folder, model, data, "test")
        assert np.array_equal(found.block_influence, INFLUENCE["block_influence"])
        assert caplog.text.count("if recordings of the report are among them") == n_warnings


def test_what_an_analysis_lacks_is_measured(data_dir, run_dir, result, tmp_path):
    folder = write_analysis(tmp_path / "analysis", run_dir, INFLUENCE, split="val")
    words = ("--strategies", "block_influence", "cka_block", "--analysis_dir", folder)
    assert main(run_dir, data_dir, tmp_path / "out", *words) == 0
    table, measured = table_of(tmp_path / "out"), table_of(result)
    rows = [list(t.loc[t["strategy"] == "cka_block", "kept_layers"]) for t in (table, measured)]
    assert rows[0] == rows[1]
    assert list(table.loc[table["strategy"] == "block_influence", "kept_layers"]) == ["0-1,3", "0-1", "0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sha256": "0" * 64}, "is of another model"),
        ({"split": "test"}, "the clips of the report must not influence the choice"),
        ({"split": "all"}, "the clips of the report must not influence the choice"),
        (
            {"stage_name": "03_model_validation"},
            "is a result of 03_model_validation.py, complete; give the folder that",
        ),
        ({"text": "{"}, "cannot be read as JSON"),
        ({"text": "[]"}, "holds a list […]; expected an object {…}"),
    ],
)
def test_an_analysis_that_does_not_fit_is_refused(options, message, data_dir, run_dir, tmp_path, capfd):
    folder = write_analysis(tmp_path / "analysis", run_dir, INFLUENCE, **options)
    assert main(run_dir, data_dir, tmp_path / "out", "--analysis_dir", folder) == 3
    refused(capfd, message, tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "altered", "not there"])
def test_a_damaged_analysis_is_refused(damage, data_dir, run_dir, tmp_path, capfd):
    folder = tmp_path / "analysis"
    if damage != "missing":
        write_analysis(folder, run_dir, INFLUENCE)
        path = folder / "recommendation.json"
        if damage == "altered":
            path.write_text(path.read_text().replace("0.9", "0.8"))
        else:
            path.unlink()
    assert main(run_dir, data_dir, tmp_path / "out", "--analysis_dir", folder) == 3
    refused(capfd, "analysis", tmp_path / "out")


# -------------------------------------------------------------------------------------------- bad input


def refused(capfd, message, output_dir):
    text = capfd.readouterr().err
    assert message in text and "Traceback" not in text
    assert not output_dir.exists(), "what is refused leaves no folder behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--search_split", "test"), "layers must not be chosen by test clips"),
        (("--search_split", "test", "--report_split", "val"), "layers must not be chosen by test clips"),
        (("--report_split", "val"), "choose on val, report on test"),
        (("--report_split", "train"), "invalid choice: 'train'"),
        (("--strategies", "luck"), "invalid choice: 'luck'"),
        (("--sizes", "9"), "--sizes 9: expected numbers of layers to keep, from 1 to 3, such as 3-6,9; layer list '9'"),
        (("--sizes", "0-2"), "--sizes 0-2: expected numbers of layers to keep, from 1 to 3"),
        (("--sizes", "none"), "--sizes none: expected numbers of layers to keep, from 1 to 3"),
        (("--sizes", "a"), "'a' is not a layer or range"),
        (("--sizes", "2", "--strategies", "forward"), "--sizes needs the strategy exhaustive or race"),
        (("--strategies", "exhaustive", "race"), "both find the same subsets; give one of them"),
        (("--beam_width", "0"), "'0' is not an integer of at least 1"),
        (("--margin", "2"), "'2' is not a number of at least 0 and below 1"),
        (("--iterative", "--strategies", "forward"), "--iterative needs one of --strategies block_influence"),
        (("--heal_keep", "0"), "--heal_keep is of use only with --heal: give the number of epochs with --heal"),
        (("--heal_teacher",), "--heal_teacher is of use only with --heal"),
        (
            ("--heal", "1", "--search_split", "train"),
            "healing trains on train, and chooses its epoch on the split of the",
        ),
        (("--heal_part", "all"), "--heal_part is of use only with --heal"),
        (("--beam_width", "2", "--strategies", "greedy"), "--beam_width is of use only with the strategy beam"),
        (("--repair_clips", "4"), "--repair_clips is of use only with --repair linear"),
        (("--heal", "1", "--heal_keep", "7"), "there is no layer 7; this model has layers 0-3"),
        (("--heal", "1", "--heal_keep", "none"), "there is no encoder to heal"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(words, message, data_dir, run_dir, tmp_path, capfd):
    assert main(run_dir, data_dir, tmp_path / "out", *words) == 2
    refused(capfd, message, tmp_path / "out")


def test_too_many_subsets_are_refused_if_asked_for_and_left_out_if_not(data_dir, run_dir, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(pruning_plan, "MOST_SUBSETS", 6)
    for words in (("--strategies", "exhaustive"), ("--sizes", "1-3")):
        assert main(run_dir, data_dir, tmp_path / "out", *words) == 2
        refused(capfd, "exhaustive would score 7 subsets of 4 layers (limit 6)", tmp_path / "out")
    model = encoders.load_model(run_dir, "cpu").model
    plan = pruning_plan.make_plan(model, None, None, 4, False, False, 0)
    assert plan.searches == ["greedy", "beam"] and plan.all_subsets() == []
    monkeypatch.setattr(pruning_plan, "MOST_BY_DEFAULT", 6)  # the race takes its place
    plan = pruning_plan.make_plan(model, None, None, 4, False, False, 0)
    assert plan.searches == ["greedy", "beam", "race"]
    assert [candidate.rule for candidate in plan.all_subsets()] == ["race"] * 7
    monkeypatch.setattr(pruning_plan, "MOST_RACED", 6)
    assert pruning_plan.make_plan(model, None, None, 4, False, False, 0).searches == ["greedy", "beam"]
    assert main(run_dir, data_dir, tmp_path / "out", "--strategies", "exhaustive", "--sizes", "1,3") == 0
    assert sorted(table_of(tmp_path / "out")["n_layers"].unique()) == [1, 3, 4]


def test_a_model_that_is_not_the_sum_of_its_known_parts_is_refused(data_dir, tmp_path, capfd, monkeypatch):
    run_dir = write_run(tmp_path / "run", data_dir, "wav2vec2-stable-layer-norm")
    monkeypatch.setattr("utils.models.encoder_parts.final_norm_of", lambda model: None)
    assert main(run_dir, data_dir, tmp_path / "out") == 3
    refused(capfd, "run block by block, gives other logits than in one piece", tmp_path / "out")


def test_the_whole_model_scores_as_by_itself_with_both_options(data_dir, tmp_path):
    """methods.md §9: transformers 5.23.0 sums the layers before the final norm."""
    loaded = small_model("hubert", do_stable_layer_norm=True, use_weighted_layer_sum=True)
    loaded.config.clip_seconds = 0.5
    fit(loaded, data_dir, n_epochs=10)
    encoders.save_model(loaded, tmp_path / "model")
    assert main(tmp_path / "model", data_dir, tmp_path / "out", "--strategies", "forward") == 0
    test = clips.read_clips(data_dir, "test")
    predicted = predict.predict(loaded.ready("cpu"), test, 4).argmax(axis=1)
    row = table_of(tmp_path / "out").iloc[0]
    assert row["report_accuracy"] == pytest.approx((predicted == test.table["label_id"]).mean(), abs=1e-6)


def test_wavlm_does_not_lose_its_first_block(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, "wavlm")
    assert main(run_dir, data_dir, tmp_path / "out", "--remove_first_block") == 2
    refused(capfd, "block 0 of a wavlm model holds the relative positions", tmp_path / "out")


def test_a_model_without_blocks_is_refused(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, keep=[])
    assert main(run_dir, data_dir, tmp_path / "out") == 3
    refused(capfd, "no transformer block left", tmp_path / "out")


def test_a_model_of_one_block_has_nothing_to_choose(data_dir, tmp_path):
    run_dir = write_run(tmp_path / "run", data_dir, keep=[1])
    assert main(run_dir, data_dir, tmp_path / "out", "--heal", 1) == 0
    assert list(table_of(tmp_path / "out")["strategy"]) == ["full"]
    best = best_of(tmp_path / "out")
    assert best["smallest_within_margin"] is None and list(best["by_depth"]) == ["1"]


def test_a_model_of_other_labels_is_refused(data_dir, tmp_path, capfd):
    run_dir = write_run(tmp_path / "run", data_dir, labels=["Robin", "Wren"])
    assert main(run_dir, data_dir, tmp_path / "out") == 3
    refused(capfd, "labels differ", tmp_path / "out")


def test_an_incomplete_run_or_data_set_is_refused(data_dir, run_dir, tmp_path, capfd):
    assert main(tmp_path / "nowhere", data_dir, tmp_path / "out") == 3
    refused(capfd, "no such folder", tmp_path / "out")
    assert main(run_dir, tmp_path / "nowhere", tmp_path / "out") == 3
    refused(capfd, "no such folder", tmp_path / "out")


def test_a_weighted_model_keeps_a_block_where_a_rule_would_remove_all(data_dir, tmp_path):
    for name, keeps in (("wav2vec2", ["0-2", "none"]), ("wav2vec2-weighted-layer-sum", ["0-2"])):
        run_dir = write_run(tmp_path / name, data_dir, name)
        folder = tmp_path / f"{name}-analysis"
        write_analysis(folder, run_dir, {})
        path = folder / "recommendation.json"
        value = json.loads(path.read_text()) | {"n_layers": 3, "evidence": {"convexity": [0.9, 0.1, 0.1, 0.1]}}
        write_json(path, value)
        record = json.loads((folder / "run.json").read_text())
        record["outputs"] = [{"path": path.name, "bytes": path.stat().st_size, "sha256": runs.sha256_of_file(path)}]
        write_json(folder / "run.json", record)
        words = ("--strategies", "convexity_peak", "--remove_first_block", "--analysis_dir", folder)
        assert main(run_dir, data_dir, tmp_path / f"{name}-out", *words) == 0
        assert list(table_of(tmp_path / f"{name}-out")["kept_layers"]) == keeps
