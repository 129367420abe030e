"""What a model has heard goes wherever it goes, and whoever scores it on that is told."""

import argparse
import csv
import json

import pandas as pd
import pytest
from transformers import AutoModelForAudioClassification

from tests.data import LABELS, small_model, write_processed
from tests.stages import load_stage
from utils.core import runs
from utils.core.errors import InputError
from utils.data import clips
from utils.models import encoders, latency, training_history
from utils.pruning import healing

OF_OTHER_DATA = "its folder does not list those recordings"


def write_other_split(data_dir, other_dir, swaps, sounds=None, rename=lambda name: name):
    """Write the clips of a data set once more, some recordings on another side; `sounds` by recording id."""
    parts = (pd.read_parquet(data_dir / clips.part_name(i)).to_dict("records") for i in (0, 1))
    rows = [row for part in parts for row in part]
    for row in rows:
        row["split"] = swaps.get(row["recording_id"], row["split"])
        row["recording_id"] = rename(row["recording_id"])
        row["clip_id"] = f"{row['recording_id']}:{row['clip_index']}"
    args = argparse.Namespace(output_dir=other_dir, overwrite=False, seed=0)
    with runs.open_run("01_data_processing", args, {}):
        clips.write_part(other_dir / clips.part_name(0), rows, 16_000, 0.5)
        clips.write_labels(other_dir, LABELS)
        with (other_dir / "recordings.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["recording_id", "split", "sha256"])
            for name, split in sorted({(row["recording_id"], row["split"]) for row in rows}):
                writer.writerow([name, split, (sounds or {}).get(name, "")])
    return other_dir


SWAPS = {"Crow/train0": "test", "Crow/train1": "test", "Blackbird/train0": "val"}
SWAPS |= {"Crow/test0": "train", "Crow/test1": "train", "Blackbird/val0": "test"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One data set, and its recordings on other sides."""
    folder = tmp_path_factory.mktemp("history")
    return write_processed(folder / "first"), write_other_split(folder / "first", folder / "second", SWAPS)


def trained(model, data_dir):
    training_history.note_training(
        model, clips.data_input(data_dir).sha256, *(clips.read_clips(data_dir, split) for split in ("train", "val"))
    )
    return model


def known(model, data_dir, split="test"):
    recordings = clips.read_clips(data_dir, split).table["recording_id"]
    return training_history.warn_of_known_recordings(model, "m", clips.data_input(data_dir), {split: recordings})[split]


def test_recordings_are_found_again_after_another_split(data, caplog):
    first, second = data
    model = small_model("wav2vec2").model
    assert known(model, first) != known(model, first), "NaN: nobody knows"
    assert not caplog.text
    trained(model, first)
    assert known(model, first) == known(model, first, "val") == 0 and not caplog.text
    assert known(model, second) == 2
    assert "m was trained on 2 of the 10 test recordings of" in caplog.text
    assert "1 of the 10 test recordings" in caplog.text, "Blackbird/val0 chose the epoch"
    assert known(model, second, "val") == 1
    assert known(model, first, "train") == 18


def test_the_history_of_all_trainings_is_saved_pruned_healed_and_loaded(data, tmp_path):
    first, second = data
    digests = [clips.data_input(folder).sha256 for folder in data]
    whole = small_model("hubert")
    whole.config.clip_seconds = 0.5
    trained(whole.model, first)
    encoders.save_model(whole, tmp_path / "first")
    base = encoders.load_base_model(str(tmp_path / "first"), LABELS)
    trained(base.model, second)
    encoders.save_model(base, tmp_path / "second")
    again = encoders.load_any_model(tmp_path / "second", "cpu")
    encoders.prune_model(again.model, [0, 2])
    encoders.save_model(again, tmp_path / "pruned")
    pruned = encoders.load_model(tmp_path / "pruned", "cpu")
    train, val = (clips.read_clips(second, split) for split in ("train", "val"))
    settings = healing.settings_for(1, seed=0)
    (tmp_path / "work").mkdir()
    healing.heal_subset(
        *(pruned, (0,), tmp_path / "healed" / "model", "head", train, val, settings, tmp_path / "work", 8),
    )
    healed = encoders.load_model(tmp_path / "healed" / "model", "cpu").model
    assert healed.config.trained_on == digests
    assert healed.training_history == base.model.training_history and healed.training_history.data == tuple(digests)
    assert known(healed, first) == 2 and known(healed, second) == 2
    plain = AutoModelForAudioClassification.from_pretrained(tmp_path / "healed" / "model")
    assert plain.config.trained_on == digests


def test_a_sound_is_known_by_another_name_and_a_name_by_another_sound(data, tmp_path, caplog):
    names = sorted({name for name in clips.read_clips(data[0], "train").table["recording_id"]} | set(SWAPS))
    sounds = {name: f"{i:064d}"[::-1] for i, name in enumerate(names)}
    first = write_other_split(data[0], tmp_path / "first", {}, sounds)
    model = trained(small_model("wav2vec2").model, first)

    renamed = write_other_split(
        *(data[0], tmp_path / "renamed", SWAPS, {f"new/{name}": value for name, value in sounds.items()}),
        rename=lambda name: f"new/{name}",
    )
    assert known(model, renamed) == 2 and "by their names" not in caplog.text
    louder = write_other_split(data[0], tmp_path / "louder", SWAPS, dict.fromkeys(sounds, "f" * 64))
    assert known(model, louder) == 2 and "(2 known only by their names)" in caplog.text
    other = write_other_split(data[0], tmp_path / "other", SWAPS, {}, rename=lambda name: f"new/{name}")
    assert known(model, other) == 0


def test_models_from_before_the_list_are_still_told_of(data, caplog):
    model = small_model("wav2vec2").model
    model.config.data_sha256 = "0" * 64
    assert known(model, data[0]) != known(model, data[0]) and OF_OTHER_DATA in caplog.text
    trained(model, data[0])
    caplog.clear()
    assert known(model, data[0]) == 0 and "sha256 000000000000…" in caplog.text
    assert model.config.trained_on == ["0" * 64, clips.data_input(data[0]).sha256]
    caplog.clear()
    same = small_model("wav2vec2").model
    same.config.data_sha256 = clips.data_input(data[0]).sha256
    known(same, data[0])
    assert not caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "[]", "5", '{"schema_version": 2}', '{"schema_version": 1, "data_sha256": [], "train": [5], "val": []}'],
)
def test_a_damaged_history_is_refused(content, tmp_path):
    encoders.save_model(small_model("wav2vec2"), tmp_path / "model")
    (tmp_path / "model" / training_history.FILE_NAME).write_text(content)
    with pytest.raises(InputError, match=r"training_recordings\.json cannot be read"):
        encoders.load_model(tmp_path / "model", "cpu")


def test_stages_tell_of_it(data, tmp_path, caplog, monkeypatch):
    first, second = data
    monkeypatch.setattr(latency, "MAX_PASSES", 1)

    def main(stage, output, data_dir, *words):
        caplog.clear()
        words = [*words, "--data_dir", data_dir, "--output_dir", tmp_path / output, "--device", "cpu"]
        module = load_stage(stage)
        monkeypatch.setattr(module, "draw", lambda *_: None, raising=False)
        assert module.main([str(word) for word in words]) == 0
        return caplog.text

    once = ("--num_train_epochs", 1)
    assert "recordings of" not in main("02_finetuning", "one", first, "--base_model", "tiny", *once)
    text = main("02_finetuning", "two", second, "--base_model", tmp_path / "one", *once)
    assert f"{tmp_path / 'one'} was trained on 1 of the 9 val recordings" in text
    assert f"{tmp_path / 'one'} was trained on 2 of the 10 test recordings" in text
    for name in ("one", "two"):
        text = main("03_model_validation", f"results/{name}", second, "--model_dir", tmp_path / name)
        assert f"{tmp_path / name} was trained on 2 of the 10 test recordings" in text
        assert pd.read_csv(tmp_path / "results" / name / "metrics.csv")["n_recordings_trained_on"][0] == 2
        record = json.loads((tmp_path / "results" / name / "run.json").read_text())
        assert record["metrics"]["n_recordings_trained_on"] == 2
    text = main("04_analysis", "analysis", second, "--model_dir", tmp_path / "two", "--metrics", "cosine")
    assert "was trained on 1 of the 9 val recordings" in text
    words = ("--strategies", "forward", "--heal", 1)
    text = main("05_pruning", "sweep", second, "--model_dir", tmp_path / "one", *words)
    assert "was trained on 1 of the 9 val recordings" in text and "was trained on 2 of the 10 test" in text
    healed = json.loads((tmp_path / "sweep" / "healed" / "model" / training_history.FILE_NAME).read_text())
    assert healed["data_sha256"] == [clips.data_input(folder).sha256 for folder in data]


# --------------------------------------------------------------------------------- clips that chose the layers


@pytest.mark.parametrize(
    ("chosen", "split", "words"),
    [
        (("test", "a/fold-1-of-5"), "test", "the layers of m were chosen on these test clips"),
        (("val", "a/fold-1-of-5"), "val", "the layers of m were chosen on these val clips"),
        (("val", "a/fold-1-of-5"), "test", None),
        (("val", "a/fold-5-of-5"), "test", "chosen on val of fold-5-of-5, and now fold-1-of-5 is scored"),
        (("test", "b/fold-1-of-5"), "test", None),  # other data
        (("test", "a/fold-1-of-5"), "train", None),
        (None, "test", None),
    ],
)
def test_scores_on_clips_that_chose_the_layers_are_warned_about(chosen, split, words, caplog):
    config = argparse.Namespace()
    if chosen is not None:
        config.layers_chosen_on = training_history.chosen_on(*chosen)
    training_history.warn_of_choice(config, "m", runs.Input("data", "a/fold-1-of-5"), split)
    assert (words is None and not caplog.records) or words in caplog.text
