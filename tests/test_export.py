"""Exported files: features, logits and scores against the model, and the stages that write and take them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from benchmarks.noise import noise_clips
from tests.data import CLIP_SECONDS, LABELS, SAMPLE_RATE_HZ, SMALL_CONFIGS, small_model, write_processed
from tests.sounds import song, write
from tests.stages import ROOT, load_stage
from utils.core.errors import InputError, UsageError
from utils.data.clips import read_clips
from utils.field import field_model
from utils.models import (
    beats_encoder,
    bird_cnn,
    cnn,
    decision,
    encoders,
    export,
    exported,
    exported_network,
    model_folder,
    waveform_features,
)
from utils.models.exported import FLOAT16, FLOAT32, INT8, LOGITS, SCORES, ExportedModel, metadata_of
from utils.models.loaded_model import MULTI_LABEL, WAVEFORM, prepare

stages = {number: load_stage(name) for number, name in ((3, "03_model_validation"), (7, "07_manual_pruning"))}
stages |= {8: load_stage("08_detection"), 4: load_stage("04_analysis"), 5: load_stage("05_pruning")}
DECISION = {
    "target_precision": 0.9,
    "calibration": {"kind": "temperature", "temperature": 2.5},
    "thresholds": {label: None if i == 1 else 0.2 + 0.05 * i for i, label in enumerate(LABELS)},
    "reasons": {},
    "fitted_on": {"data_sha256": "x", "split": "val"},
}


def run(number, *words):
    return stages[number].main([str(word) for word in words])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "clips")


@pytest.fixture(scope="module")
def make(data_dir):
    """Return a function from the name of an architecture to a small model that knows how its clips were cut."""
    val = read_clips(data_dir, "val")

    def make_model(name, **options):
        torch.manual_seed(0)
        if name in SMALL_CONFIGS:
            loaded = small_model(name, **options)
        else:
            loaded = cnn.build_cnn(name, LABELS, SAMPLE_RATE_HZ, CLIP_SECONDS, **options).ready("cpu")
        encoders.configure_for_training(loaded.model, val, [], "x" * 64)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(2.0)  # initial weights hardly change the states, and any error would be small
        return loaded

    return make_model


def clips_of(n_samples, n_clips=4):
    """Return noise, a tone that comes and goes, quiet noise and clicks."""
    rng, time_s = np.random.default_rng(0), np.arange(n_samples) / SAMPLE_RATE_HZ
    clips = [
        0.1 * rng.standard_normal(n_samples),
        0.5 * np.sin(2 * np.pi * 3000 * time_s) * (np.sin(40 * time_s) > 0) + 1e-4 * rng.standard_normal(n_samples),
        1e-3 * rng.standard_normal(n_samples),
        0.5 * (rng.random(n_samples) < 1e-3),
    ]
    return np.stack(clips[:n_clips]).astype(np.float32)


# ------------------------------------------------------------------------------------------------ features


@pytest.mark.parametrize(
    ("extractor", "tolerance"),
    [
        (Wav2Vec2FeatureExtractor(), 2e-5),
        (Wav2Vec2FeatureExtractor(do_normalize=False), 0),
        (WhisperFeatureExtractor(), 1e-4),
        (WhisperFeatureExtractor(chunk_length=2, feature_size=128), 1e-4),
        (ASTFeatureExtractor(), 1e-3),  # a tone is far above the other bands, where float32 rounds
        (ASTFeatureExtractor(max_length=50, num_mel_bins=64, do_normalize=False), 1e-2),
        (SeamlessM4TFeatureExtractor(), 2e-2),
        (SeamlessM4TFeatureExtractor(feature_size=40, num_mel_bins=40, sampling_rate=32_000), 2e-2),
        (beats_encoder.BeatsFeatureExtractor(), 1e-2),
        (beats_encoder.BeatsFeatureExtractor(feature_size=40, sampling_rate=44_100, mean=0.0, std=0.5), 5e-2),
        (bird_cnn.MelspectrogramFeatureExtractor(), 5e-3),
        (bird_cnn.MelspectrogramFeatureExtractor(pcen=True, feature_size=40), 1e-4),
        (bird_cnn.MelspectrogramFeatureExtractor(pcen=True, sampling_rate=44_100), 1e-3),  # windows of an odd length
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_layers_give_what_the_feature_extractor_gives(extractor, tolerance):
    clips = clips_of(24_000 if extractor.sampling_rate == SAMPLE_RATE_HZ else 44_100)
    name = extractor.model_input_names[0]
    wanted = prepare(extractor, list(clips), extractor.sampling_rate, name)[name]
    found = waveform_features.features_of(extractor, clips.shape[1])(torch.from_numpy(clips))
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    difference = (found - wanted).abs()
    assert difference.max() <= tolerance and difference.mean() <= tolerance / 100


def test_a_feature_extractor_that_no_layer_copies_is_refused():
    class Other(Wav2Vec2FeatureExtractor):
        pass

    for extractor, words in ((Other(), "Other cannot be exported"), (WhisperFeatureExtractor(dither=0.1), "dither")):
        with pytest.raises(InputError, match=words):
            waveform_features.features_of(extractor, 16_000)


# ------------------------------------------------------------------------------------------------ every architecture


@pytest.mark.parametrize("name", [*SMALL_CONFIGS, "melspectrogram", "waveform"])
def test_a_file_answers_as_the_model_does(name, make, tmp_path):
    """In float32 to 1e-5 of the largest logit, whatever the number of clips; pruned to one block or to none."""
    loaded = make(name, pcen=True) if name == "melspectrogram" else make(name)
    if name in SMALL_CONFIGS:
        loaded = encoders.pruned_copy(loaded, [] if name == "hubert" else [0])
    network = export.network_of(loaded, "digest")
    rounding = 1e-4 if name == "wav2vec2-bert" else 1e-5  # each of its bands is divided by its own deviation
    for precision, tolerance in ((FLOAT32, rounding), (FLOAT16, 1e-2), (INT8, 5e-2)):
        path = tmp_path / f"{precision}.onnx"
        export.write(network, path, precision)
        model = ExportedModel(path)
        for n_clips in (1, 3):
            clips = clips_of(model.n_samples, n_clips)
            with torch.inference_mode():
                wanted = loaded.model(**loaded.prepare(list(clips), SAMPLE_RATE_HZ)).logits.numpy()
            found = model.logits(clips)
            assert found.shape == wanted.shape and found.dtype == np.float32
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
            together = model._session.run([LOGITS], {WAVEFORM: clips})[0]
            np.testing.assert_allclose(together, found, atol=tolerance * np.abs(wanted).max())
    sizes = [(tmp_path / f"{precision}.onnx").stat().st_size for precision in (FLOAT32, FLOAT16, INT8)]
    assert sizes[1] < sizes[0]
    assert model.sizes["n_parameters"] == encoders.count_parameters(loaded.model)


def small_network(node, x_shape, y_shape, **weights):
    """Return a network of one node from `x` to `y`, and a function that runs a variant of it."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", x_shape), ("y", y_shape))
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], initializers)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", export.OPSET)], ir_version=10)

    def outputs(model, x):
        return onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], {"x": x})[0]

    return network, outputs


