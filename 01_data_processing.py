"""Turn a folder of recordings into labelled clips, divided into train, val and test or into folds.

    python 01_data_processing.py --raw_dir recordings --output_dir processed_data
    python 01_data_processing.py --raw_dir recordings --metadata recordings/metadata.csv --min_recordings 7
    python 01_data_processing.py --raw_dir recordings --metadata recordings/metadata.csv --folds 5

Without --metadata each species has its own folder. With it a CSV gives the file and label of each
recording, and recording_id and recordist if they are known. Each file is decoded, mixed to mono,
resampled and then cut. All clips by one recordist are on one side of the split, or in one fold. A run
needs 115 MB of scratch space per hour of sound at 16 kHz. If it is killed, the same command continues it.
The result does not depend on the number of workers.

On a cluster many jobs can share the decoding. Each decodes one shard, and a last job merges the shards.
The result is the same:

    python 01_data_processing.py --raw_dir recordings --output_dir processed_data --shard 3/8
    python 01_data_processing.py --raw_dir recordings --output_dir processed_data --merge_shards 8
"""

import argparse
import contextlib
import dataclasses
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from utils.core import cli, replacing, runs, workers
from utils.core.errors import AlreadyComplete, UsageError
from utils.core.text import counted
from utils.data import (
    annotated,
    channels,
    clips,
    label_names,
    preparation,
    recordings,
    recordings_table,
    recordists,
    shards,
    splits,
    spool,
    windows,
)

STAGE = Path(__file__).stem
OUTPUTS = (clips.PART_NAMES, clips.LABELS_NAME, recordings_table.NAME, "split_report.csv", "skipped.csv")
OUTPUTS += (preparation.SIMILAR_NAME, preparation.NEAR_COPIES_NAME)
SHARD_OUTPUTS = (f"{shards.SPOOL_NAME}/*", shards.LISTING_NAME, shards.DECODED_NAME)
SPEED_ARGUMENTS = {"num_workers", "merge_shards"}
# Sound from --shard is neither cut nor split.
SHARD_NEUTRAL_ARGUMENTS = SPEED_ARGUMENTS | {
    "clip_seconds",
    "remainder",
    "min_seconds",
    "min_remainder_seconds",
    "recordist_level",
    "same_recordist",
    "split_by",
    "val_fraction",
    "test_fraction",
    "folds",
    "collection_column",
    "min_overlap_s",
    "background",
    "secondary_labels",
    "seed",
}

log = logging.getLogger(STAGE)


def number_of_folds(text: str) -> int:
    """Parse the number of folds."""
    most = len(splits.FOLDS)
    if not re.fullmatch(r"\d{1,2}", text, flags=re.ASCII) or not splits.FEWEST_FOLDS <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of folds; expected {splits.FEWEST_FOLDS} to {most}: one tests, one chooses "
            "the epoch, the others train"
        )
    return int(text)


