"""The life of an output folder: taken, skipped, resumed, refused, replaced; and what run.json says of it."""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.stages import ROOT
from utils import cli, runs
from utils.errors import AlreadyComplete, InputError, Interrupted, OutputExistsError, UsageError
from utils.files import sha256_of_file


def arguments(output_dir, **changes) -> argparse.Namespace:
    values = {"output_dir": output_dir, "overwrite": False, "seed": 1, "log_level": "info", "device": "cpu"}
    return argparse.Namespace(**{**values, "num_workers": 2, "clip_seconds": 5.0, **changes})


def open_run(output_dir, inputs=None, **changes):
    args = arguments(output_dir, **changes)
    return runs.open_run("01_data_processing", args, inputs or {}, result_neutral={"num_workers"})


def write_run(output_dir, text="result", inputs=None, **changes) -> runs.Run:
    with open_run(output_dir, inputs, **changes) as run:
        (output_dir / "result.txt").write_text(text)
        run.metrics["n"] = 3
    return run


def record_of(output_dir) -> dict:
    return json.loads((output_dir / "run.json").read_text())


def test_complete_run_is_recorded(tmp_path):
    out = tmp_path / "deep" / "out"
    write_run(out)
    record = record_of(out)
    assert (record["status"], record["exit_code"], record["attempts"]) == ("complete", 0, 1)
    assert record["outputs"] == [{"path": "result.txt", "bytes": 6, "sha256": sha256_of_file(out / "result.txt")}]
    assert record["metrics"] == {"n": 3}
    assert record["arguments"]["clip_seconds"] == 5.0 and record["seed"] == 1
    assert record["packages"]["numpy"] and record["python"] and record["lsf"]["host"]
    assert record["timings"]["total_s"] >= 0 and record["started_at"] <= record["finished_at"]
    assert "writing to" in (out / "log.txt").read_text() or logging.getLogger().level > logging.INFO


def test_same_arguments_are_skipped_and_neutral_ones_do_not_matter(tmp_path):
    write_run(tmp_path / "out")
    with pytest.raises(AlreadyComplete, match="nothing to do"):
        write_run(tmp_path / "out", num_workers=7, log_level="debug", device="cuda")
    assert record_of(tmp_path / "out")["attempts"] == 1


def test_other_arguments_or_inputs_are_refused_and_named(tmp_path):
    out = tmp_path / "out"
    write_run(out, inputs={"data_dir": runs.Input("a", "1" * 64)})
    with pytest.raises(OutputExistsError, match=r"--clip_seconds 5\.0, now it is 3\.0"):
        write_run(out, inputs={"data_dir": runs.Input("a", "1" * 64)}, clip_seconds=3.0)
    with pytest.raises(OutputExistsError, match="content of --data_dir"):
        write_run(out, inputs={"data_dir": runs.Input("a", "2" * 64)})
    with pytest.raises(OutputExistsError, match="with --data_dir"):
        write_run(out)
    with (
        pytest.raises(OutputExistsError, match=r"made by 01_data_processing\.py"),
        runs.open_run("03_model_validation", arguments(out), {}),
    ):
        pass
    with pytest.raises(AlreadyComplete):  # the same content at another path is the same input
        write_run(out, inputs={"data_dir": runs.Input("elsewhere", "1" * 64)})


