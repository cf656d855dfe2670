"""Every preset that ships parses into its dataclasses, and the registry's tables say what the modules register."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from splatlearn import registry
from splatlearn.config import configure, to_options
from splatlearn.engine.config import TrainConfig
from splatlearn.errors import ConfigError
from splatlearn.verbs.pretrain import pick_encoder, plan, preset_folder, read_preset

REGISTRIES = (registry.encoders, registry.teachers, registry.recipes, registry.tasks, registry.readers)
NAMES = [(r, name) for r in REGISTRIES for family in r.builtin for name in r.names(f"{family}.*")]
RECIPES = [name for name in registry.recipes.names() if name.partition(".")[0] in registry.recipes.builtin]
FILES = sorted(preset_folder(registry.recipes.family("gs3").cls).rglob("*.yaml"))


@pytest.mark.parametrize(("parts", "name"), NAMES, ids=lambda value: value if isinstance(value, str) else value.kind)
def test_every_preset_fits_its_config(parts, name):
    config = parts.config(name)
    assert configure(type(config), to_options(config), name) == config


@pytest.mark.parametrize("parts", REGISTRIES, ids=lambda parts: parts.kind)
def test_builtin_tables_say_what_is_registered(parts):
    for name, known in parts.builtin.items():
        family = parts.family(name)
        assert known.presets == tuple(family.presets)
        assert family.cls.__module__.startswith(known.module)
        assert dataclasses.is_dataclass(family.config)
        assert known.summary.endswith(".")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_presets_fit(name):
    recipe, _, preset = name.partition(".")
    found = read_preset(name)
    registry.recipes.config(recipe, found.recipe)
    configure(TrainConfig, found.train, "train")
    assert found.encoders
    for encoder in found.encoders:
        assert "." in encoder
        registry.encoders.config(encoder)
    data = found.data.name or "rooms.tiny"
    job = plan(recipe, preset=preset, data=data, data_options=found.data.options)
    assert job.settings["preset"] == preset
    assert configure(TrainConfig, job.settings["train"], "train") == job.train
    assert not job.train.idle()


def test_every_file_is_a_preset():
    named = {tuple(name.split(".")) for name in RECIPES}
    assert {(file.parent.name, file.stem) for file in FILES} == named


PUBLISHED = [file for file in FILES if file.stem.startswith("paper") or file.stem in ("imagenet-only", "unic")]


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_every_number_of_a_paper_preset_names_its_source(file: Path):
    """A line with a value ends in a comment that names a paper, a code, or says that it is our own default."""
    for line in file.read_text().splitlines():
        content, _, comment = line.partition("#")
        if not re.search(r":\s*\S|^\s*-\s", content):
            continue
        words = r"GS3( eq\.)? ?[\d.]*|pixelSplat|VoteNet|Pointcept|ScaLR|DUNE|UNIC|our default"
        assert re.search(words, comment), f"{file.name}: no source in {line!r}"


def test_paper_and_config_defaults_are_told_apart():
    """What the paper preset does not name is the config's default, so both files together are the whole truth."""
    written = yaml.safe_load(next(file for file in FILES if file.stem == "paper").read_text())["recipe"]
    assert {"mask_ratio", "size", "gap", "lpips", "epipolar", "formulation"} <= set(written)


class TestPlan:
    def test_flags_win_over_the_preset(self):
        job = plan("gs3", preset="tiny", steps=7, seed=3, train_options={"batch": "1"}, recipe_options={"gap": "2"})
        assert (job.train.steps, job.train.seed, job.train.batch, job.config.gap) == (7, 3, 1, 2)
        assert job.settings["train"]["seed"] == 3
        assert "seed" not in job.settings
        assert job.settings["recipe_options"]["gap"] == 2

    def test_data_of_ones_own_drops_the_options_of_the_presets(self):
        assert plan("gs3", preset="tiny").settings["data"]["name"] == "rooms.tiny"
        job = plan("gs3", preset="tiny", data="rooms.demo")
        assert job.settings["data"]["name"] == "rooms.demo"
        assert job.settings["data"]["options"]["rooms"] == 32

    def test_options_of_data_are_resolved(self):
        typed, passed = (plan("gs3", preset="tiny", data_options={"rooms": rooms}) for rooms in ("7", 7))
        assert typed.settings == passed.settings
        assert typed.settings["data"]["options"] == to_options(registry.readers.config("rooms.tiny", {"rooms": 7}))

    def test_settings_make_the_same_job(self):
        job = plan("gs3", preset="tiny", data_options={"rooms": "7"}, encoder="pointnet2")
        parts = {f"{part}_options": job.settings[part]["options"] for part in ("encoder", "data")}
        names = {part: job.settings[part]["name"] for part in ("encoder", "data")}
        rest = {"recipe_options": job.settings["recipe_options"], "train_options": job.settings["train"]}
        assert plan("gs3", preset="tiny", **names, **parts, **rest).settings == job.settings

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            (None, "sparse_unet.tiny"),
            ("pointnet2", "pointnet2.tiny"),
            ("sparse_unet.small", "sparse_unet.small"),
            ("random:pointnet2", "pointnet2.tiny"),
        ],
    )
    def test_a_bare_family_is_the_presets_own(self, asked, expected):
        assert plan("gs3", preset="tiny", encoder=asked).encoder == expected

    def test_a_family_that_the_preset_does_not_name(self):
        assert pick_encoder("pointnet2", ("sparse_unet.tiny",)) == "pointnet2.small"

    def test_all_problems_of_all_parts_at_once(self):
        with pytest.raises(ConfigError) as caught:
            plan(
                "gs3",
                preset="tiny",
                data="roms",
                encoder="sparse_unet",
                encoder_options={"voxl": 1},
                recipe_options={"views": "two", "epipolar.laers": 1},
                train_options={"learning_rat": 1},
            )
        message = str(caught.value)
        for expected in (
            "--data roms",
            "--encoder.voxl: unknown; did you mean 'voxel'?",
            "--recipe.views: int expected, got 'two'",
            "--recipe.epipolar.laers: unknown; did you mean 'layers'?",
            "--train.learning_rat: unknown; did you mean 'learning_rate'?",
        ):
            assert expected in message

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"preset": "tinny"}, "--preset tinny: gs3 has none of that name; did you mean 'tiny'"),
            (
                {"encoder": "sparse_unt"},
                "--encoder sparse_unt: no such encoder or run folder; did you mean 'sparse_unet'",
            ),
            ({"preset": "paper"}, "--data: preset 'paper' of gs3 names none"),
            ({"steps": 0}, "--steps: 1 or more is needed, got 0"),
        ],
    )
    def test_unknown_names(self, given: dict[str, Any], message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            plan("gs3", **{"preset": "tiny", **given})

    def test_unknown_recipe(self):
        with pytest.raises(ConfigError, match="recipes: unknown name 'gs4'; did you mean 'gs3'"):
            plan("gs4")

    def test_weights_depend_on_the_seed_alone(self):
        import torch

        first, again, other = (plan("gs3", preset="tiny", seed=seed).build() for seed in (1, 1, 2))
        for (name, a), b in zip(first.state_dict().items(), again.state_dict().values()):
            assert torch.equal(a, b), name
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))
