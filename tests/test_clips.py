"""Clips on disk: what is written is read back, by our reader, pandas and datasets; damage is named."""

import json
import pickle
import subprocess
import sys
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import CLIP_SECONDS, LABELS, SAMPLE_RATE_HZ, write_processed
from tests.stages import ROOT
from utils.core.errors import InputError, UsageError
from utils.data import clips, recordings_table
from utils.data.splits import FOLDS, SPLITS, Heard


def row(number: int, audio: np.ndarray, **changes) -> dict:
    return {
        "clip_id": f"r{number}:0",
        "recording_id": f"r{number}",
        "group": f"g{number}",
        "source_path": f"a/r{number}.wav",
        "clip_index": 0,
        "start_s": 0.5 * number,
        "duration_s": 0.25,
        "label": "ab"[number % 2],
        "label_id": number % 2,
        "split": "train",
        "audio": audio,
        **changes,
    }


@pytest.fixture
def stored(tmp_path):
    """Write 11 clips (three row groups) with the extreme sample values; return folder and audio."""
    audio = np.random.default_rng(0).integers(-32768, 32768, (11, 400)).astype(np.int16)
    audio[3, :4] = [-32768, 32767, 0, -1]
    rows = [row(i, audio[i]) for i in range(11)]
    assert clips.write_part(tmp_path / clips.part_name(0), iter(rows), 800, 0.5) == 11
    clips.write_labels(tmp_path, ["a", "b"])
    return tmp_path, audio


def test_round_trip(stored):
    folder, audio = stored
    read = clips.read_clips(folder)
    assert len(read) == 11 and read.labels == ["a", "b"]
    assert (read.sample_rate_hz, read.clip_seconds) == (800, 0.5)
    for i in np.random.default_rng(1).permutation(11):  # any order, through the cached row group
        item = read[i]
        assert item["audio"].dtype == np.float32
        np.testing.assert_array_equal(item["audio"] * 32768, audio[i])
        assert (item["label_id"], item["split"], item["index"]) == (i % 2, "train", i)
    again = pickle.loads(pickle.dumps(read))  # as a data loader's worker gets it
    np.testing.assert_array_equal(again.audio(10), read.audio(10))


def test_pandas_and_datasets_read_it_without_our_code(stored, tmp_path):
    folder, audio = stored
    frame = pd.read_parquet(folder / "clips-00000.parquet")
    assert list(frame.columns) == clips.CLIP_SCHEMA.names
    np.testing.assert_array_equal(np.stack(frame["audio"]), audio)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    np.testing.assert_array_equal(np.array(loaded["audio"]), audio)
    assert loaded["start_s"][3] == 1.5


