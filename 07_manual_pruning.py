"""Keep chosen blocks of an encoder and delete the others, without training; or export a model as one file.

    python 07_manual_pruning.py --model_dir runs/wav2vec2 --keep_layers 0-3,7 --output_dir runs/wav2vec2-0-3,7
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --drop_layers 4-6 --dry_run        # prints the sizes only
    python 07_manual_pruning.py --model_dir facebook/wav2vec2-base --ladder --output_dir runs/ladder
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --from validation_results/sweep/best.json --n_layers 6
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --ffn_size 0.5 --conv_channels 0.5 --data_dir processed_data
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --keep_layers 0-3 --repair linear --data_dir processed_data
    python 07_manual_pruning.py --model_dir runs/wav2vec2 --export onnx                      # for 08, a phone, a server
    python 07_manual_pruning.py --model_dir tiny                                             # interactive

Takes a fine-tuned model, whose head is not changed, or a base model, which gets a new random head (--seed). Layers
count from 0 in the given model. `kept_layers` in its config has the numbers of the base model, also after several
prunings. If no flag says what to keep, make narrower or export, the stage asks for the layers on a terminal, step by
step. At the end it prints the command that gives the same result.

--ffn_size, --conv_channels and --heads make the model narrower, with or without fewer layers: units of the feed-forward
networks, channels of the convolutions before the first block (of models like wav2vec2), and heads of the attention (of
AST). The least important units go, measured on the clips of train in --data_dir; see docs/width.md.

--repair linear fits the last linear layer of the kept blocks to the states of the whole model, on some clips of train,
without labels and without training; see docs/repair.md. With --from it is on if the sweep repaired its subsets.

--export onnx writes <output_dir>/float32.onnx: one file from waveform to scores, which ONNX Runtime runs without
PyTorch, and which stages 03 and 08 take as their --model_dir. It is of the pruned model; of the given one, with its
thresholds, if nothing is pruned. --precision float16 is about half as large; int8 of an encoder a quarter, and faster.
Each file is loaded again and compared with the model, on val if --data_dir is given; export.csv has the figures. A file
whose answers are not those of the model is refused. See docs/export.md.

Prints blocks, parameters, multiply-accumulates per clip, the share of the front end, and the size of the weights,
before and after. The front end is everything before the first block; removing blocks does not make it cheaper.

Writes <output_dir>/model (plain `from_pretrained` loads it), with --ladder <output_dir>/00-blocks/model,
01-blocks/model … up to the whole model. Each can be the --model_dir of stages 03 to 05 and the --base_model of stage
02. If nothing is pruned, --export writes only its files. Every run also writes log.txt and run.json. Runs on the CPU;
only a width and --repair use the --device.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.core import cli, lazy, names, replacing, runs
from utils.core.errors import AlreadyComplete, InputError, UsageError
from utils.models import exported, model_folder
from utils.pruning import best, pruning_plan, width

with lazy.imported_on_first_use():
    from utils.data import clips
    from utils.models import encoders, export, fitted_thresholds, model_size, start_line, training_history
    from utils.pruning import pruning_session, repair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from utils.data.clips import Clips
    from utils.models.loaded_model import LoadedModel
    from utils.models.model_size import SizeCounter

log = logging.getLogger(Path(__file__).stem)

DEFAULT_OUTPUT_DIR = "runs/<name of the model's run>.pruned; with --export alone, .onnx"
OUTPUTS = ("model/*", "[0-9]*-blocks/model/*", "*.onnx", "export.csv")
EXPORTS = (ONNX,) = ("onnx",)
SCRATCH = ".importance"
BATCH_SIZE = 16  # clips at once, for the repair
# Flags of `architectures.widths_of`.
WIDTHS = ("ffn_size", "conv_channels", "heads")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    parser.add_argument(
        "--model_dir",
        required=True,
        help="run folder of 02_finetuning.py, model folder, name of an encoder on the hub, checkpoint of AVES or "
        "BEATs, or 'tiny' (small, built in, random weights); with --export also run folder of 06_cnn.py",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep_layers", default=None, help="layers to keep, such as 0-3,7, or none")
    choice.add_argument("--drop_layers", default=None, help="layers to delete, such as 4-6, or none")
    choice.add_argument(
        "--ladder", action="store_true", help="one model per depth: the first n layers, from none to the whole model"
    )
    choice.add_argument("--from", type=Path, default=None, help="best.json of 05_pruning.py for this model")
    parser.add_argument(
        "--n_layers",
        type=cli.non_negative_int,
        default=None,
        help="with --from: number of layers to keep (default: the best within the budget of the sweep; if it had none, "
        "the fewest within its margin)",
    )
    parser.add_argument(
        "--ffn_size",
        type=cli.number_or_share,
        default=None,
        help="units of the feed-forward network that each block keeps, as a number or a share: 1536, 0.5; 1 is one",
    )
    parser.add_argument(
        "--conv_channels",
        type=cli.share,
        default=None,
        help="share of the channels that each convolution before the first block keeps: 0.5",
    )
    parser.add_argument(
        "--heads",
        type=cli.number_or_share,
        default=None,
        help="heads that each block keeps, as a number or a share: 6, 0.5; 1 is one head",
    )
    parser.add_argument(
        "--importance",
        choices=width.IMPORTANCES,
        default=None,
        help="what a unit is kept for: activation, the size of its contribution; taylor, by how much the loss would "
        "change without it (default: activation)",
    )
    parser.add_argument(
        "--repair",
        choices=pruning_plan.REPAIRS,
        default=None,
        help="linear fits the last linear layer of the kept blocks to the states of the whole model (default: none; "
        "with --from, as in the sweep)",
    )
    parser.add_argument(
        "--repair_clips",
        type=cli.positive_int,
        default=None,
        help=f"clips of train on which the repair is fitted (default: {pruning_plan.REPAIR_CLIPS}; with --from, as in "
        "the sweep)",
    )
    parser.add_argument("--export", choices=EXPORTS, default=None, help="also write the model as one file")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=exported.PRECISIONS,
        default=None,
        help=f"with --export: one file for each of {', '.join(exported.PRECISIONS)} (default: {exported.FLOAT32}); "
        f"{exported.INT8} needs --data_dir",
    )
    parser.add_argument(
        "--allow_loss", action="store_true", help="with --export: keep a file whose answers are not those of the model"
    )
    cli.add_data_arguments(parser)
    parser.set_defaults(data_dir=None)  # without a width, a repair or an export, no clip is read
    parser.add_argument("--dry_run", action="store_true", help="print the sizes; write nothing")
    cli.add_common_arguments(parser, output_dir=DEFAULT_OUTPUT_DIR, other_seed="with --from, as in the sweep")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the sizes before and after, and write the pruned models."""
    best_path = vars(args)["from"]
    asked = args.ladder or best_path is not None or args.keep_layers is not None or args.drop_layers is not None
    only_exports = args.export is not None and not (asked or is_fitted(args))
    if args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        name = names.variant_of(names.of_model(args.model_dir), names.EXPORTED if only_exports else names.PRUNED)
        args.output_dir = Path(DEFAULT_OUTPUT_DIR).parent / name
    if is_narrower(args) and not asked:
        args.drop_layers, asked = "none", True
    check_arguments(args, best_path, asked or only_exports)
    given = model_folder.model_input(Path(args.model_dir)) if only_exports else None
    inputs = {"model_dir": given or model_folder.any_model_input(args.model_dir)}
    if best_path is not None:
        inputs["from"] = runs.file_input(best_path)
        of_sweep = best.flags_of(best_path, inputs["model_dir"], args.n_layers, vars(args))
        vars(args).update(of_sweep)  # run.json records the flags that give the same model
        if args.data_dir is not None and not reads_clips(args):
            log.info("%s: this model needs no clips, so --data_dir is not read", best_path)
            args.data_dir = args.fold = args.max_clips_per_class = None
    args.seed = cli.SEED if args.seed is None else args.seed
    check_arguments_for_clips(args, best_path)
    if args.data_dir is not None:
        inputs["data_dir"] = clips.data_input(args.data_dir, args.fold)
    if only_exports:
        export_alone(args, inputs | fitted_thresholds.as_input(Path(args.model_dir)))
        return
    if args.data_dir is not None and best_path is not None and of_sweep:
        best.check_data(best_path, inputs["data_dir"])
    source = None
    if not asked:
        source = Source(args)
        keep = interact(source.config.num_hidden_layers, source.counter)
        if keep is None:
            return
        args.keep_layers = cli.format_layer_list(keep)  # run.json records the equivalent command
        changed = {"dry_run": False, "seed": None if args.seed == cli.SEED else args.seed}
        print(f"to repeat: {cli.command_line(build_parser(), Path(__file__).name, args, **changed)}")
    if args.dry_run:
        source = source or Source(args)
        show(source.sizes(layers_to_keep(args, inputs, source)))
        return
    try:
        prune(args, inputs, source)
    except AlreadyComplete:
        show_recorded(args.output_dir)
        raise
    show_recorded(args.output_dir)


