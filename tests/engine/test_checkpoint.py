"""Checkpoints are whole or refused by name; run folders belong to one configuration."""

import fcntl
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

from engine.toys import ToyEncoder, ToyEncoderConfig
from splatlearn.engine import checkpoint
from splatlearn.engine.checkpoint import (
    RunFolder,
    describe_encoder,
    load_checkpoint,
    load_encoder,
    newest_checkpoint,
    recover,
    save_checkpoint,
    warn_about_changes,
)
from splatlearn.engine.logs import JsonLines
from splatlearn.errors import BadData, UserError

TENSORS = {"model": {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, "optimizer": {}}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, {"step": step, "where": Path("x")}, TENSORS, keep=keep)


class TestCheckpoint:
    def test_round_trip(self, tmp_path):
        checkpoint = load_checkpoint(save(tmp_path, 7))
        assert checkpoint.state == {"step": 7, "where": "x"}
        assert torch.equal(checkpoint.tensors["model"]["a"], TENSORS["model"]["a"])
        assert checkpoint.tensors["optimizer"] == {}

    def test_shared_and_strided_tensors(self, tmp_path):
        base = torch.arange(6.0).view(2, 3)
        tensors = {"model": {"a": base, "b": base, "t": base.t()}}
        loaded = load_checkpoint(save_checkpoint(tmp_path, {"step": 0}, tensors)).tensors["model"]
        assert torch.equal(loaded["t"], base.t())
        assert torch.equal(loaded["a"], loaded["b"])

    def test_keeps_the_newest(self, tmp_path):
        for step in (5, 10, 15, 20):
            save(tmp_path, step, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020"]

    def test_leftovers_of_a_kill(self, tmp_path):
        save(tmp_path, 5)
        (tmp_path / ".step-00000010.tmp").mkdir()
        (tmp_path / ".step-00000010.tmp" / "model.safetensors").write_text("half")
        assert newest_checkpoint(tmp_path).name == "step-00000005"
        save(tmp_path, 10)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000010"]

    @pytest.mark.parametrize("kill", ["rename", "rmtree"])
    def test_killed_while_the_only_one_takes_its_own_place(self, tmp_path, monkeypatch, kill):
        def killed(*_: object):
            raise KeyboardInterrupt

        save(tmp_path, 10, keep=1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            hide = checkpoint._hide
            patch.setattr(checkpoint, "_hide", lambda path: (hide(path), killed()) if kill == "rename" else hide(path))
            patch.setattr(shutil, "rmtree", killed)
            save(tmp_path, 10, keep=1)
        recover(tmp_path)
        assert newest_checkpoint(tmp_path).name == "step-00000010"
        save(tmp_path, 10, keep=1)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]

    def test_none(self, tmp_path):
        assert newest_checkpoint(tmp_path / "checkpoints") is None


DAMAGE = {
    "flipped": (lambda f: (f / "model.safetensors").write_bytes(b"x"), "model.safetensors is damaged"),
    "missing": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "edited": (lambda f: (f / "state.json").write_text('{"step": 9}'), "state.json is damaged"),
    "unfinished": (lambda f: (f / "manifest.json").unlink(), "not finished"),
    "half a manifest": (lambda f: (f / "manifest.json").write_text('{"sha'), "no readable manifest.json"),
}


@pytest.mark.parametrize("harm", DAMAGE)
class TestDamage:
    def test_refused_by_name(self, tmp_path, harm):
        damage, message = DAMAGE[harm]
        folder = save(tmp_path, 5)
        damage(folder)
        with pytest.raises(UserError, match=rf"step-00000005: .*{message}"):
            newest_checkpoint(tmp_path)

    def test_the_one_before_is_used(self, tmp_path, harm):
        damage, message = DAMAGE[harm]
        save(tmp_path, 5)
        damage(save(tmp_path, 10))
        with pytest.warns(UserWarning, match=f"step-00000010.*{message}.*step-00000005 is used"):
            assert newest_checkpoint(tmp_path).name == "step-00000005"
        with pytest.warns(UserWarning):  # a whole one is never removed in favour of a damaged one
            save(tmp_path, 7, keep=1)
            assert newest_checkpoint(tmp_path).name == "step-00000007"


SETTINGS = {"recipe": "toy", "size": (4, 3), "train": {"steps": 3, "learning_rate": 1e-5, "workers": 0}}


def begin(folder: RunFolder) -> None:
    with folder.lock:
        folder.claim("auto")
        folder.begin()


class TestRunFolder:
    def make(self, path: Path, **train: object) -> RunFolder:
        return RunFolder(path, {**SETTINGS, "train": {**SETTINGS["train"], **train}})

    def test_config_comes_back(self, tmp_path):
        folder = self.make(tmp_path / "a" / "run")
        with folder.lock:
            folder.claim("never")
            folder.begin()
        stored = yaml.safe_load((folder.path / "config.yaml").read_text())
        assert stored == {**SETTINGS, "size": [4, 3]}
        folder.check("auto")

    def test_never(self, tmp_path):
        begin(self.make(tmp_path))
        self.make(tmp_path).check("never")  # nothing to continue yet
        (tmp_path / "log.jsonl").write_text("{}\n")
        with pytest.raises(UserError, match=r"the run exists and --resume is never"):
            self.make(tmp_path).check("never")

    def test_diff(self, tmp_path):
        begin(self.make(tmp_path))
        (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
        self.make(tmp_path, workers=4).check("auto")
        with pytest.raises(UserError, match=r"train\.learning_rate: 1e-05 -> 0\.1\n  train\.steps: 3 -> 4"):
            self.make(tmp_path, steps=4, learning_rate=0.1).check("auto")

    def test_settings_of_a_run_that_never_began_are_replaced(self, tmp_path):
        begin(self.make(tmp_path))
        other = self.make(tmp_path, steps=4)
        begin(other)
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["steps"] == 4

    @pytest.mark.parametrize("text", ["a: 1", "train: {}"])
    def test_a_config_file_of_something_else_is_kept(self, tmp_path, text):
        (tmp_path / "config.yaml").write_text(text)
        if text == "train: {}":
            (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(UserError, match="another configuration"):
            self.make(tmp_path).check("auto")

    def test_one_process_at_a_time(self, tmp_path):
        first, second = self.make(tmp_path), self.make(tmp_path)
        with first.lock:
            first.claim("auto")
            with pytest.raises(UserError, match="another process runs here"), second.lock:
                second.claim("auto")
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert not list(tmp_path.iterdir())
        begin(second)

    def test_of_two_that_begin_one_makes_the_folder(self, tmp_path):
        first, second = self.make(tmp_path / "run"), self.make(tmp_path / "run")
        with first.lock, second.lock:
            first.claim("auto")
            second.claim("auto")
            first.begin()
            with pytest.raises(UserError, match="another process began here meanwhile"):
                second.begin()

    def test_a_lock_whose_file_its_holder_removed_keeps_nobody_out(self, tmp_path, monkeypatch):
        flock, folder = fcntl.flock, self.make(tmp_path)

        def late(file, operation):
            monkeypatch.setattr(fcntl, "flock", flock)
            (tmp_path / ".lock").unlink()
            flock(file, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with folder.lock, self.make(tmp_path).lock as other:
            folder.lock.take()
            with pytest.raises(UserError, match="another process runs here"):
                other.take()

    def test_a_hidden_checkpoint_is_found_again(self, tmp_path):
        begin(self.make(tmp_path))
        path = save(tmp_path / "checkpoints", 3)
        path.rename(path.with_name(f".{path.name}.tmp"))
        begin(self.make(tmp_path))
        assert newest_checkpoint(tmp_path / "checkpoints") == path

    def test_without_locks_of_the_system(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError("no locks available")))
        with pytest.warns(UserWarning, match=r"cannot be locked \(no locks available\)"):
            begin(self.make(tmp_path))
        assert (tmp_path / "config.yaml").exists()

    def test_not_a_run(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        for resume in ("auto", "never"):
            with pytest.raises(UserError, match=r"exists and is no run.*thesis\.tex.*nothing is overwritten"):
                self.make(tmp_path).check(resume)

    def test_killed_at_birth(self, tmp_path):
        (tmp_path / ".config.yaml.tmp").write_text("recipe: to")
        self.make(tmp_path).check("never")

    def test_a_file(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(UserError, match="this is a file"):
            self.make(tmp_path / "run").check("auto")

    def test_broken_config(self, tmp_path):
        (tmp_path / "config.yaml").write_text("a: [1")
        with pytest.raises(BadData, match=r"config\.yaml: not readable as YAML"):
            self.make(tmp_path).check("auto")


class TestEnvironment:
    def test_says_what_differs(self):
        then, now = {"threads": 2, "versions": {"torch": "1"}}, {"threads": 1, "versions": {"torch": "1"}}
        with pytest.warns(UserWarning, match=r"not bit for bit.*threads: 2 -> 1"):
            warn_about_changes(then, now)

    def test_says_nothing(self, recwarn):
        warn_about_changes({"threads": 2}, {"threads": 2, "ranks": 1})
        assert not recwarn


class TestEncoder:
    def write(self, run: Path) -> ToyEncoder:
        torch.manual_seed(1)
        encoder = ToyEncoder(ToyEncoderConfig(inputs=("color", "normal"), width=6))
        encoder.stem = torch.nn.Linear(6, 6)
        save_checkpoint(run / "checkpoints", {"step": 1}, {"encoder": encoder.state_dict()}, describe_encoder(encoder))
        return encoder

    def test_round_trip(self, tmp_path):
        encoder = self.write(tmp_path)
        for place in (tmp_path, tmp_path / "checkpoints" / "step-00000001"):
            loaded = load_encoder(place)
            assert not loaded.training
            assert loaded.config == encoder.config
            assert loaded.name == "toy"
            assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), encoder.parameters(), strict=True))

    def test_no_encoder(self, tmp_path):
        with pytest.raises(UserError, match="no encoder here"):
            load_encoder(tmp_path)

    def test_does_not_fit(self, tmp_path):
        self.write(tmp_path)
        folder = tmp_path / "checkpoints" / "step-00000001"
        description = json.loads((folder / "encoder.json").read_text())
        description["options"]["width"] = 4
        (folder / "encoder.json").write_text(json.dumps(description))
        with pytest.raises(UserError, match=r"encoder\.json is damaged"):
            load_encoder(tmp_path)
        with pytest.raises(UserError, match="does not fit"):
            load_encoder(folder)

    @pytest.mark.parametrize("text", ["{", "[]", '{"name": "toy"}', '{"name": "toy", "options": 3}'])
    def test_a_description_that_is_none(self, tmp_path, text):
        (tmp_path / "encoder.json").write_text(text)
        (tmp_path / "encoder.safetensors").write_bytes(b"")
        with pytest.raises(BadData, match=r"encoder\.json: not the description of an encoder"):
            load_encoder(tmp_path)

    def test_nameless(self):
        encoder = ToyEncoder(ToyEncoderConfig())
        encoder.name = ""
        with pytest.raises(UserError, match=r"has no name; make encoders by registry\.encoders\.create"):
            describe_encoder(encoder)


class TestJsonLines:
    def test_cut(self, tmp_path):
        log = JsonLines(tmp_path / "log.jsonl")
        for step in range(5):
            log.append({"step": step, "loss": float("nan") if step == 1 else step / 3})
        with log.path.open("a") as file:
            file.write('{"step": 5, "lo')
        whole = log.path.read_text().splitlines()
        log.cut(3)
        assert log.path.read_text().splitlines() == whole[:3]
        assert [record["loss"] for record in log.records()] == [0.0, None, 2 / 3]

    def test_half_a_line_is_left_out(self, tmp_path):
        (tmp_path / "log.jsonl").write_text('{"step": 0}\n{"st')
        assert list(JsonLines(tmp_path / "log.jsonl").records()) == [{"step": 0}]

    def test_no_file(self, tmp_path):
        log = JsonLines(tmp_path / "log.jsonl")
        log.cut(0)
        log.sync()
        assert list(log.records()) == []
