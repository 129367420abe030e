"""Fine-tuning with the Hugging Face Trainer: collator, loss, early stopping, resume, curves.

Stages 02 and 06 use this module. A resumed run ends with the same weights, bit for bit, as an uninterrupted one,
because: the order of clips and every augmentation depend only on (seed, epoch); the Trainer restores its random
generators; early stopping is read from the log history; and a run only stops where the Trainer could have stopped by
itself.
"""

import argparse
import contextlib
import dataclasses
import logging
import shutil
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import Sampler
from transformers import PreTrainedModel, SequenceFeatureExtractor, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, TrainerState

from utils.core import names, runs
from utils.core.errors import InputError, Interrupted, UsageError
from utils.core.files import BROKEN, read_json, write_text
from utils.core.workers import available_cpus
from utils.data import recordings_table, unlabelled
from utils.data.clips import Clips, read_clips
from utils.figures import plots
from utils.models import distillation, encoders, frozen_encoder, loading, memory, training_history
from utils.models.augmentation import UNKNOWN, augment_audio, batch_generator, mask_spectrogram
from utils.models.loaded_model import MULTI_LABEL, LoadedModel, prepare
from utils.models.start_line import log_start, majority
from utils.models.training_arguments import (
    CHECKPOINTS_NAME,
    MODEL_NAME,
    ONE_LABEL,
    SEVERAL_LABELS,
    TENSORBOARD_NAME,
)
from utils.scores import multi_label
from utils.scores.evaluation import macro_f1

log = logging.getLogger(__name__)

CURVE_COLUMNS = ["epoch", "step", "train_loss", "eval_loss", "eval_accuracy", "eval_macro_f1", "learning_rate"]
# The score on val that chooses the checkpoint: with one label a clip, and with several.
CHOOSING = {"eval_macro_f1": "macro F1", "eval_macro_average_precision": "macro average precision"}


@dataclass(frozen=True)
class TrainingSettings:
    """Hyper-parameters; every field has a flag of the same name (`training_arguments.add_arguments`)."""

    seed: int
    num_train_epochs: int
    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    head_learning_rate: float | None
    weight_decay: float
    warmup_ratio: float
    label_smoothing_factor: float
    class_weights: str
    augment: tuple[str, ...]
    early_stopping_patience: int
    mixed_precision: str
    gradient_checkpointing: bool
    dataloader_num_workers: int | None


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Treat numbers below 1.2e-38 as zero, on this thread and on threads of PyTorch that start within the block.

    The optimizer's momentum of a weight without gradient decays to such numbers, and some processors compute with them
    many times more slowly. PyTorch's threads start with the first shared work.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def curves_fail_in_silence() -> Iterator[None]:
    """Print no traceback if the thread that writes TensorBoard's curves loses its file or the disk is full.

    The next write of this stage raises the same error, which is then reported.
    """
    print_traceback = threading.excepthook
    threading.excepthook = lambda args: isinstance(args.exc_value, OSError) or print_traceback(args)
    try:
        yield
    finally:
        threading.excepthook = print_traceback


