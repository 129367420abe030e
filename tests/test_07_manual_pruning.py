"""Stage 07 from end to end: lists, ladder, best.json and session, what later stages take, and bad input."""

import argparse
import copy
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import (
    AutoModelForAudioClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

from tests.data import LABELS, SMALL_CONFIGS, small_extractor, small_model, write_processed
from tests.stages import ROOT, load_stage
from utils.core import runs
from utils.core.errors import InputError
from utils.data import clips
from utils.models import architectures, cnn, encoders, latency, model_folder, predict, training_history
from utils.models.loaded_model import LoadedModel
from utils.models.model_size import ModelSize, SizeCounter
from utils.pruning import best, repair, width
from utils.pruning.pruning_session import HELP, PruningSession

stage = load_stage("07_manual_pruning")

N_LAYERS = 4  # of tiny
SECOND = 16_000


def main(*words) -> int:
    return stage.main([str(word) for word in words])


def write_run(run_dir, data_dir=None, keep=None):
    """Leave what stage 02 leaves; a tiny model with random weights."""
    torch.manual_seed(0)
    loaded = encoders.tiny_model(LABELS)
    loaded.config.clip_seconds = 0.5
    if keep is not None:
        encoders.prune_model(loaded.model, keep)
    args = argparse.Namespace(output_dir=run_dir, overwrite=False, seed=0)
    with runs.open_run("02_finetuning", args, {} if data_dir is None else {"data_dir": clips.data_input(data_dir)}):
        encoders.save_model(loaded, run_dir / "model")
    return run_dir


def write_small(folder, name):
    loaded = small_model(name)
    folder.mkdir(exist_ok=True)
    encoders.save_model(loaded, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "birds")


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    """Return an encoder without a head, as on the hub."""
    folder = tmp_path_factory.mktemp("base") / "small"
    torch.manual_seed(0)
    Wav2Vec2Model(SMALL_CONFIGS["wav2vec2"]()).save_pretrained(folder)
    small_extractor("wav2vec2").save_pretrained(folder)
    return folder


def weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForAudioClassification.from_pretrained(folder).state_dict()


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def pruned_in_memory(run_dir, keep):
    model = encoders.load_model(run_dir, "cpu").model
    encoders.prune_model(model, keep)
    return model


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --------------------------------------------------------------------------------------- lists of layers


def test_classify_py_lies_only_in_models_that_say_how_files_are_cut(run_dir, base_dir, tmp_path):
    loaded = encoders.load_model(run_dir, "cpu")
    data_dir = write_processed(tmp_path / "processed")
    encoders.configure_for_training(loaded.model, clips.read_clips(data_dir, "train"), augment=())
    encoders.save_model(loaded, tmp_path / "trained")
    for name, source, is_there in (
        ("new", tmp_path / "trained", True),
        ("old", run_dir, False),
        ("b", base_dir, False),
    ):
        assert main("--model_dir", source, "--keep_layers", "0", "--output_dir", tmp_path / name) == 0
        assert (tmp_path / name / "model" / "classify.py").exists() == is_there
        said = "without classify.py: the model does not record how" in (tmp_path / name / "log.txt").read_text()
        assert said != is_there


@pytest.mark.parametrize(
    ("option", "value", "keep"),
    [
        ("--keep_layers", "0-1,3", [0, 1, 3]),
        ("--keep_layers", "none", []),
        ("--drop_layers", "1-2", [0, 3]),
        ("--drop_layers", "none", [0, 1, 2, 3]),
    ],
)
def test_a_list_keeps_exactly_these_blocks_and_the_head(option, value, keep, run_dir, tmp_path, capsys):
    output_dir = tmp_path / "pruned"
    assert main("--model_dir", run_dir, option, value, "--output_dir", output_dir) == 0
    model = AutoModelForAudioClassification.from_pretrained(output_dir / "model").eval()
    expected = pruned_in_memory(run_dir, keep)
    clip = {"input_values": torch.randn(2, SECOND // 2, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        assert torch.equal(model(**clip).logits, expected(**clip).logits)
    config = config_of(output_dir / "model")
    assert config["kept_layers"] == keep
    assert config["num_hidden_layers"] == len(keep)
    # A model that keeps every block is not a pruned one.
    assert config.get("pruned_from") == (str(run_dir / "model") if len(keep) < N_LAYERS else None)
    assert list(model.config.id2label.values()) == LABELS
    record = runs.read_record(output_dir)
    assert record["status"] == "complete" and [i["name"] for i in record["inputs"]] == ["model_dir"]

    before, after = [line for line in capsys.readouterr().out.splitlines() if re.match("before|after", line)]
    assert before.split()[1:4] == ["4", "0-3", f"{210_643:,}"]
    assert after.split()[1] == str(len(keep))
    assert after.split()[3] == f"{encoders.count_parameters(expected):,}"
    size = (output_dir / "model" / "model.safetensors").stat().st_size
    assert after.split()[-1] == f"{size / 1e6:.1f}"


def test_pruning_twice_counts_in_the_base_models_numbering(run_dir, tmp_path):
    assert main("--model_dir", run_dir, "--drop_layers", "1", "--output_dir", tmp_path / "once") == 0
    assert main("--model_dir", tmp_path / "once", "--drop_layers", "0", "--output_dir", tmp_path / "twice") == 0
    config = config_of(tmp_path / "twice" / "model")
    assert config["kept_layers"] == [2, 3]
    assert config["pruned_from"] == str(run_dir / "model")
    assert same(weights(tmp_path / "twice" / "model"), pruned_in_memory(run_dir, [2, 3]).state_dict())


def test_the_same_command_again_has_nothing_to_do(run_dir, tmp_path, capsys):
    command = ("--model_dir", run_dir, "--keep_layers", "0", "--output_dir", tmp_path / "pruned")
    assert main(*command) == 0
    first, files = capsys.readouterr().out, files_of(tmp_path / "pruned")
    assert main(*command) == 0
    assert capsys.readouterr().out == first
    assert files_of(tmp_path / "pruned") == files
    assert main(*command[:3], "0-1", *command[4:]) == 4
    assert capsys.readouterr().out == "", "the sizes of another result are not shown"
    assert main(*command[:3], "0-1", *command[4:], "--overwrite") == 0
    assert config_of(tmp_path / "pruned" / "model")["kept_layers"] == [0, 1]


def test_output_dir_is_named_after_the_run(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("--model_dir", run_dir / "model", "--keep_layers", "0") == 0
    assert (tmp_path / "runs" / "birds.pruned" / "model").is_dir()


def test_dry_run_prints_the_same_and_writes_nothing(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("--model_dir", run_dir, "--keep_layers", "0,2", "--dry_run") == 0
    dry = capsys.readouterr().out
    assert main("--model_dir", run_dir, "--ladder", "--dry_run") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1 + (N_LAYERS + 1) + 1
    assert list(tmp_path.iterdir()) == []
    assert main("--model_dir", run_dir, "--keep_layers", "0,2") == 0
    assert capsys.readouterr().out == dry


# ------------------------------------------------------------------------------------------- base models


def test_a_base_model_gets_a_head_drawn_by_the_seed(base_dir, tmp_path):
    def pruned(name, *more):
        assert main("--model_dir", base_dir, "--keep_layers", "0,2", "--output_dir", tmp_path / name, *more) == 0
        return weights(tmp_path / name / "model")

    first, again, other = pruned("first"), pruned("again"), pruned("other", "--seed", 7)
    assert same(first, again)
    assert {name for name in first if not torch.equal(first[name], other[name])} == {
        "projector.weight",
        "classifier.weight",
    }
    base = Wav2Vec2Model.from_pretrained(base_dir)
    encoder = {f"wav2vec2.{name}": value for name, value in base.state_dict().items()}
    for name, value in first.items():
        if name.startswith("wav2vec2.encoder.layers.1."):
            assert torch.equal(value, encoder[name.replace("layers.1.", "layers.2.")])
        elif name.startswith("wav2vec2."):
            assert torch.equal(value, encoder[name])


def test_a_pruned_base_model_is_a_base_model_of_stage_02(base_dir, tmp_path):
    assert main("--model_dir", base_dir, "--keep_layers", "0,2", "--output_dir", tmp_path / "pruned") == 0
    model_folder.any_model_input(str(tmp_path / "pruned"))
    model = encoders.load_base_model(str(tmp_path / "pruned" / "model"), LABELS).model
    assert model.config.num_labels == len(LABELS) and model.config.kept_layers == [0, 2]
    saved = weights(tmp_path / "pruned" / "model")
    different = {n for n, v in model.state_dict().items() if v.shape != saved[n].shape or not torch.equal(v, saved[n])}
    assert different == {"classifier.weight", "classifier.bias"}


def test_tiny_by_its_name(tmp_path):
    assert main("--model_dir", "tiny", "--keep_layers", "1", "--output_dir", tmp_path / "a") == 0
    assert main("--model_dir", "tiny", "--keep_layers", "1", "--output_dir", tmp_path / "b") == 0
    assert same(weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model"))
    assert config_of(tmp_path / "a" / "model")["pruned_from"] == "tiny"


def test_has_head_is_told_from_the_weights(run_dir, base_dir):
    assert encoders.load_any_model(run_dir, "cpu").has_head
    assert not encoders.load_any_model(base_dir, "cpu").has_head
    assert not encoders.load_any_model("tiny", "cpu").has_head


# ------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_sizes_are_those_of_the_pruned_model_run_for_real(name):
    loaded = small_model(name)
    model = loaded.model
    model.config.clip_seconds = 0.5
    counter = SizeCounter(loaded)
    n_samples = SECOND // 2
    if name in {"whisper", "ast"}:
        n_samples = round(architectures.longest_clip_seconds(loaded.extractor, model.config) * SECOND)
        assert "window" in counter.clip
    inputs = loaded.prepare([torch.zeros(n_samples).numpy()], SECOND)
    for keep in ([0], [0, 2], [0, 1, 2], *([] if "weighted" in name else [[]])):
        pruned = copy.deepcopy(model)
        encoders.prune_model(pruned, keep)
        size = counter.size_of(keep)
        assert size.n_parameters == encoders.count_parameters(pruned)
        assert (size.macs_per_clip, size.macs_front_end) == latency.count_macs(pruned, inputs)
        assert size.kept_layers == keep
    assert len(architectures.blocks_of(model)) == 3, "counting prunes nothing"


def test_parameters_of_wav2vec2_base():
    """methods.md §5: 7,087,872 a block + 9,523,107 with a 35-class head."""
    with torch.device("meta"):
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=35))
    counter = SizeCounter(LoadedModel(model, small_extractor("wav2vec2")))
    assert counter.clip == "5 s"
    for keep in ([], [11], [0, 3, 4, 7], list(range(12))):
        size = counter.size_of(keep)
        assert size.n_parameters == len(keep) * 7_087_872 + 9_523_107
        assert size.weights_bytes == 4 * size.n_parameters


# ------------------------------------------------------------------------------------------------ ladder


def test_ladder_has_a_model_of_every_depth(run_dir, tmp_path, capsys):
    output_dir = tmp_path / "ladder"
    assert main("--model_dir", run_dir, "--ladder", "--output_dir", output_dir) == 0
    rungs = [f"{n:02d}-blocks" for n in range(N_LAYERS + 1)]
    assert sorted(path.name for path in output_dir.iterdir() if path.is_dir()) == rungs
    table = capsys.readouterr().out
    clip = {"input_values": torch.randn(2, SECOND // 2, generator=torch.Generator().manual_seed(0))}
    for n, rung in enumerate(rungs):
        model = AutoModelForAudioClassification.from_pretrained(output_dir / rung / "model").eval()
        with torch.no_grad():
            expected = pruned_in_memory(run_dir, list(range(n)))(**clip).logits
            assert torch.equal(model(**clip).logits, expected)
        assert model.config.kept_layers == list(range(n))
        assert getattr(model.config, "pruned_from", None) == (str(run_dir / "model") if n < N_LAYERS else None)
        assert rung in table
        # Named in both ways, and to the stages that fine-tune and validate.
        assert (
            model_folder.model_input(output_dir / rung).sha256
            == model_folder.model_input(output_dir / rung / "model").sha256
        )
        assert model_folder.any_model_input(str(output_dir / rung)).sha256 is not None


def test_ladder_leaves_out_an_impossible_depth(tmp_path, caplog):
    model_dir = write_small(tmp_path / "weighted", "wav2vec2-weighted-layer-sum")
    assert main("--model_dir", model_dir, "--ladder", "--output_dir", tmp_path / "ladder") == 0
    rungs = sorted(path.name for path in (tmp_path / "ladder").iterdir() if path.is_dir())
    assert rungs == ["01-blocks", "02-blocks", "03-blocks"]
    assert "no model of 0 layers" in caplog.text


def test_a_stopped_ladder_is_refused_and_goes_on_where_it_stopped(run_dir, tmp_path, monkeypatch, capfd):
    whole_dir, output_dir = tmp_path / "whole", tmp_path / "stopped"
    assert main("--model_dir", run_dir, "--ladder", "--output_dir", whole_dir) == 0

    with monkeypatch.context() as patch:
        save_pretrained, names = encoders.PreTrainedModel.save_pretrained, []

        def killed_at_the_third(self, folder, *args, **kwargs):
            names.append(folder)
            save_pretrained(self, folder, *args, **kwargs)
            if len(names) == 3:
                raise RuntimeError("killed")

        patch.setattr(encoders.PreTrainedModel, "save_pretrained", killed_at_the_third)
        assert main("--model_dir", run_dir, "--ladder", "--output_dir", output_dir) == 1
    assert sorted(path.parent.name for path in output_dir.glob("*/model")) == ["03-blocks", "04-blocks"]
    assert list(output_dir.glob("*/.model*")), "the half-written model is left, as by a kill"

    for rung in (output_dir / "04-blocks", output_dir / "04-blocks" / "model"):
        with pytest.raises(InputError, match="is not complete"):
            model_folder.model_input(rung)
        with pytest.raises(InputError, match="is not complete"):
            model_folder.any_model_input(str(rung))
        assert main("--model_dir", rung, "--keep_layers", "0", "--output_dir", tmp_path / "no") == 3

    kept = (output_dir / "04-blocks" / "model" / "model.safetensors").stat().st_mtime_ns
    assert main("--model_dir", run_dir, "--ladder", "--output_dir", output_dir) == 0
    assert (output_dir / "04-blocks" / "model" / "model.safetensors").stat().st_mtime_ns == kept
    own = {"run.json", "log.txt", ".lock"}
    first, second = ({k: v for k, v in files_of(d).items() if k not in own} for d in (whole_dir, output_dir))
    assert first == second
    assert runs.read_record(output_dir)["attempts"] == 2


# --------------------------------------------------------------------------------------------- best.json


def best_json(path, swept, **changes):
    best = {
        "schema_version": 1,
        "model_sha256": model_folder.model_input(swept).sha256,
        "model_dir": str(swept),
        "n_layers": N_LAYERS,
        "margin": 0.02,
        "smallest_within_margin": {"keep": [0, 2, 3], "n_layers": 3},
        "by_depth": {"1": {"keep": [2]}, "2": {"keep": [0, 3], "strategy": "beam", "search_accuracy": 0.9}},
    }
    path.write_text(json.dumps(best | changes))
    return path


@pytest.mark.parametrize(("more", "keep"), [((), [0, 2, 3]), (("--n_layers", 2), [0, 3])])
def test_from_best_json(more, keep, run_dir, tmp_path):
    best = best_json(tmp_path / "best.json", run_dir)
    output_dir = tmp_path / "pruned"
    assert main("--model_dir", run_dir / "model", "--from", best, *more, "--output_dir", output_dir) == 0
    assert config_of(output_dir / "model")["kept_layers"] == keep
    assert [i["name"] for i in runs.read_record(output_dir)["inputs"]] == ["model_dir", "from"]


@pytest.mark.parametrize(
    ("changes", "more", "code", "words"),
    [
        ({}, ("--n_layers", 3), 2, "no subset of that depth; it has subsets of 1, 2 layers"),
        ({"smallest_within_margin": None}, (), 2, "--n_layers: it has subsets of 1, 2 layers"),
        (
            {"model_sha256": "0" * 64, "model_dir": "runs/other"},
            (),
            3,
            r"runs/other \(sha256 000000000000…\), swept on",
        ),
        ({"schema_version": 2}, (), 3, "schema_version 2, expected 1"),
        ({"by_depth": None}, (), 3, "is not a best.json: it holds "),
        (
            {"by_depth": []},
            (),
            3,
            r"is not a best.json: it holds 'schema_version', 'model_sha256', 'model_dir', .*; expected schema_version, "
            r"model_sha256, model_dir, by_depth; expected the result of 05_pruning.py for this model, by default .*; "
            "run it on this model",
        ),
        ({"smallest_within_margin": {"keep": "0-3"}}, (), 3, "expected a list of layers under 'keep', got '0-3'"),
        ({"smallest_within_margin": [0]}, (), 3, "expected a list of layers under 'keep', got None"),
        ({"smallest_within_margin": {"keep": [0, True]}}, (), 3, "expected a list of layers"),
        ({"smallest_within_margin": {"keep": [0, 4]}}, (), 3, "from 0 to 3"),
        ({"by_depth": {"2": {"keep": [1]}}}, ("--n_layers", 2), 3, "the subset of 2 layers keeps 1"),
    ],
)
def test_bad_best_json(changes, more, code, words, run_dir, tmp_path, capfd):
    best = best_json(tmp_path / "best.json", run_dir, **changes)
    refuse(capfd, code, words, tmp_path / "no", "--model_dir", run_dir, "--from", best, *more)


def test_a_best_json_of_another_training_says_which_file_is_wanted(run_dir, tmp_path, capfd):
    """The run folder was trained again, on longer clips, after the sweep: both have the same path."""
    swept = {"data_dir": "processed_data/short", "data_sha256": "a" * 64, "clip_seconds": 3.0, "search_split": "val"}
    best = best_json(tmp_path / "best.json", run_dir, **swept, model_sha256="0" * 64)
    words = (
        r"swept on clips of 3 s of processed_data/short \(sha256 aaaaaaaaaaaa…\); --model_dir .* was trained on clips "
        r"of 0.5 s \(an unknown data set\); expected the result of 05_pruning.py for this model, by default "
        r"validation_results/birds.sweep/best.json"
    )
    refuse(capfd, 3, words, tmp_path / "no", "--model_dir", run_dir, "--from", best)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_sha256": "b" * 64}, "clips that it was trained on may be among them"),
        ({"search_split": "test"}, "on the split test: scores of the pruned model on test are too high"),
        ({"search_split": "train"}, "on the split train, where the model was trained"),
        ({"data_sha256": "d" * 64, "search_split": "val"}, None),
        ({}, None),  # of an earlier version
    ],
)
def test_layers_chosen_by_the_wrong_clips(changes, words, run_dir, tmp_path, caplog):
    model = tmp_path / "model"
    shutil.copytree(run_dir / "model", model)
    config = config_of(model) | {"data_sha256": "d" * 64}
    (model / "config.json").write_text(json.dumps(config))
    best = best_json(tmp_path / "best.json", model, **changes)
    assert main("--model_dir", model, "--from", best, "--dry_run") == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (words is None and not warnings) or (len(warnings) == 1 and words in warnings[0])


def test_the_clips_that_chose_the_layers_are_recorded_in_the_config(run_dir, tmp_path):
    data = f"{'d' * 64}/fold-2-of-5"
    best = best_json(tmp_path / "best.json", run_dir, search_split="val", data_sha256=data)
    assert main("--model_dir", run_dir, "--from", best, "--output_dir", tmp_path / "chosen") == 0
    assert config_of(tmp_path / "chosen" / "model")["layers_chosen_on"] == f"val of {data}"
    assert main("--model_dir", run_dir, "--keep_layers", "0,1", "--output_dir", tmp_path / "by-hand") == 0
    assert "layers_chosen_on" not in config_of(tmp_path / "by-hand" / "model")


def test_another_fold_than_that_of_the_sweep_is_named(tmp_path):
    """The folds of one data set have one digest."""
    content = {"schema_version": 1, "model_sha256": "m", "model_dir": "run", "by_depth": {}}
    content |= {"data_dir": "data", "data_sha256": "d1/fold-1-of-3", "clip_seconds": 2}
    (tmp_path / "best.json").write_text(json.dumps(content))
    best.check_data(tmp_path / "best.json", runs.Input("data", "d1/fold-1-of-3"))
    for digest, fold in (("d1", ""), ("d1/fold-2-of-3", ", fold 2 of 3")):
        with pytest.raises(
            InputError, match=rf"of data \(sha256 d1…, fold 1 of 3\); .* \(sha256 d1…{fold}\) has other"
        ):
            best.check_data(tmp_path / "best.json", runs.Input("data", digest))


@pytest.mark.parametrize("text", ["", "[", "[]", "7", "\x00"])
def test_best_json_that_is_none(text, run_dir, tmp_path, capfd):
    (tmp_path / "best.json").write_text(text)
    refuse(capfd, 3, "best.json", tmp_path / "no", "--model_dir", run_dir, "--from", tmp_path / "best.json")
    refuse(capfd, 3, "no such file", tmp_path / "no", "--model_dir", run_dir, "--from", tmp_path / "none.json")
    (tmp_path / "sweep").mkdir()
    refuse(capfd, 3, "is a folder; expected", tmp_path / "no", "--model_dir", run_dir, "--from", tmp_path / "sweep")


# ----------------------------------------------------------------------------------------------- width


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def columns(out: str) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table of sizes, and the cells of its rows."""
    lines = out.splitlines()
    head = re.split(r"  +", lines[0].strip())
    return head, [line.split() for line in lines[1:] if re.match(r"before|after|\d\d-blocks", line)]


def test_a_narrower_model(run_dir, data_dir, tmp_path, capsys):
    command = ["--model_dir", run_dir, "--ffn_size", "0.5", "--conv_channels", "0.25", "--data_dir", data_dir]
    assert main(*command, "--dry_run", "--output_dir", tmp_path / "narrow") == 0
    dry = capsys.readouterr().out
    assert not (tmp_path / "narrow").exists()
    assert main(*command, "--output_dir", tmp_path / "narrow") == 0
    out, log = capsys.readouterr().out, (tmp_path / "narrow" / "log.txt").read_text()
    assert out == dry and "36 clips of train" in log and "not repaired: --repair linear" in log
    head, (before, after) = columns(out)
    assert head[2:4] == ["FFN units", "channels"]
    assert (before[:5], after[:5]) == (["before", "4", "0-3", "128", "256"], ["after", "4", "0-3", "64", "64"])

    config = config_of(tmp_path / "narrow" / "model")
    assert config["intermediate_size"] == 64 and config["conv_dim"] == [8, 8, 16, 16, 16]
    assert config["width_from"] == {"ffn_size": 128, "conv_channels": 256}
    assert config["width_importance"] == "activation" and config["pruned_from"] == str(run_dir / "model")
    loaded = encoders.load_model(tmp_path / "narrow", "cpu")
    assert encoders.kind_of(loaded.config) == "pruned before", "the run was not made by training"
    digest = clips.data_input(data_dir).sha256
    assert training_history.history_of(loaded.model).data == (digest,) == tuple(config["trained_on"])

    expected = encoders.load_model(run_dir, "cpu")
    changes = width.changes_of(expected.config, {"ffn_size": 0.5, "conv_channels": 0.25})
    train = clips.read_clips(data_dir, "train")
    measured = width.measure(expected, train, "activation", list(changes), tmp_path / "sums.npz", {})
    width.narrow(expected.model, measured, changes, "activation")
    assert same(loaded.model.state_dict(), expected.model.state_dict())
    assert not (tmp_path / "narrow" / stage.SCRATCH).exists()
    assert main(*command, "--output_dir", tmp_path / "narrow") == 0, "nothing to do"


def test_narrower_with_fewer_layers(run_dir, data_dir, tmp_path, capsys):
    narrow = ["--ffn_size", 32, "--importance", "activation", "--data_dir", data_dir, "--max_clips_per_class", 2]
    best = best_json(tmp_path / "best.json", run_dir)
    for name, choice in (
        ("kept", ("--keep_layers", "0,2")),
        ("chosen", ("--from", best, "--n_layers", 2)),
        ("ladder", ("--ladder",)),
    ):
        assert main("--model_dir", run_dir, *choice, *narrow, "--output_dir", tmp_path / name) == 0
    models = [*(tmp_path / name / "model" for name in ("kept", "chosen")), *(tmp_path / "ladder").glob("*/model")]
    assert len(models) == 2 + N_LAYERS + 1
    for folder in models:
        config = config_of(folder)
        assert config["intermediate_size"] == 32 and config["num_hidden_layers"] == len(config["kept_layers"])
    # Blocks are measured in the model without the removed blocks: 2 reads the output of 0, and of 1 in the ladder.
    kept, rung = (weights(folder) for folder in (tmp_path / "kept" / "model", tmp_path / "ladder" / "03-blocks/model"))
    first, last = (f"wav2vec2.encoder.layers.{number}.feed_forward.output_dense.weight" for number in (0, 1))
    assert torch.equal(kept[first], rung[first])
    assert not torch.equal(kept[last], rung[last.replace("layers.1", "layers.2")])
    capsys.readouterr()


def test_narrower_base_model_and_taylor(run_dir, base_dir, data_dir, tmp_path, capfd):
    assert main("--model_dir", base_dir, "--ffn_size", 0.5, "--data_dir", data_dir, "--output_dir", tmp_path / "b") == 0
    loaded = encoders.load_base_model(str(tmp_path / "b" / "model"), LABELS)
    assert loaded.config.intermediate_size == 32 and encoders.kind_of(loaded.config) == "pruned before"
    taylor = ("--ffn_size", 0.5, "--data_dir", data_dir, "--importance", "taylor")
    refuse(capfd, 2, "random head, whose loss says nothing", tmp_path / "no", "--model_dir", base_dir, *taylor)
    for name, method in (("a", "activation"), ("t", "taylor")):
        assert main("--model_dir", run_dir, *taylor[:-1], method, "--output_dir", tmp_path / name) == 0
        assert config_of(tmp_path / name / "model")["width_importance"] == method
    assert not same(weights(tmp_path / "a" / "model"), weights(tmp_path / "t" / "model"))


def test_narrower_goes_on_after_a_kill(run_dir, data_dir, tmp_path, monkeypatch):
    command = ["--model_dir", run_dir, "--ladder", "--ffn_size", "0.5", "--data_dir", data_dir]
    assert main(*command, "--output_dir", tmp_path / "whole") == 0
    for number, (owner, name) in enumerate(((width, "narrow"), (encoders, "save_model"), (encoders, "save_model"))):
        call = getattr(owner, name)

        def killed(*args, call=call):
            call(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            if number:  # nothing is measured again
                patch.setattr(width, "_activation_sums", None)
            assert main(*command, "--output_dir", tmp_path / "killed") == 75
    assert main(*command, "--output_dir", tmp_path / "killed") == 0
    assert {n: b for n, b in files_of(tmp_path / "whole").items() if "/model/" in n} == {
        n: b for n, b in files_of(tmp_path / "killed").items() if "/model/" in n
    }


@pytest.mark.parametrize(
    ("words_of_command", "message"),
    [
        (("--ffn_size", "0"), "'0' is not an integer of at least 1, or a share above 0 and of at most 1"),
        (("--ffn_size", "1.5"), "'1.5' is not an integer"),
        (("--conv_channels", "2"), "'2' is not a number above 0"),
        (("--ffn_size", "0.5"), "--ffn_size, --conv_channels, --heads: give --data_dir"),
        (("--ffn_size", "129", "--data_dir", "DATA"), "--ffn_size 129: this model has 128 in each block"),
        (("--heads", "1", "--data_dir", "DATA"), "--heads: the attention of wav2vec2"),
        (("--ffn_size", "1", "--keep_layers", "none", "--data_dir", "DATA"), "--ffn_size: no layer is kept"),
        (("--keep_layers", "0", "--importance", "taylor"), "--importance is of use only with one of --ffn_size"),
        (("--keep_layers", "0", "--data_dir", "DATA"), "--data_dir is of use only with one of --ffn_size"),
        (("--keep_layers", "0", "--fold", "1"), "--fold is of use only with"),
    ],
)
def test_bad_usage_of_widths(words_of_command, message, run_dir, data_dir, tmp_path, capfd):
    words = [data_dir if word == "DATA" else word for word in words_of_command]
    refuse(capfd, 2, message, tmp_path / "no", "--model_dir", run_dir, *words)


def test_bad_models_and_data_for_widths(run_dir, data_dir, tmp_path, capfd):
    whisper = write_small(tmp_path / "whisper", "whisper")
    words = ("--conv_channels", "0.5", "--data_dir", data_dir)
    refuse(capfd, 2, "--conv_channels: Whisper has no convolutions", tmp_path / "no", "--model_dir", whisper, *words)
    other = write_processed(tmp_path / "other", labels=["Wren", "Robin"])
    words = ("--ffn_size", "0.5", "--data_dir", other)
    refuse(capfd, 3, "labels differ", tmp_path / "no", "--model_dir", run_dir, *words)
    encoders.save_model(cnn.build_cnn("melspectrogram", LABELS, SECOND, 0.5, width=0.1), tmp_path / "cnn")
    words = ("--ffn_size", "0.5", "--data_dir", data_dir)
    refuse(capfd, 3, "has no transformer blocks", tmp_path / "no", "--model_dir", tmp_path / "cnn", *words)


# --------------------------------------------------------------------------------------------- bad input


def refuse(capfd, code, words, output_dir, *command):
    """Run the stage; check that it says no in these words, without a traceback, and writes nothing."""
    capfd.readouterr()
    assert main(*command, "--output_dir", output_dir) == code
    text = capfd.readouterr().err
    assert re.search(words, text), text
    assert "Traceback" not in text
    assert not output_dir.exists()


@pytest.mark.parametrize(
    ("words_of_command", "message"),
    [
        (("--keep_layers", "0", "--drop_layers", "1"), "not allowed with argument"),
        (("--ladder", "--keep_layers", "0"), "not allowed with argument"),
        (("--ladder", "--from", "best.json"), "not allowed with argument"),
        ((), "--keep_layers 0-3,7, --drop_layers 4-6, --ladder and --from"),
        (("--keep_layers", "0-4"), "there is no layer 4; this model has layers 0-3"),
        (("--keep_layers", ""), "is not a layer or range"),
        (("--keep_layers", "3-1"), "is in descending order"),
        (("--drop_layers", "1,1"), "named twice"),
        (("--drop_layers", "a"), "is not a layer or range"),
        (("--keep_layers", "0", "--n_layers", "1"), "together with --from"),
        (("--ladder", "--n_layers", "-1"), "'-1' is not an integer"),
    ],
)
def test_bad_usage(words_of_command, message, run_dir, tmp_path, capfd):
    refuse(capfd, 2, message, tmp_path / "no", "--model_dir", run_dir, *words_of_command)


def test_bad_usage_of_this_model(tmp_path, capfd):
    wavlm = write_small(tmp_path / "wavlm", "wavlm")
    refuse(capfd, 2, "relative positions", tmp_path / "no", "--model_dir", wavlm, "--drop_layers", "0")
    pruned = write_run(tmp_path / "front-end", keep=[])
    refuse(capfd, 2, "this model has no layers", tmp_path / "no", "--model_dir", pruned, "--keep_layers", "0")


def test_bad_models(run_dir, tmp_path, capfd):
    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(run_dir / "model", folder)
        change(folder)
        return folder

    def without_a_weight(name):
        def change(folder):
            model = AutoModelForAudioClassification.from_pretrained(folder)
            state = {key: value for key, value in model.state_dict().items() if key != name}
            model.save_pretrained(folder, state_dict=state)

        return change

    def refused(words, model_dir):
        refuse(capfd, 3, words, tmp_path / "no", "--model_dir", model_dir, "--keep_layers", "0")

    images = tmp_path / "images"
    ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])).save_pretrained(images)
    (images / "preprocessor_config.json").write_text("{}")
    refused("a 'resnet' model has no transformer blocks", images)
    refused("no/such.* cannot be loaded", tmp_path / "no" / "such")
    wanted = "expected a run folder of 02_finetuning.py or 06_cnn.py, or the folder of a model"
    refused(f"has no config.json.*{wanted}", broken("a", lambda folder: (folder / "config.json").unlink()))
    other = broken("g", lambda folder: (folder / "config.json").write_text('{"stage": 5}'))
    refused(f"config.json holds 'stage' and no 'model_type', so it does not describe a model; {wanted}", other)
    refused("has no weights", broken("b", lambda folder: (folder / "model.safetensors").unlink()))
    refused("is damaged", broken("c", lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99)))
    refused("cannot be read as JSON", broken("d", lambda folder: (folder / "config.json").write_text("{")))
    refused("1 missing weights: classifier.bias", broken("e", without_a_weight("classifier.bias")))
    lost = "wav2vec2.encoder.layers.1.layer_norm.bias"
    refused(f"missing weights: {lost}", broken("f", without_a_weight(lost)))

    def without_its_head(folder):
        model = AutoModelForAudioClassification.from_pretrained(folder)
        model.wav2vec2.save_pretrained(folder)

    with pytest.raises(InputError, match=r"is a base model, without a head for labels: run 02_finetuning.py on it"):
        encoders.load_model(broken("h", without_its_head), "cpu")

    unfinished = tmp_path / "unfinished"
    shutil.copytree(run_dir, unfinished)
    record = runs.read_record(unfinished)
    (unfinished / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    refused("is not complete", unfinished)
    refused("is not complete", unfinished / "model")


def test_a_base_model_that_lacks_more_than_a_head(base_dir, tmp_path, capfd):
    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder)
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    words = "--model_dir .*num_hidden_layers is 5, the weights have no layer beyond 2"
    refuse(capfd, 3, words, tmp_path / "no", "--model_dir", folder, "--keep_layers", "0")


def test_output_never_replaces_an_input(run_dir, tmp_path, capfd):
    copied = tmp_path / "runs" / "birds"
    shutil.copytree(run_dir, copied)
    best = best_json(tmp_path / "runs" / "best.json", copied)
    before = files_of(tmp_path)
    for output_dir in (copied, copied / "model", tmp_path / "runs"):
        for model_dir, option in ((copied, ("--ladder",)), (copied / "model", ("--from", best))):
            assert main("--model_dir", model_dir, *option, "--output_dir", output_dir, "--overwrite") == 2
            assert "could destroy its own input" in capfd.readouterr().err
    assert files_of(tmp_path) == before


# ----------------------------------------------------------------------------------------------- session


class Terminal(io.StringIO):
    """Stands for a terminal: gives lines, or raises what stands among them."""

    def __init__(self, *lines):
        super().__init__()
        self.lines = list(lines)

    def isatty(self):
        return True

    def readline(self, *args):
        line = self.lines.pop(0) if self.lines else ""
        if isinstance(line, BaseException):
            raise line
        return line


def typed(monkeypatch, capsys, lines, *command):
    """Run the stage with lines typed; return its exit code and what it printed."""
    monkeypatch.setattr("sys.stdin", Terminal(*lines))
    code = main(*command)
    return code, capsys.readouterr().out


def test_session_ends_with_the_command_that_does_the_same(run_dir, tmp_path, monkeypatch, capsys):
    first = tmp_path / "by hand, 'quoted'"
    lines = [
        "-1\n",
        "-0-9\n",
        "\n",
        "что?\n",
        "-3\n",
        "undo\n",
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        "ok\n",
    ]
    code, out = typed(monkeypatch, capsys, lines, "--model_dir", run_dir, "--output_dir", first)
    assert code == 0
    assert "[ 0] .  [ 2][ 3]" in out
    assert config_of(first / "model")["kept_layers"] == [0, 2, 3]

    command = next(line for line in out.splitlines() if line.startswith("to repeat: "))
    words = shlex.split(command.removeprefix("to repeat: "))
    assert words[:2] == ["python", "07_manual_pruning.py"]
    assert words[2:] == ["--model_dir", str(run_dir), "--keep_layers", "0,2-3", "--output_dir", str(first)]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(*words[2:]) == 0, "done already, with the same arguments"
    assert main(*words[2:-1], tmp_path / "second") == 0
    assert same(weights(first / "model"), weights(tmp_path / "second" / "model"))


def test_command_of_a_session_has_all_that_changes_the_model(run_dir, data_dir, tmp_path, monkeypatch, capsys):
    given = ("--repair", "linear", "--repair_clips", "9", "--data_dir", str(data_dir))
    code, out = typed(monkeypatch, capsys, ["-2\n", "ok\n"], "--model_dir", run_dir, *given, "--dry_run")
    assert code == 0
    words = shlex.split(next(line for line in out.splitlines() if line.startswith("to repeat: ")))[4:]
    read = stage.build_parser().parse_args(words)
    assert (read.keep_layers, read.repair, read.repair_clips, read.data_dir) == ("0-1,3", "linear", 9, data_dir)
    assert not read.dry_run


def test_command_of_a_base_model_names_a_seed_that_is_not_the_default(base_dir, tmp_path, monkeypatch, capsys):
    command = ("--model_dir", base_dir, "--output_dir", tmp_path / "a", "--seed", 7)
    code, out = typed(monkeypatch, capsys, ["-2\n", "ok\n"], *command)
    assert code == 0
    words = shlex.split(next(line for line in out.splitlines() if line.startswith("to repeat: ")))[4:]
    words[words.index(str(tmp_path / "a"))] = tmp_path / "b"
    assert main(*words) == 0
    assert same(weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model"))


@pytest.mark.parametrize("last", ["q\n", "", EOFError(), KeyboardInterrupt()], ids=["q", "end", "EOF", "Ctrl-C"])
def test_leaving_a_session_writes_nothing(last, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out = typed(monkeypatch, capsys, ["-1\n", last], "--model_dir", run_dir)
    assert code == 0
    assert "nothing is written" in out
    assert list(tmp_path.iterdir()) == []


def test_session_may_end_in_a_dry_run_or_a_copy(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out = typed(monkeypatch, capsys, ["-1\n", "ok\n"], "--model_dir", run_dir, "--dry_run")
    assert code == 0 and "after" in out and list(tmp_path.iterdir()) == []
    code, out = typed(monkeypatch, capsys, ["ok\n"], "--model_dir", run_dir)
    assert code == 0 and "a copy of the whole model" in out
    assert same(weights("runs/birds.pruned/model"), weights(run_dir / "model"))


def session_of(name):
    """Return a session on a small model, and the model."""
    loaded = small_model(name)
    model = loaded.model
    return PruningSession(model.config.num_hidden_layers, SizeCounter(loaded).size_of), model


def any_size(keep: list[int]) -> ModelSize:
    return ModelSize(kept_layers=keep, n_parameters=10, macs_per_clip=10, macs_front_end=5, weights_bytes=40)


def test_session_step_by_step():
    session, model = session_of("wav2vec2")
    for line, keep in [
        ("-0", [1, 2]),
        (" -1-2 ", []),
        ("+ 0,2", [0, 2]),
        ("undo", []),
        ("UNDO", [1, 2]),
        ("undo", [0, 1, 2]),
        ("undo", [0, 1, 2]),
        ("-1", [0, 2]),
    ]:
        answer = session.respond(line)
        assert session.keep == keep and session.is_open
    pruned = copy.deepcopy(model)
    encoders.prune_model(pruned, [0, 2])
    assert answer.splitlines()[0] == "[ 0] .  [ 2]"
    assert f"2 of 3 blocks, {encoders.count_parameters(pruned):,} parameters (78%), " in answer
    assert session.respond("ok") == "2 of 3 blocks are kept"
    assert session.is_accepted and not session.is_open


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "2 of 3 blocks"),
        ("help", HELP),
        ("-", "not possible: layer list ''"),
        ("-3", "there is no layer 3"),
        ("+0-99999", "there is no layer 99999"),
        ("-1", "1 is dropped already"),
        ("+0", "0 is kept already"),
        ("-none", "nothing to do"),
        ("--1", "not possible"),
        ("-1 +2", "not possible"),
        ("-1e9", "not possible"),
        ("-" + 9 * "9", "not possible"),
        ("-\N{ARABIC-INDIC DIGIT TWO}", "not possible"),
        ("\N{MINUS SIGN}2", "is not a command"),
        ("OKAY", "is not a command"),
        ("rm -rf /", "is not a command"),
        ("\x00\x1b[A\ufffd", "is not a command"),
        ("🐦" * 10_000, "is not a command"),
    ],
)
def test_session_survives_any_typing(line, words):
    session = PruningSession(3, any_size)
    session.respond("-1")
    assert words in session.respond(line)
    assert session.keep == [0, 2] and session.is_open and not session.is_accepted


def test_session_refuses_what_the_model_cannot_do_without():
    session, _ = session_of("wavlm")
    assert "relative positions" in session.respond("-0")
    assert session.keep == [0, 1, 2]
    assert "0 of 3 blocks" in session.respond("-0-2")
    assert "relative positions" in session.respond("+1")
    assert "1 of 3 blocks" in session.respond("+0")
    session.respond("undo")
    assert session.keep == []
    weighted, _ = session_of("wav2vec2-weighted-layer-sum")
    assert "keep at least one" in weighted.respond("-0-2")
    assert weighted.respond("undo") == "nothing to undo"


def test_session_of_a_pruned_model_shows_both_numberings():
    loaded = small_model("wav2vec2")
    encoders.prune_model(loaded.model, [0, 2])
    session = PruningSession(2, SizeCounter(loaded).size_of)
    assert session.show().splitlines()[0] == "[ 0][ 1]"
    assert "(of the base model: 2)" in session.respond("-0")


@pytest.mark.parametrize("n_layers", [0, 24])
def test_grid_of_any_length(n_layers):
    session = PruningSession(n_layers, any_size)
    assert len(session.show().splitlines()) == n_layers // 12 + 1
    assert f"there is no layer {n_layers}" in session.respond(f"-{n_layers}")


def test_session_on_a_real_terminal(run_dir, tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, ROOT / "07_manual_pruning.py", "--model_dir", run_dir, "--output_dir", tmp_path / "a"]
    # What is not UTF-8, and an arrow key, come before two steps.
    os.write(ours, b"\xff\xfe\n\x1b[A\n-1\n-7\nok\n")
    done = subprocess.run(
        [str(word) for word in command],
        stdin=theirs,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    os.close(ours), os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert config_of(tmp_path / "a" / "model")["kept_layers"] == [0, 2, 3]


# ------------------------------------------------------------------------------------------ later stages


def test_stages_02_and_03_take_what_this_one_leaves(run_dir, tmp_path, monkeypatch):
    data_dir = write_processed(tmp_path / "processed")
    monkeypatch.setattr(latency, "MAX_PASSES", 1)
    assert main("--model_dir", run_dir, "--ladder", "--output_dir", tmp_path / "ladder") == 0
    rung = tmp_path / "ladder" / "01-blocks"
    validate, finetune = load_stage("03_model_validation"), load_stage("02_finetuning")

    words = ["--model_dir", rung, "--data_dir", data_dir, "--output_dir", tmp_path / "results" / "one"]
    assert validate.main([str(word) for word in words]) == 0
    row = pd.read_csv(tmp_path / "results" / "summary.csv").iloc[0]
    assert (row["n_layers"], row["kept_layers"]) == (1, 0)

    words = ["--base_model", rung, "--data_dir", data_dir, "--output_dir", tmp_path / "healed", "--device", "cpu"]
    assert finetune.main([str(word) for word in (*words, "--num_train_epochs", 1)]) == 0
    assert config_of(tmp_path / "healed" / "model")["kept_layers"] == [0]


# ------------------------------------------------------------------------------------------------ repair


@pytest.fixture(scope="module")
def rough_dir(tmp_path_factory, data_dir):
    """Return a run whose blocks do much, as trained ones do."""
    torch.manual_seed(5)
    loaded = encoders.tiny_model(LABELS)
    loaded.config.clip_seconds = 0.5
    for block in architectures.blocks_of(loaded.model):
        for parameter in block.parameters():
            parameter.data *= 4 if parameter.ndim > 1 else 1
    folder = tmp_path_factory.mktemp("rough") / "birds"
    folder.mkdir()
    encoders.save_model(loaded, folder / "model")
    return folder / "model"


def test_a_repaired_model_is_the_one_of_the_library_and_knows_its_clips(rough_dir, data_dir, tmp_path):
    words = ("--model_dir", rough_dir, "--keep_layers", "0,3", "--data_dir", data_dir, "--output_dir", tmp_path / "out")
    assert main(*words, "--repair", "linear", "--repair_clips", 9) == 0
    loaded, train = encoders.load_model(rough_dir, "cpu"), clips.read_clips(data_dir, "train").with_one_label()
    repairer = repair.Repairer(loaded, train.drawn(9, seed=42), stage.BATCH_SIZE)
    wanted = repair.repaired_copy(loaded, (0, 3), repairer).model.state_dict()
    saved = tmp_path / "out" / "model"
    assert same(weights(saved), wanted)
    assert not same(wanted, encoders.pruned_copy(loaded, (0, 3)).model.state_dict())
    assert config_of(saved)["repair"] == {"method": "linear", "n_clips": 9, "ridge": repair.RIDGE}
    history = training_history.read_history(saved)
    assert len(history.recordings["train"]) > 0


def test_a_ladder_is_repaired_at_every_depth(rough_dir, data_dir, tmp_path):
    words = ("--model_dir", rough_dir, "--ladder", "--data_dir", data_dir, "--output_dir", tmp_path / "out")
    assert main(*words, "--repair", "linear", "--repair_clips", 9) == 0
    configs = [config_of(folder) for folder in sorted((tmp_path / "out").glob("*/model"))]
    assert ["repair" in config for config in configs] == [False, True, True, True, False]  # without blocks, and whole


def test_narrow_blocks_are_repaired_toward_the_whole_model(rough_dir, data_dir, tmp_path):
    """Half of the units and one block less: the repaired model is nearer to the whole one than without repair."""
    logits = {}
    for name, more in (("cut", ()), ("repaired", ("--repair", "linear"))):
        words = ("--model_dir", rough_dir, "--keep_layers", "0,1,3", "--ffn_size", 0.5, "--data_dir", data_dir)
        assert main(*words, *more, "--output_dir", tmp_path / name) == 0
        logits[name] = logits_of(tmp_path / name / "model", data_dir)
    whole = logits_of(rough_dir, data_dir)
    errors = {name: ((found - whole) ** 2).mean() for name, found in logits.items()}
    assert errors["repaired"] < 0.7 * errors["cut"]
    assert config_of(tmp_path / "repaired" / "model")["intermediate_size"] == 64


def logits_of(folder, data_dir):
    return predict.predict(encoders.load_model(folder, "cpu"), clips.read_clips(data_dir, "val"), 16)


def test_a_best_json_of_repaired_subsets_repairs(rough_dir, data_dir, tmp_path, capfd):
    sweep = load_stage("05_pruning")
    words = ["--model_dir", rough_dir, "--data_dir", data_dir, "--output_dir", tmp_path / "sweep", "--device", "cpu"]
    words += ["--strategies", "backward", "--repair", "linear", "--repair_clips", 7, "--margin", 0.9]
    assert sweep.main([str(word) for word in words]) == 0
    asked = ("--model_dir", rough_dir, "--from", tmp_path / "sweep" / "best.json", "--n_layers", 2)
    assert main(*asked, "--output_dir", tmp_path / "out") == 2
    assert (
        "best.json (leave it out by --repair none) is fitted on clips of train: give --data_dir"
        in capfd.readouterr().err
    )
    other = write_processed(tmp_path / "other", seed=5)
    assert main(*asked, "--data_dir", other, "--output_dir", tmp_path / "out") == 3
    assert "which would give another model: give the data, and the --fold, of the sweep" in capfd.readouterr().err
    assert main(*asked, "--data_dir", data_dir, "--output_dir", tmp_path / "out") == 0
    assert ", repaired on 7 clips of train" in capfd.readouterr().err
    assert config_of(tmp_path / "out" / "model")["repair"]["n_clips"] == 7
    assert main(*asked, "--repair", "none", "--output_dir", tmp_path / "plain") == 0
    assert "repair" not in config_of(tmp_path / "plain" / "model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--keep_layers", "0", "--repair", "linear"),
            "--repair linear is fitted on clips of train: give --data_dir, and",
        ),
        (("--keep_layers", "0", "--repair_clips", "5"), "--repair_clips is of use only with --repair linear"),
        (("--keep_layers", "0", "--data_dir", "."), "--data_dir is of use only with one of"),
    ],
)
def test_a_repair_that_cannot_be_is_refused(words, message, rough_dir, tmp_path, capfd):
    assert main("--model_dir", rough_dir, *words, "--output_dir", tmp_path / "out") == 2
    assert message in capfd.readouterr().err


def test_a_repair_draws_the_clips_of_the_sweep(rough_dir, data_dir, tmp_path, capfd):
    # With other clips, by another seed, the layers would be fitted otherwise.
    words = ["--model_dir", rough_dir, "--data_dir", data_dir, "--output_dir", tmp_path / "sweep", "--device", "cpu"]
    words += ["--strategies", "backward", "--repair", "linear", "--repair_clips", 7, "--seed", 3]
    assert load_stage("05_pruning").main([str(word) for word in [*words, "--max_clips_per_class", 6]]) == 0
    path = tmp_path / "sweep" / "best.json"
    swept = json.loads(path.read_text())
    asked = ("--model_dir", rough_dir, "--from", path, "--n_layers", 2, "--data_dir", data_dir)
    drawn = clips.read_clips(data_dir, "train", 6, 3).drawn(7, 3)
    repairer = repair.Repairer(encoders.load_model(rough_dir, "cpu"), drawn, 16)
    expected = repair.repaired_copy(
        encoders.load_model(rough_dir, "cpu"), tuple(swept["by_depth"]["2"]["keep"]), repairer
    ).model.state_dict()
    for more in ((), ("--repair", "linear")):  # the second is what the sweep had, too
        output_dir = tmp_path / f"out{len(more)}"
        assert main(*asked, *more, "--output_dir", output_dir) == 0
        built = encoders.load_model(output_dir, "cpu").model.state_dict()
        assert all(torch.allclose(built[name], weight, atol=1e-5) for name, weight in expected.items())
    record = json.loads((tmp_path / "out0" / "run.json").read_text())["arguments"]
    assert (record["seed"], record["max_clips_per_class"], record["repair_clips"]) == (3, 6, 7)
    capfd.readouterr()
    assert main(*asked, "--seed", 4, "--output_dir", tmp_path / "other") == 0
    assert "the sweep had --seed 3, so this is not the model that it scored" in capfd.readouterr().err
    assert json.loads((tmp_path / "other" / "run.json").read_text())["arguments"]["seed"] == 4
    other = write_processed(tmp_path / "other_data", seed=5)
    words = (*asked[:-1], other, "--repair", "linear", "--output_dir", tmp_path / "no")
    assert main(*words) == 3
    assert "which would give another model" in capfd.readouterr().err


def test_what_was_not_fitted_is_not_called_repaired(rough_dir, data_dir, tmp_path, capfd):
    whole = ("--model_dir", rough_dir, "--keep_layers", "0-3")
    repaired = ("--repair", "linear", "--repair_clips", 7, "--data_dir", data_dir)
    assert main(*whole, *repaired, "--output_dir", tmp_path / "noop") == 0
    assert "layers 0-3, nothing to repair" in capfd.readouterr().err
    assert "repair" not in config_of(tmp_path / "noop" / "model")
    # A repair is of the blocks that it was fitted for.
    assert main("--model_dir", rough_dir, "--ffn_size", 0.5, *repaired, "--output_dir", tmp_path / "narrow") == 0
    assert config_of(tmp_path / "narrow" / "model")["repair"]["n_clips"] == 7
    again = ("--model_dir", tmp_path / "narrow", "--keep_layers", "0-1", "--output_dir", tmp_path / "again")
    assert main(*again) == 0
    assert "repair" not in config_of(tmp_path / "again" / "model")


def test_a_damaged_repair_in_a_best_json_is_refused(tmp_path):
    content = {"schema_version": 1, "model_sha256": "a", "model_dir": "b", "by_depth": {"2": {"keep": [0, 1]}}}
    content["repair"] = {"method": "x"}
    (tmp_path / "best.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected a repair of none, linear, got"):
        best.flags_of(tmp_path / "best.json", runs.Input("b", "a"), 2, {})
