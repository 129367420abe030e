"""What a stage answers before it works: without PyTorch and its kin, in one line, and at once."""

import os
import re
import signal
import subprocess
import sys

import pytest

from experiments.synthetic_birds import main as synthesise
from tests.stages import ROOT, run_apart, without_figures

STAGES = sorted(path.name for path in ROOT.glob("0*.py"))
# By a module within: a package that is put off has a line of its own, too.
HEAVY = re.compile(r"\| +(torch|transformers|sklearn|scipy|matplotlib|pandas|datasets)\.\w+$", re.MULTILINE)


def start(script, *words, cwd=ROOT, **environment):
    """Run a stage in a new process; return its exit code, what it printed, and the heavy packages that it loaded."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / script, *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    told = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("import time:"))
    return done.returncode, done.stdout, told, HEAVY.findall(done.stderr)


@pytest.mark.parametrize("script", STAGES)
def test_help_and_usage_errors_load_nothing_heavy(script):
    code, shown, told, heavy = start(script, "--help")
    assert (code, told, heavy) == (0, "", []) and "--output_dir" in shown
    code, shown, told, heavy = start(script, "--output_dri", "x")
    assert (code, shown, heavy) == (2, "", [])
    assert told.startswith(f"{script}: ") and told.count("\n") == 1


def test_the_emulated_batch_systems_load_nothing_heavy():
    """Each job that a test submits starts one: seconds for each, and dozens of jobs."""
    command = [sys.executable, "-X", "importtime", "-c", "import tests.lsf, tests.slurm"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| tests.lsf" in " ".join(done.stderr.split()) and HEAVY.findall(done.stderr) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--raw_dir", "x", "--num_worker", "2"],
            "unrecognized arguments: --num_worker 2; did you mean --num_workers?",
        ),
        (["--raw_dir", "x", "--split_by", "recordists"], "did you mean recordist?"),
        (["--raw_dir", "x", "--split_by", "weather"], "invalid choice: 'weather'"),
        (["--raw_dir", "x", "--val_fraction", "2"], "argument --val_fraction: '2' is not a number of at least 0"),
        ([], "the following arguments are required: --raw_dir"),
    ],
)
def test_a_usage_error_says_what_was_meant(words, told):
    code, _, error, _ = start("01_data_processing.py", *words)
    assert code == 2 and told in error and error.endswith("; see 01_data_processing.py --help\n")
    assert ("did you mean" in error) == ("did you mean" in told)


@pytest.fixture
def sigint_in_imports(tmp_path):
    """Return a PYTHONPATH with which every Python gets a SIGINT when it first imports tqdm."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tqdm': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    return str(tmp_path)


def test_ctrl_c_while_a_stage_is_imported_ends_it_without_a_traceback(sigint_in_imports):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the tests run in the background
    try:
        ended = [start(script, "--help", PYTHONPATH=sigint_in_imports) for script in STAGES]
    finally:
        signal.signal(signal.SIGINT, before)
    for code, shown, told, _ in ended:
        assert (code, shown, told) == (75, "", "stopped by SIGINT: run the same command again to continue\n")


def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it(sigint_in_imports):
    """As with nohup, or in the background of a script."""
    done = subprocess.run(
        [sys.executable, ROOT / STAGES[0], "--help"],
        env=os.environ | {"PYTHONPATH": sigint_in_imports},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_complete_result_is_found_without_loading_anything_heavy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert synthesise(["--output_dir", "raw", "--n_species", "3", "--recordings_per_recordist", "2"]) == 0
    common = ["--data_dir", "data", "--max_clips_per_class", "2"]
    commands = [
        ["01_data_processing.py", "--raw_dir", "raw", "--metadata", "raw/metadata.csv", "--min_recordings", "5"],
        ["02_finetuning.py", "--base_model", "tiny", "--num_train_epochs", "1", "--output_dir", "runs/t", *common],
        ["03_model_validation.py", "--model_dir", "runs/t", *common],
        ["04_analysis.py", "--model_dir", "runs/t", "--metrics", "block_influence", *common],
        ["05_pruning.py", "--model_dir", "runs/t", "--strategies", "backward", *common],
        ["06_cnn.py", "--architecture", "melspectrogram", "--width", "0.1", "--num_train_epochs", "1"],
        ["07_manual_pruning.py", "--model_dir", "runs/t", "--keep_layers", "0-1", "--output_dir", "runs/t2"],
        ["08_detection.py", "--model_dir", "runs/t", "--raw_dir", "raw", "--threshold", "0.5", "--output_dir", "night"],
    ]
    commands[0] += ["--output_dir", "data", "--clip_seconds", "1", "--num_workers", "1"]
    commands[5] += ["--output_dir", "runs/c", "--teacher_dir", "runs/t", *common]
    commands[7] += ["--num_workers", "1"]
    for script, *words in commands:
        assert run_apart(script, words, tmp_path / "printed.txt", without_figures) == 0, (
            tmp_path / "printed.txt"
        ).read_text()
    for script, *words in commands:
        code, _, told, heavy = start(script, *words, cwd=tmp_path)
        assert code == 0 and "nothing to do" in told, (script, told)
        assert set(heavy) <= ({"pandas"} if script.startswith("01") else set()), script  # which reads the table
