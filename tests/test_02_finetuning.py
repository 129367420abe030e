"""Stage 02, run in-process and in subprocesses: what it learns, saves, resumes and refuses."""

import dataclasses
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification
from transformers import logging as transformers_logging

from experiments.stage_processes import start_stage
from tests.data import CLIP_SECONDS, LABELS, SMALL_CONFIGS, small_extractor, small_model, write_processed
from tests.stages import launch_together, load_stage, run_apart, stopped_at_loss
from utils.data.clips import read_clips
from utils.models import architectures, encoders, predict, training

stage = load_stage("02_finetuning")
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def words(data_dir, output_dir, *more, epochs=2, base_model="tiny") -> list[str]:
    return [
        *("--data_dir", str(data_dir), "--output_dir", str(output_dir), "--base_model", str(base_model)),
        *("--num_train_epochs", str(epochs), "--device", "cpu", *map(str, more)),
    ]


def weights_of(output_dir) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model" / "model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    """A small wav2vec2 with dropout: its generators are part of what a resume must restore."""
    loaded = small_model("wav2vec2")
    assert loaded.config.hidden_dropout > 0
    folder = tmp_path_factory.mktemp("base") / "wav2vec2"
    encoders.save_model(loaded, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data_dir, base_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert stage.main(words(data_dir, output_dir, epochs=3, base_model=base_dir)) == 0
    return output_dir


def test_run_folder(undisturbed, data_dir):
    record = json.loads((undisturbed / "run.json").read_text())
    assert record["status"] == "complete" and record["device"]
    log_text = (undisturbed / "log.txt").read_text()
    assert re.search(r"INFO    device cpu \(.+\); model .+: wav2vec2, 3 blocks, 0.\d+ M parameters; ", log_text)
    assert re.search(
        r"\d+ clips of train, \d+ clips of val, split by [^;]+; 3 classes, chance 0.333, majority 0.333 \(val\)",
        log_text,
    )
    outputs = {output["path"] for output in record["outputs"]}
    assert outputs == {
        *("metrics.csv", "training_curves.png"),
        *("model/config.json", "model/model.safetensors", "model/preprocessor_config.json", "model/classify.py"),
        "model/training_recordings.json",
    }
    assert list((undisturbed / "tensorboard").glob("events*"))
    assert not [p for p in undisturbed.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}], "no pickles"
    curves = pd.read_csv(undisturbed / "metrics.csv")
    assert list(curves.columns) == training.CURVE_COLUMNS
    assert list(curves["epoch"]) == [1, 2, 3] and curves.notna().all().all()
    best = curves.loc[curves["eval_macro_f1"].idxmax()]
    assert record["metrics"]["best_epoch"] == best["epoch"]
    assert record["metrics"]["eval_accuracy"] == best["eval_accuracy"]
    config = json.loads((undisturbed / "model" / "config.json").read_text())
    assert config["label2id"] == {label: i for i, label in enumerate(LABELS)}
    assert config["kept_layers"] == [0, 1, 2] and config["clip_seconds"] == CLIP_SECONDS
    assert config["data_sha256"] == next(i["sha256"] for i in record["inputs"] if i["name"] == "data_dir")


def test_check_loads_the_base_model_and_needs_no_clips(base_dir, tmp_path, caplog, capsys):
    words = ["--output_dir", str(tmp_path / "out"), "--data_dir", str(tmp_path / "none"), "--check", "--base_model"]
    assert stage.main([*words, str(base_dir), "--keep_layers", "0-1"]) == 0
    assert "can be fine-tuned: wav2vec2, 2 blocks, 0.0" in caplog.text
    assert stage.main([*words, str(base_dir), "--keep_layers", "0-7"]) == 2
    assert "there is no layer 7" in caplog.text
    assert stage.main([*words, "runs/of/nobody"]) == 3
    assert stage.main([*words, str(base_dir), "--teacher_dir", str(tmp_path / "gone")]) == 3
    assert f"--teacher_dir {tmp_path / 'gone'}: no such folder" in caplog.text
    assert not (tmp_path / "out").exists()


