"""Stage 08: detections in recordings of any length, on a tiny model and synthesised sound."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.data import CLIP_SECONDS, LABELS, SAMPLE_RATE_HZ, small_model, write_processed
from tests.sounds import song, write
from tests.stages import digests, load_stage
from utils.core.errors import UsageError
from utils.data import audio, clips, recorders
from utils.field import detections, scores_table, scoring
from utils.field.window_stream import WindowFormat, WindowStream
from utils.models import decision, encoders, predict

stage = load_stage("08_detection")

SECONDS = {"a_20250601_210000.wav": 3.2, "site/b.wav": 0.7, "site/c.flac": 2.0}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """Return the folder of a model as 02 saves it, with a head that tells its labels apart."""
    folder = tmp_path_factory.mktemp("model")
    loaded = small_model("wav2vec2")
    data_dir = write_processed(folder / "data")
    encoders.configure_for_training(loaded.model, clips.read_clips(data_dir, "train", None, 0, None), [], "x" * 64)
    loaded.config.clip_least_rest_seconds = 0.2
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
    with pytest.raises(UsageError, match="--overlap_seconds 3: the windows of this model last 3 s"):
        WindowFormat.of_model(config, 16000, 3.0)


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
    assert list(scores.columns) == ["file", "start_s", "end_s", *LABELS] and scores[LABELS].dtypes.eq("float16").all()
    assert scores.groupby("file").size().to_dict() == {"a_20250601_210000.wav": 12, "site/b.wav": 2, "site/c.flac": 7}
    found = table(output_dir)
    assert list(found.columns) == list(detections.COLUMNS) and len(found) > 3
    assert found[["file", "start_s", "label"]].apply(tuple, axis=1).is_monotonic_increasing
    assert (found["score"] >= found["threshold"]).all() and (found["threshold"] == 0.3).all()
    for row in found.itertuples():
        inside = scores[(scores["file"] == row.file) & (scores["start_s"] >= row.start_s)]
        inside = inside[inside["end_s"] <= row.end_s][row.label].astype(float)
        assert inside.max() == pytest.approx(row.score, abs=1e-3)
    above = scores[LABELS].astype(float).ge(0.3).any(axis=1)
    for row in scores[above].itertuples():
        assert ((found["file"] == row.file) & (found["start_s"] <= row.start_s) & (found["end_s"] >= row.end_s)).any()
    assert set(found.loc[found["file"].str.startswith("a_"), "recorded_at"].str[:13]) == {"2025-06-01T21"}
    assert set(found.loc[found["file"].str.startswith("site"), "recorded_at"]) == {""}
    csv = pd.concat(pd.read_csv(path) for path in sorted((output_dir / "csv").rglob("*.csv"))).dropna(subset="label")
    assert (
        csv[["file", "start", "end", "label"]].to_numpy().tolist()
        == found[["file", "start_s", "end_s", "label"]].to_numpy().tolist()
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