def test_same_rows_same_bytes_and_small_row_groups(stored, tmp_path):
    folder, audio = stored
    (tmp_path / "again").mkdir()
    clips.write_part(tmp_path / "again" / "clips-00000.parquet", [row(i, audio[i]) for i in range(11)], 800, 0.5)
    first = (folder / "clips-00000.parquet").read_bytes()
    assert (tmp_path / "again" / "clips-00000.parquet").read_bytes() == first
    metadata = pq.ParquetFile(folder / "clips-00000.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [4, 4, 3]


def test_columns_are_those_that_pyarrow_makes_and_pandas_is_not_loaded_for_them(stored):
    folder, audio = stored
    rows = [row(i, audio[i], label=label) for i, label in enumerate(["", "Grünfink", "\N{BIRD}", "b" * 300])]
    ours = clips._as_table(rows, clips.CLIP_SCHEMA)
    assert ours.equals(pa.table({name: pa.array([r[name] for r in rows]) for name in rows[0]}, clips.CLIP_SCHEMA))
    ours.validate(full=True)
    code = (
        "import sys, numpy as np; from utils.data import clips; "
        f"row = {row(0, audio[0]) | {'audio': None}}; row['audio'] = np.zeros(400, np.int16); "
        "clips.write_part(sys.argv[1], [row], 800, 0.5); sys.exit('pandas.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, folder / "other.parquet"], cwd=ROOT).returncode == 0


LABELLED = [
    {"label": "a", "label_id": 0, "labels": ["a", "b"], "secondary_labels": []},
    {"label": "", "label_id": -1, "labels": [], "secondary_labels": ["a", "b"]},
    {"label": "b", "label_id": 1, "labels": ["b"], "secondary_labels": ["a"]},
    {"label": "", "label_id": -1, "labels": [], "secondary_labels": []},
    {"label": "a", "label_id": 0, "labels": ["a"], "secondary_labels": []},
]


def write_labelled(folder, changes=(), number=0):
    """Write five clips of several labels or none, in one part; `changes` are of the first of them."""
    rows = [row(i, np.full(400, i, np.int16), **own) for i, own in enumerate(LABELLED)]
    clips.write_part(folder / clips.part_name(number), [{**rows[0], **dict(changes)}, *rows[1:]], 800, 0.5)
    clips.write_labels(folder, ["a", "b"])
    return rows


def test_clips_with_several_labels_or_none(tmp_path):
    rows = write_labelled(tmp_path)
    read = clips.read_clips(tmp_path)
    assert read.is_annotated and list(read.table["label_id"]) == [0, -1, 1, -1, 0]
    assert read.table["labels"].tolist() == [("a", "b"), (), ("b",), (), ("a",)]
    assert read.targets.dtype == np.float32
    np.testing.assert_array_equal(read.targets, [[1, 1], [0, 0], [0, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(read.is_known, [[1, 1], [0, 0], [0, 1], [1, 1], [1, 1]])
    for i in range(5):
        item = read[i]
        np.testing.assert_array_equal(item["audio"] * 32768, rows[i]["audio"])
        np.testing.assert_array_equal(item["target"], read.targets[i])
        np.testing.assert_array_equal(item["is_known"], read.is_known[i])
    part = read.only(range(2, 4))
    np.testing.assert_array_equal(part.targets, [[0, 1], [0, 0]])
    frame = pd.read_parquet(tmp_path / "clips-00000.parquet")  # without our code
    assert list(frame.columns) == [*clips.CLIP_SCHEMA.names, "labels", "secondary_labels"]
    assert frame["labels"].map(list).tolist() == [own["labels"] for own in LABELLED]
    ours = clips._as_table(rows, clips.ANNOTATED_SCHEMA)
    assert ours.equals(pa.table({name: pa.array([r[name] for r in rows]) for name in rows[0]}, clips.ANNOTATED_SCHEMA))
    ours.validate(full=True)


def test_clips_of_one_label_each_have_the_targets_of_their_label(tmp_path):
    folder = write_processed(tmp_path / "data")
    read = clips.read_clips(folder, "val")
    assert not read.is_annotated and "target" not in read[0]
    np.testing.assert_array_equal(read.targets.argmax(1), read.table["label_id"])
    assert read.targets.sum() == len(read) and read.targets.dtype == np.float32
    assert read.is_known.shape == read.targets.shape and read.is_known.all()
    assert pq.read_schema(folder / "clips-00000.parquet").names == clips.CLIP_SCHEMA.names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "c"]}, "row 0, labels: found .*'c'.* in 1 clip.*expected labels of label_mappings.json"),
        ({"labels": ["b", "a"]}, "row 0, labels: "),
        ({"labels": ["b"]}, "row 0, labels: "),
        ({"labels": []}, "row 0, labels: "),
        ({"label": "", "label_id": -1}, "row 0, labels: "),
        ({"label_id": -1}, "row 0, label: found 'a'"),
        ({"label_id": -2}, "row 0, label_id: found .*-2.* expected 0 to 1, .* or -1 in silence"),
        ({"secondary_labels": ["a"]}, "row 0, secondary_labels: found .*not among the labels"),
        ({"secondary_labels": ["c"]}, "row 0, secondary_labels: "),
    ],
)
def test_lists_of_labels_that_stage_01_never_writes_are_refused(tmp_path, changes, message):
    write_labelled(tmp_path, changes)
    with pytest.raises(InputError, match=r"clips-00000\.parquet, " + message):
        clips.read_clips(tmp_path)


def test_parts_with_and_without_lists_of_labels_are_refused(tmp_path):
    write_labelled(tmp_path)
    rows = [row(i, np.zeros(400, np.int16)) for i in range(7, 9)]
    clips.write_part(tmp_path / clips.part_name(1), rows, 800, 0.5)
    with pytest.raises(InputError, match=r"only some parts of .* have the columns labels and secondary_labels"):
        clips.read_clips(tmp_path)
    table = pq.read_table(tmp_path / clips.part_name(0))
    pq.write_table(table.drop_columns("labels"), tmp_path / clips.part_name(0), row_group_size=4)
    with pytest.raises(InputError, match=r"has the columns too few.*expected labels"):
        clips.read_clips(tmp_path)


