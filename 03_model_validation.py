"""Score a fine-tuned model on a split of the clips of stage 01, with intervals, size and speed.

    python 03_model_validation.py --model_dir runs/wav2vec2 --data_dir processed_data
    python 03_model_validation.py --model_dir runs/wav2vec2-0-5 --output_dir validation_results/wav2vec2-0-5
    python 03_model_validation.py --model_dir runs/tiny --batch_size 8                  # in seconds on a CPU
    torchrun --nproc_per_node 4 03_model_validation.py --model_dir runs/wav2vec2        # on four GPUs
    python 03_model_validation.py --model_dir runs/wav2vec2 --fit_thresholds            # for 08_detection.py
    python 03_model_validation.py --compare validation_results/a validation_results/b   # which of them is better?
    python 03_model_validation.py --pool validation_results/birds/w2v/fold-*.seed-42    # all folds as one result

Takes the output of stage 02, 06 or 07, any folder of an audio-classification model with the labels of the data, or an
exported file, whose time is that of ONNX Runtime on the CPU.

Scores are for clips, and for recordings (mean logits). A 95 % interval is that of this model on other recordists like
these: its unit is the group that the split keeps together, not the clip. It does not include the random variation
between trainings. The latency is that of one clip, from audio in memory to logits. The front end is everything before
the first block; its share is reported, because pruning does not make it cheaper.

Writes <output_dir>/metrics.csv, classification_report.csv, confusion_matrix.csv/.pdf/.png, reliability.pdf/.png,
predictions.parquet, log.txt and run.json. Where the scored clips are of several known collections, it also writes
scores_by_collection.csv/.pdf/.png, with their mean and the level that knowing the collection alone would reach.
Rebuilds summary.csv and summary.png of all results.

--review N also writes review.html: for each label the N clips with the highest scores that the data do not give this
label. A person hears them there and saves a table, which stage 01 reads with --annotations; see docs/review.md.

A model with several labels a clip (--problem_type of 02 and 06) is scored as in BirdSet by cmAP (macro average
precision), AUROC and top-1 accuracy, and by its detections: precision, recall, macro F1, and false alarms per hour of
silence. The thresholds are the fitted ones, or 0.5. Secondary labels of a clip are not scored there. There is no
confusion matrix, because a missed label is not confused with a certain other one, and no score by recording or
collection. A model with one label a clip is scored without the clips of silence.

--fit_thresholds scores val, never test. It fits the calibration of the scores, and for each label the lowest threshold
with which its detections have --target_precision on unseen recordists; see docs/thresholds.md. It writes
<output_dir>/thresholds.csv, and both into config.json of the model, where 08_detection.py reads them. A label for which
val cannot tell gets no threshold. Of a model that has thresholds, each score writes thresholds.csv too: precision and
recall of its detections on the scored clips, with intervals, beside the target.

--compare takes results of models that were scored on the same clips. For each pair of models it measures the
difference clip by clip: its interval by itself and together with all pairs (max-t), a sign-flip p value, and that value
adjusted for the number of pairs (Holm). It also says whether the first model is no worse than the second by more than
--margin: shown, not shown, or undecidable with so few groups. It writes comparison.csv and comparison.pdf/.png.

--pool takes the results of one model on all folds. Together they are one result, in which each clip counts once. It
writes the same files as a score does, into fold-all.seed-42 beside fold-1.seed-42 and so on. For folds in folders of
other names give --output_dir.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, lazy, names, runs
from utils.core.errors import AlreadyComplete, UsageError
from utils.core.files import write_text
from utils.core.text import counted, some
from utils.data import recordings_table, splits
from utils.figures import review_page
from utils.models import decision, model_folder
from utils.scores import by_collection, comparison, looks, pooling, predictions, summary

with lazy.imported_on_first_use():
    import numpy as np
    import pandas as pd

    from utils.data import clips
    from utils.models import (
        encoder_window,
        encoders,
        fitted_thresholds,
        latency,
        mistakes,
        predict,
        start_line,
        training_history,
    )
    from utils.scores import drawing, evaluation, intervals, multi_label, thresholds, verdicts

if TYPE_CHECKING:
    from utils.models.loaded_model import LoadedModel

log = logging.getLogger(Path(__file__).stem)

DEFAULT_OUTPUT_DIR = "validation_results/<name of the model's run>"
TARGET_PRECISION = 0.9
# Arguments that change a result only where they are given.
FITTING = ("fit_thresholds", "target_precision")
OUTPUTS = (
    *(summary.METRICS_NAME, predictions.NAME, "classification_report.csv", "scores_by_collection.*"),
    *("confusion_matrix.*", "reliability.*", f"{comparison.COMPARISON_NAME}.*", review_page.NAME, "thresholds.csv"),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model_dir",
        type=Path,
        help="run folder of 02_finetuning.py or 06_cnn.py, any model folder with config.json, weights and "
        "preprocessor_config.json, or a file of 07_manual_pruning.py --export",
    )
    what.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        metavar="RESULTS_DIR",
        help="compare these results folders of this stage (two or more) instead of scoring a model",
    )
    what.add_argument(
        "--pool",
        type=Path,
        nargs="+",
        metavar="RESULTS_DIR",
        help="pool these results folders of this stage instead: all folds of one model, so that each clip counts once",
    )
    parser.add_argument(
        "--margin",
        type=cli.fraction,
        default=0.02,
        help="with --compare: accuracy that may be lost, a share of clips; with several labels a clip, macro average "
        "precision",
    )
    parser.add_argument(
        "--split", choices=splits.SPLITS, help="split to score (default: test; val for --fit_thresholds)"
    )
    parser.add_argument("--batch_size", type=cli.positive_int, default=16, help="clips per batch")
    parser.add_argument(
        "--review", type=cli.positive_int, metavar="N", help=f"write {review_page.NAME}: the N worst mistakes per label"
    )
    parser.add_argument(
        "--fit_thresholds",
        action="store_true",
        help="fit a threshold for each label on val, and write them to the model",
    )
    parser.add_argument(
        "--target_precision",
        type=cli.fraction,
        default=TARGET_PRECISION,
        help="with --fit_thresholds: share of right ones among the detections on unseen recordists",
    )
    cli.add_data_arguments(parser)
    cli.add_common_arguments(parser, output_dir=DEFAULT_OUTPUT_DIR)
    return parser


def run(args: argparse.Namespace) -> None:
    """Score a model or pool its folds, and rebuild the summary of all results; or compare results."""
    refuse_flags_of_another_way(args)
    args.split = args.split or ("val" if args.fit_thresholds else "test")
    if args.compare is not None:
        compare(args)
        return
    if args.pool is not None and args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        args.output_dir = pooling.default_folder(args.pool)
    if args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        name = names.of_model(args.model_dir)
        name = names.variant_of(name, names.THRESHOLDS) if args.fit_thresholds else name
        args.output_dir = Path(DEFAULT_OUTPUT_DIR).parent / name
    if args.fit_thresholds:
        fit_thresholds(args)
        return
    try:
        pool(args) if args.pool is not None else validate(args)
    except AlreadyComplete:
        if not summary.holds(args.output_dir):  # a run can be killed after its results and before the summary
            show_results(args.output_dir)
        raise
    show_results(args.output_dir)


def refuse_flags_of_another_way(args: argparse.Namespace) -> None:
    """Refuse flags that would have no effect: --compare and --pool take results that are scored already."""
    way = next((name for name in ("compare", "pool") if getattr(args, name) is not None), None)
    parser, flags = (
        build_parser(),
        ("split", "batch_size", "data_dir", "fold", "max_clips_per_class", "review", *FITTING),
    )
    given = cli.changed(parser, args, flags)
    if way and given:
        raise UsageError(f"--{given[0]} is for scoring a model: the results that --{way} takes are scored already")
    if way != "compare" and cli.changed(parser, args, ["margin"]):
        raise UsageError("--margin is for --compare: a model by itself is not compared with another one")
    if not args.fit_thresholds and args.target_precision != TARGET_PRECISION:
        raise UsageError("--target_precision is for --fit_thresholds: other scores have no target")
    if args.fit_thresholds and args.split not in (None, "val"):
        raise UsageError(
            f"--fit_thresholds scores val, not {args.split}: thresholds look too good on the clips that fitted them. "
            "Leave --split out; then score test without --fit_thresholds"
        )
    if args.fit_thresholds and model_folder.is_exported(args.model_dir):
        raise UsageError(
            f"{args.model_dir} is an exported file, and --fit_thresholds writes into a model folder: give the folder "
            "that it was made from, then export that again"
        )
    if args.fit_thresholds and (args.review or not args.target_precision):
        raise UsageError(
            "--review is for scores: leave it out with --fit_thresholds"
            if args.review
            else "--target_precision 0 is met by every detection: give a share above 0, such as 0.9"
        )


def show_results(output_dir: Path) -> None:
    """Rebuild the summary of all results; log it and the paths of the figures."""
    if not runs.is_first_process():
        return
    results_dir = names.root_of(output_dir)
    table = summary.summary_table(summary.rebuild_summary(results_dir, [names.of_folder(output_dir)]))
    log.info("all results in %s:\n%s", results_dir, table)
    log.info("their figure: %s", results_dir / f"{summary.SUMMARY_NAME}.png")
    runs.log_figures(output_dir)


def compare(args: argparse.Namespace) -> None:
    """Compare every pair of models, and write a folder with the table and the figure."""
    compared = [names.of_folder(folder) for folder in args.compare]
    if len(set(compared)) < max(2, len(compared)):
        raise UsageError(
            f"--compare takes two or more results folders with different names; found {', '.join(compared)}"
        )
    if args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        args.output_dir = names.root_of(args.compare[0]) / comparison.folder_name(compared)
    # A difference and its margin have a direction, so the order counts.
    inputs = {
        f"compare {number}: {name}": comparison.results_input(folder)
        for number, (name, folder) in enumerate(zip(compared, args.compare, strict=True), start=1)
    }
    models = [comparison.read_scored(folder) for folder in args.compare]
    for model in models[1:]:
        comparison.check_same_clips(models[0], model)
    neutral = ["compare", *FITTING]
    with runs.open_run(Path(__file__).stem, args, inputs, outputs=OUTPUTS, result_neutral=neutral) as this_run:
        first = models[0]
        truth, level = (first.predictions["label_id"],), start_line.guessing
        if first.answers is not None:
            truth, level = (first.answers.targets, first.answers.is_known), start_line.guessing_several
        levels = level(*truth, int(first.metrics["n_classes"]), first.metrics["split"])
        log.info(
            "%d models: %s; %s clips, split by %s; %s",
            *(len(models), ", ".join(compared), f"{len(first.predictions):,}", first.metrics["kept_together"], levels),
        )
        table = comparison.comparison_table(models, args.seed, args.margin)
        path = args.output_dir / f"{comparison.COMPARISON_NAME}.csv"
        write_text(path, table.to_csv(index=False, float_format="%.6g"))
        drawing.draw_comparison(args.output_dir)
        intervals.warn_of_few_groups(first.metrics["split"], first.predictions["group"].nunique())
        this_run.metrics = {
            "n_models": len(compared),
            "n_pairs": len(table),
            "kept_together": first.metrics["kept_together"],
        }
        main, other = first.compared
        words = {main: main.replace("_", " "), other: other.replace("_", " ").replace("f1", "F1")}
        of_all = f", which hold for all {len(table)} pairs together" if len(table) > 1 else ""
        on = verdicts.on_others(first.metrics["kept_together"])
        log.info("in square brackets: 95 %% intervals of differences%s: %s", of_all, on)
        for _, row in table.iterrows():
            log.info(
                "%s minus %s: %s %+.3f [%+.3f, %+.3f], p %.3g (adjusted %.3g); %s %+.3f [%+.3f, %+.3f]; "
                "no worse in %s than by %g, by these intervals: %s",
                *(row["first"], row["second"], words[main]),
                *(row[f"{main}_{end}"] for end in ("difference", "low_of_all", "high_of_all", "p", "p_holm")),
                *(words[other], *(row[f"{other}_{end}"] for end in ("difference", "low_of_all", "high_of_all"))),
                *(words[main], args.margin, row[f"{main}_verdict"]),
            )


def load(
    args: argparse.Namespace, this_run: runs.Run, data: runs.Input
) -> tuple[LoadedModel, clips.Clips, dict[str, float]]:
    """Load the model and the clips; return also how many recordings it was trained on, by split."""
    is_file, name = model_folder.is_exported(args.model_dir), str(args.model_dir)
    device = this_run.choose_device("cpu" if is_file and args.device == "auto" else args.device)
    split_clips = read_split(args)
    loaded = encoders.load_model(args.model_dir, device)
    encoders.check_matches(loaded, split_clips)
    if not loaded.is_multi_label:
        split_clips = split_clips.with_one_label()
    start_line.log_start(args.device, device, {name: loaded.model}, {args.split: split_clips})
    known = training_history.warn_of_known_recordings(
        loaded.model, name, data, {args.split: split_clips.table["recording_id"]}
    )
    training_history.warn_of_choice(loaded.config, name, data, args.split)
    encoder_window.warn_of_window(loaded, split_clips.clip_seconds, name)
    return loaded, split_clips, known


def read_split(args: argparse.Namespace) -> clips.Clips:
    """Return the clips to score, with all their labels."""
    return clips.read_clips(args.data_dir, args.split, args.max_clips_per_class, args.seed, args.fold)


def fit_thresholds(args: argparse.Namespace) -> None:
    """Fit the thresholds of a model on val, and write them into a folder and into the model."""
    inputs = {
        "model_dir": model_folder.model_input(args.model_dir),
        "data_dir": clips.data_input(args.data_dir, args.fold),
    }
    try:
        with runs.open_run(Path(__file__).stem, args, inputs, outputs=OUTPUTS, result_neutral=["margin"]) as this_run:
            loaded, val_clips, _ = load(args, this_run, inputs["data_dir"])
            with this_run.timed("prediction"):
                logits = predict.predict(loaded, val_clips, args.batch_size)
            if not runs.is_first_process():
                return
            fitted = fitted_thresholds.fit(
                val_clips, logits, loaded.config, args.target_precision, str(inputs["data_dir"].sha256)
            )
            this_run.metrics = {"decision": fitted}
            this_run.metrics |= score_thresholds(args, val_clips, logits, loaded, fitted)
            intervals.warn_of_few_groups(args.split, val_clips.table["group"].nunique())
            fitted_thresholds.keep(args.model_dir, fitted)
    except AlreadyComplete:  # but the model may be another copy, or has got other thresholds since
        if runs.is_first_process():
            fitted_thresholds.keep(args.model_dir, runs.read_record(args.output_dir)["metrics"]["decision"])
        raise


def score_thresholds(
    args: argparse.Namespace, split_clips: clips.Clips, logits: np.ndarray, loaded: LoadedModel, fitted: dict
) -> dict[str, object]:
    """Write and log precision and recall at the thresholds of a model; return what run.json gets of it."""
    table = fitted_thresholds.score(split_clips, logits, loaded.config, fitted)
    fitted_thresholds.write(args.output_dir, table)
    errors = fitted_thresholds.log_errors(split_clips, logits, loaded.config, fitted)
    on = args.split + (", with which they were fitted" if args.split == fitted["fitted_on"]["split"] else "")
    fitted_thresholds.log_table(table, on)
    pooled = table.iloc[-1].drop(["label", "threshold", "reason"]).to_dict()
    return {"at_thresholds": without_nan(pooled) | {"n_thresholds": int(table["threshold"].count())}, **errors}


def validate(args: argparse.Namespace) -> None:
    """Score the model and write a folder of results."""
    inputs = {
        "model_dir": model_folder.scored_input(args.model_dir),
        "data_dir": clips.data_input(args.data_dir, args.fold),
        **fitted_thresholds.as_input(args.model_dir),
    }
    neutral = ["margin", *FITTING]
    with runs.open_run(Path(__file__).stem, args, inputs, outputs=OUTPUTS, result_neutral=neutral) as this_run:
        loaded, split_clips, known = load(args, this_run, inputs["data_dir"])
        fitted = decision.read(loaded.config, str(args.model_dir))
        model, table, labels = loaded.model, split_clips.table, split_clips.labels

        # Measured before the predictions: their batches would add to the memory. The other processes wait.
        with this_run.timed("cost"):
            measure = functools.partial(latency.measure_cost, loaded, split_clips.audio(0), split_clips.sample_rate_hz)
            cost, *_ = runs.from_all_processes(lambda: measure(args.batch_size) if runs.is_first_process() else None)
        with this_run.timed("prediction"):
            logits = predict.predict(loaded, split_clips, args.batch_size)
        if not runs.is_first_process():
            return
        with this_run.timed("scores"):
            several = score_several(loaded, split_clips, logits) if loaded.is_multi_label else None
            scores = (
                evaluation.score_all(table, logits) if several is None else summary.without_one_label(several.scores)
            )
        row = {
            "model_name": names.of_folder(args.output_dir),
            "model_dir": str(args.model_dir),
            "split": args.split,
            "n_clips": len(table),
            "n_recordings": table["recording_id"].nunique(),
            "n_classes": len(labels),
            "n_layers": model.config.num_hidden_layers,
            "kept_layers": cli.format_layer_list(encoders.kept_layers(model.config)),
            "n_parameters": encoders.count_parameters(model),
            **scores,
            **dataclasses.asdict(cost),
            "device": this_run.device,
            "seed": args.seed,
            "data_sha256": inputs["data_dir"].sha256,
            "git_commit": (runs.read_record(args.output_dir)["git"] or {"commit": ""})["commit"],
            "kind": encoders.kind_of(model.config),
            "n_recordings_trained_on": known[args.split],
            "kept_together": split_clips.kept_together,
        }
        this_run.metrics = without_nan(row)
        this_run.metrics |= looks.count_looks(args.output_dir, inputs["data_dir"], args.split)
        if heard := split_clips.heard_in_train:
            this_run.metrics["heard_in_train"] = dataclasses.asdict(heard)

        with this_run.timed("writing"):
            write_results(args.output_dir, table, labels, logits, row, several)
        if args.review:
            path = args.output_dir / review_page.NAME
            title = f"Worst mistakes of {row['model_name']} on {args.split}"
            # A label of the clip that the model was not to give is no mistake.
            with_all_labels = split_clips if loaded.is_multi_label else read_split(args).without_silence()
            n_mistakes = mistakes.write_review(path, title, with_all_labels, logits, model.config, args.review)
            log.info("%d mistakes to review: %s", n_mistakes, path)
        log_scores(row)
        if fitted is not None:
            this_run.metrics |= score_thresholds(args, split_clips, logits, loaded, fitted)
        if several is None:
            known = by_collection.collections_of(table["recording_id"], labels, args.data_dir, args.fold)
            score_collections(args, this_run, table.assign(predicted_id=logits.argmax(axis=1)), known)
        with this_run.timed("drawing"):
            drawing.draw_result(args.output_dir)
        log.info("in batches of %d: %.1f clips/s", row["batch_size"], row["throughput_clips_per_s"])


def score_several(loaded: LoadedModel, split_clips: clips.Clips, logits: np.ndarray) -> multi_label.Result:
    """Score a model with several labels a clip, at its `decision.thresholds`."""
    lowest = decision.thresholds(loaded.config)
    if decision.read(loaded.config) is None:
        log.warning(
            "no thresholds are fitted: precision, recall, F1 and false alarms are those of the threshold %g, which no "
            "one has checked. Fit them by --fit_thresholds",
            decision.UNFITTED,
        )
    if without := [label for label, threshold in lowest.items() if threshold is None]:
        n_without = counted(len(without), "label has", "labels have")
        log.warning("%s no threshold, never detected here: %s", n_without, some(without))
    scored = multi_label.score_all(
        multi_label.Answers(
            split_clips.targets > 0,
            split_clips.is_known,
            logits,
            thresholds.detections(decision.scores(logits, loaded.config), lowest.values()),
            split_clips.table["group"].to_numpy(),
            split_clips.table["duration_s"].to_numpy(np.float64),
        )
    )
    return scored._replace(labels=scored.labels.assign(threshold=thresholds.limits(lowest.values())))


def pool(args: argparse.Namespace) -> None:
    """Pool the results of all folds of a model, and write them as one result."""
    # fold-*.seed-42 names the pooled result too, once it is there. Alone it is refused below.
    args.pool = [folder for folder in args.pool if folder.resolve() != args.output_dir.resolve()] or args.pool
    inputs = {f"fold {folder}": comparison.results_input(folder) for folder in args.pool}
    folds = pooling.read_folds(args.pool)
    first = next(iter(folds))
    args.data_dir = Path(runs.read_record(first)["arguments"]["data_dir"])  # for the captions
    with runs.open_run(
        Path(__file__).stem, args, inputs, outputs=OUTPUTS, result_neutral=["pool", "margin", "seed", *FITTING]
    ) as this_run:
        table, logits, row, several = pooling.pool(folds)
        row["model_name"] = names.of_folder(args.output_dir)
        log.info("%d folds: %s", len(folds), ", ".join(names.of_folder(folder) for folder in folds))
        this_run.metrics = without_nan(row)
        pooling.warn_of_models(folds)
        this_run.metrics["heard_in_train"] = pooling.who_was_heard(folds)
        write_results(args.output_dir, table, folds[first].labels, logits, row, several)
        log_scores(row, scored="these models")
        if several is None and pooling.is_data_of(args.data_dir, row["data_sha256"]):
            score_collections(args, this_run, table, pooling.collections_of(folds, args.data_dir))
        elif several is None:
            log.warning("%s is not the data set of these folds, or not there: no scores by collection", args.data_dir)
        drawing.draw_result(args.output_dir)


def score_collections(
    args: argparse.Namespace, this_run: runs.Run, table: pd.DataFrame, collections: pd.DataFrame
) -> None:
    """Write and log the scores by collection, if the clips are of several."""
    scores = by_collection.score(table, collections)
    if scores is None:
        return
    recordings_table.warn_of_labels_of_one_collection(args.data_dir)
    write_text(args.output_dir / by_collection.NAME, scores.to_csv(index=False, float_format="%.6g"))
    model = "this model" if args.pool is None else "these models"
    others = verdicts.others(str(this_run.metrics.get("kept_together")))
    log.info("by collection, with the 95 %% interval of %s on %s of the same collections:", model, others)
    for _, row in scores.iterrows():
        log.info(
            "%s: %s in %s, %s; accuracy %.3f [%.3f, %.3f], macro F1 %.3f [%.3f, %.3f]",
            row["collection"],
            *(counted(row[f"n_{noun}s"], noun) for noun in ("clip", "group", "label")),
            *row.iloc[4:],
        )
    # By place, because a collection can have any name.
    of_all = scores.iloc[-2:].set_index("collection")[list(intervals.SCORES)]
    this_run.metrics["collections"] = of_all.to_dict("index")


def without_nan(row: dict[str, object]) -> dict[str, object]:
    """Return a row with None in place of NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in row.items()}


