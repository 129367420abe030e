"""The life of an output folder: taken, skipped, resumed, refused, replaced; and what run.json says of it."""

import argparse
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.stages import ROOT
from utils.core import cli, runs, streams
from utils.core.errors import AlreadyComplete, InputError, Interrupted, OutputExistsError, UsageError
from utils.core.files import read_json, sha256_of_file, write_text


def arguments(output_dir, **changes) -> argparse.Namespace:
    values = {"output_dir": output_dir, "overwrite": False, "seed": 1, "log_level": "info", "device": "cpu"}
    return argparse.Namespace(**{**values, "num_workers": 2, "clip_seconds": 5.0, **changes})


OUTPUTS = ("result.txt", "half.txt", "model/*")


def open_run(output_dir, inputs=None, reusable=(), recompute=False, **changes):
    args = arguments(output_dir, **changes)
    return runs.open_run(
        "01_data_processing",
        args,
        inputs or {},
        outputs=OUTPUTS,
        result_neutral={"num_workers"},
        scratch={"checkpoints"},
        reusable=reusable,
        recompute=recompute,
    )


def write_run(output_dir, text="result", inputs=None, **changes) -> runs.Run:
    with open_run(output_dir, inputs, **changes) as run:
        (output_dir / "result.txt").unlink(missing_ok=True)
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


def files_of(folder) -> dict[str, str]:
    """Return the text of every file, but for logs and locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("log.txt", ".lock"))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.mark.users_files
def test_overwrite_replaces_what_a_stage_wrote_and_nothing_else(tmp_path, caplog):
    out = tmp_path / "out"
    write_run(out)
    (out / "sub").mkdir()
    (out / "sub" / "notes.txt").write_text("mine")
    (out / "metadata.csv").write_text("file,label")
    with caplog.at_level(logging.INFO):
        write_run(out, text="new", clip_seconds=3.0, overwrite=True)
    assert sorted(files_of(out)) == ["metadata.csv", "result.txt", "run.json", "sub/notes.txt"]
    assert (out / "result.txt").read_text() == "new"
    assert "deleted of the old result: result.txt" in caplog.text
    assert "not listed in run.json, because this stage does not write such files: metadata.csv, sub/" in caplog.text
    assert [output["path"] for output in record_of(out)["outputs"]] == ["result.txt"]
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("years of work")
    (foreign / ".draft.partial.tex").write_text("more work")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"no stage made \(\.draft"):
            write_run(foreign, overwrite=overwrite)
    assert files_of(foreign) == {"chapter.tex": "years of work", ".draft.partial.tex": "more work"}
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="is a file"):
        write_run(tmp_path / "file")


def test_overwrite_with_equal_arguments_does_nothing(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    with pytest.raises(AlreadyComplete):
        write_run(out, text="new", overwrite=True)
    assert (out / "result.txt").read_text() == "result"
    write_run(out, text="new", recompute=True)
    assert (out / "result.txt").read_text() == "new"
    assert not list(out.glob("replaced-*"))


def fail(out, error, wrote=(), **changes):
    with pytest.raises(type(error)), open_run(out, **changes):
        for name in wrote:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("of the new run")
        raise error


@pytest.mark.parametrize(
    "error", [InputError("no"), UsageError("wrong"), OSError(28, "full"), ZeroDivisionError("bug")]
)
def test_the_old_result_is_back_where_the_new_run_leaves_nothing(tmp_path, error, caplog):
    out = tmp_path / "out"
    write_run(out)
    before = files_of(out)
    fail(out, error, overwrite=True, clip_seconds=3.0)
    assert files_of(out) == before and f"the old result is back in {out}" in caplog.text
    with pytest.raises(AlreadyComplete):
        write_run(out)


def test_the_old_result_is_kept_until_the_new_one_is_whole(tmp_path, caplog):
    out = tmp_path / "out"
    write_run(out)
    fail(out, InputError("no"), ["half.txt"], overwrite=True, clip_seconds=3.0)
    (kept,) = out.glob("replaced-*")
    assert (kept / "result.txt").read_text() == "result" and record_of(kept)["status"] == "complete"
    assert f"the old result is kept in {kept}" in caplog.text
    with pytest.raises(InputError, match=f"the result before it is kept in {kept}"):
        runs.folder_input(out)
    with pytest.raises(OutputExistsError, match=f"the result before that is kept in {kept}"):
        write_run(out, clip_seconds=4.0)
    # A third set of arguments: the old result stays, the unfinished one makes room too.
    fail(out, InputError("no"), ["half.txt"], overwrite=True, clip_seconds=4.0)
    assert len(list(out.glob("replaced-*"))) == 2 and (kept / "result.txt").exists()
    assert write_run(out, text="new", clip_seconds=4.0).attempts == 2
    assert sorted(files_of(out)) == ["half.txt", "result.txt", "run.json"]


def test_the_old_command_puts_the_old_result_back(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    before = files_of(out)
    fail(out, Interrupted("stop"), ["half.txt", "checkpoints/1"], overwrite=True, clip_seconds=3.0)
    with pytest.raises(OutputExistsError):
        write_run(out)
    with pytest.raises(AlreadyComplete, match="complete again"):
        write_run(out, overwrite=True)
    assert files_of(out) == before


def test_checkpoints_of_an_unfinished_run_outlive_wrong_arguments(tmp_path):
    out = tmp_path / "out"
    fail(out, Interrupted("stop"), ["checkpoints/1", "half.txt"])
    before = files_of(out)
    fail(out, UsageError("wrong"), overwrite=True, clip_seconds=3.0)
    assert files_of(out) == before
    assert write_run(out).attempts == 2


def test_what_was_altered_since_or_stands_in_the_way_is_kept(tmp_path, caplog):
    out = tmp_path / "out"
    write_run(out)
    (out / "result.txt").write_text("result, by hand")
    (out / "model").mkdir()
    (out / "model" / "README.md").write_text("my model card")  # where the next run writes a model
    write_run(out, text="new", clip_seconds=3.0, overwrite=True)
    (kept,) = out.glob("replaced-*")
    assert files_of(kept).keys() == {"result.txt", "model/README.md", "run.json"}
    assert (kept / "result.txt").read_text() == "result, by hand" and (out / "result.txt").read_text() == "new"
    assert f"{kept} keeps files that no run.json lists or that were changed: result.txt, model/" in caplog.text


@pytest.mark.users_files
def test_a_file_that_is_added_while_a_stage_runs_is_the_users(tmp_path):
    out = tmp_path / "out"
    with open_run(out):
        (out / "result.txt").write_text("result")
        (out / "notes.txt").write_text("mine")
    fail(out, InputError("no"), ["half.txt"], overwrite=True, clip_seconds=3.0)
    write_run(out, clip_seconds=4.0, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_links_are_not_followed(tmp_path):
    """A user has moved a large folder to another disk and left a link; a data manager keeps files as links."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    with open_run(out):
        (out / "model").mkdir()
        (out / "model" / "weights").write_text("weights")
        (out / "result.txt").write_text("result")
    (out / "model").rename(elsewhere)
    (out / "model").symlink_to(elsewhere)
    (out / "result.txt").rename(tmp_path / "cache")
    (out / "result.txt").symlink_to(tmp_path / "cache")
    with pytest.raises(AlreadyComplete):
        write_run(out)
    write_run(out, text="new", clip_seconds=3.0, overwrite=True)
    assert (elsewhere / "weights").read_text() == "weights" and (tmp_path / "cache").read_text() == "result"
    assert not list(out.glob("replaced-*")) and not (out / "model").exists()


