"""The recordings on which a model was trained: short digests in its folder, which stay with the model.

A model may be trained again on another split; the test split then contains recordings of its first training. The model
folder therefore lists all recordings of all its trainings, by their sound and by their name, and stages compare their
own recordings with this list. Names find recordings that were decoded in another way, such as with another
``--channel``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import runs
from utils.core.errors import InputError
from utils.core.files import write_text
from utils.data.recordings_table import read_recordings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from utils.data.clips import Clips

log = logging.getLogger(__name__)

FILE_NAME = "training_recordings.json"
SCHEMA_VERSION = 1
# Role of a recording in a training: its clips were used for training, or for choosing the epoch.
ROLES = ("train", "val")
DIGITS = 16  # of 64; with a million recordings in each of two sets, a match by chance has a probability of 5e-8


@dataclass(frozen=True)
class History:
    """All recordings on which a model was trained.

    Attributes
    ----------
    data : tuple of str
        Digests of the data sets whose recordings are listed, in the order of the trainings.
    recordings : mapping of str to frozenset of str
        By role: digests, each after ``name:`` or ``sound:``.
    """

    data: tuple[str, ...] = ()
    recordings: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict.fromkeys(ROLES, frozenset()))


def history_of(model: PreTrainedModel) -> History:
    """Return the training history of a model, as far as its folder records it."""
    return getattr(model, "training_history", History())


def read_history(folder: Path) -> History:
    """Read the history in a model folder; an empty one if there is none.

    Raises
    ------
    InputError
        If it is malformed.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return History()
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}); copy the whole model folder again"
        ) from error


