"""Synthetic birds: recordings with the structure of a real collection, for demonstrations and tests.

Species differ in song. A recordist has a place (background, echo, the birds' dialect), a device (colour, gain) and
covers one or two species. A recordist's recordings of a species are therefore more similar to each other than to other
recordings of the species. A classifier that was trained on recordings of the recordist gets scores that are too high.
"""

import csv
import io
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from utils.core.errors import OutputExistsError
from utils.core.files import atomic_path, sha256_of_file, write_json, write_text

SETTINGS_NAME = "synthetic_birds.json"
METADATA_NAME = "metadata.csv"
SAMPLE_RATES_HZ = (16000, 44100, 22050, 48000, 8000, 32000)
FORMATS = (
    ("wav", "PCM_16"),
    ("mp3", "MPEG_LAYER_III"),
    ("flac", "PCM_16"),
    ("wav", "FLOAT"),
    ("ogg", "VORBIS"),
    ("wav", "PCM_24"),
)
HIGHEST_SHARE_OF_RATE = 0.42  # fundamentals stay below this share of the sample rate, where codecs keep them
RECORDISTS_PER_GROUP = 0.75  # so that every third recordist covers two species
PEAK = 0.5
SNR_DB = (6, 16)  # of the song, over the whole recording
DIALECT_OCTAVES = 0.15  # largest difference in pitch between places
FFT_MULTIPLE = 2**14  # lengths with large prime factors are slow


@dataclass(frozen=True)
class Song:
    """The song of a species: syllables in phrases, phrases in songs, pauses between songs.

    Attributes
    ----------
    species : str
    centre_hz : float
        Reference frequency of all pitches.
    syllables : tuple of (float, float, float, float)
        Syllables of a phrase: pitch above the centre and rise during the syllable, both in octaves; duration and the
        gap after it, both in seconds.
    phrases : int
        Phrases in a song.
    pause_s : float
        Mean pause after a song.
    harmonics : tuple of float
        Amplitudes of the fundamental and its multiples.
    vibrato : tuple of (float, float)
        Rate in hertz and depth in octaves.
    buzz_hz : float
        Rate of the amplitude modulation; 0 for none.
    is_shuffled : bool
        Whether syllables come in random order.
    """

    species: str
    centre_hz: float
    syllables: tuple[tuple[float, float, float, float], ...]
    phrases: int
    pause_s: float
    harmonics: tuple[float, ...] = (1.0,)
    vibrato: tuple[float, float] = (0.0, 0.0)
    buzz_hz: float = 0.0
    is_shuffled: bool = False

    @property
    def highest_hz(self) -> float:
        """Highest frequency of the fundamental, in any dialect."""
        highest = max(pitch + abs(rise) / 2 for pitch, rise, _, _ in self.syllables)
        return self.centre_hz * 2 ** (highest + self.vibrato[1] + DIALECT_OCTAVES + 0.05)


# Made-up species. The first six differ at a glance; each later one is harder to distinguish from one of these.
SONGS = (
    Song("Amber Flutebird", 1900, ((0.0, 0.1, 0.45, 0.12), (-0.35, -0.1, 0.6, 0.2)), 1, 0.5),
    Song("Sylviola_nebulosa", 4600, ((0.0, -0.3, 0.045, 0.03),), 16, 0.4),
    Song("Grünkappen-Häher", 850, ((0.0, -0.15, 0.28, 0.15),), 3, 0.5, (0.6, 1.0, 0.9, 0.7, 0.6, 0.4, 0.3, 0.2)),
    Song("Ashen Ticktail", 3200, ((0.25, 0.0, 0.12, 0.06), (-0.25, 0.0, 0.12, 0.06)), 5, 0.5),
    Song("Páramo Slidewing", 2400, ((0.6, -1.2, 0.2, 0.1),), 4, 0.5, (1.0, 0.2)),
    Song("Locustella_fictilis", 5400, ((0.0, 0.0, 1.3, 0.1),), 1, 0.3, buzz_hz=38.0),
    Song("Lesser Flutebird", 2250, ((0.0, -0.1, 0.5, 0.1), (0.3, 0.1, 0.4, 0.2)), 1, 0.5),
    Song("Sylviola_clara", 4000, ((0.0, 0.3, 0.06, 0.045),), 11, 0.4),
    Song(
        "Ōrewa Babbler",
        3400,
        ((-0.5, 0.3, 0.07, 0.03), (0.0, -0.4, 0.1, 0.02), (0.4, 0.2, 0.06, 0.04), (0.1, 0.5, 0.09, 0.03)),
        4,
        0.4,
        is_shuffled=True,
    ),
    Song("O'Hara's Crake", 1050, ((0.0, 0.1, 0.18, 0.12),), 5, 0.5, (1.0, 0.9, 0.6, 0.4, 0.3, 0.2)),
    Song("Cinnamon Wavebird", 2900, ((0.0, 0.0, 0.8, 0.15),), 1, 0.5, vibrato=(9.0, 0.12)),
    Song("Upland Slidewing", 2300, ((-0.5, 1.0, 0.22, 0.12),), 4, 0.5, (1.0, 0.2)),
)

