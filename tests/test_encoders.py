"""Loading, pruning and saving, for every architecture, against plain transformers."""

import copy
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    pipeline,
)

from tests.data import (
    LABELS,
    SMALL_CONFIGS,
    SMALL_WAVEFORM_CONFIGS,
    small_extractor,
    small_model,
    write_processed,
)
from tests.stages import ROOT, load_stage
from utils.core.errors import InputError, UsageError
from utils.data.clips import read_clips
from utils.models import architectures, bird_cnn, encoders, model_folder, training, training_history
from utils.models.loaded_model import prepare

N_LAYERS = 3
SECOND = 16_000


def clips_of_noise(n: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((n, SECOND // 2)).astype(np.float32))


def logits_of(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("n_kept", range(N_LAYERS + 1))
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_save_reload_equal_logits_and_pipeline(name, n_kept, tmp_path):
    if name == "wav2vec2-weighted-layer-sum" and n_kept == 0:
        pytest.skip("a weighted sum of no layers is refused; see test_impossible_layer_lists")
    loaded = small_model(name)
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    keep = list(range(n_kept))
    encoders.prune_model(loaded.model, keep)
    encoders.save_model(loaded, tmp_path / "model")

    reloaded, report = AutoModelForAudioClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert reloaded.config.num_hidden_layers == len(architectures.blocks_of(reloaded)) == n_kept
    assert reloaded.config.kept_layers == keep
    assert torch.equal(logits_of(reloaded.eval(), inputs), logits_of(loaded.model, inputs))

    classify = pipeline("audio-classification", model=str(tmp_path / "model"), device="cpu")
    answer = classify({"raw": clips_of_noise(1)[0], "sampling_rate": SECOND})
    assert {row["label"] for row in answer} == set(LABELS)
    assert sum(row["score"] for row in answer) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_pruning_equals_skipping_the_blocks(name):
    """A pruned model computes what the whole one does when the removed blocks hand their input on."""
    loaded = small_model(name)
    model = loaded.model
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    if name == "wav2vec2-weighted-layer-sum":
        pytest.skip("it also pools the outputs of the skipped blocks")
    removed = architectures.blocks_of(model)[1]

    def hand_on(module, args, kwargs, output):
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

    handle = removed.register_forward_hook(hand_on, with_kwargs=True)
    skipped = logits_of(model, inputs)
    handle.remove()
    whole = logits_of(model, inputs)
    encoders.prune_model(model, [0, 2])
    assert torch.equal(logits_of(model, inputs), skipped)
    assert not torch.equal(skipped, whole)  # of SEW with small random weights by little more than 1e-6


def test_kept_layers_count_in_the_base_models_numbering():
    model = small_model("wav2vec2").model
    model.config.name_or_path = "somebody/wav2vec2"
    second = architectures.blocks_of(model)[2]
    encoders.prune_model(model, [0, 2])
    encoders.prune_model(model, [1])
    assert model.config.kept_layers == [2]
    assert model.config.pruned_from == "somebody/wav2vec2"
    assert architectures.blocks_of(model)[0] is second


def test_a_model_knows_when_it_was_pruned(tmp_path):
    data = read_clips(write_processed(tmp_path / "data"), "train")

    def train(model, data_sha256="0"):
        encoders.configure_for_training(model, data, [], data_sha256)

    loaded = small_model("hubert")
    model = loaded.model
    assert encoders.kind_of(model.config) == "whole"
    train(model)
    encoders.prune_model(model, [0, 1, 2])
    assert encoders.kind_of(model.config) == "whole"
    encoders.prune_model(model, [0, 2])
    encoders.save_model(loaded, tmp_path / "after")
    assert encoders.kind_of(AutoConfig.from_pretrained(tmp_path / "after")) == "pruned after"
    for heal in (lambda: encoders.configure_for_training(model, data, []), lambda: train(model)):  # by 05, by 02
        heal()
        assert encoders.kind_of(model.config) == "pruned after"
    train(model, "other data")
    assert encoders.kind_of(model.config) == "pruned before"

    model = small_model("hubert").model
    encoders.prune_model(model, [0])
    assert encoders.kind_of(model.config) == "pruned before"
    train(model)
    assert encoders.kind_of(model.config) == "pruned before"
    assert encoders.kind_of(bird_cnn.WaveformCnnConfig()) == "CNN"


def test_impossible_layer_lists():
    model = small_model("wavlm").model
    for keep, words in [([1], "relative positions"), ([0, 3], "from 0 to 2"), ([1, 0], "ascending"), ([0, 0], "asc")]:
        with pytest.raises(UsageError, match=words):
            encoders.prune_model(model, keep)
    assert len(architectures.blocks_of(model)) == N_LAYERS
    encoders.prune_model(model, [])
    weighted = small_model("wav2vec2-weighted-layer-sum").model
    with pytest.raises(UsageError, match="keep at least one"):
        encoders.prune_model(weighted, [])


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_front_end_is_the_input_of_the_first_block(name):
    loaded = small_model(name)
    model = loaded.model
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    with torch.no_grad():
        front = encoders.front_end_forward(model, inputs)
        whole = model(**inputs, output_hidden_states=True)
    assert torch.equal(front, whole.hidden_states[0])
    assert torch.equal(logits_of(model, inputs), whole.logits), "the hook is gone"


def test_front_end_without_blocks_is_what_the_head_sees():
    loaded = small_model("wav2vec2")
    model = loaded.model
    encoders.prune_model(model, [])
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    with torch.no_grad():
        pooled = model.projector(encoders.front_end_forward(model, inputs)).mean(dim=1)
        assert torch.equal(model.classifier(pooled), model(**inputs).logits)


def test_parameters_of_wav2vec2_base():
    """methods.md §5: 7,087,872 a block + 9,523,107 with a 35-class head."""
    with torch.device("meta"):
        model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=35))
    assert encoders.count_parameters(model) == 12 * 7_087_872 + 9_523_107
    encoders.prune_model(model, [0, 5, 11])
    assert encoders.count_parameters(model) == 3 * 7_087_872 + 9_523_107


# ------------------------------------------------------------------------------------- base models


def old_hub_folder(folder, **config):
    """Write a checkpoint as the hub has them from 2021: CTC head, weight_g/weight_v, pytorch_model.bin."""
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**{**SMALL_CONFIGS["wav2vec2"]().to_dict(), "vocab_size": 8, **config}))
    weights = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in model.state_dict().items()
    }
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in weights
    folder.mkdir()
    model.config.architectures = ["Wav2Vec2ForCTC"]
    model.config.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return model, weights


