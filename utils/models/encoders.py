"""Audio encoders: load, prune, check, freeze and save them.

A *block* is one transformer layer, counted from 0. The *front end* is everything before the first
block: convolutions or mel front, projection, positional embedding. The *head* turns hidden
states into logits.
"""

import contextlib
import copy
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from packaging.version import InvalidVersion, Version
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

from utils.core.errors import InputError, UsageError
from utils.core.files import PARTIAL_SUFFIX
from utils.core.text import printable
from utils.data.clips import Clips, label_maps
from utils.models import classify, decision, exported_network, loading, model_folder, own_networks, training_history
from utils.models.architectures import (
    ATTENTION,
    ATTENTION_SUFFIX,
    CNN_HEAD,
    LAYERS,
    MEAN,
    architecture_of,
    attends,
    blocks_of,
    final_norm_of,
    has_blocks,
    longest_clip_seconds,
    plain_type,
    pooling_of,
    shortest_clip_samples,
    sums_layers,
)
from utils.models.loaded_model import LoadedModel

log = logging.getLogger(__name__)

# The first transformers in which a weighted sum uses the last layer of a stable-layer-norm model before that norm.
SUMS_BEFORE_NORM = Version("5.16.0")


# ------------------------------------------------------------------------------------------- anatomy


def kept_layers(config: PreTrainedConfig) -> list[int]:
    """Return the numbers of a model's blocks, counted in the base model."""
    recorded = getattr(config, "kept_layers", None)
    return list(range(config.num_hidden_layers)) if recorded is None else list(recorded)


def kind_of(config: PreTrainedConfig) -> str:
    """Return the kind of a model in the study, one of `plots.KINDS`: CNN, whole, pruned before or after fine-tuning."""
    if not has_blocks(config):
        return "CNN"
    if getattr(config, "pruned_from", None) is None:
        return "whole"
    return "pruned after" if getattr(config, "pruned_after_fine_tuning", False) else "pruned before"


class _FrontEndDone(Exception):
    """Carries the arguments of the first block out of a forward pass."""

    def __init__(self, args: tuple, kwargs: dict):
        self.args_of_block, self.kwargs_of_block = args, kwargs


