"""Encode real recordings in every usual format, and compare the clips of stage 01 with those from WAV.

    python -m drills.formats --raw_dir ../shared/data/birds20
    python -m drills.formats --raw_dir ../shared/data/birds20 --limit 20 --formats wav opus mp3-vbr

All files are decoded once, converted to 48 kHz mono and written in each format; --raw_dir holds a folder per species,
or a metadata.csv. A format survives if skipped.csv is empty, no log line reports a damaged or truncated file, and every
recording has the same clips with the same start_s and a duration within the delay of the codec. A rest with a length
that close to --min_remainder_seconds may be a clip in one format and not in another: such recordings are counted
separately.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pandas as pd
import soundfile

from utils.core import cli
from utils.data import audio, recordings

ROOT = Path(__file__).resolve().parent.parent
RATE_HZ = 48_000
LEAST_REST_S = 1.0
NO_XING = {"write_xing": "0"}
ID3 = {"id3v2_version": "3"}
NO_ID3 = {"id3v2_version": "0"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A format of sound files.

    Attributes
    ----------
    suffix, container, codec : str
        Container and codec have FFmpeg's names.
    delay_s : float
        Largest allowed difference of a duration from that of the WAV.
    quality : float or None
        Quality of a variable bit rate; None for a constant one.
    options : dict
        Options of the container.
    bit_rate : int or None
        Constant bit rate in bit/s; None for the default of the codec.
    """

    suffix: str
    container: str
    codec: str
    delay_s: float = 0.0
    quality: float | None = None
    options: dict[str, str] = field(default_factory=dict)
    bit_rate: int | None = None


MP3_DELAY_S = (1105 + 2 * 1152) / RATE_HZ  # delay of encoder and decoder, and the padding of the last frame
FORMATS = {
    "wav": Format("wav", "wav", "pcm_s16le"),
    "flac": Format("flac", "flac", "flac"),
    "vorbis": Format("ogg", "ogg", "vorbis", 1024 / RATE_HZ),
    "opus": Format("opus", "ogg", "libopus", 960 / RATE_HZ),
    "aac": Format("m4a", "ipod", "aac", 2048 / RATE_HZ),
    "mp3-cbr": Format("mp3", "mp3", "libmp3lame", MP3_DELAY_S, None, NO_ID3),
    "mp3-cbr-id3": Format("mp3", "mp3", "libmp3lame", MP3_DELAY_S, None, ID3),
    "mp3-vbr": Format("mp3", "mp3", "libmp3lame", MP3_DELAY_S, 4, NO_ID3),
    "mp3-vbr-id3": Format("mp3", "mp3", "libmp3lame", MP3_DELAY_S, 4, ID3),
    "mp3-vbr-no-xing": Format("mp3", "mp3", "libmp3lame", MP3_DELAY_S, 4, NO_XING | NO_ID3),
    "mp3-vbr-no-xing-id3": Format("mp3", "mp3", "libmp3lame", MP3_DELAY_S, 4, NO_XING | ID3),
}


def encode(path: Path, samples: np.ndarray, rate_hz: int, how: Format) -> None:
    """Write samples, float32 of shape (n, channels), with FFmpeg's encoder, or libvorbis for Vorbis."""
    if how.codec == "vorbis":
        with soundfile.SoundFile(path, "w", rate_hz, samples.shape[1], format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(samples), 8192):  # libsndfile's Vorbis encoder crashes on long blocks
                file.write(samples[start : start + 8192])
        return
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", format=how.container, options=how.options) as output:
        if how.options.get("id3v2_version", "0") != "0":
            output.metadata["title"] = "a song " * 100
        stream = output.add_stream(how.codec, rate=rate_hz, layout=layout)
        if how.codec.startswith("wma"):
            stream.bit_rate = 64_000
        if how.bit_rate is not None:
            stream.bit_rate = how.bit_rate
        if how.quality is not None:
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = round(how.quality * 118)  # FF_QP2LAMBDA
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.codec_context.format.name, layout, rate_hz, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))


