"""Measure the evidence for the rules of `layer_selection` from hidden states of a model or of some of its blocks."""

import json
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from utils.core import cli
from utils.core.files import atomic_path
from utils.data.clips import Clips
from utils.layers import analysis, hidden_states, linear_maps, similarity
from utils.models import encoders, memory
from utils.models.loaded_model import LoadedModel
from utils.pruning import layer_sweep
from utils.pruning.layer_selection import Evidence, Keep

LINEAR = "linear_residual"


def measure_evidence(
    hidden: hidden_states.HiddenStates,
    needs: Collection[str],
    num_neighbors: int,
    num_pairs: int,
    n_classes: int,
    seed: int,
) -> Evidence:
    """Measure the evidence that the rules need.

    Parameters
    ----------
    hidden : HiddenStates
        Hidden states of all layers of the model.
    needs : collection of str
        Names of fields of `Evidence` but `LINEAR`, which needs single frames; the others stay None.
    num_neighbors : int
        Neighbours of each clip, for ``knn_block_influence`` and ``convexity``.
    num_pairs : int
        Pairs of clips of a class, for ``convexity``.
    n_classes : int
        Number of labels, for ``convexity``.
    seed : int
        Seed of the draw of these pairs.

    Raises
    ------
    InputError
        If there are too few clips for the evidence.
    """

    def convexity_of_layers() -> np.ndarray:
        # No rule reads the interval or the null level, so one resample is enough, and no permutation.
        found = analysis.convexity_of_layers(hidden, n_classes, num_neighbors, num_pairs, seed, n_permutations=0)
        return np.array([of_layer.convexity for of_layer in found])

    measures = {
        "block_influence": lambda: similarity.block_influence(analysis.mean_over_clips(hidden.cosine)),
        "knn_block_influence": lambda: similarity.block_influence(
            similarity.mutual_knn(hidden.pooled, k=num_neighbors)
        ),
        "angular_distance": lambda: analysis.mean_over_clips(hidden.angle),
        "cka": lambda: similarity.cka(hidden.pooled),
        "convexity": convexity_of_layers,
    }
    return Evidence(**{name: measures[name]() for name in needs})


def evidence_of_subset(
    loaded: LoadedModel,
    clips: Clips,
    keep: Keep,
    needs: Collection[str],
    num_neighbors: int,
    num_pairs: int,
    seed: int,
    batch_size: int,
    folder: Path,
    key: dict,
) -> Evidence:
    """Measure the evidence of the model that keeps only some blocks, or read the results of an earlier call.

    A call can be killed at any moment; see `hidden_states.extract`. The results stay in the folder; the
    hidden states are deleted.

    Parameters
    ----------
    loaded, clips, batch_size, folder, key
        As for `hidden_states.extract`; the model is not changed.
    keep : tuple of int
        Blocks to keep, ascending.
    needs, num_neighbors, num_pairs, seed
        As for `measure_evidence`.

    Raises
    ------
    InputError
        If a hidden state is not finite, or there are too few clips for the evidence.
    """
    needs = sorted(needs)
    name = f"{'+'.join(needs)}-{cli.format_layer_list(keep)}"
    path = folder / f"{name}.npz"
    numbers = _read(path, key, needs)
    if numbers is None:
        if len(keep) < loaded.config.num_hidden_layers:
            loaded = encoders.pruned_copy(loaded, keep)
        whole = [range(len(keep))]
        of_hidden = [need for need in needs if need != LINEAR]

        def measure() -> dict[str, np.ndarray]:
            measured = {}
            if LINEAR in needs:
                measured[LINEAR] = linear_maps.linear_residual(loaded, clips, batch_size, seed).residual
            if of_hidden:
                hidden = hidden_states.extract(loaded, clips, batch_size, folder, name, key)
                evidence = measure_evidence(hidden, of_hidden, num_neighbors, num_pairs, len(clips.labels), seed)
                measured |= {need: getattr(evidence, need) for need in of_hidden}
            return measured

        numbers = memory.advised(
            measure,
            lambda: layer_sweep.memory_need(loaded, clips, whole, batch_size),
            lambda: memory.used_bytes(loaded.device),
        )
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
