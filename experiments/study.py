"""Train, prune and score every model of a study, and make its tables; `make study` runs this for each data set.

    python -m experiments.study --name wetland --raw_dir recordings --metadata metadata.csv \\
        --base_model wav2vec2=facebook/wav2vec2-base --output_dir study
    python -m experiments.study ... --dry_run      # prints the command of every step, for a batch system

The recordings are divided into folds by recordist. Each fold is tested once, by models that never heard its
recordists. For every fold and seed these models are trained and scored on the same clips:

<base>.blocks-<layers>  the base model with its first blocks only, fine-tuned: pruning before (02)
<base>.after-<n>        the whole model, pruned without retraining to the best n blocks on val: pruning after (05, 07)
<base>.after-<n>.repaired  the same blocks, repaired in closed form (07 --repair linear)
<base>.after-<n>.repaired.<how>  with --heal these are trained further (02): frozen, the head alone; healed, all
                  layers; taught, all layers with the whole model as the teacher
<base>.blocks-<layers>.frozen  the same blocks, with only the head trained (02 --freeze_encoder): all blocks, and with
                  --head_first also the others
<other>                 other encoders, fine-tuned whole (02)
cnn-<architecture>      the CNN baselines (06)
<base>.blocks-<layers>.taught, cnn-<architecture>.taught  with --taught_layers and --taught_cnns, the same models,
                  trained with a teacher (02, 06): the whole model, or for a CNN those of --cnn_teachers together
<base>.blocks-<layers>.ffn-<percent>  with --narrow_layers, the same models with a part of the units of their
                  feed-forward networks, without retraining (07 --ffn_size); .repaired as above

With --head_first each encoder that has blocks is fine-tuned from such a head, and not from a random one, whose first
steps would spoil what the encoder knows (Kumar et al. 2022, arXiv 2202.10054).

Then 03 pools the folds of each model. The model of --claim_layers is also trained and scored on clips that were divided
in another way (<name>.by-<way>), to show the effect of the split.

The question comes first: the whole model, its pruned, repaired and healed versions, and the CNNs of the first seed, on
all folds, pooled and compared by experiments.ways_table. Then come the models pruned before, other encoders, seeds and
splits, models that learn from a teacher, and narrower models.

Every step is a stage with its command. --jobs steps run at a time, each with its share of the CPUs. After a stop or a
kill the same command continues: a finished step has nothing to do, an unfinished one resumes. If a step fails, the
steps that run go on to their end, and no other step starts.

A study can go on from results alone, on another machine: a model whose run folder is gone is not trained again if its
results are complete, with those of its repaired and healed versions. A model that would learn from it, or be made from
it, is left out, with a warning. To go on from the results that came with the code, copy them first:

    mkdir -p study && cp -r validation_results/published study/validation_results

Writes <output_dir>/processed_data/<name>/folds, runs/<name>/<model>/fold-<k>.seed-<n> and
validation_results/<name>/<model>/fold-<k>.seed-<n> and fold-all.seed-<n> (see utils/core/names.py), logs/ with the
output of the steps, and the tables of experiments.leak_table, ladder_table, latencies, study_table and ways_table.
"""

import argparse
import itertools
import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

from experiments import ladder_table, latencies, leak_table, study_table, ways_table
from experiments.stage_processes import load_stage, start_stage
from utils.core import cli, names, runs
from utils.core.errors import InputError, Interrupted, UsageError
from utils.core.names import DEFAULT_SPLIT, Name
from utils.core.text import counted
from utils.core.workers import available_cpus
from utils.data.splits import SPLIT_BY
from utils.models import encoders
from utils.models.architectures import CNNS

log = logging.getLogger(__name__)

PREPARE, TRAIN, VALIDATE = "01_data_processing.py", "02_finetuning.py", "03_model_validation.py"
SWEEP, TRAIN_CNN, PRUNE = "05_pruning.py", "06_cnn.py", "07_manual_pruning.py"
RESULTS_OF = (VALIDATE, SWEEP)
# The flags with more arguments for a stage, and what these cannot be, because the study and its tables rely on it.
STAGES = {
    **{"data_args": PREPARE, "train_args": TRAIN, "head_args": TRAIN},
    **{"cnn_args": TRAIN_CNN, "taught_cnn_args": TRAIN_CNN},
}
_OF_TRAINING = {"--data_dir", "--fold", "--seed", "--teacher_dir", "--problem_type", "--output_dir"}
SET_HERE = {
    PREPARE: {"--raw_dir", "--metadata", "--split_by", "--folds", "--output_dir"},
    TRAIN: {"--base_model", "--keep_layers", "--freeze_encoder", *_OF_TRAINING},
    TRAIN_CNN: {"--architecture", *_OF_TRAINING},
}
HEALING = (names.FROZEN, names.HEALED, names.TAUGHT)
FFN_SIZE = 0.5


