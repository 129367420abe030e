"""The size of a model, whole or with fewer blocks: parameters, multiply-accumulates, bytes of weights.

Sizes are counted on a copy without weights (PyTorch's ``meta`` device). Every subset of the blocks is counted exactly,
by building that model, in a fraction of a second and without memory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, lazy
from utils.models import model_folder

with lazy.imported_on_first_use():
    import numpy as np
    import torch

    from utils.models import architectures, encoders, latency

if TYPE_CHECKING:
    from utils.models.loaded_model import LoadedModel

MEGABYTE = 1e6
# How a table calls the widths of a model.
WIDTHS = {"ffn_size": "FFN units", "conv_channels": "channels", "heads": "heads"}
DEFAULT_CLIP_SECONDS = 5.0  # the default of 01_data_processing.py


@dataclass(frozen=True)
class ModelSize:
    """The result of `SizeCounter.size_of`.

    Attributes
    ----------
    kept_layers : list of int
        The blocks, in the numbering of the base model.
    n_parameters : int
    macs_per_clip, macs_front_end : int
        Multiply-accumulates of one clip; see `latency.count_macs`.
    weights_bytes : int
        Size of the saved weights, in float32.
    widths : dict of str to int
        See `architectures.widths_of`; empty in the records of earlier versions.
    """

    kept_layers: list[int]
    n_parameters: int
    macs_per_clip: int
    macs_front_end: int
    weights_bytes: int
    widths: dict[str, int] = field(default_factory=dict)


class SizeCounter:
    """Counts the size of a model with some of its blocks.

    The results stay the same if the model is pruned afterwards.

    Parameters
    ----------
    loaded : LoadedModel
    clip_seconds : float, optional
        Length of the clip, if the model has no window. Default: as in its training.

    Attributes
    ----------
    clip : str
        The clip whose multiply-accumulates are counted, in words.
    """

    def __init__(self, loaded: LoadedModel, clip_seconds: float | None = None):
        self._class, self._config = type(loaded.model), copy.deepcopy(loaded.config)
        window_s = architectures.longest_clip_seconds(loaded.extractor, loaded.config)
        trained_s = getattr(loaded.config, "clip_seconds", None)
        if window_s < float("inf"):
            clip_s, self.clip = window_s, f"{window_s:g} s, the window of the model"
        elif clip_seconds is not None:
            clip_s, self.clip = clip_seconds, f"{clip_seconds:g} s"
        elif trained_s is not None:
            clip_s, self.clip = trained_s, f"{trained_s:g} s, as in its training"
        else:
            clip_s, self.clip = DEFAULT_CLIP_SECONDS, f"{DEFAULT_CLIP_SECONDS:g} s"
        rate_hz = loaded.extractor.sampling_rate
        silence = np.zeros(round(clip_s * rate_hz), dtype=np.float32)
        self._inputs = replace(loaded, device="meta").prepare([silence], rate_hz)

    def size_of(self, keep: list[int], changes: Mapping[str, object] | None = None) -> ModelSize:
        """Return the size of the model with only the blocks `keep`.

        Parameters
        ----------
        keep : list of int
            Ascending, in the numbering of the model.
        changes : mapping of str to object, optional
            Other values of its config, such as `width.Widths.changes`. Default: none.

        Raises
        ------
        UsageError
            If this model cannot keep these blocks.
        """
        config = copy.deepcopy(self._config)
        for name, value in (changes or {}).items():
            setattr(config, name, value)
        with torch.device("meta"):
            skeleton = self._class(config).eval()
        encoders.prune_model(skeleton, keep)
        macs, macs_front_end = latency.count_macs(skeleton, self._inputs)
        return ModelSize(
            kept_layers=skeleton.config.kept_layers,
            n_parameters=encoders.count_parameters(skeleton),
            macs_per_clip=macs,
            macs_front_end=macs_front_end,
            weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in skeleton.state_dict().values()),
            widths=architectures.widths_of(config),
        )


def weights_on_disk(model_dir: Path) -> int:
    """Return the bytes of the weights in a model folder: safetensors, or the older format if there is none."""
    sizes = ([path.stat().st_size for path in model_dir.glob(f"*{suffix}")] for suffix in model_folder.WEIGHT_SUFFIXES)
    return sum(next(filter(None, sizes)))


def size_table(sizes: Mapping[str, ModelSize]) -> str:
    """Return sizes as aligned text, one row per size, named by their keys; a width only if sizes differ in it."""
    widths = {name: [size.widths.get(name) for size in sizes.values()] for name in WIDTHS}
    differing = [name for name, numbers in widths.items() if len(set(numbers)) > 1]
    rows = {
        name: {
            "blocks": str(len(size.kept_layers)),
            "kept_layers": cli.format_layer_list(size.kept_layers),
            **{WIDTHS[width]: f"{size.widths[width]:,}" for width in differing},
            "parameters": f"{size.n_parameters:,}",
            "GMACs per clip": f"{size.macs_per_clip / 1e9:.4g}",
            "front end": f"{size.macs_front_end / size.macs_per_clip:.1%}",
            "MB on disk": f"{size.weights_bytes / MEGABYTE:.1f}",
        }
        for name, size in sizes.items()
    }
    cells = [["", *next(iter(rows.values()))], *([name, *row.values()] for name, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join([name.ljust(widths[0]), *map(str.rjust, row, widths[1:])]) for name, *row in cells)
