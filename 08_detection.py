"""Find the songs and calls of a model's species in recordings of any length.

    python 08_detection.py --model_dir runs/cnn --raw_dir night --output_dir detections/night
    python 08_detection.py --model_dir runs/cnn --raw_dir night --output_dir detections/night --threshold 0.9
    python 08_detection.py --model_dir runs/cnn --raw_dir night --output_dir detections/night \\
        --overlap_seconds 2 --formats raven audacity

The recordings need no labels; --raw_dir is a folder with any subfolders, or one file. They are decoded as by stage 01
and cut into windows as long as the clips of the training. Memory does not depend on their length.

A window counts for a label if its score reaches the threshold of the label. The thresholds are those that
03_model_validation.py --fit_thresholds has fitted; a model without them needs --threshold. Windows of one label that
overlap or touch are one detection: from the start of the first to the end of the last, with the highest score.

Writes <output_dir>/detections.csv, skipped.csv with the files that cannot be used, log.txt and run.json; with
--save_scores scores.parquet with the score of every window and label; with --formats tables for other programs, in a
folder each; with --review N the page review.html. On it a person hears, for each label, the N windows with the highest
scores, N near the threshold and N drawn at random, and saves the answers (docs/review.md). If the stage is killed, the
same command continues it. The result does not depend on the number of workers.

On a cluster many jobs can share the recordings, and a last job merges their shares. The result is the same:

    python 08_detection.py --model_dir runs/cnn --raw_dir night --output_dir detections/night --shard 3/8
    python 08_detection.py --model_dir runs/cnn --raw_dir night --output_dir detections/night --merge_shards 8
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from utils.core import cli, lazy, replacing, runs, workers
from utils.core.errors import AlreadyComplete, UsageError
from utils.core.text import counted
from utils.data import annotations, preparation, recordings, shards, spool
from utils.field import detections, field_model, review, scores_table, scoring
from utils.figures import review_page

with lazy.imported_on_first_use():
    from utils.models import start_line

STAGE = Path(__file__).stem
OUTPUTS = (
    detections.NAME,
    scores_table.NAME,
    review_page.NAME,
    "skipped.csv",
    *(f"{name}/*" for name in annotations.FORMATS),
)
SHARD_OUTPUTS = (f"{shards.SPOOL_NAME}/*", shards.LISTING_NAME, shards.DECODED_NAME)
SPEED_ARGUMENTS = {"num_workers", "merge_shards"}
SHARD_NEUTRAL_ARGUMENTS = SPEED_ARGUMENTS | {"formats", "combined", "seed"}

log = logging.getLogger(STAGE)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument(
        "--model_dir",
        type=Path,
        required=True,
        help="run folder of 02_finetuning.py or 06_cnn.py, a model folder, or a file of 07_manual_pruning.py --export",
    )
    parser.add_argument("--raw_dir", type=Path, required=True, help="folder of recordings, or one recording")
    parser.add_argument(
        "--overlap_seconds",
        type=cli.non_negative_float,
        default=0.0,
        help="overlap of a window with the next one, in s; it is below the length of a window",
    )
    parser.add_argument(
        "--threshold",
        type=cli.fraction,
        default=None,
        help="lowest score of a detection, for all labels (default: the fitted threshold of each label)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=sorted(annotations.FORMATS),
        default=[],
        metavar="FORMAT",
        help=f"also write tables for other programs: {' '.join(sorted(annotations.FORMATS))}",
    )
    parser.add_argument(
        "--combined", action="store_true", help="one table of --formats for all recordings, instead of one for each"
    )
    parser.add_argument(
        "--save_scores",
        action="store_true",
        help=f"also write {scores_table.NAME}: the score of every window and label",
    )
    parser.add_argument(
        "--review",
        type=cli.positive_int,
        metavar="N",
        help=f"also write {review_page.NAME}: per label the N best windows, N near the threshold and N at random",
    )
    parser.add_argument("--batch_size", type=cli.positive_int, default=8, help="windows per batch")
    parser.add_argument(
        "--num_workers",
        type=cli.positive_int,
        default=workers.available_cpus(),
        help="worker processes on a CPU, or threads that decode for a GPU (default: one per CPU, here "
        f"{workers.available_cpus()})",
    )
    shards.add_arguments(
        *(parser, "only listen to the I-th of N shares of the recordings, into <output_dir>.shards/I-of-N"),
        "listen to nothing: check and merge what the N jobs with --shard found",
    )
    cli.add_common_arguments(parser, output_dir=None)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the detections in recordings, or one shard of them."""
    raw_dir, paths, skipped = recordings.find_audio(args.raw_dir)
    listed, vanished = preparation.list_files(raw_dir, paths)
    model = field_model.read(args.model_dir, args.threshold)
    inputs = model.inputs | {"raw_dir": runs.Input(str(args.raw_dir), preparation.listing_sha256(listed.values()))}
    check_arguments(args, model, listed)
    if args.shard is not None:
        listen_to_shard(shards.args_of_shard(args, args.shard), inputs, model, raw_dir, listed)
    else:
        detect(args, inputs, model, raw_dir, listed, skipped + vanished)


