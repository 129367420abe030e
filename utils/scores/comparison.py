"""Compare models clip by clip, from their results of stage 03: differences, intervals, p values and verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core import lazy, names, runs
from utils.core.errors import InputError
from utils.core.files import sha256_of_lines
from utils.core.text import printable, some
from utils.scores import predictions, summary

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.scores import evaluation, intervals, multi_label, verdicts

COMPARISON_NAME = "comparison"
# Of a folder, in bytes; file systems allow 255.
LONGEST_NAME = 120
SCORES = ("accuracy", "macro_f1")
TRAINED_BY = "02_finetuning.py"
COUNTED = ("label_id", "predicted_id", "group")


@dataclass(frozen=True)
class Scored:
    """A model's results.

    Attributes
    ----------
    name : str
        Of the result; see `names.of_folder`.
    predictions : DataFrame
        ``clip_id, label_id, predicted_id, group``; one row per clip.
    labels : list of str or None
        By label id; None in results of an early version.
    metrics : Series
        Its row of ``metrics.csv``.
    answers : Answers or None
        Of a model with several labels a clip.
    """

    name: str
    predictions: pd.DataFrame
    labels: list[str] | None
    metrics: pd.Series
    answers: multi_label.Answers | None = None

    @property
    def compared(self) -> tuple[str, str]:
        """The scores in which two models are compared; a margin is one of the first."""
        return SCORES if self.answers is None else multi_label.COMPARED


def results_input(folder: Path) -> runs.Input:
    """Check that a results folder of stage 03 is complete, and describe it; see `runs.folder_input`."""
    return runs.folder_input(folder, [summary.STAGE])


def read_scored(folder: Path) -> Scored:
    """Read the results of stage 03 of a model.

    Raises
    ------
    InputError
        If a file is missing or has another form.
    """
    folder = Path(folder)
    table, labels = predictions.read_predictions(folder)
    metrics = summary.read_metrics(folder / summary.METRICS_NAME).iloc[0]
    if len(table) != metrics["n_clips"]:
        raise InputError(
            f"{folder / predictions.NAME} has {len(table)} clips, {summary.METRICS_NAME} has {metrics['n_clips']}; "
            f"{predictions.AGAIN}"
        )
    return Scored(printable(names.of_folder(folder)), table, labels, metrics, predictions.read_answers(folder))


def read_one_label(folder: Path) -> Scored:
    """Read the results of a model with one label a clip; see `read_scored`.

    Raises
    ------
    InputError
        Also if the model gives a clip several labels or none.
    """
    scored = read_scored(folder)
    if scored.answers is not None:
        raise InputError(
            f"{folder} is of a model that gives a clip several labels or none; the tables of a study are of one label "
            f"a clip: compare such models by {summary.STAGE}.py --compare"
        )
    return scored


def joined(results: Sequence[Scored]) -> Scored:
    """Return the results of several trainings of one model as one, with scores and intervals over all their clips.

    The unit of an interval is the group, with its clips of every training. Costs are those of the first result. Of
    models with one label a clip.
    """
    table = pd.concat([one.predictions for one in results], ignore_index=True)
    label_ids, predicted_ids, groups = (table[name].to_numpy() for name in COUNTED)
    scores = {"accuracy": float((label_ids == predicted_ids).mean()), "n_clips": len(table)}
    scores["macro_f1"] = evaluation.macro_f1(label_ids, predicted_ids)
    for name, (low, high) in intervals.score_intervals(label_ids, predicted_ids, groups).items():
        scores |= {f"{name}_low": low, f"{name}_high": high}
    scores["n_groups"] = table["group"].nunique()
    metrics = results[0].metrics.copy()
    metrics[list(scores)] = list(scores.values())
    return replace(results[0], predictions=table, metrics=metrics)


def check_same_clips(first: Scored, second: Scored) -> None:
    """Raise `InputError` unless two models have the same classes and were scored on the same clips of the same data."""
    again = f"score both by {summary.STAGE}.py on the same --data_dir and --split"
    if None not in (first.labels, second.labels) and first.labels != second.labels:
        raise InputError(
            f"{first.name} and {second.name} have different classes: {_labels_differ(first, second)}; {again}, with "
            "models that were trained on these labels"
        )
    several = [one.name for one in (first, second) if one.answers is not None]
    if len(several) == 1:
        raise InputError(
            f"{several[0]} gives a clip several labels or none, and the other model gives each clip one: their scores "
            f"are of different clips and mean different things; compare models of one --problem_type of {TRAINED_BY}"
        )
    where = f"{first.name} and {second.name} were scored on different clips"
    for column, what in (("split", "split"), ("data_sha256", "data (data_sha256)")):
        ours, theirs = first.metrics[column], second.metrics[column]
        if ours != theirs:
            if "/" in f"{ours}{theirs}":  # the data sets have folds
                again += ", and on the same --fold; or pool all folds of each model first (--pool)"
            raise InputError(f"{where}: {what} {_short(ours)} and {_short(theirs)}; {again}")
    columns = ["clip_id", "label_id", "group"]
    if not first.predictions[columns].equals(second.predictions[columns]):
        n_clips = (len(first.predictions), len(second.predictions))
        raise InputError(
            f"{where}, {n_clips[0]} and {n_clips[1]} of the same split{_clips_differ(first, second)}; {again}, "
            "--max_clips_per_class and --seed"
        )
    if several and not all(
        (getattr(first.answers, name) == getattr(second.answers, name)).all() for name in ("targets", "is_known")
    ):
        raise InputError(f"{where}: the labels of a clip differ; {again}")


def folder_name(models: Sequence[str]) -> str:
    """Return the name of the folder for a comparison of these models; each set of models has its own.

    If the name is longer than `LONGEST_NAME` bytes, it has the first model, the number of models and a digest.
    """
    name = "-".join([COMPARISON_NAME, *models]).replace("/", ".")
    if len(name.encode()) <= LONGEST_NAME:
        return name
    first = models[0].replace("/", ".").encode()[: LONGEST_NAME // 2].decode(errors="ignore")
    return f"{COMPARISON_NAME}-{first}-and-{len(models) - 1}-more-{sha256_of_lines(models)[:8]}"


def _short(name: object) -> str:
    """Shorten a digest, and keep the fold behind it."""
    digest, *fold = str(name).split("/")
    return "/".join([digest[:12], *fold])


def _labels_differ(first: Scored, second: Scored) -> str:
    texts = [
        f"only {one.name} has {some([label for label in one.labels if label not in other.labels], 3)}"
        for one, other in ((first, second), (second, first))
        if set(one.labels) - set(other.labels)
    ]
    return " and ".join(texts) or "the same labels, in another order"


def _clips_differ(first: Scored, second: Scored) -> str:
    """Return the first row at which clip, label or group differ, as text; empty if the numbers of clips differ."""
    if len(first.predictions) != len(second.predictions):
        return ""
    for column in ("clip_id", "label_id", "group"):
        ours, theirs = first.predictions[column], second.predictions[column]
        if not (same := ours == theirs).all():
            row = int(same.to_numpy().argmin())
            return f"; row {row} has {column} {ours[row]} and {theirs[row]}"
    return ""


def jackknife_of(results: Sequence[Scored], groups: np.ndarray | None = None) -> intervals.Jackknife:
    """Return the scores of one model over the clips of all its results, and the same without each group.

    With `groups`, sorted, there is a score for each of them, also for a group without clips here. The scores are
    `SCORES`; of a model with several labels a clip, which is by itself, `multi_label.COMPARED`.
    """
    if results[0].answers is not None:
        return multi_label.compared(results[0].answers)
    clips = pd.concat([one.predictions for one in results])
    return intervals.jackknife(intervals.count(*(clips[name].to_numpy() for name in COUNTED), groups))


def recipe_intervals(results: Sequence[Scored]) -> dict[str, tuple[float, float, float]]:
    """Return the scores of a model trained by a recipe, from its trainings; see `intervals.recipe_intervals`.

    All are NaN if there are fewer than three trainings.
    """
    if len(results) < intervals.LEAST_TRAININGS:
        return dict.fromkeys(SCORES, (math.nan, math.nan, math.nan))
    return intervals.recipe_intervals(
        [
            intervals.Training(
                sha256_of_lines(one.predictions["clip_id"]), *(one.predictions[name].to_numpy() for name in COUNTED)
            )
            for one in results
        ]
    )


def paired_difference(pairs: Sequence[tuple[Scored, Scored]]) -> dict[str, tuple[float, float, float]]:
    """Return the scores of the first model minus those of the second; see `intervals.paired_difference`.

    Several pairs, such as two recipes with several seeds each, are pooled: the unit is a group with its clips of every
    pair.

    Raises
    ------
    InputError
        If the two of a pair were scored on different clips.
    """
    return intervals.paired_difference(*_columns(pairs))


def sign_flip_p_values(pairs: Sequence[tuple[Scored, Scored]], seed: int = 0) -> dict[str, float]:
    """Return the p values of `paired_difference`; see `verdicts.sign_flip_p_values`."""
    return verdicts.sign_flip_p_values(*_columns(pairs), seed=seed)


def _columns(pairs: Sequence[tuple[Scored, Scored]]) -> list:
    tables = []
    for first, second in pairs:
        check_same_clips(first, second)
        tables.append(first.predictions.assign(other_id=second.predictions["predicted_id"]))
    table = pd.concat(tables)
    return [table[name].to_numpy() for name in ("label_id", "predicted_id", "other_id", "group")]


def comparison_table(
    models: Sequence[Scored], seed: int, margin: float, pairs: Sequence[tuple[int, int]] | None = None
) -> pd.DataFrame:
    """Compare pairs of models.

    Parameters
    ----------
    models : sequence of Scored
    seed : int
        Of the p values.
    margin : float
        Score that may be lost.
    pairs : sequence of (int, int), optional
        Places of the two models in the list. Default: every model with every later one.

    Returns
    -------
    DataFrame
        One row per pair: ``first, second, n_clips, n_groups, kept_together, split, margin``. For ``accuracy`` and
        ``macro_f1`` (with several labels a clip, ``macro_average_precision`` and ``accuracy``) follow the two scores;
        ``_difference`` (first minus second) with its 95 % interval ``_low, _high``; the ends ``_low_of_all,
        _high_of_all`` of simultaneous intervals of all rows; the p value ``_p`` (see `_p_values`), and ``_p_holm``,
        adjusted for the number of rows; and ``_verdict``, whether the first model is shown to be worse by no more than
        the margin: see `verdicts.within_margin`.
    """
    pairs = list(itertools.combinations(range(len(models)), 2)) if pairs is None else pairs
    for first, second in pairs:
        check_same_clips(models[first], models[second])
    compared = models[0].compared
    found = intervals.differences([jackknife_of([model]) for model in models], pairs, compared)
    rows = []
    for number, (first, second) in enumerate((models[i], models[j]) for i, j in pairs):
        p_values = _p_values(first, second, found, number, seed)
        row = {
            "first": first.name,
            "second": second.name,
            "n_clips": len(first.predictions),
            "n_groups": first.predictions["group"].nunique(),
            "kept_together": first.metrics["kept_together"],
            "split": first.metrics["split"],
            "margin": margin,
        }
        for name in compared:
            of_pair = found[name].of_pair(number)
            row[f"{name}_first"], row[f"{name}_second"] = first.metrics[name], second.metrics[name]
            row |= {f"{name}_{column}": value for column, value in of_pair.items()}
            row[f"{name}_p"] = p_values[name]
            row[f"{name}_p_holm"] = math.nan
            row[f"{name}_verdict"] = str(verdicts.of_pair(found[name], number, margin))
        rows.append(row)
    table = pd.DataFrame(rows)
    for name in compared:
        table[f"{name}_p_holm"] = verdicts.holm_adjusted(table[f"{name}_p"])
    return table


def _p_values(
    first: Scored, second: Scored, found: dict[str, intervals.Differences], number: int, seed: int
) -> dict[str, float]:
    """Return the p value of each score of a pair.

    With several labels a clip, that of macro average precision is from the t of the jackknife: outputs of two models
    have no common scale, so their answers on a group cannot be exchanged.
    """
    if first.answers is None:
        return sign_flip_p_values([(first, second)], seed)
    hits = [
        multi_label.top_accuracy(one.answers.targets, one.answers.is_known, one.answers.logits)
        for one in (first, second)
    ]
    labelled = np.isfinite(hits[0])
    answers = (of_model[labelled].astype(int) for of_model in hits)
    flips = verdicts.sign_flip_p_values(
        *(np.ones(labelled.sum(), int), *answers, first.answers.groups[labelled]), seed=seed
    )
    of_pair = found["macro_average_precision"]
    return {
        "macro_average_precision": intervals.p_of_t(of_pair.estimate[number], of_pair.error[number], of_pair.n_groups),
        "accuracy": flips["accuracy"],
    }
