"""Measure each layer of an audio encoder, and compare the layers with each other.

    python 04_analysis.py --model_dir facebook/wav2vec2-base --split train --output_dir analysis_results/base
    python 04_analysis.py --model_dir runs/wav2vec2 --data_dir processed_data
    python 04_analysis.py --model_dir runs/wav2vec2 --compare_to facebook/wav2vec2-base
    torchrun --nproc_per_node 4 04_analysis.py --model_dir runs/wav2vec2        # on four GPUs
    python 04_analysis.py --model_dir tiny --metrics block_influence cka        # in seconds on a CPU

Takes the output of stage 02 or 07, a model folder, the name of a base model on the hub, or tiny. Layer 0 is the input
of block 0, layer l the output of block l - 1. A clip is the mean of its frames.

graph_convexity     do shortest paths from neighbour to neighbour, between two clips of a class, stay in the class?
                    (Tětková et al. 2023, arXiv 2305.17154)
euclidean_convexity do straight lines between two clips that the model gives the same label keep it? True labels play no
                    role, and a label that is never given does not count; needs a model fine-tuned on this data;
                    takes minutes
probe               accuracy of a linear classifier on the layer: trained on train clips; with --split train
                    or all cross-validated over groups
cka, cka_biased, cka_rbf, mutual_knn, cosine    similarity of all pairs of layers
block_influence     how much a block changes a frame; beside it 1 - mutual kNN of its input and output
angular_distance    angle between the input and the output of each run of blocks
linear_residual     squared error of a linear map that predicts the change by each run of blocks, on clips of other
                    groups, relative to the squared change; it can exceed 1

A null level is the value to expect by chance. Clips of one recordist resemble each other, so graph_convexity permutes
labels between groups, and mutual_knn shuffles clips only among those of the same recording, of the same group, and of
other groups. That of cka is the similarity of two layers that have only the recording and the group of a clip in
common. cosine shuffles all clips, and linear_residual fits on the changes of other clips. That of the probe is the
majority level: the share of the most frequent label. euclidean_convexity and angular_distance have none.

Where clips have several labels, or none, each counts with its first label, and silence is left out: convexity and
probes need one label a clip, and all metrics are of the same clips.
--compare_to compares the layers of two models by metrics that do not depend on the axes of a model.

Writes into <output_dir> a CSV, PDF and PNG of each metric, overview.pdf/.png, null_levels.csv, recommendation.json (the
layers that each rule keeps, with the measured numbers; 05 reads it), log.txt and run.json. It also writes
hidden_states.npy and the table of its clips; the next run reuses them if model and data are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.core import cli, lazy, names, runs
from utils.core.errors import InputError, UsageError
from utils.core.files import write_text
from utils.data import splits
from utils.layers import analysis
from utils.models import architectures, model_folder
from utils.pruning import recommendation

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.data import clips
    from utils.layers import drawing, euclidean_convexity, hidden_states, linear_maps
    from utils.models import encoder_parts, encoder_window, encoders, predict, start_line, training_history
    from utils.pruning import layer_selection
    from utils.scores import intervals, looks, verdicts

if TYPE_CHECKING:
    from utils.models.loaded_model import LoadedModel

log = logging.getLogger(Path(__file__).stem)

DEFAULT_OUTPUT_DIR = "analysis_results/<name of the model's run>"
ALL_SPLITS = "all"
# Flags that change nothing but these metrics.
OF_METRICS = {
    "num_neighbors": ("graph_convexity", "mutual_knn"),
    "num_pairs": ("graph_convexity",),
    "num_segments": ("euclidean_convexity",),
    "num_points": ("euclidean_convexity",),
    "per_class": ("graph_convexity", "euclidean_convexity"),
}
STATES, TRAIN_STATES, OTHER_STATES = "hidden_states", "train_hidden_states", "other_hidden_states"
OUTPUTS = (
    *(f"{name}*.{kind}" for name in (*analysis.METRICS, "overview", "null_levels") for kind in ("csv", "pdf", "png")),
    *(f"{name}*" for name in (STATES, TRAIN_STATES, OTHER_STATES)),
    recommendation.NAME,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add(
        "--model_dir",
        required=True,
        help="run folder of 02_finetuning.py, model folder, name of an encoder on the hub, checkpoint of AVES or "
        "BEATs, or 'tiny' (small, built in, random weights)",
    )
    add("--split", choices=[*splits.SPLITS, ALL_SPLITS], default="val", help="clips to analyse")
    add(
        "--metrics",
        nargs="+",
        choices=analysis.METRICS,
        default=None,
        help=f"what to measure (default: all but {', '.join(analysis.ON_REQUEST)}; with --compare_to: cka mutual_knn)",
    )
    add("--compare_to", default=None, help="second model, given like --model_dir: compare the layers of both")
    add(
        "--num_neighbors",
        type=cli.positive_int,
        default=analysis.NUM_NEIGHBORS,
        help="neighbours of a clip in graphs and mutual kNN",
    )
    add(
        "--num_pairs",
        type=cli.positive_int,
        default=analysis.NUM_PAIRS,
        help="about this many pairs of clips of each class in graph convexity; of a large class more: at least 30 of "
        "its clips with all others",
    )
    add(
        "--num_segments",
        type=cli.positive_int,
        default=20,
        help="segments of each predicted class in Euclidean convexity",
    )
    add("--num_points", type=cli.positive_int, default=10, help="points on each of these segments")
    add("--per_class", action="store_true", help="also draw the convexity of every class")
    add("--batch_size", type=cli.positive_int, default=16, help="clips per batch")
    add("--recompute", action="store_true", help="replace the folder, and compute the hidden states again")
    cli.add_data_arguments(parser)
    cli.add_common_arguments(parser, output_dir=DEFAULT_OUTPUT_DIR)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write a folder of results."""
    args.metrics = chosen_metrics(args.metrics, between_models=args.compare_to is not None)
    for flag in cli.changed(build_parser(), args, OF_METRICS):
        if not {*OF_METRICS[flag]} & {*args.metrics}:
            needed = " or ".join(OF_METRICS[flag])
            raise UsageError(f"--{flag} is of use only with the metric {needed}, which is not measured here")
    if args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        name = names.of_model(args.model_dir)
        if args.compare_to is not None:
            name = names.both(name, names.of_model(args.compare_to))
        args.output_dir = Path(DEFAULT_OUTPUT_DIR).parent / name
    inputs = {
        "model_dir": model_folder.any_model_input(args.model_dir),
        "data_dir": clips.data_input(args.data_dir, args.fold),
    }
    if args.compare_to is not None:
        inputs["compare_to"] = model_folder.any_model_input(args.compare_to, "--compare_to")
    states = {name for stem in (STATES, TRAIN_STATES, OTHER_STATES) for name in hidden_states.file_names(stem)}
    with runs.open_run(
        Path(__file__).stem,
        args,
        inputs,
        outputs=OUTPUTS,
        result_neutral={"recompute"},
        reusable=() if args.recompute else states,
        recompute=args.recompute,
    ) as this_run:
        device = this_run.choose_device(args.device)
        if args.compare_to is None:
            analyse_layers(args, inputs, this_run, device)
        else:
            compare_models(args, inputs, this_run, device)
        runs.log_figures(args.output_dir)