def write_results(
    output_dir: Path,
    table: pd.DataFrame,
    labels: list[str],
    logits: np.ndarray,
    row: dict[str, object],
    several: multi_label.Result | None,
) -> None:
    """Write the tables and metrics of the result."""
    intervals.warn_of_few_groups(str(row["split"]), table["group"].nunique())
    write_tables(output_dir, table, labels, logits, several)
    summary.write_metrics(output_dir / summary.METRICS_NAME, pd.DataFrame([row]))


def write_tables(
    output_dir: Path,
    table: pd.DataFrame,
    labels: list[str],
    logits: np.ndarray,
    several: multi_label.Result | None = None,
) -> None:
    """Write the predictions, the scores of each class and, with one label a clip, the confusion matrix."""
    label_ids = table["label_id"].to_numpy()
    if several is None:
        report = evaluation.per_class_report(label_ids, logits.argmax(axis=1), labels)
        confusion = evaluation.confusion_table(label_ids, logits.argmax(axis=1), labels)
        write_text(output_dir / "confusion_matrix.csv", confusion.to_csv())
    else:
        report = several.labels.copy()
        report.insert(1, "label", labels)
    missing = report.loc[report["support"] == 0, "label"]
    if len(missing):
        log.warning(
            "%d of %d labels have no clip here and no score: %s", len(missing), len(labels), some(list(missing))
        )
    predictions.write_predictions(output_dir, table, labels, logits, several and several.answers)
    write_text(output_dir / "classification_report.csv", report.to_csv(index=False))


