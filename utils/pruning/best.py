"""``best.json``: the subsets of a model's blocks that a sweep chose. 05 writes it; 07 and the studies read it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import lazy, names, runs
from utils.core.errors import InputError, UsageError
from utils.core.files import name_of, read_json, write_json
from utils.core.text import some
from utils.pruning import pruning_plan, width

with lazy.imported_on_first_use():
    from utils.models import encoders, training_history

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)

NAME = "best.json"
SCHEMA_VERSION = 1
# The flags that draw the clips of train.
DRAWN_BY = ("max_clips_per_class", "seed")
NEEDED = {"schema_version": int, "model_sha256": str, "model_dir": str, "by_depth": dict}


def write_best(output_dir: Path, swept: dict, chosen: dict) -> dict:
    """Write the file and return its content.

    Parameters
    ----------
    output_dir : Path
    swept : dict
        The model, the data and the options of the sweep.
    chosen : dict
        From `pruning_table.Choices.scored`.
    """
    content = {"schema_version": SCHEMA_VERSION, **swept, **chosen}
    write_json(output_dir / NAME, content)
    return content


def read_best(path: Path, redo: str) -> dict:
    """Read the file.

    Parameters
    ----------
    path : Path
    redo : str
        What the user can do if the file is missing or malformed; the end of the error message.

    Raises
    ------
    InputError
        If it cannot be read, or breaks its schema.
    """
    best = read_json(path, object, redo)
    if not isinstance(best, dict) or any(not isinstance(best.get(key), kind) for key, kind in NEEDED.items()):
        found = (some([repr(key) for key in best], 4) or "nothing") if isinstance(best, dict) else name_of(type(best))
        raise InputError(f"{path} is not a {NAME}: it holds {found}; expected {', '.join(NEEDED)}; {redo}")
    if best["schema_version"] != SCHEMA_VERSION:
        raise InputError(f"{path} has schema_version {best['schema_version']}, expected {SCHEMA_VERSION}; {redo} again")
    return best


def layers_to_keep(path: Path, model: runs.Input, config: PreTrainedConfig, n_layers: int | None) -> list[int]:
    """Return the layers that a sweep chose to keep.

    Parameters
    ----------
    path : Path
        ``best.json`` of 05_pruning.py.
    model : runs.Input
        The model to prune, which must be the one that was swept.
    config : PreTrainedConfig
        Its config.
    n_layers : int or None
        Number of layers to keep; None uses the best model within the sweep's budget, or, if the sweep had no budget,
        the smallest subset within its margin.

    Raises
    ------
    InputError
        If the file cannot be read, breaks its schema, or is of another model.
    UsageError
        If the sweep holds no subset of that depth.
    """
    redo = _redo(model)
    best = read_best(path, redo)
    if best["model_sha256"] != model.sha256:
        raise InputError(
            f"{path} is of another model: {best['model_dir']} (sha256 {best['model_sha256'][:12]}…), swept on "
            f"{_describe_data(best)}; --model_dir {model.path} has {model.sha256[:12]}… and was trained on "
            f"{_describe_data(vars(config))}; {redo}"
        )
    _warn_of_choice(path, best, config)
    subset = _chosen(path, best, n_layers)
    keep = subset.get("keep") if isinstance(subset, dict) else None
    if not isinstance(keep, list) or any(type(layer) is not int for layer in keep):
        raise InputError(f"{path}: expected a list of layers under 'keep', got {keep!r}; {redo} again")
    if n_layers is not None and len(keep) != n_layers:
        raise InputError(f"{path}: the subset of {n_layers} layers keeps {len(keep)}: {keep}; {redo} again")
    try:
        encoders.check_keep(config, keep)
    except UsageError as error:
        raise InputError(f"{path}: {error}; {redo} again") from error
    return keep


def _chosen(path: Path, best: dict, n_layers: int | None) -> object:
    depths = f"it has subsets of {', '.join(sorted(best['by_depth'], key=lambda depth: (len(depth), depth)))} layers"
    if n_layers is not None:
        subset = best["by_depth"].get(str(n_layers))
        if subset is None:
            raise UsageError(f"--n_layers {n_layers}: {path} has no subset of that depth; {depths}")
        return subset
    is_budget = "within_budget" in best
    subset = best["within_budget"] if is_budget else best.get("smallest_within_margin")
    if subset is None:
        of_sweep = "no model is within the budget" if is_budget else "no subset is within the margin"
        raise UsageError(f"{path}: {of_sweep} of the sweep; choose one by --n_layers: {depths}")
    return subset


def flags_of(path: Path, model: runs.Input, n_layers: int | None, given: dict) -> dict:
    """Return the flags of 07 with which it makes the model that `layers_to_keep` chooses as the sweep scored it.

    Parameters
    ----------
    path : Path
    model : runs.Input
    n_layers : int or None
        As for `layers_to_keep`.
    given : dict
        The flags that the user gave, by name; the others are missing or None.

    Returns
    -------
    dict
        What the sweep noted of ``ffn_size, importance, repair, repair_clips, max_clips_per_class, seed``, but for what
        is given. The last two draw the clips of train. Empty if the subset needs no clips.

    Raises
    ------
    InputError
        If the file cannot be read or breaks its schema.
    UsageError
        If the sweep holds no such subset.
    """
    best = read_best(path, _redo(model))
    subset, given = _chosen(path, best, n_layers), {name: value for name, value in given.items() if value is not None}
    found = {}
    if n_layers is None and isinstance(subset, dict) and "importance" in subset and "ffn_size" not in given:
        found |= _width(path, subset, model)
    method, repair = _repair(path, best)
    if given.get("repair", method) == method == pruning_plan.LINEAR:
        found |= repair
    differing = {name: value for name, value in found.items() if given.get(name, value) != value}
    if differing:
        sweep_had = (f"no --{name}" if value is None else f"--{name} {value}" for name, value in differing.items())
        log.warning(
            "%s: the sweep had %s, so this is not the model that it scored; to repeat it leave the flags out",
            *(path, ", ".join(sweep_had)),
        )
    return found | {name: value for name, value in given.items() if name in found}


def _width(path: Path, chosen: dict, model: runs.Input) -> dict:
    found = {name: chosen[name] for name in ("ffn_size", "importance", *DRAWN_BY) if name in chosen}
    counts = [value for name, value in found.items() if name != "importance" and value is not None]
    is_read = found["importance"] in width.IMPORTANCES and found.get("ffn_size")
    if not is_read or not all(type(n) is int for n in counts):
        raise InputError(
            f"{path}: the width of the model within the budget cannot be read: {found}; {_redo(model)} again"
        )
    return found


def check_data(path: Path, data: runs.Input) -> None:
    """Check that clips are those of the sweep, so that they give the same units and the same repair.

    Raises
    ------
    InputError
        If they are not.
    """
    best = read_best(path, "run 05_pruning.py")
    if best.get("data_sha256") != data.sha256:
        raise InputError(
            f"{path} is of a sweep on {_describe_data(best)}; --data_dir {data.path} ({_describe_digest(data.sha256)}) "
            "has other clips, which would give another model: give the data, and the --fold, of the sweep"
        )


def chosen_on(path: Path) -> str | None:
    """Return the split and the data that chose the layers, as ``val of <digest>``; None where it is not noted."""
    best = read_best(path, "")
    split, data = best.get("search_split"), best.get("data_sha256")
    return training_history.chosen_on(split, data) if isinstance(split, str) and isinstance(data, str) else None


def _redo(model: runs.Input) -> str:
    usual = Path("validation_results", names.variant_of(names.of_model(model.path), names.SWEEP), NAME)
    return f"expected the result of 05_pruning.py for this model, by default {usual}; run it on this model"


def _repair(path: Path, best: dict) -> tuple[str, dict]:
    """Return how a sweep repaired its subsets, and the flags for it; an early file notes no repair, or no seed."""
    found = best.get("repair")
    if found is None:
        return pruning_plan.NO_REPAIR, {}
    found = found if isinstance(found, dict) else {}
    method, n_clips, drawn = found.get("method"), found.get("n_clips"), {k: found[k] for k in DRAWN_BY if k in found}
    is_read = method in pruning_plan.REPAIRS and type(n_clips) is int and n_clips > 0
    if not is_read or not all(value is None or type(value) is int for value in drawn.values()):
        raise InputError(f"{path}: expected a repair of {', '.join(pruning_plan.REPAIRS)}, got {best['repair']!r}")
    return method, {"repair": method, "repair_clips": n_clips, **drawn}


def _describe_data(source: dict) -> str:
    """Return clip length and data set that a ``best.json`` or a model's config records, in words."""
    folder, seconds, digest = (source.get(name) for name in ("data_dir", "clip_seconds", "data_sha256"))
    clips = f"clips of {seconds:g} s" if isinstance(seconds, int | float) else "clips of unknown length"
    data = _describe_digest(digest) if isinstance(digest, str) else "an unknown data set"
    return f"{clips} of {folder} ({data})" if isinstance(folder, str) else f"{clips} ({data})"


def _describe_digest(digest: str) -> str:
    """Return the digest of a data set in short, with the fold that `clips.data_input` adds to it."""
    data, _, fold = digest.partition("/")
    return f"sha256 {data[:12]}…" + (f", {fold.replace('-', ' ')}" if fold else "")


def _warn_of_choice(path: Path, best: dict, config: PreTrainedConfig) -> None:
    """Warn if layers were chosen on clips that the model was trained on, or that will score it."""
    trained_on, swept_on = getattr(config, "data_sha256", None), best.get("data_sha256")
    if None not in (trained_on, swept_on) and trained_on != swept_on:
        log.warning(
            "%s chose layers on %s, but the model was trained on %s: clips that it was trained on may be among them; "
            "run 05_pruning.py with the --data_dir that the model was trained on",
            *(path, _describe_data(best), _describe_data(vars(config))),
        )
    split = best.get("search_split")
    if split == "test":
        log.warning("%s chose layers on the split test: scores of the pruned model on test are too high", path)
    elif split == "train":
        log.warning("%s chose layers on the split train, where the model was trained: they may not be the best", path)
