"""Tables of labels with times: what each format's reader takes from them, and what its writer gives."""

import argparse
import math
import os
from pathlib import Path

import pytest

from utils.core import runs
from utils.core.errors import InputError
from utils.data.annotations import FORMATS, Annotation, read, read_all
from utils.data.timed_labels import file_of_table


def table(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# ----------------------------------------------------------------------------------------------- file,start,end,label


def test_a_csv_names_file_start_end_and_label(tmp_path):
    found = read(table(tmp_path / "a.csv", "file,start,end,label\nb.wav,1.5,3,rook\na.wav,0,2.25,robin\n"))
    assert found.annotations == [Annotation("b.wav", 1.5, 3.0, "rook"), Annotation("a.wav", 0.0, 2.25, "robin")]
    assert (found.format, found.files, found.problems) == ("csv", ["b.wav", "a.wav"], [])


def test_a_csv_row_with_a_file_alone_is_a_silent_file(tmp_path):
    found = read(table(tmp_path / "a.csv", "file,start,end,label\na.wav,,,\nb.wav\n"))
    assert (found.annotations, found.files, found.problems) == ([], ["a.wav", "b.wav"], [])


@pytest.mark.parametrize("label", ["NA", "None", "nan", "null", "N/A", "-", "0"])
def test_labels_that_pandas_takes_for_missing_are_labels(tmp_path, label):
    found = read(table(tmp_path / "a.csv", f"file,start,end,label\na.wav,0,1,{label}\n"))
    assert [a.label for a in found.annotations] == [label]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_of_any_encoding_and_separator(tmp_path, encoding, separator):
    text = 'file,start,end,label\na.wav,"1.5",3,Grünspecht\n'.replace(",", separator)
    found = read(table(tmp_path / "a.csv", text, encoding))
    assert found.annotations == [Annotation("a.wav", 1.5, 3.0, "Grünspecht")]


def test_a_csv_with_decimal_commas(tmp_path):
    found = read(table(tmp_path / "a.csv", "file;start;end;label\na.wav;1,5;3,25;rook\n"))
    assert found.annotations == [Annotation("a.wav", 1.5, 3.25, "rook")]


def test_rows_of_a_csv_that_are_left_out_are_named(tmp_path):
    rows = ["a.wav,3,1,rook", "a.wav,0,1,", "a.wav,zero,1,rook", ",0,1,rook", "a.wav,0,1,rook,robin", "b.wav,-1,1,rook"]
    found = read(table(tmp_path / "a.csv", "\n".join(["file,start,end,label", *rows, "a.wav,0,1,rook"])))
    assert found.annotations == [Annotation("a.wav", 0.0, 1.0, "rook")]
    assert found.problems == [
        "a.csv, row 2: rook ends at 1.0 s, before it begins at 3.0 s",
        "a.csv, row 3: the label from 0.0 s to 1.0 s is empty",
        "a.csv, row 4: start 'zero' and end '1' are not two numbers of seconds",
        "a.csv, row 5: it names no file",
        "a.csv, row 6: 5 cells; expected 4",
        "a.csv, row 7: rook begins at -1.0 s, before the file",
    ]
    assert found.files == ["a.wav", "b.wav"]


def test_the_column_of_the_label_of_a_csv_can_be_named(tmp_path):
    path = table(tmp_path / "a.csv", "file,start,end,Song Type\na.wav,0,1,trill\n")
    assert [a.label for a in read(path, "song type").annotations] == ["trill"]
    with pytest.raises(InputError, match="no column for the label: found file, start, end, song_type; expected label"):
        read(path)


def test_a_quotation_mark_that_is_not_closed_is_an_error(tmp_path):
    path = table(tmp_path / "a.csv", 'file,start,end,label\na.wav,0,1,"rook\na.wav,1,2,robin\nb.wav,0,1,"rook"\n')
    with pytest.raises(InputError, match=r"a\.csv, row 2: .*written twice"):
        read(path)


def test_a_csv_is_read_as_it_was_written(tmp_path):
    detections = [Annotation("b,c.wav", 3.0, 6.0, 'the "rook", ü', 0.5), Annotation("a.wav", 0.0, 3.0, "robin", 0.25)]
    FORMATS["csv"].write(tmp_path / "x.csv", detections, {"a.wav": 9.0, "b,c.wav": 9.0, "z.wav": 1.0}, Path(), 8000.0)
    text = (tmp_path / "x.csv").read_text(encoding="utf-8")
    assert text == (
        'file,start,end,label,score\na.wav,0.0,3.0,robin,0.25\n"b,c.wav",3.0,6.0,"the ""rook"", ü",0.5\nz.wav,,,,\n'
    )
    found = read(tmp_path / "x.csv")
    assert (found.annotations, found.files) == (detections[::-1], ["a.wav", "b,c.wav", "z.wav"])


# --------------------------------------------------------------------------------------------------- tables of a folder


def test_what_is_not_a_table_is_an_error_or_a_problem(tmp_path):
    notes = table(tmp_path / "notes.txt", "We set up the recorder at noon.\n")
    with pytest.raises(InputError, match=r"not a table of labels with times \(first line: 'We set up"):
        read(notes)
    with pytest.raises(InputError, match=r"holds no table of labels with times: .*notes"):
        read_all(tmp_path)
    table(tmp_path / "a" / "b.csv", "file,start,end,label\na.wav,0,1,rook\n")
    found = read_all(tmp_path)
    assert [a.label for a in found.annotations] == ["rook"]
    assert len(found.problems) == 1 and found.problems[0].startswith("notes.txt: is not a table of labels")


def test_a_folder_without_tables_and_a_missing_table_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"holds no table of labels with times \(\.txt, \.tsv, \.csv\)"):
        read_all(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_all(tmp_path / "none.csv")


def test_a_folder_that_cannot_be_read_is_an_error_and_a_subfolder_a_problem(tmp_path, monkeypatch):
    table(tmp_path / "tables" / "a.csv", "file,start,end,label\na.wav,0,1,rook\n")
    table(tmp_path / "tables" / "locked" / "b.csv", "file,start,end,label\nb.wav,0,1,rook\n")
    scandir, locked = os.scandir, {"locked"}

    def refuse(path):
        if Path(path).name in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = read_all(tmp_path / "tables")
    assert found.files == ["a.wav"]
    assert found.problems == ["locked: the folder cannot be read: Permission denied"]
    locked.add("tables")
    with pytest.raises(InputError, match=r"tables cannot be read \(Permission denied\); change its permissions"):
        read_all(tmp_path / "tables")


def test_what_08_writes_beside_its_tables_is_no_table(tmp_path):
    own = "file,start_s,end_s,label,score\na.wav,0,3,crow,0.9\n"
    args = argparse.Namespace(output_dir=tmp_path, overwrite=False, seed=0)
    with runs.open_run("08_detection", args, {}, outputs=["*.csv"]):
        table(tmp_path / "detections.csv", own)
        table(tmp_path / "skipped.csv", "file,reason\nb.wav,silent\n")
    table(tmp_path / "csv" / "a.wav.labels.csv", "file,start,end,label,score\na.wav,0,3,wren,\n")
    found = read_all(tmp_path)
    assert [a.label for a in found.annotations] == ["wren"] and not found.problems
    table(tmp_path / "mine" / "detections.csv", own)
    assert {a.label for a in read_all(tmp_path).annotations} == {"crow", "wren"}, "a table of the user"
    table(tmp_path / "mine" / "run.json", "of another program")
    assert {a.label for a in read_all(tmp_path).annotations} == {"crow", "wren"}


def test_a_label_in_two_tables_of_a_folder_counts_once(tmp_path):
    for name in ("a.csv", "b.csv"):
        table(tmp_path / name, "file,start,end,label\na.wav,0,1,rook\n")
    found = read_all(tmp_path)
    assert (found.annotations, found.files) == ([Annotation("a.wav", 0.0, 1.0, "rook")], ["a.wav"])


# ------------------------------------------------------------------------------------------------------------- writing

DETECTIONS = [
    Annotation("site, 1/b.wav", 1.5, 4.0, 'the "old" rook', 0.5, 100.0, 7000.0),
    Annotation("a.wav", 3.0, 6.0, "robin", 0.25),
    Annotation("a.wav", 1 / 44_100, 3.0, "NA"),
]
DURATIONS_S = {"a.wav": 10.0, "empty.wav": 2.5, "site, 1/b.wav": 20.0}


def written(folder, name, detections=DETECTIONS, durations_s=DURATIONS_S):
    path = folder / f"all{FORMATS[name].SUFFIX}"
    FORMATS[name].write(path, detections, durations_s, Path("/data"), 8000.0)
    return path


def test_a_raven_table_over_several_files_runs_on_and_has_a_list_of_its_files(tmp_path):
    text = written(tmp_path, "raven").read_text(encoding="utf-8")
    assert text.splitlines() == [
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File\tBegin Path"
        "\tFile Offset (s)\tAnnotation\tScore",
        "1\tSpectrogram 1\t1\t0.000023\t3.0\t0.0\t8000.0\ta.wav\t/data/a.wav\t0.000023\tNA\t",
        "2\tSpectrogram 1\t1\t3.0\t6.0\t0.0\t8000.0\ta.wav\t/data/a.wav\t3.0\trobin\t0.25",
        '3\tSpectrogram 1\t1\t14.0\t16.5\t100.0\t7000.0\tb.wav\t/data/site, 1/b.wav\t1.5\tthe "old" rook\t0.5',
    ]
    lists = (tmp_path / "all.selections.list.txt").read_text(encoding="utf-8")
    assert lists == "/data/a.wav\n/data/empty.wav\n/data/site, 1/b.wav\n"
    found = read(tmp_path / "all.selections.txt")
    assert [(a.file, a.start_s, a.end_s, a.label, a.score) for a in found.annotations] == [
        ("/data/a.wav", 0.000023, 3.0, "NA", None),
        ("/data/a.wav", 3.0, 6.0, "robin", 0.25),
        ("/data/site, 1/b.wav", 1.5, 4.0, 'the "old" rook', 0.5),
    ]
    assert sorted(found.files) == ["/data/a.wav", "/data/empty.wav", "/data/site, 1/b.wav"]
    assert read_all(tmp_path) == found, "the list is not a table"


def test_a_raven_table_of_one_file_has_no_list_and_a_silent_one_has_a_header_alone(tmp_path):
    path = tmp_path / "a.wav.selections.txt"
    FORMATS["raven"].write(path, [], {"a.wav": 10.0}, Path("/data"), 8000.0)
    assert path.read_text(encoding="utf-8").count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav.selections.txt"]
    found = read(path)
    assert (found.format, found.annotations, found.files, found.problems) == ("raven", [], ["a.wav"], [])


def test_audacity_labels_are_of_one_file(tmp_path):
    path = tmp_path / "a.wav.labels.txt"
    FORMATS["audacity"].write(path, DETECTIONS[1:], {"a.wav": 10.0}, Path(), 8000.0)
    assert path.read_text(encoding="utf-8") == "0.000023\t3.0\tNA\n3.0\t6.0\trobin\n"
    found = read(path)
    assert found.annotations == [Annotation("a.wav", 0.000023, 3.0, "NA"), Annotation("a.wav", 3.0, 6.0, "robin")]
    with pytest.raises(ValueError, match="of one file, not of 3"):
        written(tmp_path, "audacity")


def test_a_table_like_birdnets_is_quoted(tmp_path):
    path = written(tmp_path, "birdnet")
    assert path.read_text(encoding="utf-8") == (
        "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
        "0.000023,3.0,NA,NA,,/data/a.wav\n"
        "3.0,6.0,robin,robin,0.25,/data/a.wav\n"
        '1.5,4.0,"the ""old"" rook","the ""old"" rook",0.5,"/data/site, 1/b.wav"\n'
    )
    found = read(path)
    assert [(a.file, a.label, a.score) for a in found.annotations] == [
        ("/data/a.wav", "NA", None),
        ("/data/a.wav", "robin", 0.25),
        ("/data/site, 1/b.wav", 'the "old" rook', 0.5),
    ]


def test_a_table_for_kaleidoscope_has_folder_offset_and_an_empty_manual_id(tmp_path):
    path = written(tmp_path, "kaleidoscope")
    assert path.read_text(encoding="utf-8") == (
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,TOP1MATCH,MANUAL ID,confidence\n"
        "/data,,a.wav,0.000023,2.999977,NA,,\n"
        "/data,,a.wav,3.0,3.0,robin,,0.25\n"
        '/data,"site, 1",b.wav,1.5,2.5,"the ""old"" rook",,0.5\n'
    )
    assert [(a.file, a.start_s, a.end_s, a.label, a.score) for a in read(path).annotations] == [
        ("/data/a.wav", 0.000023, 3.0, "NA", None),
        ("/data/a.wav", 3.0, 6.0, "robin", 0.25),
        ("/data/site, 1/b.wav", 1.5, 4.0, 'the "old" rook', 0.5),
    ]


@pytest.mark.parametrize("name", list(FORMATS))
def test_tabs_line_ends_and_codes_in_a_label_do_not_break_a_row(tmp_path, name):
    detection = Annotation("a.wav", 0.0, 3.0, "a\tb\r\nc\x1b[2J", 0.5)
    found = read(written(tmp_path, name, [detection], {"a.wav": 3.0}))
    assert len(found.annotations) == 1 and not found.problems
    assert found.annotations[0].label.isprintable() and (found.format == name)


# Packages that read these formats need not be installed. Hand-made tables, above, say the same.

AT_SAMPLES = (1, 132_300, 364_601)


def detections_at_samples(rate_hz):
    return [Annotation("a.wav", i / rate_hz, i / rate_hz + 2.0, f"song {i}", 0.5) for i in AT_SAMPLES]


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 384_000])
def test_crowsetta_reads_raven_and_audacity_tables_to_the_sample(tmp_path, rate_hz):
    crowsetta = pytest.importorskip("crowsetta", reason="crowsetta is not installed (pip install crowsetta==5.1.2)")
    path = written(tmp_path, "raven", detections_at_samples(rate_hz), {"a.wav": 99.0})
    found = crowsetta.formats.bbox.Raven.from_file(path).df
    assert [round(start_s * rate_hz) for start_s in found.begin_time_s] == list(AT_SAMPLES)
    assert list(found.annotation) == [f"song {i}" for i in AT_SAMPLES]
    path = written(tmp_path, "audacity", detections_at_samples(rate_hz), {"a.wav": 99.0})
    found = crowsetta.formats.seq.AudSeq.from_file(path)
    assert [round(end_s * rate_hz) for end_s in found.end_times] == [i + 2 * rate_hz for i in AT_SAMPLES]
    assert list(found.labels) == [f"song {i}" for i in AT_SAMPLES]
    whole = written(tmp_path, "audacity", [Annotation("a.wav", 3.0, 6.0, "rook")], {"a.wav": 9.0})
    assert crowsetta.formats.seq.AudSeq.from_file(whole).start_times.tolist() == [3.0]


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 384_000])
def test_opensoundscape_reads_raven_tables_to_the_sample(tmp_path, rate_hz):
    reason = "opensoundscape is not installed (pip install opensoundscape==0.13.2)"
    annotations = pytest.importorskip("opensoundscape.annotations", reason=reason)
    path = written(tmp_path, "raven", detections_at_samples(rate_hz), {"a.wav": 99.0})
    found = annotations.BoxedAnnotations.from_raven_files([path], "Annotation", audio_files=["a.wav"]).df
    assert [round(start_s * rate_hz) for start_s in found.start_time] == list(AT_SAMPLES)
    assert found.annotation.tolist() == [f"song {i}" for i in AT_SAMPLES]


