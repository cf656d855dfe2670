"""Parts of a fit: held-out views, kept photographs, first Gaussians, corrections of cameras and exposure."""

import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
import torch

from splatlearn.data.scene import Rejected, Scene
from splatlearn.engine.trainable import Progress
from splatlearn.errors import BadData, ConfigError, MissingData, UserError
from splatlearn.splatting.optimize import ChainOptions
from splatlearn.splatting.render import DEPTHS, RenderOptions
from splatlearn.structures import Cameras, Frames, Points
from splatlearn.tasks.fit_corrections import Corrections, exposed, moved
from splatlearn.tasks.fit_splits import joined
from splatlearn.tasks.fit_start import start
from splatlearn.tasks.fit_views import FitData, Photographs, Shots, held_out
from splatlearn.tasks.fitting import FitConfig, SceneFit


class Wall(Scene):
    """A checkered wall at z = 2, filmed by a camera that slides along x; every frame counts how often it was read."""

    def __init__(self, views: int = 9, depth: bool = True, cloud: bool = False, broken: tuple[int, ...] = ()) -> None:
        self.name, self.depth, self.cloud, self.broken = "wall", depth, cloud, broken
        self.views, self.reads = views, Counter()

    @property
    def cameras(self) -> Cameras:
        pose = torch.eye(4).repeat(self.views, 1, 1)
        pose[:, 0, 3] = -0.1 * torch.arange(self.views)
        intrinsics = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]]).repeat(self.views, 1, 1)
        frame = {"frame": 10 * torch.arange(self.views)}
        return Cameras(world_to_camera=pose, intrinsics=intrinsics, width=40, height=30, attributes=frame)

    def frames(self, views, size) -> Frames:
        self.reads.update(views)
        if set(views) & set(self.broken):
            raise Rejected("an image cannot be read", f"{self.name}: {views}")
        cameras = self.cameras.rows(torch.tensor(list(views))).resize(*size)
        depth = torch.full((len(views), size[1], size[0]), 2.0)
        depth[:, :, :3] = 0
        xyz = cameras.unproject(torch.full_like(depth, 2.0))
        shade = 0.5 + 0.5 * (4 * xyz[..., 0]).sin() * (4 * xyz[..., 1]).sin()
        images = torch.stack([shade, 1 - shade, torch.full_like(shade, 0.3)], 1)
        return Frames(images=images, cameras=cameras, attributes={"depth": depth} if self.depth else {})

    def points(self) -> Points:
        if not self.cloud:
            raise MissingData("no cloud")
        rng = np.random.default_rng(0)
        xyz = np.c_[rng.uniform(-1, 2, (500, 2)), np.full(500, 2.0)].astype(np.float32)
        return Points(xyz=torch.from_numpy(xyz), attributes={"color": torch.rand(500, 3)})


class Blind(Wall):
    """A wall whose sensor measures nothing."""

    def frames(self, views, size) -> Frames:
        frames = super().frames(views, size)
        frames["depth"].zero_()
        return frames


def data(scene: Scene, holdout: str = "every:4", side: int = 40) -> FitData:
    return FitData(photographs=Photographs(scene, side, 100.0), holdout=holdout)


def samples(fit: SceneFit, split: str) -> Iterator[Shots]:
    """Every view that can be decoded."""
    for view in fit.data.scenes(split)["all"]:
        with suppress(Rejected):
            yield fit.data.sample(view, np.random.default_rng(0))


def small(**options) -> FitConfig:
    return FitConfig(**{"gaussians": 300, "side": 40, "holdout": "every:4", **options})