def chosen_metrics(names: Sequence[str] | None, between_models: bool) -> list[str]:
    """Return the metrics to measure, in the order of `analysis.METRICS`.

    Raises
    ------
    UsageError
        If one cannot compare two models.
    """
    if names is None:
        names = ("cka", "mutual_knn") if between_models else set(analysis.METRICS) - set(analysis.ON_REQUEST)
    refused = [name for name in analysis.METRICS if name in names and name not in analysis.BETWEEN_MODELS]
    if between_models and refused:
        raise UsageError(
            f"--metrics {refused[0]} cannot be used with --compare_to: "
            + (
                "cosine compares two layers axis by axis, and two models have no axes in common; "
                if refused[0] == "cosine"
                else "it measures one model; "
            )
            + f"the metrics for two models are {', '.join(analysis.BETWEEN_MODELS)}"
        )
    return [name for name in analysis.METRICS if name in names]


class Heard(NamedTuple):
    """A model, its clips, and the hidden states and logits of the clips.

    Attributes
    ----------
    loaded : LoadedModel
    clips : Clips
    hidden : HiddenStates
        Hidden states of the clips.
    train : HiddenStates or None
        Hidden states of the clips that a probe is trained on, if these are other clips.
    logits : ndarray or None
        Logits of the clips, if Euclidean convexity needs them.
    """

    loaded: LoadedModel
    clips: clips.Clips
    hidden: hidden_states.HiddenStates
    train: hidden_states.HiddenStates | None
    logits: np.ndarray | None


