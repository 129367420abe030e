"""Attention over frames in place of their mean, for audio classifiers of transformers that project and average frames.

A few learned queries weight the frames of a clip. Such a model has a type of its own, such as ``whisper_attention``, so
that transformers refuses it where this file is not imported, and never takes the mean instead.

A copy of this file is saved in the folder of every such model, so that the model can be loaded without this project:
``sys.path.insert(0, folder)``, then ``import attention_head``. This file therefore needs only torch and transformers.
"""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING

SUFFIX = "_attention"  # of a model type
N_QUERIES = 4


# Not named attention: transformers 5.23.0 reads the file of a model, and where the name of a module in it says so, it
# keeps the encoder's own attention as it is (`PreTrainedModel.set_attn_implementation`).
class QueryPooling(nn.Module):
    """Weighted means of frames, and a linear layer of all of them.

    For query q the weight of frame h_t is the softmax over t of h_t · q / √hidden_size. At first the queries are zero:
    all frames have the same weight, as in the mean. A linear layer for keys would add nothing, since
    (W h) · q = h · (Wᵀ q), and neither would one for values, since a linear layer follows.

    Parameters
    ----------
    hidden_size, n_queries, out_features : int
    """

    def __init__(self, hidden_size: int, n_queries: int, out_features: int):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(n_queries, hidden_size))
        self.projection = nn.Linear(n_queries * hidden_size, out_features)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return one frame, shape (batch, 1, out_features), of frames of shape (batch, n_frames, hidden_size).

        The mean over frames, which the model then takes, leaves it as it is.
        """
        scores = frames @ self.queries.mT / frames.shape[-1] ** 0.5  # (batch, n_frames, n_queries)
        means = scores.float().softmax(dim=1).to(frames.dtype).mT @ frames  # (batch, n_queries, hidden_size)
        return self.projection(means.flatten(1))[:, None]


class Attending(PreTrainedModel):
    """What the classifiers with attention over frames add to those of transformers."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.projector = QueryPooling(config.hidden_size, config.pooling_queries, config.classifier_proj_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, QueryPooling):
            nn.init.zeros_(module.queries)
        else:
            super()._init_weights(module)

    def forward(self, *args, attention_mask: torch.Tensor | None = None, **kwargs):
        """Return what the model of transformers returns.

        Raises
        ------
        ValueError
            If some clips are padded: their silence would get weights.
        """
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("a model with attention over frames takes clips of equal length, without padding")
        return super().forward(*args, **kwargs)


def register(model_type: str) -> type[PreTrainedConfig]:
    """Make a model type such as ``whisper_attention`` known to the Auto classes; return its config.

    Raises
    ------
    KeyError
        If transformers has no audio classifier of this kind.
    """
    if model_type not in CONFIG_MAPPING:
        plain = CONFIG_MAPPING[model_type.removesuffix(SUFFIX)]
        model = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[plain]
        config = type(
            plain.__name__.replace("Config", "AttentionConfig"),
            (plain,),
            {
                **{"__module__": __name__, "__doc__": f"A {plain.__name__} with the number of learned queries."},
                **{"__annotations__": {"pooling_queries": int}, "model_type": model_type, "pooling_queries": N_QUERIES},
            },
        )
        attending = type(
            f"Attention{model.__name__}",
            (Attending, model),
            {"__module__": __name__, "__doc__": Attending.__doc__, "config_class": config},
        )
        globals().update({config.__name__: config, attending.__name__: attending})  # by which pickle finds them
        AutoConfig.register(model_type, config)
        AutoModelForAudioClassification.register(config, attending)
        AutoFeatureExtractor.register(config, FEATURE_EXTRACTOR_MAPPING[plain])
    return CONFIG_MAPPING[model_type]


_CONFIG = Path(__file__).with_name("config.json")
if _CONFIG.is_file():  # a copy in the folder of a model
    register(json.loads(_CONFIG.read_text(encoding="utf-8"))["model_type"])
