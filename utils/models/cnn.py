"""Convolutional baselines: build the networks of `bird_cnn` for a data set."""

from transformers import Wav2Vec2FeatureExtractor

from utils.core.errors import InputError, UsageError
from utils.data.clips import label_maps
from utils.models.bird_cnn import (
    MelspectrogramCnn,
    MelspectrogramCnnConfig,
    MelspectrogramFeatureExtractor,
    WaveformCnn,
    WaveformCnnConfig,
)
from utils.models.loaded_model import LoadedModel


def build_cnn(
    architecture: str,
    labels: list[str],
    sample_rate_hz: int,
    clip_seconds: float,
    width: float = 1.0,
    pcen: bool = False,
) -> LoadedModel:
    """Return a network with random weights, on the CPU.

    Parameters
    ----------
    architecture : str
        One of `architectures.CNNS`.
    labels : list of str
        Labels by label id.
    sample_rate_hz : int
    clip_seconds : float
        Length of the clips; fixed in the waveform network, any length in the other.
    width : float
        Factor on the channels of every convolution and the units of the hidden dense layer.
    pcen : bool
        Per-channel energy normalisation of the spectrogram.

    Raises
    ------
    UsageError
        If PCEN is requested for a network without a spectrogram.
    InputError
        If the clips are too short for the waveform network, or their sample rate is too low for a spectrogram.
    """
    if architecture == "melspectrogram":
        config = MelspectrogramCnnConfig(**label_maps(labels))
        config.channels = [_scaled(n, width) for n in config.channels]
        extractor = MelspectrogramFeatureExtractor(config.num_mel_bins, sample_rate_hz, pcen=pcen)
        if sample_rate_hz <= 2 * extractor.min_frequency_hz:
            raise InputError(
                f"the spectrogram begins at {extractor.min_frequency_hz:g} Hz: its clips need more than "
                f"{2 * extractor.min_frequency_hz:g} Hz, these have {sample_rate_hz} Hz; run 01_data_processing.py "
                "with a higher --sample_rate"
            )
        return LoadedModel(MelspectrogramCnn(config), extractor, has_head=False)
    if pcen:
        raise UsageError("--pcen normalises the bands of a spectrogram: it needs --architecture melspectrogram")
    config = WaveformCnnConfig(clip_samples=round(clip_seconds * sample_rate_hz), **label_maps(labels))
    if config.n_frames < 1:
        least = config.samples_per_frame
        raise InputError(
            f"the waveform network pools {least} samples into one: its clips must have at least {least} samples "
            f"({least / sample_rate_hz:g} s at {sample_rate_hz} Hz), these have {config.clip_samples}; run "
            "01_data_processing.py with a longer --clip_seconds"
        )
    config.channels = [_scaled(n, width) for n in config.channels]
    config.hidden_size = _scaled(config.hidden_size, width)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=sample_rate_hz, do_normalize=True, return_attention_mask=False)
    return LoadedModel(WaveformCnn(config), extractor, has_head=False)


def _scaled(n: int, width: float) -> int:
    return max(1, round(n * width))
