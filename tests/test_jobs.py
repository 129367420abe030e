"""The jobs: checked by shellcheck, submitted to an emulated LSF and Slurm, and run to the same results as by hand."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from jobs import launch
from tests import batch, lsf, slurm
from tests.data import write_processed
from tests.lsf import Cluster
from tests.stages import ROOT, launch_as_job, load_stage
from utils.core.files import sha256_of_file
from utils.data import synthetic

STAGES = ("01", "02", "03", "04", "05", "06", "07", "08")
STUDY = ("01", "02", "03", "04", "05", "07", "03-pruned")
# What costs differs from run to run.
COSTS = ("latency", "real_time_factor", "throughput", "peak_memory", "seconds", "load", "cpu_busy")


def checkout(folder: Path) -> Path:
    """Return a folder like the repository, with logs of its own."""
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("site.sh", "__pycache__"))
    for path in [ROOT / "utils", *ROOT.glob("0*.py")]:
        (folder / path.name).symlink_to(path)
    return folder


def submit(cluster: Cluster, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LSB_", "SLURM_"))}
    environment |= {"PATH": cluster.path, "PYTHON": sys.executable, "NAME": "study"} | variables
    return subprocess.run(
        [folder / "jobs" / "submit.sh", *words], capture_output=True, text=True, env=environment, cwd=folder.parent
    )


# --------------------------------------------------------------------------------------------- the demo


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("birds") / "raw"
    synthetic.write_recordings(folder, 3, 6, 1, (2.0, 3.0), seed=1, overwrite=False)
    return folder


ARGUMENTS = {
    "01": "--min_recordings 5 --clip_seconds 1 --num_workers 1",
    "02": "--num_train_epochs 6 --learning_rate 2e-3 --augment roll gain --device cpu",
    "03": "--device cpu",
    "04": "--metrics block_influence cka --device cpu",
    "05": "--strategies forward --device cpu",
    "07": "--n_layers 2",
}
VARIABLES = {"01": "DATA", "02": "TRAIN", "03": "VALIDATE", "04": "ANALYSE", "05": "PRUNE", "07": "KEEP"}
INPUTS = {
    "01": "--raw_dir raw --metadata raw/metadata.csv --output_dir processed_data/study",
    "02": "--data_dir processed_data/study --base_model tiny --output_dir runs/study/tiny/seed-42",
    **{
        stage: f"--data_dir processed_data/study --model_dir runs/study/tiny/seed-42 --output_dir {output_dir}"
        for stage, output_dir in {
            "03": "validation_results/study/tiny/seed-42",
            "04": "analysis_results/study/tiny/seed-42",
            "05": "validation_results/study/tiny.sweep/seed-42",
        }.items()
    },
    "07": "--model_dir runs/study/tiny/seed-42 --from validation_results/study/tiny.sweep/seed-42/best.json "
    "--output_dir runs/study/tiny.pruned/seed-42",
    "03-pruned": "--data_dir processed_data/study --model_dir runs/study/tiny.pruned/seed-42 "
    "--output_dir validation_results/study/tiny.pruned/seed-42",
}
SCRIPTS = {path.name[:2]: path.stem for path in ROOT.glob("0*.py")}


@pytest.fixture(scope="module")
def by_hand(recordings, tmp_path_factory) -> Path:
    """The study as one would run it stage by stage."""
    folder = tmp_path_factory.mktemp("by_hand")
    (folder / "raw").symlink_to(recordings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for step in STUDY:
            stage = load_stage(SCRIPTS[step[:2]])
            assert stage.main([*INPUTS[step].split(), *ARGUMENTS[step[:2]].split()]) == 0
    return folder


def test_the_demo_through_lsf_ends_with_the_same_results(recordings, by_hand, warm_python, tmp_path):
    """One job a stage; 02 is told to stop at its wall-time, and goes back into the queue once."""
    folder, cluster = checkout(tmp_path / "study"), Cluster(tmp_path / "lsf")
    (folder / "raw").symlink_to(recordings)
    cluster.wall_time_after["study-02"] = folder / "runs/study/tiny/seed-42/metrics.csv"
    answer = submit(
        cluster,
        folder,
        **{f"{VARIABLES[stage]}_ARGS": words for stage, words in ARGUMENTS.items()},
        **{"RAW_DIR": "raw", "METADATA": "raw/metadata.csv", "BASE_MODEL": "tiny", "WALLTIME_02": "11"},
        **{"PYTHON": str(warm_python), "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert answer.returncode == 0, answer.stderr
    cluster.run()
    assert {job.name: job.exit_codes for job in cluster.jobs.values()} == {
        **{f"study-{step}": [0] for step in STUDY},
        "study-02": [75, 0],
    }
    assert cluster.run_order == ["study-01", "study-02", *(f"study-{step}" for step in STUDY[1:])]
    assert cluster.mail == []
    assert len((folder / "logs" / "02.102.0.starts").read_text().splitlines()) == 2

    record = json.loads((folder / "runs/study/tiny/seed-42/run.json").read_text())
    assert (record["status"], record["attempts"], record["lsf"]["job_id"]) == ("complete", 2, "102")
    assert record["lsf"]["queue"] == "gpua100"
    n_compared = 0
    for path in sorted(by_hand.rglob("run.json")):
        for output in json.loads(path.read_text())["outputs"]:
            expected = path.parent / output["path"]
            found = folder / expected.relative_to(by_hand)
            if expected.stem == "pareto":  # draws latency
                assert found.is_file()
            elif expected.suffix == ".csv":
                tables = [pd.read_csv(table) for table in (found, expected)]
                costs = [name for name in tables[0].columns if name.startswith(COSTS)]
                pd.testing.assert_frame_equal(*(table.drop(columns=costs) for table in tables))
            else:
                assert sha256_of_file(found) == output["sha256"], found
            n_compared += 1
    assert n_compared > 40


# ------------------------------------------------------------------------------- jobs without the stages


FAKE_PYTHON = """#!/bin/bash
# Notes its words, and ends with the code that EXIT_<stage> has for this call of the stage.
printf '%q ' "$@" >>"$CALLS"; echo >>"$CALLS"
for word; do [[ $word == 0*.py ]] && break; done
[[ ${*: -1} == --check ]] && exit "${EXIT_CHECK:-0}"
codes=EXIT_${word%%_*}; codes=(${!codes}); n=$(grep -v -e --check "$CALLS" | grep -c "$word")
exit "${codes[n - 1]:-0}"
"""


class Site:
    """A checkout and a cluster whose Python only notes how it is called."""

    def __init__(self, folder: Path, cluster=None):
        self.folder, self.cluster = checkout(folder / "checkout"), cluster or Cluster(folder / "lsf")
        (self.folder / "my birds").mkdir()
        self.calls_file, python = folder / "calls", folder / "python"
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        self.variables = {"PYTHON": str(python), "CALLS": str(self.calls_file), "RAW_DIR": "my birds"}

    def submit(self, *words: str, **variables: str) -> subprocess.CompletedProcess:
        return submit(self.cluster, self.folder, *words, **self.variables | variables)

    def run_job(self, stage: str, *words: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {"PATH": os.environ["PATH"], "NAME": "study"} | self.variables | variables
        command = [self.folder / "jobs" / f"{stage}.sh", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.folder)

    @property
    def calls(self) -> list[list[str]]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [call for call in map(shlex.split, lines) if call[-1] != "--check"]

    def states(self) -> dict[str, str]:
        return {name.removeprefix("study-"): job.state for name, job in self.cluster.jobs.items()}


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def slurm_site(tmp_path) -> Site:
    return Site(tmp_path, slurm.Cluster(tmp_path / "slurm"))


def test_jobs_are_good_bash():
    scripts = [*sorted((ROOT / "jobs").glob("*.sh")), ROOT / ".ci" / "run"]
    assert {script.name for script in scripts} > {f"{stage}.sh" for stage in STAGES} | {"submit.sh"}
    for script in scripts:
        assert subprocess.run(["bash", "-n", script]).returncode == 0, script
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, "-x", *scripts], capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_head_of_a_job(stage):
    script = (ROOT / "jobs" / f"{stage}.sh").read_text()
    options = lsf.options_of_script(script)
    lsf.check(options, set())
    needs_gpu = stage not in {"01", "07", "08"}
    assert (options.get("-q"), options.get("-gpu")) == (
        ("gpua100", "num=1:mode=exclusive_process") if needs_gpu else (None, None)
    )
    assert options["-R"].startswith("span[hosts=1] rusage[mem=") and options["-r"] and options["-Q"] == "75"
    assert (options["-o"], options["-e"]) == (f"logs/{stage}.%J.out", f"logs/{stage}.%J.err")
    assert (options["-wa"], options["-wt"]) == ("USR2", "10") and lsf.minutes(options["-W"]) > 10
    assert not {"-u", "-N", "-B"} & options.keys()
    assert not re.search(r"/home|/scratch|\w@[a-z]", script)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-Z"], "-Z: Illegal option"),
        (["-q", "nowhere"], "nowhere: No such queue"),
        (["-W", "soon"], "Bad argument for option -W"),
        (["-gpu", "4"], "Bad argument for option -gpu"),
        (["-w", "done(7)", "-ti"], "Invalid dependency condition"),
        (["-w", "ended(7)"], "Bad dependency condition syntax"),
        (["-ti"], "-ti can only be used with -w"),
        (["-wa", "USR2"], "-wa and -wt must be given together"),
        (["-n"], "Option -n requires an argument"),
    ],
)
def test_the_emulated_bsub_refuses_what_lsf_refuses(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("#!/bin/bash\n#BSUB -J x\ntrue\n"))
    with pytest.raises(lsf.Refused, match=re.escape(message)):
        lsf.bsub(tmp_path, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("python", ["real", "fake"])
def test_a_failing_job_leaves_its_dependents_unrun(python, site, warm_python):
    """01 of an empty folder of recordings, and a 02 that ends with 3."""
    real = {"PYTHON": str(warm_python), "BASE_MODEL": "tiny"}
    answer = site.submit(**real if python == "real" else {"EXIT_02": "3"})
    assert answer.returncode == 0, answer.stderr
    site.cluster.run()
    failed = "01" if python == "real" else "02"
    done = {step: "DONE" for step in STUDY if step < failed}
    assert site.states() == {step: "ORPHAN" for step in STUDY} | done | {failed: "EXIT"}
    assert site.cluster.jobs[f"study-{failed}"].exit_codes == [3]
    assert len(site.cluster.run_order) == len(done) + 1
    if python == "real":
        assert "my birds" in (site.folder / "logs" / "01.101.err").read_text()


def test_a_job_that_is_queued_again_and_again_is_stopped(site):
    always = " ".join(["75"] * 30)
    assert site.submit("01", "02", "03", "05", "07", EXIT_02="75 75 0", EXIT_03=always, EXIT_05=always).returncode == 0
    site.cluster.run()
    codes = {name.removeprefix("study-"): job.exit_codes for name, job in site.cluster.jobs.items()}
    assert codes == {"01": [0], "02": [75, 75, 0], "03": [75] * 3 + [3], "05": [75] * 20 + [3], "07": []}
    message = (site.folder / "logs" / "03.103.err").read_text()
    assert (
        "job 103 was started 4 times (logs/03.103.0.starts), more than MAX_ATTEMPTS=3" in message
        and "WALLTIME" in message
    )
    assert site.submit("01", "03", "02", EXIT_02=always, MAX_ATTEMPTS="2").returncode == 0
    site.cluster.run()
    assert site.cluster.jobs["study-02"].exit_codes == [75, 75, 3]
    assert site.states()["03"] == "ORPHAN"


def test_what_is_queued_again_does_not_empty_its_folder_again(site):
    site.submit("01", "02", TRAIN_ARGS="--overwrite --seed 3", DATA_ARGS="--overwrite", EXIT_02="75 0")
    site.cluster.run()
    assert site.states() == {"01": "DONE", "02": "DONE"}
    (first,), (second, third) = ([call for call in site.calls if call[0].startswith(stage)] for stage in ("01", "02"))
    assert "--overwrite" in first and "--overwrite" in second
    assert third == [word for word in second if word != "--overwrite"]
    assert "continuing without --overwrite" in (site.folder / "logs" / "02.102.err").read_text()
    interactive = {"LSB_JOBID": "102", "LSB_INTERACTIVE": "Y", "TRAIN_ARGS": "--overwrite"}
    for _ in range(2):  # by hand, in a shell that LSF gave
        assert site.run_job("02", **interactive).returncode == 0
        assert "--overwrite" in site.calls[-1]
        assert "--device" not in site.calls[-1], "such a shell may well have no GPU"


def test_what_is_asked_of_lsf_can_be_changed(site):
    answer = site.submit(
        *("--email", "ada@example.org", *STUDY, "06", "03-cnn"),
        **{"QUEUE": "gpuv100", "CPU_QUEUE": "normal", "QUEUE_05": "gpua100", "WALLTIME_02": "48:00", "CORES_03": "7"},
        **{"NUM_GPUS": "4", "NUM_GPUS_06": "1", "NUM_GPUS_04": "2", "MEMORY": "16GB", "BSUB_ARGS": "-P birds -sp 7"},
    )
    assert answer.returncode == 0, answer.stderr
    site.cluster.run()
    options = {name.removeprefix("study-"): job.options for name, job in site.cluster.jobs.items()}
    assert {step: options[step]["-q"] for step in options} == {
        **dict.fromkeys(options, "gpuv100"),
        **{"01": "normal", "07": "normal", "05": "gpua100"},
    }
    assert options["02"]["-W"] == "48:00" and options["06"]["-W"] == "24:00"
    assert options["02"]["-gpu"] == "num=4:mode=exclusive_process" and options["02"]["-n"] == "16"
    assert all("num=1" in options[step]["-gpu"] for step in ("03", "05", "06", "03-cnn"))
    assert options["04"]["-gpu"] == "num=2:mode=exclusive_process"
    assert options["03"]["-n"] == "7" and options["04"]["-n"] == "8" and options["05"]["-n"] == "4"
    assert {step["-R"] for step in options.values()} == {"span[hosts=1] rusage[mem=16GB]"}
    assert {(step["-P"], step["-sp"], step["-u"]) for step in options.values()} == {("birds", "7", "ada@example.org")}
    assert sorted(site.cluster.mail) == sorted(site.cluster.jobs)
    call_of = dict(zip(site.cluster.run_order, site.calls, strict=True))
    assert call_of["study-02"][:5] == ["-m", "jobs.launch", "--nproc_per_node", "4", "02_finetuning.py"]
    assert call_of["study-04"][:5] == ["-m", "jobs.launch", "--nproc_per_node", "2", "04_analysis.py"]
    assert call_of["study-03"][0] == "03_model_validation.py" and call_of["study-06"][0] == "06_cnn.py"
    assert call_of["study-03-cnn"][1:5] == ["--device", "cuda", "--model_dir", "runs/study/cnn/seed-42"]
    assert call_of["study-03-pruned"][-2:] == ["--output_dir", "validation_results/study/wav2vec2-base.pruned/seed-42"]


def test_the_array_of_01(site):
    variables = {"SHARDS": "3", "METADATA": "my birds/metadata.csv", "DATA_ARGS": "--min_recordings 5"}
    (site.folder / "my birds" / "metadata.csv").touch()
    printed = site.submit("--dry_run", "01", "02", **variables).stdout.splitlines()
    assert printed == [
        "bsub -J 'study-01-shards[1-3]' -o logs/01.%J.%I.out -e logs/01.%J.%I.err < jobs/01.sh",
        "env MERGE_SHARDS=3 bsub -J study-01 -w 'done(<id of 01-shards>)' -ti < jobs/01.sh",
        "bsub -J study-02 -w 'done(<id of 01>)' -ti < jobs/02.sh",
    ]
    assert site.submit("01", "02", **variables).returncode == 0
    site.cluster.run()
    assert site.cluster.run_order == ["study-01-shards"] * 3 + ["study-01", "study-02"]
    common = ["01_data_processing.py", "--raw_dir", "my birds", "--split_by", "recordist", "--seed", "42"]
    common += ["--output_dir", "processed_data/study", "--metadata", "my birds/metadata.csv", "--num_workers", "8"]
    own = [["--shard", "1/3"], ["--shard", "2/3"], ["--shard", "3/3"], ["--merge_shards", "3"]]
    assert site.calls[:4] == [[*common, *words, "--min_recordings", "5"] for words in own]
    assert {path.name for path in (site.folder / "logs").glob("01.*.err")} == {
        *("01.101.1.err", "01.101.2.err", "01.101.3.err", "01.102.err")
    }

    site.calls_file.unlink()
    assert site.submit("01", "02", **variables, EXIT_01="0 3 0").returncode == 0
    site.cluster.run()
    assert site.states() == {"01-shards": "EXIT", "01": "ORPHAN", "02": "ORPHAN"}, "a shard failed: no merge"


def test_the_array_of_08(site):
    variables = {"SHARDS": "2", "FIELD_DIR": "my birds", "DETECT_ARGS": "--threshold 0.9"}
    printed = site.submit("--dry_run", "01", "02", "03", "08", **variables).stdout.splitlines()
    assert printed[-2:] == [
        "bsub -J 'study-08-shards[1-2]' -o logs/08.%J.%I.out -e logs/08.%J.%I.err "
        "-w 'done(<id of 02>) && done(<id of 03>)' -ti < jobs/08.sh",
        "env MERGE_SHARDS=2 bsub -J study-08 -w 'done(<id of 08-shards>)' -ti < jobs/08.sh",
    ]
    run_dir = site.folder / "runs" / "study" / "wav2vec2-base" / "seed-42"
    run_dir.mkdir(parents=True)
    assert site.submit("08", **variables).returncode == 0
    site.cluster.run()
    common = ["08_detection.py", "--model_dir", "runs/study/wav2vec2-base/seed-42", "--raw_dir", "my birds"]
    common += ["--output_dir", "detections/study/wav2vec2-base/seed-42", "--num_workers", "8"]
    own = [["--shard", "1/2"], ["--shard", "2/2"], ["--merge_shards", "2"]]
    assert site.calls == [[*common, *words, "--threshold", "0.9"] for words in own]


def test_a_dry_run_prints_and_leaves_no_trace(site):
    before = sorted(site.folder.rglob("*"))
    answer = site.submit("--dry_run")
    assert answer.returncode == 0
    commands = [shlex.split(line.partition(" < ")[0]) for line in answer.stdout.splitlines()]
    assert len(commands) == len(STUDY)
    for words in commands:
        options, rest = lsf.read_options(words[words.index("bsub") + 1 :])
        assert not rest and ("-w" in options) == ("-ti" in options) == (options["-J"] != "study-01")
    assert sorted(site.folder.rglob("*")) == before and not site.calls
    assert not list(site.cluster.folder.glob("*.json"))


def test_answer_of_submit(site):
    answer = site.submit().stdout
    assert "Job <102> is submitted to queue <gpua100>. It waits for done(101)." in answer
    ids = " ".join(str(number) for number in range(101, 108))
    assert f"bjobs -a {ids}" in answer and f"bkill {ids}" in answer
    assert (site.folder / "logs").is_dir()


@pytest.mark.parametrize(
    ("words", "variables", "code", "message"),
    [
        (["09"], {}, 2, "09: expected --dry_run, --email, --after or a step of: 01 02 03"),
        (["--email"], {}, 2, "expected an address"),
        (["--after"], {}, 2, "--after : expected the id of a job"),
        (["--after", "study-01", "02"], {}, 2, "--after study-01: expected the id of a job"),
        ([], {"RAW_DIR": ""}, 2, "step 01 needs RAW_DIR"),
        ([], {"RAW_DIR": "none"}, 3, "RAW_DIR=none: no such folder"),
        ([], {"METADATA": "none.csv"}, 3, "METADATA=none.csv: no such file"),
        (["02"], {}, 3, "step 02 reads processed_data/study, which does not exist"),
        (["01", "03"], {}, 3, "step 03 reads runs/study/wav2vec2-base/seed-42, which does not exist"),
        (["01", "02", "07"], {}, 3, "step 07 reads validation_results/study/wav2vec2-base.sweep/seed-42/best.json"),
        ([], {"KEEP_ARGS": "--ladder"}, 2, "step 03-pruned scores one model"),
        ([], {"WALLTIME": "0:10"}, 2, "more than the 10 minutes before the end"),
        ([], {"WALLTIME_04": "a day"}, 2, "WALLTIME=a day for step 04: expected [hours:]minutes"),
        ([], {"NUM_GPUS_02": "0"}, 2, "NUM_GPUS_02=0: expected an integer of at least 1"),
        ([], {"NUM_GPUS": "two"}, 2, "NUM_GPUS=two: expected an integer of at least 1"),
        ([], {"SHARDS": "1-8"}, 2, "SHARDS=1-8: expected an integer of at least 1"),
        ([], {"MAX_ATTEMPTS": "-1"}, 2, "MAX_ATTEMPTS=-1: expected an integer of at least 1"),
        ([], {"FOLD": "two"}, 2, "FOLD=two: expected an integer of at least 1"),
        ([], {"FOLD": "6"}, 2, "FOLD=6: expected 1 to 5, or more FOLDS"),
        ([], {"FOLD": "2", "FOLDS": "many"}, 2, "FOLDS=many: expected an integer of at least 1"),
        (["01"], {"FOLDS": "0"}, 2, "FOLDS=0: expected an integer of at least 1"),
        (["02", "08"], {"DATA_DIR": "my birds"}, 2, "step 08 needs FIELD_DIR=<folder of recordings to listen to>"),
        (["02", "08"], {"DATA_DIR": "my birds", "FIELD_DIR": "gone"}, 3, "FIELD_DIR=gone: no such folder"),
        (["08"], {"FIELD_DIR": "my birds"}, 3, "step 08 reads runs/study/wav2vec2-base/seed-42, which does not exist"),
        ([], {"FOLDS": "4"}, 2, "step 02 needs FOLD=1 to 4, the fold to test"),
        (["02"], {"FOLD": "4"}, 3, "step 02 reads processed_data/study/folds, which does not exist"),
        ([], {"NAME": "a[1-9]"}, 2, "NAME=a[1-9]: expected letters"),
        ([], {"PYTHON": "none/python"}, 3, "there is no none/python: run make venv"),
        ([], {"PATH": "/usr/bin:/bin"}, 3, "there is no bsub here"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(words, variables, code, message, site):
    answer = site.submit(*words, **variables)
    assert (answer.returncode, answer.stdout) == (code, "")
    assert message in answer.stderr
    assert not list(site.cluster.folder.glob("*.json"))


def test_a_job_that_lsf_refuses(site):
    answer = site.submit(QUEUE_03="nowhere")
    assert answer.returncode == 3
    assert "nowhere: No such queue. Job not submitted." in answer.stderr
    assert "step 03 was not submitted" in answer.stderr and "bkill 101 102" in answer.stderr


def test_help_of_submit(site):
    answer = site.submit("--help", PYTHON="not/there/yet")
    assert answer.returncode == 0
    for name in ("RAW_DIR", "QUEUE", "WALLTIME", "NUM_GPUS", "MEMORY", "SHARDS", "MAX_ATTEMPTS", "--dry_run"):
        assert name in answer.stdout


def test_jobs_without_lsf(site):
    """As on a machine of one's own: the same command lines, nothing counted, names with spaces whole."""
    assert site.run_job("01", METADATA="my birds/a.csv", NAME="x").returncode == 0
    assert site.run_job("02", "--resume", "never", TRAIN_ARGS="--augment roll gain\n --seed *").returncode == 0
    assert site.run_job("03", RUN_DIR="my model", RESULTS_DIR="results", DATA_DIR="d").returncode == 0
    assert site.run_job("05", OUT_DIR="demo").returncode == 0
    assert site.run_job("06", CNN_ARGS="--architecture waveform", NUM_GPUS="2").returncode == 0
    assert site.run_job("07").returncode == 0
    assert site.run_job("07", KEEP_ARGS="--keep_layers 0-1").returncode == 0
    assert site.run_job("07", KEEP_ARGS="--keep_layers 0", RUN_DIR="runs/half").returncode == 0
    assert site.run_job("03", SPLIT_BY="clip", SEED="1", BASE_MODEL="../models/tiny/").returncode == 0
    in_data, out = "--data_dir processed_data/study", "--seed 42 --output_dir"
    whole, pruned = (f"runs/study/wav2vec2-base{variant}/seed-42" for variant in ("", ".pruned"))
    prune = f"07_manual_pruning.py --model_dir {whole} {out} {pruned}"
    assert [shlex.join(call) for call in site.calls] == [
        f"01_data_processing.py --raw_dir 'my birds' --split_by recordist {out} processed_data/x "
        "--metadata 'my birds/a.csv'",
        f"02_finetuning.py --base_model facebook/wav2vec2-base {in_data} {out} runs/study/wav2vec2-base/seed-42 "
        "--resume never --augment roll gain --seed '*'",
        f"03_model_validation.py --model_dir 'my model' --data_dir d {out} results",
        f"05_pruning.py --model_dir demo/runs/study/wav2vec2-base/seed-42 --data_dir demo/processed_data/study {out} "
        "demo/validation_results/study/wav2vec2-base.sweep/seed-42",
        f"-m jobs.launch --nproc_per_node 2 06_cnn.py --architecture melspectrogram {in_data} {out} "
        "runs/study/cnn/seed-42 --architecture waveform",
        f"{prune} --from validation_results/study/wav2vec2-base.sweep/seed-42/best.json",
        f"{prune} --keep_layers 0-1",
        f"07_manual_pruning.py --model_dir runs/half {out} runs/half.pruned --keep_layers 0",
        "03_model_validation.py --model_dir runs/study.by-clip/tiny/seed-1 --data_dir processed_data/study.by-clip "
        "--seed 1 --output_dir validation_results/study.by-clip/tiny/seed-1",
    ]
    assert not (site.folder / "logs").exists()


