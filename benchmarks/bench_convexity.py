"""Speed and memory of graph convexity, side by side with other ways to compute it.

    python -m benchmarks.bench_convexity
    python -m benchmarks.bench_convexity --num_paths 5000 --num_large_clips 0

The features are Gaussian clusters in place of the hidden states of one layer, with 50 classes that overlap. Three ways
compute the convexity of the same features, all with exact neighbours, that is, with equal recall:

- ours: utils.layers.convexity.graph_convexity, with its null level and its bootstrap interval over groups;
- nnconvexity: the package's own functions, with a shortest path of igraph for every pair;
- published way: scikit-learn's neighbours, a networkx graph, and nx.shortest_path for every pair. (The published script
  found its neighbours with pynndescent, which misses many; that is not timed here.)

The two others take many minutes. Their graphs are timed in full. Their paths are timed on --num_paths pairs per class
and scaled to all scored pairs; the second command times all paths.

Then one large layer runs in its own process, for its time and its peak memory.
"""

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
from igraph import Graph
from nnconvexity.graph import compute_paths, get_nearest_neighbors
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from benchmarks import results
from utils.core.workers import available_cpus
from utils.layers.convexity import GraphConvexity, graph_convexity

N_CLASSES = 50
N_GROUPS_PER_CLASS = 20
APART = 0.15  # standard deviation of the class centres; that of the clips around them is 1
K = 10
NUM_PAIRS = 5000


def hidden_states(n_clips: int, n_features: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features in float32, labels and groups, with about the same number of clips per class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n_clips) % N_CLASSES)
    centres = (APART * rng.normal(size=(N_CLASSES, n_features))).astype(np.float32)
    features = rng.standard_normal(size=(n_clips, n_features), dtype=np.float32)
    features += centres[labels]
    return features, labels, labels * N_GROUPS_PER_CLASS + rng.integers(N_GROUPS_PER_CLASS, size=n_clips)


# ------------------------------------------------------------------------------------------------- the ways


def time_ours(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, GraphConvexity]:
    start = time.perf_counter()
    result = graph_convexity(features, labels, groups, N_CLASSES, K, NUM_PAIRS)
    return time.perf_counter() - start, result


def nnconvexity_graph(features: np.ndarray) -> Graph:
    """Build the graph as compute_graph_convexity of nnconvexity 0.1.1 does before it searches for paths."""
    distances = pd.DataFrame(cdist(features, features))
    matrix = get_nearest_neighbors(distances, K, available_cpus())[0].to_numpy().astype(float)
    return Graph.Weighted_Adjacency(np.maximum(matrix, matrix.T))


def published_graph(features: np.ndarray) -> nx.Graph:
    matrix = NearestNeighbors(n_neighbors=K).fit(features).kneighbors_graph(mode="distance")
    return nx.from_scipy_sparse_array(matrix.maximum(matrix.T))


def published_paths(graph: nx.Graph, points: np.ndarray, num_paths: int) -> list[float]:
    pairs = list(itertools.permutations(points.tolist(), 2))
    of_class = set(points.tolist())
    scores = []
    for i in np.random.default_rng(0).choice(len(pairs), min(num_paths, len(pairs)), replace=False):
        try:
            interior = nx.shortest_path(graph, *pairs[i], weight="weight")[1:-1]
            scores.append(np.mean([vertex in of_class for vertex in interior]) if interior else 1.0)
        except nx.NetworkXNoPath:
            scores.append(0.0)
    return scores


def time_by_paths(
    make_graph: Callable, score_paths: Callable, features: np.ndarray, labels: np.ndarray, num_paths: int
) -> tuple[float, int, int, float]:
    """Return seconds, with the paths scaled to all pairs; the numbers of timed and of all pairs; their mean score."""
    start = time.perf_counter()
    graph = make_graph(features)
    graph_seconds = time.perf_counter() - start
    classes = [np.flatnonzero(labels == c) for c in range(N_CLASSES)]
    n_pairs = sum(min(NUM_PAIRS, len(points) * (len(points) - 1)) for points in classes)
    start = time.perf_counter()
    scores = [score for points in classes for score in score_paths(graph, points, min(NUM_PAIRS, num_paths))]
    path_seconds = time.perf_counter() - start
    return graph_seconds + path_seconds / len(scores) * n_pairs, len(scores), n_pairs, float(np.mean(scores))


