"""``predictions.parquet``: the prediction of a model for each clip. 03 writes it, and comparisons read it."""

from __future__ import annotations

import json
from pathlib import Path

from utils.core import lazy
from utils.core.errors import InputError
from utils.core.files import atomic_path
from utils.scores import summary

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from utils.scores import multi_label

AGAIN = f"run {summary.STAGE}.py again with --overwrite"
NAME = "predictions.parquet"
SCHEMA_VERSION = 1
# With several labels a clip: lists of the label ids of the truth, of secondary labels, and of detections.
ID_LISTS = ("label_ids", "unknown_ids", "detected_ids")
MODEL = "model"
COLUMNS = {
    "clip_id": "string",
    "label_id": "integer",
    "predicted_id": "integer",
    "group": "string",
}


def write_predictions(
    output_dir: Path,
    table: pd.DataFrame,
    labels: list[str],
    logits: np.ndarray,
    answers: multi_label.Answers | None = None,
) -> None:
    """Write the prediction of a model for each clip to Parquet, atomically.

    Columns ``clip_id, recording_id, label_id, predicted_id, logits, group``; one row per clip, in the order of `table`.
    With ``group`` two models can be compared from their files alone. The metadata of the file contain
    ``schema_version`` and, as JSON, ``labels`` by label id. With several labels a clip, ``label_ids, unknown_ids`` and
    ``detected_ids`` list label ids: of the clip, of secondary labels, and of those that reach their threshold;
    ``duration_s`` is the length of the clip, and ``label_id`` of a clip without a label is -1. Of pooled folds,
    ``model`` is the number of the model that answered.
    """
    n_classes = logits.shape[1]
    offsets = pa.array(np.arange(len(logits) + 1) * n_classes, pa.int32())
    columns = {
        "clip_id": pa.array(table["clip_id"], pa.string()),
        "recording_id": pa.array(table["recording_id"], pa.string()),
        "label_id": pa.array(table["label_id"], pa.int32()),
        "predicted_id": pa.array(logits.argmax(axis=1), pa.int32()),
        "logits": pa.ListArray.from_arrays(offsets, pa.array(logits.ravel(), pa.float32())),
        "group": pa.array(table["group"], pa.string()),
    }
    if answers is not None:
        tables = (answers.targets, ~answers.is_known, answers.is_detected)
        columns |= {name: _as_lists(table) for name, table in zip(ID_LISTS, tables, strict=True)}
        columns["duration_s"] = pa.array(answers.seconds, pa.float64())
        if answers.model is not None:
            columns[MODEL] = pa.array(answers.model, pa.int32())
    metadata = {"schema_version": str(SCHEMA_VERSION), "labels": json.dumps(labels, ensure_ascii=False)}
    with atomic_path(output_dir / NAME) as partial:
        pq.write_table(pa.table(columns, metadata=metadata), partial, compression="zstd")


def _as_lists(table: np.ndarray) -> pa.Array:
    """Return the numbers of the columns that are True in each row."""
    offsets = np.concatenate([[0], table.sum(axis=1).cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.nonzero(table)[1], pa.int32()))


def read_answers(folder: Path) -> multi_label.Answers | None:
    """Return the answers of a model with several labels a clip, in the order of `read_predictions`; None of another.

    Raises
    ------
    InputError
        If the file has another form.
    """
    path, columns = folder / NAME, pq.read_schema(folder / NAME).names
    if ID_LISTS[0] not in columns:
        return None
    logits = read_logits(folder)

    def as_table(name: str) -> np.ndarray:
        ids, table = _column(folder, name), np.zeros(logits.shape, bool)
        for own, row in zip(ids, table, strict=True):
            if not all(type(i) is int and 0 <= i < len(row) for i in own or ()):
                raise InputError(f"{path} has {name} {own}; expected label ids, 0 to {len(row) - 1}; {AGAIN}")
            row[own or []] = True
        return table

    targets, is_unknown, is_detected = map(as_table, ID_LISTS)
    groups, seconds = (np.array(_column(folder, name)) for name in ("group", "duration_s"))
    if seconds.dtype != np.float64 or not (seconds > 0).all():
        raise InputError(f"{path} has a duration_s that is not a number above 0; {AGAIN}")
    model = np.array(_column(folder, MODEL)) if MODEL in columns else None
    if model is not None and model.dtype.kind != "i":
        raise InputError(f"{path} has a {MODEL} that is not a whole number; {AGAIN}")
    return multi_label.Answers(targets, ~is_unknown, logits, is_detected, groups, seconds, model)


def read_predictions(folder: Path) -> tuple[pd.DataFrame, list[str] | None]:
    """Read the file in a results folder of stage 03.

    Returns
    -------
    predictions : DataFrame
        ``clip_id, label_id, predicted_id, group``; one row per clip.
    labels : list of str or None
        By label id; None in results of an early version.

    Raises
    ------
    InputError
        If it is missing, or has another form.
    """
    path = folder / NAME
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
        labels = _labels_of(folder, table.schema.metadata or {})
    except (OSError, ValueError, RecursionError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{path} cannot be read ({error}); {AGAIN}") from error
    odd = [
        f"{name} ({table[name].type}, {table[name].null_count} missing)"
        for name, kind in COLUMNS.items()
        if not getattr(pa.types, f"is_{kind}")(table[name].type) or table[name].null_count
    ]
    if odd:
        raise InputError(f"{path} has {', '.join(odd)}; expected text or whole numbers, none of them missing; {AGAIN}")
    predictions = table.to_pandas()
    can_be_silent = ID_LISTS[0] in pq.read_schema(path).names
    for name, first in (("label_id", -1 if can_be_silent else 0), ("predicted_id", 0)):
        last = len(labels) - 1 if labels else predictions[name].max()
        outside = predictions[~predictions[name].between(first, last)]
        if len(outside):
            row = outside.iloc[0]
            raise InputError(
                f"{path}, clip {row['clip_id']}: {name} {row[name]} in {len(outside)} clip(s); expected {first} to "
                f"{last}, the ids of its classes; {AGAIN}"
            )
    return predictions, labels


def read_logits(folder: Path) -> np.ndarray:
    """Return a model's outputs for each clip, in the order of `read_predictions`; shape (n_clips, n_classes).

    Raises
    ------
    InputError
        If they are missing, not finite, or of different numbers of classes.
    """
    try:
        logits = np.array(_column(folder, "logits"), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / NAME} has logits that are not a table of numbers ({error}); {AGAIN}") from error
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise InputError(f"{folder / NAME} has logits that are not a table of finite numbers; {AGAIN}")
    return logits


def read_recording_ids(folder: Path) -> list[str]:
    """Return the recording of each clip, in the order of `read_predictions`."""
    return _column(folder, "recording_id")


def _column(folder: Path, name: str) -> list:
    try:
        return pq.read_table(folder / NAME, columns=[name])[name].to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{folder / NAME}: {name} cannot be read ({str(error).splitlines()[0]}); {AGAIN}") from error


def _labels_of(folder: Path, metadata: dict[bytes, bytes]) -> list[str] | None:
    """Return the labels by id, from the metadata of the file or, for an early version, from its report."""
    version = metadata.get(b"schema_version", b"").decode(errors="replace")
    if version not in ("", str(SCHEMA_VERSION)):
        raise ValueError(f"schema_version {version}; this version of the program reads {SCHEMA_VERSION}")
    if b"labels" in metadata:
        labels = json.loads(metadata[b"labels"])
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("its metadata have no list of labels")
        return labels
    report = folder / "classification_report.csv"
    return list(pd.read_csv(report, dtype=str, keep_default_na=False)["label"]) if report.is_file() else None
