"""Knowledge distillation: a student also learns from the probabilities of trained models, its teachers.

The loss is (1 - w) · task loss + w · T² · KL(teacher ‖ student) (Hinton et al. 2015, arXiv 1503.02531, §2). Both
distributions of the divergence are softened: logits are divided by the temperature T. The factor T² keeps the size of
the gradient. With several labels a clip, each label is a distribution over presence and absence. Several teachers are
one: the mean of their softened probabilities.

A teacher hears the same sound as the student, with the same augmentation and mixup. SpecAugment masks only the
student's input, so the student learns to answer from less. Where a teacher needs most of the time, its answers can be
kept: the batches then repeat after some epochs (`Views`).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor

from utils.core import runs
from utils.core.errors import InputError
from utils.data.clips import Clips
from utils.models import encoders, predict, training_history
from utils.models.architectures import blocks_of, has_blocks, plain_type
from utils.models.loaded_model import LoadedModel
from utils.models.training_arguments import DISTILLATION_WEIGHT, TEMPERATURE

log = logging.getLogger(__name__)

# Names in a batch: all that is for the teachers, their inputs, their answers where they are kept, and the place to keep
# them: view and clip.
PREFIX = "teacher_"
INPUT_PREFIX, KEPT, PLACES = f"{PREFIX}input_", f"{PREFIX}probabilities", f"{PREFIX}places"


class Views:
    """Answers of the teachers that are kept in memory, where the augmentation of all batches repeats after some epochs.

    A clip is always mixed with the same clips in a view, so view and clip identify its sound. Nothing is written to
    disk: a resumed run asks the teachers again, with the same result.

    Parameters
    ----------
    n_views, n_clips, n_classes : int
        Epochs after which all repeats, training clips, and labels.

    Attributes
    ----------
    epoch : int
        The training sets it before each epoch; order, augmentation and answers all follow from it.
    """

    def __init__(self, n_views: int, n_clips: int, n_classes: int):
        self.epoch = 0
        self.kept = np.full((n_views, n_clips, n_classes), np.nan, dtype=np.float32)

    @property
    def view(self) -> int:
        """The number of the view that is heard in this epoch."""
        return self.epoch % len(self.kept)

    def recall(self, clip_indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return, for a batch, the teachers' answers, or else the places at which to keep them."""
        answers = self.kept[self.view, clip_indices]
        if np.isnan(answers).any():
            return {PLACES: torch.tensor([(self.view, index) for index in clip_indices])}
        return {KEPT: torch.from_numpy(answers)}

    def keep(self, places: torch.Tensor, answers: torch.Tensor) -> None:
        """Keep the answers for a batch; see `recall`."""
        view, index = places.cpu().numpy().T
        self.kept[view, index] = answers.cpu().numpy()


class HiddenMatch:
    """The distance between the hidden states of a student and its teacher, block by block, in the last batch of both.

    A linear projection for each block of the student is fitted along. It is a part of the student, so that optimizer,
    checkpoints and DistributedDataParallel include it, until `remove`. It begins as the identity where the sizes agree.

    Parameters
    ----------
    student, teacher : PreTrainedModel
        With transformer blocks; both have the same number of frames.
    """

    NAME = "teacher_projections"

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel):
        self.student, self.found, self.handles = student, {}, []
        size, size_of_teacher = student.config.hidden_size, teacher.config.hidden_size
        blocks, blocks_of_teacher = blocks_of(student), blocks_of(teacher)
        self.pairs = list(enumerate(matched_blocks(student.config, teacher.config)))
        for own, other in self.pairs:
            self._watch(blocks[own], ("student", own))
            self._watch(blocks_of_teacher[other], ("teacher", other))
        projections = nn.ModuleList(nn.Linear(size, size_of_teacher) for _ in self.pairs)
        if size == size_of_teacher:
            for projection in projections:
                nn.init.eye_(projection.weight)
                nn.init.zeros_(projection.bias)
        student.add_module(self.NAME, projections.to(student.device))

    def _watch(self, block: nn.Module, key: tuple[str, int]) -> None:
        def keep(module, args, output):
            self.found[key] = output[0] if isinstance(output, tuple) else output

        self.handles.append(block.register_forward_hook(keep))

    def distances(self) -> torch.Tensor:
        """Return, for each clip, the mean over the blocks of the squared error, as a share of the teacher's square."""
        shares = []
        for projection, (own, other) in zip(getattr(self.student, self.NAME), self.pairs, strict=True):
            wanted = self.found["teacher", other].float()
            error = projection(self.found["student", own].float()) - wanted
            shares.append(error.square().mean(dim=(1, 2)) / wanted.square().mean(dim=(1, 2)))
        return torch.stack(shares).mean(dim=0)

    def remove(self) -> None:
        """Take the projections out of the student, and watch no block any more."""
        for handle in self.handles:
            handle.remove()
        delattr(self.student, self.NAME)


