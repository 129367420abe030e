"""Checkpoints of torchaudio's `wav2vec2_model`, as AVES and BirdAVES are published: weights, and a config beside them.

The network is that of HuBERT in transformers, under other names. The input is not normalised: neither of the programs
that trained and published these weights does so.
"""

from collections.abc import Callable
from pathlib import Path

from utils.core.errors import InputError
from utils.core.text import short, some

MODEL_TYPE = "hubert"
CONFIG_SUFFIX = ".model_config.json"
# Settings of the feature extractor: 16 kHz, and the samples as they are.
EXTRACTOR = {"feature_size": 1, "sampling_rate": 16_000, "do_normalize": False, "return_attention_mask": False}
HEAD = "aux."  # of a model for speech recognition
ADVICE = "download both files again: the README of AVES names them side by side"

# Keys of the config, their names in transformers, and what values are accepted.
_NORMS = {"group_norm": "group", "layer_norm": "layer"}


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _are_convolutions(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(layer, list) and len(layer) == 3 and all(map(_is_count, layer)) for layer in value)
    )


_COUNT, _SHARE = (_is_count, "a whole number above 0"), (_is_share, "a number from 0 to 1")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_KEYS: dict[str, tuple[str | None, tuple[Callable[[object], bool], str]]] = {
    "extractor_mode": (None, (lambda value: value in [*_NORMS], " or ".join(_NORMS))),
    "extractor_conv_layer_config": (None, (_are_convolutions, "a list of [channels, kernel, stride]")),
    "extractor_conv_bias": ("conv_bias", _SWITCH),
    "encoder_embed_dim": ("hidden_size", _COUNT),
    "encoder_projection_dropout": ("feat_proj_dropout", _SHARE),
    "encoder_pos_conv_kernel": ("num_conv_pos_embeddings", _COUNT),
    "encoder_pos_conv_groups": ("num_conv_pos_embedding_groups", _COUNT),
    "encoder_num_layers": ("num_hidden_layers", _COUNT),
    "encoder_num_heads": ("num_attention_heads", _COUNT),
    "encoder_attention_dropout": ("attention_dropout", _SHARE),
    "encoder_ff_interm_features": ("intermediate_size", _COUNT),
    "encoder_ff_interm_dropout": ("activation_dropout", _SHARE),
    "encoder_dropout": ("hidden_dropout", _SHARE),
    "encoder_layer_norm_first": ("do_stable_layer_norm", _SWITCH),
    "encoder_layer_drop": ("layerdrop", _SHARE),
}
_UNUSED = {"aux_num_out"}  # size of the head


def config_path(weights: Path) -> Path:
    """Return the place of the config: ``aves.model_config.json`` for ``aves.pt``."""
    return weights.with_suffix(CONFIG_SUFFIX)


def weights_in(where: str, content: dict) -> dict:
    """Return the weights in the content of a file, which holds nothing else."""
    return content


def config_of(where: str, given: dict) -> dict:
    """Translate the config beside a checkpoint.

    Parameters
    ----------
    where : str
        Its path, for messages.
    given : dict
        Its content.

    Returns
    -------
    dict
        Content of a ``config.json`` for transformers.

    Raises
    ------
    InputError
        If it is another kind of config, or a value cannot be right.
    """
    if missing := sorted(_KEYS.keys() - given.keys()):
        raise InputError(
            f"{where} does not describe a wav2vec2_model of torchaudio: it has no {some(missing, 3)}; {ADVICE}"
        )
    if unknown := sorted(given.keys() - _KEYS.keys() - _UNUSED):
        raise InputError(f"{where} has {some(unknown, 3)}, which wav2vec2_model of torchaudio does not know; {ADVICE}")
    for key, (_, (holds, expected)) in _KEYS.items():
        if not holds(given[key]):
            raise InputError(f"{where}: {key} is {short(given[key])}; expected {expected}; {ADVICE}")
    convolutions = given["extractor_conv_layer_config"]
    names = ("conv_dim", "conv_kernel", "conv_stride")
    return {
        "model_type": MODEL_TYPE,
        **{theirs: given[key] for key, (theirs, _) in _KEYS.items() if theirs is not None},
        "feat_extract_norm": _NORMS[given["extractor_mode"]],
        **dict(zip(names, map(list, zip(*convolutions, strict=True)), strict=True)),
        "num_feat_extract_layers": len(convolutions),
        "mask_time_prob": 0.0,  # there is no embedding of masked frames in these files
    }


def weight_name(name: str) -> str | None:
    """Return the name of a weight in transformers; None for a weight of the head."""
    if name.startswith(HEAD):
        return None
    for theirs, ours in (("encoder.feature_projection.", "feature_projection."), ("encoder.transformer.", "encoder.")):
        if name.startswith(theirs):
            return f"hubert.{ours}{name.removeprefix(theirs)}"
    return f"hubert.{name}"