def test_old_checkpoint_loads_with_only_the_head_new(tmp_path):
    source, weights = old_hub_folder(tmp_path / "old")
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    base = encoders.load_base_model(str(tmp_path / "old"), LABELS)
    model = base.model
    loaded, wanted = model.wav2vec2.state_dict(), source.wav2vec2.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.layerdrop == 0.0
    encoders.prune_model(model, [0, 2])
    encoders.save_model(base, tmp_path / "new")
    assert not list((tmp_path / "new").glob("*.bin"))


def test_anything_missing_but_the_head_is_an_error_that_names_it(tmp_path):
    _, weights = old_hub_folder(tmp_path / "old")
    del weights["wav2vec2.encoder.layers.1.attention.k_proj.weight"]
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"encoder\.layers\.1\.attention\.k_proj\.weight"):
        encoders.load_base_model(str(tmp_path / "old"), LABELS)


def test_weights_of_another_shape_are_refused_but_another_head_is_replaced(tmp_path):
    loaded = small_model("hubert", ["a", "b", "c", "d", "e"])
    encoders.save_model(loaded, tmp_path / "five")
    base = encoders.load_base_model(str(tmp_path / "five"), LABELS).model
    assert base.classifier.out_features == len(LABELS)
    last, wanted = (m.hubert.encoder.layers[2].feed_forward.output_dense.weight for m in (base, loaded.model))
    assert torch.equal(last, wanted)
    config = json.loads((tmp_path / "five" / "config.json").read_text())
    (tmp_path / "five" / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(InputError, match="feed_forward"):
        encoders.load_base_model(str(tmp_path / "five"), LABELS)


@pytest.mark.parametrize(
    ("name", "options", "settled"),
    [
        ("wav2vec2", {"return_dict": False, "output_hidden_states": True}, {"return_dict": True}),
        ("hubert", {"layerdrop": 0.5, "output_attentions": True}, {"layerdrop": 0.0, "output_attentions": False}),
        ("whisper", {"encoder_layerdrop": 0.5, "return_dict": False}, {"encoder_layerdrop": 0.0}),
        ("wavlm", {"problem_type": "multi_label_classification"}, {"problem_type": "single_label_classification"}),
        ("unispeech-sat", {"dtype": "float16"}, {"dtype": torch.float32}),
    ],
)
def test_options_that_only_change_what_is_returned_or_skipped_are_settled(name, options, settled, tmp_path):
    """transformers 5.23.0 cannot run a classifier with return_dict false; Whisper reads its layerdrop once."""
    source = AutoModelForAudioClassification.from_config(SMALL_CONFIGS[name]())

    def save(folder):
        source.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **options}))

    save(tmp_path / "base")
    small_extractor(name).save_pretrained(tmp_path / "base")
    loaded = encoders.load_base_model(str(tmp_path / "base"), LABELS)
    model = loaded.model
    assert {key: getattr(model.config, key) for key in settled} == settled
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    with torch.no_grad():
        assert list(model(**inputs).keys()) == ["logits"]
    if name == "whisper":
        assert model.encoder.layerdrop == 0.0
    encoders.save_model(loaded, tmp_path / "tuned")
    save(tmp_path / "tuned")  # a classifier of somebody else's
    tuned = encoders.load_model(tmp_path / "tuned", "cpu").model
    with torch.no_grad():
        assert list(tuned(**inputs).keys()) == ["logits"]


