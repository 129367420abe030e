"""Width: importance against brute force, and cut models against masked ones, for every architecture."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForAudioClassification

from tests.data import SMALL_CONFIGS, SMALL_WAVEFORM_CONFIGS, small_model, write_annotated, write_processed
from utils.core.errors import InputError, UsageError
from utils.data import clips
from utils.models import architectures, encoders, start_line
from utils.models.model_size import SizeCounter
from utils.pruning import width

CONVOLUTIONAL = {
    **SMALL_WAVEFORM_CONFIGS,
    "wav2vec2-stable-layer-norm": SMALL_CONFIGS["wav2vec2-stable-layer-norm"],
    "wav2vec2-weighted-layer-sum": SMALL_CONFIGS["wav2vec2-weighted-layer-sum"],
}
CASES = [(name, ("ffn_size",)) for name in SMALL_CONFIGS]
CASES += [(name, widths) for name in CONVOLUTIONAL for widths in (("conv_channels",), ("ffn_size", "conv_channels"))]
CASES += [("ast", ("heads",)), ("ast", ("ffn_size", "heads"))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


@pytest.fixture(scope="module")
def train_clips(data_dir):
    return clips.read_clips(data_dir, "train")


def lively(name, **options):
    """Return a small model whose weights and biases are all random, so that every error of a cut changes its logits."""
    torch.manual_seed(0)
    loaded = small_model(name, **options)
    for parameter in loaded.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    loaded.config.clip_seconds = 0.5
    return loaded


def inputs_of(loaded, train_clips, n=2):
    return loaded.prepare([train_clips.audio(i) for i in range(n)], train_clips.sample_rate_hz)


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


class KeptNorm(nn.Module):
    """A layer norm over some of its channels, written down by hand."""

    def __init__(self, norm, kept):
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x):
        of_kept = x[..., self.kept]
        mean, variance = of_kept.mean(-1, keepdim=True), of_kept.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + self.norm.eps).sqrt() * self.norm.weight + self.norm.bias


def mask(model, channels, units):
    """Turn the other channels of a model to zero where they are read; layer norms are over the kept channels."""
    kept = torch.as_tensor((np.asarray(units)[:, None] * channels.size + np.arange(channels.size)).reshape(-1))
    for path in channels.norms:
        norm = model.get_submodule(path)
        if isinstance(norm, nn.LayerNorm):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, KeptNorm(norm, kept))
    reader = model.get_submodule(channels.reader)
    gate = torch.zeros(reader.weight.shape[1])
    gate[kept] = 1
    reader.register_forward_pre_hook(
        lambda _, args: ((args[0].movedim(channels.axis, -1) * gate).movedim(-1, channels.axis),)
    )


# ------------------------------------------------------------------------------------------------- cut


@pytest.mark.parametrize("keep", [[0, 1, 2], [0, 2]], ids=["whole", "without a block"])
@pytest.mark.parametrize(("name", "widths"), CASES)
def test_a_cut_model_equals_the_masked_one_and_loads_plainly(name, widths, keep, train_clips, tmp_path):
    loaded = lively(name)
    encoders.prune_model(loaded.model, keep)
    masked, inputs = copy.deepcopy(loaded.model), inputs_of(loaded, train_clips)
    changes = width.changes_of(loaded.config, dict.fromkeys(widths, 0.5))
    rng = np.random.default_rng(0)
    importance = {}
    for kind in widths:
        groups = width.channels_of(loaded.model, kind)
        sizes = [loaded.model.get_submodule(group.reader).weight.shape[1] // group.size for group in groups]
        importance[kind] = [rng.random(size) for size in sizes]
        for group, numbers in zip(groups, importance[kind], strict=True):
            mask(masked, group, width.most_important(numbers, len(numbers) // 2))
    counter, before = SizeCounter(loaded), logits_of(loaded.model, inputs)
    width.narrow(loaded.model, importance, changes, width.ACTIVATION)
    encoders.save_model(loaded, tmp_path / "model")

    reloaded, report = AutoModelForAudioClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found, expected = logits_of(reloaded.eval(), inputs), logits_of(masked, inputs)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, before, atol=1e-3), "the cut changes the logits, so the comparison says something"
    flat = {key: value for values in changes.values() for key, value in values.items()}
    counted = counter.size_of(list(range(len(keep))), flat)
    assert counted.n_parameters == encoders.count_parameters(reloaded)
    assert counted.widths == architectures.widths_of(reloaded.config)


def test_the_config_says_what_was_cut(tmp_path):
    loaded = lively("wav2vec2")
    model = loaded.model
    model.config.name_or_path = "somebody/wav2vec2"
    assert start_line.describe_model(model).startswith("wav2vec2, 3 blocks, 0.0")

    def cut(**asked):
        changes = width.changes_of(model.config, asked)
        importance = {
            kind: [np.arange(model.get_submodule(group.reader).weight.shape[1]) for group in groups]
            for kind in changes
            if (groups := width.channels_of(model, kind))
        }
        width.narrow(model, importance, changes, width.TAYLOR)

    cut(ffn_size=1.0)
    assert encoders.kind_of(model.config) == "whole" and not hasattr(model.config, "width_from"), "nothing was cut"
    cut(ffn_size=48)
    cut(ffn_size=0.5, conv_channels=0.25)
    assert model.config.intermediate_size == 24 and list(model.config.conv_dim) == [4, 4, 4]
    encoders.save_model(loaded, tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.width_from == {"ffn_size": 64, "conv_channels": 48} and config.width_importance == "taylor"
    assert config.pruned_from == "somebody/wav2vec2" and encoders.kind_of(config) == "pruned before"
    assert "ffn_size 24 of 64, conv_channels 12 of 48" in start_line.describe_model(model)
    model.config.data_sha256 = "0"
    cut(ffn_size=0.5)
    assert encoders.kind_of(model.config) == "pruned after"


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("wav2vec2", {"ffn_size": 65}, "--ffn_size 65: this model has 64 in each block"),
        ("whisper", {"conv_channels": 0.5}, "--conv_channels: Whisper has no convolutions"),
        ("ast", {"conv_channels": 0.5}, "--conv_channels: AST has no convolutions"),
        ("ast", {"heads": 3}, "--heads 3: this model has 2"),
        *((name, {"heads": 1}, "--heads: the attention of .* no config holds fewer") for name in ("wavlm", "whisper")),
    ],
)
def test_impossible_widths(name, asked, words):
    with pytest.raises(UsageError, match=words):
        width.changes_of(small_model(name).config, asked)


def test_the_configs_that_cannot_hold_fewer_heads_cannot():
    """The reason that --heads gives; a version of transformers in which it no longer holds is found here."""
    for name in SMALL_CONFIGS:
        loaded = small_model(name)
        path = architectures.architecture_of(loaded.config).blocks
        before = sum(p.numel() for p in loaded.model.get_submodule(path).parameters())
        config = copy.deepcopy(loaded.config)
        config.num_attention_heads, config.head_dim = 1, 16
        narrower = AutoModelForAudioClassification.from_config(config)
        n_parameters = sum(p.numel() for p in narrower.get_submodule(path).parameters())
        can = architectures.architecture_of(loaded.config).attention is not None
        # Less than a head's layers can differ: WavLM has an embedding and a gate for each head.
        assert (before - n_parameters > 3 * 16 * 32) == can, name


# ------------------------------------------------------------------------------------------ importance


def measured(loaded, train_clips, method, widths, path, **key):
    return width.measure(loaded, train_clips, method, widths, path, key)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-stable-layer-norm", "hubert", "whisper", "ast", "beats"])
def test_activation_is_the_mean_change_of_the_readers_output(name, train_clips, tmp_path):
    """Brute force: leave out one unit, and measure by how much the output of the layer that reads it changes."""
    loaded = lively(name)
    some = train_clips.only(range(5))  # more than one batch, the last one smaller
    widths = list(architectures.widths_of(loaded.config))
    found = measured(loaded, some, width.ACTIVATION, widths, tmp_path / "sums.npz")
    n_samples = len(some.audio(0))
    for kind in widths:
        for group, numbers in list(zip(width.channels_of(loaded.model, kind), found[kind], strict=True))[-2:]:
            reader, seen = loaded.model.get_submodule(group.reader), []
            handle = reader.register_forward_hook(
                lambda module, args, output, seen=seen: seen.append((args[0], output))
            )
            logits_of(loaded.model, inputs_of(loaded, some, 5))
            handle.remove()
            read, output = seen[0]
            for unit in (0, len(numbers) - 1):
                change = 0
                for channel in range(unit * group.size, (unit + 1) * group.size):
                    without = read.movedim(group.axis, -1).clone()
                    without[..., channel] = 0
                    with torch.no_grad():
                        other = reader(without.movedim(-1, group.axis))
                    effect = output - other
                    if group.axis == 1:  # what one frame adds to all places where the convolution reads it
                        weight = reader.weight.detach()[:, channel]
                        effect = read[:, channel, :, None] * weight.flatten()
                    else:
                        hears = architectures.architecture_of(loaded.config).hears
                        effect = effect[:, hears(loaded.model, loaded.extractor, n_samples, effect.shape[1])]
                    change += effect.norm(dim=-1).mean()
                assert numbers[unit] == pytest.approx(float(change), rel=1e-3), (group, unit)


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "ast"])
def test_taylor_is_the_slope_of_the_loss_along_a_gate(name, train_clips, tmp_path):
    """Brute force: turn a unit down a little, in double precision, and divide the change of the loss by it."""
    loaded = lively(name)
    some = train_clips.only(range(5))
    widths = list(architectures.widths_of(loaded.config))
    found = measured(loaded, some, width.TAYLOR, widths, tmp_path / "sums.npz")
    inputs = {key: value.double() for key, value in inputs_of(loaded, some, 5).items()}
    model, labels = copy.deepcopy(loaded.model).double(), torch.tensor(some.table["label_id"].to_numpy()).long()
    step = 1e-5
    for kind in widths:
        group, numbers = width.channels_of(model, kind)[1], found[kind][1]
        for unit in range(0, len(numbers), 5):
            rows = slice(unit * group.size, (unit + 1) * group.size)

            def turned(args, by, rows=rows, axis=group.axis):
                gate = torch.ones(args[0].shape[axis], dtype=torch.float64)
                gate[rows] += by
                return ((args[0].movedim(axis, -1) * gate).movedim(-1, axis),)

            losses = []
            for by in (step, -step):
                handle = model.get_submodule(group.reader).register_forward_pre_hook(
                    lambda _, args, by=by, turned=turned: turned(args, by)
                )
                losses.append(nn.functional.cross_entropy(logits_of(model, inputs), labels, reduction="none"))
                handle.remove()
            slope = float(((losses[0] - losses[1]) / (2 * step)).abs().mean())
            assert numbers[unit] == pytest.approx(slope, rel=2e-3, abs=1e-7), (group, unit)


@pytest.mark.parametrize("method", width.IMPORTANCES)
def test_a_unit_that_is_always_zero_goes_first(method, train_clips, tmp_path):
    loaded = lively("wav2vec2")
    model = loaded.model
    dead = {"ffn_size": [], "conv_channels": []}
    for kind, units in dead.items():
        for number, group in enumerate(width.channels_of(model, kind)):
            writer = model.get_submodule(group.writers[0])
            norms = [model.get_submodule(path) for path in group.norms]
            for module in norms or [writer]:  # GELU(0) is 0
                module.weight.data[number + 1] = 0
                if module.bias is not None:
                    module.bias.data[number + 1] = 0
            units.append(number + 1)
    found = measured(loaded, train_clips.only(range(4)), method, list(dead), tmp_path / "sums.npz")
    for kind, units in dead.items():
        for numbers, unit in zip(found[kind], units, strict=True):
            assert numbers[unit] == 0 and numbers.argmin() == unit
            assert unit not in width.most_important(numbers, len(numbers) - 1)


def test_importance_of_a_small_case_by_hand(train_clips, tmp_path):
    """One unit doubles another's activation and has a third of its outgoing weights: two thirds of its importance."""
    loaded = lively("whisper")
    block = architectures.blocks_of(loaded.model)[0]
    block.activation_fn = nn.Identity()
    block.fc1.weight.data[1], block.fc1.bias.data[1] = 2 * block.fc1.weight.data[0], 2 * block.fc1.bias.data[0]
    block.fc2.weight.data[:, 1] = block.fc2.weight.data[:, 0] / 3
    some = train_clips.only(range(3))
    for method in width.IMPORTANCES:
        numbers = measured(loaded, some, method, ["ffn_size"], tmp_path / "sums.npz")["ffn_size"][0]
        assert numbers[1] / numbers[0] == pytest.approx(2 / 3, rel=1e-4)


