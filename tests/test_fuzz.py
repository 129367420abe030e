"""Untrusted input: whatever is in a metadata CSV, a layer list or an audio file, a message or a result comes out.

A few examples in every run of the tests; `make drills` tries many more, new ones each time.
"""

import io
import json
import posixpath

import numpy as np
import pytest
import soundfile
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import Wav2Vec2Config

from utils.core import cli, runs
from utils.core.errors import InputError, UsageError
from utils.data import annotations, audio, clips, preparation, recordings, shards, spool
from utils.data.recording_ids import tidy
from utils.models import training
from utils.pruning import best, pruning_table, recommendation

RATE = 16000
FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
FORMATS += [("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("CAF", "ALAC_16"), ("AU", "ULAW")]
MOST_SAMPLES = 60 * RATE


def song(file_format, subtype, n_samples=4000):
    """Return the bytes of a short file with a tone in noise."""
    rng = np.random.default_rng(0)
    samples = 0.3 * np.sin(np.arange(n_samples) / 7) + 0.05 * rng.standard_normal(n_samples)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=file_format, subtype=subtype)
    return file.getvalue()


SONGS = [song(*names) for names in FORMATS]


# ------------------------------------------------------------------------------------------- layer lists


@given(
    st.one_of(
        st.text(max_size=30),
        st.text("0123456789-, none\n+٣²", max_size=20),
        st.from_regex(r"\d{1,2}(-\d{1,2})?(,\d{1,2})*"),
    ),
    st.integers(0, 48),
)
@example("none", 0)
@example("0-", 12)
@example("0-99999999999", 12)
def test_any_layer_list_is_layers_of_the_model_or_a_usage_error(text, n_layers):
    try:
        layers = cli.parse_layer_list(text, n_layers)
    except UsageError as error:
        assert repr(text) in str(error)
        return
    # Read by hand: every number from the first to the last of each part.
    bounds = [] if text.strip() == "none" else [part.split("-") for part in text.split(",")]
    assert layers == sorted(i for pair in bounds for i in range(int(pair[0]), int(pair[-1]) + 1))
    assert len(set(layers)) == len(layers) and all(0 <= layer < n_layers for layer in layers)


@given(st.sets(st.integers(0, 47)).map(sorted))
def test_any_layers_are_written_and_read_again(layers):
    assert cli.parse_layer_list(cli.format_layer_list(layers), 48) == layers


# -------------------------------------------------------------------------------------------- metadata


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    (folder / "a").mkdir()
    for name in ("1.wav", "2.wav", "a/ü é.wav", "-rf.wav"):
        (folder / name).write_bytes(SONGS[0])
    return folder


CELLS = st.one_of(
    st.sampled_from(
        ["1.wav", "2.wav", "a/ü é.wav", "-rf.wav", "../1.wav", "/etc/passwd", "$(touch x)", "Parus", "", " "]
    ),
    st.text(max_size=12),
)
COLUMNS = st.sampled_from(
    ["file", "label", "recording_id", "recordist", "filename", "primary_label", "id", "gen", "sp"]
)
TABLES = st.builds(
    lambda columns, rows, mark, end: end.join(mark.join(row) for row in [columns, *rows]).encode(
        errors="surrogatepass"
    ),
    st.lists(st.one_of(COLUMNS, st.text(max_size=5)), max_size=5),
    st.lists(st.lists(CELLS, max_size=5), max_size=6),
    st.sampled_from([",", ";", "\t", '","']),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


@given(content=st.one_of(st.binary(max_size=300), TABLES))
@example(content=b"file,label\n1.wav,Parus major\n")
@example(content=b"\xff\xfef\x00i\x00l\x00e\x00")
@example(content=b'file,label\n"1.wav,Parus\n')
def test_any_metadata_names_files_below_the_folder_or_is_an_input_error(content, raw_dir):
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_bytes(content)
    try:
        files, skipped = recordings.find_recordings(raw_dir, metadata)
    except InputError as error:
        assert "\n" not in str(error).strip()
        return
    for file in files:
        assert (raw_dir / file.path).resolve().is_relative_to(raw_dir.resolve()) and (raw_dir / file.path).is_file()
        assert file.label.strip() and file.label.isprintable()
    assert len({file.path for file in files}) == len(files)
    assert all(each.file.strip() and each.reason for each in skipped)


# --------------------------------------------------------------------------------------- audio headers


@st.composite
def damaged_songs(draw):
    """Draw a file of some format with bytes of its header, or anywhere, replaced, removed or put in."""
    data = bytearray(draw(st.sampled_from(SONGS)))
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.one_of(st.integers(0, 80), st.integers(0, len(data))))
        new = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])))
        removed = draw(st.sampled_from([len(new), len(new), 0, 50]))
        data[position : position + removed] = new
        assume(data)
    return bytes(data)


