"""Copy real recordings in every way that stage 01 must see through, and count which copies it finds.

    python -m drills.near_copies --raw_dirs ../shared/data/birds20 ../shared/data/birds25 ../shared/data/birds34
    python -m drills.near_copies --raw_dirs ../shared/data/birds20 --n_recordings 20 --parts copies

Three tables:

- copies: a row for each way to copy. A number of recordings, drawn with a seed, are copied, and all recordings and
  their copies are compared. A pair is false if it joins different recordings, unless the originals are joined too.
- sets: the pairs of all recordings in all folders. A pair of files with the same recording_id is only counted.
- scale: time and memory with more and more recordings, of two kinds: chirps in noise, drawn anew for each recording,
  and the recordings of the folders at other speeds, so that none is another's copy, but each has relatives. Each time a
  hundred copies, trimmed at half a hop, are to be found among them. Seconds are those of the processor.

The exit code is 1 if fewer copies are found than expected, or a pair is false.
"""

import argparse
import functools
import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from drills import formats
from utils.core import cli, workers
from utils.data import landmarks, near_copies, preparation, recordings, spool

RATE_HZ = 16_000
SOURCE_HZ = formats.RATE_HZ
LEAST_SECONDS = 5.0  # of a recording that is copied
EXPECTED, EXPECTED_OF_OVERLAPS = 0.98, 0.65
N_COPIES = 100  # among many
MP3 = formats.Format("mp3", "mp3", "libmp3lame", bit_rate=64_000)

log = logging.getLogger(__name__)


def mp3(path: Path, sound: np.ndarray) -> None:
    """Write a sound, float32 of shape (n,) at 48 kHz, as mp3 of 64 kbit/s."""
    formats.encode(path.with_suffix(".mp3"), sound[:, None], SOURCE_HZ, MP3)


def vorbis(path: Path, sound: np.ndarray) -> None:
    """Write a sound as Ogg Vorbis."""
    formats.encode(path.with_suffix(".ogg"), sound[:, None], SOURCE_HZ, formats.FORMATS["vorbis"])


def wav(path: Path, sound: np.ndarray, rate_hz: int = SOURCE_HZ, subtype: str = "PCM_16") -> None:
    """Write a sound as WAV."""
    soundfile.write(path.with_suffix(".wav"), np.clip(sound, -1, 1), rate_hz, subtype=subtype)


def trimmed(seconds: float, at_half_hop: bool) -> Callable[[Path, np.ndarray], None]:
    """Return what writes a sound without its start, whose frames then lie at random or halfway between its own."""

    def write(path: Path, sound: np.ndarray) -> None:
        hop = landmarks.HOP * SOURCE_HZ // RATE_HZ
        n_samples = round(seconds * SOURCE_HZ)
        if at_half_hop:
            n_samples = n_samples // hop * hop + hop // 2
        else:
            n_samples += random.Random(path.name).randrange(hop)
        wav(path, sound[n_samples:])

    return write


_FINE_NOISE = np.random.default_rng(0).uniform(-(2**-16), 2**-16, 3600 * SOURCE_HZ // 10).astype(np.float32)
WAYS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "mp3 64 kbit/s": mp3,
    "Vorbis": vorbis,
    "44.1 kHz": lambda path, sound: wav(path, soxr.resample(sound, SOURCE_HZ, 44_100), 44_100),
    "+6 dB": lambda path, sound: wav(path, 2 * sound),
    "-6 dB": lambda path, sound: wav(path, sound / 2),
    "inverted": lambda path, sound: wav(path, -sound),
    "24 bit": lambda path, sound: wav(path, sound + _FINE_NOISE[: len(sound)], SOURCE_HZ, "PCM_24"),
}
for _seconds in (0.1, 1.0, 2.0):
    WAYS[f"trimmed by {_seconds:g} s"] = trimmed(_seconds, at_half_hop=False)
    WAYS[f"trimmed by {_seconds:g} s, half a hop"] = trimmed(_seconds, at_half_hop=True)
