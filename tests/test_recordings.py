"""Finding recordings: folders as labels, metadata tables, recording ids, and everything that can be wrong with them."""

import errno
import os
import unicodedata
from pathlib import Path

import pytest

from utils.core.errors import InputError
from utils.data import recordings
from utils.data.recordings import Skipped, SourceFile, complete, find_audio, find_recordings
from utils.data.tags import Tags


def touch(raw_dir, *paths):
    """Create empty files: only names matter here."""
    for path in paths:
        file = raw_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def labels_of(raw_dir, metadata=None):
    return {file.path: file.label for file in find_recordings(raw_dir, metadata)[0]}


def ids_of(raw_dir):
    return {file.path: file.recording_id for file in find_recordings(raw_dir)[0]}


def reasons_of(raw_dir, metadata=None):
    return {skip.file: skip.reason for skip in find_recordings(raw_dir, metadata)[1]}


def write_csv(raw_dir, text, encoding="utf-8"):
    path = raw_dir / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


# ---------------------------------------------------------------------------------------- folders as labels


def test_a_folder_per_species(tmp_path):
    touch(tmp_path, "Rook/b.wav", "Rook/a.MP3", "Jay/deep/er/c.flac", "Jay/d.ogg")
    files, skipped = find_recordings(tmp_path)
    assert files == [
        SourceFile("Jay/d.ogg", "Jay", "Jay/d", None),
        SourceFile("Jay/deep/er/c.flac", "Jay", "Jay/deep/er/c", None),
        SourceFile("Rook/a.MP3", "Rook", "Rook/a", None),
        SourceFile("Rook/b.wav", "Rook", "Rook/b", None),
    ]
    assert skipped == []


@pytest.mark.parametrize("wrapper", ["Voice of Birds", "Voice of Birds/Voice of Birds"])
def test_wrapper_folders_are_no_labels(tmp_path, wrapper):
    touch(tmp_path, f"{wrapper}/Andean Guan_sound/x.mp3", f"{wrapper}/Rook/y.mp3", f"{wrapper}/Rook/deep/z.mp3")
    touch(tmp_path, "empty/readme.txt")
    assert set(labels_of(tmp_path).values()) == {"Andean Guan", "Rook"}


def test_audio_above_the_species_folders_has_no_label(tmp_path):
    touch(tmp_path, "stray.wav", "birds/stray.wav", "birds/Rook/a.wav", "birds/Jay/b.wav")
    assert set(labels_of(tmp_path)) == {"birds/Rook/a.wav", "birds/Jay/b.wav"}
    reasons = reasons_of(tmp_path)
    assert set(reasons) == {"stray.wav", "birds/stray.wav"}
    assert str(tmp_path / "birds") in reasons["stray.wav"]


def test_a_single_species(tmp_path):
    touch(tmp_path, "Rook/a.wav", "Rook/b.wav")
    assert set(labels_of(tmp_path).values()) == {"Rook"}


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("Andean Guan_sound", "Andean Guan"),
        ("Andean  Guan_Sounds", "Andean Guan"),
        ("Andean Guan - recordings", "Andean Guan"),
        ("Accipiter_gentilis", "Accipiter_gentilis"),
        ("_sound", "_sound"),
        ("Ultrasound", "Ultrasound"),
        ("Rook song", "Rook song"),
        ("-leading dash", "-leading dash"),
        ('O\'Brien "the" bird', 'O\'Brien "the" bird'),
        (unicodedata.normalize("NFD", "Grünspecht"), unicodedata.normalize("NFC", "Grünspecht")),
        ("Cinclus\ncinclus", "Cinclus cinclus"),
    ],
)
def test_labels_are_clean(tmp_path, folder, label):
    touch(tmp_path, f"{folder}/a.wav", "zzz/a.wav")
    assert set(labels_of(tmp_path).values()) == {label, "zzz"}


def test_folders_of_one_clean_name_are_one_label(tmp_path):
    touch(tmp_path, "Rook/1.wav", "Rook_sound/1.wav", "Jay/1.wav")
    files, skipped = find_recordings(tmp_path)
    assert [(f.label, f.recording_id) for f in files] == [
        ("Jay", "Jay/1"),
        ("Rook", "Rook/1"),
        ("Rook", "Rook_sound/1"),
    ]
    assert skipped == []


