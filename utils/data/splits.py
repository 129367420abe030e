"""Divide recordings into train, val and test, or into folds; each group stays on one side."""

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields

from utils.core.errors import UsageError
from utils.core.text import some

SPLITS = ("train", "val", "test")
# Names, in logs and tables, of the units that a split keeps together.
UNITS = {
    "recordist": "recordist",
    "recordist_and_species": "recordist and species",
    "recording": "recording",
    "clip": "clip",
}
SPLIT_BY = tuple(UNITS)
BY_RECORDIST = SPLIT_BY[:2]
FEWEST_FOLDS = 3
FOLDS = tuple(f"fold-{number}" for number in range(1, 21))
NAMES_OF_SPLITS = (*SPLITS, *FOLDS)
MAX_ORDERS = 5000  # of folds
UNIT_NOT_NOTED = "an unknown unit"  # of data of an earlier version

# A class with fewer groups than splits is left out of val first, then of test. A class that is tested but not trained
# gives no useful score, so no gain in other classes can take a class out of train. The weight is the cost of a class
# that is not in the split.
MISSING_WEIGHT = {"train": 1000, "test": 2, "val": 1}

MAX_STARTS = 50
MAX_STARTS_WITHOUT_GAIN = 5
MAX_PASSES = 20
MAX_TRIALS = 400_000  # of a move; then there is no new start: a few seconds
PARTNERS = 16
NEAR_ENOUGH = 0.005  # a class with shares this close to the fractions is not improved further


def group_keys(
    split_by: str,
    label: str,
    recordist: str | None,
    recording_id: str,
    audio_sha256: str,
    clip_id: str,
    origin: str | None = None,
) -> list[str]:
    """Return the keys of an item (a clip, or a recording): items that share a key stay together.

    Clips of a recording stay together, and so do recordings with the same decoded audio or of one origin.
    ``recordist`` also keeps all recordings by one recordist together; ``recordist_and_species`` only those of one
    label. A recording without a known recordist is by itself. ``clip`` keeps together only clips at the same place
    of equal audio.

    Parameters
    ----------
    split_by : {"recordist", "recordist_and_species", "recording", "clip"}
    label, recording_id : str
    recordist : str or None
        None if unknown.
    audio_sha256 : str
        Checksum of the recording's decoded audio.
    clip_id : str
        ``<recording_id>:<index>``; used with ``clip`` only.
    origin : str, optional
        Id that the pieces of one original recording share, even under different labels.

    Returns
    -------
    list of str
        `merge_groups` may name the group after the first one.
    """
    if split_by == "clip":
        index = clip_id.rpartition(":")[2]
        return [clip_id, f"audio:{audio_sha256}:{index}"]
    keys = [recording_id, f"recording:{recording_id}", f"audio:{audio_sha256}"]
    if origin is not None:
        keys.append(f"origin:{origin}")
    if recordist is not None and split_by in BY_RECORDIST:
        keys[0] = recordist if split_by == "recordist" else f"{recordist}|{label}"
    return keys


def kept_together(split_by: str, n_known: int, n_recordings: int) -> str:
    """Return the unit that a split keeps together if the recordist of `n_known` of `n_recordings` is known."""
    unit = UNITS[split_by]
    if split_by in ("recording", "clip") or n_known == n_recordings:
        return unit
    if n_known == 0:
        return UNITS["recording"]
    percent = min(max(round(100 * n_known / n_recordings), 1), 99)
    return f"{unit} for {percent} % of the recordings, recording for the rest"


def merge_groups(keys: Sequence[Iterable[str]]) -> list[str]:
    """Return the group of every item: items are in one group if a chain of shared keys links them.

    Parameters
    ----------
    keys : sequence of iterable of str
        Keys of every item, at least one each.

    Returns
    -------
    list of str
        Name of each item's group: the first in alphabetical order of its items' first keys, such as
        ``Lars Lachmann|Accipiter_gentilis`` or ``XC123``.
    """
    keys = [list(item) for item in keys]
    parent = {key: key for item in keys for key in item}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for first, *others in keys:
        for other in others:
            parent[root(other)] = root(first)
    names: dict[str, str] = {}
    for first, *_ in keys:
        names[root(first)] = min(first, names.get(root(first), first))
    return [names[root(item[0])] for item in keys]


