"""Find a model, check its files, and compute its digest. This module loads neither PyTorch nor weights.

A model is a folder, a checkpoint of another program (see `format_of`), or for the stages that only score clips an
exported file (see `exported`). A model can come from anybody. Nothing in it is run: a folder whose files name
code is refused. `loading` reads the weights.
"""

import json
import logging
import math
import re
import shlex
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from types import ModuleType

from utils.core import names, runs
from utils.core.errors import InputError, UsageError
from utils.core.files import sha256_of_file, sha256_of_lines
from utils.core.text import printable, short, some
from utils.data import channels
from utils.models import architectures, beats_checkpoint, decision, torchaudio_checkpoint, training_history

log = logging.getLogger(__name__)

TINY = "tiny"
MODEL_STAGES = ("02_finetuning", "05_pruning", "06_cnn", "07_manual_pruning")
CONFIG_NAME = "config.json"
# transformers 5 keeps the feature extractor of a processor in the second file, and prefers it to the first.
EXTRACTOR_NAMES = ("preprocessor_config.json", "processor_config.json")
INDEX_SUFFIX = ".index.json"
# In the order in which transformers searches for them.
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin")
ADAPTER_NAME = "adapter_config.json"
FORMATS = (torchaudio_checkpoint, beats_checkpoint)  # of checkpoints
EXPORTED_SUFFIX = ".onnx"
TAKERS = "03_model_validation.py and 08_detection.py"  # of exported files

CODE_KEYS = ("auto_map", "custom_pipelines")
LARGEST_DEPTH = 1000
MOST_LABELS = 1_000_000
ADVICE = "repair the file, or copy the whole model folder again"
WANTED = (
    "expected a run folder of 02_finetuning.py or 06_cnn.py, or the folder of a model for transformers with its "
    "config.json"
)


@dataclass(frozen=True)
class ModelFolder:
    """A folder, or a checkpoint of another program, that `open_folder` has checked.

    Attributes
    ----------
    name : str
        The user's name for it: a folder, a file, or a name on the hub.
    path : Path
        The folder that holds ``config.json``, or the checkpoint.
    config : dict
        Content of ``config.json``; of a checkpoint, what it would be, or only its ``model_type`` if the file with the
        weights has the rest.
    weights : tuple of Path
        The files that hold the weights.
    extractor : dict, optional
        Settings of the feature extractor. Default: a file of the folder has them.
    """

    name: str
    path: Path
    config: dict
    weights: tuple[Path, ...]
    extractor: dict | None = None

    @property
    def format(self) -> ModuleType | None:
        """The room that translates it if it is a checkpoint, one file with other names for the weights; or None."""
        return format_of(self.path) if is_checkpoint(self.path) else None

    @property
    def config_name(self) -> str:
        """The user's name for the file with the config."""
        if self.format is None:
            return f"{self.name}/{CONFIG_NAME}"
        return str(self.format.config_path(self.path) or f"the config in {self.name}")


# ------------------------------------------------------------------------------------------- finding


def is_exported(model: str | Path) -> bool:
    """Return whether a model is an exported file, and not a folder."""
    return Path(model).suffix == EXPORTED_SUFFIX and Path(model).is_file()


def is_checkpoint(model: str | Path) -> bool:
    """Return whether a model is a checkpoint of another program, and not a folder."""
    path = Path(model)
    is_of_folder = path.suffix in WEIGHT_SUFFIXES and path.name.startswith("model")
    return path.suffix in names.CHECKPOINT_SUFFIXES and path.is_file() and not is_of_folder


def format_of(checkpoint: Path) -> ModuleType:
    """Return the room that translates a checkpoint: the first whose config is beside it, or that expects none there."""
    beside = ((form, form.config_path(checkpoint)) for form in FORMATS)
    return next(form for form, config in beside if config is None or config.is_file())


def resolve_model_dir(model_dir: Path) -> Path:
    """Return the folder that holds ``config.json``: `model_dir`, or ``model`` in a run folder."""
    model_dir = Path(model_dir)
    inner = model_dir / "model"
    return inner if (inner / CONFIG_NAME).is_file() and not (model_dir / CONFIG_NAME).is_file() else model_dir