def test_hidden_files_and_other_files_are_ignored(tmp_path, caplog):
    touch(tmp_path, "Rook/a.wav", "Jay/a.wav", "Jay/.hidden.wav", ".git/x.wav", "__MACOSX/Jay/._a.wav")
    touch(tmp_path, "Jay/notes.txt", "Jay/licence", "Jay/list.csv", "Jay/other.csv")
    with caplog.at_level("INFO"):
        files, skipped = find_recordings(tmp_path)
    assert len(files) == 2
    assert skipped == []
    assert "4 files are not audio: ignored (2 .csv, " in caplog.text


def test_audio_that_cannot_be_decoded_is_reported(tmp_path):
    touch(tmp_path, "Rook/a.wav", "Jay/a.wav", "Jay/b.w4v", "Jay/c.WAC", "Jay/d.dss")
    reasons = reasons_of(tmp_path)
    assert reasons["Jay/b.w4v"].startswith(".w4v cannot be decoded: convert it with Kaleidoscope")
    assert "Kaleidoscope" in reasons["Jay/c.WAC"] and reasons["Jay/d.dss"].endswith("convert it to .wav or .flac")


def test_what_phones_record_is_audio(tmp_path):
    touch(tmp_path, "Rook/a.3gp", "Jay/a.m4b", "Jay/b.M4A", "Jay/c.amr", "Jay/d.webm", "Jay/e.wma", "Jay/f.aac")
    files, skipped = find_recordings(tmp_path)
    assert len(files) == 7 and skipped == []


def test_all_formats_of_libsndfile_are_audio():
    wanted = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64"}
    assert wanted <= recordings.AUDIO_SUFFIXES
    assert ".raw" not in recordings.AUDIO_SUFFIXES


def test_an_unused_metadata_table_is_mentioned(tmp_path, caplog):
    touch(tmp_path, "Rook/a.wav", "Jay/a.wav", "metadata.csv")
    find_recordings(tmp_path)
    assert "--metadata" in caplog.text


def test_a_given_level_holds_the_labels(tmp_path):
    touch(tmp_path, "train/Rook/1.wav", "train/Jay/1.wav", "test/Rook/1.wav", "test/new/Jay/1.wav", "stray.wav")
    files, skipped = find_recordings(tmp_path, label_level=2)
    assert files == [
        SourceFile("test/Rook/1.wav", "Rook", "test/Rook/1", None),
        SourceFile("test/new/Jay/1.wav", "new", "test/new/Jay/1", None),
        SourceFile("train/Jay/1.wav", "Jay", "train/Jay/1", None),
        SourceFile("train/Rook/1.wav", "Rook", "train/Rook/1", None),
    ]
    assert [skip.file for skip in skipped] == ["stray.wav"]
    with pytest.raises(InputError, match=r"--label_level 4: the deepest file below .* has 3 folders"):
        find_recordings(tmp_path, label_level=4)


# ----------------------------------------------------------------------------------- what tags and folders add


def test_a_table_knows_best_then_tags_then_folders(tmp_path, caplog):
    touch(tmp_path, "North/1.wav", "unknown/2.wav", "South/3.wav", "4.wav", "South/5.wav")
    metadata = write_csv(
        tmp_path,
        "file,label,recordist\nNorth/1.wav,Rook,Ada\nunknown/2.wav,Rook,\nSouth/3.wav,Rook,?\n4.wav,Rook,\n"
        "South/5.wav,Rook,anon.\n",
    )
    tags_of = {
        "North/1.wav": Tags("Bo"),
        "South/3.wav": Tags("Bo", other_artist=None),
        "South/5.wav": Tags("Unknown recordist"),
        "4.wav": Tags(other_artist="Voice Memos"),
    }
    with caplog.at_level("INFO"):
        files, skipped = complete(find_recordings(tmp_path, metadata)[0], tags_of, recordist_level=1)
    assert {file.path: file.recordist for file in files} == {
        "North/1.wav": "Ada",
        "unknown/2.wav": None,
        "South/3.wav": "Bo",
        "4.wav": None,
        "South/5.wav": "South",
    }
    assert skipped == []
    said = "3 of 5 files have a recordist: 1 from the table, 1 from tags of xeno-canto, 1 from folders"
    assert said in caplog.text
    assert "1 file names an artist in tags that are not xeno-canto's (Voice Memos (1)): not used" in caplog.text


