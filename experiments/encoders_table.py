"""Print the sizes of published encoders, as the table in docs/encoders.md has them.

    python -m experiments.encoders_table

No weights are needed: the network of each published config is built without memory, and its multiply-accumulates for a
clip of 5 s are counted. Whisper's window is cropped to the clip, as stage 02 does; AST computes its whole window of
10.24 s. Parameters are those of the encoder, without a classification head.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import torch
from transformers import AutoConfig, AutoModelForAudioClassification

from utils.models import encoders, loading, model_size
from utils.models.architectures import architecture_of
from utils.models.loaded_model import LoadedModel

CLIP_SECONDS = 5
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# The keys in which a published config differs from the default of transformers.
PUBLISHED = {
    "AVES, BirdAVES-base": ("hubert", {}),
    "BirdAVES-large": ("hubert", _LARGE),
    "sl-beats-bio, sl-beats-all, NatureLM-BEATs": ("beats", {}),
    "BEATs iter3+": ("beats", {}),
    "wav2vec2 of BirdSet": ("wav2vec2", {}),
    "AST of BirdSet": ("audio-spectrogram-transformer", {}),
    "wav2vec2-base": ("wav2vec2", {}),
    "HuBERT-base": ("hubert", {}),
    "WavLM-base": ("wavlm", {}),
    "data2vec-audio-base": ("data2vec-audio", {}),
    "UniSpeech-SAT-base": ("unispeech-sat", {}),
    "UniSpeech-large": (
        "unispeech",
        {**_LARGE, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True},
    ),
    "wav2vec2-conformer-large": (
        "wav2vec2-conformer",
        {**_LARGE, "feat_extract_norm": "layer", "conv_bias": True, "position_embeddings_type": "relative"},
    ),
    "wav2vec2-BERT 2.0": ("wav2vec2-bert", {}),
    "SEW-mid": ("sew", {"num_hidden_layers": 24, "num_conv_pos_embeddings": 31}),
    "SEW-D-tiny": (
        "sew-d",
        {
            **{"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
            **{"num_conv_pos_embeddings": 31, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
        },
    ),
    "Whisper-base": (
        "whisper",
        {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    ),
    "AST": ("audio-spectrogram-transformer", {}),
}


def size_of(model_type: str, keys: dict) -> model_size.ModelSize:
    """Return the size of an encoder with two labels, for a clip of `CLIP_SECONDS`."""
    config = AutoConfig.for_model(model_type, **keys)
    extractor = loading.extractor_class(config)()
    with torch.device("meta"):
        model = AutoModelForAudioClassification.from_config(config).eval()
    architecture = architecture_of(config)
    if architecture.can_crop_window:
        extractor = architecture.crop(model, extractor, CLIP_SECONDS)
    counter = model_size.SizeCounter(LoadedModel(model, extractor, "meta"), CLIP_SECONDS)
    size = counter.size_of(list(range(config.num_hidden_layers)))
    n_head = sum(parameter.numel() for parameter in encoders.head_parameters(model))
    return dataclasses.replace(size, n_parameters=size.n_parameters - n_head)


def rows() -> list[str]:
    """Return a line of Markdown for each encoder: name, parameters, blocks, GMACs, share of the front end."""
    lines = []
    for name, (model_type, keys) in PUBLISHED.items():
        size = size_of(model_type, keys)
        share = size.macs_front_end / size.macs_per_clip
        lines.append(
            f"| {name} | {size.n_parameters / 1e6:.1f} M | {len(size.kept_layers)} | {size.macs_per_clip / 1e9:.1f} | "
            f"{share:.1%} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    print("\n".join(rows()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
