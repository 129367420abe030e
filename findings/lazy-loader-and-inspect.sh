#!/usr/bin/env bash
# lazy-loader 0.6, and importlib.util.LazyLoader that it is made of: whoever asks inspect for the module of a frame,
# as inspect.stack() does, loads every module that was put off, at that moment: inspect asks each entry of sys.modules
# for __file__. Packages that ask while they are themselves imported (torch.library does, for the source of a custom
# operator) so load other packages in the middle of their own import, and those fail if they need it in turn.
# Seen with numpy 2.4.6: put off, still not loaded after use of other modules, loaded by inspect.stack().
# Exits 0 if that is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lazy-loader==0.6 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import importlib.metadata
import inspect
import json
import sys

import lazy_loader

numpy = lazy_loader.load("numpy")
seen = ["numpy._core" in sys.modules]
json.dumps([1, 2, 3])
seen.append("numpy._core" in sys.modules)
inspect.stack()
seen.append("numpy._core" in sys.modules)
print("lazy-loader", importlib.metadata.version("lazy-loader"), "numpy", importlib.metadata.version("numpy"))
print("numpy is loaded: after lazy_loader.load, after other work, after inspect.stack():", seen)
sys.exit(0 if seen == [False, False, True] else 1)
PY
