"""Results of stage 03, written without a model."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core import runs
from utils.scores import evaluation, predictions, summary


def metrics_row(name: str, **values) -> dict:
    """Return a row of ``metrics.csv``: ones, and ``x`` for text, but for what is given."""
    empty = {**dict.fromkeys(summary.METRICS_COLUMNS, 1), **dict.fromkeys(summary.TEXT_COLUMNS, "x")}
    return {**empty, "model_name": name, "kind": "whole", "latency_doubt": "no", **values}


def write_result(
    results_dir: Path, name: str, predicted_ids, label_ids, groups, logits=None, labels=None, heard=None, **values
) -> None:
    """Leave a results folder of stage 03, scored from the predictions, with other metrics as given.

    With `logits` and `labels`, the predictions are all that stage 03 writes; the recording is then the group. `heard`
    is what ``run.json`` says of who was heard in train.
    """
    label_ids, predicted_ids = np.asarray(label_ids), np.asarray(predicted_ids)
    scores = {
        "accuracy": float((label_ids == predicted_ids).mean()),
        "macro_f1": evaluation.macro_f1(label_ids, predicted_ids),
        "n_clips": len(label_ids),
    }
    row = metrics_row(name, **{**scores, **values})
    clip_ids = [f"{groups[i]}:{i}" for i in range(len(label_ids))]
    columns = {"clip_id": clip_ids, "label_id": label_ids, "predicted_id": predicted_ids, "group": list(groups)}
    args = argparse.Namespace(output_dir=results_dir / name, overwrite=False, seed=0, data_dir=Path("data"))
    with runs.open_run("03_model_validation", args, {}) as this_run:
        this_run.metrics |= {} if heard is None else {"heard_in_train": heard}
        summary.write_metrics(results_dir / name / summary.METRICS_NAME, pd.DataFrame([row]))
        if logits is None:
            pq.write_table(pa.table(columns), results_dir / name / "predictions.parquet")
        else:
            table = pd.DataFrame(columns).assign(recording_id=columns["group"])
            predictions.write_predictions(results_dir / name, table, labels, logits)