# --------------------------------------------------------------------------------------------------- tables of Raven

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation"
RAVEN_OF_FILES = RAVEN.replace("\tAnnotation", "\tBegin File\tFile Offset (s)\tAnnotation")
BIRDNET_RAVEN = (
    f"{RAVEN.removesuffix('Annotation')}Common Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)\n"
)


def raven(folder, rows, name="night.Table.1.selections.txt", header=RAVEN, encoding="utf-8"):
    return table(folder / name, "\n".join([header, *rows]) + "\n", encoding)


def test_a_raven_table_is_named_after_its_file(tmp_path):
    raven(tmp_path, ["1\tSpectrogram 1\t1\t1.5\t3.25\t1000.0\t4000.5\trook"], "site 1/night.Table.1.selections.txt")
    found = read_all(tmp_path)
    assert found.annotations == [Annotation("site 1/night", 1.5, 3.25, "rook", None, 1000.0, 4000.5, 1)]
    assert (found.format, found.files, found.problems) == ("raven", ["site 1/night"], [])


@pytest.mark.parametrize("label", ['"rook', 'rook"', '"zip" call', '5" long', "'rook", '""'])
def test_a_quotation_mark_in_a_raven_label_swallows_no_row(tmp_path, label):
    """pandas' reader, and with it opensoundscape 0.13.2 and crowsetta 5.1.2, joins rows up to the next mark."""
    rows = [f"{i}\tSpectrogram 1\t1\t{i}.0\t{i}.5\t1.0\t2.0\t{text}" for i, text in enumerate([label, "robin", label])]
    assert [a.label for a in read(raven(tmp_path, rows)).annotations] == [label, "robin", label]


