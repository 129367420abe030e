"""What `make study` runs: the plan, steps side by side, a stop half-way, a step that fails, and the tables."""

import argparse
import functools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForAudioClassification

from experiments import publish, study
from experiments.stage_processes import CONTEXT
from tests.data import SMALL_CONFIGS, small_extractor, write_processed
from tests.results import write_result
from tests.stages import load_stage, without_figures
from utils.core import runs
from utils.data import synthetic
from utils.models import encoders
from utils.models.loaded_model import LoadedModel

HEAD = "--num_train_epochs 1 --learning_rate 1e-3"
QUICK = f"{HEAD} --augment none"
MODELS = {"small.blocks-none", "small.blocks-0", "small.blocks-0.frozen", "small.blocks-0-1", "small.blocks-0-1.frozen"}
MODELS |= {"small.after-1", "small.after-1.repaired"}
OF_USER = {"--min_recordings", "--clip_seconds", "--width", "--teacher_views"}  # in the tests
OF_USER |= {word for word in QUICK.split() if word.startswith("--")}
PART = "fold-1.seed-1"
RESULT = f"birds/small/{PART}"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Return a command for a base model of two blocks, a CNN and one seed."""
    folder = tmp_path_factory.mktemp("study")
    synthetic.write_recordings(
        folder / "raw", n_species=3, recordists_per_species=8, recordings_per_recordist=1, seconds=(2.0, 2.5)
    )
    config = SMALL_CONFIGS["wav2vec2"]()
    config.num_hidden_layers = 2
    model = AutoModelForAudioClassification.from_config(config)
    encoders.save_model(LoadedModel(model, small_extractor("wav2vec2")), folder / "base")
    return [
        *("--name", "birds", "--raw_dir", str(folder / "raw"), "--metadata", str(folder / "raw" / "metadata.csv")),
        *("--base_model", f"small={folder / 'base'}", "--splits"),
        *("--folds", "3"),
        *("--architectures", "--data_args=--min_recordings 3 --clip_seconds 1"),
        *(f"--train_args={QUICK}", f"--head_args={HEAD}", "--head_first"),
    ]


def records(output_dir: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(output_dir)): json.loads(path.read_text(encoding="utf-8"))
        for path in output_dir.glob("*/**/run.json")
    }


def start_quick(start_stage, *step, prepare):
    assert prepare is study.stop_with_parent
    return start_stage(*step, prepare=quick)


def quick():
    study.stop_with_parent()
    without_figures()


@pytest.mark.starts_first
def test_stopped_half_way_it_goes_on_and_ends_with_the_tables(words, tmp_path, monkeypatch, capsys, caplog):
    command = [*words, "--output_dir", str(tmp_path / "study")]
    real, started = study.start_stage, []
    monkeypatch.setattr(study, "start_stage", functools.partial(start_quick, real))

    def start(*step, **more):
        process = start_quick(real, *step, **more)
        started.append(step[0])
        if len(started) == 6:  # both preparations, and training has begun
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    with monkeypatch.context() as patch:
        patch.setattr(study, "start_stage", start)
        assert study.main(command) == 75
    assert len(started) == 6 and "stopped by SIGTERM" in caplog.text
    before = records(tmp_path / "study")
    complete = {name for name, record in before.items() if record["status"] == "complete"}
    assert "processed_data/birds/folds" in complete
    assert not any((tmp_path / "study" / "validation_results").glob("birds/study.*"))

    assert study.main(command) == 0
    after = records(tmp_path / "study")
    of_folds = {
        f"validation_results/birds/{model}/fold-{fold}.seed-1"
        for model in [*MODELS, "small.blocks-0-1.sweep"]
        for fold in (1, 2, 3)
    }
    assert of_folds <= after.keys()
    assert {name.replace("validation_results", "runs") for name in of_folds if "sweep" not in name} <= after.keys()
    for model, base in (("0", "runs/birds/small.blocks-0.frozen/"), ("0-1", "runs/birds/small.blocks-0-1.frozen/")):
        start = after[f"runs/birds/small.blocks-{model}/fold-1.seed-1"]["arguments"]["base_model"]
        assert base in start, "all layers are trained from a trained head"
    assert after["runs/birds/small.blocks-none/fold-1.seed-1"]["arguments"]["base_model"].endswith("base")
    assert {f"validation_results/birds/{model}/fold-all.seed-1" for model in MODELS} <= after.keys()
    assert {record["status"] for record in after.values()} == {"complete"}
    assert all(after[name] == before[name] for name in complete), "what was done is not done again"
    table = pd.read_csv(tmp_path / "study" / "validation_results" / "birds" / "study.csv").set_index("model")
    assert set(table.index) == MODELS
    for model in table.index:
        scored = pd.read_csv(
            tmp_path / "study" / "validation_results" / "birds" / model / "fold-all.seed-1" / "metrics.csv"
        )
        assert table.loc[model, "accuracy"] == pytest.approx(scored["accuracy"].item(), abs=1e-5)
    assert table["kind"].value_counts().to_dict() == {"pruned before": 3, "whole": 2, "pruned after": 2}
    ways = pd.read_csv(tmp_path / "study" / "validation_results" / "birds" / "ways.csv").set_index("model")["way"]
    assert ways.to_dict() == {
        "small.blocks-0-1": "whole",
        "small.blocks-0": "pruned before",
        "small.blocks-none": "pruned before",
        "small.after-1": "removed",
        "small.after-1.repaired": "repaired",
        "small.blocks-0.frozen": "only the head trained",
        "small.blocks-0-1.frozen": "only the head trained",
    }
    printed = capsys.readouterr().out
    for line in (
        "| rule, by number of blocks kept |",
        "best accuracy of 7: ",
    ):
        assert line in printed

    assert study.main(command) == 0, "done already"
    assert records(tmp_path / "study") == after

    # On another machine, with the published results alone: only the model whose result is not whole is trained again.
    published, moved = tmp_path / "published", tmp_path / "moved"
    where = ("--results_dir", str(tmp_path / "study" / "validation_results"), "--published_dir", str(published))
    assert publish.main(["--name", "birds", *where]) == 0
    shutil.copytree(published, moved / "validation_results")
    (moved / "validation_results" / "birds" / "small.blocks-0" / "fold-2.seed-1" / "metrics.csv").write_text("damaged")
    assert study.main([*words, "--output_dir", str(moved)]) == 3, "the damaged result is refused where it lies"
    shutil.rmtree(moved / "validation_results" / "birds" / "small.blocks-0" / "fold-2.seed-1")
    assert study.main([*words, "--output_dir", str(moved)]) == 0
    trained = [path.parent.relative_to(moved / "runs").as_posix() for path in (moved / "runs").rglob("run.json")]
    assert sorted(trained) == [f"birds/small.blocks-0{variant}/fold-2.seed-1" for variant in (".frozen", "")]
    table_again = pd.read_csv(moved / "validation_results" / "birds" / "study.csv").set_index("model")
    pd.testing.assert_series_equal(table_again["accuracy"], table["accuracy"])


def test_killed_it_leaves_no_step_behind_that_nobody_waits_for(tmp_path):
    data_dir, run_dir = write_processed(tmp_path / "data"), tmp_path / "run"
    step = (study.TRAIN, "--base_model", "tiny", "--data_dir", str(data_dir), "--output_dir", str(run_dir))
    step += ("--num_train_epochs", "1000", "--early_stopping_patience", "1000", "--device", "cpu")
    process = CONTEXT.Process(target=study.run_jobs, args=([study.Job("job", (step,))], 1, tmp_path))
    process.start()
    wait_for(lambda: any(run_dir.glob("checkpoints/checkpoint-*")))
    process.kill()
    process.join()
    wait_for(lambda: "stopped by SIGTERM" in (tmp_path / "job.txt").read_text())
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"


def wait_for(condition, most_s=120.0):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < most_s
        time.sleep(0.05)


@pytest.mark.parametrize("head_first", [False, True])
def test_every_step_is_a_command_that_its_stage_takes(head_first, words, capsys):
    words = [word for word in words if head_first or word != "--head_first"]
    more = ("--other_models", "more=tiny", "--architectures", "waveform", f"--cnn_args=--width 0.125 {QUICK}")
    more += ("--splits", "clip", "--claim_layers", "0")
    more += ("--heal", "frozen", "healed", "taught")
    more += ("--taught_layers", "0", "--taught_cnns", "waveform", "--cnn_teachers", "0-1", "0")
    more += ("--taught_cnn_args=--teacher_views 2", "--narrow_layers", "0-1")
    assert study.main([*words, "--seeds", "1", "2", *more, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Two preparations; for each of two seeds and three folds: six models that are trained and scored, a sweep, its
    # subset without and with repair, and their scores; three models made from the repaired subset; two with teachers;
    # the whole model narrower, without and with repair; a model on other splits, trained and scored on each fold; then
    # pooling.
    # With --head_first two more: the heads of one block, and of the other encoder; and that of the other split.
    n_models, n_of_split = 15 + 2 * head_first, 1 + head_first
    assert len(lines) == 2 + 2 * 3 * (13 * 2 + 5 + 4 * head_first) + 3 * 2 * n_of_split + 2 * n_models + n_of_split
    parsed = []
    for line in lines:
        python, script, *arguments = study.shlex.split(line)
        assert python == "python"
        flags = {word for word in arguments if word.startswith("--")}
        if script in study.SET_HERE:
            assert flags - OF_USER <= study.SET_HERE[script], "a flag that --data_args or another one could change"
        parsed.append((script, load_stage(script.removesuffix(".py")).build_parser().parse_args(arguments)))
    outputs = [str(args.output_dir) for _, args in parsed]
    assert len(set(outputs)) == len(outputs)
    first_pool = next(number for number, (_, args) in enumerate(parsed) if getattr(args, "pool", None))
    of_question = " ".join(outputs[:first_pool])
    assert "after-1.repaired/fold-3.seed-1" in of_question and "cnn-waveform/fold-3.seed-1" in of_question
    assert not any(part in of_question for part in ("blocks-none", "by-clip", "seed-2", "/more"))
    for number, (script, args) in enumerate(parsed):
        pools = [] if script != study.VALIDATE else args.pool or []
        assert {str(folder) for folder in pools} <= set(outputs[:number])
        for name in () if pools else ("data_dir", "model_dir"):
            assert str(getattr(args, name, None)) in {"None", *outputs[:number]}, "made by an earlier step"
        if script == study.PRUNE and ".ffn-50" in outputs[number]:
            assert args.ffn_size == 0.5 and ("repaired" in outputs[number]) == (args.repair == "linear")
        if script == study.TRAIN:
            assert args.learning_rate == 1e-3 and args.num_train_epochs == 1
        if script in (study.TRAIN, study.TRAIN_CNN):
            teachers = [str(folder) for folder in args.teacher_dir or ()]
            assert set(teachers) <= set(outputs[:number])
            assert bool(teachers) == (".taught" in outputs[number])
            if teachers and script == study.TRAIN_CNN:
                assert args.teacher_views == 2 and len(teachers) == 2
    base = ("--base_model", "tiny=tiny")
    assert study.main([*words, *base, "--heal", "frozen", "taught", "--heal_layers", "2", "--dry_run"]) == 0
    made = [Path(line.split(" --output_dir ")[1]).parts for line in capsys.readouterr().out.splitlines()]
    healed = {model for *_, model, _ in made if ".repaired." in model}
    assert healed == {*(f"tiny.after-{n}.repaired.frozen" for n in (1, 2, 3)), "tiny.after-2.repaired.taught"}


def test_a_step_that_fails_is_told_and_nothing_starts_after_it(tmp_path, caplog):
    broken = (study.PRUNE, "--model_dir", str(tmp_path / "nowhere"), "--keep_layers", "0", "--output_dir", "x")
    jobs = [study.Job("first", (broken, broken)), study.Job("second", (broken,))]
    told = r"first: 07_manual_pruning.py ended with exit code 3; the last line of its output: .*no such folder"
    with pytest.raises(study.InputError, match=told):
        study.run_jobs(jobs, 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first.txt"]
    assert (tmp_path / "first.txt").read_text().count("no such folder") == 1


def test_a_step_that_is_killed_is_told_with_the_usual_reason(tmp_path, monkeypatch):
    real, killed = study.start_stage, functools.partial(signal.raise_signal, signal.SIGKILL)
    monkeypatch.setattr(study, "start_stage", lambda *step, prepare: real(*step, prepare=killed))
    told = r"job: 02_finetuning.py was ended by SIGKILL, most often because .* memory: give fewer --jobs .* nothing \("
    with pytest.raises(study.InputError, match=told):
        study.run_jobs([study.Job("job", ((study.TRAIN,),))], 1, tmp_path)


@pytest.fixture
def results_dir(tmp_path, monkeypatch):
    """Return a folder with one result of stage 03; the working folder is beside it."""
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path / "study" / "validation_results", RESULT, [0, 1], [0, 0], ["a", "b"])
    return tmp_path / "study" / "validation_results"


@pytest.mark.parametrize("script", [study.TRAIN, study.TRAIN_CNN, study.PRUNE])
def test_a_model_that_lacks_one_result_and_its_run_is_made_again_with_a_warning(results_dir, caplog, script):
    def job(*models):
        results = [(study.VALIDATE, "--output_dir", str(results_dir / "birds" / model / PART)) for model in models]
        return study.Job("birds/small", ((script, "--output_dir", str(results_dir / "gone")), *results))

    known, half, unknown = job("small"), job("small", "small.healed"), job("small.healed")
    assert [each.is_known for each in (known, half, unknown)] == [True, False, False]
    unknown.warn_of_results()
    assert not caplog.messages
    half.warn_of_results()
    assert f"the result {results_dir / 'birds' / 'small.healed' / PART} is missing" in caplog.messages[-1]
    assert caplog.messages[-1].endswith(f"delete the old ones (1 result, the first is {results_dir / RESULT})")


def test_what_reads_a_model_that_is_gone_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO")
    there, gone = str(tmp_path), str(tmp_path / "whole")
    jobs = [study.Job("taught", (), (there, gone)), study.Job("another", (), (there,))]
    assert study.jobs_to_do(jobs, "the rest") == jobs[1:]
    assert caplog.messages == ["the rest: 1 job", f"taught is left out: {gone} is missing, which it reads"]


def test_help_shows_its_defaults():
    text = " ".join(study.build_parser().format_help().split())
    assert "seeds of the trainings on each fold (default: 1)" in text
    assert "encoders to fine-tune whole (default: none)" in text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--claim_layers", "1"), "--claim_layers 1: no such model in the study, which has none, 0, 0-1"),
        (("--seeds", "1", "2", "1"), "seed 1 is twice among --seeds and --seeds_of_first_fold: give each seed once"),
        (("--seeds", "1", "2", "--seeds_of_first_fold", "2"), "seed 2 is twice among --seeds and --seeds_of_first"),
        (("--base_model", "tiny"), "'tiny' is not a short name and a model"),
        (("--other_models", "a/b=tiny"), "'a/b=tiny' is not a short name and a model"),
        (("--name", "birds.by-clip"), "no result can be called 'birds.by-clip/small/fold-1.seed-1'"),
        (("--splits", "recordist"), "invalid choice: 'recordist'"),
        (("--splits", "clip", "clip"), "birds.by-clip/folds: give each model, CNN, split, share and way to"),
        (("--heal", "frozen", "frozen"), "birds/small.after-1.repaired.frozen/fold-1.seed-1: give each model, CNN"),
        (("--heal_layers", "1"), "--heal_layers 1 is for --heal healed or taught: give one of them, or leave it out"),
        (("--heal", "frozen", "--heal_layers", "1"), "--heal_layers 1 is for --heal healed or taught"),
        (("--heal", "healed", "--heal_layers", "1", "2"), "--heal_layers 1 2: the whole model has 2 blocks, and a"),
        (("--heal", "healed", "--heal_layers", "0"), "an integer of at least 1"),
        (("--taught_layers", "1"), "--taught_layers 1: no such model in the study, which has none, 0, 0-1"),
        (("--taught_layers", "0-1"), "--taught_layers 0-1: this is the whole model, which is the teacher"),
        (("--taught_cnns", "waveform", "--cnn_teachers", "0-2"), "--cnn_teachers 0-2: no such model in the study"),
        (("--cnn_teachers", "0"), "--cnn_teachers and --taught_cnn_args are for --taught_cnns: name a CNN, or leave"),
        (("--claim_layers", "0"), "--claim_layers is for --splits: name a split, or leave it out"),
        (("--cnn_args=--width 0.125",), "--cnn_args is for CNNs: name one in --architectures or --taught_cnns, or"),
        (("--narrow_layers", "1"), "--narrow_layers 1: no such model in the study, which has none, 0, 0-1"),
        (("--narrow_layers", "none"), "--narrow_layers none: this model has no block to make narrower"),
        (("--narrow_layers", "0", "--ffn_sizes", "1"), "--ffn_sizes 1 keeps all units: give a share below 1, such as"),
        (("--narrow_layers", "0", "--ffn_sizes", "0.5", "0.50"), "small.blocks-0.ffn-50/fold-1.seed-1: give each"),
        (("--narrow_layers", "0", "--ffn_sizes", "0.125"), "--ffn_sizes 0.125: the names of the models have whole"),
        (("--data_args=--annotations=x",), "--data_args --annotations gives clips several labels, and the tables"),
        (
            ("--data_args=--split_by clip",),
            "--data_args --split_by: the study sets --split_by of 01_data_processing.py",
        ),
        (("--train_args=--fold=2",), "--train_args --fold: the study sets --fold of 02_finetuning.py itself; leave it"),
        (
            ("--head_args=--problem_type multi_label",),
            "--head_args --problem_type: the study sets --problem_type of 02",
        ),
        (
            ("--train_args=--num_train_epoch 3",),
            "did you mean --num_train_epochs?; see 02_finetuning.py --help; it got ",
        ),
        (
            ("--data_args=--clip_seconds x",),
            "01_data_processing.py: argument --clip_seconds: 'x' is not a number above",
        ),
        (("--folds", "1"), "01_data_processing.py: argument --folds: '1' is not a number of folds; expected 3 to"),
        (("--dry_run", "--architectures", "waveform", "--cnn_args=--widht 1"), "did you mean --width?; see 06_cnn.py"),
        (("--head_args=--help",), "--help is for the stage itself; it got --head_args"),
        (("--ffn_sizes", "0.5"), "--ffn_sizes is for --narrow_layers: name a model, such as 0-3, or leave it out"),
        (("--taught_cnn_args=--teacher_views 2",), "are for --taught_cnns: name a CNN, or leave them out"),
    ],
)
def test_wrong_arguments(words, more, text, tmp_path, caplog, capsys):
    assert study.main([*words, *more, "--output_dir", str(tmp_path / "study")]) == 2
    assert text in caplog.text + capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_base_model_that_is_missing(words, tmp_path, caplog):
    assert study.main([*words, "--base_model", f"gone={tmp_path / 'gone'}", "--output_dir", str(tmp_path / "out")]) == 3
    assert "gone cannot be loaded: no such folder" in caplog.text and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- publishing


def change_record(folder, **values):
    record = json.loads((folder / "run.json").read_text()) | values
    (folder / "run.json").write_text(json.dumps(record))


def publish_all(results_dir, *more):
    return publish.main([str(word) for word in ("--name", "birds", "--results_dir", results_dir, *more)])


def test_results_are_published_beside_those_of_their_kind(results_dir):
    assert publish_all(results_dir) == 0 and publish_all(results_dir) == 0
    assert Path("validation_results", "published", RESULT, "metrics.csv").is_file()


@pytest.mark.parametrize("folder", ["gone", "study", "study/validation_results/birds"])
def test_a_folder_without_results_of_the_study(folder, results_dir, caplog):
    assert publish_all(folder) == 3
    assert f"{folder} has no complete result of birds; expected folders such as birds/<model>/fold-1" in caplog.text
    assert [path.name for path in Path().iterdir()] == ["study"]


def test_an_unfinished_result_is_left_out(results_dir, caplog):
    write_result(results_dir, "birds/other/fold-1.seed-1", [0, 1], [0, 0], ["a", "b"])
    change_record(results_dir / RESULT, status="interrupted")
    assert publish_all(results_dir) == 0
    assert f"left out: {results_dir / RESULT} is not complete" in caplog.text
    assert [path.name for path in Path("validation_results/published/birds").iterdir()] == ["other"]
    change_record(results_dir / "birds/other/fold-1.seed-1", status="running")
    assert publish_all(results_dir, "--published_dir", "elsewhere") == 3
    assert "has no complete result of birds among 2; expected" in caplog.text and not Path("elsewhere").exists()


def test_fitted_thresholds_are_published(results_dir, caplog):
    fitted = results_dir / "birds" / "small.thresholds" / PART
    with runs.open_run(publish.SCORES, argparse.Namespace(output_dir=fitted, overwrite=False, seed=1), {}):
        (fitted / "thresholds.csv").write_text("label,threshold\n")
    assert publish_all(results_dir) == 0
    published = Path("validation_results", "published", "birds", "small.thresholds", PART)
    assert sorted(path.name for path in published.iterdir()) == ["run.json", "thresholds.csv"]
    (fitted / "thresholds.csv").unlink()
    assert publish_all(results_dir) == 3 and f"{fitted / 'thresholds.csv'} is missing" in caplog.text


def test_nothing_is_replaced_by_what_does_not_belong_there(results_dir, caplog):
    result, published = results_dir / RESULT, Path("validation_results", "published")
    assert publish_all(results_dir, "--published_dir", results_dir.parent / ".." / "study" / results_dir.name) == 2
    assert "is --results_dir: give another folder" in caplog.text and (result / "metrics.csv").is_file()
    assert publish_all(results_dir) == 0
    change_record(result, stage="04_analysis")
    assert publish_all(results_dir) == 3
    assert f"{published / RESULT} is a result of 03_model_validation and would be replaced by one of 04" in caplog.text
    change_record(result, stage="02_finetuning")
    assert publish_all(results_dir) == 3
    assert f"{result} was made by 02_finetuning; expected results of 03_model_validation, 04_analysis" in caplog.text
    change_record(result, stage="03_model_validation")
    (result / "metrics.csv").write_text("damaged")
    assert publish_all(results_dir) == 3
    assert (published / RESULT / "metrics.csv").is_file() and "metrics.csv" in caplog.messages[-1]
