"""Classify the sound of files, clip by clip, with the model in the folder that this file lies in.

    python classify.py song.wav another.flac     # a line a clip: file, start in s, label, probability

    from classify import classify                # where this folder is on sys.path
    starts_s, labels, logits = classify("song.wav")

This file belongs to the model, and goes where its folder goes. It needs transformers, numpy and soundfile, and soxr for
files of another sample rate than the model's; nothing else of the project that the model is from. A file is cut as the
clips of the training were, and its scores are those that 03_model_validation.py gives them.
"""

import functools
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedConfig

FOLDER = Path(__file__).resolve().parent
CLIPS_AT_ONCE = 8
FULL_SCALE = 32768  # of the 16-bit samples in which the clips of the training are stored
CANCELLED = 0.5  # a mean of channels with less than this share of the power that unrelated channels would leave in it


@functools.cache
def load_model(folder: Path = FOLDER) -> tuple:
    """Return the model of a folder, in evaluation mode, and its feature extractor."""
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"].endswith("_cnn"):
        sys.path.append(str(FOLDER))
        importlib.import_module("bird_cnn")  # it lies beside this file: transformers does not know the network
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    if getattr(model.config, "clip_fill", None) is None:
        raise ValueError(
            f"{folder} does not say how the clips of its training were cut: train it with 02_finetuning.py"
        )
    return model.eval(), extractor


def read(path: str | Path, rate_hz: int) -> np.ndarray:
    """Return the sound of a file as float32 of shape (n_samples,) in [-1, 1]: the mean of its channels, 16 bits."""
    channels, own_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    audio = channels.mean(axis=1)
    if not np.isfinite(audio).all():
        raise ValueError(f"{path} holds samples that are no numbers")
    powers = np.square(channels, dtype=np.float64).mean(axis=0)
    if np.square(audio, dtype=np.float64).mean() < CANCELLED * powers.sum() / len(powers) ** 2:
        raise ValueError(f"the {len(powers)} channels of {path} cancel in their mean: save one of them as a file")
    if np.abs(audio).max(initial=0) > 2:
        raise ValueError(f"{path} peaks at {np.abs(audio).max():.3g} times full scale: save it within [-1, 1]")
    if own_rate_hz != rate_hz:
        try:
            import soxr
        except ImportError:
            raise ValueError(
                f"{path} has {own_rate_hz} Hz, the model takes {rate_hz} Hz: pip install soxr, or resample the file"
            ) from None
        audio = soxr.resample(audio, own_rate_hz, rate_hz)
    return (np.rint(audio * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE).astype(np.float32)


def cut(n_samples: int, rate_hz: int, config: PreTrainedConfig) -> list[tuple[int, int]]:
    """Return the first sample and the length of every clip of a file; the last may be shorter than the others."""
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
        Scores; their softmax over the labels is the probabilities.

    Raises
    ------
    ValueError
        If the file is too short for a clip, or cannot be taken as it is.
    """
    model, extractor = load_model(Path(folder))
    rate_hz, config = extractor.sampling_rate, model.config
    audio = read(path, rate_hz)
    clips = cut(len(audio), rate_hz, config)
    if not clips:
        raise ValueError(f"{path} lasts {len(audio) / rate_hz:.3g} s: too short for a clip of this model")
    size = round(config.clip_seconds * rate_hz)
    logits = []
    for first in range(0, len(clips), CLIPS_AT_ONCE):
        # A clip that is too short is repeated from its start: zeros would change what the model hears of it.
        batch = [np.resize(audio[start : start + n], size) for start, n in clips[first : first + CLIPS_AT_ONCE]]
        features = extractor(batch, sampling_rate=rate_hz, return_tensors="pt")[model.main_input_name]
        with torch.no_grad():
            logits.append(model(**{model.main_input_name: features}).logits.numpy())
    starts_s = np.array([start for start, _ in clips]) / rate_hz
    return starts_s, [config.id2label[i] for i in range(config.num_labels)], np.concatenate(logits)


def main() -> None:
    """Print a line for every clip of the files that are named."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for path in sys.argv[1:]:
        try:
            starts_s, labels, logits = classify(path)
        except (ValueError, OSError, soundfile.SoundFileError) as error:
            sys.exit(str(error))
        for start_s, scores in zip(starts_s, torch.from_numpy(logits).softmax(dim=1).tolist(), strict=True):
            best = int(np.argmax(scores))
            print(f"{path}\t{start_s:.3f}\t{labels[best]}\t{scores[best]:.3f}")


if __name__ == "__main__":
    main()