def test_a_fold_is_a_chain_of_jobs(site):
    steps = [*STUDY, "06", "03-cnn"]
    assert site.submit(*steps, FOLD="2", FOLDS="4", SEED="1", SPLIT_BY="recording").returncode == 0
    site.cluster.run()
    assert sorted(site.cluster.run_order) == sorted(f"study-fold-2-{step}" for step in steps)
    data, last = "processed_data/study.by-recording/folds", "fold-2.seed-1"
    for name, call in zip(site.cluster.run_order, site.calls, strict=True):
        step, flags = name.removeprefix("study-fold-2-"), dict(zip(call[1::2], call[2::2], strict=True))
        if step == "01":
            assert (flags["--folds"], flags["--output_dir"]) == ("4", data) and "--seed" not in flags
            continue
        assert flags.get("--fold") == (None if step == "07" else "2") and flags["--seed"] == "1"
        assert flags.get("--data_dir", data) == data
        places = [flags[flag] for flag in ("--output_dir", "--model_dir") if flag in flags]
        assert all(place.endswith(f"/{last}") for place in places), places
    from_sweep = next(call for call in site.calls if call[0].startswith("07"))
    variant = "study.by-recording/wav2vec2-base{}/" + last
    assert from_sweep[-1] == f"validation_results/{variant.format('.sweep')}/best.json"
    assert f"runs/{variant.format('.pruned')}" in from_sweep


