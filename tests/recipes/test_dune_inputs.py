"""DUNE with input that is not as it should be, with groups of unequal sizes, and the shares that are logged."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from recipes.test_dune import TEACHERS, Stripes, build, by_hand, run
from splatlearn.cli import main
from splatlearn.data.image_groups import Photos
from splatlearn.encoders.published import create_encoder
from splatlearn.engine.checkpoint import load_encoder
from splatlearn.engine.trainable import Progress, Step
from splatlearn.errors import UserError
from splatlearn.recipes.dune import Dune
from splatlearn.verbs.pretrain import plan

THREE = (*TEACHERS, "multihmr.tiny")


def fill(folder: Path, count: int, size: int = 60) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def groups(sets: Mapping[str, Sequence[Path]]) -> str:
    """As the command line has them."""
    of = (f"{name}: {{{', '.join(f'{path}: {{reader: images}}' for path in paths)}}}" for name, paths in sets.items())
    return f"{{{', '.join(of)}}}"


def pretrain(folder: Path, *words: str, data: Path, steps: int = 3, batch: int = 4) -> int:
    fixed = ["--data", str(data), "--data.reader", "images", "--run", str(folder), "--steps", str(steps)]
    options = ["--train.batch", str(batch), "--train.device", "cpu"]
    return main(["pretrain", "dune", "--preset", "tiny", *fixed, *options, *words])


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("images")
    counts = {"generic": 10, "mast3r.tiny": 5, "timm.tiny": 6, "few": 3, "empty": 0}
    return {name: fill(base / name, count) for name, count in counts.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folders) -> Path:
    """A run of three steps on three groups."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    sets = {name: [folders[name]] for name in TEACHERS}
    assert pretrain(folder, "--recipe.groups", groups(sets), data=folders["generic"]) == 0
    return folder


class TestContinued:
    """A run that has begun is not continued with something else, and what is else is told."""

    def refusal(self, finished, folders, capsys, *words: str) -> str:
        before = (finished / "log.jsonl").read_bytes()
        assert pretrain(finished, *words, data=folders["generic"]) == 2
        assert (finished / "log.jsonl").read_bytes() == before
        return capsys.readouterr().err

    def test_with_other_teachers(self, finished, folders, capsys):
        sets = groups({"mast3r.tiny": [folders["mast3r.tiny"]]})
        told = self.refusal(
            finished, folders, capsys, "--teacher", "mast3r.tiny,multihmr.tiny", "--recipe.groups", sets
        )
        assert "the run was started with another configuration" in told
        assert "recipe_options.teachers.multihmr.tiny: absent -> {}" in told
        assert "recipe_options.teachers.timm.tiny: {} -> absent" in told

    def test_with_other_groups(self, finished, folders, capsys):
        sets = {"timm.tiny": [folders["timm.tiny"]], "mast3r.tiny": [folders["generic"]]}
        told = self.refusal(finished, folders, capsys, "--recipe.groups", groups(sets))
        assert f"recipe_options.groups.mast3r.tiny.{folders['generic']}: absent -> " in told
        assert f"recipe_options.groups.mast3r.tiny.{folders['mast3r.tiny']}: " in told
        assert "groups.timm.tiny" not in told


class TestEncoder:
    def test_a_run_of_another_size_has_its_positions_resized(self, finished, folders, tmp_path):
        words = "--encoder", str(finished), "--recipe.size", "84,84"
        assert pretrain(tmp_path / "second", *words, data=folders["generic"]) == 0
        assert load_encoder(tmp_path / "second").state_dict()["positions"].shape == (1, 1 + 6 * 6, 32)

    def test_a_run_of_another_kind(self, tmp_path, folders, capsys):
        (tmp_path / "points").mkdir()
        save_file(create_encoder("pointnet2.tiny").state_dict(), tmp_path / "points" / "encoder.safetensors")
        (tmp_path / "points" / "encoder.json").write_text('{"name": "pointnet2.tiny", "options": {}}')
        assert pretrain(tmp_path / "run", "--encoder", str(tmp_path / "points"), data=folders["generic"]) == 2
        assert "--encoder pointnet2.tiny: dune teaches encoders of images" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_weights_of_another_width(self, finished, folders, tmp_path, capsys):
        """As where a run's folder was put together by hand: every key is told."""
        newest = sorted((finished / "checkpoints").iterdir())[-1]
        shapes = {key: tuple(value.shape) for key, value in load_file(newest / "encoder.safetensors").items()}
        (tmp_path / "other").mkdir()
        shutil.copy(newest / "encoder.safetensors", tmp_path / "other")
        facts = json.loads((newest / "encoder.json").read_text())
        facts["options"] |= {"width": 64}
        (tmp_path / "other" / "encoder.json").write_text(json.dumps(facts))
        assert pretrain(tmp_path / "run", "--encoder", str(tmp_path / "other"), data=folders["generic"]) == 2
        told = capsys.readouterr().err
        assert "does not fit ViT" in told and f"{len(shapes)} mismatched" in told
        assert all(f"{key}: {shape} found, " in told for key, shape in shapes.items())
        assert not (tmp_path / "run").exists()