def analyse_layers(args: argparse.Namespace, inputs: dict[str, runs.Input], this_run: runs.Run, device: str) -> None:
    """Measure and draw the chosen metrics of one model."""
    heard = hear(args, inputs, this_run, device)
    if not runs.is_first_process():
        return
    tables = Tables(args.output_dir)
    found = measure_classes(args, heard, tables, this_run)
    similarities = measure_similarities(args, this_run, heard.hidden.table, heard.hidden.pooled, None)
    tables.write_similarities(similarities)
    knn = similarities.get("mutual_knn")
    cosine = analysis.mean_over_clips(heard.hidden.cosine) if "block_influence" in args.metrics else None
    if knn or cosine is not None:
        found["influence"] = analysis.influence(cosine, knn)
        tables.write("block_influence", found["influence"])
    angle = analysis.mean_over_clips(heard.hidden.angle) if "angular_distance" in args.metrics else None
    if angle is not None:
        tables.write("angular_distance", analysis.table_of_runs(angular_distance=angle))
    linear = None
    if "linear_residual" in args.metrics:
        with this_run.timed("linear_residual"):
            linear = linear_maps.linear_residual(heard.loaded, heard.clips, args.batch_size, args.seed)
        columns = {"linear_residual": linear.residual, "linear_residual_null": linear.null}
        tables.write("linear_residual", analysis.table_of_runs(**columns))

    def measured(table: str, column: str) -> np.ndarray | None:
        return found[table][column].to_numpy() if column in found.get(table, ()) else None

    evidence = layer_selection.Evidence(
        block_influence=measured("influence", "block_influence"),
        knn_block_influence=measured("influence", "knn_block_influence"),
        angular_distance=angle,
        linear_residual=linear and linear.residual,
        cka=similarities["cka"].matrix if "cka" in similarities else None,
        convexity=measured("convexity", "convexity"),
    )
    protected = architectures.architecture_of(heard.loaded.config).protected | layer_selection.FIRST_BLOCK
    source = {"model_dir": args.model_dir, "model_sha256": inputs["model_dir"].sha256}
    source |= {"data_sha256": inputs["data_dir"].sha256, "split": args.split}
    n_layers, boundaries = heard.loaded.config.num_hidden_layers, analysis.two_block_boundaries(similarities)
    recommendation.write_recommendation(args.output_dir, source, n_layers, evidence, protected, args.seed, boundaries)
    drawing.draw_analysis(args.output_dir, this_run.metrics)


def hear(args: argparse.Namespace, inputs: dict[str, runs.Input], this_run: runs.Run, device: str) -> Heard:
    """Run all clips that are needed through the model."""
    split_clips = read_split(args, args.split)
    loaded = load(args.model_dir, split_clips, device)
    start_line.log_start(args.device, device, {args.model_dir: loaded.model}, {args.split: split_clips})
    intervals.warn_of_few_groups(args.split, split_clips.table["group"].nunique())
    this_run.metrics |= metrics_of(args.split, split_clips)
    note_looks(args, inputs, this_run)
    cross_validated = args.split in ("train", ALL_SPLITS)
    if loaded.has_head and cross_validated:
        log.warning(
            "the model may have been trained on clips of --split %s: "
            "the measured values are then better than on new clips",
            args.split,
        )
    elif loaded.has_head:
        training_history.warn_of_known_recordings(
            loaded.model, args.model_dir, inputs["data_dir"], {args.split: split_clips.table["recording_id"]}
        )
    key = {"model": inputs["model_dir"].sha256, "data": inputs["data_dir"].sha256}

    def extract(of_clips: clips.Clips, stem: str) -> hidden_states.HiddenStates:
        return hidden_states.extract(loaded, of_clips, args.batch_size, args.output_dir, stem, key)

    with this_run.timed("hidden_states"):
        hidden = extract(split_clips, STATES)
    train = None
    if "probe" in args.metrics and not cross_validated:
        with this_run.timed("hidden_states_train"):
            train = extract(read_split(args, "train"), TRAIN_STATES)
    logits = None
    if "euclidean_convexity" in args.metrics:
        require_head(loaded, split_clips)
        logits = predict.predict(loaded, split_clips, args.batch_size)
    return Heard(loaded, split_clips, hidden, train, logits)


