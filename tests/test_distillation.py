"""Learning from teachers: the loss beside SciPy, what the teachers hear, resuming, and what is refused."""

import copy
import dataclasses
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit, softmax
from scipy.stats import bernoulli, entropy

from tests import data
from tests.data import LABELS, small_model, write_annotated, write_processed
from tests.stages import launch_together, load_stage, stopped_at_loss
from utils.core import runs
from utils.data.clips import read_clips
from utils.models import cnn, distillation, encoders, predict, training, training_history
from utils.models.loaded_model import MULTI_LABEL
from utils.pruning import healing

finetuning, cnn_stage = load_stage("02_finetuning"), load_stage("06_cnn")
pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def save(loaded, folder):
    encoders.save_model(loaded, folder)
    return folder


@pytest.fixture(scope="module")
def teacher_dirs(tmp_path_factory):
    """A wav2vec2 and a Whisper with random weights: two feature extractors."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("teachers")
    models = {name: small_model(name) for name in ("wav2vec2", "whisper")}
    for loaded in models.values():
        torch.nn.init.normal_(loaded.model.classifier.weight, std=10.0)  # so that they are sure of something
    return [save(loaded, folder / name) for name, loaded in models.items()]


def words(data_dir, output_dir, *more, epochs=2) -> list[str]:
    return [
        *("--data_dir", str(data_dir), "--output_dir", str(output_dir), "--architecture", "melspectrogram"),
        *("--width", "0.125", "--num_train_epochs", str(epochs), "--learning_rate", "1e-2"),
        *("--mixed_precision", "no", "--device", "cpu", *map(str, more)),
    ]


def weights_of(output_dir) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model" / "model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ------------------------------------------------------------------------------------------------ the loss


def random_logits(*shape) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_divergence_is_that_of_scipy(temperature):
    teacher, student = random_logits(6, 3), random_logits(6, 3).flip(0)
    teachers = distillation.Teachers([small_model("wav2vec2")], 0.3, temperature)
    p, q = (softmax(x.numpy() / temperature, axis=1) for x in (teacher, student))
    found = teachers.divergence(student, torch.from_numpy(p)).sum(dim=1)
    np.testing.assert_allclose(found, temperature**2 * entropy(p, q, axis=1), rtol=1e-4)
    n_items = torch.tensor(p.size)
    loss = teachers.loss(torch.tensor(5.0), student, torch.from_numpy(p), n_items)
    assert float(loss) == pytest.approx(0.7 * 5.0 + 0.3 * temperature**2 * entropy(p, q, axis=1).mean(), rel=1e-4)
    parts = [
        teachers.loss(torch.tensor(2.5), student[s], torch.from_numpy(p[s]), n_items)
        for s in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(sum(parts), loss)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_of_several_labels_is_that_of_scipy_for_each_label(temperature):
    teacher, student = random_logits(5, 3), random_logits(5, 3).flip(1)
    teachers = distillation.Teachers([small_model("wav2vec2", problem_type=MULTI_LABEL)], 1.0, temperature)
    p, q = (expit(x.numpy().astype(float) / temperature) for x in (teacher, student))
    by_scipy = np.vectorize(lambda p, q: entropy(bernoulli(p).pmf([0, 1]), bernoulli(q).pmf([0, 1])))(p, q)
    found = teachers.divergence(student, torch.from_numpy(p).float())
    np.testing.assert_allclose(found, temperature**2 * by_scipy, rtol=1e-3, atol=1e-5)
    mean = teachers.loss(torch.tensor(9.0), student, torch.from_numpy(p).float(), torch.tensor(p.size))
    assert float(mean) == pytest.approx(temperature**2 * by_scipy.mean(), rel=1e-4)


def test_gradient_is_the_difference_of_the_probabilities_times_the_temperature():
    """Hinton et al. 2015, eq. 2, times T²; and certain teachers, whose probabilities are 0 and 1, give no NaN."""
    student = random_logits(4, 3).requires_grad_()
    teachers = distillation.Teachers([small_model("wav2vec2")], temperature=4.0)
    p = torch.eye(3)[[0, 1, 2, 0]]
    teachers.divergence(student, p).sum().backward()
    torch.testing.assert_close(student.grad, 4.0 * ((student.detach() / 4).softmax(1) - p))


def test_several_teachers_are_the_mean_of_their_softened_probabilities(data_dir, teacher_dirs):
    """Each hears the clip by its own feature extractor; two of the three share one."""
    models = [encoders.load_model(folder, "cpu") for folder in (*teacher_dirs, teacher_dirs[0])]
    torch.nn.init.normal_(models[2].model.classifier.weight, std=10.0)
    teachers = distillation.Teachers(models, temperature=3.0)
    assert len(teachers.hearings) == 2
    clips = read_clips(data_dir, "train")
    collator = training.Collator(*hearing_of(models[0]), clips, (), 0, hearings=teachers.hearings)
    batch = collator([clips[i] for i in range(4)])
    found = teachers.probabilities(batch)
    alone = [softmax(predict.predict(loaded, clips.only(range(4)), 4) / 3.0, axis=1) for loaded in models]
    np.testing.assert_allclose(found, np.mean(alone, axis=0), rtol=1e-4)
    assert not np.allclose(alone[0], alone[1], rtol=1e-2) and not np.allclose(alone[0], alone[2], rtol=1e-2)


def hearing_of(loaded):
    return loaded.extractor, loaded.model.main_input_name


def test_teachers_hear_the_mixed_sound_and_no_mask(data_dir):
    """Mixup by hand: the same generator draws roll and mixture, and the teacher is run on that sound alone."""
    from utils.models.augmentation import augment_audio, batch_generator

    clips, student = read_clips(data_dir, "train"), cnn.build_cnn("melspectrogram", LABELS, 16_000, 0.5, 0.125)
    teacher = small_model("whisper")
    teachers = distillation.Teachers([teacher, dataclasses.replace(student, model=student.model.eval())])
    augment = ("roll", "mixup", "specaugment")
    collator = training.Collator(*hearing_of(student), clips, augment, 7, hearings=teachers.hearings)
    items = [clips[i] for i in (0, 9, 20, 30)]
    batch = collator(items)
    audio, targets = augment_audio(
        *(np.stack([item["audio"] for item in items]), np.eye(3, dtype=np.float32)[[x["label_id"] for x in items]]),
        *(augment, batch_generator(7, 0, [0, 9, 20, 30])),
    )
    assert ((targets > 0).sum(axis=1) > 1).any(), "a clip is a mixture of two labels"
    torch.testing.assert_close(batch["labels"], torch.from_numpy(targets))
    for loaded, key in ((teacher, "teacher_input_0"), (student, "teacher_input_1")):
        with torch.no_grad():
            expected = loaded.model(**loaded.prepare(list(audio), 16_000)).logits
            torch.testing.assert_close(loaded.model(batch[key]).logits, expected)
    assert not torch.equal(batch["input_features"], batch["teacher_input_1"]), "only the student's input has masks"
    val = read_clips(data_dir, "val")
    assert set(collator([val[0], val[1]])) == {"input_features", "labels"}, "val is scored without teachers"


def trainer_of(student, teachers, clips, tmp_path, *, several=False, **changes):
    """Return a Trainer as `training.train` makes it, without augmentation."""
    settings = dataclasses.replace(healing.settings_for(1, 0), mixed_precision="no", augment=(), **changes)
    arguments = training._trainer_arguments(settings, tmp_path / "checkpoints", "cpu", several)
    return training.ClassifierTrainer(
        model=student.model,
        teachers=teachers,
        args=arguments,
        data_collator=training.Collator(*hearing_of(student), clips, (), 0, several, teachers.hearings),
        train_dataset=clips,
        eval_dataset=clips,
        compute_loss_func=training.loss_of(student, clips, settings),
    )


@pytest.mark.parametrize("several", [False, True])
def test_a_student_that_is_its_teacher_has_no_distance_from_it(several, data_dir, tmp_path):
    """The loss is the share of the task loss alone; by another teacher it is more."""
    options = {name: 0.0 for name in ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "mask_time_prob")}
    options |= {"activation_dropout": 0.0, "layerdrop": 0.0, "problem_type": MULTI_LABEL if several else None}
    student = small_model("wav2vec2", **options)
    clips = read_clips(write_annotated(tmp_path / "data") if several else data_dir, "train")
    same, other = copy.deepcopy(student), copy.deepcopy(student)
    torch.nn.init.normal_(other.model.classifier.weight, std=10.0)
    losses = []
    for teacher in (same, other):
        teachers = distillation.Teachers([teacher], weight=0.75, temperature=2.0)
        trainer = trainer_of(student, teachers, clips, tmp_path, several=several)
        batch = trainer.data_collator([clips[i] for i in range(6)])
        n_items = torch.tensor(batch["labels"].numel())
        task = trainer.compute_loss_func(student.model.train()(batch["input_values"]), batch["labels"], n_items).item()
        loss = trainer.compute_loss(student.model, batch, num_items_in_batch=n_items).item()
        losses.append(loss - 0.25 * task)
    assert abs(losses[0]) < 1e-6 and losses[1] > 1e-3


def fit(clips, val_clips, seed, n_epochs, tmp_path, teachers=None, augment=("roll",)):
    """Return a small network that is trained on clips."""
    runs.seed_everything(seed)
    loaded = cnn.build_cnn("melspectrogram", LABELS, clips.sample_rate_hz, clips.clip_seconds, 0.125)
    settings = dataclasses.replace(
        healing.settings_for(n_epochs, seed), learning_rate=1e-2, mixed_precision="no", augment=augment
    )
    encoders.configure_for_training(loaded.model, clips, settings.augment)
    work_dir = tmp_path / str(len(list(tmp_path.iterdir())))
    training.train(loaded, clips, val_clips, settings, runs.Run(work_dir, 1), resume=False, teachers=teachers)
    return dataclasses.replace(loaded, model=loaded.model.eval())


def faint_tone(class_id, rng, n_samples, sample_rate_hz):
    """Return noise with a tone that is fainter than it; the pitches of the classes are near each other."""
    time_s = np.arange(n_samples) / sample_rate_hz
    tone = np.sin(2 * np.pi * (1000 + 200 * class_id) * time_s + rng.uniform(0, 2 * np.pi))
    return np.round(600 * tone + 2000 * rng.standard_normal(n_samples)).astype(np.int16)


def test_a_teacher_helps_where_labels_are_wrong_and_one_with_mixed_up_labels_does_not(tmp_path, monkeypatch):
    """Two thirds of the labels are drawn at random, and the student meets them with and without a good teacher."""
    monkeypatch.setattr(data, "tone_clip", faint_tone)
    folder = write_processed(tmp_path / "data", recordings_per_class={"train": 10, "val": 3, "test": 12})
    clips, val_clips, test_clips = (read_clips(folder, split) for split in ("train", "val", "test"))
    rng = np.random.default_rng(0)
    is_wrong, drawn = rng.random(len(clips)) < 0.67, rng.integers(3, size=len(clips))
    label_ids = np.where(is_wrong, drawn, clips.table["label_id"])
    mislabelled = dataclasses.replace(clips, table=clips.table.assign(label_id=label_ids))
    teacher = fit(clips, val_clips, 0, 4, tmp_path)
    mixed_up = copy.deepcopy(teacher)
    with torch.no_grad():
        for weights, own in zip(
            mixed_up.model.classifier.parameters(), teacher.model.classifier.parameters(), strict=True
        ):
            weights.copy_(own[[1, 2, 0]])

    def accuracy(loaded) -> float:
        return float((predict.predict(loaded, test_clips, 32).argmax(axis=1) == test_clips.table["label_id"]).mean())

    found = {
        name: accuracy(fit(mislabelled, val_clips, 1, 4, tmp_path, of and distillation.Teachers([of], weight=0.8)))
        for name, of in {"alone": None, "teacher": teacher, "mixed up": mixed_up}.items()
    }
    assert found["teacher"] > found["alone"] + 0.1 and found["mixed up"] < found["alone"], found


@pytest.mark.parametrize("part", ["head", "last"])
def test_healing_learns_from_the_swept_model(part, data_dir, tmp_path):
    """With the whole weight on the teacher, the pruned model answers more like it; labels alone do otherwise."""
    torch.manual_seed(3)
    swept = small_model("wav2vec2")
    torch.nn.init.normal_(swept.model.classifier.weight, std=3.0)
    clips, val_clips = (read_clips(data_dir, split) for split in ("train", "val"))
    settings = dataclasses.replace(healing.settings_for(3, 0), learning_rate=1e-3, mixed_precision="no", augment=())
    truth, distance = softmax(predict.predict(swept, val_clips, 16), axis=1), {}
    for name, teachers in {"taught": distillation.Teachers([swept], 1.0, 1.0), "alone": None}.items():
        pruned = encoders.pruned_copy(swept, [0])
        healing.heal(pruned, part, clips, val_clips, settings, tmp_path / name, 16, teachers)
        found = softmax(predict.predict(pruned, val_clips, 16), axis=1)
        distance[name] = entropy(truth, found, axis=1).mean()
    assert distance["taught"] < 0.5 * distance["alone"], distance
    assert not swept.model.training


def test_each_block_is_compared_with_what_its_next_block_reads():
    whole, pruned = small_model("wav2vec2", num_hidden_layers=6), small_model("wav2vec2", num_hidden_layers=6)
    assert distillation.matched_blocks(whole.config, whole.config) == [0, 1, 2, 3, 4, 5]
    encoders.prune_model(pruned.model, [0, 2, 5])
    assert distillation.matched_blocks(pruned.config, whole.config) == [1, 4, 5]
    teacher = small_model("wav2vec2", num_hidden_layers=6)
    encoders.prune_model(teacher.model, [0, 1, 2, 5])
    assert distillation.matched_blocks(pruned.config, teacher.config) == [1, 2, 3]
    assert distillation.matched_blocks(small_model("hubert", num_hidden_layers=2).config, whole.config) == [2, 5]
    narrow = small_model("wav2vec2", num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    assert distillation.matched_blocks(narrow.config, whole.config) == [2, 5], "no copy of a model of another size"


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "whisper", "ast", "beats"])
def test_hidden_states_are_compared_by_a_relative_squared_error(name, data_dir):
    """A copy of the teacher has none; for a pruned one it is that of transformers' own hidden states."""
    clips = read_clips(data_dir, "train")
    teacher = small_model(name)
    inputs = teacher.prepare([clips.audio(i) for i in range(2)], clips.sample_rate_hz)
    for keep in ([0, 1, 2], [0, 2]):
        student = encoders.pruned_copy(teacher, keep)
        match = distillation.HiddenMatch(student.model, teacher.model)
        with torch.no_grad():
            of_student, of_teacher = (
                x.model(**inputs, output_hidden_states=True).hidden_states for x in (student, teacher)
            )
            found = match.distances()
        if len(keep) == 3:
            torch.testing.assert_close(found, torch.zeros(2))
        elif name in ("wav2vec2", "beats"):  # whose last hidden state is that of the last block, before no norm
            pairs = [(of_student[1], of_teacher[2]), (of_student[2], of_teacher[3])]
            by_hand = [((a - b) ** 2).mean((1, 2)) / (b**2).mean((1, 2)) for a, b in pairs]
            torch.testing.assert_close(found, sum(by_hand) / 2)
            assert (found > 1e-4).all()
        match.remove()
        assert student.model.state_dict().keys() == encoders.pruned_copy(teacher, keep).model.state_dict().keys()