def test_in_int8_a_quiet_frame_beside_a_loud_one_keeps_its_digits(tmp_path):
    """ONNX's own scale for all frames takes them from it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 16)).astype(np.float32)
    frames = (rng.standard_normal((1, 5, 64)) * np.array([1, 1e-2, 1e-4, 0, 1])[:, None]).astype(np.float32)
    linear = helper.make_node("MatMul", ["x", "weight"], ["y"], "linear")
    network, outputs = small_network(linear, [1, 5, 64], [1, 5, 16], weight=weight)
    wanted, size = frames @ weight, np.abs(frames @ weight).max(axis=2) + 1e-12
    assert export._with_linear_layers_in_int8(network, {}, ["linear"], None).graph.node[0] == linear
    error = np.abs(outputs(export._in_int8(network), frames) - wanted).max(axis=2) / size
    assert error.max() < 0.03
    quantize_dynamic(network, tmp_path / "plain.onnx", weight_type=export.QuantType.QUInt8)
    plain = np.abs(outputs(onnx.load(tmp_path / "plain.onnx"), frames) - wanted).max(axis=2) / size
    assert plain[0, 0] < 0.02 and plain[0, 2] > 0.5


@pytest.mark.parametrize(
    ("size", "stride", "pads", "bias"), [(3, 1, (1, 1), True), (3, 2, (1, 0), False), (2, 2, (0, 0), True)]
)
def test_a_convolution_over_time_is_a_linear_layer_on_the_frames_under_its_kernel(size, stride, pads, bias):
    torch.manual_seed(0)
    given = torch.randn(2, 64, 21)
    layer = torch.nn.Conv1d(64, 8, size, stride, bias=bias)
    with torch.no_grad():
        wanted = layer(torch.nn.functional.pad(given, pads)).numpy()
    weights = {"weight": layer.weight.detach().numpy()} | ({"bias": layer.bias.detach().numpy()} if bias else {})
    node = helper.make_node("Conv", ["x", *weights], ["y"], "conv", strides=[stride], pads=pads)
    network, outputs = small_network(node, [2, 64, 21], list(wanted.shape), **weights)
    as_product, largest = export._with_frames_under_kernels(network, [])
    assert "Conv" not in {each.op_type for each in as_product.graph.node} and len(largest) == 1
    np.testing.assert_allclose(outputs(as_product, given.numpy()), wanted, atol=1e-5)
    found = outputs(export._in_int8(network), given.numpy())
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("settings", [{"group": 2}, {"dilations": [2]}, {"auto_pad": "SAME_UPPER"}])
def test_other_convolutions_stay_as_they_are(settings):
    channels = 64 // settings.get("group", 1)
    node = helper.make_node("Conv", ["x", "weight"], ["y"], "conv", **settings)
    network, _ = small_network(node, [1, 64, 21], [1, 8, None], weight=np.ones((8, channels, 3), np.float32))
    assert export._in_int8(network).graph.node[0] == node


def test_convolutions_over_time_and_frequency_have_scales_of_clips(make, tmp_path):
    """In int8 the file is smaller than without clips, and its answers are nearly those of the model."""
    loaded = make("melspectrogram")
    clips = noise_clips(tmp_path / "clips", 6, CLIP_SECONDS)
    network, paths = export.network_of(loaded, "digest"), [tmp_path / name for name in ("without.onnx", "with.onnx")]
    for path, of_scales in zip(paths, (None, clips), strict=True):
        export.write(network, path, INT8, of_scales)
    operations = [{node.op_type for node in onnx.load(path).graph.node} for path in paths]
    assert "QuantizeLinear" in operations[1] - operations[0]
    kernels = [list(w.dims) for w in onnx.load(paths[1]).graph.initializer if w.data_type == 1 and len(w.dims) == 4]
    assert [dims[1] for dims in kernels] == [1], "only the one on the spectrogram is in float32"
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size
    waveforms = np.stack([clips.audio(number) for number in range(6)])
    with torch.inference_mode():
        wanted = loaded.model(**loaded.prepare(list(waveforms), SAMPLE_RATE_HZ)).logits.numpy()
    found = ExportedModel(paths[1]).logits(waveforms)
    assert 0 < np.abs(found - wanted).max() <= 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_the_scores_of_a_file_are_calibrated(kind, make, tmp_path):
    loaded = make("waveform")
    numbers = {"temperature": 2.5} if kind == "temperature" else {"slope": 0.5, "intercept": -1.0}
    loaded.config.decision = DECISION | {"calibration": {"kind": kind, **numbers}}
    loaded.config.problem_type = MULTI_LABEL if kind == "platt" else "single_label_classification"
    path = tmp_path / "float32.onnx"
    export.write(export.network_of(loaded, "digest"), path, FLOAT32)
    session, clips = onnxruntime.InferenceSession(path), clips_of(round(CLIP_SECONDS * SAMPLE_RATE_HZ))
    logits, scores = session.run([LOGITS, SCORES], {WAVEFORM: clips})
    np.testing.assert_allclose(scores, decision.scores(logits, loaded.config), atol=1e-6)
    metadata = session.get_modelmeta().custom_metadata_map
    values = {name: json.loads(value) for name, value in metadata.items()}
    assert values["labels"] == LABELS and values["sample_rate_hz"] == SAMPLE_RATE_HZ
    assert values["clip_seconds"] == CLIP_SECONDS and values["clip_fill"] == "repeat"
    assert values["thresholds"] == DECISION["thresholds"]
    assert values["several_labels"] == (kind == "platt") and values["precision"] == FLOAT32
    assert {opset.domain: opset.version for opset in onnx.load(path).opset_import} == {"": export.OPSET}


# ------------------------------------------------------------------------------------------------ stages


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """Return the folder of a model with thresholds."""
    path = tmp_path_factory.mktemp("model") / "model"
    loaded = make("wav2vec2")
    loaded.model.classifier.weight.data *= 30
    loaded.config.clip_least_seconds, loaded.config.clip_least_rest_seconds = 0.1, 0.2
    encoders.save_model(loaded, path)
    decision.write(path / "config.json", DECISION)
    return path


@pytest.fixture(scope="module")
def files(folder, data_dir, tmp_path_factory):
    """Return the folder with the model exported in all precisions."""
    output_dir = tmp_path_factory.mktemp("exported") / "birds"
    words = ["--model_dir", folder, "--export", "onnx", "--precision", FLOAT32, FLOAT16, INT8, "--data_dir", data_dir]
    assert run(7, *words, "--allow_loss", "--output_dir", output_dir) == 0
    return output_dir


def test_07_writes_a_file_for_each_precision_and_compares_them(files, folder):
    assert {path.name for path in files.glob("*.onnx")} == {"float32.onnx", "float16.onnx", "int8.onnx"}
    assert not (files / "model").exists()
    table = pd.read_csv(files / "export.csv", index_col="precision")
    assert list(table.index) == [FLOAT32, FLOAT16, INT8]
    assert table.loc[FLOAT32, "top1_agreement"] == 1 and table.loc[FLOAT32, "accuracy_difference"] == 0
    assert table.loc[FLOAT32, "largest_logit_difference"] < 1e-5 * table.loc[FLOAT32, "largest_logit"]
    assert (table["clips"] == "val").all() and (table["megabytes"] > 0).all()
    model = ExportedModel(files / "float32.onnx")
    assert model.config["decision"] == DECISION and model.labels == LABELS and model.config["kept_layers"] == [0, 1, 2]
    assert str(model) == f"wav2vec2, 3 blocks, {model.sizes['n_parameters'] / 1e6:.3g} M parameters, ONNX float32"


def test_a_file_says_nothing_about_the_machine(files, folder):
    """Two folders of one model give the same bytes, and nobody gets a path with the name of a user."""
    for path in files.glob("*.onnx"):
        content = path.read_bytes()
        assert not [words for words in (b"site-packages", b"export.py", str(folder).encode()) if words in content]


def test_03_scores_a_file_as_it_scores_the_model(files, folder, data_dir, tmp_path):
    results = {}
    for name, model in {"folder": folder, "file": files / "float32.onnx"}.items():
        output_dir = tmp_path / name
        assert run(3, "--model_dir", model, "--data_dir", data_dir, "--output_dir", output_dir) == 0
        results[name] = pd.read_csv(output_dir / "metrics.csv").iloc[0]
    wanted, found = results["folder"], results["file"]
    for name in ("accuracy", "accuracy_low", "macro_f1", "n_parameters", "gmacs_per_clip", "kept_layers", "kind"):
        assert found[name] == pytest.approx(wanted[name]) if not isinstance(wanted[name], str) else wanted[name], name
    assert found["dtype"] == FLOAT32 and np.isnan(found["latency_front_end_ms"]) and found["latency_ms_median"] > 0
    assert (tmp_path / "file" / "thresholds.csv").is_file()
    compared = run(3, "--compare", tmp_path / "folder", tmp_path / "file", "--output_dir", tmp_path / "both")
    assert compared == 0 and pd.read_csv(tmp_path / "both" / "comparison.csv")["accuracy_difference"].item() == 0


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    raw_dir = tmp_path_factory.mktemp("night")
    for i, seconds in enumerate((3.2, 0.7, 2.0)):
        write(raw_dir / f"{i}.wav", song(seconds, SAMPLE_RATE_HZ, 1, i), SAMPLE_RATE_HZ)
    return raw_dir


WITHOUT_TORCH = """
import runpy, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "torchaudio", "pandas", "sklearn", "matplotlib", "datasets"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_08_finds_the_same_with_a_file_and_without_pytorch(workers, files, folder, night, tmp_path):
    words = ["--raw_dir", night, "--overlap_seconds", "0.25", "--save_scores"]
    assert run(8, "--model_dir", folder, *words, "--num_workers", 1, "--output_dir", tmp_path / "wanted") == 0
    words += ["--model_dir", files / "float32.onnx", "--num_workers", workers, "--output_dir", tmp_path / "found"]
    command = [sys.executable, "-c", WITHOUT_TORCH, "08_detection.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "ONNX float32" in done.stderr
    wanted, found = (pd.read_csv(tmp_path / name / "detections.csv") for name in ("wanted", "found"))
    assert len(wanted)
    pd.testing.assert_frame_equal(wanted, found, rtol=1e-3)
    wanted, found = (pd.read_parquet(tmp_path / name / "scores.parquet") for name in ("wanted", "found"))
    pd.testing.assert_frame_equal(wanted, found, atol=2e-3)


def test_a_pruned_model_is_exported_beside_its_folder(folder, tmp_path):
    output_dir = tmp_path / "out"
    words = ["--model_dir", folder, "--keep_layers", "0,2", "--export", "onnx", "--output_dir", output_dir]
    assert run(7, *words) == 0
    model, own = ExportedModel(output_dir / "float32.onnx"), encoders.load_model(output_dir / "model", "cpu")
    assert model.config["kept_layers"] == [0, 2] and model.config.get("decision") is None
    clips = clips_of(model.n_samples)
    with torch.inference_mode():
        wanted = own.model(**own.prepare(list(clips), SAMPLE_RATE_HZ)).logits.numpy()
    np.testing.assert_allclose(model.logits(clips), wanted, atol=1e-5 * np.abs(wanted).max())
    row = pd.read_csv(output_dir / "export.csv").iloc[0]
    assert row["clips"] == "noise" and np.isnan(row["accuracy_difference"])


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_file_with_other_answers_is_refused_unless_asked_for(folder, files, data_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export, "LEAST_AGREEMENT", 1.01)
    network = onnx.load(files / "float32.onnx")
    monkeypatch.setattr(export, "network_of", lambda loaded, model_sha256: network)
    words = ["--model_dir", folder, "--export", "onnx", "--data_dir", data_dir, "--output_dir", tmp_path / "out"]
    assert run(7, *words) == 3
    assert "float32: it agrees with the model on less than 1.01 of the clips" in caplog.text
    assert "use it all the same by --allow_loss; with --overwrite in this folder" in caplog.text
    assert not (tmp_path / "out" / "float32.onnx").exists()
    assert run(7, *words, "--allow_loss", "--overwrite") == 0


@pytest.mark.parametrize(
    ("values", "trouble"),
    [
        ({}, None),
        ({"clips": "noise", "top1_agreement": 0.5}, None),
        ({"largest_logit_difference": 0.02}, "differ by more than 0.01"),
        ({"largest_logit_difference": float("nan")}, "differ by more than 0.01"),
        ({"precision": INT8, "largest_logit_difference": 1.0, "top1_agreement": 0.98}, "less than 0.99"),
        ({"accuracy_difference_high": -0.001}, "lower, beyond chance"),
    ],
)
def test_when_a_file_is_no_copy(values, trouble):
    row = export.Comparison(FLOAT32, 1.0, 100, "val", 10.0, 0.001, 1.0, -0.1, -0.2, 0.0)._replace(**values)
    assert row.trouble() is None if trouble is None else trouble in row.trouble()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "int8"], "of use only with --export"),
        (["--allow_loss"], "of use only with --export"),
        (["--export", "onnx", "--precision", "int8"], "give --data_dir"),
        (["--export", "onnx", "--fold", "1"], "--fold chooses among clips: give --data_dir"),
        (["--export", "onnx", "--ladder"], "one model"),
        (["--export", "onnx", "--dry_run"], "one model"),
    ],
)
def test_flags_that_do_not_go_together(words, message, folder, tmp_path, caplog):
    words = words if "--ladder" in words else ["--drop_layers", "1", *words]
    assert run(7, "--model_dir", folder, "--output_dir", tmp_path / "out", *words) == 2
    assert message in caplog.text