def measure_classes(
    args: argparse.Namespace, heard: Heard, tables: Tables, this_run: runs.Run
) -> dict[str, pd.DataFrame]:
    """Measure and write the metrics of the classes at every layer; return the tables by layer."""
    found, others = {}, verdicts.others(heard.clips.kept_together)
    if "graph_convexity" in args.metrics:
        with this_run.timed("graph_convexity"):
            layers, classes = analysis.graph_convexity(
                heard.hidden, heard.clips.labels, args.num_neighbors, args.num_pairs, args.seed
            )
        found["convexity"] = layers
        tables.write_convexity("graph_convexity", layers, classes)
        best = layers.loc[layers["convexity"].idxmax()]
        if not best["mostly_direct"]:  # otherwise a warning has said that it is not informative
            log.info(
                "graph convexity is highest at layer %d: %.3f  (95 %% interval %.3f to %.3f: this model on %s), null "
                "(labels permuted between groups) %.3f",
                *best[["layer", "convexity", "convexity_low", "convexity_high"]],
                *(others, best["null_of_groups"]),
            )
    if heard.logits is not None:
        with this_run.timed("euclidean_convexity"):
            layers, classes = euclidean_convexity.euclidean_convexity(
                heard.loaded, heard.clips, heard.logits, args.num_segments, args.num_points, args.seed
            )
        found["euclidean_convexity"] = layers
        tables.write_convexity("euclidean_convexity", layers, classes)
    if "probe" in args.metrics:
        with this_run.timed("probe"):
            found["probe"] = analysis.probe(heard.hidden, heard.train, args.seed)
        tables.write("probe", found["probe"])
        best = found["probe"].loc[found["probe"]["accuracy"].idxmax()]
        log.info(
            "the linear probe is best at layer %d: accuracy %.3f  (95 %% interval %.3f to %.3f: this model on %s), "
            "majority level %.3f",
            *best[["layer", "accuracy", "accuracy_low", "accuracy_high"]],
            *(others, best["majority"]),
        )
    return found


def compare_models(args: argparse.Namespace, inputs: dict[str, runs.Input], this_run: runs.Run, device: str) -> None:
    """Compare all layers of one model with all layers of another."""
    split_clips = read_split(args, args.split)
    this_run.metrics |= metrics_of(args.split, split_clips)
    note_looks(args, inputs, this_run)
    states = []
    for flag, stem in (("model_dir", STATES), ("compare_to", OTHER_STATES)):
        loaded = load(getattr(args, flag), split_clips, device)
        start_line.log_start(args.device, device, {getattr(args, flag): loaded.model}, {args.split: split_clips})
        key = {"model": inputs[flag].sha256, "data": inputs["data_dir"].sha256}
        with this_run.timed(stem):
            hidden = hidden_states.extract(loaded, split_clips, args.batch_size, args.output_dir, stem, key)
        states.append(hidden.pooled)
    if not runs.is_first_process():
        return
    similarities = measure_similarities(args, this_run, hidden.table, *states)
    Tables(args.output_dir).write_similarities(similarities)
    drawing.draw_analysis(args.output_dir, this_run.metrics)


