"""Tables of others: whose column counts, which rows are stretches, and what is said of the rest."""

import pytest

from tests.test_recordings import labels_of, reasons_of, touch, write_csv
from utils.core.errors import InputError
from utils.data.metadata import names_in
from utils.data.recordings import SourceFile, find_recordings

XENO_CANTO = "id,gen,sp,rec,file,file-name,length,time\n"


def refusal(tmp_path, text):
    touch(tmp_path, "a.wav", "b.wav")
    with pytest.raises(InputError) as error:
        find_recordings(tmp_path, write_csv(tmp_path, text))
    return str(error.value)


# ---------------------------------------------------------------------------------------------- stretches


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("start,end", "20,25"),
        ("start_time,end_time", "20.0,25.0"),
        ("start_s,end_s", "20,25"),
        ("start_seconds,duration", "20,5"),
        ("offset,duration", "20,5"),
        ("onset,offset", "0.2,0.5"),
        ("Begin Time (s),End Time (s)", "20.1,25"),
        ("Start (s),End (s)", "20,25"),
        ("start_ms,end_ms", "20000,25000"),
        ("timestamp_s,x", "20,"),
        ("t_min,t_max", "20,25"),
        ("start,end", "0,5"),  # the file may be longer
        ("start,end", ",\nb.wav,Jay,3,4"),  # a row without times does not hide another
    ],
)
def test_stretches_within_files_are_refused_with_their_columns(tmp_path, header, values):
    message = refusal(tmp_path, f"file,label,{header}\na.wav,Rook,{values}\n")
    assert header.lower().split(",")[0] in message
    assert "Cut the sections out" in message and "remove these columns" in message


def test_a_table_of_raven_is_refused_for_its_stretches_not_for_its_tabs(tmp_path):
    text = "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tSpecies\n1\t2.0\t3.5\ta.wav\tRook\n"
    assert "begin time (s), end time (s)" in refusal(tmp_path, text)


def test_times_of_day_of_a_file_named_twice_are_places_in_it(tmp_path):
    text = "file,label,start_time\na.wav,Rook,00:00:20\na.wav,Rook,00:00:40\n"
    assert "start_time 00:00:20" in refusal(tmp_path, text)
    assert "columns time" in refusal(tmp_path, "file,label,time\na.wav,Rook,20\na.wav,Rook,40\n")


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("length,time", "0:05,10:00"),  # xeno-canto
        ("time,rating", "10:00,4.0"),  # BirdCLEF
        ("duration", "60.5"),
        ("start_time", "06:30"),
        ("start_time,end_time", "0630,0635"),
        ("timestamp", "2025-06-01 06:30:00"),
        ("timestamp", "1748759400"),
        ("start,end", ","),
        ("starting_point,end", "4,5"),
    ],
)
def test_columns_of_the_whole_recording_are_no_stretches(tmp_path, header, values):
    touch(tmp_path, "a.wav")
    assert labels_of(tmp_path, write_csv(tmp_path, f"file,label,{header}\na.wav,Rook,{values}\n")) == {"a.wav": "Rook"}


def test_rows_that_name_a_file_again_get_a_line(tmp_path, caplog):
    touch(tmp_path, "a.wav")
    labels_of(tmp_path, write_csv(tmp_path, "file,label\na.wav,Rook\na.wav,Rook\n"))
    assert "names 1 file in several rows" in caplog.text


# ----------------------------------------------------------------------------------------- which file it is


@pytest.mark.parametrize("folder", ["train_short_audio/amerob", "train_audio/amerob", "amerob", "some/where/else"])
def test_a_bare_name_is_found_in_any_folder(tmp_path, folder):
    touch(tmp_path, f"{folder}/XC12.ogg")
    metadata = write_csv(tmp_path, "primary_label,author,filename\namerob,Ada,XC12.ogg\n")
    assert find_recordings(tmp_path, metadata)[0] == [SourceFile(f"{folder}/XC12.ogg", "amerob", "XC12", "Ada")]


def test_of_equal_names_the_one_in_the_folder_of_the_label_counts(tmp_path):
    touch(tmp_path, "audio/Rook/1.wav", "audio/Jay/1.wav", "audio/Great_Tit/1.wav")
    metadata = write_csv(tmp_path, "filename,label\n1.wav,Rook\n1.wav,Jay\n1.wav,Great Tit\n")
    assert labels_of(tmp_path, metadata) == {
        "audio/Rook/1.wav": "Rook",
        "audio/Jay/1.wav": "Jay",
        "audio/Great_Tit/1.wav": "Great Tit",
    }


