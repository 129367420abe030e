"""Clips to model inputs, batch by batch, and inputs to logits."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from transformers import SequenceFeatureExtractor

from utils.core import runs
from utils.core.errors import InputError
from utils.core.workers import available_cpus
from utils.data.clips import Clips
from utils.models.loaded_model import LoadedModel, prepare

MOST_WORKERS = 4


def predict(loaded: LoadedModel, clips: Clips, batch_size: int) -> np.ndarray:
    """Return the logits of all clips, in their order.

    Processes that torchrun started share the clips; each gets all logits.

    Parameters
    ----------
    loaded : LoadedModel
        In evaluation mode. For a GPU, other processes read the clips and extract features.
    clips : Clips
        Clips to classify.
    batch_size : int
        Clips per batch.

    Returns
    -------
    ndarray
        Float32, shape (n_clips, n_classes).

    Raises
    ------
    InputError
        If a logit is not finite.
    """
    own = clips.only(runs.own_share(len(clips), batch_size))

    def predict_own() -> list[np.ndarray]:
        with torch.inference_mode():
            return [
                loaded.model(**inputs).logits.float().cpu().numpy()
                for inputs in input_batches(loaded, own, batch_size, desc="predicting")
            ]

    logits = np.concatenate([batch for batches in runs.from_all_processes(predict_own) for batch in batches])
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise InputError(
            f"the model gives logits that are NaN or infinite for {len(bad)} of {len(clips)} clips "
            f"(first: {clips.table['clip_id'].iloc[bad[0]]}); expected finite numbers: its weights are broken, "
            "train it again with a lower --learning_rate"
        )
    return logits


def input_batches(
    loaded: LoadedModel,
    clips: Clips,
    batch_size: int,
    desc: str,
    first: int = 0,
    among: tuple[int, int] | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a model's inputs for all clips, in their order, batch by batch; show the progress.

    Parameters
    ----------
    loaded, clips, batch_size
        As for `predict`.
    desc : str
        Name of the task, for the log.
    first : int
        Index of the first clip.
    among : tuple of int, optional
        If these clips are a part of more clips: the number already done and the total number, for the log. Default:
        `first`, and all.

    Yields
    ------
    dict of str to Tensor
        Inputs on the model's device.
    """
    # The network itself is not sent to the other processes.
    collate = partial(_collate, loaded.extractor, clips.sample_rate_hz, loaded.model.main_input_name)
    # On a CPU the model itself uses every core.
    num_workers = 0 if loaded.device == "cpu" else min(MOST_WORKERS, available_cpus() - 1)
    wanted = Subset(clips, range(first, len(clips)))
    loader = DataLoader(wanted, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    n_before, n_batches = (-(-n_clips // batch_size) for n_clips in among or (first, len(clips)))
    for inputs in runs.progress(loader, n_batches, desc, "batches", n_before):
        yield {name: tensor.to(loaded.device) for name, tensor in inputs.items()}


def _collate(
    extractor: SequenceFeatureExtractor, sample_rate_hz: int, main_input_name: str, rows: list[dict]
) -> dict[str, torch.Tensor]:
    return prepare(extractor, [row["audio"] for row in rows], sample_rate_hz, main_input_name)
