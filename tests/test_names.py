"""Names of runs and results: what is composed is read back, and nothing else is."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core import names
from utils.core.cli import format_layer_list
from utils.core.errors import UsageError
from utils.core.names import Name

ROOT = Path(__file__).parents[1]
WORDS = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True)
VARIANTS = st.one_of(
    st.sets(st.integers(0, 30)).map(lambda layers: names.blocks(format_layer_list(sorted(layers)))),
    st.integers(0, 48).map(names.after),
    st.sampled_from([names.PRUNED, names.SWEEP, "pretrained", "all-clips"]),
)


@given(
    data_set=WORDS,
    model=WORDS,
    seed=st.integers(0, 2**32),
    variants=st.lists(VARIANTS, max_size=3).map(tuple),
    split_by=st.sampled_from(["recordist", "recordist_and_species", "recording", "clip"]),
    fold=st.sampled_from([None, "1", "20", "all"]),
)
def test_what_is_composed_is_read_back(data_set, model, seed, variants, split_by, fold):
    try:
        name = Name(data_set, model, seed, variants, split_by, fold)
    except UsageError:
        assert ".by-" in data_set or re.search(r"\.(blocks|after|pruned|sweep|pretrained|all)", model)
        return
    assert names.parse(str(name)) == name
    assert str(name) == f"{name.data.split('/')[0]}/{name.full_model}/{name.part}"


@given(st.text(alphabet="ab/.-+,0123 byseedblocks", max_size=40))
def test_what_is_read_is_composed_to_the_same(text):
    name = names.parse(text)
    assert name is None or str(name) == text


def test_the_parts_of_a_name():
    name = names.parse("birds25.by-clip/whisper-base.blocks-0-3.sweep/seed-1")
    assert name == Name("birds25", "whisper-base", 1, ("blocks-0-3", "sweep"), "clip")
    assert (name.data, name.full_model) == ("birds25.by-clip/seed-1", "whisper-base.blocks-0-3.sweep")
    assert names.parse("birds/w2v.blocks-0-3,7/fold-2.seed-0").variants == ("blocks-0-3,7",)
    assert names.parse("birds/data2vec-0.5b/seed-0").model == "data2vec-0.5b"
    for text in ("whole", "birds/whole", "birds/whole/1", "birds/whole/seed-01", "a/b/c/seed-1", "birds/a+b/seed-1"):
        assert names.parse(text) is None


@pytest.mark.parametrize(
    ("data_set", "model"), [("birds.by-clip", "a"), ("birds", "a.blocks-0"), ("a/b", "c"), ("birds", ""), (".x", "a")]
)
def test_a_name_that_would_be_read_as_another_is_refused(data_set, model):
    with pytest.raises(UsageError, match="no result can be called"):
        Name(data_set, model, 1)


def test_what_is_made_of_a_run():
    assert names.variant_of("birds/w2v/seed-1", names.PRUNED) == "birds/w2v.pruned/seed-1"
    assert names.variant_of("whole", names.SWEEP) == "whole.sweep"
    assert names.both("birds/a/seed-1", "birds/b.blocks-0/seed-2") == "birds/a+b.blocks-0/seed-1"
    assert names.both("a", "base") == "a+base"


def test_the_name_of_a_folder_is_its_path_below_all_results(tmp_path):
    for path, name in {
        "validation_results/birds/w2v/seed-1": "birds/w2v/seed-1",
        "validation_results/published/birds/w2v/seed-1": "birds/w2v/seed-1",
        "validation_results/whole": "whole",
        "elsewhere/whole": "whole",
        "elsewhere/birds/whole/seed-1": "birds/whole/seed-1",
        "validation_results/a/b/c/d": "d",
    }.items():
        assert names.of_folder(tmp_path / path) == name
    (tmp_path / "runs" / "birds" / "w2v" / "seed-1" / "model").mkdir(parents=True)
    assert names.of_model(tmp_path / "runs" / "birds" / "w2v" / "seed-1") == "birds/w2v/seed-1"
    assert names.of_model(tmp_path / "runs" / "birds" / "w2v" / "seed-1" / "model") == "birds/w2v/seed-1"
    assert names.of_model("facebook/wav2vec2-base") == "wav2vec2-base"
    assert names.of_data(tmp_path / "processed_data" / "birds" / "seed-1") == "birds"
    assert names.of_data(tmp_path / "processed_data") == "processed_data"


def test_an_exported_file_is_named_after_its_folder_also_if_it_was_renamed(tmp_path):
    for path, name in {
        "runs/birds/w2v.onnx/seed-1/int8.onnx": "birds/w2v.onnx.int8/seed-1",
        "runs/birds/w2v.onnx/seed-1/my best.onnx": "birds/w2v.onnx/seed-1.my best",
        "runs/birds/w2v.onnx/seed-1/sweep.onnx": "birds/w2v.onnx/seed-1.sweep",  # not the results of a sweep
        "runs/whole.onnx/float32.onnx": "whole.onnx.float32",
        "downloads/birds.v2.onnx": "downloads.birds.v2",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
        assert names.of_model(tmp_path / path) == name


def test_results_are_found_at_any_depth_but_not_those_that_came_with_the_code(tmp_path):
    for path in ("whole", "birds/w2v/seed-1", "published/birds/w2v/seed-1", "a/b/c/d", "whole/healed", ".x/y"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "run.json").write_text("{}")
    found = [path.relative_to(tmp_path).as_posix() for path in names.result_folders(tmp_path)]
    assert found == ["birds/w2v/seed-1", "whole"]


def test_a_folder_that_cannot_be_read_has_no_results(tmp_path, monkeypatch):
    for path in ("secret/w2v/seed-1", "whole"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "run.json").write_text("{}")
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert list(names.result_folders(tmp_path)) == [tmp_path / "whole"]
    with pytest.raises(PermissionError):
        list(names.result_folders(tmp_path / "secret"))


def test_published_results_follow_the_layout():
    for kind in ("validation_results", "analysis_results"):
        folders = list(names.result_folders(ROOT / kind / names.PUBLISHED))
        assert folders
        for folder in folders:
            name = names.of_folder(folder)
            assert names.parse(name) or "+" in name
            outputs = json.loads((folder / "run.json").read_text())["outputs"]
            assert {output["path"] for output in outputs} <= {path.name for path in folder.iterdir()}


def test_make_uses_the_same_names():
    """Of a model of one's own, `make pipeline` leaves what the stages and the studies look for."""
    make = shutil.which("make")
    words = [
        make,
        "-n",
        "pipeline",
        "RAW_DIR=x",
        "NAME=wetland",
        "BASE_MODEL=../models/w2v/",
        "SEED=3",
        "SPLIT_BY=clip",
    ]
    printed = subprocess.run([*words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    name = Name("wetland", "w2v", 3, split_by="clip")
    for folder in (f"runs/{name}", f"validation_results/{name}", f"analysis_results/{name}"):
        assert f'--output_dir "./{folder}"' in printed
    assert f'--output_dir "./validation_results/{name.variant(names.SWEEP)}"' in printed