# -------------------------------------------------------------------------------------------- the stages


def test_a_run_says_from_whom_it_learns(data_dir, teacher_dirs, tmp_path, caplog):
    args = words(data_dir, tmp_path / "run", "--teacher_dir", *teacher_dirs, "--temperature", 4, epochs=1)
    assert cnn_stage.main(args) == 0
    assert "learning from the mean of 2 teachers, " in caplog.text
    assert "0.5 of the loss is the divergence from softened probabilities (temperature 4), 0.5" in caplog.text
    record = runs.read_record(tmp_path / "run")
    digests = {entry["name"]: entry["sha256"] for entry in record["inputs"]}
    assert digests.keys() == {"data_dir", "teacher_dir", "teacher_dir_2"} and len(set(digests.values())) == 3
    assert record["metrics"]["distillation"] == {
        "n_teachers": 2,
        "weight": 0.5,
        "temperature": 4.0,
        "n_views": None,
        "hidden_weight": 0,
    }
    assert not [name for name in weights_of(tmp_path / "run") if "teacher" in name]
    assert cnn_stage.main(args) == 0, "complete: nothing to do"
    assert cnn_stage.main(words(data_dir, tmp_path / "run", "--teacher_dir", teacher_dirs[0], epochs=1)) == 4
    assert cnn_stage.main(words(data_dir, tmp_path / "alone", epochs=1)) == 0
    assert "distillation" not in runs.read_record(tmp_path / "alone")["metrics"]
    before, after = (weights_of(tmp_path / name)["classifier.weight"] for name in ("alone", "run"))
    assert not torch.equal(before, after)