def check_arguments(
    args: argparse.Namespace, model: field_model.FieldModel, listed: Mapping[str, spool.Listed]
) -> None:
    """Refuse values that do not go together, or not with the recordings."""
    model.check_overlap(args.overlap_seconds)
    if args.device == "cuda" and model.exported:
        raise UsageError(f"--device cuda: {args.model_dir} is an exported file, which runs on the CPU")
    if args.combined and not args.formats:
        raise UsageError("--combined is for the tables of --formats: name one")
    alone = [name for name in args.formats if not annotations.FORMATS[name].HOLDS_SEVERAL_FILES]
    if args.combined and alone:
        raise UsageError(f"--combined: a table of {alone[0]} belongs to one recording; leave it out of --formats")
    for folder in (args.output_dir, shards.shard_dir(args.output_dir, 1, 1).parent):
        replacing.check_apart(folder, {name: getattr(args, name) for name in ("raw_dir", "model_dir")})
    for name in args.formats:
        detections.check_names(listed, name, args.combined)


def detect(
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    model: field_model.FieldModel,
    raw_dir: Path,
    listed: dict[str, spool.Listed],
    skipped: list[recordings.Skipped],
) -> None:
    """Write the detections; `skipped` are left out already."""
    merge, scratch = None, preparation.SCRATCH_NAME
    if args.merge_shards is not None:
        merge = shards.begin_merge(
            *(build_parser(), STAGE, args, inputs, inputs, list(listed.values())),
            *(SPEED_ARGUMENTS, SHARD_NEUTRAL_ARGUMENTS, scoring.scored_by()),
        )
    try:
        with runs.open_run(
            STAGE,
            args,
            inputs,
            outputs=OUTPUTS,
            result_neutral=SPEED_ARGUMENTS,
            scratch={scratch},
            reusable={scratch},  # its files record their inputs
            disposable={f"{scratch}/*", "skipped.csv"},
        ) as this_run:
            results_dir = (args.output_dir / scratch).absolute()
            results_dir.mkdir(exist_ok=True)
            wanted = list(listed.values())
            if merge is not None:
                with this_run.timed("checking"):
                    merge.check_files(map)
                    found = merge.gather(wanted, scoring.Scored.from_json)
            else:
                found = listen(args, this_run, model, raw_dir, results_dir, wanted)
            with this_run.timed("writing"):
                write_results(args, this_run, model, raw_dir, found, skipped)
            if args.review:
                with this_run.timed("review"):
                    write_review(args, model, raw_dir, listed, found)
            if merge is not None:
                merge.finish()
    except AlreadyComplete:
        shutil.rmtree(args.output_dir / scratch, ignore_errors=True)  # a kill after the very last step leaves it
        raise
    # Deleted last, so that a run that is killed while it hashes the outputs repeats little work.
    shutil.rmtree(args.output_dir / scratch)


