"""The table of a pruning sweep with one row per subset, the choices made from it, and log lines about both.

Every choice is made on the search split alone. Subsets of one size are ranked by search accuracy, then by
search macro F1, then by their order in the table.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from utils.core import cli, lazy
from utils.core.files import BROKEN, read_json, write_json, write_text
from utils.pruning.pruning_plan import LINEAR, NO_REPAIR

with lazy.imported_on_first_use():
    from utils.models import architectures, encoders, latency
    from utils.scores import intervals, verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel
    from utils.pruning.layer_selection import Candidate, Keep
    from utils.pruning.subset_scores import SubsetScores

log = logging.getLogger(__name__)

CSV_NAME = "pruning.csv"
FULL = "full"
COLUMNS = (
    "strategy",
    "n_removed",
    "kept_layers",
    "n_layers",
    "n_parameters",
    "search_accuracy",
    "search_macro_f1",
    "report_accuracy",
    "report_accuracy_low",
    "report_accuracy_high",
    "report_macro_f1",
    "relative_accuracy",
    "seconds",
    "report_difference",
    "report_difference_low",
    "report_difference_high",
    "gmacs_per_clip",
    "latency_ms_median",
    "kept_layers_base",
    "latency_ms_low",
    "latency_ms_high",
    "load_average",
    "cpu_busy_share",
    "latency_doubt",
    "repair",
    "unrepaired_accuracy",
    "repair_difference",
    "repair_difference_low",
    "repair_difference_high",
    "search_clips",
)
LATENCY_BUDGET_S = 2.0
# Two differences of accuracies that are equal in exact arithmetic differ by less than this.
ROUNDING = 1e-9


# ------------------------------------------------------------------------------------------------- table


class PruningTable:
    """Rows of ``pruning.csv``; the file is rewritten whenever rows are added.

    Parameters
    ----------
    path : Path
    loaded : LoadedModel
        The whole model.
    on_search, on_report : SubsetScores
        Candidates must have been run on the search split before they are added, those that a race has dropped on a
        part of it; the report split is optional.
    unrepaired : SubsetScores, optional
        Of a sweep with repair: the scores of the same subsets without it, on the report split.

    Attributes
    ----------
    candidates : list of Candidate
        The first is the whole model.
    """

    def __init__(
        self,
        path: Path,
        loaded: LoadedModel,
        on_search: SubsetScores,
        on_report: SubsetScores,
        unrepaired: SubsetScores | None = None,
    ):
        self.candidates: list[Candidate] = []
        self._path, self._loaded, self._on_search, self._on_report = path, loaded, on_search, on_report
        self._unrepaired, self._repair = unrepaired, LINEAR if unrepaired else NO_REPAIR
        self._costs: dict[int, dict] = {}

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Add one row per candidate, and write the file."""
        self.candidates += candidates
        self.write()

    def write(self) -> pd.DataFrame:
        """Write one row per candidate, and return the table; a value that is not known (yet) is NaN.

        Returns
        -------
        DataFrame
            Columns `COLUMNS`. ``kept_layers`` has the block numbers of the swept model, ``kept_layers_base`` those of
            its base model. ``seconds`` is the time of the walks that ran the subset, on both splits; the time of a walk
            is divided evenly over its subsets. A subset that several strategies propose is run once, and every row has
            the same time. ``relative_accuracy`` is the accuracy divided by that of the whole model.
            ``report_difference`` is the accuracy minus that of the whole model, with a paired 95 % interval;
            ``repair_difference`` is the accuracy minus that of the same subset without repair. ``search_clips`` is the
            number of clips of the search split on which the subset was run. If these are not all, a race has dropped
            it, and it has no score.
        """
        keeps = {candidate.keep for candidate in self.candidates}
        n_parameters = count_parameters(self._loaded.model, keeps)
        reported = {keep: self._report_on(keep) for keep in keeps if self._on_report.has(keep)}
        base_numbers = encoders.kept_layers(self._loaded.config)
        rows, whole = [], self.candidates[0].keep
        for candidate in self.candidates:
            keep = candidate.keep
            row = {
                "strategy": candidate.rule,
                "n_removed": candidate.n_removed,
                "kept_layers": cli.format_layer_list(keep),
                "n_layers": len(keep),
                "n_parameters": n_parameters[keep],
                "repair": NO_REPAIR if keep == whole else self._repair,
                "seconds": self._on_search.seconds(keep) + self._on_report.seconds(keep),
                "kept_layers_base": cli.format_layer_list([base_numbers[block] for block in keep]),
            }
            row["search_clips"] = self._on_search.n_seen(keep)
            if self._on_search.has(keep):
                row["search_accuracy"], row["search_macro_f1"] = self._on_search.score(keep)
            rows.append(row | self._costs.get(len(keep), {}) | reported.get(keep, {}))
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        write_rows(self._path, table)
        return table

    def _report_on(self, keep: Keep) -> dict[str, float]:
        scores, whole = self._on_report, self.candidates[0].keep
        accuracy, macro_f1 = scores.score(keep)
        of_whole, _ = scores.score(whole)
        low, high = scores.interval(keep)
        difference, difference_low, difference_high = scores.minus(keep, whole)
        found = {}
        if keep != whole and self._unrepaired is not None and self._unrepaired.has(keep):
            found["unrepaired_accuracy"], _ = self._unrepaired.score(keep)
            names = ("repair_difference", "repair_difference_low", "repair_difference_high")
            found |= zip(names, scores.difference(keep, self._unrepaired.predicted(keep)), strict=True)
        return found | {
            "report_accuracy": accuracy,
            "report_accuracy_low": low,
            "report_accuracy_high": high,
            "report_macro_f1": macro_f1,
            "relative_accuracy": accuracy / of_whole if of_whole else math.nan,
            "report_difference": difference,
            "report_difference_low": difference_low,
            "report_difference_high": difference_high,
        }

    def measure_costs(self, clips: Clips, path: Path) -> None:
        """Measure one model of each size in the table, because all blocks cost the same; write the file.

        Parameters
        ----------
        clips : Clips
            The first clip is timed.
        path : Path
            JSON file that stores the costs for a run that continues from here.
        """
        sizes = sorted({len(candidate.keep) for candidate in self.candidates})
        self._costs = _read_costs(path)
        if set(self._costs) != set(sizes):
            models = {size: encoders.pruned_copy(self._loaded, range(size), shares_weights=True) for size in sizes}
            times = latency.measure_in_turn(models, clips.audio(0), clips.sample_rate_hz, LATENCY_BUDGET_S)
            inputs = self._loaded.prepare([clips.audio(0)], clips.sample_rate_hz)
            for size, pruned in models.items():
                found = {name: value for name, value in dataclasses.asdict(times[size]).items() if name in COLUMNS}
                self._costs[size] = found | {"gmacs_per_clip": latency.count_macs(pruned.model, inputs)[0] / 1e9}
            write_json(path, {size: self._costs[size] for size in sizes})
        self.write()