class TestGroups:
    def test_missing_and_empty_folders_are_told_together(self, folders, tmp_path):
        sets = f"{{mast3r.tiny: {{{tmp_path / 'nowhere'}: {{}}}}, timm.tiny: {{{folders['empty']}: {{}}}}}}"
        with pytest.raises(UserError) as caught:
            plan("dune", preset="tiny", recipe_options={"groups": sets})
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"--recipe.groups.mast3r.tiny: {tmp_path / 'nowhere'}: no such file or folder")
        assert second.startswith(f"--recipe.groups.timm.tiny: {folders['empty']}: no reader takes this")

    def test_so_are_folders_with_too_few_images(self, folders, tmp_path, capsys):
        sets = groups({"mast3r.tiny": [folders["few"]], "timm.tiny": [folders["empty"]]})
        assert pretrain(tmp_path / "run", "--recipe.groups", sets, data=folders["generic"]) == 2
        told = capsys.readouterr().err
        assert f"group 'mast3r.tiny': {folders['few']}: 3 images cannot be split for validation; 5 are needed" in told
        assert f"group 'timm.tiny': {folders['empty']}: no image found" in told
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("option", ["groups", "teachers"])
    def test_a_name_that_is_given_twice(self, folders, tmp_path, option, capsys):
        given = f"{{mast3r.tiny: {{{folders['generic']}: {{}}}}, mast3r.tiny: {{{folders['few']}: {{}}}}}}"
        assert pretrain(tmp_path / "run", f"--recipe.{option}", given, data=folders["generic"]) == 2
        assert f"--recipe.{option}: mast3r.tiny given twice, of which only the last would" in capsys.readouterr().err
        (tmp_path / "run.yaml").write_text(f"recipe:\n  {option}: {given}\n")
        assert pretrain(tmp_path / "run", "--config", str(tmp_path / "run.yaml"), data=folders["generic"]) == 2
        assert f"run.yaml: recipe.{option}.mast3r.tiny given twice" in capsys.readouterr().err

    def test_a_group_that_is_much_smaller_than_the_batch(self, folders, tmp_path):
        """Of five images one is held out; each of the four others is four times in a batch of 32."""
        sets = groups({"mast3r.tiny": [folders["mast3r.tiny"]]})
        assert pretrain(tmp_path / "run", "--recipe.groups", sets, data=folders["generic"], batch=32, steps=2) == 0
        assert all(np.isfinite(line["loss"]) and "skipped" not in line for line in log(tmp_path / "run"))

    @pytest.mark.parametrize("batch", [1, 2])
    def test_a_batch_that_is_smaller_than_the_groups(self, folders, tmp_path, batch):
        """They take turns over the steps: after six images each group had two."""
        sets = groups({name: [folders[name]] for name in TEACHERS})
        words = "--recipe.groups", sets, "--recipe.dropping.mode", "own+generic"
        steps = 6 // batch
        assert pretrain(tmp_path / "run", *words, data=folders["generic"], batch=batch, steps=steps) == 0
        lines = log(tmp_path / "run")
        assert all(np.isfinite(line["loss"]) and "skipped" not in line for line in lines)
        if batch == 1:
            shares = sorted(line["metrics"]["share/mast3r.tiny"] for line in lines)
            assert shares == [0, 0, 0.5, 0.5, 1, 1]


def record(recipe: Dune) -> list[tuple[Photos, list[list[float]]]]:
    """Batches of the steps to come, and the losses of each teacher for each image, written out."""
    told, forward = [], recipe.forward

    def recorded(batch: Photos, progress: Progress) -> Step:
        with torch.no_grad():
            told.append((batch, by_hand(recipe, batch).tolist()))
        return forward(batch, progress)

    recipe.forward = recorded  # type: ignore[method-assign]
    return told


def kept(mode: str, coins: Sequence[float], group: int, losses: Sequence[float]) -> list[bool]:
    """Whether each teacher teaches one image, by the rules of the paper."""
    teachers = range(len(losses))
    if mode == "lowest_loss":
        return [losses[t] == max(losses) or coins[t] >= 0.5 for t in teachers]
    if mode == "none" or (mode == "own+generic" and group == -1):
        return [True] * len(losses)
    return [t == group for t in teachers]


@pytest.mark.parametrize("mode", ["none", "lowest_loss", "own_data", "own+generic"])
def test_shares_and_losses_of_three_teachers_are_the_formulas(tmp_path, mode):
    """In own+generic no image is of the third teacher's domain."""
    own = {name: {"stripes": {}} for name in (THREE[1:] if mode == "own_data" else THREE[:2])}
    domain = THREE[0] if mode == "own_data" else ""
    recipe = build(teachers={name: {} for name in THREE}, dropping={"mode": mode}, groups=own, domain=domain)
    for sources in recipe.data.groups.values():
        sources[0].__dict__["_scenes"] = [Stripes(number) for number in range(20)]
    told = record(recipe)
    run(recipe, tmp_path / "run", 3, batch=6)
    for (batch, losses), line in zip(told, log(tmp_path / "run"), strict=True):
        coins, numbers = batch.images["coins"].tolist(), batch.images["group"].tolist()
        assert sorted(set(numbers)) == ([0, 1, 2] if mode == "own_data" else [-1, 0, 1])
        columns = list(zip(*losses))
        chosen = [kept(mode, *of) for of in zip(coins, numbers, columns)]
        total = sum(map(sum, chosen))
        for teacher, name in enumerate(THREE):
            share = sum(of[teacher] for of in chosen) / total
            assert line["metrics"][f"share/{name}"] == pytest.approx(share, abs=1e-6)
            assert line["metrics"][f"loss/{name}"] == pytest.approx(np.mean(losses[teacher]), rel=1e-4)
        summed = sum(loss * keep for of, column in zip(chosen, columns) for keep, loss in zip(of, column))
        assert line["loss"] == pytest.approx(summed / total, rel=1e-4)
    assert mode != "lowest_loss" or 6 < total < 18
