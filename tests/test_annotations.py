"""Tables of labels with times: what each format's reader takes from them, and what its writer gives."""

from pathlib import Path

import pytest

from utils.core.errors import InputError
from utils.data.annotations import FORMATS, Annotation, past_the_end, read, read_all


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
    assert len(found.problems) == 1 and "notes.txt is not a table" in found.problems[0]


def test_a_folder_without_tables_and_a_missing_table_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"holds no table of labels with times \(\.txt, \.tsv, \.csv\)"):
        read_all(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_all(tmp_path / "none.csv")


def test_a_label_in_two_tables_of_a_folder_counts_once(tmp_path):
    for name in ("a.csv", "b.csv"):
        table(tmp_path / name, "file,start,end,label\na.wav,0,1,rook\n")
    found = read_all(tmp_path)
    assert (found.annotations, found.files) == ([Annotation("a.wav", 0.0, 1.0, "rook")], ["a.wav"])


def test_a_label_past_the_end_of_its_file_is_named():
    label = Annotation("a.wav", 2.0, 4.0, "rook")
    assert past_the_end(label, 4.0) is None
    assert past_the_end(label, 3.5) == "rook from 2.0 s to 4.0 s goes past the end of a.wav (3.5 s)"


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
