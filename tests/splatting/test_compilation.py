"""Where compiled kernels are kept."""

from pathlib import Path

import pytest

from splatlearn.splatting.kernels import compilation
from splatlearn.splatting.kernels.compilation import config


@pytest.fixture(autouse=True)
def fresh():
    compilation.cache_folder.cache_clear()
    yield
    compilation.cache_folder.cache_clear()


def test_beside_the_package_and_named_after_the_sources(monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", "")
    folder = compilation.cache_folder()
    assert folder is not None and folder.parent == compilation.SOURCES / "__pycache__"
    assert folder.name.startswith("splatlearn-")


def test_read_only_install_falls_back_to_the_user_and_then_to_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(compilation, "writable", lambda folder: tmp_path in folder.parents)
    folder = compilation.cache_folder()
    assert folder is not None and folder.parent == tmp_path / ".cache" / "splatlearn" / "kernels"
    compilation.cache_folder.cache_clear()
    monkeypatch.setattr(compilation, "writable", lambda folder: False)
    assert compilation.cache_folder() is None
    monkeypatch.setattr(compilation.numba, "njit", lambda **options: lambda function: options)
    assert "cache" not in compilation.kernel(len)


def test_the_variable_of_numba_wins(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    folder = compilation.cache_folder()
    assert folder is not None and folder.parent == tmp_path


def test_writable(tmp_path):
    assert compilation.writable(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    assert not compilation.writable(tmp_path / "file" / "below")
