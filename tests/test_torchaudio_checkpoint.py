"""Checkpoints of torchaudio as AVES and BirdAVES are published, against torchaudio itself."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchaudio.models import wav2vec2_model
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from tests.data import LABELS, write_processed
from tests.stages import load_stage
from utils.core import names
from utils.core.errors import InputError
from utils.models import encoders, model_folder
from utils.models.encoder_parts import EncoderParts

RATE_HZ = 16_000
# As published: aves-base-*.torchaudio.model_config.json, and the same of birdaves-*-large.
BASE = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 768,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 12,
    "encoder_num_heads": 12,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 3072,
    "encoder_ff_interm_dropout": 0,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.05,
}
LARGE = BASE | {
    **{"encoder_embed_dim": 1024, "encoder_num_layers": 24, "encoder_num_heads": 16},
    "encoder_ff_interm_features": 4096,
}
SMALL = BASE | {
    "extractor_conv_layer_config": [[16, 10, 5], [16, 8, 4], [16, 4, 4]],
    **{"encoder_embed_dim": 32, "encoder_num_layers": 4, "encoder_num_heads": 2, "encoder_ff_interm_features": 64},
    **{"encoder_pos_conv_kernel": 16, "encoder_pos_conv_groups": 2},
}


def published(folder, config=SMALL, name="aves-base-bio.torchaudio", dtype=torch.float32, old=False, **more):
    """Write a pair of files with random weights, three times their initial size; return torchaudio's model, and it."""
    torch.manual_seed(0)
    model = wav2vec2_model(**config, aux_num_out=None).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "original0" not in parameter_name:
                parameter *= 3
    weights = {key: value.to(dtype) for key, value in model.state_dict().items()} | more
    if old:
        renamed = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        weights = {
            next((key.replace(new, then) for new, then in renamed.items() if new in key), key): value
            for key, value in weights.items()
        }
    folder.mkdir(exist_ok=True)
    torch.save(weights, folder / f"{name}.pt")
    (folder / f"{name}.model_config.json").write_text(json.dumps(config))
    return model, folder / f"{name}.pt"


def noise(amplitude, seconds=1.0, n_clips=2):
    rng = np.random.default_rng(0)
    return [amplitude * rng.standard_normal(round(seconds * RATE_HZ)).astype(np.float32) for _ in range(n_clips)]


