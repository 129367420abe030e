"""Write a classifier as one ONNX file, from waveform to scores, that needs neither PyTorch nor this project.

The file takes clips of the length of the training at the sample rate of the model, any number at a time. Whatever the
feature extractor does is inside, as is the calibration of the scores. Its metadata hold all that a program needs
to use it; `exported` reads them.

Precisions:

float32   the same numbers as the model
float16   weights stored in 16 bits, computed in float32: half the size, the same speed
int8      weights of linear layers, and of convolutions over time, in 8 bits with a scale for each output; their inputs
          in 8 bits with a scale for each frame

A scale for each frame, because ONNX's own dynamic quantization has one for all frames, and the activations of one frame
are many times those of another: on a Whisper-base of six blocks the error was 4 times as large (root mean square of the
logits 0.109, here 0.026). A convolution over time becomes a product of a matrix with the frames under its kernel: ONNX
Runtime computes int8 convolutions several times slower than float32 ones. Convolutions over time and frequency, those
of the log-mel CNN and the patches of AST and BEATs, have one scale for each tensor. It is found beforehand on some
clips of train; without clips they stay in float32, as does the first one of the CNN.

The weights are signed: processors with VNNI multiply unsigned inputs by signed weights, but not by unsigned ones.
`rounding` chooses them, with the inputs that the layers have on some clips of train, and balances inputs and weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Container, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import nn

from utils.core.errors import InputError
from utils.core.files import atomic_path, write_csv
from utils.data.clips import Clips
from utils.models import decision, encoders, exported_network, latency, predict, rounding, training_history
from utils.models.architectures import architecture_of, has_blocks
from utils.models.exported import FLOAT16, FLOAT32, INT8, LOGITS, SCHEMA_VERSION, SCORES, metadata_of
from utils.models.loaded_model import WAVEFORM, LoadedModel
from utils.models.waveform_features import features_of
from utils.scores import intervals, multi_label

log = logging.getLogger(__name__)

OPSET = 20
LEAST_UNDER_KERNEL = 128  # numbers for which products of whole numbers are faster
LEAST_HALVED = 1024  # numbers in a weight that is stored in 16 bits
MOST_BYTES = 2**31 - 2**20  # a little less than a protobuf message can have
BATCH_SIZE = 16
N_NOISE_CLIPS = 8
N_SCALE_CLIPS, N_ROUNDING_CLIPS = 256, 64
MOST_PRODUCTS = 2**27  # numbers of 8 bytes
# Largest difference of a logit, relative to the largest logit. Float32 differs by rounding, and numbers of 16 bits have
# three digits; more means that the exporter has changed the network.
MOST_DIFFERENCE = {FLOAT32: 1e-3, FLOAT16: 5e-2}
LEAST_AGREEMENT = 0.99
TABLE_NAME = "export.csv"
LAST_AXIS, LEAST_SCALE = "last_axis", "least_scale"  # constants of the int8 network
NOISE, VAL = "noise", "val"


class WaveformClassifier(nn.Module):
    """A classifier from waveform to logits and scores.

    Parameters
    ----------
    loaded : LoadedModel
        On the CPU, in evaluation mode.
    n_samples : int
        Length of every clip.
    """

    def __init__(self, loaded: LoadedModel, n_samples: int):
        super().__init__()
        self.features = features_of(loaded.extractor, n_samples)
        self.network, self._name = loaded.model, loaded.model.main_input_name
        self._is_multi_label = loaded.is_multi_label
        how = (decision.read(loaded.config) or {}).get("calibration", {})
        self._temperature = how.get("temperature", 1.0)
        self._slope, self._intercept = how.get("slope", 1.0), how.get("intercept", 0.0)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and scores, each of shape (batch, n_labels), of clips of shape (batch, n_samples)."""
        logits = self.network(**{self._name: self.features(waveform)}).logits
        scaled = self._slope * logits / self._temperature + self._intercept
        return logits, scaled.sigmoid() if self._is_multi_label else scaled.softmax(dim=1)