def test_the_most_important():
    assert list(width.most_important(np.array([1.0, 3.0, 2.0, 3.0, 1.0]), 3)) == [1, 2, 3]
    assert list(width.most_important(np.array([1.0, 1.0, 1.0]), 2)) == [0, 1], "of equal ones, the first"


def test_taylor_with_several_labels_leaves_out_unknown_ones(tmp_path):
    data = clips.read_clips(write_annotated(tmp_path / "data"), "train")
    loaded = lively("wav2vec2")
    loaded.config.problem_type = "multi_label_classification"
    whole = measured(loaded, data, width.TAYLOR, ["ffn_size"], tmp_path / "a.npz")["ffn_size"]
    is_unknown = [i for i in range(len(data)) if not data.is_known[i].all()]
    assert is_unknown
    # A model that knows nothing but the secondary label of a clip learns nothing from it.
    data.is_known[:] = False
    nothing = measured(loaded, data, width.TAYLOR, ["ffn_size"], tmp_path / "b.npz")["ffn_size"]
    assert all((numbers > 0).any() for numbers in whole) and not any(numbers.any() for numbers in nothing)


def test_broken_weights_are_told(train_clips, tmp_path):
    loaded = lively("wav2vec2")
    architectures.blocks_of(loaded.model)[0].feed_forward.intermediate_dense.bias.data[:] = torch.nan
    with pytest.raises(InputError, match="importance of some units is NaN"):
        measured(loaded, train_clips.only(range(2)), width.ACTIVATION, ["ffn_size"], tmp_path / "sums.npz")