class TestHoldout:
    @pytest.mark.parametrize(
        ("rule", "expected"),
        [("every:4", [0, 4, 8]), ("every:8", [0, 8]), ("block:3", [4, 5, 6]), ("block:1", [5]), ("none", [])],
    )
    def test_rules(self, rule, expected):
        assert np.flatnonzero(held_out(rule, 11)).tolist() == expected

    @pytest.mark.parametrize("rule", ["every:1", "every", "block:0", "each:3", "every:-2", "every:two", ""])
    def test_no_rule(self, rule):
        with pytest.raises(ConfigError, match=r"every:N \(N >= 2\), block:N \(N >= 1\) or none"):
            held_out(rule, 10)

    def test_too_few_left(self):
        with pytest.raises(BadData, match="block:9 leaves 1 of 10 views"):
            held_out("block:9", 10)

    def test_none_looks_at_views_that_are_trained(self):
        views = data(Wall(), "none")
        assert views.trained == list(range(9))
        assert views.validated == [0, 8]

    def test_splits_share_no_view(self):
        views = data(Wall())
        names = {split: {scene.name for scene in views.scenes(split)["all"]} for split in ("train", "val")}
        assert len(names["train"]) == 6
        assert len(names["val"]) == 3
        assert not names["train"] & names["val"]

    def test_nearest(self):
        assert [data(Wall()).nearest(view, 2.0)[0] for view in (0, 4, 8)] == [1, 3, 7]
        assert data(Wall()).nearest(8, 2.0) == [7, 6, 5, 3, 2, 1]


class Part(Wall):
    """One split of a wall, as a reader gives it."""

    def __init__(self, split: str, views: int, name: str = "wall") -> None:
        super().__init__(views, cloud=split == "train")
        self.split, self.name = split, f"{name}/{split}"
        self.read: list[tuple[int, ...]] = []

    def frames(self, views, size) -> Frames:
        self.read.append(tuple(views))
        return super().frames(views, size)


class TestSplits:
    """What the source calls test views is measured, so that numbers can be compared with published ones."""

    def test_test_is_measured_and_train_fitted_to(self):
        test, train, val = parts = [Part("test", 3), Part("train", 4), Part("val", 2)]
        (scene,) = joined(parts)
        assert (scene.name, len(scene.cameras), len(scene.points())) == ("wall", 9, 500)
        assert "the source states a split of its views: 3 test, 4 train, 2 val" in scene.notes
        views = data(scene, "auto")
        assert (views.trained, views.held_out, views.validated) == ([3, 4, 5, 6], [0, 1, 2], [0, 1, 2])
        for view, part, row in ((1, test, 1), (3, train, 0), (8, val, 1)):
            frames = scene.frames([view], (40, 30))
            assert part.read == [(row,)]
            torch.testing.assert_close(frames.cameras.world_to_camera[0], part.cameras.world_to_camera[row])
        assert scene.frames([0, 8], (40, 30)).counts == (2,)
        facts = SceneFit(small(holdout="auto"), scene, 0).describe()
        assert facts["views"] == {"train": 4, "held_out": 3}

    def test_val_without_test(self):
        views = data(joined([Part("train", 4), Part("val", 2)])[0], "auto")
        assert (views.trained, views.held_out) == ([0, 1, 2, 3], [4, 5])

    def test_another_rule_goes_over_all_views(self):
        views = data(joined([Part("train", 6), Part("test", 2)])[0], "every:4")
        assert views.held_out == [0, 4]

    def test_without_a_split(self):
        assert data(Wall(), "auto").held_out == data(Wall(), "every:8").held_out == [0, 8]

    def test_too_few(self):
        with pytest.raises(BadData, match="split has 1 view to fit to"):
            data(joined([Part("train", 1), Part("test", 5)])[0], "auto").trained  # noqa: B018

    def test_what_is_no_split_of_one_capture(self):
        alone, other = Part("train", 3), Part("test", 3, "room")
        sequence, odd = Wall(), Part("test", 2, "odd")
        sequence.split = "train"
        scenes = [alone, sequence, other, odd, Part("val", 2, "odd")]
        assert joined(scenes) == scenes