def test_a_base_model_is_not_exported(tmp_path, caplog):
    encoders.save_model(small_model("wav2vec2"), tmp_path / "model")
    words = ["--model_dir", tmp_path / "model", "--export", "onnx", "--output_dir", tmp_path / "out"]
    assert run(7, *words) == 3
    assert "does not record how files are cut" in caplog.text


@pytest.mark.parametrize(("precision", "advice"), [(FLOAT32, "--precision float16, or a model"), (FLOAT16, "a model")])
def test_a_network_that_does_not_fit_into_a_file(precision, advice, files, tmp_path, monkeypatch):
    network = onnx.load(files / "float32.onnx")
    monkeypatch.setattr(export, "MOST_BYTES", 1000)
    told = f"GB in {precision}, and one ONNX file holds 2 GB; give {advice} with fewer blocks$"
    with pytest.raises(InputError, match=told):
        export.write(network, tmp_path / "large.onnx", precision)
    assert not any(tmp_path.iterdir())


def test_stages_that_need_the_model_say_so(files, data_dir, tmp_path, caplog):
    path = files / "float32.onnx"
    common = ["--model_dir", path, "--data_dir", data_dir, "--output_dir", tmp_path / "out"]
    for number in (4, 5):
        assert run(number, *common) == 3
        assert "is an exported file, which only 03_model_validation.py and 08_detection.py take" in caplog.text
        caplog.clear()
    assert run(3, *common, "--fit_thresholds") == 2
    assert f"{path} is an exported file, and --fit_thresholds writes into a model folder" in caplog.text


