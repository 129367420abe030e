"""Every sample of every file: compared with FFmpeg itself (PyAV), with hand-made headers and with what was written."""

import errno
import io
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from tests.sounds import encode, song, write
from utils.core.errors import InputError
from utils.data import containers, sources

RATE_HZ = 16000


def read(path):
    """Return rate, samples of shape (channels, n) of one piece, and the warnings."""
    pieces, warnings = read_pieces(path)
    assert len(pieces) == 1
    return (*pieces[0], warnings)


def read_pieces(path):
    """Return rate and samples of all stretches of one rate and number of channels, and the warnings."""
    pieces = []
    with sources.opened(path) as view, sources.source_of(view) as source:
        for rate, samples in source.blocks():
            if pieces and (pieces[-1][0], len(pieces[-1][1])) == (rate, len(samples)):
                pieces[-1] = rate, np.concatenate([pieces[-1][1], samples], axis=1)
            else:
                pieces.append((rate, samples.copy()))
    return pieces, source.warnings


def by_ffmpeg(path):
    """Return all of a planar float stream as FFmpeg decodes it."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def speech_like(seconds=12, rate_hz=44100):
    """Return a sound that is loud in its first second: the first frames of a variable bit rate then mislead."""
    samples = 0.001 * np.random.default_rng(0).standard_normal(round(seconds * rate_hz))
    samples[:rate_hz] *= 200
    return samples[:, None]


# ------------------------------------------------------------------------------------------------ mp3


ID3 = b"ID3\x03\0\0" + bytes([0, 0, 64, 0]) + b"APIC" + bytes(64 * 128 - 4)
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 50_032, 1, 0x80000000) + bytes(8)


@pytest.mark.parametrize("seconds", [1, 6, 40])
@pytest.mark.parametrize("before", [b"", ID3, ID3 + ID3], ids=["bare", "ID3v2", "two ID3v2"])
@pytest.mark.parametrize("with_tag", [True, False], ids=["Xing", "no Xing"])
def test_all_of_an_mp3_of_variable_bit_rate(tmp_path, seconds, before, with_tag):
    # libsndfile 1.2.2 ends one without a Xing tag at an estimate, and finds no sound behind some tags.
    path = tmp_path / "a.mp3"
    sound = encode(speech_like(seconds), 44100, "mp3", "libmp3lame", quality=4, xing=with_tag)
    path.write_bytes(before + sound)
    rate, samples, warnings = read(path)
    np.testing.assert_array_equal(samples, by_ffmpeg(path))
    assert (rate, warnings) == (44100, [])
    assert seconds * 44100 <= samples.shape[1] <= seconds * 44100 + (0 if with_tag else 4 * 1152)


@pytest.mark.parametrize(
    "behind",
    [
        b"TAG" + bytes(125),
        bytes(50_000) + APE,
        bytes(50_000) + APE + b"TAG" + bytes(125),
        b"LYRICSBEGIN" + bytes(1000) + b"001011LYRICS200",
        ID3[:10] + bytes(8192) + b"3DI" + ID3[3:10],
    ],
    ids=["ID3v1", "APE", "APE and ID3v1", "Lyrics3", "ID3v2"],
)
def test_tags_behind_an_mp3_are_neither_sound_nor_damage(tmp_path, behind):
    path = write(tmp_path / "a.mp3", song(2, 44100), 44100)
    whole = by_ffmpeg(path)
    path.write_bytes(path.read_bytes() + behind)
    _, samples, warnings = read(path)
    np.testing.assert_array_equal(samples, whole)
    assert warnings == []


def test_damage_in_the_middle_of_an_mp3_is_passed_over_and_told(tmp_path):
    path = write(tmp_path / "a.mp3", song(8, 44100), 44100)
    data = bytearray(path.read_bytes())
    data[40_000:42_000] = bytes(2000)
    path.write_bytes(data)
    _, samples, warnings = read(path)
    assert 7.5 * 44100 < samples.shape[1] < 8 * 44100
    assert (
        len(warnings) == 1
        and warnings[0].startswith("damaged at ")
        and "packets of it cannot be decoded" in warnings[0]
    )


def test_an_mp3_whose_rate_and_channels_change(tmp_path):
    parts = [write(tmp_path / f"{n}.mp3", song(2, rate, n), rate).read_bytes() for n, rate in ((1, 44100), (2, 48000))]
    path = tmp_path / "a.mp3"
    path.write_bytes(b"".join(parts))
    pieces, _ = read_pieces(path)
    lengths = {(rate, len(samples)): samples.shape[1] / rate for rate, samples in pieces}
    assert lengths[44100, 1] == pytest.approx(2, abs=0.05) and lengths[48000, 2] == pytest.approx(2, abs=0.05)


# ------------------------------------------------------------------------------------------------ Ogg


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("kinds", [[(48000, 1)] * 5, [(16000, 1), (48000, 1), (48000, 2)]], ids=["alike", "not alike"])
def test_every_stream_of_an_ogg_file(tmp_path, subtype, kinds):
    # FFmpeg 8.1.2 itself refuses a chain whose parameters change, and leaves samples too many where they do not.
    links, expected = [], []
    for seed, (rate, n_channels) in enumerate(kinds):
        link = write(tmp_path / f"{seed}.ogg", song(2 + seed / 2, rate, n_channels, seed), rate, subtype=subtype)
        links.append(link.read_bytes())
        expected.append(by_ffmpeg(link))
    path = tmp_path / "chain.ogg"
    path.write_bytes(b"".join(links))
    pieces, warnings = read_pieces(path)
    assert warnings == []
    one_after_the_other = [channel for _, samples in pieces for channel in [samples[0]]]
    np.testing.assert_array_equal(np.concatenate(one_after_the_other), np.concatenate([e[0] for e in expected]))


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1, 3, 20])
@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_a_short_vorbis_file_has_its_own_length(tmp_path, seconds, rate_hz):
    # FFmpeg 8.1.2 decodes 8,192 samples of 0.5 s at 16 kHz: it does not trim a stream of one page.
    path = write(tmp_path / "a.ogg", song(seconds, rate_hz), rate_hz)
    _, samples, warnings = read(path)
    whole, _ = soundfile.read(path, dtype="float32")
    assert samples.shape == (1, round(seconds * rate_hz)) and warnings == []
    np.testing.assert_allclose(samples[0], whole, atol=1e-4)


def test_an_ogg_file_that_breaks_off_or_has_a_hole(tmp_path):
    path = write(tmp_path / "a.ogg", song(30, RATE_HZ), RATE_HZ)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _, samples, warnings = read(path)
    assert 13 * RATE_HZ < samples.shape[1] < 17 * RATE_HZ
    assert warnings == [f"breaks off: the file ends within a page, {samples.shape[1] / RATE_HZ:.2f} s could be decoded"]
    path.write_bytes(data[:40_000] + bytes(100) + data[40_100:])
    _, samples, warnings = read(path)
    assert 25 * RATE_HZ < samples.shape[1] < 30 * RATE_HZ
    assert len(warnings) == 1 and "s are missing in it" in warnings[0]


# ------------------------------------------------------------------------------- phones and other programs


OTHERS = [
    ("m4a", "ipod", "aac", 44100),
    ("aac", "adts", "aac", 44100),
    ("m4b", "mp4", "alac", 44100),
    ("3gp", "3gp", "libopencore_amrnb", 8000),
    ("amr", "amr", "libopencore_amrnb", 8000),
    ("wma", "asf", "wmav2", 44100),
    ("webm", "webm", "libopus", 48000),
    ("mka", "matroska", "aac", 44100),
    ("wv", "wv", "wavpack", 44100),
    ("ac3", "ac3", "ac3", 44100),
]


@pytest.mark.parametrize(("suffix", "container", "codec", "rate_hz"), OTHERS, ids=[each[0] for each in OTHERS])
def test_what_phones_record(tmp_path, suffix, container, codec, rate_hz):
    sound = song(3, rate_hz)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encode(sound, rate_hz, container, codec))
    rate, samples, warnings = read(path)
    assert (rate, warnings) == (rate_hz, [])
    assert -2048 < samples.shape[1] - len(sound) <= 0.1 * rate_hz  # the encoder of wma leaves out its last frame
    # The same sound, up to the codec's delay and losses: its spectrum peaks where the whistle is.
    spectra = [np.abs(np.fft.rfft(x[:rate_hz] * np.hanning(rate_hz))) for x in (samples[0], sound[:, 0])]
    assert np.corrcoef(*spectra)[0, 1] > 0.9


def test_the_name_of_a_file_decides_nothing(tmp_path):
    for name, data in (("a.wav", encode(song(1, 44100), 44100, "ipod", "aac")), ("a.mp3", None), ("b.ogg", None)):
        if data is None:
            data = write(tmp_path / "real.flac", song(1, 44100), 44100).read_bytes()
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name)[1].shape[1] >= 44100


def test_a_play_list_opens_no_other_file(tmp_path):
    write(tmp_path / "secret.mp3", song(1, 44100), 44100)
    for name, text in (
        ("a.mp3", "ffconcat version 1.0\nfile secret.mp3\n"),
        ("b.mp3", "#EXTM3U\n#EXTINF:1,\nsecret.mp3\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(sources.Undecodable, match="no sound that libsndfile or FFmpeg can read"):
            read(tmp_path / name)


def test_a_video_without_sound_has_no_sound(tmp_path):
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    (tmp_path / "a.mkv").write_bytes(file.getvalue())
    with pytest.raises(sources.Undecodable, match="no sound in it"):
        read(tmp_path / "a.mkv")


def test_an_m4a_that_breaks_off_is_told(tmp_path):
    data = encode(song(10, 44100), 44100, "ipod", "aac", {"movflags": "faststart"})
    (tmp_path / "a.m4a").write_bytes(data[: len(data) // 2])
    _, samples, warnings = read(tmp_path / "a.m4a")
    assert 4 * 44100 < samples.shape[1] < 6 * 44100
    assert "its header promises 10.0" in warnings[-1]


def test_nothing_is_printed_about_damage(tmp_path, capfd):
    test_damage_in_the_middle_of_an_mp3_is_passed_over_and_told(tmp_path)
    test_an_ogg_file_that_breaks_off_or_has_a_hole(tmp_path)
    assert capfd.readouterr() == ("", "")


# ----------------------------------------------------------------------------------- headers that are wrong


def chunk(name, content, size=None, order="<"):
    return name + struct.pack(order + "I", len(content) if size is None else size) + content + bytes(len(content) % 2)


def wav(content, size, behind=b"", bits=16, tag=1, n_channels=1, magic=b"RIFF", ds64=None):
    """Return a WAV whose data chunk claims `size` bytes."""
    width = bits // 8 * n_channels
    fmt = struct.pack("<HHIIHH", tag, n_channels, RATE_HZ, RATE_HZ * width, width, bits)
    first = b"" if ds64 is None else chunk(b"ds64", struct.pack("<QQQI", 0, ds64, 0, 0))
    rest = b"WAVE" + first + chunk(b"fmt ", fmt) + b"data" + struct.pack("<I", size) + content + behind
    return magic + struct.pack("<I", min(len(rest), 2**32 - 1)) + rest


SOUND = (song(3, RATE_HZ)[:, 0] * 32768).astype("<i2")
BYTES = SOUND.tobytes()
LIST = chunk(b"LIST", b"INFOICMT" + struct.pack("<I", 8) + b"a night\0")
BEXT = chunk(b"bext", bytes(602))
AU = b".snd" + struct.pack(">IIIII", 24, 0, 3, RATE_HZ, 1)
HEADERS = {
    "right": (wav(BYTES, len(BYTES)), None),
    "right, chunks behind": (wav(BYTES, len(BYTES), LIST + BEXT + chunk(b"id3 ", bytes(9))), None),
    "right, unknown chunk behind": (wav(BYTES, len(BYTES), chunk(b"abcd", bytes(40_000))), None),
    "right, zeros behind": (wav(BYTES, len(BYTES), bytes(40_000)), None),
    "right, ID3v1 behind": (wav(BYTES, len(BYTES), b"TAG" + bytes(40_000)), None),
    "odd, chunk without its pad": (wav(BYTES, len(BYTES), LIST), None),
    "a pipe: 4 GiB": (wav(BYTES, 2**32 - 1), None),
    "a pipe: 2 GiB": (wav(BYTES, 0x7FFFF000 - 36), None),
    "never closed: 0": (wav(BYTES, 0), None),
    "too small": (wav(BYTES, 32_000), "longer than its header promises: it promises 1.00 s, 3.00 s are there and used"),
    "half a copy": (wav(BYTES, 20 * 32_000), "breaks off: its header promises 20.00 s, 3.00 s could be decoded"),
    "RF64": (wav(BYTES, 2**32 - 1, LIST, magic=b"RF64", ds64=len(BYTES)), None),
    "BW64": (wav(BYTES, 2**32 - 1, magic=b"BW64", ds64=len(BYTES)), None),
    "RF64 too small": (wav(BYTES, 2**32 - 1, magic=b"RF64", ds64=32_000), "longer than its header promises"),
    "AU right": (AU[:8] + struct.pack(">I", len(BYTES)) + AU[12:] + SOUND.astype(">i2").tobytes(), None),
    "AU unknown": (AU[:8] + b"\xff" * 4 + AU[12:] + SOUND.astype(">i2").tobytes(), None),
    "AU too small": (AU[:8] + struct.pack(">I", 32_000) + AU[12:] + SOUND.astype(">i2").tobytes(), "longer than"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_all_that_is_there_is_read_whatever_the_header_says(tmp_path, name):
    data, warning = HEADERS[name]
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    rate, samples, warnings = read(path)
    assert rate == RATE_HZ
    np.testing.assert_array_equal(samples[0] * 32768, SOUND)
    assert [text[: len(warning or "")] for text in warnings] == ([] if warning is None else [warning])


@pytest.mark.parametrize(
    ("suffix", "subtype", "id_of_data", "field"),
    [
        *[("aiff", subtype, b"SSND", (">I", 4, 8)) for subtype in ("PCM_16", "PCM_24", "FLOAT")],
        *[("caf", subtype, b"data", (">q", 4, 4)) for subtype in ("PCM_16", "PCM_24", "DOUBLE")],
        *[("w64", subtype, b"data", ("<Q", 16, 24)) for subtype in ("PCM_16", "PCM_32", "FLOAT")],
        *[("wav", subtype, b"data", ("<I", 4, 0)) for subtype in ("PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW")],
        ("rf64", "PCM_16", b"ds64", ("<Q", 16, 0)),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_sizes_that_are_too_small_in_every_format(tmp_path, suffix, subtype, id_of_data, field, n_channels):
    path = write(tmp_path / f"a.{suffix}", song(3, RATE_HZ, n_channels), RATE_HZ, subtype=subtype)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    data = bytearray(path.read_bytes())
    kind, offset, more = field
    width = sources.LINEAR_BYTES[subtype] * n_channels
    struct.pack_into(kind, data, data.index(id_of_data) + offset, RATE_HZ * width + more)
    path.write_bytes(data)
    _, samples, warnings = read(path)
    np.testing.assert_array_equal(samples.T, whole)
    assert warnings == ["longer than its header promises: it promises 1.00 s, 3.00 s are there and used"]


def test_a_recording_of_more_than_4_gib_whose_size_wrapped(tmp_path):
    # Sparse: it takes a few kB of the disk. Noise is at its start and behind the 4 GiB.
    path = tmp_path / "a.wav"
    seconds = (2**32 + len(BYTES)) // 32_000
    head = wav(b"", len(BYTES) % 2**32)
    with path.open("wb") as file:
        file.write(head + BYTES)
        file.seek(len(head) + 2**32)
        file.write(BYTES + LIST)
    with sources.opened(path) as view:
        data = containers.find_data(view)
    assert data == containers.Data(len(head), len(BYTES), 2**32 + len(BYTES), "little")
    assert data.bytes // 32_000 == seconds


def test_an_empty_recording_with_chunks_behind_is_empty(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(b"", 0, LIST + BEXT))
    assert read_pieces(path)[0] == []


def test_a_flac_that_was_streamed_has_no_length_and_breaks_nowhere_off(tmp_path):
    path = write(tmp_path / "a.flac", SOUND, RATE_HZ)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of the number of samples in STREAMINFO
    data[22:26] = bytes(4)
    path.write_bytes(data)
    _, samples, warnings = read(path)
    np.testing.assert_array_equal(samples[0] * 32768, SOUND)
    assert warnings == []


def test_a_flac_behind_an_id3_tag(tmp_path):
    path = write(tmp_path / "a.flac", SOUND, RATE_HZ)
    path.write_bytes(ID3 + path.read_bytes())
    np.testing.assert_array_equal(read(path)[1][0] * 32768, SOUND)


# --------------------------------------------------------------------------------- faults of the machine


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_fault_of_the_machine_when_a_file_is_opened(tmp_path, monkeypatch, code):
    path = write(tmp_path / "a.wav", SOUND, RATE_HZ)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(type(path), "open", fail)
    with pytest.raises(
        InputError, match=f"a.wav cannot be read any more .{os.strerror(code)}.*run the same command again"
    ):
        read(path)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg", "a.m4a"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_disk_that_goes_away_while_a_file_is_read(tmp_path, monkeypatch, name, after):
    path = tmp_path / name
    if name == "a.m4a":
        path.write_bytes(encode(song(20, 44100), 44100, "ipod", "aac"))
    else:
        write(path, song(20, 44100), 44100)
    preadv, n_reads = os.preadv, []

    def fail(*args):
        n_reads.append(args)
        if len(n_reads) > after:
            raise OSError(errno.ESTALE, "Stale file handle")
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(InputError, match="Stale file handle"):
        read(path)


def test_a_disk_that_goes_away_while_libsndfile_reads(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", np.tile(SOUND, 30), RATE_HZ)
    with sources.opened(path) as view, sources.source_of(view) as source:
        blocks = source.blocks()
        next(blocks)
        other = os.open(tmp_path, os.O_RDONLY)  # a folder: reading it is an error of the system
        os.dup2(other, view.descriptor)
        os.close(other)
        with pytest.raises(InputError, match="cannot be read any more"):
            list(blocks)


def test_timestamps_of_frames_are_not_needed(tmp_path):
    path = tmp_path / "a.aac"  # ADTS has none
    path.write_bytes(encode(song(2, 44100), 44100, "adts", "aac"))
    assert read(path)[2] == []
    assert Fraction(read(path)[1].shape[1], 1024).denominator == 1
