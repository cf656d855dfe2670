"""`convert` on the command line: what is printed, what is refused."""

from pathlib import Path

import numpy as np
import pytest

import splatlearn
from splatlearn.cli import main
from splatlearn.splatting.files import read_raw
from splatting.files.writers import cloud, folder, make, spz


def test_what_is_printed(tmp_path, capsys):
    source = make("plain", cloud(20, 2), tmp_path)
    assert main(["convert", str(source), str(tmp_path / "b.splat")]) == 0
    text = capsys.readouterr().out
    for expected in ("b.splat: 20 Gaussians", "of degree 2", "lost: spherical harmonics of degree 1 to 2"):
        assert expected in text
    assert main(["convert", str(source), str(tmp_path / "c.ply")]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    np.testing.assert_array_equal(read_raw(tmp_path / "c.ply").sh, read_raw(source).sh)


def test_every_source_to_every_target(tmp_path):
    raw = cloud(20, 1)
    sources = [make(kind, raw, tmp_path) for kind in ("plain", "ascii", "compressed", "splat", "spz3")]
    for number, source in enumerate([*sources, folder(raw, tmp_path / "scene")]):
        for suffix in (".ply", ".splat", ".spz", ""):
            target = tmp_path / f"to{number}{suffix}"
            done = splatlearn.convert(source, target)
            assert (done.gaussians, len(read_raw(target))) == (20, 20)


def test_refusals(tmp_path, capsys):
    source = make("plain", cloud(), tmp_path)
    target = tmp_path / "b.splat"
    target.write_text("mine")
    assert main(["convert", str(source), str(target)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["convert", str(source), str(tmp_path / "c.compressed.ply")]) == 2
    assert "not written" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--overwrite"]) == 0
    assert len(read_raw(target)) == 20


@pytest.mark.parametrize("content", [b"", b"ply\n", spz(cloud())[:-9]])
def test_a_bad_source_leaves_nothing(tmp_path, capsys, content):
    for name in ("a.ply", "a.splat", "a.spz"):
        (tmp_path / name).write_bytes(content)
        assert main(["convert", str(tmp_path / name), str(tmp_path / "b.ply")]) == 2
        assert Path(name).name in capsys.readouterr().err
        assert not (tmp_path / "b.ply").exists()
