"""Untrusted input: whatever is in a metadata CSV, a layer list or an audio file, a message or a result comes out.

A few examples in every run of the tests; `make drills` tries many more, new ones each time.
"""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import assume, example, given
from hypothesis import strategies as st

from utils import audio, cli, recordings
from utils.errors import InputError, UsageError

RATE = 16000
FORMATS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")]
FORMATS += [("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("CAF", "ALAC_16"), ("AU", "ULAW")]
MOST_SAMPLES = 60 * RATE


def song(file_format, subtype, n_samples=4000):
    """Return the bytes of a short file with a tone in noise."""
    rng = np.random.default_rng(0)
    samples = 0.3 * np.sin(np.arange(n_samples) / 7) + 0.05 * rng.standard_normal(n_samples)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=file_format, subtype=subtype)
    return file.getvalue()


SONGS = [song(*names) for names in FORMATS]


# ------------------------------------------------------------------------------------------- layer lists


@given(
    st.one_of(
        st.text(max_size=30),
        st.text("0123456789-, none\n+٣²", max_size=20),
        st.from_regex(r"\d{1,2}(-\d{1,2})?(,\d{1,2})*"),
    ),
    st.integers(0, 48),
)
@example("none", 0)
@example("0-", 12)
@example("0-99999999999", 12)
def test_any_layer_list_is_layers_of_the_model_or_a_usage_error(text, n_layers):
    try:
        layers = cli.parse_layer_list(text, n_layers)
    except UsageError as error:
        assert repr(text) in str(error)
        return
    # Read by hand: every number from the first to the last of each part.
    bounds = [] if text.strip() == "none" else [part.split("-") for part in text.split(",")]
    assert layers == sorted(i for pair in bounds for i in range(int(pair[0]), int(pair[-1]) + 1))
    assert len(set(layers)) == len(layers) and all(0 <= layer < n_layers for layer in layers)


@given(st.sets(st.integers(0, 47)).map(sorted))
def test_any_layers_are_written_and_read_again(layers):
    assert cli.parse_layer_list(cli.format_layer_list(layers), 48) == layers


# -------------------------------------------------------------------------------------------- metadata


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    (folder / "a").mkdir()
    for name in ("1.wav", "2.wav", "a/ü é.wav", "-rf.wav"):
        (folder / name).write_bytes(SONGS[0])
    return folder


CELLS = st.one_of(
    st.sampled_from(
        ["1.wav", "2.wav", "a/ü é.wav", "-rf.wav", "../1.wav", "/etc/passwd", "$(touch x)", "Parus", "", " "]
    ),
    st.text(max_size=12),
)
COLUMNS = st.sampled_from(
    ["file", "label", "recording_id", "recordist", "filename", "primary_label", "id", "gen", "sp"]
)
TABLES = st.builds(
    lambda columns, rows, mark, end: end.join(mark.join(row) for row in [columns, *rows]).encode(
        errors="surrogatepass"
    ),
    st.lists(st.one_of(COLUMNS, st.text(max_size=5)), max_size=5),
    st.lists(st.lists(CELLS, max_size=5), max_size=6),
    st.sampled_from([",", ";", "\t", '","']),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


@given(content=st.one_of(st.binary(max_size=300), TABLES))
@example(content=b"file,label\n1.wav,Parus major\n")
@example(content=b"\xff\xfef\x00i\x00l\x00e\x00")
@example(content=b'file,label\n"1.wav,Parus\n')
def test_any_metadata_names_files_below_the_folder_or_is_an_input_error(content, raw_dir):
    metadata = raw_dir.parent / "metadata.csv"
    metadata.write_bytes(content)
    try:
        files, skipped = recordings.find_recordings(raw_dir, metadata)
    except InputError as error:
        assert "\n" not in str(error).strip()
        return
    for file in files:
        assert (raw_dir / file.path).resolve().is_relative_to(raw_dir.resolve()) and (raw_dir / file.path).is_file()
        assert file.label.strip() and file.label.isprintable()
    assert len({file.path for file in files}) == len(files)
    assert all(each.file.strip() and each.reason for each in skipped)


# --------------------------------------------------------------------------------------- audio headers


@st.composite
def damaged_songs(draw):
    """Draw a file of some format with bytes of its header, or anywhere, replaced, removed or put in."""
    data = bytearray(draw(st.sampled_from(SONGS)))
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.one_of(st.integers(0, 80), st.integers(0, len(data))))
        new = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])))
        removed = draw(st.sampled_from([len(new), len(new), 0, 50]))
        data[position : position + removed] = new
        assume(data)
    return bytes(data)


@given(content=st.one_of(damaged_songs(), st.binary(max_size=200)))
def test_any_file_is_finite_sound_or_undecodable(content, raw_dir):
    path = raw_dir.parent / "sound"
    path.write_bytes(content)
    blocks = []
    try:
        decoded = audio.decode(path, RATE, lambda: blocks.clear() or blocks.append)
    except audio.Undecodable as reason:
        assert str(reason)
        return
    samples = np.concatenate(blocks)
    assert samples.dtype == np.int16 and len(samples) == decoded.n_samples > 0 and samples.any()
    # A header may claim another rate, and so a longer sound; never one out of all proportion to the file.
    assert len(samples) <= MOST_SAMPLES


@pytest.mark.parametrize("number", range(len(FORMATS)), ids=["-".join(names) for names in FORMATS])
def test_undamaged_files_are_sound(number, raw_dir):
    path = raw_dir.parent / "sound"
    path.write_bytes(SONGS[number])
    blocks = []
    decoded = audio.decode(path, RATE, lambda: blocks.clear() or blocks.append)
    assert decoded.n_samples == sum(len(block) for block in blocks) >= 4000
