#!/usr/bin/env bash
# onnxruntime 1.32.0, quantize_dynamic: what an int8 model answers for a row depends on the other rows of its batch.
# The scale of the activations is one for the whole input of a layer, over all rows (frames, clips), and is chosen anew
# in each call. So a quiet clip beside a loud one loses its digits, and the same clip alone has another score.
# Observed: a row of size 0.001 beside one of size 1 is answered with zeros; alone, to 1 %.
# Exits 0 if this is still so, 1 if the behaviour changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

logging.disable(logging.WARNING)
rng = np.random.default_rng(0)
weight = rng.standard_normal((64, 8)).astype(np.float32)
rows = (rng.standard_normal((2, 64)) * np.array([[1.0], [1e-3]])).astype(np.float32)
ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", size]) for n, size in (("x", 64), ("y", 8))]
node = helper.make_node("MatMul", ["x", "weight"], ["y"], "linear")
graph = helper.make_graph([node], "graph", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "float32.onnx")
quantize_dynamic("float32.onnx", "int8.onnx", weight_type=QuantType.QUInt8)
session = onnxruntime.InferenceSession("int8.onnx")
wanted = rows[1] @ weight
alone, beside = (session.run(["y"], {"x": some})[0][-1] for some in (rows[1:], rows))
print("onnxruntime", onnxruntime.__version__)
answers = {"alone": alone, "beside a loud row": beside}
errors = {what: float(np.abs(found - wanted).max() / np.abs(wanted).max()) for what, found in answers.items()}
for what, error in errors.items():
    print(f"the quiet row {what}: largest error {error:.3f} of its largest output")
sys.exit(0 if errors["alone"] < 0.05 and errors["beside a loud row"] > 0.5 else 1)
PY
