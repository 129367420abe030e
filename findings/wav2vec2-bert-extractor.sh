#!/usr/bin/env bash
# transformers 5.23.0: AutoFeatureExtractor takes Wav2Vec2FeatureExtractor for a wav2vec2-bert model whose
# preprocessor_config.json names no class, without a warning. The model cannot read what it makes.
#
# The class may be left out of the file: transformers then takes the one that it lists for the model type. For
# wav2vec2-bert it lists Wav2Vec2FeatureExtractor, which makes `input_values`, the samples of the sound. The model
# takes `input_features`, log-mel bands of two frames side by side, which SeamlessM4TFeatureExtractor makes.
# Observed: the loaded extractor is a Wav2Vec2FeatureExtractor, and its input has the name input_values.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6

"$work/venv/bin/python" - "$work/model" <<'PYTHON'
import json
import sys
from pathlib import Path

import numpy as np
import transformers
from transformers import AutoFeatureExtractor, SeamlessM4TFeatureExtractor

print("transformers", transformers.__version__)
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2-bert"}))
settings = SeamlessM4TFeatureExtractor().to_dict()
sound = np.zeros(16_000, np.float32)
names = {}
for kind in ("named", "unnamed"):
    if kind == "unnamed":
        del settings["feature_extractor_type"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    names[kind] = next(iter(extractor(sound, sampling_rate=16_000)))
    print(f"class {kind}: {type(extractor).__name__}, whose input for the model is {names[kind]}")
expected = {"named": "input_features", "unnamed": "input_values"}
sys.exit(0 if names == expected else "the behaviour has changed")
PYTHON