def test_what_is_no_exported_file(files, night, tmp_path, caplog):
    damaged, foreign, renamed = (tmp_path / name for name in ("damaged.onnx", "foreign.onnx", "renamed.ONNX"))
    renamed.write_bytes((files / "float32.onnx").read_bytes())
    damaged.write_bytes((files / "float32.onnx").read_bytes()[:5000])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), foreign)
    for path, message in (
        (damaged, "cannot be read as ONNX"),
        (foreign, "was not written by this program"),
        (tmp_path / "none.onnx", "no such file; expected the output of 07_manual_pruning.py --export"),
        (renamed, "renamed.ONNX is a file; the name of an exported model ends in .onnx"),
        (files, "is a folder of exported files; 03_model_validation.py and 08_detection.py take one of them, such as"),
    ):
        assert run(8, "--model_dir", path, "--raw_dir", night, "--output_dir", tmp_path / "out") == 3
        assert message in caplog.text
        caplog.clear()
    words = ["--model_dir", files / "float32.onnx", "--raw_dir", night, "--output_dir", tmp_path / "out"]
    assert run(8, *words, "--device", "cuda") == 2
    assert "runs on the CPU" in caplog.text
    with pytest.raises(UsageError, match="runs on the CPU"):
        exported_network.load(files / "float32.onnx", "cuda")