class Source:
    """The model to prune, and the sizes of the model and its subsets."""

    def __init__(self, args: argparse.Namespace):
        runs.seed_everything(args.seed)  # a base model's head is initialised here
        self.loaded = encoders.load_any_model(args.model_dir, "cpu")
        self.config = self.loaded.config
        if not self.loaded.has_head:
            n_labels = self.config.num_labels
            log.info(
                "%s has no classification head: it gets a new one for %d labels, by --seed", args.model_dir, n_labels
            )
        self.changes = width.changes_of(self.config, {name: vars(args)[name] for name in WIDTHS})
        self.counter, self._output_dir = model_size.SizeCounter(self.loaded), args.output_dir
        self._whole = self.counter.size_of(list(range(self.config.num_hidden_layers)))
        folder = model_folder.resolve_model_dir(Path(args.model_dir))
        if folder.is_dir():
            self._whole = dataclasses.replace(self._whole, weights_bytes=model_size.weights_on_disk(folder))

    def sizes(self, keeps: dict[Path, list[int]]) -> dict:
        """Return the sizes before and after, as `show` prints them and ``run.json`` keeps them."""
        rows, changes = {"before": self._whole}, {k: v for part in self.changes.values() for k, v in part.items()}
        for folder, keep in keeps.items():
            size = self.counter.size_of(keep, changes)
            if folder.is_dir():
                size = dataclasses.replace(size, weights_bytes=model_size.weights_on_disk(folder))
            rows["after" if folder.parent == self._output_dir else folder.parent.name] = size
        return {"clip": self.counter.clip, "rows": {name: dataclasses.asdict(size) for name, size in rows.items()}}