@dataclass(frozen=True)
class Job:
    """Steps that run one after the other.

    Attributes
    ----------
    name : str
        Name of the result.
    steps : tuple of tuple of str
        The file name of a stage and its arguments.
    reads : tuple of str
        Folders that jobs of earlier rounds make.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    reads: tuple[str, ...] = ()

    @cached_property
    def results(self) -> dict[Path, bool]:
        """Whether each result is complete, if the run folder of the model is gone, such as on a new machine."""
        folders = [Path(step[-1]) for step in self.steps]  # each step ends with its output folder
        made = {script for script, *_ in self.steps}
        if not made & {TRAIN, TRAIN_CNN, PRUNE} or folders[0].exists():
            return {}
        results = [folder for (script, *_), folder in zip(self.steps, folders, strict=True) if script in RESULTS_OF]
        return {folder: self._is_complete(folder) for folder in results}

    def _is_complete(self, folder: Path) -> bool:
        try:
            runs.folder_input(folder)
        except InputError as error:
            log.debug("%s is trained: %s", self.name, error)
            return False
        return True

    @property
    def is_known(self) -> bool:
        """Whether the results are complete although the run folder of the model is gone."""
        results = self.results
        return bool(results) and all(results.values())

    @property
    def missing(self) -> str | None:
        """The first folder of `reads` that is not there."""
        return next((folder for folder in self.reads if not Path(folder).exists()), None)

    def warn_of_results(self) -> None:
        """Warn if some results of a model that will be made again are there already."""
        results = self.results
        there = [folder for folder, is_complete in results.items() if is_complete]
        if there:
            missing = next(folder for folder, is_complete in results.items() if not is_complete)
            log.warning(
                "%s is made again: its run folder is gone, and the result %s is missing. If the new model is not "
                "exactly the old one, the study stops at an old result: to replace them, delete the old ones (%s, the "
                "first is %s)",
                *(self.name, missing, counted(len(there), "result"), there[0]),
            )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script."""
    parser = cli.build_stage_parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="short name of the data set")
    add("--raw_dir", type=Path, required=True, help="recordings, as for stage 01")
    add("--metadata", type=Path, default=None, help="table of the recordings, as for stage 01")
    add("--base_model", type=_named, required=True, metavar="NAME=MODEL", help="encoder to prune, and its short name")
    add("--other_models", type=_named, nargs="*", default=[], metavar="NAME=MODEL", help="encoders to fine-tune whole")
    add("--architectures", choices=CNNS, nargs="*", default=list(CNNS), help="CNNs of stage 06")
    add("--folds", type=cli.positive_int, default=5, help="number of folds")
    add("--seeds", type=cli.non_negative_int, nargs="+", default=[1], help="seeds of the trainings on each fold")
    add(
        "--seeds_of_first_fold",
        type=cli.non_negative_int,
        nargs="*",
        default=[],
        help="more seeds, on fold 1 only, to show how much trainings differ",
    )
    add("--splits", choices=SPLIT_BY[1:], nargs="*", default=list(SPLIT_BY[1:]), help="other splits, of one model")
    add("--claim_layers", default=None, help="layers of the model for --splits, such as 0-3 (default: all)")
    add(
        "--data_args",
        type=shlex.split,
        default=[],
        help="more arguments for stage 01, such as --data_args='--clip_seconds 3'",
    )
    add("--train_args", type=shlex.split, default=[], help="the same for stage 02")
    add("--head_args", type=shlex.split, default=[], help="the same for stage 02 with --freeze_encoder")
    add("--cnn_args", type=shlex.split, default=[], help="the same for stage 06")
    add("--taught_cnn_args", type=shlex.split, default=[], help="more arguments for stage 06 with a teacher")
    add("--head_first", action="store_true", help="train the head of each encoder alone, before all its layers")
    add("--heal", choices=HEALING, nargs="*", default=[], help="how to train repaired models further (default: not)")
    add(
        "--heal_layers",
        type=cli.positive_int,
        nargs="+",
        default=None,
        help=f"with --heal {names.HEALED} or {names.TAUGHT}: only the repaired models with these numbers of blocks, "
        "such as 2 4 (default: all of them)",
    )
    add(
        "--taught_layers",
        nargs="*",
        default=[],
        metavar="LAYERS",
        help="models pruned before, such as 0-2, to train also with the whole model as the teacher (default: none)",
    )
    add(
        "--narrow_layers",
        nargs="*",
        default=[],
        metavar="LAYERS",
        help="fine-tuned models, such as 0-5 0-3, to make narrower without retraining (default: none)",
    )
    add(
        "--ffn_sizes",
        type=cli.share,
        nargs="+",
        default=None,
        metavar="SHARE",
        help=f"with --narrow_layers: shares of the units that each feed-forward network keeps (default: {FFN_SIZE})",
    )
    add(
        "--taught_cnns",
        choices=CNNS,
        nargs="*",
        default=[],
        help="CNNs to train also with teachers (default: none)",
    )
    add(
        "--cnn_teachers",
        nargs="+",
        default=None,
        metavar="LAYERS",
        help="with --taught_cnns: fine-tuned models that teach together, such as 0-5 0-3 (default: the whole model)",
    )
    add("--jobs", type=cli.positive_int, default=2, help="steps that run at a time")
    add("--dry_run", action="store_true", help="print the commands and run none")
    add("--output_dir", type=Path, default=Path("study"), help="folder for all outputs")
    add("--log_level", choices=["info", "warning"], default="info", help="lowest level to print")
    return parser


