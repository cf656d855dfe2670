"""What verbs have in common: where they may write."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from splatlearn.data.scene import Source
from splatlearn.errors import UserError
from splatlearn.verbs import check_parent
from splatlearn.verbs.demo import demo
from splatlearn.verbs.fit import plan_fit
from splatlearn.verbs.fit_scenes import fit_scenes


class TestParent:
    """A folder for the runs `a` and `b/c`, the latter in `b-c`."""

    def check(self, folder: Path) -> None:
        check_parent(folder, "--run", {"a": folder / "a", "b/c": folder / "b-c"})

    def test_nothing_there(self, tmp_path):
        (tmp_path / ".status.json.tmp").touch()
        for folder in (tmp_path, tmp_path / "new"):
            self.check(folder)

    def test_one_of_the_runs_is_there(self, tmp_path):
        for name in ("b-c", "of-another-time"):
            (tmp_path / name).mkdir()
        (tmp_path / "job-17.out").touch()
        self.check(tmp_path)

    @pytest.mark.parametrize("name", ["status.json", "status-1-of-2.json"])
    def test_all_failed_before(self, tmp_path, name):
        (tmp_path / name).write_text(json.dumps([{"name": "b/c", "state": "failed"}]))
        (tmp_path / "notes.txt").touch()
        self.check(tmp_path)

    @pytest.mark.parametrize("text", ["[]", "{}", "3", "no JSON", json.dumps([{"name": "x"}]), json.dumps([{}])])
    def test_something_else(self, tmp_path, text):
        (tmp_path / "status.json").write_text(text)
        with pytest.raises(UserError, match=r"none of these 2 runs, but status\.json"):
            self.check(tmp_path)

    def test_a_run(self, tmp_path):
        for name in ("a", "config.yaml"):
            (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="folder of one run, and here are 2"):
            self.check(tmp_path)

    def test_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="this is a file"):
            self.check(tmp_path / "file")

    def test_fit_and_demo_ask(self, tmp_path, monkeypatch):
        (tmp_path / "probes.json").touch()
        monkeypatch.setattr(Source, "scenes", lambda self: [SimpleNamespace(name=name, split="") for name in "ab"])
        with pytest.raises(UserError, match=r"--run .*none of these 2 runs, but probes"):
            fit_scenes(plan_fit("rooms.tiny"), tmp_path)
        with pytest.raises(UserError, match=r"--out .*none of these 4 runs, but probes"):
            demo(out=tmp_path)


def test_demo_tells_of_its_cache_before_it_compiles(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path / "file"))
    compiled = []
    monkeypatch.setattr("splatlearn.verbs.demo._compile", lambda: compiled.append(True))
    with pytest.raises(UserError, match="set SPLATLEARN_CACHE to another folder"):
        demo(out=tmp_path / "demo")
    assert not compiled and not (tmp_path / "demo").exists()