@pytest.mark.parametrize("views", [(), ("--teacher_views", 1)], ids=["live", "kept"])
def test_interrupted_and_resumed_weights_are_bit_equal(views, data_dir, teacher_dirs, tmp_path, monkeypatch):
    """SIGUSR2 in the second epoch, with every augmentation and dropout, and teachers that draw random numbers."""
    more = ("--teacher_dir", *teacher_dirs, "--distillation_weight", 0.8, *views)
    whole, stopped = (words(data_dir, tmp_path / name, *more) for name in ("whole", "stopped"))
    assert cnn_stage.main(whole) == 0
    with stopped_at_loss(monkeypatch, 7):  # of 5 an epoch
        assert cnn_stage.main(stopped) == 75
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-7").is_dir()
    assert cnn_stage.main(stopped) == 0
    assert_same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped"))
    curves = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "stopped")]
    pd.testing.assert_frame_equal(*curves)


def test_a_student_of_several_labels_learns_from_a_teacher_of_several(tmp_path):
    several = write_annotated(tmp_path / "data")
    teacher = save(small_model("wav2vec2", problem_type=MULTI_LABEL), tmp_path / "teacher")
    assert cnn_stage.main(words(several, tmp_path / "run", "--teacher_dir", teacher, epochs=1)) == 0
    assert encoders.load_model(tmp_path / "run", "cpu").is_multi_label


