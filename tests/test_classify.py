"""The file that goes with every model: it hears a recording as stages 01 and 03 do, where nothing else of ours is."""

import json
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import logging as transformers_logging

from tests.data import small_model
from tests.sounds import song, write
from tests.stages import ROOT, load_stage
from utils.data import audio
from utils.data.clips import read_clips
from utils.models import architectures, classify, cnn, encoders, latency, predict

RATE_HZ = 16_000
LABELS = ["robin", "wren"]
MODELS = ("tiny", "whisper", "beats", "melspectrogram", "waveform")
# More than a clip with a rest, whole clips, less than a clip, a rest that is too short, stereo, another sample rate.
RECORDINGS = {
    "robin/long.wav": (600.3, RATE_HZ, 1),
    "robin/whole.flac": (3.0, RATE_HZ, 1),
    "robin/stereo.wav": (2.6, RATE_HZ, 2),
    "wren/short.wav": (0.4, RATE_HZ, 1),
    "wren/rest.wav": (2.05, RATE_HZ, 1),
    "wren/rest.flac": (3.3, RATE_HZ, 1),
    "wren/fast.wav": (2.5, 44_100, 2),
    "wren/opposite.wav": (2.0, RATE_HZ, 2),
    "wren/one-sided.wav": (2.0, RATE_HZ, 2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the raw recordings, and the data set that stage 01 makes of them."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, (seconds, rate_hz, n_channels)) in enumerate(RECORDINGS.items()):
        sound = song(seconds, rate_hz, n_channels, seed)
        if "opposite" in name:
            sound[:, 1] = -0.9 * sound[:, 0]
        if "one-sided" in name:
            sound[:, 0] = 0
        write(folder / "raw" / name, sound, rate_hz)
    words = ["--raw_dir", str(folder / "raw"), "--output_dir", str(folder / "processed"), "--clip_seconds", "1"]
    words += [
        "--min_remainder_seconds",
        "0.2",
        "--min_recordings",
        "1",
        "--split_by",
        "recording",
        "--num_workers",
        "1",
    ]
    words += ["--val_fraction", "0.34", "--test_fraction", "0.34"]
    assert load_stage("01_data_processing").main(words) == 0
    return folder


@pytest.fixture(scope="module")
def model_dirs(data):
    """Return a folder of every kind of model, with random weights, as a training leaves it."""
    clips = read_clips(data / "processed")
    torch.manual_seed(0)
    models = {
        "tiny": encoders.tiny_model(LABELS),
        **{name: small_model(name, LABELS) for name in ("whisper", "beats")},
        **{name: cnn.build_cnn(name, LABELS, RATE_HZ, 1.0, width=0.25) for name in architectures.CNNS},
    }
    for name, loaded in models.items():
        encoders.configure_for_training(loaded.model, clips, [], "0" * 64)
        (data / name / "runs" / "whole").mkdir(parents=True)
        encoders.save_model(loaded.ready("cpu"), data / name / "runs" / "whole" / "model")
    return {name: data / name / "runs" / "whole" / "model" for name in models}


def documented_lines() -> str:
    """Return the lines of Python by which docs/models.md classifies a file."""
    text = (ROOT / "docs" / "models.md").read_text()
    block = re.search(r"\nIn Python:\n\n((?:    .*\n|\n)+)", text)[1]
    return textwrap.dedent(block)


@pytest.fixture(scope="module")
def heard(data, model_dirs):
    """Run the documented lines in a fresh interpreter, in folders that hold a model and recordings alone."""
    (data / "lines.py").write_text(documented_lines())
    (data / "run.py").write_text(
        textwrap.dedent("""
        import importlib.util, os, pickle, shutil, sys
        assert importlib.util.find_spec("utils") is None, "the project is not on the path"
        lines, raw, out, *folders = sys.argv[1:]
        found = {}
        for folder in folders:
            os.chdir(folder)
            for directory, _, names in os.walk(raw):
                for name in names if folder.endswith("tiny") else set(names) - {"long.wav"}:
                    song = os.path.join(directory, name)
                    shutil.copy(song, "song.wav")  # libsndfile goes by the content
                    scope, path = {}, list(sys.path)
                    exec(compile(open(lines).read(), lines, "exec"), scope)
                    sys.path[:] = path
                    found[os.path.basename(folder), os.path.relpath(song, raw)] = tuple(
                        scope[key] for key in ("starts_s", "labels", "logits"))
            for module in ("classify", "bird_cnn", "beats_encoder"):
                sys.modules.pop(module, None)
            sys.path_importer_cache.clear()  # of a relative name
        pickle.dump(found, open(out, "wb"))
        """)
    )
    folders = [str(data / name) for name in model_dirs]
    words = [sys.executable, "-P", data / "run.py", data / "lines.py", data / "raw", data / "found", *folders]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=data / "raw", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return pd.read_pickle(data / "found")


@pytest.mark.parametrize("name", MODELS)
def test_the_lines_of_the_readme_give_what_stage_03_gives(name, data, model_dirs, heard, tmp_path, monkeypatch):
    clips = read_clips(data / "processed")
    loaded = encoders.load_model(model_dirs[name], "cpu")
    logits = predict.predict(loaded, clips, 16)
    for recording, rows in clips.table.groupby("source_path"):
        if "long" in recording and name != "tiny":
            continue
        starts_s, labels, found = heard[name, recording]
        assert labels == LABELS
        np.testing.assert_array_equal(starts_s, rows["start_s"])
        # The resampler works by blocks in stage 01: that moves a sample by one step of 16 bits here and there.
        np.testing.assert_allclose(found, logits[rows.index], atol=2e-3 if "fast" in recording else 2e-5)
    assert len(clips.table) > 600 and set(clips.table["source_path"]) == set(RECORDINGS)

    if name == "tiny":  # and predictions.parquet holds these
        monkeypatch.setattr(latency, "MAX_PASSES", 1)
        words = ["--model_dir", str(model_dirs[name]), "--data_dir", str(data / "processed"), "--device", "cpu"]
        assert load_stage("03_model_validation").main([*words, "--output_dir", str(tmp_path / "scores")]) == 0
        predictions = pd.read_parquet(tmp_path / "scores" / "predictions.parquet")
        places = clips.table.set_index("clip_id")[["source_path", "clip_index"]]
        assert len(predictions)
        for row in predictions.itertuples():
            recording, index = places.loc[row.clip_id]
            np.testing.assert_allclose(heard[name, recording][2][index], row.logits, atol=2e-3)


def test_a_zero_filled_clip_would_give_other_scores(data, model_dirs):
    """What the README said before, the pipeline's way: the clip that is too short is not repeated."""
    loaded = encoders.load_model(model_dirs["tiny"], "cpu")
    short = classify.read(data / "raw" / "wren" / "short.wav", RATE_HZ)
    _, _, repeated = classify.classify(data / "raw" / "wren" / "short.wav", model_dirs["tiny"])
    with torch.no_grad():
        alone = loaded.model(**loaded.prepare([short], RATE_HZ)).logits
    assert np.abs(alone.numpy() - repeated).max() > 1e-3


@pytest.mark.parametrize("remainder", ["pad", "drop"])
@given(n=st.integers(0, 70), size=st.integers(1, 20), least=st.integers(0, 20), least_rest=st.integers(0, 20))
def test_it_cuts_as_stage_01(remainder, n, size, least, least_rest):
    config = SimpleNamespace(
        clip_seconds=size / 10, clip_least_seconds=least / 10, clip_least_rest_seconds=least_rest / 10
    )
    config.clip_remainder = remainder
    assert classify.cut(n, 10, config) == audio.cut(n, size, least, least_rest, remainder)


def test_the_config_says_how_the_clips_were_cut(data, model_dirs):
    config = json.loads((model_dirs["whisper"] / "config.json").read_text())
    arguments = json.loads((data / "processed" / "run.json").read_text())["arguments"]
    assert config["clip_seconds"] == arguments["clip_seconds"] and config["clip_remainder"] == arguments["remainder"]
    assert config["clip_least_seconds"] == arguments["min_seconds"] and config["clip_fill"] == "repeat"
    assert config["clip_least_rest_seconds"] == arguments["min_remainder_seconds"]
    assert config["clip_channel"] == arguments["channel"]


def test_what_it_cannot_hear_as_stage_01_does_is_refused(data, model_dirs, tmp_path):
    def refused(words, samples, rate_hz=RATE_HZ, **how):
        path = write(tmp_path / "song.wav", samples, rate_hz, **how)
        with pytest.raises(ValueError, match=words):
            classify.classify(path, model_dirs["tiny"])

    mono = song(1.5, RATE_HZ)
    refused("peaks at .* times full scale", 10 * mono, subtype="FLOAT")
    refused("peaks at .* times full scale", 1e-4 * mono, subtype="PCM_24")
    refused("never crosses zero", mono + 0.6)
    refused("not numbers", np.where(mono > 0.3, np.nan, mono), subtype="FLOAT")
    refused(r"lasts 0\.05 s: too short", mono[:800])
    refused("lasts 0 s: too short", mono[:0])


def test_a_file_that_libsndfile_reads_in_part_is_refused(model_dirs, tmp_path):
    mono = song(1.5, RATE_HZ)
    whole = write(tmp_path / "whole.mp3", mono, RATE_HZ, format="MP3", subtype="MPEG_LAYER_III").read_bytes()
    tag = re.search(b"Xing|Info", whole).start()
    assert len(classify.classify(tmp_path / "whole.mp3", model_dirs["tiny"])[0]) == 2
    (tmp_path / "untagged.mp3").write_bytes(whole[:tag] + b"none" + whole[tag + 4 :])
    with pytest.raises(ValueError, match="mp3 without its length"):
        classify.classify(tmp_path / "untagged.mp3", model_dirs["tiny"])
    stream = write(tmp_path / "one.ogg", mono, RATE_HZ, format="OGG", subtype="VORBIS").read_bytes()
    assert len(classify.classify(tmp_path / "one.ogg", model_dirs["tiny"])[0]) == 2
    (tmp_path / "two.ogg").write_bytes(2 * stream)
    with pytest.raises(ValueError, match="several streams of sound"):
        classify.classify(tmp_path / "two.ogg", model_dirs["tiny"])


def test_the_channel_is_that_of_the_training():
    left, right = 0.1 * np.random.default_rng(0).standard_normal((2, 1000))
    both = np.stack([left, right], axis=1)
    assert [classify.choose_channel(both, asked) for asked in ("mean", "left", "right", "2")] == [None, 0, 1, 1]
    assert classify.choose_channel(both * [1, 2], "best") == 1
    assert classify.choose_channel(both[:, :1], "mean") is None
    with pytest.raises(ValueError, match="trained on channel 3, and the file has 2"):
        classify.choose_channel(both, "3")


def test_another_sample_rate_without_soxr_is_refused(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ValueError, match="has 44100 Hz, the model expects 16000 Hz: pip install soxr"):
        classify.read(data / "raw" / "wren" / "fast.wav", RATE_HZ)


def test_a_base_model_is_no_classifier_of_files(tmp_path):
    encoders.save_model(small_model("hubert"), tmp_path / "model")
    with pytest.raises(ValueError, match="does not record how its training clips were cut"):
        classify.load_model(tmp_path / "model")


def command(monkeypatch, model_dir, *paths):
    """Call the command as in a new process."""
    monkeypatch.setattr(classify, "FOLDER", model_dir)
    monkeypatch.setattr("sys.argv", ["classify.py", *map(str, paths)])
    classify.load_model.cache_clear()
    transformers_logging.enable_progress_bar()
    classify.main()


def test_the_command_prints_a_line_a_clip(data, model_dirs, monkeypatch, capsys):
    path = str(data / "raw" / "robin" / "stereo.wav")
    command(monkeypatch, model_dirs["tiny"], path)
    printed = capsys.readouterr()
    assert "Loading weights" not in printed.err
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert [line[:2] for line in lines] == [[path, "0.000"], [path, "1.000"], [path, "2.000"]]
    assert all(line[2] in LABELS and 0.5 <= float(line[3]) <= 1 for line in lines)
    assert soundfile.info(path).channels == 2


def test_the_command_goes_on_behind_files_that_it_cannot_classify(data, model_dirs, monkeypatch, capsys, tmp_path):
    good = data / "raw" / "robin" / "stereo.wav"
    short = write(tmp_path / "short.wav", song(1, RATE_HZ)[:800], RATE_HZ)
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, model_dirs["tiny"], "nowhere.wav", good, ROOT / "README.md", short, good)
    assert stop.value.code == "3 of 5 files could not be classified"
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == 6 * [str(good)]
    assert printed.err.splitlines() == [
        "[Errno 2] No such file or directory: 'nowhere.wav'",
        f"{ROOT / 'README.md'}: libsndfile cannot read it (Format not recognised); convert it to WAV",
        f"{short} lasts 0.05 s: too short for a clip of this model",
    ]


def test_the_command_without_a_file_or_a_model_ends_with_a_message(monkeypatch, tmp_path):
    encoders.save_model(small_model("hubert"), tmp_path / "model")
    for words, message in (((), "one line per clip"), (("song.wav",), "does not record how its training clips")):
        with pytest.raises(SystemExit, match=message):
            command(monkeypatch, tmp_path / "model", *words)