def test_saved_model_is_the_best_checkpoint(data_dir, base_dir, tmp_path):
    """Recompute val accuracy and macro F1 with plain transformers and scikit-learn, both in float32."""
    from sklearn.metrics import accuracy_score, f1_score

    run_dir = tmp_path / "run"
    assert stage.main(words(data_dir, run_dir, "--mixed_precision", "no", epochs=3, base_model=base_dir)) == 0
    model = AutoModelForAudioClassification.from_pretrained(run_dir / "model").eval()
    extractor = encoders.load_model(run_dir, "cpu").extractor
    val = read_clips(data_dir, "val")
    inputs = extractor([val.audio(i) for i in range(len(val))], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        predicted = model(inputs["input_values"]).logits.argmax(dim=1).numpy()
    best = json.loads((run_dir / "run.json").read_text())["metrics"]
    truth = val.table["label_id"]
    assert accuracy_score(truth, predicted) == pytest.approx(best["eval_accuracy"])
    assert f1_score(truth, predicted, average="macro") == pytest.approx(best["eval_macro_f1"])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(undisturbed, data_dir, base_dir, tmp_path):
    assert (
        stage.main(words(data_dir, tmp_path / "a", "--dataloader_num_workers", 2, epochs=3, base_model=base_dir)) == 0
    )
    assert_same_weights(weights_of(tmp_path / "a"), weights_of(undisturbed))
    assert stage.main(words(data_dir, tmp_path / "b", "--seed", 7, epochs=3, base_model=base_dir)) == 0
    assert not torch.equal(weights_of(tmp_path / "b")["projector.weight"], weights_of(undisturbed)["projector.weight"])


@pytest.mark.parametrize("name", ["whisper", "wavlm"])
def test_a_model_that_returns_its_layers_is_trained_and_scored_by_its_logits(name, data_dir, tmp_path):
    """The Trainer of transformers 5.23.0 gathers everything that a model returns but its loss."""
    config = SMALL_CONFIGS[name](use_weighted_layer_sum=True, output_hidden_states=True)
    AutoModelForAudioClassification.from_config(config).save_pretrained(tmp_path / "base")
    small_extractor(name).save_pretrained(tmp_path / "base")
    assert stage.main(words(data_dir, tmp_path / "run", epochs=1, base_model=tmp_path / "base")) == 0
    loaded = encoders.load_model(tmp_path / "run", "cpu")
    val = read_clips(data_dir, "val")
    predicted = predict.predict(loaded, val, 8).argmax(axis=1)
    curves = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert curves["eval_accuracy"][0] == pytest.approx((predicted == val.table["label_id"]).mean(), abs=0.06)


def test_it_learns(data_dir, tmp_path, caplog):
    args = words(data_dir, tmp_path / "run", "--learning_rate", "3e-3", "--augment", "roll", "gain", epochs=8)
    assert stage.main(args) == 0
    curves = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert curves["eval_accuracy"].max() >= 0.9
    assert curves["train_loss"].iloc[-1] < curves["train_loss"].iloc[0]
    assert "learned nothing" not in caplog.text


def test_a_model_that_is_no_better_than_naming_one_label_is_told(data_dir, tmp_path, caplog):
    assert stage.main(words(data_dir, tmp_path / "run", "--learning_rate", 1e-12, epochs=1)) == 0
    assert (
        "would have an accuracy of 0.333; try more epochs or another --learning_rate, or train the head" in caplog.text
    )


def test_head_has_its_own_learning_rate(data_dir, base_dir, tmp_path):
    """At a rate next to nothing the weights stay what they were."""
    weights = {}
    for name, rates in {"neither": (1e-30, 1e-30), "encoder": (1e-3, 1e-30), "head": (1e-30, 1e-3)}.items():
        more = ("--learning_rate", rates[0], "--head_learning_rate", rates[1], "--weight_decay", 0)
        assert stage.main(words(data_dir, tmp_path / name, *more, epochs=1, base_model=base_dir)) == 0
        weights[name] = weights_of(tmp_path / name)
    first = weights["neither"]
    moved = {
        name: {key for key, value in first.items() if not torch.allclose(value, weights[name][key], atol=1e-9)}
        for name in ("encoder", "head")
    }
    head = {key for key in first if key.startswith(("projector.", "classifier."))}
    assert len(head) == 4 and moved["head"] == head
    assert len(moved["encoder"]) > len(head) and not moved["encoder"] & head


def test_head_rate_equal_to_the_other_changes_nothing(undisturbed, data_dir, base_dir, tmp_path):
    same = words(data_dir, tmp_path / "same", "--head_learning_rate", "1e-4", epochs=3, base_model=base_dir)
    assert stage.main(same) == 0
    assert_same_weights(weights_of(tmp_path / "same"), weights_of(undisturbed))


@pytest.mark.skipif(
    bool(torch.cpu.get_capabilities().get("amx_bf16")), reason="with AMX oneDNN makes a NaN now and then (uses_bf16)"
)
def test_mixed_precision_is_used_where_asked_and_weights_stay_float32(data_dir, tmp_path):
    losses = {}
    for choice in ("bf16", "no"):
        args = words(data_dir, tmp_path / choice, "--mixed_precision", choice, "--augment", "none", epochs=1)
        assert stage.main(args) == 0
        assert json.loads((tmp_path / choice / "run.json").read_text())["metrics"]["bf16"] == (choice == "bf16")
        assert {value.dtype for value in weights_of(tmp_path / choice).values()} == {torch.float32}
        losses[choice] = pd.read_csv(tmp_path / choice / "metrics.csv")["train_loss"].iloc[0]
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)


