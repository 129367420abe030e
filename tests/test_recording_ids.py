"""Which files are pieces of one recording: the forms that programs leave, and names that only look like them."""

import pytest

from utils.data.recording_ids import name_recordings


def groups_of(paths, labels=None):
    """Return the sets of files that share a recording, those of one file left out."""
    names = name_recordings(paths, labels or [path.split("/")[0] for path in paths])
    groups = {}
    for path, name in zip(paths, names, strict=True):
        groups.setdefault(name.recording_id, set()).add(path)
    return [group for group in groups.values() if len(group) > 1]


MOMENTS = ["20250601_063000", "20250601_070000", "20250602_063000"]
STYLES = {
    "BirdNET-Analyzer": lambda name, i: f"0.9{i}_{i}_{name}_{3 * i}.0s_{3 * i + 3}.0s",
    "opensoundscape": lambda name, i: f"{name}_{3 * i}.0s_{3 * i + 3}.0s",
    "decimals": lambda name, i: f"{name}_{3 * i}.0_{3 * i + 3}.0",
    "whole seconds": lambda name, i: f"{name}_{3 * i}s-{3 * i + 3}s",
    "start": lambda name, i: f"{name}_{3 * i}.00s",
    "milliseconds": lambda name, i: f"{name}_{3000 * i}_{3000 * i + 3000}",
    "ffmpeg": lambda name, i: f"{name}_{i:03d}",
    "ffmpeg from 1": lambda name, i: f"{name}-{i + 1:02d}",
    "row id": lambda name, i: f"{name}_{5 * i + 5}",
    "words": lambda name, i: f"{name}_chunk_{i}",
    "nested words": lambda name, i: f"{name}_part1_segment{i}",
    "augmented": lambda name, i: f"{name}_aug{i}",
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("names", [MOMENTS, ["SM4_20250601_063000", "SM4_20250601_070000"], ["ML123456", "ML123457"]])
def test_pieces_of_a_recording_share_its_id(style, names):
    paths = [f"Rook/{STYLES[style](name, i)}.wav" for name in names for i in range(4)]
    groups = groups_of(paths)
    assert sorted(map(len, groups)) == [4] * len(names)
    assert all(len({name for path in group for name in names if name in path}) == 1 for group in groups)


@pytest.mark.parametrize("style", ["BirdNET-Analyzer", "opensoundscape", "milliseconds", "row id", "words"])
def test_pieces_of_recordings_with_any_name(style):
    paths = [f"Rook/{STYLES[style](name, i)}.wav" for name in ("morning", "evening") for i in range(4)]
    assert sorted(map(len, groups_of(paths))) == [4, 4]


@pytest.mark.parametrize(
    "paths",
    [
        ["Rook/20250601_063000001.wav", "Rook/20250601_063000002.wav"],  # sox: newfile : restart
        ["Rook/rook.wav", "Rook/rook (1).wav", "Rook/rook (2).wav"],
        ["Rook/rook.wav", "Rook/rook - Copy.wav", "Rook/rook - Copy (2).wav", "Rook/rook copy.wav"],
        ["Rook/2025-06-01T06-30-00_1.wav", "Rook/2025-06-01T06-30-00_7.wav"],
        ["Rook/XC123_5.ogg", "Rook/XC123_10.ogg", "Jay/../Rook/0.9_1_XC123_0.0s_3.0s.wav"],
        ["Rook/24F31905_20250601_063000_0.0s_5.0s.wav", "Rook/24F31905_20250601_063000_5.0s_10.0s.wav"],
    ],
)
def test_other_forms_of_one_recording(paths):
    assert groups_of(paths, ["Rook"] * len(paths)) == [set(paths)]


@pytest.mark.parametrize("piece", ["{:03d}", "segment_{}", "{0}.0s_{1}.0s", "rec{2}_{0}", "chunk{}"])
def test_a_folder_a_recording(piece):
    paths = [
        f"{label}/{label[0]}rec{r}/{piece.format(i, i + 1, r).replace('rec', f'{label[0]}rec')}.wav"
        for label in ("Rook", "Jay")
        for r in (1, 2, 3)
        for i in (0, 1, 2)
    ]
    groups = groups_of(paths)
    assert sorted(map(len, groups)) == [3] * 6
    assert all(len({path.rpartition("/")[0] for path in group}) == 1 for group in groups)


@pytest.mark.parametrize(
    "paths",
    [
        [f"Rook/{moment}.wav" for moment in MOMENTS],
        [f"Rook/S4A01234_{moment}.wav" for moment in MOMENTS],
        ["Rook/20250601_0630.wav", "Rook/20250601_0640.wav", "Rook/20250601_0650.wav"],
        ["Rook/2025-06-01_06-30-00.wav", "Rook/2025-06-01_06-30-05.wav", "Rook/2025-06-01_06-30-10.wav"],
        ["Rook/12345678_20250601_0630.wav", "Rook/12345678_20250601_0640.wav"],
        ["Rook/XC1.mp3", "Rook/XC2.mp3", "Rook/XC3.mp3"],
        [f"Rook/rook_{i}.wav" for i in range(1, 9)],
        [f"Rook/rook ({i}).wav" for i in range(1, 9)],  # many files renamed at once by Windows
        [f"Rook/{i}.wav" for i in range(1, 9)],
        [f"Rook/rook_{i}.wav" for i in range(0, 20, 2)] + [f"Jay/jay_{i}.wav" for i in range(1, 20, 2)],
        [f"Rook/ZOOM{i:04d}.wav" for i in range(1, 9)],
        [f"Rook/240601_{i:04d}.wav" for i in range(1, 9)],  # date and number in the day
        [
            f"{label}/{day}_{i}.wav"
            for label in ("Rook", "Jay")
            for day in ("31122024", "12312024")
            for i in (1, 2, 3, 4)
        ],
        ["Rook/31122024_0630.wav", "Rook/31122024_0640.wav", "Rook/31122024_0650.wav"],
        [f"{label}/song/{i}.wav" for label in ("Rook", "Jay") for i in (1, 2)]
        + [f"{label}/call/{i}.wav" for label in ("Rook", "Jay") for i in (1, 2)],
        [f"Rook/{year}/{i}.wav" for year in (2021, 2022) for i in (1, 2, 3)],
        [f"{label}/{i}.wav" for label in ("Rook1", "Jay2", "Wren3") for i in (1, 2, 3)],
        ["Rook/site_10_30.wav", "Rook/site_11_30.wav"],  # time of day
        ["Rook/grid_1_2.wav", "Rook/grid_2_3.wav"],
        ["Rook/20250601/0630.wav", "Rook/20250601/0700.wav", "Rook/20250602/0630.wav"],
        ["Rook/counterpart2.wav", "Rook/counterpart3.wav"],
    ],
)
def test_names_that_differ_otherwise_are_recordings(paths):
    assert groups_of(paths) == []


def test_pieces_under_several_labels_have_one_origin_and_are_kept_apart():
    paths = ["Rook/0.9_1_tape_0.0s_3.0s.wav", "Jay/0.8_2_tape_3.0s_6.0s.wav"]
    rook, jay = name_recordings(paths, ["Rook", "Jay"])
    assert (rook.recording_id, jay.recording_id) == ("Rook/tape", "Jay/tape")
    assert rook.origin == jay.origin == "tape"
    paths = ["clips/20250601_063000_000.wav", "clips/20250601_063000_001.wav"]
    rook, jay = name_recordings(paths, ["Rook", "Jay"])  # by a table
    assert (rook.recording_id, jay.recording_id) == ("clips/20250601_063000 (Rook)", "clips/20250601_063000 (Jay)")
    assert rook.origin == jay.origin is not None


def test_pieces_of_other_recordings_have_no_common_origin():
    rook, jay = name_recordings(["Rook/tape_part1.wav", "Jay/tape_part1.wav"], ["Rook", "Jay"])
    assert rook.origin is jay.origin is None


def test_joined_pieces_are_said_and_so_are_numbers_that_may_be_pieces(caplog):
    with caplog.at_level("INFO"):
        name_recordings(["Rook/tape_0.0s_3.0s.wav", "Rook/tape_3.0s_6.0s.wav"], ["Rook"] * 2)
    assert "2 files are pieces of 1 recording by their names" in caplog.text
    caplog.clear()
    name_recordings([f"Rook/rook_{i}.wav" for i in range(5)], ["Rook"] * 5)
    assert "5 files in 1 series differ only by a number, such as Rook/rook_0 and Rook/rook_1" in caplog.text
    assert "recording_id" in caplog.text
    caplog.clear()
    name_recordings([f"Rook/20250601_{hour:02d}0000.wav" for hour in range(24)], ["Rook"] * 24)
    name_recordings([f"Rook/ML{i}.wav" for i in range(1000, 9000, 400)], ["Rook"] * 20)
    name_recordings([f"Rook/XC{i}.mp3" for i in range(20)], ["Rook"] * 20)
    assert not [record for record in caplog.records if record.levelname != "INFO"]
