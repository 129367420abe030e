"""A loaded model as one object: the network, its feature extractor, and its device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor

WAVEFORM = "waveform"  # the input of an exported file
MULTI_LABEL = "multi_label_classification"  # in config.problem_type; transformers then answers with sigmoids


def prepare(
    extractor: SequenceFeatureExtractor, audio: list[np.ndarray], sample_rate_hz: int, main_input_name: str
) -> dict[str, torch.Tensor]:
    """Turn clips of equal length into a model's input: the only place where audio is normalised.

    There is no attention mask: no clip is padded here, and base wav2vec2 and HuBERT use none. Frames that a feature
    extractor adds and masks are left out: wav2vec 2.0 BERT reads pairs of frames, and the last may have no partner.

    Parameters
    ----------
    extractor : SequenceFeatureExtractor
        The model's own feature extractor.
    audio : list of ndarray
        Float32 clips, each of shape (n_samples,).
    sample_rate_hz : int
        Sample rate of `audio`.
    main_input_name : str
        ``model.main_input_name``: ``input_values`` or ``input_features``.

    Returns
    -------
    dict of str to Tensor
        One float32 tensor; its first axis is the clip.
    """
    features = extractor(audio, sampling_rate=sample_rate_hz, return_tensors="pt")
    inputs, mask = features[main_input_name], features.get("attention_mask")
    if mask is not None and not mask[0].all():
        inputs = inputs[:, mask[0].bool()]
    return {main_input_name: inputs}


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and all that is needed to run it.

    Attributes
    ----------
    model : PreTrainedModel
        The network. Functions that prune, crop or train it work in place, and their docstrings record that.
    extractor : SequenceFeatureExtractor
        Its feature extractor.
    device : str
        ``cpu`` or ``cuda``: the device of the network.
    has_head : bool
        False if the head was initialised at random when the model was loaded or built.
    """

    model: PreTrainedModel
    extractor: SequenceFeatureExtractor
    device: str = "cpu"
    has_head: bool = True

    @property
    def config(self) -> PreTrainedConfig:
        """The network's own config."""
        return self.model.config

    @property
    def labels(self) -> list[str]:
        """The labels, by label id."""
        return [self.config.id2label[i] for i in range(self.config.num_labels)]

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of the clips that it takes."""
        return self.extractor.sampling_rate

    @property
    def is_exported(self) -> bool:
        """Whether the network is an exported file, which runs in one piece on the CPU; see `exported_network`."""
        return self.model.main_input_name == WAVEFORM

    @property
    def is_multi_label(self) -> bool:
        """Whether the model answers each label for itself, so that a clip can have several labels, or none."""
        return self.config.problem_type == MULTI_LABEL

    def ready(self, device: str) -> LoadedModel:
        """Move the network, in place, to a device and set evaluation mode."""
        return replace(self, model=self.model.to(device).eval(), device=device)

    def prepare(self, audio: list[np.ndarray], sample_rate_hz: int) -> dict[str, torch.Tensor]:
        """Turn clips of equal length into the network's input, on its device; see the function `prepare`."""
        inputs = prepare(self.extractor, audio, sample_rate_hz, self.model.main_input_name)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}
