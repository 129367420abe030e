"""A race of subsets of blocks: it finds the winner of every size without running every subset on all clips.

The winner of a size is the subset with the fewest errors on the clips of a split; of several, the one with the highest
macro F1; of several again, the first in lexicographic order. The race finds the winners of the full search, always:

- A few subsets of each size, the leaders, are run on all clips. The others are run on some clips at a time.
- A subset is out once it has more errors on the clips so far than a leader of its size has on all clips. Even without
  another error it would lose. One with as many errors may be as accurate, so it stays, and is run on all clips.
- The clips on which the most leaders are wrong come first, so that errors show early.
- A subset that makes fewer errors than the leaders of its size becomes one.

No statistics are involved: the rule holds in any order of the clips. A block pass is saved once every subset that needs
it is out. A subset that is out has no score.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from utils.pruning.layer_selection import Keep
    from utils.pruning.subset_scores import SubsetScores

log = logging.getLogger(__name__)

# Clips of a round, at the least, and as a share of those before it.
FEWEST_CLIPS, GROWTH = 8, 0.25


def run(scores: SubsetScores, keeps: Iterable[Keep], leaders: Collection[Keep], seed: int = 0) -> list[Keep]:
    """Run subsets until those that can be the best of their size have all clips; return the others.

    Parameters
    ----------
    scores : SubsetScores
    keeps : iterable of tuple of int
        Subsets, each of which races against those of its size.
    leaders : collection of tuple of int
        Subsets that are run on all clips anyway.
    seed : int
        Of the order of equally hard clips.

    Returns
    -------
    list of tuple of int
        The subsets that are out.
    """
    # Repair is fitted anew in each round: this should not cost more than the round.
    fewest_clips = max(FEWEST_CLIPS, scores.n_repair_clips)
    order = np.random.default_rng(seed).permutation(scores.n_clips)
    leaders, n_done = sorted(leaders), 0
    scores.run(leaders)
    racing, out = sorted({*keeps} - {*leaders}), []
    n_all = len(racing)
    while racing:
        left = order[n_done:]
        n_right = scores.is_right(leaders, left).sum(axis=0)
        order[n_done:] = left[np.argsort(n_right, kind="stable")]
        n_done = min(scores.n_clips, n_done + max(fewest_clips, int(GROWTH * n_done)))
        done = order[:n_done]
        scores.run(racing, done)
        if n_done == scores.n_clips:
            break
        new = _ahead(leaders, racing, _n_errors(scores, leaders, done), _n_errors(scores, racing, done))
        scores.run(new)
        leaders = sorted({*leaders, *new})
        fewest: dict[int, int] = {}
        for keep, n_errors in _n_errors(scores, leaders, order).items():
            fewest[len(keep)] = min(n_errors, fewest.get(len(keep), n_errors))
        lost = [keep for keep, n_errors in _n_errors(scores, racing, done).items() if n_errors > fewest[len(keep)]]
        out += lost
        racing = sorted({*racing} - {*new, *lost})
        log.info(
            "%s: race: after %d of %d clips %d of %d subsets are out, %d have all clips",
            *(scores.split, n_done, scores.n_clips, len(out), n_all, n_all - len(out) - len(racing)),
        )
    return sorted(out)


def _n_errors(scores: SubsetScores, keeps: list[Keep], clips: np.ndarray) -> dict[Keep, int]:
    if not keeps:
        return {}
    return dict(zip(keeps, (~scores.is_right(keeps, clips)).sum(axis=1).tolist(), strict=True))


def _ahead(
    leaders: list[Keep], racing: list[Keep], of_leaders: dict[Keep, int], of_racing: dict[Keep, int]
) -> list[Keep]:
    """Return the best racing subset of each size that has no leader, or none with as few errors so far."""
    known: dict[int, int] = {}
    for keep in leaders:
        known[len(keep)] = min(of_leaders[keep], known.get(len(keep), of_leaders[keep]))
    best: dict[int, Keep] = {}
    for keep in sorted(racing, key=lambda keep: (of_racing[keep], keep)):
        best.setdefault(len(keep), keep)
    return [keep for size, keep in best.items() if size not in known or of_racing[keep] < known[size]]