@denormals_flushed()
@curves_fail_in_silence()
def train_in_run_folder(
    run: runs.Run,
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    build: Callable[[Clips], LoadedModel],
) -> None:
    """Train a classifier on the clips of ``data_dir``; stages 02 and 06 share this.

    Parameters
    ----------
    run : runs.Run
        From `training_arguments.open_run_folder`.
    args : argparse.Namespace
        With the flags of `cli.add_data_arguments`, `cli.add_common_arguments` and those of `training_arguments`;
        ``augment`` is the result of `training_arguments.augmentations`.
    inputs : dict of str to Input
        Inputs of the stage, with ``data_dir`` among them.
    build : callable
        Takes the training clips; returns the model, on the CPU. The seed is set before it.
    """
    device = run.choose_device(args.device)
    train_clips, val_clips = (
        read_clips(args.data_dir, split, args.max_clips_per_class, args.seed, args.fold) for split in ("train", "val")
    )
    train_clips, val_clips = clips_to_train_on(args.problem_type, train_clips, val_clips)
    runs.seed_everything(args.seed)
    loaded = build(train_clips)
    model = loaded.model
    if train_clips.is_annotated or args.problem_type == SEVERAL_LABELS:
        model.config.problem_type = MULTI_LABEL
    data = inputs["data_dir"]
    name = inputs["base_model"].path if "base_model" in inputs else "from scratch"
    later = {"val": val_clips.table["recording_id"]}
    later["test"] = recordings_table.recordings_of_split(args.data_dir, "test", args.fold)
    training_history.warn_of_known_recordings(model, name, data, later)
    teachers = distillation.load_teachers(args, loaded, train_clips, data, later)
    encoders.configure_for_training(model, train_clips, args.augment, data.sha256)
    dataset = train_clips
    if args.unlabelled_dir is not None:
        extra = unlabelled.read_unlabelled(args.unlabelled_dir, train_clips)
        dataset = unlabelled.WithUnlabelled(train_clips, extra)
        training_history.note_training(model, inputs["unlabelled_dir"].sha256, extra, extra.only(range(0)))
    training_history.note_training(model, data.sha256, train_clips, val_clips)
    log_start(args.device, device, {name: model}, {"train": train_clips, "val": val_clips})
    settings = TrainingSettings(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainingSettings)}
    )
    # The Trainer moves the network: each process has its own device.
    loaded, frozen = dataclasses.replace(loaded, device=device), None
    if getattr(args, "freeze_encoder", None):
        with run.timed("features"):
            digests = {"model": inputs["base_model"].sha256, "data": data.sha256}
            bf16 = uses_bf16(settings.mixed_precision, device)
            frozen = frozen_encoder.compute(
                *(loaded.ready(device), {"train": train_clips, "val": val_clips}, settings.per_device_eval_batch_size),
                *(run, digests, bf16),
            )
    with run.timed("training"):
        train(loaded, train_clips, val_clips, settings, run, args.resume == "auto", teachers, dataset, frozen)


def clips_to_train_on(problem_type: str | None, train_clips: Clips, val_clips: Clips) -> tuple[Clips, Clips]:
    """Return the clips for ``--problem_type``: with one label each, those of silence are left out.

    Raises
    ------
    InputError
        If a split of clips with several labels has no label.
    """
    if problem_type == ONE_LABEL:
        return train_clips.with_one_label(), val_clips.with_one_label()
    for split, clips in (("train", train_clips), ("val", val_clips)):
        if not clips.targets.any():
            raise InputError(
                f"all {len(clips)} clips of {split} in {clips.data_dir} are silence, so there is no label to learn or "
                "to score; run 01_data_processing.py with tables that name labels there, or with other fractions"
            )
    return train_clips, val_clips


