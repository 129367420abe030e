"""Graph convexity against nnconvexity, networkx and closed forms; Euclidean convexity against nnconvexity."""

import itertools
import warnings

import networkx
import numpy as np
import pytest
import soundfile
from igraph import Graph
from nnconvexity import euclidean as published_euclidean
from nnconvexity import graph as published
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from utils.core.errors import InputError
from utils.layers.convexity import (
    convexity_of_graph,
    euclidean_scores,
    graph_convexity,
    knn_graph,
    permute_labels,
    sample_pairs,
)
from utils.scores.intervals import share_interval

ALL_PAIRS = 10**9


def random_features(n_classes=4, n_each=30, d=20, apart=0.3, seed=0):
    """Return Gaussian features of classes that overlap, and their labels in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(n_classes), n_each))
    return (apart * rng.normal(size=(n_classes, d)))[labels] + rng.normal(size=(len(labels), d)), labels


def published_scores(features, labels, k):
    """Score all pairs of each class by the functions of nnconvexity, before it rounds."""
    distances = published.pd.DataFrame(cdist(features, features))
    matrix = published.get_nearest_neighbors(distances, k, 1)[0].to_numpy().astype(float)
    graph = Graph.Weighted_Adjacency(np.maximum(matrix, matrix.T))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Couldn't reach some vertices")
        return [published.compute_paths(graph, np.flatnonzero(labels == c), ALL_PAIRS) for c in np.unique(labels)]


def brute_force_pairs(graph, labels):
    """Score every ordered pair of a class by networkx: {(i, j): (score, is direct)}."""
    network = networkx.from_scipy_sparse_array(graph)
    pairs = {}
    for i, j in itertools.permutations(range(len(labels)), 2):
        if labels[i] != labels[j]:
            continue
        try:
            interior = networkx.shortest_path(network, i, j, weight="weight")[1:-1]
        except networkx.NetworkXNoPath:
            pairs[i, j] = 0.0, False
        else:
            pairs[i, j] = float(np.mean(labels[interior] == labels[i])) if interior else 1.0, not interior
    return pairs


def graph_of(edges, n):
    matrix = np.zeros((n, n))
    for i, j, weight in edges:
        matrix[i, j] = matrix[j, i] = weight
    return csr_array(matrix)


def convexity(features, labels, k=10, groups=None, **arguments):
    groups = np.arange(len(labels)) if groups is None else groups
    arguments = {"n_classes": labels.max() + 1, "num_pairs": ALL_PAIRS, **arguments}
    return graph_convexity(features, labels, groups, k=k, **arguments)


def convexity_on(graph, labels, groups=None, **arguments):
    groups = np.arange(len(labels)) if groups is None else groups
    arguments = {"n_classes": labels.max() + 1, "num_pairs": ALL_PAIRS, **arguments}
    return convexity_of_graph(graph, labels, groups, **arguments)


def null_of_single_clips(graph, n_points):
    """Return the mean of each class over all permutations of clips, in closed form, from edges and components.

    An edge is a shortest path and scores 1. Each interior vertex of a longer path is any of the n - 2 other points, of
    which n_c - 2 belong to the class.
    """
    n = graph.shape[0]
    sizes = np.bincount(connected_components(graph, directed=False)[1])
    direct, reachable = graph.nnz / (n * (n - 1)), (sizes * (sizes - 1.0)).sum() / (n * (n - 1))
    return direct + (reachable - direct) * (np.asarray(n_points) - 2) / (n - 2)


# --------------------------------------------------------------------------------- independent code


@pytest.mark.parametrize(("k", "d"), [(10, 20), (3, 20), (1, 5)])
def test_all_pairs_agree_with_nnconvexity(k, d):
    features, labels = random_features(d=d)
    labels[np.flatnonzero(labels == 3)[2:]] = 0  # classes of different sizes, one of two points
    ours = convexity(features, labels, k)
    theirs = published_scores(features, labels, k)
    np.testing.assert_allclose(ours.classes.convexity, [np.mean(scores) for scores in theirs], atol=1e-12)
    assert ours.pooled == pytest.approx(np.mean(np.concatenate(theirs)), abs=1e-12)
    assert ours.convexity == pytest.approx(np.mean([np.mean(scores) for scores in theirs]), abs=1e-12)
    errors = [np.std(scores, ddof=1) / np.sqrt((labels == c).sum()) for c, scores in enumerate(theirs)]
    np.testing.assert_allclose(ours.classes.standard_error, errors, atol=1e-12)
    assert (ours.classes.sampling_error == 0).all()
    if k == 1:
        assert ours.unreachable_share > 0.5


def test_the_rounded_numbers_of_nnconvexity_are_ours_in_percent():
    features, labels = random_features(seed=1)
    mean, by_class = published.compute_graph_convexity(features, labels, n_neighbors=5, max_n_paths=ALL_PAIRS)
    ours = convexity(features, labels, k=5)
    assert 100 * ours.pooled == pytest.approx(mean, abs=0.0051)
    for c, value in by_class.items():
        assert 100 * ours.classes.convexity[c] == pytest.approx(value, abs=0.0051)


def test_sampled_sources_agree_with_all_pairs_of_nnconvexity_to_the_sampling_error():
    features, labels = random_features(n_classes=2, n_each=60)
    theirs = [np.mean(scores) for scores in published_scores(features, labels, 10)]
    ours = convexity(features, labels, num_pairs=1500)
    assert (ours.classes.sampling_error > 0).all()
    assert (np.abs(ours.classes.convexity - theirs) < 4 * ours.classes.sampling_error).all()


@pytest.mark.shared
def test_agreement_with_nnconvexity_on_real_recordings(shared_dir):
    features, labels = [], []
    folders = sorted(path for path in (shared_dir / "data" / "birds25").iterdir() if path.is_dir())
    for label, folder in enumerate(folders[:4]):
        for path in sorted(folder.glob("*.flac"))[:4]:
            samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True, frames=15 * 48000)
            seconds = samples[: len(samples) // rate_hz * rate_hz, 0].reshape(-1, rate_hz)
            power = np.abs(np.fft.rfft(seconds, axis=1))[:, : rate_hz // 2 // 64 * 64] ** 2
            features.append(np.log(power.reshape(len(power), 64, -1).mean(axis=2) + 1e-10))
            labels += [label] * len(power)
    features, labels = np.concatenate(features), np.array(labels)
    theirs = published_scores(features, labels, 10)
    ours = convexity(features, labels)
    np.testing.assert_allclose(ours.classes.convexity, [np.mean(scores) for scores in theirs], atol=1e-12)
    assert ours.pooled == pytest.approx(np.mean(np.concatenate(theirs)), abs=1e-12)
    assert 0.2 < ours.convexity < 1
    # A few clips that lie apart from their class make the error of one draw lopsided; the mean is not.
    graph = knn_graph(features, 10)
    draws = [convexity_on(graph, labels, num_pairs=500, seed=s).classes.convexity for s in range(60)]
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) - ours.classes.convexity) < 4 * error).all()


def test_shares_of_direct_and_unreachable_pairs_agree_with_networkx():
    features, labels = random_features(n_each=12, d=3)
    graph = knn_graph(features, 2)
    ours = convexity_on(graph, labels)
    pairs = brute_force_pairs(graph, labels)
    network = networkx.from_scipy_sparse_array(graph)
    for c in range(4):
        here = [(pair, *value) for pair, value in pairs.items() if labels[pair[0]] == c]
        assert ours.classes.n_pairs[c] == len(here) == 12 * 11
        assert ours.classes.convexity[c] == pytest.approx(np.mean([score for _, score, _ in here]), abs=1e-12)
        assert ours.classes.direct_share[c] == pytest.approx(np.mean([direct for _, _, direct in here]), abs=1e-12)
        unreachable = np.mean([not networkx.has_path(network, *pair) for pair, _, _ in here])
        assert ours.classes.unreachable_share[c] == pytest.approx(unreachable, abs=1e-12)
    assert ours.direct_share == pytest.approx(ours.classes.direct_share.mean())
    assert 0 < ours.unreachable_share == pytest.approx(ours.classes.unreachable_share.mean())


def test_the_interval_is_that_of_pairs_without_each_group_in_plain_loops():
    features, labels = random_features(n_classes=3, n_each=9, d=4)
    groups = np.random.default_rng(2).choice(["a", "b", "c", "d", "e"], size=len(labels))
    graph = knn_graph(features, 2)
    pairs = brute_force_pairs(graph, labels)

    def mean_without(group):
        kept = [(labels[i], score) for (i, j), (score, _) in pairs.items() if group not in (groups[i], groups[j])]
        return np.mean([np.mean([score for c, score in kept if c == wanted]) for wanted in {c for c, _ in kept}])

    left_out = np.array([mean_without(group) for group in "abcde"])
    error = np.sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum())
    ours = convexity_of_graph(graph, labels, groups, 3, seed=7)
    expected = share_interval(ours.convexity, error, 5, len(labels))
    assert (ours.low, ours.high) == pytest.approx([float(end) for end in expected], abs=1e-12)
    assert ours.low < ours.convexity < ours.high


# ------------------------------------------------------------------------------------ closed forms


def test_two_separated_blobs_are_convex():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    features = rng.normal(size=(80, 8)) + 100.0 * labels[:, None]
    result = convexity(features, labels)
    assert (result.convexity, result.pooled, result.high) == pytest.approx((1, 1, 1))
    assert 0.9 < result.low < 1, "80 clips cannot tell 1 from a little less"
    assert result.unreachable_share == 0


def test_a_class_in_two_components_scores_nothing_across_them():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 8)) + np.repeat([0, 1000], 20)[:, None]
    result = convexity(features, np.zeros(40, int), k=5)
    across = 2 * 20 * 20 / (40 * 39)
    assert result.unreachable_share == pytest.approx(across, abs=1e-12)
    assert result.convexity == pytest.approx(1 - across, abs=1e-12)
    alone = convexity_on(graph_of([(0, 1, 1.0), (2, 3, 1.0)], 4), np.array([0, 1, 1, 0]), n_permutations=2000)
    assert (alone.convexity, alone.unreachable_share, alone.null) == (0, 1, pytest.approx(1 / 3, abs=0.05))


def test_direct_neighbours_score_one():
    features, labels = random_features(n_classes=3, n_each=5)
    result = convexity(features, labels, k=14)
    assert (result.convexity, result.direct_share, result.null) == (1, 1, pytest.approx(1))


def test_a_line_by_hand():
    # A - B - A - B - B - A, a unit apart.
    labels = np.array([0, 1, 0, 1, 1, 0])
    result = convexity_on(graph_of([(i, i + 1, 1.0) for i in range(5)], 6), labels, n_permutations=2000)
    # A: 0-2 over B: 0; 2-5 over B B: 0; 0-5 over B A B B: 1/4. B: 1-3 over A: 0; 3-4 direct; 1-4 over A B: 1/2.
    np.testing.assert_allclose(result.classes.convexity, [1 / 12, 1 / 2])
    np.testing.assert_allclose(result.classes.direct_share, [0, 1 / 3])
    np.testing.assert_array_equal(result.classes.n_points, [3, 3])
    assert result.convexity == pytest.approx(7 / 24)
    scores = np.repeat([0, 0, 1 / 4], 2)
    assert result.classes.standard_error[0] == pytest.approx(np.std(scores, ddof=1) / np.sqrt(3))
    # Of 30 ordered pairs 10 are direct; of the others an interior vertex is of the class 1 time in 4.
    assert result.null == pytest.approx(1 / 3 + 2 / 3 / 4, abs=0.02)


def test_the_shorter_way_is_taken_not_the_one_of_fewer_steps():
    # 0 - 1 - 2 costs 2 through the other class, 0 - 3 - 4 - 2 costs 1.5 within the class.
    edges = [(0, 1, 1.0), (1, 2, 1.0), (0, 3, 0.5), (3, 4, 0.5), (4, 2, 0.5)]
    assert convexity_on(graph_of(edges, 5), np.array([0, 1, 0, 0, 0])).convexity == 1
    edges[0] = (0, 1, 0.25)
    assert convexity_on(graph_of(edges, 5), np.array([0, 1, 0, 0, 0])).convexity < 1


def test_pooled_weighs_a_class_by_its_pairs_also_where_sources_are_sampled():
    features, labels = random_features(n_classes=2, n_each=60)
    labels[np.flatnonzero(labels == 1)[10:]] = 0
    result = convexity(features, labels, num_pairs=100)
    assert result.classes.n_pairs.tolist() == [30 * 109, 90]
    large, small = result.classes.convexity
    assert result.pooled == pytest.approx((110 * 109 * large + 90 * small) / (110 * 109 + 90))


# -------------------------------------------------------------------------------------- null level


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (1, 1), (2, 2)])
def test_the_null_is_the_mean_over_all_labellings(k, seed):
    features = np.random.default_rng(seed).normal(size=(8, 2))
    graph = knn_graph(features, k)
    sizes = [4, 3, 1]
    values = []
    for first in itertools.combinations(range(8), 4):
        rest = [i for i in range(8) if i not in first]
        for last in rest:
            labels = np.ones(8, int)
            labels[list(first)], labels[last] = 0, 2
            values.append(convexity_on(graph, labels).classes.convexity[:2])
    result = convexity_on(graph, labels, n_permutations=2000)
    assert sorted(result.classes.n_points, reverse=True) == sizes
    closed = null_of_single_clips(graph, result.classes.n_points)[:2]
    np.testing.assert_allclose(np.mean(values, axis=0), closed, atol=1e-12)
    np.testing.assert_allclose(closed, result.classes.null[:2], atol=4 * np.std(values, axis=0).max() / 2000**0.5)
    assert np.isnan(result.classes.null[2])
    assert result.null == pytest.approx(result.classes.null[:2].mean())


def test_the_null_is_the_mean_over_many_permutations():
    features, labels = random_features(n_classes=3, n_each=30, d=4, apart=3)
    labels[np.flatnonzero(labels == 2)[20:]] = 0
    graph = knn_graph(features, 3)
    rng = np.random.default_rng(0)
    values = [convexity_on(graph, rng.permutation(labels)).classes.convexity for _ in range(200)]
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    null = convexity_on(graph, labels, n_permutations=200).classes.null
    assert (np.abs(np.mean(values, axis=0) - null_of_single_clips(graph, np.bincount(labels))) < 4 * error).all()
    assert (np.abs(np.mean(values, axis=0) - null) < 4 * 2**0.5 * error).all()
    assert convexity_on(graph, labels).convexity > 4 * convexity_on(graph, labels).null  # the labels say something


# The levels are those of one draw, and so is our score; the spread is that of 12 draws.
@pytest.mark.parametrize(
    ("n_classes", "n_each", "level", "spread"), [(10, 50, 0.116, 0.010), (50, 20, 0.034, 0.003), (50, 10, 0.054, 0.007)]
)
def test_levels_of_random_labels_in_768_dimensions(n_classes, n_each, level, spread):
    features, labels = random_features(n_classes, n_each, d=768, apart=0, seed=5)
    result = convexity(features, labels)
    assert result.null == pytest.approx(level, abs=2 * spread)
    assert result.convexity == pytest.approx(result.null, abs=2 * spread)


def grouped(n_groups=12, n_classes=3, seed=0):
    """Return features that are alike within a group, labels that say nothing, and groups with one or two labels."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(2, 9, n_groups))
    features = (2 * rng.normal(size=(n_groups, 8)))[groups] + rng.normal(size=(len(groups), 8))
    label_of_group = np.arange(n_groups) % n_classes
    labels = label_of_group[groups]
    second = np.arange(len(groups)) % 2 == 1  # every other clip of the first group shows another species
    labels[second & (groups == 0)] = 1
    return features, labels, groups


