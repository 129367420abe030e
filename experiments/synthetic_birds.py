"""Write a collection of synthetic birds: a folder per species and a metadata.csv, deterministic from the seed.

    python -m experiments.synthetic_birds --output_dir demo/raw --seed 42
    python -m experiments.synthetic_birds --output_dir demo/raw --night_dir demo/night    # ten minutes of a night too

--night_dir gets the files of a recorder at a place that the collection does not have, and planted.csv: which species
sings in them, from when to when.

A complete folder of the same arguments is not changed; an incomplete one is completed.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.core import cli
from utils.core.errors import UsageError
from utils.data import synthetic, synthetic_night

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("demo/raw"), help="folder to write")
    parser.add_argument("--n_species", type=cli.positive_int, default=8, help=f"species, up to {len(synthetic.SONGS)}")
    parser.add_argument("--recordists_per_species", type=cli.positive_int, default=6, help="recordists per species")
    parser.add_argument(
        "--recordings_per_recordist", type=cli.positive_int, default=2, help="recordings per species and recordist"
    )
    parser.add_argument("--min_seconds", type=cli.positive_float, default=6.0, help="shortest recording, in seconds")
    parser.add_argument("--max_seconds", type=cli.positive_float, default=12.0, help="longest recording, in seconds")
    parser.add_argument("--night_dir", type=Path, default=None, help="folder for a night (default: none)")
    parser.add_argument("--seed", type=cli.non_negative_int, default=42, help="seed of everything random")
    parser.add_argument("--overwrite", action="store_true", help="replace synthetic birds made with other arguments")
    parser.add_argument(
        "--log_level", choices=["debug", "info", "warning", "error"], default="info", help="lowest level to print"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the recordings."""
    if args.n_species > len(synthetic.SONGS):
        raise UsageError(f"--n_species {args.n_species}: there are {len(synthetic.SONGS)} synthetic species")
    if args.min_seconds > args.max_seconds:
        raise UsageError(f"--min_seconds {args.min_seconds} is above --max_seconds {args.max_seconds}")
    table = synthetic.write_recordings(
        args.output_dir,
        args.n_species,
        args.recordists_per_species,
        args.recordings_per_recordist,
        (args.min_seconds, args.max_seconds),
        args.seed,
        args.overwrite,
    )
    n_recordings = args.n_species * args.recordists_per_species * args.recordings_per_recordist
    log.info("%d recordings of %d species: %s", n_recordings, args.n_species, table)
    if args.night_dir is not None:
        night = synthetic_night.write_night(args.night_dir, args.n_species, seed=args.seed, overwrite=args.overwrite)
        log.info("a night of the same species: %s", night)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