def find(model: str | Path) -> tuple[str, Path]:
    """Return the name and the place of a model; a model on the hub is downloaded if it is not in the cache.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder, checkpoint, or name on the hub.

    Raises
    ------
    InputError
        If there is none.
    """
    text = str(model)
    if Path(text).is_dir():
        path = resolve_model_dir(Path(text))
        return str(path), path
    if is_exported(text):
        raise InputError(
            f"{text} is an exported file, which only {TAKERS} take; give the model folder that it was made from"
        )
    if is_checkpoint(text):
        return text, Path(text)
    if Path(text).is_file():
        raise InputError(f"{text} is a file; expected its model folder: {Path(text).parent}")
    # Without this check, the hub would be asked several times for a text that can only be a path.
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
            f"{name} cannot be loaded: there is no such folder, and neither the hub nor its cache has such a model "
            f"({one_line(error)}); check the name, or download the model where there is internet"
        ) from error
    return folder


# ------------------------------------------------------------------------------------------ checking


def open_folder(name: str, path: Path) -> ModelFolder:
    """Read the files of a model folder, or of a checkpoint, except its weights, and check them.

    Parameters
    ----------
    name, path
        Results of `find`.

    Raises
    ------
    InputError
        If a file is missing or breaks its contract, names code or weights in other places, or describes a model that
        does not fit the weights.
    """
    if is_checkpoint(path):
        return _open_checkpoint(name, path)
    if not (path / CONFIG_NAME).is_file():
        if files := sorted(path.glob(f"*{EXPORTED_SUFFIX}")):
            raise InputError(f"{name} is a folder of exported files; {TAKERS} take one of them, such as {files[0]}")
        raise InputError(f"{name} has no {CONFIG_NAME}, so it is not a whole model folder; {WANTED}")
    config = _read_json(name, path / CONFIG_NAME)
    if config.get("model_type") is None:
        found = some([repr(key) for key in config], 3) or "nothing"
        raise InputError(
            f"{name}/{CONFIG_NAME} holds {found} and no 'model_type', so it does not describe a model; {WANTED}"
        )
    found, usual = [extractor for extractor in EXTRACTOR_NAMES if (path / extractor).is_file()], None
    if not found:
        usual = _usual_extractor(name, path, config)
    if (path / ADAPTER_NAME).exists():
        raise InputError(
            f"{name} holds an adapter ({ADAPTER_NAME}), which no stage reads: merge it into the model with peft's "
            "merge_and_unload, save that, and delete the adapter"
        )
    for read in (CONFIG_NAME, *found):
        _refuse_code(f"{name}/{read}", _read_json(name, path / read))
    check_fields(f"{name}/{CONFIG_NAME}", config)
    return ModelFolder(name, path, config, _weight_files(name, path), usual)


def _open_checkpoint(name: str, path: Path) -> ModelFolder:
    form, config = format_of(path), {"model_type": format_of(path).MODEL_TYPE}
    beside = form.config_path(path)
    if beside is not None:
        config = form.config_of(str(beside), _read_json(str(beside.parent), beside))
        check_fields(str(beside), config)
    return ModelFolder(name, path, config, (path,), form.EXTRACTOR)


def _usual_extractor(name: str, path: Path, config: dict) -> dict:
    """Return the usual settings of a feature extractor, for a folder without the file; others' models often lack it.

    Raises
    ------
    InputError
        If the model was trained here, with settings that must not be guessed, or if there are no usual settings.
    """
    known = architectures.ARCHITECTURES.get(str(config.get("model_type")))
    lacks = f"{name} has no {EXTRACTOR_NAMES[0]}, "
    if "clip_seconds" in config or known is None or known.extractor_class(config["model_type"]) is None:
        raise InputError(f"{lacks}so it is not a whole model folder; {ADVICE}")
    if not known.has_usual_extractor:
        raise InputError(f"{lacks}which describes how sound becomes its input. {extractor_advice(name, path, config)}")
    return known.extractor_settings(config)