def test_ids_of_tags_count_where_only_the_path_names_a_recording(tmp_path):
    touch(tmp_path, "Rook/b.wav", "Rook/c.wav", "Jay/XC2.wav", "Wren/d.wav", "Jay/e.wav")
    tags_of = {path: Tags(recording_id="XC7") for path in ("Rook/b.wav", "Rook/c.wav", "Jay/XC2.wav")}
    tags_of |= {path: Tags(recording_id="XC9") for path in ("Wren/d.wav", "Jay/e.wav")}
    files, skipped = complete(find_recordings(tmp_path)[0], tags_of)
    assert [(file.path, file.recording_id) for file in files] == [
        ("Jay/XC2.wav", "XC2"),
        ("Rook/b.wav", "XC7"),
        ("Rook/c.wav", "XC7"),
    ]
    assert {skip.reason for skip in skipped} == {"recording XC9 has several labels: Jay, Wren"}
    metadata = write_csv(tmp_path, "file,label,recording_id\nRook/b.wav,Rook,tape 1\n")
    files, _ = complete(find_recordings(tmp_path, metadata)[0], tags_of)
    assert files[0].recording_id == "tape 1"


# -------------------------------------------------------------------------------------------- recording ids


@pytest.mark.parametrize(
    ("name", "recording_id"),
    [
        ("XC123.mp3", "XC123"),
        ("xc123_segment_4.wav", "XC123"),
        ("XC123 - Rook - Corvus frugilegus.mp3", "XC123"),
        ("vogelstimmen__XC1155254.flac", "XC1155254"),
        ("2021-05-01_XC77-part2.wav", "XC77"),
        ("XC/XC9/segment_1.wav", "XC9"),
        ("rook_segment_4.wav", "Rook/rook"),
        ("rook-segment-14.wav", "Rook/rook"),
        ("rook_seg4.wav", "Rook/rook"),
        ("rook_part2.wav", "Rook/rook"),
        ("rook chunk 3.wav", "Rook/rook"),
        ("rook_CLIP_2.wav", "Rook/rook"),
        ("rook_2.wav", "Rook/rook_2"),
        ("rook_2021_05.wav", "Rook/rook_2021_05"),
        ("counterpart2.wav", "Rook/counterpart2"),
        ("rook_part.wav", "Rook/rook_part"),
        ("EXC123.wav", "Rook/EXC123"),
        ("XC123a.wav", "Rook/XC123a"),
        ("v1.2.wav", "Rook/v1.2"),
    ],
)
def test_recording_ids(tmp_path, name, recording_id):
    touch(tmp_path, f"Rook/{name}", "zzz/a.wav")
    assert ids_of(tmp_path)[f"Rook/{name}"] == recording_id


def test_numbered_files_of_two_species_are_two_recordings(tmp_path):
    touch(tmp_path, "Rook/1.wav", "Jay/1.wav")
    assert sorted(ids_of(tmp_path).values()) == ["Jay/1", "Rook/1"]


def test_segments_are_sorted_below_their_recording(tmp_path):
    touch(tmp_path, *(f"Rook/XC2_segment_{i}.wav" for i in (2, 1)), "Jay/XC10.wav")
    files, _ = find_recordings(tmp_path)
    assert [(f.recording_id, f.path) for f in files] == [
        ("XC10", "Jay/XC10.wav"),
        ("XC2", "Rook/XC2_segment_1.wav"),
        ("XC2", "Rook/XC2_segment_2.wav"),
    ]


def test_a_recording_with_two_labels_is_left_out(tmp_path):
    touch(tmp_path, "Rook/XC1.wav", "Jay/XC1.wav", "Jay/XC2.wav")
    files, skipped = find_recordings(tmp_path)
    assert [f.path for f in files] == ["Jay/XC2.wav"]
    reason = "recording XC1 has several labels: Jay, Rook"
    assert skipped == [Skipped("Jay/XC1.wav", reason), Skipped("Rook/XC1.wav", reason)]


# ---------------------------------------------------------------------------------------- links and permissions


def test_a_link_that_loops_is_reported_and_does_not_hang(tmp_path):
    touch(tmp_path, "Rook/a.wav", "Jay/deep/b.wav")
    (tmp_path / "Jay/deep/up").symlink_to(tmp_path)
    (tmp_path / "Jay/self").symlink_to("self")
    files, skipped = find_recordings(tmp_path)
    assert [f.path for f in files] == ["Jay/deep/b.wav", "Rook/a.wav"]
    reasons = {skip.file: skip.reason for skip in skipped}
    assert "already been read" in reasons["Jay/deep/up"]
    assert set(reasons) == {"Jay/deep/up", "Jay/self"}


