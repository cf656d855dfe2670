"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("SPLATLEARN_SHARED", Path(__file__).parents[1] / ".." / "shared"))


def _shared(name: str) -> Path:
    folder = (SHARED / name).resolve()
    if not folder.is_dir():
        pytest.skip(f"real data absent: set SPLATLEARN_SHARED to a folder with {name}/")
    return folder


@pytest.fixture(scope="session", autouse=True)
def rooms_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rooms are made anew in every session, by the generator as it is now; processes of one session share them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "rooms-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLATLEARN_CACHE", str(folder))
        yield folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every kind of device; skips those that are not here."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of small real recordings and weights; skips where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Folder of numeric cases of the official networks; skips where it is absent."""
    return _shared("parity")
