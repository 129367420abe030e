"""Speed, size and answers of exported files, beside the same models in PyTorch, on one thread.

    python -m benchmarks.bench_export
    python -m benchmarks.bench_export --model_dir runs/pruned runs/cnn --data_dir processed_data --fold 1
    python -m benchmarks.bench_export --openvino         # also in OpenVINO: pip install openvino

Without --model_dir: the encoder of Whisper-base with random weights, whole and with two of its six blocks, and the
log-mel CNN. Each model scores one clip at a time, from waveform to logits, in turn with its files: in PyTorch as stage
08 does it (oneDNN, norms folded into convolutions), and in ONNX Runtime. The times are medians of the CPU time of the
process, so that other processes disturb them little. The ratio is the median of the rounds, from the lowest to the
highest. The last columns compare the answers on the clips of val, or on noise. Random weights have no margin between
labels, so only trained models show whether int8 keeps the answers.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.noise import N_LABELS, SAMPLE_RATE_HZ, new_whisper
from utils.core import runs
from utils.data.clips import Clips, read_clips
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
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
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
    models = {str(path): encoders.load_model(path, "cpu") for path in args.model_dir} or new_models()
    val: Clips | None = None
    if args.data_dir is not None:
        val = read_clips(args.data_dir, "val", None, 0, args.fold).with_one_label()
    print(f"{runs.device_name('cpu')}, one thread, clips of 5 s; ratio: CPU time in PyTorch by that of the file")
    rows = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for number, (name, loaded) in enumerate(models.items()):
            network, wanted = export.network_of(loaded, ""), export.logits_of(loaded, val)
            ways, found = {}, {}
            for precision in PRECISIONS:
                path = Path(scratch) / f"{number}.{precision}.onnx"
                export.write(network, path, precision)
                ways[precision], found[precision] = (
                    exported.ExportedModel(path).logits,
                    export.compare(path, wanted, val),
                )
                if args.openvino and precision != exported.FLOAT16:
                    way = f"{precision}, OpenVINO"
                    ways[way] = in_openvino(path)
            rows += measured(name, loaded, ways, found, args)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.4g", na_rep=""))
    return 0


def measured(
    name: str,
    loaded: LoadedModel,
    ways: dict[str, Callable[[np.ndarray], np.ndarray]],
    found: dict[str, export.Comparison],
    args: argparse.Namespace,
) -> list[dict[str, object]]:
    """Time a model and its files in turn; return their rows."""
    rate_hz = loaded.extractor.sampling_rate
    n_samples = round(loaded.config.clip_seconds * rate_hz)
    clip = (0.1 * np.random.default_rng(0).standard_normal((1, n_samples))).astype(np.float32)
    times: dict[str, list[float]] = {way: [] for way in ("PyTorch", *ways)}
    with scoring.in_torch(loaded) as (prepare, logits):
        calls = {"PyTorch": lambda clips: logits(prepare(clips)), **ways}
        for number in range(args.rounds + 1):  # the first warms up
            for way, call in calls.items():
                start = time.process_time()
                for _ in range(args.passes):
                    call(clip)
                if number:
                    times[way].append(1e3 * (time.process_time() - start) / args.passes)
    rows = [{"model": name, "file": "PyTorch", "ms": round(statistics.median(times["PyTorch"]), 1)}]
    for way in ways:
        ratios = [torch_ms / own_ms for torch_ms, own_ms in zip(times["PyTorch"], times[way], strict=True)]
        row = {"model": name, "file": way, "ms": round(statistics.median(times[way]), 1)}
        row |= {"ratio": statistics.median(ratios), "range": f"{min(ratios):.2f} to {max(ratios):.2f}"}
        if (comparison := found.get(way)) is not None:
            row |= {"MB": comparison.megabytes, "logits differ by": comparison.largest_logit_difference}
            row |= {"same label": comparison.top1_agreement, "of clips": f"{comparison.n_clips} of {comparison.clips}"}
            if comparison.clips == export.VAL:
                low, high = comparison.accuracy_difference_low, comparison.accuracy_difference_high
                row["accuracy"] = f"{comparison.accuracy_difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
