"""Stage 01 with tables of labels with times, end to end on synthesised recordings."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.sounds import calls, song, write
from tests.stages import digests, load_stage
from utils.core.files import write_csv
from utils.data import annotated, clips, preparation, spool, windows

stage = load_stage("01_data_processing")

RATE_HZ = 8000
SECONDS = 9.5  # five windows of 2 s, the last of 1.5 s
# Of each recording; the last one is silent.
LABELS = [(0.0, 1.5, "Crow"), (1.0, 1.25, "Wren"), (3.8, 4.25, "Wren"), (6.5, 9.0, "Crow"), (8.75, 9.5, "Wren")]
# By hand: label, label id, labels, secondary labels of each window.
WINDOWS = [
    ("Crow", 0, ["Crow", "Wren"], []),
    ("", -1, [], ["Wren"]),
    ("Wren", 1, ["Wren"], []),
    ("Crow", 0, ["Crow"], []),
    ("Crow", 0, ["Crow", "Wren"], []),
]
# 8.0 to 9.0 s is 1 s of Crow; 8.75 to 9.5 s is 0.75 s of Wren.
N = 6
HEADER = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"


def raven(rows, channel=1):
    """Return a selection table as Raven saves it, with both views of each selection."""
    lines = [
        f"{i}\t{view} 1\t{channel}\t{start:.9f}\t{end:.9f}\t500.0\t4000.0\t{label}\n"
        for i, (start, end, label) in enumerate(rows, start=1)
        for view in ("Waveform", "Spectrogram")
    ]
    return HEADER + "".join(lines)


def name(i):
    return f"site{i % 3}/night{i}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with six recordings in ``raw`` and a selection table for each in ``tables``; one is silent."""
    root = tmp_path_factory.mktemp("annotated")
    for i in range(N):
        write(root / "raw" / f"{name(i)}.wav", song(SECONDS, RATE_HZ, 2, i), RATE_HZ)
        path = root / "tables" / f"{name(i)}.Table.1.selections.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(raven(LABELS if i < N - 1 else [], channel=1 + i % 2))
    return root


def run(root, output_dir, *more, tables="tables"):
    argv = ["--raw_dir", root / "raw", "--output_dir", output_dir, "--annotations", root / tables, "--num_workers", 1]
    argv += ["--sample_rate", RATE_HZ, "--clip_seconds", 2, "--min_recordings", 2, *more]
    return stage.main([str(word) for word in argv])


def read_parts(output_dir):
    return pd.concat([pd.read_parquet(path) for path in sorted(output_dir.glob("clips-*.parquet"))], ignore_index=True)


def windows_of(output_dir):
    """Return the rows of `WINDOWS` by source path and start."""
    columns = ["label", "label_id", "labels", "secondary_labels"]
    return {
        (row.source_path, row.start_s): tuple(list(v) if isinstance(v, np.ndarray) else v for v in row[columns])
        for _, row in read_parts(output_dir).iterrows()
    }