def train(
    loaded: LoadedModel,
    train_clips: Clips,
    val_clips: Clips,
    settings: TrainingSettings,
    run: runs.Run,
    resume: bool,
    teachers: distillation.Teachers | None = None,
    dataset: unlabelled.WithUnlabelled | Clips | None = None,
    frozen: frozen_encoder.FrozenEncoder | None = None,
) -> None:
    """Train a classifier and save the best checkpoint in ``model/`` of the run folder.

    The best has the highest val macro F1; with several labels a clip, the highest val macro average precision.

    Parameters
    ----------
    loaded : LoadedModel
        Its network is trained in place.
    train_clips, val_clips : Clips
        Clips for training, and clips for choosing the checkpoint.
    settings : TrainingSettings
        Hyper-parameters.
    run : runs.Run
        Open run folder; opened with ``defer_signals``.
    resume : bool
        Continue from the last whole checkpoint in the run folder, if there is one.
    teachers : Teachers, optional
        Models from which it learns too.
    dataset : WithUnlabelled, optional
        The training clips, with others that only the teachers tell the student about. Default: the training clips.
    frozen : FrozenEncoder, optional
        Train only its head, on its features, with the head's learning rate; teachers then hear the clips once, as they
        are.

    Raises
    ------
    Interrupted
        If a signal came; a checkpoint has been saved.
    InputError
        If the loss becomes NaN or infinite.
    UsageError
        If gradient checkpointing is requested and the model does not support it, or hidden states are compared in one
        process with several GPUs.
    """
    model = loaded.model
    if settings.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(
            f"--gradient_checkpointing: a {model.config.model_type} model does not support it; leave it out"
        )
    loading.quiet_transformers()  # `tiny` and a CNN were not loaded
    checkpoints = run.output_dir / CHECKPOINTS_NAME
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    last = _last_whole_checkpoint(checkpoints)
    if last is not None:
        log.info("continuing from %s", last)
    several = loaded.is_multi_label
    if frozen is not None:
        rate = settings.head_learning_rate or settings.learning_rate
        settings = dataclasses.replace(settings, learning_rate=rate, head_learning_rate=None)
    arguments = _trainer_arguments(settings, checkpoints, loaded.device, several)
    dataset = train_clips if dataset is None else dataset
    if teachers is not None:
        if teachers.hidden_weight and arguments.n_gpu > 1:  # its replicas would overwrite each other's states
            raise UsageError(
                f"--hidden_weight needs a process for each GPU, and this one has {arguments.n_gpu}: start the stage "
                "with torchrun, or show it one GPU by CUDA_VISIBLE_DEVICES"
            )
        teachers = teachers.ready(model, str(arguments.device), arguments.bf16, len(dataset))
        how = {"weight": teachers.weight, "temperature": teachers.temperature, "n_views": teachers.n_views}
        how["hidden_weight"] = teachers.hidden_weight
        run.metrics["distillation"] = {"n_teachers": len(teachers.models), **how}
    if frozen is not None:
        answers = teachers and teachers.answers(train_clips, settings.per_device_eval_batch_size).cpu()
        collator = FeatureCollator(len(train_clips.labels), several, answers)
    else:
        collator = Collator(
            *(loaded.extractor, model.main_input_name, train_clips, settings.augment, settings.seed, several),
            *((teachers.hearings, teachers.views) if teachers else ()),
        )
    network, train_dataset, eval_dataset = frozen or (model, dataset, val_clips)
    trainer = ClassifierTrainer(
        model=network,
        head_learning_rate=settings.head_learning_rate,
        teachers=teachers,
        args=arguments,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_loss_func=loss_of(loaded, train_clips, settings, skips_unknown=dataset is not train_clips),
        compute_metrics=lambda found: val_scores(found.label_ids, found.predictions, several),
        callbacks=[Steering(run, collator, settings.early_stopping_patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if runs.is_first_process():
        from torch.utils.tensorboard import SummaryWriter

        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(run.output_dir / TENSORBOARD_NAME))))

    _train_from(last, trainer, settings.early_stopping_patience)
    if teachers is not None and teachers.match is not None:
        teachers.match.remove()
    trainer.accelerator.wait_for_everyone()
    # A CNN is trained from random weights as a whole.
    _leave_results(trainer, loaded, run, val_clips, frozen is None and model.config.num_hidden_layers > 0)
    trainer.accelerator.wait_for_everyone()


def _train_from(last: Path | None, trainer: "ClassifierTrainer", patience: int) -> None:
    """Train from a checkpoint, or from the beginning; end with the best model."""
    state = _read_state(last) if last else None
    if state and _epochs_without_gain(state["log_history"]) >= patience:
        # If a kill came after the last checkpoint, training is over and only the best model must be saved.
        trainer.state.log_history = state["log_history"]
        trainer.state.best_model_checkpoint = state["best_model_checkpoint"]
        trainer._load_best_model()
        return
    model, device = trainer.model, "cpu" if trainer.args.use_cpu else "cuda"
    before, batch_size = memory.used_bytes(device), trainer.args.per_device_train_batch_size

    def need() -> str:
        model.zero_grad(set_to_none=True)
        batch = trainer.data_collator([trainer.train_dataset[0]])
        clip = {model.main_input_name: batch[model.main_input_name].to(device)}
        n_bytes = memory.training_bytes(model.train(), clip, batch_size, before)
        return (
            f"training in batches of {batch_size} needs about {memory.more(n_bytes)}; give the job that much, "
            "a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, or "
            "--gradient_checkpointing, and run it again"
        )

    memory.advised(
        lambda: trainer.train(resume_from_checkpoint=str(last) if last else None),
        *(need, lambda: before + memory.adam_bytes(model)),
    )


