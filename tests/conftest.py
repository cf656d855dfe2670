"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SPLATLEARN_SHARED", Path(__file__).parents[1] / ".." / "shared"))


def _shared(name: str) -> Path:
    folder = (SHARED / name).resolve()
    if not folder.is_dir():
        pytest.skip(f"real data absent: set SPLATLEARN_SHARED to a folder with {name}/")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real recordings and weights; skips where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Folder of numeric cases of the official networks; skips where it is absent."""
    return _shared("parity")