# ----------------------------------------------------------------------------------------- one large layer


def measure_layer(folder: Path) -> tuple[float, float, GraphConvexity]:
    """Return seconds, the highest resident memory of this process in MB, and the result."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    labels, groups = np.load(folder / "labels.npy"), np.load(folder / "groups.npy")
    seconds, result = time_ours(features, labels, groups)
    # Kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return seconds, peak / 1e6, result


def report_large_layer(n_clips: int, n_features: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        for what, values in zip(
            ("features", "labels", "groups"), hidden_states(n_clips, n_features, seed), strict=True
        ):
            np.save(Path(name) / f"{what}.npy", values)
        del values
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, peak_mb, result = pool.submit(measure_layer, Path(name)).result()
    print(f"\none layer of {n_clips} clips, {N_CLASSES} classes, at least {NUM_PAIRS} pairs per class")
    print(f"{'seconds':<26}{seconds:>12.1f}{'goal: at most 120':>24}")
    print(f"{'peak memory in MB':<26}{peak_mb:>12.0f}{'goal: at most 3000':>24}")
    print(f"{'pairs scored per class':<26}{result.classes.n_pairs.mean():>12.0f}")
    print(f"{'convexity':<26}{result.convexity:>12.4f}")
    print(f"{'its sampling error':<26}{result.sampling_error:>12.4f}")
    print(f"{'its null level':<26}{result.null:>12.4f}")


# ------------------------------------------------------------------------------------------------------ main


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--num_clips", type=int, default=2500, help="clips in the comparison (default: 2500)")
    parser.add_argument("--num_features", type=int, default=768, help="features per clip (default: 768)")
    parser.add_argument(
        "--num_paths", type=int, default=20, help="timed pairs per class for the other ways (default: 20)"
    )
    parser.add_argument(
        "--num_large_clips", type=int, default=20000, help="clips in the large layer; 0 skips it (default: 20000)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the features (default: 42)")
    results.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    warnings.filterwarnings("ignore", "Couldn't reach some vertices")  # igraph warns for every such pair
    features, labels, groups = hidden_states(args.num_clips, args.num_features, args.seed)
    print(
        f"{args.num_clips} clips, {args.num_features} features, {N_CLASSES} classes, {available_cpus()} CPUs",
        flush=True,
    )
    np.random.seed(args.seed)  # noqa: NPY002 (nnconvexity draws its pairs from the global generator)
    ways = {"nnconvexity": (nnconvexity_graph, compute_paths), "published way": (published_graph, published_paths)}
    taken: dict[str, list[float]] = {way: [] for way in ("ours", *ways)}
    with results.Table(__file__, args.results) as table:
        for _ in range(args.rounds):
            seconds, result = time_ours(features, labels, groups)
            taken["ours"].append(seconds)
            scores = {"ours": result.pooled}
            for way, (make_graph, score_paths) in ways.items():
                seconds, n_timed, n_pairs, scores[way] = time_by_paths(
                    make_graph, score_paths, features, labels, args.num_paths
                )
                taken[way].append(seconds)
        claim = f"graph convexity of {args.num_clips:,} clips in {args.num_features} dimensions, {n_pairs:,} pairs"
        for way, goal in zip(ways, (20, 5), strict=True):
            table.add(claim, f"{way}, scaled from {n_timed:,} pairs", taken["ours"], taken[way], "s", goal)
        print("scores: " + ", ".join(f"{way} {score:.4f}" for way, score in scores.items()))
        if args.num_large_clips:
            report_large_layer(args.num_large_clips, args.num_features, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
