"""Checkpoints of BEATs in one file: Microsoft's ``.pt``, with a config, and the Earth Species Project's safetensors.

The first holds ``cfg`` and ``model``; the second holds only weights, whose names begin with ``backbone.``. The shape of
the network is that of the weights. What no weight tells stands in ``cfg``; without it, it is that of all published
models, which have 12 blocks.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.errors import InputError
from utils.core.text import short, some

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MODEL_TYPE = "beats"
EXTRACTOR: dict[str, object] = {}  # as `BeatsFeatureExtractor` is by default
ADVICE = "download the file again; docs/encoders.md names the published ones"
PREFIX = "backbone."
HEADS = ("predictor.", "classifier.")  # for the sounds of AudioSet, or for species
COMPUTED = "fbank."  # the window and the bands of the spectrogram
POSITIONS = "relative_attention_bias.weight"  # one for all blocks, under the name of each

# What no weight tells: keys of cfg, and the only value that the network of this project has.
_FIXED = {
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
# Keys that not every cfg has; the spectrogram is fixed.
_SPECTROGRAM = {
    **{"sample_frequency": 16_000, "num_mel_bins": 128, "frame_length": 25, "frame_shift": 10},
    **{"fbank_mean": 15.41663, "fbank_std": 6.55582},
}
_DROPOUTS = {
    "dropout_input": "feat_proj_dropout",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
}
_PUBLISHED_DEPTH = 12
# By key of cfg: its name in `BeatsConfig`, a weight, and what of its shape it is.
_SHAPES = {
    "input_patch_size": ("patch_size", "patch_embedding.weight", lambda shape: shape[3]),
    "embed_dim": ("embed_size", "patch_embedding.weight", lambda shape: shape[0]),
    "encoder_embed_dim": ("hidden_size", "encoder.layer_norm.weight", lambda shape: shape[0]),
    "encoder_ffn_embed_dim": ("intermediate_size", "encoder.layers.0.fc1.weight", lambda shape: shape[0]),
    "encoder_attention_heads": ("num_attention_heads", "encoder.layers.0.self_attn.grep_a", lambda shape: shape[1]),
    "num_buckets": ("num_buckets", f"encoder.layers.0.self_attn.{POSITIONS}", lambda shape: shape[0]),
    "conv_pos": ("num_conv_pos_embeddings", "encoder.pos_conv.0.weight_v", lambda shape: shape[2]),
    "conv_pos_groups": (
        "num_conv_pos_embedding_groups",
        "encoder.pos_conv.0.weight_v",
        lambda shape: shape[0] // shape[1],
    ),
}
# PyTorch's names since 2.0 for the two parts of a normed weight, and those before.
_OLD_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def config_path(weights: Path) -> Path | None:
    """Return None: no file beside the weights has the config."""
    return None


def weights_in(where: str, content: dict) -> dict:
    """Return the weights in the content of a file.

    Raises
    ------
    InputError
        If it is a file of PyTorch without ``cfg`` and ``model``.
    """
    if where.endswith(".safetensors"):
        return content
    if not all(isinstance(content.get(key), dict) for key in ("cfg", "model")):
        beside = Path(where).with_suffix(".model_config.json").name
        raise InputError(
            f"{where} holds {some([short(key) for key in content], 3) or 'nothing'}; expected the cfg and the model of "
            f"BEATs. If it is AVES or BirdAVES, it has no {beside} beside it, which describes the network; the folder "
            "of another model needs a config.json"
        )
    return content["model"]


def config_in(where: str, content: dict, weights: Mapping[str, "torch.Tensor"]) -> dict[str, Any]:
    """Return what a ``config.json`` would hold.

    Parameters
    ----------
    where : str
        The user's name for the file.
    content : dict
        Of the file.
    weights : mapping of str to Tensor
        From `weights_in`; their numbers are not read.

    Raises
    ------
    InputError
        If weights are missing that tell the shape, ``cfg`` says otherwise, or it is a network of another kind.
    """
    shapes = {_known_name(name): tuple(value.shape) for name, value in weights.items()}
    needed = {weight for _, weight, _ in _SHAPES.values()}
    if missing := sorted(needed - shapes.keys()):
        raise InputError(f"{where} has no {some(missing, 3)}, so it is not a whole BEATs; {ADVICE}")
    found = {}
    for key, (_, weight, part) in _SHAPES.items():
        try:
            found[key] = part(shapes[weight])
        except (IndexError, ZeroDivisionError) as error:
            raise InputError(
                f"{where}: {weight} has the shape {shapes[weight]}, which no BEATs has; {ADVICE}"
            ) from error
    found["encoder_layers"] = 1 + max(int(re.findall(r"\d+", name)[0]) for name in shapes if "encoder.layers." in name)
    found["conv_bias"] = "patch_embedding.bias" in shapes
    given = content.get("cfg") if weights is not content else _published(where, found)
    for key, value in found.items():
        if given.get(key, value) != value:
            raise InputError(
                f"{where}: cfg says {key} {short(given[key])}, the weights have {value}: it is the config of another "
                f"model; {ADVICE}"
            )
    for key, value in (_FIXED | {key: value for key, value in _SPECTROGRAM.items() if key in given}).items():
        if given.get(key) != value:
            raise InputError(f"{where}: cfg has {key} {short(given.get(key))}; this project's BEATs has {short(value)}")
    if not isinstance(given.get("deep_norm"), bool):
        raise InputError(f"{where}: cfg has deep_norm {short(given.get('deep_norm'))}; expected true or false")
    farthest, near = given.get("max_distance"), found["num_buckets"] // 4
    if type(farthest) is not int or farthest <= near:
        raise InputError(f"{where}: cfg has max_distance {short(farthest)}; expected a whole number above {near}")
    for key in _DROPOUTS.keys() & given.keys():
        if type(given[key]) not in (int, float) or not 0 <= given[key] < 1:
            raise InputError(f"{where}: cfg has {key} {short(given[key])}; expected a number from 0 to 1")
    return {
        "model_type": MODEL_TYPE,
        **{ours: found[key] for key, (ours, _, _) in _SHAPES.items()},
        "num_hidden_layers": found["encoder_layers"],
        "conv_bias": found["conv_bias"],
        "max_bucket_distance": farthest,
        "deep_norm_depth": found["encoder_layers"] if given["deep_norm"] else 0,
        **{ours: given[key] for key, ours in _DROPOUTS.items() if key in given},
    }


def _published(where: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what stands in the cfg of every published model and in no weight, and say so."""
    if found["encoder_layers"] != _PUBLISHED_DEPTH:
        raise InputError(
            f"{where} has {found['encoder_layers']} blocks and no config, and the published models have "
            f"{_PUBLISHED_DEPTH}: the factor of its residual connections depends on the depth as trained, which no "
            "weight tells; give a whole model, and let stage 07 remove its blocks"
        )
    log.warning(
        "%s has no config: its max_distance, its DeepNorm and its order of norms are taken to be those of all "
        "published models of BEATs",
        where,
    )
    return {**_FIXED, "deep_norm": True, "max_distance": 800}


def _known_name(name: str) -> str:
    """Return the name of a weight as Microsoft's files have it."""
    name = name.removeprefix(PREFIX)
    return next((name.replace(new, old) for new, old in _OLD_NAMES.items() if new in name), name)


def weight_name(name: str) -> str | None:
    """Return the name of a weight in `beats_encoder`; None for one that it does not have."""
    name = _known_name(name)
    if name.startswith((*HEADS, COMPUTED)):
        return None
    if name.endswith(POSITIONS):
        return f"beats.encoder.{POSITIONS}"
    name = name.replace("pos_conv.0.", "pos_conv.")
    return "beats." + next((name.replace(old, new) for new, old in _OLD_NAMES.items() if name.endswith(old)), name)