@pytest.mark.parametrize("label", ["NA", "None", "nan", "null"])
def test_raven_labels_that_pandas_takes_for_missing_are_labels(tmp_path, label):
    """opensoundscape 0.13.2 reads them as no label; crowsetta 5.1.2 refuses the table."""
    found = read(raven(tmp_path, [f"1\tSpectrogram 1\t1\t0.0\t1.0\t1.0\t2.0\t{label}"]))
    assert [a.label for a in found.annotations] == [label] and not found.problems


def test_the_views_of_a_selection_count_once_and_its_channels_each(tmp_path):
    """A table that Raven Pro 1.6 saves has a row for each view; opensoundscape 0.13.2 takes each for an annotation."""
    rows = [
        "1\tWaveform 1\t1\t0.5\t1.5\t0.0\t8000.0\trook",
        "1\tSpectrogram 1\t1\t0.5\t1.5\t1000.0\t4000.0\trook",
        "1\tSpectrogram 1\t2\t0.5\t1.5\t1000.0\t4000.0\trook",
        "2\tSpectrogram 1\t1\t0.5\t1.5\t500.0\t900.0\trook",
        "3\tWaveform 1\t1\t7.0\t8.0\t0.0\t8000.0\t",
        "3\tSpectrogram 1\t1\t7.0\t8.0\t1000.0\t4000.0\trobin",
    ]
    found = read(raven(tmp_path, rows))
    assert [(a.label, a.start_s, a.channel, a.low_hz, a.high_hz) for a in found.annotations] == [
        ("rook", 0.5, 1, 1000.0, 4000.0),
        ("rook", 0.5, 2, 1000.0, 4000.0),
        ("rook", 0.5, 1, 500.0, 900.0),
        ("robin", 7.0, 1, 1000.0, 4000.0),
    ]
    assert not found.problems