@pytest.mark.parametrize(
    ("version", "after_norm"),
    [("4.57.1", True), ("5.15.0", True), ("4.9.0.dev0", True), ("5.16.0", False), ("5.23.0", False), ("", False)],
)
def test_a_weighted_sum_is_that_of_the_transformers_that_made_it(version, after_norm, tmp_path):
    """transformers 5.16.0 began to take the last layer before the final norm: other logits for the same weights."""
    loaded = small_model("hubert", do_stable_layer_norm=True, use_weighted_layer_sum=True)
    model = loaded.model
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    encoders.save_model(loaded, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "transformers_version": version}))

    inputs = loaded.prepare(clips_of_noise(), SECOND)
    with torch.no_grad():
        layers = list(model(**inputs, output_hidden_states=True).hidden_states)
        if after_norm:
            layers[-1] = model.hubert.encoder.layer_norm(layers[-1])
        weights = model.layer_weights.softmax(dim=0)
        summed = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
        expected = model.classifier(model.projector(summed).mean(dim=1))
    loaded = encoders.load_model(tmp_path / "model", "cpu")
    torch.testing.assert_close(logits_of(loaded.model, inputs), expected, rtol=1e-5, atol=1e-5)
    encoders.save_model(loaded, tmp_path / "again")  # now by the transformers of today
    again = encoders.load_model(tmp_path / "again", "cpu").model
    assert torch.equal(logits_of(again, inputs), logits_of(loaded.model, inputs))


def test_an_adapter_after_the_encoder_is_refused_by_its_option(tmp_path):
    encoders.save_model(small_model("wav2vec2"), tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_adapter": True}))
    with pytest.raises(InputError, match=r"does not support the use of Wav2Vec2 adapters \(config\.add_adapter"):
        encoders.load_base_model(str(tmp_path / "base"), LABELS)


@pytest.mark.parametrize("name", SMALL_WAVEFORM_CONFIGS)
def test_no_encoder_masks_its_input_unasked(name, tmp_path):
    """data2vec-audio of transformers 5.23.0 masks where its config says nothing."""
    clips = read_clips(write_processed(tmp_path / "data"), "train")
    names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "conformer_conv_dropout")
    still = dict.fromkeys(names, 0.0)
    for augment in ([], ["specaugment"]):
        loaded = small_model(name, **still, layerdrop=0.0, mask_time_prob=0.5, mask_time_length=2)
        model = loaded.model
        encoders.configure_for_training(model, clips, augment)
        inputs = loaded.prepare(clips_of_noise(), SECOND)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):  # of a conformer: in training it reads the batch
                module.eval()
        same = torch.allclose(logits_of(model, inputs), logits_of(model.eval(), inputs), atol=1e-6)
        assert same == (not augment)


