"""Classify sound files, clip by clip, with the model in the folder of this file.

    python classify.py song.wav another.flac     # one line per clip: file, start in s, label, score

    from classify import classify                # with this folder on sys.path
    starts_s, labels, logits = classify("song.wav")

This file belongs to the model and can be copied with its folder. It needs PyTorch, transformers, numpy and soundfile,
and soxr for files with another sample rate than the model's; it needs nothing of the project that trained the model.
Files are cut into clips as in the training. The scores are those of 03_model_validation.py: probabilities, calibrated
if config.json has a decision.
"""

import functools
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedConfig
from transformers import logging as transformers_logging

FOLDER = Path(__file__).resolve().parent
# By model type, the file beside this one with a network that transformers does not include.
NETWORKS = {"beats": "beats_encoder", "melspectrogram_cnn": "bird_cnn", "waveform_cnn": "bird_cnn"}
CLIPS_AT_ONCE = 8
FULL_SCALE = 32768  # of 16-bit samples, in which the training clips are stored
# The rest makes the same decisions as 01_data_processing.py.
FINER_THAN_16_BIT = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
QUIETEST_PEAK = 2**-8
CANCELLED = 0.5  # lowest power of the mean of all channels, relative to that of unrelated channels
SILENT_BESIDE = 1e-4  # power of a channel, relative to the loudest


def network_of(model_type: str) -> str | None:
    """Return the name of the file with a network that transformers does not include; None if it does."""
    return "attention_head" if model_type.endswith("_attention") else NETWORKS.get(model_type)


@functools.cache
def load_model(folder: Path = FOLDER) -> tuple:
    """Return the model of a folder, in evaluation mode, and its feature extractor."""
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if module := network_of(model_type):
        sys.path.append(str(FOLDER))
        importlib.import_module(module)
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    if getattr(model.config, "clip_fill", None) is None:
        raise ValueError(f"{folder} does not record how its training clips were cut: train it with 02_finetuning.py")
    return model.eval(), extractor