def test_two_rows_of_one_number_with_other_labels_are_two_labels(tmp_path):
    rows = [f"1\tSpectrogram 1\t1\t0.5\t1.5\t1.0\t2.0\t{label}" for label in ("rook", "robin", "rook")]
    assert [a.label for a in read(raven(tmp_path, rows)).annotations] == ["rook", "robin"]


def test_a_table_over_a_sequence_of_files_is_mapped_by_begin_file_and_file_offset(tmp_path):
    """Begin Time runs on over the files; opensoundscape 0.13.2 takes it for the time in the first one."""
    rows = [
        "1\tSpectrogram 1\t1\t58.5\t60.0\t1.0\t2.0\ta.wav\t58.5\trook",
        "2\tSpectrogram 1\t1\t61.1\t63.4\t1.0\t2.0\tb.wav\t1.1\trobin",
    ]
    found = read(raven(tmp_path, rows, header=RAVEN_OF_FILES))
    assert [(a.file, a.start_s, a.end_s) for a in found.annotations] == [("a.wav", 58.5, 60.0), ("b.wav", 1.1, 3.4)]
    assert found.files == ["a.wav", "b.wav"]


def test_begin_path_goes_before_begin_file_and_may_be_of_windows(tmp_path):
    header = RAVEN_OF_FILES.replace("Begin File", "Begin File\tBegin Path")
    row = "1\tSpectrogram 1\t1\t1.0\t2.0\t1.0\t2.0\ta.wav\tC:\\My Data\\site\\a.wav\t1.0\trook"
    assert read(raven(tmp_path, [row], header=header)).files == ["C:/My Data/site/a.wav"]