OVERLAP = "3 s overlap"


def decode(folder: Path, spool_dir: Path, pool_map: workers.Map) -> list[spool.Spooled]:
    """Decode all files of a folder as stage 01 does; return them sorted by path."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = [spool.Listed(path, *_size_and_time(folder / path)) for path in paths if not path.endswith(".csv")]
    decoded = preparation.decode(folder, spool_dir, RATE_HZ, "mean", pool_map, workers.available_cpus(), files)
    for skip in decoded.undecodable:
        raise SystemExit(f"{folder / skip.file}: {skip.reason}")
    return [sound for _, sound in sorted(decoded.sounds.items())]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def join(sounds: Sequence[spool.Spooled], spool_dir: Path, pool_map: workers.Map) -> list[near_copies.Copy]:
    """Return the copies among sounds of one spool folder."""
    return near_copies.find(sounds, dict.fromkeys((s.path for s in sounds), spool_dir), RATE_HZ, pool_map)


# -------------------------------------------------------------------------------------------------- the tables


def drill_copies(sounds: Mapping[str, np.ndarray], scratch: Path, pool_map: workers.Map) -> int:
    """Print a row for each way to copy `sounds`, float32 at 48 kHz by name; return how many rows fail."""
    print(f"{len(sounds)} recordings of {LEAST_SECONDS:g} s or more\n")
    print("| copy | found | expected | r of those found: lowest, median | false pairs |\n|---|---|---|---|---|")
    n_failed = 0
    known: set[frozenset[str]] = set()
    for way in ["", *WAYS, OVERLAP]:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            raw_dir, spool_dir = Path(folder) / "raw", Path(folder) / "spool"
            for name, sound in sounds.items():
                one, other = sound, sound
                if way == OVERLAP:
                    middle = len(sound) // 2 + random.Random(name).randrange(1000)
                    one, other = sound[: middle + 3 * SOURCE_HZ // 2], sound[middle - 3 * SOURCE_HZ // 2 :]
                for kind in ("original", "copy")[: 1 + bool(way)]:
                    (raw_dir / kind).mkdir(parents=True, exist_ok=True)
                wav(raw_dir / "original" / name, one)
                if way:
                    WAYS.get(way, wav)(raw_dir / "copy" / name, other)
            pairs = join(decode(raw_dir, spool_dir, pool_map), spool_dir, pool_map)
        names = {(copy.path, copy.other): {Path(copy.path).stem, Path(copy.other).stem} for copy in pairs}
        if not way:
            known = {frozenset(pair) for pair in names.values()}
            continue
        values = [copy.correlation for copy in pairs if len(names[copy.path, copy.other]) == 1]
        false = [pair for pair in names.values() if len(pair) > 1 and frozenset(pair) not in known]
        expected = EXPECTED_OF_OVERLAPS if way == OVERLAP else EXPECTED
        share = len(values) / len(sounds)
        n_failed += share < expected or bool(false)
        spread = f"{min(values, default=0):.2f}, {np.median(values or [0]):.2f}"
        print(f"| {way} | {len(values)} = {share:.1%} | {expected:.0%} | {spread} | {len(false)} |", flush=True)
        for pair in false:
            log.warning("false: %s", sorted(pair))
    print(f"\n{len(known)} pairs of the originals are joined as well: they share sound.\n")
    return n_failed


def drill_sets(raw_dirs: Sequence[Path], scratch: Path, pool_map: workers.Map) -> None:
    """Print the pairs among all recordings of all folders."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        together = Path(folder) / "raw"
        together.mkdir()
        names = {}
        for raw_dir in raw_dirs:
            (together / raw_dir.name).symlink_to(raw_dir.resolve())
            metadata = raw_dir / "metadata.csv"
            files, _ = recordings.find_recordings(raw_dir, metadata if metadata.is_file() else None)
            names |= {f"{raw_dir.name}/{file.path}": file for file in files}
        files = [spool.Listed(path, *_size_and_time(together / path)) for path in sorted(names)]
        spool_dir = Path(folder) / "spool"
        decoded = preparation.decode(together, spool_dir, RATE_HZ, "mean", pool_map, workers.available_cpus(), files)
        pairs = join([decoded.sounds[path] for path in sorted(decoded.sounds)], spool_dir, pool_map)
    same = [pair for pair in pairs if names[pair.path].recording_id == names[pair.other].recording_id]
    ids = {
        name: {file.recording_id for path, file in names.items() if path.startswith(f"{name}/")}
        for name in (raw_dir.name for raw_dir in raw_dirs)
    }
    n_twice = sum(map(len, ids.values())) - len(set().union(*ids.values()))
    print(f"{len(names)} recordings; {n_twice} ids are in two folders, and {len(same)} pairs have one id\n")
    print("| file | the same sound as | lag | r | recordist | labels |\n|---|---|---|---|---|---|")
    for pair in pairs:
        if pair not in same:
            one, other = names[pair.path], names[pair.other]
            who = f"{one.recordist}" if one.recordist == other.recordist else f"{one.recordist}, {other.recordist}"
            what = "the same" if one.label == other.label else "different"
            lag = f"{pair.lag / RATE_HZ:.3f} s"
            print(f"| {pair.path} | {pair.other} | {lag} | {pair.correlation:.3f} | {who} | {what} |")
    print()