def extractor_advice(name: str, path: Path, config: dict) -> str:
    """Describe how to create the file with the settings of a feature extractor."""
    known = architectures.ARCHITECTURES[config["model_type"]]
    settings = ", ".join(f"{key}={value!r}" for key, value in known.extractor_settings(config).items())
    extractor = known.extractor_class(config["model_type"])
    is_local = Path(name).is_dir()
    folder = str(path.resolve() if is_local else Path(name.rpartition("/")[2]))
    code = f"from transformers import {extractor} as F; F({settings}).save_pretrained({folder!r})"
    return (
        ("" if is_local else f"Download it into a folder of your own: hf download {name} --local-dir {folder}. ")
        + "Copy the file from the model that this one was made from, or create it with the settings of its training, "
        "which its model card names (do_normalize, sampling rate, bands, mean and deviation), as python -c "
        + shlex.quote(code)
        + ("" if is_local else f"; then give the folder {folder}")
    )


def _read_json(name: str, path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # not JSON or not UTF-8, or thousands of lists in lists
        raise InputError(f"{name}/{path.name} cannot be read as JSON ({one_line(error)}); {ADVICE}") from error
    if not isinstance(value, dict):
        raise InputError(f"{name}/{path.name} holds {short(value)}; expected an object with keys; {ADVICE}")
    return value


def _refuse_code(where: str, content: dict) -> None:
    """Refuse keys, at any depth, with which transformers would run code that came with the model or from the hub."""
    values: list[object] = [content]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        for key, item in value.items() if isinstance(value, dict) else ():
            if (key in CODE_KEYS and item) or (key.endswith("_implementation") and "/" in str(item)):
                raise InputError(
                    f"{where}: the key {key!r} names its own code ({short(item)}), and no stage runs code that "
                    "comes with a model. If transformers supports the architecture without it, delete the key; "
                    "otherwise choose another model"
                )


def is_count(value: object) -> bool:
    """Return whether a value of a JSON file is a whole number of at least 0."""
    return type(value) is int and value >= 0


def _is_positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_not_negative(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _ascends(value: object) -> bool:
    return isinstance(value, list) and all(map(is_count, value)) and sorted(set(value)) == value


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_count, value.values()))


# The values in config.json that our stages read, and those by which transformers allocates memory. None counts as
# absent.
FIELDS = {
    "model_type": (lambda value: isinstance(value, str), "a name"),
    "kept_layers": (_ascends, "numbers of layers, ascending"),
    "clip_seconds": (_is_positive, "a number of seconds above 0"),
    "clip_least_seconds": (_is_not_negative, "a number of seconds"),
    "clip_least_rest_seconds": (_is_not_negative, "a number of seconds"),
    "clip_remainder": (lambda value: value in ("pad", "drop"), "pad or drop"),
    "clip_channel": (lambda value: isinstance(value, str) and channels.is_channel(value), channels.EXPECTED),
    "clip_fill": (lambda value: value == "repeat", "repeat"),
    "clip_samples": (lambda value: is_count(value) and value > 0, "a number of samples above 0"),
    "data_sha256": (lambda value: isinstance(value, str), "a text"),
    "trained_on": (
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "a list of texts",
    ),
    "layers_chosen_on": (lambda value: isinstance(value, str), "a text"),
    "pruned_from": (lambda value: isinstance(value, str), "a text"),
    "pruned_after_fine_tuning": (lambda value: isinstance(value, bool), "true or false"),
    "width_from": (_are_counts, "an object of numbers"),
    "num_labels": (lambda value: is_count(value) and value <= MOST_LABELS, f"a number from 0 to {MOST_LABELS}"),
    "id2label": (lambda value: isinstance(value, dict), "an object of labels by id"),
    "label2id": (lambda value: isinstance(value, dict), "an object of ids by label"),
    decision.FIELD: (lambda value: isinstance(value, dict), "an object"),
    # With these keys, transformers would read other files than those that are checked and digested here.
    "transformers_weights": (lambda value: False, "the weights in model.safetensors and no such key"),
    "configuration_files": (lambda value: False, "the configuration in config.json and no such key"),
}


