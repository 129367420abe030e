"""``scores.parquet``: the score of every window and label. Written here."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core.files import atomic_path
from utils.field.window_stream import WindowFormat

NAME = "scores.parquet"
SCHEMA_VERSION = 2
ROWS_PER_GROUP = 2**14
COLUMNS = {"file": pa.string(), "start_s": pa.float64(), "end_s": pa.float64()}


def write(
    path: Path,
    labels: Sequence[str],
    windows: WindowFormat,
    recordings: Iterable[tuple[str, int, np.ndarray]],
) -> int:
    """Write the table atomically, and return its number of rows; memory does not depend on it.

    A row is a window: ``file``, ``start_s``, ``end_s``, and a column of float32 for each label, with its name.

    Parameters
    ----------
    path : Path
    labels : sequence of str
        By label id.
    windows : WindowFormat
    recordings : iterable of (str, int, ndarray)
        Path, length in samples and scores of each recording; scores are float32 of shape (n_windows, n_labels).
    """
    # float32 as computed: of float16 fastparquet 2026.9.0 gives raw bytes, and R's arrow 24.0.0 the bits as a whole
    # number (apache/arrow issue 50378), both without an error.
    fields = [*COLUMNS.items(), *((label, pa.float32()) for label in labels)]
    schema = pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})
    n_rows = 0
    # Hardly two scores are equal: a dictionary of them takes 1.6 bytes more for each.
    options = {"compression": "zstd", "use_dictionary": ["file"]}
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, **options) as writer:
        waiting: list[pa.Table] = []
        for file, n_samples, scores in recordings:
            for first in range(0, len(scores), ROWS_PER_GROUP):
                waiting.append(_rows(schema, file, n_samples, first, scores[first : first + ROWS_PER_GROUP], windows))
                n_rows += len(waiting[-1])
                if sum(map(len, waiting)) >= ROWS_PER_GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return n_rows


def _rows(
    schema: pa.Schema, file: str, n_samples: int, first: int, scores: np.ndarray, windows: WindowFormat
) -> pa.Table:
    starts = (first + np.arange(len(scores))) * windows.hop
    ends = np.minimum(starts + windows.size, n_samples)
    columns = [pa.array([file] * len(scores)), *(pa.array(times / windows.sample_rate_hz) for times in (starts, ends))]
    return pa.table([*columns, *(pa.array(np.ascontiguousarray(column)) for column in scores.T)], schema=schema)