def listen_to_shard(
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    model: field_model.FieldModel,
    raw_dir: Path,
    listed: dict[str, spool.Listed],
) -> None:
    """Write the results of one shard to ``args.output_dir``, which is the shard's own."""
    with runs.open_run(
        STAGE,
        args,
        inputs,
        outputs=SHARD_OUTPUTS,
        result_neutral=SHARD_NEUTRAL_ARGUMENTS,
        reusable={shards.SPOOL_NAME},
        recompute=args.overwrite,  # the merge asks for it if other code scored or divided the files
    ) as this_run:
        shards.write_listing(args.output_dir, list(listed.values()))
        own = shards.deal(list(listed.values()), args.shard.n)[args.shard.number - 1]
        log.info(
            "shard %s: %d of %d files, %.3g GB",
            *(args.shard, len(own), len(listed), sum(file.size for file in own) / 1e9),
        )
        results_dir = (args.output_dir / shards.SPOOL_NAME).absolute()
        results_dir.mkdir(exist_ok=True)
        found = listen(args, this_run, model, raw_dir, results_dir, own)
        preparation.report([f"{skip.file}: {skip.reason}" for skip in found.undecodable], "left out")
        shards.write_decoded(args.output_dir, found, scoring.SUFFIXES)
        this_run.metrics |= {**count(found, len(found.undecodable)), "decoded_by": scoring.scored_by()}
        log.info("%s, shard %s: %s -> %s", args.raw_dir, args.shard, describe(this_run.metrics), args.output_dir)


def listen(
    args: argparse.Namespace,
    this_run: runs.Run,
    model: field_model.FieldModel,
    raw_dir: Path,
    results_dir: Path,
    files: Sequence[spool.Listed],
) -> preparation.Decoded:
    """Decode and score recordings, with their results in a folder; return what each gave."""
    device = this_run.choose_device("cpu" if model.exported else args.device)
    loaded = model.exported or scoring.load(args.model_dir, device)
    with this_run.checking():
        windows = model.windows(loaded.sample_rate_hz, args.overlap_seconds)
    if model.exported:
        log.info("device cpu (%s); model %s: %s", this_run.device, args.model_dir, loaded)
    else:
        start_line.log_start(args.device, device, {str(args.model_dir): loaded.model}, {})
    model.log_thresholds()
    log.info(
        "%s: %s; windows of %g s, one every %g s; %d at once, %s",
        *(args.raw_dir, counted(len(files), "file"), model.clip_seconds, windows.hop / windows.sample_rate_hz),
        *(args.batch_size, counted(args.num_workers, "worker")),
    )
    how = scoring.How(
        *(raw_dir.absolute(), results_dir, args.model_dir.absolute(), model.sha256, device, windows),
        *(model.channel, model.thresholds_by_id(), args.batch_size, args.save_scores or args.review is not None),
    )
    start_s = time.perf_counter()
    with this_run.timed("listening"):
        scored = scoring.score_all(how, files, args.num_workers, loaded) if files else iter(())
        results = list(runs.progress(scored, len(files), "listening", "files"))
    sounds = {result.path: result for result in results if isinstance(result, scoring.Scored)}
    undecodable = sorted((r for r in results if isinstance(r, recordings.Skipped)), key=lambda skip: skip.file)
    seconds, took_s = sum(sound.duration_s for sound in sounds.values()), time.perf_counter() - start_s
    log.info("%.2f h of sound in %.1f s: %.0f s of sound in 1 s", seconds / 3600, took_s, seconds / took_s)
    return preparation.Decoded(sounds, dict.fromkeys(sounds, results_dir), undecodable)