def _named(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model) or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not a short name and a model, such as tiny=../models/tiny")
    return name, model


def run(args: argparse.Namespace) -> None:
    """Run all steps, then make the tables."""
    model = encoders.load_base_model(args.base_model[1], ["one", "another"]).model
    rungs = [cli.format_layer_list(range(n)) for n in range(model.config.num_hidden_layers + 1)]
    claim_layers = args.claim_layers or rungs[-1]
    if twice := [seed for seed, n in Counter([*args.seeds, *args.seeds_of_first_fold]).items() if n > 1]:
        raise UsageError(f"seed {twice[0]} is twice among --seeds and --seeds_of_first_fold: give each seed once")
    given = {flag: [word.partition("=")[0] for word in getattr(args, flag)] for flag in STAGES}
    if several := {"--annotations", "--secondary_labels"} & {*given["data_args"]}:
        raise UsageError(
            f"--data_args {several.pop()} gives clips several labels, and the tables of a study are of one label a "
            "clip: train such models by 02_finetuning.py, and compare them by 03_model_validation.py --compare"
        )
    for flag, script in STAGES.items():
        if taken := SET_HERE[script].intersection(given[flag]):
            raise UsageError(f"--{flag} {min(taken)}: the study sets {min(taken)} of {script} itself; leave it out")
    check_layers(args, rungs)
    question, rest = plan(args, rungs, claim_layers)
    steps = [step for jobs in (*question, *rest) for job in jobs for step in job.steps]
    made_twice = [folder for folder, n in Counter(step[-1] for step in steps).items() if n > 1]
    if made_twice:
        raise UsageError(
            f"two steps would write {made_twice[0]}: give each model, CNN, split, share and way to heal once"
        )
    check_steps(args, steps)
    if args.dry_run:
        print("\n".join(f"python {shlex.join(step)}" for step in steps))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // args.jobs)))
    logs_dir = args.output_dir / "logs"
    logs_dir.mkdir(parents=True, exist_ok=True)
    for of_question, rounds in ((True, question), (False, rest)):
        for jobs in rounds:
            run_jobs(jobs_to_do(jobs, "the question" if of_question else "the rest"), args.jobs, logs_dir)
        make_tables(args, claim_layers, rungs[-1], of_question)