def test_two_processes_learn_from_a_teacher_as_one(data_dir, teacher_dirs, tmp_path, warm_python):
    """torchrun on the CPU: each process has its own copy of the teacher; the losses are those of one process."""
    student = save(
        small_model(
            "wav2vec2", hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0
        ),
        tmp_path / "base",
    )
    clips = write_processed(tmp_path / "data", recordings_per_class={"train": 8, "val": 3, "test": 3})
    more = ("--base_model", student, "--augment", "none", "--per_device_train_batch_size", 4, "--learning_rate", 1e-3)
    more += ("--mixed_precision", "no", "--device", "cpu", "--data_dir", clips, "--num_train_epochs", 1)
    more += ("--teacher_dir", teacher_dirs[0], "--keep_layers", "0,2", "--hidden_weight", 0.5)
    one = [*more, "--output_dir", tmp_path / "one", "--gradient_accumulation_steps", 2]
    assert finetuning.main(list(map(str, one))) == 0
    two = [*more, "--output_dir", tmp_path / "two"]
    assert launch_together(warm_python, 2, "02_finetuning.py", *map(str, two)) == 0
    columns = ["epoch", "step", "train_loss", "eval_accuracy", "eval_macro_f1", "learning_rate"]
    curves = [pd.read_csv(tmp_path / name / "metrics.csv")[columns] for name in ("one", "two")]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4)


