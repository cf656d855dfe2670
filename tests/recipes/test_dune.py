"""DUNE: whose an image is, what a step's loss is, two ranks, resuming, what the numbers mean, and that it learns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ranks import on_two_ranks
from splatlearn import registry
from splatlearn.config import configure
from splatlearn.data.image_groups import Photos
from splatlearn.data.scene import Scene, Source
from splatlearn.encoders.base import FeatureMaps
from splatlearn.engine.checkpoint import load_encoder
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.loop import train
from splatlearn.engine.report import preview
from splatlearn.engine.trainable import Progress
from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.recipes.dune import Dune, DuneConfig, _Fit
from splatlearn.teachers.base import create_teacher
from splatlearn.verbs.pretrain import plan, read_preset

START = Progress(0, 1)
TINY = read_preset("dune.tiny")
TEACHERS = ("timm.tiny", "mast3r.tiny")


class Stripes(Scene):
    """An image of stripes, each of another colour and width."""

    def __init__(self, number: int) -> None:
        self.name, self.number, self.split = f"image {number}", number, "val" if number % 5 == 4 else "train"

    def images(self, views: Sequence[int]) -> list[Tensor]:
        rng = np.random.default_rng(self.number)
        waves = np.sin(np.linspace(0, rng.uniform(4, 30), 80) + rng.uniform(0, 6))
        pixels = 0.5 + 0.5 * waves[None, None, :] * rng.uniform(0, 1, (3, 1, 1)) * np.ones((1, 64, 1))
        return [torch.from_numpy(pixels).float() for _ in views]


def source(name: str = "stripes", count: int = 20) -> Source:
    made = Source(name=name)
    made.__dict__["_scenes"] = [Stripes(number) for number in range(count)]
    return made


def build(encoder: str = "vit.tiny", seed: int = 0, **options: Any) -> Dune:
    given = {**TINY.recipe, **options}
    torch.manual_seed(seed)
    student = registry.encoders.create(encoder)
    student.name = encoder
    return Dune(configure(DuneConfig, given, "recipe"), student=student, source=source())


def batch_of(recipe: Dune, count: int = 4, first: int = 0) -> Photos:
    groups = recipe.data.scenes("train")
    scenes = [scene for row in zip(*(groups[name] for name in sorted(groups))) for scene in row]
    return Photos.pack([recipe.data.sample(scenes[i], np.random.default_rng(i)) for i in range(first, first + count)])


def run(recipe: Dune, folder: Path, steps: int = 8, **options: Any):
    config = configure(TrainConfig, {**TINY.train, "steps": steps, "checkpoint_every": 2, **options}, "train")
    return train(recipe, config, folder, settings={"recipe_options": {"teachers": recipe.config.teachers}}, show=False)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"groups": {"mast3r.tny": {"a": {}}}}, "'mast3r.tny' is no teacher; did you mean 'mast3r.tiny'"),
            ({"groups": {"generic": {}}}, "groups.generic: at least one data set is needed"),
            ({"domain": "dinov2"}, "domain: 'dinov2' does not teach"),
            ({"dropping": {"mode": "own_data"}}, "own_data learns nothing from generic images"),
            ({"projector_options": {"hidden": 8}}, "projector_options.hidden: unknown"),
            ({"teachers": {}}, "teachers: at least one is needed"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ConfigError, match=message):
            configure(DuneConfig, {**TINY.recipe, **options}, "recipe")

    def test_a_student_of_points(self):
        with pytest.raises(ConfigError, match=r"--encoder pointnet2\.tiny: dune teaches encoders of images"):
            build("pointnet2.tiny")

    def test_a_patch_that_does_not_divide_the_image(self):
        with pytest.raises(UserError, match=r"--recipe\.size: encoder vit\.tiny: images of 60x56 do not divide"):
            build(size=[60, 56])

    def test_the_second_stage_has_position_embeddings_of_its_size(self):
        recipe = build(size=[84, 84])
        assert recipe.student.config.size == 84  # pyright: ignore[reportAttributeAccessIssue]
        assert recipe.student.state_dict()["positions"].shape == (1, 1 + 6 * 6, 32)
        assert recipe(batch_of(recipe), START).losses["distillation"].isfinite()

    def test_images_that_are_not_square(self):
        recipe = build(size=[84, 56])
        assert recipe.grid == (6, 4)
        assert recipe(batch_of(recipe), START).losses["distillation"].isfinite()


class TestGroups:
    def folder(self, path: Path) -> str:
        path.mkdir()
        for number in range(6):
            Image.fromarray(np.full((60, 60, 3), 40 * number, np.uint8)).save(path / f"{number}.png")
        return str(path)

    def test_an_image_knows_whose_it_is(self, tmp_path):
        sets = {name: {self.folder(tmp_path / name): {"max_images": 5}} for name in ("mast3r.tiny", "generic")}
        recipe = build(groups=sets)
        scenes = recipe.data.scenes("train")
        assert {name: len(of) for name, of in scenes.items()} == {"generic": 16 + 4, "mast3r.tiny": 4}
        assert recipe.data.shares() == {"generic": 1.0, "mast3r.tiny": 1.0} and not recipe.validation.shares()
        numbers = {
            name: int(recipe.data.sample(of[0], np.random.default_rng(0)).images["group"])
            for name, of in scenes.items()
        }
        assert numbers == {"generic": -1, "mast3r.tiny": 1}

    def test_data_may_be_of_a_teachers_domain(self):
        recipe = build(domain="mast3r.tiny", dropping={"mode": "own_data"})
        step = recipe(batch_of(recipe), START)
        assert [float(step.metrics[f"share/{name}"]) for name in TEACHERS] == [0, 1]

    def test_the_command_line_names_them(self, tmp_path):
        given = f"{{mast3r.tiny: {{{self.folder(tmp_path / 'bodies')}: {{}}}}}}"
        config = plan("dune", preset="tiny", recipe_options={"groups": given}).config
        assert list(config.groups) == ["mast3r.tiny"]
        with pytest.raises(UserError, match="nowhere: no such file or folder"):
            plan("dune", preset="tiny", recipe_options={"groups": {"generic": {"nowhere": {}}}})


@pytest.fixture(scope="module")
def recipe() -> Dune:
    return build()


def by_hand(recipe: Dune, batch: Photos) -> Tensor:
    """(T B) losses, written out: batch statistics, a mean over tokens, then over kinds of token."""
    images, rows = batch.images, []
    maps = recipe.student(images.images)
    for _, teacher, branch in recipe.taught:
        projected, target, kinds = branch.projector(maps), teacher(images, recipe.grid), []
        pairs = [(projected.levels[-1].flatten(2).mT, target.levels[-1].flatten(2).mT)]
        if teacher.info.has_summary:
            pairs.append((projected.summary[:, None], target.summary[:, None]))
        for found, true in pairs:
            z = (true - true.mean((0, 1))) / true.flatten(0, 1).std(0).clamp_min(1e-3)
            cosine = functional.cosine_similarity(found, z, dim=2)
            smooth = functional.smooth_l1_loss(found, z, reduction="none").mean(2)
            kinds.append((0.5 * (1 - cosine) + 0.5 * smooth).mean(1))
        rows.append(sum(kinds) / len(kinds))
    return torch.stack(rows)


class TestStep:
    def test_the_loss_is_the_formulas(self, recipe):
        batch = batch_of(recipe)
        step = recipe.train()(batch, START)
        losses, kept, coins = by_hand(recipe, batch).detach(), [], batch.images["coins"]
        for image in range(4):
            worst = int(losses[:, image].argmax())
            kept += [(t, image) for t in range(2) if t == worst or coins[image, t] >= 0.5]
        assert 4 < len(kept) < 8
        expected = sum(float(losses[place]) for place in kept) / len(kept)
        assert step.losses["distillation"].item() == pytest.approx(expected, rel=1e-5)
        for number, name in enumerate(TEACHERS):
            assert float(step.metrics[f"loss/{name}"]) == pytest.approx(float(losses[number].mean()), rel=1e-5)
            share = sum(t == number for t, _ in kept) / len(kept)
            assert float(step.metrics[f"share/{name}"]) == pytest.approx(share)

    def test_without_dropping_all_have_equal_shares(self):
        recipe = build(dropping={"mode": "none"})
        batch = batch_of(recipe)
        step = recipe(batch, START)
        assert [float(step.metrics[f"share/{name}"]) for name in TEACHERS] == [0.5, 0.5]
        assert step.losses["distillation"].item() == pytest.approx(
            float(by_hand(recipe, batch).detach().mean()), rel=1e-5
        )

    def test_gradients_are_measured_every_so_often(self, recipe):
        batch = batch_of(recipe)
        found = [{key for key in recipe(batch, Progress(step, 30)).metrics if "gradient" in key} for step in (0, 1, 10)]
        assert found == [{f"gradient/{name}" for name in TEACHERS}, set(), {f"gradient/{name}" for name in TEACHERS}]

    def test_all_parameters_have_a_gradient_though_no_image_is_for_them(self):
        recipe = build(domain="timm.tiny", dropping={"mode": "own_data"})
        recipe(batch_of(recipe), START).losses["distillation"].backward()
        assert all(parameter.grad is not None for parameter in recipe.parameters())
        assert not any(bool(parameter.grad.any()) for parameter in recipe.branches[1].parameters())

    def test_teachers_are_no_part_of_what_is_saved_or_trained(self, recipe):
        assert not any("teacher" in name for name in recipe.state_dict())
        assert not any(target.requires_grad for of in recipe.targets(batch_of(recipe).images) for target in of.values())

    def test_running_statistics_follow_by_the_schedule(self):
        recipe = build().train()
        batch = batch_of(recipe)
        standardizer = cast(Any, recipe.branches[1]).standardizers["patch"]
        recipe(batch, START)
        rows = recipe.taught[1][1](batch.images, recipe.grid).levels[-1].flatten(2).mT.flatten(0, 1)
        assert torch.allclose(standardizer.mean, rows.mean(0), atol=1e-5)
        before = standardizer.mean.clone()
        recipe(batch_of(recipe, first=4), Progress(999_999, 1_000_000))
        assert torch.allclose(standardizer.mean, before, atol=2e-3) and not torch.equal(standardizer.mean, before)

    def test_unic(self):
        recipe = build(projector="ladder", projector_options={"hidden": 16}, standardizer={"mode": "ema"})
        step = recipe(batch_of(recipe), START)
        assert step.losses["distillation"].isfinite()
        assert recipe.evaluate([batch_of(recipe)])["val_loss"] > 0


class TestRotation:
    def test_it_is_fitted_once_before_the_first_step(self):
        recipe = build(standardizer={"mode": "phi-s"})
        batches = [batch_of(recipe, 8), batch_of(recipe, 8, first=8)]
        recipe.setup(iter(batches))
        for kind in ("patch", "cls"):
            rows = torch.cat([recipe.targets(batch.images)[0][kind].flatten(0, -2) for batch in batches])
            variances = rows.double().var(0)
            assert torch.allclose(rows.mean(0), torch.zeros(32), atol=1e-3)
            assert torch.allclose(variances, variances.mean().expand(32), rtol=1e-2)
            assert kind == "cls" or float(variances.mean()) == pytest.approx(1, rel=1e-2)  # there less than the least

    def test_it_needs_batches(self):
        with pytest.raises(ConfigError, match=r"train\.setup_batches: phi-s is fitted before the first step"):
            build(standardizer={"mode": "phi-s"}).setup([])

    def test_a_teacher_that_is_not_finite_is_named(self, monkeypatch):
        recipe = build(standardizer={"mode": "phi-s"})
        break_teacher(recipe, monkeypatch)
        with pytest.raises(BadData, match=r"teacher mast3r\.tiny: its features are not finite"):
            recipe.setup([batch_of(recipe)])


def break_teacher(recipe: Dune, monkeypatch: pytest.MonkeyPatch, calls: int = 1000) -> None:
    """The second teacher's first features are not finite."""
    teacher, told = recipe.taught[1][1], []
    look = teacher.look

    def broken(pixels: Tensor) -> FeatureMaps:
        told.append(1)
        maps = look(pixels)
        wrong = maps.levels[-1] * (float("nan") if len(told) <= calls else 1.0)
        return FeatureMaps(levels=(wrong,), summary=maps.summary)

    monkeypatch.setattr(teacher, "look", broken)