def test_labels_are_permuted_between_whole_units_of_group_and_label():
    _, labels, groups = grouped()
    units = list(zip(groups, labels, strict=True))
    permuted = permute_labels(labels, groups.astype(str), 400)
    assert permuted.shape == (400, len(labels))
    for of_permutation in permuted[:50]:
        label_of = dict(zip(units, of_permutation, strict=True))
        assert [label_of[unit] for unit in units] == of_permutation.tolist()  # a unit has one label
        assert sorted(label_of.values()) == sorted(label for _, label in label_of)  # each label keeps its units
    n_clips = np.array([np.bincount(row, minlength=3) for row in permuted])
    n_units = np.bincount([label for _, label in set(units)])
    error = n_clips.std(axis=0) / 20
    assert (np.abs(n_clips.mean(axis=0) - len(labels) * n_units / n_units.sum()) < 4 * error).all()
    assert (n_clips.std(axis=0) < 0.35 * n_clips.mean(axis=0)).all()


def test_the_null_of_groups_by_brute_force():
    features, labels, groups = grouped()
    graph = knn_graph(features, 4)
    result = convexity_on(graph, labels, groups, n_permutations=5, seed=3)
    by_class = []
    for of_permutation in permute_labels(labels, groups, 5, seed=3):
        scores = brute_force_pairs(graph, of_permutation)
        by_class.append(
            [np.mean([score for (i, _), (score, _) in scores.items() if of_permutation[i] == c]) for c in range(3)]
        )
    np.testing.assert_allclose(result.classes.null, np.mean(by_class, axis=0), atol=1e-12)
    assert result.null > 1.5 * null_of_single_clips(graph, np.bincount(labels)).mean()
    single = convexity_on(graph, labels, n_permutations=300)
    assert single.null == pytest.approx(null_of_single_clips(graph, np.bincount(labels)).mean(), abs=0.01)