def test_links_are_followed_and_real_names_win(tmp_path):
    raw_dir, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    touch(raw_dir, "Rook/a.wav")
    touch(elsewhere, "b.wav", "c.wav")
    (raw_dir / "Jay").symlink_to(elsewhere)
    (raw_dir / "A").symlink_to(raw_dir / "Rook")  # the first in order of the alphabet
    (raw_dir / "Rook/c.wav").symlink_to(elsewhere / "c.wav")
    assert set(labels_of(raw_dir)) == {"Rook/a.wav", "Rook/c.wav", "Jay/b.wav", "Jay/c.wav"}
    assert set(reasons_of(raw_dir)) == {"A"}


def test_a_dangling_link_and_a_pipe_are_reported(tmp_path):
    touch(tmp_path, "Rook/a.wav", "Jay/b.wav")
    (tmp_path / "Jay/gone.wav").symlink_to(tmp_path / "nowhere.wav")
    os.mkfifo(tmp_path / "Jay/pipe.wav")
    assert reasons_of(tmp_path) == {
        "Jay/gone.wav": "a link without a target",
        "Jay/pipe.wav": "neither a file nor a folder",
    }


def refuse(monkeypatch, folder):
    """Let reading a folder fail; changing its permissions would not stop the superuser."""
    scan = os.scandir

    def scandir(path):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    touch(tmp_path, "Rook/a.wav", "Jay/b.wav", "Jay/closed/c.wav")
    refuse(monkeypatch, tmp_path / "Jay/closed")
    assert reasons_of(tmp_path) == {"Jay/closed": "the folder cannot be read: Permission denied"}


def test_an_unreadable_raw_dir_is_an_error(tmp_path, monkeypatch):
    refuse(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        find_recordings(tmp_path)


def test_names_that_are_no_text_are_reported(tmp_path):
    touch(tmp_path, "Rook/a.wav", "Jay/b.wav")
    try:
        (tmp_path / "Jay" / os.fsdecode(b"\xff.wav")).touch()
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    assert reasons_of(tmp_path) == {"Jay/�.wav": "its name is not valid UTF-8: rename it"}
    with pytest.raises(InputError, match=r"\\udcff\.wav: its name is not valid UTF-8: rename it"):
        find_audio(tmp_path / "Jay" / os.fsdecode(b"\xff.wav"))


@pytest.mark.parametrize("name", ["a b.wav", 'say "rook".wav', "-rook.wav", "Grünspecht ♂.wav", "it's, a; bird.wav"])
def test_odd_names_are_kept_as_they_are(tmp_path, name):
    touch(tmp_path, f"Rook/{name}", "Jay/b.wav")
    assert f"Rook/{name}" in labels_of(tmp_path)
    quoted = '"' + f"Rook/{name}".replace('"', '""') + '"'
    metadata = write_csv(tmp_path, f"file,label\n{quoted},Rook\nJay/b.wav,Jay\n")
    assert f"Rook/{name}" in labels_of(tmp_path, metadata)


# ----------------------------------------------------------------------------------------- nothing to be found


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_recordings(tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder(tmp_path):
    touch(tmp_path, "a.wav")
    with pytest.raises(InputError, match="it is a file"):
        find_recordings(tmp_path / "a.wav")


def test_no_audio(tmp_path):
    touch(tmp_path, "Rook/a.txt")
    with pytest.raises(InputError, match=r"holds no audio \(1 other files\)"):
        find_recordings(tmp_path)


def test_no_labelled_audio(tmp_path):
    touch(tmp_path, "a.wav", "b.wav")
    with pytest.raises(InputError, match=r"no file is left of 2, all are skipped; the first: a\.wav: no label"):
        find_recordings(tmp_path)


# ------------------------------------------------------------------------------------------------ metadata


def test_metadata_of_the_contract(tmp_path):
    touch(tmp_path, "one/a.wav", "b.flac", "c_segment_1.wav", "c_segment_2.wav", "unused.wav")
    metadata = write_csv(
        tmp_path,
        "file,label,recording_id,recordist,licence\n"
        "one/a.wav,Rook,007,Ada  Lovelace,CC\n"
        "./b.flac, Jay ,xc12,unknown,CC\n"
        "c_segment_1.wav,Jay,,,CC\n"
        "c_segment_2.wav,Jay,,N/A,\n",
    )
    files, skipped = find_recordings(tmp_path, metadata)
    assert files == [
        SourceFile("one/a.wav", "Rook", "007", "Ada Lovelace", licence="CC"),
        SourceFile("b.flac", "Jay", "XC12", None, licence="CC"),
        SourceFile("c_segment_1.wav", "Jay", "c", None, licence="CC"),
        SourceFile("c_segment_2.wav", "Jay", "c", None),
    ]
    assert skipped == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (  # xeno-canto: `file` is an address
            "id,gen,sp,en,rec,file,file-name\n12,Corvus,frugilegus,Rook,Ada,https://x/12,a.wav\n",
            SourceFile("a.wav", "Corvus frugilegus", "XC12", "Ada"),
        ),
        ("id,gen,en,rec,file_name\n12,Corvus,Rook,Ada,a.wav\n", SourceFile("a.wav", "Rook", "XC12", "Ada")),
        (  # BirdCLEF
            "primary_label,scientific_name,common_name,author,filename\nrook1,Corvus f.,Rook,Ada,a.wav\n",
            SourceFile("a.wav", "rook1", "a", "Ada"),
        ),
        ("ebird_code,filename,recordist,xc_id\nrook1,a.wav,Ada,12\n", SourceFile("a.wav", "rook1", "XC12", "Ada")),
        ("scientific_name,common_name,filename\nCorvus f.,Rook,a.wav\n", SourceFile("a.wav", "Corvus f.", "a", None)),
        ("common_name,filename\nRook,a.wav\n", SourceFile("a.wav", "Rook", "a", None)),
        ("id,label,file\n3,Rook,a.wav\n", SourceFile("a.wav", "Rook", "a", None)),  # may count rows
        (" File , LABEL \na.wav,Rook\n", SourceFile("a.wav", "Rook", "a", None)),
        ("label,file\nNA,a.wav\n", SourceFile("a.wav", "NA", "a", None)),
    ],
)
def test_column_names_of_others(tmp_path, text, expected):
    touch(tmp_path, "a.wav")
    assert find_recordings(tmp_path, write_csv(tmp_path, text)) == ([expected], [])


