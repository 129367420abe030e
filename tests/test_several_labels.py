"""Stages 02 to 07 on clips with several labels, or none: what they learn, score, write and refuse."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as reference
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification, pipeline

from tests.data import LABELS, small_model, write_annotated, write_processed
from tests.stages import load_stage
from utils.core.errors import InputError
from utils.data.clips import read_clips
from utils.models import augmentation, encoders, predict, training
from utils.models.augmentation import UNKNOWN
from utils.scores import multi_label

pytestmark = pytest.mark.usefixtures("blank_figures", "quick_models")
training_stage, cnn_stage = load_stage("02_finetuning"), load_stage("06_cnn")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_annotated(tmp_path_factory.mktemp("data") / "annotated")


def train_words(data_dir, output_dir, *more, epochs=1) -> list[str]:
    words = ["--data_dir", data_dir, "--output_dir", output_dir, "--num_train_epochs", epochs, "--device", "cpu"]
    return [*map(str, words), *map(str, more)]


@pytest.fixture(scope="module")
def run_dir(data_dir, tmp_path_factory):
    """The one training of this module: a few steps of the tiny wav2vec2."""
    output_dir = tmp_path_factory.mktemp("runs") / "tiny"
    words = train_words(data_dir, output_dir, "--base_model", "tiny", "--learning_rate", 3e-3, epochs=3)
    assert training_stage.main(words) == 0
    return output_dir


# --------------------------------------------------------------------------------------------- the loss


@pytest.fixture
def batch():
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(size=(6, 3)).astype(np.float32))
    return logits, torch.from_numpy((rng.random((6, 3)) < 0.4).astype(np.float32))


def test_loss_is_the_log_loss_of_the_known_labels(batch):
    logits, targets = batch
    loss = training.Loss(None, 0.0, several=True)
    of_all = loss({"logits": logits}, targets)
    torch.testing.assert_close(of_all, F.binary_cross_entropy_with_logits(logits, targets))
    probabilities = logits.double().sigmoid().numpy()
    columns = [reference.log_loss(targets[:, c], probabilities[:, c], labels=[0, 1]) for c in range(3)]
    assert float(of_all) == pytest.approx(np.mean(columns), abs=1e-6)
    masked = targets.clone()
    masked[2, 1] = masked[5, 0] = UNKNOWN
    known = masked != UNKNOWN
    expected = F.binary_cross_entropy_with_logits(logits[known], targets[known])
    torch.testing.assert_close(loss({"logits": logits}, masked), expected)
    # The Trainer counts the elements that are not -100 in all devices' batches.
    torch.testing.assert_close(loss({"logits": logits}, masked, torch.tensor(32)), expected * 16 / 32)
    assert loss({"logits": logits}, torch.full_like(targets, UNKNOWN)) == 0


def test_unknown_labels_have_no_gradient(batch):
    logits, targets = batch
    targets[2, 1] = UNKNOWN
    logits.requires_grad_()
    training.Loss(torch.tensor([1.0, 2.0, 3.0]), 0.1, several=True)({"logits": logits}, targets).backward()
    assert logits.grad[2, 1] == 0 and (logits.grad != 0).sum() == 17


def test_label_smoothing_is_that_of_two_classes(batch):
    """Presence and absence are two classes: torch's smoothed cross-entropy of (0, logit) is the same."""
    logits, targets = batch
    loss = training.Loss(None, 0.1, several=True)({"logits": logits}, targets)
    two = torch.stack([torch.zeros_like(logits), logits], dim=-1).reshape(-1, 2)
    torch.testing.assert_close(loss, F.cross_entropy(two, targets.long().reshape(-1), label_smoothing=0.1))


def test_class_weights_count_each_label_and_weight_presence_and_absence(data_dir, batch):
    clips = read_clips(data_dir, "train")
    counts = clips.targets.sum(axis=0)
    weights = training.class_weights(clips, "balanced")
    assert weights.numpy() == pytest.approx(counts.sum() / (3 * counts))
    assert (weights.numpy() * counts).sum() == pytest.approx(counts.sum())
    logits, targets = batch
    loss = training.Loss(weights, 0.0, several=True)({"logits": logits}, targets)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, targets, weights))


# ---------------------------------------------------------------------------------------- augmentation


def augmented(targets, names, seed=0):
    rng = np.random.default_rng(1)
    audio = rng.normal(size=(len(targets), 400)).astype(np.float32)
    changed, targets_after = augmentation.augment_audio(
        audio, targets, names, augmentation.batch_generator(seed, 0, [0]), several=True
    )
    return audio, changed, targets_after


def test_noise_of_another_clip_leaves_its_labels_unknown():
    targets = np.eye(8, dtype=np.float32)
    audio, noisy, after = augmented(targets, ("noise",))
    changed = (noisy != audio).any(axis=1)
    assert 0 < changed.sum() < 8
    assert (after[changed] == UNKNOWN).sum(axis=1).tolist() == [1] * changed.sum()
    assert (after[~changed] == targets[~changed]).all() and (np.diag(after) == 1).all()
    _, _, silent = augmented(np.zeros((8, 8), np.float32), ("noise",))
    assert (silent == 0).all()


def test_mixup_mixes_targets_and_keeps_the_unknown_unknown():
    targets = np.eye(8, dtype=np.float32)
    targets[0, 1] = UNKNOWN
    audio, mixed, after = augmented(targets, ("mixup",))
    changed = (mixed != audio).any(axis=1)
    assert after.dtype == np.float32 and 0 < changed.sum() < 8
    known = after != UNKNOWN
    assert ((after >= 0) & (after <= 1))[known].all() and not known[0, 1]
    rows = known.all(axis=1)
    assert after[rows].sum(axis=1) == pytest.approx(1)
    assert (after[~changed] == targets[~changed]).all()


