"""Load a model folder, or a checkpoint of another program: the only module that reads weights.

Weights are read as numbers, in float32. Folders that cannot be right are refused before memory is allocated for them.
"""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    SequenceFeatureExtractor,
)
from transformers import logging as transformers_logging
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

from utils.core.errors import InputError, is_machine_limit
from utils.core.text import printable, short
from utils.models import architectures, memory, own_networks, training_history
from utils.models.loaded_model import LoadedModel
from utils.models.model_folder import (
    ADVICE,
    EXTRACTOR_NAMES,
    WEIGHT_NAMES,
    ModelFolder,
    check_fields,
    extractor_advice,
    is_count,
    one_line,
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
    model_type = folder.config.get("model_type", "")
    if architectures.attends(model_type):
        architectures.check_known(model_type)
        own_networks.config_class(model_type)  # which registers it
    if folder.format is not None:
        with _as_input_error(folder):
            config = AutoConfig.for_model(**_config_of_checkpoint(folder), **changes)
    else:
        config = _from_pretrained(AutoConfig, folder, **changes)
    kept = getattr(config, "kept_layers", None)
    if kept is not None and len(kept) != config.num_hidden_layers:
        raise InputError(
            f"{folder.config_name}: kept_layers has {len(kept)} numbers, num_hidden_layers is "
            f"{config.num_hidden_layers}; {ADVICE}"
        )
    config.name_or_path = folder.name  # not the path in the hub's cache
    return config


def _config_of_checkpoint(folder: ModelFolder) -> dict:
    if folder.format.config_path(folder.path) is not None:
        return folder.config
    content = _content_of(folder, folder.path, "meta")
    config = folder.format.config_in(folder.name, content, _weights_in(folder, folder.path, content))
    check_fields(folder.config_name, config)
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
    if folder.extractor is None:
        extractor = _from_pretrained(AutoFeatureExtractor, folder)
    else:
        with _as_input_error(folder):
            extractor = extractor_class(config)(**folder.extractor)
        if folder.format is None:
            log.warning(
                "%s has no %s, which describes how sound becomes its input: it gets the usual one of its kind, "
                "%s at %d Hz with %s. If it was trained in another way, its states mean little. %s",
                *(folder.name, EXTRACTOR_NAMES[0], type(extractor).__name__, extractor.sampling_rate),
                ", ".join(f"{key} {value}" for key, value in folder.extractor.items()),
                extractor_advice(folder.name, folder.path, folder.config),
            )
    _check_extractor(folder, extractor, config)
    _check_size(folder, config)
    if len([name for name in WEIGHT_NAMES if (folder.path / name).is_file()]) > 1:
        log.info("%s holds several sets of weights: %s is read", folder.name, folder.weights[0].name)
    auto_class, weights = AutoModelForAudioClassification, {}
    if folder.format is not None:
        auto_class, weights = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)], {"state_dict": _renamed(folder)}
    model, report = _from_pretrained(
        auto_class,
        folder,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # transformers would not name them
        **weights,
    )
    names = WeightNames(
        *({key[0] if isinstance(key, tuple) else str(key) for key in report[kind]} for kind in _REPORTED)
    )
    if folder.format is not None and names.unexpected:
        raise InputError(
            f"{folder.name} holds weights that {folder.config_name} does not describe, such as "
            f"{printable(min(names.unexpected))}: it is the config of another model; {folder.format.ADVICE}"
        )
    model.config.name_or_path = folder.name
    model.training_history = training_history.read_history(folder.path)
    return LoadedModel(model, extractor), names


_REPORTED = ("missing_keys", "mismatched_keys", "unexpected_keys")


def quiet_transformers() -> None:
    """Keep the warnings and progress bars of transformers out of the log: this project reports such errors itself."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _from_pretrained(auto_class: type, folder: ModelFolder, **options) -> object:
    """Call the only ``from_pretrained``: it runs no code of the folder, never asks, and stays off the network."""
    quiet_transformers()
    place = None if "state_dict" in options else folder.path
    with _as_input_error(folder):
        return auto_class.from_pretrained(place, trust_remote_code=False, local_files_only=True, **options)


@contextlib.contextmanager
def _as_input_error(folder: ModelFolder) -> Iterator[None]:
    """Raise `InputError` for any error within the block that is not a fault of the machine."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError …
        if is_machine_limit(error) or isinstance(error, InputError):
            raise
        raise InputError(f"{folder.name} cannot be loaded: {one_line(error)}") from error