def test_nothing_is_left_of_a_failed_write(tmp_path):
    def rows():
        yield from (row(i, np.zeros(4, np.int16)) for i in range(5))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        clips.write_part(tmp_path / "clips-00000.parquet", rows(), 800, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_splits_and_caps(tmp_path):
    folder = write_processed(tmp_path / "data", recordings_per_class={"train": 5, "val": 2, "test": 1})
    assert len(clips.read_clips(folder)) == 3 * 2 * 8
    train = clips.read_clips(folder, "train")
    assert set(train.table["split"]) == {"train"} and len(train) == 30
    some = clips.read_clips(folder, "train", max_clips_per_class=4, seed=1)
    assert some.table["label"].value_counts().to_dict() == dict.fromkeys(LABELS, 4)
    again = clips.read_clips(folder, "train", max_clips_per_class=4, seed=1)
    other = clips.read_clips(folder, "train", max_clips_per_class=4, seed=2)
    assert list(some.table["clip_id"]) == list(again.table["clip_id"]) == sorted(some.table["clip_id"])
    assert list(some.table["clip_id"]) != list(other.table["clip_id"])
    few = clips.read_clips(folder, "test", max_clips_per_class=100)
    assert len(few) == 6 and few.labels == LABELS
    with pytest.raises(InputError, match="no clips of the split 'holdout'"):
        clips.read_clips(folder, "holdout")


def test_over_the_folds_each_clip_is_test_once_and_val_once(tmp_path):
    folder = write_processed(
        tmp_path / "data", recordings_per_class={"train": 1, **dict.fromkeys(FOLDS[:4], 2)}, folds=4
    )
    everything = clips.read_clips(folder)
    assert set(everything.table["split"]) == {"train", *FOLDS[:4]} and everything.fold is None
    seen = {split: Counter() for split in SPLITS}
    for fold in range(1, 5):
        read = {split: clips.read_clips(folder, split, fold=fold) for split in SPLITS}
        for split, own in read.items():
            assert set(own.table["split"]) == {split} and own.fold == fold
            seen[split].update(own.table["clip_id"])
        assert sum(map(len, read.values())) == len(everything) == len(clips.read_clips(folder, fold=fold))
        tested = read["test"].table["recording_id"]
        assert tested.str.contains(f"/fold-{fold}").all(), "fold k is tested where --fold is k"
    dealt = everything.table["split"] != "train"
    assert seen["test"] == seen["val"] == Counter(everything.table["clip_id"][dealt])
    assert set(seen["train"].values()) == {2, 4}, "what was not dealt to a fold is trained on in each of them"


def test_caps_are_of_the_splits_of_a_fold(tmp_path):
    folder = write_processed(tmp_path / "data", folds=5)
    read = clips.read_clips(folder, max_clips_per_class=3, fold=2)
    assert set(Counter(zip(read.table["label"], read.table["split"], strict=True)).values()) == {3}


def test_folds_that_do_not_go_with_the_data(tmp_path):
    with_folds, without = write_processed(tmp_path / "folds", folds=3), write_processed(tmp_path / "splits")
    for folder, split, fold, message in [
        (with_folds, "test", None, "is divided into 3 folds: say which one is tested, --fold 1 to 3"),
        (with_folds, "test", 4, "--fold 4: .*folds has 3 folds; expected 1 to 3"),
        (without, "test", 1, "--fold 1: .*splits has no folds; leave --fold out, or run 01"),
        (without, None, 1, "--fold 1: .*splits has no folds"),
    ]:
        with pytest.raises(UsageError, match=message):
            clips.read_clips(folder, split, fold=fold)
        if fold is not None:
            with pytest.raises(UsageError, match=message):
                clips.data_input(folder, fold)
    digests = [clips.data_input(with_folds, fold).sha256 for fold in (None, 1, 2, 3)]
    assert digests[1:] == [f"{digests[0]}/fold-{fold}-of-3" for fold in (1, 2, 3)]


def test_a_fold_without_a_clip_is_refused(tmp_path):
    folder = write_processed(tmp_path / "data", recordings_per_class={"fold-1": 2, "fold-3": 2, "fold-4": 2}, folds=4)
    with pytest.raises(
        InputError, match=r"split: found 'fold-4' in 12 clip.*expected train or fold-1 or fold-2 or fold-3"
    ):
        clips.read_clips(folder, "test", fold=1)
    mixed = write_processed(tmp_path / "mixed", recordings_per_class={"fold-1": 2, "test": 2, "fold-2": 1}, folds=2)
    with pytest.raises(InputError, match="split: found 'test' in 12 clip"):
        clips.read_clips(mixed)


def test_recordings_are_in_the_splits_of_a_fold(tmp_path):
    folder = write_processed(tmp_path / "data", folds=3, recordists={})
    for fold, splits in {1: ("test", "val", "train"), 3: ("val", "train", "test")}.items():
        rows = recordings_table.read_recordings(folder, fold)
        assert Counter(row["split"] for row in rows) == dict.fromkeys(SPLITS, 6)
        for number, split in enumerate(splits, start=1):
            named = recordings_table.recordings_of_split(folder, split, fold)
            assert named == [row["recording_id"] for row in rows if row["split"] == split]
            assert all(f"/fold-{number}" in name for name in named)
    assert {row["split"] for row in recordings_table.read_recordings(folder)} == set(FOLDS[:3])
    # Split by clip, a recording has clips in several folds.
    path = folder / recordings_table.NAME
    path.write_text(path.read_text().replace(",fold-1,", ",train|fold-1|fold-2,"))
    assert recordings_table.read_recordings(folder, 1)[0]["split"] == "train|val|test"
    assert recordings_table.read_recordings(folder, 3)[0]["split"] == "train|val"
    path.unlink()
    assert recordings_table.read_recordings(folder, 1) == recordings_table.recordings_of_split(folder, "test", 1) == []


def test_who_was_heard_counts_clips_by_their_recordist(tmp_path):
    """Fold 1 is tested, 2 is val and 3 trains."""
    who = {"Crow/fold-30": "Ann", "Blackbird/fold-30": "Bob", "Great Tit/fold-20": "Cem"}
    who |= {"Crow/fold-10": "Ann", "Crow/fold-11": "Bob", "Blackbird/fold-10": "Ann|Bob", "Blackbird/fold-11": "Dan"}
    who |= {"Great Tit/fold-10": "Cem"}
    folder = write_processed(tmp_path / "data", folds=3, recordists=who)
    heard = clips.read_clips(folder, "test", fold=1).heard_in_train
    assert heard == Heard(n_clips=12, same_species=4, other_species=2, unknown=2)
    assert str(heard) == (
        "recordist heard in train with the same species 4 (33%), with another species 2 (17%), unknown 2 (17%)"
    )
    assert clips.read_clips(folder, "val", fold=1).heard_in_train == Heard(n_clips=12, unknown=10)
    assert clips.read_clips(write_processed(tmp_path / "none"), "test").heard_in_train is None


def test_damaged_missing_or_foreign_parts_are_named(tmp_path):
    folder = write_processed(tmp_path / "data")
    part = folder / "clips-00001.parquet"
    whole = part.read_bytes()
    with pytest.raises(InputError, match="has no clips-"):
        clips.read_clips(tmp_path / "nowhere")
    part.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"clips-00001\.parquet cannot be read"):
        clips.read_clips(folder)
    with pytest.raises(InputError, match=r"clips-00001\.parquet has .* bytes"):
        clips.data_input(folder)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    part.write_bytes(bytes(flipped))
    with pytest.raises(InputError, match="changed or is damaged"):
        clips.data_input(folder)
    part.write_bytes(whole)
    (folder / "clips-00000.parquet").rename(folder / "clips-00002.parquet")
    with pytest.raises(InputError, match=r"clips-00000\.parquet is missing"):
        clips.read_clips(folder)
    (folder / "clips-00002.parquet").rename(folder / "clips-00000.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(part)
    with pytest.raises(InputError, match="no schema_version in its metadata"):
        clips.read_clips(folder)
    other = [row(0, np.zeros(16000, np.int16))]
    clips.write_part(part, other, SAMPLE_RATE_HZ * 2, CLIP_SECONDS)
    with pytest.raises(InputError, match="differ in sample rate"):
        clips.read_clips(folder)


def rewrite(part, metadata=None, **columns):
    """Write a part again with some columns, or some metadata, replaced: what stage 01 never leaves."""
    table = pq.read_table(part)
    stored = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        if not isinstance(values, pa.Array):
            values = pa.array(values(table[name].to_pandas()).tolist(), table.schema.field(name).type)
        table = table.set_column(place, pa.field(name, values.type, nullable=False), values)
    pq.write_table(table.replace_schema_metadata({**stored, **(metadata or {})}), part, row_group_size=4)


def first_is(value):
    return lambda column: pd.Series([value, *column[1:]])


HARMS = {
    "clip length": ({"metadata": {"clip_seconds": "inf"}}, "metadata sample_rate_hz 16000, clip_seconds inf"),
    "no clip length": ({"metadata": {"clip_seconds": "x"}}, "clip_seconds x; expected"),
    "NaN": ({"metadata": {"clip_seconds": "nan"}}, "clip_seconds nan; expected"),
    "negative rate": ({"metadata": {"sample_rate_hz": "-16000"}}, "sample_rate_hz -16000, "),
    "rate 0": ({"metadata": {"sample_rate_hz": "0"}}, "sample_rate_hz 0, "),
    "endless clip": ({"metadata": {"clip_seconds": "1e9"}}, "expected a whole number of Hz"),
    "schema": (
        {"metadata": {"schema_version": "2"}},
        "clips of schema_version '2'; this version of the program reads 1",
    ),
    "another length": ({"metadata": {"clip_seconds": "0.25"}}, "32000 samples in 4 clips of 0.25 s at 16000 Hz"),
    "label id too high": ({"label_id": first_is(3)}, r"row 0, label_id: found .*3.* in 1 clip\(s\); expected 0 to 2"),
    "label id below 0": ({"label_id": first_is(-1)}, r"row 0, label_id: found .*-1"),
    "label of another id": ({"label": first_is("Crow")}, "row 0, label: found 'Crow'"),
    "split": (
        {"split": first_is("training")},
        "row 0, split: found 'training' in 1 clip.* expected train or val or test",
    ),
    "torn group": ({"split": first_is("val")}, "group: found 'Blackbird/test0'"),
    "clip twice": ({"clip_id": first_is("Blackbird/test0:1")}, "row 1, clip_id: found 'Blackbird/test0:1'"),
    "start": ({"start_s": first_is(float("nan"))}, "row 0, start_s"),
    "duration": ({"duration_s": first_is(0.75)}, "row 0, duration_s"),
    "index": ({"clip_index": first_is(-1)}, "row 0, clip_index"),
    "types": (
        {"label_id": pa.array(np.zeros(36, np.int64))},
        r"has the columns label_id \(int64\); expected label_id \(int32\); run",
    ),
    "float audio": (
        {"audio": pa.array([[0.5] * 8000] * 36, pa.list_(pa.float32()))},
        r"has the columns audio \(list<element: float>\); expected audio \(list<",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_stage_01_never_leaves_is_refused_by_file_row_and_column(tmp_path, harm):
    changes, message = HARMS[harm]
    folder = write_processed(tmp_path / "data")
    rewrite(folder / "clips-00000.parquet", **changes)
    with pytest.raises(InputError, match=r"clips-00000\.parquet.*" + message):
        clips.read_clips(folder)


@pytest.mark.parametrize(
    "audio",
    [
        [[1] * 7999, [1] * 8001, *[[1] * 8000] * 34],
        [[*[1] * 7999, None], *[[1] * 8000] * 35],
    ],
)
def test_clips_of_uneven_length_or_with_holes_are_refused_when_read(tmp_path, audio):
    folder = write_processed(tmp_path / "data")
    rewrite(folder / "clips-00000.parquet", audio=pa.array(audio, pa.list_(pa.int16())))
    read = clips.read_clips(folder)
    with pytest.raises(InputError, match=r"clips-00000\.parquet, audio of row group 0"):
        read.audio(0)


def test_a_clip_twice_in_two_parts_is_refused(tmp_path):
    folder = write_processed(tmp_path / "data")
    (folder / "clips-00001.parquet").write_bytes((folder / "clips-00000.parquet").read_bytes())
    with pytest.raises(InputError, match=r"clips-00001\.parquet, row 0, clip_id: found 'Blackbird/test0:0' in 36"):
        clips.read_clips(folder)


def test_a_part_that_breaks_while_it_is_read(tmp_path):
    folder = write_processed(tmp_path / "data")
    read = clips.read_clips(folder)
    path = folder / "clips-00000.parquet"
    path.write_bytes(b"PAR1" + bytes(path.stat().st_size - 8) + b"PAR1")
    with pytest.raises(InputError, match=r"clips-00000\.parquet cannot be read"):
        read.audio(0)


def test_label_mappings(tmp_path):
    clips.write_labels(tmp_path, ["b", "a"])
    stored = json.loads((tmp_path / "label_mappings.json").read_text())
    assert stored == {"label2id": {"b": 0, "a": 1}, "id2label": {"0": "b", "1": "a"}}
    assert clips.read_labels(tmp_path) == ["b", "a"]
    for garbage in (
        "",
        "[]",
        "{}",
        r'{"label2id": {"\u001b[2J": 0}}',
        '{"label2id": {}}',
        '{"label2id": {"a": 1}}',
        '{"label2id": {"a": "x"}}',
    ):
        (tmp_path / "label_mappings.json").write_text(garbage)
        with pytest.raises(InputError, match=r"label_mappings\.json (cannot be read|holds a list)"):
            clips.read_labels(tmp_path)
