"""An exported file as a `LoadedModel`, for the stage that scores clips: its network takes waveforms."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from utils.core.errors import InputError, UsageError
from utils.models import model_folder, own_networks, training_history
from utils.models.exported import ADVICE, ExportedModel
from utils.models.loaded_model import WAVEFORM, LoadedModel


class ExportedNetwork(nn.Module):
    """The network in an exported file, which runs in ONNX Runtime.

    Parameters
    ----------
    exported : ExportedModel
    """

    main_input_name = WAVEFORM

    def __init__(self, exported: ExportedModel):
        super().__init__()
        self.exported = exported
        try:
            self.config = own_networks.config_class(exported.config["model_type"]).from_dict(exported.config)
        except Exception as error:  # KeyError, TypeError, a type of transformers for each kind of field
            problem = model_folder.one_line(error)
            raise InputError(f"{exported.path}: config in its metadata is damaged ({problem}); {ADVICE}") from error
        self.config.name_or_path = str(exported.path)

    def forward(self, waveform: torch.Tensor) -> SequenceClassifierOutput:
        """Return the logits of clips, shape (batch, n_labels), of waveforms of shape (batch, n_samples)."""
        return SequenceClassifierOutput(logits=torch.from_numpy(self.exported.logits(waveform.numpy())))


class Waveforms:
    """The feature extractor of an exported file, which takes the sound as it is."""

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate

    def __call__(self, audio: Sequence[np.ndarray], **kwargs) -> dict[str, torch.Tensor]:
        """Return clips as one tensor of shape (batch, n_samples)."""
        return {WAVEFORM: torch.from_numpy(np.stack(audio))}


def load(path: Path, device: str) -> LoadedModel:
    """Load an exported file; it computes with as many threads as PyTorch.

    Raises
    ------
    UsageError
        If the device is not the CPU.
    InputError
        If the file cannot be read.
    """
    if device != "cpu":
        raise UsageError(f"{path}: an exported file runs on the CPU: give --device cpu")
    exported = ExportedModel(path, torch.get_num_threads())
    network = ExportedNetwork(exported)
    if exported.training_recordings is not None:
        try:
            network.training_history = training_history.from_json(exported.training_recordings)
        except ValueError as error:
            raise InputError(f"{path}: training_recordings in its metadata is damaged ({error}); {ADVICE}") from error
    return LoadedModel(network, Waveforms(exported.sample_rate_hz)).ready("cpu")