def test_a_training_without_masking_does_not_turn_it_off_for_the_next(tmp_path):
    """So the head is trained first, without augmentation, and then all layers, with it."""
    clips = read_clips(write_processed(tmp_path / "data"), "train")
    for of_base in (True, False):
        loaded = small_model("wav2vec2", apply_spec_augment=of_base)
        for augment, masks in (([], False), (["specaugment"], of_base), ([], False), (["specaugment"], of_base)):
            encoders.configure_for_training(loaded.model, clips, augment)
            encoders.save_model(loaded, tmp_path / "model")
            loaded = encoders.load_base_model(str(tmp_path / "model"), LABELS)
            assert loaded.config.apply_spec_augment == masks
            shutil.rmtree(tmp_path / "model")


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_every_weight_that_may_move_has_a_gradient(name, tmp_path):
    """Where one has none, DistributedDataParallel waits for it and fails."""
    clips = read_clips(write_processed(tmp_path / "data"), "train")
    name = {"audio-spectrogram-transformer": "ast"}.get(name, name)
    for options in ({}, {"do_stable_layer_norm": True, "use_weighted_layer_sum": True}):
        model = AutoModelForAudioClassification.from_config(SMALL_CONFIGS[name](**options)).eval()
        encoders.configure_for_training(model, clips, [])
        inputs = prepare(small_extractor(name), clips_of_noise(), SECOND, model.main_input_name)
        model(**inputs).logits.square().sum().backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", ["clap", "vit"])
def test_what_later_stages_cannot_take_is_refused_by_all_before_a_folder_is_made(kind, tmp_path, capfd):
    data_dir = write_processed(tmp_path / "data")
    encoders.save_model(small_model("wav2vec2"), tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind}))
    stages = {"02_finetuning": "--base_model", "04_analysis": "--model_dir", "05_pruning": "--model_dir"}
    stages |= {"03_model_validation": "--model_dir", "07_manual_pruning": "--model_dir"}
    for stage, flag in stages.items():
        words = [flag, tmp_path / "base", "--output_dir", tmp_path / stage]
        words += ["--keep_layers", "0"] if stage.startswith("07") else ["--data_dir", data_dir]
        assert load_stage(stage).main([str(word) for word in words]) == 3
        message = capfd.readouterr().err
        assert f"{flag} {tmp_path / 'base'}: a {kind!r} model" in message
        assert f"it supports {architectures.NAMES} (model_type in" in message
        assert not (tmp_path / stage).exists()


def test_documents_and_help_name_what_the_code_takes(capsys):
    for document, before in (("README.md", "Encoders: "), ("docs/models.md", "Stage 02 takes ")):
        text = (ROOT / document).read_text(encoding="utf-8")
        words = " ".join(text.split()).split(before)[1].split(", by name on the hub or as a folder")[0]
        assert words.replace(" and ", ", ") == architectures.NAMES
    with pytest.raises(SystemExit):
        load_stage("02_finetuning").build_parser().parse_args(["--help"])
    assert "WavLM" in " ".join(capsys.readouterr().out.split("--base_model BASE_MODEL")[-1].split())


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "data2vec-audio", "sew-d", "wav2vec2-bert", "whisper"])
def test_a_model_without_feature_extractor_gets_the_usual_one_and_the_log_says_so(name, tmp_path, caplog):
    folder = tmp_path / "it's base"
    loaded = small_model(name)
    loaded.model.save_pretrained(folder)
    model_folder.any_model_input(str(folder), "--base_model")
    base = encoders.load_base_model(str(folder), LABELS)
    usual = f"it gets the usual one of its kind, {type(loaded.extractor).__name__} at 16000 Hz"
    assert re.search(f"WARNING .* has no preprocessor_config.json, .*: {usual}", caplog.text)
    assert made_by_the_advice(caplog.text.split(", as ")[1], folder) == base.extractor.to_dict()
    caplog.clear()
    encoders.load_base_model(str(folder), LABELS)
    assert not caplog.text, "the file is there now"
    name, clips = loaded.model.main_input_name, clips_of_noise()
    inputs, expected = (prepare(e, clips, SECOND, name) for e in (base.extractor, loaded.extractor))
    assert torch.equal(inputs[name], expected[name])
    encoders.save_model(base, tmp_path / "tuned")
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "tuned").to_dict() == base.extractor.to_dict()


