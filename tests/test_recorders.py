"""When a recording was started, from files made by hand as recorders and their descriptions of formats have them."""

import struct

import pytest

from tests.sounds import song, write
from utils.data.recorders import Start, read_start

MOTH = "by AudioMoth 24F319055FDF2F5B at medium gain setting while battery state was 4.2V and temperature was 18.7C."


def wav_with(path, *chunks):
    """Write a WAV with chunks, before the sound and behind it in turns."""
    path = write(path, song(1, 16000), 16000)
    data = path.read_bytes()
    made = [name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for name, content in chunks]
    fmt = 12 + 8 + 16
    path.write_bytes(data[:fmt] + b"".join(made[::2]) + data[fmt:] + b"".join(made[1::2]))
    return path


def comment(text):
    content = text.encode() + b"\0"
    content += bytes(len(content) % 2)
    return b"LIST", b"INFOIART" + struct.pack("<I", 4) + b"me\0\0" + b"ICMT" + struct.pack("<I", len(content)) + content


def guan(*lines):
    return b"guan", "\n".join(["GUANO|Version: 1.0", *lines]).encode()


def bext(text):
    return b"bext", bytes(320) + text.encode() + bytes(264)


@pytest.mark.parametrize(
    ("zone", "time"),
    [
        ("UTC", "2026-02-24T19:17:30+00:00"),
        ("UTC+2", "2026-02-24T19:17:30+02:00"),
        ("UTC-3:30", "2026-02-24T19:17:30-03:30"),
        ("UTC+5:30", "2026-02-24T19:17:30+05:30"),
    ],
)
def test_an_audiomoth_says_when_with_its_offset(tmp_path, zone, time):
    path = wav_with(tmp_path / "20260224_191730.WAV", comment(f"Recorded at 19:17:30 24/02/2026 ({zone}) {MOTH}"))
    assert read_start(path) == Start(time, "AudioMoth", False)


@pytest.mark.parametrize(
    "how",
    [
        "Amplitude threshold was 512 with 1s minimum trigger duration.",
        "Frequency trigger (8.0kHz and window length of 256 samples) threshold was 10.0% with 1s minimum duration.",
    ],
)
def test_a_threshold_recording_is_glued(tmp_path, how):
    path = wav_with(tmp_path / "a.wav", comment(f"Recorded at 19:17:30 24/02/2026 (UTC) {MOTH} {how}"))
    assert read_start(path).is_glued
    plain = wav_with(tmp_path / "b.wav", comment(f"Recorded at 19:17:30 24/02/2026 (UTC) {MOTH}"))
    assert not read_start(plain).is_glued


def test_guano_goes_before_comment_and_name(tmp_path):
    name = "S4A1_20250601_063000.wav"
    moth = comment(f"Recorded at 19:17:30 24/02/2026 (UTC) {MOTH}")
    aware = wav_with(tmp_path / name, moth, guan("Timestamp: 2025-06-01T06:30:00+02:00"))
    assert read_start(aware) == Start("2025-06-01T06:30:00+02:00", "GUANO")
    local = wav_with(tmp_path / name, guan("Timestamp: 2025-06-01 06:30:00"))
    assert read_start(local) == Start("2025-06-01T06:30:00", "GUANO")
    for wrong in ("Timestamp: yesterday", "no colon", "Timestamp:"):
        assert read_start(wav_with(tmp_path / name, guan(wrong))) == Start("2025-06-01T06:30:00", "file name")


@pytest.mark.parametrize("text", ["2025-06-0106:30:00", "2025_06_0106_30_00", "2025/06/0106.30.00"])
def test_bext(tmp_path, text):
    assert read_start(wav_with(tmp_path / "a.wav", bext(text))) == Start("2025-06-01T06:30:00", "bext")
    assert read_start(wav_with(tmp_path / "a.wav", bext("0" * 18))) == Start()


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("20250601_063000.wav", "2025-06-01T06:30:00"),
        ("20250601_063000T.WAV", "2025-06-01T06:30:00"),
        ("SITE-1_20250601_063000_dawn.flac", "2025-06-01T06:30:00"),
        ("20250601T063000.mp3", "2025-06-01T06:30:00"),
        ("5B1E2A40.WAV", "2018-06-11T07:52:32+00:00"),
        ("XC123456.wav", ""),
        ("20251301_063000.wav", ""),
        ("120250601_063000.wav", ""),
        ("00000123.WAV", ""),
        ("DEADBEEF.WAV", ""),
        ("5B1E2A40.mp3", ""),
    ],
)
def test_names(tmp_path, name, time):
    path = write(tmp_path / name, song(1, 16000), 16000)
    assert read_start(path) == Start(time, "file name" if time else "")


@pytest.mark.parametrize("cut_at", [3, 11, 20, 40, 60, 90])
def test_damaged_headers_say_nothing(tmp_path, cut_at):
    path = wav_with(tmp_path / "a.wav", comment("x" * 40), guan("Timestamp: 2025-06-01T06:30:00"))
    path.write_bytes(path.read_bytes()[:cut_at])
    assert read_start(path) == Start()
