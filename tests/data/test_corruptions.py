"""Corruptions of lidar scans: what each changes and leaves, severity, randomness, odd clouds, real scans."""

from pathlib import Path

import numpy as np
import pytest
import torch

from splatlearn.data.corruptions import CORRUPTIONS, SEVERITIES, CorruptedScene, corrupt
from splatlearn.data.corruptions.scan import Scan, estimate_beams, fit_plane, lowest
from splatlearn.data.corruptions.scene import to_scan
from splatlearn.data.corruptions.sensor import BEAMS, CROSSTALK, MISSING, SHAKE, SILENT
from splatlearn.data.corruptions.weather import (
    FILM,
    FLAKE_RANGE,
    LIDAR_RATIO,
    NEAR,
    SNOWFALL,
    VISIBILITY,
    fresnel,
    snowflakes,
)
from splatlearn.data.scene import Scene
from splatlearn.errors import MissingAttribute, MissingData, UserError
from splatlearn.structures import Points

CLASSES = ("road", "car", "building")
ROAD, CAR, BUILDING = range(3)
STATISTICS = 0.3, 0.15
LOSING = ("fog", "wet_ground", "snow", "beam_missing", "incomplete_echo", "cross_sensor")
FALSE = ("fog", "snow", "crosstalk")
MOVING = (*FALSE, "motion_blur")


def make_scan(beams: int = 64, shots: int = 180, **without: bool) -> Points:
    """A road 1.7 m below the sensor, cars at 12 m to the left, a wall at 60 m around; every ray has a return."""
    elevation, azimuth = np.meshgrid(np.linspace(-0.42, 0.05, beams), np.linspace(-3.1, 3.1, shots), indexing="ij")
    ray = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    flat = np.hypot(ray[..., 0], ray[..., 1])
    to_road = np.where(ray[..., 2] < 0, -1.7 / np.minimum(ray[..., 2], -1e-9), np.inf)
    is_car = (np.abs(azimuth - 1.5) < 0.3) & (np.abs(elevation) < 0.1)
    to_thing = np.where(is_car, 12 / flat, 60 / flat)
    label = np.where(to_road < to_thing, ROAD, np.where(is_car, CAR, BUILDING))
    xyz = ray * np.minimum(to_road, to_thing)[..., None]
    intensity = np.random.default_rng(0).uniform(0.1, 0.5, label.shape)
    beam = np.broadcast_to(np.arange(beams)[:, None], label.shape)
    values = {"intensity": intensity, "reflectance": (intensity - 0.3) / 0.15, "label": label, "beam": beam}
    kinds = {"label": torch.int64, "beam": torch.int64}
    attributes = {
        name: torch.from_numpy(np.array(value)).reshape(-1).to(kinds.get(name, torch.float32))
        for name, value in values.items()
        if without.get(name, True)
    }
    attributes["row"] = torch.arange(label.size)
    return Points(xyz=torch.from_numpy(xyz.reshape(-1, 3)).float(), attributes=attributes)


SCAN = make_scan()


def spoil(points: Points, name: str, severity: str = "heavy", seed: int = 0, classes=CLASSES) -> Points:
    return corrupt(points, name, severity, np.random.default_rng(seed), statistics=STATISTICS, classes=classes)


