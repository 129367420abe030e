#!/usr/bin/env bash
# birdnet-analyzer 2.4.0, segments: a recording in a subfolder is matched to the results of another one, or to none.
# parse_folders takes the folder off a path with str.strip, which removes single letters from both ends instead.
# With the folders "audio" and "results", "audio/site1a" becomes "/site1" and "results/forest" becomes "/fo".
# Observed: the recording of site1a is matched to the results of site1. That of forest has results and is left out.
# Exits 0 if this is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# Its model needs TensorFlow; what pairs recordings with results does not.
"$work/venv/bin/pip" install --quiet --no-deps birdnet-analyzer==2.4.0
"$work/venv/bin/pip" install --quiet librosa==0.11.0 numpy==2.4.6 soundfile==0.14.0 scipy==1.17.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import importlib.metadata
import sys
from pathlib import Path

from birdnet_analyzer.segments.utils import parse_folders

NAME = "20250601_050000"
for site in ("site1a", "forest"):
    Path("audio", site).mkdir(parents=True)
    Path("audio", site, f"{NAME}.WAV").touch()
for site in ("site1", "site1a", "forest"):  # the recordings of site1 are kept elsewhere
    Path("results", site).mkdir(parents=True)
    Path("results", site, f"{NAME}.BirdNET.selection.table.txt").touch()
print("birdnet-analyzer", importlib.metadata.version("birdnet-analyzer"))
pairs = {pair["audio"]: pair["result"] for pair in parse_folders("audio", "results")}
for audio, result in pairs.items():
    print(f"{audio} is matched to {result}")
expected = {f"audio/site1a/{NAME}.WAV": f"results/site1/{NAME}.BirdNET.selection.table.txt"}
sys.exit(0 if pairs == expected else 1)
PY
