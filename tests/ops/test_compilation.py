"""Where compiled functions are kept, and that they work where nothing can be written."""

import importlib
from pathlib import Path

import pytest
import torch

from splatlearn.ops import _neighbor_kernels, compilation, neighbors
from splatlearn.verbs import doctor

PACKAGE = Path(compilation.__file__).parents[1]
SOURCE = Path(__file__)


@pytest.fixture(autouse=True)
def fresh():
    compilation.cache_folder.cache_clear()
    yield
    compilation.cache_folder.cache_clear()


def test_beside_the_source_and_named_after_the_contents(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation.config, "CACHE_DIR", "")
    monkeypatch.setattr(compilation, "writable", lambda folder: True)
    folder = compilation.cache_folder(SOURCE)
    assert folder is not None and folder.parent == SOURCE.parent / "__pycache__"
    other = tmp_path / "constants.py"
    other.write_text("ONE = 1")
    first = compilation.cache_folder(SOURCE, other)
    other.write_text("ONE = 2")
    compilation.cache_folder.cache_clear()
    assert len({folder, first, compilation.cache_folder(SOURCE, other)}) == 3


def test_read_only_install_falls_back_to_the_user_and_then_to_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation.config, "CACHE_DIR", "")
    monkeypatch.setattr(compilation, "writable", lambda folder: tmp_path in folder.parents)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: tmp_path in Path(path, "x").parents)
    for variable, value, below in (("HOME", tmp_path, ".cache"), ("XDG_CACHE_HOME", tmp_path / "caches", "caches")):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(variable, str(value))
        compilation.cache_folder.cache_clear()
        folder = compilation.cache_folder(SOURCE)
        assert folder is not None and folder.parent == tmp_path / below / "splatlearn" / "kernels"
        assert dict(doctor._folders())["compiled kernels"].startswith(f"{folder.parent}")
    compilation.cache_folder.cache_clear()
    monkeypatch.setattr(compilation, "writable", lambda folder: False)
    assert compilation.cache_folder(SOURCE) is None


def test_neighbours_are_found_where_numba_has_no_cache_place(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "writable", lambda folder: False)
        importlib.reload(_neighbor_kernels)
        rows, counts = neighbors.farthest_point_sampling(torch.rand(20, 3), (20,), 4)
        assert counts == (4,) and len(set(rows.tolist())) == 4
    compilation.cache_folder.cache_clear()
    importlib.reload(_neighbor_kernels)


def test_nothing_else_asks_numba_for_a_cache():
    asking = [path.name for path in PACKAGE.rglob("*.py") if "cache=True" in path.read_text()]
    assert asking == ["compilation.py"]


def test_the_variable_of_numba_wins(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation.config, "CACHE_DIR", str(tmp_path))
    folder = compilation.cache_folder(SOURCE)
    assert folder is not None and folder.parent == tmp_path


def test_writable(tmp_path):
    assert compilation.writable(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    assert not compilation.writable(tmp_path / "file" / "below")
