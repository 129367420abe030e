"""The window of encoders with an input of fixed length: crop it to the clips if possible, or warn of its cost.

Whisper's encoder always computes its whole window (30 s in the published models); beyond the clip it is silence. Its
positions are sinusoids that start at the beginning. Those of a shorter window are therefore the first rows of those of
a longer one. AST learned its positions for its window: interpolated ones would give another model.
"""

import copy
import logging
import math
from dataclasses import replace

import torch

from utils.models import model_size
from utils.models.architectures import FULL_WINDOW, architecture_of, has_blocks, longest_clip_seconds
from utils.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

# Below these shares the extra window is not reported, such as for a clip of 2.5 s in a window of 3 s.
LARGEST_WASTE = 0.25


def shortest_window_seconds(clip_seconds: float) -> int:
    """Return the shortest window that holds a clip: Whisper's feature extractor accepts only whole seconds."""
    return math.ceil(round(clip_seconds, 6))


def fit_window(loaded: LoadedModel, clip_seconds: float, window: str, name: str) -> LoadedModel:
    """Crop a base model's window, in place, to the clips, and log the saving; or log the cost of the window.

    The config records the original window as ``full_window_seconds``.

    Parameters
    ----------
    loaded : LoadedModel
        A model of any type.
    clip_seconds : float
        Length of the clips, not longer than the window.
    window : {"clip", "full"}
        ``full`` crops nothing.
    name : str
        The user's name for the model.

    Returns
    -------
    LoadedModel
        The model to use: the same network with the feature extractor of the cropped window, or `loaded`.
    """
    config = loaded.config
    window_s, seconds = longest_clip_seconds(loaded.extractor, config), shortest_window_seconds(clip_seconds)
    if window == FULL_WINDOW or not _can_crop(loaded) or seconds >= window_s:
        warn_of_window(loaded, clip_seconds, name)
        return loaded
    before = _gmacs(loaded)
    config.full_window_seconds = getattr(config, "full_window_seconds", window_s)
    loaded = replace(loaded, extractor=architecture_of(config).crop(loaded.model, loaded.extractor, seconds))
    log.info(
        "%s: its window of %g s is cropped to %d s for clips of %g s: %.3g GMACs per clip instead of %.3g",
        *(name, window_s, seconds, clip_seconds, _gmacs(loaded), before),
    )
    return loaded


def warn_of_window(loaded: LoadedModel, clip_seconds: float, name: str) -> None:
    """Warn if a window is longer than the clips, so that a model computes much more than its clips.

    Parameters
    ----------
    loaded, clip_seconds, name
        As for `fit_window`.
    """
    if loaded.is_exported:
        return
    config, can_crop = loaded.config, _can_crop(loaded)
    seconds = shortest_window_seconds(clip_seconds)
    window_s = longest_clip_seconds(loaded.extractor, config)
    if window_s == float("inf") or (seconds if can_crop else clip_seconds) >= (1 - LARGEST_WASTE) * window_s:
        return
    cost = "%s computes its whole window of %.4g s for clips of %g s, %.3g GMACs per clip, and %.0f %% of it is padding"
    values = (name, window_s, clip_seconds, _gmacs(loaded), 100 * (1 - clip_seconds / window_s))
    if can_crop:
        with torch.device("meta"):
            cropped = type(loaded.model)(copy.deepcopy(config))
        extractor = architecture_of(config).crop(cropped, loaded.extractor, seconds)
        log.warning(
            f"{cost}; a window of %d s would need %.3g: 02_finetuning.py crops the window of a base model",
            *(*values, seconds, _gmacs(LoadedModel(cropped, extractor, "meta"))),
        )
    else:
        log.warning(
            f"{cost}; its positions were learned for this window, so longer clips, up to this length, cost no more",
            *values,
        )


def _can_crop(loaded: LoadedModel) -> bool:
    return has_blocks(loaded.config) and architecture_of(loaded.config).can_crop_window


def _gmacs(loaded: LoadedModel) -> float:
    layers = list(range(loaded.config.num_hidden_layers))
    return model_size.SizeCounter(loaded).size_of(layers).macs_per_clip / 1e9