def false_rows(after: Points, before: Points = SCAN) -> torch.Tensor:
    return (after["label"] < 0) & (before["label"][after["row"]] >= 0)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEvery:
    def test_rows_stay_aligned_and_values_in_range(self, name, severity):
        after = spoil(SCAN, name, severity)
        rows = after["row"]
        assert len(rows) and bool((rows.diff() > 0).all())
        assert torch.equal(after["beam"], SCAN["beam"][rows])
        assert bool(after.xyz.isfinite().all()) and after.xyz.dtype == torch.float32
        intensity = after["intensity"]
        assert float(intensity.min()) >= 0 and float(intensity.max()) <= 1
        torch.testing.assert_close(after["reflectance"], (intensity - 0.3) / 0.15)
        keeps = (after["label"] == SCAN["label"][rows]) | (after["label"] == -1)
        assert bool(keeps.all()) and after["label"].dtype == torch.int64

    def test_what_is_not_false_is_where_it_was(self, name, severity):
        after = spoil(SCAN, name, severity)
        moved = (after.xyz - SCAN.xyz[after["row"]]).norm(dim=1) > 1e-4
        false = false_rows(after)
        assert bool(false.any()) == (name in FALSE)
        if name == "motion_blur":
            assert moved.float().mean() > 0.99
        else:
            assert not bool((moved & ~false).any())

    def test_false_returns_lie_on_their_rays(self, name, severity):
        after = spoil(SCAN, name, severity)
        false = false_rows(after)
        rays = SCAN.xyz[after["row"]][false]
        cosine = torch.nn.functional.cosine_similarity(after.xyz[false], rays, dim=1)
        assert bool((cosine > 1 - 1e-5).all())

    def test_same_seed_same_scan(self, name, severity):
        one, two, other = (spoil(SCAN, name, severity, seed) for seed in (3, 3, 4))
        assert torch.equal(one.xyz, two.xyz) and all(torch.equal(one[k], two[k]) for k in one.attributes)
        differs = len(one) != len(other) or not torch.equal(one.xyz, other.xyz)
        assert differs

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_nearly_nothing(self, name, severity, count):
        few = SCAN.rows(torch.arange(count) * 97)
        for points in (few, Points(xyz=few.xyz, attributes={"intensity": few["intensity"]})):
            after = corrupt(points, name, severity, np.random.default_rng(0))
            assert len(after) <= count and bool(after.xyz.isfinite().all())

    def test_points_in_the_sensor_and_dark_ones(self, name, severity):
        zeros = Points(xyz=torch.zeros(5, 3), attributes={"intensity": torch.zeros(5), "label": torch.arange(5)})
        after = corrupt(zeros, name, severity, np.random.default_rng(0))
        assert bool(after.xyz.isfinite().all()) and bool(after["intensity"].isfinite().all())

    def test_without_beam_and_label(self, name, severity):
        bare = make_scan(label=False, beam=False, reflectance=False)
        after = spoil(bare, name, severity, classes=())
        assert set(after.attributes) == set(bare.attributes) and len(after)
        if name in ("beam_missing", "cross_sensor", "incomplete_echo"):
            assert len(after) < len(bare)


class TestSeverity:
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_more_is_worse(self, name):
        def harm(severity: str) -> float:
            after = spoil(SCAN, name, severity)
            if name == "motion_blur":
                return float((after.xyz - SCAN.xyz).square().mean().sqrt())
            return 1 - float((after["label"] >= 0).float().sum()) / len(SCAN)

        light, moderate, heavy = map(harm, SEVERITIES)
        assert 0 < light < moderate < heavy

    @pytest.mark.parametrize("name", LOSING)
    def test_points_are_lost(self, name):
        assert len(spoil(SCAN, name, "light")) < len(SCAN)

    def test_numbers(self):
        assert tuple(VISIBILITY.values()) == (300, 100, 50) and tuple(FILM.values()) == (0.3, 0.8, 2.0)
        assert tuple(SNOWFALL.values()) == (0.5, 1.0, 2.5) and tuple(SHAKE.values()) == (0.05, 0.1, 0.2)
        assert tuple(BEAMS.values()) == ((48, 24), (32, 16), (16, 12))


class TestFog:
    def test_what_is_left_is_dimmed_by_the_air(self):
        after = spoil(SCAN, "fog", "moderate")
        true = ~false_rows(after)
        distance = after.xyz[true].norm(dim=1)
        through = torch.exp(-2 * np.log(20) / 100 * distance)
        torch.testing.assert_close(after["intensity"][true], SCAN["intensity"][after["row"]][true] * through)

    def test_sight_is_about_half_the_visibility(self):
        after = spoil(SCAN, "fog", "heavy")
        left = after.xyz[~false_rows(after)].norm(dim=1)
        assert 15 < float(left.quantile(0.99)) < 50 < float(SCAN.xyz.norm(dim=1).max())

    def test_scatter_is_near_and_dim(self):
        after = spoil(SCAN, "fog", "heavy")
        false = false_rows(after)
        distance = after.xyz[false].norm(dim=1)
        assert NEAR[0] <= float(distance.min()) and float(distance.max()) <= NEAR[1] + 1e-5
        assert float(distance.median()) < 4
        unit = float(SCAN["intensity"].mean()) / 0.2
        expected = unit * np.pi * np.log(20) / 50 / LIDAR_RATIO * 1.5
        assert after["intensity"][false].unique().tolist() == pytest.approx([expected], rel=1e-4)


