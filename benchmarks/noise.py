"""Input of benchmarks of full-size models: encoders with random weights, and clips of noise."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

from utils.data.clips import Clips, part_name, read_clips, write_labels, write_part
from utils.models.loaded_model import LoadedModel

N_LABELS = 35
SAMPLE_RATE_HZ = 16_000


def new_model(n_layers: int = 12) -> LoadedModel:
    """Return a wav2vec2-base with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=N_LABELS, num_hidden_layers=n_layers))
    return LoadedModel(model.eval(), Wav2Vec2FeatureExtractor(return_attention_mask=False))


def new_whisper(seconds: float) -> LoadedModel:
    """Return the encoder of a Whisper-base with a window of whole seconds and random weights."""
    window_s = -int(-seconds // 1)
    torch.manual_seed(0)
    config = WhisperConfig(
        num_labels=N_LABELS, d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048
    )
    config.max_source_positions = 50 * window_s
    return LoadedModel(WhisperForAudioClassification(config).eval(), WhisperFeatureExtractor(chunk_length=window_s))


def noise_clips(folder: Path, n_clips: int, seconds: float) -> Clips:
    """Write clips of noise into a new folder in the format of stage 01, and open them."""
    rng = np.random.default_rng(0)
    labels = [f"word {i}" for i in range(N_LABELS)]
    rows = [
        {
            "clip_id": f"{i}:0",
            "recording_id": str(i),
            "group": str(i),
            "source_path": f"{i}.wav",
            "clip_index": 0,
            "start_s": 0.0,
            "duration_s": seconds,
            "label": labels[i % N_LABELS],
            "label_id": i % N_LABELS,
            "split": "test",
            "audio": np.round(3000 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.int16),
        }
        for i in range(n_clips)
    ]
    folder.mkdir()
    write_part(folder / part_name(0), rows, SAMPLE_RATE_HZ, seconds)
    write_labels(folder, labels)
    return read_clips(folder)