def assign_splits(
    groups: Sequence[str],
    labels: Sequence[str],
    weights: Sequence[int],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, str], list[str]]:
    """Divide groups into train, val and test, stratified by label.

    The first aim is that every label is in every split. A label with one group is in train only, with two groups in
    train and test, with three in all. This is guaranteed if every group is of one label. If groups span labels
    (``recordist``) it may be impossible. The search starts greedily from the rarest label, then moves and exchanges
    groups, from several seeded starts.

    The second aim is that the shares of every label, and of all labels, are close to the fractions. The search
    minimises, over labels c and splits s, the sum of (w_cs - f_s W_c)^2 / (W W_c), plus the same term for all labels
    together. w_cs is the weight of c in s, W_c its sum over splits, W the sum over labels, f_s the fraction.

    Parameters
    ----------
    groups, labels : sequence of str
        Group and label of every item.
    weights : sequence of int
        Clips of every item, at least 1.
    val_fraction, test_fraction : float
        Shares of the clips, in [0, 1), with a sum below 1; 0 leaves the split empty.
    seed : int
        The result depends only on the seed and the items, not on their order.

    Returns
    -------
    split_of : dict of str to str
        Split of every group.
    warnings : list of str
        Labels that are not in every split, by name, and empty splits.

    Raises
    ------
    UsageError
        If the fractions leave no clips for training.
    """
    fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    if fractions["train"] <= 1e-9 or min(fractions.values()) < 0:
        raise UsageError(
            f"--val_fraction {val_fraction} and --test_fraction {test_fraction} leave nothing to train on; "
            "expected fractions of at least 0 with a sum below 1"
        )
    if min(weights, default=1) < 1:
        raise ValueError("every item needs a weight of at least 1")
    division = _Division(groups, labels, weights, fractions, random.Random(seed))
    division.search()
    return division.split_of(), division.warnings()


# --------------------------------------------------------------------------------------------------- folds


def names_of_parts(n_folds: int | None) -> tuple[str, ...]:
    """Return the parts of a data set: the splits, or train and the folds."""
    return SPLITS if n_folds is None else ("train", *FOLDS[:n_folds])


def split_in_fold(name: str, fold: int, n_folds: int) -> str:
    """Return the split that a group is in when `fold` is tested: the next fold is val, all others are train.

    Parameters
    ----------
    name : str
        Fold of the group; ``train`` if the group is trained on in each fold.
    fold, n_folds : int
        The fold that is tested, from 1, and the number of folds.
    """
    return {FOLDS[fold - 1]: "test", FOLDS[fold % n_folds]: "val"}.get(name, "train")


def assign_folds(
    groups: Sequence[str], labels: Sequence[str], weights: Sequence[int], n_folds: int, seed: int
) -> tuple[dict[str, str], list[str]]:
    """Assign groups to folds, stratified by label, so that each group is tested once.

    The search is that of `assign_splits` with equal shares. A label should be in as many folds as possible. When a
    fold is tested, the next one is val. If all groups of a label are in two neighbouring folds, the label would be
    tested without training. The numbers of the folds keep such labels few. The smallest group of such a label is
    trained on in each fold and never tested.

    Parameters
    ----------
    groups, labels : sequence of str
        Group and label of every item.
    weights : sequence of int
        Clips of every item, at least 1.
    n_folds : int
    seed : int

    Returns
    -------
    fold_of : dict of str to str
        One of `FOLDS` for every group, or ``train``.
    warnings : list of str
        Labels with a group that is never tested, by name.

    Raises
    ------
    UsageError
        If a fold would be empty.
    """
    names = FOLDS[:n_folds]
    division = _Division(groups, labels, weights, dict.fromkeys(names, 1 / n_folds), random.Random(seed))
    if (n_groups := len(division.group_names)) < n_folds:
        advice = "give fewer folds" if n_groups >= FEWEST_FOLDS else "add recordings by more recordists"
        raise UsageError(f"--folds {n_folds}: there are only {n_groups} groups; {advice}")
    division.search()
    fold_of = division.split_of()
    groups_of = defaultdict(set)
    for group, label in zip(groups, labels, strict=True):
        groups_of[label].add(group)
    order = _best_order(names, [{fold_of[group] for group in own} for own in groups_of.values()])
    fold_of = {group: order[name] for group, name in fold_of.items()}

    n_clips: Counter[str] = Counter()
    for group, weight in zip(groups, weights, strict=True):
        n_clips[group] += weight
    kept_in_train = defaultdict(list)
    for label, own in sorted(groups_of.items()):
        if _lacks_training({fold_of[group] for group in own}, n_folds):
            smallest = min(own, key=lambda group: (n_clips[group], group))
            fold_of[smallest] = "train"
            kept_in_train[len(own) == 1].append(f"{label} ({n_clips[smallest]} clips)")
    warnings = [
        "labels whose recordings are all of one group are trained on in each fold and never tested: "
        if is_alone
        else "labels with too few groups for training in each fold: their smallest group is never tested: "
        for is_alone in kept_in_train
    ]
    warnings = [text + some(kept_in_train[alone]) for text, alone in zip(warnings, kept_in_train, strict=True)]
    if empty := sorted(set(names) - set(fold_of.values())):
        raise UsageError(
            f"--folds {n_folds}: nothing is left for {some(empty)}: the labels have too few groups. Give fewer folds, "
            "or recordings of each label by more recordists"
        )
    return fold_of, warnings