class TestNumbers:
    def fit(self, prediction: Tensor, target: Tensor) -> tuple[float, float]:
        score = _Fit()
        for part in range(2):
            score.add({"patch": prediction[part : part + 1]}, {"patch": target[part : part + 1]})
        loss, explained, *_ = score.numbers()
        return float(loss), float(explained)

    def test_the_mean_explains_nothing_and_the_truth_all(self):
        target = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0)) + 2
        assert self.fit(target, target) == pytest.approx((0, 1), abs=1e-6)
        assert self.fit(target.mean((0, 1)).expand(2, 30, 8), target)[1] == pytest.approx(0, abs=1e-6)
        assert self.fit(target.mean((0, 1)) + (target - target.mean((0, 1))) / 2, target)[1] == pytest.approx(0.75)
        assert self.fit(torch.ones(2, 30, 8), torch.ones(2, 30, 8))[1] == 0

    def test_each_teacher_and_their_mean(self, recipe):
        numbers = recipe.eval().evaluate([batch_of(recipe), batch_of(recipe, first=4)])
        for key in ("val_loss", "val_explained"):
            each = [numbers[f"{key}/{name}"] for name in TEACHERS]
            assert numbers[key] == pytest.approx(sum(each) / 2)

    def test_components_of_most_of_the_variance(self, recipe):
        batches = [batch_of(recipe), batch_of(recipe, first=4)]
        numbers = recipe.eval().evaluate(batches)
        for row, name in enumerate(TEACHERS):
            for key, find in (("components90", recipe.targets), ("components90_student", self.predictions(recipe))):
                patches = torch.cat([find(batch.images)[row]["patch"].flatten(0, 1) for batch in batches])
                variances = np.linalg.svd((patches - patches.mean(0)).detach().double().numpy())[1] ** 2
                most = int((variances.cumsum() / variances.sum() < 0.9).sum()) + 1
                assert numbers[f"{key}/{name}"] == most
        assert 1 <= numbers["components90_student"] <= 32

    def predictions(self, recipe: Dune):
        return lambda images: recipe.predict(recipe.student(images, recipe.grid))


