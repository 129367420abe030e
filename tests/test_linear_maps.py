"""The linear residual of runs of blocks: against scikit-learn, on blocks made by hand, and on clips of other groups."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.data import SMALL_CONFIGS, small_model, write_processed
from utils.core.errors import InputError
from utils.data.clips import read_clips
from utils.layers import linear_maps
from utils.models.encoder_parts import EncoderParts


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return read_clips(write_processed(tmp_path_factory.mktemp("data")), "train")


def made(*blocks, n_clips=40, n_frames=30, size=8):
    """Return the states of random frames, and of what each block makes of them; half of the clips are in the first."""
    states = [torch.from_numpy(np.random.default_rng(0).normal(2, 1, (n_clips, n_frames, size)).astype(np.float32))]
    for block in blocks:
        states.append(block(states[-1]))
    return torch.stack(states), np.arange(n_clips) < n_clips // 2


def test_a_linear_block_leaves_nothing_and_an_unrelated_change_all():
    rng = np.random.default_rng(1)
    weights = torch.from_numpy(rng.normal(size=(8, 8)).astype(np.float32))
    noise = torch.from_numpy(rng.normal(size=(40, 30, 8)).astype(np.float32))
    states, in_first = made(lambda x: x + x @ weights + 1, lambda x: x + noise, lambda x: x, lambda x: x + 5)
    found = linear_maps.residual_of_states(states, in_first)
    assert found.residual[0, 1] < 1e-3
    change = (states[1] - states[0]).flatten(0, 1)
    around_mean = float(((change - change.mean(0)) ** 2).sum() / (change**2).sum())  # maps have an intercept
    assert found.null[0, 1] == pytest.approx(around_mean, abs=0.02)
    assert found.residual[1, 2] == pytest.approx(1, abs=0.05) and found.null[1, 2] == pytest.approx(1, abs=0.05)
    assert found.residual[2, 3] == found.null[2, 3] == 0  # nothing is changed
    assert found.residual[3, 4] < 1e-3 and found.null[3, 4] < 1e-3  # all frames change alike
    np.testing.assert_array_equal(np.isnan(found.residual), np.tri(5, dtype=bool))


def test_a_shuffled_block_is_at_its_null_level():
    """A block that is linear, but gives each clip what it made of another one."""
    rng = np.random.default_rng(1)
    weights, order = torch.from_numpy(rng.normal(size=(8, 8)).astype(np.float32)), rng.permutation(40)
    states, in_first = made(lambda x: x + (x - x.mean()) @ weights, lambda x: x + ((x - x.mean()) @ weights)[order])
    found = linear_maps.residual_of_states(states, in_first)
    assert found.residual[0, 1] < 1e-3
    assert found.residual[1, 2] == pytest.approx(found.null[1, 2], abs=0.05)
    assert found.null[1, 2] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", [name for name in SMALL_CONFIGS if "weighted" not in name])
def test_numbers_are_those_of_scikit_learn(name, train):
    torch.manual_seed(0)
    loaded = small_model(name)
    states = linear_maps._frames(loaded, train, 5)
    in_first = linear_maps.first_half(train.table, np.random.default_rng(3))
    found = linear_maps.residual_of_states(states, in_first).residual
    n_hidden, _, _, size = states.shape
    assert n_hidden == loaded.config.num_hidden_layers + 1
    for i in range(n_hidden - 1):
        for j in range(i + 1, n_hidden):
            wrong, total = 0.0, 0.0
            for fit in (in_first, ~in_first):
                x, change = (s.numpy().astype(float) for s in (states[i], states[j] - states[i]))
                rows = x[fit].reshape(-1, size)
                model = Ridge(alpha=linear_maps.PENALTY * rows.var(axis=0).mean() * len(rows))
                model.fit(rows, change[fit].reshape(-1, size))
                held_out = change[~fit].reshape(-1, size)
                wrong += ((held_out - model.predict(x[~fit].reshape(-1, size))) ** 2).sum()
                total += (held_out**2).sum()
            assert found[i, j] == pytest.approx(wrong / total, rel=0.01, abs=1e-4)


def test_frames_are_those_of_the_model_and_few_enough(train, monkeypatch):
    loaded = small_model("wav2vec2")
    inputs = loaded.prepare([train.audio(i) for i in range(len(train))], train.sample_rate_hz)
    with torch.inference_mode():
        expected = torch.stack([state.hidden_states for state in EncoderParts(loaded.model).hidden_layers(inputs)])
    torch.testing.assert_close(linear_maps._frames(loaded, train, 5), expected, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(linear_maps, "MOST_FRAMES", 4 * len(train))
    few = linear_maps._frames(loaded, train, 5)
    step = -(-expected.shape[2] // 4)
    assert few.shape[2] <= 4
    torch.testing.assert_close(few, expected[:, :, ::step], atol=1e-5, rtol=1e-4)


def test_of_many_clips_some_are_drawn_by_the_seed(train, monkeypatch):
    loaded, heard = small_model("wav2vec2"), []
    frames = linear_maps._frames
    monkeypatch.setattr(linear_maps, "MOST_CLIPS", 8)
    monkeypatch.setattr(
        linear_maps, "_frames", lambda loaded, clips, n: heard.append(clips) or frames(loaded, clips, n)
    )
    one, two, other = (linear_maps.linear_residual(loaded, train, 4, seed) for seed in (1, 1, 2))
    assert [len(clips) for clips in heard] == [8, 8, 8]
    np.testing.assert_array_equal(one.residual, two.residual)
    assert not np.array_equal(one.residual, other.residual, equal_nan=True)


@pytest.mark.parametrize("unit", ["group", "recording_id"])
def test_halves_have_no_unit_in_common_and_are_nearly_equal(unit):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"recording_id": rng.integers(0, 30, 200), "group": "one"})
    if unit == "group":
        table["group"] = table["recording_id"] // 3
    in_first = linear_maps.first_half(table, rng)
    assert not set(table.loc[in_first, unit]) & set(table.loc[~in_first, unit])
    assert abs(in_first.sum() - 100) <= table[unit].value_counts().max()


def test_clips_of_one_recording_are_refused():
    table = pd.DataFrame({"recording_id": ["a", "a"], "group": ["x", "x"]})
    with pytest.raises(InputError, match="all clips are of one recording; choose a larger --split"):
        linear_maps.first_half(table, np.random.default_rng(0))


def test_broken_weights_are_named():
    states, in_first = made(lambda x: x * np.nan)
    with pytest.raises(InputError, match="NaN or infinite: the weights of the model are broken"):
        linear_maps.residual_of_states(states, in_first)