@given(content=st.one_of(damaged_songs(), st.binary(max_size=200)))
def test_any_file_is_finite_sound_or_undecodable(content, raw_dir):
    path = raw_dir.parent / "sound"
    path.write_bytes(content)
    blocks = []
    try:
        decoded = audio.decode(path, RATE, lambda: blocks.clear() or blocks.append)
    except audio.Undecodable as reason:
        assert str(reason)
        return
    samples = np.concatenate(blocks)
    assert samples.dtype == np.int16 and len(samples) == decoded.n_samples > 0 and samples.any()
    # A header may claim another rate, and so a longer sound; never one out of all proportion to the file.
    assert len(samples) <= MOST_SAMPLES


@pytest.mark.parametrize("number", range(len(FORMATS)), ids=["-".join(names) for names in FORMATS])
def test_undamaged_files_are_sound(number, raw_dir):
    path = raw_dir.parent / "sound"
    path.write_bytes(SONGS[number])
    blocks = []
    decoded = audio.decode(path, RATE, lambda: blocks.clear() or blocks.append)
    assert decoded.n_samples == sum(len(block) for block in blocks) >= 4000


# ------------------------------------------------------------------------------------- our own JSON files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw, value):
    """Draw the text of a JSON value with one of its parts, however deep, replaced, removed or put in; or rubbish."""
    kind = draw(st.sampled_from(["part", "part", "part", "cut", "bytes", "deep"]))
    text = json.dumps(value)
    if kind == "cut":
        return text[: draw(st.integers(0, len(text)))].encode()
    if kind == "bytes":
        return draw(st.binary(max_size=50))
    if kind == "deep":
        depth = draw(st.integers(100, 20_000))
        return text.replace("1", "[" * depth + "]" * depth, 1).encode()
    value = json.loads(text)
    where, key = {"": value}, ""
    while isinstance(where[key], dict | list) and len(where[key]) and draw(st.booleans()):
        where = where[key]
        key = draw(st.sampled_from(sorted(where) if isinstance(where, dict) else list(range(len(where)))))
    if key != "" and draw(st.booleans()):
        del where[key]
        return json.dumps(value).encode()
    where[key] = draw(JSON)
    return json.dumps(value if key != "" else where[""]).encode()


SHA256 = "0" * 64
RECORD = {
    "schema_version": 1,
    "stage": "05_pruning",
    "status": "complete",
    "arguments": {"seed": 1},
    "asked": {"seed": 1},
    "inputs": [{"name": "model_dir", "path": "runs/a", "sha256": SHA256}],
    "outputs": [{"path": "best.json", "bytes": 10, "sha256": SHA256}],
    "writes": ["best.json"],
    "scratch": [".sweep"],
    "replaces": [],
    "metrics": {"decoded_by": "x"},
    "attempts": 1,
}
LABELS = {"label2id": {"Parus": 0, "Sitta": 1}, "id2label": {"0": "Parus", "1": "Sitta"}}
BEST = {
    "schema_version": 1,
    "model_sha256": SHA256,
    "model_dir": "runs/a",
    "by_depth": {"2": {"keep": [0, 1], "n_layers": 2}, "1": {"keep": [0]}},
    "smallest_within_margin": {"keep": [0, 1]},
}
RECOMMENDATION = {"model_sha256": SHA256, "split": "train", "n_layers": 2, "evidence": {"block_influence": [0.1, 0.2]}}
STATE = {"best_model_checkpoint": None, "log_history": [{"eval_macro_f1": 0.1}], "global_step": 1}
COSTS = {"1": {"gmacs_per_clip": 0.1, "latency_doubt": "", "latency_ms_median": 1.5}}
MARKER = {
    "made_from": {"size": 1},
    "spooled": {"path": "a", "n_samples": 1, "sha256": SHA256, "source_rate_hz": 1, "warnings": ["1"]},
}
NAMED = ("run.json", "label_mappings.json", "recommendation.json", "listing.json")
LISTING = {"files": [["a.wav", 1, 2]]}