def test_labels_of_groups_that_say_nothing_score_as_the_null():
    found, null = [], []
    for seed in range(30):
        features, labels, groups = grouped(n_groups=24, seed=seed)
        result = convexity(features, labels, 5, groups)
        found.append(result.convexity)
        null.append(result.null)
    error = np.std(np.subtract(found, null), ddof=1) / np.sqrt(30)
    assert np.mean(found) == pytest.approx(np.mean(null), abs=4 * error)


def test_the_null_of_sampled_sources_is_near_that_of_all():
    features, labels = random_features(n_classes=2, n_each=60)
    labels[np.flatnonzero(labels == 1)[10:]] = 0
    all_sources, sampled = (convexity(features, labels, num_pairs=n).null for n in (ALL_PAIRS, 100))
    assert sampled == pytest.approx(all_sources, abs=0.03)


def test_without_permutations_there_is_no_null():
    features, labels, groups = grouped()
    assert np.isnan(convexity(features, labels, 4, groups, n_permutations=0).null)


# ---------------------------------------------------------------------------------------- sampling


def test_sampled_sources_are_unbiased_and_their_error_is_as_stated():
    features, labels = random_features(n_classes=2, n_each=80)
    graph = knn_graph(features, 5)
    whole = convexity_on(graph, labels)
    sampled = [convexity_on(graph, labels, num_pairs=3000, seed=seed) for seed in range(150)]
    assert sampled[0].classes.n_pairs.tolist() == [38 * 79] * 2  # 37 sources would not do
    values = np.array([result.classes.convexity for result in sampled])
    spread = values.std(axis=0, ddof=1)
    assert (np.abs(values.mean(axis=0) - whole.classes.convexity) < 4 * spread / np.sqrt(len(values))).all()
    stated = np.sqrt(np.mean([result.classes.sampling_error**2 for result in sampled], axis=0))
    np.testing.assert_allclose(stated, spread, rtol=0.2)
    overall = np.std([result.convexity for result in sampled], ddof=1)
    assert np.mean([result.sampling_error for result in sampled]) == pytest.approx(overall, rel=0.2)
    assert (whole.classes.sampling_error == 0).all()
    assert whole.sampling_error == 0