def matched_blocks(student: PreTrainedConfig, teacher: PreTrainedConfig) -> list[int]:
    """Return, for each block of a student, the block of its teacher whose output it should give.

    For a pruned copy of the teacher this is the block before its next kept block, and the last one at its end: its next
    block then reads what it read in the teacher. For another student, the blocks are spread evenly. A student of the
    teacher's type and hidden size that has some of its blocks, by their numbers, counts as a pruned copy.
    """
    own, whole = encoders.kept_layers(student), encoders.kept_layers(teacher)
    kinds = [(plain_type(config.model_type), config.hidden_size) for config in (student, teacher)]
    if kinds[0] == kinds[1] and {*own} <= {*whole}:
        return [whole.index(layer) - 1 for layer in own[1:]] + [len(whole) - 1]
    return [round((block + 1) * len(whole) / len(own)) - 1 for block in range(len(own))]


class RepeatingSampler(Sampler[int]):
    """The order of the clips in an epoch, which depends on the seed and the view only."""

    def __init__(self, views: Views, seed: int):
        self.views, self.seed = views, seed

    def __len__(self) -> int:
        return self.views.kept.shape[1]

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.views.view)
        yield from torch.randperm(len(self), generator=generator).tolist()


@dataclass(frozen=True)
class Teachers:
    """The models from which a student learns; none of their weights changes.

    Attributes
    ----------
    models : sequence of LoadedModel
        One or several classifiers with the same labels, in evaluation mode; all of them multi-label, or none.
    weight : float
        Share of the divergence in the loss; the task loss has the rest.
    temperature : float
        Divisor of the logits of teachers and student.
    bf16 : bool
        Compute matrix products of the teachers in bfloat16.
    n_views : int, optional
        Epochs after which batches and augmentation repeat. Default: they never repeat.
    views : Views, optional
        The answers that are kept, if batches repeat.
    hidden_weight : float
        Weight of the distance between hidden states; 0 compares none.
    match : HiddenMatch, optional
        That distance, if it has a weight.
    """

    models: Sequence[LoadedModel]
    weight: float = DISTILLATION_WEIGHT
    temperature: float = TEMPERATURE
    bf16: bool = False
    n_views: int | None = None
    views: Views | None = None
    hidden_weight: float = 0.0
    match: HiddenMatch | None = None

    def ready(self, student: PreTrainedModel, device: str, bf16: bool, n_clips: int) -> Teachers:
        """Move the networks, in place, to a device, set evaluation mode, and prepare what is kept and compared."""
        views = None if self.n_views is None else Views(self.n_views, n_clips, len(self.models[0].labels))
        models = [loaded.ready(device) for loaded in self.models]
        match = HiddenMatch(student, models[0].model) if self.hidden_weight else None
        return replace(self, models=models, bf16=bf16, views=views, match=match)

    @property
    def is_multi_label(self) -> bool:
        """Whether the teachers answer each label for itself."""
        return self.models[0].is_multi_label

    @property
    def hearings(self) -> dict[str, tuple[SequenceFeatureExtractor, str]]:
        """Feature extractor and main input name, by the name in a batch: one for all teachers that share them."""
        return {f"{INPUT_PREFIX}{i}": hearing for i, hearing in enumerate(self._distinct().values())}

    def _distinct(self) -> dict[tuple[str, str], tuple[SequenceFeatureExtractor, str]]:
        return {_hearing(loaded): (loaded.extractor, loaded.model.main_input_name) for loaded in self.models}

    @torch.no_grad()
    def probabilities(self, heard: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean of the teachers' softened probabilities, float32 of shape (batch, n_classes).

        Parameters
        ----------
        heard : mapping of str to Tensor
            Inputs by the names of `hearings`, and what `Views.recall` returned.
        """
        if KEPT in heard:
            return heard[KEPT]
        number_of = {hearing: i for i, hearing in enumerate(self._distinct())}
        total = 0.0
        for loaded in self.models:
            features = heard[f"{INPUT_PREFIX}{number_of[_hearing(loaded)]}"]
            # The generators of the student must not depend on how often a teacher is run.
            devices = [features.device] if features.is_cuda else []
            with (
                torch.random.fork_rng(devices),
                torch.autocast(features.device.type, torch.bfloat16, enabled=self.bf16),
            ):
                logits = loaded.model(**{loaded.model.main_input_name: features}).logits
            total = total + self.soften(logits)
        answers = total / len(self.models)
        if PLACES in heard:
            self.views.keep(heard[PLACES], answers)
        return answers

    def answers(self, clips: Clips, batch_size: int) -> torch.Tensor:
        """Return the softened probabilities for clips as they are, shape (n_clips, n_classes), on the device."""
        logits = (torch.from_numpy(predict.predict(loaded, clips, batch_size)) for loaded in self.models)
        answers = sum(self.soften(own) for own in logits) / len(self.models)
        return answers.to(self.models[0].device)

    def soften(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the softened probabilities of logits, shape (batch, n_classes)."""
        softened = logits.float() / self.temperature
        return softened.sigmoid() if self.is_multi_label else softened.softmax(dim=1)

    def divergence(self, logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Return T² times the Kullback-Leibler divergence of a student from its teachers, for every element.

        Parameters
        ----------
        logits : Tensor, shape (batch, n_classes)
            Of the student.
        probabilities : Tensor, shape (batch, n_classes)
            From `probabilities`.

        Returns
        -------
        Tensor, shape (batch, n_classes)
            With one label a clip, the sum of a row is the divergence of a clip. With several labels, an element is the
            divergence of a label.
        """
        softened = logits.float() / self.temperature
        if self.is_multi_label:
            found = F.kl_div(F.logsigmoid(softened), probabilities, reduction="none")
            found = found + F.kl_div(F.logsigmoid(-softened), 1 - probabilities, reduction="none")
        else:
            found = F.kl_div(softened.log_softmax(dim=1), probabilities, reduction="none")
        return self.temperature**2 * found

    def loss(
        self, task_loss: torch.Tensor, logits: torch.Tensor, probabilities: torch.Tensor, n_items: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of the loss on the labels and the mean of `divergence`, plus that of hidden states.

        The mean is over clips; with several labels a clip, over clips and labels. Hidden states are those of the last
        batch of student and teacher.

        Parameters
        ----------
        task_loss : Tensor
            The loss on the labels, divided by the same number.
        logits, probabilities : Tensor
            As for `divergence`.
        n_items : Tensor
            Number of elements, clips times labels, in all batches of an optimizer step and on all devices.
        """
        per_clip = 1 if self.is_multi_label else logits.shape[1]
        mean = self.divergence(logits, probabilities).sum() * per_clip / n_items
        total = (1 - self.weight) * task_loss + self.weight * mean
        if self.match is not None:
            total = total + self.hidden_weight * self.match.distances().sum() * logits.shape[1] / n_items
        return total


def _hearing(loaded: LoadedModel) -> tuple[str, str]:
    """Return the same text for models whose input is computed in the same way."""
    return loaded.extractor.to_json_string(), loaded.model.main_input_name


def load_teachers(
    args: argparse.Namespace,
    student: LoadedModel,
    train_clips: Clips,
    data: runs.Input,
    later: Mapping[str, Sequence[str]],
) -> Teachers | None:
    """Load the models of ``--teacher_dir``; None without the flag. The student's training history gains theirs.

    Parameters
    ----------
    args : argparse.Namespace
        With the flags of `training_arguments.add_teacher_arguments`.
    student : LoadedModel
        Its config says whether a clip can have several labels.
    train_clips : Clips
        The clips that the teachers hear.
    data : Input
        The processed data set.
    later : mapping of str to sequence of str
        Ids of the recordings of ``val`` and ``test``.

    Raises
    ------
    InputError
        If a teacher cannot be loaded, or does not suit the clips or the student.
    """
    if not args.teacher_dir:
        return None
    models = []
    for folder in args.teacher_dir:
        models.append(_load_teacher(folder, student, train_clips))
        known = training_history.warn_of_known_recordings(models[-1].model, f"the teacher {folder}", data, later)
        if any(n > 0 for n in known.values()):
            log.warning(
                "a student learns from %s what it knows of these recordings: its scores, too, are too high", folder
            )
        training_history.note_teacher(student.model, models[-1].model)
    weight = DISTILLATION_WEIGHT if args.distillation_weight is None else args.distillation_weight
    temperature = TEMPERATURE if args.temperature is None else args.temperature
    teachers = Teachers(models, weight, temperature, n_views=args.teacher_views)
    if getattr(args, "hidden_weight", None) is not None:
        _check_hidden(student, models[0], train_clips)
        teachers = replace(teachers, hidden_weight=args.hidden_weight)
        blocks = matched_blocks(student.config, models[0].config)
        log.info("hidden states: the student's blocks are compared with the teacher's blocks %s", blocks)
    log.info(
        "learning from %s%s: %g of the loss is the divergence from softened probabilities (temperature %g), %g the "
        "loss on the labels; train loss is the sum, val loss that on the labels",
        *(f"the mean of {len(models)} teachers, " if len(models) > 1 else "", ", ".join(map(str, args.teacher_dir))),
        *(weight, teachers.temperature, 1 - weight),
    )
    return teachers


def _check_hidden(student: LoadedModel, teacher: LoadedModel, clips: Clips) -> None:
    """Check that both models have blocks, with the same number of frames for a clip."""
    n_frames = []
    for who, loaded in (("student", student), ("teacher", teacher)):
        if not has_blocks(loaded.config) or not loaded.config.num_hidden_layers:
            raise InputError(
                f"--hidden_weight: the {who} has no transformer blocks, so there are no hidden states to compare; "
                "leave it out"
            )
        with torch.no_grad():
            inputs = loaded.prepare([clips.audio(0)], clips.sample_rate_hz)
            n_frames.append(encoders.front_end_forward(loaded.model.eval(), inputs).shape[1])
    if n_frames[0] != n_frames[1]:
        raise InputError(
            f"--hidden_weight compares frame by frame: the student has {n_frames[0]} frames for a clip and the teacher "
            f"{n_frames[1]}; leave it out, or take a teacher with the same front end (and the same --encoder_window)"
        )


def _load_teacher(folder: Path, student: LoadedModel, train_clips: Clips) -> LoadedModel:
    try:
        teacher = encoders.load_model(folder, "cpu")
        encoders.check_matches(teacher, train_clips)
    except InputError as error:
        raise InputError(f"--teacher_dir {folder}: {error}") from error
    if teacher.is_multi_label != student.is_multi_label:
        kinds = [f"--problem_type {('single_label', 'multi_label')[x.is_multi_label]}" for x in (teacher, student)]
        raise InputError(
            f"--teacher_dir {folder}: the teacher was trained with {kinds[0]}, the student is trained with {kinds[1]}: "
            f"their probabilities cannot be compared; give {kinds[0]}, or another teacher"
        )
    return teacher