def test_hidden_states_of_the_student_come_nearer_and_a_stop_changes_nothing(
    teacher_dirs, data_dir, tmp_path, monkeypatch
):
    more = (
        "--teacher_dir",
        teacher_dirs[0],
        "--base_model",
        teacher_dirs[0],
        "--keep_layers",
        "0,2",
        "--augment",
        "roll",
    )
    more += ("--data_dir", data_dir, "--num_train_epochs", 2, "--learning_rate", 1e-3, "--mixed_precision", "no")
    near = ("--hidden_weight", 10, "--gradient_checkpointing")
    runs_of = {
        name: [*map(str, (*more, *weight, "--device", "cpu", "--output_dir", tmp_path / name))]
        for name, weight in {"far": (), "near": near, "stopped": near}.items()
    }
    for name in ("far", "near"):
        assert finetuning.main(runs_of[name]) == 0
    assert not [name for name in weights_of(tmp_path / "near") if "projections" in name], "they are thrown away"
    clips, teacher, distances = read_clips(data_dir, "val"), encoders.load_model(teacher_dirs[0], "cpu"), {}
    inputs = teacher.prepare([clips.audio(i) for i in range(len(clips))], clips.sample_rate_hz)
    for name in ("far", "near"):
        student = encoders.load_model(tmp_path / name, "cpu")
        match = distillation.HiddenMatch(student.model, teacher.model)
        with torch.no_grad():
            student.model(**inputs), teacher.model(**inputs)
            distances[name] = float(match.distances().mean())
        match.remove()
    assert distances["near"] < 0.9 * distances["far"], distances

    n_steps, real = 0, training.ClassifierTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3:
            os.kill(os.getpid(), signal.SIGUSR2)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(training.ClassifierTrainer, "compute_loss", compute_loss)
        assert finetuning.main(runs_of["stopped"]) == 75
    assert finetuning.main(runs_of["stopped"]) == 0
    assert_same_weights(weights_of(tmp_path / "stopped"), weights_of(tmp_path / "near"))


