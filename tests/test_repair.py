"""Repair: the folded layers against the explicit map and scikit-learn, and what cannot be repaired."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from transformers import AutoModelForAudioClassification

from tests.data import SMALL_CONFIGS, small_model, write_processed
from utils.core.errors import UsageError
from utils.data.clips import read_clips
from utils.models import encoders, predict
from utils.models.encoder_parts import EncoderParts
from utils.pruning import layer_sweep, repair

STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
MODELS = [*((name, {}) for name in SMALL_CONFIGS if "weighted" not in name), ("wav2vec2", STABLE)]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return read_clips(write_processed(tmp_path_factory.mktemp("data")), "train")


def rough(name, options):
    """Return a small model whose blocks do much, as trained ones do: initial weights hardly change the states."""
    torch.manual_seed(0)
    loaded = small_model(name, **options)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return loaded


@pytest.mark.parametrize(("name", "options"), MODELS, ids=str)
def test_a_sweep_and_a_plain_model_repair_alike(name, options, train):
    """The shared walk, and every repaired model alone, give the same logits to 1e-5."""
    loaded = rough(name, options)
    n_layers = loaded.config.num_hidden_layers
    keeps = [
        keep
        for n in range(1, n_layers + 1)
        for keep in itertools.combinations(range(n_layers), n)
        if name != "wavlm" or 0 in keep
    ]
    repairer = repair.Repairer(loaded, train, batch_size=5)
    repairs = repairer.fit(keeps)
    (swept,) = [np.concatenate(list(layer_sweep.logits_by_batch(loaded, train, keeps, 5, repairs=repairs)), axis=1)]
    for keep, together in zip(keeps, swept, strict=True):
        alone = predict.predict(repair.repaired_copy(loaded, keep, repairer), train, 5)
        np.testing.assert_allclose(together, alone, atol=1e-5 * max(1.0, np.abs(alone).max()), err_msg=str(keep))
    whole = predict.predict(loaded, train, 5)
    np.testing.assert_allclose(swept[-1], whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(("name", "options"), MODELS, ids=str)
def test_a_repaired_block_gives_what_the_whole_model_gave(name, options, train):
    """The states after a repaired block are nearer to those of the whole model than without repair."""
    loaded = rough(name, options)
    keep, n_layers = (0, 2), loaded.config.num_hidden_layers
    repaired = repair.repaired_copy(loaded, keep, repair.Repairer(loaded, train, batch_size=6))
    inputs = loaded.prepare([train.audio(i) for i in range(len(train))], train.sample_rate_hz)
    with torch.inference_mode():
        wanted = list(EncoderParts(loaded.model).hidden_layers(inputs))[n_layers].hidden_states
        errors = {}
        for what, model in (("repaired", repaired.model), ("removed", encoders.pruned_copy(loaded, keep).model)):
            found = list(EncoderParts(model).hidden_layers(inputs))[-1].hidden_states
            errors[what] = float(((found - wanted) ** 2).mean() / wanted.var())
    print(name, options, errors)
    assert errors["repaired"] < 0.8 * errors["removed"]
    assert repaired.config.repair == {"method": "linear", "n_clips": len(train), "ridge": repair.RIDGE}
    assert encoders.count_parameters(repaired.model) == encoders.count_parameters(
        encoders.pruned_copy(loaded, keep).model
    )


def inputs_and_outputs(model, inputs, paths):
    """Return what some modules of a model of transformers read and give for inputs."""
    seen, handles = {}, []
    for path in paths:
        handles.append(
            model.get_submodule(path).register_forward_hook(
                lambda _, args, output, path=path: seen.update({path: (args[0], output)})
            )
        )
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "options", "blocks", "last", "norm"),
    [
        ("whisper", {}, "encoder.layers", "fc2", None),
        ("ast", {}, "audio_spectrogram_transformer.layers", "mlp.fc2", None),
        ("wav2vec2", STABLE, "wav2vec2.encoder.layers", "feed_forward.output_dense", None),
        ("wav2vec2", {}, "wav2vec2.encoder.layers", "feed_forward.output_dense", "final_layer_norm"),
        ("hubert", {}, "hubert.encoder.layers", "feed_forward.output_dense", "final_layer_norm"),
    ],
)
def test_the_saved_layers_are_those_of_scikit_learn(name, options, blocks, last, norm, train, tmp_path):
    """Blocks 0 and 2 of three, as transformers runs them: each is fitted by hand to what the whole model gave."""
    loaded = rough(name, options)
    inputs = loaded.prepare([train.audio(i) for i in range(len(train))], train.sample_rate_hz)
    wanted_of = inputs_and_outputs(
        loaded.model,
        inputs,
        [f"{blocks}.{i}.{part}" for i in (1, 2) for part in (norm, last) if part] + [f"{blocks}.{i}" for i in (1, 2)],
    )
    pruned = encoders.pruned_copy(loaded, (0, 2)).model
    for own, whole in enumerate((1, 2)):
        paths = [f"{blocks}.{own}", *(f"{blocks}.{own}.{part}" for part in (last, norm) if part)]
        seen = inputs_and_outputs(pruned, inputs, paths)
        linear = pruned.get_submodule(paths[1])
        features, given = seen[paths[1]]
        if norm is None:
            total, target, weights = first(seen[paths[0]][1]), first(wanted_of[f"{blocks}.{whole}"][1]), None
        else:  # before the norm; a frame keeps its present mean and scale, and counts by the error behind the norm
            total, target = seen[paths[2]][0], wanted_of[f"{blocks}.{whole}.{norm}"][0]
            mean, scale = total.mean(-1, keepdim=True), total.std(-1, keepdim=True, unbiased=False)
            target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True, unbiased=False)
            target, weights = target * scale + mean, scale.double().numpy().ravel() ** -2
        x = features.flatten(0, 1).double().numpy()
        y = (target - total + given).flatten(0, 1).double().numpy()  # without the residual stream
        before = linear.weight.detach().double().numpy().T
        n_rows = len(x) if weights is None else weights.sum()
        variance = np.average((x - np.average(x, 0, weights)) ** 2, 0, weights).mean()
        fitted = Ridge(alpha=repair.RIDGE * variance * n_rows).fit(x, y - x @ before, sample_weight=weights)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(before.T + fitted.coef_))
            linear.bias.copy_(torch.from_numpy(fitted.intercept_))
            if norm is not None:
                pruned.get_submodule(paths[2]).load_state_dict(
                    loaded.model.get_submodule(f"{blocks}.{whole}.{norm}").state_dict()
                )
    repairer = repair.Repairer(loaded, train, batch_size=5)
    encoders.save_model(repair.repaired_copy(loaded, (0, 2), repairer), tmp_path)
    found = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    for own in (0, 1):
        for part in ("weight", "bias"):
            path = f"{blocks}.{own}.{last}.{part}"
            torch.testing.assert_close(found.state_dict()[path], pruned.state_dict()[path], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, pruned(**inputs).logits, rtol=1e-3, atol=1e-3)


def first(output):
    """Return the hidden states of a block, which some give in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def test_blocks_that_are_as_in_the_whole_model_stay_as_they_are(train):
    repairs = repair.Repairer(rough("wav2vec2", {}), train, 6).fit([(0, 1), (0, 1, 2)])
    assert set(repairs) == {((0, 1), 3)}  # only what the head reads after block 1 has changed