def test_overwrite_replaces_a_run_folder_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    (out / "sub").mkdir()
    (out / "sub" / "stale.txt").write_text("old")
    write_run(out, text="new", clip_seconds=3.0, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == [".lock", "log.txt", "result.txt", "run.json"]
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"no stage made \(chapter\.tex"):
            write_run(foreign, overwrite=overwrite)
    assert (foreign / "chapter.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="is a file"):
        write_run(tmp_path / "file")


def test_damaged_output_is_not_taken_for_done(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    (out / "result.txt").write_text("resulT")
    with pytest.raises(OutputExistsError, match="altered or is damaged"):
        write_run(out)
    write_run(out, overwrite=True)


def test_failure_is_recorded_and_the_next_attempt_goes_on(tmp_path):
    out = tmp_path / "out"
    for n, (error, status, code) in enumerate(
        [
            (InputError("no"), "failed", 3),
            (OSError(28, "No space left on device"), "failed", 3),
            (ZeroDivisionError(), "failed", 1),
            (Interrupted("stop"), "interrupted", 75),
        ],
        start=1,
    ):
        with pytest.raises(type(error)), open_run(out):
            (out / "half.txt").write_text("kept for the next attempt")
            raise error
        record = record_of(out)
        assert (record["status"], record["exit_code"], record["attempts"]) == (status, code, n)
        assert record["outputs"] == []
    with pytest.raises(OutputExistsError, match="clip_seconds"):
        write_run(out, clip_seconds=1.0)
    assert write_run(out).attempts == 5


def test_corrupt_record(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    for garbage in ("", "{", "[]", '{"stage": 3}', "\x00\x01"):
        (out / "run.json").write_text(garbage)
        with pytest.raises(OutputExistsError, match="overwrite"):
            write_run(out)
        with pytest.raises(InputError, match=r"run\.json"):
            runs.folder_input(out)
    write_run(out, overwrite=True)
    assert record_of(out)["status"] == "complete"


def test_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    out = tmp_path / "out"
    with open_run(out), pytest.raises(OutputExistsError, match="another process"):
        write_run(out)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, argparse; from pathlib import Path; from utils import runs\n"
            f"args = argparse.Namespace(output_dir=Path({str(tmp_path / 'held')!r}), overwrite=False, seed=1)\n"
            "with runs.open_run('01_data_processing', args, {}):\n    print('open', flush=True); time.sleep(60)",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"open\n"
    args = argparse.Namespace(output_dir=tmp_path / "held", overwrite=False, seed=1)
    with (
        pytest.raises(OutputExistsError, match="another process"),
        runs.open_run("01_data_processing", args, {}),
    ):
        pass
    holder.kill()
    holder.wait()
    assert record_of(tmp_path / "held")["status"] == "running"
    with runs.open_run("01_data_processing", args, {}) as run:
        assert run.attempts == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals(number, tmp_path, monkeypatch):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name), runs.open_run("x", arguments(tmp_path / "now"), {}):
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert record_of(tmp_path / "now")["status"] == "interrupted"
    with runs.open_run("x", arguments(tmp_path / "later"), {}, defer_signals=True) as run:
        os.kill(os.getpid(), number)
        assert run.stop_signal == number.name
        os.kill(os.getpid(), number)  # passed on by the launcher of a job that LSF has signalled: the same request
        monkeypatch.setattr(runs, "REPEAT_S", 0.0)
        with pytest.raises(Interrupted):  # who asks twice means it
            os.kill(os.getpid(), number)
            time.sleep(5)
    assert signal.getsignal(number) is before


def test_a_signal_does_not_keep_a_stopped_stage_from_its_record(tmp_path, monkeypatch):
    """bkill sends SIGTERM after SIGINT, and torchrun to all processes once the first has ended."""
    real = runs.write_json

    def write_json(path, value):
        if value["status"] == "interrupted":
            os.kill(os.getpid(), signal.SIGTERM)
        real(path, value)

    monkeypatch.setattr(runs, "write_json", write_json)
    with pytest.raises(Interrupted, match="SIGINT"), runs.open_run("x", arguments(tmp_path / "run"), {}):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert record_of(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.parametrize("defer", [False, True])
def test_a_signal_in_a_forked_worker_is_left_to_its_parent(defer, tmp_path):
    """LSF signals all processes of a job, those of a data loader too."""
    with runs.open_run("x", arguments(tmp_path / "run"), {}, defer_signals=defer) as run:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.kill(os.getpid(), signal.SIGUSR2)
                code = 0 if run.stop_signal is None else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert record_of(tmp_path / "run")["status"] == "complete"


def test_input_folder_must_be_complete_and_whole(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        runs.folder_input(tmp_path / "none", ["01_data_processing"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"no run\.json"):
        runs.folder_input(tmp_path / "bare")
    out = tmp_path / "out"
    write_run(out)
    digest = runs.folder_input(out, ["01_data_processing"]).sha256
    with pytest.raises(InputError, match=r"made by 01_data_processing\.py; expected the output of 02_finetuning\.py"):
        runs.folder_input(out, ["02_finetuning"])
    whole = (out / "result.txt").read_text()
    for damage, words in [("resu", "has 4 bytes"), ("rezult", "altered or is damaged"), (None, "is missing")]:
        (out / "result.txt").write_text(damage) if damage else (out / "result.txt").unlink()
        with pytest.raises(InputError, match=words):
            runs.folder_input(out)
    (out / "result.txt").write_text(whole)
    assert runs.folder_input(out).sha256 == digest
    record = record_of(out)
    (out / "run.json").write_text(json.dumps({**record, "status": "running"}))
    with pytest.raises(InputError, match="says 'running'"):
        runs.folder_input(out)


def test_what_open_run_would_make_of_a_folder(tmp_path):
    out = tmp_path / "out"

    def is_complete(inputs=None, **changes):
        return runs.is_complete("01_data_processing", arguments(out, **changes), inputs or {}, {"num_workers"})

    assert not is_complete()
    write_run(out)
    assert is_complete() and is_complete(num_workers=7)
    assert not is_complete(clip_seconds=3.0) and not is_complete({"raw_dir": runs.Input("raw", "0")})
    args = arguments(out, clip_seconds=3.0)
    said = runs.difference(record_of(out), "01_data_processing", args, {}, {"num_workers"})
    assert said == "it was made with --clip_seconds 5.0, now it is 3.0"
    record = record_of(out)
    for broken in ({**record, "status": "failed"}, {**record, "outputs": [{"path": "result.txt"}]}):
        (out / "run.json").write_text(json.dumps(broken))
        assert not is_complete()


@pytest.mark.parametrize("rows", [{"outputs": [{"path": "a", "bytes": 1}]}, {"inputs": ["raw"]}, {"outputs": [3]}])
def test_a_record_with_broken_rows_is_no_record(tmp_path, rows):
    write_run(tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record_of(tmp_path / "out"), **rows}))
    with pytest.raises(InputError, match="is no run record"):
        runs.read_record(tmp_path / "out")


def test_file_input(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    assert runs.file_input(tmp_path / "a.csv").sha256 == sha256_of_file(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such file"):
        runs.file_input(tmp_path / "b.csv")


def test_progress_passes_everything_on_and_logs_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(runs, "PROGRESS_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(runs.progress(iter("abc"), 3, "reading", "letters")) == list("abc")
    assert "reading: 2 of 3 letters" in caplog.text


def test_progress_of_a_resumed_run_counts_what_was_done_before(monkeypatch, caplog):
    monkeypatch.setattr(runs, "PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(runs.time, "monotonic", iter(range(0, 100, 2)).__next__)  # 2 s a step
    with caplog.at_level(logging.INFO):
        list(runs.progress(iter("abc"), 40, "training", "steps", n_before=29))
    assert [record.getMessage() for record in caplog.records] == [
        f"training: {n} of 40 steps, 0.5/s, {2 * (40 - n)} s left" for n in (30, 31, 32)
    ]


def test_device(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runs.resolve_device("auto") == "cpu"
    assert runs.device_name("cpu")
    with pytest.raises(InputError, match="the driver is missing"):
        runs.resolve_device("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(InputError, match="built without CUDA"):
        runs.resolve_device("cuda")


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_that_cannot_be_used_is_no_bug_and_the_cpu_does_not_step_in(asked, monkeypatch):
    import torch

    def zeros(n, device):
        assert device == "cuda:1"  # that of this process, whose memory the others do not touch
        raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match=r"GPU 1 of this machine .* busy or unavailable; see nvidia-smi"):
        runs.resolve_device(asked)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"process 3 of this machine has no GPU .* shows 2"):
        runs.resolve_device(asked)
    assert runs.resolve_device("cpu") == "cpu"


def exit_code_of(error: BaseException | None, *words: str) -> int:
    def run(args):
        if error is not None:
            raise error

    parser = cli.build_stage_parser("A stage.")
    cli.add_common_arguments(parser, output_dir="out")
    return cli.run_stage(parser, run, list(words))


def test_exit_codes_and_messages(caplog):
    assert exit_code_of(None) == 0
    assert exit_code_of(AlreadyComplete("done")) == 0
    assert exit_code_of(UsageError("wrong")) == 2
    assert exit_code_of(InputError("missing")) == 3
    assert exit_code_of(OutputExistsError("there")) == 4
    assert exit_code_of(Interrupted("later")) == 75
    assert "Traceback" not in caplog.text
    assert exit_code_of(OSError(28, "No space left on device", "/out/x")) == 3
    assert exit_code_of(PermissionError(13, "Permission denied", "/out/x")) == 3
    assert "/out/x: the disk is full" in caplog.text and "Traceback" not in caplog.text
    assert exit_code_of(OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")) == 3
    assert exit_code_of(ZeroDivisionError("bug")) == 1
    assert exit_code_of(OSError("what no one knows")) == 1
    assert "Traceback" in caplog.text


def test_usage_errors_exit_with_2(capsys):
    assert exit_code_of(None, "--seed", "-1") == 2
    assert exit_code_of(None, "--see", "1") == 2, "no abbreviations"
    assert exit_code_of(None, "--device", "tpu") == 2
    assert exit_code_of(None, "--help") == 0
    assert "integer from 0" in capsys.readouterr().err


def test_no_library_swallows_a_stop(tmp_path):
    def library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception as error:
            raise ValueError("cannot be loaded") from error

    with pytest.raises(Interrupted, match="SIGTERM"), runs.open_run("x", arguments(tmp_path / "run"), {}):
        library()
    assert runs.read_record(tmp_path / "run")["status"] == "interrupted"