def check_steps(args: argparse.Namespace, steps: Sequence[tuple[str, ...]]) -> None:
    """Refuse arguments that a stage does not take before the first step runs, and name the flag that gave them."""

    def refuse(status: int = 0, message: str = "--help is for the stage itself") -> NoReturn:
        raise UsageError(message.strip())

    parsers = {}
    for script, *words in steps:
        if script not in parsers:
            parsers[script] = load_stage(script.removesuffix(".py")).build_parser()
            parsers[script].prog, parsers[script].exit = script, refuse
        try:
            parsers[script].parse_args(words)
        except UsageError as error:
            own = {flag: getattr(args, flag) for flag, of in STAGES.items() if of == script}
            flags = [f"--{flag}" for flag, more in own.items() if more and {*more} <= {*words}]
            raise UsageError(f"{error}{'; it got ' * bool(flags)}{' and '.join(flags)}") from error


def check_layers(args: argparse.Namespace, rungs: list[str]) -> None:
    """Refuse layers that no model of the study has, and flags that change nothing."""
    of_flags = {
        "claim_layers": [args.claim_layers] if args.claim_layers else [],
        "taught_layers": args.taught_layers,
        "narrow_layers": args.narrow_layers,
        "cnn_teachers": args.cnn_teachers or [],
    }
    for flag, asked in of_flags.items():
        for layers in asked:
            if layers not in rungs:
                raise UsageError(f"--{flag} {layers}: no such model in the study, which has {', '.join(rungs)}")
    if rungs[-1] in args.taught_layers:
        raise UsageError(f"--taught_layers {rungs[-1]}: this is the whole model, which is the teacher")
    if not args.taught_cnns and (args.cnn_teachers or args.taught_cnn_args):
        raise UsageError("--cnn_teachers and --taught_cnn_args are for --taught_cnns: name a CNN, or leave them out")
    if args.ffn_sizes is not None and not args.narrow_layers:
        raise UsageError("--ffn_sizes is for --narrow_layers: name a model, such as 0-3, or leave it out")
    if 1 in (args.ffn_sizes or ()):
        raise UsageError("--ffn_sizes 1 keeps all units: give a share below 1, such as 0.5")
    for share in args.ffn_sizes or ():
        if round(100 * share) != round(100 * share, 9):
            raise UsageError(f"--ffn_sizes {share:g}: the names of the models have whole percents, such as 0.13")
    if rungs[0] in args.narrow_layers:
        raise UsageError(f"--narrow_layers {rungs[0]}: this model has no block to make narrower")
    if args.claim_layers and not args.splits:
        raise UsageError("--claim_layers is for --splits: name a split, or leave it out")
    if args.cnn_args and not (args.architectures or args.taught_cnns):
        raise UsageError("--cnn_args is for CNNs: name one in --architectures or --taught_cnns, or leave it out")
    n_blocks, asked = len(rungs) - 1, args.heal_layers or []
    flag = f"--heal_layers {' '.join(map(str, asked))}"
    if asked and not {names.HEALED, names.TAUGHT} & set(args.heal):
        raise UsageError(f"{flag} is for --heal {names.HEALED} or {names.TAUGHT}: give one of them, or leave it out")
    if not {*asked} <= {*range(1, n_blocks)}:
        raise UsageError(
            f"{flag}: the whole model has {counted(n_blocks, 'block')}, and a repaired one has fewer, but at least 1"
        )


# ------------------------------------------------------------------------------------------ what to do


def jobs_to_do(jobs: Sequence[Job], what: str) -> list[Job]:
    """Return the jobs that are not known and have all that they read; say how many, and name those left out."""
    unknown = [job for job in jobs if not job.is_known]
    to_do = [job for job in unknown if job.missing is None]
    n_known = len(jobs) - len(unknown)
    known = f"; {n_known} more have results, without their models" if n_known else ""
    log.info("%s: %s%s", what, counted(len(to_do), "job"), known)
    for job in unknown:
        if job.missing is None:
            job.warn_of_results()
        else:
            log.warning("%s is left out: %s is missing, which it reads", job.name, job.missing)
    return to_do


