"""Measure how often each interval holds the true value, and how often each test is wrong, at the study's own groups.

    python -m drills.coverage                                   # the groups of validation_results/published
    python -m drills.coverage --draws 400 --only accuracy       # one row, roughly

The sizes of the groups and their labels are those of the test clips in the results of a study; the answers are drawn.
A recordist has a difficulty of his own, which all his clips share (`RESEMBLANCE`), and so has a species; a wrong answer
is most often one of a few species. Recordists are drawn with replacement from those of the study: an interval is about
other recordists like these. Each interval is computed by the function that the stages and tables call.

Prints a row for each interval, data set and accuracy: how often it held the true value, and the range that is
expected. A row is outside if it is further from its range than 2.5 Monte Carlo standard errors. Exits 1 if one is.
Intervals that are known to be too wide have a wider range, with the reason. For graph convexity (04_analysis.py) pairs
of clips are drawn instead of answers: the score of a pair depends on both recordists, and is higher within one. For
several labels a clip, outputs are drawn; a recordist has a noise of his own, too, which makes false alarms.
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from utils.core import cli, names
from utils.core.errors import InputError
from utils.layers import convexity
from utils.scores import by_collection, intervals, multi_label, predictions, verdicts

RESULTS_DIR = Path("validation_results", names.PUBLISHED)
# Correlation of the clips of a recordist in being right, before the probit: usual, and others that are tried.
RESEMBLANCE, OTHER_RESEMBLANCES = 0.5, (0.1, 0.8)
# Standard deviation of the difficulty of species, in the same units.
SPECIES_SPREAD = 0.5
# Of one training: 0.04 to 0.09 of the accuracy, in the same units.
TRAINING_SPREAD = 0.15
N_CANDIDATES = 6
N_COLLECTIONS = 6
LEAST_GROUPS = 15  # with fewer, no test can find anything
# Share of the variance between recordists that several models have in common.
COMMON = 0.7
# Share of the right answers of a model that another one has wrong.
RARE = 0.03
DRAWS_AT_ONCE = 200
MARGIN = 0.05
# Standard deviation of a recordist's effect on the score of a pair and of the rest; gain of a pair within a recordist.
PAIR_SPREAD, WITHIN_GROUP = 0.12, 0.3
# Several labels take time with the square of the clips.
MOST_CLIPS_OF_SEVERAL = 1000
# Shares of clips without a label, of the others with a second and with a secondary one; seconds of a clip.
SILENT, SECOND, SECONDARY, CLIP_SECONDS = 0.3, 0.2, 0.05, 5.0
# AUROC of a label in the outputs, and the share of clips without a label in which it is detected.
DETECTORS = {0.9: 0.01, 0.97: 0.002}
N_TRUE = 600  # data sets whose scores together are the true ones
TOLERANCE = 2.5
EXACT, SIMULTANEOUS, WRONG = (0.94, 0.96), (0.94, 0.97), (0.04, 0.06)
# Why a range is wider.
FEW, JACKKNIFE, TRAININGS, HOLM = "few groups", "jackknife", "few trainings", "Holm"
PAIRS = "pairs"
RANKS, SMALL_MEAN, ALARMS = "few clips of a label", "mean of labels", "alarms"
ONE_LABEL = "one label"
TIES, RARITY = "ties", "few clips"
REASONS = {
    FEW: f"few groups have most of the clips, as if there were fewer than {intervals.FEW_GROUPS}: the interval of a "
    "score is too narrow near 0 and 1, or too wide; that of a difference allows for recordists who are not among these",
    JACKKNIFE: "with few groups of a species the jackknife's standard error of macro F1 is 10 to 20 % too large, and "
    "uncertain",
    TRAININGS: "Satterthwaite's degrees of freedom are too few where little of the variance is between trainings",
    ONE_LABEL: "a label has few recordists, and Student's t for so few is large",
    TIES: "differences in accuracy are whole clips; a draw that equals the observed one counts as further",
    RARITY: "the interval allows for recordists on whom a model fails, and of whom none is among these",
    PAIRS: "the jackknife of pairs is too wide with few groups of a species, and too narrow where some have most clips",
    RANKS: "the average precision of a label with few clips is too high; the interval reaches down by the jackknife's "
    "estimate of that: further than needed with several recordists a label, not far enough with one",
    SMALL_MEAN: "without its only group a label is missing in the mean, so the jackknife's standard error is too large",
    ALARMS: "a noisy recordist has most of the alarms, and may not be among these; with few of them Garwood's interval "
    "is wider than needed",
    HOLM: "Holm's adjustment allows for the worst dependence of the tests",
}


# ------------------------------------------------------------------------------------------- the groups


@dataclass(frozen=True)
class Groups:
    """Clips of each group by species, as in a study.

    Attributes
    ----------
    name : str
    classes, n_clips : ndarray of int, shape (n_groups, n_cells)
        A group has ``n_clips`` clips of each of its ``classes``; 0 fills the rows.
    """

    name: str
    classes: np.ndarray
    n_clips: np.ndarray

    def some(self, n: int) -> "Groups":
        """Return `n` groups: some of them, or all of them several times."""
        rows = np.random.default_rng(0).permutation(len(self.classes))
        rows = np.resize(rows, n)
        return Groups(f"{self.name.split(',')[0]}, {n} groups", self.classes[rows], self.n_clips[rows])


def read_groups(results_dir: Path) -> list[Groups]:
    """Return the groups of each data set: of all its test clips, and of one seed or fold with `LEAST_GROUPS` of them.

    Raises
    ------
    InputError
        If there is no result of the default split.
    """
    parts: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(results_dir.rglob(predictions.NAME)):
        name = path.parent.relative_to(results_dir).as_posix()
        parsed = names.parse(name)
        if parsed is not None and parsed.split_by == names.DEFAULT_SPLIT and "all" not in path.parent.name:
            parts.setdefault(parsed.data_set, {}).setdefault(name.rsplit("/", 1)[0], []).append(path.parent)
    if not parts:
        raise InputError(f"{results_dir} has no <data set>/<model>/<seed>/{predictions.NAME}; run make study")
    found = []
    for data_set, models in parts.items():
        folders = max(models.values(), key=len)
        tables = [predictions.read_predictions(folder)[0] for folder in folders]
        found.append(groups_of(f"{data_set}, all", pd.concat(tables)))
        if len(tables) > 1 and tables[0]["group"].nunique() >= LEAST_GROUPS:
            found.append(groups_of(f"{data_set}, {folders[0].name}", tables[0]))
    return found


def groups_of(name: str, table: pd.DataFrame) -> Groups:
    """Return the groups of clips."""
    cells = table.groupby(["group", "label_id"]).size().rename("n").reset_index()
    cells["cell"] = cells.groupby("group").cumcount()
    wide = cells.pivot(index="group", columns="cell", values=["label_id", "n"]).fillna(0).astype(int)
    return Groups(name, wide["label_id"].to_numpy(), wide["n"].to_numpy())


# ------------------------------------------------------------------------------------------ the answers


class World:
    """Draws answers of models on recordists like those of some groups.

    Parameters
    ----------
    groups : Groups
    draws : int
        Data sets to draw.
    seed : int
    resemblance : float
        Correlation of the clips of a recordist.
    """

    def __init__(self, groups: Groups, draws: int, seed: int, resemblance: float = RESEMBLANCE):
        self.groups, self.draws = groups, draws
        self.rng = np.random.default_rng(seed)
        self.n_groups, self.n_classes = len(groups.classes), int(groups.classes.max()) + 1
        self.n_of_class = np.bincount(groups.classes.ravel(), groups.n_clips.ravel(), self.n_classes)
        self.spread = np.sqrt(resemblance / (1 - resemblance))
        fixed = np.random.default_rng(0)
        self.difficulty = SPECIES_SPREAD * ndtri((fixed.permutation(self.n_classes) + 0.5) / self.n_classes)
        mistakes = fixed.dirichlet(np.full(self.n_classes, 0.5), size=self.n_classes) * (1 - np.eye(self.n_classes))
        self.mistakes = mistakes / mistakes.sum(axis=1, keepdims=True)

    def expects(self, usual: tuple[float, float], few: tuple[float, float]) -> tuple[tuple[float, float], str]:
        """Return the range that is expected, wider if few groups have most of the clips, and the reason."""
        n_effective = intervals.effective_groups(self.groups.n_clips.sum(axis=1))
        return (few, FEW) if n_effective < intervals.FEW_GROUPS else (usual, "")

    def accuracy_by_class(self, accuracy: float) -> np.ndarray:
        """Return the accuracy of each species with which all clips have the given one."""

        def excess(shift: float) -> float:
            return self.n_of_class @ ndtr(self.difficulty + shift) / self.n_of_class.sum() - accuracy

        return ndtr(self.difficulty + brentq(excess, -9, 9))

    def truth(self, by_class: np.ndarray) -> np.ndarray:
        """Return accuracy and macro F1 on all recordists there may be, from the accuracy of each species."""
        n_true = self.n_of_class
        n_predicted = n_true * by_class + (n_true * (1 - by_class)) @ self.mistakes
        return intervals.scores_of_counts(n_true, n_predicted, n_true * by_class)

    def data_sets(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the classes and numbers of clips of data sets, each of shape (n_draws, n_groups, n_cells)."""
        for start in range(0, self.draws, DRAWS_AT_ONCE):
            shape = min(DRAWS_AT_ONCE, self.draws - start), self.n_groups
            rows = self.rng.integers(self.n_groups, size=shape)
            yield self.groups.classes[rows], self.groups.n_clips[rows]

    def difficulties(self, n_draws: int, share: float = 1.0) -> np.ndarray:
        """Return a share of the variance of the difficulty of recordists, of shape (n_draws, n_groups)."""
        return self.rng.normal(size=(n_draws, self.n_groups)) * self.spread * np.sqrt(share)

    def answers(
        self,
        classes: np.ndarray,
        n_clips: np.ndarray,
        by_class: np.ndarray,
        difficulty: np.ndarray,
        others: float = 0.0,
    ) -> intervals.Counts:
        """Draw answers on data sets; `others` is the variance that `difficulty` has besides that of recordists."""
        thresholds = ndtri(by_class) * np.sqrt(1 + self.spread**2 + others)
        n_hits = self.rng.binomial(n_clips, ndtr(thresholds[classes] + difficulty[:, :, None]))
        n_wrong = n_clips - n_hits
        n_first = self.rng.binomial(n_wrong, 0.7)
        chances = self.mistakes.cumsum(axis=1)[classes]
        favourites = [
            (self.rng.random(classes.shape)[..., None] > chances).sum(axis=-1).clip(0, self.n_classes - 1)
            for _ in range(2)
        ]
        hits = self._table(classes, n_hits)
        n_predicted = hits + self._table(favourites[0], n_first) + self._table(favourites[1], n_wrong - n_first)
        return intervals.Counts(self._table(classes, n_clips), n_predicted, hits)

    def _table(self, classes: np.ndarray, values: np.ndarray) -> np.ndarray:
        shape = len(classes), self.n_groups, self.n_classes
        rows = np.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], 1) * self.n_classes
        return np.bincount((rows + classes).ravel(), values.ravel(), np.prod(shape)).reshape(shape)

    def models(self, accuracies: Sequence[float]) -> Iterator[list[intervals.Counts]]:
        """Yield the answers of models to the same clips: most of what is hard is hard for all (`COMMON`)."""
        by_class = [self.accuracy_by_class(accuracy) for accuracy in accuracies]
        for classes, n_clips in self.data_sets():
            common = self.difficulties(len(classes), COMMON)
            yield [
                self.answers(classes, n_clips, one, common + self.difficulties(len(classes), 1 - COMMON))
                for one in by_class
            ]


