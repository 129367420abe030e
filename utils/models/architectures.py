"""All that depends on an architecture: the paths of its parts, the length of its input, its pooling. The only list.

Another encoder with the shape of wav2vec 2.0 is one entry of `ARCHITECTURES`. One with its own window or pooling is a
subclass. A model type that is not listed is refused. This module imports nothing large, because help texts print the
list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.core.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor

# Options for Whisper's window: crop it to the clips, or compute it in full.
WINDOWS = CLIP_WINDOW, FULL_WINDOW = ("clip", "full")
# Options for how the frames of a clip become one vector. The type of a model with attention over frames has a suffix.
POOLINGS = MEAN, ATTENTION, LAYERS = ("mean", "attention", "layers")
ATTENTION_SUFFIX = "_attention"
# The networks of `bird_cnn`, which have no blocks: the names in stage 06, and their model types.
CNNS = {"melspectrogram": "melspectrogram_cnn", "waveform": "waveform_cnn"}
CNN_HEAD = ("classifier",)
# Kaldi's filter bank, at 16 kHz.
FRAME_S, SHIFT_S, RATE_HZ = 0.025, 0.010, 16_000


@dataclass(frozen=True)
class Architecture:
    """An encoder that reads clips of any length and pools its frames. Parts are paths from the whole model.

    Attributes
    ----------
    name : str
        The usual name in the literature.
    blocks : str
        The list of transformer blocks.
    feature_encoder : tuple of str
        The convolutions (or patch embedding) before the blocks.
    final_norm : str, optional
        The norm between the last block and the head. Default: no norm, whatever the config contains.
    head : tuple of str
        The modules that fine-tuning adds to a base model, in order.
    stable_norm_only : bool
        True if only models with ``do_stable_layer_norm`` apply the final norm there, and others before the blocks.
    can_sum_layers : bool
        True if the model can pool a weighted sum of all its layers (``use_weighted_layer_sum``).
    sums_normed : bool
        True if that sum uses the last layer after the final norm. Other models use it before the norm, so that the norm
        has no effect. Checked in transformers 5.23.0: the encoder's ``capture_outputs`` sets this, and the key
        ``tie_last_hidden_states`` of a config overrides it.
    protected : frozenset of int
        Blocks that hold weights which the other blocks use; they can only be removed together with all blocks.
    feed_forward : tuple of str
        The two linear layers of a block's feed-forward network, as paths from it; the second is the last linear
        layer of the block, and its output is added to the hidden states.
    feed_forward_scale : float
        By which this output is multiplied before.
    other_feed_forward : tuple of str, optional
        The same two layers of another network of the block, of the same size. Default: there is none.
    output_norm : str, optional
        The norm at the end of a block, as a path from it; with `stable_norm_only` none if the config has
        ``do_stable_layer_norm``. Default: there is none.
    feed_forward_size : str
        The key of a config that holds the number of units between these two layers, one number for all blocks.
    convolutions : str, optional
        The list of convolutions whose numbers of output channels are ``conv_dim`` of a config. Default: there are none.
    feature_projection : str, optional
        The norm and the linear layer after these convolutions: ``layer_norm`` (if there is one) and ``projection``.
    attention : tuple of str, optional
        The linear layers that write queries, keys and values, and the one that reads the heads, as paths from a block;
        only if a config can hold fewer heads of the same size, by ``head_dim``. Default: it cannot.
    upsampling : str, optional
        The module after the blocks that makes the frames of the convolutions again of theirs; a weighted sum of all
        layers does not read it. Default: there is none.
    read_by_blocks : tuple of str
        Modules before the blocks that only the blocks read.
    unread : tuple of str
        Modules that nothing reads.
    exports_plain_attention : bool
        True if PyTorch 2.11 exports the network only without the fused kernel of the attention.
    extractor : str, optional
        The class of its feature extractor in transformers. Default: the one that transformers lists for it.
    """

    name: str
    blocks: str
    feature_encoder: tuple[str, ...]
    final_norm: str | None = None
    head: tuple[str, ...] = ("projector", "classifier")
    stable_norm_only: bool = False
    can_sum_layers: bool = True
    sums_normed: bool = False
    protected: frozenset[int] = frozenset()
    feed_forward: tuple[str, str] = ("feed_forward.intermediate_dense", "feed_forward.output_dense")
    feed_forward_scale: float = 1.0
    other_feed_forward: tuple[str, str] | None = None
    output_norm: str | None = None
    feed_forward_size: str = "intermediate_size"
    convolutions: str | None = None
    feature_projection: str | None = None
    attention: tuple[str, ...] | None = None
    upsampling: str | None = None
    read_by_blocks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    exports_plain_attention: bool = False
    extractor: str | None = None

    can_crop_window = False
    # Whether all models of this kind that are known read their input as `extractor_settings` describes it.
    has_usual_extractor = True

    @property
    def can_attend(self) -> bool:
        """Whether the model projects its frames and takes their mean, so that attention can take its place."""
        return self.head == ("projector", "classifier")

    def longest_clip_seconds(self, extractor: SequenceFeatureExtractor, config: PreTrainedConfig) -> float:
        """Return the longest clip, in seconds, that a model reads in full; infinite if it has no window."""
        return float("inf")

    def shortest_clip_samples(self, config: PreTrainedConfig) -> int:
        """Return the least number of samples that gives one frame: the receptive field of the convolutions."""
        n_samples = self.n_frames_of_shortest_clip(config)
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            n_samples = (n_samples - 1) * stride + kernel
        return n_samples

    def n_frames_of_shortest_clip(self, config: PreTrainedConfig) -> int:
        """Return how many frames of the convolutions a block needs."""
        return 1

    def after_blocks(self, model: PreTrainedModel, hidden_states: torch.Tensor, n_samples: int) -> torch.Tensor:
        """Return the output of the last block as the final norm and the pooling read it.

        Parameters
        ----------
        model : PreTrainedModel
        hidden_states : Tensor, shape (batch, frames, hidden_size)
        n_samples : int
            Length of the model's input.
        """
        return hidden_states

    def pooled(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the mean over all frames, shape (batch, hidden_size)."""
        return hidden_states.mean(dim=1)

    def hears(
        self, model: PreTrainedModel, extractor: SequenceFeatureExtractor, n_samples: int, n_frames: int
    ) -> list[bool]:
        """Return for each frame whether it covers the clip, and not the silent padding of a window."""
        return [True] * n_frames

    def extractor_class(self, model_type: str) -> str | None:
        """Return the name of its feature extractor in transformers; None if that has none."""
        from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

        return self.extractor or FEATURE_EXTRACTOR_MAPPING_NAMES.get(model_type)

    def extractor_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the most likely arguments of its feature extractor, for a folder without that file."""
        return {"do_normalize": True}


class Whisper(Architecture):
    """Reads a window (30 s in published models), padded with silence; its positions are sinusoids from the start."""

    can_crop_window = True

    def longest_clip_seconds(self, extractor: SequenceFeatureExtractor, config: PreTrainedConfig) -> float:
        """Return the length of the window."""
        return float(extractor.chunk_length)

    def shortest_clip_samples(self, config: PreTrainedConfig) -> int:
        """Return 1: a clip that is shorter than the window is padded."""
        return 1

    def hears(
        self, model: PreTrainedModel, extractor: SequenceFeatureExtractor, n_samples: int, n_frames: int
    ) -> list[bool]:
        """Return for each frame whether it begins within the clip."""
        n_heard = -(-n_samples // (extractor.hop_length * self._stride(model)))
        return [frame < n_heard for frame in range(n_frames)]

    def extractor_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the number of bands and the seconds of the window."""
        n_positions = config.get("max_source_positions")
        seconds = n_positions // 50 if isinstance(n_positions, int) else 30
        return {"feature_size": config.get("num_mel_bins", 80), "chunk_length": seconds}

    def crop(
        self, model: PreTrainedModel, extractor: SequenceFeatureExtractor, seconds: int
    ) -> SequenceFeatureExtractor:
        """Give a model a shorter window, in place: its positions are the first rows of those of the longer window."""
        from torch import nn

        extractor = type(extractor).from_dict({**extractor.to_dict(), "chunk_length": seconds})
        encoder, n_positions = model.encoder, extractor.nb_max_frames // self._stride(model)
        first = encoder.embed_positions.weight.detach()[:n_positions].clone()
        encoder.embed_positions = nn.Embedding.from_pretrained(first, freeze=True)
        encoder.max_source_positions = model.config.max_source_positions = n_positions
        return extractor

    def _stride(self, model: PreTrainedModel) -> int:
        return model.encoder.conv1.stride[0] * model.encoder.conv2.stride[0]