def network_of(loaded: LoadedModel, model_sha256: str) -> ModelProto:
    """Return the network of a model, from waveform to logits and scores, in float32, with its metadata.

    Parameters
    ----------
    loaded : LoadedModel
    model_sha256 : str
        Digest of the model folder.

    Raises
    ------
    InputError
        If the model does not record how its clips were cut, or PyTorch cannot export it.
    """
    config = loaded.config
    if not encoders.can_classify_files(config):
        raise InputError(
            f"{config.name_or_path} does not record how files are cut into clips for it: train it with "
            "02_finetuning.py or 06_cnn.py"
        )
    n_samples = round(config.clip_seconds * loaded.extractor.sampling_rate)
    clips = torch.zeros(2, n_samples)
    plain = has_blocks(config) and architecture_of(config).exports_plain_attention
    with _quiet_exporter(), latency.eager_attention(loaded.model) if plain else contextlib.nullcontext():
        program = torch.onnx.export(
            WaveformClassifier(loaded, n_samples).eval(),
            (clips,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[WAVEFORM],
            output_names=[LOGITS, SCORES],
            opset_version=OPSET,
            verbose=False,
        )
    network = program.model_proto
    graph = network.graph
    # The exporter notes lines and paths of the code on this machine, more than the weights of a small model.
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    helper.set_model_props(network, _metadata(loaded, model_sha256))
    return network


def _metadata(loaded: LoadedModel, model_sha256: str) -> dict[str, str]:
    """Return the metadata of the files of a model, but for their precision."""
    rate_hz = loaded.sample_rate_hz
    silence = np.zeros(round(loaded.config.clip_seconds * rate_hz), np.float32)
    macs, macs_front_end = latency.count_macs(loaded.model, loaded.prepare([silence], rate_hz))
    config = json.loads(loaded.config.to_json_string(use_diff=False))
    sizes = {"n_blocks": loaded.config.num_hidden_layers, "n_parameters": encoders.count_parameters(loaded.model)}
    return metadata_of(
        {
            "schema_version": SCHEMA_VERSION,
            "sample_rate_hz": rate_hz,
            "model_sha256": model_sha256,
            "config": {name: value for name, value in config.items() if name != "_name_or_path"},
            "training_recordings": training_history.as_json(training_history.history_of(loaded.model)),
            "sizes": sizes | {"macs_per_clip": macs, "macs_front_end": macs_front_end},
        }
    )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks about packages and its own code out of the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def write(network: ModelProto, path: Path, precision: str, clips: Clips | None = None) -> None:
    """Write an exported file in a precision.

    Parameters
    ----------
    network : ModelProto
        From `network_of`; it is not changed.
    path : Path
    precision : {"float32", "float16", "int8"}
    clips : Clips, optional
        Clips of train, of which some are heard for int8: weights are rounded so that the outputs of the layers change
        least, and convolutions over time and frequency get their scales. None rounds to the nearest number, and leaves
        these convolutions in float32.

    Raises
    ------
    InputError
        If the weights do not fit into one file.
    """
    metadata = {each.key: each.value for each in network.metadata_props}
    network = _in_int8(network, clips) if precision == INT8 else _CONVERTERS[precision](network)
    helper.set_model_props(network, metadata | {"precision": json.dumps(precision)})
    network.producer_name, network.doc_string = "", f"audio classifier, opset {OPSET}, {precision}"
    if network.ByteSize() > MOST_BYTES:
        smaller = f"--precision {FLOAT16}, or " if precision == FLOAT32 else ""
        raise InputError(
            f"the network has {network.ByteSize() / 1e9:.2g} GB in {precision}, and one ONNX file holds 2 GB; give "
            f"{smaller}a model with fewer blocks"
        )
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(network.SerializeToString(deterministic=True))


def _copy(network: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(network)
    return copied


def _is_of_features(name: str) -> bool:
    """Return whether a weight belongs to the features: a spectrogram needs its 32 bits."""
    return name.startswith("features.")


def _in_float16(network: ModelProto) -> ModelProto:
    """Store the weights in 16 bits; nodes in front of the network convert them when the file is loaded."""
    network, casts = _copy(network), []
    for weight in network.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or _is_of_features(weight.name):
            continue
        values = numpy_helper.to_array(weight)
        if values.size < LEAST_HALVED or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name, short = weight.name, f"{weight.name}.float16"
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), short))
        casts.append(helper.make_node("Cast", [short], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(network.graph.node)
    del network.graph.node[:]
    network.graph.node.extend(casts + nodes)
    return network


def _in_int8(network: ModelProto, clips: Clips | None = None) -> ModelProto:
    """Store the weights in 8 bits; see the docstring of this module."""
    of_features = [node.name for node in network.graph.node if any(map(_is_of_features, node.input))]
    network, largest = _with_frames_under_kernels(network, of_features)
    network = _with_linear_layers_in_int8(network, largest, of_features, clips)
    return network if clips is None else _with_scales_of_clips(network, clips)


def _with_frames_under_kernels(network: ModelProto, excluded: Sequence[str]) -> tuple[ModelProto, dict[str, str]]:
    """Turn each convolution over time into a linear layer on the frames under its kernel; this changes only rounding.

    Those with groups (the positional convolutions of wav2vec2) or with few numbers under the kernel (the first one, on
    the waveform) stay as they are.

    Returns
    -------
    network : ModelProto
    largest : dict of str to str
        For the input of each new linear layer, the tensor of the largest value under the kernel: found before the
        frames are copied, which is cheaper.
    """
    network, nodes, constants, largest = _copy(network), [], {}, {}
    weights, add = {weight.name: weight for weight in network.graph.initializer}, partial(_add, nodes)

    def constant(name: str, *values: int) -> str:
        constants[name] = np.array(values, np.int64)
        return name

    for node in list(network.graph.node):
        kernel = _kernel_over_time(node, weights) if node.name not in excluded else None
        if kernel is None:
            nodes.append(node)
            continue
        settings, name, size = _settings(node), node.name, kernel.shape[-1]
        frames = add("Transpose", [node.input[0]], f"{name}.frames", perm=[0, 2, 1])
        if any(settings.get("pads", ())):
            before, after = settings["pads"]
            frames = add("Pad", [frames, constant(f"{name}.pads", 0, before, 0, 0, after, 0)], f"{name}.padded")
        axis, step = constant(f"{name}.axis", 1), constant(f"{name}.step", *settings.get("strides", [1]))
        sizes = add(
            "ReduceMax", [add("Abs", [frames], f"{name}.sizes"), LAST_AXIS], f"{name}.sizes.of_frames", keepdims=1
        )
        under, sizes_under = [], []
        for number in range(size):
            start = constant(f"{name}.start.{number}", number)
            end = constant(f"{name}.end.{number}", number + 1 - size if number + 1 < size else np.iinfo(np.int64).max)
            under.append(add("Slice", [frames, start, end, axis, step], f"{name}.under.{number}"))
            sizes_under.append(add("Slice", [sizes, start, end, axis, step], f"{name}.sizes.{number}"))
        joined = add("Concat", under, f"{name}.joined", axis=2)
        largest[joined] = add("Max", sizes_under, f"{name}.largest")
        constants[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(2, 1, 0).reshape(-1, len(kernel)))
        found = add("MatMul", [joined, f"{name}.weight"], f"{name}.product")
        if len(node.input) > 2:
            found = add("Add", [found, node.input[2]], f"{name}.sum")
        add("Transpose", [found], node.output[0], perm=[0, 2, 1])
    return _rebuilt(network, nodes, constants), largest


def _add(nodes: list[NodeProto], operation: str, inputs: Sequence[str], *outputs: str, **attributes: object) -> str:
    """Append a node that is named after its first output; return that output."""
    nodes.append(helper.make_node(operation, inputs, outputs, f"{outputs[0]}.node", **attributes))
    return outputs[0]


def _settings(node: NodeProto) -> dict[str, object]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _kernel_over_time(node: NodeProto, weights: dict[str, TensorProto]) -> np.ndarray | None:
    """Return the weights, of shape (outputs, channels, size), of a convolution that is worth being a product."""
    if node.op_type != "Conv" or node.input[1] not in weights:
        return None
    kernel, settings = numpy_helper.to_array(weights[node.input[1]]), _settings(node)
    is_plain = settings.get("group", 1) == 1 and set(settings.get("dilations", [1])) == {1}
    is_worth_it = kernel.ndim == 3 and kernel[0].size >= LEAST_UNDER_KERNEL
    return kernel if is_plain and is_worth_it and settings.get("auto_pad", b"NOTSET") == b"NOTSET" else None


def _with_linear_layers_in_int8(
    network: ModelProto, largest: dict[str, str], excluded: Sequence[str], clips: Clips | None
) -> ModelProto:
    """Divide the input of each linear layer by its largest value in the frame, round it, and multiply whole numbers.

    Where `largest` has a tensor of the largest values of an input, they are not searched for again.
    """
    nodes: list[NodeProto] = []
    constants, add = {}, partial(_add, nodes)
    weights = {weight.name: weight for weight in network.graph.initializer}
    linear = {
        node.name: node
        for node in network.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and node.input[0] not in weights
    }
    linear = {name: node for name, node in linear.items() if name not in excluded}
    balances, whole_numbers = _whole_numbers(network, list(linear.values()), largest, weights, clips)

    @cache  # layers share an input
    def rounded_input(given: str) -> tuple[str, str, str, str]:
        """Return the whole numbers of an input, their step and zero, and the scale of each frame."""
        rounded, step, zero = (f"{given}.{part}" for part in ("rounded", "step", "zero"))
        size = largest.get(given)
        if given in balances:
            constants[f"{given}.balance"] = 1 / balances[given]
            given = add("Mul", [given, f"{given}.balance"], f"{given}.balanced")
        if size is None:
            sizes = add("Abs", [given], f"{given}.sizes")
            size = add("ReduceMax", [sizes, LAST_AXIS], f"{given}.largest", keepdims=1)
        scale = add("Max", [size, LEAST_SCALE], f"{given}.scale")
        add("DynamicQuantizeLinear", [add("Div", [given, scale], f"{given}.scaled")], rounded, step, zero)
        return rounded, step, zero, scale

    network = _copy(network)
    for node in list(network.graph.node):
        if node.name not in linear:
            nodes.append(node)
            continue
        name = node.name
        rounded, step, zero, scale = rounded_input(node.input[0])
        whole, steps = (f"{name}.weight.{part}" for part in ("rounded", "steps"))
        constants[whole], constants[steps] = whole_numbers[name]
        product = add("Cast", [add("MatMulInteger", [rounded, whole, zero], f"{name}.whole")], f"{name}.cast", to=1)
        product = add("Mul", [product, add("Mul", [step, steps], f"{name}.unit")], f"{name}.product")
        add("Mul", [product, scale], node.output[0])
    return _rebuilt(network, nodes, constants)


def _whole_numbers(
    network: ModelProto,
    layers: Sequence[NodeProto],
    largest: Container[str],
    weights: dict[str, TensorProto],
    clips: Clips | None,
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the `rounding.balance` of each input, and the rounded weights of each layer, by their names.

    The inputs in `largest` have none: the frames under a kernel are copies of frames, whose sizes are known before.
    """
    arrays = {layer.name: numpy_helper.to_array(weights[layer.input[1]]) for layer in layers}
    if clips is None:
        return {}, {name: rounding.rounded(weight) for name, weight in arrays.items()}
    balances, found, few = {}, {}, clips.drawn(N_ROUNDING_CLIPS, seed=0)
    readers: dict[str, list[str]] = {}
    for layer in layers:
        readers.setdefault(layer.input[0], []).append(layer.name)
    inputs, sizes = list(readers), [len(arrays[names[0]]) ** 2 for names in readers.values()]
    while inputs:  # as many at once as fit into memory
        n_at_once = max(1, int((np.cumsum(sizes) <= MOST_PRODUCTS).sum()))
        for given, products in _products_of_inputs(network, inputs[:n_at_once], few).items():
            balance = np.ones(len(products), np.float32)
            if given not in largest:
                balance = rounding.balance(np.hstack([arrays[name] for name in readers[given]]), products)
                balances[given] = balance
            factor = rounding.factor_of(products / np.outer(balance, balance))
            found |= {name: rounding.rounded(arrays[name] * balance[:, None], factor) for name in readers[given]}
        del inputs[:n_at_once], sizes[:n_at_once]
    return balances, found


def _products_of_inputs(network: ModelProto, names: Sequence[str], clips: Clips) -> dict[str, np.ndarray]:
    """Return the sum of the outer products of tensors over all frames of the clips.

    Parameters
    ----------
    network : ModelProto
    names : sequence of str
        Tensors whose last axis has the inputs of a layer.
    clips : Clips

    Returns
    -------
    dict of str to ndarray
        float64 of shape (n_inputs, n_inputs).
    """
    network, products = _copy(network), {}
    network.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for inputs in _inputs_of(clips):
        for name, found in zip(names, session.run(names, inputs), strict=True):
            frames = found.reshape(-1, found.shape[-1])
            products[name] = products.get(name, np.float64(0)) + frames.T @ frames
    return products


def _inputs_of(clips: Clips) -> Iterator[dict[str, np.ndarray]]:
    """Yield clips one by one, as a file takes them."""
    return ({WAVEFORM: clips.audio(number)[None]} for number in range(len(clips)))


class _Waveforms(CalibrationDataReader):
    """The same, as the quantizer reads them."""

    def __init__(self, clips: Clips):
        self._inputs = _inputs_of(clips)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def _with_scales_of_clips(network: ModelProto, clips: Clips) -> ModelProto:
    """Store convolutions over time and frequency in 8 bits; their inputs have the range that they have on the clips.

    A small one on the spectrogram itself stays in float32: it is as fast, and the spectrogram keeps its digits.
    """
    weights = {weight.name: weight for weight in network.graph.initializer}
    names, kinds, made = [], set(), set()
    for node in network.graph.node:
        given = [name for name in node.input if name not in weights]
        kernel = weights[node.input[1]].dims if node.op_type == "Conv" and node.input[1] in weights else ()
        is_image = len(kernel) == 4 and not (kernel[1] == 1 and np.prod(kernel[2:]) < LEAST_UNDER_KERNEL)
        follows = node.op_type in ("Relu", "Add") and given and made.issuperset(given)
        if follows or (is_image and not _is_of_features(node.input[1])):
            names.append(node.name)
            kinds.add(node.op_type)
            made.update(node.output)
    if not names:
        return network
    with _quiet_exporter(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "int8.onnx"
        quantize_static(
            network,
            path,
            _Waveforms(clips.drawn(N_SCALE_CLIPS, seed=0)),
            op_types_to_quantize=sorted(kinds),  # the ranges of all others would be measured, too
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(path)


def _rebuilt(network: ModelProto, nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> ModelProto:
    """Give a network other nodes and more constants; weights and constants that no node reads are left out."""
    constants = {LAST_AXIS: np.array([-1], np.int64), LEAST_SCALE: np.array(1e-12, np.float32)} | constants
    read = {name for node in nodes for name in node.input}
    kept = [weight for weight in network.graph.initializer if weight.name in read and weight.name not in constants]
    del network.graph.node[:], network.graph.initializer[:]
    network.graph.node.extend(nodes)
    network.graph.initializer.extend(kept)
    used = {name: value for name, value in constants.items() if name in read}
    network.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in used.items())
    return network


_CONVERTERS = {FLOAT32: _copy, FLOAT16: _in_float16}


# ------------------------------------------------------------------------------------------------ checking


class Comparison(NamedTuple):
    """How an exported file answers, beside the model it was made from; a row of ``export.csv``.

    Attributes
    ----------
    precision : str
    megabytes : float
        Size of the file, in 10^6 bytes.
    n_clips : int
    clips : str
        ``val``, or ``noise`` if no clips were given.
    largest_logit, largest_logit_difference : float
        The largest size of a logit of the model, and of a difference from it.
    top1_agreement : float
        Share of the clips whose highest score has the same label.
    accuracy_difference, accuracy_difference_low, accuracy_difference_high : float
        Accuracy (with several labels a clip, top-1 accuracy) of the file minus that of the model, with the paired 95 %
        interval; NaN for noise.
    """

    precision: str
    megabytes: float
    n_clips: int
    clips: str
    largest_logit: float
    largest_logit_difference: float
    top1_agreement: float
    accuracy_difference: float = float("nan")
    accuracy_difference_low: float = float("nan")
    accuracy_difference_high: float = float("nan")

    def __str__(self) -> str:
        text = (
            f"{self.precision}, {self.megabytes:.1f} MB: logits differ by up to {self.largest_logit_difference:.2g} "
            f"(the largest is {self.largest_logit:.3g}), the same label for {self.top1_agreement:.4f} of "
            f"{self.n_clips} clips of {self.clips}"
        )
        if self.clips == NOISE:
            return text
        low, high = self.accuracy_difference_low, self.accuracy_difference_high
        return f"{text}; accuracy {self.accuracy_difference:+.4f} [{low:+.4f}, {high:+.4f}]"

    def trouble(self) -> str | None:
        """Return why the file is not a copy of the model that can be used in its place; None if it is."""
        most = MOST_DIFFERENCE.get(self.precision, float("inf")) * max(1.0, self.largest_logit)
        if not self.largest_logit_difference <= most:
            return f"its logits differ by more than {most:.2g}"
        if self.clips == NOISE:
            return None
        if self.top1_agreement < LEAST_AGREEMENT:
            return f"it agrees with the model on less than {LEAST_AGREEMENT:g} of the clips"
        if self.accuracy_difference_high < 0:
            return "its accuracy is lower, beyond chance"
        return None


def logits_of(loaded: LoadedModel, clips: Clips | None) -> np.ndarray:
    """Return the logits of clips, float32 of shape (n_clips, n_labels); without clips, those of noise."""
    if clips is not None:
        return predict.predict(loaded, clips, BATCH_SIZE)
    rate_hz = loaded.extractor.sampling_rate
    rng = np.random.default_rng(0)
    levels = np.geomspace(1e-3, 0.3, N_NOISE_CLIPS)[:, None]
    noise = levels * rng.standard_normal((N_NOISE_CLIPS, round(loaded.config.clip_seconds * rate_hz)))
    with torch.inference_mode():
        return loaded.model(**loaded.prepare(list(noise.clip(-1, 1).astype(np.float32)), rate_hz)).logits.numpy()


def compare(path: Path, wanted: np.ndarray, clips: Clips | None) -> Comparison:
    """Load an exported file again, and compare its answers with those of its model.

    Parameters
    ----------
    path : Path
    wanted : ndarray
        `logits_of` the model.
    clips : Clips or None
        As for `logits_of`.
    """
    loaded = exported_network.load(path, "cpu")
    found = logits_of(loaded, clips)
    row = Comparison(
        loaded.model.exported.precision,
        path.stat().st_size / 1e6,
        len(found),
        NOISE if clips is None else VAL,
        float(np.abs(wanted).max()),
        float(np.abs(found - wanted).max()),
        float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
    )
    if clips is None:
        return row
    targets = clips.targets > 0
    rights = [multi_label.top_accuracy(targets, clips.is_known, logits).astype(int) for logits in (found, wanted)]
    groups = clips.table["group"].to_numpy()
    difference = intervals.paired_difference(np.ones(len(clips), int), *rights, groups)["accuracy"]
    return row._replace(**dict(zip(row._fields[-3:], map(float, difference), strict=True)))


def write_table(output_dir: Path, rows: Sequence[Comparison]) -> None:
    """Write ``export.csv``."""
    values = [["" if value != value else value for value in row] for row in rows]
    write_csv(output_dir / TABLE_NAME, Comparison._fields, values)
