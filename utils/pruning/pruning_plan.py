"""The plan of a pruning sweep: its strategies, and the subsets of blocks that they propose."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.core import cli, lazy
from utils.core.errors import UsageError
from utils.models import architectures
from utils.pruning import layer_selection
from utils.pruning.layer_selection import Candidate, Evaluate, Evidence, Keep

with lazy.imported_on_first_use():
    from utils.models import encoder_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

EXHAUSTIVE, RACE = "exhaustive", "race"
STRATEGIES = (*layer_selection.RULES, *layer_selection.SEARCHES)
# Subsets that the search runs at most: of the full search, of it if it is not asked for, and of the race.
MOST_SUBSETS, MOST_BY_DEFAULT, MOST_RACED = 4096, 256, 8192
# The parts that healing can train: the head, the head and the last block, or all.
HEAL_PARTS = ("head", "last", "all")
# Repair without training, see `repair`; and the clips of train on which it is fitted.
NO_REPAIR, LINEAR = REPAIRS = ("none", "linear")
REPAIR_CLIPS = 128


@dataclass(frozen=True)
class Plan:
    """Strategies that are possible for a model.

    Attributes
    ----------
    n_layers : int
    fewest : int
        Smallest number of blocks with which the model can run: 0, or 1 if it sums the outputs of its blocks.
    protected : frozenset of int
        Blocks that every subset keeps.
    rules, iterative, searches : list of str
        Strategies; the iterative ones are rules whose influence is measured again after each removal.
    sizes : sequence of int
        Numbers of blocks that the exhaustive search, or the race, keeps.
    beam_width : int
    seed : int
        Seed of the random subsets.
    """

    n_layers: int
    fewest: int
    protected: frozenset[int]
    rules: list[str]
    iterative: list[str]
    searches: list[str]
    sizes: Sequence[int]
    beam_width: int
    seed: int

    @property
    def whole(self) -> Keep:
        """All blocks."""
        return tuple(range(self.n_layers))

    def all_subsets(self) -> list[Candidate]:
        """Return every subset of the exhaustive search, or of the race; none if neither was asked for."""
        asked = [strategy for strategy in (EXHAUSTIVE, RACE) if strategy in self.searches]
        if not asked:
            return []
        keeps = layer_selection.all_subsets(self.n_layers, self.protected, self.sizes)
        return [Candidate(asked[0], keep, self.n_layers - len(keep)) for keep in keeps]

    def by_rules(self, evidence: Evidence, measure: Callable[[Keep, Sequence[str]], Evidence]) -> list[Candidate]:
        """Return the candidates of the rules.

        Parameters
        ----------
        evidence : Evidence
            Evidence of the whole model, as far as it is measured.
        measure : callable
            Takes a kept list and names of fields of `Evidence`; returns this evidence of the model that keeps only
            these blocks.
        """
        missing = sorted({name for rule in self.rules for name in layer_selection.missing_evidence(rule, evidence)})
        if missing:
            measured = measure(self.whole, missing)
            evidence = dataclasses.replace(evidence, **{name: getattr(measured, name) for name in missing})
        proposed = []
        for rule in self.rules:
            proposed += layer_selection.candidates(rule, self.n_layers, evidence, self.protected, self.seed)
        for rule in self.iterative:
            proposed += layer_selection.iterative(
                rule, self.n_layers, lambda keep, rule=rule: getattr(measure(keep, [rule]), rule), self.protected
            )
        return [candidate for candidate in proposed if len(candidate.keep) >= self.fewest]

    def by_search(self, strategy: str, evaluate: Evaluate, is_scored: Callable[[Keep], bool]) -> list[Candidate]:
        """Return the best subset of each size that a search finds; see `layer_selection`.

        Of a race, this is the best among those for which `is_scored` holds: those that are not out.
        """
        if strategy == RACE:
            scored = [candidate.keep for candidate in self.all_subsets() if is_scored(candidate.keep)]
            return layer_selection.best_of_sizes(RACE, self.n_layers, evaluate, scored)
        if strategy == EXHAUSTIVE:
            return layer_selection.exhaustive(self.n_layers, evaluate, self.protected, self.sizes)
        if strategy == "beam":
            return layer_selection.beam(self.n_layers, evaluate, self.protected, self.beam_width)
        return layer_selection.greedy(self.n_layers, evaluate, self.protected)


def make_plan(
    model: PreTrainedModel,
    strategies: Sequence[str] | None,
    sizes: str | None,
    beam_width: int,
    iterative: bool,
    remove_first_block: bool,
    seed: int,
) -> Plan:
    """Check the flags against the model, and return the plan; arguments are the flags of the same name.

    Parameters
    ----------
    model : PreTrainedModel
    strategies : sequence of str or None
        Names in `STRATEGIES`. None uses all: the exhaustive search up to `MOST_BY_DEFAULT` subsets, and above them
        the race, up to `MOST_RACED`. Both find the same best subset of each size.
    sizes : str or None
        Numbers of blocks that these two keep, in the syntax of layer lists; None uses all.
    beam_width : int
    iterative : bool
        Add the iterative form of the rules that have one.
    remove_first_block : bool
        Protect only the blocks that the architecture needs.
    seed : int

    Raises
    ------
    UsageError
        If a flag is impossible for this model, or asks for too many subsets.
    InputError
        If the model has no blocks.
    """
    n_layers = encoder_parts.EncoderParts(model).n_layers
    needed = architectures.architecture_of(model.config).protected
    if remove_first_block and needed:
        raise UsageError(
            f"--remove_first_block: block {min(needed)} of a {model.config.model_type} model holds the relative "
            "positions that all other blocks use, and cannot be removed"
        )
    protected = needed if remove_first_block else needed | layer_selection.FIRST_BLOCK
    asked = strategies or STRATEGIES
    rules = [name for name in layer_selection.RULES if name in asked]
    searches = [name for name in layer_selection.SEARCHES if name in asked]
    with_iterative = [rule for rule in rules if rule in layer_selection.ITERATIVE] if iterative else []
    if iterative and not with_iterative:
        raise UsageError(f"--iterative needs one of --strategies {', '.join(layer_selection.ITERATIVE)}")
    both = [name for name in (EXHAUSTIVE, RACE) if name in searches]
    if sizes is not None and not both:
        raise UsageError(f"--sizes needs the strategy {EXHAUSTIVE} or {RACE}, and neither is among --strategies")
    numbers = _sizes(sizes, n_layers, fewest=max(1, len(protected)))
    n_subsets = layer_selection.n_subsets(n_layers, protected, numbers)
    if len(both) == 2 and strategies is not None:
        raise UsageError(f"--strategies {EXHAUSTIVE} {RACE}: both find the same subsets; give one of them")
    if len(both) == 2:
        searches.remove(both.pop(n_subsets <= MOST_BY_DEFAULT))
    most = {EXHAUSTIVE: MOST_SUBSETS, RACE: MOST_RACED}
    if both and n_subsets > most[both[0]]:
        too_many = f"{both[0]} would score {n_subsets:,} subsets of {n_layers} layers (limit {most[both[0]]:,})"
        if strategies is not None or sizes is not None:
            raise UsageError(f"{too_many}: give fewer numbers of layers to keep with --sizes, such as 3-4")
        log.info("%s: it is left out; choose numbers of layers to keep with --sizes", too_many)
        searches.remove(both[0])
    fewest = int(getattr(model.config, "use_weighted_layer_sum", False))
    return Plan(n_layers, fewest, protected, rules, with_iterative, searches, numbers, beam_width, seed)


def _sizes(text: str | None, n_layers: int, fewest: int) -> Sequence[int]:
    if text is None:
        return range(fewest, n_layers)
    expected = f"--sizes {text}: expected numbers of layers to keep, from {fewest} to {n_layers - 1}, such as 3-6,9"
    try:
        sizes = cli.parse_layer_list(text, n_layers)
    except UsageError as error:
        raise UsageError(f"{expected}; {error}") from error
    if not sizes or min(sizes) < fewest:
        raise UsageError(expected)
    return sizes