def test_a_seed_gives_the_same_numbers_and_another_seed_others():
    features, labels = random_features(n_classes=2, n_each=100)
    first, second, other = (convexity(features, labels, num_pairs=10, seed=seed) for seed in (3, 3, 4))
    assert repr(first) == repr(second)
    assert first.convexity != other.convexity
    assert abs(first.convexity - other.convexity) < 5 * first.sampling_error


def test_one_or_two_threads_give_the_same():
    features, labels = random_features(n_classes=2, n_each=100, d=100)
    results = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            results.append(convexity(features, labels, num_pairs=10))
    assert repr(results[0]) == repr(results[1])


# --------------------------------------------------------------------------------------- bad input


def test_classes_of_one_clip_or_none_are_left_out():
    features, labels = random_features(n_classes=3, n_each=10)
    features, labels = np.vstack([features, np.zeros(20)]), np.append(labels, 4)
    result = convexity(features, labels, n_classes=6)
    assert result.classes.n_points.tolist() == [10, 10, 10, 0, 1, 0]
    assert result.classes.n_pairs.tolist() == [90, 90, 90, 0, 0, 0]
    for values in (
        result.classes.convexity,
        result.classes.standard_error,
        result.classes.sampling_error,
        result.classes.direct_share,
        result.classes.unreachable_share,
        result.classes.null,
    ):
        assert np.isfinite(values[:3]).all()
        assert np.isnan(values[3:]).all()
    assert result.convexity == pytest.approx(result.classes.convexity[:3].mean())
    assert np.isfinite([result.low, result.high, result.pooled, result.null, result.sampling_error]).all()