def log_scores(row: dict, scored: str = "this model") -> None:
    """Log the scores of the model with their intervals, and its costs."""
    log.info(
        "%s, split by %s: %s of %s in %s, %d classes",
        row["split"],
        row["kept_together"],
        *(counted(row[f"n_{noun}s"], noun) for noun in ("clip", "recording", "group")),
        row["n_classes"],
    )
    if summary.has_several_labels(row):
        log_several(row, scored)
    else:
        log_one_label(row, scored)
    log.info(
        "%s%.3g M parameters, %.3g GMACs per clip (front end %.3g)",
        "" if row["kind"] == summary.CNN else f"{row['n_layers']} layers, ",
        row["n_parameters"] / 1e6,
        row["gmacs_per_clip"],
        row["gmacs_front_end"],
    )
    log.info(
        "%.1f ms per clip (front end %.1f), real-time factor %.4f, on %s",
        row["latency_ms_median"],
        row["latency_front_end_ms"],
        row["real_time_factor"],
        row["device"],
    )


def log_one_label(row: dict, scored: str) -> None:
    """Log accuracy, macro F1 and calibration of a model with one label a clip."""
    for name in ("accuracy", "macro_f1"):
        log.info(
            "%-9s %.3f  (95 %% interval %.3f to %.3f: %s on %s), of recordings %.3f",
            name,
            row[name],
            row[f"{name}_low"],
            row[f"{name}_high"],
            scored,
            verdicts.others(row["kept_together"]),
            row[f"recording_{name}"],
        )
    log.info(
        "expected calibration error %.3f; a perfectly calibrated model has %.3f on this number of clips",
        *(row["expected_calibration_error"], row["expected_calibration_error_if_calibrated"]),
    )


def log_several(row: dict, scored: str) -> None:
    """Log the scores of a model with several labels a clip."""
    words = {
        "macro_average_precision": f"cmAP (chance {row['chance_average_precision']:.3f})",
        "macro_auroc": "AUROC (chance 0.5)",
        "accuracy": "top-1 accuracy",
        "precision": "precision of detections",
        "recall": "recall of labels",
        "macro_f1": "macro F1 of detections",
        "false_alarms_per_hour": f"false alarms an hour ({row['background_hours']:.3g} h without a label)",
    }
    for name, text in words.items():
        ends = (row[name], row[f"{name}_low"], row[f"{name}_high"])
        others = verdicts.others(row["kept_together"])
        log.info("%s %.3f  (95 %% interval %.3f to %.3f: %s on %s)", text, *ends, scored, others)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