class TestPhotographs:
    def test_kept_as_bytes(self):
        scene = Wall()
        photographs = Photographs(scene, 40, 100.0)
        first, second = photographs[2], photographs[2]
        assert scene.reads == {2: 1}
        assert torch.equal(first.images, second.images)
        assert float((first.images * 255 - (first.images * 255).round()).abs().max()) < 1e-4
        assert first["view"].tolist() == [2]
        assert bool((first["depth"] == 2).any())

    def test_no_room(self):
        scene = Wall()
        photographs = Photographs(scene, 40, 0.01)  # one of 8 kB
        views = [photographs[view].images for view in (0, 1, 2, 0, 1, 2)]
        assert scene.reads == {0: 1, 1: 2, 2: 2}
        assert torch.equal(views[1], views[4])

    @pytest.mark.parametrize(("side", "size"), [(20, (20, 15)), (40, (40, 30)), (400, (40, 30))])
    def test_size(self, side, size):
        photographs = Photographs(Wall(), side, 1.0)
        assert photographs.size == size
        assert photographs[0].images.shape == (1, 3, size[1], size[0])

    def test_travels_without_its_images(self):
        photographs = Photographs(Wall(), 40, 100.0)
        photographs.try_all(range(9))
        assert len(pickle.dumps(photographs)) < 10_000

    def test_broken_frames_are_passed_over(self):
        found = Photographs(Wall(broken=(3,)), 40, 1.0).try_all(range(9))
        assert sorted(found) == [0, 1, 2, 4, 5, 6, 7, 8]
        with pytest.raises(BadData, match=r"no frame to fit to can be read: .*wall"):
            Photographs(Wall(broken=(0, 1)), 40, 1.0).try_all([0, 1])

    def test_the_first_that_can_be_decoded(self):
        photographs = Photographs(Wall(broken=(3, 4)), 40, 1.0)
        assert photographs.first([3, 4, 2, 1])["view"].tolist() == [2]
        with pytest.raises(BadData, match=r"no frame to fit to can be read: .*wall"):
            photographs.first([3, 4])

    def test_too_small(self):
        with pytest.raises(BadData, match="wall: images of 12x9 pixels are too small to fit to; 11 or more"):
            Photographs(Wall(), 12, 1.0)
        assert Photographs(Wall(), 15, 1.0).size == (15, 11)

    def test_too_few(self):
        with pytest.raises(BadData, match="wall: two posed frames or more are needed for a fit, it has 1"):
            Photographs(Wall(1), 40, 1.0)


class TestStart:
    def test_depth(self):
        found = start(data(Wall()), "auto", 300, np.random.default_rng(0), at_random=1000)
        assert found.way == "depth"
        assert len(found.gaussians) == 300
        torch.testing.assert_close(found.gaussians.means[:, 2], torch.full((300,), 2.0))
        assert 1.9 < found.unit < 2.5
        guessed = found.gaussians.opacities < 0.2
        assert 0 < int(guessed.sum()) < 60  # the three columns without depth

    def test_held_out_views_are_never_read(self):
        scene = Wall()
        start(data(scene), "auto", 300, np.random.default_rng(0), at_random=1000)
        assert set(scene.reads) == {1, 2, 3, 5, 6, 7}

    def test_points(self):
        found = start(data(Wall(depth=False, cloud=True)), "auto", 300, np.random.default_rng(0), at_random=1000)
        assert found.way == "points"
        assert len(found.gaussians) == 300
        assert bool((found.gaussians.means[:, 2] == 2).all())

    def test_random_lies_before_the_cameras(self):
        scene = Wall(depth=False)
        found = start(data(scene), "auto", 300, np.random.default_rng(0), at_random=1000)
        assert found.way == "random"
        assert len(found.gaussians) == 300
        assert bool((found.gaussians.means[:, 2] > 0).all())

    def test_random_begins_with_few(self):
        fit = SceneFit(small(random=30), Wall(depth=False), 0)
        assert (len(fit.splats), len(fit.splats.logits)) == (30, 300)
        assert len(SceneFit(small(random=30), Wall(), 0).splats) == 300  # on measured depth there may be many

    def test_random_is_about_where_the_cameras_look(self):
        scene = Turning()
        found = start(data(scene, "none"), "random", 500, np.random.default_rng(0), at_random=1000)
        assert 1.0 < float(found.gaussians.means.norm(dim=1).median()) < 3.0
        assert 2 < found.unit < 4

    @pytest.mark.parametrize("way", ["depth", "points"])
    @pytest.mark.parametrize("scene", [Wall(depth=False), Blind()])
    def test_what_is_not_there(self, way, scene):
        with pytest.raises(UserError, match=f"--fit.init {way}: wall has no"):
            start(data(scene), way, 300, np.random.default_rng(0), at_random=1000)

    def test_depth_without_a_measurement_is_none(self):
        assert start(data(Blind()), "auto", 300, np.random.default_rng(0), at_random=1000).way == "random"
        assert start(data(Blind(cloud=True)), "auto", 300, np.random.default_rng(0), at_random=1000).way == "points"

    def test_it_is_a_function_of_the_seed(self):
        first, same, other = (
            start(data(Wall()), "auto", 100, np.random.default_rng(seed), at_random=1000).gaussians.means
            for seed in (0, 0, 1)
        )
        assert torch.equal(first, same)
        assert not torch.equal(first, other)


