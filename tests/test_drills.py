"""The drills run, and a fault that does harm is told."""

import random

import pytest

from drills import faults
from utils.core import runs
from utils.core.files import sha256_of_file, write_json, write_text


def test_a_row_for_each_drill_that_can_be_run(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.delenv(faults.IN_NAMESPACE, raising=False)
    words = ["--stages", "07", "--tries", "1", "--output_dir", str(tmp_path / "drills")]
    assert faults.main([*words, "--drills", "sigterm", "full_disk", "damaged_output", "emptied_checkpoint"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    # Nobody has made it root, so no disk is full; 07 trains nothing, so it has no checkpoints.
    assert [row.split(" | ")[0] for row in rows] == ["| SIGTERM", "| finished output damaged"]
    assert all("| 07 | 1 | 1 |" in row for row in rows)
    assert "full disk: left out" in caplog.text
    assert not any((tmp_path / "drills" / "tries").iterdir())


def test_what_was_not_survived_is_told_and_kept(tmp_path, capsys, caplog, monkeypatch):
    def harm(world, stage, folder):
        (folder / "evidence").touch()
        world.expect(4, "the output differs", stage, folder / "out")

    drills = [*faults.DRILLS, faults.Drill(harm, "harm", "here", "all")]
    monkeypatch.setattr(faults, "DRILLS", drills)
    words = ["--stages", "01", "--tries", "1", "--output_dir", str(tmp_path / "drills"), "--drills", "harm"]
    assert faults.main(words) == 1
    assert "| harm | here | 01 | 1 | 0 | all |" in capsys.readouterr().out
    assert "exit code 0, expected [4]" in caplog.text and "1 tries failed" in caplog.text
    assert (tmp_path / "drills" / "tries" / "harm-01-0" / "evidence").exists()


def test_a_folder_of_something_else_is_not_emptied(tmp_path, caplog):
    (tmp_path / "raw").mkdir()  # such as that of make demo
    assert faults.main(["--output_dir", str(tmp_path)]) == 2
    assert "holds other files" in caplog.text and (tmp_path / "raw").is_dir()


@pytest.fixture
def folders(tmp_path):
    pair = []
    for name in ("reference", "again"):
        folder = tmp_path / name
        folder.mkdir()
        write_text(folder / "table.csv", "a,latency_ms\n1,2\n3,4\n")
        write_text(folder / "best.json", '{"layers": [0, {"latency_ms": 5}]}')
        (folder / "model.safetensors").write_bytes(b"weights")
        outputs = [{"path": path.name, "bytes": 1, "sha256": "x"} for path in sorted(folder.iterdir())]
        record = {"schema_version": runs.SCHEMA_VERSION, "stage": "07_manual_pruning"}
        record |= {"status": "complete", "arguments": {}, "inputs": [], "attempts": 1}
        write_json(folder / runs.RECORD_NAME, {**record, "outputs": outputs})
        pair.append(folder)
    return pair


def test_runs_may_differ_in_what_is_measured_and_in_nothing_else(folders):
    reference, again = folders
    write_text(again / "table.csv", "a,latency_ms\n1,9\n3,9\n")
    write_text(again / "best.json", '{"layers": [0, {"latency_ms": 6}]}')
    assert faults.first_difference(reference, again) is None
    for name, content in (
        ("table.csv", "a,latency_ms\n1,2\n4,4\n"),
        ("best.json", '{"layers": [1, {"latency_ms": 5}]}'),
        ("model.safetensors", "weighty"),
    ):
        before = (again / name).read_bytes()
        write_text(again / name, content)
        assert faults.first_difference(reference, again).startswith(name)
        (again / name).write_bytes(before)
    record = runs.read_record(again)
    write_json(again / runs.RECORD_NAME, {**record, "outputs": record["outputs"][1:]})
    assert "best.json" in faults.first_difference(reference, again)


@pytest.mark.parametrize(
    ("name", "content", "is_whole"),
    [
        ("table.csv", "a,latency_ms\n1,7\n", True),
        ("table.csv", "a,latency_ms\n1", False),
        ("table.csv", "a,latency_ms\n2,7\n", True),
        ("table.csv", "", False),
        ("best.json", '{"layers"', False),
        ("model.safetensors", "weig", False),
        ("model.safetensors", "weights", True),
    ],
)
def test_half_files_are_known(name, content, is_whole, folders):
    write_text(folders[1] / name, content)
    assert faults.is_whole(folders[1] / name, folders[0] / name) == is_whole


def test_a_complete_folder_is_no_half_result(folders):
    stage = faults.BY_NUMBER["07"]
    record = runs.read_record(folders[1])
    outputs = [{**o, "bytes": (folders[1] / o["path"]).stat().st_size} for o in record["outputs"]]
    for output in outputs:
        output["sha256"] = sha256_of_file(folders[1] / output["path"])
    write_json(folders[1] / runs.RECORD_NAME, {**record, "outputs": outputs})
    with pytest.raises(faults.NotSurvived, match="is accepted as a result"):
        faults.check_no_result(stage, folders[1], folders[0])
    write_json(folders[1] / runs.RECORD_NAME, {**record, "status": "interrupted"})
    faults.check_no_result(stage, folders[1], folders[0])


def test_damage_is_one_bit_or_a_beginning():
    rng, data = random.Random(0), bytes(range(200))
    for _ in range(50):
        flipped = int.from_bytes(faults.flip(data, rng)) ^ int.from_bytes(data)
        assert flipped.bit_count() == 1
        cut = faults.truncate(data, rng)
        assert len(cut) < len(data) and data.startswith(cut)


def test_measured_names_are_those_of_the_tables():
    from utils.scores import summary

    measured = [name for name in summary.METRICS_COLUMNS if faults.MEASURED.search(name)]
    assert measured == [
        *("model_name", "latency_ms_median", "latency_ms_p95", "latency_front_end_ms", "real_time_factor"),
        *("peak_memory_mb", "git_commit", "throughput_clips_per_s", "latency_ms_low", "latency_ms_high"),
        *("load_average", "cpu_busy_share", "latency_doubt"),
    ]