def test_all_folds_are_made_by_one_job(site):
    assert site.submit("01", FOLDS="3").returncode == 0
    site.cluster.run()
    (site.folder / "processed_data/study/folds").mkdir(parents=True)
    for fold in "123":
        assert site.submit("02", "03", FOLDS="3", FOLD=fold).returncode == 0
    site.cluster.run()
    assert site.cluster.run_order[0] == "study-01"
    assert site.cluster.run_order[1:] == [f"study-fold-{fold}-{step}" for fold in "123" for step in ("02", "03")]
    assert [call[call.index("--fold") + 1] for call in site.calls[1:]] == list("112233")
    assert site.run_job("02", FOLD="3").returncode == 0, "five folds where FOLDS is not given"
    assert "processed_data/study/folds" in site.calls[-1]


@pytest.mark.parametrize(("code", "states"), [("0", "DONE DONE DONE"), ("3", "EXIT ORPHAN ORPHAN")])
@pytest.mark.parametrize(("cluster", "condition"), [("site", "done(101)"), ("slurm_site", "afterok:101")])
def test_the_folds_wait_for_the_job_that_makes_them(cluster, condition, code, states, request):
    site = request.getfixturevalue(cluster)
    assert site.submit("01", FOLDS="2", EXIT_01=code).returncode == 0
    for fold in "12":
        answer = site.submit("--after", "101", "02", "03", FOLDS="2", FOLD=fold)
        assert answer.returncode == 0, answer.stderr
        assert re.findall(r"It waits for (.*?)\.?\n", answer.stdout)[0] == condition
    site.cluster.run()
    for fold in "12":
        chain = ["01", f"fold-{fold}-02", f"fold-{fold}-03"]
        assert " ".join(site.states()[name] for name in chain) == states


