"""Speed and memory of 01_data_processing.py, compared with other ways to do its work.

    python -m benchmarks.bench_data_processing
    python -m benchmarks.bench_data_processing --minutes 10 --rounds 1

Synthesises sound files in a temporary folder (wav, flac, ogg and mp3; 32, 44.1 and 48 kHz; mono and stereo) and links
each under several names. Then it runs these ways in turn on the same files:

- 01: the whole command, from the start of the interpreter to its end, with all its checks and outputs;
- bare loop: the same number of worker processes decode and resample every file and discard the result: whole files at
  once, and block by block, which is faster;
- published way: one process reads whole files, resamples section by section with torchaudio, collects lists of floats,
  and writes them with pandas and Dataset.save_to_disk. It is slow and its memory grows, so it gets every file once;
  imports are not timed.

Times are for an hour of sound. Memory is the highest sampled sum over all processes of the command: RSS counts shared
libraries once per process, PSS counts them once.
"""

import argparse
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks import memory, results

ROOT = results.ROOT
TARGET_RATE_HZ = 16000
FILE_SECONDS = 45
BLOCK_VALUES = 2**16
# suffix, subtype, sample rate in Hz, channels, as in archives of bird sound
FORMATS = [
    ("mp3", "MPEG_LAYER_III", 44100, 2),
    ("ogg", "VORBIS", 32000, 1),
    ("mp3", "MPEG_LAYER_III", 48000, 1),
    ("wav", "PCM_16", 48000, 2),
    ("flac", "PCM_16", 44100, 1),
    ("mp3", "MPEG_LAYER_III", 48000, 2),
    ("ogg", "VORBIS", 44100, 2),
    ("flac", "PCM_24", 48000, 2),
]
N_LABELS = 4
OURS = "01, whole command"
GOALS = {"bare loop over whole files": 0.85, "bare loop by blocks": 0.9, "published way": 4}


# ------------------------------------------------------------------------------------------ the sound files


def write_sound(path: Path, subtype: str, rate_hz: int, n_channels: int, seconds: float, seed: int) -> None:
    """Write whistles over noise, block by block; every seed sounds different."""
    rng = np.random.default_rng(seed)
    carrier, sweep, speed = rng.uniform(2000, 6000), rng.uniform(200, 1500), rng.uniform(0.5, 8)
    with soundfile.SoundFile(path, "w", rate_hz, n_channels, subtype=subtype) as file:
        for start in range(0, round(seconds * rate_hz), rate_hz):
            t = np.arange(start, min(start + rate_hz, round(seconds * rate_hz))) / rate_hz
            whistle = 0.3 * np.sin(2 * np.pi * carrier * t + sweep / speed * np.sin(2 * np.pi * speed * t))
            whistle *= np.sin(2 * np.pi * 0.7 * t) > 0
            block = whistle[:, None] + 0.02 * rng.standard_normal((len(t), n_channels))
            for i in range(0, len(block), 8192):  # libsndfile's Vorbis encoder crashes on long blocks
                file.write(block[i : i + 8192])


def synthesise(folder: Path, n_files: int, num_workers: int) -> list[Path]:
    tasks = []
    for i in range(n_files):
        suffix, *sound = FORMATS[i % len(FORMATS)]
        path = folder / f"species {i % N_LABELS}" / f"XC{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Lengths differ, as in real recordings.
        tasks.append((path, *sound, FILE_SECONDS * (0.5 + i * 0.618 % 1), i))
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        pool.starmap(write_sound, tasks, chunksize=4)
    return [path for path, *_ in tasks]


# ------------------------------------------------------------------------------------------------- the ways


def run_stage(raw_dir: Path, output_dir: Path, num_workers: int) -> subprocess.Popen:
    command = [sys.executable, ROOT / "01_data_processing.py", "--raw_dir", raw_dir, "--output_dir", output_dir]
    command += ["--min_recordings", "1", "--num_workers", str(num_workers), "--log_level", "error"]
    return subprocess.Popen(list(map(str, command)))


def time_stage(raw_dir: Path, scratch: Path, num_workers: int) -> float:
    output_dir = scratch / "processed"
    start = time.perf_counter()
    if run_stage(raw_dir, output_dir, num_workers).wait():
        raise SystemExit("01_data_processing.py failed")
    seconds = time.perf_counter() - start
    shutil.rmtree(output_dir)
    return seconds


def decode_whole(path: Path) -> int:
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return len(soxr.resample(samples.mean(axis=1), rate_hz, TARGET_RATE_HZ))


class Stream(soundfile.SoundFile):
    """A file without seeking: soundfile's seek after every read resets the decoder of an mp3."""

    def seekable(self) -> bool:
        return False


