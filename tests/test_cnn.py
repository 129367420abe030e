"""The convolutional baselines: shapes, sizes and spectrograms against counts by hand and closed forms."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForAudioClassification, pipeline

from tests.data import LABELS, SAMPLE_RATE_HZ, write_processed
from utils.core.errors import InputError, UsageError
from utils.data.clips import read_clips
from utils.models import architectures, bird_cnn, cnn, encoders, latency, training

PUBLISHED_SECONDS = 58_050 / SAMPLE_RATE_HZ  # 160,000 samples at 44.1 kHz, resampled


def build(architecture, clip_seconds=0.5, width=0.125, **options):
    torch.manual_seed(0)
    return cnn.build_cnn(architecture, LABELS, SAMPLE_RATE_HZ, clip_seconds, width, **options).ready("cpu")


def noise(seconds, n_clips=2, seed=0):
    rng = np.random.default_rng(seed)
    return list(0.1 * rng.standard_normal((n_clips, round(seconds * SAMPLE_RATE_HZ))).astype(np.float32))


def logits_of(loaded, audio):
    with torch.no_grad():
        return loaded.model(**loaded.prepare(audio, SAMPLE_RATE_HZ)).logits


# -------------------------------------------------------------------------------------------- shapes


def test_published_shape_before_the_first_dense_layer():
    assert round(PUBLISHED_SECONDS, 2) == 3.63
    model = build("waveform", PUBLISHED_SECONDS, width=1).model
    assert model.features(torch.zeros(1, 1, 58_050)).shape == (1, 32, 2322)
    assert model.hidden.weight.shape == (128, 32 * 2322)
    assert [type(m).__name__ for m in model.features] == ["Conv1d", "ReLU", "MaxPool1d"] * 2
    by_hand = (3 * 1 * 16 + 16) + (3 * 16 * 32 + 32) + (32 * 2322 * 128 + 128) + (128 * 3 + 3)
    assert encoders.count_parameters(model) == by_hand


@pytest.mark.parametrize(("n_samples", "n_frames"), [(25, 1), (49, 1), (50, 2), (58_080, 2323), (80_000, 3200)])
def test_flatten_size_follows_from_the_clip_length(n_samples, n_frames):
    loaded = build("waveform", n_samples / SAMPLE_RATE_HZ)
    assert loaded.model.features(torch.zeros(1, 1, n_samples)).shape == (1, 4, n_frames)
    assert loaded.model.hidden.in_features == 4 * n_frames
    assert logits_of(loaded, [np.zeros(n_samples, np.float32)]).shape == (1, 3)


def test_waveform_network_hears_one_length_only():
    loaded = build("waveform", 0.5)
    with pytest.raises(ValueError, match="takes clips of 8000 samples, got 8001"):
        logits_of(loaded, noise(8001 / SAMPLE_RATE_HZ))


@pytest.mark.parametrize("seconds", [1 / SAMPLE_RATE_HZ, 0.1, 0.5, 3.3])
def test_melspectrogram_network_hears_clips_of_any_length(seconds):
    loaded = build("melspectrogram")
    logits = logits_of(loaded, noise(seconds))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_parameters_of_the_melspectrogram_network_by_hand():
    model = build("melspectrogram", width=1).model

    def block(before, after, shortcut):
        return 9 * before * after + 9 * after**2 + 4 * after + (before * after + 2 * after if shortcut else 0)

    by_hand = 2 * 80 + (9 * 32 + 2 * 32) + block(32, 32, False)
    by_hand += block(32, 64, True) + block(64, 128, True) + block(128, 256, True) + (2 * 256 * 3 + 3)
    assert encoders.count_parameters(model) == by_hand == 1_227_523


def test_width_scales_every_layer():
    assert build("melspectrogram", width=2).config.channels == [64, 128, 256, 512]
    wide = build("waveform", width=2).config
    assert (wide.channels, wide.hidden_size) == ([32, 64], 256)
    narrow = build("waveform", width=1e-6).config
    assert (narrow.channels, narrow.hidden_size) == ([1, 1], 1)


def test_macs_agree_with_a_count_by_hand():
    n_samples, dense = 8_000, 16 * 3
    model = build("waveform").model
    by_hand = 3 * 2 * n_samples + 3 * 2 * 4 * (n_samples // 5) + 4 * (n_samples // 25) * 16 + dense
    assert latency.count_macs(model, {"input_values": torch.zeros(1, n_samples)}) == (by_hand, 0)

    model = build("melspectrogram").model
    bands, frames, before = 40, 26, 4  # after the stem, of 80 bands and 51 frames
    by_hand = 9 * 4 * bands * frames + 2 * 9 * 4 * 4 * bands * frames
    for after in (8, 16, 32):
        bands, frames = (bands + 1) // 2, (frames + 1) // 2
        by_hand += bands * frames * (9 * before * after + 9 * after**2 + before * after)
        before = after
    by_hand += 2 * 32 * 3
    assert latency.count_macs(model, {"input_features": torch.zeros(1, 80, 51)}) == (by_hand, 0)


# -------------------------------------------------------------------------------------- spectrograms


def mel_energy(audio):
    """Return the mel energies of a clip: a plain transform, and triangles on O'Shaughnessy's scale by their formula."""
    audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    padded = np.pad(audio.astype(np.float64), 256)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::160]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    mels = np.linspace(*(2595 * np.log10(1 + hz / 700) for hz in (50, 8000)), 82)
    edges_hz = 700 * (10 ** (mels / 2595) - 1)
    bins_hz = np.arange(257) * 16_000 / 512
    rising = (bins_hz - edges_hz[:-2, None]) / (edges_hz[1:-1] - edges_hz[:-2])[:, None]
    falling = (edges_hz[2:, None] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) @ power.T


def test_log_mel_agrees_with_its_closed_form():
    audio = noise(0.5)
    extractor = build("melspectrogram").extractor
    features = extractor(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_features"]
    assert features.shape == (2, 80, 51) and features.dtype == np.float32
    for clip, spectrogram in zip(audio, features, strict=True):
        np.testing.assert_allclose(spectrogram, np.log(mel_energy(clip) + 1e-6), atol=2e-3)
    alone = extractor(audio[0], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_features"]
    np.testing.assert_allclose(alone[0], features[0], atol=1e-5)


def test_pcen_agrees_with_a_plain_loop():
    audio = noise(0.5)
    audio[1][: len(audio[1]) // 2] *= 1e-3
    extractor = build("melspectrogram", pcen=True).extractor
    features = extractor(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_features"]
    for clip, found in zip(audio, features, strict=True):
        energy = mel_energy(clip)
        level = energy[:, 0]
        for frame in range(energy.shape[1]):
            level = (1 - 0.025) * level + 0.025 * energy[:, frame]
            expected = (energy[:, frame] / (1e-6 + level) ** 0.98 + 2) ** 0.5 - 2**0.5
            np.testing.assert_allclose(found[:, frame], expected, rtol=1e-3, atol=1e-5)


def test_pcen_forgets_a_loud_beginning():
    energy = torch.full((1, 1, 3000), 1e-4)
    energy[..., 0] = 1e6
    features = bird_cnn.pcen(energy)
    steady = (1e-4 / (1e-6 + 1e-4) ** 0.98 + 2) ** 0.5 - 2**0.5
    assert features.isfinite().all() and features[0, 0, -1] == pytest.approx(steady, rel=1e-3)


@pytest.mark.parametrize("pcen", [False, True])
def test_a_silent_clip_gives_numbers(pcen):
    loaded = build("melspectrogram", pcen=pcen)
    assert logits_of(loaded, [np.zeros(8000, np.float32)]).isfinite().all()


def test_another_sample_rate_is_refused():
    with pytest.raises(ValueError, match="16000 Hz, got 8000 Hz"):
        build("melspectrogram").extractor(noise(0.1), sampling_rate=8_000)


def test_specaugment_masks_bands_and_frames(tmp_path):
    train = read_clips(write_processed(tmp_path / "data"), "train")
    loaded = build("melspectrogram")
    items = [train[i] for i in range(4)]
    plain, masked = (
        training.Collator(loaded.extractor, "input_features", train, augment, seed=3)(items)["input_features"]
        for augment in ((), ("specaugment",))
    )
    changed = plain != masked
    assert changed.any() and not changed.all()
    assert changed.all(dim=2).any(), "a whole band"
    assert changed.all(dim=1).any(), "a whole frame"


# ------------------------------------------------------------------------------------ Hugging Face


@pytest.mark.parametrize(("architecture", "pcen"), [("waveform", False), ("melspectrogram", True)])
def test_saved_and_reloaded_logits_are_bit_equal_and_a_pipeline_names_species(architecture, pcen, tmp_path):
    loaded = build(architecture, pcen=pcen)
    model = loaded.model
    if architecture == "melspectrogram":  # statistics of batches are part of the model
        model.train()(torch.randn(4, 80, 51))
        model.eval()
    audio = noise(0.5)
    encoders.save_model(loaded, tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors", ".py"}
    again = encoders.load_model(tmp_path / "model", "cpu")
    assert type(again.model) is type(model) and type(again.extractor) is type(loaded.extractor)
    assert again.extractor.to_dict() == loaded.extractor.to_dict()
    logits = logits_of(loaded, audio)
    assert torch.equal(logits_of(again, audio), logits)

    found = pipeline("audio-classification", model=str(tmp_path / "model"), top_k=None)(audio[0])
    scores = torch.softmax(logits[0], dim=0)
    assert {entry["label"] for entry in found} == set(LABELS)
    for entry in found:
        assert entry["score"] == pytest.approx(float(scores[LABELS.index(entry["label"])]), rel=1e-4)


def test_registering_twice_does_no_harm():
    bird_cnn._register()
    assert type(AutoConfig.for_model("waveform_cnn")) is bird_cnn.WaveformCnnConfig
    assert bird_cnn.MelspectrogramCnnConfig in AutoModelForAudioClassification._model_mapping


def test_a_checkpoint_whose_weights_do_not_fit_is_refused(tmp_path):
    loaded = build("waveform")
    encoders.save_model(loaded, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "clip_samples": 9_000}))
    with pytest.raises(InputError, match=r"1 mismatched weights: hidden\.weight"):
        encoders.load_model(tmp_path / "model", "cpu")


@pytest.mark.parametrize("architecture", architectures.CNNS)
def test_there_are_no_blocks(architecture):
    model = build(architecture).model
    assert not architectures.has_blocks(model.config)
    assert encoders.kept_layers(model.config) == []
    inputs = {model.main_input_name: torch.zeros(1, 80, 51)}
    assert encoders.front_end_forward(model, inputs) is inputs[model.main_input_name]
    with pytest.raises(InputError, match=f"a '{model.config.model_type}' model has no transformer blocks"):
        architectures.blocks_of(model)


# ---------------------------------------------------------------------------------------- bad input


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="needs --architecture melspectrogram"):
        build("waveform", pcen=True)
    with pytest.raises(InputError, match=r"at least 25 samples \(0.0015625 s at 16000 Hz\), these have 24"):
        build("waveform", 24 / SAMPLE_RATE_HZ)


def test_clips_of_another_length_than_the_waveform_network(tmp_path):
    clips = read_clips(write_processed(tmp_path / "data"), "test")
    loaded = build("waveform", PUBLISHED_SECONDS)
    with pytest.raises(InputError, match=r"made for 58050 samples \(3.628125 s\).*have 8000; run .*3.628125$"):
        encoders.check_matches(loaded, clips)
    encoders.check_matches(build("waveform"), clips)
    encoders.check_matches(build("melspectrogram"), clips)


def test_a_sample_rate_below_the_spectrogram_is_refused():
    with pytest.raises(InputError, match="begins at 50 Hz: its clips need more than 100 Hz, these have 100 Hz"):
        cnn.build_cnn("melspectrogram", ["a", "b"], 100, 5.0)
