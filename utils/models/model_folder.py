"""Model folders: find one, check that it is sound, know it by a digest, and load it. The only place that loads models.

A model folder can come from anybody. Nothing that lies in it is run: code that its files name is refused without a
question, and weights are read as numbers. What cannot be right is refused before memory is taken for it.
"""

import json
import logging
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SequenceFeatureExtractor,
)
from transformers import logging as transformers_logging
from transformers.models.auto.feature_extraction_auto import (
    FEATURE_EXTRACTOR_MAPPING,
    FEATURE_EXTRACTOR_MAPPING_NAMES,
)

import utils.models.bird_cnn  # noqa: F401 (the Auto classes know its networks then)
from utils.core.errors import InputError, is_machine_limit
from utils.core.files import sha256_of_file, sha256_of_lines
from utils.core.text import printable, some
from utils.models import memory, training_history

log = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
# The second is where transformers 5 keeps the feature extractor of a processor; it goes before the first.
EXTRACTOR_NAMES = ("preprocessor_config.json", "processor_config.json")
INDEX_SUFFIX = ".index.json"
# In the order in which transformers looks for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin")
ADAPTER_NAME = "adapter_config.json"

CODE_KEYS = ("auto_map", "custom_pipelines")
LARGEST_DEPTH = 1000
LARGEST_HEAD = 10_000_000  # parameters
MOST_LABELS = 1_000_000
ADVICE = "mend the file, or copy the whole model folder again"
WANTED = "expected a run folder of 02_finetuning.py, or the folder of a model for transformers with its config.json"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that `open_folder` found sound.

    Attributes
    ----------
    name : str
        What the user calls it: a folder, or a name on the hub.
    path : Path
        The folder that holds ``config.json``.
    config : dict
        What stands in it.
    weights : tuple of Path
        The files that hold the weights.
    """

    name: str
    path: Path
    config: dict
    weights: tuple[Path, ...]


class Loaded(NamedTuple):
    """What `load` returns; the names of weights are those of the model."""

    model: PreTrainedModel
    extractor: SequenceFeatureExtractor
    missing: set[str]  # in the folder
    mismatched: set[str]  # of another shape than in the folder
    unexpected: set[str]  # in the folder, and not in the model


# ------------------------------------------------------------------------------------------- finding


def resolve_model_dir(model_dir: Path) -> Path:
    """Return the folder that holds ``config.json``: `model_dir`, or ``model`` in a run folder."""
    model_dir = Path(model_dir)
    inner = model_dir / "model"
    return inner if (inner / CONFIG_NAME).is_file() and not (model_dir / CONFIG_NAME).is_file() else model_dir


def find(model: str | Path) -> tuple[str, Path]:
    """Return the name and the folder of a model; one of the hub is downloaded if it is not in the cache.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder, or name on the hub.

    Raises
    ------
    InputError
        If there is none.
    """
    text = str(model)
    if Path(text).is_dir():
        path = resolve_model_dir(Path(text))
        return str(path), path
    if Path(text).is_file():
        raise InputError(f"{text} is a file; expected the model folder that it lies in: {Path(text).parent}")
    # The hub would be asked again and again for what can only be a path.
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise InputError(f"{text} cannot be loaded: no such folder, and no name on the hub looks like this")
    return text, _hub_snapshot(text)


def _hub_snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    configs = [CONFIG_NAME, *EXTRACTOR_NAMES, ADAPTER_NAME, training_history.FILE_NAME]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*configs, "model*.safetensors", WEIGHT_NAMES[1]]))
        if not any((folder / weights).is_file() for weights in WEIGHT_NAMES[:2]):
            snapshot_download(name, allow_patterns=["pytorch_model*.bin", WEIGHT_NAMES[3]])
    except Exception as error:  # of the hub, of the network, of the name
        raise InputError(
            f"{name} cannot be loaded: there is no such folder, and the hub or its cache gives no such model "
            f"({one_line(error)}); check the name, or download the model where there is internet"
        ) from error
    return folder


# ------------------------------------------------------------------------------------------ checking


def open_folder(name: str, path: Path) -> ModelFolder:
    """Read what a model folder says of itself, and check it.

    Parameters
    ----------
    name, path
        As `find` returns them.

    Raises
    ------
    InputError
        If a file is missing or breaks its contract, names code or weights that lie elsewhere, or describes a model
        that the weights cannot be of.
    """
    if not (path / CONFIG_NAME).is_file():
        raise InputError(f"{name} has no {CONFIG_NAME}, so it is no whole model folder; {WANTED}")
    config = _read_json(name, path / CONFIG_NAME)
    if config.get("model_type") is None:
        found = some([repr(key) for key in config], 3) or "nothing"
        raise InputError(f"{name}/{CONFIG_NAME} holds {found} and no 'model_type', so it is of no model; {WANTED}")
    found = [extractor for extractor in EXTRACTOR_NAMES if (path / extractor).is_file()]
    if not found:
        raise InputError(f"{name} has no {EXTRACTOR_NAMES[0]}, {_extractor_advice(name, path, config)}")
    if (path / ADAPTER_NAME).exists():
        raise InputError(
            f"{name} holds an adapter ({ADAPTER_NAME}), which no stage reads: merge it into the model with peft's "
            "merge_and_unload, save that, and delete the adapter"
        )
    for read in (CONFIG_NAME, *found):
        _refuse_code(f"{name}/{read}", _read_json(name, path / read))
    _check_fields(f"{name}/{CONFIG_NAME}", config)
    return ModelFolder(name, path, config, _weight_files(name, path))


def _extractor_advice(name: str, path: Path, config: dict) -> str:
    """Say what the missing file is for, and how to make it; models of the hub and of other programs often lack it."""
    kind = str(config.get("model_type"))
    extractor = FEATURE_EXTRACTOR_MAPPING_NAMES.get(kind)
    if "clip_seconds" in config or extractor is None:  # trained here, with settings that nobody should guess
        return f"so it is no whole model folder; {ADVICE}"
    settings = "do_normalize=True"
    if kind == "whisper":
        settings = f"feature_size={config.get('num_mel_bins', 80)}, "
        settings += f"chunk_length={config.get('max_source_positions', 1500) // 50}"
    elif kind == "audio-spectrogram-transformer":
        settings = f"num_mel_bins={config.get('num_mel_bins', 128)}, max_length={config.get('max_length', 1024)}"
    is_local = Path(name).is_dir()
    folder = str(path.resolve() if is_local else Path(name.rpartition("/")[2]))
    code = f"from transformers import {extractor} as F; F({settings}).save_pretrained({folder!r})"
    return (
        "which says how sound becomes its input. "
        + ("" if is_local else f"Download it into a folder of your own: hf download {name} --local-dir {folder}. ")
        + "Copy the file from the model that this one was made from, or make it with the settings of its training, "
        f"which its model card names (do_normalize, sampling rate, bands), as python -c {shlex.quote(code)}"
        + ("" if is_local else f"; then give the folder {folder}")
    )


def _read_json(name: str, path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # not JSON or not UTF-8, or thousands of lists in lists
        raise InputError(f"{name}/{path.name} cannot be read as JSON ({one_line(error)}); {ADVICE}") from error
    if not isinstance(value, dict):
        raise InputError(f"{name}/{path.name} holds {_short(value)}; expected an object with keys; {ADVICE}")
    return value


def _refuse_code(where: str, content: dict) -> None:
    """Refuse keys, at any depth, by which transformers would run code that came with the model or from the hub."""
    values: list[object] = [content]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        for key, item in value.items() if isinstance(value, dict) else ():
            if (key in CODE_KEYS and item) or (key.endswith("_implementation") and "/" in str(item)):
                raise InputError(
                    f"{where}: the key {key!r} names code of its own ({_short(item)}), and no stage runs code that "
                    "comes with a model. If transformers knows the architecture without it, delete the key; else "
                    "choose another model"
                )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_not_negative(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _ascends(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value)) and sorted(set(value)) == value


# What our stages ask of a config.json, and what transformers would take memory by; None counts as absent.
FIELDS = {
    "model_type": (lambda value: isinstance(value, str), "a name"),
    "kept_layers": (_ascends, "numbers of layers, ascending"),
    "clip_seconds": (_is_positive, "a number of seconds above 0"),
    "clip_least_seconds": (_is_not_negative, "a number of seconds"),
    "clip_least_rest_seconds": (_is_not_negative, "a number of seconds"),
    "clip_remainder": (lambda value: value in ("pad", "drop"), "pad or drop"),
    "clip_channel": (lambda value: isinstance(value, str), "a channel"),
    "clip_fill": (lambda value: value == "repeat", "repeat"),
    "clip_samples": (lambda value: _is_count(value) and value > 0, "a number of samples above 0"),
    "data_sha256": (lambda value: isinstance(value, str), "a text"),
    "trained_on": (
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "a list of texts",
    ),
    "pruned_from": (lambda value: isinstance(value, str), "a text"),
    "pruned_after_fine_tuning": (lambda value: isinstance(value, bool), "true or false"),
    "num_labels": (lambda value: _is_count(value) and value <= MOST_LABELS, f"a number from 0 to {MOST_LABELS}"),
    "id2label": (lambda value: isinstance(value, dict), "an object of labels by id"),
    "label2id": (lambda value: isinstance(value, dict), "an object of ids by label"),
    # They would have transformers read other files than those that are checked and digested here.
    "transformers_weights": (lambda value: False, "the weights in model.safetensors and no such key"),
    "configuration_files": (lambda value: False, "the configuration in config.json and no such key"),
}


def _check_fields(where: str, config: dict) -> None:
    for key, (holds, expected) in FIELDS.items():
        value = config.get(key)
        if value is not None and not holds(value):
            raise InputError(f"{where}: {key} is {_short(value)}; expected {expected}; {ADVICE}")
    for key, value in config.items():
        if key.endswith("layers") and type(value) in (int, float) and not 0 <= value <= LARGEST_DEPTH:
            raise InputError(f"{where}: {key} is {_short(value)}; expected 0 to {LARGEST_DEPTH}; {ADVICE}")


def _weight_files(name: str, path: Path) -> tuple[Path, ...]:
    """Return the files that transformers reads the weights from."""
    found = [weights for weights in WEIGHT_NAMES if (path / weights).is_file()]
    if not found:
        raise InputError(f"{name} has no weights (model.safetensors or pytorch_model.bin); {ADVICE}")
    if not found[0].endswith(INDEX_SUFFIX):
        return (path / found[0],)
    index = _read_json(name, path / found[0])
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()) or not shards:
        raise InputError(f"{name}/{found[0]}: weight_map is {_short(shards)}; expected file names by weight; {ADVICE}")
    suffix = Path(found[0].removesuffix(INDEX_SUFFIX)).suffix
    for shard in sorted(set(shards.values())):
        # By name alone: the files of the hub's cache are links to where it keeps all content.
        if PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts or not shard.endswith(suffix):
            raise InputError(
                f"{name}/{found[0]} names the weights {_short(shard)}; expected *{suffix} files in the same folder: "
                "weights from elsewhere would not belong to this model; copy the whole model folder again"
            )
        if not (path / shard).is_file():
            raise InputError(f"{name}/{shard} is missing, but {found[0]} names it; {ADVICE}")
    return tuple(path / shard for shard in sorted(set(shards.values())))


def check_labels(folder: ModelFolder) -> None:
    """Check the labels of a fine-tuned model: ids from 0 without a gap, and nothing that contradicts them.

    Raises
    ------
    InputError
        If they cannot be told.
    """
    where = f"{folder.name}/{CONFIG_NAME}"
    named = folder.config.get("id2label")
    if named is None:
        return
    if set(named) != {str(i) for i in range(len(named))}:
        raise InputError(
            f"{where}: id2label has the ids {_short(list(named))}; expected 0 to {len(named) - 1}; {ADVICE}"
        )
    labels = [named[str(i)] for i in range(len(named))]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise InputError(f"{where}: id2label names {_short(labels)}; expected texts that all differ; {ADVICE}")
    n_labels = folder.config.get("num_labels")
    if n_labels not in (None, len(labels)):
        raise InputError(f"{where}: num_labels is {n_labels}, id2label has {len(labels)} labels; {ADVICE}")
    ids = folder.config.get("label2id") or {}
    for i, label in enumerate(labels):
        if ids.get(label, i) != i:
            raise InputError(
                f"{where}: id2label has {_short(label)} as label {i}, label2id as {_short(ids[label])}; {ADVICE}"
            )


def digest(folder: ModelFolder) -> str:
    """Return the SHA-256 of all that is loaded from a folder, whatever the folder is called.

    Files that transformers might read beside them, all JSON and all weights at its top, are part of it.
    """
    beside = [path for path in folder.path.iterdir() if path.suffix in {*WEIGHT_SUFFIXES, ".json"} and path.is_file()]
    files = {path.relative_to(folder.path).as_posix(): path for path in (*beside, *folder.weights)}
    return sha256_of_lines(f"{sha256_of_file(files[name])}  {name}" for name in sorted(files))


# ------------------------------------------------------------------------------------------- loading


def read_config(folder: ModelFolder, **changes) -> PreTrainedConfig:
    """Return the config of a model, with `changes`.

    Raises
    ------
    InputError
        If transformers does not know the architecture or refuses a value, or there is no such number of layers.
    """
    config = _from_pretrained(AutoConfig, folder, **changes)
    kept = getattr(config, "kept_layers", None)
    if kept is not None and len(kept) != config.num_hidden_layers:
        raise InputError(
            f"{folder.name}/{CONFIG_NAME}: kept_layers has {len(kept)} numbers, num_hidden_layers is "
            f"{config.num_hidden_layers}; {ADVICE}"
        )
    config.name_or_path = folder.name  # not the hub's cache
    return config


def load(folder: ModelFolder, config: PreTrainedConfig) -> Loaded:
    """Load a model in float32, and its feature extractor; what is missing of it is newly initialised.

    Raises
    ------
    InputError
        If they cannot be loaded, do not belong together, or are of another size than the weights.
    """

    def need() -> float:
        # The file is mapped, and its numbers are copied to where they stay.
        return memory.used_bytes("cpu", most=False) + 2 * sum(path.stat().st_size for path in folder.weights)

    return memory.advised(
        lambda: _load(folder, config),
        lambda: f"only to load it takes about {memory.more(need())}: give the job more",
        *(need, f"{folder.name}: "),
    )


def _load(folder: ModelFolder, config: PreTrainedConfig) -> Loaded:
    extractor = _from_pretrained(AutoFeatureExtractor, folder)
    _check_extractor(folder, extractor, config)
    _check_size(folder, config)
    if len([name for name in WEIGHT_NAMES if (folder.path / name).is_file()]) > 1:
        log.info("%s holds several sets of weights: %s is read", folder.name, folder.weights[0].name)
    model, report = _from_pretrained(
        AutoModelForAudioClassification,
        folder,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # transformers would only say that there are some
    )
    names = ({key[0] if isinstance(key, tuple) else str(key) for key in report[kind]} for kind in _REPORTED)
    model.config.name_or_path = folder.name
    model.training_history = training_history.read_history(folder.path)
    return Loaded(model, extractor, *names)


_REPORTED = ("missing_keys", "mismatched_keys", "unexpected_keys")


def quiet_transformers() -> None:
    """Keep transformers' warnings and bars out of the log: what they would warn of is an error of ours, or nothing."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _from_pretrained(auto_class: type, folder: ModelFolder, **options) -> object:
    """Call the only ``from_pretrained``: it runs no code of the folder, asks no question and stays off the network."""
    quiet_transformers()
    try:
        return auto_class.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError …
        if is_machine_limit(error):
            raise
        raise InputError(f"{folder.name} cannot be loaded: {one_line(error)}") from error