def plan(args: argparse.Namespace, rungs: list[str], claim_layers: str) -> tuple[list[list[Job]], list[list[Job]]]:
    """Return the jobs of the question and of the rest, in rounds; the jobs of a round do not depend on each other.

    Parameters
    ----------
    args : argparse.Namespace
    rungs : list of str
        Layer lists of the models that are pruned before fine-tuning, from no block to all.
    claim_layers : str
        The one of these whose model is trained on other splits too.
    """
    base, base_model = args.base_model
    without_blocks = ("--keep_layers", rungs[0])  # an encoder that has nothing to freeze

    def path(kind: str, name: Name | str) -> str:
        return str(args.output_dir / kind / str(name))

    def on_data_of(name: Name) -> tuple[str, ...]:
        return ("--data_dir", path("processed_data", name.data), "--fold", name.fold, "--seed", str(name.seed))

    def prepared(name: Name) -> Job:
        words = ["--raw_dir", str(args.raw_dir), *(["--metadata", str(args.metadata)] if args.metadata else [])]
        words += ["--split_by", name.split_by, "--folds", str(args.folds), *args.data_args]
        return Job(name.data, ((PREPARE, *words, "--output_dir", path("processed_data", name.data)),))

    def validation(name: Name) -> tuple[str, ...]:
        words = ("--model_dir", path("runs", name), *on_data_of(name))
        return (VALIDATE, *words, "--output_dir", path("validation_results", name))

    def training_of(name: Name, script: str, *words: str) -> tuple[str, ...]:
        return (script, *words, *on_data_of(name), "--output_dir", path("runs", name))

    def head_of(name: Name, *start: str) -> list[tuple[str, ...]]:
        head = name.variant(names.FROZEN)
        return [training_of(head, TRAIN, *start, "--freeze_encoder", *args.head_args), validation(head)]

    def start_of(name: Name, model: str, *words: str) -> tuple[str, ...]:
        """Return the words for the model from which all layers are trained."""
        if args.head_first and words != without_blocks:
            model, words = path("runs", name.variant(names.FROZEN)), ()
        return "--base_model", model, *words

    def fine_tuned(name: Name, model: str, *words: str) -> Job:
        first, start = ("--base_model", model, *words), start_of(name, model, *words)
        steps = [] if start == first else head_of(name, *first)
        steps += [training_of(name, TRAIN, *start, *args.train_args), validation(name)]
        return Job(str(name), tuple(steps))

    def cnn_of(of_base: Name, architecture: str) -> tuple[Name, tuple[str, ...]]:
        return replace(of_base, model=f"cnn-{architecture}"), ("--architecture", architecture, *args.cnn_args)

    def taught(of_base: Name) -> list[Job]:
        """Return the jobs that train models with a teacher of the same fold and seed."""

        def job(name: Name, script: str, teachers: Sequence[str], *words: str) -> Job:
            name = name.variant(names.TAUGHT)
            folders = (path("runs", of_base.variant(names.blocks(layers))) for layers in teachers)
            training = training_of(name, script, *words, "--teacher_dir", *folders)
            reads = [word for word in training[:-1] if Path(word).is_relative_to(path("runs", ""))]
            return Job(str(name), (training, validation(name)), tuple(reads))

        jobs = []
        for keep in args.taught_layers:
            name = of_base.variant(names.blocks(keep))
            start = start_of(name, base_model, "--keep_layers", keep)
            jobs.append(job(name, TRAIN, rungs[-1:], *start, *args.train_args))
        for architecture in args.taught_cnns:
            name, words = cnn_of(of_base, architecture)
            jobs.append(job(name, TRAIN_CNN, args.cnn_teachers or rungs[-1:], *words, *args.taught_cnn_args))
        return jobs

    def narrowed(of_base: Name) -> list[Job]:
        """Return the jobs that make fine-tuned models narrower, without and with repair."""
        jobs = []
        for keep, share in itertools.product(args.narrow_layers, args.ffn_sizes or (FFN_SIZE,)):
            tuned = of_base.variant(names.blocks(keep))
            name, whole_dir = tuned.variant(names.narrower(share)), path("runs", tuned)
            words, steps = ("--model_dir", whole_dir, "--ffn_size", f"{share:g}", *on_data_of(name)), []
            for own, how in ((name, ()), (name.variant(names.REPAIRED), ("--repair", "linear"))):
                steps += [(PRUNE, *words, *how, "--output_dir", path("runs", own)), validation(own)]
            jobs.append(Job(str(name), tuple(steps), (whole_dir,)))
        return jobs

    def healing(repaired: Name, n: int, how: str, whole_dir: str) -> list[tuple[str, ...]]:
        """Return the steps that train a repaired model of n blocks further; none if this size is not asked for."""
        start = ("--base_model", path("runs", repaired))
        if how == names.FROZEN:
            return head_of(repaired, *start)
        if args.heal_layers is not None and n not in args.heal_layers:
            return []
        healed, teacher = repaired.variant(how), ("--teacher_dir", whole_dir) if how == names.TAUGHT else ()
        return [training_of(healed, TRAIN, *start, *teacher, *args.train_args), validation(healed)]

    def rung(of_base: Name, keep: str) -> Job:
        return fine_tuned(of_base.variant(names.blocks(keep)), base_model, "--keep_layers", keep)

    def whole_and_pruned(of_base: Name) -> Job:
        whole, tuned = of_base.variant(names.blocks(rungs[-1])), rung(of_base, rungs[-1])
        swept, words = whole.variant(names.SWEEP), ("--model_dir", path("runs", whole))
        sweep_dir = path("validation_results", swept)
        steps = [*tuned.steps, (SWEEP, *words, *on_data_of(whole), "--output_dir", sweep_dir)]
        if not args.head_first:
            steps += head_of(whole, "--base_model", base_model, "--keep_layers", rungs[-1])
        for n in range(1, len(rungs) - 1):
            name = of_base.variant(names.after(n))
            repaired = name.variant(names.REPAIRED)
            choice = ("--from", f"{sweep_dir}/best.json", "--n_layers", str(n))
            repair = ("--repair", "linear", *on_data_of(whole))
            for pruned, how in ((name, ()), (repaired, repair)):
                steps.append((PRUNE, *words, *choice, *how, "--output_dir", path("runs", pruned)))
                steps.append(validation(pruned))
            for how in args.heal:
                steps += healing(repaired, n, how, words[1])
        return Job(tuned.name, tuple(steps))

    def pooled(name: Name) -> Job:
        folds = [path("validation_results", replace(name, fold=fold)) for fold in folds_of[name.seed]]
        name = replace(name, fold=names.ALL_FOLDS)
        # It is replaced if the result of a fold is another one by now.
        words = ("--pool", *folds, "--overwrite", "--output_dir", path("validation_results", name))
        return Job(str(name), ((VALIDATE, *words),), tuple(folds))

    def asked(of_base: Name) -> list[Job]:
        """Return the jobs of the question, of one fold and seed."""
        jobs = [whole_and_pruned(of_base)]
        for architecture in args.architectures:
            cnn, words = cnn_of(of_base, architecture)
            jobs.append(Job(str(cnn), (training_of(cnn, TRAIN_CNN, *words), validation(cnn))))
        return jobs

    def others(of_base: Name) -> list[Job]:
        jobs = [rung(of_base, keep) for keep in rungs[:-1]]
        jobs += [fine_tuned(replace(of_base, model=name), model) for name, model in args.other_models]
        if of_base.seed == args.seeds[0]:
            jobs += [rung(replace(of_base, split_by=way), claim_layers) for way in args.splits]
        return jobs

    def pooling(jobs: list[Job]) -> list[Job]:
        """Return the jobs that pool the folds of the models that these jobs score."""
        scored = [step[-1] for job in jobs for step in job.steps if step[0] == VALIDATE]
        found = [names.parse(names.of_folder(Path(folder))) for folder in scored]
        return [pooled(name) for name in found if name.fold == "1" and name.seed in args.seeds]

    folds = [str(number) for number in range(1, args.folds + 1)]
    folds_of = {**dict.fromkeys(args.seeds, folds), **dict.fromkeys(args.seeds_of_first_fold, folds[:1])}
    bases = [Name(args.name, base, seed, fold=fold) for seed, own in folds_of.items() for fold in own]
    first = [of_base for of_base in bases if of_base.seed == args.seeds[0]]
    preparing = [prepared(Name(args.name, base, 0, fold="1", split_by=way)) for way in (DEFAULT_SPLIT, *args.splits)]
    question = [job for of_base in first for job in asked(of_base)]
    rest = [job for of_base in bases for job in others(of_base)]
    rest += [job for of_base in bases if of_base not in first for job in asked(of_base)]
    learning = [job for of_base in bases for job in (*taught(of_base), *narrowed(of_base))]
    return [preparing[:1], question, pooling(question)], [preparing[1:], rest, learning, pooling(rest + learning)]