@pytest.mark.parametrize("amplitude", [1e-3, 0.3])
@pytest.mark.parametrize(
    ("config", "options"),
    [
        (SMALL, {}),
        (SMALL, {"old": True}),
        (SMALL | {"extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True}, {}),
        (BASE | {"encoder_num_layers": 2}, {}),
        (LARGE | {"encoder_num_layers": 2}, {}),
    ],
    ids=["small", "weight_g and weight_v", "layer norm first", "AVES", "BirdAVES-large"],
)
@torch.inference_mode()
def test_every_block_gives_what_torchaudio_gives(config, options, amplitude, tmp_path):
    """Quiet sound shows whether the input is normalised: after a group norm, loud sound hardly does."""
    theirs, path = published(tmp_path, config, **options)
    loaded = encoders.load_any_model(path, "cpu")
    audio = noise(amplitude)
    inputs = loaded.prepare(audio, RATE_HZ)
    assert torch.equal(inputs["input_values"], torch.from_numpy(np.stack(audio)))
    states = list(EncoderParts(loaded.model).hidden_layers(inputs))[1:]
    wanted = theirs.extract_features(inputs["input_values"])[0]
    assert len(states) == len(wanted) == config["encoder_num_layers"]
    for mine, reference in zip(states, wanted, strict=True):
        torch.testing.assert_close(mine.hidden_states, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [0, 2, 3], [1, 3], []], ids=["none", "one", "half", "all"])
@torch.inference_mode()
def test_pruned_saved_and_reloaded_it_is_torchaudios_without_those_blocks(keep, tmp_path):
    theirs, path = published(tmp_path)
    loaded = encoders.load_base_model(str(path), LABELS).ready("cpu")
    encoders.prune_model(loaded.model, keep)
    encoders.save_model(loaded, tmp_path / "model")
    assert {file.suffix for file in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "model").eval()
    assert getattr(again.config, "pruned_from", None) == (None if len(keep) == 4 else str(path))
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path / "model")(
        noise(1e-3), sampling_rate=RATE_HZ, return_tensors="pt"
    )
    logits = again(**inputs).logits
    assert torch.equal(logits, loaded.model(**loaded.prepare(noise(1e-3), RATE_HZ)).logits)
    theirs.encoder.transformer.layers = torch.nn.ModuleList(theirs.encoder.transformer.layers[n] for n in keep)
    last, _ = theirs(inputs["input_values"])
    torch.testing.assert_close(again.classifier(again.projector(last).mean(dim=1)), logits, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_half_precision_becomes_float32_and_a_head_for_speech_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    more = {"aux.weight": torch.zeros(29, 32), "aux.bias": torch.zeros(29)}
    theirs, path = published(tmp_path, dtype=torch.float16, **more)
    model = encoders.load_base_model(str(path), LABELS).model
    assert "stores weights in float16, float32; here they are float32" in caplog.text
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name in ("layers.3.feed_forward.output_dense.weight", "layer_norm.bias"):
        wanted = theirs.encoder.transformer.get_parameter(name).half().float()
        assert torch.equal(model.hubert.encoder.get_parameter(name), wanted)


def test_the_digest_is_that_of_both_files_whatever_their_names(tmp_path):
    _, path = published(tmp_path / "a")
    digest = model_folder.any_model_input(path).sha256
    config = tmp_path / "aves.model_config.json"
    other = shutil.copy(path, tmp_path / "aves.pt")
    shutil.copy(path.with_suffix(".model_config.json"), config)
    assert model_folder.any_model_input(other).sha256 == digest
    config.write_text(json.dumps({**SMALL, "encoder_layer_drop": 0.1}))
    assert model_folder.any_model_input(other).sha256 != digest
    assert names.of_model(path) == "aves-base-bio.torchaudio"


class Foreign:
    """An object in a pickle, which must never be made."""

    def __reduce__(self):
        return open, ("marker", "w")


def without(path, n_removed):
    weights = torch.load(path, weights_only=True)
    torch.save(dict(list(weights.items())[n_removed:]), path)


def write_config(path, **changes):
    content = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    path.with_suffix(".model_config.json").write_text(json.dumps(content))


FAULTS = {
    "no config": (
        lambda path: path.with_suffix(".model_config.json").unlink(),
        r"has no aves-base-bio\.torchaudio\.model_config\.json beside it",
    ),
    "no JSON": (lambda path: path.with_suffix(".model_config.json").write_text("{"), "cannot be read as JSON"),
    "a list": (lambda path: path.with_suffix(".model_config.json").write_text("[1]"), "expected an object with keys"),
    "config of transformers": (
        lambda path: path.with_suffix(".model_config.json").write_text(json.dumps({"model_type": "hubert"})),
        "does not describe a wav2vec2_model of torchaudio: it has no encoder_attention_dropout",
    ),
    "a key too many": (lambda path: write_config(path, encoder_gain=1), "has encoder_gain, which"),
    "a key too few": (lambda path: write_config(path, encoder_num_heads=None), "it has no encoder_num_heads"),
    "a number as text": (lambda path: write_config(path, encoder_num_heads="2"), "expected a whole number above 0"),
    "a dropout of 1": (lambda path: write_config(path, encoder_dropout=1), "expected a number from 0 to 1"),
    "another norm": (lambda path: write_config(path, extractor_mode="batch_norm"), "group_norm or layer_norm"),
    "a list of norms": (lambda path: write_config(path, extractor_mode=["group_norm"]), "group_norm or layer_norm"),
    "no convolutions": (lambda path: write_config(path, extractor_conv_layer_config=[]), r"\[channels, kernel"),
    "heads that do not fit": (lambda path: write_config(path, encoder_num_heads=5), "divisible by num_heads"),
    "too few layers": (lambda path: write_config(path, encoder_num_layers=2), "config of another model"),
    "too many layers": (lambda path: write_config(path, encoder_num_layers=9), "num_hidden_layers is 9"),
    "thousands of layers": (lambda path: write_config(path, encoder_num_layers=5000), "expected 0 to 1000"),
    "another width": (lambda path: write_config(path, encoder_embed_dim=48), "the hidden size is 48"),
    "another feed-forward": (lambda path: write_config(path, encoder_ff_interm_features=80), "of another shape"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "is damaged, or holds more than weights"),
    "empty": (lambda path: path.write_bytes(b""), r"is damaged, .* \(it is empty\); download both files again"),
    "a web page": (
        lambda path: path.write_text("<!DOCTYPE html>"),
        "begins with '<!DOCTYPE': text, such as a web page",
    ),
    "a pickle of old": (lambda path: path.write_bytes(b"\x80\x02\x8c"), r"is never run \(UnpicklingError\); download"),
    "safetensors": (
        lambda path: save_file(torch.load(path, weights_only=True), path),
        r"under another name: let its name end in \.safetensors",
    ),
    "half of the weights": (lambda path: without(path, 40), "weights besides the classification head are missing"),
    "objects": (lambda path: torch.save({"a": Foreign()}, path), r"objects of the class io\.open, whose code is never"),
    "a module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"torch\.nn\.modules\.linear\.Linear, whose"),
    "a list of weights": (lambda path: torch.save([torch.zeros(3)], path), "holds 'list'; expected weights by name"),
    "a checkpoint of a training": (
        lambda path: torch.save({"epoch": 3, "model": {}}, path),
        "holds more than weights: 'epoch' is int",
    ),
    "quantized": (
        lambda path: torch.save({n: v.to(torch.int8) for n, v in torch.load(path, weights_only=True).items()}, path),
        "stores weights in int8; expected float32 or float16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, path = published(tmp_path / "a")
    spoil, words = FAULTS[fault]
    spoil(path)
    with pytest.raises(InputError, match=words) as error:
        model_folder.any_model_input(str(path), "--base_model")
        encoders.load_base_model(str(path), LABELS)
    assert str(path.with_suffix("")) in str(error.value) and "\x1b" not in str(error.value)
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def run(stage, *words):
    return load_stage(stage).main([str(word) for word in words])


def test_every_stage_that_takes_a_base_model_takes_a_checkpoint(data_dir, tmp_path, capfd):
    _, path = published(tmp_path / "base")
    data = ("--data_dir", data_dir, "--device", "cpu")
    run_dir = tmp_path / "runs" / "aves"
    words = ("--keep_layers", "0,2", "--num_train_epochs", 1, "--output_dir", run_dir)
    assert run("02_finetuning", "--base_model", path, *data, *words) == 0
    record = json.loads((run_dir / "run.json").read_text())
    assert {each["path"]: each["sha256"] for each in record["inputs"]}[str(path)] == (
        model_folder.any_model_input(path).sha256
    )
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert (config["model_type"], config["kept_layers"], config["pruned_from"]) == ("hubert", [0, 2], str(path))
    assert json.loads((run_dir / "model" / "preprocessor_config.json").read_text())["do_normalize"] is False
    assert run("03_model_validation", "--model_dir", run_dir, *data, "--output_dir", tmp_path / "scores") == 0
    words = ("--metrics", "cka", "--output_dir", tmp_path / "analysis")
    assert run("04_analysis", "--model_dir", path, *data, *words) == 0
    assert run("07_manual_pruning", "--model_dir", path, "--keep_layers", "1", "--output_dir", tmp_path / "one") == 0
    assert "cannot be" not in capfd.readouterr().err
    assert run("03_model_validation", "--model_dir", path, *data, "--output_dir", tmp_path / "none") == 3
    assert "is a checkpoint without a classification head; fine-tune it first" in capfd.readouterr().err


@pytest.mark.parametrize("fault", ["no config", "too few layers", "truncated", "half of the weights", "objects"])
def test_a_faulty_checkpoint_ends_a_stage_with_3(fault, data_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    _, path = published(tmp_path / "a")
    FAULTS[fault][0](path)
    out = tmp_path / "out"
    assert run("02_finetuning", "--base_model", path, "--data_dir", data_dir, "--output_dir", out) == 3
    assert f"--base_model {path.with_suffix('')}" in (error := capfd.readouterr().err) and "Traceback" not in error
