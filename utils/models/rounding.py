"""Weights of a linear layer as whole numbers of 8 bits, for products with unsigned inputs of 8 bits on any processor.

Without VNNI, x86 processors multiply unsigned inputs u, v (at most 255) by the weights a, b of two neighbouring inputs,
and add the two products in 16 bits (VPMADDUBSW). The sum holds, up to 32,767, if |a + b| <= 128 where the signs are
equal, and |a|, |b| <= 128. So the step of an output is the smallest one with which its weights fit.
"""

import numpy as np

MOST_WHOLE = 127
MOST_PAIR = 128
# Share of the mean square of the inputs (and of the weights) that is added to each: an input that hardly varies gets no
# large corrections.
DAMPING = 0.01
ROWS_AT_ONCE = 64


def rounded(weight: np.ndarray, factor: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return weights as whole numbers, and the size of one.

    With the `factor_of` the inputs, the weights are rounded one input after the other, and the weights of the inputs
    that follow make up for the error, as far as these inputs vary together: GPTQ (Frantar et al., "GPTQ: Accurate
    post-training quantization for generative pre-trained transformers", ICLR 2023, algorithm 1).

    Parameters
    ----------
    weight : ndarray
        Of shape (n_inputs, n_outputs).
    factor : ndarray, optional
        From `factor_of`, of shape (n_inputs, n_inputs); layers with the same inputs share it.

    Returns
    -------
    whole : ndarray
        int8 of the same shape.
    steps : ndarray
        float32 of shape (n_outputs,): the weight is about ``steps * whole``.
    """
    steps = _steps(weight)
    if factor is None:
        return np.round(weight / steps).astype(np.int8), steps
    left, whole = weight / steps.astype(np.float64), np.zeros(weight.shape)
    for first in range(0, len(left), ROWS_AT_ONCE):
        rows = range(first, min(first + ROWS_AT_ONCE, len(left)))
        errors = np.zeros((len(rows), left.shape[1]))
        for row in rows:
            before = whole[row - 1] if row % 2 else 0  # the other weight of the pair
            low = np.maximum(-MOST_WHOLE, -MOST_PAIR - np.minimum(before, 0))
            high = np.minimum(MOST_WHOLE, MOST_PAIR - np.maximum(before, 0))
            whole[row] = np.clip(np.round(left[row]), low, high)
            errors[row - first] = (left[row] - whole[row]) / factor[row, row]
            left[row + 1 : rows.stop] -= np.outer(factor[row, row + 1 : rows.stop], errors[row - first])
        left[rows.stop :] -= factor[first : rows.stop, rows.stop :].T @ errors
    return whole.astype(np.int8), steps


def _steps(weight: np.ndarray) -> np.ndarray:
    pairs = np.pad(weight, ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    sums = np.abs(pairs.sum(axis=1)) * (pairs.prod(axis=1) > 0)
    # Rounding adds up to one half to each of a pair.
    steps = np.maximum(np.abs(weight).max(axis=0) / MOST_WHOLE, sums.max(axis=0) / (MOST_PAIR - 1))
    return np.where(steps == 0, 1, steps).astype(np.float32)


def balance(weight: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return a number for each input: to divide the input and to multiply its weights by, before both are rounded.

    The largest weight of an output sets the step of all its weights, and the largest input of a frame that of all
    inputs. Where some inputs are small and have large weights, or the reverse, half of the imbalance goes to the other
    side: SmoothQuant (Xiao et al., "SmoothQuant: Accurate and efficient post-training quantization for large language
    models", ICML 2023, equation 4 with alpha 0.5), with the root mean square of an input in place of its largest value.

    Parameters
    ----------
    weight : ndarray
        Of shape (n_inputs, n_outputs); those of all layers with these inputs side by side.
    products : ndarray
        As for `factor_of`.

    Returns
    -------
    ndarray
        float32 of shape (n_inputs,), positive, with geometric mean 1.
    """
    squares = np.diag(products), np.square(weight, dtype=np.float64).max(axis=1)
    inputs, weights = (each + DAMPING * (each.mean() or 1.0) for each in squares)
    logs = (np.log(inputs) - np.log(weights)) / 4  # the squares' root, and half of it
    return np.exp(logs - logs.mean()).astype(np.float32)


def factor_of(products: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with U' U equal to the inverse of the damped products.

    Parameters
    ----------
    products : ndarray
        Sum of the outer products of the inputs of some frames, of shape (n_inputs, n_inputs).
    """
    damped = products.astype(np.float64)
    size = np.diag(damped).mean() or 1.0
    damped[np.diag_indices_from(damped)] += DAMPING * size
    return np.linalg.cholesky(np.linalg.inv(damped)).T
