"""Small processed data sets and small models for tests."""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    Data2VecAudioConfig,
    HubertConfig,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWDConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from utils.core import runs
from utils.core.files import sha256_of_lines, write_csv
from utils.data import clips, recordings_table, splits
from utils.models import architectures, attention_head
from utils.models.beats_encoder import BeatsConfig, BeatsFeatureExtractor
from utils.models.loaded_model import LoadedModel

LABELS = ["Blackbird", "Crow", "Great Tit"]
CLIP_SECONDS = 0.5
SAMPLE_RATE_HZ = 16_000

_WAVEFORM = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}
_POSITIONS = {"num_conv_pos_embeddings": 16}
SMALL_WAVEFORM_CONFIGS = {
    "wav2vec2": lambda **more: Wav2Vec2Config(**{**_WAVEFORM, **_POSITIONS, **more}),
    "hubert": lambda **more: HubertConfig(**{**_WAVEFORM, **_POSITIONS, **more}),
    "wavlm": lambda **more: WavLMConfig(**{**_WAVEFORM, **_POSITIONS, **more}),
    "data2vec-audio": lambda **more: Data2VecAudioConfig(**{**_WAVEFORM, "conv_pos_kernel_size": 3, **more}),
    "unispeech-sat": lambda **more: UniSpeechSatConfig(**{**_WAVEFORM, **_POSITIONS, **more}),
    "unispeech": lambda **more: UniSpeechConfig(**{**_WAVEFORM, **_POSITIONS, **more}),
    "wav2vec2-conformer": lambda **more: Wav2Vec2ConformerConfig(
        **{**_WAVEFORM, **_POSITIONS, "conv_depthwise_kernel_size": 7, **more}
    ),
}
_SQUEEZED = {**_WAVEFORM, **_POSITIONS, "squeeze_factor": 2}
SMALL_CONFIGS = {
    **SMALL_WAVEFORM_CONFIGS,
    "wav2vec2-stable-layer-norm": lambda: SMALL_WAVEFORM_CONFIGS["wav2vec2"](
        do_stable_layer_norm=True, feat_extract_norm="layer"
    ),
    "wav2vec2-weighted-layer-sum": lambda: SMALL_WAVEFORM_CONFIGS["wav2vec2"](use_weighted_layer_sum=True),
    "wav2vec2-attention": lambda **more: attention_head.register("wav2vec2_attention")(
        **{**_WAVEFORM, **_POSITIONS, **more}
    ),
    "sew": lambda **more: SEWConfig(**{**_SQUEEZED, **more}),
    "sew-d": lambda **more: SEWDConfig(**{**_SQUEEZED, "position_buckets": 16, "max_position_embeddings": 32, **more}),
    "wav2vec2-bert": lambda **more: Wav2Vec2BertConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "feature_projection_input_dim": 32,
            "conv_depthwise_kernel_size": 7,
            "left_max_position_embeddings": 8,
            "classifier_proj_size": 16,
            **more,
        }
    ),
    "whisper": lambda **more: WhisperConfig(
        **{
            "d_model": 32,
            "encoder_layers": 3,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 32,
            "max_source_positions": 50,
            "classifier_proj_size": 16,
            **more,
        }
    ),
    "ast": lambda **more: ASTConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_length": 128,
            "num_mel_bins": 32,
            **more,
        }
    ),
    "beats": lambda **more: BeatsConfig(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "embed_size": 16,
            "num_mel_bins": 32,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
            "num_buckets": 32,
            "max_bucket_distance": 64,
            "deep_norm_depth": 3,
            **more,
        }
    ),
}


def small_extractor(name: str):
    """Return the feature extractor that belongs to `SMALL_CONFIGS` [name]."""
    if name == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)
    if name == "whisper":
        return WhisperFeatureExtractor(chunk_length=1, feature_size=80)
    if name == "ast":
        return ASTFeatureExtractor(max_length=128, num_mel_bins=32)
    if name == "beats":
        return BeatsFeatureExtractor(feature_size=32)
    return Wav2Vec2FeatureExtractor(return_attention_mask=False)


def small_model(name: str, labels: list[str] | None = None, **options) -> LoadedModel:
    """Return a small classifier of an architecture, in evaluation mode."""
    config = SMALL_CONFIGS[name](**options)
    labels = labels or LABELS
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    model = AutoModelForAudioClassification.from_config(config).eval()
    if architectures.attends(config.model_type):
        torch.nn.init.normal_(model.projector.queries)  # at first they are zero: the mean
    return LoadedModel(model, small_extractor(name))