RECORDISTS = (
    "Ada Fern",
    "Björn Holm",
    "Chidi Reed",
    "Dolores Peña",
    "Emi Sato",
    "Farah Nur",
    "Goran Lukić",
    "Hana Brook",
)


def write_recordings(
    raw_dir: Path,
    n_species: int = 8,
    recordists_per_species: int = 6,
    recordings_per_recordist: int = 2,
    seconds: tuple[float, float] = (6.0, 12.0),
    seed: int = 42,
    overwrite: bool = False,
) -> Path:
    """Write a folder per species with recordings, and a table of them.

    A recording's samples depend only on the seed and its place in the collection. Sample rates (8 to 48 kHz), formats
    (wav with 16 and 24 bit and float, flac, ogg, mp3), mono and stereo alternate. The same arguments give the same
    bytes; an ogg file differs only in its random serial number.

    A folder that is complete for these arguments is not changed; an unfinished one is completed.

    Parameters
    ----------
    raw_dir : Path
        Folder to write.
    n_species : int
        Number of species, up to ``len(SONGS)``.
    recordists_per_species, recordings_per_recordist : int
        The product is the number of recordings of a species.
    seconds : tuple of (float, float)
        Shortest and longest recording.
    seed : int
    overwrite : bool
        Replace recordings that were made with other arguments.

    Returns
    -------
    Path
        The table: ``file, label, recording_id, recordist``.

    Raises
    ------
    OutputExistsError
        If the folder holds other files.
    """
    raw_dir = Path(raw_dir)
    if not 1 <= n_species <= len(SONGS):
        raise ValueError(f"n_species is {n_species}; expected 1 to {len(SONGS)}")
    settings = {
        "n_species": n_species,
        "recordists_per_species": recordists_per_species,
        "recordings_per_recordist": recordings_per_recordist,
        "seconds": list(seconds),
        "seed": seed,
        "generator_sha256": sha256_of_file(Path(__file__)),
    }
    admit(raw_dir, settings, overwrite)
    rows = []
    n_recordists = math.ceil(RECORDISTS_PER_GROUP * n_species * recordists_per_species)
    for species, song in enumerate(SONGS[:n_species]):
        folder = raw_dir / (f"{song.species}_sound" if " " in song.species else song.species)
        folder.mkdir(exist_ok=True)
        for visit in range(recordists_per_species):
            recordist = (species * recordists_per_species + visit) % n_recordists
            for take in range(recordings_per_recordist):
                number = len(rows)
                suffix, subtype = FORMATS[number % len(FORMATS)]
                path = folder / f"SB{number + 1:04d}.{suffix}"
                if not path.exists():
                    recording = _record(song, species, recordist, take, number, seconds, seed)
                    write_audio(path, *recording, subtype)
                file = path.relative_to(raw_dir).as_posix()
                rows.append((file, song.species, f"SB{number + 1:04d}", _recordist_name(recordist)))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "label", "recording_id", "recordist"))
    writer.writerows(rows)
    write_text(raw_dir / METADATA_NAME, table.getvalue())
    return raw_dir / METADATA_NAME


