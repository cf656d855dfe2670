"""The procedural streets: bytes, classes, lidar, cameras, boxes, splits, reading."""

import hashlib
import multiprocessing
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from splatlearn import registry
from splatlearn.data.procedural.mesh import Mesh
from splatlearn.data.streets import BOXED, CLASSES, IGNORED, PALETTE, StreetScene, StreetsConfig, StreetsReader
from splatlearn.data.streets.cache import LENGTH_UNIT, WORKSHOP
from splatlearn.data.streets.capture import CAMERAS, RIG, camera_poses, lidar_pose
from splatlearn.data.streets.classes import SKY
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.ground import Ground
from splatlearn.data.streets.layout import LANE, Street, lay_out
from splatlearn.data.streets.lidar import ELEVATIONS, HEIGHT, NEAREST, REACH, scan
from splatlearn.data.streets.solids import prism
from splatlearn.data.streets.world import Stage, World, draw_weather
from splatlearn.errors import BadData, UserError

SMALL = StreetsConfig(drives=3, scans=2, columns=256, size=(96, 48), workers=1)
SIZE = (96, 48)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLATLEARN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def scenes(cache: Path) -> list[StreetScene]:
    return StreetsReader(SMALL).scenes()


@pytest.fixture(scope="module")
def street() -> Street:
    return lay_out(np.random.default_rng((SMALL.seed, 0, 0)), SMALL.scans)


@pytest.fixture(scope="module")
def stage(street: Street) -> Stage:
    return Stage(street, draw_weather(np.random.default_rng(0)))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class TestBytes:
    def test_same_seed_same_bytes_in_another_process(self, scenes: list[StreetScene], tmp_path: Path) -> None:
        WORKSHOP._in_process(SMALL.recipe, tmp_path, [1])
        assert digest(tmp_path / "street-0001") == digest(scenes[2].folder.parent)

    def test_scans_and_drives_differ(self, scenes: list[StreetScene]) -> None:
        assert len({digest(scene.folder)["points.npz"] for scene in scenes}) == len(scenes)

    def test_folder_is_named_after_the_settings(self) -> None:
        assert SMALL.recipe.digest == replace(SMALL, drives=50, workers=7).recipe.digest
        for other in ({"seed": 1}, {"scans": 3}, {"size": (97, 48)}, {"columns": 7000}, {"beams": 64}, {"noise": 0.5}):
            assert replace(SMALL, **other).recipe.digest != SMALL.recipe.digest

    def test_nothing_temporary_is_left_and_drives_are_kept(self, scenes: list[StreetScene]) -> None:
        root = scenes[0].folder.parents[1]
        assert {path.name for path in root.iterdir()} == {f"street-{index:04d}" for index in range(3)}
        stamp = (scenes[0].folder / "points.npz").stat().st_mtime_ns
        StreetsReader(SMALL).scenes()
        WORKSHOP.make(SMALL.recipe, 0, scenes[0].folder.parent)
        assert (scenes[0].folder / "points.npz").stat().st_mtime_ns == stamp


class TestErrors:
    @pytest.mark.parametrize("file", ["color/000003.jpg", "points.npz", "boxes.npz", "cameras.npz"])
    def test_damaged_scan(self, scenes: list[StreetScene], tmp_path: Path, file: str) -> None:
        folder = Path(shutil.copytree(scenes[0].folder, tmp_path / "scan"))
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
        scene = StreetScene(folder, "street")
        with pytest.raises(BadData, match=rf"{file}: damaged .*delete the folder .*, and the street is made again"):
            scene.frames([3], (40, 30)), scene.points(), scene.boxes()

    def test_unwritable_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path / "file"))
        with pytest.raises(UserError, match="set SPLATLEARN_CACHE to another folder"):
            StreetsReader(SMALL).scenes()

    def test_all_settings_are_checked_at_once(self) -> None:
        with pytest.raises(ValueError, match=r"drives must.*beams must be one of 32, 64, got 16.*columns.*size.*noise"):
            StreetsConfig(drives=0, beams=16, columns=3, size=(4, 4), noise=-1)

    def test_unknown_option_names_the_nearest(self) -> None:
        with pytest.raises(UserError, match="did you mean 'beams'"):
            registry.readers.config("streets.tiny", {"beam": 32})