def drill_scale(sounds: Sequence[np.ndarray], sizes: Sequence[int], scratch: Path) -> None:
    """Print time and memory for each number of recordings; `sounds` are float32 at 16 kHz."""
    print(
        "| sound | recordings | hours | peaks | index | comparison | pairs compared | memory | copies found | other |"
    )
    print("|---" * 10 + "|")
    for kind, draw in (("chirps", _chirps), ("at other speeds", functools.partial(_at_another_speed, sounds))):
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                _write_many(draw, size, N_COPIES, Path(folder))
                # In a process of its own, whose memory is that of this size alone.
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    print(f"| {kind} {pool.submit(_measure, Path(folder), N_COPIES).result()}", flush=True)


def _at_another_speed(sounds: Sequence[np.ndarray], number: int, rng: np.random.Generator) -> np.ndarray:
    speed = rng.uniform(0.8, 1.25)
    return soxr.resample(sounds[number % len(sounds)], RATE_HZ * speed, RATE_HZ, quality="LQ")


def _chirps(number: int, rng: np.random.Generator) -> np.ndarray:
    """Return 40 chirps of 30 to 300 ms in 10 s of noise."""
    sound = rng.normal(0, 0.003, 10 * RATE_HZ).astype(np.float32)
    for start, seconds in zip(rng.uniform(0, 9.5, 40), rng.uniform(0.03, 0.3, 40), strict=True):
        n = round(seconds * RATE_HZ)
        hz = np.linspace(*rng.uniform(1500, 7000, 2), n)
        sound[round(start * RATE_HZ) :][:n] += 0.1 * np.hanning(n) * np.sin(2 * np.pi * np.cumsum(hz) / RATE_HZ)
    return sound


class Sound(NamedTuple):
    """What `near_copies.find` reads of a decoded sound."""

    path: str
    n_samples: int
    sha256: str
    peaks: str


