"""Draw the figures of a results folder of stage 03 from its files, in the stage or later."""

from pathlib import Path

import pandas as pd

from utils.core import names, runs
from utils.core.errors import InputError
from utils.figures import plots
from utils.scores import by_collection, comparison, evaluation, predictions


def draw_result(folder: Path) -> None:
    """Draw the figures of a result from ``predictions.parquet``, ``metrics.csv`` and ``scores_by_collection.csv``.

    They are ``confusion_matrix``, ``reliability`` and, with the last file, ``scores_by_collection``. Not of a model
    with several labels a clip: a missed label is not confused with a certain other one.

    Raises
    ------
    InputError
        If one of them cannot be read, or does not name its labels.
    """
    scored = comparison.read_scored(folder)
    if scored.answers is not None:
        return
    if scored.labels is None:
        raise InputError(f"{folder / predictions.NAME} does not name its labels; {predictions.AGAIN}")
    label_ids, predicted_ids = (scored.predictions[name].to_numpy() for name in ("label_id", "predicted_id"))
    title = plots.caption(
        names.of_folder(folder),
        runs.read_record(folder)["arguments"]["data_dir"],
        {scored.metrics["split"]: (len(label_ids), scored.predictions["group"].nunique())},
    )
    counts = evaluation.confusion_table(label_ids, predicted_ids, scored.labels)
    plots.confusion_figure(counts, folder / "confusion_matrix", title)
    bins = evaluation.calibration(label_ids, predictions.read_logits(folder))
    plots.reliability_figure(bins, evaluation.expected_calibration_error(bins), folder / "reliability", title)
    if (folder / by_collection.NAME).is_file():
        plots.collections_figure(by_collection.read(folder), folder / Path(by_collection.NAME).stem, title)


def draw_comparison(folder: Path) -> None:
    """Draw ``comparison`` from ``comparison.csv``."""
    path, texts = folder / f"{comparison.COMPARISON_NAME}.csv", {"first": str, "second": str}
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])  # a model may be called "null"
    first = table.iloc[0]
    parsed = names.parse(first["first"])
    data_set = f"{parsed.data_folder}; " if parsed else ""
    clips = f"{first.get('split', 'not noted')}: {first['n_clips']:,} clips in {first['n_groups']:,} groups"
    title = plots.drawable(f"{data_set}{clips}, split by {first['kept_together']}")
    plots.comparison_figure(table, folder / comparison.COMPARISON_NAME, title)