def test_a_file_of_an_unfinished_run_is_refused_also_through_a_link(files, tmp_path):
    unfinished, link = tmp_path / "run" / "float32.onnx", tmp_path / "link.onnx"
    shutil.copytree(files, unfinished.parent)
    link.symlink_to(unfinished)
    record_path = unfinished.parent / "run.json"
    record_path.write_text(record_path.read_text().replace('"status": "complete"', '"status": "running"'))
    for path in (unfinished, link):
        with pytest.raises(InputError, match="is not complete"):
            model_folder.scored_input(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "2"}, "has the version 2"),
        ({"sizes": "{"}, "no schema_version"),
        ({"sample_rate_hz": "8000"}, "its metadata say"),
        ({"sample_rate_hz": "null"}, "sample_rate_hz in its metadata is not a number of Hz"),
        ({"sizes": "{}"}, "sizes in its metadata is not the numbers n_blocks"),
        ({"config": "{}"}, "not that of a trained model"),
        ({"config": "[]"}, "not that of a trained model"),
        ({"labels": '["another"]'}, "labels and config in its metadata contradict each other"),
        ({"thresholds": "{"}, "thresholds and config in its metadata contradict each other"),
        ({"training_recordings": '{"schema_version": 1}'}, "training_recordings in its metadata is damaged"),
    ],
)
def test_metadata_that_cannot_be_right(changes, message, files, tmp_path):
    network = onnx.load(files / "float32.onnx")
    values = {prop.key: prop.value for prop in network.metadata_props}
    helper.set_model_props(network, values | changes)
    path = tmp_path / "changed.onnx"
    onnx.save(network, path)
    with pytest.raises(InputError, match=message):
        exported_network.load(path, "cpu")


