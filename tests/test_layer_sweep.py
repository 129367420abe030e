"""Subsets that share their prefix give what each pruned model gives by itself, with the work that is said."""

import contextlib
import itertools
import logging
import weakref

import numpy as np
import pytest
import torch

from tests.data import LABELS, SMALL_CONFIGS, small_model, write_processed
from utils.core.errors import InputError, UsageError
from utils.data.clips import read_clips
from utils.models import architectures, encoders, memory, onednn, predict
from utils.models.cnn import build_cnn
from utils.models.encoder_parts import EncoderParts
from utils.pruning import layer_sweep

N_CLIPS = 6
ALL_THAT_KEEP_BLOCK_0 = [(0,), (0, 1), (0, 2), (0, 1, 2)]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    data_dir = write_processed(tmp_path_factory.mktemp("data") / "processed", recordings_per_class={"test": 1})
    return read_clips(data_dir)


def distinct_model(name):
    """Return a small model in which every block matters: new ones are almost the identity."""
    torch.manual_seed(1)
    loaded = small_model(name)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.dim() == 2:
                parameter *= 8 if name.startswith("sew") else 4  # an upsampling stands between its blocks and its head
    return loaded


def sweep(loaded, clips, keeps, batch_size=4):
    batches = layer_sweep.logits_by_batch(loaded, clips, keeps, batch_size)
    return np.concatenate(list(batches), axis=1)


def reloaded_logits(loaded, clips, keep, folder):
    """Return the logits of the pruned model as it is saved and loaded again; `loaded` is left as it was."""
    name = f"keep{'-'.join(map(str, keep))}"
    encoders.save_model(encoders.pruned_copy(loaded, keep), folder / name)
    return predict.predict(encoders.load_model(folder / name, "cpu"), clips, batch_size=3)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_every_subset_gives_the_logits_of_the_pruned_model_after_reload(name, clips, tmp_path):
    loaded = distinct_model(name)
    rng = np.random.default_rng(2)
    keeps = [(), *ALL_THAT_KEEP_BLOCK_0, (1,), (2,), (1, 2)]
    if name == "wavlm":
        keeps = [keep for keep in keeps if not keep or keep[0] == 0]
    if "sum" in name:
        keeps = [keep for keep in keeps if keep]
    keeps = [keeps[i] for i in rng.permutation(len(keeps))[:4]]
    logits = sweep(loaded, clips, keeps)
    assert logits.shape == (len(keeps), N_CLIPS, len(LABELS)) and logits.dtype == np.float32
    for keep, found in zip(keeps, logits, strict=True):
        np.testing.assert_allclose(found, reloaded_logits(loaded, clips, keep, tmp_path), **TOLERANCE)
    for i, j in itertools.combinations(range(len(keeps)), 2):
        assert np.abs(logits[i] - logits[j]).max() > 1000 * TOLERANCE["atol"]


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "whisper", "ast", "beats"])
def test_batch_size_changes_nothing(name, clips):
    loaded = distinct_model(name)
    expected = sweep(loaded, clips, ALL_THAT_KEEP_BLOCK_0, batch_size=N_CLIPS)
    for batch_size in (1, 4):
        found = sweep(loaded, clips, ALL_THAT_KEEP_BLOCK_0, batch_size)
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_results_come_in_the_order_asked_for_with_duplicates(clips):
    loaded = distinct_model("wav2vec2")
    keeps = [(0, 2), (1,), (0, 2), (0,), [1], np.array([0, 1])]
    logits = sweep(loaded, clips, keeps)
    for keep, found in zip(keeps, logits, strict=True):
        np.testing.assert_allclose(found, sweep(loaded, clips, [keep])[0], **TOLERANCE)
    predicted_ids = layer_sweep.predict_subsets(loaded, clips, keeps, batch_size=4)
    assert predicted_ids.dtype == np.int16
    np.testing.assert_array_equal(predicted_ids, logits.argmax(axis=2))


def test_nothing_asked_for_is_nothing_found(clips):
    loaded = distinct_model("wav2vec2")
    found = layer_sweep.predict_subsets(loaded, clips, [], batch_size=4)
    assert found.shape == (0, N_CLIPS)