# ------------------------------------------------------------------------------------------- doing it


def run_jobs(jobs: Sequence[Job], n_at_once: int, logs_dir: Path) -> None:
    """Run several jobs at a time; each step is a process whose output is appended to ``<job>.txt``.

    Parameters
    ----------
    jobs : sequence of Job
    n_at_once : int
    logs_dir : Path

    Raises
    ------
    InputError
        If a step fails; the message has the last line of its output.
    Interrupted
        If this process got a signal; it has passed the signal on and waited until the running steps ended.
    """
    waiting = list(jobs)
    running: dict[BaseProcess, tuple[Job, int, float]] = {}
    stopped_by, failures, n_done = [], [], 0

    def stop(number: int, frame: object) -> None:
        stopped_by.append(signal.Signals(number).name)
        for process in running:
            process.terminate()

    def start(job: Job, number: int, since_s: float) -> None:
        script, *words = job.steps[number]
        process = start_stage(script, words, log_of(job, logs_dir), prepare=stop_with_parent)
        running[process] = (job, number, since_s)
        if stopped_by:  # while it was starting
            process.terminate()

    before = {number: signal.signal(number, stop) for number in runs.STOP_SIGNALS}
    try:
        while running or (waiting and not stopped_by and not failures):
            while waiting and len(running) < n_at_once and not stopped_by and not failures:
                start(waiting.pop(0), 0, time.monotonic())
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                job, number, since_s = running.pop(process)
                if process.exitcode != 0:
                    if not stopped_by:
                        failures.append((job, number, process.exitcode))
                elif number + 1 < len(job.steps) and not stopped_by:
                    start(job, number + 1, since_s)
                elif number + 1 == len(job.steps):
                    n_done += 1
                    log.info("%s: done in %.0f s, %d of %d", job.name, time.monotonic() - since_s, n_done, len(jobs))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by:
        raise Interrupted(f"stopped by {stopped_by[0]}: run the same command again to continue")
    if failures:
        raise InputError("; ".join(_told(*failure, logs_dir) for failure in failures))


