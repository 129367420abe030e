"""Weights of 8 bits: no overflow by brute force, and smaller errors of the outputs where inputs vary together."""

import numpy as np
import pytest

from utils.models import rounding


def correlated_inputs(n_inputs=33, n_frames=400):
    """Return inputs that share a few causes, as those of a network do."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((n_frames, 5)) @ rng.standard_normal((5, n_inputs))
    return causes + 0.3 * rng.standard_normal((n_frames, n_inputs))


@pytest.fixture
def weight():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((33, 50)) * rng.gamma(1, size=50)
    weight[:, 0] = 0
    weight[:2, 1] = 9  # the worst case: the two largest weights are neighbours
    return weight.astype(np.float32)


@pytest.mark.parametrize("knows_inputs", [False, True])
def test_no_pair_of_products_overflows_16_bits(weight, knows_inputs):
    """The largest sum of two neighbouring products, by brute force over the inputs 0 and 255."""
    inputs = correlated_inputs()
    whole, steps = rounding.rounded(weight, rounding.factor_of(inputs.T @ inputs) if knows_inputs else None)
    assert whole.dtype == np.int8 and steps.dtype == np.float32
    padded = np.pad(whole.astype(int), ((0, 1), (0, 0)))
    for u in (0, 255):
        for v in (0, 255):
            assert np.abs(u * padded[0::2] + v * padded[1::2]).max() <= np.iinfo(np.int16).max
    assert (np.abs(padded).max(axis=0) > 64).mean() > 0.9, "finer than 7 bits for all weights"


def test_without_inputs_and_with_independent_ones_weights_are_the_nearest_numbers(weight):
    whole, steps = rounding.rounded(weight)
    assert (np.abs(whole * steps - weight) <= 0.5001 * steps).all()
    for products in (7 * np.eye(33), np.zeros((33, 33))):
        np.testing.assert_array_equal(rounding.rounded(weight, rounding.factor_of(products))[0], whole)


def test_with_inputs_that_vary_together_the_outputs_change_less(weight):
    inputs, others = np.split(correlated_inputs(), 2)  # of one kind, but other frames

    def error(whole, steps):
        return float(np.square(others @ (whole * steps - weight)).mean())

    plain, better = (
        error(*rounding.rounded(weight)),
        error(*rounding.rounded(weight, rounding.factor_of(inputs.T @ inputs))),
    )
    assert 0 < better < 0.5 * plain


def test_half_of_an_imbalance_goes_to_the_other_side():
    """By hand: inputs of 4 and 1 with weights of 1 and 4 become 2 and 2 with weights of 2 and 2."""
    factors = rounding.balance(np.array([[1, -0.5], [-2, 4]]), np.diag([16.0, 1.0]))
    np.testing.assert_allclose(factors, [2, 0.5], rtol=0.03)  # the damping is 1 % of a mean square
    for weight, products in ((np.zeros((3, 2)), np.eye(3)), (np.eye(3), np.zeros((3, 3)))):
        np.testing.assert_allclose(rounding.balance(weight, products), 1, rtol=1e-6)


def test_balanced_inputs_and_weights_change_the_outputs_less(weight):
    """Loud inputs with small weights, as behind a norm, take the digits of the others unless they are balanced."""
    loud = np.where(np.arange(33) % 8, 1, 30)
    inputs, others = (part * loud for part in np.split(correlated_inputs(), 2))
    small = weight / loud[:, None]

    def error(factors):
        products = inputs.T @ inputs / np.outer(factors, factors)
        whole, steps = rounding.rounded((small * factors[:, None]).astype(np.float32), rounding.factor_of(products))
        frames = others / factors
        step = np.abs(frames).max(axis=1, keepdims=True) / 127
        return float(np.square((np.round(frames / step) * step) @ (whole * steps) - others @ small).mean())

    assert error(rounding.balance(small, inputs.T @ inputs)) < 0.3 * error(np.ones(33))
