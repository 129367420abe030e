"""Run an encoder part by part: front end, one block at a time, head.

Analysis and pruning share this module. A model that is run by its parts gives the same logits as the whole model.
Blocks can be left out or get other hidden states, so this also gives the logits of every pruned model without building
it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import transformers
from transformers import PreTrainedModel

from utils.core.errors import InputError
from utils.data.clips import Clips
from utils.models import onednn
from utils.models.architectures import architecture_of, attends, blocks_of, final_norm_of, output_norm_of, sums_layers
from utils.models.encoders import front_end_call
from utils.models.loaded_model import LoadedModel

# Relative to the largest logit. Parts and model differ only by the order of summation: by 1e-6 in float32, and by
# about 2^-11 on a GPU that rounds to TF32. A norm or a sum at a wrong place changed a tenth or more.
MOST_DIFFERENCE = 2e-3
N_CLIPS_COMPARED = 2


@dataclass(frozen=True)
class State:
    """The output of one block, which is the input of the next.

    Attributes
    ----------
    hidden_states : Tensor
        Shape (batch, frames, hidden_size).
    args, kwargs
        Other arguments of every block, such as WavLM's relative positions.
    n_samples : int
        Length of the model's input.
    """

    hidden_states: torch.Tensor
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    n_samples: int = 0

    def with_hidden_states(self, hidden_states: torch.Tensor) -> "State":
        """Return this state with other hidden states, of the same number of frames."""
        return replace(self, hidden_states=hidden_states)


@dataclass(frozen=True)
class OpenBlock:
    """A block that has run up to its last linear layer.

    Attributes
    ----------
    features : Tensor
        The input of that layer: the activations of the feed-forward network, shape (batch, frames, n_units).
    residual : Tensor
        The states to which its output is added, shape (batch, frames, hidden_size).
    after : State
        The other arguments of the next block; its hidden states have no meaning.
    scale : float
        By which its output is multiplied before.
    """

    features: torch.Tensor
    residual: torch.Tensor
    after: State
    scale: float

    def closed(self, weight: torch.Tensor, bias: torch.Tensor, norm: torch.nn.Module | None) -> State:
        """Return the output that the block has with a last linear layer, and a norm after it; without gradients."""
        total = self.residual + self.scale * onednn.linear(self.features, weight, bias)
        return self.after.with_hidden_states(total if norm is None else norm(total))


class EncoderParts:
    """The parts of an audio-classification model, callable one by one.

    Parameters
    ----------
    model : PreTrainedModel
        Audio-classification model of a type in `architectures.ARCHITECTURES`, in evaluation mode.

    Attributes
    ----------
    n_layers : int
        Number of blocks.

    Raises
    ------
    InputError
        If the model has no transformer blocks, or is of a type that this project does not support.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._architecture = architecture_of(model.config)
        self._blocks = blocks_of(model)
        self._final_norm = final_norm_of(model)
        self._weighted = sums_layers(model.config)
        # With attention over frames, the head itself pools them.
        self._pooled = torch.nn.Identity() if attends(model.config.model_type) else self._architecture.pooled
        self.n_layers = len(self._blocks)
        if not self.n_layers:
            raise InputError(
                f"the model has no transformer block left (kept_layers is empty in the config of "
                f"{model.config.name_or_path or type(model).__name__}): there are no layers to analyse or to prune"
            )

    def front_end(self, inputs: dict[str, torch.Tensor]) -> State:
        """Run everything before the first block.

        Parameters
        ----------
        inputs : dict of str to Tensor
            Result of `LoadedModel.prepare`.

        Returns
        -------
        State
            The input of block 0.
        """
        (hidden_states, *args), kwargs = front_end_call(self.model, inputs)
        return State(hidden_states, tuple(args), kwargs, inputs[self.model.main_input_name].shape[-1])

    def block(self, layer: int, state: State) -> State:
        """Run one block.

        WavLM's blocks add relative positions that block 0 computes: run block 0 before any other.
        """
        output = self._blocks[layer](state.hidden_states, *state.args, **state.kwargs)
        if not isinstance(output, tuple):
            return state.with_hidden_states(output)
        hidden_states, position_bias = output
        return replace(state, hidden_states=hidden_states, kwargs={**state.kwargs, "position_bias": position_bias})

    def last_linear(self, layer: int) -> torch.nn.Linear:
        """Return the last linear layer of a block, whose output is added to the hidden states."""
        return self._blocks[layer].get_submodule(self._architecture.feed_forward[1])

    def output_norm(self, layer: int) -> torch.nn.Module | None:
        """Return the norm at the end of a block, or None."""
        return output_norm_of(self._blocks[layer], self.model.config)

    def open_block(self, layer: int, state: State) -> OpenBlock:
        """Run one block up to its last linear layer."""
        last, norm, seen = self.last_linear(layer), self.output_norm(layer), {}

        def add_nothing(features: torch.Tensor) -> torch.Tensor:
            seen["features"] = features
            return features.new_zeros(*features.shape[:-1], last.out_features)

        before = vars(last).get("forward")  # `onednn` may have replaced it, too
        last.forward = add_nothing
        hook = norm and norm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0]))
        try:
            after = self.block(layer, state)
        finally:
            del last.forward
            if before is not None:
                last.forward = before
            if hook is not None:
                hook.remove()
        residual = seen.get("residual", after.hidden_states)
        return OpenBlock(seen["features"], residual, after, self._architecture.feed_forward_scale)

    def hidden_layers(self, inputs: dict[str, torch.Tensor]) -> Iterator[State]:
        """Run all blocks; yield the input of block 0, then the output of each block (before any final norm)."""
        state = self.front_end(inputs)
        yield state
        for layer in range(self.n_layers):
            state = self.block(layer, state)
            yield state

    def logits(self, path: Sequence[State], keep: Sequence[int]) -> torch.Tensor:
        """Run all parts after the blocks: `pool`, then `head`.

        Parameters
        ----------
        path, keep
            As for `pool`.

        Returns
        -------
        Tensor
            Shape (batch, n_classes).
        """
        return self.head(self.pool(path, keep))

    def pool(self, path: Sequence[State], keep: Sequence[int]) -> torch.Tensor:
        """Run the final norm and the pooling: all parts between the last block and the head.

        If the architecture projects every frame and then takes the mean, the mean is taken first. The projection is
        linear, so the logits are the same, and many subsets need less computing.

        Parameters
        ----------
        path : sequence of State, length len(keep) + 1
            The input of the first block that was run, and the output of each block; all but the last are read only if
            the model sums its layers (``use_weighted_layer_sum``).
        keep : sequence of int
            The blocks that were run.

        Returns
        -------
        Tensor
            Shape (batch, hidden_size): the mean over all frames; for AST, over its two class tokens. If the head pools
            the frames by attention, all of them: shape (batch, frames, hidden_size).
        """
        return self.weighted(self.features(path), keep)

    def features(self, path: Iterable[State]) -> torch.Tensor:
        """Return what the parts that fine-tuning adds to a base model read: no weight of theirs has been used.

        Parameters
        ----------
        path : iterable of State
            As for `pool`; one state after another is used.

        Returns
        -------
        Tensor
            As from `pool`; if the model sums its layers, all of them: shape (batch, len(keep) + 1, hidden_size).
        """
        layers, last = [], None
        for state in path:
            if last is not None and self._weighted:
                layers.append(self._pooled(last.hidden_states))
            last = state
        hidden_states = last.hidden_states
        if not self._weighted:  # a weighted sum reads the blocks themselves
            hidden_states = self._architecture.after_blocks(self.model, hidden_states, last.n_samples)
        if self._final_norm is not None:
            hidden_states = self._final_norm(hidden_states)
        pooled = self._pooled(hidden_states)
        return torch.stack([*layers, pooled], dim=1) if self._weighted else pooled

    def weighted(self, features: torch.Tensor, keep: Sequence[int]) -> torch.Tensor:
        """Return the input of `head` from `features`: their weighted sum, if the model sums its layers.

        The layers of removed blocks have no part in it: the weights of the others keep their ratios, and sum to 1.
        """
        if not self._weighted:
            return features
        return weighted_sum(features, self.model.layer_weights[[0, *(layer + 1 for layer in keep)]])

    def head(self, pooled: torch.Tensor) -> torch.Tensor:
        """Turn what `pool` returns into logits, shape (batch, n_classes)."""
        return through_head(self.model, self._architecture.head, pooled)