def one_of(counts: intervals.Counts, number: int) -> intervals.Counts:
    """Return the counts of one draw."""
    return intervals.Counts(*(table[number] for table in counts))


# ------------------------------------------------------------------------------------------ the measures


@dataclass(frozen=True)
class Row:
    """How often something happened, and how often it should.

    Attributes
    ----------
    what, groups : str
    accuracy, resemblance : float
        Of the models (several labels: AUROC of the outputs), and of the clips of a recordist.
    share : float
    expected : (float, float)
    draws : int
    why : str
        Why a wider range is expected than for others; empty where it is not.
    """

    what: str
    groups: str
    accuracy: float
    resemblance: float
    share: float
    expected: tuple[float, float]
    draws: int
    why: str = ""

    @property
    def is_outside(self) -> bool:
        """Whether the share is out of its range by more than `TOLERANCE` Monte Carlo standard errors of its ends."""
        low, high = (
            end + side * TOLERANCE * np.sqrt(end * (1 - end) / self.draws)
            for end, side in zip(self.expected, (-1, 1), strict=True)
        )
        return not low <= self.share <= high


Measured = Iterator[tuple[str, np.ndarray, tuple[float, float], str]]


def holds(low: np.ndarray, high: np.ndarray, truth: float) -> np.ndarray:
    """Return whether intervals hold a value; rounding at their ends counts as held."""
    return (low <= truth + intervals.ROUNDING) & (truth <= high + intervals.ROUNDING)