def from_json(content: dict) -> History:
    """Return the history in the content of a file.

    Raises
    ------
    ValueError
        If it is malformed.
    """
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']!r}, expected {SCHEMA_VERSION}")
        lists = {name: content[name] for name in ("data_sha256", *ROLES)}
        if not all(isinstance(item, str) for items in lists.values() for item in [*items]):
            raise ValueError("a digest that is not a text")
    except (TypeError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return History(tuple(lists["data_sha256"]), {role: frozenset(lists[role]) for role in ROLES})


def write_history(model: PreTrainedModel, folder: Path) -> None:
    """Write the training history of a model into its folder; write no file if it is empty."""
    content = as_json(history_of(model))
    if content is not None:
        write_text(folder / FILE_NAME, json.dumps(content) + "\n")


def as_json(history: History) -> dict | None:
    """Return the content of the file, ready for JSON; None if the history is empty."""
    if not history.data:
        return None
    content = {"schema_version": SCHEMA_VERSION, "data_sha256": list(history.data)}
    return content | {role: sorted(history.recordings[role]) for role in ROLES}


def note_training(model: PreTrainedModel, data_sha256: str, train_clips: Clips, val_clips: Clips) -> None:
    """Add a training to the history of a model, in memory; ``config.trained_on`` lists all data sets."""
    config, history = model.config, history_of(model)
    config.trained_on = _with(trained_on(config), data_sha256)
    sounds = _sounds(train_clips.data_dir)
    recordings = {
        role: history.recordings[role].union(*(_keys(name, sounds) for name in _names(clips)))
        for role, clips in zip(ROLES, (train_clips, val_clips), strict=True)
    }
    model.training_history = History(tuple(_with(history.data, data_sha256)), recordings)


def note_teacher(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Add the history of a teacher to that of its student, in memory: the student learns what the teacher knows."""
    own, other, config = history_of(model), history_of(teacher), model.config
    recordings = {role: own.recordings[role] | other.recordings[role] for role in ROLES}
    model.training_history = History(tuple(dict.fromkeys([*own.data, *other.data])), recordings)
    config.trained_on = list(dict.fromkeys([*trained_on(config), *trained_on(teacher.config)]))


def trained_on(config: PreTrainedConfig) -> list[str]:
    """Return the digests of all data sets on which a model is known to be trained, first to last."""
    last = getattr(config, "data_sha256", None)  # older models have no list, only this value
    return list(getattr(config, "trained_on", None) or ([] if last is None else [last]))


def warn_of_known_recordings(
    model: PreTrainedModel, name: str, data: runs.Input, splits: Mapping[str, Iterable[str]]
) -> dict[str, float]:
    """Warn if a model was trained on recordings that will be used to score it.

    Parameters
    ----------
    model : PreTrainedModel
    name : str
        The user's name for the model.
    data : Input
        The processed data set.
    splits : mapping of str to iterable of str
        Ids of the recordings by split.

    Returns
    -------
    dict of str to float
        By split, the number of these recordings on which the model is known to be trained; NaN if its folder lists
        none.
    """
    history, sounds = history_of(model), _sounds(Path(data.path))
    known = {}
    for split, recording_ids in splits.items():
        names = sorted(set(recording_ids))
        heard = [_keys(recording_id, sounds) & history.recordings["train"] for recording_id in names]
        n_heard, n_by_sound = sum(map(bool, heard)), sum(any(map(_is_sound, keys)) for keys in heard)
        known[split] = n_heard if history.data else float("nan")
        if n_heard:
            log.warning(
                "%s was trained on %d of the %d %s recordings of %s%s: its scores on them are too high. Use a model "
                "that was trained on none of them, or the split with which this one was trained",
                *(name, n_heard, len(names), split, data.path),
                f" ({n_heard - n_by_sound} known only by their names)" if n_by_sound < n_heard else "",
            )
        chosen = sum(bool(_keys(recording_id, sounds) & history.recordings["val"]) for recording_id in names)
        if chosen and split == "test":
            log.warning(
                "%d of the %d %s recordings of %s chose the epoch of %s: its scores on them are a little too high",
                *(chosen, len(names), split, data.path, name),
            )
    unlisted = set(trained_on(model.config)) - set(history.data) - {data.sha256}
    if unlisted:
        log.warning(
            "%s was trained on other data than those now in %s (sha256 %s…), and its folder does not list those "
            "recordings: some of its training clips may be among the clips that score it here",
            *(name, data.path, "…, ".join(sorted(digest[:12] for digest in unlisted))),
        )
    return known


def chosen_on(split: str, data_sha256: str) -> str:
    """Return what ``config.layers_chosen_on`` records: the split and the data whose clips chose the layers to keep."""
    return f"{split} of {data_sha256}"


def warn_of_choice(config: PreTrainedConfig, name: str, data: runs.Input, split: str) -> None:
    """Warn if clips that score a model also chose its layers; see `chosen_on`."""
    chosen_split, _, chosen_data = (getattr(config, "layers_chosen_on", None) or "").partition(" of ")
    same_data = chosen_data.partition("/")[0] == str(data.sha256).partition("/")[0]
    if not same_data or split == "train":
        return
    if (chosen_split, chosen_data) == (split, data.sha256):
        log.warning("the layers of %s were chosen on these %s clips: its scores on them are too high", name, split)
    elif chosen_data != data.sha256:
        log.warning(
            "the layers of %s were chosen on %s of %s, and now %s is scored: the same clips may have chosen them",
            *(name, chosen_split, chosen_data.partition("/")[2] or "another split", data.sha256.partition("/")[2]),
        )


def _with(digests: Iterable[str], last: str) -> list[str]:
    return [*(digest for digest in digests if digest != last), last]


def _names(clips: Clips) -> list[str]:
    return sorted(set(clips.table["recording_id"]))


def _is_sound(key: str) -> bool:
    return key.startswith("sound:")


def _keys(recording_id: str, sounds: Mapping[str, str]) -> frozenset[str]:
    keys = {f"name:{sha256(recording_id.encode(errors='surrogateescape')).hexdigest()[:DIGITS]}"}
    return frozenset(keys | ({f"sound:{sounds[recording_id][:DIGITS]}"} if sounds.get(recording_id) else set()))


def _sounds(data_dir: Path) -> dict[str, str]:
    return {row["recording_id"]: row.get("sha256", "") for row in read_recordings(data_dir)}
