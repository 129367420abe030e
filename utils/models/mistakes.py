"""The worst mistakes of a model on the clips of stage 01, as items of the review page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy
from utils.figures import review_page
from utils.models import decision
from utils.models.loaded_model import MULTI_LABEL

with lazy.imported_on_first_use():
    import numpy as np

    from utils.scores import review_choice, thresholds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from utils.data.clips import Clips


def write_review(path: Path, title: str, clips: Clips, logits: np.ndarray, config: PreTrainedConfig, n: int) -> int:
    """Write a review page with the `n` worst mistakes for each label; return their number.

    A mistake is a clip that the model gives a label that the data do not give it. A label that may or may not be in the
    clip is not a mistake. The worst ones have the highest scores. With several labels a clip, the model gives a label
    where 03 and 08 detect it (`decision.thresholds`): a label without a threshold has no mistakes.

    Parameters
    ----------
    path : Path
    title : str
    clips : Clips
    logits : array, shape (n_clips, n_classes)
    config : config of the model
    n : int
    """
    scores, lowest = decision.scores(logits, config), list(decision.thresholds(config).values())
    if getattr(config, "problem_type", None) == MULTI_LABEL:
        is_predicted = thresholds.detections(scores, lowest)
    else:
        is_predicted = np.eye(len(clips.labels), dtype=bool)[scores.argmax(axis=1)]
    is_right = (clips.targets > 0) | ~clips.is_known
    chosen = review_choice.worst_mistakes(scores, is_right, is_predicted, n)
    return review_page.write_page(path, title, clips.labels, _items(clips, lowest, chosen))


def _items(clips: Clips, lowest: list[float | None], chosen: list[review_choice.Chosen]) -> Iterator[review_page.Item]:
    for one in chosen:
        clip = clips.table.iloc[one.window]
        n_samples = round(clip["duration_s"] * clips.sample_rate_hz)  # what follows fills the clip by repetition
        yield review_page.Item(
            label=clips.labels[one.label_id],
            why=one.why,
            file=clip["source_path"],
            start_s=clip["start_s"],
            end_s=clip["start_s"] + n_samples / clips.sample_rate_hz,
            score=one.score,
            media=review_page.encode(clips.audio(one.window)[:n_samples], clips.sample_rate_hz),
            threshold=lowest[one.label_id],
            named=tuple(clip["labels"]) if clips.is_annotated else (clip["label"],),
        )