def count_parameters(model: PreTrainedModel, keeps: Iterable[Keep]) -> dict[Keep, int]:
    """Return the exact number of parameters for each kept list."""
    of_block = [encoders.count_parameters(block) for block in architectures.blocks_of(model)]
    if getattr(model.config, "use_weighted_layer_sum", False):
        of_block = [n + 1 for n in of_block]  # its weight in the sum of outputs
    besides = encoders.count_parameters(model) - sum(of_block)
    return {keep: besides + sum(of_block[block] for block in keep) for keep in keeps}


def read_rows(folder: Path) -> pd.DataFrame:
    """Read ``pruning.csv`` in a folder of results."""
    return pd.read_csv(folder / CSV_NAME, dtype={"kept_layers": str}, keep_default_na=False, na_values=["nan", ""])


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a table atomically, with six significant digits and ``nan`` for a missing number."""
    write_text(path, rows.to_csv(index=False, float_format="%.6g", na_rep="nan"))


def _read_costs(path: Path) -> dict[int, dict]:
    """Return the costs that `PruningTable.measure_costs` stored, by number of blocks; none if they are damaged."""
    try:
        costs = {int(size): dict(cost) for size, cost in read_json(path, dict, "").items()}
    except BROKEN:
        return {}
    needed = {"gmacs_per_clip", "latency_doubt"}
    are_costs = all(
        needed <= cost.keys() <= set(COLUMNS) and all(isinstance(value, int | float | str) for value in cost.values())
        for cost in costs.values()
    )
    return costs if are_costs else {}


# ----------------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class Choices:
    """The subsets chosen on the search split.

    Attributes
    ----------
    whole : tuple of int
        All blocks.
    by_depth : dict of int to Candidate
        The best subset of each number of kept blocks, in descending order.
    within : Candidate or None
        The smallest pruned subset whose search accuracy is no worse than the margin; the best of several.
    within_by_interval : Candidate or None
        The smallest for which that is shown: the lower end of its simultaneous interval is no worse than the margin.
    n_pruned : int
        Number of pruned subsets among which the choice was made, with those that a race has dropped; the simultaneous
        intervals are of all of them.
    verdicts : dict of tuple of int to Verdict
        Of each pruned subset that has a score: whether it is shown to be within the margin.
    """

    whole: Keep
    by_depth: dict[int, Candidate]
    within: Candidate | None
    within_by_interval: Candidate | None
    n_pruned: int
    verdicts: dict[Keep, verdicts.Verdict]

    @property
    def n_dropped(self) -> int:
        """Number of those of `n_pruned` that have no score."""
        return self.n_pruned - len(self.verdicts)

    def keeps(self) -> set[Keep]:
        """Return all chosen subsets."""
        chosen = [*self.by_depth.values(), self.within, self.within_by_interval]
        return {candidate.keep for candidate in chosen if candidate is not None}

    def to_heal(self) -> Keep:
        """Return the smallest subset within the margin; if there is none, the best with the fewest blocks removed."""
        if self.within is not None:
            return self.within.keep
        pruned = (candidate.keep for depth, candidate in self.by_depth.items() if depth < len(self.whole))
        return next(pruned, self.whole)

    def log_healing(self, keep: Keep, is_asked: bool, margin: float, on_search: SubsetScores) -> None:
        """Log which subset is healed and why, and whether its blocks can be removed without healing."""
        if keep == self.whole:
            why = "as given by --heal_keep" if is_asked else "no smaller subset was scored"
            log.info("--heal trains the whole model: %s", why)
            return
        difference, _, _ = on_search.minus(keep, self.whole)
        why = "the smallest within the margin"
        if is_asked:
            why = "as given by --heal_keep"
        elif self.within is None:
            why = "the best with the fewest blocks removed, because no subset is within the margin"
        state = f"worse than the margin of {margin:g}, so these blocks cannot be removed without healing"
        if difference >= -margin - ROUNDING:
            verdict = self.verdicts.get(keep) or on_search.within_margin([keep], self.whole, margin)[keep]
            state = f"within the margin of {margin:g} by the point estimate; by its interval, {verdict}"
        log.info(
            "--heal trains layers %s (%d of %d blocks): %s. Before it, pruned - whole = %+.3f in accuracy on %s: %s",
            *(cli.format_layer_list(keep), len(keep), len(self.whole), why, difference, on_search.split, state),
        )

    def scored(self, on_search: SubsetScores, on_report: SubsetScores) -> dict:
        """Return the choices with their scores, ready for ``best.json``; numbers that are not finite are None."""

        def describe(candidate: Candidate | None) -> dict | None:
            if candidate is None:
                return None
            keep = candidate.keep
            described = {"keep": list(keep), "n_layers": len(keep), "strategy": candidate.rule}
            for name, scores in (("search", on_search), ("report", on_report)):
                described[f"{name}_accuracy"], described[f"{name}_macro_f1"] = scores.score(keep)
                difference = scores.minus(keep, self.whole)
                described[f"{name}_difference"] = [number if np.isfinite(number) else None for number in difference]
            described["within_margin"] = str(self.verdicts[keep]) if keep in self.verdicts else None
            return described

        return {
            "smallest_within_margin": describe(self.within),
            "smallest_within_margin_by_interval": describe(self.within_by_interval),
            "n_pruned": self.n_pruned,
            **({"n_dropped": self.n_dropped} if self.n_dropped else {}),
            "by_depth": {str(depth): describe(candidate) for depth, candidate in self.by_depth.items()},
        }


def choose(candidates: Sequence[Candidate], on_search: SubsetScores, margin: float) -> Choices:
    """Choose subsets by their scores on the search split.

    Parameters
    ----------
    candidates : sequence of Candidate
        The first is the whole model.
    on_search : SubsetScores
        All candidates must have been run; those that a race has dropped are not chosen.
    margin : float
        Accuracy that may be lost.
    """
    whole, all_pruned = candidates[0].keep, {candidate.keep for candidate in candidates if candidate.n_removed}
    candidates = [candidate for candidate in candidates if on_search.has(candidate.keep)]
    least = on_search.score(whole)[0] - margin - ROUNDING
    best_first = sorted(candidates, key=lambda c: [-score for score in on_search.score(c.keep)])  # a stable sort
    by_depth: dict[int, Candidate] = {}
    possible: dict[Keep, Candidate] = {}
    for candidate in sorted(best_first, key=lambda c: len(c.keep)):
        by_depth.setdefault(len(candidate.keep), candidate)
        if candidate.n_removed and on_search.score(candidate.keep)[0] >= least:
            possible.setdefault(candidate.keep, candidate)
    pruned = list(dict.fromkeys(candidate.keep for candidate in candidates if candidate.n_removed))
    found = on_search.within_margin(pruned, whole, margin, len(all_pruned) - len(pruned))
    shown = (candidate for keep, candidate in possible.items() if found[keep].answer == verdicts.SHOWN)
    return Choices(
        whole,
        by_depth={depth: by_depth[depth] for depth in sorted(by_depth, reverse=True)},
        within=next(iter(possible.values()), None),
        within_by_interval=next(shown, None),
        n_pruned=len(all_pruned),
        verdicts=found,
    )


# ------------------------------------------------------------------------------------------------- words


def log_answer(choices: Choices, margin: float, on_search: SubsetScores, on_report: SubsetScores) -> None:
    """Log how many blocks can be removed, by point estimate and by interval, with the scores on both splits."""
    whole = choices.whole
    for scores in (on_search, on_report):
        log.info(
            "%s, split by %s: %d clips in %d groups; the whole model of %d blocks has accuracy %.3f, macro F1 %.3f",
            *(scores.split, scores.kept_together, scores.n_clips, scores.n_groups, len(whole)),
            *scores.score(whole),
        )
        intervals.warn_of_few_groups(scores.split, scores.n_groups)
    split, n_pruned = on_search.split, choices.n_pruned
    answers = (
        ("point estimate", "no block can be removed", "%d of %d blocks can be removed", choices.within),
        (
            *(
                "simultaneous intervals",
                "no block is shown to be removable",
                "%d of %d blocks are shown to be removable",
            ),
            choices.within_by_interval,
        ),
    )
    for how, none, some, candidate in answers:
        known_by = f"at no worse than {margin:g} in accuracy ({how} on {split}, best of {n_pruned})"
        if candidate is None:
            log.info("%s %s", none, known_by)
            continue
        found = some % (candidate.n_removed, len(whole))
        log.info("%s %s: keep %s (%s)", found, known_by, cli.format_layer_list(candidate.keep), candidate.rule)
        for scores in (on_search, on_report):
            difference, low, high = scores.minus(candidate.keep, whole)
            log.info(
                "    %-5s accuracy %.3f, difference %+.3f  (95 %% interval %+.3f to %+.3f: %s)",
                *(scores.split, scores.score(candidate.keep)[0], difference, low, high),
                verdicts.on_others(scores.kept_together),
            )
    if choices.within is None:
        return
    log.info(
        "layers %s within the margin: %s",
        cli.format_layer_list(choices.within.keep),
        choices.verdicts[choices.within.keep],
    )
    log.info(
        "the subset was chosen among %d by its accuracy on %s: that accuracy is biased upwards; what is shown holds "
        "for all %d together, and the numbers on %s are not affected",
        *(n_pruned, split, n_pruned, on_report.split),
    )
