"""``recommendation.json``: the measurements of stage 04 on a model, and the blocks that every rule keeps.

Stage 04 writes it, and stage 05 reads the measurements.
"""

import logging
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields
from pathlib import Path

import numpy as np

from utils.core import runs
from utils.core.errors import InputError
from utils.core.files import name_of, read_json, write_json
from utils.data.splits import SPLITS
from utils.pruning.layer_selection import (
    FIRST_BLOCK,
    METRICS,
    RULES,
    Evidence,
    candidates,
    check_evidence,
    missing_evidence,
    shape_of,
)

log = logging.getLogger(__name__)

ANALYSIS_STAGE = "04_analysis"
NAME = "recommendation.json"


def write_recommendation(
    output_dir: Path,
    source: Mapping[str, str],
    n_layers: int,
    evidence: Evidence,
    protected: AbstractSet[int],
    seed: int,
    boundaries: Mapping[str, dict | None],
) -> None:
    """Write the file.

    Parameters
    ----------
    output_dir : Path
    source : mapping of str to str
        Model and data: ``model_dir``, ``model_sha256``, ``data_sha256`` and ``split``.
    n_layers, evidence, protected, seed
        As for `recommendation`.
    boundaries : mapping of str to dict or None
        By metric, the two blocks of the similarity of the layers.
    """
    made = recommendation(n_layers, evidence, protected, seed)
    write_json(output_dir / NAME, {**source, **made, "two_block_boundary": boundaries})


def recommendation(n_layers: int, evidence: Evidence, protected: AbstractSet[int] = FIRST_BLOCK, seed: int = 0) -> dict:
    """Return the blocks that every rule without search keeps at every depth, with the measurements.

    Parameters
    ----------
    n_layers : int
        Number of blocks.
    evidence : Evidence
        The measurements.
    protected : set of int
        Blocks that every list keeps.
    seed : int
        Seed of ``random``.

    Returns
    -------
    dict
        Ready for JSON; a number that is not finite is None. Keys: ``n_layers``, ``protected``, ``seed``;
        ``rules``: for each rule ``needs`` (names in ``evidence``) and ``keep`` (maps the number of removed
        blocks, as a string, to the kept list; to a list of kept lists for ``single`` and ``random``);
        ``not_measured``: for each rule that lacks evidence ``needs`` and ``metrics`` (the --metrics of
        04_analysis.py that measure it); ``evidence``: the measurements.

    Raises
    ------
    InputError
        If evidence is of a model with another number of blocks.
    UsageError
        If a protected block does not exist.
    """
    check_evidence(n_layers, evidence)
    rules: dict[str, dict] = {}
    not_measured: dict[str, dict] = {}
    for name, rule in RULES.items():
        missing = missing_evidence(name, evidence)
        if missing:
            not_measured[name] = {"needs": list(rule.needs), "metrics": [METRICS[need] for need in missing]}
            continue
        keep: dict[str, list] = {}
        for candidate in candidates(name, n_layers, evidence, protected, seed):
            depth, kept = str(candidate.n_removed), list(candidate.keep)
            if rule.several:
                keep.setdefault(depth, []).append(kept)
            else:
                keep[depth] = kept
        rules[name] = {"needs": list(rule.needs), "keep": keep}
    numbers = {field.name: getattr(evidence, field.name) for field in fields(Evidence)}
    return {
        "n_layers": n_layers,
        "protected": sorted(protected),
        "seed": seed,
        "rules": rules,
        "not_measured": not_measured,
        "evidence": {name: _to_json(values) for name, values in numbers.items() if values is not None},
    }


def evidence_from_recommendation(value: object) -> Evidence:
    """Return the evidence in a dict of `recommendation` that was read back from JSON; None becomes NaN.

    Raises
    ------
    InputError
        If the value is malformed: not an object, without ``n_layers`` or ``evidence``, or with evidence
        that is unknown, not numeric or of the wrong shape.
    """
    advice = f"run {ANALYSIS_STAGE}.py again"
    if not isinstance(value, Mapping):
        raise InputError(f"recommendation.json holds {name_of(type(value))}; expected {name_of(dict)}; {advice}")
    n_layers, stored = value.get("n_layers"), value.get("evidence")
    if type(n_layers) is not int or n_layers < 0:
        raise InputError(f"recommendation.json: n_layers is {n_layers!r}, expected a number of blocks; {advice}")
    if not isinstance(stored, Mapping):
        raise InputError(
            f"recommendation.json: evidence holds {name_of(type(stored))}, expected {name_of(dict)}; {advice}"
        )
    numbers: dict[str, np.ndarray] = {}
    for name, values in stored.items():
        if name not in METRICS:
            raise InputError(f"recommendation.json: unknown evidence {name!r}, expected {', '.join(METRICS)}; {advice}")
        try:
            numbers[name] = np.array(_from_json(values), dtype=np.float64)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise InputError(
                f"recommendation.json: evidence {name} is not an array of numbers or null of the shape "
                f"{shape_of(name, n_layers)}; {advice}"
            ) from None
    evidence = Evidence(**numbers)
    check_evidence(n_layers, evidence)
    return evidence