def _lacks_training(folds: Collection[str], n_folds: int) -> bool:
    """Return whether a label in these folds has no training clips when one of them is tested."""
    return any(
        all(split_in_fold(name, fold, n_folds) != "train" for name in folds)
        for fold in range(1, n_folds + 1)
        if FOLDS[fold - 1] in folds
    )


def _best_order(names: Sequence[str], folds_of_labels: list[set[str]]) -> dict[str, str]:
    """Return a new name of each fold, so that the fewest labels have all their groups in two neighbouring folds."""
    pairs = Counter(frozenset(folds) for folds in folds_of_labels if len(folds) == 2)

    def n_neighbours(order: Sequence[str]) -> int:
        return sum(pairs[frozenset((one, other))] for one, other in zip(order, [*order[1:], order[0]], strict=True))

    orders = ((names[0], *rest) for rest in itertools.permutations(names[1:]))
    best = min(itertools.islice(orders, MAX_ORDERS), key=n_neighbours)  # the first of equals
    return dict(zip(best, names, strict=True))


# ------------------------------------------------------------------------------------- recordists in train


@dataclass(frozen=True)
class Heard:
    """Numbers of scored clips, by whether their recordist is in train.

    Attributes
    ----------
    n_clips : int
        All of them.
    same_species, other_species : int
        Clips whose recordist is in train with the same label, or with one of several labels; with other labels only.
    unknown : int
        Clips of unknown recordist.
    """

    n_clips: int = 0
    same_species: int = 0
    other_species: int = 0
    unknown: int = 0

    def __add__(self, other: "Heard") -> "Heard":
        return Heard(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        same, others, unknown = (
            f"{n} ({n / max(self.n_clips, 1):.0%})" for n in (self.same_species, self.other_species, self.unknown)
        )
        return (
            f"recordist heard in train with the same species {same}, with another species {others}, unknown {unknown}"
        )


def who_was_heard(items: Iterable[tuple[str, Collection[str], Collection[str], int]], split: str = "test") -> Heard:
    """Count the clips of a split whose recordist is in train.

    Parameters
    ----------
    items : iterable of (str, collection of str, collection of str, int)
        Split, labels, recordists (none if unknown) and number of clips.
    split : str
        The split that scores the model.
    """
    items = list(items)
    train = [(labels, recordists) for where, labels, recordists, _ in items if where == "train"]
    in_train = {(name, label) for labels, recordists in train for name in recordists for label in labels}
    names_in_train = {name for _, recordists in train for name in recordists}
    counts: Counter[str] = Counter()
    for where, labels, recordists, n_clips in items:
        if where != split:
            continue
        counts["n_clips"] += n_clips
        if not recordists:
            counts["unknown"] += n_clips
        elif any((name, label) in in_train for name in recordists for label in labels):
            counts["same_species"] += n_clips
        elif names_in_train.intersection(recordists):
            counts["other_species"] += n_clips
    return Heard(**counts)


# ---------------------------------------------------------------------------------------------- the search


class _Division:
    """A division of groups, its cost, and the search for a better one.

    Names are replaced by numbers. Rows of the tables are labels; the last row is all labels together. Columns are the
    splits that have a fraction.
    """

    def __init__(self, groups, labels, weights, fractions: dict[str, float], rng: random.Random):
        self.rng = rng
        self.splits = [split for split in fractions if fractions[split] > 0]
        self.group_names = sorted(set(groups))
        self.label_names = sorted(set(labels))
        self.everything = len(self.label_names)
        group_ids = {name: i for i, name in enumerate(self.group_names)}
        label_ids = {name: i for i, name in enumerate(self.label_names)}
        content: list[dict[int, int]] = [{} for _ in self.group_names]
        for group, label, weight in zip(groups, labels, weights, strict=True):
            row = content[group_ids[group]]
            for key in (label_ids[label], self.everything):
                row[key] = row.get(key, 0) + int(weight)
        self.content = [sorted(row.items()) for row in content]  # of a group: (label, weight), all labels last
        self.members: list[list[int]] = [[] for _ in range(self.everything + 1)]
        for group, row in enumerate(self.content):
            for label, _ in row:
                self.members[label].append(group)
        totals = [sum(dict(self.content[g])[label] for g in m) for label, m in enumerate(self.members)]
        self.totals = totals
        self.targets = [[fractions[split] * total for split in self.splits] for total in totals]
        total = totals[self.everything]
        self.scales = [1 / (total * t) if t else 0.0 for t in totals]
        # Cost of a label that has no group in a split; 0 if it needs none there.
        priority = sorted(self.splits, key=lambda split: -MISSING_WEIGHT.get(split, 0))
        self.missing = []
        for members in self.members[: self.everything]:
            # Folds are equal: a label gains from each fold that has it.
            needed = [split for i, split in enumerate(priority) if i < len(members) or split in FOLDS]
            self.missing.append([MISSING_WEIGHT.get(split, 1) if split in needed else 0 for split in self.splits])
        self.missing.append([0] * len(self.splits))
        self.clear()

    def clear(self) -> None:
        self.place = [-1] * len(self.content)
        self.sums = [[0] * len(self.splits) for _ in self.members]
        self.counts = [[0] * len(self.splits) for _ in self.members]

    # ------------------------------------------------------------------------------------------------ cost

    def cost(self) -> tuple[int, float]:
        """Return the cost of labels missing in splits, and the squared distance of the shares from the fractions."""
        missing, distance = 0, 0.0
        for label, scale in enumerate(self.scales):
            for split in range(len(self.splits)):
                if not self.counts[label][split]:
                    missing += self.missing[label][split]
                distance += scale * (self.sums[label][split] - self.targets[label][split]) ** 2
        return missing, distance

    def put(self, group: int, split: int) -> tuple[int, float]:
        """Move a group, or place it for the first time; return by how much the cost grows."""
        before = self.place[group]
        self.place[group] = split
        missing, distance = 0, 0.0
        for label, weight in self.content[group]:
            sums, counts = self.sums[label], self.counts[label]
            targets, needs, scale = self.targets[label], self.missing[label], self.scales[label]
            if before >= 0:
                distance += scale * weight * (weight - 2 * (sums[before] - targets[before]))
                sums[before] -= weight
                counts[before] -= 1
                if not counts[before]:
                    missing += needs[before]
            if not counts[split]:
                missing -= needs[split]
            distance += scale * weight * (weight + 2 * (sums[split] - targets[split]))
            sums[split] += weight
            counts[split] += 1
        return missing, distance

    # ---------------------------------------------------------------------------------------------- search

    def search(self) -> None:
        self.trials = 0
        best, best_place, n_without_gain = (math.inf, math.inf), [], 0
        for _ in range(MAX_STARTS):
            self.clear()
            self.start()
            self.improve()
            cost = self.cost()
            n_without_gain += 1
            if cost < (best[0], best[1] - 1e-12):
                best, best_place, n_without_gain = cost, list(self.place), 0
            is_done = cost[0] == 0 and all(map(self.is_near_enough, range(len(self.members))))
            if is_done or n_without_gain == MAX_STARTS_WITHOUT_GAIN or self.trials > MAX_TRIALS:
                break
        self.clear()
        for group, split in enumerate(best_place):
            self.put(group, split)

    def start(self) -> None:
        """Place the groups one by one: the rarest labels first, and of these first a group that fills a split alone."""
        self.trials += len(self.content)
        order = list(range(len(self.content)))
        self.rng.shuffle(order)
        order.sort(key=self.precedence)
        left = [len(members) for members in self.members]
        for group in order:
            self.put(group, min(self.random_splits(), key=lambda split: self.urgency(group, split, left)))
            for label, _ in self.content[group]:
                left[label] -= 1

    def precedence(self, group: int) -> tuple[int, bool]:
        row = self.content[group][:-1]
        rarity = min(len(self.members[label]) for label, _ in row)
        return rarity, all(weight <= min(self.targets[label]) for label, weight in row)

    def random_splits(self) -> list[int]:
        splits = list(range(len(self.splits)))
        self.rng.shuffle(splits)
        return splits

    def urgency(self, group: int, split: int, left: list[int]) -> tuple[int, float]:
        """Return the cost of placing a group in a split; `left` counts the unplaced groups of each label."""
        owed, distance = 0, 0.0
        for label, weight in self.content[group][:-1]:  # without the sum of all labels: most are not placed yet
            needs, counts = self.missing[label], self.counts[label]
            empty = [s for s in range(len(self.splits)) if needs[s] and not counts[s]]
            if len(empty) >= left[label] and empty:  # every group that is left must fill a gap
                owed -= needs[split] if split in empty else 0
            excess = self.sums[label][split] - self.targets[label][split]
            distance += self.scales[label] * weight * (weight + 2 * excess)
        return owed, distance

    def improve(self) -> None:
        """Move and exchange groups until no change improves the division."""
        for _ in range(MAX_PASSES):
            worth_trying = [not self.is_near_enough(label) for label in range(len(self.members))]
            order = [g for g, row in enumerate(self.content) if any(worth_trying[label] for label, _ in row)]
            self.rng.shuffle(order)
            n_improved = sum(self.improve_group(group) for group in order)
            if not n_improved:
                return

    def is_near_enough(self, label: int) -> bool:
        if any(need and not count for need, count in zip(self.missing[label], self.counts[label], strict=True)):
            return False
        tolerance = NEAR_ENOUGH * self.totals[label]
        pairs = zip(self.sums[label], self.targets[label], strict=True)
        return all(abs(weight - target) <= tolerance for weight, target in pairs)

    def improve_group(self, group: int) -> bool:
        home = self.place[group]
        for split in self.random_splits():
            if split != home and self.keep_if_better([(group, split)]):
                return True
        for partner in self.partners(group):
            away = self.place[partner]
            if away != home and self.keep_if_better([(group, away), (partner, home)]):
                return True
        return False

    def partners(self, group: int) -> list[int]:
        """Return groups to exchange with: some of each of its labels; of any label if it has several."""
        row = self.content[group]
        partners: list[int] = []
        for label, _ in row[:-1] if len(row) == 2 else row:
            members = self.members[label]
            partners += members if len(members) <= PARTNERS else self.rng.sample(members, PARTNERS)
        return list(dict.fromkeys(partners))

    def keep_if_better(self, moves: list[tuple[int, int]]) -> bool:
        self.trials += 1
        before = [(group, self.place[group]) for group, _ in moves]
        missing, distance = 0, 0.0
        for group, split in moves:
            d_missing, d_distance = self.put(group, split)
            missing += d_missing
            distance += d_distance
        if (missing, distance) < (0, -1e-12):
            return True
        for group, split in reversed(before):
            self.put(group, split)
        return False

    # --------------------------------------------------------------------------------------------- results

    def split_of(self) -> dict[str, str]:
        return {name: self.splits[self.place[group]] for group, name in enumerate(self.group_names)}

    def warnings(self) -> list[str]:
        """Name the labels that are not in every split, and the splits that are empty."""
        found: dict[str, list[str]] = {}
        for label, name in enumerate(self.label_names):
            absent = [s for s, count in zip(self.splits, self.counts[label], strict=True) if not count]
            if not absent:
                continue
            n_groups = len(self.members[label])
            if n_groups < len(self.splits):
                why = f"with {n_groups} group{'s' if n_groups > 1 else ''}"
            else:
                why = "whose groups also contain other labels, so that no better division was found,"
            found.setdefault(f"labels {why} are not in {' and '.join(absent)}", []).append(name)
        warnings = [f"{what}: {some(names)}" for what, names in sorted(found.items())]
        empty = [s for s, count in zip(self.splits, self.counts[self.everything], strict=True) if not count]
        warnings += [f"the split {split} is empty: there are too few groups" for split in empty]
        return warnings
