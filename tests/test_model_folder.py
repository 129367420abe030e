"""Model folders that came from anywhere: what is refused, in which words, and what is loaded all the same."""

import json
import os
import pty
import re
import shutil
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.data import LABELS, small_model, write_processed
from tests.stages import ROOT, load_stage
from utils.core.errors import InputError, UsageError
from utils.core.text import printable
from utils.models import encoders, model_folder

OWN_CODE = """
from pathlib import Path
from transformers import PreTrainedConfig, Wav2Vec2FeatureExtractor
Path(__file__).with_name("marker").touch()
Path(r"{marker}").touch()
class Config(PreTrainedConfig):
    model_type = "own"
class Extractor(Wav2Vec2FeatureExtractor):
    pass
"""


@pytest.fixture
def model_dir(tmp_path):
    encoders.save_model(small_model("wav2vec2"), tmp_path / "model")
    return tmp_path / "model"


def change(folder, name="config.json", **keys):
    """Set keys of a JSON file of a model folder; None deletes one."""
    content = json.loads((folder / name).read_text()) | keys
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def shard(folder, *names):
    """Write the weights of a folder into several files, and the index that names them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard_of = {key: names[i % len(names)] for i, key in enumerate(sorted(weights))}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        part = {key: weights[key] for key in weights if shard_of[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load(folder):
    model_folder.model_input(folder)
    return encoders.load_model(folder, "cpu").model


# --------------------------------------------------------------------------------------- code of its own


def bring_code(folder, place, marker):
    """Let a folder name a class of its own, in the way of the hub; the marker appears if the code is run."""
    (folder / "own.py").write_text(OWN_CODE.format(marker=marker))
    extractor = json.loads((folder / "preprocessor_config.json").read_text())
    own_extractor = {"auto_map": {"AutoFeatureExtractor": "own.Extractor"}, "feature_extractor_type": "Extractor"}
    if place == "config":
        change(folder, model_type="own", auto_map={"AutoConfig": "own.Config"})
    elif place == "config of a known type":
        change(folder, auto_map={"AutoConfig": "own.Config", "AutoModelForAudioClassification": "own.Model"})
    elif place == "feature extractor":
        change(folder, "preprocessor_config.json", **own_extractor)
    elif place == "processor":
        (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor | own_extractor}))
    elif place == "attention":  # a kernel of the hub, which the package kernels would download and run
        change(folder, attn_implementation="somebody/kernel")


PLACES = ["config", "config of a known type", "feature extractor", "processor", "attention"]
STAGES = {
    "02_finetuning": ("--base_model", "--num_train_epochs", "1"),
    "03_model_validation": ("--model_dir",),
    "04_analysis": ("--model_dir",),
    "05_pruning": ("--model_dir",),
    "07_manual_pruning": ("--model_dir", "--keep_layers", "0"),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


def command(stage, folder, data_dir, output_dir):
    flag, *more = STAGES[stage]
    data = [] if stage == "07_manual_pruning" else ["--data_dir", str(data_dir), "--device", "cpu"]
    return [flag, str(folder), *more, *data, "--output_dir", str(output_dir)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_runs_or_asks_about_code_of_a_model(stage, place, model_dir, data_dir, tmp_path, caplog, monkeypatch):
    def asked(*words):
        raise AssertionError(f"asked: {words}")

    bring_code(model_dir, place, tmp_path / "marker")
    monkeypatch.setattr("builtins.input", asked)
    assert load_stage(stage).main(command(stage, model_dir, data_dir, tmp_path / "out")) == 3
    assert re.search(r"(preprocessor_|processor_)?config\.json: the key '\w+' names its own code", caplog.text)
    assert "Traceback" not in caplog.text
    assert not list(tmp_path.rglob("marker")) and not list(tmp_path.rglob("own.pyc"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["config", "feature extractor"])
def test_nobody_is_asked_on_a_terminal(place, model_dir, data_dir, tmp_path, monkeypatch, capfd):
    """Without trust_remote_code=False transformers asks there, and waits for 15 s."""
    bring_code(model_dir, place, tmp_path / "marker")
    ours, its = pty.openpty()
    with os.fdopen(its) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        assert sys.stdin.isatty()
        words = command("02_finetuning", model_dir, data_dir, tmp_path / "out")
        assert load_stage("02_finetuning").main(words) == 3
    os.close(ours)
    said = "".join(capfd.readouterr())
    assert "names its own code" in said and "[y/N]" not in said
    assert not list(tmp_path.rglob("marker"))


def test_one_function_calls_from_pretrained():
    """In all code that runs here; classify.py, which goes with a model, calls it by itself."""
    callers = {
        f"{path.relative_to(ROOT)}:{line.strip()}"
        for path in [
            *ROOT.glob("*.py"),
            *(p for d in ("utils", "benchmarks", "experiments") for p in (ROOT / d).rglob("*.py")),
        ]
        for line in path.read_text().splitlines()
        if re.search(r"(?<!nn\.Embedding)\.from_pretrained\(|\btorch\.load\(|pickle\.load|trust_remote_code=True", line)
        and path.name != "classify.py"
    }
    assert callers == {
        "utils/models/loading.py:return auto_class.from_pretrained("
        "place, trust_remote_code=False, local_files_only=True, **options)",
        "utils/models/loading.py:weights = torch.load(path, map_location=device, weights_only=True)",
    }


def test_a_pickle_is_read_as_weights_only(model_dir, tmp_path):
    class Foreign:
        def __reduce__(self):
            return open, (str(tmp_path / "marker"), "w")

    torch.save({"weight": Foreign()}, model_dir / "pytorch_model.bin")
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin holds more than weights: .*class io\.open") as refusal:
        load(model_dir)
    assert "\x1b" not in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "marker").exists()


# --------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.safetensors", "sub/b.safetensors")])
def test_weights_in_several_files_are_loaded_and_digested(names, model_dir):
    wanted = load(model_dir).state_dict()
    shard(model_dir, *names)
    loaded = load(model_dir).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())
    before = model_folder.model_input(model_dir).sha256
    second = load_file(model_dir / names[1])
    save_file({key: value + 1 for key, value in second.items()}, model_dir / names[1], metadata={"format": "pt"})
    assert model_folder.model_input(model_dir).sha256 != before


@pytest.mark.parametrize("place", ["..", "absolute"])
def test_weights_outside_the_folder_are_refused(place, model_dir, tmp_path):
    outside = "../b.safetensors" if place == ".." else str(tmp_path / "b.safetensors")
    shard(model_dir, "a.safetensors", outside)
    assert (tmp_path / "b.safetensors").is_file()
    named = re.escape(outside[:40])  # the message cuts a long name
    with pytest.raises(InputError, match=rf"index\.json names the weights '{named}.*; expected .* same folder"):
        load(model_dir)


def test_links_are_followed_as_in_the_cache_of_the_hub(model_dir, tmp_path):
    before = model_folder.model_input(model_dir).sha256
    shutil.move(model_dir / "model.safetensors", tmp_path / "blob")
    (model_dir / "model.safetensors").symlink_to(tmp_path / "blob")
    (tmp_path / "link").symlink_to(model_dir)
    assert model_folder.model_input(tmp_path / "link").sha256 == before
    assert load(tmp_path / "link").config.num_hidden_layers == 3


def test_of_two_sets_of_weights_the_first_is_read_and_named(model_dir, caplog):
    weights = load_file(model_dir / "model.safetensors")
    torch.save({name: value + 1 for name, value in weights.items()}, model_dir / "pytorch_model.bin")
    with caplog.at_level("INFO"):
        loaded = load(model_dir).state_dict()
    assert "several sets of weights: model.safetensors is read" in caplog.text
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


# ------------------------------------------------------------------------------- what a folder says of itself

TOO_DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
JSON_FILES = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TOO_DEEP, "cannot be read as JSON \\(RecursionError"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as JSON \\(ValueError: Exceeds the limit"),
        ("", "cannot be read as JSON"),
        ('{"a": "\udcff"}', "cannot be read as JSON \\(UnicodeDecodeError"),
        ("[1]", "holds \\[1\\]; expected an object"),
    ],
    ids=["deep", "huge", "empty", "bytes", "list"],
)
def test_json_that_is_none_is_named(name, content, words, model_dir):
    if name == JSON_FILES[2]:
        shard(model_dir, "a.safetensors", "b.safetensors")
    (model_dir / name).write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=f"{name} {words}"):
        model_folder.model_input(model_dir)


def test_json_just_within_the_limit_of_depth(model_dir):
    change(model_dir, deep=json.loads("[" * 400 + "]" * 400))
    assert model_folder.model_input(model_dir).sha256


CONFIGS = {
    "kept_layers": [5, "0-2", [0, 1], [2, 1, 0], [0, 1, "2"], [0, 1, 1], [0.0, 1.0, 2.0]],
    "clip_seconds": ["x", "5", -1, 0, True, float("inf"), float("nan"), [5]],
    "clip_channel": [1, "middle", "0", "1.5", ""],
    "num_hidden_layers": [10_000_000, 4, -1, 2.5, "3", True],
    "num_adapter_layers": [10_000_000],
    "num_labels": [10**9, -3, "3", 2],
    "id2label": [
        ["Blackbird", "Crow", "Great Tit"],
        {"1": "Blackbird", "2": "Crow", "3": "Great Tit"},
        {"0": "Blackbird", "1": "Crow", "7": "Great Tit"},
        {"0": 1, "1": 2, "2": 3},
        {"0": "Crow", "1": "Crow", "2": "Wren"},
        {"a": "Blackbird"},
    ],
    "label2id": [5, {"Blackbird": 1, "Crow": 0, "Great Tit": 2}],
    "hidden_size": ["x", 10**9, 10**6],
    "intermediate_size": [10**9],
    "data_sha256": [5],
    "trained_on": ["x", [5]],
    "pruned_from": [["a"]],
    "pruned_after_fine_tuning": ["no"],
    "model_type": [5, ["wav2vec2"], "nothing-known"],
    "dtype": ["float33"],
    "transformers_weights": ["other.safetensors", "../other.safetensors"],
    "configuration_files": [["config.4.0.0.json"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CONFIGS.items() for value in values])
def test_config_that_cannot_be(key, value, model_dir):
    change(model_dir, **{key: value})
    start = time.monotonic()
    with pytest.raises(InputError) as refusal:
        load(model_dir)
    assert time.monotonic() - start < 5, "before memory is taken"
    text = str(refusal.value)
    assert str(model_dir) in text and len(text) < 500 and "\n" not in text
    if key not in ("dtype", "intermediate_size"):
        assert key.replace("hidden_size", "hidden.size") in text or re.search(key.replace("_", "."), text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sampling_rate": "16000"}, "has the sampling_rate '16000'"),
        ({"sampling_rate": True}, "has the sampling_rate True"),
        ({"sampling_rate": 0}, "has the sampling_rate 0"),
        (
            {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80},
            "is a WhisperFeatureExtractor; a wav",
        ),
        ({"feature_extractor_type": "ASTFeatureExtractor"}, "is a ASTFeatureExtractor; a wav2vec2 model needs"),
        ({"feature_extractor_type": "NoSuchExtractor"}, "cannot be loaded"),
        ({"feature_extractor_type": 5}, "cannot be loaded"),
    ],
)
def test_feature_extractor_of_another_model(keys, words, model_dir):
    change(model_dir, "preprocessor_config.json", **keys)
    with pytest.raises(InputError, match=words):
        load(model_dir)


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("whisper", {"chunk_length": 2}, "gives 200 frames, the model expects 100"),
        ("whisper", {"chunk_length": 10**9}, "frames, the model expects 100"),
        ("whisper", {"feature_size": 128}, "gives 128 bands, the model expects 80"),
        ("ast", {"max_length": 64}, "gives 64 frames, the model expects 128"),
        ("ast", {"num_mel_bins": 64}, "gives 64 bands, the model expects 32"),
        ("wav2vec2-bert", {"num_mel_bins": 20}, "gives 40 bands, the model expects 32"),
        ("wav2vec2-bert", {"stride": 3}, "gives 48 bands, the model expects 32"),
        ("wav2vec2-bert", {"stride": "2"}, "has the stride '2'; expected"),
        (
            "wav2vec2-bert",
            {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
            "needs a SeamlessM4TFeatureExtractor",
        ),
    ],
)
def test_feature_extractor_of_another_size(name, keys, words, tmp_path):
    encoders.save_model(small_model(name), tmp_path / "model")
    change(tmp_path / "model", "preprocessor_config.json", **keys)
    with pytest.raises(InputError, match=words):
        load(tmp_path / "model")


def test_deep_whisper_is_refused_at_once(tmp_path):
    encoders.save_model(small_model("whisper"), tmp_path / "model")
    for n in (4, 10**7):
        change(tmp_path / "model", encoder_layers=n)
        with pytest.raises(InputError, match=rf"_layers is {n}"):
            load(tmp_path / "model")


def test_an_adapter_is_not_left_out_without_a_word(model_dir):
    (model_dir / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    with pytest.raises(InputError, match=r"holds an adapter.*merge_and_unload"):
        model_folder.model_input(model_dir)


def test_no_label_steers_a_terminal(model_dir, data_dir, tmp_path, capfd):
    labels = ["\x1b[31mRobin", "a\nb", "Crow"]
    change(model_dir, id2label={str(i): label for i, label in enumerate(labels)}, label2id=None)
    words = command("03_model_validation", model_dir, data_dir, tmp_path / "out")
    assert load_stage("03_model_validation").main(words) == 3
    text = capfd.readouterr().err
    assert "labels differ" in text and "\x1b" not in text and "a\nb" not in text


@pytest.fixture(scope="module")
def fuzzed_dirs(tmp_path_factory):
    """Return model folders, and their JSON files as they are; a fuzz target alters them."""
    folders = {}
    for name in ("wav2vec2", "whisper", "ast"):
        folder = tmp_path_factory.mktemp("fuzz") / name
        encoders.save_model(small_model(name), folder)
        contents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
        folders[name] = folder, contents
    return folders


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**20) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=4,
)


@given(data=st.data())
def test_no_value_of_any_key_ends_in_a_traceback(data, fuzzed_dirs):
    folder, contents = fuzzed_dirs[data.draw(st.sampled_from(sorted(fuzzed_dirs)))]
    name = data.draw(st.sampled_from(sorted(contents)))
    key = data.draw(st.sampled_from(sorted({*contents[name], *model_folder.FIELDS})))
    value = data.draw(JSON_VALUES)
    (folder / name).write_text(json.dumps(contents[name] | {key: value}))
    try:
        data.draw(st.sampled_from([encoders.load_any_model, encoders.load_model]))(folder, "cpu")
    except InputError as error:
        assert str(error).isprintable() and str(folder) in str(error)
    finally:
        (folder / name).write_text(json.dumps(contents[name]))


# ------------------------------------------------------------------------------------- folders that are good


def test_a_folder_with_a_processor_alone(model_dir):
    """transformers 5 saves the feature extractor of a processor in it, and writes no preprocessor_config.json."""
    extractor = json.loads((model_dir / "preprocessor_config.json").read_text())
    (model_dir / "preprocessor_config.json").unlink()
    (model_dir / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    model_folder.model_input(model_dir)
    assert encoders.load_model(model_dir, "cpu").extractor.to_dict() == small_model("wav2vec2").extractor.to_dict()


def test_a_folder_renamed_read_only_and_without_its_feature_extractors_class(model_dir, tmp_path):
    digest = model_folder.model_input(model_dir).sha256
    moved = tmp_path / "elsewhere é \u202e"
    model_dir.rename(moved)
    for path in moved.iterdir():
        path.chmod(0o444)
    moved.chmod(0o555)
    assert model_folder.model_input(moved).sha256 == digest
    assert load(moved).config.id2label == dict(enumerate(LABELS))
    moved.chmod(0o755)
    (moved / "preprocessor_config.json").chmod(0o644)
    change(moved, "preprocessor_config.json", feature_extractor_type=None)
    assert load(moved)


def test_a_file_is_not_a_folder(model_dir):
    with pytest.raises(InputError, match=r"config\.json is a file; expected its model folder: .*model$"):
        model_folder.any_model_input(model_dir / "config.json")


def test_a_folder_called_tiny(model_dir, tmp_path, monkeypatch):
    """04 and 07 gave the random model that is built in for it, under the folder's digest."""
    monkeypatch.chdir(tmp_path)
    assert encoders.load_any_model("tiny", "cpu").config.num_hidden_layers == 4
    (tmp_path / "tiny").mkdir()
    assert model_folder.any_model_input("tiny").path == "tiny", "a folder that holds no model"
    model_dir.rename(tmp_path / "tiny" / "model")
    for call in (
        lambda: model_folder.any_model_input("tiny"),
        lambda: encoders.load_any_model("tiny", "cpu"),
        lambda: encoders.load_base_model("tiny", LABELS),
    ):
        with pytest.raises(UsageError, match=r"write \./tiny for the folder"):
            call()
    assert encoders.load_any_model("./tiny", "cpu").config.num_hidden_layers == 3


