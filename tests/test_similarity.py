"""CKA against n × n matrices, neighbours against sets, null levels against shuffles, blocks against loops."""

import itertools
import logging

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ortho_group

from utils.core.errors import InputError
from utils.layers import similarity
from utils.layers.similarity import cka, cka_and_null, cosine, cosine_null, mutual_knn, mutual_knn_and_null


def random_states(n_layers, n, d, seed=0):
    """Return layers that share more or less of their features, far from the origin, of different sizes."""
    rng = np.random.default_rng(seed)
    states, x = [], rng.standard_normal((n, d)) * np.linspace(0.2, 2, d)
    for i in range(n_layers):
        x = 0.7 * x @ rng.standard_normal((d, d)) / np.sqrt(d) + 0.7 * rng.standard_normal((n, d))
        states.append(10.0 ** (i - 1) * (x + 3 * rng.standard_normal(d)))
    return np.array(states, np.float32)


def another_model(states, d, seed=1):
    """Return one layer that is a projection of the first of `states`, and one of noise."""
    rng = np.random.default_rng(seed)
    shape = (states.shape[1], d)
    alike = states[0] @ rng.standard_normal((states.shape[2], d)) + rng.standard_normal(shape)
    return np.array([alike, rng.standard_normal(shape)], np.float32)


# ---------------------------------------------------------------------------- brute-force references, n × n


def linear_kernel(x):
    return x.astype(np.float64) @ x.astype(np.float64).T


def rbf_kernel(x, scale):
    squares = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    return np.exp(-squares / (2 * scale**2 * np.median(pdist(x.astype(np.float64), "sqeuclidean"))))


def unbiased_hsic(k, other):
    """Return HSIC₁ as Song et al. 2012 write it."""
    n = len(k)
    k, other, ones = k - np.diag(np.diag(k)), other - np.diag(np.diag(other)), np.ones(n)
    middle = (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ other) + middle - 2 / (n - 2) * (ones @ k @ other @ ones)) / (n * (n - 3))


def biased_hsic(k, other):
    n = len(k)
    centre = np.eye(n) - 1 / n
    return np.trace(k @ centre @ other @ centre) / (n - 1) ** 2


def brute_force_cka(states, other, hsic, kernel):
    first, second = [kernel(x) for x in states], [kernel(x) for x in other]
    norms = [np.sqrt([hsic(k, k) for k in kernels]) for kernels in (first, second)]
    return np.array([[hsic(a, b) for b in second] for a in first]) / np.outer(*norms)


REFERENCES = {
    "debiased": (unbiased_hsic, linear_kernel),
    "biased": (biased_hsic, linear_kernel),
    "rbf": (unbiased_hsic, lambda x: rbf_kernel(x, 0.8)),
}


# ------------------------------------------------------------------------------------------------------ CKA


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize(("n", "d"), [(30, 64), (64, 64), (65, 64), (300, 20), (4, 3), (5, 8)])
def test_cka_agrees_with_gram_matrices(kind, n, d):
    states = random_states(4, n, d)
    found = cka(states, kind=kind)
    assert found.dtype == np.float64
    expected = brute_force_cka(states, states, *REFERENCES[kind])
    assert found == pytest.approx(expected, abs=1e-6 if n > 5 else 1e-5)
    assert np.diagonal(found) == pytest.approx(1, abs=1e-12)
    assert np.array_equal(found, found.T)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize(("n", "d", "other_d"), [(30, 64, 40), (50, 64, 20), (200, 20, 32)])
def test_cka_of_two_models_agrees_with_gram_matrices(kind, n, d, other_d):
    states = random_states(3, n, d)
    other = another_model(states, other_d)
    expected = brute_force_cka(states, other, *REFERENCES[kind])
    assert cka(states, other, kind=kind) == pytest.approx(expected, abs=1e-6)
    assert cka(other, states, kind=kind) == pytest.approx(expected.T, abs=1e-6)