def _leave_results(
    trainer: "ClassifierTrainer", loaded: LoadedModel, run: runs.Run, val_clips: Clips, head_could_be_first: bool
) -> None:
    """Write the curves; unless a signal has ended the training, draw them and save the best model.

    Raises
    ------
    Interrupted
        If a signal came.
    """
    writes = runs.is_first_process()
    curves = training_curves(trainer.state.log_history)
    if writes:
        write_text(run.output_dir / "metrics.csv", curves.to_csv(index=False))
    if run.stop_signal is not None:
        raise Interrupted(
            f"stopped by {run.stop_signal} after step {trainer.state.global_step} of {trainer.state.max_steps}, "
            "a checkpoint is saved: run the same command again to continue"
        )
    choosing = _choosing(curves)
    best = curves.loc[curves[choosing].idxmax()]
    run.metrics.update({"n_epochs": len(curves), "best_epoch": float(best["epoch"]), "bf16": trainer.args.bf16})
    run.metrics.update({name: float(best[name]) for name in ("eval_loss", "eval_accuracy", choosing)})
    n_clips, n_groups = len(val_clips.table), int(val_clips.table["group"].nunique())
    run.metrics |= {"kept_together": val_clips.kept_together, "n_val_clips": n_clips, "n_val_groups": n_groups}
    log.info(
        "best epoch %g: val accuracy %.3f, %s %.3f",
        *(best["epoch"], best["eval_accuracy"], CHOOSING[choosing], best[choosing]),
    )
    if not loaded.is_multi_label and best["eval_accuracy"] <= (level := majority(val_clips.table["label_id"])):
        log.warning(
            "the model has learned nothing that helps on val: always naming the most frequent label would have an "
            "accuracy of %.3f; try more epochs or another --learning_rate%s",
            *(level, ", or train the head first with --freeze_encoder" if head_could_be_first else ""),
        )
    if writes:
        of_val = {"val": (n_clips, n_groups)}
        title = plots.caption(names.of_folder(run.output_dir), val_clips.data_dir, of_val)
        plots.training_curves(curves, run.output_dir / "training_curves", title)
        shutil.rmtree(run.output_dir / MODEL_NAME, ignore_errors=True)
        encoders.save_model(loaded, run.output_dir / MODEL_NAME)  # the Trainer has trained it in place
        # Optimizer states are three times as large as the model, and a finished run does not need them.
        shutil.rmtree(run.output_dir / CHECKPOINTS_NAME)