@pytest.mark.parametrize("method", width.IMPORTANCES)
def test_a_kill_changes_nothing(method, train_clips, tmp_path, monkeypatch):
    loaded = lively("wav2vec2")
    monkeypatch.setattr(width, "SAVE_EVERY_S", 0.0)
    whole = measured(loaded, train_clips, method, ["ffn_size"], tmp_path / "whole.npz", data="1")["ffn_size"]
    written = []

    def killed(*args):
        write(*args)
        written.append(args[-1])
        if len(written) == 2:
            raise KeyboardInterrupt

    write = width._write
    monkeypatch.setattr(width, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(loaded, train_clips, method, ["ffn_size"], tmp_path / "sums.npz", data="1")
    again = measured(loaded, train_clips, method, ["ffn_size"], tmp_path / "sums.npz", data="1")["ffn_size"]
    assert written[:3] == [4, 8, 12], "the second call continues after the clips that are done"
    assert all(np.array_equal(first, second) for first, second in zip(whole, again, strict=True))
    monkeypatch.setattr(width, "_activation_sums" if method == width.ACTIVATION else "_taylor_sums", None)
    measured(loaded, train_clips, method, ["ffn_size"], tmp_path / "sums.npz", data="1")
    with pytest.raises(TypeError):
        measured(loaded, train_clips, method, ["ffn_size"], tmp_path / "sums.npz", data="2")
    (tmp_path / "sums.npz").write_bytes(b"PK")
    with pytest.raises(TypeError):
        measured(loaded, train_clips, method, ["ffn_size"], tmp_path / "sums.npz", data="1")