def test_without_a_class_of_two_clips_there_is_no_convexity():
    features, _ = random_features()
    result = convexity(features[:20], np.arange(20))
    assert np.isnan([result.convexity, result.low, result.high, result.pooled, result.null]).all()
    assert np.isnan([result.sampling_error, result.direct_share, result.unreachable_share]).all()


def test_one_group_has_no_interval():
    features, labels = random_features()
    result = convexity(features, labels, groups=np.full(len(labels), "one"))
    assert np.isnan([result.low, result.high]).all()
    assert np.isfinite(result.convexity)


def test_two_clips_of_two_groups_have_no_interval():
    result = convexity_on(graph_of([(0, 1, 1.0)], 2), np.array([0, 0]))
    assert result.convexity == 1 and np.isnan([result.low, result.high]).all(), "no pair is left without a group"


def test_duplicates_stay_joined():  # nnconvexity leaves distances of zero out, and parts them
    features, labels = random_features(n_classes=2, n_each=20)
    features, labels = np.repeat(features, 2, axis=0), np.repeat(labels, 2)
    graph = knn_graph(features, 7)
    copies = np.arange(0, 80, 2)
    np.testing.assert_array_equal(graph.toarray()[copies, copies + 1], 1e-12)
    assert (graph.toarray() == graph.toarray().T).all()
    result = convexity_on(graph, labels)
    assert result.unreachable_share == 0
    pairs = brute_force_pairs(graph, labels)
    assert all(pairs[i, i + 1] == (1, True) for i in copies)
    assert result.pooled == pytest.approx(np.mean([score for score, _ in pairs.values()]), abs=1e-12)


