"""The streamed ridge regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from utils.layers import ridge

PENALTY = 0.1


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("toward", [False, True])
def test_the_regression_is_that_of_scikit_learn(scaled, toward, monkeypatch):
    """Two regressions, rows in two batches, and products in blocks of columns."""
    monkeypatch.setattr(ridge, "BLOCK", 3)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 7)) * rng.uniform(0.1, 3, 7) + 1).astype(np.float32)
    y = {name: rng.normal(size=(200, 3)).astype(np.float32) for name in "ab"}
    scale = rng.uniform(0.5, 2, (200, 1)).astype(np.float32) if scaled else np.ones((200, 1), np.float32)
    before = rng.normal(size=(7, 3)) if toward else np.zeros((7, 3))
    sums = ridge.Ridge(7, "cpu")
    for rows in (slice(0, 120), slice(120, 200)):
        outputs = {name: torch.from_numpy(values[rows]) for name, values in y.items()}
        sums.add(torch.from_numpy(x[rows]), outputs, torch.from_numpy(scale[rows]) if scaled else None)
    found = sums.solve(PENALTY, torch.from_numpy(before) if toward else None)
    weights = scale[:, 0].astype(float) ** -2
    variance = np.average((x - np.average(x, 0, weights)) ** 2, axis=0, weights=weights).mean()
    for name, values in y.items():
        change = Ridge(alpha=PENALTY * variance * weights.sum()).fit(x, values - x @ before, sample_weight=weights)
        np.testing.assert_allclose(found[name][:-1], before + change.coef_.T, atol=1e-4)
        np.testing.assert_allclose(found[name][-1], change.intercept_, atol=1e-4)


def test_rows_that_hardly_differ():
    """Their variance is a ten-millionth of their square, as in a network that gives the same for every frame."""
    rng = np.random.default_rng(0)
    x = (3 + 1e-3 * rng.normal(size=(8_000, 16))).astype(np.float32)
    y = (x.astype(np.float64) @ rng.normal(size=(16, 2)) + 1).astype(np.float32)
    sums = ridge.Ridge(16, "cpu")
    for rows in (slice(0, 1_000), slice(1_000, 8_000)):
        sums.add(torch.from_numpy(x[rows]), {"y": torch.from_numpy(y[rows])})
    found = sums.solve(PENALTY)["y"].numpy()
    wanted = Ridge(alpha=PENALTY * x.astype(np.float64).var(axis=0).mean() * len(x)).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(found[:-1], wanted.coef_.T, atol=1e-3)
    np.testing.assert_allclose(x.astype(np.float64) @ found[:-1] + found[-1], wanted.predict(x), atol=1e-5)
    same = ridge.Ridge(3, "cpu")
    same.add(torch.full((50, 3), 0.1), {"y": torch.full((50, 1), 2.0)})
    np.testing.assert_allclose(same.solve(PENALTY)["y"], [[0], [0], [0], [2]], atol=1e-6)