def front_end_forward(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run a model up to its first block, or up to its head if it has no blocks.

    Parameters
    ----------
    model, inputs
        As for `front_end_call`.

    Returns
    -------
    Tensor
        The input of block 0: hidden states, shape (batch, frames, hidden_size). Without blocks, the input of the head,
        which some architectures have pooled over the frames. For a CNN, `inputs` unchanged: its only front end is its
        feature extractor.
    """
    if not has_blocks(model.config):
        return inputs[model.main_input_name]
    return front_end_call(model, inputs)[0][0]


def front_end_call(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[tuple, dict]:
    """Run a model up to its first block, and return the arguments of that block.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model.
    inputs : dict of str to Tensor
        Result of `LoadedModel.prepare`.

    Returns
    -------
    args : tuple
        The hidden states, shape (batch, frames, hidden_size), and the other positional arguments.
    kwargs : dict
    """

    def stop(module, args, kwargs):
        raise _FrontEndDone(args, kwargs)

    blocks = blocks_of(model)
    after = blocks[0] if len(blocks) else model.get_submodule(architecture_of(model.config).head[0])
    handle = after.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _FrontEndDone as done:
        return done.args_of_block, done.kwargs_of_block
    finally:
        handle.remove()
    raise RuntimeError(f"the forward pass of {type(model).__name__} never reached {type(after).__name__}")


# ------------------------------------------------------------------------------------------- loading


def tiny_model(labels: list[str], sample_rate_hz: int = 16_000, pooling: str | None = None) -> LoadedModel:
    """Return a small wav2vec2 with random weights, for demonstrations and tests.

    It has all parts of a real model, with four blocks, so that all stages run in seconds on a CPU.
    """
    config = Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32, 32, 64, 64, 64),
        conv_kernel=(64, 8, 4, 4, 4),
        conv_stride=(16, 4, 4, 2, 2),
        num_feat_extract_layers=5,
        feat_extract_norm="group",
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=64,
        mask_time_prob=0.0,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        name_or_path=model_folder.TINY,
        **label_maps(labels),
    )
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=sample_rate_hz, do_normalize=True, return_attention_mask=False)
    model = AutoModelForAudioClassification.from_config(with_pooling(config, pooling))
    return LoadedModel(model, extractor, has_head=False)


def load_base_model(
    base_model: str, labels: list[str], flag: str = "--base_model", pooling: str | None = None
) -> LoadedModel:
    """Load a pre-trained encoder, in float32 on the CPU, with a new classification head for `labels`.

    Parameters
    ----------
    base_model : str
        Name on the hub, local folder, or ``tiny``.
    labels : list of str
        Labels by label id.
    flag : str
        The user's flag for the model, for messages.
    pooling : str, optional
        How the frames of a clip become one vector, one of `architectures.POOLINGS`. Default: as in the base model.

    Raises
    ------
    InputError
        If it cannot be loaded, or if weights other than the head would be newly initialised.
    UsageError
        If the architecture cannot pool in this way.
    """
    if model_folder.is_tiny(base_model):
        return tiny_model(labels, pooling=pooling)
    try:
        folder = model_folder.open_folder(*model_folder.find(base_model))
        config = _plain(with_pooling(loading.read_config(folder, **label_maps(labels)), pooling))
        loaded, names = loading.load(folder, config)
    except InputError as error:
        raise InputError(f"{flag} {error}") from error
    loaded = _base(loaded, names, f"{flag} {base_model}")
    _forget_other_labels(loaded.model, names, folder)
    return loaded


def _forget_other_labels(model: PreTrainedModel, names: loading.WeightNames, folder: model_folder.ModelFolder) -> None:
    """Initialise, in place, a classifier that was trained for as many other labels; one for these labels stays."""
    last = (architecture_of(model.config).head if has_blocks(model.config) else CNN_HEAD)[-1]
    if any(name.startswith(f"{last}.") for name in names.missing | names.mismatched):
        return
    own = loading.read_config(folder).id2label
    if own == model.config.id2label:
        return
    log.info("%s was trained for other labels, such as %s: its classifier starts anew", folder.name, printable(own[0]))
    # As transformers does with another number of labels: what stands before the last layer stays.
    for module in [each for each in model.get_submodule(last).modules() if isinstance(each, nn.Linear)]:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # transformers leaves what is loaded as it is
        model._init_weights(module)


def _base(loaded: LoadedModel, names: loading.WeightNames, what: str) -> LoadedModel:
    """Check that only the head is newly initialised, record that a clip has one label, and forget any thresholds."""
    head = head_prefixes(loaded.model)
    fresh = sorted(name for name in names.missing | names.mismatched if not name.startswith(head))
    if fresh:
        raise InputError(
            f"{what}: {len(fresh)} weights besides the classification head are missing or of "
            f"another shape: {_some(fresh)}; the weights do not belong to this config"
        )
    # transformers.pipeline chooses softmax or sigmoid by this value.
    loaded.config.problem_type = "single_label_classification"
    decision.drop(loaded.config)
    return replace(loaded, has_head=False)


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """Turn off, in place, random skipping of blocks and outputs other than the logits.

    This comes before the model is built, because Whisper's encoder reads its layerdrop only once. A pruned model must
    not skip blocks, and DDP treats the weights of skipped blocks as unused.
    """
    plain = {
        **{"layerdrop": 0.0, "encoder_layerdrop": 0.0},
        **{"output_hidden_states": False, "output_attentions": False, "return_dict": True},
    }
    for name, value in plain.items():
        if getattr(config, name, value) != value:
            setattr(config, name, value)
    _sum_as_when_made(config)
    return config


def with_pooling(config: PreTrainedConfig, pooling: str | None) -> PreTrainedConfig:
    """Return the config of a model that pools its frames in a way of `architectures.POOLINGS`; None changes nothing.

    Raises
    ------
    UsageError
        If the architecture cannot pool in this way.
    """
    if pooling is None or pooling == pooling_of(config):
        return config
    architecture = architecture_of(config)
    if not {LAYERS: architecture.can_sum_layers, ATTENTION: architecture.can_attend}.get(pooling, True):
        raise UsageError(
            f"--pooling {pooling}: {architecture.name} has a pooling of its own; give --pooling {MEAN}, or leave it out"
        )
    if architecture.can_sum_layers:
        config.use_weighted_layer_sum = pooling == LAYERS
    if attends(config.model_type) == (pooling == ATTENTION):
        return config
    model_type = plain_type(config.model_type) + (ATTENTION_SUFFIX if pooling == ATTENTION else "")
    content = {name: value for name, value in config.to_dict().items() if name not in _OF_TYPE}
    changed = own_networks.config_class(model_type).from_dict(content)
    changed.name_or_path = config.name_or_path
    return changed


# Key of a config: `apply_spec_augment` of the base model, where a training has turned it off.
BASE_MASKING = "base_apply_spec_augment"
# Keys of a config that belong to its type.
_OF_TYPE = ("model_type", "architectures", "pooling_queries")


def _sum_as_when_made(config: PreTrainedConfig) -> None:
    """Keep the order of norm and sum of layers of the transformers version that made a model; the config records it."""
    if not has_blocks(config) or not sums_layers(config):
        return
    stable = architecture_of(config).stable_norm_only and getattr(config, "do_stable_layer_norm", False)
    if not stable or getattr(config, "tie_last_hidden_states", None) is not None:
        return
    with contextlib.suppress(TypeError, InvalidVersion):  # None, or a text that is not a version
        if Version(config.transformers_version) < SUMS_BEFORE_NORM:
            config.tie_last_hidden_states = True
            log.info(
                "%s was saved by transformers %s, where a weighted sum uses the last layer after the final norm: "
                "it does the same here (tie_last_hidden_states)",
                *(config.name_or_path or "the model", config.transformers_version),
            )


def head_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the beginnings of the names of all weights that fine-tuning adds to a base model."""
    head = architecture_of(model.config).head if has_blocks(model.config) else CNN_HEAD
    return (*(f"{name}." for name in head), "layer_weights")


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of the head: those that fine-tuning adds to a base model."""
    head = head_prefixes(model)
    return [parameter for name, parameter in model.named_parameters() if name.startswith(head)]


def load_model(model_dir: Path, device: str) -> LoadedModel:
    """Load a fine-tuned model in float32 and evaluation mode.

    Parameters
    ----------
    model_dir : Path
        Run folder, model folder, or exported file; `LoadedModel.is_exported` tells.
    device : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If it cannot be loaded, or if a weight is missing, unexpected or of another shape.
    """
    if model_folder.is_exported(model_dir):
        return exported_network.load(model_dir, device)
    folder = model_folder.open_folder(*model_folder.find(model_dir))
    model_folder.check_labels(folder)
    loaded, names = loading.load(folder, _plain(loading.read_config(folder)))
    if _lacks_head(loaded.model, names):
        raise InputError(f"{folder.name} is a base model, without a head for labels: run 02_finetuning.py on it first")
    _check_whole(folder, names)
    return loaded.ready(device)


def _lacks_head(model: PreTrainedModel, names: loading.WeightNames) -> bool:
    """Return whether a folder holds no weight of the head, as that of a base model."""
    return {name for name in model.state_dict() if name.startswith(head_prefixes(model))} <= names.missing


def _check_whole(folder: model_folder.ModelFolder, names: loading.WeightNames) -> None:
    """Check that a model's folder holds all weights of the model and no others."""
    for kind in ("missing", "unexpected", "mismatched"):
        wrong = sorted(getattr(names, kind))
        if wrong:
            raise InputError(
                f"{folder.name}: {len(wrong)} {kind} weights: {_some(wrong)}; "
                "the weights do not belong to this config: run 02_finetuning.py again"
            )


def load_any_model(model: str | Path, device: str) -> LoadedModel:
    """Load a classifier as it is, or a base model with a new classification head for the labels in its config.

    The model is in float32 and evaluation mode. `LoadedModel.has_head` is False for a new head, which PyTorch's global
    generator initialises.

    Parameters
    ----------
    model : str or Path
        Run folder, model folder of either kind, name on the hub, or ``tiny``.
    device : str
        ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If it cannot be loaded, has no transformer blocks, or lacks weights other than a whole head.
    """
    if model_folder.is_tiny(model):
        return tiny_model([label for _, label in sorted(PreTrainedConfig().id2label.items())]).ready(device)
    try:
        folder = model_folder.open_folder(*model_folder.find(model))
        config = _plain(loading.read_config(folder))
        try:
            architecture_of(config)
        except InputError as error:
            raise InputError(f"{folder.name}: {error}") from error
        loaded, names = loading.load(folder, config)
    except InputError as error:
        raise InputError(f"--model_dir {error}") from error
    if _lacks_head(loaded.model, names):
        return _base(loaded, names, f"--model_dir {model}").ready(device)
    model_folder.check_labels(folder)
    _check_whole(folder, names)
    return loaded.ready(device)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


# ------------------------------------------------------------------------------- model and data agree


def check_base_matches(loaded: LoadedModel, clips: Clips) -> None:
    """Check that a model's sample rate, window and, if fixed in the network, clip length suit the clips.

    Raises
    ------
    InputError
        If they do not suit; the message names the remedy.
    """
    extractor, config = loaded.extractor, loaded.config
    if extractor.sampling_rate != clips.sample_rate_hz:
        raise InputError(
            f"sample rates differ: the model expects {extractor.sampling_rate} Hz, {clips.data_dir} has "
            f"{clips.sample_rate_hz} Hz; run 01_data_processing.py with --sample_rate {extractor.sampling_rate}"
        )
    longest_s = float("inf") if loaded.is_exported else longest_clip_seconds(extractor, config)
    if clips.clip_seconds > longest_s:
        raise InputError(
            f"the clips of {clips.data_dir} last {clips.clip_seconds:g} s and the model reads only the first "
            f"{longest_s:g} s; run 01_data_processing.py with --clip_seconds {int(longest_s)} or less"
        )

    n_samples, least_samples = round(clips.clip_seconds * clips.sample_rate_hz), shortest_clip_samples(config)
    if n_samples < least_samples:
        least_s = math.ceil(1000 * least_samples / clips.sample_rate_hz) / 1000
        raise InputError(
            f"the clips of {clips.data_dir} have {n_samples} samples ({clips.clip_seconds:.3g} s) and the model needs "
            f"{least_samples} for one frame; run 01_data_processing.py with --clip_seconds {least_s:g} or more"
        )
    if getattr(config, "clip_samples", n_samples) != n_samples:
        seconds = config.clip_samples / extractor.sampling_rate
        raise InputError(
            f"clip lengths differ: the model is made for {config.clip_samples} samples ({seconds:.9g} s), those of "
            f"{clips.data_dir} have {n_samples}; run 01_data_processing.py with --clip_seconds {seconds:.9g}"
        )


def check_matches(loaded: LoadedModel, clips: Clips) -> None:
    """Check that a fine-tuned model and the clips have the same labels, sample rate and clip length.

    Raises
    ------
    InputError
        If they differ; the message names the remedy.
    """
    check_base_matches(loaded, clips)
    trained_s = getattr(loaded.config, "clip_seconds", None)
    if trained_s is not None and trained_s != clips.clip_seconds:
        raise InputError(
            f"clip lengths differ: the model was trained on {trained_s:g} s, {clips.data_dir} has "
            f"{clips.clip_seconds:g} s; run 01_data_processing.py with --clip_seconds {trained_s:g}"
        )
    model_labels = loaded.labels
    if model_labels != clips.labels:
        only_model = [label for label in model_labels if label not in clips.labels]
        only_data = [label for label in clips.labels if label not in model_labels]
        raise InputError(
            f"labels differ: the model has {len(model_labels)}, {clips.data_dir} has {len(clips.labels)}"
            + (f"; only the model has {_some(only_model)}" if only_model else "")
            + (f"; only the data has {_some(only_data)}" if only_data else "")
            + ("; they are in another order" if not only_model and not only_data else "")
            + "; run 02_finetuning.py on this data, or give the data that the model was trained on"
        )


# ----------------------------------------------------------------------------------- pruning, saving


def check_keep(config: PreTrainedConfig, keep: list[int]) -> None:
    """Check a list of blocks to keep, in the model's own numbering.

    Raises
    ------
    UsageError
        If it is not ascending and within range, or leaves out a block whose weights the others use.
    """
    n_layers = config.num_hidden_layers
    if sorted(set(keep)) != list(keep) or any(not 0 <= layer < n_layers for layer in keep):
        raise UsageError(f"layers to keep must be ascending and from 0 to {n_layers - 1}, got {list(keep)}")
    if not keep and sums_layers(config):
        raise UsageError(
            "a model with use_weighted_layer_sum (--pooling layers) pools the outputs of its layers: keep at least one"
        )
    missing = architecture_of(config).protected - set(keep)
    if keep and missing:
        raise UsageError(
            f"layer {min(missing)} of a {config.model_type} model holds the relative positions that all other "
            f"layers use: keep it, or keep no layer at all; got {list(keep)}"
        )


def prune_model(model: PreTrainedModel, keep: list[int]) -> None:
    """Delete, in place, all transformer blocks except `keep`, and record this in the model's config.

    The parts after the blocks, such as a final layer norm, stay. ``config.kept_layers`` counts in the numbering of the
    base model, even if a pruned model is pruned again. ``config.pruned_from`` names the model before the first pruning.
    ``config.pruned_after_fine_tuning`` records when the last part was removed; `kind_of` reads it.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model.
    keep : list of int
        Blocks to keep, ascending, in the numbering of this model; an empty list leaves only the front end.

    Raises
    ------
    UsageError
        If this model cannot keep these blocks.
    """
    check_keep(model.config, keep)
    config = model.config
    numbers = kept_layers(config)
    path = architecture_of(config).blocks
    blocks = model.get_submodule(path)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(blocks[layer] for layer in keep))
    if sums_layers(config):
        # One weight for the input of the blocks, and one per block for its output.
        rows = [0, *(layer + 1 for layer in keep)]
        model.layer_weights = nn.Parameter(model.layer_weights.detach()[rows].clone())
    config.num_hidden_layers = len(keep)
    config.kept_layers = [numbers[layer] for layer in keep]
    if len(keep) < len(blocks):
        note_pruning(config)