def test_the_makefile_tests_a_fold(tmp_path):
    def commands(*words: str) -> list[str]:
        made = subprocess.run(["make", "--dry-run", "pipeline", *words], capture_output=True, text=True, cwd=ROOT)
        printed = made.stdout.replace("\\\n", " ")
        return [
            " ".join(line.split()) for line in printed.splitlines() if "/python 0" in line and "--check" not in line
        ]

    in_data = '--data_dir "./processed_data/birds/folds" --fold 2 --seed 1'
    first, *others = commands("RAW_DIR=raw", "FOLD=2", "SEED=1", "BASE_MODEL=tiny")
    assert first.endswith('--split_by recordist --folds 5 --output_dir "./processed_data/birds/folds"')
    assert len(others) == 4 and all(in_data in command for command in others)
    folders = ("runs/birds/tiny", "validation_results/birds/tiny", "analysis_results/birds/tiny")
    places = [
        f'--output_dir "./{folder}/fold-2.seed-1"' for folder in (*folders, "validation_results/birds/tiny.sweep")
    ]
    assert all(place in command for place, command in zip(places, others, strict=True))
    assert "--folds 7" in commands("RAW_DIR=raw", "FOLDS=7", "FOLD=6")[0]
    whole = commands("RAW_DIR=raw")
    assert "fold" not in " ".join(whole) and '--seed 42 --output_dir "./processed_data/birds"' in whole[0]
    for folds in ("FOLDS=5", "FOLD=6", "FOLD=0", "FOLD=two"):
        refused = subprocess.run(["make", "-o", "venv", "pipeline", folds], capture_output=True, text=True, cwd=ROOT)
        assert refused.returncode == 2 and "make needs FOLD=1 to 5, the fold to test" in refused.stdout