def test_the_same_layers_whether_fitted_alone_or_in_shares(train, monkeypatch):
    loaded = rough("whisper", {})
    keeps = [(0,), (0, 2), (1,), (1, 2), (2,)]
    repairer = repair.Repairer(loaded, train, 6)
    together = repairer.fit(keeps)
    monkeypatch.setattr(repair, "MOST_STATE_BYTES", 0)  # a block runs again for each reader
    for place, layer in repairer.fit(keeps).items():
        torch.testing.assert_close(layer.weight, together[place].weight, rtol=0, atol=0)
    one_layer = 4 * loaded.model.encoder.layers[0].fc2.weight.numel()
    monkeypatch.setattr(repair, "MOST_BYTES", 3 * one_layer)
    shares = list(repairer.shares(keeps))
    assert [keep for share in shares for keep in share] == keeps
    assert len(shares) > 1
    alone = {place: layer for share in shares for place, layer in repairer.fit(share).items()}
    assert alone.keys() == together.keys()
    for place, layer in alone.items():
        torch.testing.assert_close(layer.weight, together[place].weight, rtol=0, atol=0)


def test_a_gap_at_the_start_is_repaired_too(train):
    """No block stands before the gap: the blocks after it take its work over."""
    loaded = rough("whisper", {})
    repairer = repair.Repairer(loaded, train, 6)
    wanted = predict.predict(loaded, train, 6)
    repaired = predict.predict(repair.repaired_copy(loaded, (1, 2), repairer), train, 6)
    removed = predict.predict(encoders.pruned_copy(loaded, (1, 2)), train, 6)
    assert np.abs(repaired - wanted).mean() < 0.5 * np.abs(removed - wanted).mean()


def test_narrowed_blocks_are_repaired_toward_the_whole_model(train):
    """Blocks 0 and 2 with half of their units: their last layers still come near the states of the whole model."""
    whole = rough("whisper", {})
    narrow = encoders.pruned_copy(whole, (0, 2))
    with torch.no_grad():
        for block in narrow.model.encoder.layers:
            block.fc2.weight[:, ::2] = 0
    repairer = repair.Repairer(narrow, train, 6, whole=whole, blocks=(0, 2))
    wanted = predict.predict(whole, train, 6)
    before, after = (
        np.abs(predict.predict(model, train, 6) - wanted).mean()
        for model in (narrow, repair.repaired_copy(narrow, (0, 1), repairer))
    )
    assert after < 0.5 * before


def test_only_some_frames_enter_the_regression_where_there_are_many(train, monkeypatch):
    monkeypatch.setattr(repair, "MOST_ROWS", 40)
    repairer = repair.Repairer(rough("wav2vec2", {}), train, 6)
    repairer.fit([(0, 2)])
    assert all(len(rows) <= 2 * 40 for rows in repairer._targets.values())


def test_clips_are_drawn_without_their_labels_and_the_same_again(train):
    drawn = train.drawn(7, seed=3)
    assert len(drawn) == 7
    assert drawn.table["clip_id"].tolist() == train.drawn(7, seed=3).table["clip_id"].tolist()
    assert drawn.table.index.is_monotonic_increasing
    assert train.drawn(10_000, seed=3) is train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_weighted_layer_sum": True}, "reads all its layers"),
        ({"do_stable_layer_norm": True, "adapter_attn_dim": 4}, "end with adapters"),
    ],
)
def test_a_model_that_cannot_be_repaired_says_why(options, message, train):
    with pytest.raises(UsageError, match=message):
        repair.Repairer(small_model("wav2vec2", **options), train, 6)