class SpectrogramTransformer(Architecture):
    """AST: patches of a spectrogram of fixed length with learned positions, after two class tokens."""

    n_tokens = 2
    has_usual_extractor = False  # mean and deviation are those of the training data

    def longest_clip_seconds(self, extractor: SequenceFeatureExtractor, config: PreTrainedConfig) -> float:
        """Return the length of the spectrogram."""
        return (config.max_length - 1) * SHIFT_S + FRAME_S

    def shortest_clip_samples(self, config: PreTrainedConfig) -> int:
        """Return one frame of its filter bank."""
        return round(FRAME_S * RATE_HZ)

    def pooled(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the mean of the class tokens, shape (batch, hidden_size)."""
        return hidden_states[:, : self.n_tokens].mean(dim=1)

    def hears(
        self, model: PreTrainedModel, extractor: SequenceFeatureExtractor, n_samples: int, n_frames: int
    ) -> list[bool]:
        """Return for each token whether it is a patch that begins within the clip; patches overlap."""
        config, rate = model.config, extractor.sampling_rate
        n_mel_frames = 1 + max(0, n_samples - round(FRAME_S * rate)) // round(SHIFT_S * rate)
        starts = range(0, config.max_length - config.patch_size + 1, config.time_stride)
        n_bands = (n_frames - self.n_tokens) // len(starts)  # tokens run through time first, then to the next band
        return [False] * self.n_tokens + [start < n_mel_frames for start in starts] * n_bands

    def extractor_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the number of bands and of frames, and mean and deviation of AudioSet."""
        sizes = {"num_mel_bins": config.get("num_mel_bins", 128), "max_length": config.get("max_length", 1024)}
        return {**sizes, "mean": -4.2677393, "std": 4.5689974}


class Beats(Architecture):
    """BEATs of `beats_encoder`: patches of a spectrogram of any length; the frames that fill no patch are left out."""

    has_usual_extractor = False  # only this project writes such folders, always with the file

    def shortest_clip_samples(self, config: PreTrainedConfig) -> int:
        """Return the samples of one patch."""
        return round((FRAME_S + (config.patch_size - 1) * SHIFT_S) * RATE_HZ)


class Squeezed(Architecture):
    """SEW and SEW-D: the blocks get the mean of some frames, and an upsampling after them gives as many as before."""

    def n_frames_of_shortest_clip(self, config: PreTrainedConfig) -> int:
        """Return how many frames become one."""
        return config.squeeze_factor

    def after_blocks(self, model: PreTrainedModel, hidden_states: torch.Tensor, n_samples: int) -> torch.Tensor:
        """Return as many frames as the convolutions give; zeros stand for the last ones, which fill no mean."""
        from torch import nn

        n_frames = n_samples
        for kernel, stride in zip(model.config.conv_kernel, model.config.conv_stride, strict=True):
            n_frames = (n_frames - kernel) // stride + 1
        upsampled = model.get_submodule(self.upsampling)(hidden_states)
        return nn.functional.pad(upsampled, (0, 0, 0, n_frames - upsampled.shape[1]))


class MelFrames(Architecture):
    """wav2vec 2.0 BERT: pairs of frames of a log-mel spectrogram, each band of which the extractor normalises."""

    def shortest_clip_samples(self, config: PreTrainedConfig) -> int:
        """Return two frames of the spectrogram: one alone has no variance."""
        return round((FRAME_S + SHIFT_S) * RATE_HZ)

    def extractor_settings(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the number of bands."""
        size = config.get("feature_projection_input_dim")
        n_bands = size // 2 if isinstance(size, int) else 80
        return {"feature_size": n_bands, "num_mel_bins": n_bands}


def _like_wav2vec2(name: str, prefix: str, **differences: Any) -> Architecture:
    """Return the entry of a model that has the parts of wav2vec 2.0, below a name of its own."""
    usual = {"final_norm": f"{prefix}.encoder.layer_norm", "stable_norm_only": True, "output_norm": "final_layer_norm"}
    usual["convolutions"] = f"{prefix}.feature_extractor.conv_layers"
    usual["feature_projection"] = f"{prefix}.feature_projection"
    return Architecture(name, f"{prefix}.encoder.layers", (f"{prefix}.feature_extractor",), **{**usual, **differences})


# A conformer block ends with half of the output of its second feed-forward network, and a norm.
_CONFORMER_BLOCK = {
    "feed_forward": ("ffn2.intermediate_dense", "ffn2.output_dense"),
    "other_feed_forward": ("ffn1.intermediate_dense", "ffn1.output_dense"),
    "feed_forward_scale": 0.5,
    "exports_plain_attention": True,
}
ARCHITECTURES = {
    "wav2vec2": _like_wav2vec2("wav2vec2", "wav2vec2"),
    "hubert": _like_wav2vec2("HuBERT", "hubert"),
    # Block 0 of WavLM holds the embedding of relative positions that all blocks add to their attention.
    "wavlm": _like_wav2vec2("WavLM", "wavlm", protected=frozenset({0})),
    # This encoder applies its norm only before the blocks, and does not read do_stable_layer_norm.
    "data2vec-audio": _like_wav2vec2("data2vec-audio", "data2vec_audio", final_norm=None, stable_norm_only=False),
    "unispeech-sat": _like_wav2vec2("UniSpeech-SAT", "unispeech_sat"),
    "unispeech": _like_wav2vec2("UniSpeech", "unispeech"),
    "wav2vec2-conformer": _like_wav2vec2(
        "wav2vec2-conformer",
        "wav2vec2_conformer",
        stable_norm_only=False,
        # In transformers 5.23.0; the attention adds positions of its own.
        unread=("wav2vec2_conformer.encoder.pos_conv_embed",),
        **_CONFORMER_BLOCK,
    ),
    "wav2vec2-bert": MelFrames(
        "wav2vec2-BERT",
        "wav2vec2_bert.encoder.layers",
        ("wav2vec2_bert.feature_projection",),
        extractor="SeamlessM4TFeatureExtractor",
        output_norm="final_layer_norm",
        **_CONFORMER_BLOCK,
    ),
    "sew": Squeezed(
        "SEW",
        "sew.encoder.layers",
        ("sew.feature_extractor",),
        output_norm="final_layer_norm",
        upsampling="sew.encoder.upsample",
    ),
    "sew-d": Squeezed(
        "SEW-D",
        "sew_d.encoder.encoder.layer",
        ("sew_d.feature_extractor",),
        feed_forward=("intermediate.dense", "output.dense"),
        output_norm="output.LayerNorm",
        upsampling="sew_d.encoder.upsample",
        read_by_blocks=("sew_d.encoder.encoder.rel_embeddings", "sew_d.encoder.encoder.LayerNorm"),
    ),
    "whisper": Whisper(
        "Whisper",
        "encoder.layers",
        ("encoder.conv1", "encoder.conv2"),
        final_norm="encoder.layer_norm",
        sums_normed=True,
        feed_forward=("fc1", "fc2"),
        feed_forward_size="encoder_ffn_dim",
    ),
    "audio-spectrogram-transformer": SpectrogramTransformer(
        "AST",
        "audio_spectrogram_transformer.layers",
        ("audio_spectrogram_transformer.embeddings.patch_embeddings",),
        final_norm="audio_spectrogram_transformer.layernorm",
        head=("classifier",),
        can_sum_layers=False,
        feed_forward=("mlp.fc1", "mlp.fc2"),
        attention=("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    ),
    "beats": Beats(
        "BEATs",
        "beats.encoder.layers",
        ("beats.patch_embedding",),
        head=("classifier",),
        can_sum_layers=False,
        feed_forward=("fc1", "fc2"),
        output_norm="final_layer_norm",
        read_by_blocks=("beats.encoder.relative_attention_bias",),
    ),
}
# The list in help texts and messages.
NAMES = ", ".join(architecture.name for architecture in ARCHITECTURES.values())


def check_known(model_type: str) -> None:
    """Refuse a model type that no stage supports.

    Raises
    ------
    InputError
    """
    if model_type not in CNNS.values():
        _entry(model_type)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the entry for the model type of `config`.

    Raises
    ------
    InputError
        If it is not a transformer encoder that this project supports.
    """
    return _entry(config.model_type)


def _entry(model_type: str) -> Architecture:
    found = ARCHITECTURES.get(plain_type(model_type))
    if found is None or (attends(model_type) and not found.can_attend):
        raise InputError(
            f"a {model_type!r} model has no transformer blocks that this project supports; it supports {NAMES}"
        )
    return found


def plain_type(model_type: str) -> str:
    """Return the type of a model with the same encoder and the pooling of transformers."""
    return model_type.removesuffix(ATTENTION_SUFFIX)


def attends(model_type: str) -> bool:
    """Return whether models of a type pool their frames by attention; see `attention_head`."""
    return model_type.endswith(ATTENTION_SUFFIX)


def has_blocks(config: PreTrainedConfig) -> bool:
    """Return whether a model has transformer blocks; the CNNs of stage 06 have none.

    Raises
    ------
    InputError
        If this project does not support the model type.
    """
    check_known(config.model_type)
    return config.model_type not in CNNS.values()


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer blocks of a model, first to last."""
    return model.get_submodule(architecture_of(model.config).blocks)


def pooling_of(config: PreTrainedConfig) -> str:
    """Return how a model pools its frames: one of `POOLINGS`."""
    return ATTENTION if attends(config.model_type) else LAYERS if sums_layers(config) else MEAN


def sums_layers(config: PreTrainedConfig) -> bool:
    """Return whether a model pools a weighted sum of all its layers."""
    return architecture_of(config).can_sum_layers and getattr(config, "use_weighted_layer_sum", False)


def final_norm_of(model: PreTrainedModel) -> nn.Module | None:
    """Return the norm between the last block and the head, if it changes the logits; otherwise None."""
    config, architecture = model.config, architecture_of(model.config)
    if architecture.final_norm is None:
        return None
    if architecture.stable_norm_only and not getattr(config, "do_stable_layer_norm", False):
        return None
    overruled = getattr(config, "tie_last_hidden_states", None)
    if sums_layers(config) and not (architecture.sums_normed if overruled is None else overruled):
        return None
    return model.get_submodule(architecture.final_norm)


def output_norm_of(block: nn.Module, config: PreTrainedConfig) -> nn.Module | None:
    """Return the norm at the end of a block, or None if its output is a plain sum."""
    architecture = architecture_of(config)
    if architecture.output_norm is None:
        return None
    if architecture.stable_norm_only and getattr(config, "do_stable_layer_norm", False):
        return None
    return block.get_submodule(architecture.output_norm)


def widths_of(config: PreTrainedConfig) -> dict[str, int]:
    """Return the widths of a model that can be cut: units of a block, channels of all convolutions, heads of a block.

    Returns
    -------
    dict of str to int
        ``ffn_size``; ``conv_channels`` and ``heads`` only if the architecture can have fewer of them.
    """
    architecture = architecture_of(config)
    widths = {"ffn_size": getattr(config, architecture.feed_forward_size)}
    if architecture.convolutions is not None:
        widths["conv_channels"] = sum(config.conv_dim)
    if architecture.attention is not None:
        widths["heads"] = config.num_attention_heads
    return widths


def longest_clip_seconds(extractor: SequenceFeatureExtractor, config: PreTrainedConfig) -> float:
    """Return the longest clip, in seconds, that a model reads in full; infinite if it has no window.

    Feature extractors with a fixed window cut longer clips without a warning.
    """
    if not has_blocks(config):
        return float("inf")
    return architecture_of(config).longest_clip_seconds(extractor, config)


def shortest_clip_samples(config: PreTrainedConfig) -> int:
    """Return the least number of samples that gives one frame of a model."""
    return architecture_of(config).shortest_clip_samples(config) if has_blocks(config) else 1
