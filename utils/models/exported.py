"""Read and run an exported file (`export`): scores from waveforms, with ONNX Runtime and NumPy alone.

This module imports neither PyTorch nor transformers, so that stage 08 starts at once and needs little memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core import lazy
from utils.core.errors import InputError, is_machine_limit
from utils.core.names import PRECISIONS
from utils.core.text import counted
from utils.models import decision, model_folder
from utils.models.loaded_model import MULTI_LABEL, WAVEFORM

with lazy.imported_on_first_use():
    import numpy as np
    import onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SCHEMA_VERSION = 1
FLOAT32, FLOAT16, INT8 = PRECISIONS
LOGITS, SCORES = "logits", "scores"
ADVICE = "export it again: 07_manual_pruning.py --export onnx"
ONLY_ERRORS = 3  # of the levels of ONNX Runtime's log
# What the metadata hold for this project, each as JSON; programs that use the file alone need no more than `labels`,
# `sample_rate_hz`, `clip_seconds` and `thresholds`.
KEYS = ("schema_version", "precision", "sample_rate_hz", "model_sha256", "config", "training_recordings", "sizes")
SIZES = ("n_blocks", "n_parameters", "macs_per_clip", "macs_front_end")


def metadata_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a file: `KEYS`, and what other programs need, which follows from them.

    Parameters
    ----------
    content : mapping
        Values by `KEYS`.
    """
    config = content["config"]
    fitted = config.get(decision.FIELD) or {}
    alone = {
        "labels": decision.labels_of(config),
        "clip_seconds": config["clip_seconds"],
        "clip_fill": config["clip_fill"],
        "kept_layers": config.get("kept_layers"),
        "thresholds": fitted.get("thresholds"),
        "several_labels": config.get("problem_type") == MULTI_LABEL,
    }
    return {name: json.dumps(value) for name, value in {**alone, **content}.items()}


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "sample_rate_hz": (lambda value: type(value) is int and value > 0, "a number of Hz"),
    "model_sha256": (lambda value: isinstance(value, str), "a text"),
    "sizes": (
        lambda value: isinstance(value, dict) and all(model_folder.is_count(value.get(name)) for name in SIZES),
        f"the numbers {', '.join(SIZES)}",
    ),
    "config": (
        lambda value: (
            isinstance(value, dict)
            and all(value.get(name) for name in ("model_type", "id2label", "clip_seconds", "clip_fill"))
        ),
        "that of a trained model",
    ),
}


def _parsed(text: str) -> Any:
    """Return the value of a text in JSON; the text itself if it is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return text


class ExportedModel:
    """An exported file, ready to score clips; several threads may use it at once.

    Parameters
    ----------
    path : str or Path
    n_threads : int
        Threads that compute a batch.

    Attributes
    ----------
    path : Path
    config : dict
        Content of the ``config.json`` of the model, with its decision.
    labels : list of str
        By label id.
    sample_rate_hz, n_samples : int
        Sample rate and length of every clip.
    precision : {"float32", "float16", "int8"}
    model_sha256 : str
        Digest of the model folder it was made from; see `model_folder.digest`.
    training_recordings : dict or None
        Content of the ``training_recordings.json`` of the model.
    sizes : dict
        ``n_blocks``, ``n_parameters``, ``macs_per_clip`` and ``macs_front_end`` of the model.

    Raises
    ------
    InputError
        If the file cannot be read, or `export` did not write it.
    """

    device = "cpu"

    def __init__(self, path: str | Path, n_threads: int = 1):
        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
        options.log_severity_level = ONLY_ERRORS
        try:
            self._session: InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            found = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime has a type for each kind of damage, and no common one
            if is_machine_limit(error):
                raise
            raise InputError(f"{path} cannot be read as ONNX ({model_folder.one_line(error)}); {ADVICE}") from error
        content = {}
        with contextlib.suppress(ValueError, RecursionError):
            content = {name: json.loads(found[name]) for name in KEYS if name in found}
        missing = [name for name in KEYS if name not in content]
        if missing:
            raise InputError(f"{path} was not written by this program: its metadata have no {missing[0]}; {ADVICE}")
        if content["schema_version"] != SCHEMA_VERSION:
            raise InputError(f"{path} has the version {content['schema_version']!r}, not {SCHEMA_VERSION}; {ADVICE}")
        for name, (holds, expected) in _FIELDS.items():
            if not holds(content[name]):
                raise InputError(f"{path}: {name} in its metadata is not {expected}; {ADVICE}")
        self.precision, self.model_sha256, self.sizes = (content[k] for k in ("precision", "model_sha256", "sizes"))
        self.config, self.sample_rate_hz = content["config"], content["sample_rate_hz"]
        self.training_recordings = content["training_recordings"]
        model_folder.check_fields(str(path), self.config)
        model_folder.check_labels(model_folder.ModelFolder(str(path), self.path.parent, self.config, (self.path,)))
        for name, text in metadata_of(content).items():
            if json.loads(text) != _parsed(found.get(name, "null")):
                raise InputError(f"{path}: {name} and config in its metadata contradict each other; {ADVICE}")
        self.labels = decision.labels_of(self.config)
        self.n_samples = round(self.config["clip_seconds"] * self.sample_rate_hz)
        shapes = {each.name: each.shape for each in (*self._session.get_inputs(), *self._session.get_outputs())}
        wanted = {WAVEFORM: self.n_samples, LOGITS: len(self.labels), SCORES: len(self.labels)}
        if {name: shape[-1] for name, shape in shapes.items()} != wanted:
            raise InputError(f"{path}: the network takes and gives {shapes}, its metadata say {wanted}; {ADVICE}")

    def __repr__(self) -> str:
        n_blocks = self.sizes["n_blocks"]
        blocks = [counted(n_blocks, "block")] if n_blocks else []
        return ", ".join(
            [
                self.config["model_type"],
                *blocks,
                f"{self.sizes['n_parameters'] / 1e6:.3g} M parameters",
                f"ONNX {self.precision}",
            ]
        )

    def logits(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the logits of clips.

        Parameters
        ----------
        waveforms : ndarray of float32, shape (n, n_samples)
            In [-1, 1].

        Returns
        -------
        ndarray of float32, shape (n, n_labels)
        """
        # One by one: on a CPU a batch is not faster and needs more memory, and in int8 its clips would share a scale.
        one_by_one = (waveforms[i : i + 1] for i in range(len(waveforms)))
        return np.concatenate([self._session.run([LOGITS], {WAVEFORM: clip})[0] for clip in one_by_one])
