"""How much memory work takes, for the message when there was not enough."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from utils.core.errors import InputError, is_out_of_memory

ADAM_BYTES = 12  # of each trained parameter besides itself, in float32: gradient and two moments
MEGABYTE = 1e6


def resident_bytes() -> int:
    """Return the memory that this process has now, 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def stored_bytes(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> int:
    """Return the bytes that a forward pass of training keeps for the backward pass, besides the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(**batch)  # held until all is counted: memory that is freed would be counted twice
    del output
    return sum(sizes.values())


def training_bytes(model: PreTrainedModel, clip: dict[str, torch.Tensor], batch_size: int, before: int) -> int:
    """Return about how much memory a process needs to train a model with AdamW.

    Parameters
    ----------
    model : PreTrainedModel
        In training mode.
    clip : dict of str to Tensor
        A batch of one clip.
    batch_size : int
    before : int
        Bytes of the process with the model, before training.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return before + ADAM_BYTES * trained + batch_size * stored_bytes(model, clip)


@contextlib.contextmanager
def advised(need: Callable[[], str]) -> Iterator[None]:
    """Turn an error for want of memory into one that says how much would do.

    Parameters
    ----------
    need : callable
        Returns the end of the message; it may run out of memory itself.

    Raises
    ------
    InputError
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        try:
            advice = need()
        except Exception as again:
            if not is_out_of_memory(again):
                raise
            advice = "not even one clip at once fits: give the job more memory"
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"out of memory ({said:.200}): {advice}") from error
