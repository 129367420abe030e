"""BEATs: a transformer over patches of a spectrogram, which transformers lacks (Chen et al. 2022, arXiv 2212.09058).

Importing this module registers the encoder and its feature extractor with the Auto classes; then ``from_pretrained``
and ``transformers.pipeline("audio-classification")`` support them. The names of the weights are those of the published
files, but for two: the embedding of relative positions, one for all blocks, stands once, before the blocks; and the
positional convolution is a module, not the first of a list.

A copy of this file is saved in the folder of every such model, so that the model can be loaded without this project:
``sys.path.insert(0, folder)``, then ``import beats_encoder``. This file therefore needs only torch, numpy and
transformers.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The filter bank of Kaldi, as torchaudio.compliance.kaldi.fbank computes it by default.
FRAME_S = 0.025
SHIFT_S = 0.010
PRE_EMPHASIS = 0.97
WINDOW_POWER = 0.85  # of a Hann window: Povey's
LOWEST_HZ = 20.0
FULL_SCALE = 2.0**15
N_GATES, N_PER_GATE = 2, 4


class BeatsConfig(PreTrainedConfig):
    """The shape of the published models, all of which have 12 blocks of 768 units.

    Attributes
    ----------
    num_mel_bins, patch_size : int
        Bands of the spectrogram; a patch has this many bands and as many frames.
    embed_size : int
        Units of a patch before it is projected to `hidden_size`.
    conv_bias : bool
        Whether the patch embedding has a bias.
    num_conv_pos_embeddings, num_conv_pos_embedding_groups : int
        Kernel size and groups of the convolution that adds positions.
    num_buckets, max_bucket_distance : int
        Of the relative positions; see `bucket_of`.
    deep_norm_depth : int
        Blocks of the model that was trained first, on which DeepNorm's factor depends (see `residual_factor`). No
        weight holds it, so a pruned model keeps this number. 0: no DeepNorm.
    """

    model_type = "beats"

    num_mel_bins: int = 128
    patch_size: int = 16
    embed_size: int = 512
    conv_bias: bool = False
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    num_buckets: int = 320
    max_bucket_distance: int = 800
    deep_norm_depth: int = 12
    layer_norm_eps: float = 1e-5
    feat_proj_dropout: float = 0.1
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0

    @property
    def residual_factor(self) -> float:
        """The factor of DeepNorm on each residual connection (Wang et al. 2022, arXiv 2203.00555, table 1)."""
        return (2 * self.deep_norm_depth) ** 0.25 if self.deep_norm_depth else 1.0


# --------------------------------------------------------------------------------------- spectrogram


class BeatsFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel spectrograms, scaled by the mean and the deviation of AudioSet. The level of a clip is not changed.

    Parameters
    ----------
    feature_size : int
        Number of mel bands.
    sampling_rate : int
        In Hz.
    padding_value : float
        Required by the base class; not used here.
    mean, std : float
        Of the logarithms; the result is ``(x - mean) / (2 * std)``.
    """

    model_input_names = ("input_features",)

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        mean: float = 15.41663,
        std: float = 6.55582,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.mean = mean
        self.std = std

    def __call__(
        self,
        raw_speech: np.ndarray | Sequence[np.ndarray],
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Return the spectrograms of clips.

        Parameters
        ----------
        raw_speech : ndarray of shape (n_samples,), or sequence of these
            A clip, or clips of equal length, in [-1, 1].
        sampling_rate : int, optional
            Sample rate of the clips in Hz.
        return_tensors : {"pt", "np"}, optional

        Returns
        -------
        BatchFeature
            ``input_features``, float32 of shape (batch, n_frames, feature_size); frames are 10 ms apart.

        Raises
        ------
        ValueError
            If `sampling_rate` is not that of the spectrogram, or the clips differ in length or are too short.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"this feature extractor takes audio at {self.sampling_rate} Hz, got {sampling_rate} Hz")
        audio = torch.from_numpy(np.atleast_2d(np.asarray(raw_speech, dtype=np.float32)))
        features = (log_mel(audio, self.sampling_rate, self.feature_size) - self.mean) / (2 * self.std)
        return BatchFeature({"input_features": features.numpy()}, tensor_type=return_tensors)


def log_mel(audio: torch.Tensor, sample_rate_hz: int, n_mels: int) -> torch.Tensor:
    """Return Kaldi's log-mel energies, shape (batch, n_frames, n_mels), of audio of shape (batch, n_samples).

    Raises
    ------
    ValueError
        If the audio is shorter than a frame.
    """
    length, shift = int(FRAME_S * sample_rate_hz), int(SHIFT_S * sample_rate_hz)
    if audio.shape[1] < length:
        raise ValueError(f"a clip of {audio.shape[1]} samples is shorter than a frame of {length}")
    n_fft = 2 ** math.ceil(math.log2(length))
    frames = (FULL_SCALE * audio).unfold(1, length, shift)
    frames = frames - frames.mean(dim=2, keepdim=True)
    frames = frames - PRE_EMPHASIS * torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
    frames = frames * povey(length)
    energy = torch.fft.rfft(frames, n_fft).abs().square() @ filter_bank(sample_rate_hz, n_fft, n_mels)
    return energy.clamp(min=torch.finfo(torch.float32).eps).log()


