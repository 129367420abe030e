"""Decoding, resampling and cutting, against whole-file reading and soxr's one-shot resampler."""

import errno
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from tests.sounds import song, write
from utils.core.errors import InputError
from utils.data import audio, sources

RATE_HZ = 16000


def decode(path, rate_hz=RATE_HZ, channel="mean"):
    blocks = []

    def new_sink():
        blocks.clear()
        return lambda pcm: blocks.append(pcm.copy())

    decoded = audio.decode(path, rate_hz, new_sink, channel)
    pcm = np.concatenate(blocks)
    assert pcm.dtype == np.int16
    assert len(pcm) == decoded.n_samples
    return pcm, decoded


def nothing(pcm):
    pass


def reason(path, channel="mean"):
    with pytest.raises(audio.Undecodable) as caught:
        audio.decode(path, RATE_HZ, lambda: nothing, channel)
    return str(caught.value)


# ------------------------------------------------------------------------------------- what must be exact


def test_a_16_bit_mono_file_at_the_target_rate_keeps_its_samples(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 200_001).astype(np.int16)
    pcm, decoded = decode(write(tmp_path / "a.wav", samples, RATE_HZ))
    np.testing.assert_array_equal(pcm, samples)
    assert decoded == audio.Decoded(200_001, RATE_HZ, 1, "mono", ())


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_streaming_equals_resampling_the_whole_file(tmp_path, rate_hz):
    path = write(tmp_path / "a.wav", song(7.3, rate_hz), rate_hz, subtype="FLOAT")
    whole = soxr.resample(soundfile.read(path, dtype="float32")[0], rate_hz, RATE_HZ)
    pcm, decoded = decode(path)
    assert decoded.source_rate_hz == rate_hz
    assert len(pcm) == len(whole)
    assert np.abs(pcm - np.rint(whole * 32768)).max() <= 1


def test_the_size_of_blocks_changes_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.flac", song(3, 44100, 2), 44100)
    expected, _ = decode(path)
    monkeypatch.setattr(sources, "BLOCK_VALUES", 777)
    np.testing.assert_array_equal(decode(path)[0], expected)


def test_channels_are_averaged(tmp_path):
    samples = np.random.default_rng(1).uniform(-0.9, 0.9, (5000, 5))
    path = write(tmp_path / "a.wav", samples, RATE_HZ, subtype="DOUBLE")
    pcm, decoded = decode(path)
    assert decoded.source_channels == 5
    assert np.abs(pcm - samples.mean(axis=1) * 32768).max() <= 0.51


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [("PCM_U8", 1 / 127), ("PCM_16", 1e-4), ("PCM_24", 1e-4), ("PCM_32", 1e-4), ("FLOAT", 1e-4)],
)
def test_every_depth_of_samples_gives_the_same_sound(tmp_path, subtype, tolerance):
    samples = song(1, RATE_HZ)
    pcm, _ = decode(write(tmp_path / "a.wav", samples, RATE_HZ, subtype=subtype))
    np.testing.assert_allclose(pcm / 32768, samples[:, 0], atol=tolerance)


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac", "aiff", "w64", "caf"])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_every_format_gives_what_reading_it_whole_gives(tmp_path, suffix, n_channels):
    # Several blocks of all formats: between blocks soundfile would seek, which an mp3 does not survive.
    samples = song(10, 44100, n_channels)
    path = write(tmp_path / f"a.{suffix}", samples, 44100)
    whole = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    assert np.corrcoef(whole, samples.mean(axis=1))[0, 1] > 0.98
    pcm, decoded = decode(path, 44100)
    assert decoded.warnings == ()
    assert len(pcm) == len(whole)
    assert np.abs(pcm - np.rint(whole * 32768)).max() <= 1


@pytest.mark.shared
def test_real_recordings_give_what_reading_them_whole_gives(shared_dir):
    for path in sorted((shared_dir / "data" / "birds20").glob("*/*.mp3"))[::20]:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        whole = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)
        pcm, decoded = decode(path)
        assert decoded.warnings == ()
        assert np.abs(pcm - np.clip(np.rint(whole * 32768), -32768, 32767)).max() <= 1, path