def read_csv(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def skipped(output_dir):
    table = read_csv(output_dir / "skipped.csv")
    return dict(zip(table.file, table.reason, strict=True))


@pytest.fixture(scope="module")
def processed(root, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("out") / "processed"
    assert run(root, output_dir) == 0
    return output_dir


def write_table(root, rows, name="table.csv"):
    write_csv(root / name, ["file", "start", "end", "label"], rows)
    return name


def rows_of(*numbers, labels=LABELS):
    return [[f"{name(i)}.wav", *row] for i in numbers for row in labels]


# ------------------------------------------------------------------------------------------- what is written


def test_raven_tables_of_two_labels_give_the_windows_by_hand(processed):
    expected = {}
    for i in range(N):
        for k, window in enumerate(WINDOWS):
            expected[f"{name(i)}.wav", 2.0 * k] = window if i < N - 1 else ("", -1, [], [])
    assert windows_of(processed) == expected
    assert clips.read_labels(processed) == ["Crow", "Wren"]


def test_clips_have_their_targets(processed):
    read = clips.read_clips(processed)
    first = read.only(range(5))
    assert first.is_annotated and set(first.table["source_path"]) == {"site0/night0.wav"}
    np.testing.assert_array_equal(first.targets, [[1, 1], [0, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(first.is_known, [[1, 1], [1, 0], [1, 1], [1, 1], [1, 1]])
    assert read.cutting()["remainder"] == "pad"


def test_tables_and_record_of_several_labels_and_silence(processed):
    recordings = read_csv(processed / "recordings.csv").set_index("recording_id")
    assert list(recordings.columns)[-1] == "labels"
    assert recordings.loc[name(0), ["label", "labels", "n_clips"]].tolist() == ["Crow", "Crow|Wren", "5"]
    assert recordings.loc[name(5), ["label", "labels", "n_clips"]].tolist() == ["", "", "5"]
    report = read_csv(processed / "split_report.csv").groupby("label")
    n_clips = report.clips.apply(lambda own: own.astype(int).sum()).to_dict()
    assert n_clips == {"": 5, windows.ONLY_SECONDARY: 5, "Crow": 15, "Wren": 15}
    n_recordings = report.recordings.apply(lambda own: own.astype(int).sum()).to_dict()
    assert n_recordings == {"": 1, windows.ONLY_SECONDARY: 5, "Crow": 5, "Wren": 5}
    metrics = json.loads((processed / "run.json").read_text())["metrics"]
    assert metrics["n_clips_with_several_labels"] == 10 and metrics["n_clips_of_silence"] == 5
    assert metrics["n_clips_with_secondary_labels"] == 5 and metrics["n_labels"] == 2
    assert skipped(processed) == {}
    splits = read_csv(processed / "split_report.csv")
    assert (splits[splits.label != ""].clips.astype(int) > 0).all(), "each label is in each split"


def test_a_data_set_without_annotations_has_no_such_columns(root, tmp_path):
    argv = ["--raw_dir", root / "raw", "--output_dir", tmp_path / "out", "--min_recordings", 2, "--num_workers", 1]
    assert stage.main([str(word) for word in [*argv, "--sample_rate", RATE_HZ]]) == 0
    assert list(read_parts(tmp_path / "out").columns) == clips.CLIP_SCHEMA.names
    assert "labels" not in read_csv(tmp_path / "out" / "recordings.csv").columns
    assert "n_clips_of_silence" not in json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]


def test_the_table_of_another_program_gives_the_same_clips(root, processed, tmp_path):
    write_table(root, [*rows_of(*range(N - 1)), [f"{name(N - 1)}.wav", "", "", ""]], "same.csv")
    assert run(root, tmp_path / "out", tables="same.csv") == 0
    assert digests(tmp_path / "out") == digests(processed)


def test_metadata_without_labels_adds_recordists(root, tmp_path, caplog):
    rows = [[f"{name(i)}.wav", f"Ann {i // 2}", "archive"] for i in range(N)] + [["gone.wav", "Bo", ""]]
    write_csv(tmp_path / "metadata.csv", ["file", "recordist", "collection"], rows)
    more = ["--metadata", tmp_path / "metadata.csv"]
    assert run(root, tmp_path / "out", *more) == 0
    recordings = read_csv(tmp_path / "out" / "recordings.csv").set_index("recording_id")
    assert [recordings.recordist[name(i)] for i in range(N)] == [f"Ann {i // 2}" for i in range(N)]
    assert set(recordings.collection) == {"archive"}
    assert (read_parts(tmp_path / "out").groupby("group").split.nunique() == 1).all()
    assert recordings.groupby("recordist").split.nunique().max() == 1
    assert skipped(tmp_path / "out") == {"gone.wav": "metadata.csv, row 8: no such file in the folder of recordings"}
    heard = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]["heard_in_train"]
    assert heard["n_clips"] == 10 and heard["same_species"] == heard["other_species"] == heard["unknown"] == 0
    assert clips.read_clips(tmp_path / "out", "test").heard_in_train.n_clips == 10
    write_csv(tmp_path / "metadata.csv", ["file", "label", "recordist"], [[f"{name(0)}.wav", "Rook", "Ann"]])
    assert run(root, tmp_path / "other", *more) == 0
    assert clips.read_labels(tmp_path / "other") == ["Crow", "Wren"], "labels come from the tables alone"
    assert "--metadata has no row for 5 files: " in caplog.text


def test_who_was_heard_counts_a_recordist_with_one_of_the_labels(root, tmp_path):
    rows = [[f"{name(i)}.wav", "Ann"] for i in range(N)]
    write_csv(tmp_path / "metadata.csv", ["file", "recordist"], rows)
    more = ["--metadata", tmp_path / "metadata.csv", "--split_by", "recording"]
    assert run(root, tmp_path / "out", *more) == 0
    heard = json.loads((tmp_path / "out" / "run.json").read_text())["metrics"]["heard_in_train"]
    assert heard["n_clips"] == heard["same_species"] + heard["other_species"] > 0
    read = clips.read_clips(tmp_path / "out", "test")
    assert vars(read.heard_in_train) == heard


def test_folds_and_the_split_by_clip_divide_annotated_clips(root, tmp_path):
    assert run(root, tmp_path / "folds", "--folds", 3) == 0
    table = read_parts(tmp_path / "folds")
    assert set(table.split) <= {"train", "fold-1", "fold-2", "fold-3"} and table.split.nunique() >= 3
    assert run(root, tmp_path / "clip", "--split_by", "clip") == 0
    assert (read_parts(tmp_path / "clip").groupby("source_path").split.nunique() > 1).any()


# --------------------------------------------------------------------------------- background, rare, secondary


def test_labels_that_other_programs_lose_are_labels(root, tmp_path, caplog):
    labels = [(0, 2, "NA"), (2, 4, "nan"), (4, 6, "None"), (6, 8, 'the "rook"'), (8, 8.5, "=sum")]
    write_table(root, rows_of(0, 1, 2, labels=labels), "lost.csv")
    assert run(root, tmp_path / "out", tables="lost.csv") == 0
    read = clips.read_clips(tmp_path / "out")
    assert read.labels == ["=sum", "NA", "None", "nan", 'the "rook"']
    assert read.only(range(5)).table["label"].tolist() == ["NA", "nan", "None", 'the "rook"', "=sum"]
    assert read_csv(tmp_path / "out" / "recordings.csv").labels[0] == '=sum|NA|None|nan|the "rook"'
    assert "the labels NA, None, nan are read as missing by pandas and R" in caplog.text
    assert "a spreadsheet may run them as formulas" in caplog.text and "=sum" in caplog.text


def test_background_labels_are_no_classes_and_their_windows_are_silence(root, tmp_path):
    more = [["site0/night0.wav", 4.5, 5.5, "No_Call"], ["site0/night3.wav", 2.0, 3.0, "rain"]]
    quiet = [row for row in LABELS if row[0] != 3.8]
    write_table(root, rows_of(0, 1, 2, 3, labels=quiet) + more, "background.csv")
    assert run(root, tmp_path / "out", "--background", "rain", "no call", tables="background.csv") == 0
    assert clips.read_labels(tmp_path / "out") == ["Crow", "Wren"]
    windows = windows_of(tmp_path / "out")
    assert windows["site0/night0.wav", 4.0] == windows["site0/night3.wav", 2.0] == ("", -1, [], [])
    more[1][3] = "Noise"
    write_table(root, rows_of(0, 1, 2, 3, labels=quiet) + more, "background.csv")
    assert run(root, tmp_path / "defaults", tables="background.csv") == 0
    assert windows_of(tmp_path / "defaults") == windows
    assert run(root, tmp_path / "all", "--background", "--min_recordings", 1, tables="background.csv") == 0
    assert clips.read_labels(tmp_path / "all") == ["Crow", "No_Call", "Noise", "Wren"]


def test_windows_of_rare_labels_alone_are_left_out_and_do_not_become_silence(root, tmp_path, caplog):
    rare = [["site0/night0.wav", 4.5, 5.5, "Rook"], ["site0/night0.wav", 6.0, 8.0, "Rook"]]
    edge = [["site1/night1.wav", 4.6, 4.7, "Rook"]]
    rare += [["site0/night0.wav", 2.5, 3.0, "Rook"], ["site0/night0.wav", 3.0, 3.1, "Crow"]]
    quiet = [row for row in LABELS if row[0] != 3.8]
    only = [["site2/night5.wav", 0, SECONDS, "Rook"]]
    write_table(root, rows_of(0, 1, 2, labels=quiet) + rare + edge + only, "rare.csv")
    assert run(root, tmp_path / "out", "--min_recordings", 3, tables="rare.csv") == 0
    assert clips.read_labels(tmp_path / "out") == ["Crow", "Wren"]
    windows = windows_of(tmp_path / "out")
    assert ("site0/night0.wav", 4.0) not in windows, "Rook alone"
    assert ("site1/night1.wav", 4.0) not in windows, "perhaps Rook"
    assert windows["site0/night0.wav", 6.0] == ("Crow", 0, ["Crow"], []), "Crow fills less of it than Rook"
    assert windows["site2/night2.wav", 4.0] == ("", -1, [], [])
    assert ("site0/night0.wav", 2.0) not in windows, "Rook, and perhaps Crow"
    assert skipped(tmp_path / "out")["site2/night5.wav"].startswith("all its labels have fewer than --min_recordings 3")
    said = "1 label is in the clips of fewer than 3 recordings: no class; left out with 8 clips without another label"
    assert f"{said}: Rook (2)" in caplog.text
    table = read_parts(tmp_path / "out")
    assert (table.clip_id == table.recording_id + ":" + table.clip_index.astype(str)).all()


def test_one_label_alone_is_refused_before_anything_is_decoded(root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(spool, "decode_files", None)
    write_table(root, rows_of(0, 1, 2, labels=LABELS[:1]), "one.csv")
    assert run(root, tmp_path / "out", tables="one.csv") == 3
    assert "only Crow is left with 2 recordings or more; two labels are needed" in caplog.text


def test_secondary_labels_of_metadata_are_masked_where_no_label_tells_the_time(root, tmp_path, caplog):
    rows = [[f"{name(i)}.wav", text] for i, text in enumerate(["['Wren', 'Rook']", "", "Crow; Jay", "[]"])]
    write_csv(tmp_path / "metadata.csv", ["file", "also"], rows)
    tables = rows_of(1, 2, 3, labels=[*LABELS, (4.5, 5.5, "Rook")]) + rows_of(0, labels=LABELS[:1])
    write_table(root, tables, "some.csv")
    more = ["--metadata", tmp_path / "metadata.csv", "--secondary_labels"]
    assert run(root, tmp_path / "out", *more, tables="some.csv") == 0
    windows = windows_of(tmp_path / "out")
    assert windows["site0/night0.wav", 0.0] == ("Crow", 0, ["Crow"], ["Rook", "Wren"])
    assert windows["site0/night0.wav", 2.0] == ("", -1, [], ["Rook", "Wren"])
    assert windows["site2/night2.wav", 0.0] == ("Crow", 0, ["Crow", "Wren"], []), "it is known where Crow is"
    assert "3 of the 4 secondary labels in the metadata are classes" in caplog.text
    assert "secondary labels that are not classes are not used: Jay" in caplog.text


def test_secondary_labels_without_annotations(root, tmp_path, caplog):
    rows = [[f"{name(i)}.wav", ["Crow", "Wren"][i % 2], text] for i, text in enumerate(["Wren", "", "Crow", "[]"])]
    write_csv(tmp_path / "metadata.csv", ["file", "label", "secondary_labels"], rows)
    argv = ["--raw_dir", root / "raw", "--metadata", tmp_path / "metadata.csv", "--sample_rate", RATE_HZ]
    argv += ["--min_recordings", 2, "--num_workers", 1, "--output_dir"]
    assert stage.main([str(word) for word in [*argv, tmp_path / "out", "--secondary_labels"]]) == 0
    windows = windows_of(tmp_path / "out")
    assert windows["site0/night0.wav", 0.0] == ("Crow", 0, ["Crow"], ["Wren"])
    assert windows["site2/night2.wav", 5.0] == ("Crow", 0, ["Crow"], []), "a label is never secondary"
    assert stage.main([str(word) for word in [*argv, tmp_path / "without"]]) == 0
    assert "it is not used, because each recording has one label (--secondary_labels uses it)" in caplog.text
    plain = read_parts(tmp_path / "without")
    assert list(plain.columns) == clips.CLIP_SCHEMA.names
    same = read_parts(tmp_path / "out")[clips.CLIP_SCHEMA.names]
    pd.testing.assert_frame_equal(same, plain)
    write_csv(tmp_path / "metadata.csv", ["file", "label"], [row[:2] for row in rows])
    assert stage.main([str(word) for word in [*argv, tmp_path / "none", "--secondary_labels"]]) == 3
    assert "no column for the secondary labels: found file, label; expected one of secondary_labels" in caplog.text


# ------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_used_is_named_and_the_rest_is_used(root, tmp_path, caplog):
    bad = [
        ["site0/night0.wav", 5, 4, "Crow"],
        ["site0/night0.wav", 9.6, 9.9, "Crow"],
        ["site0/night3.wav", 9.5, 9.5, "Wren"],
        ["site0/night3.wav", 9.0, 12.0, "Wren"],
        ["ghost.wav", 1, 2, "Crow"],
        ["night.wav", 1, 2, "Crow"],
    ]
    write_table(root, rows_of(0, 1, 2, 3) + bad, "bad.csv")
    assert run(root, tmp_path / "out", tables="bad.csv") == 0
    found = skipped(tmp_path / "out")
    assert found == {
        "bad.csv, row 22": "Crow ends at 4.0 s, before it begins at 5.0 s",
        "ghost.wav": "named by --annotations: no such file in the folder of recordings",
        "night.wav": "named by --annotations: no such file in the folder of recordings",
        "site0/night0.wav": "Crow from 9.6 s to 9.9 s begins after the end of the file (9.5 s)",
        "site0/night3.wav": "Wren at 9.5 s begins at the end of the file (9.5 s)",
        "site1/night4.wav": "no table of --annotations covers it",
        "site2/night5.wav": "no table of --annotations covers it",
    }
    for text in (
        "left out of the annotations: bad.csv, row 22: Crow ends at 4.0 s",
        "left out: site0/night0.wav: Crow from 9.6 s",
        "used up to the end: site0/night3.wav: Wren from 9 s to 12 s goes past the end of the file (9.5 s)",
        "no table of --annotations covers 2 files: site1/night4.wav, site2/night5.wav",
        "--annotations names 2 files that cannot be used: ghost.wav: no such file",
    ):
        assert text in caplog.text
    windows = windows_of(tmp_path / "out")
    assert {path for path, _ in windows} == {f"{name(i)}.wav" for i in range(4)}
    assert [windows["site0/night3.wav", 2.0 * k] for k in range(5)] == WINDOWS


def test_a_label_with_the_sign_that_separates_labels_is_refused(root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(spool, "decode_files", None)
    write_table(root, rows_of(0, 1, 2, labels=[(0, 2, "Crow|Rook"), (2, 4, "Wren")]), "bar.csv")
    assert run(root, tmp_path / "out", tables="bar.csv") == 3
    said = (
        "1 label has a |, which separates the labels of a recording in recordings.csv: Crow|Rook; write them without |"
    )
    assert said in caplog.text


def test_short_labels_are_counted(root, tmp_path, caplog):
    write_table(root, [*rows_of(0, 1, 2), ["site0/night0.wav", 5.0, 5.1, "Crow"]], "short.csv")
    assert run(root, tmp_path / "out", tables="short.csv") == 0
    assert "1 label is shorter than --min_overlap_s 0.25: secondary" in caplog.text
    assert windows_of(tmp_path / "out")["site0/night0.wav", 4.0] == ("Wren", 1, ["Wren"], ["Crow"])
    assert run(root, tmp_path / "lower", "--min_overlap_s", 0.1, tables="short.csv") == 0
    assert windows_of(tmp_path / "lower")["site0/night0.wav", 4.0] == ("Wren", 1, ["Crow", "Wren"], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min_overlap_s", 1], "--min_overlap_s says how --annotations are read: give --annotations too"),
        (["--background", "rain"], "--background says how"),
        (["--label_column", "Call"], "--label_column says how"),
        (["--secondary_labels"], "--secondary_labels uses a column of --metadata: give --metadata too"),
        (["--annotations", "TABLES", "--label_level", 1], "--label_level and --annotations both give the labels"),
        (["--metadata", "x.csv", "--label_level", 1], "--label_level and --metadata both give the labels: leave one"),
        (["--annotations", "TABLES", "--min_overlap_s", 0], "'0' is not a number above 0"),
        (["--annotations", "TABLES", "--min_overlap_s", 6], "--min_overlap_s 6.0 is longer than a clip"),
    ],
)
def test_arguments_that_do_not_go_together(root, tmp_path, capsys, caplog, words, message):
    words = [root / "tables" if word == "TABLES" else word for word in words]
    argv = ["--raw_dir", root / "raw", "--output_dir", tmp_path / "out", *words]
    try:
        code = stage.main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in caplog.text + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_that_are_missing_or_none(root, tmp_path, caplog):
    assert run(root, tmp_path / "out", tables="gone") == 3
    assert "gone cannot be read (No such file or directory)" in caplog.text
    (root / "empty").mkdir()
    assert run(root, tmp_path / "out", tables="empty") == 3
    assert "empty holds no table of labels with times" in caplog.text
    write_table(root, [["ghost.wav", 1, 2, "Crow"]], "ghosts.csv")
    assert run(root, tmp_path / "out", tables="ghosts.csv") == 3
    assert "no file is left of 7, all are skipped" in caplog.text


# ----------------------------------------------------------------------------------- near copies, again, shards


def test_windows_with_other_labels_in_a_near_copy_are_left_out(tmp_path, caplog):
    night, rate_hz = calls(40, 3), 16_000
    write(tmp_path / "raw" / "a.wav", night[: 24 * rate_hz], rate_hz)
    write(tmp_path / "raw" / "b.wav", night[10 * rate_hz :], rate_hz)  # 0 s is 10 s of a
    for i in range(3):
        write(tmp_path / "raw" / f"c{i}.wav", song(SECONDS, RATE_HZ, 1, 7 + i), RATE_HZ)
    rows = [["a.wav", 12.5, 13.5, "Crow"], ["b.wav", 2.5, 3.5, "Crow"], ["b.wav", 4.5, 5.5, "Wren"]]
    rows += [["a.wav", 18.9, 19.9, "Wren"], ["b.wav", 9.9, 10.1, "Wren"], ["a.wav", 2, 3, "Wren"]]
    rows += [[f"c{i}.wav", *label] for i in range(3) for label in LABELS]
    write_table(tmp_path, rows)
    assert run(tmp_path, tmp_path / "out", "--sample_rate", rate_hz, tables="table.csv") == 0
    found = windows_of(tmp_path / "out")
    left_out = {(path, start) for path in ("a.wav", "b.wav") for start in np.arange(0, 30, 2.0)} - found.keys()
    left_out -= {("a.wav", start) for start in (24.0, 26.0, 28.0)}
    assert left_out == {("a.wav", 14.0), ("b.wav", 4.0)}, "the Wren at 18.9 s of a begins in b too, a second later"
    assert "left out: a.wav at 14 s: b.wav has other labels for this sound" in caplog.text
    assert "the same sound, kept on one side of the split: a.wav, b.wav" in caplog.text
    table = read_parts(tmp_path / "out")
    assert table[table.source_path.isin(["a.wav", "b.wav"])].group.nunique() == 1


def test_again_changed_and_overwritten(root, processed, tmp_path, caplog):
    shutil.copytree(root / "tables", tmp_path / "tables")
    (tmp_path / "raw").symlink_to(root / "raw")
    assert run(tmp_path, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == digests(processed)
    assert run(tmp_path, tmp_path / "out") == 0 and "nothing to do" in caplog.text
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [i["name"] for i in record["inputs"]] == ["raw_dir", "annotations"]
    path = tmp_path / "tables" / f"{name(0)}.Table.1.selections.txt"
    path.write_text(raven([*LABELS, (5.0, 6.0, "Crow")]))
    assert run(tmp_path, tmp_path / "out") == 4
    assert "the content of --annotations" in caplog.text and "has changed since" in caplog.text
    assert run(tmp_path, tmp_path / "out", "--min_overlap_s", 0.5, "--overwrite") == 0
    assert windows_of(tmp_path / "out")["site0/night0.wav", 4.0][2] == ["Crow"]
    assert run(tmp_path, tmp_path / "out") == 4
    assert "it was made with --min_overlap_s 0.5, now it is not given" in caplog.text


def test_a_run_that_stopped_while_writing_goes_on(root, processed, tmp_path, monkeypatch):
    def stop_after_two(task):
        if len(list(task.path.parent.glob("clips-*.parquet"))) == 2:
            raise OSError(28, "No space left on device")
        return write_part(task)

    write_part = spool.write_part
    monkeypatch.setattr(preparation, "CLIPS_PER_PART", 7)
    with monkeypatch.context() as patch:
        patch.setattr(spool, "write_part", stop_after_two)
        assert run(root, tmp_path / "out") == 3
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("clips-*.parquet")}
    assert len(times) == 2
    assert run(root, tmp_path / "out") == 0
    assert all((tmp_path / "out" / part).stat().st_mtime_ns == ns for part, ns in times.items())
    pd.testing.assert_frame_equal(read_parts(tmp_path / "out"), read_parts(processed))


def test_shards_serve_other_rules_and_any_number_of_workers(root, processed, tmp_path, caplog):
    for number in (1, 2):
        assert run(root, tmp_path / "out", "--shard", f"{number}/2") == 0
    assert run(root, tmp_path / "out", "--merge_shards", 2, "--num_workers", 2) == 0
    assert digests(tmp_path / "out") == digests(processed)
    more = ["--min_overlap_s", 0.5, "--background", "Wren", "--min_recordings", 2]
    write_table(root, rows_of(0, 1, 2, 3, 4, 5), "other.csv")
    assert run(root, tmp_path / "out", "--merge_shards", 2, "--overwrite", *more, tables="other.csv") == 3
    assert "annotations" in caplog.text
    assert run(root, tmp_path / "out", "--merge_shards", 2, "--overwrite", "--min_overlap_s", 0.6) == 0
    assert windows_of(tmp_path / "out")["site0/night0.wav", 0.0] == ("Crow", 0, ["Crow"], ["Wren"])


def test_the_main_label_of_a_recording_is_that_of_most_windows(processed):
    def main_label(*windows):
        file = preparation.SourceFile("a.wav", "", "a", None)
        r = preparation.Recorded(file, None, ((0, 1),) * len(windows), windows=windows)
        return annotated.drop_rare_labels([r], 1)[0][0].file.label

    crow, both, none = (annotated.Window(labels) for labels in (("Crow",), ("Wren", "Crow"), ()))
    assert main_label(crow, none, none) == "Crow" and main_label(none) == ""
    assert main_label(both, both) == "Crow", "of equals the first by name"
    assert main_label(crow, both, annotated.Window(("Wren",)), annotated.Window(("Wren",))) == "Wren"