def weighted_sum(layers: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of layers, shape (batch, n, …, hidden_size), with the softmax of `weights`, shape (n,)."""
    return torch.einsum("bn...,n->b...", layers, weights.softmax(dim=-1))


def through_head(owner: torch.nn.Module, names: Iterable[str], pooled: torch.Tensor) -> torch.Tensor:
    """Return what the modules of a head, by their names in `owner`, make of pooled states: logits."""
    for name in names:
        pooled = owner.get_submodule(name)(pooled)
    return pooled[:, 0] if pooled.ndim == 3 else pooled  # attention over frames leaves one of them


@torch.inference_mode()
def check_parts(loaded: LoadedModel, clips: Clips) -> None:
    """Check on a batch that a model gives the same logits by its parts as in one piece.

    Analysis and pruning call this before they start. The places of norms and sums are written in this package; another
    version of transformers, or an unknown option, may use other places.

    Parameters
    ----------
    loaded, clips
        As for `predict.predict`; the first of the clips are run, in float32.

    Raises
    ------
    InputError
        If the logits differ by more than `MOST_DIFFERENCE`, or the model has no blocks.
    """
    parts = EncoderParts(loaded.model)
    audio = [clips.audio(index) for index in range(min(N_CLIPS_COMPARED, len(clips)))]
    inputs = loaded.prepare(audio, clips.sample_rate_hz)
    whole = loaded.model(**inputs).logits
    if not whole.isfinite().all():
        return  # broken weights; `predict` later names the clip
    found = parts.logits(list(parts.hidden_layers(inputs)), range(parts.n_layers))
    difference, largest = float((found - whole).abs().max()), float(whole.abs().max())
    if not difference <= MOST_DIFFERENCE * largest:
        config = loaded.config
        options = [f"{name} {value}" for name, value in config.to_diff_dict().items() if isinstance(value, bool)]
        raise InputError(
            f"{config.name_or_path or 'the model'}, run block by block, gives other logits than in one piece: they "
            f"differ by up to {difference:.2g}; the largest is {largest:.2g}, so at most "
            f"{MOST_DIFFERENCE * largest:.1g} was expected. This project does not support all that a "
            f"{config.model_type!r} model with {', '.join(options) or 'these options'} does in transformers "
            f"{transformers.__version__}, so results for the blocks would be wrong. 03_model_validation.py scores "
            "the whole model; for this stage use a model without these options"
        )


def valid_frames(loaded: LoadedModel, n_samples: int, n_frames: int) -> torch.Tensor:
    """Return which hidden frames cover the clip, and not the silent padding of a fixed window.

    Parameters
    ----------
    loaded : LoadedModel
    n_samples : int
        Length of a clip.
    n_frames : int
        Number of frames (AST: tokens) of a hidden state.

    Returns
    -------
    Tensor of bool, shape (n_frames,)
        AST's two class tokens are not frames. Its patches overlap; those that begin within the clip are valid.
    """
    architecture = architecture_of(loaded.config)
    return torch.tensor(architecture.hears(loaded.model, loaded.extractor, n_samples, n_frames), device=loaded.device)