def read_best(folder):
    config = Wav2Vec2Config(num_hidden_layers=3)
    return best.layers_to_keep(folder / "x.json", runs.Input("runs/a", SHA256), config, 2)


def read_checkpoint(folder):
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir(exist_ok=True)
    (folder / "x.json").replace(checkpoint / "trainer_state.json")
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).touch()
    last = training._last_whole_checkpoint(folder)
    return last and training._epochs_without_gain(training._read_state(last)["log_history"])


READERS = {
    "run.json": (RECORD, lambda folder: runs.read_record(folder)),
    "label_mappings.json": (LABELS, lambda folder: clips.read_labels(folder)),
    "best.json": (BEST, read_best),
    "recommendation.json": (
        RECOMMENDATION,
        lambda folder: recommendation.read_evidence(
            folder, runs.Input("runs/a", SHA256), runs.Input("d", SHA256), "test"
        ),
    ),
    "trainer_state.json": (STATE, read_checkpoint),
    "costs.json": (COSTS, lambda folder: pruning_table._read_costs(folder / "x.json")),
    "marker": (MARKER, lambda folder: spool._read_marker(folder / "x.json", folder / "x.json", {"size": 1})),
    "plan.json": ({"sha256": SHA256}, lambda folder: preparation._is_planned(folder / "x.json", {"sha256": SHA256})),
    "listing.json": (LISTING, lambda folder: shards._files_changed(folder, [spool.Listed("a.wav", 1, 2)])),
}


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_any_damage_to_a_json_file_of_ours_is_an_input_error(name, data, tmp_path_factory):
    """`run.json` tells its own damage from another's file; caches are made anew; what a user must mend is named."""
    value, read = READERS[name]
    folder = tmp_path_factory.mktemp("json")
    content = data.draw(damaged(value))
    (folder / (name if name in NAMED else "x.json")).write_bytes(content)
    try:
        read(folder)
    except (InputError, UsageError) as error:
        assert "\n" not in str(error).strip()


@pytest.mark.parametrize("name", READERS)
def test_undamaged_json_files_are_read(name, tmp_path):
    value, read = READERS[name]
    (tmp_path / (name if name in NAMED else "x.json")).write_text(json.dumps(value))
    assert read(tmp_path) is not None or name == "marker"  # whose sound has another digest


# ------------------------------------------------------------------------------------------ tables of labels with times

HEADERS = [
    *("", "file,start,end,label\n", "Start (s),End (s),Scientific name,Common name,Confidence,File\n"),
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tAnnotation\n",
    "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,TOP1MATCH,MANUAL ID\n",
]
CELLS = st.sampled_from(["1.0", "0", "3,5", "-1", "nan", "1e400", "rook", '"', "", "a.wav", "\\"]) | st.text(max_size=4)


@given(
    header=st.sampled_from(HEADERS),
    rows=st.lists(st.lists(CELLS, max_size=12), max_size=6),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
    suffix=st.sampled_from([".txt", ".csv"]),
)
def test_a_table_of_labels_is_read_or_refused(tmp_path, header, rows, separator, encoding, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes((header + "\n".join(map(separator.join, rows))).encode(encoding, "replace"))
    try:
        table = annotations.read(path)
    except InputError:
        return
    for a in table.annotations:
        assert 0 <= a.start_s <= a.end_s and a.label and a.file in table.files


LABELS = st.text(min_size=1, max_size=8).map(tidy).filter(lambda label: label and label.isprintable())
TIMES_US = st.tuples(st.integers(0, 10**9), st.integers(1, 10**8), LABELS)


@given(name=st.sampled_from(sorted(annotations.FORMATS)), rows=st.lists(TIMES_US, max_size=5))
def test_labels_are_read_as_they_were_written(tmp_path, name, rows):
    room, file = annotations.FORMATS[name], "a b,c.wav"
    path = tmp_path / f"{file}{room.SUFFIX}"
    detections = [annotations.Annotation(file, start / 1e6, (start + n) / 1e6, label, 0.5) for start, n, label in rows]
    room.write(path, detections, {file: 2000.0}, tmp_path, 8000.0)
    table = annotations.read(path)
    assert {(round(a.start_s * 1e6), round(a.end_s * 1e6), a.label) for a in table.annotations} == {
        (start, start + n, label) for start, n, label in rows
    }
    assert (table.format, table.problems) == (name, [])
    assert [posixpath.basename(covered) for covered in table.files] == [file]