def read(path: str | Path, rate_hz: int, channel: str = "mean") -> np.ndarray:
    """Return the sound of a file as float32 of shape (n_samples,) in [-1, 1], rounded to 16 bits as in the training."""
    content = Path(path).read_bytes()
    with soundfile.SoundFile(path) as file:
        is_fine, own_rate_hz = file.subtype in FINER_THAN_16_BIT, file.samplerate
        if file.format in ("MP3", "MPEG") and not re.search(rb"Xing|Info|VBRI", content[:500_000]):
            raise ValueError(f"{path} is an mp3 without its length: convert it to WAV")
        if file.format == "OGG" and len(re.findall(rb"OggS\0[\2\3\6\7]", content)) > 1:
            raise ValueError(f"{path} holds several streams of sound: convert it to WAV")
        channels = file.read(dtype="float32", always_2d=True)
    if not np.isfinite(channels).all():
        raise ValueError(f"{path} holds samples that are not numbers")
    index = choose_channel(channels, channel)
    audio = channels.mean(axis=1) if index is None else channels[:, index]
    peak = np.abs(audio).max(initial=0)
    if is_fine and (peak > 1 or 0 < peak < QUIETEST_PEAK):
        raise ValueError(f"{path} peaks at {peak:.3g} times full scale: scale it to a peak of 0.9")
    if len(audio) and (audio.min() > 0 or audio.max() < 0):
        raise ValueError(f"{path} never crosses zero: subtract its mean")
    if own_rate_hz != rate_hz:
        try:
            import soxr
        except ImportError:
            raise ValueError(
                f"{path} has {own_rate_hz} Hz, the model expects {rate_hz} Hz: pip install soxr, or resample the file"
            ) from None
        audio = soxr.resample(audio, own_rate_hz, rate_hz)
    return (np.rint(audio * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE).astype(np.float32)


def choose_channel(channels: np.ndarray, asked: str) -> int | None:
    """Return the index of the channel to use, from sound of shape (n_samples, n_channels); None for the mean of all."""
    n_channels = channels.shape[1]
    if asked not in ("mean", "best"):
        number = {"left": 1, "right": 2}.get(asked) or int(asked)
        if number > n_channels:
            raise ValueError(f"the model was trained on channel {number}, and the file has {n_channels}")
        return number - 1
    steps = np.diff(channels.astype(np.float64), axis=0)  # an offset or wind must not affect the choice
    products = steps.T @ steps
    powers = np.diagonal(products)
    cancels = products.sum() < CANCELLED * powers.sum()
    others_are_silent = n_channels > 1 and np.sort(powers)[-2] < SILENT_BESIDE * powers.max()
    return int(powers.argmax()) if asked == "best" or cancels or others_are_silent else None


def cut(n_samples: int, rate_hz: int, config: PreTrainedConfig) -> list[tuple[int, int]]:
    """Return the first sample and the length of every clip of a file; the last may be shorter."""
    size = round(config.clip_seconds * rate_hz)
    clips = [(start, size) for start in range(0, n_samples - size + 1, size)]
    rest = n_samples - len(clips) * size
    least_s = config.clip_least_rest_seconds if clips else config.clip_least_seconds
    if config.clip_remainder == "pad" and rest >= max(1, round(least_s * rate_hz)):
        clips.append((n_samples - rest, rest))
    return clips


def classify(path: str | Path, folder: Path = FOLDER) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Classify a file clip by clip.

    Parameters
    ----------
    path : str or Path
        A file that libsndfile reads, such as WAV, FLAC or Ogg.
    folder : Path
        Model folder.

    Returns
    -------
    starts_s : ndarray, shape (n_clips,)
        Where each clip starts, in s.
    labels : list of str
    logits : ndarray of float32, shape (n_clips, n_labels)
        `scores_of` turns them into probabilities.

    Raises
    ------
    ValueError
        If the file is too short for a clip, or cannot be used as it is.
    """
    model, extractor = load_model(Path(folder))
    rate_hz, config = extractor.sampling_rate, model.config
    audio = read(path, rate_hz, config.clip_channel)
    clips = cut(len(audio), rate_hz, config)
    if not clips:
        raise ValueError(f"{path} lasts {len(audio) / rate_hz:.3g} s: too short for a clip of this model")
    size = round(config.clip_seconds * rate_hz)
    logits = []
    for first in range(0, len(clips), CLIPS_AT_ONCE):
        # A clip that is too short is repeated from its start: padding with zeros would change the model's result.
        batch = [np.resize(audio[start : start + n], size) for start, n in clips[first : first + CLIPS_AT_ONCE]]
        features = extractor(batch, sampling_rate=rate_hz, return_tensors="pt")
        inputs, mask = features[model.main_input_name], features.get("attention_mask")
        if mask is not None:  # frames that were added
            inputs = inputs[:, mask[0].bool()]
        with torch.no_grad():
            logits.append(model(**{model.main_input_name: inputs}).logits.numpy())
    starts_s = np.array([start for start, _ in clips]) / rate_hz
    return starts_s, [config.id2label[i] for i in range(config.num_labels)], np.concatenate(logits)


def scores_of(logits: np.ndarray, config: PreTrainedConfig) -> np.ndarray:
    """Return the probability of each label, calibrated if the config has a decision; same shape, float64."""
    calibration = (getattr(config, "decision", None) or {}).get("calibration", {})
    logits = torch.from_numpy(logits).double() / calibration.get("temperature", 1)
    logits = calibration.get("slope", 1) * logits + calibration.get("intercept", 0)
    is_multi_label = config.problem_type == "multi_label_classification"
    return (logits.sigmoid() if is_multi_label else logits.softmax(dim=1)).numpy()


def main() -> None:
    """Print one line per clip of the given files; continue after a file that cannot be classified."""
    paths, n_bad = sys.argv[1:], 0
    if not paths:
        sys.exit(__doc__)
    transformers_logging.disable_progress_bar()
    try:
        load_model(FOLDER)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    for path in paths:
        try:
            starts_s, labels, logits = classify(path, FOLDER)
        except soundfile.LibsndfileError as error:
            problem = f"libsndfile cannot read it ({error.error_string.rstrip('.')}); convert it to WAV"
        except (ValueError, OSError, soundfile.SoundFileError) as error:
            problem = str(error)
        else:
            for start_s, scores in zip(starts_s, scores_of(logits, load_model(FOLDER)[0].config), strict=True):
                best = int(np.argmax(scores))
                print(f"{path}\t{start_s:.3f}\t{labels[best]}\t{scores[best]:.3f}")
            continue
        print(problem if path in problem else f"{path}: {problem}", file=sys.stderr)
        n_bad += 1
    if n_bad:
        sys.exit(f"{n_bad} of {len(paths)} files could not be classified")


if __name__ == "__main__":
    main()