def write_results(
    args: argparse.Namespace,
    this_run: runs.Run,
    model: field_model.FieldModel,
    raw_dir: Path,
    found: preparation.Decoded,
    skipped: list[recordings.Skipped],
) -> None:
    """Write all tables."""
    sounds = dict(sorted(found.sounds.items()))
    preparation.report_odd_sounds(sounds)
    skipped = sorted(skipped + found.undecodable, key=lambda skip: skip.file)
    preparation.write_skipped(args.output_dir, skipped)
    preparation.report([f"{skip.file}: {skip.reason}" for skip in skipped], "left out")
    preparation.check_any_left(sounds, skipped, args.raw_dir)

    def rows(path: str) -> list[detections.Annotation]:
        own = scoring.read_detections(found.spool_dirs[path], path)
        return detections.as_annotations(path, own, model.labels, sounds[path].sample_rate_hz)

    detections.write_csv(
        args.output_dir / detections.NAME,
        ((sound.start, rows(path)) for path, sound in sounds.items()),
        model.thresholds,
    )
    top_hz = min(sound.sample_rate_hz for sound in sounds.values()) / 2
    for name in args.formats:
        tables = ((path, sound.duration_s, rows(path)) for path, sound in sounds.items())
        n_tables = detections.write_tables(args.output_dir, name, tables, raw_dir, top_hz, args.combined)
        log.info("%s for %s: %s", counted(n_tables, "table"), name, args.output_dir / name)
    if args.save_scores:
        write_scores(args, model, found, sounds)
    n_of_label = count_labels(model, sounds, rows)
    this_run.metrics |= {**count(found, len(skipped)), "detections": n_of_label}
    unknown = [path for path, sound in sounds.items() if not sound.start.time or sound.start.is_glued]
    if unknown:
        n_all = counted(len(sounds), "recording")
        log.info("recorded_at is empty for %d of %s, whose start time is not known", len(unknown), n_all)
    log.info("%s: %s -> %s", args.raw_dir, describe(this_run.metrics), args.output_dir / detections.NAME)


def write_scores(
    args: argparse.Namespace,
    model: field_model.FieldModel,
    found: preparation.Decoded,
    sounds: Mapping[str, scoring.Scored],
) -> None:
    """Write the score of every window and label."""
    rate_hz = next(iter(sounds.values())).sample_rate_hz
    windows = model.windows(rate_hz, args.overlap_seconds)
    kept = (
        (path, sound.n_samples, scoring.read_scores(found.spool_dirs[path], sound)) for path, sound in sounds.items()
    )
    n_rows = scores_table.write(args.output_dir / scores_table.NAME, model.labels, windows, kept)
    log.info("scores of %d windows and %d labels: %s", n_rows, len(model.labels), args.output_dir / scores_table.NAME)


def write_review(
    args: argparse.Namespace,
    model: field_model.FieldModel,
    raw_dir: Path,
    listed: dict[str, spool.Listed],
    found: preparation.Decoded,
) -> None:
    """Write the page on which a person hears windows and answers."""
    path, rate_hz = args.output_dir / review_page.NAME, next(iter(found.sounds.values())).sample_rate_hz
    windows = model.windows(rate_hz, args.overlap_seconds)
    how = args.review, args.seed, args.num_workers
    log.info("%d windows to review: %s", review.write(path, model, windows, raw_dir, listed, found, *how), path)


def count(found: preparation.Decoded, n_skipped: int) -> dict[str, object]:
    """Return the numbers of recordings, hours, windows and detections; `n_skipped` files cannot be used."""
    sounds = found.sounds.values()
    return {
        "n_files": len(found.sounds),
        "n_skipped": n_skipped,
        "hours": round(sum(sound.duration_s for sound in sounds) / 3600, 4),
        "n_windows": sum(sound.n_windows for sound in sounds),
        "n_detections": sum(sound.n_detections for sound in sounds),
    }


def describe(metrics: Mapping[str, object]) -> str:
    """Return the numbers of `count` as text."""
    return (
        f"{counted(metrics['n_files'], 'file')}, {metrics['hours']:.2f} h, {counted(metrics['n_windows'], 'window')}: "
        f"{counted(metrics['n_detections'], 'detection')}; {counted(metrics['n_skipped'], 'file')} cannot be used"
    )


def count_labels(model: field_model.FieldModel, sounds: Mapping[str, scoring.Scored], rows: Callable) -> dict[str, int]:
    """Return the number of detections of each label that has one, the most frequent first."""
    counts = dict.fromkeys(model.labels, 0)
    for path in sounds:
        for row in rows(path):
            counts[row.label] += 1
    return {label: n for label, n in sorted(counts.items(), key=lambda item: -item[1]) if n}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