def one_model(world: World, accuracy: float) -> Measured:
    """Accuracy and macro F1 of a model: `intervals.score_ends`."""
    by_class, found = world.accuracy_by_class(accuracy), []
    truth = world.truth(by_class)
    for classes, n_clips in world.data_sets():
        difficulty = world.difficulties(len(classes))
        counts = world.answers(classes, n_clips, by_class, difficulty)
        ends = intervals.score_ends(intervals.jackknife(counts), counts.n_true)
        found.append(holds(*ends, truth[:, None]))
    of_accuracy, of_f1 = np.concatenate(found, axis=1)
    yield "accuracy", of_accuracy, *world.expects(EXACT, (0.91, 0.99))
    yield "macro F1", of_f1, (0.93, 0.99), JACKKNIFE


def two_models(world: World, accuracy: float) -> Measured:
    """Difference of two models that are equal, its test, and both answers of a margin at the margin itself."""
    inside, p_values, wrong = [], [], []
    critical = intervals.critical_value(world.n_groups)
    for first, second in world.models([accuracy, accuracy]):
        models = [intervals.jackknife(one) for one in (first, second)]
        estimate = models[0].estimate - models[1].estimate
        error = intervals.standard_error(models[0].left_out - models[1].left_out)
        inside.append(holds(*intervals.difference_interval(estimate, error, world.n_groups, critical), 0.0))
        for number in range(estimate.shape[1]):
            pair = one_of(first, number), one_of(second, number)
            p_values.append(verdicts.p_values_of_counts(*pair, n_draws=399, seed=number))
            low, high = intervals.difference_interval(
                estimate[0, number] - MARGIN, error[0, number], world.n_groups, critical
            )
            verdict = verdicts.within_margin(float(low), float(high), MARGIN, world.n_groups, float(error[0, number]))
            wrong.append(verdict.answer != verdicts.UNDECIDABLE)
    of_accuracy, of_f1 = np.concatenate(inside, axis=1)
    p_values = np.array(p_values)
    yield "difference in accuracy", of_accuracy, *world.expects(EXACT, (0.94, 1.0))
    yield "difference in macro F1", of_f1, (0.94, 1.0), JACKKNIFE
    yield "sign-flip test of accuracy, wrong", p_values[:, 0] <= 0.05, (0.02, 0.06), TIES
    yield "sign-flip test of macro F1, wrong", p_values[:, 1] <= 0.05, WRONG, ""
    yield "margin, decided at the margin", np.array(wrong), *world.expects(WRONG, (0.0, 0.06))


