"""Registers the networks that transformers lacks with its Auto classes: those in `classify.NETWORKS`."""

import importlib
from pathlib import Path

from utils.models import classify

for _name in sorted(set(classify.NETWORKS.values())):
    importlib.import_module(f"utils.models.{_name}")


def file_of(model_type: str) -> Path | None:
    """Return the file that holds the network of a model type, which its model folders carry; None if transformers does.

    Parameters
    ----------
    model_type : str
    """
    name = classify.NETWORKS.get(model_type)
    return None if name is None else Path(classify.__file__).with_name(f"{name}.py")