def test_rbf_scale_is_a_fraction_of_the_median_distance():
    states = random_states(2, 60, 10)
    expected = brute_force_cka(states, states, unbiased_hsic, lambda x: rbf_kernel(x, 0.3))
    assert cka(states, kind="rbf", rbf_scale=0.3) == pytest.approx(expected, abs=1e-6)


def test_median_distance_of_many_clips_is_that_of_a_seeded_sample(monkeypatch):
    states = random_states(3, 400, 10)
    exact = cka(states, kind="rbf")
    monkeypatch.setattr(similarity, "MOST_MEDIAN_CLIPS", 100)
    sampled = cka(states, kind="rbf", seed=1)
    assert np.array_equal(sampled, cka(states, kind="rbf", seed=1))
    assert not np.array_equal(sampled, cka(states, kind="rbf", seed=2))
    assert sampled == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize(("n", "d"), [(60, 80), (300, 40)])
def test_cka_of_a_rotated_scaled_and_moved_copy_is_one(kind, n, d):
    x = random_states(1, n, d)[0]
    turned = 5 * x @ ortho_group.rvs(d, random_state=1) + 7
    assert cka(np.array([x, turned], np.float32), kind=kind) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("n", "biased"), [(50, 0.94), (250, 0.75), (500, 0.60), (1000, 0.44)])
def test_cka_of_independent_noise(n, biased):
    states = np.random.default_rng(n).standard_normal((2, n, 768)).astype(np.float32)
    assert abs(cka(states)[0, 1]) < 0.06
    assert cka(states, kind="biased")[0, 1] == pytest.approx(biased, abs=0.01)
    assert cka_and_null(states, kind="biased")[1][0, 1] == pytest.approx(biased, abs=0.01)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize(("n", "d"), [(15, 20), (40, 8)])
def test_cka_null_is_the_mean_over_shuffles(kind, n, d):
    states = random_states(2, n, d)
    other = another_model(states, d + 3)
    rng = np.random.default_rng(0)
    shuffled = np.array([cka(states, other[:, rng.permutation(n)], kind=kind) for _ in range(400)])
    error = shuffled.std(axis=0, ddof=1) / np.sqrt(len(shuffled))
    null = cka_and_null(states, other, kind=kind)[1]
    assert null.shape == (2, 2)
    assert (np.abs(shuffled.mean(axis=0) - null) < 4 * error).all()


def test_cka_null_within_one_model_has_a_row_a_layer():
    states = random_states(3, 40, 8)
    null, of_two = (cka_and_null(states, other, kind="biased")[1] for other in (None, states))
    assert null == pytest.approx(of_two, abs=1e-9) and null.shape == (3, 3)
    assert cka_and_null(states)[1] == pytest.approx(np.zeros((3, 3)), abs=1e-12)
    assert cka_and_null(states, states[:2], kind="rbf")[1] == pytest.approx(np.zeros((3, 2)), abs=1e-12)


