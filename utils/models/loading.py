"""Load a model folder: the only module that reads weights.

Weights are read as numbers, in float32. Folders that cannot be right are refused before memory is allocated for them.
"""

import logging
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    SequenceFeatureExtractor,
)
from transformers import logging as transformers_logging
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

import utils.models.bird_cnn  # noqa: F401 (registers its networks with the Auto classes)
from utils.core.errors import InputError, is_machine_limit
from utils.models import memory, training_history
from utils.models.loaded_model import LoadedModel
from utils.models.model_folder import (
    ADVICE,
    CONFIG_NAME,
    EXTRACTOR_NAMES,
    WEIGHT_NAMES,
    ModelFolder,
    is_count,
    one_line,
    short,
)

log = logging.getLogger(__name__)

LARGEST_HEAD = 10_000_000  # parameters


class WeightNames(NamedTuple):
    """Weights that a folder and its model do not share, by their names in the model."""

    missing: set[str]  # from the folder
    mismatched: set[str]  # with another shape than in the folder
    unexpected: set[str]  # in the folder, but not in the model


def read_config(folder: ModelFolder, **changes) -> PreTrainedConfig:
    """Return the config of a model, with `changes`.

    Raises
    ------
    InputError
        If transformers does not support the architecture or refuses a value, or there is no such number of layers.
    """
    config = _from_pretrained(AutoConfig, folder, **changes)
    kept = getattr(config, "kept_layers", None)
    if kept is not None and len(kept) != config.num_hidden_layers:
        raise InputError(
            f"{folder.name}/{CONFIG_NAME}: kept_layers has {len(kept)} numbers, num_hidden_layers is "
            f"{config.num_hidden_layers}; {ADVICE}"
        )
    config.name_or_path = folder.name  # not the path in the hub's cache
    return config


def load(folder: ModelFolder, config: PreTrainedConfig) -> tuple[LoadedModel, WeightNames]:
    """Load a model in float32 onto the CPU; missing weights are newly initialised.

    Raises
    ------
    InputError
        If the files cannot be loaded, do not belong together, or the weights have another size than the model.
    """

    def need() -> float:
        # The file is memory-mapped, and its numbers are copied to their final place.
        return memory.used_bytes("cpu", most=False) + 2 * sum(path.stat().st_size for path in folder.weights)

    return memory.advised(
        lambda: _load(folder, config),
        lambda: f"loading it alone needs about {memory.more(need())}: give the job more",
        *(need, f"{folder.name}: "),
    )


def _load(folder: ModelFolder, config: PreTrainedConfig) -> tuple[LoadedModel, WeightNames]:
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
        ignore_mismatched_sizes=True,  # transformers would not name them
    )
    names = ({key[0] if isinstance(key, tuple) else str(key) for key in report[kind]} for kind in _REPORTED)
    model.config.name_or_path = folder.name
    model.training_history = training_history.read_history(folder.path)
    return LoadedModel(model, extractor), WeightNames(*names)


_REPORTED = ("missing_keys", "mismatched_keys", "unexpected_keys")


def quiet_transformers() -> None:
    """Keep the warnings and progress bars of transformers out of the log: this project reports such errors itself."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _from_pretrained(auto_class: type, folder: ModelFolder, **options) -> object:
    """Call the only ``from_pretrained``: it runs no code of the folder, never asks, and stays off the network."""
    quiet_transformers()
    try:
        return auto_class.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError …
        if is_machine_limit(error):
            raise
        raise InputError(f"{folder.name} cannot be loaded: {one_line(error)}") from error


def _check_extractor(folder: ModelFolder, extractor: object, config: PreTrainedConfig) -> None:
    """Check that the output of a feature extractor fits the model."""
    where = f"{folder.name}: its feature extractor"
    wanted = FEATURE_EXTRACTOR_MAPPING.get(type(config), SequenceFeatureExtractor)
    if not isinstance(extractor, wanted):
        raise InputError(
            f"{where} is a {type(extractor).__name__}; a {config.model_type} model needs a {wanted.__name__}: copy the "
            f"{EXTRACTOR_NAMES[0]} of the model that this one was made from"
        )
    rate = extractor.sampling_rate
    if not is_count(rate) or rate == 0:
        raise InputError(f"{where} has the sampling_rate {short(rate)}; expected a number of Hz above 0; {ADVICE}")
    seconds = getattr(extractor, "chunk_length", 1)
    if not is_count(seconds) or seconds == 0:  # 30.0 would be accepted, and fail with the first shorter clip
        raise InputError(f"{where} has the chunk_length {short(seconds)}; expected whole seconds above 0; {ADVICE}")
    bands = getattr(extractor, "num_mel_bins", extractor.feature_size)  # AST has its own name for it
    pairs = {
        "bands": (bands, getattr(config, "num_mel_bins", bands)),
        "frames": (getattr(extractor, "max_length", None), getattr(config, "max_length", None)),
    }
    if hasattr(extractor, "nb_max_frames"):  # Whisper, whose second convolution halves the frames
        pairs["frames"] = extractor.nb_max_frames, 2 * config.max_source_positions
    for what, (given, taken) in pairs.items():
        if None not in (given, taken) and given != taken:
            raise InputError(f"{where} gives {short(given)} {what}, the model expects {short(taken)}; {ADVICE}")


def _check_size(folder: ModelFolder, config: PreTrainedConfig) -> None:
    """Check, before memory is allocated, that the weights fit the model that `config` describes."""
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
