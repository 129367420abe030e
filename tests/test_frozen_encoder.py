"""A head on a frozen encoder: against the same training without kept features, plain transformers, and itself."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from tests.data import small_model, write_annotated, write_processed
from tests.stages import digests, launch_together, load_stage, stopped_at_loss
from utils.core import runs
from utils.data.clips import read_clips
from utils.models import encoders, frozen_encoder, predict, training

stage = load_stage("02_finetuning")
pytestmark = pytest.mark.usefixtures("blank_figures")
PLAIN = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "wav2vec2"
    encoders.save_model(small_model("wav2vec2"), folder)
    return folder


def words(data_dir, output_dir, *more, base_model="tiny", epochs=3) -> list[str]:
    given = {"data_dir": data_dir, "output_dir": output_dir, "base_model": base_model, "num_train_epochs": epochs}
    own = ("--freeze_encoder", "--device", "cpu", "--learning_rate", "1e-2")
    return [str(word) for item in given.items() for word in (f"--{item[0]}", item[1])] + [str(x) for x in (*own, *more)]


def weights_of(folder) -> dict[str, torch.Tensor]:
    return encoders.load_model(folder, "cpu").model.state_dict()


def settings_of(**changes) -> training.TrainingSettings:
    args = stage.build_parser().parse_args(["--output_dir", "none"])
    args.augment = ()
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(training.TrainingSettings)}
    return training.TrainingSettings(**{**given, "mixed_precision": "no", "num_train_epochs": 3, **changes})


@pytest.mark.parametrize(
    ("name", "options"),
    [("whisper", {}), ("ast", {}), ("wav2vec2", PLAIN), ("wav2vec2", {**PLAIN, "use_weighted_layer_sum": True})],
)
def test_the_head_is_that_of_a_training_in_which_only_the_head_learns(name, options, data_dir, tmp_path):
    """The same batches in the same order through the whole model: only the order of summation differs."""
    heads = {}
    for way in ("kept", "whole"):
        torch.manual_seed(0)
        loaded = small_model(name, **options)
        model = loaded.model
        train, val = (read_clips(data_dir, split) for split in ("train", "val"))
        encoders.configure_for_training(model, train, ())
        run = runs.Run(tmp_path / way, 1)
        run.output_dir.mkdir()
        frozen = None
        if way == "kept":
            frozen = frozen_encoder.compute(loaded, {"train": train, "val": val}, 16, run, {}, False)
        else:
            model.requires_grad_(False)
            for parameter in encoders.head_parameters(model):
                parameter.requires_grad_(True)
        settings = settings_of(learning_rate=1e-2)
        training.train(loaded, train, val, settings, run, resume=False, frozen=frozen)
        heads[way] = (run.output_dir / "metrics.csv").read_text(), weights_of(run.output_dir)
    (kept_curves, kept), (whole_curves, whole) = heads["kept"], heads["whole"]
    rows = [np.loadtxt(text.splitlines()[1:], delimiter=",") for text in (kept_curves, whole_curves)]
    np.testing.assert_allclose(*rows, rtol=2e-3, atol=2e-4)
    torch.manual_seed(0)
    model = small_model(name, **options).model
    before, prefixes = model.state_dict(), encoders.head_prefixes(model)
    head = [key for key in before if key.startswith(prefixes)]
    for key in before.keys() - set(head):
        assert torch.equal(kept[key], before[key]) and torch.equal(whole[key], before[key]), key
    moved, apart = (max(float((whole[key] - of[key]).abs().max()) for key in head) for of in (before, kept))
    assert moved > 0.01 and apart < 0.02 * moved


def test_features_are_the_means_that_transformers_gives(data_dir, tmp_path):
    """With a weighted sum, one mean for each layer: the hidden states of transformers' own encoder."""
    loaded = small_model("wav2vec2-weighted-layer-sum")
    train, val = (read_clips(data_dir, split) for split in ("train", "val"))
    found = frozen_encoder.compute(loaded, {"train": train, "val": val}, 5, runs.Run(tmp_path, 1), {}, False)
    inputs = loaded.prepare([train.audio(i) for i in range(4)], 16_000)
    with torch.no_grad():
        layers = loaded.model.wav2vec2(**inputs, output_hidden_states=True).hidden_states
        whole = loaded.model(**inputs).logits
    for clip in range(4):
        wanted = torch.stack([layer[clip].mean(dim=0) for layer in layers])
        np.testing.assert_allclose(found.train[clip]["features"], wanted, rtol=1e-4, atol=1e-5)
    features = torch.from_numpy(np.stack([found.train[clip]["features"] for clip in range(4)]))
    with torch.no_grad():
        torch.testing.assert_close(found.head(features)["logits"], whole, rtol=1e-4, atol=1e-5)
    assert {name for name, _ in found.head.named_parameters()} == {
        *("layer_weights", "projector.weight", "projector.bias", "classifier.weight", "classifier.bias")
    }