def mean_over_collections(world: World, accuracy: float) -> Measured:
    """Mean of the scores over collections, each with some of the species: `by_collection.mean_interval`."""
    by_class, found = world.accuracy_by_class(accuracy), []
    of_collections = np.arange(world.n_classes) % N_COLLECTIONS == np.arange(N_COLLECTIONS)[:, None]
    n_true = world.n_of_class * of_collections
    n_predicted = n_true * by_class + (n_true * (1 - by_class)) @ world.mistakes
    truth = np.mean(intervals.scores_of_counts(n_true, n_predicted, n_true * by_class), axis=1)
    for classes, n_clips in world.data_sets():
        difficulty = world.difficulties(len(classes))
        counts = [world.answers(classes, n_clips * here[classes], by_class, difficulty) for here in of_collections]
        for number in range(len(classes)):
            some = intervals.Counts(*map(np.stack, zip(*(one_of(one, number) for one in counts), strict=True)))
            found.append(holds(*by_collection.mean_interval(some)[1:], truth))
    for name, inside in zip(("accuracy", "macro F1"), np.transpose(found), strict=True):
        yield f"mean over collections, {name}", inside, (0.93, 0.99), JACKKNIFE


def rare_losses(world: World, accuracy: float) -> Measured:
    """Difference of two models that answer alike, but for a few clips that the second has wrong."""
    by_class, found, wrong = world.accuracy_by_class(accuracy), [], []
    critical, truth = intervals.critical_value(world.n_groups), accuracy * RARE
    for classes, n_clips in world.data_sets():
        first = world.answers(classes, n_clips, by_class, world.difficulties(len(classes)))
        n_lost = world.rng.binomial(first.n_hits.astype(int), RARE)
        n_all = first.n_true.sum(axis=(1, 2))
        estimate = -n_lost.sum(axis=(1, 2)) / n_all
        left_out = (-n_lost.sum(axis=(1, 2))[:, None] + n_lost.sum(axis=2)) / (
            n_all[:, None] - first.n_true.sum(axis=2)
        )
        error = intervals.standard_error(left_out)
        low, high = intervals.difference_interval(estimate, error, world.n_groups, critical)
        found.append(holds(low, high, -truth))
        wrong += [
            verdicts.within_margin(*ends, truth, world.n_groups, one).answer == verdicts.SHOWN
            for *ends, one in zip(low.tolist(), high.tolist(), error.tolist(), strict=True)
        ]
    yield "difference in few clips", np.concatenate(found), (0.94, 1.0), RARITY
    yield "margin, shown at the margin, few clips", np.array(wrong), (0.0, 0.03), RARITY


