"""The best mixture of fewer and narrower blocks within a budget of time, parameters or multiply-accumulates.

The search is small: at each depth it takes the best subset that the sweep has found on the search split, and for it the
widest of four feed-forward networks with which the model fits the budget. Of these models, one for each depth, the one
with the highest accuracy on the search split is chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, lazy
from utils.core.errors import UsageError
from utils.core.files import BROKEN, read_json, write_json
from utils.core.text import counted
from utils.pruning import width
from utils.scores.summary import NO_DOUBT

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.models import architectures, encoders, latency, model_size
    from utils.pruning import pruning_table, repair
    from utils.scores import verdicts

if TYPE_CHECKING:
    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel
    from utils.pruning.layer_selection import Keep
    from utils.pruning.subset_scores import SubsetScores

log = logging.getLogger(__name__)

CSV_NAME = "budget.csv"
# The shares of the FFN units that a model keeps, widest first.
SHARES = (1.0, 0.75, 0.5, 0.25)
# Of `Budget`, and of a model's cost; in words for messages.
COSTS = {"max_latency_ms": "latency_ms_median", "max_parameters": "n_parameters", "max_gmacs": "gmacs_per_clip"}
WORDS = {"n_parameters": "{:,} parameters", "gmacs_per_clip": "{:.3g} GMACs per clip", "latency_ms_median": "{:.3g} ms"}


@dataclass(frozen=True)
class Budget:
    """The most that a model may cost; None sets no limit.

    Attributes
    ----------
    max_latency_ms : float or None
        For one clip, as `latency.Latency.latency_ms_median`.
    max_parameters : int or None
    max_gmacs : float or None
        For one clip.
    """

    max_latency_ms: float | None = None
    max_parameters: int | None = None
    max_gmacs: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits by name, without those that are not set."""
        return {name: limit for name, limit in dataclasses.asdict(self).items() if limit is not None}

    def excess(self, mixture: Mixture) -> float:
        """Return the largest share of a limit that a model costs; a cost that was not measured counts as 0."""
        return max(mixture.cost.get(COSTS[name], 0) / limit for name, limit in self.limits.items())

    def fits(self, mixture: Mixture) -> bool:
        """Return whether no known cost is above its limit."""
        return self.excess(mixture) <= 1

    def __str__(self) -> str:
        return ", ".join(f"--{name} {limit:.10g}" for name, limit in self.limits.items())


@dataclass(frozen=True, eq=False)
class Mixture:
    """A subset of the blocks whose feed-forward networks keep some of their units.

    Attributes
    ----------
    keep : tuple of int
    ffn_size : int
    share : float
        One of `SHARES`.
    cost : dict
        ``n_parameters``, ``gmacs_per_clip``; if there is a limit of time, ``latency_ms_median``, ``latency_doubt``.
    """

    keep: Keep
    ffn_size: int
    share: float
    cost: dict

    def in_words(self) -> str:
        """Return the cost as text."""
        return ", ".join(text.format(self.cost[name]) for name, text in WORDS.items() if name in self.cost)


def check(loaded: LoadedModel, budget: Budget, keep: Keep, clip_seconds: float) -> None:
    """Check that the cheapest model of the search, with the blocks `keep`, is within the limits that can be counted.

    Raises
    ------
    UsageError
        If it is not.
    """
    cheapest = _counted(model_size.SizeCounter(loaded, clip_seconds), loaded, keep, SHARES[-1])
    if not budget.fits(cheapest):
        raise UsageError(
            f"{budget}: the cheapest model of this search keeps {counted(len(keep), 'block')} with "
            f"{cheapest.ffn_size} FFN units, and has {cheapest.in_words()}; give more"
        )


def _counted(counter: model_size.SizeCounter, loaded: LoadedModel, keep: Keep, share: float) -> Mixture:
    changes = width.changes_of(loaded.config, {"ffn_size": share})["ffn_size"]
    size = counter.size_of(list(keep), changes)
    cost = {"n_parameters": size.n_parameters, "gmacs_per_clip": size.macs_per_clip / 1e9}
    return Mixture(keep, size.widths["ffn_size"], share, cost)