def test_the_encoder_runs_once_and_its_features_are_used_again(data_dir, base_dir, tmp_path, monkeypatch, caplog):
    n_batches, batches = [], predict.input_batches

    def counted(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            n_batches.append(kwargs["desc"])
            yield batch

    monkeypatch.setattr(predict, "input_batches", counted)

    def n_run(*more, data=data_dir, base=base_dir, code=0) -> int:
        n_batches.clear()
        assert stage.main(words(data, tmp_path / "run", *more, "--overwrite", base_model=base, epochs=1)) == code
        return len(n_batches)

    assert n_run() == 3 + 2, "36 clips of train and 18 of val, in batches of 16"
    assert n_run("--learning_rate", "1e-3") == n_run("--seed", 7) == 0
    assert n_run("--per_device_eval_batch_size", 18) == 2 + 1
    assert n_run("--per_device_eval_batch_size", 18, "--keep_layers", "0-1") == 2 + 1
    other = tmp_path / "other"
    loaded = encoders.load_model(base_dir, "cpu")
    with torch.no_grad():
        loaded.model.wav2vec2.encoder.layers[0].feed_forward.output_dense.bias += 1e-3
    encoders.save_model(loaded, other)
    assert n_run(base=other) == 3 + 2, "another model"
    changed = write_processed(tmp_path / "changed", seed=1)
    assert n_run(data=changed, base=other) == 3 + 2, "other clips of the same names"
    for path in (tmp_path / "run" / "features").glob("train.npy"):
        path.write_bytes(b"rubbish")
    assert n_run(data=changed, base=other) == 0, "complete: nothing to do"
    assert n_run("--seed", 8, data=changed, base=other) == 3
    shutil.rmtree(tmp_path / "run" / "features")
    (tmp_path / "run" / "features").write_text("my own notes")
    assert n_run("--seed", 9, code=3) == 0
    assert "run/features: a file is where a folder must be: move or delete the file" in caplog.text


@pytest.mark.parametrize("moment", ["features", "training"])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(moment, data_dir, base_dir, tmp_path, monkeypatch, caplog):
    more = ("--per_device_eval_batch_size", 5)
    assert stage.main(words(data_dir, tmp_path / "whole", *more, base_model=base_dir)) == 0
    args = words(data_dir, tmp_path / "parts", *more, base_model=base_dir)
    if moment == "training":
        with stopped_at_loss(monkeypatch, 7):
            assert stage.main(args) == 75
    else:
        batches = predict.input_batches

        def signalled(*args, **kwargs):
            for number, batch in enumerate(batches(*args, **kwargs)):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGUSR2)
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(predict, "input_batches", signalled)
            assert stage.main(args) == 75
        progress = json.loads((tmp_path / "parts" / "features" / "train.json").read_text())
        assert progress["n_done"] == 15, "it stops after the third batch of five"
        assert "stopped by SIGUSR2, features of train are saved for 15 of " in caplog.text
    assert stage.main(args) == 0
    kept = {name: digest for name, digest in digests(tmp_path / "whole").items() if "tensorboard" not in name}
    assert kept == {name: digests(tmp_path / "parts")[name] for name in kept}
    assert any(name.startswith("features/") for name in kept)


def test_it_learns_from_clips_with_several_labels_and_from_a_teacher(tmp_path):
    data = write_annotated(tmp_path / "data")
    assert stage.main(words(data, tmp_path / "teacher", epochs=12)) == 0
    taught = words(
        data, tmp_path / "taught", "--teacher_dir", tmp_path / "teacher", "--distillation_weight", 1, epochs=12
    )
    assert stage.main([*taught, "--head_learning_rate", "3e-2"]) == 0
    record = json.loads((tmp_path / "taught" / "run.json").read_text())
    assert record["metrics"]["distillation"]["n_teachers"] == 1
    val = read_clips(data, "val")
    logits = [predict.predict(encoders.load_model(tmp_path / name, "cpu"), val, 8) for name in ("teacher", "taught")]
    spread = np.abs(logits[0] - logits[0].mean(axis=0)).mean()
    assert np.abs(logits[0] - logits[1]).mean() < spread


def test_two_processes_end_with_one_model(data_dir, base_dir, warm_python, tmp_path):
    more = ("--per_device_eval_batch_size", 4, "--per_device_train_batch_size")
    args = words(data_dir, tmp_path / "two", *more, 6, base_model=base_dir)
    assert launch_together(warm_python, 2, "02_finetuning.py", *args) == 0
    assert stage.main(words(data_dir, tmp_path / "one", *more, 12, base_model=base_dir)) == 0
    features = [np.load(tmp_path / name / "features" / "train.npy") for name in ("one", "two")]
    np.testing.assert_array_equal(*features)
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--augment", "roll", "gain"),
            "--freeze_encoder cannot be combined with --augment roll gain: the encoder hears",
        ),
        (("--freeze_layers", "0"), "cannot be combined with --freeze_layers: the whole encoder is frozen"),
        (("--freeze_feature_encoder",), "cannot be combined with --freeze_feature_encoder"),
        (("--gradient_checkpointing",), "--gradient_checkpointing: the encoder has no gradients"),
        (("--teacher_dir", "x", "--teacher_views", "2"), "--teacher_views: the teacher hears each clip once, too"),
        (("--teacher_dir", "x", "--hidden_weight", "1"), "--hidden_weight: the hidden states of a frozen encoder"),
        (("--teacher_dir", "x", "--unlabelled_dir", "y"), "--unlabelled_dir: only the clips of train and val"),
        (("--keep_layers", "none"), "--freeze_encoder needs a block, and this model has none"),
    ],
)
def test_what_it_refuses(more, said, data_dir, tmp_path, caplog):
    assert stage.main(words(data_dir, tmp_path / "run", *more)) == 2
    assert said in caplog.text
    assert not (tmp_path / "run").exists()


def test_weights_that_are_nan_are_named_by_the_clip(data_dir, tmp_path, caplog):
    loaded = small_model("wav2vec2")
    with torch.no_grad():
        loaded.model.wav2vec2.encoder.layers[1].feed_forward.output_dense.bias[0] = float("nan")
    loaded.model.save_pretrained(tmp_path / "base")
    loaded.extractor.save_pretrained(tmp_path / "base")
    assert stage.main(words(data_dir, tmp_path / "run", base_model=tmp_path / "base")) == 3
    assert "NaN or infinite for the clip Blackbird/train0:0" in caplog.text