def check_arguments(args: argparse.Namespace, best_path: Path | None, asked: bool) -> None:
    """Check the flags that need no model, before a model is loaded."""
    if args.n_layers is not None and best_path is None:
        raise UsageError("--n_layers chooses among the subsets in a best.json: use it together with --from")
    for flag in ("precision", "allow_loss"):
        if vars(args)[flag] and args.export is None:
            raise UsageError(f"--{flag} is of use only with --export")
    if args.export is not None and (args.ladder or args.dry_run):
        raise UsageError("--export writes the file of one model: leave out --ladder and --dry_run")
    if exported.INT8 in precisions(args) and args.data_dir is None:
        raise UsageError("--precision int8: give --data_dir, on whose clips of val it is compared with the model")
    if not asked and not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError(
            "no layers are given: use one of --keep_layers 0-3,7, --drop_layers 4-6, --ladder and --from best.json, "
            "or a width such as --ffn_size 0.5; to choose them step by step, run this on a terminal"
        )
    read = {"model_dir": args.model_dir} | ({} if best_path is None else {"from": best_path})
    read |= {} if args.data_dir is None else {"data_dir": args.data_dir}
    replacing.check_apart(args.output_dir, read)


def check_arguments_for_clips(args: argparse.Namespace, best_path: Path | None) -> None:
    """Check that clips are given where they are needed, and only there."""
    wanted = ", ".join(f"--{name}" for name in WIDTHS)
    if args.data_dir is None and not args.dry_run:
        if is_narrower(args):
            raise UsageError(f"{wanted}: give --data_dir, whose clips of train measure which units matter")
        if is_repaired(args):
            of_sweep = "" if best_path is None else f" of {best_path} (leave it out by --repair none)"
            raise UsageError(
                f"--repair {args.repair}{of_sweep} is fitted on clips of train: give --data_dir, and --fold for the "
                "model of a fold"
            )
    if args.repair_clips is not None and not is_repaired(args):
        raise UsageError("--repair_clips is of use only with --repair linear")
    if args.importance is not None and not is_narrower(args):
        raise UsageError(f"--importance is of use only with one of {wanted}")
    for flag in ("data_dir", "fold", "max_clips_per_class"):
        if not reads_clips(args) and vars(args)[flag] is not None:
            raise UsageError(f"--{flag} is of use only with one of {wanted}, --repair, --export")
        if args.export and args.data_dir is None and vars(args)[flag] is not None:
            raise UsageError(f"--{flag} chooses among clips: give --data_dir")


def is_narrower(args: argparse.Namespace) -> bool:
    """Return whether a width is given."""
    return any(vars(args)[name] is not None for name in WIDTHS)


def precisions(args: argparse.Namespace) -> list[str]:
    """Return the precisions of the files to export."""
    return [] if args.export is None else list(dict.fromkeys(args.precision or [exported.FLOAT32]))


def is_repaired(args: argparse.Namespace) -> bool:
    """Return whether the kept blocks are fitted to the states of the whole model."""
    return args.repair == pruning_plan.LINEAR