def test_files_that_are_taken_again_are_not_lost_with_a_new_run(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    before = files_of(out)
    with pytest.raises(InputError), open_run(out, reusable={"result.txt"}, clip_seconds=3.0, overwrite=True):
        assert (out / "result.txt").read_text() == "result"
        (out / "result.txt").unlink()
        (out / "result.txt").write_text("replaced by a new one")
        raise InputError("no")
    with pytest.raises(AlreadyComplete, match="complete again"):
        write_run(out, reusable={"result.txt"}, overwrite=True)
    assert files_of(out) == before


KILLED = """
import argparse, os, signal, sys
from pathlib import Path
from utils.core import files, runs

out, moment = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def watch(event, args):
    global calls
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "open") and str(out) in str(args):
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
args = argparse.Namespace(output_dir=out, overwrite=True, seed=1, device="cpu", log_level="info", num_workers=2)
args.clip_seconds = 3.0
how = dict(outputs=("result.txt", "half.txt", "model/*"), result_neutral={"num_workers"}, scratch={"checkpoints"})
with runs.open_run("01_data_processing", args, {}, reusable={"result.txt"}, **how):
    path = out / "result.txt"
    path.unlink(missing_ok=True)
    path.write_text("new")
    (out / "model").mkdir(exist_ok=True)
    (out / "model" / "weights").write_text("new")
print("whole")
"""


def old_result(out):
    """Return the files of the old result, wherever they are; None unless they are whole."""
    for folder in (out, out / ".replacing", *out.glob("replaced-*")):
        texts = {name: (folder / name) for name in ("result.txt", "model/weights", "model/config")}
        if all(path.exists() and path.read_text() == "old" for path in texts.values()):
            return folder
    scattered = [
        any((folder / name).exists() and (folder / name).read_text() == "old" for folder in (out, out / ".replacing"))
        for name in ("result.txt", "model/weights", "model/config")
    ]
    return out if all(scattered) else None


@pytest.mark.users_files
def test_a_kill_at_any_moment_loses_neither_the_old_result_nor_a_users_file(tmp_path):
    """Killed at each change of the file system in turn; the same command then ends, or the old one goes back."""
    n_back = 0
    for moment in range(1, 200):
        out = tmp_path / f"out{moment}"
        with open_run(out):
            (out / "model").mkdir()
            for name in ("result.txt", "model/weights", "model/config"):
                (out / name).write_text("old")
        (out / "notes.txt").write_text("mine")
        before = files_of(out)
        pid = os.fork()
        if pid == 0:
            try:
                sys.argv = ["stage", str(out), str(moment)]
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                exec(compile(KILLED, "stage", "exec"), {})
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), moment
        is_new = record_of(out)["status"] == "complete" and record_of(out)["asked"]["clip_seconds"] == 3.0
        assert is_new or old_result(out), f"lost at {moment}"
        assert (out / "notes.txt").read_text() == "mine"
        if code == 0:
            break
        if not is_new and moment % 2:
            with pytest.raises(AlreadyComplete):
                write_run(out, overwrite=True, reusable={"result.txt"})
            assert files_of(out) == before, moment
            n_back += 1
            continue
        try:
            write_run(out, text="new", clip_seconds=3.0, overwrite=True, reusable={"result.txt"})
        except AlreadyComplete:
            assert is_new
        assert (out / "result.txt").read_text() == "new"
        assert not list(out.glob("replaced-*")) and not (out / ".replacing").exists(), moment
    assert code == 0 and moment > 20 and n_back > 5


