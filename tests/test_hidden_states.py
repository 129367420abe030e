"""Hidden states: against plain transformers, closed forms, and themselves after an interruption."""

import errno
import json

import numpy as np
import pytest
import torch

from tests.data import small_model, write_processed
from utils.core.errors import InputError
from utils.data import clip_arrays
from utils.data.clips import read_clips
from utils.layers import hidden_states
from utils.models import architectures, predict


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return read_clips(write_processed(tmp_path_factory.mktemp("data") / "processed"), "train")


def extract(loaded, clips, folder, **more):
    arguments = {"batch_size": 5, "folder": folder, "name": "states", "key": {"model": "a"}, **more}
    return hidden_states.extract(loaded, clips, **arguments)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in hidden_states.file_names("states")}


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "ast", "beats"])
def test_states_agree_with_those_that_transformers_collects(name, clips, tmp_path):
    loaded = small_model(name)
    found = extract(loaded, clips, tmp_path)
    inputs = loaded.prepare([clips.audio(i) for i in range(3)], 16_000)
    with torch.inference_mode():
        layers = loaded.model(**inputs, output_hidden_states=True).hidden_states
    n_layers = loaded.config.num_hidden_layers
    assert found.pooled.shape == (n_layers + 1, len(clips), 32)
    # AST: two class tokens, then the patches of six bands; those of the 49 mel frames of half a second count.
    frames = [2 + band * 12 + time for band in range(2) for time in range(5)] if name == "ast" else slice(None)
    for layer in range(n_layers if name == "ast" else n_layers + 1):
        states = layers[layer][:, frames].numpy()
        np.testing.assert_allclose(found.pooled[layer, :3], states.mean(axis=1), rtol=1e-4, atol=1e-5)
        above = layers[0][:, frames].numpy()
        products = (states * above).sum(-1) / np.linalg.norm(states, axis=-1) / np.linalg.norm(above, axis=-1)
        np.testing.assert_allclose(found.cosine[:3, 0, layer], products.mean(axis=1), atol=1e-5)
        angles = np.arccos(np.clip(products, -1, 1)) / np.pi
        np.testing.assert_allclose(found.angle[:3, 0, layer], angles.mean(axis=1), atol=5e-4)
    assert list(found.table["clip_id"]) == list(clips.table["clip_id"])


def test_frame_similarity_has_its_closed_forms():
    states = torch.randn(2, 50, 8)
    turned = torch.stack([-states[..., 1], states[..., 0]], dim=-1)  # a quarter turn in a plane
    flat = states[..., :2]
    cosine, angle = hidden_states.frame_similarity([flat, flat, turned[..., :2], -flat])
    assert cosine.shape == (2, 4, 4)
    np.testing.assert_allclose(cosine[:, 0], [[1, 1, 0, -1]] * 2, atol=1e-6)
    np.testing.assert_allclose(angle[:, 0], [[0, 0, 0.5, 1]] * 2, atol=5e-4)


def test_states_are_taken_again_only_if_nothing_has_changed(clips, tmp_path, monkeypatch):
    loaded = small_model("wav2vec2")
    first = np.array(extract(loaded, clips, tmp_path).pooled)
    with monkeypatch.context() as patch:
        patch.setattr(predict, "input_batches", lambda *_, **__: pytest.fail("the states were there"))
        np.testing.assert_array_equal(extract(loaded, clips, tmp_path).pooled, first)
    (tmp_path / "states.npy").write_bytes(b"rubbish")
    np.testing.assert_array_equal(extract(loaded, clips, tmp_path).pooled, first)
    other = small_model("wav2vec2")
    changed = extract(other, clips, tmp_path, key={"model": "b"}).pooled
    assert not np.allclose(changed, first)


def test_states_that_were_changed_on_disk_are_taken_again(clips, tmp_path, caplog):
    loaded = small_model("wav2vec2")
    first = np.array(extract(loaded, clips, tmp_path).pooled)
    content = bytearray((tmp_path / "states.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "states.npy").write_bytes(content)
    np.testing.assert_array_equal(extract(loaded, clips, tmp_path).pooled, first)
    assert "was changed or is damaged: it is computed again" in caplog.text


def test_interrupted_and_resumed_states_are_the_same_bytes(clips, tmp_path, monkeypatch):
    loaded = small_model("wav2vec2")
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    extract(loaded, clips, tmp_path / "whole")
    monkeypatch.setattr(clip_arrays, "SAVE_EVERY_S", 0.0)
    batches, n_batches = predict.input_batches, []

    def dying(*args, **kwargs):
        for number, batch in enumerate(batches(*args, **kwargs)):
            n_batches.append(number)
            if number == 3:
                raise RuntimeError
            yield batch

    monkeypatch.setattr(predict, "input_batches", dying)
    for _ in range(2):  # dies twice, each time a little further
        with pytest.raises(RuntimeError):
            extract(loaded, clips, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "states.json").read_text())["n_done"] == 30
    extract(loaded, clips, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len(n_batches) == 4 + 4 + 2  # of eight batches: none is done twice but the one that was under way


def test_weights_that_are_nan_are_named_by_layer_and_clip(clips, tmp_path):
    loaded = small_model("wav2vec2")
    with torch.no_grad():
        architectures.blocks_of(loaded.model)[1].feed_forward.output_dense.bias[0] = float("nan")
    with pytest.raises(InputError, match=r"layer 2 \(the output of block 1\).*clip Blackbird/train0:0"):
        extract(loaded, clips, tmp_path)


def test_a_full_disk_shows_before_the_first_pass(clips, tmp_path, monkeypatch):
    loaded = small_model("wav2vec2")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip_arrays.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        extract(loaded, clips, tmp_path)
    assert not (tmp_path / "states.json").exists()