def is_fitted(args: argparse.Namespace) -> bool:
    """Return whether clips of train are needed, for a width or a repair."""
    return is_narrower(args) or is_repaired(args)


def reads_clips(args: argparse.Namespace) -> bool:
    """Return whether clips are of use."""
    return is_fitted(args) or args.export is not None


def layers_to_keep(args: argparse.Namespace, inputs: dict[str, runs.Input], source: Source) -> dict[Path, list[int]]:
    """Return the layers to keep, by the model folder to write."""
    n_layers, folder = source.config.num_hidden_layers, args.output_dir / "model"
    if args.ladder:
        return ladder(source.config, args.output_dir)
    if "from" in inputs:
        return {folder: best.layers_to_keep(vars(args)["from"], inputs["model_dir"], source.config, args.n_layers)}
    if args.keep_layers is not None:
        return {folder: cli.parse_layer_list(args.keep_layers, n_layers)}
    dropped = cli.parse_layer_list(args.drop_layers, n_layers)
    return {folder: [layer for layer in range(n_layers) if layer not in dropped]}


def ladder(config: PreTrainedConfig, output_dir: Path) -> dict[Path, list[int]]:
    """Return the folder and the layers of every possible depth, the whole model first."""
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
    session = pruning_session.PruningSession(n_layers, counter.size_of)
    print(f"{pruning_session.HELP}\n\nA clip of {counter.clip}.\n{session.show()}")
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


def prune(args: argparse.Namespace, inputs: dict[str, runs.Input], source: Source | None) -> None:
    """Write one model, or the models of a ladder that a stopped run did not write."""
    stage = Path(__file__).stem
    with runs.open_run(stage, args, inputs, outputs=OUTPUTS, scratch=[SCRATCH], result_neutral={"dry_run"}) as this_run:
        device = this_run.choose_device(args.device if is_fitted(args) else "cpu")
        with this_run.checking():
            source = source or Source(args)
            keeps = layers_to_keep(args, inputs, source)
            largest = next(iter(keeps.values()))
            if is_repaired(args):
                repair.check_possible(source.config)
            train = clips_of_train(args, source, largest) if is_fitted(args) else None
            if "from" in inputs and (chosen_on := best.chosen_on(vars(args)["from"])):
                source.config.layers_chosen_on = chosen_on
        whole = source.loaded
        start_line.log_start(args.device, device, {args.model_dir: whole.model}, {"train": train} if train else {})
        if train:
            training_history.note_training(whole.model, inputs["data_dir"].sha256, train, train.only(range(0)))
        source.loaded = made = whole = whole.ready(device)
        if is_narrower(args):
            with this_run.timed("importance"):
                made = narrowed(args, inputs, source, largest, train)
        repairer = None
        if is_repaired(args):
            some = train.drawn(args.repair_clips or pruning_plan.REPAIR_CLIPS, args.seed)
            targets = (whole, largest) if is_narrower(args) else ()
            repairer = repair.Repairer(made, some, BATCH_SIZE, *targets)
        with this_run.timed("writing"):
            for folder, keep in keeps.items():
                if folder.is_dir():
                    log.info("%s exists already", folder)
                    continue
                # A ladder keeps the first blocks, so they have the same numbers in a model of its longest list.
                own = keep if made.config.num_hidden_layers == whole.config.num_hidden_layers else range(len(keep))
                pruned = repair.repaired_copy(made, tuple(own), repairer).ready("cpu")
                folder.parent.mkdir(exist_ok=True)
                encoders.save_model(pruned, folder)
                how = ""
                if repairer is not None:
                    is_mended = getattr(pruned.config, "repair", None) is repairer.settings
                    how = f", repaired on {len(some)} clips of train" if is_mended else ", nothing to repair"
                log.info("%s: layers %s%s", folder, cli.format_layer_list(encoders.kept_layers(pruned.config)), how)
            encoders.log_without_classifier(source.config)
            if repairer is None and whole.has_head:  # a head that was trained on what the whole encoder gives
                with contextlib.suppress(UsageError):
                    repair.check_possible(source.config)
                    log.info(
                        "the blocks are not repaired: --repair linear --data_dir … fits them to the whole model, "
                        "without training"
                    )
        this_run.metrics["sizes"] = source.sizes(keeps)
        if args.export is not None:
            digest = model_folder.digest(model_folder.open_folder(str(folder), folder))
            export_files(args, this_run, encoders.load_model(folder, "cpu"), digest)
        shutil.rmtree(args.output_dir / SCRATCH, ignore_errors=True)


