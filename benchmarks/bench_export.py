"""Speed, size and answers of exported files, beside the same models in PyTorch, on one thread.

    python -m benchmarks.bench_export
    python -m benchmarks.bench_export --model_dir runs/pruned runs/cnn --data_dir processed_data --fold 1
    python -m benchmarks.bench_export --openvino         # also in OpenVINO: pip install openvino

Without --model_dir: the encoder of Whisper-base with random weights, whole and with two of its six blocks, and the
log-mel CNN. Each model scores one clip at a time, from waveform to logits, in turn with its files: in PyTorch as stage
08 does it (oneDNN, norms folded into convolutions), and in ONNX Runtime. Times are those of the CPU, so that other
processes disturb them little. A second table compares the answers on the clips of val, or on noise. Random weights have
no margin between labels, so only trained models show whether int8 keeps the answers.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import results
from benchmarks.noise import N_LABELS, SAMPLE_RATE_HZ, new_whisper, noise_clips
from utils.core import names
from utils.data.clips import read_clips
from utils.field import scoring
from utils.models import cnn, encoders, export, exported, loading
from utils.models.exported import PRECISIONS
from utils.models.loaded_model import LoadedModel

CUTTING = {"clip_fill": "repeat", "clip_channel": "mean", "clip_remainder": "pad"}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model_dir", type=Path, nargs="+", default=[], help="trained models (default: random weights)"
    )
    parser.add_argument("--data_dir", type=Path, default=None, help="their clips, of which val is scored")
    parser.add_argument("--fold", type=int, default=None, help="fold of --data_dir")
    results.add_arguments(parser)
    parser.add_argument("--passes", type=int, default=5, help="clips of a model in a round (default: 5)")
    parser.add_argument("--openvino", action="store_true", help="also run the float32 and int8 files in OpenVINO")
    return parser


def new_models() -> dict[str, LoadedModel]:
    """Return models with random weights that know how their clips were cut."""
    whole = new_whisper(5.0)
    labels = [str(i) for i in range(N_LABELS)]
    models = {
        "Whisper-base, 6 blocks": whole,
        "Whisper-base, 2 blocks": encoders.pruned_copy(whole, [0, 1]),
        "log-mel CNN": cnn.build_cnn("melspectrogram", labels, SAMPLE_RATE_HZ, 5.0).ready("cpu"),
    }
    for loaded in models.values():
        for name, value in {**CUTTING, "clip_seconds": 5.0}.items():
            setattr(loaded.config, name, value)
    return models


def in_openvino(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from clips to logits in OpenVINO; its precision is explicit, as its default is bfloat16."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda clips: compiled({exported.WAVEFORM: clips})[exported.LOGITS]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of all models and files."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    loading.quiet_transformers()
    models = {names.of_model(path): encoders.load_model(path, "cpu") for path in args.model_dir} or new_models()
    train = val = None
    if args.data_dir is not None:
        train, val = (read_clips(args.data_dir, split, None, 0, args.fold) for split in ("train", "val"))
        val = val.with_one_label()
    answers = []
    with (
        results.Table(__file__, args.results) as table,
        tempfile.TemporaryDirectory() as scratch,
        torch.inference_mode(),
    ):
        for number, (name, loaded) in enumerate(models.items()):
            if args.data_dir is None:
                train = noise_clips(Path(scratch) / f"{number}.clips", 8, loaded.config.clip_seconds)
            network, wanted = export.network_of(loaded, ""), export.logits_of(loaded, val)
            ways, found = {}, {}
            for precision in PRECISIONS:
                path = Path(scratch) / f"{number}.{precision}.onnx"
                export.write(network, path, precision, train)
                ways[precision], found[precision] = (
                    exported.ExportedModel(path).logits,
                    export.compare(path, wanted, val),
                )
                if args.openvino and precision != exported.FLOAT16:
                    way = f"{precision}, OpenVINO"
                    ways[way] = in_openvino(path)
            measure(name, loaded, ways, args, table)
            answers += [told(name, precision, one) for precision, one in found.items()]
    print(pd.DataFrame(answers).to_string(index=False, float_format="%.4g"))
    return 0


def measure(
    name: str,
    loaded: LoadedModel,
    ways: dict[str, Callable[[np.ndarray], np.ndarray]],
    args: argparse.Namespace,
    table: results.Table,
) -> None:
    """Time a model and its files in turn; add their rows."""
    n_samples = round(loaded.config.clip_seconds * loaded.extractor.sampling_rate)
    clip = (0.1 * np.random.default_rng(0).standard_normal((1, n_samples))).astype(np.float32)

    def passes(call: Callable[[np.ndarray], object]) -> None:
        for _ in range(args.passes):
            call(clip)

    with scoring.in_torch(loaded) as (prepare, logits):
        calls = {"PyTorch": lambda clips: logits(prepare(clips)), **ways}
        in_rounds = {way: functools.partial(passes, call) for way, call in calls.items()}
        seconds = results.in_turn(in_rounds, args.rounds, time.process_time)
    ms = {way: [1e3 * each / args.passes for each in of_way] for way, of_way in seconds.items()}
    for way in ways:
        table.add(
            f"{name}, {way} file, a clip of 5 s", "PyTorch", ms[way], ms["PyTorch"], "ms of CPU", goal_of(name, way)
        )


def goal_of(name: str, way: str) -> float | None:
    """Return the lowest speed-up that was aimed at: in int8, for two blocks and for the CNN."""
    goals = {"2 blocks": 2.4, "CNN": 1.9}
    return next((goal for part, goal in goals.items() if part in name and way == exported.INT8), None)


def told(name: str, precision: str, comparison: export.Comparison) -> dict[str, object]:
    """Return a row of the table of answers."""
    row = {"model": name, "file": precision, "MB": comparison.megabytes}
    row |= {"logits differ by": comparison.largest_logit_difference, "same label": comparison.top1_agreement}
    row["of clips"] = f"{comparison.n_clips} of {comparison.clips}"
    if comparison.clips == export.VAL:
        low, high = comparison.accuracy_difference_low, comparison.accuracy_difference_high
        row["accuracy, file - model"] = f"{comparison.accuracy_difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    return row


if __name__ == "__main__":
    sys.exit(main())
