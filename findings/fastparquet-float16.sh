#!/usr/bin/env bash
# fastparquet 2026.9.0 and half-precision columns: it returns the raw bytes of each value, without an error.
# pyarrow 25.0.1 writes scores as float16 with the Parquet type FLOAT16. pyarrow itself, polars 2.1.0 and DuckDB 2.0.1
# read them as numbers. fastparquet gives a column of objects, b'\x008' for 0.5, which can be sorted and compared, so
# that the scores of a model come out in a wrong order. Write scores as float32.
# Exits 0 if this is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet fastparquet==2026.9.0 pyarrow==25.0.1 polars==2.1.0 duckdb==2.0.1 pandas==3.1.1 \
    numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata
import sys

import duckdb
import fastparquet
import numpy as np
import polars
import pyarrow
import pyarrow.parquet

SCORES = np.array([0.5, 0.25, 0.40625], dtype=np.float16)  # exact in half precision
pyarrow.parquet.write_table(pyarrow.table({"score": SCORES}), "scores.parquet")

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("fastparquet", "pyarrow", "polars", "duckdb")))
found = {
    "pyarrow": pyarrow.parquet.read_table("scores.parquet")["score"].to_pylist(),
    "polars": polars.read_parquet("scores.parquet")["score"].to_list(),
    "duckdb": [score for (score,) in duckdb.sql("SELECT score FROM 'scores.parquet'").fetchall()],
    "fastparquet": fastparquet.ParquetFile("scores.parquet").to_pandas()["score"].tolist(),
}
for reader, scores in found.items():
    print(f"{reader}: {scores}")
raw = found.pop("fastparquet")
is_raw = raw == [score.tobytes() for score in SCORES]
order = sorted(range(len(raw)), key=raw.__getitem__)
print("from low to high by fastparquet:", [float(SCORES[index]) for index in order])
others_are_right = all(scores == SCORES.tolist() for scores in found.values())
sys.exit(0 if is_raw and others_are_right and order != SCORES.argsort().tolist() else 1)
PY