def test_in_a_constant_layer_all_paths_lead_through_the_first_rows():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 10))
    labels[[0, 1, 2]] = 0
    result = convexity(np.full((40, 16), 3.25), labels, k=2)
    np.testing.assert_array_equal(result.classes.convexity, [1, 0, 0, 0])
    assert result.unreachable_share == 0
    assert np.isfinite([result.low, result.high, result.null]).all()


def test_as_many_neighbours_as_clips_are_refused():
    features, labels = random_features(n_classes=2, n_each=5)
    with pytest.raises(InputError, match=r"10 nearest neighbours .* 10 clips"):
        convexity(features, labels, k=10)


def test_features_that_are_not_finite_are_refused():
    features, labels = random_features()
    features[7, 2] = np.nan
    with pytest.raises(InputError, match="not finite, the first in row 7"):
        convexity(features, labels)


# ----------------------------------------------------------------------------- Euclidean convexity


def nearest_centre(states, seed=1):
    """Predict the nearest of three random centres, which depends on the frames in no linear way."""
    centres = np.random.default_rng(seed).normal(size=(3, 4))
    return cdist(np.tanh(np.asarray(states)).mean(axis=1), centres).argmin(axis=1)


def between(first, second, predict):
    return lambda share: predict(share * first + (1 - share) * second)


