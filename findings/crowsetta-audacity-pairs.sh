#!/usr/bin/env bash
# crowsetta 5.1.2 and Audacity's label tracks with frequencies: a last label without frequencies is dropped, silently.
# Audacity writes a second line, which begins with a backslash, only for labels that were drawn with frequencies.
# crowsetta's aud-bbox takes the lines two by two. It drops a line that is left at the end, and it refuses a label
# without frequencies anywhere else with the text of the next label as a "string to float".
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

SONG = "1.000000\t2.000000\tsong\n\\\t1500.000000\t6000.000000\n"
CALL = "3.000000\t4.000000\tcall\n"


def read(text):
    Path("labels.txt").write_text(text)
    try:
        return list(crowsetta.formats.bbox.AudBBox.from_file("labels.txt").df.label)
    except ValueError as error:
        return f"ValueError: {error}"


print("crowsetta", importlib.metadata.version("crowsetta"))
found = {"song with frequencies, call without": read(SONG + CALL), "call, then song": read(CALL + SONG)}
for what, labels in found.items():
    print(f"{what}: {labels}")
sys.exit(0 if list(found.values()) == [["song"], "ValueError: could not convert string to float: 'song'"] else 1)
PY
