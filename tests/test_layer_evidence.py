"""What the rules go by, from hidden states made by hand; and that it is measured once."""

import numpy as np
import pandas as pd
import pytest

from tests.data import small_model, write_processed
from utils.data.clips import read_clips
from utils.layers import convexity, hidden_states, linear_maps
from utils.models import encoders
from utils.pruning import layer_evidence

NEEDS = ("angular_distance", "block_influence", "cka", "convexity", "knn_block_influence")


@pytest.fixture
def hidden():
    """Return three hidden layers of 24 clips; block 0 turns the space, block 1 shuffles the clips."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((24, 8)).astype(np.float32)
    rotation, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    turned = (first @ rotation).astype(np.float32)
    frames = rng.random((24, 3, 3)).astype(np.float32)
    table = pd.DataFrame({"label_id": np.arange(24) % 3, "group": [f"g{i // 2}" for i in range(24)]})
    return hidden_states.HiddenStates(np.stack([first, turned, turned[::-1]]), frames, 1 - frames, table)


def test_numbers_are_those_of_their_definitions(hidden):
    found = layer_evidence.measure_evidence(hidden, NEEDS, num_neighbors=4, num_pairs=1000, n_classes=3, seed=1)
    means = hidden.cosine.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found.block_influence, [1 - means[0, 1], 1 - means[1, 2]])
    np.testing.assert_allclose(found.angular_distance, hidden.angle.astype(np.float64).mean(axis=0))
    assert found.knn_block_influence[0] == pytest.approx(0)  # a rotation keeps all neighbours
    assert found.knn_block_influence[1] > 0.5
    assert found.cka[0, 1] == pytest.approx(1, abs=1e-5) and found.cka[1, 2] < 0.5
    label_ids, groups = hidden.table["label_id"].to_numpy(), hidden.table["group"].to_numpy()
    expected = [convexity.graph_convexity(h, label_ids, groups, 3, 4, 1000, 1).convexity for h in hidden.pooled]
    np.testing.assert_allclose(found.convexity, expected)


def test_what_is_not_needed_is_not_measured(hidden):
    found = layer_evidence.measure_evidence(hidden, ["cka"], 4, 1000, 3, 1)
    assert [name for name in NEEDS if getattr(found, name) is not None] == ["cka"]


def test_convexity_of_neighbours_is_warned_of(hidden, caplog):
    layer_evidence.measure_evidence(hidden, ["convexity"], len(hidden.table) - 1, 1000, 3, 1)
    assert "convexity is not informative there" in caplog.text


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return read_clips(write_processed(tmp_path_factory.mktemp("data") / "processed"), "train")


def test_a_subset_is_measured_as_the_pruned_model_and_once(clips, tmp_path, monkeypatch):
    loaded = small_model("wavlm")

    def measure(key):
        return layer_evidence.evidence_of_subset(
            *(loaded, clips, (0, 2), ["block_influence", "cka"], 10, 100, 0, 4, tmp_path, key)
        )

    found = measure({"model": "a"})
    assert [path.name for path in tmp_path.iterdir()] == ["block_influence+cka-0,2.npz"]
    assert loaded.config.num_hidden_layers == 3
    with monkeypatch.context() as patch:
        patch.setattr(hidden_states, "extract", lambda *_: pytest.fail("measured twice"))
        again = measure({"model": "a"})
    np.testing.assert_array_equal(found.block_influence, again.block_influence)
    encoders.prune_model(loaded.model, [0, 2])
    states = hidden_states.extract(loaded, clips, 4, tmp_path, "pruned", {})
    expected = layer_evidence.measure_evidence(states, ["block_influence", "cka"], 10, 100, 3, 0)
    np.testing.assert_allclose(found.block_influence, expected.block_influence)
    np.testing.assert_allclose(found.cka, expected.cka)


def test_the_linear_residual_needs_no_hidden_states_of_all_clips(clips, tmp_path, monkeypatch):
    loaded = small_model("wav2vec2")
    monkeypatch.setattr(hidden_states, "extract", lambda *_: pytest.fail("not needed"))
    found = layer_evidence.evidence_of_subset(
        *(loaded, clips, (0, 1, 2), ["linear_residual"], 10, 100, 7, 4, tmp_path, {})
    )
    expected = linear_maps.linear_residual(loaded, clips, 4, seed=7).residual
    np.testing.assert_array_equal(found.linear_residual, expected)


@pytest.mark.parametrize("damage", ["key", "bytes"])
def test_numbers_of_another_model_or_damaged_ones_are_measured_again(damage, clips, tmp_path):
    loaded = small_model("wav2vec2")
    arguments = (loaded, clips, (0, 1, 2), ["block_influence"], 10, 100, 0, 4, tmp_path)
    first = layer_evidence.evidence_of_subset(*arguments, {"model": "a"})
    path = next(tmp_path.iterdir())
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-30])
        again = layer_evidence.evidence_of_subset(*arguments, {"model": "a"})
        np.testing.assert_array_equal(first.block_influence, again.block_influence)
    else:
        for parameter in loaded.model.parameters():
            parameter.data *= 1.5
        again = layer_evidence.evidence_of_subset(*arguments, {"model": "b"})
        assert not np.array_equal(first.block_influence, again.block_influence)
