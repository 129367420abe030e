"""Neighbours against SciPy's full distance matrix and scikit-learn, where float32 alone would be wrong."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from utils.core.errors import InputError
from utils.layers import neighbors
from utils.layers.neighbors import nearest_neighbors


def brute_force(features, k, metric="euclidean"):
    """Rank all other rows by distance, then index."""
    distances = cdist(features.astype(np.float64), features.astype(np.float64), metric)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


def clusters(rng, n_clusters, n_each, d, apart, spread):
    centres = apart * rng.normal(size=(n_clusters, 1, d))
    return (centres + spread * rng.normal(size=(n_clusters, n_each, d))).reshape(-1, d)


def samples():
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(1.5, size=(300, 40))
    return {
        "gaussian": rng.normal(size=(500, 96)),
        "far from the origin": rng.normal(size=(300, 64)) + 1000,
        # In float32 all distances within a cluster are lost: the cross terms cancel.
        "tight clusters": clusters(rng, 4, 60, 32, apart=1e4, spread=1e-3),
        "heavy tails": heavy * rng.lognormal(0, 2, size=(300, 1)),
        "huge values": rng.normal(size=(100, 8)) * 1e30,
        "tiny values": rng.normal(size=(100, 8)) * 1e-30,
        "one feature": rng.normal(size=(100, 1)),
    }


@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("k", [1, 10])
def test_euclidean_neighbours_are_those_of_the_full_distance_matrix(name, k):
    features = samples()[name]
    indices, distances = nearest_neighbors(features, k)
    expected, expected_distances = brute_force(features, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-9)
    assert distances.dtype == np.float64
    assert indices.shape == distances.shape == (len(features), k)


@pytest.mark.parametrize("name", ["gaussian", "heavy tails", "huge values", "tiny values"])
def test_cosine_neighbours_are_those_of_the_full_distance_matrix(name):
    features = samples()[name]
    indices, distances = nearest_neighbors(features, 10, metric="cosine")
    expected, expected_distances = brute_force(features / np.abs(features).max(axis=1, keepdims=True), 10, "cosine")
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-12)


def test_cosine_of_near_duplicates_does_not_cancel():
    angles = np.array([0.0, 1e-7, 3e-7, 7e-7, 1.0])  # cosines that differ from 1 by less than 3e-13
    features = np.column_stack([np.cos(angles), np.sin(angles)])
    indices, distances = nearest_neighbors(features, 1, metric="cosine")
    assert indices[:, 0].tolist() == [1, 0, 1, 2, 3]
    np.testing.assert_allclose(distances[:4, 0], [5e-15, 5e-15, 2e-14, 8e-14], rtol=1e-6)


def test_a_zero_row_is_at_right_angles_to_all():
    features = np.array([[0.0, 0], [1, 0], [2, 0.1], [-1, 0], [0, 0]])
    indices, distances = nearest_neighbors(features, 4, metric="cosine")
    np.testing.assert_array_equal(indices[0], [1, 2, 3, 4])
    np.testing.assert_allclose(distances[0], 1)
    np.testing.assert_array_equal(indices[1], [2, 0, 4, 3])
    np.testing.assert_allclose(distances[1], [1 - 2 / np.hypot(2, 0.1), 1, 1, 2])


def test_agreement_with_scikit_learn_at_768_dimensions():
    features = np.random.default_rng(3).normal(size=(1500, 768)).astype(np.float32)
    indices, distances = nearest_neighbors(features, 10)
    reference = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(features.astype(np.float64))
    expected_distances, expected = reference.kneighbors()
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-9)


@pytest.mark.parametrize("metric", neighbors.METRICS)
def test_the_same_by_small_blocks_and_with_hardly_a_candidate(monkeypatch, metric):
    features = samples()["heavy tails"]
    expected, expected_distances = nearest_neighbors(features, 5, metric)
    monkeypatch.setattr(neighbors, "MARGIN", 0)  # every other row is settled by the second look
    monkeypatch.setattr(neighbors, "N_POSSIBLE", 3)
    monkeypatch.setattr(neighbors, "BLOCK_BYTES", 10000)
    indices, distances = nearest_neighbors(features, 5, metric)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(distances, expected_distances)


def test_one_or_two_threads_give_the_same():
    features = np.random.default_rng(4).normal(size=(800, 200)).astype(np.float32)
    answers = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            answers.append(nearest_neighbors(features, 10))
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_the_features_are_left_as_they_were():
    features = samples()["gaussian"]
    before = features.copy()
    for metric in neighbors.METRICS:
        nearest_neighbors(features, 3, metric)
    np.testing.assert_array_equal(features, before)


def test_rows_at_the_same_distance_come_by_index():
    grid = np.array([[x, y] for x in range(12) for y in range(12)], float)
    indices, distances = nearest_neighbors(grid, 6)
    squares = ((grid[:, None] - grid) ** 2).sum(axis=2)  # exact in integers
    np.fill_diagonal(squares, np.inf)
    np.testing.assert_array_equal(indices, np.argsort(squares, axis=1, kind="stable")[:, :6])
    np.testing.assert_allclose(distances**2, np.sort(squares, axis=1)[:, :6])


def test_more_duplicates_than_candidates_never_include_the_row_itself():
    rng = np.random.default_rng(5)
    features = np.concatenate([np.repeat(rng.normal(size=(3, 16)), 60, axis=0), rng.normal(size=(20, 16))])
    features = features[rng.permutation(len(features))]
    indices, distances = nearest_neighbors(features, 10)
    expected, expected_distances = brute_force(features, 10)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-12)
    assert (indices != np.arange(len(features))[:, None]).all()
    assert (distances[:, -1] == 0).sum() == 180


@pytest.mark.parametrize("value", [0.0, 0.1, -3e20])
def test_where_all_rows_are_equal_the_first_ones_are_the_neighbours(value):
    indices, distances = nearest_neighbors(np.full((700, 6), value), 3)
    assert indices[:5].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert (indices[5:] == [0, 1, 2]).all()
    assert (distances == 0).all()


def test_all_others_can_be_asked_for():
    features = samples()["gaussian"][:6]
    np.testing.assert_array_equal(np.sort(nearest_neighbors(features, 5)[0][2]), [0, 1, 3, 4, 5])


@pytest.mark.parametrize("k", [0, 6, 10])
def test_as_many_neighbours_as_clips_are_refused(k):
    with pytest.raises(InputError, match=rf"{k} nearest neighbours .* 6 clips.*--num_neighbors"):
        nearest_neighbors(np.ones((6, 2)), k)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    features = np.ones((6, 2), np.float32)
    features[4, 1] = value
    with pytest.raises(InputError, match="1 of 6 clips are not finite, the first in row 4"):
        nearest_neighbors(features, 2)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="expected one of euclidean, cosine"):
        nearest_neighbors(np.ones((6, 2)), 2, metric="manhattan")