def made_by_the_advice(advice, folder):
    """Run the command of an advice; return the settings of the feature extractor that it writes."""
    code = shlex.split(advice)
    assert code[:2] == ["python", "-c"]
    exec(code[2], {})
    return AutoFeatureExtractor.from_pretrained(folder).to_dict()


def test_ast_without_mean_and_deviation_is_refused_with_the_way_to_give_them(tmp_path):
    """Those of BirdSet read another spectrogram than the feature extractor of transformers makes."""
    folder = tmp_path / "it's base"
    small_model("ast").model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"^--base_model .* has no preprocessor_config\.json") as error:
        model_folder.any_model_input(str(folder), "--base_model")
    made = made_by_the_advice(str(error.value).split(", as ")[1], folder)
    wanted = small_extractor("ast").to_dict()
    assert made == wanted and (made["mean"], made["std"]) == (-4.2677393, 4.5689974)
    model_folder.any_model_input(str(folder), "--base_model")


def test_beats_without_its_feature_extractor_is_not_guessed_at(tmp_path):
    small_model("beats").model.save_pretrained(tmp_path / "beats")
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, so it is not a whole model folder"):
        model_folder.any_model_input(str(tmp_path / "beats"), "--base_model")


@pytest.mark.parametrize("name", ["wav2vec2", "ast"])
def test_the_classifier_of_other_labels_starts_anew_also_if_they_are_as_many(name, tmp_path):
    """As the checkpoints of BirdSet have them: 21 labels of HSN are not the 21 of the user."""
    for folder, labels in (("same", LABELS), ("as many", ["a", "b", "c"]), ("more", [f"code{i}" for i in range(21)])):
        loaded = small_model(name, labels)
        with torch.no_grad():
            for parameter in loaded.model.classifier.parameters():
                parameter.add_(1)
        loaded.config.problem_type = "multi_label_classification"
        encoders.save_model(loaded, tmp_path / folder)
        base = encoders.load_base_model(str(tmp_path / folder), LABELS).model
        (*_, weight, bias), (*_, before, _) = (list(model.classifier.parameters()) for model in (base, loaded.model))
        if folder == "same":
            assert torch.equal(weight, before)
        else:
            assert len(weight) == len(bias) == len(LABELS)
            assert weight.abs().max() < 0.5 and weight.std() > 0 and bias.abs().max() < 0.5
        assert base.config.id2label == dict(enumerate(LABELS))
        assert base.config.problem_type == "single_label_classification"
        state = base.base_model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in loaded.model.base_model.state_dict().items())


def test_a_model_that_was_trained_here_is_copied_again_not_guessed_at(tmp_path):
    encoders.save_model(small_model("wav2vec2"), tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_seconds": 0.5}))
    with pytest.raises(InputError, match="copy the whole model folder again") as error:
        model_folder.any_model_input(tmp_path / "model")
    assert "python -c" not in str(error.value)


def test_base_models_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no/such-model"):
        encoders.load_base_model("no/such-model", LABELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        model_folder.any_model_input(str(tmp_path / "empty"))


def test_tiny_is_small_and_whole():
    loaded = encoders.load_base_model(model_folder.TINY, LABELS)
    model = loaded.model
    assert len(architectures.blocks_of(model)) == 4 and encoders.count_parameters(model) < 1_000_000
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    assert logits_of(model.eval(), inputs).shape == (2, 3)


# -------------------------------------------------------------------------------- fine-tuned models


@pytest.fixture
def model_dir(tmp_path):
    encoders.save_model(small_model("wav2vec2"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "runs/wetland/model", "~/model"])
def test_a_path_without_a_folder_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(model_folder, "_hub_snapshot", None)
    for load in (lambda: encoders.load_any_model(name, "cpu"), lambda: encoders.load_base_model(name, ["a", "b"])):
        with pytest.raises(InputError, match="cannot be loaded: no such folder"):
            load()


def test_model_folder_half_written(model_dir):
    weights = model_dir / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        encoders.load_model(model_dir, "cpu")
    weights.unlink()
    with pytest.raises(InputError, match="no weights"):
        model_folder.model_input(model_dir)
    (model_dir / "preprocessor_config.json").unlink()
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "clip_seconds": 0.5}))
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        model_folder.model_input(model_dir)
    shutil.rmtree(model_dir)
    with pytest.raises(InputError, match="no such folder"):
        model_folder.model_input(model_dir)


