"""Linear probes: separable classes, chance, groups kept apart, and what they refuse."""

import numpy as np
import pytest

from utils.core.errors import InputError
from utils.layers import probes


def blobs(n_classes=4, n_per_class=30, distance=6.0, d=8, seed=0):
    rng = np.random.default_rng(seed)
    centres = distance * rng.standard_normal((n_classes, d))
    label_ids = np.repeat(np.arange(n_classes), n_per_class)
    return centres[label_ids] + rng.standard_normal((len(label_ids), d)), label_ids


def test_separated_classes_are_told_apart_and_noise_is_not():
    states, label_ids = blobs()
    train = np.arange(len(label_ids)) % 2 == 0
    predicted = probes.fit_and_predict(states[train], label_ids[train], states[~train])
    assert (predicted == label_ids[~train]).mean() == 1
    noise = np.random.default_rng(1).standard_normal((400, 8))
    random_ids = np.random.default_rng(2).integers(4, size=400)
    found = probes.cross_validate(noise, random_ids, np.arange(400), seed=0)
    assert abs((found == random_ids).mean() - 0.25) < 0.1


def test_folds_keep_groups_together():
    """Features that tell the group and nothing of the class are worth nothing on other groups."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 8)
    label_ids = np.repeat(rng.permutation(np.arange(30) % 2), 8)
    states = 5 * rng.standard_normal((30, 64))[groups] + 0.1 * rng.standard_normal((240, 64))
    by_group = (probes.cross_validate(states, label_ids, groups, 0) == label_ids).mean()
    by_clip = (probes.cross_validate(states, label_ids, np.arange(240), 0) == label_ids).mean()
    assert by_clip > 0.9 and by_group < 0.75


def test_the_same_seed_gives_the_same_folds():
    states, label_ids = blobs(distance=0.5)
    groups = np.arange(len(label_ids)) // 3
    first = probes.cross_validate(states, label_ids, groups, 1)
    np.testing.assert_array_equal(first, probes.cross_validate(states, label_ids, groups, 1))


def test_what_cannot_be_probed_is_refused():
    states, label_ids = blobs()
    with pytest.raises(InputError, match="at least 5 groups of clips, but there are 2"):
        probes.cross_validate(states, label_ids, label_ids % 2, 0)
    with pytest.raises(InputError, match="at least two classes"):
        probes.cross_validate(states, np.zeros(len(states), int), np.arange(len(states)), 0)