@pytest.mark.parametrize("kind", REFERENCES)
def test_the_null_of_cka_is_the_value_of_unrelated_layers_of_the_same_groups(kind):
    rng = np.random.default_rng(0)
    recording, group = clips_in_groups(25, rng)
    pairs = [cka_and_null(unrelated_layers(recording, group, rng), None, kind, recording, group) for _ in range(60)]
    found, null = (np.array([matrix[0, 1] for matrix in matrices]) for matrices in zip(*pairs, strict=True))
    error = np.std(found - null, ddof=1) / np.sqrt(60)
    assert found.mean() == pytest.approx(null.mean(), abs=4 * error) and error < 0.02
    without_groups = cka_and_null(unrelated_layers(recording, group, rng), None, kind)[1][0, 1]
    assert found.mean() - without_groups > 10 * error, "the level of independent clips is far too low"


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("d", [70, 5])
def test_the_null_of_cka_is_the_part_of_the_kernels_that_the_groups_explain(kind, d, monkeypatch):
    monkeypatch.setattr(similarity, "TILE_CLIPS", 7)
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 4 * 2 * d * 11)
    rng = np.random.default_rng(1)
    recording, group = clips_in_groups(9, rng)
    states = unrelated_layers(recording, group, rng, d=d)
    n = len(group)
    kinds = [of[:, None] == of for of in (recording, group)] + [np.eye(n)] * (kind == "biased")

    def centred(kernel):
        if kind == "biased":
            h = np.eye(n) - 1 / n
            return (h @ kernel @ h).ravel()
        kernel = kernel - np.diag(np.diag(kernel))
        rows = kernel.sum(axis=0) / (n - 2)
        kernel = kernel - rows - rows[:, None] + kernel.sum() / ((n - 1) * (n - 2))
        return (kernel - np.diag(np.diag(kernel))).ravel()

    kernels = []
    for x in states.astype(float):
        squares = ((x[:, None] - x) ** 2).sum(axis=2)
        width = similarity.RBF_SCALE**2 * np.median(squares[np.triu_indices(n, 1)])
        kernels.append(centred(np.exp(-squares / (2 * width)) if kind == "rbf" else x @ x.T))
    explained = np.column_stack([centred(same.astype(float)) for same in kinds])
    fitted = [explained @ np.linalg.lstsq(explained, kernel, rcond=None)[0] for kernel in kernels]
    lengths = np.linalg.norm(kernels, axis=1)
    for i, j in ((0, 1), (0, 0)):
        matrix, null = cka_and_null(states, None, kind, recording.astype(str), group)
        assert matrix[i, j] == pytest.approx(kernels[i] @ kernels[j] / (lengths[i] * lengths[j]), abs=1e-5)
        assert null[[i, j], [j, i]] == pytest.approx(fitted[i] @ fitted[j] / (lengths[i] * lengths[j]), abs=1e-5)
    assert cka_and_null(states[:1], states[1:], kind, recording, group)[1] == pytest.approx(null[:1, 1:])


@pytest.mark.parametrize("kind", REFERENCES)
def test_the_null_of_cka_is_the_mean_over_exchanges_of_groups_of_one_size(kind):
    group = np.repeat(np.arange(3), 3)
    states = unrelated_layers(np.arange(9), group, np.random.default_rng(2), d=4)
    exchanges = [
        [clip for of_group, inside in zip(order, orders, strict=True) for clip in 3 * of_group + np.array(inside)]
        for order in itertools.permutations(range(3))
        for orders in itertools.product(itertools.permutations(range(3)), repeat=3)
    ]
    other = [cka(states[:1], states[1:, clips], kind)[0, 0] for clips in exchanges]
    assert cka_and_null(states[:1], states[1:], kind, None, group)[1][0, 0] == pytest.approx(np.mean(other), abs=1e-6)


@pytest.mark.parametrize("kind", REFERENCES)
def test_blocks_tiles_and_passes_change_nothing(kind, monkeypatch):
    states = random_states(3, 250, 12)
    other = another_model(states, 7)
    expected = cka(states, kind=kind), cka(states, other, kind=kind)
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 3 * 12 * 4 * 33)
    monkeypatch.setattr(similarity, "ACCUMULATOR_BYTES", 2 * 12 * 12 * 8)
    monkeypatch.setattr(similarity, "TILE_CLIPS", 64)
    assert cka(states, kind=kind) == pytest.approx(expected[0], abs=1e-6)
    assert cka(states, other, kind=kind) == pytest.approx(expected[1], abs=1e-6)


