"""The window of encoders that hear a fixed stretch of sound: cropped to the clips where that is possible, or its cost.

Whisper's encoder computes its whole window, 30 s as published, whatever a clip lasts; the rest of it is silence.
Its positions are sinusoids that start at the beginning, so that those of a shorter window are the first rows of
those of a longer one. AST's positions were learned for its window: interpolated ones would be another model.
"""

import copy
import logging
import math

import torch
from transformers import PreTrainedModel, SequenceFeatureExtractor

from utils.models import model_size
from utils.models.architectures import FULL_WINDOW, architecture_of, has_blocks, longest_clip_seconds

log = logging.getLogger(__name__)

# Shares of a window that are not worth a line: a clip of 2.5 s in a window of 3 s.
LARGEST_WASTE = 0.25


def shortest_window_seconds(clip_seconds: float) -> int:
    """Return the shortest window that holds a clip: Whisper's feature extractor takes whole seconds alone."""
    return math.ceil(round(clip_seconds, 6))


def fit_window(
    model: PreTrainedModel, extractor: SequenceFeatureExtractor, clip_seconds: float, window: str, name: str
) -> SequenceFeatureExtractor:
    """Crop a base model's window, in place, to the clips it will be given, and say what that saves; or what it costs.

    The window that it came with is noted in its config as ``full_window_seconds``.

    Parameters
    ----------
    model : PreTrainedModel
        Audio-classification model of any type.
    extractor : SequenceFeatureExtractor
        Its feature extractor.
    clip_seconds : float
        Length of the clips, not longer than the window.
    window : {"clip", "full"}
        ``full`` crops nothing.
    name : str
        What the user calls the model.

    Returns
    -------
    SequenceFeatureExtractor
        The one to use: that of the cropped window, or `extractor`.
    """
    window_s, seconds = longest_clip_seconds(extractor, model.config), shortest_window_seconds(clip_seconds)
    if window == FULL_WINDOW or not _can_crop(model) or seconds >= window_s:
        warn_of_window(model, extractor, clip_seconds, name)
        return extractor
    before = _gmacs(model, extractor)
    model.config.full_window_seconds = getattr(model.config, "full_window_seconds", window_s)
    extractor = architecture_of(model.config).crop(model, extractor, seconds)
    log.info(
        "%s: its window of %g s is cropped to %d s for clips of %g s: %.3g GMACs a clip instead of %.3g",
        *(name, window_s, seconds, clip_seconds, _gmacs(model, extractor), before),
    )
    return extractor


def warn_of_window(model: PreTrainedModel, extractor: SequenceFeatureExtractor, clip_seconds: float, name: str) -> None:
    """Warn if a model computes much more than its clips: a window that is longer than they are.

    Parameters
    ----------
    model, extractor, clip_seconds, name
        As for `fit_window`.
    """
    can_crop = _can_crop(model)
    seconds = shortest_window_seconds(clip_seconds)
    window_s = longest_clip_seconds(extractor, model.config)
    if window_s == float("inf") or (seconds if can_crop else clip_seconds) >= (1 - LARGEST_WASTE) * window_s:
        return
    cost = "%s computes its whole window of %.4g s for clips of %g s, %.3g GMACs a clip, of which %.0f %% is padding"
    values = (name, window_s, clip_seconds, _gmacs(model, extractor), 100 * (1 - clip_seconds / window_s))
    if can_crop:
        with torch.device("meta"):
            cropped = type(model)(copy.deepcopy(model.config))
        log.warning(
            f"{cost}; with a window of %d s it would take %.3g: 02_finetuning.py crops that of a base model",
            *(*values, seconds, _gmacs(cropped, architecture_of(model.config).crop(cropped, extractor, seconds))),
        )
    else:
        log.warning(f"{cost}; its positions were learned for this window, so clips of up to it cost no more", *values)


def _can_crop(model: PreTrainedModel) -> bool:
    return has_blocks(model.config) and architecture_of(model.config).can_crop_window


def _gmacs(model: PreTrainedModel, extractor: SequenceFeatureExtractor) -> float:
    layers = list(range(model.config.num_hidden_layers))
    return model_size.SizeCounter(model, extractor).size_of(layers).macs_per_clip / 1e9
