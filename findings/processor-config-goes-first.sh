#!/usr/bin/env bash
# transformers 5.23.0: if a folder has two descriptions of its feature extractor, processor_config.json takes precedence
# over preprocessor_config.json, without a warning.
#
# Versions before 5 wrote only preprocessor_config.json, and all documentation of audio models names it. Version 5
# writes the feature extractor of a processor (WhisperProcessor.save_pretrained, Wav2Vec2Processor.save_pretrained)
# into processor_config.json. A folder has both files if such a processor is saved into an older folder, or if a user
# adds preprocessor_config.json by hand. A new folder of a processor has no preprocessor_config.json.
# Observed: preprocessor_config.json turns normalisation off, but the loaded extractor normalises the audio.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6

"$work/venv/bin/python" - "$work/model" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoFeatureExtractor, Wav2Vec2FeatureExtractor

print("transformers", transformers.__version__)
folder = Path(sys.argv[1])
folder.mkdir()
extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
(folder / "processor_config.json").write_text(
    json.dumps({"feature_extractor": extractor.to_dict(), "processor_class": "Wav2Vec2Processor"})
)
(folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))

alone = AutoFeatureExtractor.from_pretrained(folder)
print("processor_config.json alone is enough:", type(alone).__name__)

(folder / "preprocessor_config.json").write_text(json.dumps(extractor.to_dict() | {"do_normalize": False}))
both = AutoFeatureExtractor.from_pretrained(folder)
print("processor_config.json: do_normalize true; preprocessor_config.json: false; loaded:", both.do_normalize)
sys.exit(0 if both.do_normalize else "the behaviour has changed: preprocessor_config.json takes precedence")
PYTHON