def povey(length: int) -> torch.Tensor:
    """Return Povey's window: a symmetric Hann window to the power of 0.85."""
    return torch.hann_window(length, periodic=False) ** WINDOW_POWER


@functools.cache
def filter_bank(sample_rate_hz: int, n_fft: int, n_mels: int) -> torch.Tensor:
    """Return the weights of the mel bands, shape (n_fft // 2 + 1, n_mels): triangles on Kaldi's mel scale.

    The order of the operations is that of torchaudio, so that the weights are the same to the last bit.
    """

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    lowest = mel(LOWEST_HZ)
    step = (mel(sample_rate_hz / 2) - lowest) / (n_mels + 1)
    numbers = torch.arange(n_mels)[:, None]
    left, centre, right = (lowest + (numbers + offset) * step for offset in (0.0, 1.0, 2.0))
    bins = 1127.0 * (1.0 + sample_rate_hz / n_fft * torch.arange(n_fft // 2) / 700.0).log()
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    bank = torch.minimum(rising, falling).clamp(min=0.0)
    return nn.functional.pad(bank, (0, 1)).T.contiguous()


# ------------------------------------------------------------------------------------------- encoder


def bucket_of(distance: torch.Tensor, n_buckets: int, max_distance: int) -> torch.Tensor:
    """Return the bucket of each distance from one patch to another (Raffel et al. 2020, arXiv 1910.10683, §2.1).

    Half of the buckets are for patches that come later. Of each half, the first half holds one distance a bucket, and
    the rest grows with the logarithm, up to `max_distance`.
    """
    half = n_buckets // 2
    near = half // 2
    size = distance.abs()
    far = near + (torch.log(size.float() / near) / math.log(max_distance / near) * (half - near)).long()
    return half * (distance > 0) + torch.where(size < near, size, far.clamp(max=half - 1))


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what plain attention mixes, shape (batch, patches, heads, head_size), and its weights."""
    weights = (scaling * query @ key.mT + bias).softmax(dim=3)
    return (nn.functional.dropout(weights, dropout) @ value).transpose(1, 2), weights


class BeatsAttention(nn.Module):
    """Attention to which each query adds its relative positions, by as much as a gate lets through.

    The gate is that of WavLM (Chen et al. 2021, arXiv 2110.13900, eq. 4 to 6).
    """

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config, self.is_causal = config, False
        size, self.n_heads = config.hidden_size, config.num_attention_heads
        self.head_size = size // self.n_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))
        self.grep_linear = nn.Linear(self.head_size, N_GATES * N_PER_GATE)
        self.grep_a = nn.Parameter(torch.ones(1, self.n_heads, 1, 1))

    def forward(self, hidden_states: torch.Tensor, position_bias: torch.Tensor) -> torch.Tensor:
        """Return states of the same shape, (batch, patches, hidden_size)."""
        query, key, value = (
            projection(hidden_states).unflatten(2, (self.n_heads, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, heads, patches, head_size)
        gates = self.grep_linear(query).unflatten(3, (N_GATES, N_PER_GATE)).sum(dim=4).sigmoid()
        update, reset = gates.chunk(2, dim=3)
        bias = (update * (reset * self.grep_a - 1.0) + 2.0) * position_bias  # (batch, heads, patches, patches)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, _ = attend(self, query, key, value, bias, scaling=self.head_size**-0.5, dropout=dropout)
        return self.out_proj(torch.cat(mixed.unbind(2), dim=2))  # to join the axes instead cannot be exported


class BeatsLayer(GradientCheckpointingLayer):
    """A block: attention and a feed-forward network, each followed by the sum with its input, and a norm."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.residual_factor = config.residual_factor
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.deep_norm_depth:  # how the weights are initialised
            attention = self.self_attn
            attention.q_proj.gain = attention.k_proj.gain = 1.0
            for linear in (attention.v_proj, attention.out_proj, self.fc1, self.fc2):
                linear.gain = (8 * config.deep_norm_depth) ** -0.25

    def forward(self, hidden_states: torch.Tensor, position_bias: torch.Tensor) -> torch.Tensor:
        """Return the output of the block, shape (batch, patches, hidden_size).

        Parameters
        ----------
        hidden_states : Tensor, shape (batch, patches, hidden_size)
        position_bias : Tensor, shape (heads, patches, patches)
            The same for all blocks.
        """
        attended = self.dropout(self.self_attn(hidden_states, position_bias))
        hidden_states = self.self_attn_layer_norm(self.residual_factor * hidden_states + attended)
        units = self.activation_dropout(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(self.residual_factor * hidden_states + self.dropout(self.fc2(units)))


class BeatsEncoder(nn.Module):
    """A convolution that adds positions, and the blocks."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        size, kernel = config.hidden_size, config.num_conv_pos_embeddings
        conv = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=config.num_conv_pos_embedding_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * size)))
        nn.init.zeros_(conv.bias)
        self.pos_conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
        self.layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden_states: torch.Tensor, output_hidden_states: bool = False) -> BaseModelOutput:
        """Return the output of the last block and, if asked for, the input of the first and the output of each."""
        n_patches = hidden_states.shape[1]
        positions = self.pos_conv(hidden_states.mT)[:, :, :n_patches]  # an even kernel gives one too many
        hidden_states = self.dropout(self.layer_norm(hidden_states + nn.functional.gelu(positions).mT))
        position_bias = self.position_bias(n_patches)
        states = [hidden_states]
        for layer in self.layers:
            states.append(layer(states[-1], position_bias))
        return BaseModelOutput(states[-1], tuple(states) if output_hidden_states else None)

    def position_bias(self, n_patches: int) -> torch.Tensor:
        """Return what is added to the attention of each query (row) to each key (column), by head, before the gate."""
        places = torch.arange(n_patches, device=self.relative_attention_bias.weight.device)
        buckets = bucket_of(places - places[:, None], self.config.num_buckets, self.config.max_bucket_distance)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)


class BeatsPreTrainedModel(PreTrainedModel):
    """Base of the encoder and the classifier."""

    config_class = BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_features"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("BeatsLayer",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as published: small normal weights, and in the blocks those of DeepNorm (arXiv 2203.00555)."""
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            return
        if hasattr(module, "gain"):
            nn.init.xavier_normal_(module.weight, module.gain)
        else:
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class BeatsModel(BeatsPreTrainedModel):
    """The encoder: from a spectrogram to states of its patches."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            1, config.embed_size, config.patch_size, stride=config.patch_size, bias=config.conv_bias
        )
        self.layer_norm = nn.LayerNorm(config.embed_size, eps=config.layer_norm_eps)
        is_projected = config.embed_size != config.hidden_size
        self.post_extract_proj = nn.Linear(config.embed_size, config.hidden_size) if is_projected else nn.Identity()
        self.dropout_input = nn.Dropout(config.feat_proj_dropout)
        self.encoder = BeatsEncoder(config)
        self.post_init()

    def forward(self, input_features: torch.Tensor, output_hidden_states: bool = False, **kwargs) -> BaseModelOutput:
        """Return the states of the patches, which run through the bands of a time first.

        Parameters
        ----------
        input_features : Tensor, float32, shape (batch, n_frames, num_mel_bins)
            At least `patch_size` frames; frames that do not fill a patch are not used.
        output_hidden_states : bool
            Return the states before and after each block, too.

        Returns
        -------
        BaseModelOutput
            ``last_hidden_state``, shape (batch, patches, hidden_size).

        Raises
        ------
        ValueError
            If there are fewer frames than in a patch.
        """
        if input_features.shape[1] < self.config.patch_size:
            raise ValueError(f"BEATs needs {self.config.patch_size} frames for a patch, got {input_features.shape[1]}")
        patches = self.patch_embedding(input_features[:, None]).flatten(2).mT  # (batch, patches, embed_size)
        hidden_states = self.dropout_input(self.post_extract_proj(self.layer_norm(patches)))
        return self.encoder(hidden_states, output_hidden_states)


class BeatsForAudioClassification(BeatsPreTrainedModel):
    """The encoder, the mean over all patches, and a linear layer."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.beats = BeatsModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_features: torch.Tensor, output_hidden_states: bool = False, **kwargs
    ) -> SequenceClassifierOutput:
        """Return the ``logits`` of clips, shape (batch, num_labels); parameters as for `BeatsModel.forward`."""
        output = self.beats(input_features, output_hidden_states)
        logits = self.classifier(output.last_hidden_state.mean(dim=1))
        return SequenceClassifierOutput(logits=logits, hidden_states=output.hidden_states)


# -------------------------------------------------------------------------------------- registration


def _register() -> None:
    """Register the encoder with the Auto classes: a checkpoint holds only its name."""
    AutoConfig.register(BeatsConfig.model_type, BeatsConfig, exist_ok=True)
    AutoModel.register(BeatsConfig, BeatsModel, exist_ok=True)
    AutoModelForAudioClassification.register(BeatsConfig, BeatsForAudioClassification, exist_ok=True)
    AutoFeatureExtractor.register(BeatsConfig, BeatsFeatureExtractor, exist_ok=True)


_register()