def test_a_disk_that_is_full_while_room_is_made_changes_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_run(out)
    before = files_of(out)

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        write_run(out, clip_seconds=3.0, overwrite=True)
    assert files_of(out) == before


# ------------------------------------------------------------------------------------ whose folder it is


def own_and(tmp_path, name):
    """Return an input folder with a file, and an output folder that must be refused for it."""
    data = tmp_path / "here" / "data"
    (data / "deep").mkdir(parents=True)
    (data / "clips.txt").write_text("clips")
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "here" / "other").mkdir()
    return data, {
        "is": data,
        "is, with a slash": f"{data}/",
        "is, by dots": tmp_path / "here" / "other" / ".." / "data",
        "is a link to it": tmp_path / "link",
        "holds": tmp_path / "here",
        "lies in": data / "new" / "run",
        "lies in, behind a link": tmp_path / "link" / "deep",
    }[name]


@pytest.mark.parametrize(
    "name",
    ["is", "is, with a slash", "is, by dots", "is a link to it", "holds", "lies in", "lies in, behind a link"],
)
def test_an_output_folder_that_touches_an_input_is_refused(tmp_path, name, monkeypatch):
    data, out = own_and(tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    for path in (str(data), str(data / "clips.txt")) if name != "lies in" else (str(data),):
        if path.endswith(".txt") and name.startswith("lies in"):
            continue
        with pytest.raises(UsageError, match=r"of --data_dir.*choose another --output_dir"):
            write_run(out, inputs={"data_dir": runs.Input(path, "0" * 64)}, overwrite=True)
    monkeypatch.chdir(data)  # a relative spelling
    with pytest.raises(UsageError, match="of --data_dir"):
        write_run(out, inputs={"data_dir": runs.Input(".", "0" * 64)})
    assert sorted(tmp_path.rglob("*")) == before, "nothing was made"


def test_names_on_a_hub_and_folders_beside_an_input_are_no_trouble(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "data").mkdir()
    inputs = {"base_model": runs.Input("tiny", "0" * 64, is_local=False), "data_dir": runs.Input("data", "1" * 64)}
    write_run(tmp_path / "tiny", inputs=inputs)
    write_run(tmp_path / "data-2", inputs=inputs)


def test_every_result_has_a_folder_of_its_own(tmp_path):
    write_run(tmp_path / "out")
    with pytest.raises(UsageError, match=r"is inside .*out, an output folder of 01_data_processing\.py"):
        write_run(tmp_path / "out" / "model" / "again")
    # A run that failed in a folder above, by mistake, is in nobody's way; nor is another program's record.
    fail(tmp_path / "runs", InputError("no"))
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "run.json").write_text('{"experiment": 5}')
    write_run(tmp_path / "b")