def test_memory_mapped_states_give_the_same(tmp_path):
    states = random_states(3, 50, 12)
    np.save(tmp_path / "states.npy", states)
    mapped = np.load(tmp_path / "states.npy", mmap_mode="r")
    for metric in (cka, mutual_knn, cosine_null):
        assert type(metric(mapped)) is np.ndarray
        assert np.array_equal(metric(mapped), metric(states))
    assert np.array_equal(cosine(mapped)[0], cosine(states)[0])


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize(("n", "d"), [(20, 30), (60, 30)])
def test_cka_of_a_constant_layer_is_nan_with_a_warning(kind, n, d, caplog):
    states = random_states(3, n, d)
    states[1] = states[1, 0]
    with caplog.at_level(logging.WARNING):
        found = cka(states, kind=kind)
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()
    assert [message.split(" is NaN")[0] for message in caplog.messages] == [f"CKA ({kind}) of hidden layer 1"]
    assert np.isnan(cka(states[[0, 2]], states, kind=kind)[:, 1]).all()
    assert "hidden layer 1 of the other model" in caplog.messages[-1]


def test_a_layer_that_is_constant_up_to_rounding_is_constant():
    states = random_states(2, 20, 30)
    toward = np.where(np.arange(20)[:, None] % 2, np.inf, -np.inf).astype(np.float32)
    states[1] = np.nextafter(states[1, 0], toward)
    assert np.isnan(cka(states)[1]).all()
    assert cosine(states)[1].tolist() == [0, 20]


def test_cka_of_clips_equally_far_apart_is_nan_with_a_warning(caplog):
    states = np.array([np.eye(6), random_states(1, 6, 6)[0]], np.float32)
    assert np.isnan(cka(states)[0]).all()
    assert "hidden layer 0 is NaN: its HSIC with itself is not positive, over 6 clips" in caplog.messages[0]


# ----------------------------------------------------------------------------------------------- mutual kNN


def neighbour_sets(x, k):
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -np.inf)
    return [set(np.argsort(-row)[:k]) for row in cosines]


@pytest.mark.parametrize("k", [1, 5, 59])
def test_mutual_knn_agrees_with_sets(k):
    states = random_states(3, 60, 10)
    other = another_model(states, 6)
    first, second = ([neighbour_sets(x, k) for x in model] for model in (states, other))
    for found, rows, columns in [
        (mutual_knn(states, k=k), first, first),
        (mutual_knn(states, other, k=k), first, second),
    ]:
        overlaps = [[np.mean([len(a & b) / k for a, b in zip(r, c, strict=True)]) for c in columns] for r in rows]
        assert found == pytest.approx(np.array(overlaps), abs=1e-12)


def test_mutual_knn_by_hand():
    # Directions on a circle, in degrees, in pairs: the mean of both layers is 0.
    angles = np.radians([[0, 10, 90, 100, 180, 190, 270, 280], [0, 90, 10, 100, 180, 270, 190, 280]])
    states = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    # Clips 1, 2 and 5, 6 change places: the partners 0-1, 2-3, 4-5, 6-7 become 0-2, 1-3, 4-6, 5-7.
    assert mutual_knn(states, k=1) == pytest.approx(np.eye(2))
    # The second neighbour is the nearer of the next pair: of clip 0 they are {1, 7} and {2, 7}, of clip 1
    # {0, 2} and {3, 2}, and so on: each clip keeps one of two.
    assert mutual_knn(states, k=2)[0, 1] == pytest.approx(0.5)
    assert mutual_knn(states, k=7) == pytest.approx(1)


def test_mutual_knn_of_copies_is_one_and_of_noise_is_chance():
    x = random_states(1, 200, 16)[0]
    copies = [x, x, 5 * x @ ortho_group.rvs(16, random_state=1) + 7]
    assert mutual_knn(np.array(copies, np.float32)) == pytest.approx(1)
    noise = np.random.default_rng(0).standard_normal((2, 1000, 32)).astype(np.float32)
    found, null = mutual_knn_and_null(noise)
    assert found[0, 1] == pytest.approx(10 / 999, abs=0.004)
    assert null == pytest.approx(10 / 999)


