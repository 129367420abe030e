"""Linear probes: how well a logistic regression separates the classes by the pooled states of a layer."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.core.errors import InputError

N_FOLDS = 5
# A small data set has about as many clips as a clip has features. Without a strong penalty the regression would
# overfit.
INVERSE_PENALTY = 0.1
MAX_ITERATIONS = 1000


def fit_and_predict(train_states: np.ndarray, train_label_ids: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Train a probe on some clips, and predict the classes of others.

    Features are standardised on the training clips. All classes have the same weight.

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
        # After 1,000 steps a probe predicts the same classes as after 10,000.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_states, train_label_ids)
    return probe.predict(states)


def cross_validate(states: np.ndarray, label_ids: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Predict the class of every clip by a probe that was trained on clips of other groups.

    Parameters
    ----------
    states : ndarray of float32, shape (n_clips, hidden_size)
    label_ids : ndarray of int, shape (n_clips,)
    groups : ndarray, shape (n_clips,)
        Group of each clip, such as its recordist; a group stays in one fold.
    seed : int
        Seed of the division into five folds, which are stratified as far as the groups allow.

    Returns
    -------
    ndarray of int, shape (n_clips,)

    Raises
    ------
    InputError
        If there are fewer groups than folds, or the training clips of a fold have fewer than two classes.
    """
    n_groups = len(np.unique(groups))
    if n_groups < N_FOLDS:
        raise InputError(
            f"a cross-validated probe needs at least {N_FOLDS} groups of clips, but there are {n_groups}; "
            "give more recordings, or leave probe out of --metrics"
        )
    predicted_ids = np.empty(len(label_ids), dtype=np.int64)
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer clips than folds is missing from some folds. This cannot be avoided.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        divisions = list(folds.split(states, label_ids, groups))
    for train, held_out in divisions:
        check_classes(label_ids[train])
        if len(held_out):
            predicted_ids[held_out] = fit_and_predict(states[train], label_ids[train], states[held_out])
    return predicted_ids


def check_classes(label_ids: np.ndarray) -> None:
    """Check that there are at least two classes.

    Raises
    ------
    InputError
        If the clips have fewer than two classes.
    """
    if len(np.unique(label_ids)) < 2:
        raise InputError(
            "a probe needs training clips of at least two classes, but the number of classes is "
            f"{len(np.unique(label_ids))}; give data of more classes, or leave probe out of --metrics"
        )
