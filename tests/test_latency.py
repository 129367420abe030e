"""Operations against a hand count and a published figure; times and memory against scripted ones."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from utils import encoders, latency

LABELS = ["crow", "finch", "jay"]
RATE_HZ = 16_000


def macs_by_hand(config, n_samples, n_classes):
    """Return (total, front end) of a wav2vec2 classifier, layer by layer."""
    macs, frames, channels = 0, n_samples, 1
    for width, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
        macs += frames * width * channels * kernel
        channels = width
    hidden, kernel = config.hidden_size, config.num_conv_pos_embeddings
    macs += frames * channels * hidden
    # An even kernel makes one frame too many, which is computed and then cut off.
    macs += (frames + 1 - kernel % 2) * hidden * (hidden // config.num_conv_pos_embedding_groups) * kernel
    linear = frames * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    attention = 2 * frames**2 * hidden
    head = frames * hidden * config.classifier_proj_size + config.classifier_proj_size * n_classes
    return macs + config.num_hidden_layers * (linear + attention) + head, macs


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    model, extractor = encoders.tiny_model(LABELS)
    return model.eval(), extractor


@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [2], []])
def test_macs_agree_with_a_count_by_hand(tiny, keep):
    model, _ = tiny
    encoders.prune_model(model, keep)
    before = model.config._attn_implementation
    assert before != "eager"  # the fused attention of a CPU is unknown to the counter
    macs = latency.count_macs(model, {"input_values": torch.zeros(1, 2 * RATE_HZ)})
    assert macs == macs_by_hand(model.config, 2 * RATE_HZ, len(LABELS))
    assert model.config._attn_implementation == before


def test_macs_grow_with_the_batch(tiny):
    model, _ = tiny
    one, three = (latency.count_macs(model, {"input_values": torch.zeros(n, RATE_HZ)}) for n in (1, 3))
    assert three == (3 * one[0], 3 * one[1])


def test_macs_of_wav2vec2_base_agree_with_the_published_figure():
    # OpenVINO Open Model Zoo, wav2vec2-base: 26.843 GFLOPs, two for a multiply-accumulate, for 30,480
    # samples and a head of 32 letters; it also counts the additions of biases and normalisations.
    with torch.device("meta"):  # shapes without numbers
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=35)).eval()
    total, front_end = latency.count_macs(model, {"input_values": torch.zeros(1, 30_480, device="meta")})
    assert (total, front_end) == macs_by_hand(model.config, 30_480, 35)
    frames = 95
    our_head, their_head = frames * 768 * 256 + 256 * 35, frames * 768 * 32
    assert 2 * (total - our_head + their_head) / 1e9 == pytest.approx(26.843, rel=0.003)


def test_cost_is_made_of_the_measured_times(tiny, monkeypatch):
    model, extractor = tiny
    calls = itertools.count()
    # Whole passes take 0.100, 0.102 … s, front ends 0.040 s, batches 0.5 s, in this order.
    times = [value for i in range(20) for value in (0.100 + 0.002 * i, 0.040)] + [0.5] * 3

    def scripted(call):
        call()
        return times[next(calls)]

    monkeypatch.setattr(latency, "_seconds", scripted)
    audio = np.random.default_rng(0).normal(size=2 * RATE_HZ).astype(np.float32)
    cost = latency.measure_cost(model, extractor, audio, RATE_HZ, 4, "cpu", budget_s=0)
    whole = np.array(times[:40:2])
    assert next(calls) == len(times)
    assert cost.n_repeats == 20
    assert cost.latency_ms_median == pytest.approx(1e3 * np.median(whole))
    assert cost.latency_ms_p95 == pytest.approx(1e3 * np.quantile(whole, 0.95))
    assert cost.latency_front_end_ms == pytest.approx(40)
    assert cost.real_time_factor == pytest.approx(np.median(whole) / 2)
    assert cost.throughput_clips_per_s == pytest.approx(4 / 0.5)
    assert (cost.batch_size, cost.dtype, cost.n_threads) == (4, "float32", torch.get_num_threads())
    total, front_end = macs_by_hand(model.config, 2 * RATE_HZ, len(LABELS))
    assert (cost.gmacs_per_clip, cost.gmacs_front_end) == (total / 1e9, front_end / 1e9)


def test_repeats_stop_at_the_most(tiny, monkeypatch):
    model, extractor = tiny
    monkeypatch.setattr(latency, "MAX_REPEATS", 22)
    cost = latency.measure_cost(model, extractor, np.zeros(RATE_HZ, np.float32), RATE_HZ, 1, "cpu", budget_s=1e9)
    assert cost.n_repeats == 22
    assert cost.latency_ms_p95 >= cost.latency_ms_median > 0


def test_peak_memory_sees_what_was_freed_and_forgets_what_was_before():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system keeps only the peak since the process began")

    def use(megabytes):
        return lambda: np.ones(int(megabytes * 1e6), np.uint8).sum()

    idle, busy, again = (latency._peak_memory_mb(use(megabytes), "cpu") for megabytes in (1, 300, 1))
    assert busy - idle == pytest.approx(300, abs=60)
    assert again - idle == pytest.approx(0, abs=60)


def test_peak_memory_without_proc_is_that_of_the_process(monkeypatch):
    known = latency._peak_resident_mb()

    def absent(self, *args, **kwargs):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(Path, "write_text", absent)
    assert latency._peak_memory_mb(lambda: None, "cpu") >= 0.9 * known