def stop_with_parent() -> None:
    """Stop this process by SIGTERM, like a batch system does, when its parent process has ended."""

    def stop() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()


def log_of(job: Job, logs_dir: Path) -> Path:
    """Return the file for the output of a job's steps, and create its folder."""
    path = logs_dir / f"{job.name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _told(job: Job, number: int, exit_code: int, logs_dir: Path) -> str:
    printed, ended = log_of(job, logs_dir), f"ended with exit code {exit_code}"
    if exit_code < 0:
        ended = f"was ended by {signal.Signals(-exit_code).name}"
    if exit_code == -signal.SIGKILL:
        ended += ", most often because the machine or the job ran out of memory: give fewer --jobs or more memory"
    lines = printed.read_text(encoding="utf-8").strip().splitlines() if printed.exists() else []
    last = f"; the last line of its output: {lines[-1]}" if lines else "; it printed nothing"
    return f"{job.name}: {job.steps[number][0]} {ended}{last} (whole output: {printed})"


def make_tables(args: argparse.Namespace, claim_layers: str, all_layers: str, of_question: bool) -> None:
    """Print the tables of the study, or only that of its question, and draw their figures.

    Latencies are measured again when a model has none yet.
    """
    results_dir, first = (
        args.output_dir / "validation_results",
        Name(args.name, args.base_model[0], args.seeds[0], fold="1"),
    )
    of_study = ("--results_dir", results_dir, "--name", args.name)

    def make(script, *words: str | Path) -> None:
        script.run(script.build_parser().parse_args([str(word) for word in words]))

    if latencies.models_without(args.output_dir / "runs", results_dir, args.name):
        data_dir = args.output_dir / "processed_data" / first.data
        make(latencies, *of_study, "--runs_dir", args.output_dir / "runs", "--data_dir", data_dir)
    if not of_question:
        if args.splits:
            make(leak_table, *of_study, "--model", first.variant(names.blocks(claim_layers)).full_model)
        make(ladder_table, *of_study, "--model", first.model)
        make(study_table, *of_study)
    seeds = args.seeds[:1] if of_question else args.seeds
    parts = [replace(first, fold=names.ALL_FOLDS, seed=seed).part for seed in seeds]
    make(ways_table, *of_study, "--model", first.variant(names.blocks(all_layers)).full_model, "--part", *parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    return cli.run_stage(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