def export_alone(args: argparse.Namespace, inputs: dict[str, runs.Input]) -> None:
    """Write a model as it is, with its thresholds, as one file for each precision."""
    with runs.open_run(Path(__file__).stem, args, inputs, outputs=OUTPUTS, result_neutral={"dry_run"}) as this_run:
        this_run.choose_device("cpu")
        with this_run.checking():
            loaded = encoders.load_model(Path(args.model_dir), "cpu")
        start_line.log_start("cpu", "cpu", {args.model_dir: loaded.model}, {})
        export_files(args, this_run, loaded, str(inputs["model_dir"].sha256))


def export_files(args: argparse.Namespace, this_run: runs.Run, loaded: LoadedModel, model_sha256: str) -> None:
    """Write a model as one file for each precision, and ``export.csv``, which compares them with the model.

    Raises
    ------
    InputError
        If the model cannot be exported, or the answers of a file are not its own.
    """
    val = train = None
    if args.data_dir is not None:
        val = clips.read_clips(args.data_dir, "val", args.max_clips_per_class, args.seed, args.fold)
        encoders.check_matches(loaded, val)
        val = val.without_silence() if loaded.is_multi_label else val.with_one_label()
        train = clips.read_clips(args.data_dir, "train", args.max_clips_per_class, args.seed, args.fold)
    with this_run.timed("export"):
        network, wanted = export.network_of(loaded, model_sha256), export.logits_of(loaded, val)
        rows, troubles = [], []
        for precision in precisions(args):
            path = args.output_dir / f"{precision}{model_folder.EXPORTED_SUFFIX}"
            export.write(network, path, precision, train)
            rows.append(export.compare(path, wanted, val))
            log.info("%s: %s", path, rows[-1])
            if trouble := rows[-1].trouble():
                troubles.append(f"{precision}: {trouble}")
                if not args.allow_loss:
                    path.unlink()
        export.write_table(args.output_dir, rows)
    if troubles and not args.allow_loss:
        raise InputError(
            f"{'; '.join(troubles)}. Leave it out of --precision, or use it all the same by --allow_loss; with "
            "--overwrite in this folder"
        )


def clips_of_train(args: argparse.Namespace, source: Source, keep: list[int]) -> Clips:
    """Return the clips that measure the importance of units, and check that the model fits them.

    Raises
    ------
    UsageError
        If a flag has nothing to work on.
    InputError
        If model and clips do not fit.
    """
    loaded = source.loaded
    if not keep and (names := [name for name in source.changes if name != "conv_channels"]):
        raise UsageError(f"--{names[0]}: no layer is kept, so there is nothing to cut; leave it out")
    if not loaded.has_head and args.importance == width.TAYLOR:
        raise UsageError(
            f"--importance {width.TAYLOR}: {args.model_dir} has a new, random head, whose loss says nothing; use "
            f"{width.ACTIVATION}, or fine-tune it by 02_finetuning.py first"
        )
    train_clips = clips.read_clips(args.data_dir, "train", args.max_clips_per_class, args.seed, args.fold)
    (encoders.check_matches if loaded.has_head else encoders.check_base_matches)(loaded, train_clips)
    return train_clips if loaded.is_multi_label else train_clips.with_one_label()


def narrowed(
    args: argparse.Namespace, inputs: dict[str, runs.Input], source: Source, keep: list[int], train: Clips
) -> LoadedModel:
    """Measure the importance of the units of a pruned copy, and return it without the least important ones."""
    data, method = inputs["data_dir"].sha256, args.importance or width.ACTIVATION
    pruned = encoders.pruned_copy(source.loaded, keep)
    key = {"model": inputs["model_dir"].sha256, "data": data, "kept_layers": encoders.kept_layers(pruned.config)}
    scratch = args.output_dir / SCRATCH
    scratch.mkdir(exist_ok=True)
    measured = width.measure(pruned, train, method, list(source.changes), scratch / "sums.npz", key)
    width.narrow(pruned.model, measured, source.changes, method)
    return pruned


def show_recorded(output_dir: Path) -> None:
    """Print the sizes that a complete run recorded; early versions recorded none."""
    sizes = runs.read_record(output_dir)["metrics"].get("sizes")
    if sizes is not None:
        show(sizes)


def show(sizes: dict) -> None:
    """Print the sizes before and after, which `Source.sizes` returned."""
    print(model_size.size_table({name: model_size.ModelSize(**size) for name, size in sizes["rows"].items()}))
    print(f"A clip of {sizes['clip']}. Front end: its share of the GMACs. Models are saved in float32.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