def tone_clip(class_id: int, rng: np.random.Generator, n_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Return int16 noise with a tone whose pitch tells the class."""
    time_s = np.arange(n_samples) / sample_rate_hz
    tone = np.sin(2 * np.pi * (500 + 900 * class_id) * time_s + rng.uniform(0, 2 * np.pi))
    return np.round(8000 * tone + 800 * rng.standard_normal(n_samples)).astype(np.int16)


def write_processed(
    data_dir: Path,
    labels: list[str] | None = None,
    recordings_per_class: dict[str, int] | None = None,
    clip_seconds: float = CLIP_SECONDS,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    seed: int = 0,
    folds: int | None = None,
    recordists: dict[str, str] | None = None,
    collections: dict[str, str] | None = None,
) -> Path:
    """Write a complete processed data set, two clips a recording, as stage 01 would.

    With `folds`, `recordings_per_class` is by fold and by default 2. With `recordists`, by recording id, there is a
    ``recordings.csv``; the recordist of other recordings is unknown. `collections` are by recording id, too.
    """
    labels = labels or LABELS
    if folds is not None:
        recordings_per_class = recordings_per_class or dict.fromkeys(splits.names_of_parts(folds)[1:], 2)
    recordings_per_class = recordings_per_class or {"train": 6, "val": 3, "test": 3}
    rng = np.random.default_rng(seed)
    rows = []
    for class_id, label in enumerate(labels):
        for split, n_recordings in recordings_per_class.items():
            for number in range(n_recordings):
                recording_id = f"{label}/{split}{number}"
                for index in range(2):
                    rows.append(
                        {
                            "clip_id": f"{recording_id}:{index}",
                            "recording_id": recording_id,
                            "group": f"{recording_id}",
                            "source_path": f"{recording_id}.wav",
                            "clip_index": index,
                            "start_s": index * clip_seconds,
                            "duration_s": clip_seconds,
                            "label": label,
                            "label_id": class_id,
                            "split": split,
                            "audio": tone_clip(class_id, rng, round(clip_seconds * sample_rate_hz), sample_rate_hz),
                        }
                    )
    rows.sort(key=lambda row: (row["recording_id"], row["clip_index"]))
    _write_rows(data_dir, rows, labels, clip_seconds, sample_rate_hz, seed, folds, recordists, collections)
    return data_dir


def write_annotated(
    data_dir: Path, recordings: dict[str, int] | None = None, seed: int = 0, folds: int | None = None
) -> Path:
    """Write a data set of clips with several labels, or none, four clips a recording, as stage 01 would.

    Each label of a clip is a tone. A recording has a clip of one label, one of two, one of silence, and one whose
    third label is secondary.
    """
    recordings = recordings or {"train": 6, "val": 3, "test": 4}
    if folds is not None:
        recordings = dict.fromkeys(splits.names_of_parts(folds)[1:], 2)
    rng, n_samples, rows = np.random.default_rng(seed), round(CLIP_SECONDS * SAMPLE_RATE_HZ), []
    for split, n_recordings in recordings.items():
        for number in range(n_recordings):
            first, second, third = rng.permutation(len(LABELS))
            for index, (present, secondary) in enumerate(
                (([first], []), ([first, second], []), ([], []), ([second], [third]))
            ):
                tones = [tone_clip(i, rng, n_samples, SAMPLE_RATE_HZ) // 3 for i in (*present, *secondary)]
                noise = rng.integers(-300, 300, n_samples).astype(np.int16)
                rows.append(
                    {
                        "clip_id": f"{split}{number}:{index}",
                        **dict.fromkeys(("recording_id", "group"), f"{split}{number}"),
                        "source_path": f"{split}{number}.wav",
                        "clip_index": index,
                        "start_s": index * CLIP_SECONDS,
                        "duration_s": CLIP_SECONDS,
                        "label": LABELS[present[0]] if present else "",
                        "label_id": int(present[0]) if present else clips.NO_LABEL_ID,
                        "split": split,
                        "labels": sorted(LABELS[i] for i in present),
                        "secondary_labels": [LABELS[i] for i in secondary],
                        "audio": sum(tones, noise),
                    }
                )
    rows.sort(key=lambda row: (row["recording_id"], row["clip_index"]))
    _write_rows(data_dir, rows, LABELS, CLIP_SECONDS, SAMPLE_RATE_HZ, seed, folds)
    return data_dir


def _write_rows(data_dir, rows, labels, clip_seconds, sample_rate_hz, seed, folds, recordists=None, collections=None):
    args = argparse.Namespace(output_dir=data_dir, overwrite=False, seed=seed, folds=folds)
    with runs.open_run("01_data_processing", args, {}) as this_run:
        this_run.metrics = {"kept_together": "recording"}
        half = len(rows) // 2
        clips.write_part(data_dir / clips.part_name(0), rows[:half], sample_rate_hz, clip_seconds)
        clips.write_part(data_dir / clips.part_name(1), rows[half:], sample_rate_hz, clip_seconds)
        clips.write_labels(data_dir, labels)
        if recordists is not None:
            own = {row["recording_id"]: row for row in rows}
            columns = ["recording_id", "label", "recordist", "group", "split", "sha256", "n_clips", "collection"]
            of_collection = (collections or {}).get
            values = [
                [
                    *(name, row["label"], recordists.get(name, ""), row["group"], row["split"]),
                    *(sha256_of_lines([name]), 2, of_collection(name, "")),
                ]
                for name, row in own.items()
            ]
            write_csv(data_dir / recordings_table.NAME, columns, values)