def test_config_that_does_not_belong_to_the_weights(model_dir):
    """A truncated model whose config still says three layers would load with a random third block."""
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"num_hidden_layers is 4, the weights have no layer beyond 2"):
        encoders.load_model(model_dir, "cpu")
    (model_dir / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(InputError, match=r"unexpected weights: wav2vec2\.encoder\.layers\.2"):
        encoders.load_model(model_dir, "cpu")


def test_model_input_knows_content_not_place(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "copy")
    digest = model_folder.model_input(model_dir).sha256
    assert model_folder.model_input(tmp_path / "copy").sha256 == digest
    encoders.save_model(small_model("wav2vec2"), tmp_path / "other")
    assert model_folder.model_input(tmp_path / "other").sha256 != digest


def test_model_and_data_must_match(tmp_path):
    loaded = small_model("wav2vec2")
    model = loaded.model
    clips = read_clips(write_processed(tmp_path / "data"))
    encoders.check_matches(loaded, clips)
    model.config.clip_seconds = 5.0
    with pytest.raises(InputError, match=r"trained on 5 s.*--clip_seconds 5"):
        encoders.check_matches(loaded, clips)
    model.config.clip_seconds = clips.clip_seconds
    model.config.id2label = {0: "Blackbird", 1: "Great Tit", 2: "Crow"}
    with pytest.raises(InputError, match="another order"):
        encoders.check_matches(loaded, clips)
    model.config.id2label = {0: "Blackbird", 1: "Wren"}
    with pytest.raises(
        InputError, match=r"the model has 2.*only the model has Wren; only the data has Crow, Great Tit"
    ):
        encoders.check_matches(loaded, clips)
    loaded.extractor.sampling_rate = 8_000
    with pytest.raises(InputError, match="--sample_rate 8000"):
        encoders.check_matches(loaded, clips)


@pytest.mark.parametrize(("name", "window_s"), [("whisper", 1), ("ast", 1.295)])
def test_a_window_shorter_than_the_clip_is_refused(name, window_s, tmp_path):
    loaded = small_model(name)
    model = loaded.model
    assert architectures.longest_clip_seconds(loaded.extractor, model.config) == pytest.approx(window_s)
    short = read_clips(write_processed(tmp_path / "short", clip_seconds=1.0))
    encoders.check_base_matches(loaded, short)
    long = read_clips(write_processed(tmp_path / "long", clip_seconds=1.5))
    with pytest.raises(InputError, match="--clip_seconds 1"):
        encoders.check_base_matches(loaded, long)


def test_ast_window_is_where_the_extractor_starts_to_cut():
    """Independent of the formula: one frame more than the window no longer changes the input."""
    extractor = small_extractor("ast")
    window = round(1.295 * SECOND)
    clip = np.random.default_rng(1).standard_normal(window + 160).astype(np.float32)
    inside = extractor(clip[:window], sampling_rate=SECOND, return_tensors="pt")["input_values"]
    outside = extractor(clip, sampling_rate=SECOND, return_tensors="pt")["input_values"]
    assert inside.shape == outside.shape == (1, 128, 32)
    shorter = extractor(clip[: window - 160], sampling_rate=SECOND, return_tensors="pt")["input_values"]
    padding = shorter[0, -1]
    assert not torch.allclose(inside[0, -1], padding), "the last frame is audio"
    assert torch.allclose(padding, padding[0].expand_as(padding)), "one frame less leaves padding"


def test_the_batch_norms_of_frozen_blocks_do_not_learn_from_the_batch():
    loaded = small_model("wav2vec2-conformer")
    model, inputs = loaded.model, loaded.prepare(clips_of_noise(), SECOND)
    encoders.freeze(model, feature_encoder=False, layers=[0, 2])
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()(**inputs)
    moved = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    assert moved and all(".layers.1.conv_module.batch_norm." in name for name in moved)
    assert (
        copy.deepcopy(model).eval().state_dict().keys() == small_model("wav2vec2-conformer").model.state_dict().keys()
    )


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "sew-d", "wav2vec2-bert", "whisper", "ast", "beats"])
def test_frozen_parts_have_no_gradient(name):
    loaded = small_model(name)
    model = loaded.model
    encoders.freeze(model, feature_encoder=True, layers=[0])
    inputs = loaded.prepare(clips_of_noise(), SECOND)
    model(**inputs).logits.sum().backward()  # in evaluation mode: layerdrop would leave out a block now and then
    moving = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    architecture = architectures.architecture_of(model.config)
    for still in (f"{architecture.blocks}.0.", *(f"{path}." for path in architecture.feature_encoder)):
        assert not any(n.startswith(still) for n in moving)
    assert any(n.startswith(f"{architecture.blocks}.1.") for n in moving)