def admit(raw_dir: Path, settings: dict, overwrite: bool) -> None:
    """Prepare a folder of synthetic birds: new, or one that an earlier attempt with the same settings left.

    Raises
    ------
    OutputExistsError
        If it holds other files.
    """
    raw_dir.mkdir(parents=True, exist_ok=True)
    settings_path = raw_dir / SETTINGS_NAME
    if settings_path.exists():
        if json.loads(settings_path.read_text(encoding="utf-8")) == settings:
            return
        if not overwrite:
            raise OutputExistsError(
                f"{raw_dir} holds synthetic birds made with other arguments; "
                "choose another folder, or overwrite it with --overwrite"
            )
        shutil.rmtree(raw_dir)
        raw_dir.mkdir()
    elif any(raw_dir.iterdir()):
        raise OutputExistsError(f"{raw_dir} holds files that are not synthetic birds; choose another folder")
    write_json(settings_path, settings)


def _recordist_name(number: int) -> str:
    name = RECORDISTS[number % len(RECORDISTS)]
    return name if number < len(RECORDISTS) else f"{name} {number // len(RECORDISTS) + 1}"


def write_audio(path: Path, samples: np.ndarray, sample_rate_hz: int, subtype: str) -> None:
    """Write a sound file, atomically and with the same bytes for the same samples."""
    with atomic_path(path) as partial:
        soundfile.write(partial, samples, sample_rate_hz, subtype=subtype)
        if subtype == "FLOAT":  # libsndfile writes the time into the PEAK chunk: id, size, version, time
            with partial.open("r+b") as file:
                header = file.read(128)
                file.seek(header.index(b"PEAK") + 12)
                file.write(bytes(4))


# --------------------------------------------------------------------------------------------------- sound