@pytest.mark.parametrize(
    ("cpu_name", "capability", "expected"),
    [
        ("AMD EPYC 9B14", "avx512_bf16", True),
        ("Intel Xeon", "amx_bf16", False),
        ("Intel Xeon", "avx512_bf16", False),
        ("AMD EPYC 7B12", "avx2", False),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_is_faster_and_right(monkeypatch, cpu_name, capability, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": cpu_name, capability: True})
    assert training.uses_bf16("auto", "cpu") == expected


# ------------------------------------------------------------------------------------------- resuming


def test_denormal_numbers_are_zero_while_a_model_is_trained_and_not_after(data_dir, tmp_path, monkeypatch):
    def product() -> float:
        return float(torch.tensor([1e-30]) * torch.tensor([1e-10]))

    products = []
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: products.append(product()))
    assert stage.main(words(data_dir, tmp_path / "run")) == 0
    assert products == [0.0]
    assert product() == pytest.approx(1e-40, rel=1e-4)


@pytest.mark.parametrize("at_step", [2, 4, 5], ids=["in an epoch", "later in an epoch", "at the end of an epoch"])
def test_interrupted_and_resumed_weights_are_bit_equal(at_step, undisturbed, data_dir, base_dir, tmp_path, monkeypatch):
    """SIGUSR2 during a step of a 3-epoch run of 5 steps each; the same command finishes it."""
    args = words(data_dir, tmp_path / "run", epochs=3, base_model=base_dir)
    with stopped_at_loss(monkeypatch, at_step):
        assert stage.main(args) == 75
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("interrupted", 75)
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{at_step}").is_dir()
    assert not (tmp_path / "run" / "model").exists()

    assert stage.main(args) == 0
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(undisturbed))
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "run" / "metrics.csv"), pd.read_csv(undisturbed / "metrics.csv"), rtol=1e-5
    )
    assert stage.main(args) == 0, "complete: nothing to do"


def test_killed_at_random_moments_and_resumed(undisturbed, data_dir, base_dir, tmp_path):
    """Real processes, real signals: SIGUSR2, SIGTERM, SIGINT and SIGKILL, at moments drawn at random."""
    args = words(data_dir, tmp_path / "run", epochs=3, base_model=base_dir)
    rng = random.Random(0)
    log_file = tmp_path / "run" / "log.txt"
    for attempt, number in enumerate((signal.SIGUSR2, signal.SIGKILL, signal.SIGTERM, signal.SIGINT), start=1):
        process = start_stage("02_finetuning.py", args, tmp_path / "printed.txt")
        while process.is_alive():
            if log_file.exists() and f"attempt {attempt}," in log_file.read_text():
                time.sleep(rng.uniform(0.05, 0.8))
                os.kill(process.pid, number)
                break
            time.sleep(0.02)
        process.join()
        if json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete":
            break  # the signal came too late
        assert process.exitcode in {75, -signal.SIGKILL}, (tmp_path / "printed.txt").read_text()
    assert stage.main(args) == 0
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(undisturbed))


def test_checkpoint_that_was_not_written_to_its_end(undisturbed, data_dir, base_dir, tmp_path, monkeypatch):
    """Death while the second checkpoint is written: training goes on from the first."""
    args = words(data_dir, tmp_path / "run", epochs=3, base_model=base_dir)
    real = training.Trainer._save_rng_state

    def die(self, output_dir):
        if output_dir.endswith("checkpoint-10"):
            raise KeyboardInterrupt
        real(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_save_rng_state", die)
        assert stage.main(args) == 75
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-10" / "trainer_state.json").exists()
    assert stage.main(args) == 0
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(undisturbed))