@pytest.mark.parametrize("change", [{"model_type": "unknown"}, {"num_hidden_layers": "two"}])
def test_a_config_that_transformers_refuses(change, files, tmp_path):
    network = onnx.load(files / "float32.onnx")
    values = {prop.key: prop.value for prop in network.metadata_props}
    values["config"] = json.dumps(json.loads(values["config"]) | change)
    helper.set_model_props(network, values)
    onnx.save(network, tmp_path / "changed.onnx")
    with pytest.raises(InputError, match="config in its metadata is damaged"):
        exported_network.load(tmp_path / "changed.onnx", "cpu")


@pytest.mark.parametrize(
    ("fitted", "advice"),
    [
        (None, r"\(03_model_validation.py --model_dir <folder of the model> --fit_thresholds, then export it again\)"),
        ({**DECISION, "thresholds": dict.fromkeys(LABELS)}, "--target_precision 0.72 --overwrite, then export it"),
    ],
)
def test_08_says_how_a_file_gets_thresholds(fitted, advice, files, tmp_path):
    network = onnx.load(files / "float32.onnx")
    values = {prop.key: json.loads(prop.value) for prop in network.metadata_props}
    values["config"]["decision"] = fitted
    helper.set_model_props(network, metadata_of({name: values[name] for name in exported.KEYS}))
    onnx.save(network, tmp_path / "changed.onnx")
    with pytest.raises(InputError, match=advice):
        field_model.read(tmp_path / "changed.onnx", None)


def test_labels_come_in_the_order_of_their_ids():
    assert decision.labels_of({"id2label": {"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}}})[-1] == "k"


def test_the_lines_of_the_documentation_run(files, tmp_path):
    code = (ROOT / "docs" / "export.md").read_text().split("```python\n")[1].split("```")[0]
    write(tmp_path / "song.wav", song(1.3, SAMPLE_RATE_HZ, 1, 0), SAMPLE_RATE_HZ)
    (tmp_path / "int8.onnx").write_bytes((files / "int8.onnx").read_bytes())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [f"{i * CLIP_SECONDS:.1f} s" for i in range(round(1.3 // CLIP_SECONDS) + 1)]
    assert all(label in LABELS and 0 < float(score) <= 1 for _, label, score in lines)