class TestRun:
    def test_it_learns_is_exported_and_shown(self, tmp_path):
        recipe = build()
        summary = run(recipe, tmp_path / "run", 40)
        assert summary.metrics["val_explained"] > 0.3  # what is not trained is near 0
        lines = [line["loss"] for line in log(tmp_path / "run")]
        assert np.mean(lines[-10:]) < 0.8 * np.mean(lines[:10])
        assert load_encoder(tmp_path / "run").name == "vit.tiny"
        chart, *pictures = preview(recipe).items()
        pictures = dict(pictures)
        assert len(pictures) == 4 * 6 and all(picture.shape == (3, 56, 56) for picture in pictures.values())
        assert chart[0].startswith("Variance explained by principal components/64 patches of 4 validation images")
        assert {title.partition("/")[2] for title in pictures} >= {"photograph", "mast3r.tiny: teacher"}
        facts = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert facts["teachers"]["mast3r.tiny"]["source"] == "random"

    def test_stopped_and_continued_it_has_the_same_bits(self, tmp_path):
        whole, parts = build(), [build(), build()]
        run(whole, tmp_path / "whole")
        forward = parts[0].forward

        def interrupted(batch: Photos, progress: Progress):
            if progress.step == 5:
                raise KeyboardInterrupt
            return forward(batch, progress)

        parts[0].forward = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            run(parts[0], tmp_path / "parts")
        run(parts[1], tmp_path / "parts")
        lines = [
            [{k: v for k, v in line.items() if k not in ("time", "seconds")} for line in log(tmp_path / part)]
            for part in ("whole", "parts")
        ]
        assert lines[0] == lines[1]
        for name, value in whole.state_dict().items():
            assert torch.equal(value, parts[1].state_dict()[name]), name

    def test_other_teachers_do_not_continue_it(self, tmp_path):
        run(build(), tmp_path / "run", 2)
        with pytest.raises(UserError, match=r"another configuration.*(\n.*)*multihmr\.tiny"):
            run(build(teachers={"timm.tiny": {}, "multihmr.tiny": {}}), tmp_path / "run", 2)

    def test_a_step_whose_teacher_is_not_finite_is_skipped_and_named(self, tmp_path, monkeypatch):
        recipe = build()
        break_teacher(recipe, monkeypatch, calls=1)
        run(recipe, tmp_path / "run", 3)
        assert [line.get("skipped", False) for line in log(tmp_path / "run")] == [True, False, False]
        told = json.loads((tmp_path / "run" / "skipped" / "0.json").read_text())
        assert (told["metrics/finite/mast3r.tiny"], told["metrics/finite/timm.tiny"]) == ("0.0", "1.0")
        assert all(bool(value.isfinite().all()) for value in recipe.state_dict().values())

    def test_three_in_a_row_end_it(self, tmp_path, monkeypatch):
        recipe = build()
        break_teacher(recipe, monkeypatch)
        with pytest.raises(UserError, match="not finite in 3 steps in a row"):
            run(recipe, tmp_path / "run", 5)