def note_pruning(config: PreTrainedConfig) -> None:
    """Record in a model's config that a part of it is removed; see `prune_model`."""
    config.pruned_after_fine_tuning = getattr(config, "data_sha256", None) is not None
    if getattr(config, "pruned_from", None) is None:
        config.pruned_from = config.name_or_path
    if hasattr(config, "repair"):
        del config.repair  # of blocks that read other states now


def pruned_copy(loaded: LoadedModel, keep: Sequence[int], shares_weights: bool = False) -> LoadedModel:
    """Return a copy of a model with only some blocks, with its own weights or those of the original."""
    weights = [*loaded.model.parameters(), *loaded.model.buffers()] if shares_weights else []
    pruned = copy.deepcopy(loaded.model, memo={id(tensor): tensor for tensor in weights})
    prune_model(pruned, list(keep))
    return replace(loaded, model=pruned)


def freeze(model: PreTrainedModel, feature_encoder: bool, layers: list[int]) -> None:
    """Exclude parts of a model from training.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model.
    feature_encoder : bool
        Freeze the convolutions or patch embedding before the blocks.
    layers : list of int
        Blocks to freeze, in the numbering of this model.
    """
    if not feature_encoder and not layers:
        return
    architecture = architecture_of(model.config)
    parts = [model.get_submodule(f"{architecture.blocks}.{layer}") for layer in layers]
    if feature_encoder:
        if hasattr(model, "freeze_feature_encoder"):  # also stops the gradient at the input
            model.freeze_feature_encoder()
        parts += [model.get_submodule(path) for path in architecture.feature_encoder]
    for part in parts:
        part.requires_grad_(False)
        for module in part.modules():
            if type(module) is nn.BatchNorm1d:
                module.__class__ = _FrozenBatchNorm
                module.eval()