def many_models(world: World, accuracy: float) -> Measured:
    """Simultaneous intervals: of models to a reference, and of all pairs; and Holm's p values of equal models."""
    pairs = {
        "reference": [(i, 0) for i in range(1, N_CANDIDATES)],
        "all pairs": [(i, j) for i in range(N_CANDIDATES) for j in range(i)],
    }
    inside: dict[str, list] = {name: [] for name in pairs}
    rejected, flattered = [], []
    accuracies = np.full(N_CANDIDATES, accuracy)
    for models in world.models(accuracies):
        jackknives = [intervals.jackknife(one) for one in models]
        for number in range(len(models[0].n_true)):
            estimates = np.array([one.estimate[0, number] for one in jackknives])
            left_out = np.array([one.left_out[0, number] for one in jackknives])
            for name, some in pairs.items():
                first, second = np.array(some).T
                without = left_out[first] - left_out[second]
                critical = intervals.simultaneous_critical_value(without, number, n_draws=4000)
                error = intervals.standard_error(without)
                ends = intervals.difference_interval(
                    estimates[first] - estimates[second], error, world.n_groups, critical
                )
                inside[name].append(holds(*ends, 0.0).all())
            tables = [one_of(one, number) for one in models]
            p_values = [
                verdicts.p_values_of_counts(tables[0], other, n_draws=399, seed=number)[0] for other in tables[1:]
            ]
            rejected.append((verdicts.holm_adjusted(p_values) <= 0.05).any())
            if len(flattered) < 200:
                n_hits = np.array([table.n_hits.sum(axis=1) for table in tables])
                optimism = verdicts.optimism_of_best(n_hits, tables[0].n_true.sum(axis=1), n_resamples=400)
                flattered.append((estimates.max() - accuracy, optimism))
    gain, optimism = np.mean(flattered, axis=0)
    print(f"    best of {N_CANDIDATES} equal models: {gain:+.3f} by the choice, optimism {optimism:.3f}", flush=True)
    for name, held in inside.items():
        what = f"simultaneous, {name} of {N_CANDIDATES}"
        yield what, np.array(held), *world.expects(SIMULTANEOUS, (0.94, 1.0))
    yield "Holm, any wrong", np.array(rejected), (0.0, 0.06), HOLM


