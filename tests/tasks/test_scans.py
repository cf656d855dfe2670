"""Segmentation of lidar scans: what is kept of them, how they are distorted, and what a share of the labels counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from shutil import copytree, rmtree

import numpy as np
import pytest
import torch

from data.scan_maker import write_corrupted, write_semantic_kitti
from splatlearn import registry
from splatlearn.data.corruptions import CORRUPTIONS, SEVERITIES
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Scene, Source
from splatlearn.encoders.base import PointEncoderConfig
from splatlearn.errors import BadData, UserError
from splatlearn.structures import Points
from splatlearn.tasks.clouds import Cloud, CloudData, HeldData, distort_scan, keep_clouds
from splatlearn.tasks.encoders import resolve_encoder
from splatlearn.tasks.robustness import BASELINES, LAYOUTS, under_corruptions
from splatlearn.tasks.segmentation import Segmentation, SegmentationConfig

ENCODER = registry.encoders.config("waffleiron.tiny")


class Turn(Scene):
    """A ring of points around the sensor, some beyond the encoder's 32 m; class 1 is high."""

    def __init__(self, number: int, points: int = 400, away: float = 0.0) -> None:
        self.name, self.number, self.count, self.away = f"turn{number}", number, points, away
        self.split = "val" if number % 4 == 3 else "train"

    def points(self) -> Points:
        rng = np.random.default_rng(self.number)
        angle, distance = rng.uniform(-np.pi, np.pi, self.count), rng.uniform(3, 40, self.count) + self.away
        label = rng.integers(0, 2, self.count)
        xyz = np.stack([distance * np.cos(angle), distance * np.sin(angle), 2.0 * label - 1], 1)
        brightness = torch.from_numpy(rng.random(self.count)).float()
        values = {"intensity": brightness, "reflectance": 2 * brightness - 1, "label": torch.from_numpy(label)}
        return Points(xyz=torch.from_numpy(xyz).float(), attributes=values)


@dataclass(frozen=True)
class Classes:
    classes: tuple[str, ...] = ("low", "high")


def source(scenes: Sequence[Scene] = tuple(Turn(number) for number in range(12))) -> Source:
    made = Source(name="turns")
    made.__dict__["_scenes"], made.__dict__["_reader"] = list(scenes), Classes()
    return made


def data(**options: object) -> CloudData:
    return CloudData(**{"source": source(), "encoder": ENCODER, "voxel": 0.1, "nearest": True, **options})  # pyright: ignore


class TestKept:
    def test_points_out_of_view_get_the_nearest_kept_one(self):
        cloud = data().thin(Turn(0))
        assert ENCODER.inside(cloud.points).all() and len(cloud.points) < len(cloud.full) == 400
        gaps = torch.cdist(cloud.full.xyz, cloud.points.xyz)
        assert torch.equal(gaps.argmin(1), cloud.full["kept"])

    def test_a_voxel_stands_for_its_points_where_all_are_seen(self):
        ring = Turn(0)
        cloud = data(encoder=PointEncoderConfig(inputs=("intensity",)), voxel=5.0, nearest=False).thin(ring)
        gaps = torch.cdist(cloud.full.xyz, cloud.points.xyz)
        assert not torch.equal(gaps.argmin(1), cloud.full["kept"])

    def test_nothing_in_view(self):
        with pytest.raises(BadData, match="turn0: the encoder sees none of its points"):
            data().thin(Turn(0, away=500.0))

    def test_inputs_that_follow_from_the_coordinates_are_carried(self):
        points = data().thin(Turn(0)).points
        assert torch.equal(points["position"], points.xyz)
        assert torch.allclose(points["radius"], points.xyz.norm(dim=1))

    def test_samples_are_ready_for_the_encoder(self):
        for one in (data(crop=100, augment="lidar"), data(whole=True)):
            points = one.sample(Turn(0), np.random.default_rng(0)).points
            assert points["neighbors"].shape == (len(points), 16) and ENCODER.inside(points).all()
        assert all("neighbors" in cloud.points for cloud in data().each("val"))


class TestDistortion:
    points = data().thin(Turn(0)).points

    def drawn(self, seed: int) -> Points:
        return distort_scan(self.points, np.random.default_rng(seed))

    def test_coordinates_are_turned_or_mirrored_and_keep_their_size(self):
        for seed in range(5):
            moved = self.drawn(seed)
            assert torch.allclose(moved.xyz.norm(dim=1), self.points.xyz.norm(dim=1), atol=1e-4)
            assert torch.allclose(moved.xyz[:, 2], self.points.xyz[:, 2], atol=1e-5)

    def test_inputs_are_turned_by_an_angle_of_their_own_and_scaled(self):
        factors = []
        for seed in range(20):
            moved = self.drawn(seed)
            ratio = moved["radius"] / self.points["radius"]
            factors.append(float(ratio[0]))
            assert torch.allclose(ratio, ratio[0].expand(len(ratio)), atol=1e-5)
            assert torch.allclose(moved["position"].norm(dim=1), moved["radius"], rtol=1e-4)
            assert not torch.allclose(moved["position"], moved.xyz * ratio[0], atol=1e-2)
        assert 0.9 <= min(factors) < 0.95 and 1.05 < max(factors) <= 1.1

    def test_two_in_three_are_mirrored(self):
        signs = [torch.linalg.det(torch.linalg.lstsq(self.points.xyz, self.drawn(s).xyz).solution) for s in range(60)]
        assert 0.5 < np.mean([float(sign) < 0 for sign in signs]) < 0.85


