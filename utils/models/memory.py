"""Estimates of the memory for a task, for the message when memory runs out."""

import contextlib
import gc
import resource
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from utils.core.errors import InputError, is_out_of_memory

T = TypeVar("T")

ADAM_BYTES = 12  # per trained parameter, in addition to itself, in float32: gradient and two moments
# Factor on the tensors of a step: oneDNN's convolutions copy theirs into another layout, and the allocator leaves
# gaps. docs/reliability.md lists the measured peaks.
TRAINING_OVERHEAD = 1.5


def used_bytes(device: str, most: bool = True) -> int:
    """Return the memory of this process as its limit counts it: the peak, or the present use.

    On the GPU it is always the present use.
    """
    if device == "cuda":
        return torch.cuda.memory_allocated()
    of_limit, resident = ("VmPeak:", "VmHWM:") if most else ("VmSize:", "VmRSS:")
    name = of_limit if _addresses_are_limited() else resident
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def amount(n_bytes: float) -> str:
    """Return a size as text that names the limit for it."""
    return f"{n_bytes / 1e9:.1f} GB" + (" of address space (ulimit -v)" if _addresses_are_limited() else "")


def more(n_bytes: float) -> str:
    """Return a size as text, above the limit that was too low: the estimate may be below that limit."""
    return amount(
        max(n_bytes, 1.1 * resource.getrlimit(resource.RLIMIT_AS)[0]) if _addresses_are_limited() else n_bytes
    )


def _addresses_are_limited() -> bool:
    """Return whether a limit counts all mapped memory, with several GB that are reserved but never used."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def adam_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of gradients and AdamW's moments."""
    return ADAM_BYTES * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def training_bytes(model: PreTrainedModel, clip: dict[str, torch.Tensor], batch_size: int, before: int) -> float:
    """Return an estimate of the memory that a process needs to train a model with AdamW.

    Parameters
    ----------
    model : PreTrainedModel
        In training mode, without gradients. It gets gradients without meaning.
    clip : dict of str to Tensor
        A batch of one clip.
    batch_size : int
    before : int
        Memory of the process with the model, before training.
    """
    with LiveBytes() as live:
        model(**clip)["logits"].sum().backward()
        live.highest = gradients = live.now
        model(**clip)["logits"].sum().backward()
    return before + adam_bytes(model) + TRAINING_OVERHEAD * batch_size * (live.highest - gradients)


def advised(work: Callable[[], T], need: Callable[[], str], at_least: Callable[[], float], where: str = "") -> T:
    """Run a task; if memory runs out, raise an error that estimates the memory needed.

    Parameters
    ----------
    work : callable
        Its result is returned.
    need : callable
        Returns the end of the message; it may itself run out of memory.
    at_least : callable
        Returns a lower bound of the bytes needed, in case `need` runs out of memory.
    where : str
        Start of the message.

    Raises
    ------
    InputError
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error) or type(error).__name__).splitlines()[0]
    # Only now: a live error keeps its frames, and these keep all tensors of the task.
    gc.collect()
    try:
        advice = need()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = f"not even one clip at a time fits: give the job more than {more(at_least())}"
    raise InputError(f"{where}out of memory ({said:.200}): {advice}")


class LiveBytes(TorchDispatchMode):
    """Counts, within the block, the bytes of all new tensors that exist, and the peak of their sum."""

    def __init__(self):
        super().__init__()
        self.now = self.highest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:  # a view has no storage of its own
                known.add(storage.data_ptr())
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, n_bytes: int) -> None:
        self.now += n_bytes
        self.highest = max(self.highest, self.now)


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
