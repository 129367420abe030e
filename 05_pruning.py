"""Find the blocks of a fine-tuned encoder that can be removed, by all common rules, without training.

    python 05_pruning.py --model_dir runs/wav2vec2 --data_dir processed_data
    python 05_pruning.py --model_dir runs/wav2vec2 --analysis_dir analysis_results/wav2vec2-train   # measured in 04
    python 05_pruning.py --model_dir runs/wav2vec2 --strategies exhaustive --sizes 6-8
    python 05_pruning.py --model_dir runs/wav2vec2 --strategies race                  # the same subsets, sooner
    python 05_pruning.py --model_dir runs/wav2vec2 --repair linear                         # the kept blocks adapt
    python 05_pruning.py --model_dir runs/wav2vec2 --max_latency_ms 200                 # the best of this speed
    python 05_pruning.py --model_dir runs/tiny --heal 5                                 # in a minute on a CPU

Every strategy proposes subsets of the blocks. All are scored on --search_split, and every choice is made there. Then
the whole model, the proposals of the rules and the best subsets of the searches are scored on --report_split, once.
The rules use the measurements in --analysis_dir, or measure on the clips of `train`.

What each rule removes:
forward, backward, middle, single, alternate, simple_deep: blocks by their position
random: five random subsets of each size, the control for every rule
block_influence, knn_block_influence: the blocks of least influence first
angular_block, cka_block: the adjacent blocks that change least
linear_block: the adjacent blocks whose change a linear map predicts best
convexity_peak: all blocks after the layer of highest convexity
The searches are for the best accuracy: greedy, beam, exhaustive
race: finds the same best subset of each size as exhaustive, and drops the others once they surely lose

Of a model with several labels a clip, accuracy is BirdSet's top-1 accuracy, without the clips of silence: is the label
with the highest output one of the clip's? It counts no false alarms: compare the pruned model by 03, too.

--repair linear adapts the kept blocks of every subset, so that each gives what the next kept block read in the whole
model. It is a regression on some clips of train, in closed form: it needs no labels and no training, and adds no
parameter. The table then also has the score of each subset without repair.

Block 0 stays unless --remove_first_block is given. Subsets with the same first blocks share their computation: all
2,048 subsets of 12 blocks need one pass of the front end and 2,048 block passes per clip. After a stop at any moment
the same command continues.

--max_latency_ms, --max_parameters and --max_gmacs set a budget. For the best subset of each size, the widest
feed-forward network (all units, three quarters, half or a quarter) within the budget is found. The best of these models
on the search split is scored on the report split; 07_manual_pruning.py --from best.json builds it. See docs/width.md.

Writes <output_dir>/pruning.csv (a row for each subset that a strategy proposes), best.json (for 07_manual_pruning.py
--from), log.txt and run.json; pruning.pdf/.png (blocks kept and removed beside their scores), strategies.pdf/.png
(accuracy by size) and pareto.pdf/.png (against parameters and latency); with a budget also budget.csv; with --heal also
healing.csv and healed/model. Layers count from 0 in the given model.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.core import cli, lazy, names, runs
from utils.core.errors import AlreadyComplete, UsageError
from utils.data import splits
from utils.layers import analysis
from utils.models import model_folder
from utils.pruning import best, budget, pruning_plan, recommendation
from utils.scores import looks, summary

with lazy.imported_on_first_use():
    import pandas as pd

    from utils.data import clips
    from utils.models import encoder_parts, encoders, start_line, training_history
    from utils.pruning import (
        drawing,
        healing,
        layer_evidence,
        layer_selection,
        pruning_table,
        race,
        repair,
        subset_scores,
    )

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from utils.models.loaded_model import LoadedModel
    from utils.pruning.layer_selection import Evidence, Keep

log = logging.getLogger(Path(__file__).stem)

DEFAULT_OUTPUT_DIR = "validation_results/<name of the model's run>.sweep"
SCRATCH = ".sweep"
HEALED = "healed"
OUTPUTS = (
    *("pruning.csv", "pruning.pdf", "pruning.png", "strategies.*", "pareto.*"),
    *(best.NAME, budget.CSV_NAME, "healing.csv", f"{HEALED}/model/*"),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this stage."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add(
        "--model_dir",
        type=Path,
        required=True,
        help="run folder of 02_finetuning.py, or any folder of an audio-classification model with the data's labels",
    )
    add(
        "--strategies",
        nargs="+",
        choices=pruning_plan.STRATEGIES,
        default=None,
        metavar="STRATEGY",
        help=f"one or more of {', '.join(pruning_plan.STRATEGIES)} (default: all; exhaustive up to "
        f"{pruning_plan.MOST_BY_DEFAULT} subsets, race above them up to {pruning_plan.MOST_RACED})",
    )
    add("--sizes", default=None, help="numbers of layers that exhaustive or race keeps, such as 3-6,9 (default: all)")
    add("--beam_width", type=cli.positive_int, default=4, help="subsets that beam follows at each size")
    add(
        "--iterative",
        action="store_true",
        help="also measure the influence again on the pruned model after every removal; each time takes one pass over "
        "the clips of train",
    )
    add(
        "--search_split",
        choices=splits.SPLITS,
        default="val",
        metavar="{train,val}",
        help="split on which subsets are chosen",
    )
    add(
        "--report_split",
        choices=["val", "test"],
        default="test",
        help="split on which the chosen subsets are scored, once",
    )
    add(
        "--analysis_dir",
        type=Path,
        default=None,
        help="output folder of 04_analysis.py for this model (default: measure what is needed on the clips of train)",
    )
    add("--remove_first_block", action="store_true", help="remove block 0 too, if the architecture permits it")
    add("--margin", type=cli.fraction, default=0.02, help="accuracy that may be lost, as a share of all clips")
    add(
        "--repair",
        choices=pruning_plan.REPAIRS,
        default=pruning_plan.NO_REPAIR,
        help="linear fits the last linear layer of the kept blocks of each subset to the states of the whole model",
    )
    add(
        "--repair_clips",
        type=cli.positive_int,
        default=None,
        help=f"with --repair: clips of train on which it is fitted (default: {pruning_plan.REPAIR_CLIPS})",
    )
    add("--heal", type=cli.non_negative_int, default=0, help="epochs of fine-tuning for the chosen subset")
    add(
        "--heal_part",
        choices=pruning_plan.HEAL_PARTS,
        default="head",
        help="part that healing trains: head, head and last block, all",
    )
    add(
        "--heal_teacher",
        action="store_true",
        help="with --heal: the subset also learns from the probabilities of the whole model (knowledge distillation)",
    )
    add(
        "--heal_keep",
        default=None,
        help="subset to heal, such as 0-3,7 (default: the smallest within the margin; if there is none, the best with "
        "the fewest blocks removed)",
    )
    add(
        "--max_latency_ms",
        type=cli.positive_float,
        default=None,
        help="also choose the best model that needs at most this time for a clip, with fewer blocks and fewer "
        "units in their feed-forward networks",
    )
    add("--max_parameters", type=cli.positive_int, default=None, help="likewise, with at most this many parameters")
    add(
        "--max_gmacs",
        type=cli.positive_float,
        default=None,
        help="likewise, with at most this many GMACs (10^9 multiply-accumulates) per clip",
    )
    add("--batch_size", type=cli.positive_int, default=16, help="clips per batch")
    cli.add_data_arguments(parser)
    cli.add_common_arguments(parser, output_dir=DEFAULT_OUTPUT_DIR)
    return parser


def run(args: argparse.Namespace) -> None:
    """Write a folder of results, and rebuild the summary of all results."""
    if args.output_dir == Path(DEFAULT_OUTPUT_DIR):
        name = names.variant_of(names.of_model(args.model_dir), names.SWEEP)
        args.output_dir = Path(DEFAULT_OUTPUT_DIR).parent / name
    if args.search_split == "test":
        raise UsageError(
            "--search_split test: layers must not be chosen by test clips, or no clip is left for an honest report; "
            "choose on val, report on test"
        )
    if args.search_split == args.report_split:
        raise UsageError(
            f"--search_split and --report_split are both {args.report_split}: the score of a subset is too high on the "
            "clips on which it was chosen; choose on val, report on test"
        )
    if args.heal and args.search_split == "train":
        raise UsageError(
            "--heal with --search_split train: healing trains on train, and chooses its epoch on the split of the "
            "search; choose on val, or leave --heal out"
        )
    if args.repair_clips is not None and args.repair == pruning_plan.NO_REPAIR:
        raise UsageError("--repair_clips is of use only with --repair linear")
    swept = args.strategies or pruning_plan.STRATEGIES
    if cli.changed(build_parser(), args, ["beam_width"]) and "beam" not in swept:
        raise UsageError("--beam_width is of use only with the strategy beam, which is not among --strategies")
    args.repair_clips = args.repair_clips or pruning_plan.REPAIR_CLIPS  # run.json has the number
    inputs = {
        "model_dir": model_folder.model_input(args.model_dir),
        "data_dir": clips.data_input(args.data_dir, args.fold),
    }
    if args.analysis_dir is not None:
        inputs["analysis_dir"] = recommendation.analysis_input(args.analysis_dir)
    try:
        with runs.open_run(Path(__file__).stem, args, inputs, outputs=OUTPUTS, scratch=[SCRATCH]) as this_run:
            with this_run.checking():
                asked = check(args, inputs, this_run)
            sweep(asked, this_run)
    except AlreadyComplete:
        runs.log_figures(args.output_dir)
        raise
    summary.rebuild_summary(names.root_of(args.output_dir))  # a sweep has no row there
    runs.log_figures(args.output_dir)


class Sweep(NamedTuple):
    """The checked inputs of a sweep.

    Attributes
    ----------
    args : argparse.Namespace
    inputs : dict of str to Input
    loaded : LoadedModel
    train_clips, search_clips, report_clips : Clips
    plan : pruning_plan.Plan
    evidence : Evidence
        The measurements of stage 04.
    heal_keep : tuple of int or None
        The subset of --heal_keep.
    repairer : Repairer or None
        Repairs every subset before it is scored or healed.
    """

    args: argparse.Namespace
    inputs: dict[str, runs.Input]
    loaded: LoadedModel
    train_clips: clips.Clips
    search_clips: clips.Clips
    report_clips: clips.Clips
    plan: pruning_plan.Plan
    evidence: Evidence
    heal_keep: Keep | None
    repairer: repair.Repairer | None


def check(args: argparse.Namespace, inputs: dict[str, runs.Input], this_run: runs.Run) -> Sweep:
    """Load the model and the clips, and check the flags against them."""
    device = this_run.choose_device(args.device)
    evidence = layer_selection.Evidence()
    if args.analysis_dir is not None:
        evidence = recommendation.read_evidence(
            args.analysis_dir, inputs["model_dir"], inputs["data_dir"], args.report_split
        )
    loaded = encoders.load_model(args.model_dir, device)
    train_clips, search_clips, report_clips = (
        clips.read_clips(args.data_dir, split, args.max_clips_per_class, args.seed, args.fold)
        for split in ("train", args.search_split, args.report_split)
    )
    if not loaded.is_multi_label:
        train_clips, search_clips, report_clips = (
            split_clips.with_one_label() for split_clips in (train_clips, search_clips, report_clips)
        )
    encoders.check_matches(loaded, report_clips)
    encoder_parts.check_parts(loaded, search_clips)
    training_history.warn_of_known_recordings(
        *(loaded.model, str(args.model_dir), inputs["data_dir"]),
        {args.search_split: search_clips.table["recording_id"], args.report_split: report_clips.table["recording_id"]},
    )
    plan = pruning_plan.make_plan(
        *(loaded.model, args.strategies, args.sizes, args.beam_width),
        *(args.iterative, args.remove_first_block, args.seed),
    )
    heal_keep = parse_heal_keep(args, loaded.config)
    if limit := budget_of(args):
        fewest = max(plan.fewest, len(plan.protected))
        budget.check(loaded, limit, tuple(range(fewest)), search_clips.clip_seconds)
    repairer = None
    if args.repair == pruning_plan.LINEAR:
        some = train_clips.drawn(args.repair_clips, args.seed)
        repairer = repair.Repairer(loaded, some, args.batch_size)
        log.info("every subset is repaired on %d clips of train", len(some))
    return Sweep(args, inputs, loaded, train_clips, search_clips, report_clips, plan, evidence, heal_keep, repairer)


def budget_of(args: argparse.Namespace) -> budget.Budget | None:
    """Return the budget that the flags set, or None."""
    limits = budget.Budget(args.max_latency_ms, args.max_parameters, args.max_gmacs)
    return limits if limits.limits else None


def drawn_by(args: argparse.Namespace) -> dict:
    """Return the flags that draw the clips of train, for 07 to draw the same."""
    return {name: vars(args)[name] for name in best.DRAWN_BY}


def sweep(asked: Sweep, this_run: runs.Run) -> None:
    """Score the subsets of the strategies, choose, and report."""
    args, loaded, plan = asked.args, asked.loaded, asked.plan
    start_line.log_start(
        *(args.device, loaded.device, {str(args.model_dir): loaded.model}),
        {"train": asked.train_clips, args.search_split: asked.search_clips, args.report_split: asked.report_clips},
    )
    scratch = args.output_dir / SCRATCH
    scratch.mkdir(exist_ok=True)
    key = {"model": asked.inputs["model_dir"].sha256, "data": asked.inputs["data_dir"].sha256}

    def measure(keep: Keep, needs: Sequence[str]) -> Evidence:
        return layer_evidence.evidence_of_subset(
            *(
                loaded,
                asked.train_clips.with_one_label(),
                keep,
                needs,
                analysis.NUM_NEIGHBORS,
                analysis.NUM_PAIRS,
                args.seed,
            ),
            *(args.batch_size, scratch, key),
        )

    def scores(split_clips: clips.Clips, split: str, repairer: repair.Repairer | None) -> subset_scores.SubsetScores:
        return subset_scores.SubsetScores(loaded, split_clips, split, args.batch_size, scratch, key, repairer)

    on_search = scores(asked.search_clips, args.search_split, asked.repairer)
    on_report = scores(asked.report_clips, args.report_split, asked.repairer)
    unrepaired = scores(asked.report_clips, args.report_split, None) if asked.repairer else None
    table = pruning_table.PruningTable(
        args.output_dir / pruning_table.CSV_NAME, loaded, on_search, on_report, unrepaired
    )

    # One walk scores the candidates of the rules, and all subsets if the search is exhaustive. In a race these
    # candidates are the first leaders.
    with this_run.timed("rules"):
        proposed = [
            layer_selection.Candidate(pruning_table.FULL, plan.whole, 0),
            *plan.by_rules(asked.evidence, measure),
        ]
    with this_run.timed("search"):
        finalists, every = ({candidate.keep for candidate in some} for some in (proposed, plan.all_subsets()))
        if pruning_plan.RACE in plan.searches:
            race.run(on_search, every, finalists, args.seed)
        else:
            on_search.run(finalists | every)
        table.add(proposed)
        for strategy in plan.searches:
            found = plan.by_search(strategy, on_search.ranks, on_search.has)
            runs_all = strategy in (pruning_plan.EXHAUSTIVE, pruning_plan.RACE)
            table.add(plan.all_subsets() if runs_all else found)
            finalists |= {candidate.keep for candidate in found}

    # Every choice is made before any clip of the report split is scored.
    choices = pruning_table.choose(table.candidates, on_search, args.margin)
    finalists |= choices.keeps()
    to_heal = asked.heal_keep or choices.to_heal()
    if args.heal:
        on_search.run([to_heal])
        finalists.add(to_heal)
    with this_run.timed("costs"):
        table.measure_costs(asked.search_clips, scratch / "costs.json")
    within = {}
    if limit := budget_of(args):
        models = (loaded, limit, asked.train_clips, asked.repairer)
        search = budget.BudgetSearch(*models, on_search, on_report, scratch, key)
        with this_run.timed("budget"):
            keeps = [candidate.keep for candidate in choices.by_depth.values()]
            within_budget = search.choose(keeps, asked.search_clips, args.output_dir / budget.CSV_NAME)
            within = {"budget": limit.limits, "within_budget": within_budget}
    with this_run.timed("report"):
        on_report.run(finalists)
        if unrepaired:
            unrepaired.run(finalists)
        table.write()
        if within.get("within_budget"):
            within["within_budget"] = search.described(within_budget, drawn_by(args))
    this_run.metrics = write_choices(asked, {**choices.scored(on_search, on_report), **within}, on_search, on_report)
    this_run.metrics |= looks.count_looks(args.output_dir, asked.inputs["data_dir"], args.report_split)
    if heard := asked.report_clips.heard_in_train:
        this_run.metrics["heard_in_train"] = dataclasses.asdict(heard)
    with this_run.timed("figures"):
        drawing.draw_sweep(args.output_dir)
    if args.heal:
        choices.log_healing(to_heal, asked.heal_keep is not None, args.margin, on_search)
        with this_run.timed("healing"):
            heal(asked, to_heal, on_search, on_report)
    pruning_table.log_answer(choices, args.margin, on_search, on_report)
    shutil.rmtree(scratch)


def write_choices(
    asked: Sweep,
    chosen: dict,
    on_search: subset_scores.SubsetScores,
    on_report: subset_scores.SubsetScores,
) -> dict:
    """Write ``best.json``; return the part of it that ``run.json`` records too."""
    args = asked.args
    swept = {
        "model_sha256": asked.inputs["model_dir"].sha256,
        "model_dir": str(args.model_dir),
        "n_layers": asked.plan.n_layers,
        "data_dir": str(args.data_dir),
        "data_sha256": asked.inputs["data_dir"].sha256,
        "clip_seconds": asked.search_clips.clip_seconds,
        "kept_together": asked.report_clips.kept_together,
        "search_split": args.search_split,
        "report_split": args.report_split,
        "n_of_splits": {scores.split: [scores.n_clips, scores.n_groups] for scores in (on_search, on_report)},
        "margin": args.margin,
        "repair": asked.repairer.settings | drawn_by(args) if asked.repairer else None,
    }
    written = best.write_best(args.output_dir, swept, chosen)
    recorded = ("smallest_within_margin", "smallest_within_margin_by_interval", "n_pruned", "kept_together")
    return {name: written[name] for name in (*recorded, "within_budget") if name in written}


def heal(
    asked: Sweep, keep: Keep, on_search: subset_scores.SubsetScores, on_report: subset_scores.SubsetScores
) -> None:
    """Write a healed model, and ``healing.csv`` with a row that compares it with the same subset before."""
    args, loaded, work_dir = asked.args, asked.loaded, asked.args.output_dir / SCRATCH / HEALED
    healed_dir = args.output_dir / HEALED / "model"
    data = asked.inputs["data_dir"].sha256
    training_history.note_training(loaded.model, data, asked.train_clips, asked.search_clips)
    loaded.config.layers_chosen_on = training_history.chosen_on(args.search_split, data)
    healing.heal_subset(
        *(loaded, keep, healed_dir, args.heal_part, asked.train_clips, asked.search_clips),
        *(healing.settings_for(args.heal, args.seed), work_dir, args.batch_size, args.heal_teacher, asked.repairer),
    )
    row = {"part": args.heal_part, "epochs": args.heal, "kept_layers": cli.format_layer_list(keep)}
    row |= {"teacher": str(args.model_dir)} if args.heal_teacher else {}
    row |= healing.compare(healed_dir, keep, {"search": on_search, "report": on_report}, loaded.device)
    pruning_table.write_rows(args.output_dir / "healing.csv", pd.DataFrame([row]))


def parse_heal_keep(args: argparse.Namespace, config: PreTrainedConfig) -> Keep | None:
    """Return the subset of --heal_keep; None lets the sweep choose.

    Raises
    ------
    UsageError
        If it is impossible for this model, or --heal is 0.
    """
    of_healing = cli.changed(build_parser(), args, ("heal_keep", "heal_teacher", "heal_part"))
    if of_healing and not args.heal:
        raise UsageError(f"--{of_healing[0]} is of use only with --heal: give the number of epochs with --heal")
    if args.heal_keep is None:
        return None
    keep = cli.parse_layer_list(args.heal_keep, config.num_hidden_layers)
    encoders.check_keep(config, keep)
    if not keep:
        raise UsageError("--heal_keep none: without a layer there is no encoder to heal")
    return tuple(keep)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage and return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
