"""Pool the results of all folds into one, in which each clip counts once."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from utils.core import lazy, names, runs
from utils.core.errors import InputError, UsageError
from utils.core.text import some
from utils.scores import by_collection, comparison, predictions, summary

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.data import clips
    from utils.scores import evaluation, multi_label

log = logging.getLogger(__name__)

_FOLD = re.compile(r"(?P<data>.+)/fold-(?P<fold>\d+)-of-(?P<n_folds>\d+)")  # as data_input writes data_sha256
# These scores rank clips by outputs, and outputs of two models have no common scale.
RANKED = ("macro_average_precision", "macro_auroc")
# Properties of the models and of the machine; see `_mean_or_nan`.
OF_THE_MODELS = (
    *("n_layers", "n_parameters", "gmacs_per_clip", "gmacs_front_end", "latency_ms_median", "latency_ms_p95"),
    *("latency_front_end_ms", "real_time_factor", "peak_memory_mb", "throughput_clips_per_s", "latency_ms_low"),
    *("latency_ms_high", "n_threads", "load_average", "cpu_busy_share"),
)
TEXTS = ("kept_layers", "device", "dtype", "git_commit", "kind", "kept_together")
APART = " | "  # between the texts of folds that differ


def default_folder(folders: Sequence[Path]) -> Path:
    """Return the default folder of the pooled result: ``fold-all.seed-1`` beside the folds of a model.

    Raises
    ------
    UsageError
        If the folders are not named like the folds of one model.
    """
    parsed = {names.parse(names.of_folder(folder)) for folder in folders}
    pooled = {name and replace(name, fold=names.ALL_FOLDS) for name in parsed}
    if None in pooled or len(pooled) > 1:
        raise UsageError(
            "--pool takes the folds of one model, such as validation_results/birds/w2v/fold-*.seed-42; found "
            f"{some([names.of_folder(folder) for folder in folders])}. For folders with other names give --output_dir"
        )
    return names.root_of(folders[0]) / str(pooled.pop())


def read_folds(folders: Sequence[Path]) -> dict[Path, comparison.Scored]:
    """Read the results of all folds of a model, by folder, in the order of the folds.

    Raises
    ------
    InputError
        If a folder is not the result of a fold, a fold is missing or given twice, or they are of different data,
        classes or splits.
    """
    folds, of_data = {}, Counter()
    for folder in folders:
        scored = comparison.read_scored(folder)
        found = _FOLD.fullmatch(str(scored.metrics["data_sha256"]))
        if found is None:
            if str(scored.metrics["data_sha256"]).endswith("-folds"):
                raise InputError(f"{folder} is pooled already: leave it out; --pool takes the single folds")
            raise InputError(
                f"{folder} is not the result of a fold: score the model with {summary.STAGE}.py --fold on a data set "
                "that 01_data_processing.py made with --folds"
            )
        fold = int(found["fold"])
        if fold in folds:
            raise InputError(f"{folds[fold][0]} and {folder} are both of fold {fold}; give each fold once")
        folds[fold] = (folder, scored)
        of_data[found["data"], int(found["n_folds"]), scored.metrics["split"], tuple(scored.labels or ())] += 1
    if len({one.answers is None for _, one in folds.values()}) > 1:
        raise InputError(
            "some of the models give a clip several labels or none, and others give each clip one; pool the folds of "
            f"one --problem_type of {comparison.TRAINED_BY}"
        )
    if len(of_data) > 1:
        raise InputError(
            f"the results are of {len(of_data)} different data sets, splits or sets of classes: score all folds on "
            "the same --data_dir and --split"
        )
    ((_, n_folds, split, labels),) = of_data
    if not labels:
        raise InputError(f"{folders[0]} does not name its labels; {predictions.AGAIN}")
    if missing := sorted(set(range(1, n_folds + 1)) - set(folds)):
        raise InputError(f"fold {some(list(map(str, missing)))} of {n_folds} is missing: give the results of all folds")
    if split == "train":
        raise InputError("the results are of train, where each clip is in several folds: pool the results of test")
    return dict(folds[fold] for fold in sorted(folds))


def pool(folds: dict[Path, comparison.Scored]) -> tuple[pd.DataFrame, np.ndarray, dict, multi_label.Result | None]:
    """Join the predictions of folds and score them.

    Accuracy, F1 and calibration are of all clips together. Average precision and AUROC are means over the folds,
    since they rank clips by outputs, and the outputs of two models have no common scale. Size and speed are means over
    the models.

    Parameters
    ----------
    folds : dict of Path to Scored
        As `read_folds` returns them.

    Returns
    -------
    table : DataFrame
        ``clip_id, label_id, predicted_id, group, recording_id``, one row per clip, by ``clip_id``.
    logits : ndarray of float32, shape (n_clips, n_classes)
    row : dict
        Of ``metrics.csv``, without ``model_name``.
    several : Result or None
        Of models with several labels a clip. Their detections are those of the thresholds of each model.

    Raises
    ------
    InputError
        If a clip is in two folds, or the outputs of a fold do not belong to its predictions.
    """
    tables = [one.predictions.assign(recording_id=predictions.read_recording_ids(at)) for at, one in folds.items()]
    table = pd.concat(tables, ignore_index=True)
    logits = np.concatenate([_logits(folder, one) for folder, one in folds.items()])
    if (twice := table["clip_id"].duplicated()).any():
        raise InputError(f"clip {table['clip_id'][twice].iloc[0]} is in two folds; {predictions.AGAIN}")
    order = table["clip_id"].argsort(kind="stable")
    table, logits = table.iloc[order].reset_index(drop=True), logits[order]
    metrics = pd.DataFrame([one.metrics for one in folds.values()])
    row = {name: _mean_or_nan(metrics[name]) for name in (*RANKED, *OF_THE_MODELS)}
    several = None
    if next(iter(folds.values())).answers is not None:
        joined = multi_label.joined([one.answers for one in folds.values()])
        several = multi_label.score_all(joined.of(order.to_numpy()))
        row |= {name: several.scores[name] for name in RANKED}
    row |= {name: APART.join(dict.fromkeys(metrics[name])) for name in TEXTS}
    doubts = dict.fromkeys(doubt for doubt in metrics["latency_doubt"] if doubt != summary.NO_DOUBT)
    data, seeds = _FOLD.fullmatch(metrics["data_sha256"].iloc[0]), metrics["seed"].unique().tolist()
    row |= {
        "model_dir": APART.join(metrics["model_dir"]),
        "split": metrics["split"].iloc[0],
        "n_clips": len(table),
        "n_recordings": table["recording_id"].nunique(),
        "n_classes": logits.shape[1],
        "latency_doubt": APART.join(doubts) or summary.NO_DOUBT,
        "seed": seeds[0] if len(seeds) == 1 else float("nan"),
        "data_sha256": f"{data['data']}/all-{data['n_folds']}-folds",
        "n_recordings_trained_on": float(metrics["n_recordings_trained_on"].sum(skipna=False)),
    }
    scores = evaluation.score_all(table, logits) if several is None else summary.without_one_label(several.scores)
    return table, logits, {**scores, **row}, several


def _logits(folder: Path, scored: comparison.Scored) -> np.ndarray:
    logits = predictions.read_logits(folder)
    n_classes = len(scored.labels or ())
    if logits.shape[1] != n_classes or (logits.argmax(axis=1) != scored.predictions["predicted_id"]).any():
        raise InputError(
            f"{folder / predictions.NAME}: its logits are not those of its predictions; {predictions.AGAIN}"
        )
    return logits


def warn_of_models(folds: dict[Path, comparison.Scored]) -> None:
    """Warn of models that were trained on the recordings that score them, and of folds with different models."""
    metrics = pd.DataFrame([one.metrics for one in folds.values()])
    heard = [str(at) for at, n in zip(folds, metrics["n_recordings_trained_on"].fillna(0), strict=True) if n]
    if heard:
        log.warning(
            "%d of %d folds are scored by models that were trained on their recordings, so the scores are too high: %s",
            *(len(heard), len(folds), some(heard)),
        )
    differ = [name for name in ("kind", "kept_layers", "n_parameters") if metrics[name].nunique() > 1]
    if differ:
        log.warning("the folds are of different models: %s differ", " and ".join(differ))


def who_was_heard(folders: Iterable[Path]) -> dict[str, int]:
    """Return the sums of `splits.Heard` over folds, from their ``run.json``."""
    counts: Counter[str] = Counter()
    for folder in folders:
        counts.update(runs.read_record(folder)["metrics"].get("heard_in_train", {}))
    return dict(counts)


def is_data_of(data_dir: Path, data_sha256: str) -> bool:
    """Return whether a folder is still the data set with the digest of a pooled result."""
    try:
        return clips.data_input(data_dir).sha256 == data_sha256.rpartition("/")[0]
    except InputError:  # such as a data set without its clips
        return False


def collections_of(folders: dict[Path, comparison.Scored], data_dir: Path) -> pd.DataFrame:
    """Return `by_collection.collections_of` of all folds, by ``clip_id`` as in `pool`; train is that of each fold."""
    parts = []
    for folder, one in folders.items():
        fold = int(_FOLD.fullmatch(str(one.metrics["data_sha256"]))["fold"])
        known = by_collection.collections_of(predictions.read_recording_ids(folder), one.labels, data_dir, fold)
        parts.append(known.assign(clip_id=one.predictions["clip_id"].to_numpy()))
    return pd.concat(parts).sort_values("clip_id", kind="stable", ignore_index=True)


def _mean_or_nan(values: pd.Series) -> float:
    """Return the mean, or the value itself if all are equal; NaN if one is missing."""
    return values.tolist()[0] if values.nunique() == 1 else float(values.mean(skipna=False))