def test_trie_cost_is_that_of_a_hand_drawn_trie():
    # 0 ─ 1 ─ 2, 0 ─ 2 and 1: five nodes
    keeps = [(0, 1, 2), (0, 2), (0, 1), (1,), (), (0, 2)]
    assert layer_sweep.trie_cost(keeps) == (5, 3 + 2 + 2 + 1)
    # One node for every subset that keeps block 0: its path ends there.
    every = [(0, *(i for i in range(1, 12) if number >> i & 1)) for number in range(0, 2**12, 2)]
    assert layer_sweep.trie_cost(every) == (2048, 13_312)


def test_each_node_is_one_block_call_a_batch_and_few_states_live_at_once(clips):
    loaded = distinct_model("wavlm")
    alive, most_alive, n_calls = weakref.WeakSet(), [], []

    def look(module, args, kwargs, output):
        alive.add(output[0])
        n_calls.append(1)
        most_alive.append(len(alive))

    for block in architectures.blocks_of(loaded.model):
        block.register_forward_hook(look, with_kwargs=True)
    sweep(loaded, clips, [*ALL_THAT_KEEP_BLOCK_0, ()], batch_size=4)
    n_nodes, _ = layer_sweep.trie_cost(ALL_THAT_KEEP_BLOCK_0)
    n_batches = 2
    assert len(n_calls) == n_nodes * n_batches == 4 * 2
    assert max(most_alive) <= 3  # of blocks; the front end's is the one more
    assert not alive


def test_a_front_end_runs_once_a_batch(clips, caplog):
    loaded = distinct_model("wav2vec2")
    calls = []
    loaded.model.wav2vec2.feature_extractor.register_forward_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.DEBUG):
        sweep(loaded, clips, ALL_THAT_KEEP_BLOCK_0, batch_size=2)
    assert len(calls) == N_CLIPS // 2
    assert "4 subsets share 4 block passes instead of 8" in caplog.text


def test_a_sweep_leaves_the_model_as_it_was(clips):
    loaded = distinct_model("hubert")
    before = predict.predict(loaded, clips, batch_size=4)
    sweep(loaded, clips, ALL_THAT_KEEP_BLOCK_0)
    np.testing.assert_array_equal(predict.predict(loaded, clips, batch_size=4), before)
    assert not any("forward" in vars(module) for module in loaded.model.modules())


def test_broken_weights_are_named_with_subset_and_clip(clips):
    loaded = distinct_model("wav2vec2")
    with torch.no_grad():
        architectures.blocks_of(loaded.model)[1].feed_forward.output_dense.bias[0] = float("nan")
    sweep(loaded, clips, [(0,), (0, 2)])
    first = clips.table["clip_id"].iloc[0]
    with pytest.raises(InputError, match=rf"blocks \[0, 1\] .* clip {first};"):
        sweep(loaded, clips, [(0, 2), (0, 1, 2), (0, 1)])


def test_a_broken_clip_of_a_later_batch_is_named(clips, monkeypatch):
    loaded = distinct_model("wav2vec2")
    samples = type(clips).__getitem__

    def fifth_is_broken(self, index):
        row = samples(self, index)
        return {**row, "audio": row["audio"] * np.float32("nan" if index == 4 else 1)}

    monkeypatch.setattr(type(clips), "__getitem__", fifth_is_broken)
    with pytest.raises(InputError, match=f"clip {clips.table['clip_id'].iloc[4]};"):
        sweep(loaded, clips, [(0,), (1,)], batch_size=4)


@pytest.mark.parametrize("keep", [(1, 0), (0, 0), (0, 3), (-1,)])
def test_impossible_lists_are_refused(keep, clips):
    loaded = distinct_model("wav2vec2")
    with pytest.raises(UsageError, match="ascending and from 0 to 2"):
        sweep(loaded, clips, [(0,), keep])


def test_wavlm_keeps_the_block_that_the_others_need(clips):
    loaded = distinct_model("wavlm")
    with pytest.raises(UsageError, match="layer 0 of a wavlm model"):
        sweep(loaded, clips, [(0, 1), (1, 2)])