def test_equal_names_in_other_folders_are_not_guessed(tmp_path):
    touch(tmp_path, "x/1.wav", "y/1.wav", "z/2.wav")
    metadata = write_csv(tmp_path, "filename,label\n1.wav,Rook\n2.wav,Rook\n")
    assert labels_of(tmp_path, metadata) == {"z/2.wav": "Rook"}
    assert "several files have this name (x/1.wav, y/1.wav)" in reasons_of(tmp_path, metadata)["1.wav"]


def test_a_file_in_the_folder_of_another_label_is_not_the_one(tmp_path):
    touch(tmp_path, "audio/Jay/1.wav", "audio/Rook/2.wav")
    metadata = write_csv(tmp_path, "filename,label\n1.wav,Rook\n1.wav,Jay\n2.wav,Rook\n")
    assert labels_of(tmp_path, metadata) == {"audio/Jay/1.wav": "Jay", "audio/Rook/2.wav": "Rook"}
    assert "in the folder of another label" in reasons_of(tmp_path, metadata)["1.wav"]


@pytest.mark.parametrize(
    ("named", "there"),
    [
        ("rook/a.mp3", "rook/a.wav"),
        ("a.MP3", "deep/a.flac"),
        ("a", "deep/a.wav"),
        ("v1.2", "deep/v1.2.wav"),
        ("A.WAV", "deep/a.wav"),
        ("rook\\a.wav", "rook/a.wav"),
        ("rook/a.wav", "data/rook/a.wav"),
    ],
)
def test_names_with_another_suffix_case_or_prefix_are_found(tmp_path, named, there):
    touch(tmp_path, there, "deep/b.wav")
    assert labels_of(tmp_path, write_csv(tmp_path, f"file,label\n{named},Rook\n")) == {there: "Rook"}


@pytest.mark.parametrize("named", ["other/a.wav", "..\\a.wav", "https://x.org/a.wav"])
def test_other_names_are_not_guessed(tmp_path, named):
    raw_dir = tmp_path / "raw"
    touch(raw_dir, "rook/a.wav", "b.wav")
    touch(tmp_path, "a.wav")
    assert labels_of(raw_dir, write_csv(tmp_path, f"file,label\n{named},Rook\nb.wav,Rook\n")) == {"b.wav": "Rook"}


def test_the_column_whose_files_are_there_counts_and_is_named(tmp_path, caplog):
    touch(tmp_path, "XC1.wav", "XC2.wav")
    text = XENO_CANTO.replace("\n", ",filename\n")
    text += "1,Turdus,merula,Ada,https://x/1/download,tape 3.mp3,0:05,10:00,XC1.wav\n"
    text += "2,Turdus,merula,Ada,https://x/2/download,XC2.wav,0:05,10:00,XC2.wav\n"
    with caplog.at_level("INFO"):
        files, skipped = find_recordings(tmp_path, write_csv(tmp_path, text))
    assert [file.path for file in files] == ["XC1.wav", "XC2.wav"] and skipped == []
    assert "the column filename, of 2 names, 2 name an existing file" in caplog.text


@pytest.mark.parametrize("there", ["XC123.mp3", "123.mp3", "Turdus merula/XC123.wav", "xc123.MP3"])
def test_a_file_named_by_its_xeno_canto_id_alone_is_found(tmp_path, there):
    touch(tmp_path, there, "XC124.mp3")
    metadata = write_csv(tmp_path, XENO_CANTO + "123,Turdus,merula,Ada,https://x/123,tape 3.mp3,0:05,10:00\n")
    assert find_recordings(tmp_path, metadata) == ([SourceFile(there, "Turdus merula", "XC123", "Ada")], [])


def test_a_table_without_file_names_needs_xeno_canto_ids(tmp_path):
    touch(tmp_path, "XC1.mp3", "XC2.mp3")
    assert labels_of(tmp_path, write_csv(tmp_path, "xc_id,species\n1,Rook\n2,Jay\n")) == {
        "XC1.mp3": "Rook",
        "XC2.mp3": "Jay",
    }


def test_all_pieces_of_a_xeno_canto_recording_are_its_rows(tmp_path):
    touch(tmp_path, "XC12_0.0s_3.0s.wav", "XC12_3.0s_6.0s.wav", "XC1.wav")
    files, _ = find_recordings(tmp_path, write_csv(tmp_path, "xc_id,species\n12,Rook\n"))
    assert [(file.path, file.recording_id) for file in files] == [
        ("XC12_0.0s_3.0s.wav", "XC12"),
        ("XC12_3.0s_6.0s.wav", "XC12"),
    ]