def test_characters_that_nobody_sees_make_no_other_recordist(tmp_path):
    names = [
        "Lars Lachmann",
        "Lars Lachmann\u200b",
        "Lars\u00ad Lach\u200emann",
        "\ufeffLars Lachmann",
        "Lars Lachmann\x7f",
    ]
    rows = [f"{number}.wav,Rook,{name}" for number, name in enumerate(names)]
    touch(tmp_path, *(f"{number}.wav" for number in range(len(names))))
    files, _ = find_recordings(tmp_path, write_csv(tmp_path, "file,label,recordist\n" + "\n".join(rows) + "\n"))
    assert {file.recordist for file in files} == {"Lars Lachmann"}


def test_the_folder_of_birdclef(tmp_path):
    touch(tmp_path, "train_audio/rook1/XC12.ogg")
    metadata = write_csv(tmp_path, "filename,primary_label,author\nrook1/XC12.ogg,rook1,Ada\n")
    assert find_recordings(tmp_path, metadata)[0] == [SourceFile("train_audio/rook1/XC12.ogg", "rook1", "XC12", "Ada")]


def test_a_byte_order_mark_and_either_unicode_form(tmp_path):
    touch(tmp_path, unicodedata.normalize("NFD", "Grünspecht.wav"), unicodedata.normalize("NFC", "Möwe.wav"))
    text = f"file,label\n{unicodedata.normalize('NFC', 'Grünspecht.wav')},Grünspecht\n"
    text += f"{unicodedata.normalize('NFD', 'Möwe.wav')},{unicodedata.normalize('NFD', 'Möwe')}\n"
    labels = labels_of(tmp_path, write_csv(tmp_path, text, encoding="utf-8-sig"))
    assert labels == {
        unicodedata.normalize("NFD", "Grünspecht.wav"): "Grünspecht",
        unicodedata.normalize("NFC", "Möwe.wav"): unicodedata.normalize("NFC", "Möwe"),
    }


