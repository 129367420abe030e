"""Count how often the race of subsets (utils.pruning.race) misses a winner of the full search, on drawn answers.

    python -m drills.race                 # 200 draws, all 2,048 subsets of 12 blocks
    python -m drills.race --draws 20 --blocks 8

The answers are drawn: a block has a worth of its own and for each clip, pairs of blocks replace each other, clips and
recordists have difficulties of their own, and so has each subset on each clip. So subsets are correlated, as are the
clips of a recordist. The level of the whole model is drawn, too, from about 0.5 to nearly 1.

Prints, by the accuracy of the best subset: the draws, the sizes whose winner was missed, the block passes as a share of
the full search, and the subsets that were dropped. Exits 1 if a winner was missed: that would be a mistake in the rule.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.core import cli
from utils.pruning import race
from utils.pruning.layer_selection import Keep, all_subsets
from utils.pruning.layer_sweep import trie_cost

N_CLIPS, N_GROUPS = 400, 60
LEVELS = (0.0, 0.7, 0.8, 0.9, 0.95, 1.01)


class DrawnScores:
    """Stands for `subset_scores.SubsetScores`: the answers are known, and only counted.

    Parameters
    ----------
    keeps : list of tuple of int
    is_right_on : ndarray of bool, shape (n_subsets, n_clips)
    """

    split, n_repair_clips = "val", 0

    def __init__(self, keeps: list[Keep], is_right_on: np.ndarray):
        self.rows = {keep: row for row, keep in enumerate(keeps)}
        self.is_right_on, self.n_clips, self.n_passes = is_right_on, is_right_on.shape[1], 0
        self.is_run = np.zeros(is_right_on.shape, bool)

    def run(self, keeps: Sequence[Keep], clips: np.ndarray | None = None) -> None:
        asked = np.zeros(self.n_clips, bool)
        asked[slice(None) if clips is None else clips] = True
        walks: dict[bytes, list[Keep]] = {}
        for keep in keeps:
            walks.setdefault((asked & ~self.is_run[self.rows[keep]]).tobytes(), []).append(keep)
            self.is_run[self.rows[keep]] |= asked
        self.n_passes += sum(trie_cost(some)[0] * int(np.frombuffer(new, bool).sum()) for new, some in walks.items())

    def is_right(self, keeps: Sequence[Keep], clips: np.ndarray) -> np.ndarray:
        rows = [self.rows[keep] for keep in keeps]
        if not self.is_run[np.ix_(rows, clips)].all():
            raise ValueError("an answer was read that was not run")
        return self.is_right_on[np.ix_(rows, clips)]


def draw_answers(keeps: list[Keep], n_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Return which clips each subset classifies correctly, bool of shape (n_subsets, n_clips)."""
    missing = ~np.array([np.isin(range(n_blocks), keep) for keep in keeps]).astype(bool)
    loss = missing @ rng.dirichlet(np.ones(n_blocks)) * rng.uniform(0.3, 3)
    pairs = np.triu(np.abs(rng.normal(0, 0.05, (n_blocks, n_blocks))), 1)
    loss += np.einsum("ki,ij,kj->k", missing.astype(float), pairs, missing.astype(float))
    of_group = rng.normal(0, np.sqrt(0.5), N_GROUPS)[rng.integers(N_GROUPS, size=N_CLIPS)]
    ease = rng.uniform(0, 2.5) + of_group + rng.normal(0, np.sqrt(0.5), N_CLIPS)
    worth = rng.normal(0, rng.uniform(0, 0.3), (n_blocks, N_CLIPS))
    own = rng.normal(0, rng.uniform(0, 0.3), (len(keeps), N_CLIPS))
    return ease - loss[:, None] - missing @ worth + own > 0


def race_once(n_blocks: int, seed: int) -> dict[str, float]:
    """Return what one race on drawn answers missed and cost."""
    keeps = list(all_subsets(n_blocks))
    is_right = draw_answers(keeps, n_blocks, np.random.default_rng(seed))
    scores = DrawnScores(keeps, is_right)
    out = race.run(scores, keeps, [tuple(range(n_blocks))], seed)
    n_right, has_all = is_right.sum(axis=1), scores.is_run.all(axis=1)
    sizes = np.array([len(keep) for keep in keeps])
    # Subsets that are equally good all need their macro F1.
    is_best = np.array([n_right[row] == n_right[sizes == size].max() for row, size in enumerate(sizes)])
    n_missed = len(set(sizes[is_best & ~has_all]))
    full = trie_cost(keeps)[0] * N_CLIPS
    return {
        "best": n_right.max() / N_CLIPS,
        "missed": n_missed,
        "passes": scores.n_passes / full,
        "dropped": len(out) / len(keeps),
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this drill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--draws", type=cli.positive_int, default=200, help="races (default: 200)")
    parser.add_argument("--blocks", type=cli.positive_int, default=12, help="blocks of the model (default: 12)")
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="seed of the first draw (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the drill; return 1 if a race missed a winner."""
    args = build_parser().parse_args(argv)
    races = pd.DataFrame([race_once(args.blocks, args.seed + number) for number in range(args.draws)])
    print(f"{'best accuracy':<14}{'draws':>6}{'sizes missed':>14}{'passes, share: median (range)':>32}{'dropped':>9}")
    for level, some in races.groupby(pd.cut(races["best"], LEVELS, right=False), observed=True):
        passes = f"{some.passes.median():.2f} ({some.passes.min():.2f} to {some.passes.max():.2f})"
        name = f"{level.left:g} to {min(level.right, 1):g}"
        print(f"{name:<14}{len(some):>6}{some.missed.sum():>14}{passes:>32}{some.dropped.median():>9.2f}")
    return int(races["missed"].any())


if __name__ == "__main__":
    sys.exit(main())
