"""``summary.csv`` and ``summary.png`` of a results folder: always rebuilt from the folders in it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.core import lazy, names, runs
from utils.core.errors import InputError, OutputExistsError
from utils.core.files import write_text
from utils.core.text import counted, printable
from utils.data.splits import UNIT_NOT_NOTED

with lazy.imported_on_first_use():
    import pandas as pd

    from utils.figures import plots


log = logging.getLogger(__name__)

STAGE = "03_model_validation"
METRICS_NAME = "metrics.csv"
SUMMARY_NAME = "summary"
CNN = "CNN"  # in kind; it has no layers to count
NO_DOUBT = "no"  # in latency_doubt; see latency.Latency
# A row of metrics.csv, and so of summary.csv.
METRICS_COLUMNS = (
    "model_name",
    "model_dir",
    "split",
    "n_clips",
    "n_recordings",
    "n_classes",
    "n_layers",
    "kept_layers",
    "n_parameters",
    "gmacs_per_clip",
    "gmacs_front_end",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "macro_f1_low",
    "macro_f1_high",
    "weighted_f1",
    "top5_accuracy",
    "macro_average_precision",
    "macro_auroc",
    "recording_accuracy",
    "recording_macro_f1",
    "expected_calibration_error",
    "latency_ms_median",
    "latency_ms_p95",
    "latency_front_end_ms",
    "real_time_factor",
    "peak_memory_mb",
    "device",
    "dtype",
    "seed",
    "data_sha256",
    "git_commit",
    "throughput_clips_per_s",
    "kind",
    "latency_ms_low",
    "latency_ms_high",
    "n_threads",
    "load_average",
    "cpu_busy_share",
    "latency_doubt",
    "n_recordings_trained_on",
    "kept_together",
    "n_groups",
    "expected_calibration_error_if_calibrated",
)
OF_ONE_LABEL = (
    *("weighted_f1", "recording_accuracy", "recording_macro_f1"),
    *("expected_calibration_error", "expected_calibration_error_if_calibrated"),
)
# Further columns, if a model with several labels a clip is among the rows; see `multi_label.score_all`.
WITH_ENDS = ("macro_average_precision", "macro_auroc", "precision", "recall", "false_alarms_per_hour")
SEVERAL_LABELS_COLUMNS = (
    *(name for stem in WITH_ENDS for name in (stem, f"{stem}_low", f"{stem}_high") if name not in METRICS_COLUMNS),
    *("n_background_clips", "background_hours", "chance_average_precision"),
)
# Columns that results of an earlier version may lack, with the values in their place.
DEFAULTS = {
    **{"kind": "not noted", "latency_doubt": "not noted", "kept_together": UNIT_NOT_NOTED},
    **dict.fromkeys(("latency_ms_low", "latency_ms_high", "n_threads", "load_average", "cpu_busy_share"), float("nan")),
    **dict.fromkeys(("n_groups", "expected_calibration_error_if_calibrated"), float("nan")),
    "n_recordings_trained_on": float("nan"),  # among the scored recordings; see training_history
}
TEXT_COLUMNS = (
    "model_name",
    "model_dir",
    "split",
    "kept_layers",
    "device",
    "dtype",
    "data_sha256",
    "git_commit",
    "kind",
    "latency_doubt",
    "kept_together",
)


def write_metrics(path: Path, rows: pd.DataFrame) -> None:
    """Write rows with exactly the `METRICS_COLUMNS`, atomically; six significant digits, ``nan`` if missing.

    If a row has the `SEVERAL_LABELS_COLUMNS`, they follow.
    """
    rows = rows.assign(**{name: rows[name].map(printable, na_action="ignore") for name in TEXT_COLUMNS})
    more = SEVERAL_LABELS_COLUMNS if has_several_labels(rows) else ()
    write_text(path, rows[[*METRICS_COLUMNS, *more]].to_csv(index=False, float_format="%.6g", na_rep="nan"))


def without_one_label(scores: dict[str, float]) -> dict[str, float]:
    """Return scores of several labels a clip, with NaN for those that need one label a clip."""
    return dict.fromkeys(OF_ONE_LABEL, float("nan")) | scores


def has_several_labels(rows: pd.DataFrame | pd.Series) -> bool:
    """Return whether a row, or one of some rows, is that of a model with several labels a clip."""
    return SEVERAL_LABELS_COLUMNS[0] in rows


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a ``metrics.csv`` or ``summary.csv``.

    Raises
    ------
    InputError
        If it cannot be read, or has other columns or types.
    """
    try:
        columns = (*METRICS_COLUMNS, *SEVERAL_LABELS_COLUMNS)
        numbers = {name: ["nan"] for name in columns if name not in TEXT_COLUMNS}
        # A model may be called "None" or "NA".
        rows = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), na_values=numbers, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); run 03_model_validation.py again with --overwrite"
        ) from error
    rows = rows.assign(**{name: value for name, value in DEFAULTS.items() if name not in rows})
    missing = [column for column in METRICS_COLUMNS if column not in rows]
    if missing or rows.empty:
        found = f"no column {missing[0]}" if missing else "no row"
        raise InputError(f"{path} has {found}; run 03_model_validation.py again with --overwrite")
    text = [name for name in numbers if name in rows and not pd.api.types.is_numeric_dtype(rows[name])]
    if text:
        raise InputError(f"{path}: {text[0]} is not a number; run 03_model_validation.py again with --overwrite")
    return rows


