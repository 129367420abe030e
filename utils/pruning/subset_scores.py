"""Scores of subsets of a model's blocks on the clips of one split; each subset is run once."""

import json
import logging
import time
import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.core.cli import format_layer_list
from utils.core.files import atomic_path, sha256_of_lines
from utils.data.clips import Clips
from utils.models.loaded_model import LoadedModel
from utils.pruning import layer_sweep
from utils.pruning.layer_selection import Keep
from utils.pruning.repair import Repairer
from utils.scores import evaluation, intervals, verdicts

log = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0


class SubsetScores:
    """Predictions of subsets of a model's blocks on the clips of a split, and their scores.

    With several labels a clip, accuracy is BirdSet's top-1 accuracy (see `multi_label.top_accuracy`), without the clips
    of silence. So a prediction is one number there too, and many subsets need little memory.

    Subsets are run together in walks (see `layer_sweep`). The predictions of a walk are stored in a folder,
    also those of an unfinished walk. The next object with the same key continues from them. A subset that was run on
    some of the clips only, as in a race, has no score.

    Parameters
    ----------
    loaded, clips, batch_size
        As for `layer_sweep.predict_subsets`.
    split : str
        Name of the split of `clips`.
    folder : Path
        Folder for the predictions.
    key : dict
        Digests of model and data, on which the predictions depend besides the clips; ready for JSON.
    repairer : Repairer, optional
        Repairs every pruned subset before it is run. Default: the blocks stay as they are.

    Attributes
    ----------
    split, n_clips, n_groups, kept_together
        Of the clips.
    n_repair_clips : int
        Clips on which every walk fits the repair; 0 without repair.
    n_passes : int
        Block passes of all walks, without those of the repair; a pass is one block on one clip.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        clips: Clips,
        split: str,
        batch_size: int,
        folder: Path,
        key: dict,
        repairer: Repairer | None = None,
    ):
        clips = clips.without_silence()
        self.split = split
        self.n_clips, self.n_groups = len(clips), clips.table["group"].nunique()
        self.kept_together = clips.kept_together
        self.n_repair_clips, self.n_passes = len(repairer.clips) if repairer else 0, 0
        self._loaded, self._clips, self._batch_size = loaded, clips, batch_size
        self._folder, self._key, self._repairer = folder, key, repairer
        self._label_ids, self._groups = (clips.table[name].to_numpy() for name in ("label_id", "group"))
        self._targets = None
        if clips.is_annotated:
            self._targets, self._label_ids = clips.targets > 0, np.ones(len(clips), int)
        clip_ids = sha256_of_lines(clips.table["clip_id"])
        stamp = {**key, "batch_size": batch_size, "device": loaded.device, "clip_ids": clip_ids}
        self._stamp = json.dumps(stamp | ({"repair": repairer.settings} if repairer else {}))
        self._predicted: dict[Keep, np.ndarray] = {}
        self._begun: dict[Keep, np.ndarray] = {}  # -1 for clips that were not run
        self._seconds: dict[Keep, float] = {}
        self._scores: dict[Keep, tuple[float, float]] = {}
        for path in sorted(folder.glob(f"{split}-*.npz")):
            walk = _read(path, self._stamp)
            if walk is not None and walk.n_done == len(walk.clips):
                self._take(walk)

    def of_other_model(self, loaded: LoadedModel, digest: str) -> "SubsetScores":
        """Return the scores of another model, identified by the digest of its weights, on the same clips."""
        key = {**self._key, "model": digest}
        return SubsetScores(loaded, self._clips, self.split, self._batch_size, self._folder, key)

    def run(self, keeps: Iterable[Keep], clips: np.ndarray | None = None) -> None:
        """Run the subsets that have not been run yet, in one walk, or in as many as there are shares of repairs.

        Subsets that have been run on different clips before are run in one walk each.

        Parameters
        ----------
        keeps : iterable of tuple of int
        clips : ndarray of int, optional
            Numbers of the clips. Default: all.

        Raises
        ------
        UsageError
            If a subset is not possible.
        InputError
            If a logit is not finite.
        """
        asked = np.ones(self.n_clips, bool)
        if clips is not None:
            asked[:] = False
            asked[clips] = True
        new: dict[bytes, list[Keep]] = {}
        for keep in sorted(set(keeps) - set(self._predicted)):
            missing = asked & (self._begun[keep] < 0) if keep in self._begun else asked
            if missing.any():
                new.setdefault(missing.tobytes(), []).append(keep)
        for missing, walked in new.items():
            for share in [walked] if self._repairer is None else self._repairer.shares(walked):
                if share:
                    self._run(share, np.flatnonzero(np.frombuffer(missing, bool)))

    def _run(self, new: list[Keep], clips: np.ndarray) -> None:
        repairs = None if self._repairer is None else self._repairer.fit(new)
        name = sha256_of_lines([self._stamp, str(clips.tolist()), *(format_layer_list(keep) for keep in new)])
        path = self._folder / f"{self.split}-{name[:16]}.npz"
        walk = _read(path, self._stamp) or _Walk(new, clips, np.empty((len(new), 0), np.int16), 0.0)
        n_clips = len(clips)
        log.info("%s: subsets to score: %d; clips: %d, done before: %d", self.split, len(new), n_clips, walk.n_done)
        n_at_once = self._batch_size
        while (n_done := walk.n_done) < n_clips:
            start = time.monotonic()
            some = replace(self._clips, table=self._clips.table.iloc[clips[n_done : n_done + n_at_once]])
            among = (n_done, n_clips)
            predicted = layer_sweep.predict_subsets(self._loaded, some, new, self._batch_size, among, repairs)
            seconds = time.monotonic() - start
            predicted = np.concatenate([walk.predicted, predicted], axis=1)
            walk = replace(walk, predicted=predicted, seconds=walk.seconds + seconds)
            _write(path, self._stamp, walk, self._loaded.config.num_hidden_layers)
            # Whole batches, so that the clips of a batch do not depend on where a walk was stopped.
            n_at_once = self._batch_size * max(1, int(n_at_once / self._batch_size * SAVE_EVERY_S / max(seconds, 1e-3)))
        self._take(walk)

    def _take(self, walk: "_Walk") -> None:
        self.n_passes += layer_sweep.trie_cost(walk.keeps)[0] * len(walk.clips)
        for keep, predicted in zip(walk.keeps, walk.predicted, strict=True):
            self._seconds[keep] = self._seconds.get(keep, 0.0) + walk.seconds / len(walk.keeps)
            if len(walk.clips) < self.n_clips:
                known = self._begun.pop(keep, np.full(self.n_clips, -1, predicted.dtype))
                known[walk.clips] = predicted
                predicted = known
            (self._begun if predicted.min() < 0 else self._predicted)[keep] = predicted

    def has(self, keep: Keep) -> bool:
        """Return whether a subset has been run on all clips."""
        return keep in self._predicted

    def n_seen(self, keep: Keep) -> int:
        """Return on how many clips a subset has been run."""
        return self.n_clips if keep in self._predicted else int((self._begun.get(keep, np.empty(0)) >= 0).sum())

    def is_right(self, keeps: Sequence[Keep], clips: np.ndarray) -> np.ndarray:
        """Return which of some clips subsets classify correctly, bool of shape (n_subsets, n_clips).

        Parameters
        ----------
        keeps : sequence of tuple of int
        clips : ndarray of int
            Numbers of clips on which they have been run.
        """
        known = np.stack([(self._predicted if keep in self._predicted else self._begun)[keep][clips] for keep in keeps])
        return self._judged(known, clips) == self._label_ids[clips]

    def seconds(self, keep: Keep) -> float:
        """Return an equal share of the time of the walks that ran a subset; 0 if it was not run."""
        return self._seconds.get(keep, 0.0)

    def predicted(self, keep: Keep) -> np.ndarray:
        """Return the predicted label ids of a subset that has been run, int32 of shape (n_clips,)."""
        return self._predicted[keep]

    def score(self, keep: Keep) -> tuple[float, float]:
        """Return accuracy and macro F1 of a subset that has been run."""
        if keep not in self._scores:
            accuracy = float((self._judged(self._predicted[keep]) == self._label_ids).mean())
            self._scores[keep] = accuracy, self._macro_f1(self._predicted[keep])
        return self._scores[keep]

    def _judged(self, predicted: np.ndarray, clips: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return predicted label ids; with several labels a clip, 1 where the label is one of the clip's, else 0.

        Then all true label ids are 1, so that accuracy is the top-1 accuracy, as are its intervals.
        """
        if self._targets is None:
            return predicted
        targets = self._targets[clips]
        return targets[np.arange(len(targets)), predicted].astype(int)

    def _macro_f1(self, predicted: np.ndarray) -> float:
        """Return the macro F1; with several labels a clip, that of an answer of one label for each clip."""
        if self._targets is None:
            return evaluation.macro_f1(self._label_ids, predicted)
        answers = np.eye(self._targets.shape[1], dtype=bool)[predicted]
        counts = (table.sum(axis=0) for table in (self._targets, answers, self._targets & answers))
        return float(intervals.scores_of_counts(*counts)[1])

    def ranks(self, keeps: Collection[Keep]) -> list[float]:
        """Run subsets; return one number per subset that orders them by accuracy, then by macro F1."""
        self.run(keeps)
        # Two different accuracies differ by at least one clip, and macro F1 is at most 1.
        return [accuracy + macro_f1 / (2 * self.n_clips) for accuracy, macro_f1 in map(self.score, keeps)]

    def interval(self, keep: Keep) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy of a subset that has been run."""
        judged = self._judged(self._predicted[keep])
        return intervals.score_intervals(self._label_ids, judged, self._groups)["accuracy"]

    def within_margin(
        self, keeps: Sequence[Keep], whole: Keep, margin: float, n_others: int = 0
    ) -> dict[Keep, verdicts.Verdict]:
        """Return of each subset whether it is no worse than the whole model by more than a margin.

        The intervals are simultaneous: all of them hold their true difference with a probability of 95 %, so that the
        choice among the subsets does not matter. `n_others` more subsets, among which it was made, have no score.
        See `verdicts.within_margin`.
        """
        if not keeps:
            return {}
        judged = np.stack([self._judged(self._predicted[keep]) for keep in keeps])
        of_whole = self._judged(self._predicted[whole])
        found = intervals.accuracy_differences(self._label_ids, judged, of_whole, self._groups, n_others)
        return {keep: verdicts.of_pair(found, number, margin) for number, keep in enumerate(keeps)}

    def minus(self, keep: Keep, other: Keep) -> tuple[float, float, float]:
        """Return the accuracy of a subset minus that of another, and the paired 95 % interval; 0 if they are one."""
        return (0.0, 0.0, 0.0) if keep == other else self.difference(keep, self._predicted[other])

    def difference(self, keep: Keep, other_predicted: np.ndarray) -> tuple[float, float, float]:
        """Return the accuracy of a subset minus that of other predictions, and the paired 95 % interval."""
        judged = (self._judged(predicted) for predicted in (self._predicted[keep], other_predicted))
        return intervals.paired_difference(self._label_ids, *judged, self._groups)["accuracy"]


@dataclass(frozen=True)
class _Walk:
    """Subsets, the clips to run, the predictions so far, shape (n_subsets, n_done), and the time taken."""

    keeps: list[Keep]
    clips: np.ndarray
    predicted: np.ndarray
    seconds: float

    @property
    def n_done(self) -> int:
        return self.predicted.shape[1]


def _write(path: Path, stamp: str, walk: _Walk, n_layers: int) -> None:
    keeps = np.array([np.isin(range(n_layers), keep) for keep in walk.keeps])
    with atomic_path(path) as partial:
        np.savez(partial, stamp=stamp, keeps=keeps, clips=walk.clips, predicted=walk.predicted, seconds=walk.seconds)


def _read(path: Path, stamp: str) -> _Walk | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["stamp"] != stamp:
                return None
            keeps = [tuple(np.flatnonzero(mask).tolist()) for mask in file["keeps"]]
            return _Walk(keeps, file["clips"], file["predicted"], float(file["seconds"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
