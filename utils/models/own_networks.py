"""Registers the networks that transformers lacks with its Auto classes: those of `classify.network_of`."""

import importlib
from pathlib import Path

from transformers import CONFIG_MAPPING, PreTrainedConfig

from utils.models import architectures, attention_head, classify

for _name in sorted(set(classify.NETWORKS.values())):
    importlib.import_module(f"utils.models.{_name}")


def file_of(model_type: str) -> Path | None:
    """Return the file that holds the network of a model type, which its model folders carry; None if transformers does.

    Parameters
    ----------
    model_type : str
    """
    name = classify.network_of(model_type)
    return None if name is None else Path(classify.__file__).with_name(f"{name}.py")


def config_class(model_type: str) -> type[PreTrainedConfig]:
    """Return the config of a model type of transformers or of this project, which the Auto classes know from now on.

    Raises
    ------
    KeyError
        If there is none.
    """
    return attention_head.register(model_type) if architectures.attends(model_type) else CONFIG_MAPPING[model_type]
