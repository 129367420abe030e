"""Faster linear layers and convolutions on CPUs, for inference."""

import contextlib
import copy
import functools
import platform
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
    if _is_not_slower(device):
        layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x @ weight.T + bias`` as `linear_layers` computes it; without gradients, on a CPU in float32."""
    if _is_not_slower(x.device.type):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _is_not_slower(device: str) -> bool:
    return device == "cpu" and platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, layer.weight, layer.bias)


def with_folded_norms(model: nn.Module) -> nn.Module:
    """Return a copy of a network for inference on a CPU, with each batch norm within the convolution before it.

    It holds the channels of a pixel together, which oneDNN prefers. The log-mel CNN needs two thirds of the time; its
    logits differ by rounding, about 1e-7. A network without such pairs is returned itself.

    Parameters
    ----------
    model : Module
        In evaluation mode.
    """
    if not list(_pairs(model)):
        return model
    model = copy.deepcopy(model)
    for parts, i in _pairs(model):
        parts[i] = fuse_conv_bn_eval(parts[i], parts[i + 1])
        parts[i + 1] = nn.Identity()
    return model.to(memory_format=torch.channels_last)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Sequential, int]]:
    """Yield each convolution that a batch norm follows: the sequence, and its place there."""
    for parts in model.modules():
        if isinstance(parts, nn.Sequential):
            for i in range(len(parts) - 1):
                if isinstance(parts[i], nn.Conv2d) and isinstance(parts[i + 1], nn.BatchNorm2d):
                    yield parts, i