@pytest.mark.parametrize("content", ['{"experiment": 5, "lr": 0.1}', "[]", "null", "3", '{"status": "complete"}', "{}"])
def test_a_folder_of_another_program_is_left_alone(tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(content)
    (out / "weights.bin").write_text("weeks of work")
    before = files_of(out)
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="is left unchanged, even with --overwrite"):
            write_run(out, overwrite=overwrite)
    assert files_of(out) == before


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_a_record_of_another_version_is_refused(tmp_path, version):
    out = tmp_path / "out"
    write_run(out)
    (out / "run.json").write_text(json.dumps({**record_of(out), "schema_version": version}))
    with pytest.raises(InputError, match="expected 1: it is of another version"):
        runs.folder_input(out)
    with pytest.raises(OutputExistsError, match="left unchanged"):
        write_run(out, overwrite=True, clip_seconds=3.0)


@pytest.mark.parametrize(
    "path", ["../victim", "/etc/hostname", ".", "", "a/../b", "./a", "a//b", "a\0b", 5, None, ["a"]]
)
def test_paths_out_of_the_folder_are_neither_read_nor_deleted(tmp_path, path):
    out = tmp_path / "out"
    write_run(out)
    (tmp_path / "victim").write_text("result")
    row = {"path": path, "bytes": 6, "sha256": sha256_of_file(tmp_path / "victim")}
    (out / "run.json").write_text(json.dumps({**record_of(out), "outputs": [row]}))
    with pytest.raises(InputError, match="'outputs' lists"):
        runs.folder_input(out)
    with pytest.raises(OutputExistsError, match="left unchanged"):
        write_run(out, overwrite=True, clip_seconds=3.0)
    assert (tmp_path / "victim").exists()