def one_step(mode: str, rank: int | None) -> dict[str, Tensor]:
    """Loss, gradients and statistics of a step on eight images, or on a rank's half of them.

    With `own_data` each half is of one teacher's domain, so that a rank has nothing for the other's projector.
    """
    sets = {"domain": "timm.tiny", "groups": {"mast3r.tiny": {"others": {}}}} if mode == "own_data" else {}
    recipe = build(dropping={"mode": mode}, **sets).double().train()
    for sources in recipe.data.groups.values():
        sources[0].__dict__["_scenes"] = source().scenes()
    groups = recipe.data.scenes("train")
    scenes = [scene for name in sorted(groups) for scene in groups[name][: 8 // len(groups)]]
    samples = [recipe.data.sample(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    if rank is None:
        step = recipe(Photos.pack(samples), START)
    else:
        module = DistributedDataParallel(recipe, find_unused_parameters=True)
        step = module(Photos.pack(samples[4 * rank : 4 * rank + 4]), START)
    step.losses["distillation"].backward()
    found = {f"gradient of {name}": cast(Tensor, p.grad) for name, p in recipe.named_parameters()}
    found |= {**step.metrics, "loss": step.losses["distillation"], **dict(recipe.named_buffers())}
    return {f"{mode}: {name}": value.detach() for name, value in found.items()}


def steps(rank: int | None) -> dict[str, Tensor]:
    """Those of both modes."""
    return {**one_step("lowest_loss", rank), **one_step("own_data", rank)}


def test_two_ranks_equal_one():
    expected = steps(None)
    for found in on_two_ranks(steps):
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["timm.tiny", "mast3r.tiny"])
def test_the_tiny_teachers_are_as_the_tests_take_them(name):
    assert create_teacher(name).info.has_summary == (name == "timm.tiny")