def test_two_files_of_one_id_are_not_guessed(tmp_path):
    touch(tmp_path, "XC1.wav", "XC1.mp3", "XC2.mp3")
    metadata = write_csv(tmp_path, "xc_id,species\n1,Rook\n2,Rook\n")
    assert labels_of(tmp_path, metadata) == {"XC2.mp3": "Rook"}
    assert "several files have this name" in reasons_of(tmp_path, metadata)["XC1"]


# ------------------------------------------------------------------------------------- labels, and the rest


@pytest.mark.parametrize(
    ("header", "row", "label"),
    [
        ("species,file", "Corvus frugilegus,a.wav", "Corvus frugilegus"),
        ("genus,species,file", "Corvus,frugilegus,a.wav", "Corvus frugilegus"),
        ("Scientific Name,file", "Corvus frugilegus,a.wav", "Corvus frugilegus"),
        ("scientificName,file", "Corvus frugilegus,a.wav", "Corvus frugilegus"),
        ("primary_label,species,file", "rook1,Corvus frugilegus,a.wav", "rook1"),
    ],
)
def test_columns_of_species_are_labels(tmp_path, header, row, label):
    touch(tmp_path, "a.wav")
    assert labels_of(tmp_path, write_csv(tmp_path, f"{header}\n{row}\n")) == {"a.wav": label}


@pytest.mark.parametrize("column", ["secondary_labels", "background", "also"])
def test_other_species_get_a_line(tmp_path, caplog, column):
    touch(tmp_path, "a.wav", "b.wav")
    text = f"file,label,{column}\na.wav,Rook,['jay']\nb.wav,Rook,[]\n"
    labels_of(tmp_path, write_csv(tmp_path, text))
    assert f"in 1 of 2 rows the column {column} names other species in the recording" in caplog.text
    caplog.clear()
    labels_of(tmp_path, write_csv(tmp_path, f"file,label,{column}\na.wav,Rook,[]\nb.wav,Rook,\n"))
    assert not [record for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("['eurrob1', 'comcha']", ["eurrob1", "comcha"]),
        ('["Turdus  merula"]', ["Turdus merula"]),
        ("['']", []),
        ("", []),
        ("nan", []),
        ("Turdus merula; Parus major ;", ["Turdus merula", "Parus major"]),
        ("jay|rook", ["jay", "rook"]),
        ("[jay, rook]", ["jay", "rook"]),
        ("jay", ["jay"]),
        ("['jay", ["'jay"]),
        ("1", ["1"]),
    ],
)
def test_other_species_are_lists_of_python_or_separated(text, names):
    assert names_in(text) == names


def test_other_species_are_kept_if_they_are_asked_for(tmp_path, caplog):
    touch(tmp_path, "a.wav", "b.wav")
    table = write_csv(tmp_path, "file,label,also,background\na.wav,Rook,\"['jay', 'crow']\",wren;jay\nb.wav,Rook,[],\n")
    files, _ = find_recordings(tmp_path, table, uses_secondary=True)
    assert [file.secondary_labels for file in files] == [("crow", "jay", "wren"), ()]
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_rows_without_label_get_a_line(tmp_path, caplog):
    touch(tmp_path, "a.wav", "b.wav")
    labels_of(tmp_path, write_csv(tmp_path, "file,label\na.wav,Rook\nb.wav, \n"))
    assert "1 of 2 rows have no label and are left out" in caplog.text


def test_columns_of_one_name_in_two_cases_are_the_first(tmp_path):
    touch(tmp_path, "a.wav")
    assert labels_of(tmp_path, write_csv(tmp_path, "file,Label,label\na.wav,Rook,Jay\n")) == {"a.wav": "Rook"}


def test_collections_that_differ_by_case_are_one_and_unknown_is_none(tmp_path):
    names = ["Xeno-Canto", "xeno-canto", "Unknown", "n/a", "", "Tierstimmenarchiv"]
    for i in range(len(names)):
        (tmp_path / f"{i}.wav").touch()
    rows = "".join(f"{i}.wav,Crow,{name}\n" for i, name in enumerate(names))
    files, _ = find_recordings(tmp_path, write_csv(tmp_path, f"file,label,collection\n{rows}"))
    assert [file.collection for file in files] == ["Xeno-Canto", "Xeno-Canto", None, None, None, "Tierstimmenarchiv"]