class TestWetGround:
    def test_only_the_ground_changes(self):
        after = spoil(SCAN, "wet_ground")
        road, dimmer = after["label"] == ROAD, after["intensity"] < SCAN["intensity"][after["row"]] - 1e-6
        assert torch.equal(road, dimmer)
        assert int((after["label"] != ROAD).sum()) == int((SCAN["label"] != ROAD).sum())

    def test_grazing_light_is_lost_first(self):
        after = spoil(SCAN, "wet_ground")
        lost = torch.ones(len(SCAN), dtype=torch.bool)
        lost[after["row"]] = False
        far = SCAN.xyz.norm(dim=1)
        assert float(far[lost].min()) > 15
        assert float(lost[(far > 35) & (SCAN["label"] == ROAD)].float().mean()) > 0.3

    def test_a_plane_stands_for_labels(self):
        bare = make_scan(label=False)
        after = spoil(bare, "wet_ground", classes=())
        dimmed = after["intensity"] < bare["intensity"][after["row"]] - 1e-6
        truly = SCAN["label"][after["row"]] == ROAD
        assert float((dimmed == truly).float().mean()) > 0.97

    def test_fresnel(self):
        head_on = ((1.33 - 1) / (1.33 + 1)) ** 2
        assert fresnel(np.array([1.0])) == pytest.approx(head_on)
        assert fresnel(np.array([1e-9])) == pytest.approx(1.0, abs=1e-6)
        assert bool((np.diff(fresnel(np.linspace(0.01, 1, 50))) < 0).all())

    def test_plane_of_a_slope_under_clutter(self):
        rng = np.random.default_rng(0)
        xy = rng.uniform(-30, 30, (4000, 2))
        ground = np.column_stack([xy, 0.03 * xy[:, 0] - 1.7])
        clutter = ground[:1500] + np.column_stack([np.zeros((1500, 2)), rng.uniform(0.5, 4, 1500)])
        plane = fit_plane(lowest(np.concatenate([clutter, ground])))
        assert plane == pytest.approx([0.03, 0.0, -1.7], abs=0.02)


class TestSnow:
    def test_flakes_hide_what_is_behind(self):
        after = spoil(SCAN, "snow")
        false = false_rows(after)
        distance, before = after.xyz[false].norm(dim=1), SCAN.xyz[after["row"]][false].norm(dim=1)
        assert bool((distance <= before + 1e-4).all())
        assert FLAKE_RANGE[0] <= float(distance.min()) + 1e-5 and float(distance.median()) < 8
        assert 0.005 < float(false.float().mean()) < 0.3

    def test_visibility_of_the_snowfalls(self):
        visibility = [np.log(20) / snowflakes(rate)[2] for rate in SNOWFALL.values()]
        assert visibility == pytest.approx([1330, 896, 532], rel=0.01)


class TestMotionBlur:
    def test_amplitude_and_smooth_part(self):
        after = spoil(make_scan(shots=2000), "motion_blur")
        before = make_scan(shots=2000)
        offset = (after.xyz - before.xyz).reshape(64, 2000, 3)
        assert float(offset.square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)
        shake = offset.mean(0)
        assert float(shake.square().mean().sqrt()) == pytest.approx(0.2 / np.sqrt(2), rel=0.3)
        assert float(shake.diff(dim=0).norm(dim=1).mean()) < 0.3 * float(shake.norm(dim=1).mean())
        assert torch.equal(after["label"], before["label"]) and torch.equal(after["intensity"], before["intensity"])