class _FrozenBatchNorm(nn.BatchNorm1d):
    """A batch norm that neither reads nor learns the statistics of a batch, in training too."""

    def train(self, mode: bool = True) -> "_FrozenBatchNorm":
        """Stay in evaluation mode."""
        return super().train(False)


def configure_for_training(
    model: PreTrainedModel, clips: Clips, augment: Sequence[str], data_sha256: str | None = None
) -> None:
    """Record in the model's config the values that later stages need; mask its input only if `augment` includes it.

    Parameters
    ----------
    model : PreTrainedModel
        An audio-classification model.
    clips : Clips
        Training clips; their length is noted as ``clip_seconds``, and `Clips.cutting` under ``clip_…``.
    augment : sequence of str
        Augmentations; without ``specaugment`` wav2vec2 and similar models do not mask latent frames either.
    data_sha256 : str, optional
        Digest of the data set, recorded under this name; the model keeps it when it is pruned or moved. Default: the
        recorded digest stays.
    """
    config = model.config
    config.clip_seconds = clips.clip_seconds
    for name, value in clips.cutting().items():
        setattr(config, f"clip_{name}", value)
    if data_sha256 is not None:
        # Training on the data that the model knew when it was pruned is healing.
        if hasattr(config, "pruned_after_fine_tuning") and getattr(config, "data_sha256", None) != data_sha256:
            config.pruned_after_fine_tuning = False
        config.data_sha256 = data_sha256
    if has_blocks(config):
        config.kept_layers = kept_layers(config)
    if hasattr(config, "mask_time_prob"):  # data2vec-audio masks without apply_spec_augment in its config
        of_base = getattr(config, BASE_MASKING, getattr(config, "apply_spec_augment", True))
        config.apply_spec_augment = of_base and "specaugment" in augment
        if config.apply_spec_augment != of_base:  # the next training may mask again
            setattr(config, BASE_MASKING, of_base)
        for name, parameter in model.named_parameters():
            if name.endswith("masked_spec_embed"):  # without masking it has no gradient; DDP would wait
                parameter.requires_grad_(config.apply_spec_augment and config.mask_time_prob > 0)
    for module in _without_gradient(model):
        module.requires_grad_(False)
    if has_blocks(config) and sums_layers(config) and final_norm_of(model) is None:
        norm = architecture_of(config).final_norm
        if norm is not None and getattr(config, "do_stable_layer_norm", True):  # the sum uses the layers before it
            model.get_submodule(norm).requires_grad_(False)


