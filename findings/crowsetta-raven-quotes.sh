#!/usr/bin/env bash
# crowsetta 5.1.2 and selection tables of Raven: a quotation mark at the start of a label swallows rows, silently.
# Raven quotes nothing: a quotation mark is a character that somebody typed. crowsetta reads the table as a quoted one.
# Observed: of five selections three are read; the second one has the two after it, with their times, in its label. The
# label "zip" call loses its quotation marks. A table whose times are all whole seconds, written without a decimal
# point, is refused.
# Exits 0 if this is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet crowsetta==5.1.2 pandera==0.35.0 pandas==3.1.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata
import sys
from pathlib import Path

import crowsetta
import pandera

TITLES = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]


def read(selections):
    lines = ["\t".join([*TITLES, "Annotation"])]
    for i, (start, end, label) in enumerate(selections, start=1):
        lines.append(f"{i}\tSpectrogram 1\t1\t{start}\t{end}\t100.5\t7000.5\t{label}")
    Path("table.txt").write_text("\n".join(lines) + "\n")
    table = crowsetta.formats.bbox.Raven.from_file("table.txt").df
    return list(zip(table.begin_time_s, table.annotation, strict=True))


print("crowsetta", importlib.metadata.version("crowsetta"))
labels = ['"zip" call', '"rook', "robin", '"wren', "dove"]
found = read([(2 * i + 0.5, 2 * i + 1.5, label) for i, label in enumerate(labels)])
for start, label in found:
    print(f"{start} s: {label!r}")
try:
    whole = str(read([(1, 2, "rook")]))
except pandera.errors.SchemaError as error:
    whole = f"SchemaError: {error}"
print("whole seconds:", whole)
is_so = [start for start, _ in found] == [0.5, 2.5, 8.5] and found[0][1] == "zip call" and "robin" in found[1][1]
sys.exit(0 if is_so and whole.startswith("SchemaError: expected series 'begin_time_s' to have type float64") else 1)
PY
