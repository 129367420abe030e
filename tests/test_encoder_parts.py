"""Running models through their parts: the same numbers as whole, and as pruned, saved and reloaded."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForAudioClassification

from tests.data import SMALL_CONFIGS, SMALL_WAVEFORM_CONFIGS, small_extractor, small_model, write_processed
from utils.core.errors import InputError
from utils.data.clips import read_clips
from utils.models import encoders
from utils.models.encoder_parts import EncoderParts, check_parts, valid_frames
from utils.models.loaded_model import LoadedModel

N_SAMPLES = 8000


def inputs_of(loaded, n_clips=3, n_samples=N_SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    audio = [rng.standard_normal(n_samples).astype(np.float32) * 0.1 for _ in range(n_clips)]
    return loaded.prepare(audio, 16_000)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.inference_mode()
def test_all_parts_in_turn_give_the_models_logits_and_hidden_states(name):
    loaded = small_model(name)
    inputs = inputs_of(loaded)
    parts = EncoderParts(loaded.model)
    path = list(parts.hidden_layers(inputs))
    whole = loaded.model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(parts.logits(path, range(parts.n_layers)), whole.logits, rtol=1e-5, atol=1e-6)
    assert len(path) == len(whole.hidden_states) == parts.n_layers + 1
    for mine, theirs in zip(path[:-1], whole.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine.hidden_states, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.inference_mode()
def test_left_out_blocks_give_the_logits_of_the_pruned_model_after_reload(name, tmp_path):
    loaded = small_model(name)
    inputs = inputs_of(loaded)
    parts = EncoderParts(loaded.model)
    for keep in ([0], [0, 2], [0, 1]) + (() if "sum" in name else ([],)):
        path = [parts.front_end(inputs)]
        for layer in keep:
            path.append(parts.block(layer, path[-1]))
        found = parts.logits(path, keep)
        folder = tmp_path / f"{keep}"
        encoders.save_model(encoders.pruned_copy(loaded, keep), folder)
        reloaded = encoders.load_model(folder, "cpu").model
        torch.testing.assert_close(found, reloaded(**inputs).logits, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ every architecture with every option


def with_options(name, **options):
    """Return a model in float64 whose weights are far from their start, so that a norm more or less shows."""
    model = AutoModelForAudioClassification.from_config(SMALL_CONFIGS[name](**options)).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            random = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(0.2 * random + ("norm" in parameter_name and parameter_name.endswith("weight")))
    return model


@torch.inference_mode()
def assert_parts_are_the_model(model, n_clips):
    config = model.config
    shape = {
        "whisper": (config.to_dict().get("num_mel_bins"), 100),
        "audio-spectrogram-transformer": (128, 32),
        "beats": (100, 32),
        "wav2vec2-bert": (50, 32),
    }
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n_clips, *shape.get(config.model_type, (4000,)), generator=generator, dtype=torch.float64)
    inputs = {model.main_input_name: inputs}
    parts, whole = EncoderParts(model), model(**inputs).logits
    found = parts.logits(list(parts.hidden_layers(inputs)), range(parts.n_layers))
    assert (found - whole).abs().max() <= 1e-9 * whole.abs().max()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("name", SMALL_WAVEFORM_CONFIGS)
def test_parts_are_the_model_with_every_option(name, stable, weighted):
    """transformers 5.23.0: data2vec-audio ignores do_stable_layer_norm; a sum takes the layers before the norm."""
    for norm, tied in itertools.product(("group", "layer"), (None, False, True)):
        model = with_options(
            name,
            do_stable_layer_norm=stable,
            use_weighted_layer_sum=weighted,
            feat_extract_norm=norm,
            tie_last_hidden_states=tied,
        )
        assert_parts_are_the_model(model, n_clips=1)
        encoders.prune_model(model, [0, 2])
        assert_parts_are_the_model(model, n_clips=8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_weighted_layer_sum": True},
        {"use_weighted_layer_sum": True, "tie_last_hidden_states": False},
        {"scale_embedding": True},
        {"num_mel_bins": 128, "use_weighted_layer_sum": True},
        {"encoder_layerdrop": 0.5, "activation_function": "relu"},
        {"output_hidden_states": True, "output_attentions": True},
    ],
    ids=str,
)
def test_parts_are_the_model_for_every_whisper(options):
    model = with_options("whisper", **options)
    assert_parts_are_the_model(model, n_clips=1)
    encoders.prune_model(model, [1, 2])
    assert_parts_are_the_model(model, n_clips=8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ast", {}),
        ("ast", {"qkv_bias": False, "frequency_stride": 16, "time_stride": 16}),
        ("ast", {"use_weighted_layer_sum": True}),  # which AST does not read
        ("hubert", {"conv_pos_batch_norm": True}),
        ("wav2vec2-attention", {"do_stable_layer_norm": True}),
        ("wav2vec2-attention", {"pooling_queries": 1, "use_weighted_layer_sum": True}),
        ("hubert", {"feat_proj_layer_norm": False}),
        ("hubert", {"do_stable_layer_norm": True, "adapter_attn_dim": 8}),
        ("wav2vec2", {"do_stable_layer_norm": True, "adapter_attn_dim": 8, "use_weighted_layer_sum": True}),
        ("wav2vec2", {"output_hidden_states": True, "output_attentions": True, "hidden_act": "relu"}),
        ("wavlm", {"num_buckets": 8, "max_bucket_distance": 16, "do_stable_layer_norm": True}),
        ("data2vec-audio", {"conv_pos_kernel_size": 19, "num_conv_pos_embeddings": 3}),
        ("sew", {"squeeze_factor": 3, "feat_extract_norm": "layer", "conv_dim": (16, 16, 32)}),
        ("sew", {"use_weighted_layer_sum": True}),
        ("sew-d", {"squeeze_factor": 3, "norm_rel_ebd": "none", "share_att_key": False}),
        ("sew-d", {"use_weighted_layer_sum": True, "pos_att_type": ("c2p",), "position_buckets": -1}),
        ("wav2vec2-conformer", {"position_embeddings_type": "rotary", "use_weighted_layer_sum": True}),
        ("wav2vec2-conformer", {"position_embeddings_type": None, "hidden_act": "relu"}),
        ("wav2vec2-bert", {"position_embeddings_type": "relative", "use_weighted_layer_sum": True}),
        ("wav2vec2-bert", {"position_embeddings_type": "rotary", "hidden_act": "relu"}),
        ("beats", {}),
        ("beats", {"deep_norm_depth": 0, "conv_bias": True, "embed_size": 32, "hidden_act": "relu"}),
    ],
    ids=str,
)
def test_parts_are_the_model_with_options_of_its_own(name, options):
    model = with_options(name, **options)
    assert_parts_are_the_model(model, n_clips=1)
    encoders.prune_model(model, [0, 2])
    assert_parts_are_the_model(model, n_clips=8)


@pytest.fixture(scope="module")
def scored_clips(tmp_path_factory):
    return read_clips(write_processed(tmp_path_factory.mktemp("clips") / "data"), "test")


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_a_known_model_passes_the_check_of_its_parts(name, scored_clips):
    check_parts(small_model(name), scored_clips)


def test_a_model_that_norms_elsewhere_is_refused_by_its_options(scored_clips, monkeypatch):
    """As transformers does between 4.57 and 5.23, and as it may again."""
    model = with_options("hubert", do_stable_layer_norm=True, use_weighted_layer_sum=True).float()
    loaded = LoadedModel(model, small_extractor("hubert"))
    loaded.config.tie_last_hidden_states = True
    parts = EncoderParts(loaded.model)
    loaded.config.tie_last_hidden_states = None
    monkeypatch.setattr("utils.models.encoder_parts.EncoderParts", lambda model: parts)
    with pytest.raises(InputError) as error:
        check_parts(loaded, scored_clips)
    for words in ("block by block", "'hubert'", "do_stable_layer_norm True", "use_weighted_layer_sum True", "5.23.0"):
        assert words in str(error.value)


def test_broken_weights_are_not_taken_for_an_unknown_architecture(scored_clips):
    loaded = small_model("wav2vec2")
    loaded.model.classifier.weight.data[0] = float("nan")
    check_parts(loaded, scored_clips)


def test_a_model_without_blocks_has_no_parts():
    model = small_model("hubert").model
    encoders.prune_model(model, [])
    with pytest.raises(InputError, match="no transformer block left"):
        EncoderParts(model)


def test_every_frame_of_a_waveform_encoder_is_valid():
    loaded = small_model("wav2vec2")
    assert valid_frames(loaded, N_SAMPLES, 99).all()


@pytest.mark.parametrize("name", ["whisper", "ast"])
@torch.inference_mode()
def test_frames_beyond_the_clip_are_invalid(name):
    """What a change at the very end of the clip reaches before any block, and only that, tells what is heard."""
    loaded = small_model(name)
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(N_SAMPLES).astype(np.float32) * 0.1
    audio[:800] *= 20  # Whisper measures loudness from the loudest moment of a clip: it stays the same
    other = audio.copy()
    other[800:] = rng.permutation(audio[800:])
    first, second = (
        EncoderParts(loaded.model).front_end(loaded.prepare([clip], 16_000)).hidden_states[0] for clip in (audio, other)
    )
    heard = (first - second).abs().amax(dim=1) > 1e-3
    valid = valid_frames(loaded, N_SAMPLES, len(first))
    if name == "ast":
        assert heard[2:].equal(valid[2:]) and not valid[:2].any()
    else:
        # A convolution of width 3 sees a little beyond the end.
        assert int(valid.sum()) == N_SAMPLES // 320 and 0 <= int(heard.nonzero().max()) + 1 - int(valid.sum()) <= 2