class ClassifierTrainer(Trainer):
    """A Trainer that gathers only logits, can give the head its own learning rate, and can learn from teachers.

    Teachers are neither trained nor saved, and DistributedDataParallel does not wrap them.

    Parameters
    ----------
    head_learning_rate : float, optional
        Peak learning rate of the head; it rises and falls with the encoder's. Default: the encoder's.
    teachers : Teachers, optional
        On the device of the training.
    **kwargs
        Arguments of the Trainer.
    """

    def __init__(
        self,
        *,
        head_learning_rate: float | None = None,
        teachers: distillation.Teachers | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.head_learning_rate = head_learning_rate
        self.teachers = teachers

    def _get_train_sampler(self, *args) -> Sampler | None:
        if self.teachers is None or self.teachers.views is None:
            return super()._get_train_sampler(*args)
        return distillation.RepeatingSampler(self.teachers.views, self.args.data_seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """Return the batches of an optimizer step, and the number of elements of their labels on all devices.

        With teachers, unknown labels count too: the divergence from the teachers includes them.
        """
        batches, n_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.teachers is not None:
            n_items = torch.tensor(sum(batch["labels"].numel() for batch in batches), device=device)
            if self.args.world_size > 1:
                n_items = self.accelerator.gather(n_items).sum()
        return batches, n_items

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict, return_outputs: bool = False, **kwargs
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and, of all outputs of a model, only the logits."""
        heard = {name: inputs.pop(name) for name in list(inputs) if name.startswith(distillation.PREFIX)}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.teachers is not None and model.training:
            probabilities = self.teachers.probabilities(heard)
            # The Trainer multiplies its loss by this: DistributedDataParallel takes the mean over the processes.
            n_devices = self.accelerator.num_processes if self.args.n_gpu <= 1 else self.args.n_gpu
            n_items = kwargs["num_items_in_batch"] / n_devices
            loss = self.teachers.loss(loss, outputs["logits"], probabilities, n_items)
        return (loss, {"logits": outputs["logits"]}) if return_outputs else loss

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Return the Trainer's optimizer; the head's parameters are in their own groups if they have their own rate."""
        optimizer = super().create_optimizer(model)
        if self.head_learning_rate is not None:
            head = {id(parameter) for parameter in encoders.head_parameters(self.model)}
            for group in list(optimizer.param_groups):
                moved = [parameter for parameter in group["params"] if id(parameter) in head]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
                optimizer.add_param_group({**group, "params": moved, "lr": self.head_learning_rate})
        return optimizer


def uses_bf16(mixed_precision: str, device: str) -> bool:
    """Return whether matrix products are computed in bfloat16: ``bf16``, or ``auto`` where that is faster and safe.

    Weights, gradients and the optimizer's state stay float32. An AMD core with AVX-512 BF16 trains two to three times
    as fast with bfloat16. Intel's cores run the same instructions at half the rate; they need nearly twice as long as
    in float32. Intel's cores with AMX would be as fast as AMD's. There, however, oneDNN up to version 3.14 multiplies
    values beyond the end of a row by zero. If such a value is not finite, the product is NaN
    (https://github.com/uxlfoundation/oneDNN/issues/5717), and a training sometimes fails.
    """
    if mixed_precision != "auto":
        return mixed_precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return "AMD" in str(capabilities.get("cpu_name")) and bool(capabilities.get("avx512_bf16"))


def _trainer_arguments(settings: TrainingSettings, checkpoints: Path, device: str, several: bool) -> TrainingArguments:
    n_workers = settings.dataloader_num_workers
    if n_workers is None:  # on a CPU, workers would slow down the model
        n_workers = 0 if device == "cpu" else min(8, max(1, available_cpus() - 1))
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_eval_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,  # the Trainer treats a value below 1 as a share of all steps
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        bf16=uses_bf16(settings.mixed_precision, device),
        use_cpu=device == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        # A NaN loss must appear in the log; by default the Trainer hides it.
        logging_nan_inf_filter=False,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=list(CHOOSING)[several],
        greater_is_better=True,
        dataloader_num_workers=n_workers,
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        report_to=[],
        disable_tqdm=True,
    )


# ------------------------------------------------------------------------------------- data and loss


class Collator:
    """Turn items of `Clips` into a batch: augment (training clips only), normalise, one-hot or multi-hot targets.

    Parameters
    ----------
    extractor : SequenceFeatureExtractor
        The model's feature extractor.
    main_input_name : str
        ``input_values`` or ``input_features``.
    train_clips : Clips
        The clips to augment; clips of other splits stay unchanged.
    augment : sequence of str
        Those of `augmentation.AUGMENTATIONS` to apply.
    seed : int
        Seed of the augmentation.
    several : bool
        Whether a clip can have several labels, or none.
    hearings : mapping of str to (SequenceFeatureExtractor, str)
        `Teachers.hearings`: with training clips, a batch also has the teachers' inputs, from the same augmented sound
        and without the masks of SpecAugment.
    views : Views, optional
        `Teachers.views`: the augmentation repeats, and a batch has the teachers' answers in place of their inputs where
        they are kept.
    """

    def __init__(
        self,
        extractor: SequenceFeatureExtractor,
        main_input_name: str,
        train_clips: Clips,
        augment: Sequence[str],
        seed: int,
        several: bool = False,
        hearings: Mapping[str, tuple[SequenceFeatureExtractor, str]] | None = None,
        views: distillation.Views | None = None,
    ):
        self.extractor = extractor
        self.main_input_name = main_input_name
        self.n_classes = len(train_clips.labels)
        self.sample_rate_hz = train_clips.sample_rate_hz
        self.augment = tuple(augment)
        self.seed = seed
        self.several = several
        self.hearings = hearings or {}
        self.views = views
        self.epoch = 0

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        """Return the model's input and ``labels``, float32 of shape (batch, n_classes); `UNKNOWN` at unknown labels."""
        audio = np.stack([item["audio"] for item in items])
        targets = np.stack([target_of(item, self.n_classes, self.several) for item in items])
        is_train = all(item["split"] == "train" for item in items)
        augments, indices = self.augment and is_train, [item["index"] for item in items]
        epoch = self.epoch if self.views is None else self.views.view
        rng = batch_generator(self.seed, epoch, indices) if augments else None
        if augments:
            audio, targets = augment_audio(audio, targets, self.augment, rng, self.several)
        batch = prepare(self.extractor, list(audio), self.sample_rate_hz, self.main_input_name)
        features = batch[self.main_input_name]
        if self.views is not None and is_train:
            batch |= self.views.recall(indices)
        for key, (extractor, name) in self.hearings.items() if is_train and distillation.KEPT not in batch else ():
            batch[key] = prepare(extractor, list(audio), self.sample_rate_hz, name)[name]
        is_spectrogram = features.ndim == 3 and not hasattr(self.extractor, "stride")  # of pairs
        if augments and "specaugment" in self.augment and is_spectrogram:
            n_mels = getattr(self.extractor, "num_mel_bins", None) or self.extractor.feature_size
            batch[self.main_input_name] = mask_spectrogram(features, n_mels, rng)
        return {**batch, "labels": torch.from_numpy(targets)}


class FeatureCollator:
    """Turn items of `frozen_encoder.FeatureClips` into a batch.

    Parameters
    ----------
    n_classes : int
    several : bool
        As for `Collator`.
    answers : Tensor of shape (n_clips, n_classes), optional
        The teachers' probabilities for the training clips.
    """

    views, epoch = None, 0  # every epoch is the same

    def __init__(self, n_classes: int, several: bool, answers: torch.Tensor | None):
        self.n_classes, self.several, self.answers = n_classes, several, answers

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        """Return ``features`` and ``labels`` of clips, and the teachers' answers for training clips."""
        batch = {
            frozen_encoder.FEATURES: torch.from_numpy(np.stack([item[frozen_encoder.FEATURES] for item in items])),
            "labels": torch.from_numpy(np.stack([target_of(item, self.n_classes, self.several) for item in items])),
        }
        if self.answers is not None and all(item["split"] == "train" for item in items):
            batch[distillation.KEPT] = self.answers[[item["index"] for item in items]]
        return batch


def target_of(item: dict, n_classes: int, several: bool) -> np.ndarray:
    """Return the target of a clip, float32 of shape (n_classes,): one-hot or multi-hot; `UNKNOWN` at unknown labels."""
    if item.get("is_unlabelled"):
        return np.full(n_classes, UNKNOWN, dtype=np.float32)
    if several and "target" in item:
        return np.where(item["is_known"], item["target"], np.float32(UNKNOWN))
    return np.eye(n_classes, dtype=np.float32)[item["label_id"]]


def class_weights(clips: Clips, kind: str) -> torch.Tensor | None:
    """Return the weight of each class in the loss.

    Parameters
    ----------
    clips : Clips
        Training clips.
    kind : {"balanced", "none"}
        Balanced: n_clips / (n_classes present × clips of the class), as in scikit-learn, so that the mean over the
        training clips is 1. The weight of a class without clips is 1. A clip with several labels counts once for each,
        and silence for none.

    Returns
    -------
    Tensor of shape (n_classes,), or None
    """
    if kind == "none":
        return None
    counts = clips.targets.sum(axis=0, dtype=np.int64)
    weights = np.where(counts > 0, counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1)), 1.0)
    return torch.tensor(weights, dtype=torch.float32)


