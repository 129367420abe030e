"""Stage 08: detections in recordings of any length, on a tiny model and synthesised sound."""

import json
import re
import shutil
import threading

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from tests.data import CLIP_SECONDS, LABELS, SAMPLE_RATE_HZ, small_model, write_processed
from tests.sounds import song, write
from tests.stages import digests, load_stage
from utils.core.errors import InputError, UsageError
from utils.data import audio, clips, preparation, recorders, recordings
from utils.field import detections, field_model, scores_table, scoring
from utils.field.window_stream import WindowFormat, WindowStream
from utils.models import decision, encoders, predict

stage = load_stage("08_detection")

SECONDS = {"a_20250601_210000.wav": 3.2, "site/b.wav": 0.7, "site/c.flac": 2.0}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Return the folder of a model as 02 saves it, with a head that tells its labels apart."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    loaded = small_model("wav2vec2")
    data_dir = write_processed(folder / "data")
    encoders.configure_for_training(loaded.model, clips.read_clips(data_dir, "train", None, 0, None), [], "x" * 64)
    loaded.config.clip_least_seconds, loaded.config.clip_least_rest_seconds = 0.1, 0.2
    loaded.model.classifier.weight.data *= 50
    encoders.save_model(loaded, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "night"
    for i, (name, seconds) in enumerate(SECONDS.items()):
        write(folder / name, song(seconds, SAMPLE_RATE_HZ, 1, i), SAMPLE_RATE_HZ)
    write(folder / "silent.wav", np.zeros(16000), 16000)
    (folder / "notes.txt").write_text("a warm night")
    return folder


def detect(model_dir, raw_dir, output_dir, *words, threshold=0.3, workers=1):
    words = ["--model_dir", model_dir, "--raw_dir", raw_dir, "--output_dir", output_dir, *words]
    words += ["--num_workers", workers] + ([] if threshold is None else ["--threshold", threshold])
    return stage.main([str(word) for word in words])


def table(output_dir):
    return pd.read_csv(output_dir / detections.NAME, keep_default_na=False)


@pytest.fixture(scope="module")
def night(model_dir, raw_dir, tmp_path_factory):
    """Return the results of the recordings, by one process, with all that can be written."""
    output_dir = tmp_path_factory.mktemp("night") / "out"
    words = ["--save_scores", "--overlap_seconds", "0.25", "--formats", "csv", "--batch_size", "4"]
    assert detect(model_dir, raw_dir, output_dir, *words) == 0
    return output_dir, words


# ------------------------------------------------------------------------------------------------- windows


def windows_of(size, hop, least=1, least_rest=1, remainder="pad"):
    return WindowFormat(1000, size, hop, least, least_rest, remainder)


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_windows_without_overlap_are_the_clips_of_01(remainder):
    for size, least, least_rest in ((10, 4, 3), (7, 7, 1), (5, 1, 5)):
        form = windows_of(size, size, least, least_rest, remainder)
        for n in range(40):
            assert form.n_windows(n) == len(audio.cut(n, size, least, least_rest, remainder))


@pytest.mark.parametrize(("size", "hop"), [(10, 10), (10, 7), (10, 3), (6, 1)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_stream_cuts_the_same_windows_whatever_its_blocks(size, hop, batch_size):
    form, rng = windows_of(size, hop, 4, 4), np.random.default_rng(0)
    for n in (0, 3, 4, 9, 10, 11, 25, 64):
        sound = rng.integers(-30000, 30000, n).astype(np.int16)
        wanted = [audio.pad_by_repetition(sound[k * hop : k * hop + size], size) for k in range(form.n_windows(n))]
        for block in (1, 5, 64):
            taken = []
            stream = WindowStream(form, batch_size, taken.append)
            for start in range(0, n, block):
                stream(sound[start : start + block])
            stream.finish()
            assert [len(batch) for batch in taken[:-1]] == [batch_size] * (len(taken) - 1)
            found = np.concatenate([*taken, np.empty((0, size), np.float32)])
            assert stream.n_samples == n and np.array_equal(found * 32768, np.reshape(wanted, (-1, size)))


def test_with_overlap_all_sound_is_in_a_window_but_a_short_rest():
    form = windows_of(10, 4, 4, 3)
    assert [form.n_windows(n) for n in (3, 4, 10, 11, 14, 15)] == [0, 1, 1, 2, 2, 3]
    assert windows_of(10, 10, 4, 3).n_windows(12) == 1 and windows_of(10, 10, 4, 3).n_windows(13) == 2


def test_windows_of_a_model():
    config = {"clip_seconds": 3.0, "clip_least_seconds": 0.0, "clip_least_rest_seconds": 1, "clip_remainder": "drop"}
    assert WindowFormat.of_model(config, 16000, 1.0) == WindowFormat(16000, 48000, 32000, 1, 16000, "drop")
    for overlap in (3.0, 2.999999):
        with pytest.raises(UsageError, match=f"--overlap_seconds {overlap}: the windows of this model last 3 s"):
            WindowFormat.of_model(config, 16000, overlap)


# --------------------------------------------------------------------------------------------------- merging


def test_windows_that_overlap_or_touch_are_one_detection():
    form = windows_of(10, 5)
    hits = [(0, 0, 0.5), (1, 0, 0.9), (3, 0, 0.7), (6, 0, 0.6), (3, 1, 0.8), (8, 1, 0.4)]
    found = detections.merge(*map(np.array, zip(*hits[::-1], strict=True)), form, 48)
    wanted = [(0, 25, 0, 0.9), (15, 25, 1, 0.8), (30, 40, 0, 0.6), (40, 48, 1, 0.4)]
    assert found.tolist() == wanted, "windows 1 and 3 touch at 15; 3 and 6 do not; the last one ends with the file"
    empty = np.empty(0, int)
    assert detections.merge(empty, empty, np.empty(0), form, 48).tolist() == []


def test_time_of_day():
    start = recorders.Start("2025-06-01T23:59:59.500000+02:00", "GUANO")
    assert detections.time_of_day(start, 1.25) == "2025-06-02T00:00:00.750+02:00"
    assert detections.time_of_day(recorders.Start("2025-06-01T06:00:00", "file name"), 3) == "2025-06-01T06:00:03.000"
    assert detections.time_of_day(recorders.Start(), 3) == ""
    assert detections.time_of_day(recorders.Start("2025-06-01T06:00:00", "AudioMoth", True), 3) == ""


# ------------------------------------------------------------------------------------------------- the stage


def test_scores_are_those_of_03_for_the_clips_of_01(model_dir, tmp_path):
    """The same recordings through 01 and 03's prediction, and through 08."""
    for i, label in enumerate(LABELS):
        for k in range(3):
            sound = song(1.3 + 0.4 * k, 22050, 2 - k % 2, 3 * i + k)
            write(tmp_path / "raw" / label / f"{i}{k}.wav", sound, 22050)
    words = ["--raw_dir", tmp_path / "raw", "--clip_seconds", CLIP_SECONDS, "--min_remainder_seconds", 0.2]
    words += ["--output_dir", tmp_path / "data", "--min_recordings", 1, "--num_workers", 1]
    assert load_stage("01_data_processing").main([str(word) for word in words]) == 0
    assert detect(model_dir, tmp_path / "raw", tmp_path / "out", "--save_scores") == 0
    scores = pq.read_table(tmp_path / "out" / scores_table.NAME).to_pandas().set_index(["file", "start_s"])
    loaded, n_clips = encoders.load_model(model_dir, "cpu"), 0
    for split in ("train", "val", "test"):
        data = clips.read_clips(tmp_path / "data", split, None, 0, None)
        wanted = decision.scores(predict.predict(loaded, data, 16), loaded.config)
        n_clips += len(data)
        for (file, start_s), row in zip(data.table[["source_path", "start_s"]].to_numpy(), wanted, strict=True):
            np.testing.assert_allclose(scores.loc[(file, start_s), LABELS].to_numpy(float), row, atol=5e-4)
    assert len(scores) == n_clips


def test_scores_before_they_are_rounded_are_those_of_03(model_dir, tmp_path):
    data = clips.read_clips(model_dir.parent / "data", "test", None, 0, None)
    sound = np.concatenate([data.audio(i) for i in range(len(data))])
    soundfile.write(tmp_path / "clips.wav", sound, SAMPLE_RATE_HZ, subtype="PCM_16")
    loaded = encoders.load_model(model_dir, "cpu")
    form = WindowFormat.of_model(loaded.config.to_dict(), SAMPLE_RATE_HZ, 0.0)
    batches = []
    with scoring.scoring(loaded, 2) as score:
        stream = WindowStream(form, 16, lambda windows: batches.append(score(windows)))
        audio.decode(tmp_path / "clips.wav", SAMPLE_RATE_HZ, lambda: stream)
        stream.finish()
        found = np.concatenate([batch.result() for batch in batches])
    np.testing.assert_allclose(found, decision.scores(predict.predict(loaded, data, 16), loaded.config), atol=1e-5)


def test_the_tables_agree(night, model_dir):
    """Detections follow from the scores; every table names the same ones."""
    output_dir, _ = night
    scores = pq.read_table(output_dir / scores_table.NAME).to_pandas()
    # Not float16: fastparquet 2026.9.0 returns its raw bytes without an error (findings/fastparquet-float16.sh).
    assert list(scores.columns) == ["file", "start_s", "end_s", *LABELS] and scores[LABELS].dtypes.eq("float32").all()
    assert scores.groupby("file").size().to_dict() == {"a_20250601_210000.wav": 12, "site/b.wav": 2, "site/c.flac": 7}
    found = table(output_dir)
    assert list(found.columns) == list(detections.COLUMNS) and len(found) > 3
    assert found[["file", "start_s", "label"]].apply(tuple, axis=1).is_monotonic_increasing
    assert (found["score"] >= found["threshold"]).all() and (found["threshold"] == 0.3).all()
    for row in found.itertuples():
        inside = scores[(scores["file"] == row.file) & (scores["start_s"] >= row.start_s)]
        inside = inside[inside["end_s"] <= row.end_s][row.label]
        assert f"{inside.max():.4f}" == f"{row.score:.4f}"
    above = scores[LABELS].ge(0.3).any(axis=1)
    for row in scores[above].itertuples():
        assert ((found["file"] == row.file) & (found["start_s"] <= row.start_s) & (found["end_s"] >= row.end_s)).any()
    assert set(found.loc[found["file"].str.startswith("a_"), "recorded_at"].str[:13]) == {"2025-06-01T21"}
    assert set(found.loc[found["file"].str.startswith("site"), "recorded_at"]) == {""}
    csv = pd.concat(pd.read_csv(path) for path in sorted((output_dir / "csv").rglob("*.csv"))).dropna(subset="label")
    # Of labels that start together, detections.csv has them by name, and a table has first what ends first.
    of_table = found.sort_values(["file", "start_s", "end_s", "label"])
    assert (
        csv[["file", "start", "end", "label"]].to_numpy().tolist()
        == of_table[["file", "start_s", "end_s", "label"]].to_numpy().tolist()
    )
    assert (output_dir / "skipped.csv").read_text().splitlines() == [
        "file,reason",
        "silent.wav,silent: every sample of it is 0",
    ]
    record = json.loads((output_dir / "run.json").read_text())
    assert record["metrics"]["n_detections"] == len(found) and not (output_dir / ".work").exists()


@pytest.mark.parametrize("workers", [2, 9])
def test_the_same_bytes_by_any_number_of_workers(night, model_dir, raw_dir, tmp_path, workers):
    """By two processes, and by processes with several threads."""
    output_dir, words = night
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, workers=workers) == 0
    assert digests_of(tmp_path / "out") == digests_of(output_dir)


def digests_of(output_dir):
    shutil.rmtree(output_dir / ".work", ignore_errors=True)
    return digests(output_dir)


def test_a_single_file_with_threads(night, model_dir, raw_dir, tmp_path):
    output_dir, words = night
    assert detect(model_dir, raw_dir / "a_20250601_210000.wav", tmp_path / "out", *words, workers=3) == 0
    found, wanted = table(tmp_path / "out"), table(output_dir)
    pd.testing.assert_frame_equal(found, wanted[wanted["file"].str.startswith("a_")].reset_index(drop=True))


@pytest.fixture
def how(model_dir, raw_dir, tmp_path):
    """Return a task for all recordings, and the recordings."""
    model = field_model.read(model_dir, 0.3)
    windows = model.windows(SAMPLE_RATE_HZ, 0.25)
    (tmp_path / "results").mkdir()
    thresholds = model.thresholds_by_id()
    own = scoring.How(
        raw_dir, tmp_path / "results", model_dir, model.sha256, "cpu", windows, model.channel, thresholds, 4, True
    )
    listed, _ = preparation.list_files(raw_dir, [*SECONDS, "silent.wav"])
    return own, list(listed.values())


def test_the_threads_that_decode_for_a_gpu(how, model_dir):
    """With the model on the CPU: the same results as by one thread."""
    own, files = how
    loaded = encoders.load_model(model_dir, "cpu")
    by_path = lambda result: getattr(result, "path", "")  # noqa: E731
    of_threads = sorted(scoring._score_on_gpu(own, files, 3, loaded), key=by_path)
    for path in own.results_dir.iterdir():
        path.unlink()
    assert sorted(scoring.score_all(own, files, 1, loaded), key=by_path) == of_threads
    assert isinstance(of_threads[0], recordings.Skipped) and len(of_threads) == 4


def test_an_error_ends_the_threads_that_decode_for_a_gpu(how, model_dir, monkeypatch):
    own, files = how
    monkeypatch.setattr(decision, "scores", lambda logits, config: np.full(logits.shape, np.nan))
    before = threading.active_count()
    with pytest.raises(InputError, match="logits that are NaN or infinite"):
        list(scoring._score_on_gpu(own, files, 3, encoders.load_model(model_dir, "cpu")))
    assert threading.active_count() == before
    assert not list(own.results_dir.glob("*.json"))


# ------------------------------------------------------------------------------------------- killed and continued


class Killed(BaseException):
    """Not even an exception."""


@pytest.mark.parametrize("moment", ["in a file", "after a file", "while writing"])
def test_a_killed_run_continues_where_it_was(night, model_dir, raw_dir, tmp_path, monkeypatch, moment):
    output_dir, words = night
    scored, listen = [], scoring._listen

    def die_in_second_file(how, path, *more):
        scored.append(path)
        if len(scored) == 2 and moment == "in a file":
            raise Killed
        return listen(how, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_listen", die_in_second_file)
        if moment == "after a file":
            patch.setattr(scoring, "_digest", die_at(2, scoring._digest))
        if moment == "while writing":
            patch.setattr(detections, "write_tables", die_at(1, detections.write_tables))
        with pytest.raises(Killed):
            detect(model_dir, raw_dir, tmp_path / "out", *words)
        n_before = len(scored)
        assert detect(model_dir, raw_dir, tmp_path / "out", *words) == 0
    again = scored[n_before:]
    assert len(again) == {"in a file": 3, "after a file": 3, "while writing": 1}[moment], "the finished ones are kept"
    assert digests(tmp_path / "out") == digests(output_dir)


def die_at(n, function):
    """Return a function that dies in its n-th call."""
    calls = iter(range(1, 1000))

    def called(*words):
        if next(calls) == n:
            raise Killed
        return function(*words)

    return called


def test_damaged_and_foreign_results_are_not_reused(night, model_dir, raw_dir, tmp_path, monkeypatch):
    """Of another file, of other arguments, or cut short."""
    output_dir, words = night
    with monkeypatch.context() as patch:
        patch.setattr(detections, "write_csv", die_at(1, None))
        with pytest.raises(Killed):
            detect(model_dir, raw_dir, tmp_path / "out", *words)
    scratch = tmp_path / "out" / ".work"
    path_of = lambda name, suffix: scoring.results_path(scratch, name, suffix)  # noqa: E731
    with path_of("site/b.wav", scoring.SCORES_SUFFIX).open("ab") as file:
        file.write(b"\0\0")
    path_of("site/c.flac", ".json").write_text('{"made_from": {}}')
    listened, listen = [], scoring._listen
    monkeypatch.setattr(scoring, "_listen", lambda how, path, *more: listened.append(path) or listen(how, path, *more))
    assert detect(model_dir, raw_dir, tmp_path / "out", *words) == 0
    assert sorted(listened) == ["silent.wav", "site/b.wav", "site/c.flac"]
    assert digests(tmp_path / "out") == digests(output_dir)


def test_what_is_complete_is_left_alone_and_other_arguments_are_refused(night, model_dir, raw_dir, caplog):
    output_dir, words = night
    before = digests(output_dir)
    (output_dir / ".work").mkdir()  # as after a kill at the very end
    assert detect(model_dir, raw_dir, output_dir, *words, workers=7) == 0
    assert "nothing to do" in caplog.text and not (output_dir / ".work").exists()
    assert detect(model_dir, raw_dir, output_dir, *words, threshold=0.4) == 4
    assert "it was made with --threshold 0.3, now it is 0.4" in caplog.text
    assert digests(output_dir) == before


def test_a_recording_that_changes_while_it_is_read_ends_the_run(model_dir, raw_dir, tmp_path, caplog, monkeypatch):
    shutil.copytree(raw_dir, tmp_path / "raw")
    read_start = recorders.read_start

    def grow(path):
        with path.open("ab") as file:
            file.write(b"\0" * 100)
        return read_start(path)

    monkeypatch.setattr(recorders, "read_start", grow)
    assert detect(model_dir, tmp_path / "raw", tmp_path / "out") == 3
    assert "changed while it was read" in caplog.text and "run the same command again" in caplog.text


# ------------------------------------------------------------------------------------------------------ shards


def test_shards_are_merged_to_the_same_bytes(night, model_dir, raw_dir, tmp_path, caplog):
    output_dir, words = night
    for number in (1, 2):
        assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--shard", f"{number}/2") == 0
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--merge_shards", 2) == 0
    assert digests(tmp_path / "out") == digests(output_dir)
    assert "rm -r" in caplog.text and "out.shards/*-of-2" in caplog.text
    shutil.rmtree(tmp_path / "out.shards")
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--merge_shards", 2) == 0, "a complete merge needs none"


def test_a_merge_names_the_shard_that_is_missing_or_differs(model_dir, raw_dir, tmp_path, caplog):
    words = ["--overlap_seconds", "0.1", "--formats", "csv", "raven"]
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--shard", "1/2") == 0
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--merge_shards", 2) == 3
    message = caplog.messages[-1]
    assert "1 of 2 shards cannot be merged (2): " in message and "it is missing; run python 08_detection.py " in message
    assert message.endswith(", then this command again") and "--formats csv raven" in message
    assert " --shard 2/2 " in message
    assert not (tmp_path / "out").exists()
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--shard", "2/2", threshold=0.5) == 0
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, "--merge_shards", 2) == 3
    assert "it was made with --threshold 0.5, now it is 0.3" in caplog.messages[-1]


def test_a_shard_that_is_written_again_during_the_merge(model_dir, raw_dir, tmp_path, caplog, monkeypatch):
    for number in (1, 2):
        assert detect(model_dir, raw_dir, tmp_path / "out", "--shard", f"{number}/2") == 0
    write_csv = detections.write_csv

    def meanwhile(*words):
        write_csv(*words)
        path = tmp_path / "out.shards" / "2-of-2" / "run.json"
        path.write_text(path.read_text().replace('"attempts": 1', '"attempts": 2'))

    monkeypatch.setattr(detections, "write_csv", meanwhile)
    assert detect(model_dir, raw_dir, tmp_path / "out", "--merge_shards", 2) == 3
    assert "2-of-2 was written again during the merge" in caplog.text


# ------------------------------------------------------------------------------------------------------ mistakes


def with_config(model_dir, folder, **changes):
    """Return a copy of a model with changes in its config; None removes a key."""
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def decision_of(**thresholds):
    return {
        "target_precision": 0.9,
        "calibration": {"kind": "temperature", "temperature": 2.0},
        "thresholds": {**dict.fromkeys(LABELS), **thresholds},
        "reasons": {label: "too few groups" for label in LABELS if label not in thresholds},
        "fitted_on": {"data_sha256": "x" * 64, "split": "val"},
    }


def test_fitted_thresholds_are_used_and_labels_without_one_are_named(night, model_dir, raw_dir, tmp_path, caplog):
    fitted = with_config(model_dir, tmp_path / "model", decision=decision_of(Blackbird=0.2, Crow=0.45))
    assert detect(fitted, raw_dir, tmp_path / "out", "--save_scores", threshold=None) == 0
    assert "thresholds: fitted on val for a precision of 0.9" in caplog.text
    assert (
        "1 of 3 labels have no threshold, because val can't tell it, and are never detected: Great Tit" in caplog.text
    )
    found = table(tmp_path / "out")
    assert set(found["label"]) <= {"Blackbird", "Crow"} and len(found)
    assert (found.loc[found["label"] == "Blackbird", "threshold"] == 0.2).all()
    scores = pq.read_table(tmp_path / "out" / scores_table.NAME).to_pandas()
    assert scores[LABELS].astype(float).sum(axis=1).between(0.99, 1.01).all()
    caplog.clear()
    assert detect(fitted, raw_dir, tmp_path / "out", threshold=None) == 4, "--save_scores was given"
    assert detect(fitted, raw_dir, tmp_path / "one", threshold=0.3) == 0
    assert "one threshold for all labels, 0.3, of scores that are calibrated" in caplog.text


def test_a_model_without_thresholds_needs_one(model_dir, raw_dir, tmp_path, caplog):
    assert detect(model_dir, raw_dir, tmp_path / "out", threshold=None) == 3
    assert "has no thresholds: fit them on val (03_model_validation.py --model_dir" in caplog.messages[-1]
    assert "--fit_thresholds), or give one for all labels, such as --threshold 0.9" in caplog.messages[-1]
    without = with_config(model_dir, tmp_path / "model", decision=decision_of())
    assert detect(without, raw_dir, tmp_path / "out", threshold=None) == 3
    assert "val can't tell a threshold for any of its 3 labels at a precision of" in caplog.messages[-1]
    less = re.search(r"a precision of ([\d.]+): ask for less .* --target_precision ([\d.]+) ", caplog.messages[-1])
    assert float(less[2]) < float(less[1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", field_model.HOW_CLIPS_WERE_CUT)
def test_a_model_that_does_not_know_its_clips(model_dir, raw_dir, tmp_path, caplog, name):
    old = with_config(model_dir, tmp_path / "model", **{name: None})
    assert detect(old, raw_dir, tmp_path / "out") == 3
    assert "does not record how its training clips were cut" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--overlap_seconds", 0.5], "--overlap_seconds 0.5: the windows of this model last 0.5 s; give less"),
        (["--overlap_seconds", 0.49999], "--overlap_seconds 0.49999: the windows of this model last 0.5 s"),
        (["--combined"], "--combined is for the tables of --formats: name one"),
        (["--combined", "--formats", "csv", "audacity"], "--combined: a table of audacity belongs to one recording"),
    ],
)
def test_arguments_that_do_not_go_together(model_dir, raw_dir, tmp_path, caplog, words, told):
    assert detect(model_dir, raw_dir, tmp_path / "out", *words) == 2
    assert told in caplog.messages[-1] and not (tmp_path / "out").exists()


def test_a_recording_whose_name_is_too_long_for_its_table(model_dir, tmp_path, caplog):
    most = 255 - len("..partial") - len(".selections.txt")
    names = ["ä" + "x" * (most - len("ä.wav".encode()) + more) + ".wav" for more in (0, 1)]
    longest, longer = (tmp_path / "raw" / "site" / name for name in names)
    write(longer, song(1.0, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    assert detect(model_dir, tmp_path / "raw", tmp_path / "out", "--formats", "audacity", "raven") == 3
    told = "1 recording has a name too long for a table of raven, which adds .selections.txt: expected at most"
    assert f"{told} {most} bytes, found {most + 1} in site/ä" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("rename the recording, or give --combined for one table of all")
    assert not (tmp_path / "out").exists()
    assert detect(model_dir, tmp_path / "raw", tmp_path / "all", "--formats", "raven", "--combined") == 0
    longer.rename(longest)
    assert detect(model_dir, tmp_path / "raw", tmp_path / "each", "--formats", "raven") == 0
    assert (tmp_path / "each" / "raven" / "site" / f"{longest.name}.selections.txt").is_file()
    longest.rename(longest.with_name("x" * 240 + ".wav"))
    assert detect(model_dir, tmp_path / "raw", tmp_path / "out", "--formats", "audacity") == 3
    assert caplog.messages[-1].endswith("rename the recording, or leave audacity out of --formats")


def test_an_output_folder_among_the_recordings_is_refused(model_dir, raw_dir, caplog):
    assert detect(model_dir, raw_dir, raw_dir / "out") == 2
    assert "is inside" in caplog.messages[-1] and not (raw_dir / "out").exists()


def test_recordings_that_are_not_there(model_dir, raw_dir, tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    for raw, told in (
        (tmp_path / "gone", "no such folder or file; expected a folder of recordings, or one recording"),
        (tmp_path / "empty", "holds no audio (1 other files)"),
        (raw_dir / "notes.txt", "is not a sound file that can be decoded; convert it to .wav or .flac"),
    ):
        assert detect(model_dir, raw, tmp_path / "out") == 3
        assert told in caplog.messages[-1]
    (tmp_path / "empty" / "night.wac").write_text("x")
    assert detect(model_dir, tmp_path / "empty", tmp_path / "out") == 3
    assert "the first of 1 skipped, night.wac: .wac cannot be decoded" in caplog.messages[-1]


def test_bad_recordings_have_a_line_each(model_dir, tmp_path, caplog):
    raw_dir = tmp_path / "raw"
    write(raw_dir / "short.wav", song(0.05, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    (raw_dir / "text.wav").write_text("no sound")
    (raw_dir / "empty.wav").touch()
    (raw_dir / "night.wac").write_text("x")
    write(raw_dir / "nan.wav", np.full(9000, np.nan), SAMPLE_RATE_HZ, subtype="FLOAT")
    assert detect(model_dir, raw_dir, tmp_path / "out") == 3
    assert (
        "no recording is left of 5, all are skipped; the first, empty.wav: empty: the file has 0 bytes" in caplog.text
    )
    write(raw_dir / "good.wav", song(1, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    assert detect(model_dir, raw_dir, tmp_path / "out", workers=2) == 0
    reasons = dict(line.split(",", 1) for line in (tmp_path / "out" / "skipped.csv").read_text().splitlines()[1:])
    assert list(reasons) == ["empty.wav", "nan.wav", "night.wac", "short.wav", "text.wav"]
    assert reasons["short.wav"] == "too short for a window of this model: 0.05 s"
    assert "NaN" in reasons["nan.wav"] and ".wac cannot be decoded" in reasons["night.wac"]
    assert set(table(tmp_path / "out")["file"]) == {"good.wav"}
    assert "3 detections; 5 files cannot be used -> " in caplog.text


def test_a_recording_that_is_read_twice_counts_once(model_dir, tmp_path):
    """The mean of its channels cancels, which is known only at its end."""
    sound = song(2.2, SAMPLE_RATE_HZ, 1, 5)[:, 0]
    write(tmp_path / "raw" / "mono.wav", sound, SAMPLE_RATE_HZ)
    write(tmp_path / "raw" / "stereo.wav", np.stack([sound, -sound], axis=1), SAMPLE_RATE_HZ)
    assert detect(model_dir, tmp_path / "raw", tmp_path / "out", "--save_scores", "--batch_size", 2, workers=4) == 0
    scores = pq.read_table(tmp_path / "out" / scores_table.NAME).to_pandas()
    mono, stereo = (scores[scores["file"] == f"{name}.wav"].drop(columns="file") for name in ("mono", "stereo"))
    assert len(mono) == 5 and np.array_equal(mono.to_numpy(), stereo.to_numpy())


def test_a_broken_model_is_told(model_dir, raw_dir, tmp_path, caplog):
    loaded = encoders.load_model(model_dir, "cpu")
    loaded.model.classifier.bias.data[0] = float("inf")
    encoders.save_model(loaded, tmp_path / "model")
    for workers in (1, 9):
        assert detect(tmp_path / "model", raw_dir, tmp_path / f"out{workers}", workers=workers) == 3
        assert "the model gives logits that are NaN or infinite for" in caplog.messages[-1]


def test_recorders_that_glue_sections_have_no_times_of_day(model_dir, tmp_path, caplog, monkeypatch):
    glued = recorders.Start("2025-06-01T06:00:00", "AudioMoth", True)
    monkeypatch.setattr(recorders, "read_start", lambda path: glued)
    write(tmp_path / "raw" / "20250601_060000.wav", song(1, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    assert detect(model_dir, tmp_path / "raw", tmp_path / "out") == 0
    assert set(table(tmp_path / "out")["recorded_at"]) == {""}
    assert "recorded_at is empty for 1 of 1 recording" in caplog.text
    assert "trigger left out silent sections" in caplog.text


def test_a_night_without_a_detection_is_a_result(model_dir, raw_dir, tmp_path, caplog):
    words = ["--formats", "csv", "--combined"]
    assert detect(model_dir, raw_dir, tmp_path / "out", *words, threshold=0.999999) == 0
    assert len(table(tmp_path / "out")) == 0 and "0 detections" in caplog.text
    csv = pd.read_csv(tmp_path / "out" / "csv" / "all.labels.csv")
    assert list(csv["file"]) == list(SECONDS) and csv["label"].isna().all()


def test_several_labels_have_sigmoid_scores(model_dir, raw_dir, tmp_path):
    several = with_config(model_dir, tmp_path / "model", problem_type="multi_label_classification")
    assert detect(several, raw_dir, tmp_path / "out", "--save_scores", threshold=0.5) == 0
    scores = pq.read_table(tmp_path / "out" / scores_table.NAME).to_pandas()[LABELS].astype(float)
    one = tmp_path / "one"
    assert detect(model_dir, raw_dir, one, "--save_scores", threshold=0.5) == 0
    odds = scores / (1 - scores)
    softmax = pq.read_table(one / scores_table.NAME).to_pandas()[LABELS].astype(float)
    np.testing.assert_allclose(odds.div(odds.sum(axis=1), axis=0), softmax, atol=5e-3)