class TestSensor:
    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_beams_are_missing_whole(self, severity):
        after = spoil(SCAN, "beam_missing", severity)
        left = after["beam"].unique()
        assert len(left) == round((1 - MISSING[severity]) * 64) and len(after) == 180 * len(left)

    def test_milder_keeps_what_harder_keeps(self):
        light, heavy = (set(spoil(SCAN, "beam_missing", s)["beam"].tolist()) for s in ("light", "heavy"))
        assert heavy < light

    def test_share_of_crosstalk_at_any_range(self):
        after = spoil(SCAN, "crosstalk", "heavy")
        false = false_rows(after)
        assert float(false.float().mean()) == pytest.approx(CROSSTALK["heavy"], rel=0.15)
        distance = after.xyz[false].norm(dim=1)
        assert float(distance.mean()) == pytest.approx(50.5, rel=0.1) and len(after) == len(SCAN)

    def test_echoes_of_vehicles_are_lost(self):
        after = spoil(SCAN, "incomplete_echo", "moderate")
        counts = [int((points["label"] == CAR).sum()) for points in (SCAN, after)]
        assert counts[1] / counts[0] == pytest.approx(1 - SILENT["moderate"], abs=0.1)
        assert len(SCAN) - len(after) == counts[0] - counts[1]

    def test_echoes_of_dark_points_where_classes_are_unknown(self):
        after = spoil(SCAN, "incomplete_echo", "heavy", classes=())
        unlabelled = spoil(make_scan(label=False), "incomplete_echo", "heavy", classes=CLASSES)
        assert torch.equal(unlabelled["row"], after["row"])
        lost = torch.ones(len(SCAN), dtype=torch.bool)
        lost[after["row"]] = False
        assert float(SCAN["intensity"][lost].max()) <= float(SCAN["intensity"].quantile(0.1)) + 1e-6

    @pytest.mark.parametrize(("beams", "left"), [(64, (48, 32, 16)), (32, (24, 16, 12))])
    def test_other_sensors(self, beams, left):
        points = make_scan(beams)
        for severity, count, shots in zip(SEVERITIES, left, (180, 135, 90)):
            after = spoil(points, "cross_sensor", severity)
            kept = after["beam"].unique()
            assert len(kept) == count and int(kept.diff().max()) <= -(-beams // count)
            assert len(after) == count * shots

    def test_thinning_does_not_depend_on_the_order_of_the_points(self):
        order = torch.randperm(len(SCAN), generator=torch.Generator().manual_seed(0))
        one, two = (spoil(points, "cross_sensor", "heavy") for points in (SCAN, SCAN.rows(order)))
        assert sorted(two["row"].tolist()) == one["row"].tolist()
        shots = one["row"].reshape(16, 90) % 180
        assert bool((shots.diff(dim=1) == 2).all())

    def test_beams_are_estimated_from_the_elevation(self):
        guess = estimate_beams(SCAN.xyz.double().numpy(), 64)
        assert np.abs(guess - SCAN["beam"].numpy()).max() <= 1 and len(np.unique(guess)) >= 60

    @pytest.mark.parametrize(
        ("name", "ground", "vehicle"),
        [
            ("driveable_surface", True, False),
            ("other-ground", True, False),
            ("other_flat", True, False),
            ("other-vehicle", False, True),
            ("construction_vehicle", False, True),
            ("two-wheeler", False, True),
            ("motorcyclist", False, False),
            ("traffic_cone", False, False),
        ],
    )
    def test_classes_by_their_names(self, name, ground, vehicle):
        points = Points(xyz=torch.rand(6, 3), attributes={"intensity": torch.ones(6), "label": torch.zeros(6).long()})
        scan = to_scan(points, (name,))
        assert isinstance(scan, Scan) and bool(scan.vehicles.all()) == vehicle
        assert bool(scan._of_classes(("ground", "driveable", "flat")).all()) == ground


class TestErrors:
    def test_unknown_names(self):
        with pytest.raises(UserError, match="no corruption 'fogg'; did you mean 'fog'"):
            spoil(SCAN, "fogg")
        with pytest.raises(UserError, match=r"no severity 'hard'.*light, moderate, heavy"):
            spoil(SCAN, "fog", "hard")

    def test_one_scan_with_intensity(self):
        with pytest.raises(UserError, match="one scan at a time is needed, got 2"):
            spoil(Points.pack([SCAN, SCAN]), "fog")
        with pytest.raises(MissingAttribute, match="intensity"):
            spoil(make_scan(intensity=False), "fog")


class OneScan(Scene):
    name, group, split, intensity_statistics = "scan-7", "drive", "val", STATISTICS

    def points(self) -> Points:
        return SCAN


class TestScene:
    def test_delegates_and_corrupts(self):
        scene = CorruptedScene(OneScan(), "fog", "heavy", classes=CLASSES)
        assert (scene.group, scene.split, scene.name) == ("drive", "val", "scan-7@fog-heavy-0")
        assert len(scene.cameras) == 0
        with pytest.raises(MissingData, match="scan-7 has no posed frames"):
            scene.frames([0], (4, 4))
        one, two = scene.points(), scene.points()
        assert torch.equal(one.xyz, two.xyz) and bool(false_rows(one).any())
        torch.testing.assert_close(one["reflectance"], (one["intensity"] - 0.3) / 0.15)

    def test_each_scene_seed_and_severity_has_its_own_draws(self):
        def rows(name="scan-7", severity="heavy", seed=0) -> list[int]:
            base = OneScan()
            base.name = name
            return CorruptedScene(base, "beam_missing", severity, seed=seed).points()["beam"].unique().tolist()

        assert rows() == rows() and rows() != rows("scan-8") and rows() != rows(seed=1)

    def test_unknown_names_are_refused_at_once(self):
        with pytest.raises(UserError, match="no corruption 'rain'"):
            CorruptedScene(OneScan(), "rain", "heavy")


@pytest.mark.parametrize("drive", ["semantic_kitti", "nuscenes"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_real_scans(shared_data: Path, drive: str, name: str):
    folder = shared_data / "lidar_rangeimage_seg" / drive / "val"
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder}")
    scan = np.load(sorted(folder.glob("*.npz"))[0])["scan"]
    scan = torch.from_numpy(scan[scan[..., 4] > 0])
    intensity = scan[:, 3] / (255 if drive == "nuscenes" else 1)
    points = Points(xyz=scan[:, :3].contiguous(), attributes={"intensity": intensity, "row": torch.arange(len(scan))})
    light, heavy = (spoil(points, name, severity, classes=()) for severity in ("light", "heavy"))
    for after in (light, heavy):
        assert 0.05 * len(points) < len(after) <= len(points) and bool(after.xyz.isfinite().all())
    if name not in FALSE:
        assert len(heavy) <= len(light)