def recipe(world: World, accuracy: float) -> Measured:
    """Scores of a recipe: three trainings on each of five folds, three on one test set, one on each of five folds."""
    by_class = world.accuracy_by_class(accuracy)
    truth = world.truth(by_class)
    others = TRAINING_SPREAD**2 * (1 + world.spread**2)
    designs = {"5 folds x 3 trainings": (5, 3), "3 trainings": (1, 3), "5 folds x 1 training": (5, 1)}
    for name, (n_folds, n_trainings) in designs.items():
        folds = np.arange(world.n_groups) % n_folds
        inside = []
        for classes, n_clips in world.data_sets():
            common, tables, test_sets = world.difficulties(len(classes), 0.7), [], []
            for fold in range(n_folds):
                for _ in range(n_trainings):
                    own = world.difficulties(len(classes), 0.3) + world.rng.normal(size=(len(classes), 1)) * others**0.5
                    tested = np.where((folds == fold)[:, None], n_clips, 0)
                    tables.append(world.answers(classes, tested, by_class, common + own, others))
                    test_sets.append(fold)
            _, low, high = intervals.recipe_of_counts(tables, test_sets)
            inside.append(holds(low, high, truth[:, None]))
        of_accuracy, of_f1 = np.concatenate(inside, axis=1)
        why = TRAININGS if 1 in (n_folds, n_trainings) else ""
        yield f"recipe, accuracy, {name}", of_accuracy, *(((0.94, 0.99), why) if why else (SIMULTANEOUS, ""))
        yield f"recipe, macro F1, {name}", of_f1, (0.92, 0.99), why or JACKKNIFE


def mean_of_pairs(world: World, mean: float) -> Measured:
    """Mean over species of the scores of pairs of clips, as in graph convexity: `convexity.pair_interval`."""
    estimates, ends = [], []
    for classes, n_clips in world.data_sets():
        for cells, n_here in zip(classes, n_clips, strict=True):
            label_ids, groups = (
                np.repeat(cells.ravel(), n_here.ravel()),
                np.repeat(np.arange(len(cells)), n_here.sum(1)),
            )
            ones = [np.flatnonzero(label_ids == c) for c in np.unique(label_ids)]
            pairs = [(one[i], one[j]) for one in ones for i, j in [np.triu_indices(len(one), 1)]]
            first, second = (np.concatenate(ends_of_pairs) for ends_of_pairs in zip(*pairs, strict=True))
            of_group, same = world.rng.normal(0, PAIR_SPREAD, len(cells)), groups[first] == groups[second]
            score = mean + of_group[groups[first]] + of_group[groups[second]] + WITHIN_GROUP * same
            score = np.clip(score + world.rng.normal(0, PAIR_SPREAD, len(first)), 0, 1)
            species = label_ids[first]
            sums, counts = np.bincount(species, score), np.bincount(species)
            estimates.append((sums[counts > 0] / counts[counts > 0]).mean())
            ends.append(convexity.pair_interval(first, second, score, label_ids, groups))
    yield "mean of pairs", holds(*np.transpose(ends), np.mean(estimates)), (0.92, 0.99), PAIRS


def answers_of_several(
    world: World, auroc: float, classes: np.ndarray, n_clips: np.ndarray, n_models: int = 1
) -> list[multi_label.Answers]:
    """Draw outputs for clips with several labels or none; both arrays have the shape (n_groups, n_cells).

    Of several models, most of what a recordist does is the same for all (`COMMON`).
    """
    rng, n_classes = world.rng, world.n_classes
    first = np.repeat(classes.ravel(), n_clips.ravel())
    groups = np.repeat(np.arange(len(classes)), n_clips.sum(axis=1))
    targets, is_known = np.zeros((len(first), n_classes), bool), np.ones((len(first), n_classes), bool)
    has_one = rng.random(len(first)) >= SILENT
    targets[has_one, first[has_one]] = True
    for table, share in ((targets, SECOND), (is_known, SECONDARY)):
        clips = np.flatnonzero(has_one & (rng.random(len(first)) < share))
        table[clips, rng.integers(n_classes, size=len(clips))] = table is targets
    targets &= is_known

    def recordists(share: float) -> np.ndarray:
        """Return what they do to the sounds and to the noise, half of it of one label and half of all labels."""
        scale = np.sqrt(share / 2) * world.spread
        return scale * sum(rng.normal(size=(2, len(classes), n)) for n in (n_classes, 1))

    usual = ndtri(auroc) * np.sqrt(2 * (1 + world.spread**2) + SPECIES_SPREAD**2)
    common = recordists(1.0 if n_models == 1 else COMMON)
    models = []
    for _ in range(n_models):
        of_sound, of_noise = common if n_models == 1 else common + recordists(1 - COMMON)
        logits = np.where(targets, (usual + world.difficulty + of_sound)[groups], of_noise[groups])
        logits += rng.normal(size=logits.shape)
        is_detected = logits >= -ndtri(DETECTORS[auroc]) * np.sqrt(1 + world.spread**2)
        seconds = np.full(len(first), CLIP_SECONDS)
        models.append(multi_label.Answers(targets, is_known, logits, is_detected, groups, seconds))
    return models


