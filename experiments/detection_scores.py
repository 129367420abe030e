"""Compare the detections of stage 08 with a table of the songs that are really there.

    python -m experiments.detection_scores --detections demo/detections/detections.csv --truth demo/night/planted.csv

A detection is right if it and a song of its label have --min_overlap_s in common, or all of the shorter one. Such a
song is found. Precision is the share of detections that are right; recall, the share of songs that are
found. The truth is a table of any format that 01 --annotations reads. Files are compared by name; by path, if two of a
table have one name.
"""

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pandas as pd

from utils.core import cli
from utils.data import annotations, preparation
from utils.data.annotations import Annotation

log = logging.getLogger(__name__)

COLUMNS = ["label", "songs", "found", "recall", "detections", "right", "precision"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--detections", type=Path, required=True, help="detections.csv of stage 08")
    parser.add_argument("--truth", type=Path, required=True, help="table or folder of tables, as for 01 --annotations")
    parser.add_argument(
        "--min_overlap_s", type=cli.positive_float, default=0.5, help="of a detection and a song, in seconds"
    )
    parser.add_argument("--output", type=Path, default=None, help="CSV to write (default: none)")
    parser.add_argument("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def count(detected: Sequence[Annotation], songs: Sequence[Annotation], min_overlap_s: float) -> pd.DataFrame:
    """Count right detections and found songs.

    Parameters
    ----------
    detected, songs : sequence of Annotation
        Files are compared by their names without folders, or by path if two have one name.
    min_overlap_s : float
        In seconds.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`; a row per label, by name, and a last one named ``all``. A share of nothing is NaN.
    """
    compared_by = "path, because two in a table have one name"
    if all(_has_unique_names(table) for table in (detected, songs)):
        compared_by = "name"
        detected, songs = ([replace(a, file=_name(a.file)) for a in table] for table in (detected, songs))
    files, of_songs = ({a.file for a in table} for table in (detected, songs))
    if files and of_songs and not files & of_songs:
        log.warning(
            "no file has both detections and songs: detections are in %s, songs in %s. Files are compared by %s",
            *(min(files), min(of_songs), compared_by),
        )
    right, found = _matched(detected, songs, min_overlap_s), _matched(songs, detected, min_overlap_s)
    labels = sorted({a.label for a in [*detected, *songs]})
    rows = []
    for label in [*labels, None]:
        of_song = [hit for a, hit in zip(songs, found, strict=True) if label in (None, a.label)]
        of_detection = [hit for a, hit in zip(detected, right, strict=True) if label in (None, a.label)]
        n_songs, n_detections = len(of_song), len(of_detection)
        recall = sum(of_song) / n_songs if n_songs else float("nan")
        precision = sum(of_detection) / n_detections if n_detections else float("nan")
        row = ("all" if label is None else label, n_songs, sum(of_song), recall)
        rows.append((*row, n_detections, sum(of_detection), precision))
    return pd.DataFrame(rows, columns=COLUMNS)


def _matched(these: Sequence[Annotation], others: Sequence[Annotation], min_overlap_s: float) -> list[bool]:
    """Return for each of `these` whether one of the `others` in its file, with its label, overlaps it enough."""
    by_place = defaultdict(list)
    for other in others:
        by_place[other.file, other.label].append(other)
    return [
        any(
            min(this.end_s, other.end_s) - max(this.start_s, other.start_s)
            >= min(min_overlap_s, this.end_s - this.start_s, other.end_s - other.start_s)
            for other in by_place[this.file, this.label]
        )
        for this in these
    ]


def _has_unique_names(table: Sequence[Annotation]) -> bool:
    files = {a.file for a in table}
    return len({_name(file) for file in files}) == len(files)


def _name(file: str) -> str:
    return PurePosixPath(file).name


def run(args: argparse.Namespace) -> None:
    """Print the table, and write it if asked."""
    found, songs = (annotations.read_all(path) for path in (args.detections, args.truth))
    preparation.report([*found.problems, *songs.problems], "left out")
    table = count(found.annotations, songs.annotations, args.min_overlap_s)
    print(table.to_string(index=False, float_format=lambda share: f"{share:.2f}", na_rep=""))
    if args.output is not None:
        table.to_csv(args.output, index=False, float_format="%.4g")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
