"""Fit the calibration and thresholds of a model on val, and score them on other clips: ``thresholds.csv``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, runs
from utils.core.errors import InputError
from utils.core.files import write_text
from utils.core.text import printable
from utils.models import decision, model_folder

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.scores import calibration, evaluation, thresholds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from utils.data.clips import Clips

log = logging.getLogger(__name__)

NAME = "thresholds.csv"
SPLIT = "val"


def fit(clips: Clips, logits: np.ndarray, config: PreTrainedConfig, target: float, data_sha256: str) -> dict:
    """Return the decision of a model, fitted on its logits of the clips of val; see `decision.read`.

    Raises
    ------
    InputError
        If all clips are of one group.
    """
    groups, is_multi_label = clips.table["group"].to_numpy(), _is_multi_label(config)
    if len(np.unique(groups)) < thresholds.MIN_GROUPS:
        raise InputError(
            f"{clips.data_dir}: the clips of val are of one group; thresholds need {thresholds.MIN_GROUPS} or more, "
            "to tell how they do on others"
        )
    truth, known = clips.targets > 0, clips.is_known
    how = calibration.fit(logits, truth, known, groups, is_multi_label)
    scores = calibration.calibrated(logits, how, is_multi_label)
    found, reasons = thresholds.fit(scores, truth, known, groups, target)
    return {
        "target_precision": target,
        "sure": thresholds.SURE,
        "min_groups": thresholds.MIN_GROUPS,
        "calibration": how,
        "thresholds": dict(zip(clips.labels, found, strict=True)),
        "reasons": {label: reason for label, reason in zip(clips.labels, reasons, strict=True) if reason},
        "fitted_on": {"data_sha256": data_sha256, "split": SPLIT},
    }


def score(clips: Clips, logits: np.ndarray, config: PreTrainedConfig, fitted: dict) -> pd.DataFrame:
    """Return precision and recall at fitted thresholds; see `thresholds.at_thresholds`. ``reason`` is the last column.

    Parameters
    ----------
    clips, logits
        Scored clips of any split.
    config : PreTrainedConfig
    fitted : dict
        From `fit` or `decision.read`.
    """
    table = thresholds.at_thresholds(
        calibration.calibrated(logits, fitted["calibration"], _is_multi_label(config)),
        *(clips.targets > 0, clips.is_known, clips.table["group"].to_numpy(), clips.labels),
        *([fitted["thresholds"][label] for label in clips.labels], fitted["target_precision"]),
    )
    return table.assign(reason=[*(fitted["reasons"].get(label, "") for label in clips.labels), ""])


def write(output_dir: Path, table: pd.DataFrame) -> None:
    """Write the result of `score` as ``thresholds.csv``."""
    write_text(output_dir / NAME, table.to_csv(index=False, float_format="%.6g"))


def log_errors(clips: Clips, logits: np.ndarray, config: PreTrainedConfig, fitted: dict) -> dict[str, float]:
    """Log and return the expected calibration error before and after, and that of a perfectly calibrated model."""
    is_multi_label, how = _is_multi_label(config), fitted["calibration"]

    def bins(one: dict) -> pd.DataFrame:
        scores = calibration.calibrated(logits, one, is_multi_label)
        return calibration.bins(scores, clips.targets > 0, clips.is_known, is_multi_label)

    before, after = bins(calibration.AS_IT_IS), bins(how)
    errors = {
        "calibration_error_before": evaluation.expected_calibration_error(before),
        "calibration_error_after": evaluation.expected_calibration_error(after),
        "calibration_error_if_calibrated": evaluation.error_if_calibrated(after),
    }
    numbers = ", ".join(f"{name} {how[name]:.3g}" for name in decision.NUMBERS_OF[how["kind"]])
    log.info(
        "expected calibration error %.3f before and %.3f after calibration (%s); a perfectly calibrated model has %.3f",
        *(errors["calibration_error_before"], errors["calibration_error_after"], numbers),
        errors["calibration_error_if_calibrated"],
    )
    return errors


def log_table(table: pd.DataFrame, split: str) -> None:
    """Log precision and recall of each label on a split, and in words whether the target is met."""
    shown = pd.DataFrame(
        {
            "label": table["label"].map(printable),
            "threshold": table["threshold"].map(lambda value: "" if np.isnan(value) else f"{value:.4f}"),
            "right / detections": table["n_right"].astype(str) + " / " + table["n_detections"].astype(str),
            "groups": table["n_detected_groups"],
            "precision [95 %]": _with_interval(table, "precision"),
            "recall [95 %]": _with_interval(table, "recall"),
            "target": table["verdict"].where(table["reason"] == "", table["reason"]),
        }
    )
    log.info("at the thresholds, on %s:\n%s", split, shown.to_string(index=False))
    labels, pooled = table.iloc[:-1], table.iloc[-1]
    given = labels[labels["threshold"].notna()]
    log.info(
        "%d of %d labels have a threshold; target precision %g on %s: %s",
        *(len(given), len(labels), pooled["target_precision"], split),
        ", ".join(
            f"{verdict or 'without an interval'} for {n}"
            for verdict, n in given["verdict"].value_counts(sort=False).items()
        )
        or "no verdict",
    )
    log.info(
        "all their detections together: precision %s, target %g: %s; recall %s",
        *(_with_interval(table, "precision").iloc[-1], pooled["target_precision"]),
        *(pooled["verdict"] or "no interval", _with_interval(table, "recall").iloc[-1]),
    )


def _with_interval(table: pd.DataFrame, name: str) -> pd.Series:
    def text(row: pd.Series) -> str:
        value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        interval = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        return "-" if np.isnan(value) else f"{value:.2f}{interval}"

    return table.apply(text, axis=1)


def keep(model_dir: Path, fitted: dict) -> None:
    """Write a decision into the config of a model folder, unless it is there."""
    path = model_folder.resolve_model_dir(model_dir) / model_folder.CONFIG_NAME
    if decision.read(model_folder.open_folder(str(path.parent), path.parent).config) == fitted:
        return
    decision.write(path, fitted)
    log.info("%s: its thresholds are in the field %r", path, decision.FIELD)


def as_input(model_dir: Path) -> dict[str, runs.Input]:
    """Return the decision of a model as an input of a stage; see `decision.as_input`. It is inside an exported file."""
    if model_folder.is_exported(model_dir):
        return {}
    path = model_folder.resolve_model_dir(model_dir)
    return decision.as_input(model_folder.open_folder(str(path), path).config, path / model_folder.CONFIG_NAME)


def _is_multi_label(config: PreTrainedConfig) -> bool:
    return config.problem_type == decision.MULTI_LABEL
