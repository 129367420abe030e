"""What 08 knows of a model before it loads the weights: labels, windows, the threshold of each label."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from utils.core import runs
from utils.core.errors import InputError, UsageError
from utils.core.text import some
from utils.field.window_stream import WindowFormat
from utils.models import decision, exported, model_folder

log = logging.getLogger(__name__)

HOW_CLIPS_WERE_CUT = ("clip_seconds", "clip_least_seconds", "clip_least_rest_seconds", "clip_remainder")
HOW_CLIPS_WERE_CUT += ("clip_fill", "clip_channel")


@dataclass(frozen=True)
class FieldModel:
    """A model and its thresholds; of a model folder without the weights.

    Attributes
    ----------
    name : str
        The user's name for it.
    config : dict
        Content of its ``config.json``.
    labels : list of str
        By label id.
    thresholds : dict of str to float or None
        Lowest score of a detection, by label; None for a label without one.
    fitted : dict or None
        The decision in its config: see `models.decision`.
    inputs : dict of str to Input
        The model and its decision, as inputs of the stage.
    exported : ExportedModel or None
        The model itself, if it is an exported file.
    """

    name: str
    config: dict
    labels: list[str]
    thresholds: dict[str, float | None]
    fitted: dict | None
    inputs: dict[str, runs.Input]
    exported: exported.ExportedModel | None = None

    @property
    def sha256(self) -> str:
        """Digest of the model and its decision."""
        return " ".join(str(each.sha256) for each in self.inputs.values())

    @property
    def clip_seconds(self) -> float:
        """Length of a window."""
        return self.config["clip_seconds"]

    @property
    def channel(self) -> str:
        """The channel to use, as for `audio.decode`."""
        return self.config["clip_channel"]

    def thresholds_by_id(self) -> tuple[float, ...]:
        """Return the threshold of each label; infinity for a label without one."""
        known = (self.thresholds[label] for label in self.labels)
        return tuple(float("inf") if threshold is None else threshold for threshold in known)

    def windows(self, sample_rate_hz: int, overlap_s: float) -> WindowFormat:
        """Return how recordings are cut for it."""
        return WindowFormat.of_model(self.config, sample_rate_hz, overlap_s)

    def check_overlap(self, overlap_s: float) -> None:
        """Raise `UsageError` if windows would overlap by their whole length or more."""
        if overlap_s >= self.clip_seconds:
            raise UsageError(
                f"--overlap_seconds {overlap_s:g}: the windows of this model last {self.clip_seconds:g} s; give less"
            )

    def log_thresholds(self) -> None:
        """Log where the thresholds are from, and which labels have none."""
        values = set(self.thresholds.values())
        if self.fitted is None or self.thresholds != self.fitted["thresholds"]:
            log.warning(
                "one threshold for all labels, %g, of scores that are %s: the precision of the detections is unknown",
                *(values.pop(), "not calibrated" if self.fitted is None else "calibrated"),
            )
            return
        log.info(
            "thresholds: fitted on %s for a precision of %g",
            *(self.fitted["fitted_on"]["split"], self.fitted["target_precision"]),
        )
        without = [label for label, threshold in self.thresholds.items() if threshold is None]
        if without:
            log.warning(
                "%d of %d labels have no threshold, because val can't tell it, and are never detected: %s",
                *(len(without), len(self.labels), some(without)),
            )


def read(model_dir: Path, threshold: float | None) -> FieldModel:
    """Read a model without its weights.

    Parameters
    ----------
    model_dir : Path
        Run folder, model folder, or exported file.
    threshold : float or None
        Threshold of all labels; None for the fitted ones.

    Raises
    ------
    InputError
        If it is not a whole model, does not record how its clips were cut, or no label has a threshold.
    """
    inputs, of_file = {"model_dir": model_folder.scored_input(model_dir)}, None
    if model_folder.is_exported(model_dir):
        of_file = exported.ExportedModel(model_dir)
        config, name = of_file.config, str(model_dir)
    else:
        folder = model_folder.open_folder(*model_folder.find(model_dir))
        config, name = folder.config, folder.name
        model_folder.check_labels(folder)
        inputs |= decision.as_input(config, folder.path)
    if any(config.get(name) is None for name in HOW_CLIPS_WERE_CUT) or not config.get("id2label"):
        raise InputError(
            f"{name} does not record how its training clips were cut: it is a base model, or an earlier version of "
            "this program trained it; train it with 02_finetuning.py or 06_cnn.py"
        )
    labels = decision.labels_of(config)
    fitted = decision.read(config, name)
    if threshold is not None:
        return FieldModel(name, config, labels, dict.fromkeys(labels, threshold), fitted, inputs, of_file)
    fitted_dir, then = (model_dir, "") if of_file is None else ("<folder of the model>", ", then export it again")
    fit = f"03_model_validation.py --model_dir {fitted_dir} --fit_thresholds"
    one_for_all = "give one for all labels, such as --threshold 0.9, whose precision is unknown"
    if fitted is None:
        raise InputError(f"{name} has no thresholds: fit them on val ({fit}{then}), or {one_for_all}")
    if all(each is None for each in fitted["thresholds"].values()):
        target = fitted["target_precision"]
        raise InputError(
            f"{name}: val can't tell a threshold for any of its {len(labels)} labels at a precision of {target:g}: ask "
            f"for less ({fit} --target_precision {0.8 * target:.2g} --overwrite{then}), have more recordists in val, "
            f"or {one_for_all}"
        )
    return FieldModel(name, config, labels, fitted["thresholds"], fitted, inputs, of_file)
