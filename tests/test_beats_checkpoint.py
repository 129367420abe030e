"""Files of BEATs as they are published, with random weights; `drills/beats_reference.py` has the authors' own code."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data import LABELS, write_processed
from tests.test_beats_encoder import audio_of, by_hand
from tests.test_torchaudio_checkpoint import Foreign, run
from utils.core import names
from utils.core.errors import InputError
from utils.models import encoders, model_folder

RATE_HZ = 16_000
# Of BEATs_iter3_plus_AS2M.pt, but for the sizes.
CFG = {
    **{"input_patch_size": 16, "embed_dim": 8, "conv_bias": False, "encoder_layers": 12, "encoder_embed_dim": 16},
    **{"encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2, "activation_fn": "gelu", "layer_norm_first": False},
    **{"layer_wise_gradient_decay_ratio": 0.6, "deep_norm": True, "dropout": 0.0, "attention_dropout": 0.0},
    **{"activation_dropout": 0.0, "encoder_layerdrop": 0.05, "dropout_input": 0.0, "conv_pos": 6, "conv_pos_groups": 4},
    **{"relative_position_embedding": True, "num_buckets": 32, "max_distance": 80, "gru_rel_pos": True},
    **{"finetuned_model": True, "predictor_dropout": 0.0, "predictor_class": 5},
}


def shapes_of(n_blocks=12, new_names=False):
    """Return the name and shape of every weight, as Microsoft's code writes them."""
    gain, direction = (
        (f"parametrizations.weight.original{i}" for i in (0, 1)) if new_names else ("weight_g", "weight_v")
    )
    shapes = {
        **{"patch_embedding.weight": (8, 1, 16, 16), "layer_norm.weight": (8,), "layer_norm.bias": (8,)},
        **{"post_extract_proj.weight": (16, 8), "post_extract_proj.bias": (16,), "encoder.pos_conv.0.bias": (16,)},
        **{f"encoder.pos_conv.0.{gain}": (1, 1, 6), f"encoder.pos_conv.0.{direction}": (16, 4, 6)},
        **{"encoder.layer_norm.weight": (16,), "encoder.layer_norm.bias": (16,)},
        **{"predictor.weight": (5, 16), "predictor.bias": (5,)},
    }
    for layer in range(n_blocks):
        block = f"encoder.layers.{layer}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= {f"{block}.self_attn.{name}.weight": (16, 16), f"{block}.self_attn.{name}.bias": (16,)}
        shapes |= {f"{block}.self_attn.grep_linear.weight": (8, 8), f"{block}.self_attn.grep_linear.bias": (8,)}
        shapes |= {f"{block}.self_attn.grep_a": (1, 2, 1, 1)}
        shapes |= {f"{block}.self_attn.relative_attention_bias.weight": (32, 2)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{block}.{name}.weight": (16,), f"{block}.{name}.bias": (16,)}
        shapes |= {f"{block}.fc1.weight": (24, 16), f"{block}.fc1.bias": (24,)}
        shapes |= {f"{block}.fc2.weight": (16, 24), f"{block}.fc2.bias": (16,)}
    return shapes


def published(folder, suffix, n_blocks=12, dtype=torch.float32):
    """Write a file in one of the two formats; return its weights, and it."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (0.5 * torch.randn(shape, generator=generator) + ("norm.weight" in name)).to(dtype)
        for name, shape in shapes_of(n_blocks, new_names=suffix == ".safetensors").items()
    }
    positions = [name for name in weights if name.endswith("relative_attention_bias.weight")]
    weights |= dict.fromkeys(positions, weights[positions[0]])
    folder.mkdir(exist_ok=True)
    path = folder / f"beats{suffix}"
    if suffix == ".pt":
        torch.save({"cfg": CFG | {"encoder_layers": n_blocks}, "model": weights, "label_dict": {0: "/m/09x0r"}}, path)
    else:
        more = {"fbank.window": torch.ones(400, dtype=dtype), "fbank.mel_fb": torch.ones(257, 128, dtype=dtype)}
        save_file({f"backbone.{name}": value.clone() for name, value in (weights | more).items()}, path)
    return weights, path


@pytest.mark.parametrize("keep", [list(range(12)), [0, 2, 3, 11], [5], []], ids=["none", "some", "all but one", "all"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@torch.inference_mode()
def test_loaded_pruned_saved_and_reloaded_it_is_the_network_of_the_file(suffix, keep, tmp_path, caplog):
    weights, path = published(tmp_path, suffix)
    loaded = encoders.load_base_model(str(path), LABELS).ready("cpu")
    config, model = loaded.config, loaded.model
    if suffix == ".pt":
        assert (config.max_bucket_distance, config.hidden_dropout, caplog.text) == (80, 0.0, "")
    else:
        assert config.max_bucket_distance == 800
        assert f"{path} has no config: its max_distance, its DeepNorm" in caplog.text
    for theirs, ours in (
        ("patch_embedding.weight", "patch_embedding.weight"),
        ("encoder.pos_conv.0.weight_v", "encoder.pos_conv.parametrizations.weight.original1"),
        ("encoder.layers.7.self_attn.relative_attention_bias.weight", "encoder.relative_attention_bias.weight"),
        ("encoder.layers.7.self_attn.grep_a", "encoder.layers.7.self_attn.grep_a"),
        ("encoder.layers.11.fc2.bias", "encoder.layers.11.fc2.bias"),
    ):
        theirs = theirs.replace("weight_v", "parametrizations.weight.original1") if suffix != ".pt" else theirs
        assert torch.equal(model.beats.state_dict()[ours], weights[theirs])
    inputs = {"input_features": loaded.prepare(audio_of(1), RATE_HZ)["input_features"].double()}
    wanted = by_hand(model, inputs["input_features"][0].numpy(), keep, 24**0.25)
    encoders.prune_model(model, keep)
    encoders.save_model(loaded, tmp_path / "model")
    again = encoders.load_model(tmp_path / "model", "cpu").model.double()
    found = again(**inputs, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(torch.cat(found), np.array(wanted), atol=1e-9)


def test_half_precision_becomes_float32(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights, path = published(tmp_path, ".safetensors", dtype=torch.float16)
    model = encoders.load_base_model(str(path), LABELS).model
    assert "stores weights in float16; here they are float32" in caplog.text
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.beats.encoder.layers[3].fc1.weight, weights["encoder.layers.3.fc1.weight"].float())


def test_a_file_is_named_by_itself_and_one_of_a_folder_is_not_a_checkpoint(tmp_path):
    _, path = published(tmp_path / "a", ".safetensors")
    assert names.of_model(path) == "beats"
    other = path.rename(tmp_path / "other.safetensors")
    digest = model_folder.any_model_input(other).sha256
    assert model_folder.any_model_input(other.rename(path)).sha256 == digest
    assert not model_folder.is_checkpoint(path.rename(path.with_name("model.safetensors")))


def change(path, **changes):
    content = torch.load(path, weights_only=True)
    content["cfg"] |= changes
    torch.save(content, path)


def change_weights(path, change_one):
    """Change or, where `change_one` returns None, remove weights."""
    content = torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)
    weights = content["model"] if path.suffix == ".pt" else content
    changed = {name: change_one(name, value) for name, value in weights.items()}
    changed = {name: value for name, value in changed.items() if value is not None}
    if path.suffix == ".pt":
        torch.save({**content, "model": changed}, path)
    else:
        save_file(changed, path)


def second_half(name, value):
    return None if any(f"layers.{layer}." in name for layer in range(6, 11)) else value


FAULTS = {
    "too few layers": (".pt", lambda path: change(path, encoder_layers=6), "cfg says encoder_layers 6, the weights"),
    "another width": (".pt", lambda path: change(path, encoder_embed_dim=768), "cfg says encoder_embed_dim 768"),
    "a network of another kind": (".pt", lambda path: change(path, layer_norm_first=True), "has layer_norm_first True"),
    "another spectrogram": (".pt", lambda path: change(path, fbank_mean=-4.2), "cfg has fbank_mean -4.2; this"),
    "no deep_norm": (".pt", lambda path: change(path, deep_norm=None), "cfg has deep_norm None; expected true or"),
    "a distance as text": (".pt", lambda path: change(path, max_distance="80"), "expected a whole number above 8"),
    "a dropout of 1": (".pt", lambda path: change(path, dropout=1), "cfg has dropout 1; expected a number from 0"),
    "half of the weights": (".pt", lambda path: change_weights(path, second_half), "head are missing"),
    "half of the weights, the first too": (
        ".safetensors",
        lambda path: change_weights(path, lambda name, value: value if "layers.9" in name else None),
        r"has no encoder\.layer_norm\.weight, .* so it is not a whole BEATs",
    ),
    "positions that differ": (
        ".pt",
        lambda path: change_weights(path, lambda name, value: value + ("s.7." in name and "relative" in name)),
        r"layers\.7\.self_attn\.relative_attention_bias\.weight differs from the same weight",
    ),
    "a weight too many": (
        ".safetensors",
        lambda path: save_file({**load_file(path), "backbone.quantize.codebook": torch.zeros(3)}, path),
        "holds weights that the config in .* does not describe, such as beats.quantize.codebook",
    ),
    "blocks removed, no config": (
        ".safetensors",
        lambda path: published(path.parent, ".safetensors", 6),
        "6 blocks and",
    ),
    "truncated": (".pt", lambda path: path.write_bytes(path.read_bytes()[:-5000]), "is damaged, or holds more than"),
    "truncated safetensors": (
        ".safetensors",
        lambda path: path.write_bytes(path.read_bytes()[:-5000]),
        "is damaged .*SafetensorError",
    ),
    "a file of PyTorch": (
        ".safetensors",
        lambda path: torch.save({}, path),
        r"under another name: let its name end in \.pt\); download the file again",
    ),
    "another kernel": (
        ".pt",
        lambda path: change_weights(path, lambda name, value: value[0, 0] if "patch" in name else value),
        r"patch_embedding\.weight has the shape \(16, 16\), which no BEATs has; download",
    ),
    "no groups": (
        ".pt",
        lambda path: change_weights(path, lambda name, value: value[:, :0] if "weight_v" in name else value),
        r"encoder\.pos_conv\.0\.weight_v has the shape \(16, 0, 6\), which no BEATs has",
    ),
    "objects": (".pt", lambda path: torch.save({"cfg": Foreign(), "model": {}}, path), r"the class io\.open, whose"),
    "not weights": (
        ".pt",
        lambda path: torch.save({"cfg": CFG, "model": {"encoder": 3}}, path),
        "holds more than weights: 'encoder' is int",
    ),
    "only weights": (
        ".pt",
        lambda path: torch.save(torch.load(path, weights_only=True)["model"], path),
        r"expected the cfg and the model of BEATs\. If it is AVES .* no beats\.model_config\.json beside it",
    ),
    "quantized": (
        ".pt",
        lambda path: change_weights(path, lambda _, value: value.to(torch.int8)),
        "stores weights in int8; expected float32 or float16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suffix, spoil, words = FAULTS[fault]
    _, path = published(tmp_path / "a", suffix)
    spoil(path)
    with pytest.raises(InputError, match=words) as error:
        encoders.load_base_model(str(path), LABELS)
    assert str(path) in str(error.value) and "\x1b" not in str(error.value)
    assert not (tmp_path / "marker").exists()


def test_a_folder_without_its_feature_extractor_is_refused(tmp_path):
    """transformers has none for BEATs, so no line of Python for the user creates it."""
    loaded = encoders.load_base_model(str(published(tmp_path, ".pt")[1]), LABELS)
    encoders.save_model(loaded, tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, so it is not a whole model folder"):
        model_folder.any_model_input(str(tmp_path / "model"), "--base_model")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def test_the_stages_take_both_formats(data_dir, tmp_path, capfd):
    data, run_dir = ("--data_dir", data_dir, "--device", "cpu"), tmp_path / "runs" / "beats"
    _, path = published(tmp_path / "base", ".pt")
    words = ("--keep_layers", "0,2,11", "--num_train_epochs", 1, "--output_dir", run_dir)
    assert run("02_finetuning", "--base_model", path, *data, *words) == 0
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert (config["model_type"], config["kept_layers"], config["pruned_from"]) == ("beats", [0, 2, 11], str(path))
    assert (run_dir / "model" / "beats_encoder.py").exists() and (run_dir / "model" / "classify.py").exists()
    _, path = published(tmp_path / "base", ".safetensors")
    words = ("--metrics", "block_influence", "--output_dir", tmp_path / "analysis")
    assert run("04_analysis", "--model_dir", path, *data, *words) == 0
    short = write_processed(tmp_path / "short", clip_seconds=0.1)
    assert run("02_finetuning", "--base_model", path, "--data_dir", short, "--output_dir", tmp_path / "none") == 3
    assert "the model needs 2800 for one frame; run 01_data_processing.py with --clip_seconds 0.175" in (
        capfd.readouterr().err
    )


@pytest.mark.parametrize("fault", ["too few layers", "truncated", "half of the weights", "objects"])
def test_a_faulty_checkpoint_ends_a_stage_with_3(fault, data_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    suffix, spoil, _ = FAULTS[fault]
    _, path = published(tmp_path / "a", suffix)
    spoil(path)
    out = tmp_path / "out"
    assert run("02_finetuning", "--base_model", path, "--data_dir", data_dir, "--output_dir", out) == 3
    assert f"--base_model {path}" in (error := capfd.readouterr().err) and "Traceback" not in error
