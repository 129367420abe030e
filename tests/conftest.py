"""Fixtures of all tests, and the number of examples of the fuzz tests."""

import contextlib
import gc
import logging
import os
from multiprocessing import forkserver
from pathlib import Path

import hypothesis
import pytest
from matplotlib.figure import Figure

# The hub's client reads this at its import. So no test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Each run of the tests has the same examples; `make drills` uses many other examples.
SETTINGS = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck), "database": None}
hypothesis.settings.register_profile("tests", max_examples=75, derandomize=True, **SETTINGS)
hypothesis.settings.register_profile("drills", max_examples=20_000, **SETTINGS)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests marked ``starts_first`` first: at the end of the run one process would be left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("starts_first") is None)


def pytest_collection_finish() -> None:
    """Exclude all objects of the imported packages from garbage collection, which would check them repeatedly."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_fork_server():
    """Fork all processes from a server that has imported what the stages import, whichever test is the first to fork.

    Python starts one server for all: with the modules that the first process asks for, found from its working folder.
    After a test of stage 01, which asks for little, each process of another stage would import PyTorch anew.
    """
    from experiments.stage_processes import IMPORTED

    server = forkserver._forkserver
    start_if_needed = server.ensure_running

    def ensure_running():
        server.set_forkserver_preload(IMPORTED)
        with contextlib.chdir(ROOT):
            start_if_needed()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "ensure_running", ensure_running)
        yield


@pytest.fixture(autouse=True)
def undeclared_outputs(request):
    """Fail if a stage writes a file that its ``OUTPUTS`` do not name; such a file would count as the user's."""
    from utils.core import runs

    said = []
    watch = logging.Handler()
    watch.emit = lambda record: said.append(record.getMessage()) if record.msg == runs.NOT_OURS else None
    logging.getLogger("utils.core.runs").addHandler(watch)
    yield
    logging.getLogger("utils.core.runs").removeHandler(watch)
    assert not said or request.node.get_closest_marker("users_files"), said


@pytest.fixture
def blank_figures(request, monkeypatch):
    """Compose all figures, but save empty files; only tests marked ``drawn`` save the drawing."""
    if not request.node.get_closest_marker("drawn"):
        monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: None)


@pytest.fixture(scope="module")
def quick_models():
    """Time every model a few times only, and draw no figure of a sweep."""
    from utils.models import latency
    from utils.pruning import drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MAX_PASSES", 1)
        patch.setattr(drawing, "draw_sweep", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """Return a command that runs a stage like Python, but without the time of the imports."""
    from tests.warm_python import WarmPython

    with WarmPython(tmp_path_factory.mktemp("warm") / "python") as python:
        yield python.command


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of real recordings and models; skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared with the real recordings and models is not on this machine")
    return SHARED