def test_a_model_without_blocks_is_refused(clips):
    loaded = distinct_model("wav2vec2")
    encoders.prune_model(loaded.model, [])
    with pytest.raises(InputError, match="no transformer block left"):
        sweep(loaded, clips, [()])


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "whisper", "ast", "wav2vec2-weighted-layer-sum"])
def test_a_batch_takes_no_more_than_its_clips_one_by_one(name, clips):
    """The estimate multiplies what one clip takes; here the sum over a whole walk is measured."""
    loaded = distinct_model(name)
    parts = EncoderParts(loaded.model)

    def highest(n_clips, keeps):
        audio = [clips.audio(i) for i in range(n_clips)]
        inputs = loaded.prepare(audio, clips.sample_rate_hz)
        with torch.no_grad(), memory.LiveBytes() as live:
            for keep, path in layer_sweep._walk(parts, inputs, keeps):
                parts.logits(path, keep)
            del keep, path
        assert live.now == 0
        return live.highest

    assert 0 < highest(4, ALL_THAT_KEEP_BLOCK_0) <= 4 * highest(1, [(0, 1, 2)])


def test_live_bytes_are_those_of_storages():
    with torch.no_grad(), memory.LiveBytes() as live:
        x = torch.zeros(1000)  # 4,000 bytes
        y = x.view(10, 100).T + 1  # 4,000 bytes; the views none
        x.add_(1)
        assert live.now == live.highest == 8000
        del x
        assert live.now == 4000
        z = torch.cat([y, y])  # 8,000 bytes
        assert live.now == live.highest == 12_000
        del y, z
    assert live.now == 0 and live.highest == 12_000


# ------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_bfloat16_gives_nearly_the_same(name, clips, monkeypatch):
    """What a GPU does, on this machine's CPU: every architecture runs in bfloat16, and within a limit."""
    loaded = distinct_model(name)
    expected = sweep(loaded, clips, ALL_THAT_KEEP_BLOCK_0)

    @contextlib.contextmanager
    def in_bfloat16(model, device):
        with torch.autocast(device, torch.bfloat16):
            yield

    monkeypatch.setattr(layer_sweep, "_computing", in_bfloat16)
    found = sweep(loaded, clips, ALL_THAT_KEEP_BLOCK_0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 8), (1, 8)])
def test_linear_layers_by_onednn_give_the_same(bias, shape):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=bias))
    x = torch.randn(shape)
    views = [x, x.transpose(0, -2) if x.dim() == 3 else x, x.double().float().expand(shape)]
    with torch.inference_mode(), onednn.linear_layers(layer, "cpu"):
        found = [layer(view) for view in views]
    for y, view in zip(found, views, strict=True):
        torch.testing.assert_close(y, layer(view), rtol=1e-5, atol=1e-6)


def test_on_a_processor_without_onednn_products_are_those_of_pytorch(monkeypatch):
    monkeypatch.setattr(onednn.platform, "machine", lambda: "arm64")
    x, weight, bias = torch.randn(5, 8), torch.randn(4, 8), torch.randn(4)
    torch.testing.assert_close(onednn.linear(x, weight, bias), x @ weight.T + bias, rtol=0, atol=1e-5)


def test_linear_layers_are_themselves_again_after_an_error():
    layer = torch.nn.Linear(8, 4)
    with pytest.raises(KeyError), onednn.linear_layers(layer, "cpu"):
        raise KeyError
    assert "forward" not in vars(layer) and layer(torch.zeros(1, 8)).requires_grad


def test_linear_layers_on_a_gpu_are_left_alone():
    layer = torch.nn.Linear(8, 4)
    with onednn.linear_layers(layer, "cuda"):
        assert "forward" not in vars(layer)


def test_norms_within_convolutions_give_the_same():
    loaded = build_cnn("melspectrogram", ["a", "b"], 16_000, 1.0, width=0.25).ready("cpu")
    for norm in loaded.model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    folded = onednn.with_folded_norms(loaded.model)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    sound = np.random.default_rng(0).standard_normal((3, 16_000)).astype(np.float32)
    inputs = loaded.prepare(list(sound), 16_000)
    with torch.inference_mode():
        torch.testing.assert_close(folded(**inputs).logits, loaded.model(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_a_network_without_such_pairs_is_not_copied():
    model = build_cnn("waveform", ["a", "b"], 16_000, 1.0, width=0.25).model.eval()
    assert onednn.with_folded_norms(model) is model
