"""Stage 06, run in-process: what it learns, saves, resumes and refuses, and what later stages do with it."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.data import CLIP_SECONDS, LABELS, write_processed
from tests.stages import load_stage, stopped_at_loss
from utils.models import encoders, latency
from utils.models.architectures import CNNS
from utils.scores import summary

stage = load_stage("06_cnn")
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def words(data_dir, output_dir, architecture, *more, epochs=3) -> list[str]:
    return [
        *("--data_dir", str(data_dir), "--output_dir", str(output_dir), "--architecture", architecture),
        *("--width", "0.125", "--num_train_epochs", str(epochs), "--learning_rate", "1e-2"),
        *("--mixed_precision", "no", "--device", "cpu", *map(str, more)),
    ]


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """Return the run folders of both networks; tests only read them."""
    folder = tmp_path_factory.mktemp("runs")
    for architecture in CNNS:
        assert stage.main(words(data_dir, folder / architecture, architecture, "--augment", "roll", epochs=8)) == 0
    return folder


@pytest.mark.parametrize("architecture", CNNS)
def test_it_learns_and_leaves_a_run_folder(architecture, trained):
    run_dir = trained / architecture
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["stage"], record["status"]) == ("06_cnn", "complete")
    assert "model from scratch: " in (run_dir / "log.txt").read_text()
    assert {output["path"] for output in record["outputs"]} == {
        *("metrics.csv", "training_curves.png"),
        *("model/config.json", "model/model.safetensors", "model/preprocessor_config.json"),
        *("model/classify.py", "model/bird_cnn.py"),
        "model/training_recordings.json",
    }
    assert pd.read_csv(run_dir / "metrics.csv")["eval_accuracy"].max() > 0.9
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert config["label2id"] == {label: i for i, label in enumerate(LABELS)}
    assert config["clip_seconds"] == CLIP_SECONDS and config["num_hidden_layers"] == 0
    data_input = next(entry for entry in record["inputs"] if entry["path"].endswith("processed"))
    assert config["data_sha256"] == data_input["sha256"]


def test_interrupted_and_resumed_weights_are_bit_equal(data_dir, tmp_path, monkeypatch):
    """SIGUSR2 in the second epoch, with dropout, statistics of batches and every augmentation to restore."""
    whole, stopped = (words(data_dir, tmp_path / name, "melspectrogram", epochs=2) for name in ("whole", "stopped"))
    assert stage.main(whole) == 0
    with stopped_at_loss(monkeypatch, 7):  # of 5 an epoch
        assert stage.main(stopped) == 75
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-7").is_dir()
    assert stage.main(stopped) == 0
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    curves = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "stopped")]
    pd.testing.assert_frame_equal(*curves)


@pytest.mark.parametrize("architecture", CNNS)
def test_stage_03_scores_it(architecture, trained, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "MAX_PASSES", 1)
    args = ["--model_dir", str(trained / architecture), "--data_dir", str(data_dir), "--device", "cpu"]
    assert load_stage("03_model_validation").main([*args, "--output_dir", str(tmp_path / "cnn")]) == 0
    row = pd.read_csv(tmp_path / "cnn" / "metrics.csv", keep_default_na=False).iloc[0]
    assert row["accuracy"] > 0.9
    assert (row["n_layers"], row["kept_layers"]) == (0, "none")
    assert "layers" not in (tmp_path / "cnn" / "log.txt").read_text()
    assert "none" not in summary.summary_table(summary.read_metrics(tmp_path / "cnn" / "metrics.csv"))
    assert row["gmacs_per_clip"] > 0 and row["gmacs_front_end"] == 0
    assert row["latency_front_end_ms"] > 0 and row["latency_ms_median"] > 0
    model = encoders.load_model(trained / architecture, "cpu").model
    assert row["n_parameters"] == encoders.count_parameters(model)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("04_analysis", ("--metrics", "cka")),
        ("05_pruning", ("--strategies", "backward")),
        ("07_manual_pruning", ("--keep_layers", "none")),
    ],
)
def test_stages_that_need_blocks_refuse_it(name, more, trained, data_dir, tmp_path, caplog):
    more = more if name == "07_manual_pruning" else (*more, "--data_dir", str(data_dir), "--device", "cpu")
    args = ["--model_dir", str(trained / "melspectrogram"), "--output_dir", str(tmp_path / "out"), *more]
    assert load_stage(name).main(args) == 3
    assert "a 'melspectrogram_cnn' model has no transformer blocks" in caplog.text
    assert "Traceback" not in caplog.text


def test_stage_02_fine_tunes_it_on_other_labels(trained, tmp_path):
    """A CNN that was trained here is a base model as any other; its classifier is new."""
    data = write_processed(tmp_path / "data", labels=["Robin", "Wren"], recordings_per_class={"train": 2, "val": 1})
    args = ["--base_model", str(trained / "melspectrogram"), "--data_dir", str(data), "--num_train_epochs", "1"]
    assert load_stage("02_finetuning").main([*args, "--output_dir", str(tmp_path / "run"), "--device", "cpu"]) == 0
    loaded = encoders.load_model(tmp_path / "run", "cpu")
    assert loaded.labels == ["Robin", "Wren"]


def test_a_pipeline_in_an_empty_folder_needs_one_import(trained, tmp_path):
    code = (
        "import sys, numpy, transformers\nsys.path.insert(0, sys.argv[1])\nimport bird_cnn\n"
        "classify = transformers.pipeline('audio-classification', model=sys.argv[1])\n"
        "print(classify(numpy.sin(numpy.arange(12000, dtype='float32')))[0]['label'])"
    )
    model_dir = str(trained / "melspectrogram" / "model")
    found = subprocess.run([sys.executable, "-c", code, model_dir], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() in LABELS


def test_bad_input_is_refused_with_the_fix(data_dir, tmp_path, caplog, capsys):
    def refused(code, text, *more, architecture="melspectrogram", data=data_dir):
        caplog.clear()
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert stage.main([*words(data, out, architecture, epochs=1), *more]) == code
        assert text in caplog.text + capsys.readouterr().err
        assert "Traceback" not in caplog.text
        assert not (out / "model").exists()

    refused(2, "'0' is not a number above 0", "--width", "0")
    refused(2, "invalid choice: 'resnet'", "--architecture", "resnet")
    refused(2, "--pcen normalises the bands of a spectrogram", "--pcen", architecture="waveform")
    refused(2, "a melspectrogram_cnn model does not support it", "--gradient_checkpointing")
    refused(2, "none cannot be combined with others", "--augment", "none", "roll")
    refused(3, "no such folder", data=tmp_path / "nowhere")
    short = write_processed(tmp_path / "short", clip_seconds=24 / 16_000)
    refused(3, "at least 25 samples (0.0015625 s at 16000 Hz)", architecture="waveform", data=short)


def test_a_cnn_that_learns_nothing_is_not_told_of_a_frozen_encoder(data_dir, tmp_path, caplog):
    assert stage.main([*words(data_dir, tmp_path / "run", "melspectrogram", epochs=1), "--learning_rate", "1e-12"]) == 0
    assert "try more epochs or another --learning_rate" in caplog.text and "--freeze_encoder" not in caplog.text


def test_help_shows_its_own_defaults():
    text = " ".join(stage.build_parser().format_help().split())
    assert "falling linearly (default: 0.001)" in text and "maximum number of epochs (default: 50)" in text