def _record(
    song: Song, species: int, recordist: int, take: int, number: int, seconds: tuple[float, float], seed: int
) -> tuple[np.ndarray, int]:
    """Return the samples of a recording, float64 of shape (n_samples, n_channels), and its sample rate."""
    device = np.random.default_rng([seed, 1, recordist])
    place = np.random.default_rng([seed, 2, recordist, species])
    moment = np.random.default_rng([seed, 3, recordist, species, take])

    rates = [SAMPLE_RATES_HZ[(recordist + i) % len(SAMPLE_RATES_HZ)] for i in range(len(SAMPLE_RATES_HZ))]
    rate = next(rate for rate in rates if song.highest_hz <= HIGHEST_SHARE_OF_RATE * rate)
    n_samples = round(moment.uniform(*seconds) * rate)
    n_channels = 1 + number % 2

    # The dialect belongs to the place; an individual differs slightly from it.
    octaves = place.uniform(-DIALECT_OCTAVES, DIALECT_OCTAVES) + moment.normal(0, 0.015)
    tempo = 2 ** (place.normal(0, 0.12) + moment.normal(0, 0.03))
    dry = sing(song, n_samples, rate, octaves, tempo, moment)

    n_echo = int(rate * place.uniform(0.05, 0.3))
    decay = 10 ** (-3 * np.arange(n_echo) / n_echo)
    echo = place.normal(0, 1, n_echo) * decay * place.uniform(0.1, 0.5) / math.sqrt(rate * 0.02)
    echo[0] = 1.0
    n_fft = -(-(n_samples + n_echo) // FFT_MULTIPLE) * FFT_MULTIPLE
    frequencies_hz = np.fft.rfftfreq(n_fft, 1 / rate)
    colour = device_colour(device, frequencies_hz)
    wet = np.fft.irfft(np.fft.rfft(dry, n_fft) * np.fft.rfft(echo, n_fft) * colour, n_fft)[:n_samples]
    wet /= wet.std()

    snr = 10 ** ((place.uniform(*SNR_DB) + moment.normal(0, 1)) / 20)
    noise_shape, tones = background(place, frequencies_hz, n_fft, rate)
    channels = []
    for _ in range(n_channels):
        white = moment.normal(0, 1, (2, len(frequencies_hz))) * math.sqrt(n_fft / 2)
        noise = np.fft.irfft(((white[0] + 1j * white[1]) * noise_shape + tones) * colour, n_fft)[:n_samples]
        channels.append(wet * moment.uniform(0.8, 1.0) + noise / (noise.std() * snr))
    samples = np.stack(channels, axis=1)
    gain = PEAK * 10 ** (device.uniform(-18, 0) / 20)
    return samples * gain / np.abs(samples).max(), rate


def sing(song: Song, n_samples: int, rate: int, octaves: float, tempo: float, rng: np.random.Generator) -> np.ndarray:
    """Return a song without its surroundings, float64 of shape (n_samples,)."""
    sound = np.zeros(n_samples)
    at_s = rng.uniform(0, 0.3)
    while at_s < n_samples / rate:
        loudness = rng.uniform(0.7, 1.0)
        for _ in range(song.phrases):
            order = rng.permutation(len(song.syllables)) if song.is_shuffled else range(len(song.syllables))
            for pitch, rise, duration_s, gap_s in (song.syllables[i] for i in order):
                start_hz = song.centre_hz * 2 ** (pitch - rise / 2 + octaves + rng.normal(0, 0.01))
                note = loudness * _syllable(song, start_hz, rise, duration_s * tempo, rate)
                first = int(at_s * rate)
                note = note[: max(0, n_samples - first)]
                sound[first : first + len(note)] += note
                at_s += (duration_s + gap_s) * tempo * rng.uniform(0.97, 1.03)
        at_s += song.pause_s * rng.uniform(0.6, 1.4)
    return sound


def _syllable(song: Song, start_hz: float, rise: float, duration_s: float, rate: int) -> np.ndarray:
    """Return a syllable that rises by `rise` octaves, float64 of shape (n_samples,)."""
    time_s = np.arange(int(duration_s * rate)) / rate
    vibrato_hz, depth = song.vibrato
    bend = rise * time_s / duration_s + depth * np.sin(2 * np.pi * vibrato_hz * time_s)
    phase = 2 * np.pi * np.cumsum(start_hz * 2**bend) / rate
    highest_hz = start_hz * 2 ** (max(rise, 0) + depth)
    sound = sum(
        amplitude * np.sin(number * phase)
        for number, amplitude in enumerate(song.harmonics, start=1)
        if number == 1 or number * highest_hz < HIGHEST_SHARE_OF_RATE * rate
    )
    envelope = np.sin(np.pi * (np.arange(len(time_s)) + 0.5) / len(time_s)) ** 0.5
    if song.buzz_hz:
        envelope = envelope * np.sin(np.pi * song.buzz_hz * time_s) ** 2
    return sound * envelope


def device_colour(rng: np.random.Generator, frequencies_hz: np.ndarray) -> np.ndarray:
    """Return the response of a recorder, shape (n_frequencies,): a tilt, a resonance and a low cut."""
    octaves = np.log2(np.maximum(frequencies_hz, 50) / 2000)
    resonance = rng.uniform(-8, 8) * np.exp(-((octaves - rng.uniform(-1, 1.5)) ** 2) / 0.3)
    response = 10 ** ((rng.uniform(-4, 4) * octaves + resonance) / 20)
    return response / (1 + (rng.uniform(60, 400) / np.maximum(frequencies_hz, 1)) ** 2)


def background(
    rng: np.random.Generator, frequencies_hz: np.ndarray, n_fft: int, rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sound of a place: magnitudes of its noise (wind, water), spectrum of its tones (hum, insects).

    Both have the shape (n_frequencies,), the magnitudes relative to white noise of unit variance.
    """
    octaves = np.log2(np.maximum(frequencies_hz, 50) / 1000)
    wind = 10 ** (rng.uniform(-9, -2) * octaves / 20)
    water = rng.uniform(0, 3) * np.exp(-((octaves - rng.uniform(-1, 2)) ** 2) / rng.uniform(0.1, 1))

    time_s = np.arange(n_fft) / rate
    hum = rng.choice([0, 0, 2]) * np.sin(2 * np.pi * rng.choice([50, 60, 100, 120]) * time_s)
    insect_hz = min(rng.uniform(3500, 7500), HIGHEST_SHARE_OF_RATE * rate)
    chirps = (np.sin(np.pi * rng.uniform(4, 30) * time_s) ** 2) ** 2
    insects = rng.choice([0, 1, 2]) * chirps * np.sin(2 * np.pi * insect_hz * time_s)
    return wind + water, np.fft.rfft(hum + insects)
