"""Count how often the test clips of a data set were scored or analysed, from the results beside this one."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from utils.core import names, runs
from utils.core.errors import InputError
from utils.core.text import counted

log = logging.getLogger(__name__)

WITH_TEST = {"test", "all"}  # values of --split and --report_split


def count_looks(output_dir: Path, data: runs.Input, split: str) -> dict[str, int]:
    """Count and log earlier results on the same test clips, beside this result.

    They are those in the same ``validation_results`` and ``analysis_results``, or in another folder of results, and
    those that ``--overwrite`` has replaced there, also in this folder. A result that was deleted is not counted.

    Each look helps to choose the model that fits these clips best. So the score of the best of many is too high.

    Parameters
    ----------
    output_dir : Path
        Of the current result. It is not counted, but what it replaces is.
    data : Input
        The processed data set; its digest names the fold.
    split : str
        Only looks at ``test``, or at ``all`` clips, are counted.

    Returns
    -------
    dict of str to int
        ``n_earlier_looks_at_test`` and, of these, ``n_replaced_looks_at_test`` in this folder, as ``run.json`` holds
        them; empty for another split.
    """
    if split not in WITH_TEST:
        return {}
    n_replaced = sum(_looks_at_test(folder, data, split) for folder in _replaced(output_dir))
    root = names.root_of(output_dir)
    roots = [root.with_name(name) for name in names.OF_RESULTS] if root.name in names.OF_RESULTS else [root]
    roots = [root for root in roots if root.is_dir()]
    folders = [folder for root in roots for folder in names.result_folders(root) if folder != output_dir.resolve()]
    n_looks = n_replaced + sum(_looks_at_test(folder, data, split) for folder in folders)
    if n_looks:
        log.info(
            "these test clips were used before (%s in %s, with those that were replaced): do not choose a model by "
            "these scores",
            *(counted(n_looks, "result"), " and ".join(map(str, roots))),
        )
    return {"n_earlier_looks_at_test": n_looks, "n_replaced_looks_at_test": n_replaced}


def _replaced(output_dir: Path) -> Iterator[Path]:
    """Yield the old results that are kept in a folder until the new one is complete."""
    with contextlib.suppress(InputError):
        record = runs.read_record(output_dir)
        yield from {output_dir / name for name in (record or {}).get("replaces", ())}


def _looks_at_test(folder: Path, data: runs.Input, split: str) -> int:
    """Return how often a result, and those that it replaced, have seen test clips of these.

    All clips of a data set are those of each fold, too.
    """
    with contextlib.suppress(InputError):
        record = runs.read_record(folder)
        if record is not None and record["status"] == "complete":
            arguments, of_data = record["arguments"], {i["sha256"] for i in record["inputs"] if i["name"] == "data_dir"}
            seen = {arguments.get("split"), arguments.get("report_split")} & WITH_TEST
            is_same = data.sha256 in of_data
            if "all" in seen | {split}:  # the fold stands behind the digest
                is_same = data.sha256.partition("/")[0] in {one.partition("/")[0] for one in of_data}
            if seen and is_same:
                return 1 + record.get("metrics", {}).get("n_replaced_looks_at_test", 0)
    return 0