class Loss:
    """Cross-entropy with soft targets, class weights and label smoothing: the sum divided by the number of clips.

    With several labels a clip, it is the binary cross-entropy of each label: the sum over the known labels divided by
    their number. The weight of a class weights both its presence and its absence, so that the probabilities stay
    those of the training clips. transformers itself would take the cross-entropy for most architectures.

    Parameters
    ----------
    weights : Tensor of shape (n_classes,), or None
        From `class_weights`.
    label_smoothing : float
        Share of a target that is distributed over all classes; with several labels, over presence and absence.
    several : bool
        Whether a clip can have several labels, or none.
    skips_unknown : bool
        With one label a clip: whether there are clips whose label is unknown. They add nothing to the sum. With several
        labels, unknown ones never do.
    """

    def __init__(
        self, weights: torch.Tensor | None, label_smoothing: float, several: bool = False, skips_unknown: bool = False
    ):
        self.weights = weights
        self.label_smoothing = label_smoothing
        self.several = several
        self.skips_unknown = skips_unknown

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss; `num_items_in_batch` counts the known elements of `labels` in all devices' batches."""
        weights = None if self.weights is None else self.weights.to(labels.device)
        logits = outputs["logits"].float()
        if self.several:
            is_known = labels != UNKNOWN
            smooth = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(logits, smooth, weights, reduction="none")
            n_known = is_known.sum() if num_items_in_batch is None else num_items_in_batch
            return torch.where(is_known, losses, 0.0).sum() / n_known.clip(min=1)
        if self.skips_unknown:
            is_known = labels[:, 0] != UNKNOWN
            logits, labels = logits[is_known], labels[is_known]
        total = F.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing, reduction="sum")
        n_clips = len(labels) if num_items_in_batch is None else num_items_in_batch / labels.shape[1]
        return total / n_clips


