"""Stages 02 to 07 on clips with several labels, or none: what they learn, score, write and refuse."""

import argparse
import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification, pipeline

from tests.data import CLIP_SECONDS, LABELS, small_model, write_annotated, write_processed
from tests.stages import load_stage
from utils.core import runs
from utils.core.errors import InputError
from utils.data.clips import data_input, read_clips
from utils.models import augmentation, classify, decision, encoders, predict, training
from utils.models.augmentation import UNKNOWN
from utils.models.loaded_model import MULTI_LABEL
from utils.scores import comparison, intervals, multi_label, pooling, predictions, summary

pytestmark = pytest.mark.usefixtures("blank_figures", "quick_models")
training_stage, scoring_stage, cnn_stage = map(load_stage, ("02_finetuning", "03_model_validation", "06_cnn"))
analysis_stage, pruning_stage, manual_stage = map(load_stage, ("04_analysis", "05_pruning", "07_manual_pruning"))


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


def write_model(folder, data_dir, seed=0, **config):
    """Leave what stage 02 leaves: a model with random weights, of several labels a clip unless `config` says no."""
    torch.manual_seed(seed)
    loaded = encoders.tiny_model(LABELS)
    own = {"clip_seconds": CLIP_SECONDS, "data_sha256": data_input(data_dir).sha256, "problem_type": MULTI_LABEL}
    loaded.config.update(own | config)
    with runs.open_run("02_finetuning", argparse.Namespace(output_dir=folder, overwrite=False, seed=0), {}):
        encoders.save_model(loaded, folder / "model")
    return folder


def score(model_dir, data_dir, output_dir, *more) -> int:
    words = ("--model_dir", model_dir, "--data_dir", data_dir, "--output_dir", output_dir, "--device", "cpu", *more)
    return scoring_stage.main([*map(str, words)])


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


# ------------------------------------------------------------------------------------------- stage 03


@pytest.fixture(scope="module")
def results_dir(run_dir, data_dir, tmp_path_factory):
    """Results of the trained model, `tiny`, and of one with random weights, `other`."""
    folder = tmp_path_factory.mktemp("results")
    other = write_model(folder.parent / "other", data_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: None)
        assert score(run_dir, data_dir, folder / "tiny") == 0
        assert score(other, data_dir, folder / "other") == 0
    return folder


def test_what_stage_03_writes(results_dir, run_dir, data_dir):
    folder, clips = results_dir / "tiny", read_clips(data_dir, "test")
    written = {path.name for path in folder.iterdir()} - {".lock"}
    assert written == {"metrics.csv", "classification_report.csv", "predictions.parquet", "run.json", "log.txt"}
    loaded = encoders.load_model(run_dir, "cpu")
    logits = predict.predict(loaded, clips, 16)
    answers = predictions.read_answers(folder)
    assert (answers.targets == (clips.targets > 0)).all() and (answers.is_known == clips.is_known).all()
    assert (answers.is_detected == (logits >= 0)).all()
    assert answers.logits == pytest.approx(logits, abs=1e-5)
    row = summary.read_metrics(folder / "metrics.csv").iloc[0]
    scores = multi_label.score_all(answers).scores
    assert {name: row[name] for name in scores} == pytest.approx(scores, rel=1e-5, nan_ok=True)
    assert all(np.isnan(row[name]) for name in summary.OF_ONE_LABEL) and row["n_clips"] == 16
    report = pd.read_csv(folder / "classification_report.csv")
    assert report["label"].tolist() == LABELS and (report["threshold"] == 0.5).all()
    assert report["average_precision"].mean() == pytest.approx(row["macro_average_precision"], rel=1e-5)
    log_text = (folder / "log.txt").read_text()
    assert (
        "no thresholds are fitted" in log_text and "cmAP (chance 0." in log_text and "false alarms an hour" in log_text
    )