def _check_extractor(folder: ModelFolder, extractor: object, config: PreTrainedConfig) -> None:
    """Check that a feature extractor gives what the model takes."""
    where = f"{folder.name}: its feature extractor"
    wanted = FEATURE_EXTRACTOR_MAPPING.get(type(config), SequenceFeatureExtractor)
    if not isinstance(extractor, wanted):
        raise InputError(
            f"{where} is a {type(extractor).__name__}; a {config.model_type} model takes a {wanted.__name__}: copy the "
            f"{EXTRACTOR_NAMES[0]} of the model that this one was made from"
        )
    rate = extractor.sampling_rate
    if not _is_count(rate) or rate == 0:
        raise InputError(f"{where} has the sampling_rate {_short(rate)}; expected a number of Hz above 0; {ADVICE}")
    seconds = getattr(extractor, "chunk_length", 1)
    if not _is_count(seconds) or seconds == 0:  # 30.0 would be accepted, and fail with the first shorter clip
        raise InputError(f"{where} has the chunk_length {_short(seconds)}; expected whole seconds above 0; {ADVICE}")
    bands = getattr(extractor, "num_mel_bins", extractor.feature_size)  # AST has its own word
    pairs = {
        "bands": (bands, getattr(config, "num_mel_bins", bands)),
        "frames": (getattr(extractor, "max_length", None), getattr(config, "max_length", None)),
    }
    if hasattr(extractor, "nb_max_frames"):  # Whisper, whose second convolution halves the frames
        pairs["frames"] = extractor.nb_max_frames, 2 * config.max_source_positions
    for what, (given, taken) in pairs.items():
        if None not in (given, taken) and given != taken:
            raise InputError(f"{where} gives {_short(given)} {what}, the model takes {_short(taken)}; {ADVICE}")


