"""Heads: attention over frames and a weighted sum of layers, against formulas in NumPy, and how they travel."""

import ast
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForAudioClassification

from tests.data import CLIP_SECONDS, SAMPLE_RATE_HZ, small_model, write_processed
from tests.stages import load_stage
from utils.core.errors import InputError, UsageError
from utils.data.clips import read_clips
from utils.models import architectures, attention_head, encoders, predict
from utils.models.encoder_parts import EncoderParts, check_parts

NAMES_OF_SMALL = {"audio-spectrogram-transformer": "ast"}
ATTENDING = [name for name, entry in architectures.ARCHITECTURES.items() if entry.can_attend]

stage = load_stage("02_finetuning")
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


@pytest.fixture(scope="module")
def clips(data_dir):
    return read_clips(data_dir, "val")


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "whisper"
    encoders.save_model(small_model("whisper"), folder)
    return folder


@pytest.fixture(scope="module")
def run_dirs(data_dir, base_dir, tmp_path_factory):
    """A trained model of each pooling, by its name."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for pooling in architectures.POOLINGS:
        args = ["--data_dir", data_dir, "--base_model", base_dir, "--output_dir", folder / pooling, "--device", "cpu"]
        args += ["--pooling", pooling, "--freeze_encoder", "--learning_rate", "3e-2", "--num_train_epochs", 4]
        assert stage.main(list(map(str, args))) == 0
        found[pooling] = folder / pooling
    return found


def softmax(values, axis):
    values = np.exp(values - values.max(axis=axis, keepdims=True))
    return values / values.sum(axis=axis, keepdims=True)


def inputs_of(loaded, clips, n_clips=3):
    return loaded.prepare([clips.audio(i) for i in range(n_clips)], clips.sample_rate_hz)


# ---------------------------------------------------------------------------------------- attention


def test_attention_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    frames, queries = rng.standard_normal((2, 7, 5)), rng.standard_normal((3, 5))
    weight, bias = rng.standard_normal((4, 15)), rng.standard_normal(4)
    pooling = attention_head.QueryPooling(5, 3, 4).double()
    pooling.load_state_dict(
        {
            name: torch.from_numpy(value)
            for name, value in (("queries", queries), ("projection.weight", weight), ("projection.bias", bias))
        }
    )
    for clip, found in zip(frames, pooling(torch.from_numpy(frames)).detach().numpy(), strict=True):
        means = []
        for query in queries:
            weights = softmax(np.array([frame @ query / np.sqrt(5) for frame in clip]), axis=0)
            means.append(sum(share * frame for share, frame in zip(weights, clip, strict=True)))
        np.testing.assert_allclose(found, [weight @ np.concatenate(means) + bias], rtol=1e-6)


def test_new_queries_give_the_mean():
    pooling = attention_head.QueryPooling(6, 1, 4)
    frames = torch.randn(2, 9, 6)
    torch.testing.assert_close(pooling(frames)[:, 0], pooling.projection(frames).mean(dim=1))


@pytest.mark.parametrize("name", ATTENDING)
def test_every_encoder_can_attend_and_its_pruned_copies_too(name, clips, tmp_path):
    plain = small_model(name)
    encoders.save_model(plain, tmp_path / "base")
    loaded = encoders.load_base_model(str(tmp_path / "base"), clips.labels, pooling="attention").ready("cpu")
    assert architectures.pooling_of(loaded.config) == "attention"
    assert not loaded.model.projector.queries.any(), "the mean, at first"
    wanted, own = plain.model.state_dict(), loaded.model.state_dict()
    encoder = [key for key in own if not key.startswith(("projector.", "classifier."))]
    assert encoder and all(torch.equal(own[key], wanted[key]) for key in encoder)
    with torch.no_grad():
        loaded.model.projector.queries.normal_()
    check_parts(loaded, clips)
    inputs = inputs_of(loaded, clips)
    parts = EncoderParts(loaded.model)
    for keep in ([0, 2], [0]):
        pruned = encoders.pruned_copy(loaded, keep)
        folder = tmp_path / f"{len(keep)}"
        encoders.save_model(pruned, folder)
        again = encoders.load_model(folder, "cpu").model
        with torch.no_grad():
            logits = pruned.model(**inputs).logits
            assert torch.equal(again(**inputs).logits, logits)
            path = [parts.front_end(inputs)]
            for layer in keep:
                path.append(parts.block(layer, path[-1]))
            torch.testing.assert_close(parts.logits(path, keep), logits, rtol=1e-4, atol=1e-5)


def test_a_full_mask_changes_nothing_and_padding_is_refused(clips):
    loaded = small_model("wav2vec2-attention")
    inputs = inputs_of(loaded, clips)
    mask = torch.ones_like(inputs["input_values"], dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(loaded.model(**inputs, attention_mask=mask).logits, loaded.model(**inputs).logits)
        mask[0, -1] = 0
        with pytest.raises(ValueError, match="equal length"):
            loaded.model(**inputs, attention_mask=mask)


# ------------------------------------------------------------------------------------------- layers


def test_layers_are_the_sum_that_transformers_computes_and_pruning_keeps_the_ratios(run_dirs, clips):
    loaded = encoders.load_model(run_dirs["layers"], "cpu")
    model, inputs = loaded.model, inputs_of(loaded, clips)
    raw = model.layer_weights.detach().numpy().astype(np.float64)
    assert np.ptp(raw) > 1e-3, "they have learned"
    with torch.no_grad():
        layers = model.encoder(**inputs, output_hidden_states=True).hidden_states
        for keep in ([0, 1, 2], [0, 2]):
            pruned = encoders.pruned_copy(loaded, keep)
            rows = [0, *(layer + 1 for layer in keep)]
            share = softmax(raw, axis=0)[rows]
            np.testing.assert_allclose(
                softmax(pruned.model.layer_weights.detach().numpy().astype(np.float64), 0),
                share / share.sum(),
                rtol=1e-5,
            )
            own = pruned.model.encoder(**inputs, output_hidden_states=True).hidden_states
            assert len(own) == len(rows) and (len(keep) < 3 or all(map(torch.equal, own, layers)))
            summed = sum(
                weight * layer.double().numpy() for weight, layer in zip(share / share.sum(), own, strict=True)
            )
            head = {name: value.double().numpy() for name, value in pruned.model.state_dict().items()}
            pooled = summed.mean(axis=1) @ head["projector.weight"].T + head["projector.bias"]
            expected = pooled @ head["classifier.weight"].T + head["classifier.bias"]
            np.testing.assert_allclose(pruned.model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- the flag


def test_each_pooling_is_in_the_config_and_plain_transformers_loads_what_it_has(run_dirs):
    for pooling, run_dir in run_dirs.items():
        config = json.loads((run_dir / "model" / "config.json").read_text())
        assert config.get("use_weighted_layer_sum") == (pooling == "layers")
        assert config["model_type"] == ("whisper_attention" if pooling == "attention" else "whisper")
        assert (run_dir / "model" / "attention_head.py").exists() == (pooling == "attention")
    for pooling in ("mean", "layers"):
        model, info = AutoModelForAudioClassification.from_pretrained(
            run_dirs[pooling] / "model", output_loading_info=True
        )
        assert not any(info.values()) and hasattr(model, "layer_weights") == (pooling == "layers")


@pytest.mark.parametrize("before", architectures.POOLINGS)
def test_a_trained_head_is_kept_unless_another_is_asked_for(before, run_dirs, clips):
    wanted = encoders.load_model(run_dirs[before], "cpu").model
    same = encoders.load_base_model(str(run_dirs[before]), clips.labels).model
    assert type(same) is type(wanted) and torch.equal(same.classifier.weight, wanted.classifier.weight)
    for pooling in set(architectures.POOLINGS) - {before}:
        other = encoders.load_base_model(str(run_dirs[before]), clips.labels, pooling=pooling).model
        assert architectures.pooling_of(other.config) == pooling
        assert other.config.num_hidden_layers == 3 and other.config.clip_seconds == CLIP_SECONDS
        assert torch.equal(other.encoder.conv1.weight, wanted.encoder.conv1.weight)


def test_what_a_flag_cannot_do_is_refused(data_dir, base_dir, tmp_path, caplog):
    encoders.save_model(small_model("ast"), tmp_path / "ast")

    def refused(said, base, *more):
        args = [
            "--data_dir",
            data_dir,
            "--base_model",
            base,
            "--output_dir",
            tmp_path / "run",
            "--device",
            "cpu",
            *more,
        ]
        assert stage.main(list(map(str, args))) == 2
        assert said in caplog.text
        assert not (tmp_path / "run").exists()

    for pooling in ("attention", "layers"):
        refused(f"--pooling {pooling}: AST has a pooling of its own", tmp_path / "ast", "--pooling", pooling)
    refused("keep at least one", base_dir, "--pooling", "layers", "--keep_layers", "none")


@pytest.mark.parametrize("model_type", ["bert_attention", "audio-spectrogram-transformer_attention", "_attention"])
def test_a_type_that_no_file_describes_is_refused(model_type, base_dir, tmp_path):
    shutil.copytree(base_dir, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
    for load in (
        lambda: encoders.load_model(tmp_path / "model", "cpu"),
        lambda: encoders.load_base_model(str(tmp_path / "model"), ["a"]),
    ):
        with pytest.raises(InputError, match="no transformer blocks that this project supports"):
            load()


# ------------------------------------------------------------------------------------------- the way


def test_without_its_file_transformers_refuses_the_model_and_with_it_all_work(run_dirs, clips, tmp_path):
    """In a Python that has nothing of this project: plain loading, the pipeline, and classify.py."""
    folder = tmp_path / "model"
    shutil.copytree(run_dirs["attention"] / "model", folder)
    soundfile.write(tmp_path / "clip.wav", clips.audio(0), SAMPLE_RATE_HZ, subtype="PCM_16")
    code = """