def two_of_several_labels(world: World, auroc: float) -> Measured:
    """Difference in cmAP of two models that are equal, and its test, as in 03 --compare."""
    found = []
    for sets in world.data_sets():
        for one in zip(*sets, strict=True):
            models = [multi_label.compared(answers) for answers in answers_of_several(world, auroc, *one, n_models=2)]
            found.append(intervals.differences(models, [(0, 1)], multi_label.COMPARED)["macro_average_precision"])
    low, high, estimate, error = (
        np.concatenate([getattr(one, column) for one in found]) for column in ("low", "high", "estimate", "error")
    )
    p_values = [intervals.p_of_t(*pair, found[0].n_groups) for pair in zip(estimate, error, strict=True)]
    yield "difference in cmAP", holds(low, high, 0.0), *world.expects(EXACT, (0.94, 1.0))
    yield "t test of cmAP, wrong", np.array(p_values) <= 0.05, WRONG, ""


def several_labels(world: World, auroc: float) -> Measured:
    """Scores of several labels a clip, and precision and recall of the most frequent one: `multi_label.score_all`."""
    many = World(world.groups, N_TRUE, 1)
    many.spread = world.spread
    together = multi_label.joined(
        [answers_of_several(many, auroc, *one)[0] for sets in many.data_sets() for one in zip(*sets, strict=True)],
        of_one_model=True,
    )
    truth, label = multi_label.point_scores(together), int(world.n_of_class.argmax())
    is_true, is_detected = together.targets[:, label], (together.is_detected & together.is_known)[:, label]
    truth_of_label = {"precision": is_true[is_detected].mean(), "recall": is_detected[is_true].mean()}
    found = [
        multi_label.score_all(answers_of_several(world, auroc, *one)[0])
        for sets in world.data_sets()
        for one in zip(*sets, strict=True)
    ]
    expected = {
        "macro_average_precision": (world.expects((0.94, 0.99), (0.88, 0.98))[0], RANKS),
        "macro_auroc": ((0.94, 1.0), SMALL_MEAN),
        "macro_f1": ((0.92, 0.98), SMALL_MEAN),
        "false_alarms_per_hour": (world.expects((0.94, 1.0), (0.90, 1.0))[0], ALARMS),
    }
    usual = world.expects((0.93, 0.96), (0.90, 0.98))
    for name in multi_label.SCORES:
        yield (
            f"several labels, {name}",
            *_held([one.scores for one in found], name, truth[name], *expected.get(name, usual)),
        )
    of_label = [one.labels.loc[label] for one in found]
    for name, value in truth_of_label.items():
        yield f"several labels, {name} of one label", *_held(of_label, name, value, (0.94, 1.0), ONE_LABEL)


def _held(
    rows: Sequence[Mapping[str, float]], name: str, truth: float, expected: tuple[float, float], why: str
) -> tuple[np.ndarray, tuple[float, float], str]:
    """Return in which rows the interval of a score, where there is one, holds the truth; and what is expected."""
    low, high = (np.array([row[f"{name}_{end}"] for row in rows]) for end in ("low", "high"))
    return holds(low, high, truth)[np.isfinite(low)], expected, why


