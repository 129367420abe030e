"""BEATs against a computation by hand in NumPy, and its spectrogram against torchaudio.

`drills/beats_reference.py` compares with the authors' own code, at the published size.
"""

import json
import math

import numpy as np
import pytest
import torch
import torchaudio

from tests.data import SAMPLE_RATE_HZ, small_model, write_processed
from utils.data.clips import read_clips
from utils.models import beats_encoder, encoders
from utils.models.encoder_parts import EncoderParts

N_SAMPLES = 8_000


def far_from_its_start(**options):
    """Return a small model with other weights, times 3: as initialised, a block changes its input by a ten-thousandth.

    Pruned models with a wrong residual factor then agree to a cosine of .9999.
    """
    torch.manual_seed(0)
    loaded = small_model("beats", **options)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if parameter.ndim > 1 and "grep_a" not in name:
                parameter.mul_(3.0)
    return loaded


def audio_of(n_clips=2, n_samples=N_SAMPLES, level=0.1):
    return list((level * np.random.default_rng(0).standard_normal((n_clips, n_samples))).astype(np.float32))


# ---------------------------------------------------------------------------------------------- by hand


def norm(x, weights, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bucket(distance, n_buckets, max_distance):
    """One distance, by the words of T5: half the buckets each way, one each up to a quarter, then logarithmic."""
    later, size = n_buckets // 2 if distance > 0 else 0, abs(distance)
    near = n_buckets // 4
    if size < near:
        return later + size
    far = near + int(math.log(size / near) / math.log(max_distance / near) * (n_buckets // 2 - near))
    return later + min(far, n_buckets // 2 - 1)


def by_hand(model, spectrogram, keep, factor):
    """Return the states before and after each kept block, of one clip: plain loops, in float64.

    The residual factor is given, and not read from the model.
    """
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    config, size = model.config, model.config.patch_size
    kernel = weights["beats.patch_embedding.weight"][:, 0]  # (embed_size, frames, bands)
    rows, columns = spectrogram.shape[0] // size, spectrogram.shape[1] // size
    patches = [
        (kernel * spectrogram[size * row : size * (row + 1), size * column : size * (column + 1)]).sum(axis=(1, 2))
        for row in range(rows)
        for column in range(columns)
    ]
    x = linear(norm(np.array(patches), weights, "beats.layer_norm"), weights, "beats.post_extract_proj")

    conv = "beats.encoder.pos_conv"
    gain, direction = (weights[f"{conv}.parametrizations.weight.original{i}"] for i in (0, 1))
    filters = gain * direction / np.sqrt((direction**2).sum(axis=(0, 1), keepdims=True))
    n_out, n_in, width = filters.shape
    padded = np.pad(x, ((width // 2, width // 2), (0, 0)))
    positions = np.zeros_like(x)
    for channel in range(n_out):
        group = channel // (n_out // config.num_conv_pos_embedding_groups)
        inputs = padded[:, n_in * group : n_in * (group + 1)]
        for place in range(len(x)):
            positions[place, channel] = (filters[channel].T * inputs[place : place + width]).sum()
    x = norm(x + gelu(positions + weights[f"{conv}.bias"]), weights, "beats.encoder.layer_norm")

    n, n_heads = len(x), config.num_attention_heads
    table = weights["beats.encoder.relative_attention_bias.weight"]
    states = [x]
    for layer in keep:
        block = f"beats.encoder.layers.{layer}"
        query, key, value = (
            linear(x, weights, f"{block}.self_attn.{name}_proj").reshape(n, n_heads, -1) for name in "qkv"
        )
        heads = []
        for head in range(n_heads):
            gates = linear(query[:, head], weights, f"{block}.self_attn.grep_linear")
            update, reset = sigmoid(gates[:, :4].sum(axis=1)), sigmoid(gates[:, 4:].sum(axis=1))
            gate = update * (reset * weights[f"{block}.self_attn.grep_a"][0, head, 0, 0] - 1) + 2
            scores = query[:, head] @ key[:, head].T / math.sqrt(query.shape[2])
            for i in range(n):
                for j in range(n):
                    scores[i, j] += gate[i] * table[bucket(j - i, config.num_buckets, config.max_bucket_distance), head]
            attention = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(attention / attention.sum(axis=1, keepdims=True) @ value[:, head])
        x = factor * x + linear(np.concatenate(heads, axis=1), weights, f"{block}.self_attn.out_proj")
        x = norm(x, weights, f"{block}.self_attn_layer_norm")
        x = factor * x + linear(gelu(linear(x, weights, f"{block}.fc1")), weights, f"{block}.fc2")
        x = norm(x, weights, f"{block}.final_layer_norm")
        states.append(x)
    return states


@pytest.mark.parametrize("keep", [[0, 1, 2], [0, 2], [1], []], ids=str)
@torch.inference_mode()
def test_a_saved_model_and_a_computation_by_hand_agree(keep, tmp_path):
    """Also when blocks are removed: DeepNorm's factor stays that of the three blocks of the model as trained."""
    loaded = far_from_its_start()
    inputs = {"input_features": loaded.prepare(audio_of(), SAMPLE_RATE_HZ)["input_features"].double()}
    wanted = [by_hand(loaded.model, clip, keep, (2 * 3) ** 0.25) for clip in inputs["input_features"].numpy()]
    encoders.prune_model(loaded.model, keep)
    encoders.save_model(loaded, tmp_path / "model")
    model = encoders.load_model(tmp_path / "model", "cpu").model.double()
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == len(keep) + 1
    for layer, found in enumerate(output.hidden_states):
        np.testing.assert_allclose(found, np.array([states[layer] for states in wanted]), atol=1e-9)
    pooled = np.array([states[-1].mean(axis=0) for states in wanted])
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    np.testing.assert_allclose(output.logits, linear(pooled, weights, "classifier"), atol=1e-9)
    if 0 < len(keep) < 3:  # and the comparison would notice the factor of the blocks that are left
        wrong = by_hand(model, inputs["input_features"][0].numpy(), range(len(keep)), (2 * len(keep)) ** 0.25)
        assert np.abs(wrong[-1] - wanted[0][-1]).max() > 0.1


@torch.inference_mode()
def test_a_pruned_folder_records_the_depth_even_where_it_is_the_default(tmp_path):
    """transformers leaves out of config.json what equals a fresh config, here deep_norm_depth 12."""
    loaded = small_model("beats", num_hidden_layers=12, deep_norm_depth=12)
    encoders.prune_model(loaded.model, [0, 6])
    encoders.save_model(loaded, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config.get("deep_norm_depth", 12) == 12
    again = encoders.load_model(tmp_path / "model", "cpu").model
    assert again.beats.encoder.layers[1].residual_factor == pytest.approx(24**0.25)


def test_the_initial_weights_are_those_of_deep_norm():
    torch.manual_seed(0)
    block = (
        beats_encoder.BeatsModel(beats_encoder.BeatsConfig(num_hidden_layers=1)).encoder.layers[0].requires_grad_(False)
    )
    xavier = math.sqrt(2 / (768 + 768))
    assert float(block.self_attn.q_proj.weight.std()) == pytest.approx(xavier, rel=0.02)
    assert float(block.self_attn.v_proj.weight.std()) == pytest.approx(xavier * 96**-0.25, rel=0.02)
    assert float(block.fc2.weight.std()) == pytest.approx(math.sqrt(2 / (768 + 3072)) * 96**-0.25, rel=0.02)
    assert not block.fc1.bias.any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.inference_mode()
def test_both_kinds_of_attention_agree(attention):
    loaded = far_from_its_start()
    inputs = loaded.prepare(audio_of(), SAMPLE_RATE_HZ)
    wanted = loaded.model(**inputs).logits
    loaded.model.set_attn_implementation(attention)
    assert loaded.config._attn_implementation == attention
    torch.testing.assert_close(loaded.model(**inputs).logits, wanted)


@torch.inference_mode()
def test_the_level_of_a_clip_matters():
    """Nothing normalises it, as in the published models: half the level is another clip."""
    loaded = far_from_its_start()
    loud, quiet = (
        loaded.model(**loaded.prepare(audio_of(level=level), SAMPLE_RATE_HZ)).logits for level in (0.1, 0.05)
    )
    assert (loud - quiet).abs().max() > 1e-3 * loud.abs().max()


def test_a_model_without_blocks_has_no_weight_without_gradient(tmp_path):
    """The positions of the blocks get no gradient then; several processes would wait for it."""
    loaded = small_model("beats")
    encoders.prune_model(loaded.model, [])
    encoders.configure_for_training(loaded.model, read_clips(write_processed(tmp_path / "data"), "train"), [])
    loaded.model(**loaded.prepare(audio_of(), SAMPLE_RATE_HZ)).logits.sum().backward()
    assert [name for name, parameter in loaded.model.named_parameters() if parameter.grad is None] == [
        name for name, parameter in loaded.model.named_parameters() if not parameter.requires_grad
    ]
    assert not loaded.model.beats.encoder.relative_attention_bias.weight.requires_grad


# ------------------------------------------------------------------------------------------- spectrogram


@pytest.mark.parametrize("n_samples", [2_800, 24_321])
def test_the_spectrogram_is_kaldis_to_the_last_bit(n_samples):
    audio = np.stack(audio_of(3, n_samples)) * np.array([[3], [0.1], [1e-3]], np.float32)
    extractor = beats_encoder.BeatsFeatureExtractor()
    found = extractor(list(audio), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_features"]
    for clip, spectrogram in zip(audio, found, strict=True):
        waveform = 2**15 * torch.from_numpy(clip)[None]
        wanted = torchaudio.compliance.kaldi.fbank(waveform, num_mel_bins=128, sample_frequency=SAMPLE_RATE_HZ)
        assert torch.equal(spectrogram, (wanted - 15.41663) / (2 * 6.55582))
        alone = extractor(clip, return_tensors="np")["input_features"]
        assert np.array_equal(alone[0], spectrogram)


def test_clips_that_give_no_spectrogram_are_refused():
    loaded = small_model("beats")
    with pytest.raises(ValueError, match="16000 Hz, got 8000 Hz"):
        loaded.extractor(audio_of(), sampling_rate=8_000)
    with pytest.raises(ValueError, match="399 samples is shorter than a frame of 400"):
        loaded.extractor(audio_of(1, 399), sampling_rate=SAMPLE_RATE_HZ)
    with pytest.raises(ValueError, match="needs 16 frames for a patch, got 15"):
        loaded.model(**loaded.prepare(audio_of(1, 2_799), SAMPLE_RATE_HZ))
    assert loaded.extractor(np.zeros((1, 2_800)), return_tensors="np")["input_features"].shape == (1, 16, 32)


# ----------------------------------------------------------------------------------------- by its parts


@torch.inference_mode()
def test_a_patch_runs_through_the_bands_of_a_time_first():
    """A change in the last 10 frames of a clip changes the last two patches, of the two columns of bands, alone."""
    loaded = far_from_its_start()
    model = loaded.model.beats
    spectrogram = loaded.prepare(audio_of(1, 10_000), SAMPLE_RATE_HZ)["input_features"]  # 61 frames: 3 patches of time
    changed = spectrogram.clone()
    changed[:, 40:48] += 1
    patches = [model.patch_embedding(one[:, None]).flatten(2).mT for one in (spectrogram, changed)]
    differs = (patches[0] - patches[1]).abs().amax(dim=(0, 2)) > 0
    assert differs.tolist() == [False] * 4 + [True] * 2


@torch.inference_mode()
def test_the_positions_are_no_part_of_a_block():
    """So any block can go, the first too, unlike in WavLM."""
    loaded = far_from_its_start()
    inputs = loaded.prepare(audio_of(), SAMPLE_RATE_HZ)
    parts = EncoderParts(loaded.model)
    state = parts.front_end(inputs)
    assert len(state.args) == 1 and not state.kwargs
    found = parts.logits([state, parts.block(2, state)], [2])
    pruned = encoders.pruned_copy(loaded, [2])
    torch.testing.assert_close(found, pruned.model(**inputs).logits)