@pytest.mark.parametrize("name", ["with space.wav", 'it\'s "quoted".wav', "Grünfink 山雀.flac", "-dash.ogg"])
def test_odd_names(tmp_path, name):
    assert decode(write(tmp_path / name, song(0.5, RATE_HZ), RATE_HZ))[1].n_samples == RATE_HZ // 2


def test_memory_does_not_depend_on_the_length_of_a_file(tmp_path):
    peaks = []
    for seconds in (20, 400):
        path = write(tmp_path / f"{seconds}.wav", np.tile(song(10, 48000, 2), (seconds // 10, 1)), 48000)
        tracemalloc.start()
        audio.decode(path, RATE_HZ, lambda: nothing)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 10e6


# ----------------------------------------------------------------------------- files with something wrong


def test_a_truncated_mp3_is_used_up_to_its_end(tmp_path):
    path = write(tmp_path / "a.mp3", song(10, 44100), 44100)
    whole, _ = decode(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    pcm, decoded = decode(path)
    assert 4 * RATE_HZ < len(pcm) < 6 * RATE_HZ
    assert np.abs(pcm[:-2000].astype(int) - whole[: len(pcm) - 2000]).max() <= 1
    assert len(decoded.warnings) == 1
    assert decoded.warnings[0].startswith("breaks off: its header promises 10.00 s, ")


def test_a_truncated_flac_is_used_up_to_the_damage(tmp_path):
    samples = (song(10, RATE_HZ) * 32768).astype(np.int16)
    path = write(tmp_path / "a.flac", samples, RATE_HZ)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    pcm, decoded = decode(path)
    # Also the part of a block that was decoded before the damage: FLAC has frames of 4,096 samples.
    assert len(samples) / 2 - 3 * 4096 < len(pcm) < len(samples) / 2 + 3 * 4096
    np.testing.assert_array_equal(pcm, samples[: len(pcm), 0])
    assert decoded.warnings[0].startswith(f"damaged after {len(pcm) / RATE_HZ:.2f} s")


def test_an_mp3_of_variable_bit_rate_without_its_length_is_read_to_the_end(tmp_path):
    # The first frames are loud noise, of a high bit rate, from which libsndfile guesses too short a length.
    t = np.arange(20 * 44100) / 44100
    samples = 0.3 * np.sin(2 * np.pi * (1000 * t + 20 * t**2))
    samples[:44100] = np.random.default_rng(0).uniform(-0.5, 0.5, 44100)
    path = write(tmp_path / "a.mp3", samples, 44100, bitrate_mode="VARIABLE", compression_level=0.5)
    whole, _ = decode(path, 44100)
    data = path.read_bytes()
    tagged = data.index(b"Xing")
    path.write_bytes(data[data.index(data[:2], tagged) :])
    assert soundfile.info(path).frames < 0.8 * 20 * 44100
    pcm, decoded = decode(path, 44100)
    assert decoded.warnings == ()
    delay = 576 + 529  # samples of LAME and of the decoder, which the lost header says to trim
    assert len(whole) + delay <= len(pcm) < len(whole) + 3 * 1152
    np.testing.assert_allclose(pcm[delay:][50_000 : len(whole)], whole[50_000:], atol=2)


def test_a_second_stream_behind_the_first_is_read_too(tmp_path):
    path = write(tmp_path / "a.mp3", song(10, 44100), 44100)
    path.write_bytes(path.read_bytes() * 2)
    pcm, decoded = decode(path)
    assert 2 * 10 * RATE_HZ <= len(pcm) < 2 * 10 * RATE_HZ + 2 * 1152
    assert decoded.warnings == ()


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("peak", [32767, 8_388_607, 1.95, 1.001, 3e-3, 1e-5, 1e-12])
def test_floats_out_of_range_are_scaled_and_reported(tmp_path, subtype, peak):
    samples = song(1, RATE_HZ)[:, 0]
    samples *= peak / np.abs(samples).max()
    pcm, decoded = decode(write(tmp_path / "a.wav", samples, RATE_HZ, subtype=subtype))
    assert np.abs(pcm - 0.9 * 32768 * samples / peak).max() <= 0.51
    assert decoded.warnings == (f"peaks at {peak:.3g} times full scale and was scaled to 0.9",)


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32"])
def test_a_quiet_recording_of_more_than_16_bits_keeps_its_bits(tmp_path, subtype):
    samples = 2**-9 * song(1, RATE_HZ)[:, 0]  # such as 24 bits at the lower end of 32
    pcm, decoded = decode(write(tmp_path / "a.wav", samples, RATE_HZ, subtype=subtype))
    assert np.corrcoef(pcm, samples)[0, 1] > 0.9999
    assert decoded.warnings[0].endswith("times full scale and was scaled to 0.9")


@pytest.mark.parametrize("name", ["a.wav", "a.mp3"])
def test_a_quiet_recording_of_16_bits_or_a_codec_stays_as_it_is(tmp_path, name):
    pcm, decoded = decode(write(tmp_path / name, 2**-9 * song(1, RATE_HZ), RATE_HZ))
    assert decoded.warnings == () and np.abs(pcm).max() < 100


def test_a_codec_beyond_full_scale_is_clipped_and_reported(tmp_path):
    samples = np.sign(np.sin(np.arange(5 * 44100) / 5))
    _, decoded = decode(write(tmp_path / "a.mp3", samples, 44100), 44100)
    assert "% of its samples are clipped" in decoded.warnings[0]


@pytest.mark.parametrize("offset", [0.6, -0.6])
def test_a_sound_that_never_crosses_zero_loses_its_offset(tmp_path, offset):
    samples = song(2, RATE_HZ)[:, 0] * 0.9
    pcm, decoded = decode(write(tmp_path / "a.wav", samples + offset, RATE_HZ))
    assert np.abs(pcm - 32768 * (samples - samples.mean())).max() <= 1.01
    assert decoded.warnings[0].startswith("never crosses zero: its mean of ")


def test_a_constant_is_silence(tmp_path):
    assert reason(write(tmp_path / "a.wav", np.full(16000, 0.25), RATE_HZ)) == "silent: every sample of it is 0.25"


# ------------------------------------------------------------------------------------------------ channels


CHANNELS = {
    "alike": (lambda x: x, "mean of 2"),
    "unrelated": (lambda x: song(3, RATE_HZ, seed=7), "mean of 2"),
    "a quieter one": (lambda x: 0.2 * x, "mean of 2"),
    "an inverted quieter one": (lambda x: -0.2 * x, "mean of 2"),
    "inverted": (lambda x: -x, "the channels cancel by"),
    "nearly inverted": (lambda x: -0.995 * x, "the channels cancel by"),
    "half a period late": (lambda x: np.roll(x, 10, axis=0), "the channels cancel by"),
    "dead": (lambda x: 0 * x, "the others are silent"),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_that_cancel_are_not_mixed(tmp_path, name):
    of_second, channel = CHANNELS[name]
    time_s = np.arange(3 * RATE_HZ)[:, None] / RATE_HZ
    first = 0.3 * np.sin(2 * np.pi * 800 * time_s)
    samples = np.hstack([first, of_second(first)])
    samples += (name != "dead") * 0.0002 * np.random.default_rng(5).standard_normal((len(first), 2))
    pcm, decoded = decode(write(tmp_path / "a.wav", samples, RATE_HZ))
    assert channel in decoded.channel
    if channel == "mean of 2":
        expected = samples.mean(axis=1)
        assert decoded.warnings == ()
    else:
        expected = samples[:, int(decoded.channel[0]) - 1]
        assert decoded.warnings[0].startswith(f"channel {decoded.channel[0]} of 2 is used: {channel}")
    assert np.abs(pcm - 32768 * expected).max() <= 1.51  # the file has 16 bits, too


@pytest.mark.parametrize(("channel", "index"), [("left", 0), ("right", 1), ("1", 0), ("3", 2), ("best", 2)])
def test_a_channel_that_is_asked_for(tmp_path, channel, index):
    samples = song(2, RATE_HZ, 3) * [0.3, 0.5, 1.1] + [0, 0.1, 0]  # an offset makes no channel the best
    pcm, decoded = decode(write(tmp_path / "a.flac", samples, RATE_HZ), channel=channel)
    assert np.abs(pcm - 32768 * samples[:, index]).max() <= 1.01
    assert decoded.channel == f"{index + 1} of 3" and decoded.warnings == ()


def test_a_channel_that_a_file_lacks(tmp_path):
    path = write(tmp_path / "a.wav", song(1, RATE_HZ), RATE_HZ)
    assert reason(path, "right") == "has no channel right: it has 1; choose another --channel"
    assert reason(path, "2") == "has no channel 2: it has 1; choose another --channel"
    assert decode(path, channel="left")[1].channel == "mono"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_nan_and_infinity(tmp_path, value, n_channels):
    samples = song(10, 44100, n_channels)
    samples[3 * 44100, -1] = value
    assert (
        reason(write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")) == "holds NaN or infinity, first at 3.000 s"
    )


def test_silence(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros((44100, 2)), 44100)
    assert reason(path) == "silent: every sample of it is 0"


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg"])
def test_text_and_nothing_are_no_sound(tmp_path, name):
    path = tmp_path / name
    path.write_text("this is no sound\n" * 100)
    assert reason(path).startswith("no sound that libsndfile or FFmpeg can read")
    path.write_bytes(b"")
    assert reason(path) == "empty: the file has 0 bytes"


def test_a_header_and_no_samples(tmp_path):
    assert reason(write(tmp_path / "a.wav", np.zeros(0), RATE_HZ)) == "no sound in it"


def test_a_broken_sample_rate(tmp_path):
    path = write(tmp_path / "a.wav", song(0.1, RATE_HZ), 1)
    assert reason(path) == "its header gives a sample rate of 1 Hz; expected 1000 or more"


def test_one_sample_decodes(tmp_path):
    assert decode(write(tmp_path / "a.wav", np.array([0.5]), RATE_HZ))[0].tolist() == [16384]


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match=r"gone.wav cannot be read any more .No such file .* run the same command"):
        decode(tmp_path / "gone.wav")
    loop = tmp_path / "loop.wav"
    loop.symlink_to(loop)
    assert reason(loop) == "cannot be opened: Too many levels of symbolic links"
    assert reason(tmp_path) == "cannot be opened: Is a directory"


def test_errors_of_the_sink_are_not_taken_for_bad_sound(tmp_path):
    def full(pcm):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        audio.decode(write(tmp_path / "a.wav", song(1, RATE_HZ), RATE_HZ), RATE_HZ, lambda: full)


# ----------------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize(
    ("n_samples", "remainder", "expected"),
    [
        (100, "pad", [(0, 40), (40, 40), (80, 20)]),
        (100, "drop", [(0, 40), (40, 40)]),
        (80, "pad", [(0, 40), (40, 40)]),
        (84, "pad", [(0, 40), (40, 40)]),
        (87, "pad", [(0, 40), (40, 40)]),
        (88, "pad", [(0, 40), (40, 40), (80, 8)]),
        (5, "pad", [(0, 5)]),
        (39, "pad", [(0, 39)]),
        (39, "drop", []),
        (4, "pad", []),
        (0, "pad", []),
    ],
)
def test_cut(n_samples, remainder, expected):
    assert audio.cut(n_samples, 40, 5, 8, remainder) == expected


def test_cut_never_gives_an_empty_clip():
    assert audio.cut(80, 40, 0, 0, "pad") == [(0, 40), (40, 40)]


def test_padding_repeats():
    samples = np.array([1, 2, 3], np.int16)
    padded = audio.pad_by_repetition(samples, 8)
    assert padded.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert padded.dtype == np.int16
    assert audio.pad_by_repetition(samples, 3).tolist() == [1, 2, 3]