def analysis_input(analysis_dir: Path) -> runs.Input:
    """Check an output folder of stage 04 and describe its ``recommendation.json`` as the input of a stage.

    The other outputs are not checked: the hidden states are large, and a copied folder may lack them.

    Raises
    ------
    InputError
        If the folder is missing, incomplete, of another stage, or its file is missing or damaged.
    """
    record = runs.read_record(analysis_dir)
    if record is None or record["stage"] != ANALYSIS_STAGE or record["status"] != "complete":
        found = f"it is a result of {record['stage']}.py, {record['status']}" if record else "it has no run.json"
        raise InputError(
            f"--analysis_dir {analysis_dir} is not a complete output of {ANALYSIS_STAGE}.py: {found}; give the folder "
            f"that {ANALYSIS_STAGE}.py has written for this model, and run that stage to its end"
        )
    outputs = [output for output in record["outputs"] if output["path"] == NAME]
    if not outputs:
        raise InputError(
            f"--analysis_dir {analysis_dir} has no {NAME}: expected an analysis of one model; "
            f"run {ANALYSIS_STAGE}.py without --compare_to"
        )
    runs.check_outputs(analysis_dir, {**record, "outputs": outputs})
    return runs.file_input(analysis_dir / NAME)


def read_evidence(analysis_dir: Path, model: runs.Input, data: runs.Input, report_split: str) -> Evidence:
    """Read the measurements of stage 04 on a model.

    Parameters
    ----------
    analysis_dir : Path
    model : Input
        The model that must have been measured.
    data : Input
        The clips of the report. Another fold of the same clips must not have been measured; of other data nobody
        knows, so that there is a warning.
    report_split : str
        The split that must not have been measured: the choice would depend on the clips of the report.

    Raises
    ------
    InputError
        If it is of another model, fold or of the wrong split, or malformed.
    """
    path = analysis_dir / NAME
    value = read_json(path, dict, f"run {ANALYSIS_STAGE}.py again")
    evidence = evidence_from_recommendation(value)
    if value.get("model_sha256") != model.sha256:
        raise InputError(
            f"{path} is of another model: its sha256 is {str(value.get('model_sha256'))[:12]}…, that of --model_dir "
            f"{model.path} is {model.sha256[:12]}…; run {ANALYSIS_STAGE}.py on this model"
        )
    split = value.get("split")
    if not isinstance(split, str) or split not in SPLITS or split in ("test", report_split):
        raise InputError(
            f"{path} was measured on the split {split!r}, and --report_split is {report_split!r}: the clips "
            f"of the report must not influence the choice; run {ANALYSIS_STAGE}.py with --split train"
        )
    measured = value.get("data_sha256")
    if not isinstance(measured, str) or measured == data.sha256:  # an early version noted none
        return evidence
    if measured.partition("/")[0] == str(data.sha256).partition("/")[0]:
        raise InputError(
            f"{path} was measured on another fold of {data.path}, whose {split} clips may be in the report; "
            f"run {ANALYSIS_STAGE}.py with the same --fold"
        )
    log.warning(
        "%s was measured on other clips (sha256 %s…) than those of %s: if recordings of the report are among them, the "
        "numbers of the report are too good; to be sure run %s.py on this data",
        *(path, measured[:12], data.path, ANALYSIS_STAGE),
    )
    return evidence


def _to_json(values: np.ndarray) -> list:
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(values), values, None).tolist()


def _from_json(values: object) -> object:
    """Return nested lists of floats; raise TypeError for anything except numbers and None."""
    if isinstance(values, list):
        return [_from_json(value) for value in values]
    if values is None:
        return math.nan
    if isinstance(values, bool) or not isinstance(values, int | float):
        raise TypeError(f"not a number: {values!r}")
    return float(values)