MEASURES: dict[str, Callable[[World, float], Measured]] = {
    "accuracy": one_model,
    "difference": two_models,
    "collections": mean_over_collections,
    "rare": rare_losses,
    "simultaneous": many_models,
    "recipe": recipe,
    "pairs": mean_of_pairs,
    "several": several_labels,
    "two of several": two_of_several_labels,
}


def plan(groups: Sequence[Groups]) -> Iterator[tuple[str, Groups, float, float]]:
    """Yield what is measured, on which groups, at which accuracy and resemblance."""
    whole = [one for one in groups if one.name.endswith(", all")]
    more = [whole[0].some(15), whole[-1].some(400)]
    for one in [*groups, *more]:
        yield from (("accuracy", one, accuracy, RESEMBLANCE) for accuracy in (0.1, 0.4, 0.6, 0.9))
    for one in whole:
        yield from (("accuracy", one, 0.4, resemblance) for resemblance in OTHER_RESEMBLANCES)
        yield from (("difference", one, 0.4, resemblance) for resemblance in OTHER_RESEMBLANCES)
    for one in groups:
        yield from (("difference", one, accuracy, RESEMBLANCE) for accuracy in (0.4, 0.6))
        if one.n_clips.sum() <= MOST_CLIPS_OF_SEVERAL:
            yield from (("several", one, auroc, RESEMBLANCE) for auroc in DETECTORS)
            yield "two of several", one, min(DETECTORS), RESEMBLANCE
    for one in whole:
        yield from ((what, one, 0.6, RESEMBLANCE) for what in ("collections", "rare", "simultaneous", "recipe"))
        yield from (("pairs", one, mean, RESEMBLANCE) for mean in (0.2, 0.4))


def measure(what: str, groups: Groups, accuracy: float, resemblance: float, draws: int, seed: int) -> list[Row]:
    """Return the rows of one measure."""
    key = zlib.crc32(f"{what} {groups.name} {accuracy} {resemblance} {seed}".encode())
    measured = MEASURES[what](World(groups, draws, key, resemblance), accuracy)
    return [
        Row(name, groups.name, accuracy, resemblance, float(np.mean(happened)), expected, len(happened), why)
        for name, happened, expected, why in measured
    ]


def line(row: Row) -> str:
    """Return a row as text."""
    low, high = row.expected
    state = "OUTSIDE" if row.is_outside else "ok"
    why = f"  ({row.why})" if row.why else ""
    about = f"{row.what:42} {row.groups:28} {row.accuracy:4.2f}  {row.resemblance:3.1f}"
    return f"{about}  {row.share:.3f} ± {1.96 * standard_error(row):.3f}  {low:.2f}-{high:.2f}  {state}{why}"


def standard_error(row: Row) -> float:
    """Return the Monte Carlo standard error of a share."""
    return float(np.sqrt(row.share * (1 - row.share) / row.draws))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add("--results_dir", type=Path, default=RESULTS_DIR, help="results of a study, whose groups are taken")
    add("--draws", type=cli.positive_int, default=2000, help="data sets drawn for each row")
    add("--only", choices=list(MEASURES), nargs="+", default=list(MEASURES), help="what to measure")
    add("--seed", type=int, default=0, help="of all draws")
    add("--log_level", choices=["info", "warning"], default="warning", help="lowest level to print")
    return parser


def run(args: argparse.Namespace) -> list[Row]:
    """Print and return all rows."""
    rows = []
    print(f"{'what':42} {'groups':28} {'acc.':4}  res.  share         expected", flush=True)
    for what, groups, accuracy, resemblance in plan(read_groups(args.results_dir)):
        if what in args.only:
            for row in measure(what, groups, accuracy, resemblance, args.draws, args.seed):
                print(line(row), flush=True)
                rows.append(row)
    outside = [line(row) for row in rows if row.is_outside]
    print("\n".join(f"{why}: {reason}" for why, reason in REASONS.items()))
    print("\n".join([f"{len(rows)} rows of {args.draws} draws, {len(outside)} outside their range", *outside]))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code, 1 where a row is outside its range."""
    rows: list[Row] = []
    code = cli.run_stage(build_parser(), lambda args: rows.extend(run(args)), argv)
    return code or int(any(row.is_outside for row in rows))


if __name__ == "__main__":
    sys.exit(main())
