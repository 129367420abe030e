"""Tags of sound files: what xeno-canto writes, what is left of it after a conversion, and what others write."""

import errno

import mutagen
import numpy as np
import pytest
from mutagen.flac import FLAC
from mutagen.id3 import COMM, ID3, TALB, TIT2, TPE1, WCOP, WOAF
from mutagen.oggvorbis import OggVorbis

from tests.sounds import song, write
from utils.data.tags import Tags, read_tags

LICENCE = "https://creativecommons.org/licenses/by-nc-sa/4.0/"


def xeno_canto(recordist="Lars Lachmann", number=1075227):
    """Return frames as xeno-canto writes them."""
    return [
        TIT2(encoding=3, text="Northern Goshawk (Accipiter gentilis)"),
        TPE1(encoding=3, text=recordist),
        TALB(encoding=3, text="xeno-canto"),
        COMM(encoding=3, lang="eng", desc="", text=f"XC{number} © {recordist} // xeno-canto.org"),
        WOAF(url=f"https://xeno-canto.org/{number}"),
        WCOP(url=LICENCE),
    ]


def tagged(path, frames, **how):
    """Write an mp3 with tags."""
    write(path, song(0.5, 16000), 16000, format="MP3")
    tags = ID3()
    for frame in frames:
        tags.add(frame)
    tags.save(path, **how)
    return path


@pytest.mark.parametrize("version", [3, 4])
def test_tags_of_xeno_canto(tmp_path, version):
    path = tagged(tmp_path / "a.mp3", xeno_canto("Jérôme Fischer"), v2_version=version)
    assert read_tags(path) == Tags("Jérôme Fischer", "XC1075227", LICENCE)


def test_the_page_goes_before_ids_in_comments(tmp_path):
    comment = COMM(encoding=3, lang="eng", desc="a", text="same bird as XC1 and XC2")
    assert read_tags(tagged(tmp_path / "a.mp3", [*xeno_canto(), comment])).recording_id == "XC1075227"
    frames = [frame for frame in xeno_canto() if not isinstance(frame, WOAF)]
    assert read_tags(tagged(tmp_path / "b.mp3", frames)).recording_id == "XC1075227"


def test_artists_of_other_tags_are_no_recordists(tmp_path):
    path = tagged(tmp_path / "a.mp3", [TPE1(encoding=3, text="Voice Memos"), TIT2(encoding=3, text="XC12")])
    assert read_tags(path) == Tags(other_artist="Voice Memos")


@pytest.mark.parametrize(
    ("recordist", "expected"),
    [("Ada Lovelace", "Ada Lovelace"), ("Bartholomew Featherstonehaugh-Cholmondeley", None)],
)
def test_a_name_that_id3v1_may_have_cut_is_not_trusted(tmp_path, recordist, expected):
    path = tagged(tmp_path / "a.mp3", xeno_canto(recordist), v1=2)
    assert read_tags(path).recordist == recordist
    mutagen.id3.delete(path, delete_v1=False)
    assert ID3(path).version[0] == 1
    assert read_tags(path).recordist == expected


@pytest.mark.parametrize(("suffix", "kind"), [(".flac", FLAC), (".ogg", OggVorbis)])
def test_tags_that_a_conversion_keeps(tmp_path, suffix, kind):
    path = write(tmp_path / f"a{suffix}", song(0.5, 16000), 16000)
    file = kind(path)
    file["ARTIST"], file["comment"], file["license"] = "Ada", ["cut", "XC12 // xeno-canto.org"], LICENCE
    file.save()
    assert read_tags(path) == Tags("Ada", "XC12", LICENCE)


def test_what_cannot_be_printed_is_left_out(tmp_path):
    path = tagged(tmp_path / "a.mp3", xeno_canto("Ada\x1b[31m\u202e Love\nlace"))
    assert read_tags(path).recordist == "Ada[31m Love lace"


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg"])
def test_a_file_without_tags_says_nothing(tmp_path, name):
    assert read_tags(write(tmp_path / name, song(0.5, 16000), 16000)) == Tags()


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".ogg", ".m4a", ".wma", ".opus"])
def test_damaged_tags_say_nothing(tmp_path, suffix):
    good = {".flac": "FLAC", ".ogg": "OGG"}.get(suffix, "MP3")
    path = tmp_path / f"a{suffix}"
    write(path, song(0.5, 16000), 16000, format=good)
    if good == "MP3":
        tagged(path, xeno_canto())
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, 300, 5):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(damaged))])
        assert isinstance(read_tags(path), Tags)


def test_a_fault_of_the_machine_is_not_a_file_without_tags(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        read_tags(tmp_path / "gone.mp3")
    path = tagged(tmp_path / "a.mp3", xeno_canto())

    def fail(file, *args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mutagen.id3._file.read_full", fail, raising=False)
    monkeypatch.setattr("mutagen.id3._tags.read_full", fail, raising=False)
    with pytest.raises(OSError, match="Input/output"):
        read_tags(path)