class Turning(Wall):
    """Cameras on a circle of three metres that look at its middle."""

    def __init__(self) -> None:
        super().__init__(12, depth=False)

    @property
    def cameras(self) -> Cameras:
        angle = torch.linspace(0, 6, 12)
        pose = torch.eye(4).repeat(12, 1, 1)
        pose[:, 0, 0], pose[:, 0, 2], pose[:, 2, 0], pose[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
        pose[:, 2, 3] = 3.0
        return Cameras(**{**super().cameras.__dict__, "world_to_camera": pose})


class TestCorrections:
    def test_held_out_views_lie_between_their_neighbours(self):
        corrections = Corrections(torch.tensor([0, 10, 20, 40, 50]), [1, 3], 2, active=True)
        with torch.no_grad():
            corrections.values[1], corrections.values[3] = torch.tensor([1.0, 0]), torch.tensor([4.0, 3])
        expected = torch.tensor([[1.0, 0], [1, 0], [2, 1], [4, 3], [4, 3]])
        torch.testing.assert_close(corrections(torch.arange(5)), expected)

    def test_only_trained_views_learn(self):
        corrections = Corrections(torch.arange(4), [0, 2], 6, active=True)
        corrections(torch.tensor([0])).sum().backward()
        assert corrections.values.grad.any(1).tolist() == [True, False, False, False]
        assert not Corrections(torch.arange(4), [0, 2], 6, active=False).active

    def test_motion(self):
        cameras = Wall().cameras.rows(torch.tensor([2]))
        same = moved(cameras, torch.zeros(1, 6), torch.tensor(2.0))
        torch.testing.assert_close(same.world_to_camera, cameras.world_to_camera)
        shifted = moved(cameras, torch.tensor([[0, 0, 0, 0.1, 0, 0]]), torch.tensor(2.0))
        change = shifted.world_to_camera @ torch.linalg.inv(cameras.world_to_camera)
        torch.testing.assert_close(change[0, :3, 3], torch.tensor([0.2, 0, 0]))
        turned = moved(cameras, torch.tensor([[0.3, -0.2, 0.5, 0, 0, 0]]), torch.tensor(2.0)).world_to_camera[0, :3, :3]
        torch.testing.assert_close(turned @ turned.T, torch.eye(3))
        axis = torch.tensor([0.3, -0.2, 0.5])
        torch.testing.assert_close(turned @ axis, axis)
        assert float(turned.trace()) == pytest.approx(1 + 2 * np.cos(float(axis.norm())), abs=1e-5)

    def test_exposure(self):
        picture = torch.rand(2, 3, 4, 5)
        assert torch.equal(exposed(picture, torch.zeros(2, 6)), picture)
        numbers = torch.tensor([[0.0, 0, 0, 0, 0, 0], [np.log(2), 0, 0, 0, 0.1, 0]])
        found = exposed(picture, numbers.float())
        torch.testing.assert_close(found[1, 0], 2 * picture[1, 0])
        torch.testing.assert_close(found[1, 1], picture[1, 1] + 0.1)
        assert torch.equal(found[0], picture[0])


class TestSteps:
    def test_what_is_told_is_what_is_written(self):
        fit = SceneFit(small(), Wall(), 0)
        with torch.no_grad():
            fit.splats.logits[:7] = -20.0
        assert fit.describe()["gaussians_per_sample"] == len(fit.gaussians()) == 293

    def test_losses(self):
        fit = SceneFit(small(), Wall(), 0)
        view = fit.data.scenes("train")["all"][0]
        batch = Shots.pack([fit.data.sample(view, np.random.default_rng(0))] * 2)
        step = fit(batch, Progress(0, 10))
        assert set(step.losses) == {"l1", "ssim", "depth", "opacity", "scale"}
        assert all(bool(value.isfinite()) for value in step.losses.values())
        bare = SceneFit(small(ssim=0.0, depth=0.0, opacity=0.0, scale=0.0), Wall(), 0)
        assert set(bare(batch, Progress(0, 10)).losses) == {"l1"}
        assert set(SceneFit(small(), Wall(depth=False), 0)(self.without_depth(batch), Progress(0, 9)).losses) == {
            "l1",
            "ssim",
            "opacity",
            "scale",
        }

    @staticmethod
    def without_depth(batch: Shots) -> Shots:
        frames = batch.frames
        attributes = {"view": frames["view"]}
        kept = Frames(images=frames.images, cameras=frames.cameras, counts=frames.counts, attributes=attributes)
        return Shots(names=batch.names, frames=kept)

    def test_the_degree_grows(self):
        fit = SceneFit(small(degree=2, degree_every=10), Wall(), 0)
        batch = fit.data.sample(fit.data.scenes("train")["all"][0], np.random.default_rng(0))
        reached = []
        for step in (0, 9, 10, 20, 99):
            fit.zero_grad(set_to_none=True)
            sum(fit(batch, Progress(step, 100)).losses.values()).backward()
            slope = fit.splats.rest.grad
            reached.append(0 if slope is None else int(slope.any(2).any(0).sum()))
        assert reached == [0, 0, 3, 8, 8]

    def test_what_a_refined_camera_learns(self):
        """A camera that is a little off is moved back: the wall stays, its picture slides."""
        fit = SceneFit(small(refine_poses=True, gaussians=1200, opacity=0.0, scale=0.0), Wall(), 0)
        batch = fit.data.sample(fit.data.scenes("train")["all"][2], np.random.default_rng(0))
        view = int(batch.frames["view"])
        with torch.no_grad():
            fit.splats.places[:, 2] += torch.linspace(-0.1, 0.1, 1200)  # at one depth a turn would change their order
            seen = fit.render(batch.frames)
            batch.frames.images.copy_(seen.color)
            batch.frames["depth"].copy_(seen.depth[:, 0])
            fit.poses.values[view, 3] = 0.05 / float(fit.splats.unit)
        optimizer, errors = torch.optim.Adam([fit.poses.values], lr=1e-3), []
        for _ in range(100):
            optimizer.zero_grad()
            losses = fit(batch, Progress(0, 10)).losses
            sum(losses.values()).backward()
            optimizer.step()
            errors.append(float(losses["l1"].detach()))
        assert min(errors[-10:]) < errors[0] / 4

    @pytest.mark.parametrize("broken", [(3,), (3, 5, 7), (0, 1)])
    def test_frames_that_cannot_be_decoded_stop_no_evaluation(self, broken):
        fit = SceneFit(small(), Wall(broken=broken), 0)
        batches = list(samples(fit, "val"))
        metrics = fit.evaluate(batches)
        assert metrics["baseline/copy_nearest"] > 15
        assert any("nearest training frame" in title for title in fit.preview(batches[0]))

    def test_depth_is_compared_once_divided_by_alpha(self):
        batch = data(Wall())
        frames = batch.photographs[0]
        depths = [
            SceneFit(small(render=RenderOptions(depth=depth)), Wall(), 0).render(frames).depth for depth in DEPTHS
        ]
        assert torch.equal(*depths)
        seen = depths[0].detach()
        assert float((seen[seen > 0] - 2).abs().max()) < 1e-3

    def test_no_number_for_what_was_not_measured(self):
        fit = SceneFit(small(), Blind(), 0)
        assert set(fit.evaluate(samples(fit, "val"))) == {
            "val_psnr",
            "val_ssim",
            "baseline/copy_nearest",
            "baseline/mean_colour",
        }

    def test_options(self):
        with pytest.raises(ConfigError, match=r"side.*got 4.*degree.*got 7.*ssim.*got 2"):
            FitConfig(side=4, degree=7, ssim=2.0)
        with pytest.raises(ConfigError, match="holdout"):
            FitConfig(holdout="all")
        assert FitConfig(chain=ChainOptions(noise=0.0)).chain.noise == 0