def test_bad_rows_are_reported_with_their_number(tmp_path):
    touch(tmp_path, "raw/a.wav", "raw/b.wav", "raw/c.wav", "raw/folder/d.wav", "outside.wav")
    raw_dir = tmp_path / "raw"
    metadata = write_csv(
        tmp_path,
        "file,label\n"
        "a.wav,Rook\n"
        "\n"  # row 3
        "missing.wav,Rook\n"
        "../outside.wav,Rook\n"
        f"{raw_dir}/c.wav,Rook\n"
        "folder/../../outside.wav,Rook\n"
        "folder,Rook\n"
        ",Rook\n"
        "c.wav,\n"
        "b.wav,Rook\n"
        "folder/../b.wav,Jay\n"
        "./a.wav,Rook\n" + "x" * 300 + ",Rook\n",
    )
    files, skipped = find_recordings(raw_dir, metadata)
    assert [f.path for f in files] == ["a.wav"]
    reasons = {skip.file: skip.reason for skip in skipped}
    climbs = "the path leaves the folder of recordings"
    assert reasons == {
        "missing.wav": "list.csv, row 4: no such file in the folder of recordings",
        "../outside.wav": f"list.csv, row 5: {climbs}",
        f"{raw_dir}/c.wav": "list.csv, row 6: the path is absolute; expected one relative to the folder of recordings",
        "folder/../../outside.wav": f"list.csv, row 7: {climbs}",
        "folder": "list.csv, row 8: it is a folder; expected a file",
        "list.csv, row 9": "list.csv, row 9: file empty",
        "c.wav": "list.csv, row 10: label empty",
        "b.wav": "list.csv gives it several labels: Jay, Rook",
        "a.wav": "list.csv names it 2 times: the first row is used",
        "x" * 300: "list.csv, row 14: cannot be read: File name too long",
    }


def test_short_rows_have_empty_fields(tmp_path):
    touch(tmp_path, "a.wav", "b.wav")
    files, skipped = find_recordings(tmp_path, write_csv(tmp_path, "file,label,recordist\na.wav,Rook\nb.wav\n"))
    assert files == [SourceFile("a.wav", "Rook", "a", None)]
    assert skipped == [Skipped("b.wav", "list.csv, row 3: label empty")]


def test_a_recording_with_two_labels_in_metadata_is_left_out(tmp_path):
    touch(tmp_path, "a.wav", "b.wav", "c.wav")
    metadata = write_csv(tmp_path, "file,label,recording_id\na.wav,Rook,1\nb.wav,Jay,1\nc.wav,Jay,2\n")
    files, skipped = find_recordings(tmp_path, metadata)
    assert [f.path for f in files] == ["c.wav"]
    assert [s.file for s in skipped] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("\n", "cannot be read|no rows"),
        ("file,label\n", "a header and no rows"),
        ("file,label\n,\n\n", "a header and no rows"),
        ("x,label\na.wav,Rook\n", "no column for the file: found x, label; expected one of file-name, file_name"),
        ("file,bird\na.wav,Rook\n", "no column for the label: found file, bird; .*gen with sp"),
        ("file,gen\na.wav,Corvus\n", "no column for the label"),
        ("file;label\na.wav;Rook\n", "separated by semicolons: save it with commas"),
        ("file\tlabel\na.wav\tRook\n", "separated by tabs"),
        ("file,label\na.wav,Rook\nb.wav,Rook, the black one\n", "cannot be read .*line 3"),
        ("file,label\na.wav,Rook,x\nb.wav,Rook,x\n", "more fields than its header"),
        ('file,label\n"a.wav,Rook\n', "cannot be read"),
        (
            "file,label\nb.wav,Rook\n",
            "no file is left of 1, all are skipped; the first: b.wav: list.csv, row 2: no such",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    touch(tmp_path, "a.wav")
    with pytest.raises(InputError, match=message):
        find_recordings(tmp_path, write_csv(tmp_path, text))


def test_a_table_that_is_not_utf8(tmp_path):
    touch(tmp_path, "a.wav")
    with pytest.raises(InputError, match="not UTF-8"):
        find_recordings(tmp_path, write_csv(tmp_path, "file,label\na.wav,Grünspecht\n", encoding="latin-1"))


def test_no_such_table(tmp_path):
    touch(tmp_path, "a.wav")
    with pytest.raises(InputError, match="no such file; expected a comma-separated table"):
        find_recordings(tmp_path, tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="no such file"):
        find_recordings(tmp_path, tmp_path)


# ---------------------------------------------------------------------------------------------- real birds


@pytest.mark.shared
@pytest.mark.parametrize(("name", "n_files", "n_labels"), [("birds20", 191, 20), ("birds25", 400, 25)])
def test_real_birds(shared_dir, name, n_files, n_labels):
    raw_dir = shared_dir / "data" / name
    with_table, skipped = find_recordings(raw_dir, raw_dir / "metadata.csv")
    assert len(with_table) == n_files
    assert skipped == []
    without_table, skipped = find_recordings(raw_dir)
    assert [(f.path, f.label) for f in sorted(without_table, key=lambda f: f.path)] == [
        (f.path, f.label) for f in sorted(with_table, key=lambda f: f.path)
    ]
    assert len({f.label for f in without_table}) == n_labels
    assert skipped == []