def test_mistakes_in_a_job(site):
    refused = site.run_job("01", RAW_DIR="")
    assert refused.returncode == 2 and "RAW_DIR=<folder of recordings> is missing" in refused.stderr
    refused = site.run_job("08")
    assert refused.returncode == 2 and "FIELD_DIR=<folder of recordings to listen to> is missing" in refused.stderr
    refused = site.run_job("01", SHARDS="4")
    assert refused.returncode == 2 and 'bsub -J "01[1-4]" < jobs/01.sh' in refused.stderr
    elsewhere = subprocess.run([site.folder / "jobs" / "02.sh"], capture_output=True, text=True, cwd=site.folder.parent)
    assert elsewhere.returncode == 2 and "jobs/stage.sh" in elsewhere.stderr
    assert not site.calls


def test_lines_of_the_cluster_are_read_and_the_environment_wins(site):
    lines = ': "${QUEUE:=gpuv100}" "${BASE_MODEL:=hubert}"\necho "$NOT_SET"  # as the scripts of many modules do\n'
    (site.folder / "jobs" / "site.sh").write_text(lines)
    printed = site.submit("--dry_run").stdout
    assert "-J study-02 -q gpuv100" in printed
    assert "-J study-02 -q other" in site.submit("--dry_run", QUEUE="other").stdout
    assert site.run_job("02").returncode == 0
    assert "hubert" in site.calls[0]


