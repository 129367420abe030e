"""Rules and searches that choose the blocks to keep.

Blocks are numbered from 0 in the given model. Hidden layer 0 is the input of block 0, hidden layer l the
output of block l-1. A kept list is an ascending tuple of blocks. Blocks in `protected` are never removed. If
it is empty, every list still keeps at least one block, except with ``convexity_peak`` and with a requested
size of 0.

Of two equally good choices the one that removes the later block is taken, if nothing else is documented: in
the published study the early blocks mattered most. A block whose number is not finite is never removed.
"""

import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields

import numpy as np

from utils.core.errors import InputError, UsageError

log = logging.getLogger(__name__)

Keep = tuple[int, ...]
Evaluate = Callable[[list[Keep]], Sequence[float]]

FIRST_BLOCK = frozenset({0})
SEARCHES = ("greedy", "beam", "exhaustive", "race")
# The --metrics of 04_analysis.py that measure each kind of evidence.
METRICS = {
    "block_influence": "block_influence",
    "knn_block_influence": "mutual_knn",
    "angular_distance": "angular_distance",
    "linear_residual": "linear_residual",
    "cka": "cka",
    "convexity": "graph_convexity",
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """Measurements of 04_analysis.py on a model; None if not measured.

    Attributes
    ----------
    block_influence, knn_block_influence : ndarray of float, shape (n_layers,), or None
        Influence of every block.
    angular_distance : ndarray of float, shape (n_layers + 1, n_layers + 1), or None
        Entry [i, j], i < j, is the distance between hidden layers i and j; other entries are not read.
    linear_residual : ndarray of float, shape (n_layers + 1, n_layers + 1), or None
        Entry [i, j], i < j, is the squared error of a linear map between hidden layers i and j; see `linear_maps`.
    cka : ndarray of float, shape (n_layers + 1, n_layers + 1), or None
        Similarity of hidden layers; only entries [i, j], i < j, are read.
    convexity : ndarray of float, shape (n_layers + 1,), or None
        Graph convexity of every hidden layer.
    """

    block_influence: np.ndarray | None = None
    knn_block_influence: np.ndarray | None = None
    angular_distance: np.ndarray | None = None
    linear_residual: np.ndarray | None = None
    cka: np.ndarray | None = None
    convexity: np.ndarray | None = None


@dataclass(frozen=True)
class Candidate:
    """A kept list, ascending, with the rule that proposes it and the number of blocks it removes."""

    rule: str
    keep: Keep
    n_removed: int


@dataclass(frozen=True)
class Rule:
    """A rule without search: the evidence it needs and its removed lists.

    Attributes
    ----------
    needs : tuple of str
        Names of `Evidence`'s fields.
    removals : callable
        Takes a `_Task`, returns the removed blocks of each candidate.
    several : bool
        Whether a depth may have more than one candidate.
    """

    needs: tuple[str, ...]
    removals: Callable[["_Task"], Iterable[Collection[int]]]
    several: bool = False

    def __post_init__(self):
        if unknown := set(self.needs) - set(METRICS):
            raise ValueError(f"a rule needs {', '.join(sorted(unknown))}, but METRICS names no metric of 04 for it")


@dataclass(frozen=True)
class _Task:
    """Input of a rule; `removable` is ascending, `most` is the largest number of blocks to remove."""

    n_layers: int
    removable: list[int]
    most: int
    evidence: Evidence
    seed: int
    n_random: int
    convexity_tolerance: float


def candidates(
    rule: str,
    n_layers: int,
    evidence: Evidence | None = None,
    protected: AbstractSet[int] = FIRST_BLOCK,
    seed: int = 0,
    n_random: int = 5,
    convexity_tolerance: float = 0.02,
) -> list[Candidate]:
    """Return the kept lists that a rule without search proposes, by number of removed blocks.

    A rule gives one list for each number of removed blocks from 1 to ``n_layers - max(1, len(protected))``,
    if nothing else is documented below. Protected blocks are skipped.

    - ``forward``: removes the first, the first two, …; ``backward``: the last, the last two, ….
    - ``middle``: removes the block at the centre, then its neighbours outwards, one at a time; of two equally
      near blocks the later one first. It keeps the first and the last block.
    - ``single``: removes one block, each in turn.
    - ``alternate``: removes 1, then 1 and 3, …, until every other block is gone.
    - ``simple_deep``: the deepest n except the last (Gromov et al. 2024, arXiv 2403.17887).
    - ``random``: `n_random` different lists for each number, drawn uniformly; all lists if there are no
      more than `n_random`.
    - ``block_influence`` (Men et al. 2024, arXiv 2403.03853), ``knn_block_influence`` (Dorszewski et
      al. 2024, arXiv 2409.16302): by ascending influence, measured once on the whole model.
    - ``angular_block`` (Gromov et al. 2024), ``cka_block``, ``linear_block``: the n adjacent blocks l … l+n-1
      with the least distance between hidden layers l and l+n. The distance is the angular distance, 1 - CKA,
      or the share of the change that a linear map does not predict (`layers.linear_maps`). Of equal runs
      the one with the lower l; no list if every such run holds a protected block.
    - ``convexity_peak`` (Dorszewski et al. 2024, arXiv 2408.11858): one list, blocks 0 … l-1 for the
      first hidden layer l whose convexity is at most `convexity_tolerance` below the best. It may
      remove nothing (the last layer is best) or all blocks that are not protected (l = 0).

    Parameters
    ----------
    rule : str
        A name in `RULES`.
    n_layers : int
        Number of blocks; fewer than 2 leave nothing to choose.
    evidence : Evidence or None
        The evidence in the rule's ``needs``.
    protected : set of int
        Blocks that every list keeps.
    seed, n_random : int
        Seed and number of lists of ``random``.
    convexity_tolerance : float
        Tolerance of ``convexity_peak``, in units of convexity.

    Returns
    -------
    list of Candidate

    Raises
    ------
    UsageError
        If there is no such rule, or a protected block does not exist.
    InputError
        If evidence that the rule needs is missing or without a finite number, or if any evidence is of a
        model with another number of blocks.
    """
    _check_name(rule, RULES)
    if n_layers < 2:
        return []
    evidence = evidence or Evidence()
    check_evidence(n_layers, evidence)
    missing = missing_evidence(rule, evidence)
    if missing:
        raise InputError(
            f"rule {rule} needs {' and '.join(missing)}, but there is no finite number of it; "
            f"run 04_analysis.py with --metrics {' '.join(METRICS[name] for name in missing)}"
        )
    task = _Task(
        n_layers,
        removable=_removable(n_layers, protected),
        most=n_layers - max(1, len(protected)),
        evidence=evidence,
        seed=seed,
        n_random=n_random,
        convexity_tolerance=convexity_tolerance,
    )
    return [_without(rule, n_layers, removed) for removed in RULES[rule].removals(task)]


def missing_evidence(rule: str, evidence: Evidence) -> list[str]:
    """Return the names of the evidence that a rule of `RULES` needs and that has no finite number."""
    return [name for name in RULES[rule].needs if not _has_number(getattr(evidence, name))]


def iterative(
    rule: str, n_layers: int, measure: Callable[[Keep], np.ndarray], protected: AbstractSet[int] = FIRST_BLOCK
) -> list[Candidate]:
    """Remove the least influential block, measure the pruned model, and repeat.

    Parameters
    ----------
    rule : str
        A name in `ITERATIVE`; candidates carry it with ``_iterative`` added.
    n_layers : int
        Number of blocks of the whole model.
    measure : callable
        Takes a kept list, returns the influence of each of its blocks in the model that keeps only these,
        shape (len(keep),). Called once for each removal, first with all blocks.
    protected : set of int
        Blocks that are never removed.

    Returns
    -------
    list of Candidate
        One for each number of removed blocks, until no removable block has a finite influence.

    Raises
    ------
    UsageError
        If the rule has no iterative form, or a protected block does not exist.
    InputError
        If no block of the whole model has a finite influence.
    """
    _check_name(rule, ITERATIVE)
    if n_layers < 2:
        return []
    removable = set(_removable(n_layers, protected))
    keep = tuple(range(n_layers))
    found: list[Candidate] = []
    for n_removed in range(1, n_layers - max(1, len(protected)) + 1):
        influence = dict(zip(keep, measure(keep), strict=True))
        if not found and not _has_number(np.array(list(influence.values()))):
            raise InputError(f"{rule} is not finite for any block: check the model's weights for NaN")
        order = _by_influence(influence, removable)
        if not order:
            break
        keep = tuple(block for block in keep if block != order[0])
        found.append(Candidate(f"{rule}_iterative", keep, n_removed))
    return found


def greedy(n_layers: int, evaluate: Evaluate, protected: AbstractSet[int] = FIRST_BLOCK) -> list[Candidate]:
    """Remove the block whose removal costs the least, and repeat; this is `beam` with width 1."""
    return _beam("greedy", n_layers, evaluate, protected, width=1)


def beam(
    n_layers: int, evaluate: Evaluate, protected: AbstractSet[int] = FIRST_BLOCK, width: int = 4
) -> list[Candidate]:
    """Remove blocks one by one, following the `width` best kept lists of each depth.

    A plain beam can drop the list that `greedy` follows, and end below it. Here that list always has one of
    the places. So the beam is at least as good as greedy at every depth.

    Parameters
    ----------
    n_layers : int
        Number of blocks.
    evaluate : callable
        Takes kept lists, returns their scores, higher is better. Called once per depth with all lists of
        that depth, so that it can share their prefixes. NaN is the worst score.
    protected : set of int
        Blocks that every list keeps.
    width : int
        Lists to follow at each depth, at least 1.

    Returns
    -------
    list of Candidate
        The best list of each number of removed blocks from 1 to ``n_layers - max(1, len(protected))``;
        of equal ones the first in lexicographic order, which removes the later block.

    Raises
    ------
    UsageError
        If the width is below 1, or a protected block does not exist.
    """
    if width < 1:
        raise UsageError(f"a beam has a width of at least 1, got {width}")
    return _beam("beam", n_layers, evaluate, protected, width)


def exhaustive(
    n_layers: int, evaluate: Evaluate, protected: AbstractSet[int] = FIRST_BLOCK, sizes: Collection[int] | None = None
) -> list[Candidate]:
    """Evaluate every kept list of the requested sizes and return the best of each.

    Parameters
    ----------
    n_layers, protected
        As in `beam`.
    evaluate : callable
        As in `beam`, but called once with the lists of all sizes: lists of different sizes share prefixes.
    sizes : collection of int, optional
        Numbers of blocks to keep; by default all but the whole model.

    Returns
    -------
    list of Candidate
        The best list of each size, by number of removed blocks; of equal ones the first in lexicographic
        order.

    Raises
    ------
    UsageError
        If a size is impossible, or a protected block does not exist.
    """
    if n_layers < 2:
        return []
    if sizes is None:
        sizes = range(max(1, len(protected)), n_layers)
    return best_of_sizes("exhaustive", n_layers, evaluate, list(all_subsets(n_layers, protected, sizes)))


def best_of_sizes(rule: str, n_layers: int, evaluate: Evaluate, keeps: list[Keep]) -> list[Candidate]:
    """Return the best of some kept lists for each size, as `exhaustive` does for all."""
    best: dict[int, Keep] = {}
    for keep in _best_first(_evaluate(evaluate, keeps)):
        best.setdefault(n_layers - len(keep), keep)
    return [Candidate(rule, best[n_removed], n_removed) for n_removed in sorted(best)]


def all_subsets(
    n_layers: int, protected: AbstractSet[int] = FIRST_BLOCK, sizes: Collection[int] | None = None
) -> Iterator[Keep]:
    """Yield every kept list of the requested sizes that holds the protected blocks.

    The largest lists come first; lists of one size are in lexicographic order. The default is all sizes,
    including the whole model but not the empty list.

    Raises
    ------
    UsageError
        If a size is impossible, or a protected block does not exist.
    """
    removable = _removable(n_layers, protected)
    for size in _checked_sizes(n_layers, protected, sizes):
        for others in itertools.combinations(removable, size - len(protected)):
            yield tuple(sorted({*protected, *others}))


def n_subsets(n_layers: int, protected: AbstractSet[int] = FIRST_BLOCK, sizes: Collection[int] | None = None) -> int:
    """Return how many lists `all_subsets` yields, without making them."""
    n_removable = len(_removable(n_layers, protected))
    return sum(math.comb(n_removable, size - len(protected)) for size in _checked_sizes(n_layers, protected, sizes))


# ---------------------------------------------------------------------------------------------- the rules


def _prefixes(order: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    """Yield the first, the first two, … of `order`, `most` at most."""
    for n_removed in range(1, min(len(order), most) + 1):
        yield order[:n_removed]


def _forward(task: _Task) -> Iterator[Sequence[int]]:
    return _prefixes(task.removable, task.most)


def _backward(task: _Task) -> Iterator[Sequence[int]]:
    return _prefixes(task.removable[::-1], task.most)


def _middle(task: _Task) -> Iterator[Sequence[int]]:
    last = task.n_layers - 1
    inner = [block for block in task.removable if 0 < block < last]
    return _prefixes(sorted(inner, key=lambda block: (abs(2 * block - last), -block)), task.most)


def _single(task: _Task) -> Iterator[Sequence[int]]:
    return ((block,) for block in task.removable)


def _alternate(task: _Task) -> Iterator[Sequence[int]]:
    return _prefixes([block for block in task.removable if block % 2], task.most)


def _simple_deep(task: _Task) -> Iterator[Sequence[int]]:
    return _prefixes([block for block in reversed(task.removable) if block < task.n_layers - 1], task.most)


def _random(task: _Task) -> Iterator[Sequence[int]]:
    rng = np.random.default_rng(task.seed)
    for n_removed in range(1, task.most + 1):
        if math.comb(len(task.removable), n_removed) <= task.n_random:
            yield from itertools.combinations(task.removable, n_removed)
            continue
        drawn: dict[Keep, None] = {}  # an ordered set
        while len(drawn) < task.n_random:
            drawn[tuple(sorted(rng.choice(task.removable, n_removed, replace=False).tolist()))] = None
        yield from drawn


def _least_influence(name: str) -> Callable[[_Task], Iterator[Sequence[int]]]:
    def removals(task: _Task) -> Iterator[Sequence[int]]:
        influence = dict(enumerate(getattr(task.evidence, name)))
        order = _by_influence(influence, task.removable)
        if len(order) < len(task.removable):
            unknown = sorted(set(task.removable) - set(order))
            log.warning("%s of blocks %s is not finite: they are never removed", name, unknown)
        return _prefixes(order, task.most)

    return removals


def _by_influence(influence: Mapping[int, float], removable: Collection[int]) -> list[int]:
    """Return the removable blocks of finite influence, in the order of removal."""
    known = [block for block, value in influence.items() if block in removable and np.isfinite(value)]
    return sorted(known, key=lambda block: (influence[block], -block))


def _nearest_ends(distance_of: Callable[[Evidence], np.ndarray]) -> Callable[[_Task], Iterator[Sequence[int]]]:
    def removals(task: _Task) -> Iterator[Sequence[int]]:
        distance = distance_of(task.evidence)
        removable = set(task.removable)
        for length in range(1, task.most + 1):
            runs = [range(start, start + length) for start in range(task.n_layers - length + 1)]
            possible = [run for run in runs if removable.issuperset(run) and np.isfinite(distance[run.start, run.stop])]
            if possible:
                yield min(possible, key=lambda run: (distance[run.start, run.stop], run.start))

    return removals


def _convexity_peak(task: _Task) -> Iterator[Sequence[int]]:
    convexity = np.asarray(task.evidence.convexity, dtype=np.float64)
    best = convexity[np.isfinite(convexity)].max()
    # Comparisons with NaN are false, and an infinity is not a measurement.
    peak = int(np.argmax(np.isfinite(convexity) & (convexity >= best - task.convexity_tolerance)))
    yield [block for block in task.removable if block >= peak]


RULES: dict[str, Rule] = {
    "forward": Rule((), _forward),
    "backward": Rule((), _backward),
    "middle": Rule((), _middle),
    "single": Rule((), _single, several=True),
    "alternate": Rule((), _alternate),
    "simple_deep": Rule((), _simple_deep),
    "random": Rule((), _random, several=True),
    "block_influence": Rule(("block_influence",), _least_influence("block_influence")),
    "knn_block_influence": Rule(("knn_block_influence",), _least_influence("knn_block_influence")),
    "angular_block": Rule(("angular_distance",), _nearest_ends(lambda evidence: np.asarray(evidence.angular_distance))),
    "linear_block": Rule(("linear_residual",), _nearest_ends(lambda evidence: np.asarray(evidence.linear_residual))),
    "cka_block": Rule(("cka",), _nearest_ends(lambda evidence: 1 - np.asarray(evidence.cka))),
    "convexity_peak": Rule(("convexity",), _convexity_peak),
}
ITERATIVE = ("block_influence", "knn_block_influence")


# ------------------------------------------------------------------------------------------- the searches


def _beam(rule: str, n_layers: int, evaluate: Evaluate, protected: AbstractSet[int], width: int) -> list[Candidate]:
    if n_layers < 2:
        return []
    removable = _removable(n_layers, protected)
    whole = tuple(range(n_layers))
    greedy_keep, followed = whole, [whole]
    found: list[Candidate] = []
    for n_removed in range(1, n_layers - max(1, len(protected)) + 1):
        scores = _evaluate(evaluate, sorted({child for keep in followed for child in _children(keep, removable)}))
        ranked = _best_first(scores)
        found.append(Candidate(rule, ranked[0], n_removed))
        of_greedy = set(_children(greedy_keep, removable))
        greedy_keep = next(keep for keep in ranked if keep in of_greedy)
        followed = [greedy_keep, *[keep for keep in ranked if keep != greedy_keep][: width - 1]]
    return found


def _children(keep: Keep, removable: Collection[int]) -> list[Keep]:
    """Return the lists with one more block removed."""
    return [tuple(other for other in keep if other != block) for block in keep if block in removable]


def _evaluate(evaluate: Evaluate, keeps: list[Keep]) -> dict[Keep, float]:
    return dict(zip(keeps, evaluate(keeps), strict=True)) if keeps else {}


def _best_first(scores: Mapping[Keep, float]) -> list[Keep]:
    """Return kept lists by descending score, NaN last, equal ones in lexicographic order."""
    return sorted(scores, key=lambda keep: (math.inf if math.isnan(scores[keep]) else -scores[keep], keep))


# ----------------------------------------------------------------------------------------------- the checks


def _without(rule: str, n_layers: int, removed: Collection[int]) -> Candidate:
    return Candidate(rule, tuple(block for block in range(n_layers) if block not in removed), len(removed))


def _check_name(rule: str, names: Collection[str]) -> None:
    if rule not in names:
        raise UsageError(f"unknown rule {rule!r}, expected one of {', '.join(names)}")


def _removable(n_layers: int, protected: AbstractSet[int]) -> list[int]:
    blocks = range(n_layers)
    if not protected <= set(blocks):
        raise UsageError(
            f"cannot protect blocks {sorted(protected - set(blocks))}: this model has {n_layers} blocks, from 0 on"
        )
    return [block for block in blocks if block not in protected]


def _checked_sizes(n_layers: int, protected: AbstractSet[int], sizes: Collection[int] | None) -> list[int]:
    """Return the requested sizes in descending order, each once."""
    if sizes is None:
        sizes = range(max(1, len(protected)), n_layers + 1)
    impossible = sorted({size for size in sizes if not len(protected) <= size <= n_layers})
    if impossible:
        raise UsageError(
            f"cannot keep {impossible[0]} blocks, expected {len(protected)} to {n_layers}: "
            f"this model has {n_layers}, of which {len(protected)} are protected"
        )
    return sorted(set(sizes), reverse=True)


def shape_of(name: str, n_layers: int) -> tuple[int, ...]:
    """Return the shape of a kind of evidence for a model of `n_layers` blocks."""
    if name in ("block_influence", "knn_block_influence"):
        return (n_layers,)
    return (n_layers + 1,) if name == "convexity" else (n_layers + 1, n_layers + 1)


def check_evidence(n_layers: int, evidence: Evidence) -> None:
    """Raise `InputError` if evidence is of a model with another number of blocks."""
    for field in fields(evidence):
        values, expected = getattr(evidence, field.name), shape_of(field.name, n_layers)
        if values is not None and np.shape(values) != expected:
            raise InputError(
                f"{field.name} has shape {np.shape(values)}, expected {expected} for a model of {n_layers} blocks: "
                "it was measured on another model; run 04_analysis.py on this one"
            )


def _has_number(values: np.ndarray | None) -> bool:
    """Return whether any entry that a rule reads is finite; in a matrix these are above the diagonal."""
    if values is None:
        return False
    values = np.asarray(values, dtype=np.float64)
    return bool(np.isfinite(values[np.triu_indices(len(values), 1)] if values.ndim == 2 else values).any())