@pytest.mark.shared
def test_real_whisper_loads_prunes_and_reloads(shared_dir, tmp_path):
    folder = str(shared_dir / "models" / "whisper-tiny-en-encoder")
    loaded = encoders.load_base_model(folder, LABELS)
    model = loaded.model
    encoders.prune_model(model, [0, 3])
    encoders.save_model(loaded.ready("cpu"), tmp_path / "model")
    again = encoders.load_model(tmp_path / "model", "cpu")
    clip = [np.random.default_rng(0).standard_normal(5 * SECOND).astype(np.float32)]
    inputs = loaded.prepare(clip, SECOND)
    assert torch.equal(logits_of(model, inputs), logits_of(again.model, inputs))
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path / "model")) is type(again.extractor)


def test_a_kill_in_the_middle_of_saving_does_not_stop_the_next_attempt(tmp_path, monkeypatch):
    loaded = small_model("hubert")
    with monkeypatch.context() as patch:
        patch.setattr(training_history, "write_history", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encoders.save_model(loaded, tmp_path / "model")
    assert (tmp_path / ".model.partial" / "model.safetensors").exists() and not (tmp_path / "model").exists()
    encoders.save_model(loaded, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    encoders.load_model(tmp_path / "model", "cpu")


def test_pairs_of_frames_are_not_masked_as_if_they_were_bands(tmp_path):
    """wav2vec 2.0 BERT masks its latent frames itself; a span of its 32 inputs is no span of bands."""
    clips, loaded = read_clips(write_processed(tmp_path / "data"), "train"), small_model("wav2vec2-bert")
    items = [clips[0], clips[1]]
    collator = training.Collator(loaded.extractor, "input_features", clips, ("specaugment",), seed=0)
    expected = loaded.prepare([item["audio"] for item in items], SECOND)["input_features"]
    assert torch.equal(collator(items)["input_features"], expected)


@torch.inference_mode()
def test_a_frame_without_a_partner_is_left_out_as_the_mask_of_the_extractor_says():
    """8,160 samples are 49 frames of wav2vec 2.0 BERT; without the mask, silence would stand beside the last one."""
    loaded = small_model("wav2vec2-bert")
    clips = list(np.random.default_rng(0).standard_normal((2, 8160)).astype(np.float32))
    inputs = loaded.prepare(clips, SECOND)
    assert inputs["input_features"].shape == (2, 24, 32)
    masked = loaded.extractor(clips, sampling_rate=SECOND, return_tensors="pt")
    assert masked["input_features"].shape == (2, 25, 32)
    torch.testing.assert_close(logits_of(loaded.model, inputs), logits_of(loaded.model, masked), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Degrees of freedom", "ignore:invalid value")  # of one frame, which is refused
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_the_shortest_clip_gives_a_frame_and_one_sample_less_does_not(name, tmp_path):
    loaded = small_model(name)
    model = loaded.model
    least = architectures.shortest_clip_samples(model.config)

    def logits(n_samples):
        audio = [np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)]
        return model(**loaded.prepare(audio, 16_000)).logits

    assert torch.isfinite(logits(least)).all()
    if name != "whisper":  # which pads
        with pytest.raises((RuntimeError, AssertionError, ValueError)):
            logits(least - 1)
    else:
        assert least == 1
    if least > 1:
        clips = read_clips(write_processed(tmp_path / "data", clip_seconds=(least - 1) / 16_000))
        with pytest.raises(InputError, match=f"have {least - 1} samples .* the model needs {least} for one frame"):
            encoders.check_base_matches(loaded, clips)
