"""Stages 03 and 04 under torchrun on the CPU: what several processes do together is what one does."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.data import small_model, write_processed
from tests.stages import launch_together, load_stage
from utils.core import runs
from utils.core.errors import InputError
from utils.data.clips import read_clips
from utils.layers import hidden_states
from utils.models import encoders


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    loaded = small_model("wav2vec2")
    folder = tmp_path_factory.mktemp("model") / "wav2vec2"
    encoders.save_model(loaded, folder)
    return folder


@pytest.mark.parametrize("n_items", [0, 1, 7, 18])
@pytest.mark.parametrize("n_processes", [1, 2, 5])
@pytest.mark.parametrize("multiple", [1, 4])
def test_shares_are_even_whole_batches_and_all_there_is(n_items, n_processes, multiple, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(n_processes))
    shares = []
    for number in range(n_processes):
        monkeypatch.setenv("RANK", str(number))
        shares.append(runs.own_share(n_items, multiple))
    assert [i for share in shares for i in share] == list(range(n_items))
    assert all(share.start % multiple == 0 for share in shares if len(share))
    n_batches = [-(-len(share) // multiple) for share in shares]
    assert max(n_batches) - min(n_batches) <= 1


def test_two_processes_score_every_clip_once(data_dir, model_dir, warm_python, tmp_path, capfd):
    arguments = ["--model_dir", model_dir, "--data_dir", data_dir, "--batch_size", 4, "--device", "cpu"]
    one = load_stage("03_model_validation").main([str(w) for w in (*arguments, "--output_dir", tmp_path / "a" / "one")])
    assert one == 0
    two = [*arguments, "--output_dir", tmp_path / "b" / "one"]
    assert launch_together(warm_python, 2, "03_model_validation.py", *two) == 0
    predictions = [(tmp_path / name / "one" / "predictions.parquet").read_bytes() for name in "ab"]
    assert predictions[0] == predictions[1]
    rows = [pd.read_csv(tmp_path / name / "summary.csv") for name in "ab"]
    measured = [name for name in rows[0] if "latency" in name or name in ("real_time_factor", "peak_memory_mb")]
    measured += ["throughput_clips_per_s", "model_dir", "load_average", "cpu_busy_share", "n_threads"]
    pd.testing.assert_frame_equal(*(table.drop(columns=measured) for table in rows))
    capfd.readouterr()
    assert launch_together(warm_python, 2, "03_model_validation.py", *two) == 0
    assert "nothing to do" in capfd.readouterr().err


def test_what_one_process_cannot_do_ends_all(data_dir, model_dir, warm_python, tmp_path, capfd):
    loaded = encoders.load_model(model_dir, "cpu")
    torch.nn.init.constant_(loaded.model.classifier.weight, float("nan"))
    loaded.model.save_pretrained(tmp_path / "broken")
    loaded.extractor.save_pretrained(tmp_path / "broken")
    arguments = ["--model_dir", tmp_path / "broken", "--data_dir", data_dir, "--output_dir", tmp_path / "out"]
    assert launch_together(warm_python, 2, "03_model_validation.py", *arguments, "--device", "cpu") != 0
    assert "NaN or infinite" in capfd.readouterr().err
    assert runs.read_record(tmp_path / "out")["exit_code"] == InputError.exit_code


def test_more_processes_than_batches_extract_the_same_states(data_dir, model_dir, warm_python, tmp_path):
    arguments = ["--model_dir", model_dir, "--data_dir", data_dir, "--batch_size", 8, "--device", "cpu", "--metrics"]
    arguments += ["cka", "block_influence", "euclidean_convexity", "--num_segments", 4]
    one = load_stage("04_analysis").main([str(word) for word in (*arguments, "--output_dir", tmp_path / "one")])
    assert one == 0
    four = [*arguments, "--output_dir", tmp_path / "four"]
    assert launch_together(warm_python, 4, "04_analysis.py", *four) == 0  # 18 clips are three batches
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "four").iterdir()}, "no part is left"
    for name in sorted(names - {"run.json", "log.txt", "recommendation.json"}):
        if not name.endswith((".png", ".pdf", ".lock")):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "four" / name).read_bytes(), name


def test_what_stopped_processes_left_is_removed_by_one_alone(data_dir, model_dir, tmp_path):
    loaded = encoders.load_model(model_dir, "cpu")
    clips = read_clips(data_dir, "val")
    (tmp_path / "states-1-of-2.npy").write_bytes(b"half")
    found = hidden_states.extract(loaded, clips, 4, tmp_path, "states", {})
    assert np.isfinite(found.pooled).all()
    assert {path.name for path in tmp_path.iterdir()} == set(hidden_states.file_names("states"))
