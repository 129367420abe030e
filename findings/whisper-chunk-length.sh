#!/usr/bin/env bash
# transformers 5.23.0: if chunk_length in preprocessor_config.json is not an int, such as 2.5 or 30.0,
# WhisperFeatureExtractor accepts a clip that fills the window, and fails with every shorter clip:
# "TypeError: `pad_width` must be of integral type". So a window must be a whole number of seconds, written as an int.
# Exits 0 if this is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import sys
import numpy as np
import transformers
from transformers import WhisperFeatureExtractor

print("transformers", transformers.__version__, "numpy", np.__version__)
seen = {}
for chunk_length in (3, 2.5, 30.0):
    extractor = WhisperFeatureExtractor(chunk_length=chunk_length)
    for clip_s in (chunk_length, chunk_length - 0.5):
        clip = np.full(int(clip_s * 16_000), 0.1, np.float32)
        try:
            shape = extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"].shape
            seen[chunk_length, clip_s] = str(shape)
        except TypeError as error:
            seen[chunk_length, clip_s] = f"TypeError: {error}"
        print(f"chunk_length {chunk_length!r}, a clip of {clip_s} s: {seen[chunk_length, clip_s]}")
expected = {
    (3, 3): "(1, 80, 300)",
    (3, 2.5): "(1, 80, 300)",
    (2.5, 2.5): "(1, 80, 250)",
    (2.5, 2.0): "TypeError: `pad_width` must be of integral type.",
    (30.0, 30.0): "(1, 80, 3000)",
    (30.0, 29.5): "TypeError: `pad_width` must be of integral type.",
}
sys.exit(0 if seen == expected else 1)
PY