def test_a_table_over_files_without_their_offsets_is_refused(tmp_path):
    header = RAVEN.replace("\tAnnotation", "\tBegin File\tAnnotation")
    rows = [f"{i}\tSpectrogram 1\t1\t{i}.0\t{i}.5\t1.0\t2.0\t{i}.wav\trook" for i in (1, 2)]
    with pytest.raises(InputError, match=r"selections of 2 files and no column File Offset \(s\)"):
        read(raven(tmp_path, rows, header=header))


def test_an_offset_into_a_file_that_is_not_named_is_a_problem(tmp_path):
    header = RAVEN_OF_FILES.replace("Begin File\t", "")
    rows = [
        "1\tSpectrogram 1\t1\t1.0\t2.0\t1.0\t2.0\t1.0\trook",
        "2\tSpectrogram 1\t1\t61.0\t62.0\t1.0\t2.0\t1.0\trobin",
    ]
    found = read(raven(tmp_path, rows, header=header))
    assert [a.label for a in found.annotations] == ["rook"]
    assert found.problems == [
        "night.Table.1.selections.txt, row 3: File Offset 1.0 s is not Begin Time 61.0 s, so that the table is of "
        "several files; it has no column Begin File that names them"
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_raven_table_of_any_encoding_with_decimal_commas_and_windows_line_ends(tmp_path, encoding):
    """opensoundscape 0.13.2 and crowsetta 5.1.2 read UTF-8 with decimal points alone."""
    text = f"{RAVEN}\r\n1\tSpectrogram 1\t1\t1,5\t3,25\t1000,0\t4000,5\tGrünspecht\r\n"
    found = read(table(tmp_path / "night.txt", text, encoding))
    assert found.annotations == [Annotation("night", 1.5, 3.25, "Grünspecht", None, 1000.0, 4000.5, 1)]


def test_bytes_that_windows_1252_does_not_have_are_latin_1(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"file,start,end,label\na.wav,0,1,r\x81\xf6k\n")
    assert [a.label for a in read(tmp_path / "a.csv").annotations] == ["r\x81ök"]


def test_raven_rows_that_are_left_out_are_named(tmp_path):
    rows = [
        "1\tSpectrogram 1\t1\t3.0\t1.0\t1.0\t2.0\trook",
        "2\tSpectrogram 1\t1\t0.0\t1.0\t1.0\t2.0",
        "3\tSpectrogram 1\t1\tinf\t1.0\t1.0\t2.0\trook",
        "4\tSpectrogram 1\t1\t0.0\t1.0\t1.0\t2.0\trobin",
    ]
    found = read(raven(tmp_path, rows, "night.txt"))
    assert [a.label for a in found.annotations] == ["robin"]
    assert sorted(found.problems) == [
        "night.txt, row 2: rook ends at 1.0 s, before it begins at 3.0 s",
        "night.txt, row 3: the label from 0.0 s to 1.0 s is empty",
        "night.txt, row 4: Begin Time 'inf', End Time '1.0' and File Offset 'none' are not all numbers of seconds",
    ]


def test_the_column_of_the_label_can_be_named(tmp_path):
    header = RAVEN.replace("Annotation", "Notes\tSpecies\tCode")
    path = raven(tmp_path, ["1\tSpectrogram 1\t1\t0.0\t1.0\t1.0\t2.0\tfar\tCorvus frugilegus\trook1"], header=header)
    assert [a.label for a in read(path).annotations] == ["Corvus frugilegus"]
    assert [a.label for a in read(path, "code").annotations] == ["rook1"]
    with pytest.raises(InputError, match=r"no column for the label: found .*species, code; expected Kind"):
        read(path, "Kind")


def test_a_raven_table_without_rows_needs_no_column_for_the_label(tmp_path):
    found = read(raven(tmp_path, [], header=RAVEN.removesuffix("\tAnnotation")))
    assert (found.files, found.annotations, found.problems) == (["night"], [], [])


def test_birdnets_nocall_is_no_detection(tmp_path):
    """birdnet-analyzer 2.4.0 writes it, with confidence 1.0, for a file without a detection."""
    header = BIRDNET_RAVEN.rstrip("\n")
    row = "1\tSpectrogram 1\t1\t0\t3\t150\t15000\tnocall\tnocall\t1.0\t/data/a.wav\t0"
    found = read(raven(tmp_path, [row], "a.BirdNET.selection.table.txt", header))
    assert (found.annotations, found.files, found.problems) == ([], ["/data/a.wav"], [])


def test_birdnets_combined_raven_table_is_read_by_file_offset(tmp_path):
    """birdnet-analyzer 2.4.0: Begin Time runs on over the files; the list beside it names those without a detection."""
    rows = [
        "1\tSpectrogram 1\t1\t0.0\t3.0\t0\t15000\tRook\trook1\t0.9000\t/data/a.wav\t0",
        "2\tSpectrogram 1\t1\t126.0\t129.0\t0\t15000\tRook\trook1\t0.8000\t/data/c.wav\t6.0",
    ]
    raven(tmp_path, rows, "BirdNET_SelectionTable.txt", BIRDNET_RAVEN.rstrip("\n"))
    table(tmp_path / "BirdNET_SelectionTable.list.txt", "/data/a.wav\n/data/b.wav\n/data/c.wav\n")
    table(tmp_path / "BirdNET_analysis_params.csv", "File splitting duration,Segment length\n600,3.0\n")
    found = read_all(tmp_path)
    assert [(a.file, a.start_s, a.end_s, a.score) for a in found.annotations] == [
        ("/data/a.wav", 0.0, 3.0, 0.9),
        ("/data/c.wav", 6.0, 9.0, 0.8),
    ]
    assert (sorted(found.files), found.problems) == (["/data/a.wav", "/data/b.wav", "/data/c.wav"], [])


# -------------------------------------------------------------------------------------------------- labels of Audacity


def test_audacity_labels_have_frequencies_on_a_line_of_their_own(tmp_path):
    """crowsetta 5.1.2 drops the last label if it has no such line, and refuses any other."""
    lines = [
        "1.5\t2.5\tsong",
        "\\\t-1.000000\t6000.5",
        "3.0\t4.0\tcall",
        "5.0\t6.0\t",
        "\\\t1.0\t2.0",
        "7,25\t7,25\tpip",
    ]
    found = read(table(tmp_path / "night.txt", "\n".join(lines)))
    assert found.annotations == [
        Annotation("night", 1.5, 2.5, "song", None, None, 6000.5),
        Annotation("night", 3.0, 4.0, "call"),
        Annotation("night", 7.25, 7.25, "pip"),
    ]
    assert found.problems == ["night.txt, row 4: the label from 5.0 s to 6.0 s is empty"]


def test_a_quotation_mark_in_an_audacity_label_swallows_no_row(tmp_path):
    """crowsetta 5.1.2 joins rows up to the next mark."""
    found = read(table(tmp_path / "night.txt", '0.0\t1.0\t"rook\n1.0\t2.0\trobin\n2.0\t3.0\t"wren\n'))
    assert [a.label for a in found.annotations] == ['"rook', "robin", '"wren']


def test_an_empty_label_track_means_silence(tmp_path):
    found = read(table(tmp_path / "night.wav.txt", ""))
    assert (found.format, found.annotations, found.files) == ("audacity", [], ["night.wav"])
    with pytest.raises(InputError, match="not a table of labels"):
        read(table(tmp_path / "night.csv", ""))


def test_an_audacity_line_without_times_is_named(tmp_path):
    found = read(table(tmp_path / "night.txt", "0.0\t1.0\trook\nrobin\n\\\t1.0\t2.0\n"))
    assert found.problems == ["night.txt, row 2: it does not begin with two numbers of seconds"]
    assert found.annotations == [Annotation("night", 0.0, 1.0, "rook")]


def test_birdnets_audacity_labels_end_with_the_confidence(tmp_path):
    """birdnet-analyzer 2.4.0 writes "scientific name, common name" and the confidence as a fourth cell."""
    text = "0.0\t3.0\tCorvus frugilegus, Rook\t0.9123\n3.0\t6.0\trook\t0.5000\n"
    found = read(table(tmp_path / "night.BirdNET.results.txt", text))
    assert found.annotations == [
        Annotation("night", 0.0, 3.0, "Rook", 0.9123),
        Annotation("night", 3.0, 6.0, "rook", 0.5),
    ]


# --------------------------------------------------------------------- CSVs of BirdNET-Analyzer and of Kaleidoscope

BIRDNET = "Start (s),End (s),Scientific name,Common name,Confidence,File"
KALEIDOSCOPE = (
    "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,common_name,confidence,lat,lon,week,overlap,sensitivity"
)


@pytest.mark.parametrize("more, cells", [("", ""), (",lat,lon,model", ",-1,-1,BirdNET.tflite")])
def test_a_comma_in_a_folder_does_not_shift_birdnets_columns(tmp_path, more, cells):
    """birdnet-analyzer 2.4.0 quotes nothing."""
    row = f"0.0,3.0,Corvus frugilegus,Rook,0.9000,/data/site 1, north/a.wav{cells}"
    path = table(tmp_path / "x.csv", f"{BIRDNET}{more}\n{row}\n")
    found = read(path)
    assert found.annotations == [Annotation("/data/site 1, north/a.wav", 0.0, 3.0, "Rook", 0.9)]
    assert [a.label for a in read(path, "Scientific name").annotations] == ["Corvus frugilegus"]
    with pytest.raises(InputError, match=r"no column for the label: found .*; expected Kind"):
        read(path, "Kind")


def test_birdnet_rows_that_are_left_out_are_named(tmp_path):
    rows = ["0.0,3.0,Rook, adult,Rook, adult,0.9,/data/a.wav", "0.0,3.0,Rook", "3.0,6.0,Rook,Rook,0.5,/data/a.wav"]
    found = read(table(tmp_path / "x.csv", "\n".join([BIRDNET, *rows])))
    assert [a.start_s for a in found.annotations] == [3.0]
    cells = "it does not have the cells Start (s), End (s), Scientific name, Common name, Confidence, File"
    assert found.problems == [f"x.csv, row 2: {cells}", f"x.csv, row 3: {cells}"]


@pytest.mark.parametrize(
    "where, file",
    [
        ("/data,site,a.wav", "/data/site/a.wav"),
        ("/data,site 1, north,a.wav", "/data/site 1, north/a.wav"),
        ("/data, new/2025,site,a.wav", "/data, new/2025/site/a.wav"),
        ("C:\\data,site,a.wav", "C:/data/site/a.wav"),
        (",,a.wav", "a.wav"),
    ],
)
def test_a_comma_in_a_folder_does_not_shift_kaleidoscopes_columns(tmp_path, where, file):
    """birdnet-analyzer 2.4.0 quotes nothing in its table for Kaleidoscope either."""
    row = f"{where},3.0,3.0,Corvus frugilegus,Rook,0.9000,-1.0,-1.0,-1,0.0,1.0"
    path = table(tmp_path / "x.csv", f"{KALEIDOSCOPE}\n{row}\n")
    assert read(path).annotations == [Annotation(file, 3.0, 6.0, "Rook", 0.9)]
    assert [a.label for a in read(path, "scientific_name").annotations] == ["Corvus frugilegus"]


def test_kaleidoscopes_manual_id_is_the_label_and_its_channel_0_is_the_first(tmp_path):
    lines = [
        "INDIR,FOLDER,IN FILE*,CHANNEL,OFFSET,DURATION,TOP1MATCH*,TOP1DIST,MANUAL ID*",
        "/data,,a.wav,0,1.5,0.5,Cluster.1,0.2,rook",
        "/data,,a.wav,1,2.5,0.5,Cluster.1,0.2,",
        "/data,,a.wav,0,soon,0.5,Cluster.1,0.2,rook",
        "/data,,a.wav,0",
    ]
    found = read(table(tmp_path / "cluster.csv", "\n".join(lines)))
    assert found.annotations == [Annotation("/data/a.wav", 1.5, 2.0, "rook", channel=1)]
    assert found.problems == [
        "cluster.csv, row 5: 4 cells; expected 9",
        "cluster.csv, row 4: OFFSET 'soon' and DURATION '0.5' are not two numbers of seconds",
        "cluster.csv: 1 of 3 rows have no MANUAL ID: their clips are left out",
    ]
    assert found.heard == {"/data/a.wav": [(0.0, 2.5), (3.0, math.inf)]}, "nobody has verified the second row"
    found = read(table(tmp_path / "cluster.csv", "\n".join(lines[:3]).replace("rook", "")))
    assert [(a.label, a.channel) for a in found.annotations] == [("Cluster.1", 1), ("Cluster.1", 2)]
    assert not found.heard
    with pytest.raises(InputError, match=r"no column for the label: .*expected common_name or TOP1MATCH"):
        read(table(tmp_path / "x.csv", "INDIR,FOLDER,IN FILE,OFFSET,DURATION\n/data,,a.wav,0,1\n"))


@pytest.mark.parametrize("header", [BIRDNET, KALEIDOSCOPE])
def test_a_csv_without_rows_covers_the_file_after_which_it_is_named(tmp_path, header):
    found = read(table(tmp_path / "night.BirdNET.results.csv", f"{header}\n"))
    assert (found.annotations, found.files, found.problems) == ([], ["night"], [])
    found = read(table(tmp_path / "BirdNET_CombinedTable.csv", f"{header}\n"))
    assert found.files == []
    assert found.problems == ["BirdNET_CombinedTable.csv has no rows, and its name does not say which file is silent"]


@pytest.mark.parametrize(
    "ending",
    [
        *(".txt", ".labels.txt", ".selections.txt", ".Table.1.selections.txt", ".BirdNET.selection.table.txt"),
        *(".BirdNET.results.txt", ".BirdNET.results.csv", ".BirdNET.results.kaleidoscope.csv"),
        *(room.SUFFIX for room in FORMATS.values()),
    ],
)
def test_the_name_of_a_table_names_its_file(ending):
    for file in ("night", "night.wav", "site.1/20250601_050000.WAV"):
        assert file_of_table(file + ending) == file
