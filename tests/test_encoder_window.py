"""The window of an encoder against the clips: cropped where it can be, its cost said where it cannot."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    WhisperFeatureExtractor,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import sinusoids

from tests.data import SMALL_CONFIGS, small_model, write_processed
from tests.stages import load_stage
from utils.core.errors import InputError
from utils.models import encoder_window, encoders
from utils.models.loaded_model import prepare

SECOND = 16_000


def whisper(seconds, **options):
    extractor = WhisperFeatureExtractor(chunk_length=seconds, feature_size=options.get("num_mel_bins", 80))
    return replace(small_model("whisper", max_source_positions=50 * seconds, **options), extractor=extractor)


def clip_of(seconds, seed=0):
    return np.random.default_rng(seed).standard_normal(round(seconds * SECOND)).astype(np.float32) * 0.1


@pytest.mark.parametrize(("clip_s", "window_s"), [(2.5, 3), (3, 3), (0.5, 1), (4.000000001, 4), (5, 5), (4.2, 5)])
def test_a_window_is_cropped_to_the_next_whole_second(clip_s, window_s):
    loaded = encoder_window.fit_window(whisper(6), clip_s, "clip", "w")
    assert (loaded.extractor.chunk_length, loaded.extractor.nb_max_frames) == (window_s, 100 * window_s)
    assert loaded.config.max_source_positions == 50 * window_s and loaded.config.full_window_seconds == 6


def test_a_cropped_encoder_has_the_first_positions_and_all_other_weights(tmp_path):
    """As Whisper's own sinusoids, made for the shorter window, are: the same rows, whatever the length."""
    loaded = whisper(30, num_mel_bins=128)
    model = loaded.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = encoder_window.fit_window(loaded, 2.5, "clip", "w")
    encoders.save_model(loaded, tmp_path / "cropped")
    cropped = AutoModelForAudioClassification.from_pretrained(tmp_path / "cropped")
    for name, value in cropped.state_dict().items():
        expected = before[name][:150] if name == "encoder.embed_positions.weight" else before[name]
        assert torch.equal(value, expected), name
    assert not model.encoder.embed_positions.weight.requires_grad
    again = AutoFeatureExtractor.from_pretrained(tmp_path / "cropped")
    inputs = prepare(again, [clip_of(2.5)], SECOND, "input_features")
    with torch.no_grad():
        assert torch.equal(cropped.eval()(**inputs).logits, model(**inputs).logits)
    assert torch.allclose(sinusoids(1500, 32)[:150], sinusoids(150, 32))


def test_a_clip_that_fills_the_window_gives_the_same_before_and_after():
    loaded = whisper(2)
    inputs = loaded.prepare([clip_of(2)], SECOND)
    with torch.no_grad():
        whole = loaded.model(**inputs).logits
        assert encoder_window.fit_window(loaded, 2, "clip", "w") is loaded
        assert torch.equal(loaded.model(**inputs).logits, whole)


def test_what_is_saved_is_said(caplog):
    caplog.set_level(logging.INFO)
    encoder_window.fit_window(whisper(30), 2.5, "clip", "openai/whisper")
    words = "openai/whisper: its window of 30 s is cropped to 3 s for clips of 2.5 s: "
    assert words in caplog.text
    after, before = (float(word) for word in caplog.text.split(words)[1].split(" GMACs per clip instead of "))
    assert before / after > 10  # more than the ratio of the windows: attention grows with its square


def test_a_window_in_full_is_left_and_its_cost_said(caplog):
    loaded = whisper(30)
    assert encoder_window.fit_window(loaded, 2.5, "full", "w") is loaded
    assert loaded.config.max_source_positions == 1500 and not hasattr(loaded.config, "full_window_seconds")
    assert "w computes its whole window of 30 s for clips of 2.5 s" in caplog.text
    assert "92 % of it is padding" in caplog.text and "a window of 3 s would need" in caplog.text


def test_ast_is_not_cropped_and_its_cost_said(caplog):
    loaded = small_model("ast")
    assert encoder_window.fit_window(loaded, 0.5, "clip", "ast") is loaded
    assert "ast computes its whole window of 1.295 s for clips of 0.5 s" in caplog.text
    assert "positions were learned for this window" in caplog.text


@pytest.mark.parametrize(("name", "clip_s"), [("wav2vec2", 0.5), ("ast", 1.2), ("whisper", 0.7)])
def test_no_word_where_nothing_is_wasted(name, clip_s, caplog):
    encoder_window.warn_of_window(small_model(name), clip_s, name)
    assert not caplog.text


@pytest.mark.parametrize("seconds", [1.0, 2.5, 0])
def test_a_window_of_no_whole_seconds_is_refused(seconds, tmp_path):
    """transformers 5.23.0 takes 30.0 and 2.5, and fails with the first clip that is shorter."""
    encoders.save_model(small_model("whisper"), tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chunk_length": seconds}))
    with pytest.raises(InputError, match="expected whole seconds above 0"):
        encoders.load_model(tmp_path / "model", "cpu")


def test_stages_crop_a_base_model_and_leave_a_trained_one(tmp_path, caplog):
    """02 crops and notes it, 04 looks at the same encoder, 03 scores what it is given and says what it costs."""
    caplog.set_level(logging.INFO)
    data_dir = write_processed(tmp_path / "data")
    base_dir = tmp_path / "base"
    config = SMALL_CONFIGS["whisper"](max_source_positions=200, vocab_size=8, pad_token_id=0)
    WhisperModel(config).save_pretrained(base_dir)
    WhisperFeatureExtractor(chunk_length=4).save_pretrained(base_dir)

    def main(stage, name, *words):
        words = [*words, "--data_dir", data_dir, "--output_dir", tmp_path / name, "--device", "cpu"]
        caplog.clear()
        assert load_stage(stage).main([str(word) for word in words]) == 0
        return caplog.text

    for window in ("clip", "full"):
        words = ("--base_model", base_dir, "--num_train_epochs", 1, "--encoder_window", window)
        text = main("02_finetuning", window, *words)
        config = json.loads((tmp_path / window / "model" / "config.json").read_text())
        if window == "clip":
            assert "cropped to 1 s" in text
            assert (config["max_source_positions"], config["full_window_seconds"]) == (50, 4)
        else:
            assert "computes its whole window of 4 s" in text and config["max_source_positions"] == 200
    text = main("03_model_validation", "val", "--model_dir", tmp_path / "full")
    assert "computes its whole window" in text
    text = main("04_analysis", "analysis", "--model_dir", base_dir, "--metrics", "cka")
    assert "cropped to 1 s" in text
