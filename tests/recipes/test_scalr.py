"""ScaLR: what a pair is, which cameras a split sees, what the numbers mean, and that it learns."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from splatlearn import registry
from splatlearn.data.scene import Rejected, Scene, Source
from splatlearn.encoders.base import FeatureMaps
from splatlearn.engine.checkpoint import load_encoder
from splatlearn.engine.loop import train
from splatlearn.engine.report import preview
from splatlearn.engine.trainable import Progress
from splatlearn.errors import BadData, ConfigError
from splatlearn.losses.distillation import unit
from splatlearn.recipes.scalr import ScaLR, ScaLRConfig, ScaLRData, Scan, _Fit
from splatlearn.structures import Cameras, Frames, Points
from splatlearn.teachers.base import create_teacher
from splatlearn.teachers.prepared import PreparedMaps
from splatlearn.verbs.pretrain import Job, plan

START = Progress(0, 1)
SIZE = (80, 40)
AHEAD = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
BEHIND = [[0, 1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]]


class Drive(Scene):
    """A cloud around the sensor, and a camera that looks ahead beside one that looks back; red is ahead."""

    camera_names = ("ahead", "behind")

    def __init__(self, number: int = 0, cameras: int = 2, away: float = 0.0, split: str = "") -> None:
        self.name, self.number, self.count, self.away, self.split = f"scan {number}", number, cameras, away, split
        self.camera_names = self.camera_names[:cameras]

    @property
    def cameras(self) -> Cameras:
        matrix = torch.tensor([[40.0, 0, 40], [0, 40, 20], [0, 0, 1]])
        poses = torch.tensor([AHEAD, BEHIND][: self.count], dtype=torch.float32)
        return Cameras(
            world_to_camera=poses, intrinsics=matrix.expand(len(poses), 3, 3).clone(), width=SIZE[0], height=SIZE[1]
        )

    def points(self) -> Points:
        rng = np.random.default_rng(self.number)
        xyz = torch.from_numpy(rng.uniform([-20, -20, -2], [20, 20, 2], (3000, 3))).float()
        xyz[:, 2] += self.away
        brightness = torch.from_numpy(rng.uniform(0, 1, 3000)).float()
        return Points(xyz=xyz, attributes={"intensity": brightness, "reflectance": 2 * brightness - 1})

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        images = torch.zeros(len(views), 3, size[1], size[0])
        for row, view in enumerate(views):
            images[row, view] = 1
        return Frames(images=images, cameras=self.cameras.rows(torch.tensor(views)).resize(*size))


def data(scenes: Sequence[Scene], augment: bool = False, **options: object) -> ScaLRData:
    config = ScaLRConfig(teachers={"timm.tiny": {}}, **{"size": (56, 28), **options})  # pyright: ignore
    source = Source(name="drives")
    source.__dict__["_scenes"] = list(scenes)
    return ScaLRData(source=source, config=config, student=registry.encoders.config("waffleiron.tiny"), augment=augment)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestSample:
    def test_a_point_has_the_pixel_it_falls_on(self):
        drive = Drive()
        scan = data([drive]).sample(drive, seeded())
        view = scan.frames.cameras.resize(56, 28)
        pixels, depth = view.project(scan.points.xyz, torch.zeros(len(scan.points), dtype=torch.int64))
        assert (depth > 1).all()
        assert torch.equal(scan.points["pixel"], pixels[:, 1].long() * 56 + pixels[:, 0].long())
        assert len(scan.frames) == 1 and len(scan.points) > 100

    def test_every_camera_is_drawn_and_named(self):
        drive = Drive()
        seen = {data([drive]).sample(drive, seeded(seed)).names[0] for seed in range(10)}
        assert seen == {"scan 0: ahead", "scan 0: behind"}

    def test_pixels_stay_when_points_are_turned(self):
        drive = Drive(cameras=1)
        plain, moved = (data([drive], augment, voxel=0.0).sample(drive, seeded()) for augment in (False, True))
        assert set(moved.points["pixel"].tolist()) <= set(plain.points["pixel"].tolist())
        assert not torch.equal(plain.points.xyz[:5], moved.points.xyz[:5])

    def test_scale_and_turn_keep_what_they_must(self):
        drive = Drive(cameras=1)
        rigid = data([drive], True, voxel=0.0, scale=(1.0, 1.0)).sample(drive, seeded(3))
        plain = data([drive], voxel=0.0).sample(drive, seeded(3))
        assert torch.allclose(rigid.points.xyz.norm(dim=1).sort()[0], plain.points.xyz.norm(dim=1).sort()[0], atol=1e-4)
        assert torch.allclose(rigid.points.xyz[:, 2].sort()[0], plain.points.xyz[:, 2].sort()[0], atol=1e-5)

    def test_one_point_a_voxel_and_no_more_than_asked_for(self):
        drive = Drive()
        coarse = data([drive], voxel=4.0).sample(drive, seeded())
        cells = {tuple(cell) for cell in (coarse.points.xyz - drive.points().xyz.amin(0)).div(4.0).long().tolist()}
        assert len(cells) == len(coarse.points)
        assert len(data([drive], points=50).sample(drive, seeded()).points) == 50

    def test_training_keeps_random_points_of_the_voxels(self):
        drive = Drive(cameras=1)
        first, other = (data([drive], True, voxel=4.0, spin=0.0, flip=0.0).sample(drive, seeded(s)) for s in (1, 2))
        assert first.points["pixel"].tolist() != other.points["pixel"].tolist()
        again = data([drive], True, voxel=4.0, spin=0.0, flip=0.0).sample(drive, seeded(1))
        assert torch.equal(first.points.xyz, again.points.xyz)

    def test_a_worker_prepares_what_the_student_needs(self):
        drive = Drive()
        scan = data([drive]).sample(drive, seeded())
        assert set(scan.points.attributes) == {"pixel", "reflectance", "neighbors"}

    def test_a_camera_without_points_is_drawn_again(self):
        drive = Drive(away=500.0)
        with pytest.raises(Rejected, match=r"a camera that sees no point \(scan 0: (ahead|behind)\)"):
            data([drive]).sample(drive, seeded())


class TestSplits:
    def test_of_few_scans_the_last_camera_is_kept(self):
        found = data([Drive(0), Drive(1)])
        train, val = (found.scenes(split)["drives"] for split in ("train", "val"))
        assert [s.camera_names for s in train] == [("ahead",)] * 2
        assert [s.camera_names for s in val] == [("behind",)] * 2
        assert val[0].frames([0], (8, 8)).images[0, 1].min() == 1
        assert torch.equal(val[0].cameras.world_to_camera[0], torch.tensor(BEHIND, dtype=torch.float32))

    def test_cameras_that_are_named_are_kept(self):
        found = data([Drive(number) for number in range(6)], held_cameras=("ahead",))
        assert {s.camera_names for s in found.scenes("train")["drives"]} == {("behind",)}
        assert {s.camera_names for s in found.scenes("val")["drives"]} == {("ahead",)}

    def test_many_scans_are_split_by_what_they_say(self):
        scans = [Drive(number, split="val" if number == 2 else "train") for number in range(6)]
        assert [s.name for s in data(scans).scenes("val")["drives"]] == ["scan 2"]

    def test_one_camera_cannot_be_in_both(self):
        with pytest.raises(BadData, match=r"no camera is left for the split 'val'.*held_cameras"):
            data([Drive(cameras=1)]).scenes("val")

    def test_scans_without_cameras(self):
        with pytest.raises(BadData, match="scalr needs scans with cameras; scan 0 has none"):
            data([Drive(cameras=0)]).scenes("train")

    def test_a_scan_without_photographs_is_left_out_and_named(self, caplog):
        found = data([Drive(0), Drive(1, cameras=0), Drive(2)])
        assert {s.name for split in ("train", "val") for s in found.scenes(split)["drives"]} == {"scan 0", "scan 2"}
        assert caplog.text.count("1 scans without photographs are left out, scan 1 first") == 1

    def test_a_camera_that_no_rig_has(self):
        with pytest.raises(BadData, match=r"no camera ahaed; did you mean 'ahead'.*there are ahead, behind"):
            data([Drive()], held_cameras=("behind", "ahaed")).scenes("train")

    def test_shares_name_data_sets(self):
        with pytest.raises(BadData, match="no data set elsewhere; there are drives"):
            data([Drive()], shares={"elsewhere": 1.0}).scenes("train")


def job(steps: int = 3, **recipe: object) -> Job:
    return plan("scalr", preset="tiny", steps=steps, recipe_options=recipe)


def batch_of(recipe: ScaLR, count: int = 2, split: str = "train") -> Scan:
    scenes = next(iter(recipe.data.scenes(split).values()))
    return Scan.pack([recipe.data.sample(scenes[i], np.random.default_rng([7, i])) for i in range(count)])


@pytest.fixture(scope="module")
def recipe() -> ScaLR:
    return job().build()  # pyright: ignore[reportReturnType]


class TestRecipe:
    def test_the_loss_is_the_distance_of_unit_vectors(self, recipe):
        batch = batch_of(recipe)
        recipe.eval()
        step = recipe(batch, START)
        found, true = recipe.predict(batch)[0], recipe.targets(batch)[0]
        cosine = torch.nn.functional.cosine_similarity(found, true)
        assert step.losses["timm.tiny"].item() == pytest.approx((2 - 2 * cosine).sqrt().mean().item(), rel=1e-5)

    def test_targets_are_read_where_the_points_fall(self, recipe, monkeypatch):
        batch, (_, teacher, _) = batch_of(recipe), recipe.taught[0]
        width = recipe.config.size[0]
        columns = torch.linspace(0, 1, 8).expand(2, 1, 4, 8)

        def ramp(pixels):
            return FeatureMaps(levels=(columns,), summary=columns.mean((2, 3)))

        monkeypatch.setattr(teacher, "look", ramp)
        expected = (batch.points["pixel"] % width).float() / (width - 1)
        assert torch.allclose(recipe.targets(batch)[0][:, 0], expected, atol=1e-6)

    def test_the_teacher_is_no_part_of_what_is_saved_or_trained(self, recipe):
        assert not any("teacher" in name for name in recipe.state_dict())
        assert not any("teacher" in name for name, _ in recipe.named_parameters())

    def test_shuffled_pairs_stay_in_their_image(self, recipe, monkeypatch):
        batch = batch_of(recipe)
        monkeypatch.setattr(recipe, "config", replace(recipe.config, shuffle=True))
        rows = batch.points.item[:, None].float().expand(-1, 32) + torch.arange(32)
        monkeypatch.setattr(recipe, "targets", lambda batch: [rows])
        seen = []
        monkeypatch.setitem(recipe.forward.__globals__["LOSSES"], "unit-l2", lambda a, b: seen.append(b) or a.sum())
        recipe(batch, START)
        assert torch.equal(seen[0], rows)

    def test_prepared_maps_are_what_the_teacher_gives(self, recipe, tmp_path):
        (_, teacher, _), size = recipe.taught[0], recipe.config.size
        maps = PreparedMaps.of(teacher, size, tmp_path / "maps")
        maps.begin()
        scenes = next(iter(recipe.data.scenes("train").values()))
        for scene in scenes[:2]:
            frames = scene.frames(range(len(scene.cameras)), size)
            for view in range(len(frames)):
                maps.write(scene.name, scene.view_key(view), teacher(frames.rows(torch.tensor([view]))), view)
        read = job(prepared=[str(tmp_path / "maps")]).build()
        batch = batch_of(read)
        assert "maps/timm.tiny" in batch.frames
        plain = Scan.pack([*(recipe.data.sample(scenes[i], np.random.default_rng([7, i])) for i in range(2))])
        assert torch.allclose(read.targets(batch)[0].float(), recipe.targets(plain)[0], atol=2e-2)

    def test_prepared_maps_are_those_of_the_camera_whatever_its_number(self, recipe, tmp_path):
        drive, maps = Drive(), PreparedMaps.of(recipe.taught[0][1], (56, 28), tmp_path / "maps")
        maps.begin()
        for view in range(2):
            level = torch.full((1, 32, maps.grid[1], maps.grid[0]), float(view))
            maps.write(drive.name, drive.view_key(view), FeatureMaps(levels=(level,), summary=level.mean((2, 3))), 0)
        found = data([drive], prepared=(str(tmp_path / "maps"),))
        scene = found.scenes("val")["drives"][0]  # the camera behind alone, there of number 0
        assert found.sample(scene, seeded()).frames["maps/timm.tiny"].min() == 1

    def test_maps_are_of_one_data_set(self):
        with pytest.raises(ConfigError, match="maps are prepared of one data set"):
            ScaLRConfig(prepared=("maps",), also={"other": {}})

    def test_an_encoder_that_takes_what_scans_lack(self):
        planned = plan("scalr", preset="tiny", encoder="sparse_unet.tiny")
        with pytest.raises(ConfigError, match=r"takes color, which scans lack: --encoder\.inputs, of intensity, refl"):
            planned.build()

    def test_its_own_settings_do_it_again(self):
        first = plan("scalr", preset="tiny", teacher="squeezenet.tiny", recipe_options={"size": [112, 112]})
        again = plan("scalr", preset="tiny", recipe_options=first.settings["recipe_options"])
        assert again.config == first.config and set(again.config.teachers) == {"squeezenet.tiny"}
        own = plan("scalr", preset="small", data="streets.tiny", teacher="timm.dinov2-s").config.teachers
        assert own == {"timm.dinov2-s": {"norm": False}}

    def test_another_data_set_that_is_not_there(self):
        with pytest.raises(ConfigError, match=r"--recipe\.also: nowhere: no such file or folder"):
            plan("scalr", preset="tiny", recipe_options={"also": {"nowhere": {}}})

    def test_prepared_maps_of_another_teacher(self, tmp_path):
        other = create_teacher("squeezenet.tiny")
        PreparedMaps.of(other, (112, 112), tmp_path / "maps").begin()
        with pytest.raises(ConfigError, match=r"holds maps of squeezenet\.tiny, which does not teach here"):
            job(prepared=[str(tmp_path / "maps")], size=[112, 112]).build()

    def test_several_teachers_have_a_head_each(self):
        taught = job(teachers={"timm.tiny": {}, "squeezenet.tiny": {}}, size=[112, 112]).build()
        step = taught(batch_of(taught), START)
        assert set(step.losses) == {"timm.tiny", "squeezenet.tiny"}
        numbers = taught.evaluate([batch_of(taught)])
        assert numbers["val_cosine"] == pytest.approx(
            (numbers["val_cosine/timm.tiny"] + numbers["val_cosine/squeezenet.tiny"]) / 2
        )

    def test_a_patch_that_does_not_divide_the_image(self):
        with pytest.raises(ConfigError, match=r"--recipe\.size: 100x56 does not divide .*98x56 would"):
            job(size=[100, 56]).build()

    def test_a_teacher_that_is_not_finite_is_named(self, recipe, monkeypatch):
        batch = batch_of(recipe)
        bad = [torch.full_like(target, float("nan")) for target in recipe.targets(batch)]
        monkeypatch.setattr(recipe, "targets", lambda batch: bad)
        step = recipe(batch, START)
        assert not step.losses["timm.tiny"].isfinite() and step.metrics["finite/timm.tiny"] == 0


class TestNumbers:
    target = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + 2

    def fit(self, prediction: torch.Tensor) -> dict[str, float]:
        score = _Fit(unit(self.target).mean(0))
        score.add(prediction, self.target)
        return score.numbers()

    def test_a_perfect_student(self):
        numbers = self.fit(3 * self.target)
        assert numbers["val_distance"] == pytest.approx(0, abs=1e-6)
        assert [numbers[k] for k in ("val_cosine", "val_cosine_centred", "val_r2")] == pytest.approx([1, 1, 1])

    def test_the_mean_explains_nothing(self):
        numbers = self.fit(unit(self.target).mean(0).expand(200, 8))
        assert numbers["val_cosine"] > 0.8
        assert abs(numbers["val_cosine_centred"]) < 0.2 and numbers["val_r2"] < 0.02


class TestRun:
    def test_it_learns_is_exported_and_shown(self, tmp_path):
        planned = job(60)
        trained = planned.build()
        summary = train(trained, planned.train, tmp_path / "run", settings=planned.settings)
        assert summary.metrics["val_cosine_centred"] > 0.2  # what is not trained is near 0
        assert {"val_distance", "val_cosine", "val_cosine_centred", "val_r2"} <= set(summary.metrics)
        assert load_encoder(tmp_path / "run").name == "waffleiron.tiny"
        pictures = preview(trained)
        assert all(torch.isfinite(picture).all() for picture in pictures.values())
        assert {title.partition("/")[0] for title in pictures} == {"pairs", "features, PCA", "scan"}
        facts = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert facts["teachers"]["timm.tiny"]["source"] == "random"

    @pytest.mark.parametrize("encoder", ["sparse_unet.tiny", "pointnet2.tiny"])
    def test_other_students(self, encoder):
        planned = plan("scalr", preset="tiny", encoder=encoder, encoder_options={"inputs": ["reflectance"]})
        student = planned.build()
        step = student(batch_of(student), START)
        assert step.losses["timm.tiny"].isfinite()
