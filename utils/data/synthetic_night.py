"""A synthetic night: long files of a recorder, with songs of the synthetic birds at known times.

The recorder and its place are none of those that the collection of `synthetic` has. Songs overlap, and for most of the
night nobody sings.
"""

import csv
import io
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from utils.core.files import sha256_of_file, write_text
from utils.data import synthetic
from utils.data.synthetic import PEAK, SONGS, Song

PLANTED_NAME = "planted.csv"
SAMPLE_RATE_HZ = 24000
RECORDER = 1000  # among the recordists of `synthetic`, whose numbers count from 0
START, HOURS_APART = datetime(2026, 6, 1, 21), 2
SONG_SECONDS = (2.5, 6.0)
MEAN_GAP_S = 5.0  # between the starts of two songs
SNR_DB = (6.0, 16.0)  # of a song while it lasts, as in the collection


def write_night(
    night_dir: Path,
    n_species: int = 8,
    n_files: int = 5,
    seconds: float = 120.0,
    seed: int = 42,
    overwrite: bool = False,
) -> Path:
    """Write the files of a recorder and a table of the songs in them; the same arguments give the same bytes.

    Parameters
    ----------
    night_dir : Path
        Folder to write. Files are named after the hour they start, such as ``MEADOW_20260601_210000.wav``.
    n_species : int
        The species that sing: the first ones of `synthetic.SONGS`.
    n_files : int
        Number of files, two hours apart.
    seconds : float
        Length of a file.
    seed : int
    overwrite : bool
        Replace a night that was made with other arguments.

    Returns
    -------
    Path
        The table ``planted.csv``: ``file, start, end, label``, times in seconds from the start of the file.

    Raises
    ------
    OutputExistsError
        If the folder holds other files.
    """
    night_dir = Path(night_dir)
    settings = {
        "n_species": n_species,
        "n_files": n_files,
        "seconds": seconds,
        "seed": seed,
        "generator_sha256": [sha256_of_file(Path(file)) for file in (__file__, synthetic.__file__)],
    }
    synthetic.admit(night_dir, settings, overwrite)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "start", "end", "label"))
    for number in range(n_files):
        path = night_dir / f"MEADOW_{START + timedelta(hours=HOURS_APART * number):%Y%m%d_%H%M%S}.wav"
        samples, songs = _record(number, n_species, seconds, seed)
        if not path.exists():
            synthetic.write_audio(path, samples, SAMPLE_RATE_HZ, "PCM_16")
        writer.writerows((path.name, f"{start:.3f}", f"{end:.3f}", song.species) for start, end, song in songs)
    write_text(night_dir / PLANTED_NAME, table.getvalue())
    return night_dir / PLANTED_NAME


def _record(
    number: int, n_species: int, seconds: float, seed: int
) -> tuple[np.ndarray, list[tuple[float, float, Song]]]:
    """Return the samples of a file, float64 of shape (n_samples,), and its songs: start and end in s, species."""
    device = np.random.default_rng([seed, 1, RECORDER])
    place = np.random.default_rng([seed, 2, RECORDER])
    moment = np.random.default_rng([seed, 3, RECORDER, number])
    n_samples = round(seconds * SAMPLE_RATE_HZ)
    n_fft = -(-n_samples // synthetic.FFT_MULTIPLE) * synthetic.FFT_MULTIPLE
    frequencies_hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE_HZ)
    noise_shape, tones = synthetic.background(place, frequencies_hz, n_fft, SAMPLE_RATE_HZ)
    white = moment.normal(0, 1, (2, len(frequencies_hz))) * np.sqrt(n_fft / 2)
    noise = np.fft.irfft((white[0] + 1j * white[1]) * noise_shape + tones, n_fft)[:n_samples]
    sound = noise / noise.std()
    songs = []
    at_s = moment.exponential(MEAN_GAP_S)
    while at_s + SONG_SECONDS[1] < seconds:
        song = SONGS[moment.integers(n_species)]
        end_s = at_s + moment.uniform(*SONG_SECONDS)
        first, last = round(at_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
        octaves = moment.uniform(-synthetic.DIALECT_OCTAVES, synthetic.DIALECT_OCTAVES)
        own = synthetic.sing(song, last - first, SAMPLE_RATE_HZ, octaves, 2 ** moment.normal(0, 0.12), moment)
        sound[first:last] += own / own.std() * 10 ** (moment.uniform(*SNR_DB) / 20)
        songs.append((first / SAMPLE_RATE_HZ, last / SAMPLE_RATE_HZ, song))
        at_s += moment.exponential(MEAN_GAP_S)
    coloured = np.fft.irfft(np.fft.rfft(sound, n_fft) * synthetic.device_colour(device, frequencies_hz), n_fft)
    coloured = coloured[:n_samples]
    return coloured * PEAK / np.abs(coloured).max(), songs