class TestReader:
    def test_registered_with_its_presets(self) -> None:
        assert registry.readers.presets("streets") == tuple(registry.readers.family("streets").presets)
        for preset in registry.readers.presets("streets"):
            config = registry.readers.config(f"streets.{preset}")
            assert StreetsReader(config).config == config
        assert StreetsReader.classes == CLASSES

    def test_takes_no_folder(self, tmp_path: Path) -> None:
        assert not StreetsReader.accepts(tmp_path)

    def test_scans_are_sorted_by_name(self, scenes: list[StreetScene]) -> None:
        names = [scene.name for scene in scenes]
        assert names == sorted(set(names)) and names[3] == "street-0-0001/scan-01"

    def test_no_drive_is_in_both_splits(self, scenes: list[StreetScene]) -> None:
        drives = {split: {s.name.split("/")[0] for s in scenes if s.split == split} for split in ("train", "val")}
        assert len(drives["train"]) == 2 and len(drives["val"]) == 1
        assert not drives["train"] & drives["val"]

    def test_scenes_travel_to_spawned_processes(self, scenes: list[StreetScene]) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.map(_sum, scenes[:1])
        assert found == [_sum(scenes[0])]
        twin = pickle.loads(pickle.dumps(scenes[1]))
        assert (twin.name, twin.split, twin.camera_names) == (scenes[1].name, scenes[1].split, CAMERAS)


def _sum(scene: StreetScene) -> tuple[float, float]:
    return float(scene.points().xyz.sum()), float(scene.frames([0], SIZE).images.sum())


class TestClasses:
    def test_ids_are_fixed(self) -> None:
        assert len(CLASSES) == len(set(CLASSES)) == len(PALETTE) == 15
        assert CLASSES[0] == "road" and CLASSES[14] == "two-wheeler" and SKY not in CLASSES

    def test_every_class_is_met(self, scenes: list[StreetScene]) -> None:
        labels = torch.cat([scene.points()["label"] for scene in scenes])
        met = Counter(CLASSES[label] for label in labels.tolist())
        assert set(met) == set(CLASSES), met

    def test_colours_do_not_tell_the_ground(self, street: Street) -> None:
        """The mean colours of roads and of terrain lie apart by less than what each of them varies by."""
        means: dict[str, list[np.ndarray]] = {"road": [], "terrain": []}
        for index in range(20):
            finishes = Finishes(np.random.default_rng(index))
            ground = Ground(street.ride.route, street.ground.profile, finishes.rng, finishes)
            for name, rows in means.items():
                rows.append(finishes.materials.entries[ground.materials[name]].texture.mean((0, 1)))
        road, terrain = (np.array(rows) for rows in means.values())
        spread = np.sqrt((road.var(0) + terrain.var(0)) / 2)
        assert (np.abs(road.mean(0) - terrain.mean(0)) < spread).all()

    def test_ground_is_told_by_its_height(self, street: Street) -> None:
        profile, ground = street.ground.profile, street.ground
        assert ground.height(0.0) == 0
        assert ground.height(profile.outer) == ground.height(-profile.outer) == profile.kerb > 0.09


class TestLayout:
    def test_solids_face_outward(self) -> None:
        solid = prism([(-1, 0, 0.5), (1, 0, 0.5), (0.6, 1, 0.3), (-0.6, 1, 0.3)], 0)
        assert _volume(solid) == pytest.approx(trimesh.Trimesh(solid.vertices, solid.faces).convex_hull.volume)

    def test_nothing_is_in_the_way(self, street: Street) -> None:
        """No thing stands, or moves, within the lane of the vehicle at the times of its scans."""
        for time in (0.0, 1.0):
            here = street.ride.speed * time
            for thing in street.things:
                low, high = thing.mesh.bounds
                half = np.abs([low[:2], high[:2]]).max() if high[2] - low[2] < 4 and low[2] < 1.5 else 0.0
                near = abs(thing.s + thing.speed * time - here) < 2.5 + half
                beside = abs(thing.t - street.ride.lane) < LANE / 2 - 0.4
                assert not (near and beside), (thing.label, thing.s, thing.t)

    def test_moving_things_move_and_others_do_not(self, street: Street, stage: Stage) -> None:
        speeds = {thing.label: abs(thing.speed) for thing in street.things if thing.speed}
        assert set(speeds) <= set(BOXED) and max(speeds.values()) < 12
        early, late = World(stage, 0.0), World(stage, 1.0)
        moved = np.abs(early.mesh.vertices - late.mesh.vertices).max(1) > 0
        count = len(stage.mesh.vertices)
        assert not moved[:count].any() and moved[count:].all()