def test_the_null_of_mutual_knn_by_single_clips_is_the_mean_over_shuffles():
    states = random_states(2, 30, 8)
    rng = np.random.default_rng(0)
    shuffled = [mutual_knn(states[:1], states[1:, rng.permutation(30)], k=4)[0, 0] for _ in range(300)]
    error = np.std(shuffled, ddof=1) / np.sqrt(300)
    assert mutual_knn_and_null(states, k=4)[1] == pytest.approx(4 / 29)
    assert np.mean(shuffled) == pytest.approx(4 / 29, abs=4 * error)


def clips_in_groups(n_groups, rng):
    """Return recording and group of clips: groups of 1 to 4 recordings, of 1 to 5 clips."""
    group = np.repeat(np.arange(n_groups), rng.integers(1, 5, n_groups))
    n_clips = rng.integers(1, 6, len(group))
    return np.repeat(np.arange(len(group)), n_clips), np.repeat(group, n_clips)


def unrelated_layers(recording, group, rng, d=16):
    """Return two layers that have groups and recordings in common, and nothing else."""

    def of(index, spread):
        return (spread * rng.normal(size=(2, index.max() + 1, d)))[:, index]

    return (of(group, 1.0) + of(recording, 0.7) + rng.normal(size=(2, len(group), d))).astype(np.float32)


def test_the_null_of_mutual_knn_is_the_value_of_unrelated_layers_of_the_same_groups():
    rng = np.random.default_rng(0)
    recording, group = clips_in_groups(25, rng)
    found, null = [], []
    for _ in range(40):
        matrix, expected = mutual_knn_and_null(unrelated_layers(recording, group, rng), None, 10, recording, group)
        found.append(matrix[0, 1])
        null.append(expected[0, 1])
    error = np.std(np.subtract(found, null), ddof=1) / np.sqrt(40)
    assert np.mean(found) == pytest.approx(np.mean(null), abs=4 * error)
    assert error < 0.005 and np.mean(found) > 3 * 10 / (len(group) - 1)  # the level of independent clips is far too low


def test_the_null_of_mutual_knn_by_its_definition():
    rng = np.random.default_rng(1)
    recording, group = clips_in_groups(8, rng)
    states = unrelated_layers(recording, group, rng)
    sets = [neighbour_sets(x, 4) for x in states]
    n, expected = len(group), 0.0
    for i in range(n):
        others = set(range(n)) - {i}
        same_recording = {j for j in others if recording[j] == recording[i]}
        same_group = {j for j in others if group[j] == group[i]} - same_recording
        for kind in (same_recording, same_group, others - same_recording - same_group):
            expected += len(sets[0][i] & kind) * len(sets[1][i] & kind) / max(len(kind), 1)
    _, null = mutual_knn_and_null(states, None, 4, recording.astype(str), group.astype(str))
    assert null[0, 1] == null[1, 0] == pytest.approx(expected / (4 * n))
    assert mutual_knn_and_null(states[:1], states[1:], 4, recording, group)[1] == pytest.approx(null[:1, 1:])


def test_the_null_of_mutual_knn_is_that_of_exchanged_groups_where_these_have_one_size():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(12), 4)
    differences = []
    for _ in range(40):  # in one set of layers the groups that are compact in both, by chance, make a difference
        states = unrelated_layers(np.arange(48), group, rng, d=6)
        for _ in range(5):
            clips = (4 * rng.permutation(12)[:, None] + np.arange(4)).ravel()
            exchanged = np.stack([states[0], states[1, clips]])
            found, null = mutual_knn_and_null(exchanged, None, 5, None, group)
            differences.append(found[0, 1] - null[0, 1])
    error = np.std(differences, ddof=1) / np.sqrt(40)
    assert np.mean(differences) == pytest.approx(0, abs=4 * error) and error < 0.005


