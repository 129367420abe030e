"""Linear probes: how well a logistic regression on one layer's pooled states tells the classes apart."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.core.errors import InputError

N_FOLDS = 5
# Standardised features of a clip are as many as the clips of a small data set: without a strong penalty the
# regression would only remember them.
INVERSE_PENALTY = 0.1
MAX_ITERATIONS = 1000


def fit_and_predict(train_states: np.ndarray, train_label_ids: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Train a probe on some clips, and return what it takes others for.

    Features are standardised by the training clips; classes weigh the same whatever their number of clips.

    Parameters
    ----------
    train_states : ndarray of float32, shape (n_train, hidden_size)
    train_label_ids : ndarray of int, shape (n_train,)
        At least two classes.
    states : ndarray of float32, shape (n_clips, hidden_size)

    Returns
    -------
    ndarray of int, shape (n_clips,)
    """
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=MAX_ITERATIONS)
    )
    with warnings.catch_warnings():
        # A probe after a thousand steps predicts what it would after ten thousand.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_states, train_label_ids)
    return probe.predict(states)


def cross_validate(states: np.ndarray, label_ids: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Predict every clip by a probe that was trained on clips of other groups.

    Parameters
    ----------
    states : ndarray of float32, shape (n_clips, hidden_size)
    label_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        What stays together, such as recordists.
    seed : int
        Seed of the division into five folds, which are stratified as well as groups allow.

    Returns
    -------
    ndarray of int, shape (n_clips,)

    Raises
    ------
    InputError
        If there are fewer groups than folds, or a fold leaves fewer than two classes to learn.
    """
    n_groups = len(np.unique(groups))
    if n_groups < N_FOLDS:
        raise InputError(
            f"a cross-validated probe needs at least {N_FOLDS} groups of clips, here are {n_groups}; "
            "give more recordings, or leave probe out of --metrics"
        )
    predicted_ids = np.empty(len(label_ids), dtype=np.int64)
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer clips than folds is missing from some; nothing better can be done for it.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        divisions = list(folds.split(states, label_ids, groups))
    for train, held_out in divisions:
        check_classes(label_ids[train])
        if len(held_out):
            predicted_ids[held_out] = fit_and_predict(states[train], label_ids[train], states[held_out])
    return predicted_ids


def check_classes(label_ids: np.ndarray) -> None:
    """Check that there is something to tell apart.

    Raises
    ------
    InputError
        If the clips are of fewer than two classes.
    """
    if len(np.unique(label_ids)) < 2:
        raise InputError(
            "a probe learns to tell at least two classes apart, its training clips have "
            f"{len(np.unique(label_ids))}; give data of more classes, or leave probe out of --metrics"
        )