def test_summary_has_models_of_both_kinds(results_dir, data_dir, tmp_path):
    one = write_model(tmp_path / "one", data_dir, problem_type="single_label_classification")
    assert score(one, data_dir, results_dir / "one") == 0
    table = summary.read_metrics(results_dir / "summary.csv").set_index("model_name")
    assert table.loc["one", "n_clips"] == 12 and table.loc["tiny", "n_clips"] == 16
    assert np.isnan(table.loc["one", "precision"]) and table.loc["tiny", "false_alarms_per_hour"] >= 0
    assert all(summary.holds(results_dir / name) for name in ("one", "tiny"))
    assert "4 of 16 clips are silence and are left out" in (results_dir / "one" / "log.txt").read_text()
    assert "precision" not in summary.read_metrics(results_dir / "one" / "metrics.csv")
    assert scoring_stage.main(["--compare", str(results_dir / "tiny"), str(results_dir / "one")]) == 3


def test_comparison_is_the_paired_difference_in_macro_average_precision(results_dir, tmp_path, caplog):
    words = ["--compare", results_dir / "tiny", results_dir / "other", "--output_dir", tmp_path / "comparison"]
    assert scoring_stage.main([*map(str, words)]) == 0
    row = pd.read_csv(tmp_path / "comparison" / "comparison.csv").iloc[0]
    both = [multi_label.compared(predictions.read_answers(results_dir / name)) for name in ("tiny", "other")]
    left_out = both[0].left_out[0] - both[1].left_out[0]
    difference = both[0].estimate[0] - both[1].estimate[0]
    error = np.sqrt(3 / 4 * ((left_out - left_out.mean()) ** 2).sum())
    ends = intervals.difference_interval(difference, error, 4, intervals.critical_value(4))
    names = ("difference", "low", "high")
    assert [row[f"macro_average_precision_{name}"] for name in names] == pytest.approx([difference, *ends], abs=1e-5)
    assert row["macro_average_precision_p"] == pytest.approx(2 * stats.t.sf(abs(difference / error), 3), abs=1e-5)
    assert "tiny minus other: macro average precision" in caplog.text
    assert "no worse in macro average precision than by 0.02" in caplog.text
    assert "macro_f1_difference" not in row and 0 < row["accuracy_p"] <= 1


def test_equal_models_differ_by_nothing_but_have_an_interval(results_dir):
    scored = comparison.read_scored(results_dir / "tiny")
    table = comparison.comparison_table([scored, scored], 0, 0.02)
    assert table["macro_average_precision_p"][0] == 1 and table["macro_average_precision_low"][0] < 0


def test_other_labels_of_the_same_clips_are_refused(results_dir):
    scored = comparison.read_scored(results_dir / "tiny")
    answers = dataclasses.replace(scored.answers, targets=~scored.answers.targets)
    with pytest.raises(InputError, match="scored on different clips: the labels of a clip differ"):
        comparison.check_same_clips(scored, dataclasses.replace(scored, answers=answers))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label_ids", [[3]], r"has label_ids \[3\]; expected label ids, 0 to 2"),
        ("detected_ids", [["a"]], r"has detected_ids \['a'\]; expected label ids"),
        ("duration_s", [0.0], "has a duration_s that is not a number above 0"),
        ("duration_s", ["long"], "has a duration_s that is not a number above 0"),
        ("model", ["first"], "has a model that is not a whole number"),
    ],
)
def test_damaged_answers_are_refused(column, value, message, results_dir, tmp_path):
    table = pq.read_table(results_dir / "tiny" / "predictions.parquet")
    if column in table.column_names:
        table = table.drop([column])
    pq.write_table(table.append_column(column, pa.array(value * len(table))), tmp_path / "predictions.parquet")
    with pytest.raises(InputError, match=message):
        predictions.read_answers(tmp_path)