def channel(text: str) -> str:
    """Parse ``mean``, ``left``, ``right``, ``best`` or ``3``."""
    if not channels.is_channel(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a channel; expected {channels.EXPECTED}")
    return text


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--raw_dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument(
        "--metadata", type=Path, default=None, help="CSV with file,label[,recording_id][,recordist] (default: none)"
    )
    parser.add_argument(
        "--label_level",
        type=cli.positive_int,
        default=None,
        help="without --metadata: level of the folders that name the labels; 1 is directly in raw_dir "
        "(default: the first level with two or more folders)",
    )
    parser.add_argument(
        "--recordist_level",
        type=cli.positive_int,
        default=None,
        help="level of the folders that name recordists or sites, used if neither the table nor xeno-canto tags name "
        "a recordist: the split keeps each together (default: none)",
    )
    parser.add_argument(
        "--same_recordist",
        type=Path,
        default=None,
        help="CSV, one row per person: all names of the person, such as Lars Lachmann,L. Lachmann (default: none)",
    )
    parser.add_argument("--sample_rate", type=cli.positive_int, default=16000, help="of the clips, in Hz")
    parser.add_argument(
        "--channel",
        type=channel,
        default="mean",
        help="mean of all channels; left, right, or a number from 1; best: the channel with most power. If channels "
        "cancel in the mean, best is used",
    )
    parser.add_argument("--clip_seconds", type=cli.positive_float, default=5.0, help="length of a clip, in s")
    parser.add_argument(
        "--remainder",
        choices=["pad", "drop"],
        default="pad",
        help="the rest of a recording after its last whole clip: pad repeats it to a whole clip, drop leaves it out",
    )
    parser.add_argument(
        "--min_seconds", type=cli.non_negative_float, default=0.1, help="leave out recordings shorter than this, in s"
    )
    parser.add_argument(
        "--min_remainder_seconds",
        type=cli.non_negative_float,
        default=1.0,
        help="leave out the rest of a recording after its last whole clip if it is shorter than this, in s",
    )
    parser.add_argument(
        "--min_recordings", type=cli.positive_int, default=25, help="leave out labels with fewer recordings"
    )
    parser.add_argument(
        "--split_by", choices=splits.SPLIT_BY, default="recordist", help="unit that the split keeps together"
    )
    parser.add_argument("--val_fraction", type=cli.fraction, default=0.15, help="share of the clips for val")
    parser.add_argument("--test_fraction", type=cli.fraction, default=0.15, help="share of the clips for test")
    parser.add_argument(
        "--num_workers",
        type=cli.positive_int,
        default=workers.available_cpus(),
        help=f"worker processes (default: one per CPU, here {workers.available_cpus()})",
    )
    parser.add_argument(
        "--folds",
        type=number_of_folds,
        default=None,
        metavar="K",
        help="divide into K folds of equal size instead: each recordist is in one test fold; 02 to 07 take --fold 1 to "
        "K (default: one split)",
    )
    parser.add_argument(
        "--collection_column",
        default=None,
        help="column of --metadata that names the collection of a recording: archive, publisher or project. Stage 03 "
        "then gives scores per collection (default: collection, if the table has it)",
    )
    add_annotation_arguments(parser)
    add_unlabelled_argument(parser)
    shards.add_arguments(
        *(parser, "only decode the I-th of N shares of the recordings, into <output_dir>.shards/I-of-N"),
        "decode nothing: check and merge the sound that the N jobs with --shard decoded",
    )
    cli.add_common_arguments(parser, output_dir="processed_data")
    return parser


def add_unlabelled_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--unlabelled``; None stands for False, as in data sets of earlier versions."""
    parser.add_argument(
        "--unlabelled",
        action="store_const",
        const=True,
        default=None,
        help="cut all recordings of raw_dir, in any folders, without labels and without a split: for --unlabelled_dir "
        "of 02 and 06, where a student hears them with its teacher. --metadata can name recordists",
    )


def add_annotation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of labels with times and of several labels; None stands for their defaults."""
    parser.add_argument(
        "--annotations",
        type=Path,
        default=None,
        help="table of labels with times, or folder of such tables: Raven, Audacity, BirdNET, Kaleidoscope, or CSV "
        "with file,start,end,label. A clip has the labels that overlap it; a clip without a label is silence "
        "(default: none)",
    )
    parser.add_argument(
        "--min_overlap_s",
        type=cli.positive_float,
        default=None,
        help=f"with --annotations: overlap that gives a clip the label, in s (default: {windows.MIN_OVERLAP_S:g})",
    )
    parser.add_argument(
        "--background",
        nargs="*",
        default=None,
        metavar="LABEL",
        help=f"with --annotations: labels that are not classes (default: {' '.join(annotated.BACKGROUND)})",
    )
    parser.add_argument(
        "--label_column",
        default=None,
        help="with --annotations: column of the label (default: the usual names, such as Species or Annotation)",
    )
    parser.add_argument(
        "--secondary_labels",
        action="store_const",
        const=True,
        default=None,
        help="use the other species that --metadata names for a recording (secondary_labels, also, background): in "
        "training and in the scores, the clips count neither for nor against them (default: not used)",
    )


def run(args: argparse.Namespace) -> None:
    """Write a processed data set, or one shard of its decoded sound."""
    check_arguments(args)
    annotations = read_annotations(args)
    files, skipped = recordings.find_recordings(
        *(args.raw_dir, args.metadata, args.label_level, args.collection_column),
        covered=None if annotations is None else annotations.names,
        uses_secondary=bool(args.secondary_labels),
        named_after=() if annotations is None else annotations.named_after,
    )
    listed, vanished = preparation.list_files(args.raw_dir, [file.path for file in files])
    files = [file for file in files if file.path in listed]
    if args.recordist_level is not None:
        recordings.check_recordist_level(files, args.recordist_level, args.raw_dir)
    inputs = {"raw_dir": runs.Input(str(args.raw_dir), preparation.listing_sha256(listed.values()))}
    if args.metadata is not None:
        inputs["metadata"] = runs.file_input(args.metadata)
    if args.annotations is not None:
        inputs["annotations"] = runs.Input(str(args.annotations), annotations.sha256)
    if args.shard is not None:
        decode_shard(shards.args_of_shard(args, args.shard), inputs, files, listed, annotations)
    else:
        make_data_set(args, inputs, files, listed, skipped + vanished, annotations)


def read_annotations(args: argparse.Namespace) -> annotated.Annotations | None:
    """Read the tables of labels with times, if there are any."""
    if args.unlabelled:
        return annotated.without_labels(recordings.find_audio(args.raw_dir)[1])
    if args.annotations is None:
        return None
    background = annotated.BACKGROUND if args.background is None else args.background
    return annotated.read(args.annotations, args.label_column, background, args.min_overlap_s or windows.MIN_OVERLAP_S)


def make_data_set(
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    files: list[recordings.SourceFile],
    listed: dict[str, spool.Listed],
    skipped: list[recordings.Skipped],
    annotations: annotated.Annotations | None,
) -> None:
    """Write a processed data set; `files` are sorted by recording, `skipped` are left out already."""
    merge, of_shards, same = None, inputs, []
    if args.same_recordist is not None:
        inputs = inputs | {"same_recordist": runs.file_input(args.same_recordist)}
        same = recordists.read_same_recordist(args.same_recordist)
    if args.merge_shards is not None:
        merge = shards.begin_merge(
            *(build_parser(), STAGE, args, inputs, of_shards, list(listed.values())),
            *(SPEED_ARGUMENTS, SHARD_NEUTRAL_ARGUMENTS, spool.decoded_by()),
        )
    scratch = preparation.SCRATCH_NAME
    try:
        with (
            runs.open_run(
                STAGE,
                args,
                inputs,
                outputs=OUTPUTS,
                result_neutral=SPEED_ARGUMENTS,
                scratch={scratch},
                reusable={scratch},  # its files record their inputs
                disposable={f"{scratch}/*", "skipped.csv"},
            ) as this_run,
            working(args, files) as pool_map,
        ):
            (args.output_dir / scratch).mkdir(exist_ok=True)
            process(args, this_run, pool_map, merge, files, listed, skipped, same, annotations)
    except AlreadyComplete:
        shutil.rmtree(args.output_dir / scratch, ignore_errors=True)  # a kill after the very last step leaves it
        raise
    # Deleted last, so that a run that is killed while it hashes the outputs repeats little work.
    shutil.rmtree(args.output_dir / scratch)


def decode_shard(
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    files: list[recordings.SourceFile],
    listed: dict[str, spool.Listed],
    annotations: annotated.Annotations | None,
) -> None:
    """Write the decoded sound of one shard to ``args.output_dir``, which is the shard's own."""
    with (
        runs.open_run(
            STAGE,
            args,
            inputs,
            outputs=SHARD_OUTPUTS,
            result_neutral=SHARD_NEUTRAL_ARGUMENTS,
            reusable={shards.SPOOL_NAME},
            recompute=args.overwrite,  # the merge asks for it if other code decoded or divided the files
        ) as this_run,
        working(args, files) as pool_map,
    ):
        shards.write_listing(args.output_dir, list(listed.values()))
        files, _ = worth_decoding(args, files, annotations)
        own = shards.deal([listed[file.path] for file in files], args.shard.n)[args.shard.number - 1]
        n_bytes = sum(file.size for file in own)
        log.info("shard %s: %d of %d files, %.3g GB", args.shard, len(own), len(files), n_bytes / 1e9)
        spool_dir = args.output_dir / shards.SPOOL_NAME
        spool_dir.mkdir(exist_ok=True)
        preparation.check_scratch(args.raw_dir, spool_dir, args.sample_rate, own, writes_clips=False)
        with this_run.timed("decoding"):
            how = args.sample_rate, args.channel, pool_map, args.num_workers
            decoded = preparation.decode(args.raw_dir, spool_dir, *how, own)
        preparation.report_odd_sounds(decoded.sounds)
        preparation.report([f"{skip.file}: {skip.reason}" for skip in decoded.undecodable], "left out")
        shards.write_decoded(args.output_dir, decoded, {".pcm", spool.MARKER_SUFFIX})
        hours = sum(sound.n_samples for sound in decoded.sounds.values()) / args.sample_rate / 3600
        this_run.metrics |= {
            "n_files": len(decoded.sounds),
            "n_undecodable": len(decoded.undecodable),
            "hours": round(hours, 4),
            "decoded_by": spool.decoded_by(),
        }
        log.info(
            "%s, shard %s: %s -> %s: %.2f h; %d cannot be decoded",
            *(args.raw_dir, args.shard, counted(len(own), "file"), args.output_dir, hours, len(decoded.undecodable)),
        )


@contextlib.contextmanager
def working(args: argparse.Namespace, files: list[recordings.SourceFile]) -> Iterator[workers.Map]:
    """Start the workers; log the input first, so that a wrong folder or table is seen before hours of decoding."""
    n_workers, n_labels = min(args.num_workers, len(files) or 1), len({file.label for file in files})
    split_by = "" if args.unlabelled else f", split by {args.split_by}"
    runs.log_cpu_only(args.device)
    log.info(
        "device cpu (%s), worker processes: %d; %s: %s%s; clips of %g s at %d Hz%s",
        *(runs.device_name("cpu"), n_workers, args.raw_dir, counted(len(files), "file")),
        f", {counted(n_labels, 'label')}" if args.annotations is None and not args.unlabelled else "",
        *(args.clip_seconds, args.sample_rate, split_by),
    )
    with workers.worker_pool(n_workers) as pool_map:
        yield pool_map


def worth_decoding(
    args: argparse.Namespace, files: list[recordings.SourceFile], annotations: annotated.Annotations | None
) -> tuple[list[recordings.SourceFile], list[recordings.Skipped]]:
    """Leave out labels with too few recordings, before decoding; refuse if fewer than two labels remain."""
    if args.unlabelled:
        return files, []
    if annotations is not None:  # a file with rare labels alone may hold silence
        found, too_few = annotated.count_recordings(annotations, files), []
        labels = {label for label, n in found.items() if n >= args.min_recordings}
    else:
        found = {file.label for file in files}
        files, too_few = preparation.drop_rare_labels(files, args.min_recordings)
        labels = {file.label for file in files}
    preparation.check_two_labels(labels, found, too_few, args.raw_dir, args.min_recordings)
    if annotations is not None or args.secondary_labels:
        recordings_table.check_labels(labels)
    return files, too_few


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse values that do not go together."""
    if args.label_level is not None and args.metadata is not None:
        raise UsageError("--label_level and --metadata both give the labels: leave one out")
    if args.collection_column is not None and args.metadata is None:
        raise UsageError("--collection_column names a column of --metadata: give --metadata too")
    if args.secondary_labels and args.metadata is None:
        raise UsageError("--secondary_labels uses a column of --metadata: give --metadata too")
    if args.unlabelled:
        others = (
            *("annotations", "min_overlap_s", "background", "label_column", "label_level", "secondary_labels"),
            *("min_recordings", "collection_column"),
            *("split_by", "val_fraction", "test_fraction", "folds", "shard", "merge_shards"),
        )
        if given := cli.changed(build_parser(), args, others):
            raise UsageError(f"--unlabelled makes no labels and no split: leave --{given[0]} out")
    if args.label_level is not None and args.annotations is not None:
        raise UsageError("--label_level and --annotations both give the labels: leave one out")
    for name in ("min_overlap_s", "background", "label_column"):
        if getattr(args, name) is not None and args.annotations is None:
            raise UsageError(f"--{name} says how --annotations are read: give --annotations too")
    if (args.min_overlap_s or 0) > args.clip_seconds:
        raise UsageError(
            f"--min_overlap_s {args.min_overlap_s} is longer than a clip ({args.clip_seconds} s): no clip would have a "
            "label"
        )
    clip_samples = round(args.clip_seconds * args.sample_rate)
    if not clips.SHORTEST_CLIP <= clip_samples <= clips.LARGEST_CLIP:
        raise UsageError(
            f"--clip_seconds {args.clip_seconds} at --sample_rate {args.sample_rate} is a clip of {clip_samples} "
            f"samples; the later stages need {clips.SHORTEST_CLIP} to {clips.LARGEST_CLIP}"
        )
    if args.min_seconds > args.clip_seconds:
        raise UsageError(
            f"--min_seconds {args.min_seconds} is longer than --clip_seconds {args.clip_seconds}: no clip would be left"
        )
    if args.folds is not None and (given := cli.changed(build_parser(), args, ("val_fraction", "test_fraction"))):
        raise UsageError(
            f"--folds {args.folds} makes folds of equal size, and val is one of them: leave --{given[0]} out"
        )
    if args.val_fraction + args.test_fraction >= 1:
        raise UsageError(
            f"--val_fraction {args.val_fraction} and --test_fraction {args.test_fraction} leave nothing to train on; "
            "expected a sum below 1"
        )
    named = {name: getattr(args, name) for name in ("raw_dir", "metadata", "annotations", "same_recordist")}
    read = {name: path for name, path in named.items() if path is not None}
    for folder in (args.output_dir, shards.shard_dir(args.output_dir, 1, 1).parent):
        replacing.check_apart(folder, read)


def process(
    args: argparse.Namespace,
    this_run: runs.Run,
    pool_map: workers.Map,
    merge: shards.Merge | None,
    files: list[recordings.SourceFile],
    listed: dict[str, spool.Listed],
    skipped: list[recordings.Skipped],
    same: list[list[str]],
    annotations: annotated.Annotations | None,
) -> None:
    """Decode the files or take the shards, then filter, split, cut and write."""
    n_found = len(files) + len(skipped)
    clip_format = preparation.ClipFormat(
        *(args.sample_rate, args.clip_seconds, args.min_seconds, args.min_remainder_seconds, args.remainder)
    )
    files, too_few = worth_decoding(args, files, annotations)
    wanted = [listed[file.path] for file in files]
    decoded = decode_or_take(args, this_run, pool_map, merge, wanted)
    preparation.report_odd_sounds(decoded.sounds)
    with this_run.timed("cutting"):
        recorded, found, unusable, rare = cut(args, clip_format, pool_map, files, decoded, same, annotations)
    rows = [] if annotations is None else annotations.skipped
    skipped = sorted(skipped + too_few + unusable + rare + rows, key=lambda skip: skip.file)
    preparation.write_skipped(args.output_dir, skipped)
    preparation.report([f"{skip.file}: {skip.reason}" for skip in unusable], "left out")
    labels = preparation.all_labels(recorded)
    if args.unlabelled:
        preparation.check_any_left(recorded, skipped, args.raw_dir)
    else:
        preparation.check_two_labels(labels, found, unusable + rare, args.raw_dir, args.min_recordings)

    preparation.report_short_clips(clip_format, recorded)
    fractions = (0.0, 0.0) if args.unlabelled else (args.val_fraction, args.test_fraction)
    stretches, warnings = preparation.split(recorded, args.split_by, *fractions, args.folds, args.seed)
    for warning in () if args.unlabelled else warnings:
        log.warning("%s", warning)
    who = {r.file.recording_id: r.file.recordist for r in recorded}
    label_names.warn_of_odd_labels(
        Counter(label for _, label in {(r.file.recording_id, x) for r in recorded for x in r.labels})
    )
    n_known = sum(recordist is not None for recordist in who.values())
    if n_known == 0 and args.split_by in splits.BY_RECORDIST and not args.unlabelled:
        log.warning(
            "no recordist is known, so the split is by recording: one person can be in train and in test, and scores "
            "are too high for new recordists. A metadata table can name recordists, and so can the tags of mp3 files "
            "from xeno-canto"
        )
    if not args.unlabelled:
        preparation.write_similar_recordists(args.output_dir, recorded)
    with this_run.timed("writing"):
        n_parts = preparation.write_parts(
            args.output_dir, clip_format, pool_map, recorded, stretches, decoded.spool_dirs
        )
    clips.write_labels(args.output_dir, labels)
    n_recordings = recordings_table.write_recordings(args.output_dir, args.sample_rate, recorded, stretches)
    recordings_table.warn_of_labels_of_one_collection(args.output_dir)
    preparation.write_split_report(args.output_dir, clip_format.clip_samples, stretches, args.folds)
    preparation.warn_of_formulas(recorded, skipped)

    n_clips = Counter(name for stretch in stretches for name in stretch.splits)
    heard = preparation.who_was_heard(recorded, stretches, args.folds)
    if not args.unlabelled:
        log.info("test clips: %d; %s", heard.n_clips, heard)
    this_run.metrics |= {
        "n_files_found": n_found,
        "n_files": len(recorded),
        "n_skipped": len(skipped),
        "n_recordings": n_recordings,
        "n_labels": len(labels),
        "n_clips": {name: n_clips[name] for name in splits.names_of_parts(args.folds)},
        "n_parts": n_parts,
        "n_recordings_with_recordist": n_known,
        "n_recordists": len(set(who.values()) - {None}),
        "kept_together": splits.kept_together(args.split_by, n_known, len(who)),
        "heard_in_train": dataclasses.asdict(heard),
        "hours": round(sum(r.sound.n_samples for r in recorded) / args.sample_rate / 3600, 4),
    }
    if recorded[0].windows is not None and not args.unlabelled:
        this_run.metrics |= annotated.count_clips(recorded)
    log_end(args, this_run.metrics)
    if merge is not None:
        merge.finish()


def decode_or_take(
    args: argparse.Namespace,
    this_run: runs.Run,
    pool_map: workers.Map,
    merge: shards.Merge | None,
    wanted: list[spool.Listed],
) -> preparation.Decoded:
    """Decode files into the scratch folder, or check and take the sound that jobs with ``--shard`` decoded."""
    if merge is not None:
        with this_run.timed("checking"):
            merge.check_files(pool_map)
            return merge.gather(wanted, spool.Spooled.from_json)
    with this_run.timed("decoding"):
        spool_dir = args.output_dir / preparation.SCRATCH_NAME
        preparation.check_scratch(args.raw_dir, spool_dir, args.sample_rate, wanted, writes_clips=True)
        how = args.sample_rate, args.channel, pool_map, args.num_workers
        return preparation.decode(args.raw_dir, spool_dir, *how, wanted)


def cut(
    args: argparse.Namespace,
    clip_format: preparation.ClipFormat,
    pool_map: workers.Map,
    files: list[recordings.SourceFile],
    decoded: preparation.Decoded,
    same: list[list[str]],
    annotations: annotated.Annotations | None,
) -> tuple[list[preparation.Recorded], list[str], list[recordings.Skipped], list[recordings.Skipped]]:
    """Return the files with clips, the labels before rare ones are dropped, and the files without clips.

    The latter are two lists: files that cannot be used, and files whose labels have become too rare.
    """
    sounds = decoded.sounds
    files, ambiguous = recordings.complete(
        files, {path: sound.tags for path, sound in sounds.items()}, args.recordist_level, same
    )
    recorded, too_short = preparation.cut(clip_format, [(f, sounds[f.path]) for f in files if f.path in sounds])
    recorded = preparation.find_near_copies(args.output_dir, args.sample_rate, pool_map, recorded, decoded.spool_dirs)
    unusable = decoded.undecodable + too_short + ambiguous
    if annotations is not None:
        recorded, late = annotated.label_windows(annotations, recorded, args.sample_rate)
        unusable += late
    if not args.unlabelled:  # without labels none contradict
        recorded, contradictory = (
            preparation.drop_contradictions(recorded)
            if annotations is None
            else annotated.drop_contradictions(annotations, recorded, args.sample_rate)
        )
        unusable += contradictory
    found = preparation.all_labels(recorded)
    if annotations is None:
        left, too_few = preparation.drop_rare_labels([r.file for r in recorded], args.min_recordings)
        left_paths = {file.path for file in left}
        recorded = [r for r in recorded if r.file.path in left_paths]
    else:
        recorded, too_few = annotated.drop_rare_labels(recorded, args.min_recordings)
    if args.secondary_labels:
        recorded = annotated.with_secondary_labels(recorded)
    return recorded, found, unusable, too_few


def log_end(args: argparse.Namespace, metrics: dict) -> None:
    """Log the numbers of files, recordings and clips in one line."""
    n_clips = metrics["n_clips"]
    made = counted(sum(n_clips.values()), "clip")
    if not args.unlabelled:
        parts = ", ".join(f"{name} {n}" for name, n in n_clips.items())
        made = f"{counted(metrics['n_labels'], 'label')}, {made} ({parts}), split by {metrics['kept_together']}"
    log.info(
        "%s: %s -> %s: %s, %s, %.2f h, %s; %d in skipped.csv",
        *(args.raw_dir, counted(metrics["n_files_found"], "file"), args.output_dir),
        *(counted(metrics[f"n_{noun}s"], noun) for noun in ("file", "recording")),
        *(metrics["hours"], made, metrics["n_skipped"]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