def _is_doubtful(summary: pd.DataFrame) -> pd.Series:
    return ~summary["latency_doubt"].isin([NO_DOUBT, DEFAULTS["latency_doubt"]])


def summary_table(summary: pd.DataFrame) -> str:
    """Return scores, size and speed of all results, as text for a terminal."""

    def with_interval(name: str) -> pd.Series:
        return summary.apply(
            lambda row: f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]", axis=1
        )

    doubt = (" (doubtful: " + summary["latency_doubt"] + ")").where(_is_doubtful(summary), "")
    shown = {
        "model": summary["model_name"],
        "split": summary["split"],
        "split by": summary["kept_together"],
        "layers": summary["kept_layers"].where(summary["kind"] != CNN, ""),
        "accuracy [95 %]": with_interval("accuracy"),
        "macro F1 [95 %]": with_interval("macro_f1"),
        **({"cmAP [95 %]": with_interval("macro_average_precision")} if has_several_labels(summary) else {}),
        "M parameters": (summary["n_parameters"] / 1e6).map("{:.3g}".format),
        "ms per clip": summary["latency_ms_median"].map("{:.1f}".format) + doubt,
    }
    return pd.DataFrame(shown).to_string(index=False)


def rebuild_summary(results_dir: Path, asked: Sequence[str] = ()) -> pd.DataFrame:
    """Write ``summary.csv`` and ``summary.png`` from the ``metrics.csv`` of every result below `results_dir`.

    Results that came with the code, below ``published``, and running results are left out. A failed or damaged result
    is left out with a warning. A lock lets jobs that end at the same time write one after the other.

    Parameters
    ----------
    results_dir : Path
        Folder of validation results; see `names.root_of`.
    asked : sequence of str
        Names of results that the figure always shows.

    Returns
    -------
    pandas.DataFrame
        The rows of ``summary.csv``. Without results there are no rows, and no file is written.

    Raises
    ------
    OutputExistsError
        If there is a ``summary.csv`` that this function did not write.
    """
    results_dir = Path(results_dir)
    csv_path = results_dir / f"{SUMMARY_NAME}.csv"
    with _turn(results_dir):
        if csv_path.is_file() and not csv_path.read_bytes().startswith(f"{METRICS_COLUMNS[0]},".encode()):
            raise OutputExistsError(
                f"{csv_path} is not a summary of validation results and is not changed; choose an --output_dir in "
                "another folder, or move that file away"
            )
        tables = []
        for folder in names.result_folders(results_dir):
            try:
                table = _metrics_of(folder)
            except InputError as error:
                log.warning("left out of %s: %s", csv_path, error)
                continue
            if table is not None:
                tables.append(table)
        if not tables:
            return pd.DataFrame(columns=METRICS_COLUMNS)
        summary = pd.concat(tables, ignore_index=True)
        write_metrics(csv_path, summary)
        plots.summary_figure(summary, results_dir / SUMMARY_NAME, _is_doubtful(summary), asked)
        log.info("%s and .png: rebuilt from %s", csv_path, counted(len(summary), "result"))
    return summary


def holds(folder: Path) -> bool:
    """Return whether the summary is up to date: it has the row of this folder, no removed result, and a figure."""
    results_dir = names.root_of(folder)
    with contextlib.suppress(OSError, UnicodeDecodeError, IndexError):
        row = (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()[1]
        rows = (results_dir / f"{SUMMARY_NAME}.csv").read_text(encoding="utf-8").splitlines()[1:]
        are_there = all((results_dir / cells[0]).is_dir() for cells in csv.reader(rows))
        is_there = any(line == row or line.startswith(f"{row},") for line in rows)
        return is_there and are_there and (results_dir / f"{SUMMARY_NAME}.png").is_file()
    return False


def _metrics_of(folder: Path) -> pd.DataFrame | None:
    """Return the row of a folder; None if it is not a complete result. Runs of stage 02 have a metrics.csv too."""
    record = runs.read_record(folder)
    if record is None or record["stage"] != STAGE or record["status"] == "running":
        return None
    outputs = [output for output in record["outputs"] if output["path"] == METRICS_NAME]
    if record["status"] != "complete":
        raise InputError(f"{folder} is not complete: its {runs.RECORD_NAME} says {record['status']!r}")
    if not outputs:
        return None
    runs.check_outputs(folder, {**record, "outputs": outputs})
    return read_metrics(folder / METRICS_NAME)


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    with (folder / runs.LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: this file system has no locks (%s)", folder, error)
        yield