def check_fields(where: str, config: dict) -> None:
    """Check the values of a ``config.json`` that stages read; raise `InputError` for one that cannot be right."""
    for key, (holds, expected) in FIELDS.items():
        value = config.get(key)
        if value is not None and not holds(value):
            raise InputError(f"{where}: {key} is {short(value)}; expected {expected}; {ADVICE}")
    for key, value in config.items():
        if key.endswith("layers") and type(value) in (int, float) and not 0 <= value <= LARGEST_DEPTH:
            raise InputError(f"{where}: {key} is {short(value)}; expected 0 to {LARGEST_DEPTH}; {ADVICE}")


def _weight_files(name: str, path: Path) -> tuple[Path, ...]:
    """Return the files from which transformers reads the weights."""
    found = [weights for weights in WEIGHT_NAMES if (path / weights).is_file()]
    if not found:
        raise InputError(f"{name} has no weights (model.safetensors or pytorch_model.bin); {ADVICE}")
    if not found[0].endswith(INDEX_SUFFIX):
        return (path / found[0],)
    index = _read_json(name, path / found[0])
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()) or not shards:
        raise InputError(f"{name}/{found[0]}: weight_map is {short(shards)}; expected file names by weight; {ADVICE}")
    suffix = Path(found[0].removesuffix(INDEX_SUFFIX)).suffix
    for shard in sorted(set(shards.values())):
        # By name only: the files of the hub's cache are links to its store of contents.
        if PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts or not shard.endswith(suffix):
            raise InputError(
                f"{name}/{found[0]} names the weights {short(shard)}; expected *{suffix} files in the same folder: "
                "weights from elsewhere would not belong to this model; copy the whole model folder again"
            )
        if not (path / shard).is_file():
            raise InputError(f"{name}/{shard} is missing, but {found[0]} names it; {ADVICE}")
    return tuple(path / shard for shard in sorted(set(shards.values())))


def check_labels(folder: ModelFolder) -> None:
    """Check the labels of a fine-tuned model: consecutive ids from 0, without contradictions.

    Raises
    ------
    InputError
        If the labels are not clear.
    """
    where = f"{folder.name}/{CONFIG_NAME}"
    named = folder.config.get("id2label")
    if named is None:
        return
    if set(named) != {str(i) for i in range(len(named))}:
        raise InputError(
            f"{where}: id2label has the ids {short(list(named))}; expected 0 to {len(named) - 1}; {ADVICE}"
        )
    labels = [named[str(i)] for i in range(len(named))]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise InputError(f"{where}: id2label names {short(labels)}; expected texts that all differ; {ADVICE}")
    n_labels = folder.config.get("num_labels")
    if n_labels not in (None, len(labels)):
        raise InputError(f"{where}: num_labels is {n_labels}, id2label has {len(labels)} labels; {ADVICE}")
    ids = folder.config.get("label2id") or {}
    for i, label in enumerate(labels):
        if ids.get(label, i) != i:
            raise InputError(
                f"{where}: id2label has {short(label)} as label {i}, label2id as {short(ids[label])}; {ADVICE}"
            )


def digest(folder: ModelFolder) -> str:
    """Return the SHA-256 of all that is loaded from a folder, independent of the name of the folder.

    It includes files that transformers might also read: all JSON files and all weights at the top of the folder. It
    leaves out the decision in ``config.json``: with thresholds, a model is still the same model. Of a checkpoint, it
    includes the weights and the config beside them, whatever their names.
    """
    if folder.format is not None:
        files = {"weights": folder.path, "config": folder.format.config_path(folder.path)}
        return sha256_of_lines(f"{sha256_of_file(path)}  {kind}" for kind, path in files.items() if path is not None)
    beside = [path for path in folder.path.iterdir() if path.suffix in {*WEIGHT_SUFFIXES, ".json"} and path.is_file()]
    files = {path.relative_to(folder.path).as_posix(): path for path in (*beside, *folder.weights)}
    digests = {name: sha256_of_file(path) for name, path in files.items() if name != CONFIG_NAME}
    if CONFIG_NAME in files:
        content = decision.without((folder.path / CONFIG_NAME).read_bytes().decode())
        digests[CONFIG_NAME] = sha256(content.encode()).hexdigest()
    return sha256_of_lines(f"{digests[name]}  {name}" for name in sorted(digests))