def decode_all(raw_dir: Path, limit: int | None) -> dict[tuple[str, str], np.ndarray]:
    """Return the sound of all recordings, int16 of shape (n,), by label and number."""
    metadata = raw_dir / "metadata.csv"
    files, _ = recordings.find_recordings(raw_dir, metadata if metadata.is_file() else None)
    sounds = {}
    for i, file in enumerate(files[:limit]):
        blocks: list[np.ndarray] = []
        audio.decode(raw_dir / file.path, RATE_HZ, lambda blocks=blocks: blocks.clear() or blocks.append)
        sounds[file.label, f"XC{i + 1}"] = np.concatenate(blocks)
    return sounds


def make_clips(raw_dir: Path, output_dir: Path) -> tuple[pd.DataFrame, int, list[str]]:
    """Return the clips of stage 01, the number of files that it skips, and its log lines on damaged files."""
    command = [sys.executable, ROOT / "01_data_processing.py", "--raw_dir", raw_dir, "--output_dir", output_dir]
    command += ["--min_recordings", "1", "--min_remainder_seconds", LEAST_REST_S]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"01_data_processing.py ended with {done.returncode}:\n{done.stderr}")
    clips = [pd.read_parquet(path, columns=COLUMNS) for path in sorted(output_dir.glob("clips-*.parquet"))]
    odd = [line for line in done.stderr.splitlines() if "damaged" in line or "breaks off" in line]
    return pd.concat(clips), len(pd.read_csv(output_dir / "skipped.csv")), odd


COLUMNS = ["recording_id", "start_s", "duration_s"]


def compare(reference: pd.DataFrame, found: pd.DataFrame, delay_s: float) -> tuple[int, int, float]:
    """Return how many recordings have other clips, how many differ only by a rest, and the largest difference.

    The difference is between the durations in s of clips that both have.
    """
    n_other = n_at_limit = 0
    largest_s = 0.0
    expected, got = (dict(list(table.groupby("recording_id"))) for table in (reference, found))
    for recording_id in expected.keys() | got.keys():
        pair = [table.get(recording_id, reference.iloc[:0]) for table in (expected, got)]
        one, two = (dict(zip(table.start_s, table.duration_s, strict=True)) for table in pair)
        if one.keys() == two.keys():
            difference = max(abs(one[start] - two[start]) for start in one)
            largest_s = max(largest_s, difference)
            n_other += difference > delay_s + 1e-6
        else:
            extra = [{**one, **two}[start] for start in one.keys() ^ two.keys()]
            at_limit = all(abs(length - LEAST_REST_S) <= delay_s for length in extra)
            n_at_limit += at_limit
            n_other += not at_limit
    return n_other, n_at_limit, largest_s


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--raw_dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument(
        "--limit", type=cli.positive_int, default=None, help="use only this many recordings (default: all)"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats to compare (default: all)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per format; return 1 if a format did not survive."""
    args = build_parser().parse_args(argv)
    sounds = decode_all(args.raw_dir, args.limit)
    hours = sum(map(len, sounds.values())) / RATE_HZ / 3600
    print(f"{len(sounds)} recordings, {hours:.2f} h, FFmpeg {av.ffmpeg_version_info}\n")
    print("| format | skipped | damaged or cut | other clips | a rest at the limit | duration differs by | allowed |")
    print("|---|---|---|---|---|---|---|", flush=True)
    reference, n_failed = None, 0
    for name in dict.fromkeys(["wav", *args.formats]):
        how = FORMATS[name]
        with tempfile.TemporaryDirectory() as scratch:
            for (label, number), samples in sounds.items():
                path = Path(scratch) / "raw" / label / f"{number}.{how.suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                encode(path, samples[:, None].astype(np.float32) / 32768, RATE_HZ, how)
            found, n_skipped, odd = make_clips(Path(scratch) / "raw", Path(scratch) / "out")
        reference = found if reference is None else reference
        n_other, n_at_limit, largest_s = compare(reference, found, how.delay_s)
        n_failed += bool(n_skipped or odd or n_other)
        lengths = f"{1000 * largest_s:.1f} ms | {1000 * how.delay_s:.1f} ms"
        print(f"| {name} | {n_skipped} | {len(odd)} | {n_other} | {n_at_limit} | {lengths} |", flush=True)
        for line in odd[:3]:
            log.warning("%s", line)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
