"""Every preset of DUNE can take a step: its networks at full size without values, and its settings with tiny ones."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.test_dune import source
from splatlearn import registry
from splatlearn.config import configure
from splatlearn.data.image_groups import Photos
from splatlearn.encoders.base import FeatureMaps
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.loop import train
from splatlearn.engine.trainable import Progress
from splatlearn.recipes.dune import Dune, DuneConfig
from splatlearn.structures import Images
from splatlearn.teachers.base import Teacher, create_teacher
from splatlearn.verbs.pretrain import read_preset

PRESETS = ("paper-336", "paper-448", "imagenet-only", "unic", "small")
STUDENTS = [("paper-336", "vit.s14-336"), *((name, read_preset(f"dune.{name}").encoders[0]) for name in PRESETS)]


def build(preset: str, encoder: str, **options: Any) -> Dune:
    """The recipe of a preset, with untrained teachers."""
    settings = read_preset(f"dune.{preset}").recipe
    settings = {**settings, "teachers": {name: {"weights": "random"} for name in settings["teachers"]}, **options}
    student = registry.encoders.create(encoder)
    student.name = encoder
    return Dune(configure(DuneConfig, settings, "recipe"), student=student, source=source())


@cache
def shapes_of(name: str) -> Teacher:
    """A teacher without values, which looks at images of each size once: what it gives has no values either."""
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        for module in ("timm", "mast3r"):
            patch.setattr(f"splatlearn.teachers.{module}.tensors_digest", lambda network: "none")
        teacher = create_teacher(name, {"weights": "random"})
    look, seen = teacher.look, {}

    def look_once(pixels: Tensor) -> FeatureMaps:
        if pixels.shape not in seen:
            seen[pixels.shape] = look(pixels)
        return seen[pixels.shape]

    teacher.look = look_once  # type: ignore[method-assign]
    return teacher


@pytest.mark.parametrize(("preset", "encoder"), STUDENTS)
def test_networks_of_full_size_fit_each_other(preset, encoder, monkeypatch):
    """On a device that knows shapes only; as in evaluation, since the statistics of a batch are looked at."""
    monkeypatch.setattr("splatlearn.recipes.dune.create_teacher", lambda name, options: shapes_of(name))
    with torch.device("meta"):
        recipe = build(preset, encoder).eval()
        width, height = recipe.config.size
        given = {"group": torch.zeros(2, dtype=torch.int64), "coins": torch.zeros(2, len(recipe.teachers))}
        batch = Photos(names=("a", "b"), images=Images(images=torch.zeros(2, 3, height, width), attributes=given))
        step = recipe(batch, Progress(0, 1))
        step.losses["distillation"].backward()
    assert step.losses["distillation"].shape == ()
    assert not [name for name, value in recipe.named_parameters() if value.grad is None]


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_run_with_tiny_networks(preset, tmp_path):
    given = {name: value for name, value in read_preset(f"dune.{preset}").train.items() if name != "epochs"}
    given |= {"batch": 4, "steps": 2, "workers": 0, "validation_samples": 4}
    recipe = build(preset, "vit.tiny", teachers={"timm.tiny": {}, "mast3r.tiny": {}}, size=[56, 56])
    config = configure(TrainConfig, given, "train")
    summary = train(recipe, config, tmp_path / "run", settings={}, show=False)
    assert summary.steps == 2 and not summary.skipped
    assert np.isfinite(summary.metrics["val_explained"])
