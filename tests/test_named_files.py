"""Which sound file a name in a table means."""

import pytest

from utils.data.named_files import NO_FILE, match
from utils.data.recordings import AUDIO_SUFFIXES

PATHS = ["night.wav", "siteA/0630.wav", "siteA/dawn.flac", "siteB/0630.wav", "siteB/Grün.WAV", "siteB/rec.2025.wav"]
HERE = "/data/recordings"


def matched(*names, paths=PATHS, raw_dir=HERE):
    return match(names, paths, raw_dir, AUDIO_SUFFIXES)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("night.wav", "night.wav"),
        ("./night.wav", "night.wav"),
        ("NIGHT.WAV", "night.wav"),
        ("night.mp3", "night.wav"),  # it was converted since
        ("night", "night.wav"),  # a table that is named after it
        ("dawn.flac", "siteA/dawn.flac"),
        ("dawn", "siteA/dawn.flac"),
        ("rec.2025", "siteB/rec.2025.wav"),
        ("siteB/gru\u0308n.wav", "siteB/Grün.WAV"),
        ("siteA/0630.wav", "siteA/0630.wav"),
        ("recordings/siteB/0630.wav", "siteB/0630.wav"),
        ("/data/recordings/siteB/0630.wav", "siteB/0630.wav"),
        ("/home/ann/siteB/0630.wav", "siteB/0630.wav"),  # of another machine
        ("C:/Users/Ann/siteA/0630.wav", "siteA/0630.wav"),
        ("../siteA/0630.wav", "siteA/0630.wav"),
        ("/home/ann/night.wav", "night.wav"),
        ("tables/siteA/0630", "siteA/0630.wav"),
        ("tables/dawn", "siteA/dawn.flac"),
    ],
)
def test_a_name_means_a_file(name, path):
    assert matched(name) == ({name: path}, [])


@pytest.mark.parametrize("name", ["0630.wav", "0630", "/home/ann/0630.wav", "siteC/0630"])
def test_a_name_of_several_files_means_none(name):
    several = "several files have this name (siteA/0630.wav, siteB/0630.wav): give the path in the tables"
    assert matched(name) == ({}, [(name, several)])


@pytest.mark.parametrize("name", ["gone.wav", "siteC/night.wav", "siteB/dawn.flac", "site/night.wav", "night.txt"])
def test_a_name_of_no_file(name):
    assert matched(name) == ({}, [(name, NO_FILE)])


def test_the_name_of_a_table_may_have_the_folders_of_the_tables_before_it():
    names = ["audacity/night.wav", "audacity/siteB/0630.wav", "audacity/rec.2025.wav"]
    wanted = ["night.wav", "siteB/0630.wav", "siteB/rec.2025.wav"]
    assert match(names, PATHS, HERE, AUDIO_SUFFIXES, names) == (dict(zip(names, wanted, strict=True)), [])


def test_several_names_of_one_file():
    names = ("dawn", "dawn.flac", "siteA/dawn.flac", "/home/ann/siteA/dawn.flac")
    assert matched(*names[:3]) == (dict.fromkeys(names[:3], "siteA/dawn.flac"), [])
    assert matched(*names) == (dict.fromkeys(names, "siteA/dawn.flac"), [])
    names = ("siteA/dawn", "/data/recordings/siteA/dawn.flac", "D:/bats/siteA/dawn.flac")
    assert matched(*names) == (dict.fromkeys(names, "siteA/dawn.flac"), [])


def test_of_two_folders_of_another_machine_the_better_one_is_used_and_of_equals_none():
    path_of, problems = matched("/home/siteA/0630.wav", "/home/siteC/0630.wav", paths=PATHS[:2])
    assert path_of == {"/home/siteA/0630.wav": "siteA/0630.wav"}
    ((name, problem),) = problems
    assert name == "/home/siteC/0630.wav" and "it may be siteA/0630.wav, but so may /home/siteA/0630.wav" in problem
    path_of, problems = matched("/home/x/night.wav", "/home/y/night.wav")
    assert path_of == {} and [name for name, _ in problems] == ["/home/x/night.wav", "/home/y/night.wav"]


def test_a_file_in_the_folder_itself_comes_before_those_in_its_folders():
    paths = ["0630.wav", *PATHS]
    assert matched("0630.wav", paths=paths)[0] == {"0630.wav": "0630.wav"}
    assert matched("siteA/0630.wav", paths=paths)[0] == {"siteA/0630.wav": "siteA/0630.wav"}