def _write_many(draw: Callable[[int, np.random.Generator], np.ndarray], size: int, n_copies: int, folder: Path) -> None:
    """Write the PCM of `size` sounds; the last `n_copies` are copies of earlier ones."""
    rng = np.random.default_rng(0)
    originals = []
    for i in range(size):
        if i >= size - n_copies:
            pcm = originals[(i * 7919) % len(originals)][16_000 + landmarks.HOP // 2 :]
        else:
            pcm = np.rint(draw(i, rng) * 2**15).clip(-(2**15), 2**15 - 1).astype("<i2")
            if len(originals) < 2 * n_copies and len(pcm) > 5 * RATE_HZ:
                originals.append(pcm)
        pcm.tofile(folder / spool.pcm_name(f"{i:06d}"))


def _measure(folder: Path, n_copies: int) -> str:
    """Return a row of the table; the last `n_copies` sounds in the folder are copies."""
    names = {spool.pcm_name(f"{i:06d}"): f"{i:06d}" for i in range(sum(1 for _ in folder.iterdir()))}
    start = time.process_time()
    sounds = []
    for name, path in names.items():
        with (folder / name).open("rb") as file:
            n_samples = (folder / name).stat().st_size // 2
            sounds.append(Sound(path, n_samples, path, landmarks.find_peaks(file)))
    peaks_s = time.process_time() - start
    before_mb = _memory_mb()
    start = time.process_time()
    candidates = near_copies.propose([landmarks.unpack(sound.peaks) for sound in sounds], RATE_HZ)
    index_s = time.process_time() - start
    start = time.process_time()
    copies = near_copies.find(sounds, dict.fromkeys(names.values(), folder), RATE_HZ, map)
    compare_s = time.process_time() - start - index_s
    first_copy = f"{len(sounds) - n_copies:06d}"
    found = {copy.other for copy in copies if copy.other >= first_copy}
    others = sum(copy.other < first_copy for copy in copies)
    hours = sum(sound.n_samples for sound in sounds) / RATE_HZ / 3600
    return (
        f"| {len(sounds)} | {hours:.1f} | {peaks_s:.1f} s | {index_s:.1f} s | {compare_s:.1f} s | {len(candidates)} "
        f"| {before_mb:.0f} + {_memory_mb() - before_mb:.0f} MB | {len(found)} of {n_copies} | {others} |"
    )


def _memory_mb() -> float:
    """Return the most memory that this process has had; `resource` would count that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--raw_dirs", type=Path, nargs="+", required=True, help="folders of recordings")
    parser.add_argument("--n_recordings", type=cli.positive_int, default=150, help="recordings to copy (default: 150)")
    add, parts, sizes = parser.add_argument, ["copies", "sets", "scale"], [2500, 5000, 10_000]
    of_scale = f"recordings of scale (default: {' '.join(map(str, sizes))})"
    add("--sizes", type=cli.positive_int, nargs="+", default=sizes, help=of_scale)
    add("--parts", nargs="+", choices=parts, default=parts, help="tables to make (default: all)")
    add("--seed", type=int, default=42, help="seed that draws the recordings (default: 42)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a row of the copies failed."""
    args = build_parser().parse_args(argv)
    n_failed = 0
    with tempfile.TemporaryDirectory() as scratch, workers.worker_pool(workers.available_cpus()) as pool_map:
        if "sets" in args.parts:
            drill_sets(args.raw_dirs, Path(scratch), pool_map)
        sounds = {}
        for raw_dir in args.raw_dirs if {"copies", "scale"} & set(args.parts) else []:
            found = formats.decode_all(raw_dir, None)
            sounds |= {f"{raw_dir.name} {label} {number}": sound for (label, number), sound in found.items()}
        if "copies" in args.parts:
            long = sorted(name for name, sound in sounds.items() if len(sound) >= LEAST_SECONDS * SOURCE_HZ)
            drawn = random.Random(args.seed).sample(long, min(args.n_recordings, len(long)))
            n_failed = drill_copies({name: sounds[name] / np.float32(2**15) for name in drawn}, Path(scratch), pool_map)
        if "scale" in args.parts:
            shorter = [soxr.resample(sound / np.float32(2**15), SOURCE_HZ, RATE_HZ) for sound in sounds.values()]
            drill_scale(shorter, args.sizes, Path(scratch))
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
