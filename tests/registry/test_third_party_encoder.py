"""An encoder of another package, found by its entry point, passes the same checks as the built-in ones."""

from pathlib import Path

import pytest
import torch
from encoder_checks import CHECKS, check_save_and_load

from splatlearn.engine.checkpoint import load_encoder
from splatlearn.errors import ConfigError
from splatlearn.registry import encoders
from splatlearn.structures import Points
from splatlearn.verbs.pretrain import pretrain


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The toy encoder as an installed package: its module on the path, and the entry point beside it."""
    about = tmp_path / "toy_encoder-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-encoder\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[splatlearn.encoders]\noutside = toy_encoder:Toy\n")
    (tmp_path / "toy_encoder.py").write_text((Path(__file__).parent / "toy_encoder.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(encoders, "_families", dict(encoders._families))
    monkeypatch.delitem(__import__("sys").modules, "toy_encoder", raising=False)
    return "outside"


def test_found_by_name_and_listed(installed):
    assert installed in encoders.families()
    assert encoders.names("outside.*") == ["outside.tiny"]
    assert encoders.create("outside", {"width": 4}).channels == (4,)


def test_unknown_before_it_is_installed():
    with pytest.raises(ConfigError, match="unknown name 'outside'"):
        encoders.create("outside.tiny")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_passes_every_check(installed, check):
    check(encoders, installed)


def test_save_and_load(installed, tmp_path):
    check_save_and_load(encoders, installed, str(tmp_path / "weights.safetensors"))


def test_pre_trains_and_its_run_can_be_encoded_with(installed, tmp_path):
    summary = pretrain("gs3", preset="tiny", encoder=installed, run=tmp_path / "run", steps=3, seed=0)
    assert summary.facts["encoder"]["name"] == "outside.tiny"
    features = load_encoder(tmp_path / "run")(Points(xyz=torch.rand(50, 3), attributes={"color": torch.rand(50, 3)}))
    assert len(features.dense()) == 50
