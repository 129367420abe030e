"""The feature extractors as layers of a network, so that an exported file takes the waveform.

Each gives the features of `loaded_model.prepare` for clips of one length. ONNX's own Fourier transform is not used:
few programs run it, and ONNX Runtime runs it slowly. A convolution whose filters are the windowed sines and cosines is
the same sum, and costs a hundredth of a network. What a feature extractor does to a frame before the transform
(Kaldi: remove the mean, pre-emphasis, window) is linear, too, and so part of the filters.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torchaudio
from torch import nn
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    SequenceFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from utils.core.errors import InputError
from utils.models import architectures, beats_encoder, bird_cnn

VARIANCE_FLOOR = 1e-7  # of Wav2Vec2FeatureExtractor and of the CNNs


class Normalised(nn.Module):
    """Clips with mean 0 and variance 1."""

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return clips of the same shape, (batch, n_samples)."""
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        return centred / (centred.square().mean(dim=1, keepdim=True) + VARIANCE_FLOOR).sqrt()


class MelEnergy(nn.Module):
    """Mel energies of frames of a waveform.

    Parameters
    ----------
    frames : ndarray, shape (frame_length, frame_length)
        What is done to a frame before the Fourier transform, as a matrix whose rows are the outputs.
    n_fft : int
        Length of the transform; frames are padded to it with zeros.
    hop : int
        Samples from one frame to the next.
    bank : ndarray, shape (n_fft // 2 + 1, n_mels)
        Weights of the bands.
    """

    def __init__(self, frames: np.ndarray, n_fft: int, hop: int, bank: np.ndarray):
        super().__init__()
        angles = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), np.arange(len(frames)))
        filters = np.concatenate([np.cos(angles), np.sin(angles)]) @ frames
        self.register_buffer("filters", torch.from_numpy(filters).float()[:, None])
        self.register_buffer("bank", torch.from_numpy(bank.T.copy()).float())
        self._hop, self._n_bins = hop, n_fft // 2 + 1

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return energies, shape (batch, n_mels, n_frames), of a waveform of shape (batch, n_samples)."""
        parts = nn.functional.conv1d(waveform[:, None], self.filters, stride=self._hop).square()
        return self.bank @ (parts[:, : self._n_bins] + parts[:, self._n_bins :])


class WhisperFeatures(nn.Module):
    """The log-mel spectrogram of Whisper, of its whole window."""

    def __init__(self, extractor: WhisperFeatureExtractor, n_samples: int):
        super().__init__()
        n_fft = extractor.n_fft
        self._n_silent, self._n_around = extractor.n_samples - n_samples, n_fft // 2
        self.energy = MelEnergy(np.diag(hann(n_fft)), n_fft, extractor.hop_length, extractor.mel_filters)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, n_mels, n_frames)."""
        padded = nn.functional.pad(waveform, (0, self._n_silent))
        padded = nn.functional.pad(padded[:, None], (self._n_around, self._n_around), mode="reflect")[:, 0]
        spectrogram = self.energy(padded)[:, :, :-1].clamp(min=1e-10).log10()
        return (torch.maximum(spectrogram, spectrogram.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4


class KaldiFeatures(nn.Module):
    """The log-mel filter bank of Kaldi.

    Parameters
    ----------
    rate_hz, n_mels : int
    window : ndarray, shape (frame_length,)
        With which a frame is multiplied.
    mean, scale : float
        Taken from the logarithms, and by which they are then divided.
    hop : int, optional
        Samples from one frame to the next. Default: 10 ms.
    """

    def __init__(
        self, rate_hz: int, n_mels: int, window: np.ndarray, mean: float, scale: float, hop: int | None = None
    ):
        super().__init__()
        self.length, self.hop = len(window), hop or round(architectures.SHIFT_S * rate_hz)
        n_fft = 2 ** math.ceil(math.log2(self.length))
        frames = np.eye(self.length) - 1 / self.length  # removes the mean
        frames = frames - 0.97 * frames[[0, *range(self.length - 1)]]  # pre-emphasis
        bank, _ = torchaudio.compliance.kaldi.get_mel_banks(n_mels, n_fft, rate_hz, 20.0, 0.0, 100.0, -500.0, 1.0)
        bank = np.pad(bank.numpy().T.astype(np.float64), ((0, 1), (0, 0)))
        self.energy = MelEnergy(window[:, None] * frames, n_fft, self.hop, bank)
        self._mean, self._scale = mean, scale

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, n_frames, n_mels)."""
        energy = self.energy(waveform).clamp(min=torch.finfo(torch.float32).eps).log().mT
        return (energy - self._mean) / self._scale


class AstFeatures(KaldiFeatures):
    """The filter bank of AST, padded or cut to the frames of the network."""

    def __init__(self, extractor: ASTFeatureExtractor, n_samples: int):
        rate_hz = extractor.sampling_rate
        mean, scale = (extractor.mean, 2 * extractor.std) if extractor.do_normalize else (0.0, 1.0)
        window = np.hanning(round(architectures.FRAME_S * rate_hz))
        super().__init__(rate_hz, extractor.num_mel_bins, window, mean, scale)
        n_frames = 1 + (n_samples - self.length) // self.hop
        self._n_frames, self._n_missing = extractor.max_length, max(0, extractor.max_length - n_frames)
        self._padding = -mean / scale

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, n_frames, n_mels)."""
        features = super().forward(waveform)[:, : self._n_frames]
        return nn.functional.pad(features, (0, 0, 0, self._n_missing), value=self._padding)


class BeatsFeatures(KaldiFeatures):
    """The filter bank of `beats_encoder`, of the samples as 16-bit numbers."""

    def __init__(self, extractor: beats_encoder.BeatsFeatureExtractor, n_samples: int):
        rate_hz = extractor.sampling_rate
        window = beats_encoder.povey(round(architectures.FRAME_S * rate_hz)).double().numpy() * beats_encoder.FULL_SCALE
        super().__init__(rate_hz, extractor.feature_size, window, extractor.mean, 2 * extractor.std)


class SeamlessFeatures(KaldiFeatures):
    """The filter bank of wav2vec 2.0 BERT: each band with mean 0 and variance 1, frames side by side."""

    n_samples, hop_samples = 400, 160  # of a frame, and to the next one, at any sampling rate

    def __init__(self, extractor: SeamlessM4TFeatureExtractor, n_samples: int):
        window = beats_encoder.povey(self.n_samples).double().numpy() * beats_encoder.FULL_SCALE
        super().__init__(extractor.sampling_rate, extractor.num_mel_bins, window, 0.0, 1.0, self.hop_samples)
        self._n_together = extractor.stride
        n_frames = 1 + (n_samples - self.n_samples) // self.hop_samples
        self._n_used = n_frames - n_frames % self._n_together

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, n_frames // stride, stride * n_mels)."""
        energy = super().forward(waveform)
        centred = energy - energy.mean(dim=1, keepdim=True)
        variance = centred.square().sum(dim=1, keepdim=True) / (energy.shape[1] - 1)
        features = centred / (variance + VARIANCE_FLOOR).sqrt()
        return features[:, : self._n_used].unflatten(1, (-1, self._n_together)).flatten(2)


class MelspectrogramFeatures(nn.Module):
    """The spectrogram of `bird_cnn.MelspectrogramFeatureExtractor`, logarithmic or with PCEN."""

    def __init__(self, extractor: bird_cnn.MelspectrogramFeatureExtractor, n_samples: int):
        super().__init__()
        rate_hz = extractor.sampling_rate
        n_fft, hop = round(bird_cnn.WINDOW_S * rate_hz), round(bird_cnn.HOP_S * rate_hz)
        bank = bird_cnn.filter_bank(rate_hz, n_fft // 2 + 1, extractor.feature_size, extractor.min_frequency_hz)
        self.normalised, self._n_around = Normalised(), n_fft // 2
        self.energy = MelEnergy(np.diag(hann(n_fft)), n_fft, hop, bank.double().numpy())
        self._has_pcen = extractor.pcen

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, n_mels, n_frames)."""
        padded = nn.functional.pad(self.normalised(waveform), (self._n_around, self._n_around))
        energy = self.energy(padded)
        return bird_cnn.pcen(energy) if self._has_pcen else (energy + bird_cnn.LOG_FLOOR).log()


def hann(n_samples: int) -> np.ndarray:
    """Return the periodic Hann window."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_samples) / n_samples)


def _of_wav2vec2(extractor: Wav2Vec2FeatureExtractor, n_samples: int) -> nn.Module:
    return Normalised() if extractor.do_normalize else nn.Identity()


# Subclasses of these are other feature extractors, and refused.
_MAKERS: dict[type, Callable[[SequenceFeatureExtractor, int], nn.Module]] = {
    Wav2Vec2FeatureExtractor: _of_wav2vec2,
    WhisperFeatureExtractor: WhisperFeatures,
    ASTFeatureExtractor: AstFeatures,
    SeamlessM4TFeatureExtractor: SeamlessFeatures,
    beats_encoder.BeatsFeatureExtractor: BeatsFeatures,
    bird_cnn.MelspectrogramFeatureExtractor: MelspectrogramFeatures,
}


def features_of(extractor: SequenceFeatureExtractor, n_samples: int) -> nn.Module:
    """Return the layers that turn clips into the input of a network, as the feature extractor does.

    Parameters
    ----------
    extractor : SequenceFeatureExtractor
    n_samples : int
        Length of every clip.

    Returns
    -------
    Module
        Takes float32 of shape (batch, n_samples).

    Raises
    ------
    InputError
        If there are none for this feature extractor, or for an option of it.
    """
    maker = _MAKERS.get(type(extractor))
    if maker is None or getattr(extractor, "dither", 0.0):
        raise InputError(
            f"a {type(extractor).__name__}{' with dither' if maker else ''} cannot be exported: the file computes "
            f"features without it, and knows {', '.join(each.__name__ for each in _MAKERS)}"
        )
    return maker(extractor, n_samples)