def test_a_complete_record_without_outputs_proves_nothing(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    (out / "run.json").write_text(json.dumps({**record_of(out), "outputs": []}))
    with pytest.raises(InputError, match="lists no outputs"):
        runs.folder_input(out)
    with pytest.raises(OutputExistsError, match="lists no outputs"):
        write_run(out)
    write_run(out, text="new", overwrite=True)
    assert runs.folder_input(out)


# ---------------------------------------------------------------------------- what a failed run leaves


@pytest.mark.parametrize("error", [InputError("no"), Interrupted("stop"), ZeroDivisionError("bug")])
def test_a_folder_where_a_run_left_nothing_is_taken_over(tmp_path, error):
    out = tmp_path / "out"
    fail(out, error)
    assert write_run(out, clip_seconds=3.0).attempts == 1
    assert record_of(out)["status"] == "complete"


@pytest.mark.parametrize("name", ["half.txt", "checkpoints/1"])
def test_a_folder_where_a_run_left_something_is_not_taken_over(tmp_path, name):
    out = tmp_path / "out"
    fail(out, InputError("no"), [name])
    with pytest.raises(OutputExistsError, match="differs"):
        write_run(out, clip_seconds=3.0)


def test_wrong_arguments_leave_no_folder(tmp_path):
    fail(tmp_path / "a" / "b" / "c", UsageError("wrong"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine", UsageError("wrong"))
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("error", [None, ValueError("a library's own words"), FileNotFoundError(2, "No such file")])
def test_a_folder_that_is_taken_away(tmp_path, error):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=f"{out} was removed, moved or replaced"), open_run(out):
        shutil.rmtree(out)
        if error is not None:
            raise error
    assert not out.exists()
    with pytest.raises(InputError, match="was removed, moved or replaced"), open_run(out):
        out.rename(tmp_path / "elsewhere")
        write_run(out, text="of another job")
    assert (out / "result.txt").read_text() == "of another job" and record_of(out)["status"] == "complete"


def test_damaged_output_is_not_taken_for_done(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    (out / "result.txt").write_text("resulT")
    with pytest.raises(OutputExistsError, match="changed or is damaged"):
        write_run(out)
    write_run(out, overwrite=True)


def test_a_figure_may_be_missing_or_drawn_again(tmp_path):
    for name in ("table.csv", "figure.pdf", "figure.png"):
        (tmp_path / name).write_text(name)
    outputs = [{"path": p.name, "bytes": p.stat().st_size, "sha256": sha256_of_file(p)} for p in tmp_path.iterdir()]
    (tmp_path / "figure.pdf").unlink()
    (tmp_path / "figure.png").write_text("drawn again")
    assert runs.find_damage(tmp_path, outputs) is None
    (tmp_path / "table.csv").write_text("drawn again")
    assert "table.csv has 11 bytes" in runs.find_damage(tmp_path, outputs)


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


def test_a_disk_that_is_full_hides_no_other_error(tmp_path, monkeypatch, caplog):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "out"):
        (tmp_path / "out" / "half.txt").write_text("")
        monkeypatch.setattr(runs, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        raise ZeroDivisionError
    assert f"{tmp_path / 'out' / 'run.json'} could not be updated: [Errno 28] No space left on device" in caplog.text


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_run(tmp_path / "out")
    assert "out: this file system has no locks (" in caplog.text and "start only one job per folder" in caplog.text
    assert record_of(tmp_path / "out")["status"] == "complete"


@pytest.mark.parametrize("garbage", ["", "{", "\x00\x01", "[" * 100_000, '{"stage": "01_data_proc'])
def test_a_damaged_record_lists_nothing_so_nothing_is_deleted(tmp_path, garbage, caplog):
    out = tmp_path / "out"
    write_run(out)
    (out / "run.json").write_text(garbage)
    with pytest.raises(OutputExistsError, match=r"run\.json cannot be read as JSON.*overwrite"):
        write_run(out)
    with pytest.raises(InputError, match=r"run\.json cannot be read as JSON"):
        runs.folder_input(out)
    write_run(out, text="new", overwrite=True)
    assert record_of(out)["status"] == "complete" and (out / "result.txt").read_text() == "new"
    (kept,) = out.glob("replaced-*")
    assert (kept / "result.txt").read_text() == "result" and f"{kept} keeps" in caplog.text


def test_an_output_that_a_later_stage_changes_is_whole_in_both_versions(tmp_path):
    out = tmp_path / "out"
    write_run(out)
    digest = runs.folder_input(out).sha256
    for text in ("more", "and more", "result"):
        runs.change_output(out / "result.txt", text)
        assert (out / "result.txt").read_text() == text and runs.folder_input(out).sha256 == digest
    with pytest.raises(AlreadyComplete):
        write_run(out)
    runs.change_output(tmp_path / "elsewhere.txt", "of no run")
    assert (tmp_path / "elsewhere.txt").read_text() == "of no run"
    for changed in (5, [5], [{"bytes": 1}]):
        record = record_of(out)
        record["outputs"][0]["changed"] = changed
        (out / "run.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match=r"'changed' of 'result\.txt' is no list of versions"):
            runs.read_record(out)
        record["outputs"][0]["changed"] = []
        (out / "run.json").write_text(json.dumps(record))


def test_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    out = tmp_path / "out"
    with open_run(out), pytest.raises(OutputExistsError, match="another process"):
        write_run(out)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, argparse; from pathlib import Path; from utils.core import runs\n"
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
    for damage, words in [("resu", "has 4 bytes"), ("rezult", "changed or is damaged"), (None, "is missing")]:
        (out / "result.txt").write_text(damage) if damage else (out / "result.txt").unlink()
        with pytest.raises(InputError, match=words):
            runs.folder_input(out)
    (out / "result.txt").write_text(whole)
    assert runs.folder_input(out).sha256 == digest
    record = record_of(out)
    (out / "run.json").write_text(json.dumps({**record, "status": "running"}))
    with pytest.raises(InputError, match="is 'running'"):
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
    for before, now, expected in (
        (None, 2, "it was made without --n_layers, now it is 2"),
        (2, None, "it was made with --n_layers 2, now it is not given"),
        (0, [], "it was made with --n_layers 0, now it is not given"),
        ([], ["a", 2], "it was made without --n_layers, now it is a 2"),
        (False, True, "it was made without --n_layers, now it is given"),
        (True, False, "it was made with --n_layers, now it is not given"),
    ):
        record = {"stage": "07_manual_pruning", "asked": {"n_layers": before}, "inputs": []}
        asked = argparse.Namespace(output_dir=out, n_layers=now)
        assert runs.difference(record, "07_manual_pruning", asked, {}) == expected
    record = {"stage": "03_model_validation", "asked": {}, "inputs": []}
    parts = {"model_dir (its x)": runs.Input("m", "0")}
    said = runs.difference(record, "03_model_validation", argparse.Namespace(output_dir=out), parts)
    assert said == "it was made without the x of --model_dir"
    record = record_of(out)
    for broken in ({**record, "status": "failed"}, {**record, "outputs": [{"path": "result.txt"}]}):
        (out / "run.json").write_text(json.dumps(broken))
        assert not is_complete()


@pytest.mark.parametrize("rows", [{"outputs": [{"path": "a", "bytes": 1}]}, {"inputs": ["raw"]}, {"outputs": [3]}])
def test_a_record_with_broken_rows_is_no_record(tmp_path, rows):
    write_run(tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record_of(tmp_path / "out"), **rows}))
    with pytest.raises(InputError, match="is not a run record"):
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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("AF_UNIX path too long"), "TMPDIR"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "TMPDIR"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (MemoryError(), "out of memory"),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "dataloader_num_workers"),
    ],
)
def test_limits_of_the_machine_are_no_bugs(error, words, caplog):
    assert exit_code_of(error) == 3
    assert words in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (lambda folder: (folder / "file").mkdir(), "file: a file is where a folder must be"),
        (lambda folder: (folder / "file" / "x").write_text("x"), "file/x: a file is where a folder must be"),
        (lambda folder: (folder / "folder").rename(folder / "file"), "file: a file is where a folder must be"),
        (lambda folder: (folder / "folder").unlink(), "folder: a folder is where a file must be"),
        (lambda folder: write_text(folder / "folder", "x"), "folder: a folder is where a file must be"),
    ],
)
def test_a_file_in_place_of_a_folder_and_the_reverse_are_no_bugs(write, place, tmp_path, caplog):
    (tmp_path / "file").write_text("a user's own")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"File exists|directory") as caught:
        write(tmp_path)
    assert exit_code_of(caught.value) == 3
    assert f"{tmp_path}/{place}" in caplog.text and "Traceback" not in caplog.text


