"""Speed and memory of the similarity of all pairs of layers from a memory map, compared with n x n kernel matrices.

    python -m benchmarks.bench_similarity          # about two minutes on two cores
    python -m benchmarks.bench_similarity --knn_clips 20000 --rbf_clips 20000

Writes hidden states of random, correlated layers to a temporary folder (13 layers of 20,000 clips in 768 dimensions:
0.8 GB). Each measurement then runs in its own process, which starts with only the file:

- debiased linear CKA of all pairs, in feature space, block by block;
- n x n, one pair: kernel matrices in float64, centred by their means, the usual form of CKA;
- n x n, one pair, HKH: the same, but centred by a product with H = I - 1/n, a form that is often published;
- mutual kNN, cosine and RBF CKA of all pairs.

The n x n ways get fewer clips, and are compared with CKA on the same clips; their cost is also extrapolated to the full
number, by n^2 and by n^3, and marked. Seconds include reading the file. CPU seconds are summed over all threads. Memory
is the highest resident set of the process, which includes the pages of the memory map that were read. Set
OMP_NUM_THREADS to the number of cores to use.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import results
from utils.layers import similarity

GOAL_SECONDS, GOAL_GB = 60, 3
ROWS_AT_ONCE = 1000


def synthesise(path: Path, n_layers: int, n_clips: int, d: int) -> None:
    """Write layers that increasingly differ from the first, with unequal dimensions, block by block."""
    rng = np.random.default_rng(0)
    states = np.lib.format.open_memmap(path, "w+", np.float32, (n_layers, n_clips, d))
    sizes = np.geomspace(10, 0.1, d, dtype=np.float32)
    for start in range(0, n_clips, ROWS_AT_ONCE):
        layer = rng.standard_normal((min(ROWS_AT_ONCE, n_clips - start), d), np.float32) * sizes
        for i in range(n_layers):
            layer = 0.9 * np.roll(layer, 1, axis=1) + 0.4 * rng.standard_normal(layer.shape, np.float32) * sizes
            states[i, start : start + len(layer)] = layer + 1
    states.flush()


# ------------------------------------------------------------------------------------------------- the ways


def kernel_matrices(states: np.ndarray, centre: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the biased CKA of the first layer and the last, by n x n matrices."""
    k, other = (centre(x @ x.T) for x in (states[0].astype(np.float64), states[-1].astype(np.float64)))
    return float((k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum()))


def by_means(k: np.ndarray) -> np.ndarray:
    return k - k.mean(axis=0) - k.mean(axis=1, keepdims=True) + k.mean()


def by_products(k: np.ndarray) -> np.ndarray:
    h = np.eye(len(k)) - 1 / len(k)
    return h @ k @ h


WAYS = {
    "CKA, all pairs": similarity.cka,
    "n x n, one pair": lambda states: kernel_matrices(states, by_means),
    "n x n, one pair, HKH": lambda states: kernel_matrices(states, by_products),
    "cosine, all pairs": similarity.cosine,
    "mutual kNN, all pairs": similarity.mutual_knn,
    "RBF CKA, all pairs": lambda states: similarity.cka(states, kind="rbf"),
}


def measure_here(way: str, path: Path, n_clips: int) -> np.ndarray:
    states = np.load(path, mmap_mode="r")[:, :n_clips]
    start, cpu_start = time.perf_counter(), time.process_time()
    WAYS[way](states)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return np.array([seconds, cpu_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9])


def measure(way: str, path: Path, n_clips: int) -> np.ndarray:
    """Return the seconds, the CPU seconds and the peak memory in GB of a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_here, (way, path, n_clips))


# ------------------------------------------------------------------------------------------------------ main


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--n_layers", type=int, default=13, help="number of layers (default: 13)")
    parser.add_argument("--n_clips", type=int, default=20000, help="clips (default: 20000)")
    parser.add_argument("--dimensions", type=int, default=768, help="dimensions per layer (default: 768)")
    parser.add_argument("--gram_clips", type=int, default=4000, help="clips for the n x n ways (default: 4000)")
    parser.add_argument("--knn_clips", type=int, default=5000, help="clips for mutual kNN (default: 5000)")
    parser.add_argument("--rbf_clips", type=int, default=5000, help="clips for RBF CKA (default: 5000)")
    results.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hidden_states.npy"
        synthesise(path, args.n_layers, args.n_clips, args.dimensions)
        with results.Table(__file__, args.results) as table:
            report(args, path, table)
    return 0


def report(args: argparse.Namespace, path: Path, table: results.Table) -> None:
    n, n_pairs = args.n_clips, args.n_layers * (args.n_layers + 1) // 2
    print(f"{args.n_layers} layers of {n} clips in {args.dimensions} dimensions, {path.stat().st_size / 1e9:.1f} GB")
    print(f"\n{'way':<24}{'clips':>8}{'pairs':>7}{'s':>9}{'CPU s':>9}{'peak GB':>9}")
    n_few = min(n, args.gram_clips)
    ways = {("CKA, all pairs", n): [], ("CKA, all pairs", n_few): []}
    ways |= {("n x n, one pair", n_few): [], ("n x n, one pair, HKH", n_few): []}
    for _ in range(args.rounds):
        for (way, n_clips), costs in ways.items():
            costs.append(measure(way, path, n_clips))
    for (way, n_clips), costs in ways.items():
        print_row(way, n_clips, 1 if "one pair" in way else n_pairs, np.median(costs, axis=0))
    few = [cost[0] / n_pairs for cost in ways["CKA, all pairs", n_few]]
    for way, power in [("n x n, one pair", 2), ("n x n, one pair, HKH", 3)]:
        costs = ways[way, n_few]
        growth = n / n_few
        print_row(f"  {way[15:]} extrapolated", n, 1, costs[0] * [growth**power, growth**power, growth**2])
        claim = f"CKA of one of {n_pairs} pairs of layers, {n_few:,} clips in {args.dimensions} dimensions"
        table.add(claim, f"{way.partition(',')[0]} matrices{way[15:]}", few, [cost[0] for cost in costs], "s")
    for way, n_clips in {
        "cosine, all pairs": n,
        "mutual kNN, all pairs": min(n, args.knn_clips),
        "RBF CKA, all pairs": min(n, args.rbf_clips),
    }.items():
        print_row(way, n_clips, n_pairs, measure(way, path, n_clips))
    print(f"goals for CKA at 20000 clips, 13 layers, 768 dimensions: {GOAL_SECONDS} s, {GOAL_GB} GB")


def print_row(way: str, n_clips: int, n_pairs: int, cost: np.ndarray) -> None:
    seconds, cpu_seconds, gigabytes = cost
    print(f"{way:<24}{n_clips:>8}{n_pairs:>7}{seconds:>9.1f}{cpu_seconds:>9.1f}{gigabytes:>9.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