def read_split(args: argparse.Namespace, split: str) -> clips.Clips:
    """Return the clips of a split, or of all: those that have a label, each with its first one."""
    name = None if split == ALL_SPLITS else split
    return clips.read_clips(args.data_dir, name, args.max_clips_per_class, args.seed, args.fold).with_one_label()


def note_looks(args: argparse.Namespace, inputs: dict[str, runs.Input], this_run: runs.Run) -> None:
    """Count the earlier looks at the test clips, and warn of them, if they are read."""
    this_run.metrics |= looks.count_looks(args.output_dir, inputs["data_dir"], args.split)
    if args.split in looks.WITH_TEST:
        log.warning(
            "--split %s has the test clips: layers that these values choose have scores on test that are too high; "
            "to choose layers, give --split val or train",
            args.split,
        )


def metrics_of(split: str, split_clips: clips.Clips) -> dict:
    """Return the facts about the clips that ``run.json`` records."""
    table = split_clips.table
    heard = split_clips.heard_in_train if split in ("val", "test") else None
    return {
        "kept_together": split_clips.kept_together,
        "n_clips": len(table),
        "n_groups": int(table["group"].nunique()),
        **({} if heard is None else {"heard_in_train": dataclasses.asdict(heard)}),
    }


def load(model_dir: str, split_clips: clips.Clips, device: str) -> LoadedModel:
    """Load a classifier, or a base model with a new head, and check that the clips suit it."""
    runs.seed_everything(0)  # no metric reads a new head, but every run should make the same
    loaded = encoders.load_any_model(model_dir, device)
    encoders.check_base_matches(loaded, split_clips)
    # A base model gets the window that 02_finetuning.py trains with; a fine-tuned model keeps its window.
    window = architectures.FULL_WINDOW if loaded.has_head else architectures.CLIP_WINDOW
    loaded = encoder_window.fit_window(loaded, split_clips.clip_seconds, window, str(model_dir))
    encoder_parts.check_parts(loaded, split_clips)
    return loaded


def require_head(loaded: LoadedModel, split_clips: clips.Clips) -> None:
    """Check that the model was fine-tuned on the labels of the data.

    Raises
    ------
    InputError
        If it is a base model or was trained on other labels.
    """
    if not loaded.has_head or loaded.labels != split_clips.labels:
        raise InputError(
            "euclidean_convexity needs the predictions of the model, but the model was not fine-tuned on the labels of "
            f"{split_clips.data_dir}: fine-tune it with 02_finetuning.py, or leave the metric out of --metrics"
        )


def measure_similarities(
    args: argparse.Namespace, this_run: runs.Run, table: pd.DataFrame, states: np.ndarray, other: np.ndarray | None
) -> dict[str, analysis.LayerSimilarity]:
    """Compare the layers by every chosen similarity metric."""
    similarities = {}
    for metric in args.metrics:
        if metric in analysis.SIMILARITIES:
            with this_run.timed(metric):
                similarities[metric] = analysis.similarity_of_layers(
                    metric, states, other, table, args.num_neighbors, args.seed
                )
    return similarities


class Tables:
    """Writes tables into the output folder; `drawing.draw_analysis` draws them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, name: str, table: pd.DataFrame, **options) -> None:
        """Write a CSV."""
        write_text(self.folder / f"{name}.csv", table.to_csv(**{"index": False, **options}))

    def write_convexity(self, name: str, layers: pd.DataFrame, classes: pd.DataFrame) -> None:
        """Write convexity by layer, and by layer and class."""
        self.write(name, layers)
        self.write(f"{name}_per_class", classes)

    def write_similarities(self, similarities: dict[str, analysis.LayerSimilarity]) -> None:
        """Write every matrix, and the mean and range of its null level over the pairs of layers."""
        nulls = []
        for metric, found in similarities.items():
            self.write(metric, pd.DataFrame(found.matrix).rename_axis(index="layer"), index=True)
            null = pd.DataFrame(found.null).stack()
            levels = {"null": null.mean(), "null_low": null.min(), "null_high": null.max()}
            nulls.append({"metric": metric, **levels, "null_model": analysis.SIMILARITIES[metric].null_model})
        if nulls:
            self.write("null_levels", pd.DataFrame(nulls))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
