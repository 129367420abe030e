"""Running models through their parts: the same numbers as whole, and as pruned, saved and reloaded."""

import numpy as np
import pytest
import torch

from tests.data import SMALL_CONFIGS, small_model
from utils import encoders
from utils.encoder_parts import EncoderParts, valid_frames
from utils.errors import InputError

N_SAMPLES = 8000


def inputs_of(model, extractor, n_clips=3, n_samples=N_SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    audio = [rng.standard_normal(n_samples).astype(np.float32) * 0.1 for _ in range(n_clips)]
    return encoders.prepare(extractor, audio, 16_000, model.main_input_name)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.inference_mode()
def test_all_parts_in_turn_give_the_models_logits_and_hidden_states(name):
    model, extractor = small_model(name)
    inputs = inputs_of(model, extractor)
    parts = EncoderParts(model)
    path = list(parts.hidden_layers(inputs))
    whole = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(parts.logits(path, range(parts.n_layers)), whole.logits, rtol=1e-5, atol=1e-6)
    assert len(path) == len(whole.hidden_states) == parts.n_layers + 1
    for mine, theirs in zip(path[:-1], whole.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine.hidden_states, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@torch.inference_mode()
def test_left_out_blocks_give_the_logits_of_the_pruned_model_after_reload(name, tmp_path):
    model, extractor = small_model(name)
    inputs = inputs_of(model, extractor)
    parts = EncoderParts(model)
    for keep in ([0], [0, 2], [0, 1]) + (() if "sum" in name else ([],)):
        path = [parts.front_end(inputs)]
        for layer in keep:
            path.append(parts.block(layer, path[-1]))
        found = parts.logits(path, keep)
        pruned, _ = small_model(name)
        pruned.load_state_dict(model.state_dict())
        encoders.prune_model(pruned, keep)
        folder = tmp_path / f"{keep}"
        encoders.save_model(pruned, extractor, folder)
        reloaded, _ = encoders.load_model(folder, "cpu")
        torch.testing.assert_close(found, reloaded(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_a_model_without_blocks_has_no_parts():
    model, _ = small_model("hubert")
    encoders.prune_model(model, [])
    with pytest.raises(InputError, match="no transformer block left"):
        EncoderParts(model)


def test_every_frame_of_a_waveform_encoder_is_valid():
    model, extractor = small_model("wav2vec2")
    assert valid_frames(model, extractor, N_SAMPLES, 99).all()


@pytest.mark.parametrize("name", ["whisper", "ast"])
@torch.inference_mode()
def test_frames_beyond_the_clip_are_invalid(name):
    """What a change at the very end of the clip reaches before any block, and only that, tells what is heard."""
    model, extractor = small_model(name)
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(N_SAMPLES).astype(np.float32) * 0.1
    audio[:800] *= 20  # Whisper measures loudness from the loudest moment of a clip: it stays the same
    other = audio.copy()
    other[800:] = rng.permutation(audio[800:])
    first, second = (
        EncoderParts(model)
        .front_end(encoders.prepare(extractor, [clip], 16_000, model.main_input_name))
        .hidden_states[0]
        for clip in (audio, other)
    )
    heard = (first - second).abs().amax(dim=1) > 1e-3
    valid = valid_frames(model, extractor, N_SAMPLES, len(first))
    if name == "ast":
        assert heard[2:].equal(valid[2:]) and not valid[:2].any()
    else:
        # A convolution of width 3 sees a little beyond the end.
        assert int(valid.sum()) == N_SAMPLES // 320 and 0 <= int(heard.nonzero().max()) + 1 - int(valid.sum()) <= 2
