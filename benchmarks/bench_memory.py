"""Memory of 02 and of 04, beside a bare loop that does the same work on the same model.

    python -m benchmarks.bench_memory
    python -m benchmarks.bench_memory --train_clips 64 --analysed_clips 500

The encoder of Whisper-base with random weights, and clips of tones. 02 trains all of it for an epoch, on clips of 5 s.
Its bare loop takes as many steps as its memory needs to reach its height: forward, backward, AdamW, a batch of four in
bfloat16 where 02 uses it. 04 measures all layers, on clips of 1 s. Its bare loop keeps the mean over the frames of each
layer and clip in memory, and measures nothing. Each runs in processes of its own. The memory is the highest sampled sum
of the PSS of all processes.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import memory, results
from benchmarks.noise import N_LABELS, SAMPLE_RATE_HZ, new_whisper
from tests.data import write_processed
from utils.data.clips import read_clips
from utils.models import encoders, training

TRAIN_SECONDS, ANALYSED_SECONDS = 5.0, 1.0
BATCH_SIZE, N_STEPS = 4, 30
LABELS = [f"word {number:02d}" for number in range(N_LABELS)]
GOAL = 1 / 1.3


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--train_clips", type=int, default=1600, help="clips of 02 (default: 1600)")
    parser.add_argument("--analysed_clips", type=int, default=20_000, help="clips of 04 (default: 20000)")
    parser.add_argument("--bare", nargs=3, default=None, help=argparse.SUPPRESS)
    results.add_arguments(parser, n_rounds=1)
    return parser


def bare_training(model_dir: Path, data_dir: Path) -> None:
    """Train for some steps on clips in a row."""
    loaded, clips = encoders.load_model(model_dir, "cpu"), read_clips(data_dir, "train")
    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(N_STEPS):
        numbers = [(BATCH_SIZE * step + i) % len(clips) for i in range(BATCH_SIZE)]
        inputs = loaded.prepare([clips.audio(number) for number in numbers], SAMPLE_RATE_HZ)
        labels = torch.tensor(clips.table["label_id"].to_numpy()[numbers]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=training.uses_bf16("auto", "cpu")):
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def bare_extraction(model_dir: Path, data_dir: Path) -> None:
    """Keep the mean of each layer over the frames of each clip."""
    loaded, clips, means = encoders.load_model(model_dir, "cpu"), read_clips(data_dir, "train"), []
    with torch.inference_mode():
        for first in range(0, len(clips), BATCH_SIZE):
            batch = [clips.audio(number) for number in range(first, min(first + BATCH_SIZE, len(clips)))]
            states = loaded.model(**loaded.prepare(batch, SAMPLE_RATE_HZ), output_hidden_states=True).hidden_states
            means.append(np.stack([state.mean(dim=1).numpy() for state in states]))
    np.concatenate(means, axis=1)


BARE = {"training": bare_training, "extraction": bare_extraction}


def main(argv: Sequence[str] | None = None) -> int:
    """Run each stage and its bare loop; print their memory."""
    args = build_parser().parse_args(argv)
    if args.bare:
        way, model_dir, data_dir = args.bare
        BARE[way](Path(model_dir), Path(data_dir))
        return 0
    with tempfile.TemporaryDirectory() as name, results.Table(__file__, args.results) as table:
        folder = Path(name)
        cases = {
            "02": ("training", args.train_clips, TRAIN_SECONDS, "02_finetuning.py", "--base_model"),
            "04": ("extraction", args.analysed_clips, ANALYSED_SECONDS, "04_analysis.py", "--model_dir"),
        }
        for stage, (way, n_clips, seconds, script, flag) in cases.items():
            data_dir, model_dir = folder / f"{stage}-clips", folder / f"{stage}-model"
            n_recordings = {"train": n_clips // (2 * N_LABELS), "val": 1}  # of each label, each with two clips
            write_processed(data_dir, LABELS, n_recordings, seconds)
            encoders.save_model(new_whisper(seconds), model_dir)
            words = [flag, model_dir, "--data_dir", data_dir, "--output_dir", folder / f"{stage}-out"]
            words += ["--num_train_epochs", 1] if stage == "02" else ["--split", "train"]
            words += ["--log_level", "warning"] + ["--per_device_train_batch_size", BATCH_SIZE] * (stage == "02")
            ours = peak([results.ROOT / script, *words])
            bare = peak(["-m", "benchmarks.bench_memory", "--bare", way, model_dir, data_dir])
            n_clips = 2 * N_LABELS * n_recordings["train"]
            claim = f"memory of {stage}, Whisper-base, {n_clips:,} clips of {seconds:g} s"
            table.add(claim, "bare loop", ours, bare, "MB", GOAL)
    return 0


def peak(words: Sequence[object]) -> float:
    """Return the highest PSS, in MB, of a Python command."""
    child = subprocess.Popen([sys.executable, *map(str, words)], cwd=results.ROOT, stdout=subprocess.DEVNULL)
    return memory.peaks_of(child)[1]


if __name__ == "__main__":
    sys.exit(main())