def test_fitted_thresholds_are_used_and_a_label_without_one_is_never_detected(run_dir, data_dir, tmp_path, caplog):
    shutil.copytree(run_dir / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    fitted = {
        "target_precision": 0.9,
        "calibration": {"kind": "platt", "slope": 2.0, "intercept": 1.0},
        "thresholds": {LABELS[0]: 0.4, LABELS[1]: None, LABELS[2]: 0.7},
        "reasons": {LABELS[1]: "few"},
        "fitted_on": {"data_sha256": "0", "split": "val"},
    }
    decision.write(path, fitted)
    assert score(tmp_path / "model", data_dir, tmp_path / "scored") == 0
    answers = predictions.read_answers(tmp_path / "scored")
    scores = 1 / (1 + np.exp(-2 * answers.logits.astype(float) - 1))
    assert (answers.is_detected == (scores >= [0.4, np.inf, 0.7])).all()
    assert f"1 label has no threshold, never detected here: {LABELS[1]}" in caplog.text
    assert "no thresholds are fitted" not in caplog.text


def test_pool_means_rankings_over_folds_and_joins_detections(tmp_path):
    data_dir = write_annotated(tmp_path / "data", folds=3)
    folders = [tmp_path / "results" / "data" / "tiny" / f"fold-{fold}.seed-0" for fold in (1, 2, 3)]
    for fold, folder in enumerate(folders, start=1):
        model = write_model(tmp_path / f"model-{fold}", data_dir, seed=fold)
        assert score(model, data_dir, folder, "--fold", fold) == 0
    assert scoring_stage.main(["--pool", *map(str, folders)]) == 0
    rows = [summary.read_metrics(folder / "metrics.csv").iloc[0] for folder in folders]
    pooled_dir = folders[0].with_name("fold-all.seed-0")
    pooled = summary.read_metrics(pooled_dir / "metrics.csv").iloc[0]
    mean = np.mean([row["macro_average_precision"] for row in rows])
    assert pooled["macro_average_precision"] == pytest.approx(mean, abs=1e-5)
    assert pooled["macro_average_precision_low"] < mean < pooled["macro_average_precision_high"]
    answers = [predictions.read_answers(folder) for folder in folders]
    hits = sum((one.targets & one.is_detected).sum() for one in answers)
    assert pooled["recall"] == pytest.approx(hits / sum(one.targets.sum() for one in answers), abs=1e-5)
    assert pooled["n_background_clips"] == sum(row["n_background_clips"] for row in rows)
    # Outputs of the models of two folds have no common scale, also in a comparison of pooled results.
    scored = comparison.read_scored(pooled_dir)
    assert sorted(set(scored.answers.model)) == [0, 1, 2]
    assert comparison.jackknife_of([scored]).estimate[0] == pytest.approx(mean, abs=1e-5)
    folds = pooling.read_folds(folders)
    with pytest.raises(InputError, match="some of the models give a clip several labels or none"):
        mixed = {at: dataclasses.replace(one, answers=None) if at == folders[0] else one for at, one in folds.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparison, "read_scored", mixed.__getitem__)
            pooling.read_folds(folders)


# ------------------------------------------------------------------------------------- stages 04, 05, 07


def run_stage(stage, run_dir, data_dir, output_dir, *more) -> int:
    words = ("--model_dir", run_dir, "--output_dir", output_dir, "--device", "cpu")
    return stage.main([*map(str, (*words, *(("--data_dir", data_dir) if data_dir else ()), *more))])


def test_stage_04_measures_each_clip_with_its_first_label(run_dir, data_dir, tmp_path):
    metrics = ("--metrics", "graph_convexity", "probe", "cka", "block_influence", "--num_neighbors", 3)
    assert run_stage(analysis_stage, run_dir, data_dir, tmp_path / "out", "--split", "train", *metrics) == 0
    assert "6 of 24 clips are silence and are left out" in (tmp_path / "out" / "log.txt").read_text()
    clips = read_clips(data_dir, "train").with_one_label()
    assert not clips.is_annotated and len(clips) == 18
    table = pd.read_csv(tmp_path / "out" / "hidden_states_clips.csv")
    assert table["label"].tolist() == clips.table["label"].tolist()


@pytest.fixture(scope="module")
def sweep_dir(run_dir, data_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("sweep") / "out"
    words = ("--strategies", "forward", "block_influence", "convexity_peak", "--heal", 1, "--heal_keep", "0-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.layers.analysis.NUM_NEIGHBORS", 3)
        assert run_stage(pruning_stage, run_dir, data_dir, output_dir, *words) == 0
    return output_dir


def test_stage_05_scores_subsets_by_top_1_accuracy(sweep_dir, run_dir, data_dir):
    table = pd.read_csv(sweep_dir / "pruning.csv", dtype={"kept_layers": str})
    clips = read_clips(data_dir, "val").without_silence()
    for keep, blocks in (("0-3", [0, 1, 2, 3]), ("0,2-3", [0, 2, 3])):
        loaded = encoders.load_model(run_dir, "cpu")
        encoders.prune_model(loaded.model, blocks)
        logits = predict.predict(loaded, clips, 4)
        hits = multi_label.top_accuracy(clips.targets > 0, clips.is_known, logits)
        row = table[table["kept_layers"] == keep].iloc[0]
        assert row["search_accuracy"] == pytest.approx(hits.mean(), abs=1e-5)
        answers = np.eye(3, dtype=bool)[np.where(clips.is_known, logits, -np.inf).argmax(axis=1)]
        occurs = clips.targets.any(axis=0)
        f1 = reference.f1_score(clips.targets[:, occurs] > 0, answers[:, occurs], average="macro", zero_division=0)
        assert row["search_macro_f1"] == pytest.approx(f1, abs=1e-5)
    hits = multi_label.top_accuracy(*truth_and_logits(run_dir, data_dir, "test")[:3])
    labelled = np.isfinite(hits)
    groups = read_clips(data_dir, "test").table["group"].to_numpy()[labelled]
    ends = intervals.score_intervals(np.ones(labelled.sum(), int), hits[labelled].astype(int), groups)["accuracy"]
    whole = table[table["strategy"] == "full"].iloc[0]
    assert [whole["report_accuracy_low"], whole["report_accuracy_high"]] == pytest.approx(ends, abs=1e-5)


def truth_and_logits(model_dir, data_dir, split):
    clips = read_clips(data_dir, split)
    return clips.targets > 0, clips.is_known, predict.predict(encoders.load_model(model_dir, "cpu"), clips, 4)


def test_a_healed_head_learns_several_labels(sweep_dir):
    healed = encoders.load_model(sweep_dir / "healed" / "model", "cpu")
    assert healed.is_multi_label and healed.config.kept_layers == [0, 1, 2]
    assert "epoch 1 of 1: train loss" in (sweep_dir / "log.txt").read_text()


def test_stage_07_keeps_several_labels(sweep_dir, run_dir, data_dir, tmp_path):
    assert run_stage(manual_stage, run_dir, None, tmp_path / "pruned", "--keep_layers", "0,2") == 0
    pruned = encoders.load_model(tmp_path / "pruned", "cpu")
    assert pruned.is_multi_label and len(pruned.model.wav2vec2.encoder.layers) == 2
    assert score(tmp_path / "pruned", data_dir, tmp_path / "scored") == 0


def test_stage_05_takes_the_first_label_for_a_model_of_one(data_dir, tmp_path):
    one = write_model(tmp_path / "one", data_dir, problem_type="single_label_classification")
    assert run_stage(pruning_stage, one, data_dir, tmp_path / "out", "--strategies", "forward") == 0
    assert "4 of 16 clips are silence and are left out" in (tmp_path / "out" / "log.txt").read_text()


def test_classify_answers_with_sigmoids(run_dir):
    config = encoders.load_model(run_dir, "cpu").config
    logits = np.array([[0.0, 2.0, -1.0]], np.float32)
    assert classify.scores_of(logits, config) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)
