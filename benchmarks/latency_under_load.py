"""Check that latencies on a busy machine are true or marked as doubtful, compared with those on the quiet machine.

    python -m benchmarks.latency_under_load
    python -m benchmarks.latency_under_load --blocks 0 3 6 9 12 --spinning

Times wav2vec2-base with random weights at several depths, as 05_pruning.py does, in a new process each time. The
conditions are: one thread on the quiet machine; one thread per CPU on the quiet machine; and one thread per CPU while a
process started here keeps one CPU busy. --spinning adds threads that spin while they wait, PyTorch's default. The table
gives each time with its ratio to the quiet time of one thread, and the doubt that 05 would record. The exit code is 3
in two cases: a time beside the busy process differs by more than a factor of 1.5 from the quiet one without a doubt, or
fewer blocks are slower without a doubt. Start it on a quiet machine. It takes some minutes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.core import cli, runs
from utils.core.errors import InputError
from utils.core.workers import available_cpus

MOST_RATIO = 1.5
QUIET = "quiet, 1 thread"
BUSY = "import sys, time\nprint('busy', flush=True)\nwhile True: pass"
CLIP_SECONDS, SAMPLE_RATE_HZ = 5, 16_000


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--blocks", type=cli.non_negative_int, nargs="+", default=[0, 6, 12], help="depths")
    parser.add_argument("--seconds", type=cli.positive_float, default=2.0, help="seconds per depth")
    parser.add_argument("--hidden_size", type=cli.positive_int, default=768, help="hidden size of the model")
    parser.add_argument("--spinning", action="store_true", help="also measure threads that spin; this is slow")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--log_level", choices=["info", "warning"], default="warning", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure all conditions, print the table, and check it; a child process measures once and prints JSON."""
    if args.child:
        print(json.dumps(sweep(args.blocks, args.hidden_size, args.seconds)))
        return
    n_threads = available_cpus()
    ways = {
        QUIET: (1, "PASSIVE", False),
        f"quiet, {n_threads} threads": (n_threads, "PASSIVE", False),
        f"beside one, {n_threads} threads": (n_threads, "PASSIVE", True),
    }
    if args.spinning:
        ways[f"beside one, {n_threads} spinning"] = n_threads, "ACTIVE", True
    rows = []
    for way, (threads, policy, beside) in ways.items():
        print(way, flush=True)
        for n_blocks, found in measure(args, threads, policy, beside).items():
            rows.append({"way": way, "blocks": int(n_blocks), **found})
    table = judge(pd.DataFrame(rows))
    print(runs.device_name("cpu"))
    print(table.to_string(index=False, float_format="%.2f"))
    judged = table[table["way"].str.endswith("threads") & table["way"].str.startswith("beside")]
    wrong = judged[(judged["latency_doubt"] == "no") & ~judged["is_true"]]
    if len(wrong):
        raise InputError(
            f"{len(wrong)} of {len(judged)} times beside a busy process are wrong and not marked as doubtful"
        )
    print(f"all {len(judged)} times beside one busy process are true or marked as doubtful")


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Add the ratio to the quiet time of one thread, and whether ratio and order are right."""
    quiet = table[table["way"] == QUIET].set_index("blocks")["latency_ms_median"]
    table = table.assign(ratio=table["latency_ms_median"] / table["blocks"].map(quiet))
    in_order = [
        (own["latency_ms_median"].diff().fillna(0) >= 0) for _, own in table.sort_values("blocks").groupby("way")
    ]
    return table.assign(is_true=(table["ratio"] <= MOST_RATIO) & pd.concat(in_order))


def measure(args: argparse.Namespace, n_threads: int, policy: str, beside: bool) -> dict[str, dict]:
    """Return the times that a new process measures with `n_threads`, and beside a busy process if `beside`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": policy}
    words = ["--blocks", *map(str, args.blocks), "--seconds", str(args.seconds), "--hidden_size", str(args.hidden_size)]
    command = [sys.executable, "-m", "benchmarks.latency_under_load", "--child", *words]
    busy = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) if beside else None
    try:
        if busy is not None:
            busy.stdout.readline()  # wait until it runs
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    return json.loads(done.stdout)


def sweep(depths: Sequence[int], hidden_size: int, seconds: float) -> dict[int, dict]:
    """Time a wav2vec2 with random weights at several depths, in turn."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    from utils.models import encoders, latency
    from utils.models.loaded_model import LoadedModel

    models = {}
    for n_blocks in depths:
        torch.manual_seed(0)
        config = Wav2Vec2Config(
            hidden_size=hidden_size, intermediate_size=4 * hidden_size, num_hidden_layers=max(depths), num_labels=50
        )
        model = Wav2Vec2ForSequenceClassification(config).eval()
        encoders.prune_model(model, list(range(n_blocks)))
        models[n_blocks] = LoadedModel(model, Wav2Vec2FeatureExtractor())
    audio = np.random.default_rng(0).normal(size=CLIP_SECONDS * SAMPLE_RATE_HZ).astype(np.float32)
    found = latency.measure_in_turn(models, audio, SAMPLE_RATE_HZ, seconds)
    wanted = ("latency_ms_median", "latency_ms_low", "latency_ms_high", "latency_ms_p95", "cpu_busy_share")
    return {
        n_blocks: {
            name: value for name, value in dataclasses.asdict(times).items() if name in (*wanted, "latency_doubt")
        }
        for n_blocks, times in found.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