def test_collator_marks_secondary_labels_and_silence(data_dir):
    clips = read_clips(data_dir, "train")
    loaded = encoders.load_base_model("tiny", LABELS)
    collator = training.Collator(loaded.extractor, loaded.model.main_input_name, clips, (), seed=0, several=True)
    labels = collator([clips[i] for i in range(4)])["labels"].numpy()
    assert (labels == np.where(clips.is_known, clips.targets, UNKNOWN)[:4]).all()
    assert (labels == UNKNOWN).sum() == 1 and (labels[2] == 0).all() and labels[1].sum() == 2


# ------------------------------------------------------------------------------------------- training


def test_training_chooses_the_checkpoint_by_macro_average_precision(run_dir, data_dir):
    curves = pd.read_csv(run_dir / "metrics.csv")
    assert "eval_macro_f1" not in curves and len(curves) == 3
    record = json.loads((run_dir / "run.json").read_text())
    best = curves["eval_macro_average_precision"].max()
    assert record["metrics"]["eval_macro_average_precision"] == pytest.approx(best)
    val, loaded = read_clips(data_dir, "val"), encoders.load_model(run_dir, "cpu")
    logits = predict.predict(loaded, val, 4)
    precisions = [
        reference.average_precision_score(val.targets[known, c], logits[known, c])
        for c, known in enumerate(val.is_known.T)
    ]
    assert np.mean(precisions) == pytest.approx(best, abs=0.02)  # trained in bfloat16 on some processors
    log_text = (run_dir / "log.txt").read_text()
    assert "0.250 of the clips without a label, chance macro average precision 0." in log_text
    assert "best epoch" in log_text and "macro average precision" in log_text and "macro F1" not in log_text


def test_pipeline_of_the_saved_model_answers_with_sigmoids(run_dir, data_dir):
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    audio = read_clips(data_dir, "test").audio(1)
    model = AutoModelForAudioClassification.from_pretrained(run_dir / "model").eval()
    loaded = encoders.load_model(run_dir, "cpu")
    assert loaded.is_multi_label
    answers = pipeline("audio-classification", model=model, feature_extractor=loaded.extractor)(
        {"raw": audio, "sampling_rate": 16_000}, top_k=3
    )
    with torch.no_grad():
        expected = model(**loaded.prepare([audio], 16_000)).logits[0].sigmoid()
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(scores.values()) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["whisper", "hubert", "wavlm"])
def test_no_architecture_brings_a_loss_of_its_own(name, data_dir, tmp_path, monkeypatch):
    """Hugging Face's wav2vec2, HuBERT, WavLM and Whisper would take the cross-entropy of these targets."""
    losses, call = [], training.Loss.__call__

    def watched(self, outputs, labels, num_items_in_batch=None):
        losses.append((self.several, call(self, outputs, labels, num_items_in_batch)))
        return losses[-1][1]

    monkeypatch.setattr(training.Loss, "__call__", watched)
    encoders.save_model(small_model(name), tmp_path / "base")
    words = train_words(data_dir, tmp_path / "run", "--base_model", tmp_path / "base", "--mixed_precision", "no")
    assert training_stage.main(words) == 0
    assert losses and all(several and torch.isfinite(loss) for several, loss in losses)
    assert encoders.load_model(tmp_path / "run", "cpu").is_multi_label


def test_clips_of_one_label_train_sigmoids_on_request(tmp_path):
    data_dir = write_processed(tmp_path / "data", recordings_per_class={"train": 2, "val": 1, "test": 1})
    words = train_words(data_dir, tmp_path / "cnn", "--architecture", "melspectrogram", "--width", 0.1)
    assert cnn_stage.main([*words, "--problem_type", "multi_label"]) == 0
    assert encoders.load_model(tmp_path / "cnn", "cpu").is_multi_label


def test_one_label_is_the_first_and_silence_is_left_out(data_dir, tmp_path, caplog):
    words = train_words(data_dir, tmp_path / "run", "--base_model", "tiny", "--problem_type", "single_label")
    assert training_stage.main(words) == 0
    assert "6 of 24 clips are silence and are left out" in caplog.text
    loaded = encoders.load_model(tmp_path / "run", "cpu")
    assert not loaded.is_multi_label
    assert "eval_macro_f1" in pd.read_csv(tmp_path / "run" / "metrics.csv")


def test_a_split_of_silence_alone_is_refused(data_dir, tmp_path):
    clips = read_clips(data_dir, "val")
    silent = clips.only(range(2, 3))
    assert not silent.targets.any()
    with pytest.raises(InputError, match=r"all 1 clips of val in .* are silence, so there is no label to learn"):
        training.clips_to_train_on(None, clips, silent)
    with pytest.raises(InputError, match=r"all 1 clips of .* here are silence, and none has a label"):
        silent.with_one_label()


def test_scores_of_val_are_those_of_the_metrics(data_dir):
    clips = read_clips(data_dir, "val")
    logits = np.random.default_rng(0).normal(size=clips.targets.shape)
    found = training.val_scores(np.where(clips.is_known, clips.targets, UNKNOWN), logits, several=True)
    truth = clips.targets > 0, clips.is_known, logits
    assert found["macro_average_precision"] == multi_label.macro_average_precision(*truth)
    assert found["accuracy"] == pytest.approx(np.nanmean(multi_label.top_accuracy(*truth)))