def _without_gradient(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules outside the blocks that no logit depends on; DDP would wait for their gradients."""
    if not has_blocks(model.config):
        return []
    architecture = architecture_of(model.config)
    names = [*architecture.unread]
    if not model.config.num_hidden_layers:
        names += architecture.read_by_blocks
    if architecture.upsampling is not None and sums_layers(model.config):  # the sum is of the blocks themselves
        names.append(architecture.upsampling)
    modules = dict(model.named_modules())
    return [modules[name] for name in names if name in modules]


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Save a model so that plain ``from_pretrained`` loads it; reload it and compare every weight.

    The folder also gets `classify`, which needs nothing of this project, if the model records how its training clips
    were cut; and a network that transformers lacks. The folder appears whole or not at all. The model loses its
    decision: what a stage saves is another model than the one with which the thresholds were fitted.

    Parameters
    ----------
    loaded : LoadedModel
        On any device.
    folder : Path
        Final name; must not exist.

    Raises
    ------
    RuntimeError
        If the saved model differs from the one in memory.
    """
    model = loaded.model
    if decision.drop(model.config):
        log.info("%s has no thresholds: those of the model it was made from are not its own", folder)
    partial = folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill in the middle of a write
    partial.mkdir()
    loading.quiet_transformers()
    model.save_pretrained(partial)
    loaded.extractor.save_pretrained(partial)
    # For people who receive only this folder; no stage runs code from a model folder.
    network = own_networks.file_of(model.config.model_type)
    for path in ([Path(classify.__file__)] if can_classify_files(model.config) else []) + (
        [network] if network else []
    ):
        shutil.copyfile(path, partial / path.name)
    training_history.write_history(model, partial)
    for path in partial.iterdir():  # safetensors creates files that only their owner can read
        path.chmod((partial / "config.json").stat().st_mode)
    saved, wanted = load_model(partial, "cpu").model.state_dict(), model.state_dict()
    different = [name for name, value in wanted.items() if not torch.equal(saved[name], value.detach().cpu())]
    if different or len(saved) != len(wanted):
        raise RuntimeError(f"{folder}: the saved model differs from the one in memory in {_some(different)}")
    partial.rename(folder)


def can_classify_files(config: PreTrainedConfig) -> bool:
    """Return whether a model records how files are cut into clips for it; a base model or an old model does not."""
    return getattr(config, "clip_fill", None) is not None


def log_without_classifier(config: PreTrainedConfig) -> None:
    """Log why a model folder has no ``classify.py``; nothing if it has one."""
    if not can_classify_files(config):
        log.info(
            "without classify.py: the model does not record how files are cut into clips for it (it is a base model, "
            "or an earlier version of this program trained it). A model of 02_finetuning.py records this"
        )


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model; of an exported one, as its file records it."""
    if isinstance(model, exported_network.ExportedNetwork):
        return model.exported.sizes["n_parameters"]
    return sum(parameter.numel() for parameter in model.parameters())