def _renamed(folder: ModelFolder) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint by their names in transformers, in float32."""
    given = _weights_in(folder, folder.path, _content_of(folder, folder.path, "cpu"))
    stored = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in given.values()}))
    if not all(value.is_floating_point() for value in given.values()):
        raise InputError(
            f"{folder.name} stores weights in {stored}; expected float32 or float16: choose a file without quantization"
        )
    if stored != "float32":
        log.info("%s stores weights in %s; here they are float32", folder.name, stored)
    renamed: dict[str, torch.Tensor] = {}
    for theirs, value in given.items():
        name = folder.format.weight_name(theirs)
        if name is None:
            continue
        if renamed.setdefault(name, value) is not value and not torch.equal(renamed[name], value):
            raise InputError(
                f"{folder.name}: {printable(theirs)} differs from the same weight under another name, and the network "
                f"has it only once; {folder.format.ADVICE}"
            )
    return {name: value.float() for name, value in renamed.items()}


def extractor_class(config: PreTrainedConfig) -> type:
    """Return the class that the feature extractor of a model must have."""
    known = architectures.ARCHITECTURES.get(architectures.plain_type(config.model_type))
    if known is not None and known.extractor is not None:
        return getattr(transformers, known.extractor)
    return FEATURE_EXTRACTOR_MAPPING.get(type(config), SequenceFeatureExtractor)


def _check_extractor(folder: ModelFolder, extractor: object, config: PreTrainedConfig) -> None:
    """Check that the output of a feature extractor fits the model."""
    where = f"{folder.name}: its feature extractor"
    wanted = extractor_class(config)
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
    if hasattr(config, "feature_projection_input_dim"):  # wav2vec 2.0 BERT, which reads frames side by side
        stride = extractor.stride
        if not is_count(stride) or stride == 0:
            raise InputError(f"{where} has the stride {short(stride)}; expected a number of frames above 0; {ADVICE}")
        pairs["bands"] = bands * stride, config.feature_projection_input_dim
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
            f"{folder.config_name}: num_hidden_layers is {config.num_hidden_layers}, the weights have no layer "
            f"beyond {max(numbers)}; {ADVICE}"
        )
    hidden_size = getattr(config, "hidden_size", None)
    if hidden_size is not None and hidden_size not in sizes:
        raise InputError(f"{folder.config_name}: the hidden size is {hidden_size}, no weight has this size; {ADVICE}")
    with _as_input_error(folder), torch.device("meta"):
        skeleton = AutoModelForAudioClassification.from_config(config, trust_remote_code=False)
    n_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if n_parameters > 2 * n_values + LARGEST_HEAD:
        raise InputError(
            f"{folder.config_name} describes a model of {n_parameters:.3g} parameters, the weights hold "
            f"{n_values:.3g} numbers; {ADVICE}"
        )


def _shapes(folder: ModelFolder) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the shape of every weight; no weight is read."""
    for path in folder.weights:
        weights = _weights_in(folder, path, _content_of(folder, path, "meta"))
        yield from ((name, list(value.shape)) for name, value in weights.items())


def _weights_in(folder: ModelFolder, path: Path, content: dict) -> dict[str, torch.Tensor]:
    """Return the weights in the content of a file, by name; raise `InputError` if they are not only tensors."""
    where = _file_name(folder, path)
    weights = content if folder.format is None else folder.format.weights_in(where, content)
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{where} holds more than weights: {short(name)} is {type(value).__name__}; expected a tensor for each "
                f"name; {_advice(folder)}"
            )
    return weights


def _content_of(folder: ModelFolder, path: Path, device: str) -> dict:
    """Return the content of a file of weights; on ``meta`` no number is read. No code in it is run.

    Raises
    ------
    InputError
        If it is damaged, or holds objects of other classes.
    """
    where = _file_name(folder, path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                if device != "meta":
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{where} is damaged ({_fault(path, error)}); {_advice(folder)}") from error
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        weights = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, OSError …
        if is_machine_limit(error):
            raise
        foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if foreign is not None:
            raise InputError(
                f"{where} holds more than weights: objects of the class {printable(foreign[1])}, whose code is never "
                "run; choose a file that holds only weights, best model.safetensors"
            ) from error
        raise InputError(
            f"{where} is damaged, or holds more than weights, which is never run ({_fault(path, error)}); "
            f"{_advice(folder)}, or choose one with model.safetensors"
        ) from error
    if not isinstance(weights, dict):
        raise InputError(f"{where} holds {short(type(weights).__name__)}; expected weights by name; {_advice(folder)}")
    return weights


def _advice(folder: ModelFolder) -> str:
    return ADVICE if folder.format is None else folder.format.ADVICE


def _fault(path: Path, error: Exception) -> str:
    """Describe why a file of weights cannot be read: by what it is if its first bytes tell, otherwise by the error."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return "it is empty"
    if start[8:] == b"{" and path.suffix != ".safetensors":
        return "it is a safetensors file under another name: let its name end in .safetensors"
    if start.startswith(b"PK") and path.suffix == ".safetensors":
        return "it is a file of PyTorch under another name: let its name end in .pt"
    if start.isascii() and start.decode().isprintable():
        return f"it begins with {start.decode()!r}: text, such as a web page, in place of weights"
    # PyTorch's own words tell how to run the code in it.
    return type(error).__name__ if isinstance(error, UnpicklingError) else one_line(error)


def _file_name(folder: ModelFolder, path: Path) -> str:
    """Return the user's name for a file of weights."""
    return folder.name if folder.format is not None else f"{folder.name}/{path.name}"
