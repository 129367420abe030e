"""The field ``decision`` of a model's ``config.json``: how logits become scores, and a threshold for each label.

``03_model_validation.py --fit_thresholds`` fits them on val and writes them (`scores.thresholds`). They are no part of
the model: `model_folder.digest` leaves the field out, and a model that a stage saves has none, because its thresholds
would be those of another model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, runs
from utils.core.errors import InputError
from utils.core.files import sha256_of_lines
from utils.core.text import printable, some
from utils.models.loaded_model import MULTI_LABEL

with lazy.imported_on_first_use():
    from utils.scores import calibration

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedConfig

FIELD = "decision"
INPUT = "model_dir (its calibration and thresholds)"  # as messages name it
UNFITTED = 0.5  # threshold of a model with several labels a clip that has no decision
TEMPERATURE, PLATT = "temperature", "platt"
# By kind of calibration: its numbers, of which the first is above 0.
NUMBERS_OF = {TEMPERATURE: ("temperature",), PLATT: ("slope", "intercept")}
AGAIN = "fit it again: 03_model_validation.py --fit_thresholds"
_START = f',\n  "{FIELD}": '


def read(config: PreTrainedConfig | Mapping, name: str = "the model") -> dict | None:
    """Return the decision in a model's config, checked; None if there is none.

    Parameters
    ----------
    config : PreTrainedConfig or mapping
        Of the model, or the content of its ``config.json``.
    name : str
        The user's name for the model, for messages.

    Returns
    -------
    dict or None
        ``target_precision``; ``calibration``, its ``kind`` and its numbers; ``thresholds``, by label, in the order of
        the label ids: the lowest score that counts as a detection, or None; ``reasons``, why a label has none;
        ``fitted_on``, the ``data_sha256`` and the ``split``.

    Raises
    ------
    InputError
        If it is malformed, or is that of other labels.
    """
    decision, labels = _of(config, FIELD), labels_of(config)
    if decision is None:
        return None
    trouble = _trouble(decision, _of(config, "problem_type") == MULTI_LABEL)
    if trouble is not None:
        raise InputError(f"{name}: {FIELD} in its config.json has {trouble}; {AGAIN}")
    fitted = decision["thresholds"]
    if set(fitted) != set(labels):
        odd = sorted(set(fitted) ^ set(labels))
        raise InputError(
            f"{name}: {FIELD} in its config.json is that of a model with other labels: {some(odd, 3)} "
            f"{'is' if len(odd) == 1 else 'are'} not in both; {AGAIN}"
        )
    return decision | {"thresholds": {label: fitted[label] for label in labels}}


def thresholds(config: PreTrainedConfig | Mapping) -> dict[str, float | None]:
    """Return the lowest score of a detection, by label, in the order of the label ids: the one rule of 03 and 08.

    It is the fitted threshold; None for a label without one, which is never detected. Without a decision it is
    `UNFITTED` for each label of a model with several labels a clip. With one label a clip it is then None: the model
    gives a clip the label with the highest score.
    """
    fitted = read(config)
    if fitted is not None:
        return fitted["thresholds"]
    return dict.fromkeys(labels_of(config), UNFITTED if _of(config, "problem_type") == MULTI_LABEL else None)


def labels_of(config: PreTrainedConfig | Mapping) -> list[str]:
    """Return the labels in a model's config, by label id."""
    return [label for _, label in sorted((int(i), label) for i, label in (_of(config, "id2label") or {}).items())]