# ---------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def cached(model_dir, tmp_path, monkeypatch):
    """Put a model into a cache of the hub, as a download leaves it; return its snapshot."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    root = cache / "models--somebody--birds"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    (root / "blobs").mkdir()
    for i, path in enumerate(sorted(model_dir.iterdir())):
        shutil.copy(path, root / "blobs" / str(i))
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    return snapshot


def test_a_model_of_the_hub_goes_by_its_name_and_its_content(cached, model_dir):
    name = "somebody/birds"
    described = model_folder.any_model_input(name)
    assert described.path == name and described.sha256 == model_folder.model_input(model_dir).sha256
    model = encoders.load_base_model(name, LABELS).model
    assert model.config.name_or_path == name
    encoders.prune_model(model, [0])
    assert model.config.pruned_from == name
    blob = (cached / "model.safetensors").resolve()
    weights = load_file(blob)
    save_file({key: value + 1 for key, value in weights.items()}, blob, metadata={"format": "pt"})
    assert model_folder.any_model_input(name).sha256 != described.sha256


def test_a_model_of_the_hub_is_checked_too(cached, tmp_path):
    blob = (cached / "config.json").resolve()
    blob.write_text(json.dumps(json.loads(blob.read_text()) | {"auto_map": {"AutoConfig": "own.Config"}}))
    for call in (model_folder.any_model_input, lambda name: encoders.load_base_model(name, LABELS)):
        with pytest.raises(InputError, match=r"somebody/birds/config\.json: the key 'auto_map' names its own code"):
            call("somebody/birds")


def test_a_model_that_the_cache_lacks(cached):
    with pytest.raises(
        InputError, match=r"somebody/else cannot be loaded: .* download the model where there is internet"
    ):
        model_folder.any_model_input("somebody/else")
    (cached / "model.safetensors").unlink()
    with pytest.raises(InputError, match="somebody/birds has no weights"):
        model_folder.any_model_input("somebody/birds")


def test_the_only_loader_names_what_it_could_not_read():
    error = ValueError("first\nsecond \x1b[31mred\x1b[0m \x07 " + "x" * 500)
    text = model_folder.one_line(error)
    assert text.startswith("ValueError: first second red \\x07 x") and len(text) < 230


def test_printable_text_is_one_line_and_steers_nothing():
    assert printable("Größe 大\x1b[2J\r\n\t\u202e\udcff\u2028") == "Größe 大\\x1b[2J\\r\\n\\t\\u202e\\udcff\\u2028"
