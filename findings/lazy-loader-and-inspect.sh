#!/usr/bin/env bash
# lazy-loader 0.6 and importlib.util.LazyLoader, on which it is built: inspect.stack() loads every module that is
# deferred. To find the module of a frame, inspect reads __file__ of each entry of sys.modules. Some packages do this
# during their own import: torch.library does, to find the source of a custom operator. Other packages are then loaded
# in the middle of that import. They fail if they need the package that is not yet imported completely.
# Observed with numpy 2.4.6: not loaded by lazy_loader.load or by other work, but loaded by inspect.stack().
# Exits 0 if this is still so, 1 if the behaviour changed.
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
