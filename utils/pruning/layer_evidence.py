"""What the rules of `layer_selection` go by: measured from the hidden states of a model or of a part of it."""

import copy
import json
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, SequenceFeatureExtractor

from utils.core import cli, runs
from utils.core.errors import InputError
from utils.core.files import atomic_path, read_json
from utils.data.clips import SPLITS, Clips
from utils.layers import convexity, hidden_states
from utils.layers.similarity import block_influence, cka, mutual_knn
from utils.models import encoders, memory
from utils.pruning import layer_sweep
from utils.pruning.layer_selection import Evidence, Keep, evidence_from_recommendation

ANALYSIS_STAGE = "04_analysis"
RECOMMENDATION_NAME = "recommendation.json"


def measure_evidence(
    hidden: hidden_states.HiddenStates,
    needs: Collection[str],
    num_neighbors: int,
    num_pairs: int,
    n_classes: int,
    seed: int,
) -> Evidence:
    """Measure what the rules need.

    Parameters
    ----------
    hidden : HiddenStates
        Of all layers of the model.
    needs : collection of str
        Names of fields of `Evidence`; the others stay None.
    num_neighbors : int
        Neighbours of each clip, for ``knn_block_influence`` and ``convexity``.
    num_pairs : int
        Pairs of clips of a class, for ``convexity``.
    n_classes : int
        Number of labels, for ``convexity``.
    seed : int
        Of the draw of those pairs.

    Raises
    ------
    InputError
        If there are too few clips for what is needed.
    """
    label_ids, groups = hidden.table["label_id"].to_numpy(), hidden.table["group"].to_numpy()

    def convexity_of_layers() -> np.ndarray:
        # No rule reads the interval, so one resample is enough.
        found = [
            convexity.graph_convexity(
                layer, label_ids, groups, n_classes, num_neighbors, num_pairs, seed, n_resamples=1
            )
            for layer in hidden.pooled
        ]
        convexity.warn_of_direct_pairs([of_layer.direct_share for of_layer in found])
        return np.array([of_layer.convexity for of_layer in found])

    measures = {
        "block_influence": lambda: block_influence(hidden.cosine.mean(axis=0, dtype=np.float64)),
        "knn_block_influence": lambda: block_influence(mutual_knn(hidden.pooled, k=num_neighbors)),
        "angular_distance": lambda: hidden.angle.mean(axis=0, dtype=np.float64),
        "cka": lambda: cka(hidden.pooled),
        "convexity": convexity_of_layers,
    }
    return Evidence(**{name: measures[name]() for name in needs})


def evidence_of_subset(
    model: PreTrainedModel,
    extractor: SequenceFeatureExtractor,
    clips: Clips,
    keep: Keep,
    needs: Collection[str],
    num_neighbors: int,
    num_pairs: int,
    seed: int,
    batch_size: int,
    device: str,
    folder: Path,
    key: dict,
) -> Evidence:
    """Run clips through the model that keeps some blocks alone, and measure; or take what an earlier call left.

    Can be killed at any moment; see `hidden_states.extract`. The numbers stay in the folder, the hidden
    states do not.

    Parameters
    ----------
    model, extractor, clips, batch_size, device, folder, key
        As for `hidden_states.extract`; the model is left as it is.
    keep : tuple of int
        Blocks to keep, ascending.
    needs, num_neighbors, num_pairs, seed
        As for `measure_evidence`.

    Raises
    ------
    InputError
        If a hidden state is not finite, or there are too few clips for what is needed.
    """
    needs = sorted(needs)
    name = f"{'+'.join(needs)}-{cli.format_layer_list(keep)}"
    path = folder / f"{name}.npz"
    numbers = _read(path, key, needs)
    if numbers is None:
        if len(keep) < model.config.num_hidden_layers:
            model = copy.deepcopy(model)
            encoders.prune_model(model, list(keep))
        whole = [range(model.config.num_hidden_layers)]
        hidden = memory.advised(
            lambda: hidden_states.extract(model, extractor, clips, batch_size, device, folder, name, key),
            lambda: layer_sweep.memory_need(model, extractor, clips, whole, batch_size, device),
            lambda: memory.used_bytes(device),
        )
        evidence = measure_evidence(hidden, needs, num_neighbors, num_pairs, len(clips.labels), seed)
        numbers = {need: getattr(evidence, need) for need in needs}
        with atomic_path(path) as partial:
            np.savez(partial, key=json.dumps(key), **numbers)
        for file_name in hidden_states.file_names(name):
            (folder / file_name).unlink(missing_ok=True)
    return Evidence(**numbers)


def _read(path: Path, key: dict, needs: list[str]) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {need: file[need] for need in needs} if file["key"] == json.dumps(key) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def analysis_input(analysis_dir: Path) -> runs.Input:
    """Check an output folder of stage 04 and describe its ``recommendation.json`` as the input of a stage.

    The other outputs are not looked at: the hidden states among them are large, and not everywhere.

    Raises
    ------
    InputError
        If the folder is missing, incomplete, of another stage, or its file is missing or damaged.
    """
    record = runs.read_record(analysis_dir)
    if record is None or record["stage"] != ANALYSIS_STAGE or record["status"] != "complete":
        found = f"it is of {record['stage']}.py, {record['status']}" if record else "it has no run.json"
        raise InputError(
            f"--analysis_dir {analysis_dir} is no complete output of {ANALYSIS_STAGE}.py: {found}; run that first"
        )
    outputs = [output for output in record["outputs"] if output["path"] == RECOMMENDATION_NAME]
    if not outputs:
        raise InputError(
            f"--analysis_dir {analysis_dir} has no {RECOMMENDATION_NAME}: expected an analysis of one model; "
            f"run {ANALYSIS_STAGE}.py without --compare_to"
        )
    runs.check_outputs(analysis_dir, {**record, "outputs": outputs})
    return runs.file_input(analysis_dir / RECOMMENDATION_NAME)


def read_evidence(analysis_dir: Path, model: runs.Input, report_split: str) -> Evidence:
    """Read what stage 04 measured of a model.

    Parameters
    ----------
    analysis_dir : Path
    model : Input
        The model that it must be of.
    report_split : str
        The split that it must not be of: what is measured there would choose by the clips of the report.

    Raises
    ------
    InputError
        If it is of another model or of the wrong split, or is malformed.
    """
    path = analysis_dir / RECOMMENDATION_NAME
    value = read_json(path, dict, f"run {ANALYSIS_STAGE}.py again")
    evidence = evidence_from_recommendation(value)
    if value.get("model_sha256") != model.sha256:
        raise InputError(
            f"{path} is of another model: of sha256 {str(value.get('model_sha256'))[:12]}…, --model_dir {model.path} "
            f"has {model.sha256[:12]}…; run {ANALYSIS_STAGE}.py on this model"
        )
    split = value.get("split")
    if not isinstance(split, str) or split not in SPLITS or split == report_split:
        raise InputError(
            f"{path} was measured on the split {split!r}, and --report_split is {report_split!r}: what chooses must "
            f"not see the clips of the report; run {ANALYSIS_STAGE}.py with --split train"
        )
    return evidence
