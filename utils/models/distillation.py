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
from torch.utils.data import Sampler
from transformers import SequenceFeatureExtractor

from utils.core import runs
from utils.core.errors import InputError
from utils.data.clips import Clips
from utils.models import encoders, predict, training_history
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
    """

    def __init__(self, n_views: int, n_clips: int, n_classes: int):
        self.kept = np.full((n_views, n_clips, n_classes), np.nan, dtype=np.float32)

    def of_epoch(self, epoch: int) -> int:
        """Return the view that is heard in an epoch."""
        return epoch % len(self.kept)

    def recall(self, epoch: int, clip_indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return, for a batch, the teachers' answers, or else the places at which to keep them."""
        view = self.of_epoch(epoch)
        answers = self.kept[view, clip_indices]
        if np.isnan(answers).any():
            return {PLACES: torch.tensor([(view, index) for index in clip_indices])}
        return {KEPT: torch.from_numpy(answers)}

    def keep(self, places: torch.Tensor, answers: torch.Tensor) -> None:
        """Keep the answers for a batch; see `recall`."""
        view, index = places.cpu().numpy().T
        self.kept[view, index] = answers.cpu().numpy()


class RepeatingSampler(Sampler[int]):
    """The order of the clips in an epoch, which depends on the seed and the view only."""

    def __init__(self, views: Views, seed: int):
        self.views, self.seed, self.epoch = views, seed, 0

    def __len__(self) -> int:
        return self.views.kept.shape[1]

    def set_epoch(self, epoch: int) -> None:
        """Choose the view; accelerate calls this before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.views.of_epoch(self.epoch))
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
    """

    models: Sequence[LoadedModel]
    weight: float = DISTILLATION_WEIGHT
    temperature: float = TEMPERATURE
    bf16: bool = False
    n_views: int | None = None
    views: Views | None = None

    def ready(self, device: str, bf16: bool, n_clips: int) -> Teachers:
        """Move the networks, in place, to a device, set evaluation mode, and make room for what is kept."""
        views = None if self.n_views is None else Views(self.n_views, n_clips, len(self.models[0].labels))
        return replace(self, models=[loaded.ready(device) for loaded in self.models], bf16=bf16, views=views)

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
        """Return the weighted sum of the loss on the labels and the mean of `divergence`.

        The mean is over clips; with several labels a clip, over clips and labels.

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
        return (1 - self.weight) * task_loss + self.weight * mean


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
    log.info(
        "learning from %s%s: %g of the loss is the divergence from softened probabilities (temperature %g), %g the "
        "loss on the labels; train loss is the sum, val loss that on the labels",
        *(f"the mean of {len(models)} teachers, " if len(models) > 1 else "", ", ".join(map(str, args.teacher_dir))),
        *(weight, teachers.temperature, 1 - weight),
    )
    return teachers


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
