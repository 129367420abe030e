"""The plan of the house: which wing imports which, and that all wings stand in it."""

import ast

from tests.stages import ROOT

# A wing imports itself and wings of a lower number.
WINGS = {"core": 0, "figures": 1, "data": 1, "scores": 2, "models": 3, "layers": 4, "field": 4, "pruning": 5}


def imported_rooms(path):
    """Return the modules of `utils` that a file names in its imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "utils")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utils":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_wing_imports_only_wings_to_its_left():
    paths = sorted((ROOT / "utils").glob("*/*.py"))
    assert {path.parent.name for path in paths} == set(WINGS)
    wrong = [
        f"{path.relative_to(ROOT)} imports {room}"
        for path in paths
        for room in imported_rooms(path)
        if (wing := room.split(".")[1]) != path.parent.name and WINGS[wing] >= WINGS[path.parent.name]
    ]
    assert not wrong, wrong


def test_a_file_format_has_one_room():
    """The name of a file stands in the room that writes and reads it, and nowhere else."""
    rooms = {
        "run.json": "core/records",
        "label_mappings.json": "data/clips",
        "clips-*.parquet": "data/clips",
        "recordings.csv": "data/recordings_table",
        "training_recordings.json": "models/training_history",
        "predictions.parquet": "scores/predictions",
        "review.html": "figures/review_page",
        "pruning.csv": "pruning/pruning_table",
        "best.json": "pruning/best",
        "budget.csv": "pruning/budget",
        "detections.csv": "field/detections",
        "scores.parquet": "field/scores_table",
    }
    for path in (ROOT / "utils").rglob("*.py"):
        room = path.relative_to(ROOT / "utils").with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in rooms:
                assert rooms[node.value] == room, f"{path}:{node.lineno} names {node.value}"


def test_only_scripts_start_from_the_outside():
    """No room of the house reaches out to the stages, experiments, benchmarks or tests."""
    for path in (ROOT / "utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("experiments", "benchmarks", "drills", "tests"), path
