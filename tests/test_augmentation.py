"""Augmentation: what each change does and leaves alone, and that its draws depend on nothing else."""

import numpy as np
import pytest
import torch

from utils.models.augmentation import augment_audio, batch_generator, mask_spectrogram
from utils.models.training_arguments import AUGMENTATIONS

N_CLIPS, N_SAMPLES, N_CLASSES = 6, 4000, 4


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal((N_CLIPS, N_SAMPLES))).astype(np.float32)
    return audio, np.eye(N_CLASSES, dtype=np.float32)[rng.integers(N_CLASSES, size=N_CLIPS)]


def draws(n: int = 50):
    return (batch_generator(1, epoch, range(N_CLIPS)) for epoch in range(n))


def test_nothing_asked_nothing_done_and_the_input_is_never_touched(batch):
    audio, targets = batch
    before = audio.copy(), targets.copy()
    same_audio, same_targets = augment_audio(audio, targets, (), batch_generator(1, 0, [0]))
    np.testing.assert_array_equal(same_audio, audio)
    np.testing.assert_array_equal(same_targets, targets)
    augment_audio(audio, targets, AUGMENTATIONS, batch_generator(1, 0, [0]))
    np.testing.assert_array_equal(audio, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_draws_depend_on_seed_epoch_and_clips_only(batch):
    def result(*key):
        np.random.seed(np.random.randint(1000))  # noqa: NPY002 - the global generator must not matter
        return augment_audio(*batch, AUGMENTATIONS, batch_generator(*key))[0]

    np.testing.assert_array_equal(result(1, 2, [3, 4]), result(1, 2, [3, 4]))
    for other in [(2, 2, [3, 4]), (1, 3, [3, 4]), (1, 2, [3, 5])]:
        assert not np.array_equal(result(1, 2, [3, 4]), result(*other))


def test_roll_is_circular(batch):
    audio, targets = batch
    rolled, same = augment_audio(audio, targets, ("roll",), batch_generator(1, 0, [0]))
    np.testing.assert_array_equal(np.sort(rolled), np.sort(audio))
    np.testing.assert_array_equal(same, targets)
    # The power spectrum of a circular shift is unchanged.
    np.testing.assert_allclose(np.abs(np.fft.rfft(rolled)), np.abs(np.fft.rfft(audio)), atol=1e-3)
    assert not np.array_equal(rolled, audio)


def test_gain_scales_within_6_db(batch):
    gains = []
    for rng in draws():
        louder, _ = augment_audio(*batch, ("gain",), rng)
        ratio = louder / batch[0]
        np.testing.assert_allclose(ratio, ratio[:, :1].repeat(N_SAMPLES, 1), rtol=1e-4)
        gains.extend(20 * np.log10(ratio[:, 0]))
    assert -6.01 < min(gains) < -4 and 4 < max(gains) < 6.01


def test_noise_is_another_clip_at_the_asked_level(batch):
    audio, targets = batch
    snr_db, n_noisy = [], 0
    for rng in draws():
        noisy, same = augment_audio(audio, targets, ("noise",), rng)
        np.testing.assert_array_equal(same, targets)
        for i, added in enumerate(noisy - audio):
            if not added.any():
                continue
            n_noisy += 1
            alike = [abs(np.corrcoef(added, other)[0, 1]) for other in audio]
            assert int(np.argmax(alike)) != i and max(alike) > 0.999
            snr_db.append(20 * np.log10(audio[i].std() / added.std()))
    assert 2.5 < min(snr_db) < 6 and 26 < max(snr_db) < 30.5
    assert 0.4 < n_noisy / (50 * N_CLIPS) < 0.6


def test_mixup_mixes_targets_as_it_mixes_sound(batch):
    audio, _ = batch
    targets = np.eye(N_CLIPS, dtype=np.float32)  # a class a clip: the target says who was mixed with whom
    n_mixed = 0
    for rng in draws():
        mixed, soft = augment_audio(audio, targets, ("mixup",), rng)
        np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-5)
        assert (soft.argmax(axis=1) == np.arange(N_CLIPS)).all(), "the clip itself keeps the larger share"
        for i, row in enumerate(soft):
            partner = int(np.argsort(row)[-2])
            level = np.sqrt((audio[i] ** 2).mean() / (audio[partner] ** 2).mean())
            expected = row[i] * audio[i] + (1 - row[i]) * level * audio[partner]
            np.testing.assert_allclose(mixed[i], expected, atol=1e-5)
            n_mixed += row[i] < 1
    assert 0.4 < n_mixed / (50 * N_CLIPS) < 0.6


def test_a_single_clip_and_silence_survive():
    for audio in (np.zeros((1, 100), np.float32), np.zeros((3, 100), np.float32)):
        changed, targets = augment_audio(
            audio, np.ones((len(audio), 1), np.float32), AUGMENTATIONS, batch_generator(0, 0, [0])
        )
        assert np.isfinite(changed).all() and np.isfinite(targets).all()


@pytest.mark.parametrize("shape", [(5, 32, 100), (5, 100, 32)], ids=["whisper", "ast"])
def test_spectrogram_masks_are_whole_bands_and_spans_of_bounded_width(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mel_axis = shape[1:].index(32)
    widest = {32: 0, 100: 0}
    for rng in draws(20):
        masked = mask_spectrogram(features, 32, rng)
        assert masked.shape == features.shape
        for before, after in zip(features, masked, strict=True):
            changed = before != after
            assert torch.all(after[changed] == before.mean())
            bands = changed.all(dim=1 - mel_axis).sum().item()
            spans = changed.all(dim=mel_axis).sum().item()
            whole = changed.all(dim=1 - mel_axis).unsqueeze(1 - mel_axis) | changed.all(dim=mel_axis).unsqueeze(
                mel_axis
            )
            assert torch.equal(whole.expand_as(changed), changed), "nothing but whole bands and spans"
            widest = {32: max(widest[32], bands), 100: max(widest[100], spans)}
    assert 4 < widest[32] <= 2 * int(0.15 * 32) and 15 < widest[100] <= 2 * int(0.15 * 100)