def loss_of(loaded: LoadedModel, train_clips: Clips, settings: TrainingSettings, skips_unknown: bool = False) -> Loss:
    """Return the loss for a model and its training clips."""
    weights = class_weights(train_clips, settings.class_weights)
    return Loss(weights, settings.label_smoothing_factor, loaded.is_multi_label, skips_unknown)


def val_scores(targets: np.ndarray, logits: np.ndarray, several: bool) -> dict[str, float]:
    """Return accuracy and the score of `CHOOSING`, from targets as `Collator` makes them; both (n_clips, n_classes)."""
    if several:
        truth = targets == 1, targets != UNKNOWN, logits
        hits = multi_label.top_accuracy(*truth)
        return {
            "accuracy": float(np.nanmean(hits)),
            "macro_average_precision": multi_label.macro_average_precision(*truth),
        }
    truth, predicted = targets.argmax(axis=1), logits.argmax(axis=1)
    return {"accuracy": float((truth == predicted).mean()), "macro_f1": macro_f1(truth, predicted)}


# ------------------------------------------------------------------------------ steering and resuming


class Steering(TrainerCallback):
    """Give the collator the epoch, log progress, stop early, and stop for a signal without any effect on the result.

    A signal ends training after the current optimizer step, with a checkpoint and without an evaluation. If that step
    is the last of its epoch, training ends after the evaluation and checkpoint of the epoch.
    """

    def __init__(self, run: runs.Run, collator: Collator, patience: int):
        self.run = run
        self.collator = collator
        self.patience = patience
        self.stopping = False
        self.steps = iter(())

    def on_train_begin(self, args, state, control, **kwargs):
        n_before, left = state.global_step, range(state.global_step, state.max_steps)
        self.steps = iter(())
        if state.is_world_process_zero:  # the bars of several processes would overwrite each other
            self.steps = runs.progress(left, state.max_steps, "training", "steps", n_before)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch or 0)
        if self.collator.views is not None:
            self.collator.views.epoch = self.collator.epoch

    def on_step_end(self, args, state, control, **kwargs):
        next(self.steps, None)
        if state.epoch != int(state.epoch) and self._asked_to_stop():
            self.stopping = True
            # Log the loss of this part of the epoch, so that the curve of the resumed epoch is complete.
            control.should_log = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopping:
            control.should_log = control.should_evaluate = control.should_save = False
        elif self._asked_to_stop():
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is not None and not np.isfinite(loss):
            raise InputError(
                f"the training loss became {loss} in epoch {state.epoch:.2f}; lower --learning_rate, "
                f"{'give --mixed_precision no, ' if args.bf16 else ''}or check the weights of --base_model"
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        curve = training_curves(state.log_history)
        choosing = _choosing(curve)
        log.info(
            "epoch %g of %g: train loss %.3f, val loss %.3f, accuracy %.3f, %s %.3f",
            *(state.epoch, state.num_train_epochs),
            *curve.iloc[-1][["train_loss", "eval_loss", "eval_accuracy"]],
            *(CHOOSING[choosing], curve.iloc[-1][choosing]),
        )
        if state.is_world_process_zero:
            write_text(self.run.output_dir / "metrics.csv", curve.to_csv(index=False))
        if _epochs_without_gain(state.log_history) >= self.patience:
            log.info("val %s has not improved for %d epochs: stopping early", CHOOSING[choosing], self.patience)
            control.should_training_stop = True

    def _asked_to_stop(self) -> bool:
        asked = self.run.stop_signal is not None
        if torch.distributed.is_initialized():  # all processes stop at the same step
            votes = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(votes, self.run.stop_signal)
            names = [name for name in votes if name is not None]
            asked, self.run.stop_signal = bool(names), names[0] if names else None
        return asked


def training_curves(log_history: list[dict]) -> pd.DataFrame:
    """Return one row per evaluation, with the mean training loss since the evaluation before it.

    Parameters
    ----------
    log_history : list of dict
        ``TrainerState.log_history``. An interrupted epoch has several training losses, each the mean over the steps
        since the entry before it.

    Returns
    -------
    pandas.DataFrame
        Columns `CURVE_COLUMNS`; with several labels a clip, macro average precision in place of macro F1.
    """
    rows, loss_sum, n_steps, last_step, learning_rate = [], 0.0, 0, 0, float("nan")
    for entry in log_history:
        if "loss" in entry:
            loss_sum += entry["loss"] * (entry["step"] - last_step)
            n_steps += entry["step"] - last_step
            last_step, learning_rate = entry["step"], entry["learning_rate"]
        elif _choosing(entry):
            train_loss = loss_sum / n_steps if n_steps else float("nan")
            rows.append({**entry, "train_loss": train_loss, "learning_rate": learning_rate})
            loss_sum, n_steps = 0.0, 0
    own = (rows and _choosing(rows[0])) or "eval_macro_f1"
    return pd.DataFrame(rows, columns=[own if name == "eval_macro_f1" else name for name in CURVE_COLUMNS])


def _choosing(names: Container[str]) -> str | None:
    """Return which of `CHOOSING` an entry of the log, or a table, has."""
    return next((name for name in CHOOSING if name in names), None)


def _choosing_scores(log_history: list[dict]) -> list[float]:
    return [entry[name] for entry in log_history if (name := _choosing(entry))]


def _epochs_without_gain(log_history: list[dict]) -> int:
    scores = _choosing_scores(log_history)
    return len(scores) - 1 - int(np.argmax(scores)) if scores else 0


def _read_state(checkpoint: Path) -> dict:
    """Return the Trainer's state in a checkpoint; InputError, ValueError or TypeError if it is invalid."""
    path = checkpoint / "trainer_state.json"
    state = read_json(path, dict, "delete the checkpoint")
    TrainerState(**state)  # the Trainer reads it the same way
    if not isinstance(state.get("log_history"), list) or not isinstance(state.get("best_model_checkpoint"), str | None):
        raise ValueError(f"{path} is not the state of a training")
    scores = _choosing_scores(state["log_history"])
    losses = [
        entry[key] for entry in state["log_history"] if "loss" in entry for key in ("loss", "step", "learning_rate")
    ]
    if not all(isinstance(number, int | float) for number in (*scores, *losses)):
        raise ValueError(f"{path} holds a score that is not a number")
    return state


def _last_whole_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint from which a run can continue without loss; delete newer ones.

    If files are missing, the Trainer itself would start with a new optimizer, or end with a model other than the best.
    """
    own = [path for path in checkpoints.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    found = sorted(own, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            best = _read_state(path)["best_model_checkpoint"]  # the Trainer writes this file last
            needed = [path / name for name in ("model.safetensors", "optimizer.pt", "scheduler.pt")]
            needed += [checkpoints / Path(best).name / "model.safetensors"] if best else []
            if all(file.is_file() for file in needed) and list(path.glob("rng_state*.pth")):
                return path
        except BROKEN:
            pass
        log.warning("%s is incomplete and is deleted", path)
        shutil.rmtree(path, ignore_errors=True)  # every process of torchrun deletes it
    return None