def _check_size(folder: ModelFolder, config: PreTrainedConfig) -> None:
    """Check, before memory is taken, that the weights can be those of the model that `config` describes."""
    numbers, sizes, n_values = {-1}, set(), 0
    for name, shape in _shapes(folder):
        sizes.update(shape)
        numbers.update(int(number) for number in re.findall(r"(?<![^.])\d{1,9}(?![^.])", name))
        n_values += math.prod(shape)
    if config.num_hidden_layers > max(numbers) + 1:
        raise InputError(
            f"{folder.name}/{CONFIG_NAME}: num_hidden_layers is {config.num_hidden_layers}, the weights have no layer "
            f"beyond {max(numbers)}; {ADVICE}"
        )
    hidden_size = getattr(config, "hidden_size", None)
    if hidden_size is not None and hidden_size not in sizes:
        raise InputError(
            f"{folder.name}/{CONFIG_NAME}: the hidden size is {hidden_size}, no weight has this size; {ADVICE}"
        )
    try:
        with torch.device("meta"):
            skeleton = AutoModelForAudioClassification.from_config(config, trust_remote_code=False)
    except Exception as error:
        if is_machine_limit(error):
            raise
        raise InputError(f"{folder.name} cannot be loaded: {one_line(error)}") from error
    n_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if n_parameters > 2 * n_values + LARGEST_HEAD:
        raise InputError(
            f"{folder.name}/{CONFIG_NAME} describes a model of {n_parameters:.3g} parameters, the weights hold "
            f"{n_values:.3g} numbers; {ADVICE}"
        )


def _shapes(folder: ModelFolder) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the shape of every weight; no weight is read."""
    for path in folder.weights:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        yield name, file.get_slice(name).get_shape()
            else:
                weights = torch.load(path, map_location="meta", weights_only=True)
                yield from ((name, value.shape) for name, value in weights.items())
        except SafetensorError as error:
            raise InputError(f"{folder.name}/{path.name} is damaged ({one_line(error)}); {ADVICE}") from error
        except Exception as error:  # UnpicklingError, RuntimeError, AttributeError, OSError …
            if is_machine_limit(error):
                raise
            raise InputError(
                f"{folder.name}/{path.name} is damaged, or holds more than weights, which is never run "
                f"({one_line(error)}); {ADVICE}, or choose one with model.safetensors"
            ) from error


def one_line(error: Exception, most: int = 200) -> str:
    """Return the kind and the message of an error on one line, without what would steer a terminal."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()  # PyTorch's are in colour
    text = printable(" ".join(words)) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= most else text[: most - 1] + '…'}"


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