@pytest.fixture(scope="module")
def stopped_at_the_end(data_dir, base_dir, tmp_path_factory):
    """Training is over, its checkpoints are there, and its model is not."""
    output_dir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.encoders, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert stage.main(words(data_dir, output_dir, epochs=3, base_model=base_dir)) == 75
    return output_dir


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "all", "best"])
def test_checkpoint_with_files_gone_is_not_gone_on_from(
    name, stopped_at_the_end, undisturbed, data_dir, base_dir, tmp_path, caplog
):
    args = words(data_dir, tmp_path / "run", epochs=3, base_model=base_dir)
    checkpoints = shutil.copytree(stopped_at_the_end, tmp_path / "run") / "checkpoints"
    last = max(checkpoints.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    if name == "best":
        state = json.loads((last / "trainer_state.json").read_text())
        (checkpoints / Path(state["best_model_checkpoint"]).name / "model.safetensors").unlink()
    for path in list(last.iterdir()) if name == "all" else [last / name] if name != "best" else []:
        path.unlink()
    (checkpoints / "checkpoint-good").mkdir()  # a user's own
    assert stage.main(args) == 0
    assert f"{last} is incomplete and is deleted" in caplog.text
    assert_same_weights(weights_of(tmp_path / "run"), weights_of(undisturbed))


def test_early_stopping_survives_a_death_before_the_end(data_dir, tmp_path, monkeypatch):
    """With a learning rate of almost 0 no epoch gains; patience 2 ends training after the third."""
    more = ("--learning_rate", "1e-12", "--early_stopping_patience", 2)
    args = words(data_dir, tmp_path / "run", *more, epochs=9)
    with monkeypatch.context() as patch:
        patch.setattr(training.encoders, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert stage.main(args) == 75
    monkeypatch.setattr(training.Trainer, "train", lambda *_, **__: pytest.fail("training was over"))
    assert stage.main(args) == 0
    assert list(pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"]) == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["best_epoch"] == 1


def test_resume_never_starts_anew(data_dir, tmp_path):
    args = words(data_dir, tmp_path / "run", "--resume", "never", epochs=1)
    assert stage.main(args) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    stale = tmp_path / "run" / "checkpoints" / "checkpoint-99"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text("{}")
    assert stage.main(args) == 0
    assert not stale.exists()


# ----------------------------------------------------------------------------------- pruning, settings


@pytest.mark.parametrize(("keep", "n_layers"), [("none", 0), ("0,2", 2)])
def test_pruned_before_training(keep, n_layers, data_dir, tmp_path, capfd):
    transformers_logging.enable_progress_bar()  # as in a new process
    transformers_logging.set_verbosity_warning()
    assert stage.main(words(data_dir, tmp_path / "run", "--keep_layers", keep, epochs=1)) == 0
    printed = capfd.readouterr().err
    assert "epoch 1 of 1" in printed and "model shards" not in printed and "[transformers]" not in printed
    model = encoders.load_model(tmp_path / "run", "cpu").model
    assert model.config.num_hidden_layers == len(architectures.blocks_of(model)) == n_layers
    assert model.config.kept_layers == [0, 2][:n_layers] and model.config.pruned_from == "tiny"


@pytest.mark.parametrize("name", ["whisper", "ast", "wavlm", "beats"])
def test_other_architectures_train(name, tmp_path):
    loaded = small_model(name)
    encoders.save_model(loaded, tmp_path / "base")
    data = write_processed(tmp_path / "data", recordings_per_class={"train": 2, "val": 1, "test": 1})
    before = loaded.model.state_dict()
    freezing = ("--freeze_feature_encoder", "--freeze_layers", "0", "--gradient_checkpointing")
    args = words(data, tmp_path / "run", *freezing, epochs=1, base_model=tmp_path / "base")
    assert stage.main(args) == 0
    after = encoders.load_model(tmp_path / "run", "cpu").model.state_dict()
    blocks = architectures.ARCHITECTURES[loaded.config.model_type].blocks
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith(f"{blocks}.0."))
    assert any(not torch.equal(after[k], v) for k, v in before.items() if k.startswith(f"{blocks}.1."))


def test_collator_augments_training_clips_only(data_dir):
    loaded = encoders.load_base_model("tiny", LABELS)
    train, val = read_clips(data_dir, "train"), read_clips(data_dir, "val")
    collator = training.Collator(loaded.extractor, loaded.model.main_input_name, train, ("roll", "mixup"), seed=1)
    plain = training.Collator(loaded.extractor, loaded.model.main_input_name, train, (), seed=1)
    items = [train[i] for i in range(8)]
    assert not torch.equal(collator(items)["input_values"], plain(items)["input_values"])
    first = collator(items)["input_values"]
    assert torch.equal(collator(items)["input_values"], first), "the same in one epoch"
    collator.epoch = 1
    assert not torch.equal(collator(items)["input_values"], first), "another in the next"
    held_out = [val[i] for i in range(4)]
    assert torch.equal(collator(held_out)["input_values"], plain(held_out)["input_values"])
    assert torch.equal(plain(held_out)["labels"].argmax(1), torch.tensor([item["label_id"] for item in held_out]))


def test_class_weights_agree_with_scikit_learn(tmp_path):
    clips = read_clips(write_processed(tmp_path / "data"), "train")
    clips = clips.only(range(len(clips) - 7))
    ours = training.class_weights(clips, "balanced")
    label_ids = clips.table["label_id"].to_numpy()
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=label_ids)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6)
    assert ours.numpy()[label_ids].mean() == pytest.approx(1.0)
    assert training.class_weights(clips, "none") is None
    without = dataclasses.replace(clips, table=clips.table[clips.table["label_id"] != 1])
    assert training.class_weights(without, "balanced")[1] == 1.0