class TestShares:
    def test_clouds_are_chosen_by_the_seed_in_their_order(self):
        scenes = [Turn(number) for number in range(10)]
        kept = [scene.number for scene in keep_clouds(scenes, 0.3, 0)]
        assert len(kept) == 3 and kept == sorted(kept)
        assert kept == [scene.number for scene in keep_clouds(scenes, 0.3, 0)]
        assert kept != [scene.number for scene in keep_clouds(scenes, 0.3, 1)]
        assert len(keep_clouds(scenes, 0.001, 0)) == 1 and len(keep_clouds(scenes, 1.0, 0)) == 10

    @pytest.mark.parametrize("share", [0.0, 1.2])
    def test_bad_share(self, share):
        with pytest.raises(UserError, match=r"share in \(0, 1\]"):
            keep_clouds([Turn(0)], share, 0)

    def test_frozen_and_trained_see_the_same_scans_with_all_their_labels(self):
        config = SegmentationConfig(label_unit="clouds", voxel=0.1, nearest=True, augmentation="lidar", tuning=0.0)
        names = []
        for probe in ("linear", "finetune"):
            encoder = resolve_encoder("random:waffleiron.tiny").encoder
            made = Segmentation(config, encoder=encoder, source=source(), probe=probe, labels=0.25, seed=3)  # pyright: ignore
            assert isinstance(made.data, HeldData) == (probe == "linear")
            names.append([scene.name for scene in made.data.scenes("train")["all"]])
            cloud = made.data.sample(made.data.scenes("train")["all"][0], np.random.default_rng(0))
            assert (cloud.points["label"] >= 0).all()
        assert names[0] == names[1] and len(names[0]) == 2


def test_raw_inputs_of_a_scan():
    there = tuple(Turn(0).points().attributes)
    assert resolve_encoder("raw", available=there).encoder.config.inputs == (
        "intensity",
        "height",
        "position",
        "radius",
    )
    assert resolve_encoder("raw", available=("color",)).encoder.config.inputs == ("color", "height")


def test_the_lidar_presets_are_scalrs():
    config = registry.tasks.config("segmentation.lidar")
    assert (config.voxel, config.crop, config.lovasz, config.label_unit) == (0.1, 20000, 1.0, "clouds")
    assert Segmentation.training(config, "finetune")["layer_decay"] == 0.99
    assert Segmentation.training(config, "linear")["layer_decay"] == 1.0


class TestRobustness:
    def test_a_trained_task_under_corruptions(self):
        encoder = resolve_encoder("random:waffleiron.tiny").encoder
        made = source(tuple(Turn(number, points=200) for number in range(5)))
        config = registry.tasks.config("segmentation.lidar", {"tuning": 0.0})
        task = Segmentation(config, encoder=encoder, source=made)  # pyright: ignore
        clean = task.eval().evaluate(made_whole(task))["miou"]  # chooses the probe's layer, too
        told: list[str] = []
        table = under_corruptions(task, made, 0, told.append)
        assert len(told) == 25 and set(table.corrupted) == set(CORRUPTIONS)
        assert table.clean == pytest.approx(clean)
        assert table.metrics["mrr"] > 0 and "mce" not in table.metrics

    def test_an_official_set_brings_its_baseline_where_it_is_whole(self, tmp_path, monkeypatch):
        write_semantic_kitti(tmp_path / "clean")
        made = Source(name=str(tmp_path / "clean"))
        write_corrupted(tmp_path / "spoilt", "SemanticKITTI-C", split_scenes(made.scenes(), "val"))
        encoder = resolve_encoder("random:waffleiron.tiny").encoder
        config = registry.tasks.config("segmentation.lidar", {"tuning": 0.0, "learning_rates": (0.1,)})
        task = Segmentation(config, encoder=encoder, source=made).eval()  # pyright: ignore
        # Nothing labelled is left of fog.
        with pytest.raises(BadData, match="no point of the validation clouds is labelled"):
            under_corruptions(task, made, 0, lambda text: None, tmp_path / "spoilt")
        folder = tmp_path / "spoilt"
        for severity in SEVERITIES:
            rmtree(folder / "fog" / severity / "labels")
            copytree(folder / "snow" / severity / "labels", folder / "fog" / severity / "labels")
        table = under_corruptions(task, made, 0, lambda text: None, folder)
        assert table.name == "SemanticKITTI-C, 2 of 4071 scans" and "mce" not in table.metrics
        assert table.corrupted["fog"] != table.clean
        whole = LAYOUTS["SemanticKITTI-C"]._replace(count=2)
        monkeypatch.setitem(LAYOUTS, "SemanticKITTI-C", whole)
        table = under_corruptions(task, made, 0, lambda text: None, folder)
        assert table.name == "SemanticKITTI-C" and table.baseline == BASELINES["SemanticKITTI-C"]
        assert table.metrics["mce"] > 0

    def test_clouds_that_are_no_scans(self):
        class Room(Turn):
            def points(self) -> Points:
                points = super().points()
                return Points(
                    xyz=points.xyz, attributes={"label": points["label"], "color": torch.rand(len(points), 3)}
                )

        made = source(tuple(Room(number) for number in range(5)))
        encoder = resolve_encoder("random:pointnet2.tiny").encoder
        task = Segmentation(SegmentationConfig(tuning=0.0), encoder=encoder, source=made)  # pyright: ignore
        with pytest.raises(UserError, match=r"corruptions are of lidar scans; turn0 has no intensity"):
            under_corruptions(task, made, 0, print)


def made_whole(task: Segmentation) -> list[Cloud]:
    return [task.validation.sample(scene, np.random.default_rng(0)) for scene in task.validation.scenes("val")["all"]]
