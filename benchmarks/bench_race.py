"""Cost of the race of subsets (utils.pruning.race), compared with the full search.

    python -m benchmarks.bench_race                                         # 2,048 subsets of 12 blocks
    python -m benchmarks.bench_race --model_dir runs/whole --data_dir processed_data/birds/folds --fold 1
    python -m benchmarks.bench_race --work_dir race --num_train_epochs 3    # keeps the model; trains it more briefly

Without --model_dir it trains a small model of 12 blocks on synthetic birds: 64 units, 2 h of sound, 24 recordists. All
subsets that keep block 0 are run on the clips of val, by the race and by the full search in turn, from nothing each.
Compares the block passes (one block on one clip) and the seconds, and prints the winner of each size. Exits 1 if a
winner differs.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import Wav2Vec2ForSequenceClassification

from benchmarks import results
from experiments import synthetic_birds
from experiments.stage_processes import start_stage
from utils.core import cli
from utils.data.clips import Clips, read_clips
from utils.models import encoders
from utils.models.loaded_model import LoadedModel
from utils.pruning import race
from utils.pruning.layer_selection import Candidate, all_subsets, best_of_sizes
from utils.pruning.pruning_plan import MOST_BY_DEFAULT
from utils.pruning.subset_scores import SubsetScores

N_BLOCKS = 12
GOAL = 5
BIRDS = ("--recordists_per_species", 24, "--recordings_per_recordist", 4)
CUT = ("--min_recordings", 5, "--clip_seconds", 3)
TRAINING = ("--learning_rate", 1e-3, "--augment", "roll", "gain", "--mixed_precision", "no")


def build(work_dir: Path, n_epochs: int) -> tuple[Path, Path]:
    """Train the small model of 12 blocks; return its folder and that of its clips. What is complete is kept."""
    raw_dir, data_dir, base_dir, run_dir = (work_dir / name for name in ("raw", "data", "base", "run"))
    synthetic_birds.main([str(word) for word in ("--output_dir", raw_dir, *BIRDS)])
    stage("01_data_processing.py", "--raw_dir", raw_dir, "--metadata", raw_dir / "metadata.csv", *CUT, output=data_dir)
    if not base_dir.exists():
        torch.manual_seed(0)
        tiny = encoders.tiny_model(["of", "the", "base"])
        tiny.config.num_hidden_layers = N_BLOCKS
        deep = LoadedModel(Wav2Vec2ForSequenceClassification(tiny.config), tiny.extractor, has_head=False)
        encoders.save_model(deep, base_dir)
    words = ("--base_model", base_dir, "--data_dir", data_dir, "--num_train_epochs", n_epochs, *TRAINING)
    stage("02_finetuning.py", *words, output=run_dir)
    return run_dir, data_dir


def stage(script: str, *words, output: Path) -> None:
    process = start_stage(script, [str(word) for word in (*words, "--output_dir", output)], output.with_suffix(".txt"))
    process.join()
    if process.exitcode:
        raise SystemExit(f"{script} failed: see {output.with_suffix('.txt')}")


def measure(
    loaded: LoadedModel, clips: Clips, batch_size: int, run: Callable[[SubsetScores], object]
) -> tuple[int, float, list[Candidate]]:
    """Return the block passes of a search, its seconds, and the best subset of each size that has all clips."""
    with tempfile.TemporaryDirectory() as name:
        scores = SubsetScores(loaded, clips, "val", batch_size, Path(name), {})
        start = time.perf_counter()
        run(scores)
        seconds = time.perf_counter() - start
        n_blocks = loaded.config.num_hidden_layers
        scored = [keep for keep in all_subsets(n_blocks) if scores.has(keep)]
        return scores.n_passes, seconds, best_of_sizes("best", n_blocks, scores.ranks, scored)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model_dir", type=Path, help="model of 02_finetuning.py (default: train a small one)")
    parser.add_argument("--data_dir", type=Path, help="its data set")
    parser.add_argument("--fold", type=int, help="its fold")
    parser.add_argument("--max_clips_per_class", type=int, help="clips of val of each class, at most (default: all)")
    parser.add_argument("--work_dir", type=Path, help="folder for the small model and its data (default: temporary)")
    parser.add_argument("--num_train_epochs", type=int, default=12, help="of the small model (default: 12)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips per batch (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the race (default: 0)")
    results.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as name:
        model_dir, data_dir = args.model_dir, args.data_dir
        if model_dir is None:
            model_dir, data_dir = build(args.work_dir or Path(name), args.num_train_epochs)
        loaded = encoders.load_model(model_dir, "cpu")
        clips = read_clips(data_dir, "val", args.max_clips_per_class, args.seed, args.fold)
        whole = tuple(range(loaded.config.num_hidden_layers))
        keeps = list(all_subsets(len(whole)))
        ways = {
            "race": lambda scores: race.run(scores, keeps, [whole], args.seed),
            "full search": lambda scores: scores.run(keeps),
        }
        found: dict[str, list[tuple[int, float, list[Candidate]]]] = {way: [] for way in ways}
        with results.Table(__file__, args.results) as table:
            for _ in range(args.rounds):
                for way, run in ways.items():
                    found[way].append(measure(loaded, clips, args.batch_size, run))
            raced, full = found["race"], found["full search"]
            claim = f"race of {len(keeps):,} subsets of {len(whole)} blocks, {len(clips)} clips"
            if args.model_dir is not None:
                claim += f", {args.model_dir.name}"
            goal = GOAL if len(keeps) > MOST_BY_DEFAULT else None
            table.add(f"{claim}: block passes", "full search", raced[0][0], full[0][0], "passes", goal)
            table.add(f"{claim}: time", "full search", [s for _, s, _ in raced], [s for _, s, _ in full], "s")
    winners = {way: [candidate.keep for candidate in rounds[0][2]] for way, rounds in found.items()}
    for way, keep in winners.items():
        print(f"{way:<14}" + " ".join(map(cli.format_layer_list, keep)))
    return 0 if winners["race"] == winners["full search"] else 1


if __name__ == "__main__":
    sys.exit(main())