def test_kept_answers_are_those_of_the_teachers_and_later_epochs_do_not_ask(data_dir, tmp_path, monkeypatch):
    """Two views in five epochs, with roll, noise and mixup: asked twice for each clip, and as good as asked anew."""
    teacher, asked, kept = small_model("whisper"), [], []
    real_forward, real_recall = type(teacher.model).forward, distillation.Views.recall

    def forward(self, *args, **kwargs):
        asked.append(len(kwargs["input_features"]))
        return real_forward(self, *args, **kwargs)

    def recall_nothing(self, clip_indices):
        kept.append((self.view, *clip_indices))
        return {distillation.PLACES: torch.tensor([(self.view, i) for i in clip_indices])}

    monkeypatch.setattr(type(teacher.model), "forward", forward)
    clips, val_clips = (read_clips(data_dir, split) for split in ("train", "val"))
    teachers, weights = distillation.Teachers([teacher], n_views=2), {}
    for name, recall, n_asked in (("kept", real_recall, 2), ("anew", recall_nothing, 5)):
        monkeypatch.setattr(distillation.Views, "recall", recall)
        asked.clear()
        found = fit(clips, val_clips, 0, 5, tmp_path, teachers, ("roll", "noise", "mixup"))
        assert sum(asked) == n_asked * len(clips)
        weights[name] = found.model.state_dict()
    assert_same_weights(weights["kept"], weights["anew"])
    n = -(-len(clips) // 8)
    assert kept[:n] == kept[2 * n : 3 * n] and kept[:n] != kept[n : 2 * n], "the order of the clips repeats, too"


# --------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_refused_with_the_fix(data_dir, teacher_dirs, tmp_path, caplog, capsys):
    def refused(code, text, *more, clips=data_dir):
        caplog.clear()
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert cnn_stage.main(words(clips, out, *more, epochs=1)) == code
        assert text in caplog.text + capsys.readouterr().err
        assert "Traceback" not in caplog.text and not (out / "model").exists()

    refused(2, "give its folder, --teacher_dir", "--temperature", 2)
    refused(2, "give its folder, --teacher_dir", "--distillation_weight", 0.5)
    refused(2, "give its folder, --teacher_dir", "--teacher_views", 3)
    refused(2, "'1.5' is not a number above 0 and of at most 1", "--distillation_weight", 1.5)
    refused(3, f"--teacher_dir {tmp_path / 'nowhere'}: no such folder", "--teacher_dir", tmp_path / "nowhere")
    twice = ("--teacher_dir", teacher_dirs[0], teacher_dirs[0] / ".." / teacher_dirs[0].name)
    refused(2, "names a model twice: it would count twice in the mean", *twice)
    copied = shutil.copytree(teacher_dirs[0], tmp_path / "copied")
    refused(2, "names a model twice", "--teacher_dir", teacher_dirs[0], copied)
    (tmp_path / "int8.onnx").touch()
    refused(3, "is an exported file, which only 03", "--teacher_dir", tmp_path / "int8.onnx")
    refused(3, "has no config.json", "--teacher_dir", data_dir)
    others = save(small_model("wav2vec2", labels=["Blackbird", "Crow", "Wren"]), tmp_path / "others")
    refused(3, f"--teacher_dir {others}: labels differ", "--teacher_dir", others)
    order = save(small_model("wav2vec2", labels=LABELS[::-1]), tmp_path / "order")
    refused(3, "they are in another order", "--teacher_dir", teacher_dirs[0], order)
    low = write_processed(tmp_path / "8k", sample_rate_hz=8_000)
    refused(3, "sample rates differ: the model expects 16000 Hz", "--teacher_dir", teacher_dirs[0], clips=low)
    several = save(small_model("wav2vec2", problem_type=MULTI_LABEL), tmp_path / "several")
    refused(3, "give --problem_type multi_label, or another teacher", "--teacher_dir", several)


def test_hidden_states_that_cannot_be_compared_are_refused(data_dir, teacher_dirs, tmp_path, caplog, monkeypatch):
    def refused(code, text, *more, base_model="tiny"):
        caplog.clear()
        args = ("--data_dir", data_dir, "--output_dir", tmp_path / "out", "--device", "cpu", "--hidden_weight", 1)
        assert finetuning.main([*map(str, (*args, "--base_model", base_model, *more))]) == code
        assert text in caplog.text and "Traceback" not in caplog.text and not (tmp_path / "out" / "model").exists()

    refused(2, "--hidden_weight sets how the student learns from a teacher")
    refused(2, "give one --teacher_dir", "--teacher_dir", *teacher_dirs)
    refused(2, "leave one out", "--teacher_dir", teacher_dirs[0], "--teacher_views", 2)
    refused(3, "--hidden_weight compares frame by frame: the student has", "--teacher_dir", teacher_dirs[1])
    none = ("--keep_layers", "none")
    refused(
        3, "the student has no transformer blocks", "--teacher_dir", teacher_dirs[0], *none, base_model=teacher_dirs[0]
    )
    network = save(cnn.build_cnn("melspectrogram", LABELS, 16_000, 0.5, 0.125), tmp_path / "network")
    refused(3, "the teacher has no transformer blocks", "--teacher_dir", network)
    monkeypatch.setattr(training.TrainingArguments, "n_gpu", 2)
    refused(
        2,
        "needs a process for each GPU, and this one has 2",
        "--teacher_dir",
        teacher_dirs[0],
        "--overwrite",
        base_model=teacher_dirs[0],
    )


def test_what_a_teacher_heard_is_what_its_student_knows(tmp_path, caplog):
    """A teacher that was trained on test recordings: a warning now, and again when the student is scored."""
    teacher, data_dir = small_model("wav2vec2"), write_processed(tmp_path / "data", recordists={})
    test = read_clips(data_dir, "test")
    training_history.note_training(teacher.model, "of other data", test, read_clips(data_dir, "val"))
    folder = save(teacher, tmp_path / "teacher")
    assert cnn_stage.main(words(data_dir, tmp_path / "run", "--teacher_dir", folder, epochs=1)) == 0
    assert f"the teacher {folder} was trained on 9 of the 9 test recordings" in caplog.text
    assert "a student learns from" in caplog.text
    student = encoders.load_model(tmp_path / "run", "cpu").model
    known = training_history.warn_of_known_recordings(
        student, "student", runs.Input(str(data_dir), "now"), {"test": test.table["recording_id"]}
    )
    assert known == {"test": 9}