def test_loss_agrees_with_pytorch_and_does_not_depend_on_how_a_batch_is_cut():
    generator = torch.Generator().manual_seed(0)
    logits, label_ids = torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 3, 1, 1])
    targets = F.one_hot(label_ids, 4).float()
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    plain = training.Loss(None, 0.1)({"logits": logits}, targets)
    torch.testing.assert_close(plain, F.cross_entropy(logits, label_ids, label_smoothing=0.1))
    loss = training.Loss(weights, 0.0)
    by_hand = -(weights[label_ids] * logits.log_softmax(1)[range(6), label_ids]).mean()
    torch.testing.assert_close(loss({"logits": logits}, targets), by_hand)
    n_items = torch.tensor(targets.numel())
    parts = [loss({"logits": logits[s]}, targets[s], n_items) for s in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), by_hand)


def test_training_curves_join_the_parts_of_an_interrupted_epoch():
    whole = [
        {"loss": 1.0, "learning_rate": 0.1, "step": 4},
        {"eval_loss": 2.0, "eval_accuracy": 0.5, "eval_macro_f1": 0.4, "epoch": 1.0, "step": 4},
        {"loss": 0.75, "learning_rate": 0.2, "step": 8},
        {"eval_loss": 1.5, "eval_accuracy": 0.6, "eval_macro_f1": 0.5, "epoch": 2.0, "step": 8},
        {"train_loss": 9.0, "step": 8},
    ]
    cut = [*whole[:2], {"loss": 0.9, "learning_rate": 0.15, "step": 5}, {**whole[2], "loss": 0.7}, *whole[3:]]
    pd.testing.assert_frame_equal(training.training_curves(whole), training.training_curves(cut))
    assert list(training.training_curves(whole)["train_loss"]) == [1.0, 0.75]


# ------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_refused_with_the_fix(data_dir, tmp_path, caplog):
    def refused(code, text, *more, data=data_dir, base_model="tiny"):
        caplog.clear()
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert stage.main(words(data, out, *more, epochs=1, base_model=base_model)) == code
        assert text in caplog.text
        assert "Traceback" not in caplog.text
        assert not (out / "model").exists()

    refused(2, "this model has layers 0-3", "--keep_layers", "0-9")
    refused(2, "this model has layers 0-1", "--keep_layers", "0-1", "--freeze_layers", "2")
    refused(2, "none cannot be combined with others", "--augment", "none", "roll")
    refused(3, "no such folder", data=tmp_path / "nowhere")
    refused(3, "cannot be loaded", base_model="no/such-model")
    truncated = shutil.copytree(data_dir, tmp_path / "truncated")
    part = truncated / "clips-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    refused(3, "it is damaged; run 01_data_processing.py again with --overwrite", data=truncated)
    unfinished = shutil.copytree(data_dir, tmp_path / "unfinished")
    record = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    refused(3, "is not complete", data=unfinished)
    no_val = write_processed(tmp_path / "no_val", recordings_per_class={"train": 2, "test": 1})
    refused(3, "no clips of the split 'val'", data=no_val)
    other_rate = write_processed(tmp_path / "8k", sample_rate_hz=8_000)
    refused(3, "--sample_rate 16000", data=other_rate)