def test_mutual_knn_leaves_out_clips_without_a_direction(caplog):
    states = random_states(3, 41, 6)
    states[0, :20] = -states[0, 21:]
    states[0, 20] = 0  # the mean of the layer
    states[1] = states[1, 0]
    found = mutual_knn(states, k=3)
    first, third = (neighbour_sets(x, 3) for x in states[[0, 2]])
    there = [i for i in range(41) if i != 20]
    assert found[0, 2] == pytest.approx(np.mean([len(first[i] & third[i]) / 3 for i in there]))
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert caplog.messages == [
        "mutual kNN of hidden layer 0 leaves out 1 of 41 clips: their centred vectors are zero",
        "mutual kNN of hidden layer 1 is NaN: its vectors of all 41 clips are equal",
    ]


# --------------------------------------------------------------------------------------------------- cosine


def test_cosine_agrees_with_a_loop(monkeypatch):
    states = random_states(3, 40, 8)
    centred = [x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in states]
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in centred]
    expected = [[np.mean([u @ v for u, v in zip(a, b, strict=True)]) for b in units] for a in units]
    shuffled = [[np.mean([u @ v for u in a for v in b]) for b in units] for a in units]
    for block_bytes in (similarity.BLOCK_BYTES, 3 * 8 * 4 * 7):
        monkeypatch.setattr(similarity, "BLOCK_BYTES", block_bytes)
        matrix, n_skipped = cosine(states)
        assert matrix == pytest.approx(np.array(expected), abs=1e-7)
        assert n_skipped.tolist() == [0, 0, 0]
        assert cosine_null(states) == pytest.approx(np.array(shuffled), abs=1e-7)


def test_cosine_of_copies():
    x = random_states(1, 30, 8)[0]
    matrix, _ = cosine(np.array([x, 3 * x + 7, -x], np.float32))
    assert matrix == pytest.approx(np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]]), abs=1e-6)


def test_cosine_skips_and_counts_zero_vectors(caplog):
    # Centred already: the mean of every layer is 0.
    first = np.array([[1, 0], [-1, 0], [0, 0], [0, 0]], np.float32)
    second = np.array([[1, 0], [0, 0], [-1, 1], [0, -1]], np.float32)
    constant = np.full((4, 2), 3, np.float32)
    matrix, n_skipped = cosine(np.array([first, second, constant]))
    assert n_skipped.tolist() == [2, 1, 4]
    assert matrix[0, 1] == pytest.approx(1)  # only clip 0 has a direction in both
    assert np.isnan(matrix[2]).all() and np.isnan(matrix[:, 2]).all()
    null = cosine_null(np.array([first, second, constant]))
    assert null[0, 1] == pytest.approx(0)
    assert null[1, 1] == pytest.approx(((1 - 0.5**0.5) ** 2 + (0.5**0.5 - 1) ** 2) / 9)
    assert np.isnan(null[2]).all()
    assert len(caplog.messages) == 3


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [0, 17])
def test_states_that_are_not_finite_are_refused(value, clip, monkeypatch):
    states = random_states(3, 20, 4)
    states[1, clip, 2] = value
    monkeypatch.setattr(similarity, "BLOCK_BYTES", 8 * 4 * 5)
    for metric in (cka, mutual_knn, cosine, cosine_null):
        with pytest.raises(InputError, match=f"^hidden layer 1: the hidden state of clip {clip} is not finite"):
            metric(states)
    with pytest.raises(InputError, match="hidden layer 1 of the other model"):
        cka(states[[0, 2]], states)


@pytest.mark.parametrize(
    ("metric", "shape", "match"),
    [
        (cka, (2, 3, 4), "found 3 clips, expected at least 4"),
        (cosine, (2, 1, 4), "found 1 clips, expected at least 2"),
        (cka, (20, 4), "found an array of shape"),
        (cosine, (0, 20, 4), "found an array of shape"),
        (mutual_knn, (2, 10, 4), "10 nearest neighbours among 10 clips"),
    ],
)
def test_states_of_another_shape_are_refused(metric, shape, match):
    with pytest.raises(InputError, match=match):
        metric(np.random.default_rng(0).random(shape, np.float32))


def test_states_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="type bool"):
        cka(np.ones((2, 10, 3), bool))