def decode_by_blocks(path: Path) -> int:
    with Stream(path) as file:
        stream = soxr.ResampleStream(file.samplerate, TARGET_RATE_HZ, 1, dtype="float32")
        buffer = np.empty((BLOCK_VALUES // file.channels, file.channels), np.float32)
        n_samples = 0
        while n := file.buffer_read_into(buffer, "float32"):
            mono = buffer[:n, 0].copy() if file.channels == 1 else (buffer[:n, 0] + buffer[:n, 1]) / 2
            n_samples += len(stream.resample_chunk(mono))
        return n_samples + len(stream.resample_chunk(np.empty(0, np.float32), last=True))


def time_bare_loop(decode: Callable[[Path], int], paths: Sequence[Path], num_workers: int) -> float:
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        for _ in pool.imap_unordered(decode, paths, chunksize=2):
            pass
    return time.perf_counter() - start


def time_published_way(paths: Sequence[Path], scratch: Path) -> float:
    """Process files as the published script did: cut them at the source rate, then resample."""
    import datasets
    import pandas as pd
    import torch
    import torchaudio

    datasets.disable_progress_bars()
    output_dir = scratch / "published"
    start = time.perf_counter()
    rows = []
    for path in paths:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        sound = torch.from_numpy(samples[:, 0].copy())
        for segment in sound.split(10 * TARGET_RATE_HZ):
            resampled = torchaudio.functional.resample(segment, rate_hz, TARGET_RATE_HZ)
            rows.append({"audio": resampled.tolist(), "label": path.parent.name})
    datasets.Dataset.from_pandas(pd.DataFrame(rows)).save_to_disk(output_dir)
    seconds = time.perf_counter() - start
    shutil.rmtree(output_dir)
    return seconds


# ---------------------------------------------------------------------------------------------------- memory


def peak_memory(raw_dir: Path, scratch: Path, num_workers: int) -> tuple[float, float]:
    """Return the highest sums of RSS and of PSS over the processes of 01, in MB."""
    output_dir = scratch / "processed"
    peaks = memory.peaks_of(run_stage(raw_dir, output_dir, num_workers))
    shutil.rmtree(output_dir)
    return peaks


# ------------------------------------------------------------------------------------------------------ main


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=50, help="sound to synthesise, in minutes (default: 50)")
    parser.add_argument("--copies", type=int, default=10, help="names per sound file (default: 10)")
    results.add_arguments(parser)
    parser.add_argument("--num_workers", type=int, default=2, help="worker processes (default: 2)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name, results.Table(__file__, args.results) as table:
        report(args, Path(name), table)
    return 0


def link(paths: Sequence[Path], source: Path, target: Path, n_copies: int) -> list[Path]:
    """Link files of one folder into another under `n_copies` names each, so that each name is a recording."""
    links = []
    for copy in range(n_copies):
        for path in paths:
            name = target / path.relative_to(source).with_stem(f"{path.stem}{copy:02d}")
            name.parent.mkdir(parents=True, exist_ok=True)
            name.hardlink_to(path)
            links.append(name)
    return links


def report(args: argparse.Namespace, scratch: Path, table: results.Table) -> None:
    n_files = max(2 * len(FORMATS), round(args.minutes * 60 / FILE_SECONDS))
    distinct = synthesise(scratch / "distinct", n_files, args.num_workers)
    paths = link(distinct, scratch / "distinct", scratch / "large", args.copies)
    once = link(distinct, scratch / "distinct", scratch / "once", 1)
    once_seconds = sum(soundfile.info(path).duration for path in once)
    seconds = args.copies * once_seconds
    ways = {
        OURS: lambda: 3600 / seconds * time_stage(scratch / "large", scratch, args.num_workers),
        "bare loop over whole files": lambda: 3600 / seconds * time_bare_loop(decode_whole, paths, args.num_workers),
        "bare loop by blocks": lambda: 3600 / seconds * time_bare_loop(decode_by_blocks, paths, args.num_workers),
        "published way": lambda: 3600 / once_seconds * time_published_way(once, scratch),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, measure in ways.items():
            taken[way].append(measure())
    claim = f"stage 01, the whole command, {len(paths)} files, {seconds / 3600:.2f} h of sound, for an hour of it"
    for way, goal in GOALS.items():
        table.add(claim, way, taken[OURS], taken[way], "s", goal)

    hour = scratch / "hour"
    for i, hour_seconds in enumerate([3600, 30]):
        path = hour / f"species {i}" / f"XC{i}.wav"
        path.parent.mkdir(parents=True)
        write_sound(path, "PCM_16", 44100, 2, hour_seconds, i)
    found = {
        "every file once": peak_memory(scratch / "once", scratch, args.num_workers),
        f"every file {args.copies} times": peak_memory(scratch / "large", scratch, args.num_workers),
        "one file of an hour": peak_memory(hour, scratch, args.num_workers),
    }
    (base_rss, base_pss), *others = found.values()
    print(f"\n{'memory of 01':<26}{'RSS in MB':>12}{'relative':>10}{'PSS in MB':>12}{'relative':>10}")
    for what, (rss, pss) in found.items():
        print(f"{what:<26}{rss:>12.0f}{rss / base_rss:>10.2f}{pss:>12.0f}{pss / base_pss:>10.2f}")
    for what, (rss, _) in zip(list(found)[1:], others, strict=True):
        table.add(f"memory of stage 01, {what}", "every file once", rss, base_rss, "MB", 0.9)


if __name__ == "__main__":
    sys.exit(main())