def _volume(mesh: Mesh) -> float:
    corners = mesh.corners
    return float(np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


class TestLidar:
    def test_attributes(self, scenes: list[StreetScene]) -> None:
        for scene in scenes:
            points = scene.points()
            count = len(points.xyz)
            assert 0.5 * 32 * 256 < count <= 32 * 256 and points.counts == (count,)
            distance = points.xyz.norm(dim=1)
            assert distance.min() > NEAREST - 0.1 and distance.max() < REACH + 0.1
            assert points["beam"].dtype == torch.int64 and set(points["beam"].tolist()) <= set(range(32))
            assert points["intensity"].min() >= 0 and points["intensity"].max() <= 1
            assert points["intensity"].unique().numel() > 30
            mean, deviation = scene.intensity_statistics
            torch.testing.assert_close(points["reflectance"] * deviation + mean, points["intensity"])
            assert points["label"].min() >= 0, "the sky sends nothing back"
            assert torch.equal(points["label"], scene.instance_labels[points["instance"]])

    def test_statistics_are_those_of_the_world(self, scenes: list[StreetScene]) -> None:
        reflectance = torch.cat([scene.points()["reflectance"] for scene in scenes])
        assert abs(reflectance.mean()) < 0.5 and 0.6 < reflectance.std() < 1.6

    @pytest.mark.parametrize("beams", [32, 64])
    def test_beams_lie_at_their_elevations(self, stage: Stage, street: Street, beams: int) -> None:
        turn = scan(World(stage, 0.0), lidar_pose(street.ride, 0.0), beams, 60, np.random.default_rng(0))
        up = np.arcsin(turn.xyz[:, 2] / np.linalg.norm(turn.xyz, axis=1))
        np.testing.assert_allclose(up, ELEVATIONS[beams][turn.beam], atol=1e-6)
        assert len(ELEVATIONS[beams]) == beams and (np.diff(ELEVATIONS[beams]) > 0).all()

    def test_noise_and_losses(self, stage: Stage, street: Street) -> None:
        """Centimetres of noise, on what comes back; far and grazing pulses are lost first; the road is below."""
        world, pose = World(stage, 0.0), lidar_pose(street.ride, 0.0)
        clean, noisy = (scan(world, pose, 32, 200, np.random.default_rng(0), noise) for noise in (0.0, 1.0))
        far, met = np.linalg.norm(clean.xyz, axis=1), np.linalg.norm(noisy.xyz, axis=1)
        shares = [((met > a) & (met < b)).sum() / ((far > a) & (far < b)).sum() for a, b in ((0, 12), (30, 80))]
        assert shares[0] > 0.93 > shares[1] > 0.2
        distance = torch.cdist(torch.from_numpy(noisy.xyz[::10]), torch.from_numpy(clean.xyz)).min(1).values
        assert LENGTH_UNIT < distance.quantile(0.8) < 0.04
        road = (world.labels[clean.instance] == CLASSES.index("road")) & (far < 6)
        assert clean.xyz[road, 2].mean() == pytest.approx(-HEIGHT, abs=0.15)


class TestCameras:
    def test_poses_are_rigid_and_upright(self, scenes: list[StreetScene]) -> None:
        cameras = scenes[0].cameras
        rotation = cameras.world_to_camera[:, :3, :3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(6, 3, 3), atol=1e-5, rtol=0)
        assert torch.linalg.det(rotation).min() > 0.999
        torch.testing.assert_close(cameras.camera_to_world[:, 2, 1], torch.full((6,), -1.0))
        assert cameras["frame"].tolist() == list(range(6)) and (cameras.width, cameras.height) == SIZE
        forward = cameras.camera_to_world[:, :3, 2]
        expected = torch.tensor([[np.cos(mount.yaw), np.sin(mount.yaw), 0] for mount in RIG], dtype=torch.float32)
        assert (forward * expected).sum(1).min() > 0.999

    def test_motion_between_scan_and_picture_is_in_the_poses(self, street: Street) -> None:
        sensor, poses = lidar_pose(street.ride, 1.0), camera_poses(street.ride, 1.0)
        at = (np.linalg.inv(sensor) @ poses)[:, :3, 3] - [mount.at for mount in RIG]
        late = np.array([-mount.yaw / (2 * np.pi) * 0.1 for mount in RIG])
        np.testing.assert_allclose(at[:, 0], street.ride.speed * late, atol=0.03)
        assert np.abs(at[:, 0]).max() > 0.2 and np.abs(at[:, 1:]).max() < 0.05

    def test_points_land_on_their_class(self, scenes: list[StreetScene]) -> None:
        """95 of 100 points have the class of their pixel or, at edges and where parallax hides them, of one near it."""
        for scene in scenes:
            own, beside = _agreement(scene)
            assert own > 0.85 and beside > 0.95, scene.name

    def test_a_wrong_pose_is_noticed(self, scenes: list[StreetScene]) -> None:
        assert _agreement(scenes[0], shift=1.0)[1] < _agreement(scenes[0])[1] - 0.05

    def test_frames(self, scenes: list[StreetScene]) -> None:
        frames = scenes[0].frames([0, 3], SIZE)
        assert frames.images.shape == (2, 3, 48, 96) and frames.counts == (2,)
        assert 0.15 < frames.images.mean() < 0.8 and frames.images.std() > 0.08
        small = scenes[0].frames([0], (48, 24))
        torch.testing.assert_close(small.cameras.intrinsics[:, :2] * 2, frames.cameras.intrinsics[:1, :2])
        assert (small.images - torch.nn.functional.avg_pool2d(frames.images[:1], 2)).abs().mean() < 0.01
        assert scenes[0].frames([], SIZE).images.shape == (0, 3, 48, 96)
        assert torch.equal(scenes[0].images([3])[0], frames.images[1])

    def test_the_sky_is_ignored(self, scenes: list[StreetScene]) -> None:
        labels = torch.stack([scene.label_maps(range(6), SIZE) for scene in scenes])
        assert (labels == IGNORED).float().mean() > 0.02 and (labels[..., -1, :] != IGNORED).all()


def _agreement(scene: StreetScene, shift: float = 0.0) -> tuple[float, float]:
    """Shares of projected points with the label of their pixel, and with that of one of the nine about it."""
    points, cameras, views = scene.points(), scene.cameras, range(len(scene.cameras.intrinsics))
    maps = torch.nn.functional.pad(scene.label_maps(views, SIZE), (1, 1, 1, 1), value=IGNORED)
    own, beside = [], []
    for view in views:
        xyz = points.xyz + torch.tensor([shift, shift, 0.0])
        pixels, depth = cameras.project(xyz, torch.full((len(xyz),), view))
        inside = (depth > 1) & (pixels >= 0).all(1) & (pixels < torch.tensor(SIZE)).all(1)
        column, row = pixels[inside].long().unbind(1)
        near = torch.stack([maps[view, row + y, column + x] for y in range(3) for x in range(3)], 1)
        same = near == points["label"][inside, None]
        own.append(same[:, 4])
        beside.append(same.any(1))
    return float(torch.cat(own).float().mean()), float(torch.cat(beside).float().mean())


class TestBoxes:
    def test_contain_their_points(self, scenes: list[StreetScene]) -> None:
        for scene in scenes:
            points, boxes = scene.points(), scene.boxes()
            assert len(boxes.centers) > 0
            for row in range(len(boxes.centers)):
                mine = points.xyz[points["instance"] == boxes["instance"][row]] - boxes.centers[row]
                c, s = boxes.yaws[row].cos(), boxes.yaws[row].sin()
                own = torch.stack([c * mine[:, 0] + s * mine[:, 1], c * mine[:, 1] - s * mine[:, 0], mine[:, 2]], 1)
                assert len(own) and (own.abs() <= boxes.sizes[row] / 2 + 0.08).all()

    def test_only_what_moves_or_could_has_boxes(self, scenes: list[StreetScene]) -> None:
        for scene in scenes:
            boxes = scene.boxes()
            assert set(boxes["label"].tolist()) <= {CLASSES.index(name) for name in BOXED}
            assert torch.equal(scene.instance_labels[boxes["instance"]], boxes["label"])
            assert (boxes.sizes > 0).all() and boxes.yaws.abs().max() <= np.pi + 1e-5
