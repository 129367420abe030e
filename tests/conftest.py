"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

# Read by the hub's client when it is imported: a test never waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of real recordings and models; skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared with the real recordings and models is not on this machine")
    return SHARED
