"""Keep chosen blocks of an encoder and delete the others, without training.

    python 07_manual_pruning.py --model_dir runs/wav2vec2 --keep_layers 0-3,7 --output_dir runs/wav2vec2-0-3,7
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --drop_layers 4-6 --dry_run        # what would be left
    python 07_manual_pruning.py --model_dir facebook/wav2vec2-base --ladder --output_dir runs/ladder
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --from validation_results/sweep/best.json --n_layers 6
    python 07_manual_pruning.py --model_dir tiny                                             # interactive

Takes a fine-tuned model, whose head stays as it is, or a base model, which gets a new head drawn by --seed.
Layers count from 0 in the model given; `kept_layers` in its config counts in the base model, however often
it is pruned. With none of --keep_layers, --drop_layers, --ladder and --from, and a terminal, it asks for one
step after the other and ends with the command that does the same.

Prints blocks, parameters, multiply-accumulates of a clip, the front end's share of them (all before the
first block, which dropping blocks cannot make cheaper) and the size of the weights, before and after.

Writes <output_dir>/model (loads with plain `from_pretrained`), with --ladder <output_dir>/00-blocks/model,
01-blocks/model … up to the whole model, and log.txt and run.json. All are a --model_dir of stages 03 to 05
and a --base_model of stage 02. Works on the CPU.
"""

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, replacing, runs
from utils.core.errors import AlreadyComplete, UsageError
from utils.models import encoders, model_folder
from utils.models.model_size import ModelSize, SizeCounter, size_table, weights_on_disk
from utils.models.start_line import log_start
from utils.pruning import best
from utils.pruning.pruning_session import HELP, PruningSession

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, SequenceFeatureExtractor

log = logging.getLogger(Path(__file__).stem)