import sys, numpy as np
from transformers import AutoModelForAudioClassification as Auto, pipeline
try:
    Auto.from_pretrained("model")
except ValueError as error:
    assert "whisper_attention" in str(error) and "does not recognize" in str(error), error
else:
    sys.exit("it was loaded without its file")
sys.path.insert(0, "model")
import attention_head
print(type(Auto.from_pretrained("model")).__name__)
sound = np.load("clip.npy")
print(sorted((row["label"], row["score"]) for row in pipeline("audio-classification", "model")(sound)))
import classify
sys.argv[1:] = ["clip.wav"]
classify.main()
"""
    np.save(tmp_path / "clip.npy", clips.audio(0))
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, scores, line = done.stdout.splitlines()
    assert name == "AttentionWhisperForAudioClassification"
    logits = predict.predict(encoders.load_model(folder, "cpu"), clips, 8)[0].astype(np.float64)
    expected = dict(zip(clips.labels, softmax(logits, 0), strict=True))
    for label, score in ast.literal_eval(scores):
        assert score == pytest.approx(expected[label], abs=1e-5)
    _, _, label, score = line.split("\t")
    assert float(score) == pytest.approx(expected[label], abs=1e-3) and expected[label] == max(expected.values())


def test_a_head_that_reads_all_layers_cannot_be_repaired():
    from utils.pruning import repair

    repair.check_possible(small_model("wav2vec2-attention").config)
    with pytest.raises(UsageError, match="reads all its layers"):
        repair.check_possible(small_model("wav2vec2-weighted-layer-sum").config)


@pytest.mark.parametrize("pooling", architectures.POOLINGS)
def test_repair_is_named_only_where_it_is_possible(run_dirs, tmp_path, pooling):
    words = ["--model_dir", run_dirs[pooling], "--keep_layers", "0", "--output_dir", tmp_path / "out"]
    assert load_stage("07_manual_pruning").main([*map(str, words)]) == 0
    assert ("not repaired: --repair linear" in (tmp_path / "out" / "log.txt").read_text()) == (pooling != "layers")


def test_the_attention_of_its_blocks_can_be_switched():
    """So that the multiply-accumulates are all counted: the counter does not see the fused kernel."""
    model = small_model("wav2vec2-attention").model
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