# ------------------------------------------------------------------------------------ as the input of a stage


def is_tiny(model: str | Path) -> bool:
    """Return whether a model is the small built-in one.

    Raises
    ------
    UsageError
        If the user could also mean a model folder of the same name.
    """
    if str(model) != TINY:
        return False
    if (resolve_model_dir(Path(TINY)) / CONFIG_NAME).is_file():
        raise UsageError(
            f"{TINY!r} is a built-in model, but there is a model folder of this name here: write ./{TINY} for "
            "the folder, or rename it to use the built-in model"
        )
    return True


def any_model_input(model: str | Path, flag: str = "--model_dir") -> runs.Input:
    """Describe a model of any kind as the input of a stage, by its content and not by its place.

    Parameters
    ----------
    model : str or Path
        As for `encoders.load_any_model`.
    flag : str
        The user's flag for the model, for messages.

    Raises
    ------
    InputError
        If there is none, its run is not complete, its folder has a fault, or no stage supports its architecture.
    """
    if is_tiny(model):
        return runs.Input(TINY, sha256_of_lines([TINY]), is_local=False)
    try:
        folder = open_folder(*find(model))
        try:
            architectures.check_known(folder.config["model_type"])
        except InputError as error:
            raise InputError(f"{folder.name}: {error} (model_type in config.json); choose one of these") from error
    except InputError as error:
        raise InputError(f"{flag} {error}") from error
    if Path(model).is_dir():
        _check_run_of(Path(model))
    return runs.Input(str(model), digest(folder))


def model_input(model_dir: Path) -> runs.Input:
    """Check a fine-tuned model and describe it as the input of a stage.

    Accepts a run folder, the ``model`` folder in it, or any Hugging Face model folder.

    Raises
    ------
    InputError
        If there is none, or its run is not complete, or a file of it is missing or damaged.
    """
    if not Path(model_dir).is_dir() and not is_exported(model_dir):
        if is_checkpoint(model_dir):
            raise InputError(
                f"--model_dir {model_dir} is a checkpoint without a classification head; fine-tune it first: "
                f"02_finetuning.py --base_model {model_dir}"
            )
        if Path(model_dir).is_file():
            raise InputError(f"--model_dir {model_dir} is a file; the name of an exported model ends in .onnx")
        is_of_export = Path(model_dir).suffix == EXPORTED_SUFFIX
        what, maker = ("file", "07_manual_pruning.py --export") if is_of_export else ("folder", "02_finetuning.py")
        raise InputError(f"--model_dir {model_dir}: no such {what}; expected the output of {maker}")
    return any_model_input(model_dir)


def scored_input(model_dir: Path) -> runs.Input:
    """Do the same as `model_input`; accept an exported file, too.

    Raises
    ------
    InputError
        As `model_input`.
    """
    if not is_exported(model_dir):
        return model_input(model_dir)
    _check_run_of(Path(model_dir).resolve().parent)  # of the file itself, if the path is a link
    return runs.Input(str(model_dir), sha256_of_file(model_dir))


def _check_run_of(model_dir: Path) -> None:
    """Check that the run that made a model is whole; its folder is one or two levels up, as for ``06-blocks/model``."""
    for folder in (model_dir, *model_dir.resolve().parents[:2]):
        record = runs.read_record(folder)
        if record is not None and record["stage"] in MODEL_STAGES:
            runs.folder_input(folder, MODEL_STAGES)


def one_line(error: Exception, most: int = 200) -> str:
    """Return the type and the message of an error on one line, without codes that control a terminal."""
    words = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()  # PyTorch's messages have colours
    text = printable(" ".join(words)) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= most else text[: most - 1] + '…'}"