def _of(config: PreTrainedConfig | Mapping, key: str) -> object:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _trouble(decision: object, is_multi_label: bool) -> str | None:
    """Return how a value breaks the form of a decision; None if it has it."""
    if not isinstance(decision, Mapping):
        return f"{decision!r:.40}, expected an object"
    for key in ("calibration", "thresholds", "fitted_on", "reasons"):
        if not isinstance(decision.get(key), Mapping):
            return f"{key} {decision.get(key)!r:.40}, expected an object"
    target, how = decision.get("target_precision"), decision["calibration"]
    if not (_is_number(target) and 0 < target < 1):
        return f"target_precision {target!r:.40}, expected a number between 0 and 1"
    kinds = NUMBERS_OF if is_multi_label else (TEMPERATURE,)  # softmax ignores an intercept
    kind = how.get("kind")
    if kind not in kinds:
        return f"calibration {kind!r:.40}, expected {' or '.join(kinds)}"
    numbers = [how.get(name) for name in NUMBERS_OF[kind]]
    if not all(map(_is_number, numbers)) or numbers[0] <= 0:
        return f"calibration {dict(how)!r:.80}, expected {' and '.join(NUMBERS_OF[kind])}, the first above 0"
    for label, threshold in decision["thresholds"].items():
        if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
            return f"the threshold {threshold!r:.40} of {printable(label)}, expected a number from 0 to 1, or null"
    for key in ("data_sha256", "split"):
        if not isinstance(decision["fitted_on"].get(key), str):
            return f"fitted_on without its {key}"
    return None


def scores(logits: np.ndarray, config: PreTrainedConfig | Mapping) -> np.ndarray:
    """Return the score of each label: the one function from logits to what is compared with a threshold.

    It is the softmax of a model with one label a clip, the sigmoid of one with several, of calibrated logits: divided
    by the temperature, or ``slope × logit + intercept``. Without a decision they are as they are. ``classify.py`` in a
    model folder does the same.

    Parameters
    ----------
    logits : ndarray of float, shape (n, n_classes)
    config : PreTrainedConfig or mapping

    Returns
    -------
    ndarray of float64, shape (n, n_classes)
        From 0 to 1.

    Raises
    ------
    InputError
        If the config has a malformed decision.
    """
    decision = read(config)
    how = calibration.AS_IT_IS if decision is None else decision["calibration"]
    return calibration.calibrated(logits, how, _of(config, "problem_type") == MULTI_LABEL)


def as_input(config: Mapping, path: Path) -> dict[str, runs.Input]:
    """Return the decision as an input of a stage that uses it, by its content; nothing if there is none."""
    if config.get(FIELD) is None:
        return {}
    content = json.dumps(config[FIELD], sort_keys=True)
    return {INPUT: runs.Input(str(path), sha256_of_lines([content]))}


def write(path: Path, decision: Mapping) -> None:
    """Write a decision into a ``config.json`` in place of the one that is there, atomically, and read it back.

    All else in the file stays as it is, byte for byte. If the file belongs to a run of a stage, the record of the run
    says that this version of it is whole, too.

    Raises
    ------
    InputError
        If the decision is not that of the model.
    """
    text = without(path.read_bytes().decode())  # not read_text, which would change the ends of lines
    end = len(text.rstrip().removesuffix("}").rstrip())
    value = json.dumps(decision, indent=2, allow_nan=False).replace("\n", "\n  ")
    changed = f"{text[:end]}{_START}{value}{text[end:]}"
    read(json.loads(changed), str(path))
    runs.change_output(path, changed)


def without(text: str) -> str:
    """Return the text of a ``config.json`` without its decision, as it was before `write`.

    In a file that transformers has saved again since, the keys are sorted; then it is the text that transformers would
    save without the field.
    """
    config = json.loads(text) if f'"{FIELD}"' in text else {}
    if FIELD not in config:
        return text
    before, found, after = text.rpartition(_START)
    if found:
        value, end = json.JSONDecoder().raw_decode(after)
        if value == config[FIELD] and re.fullmatch(r"\s*\}\s*", after[end:]):
            return before + after[end:]
    del config[FIELD]
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def drop(config: PreTrainedConfig) -> bool:
    """Remove the decision from a config in memory; return whether there was one."""
    return vars(config).pop(FIELD, None) is not None