DEFAULT_OUTPUT_DIR = "runs/<name of the model's run>-pruned"
OUTPUTS = ("model/*", "[0-9]*-blocks/model/*")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument(
        "--model_dir",
        required=True,
        help="run folder of 02_finetuning.py, model folder, name of an encoder on the hub, or 'tiny' (small, built in, "
        "random weights)",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep_layers", default=None, help="layers to keep, as 0-3,7, or none")
    choice.add_argument("--drop_layers", default=None, help="layers to delete, as 4-6, or none")
    choice.add_argument(
        "--ladder", action="store_true", help="one model a depth: the first n layers, from none to the whole model"
    )
    choice.add_argument("--from", type=Path, default=None, help="best.json of 05_pruning.py, for this very model")
    parser.add_argument(
        "--n_layers",
        type=cli.non_negative_int,
        default=None,
        help="with --from: number of layers to keep (default: the fewest within the margin of the sweep)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be left; write nothing")
    cli.add_common_arguments(parser, output_dir=DEFAULT_OUTPUT_DIR)
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the sizes before and after, and leave the pruned models."""
    if args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        args.output_dir = Path(DEFAULT_OUTPUT_DIR).with_name(f"{cli.model_name(Path(args.model_dir))}-pruned")
    best_path = vars(args)["from"]
    check_arguments(args, best_path)
    inputs = {"model_dir": encoders.any_model_input(args.model_dir)}
    if best_path is not None:
        inputs["from"] = runs.file_input(best_path)

    runs.seed_everything(args.seed)  # a base model's head is initialised here
    model, extractor, has_head = encoders.load_any_model(args.model_dir, "cpu")
    config = model.config
    if not has_head:
        log.info("%s has no classification head: a new one for %d labels, by --seed", args.model_dir, config.num_labels)
    counter = SizeCounter(model, extractor)
    if args.ladder:
        keeps = ladder(config, args.output_dir)
    elif best_path is not None:
        keeps = {args.output_dir / "model": best.layers_to_keep(best_path, inputs["model_dir"], config, args.n_layers)}
    else:
        keep = layers_to_keep(args, config.num_hidden_layers, counter)
        if keep is None:
            return
        keeps = {args.output_dir / "model": keep}
    before = counter.size_of(list(range(config.num_hidden_layers)))
    source = model_folder.resolve_model_dir(Path(args.model_dir))
    if source.is_dir():
        before = dataclasses.replace(before, weights_bytes=weights_on_disk(source))
    after = {folder: counter.size_of(keep) for folder, keep in keeps.items()}
    if args.dry_run:
        show(before, after, counter.clip, args.output_dir)
        return
    try:
        prune(args, inputs, model, extractor, keeps)
    except AlreadyComplete:
        show(before, on_disk(after), counter.clip, args.output_dir)
        raise
    show(before, on_disk(after), counter.clip, args.output_dir)


def check_arguments(args: argparse.Namespace, best_path: Path | None) -> None:
    """Refuse what no model can answer, before one is loaded."""
    if args.n_layers is not None and best_path is None:
        raise UsageError("--n_layers chooses among the subsets in a best.json: give it together with --from")
    asked = args.ladder or best_path is not None or args.keep_layers is not None or args.drop_layers is not None
    if not asked and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(
            "which layers? Give one of --keep_layers 0-3,7, --drop_layers 4-6, --ladder and --from best.json; "
            "only on a terminal can they be chosen step by step"
        )
    read = {"model_dir": args.model_dir} | ({} if best_path is None else {"from": best_path})
    replacing.check_apart(args.output_dir, read)


def layers_to_keep(args: argparse.Namespace, n_layers: int, counter: SizeCounter) -> list[int] | None:
    """Return the layers that the user names, in the command or in a session; None to write nothing."""
    if args.keep_layers is not None:
        return cli.parse_layer_list(args.keep_layers, n_layers)
    if args.drop_layers is not None:
        dropped = cli.parse_layer_list(args.drop_layers, n_layers)
        return [layer for layer in range(n_layers) if layer not in dropped]
    keep = interact(n_layers, counter)
    if keep is not None:
        args.keep_layers = cli.format_layer_list(keep)  # the run is recorded as that of the command
        print(f"the same again: {command_of(args)}")
    return keep


def ladder(config: "PreTrainedConfig", output_dir: Path) -> dict[Path, list[int]]:
    """Return the folder and the layers of every depth that is possible, the whole model first."""
    rungs = {}
    for n_layers in range(config.num_hidden_layers, -1, -1):
        keep = list(range(n_layers))
        try:
            encoders.check_keep(config, keep)
        except UsageError as error:
            log.warning("no model of %d layers: %s", n_layers, error)
            continue
        rungs[output_dir / f"{n_layers:02d}-blocks" / "model"] = keep
    return rungs


def interact(n_layers: int, counter: SizeCounter) -> list[int] | None:
    """Let the user drop and add layers on the terminal; return those to keep, or None to write nothing."""
    session = PruningSession(n_layers, counter.size_of)
    print(f"{HELP}\n\nA clip of {counter.clip}.\n{session.show()}")
    while session.is_open:
        try:
            line = input("> ")
        except UnicodeDecodeError:
            line = "?"
        except (EOFError, KeyboardInterrupt):
            print()
            line = "q"
        print(session.respond(line))
    return session.keep if session.is_accepted else None


def command_of(args: argparse.Namespace) -> str:
    """Return the command that does what was chosen in a session."""
    words = ["python", Path(__file__).name, "--model_dir", args.model_dir, "--keep_layers", args.keep_layers]
    words += ["--output_dir", str(args.output_dir)]
    if args.seed != build_parser().get_default("seed"):
        words += ["--seed", str(args.seed)]
    return shlex.join(words)


def prune(
    args: argparse.Namespace,
    inputs: dict[str, runs.Input],
    model: "PreTrainedModel",
    extractor: "SequenceFeatureExtractor",
    keeps: dict[Path, list[int]],
) -> None:
    """Write one model, or those of a ladder that a stopped run has not written; the model is pruned in place."""
    stage = Path(__file__).stem
    with runs.open_run(stage, args, inputs, outputs=OUTPUTS, result_neutral={"dry_run"}) as this_run:
        this_run.device = runs.device_name("cpu")
        log_start(args.device, "cpu", {args.model_dir: model}, {})
        with this_run.timed("writing"):
            # Down a ladder every model holds the next: the first layers of the first layers.
            for folder, keep in keeps.items():
                encoders.prune_model(model, keep)
                if folder.is_dir():
                    log.info("%s is there already", folder)
                    continue
                folder.parent.mkdir(exist_ok=True)
                encoders.save_model(model, extractor, folder)
                log.info("%s: layers %s", folder, cli.format_layer_list(encoders.kept_layers(model.config)))
            encoders.log_without_classifier(model.config)


def on_disk(sizes: dict[Path, ModelSize]) -> dict[Path, ModelSize]:
    """Return sizes with the weights as they are in their folders."""
    return {folder: dataclasses.replace(size, weights_bytes=weights_on_disk(folder)) for folder, size in sizes.items()}


def show(before: ModelSize, after: dict[Path, ModelSize], clip: str, output_dir: Path) -> None:
    """Print what was there and what remains."""
    names = {folder: str(folder.parent.relative_to(output_dir)) for folder in after}
    rows = {"before": before} | {"after" if name == "." else name: after[folder] for folder, name in names.items()}
    print(f"{size_table(rows)}\nA clip of {clip}. Front end: its share of the GMACs. Models are saved in float32.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
