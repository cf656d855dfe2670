"""`prepare`: maps of a small world, continued, and what is refused."""

import shutil
from collections import namedtuple

import pytest
import torch

from splatlearn.cli import main
from splatlearn.data.rooms.scene import RoomsScene
from splatlearn.data.scene import Rejected, Source
from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.teachers.base import create_teacher
from splatlearn.teachers.prepared import PreparedMaps
from splatlearn.verbs.prepare import prepare

WORLD = {"rooms": 2, "frames": 3}
Usage = namedtuple("Usage", "total used free")


def run(out, **given):
    return prepare(
        "rooms.tiny", **{"teacher": "timm.tiny", "out": out, "size": (70, 56), "data_options": WORLD, **given}
    )


def test_every_view_and_its_reader(tmp_path, capsys):
    done = run(tmp_path / "maps", layer=0)
    assert (done.made, done.kept, done.skipped) == (6, 0, {})
    size = 6 * 5 * 4 * 32 * 2
    assert f"timm.tiny: 2 scenes, 6 views x 5x4 tokens x 32 channels x 2 bytes = {size / 1000:.1f} kB" in (
        capsys.readouterr().err
    )
    maps, teacher = PreparedMaps.read(tmp_path / "maps"), create_teacher("timm.tiny", {"layers": (0,)})
    maps.check(teacher, (70, 56))
    for scene in Source(name="rooms.tiny", options=WORLD).scenes():
        frames = scene.frames([2, 1], (70, 56))
        attached = maps.attach(frames, scene.name, [2, 1])
        assert torch.allclose(teacher(attached).levels[0], teacher(frames).levels[0], atol=5e-3)


def test_continued(tmp_path, monkeypatch):
    def unreadable(self, views, size):
        raise Rejected("unreadable", "x.jpg")

    out = tmp_path / "maps"
    frames = RoomsScene.frames
    monkeypatch.setattr(
        RoomsScene, "frames", lambda self, views, size: (unreadable if views == [1] else frames)(self, views, size)
    )
    first = run(out)
    assert first.made == 4 and len(first.skipped) == 2 and "left out 2 views" in str(first)
    assert "view 1: unreadable (x.jpg)" in str(first)
    stamp = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    monkeypatch.setattr(RoomsScene, "frames", frames)
    second = run(out)
    assert (second.made, second.kept) == (2, 4)
    assert all(path.stat().st_mtime_ns == stamp[path] for path in stamp)
    assert not list(out.rglob("*.partial"))
    with pytest.raises(UserError, match="holds other maps"):
        run(out, layer=0)


def test_nothing_readable(tmp_path, monkeypatch):
    def unreadable(self, views, size):
        raise Rejected("unreadable", "x.jpg")

    monkeypatch.setattr(RoomsScene, "frames", unreadable)
    with pytest.raises(BadData, match=r"no view could be prepared; unreadable \(x\.jpg\)"):
        run(tmp_path / "maps")


def test_too_little_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 0, 4_000))
    with pytest.raises(UserError, match=r"3\.8 kB are needed there and 4\.0 kB are free") as caught:
        run(tmp_path / "maps", size=(70, 28))
    assert "smaller --size" in str(caught.value)
    assert not (tmp_path / "maps").exists()


def test_a_size_that_does_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"images of 64x48 do not divide into patches of 14"):
        run(tmp_path / "maps", size=None)


def test_all_problems_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "maps", size=(0, 3), teacher="tim.tiny", data_options={"roms": 2}, device="nope")
    for expected in ("--size: a width", "unknown name 'tim'", "roms: unknown", "--device nope"):
        assert expected in str(caught.value)


def test_on_the_command_line(tmp_path, capsys):
    line = "prepare rooms.tiny --data.rooms 1 --data.frames 2 --teacher squeezenet.tiny --teacher.seed 3 --size 64,32"
    assert main([*line.split(), "--out", str(tmp_path / "maps")]) == 0
    assert "2 views made, 0 were there" in capsys.readouterr().out
    assert PreparedMaps.read(tmp_path / "maps").grid == (4, 2)