@pytest.mark.parametrize("metric", [cka, mutual_knn])
def test_models_with_other_clips_are_refused(metric):
    with pytest.raises(InputError, match="found 20 clips of the one model and 21 of the other"):
        metric(random_states(2, 20, 3), random_states(2, 21, 3))


@pytest.mark.parametrize("k", [0, 10])
def test_impossible_numbers_of_neighbours_are_refused(k):
    with pytest.raises(InputError, match=f"{k} nearest neighbours among 10 clips"):
        mutual_knn(random_states(2, 10, 3), k=k)


def test_unknown_arguments_are_bugs():
    states = random_states(2, 10, 3)
    with pytest.raises(ValueError, match="kind 'linear'"):
        cka(states, kind="linear")
    with pytest.raises(ValueError, match="rbf_scale 0"):
        cka(states, kind="rbf", rbf_scale=0)


# ------------------------------------------------------------------------------------- what matrices show


def test_one_hidden_layer_is_enough():
    states = random_states(1, 20, 4)
    assert cka(states) == pytest.approx(np.ones((1, 1)))
    assert similarity.block_influence(cka(states)).shape == (0,)
    assert similarity.two_block_boundary(cka(states)) is None


def test_block_influence_is_read_off_the_first_diagonal():
    matrix = np.array([[1, 0.9, 0.5], [0.9, 1, 0.6], [0.5, 0.6, 1]])
    assert similarity.block_influence(matrix) == pytest.approx([0.1, 0.4])
    x = random_states(1, 30, 8)[0]
    assert similarity.block_influence(mutual_knn(np.array([x, x]))) == pytest.approx([0])  # an identity block


def brute_force_contrast(matrix, boundary):
    within, between = [], []
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if i != j and np.isfinite(value):
                (within if (i < boundary) == (j < boundary) else between).append(value)
    return np.mean(within) - np.mean(between)


@pytest.mark.parametrize("boundary", [2, 4, 7])
def test_two_blocks_are_found(boundary):
    second = np.arange(9) >= boundary
    matrix = np.where(second[:, None] == second, 0.9, 0.2)
    np.fill_diagonal(matrix, 1)
    found = similarity.two_block_boundary(matrix)
    assert found.boundary == boundary
    assert found.contrast == pytest.approx(0.7)
    assert found.contrast_of_distance_alone < 0.5


def test_contrast_agrees_with_a_loop_and_leaves_out_nan():
    rng = np.random.default_rng(3)
    matrix = rng.random((7, 7))
    matrix = matrix + matrix.T
    matrix[2] = matrix[:, 2] = np.nan
    contrasts = {b: brute_force_contrast(matrix, b) for b in range(2, 6)}
    found = similarity.two_block_boundary(matrix)
    assert found.boundary == max(contrasts, key=contrasts.get)
    assert found.contrast == pytest.approx(contrasts[found.boundary])
    by_distance = matrix.copy()
    for i, j in np.argwhere(np.isfinite(matrix)):
        same = [matrix[p, q] for p in range(7) for q in range(7) if abs(p - q) == abs(i - j)]
        by_distance[i, j] = np.nanmean(same)
    expected = max(brute_force_contrast(by_distance, b) for b in range(2, 6))
    assert found.contrast_of_distance_alone == pytest.approx(expected)


def test_smooth_decay_has_no_more_contrast_than_its_distances():
    layers = np.arange(13)
    found = similarity.two_block_boundary(np.exp(-np.abs(layers[:, None] - layers) / 4))
    assert found.contrast > 0.1
    assert found.contrast_of_distance_alone == pytest.approx(found.contrast)


def test_of_equal_contrasts_the_lowest_boundary_wins():
    assert similarity.two_block_boundary(np.ones((6, 6))) == similarity.TwoBlocks(2, 0.0, 0.0)


def test_too_few_layers_or_nothing_known_have_no_boundary():
    assert similarity.two_block_boundary(np.ones((3, 3))) is None
    assert similarity.two_block_boundary(np.full((8, 8), np.nan)) is None
