"""Faster linear layers on CPUs, for inference."""

import contextlib
import functools
import platform
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def linear_layers(model: nn.Module, device: str) -> Iterator[None]:
    """Run the linear layers of a model with oneDNN within the block, where that is not slower.

    In float32 PyTorch uses MKL, which uses half the width of the vector units of AMD's processors. oneDNN uses the full
    width and needs less than half the time there, and the same time on Intel's. Only the order of summation differs.
    There are no gradients.

    Parameters
    ----------
    model : Module
        A model in evaluation mode.
    device : str
        Its device; with a device other than ``cpu`` or a processor other than x86, nothing changes.
    """
    layers = []
    if device == "cpu" and platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available():
        layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
