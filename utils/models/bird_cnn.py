"""Convolutional networks for bird sounds: a published one on the waveform, and a residual one on mel spectrograms.

Both are models of transformers. Importing this module registers them with the Auto classes; then ``from_pretrained``
and ``transformers.pipeline("audio-classification")`` support them. They have no transformer blocks:
``config.num_hidden_layers`` is 0.

A copy of this file is saved in the folder of every such model, so that the model can be loaded without this project:
``sys.path.insert(0, folder)``, then ``import bird_cnn``. This file therefore needs only torch, numpy and transformers.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import SequenceClassifierOutput

HOP_S = 0.010
WINDOW_S = 0.032
LOG_FLOOR = 1e-6  # relative to the power of a clip with unit variance
# PCEN: Wang et al. 2017, arXiv 1607.05666, §2; their smoothing of 0.025 applies to frames 10 ms apart.
PCEN_SMOOTHING = 0.025
PCEN_GAIN = 0.98
PCEN_BIAS = 2.0
PCEN_POWER = 0.5
PCEN_FLOOR = 1e-6


class Cnn(PreTrainedModel):
    """Base of both networks: each layer keeps PyTorch's own initialisation, as in the published network."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_parameters()


# ------------------------------------------------------------------------------------------ waveform


class WaveformCnnConfig(PreTrainedConfig):
    """The published network: 32 x 2,322 features before the first dense layer for 58,050 samples.

    58,050 samples are 160,000 samples at 44.1 kHz after resampling to 16 kHz: 3.628 s.

    Attributes
    ----------
    clip_samples : int
        Length of every clip, in samples; it is fixed by the network.
    channels : sequence of int
        Number of channels of each convolution.
    kernel_size, pool_size : int
        Size of every convolution, which keeps the length, and of the max pooling after it.
    hidden_size : int
        Units of the first dense layer.
    dropout : float
        Dropout before the second dense layer.
    num_hidden_layers : int
        Number of transformer blocks.
    """

    model_type = "waveform_cnn"

    clip_samples: int = 58_050
    channels: Sequence[int] = (16, 32)
    kernel_size: int = 3
    pool_size: int = 5
    hidden_size: int = 128
    dropout: float = 0.5
    num_hidden_layers: int = 0

    @property
    def samples_per_frame(self) -> int:
        """Number of samples that pooling turns into one frame; the remaining samples at the end are not used."""
        return self.pool_size ** len(self.channels)

    @property
    def n_frames(self) -> int:
        """Number of frames before the first dense layer."""
        return self.clip_samples // self.samples_per_frame


class WaveformCnn(Cnn):
    """Two convolutions over the waveform and two dense layers."""

    config_class = WaveformCnnConfig
    main_input_name = "input_values"

    def __init__(self, config: WaveformCnnConfig):
        super().__init__(config)
        layers, before = [], 1
        for n_channels in config.channels:
            layers += [
                nn.Conv1d(before, n_channels, config.kernel_size, padding=config.kernel_size // 2),
                nn.ReLU(),
                nn.MaxPool1d(config.pool_size),
            ]
            before = n_channels
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(before * config.n_frames, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_values: torch.Tensor) -> SequenceClassifierOutput:
        """Return the logits of clips.

        Parameters
        ----------
        input_values : Tensor, float32, shape (batch, config.clip_samples)

        Returns
        -------
        SequenceClassifierOutput
            ``logits`` of shape (batch, num_labels).

        Raises
        ------
        ValueError
            If the clips do not have the length for which the network was built.
        """
        if input_values.shape[1] != self.config.clip_samples:
            raise ValueError(
                f"this network takes clips of {self.config.clip_samples} samples, got {input_values.shape[1]}"
            )
        features = self.features(input_values[:, None])  # (batch, channels, n_frames)
        hidden = self.hidden(features.flatten(1)).relu()
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(hidden)))


# ----------------------------------------------------------------------------------- mel spectrogram


class MelspectrogramFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel spectrograms, or mel spectrograms with per-channel energy normalisation (PCEN).

    Clips are first scaled to mean 0 and variance 1. Frames are 10 ms apart, with Hann windows of 32 ms. The bands
    extend from `min_frequency_hz` to half the sample rate.

    Parameters
    ----------
    feature_size : int
        Number of mel bands.
    sampling_rate : int
        In Hz.
    padding_value : float
        Required by the base class; not used here.
    min_frequency_hz : float
        Lower edge of the lowest band.
    pcen : bool
        Use PCEN instead of the logarithm.
    """

    model_input_names = ("input_features",)

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        min_frequency_hz: float = 50.0,
        pcen: bool = False,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.min_frequency_hz = min_frequency_hz
        self.pcen = pcen

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
            A clip, or clips of equal length.
        sampling_rate : int, optional
            Sample rate of the clips in Hz.
        return_tensors : {"pt", "np"}, optional

        Returns
        -------
        BatchFeature
            ``input_features``, float32 of shape (batch, feature_size, n_frames); n_frames is
            1 + n_samples // hop.

        Raises
        ------
        ValueError
            If `sampling_rate` is not that of the spectrogram, or the clips differ in length.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"this feature extractor takes audio at {self.sampling_rate} Hz, got {sampling_rate} Hz")
        audio = torch.from_numpy(np.atleast_2d(np.asarray(raw_speech, dtype=np.float32)))
        audio = audio - audio.mean(dim=1, keepdim=True)
        audio = audio / (audio.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()
        energy = _mel_energy(audio, self.sampling_rate, self.feature_size, self.min_frequency_hz)
        features = pcen(energy) if self.pcen else (energy + LOG_FLOOR).log()
        return BatchFeature({"input_features": features.numpy()}, tensor_type=return_tensors)


@functools.cache
def filter_bank(sample_rate_hz: int, n_bins: int, n_mels: int, min_frequency_hz: float) -> torch.Tensor:
    """Return the weights of the mel bands, shape (n_bins, n_mels)."""
    bank = mel_filter_bank(n_bins, n_mels, min_frequency_hz, sample_rate_hz / 2, sample_rate_hz, mel_scale="htk")
    return torch.from_numpy(bank).float()


def _mel_energy(audio: torch.Tensor, sample_rate_hz: int, n_mels: int, min_frequency_hz: float) -> torch.Tensor:
    """Return mel energies, shape (batch, n_mels, n_frames), of audio of shape (batch, n_samples)."""
    n_fft = round(WINDOW_S * sample_rate_hz)
    spectrum = torch.stft(
        audio,
        n_fft,
        hop_length=round(HOP_S * sample_rate_hz),
        window=torch.hann_window(n_fft),
        pad_mode="constant",  # reflection would need clips longer than half a window
        return_complex=True,
    )
    bank = filter_bank(sample_rate_hz, n_fft // 2 + 1, n_mels, min_frequency_hz)
    return (spectrum.abs().square().mT @ bank).mT


def pcen(energy: torch.Tensor) -> torch.Tensor:
    """Return spectrograms with per-channel energy normalisation (Wang et al. 2017, arXiv 1607.05666, eq. 1 and 2).

    Each band is divided by its own recent level, which removes steady noise and the effect of distance, and is then
    compressed. The level starts as the energy of the first frame.

    Parameters
    ----------
    energy : Tensor, shape (batch, n_mels, n_frames)
        Not negative.

    Returns
    -------
    Tensor
        Of the same shape and dtype.
    """
    keep, level = 1.0 - PCEN_SMOOTHING, energy.double()
    # The level is keep · (that before) + (1 − keep) · energy: a sum over all earlier frames, whose length doubles here.
    level = torch.cat([level[..., :1], PCEN_SMOOTHING * level[..., 1:]], dim=-1)
    n_summed, n_frames = 1, energy.shape[-1]
    while n_summed < n_frames:
        level = level + keep**n_summed * nn.functional.pad(level[..., :-n_summed], (n_summed, 0))
        n_summed *= 2
    gained = energy / (PCEN_FLOOR + level) ** PCEN_GAIN
    return ((gained + PCEN_BIAS) ** PCEN_POWER - PCEN_BIAS**PCEN_POWER).to(energy.dtype)


class MelspectrogramCnnConfig(PreTrainedConfig):
    """A small residual network over spectrograms of any length.

    Attributes
    ----------
    num_mel_bins : int
        Number of bands of the spectrogram.
    channels : sequence of int
        Number of channels of each residual block; each block after the first halves bands and frames.
    dropout : float
        Dropout before the classifier.
    num_hidden_layers : int
        Number of transformer blocks.
    """

    model_type = "melspectrogram_cnn"

    num_mel_bins: int = 80
    channels: Sequence[int] = (32, 64, 128, 256)
    dropout: float = 0.2
    num_hidden_layers: int = 0


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions whose input is added to their output (He et al. 2016, arXiv 1512.03385, §3)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, channels_out, bands / stride, frames / stride), rounded up."""
        return (self.convolutions(features) + self.shortcut(features)).relu()


class MelspectrogramCnn(Cnn):
    """Residual blocks over a spectrogram, then the mean over bands, and mean and maximum over time.

    Batch norms are used only where there are many bands or frames, so that small batches are sufficient. The first one
    has a scale and an offset per band.
    """

    config_class = MelspectrogramCnnConfig
    main_input_name = "input_features"

    def __init__(self, config: MelspectrogramCnnConfig):
        super().__init__(config)
        channels = list(config.channels)
        self.input_norm = nn.BatchNorm1d(config.num_mel_bins)
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        self.stages = nn.Sequential(
            ResidualBlock(channels[0], channels[0], stride=1),
            *(ResidualBlock(before, after, stride=2) for before, after in itertools.pairwise(channels)),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * channels[-1], config.num_labels)
        self.post_init()

    def forward(self, input_features: torch.Tensor) -> SequenceClassifierOutput:
        """Return the logits of clips.

        Parameters
        ----------
        input_features : Tensor, float32, shape (batch, num_mel_bins, n_frames)

        Returns
        -------
        SequenceClassifierOutput
            ``logits`` of shape (batch, num_labels).
        """
        spectrogram = self.input_norm(input_features)[:, None]  # (batch, 1, bands, frames)
        features = self.stages(self.stem(spectrogram)).mean(dim=2)  # (batch, channels, frames / 2**n_blocks)
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))


# -------------------------------------------------------------------------------------- registration


def _register() -> None:
    """Register the networks with the Auto classes: a checkpoint holds only their names."""
    for config, model, extractor in (
        (WaveformCnnConfig, WaveformCnn, Wav2Vec2FeatureExtractor),
        (MelspectrogramCnnConfig, MelspectrogramCnn, MelspectrogramFeatureExtractor),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForAudioClassification.register(config, model, exist_ok=True)
        AutoFeatureExtractor.register(config, extractor, exist_ok=True)


_register()