class BudgetSearch:
    """A search for the best model within a budget.

    Parameters
    ----------
    loaded : LoadedModel
        The whole model, in evaluation mode; it is not changed.
    budget : Budget
    train_clips : Clips
        Clips that measure the importance of units.
    repairer : Repairer or None
        That of the subsets; narrower models are repaired on the same clips.
    on_search, on_report : SubsetScores
        Scores of the whole model and of its subsets.
    folder : Path
        Folder for results of an unfinished run, which continues from them.
    key : dict
        Digests of model and data.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        budget: Budget,
        train_clips: Clips,
        repairer: repair.Repairer | None,
        on_search: SubsetScores,
        on_report: SubsetScores,
        folder: Path,
        key: dict,
    ):
        self._loaded, self._budget, self._train_clips, self._repairer = loaded, budget, train_clips, repairer
        self._on_search, self._on_report, self._folder, self._key = on_search, on_report, folder, key
        self._whole = tuple(range(loaded.config.num_hidden_layers))

    def choose(self, keeps: Iterable[Keep], clips: Clips, path: Path) -> Mixture | None:
        """Return the best model within the budget, or None; write all that was considered.

        Parameters
        ----------
        keeps : iterable of tuple of int
            The best subset of each depth.
        clips : Clips
            The first clip is timed.
        path : Path
            The table to write: one row for each subset and share of `SHARES`, with the scores of those that were run.
        """
        counter = model_size.SizeCounter(self._loaded, clips.clip_seconds)
        # Without a block there is no unit to cut.
        mixtures = [
            _counted(counter, self._loaded, keep, share) for keep in keeps for share in (SHARES if keep else SHARES[:1])
        ]
        if self._budget.max_latency_ms is not None:
            mixtures = self._timed(mixtures, clips)
        widest: dict[Keep, Mixture] = {}
        for mixture in filter(self._budget.fits, mixtures):
            widest.setdefault(mixture.keep, mixture)
        scored = {mixture.keep: self._score(mixture, self._on_search) for mixture in widest.values()}
        best = max(widest.values(), key=lambda m: (*_of(scored[m.keep]), -m.cost["n_parameters"]), default=None)
        rows = []
        for mixture in mixtures:
            row = {"kept_layers": cli.format_layer_list(mixture.keep), "n_layers": len(mixture.keep)}
            row |= {"ffn_size": mixture.ffn_size, **mixture.cost, "within_budget": self._budget.fits(mixture)}
            if widest.get(mixture.keep) is mixture:
                row |= dict(zip(("search_accuracy", "search_macro_f1"), _of(scored[mixture.keep]), strict=True))
            rows.append(row | {"is_chosen": mixture is best})
        pruning_table.write_rows(path, pd.DataFrame(rows))
        if best is None:
            nearest = min(mixtures, key=self._budget.excess)
            log.warning(
                "no model is within the budget (%s); the nearest keeps layers %s with %d FFN units: %s",
                *(self._budget, cli.format_layer_list(nearest.keep), nearest.ffn_size, nearest.in_words()),
            )
        return best

    def described(self, best: Mixture, drawn: dict) -> dict:
        """Score the chosen model on the report split, log the answer, and return it for ``best.json``.

        Parameters
        ----------
        best : Mixture
            From `choose`.
        drawn : dict
            The flags that draw the clips of train, for 07 to draw the same.
        """
        found = {"keep": list(best.keep), "n_layers": len(best.keep), "ffn_size": best.ffn_size, **best.cost}
        if best.share < 1:
            found |= {"importance": width.ACTIVATION, **drawn}
        log.info(
            "best within the budget (%s): keep layers %s with %d FFN units: %s",
            *(self._budget, cli.format_layer_list(best.keep), best.ffn_size, best.in_words()),
        )
        for name, scores in (("search", self._on_search), ("report", self._on_report)):
            own, keep = self._score(best, scores)
            found[f"{name}_accuracy"], found[f"{name}_macro_f1"] = own.score(keep)
            difference = own.difference(keep, scores.predicted(self._whole))
            found[f"{name}_difference"] = [number if np.isfinite(number) else None for number in difference]
            log.info(
                "    %-5s accuracy %.3f, difference %+.3f  (95 %% interval %+.3f to %+.3f: %s)",
                *(scores.split, own.score(keep)[0], *difference, verdicts.on_others(scores.kept_together)),
            )
        if best.cost.get("latency_doubt", NO_DOUBT) != NO_DOUBT:
            log.warning("its latency is in doubt (%s): %s", best.cost["latency_doubt"], latency.ADVICE)
        return found

    def _timed(self, mixtures: Sequence[Mixture], clips: Clips) -> list[Mixture]:
        """Add the times of the models that are within the other limits; no time is needed if a wider one is fast."""
        path, times = self._folder / "budget.json", {}
        with contextlib.suppress(*BROKEN):
            times = {name: dict(cost) for name, cost in read_json(path, dict, "").items()}
        timed, done = {}, set()
        for share in SHARES:
            own = [m for m in mixtures if m.share == share and m.keep not in done and self._budget.fits(m)]
            names = {mixture.keep: f"{len(mixture.keep)} blocks, {share}" for mixture in own}
            new = [keep for keep, name in names.items() if name not in times]
            if new:
                narrow = self._narrow_anyhow(share)
                models = {keep: encoders.pruned_copy(narrow, range(len(keep)), shares_weights=True) for keep in new}
                seconds = pruning_table.LATENCY_BUDGET_S
                found = latency.measure_in_turn(models, clips.audio(0), clips.sample_rate_hz, seconds)
                for keep, time in found.items():
                    times[names[keep]] = {name: getattr(time, name) for name in ("latency_ms_median", "latency_doubt")}
                write_json(path, times)
            for mixture in own:
                timed[mixture] = replace(mixture, cost={**mixture.cost, **times[names[mixture.keep]]})
                done |= {mixture.keep} if self._budget.fits(timed[mixture]) else set()
        return [timed.get(mixture, mixture) for mixture in mixtures]

    def _narrow_anyhow(self, share: float) -> LoadedModel:
        """Return a model of the right size: its time does not depend on which units it keeps."""
        narrow = encoders.pruned_copy(self._loaded, self._whole)
        if share < 1:
            changes = width.changes_of(narrow.config, {"ffn_size": share})
            n_units = architectures.widths_of(narrow.config)["ffn_size"]
            importance = [np.zeros(n_units) for _ in width.channels_of(narrow.model, "ffn_size")]
            width.narrow(narrow.model, {"ffn_size": importance}, changes, width.ACTIVATION)
        return narrow

    def _score(self, mixture: Mixture, scores: SubsetScores) -> tuple[SubsetScores, Keep]:
        """Run a model on the split of `scores`; return its scores, and its key among them."""
        keep = mixture.keep
        if mixture.share < 1:
            text = cli.format_layer_list(keep)
            path, key = self._folder / f"importance-{text}.npz", {**self._key, "keep": text}
            narrow = encoders.pruned_copy(self._loaded, keep)
            changes = width.changes_of(narrow.config, {"ffn_size": mixture.ffn_size})
            measured = width.measure(narrow, self._train_clips, width.ACTIVATION, list(changes), path, key)
            width.narrow(narrow.model, measured, changes, width.ACTIVATION)
            own = tuple(range(len(keep)))
            digest = f"{self._key['model']}, layers {text}, {mixture.ffn_size} units"
            if self._repairer is not None:
                repairer = repair.Repairer(narrow, self._repairer.clips, width.BATCH_SIZE, self._loaded, keep)
                narrow, digest = repair.repaired_copy(narrow, own, repairer), f"{digest}, {repairer.settings}"
            scores, keep = scores.of_other_model(narrow, digest), own
        scores.run([keep])
        return scores, keep


def _of(scored: tuple[SubsetScores, Keep]) -> tuple[float, float]:
    scores, keep = scored
    return scores.score(keep)