def test_ctrl_c_before_the_folder_is_open(caplog):
    assert exit_code_of(KeyboardInterrupt()) == 75
    assert "Traceback" not in caplog.text


STREAMS = """
import argparse, sys
from pathlib import Path
from utils.core import cli, runs

def run(args):
    for i in range(2000):
        print("a line on standard output", i)
    with runs.open_run("x", args, {}):
        (args.output_dir / "result").write_text("whole")
        list(runs.progress(range(3), 3, "reading", "lines"))

parser = cli.build_stage_parser("A stage.")
cli.add_common_arguments(parser, output_dir=None)
sys.exit(cli.run_stage(parser, run, ["--output_dir", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    "ends", [">&- 2>&-", "2>&-", "0<&- >&- 2>&-", "2>&1 | head -1; exit ${PIPESTATUS[0]}", "| true"]
)
def test_a_stage_outlives_those_who_read_what_it_prints(tmp_path, ends):
    script = tmp_path / "stage.py"
    script.write_text(STREAMS)
    tail = ends if "PIPESTATUS" in ends or "|" not in ends else f"{ends}; exit ${{PIPESTATUS[0]}}"
    command = f"PYTHONPATH={ROOT} {sys.executable} {script} {tmp_path / 'out'} {tail}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert record_of(tmp_path / "out")["status"] == "complete" and (tmp_path / "out" / "result").read_text() == "whole"
    assert "done in" in (tmp_path / "out" / "log.txt").read_text()


def test_letters_that_a_terminal_does_not_have(tmp_path):
    with (tmp_path / "terminal").open("w", encoding="latin-1") as terminal:
        streams.LastingStream(terminal).write("Žluna zelená\n")
    assert (tmp_path / "terminal").read_bytes() == b"\\u017dluna zelen\xe1\n"


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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "a list […]"),
        ("5", "a whole number"),
        ("0.5", "a number"),
        ('"x"', "a text"),
        ("null", "null"),
        ("true", "true or false"),
    ],
)
def test_a_json_file_of_another_kind_is_said_in_words(tmp_path, text, found):
    (tmp_path / "notes.json").write_text(text)
    with pytest.raises(InputError) as refused:
        read_json(tmp_path / "notes.json", dict, "make it again")
    assert str(refused.value) == f"{tmp_path / 'notes.json'} holds {found}; expected an object {{…}}; make it again"


def test_a_key_of_another_kind_in_run_json_is_said_in_words(tmp_path):
    write_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(record_of(tmp_path) | {"stage": 5}))
    with pytest.raises(InputError, match="is not a run record: 'stage' holds a whole number, expected a text"):
        runs.read_record(tmp_path)