def test_weights_that_are_nan_end_with_an_error(data_dir, base_dir, tmp_path, caplog):
    broken = shutil.copytree(base_dir, tmp_path / "broken")
    model = AutoModelForAudioClassification.from_pretrained(broken)
    model.wav2vec2.encoder.layers[0].feed_forward.output_dense.weight.data[0, 0] = float("nan")
    model.save_pretrained(broken)
    assert stage.main(words(data_dir, tmp_path / "out", epochs=1, base_model=broken)) == 3
    assert "training loss became nan" in caplog.text


@pytest.mark.parametrize("limit_bytes", [200_000, 1_000_000], ids=["model", "optimizer"])
def test_a_limit_on_file_size_half_way(limit_bytes, data_dir, tmp_path):
    """As a full disk: exit 3 without a traceback, nothing taken for whole, and a rerun that ends well."""
    args = words(data_dir, tmp_path / "run", epochs=1)
    printed = tmp_path / "printed.txt"
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    assert run_apart("02_finetuning.py", args, printed, limit) == 3
    text = printed.read_text()
    assert "Traceback" not in text and "run the same command again" in text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 3)
    assert not (tmp_path / "run" / "model").exists()
    assert stage.main(args) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_whose_file_is_gone_print_no_traceback_and_other_errors_do(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    for folder in (tmp_path / "gone", tmp_path):
        with training.curves_fail_in_silence():
            thread = threading.Thread(target=lambda folder=folder: int((folder / "a").write_text("x") / 0))
            thread.start()
            thread.join()
        assert ("Traceback" in capfd.readouterr().err) == (folder == tmp_path)
    assert threading.excepthook is threading.__excepthook__


def test_existing_output_is_refused_unless_it_may_be_replaced(data_dir, tmp_path, caplog):
    assert stage.main(words(data_dir, tmp_path / "run", epochs=1)) == 0
    assert stage.main(words(data_dir, tmp_path / "run", "--learning_rate", "0.5", epochs=1)) == 4
    assert "--learning_rate 0.0001, now it is 0.5" in caplog.text
    assert stage.main(words(data_dir, tmp_path / "run", "--overwrite", "--seed", "3", epochs=1)) == 0


# ------------------------------------------------------------------------------------ several processes


def test_two_processes_train_as_one_with_twice_the_accumulation(warm_python, tmp_path, capfd):
    """torchrun on the CPU; without dropout and augmentation both see the same batches and the same losses."""
    loaded = small_model("wav2vec2")
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"):
        setattr(loaded.config, name, 0.0)
    encoders.save_model(loaded, tmp_path / "base")
    data = write_processed(tmp_path / "data", recordings_per_class={"train": 8, "val": 3, "test": 3})
    more = ("--augment", "none", "--per_device_train_batch_size", 4, "--learning_rate", "1e-3")
    more += ("--mixed_precision", "no")
    one = words(data, tmp_path / "one", *more, "--gradient_accumulation_steps", 2, base_model=tmp_path / "base")
    assert stage.main(one) == 0
    two = words(data, tmp_path / "two", *more, base_model=tmp_path / "base")
    assert launch_together(warm_python, 2, "02_finetuning.py", *two) == 0
    columns = ["epoch", "step", "train_loss", "eval_accuracy", "eval_macro_f1", "learning_rate"]
    curves = [pd.read_csv(tmp_path / name / "metrics.csv")[columns] for name in ("one", "two")]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4)
    for name, value in weights_of(tmp_path / "one").items():
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], value, rtol=1e-2, atol=1e-4)
    assert launch_together(warm_python, 2, "02_finetuning.py", *two) == 0, "complete: both processes end"
    capfd.readouterr()
    assert launch_together(warm_python, 2, "02_finetuning.py", *two, "--seed", 4) != 0
    assert "exists and differs" in capfd.readouterr().err


@pytest.mark.shared
def test_real_weights_learn_from_real_birds_data(shared_dir, data_dir, tmp_path):
    """Whisper's real weights tell three tones apart after a few epochs of two blocks."""
    base = shared_dir / "models" / "whisper-tiny-en-encoder"
    data = write_processed(tmp_path / "data", clip_seconds=5.0)
    args = words(data, tmp_path / "run", "--keep_layers", "0", "--learning_rate", "3e-4", epochs=3, base_model=base)
    assert stage.main(args) == 0
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["eval_accuracy"].max() > 0.6
