"""Similarity of the layers of one model or of two on the same clips: CKA, mutual kNN, cosine, and their nulls.

Hidden states are an array (n_hidden_layers, n_clips, d), usually a memory map. They are read one block of
clips at a time (by mutual kNN one layer at a time), never as a whole. Hidden layer 0 is the input of block 0.

All metrics centre each layer over the clips. If a centred vector is not longer than the float32 rounding of
the layer's mean, it is noise and counts as zero. A layer of zeros is constant, and its similarities are NaN.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from utils.core.errors import InputError
from utils.layers.neighbors import nearest_neighbors

log = logging.getLogger(__name__)

CKA_KINDS = ("debiased", "biased", "rbf")
# The debiased estimate divides by n (n - 3).
FEWEST_CKA_CLIPS = 4
# Kornblith et al. (2019) try 0.2, 0.4 and 0.8.
RBF_SCALE = 0.8
# With more clips than this, the median distance is that of a seeded sample of this size.
MOST_MEDIAN_CLIPS = 2000
# Memory limit of the block of clips that is held of all layers together.
BLOCK_BYTES = 2**26
# Memory limit of the products XᵀY that are summed in one pass over the hidden states; enough for a base model.
ACCUMULATOR_BYTES = 2**30
# Clips on each side of a tile of a kernel matrix.
TILE_CLIPS = 1024
# Relative size below which a float32 number is rounding error.
ROUNDING = float(np.finfo(np.float32).eps)
# Two contrasts that differ by less count as equal.
TIE = 1e-12
# Kinds of units whose kernels differ by less, relative to the largest, count as one.
UNIT_TIE = 1e-10


# ------------------------------------------------------------------------------------- centred layers


class _Layer:
    """One hidden layer, centred over the clips and scaled so that its elements have mean square 1.

    Scaling changes none of the metrics and keeps float32 products in range. Deviations are computed from the
    first clip, so that the mean of equal clips is exactly that clip.
    """

    def __init__(self, states: np.ndarray, index: int, name: str):
        self._states = states[index]
        self.name = name
        self.n_clips, self.d = self._states.shape
        first = np.asarray(self._states[0], np.float64)
        total, squares = np.zeros(self.d), 0.0
        for clips in _slices(self.n_clips, max(1, BLOCK_BYTES // (8 * self.d))):
            with np.errstate(invalid="ignore"):  # infinity minus infinity; refused below
                deviations = np.asarray(self._states[clips], np.float64) - first
            total += deviations.sum(axis=0)
            squares += np.vdot(deviations, deviations)
            if not np.isfinite(squares):
                finite = np.isfinite(self._states[clips]).all(axis=1)
                raise InputError(
                    f"{name}: the hidden state of clip {clips.start + int(np.argmin(finite))} is not finite "
                    "(NaN or infinite); expected finite numbers; check the weights of the model and the clip, and "
                    "compute the hidden states again"
                )
        total /= self.n_clips
        self._mean = first + total
        variance = max(squares / self.n_clips - np.vdot(total, total), 0.0) / self.d
        self._scale = np.sqrt(variance) or 1.0
        self._longest_noise = ROUNDING * np.linalg.norm(self._mean)

    def rows(self, clips: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return the centred and scaled vectors of some clips, float64, shape (clips, d)."""
        rows = np.asarray(self._states[clips], np.float64) - self._mean
        rows[np.linalg.norm(rows, axis=1) <= self._longest_noise] = 0
        rows /= self._scale
        return rows

    def unit_rows(self, clips: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of some clips, scaled to length 1, and a mask of those that are not zero."""
        rows = self.rows(clips)
        lengths = np.linalg.norm(rows, axis=1)
        there = lengths > 0
        rows[there] /= lengths[there, None]
        return rows, there


def _slices(n: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, n)) for start in range(0, n, length))


def _blocks(layers: Sequence[_Layer]) -> Iterator[slice]:
    """Return blocks of clips so small that a float32 copy of all these layers fits into BLOCK_BYTES."""
    return _slices(layers[0].n_clips, max(1, BLOCK_BYTES // (4 * sum(layer.d for layer in layers))))


def _layers_of(states: ArrayLike, fewest_clips: int, model: str = "") -> list[_Layer]:
    states = np.asarray(states)
    what = f"hidden states{model}"
    if states.ndim != 3 or states.dtype.kind != "f" or 0 in states.shape:
        raise InputError(
            f"{what}: found an array of shape {states.shape} and type {states.dtype}, expected floats of shape "
            "(hidden layers, clips, dimensions), none of them 0; compute the hidden states again"
        )
    if states.shape[1] < fewest_clips:
        raise InputError(
            f"{what}: found {states.shape[1]} clips, expected at least {fewest_clips}; use a split with more clips"
        )
    return [_Layer(states, i, f"hidden layer {i}{model}") for i in range(len(states))]


def _both(states: ArrayLike, other: ArrayLike | None, fewest_clips: int) -> tuple[list[_Layer], list[_Layer]]:
    """Return the layers of both models; for the second an empty list if there is only one."""
    first = _layers_of(states, fewest_clips)
    if other is None:
        return first, []
    second = _layers_of(other, fewest_clips, " of the other model")
    if first[0].n_clips != second[0].n_clips:
        raise InputError(
            f"hidden states: found {first[0].n_clips} clips of the one model and {second[0].n_clips} of the other, "
            "expected the same clips in the same order; compute both on the same split"
        )
    return first, second


def _pairs(first: Sequence[_Layer], second: Sequence[_Layer]) -> list[tuple[int, int]]:
    """Return the pairs of layers to compare; the second model's layers are numbered after the first's."""
    a, b = len(first), len(second)
    if second:
        return [(i, a + j) for i in range(a) for j in range(b)]
    return [(i, j) for i in range(a) for j in range(i, a)]


def _table(values: np.ndarray, n_first: int) -> np.ndarray:
    """Return the rows of the first model and the columns of the second from a table of all layers of both."""
    return values[:n_first, n_first:] if len(values) > n_first else values


# ------------------------------------------------------------------------- centred kernel alignment (CKA)


def cka(
    states: ArrayLike,
    other: ArrayLike | None = None,
    kind: str = "debiased",
    rbf_scale: float = RBF_SCALE,
    seed: int = 42,
) -> np.ndarray:
    """Return the centred kernel alignment of all pairs of layers; see `cka_and_null`."""
    return cka_and_null(states, other, kind, None, None, rbf_scale, seed)[0]


def cka_and_null(
    states: ArrayLike,
    other: ArrayLike | None = None,
    kind: str = "debiased",
    recordings: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    rbf_scale: float = RBF_SCALE,
    seed: int = 42,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the centred kernel alignment of all pairs of layers, and its null.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019, arXiv 1905.00414). The debiased
    kind uses HSIC₁ of Song et al. 2012, as in Nguyen et al. 2021 (arXiv 2010.15327). K̃ and L̃ are K and L
    with a zero diagonal, n is the number of clips::

        HSIC₁ = [tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1ᵀK̃L̃1] / (n (n - 3))

    HSIC₁ does not change if a_i + a_j is added to every K_ij, i ≠ j. So it does not change if the features
    are centred, and then the rows of K and L sum to zero. With k_i = K_ii and l_i = L_ii follows::

        tr(K̃L̃) = ‖XᵀY‖²_F - Σ k_i l_i      1ᵀK̃1 = -Σ k_i      1ᵀK̃L̃1 = Σ k_i l_i

    This needs no n × n matrix. It costs O(n d²) per pair: blocks of clips are multiplied in float32 and
    summed in float64. Where the n × n matrices are smaller (n ≤ d), they are used. ACCUMULATOR_BYTES limits
    the memory. If the products of all pairs do not fit, the hidden states are read more than once.

    The null is the value that is expected of unrelated layers of clips that come in groups. Clips of one recording, or
    of one recordist, are near each other in any layer, so two layers agree in this without being related: the level of
    shuffled clips, 0 for the debiased kinds, is too low. Let two layers be independent of each other, and let clips
    differ only in their recording and group. Then E[K_ij] depends only on what clips i and j share: the recording, the
    group or nothing. So E[K] is a sum of matrices E_u that are 1 where two clips share a unit of kind u, and the mean
    of HSIC(K, L) is::

        hᵀ G⁻¹ g,    h_u = HSIC(K, E_u),    g_u = HSIC(L, E_u),    G_uv = HSIC(E_u, E_v)

    It is the part of HSIC(K, L) that lies in the span of the E_u: what the two layers have in common because each
    knows the groups. Without groups this is the mean over all permutations of the clips: 0 for the debiased kinds, and
    tr(K) tr(L) / (n - 1) for the biased one, with centred X and Y.

    Parameters
    ----------
    states : array-like of float32, shape (n_layers_a, n_clips, d_a)
        Hidden states of one model.
    other : array-like of float32, shape (n_layers_b, n_clips, d_b), optional
        Hidden states of another model, of the same clips in the same order. Default: the same model.
    kind : {"debiased", "biased", "rbf"}
        ``biased`` is ‖XᵀY‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F): far above 0 for unrelated features unless n is much
        larger than d. ``rbf`` has the kernel exp(-‖x - x'‖² / (2 σ²)), also debiased, in tiles of n × n.
    recordings, groups : ndarray, shape (n_clips,), optional
        Recording and group of each clip, any sortable values. Default: each clip is a recording and a group by itself.
    rbf_scale : float
        t in σ² = t² · median of ‖x - x'‖² over the pairs of clips, separately for each layer. With more than
        MOST_MEDIAN_CLIPS clips, the pairs of a sample of this size are used.
    seed : int
        Seed of that sample, which is the same for all layers.

    Returns
    -------
    matrix, null : ndarray of float64, shape (n_layers_a, n_layers_b)
        At most 1; a debiased value can be negative. NaN, with a warning, where HSIC(K, K) of one of the
        layers is not positive, such as for a constant layer.

    Raises
    ------
    InputError
        If hidden states are not finite or have another shape, if the models have different numbers of clips,
        or if there are fewer than 4 clips.
    """
    if kind not in CKA_KINDS:
        raise ValueError(f"kind {kind!r}, expected one of {', '.join(CKA_KINDS)}")
    if not rbf_scale > 0:
        raise ValueError(f"rbf_scale {rbf_scale}, expected a positive number")
    first, second = _both(states, other, FEWEST_CKA_CLIPS)
    layers = [*first, *second]
    m, n = len(layers), layers[0].n_clips
    units = [np.unique(of, return_inverse=True)[1] for of in (recordings, groups) if of is not None]
    if kind == "rbf":
        size, row_sums = _rbf_sums(layers, units, rbf_scale, seed)
        hsic = _debiased_hsic(size, row_sums)
    else:
        pairs = _pairs(first, second) + ([(i, i) for i in range(m)] if second else [])
        if kind == "biased":  # the debiased kinds leave out the diagonal, so a clip by itself is no unit
            units.append(np.arange(n))
        size, row_sums = _linear_sums(layers, pairs, units)
        if kind == "biased":
            hsic = _biased_hsic(size, row_sums)
        else:
            diagonals = np.concatenate([_squared_lengths(layers), np.ones((len(units), n))])
            hsic = _debiased_hsic(size - diagonals @ diagonals.T, row_sums - diagonals)
    own = np.diagonal(hsic)[:m].copy()
    for i in np.flatnonzero(own <= ROUNDING * np.diagonal(size)[:m]):
        log.warning(
            "CKA (%s) of %s is NaN: its HSIC with itself is not positive, over %d clips; "
            "its vectors are all equal, or all equally far apart",
            *(kind, layers[i].name, n),
        )
        own[i] = np.nan
    of_units = hsic[:m, m:]
    # Units that are the same, such as groups of one recording each, count once.
    expected = of_units @ np.linalg.pinv(hsic[m:, m:], rcond=UNIT_TIE, hermitian=True) @ of_units.T
    lengths = np.sqrt(np.outer(own, own))
    return _table(hsic[:m, :m] / lengths, len(first)), _table(expected / lengths, len(first))


def _debiased_hsic(inner: np.ndarray, row_sums: np.ndarray) -> np.ndarray:
    """Return n (n - 3) HSIC₁ of all pairs from tr(K̃L̃), shape (m, m), and the row sums K̃1, shape (m, n)."""
    n = row_sums.shape[1]
    totals = row_sums.sum(axis=1)
    return inner + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (row_sums @ row_sums.T)


def _biased_hsic(inner: np.ndarray, row_sums: np.ndarray) -> np.ndarray:
    """Return tr(KHLH), H = I - 1/n, of all pairs from tr(KL), shape (m, m), and the row sums K1, shape (m, n)."""
    n = row_sums.shape[1]
    totals = row_sums.sum(axis=1)
    return inner + np.outer(totals, totals) / n**2 - 2 / n * (row_sums @ row_sums.T)


def _linear_sums(
    layers: Sequence[_Layer], pairs: Sequence[tuple[int, int]], units: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return tr(KL) of pairs of layers and of all units, NaN for other pairs, and the row sums of all K.

    Parameters
    ----------
    layers : sequence of _Layer
    pairs : sequence of (int, int)
    units : sequence of ndarray of int, shape (n_clips,)
        The kernel of a kind of unit is 1 for two clips of one unit; in the tables it follows the layers.

    Returns
    -------
    inner : ndarray, shape (m + n_kinds, m + n_kinds)
    row_sums : ndarray, shape (m + n_kinds, n_clips)
    """
    m, n = len(layers), layers[0].n_clips
    inner, row_sums = np.empty((m + len(units),) * 2), np.zeros((m + len(units), n))
    inner[:m, :m] = _linear_products(layers, pairs)
    members = [csr_array((np.ones(n), of_clip, np.arange(n + 1))) for of_clip in units]  # a row a clip, a column a unit
    for i, layer in enumerate(layers if units else ()):  # not a pass over the states for nothing
        sums = [np.zeros((of_kind.shape[1], layer.d)) for of_kind in members]
        for clips in _blocks([layer]):
            rows = layer.rows(clips)
            for total, of_kind in zip(sums, members, strict=True):
                total += of_kind[clips].T @ rows
        inner[i, m:] = inner[m:, i] = [np.vdot(total, total) for total in sums]
    for place, of_kind in enumerate(members, start=m):
        row_sums[place] = of_kind @ of_kind.sum(axis=0)
        inner[place, m:] = [(of_kind.T @ other).power(2).sum() for other in members]
    return inner, row_sums


def _squared_lengths(layers: Sequence[_Layer]) -> np.ndarray:
    """Return the diagonals of the kernel matrices, shape (layers, clips)."""
    lengths = np.empty((len(layers), layers[0].n_clips))
    for clips in _blocks(layers):
        for i, layer in enumerate(layers):
            rows = layer.rows(clips)
            lengths[i, clips] = np.einsum("cd,cd->c", rows, rows)
    return lengths


def _linear_products(layers: Sequence[_Layer], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return ‖XᵀY‖²_F = tr(KL) of pairs of layers, shape (layers, layers), symmetric; NaN for other pairs."""
    products = np.full((len(layers), len(layers)), np.nan)
    if layers[0].n_clips <= min(layer.d for layer in layers):
        grams = np.stack([(rows @ rows.T).ravel() for rows in (layer.rows() for layer in layers)])
        for i, j in pairs:
            products[i, j] = products[j, i] = grams[i] @ grams[j]
        return products

    for part in _that_fit(layers, pairs):
        needed = sorted({i for pair in part for i in pair})
        sums = [np.zeros((layers[i].d, layers[j].d)) for i, j in part]
        for clips in _blocks([layers[i] for i in needed]):
            rows = {i: layers[i].rows(clips).astype(np.float32) for i in needed}
            for (i, j), total in zip(part, sums, strict=True):
                total += rows[i].T @ rows[j]
        for (i, j), total in zip(part, sums, strict=True):
            products[i, j] = products[j, i] = np.vdot(total, total)
    return products


def _that_fit(layers: Sequence[_Layer], pairs: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Divide the pairs into lists whose products XᵀY, float64, fit into ACCUMULATOR_BYTES together."""
    part, n_bytes = [], 0
    for i, j in pairs:
        more = 8 * layers[i].d * layers[j].d
        if part and n_bytes + more > ACCUMULATOR_BYTES:
            yield part
            part, n_bytes = [], 0
        part.append((i, j))
        n_bytes += more
    yield part


def _rbf_sums(
    layers: Sequence[_Layer], units: Sequence[np.ndarray], scale: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return tr(K̃L̃) of all pairs of layers and units, and the row sums of every K̃; the kernels of layers are Gaussian.

    Parameters and results are as for `_linear_sums`, but the diagonals are zero.
    """
    n, m = layers[0].n_clips, len(layers)
    lengths = _squared_lengths(layers)
    sample = np.arange(n)
    if n > MOST_MEDIAN_CLIPS:
        sample = np.sort(np.random.default_rng(seed).choice(n, MOST_MEDIAN_CLIPS, replace=False))
    above = np.triu_indices(len(sample), 1)
    widths = np.empty(len(layers))
    for i, layer in enumerate(layers):
        rows = layer.rows(sample)
        distances = lengths[i, sample, None] + lengths[i, sample] - 2 * (rows @ rows.T)
        widths[i] = 2 * scale**2 * np.median(distances[above])
        if not widths[i] > ROUNDING:  # the mean square of the features is 1
            log.warning("CKA (rbf) of %s is NaN: the median distance of its vectors is 0", layer.name)
            widths[i] = np.nan

    inner = np.zeros((m + len(units), m + len(units)))
    row_sums = np.zeros((m + len(units), n))
    kernels = np.empty((m + len(units), TILE_CLIPS * TILE_CLIPS))
    for left in _slices(n, TILE_CLIPS):
        left_rows = [layer.rows(left).astype(np.float32) for layer in layers]
        for right in _slices(n, TILE_CLIPS):
            if right.start < left.start:
                continue
            shape = (left.stop - left.start, right.stop - right.start)
            tile = kernels[:, : shape[0] * shape[1]]
            for i, layer in enumerate(layers):
                dots = left_rows[i] @ layer.rows(right).astype(np.float32).T
                kernel = tile[i].reshape(shape)
                np.add(lengths[i, left, None], lengths[i, right], out=kernel)
                kernel -= 2 * dots
                kernel /= -widths[i]
                np.exp(kernel, out=kernel)
            for i, of_clip in enumerate(units, start=m):
                tile[i].reshape(shape)[:] = of_clip[left, None] == of_clip[right]
            for i, kernel in enumerate(tile.reshape(-1, *shape)):
                if left == right:
                    np.fill_diagonal(kernel, 0)
                else:
                    row_sums[i, right] += kernel.sum(axis=0)
                row_sums[i, left] += kernel.sum(axis=1)
            inner += (1 if left == right else 2) * (tile @ tile.T)
    return inner, row_sums


# ------------------------------------------------------------------------------ mutual nearest neighbours


def mutual_knn(states: ArrayLike, other: ArrayLike | None = None, k: int = 10) -> np.ndarray:
    """Return the share of nearest neighbours that two layers have in common; see `mutual_knn_and_null`."""
    return mutual_knn_and_null(states, other, k)[0]


def mutual_knn_and_null(
    states: ArrayLike,
    other: ArrayLike | None = None,
    k: int = 10,
    recordings: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of nearest neighbours that two layers have in common, for all pairs of layers, and its null.

    S(i, j) = mean over clips of |N_k(i) ∩ N_k(j)| / k (Huh et al. 2024, arXiv 2405.07987). Neighbours are
    exact, by the cosine of the centred vectors; a clip is not its own neighbour. A clip whose centred vector
    is zero in one of the two layers has no direction there. It is left out, and the number of such clips is
    logged.

    The null is the expected value in unrelated layers of clips that come in groups. Clips of one recording, or of one
    recordist, are near each other in any layer, so two layers share such neighbours without being related: k / (n - 1),
    the level of independent clips, is too low. Therefore each clip keeps the number of its neighbours of the same
    recording, of the same group in other recordings, and of other groups; which clips of each kind these are is
    random. With a_t and b_t neighbours of kind t in the two layers, among n_t clips of this kind, a_t b_t / n_t are
    common to both in the mean. This is the exact mean over all shuffles, and whole groups are never parted. (An
    exchange of whole groups between the layers needs groups of the same size, and most large groups have a size of
    their own.)

    Parameters
    ----------
    states : array-like of float32, shape (n_layers_a, n_clips, d_a)
        Hidden states of one model.
    other : array-like of float32, shape (n_layers_b, n_clips, d_b), optional
        Hidden states of another model, of the same clips in the same order. Default: the same model.
    k : int
        Neighbours of each clip, 1 to n_clips - 1.
    recordings, groups : ndarray, shape (n_clips,), optional
        Recording and group of each clip, any sortable values. Default: each clip is a recording and a group by itself,
        and the null is k / (n_clips - 1).

    Returns
    -------
    matrix, null : ndarray of float64, shape (n_layers_a, n_layers_b)
        0 to 1. NaN, with a warning, for a constant layer.

    Raises
    ------
    InputError
        If hidden states are not finite or have another shape, if the models have different numbers of clips,
        or if there are `k` clips or fewer.
    """
    first, second = _both(states, other, 2)
    layers = [*first, *second]
    n = layers[0].n_clips
    of_clip = [np.arange(n) if of is None else np.unique(of, return_inverse=True)[1] for of in (recordings, groups)]
    of_kind = _clips_of_each_kind(*of_clip)
    graphs, there, roots = [], np.empty((len(layers), n)), np.empty((len(layers), *of_kind.shape))
    for i, layer in enumerate(layers):
        rows = layer.rows()
        indices, _ = nearest_neighbors(rows, k, metric="cosine")
        there[i] = rows.any(axis=1)
        links = np.repeat(there[i], k)
        graph = csr_array((links, np.sort(indices, axis=1).ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
        graphs.append(graph)
        kinds = _kinds(np.arange(n)[:, None], indices, *of_clip)
        found = np.stack([(kinds == kind).sum(axis=1) for kind in range(of_kind.shape[1])], axis=1) * there[i, :, None]
        roots[i] = np.divide(found, np.sqrt(of_kind), out=np.zeros(of_kind.shape), where=of_kind > 0)
    _warn_of_zeros("mutual kNN", layers, n - there.sum(axis=1))

    common = np.full((len(layers), len(layers)), np.nan)
    for i, j in _pairs(first, second):
        common[i, j] = common[j, i] = graphs[i].multiply(graphs[j]).sum()
    n_clips = there @ there.T
    n_possible = np.where(n_clips > 0, k * n_clips, np.nan)
    expected = roots.reshape(len(layers), -1)
    return _table(common / n_possible, len(first)), _table(expected @ expected.T / n_possible, len(first))


def _kinds(clip: np.ndarray, others: np.ndarray, recordings: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return 0 for clips of the same recording, 1 for others of the same group, 2 for the rest."""
    return np.where(recordings[clip] == recordings[others], 0, np.where(groups[clip] == groups[others], 1, 2))


def _clips_of_each_kind(recordings: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return how many other clips are of each of the `_kinds`, shape (n_clips, 3)."""
    in_both = np.unique(np.column_stack([recordings, groups]), axis=0, return_inverse=True)[1].ravel()
    in_recording, in_group, in_both = (np.bincount(of)[of] for of in (recordings, groups, in_both))
    same_recording, same_group = in_recording - 1, in_group - in_both
    return np.column_stack([same_recording, same_group, len(groups) - 1 - same_recording - same_group])


def _warn_of_zeros(metric: str, layers: Sequence[_Layer], n_zeros: np.ndarray) -> None:
    for layer, count in zip(layers, n_zeros.astype(int), strict=True):
        if count == layer.n_clips:
            log.warning("%s of %s is NaN: its vectors of all %d clips are equal", metric, layer.name, count)
        elif count:
            log.warning(
                "%s of %s leaves out %d of %d clips: their centred vectors are zero",
                *(metric, layer.name, count, layer.n_clips),
            )


# ------------------------------------------------------------------------------------------------ cosine


def cosine(states: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over clips of the cosine of the centred vectors of two layers, for all pairs.

    Equation 1 of Dorszewski et al. (arXiv 2409.16302). It compares two layers axis by axis, so it is only
    defined within one model: two models have no common axes.

    Parameters
    ----------
    states : array-like of float32, shape (n_layers, n_clips, d)
        Hidden states of one model.

    Returns
    -------
    matrix : ndarray of float64, shape (n_layers, n_layers)
        -1 to 1. NaN, with a warning, for a constant layer.
    n_skipped : ndarray of int64, shape (n_layers,)
        Clips whose centred vector is zero in the layer; they are left out of its similarities.

    Raises
    ------
    InputError
        If hidden states are not finite or have another shape, or if there are fewer than 2 clips.
    """
    layers = _layers_of(states, 2)
    sums = np.zeros((len(layers), len(layers)))
    n_clips = np.zeros((len(layers), len(layers)))
    for clips in _blocks(layers):
        units, there = map(np.array, zip(*(layer.unit_rows(clips) for layer in layers), strict=True))
        flat = units.reshape(len(layers), -1)
        sums += flat @ flat.T
        n_clips += there.astype(np.float64) @ there.T
    n_skipped = layers[0].n_clips - np.diagonal(n_clips).astype(np.int64)
    _warn_of_zeros("cosine", layers, n_skipped)
    return sums / np.where(n_clips > 0, n_clips, np.nan), n_skipped


def cosine_null(states: ArrayLike) -> np.ndarray:
    """Return the `cosine` of all pairs of layers that is expected if the clips of one side are shuffled.

    This is the mean over all pairs of clips, which equals the product of the mean unit vectors. It is exact
    except for the skipped clips. It is not 0: the mean of centred vectors is zero, but the mean of their
    directions is not.

    Parameters
    ----------
    states : array-like of float32, shape (n_layers, n_clips, d)
        Hidden states of one model.

    Returns
    -------
    ndarray of float64, shape (n_layers, n_layers)
        NaN for a constant layer.

    Raises
    ------
    InputError
        As `cosine`.
    """
    layers = _layers_of(states, 2)
    sums, n_clips = np.zeros((len(layers), layers[0].d)), np.zeros(len(layers))
    for clips in _blocks(layers):
        for i, layer in enumerate(layers):
            units, there = layer.unit_rows(clips)
            sums[i] += units.sum(axis=0)
            n_clips[i] += there.sum()
    means = sums / np.where(n_clips > 0, n_clips, np.nan)[:, None]
    return means @ means.T


# ----------------------------------------------------------------------------- reading the matrices


def block_influence(similarity: np.ndarray) -> np.ndarray:
    """Return how much every block changes its input: 1 - the similarity of its input and its output.

    With the mean cosine over frames this is the block influence of ShortGPT (Men et al. 2024, arXiv
    2403.03853). With mutual kNN it is the kNN block influence of Dorszewski et al. (arXiv 2409.16302).

    Parameters
    ----------
    similarity : ndarray of float64, shape (n_blocks + 1, n_blocks + 1)
        Similarity of all pairs of hidden layers of one model.

    Returns
    -------
    ndarray of float64, shape (n_blocks,)
    """
    return 1 - np.diagonal(similarity, offset=1)


@dataclass(frozen=True)
class TwoBlocks:
    """The boundary between the two blocks of a similarity matrix, and its contrast.

    Attributes
    ----------
    boundary : int
        The first hidden layer of the second block; block ``boundary - 1`` of the model crosses it.
    contrast : float
        Mean similarity within the blocks, without the diagonal, minus the mean similarity between them.
    contrast_of_distance_alone : float
        Largest contrast of the same matrix with each similarity replaced by the mean at its |i - j|.
    """

    boundary: int
    contrast: float
    contrast_of_distance_alone: float


def two_block_boundary(similarity: np.ndarray) -> TwoBlocks | None:
    """Return the boundary that divides the layers of one model into the two blocks of largest contrast.

    Dorszewski et al. (arXiv 2409.16302) find two blocks in the similarity matrices of speech models. If the
    similarity only falls with the distance between layers, some boundary has a positive contrast as well. The
    blocks are real only where `contrast` clearly exceeds `contrast_of_distance_alone`, which is computed in
    the same way from distances alone.

    Parameters
    ----------
    similarity : ndarray of float64, shape (m, m)
        Similarity of all pairs of hidden layers. NaN entries are left out.

    Returns
    -------
    TwoBlocks or None
        The boundary (2 to m - 2) of largest contrast; the lowest of equal ones. None with fewer than four
        layers, or if NaN leaves no boundary with similarities on both sides.
    """
    contrasts = _contrasts(similarity)
    if not np.isfinite(contrasts).any():
        return None
    largest = np.nanmax(contrasts)
    return TwoBlocks(
        boundary=int(np.flatnonzero(contrasts >= largest - TIE)[0]) + 2,
        contrast=float(largest),
        contrast_of_distance_alone=float(np.nanmax(_contrasts(_of_distance_alone(similarity)))),
    )


def _contrasts(similarity: np.ndarray) -> np.ndarray:
    """Return the contrast at the boundaries 2 to m - 2, NaN where a side has no similarities."""
    m = len(similarity)
    known = np.isfinite(similarity) & ~np.eye(m, dtype=bool)
    contrasts = np.full(max(m - 3, 0), np.nan)
    for boundary in range(2, m - 1):
        second = np.arange(m) >= boundary
        same = second[:, None] == second
        within, between = similarity[known & same], similarity[known & ~same]
        if within.size and between.size:
            contrasts[boundary - 2] = within.mean() - between.mean()
    return contrasts


def _of_distance_alone(similarity: np.ndarray) -> np.ndarray:
    """Return the matrix with every known entry replaced by the mean at its distance."""
    known = np.isfinite(similarity)
    layers = np.arange(len(similarity))
    distances = np.abs(layers[:, None] - layers)
    replaced = np.full(similarity.shape, np.nan)
    for distance in layers:
        there = known & (distances == distance)
        if there.any():
            replaced[there] = similarity[there].mean()
    return replaced