# ------------------------------------------------------------------------------ several processes, signals


STAGE_OF_TWO = "import os, sys, time\nrank = int(os.environ['RANK'])\n{body}\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(75)", 75),
        ("if rank: os.kill(os.getpid(), 9)\ntime.sleep(60)", 128 + 9),
    ],
)
def test_the_exit_code_of_several_processes(body, code, tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(STAGE_OF_TWO.format(body=body))
    assert launch_as_job("--nproc_per_node", 2, script) == code


def test_a_signal_before_there_is_a_stage(monkeypatch):
    monkeypatch.setattr(launch.psutil.Process, "children", lambda self: [])
    with pytest.raises(SystemExit) as end:
        launch.pass_on(signal.SIGTERM, None)
    assert end.value.code == 75


def test_two_processes_stop_at_the_wall_time_with_a_checkpoint(warm_python, tmp_path):
    """LSF signals all processes, and the launcher passes on to its two what it gets: one request, one checkpoint."""
    folder = checkout(tmp_path / "checkout")
    write_processed(folder / "processed_data" / "study")
    python = dict.fromkeys(("PYTHON", "PYTHON_EXEC"), str(warm_python))  # of the job, and of torchrun
    environment = os.environ | python | {"NAME": "study", "NUM_GPUS": "2", "BASE_MODEL": "tiny"}
    environment["TRAIN_ARGS"] = "--device cpu --num_train_epochs 200 --early_stopping_patience 200"
    job = subprocess.Popen([folder / "jobs" / "02.sh"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    run_dir = folder / "runs/study/tiny/seed-42"
    while job.poll() is None and not (run_dir / "metrics.csv").exists():
        time.sleep(0.02)
    lsf.signal_all(job.pid, signal.SIGUSR2)
    stderr = job.communicate(timeout=batch.PATIENCE_S)[1]
    assert job.returncode == 75, stderr
    assert "a checkpoint is saved" in stderr
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("interrupted", 75)
    assert list((run_dir / "checkpoints").glob("checkpoint-*/trainer_state.json"))


# ------------------------------------------------------------------------------- other batch systems, none


ENVIRONMENTS = {
    "none": {},
    "lsf": {"LSB_JOBID": "123", "LSB_QUEUE": "gpua100", "LSB_JOBINDEX": "2", "LSB_DJOB_NUMPROC": "4"},
    "slurm": {"SLURM_JOB_ID": "5", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"},
}


def test_the_batch_system_changes_nothing_but_its_entry_in_the_record(tmp_path, monkeypatch):
    stages = {stage: load_stage(SCRIPTS[stage]) for stage in ("02", "07")}
    records = {}
    for system, variables in ENVIRONMENTS.items():
        folder = tmp_path / system
        write_processed(folder / "data", recordings_per_class={"train": 2, "val": 1, "test": 1})
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for variable in {name for name in os.environ if name.startswith(("LSB_", "SLURM_"))}:
                patch.delenv(variable)
            for variable, value in variables.items():
                patch.setenv(variable, value)
            words = ["--data_dir", "data", "--base_model", "tiny", "--num_train_epochs", "1", "--device", "cpu"]
            assert stages["02"].main([*words, "--output_dir", "run"]) == 0
            assert stages["07"].main(["--model_dir", "run", "--keep_layers", "0,2", "--output_dir", "pruned"]) == 0
        records[system] = [json.loads((folder / name / "run.json").read_text()) for name in ("run", "pruned")]
    entries = {system: [record.pop("lsf") for record in of_system] for system, of_system in records.items()}
    assert [entry["job_id"] for entry in entries["lsf"]] == ["123", "123"] and entries["lsf"][0]["queue"] == "gpua100"
    for system in ("none", "slurm"):
        assert all(entry["job_id"] is None and entry["queue"] is None for entry in entries[system])
    for of_system in records.values():
        for record in of_system:
            for name in ("started_at", "finished_at", "timings"):
                del record[name]
    assert records["lsf"] == records["none"] == records["slurm"]


# --------------------------------------------------------------------------------------------------- GPUs


def test_jobs_that_ask_for_a_gpu_take_no_cpu_instead(site):
    """A missing driver is then exit 3, not 24 hours on a CPU; by hand, where nothing was asked for, it is automatic."""
    steps = [*STUDY, "06", "03-cnn"]
    assert site.submit(*steps, TRAIN_ARGS="--device cpu").returncode == 0
    site.cluster.run()
    call_of = dict(zip(site.cluster.run_order, site.calls, strict=True))
    for step in steps:
        options = site.cluster.jobs[f"study-{step}"].options
        words = " ".join(call_of[f"study-{step}"])
        assert ("--device cuda" in words) == ("-gpu" in options) == (step[:2] not in ("01", "07")), step
    assert call_of["study-02"][-2:] == ["--device", "cpu"], "what the user says comes last, and wins"
    assert site.run_job("02").returncode == 0
    assert "--device" not in site.calls[-1]


def test_a_job_without_a_driver_ends_with_3_and_says_so(site, warm_python):
    folder = write_processed(site.folder / "processed_data" / "study")
    assert folder.is_dir()
    answer = site.submit(
        "01", "02", PYTHON=str(warm_python), BASE_MODEL="tiny", DATA_ARGS="--help", CUDA_VISIBLE_DEVICES=""
    )
    assert answer.returncode == 0, answer.stderr
    site.cluster.run()
    assert site.cluster.jobs["study-02"].exit_codes == [3]
    assert "--device cuda: PyTorch finds no GPU" in (site.folder / "logs" / "02.102.err").read_text()


# ------------------------------------------------------------------------------- flags of all, base model


def test_one_variable_holds_the_flags_of_all_stages(site):
    flags = {"COMMON_ARGS": "--overwrite --log_level warning", "PRUNE_ARGS": "--log_level debug"}
    assert site.submit(**flags).returncode == 0
    site.cluster.run()
    assert len(site.calls) == len(STUDY)
    assert all({"--overwrite", "--log_level"} <= set(call) for call in site.calls)
    of_pruning = next(call for call in site.calls if call[0] == "05_pruning.py")
    assert of_pruning[-2:] == ["--log_level", "debug"], "what is said for one stage wins"


def test_a_wrong_base_model_is_told_before_anything_is_submitted(site):
    answer = site.submit(EXIT_CHECK="3", BASE_MODEL="facebok/wav2vec2", TRAIN_ARGS="--keep_layers 0-5")
    assert (answer.returncode, answer.stdout) == (3, "")
    assert "step 02 cannot start from BASE_MODEL=facebok/wav2vec2 with TRAIN_ARGS=--keep_layers 0-5" in answer.stderr
    assert not list(site.cluster.folder.glob("*.json")) and not site.calls
    assert "--keep_layers 0-5 --check" in site.calls_file.read_text()


@pytest.mark.parametrize("code", ["0", "3"])
def test_make_pipeline_checks_the_base_model_first_and_hands_on_the_flags_of_all(code, site):
    words = ["RAW_DIR=my birds", "BASE_MODEL=tiny", "COMMON_ARGS=--overwrite", "TRAIN_ARGS=--keep_layers 0-1"]
    environment = os.environ | site.variables | {"EXIT_CHECK": code}
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "-o", "venv", "pipeline", f"PY={site.variables['PYTHON']}", *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=site.folder,
    )
    assert (done.returncode == 0) == (code == "0"), done.stderr
    lines = site.calls_file.read_text().splitlines()
    assert lines[0].startswith("02_finetuning.py --base_model tiny") and lines[0].rstrip().endswith("--check")
    assert [call[0][:2] for call in site.calls] == (["01", "02", "03", "04", "05"] if code == "0" else [])
    assert all("--overwrite" in call for call in site.calls)


# -------------------------------------------------------------------------------------------------- Slurm


@pytest.mark.parametrize("stage", STAGES)
def test_head_of_a_job_for_slurm(stage):
    script = (ROOT / "jobs" / f"{stage}.sh").read_text()
    options, of_lsf = slurm.options_of_script(script), lsf.options_of_script(script)
    slurm.check(options, set())
    assert ("--gres" in options) == ("-gpu" in of_lsf)
    hours, minutes, _ = map(int, options["--time"].split(":"))
    assert 60 * hours + minutes == lsf.minutes(of_lsf["-W"])
    assert options["--cpus-per-task"] == of_lsf["-n"] and options["--ntasks"] == "1"
    assert options["--signal"] == "B:USR2@600" and options["--requeue"]
    assert (options["--output"], options["--error"]) == (f"logs/{stage}.%j.out", f"logs/{stage}.%j.err")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus-per-moon=1"], "unrecognized option '--gpus-per-moon=1'"),
        (["--mem=8GB"], "Invalid --mem specification"),
        (["--time=soon"], "Invalid --time specification"),
        (["--dependency=afterok:7"], "Job dependency problem"),
        (["--dependency=done(7)"], "Invalid --dependency specification"),
        (["--partition=nowhere"], "invalid partition specified: nowhere"),
    ],
)
def test_the_emulated_sbatch_refuses_what_slurm_refuses(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("#!/bin/bash\n#SBATCH --job-name=x\ntrue\n"))
    with pytest.raises(slurm.Refused, match=re.escape(message)):
        slurm.sbatch(tmp_path, words)
    assert not list(tmp_path.iterdir())


def test_a_study_through_slurm(slurm_site):
    answer = slurm_site.submit(EXIT_07="3", COMMON_ARGS="--log_level warning")
    assert answer.returncode == 0, answer.stderr
    assert "Submitted batch job 102 It waits for afterok:101." in answer.stdout
    assert f"sacct -X -j {','.join(map(str, range(101, 108)))}" in answer.stdout and "scancel 101 102" in answer.stdout
    slurm_site.cluster.run()
    assert slurm_site.states() == {step: "DONE" for step in STUDY} | {"07": "EXIT", "03-pruned": "ORPHAN"}
    assert slurm_site.cluster.run_order == [f"study-{step}" for step in STUDY[:-1]]
    call_of = {call[0][:2]: call for call in slurm_site.calls}
    assert call_of["02"][:3] == ["02_finetuning.py", "--device", "cuda"]
    assert call_of["01"][-4:] == ["--num_workers", "8", "--log_level", "warning"]


def test_what_is_asked_of_slurm_can_be_changed(slurm_site):
    printed = slurm_site.submit(
        *("--dry_run", "--email", "ada@example.org", "01", "02", "07", "03"),
        **{"QUEUE": "gpu", "WALLTIME_02": "48:00", "NUM_GPUS": "4", "MEMORY_02": "64GB", "KEEP_ARGS": "--ladder"},
        **{"SBATCH_ARGS": "--account=birds", "CPU_QUEUE_01": "normal"},
    ).stdout.splitlines()
    mail = "--mail-type=END,FAIL --mail-user=ada@example.org --account=birds"
    afterok = "--dependency='afterok:<id of 01>"
    assert printed[0] == f"sbatch --job-name=study-01 --partition=normal {mail} < jobs/01.sh"
    assert printed[1] == (
        "sbatch --job-name=study-02 --partition=gpu --time=2880 --gres=gpu:4 --cpus-per-task=16 --mem=64G "
        f"{mail} '--dependency=afterok:<id of 01>' --kill-on-invalid-dep=yes < jobs/02.sh"
    )
    assert printed[2].startswith("env NUM_GPUS=1 sbatch --job-name=study-03 --partition=gpu")
    assert "'--dependency=afterok:<id of 01>:<id of 02>'" in printed[2], afterok
    for line in printed:
        words = shlex.split(line.partition(" < ")[0])
        slurm.read_options(words[words.index("sbatch") + 1 :])


def test_the_array_of_01_through_slurm(slurm_site):
    assert slurm_site.submit("01", "02", SHARDS="3", EXIT_01="0 0 0 0").returncode == 0
    slurm_site.cluster.run()
    assert slurm_site.cluster.run_order == ["study-01-shards"] * 3 + ["study-01", "study-02"]
    shares = [call[call.index("--num_workers") + 2 :] for call in slurm_site.calls[:4]]
    assert shares == [["--shard", "1/3"], ["--shard", "2/3"], ["--shard", "3/3"], ["--merge_shards", "3"]]
    assert {path.name for path in (slurm_site.folder / "logs").glob("01.*.err")} == {
        *("01.101.1.err", "01.101.2.err", "01.101.3.err", "01.102.err")
    }


STOPPABLE = """#!{python}
import os, signal, sys, time
from pathlib import Path
if sys.argv[-1] == "--check":
    sys.exit()
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(75))
begun = Path(os.environ["CALLS"] + ".begun")
if sys.argv[1].startswith("02") and not begun.exists():
    begun.touch()
    for _ in range(6000):  # a signal just before one long sleep would be handled only after it
        time.sleep(0.01)
"""


@pytest.mark.parametrize("how", ["wall time", "cancelled"])
def test_slurm_starts_again_what_the_wall_time_stopped_and_not_what_was_cancelled(how, slurm_site):
    site, python = slurm_site, Path(slurm_site.variables["PYTHON"])
    python.write_text(STOPPABLE.format(python=sys.executable))
    begun = Path(f"{site.calls_file}.begun")
    (site.cluster.wall_time_after if how == "wall time" else site.cluster.cancel_after)["study-02"] = begun
    assert site.submit("01", "02", "03", COMMON_ARGS="--overwrite").returncode == 0
    site.cluster.run()
    log_text = (site.folder / "logs" / "02.102.err").read_text()
    if how == "wall time":
        assert site.cluster.jobs["study-02"].exit_codes == [75, 0]
        assert site.states() == {"01": "DONE", "02": "DONE", "03": "DONE"}
        first, second = (call for call in site.calls if call[0].startswith("02"))
        assert second == [word for word in first if word != "--overwrite"], "it goes on from what is there"
        assert "start 2 of job 102: continuing without --overwrite" in log_text
    else:
        assert site.cluster.jobs["study-02"].exit_codes == [75]
        assert site.states() == {"01": "DONE", "02": "EXIT", "03": "ORPHAN"}


def test_mistakes_with_slurm(slurm_site):
    answer = slurm_site.submit(QUEUE_03="nowhere")
    assert answer.returncode == 3 and "invalid partition specified: nowhere" in answer.stderr
    assert "step 03 was not submitted: sbatch ended with exit code 1" in answer.stderr
    assert "scancel 101 102" in answer.stderr
    answer = slurm_site.submit(SCHEDULER="pbs")
    assert answer.returncode == 2 and "SCHEDULER=pbs: expected lsf or slurm" in answer.stderr
    answer = slurm_site.submit(SCHEDULER="lsf")
    assert answer.returncode == 3 and "there is no bsub here" in answer.stderr
    answer = slurm_site.run_job("01", SHARDS="4")
    assert answer.returncode == 2 and "sbatch --array=1-4 jobs/01.sh" in answer.stderr