def test_euclidean_convexity_agrees_with_nnconvexity():
    states = np.random.default_rng(0).normal(size=(40, 5, 4))
    class_ids = nearest_centre(states)
    mean, by_class = published_euclidean.compute_euclidean_convexity(
        states, class_ids, lambda points, layer: nearest_centre(points), layer=0
    )
    pairs = sample_pairs(class_ids, ALL_PAIRS, np.random.default_rng(0))
    ids = class_ids[pairs[:, 0]]
    scores = euclidean_scores(between(states[pairs[:, 0]], states[pairs[:, 1]], nearest_centre), ids)
    assert 100 * scores.mean() == pytest.approx(mean, abs=0.0051)
    assert 50 < mean < 100
    for c, value in by_class.items():
        assert 100 * scores[ids == c].mean() == pytest.approx(value, abs=0.0051)


def test_regions_of_a_linear_classifier_are_convex():
    rng = np.random.default_rng(0)
    weights, states = rng.normal(size=(6, 4)), rng.normal(size=(60, 3, 6)).astype(np.float32)

    def predict(points):
        assert points.dtype == np.float32
        return (points.mean(axis=1) @ weights).argmax(axis=1)

    class_ids = predict(states)
    pairs = sample_pairs(class_ids, 50, rng)
    scores = euclidean_scores(between(states[pairs[:, 0]], states[pairs[:, 1]], predict), class_ids[pairs[:, 0]])
    np.testing.assert_array_equal(scores, 1)


def test_the_share_of_a_segment_by_hand():
    # From 0 to 1 the points are at 0.2, 0.4, 0.6, 0.8; from 0 to 2 at twice that.
    first, second = np.zeros((2, 1, 1)), np.array([[[1.0]], [[2.0]]])
    predict_at = between(first, second, lambda x: (x[:, 0, 0] > 0.5).astype(int))
    scores = euclidean_scores(predict_at, np.array([1, 0]), num_points=4)
    np.testing.assert_allclose(scores, [0.5, 0.25])


def test_pairs_are_of_a_class_unordered_and_drawn_once():
    class_ids = np.random.default_rng(0).permutation(np.repeat([0, 2, 5, 7], [12, 4, 1, 2]))
    pairs = sample_pairs(class_ids, 20, np.random.default_rng(1))
    assert (class_ids[pairs[:, 0]] == class_ids[pairs[:, 1]]).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    classes, counts = np.unique(class_ids[pairs[:, 0]], return_counts=True)
    assert (classes.tolist(), counts.tolist()) == ([0, 2, 7], [20, 6, 1])
    np.testing.assert_array_equal(pairs, sample_pairs(class_ids, 20, np.random.default_rng(1)))
    everything = sample_pairs(np.zeros(9, int), ALL_PAIRS, np.random.default_rng(1))
    assert sorted(map(tuple, everything.tolist())) == list(itertools.combinations(range(9), 2))


def test_pairs_are_drawn_evenly():
    rng = np.random.default_rng(0)
    counts = np.zeros((5, 5))
    for _ in range(1000):
        for i, j in sample_pairs(np.zeros(5, int), 3, rng):
            counts[i, j] += 1
    drawn = counts[np.triu_indices(5, 1)]
    assert drawn.sum() == 3000
    assert (np.abs(drawn - 300) < 4 * np.sqrt(300 * 0.7)).all()


def test_classes_without_two_points_give_no_pair():
    pairs = sample_pairs(np.arange(4), 10, np.random.default_rng(0))
    assert pairs.shape == (0, 2)
