"""The procedural rooms: bytes, geometry, light, sensor, labels, boxes, reading."""

import hashlib
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
from splatlearn.data.procedural import mesh
from splatlearn.data.procedural.cache import cache_root
from splatlearn.data.procedural.textures import Materials
from splatlearn.data.rooms import CLASSES, PALETTE, RoomsConfig, RoomsReader, RoomsScene
from splatlearn.data.rooms.cache import WORKSHOP
from splatlearn.data.rooms.capture import pinhole
from splatlearn.data.rooms.finishes import Finishes
from splatlearn.data.rooms.layout import furnish
from splatlearn.data.rooms.walk import walk
from splatlearn.data.rooms.world import World, build
from splatlearn.errors import BadData, UserError

SMALL = RoomsConfig(rooms=3, frames=12, size=(80, 60), points=6000, side=(3.0, 3.8), workers=1)
SIZE = (80, 60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLATLEARN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def scenes(cache: Path) -> list[RoomsScene]:
    return RoomsReader(SMALL).scenes()


@pytest.fixture(scope="module")
def exact(cache: Path) -> RoomsScene:
    return RoomsReader(replace(SMALL, rooms=1, noise=0.0)).scenes()[0]


@pytest.fixture(scope="module")
def world() -> World:
    return build((SMALL.seed, 0, 0), SMALL.side)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class TestBytes:
    def test_same_seed_same_bytes(self, scenes: list[RoomsScene], tmp_path: Path) -> None:
        WORKSHOP.make(SMALL.recipe, 1, tmp_path / "again")
        assert digest(tmp_path / "again") == digest(scenes[1].folder)

    def test_processes_make_the_same_bytes(
        self, scenes: list[RoomsScene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path))
        folders = WORKSHOP.ensure(SMALL.recipe, 3, workers=2)
        assert [digest(folder) for folder in folders] == [digest(scene.folder) for scene in scenes]

    def test_rooms_and_seeds_differ(self, scenes: list[RoomsScene], tmp_path: Path) -> None:
        assert digest(scenes[0].folder) != digest(scenes[1].folder)
        WORKSHOP.make(replace(SMALL, seed=1).recipe, 0, tmp_path / "other")
        assert digest(tmp_path / "other")["cloud.npz"] != digest(scenes[0].folder)["cloud.npz"]

    def test_folder_is_named_after_the_settings(self) -> None:
        assert SMALL.recipe.digest == replace(SMALL, rooms=50, workers=7).recipe.digest
        for other in ({"seed": 1}, {"frames": 13}, {"size": (81, 60)}, {"points": 7}, {"noise": 0.5}):
            assert replace(SMALL, **other).recipe.digest != SMALL.recipe.digest

    def test_nothing_temporary_is_left(self, scenes: list[RoomsScene]) -> None:
        names = {path.name for path in scenes[0].folder.parent.iterdir()}
        assert names == {f"room-{index:04d}" for index in range(3)}

    def test_existing_room_is_kept(self, scenes: list[RoomsScene]) -> None:
        before = digest(scenes[0].folder)
        stamp = (scenes[0].folder / "cloud.npz").stat().st_mtime_ns
        RoomsReader(SMALL).scenes()
        WORKSHOP.make(SMALL.recipe, 0, scenes[0].folder)
        assert digest(scenes[0].folder) == before
        assert (scenes[0].folder / "cloud.npz").stat().st_mtime_ns == stamp


class TestErrors:
    @pytest.mark.parametrize("file", ["color/000003.jpg", "depth/000003.png", "cloud.npz", "mesh.npz"])
    def test_damaged_room(self, scenes: list[RoomsScene], tmp_path: Path, file: str) -> None:
        room = Path(shutil.copytree(scenes[0].folder, tmp_path / "room"))
        content = bytearray((room / file).read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        (room / file).write_bytes(content if file.endswith("npz") else content[: len(content) // 2])
        scene = RoomsScene(room, "room")
        with pytest.raises(BadData, match=rf"{file}: damaged .*; delete the folder {room}, and the room is made again"):
            scene.frames([3], (40, 30)), scene.points(), scene.mesh()

    @pytest.mark.parametrize("file", ["cameras.npz", "boxes.npz", "depth/000003.png"])
    def test_incomplete_room(self, scenes: list[RoomsScene], tmp_path: Path, file: str) -> None:
        room = Path(shutil.copytree(scenes[0].folder, tmp_path / "room"))
        (room / file).unlink()
        with pytest.raises(BadData, match=rf"{file}: damaged .*No such file"):
            RoomsScene(room, "room").frames([3], (40, 30)), RoomsScene(room, "room").boxes()

    def test_unwritable_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("SPLATLEARN_CACHE", str(tmp_path / "file"))
        with pytest.raises(UserError, match="set SPLATLEARN_CACHE to another folder"):
            RoomsReader(SMALL).scenes()

    def test_all_settings_are_checked_at_once(self) -> None:
        with pytest.raises(ValueError, match=r"rooms, frames and points.*size must be.*side must be.*noise"):
            RoomsConfig(rooms=0, size=(4, 4), side=(1, 2), noise=-1)

    def test_unknown_option_names_the_nearest(self) -> None:
        with pytest.raises(UserError, match="did you mean 'frames'"):
            registry.readers.config("rooms.tiny", {"frame": 3})


class TestReader:
    def test_registered_with_its_presets(self) -> None:
        assert registry.readers.presets("rooms") == tuple(registry.readers.family("rooms").presets)
        for preset in registry.readers.presets("rooms"):
            config = registry.readers.config(f"rooms.{preset}")
            assert RoomsReader(config).config == config
        assert RoomsReader.classes == CLASSES

    def test_takes_no_folder(self, tmp_path: Path) -> None:
        assert not RoomsReader.accepts(tmp_path)

    def test_cache_folder_defaults(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("SPLATLEARN_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_root() == tmp_path / "splatlearn"

    def test_scene_travels(self, scenes: list[RoomsScene]) -> None:
        twin = pickle.loads(pickle.dumps(scenes[0]))
        assert torch.equal(twin.frames([2], SIZE).images, scenes[0].frames([2], SIZE).images)


class TestClasses:
    def test_ids_are_fixed(self) -> None:
        assert len(CLASSES) == len(set(CLASSES)) == len(PALETTE) == 16
        assert CLASSES[:3] == ("wall", "floor", "ceiling") and CLASSES[15] == "clutter"

    def test_every_class_occurs(self) -> None:
        seen: Counter[str] = Counter()
        for index in range(6):
            room, _ = furnish(np.random.default_rng(index), (3.4, 5.6))
            labels = {placed.label for placed in room.objects}
            assert len(labels) >= 8
            seen.update(labels)
        assert set(seen) == set(CLASSES)


class TestMesh:
    @pytest.mark.parametrize(
        "solid",
        [
            mesh.box((0.1, 0.2, 0.3), (0.6, 0.3, 0.9), 0),
            mesh.cylinder(0.3, 0.7, 0),
            mesh.ball(0.4, 0),
            mesh.cushion((0, 0, 0), (0.8, 0.5, 0.2), 0),
            mesh.between((0, 0, 0), (0.3, 0.2, 0.9), 0.05, 0),
        ],
        ids=["box", "cylinder", "ball", "cushion", "between"],
    )
    def test_solids_are_closed_and_face_outward(self, solid: mesh.Mesh) -> None:
        corners = solid.corners
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        shading = solid.normals[solid.faces].mean(1)
        large = np.linalg.norm(normals, axis=1) > 1e-9
        assert ((normals * shading).sum(1)[large] > 0).all()
        volume = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
        hull = trimesh.Trimesh(solid.vertices, solid.faces).convex_hull.volume
        assert volume == pytest.approx(hull, rel=1e-3)

    def test_box_has_its_size(self) -> None:
        solid = mesh.box((1, 2, 3), (0.5, 0.6, 0.7), 4)
        np.testing.assert_allclose(solid.bounds, [[0.75, 1.7, 2.65], [1.25, 2.3, 3.35]])
        assert (solid.materials == 4).all()

    def test_texture_coordinates_are_metres(self) -> None:
        flat = mesh.patch((0, 0, 0), (2, 0, 0), (0, 1, 0), 0)
        assert np.ptp(flat.uv, axis=0) == pytest.approx([2.0, 1.0])
        np.testing.assert_allclose(flat.normals, np.tile([0, 0, 1.0], (len(flat.normals), 1)))


class TestTextures:
    def test_finishes_vary_and_are_reflectances(self) -> None:
        materials = Materials()
        finishes = Finishes(materials, np.random.default_rng(0))
        for make in (finishes.wood, finishes.fabric, finishes.hard, finishes.leaf, finishes.wall, finishes.floor):
            for _ in range(6):
                make()
        textures = np.stack([entry.texture for entry in materials.entries])
        assert textures.min() > 0 and textures.max() < 1
        means = textures.mean((1, 2))
        assert means.std(0).min() > 0.1

    def test_mip_levels_keep_the_mean(self) -> None:
        materials = Materials()
        Finishes(materials, np.random.default_rng(1)).fabric()
        sampler = materials.sampler()
        np.testing.assert_allclose(sampler.texels[-4:].mean(0), sampler.mean[0], rtol=1e-4)


class TestWorld:
    def test_nothing_outside_is_seen(self, world: World) -> None:
        rng = np.random.default_rng(0)
        eye = world.to_world(_walkable(world)[0] + np.array([0, 0, 1.4]))
        rays = rng.standard_normal((20000, 3))
        assert (world.caster.first(np.tile(eye, (20000, 1)), rays).face >= 0).all()

    def test_light_is_finite_and_shaded(self, world: World) -> None:
        assert np.isfinite(world.light).all() and world.light.min() >= 0
        open_, under = np.quantile(world.light.mean(1), [0.9, 0.1])
        assert open_ > 2 * under

    def test_walls_face_the_room(self, world: World) -> None:
        inner = world.mesh.instances < 6
        rows = world.mesh.faces[inner][:, 0]
        toward = np.array([0, 0, 1.2]) - world.mesh.vertices[rows]
        assert ((toward * world.mesh.normals[rows]).sum(1) > -0.05).mean() > 0.85


def _walkable(world: World) -> np.ndarray:
    cells = np.argwhere(world.plan.walkable())
    return np.column_stack([(cells + 0.5) * 0.05, np.zeros(len(cells))])


class TestCameras:
    def test_poses_are_rigid_and_upright(self, scenes: list[RoomsScene]) -> None:
        cameras = scenes[0].cameras
        rotation = cameras.world_to_camera[:, :3, :3]
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(12, 3, 3), atol=1e-5, rtol=0)
        assert torch.linalg.det(rotation).min() > 0.999
        assert (cameras.camera_to_world[:, 2, 1] < -0.7).all()
        assert cameras["frame"].tolist() == list(range(12))
        assert (cameras.width, cameras.height) == SIZE

    def test_pinhole_is_a_kinects(self) -> None:
        matrix = pinhole((640, 480))
        assert matrix[0, 0] == pytest.approx(589.4, abs=1)
        assert matrix[:2, 2].tolist() == [320, 240]

    def test_keep_clear_of_everything(self, scenes: list[RoomsScene]) -> None:
        for scene in scenes:
            surface = scene.mesh()
            corners = surface.vertices[surface.faces.long()].double().numpy()
            for center in scene.cameras.centers.double().numpy()[::3]:
                nearest = trimesh.triangles.closest_point(corners, np.broadcast_to(center, (len(corners), 3)))
                assert np.linalg.norm(nearest - center, axis=1).min() > 0.25

    def test_small_steps(self, world: World) -> None:
        poses = walk(world, np.random.default_rng(0), 40, 1.0)
        steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        turns = np.einsum("vij,vij->v", poses[1:, :3, :3], poses[:-1, :3, :3])
        assert steps.max() < 0.06
        assert np.degrees(np.arccos(np.clip((turns - 1) / 2, -1, 1))).max() < 3.0

    def test_five_frames_overlap(self, scenes: list[RoomsScene]) -> None:
        shares = [_overlap(scene, view, view + 5) for scene in scenes for view in (0, 3, 6)]
        assert min(shares) > 0.7 and 0.78 < np.mean(shares) < 0.98


def _overlap(scene: RoomsScene, first: int, second: int) -> float:
    frames = scene.frames([first, second], SIZE)
    xyz = frames.cameras.unproject(frames["depth"])[0][frames["depth"][0] > 0]
    pixel, depth = frames.cameras.project(xyz, torch.ones(len(xyz), dtype=torch.int64))
    inside = (pixel >= 0).all(1) & (pixel < torch.tensor(SIZE)).all(1) & (depth > 0)
    return float(inside.float().mean())


class TestFrames:
    def test_shapes_and_ranges(self, scenes: list[RoomsScene]) -> None:
        frames = scenes[0].frames([0, 5, 11], SIZE)
        assert frames.images.shape == (3, 3, 60, 80) and frames.images.dtype == torch.float32
        assert frames["depth"].shape == (3, 60, 80) and frames.counts == (3,)
        assert 0.1 < frames.images.mean() < 0.8 and frames.images.std() > 0.08
        assert frames["depth"].min() == 0 and 1 < frames["depth"].max() < 8

    def test_resizes_images_and_intrinsics_together(self, scenes: list[RoomsScene]) -> None:
        large, small = scenes[0].frames([4], SIZE), scenes[0].frames([4], (40, 30))
        assert small.images.shape == (1, 3, 30, 40)
        torch.testing.assert_close(small.cameras.intrinsics[:, :2] * 2, large.cameras.intrinsics[:, :2])
        mean = torch.nn.functional.avg_pool2d(large.images, 2)
        assert (small.images - mean).abs().mean() < 0.01
        assert set(small["depth"].unique().tolist()) <= set(large["depth"].unique().tolist())

    def test_no_views_is_zero_rows(self, scenes: list[RoomsScene]) -> None:
        assert scenes[0].frames([], SIZE).images.shape == (0, 3, 60, 80)

    def test_images_are_the_photographs(self, scenes: list[RoomsScene]) -> None:
        assert torch.equal(scenes[0].images([1])[0], scenes[0].frames([1], SIZE).images[0])

    def test_exact_depth_and_colour_agree_between_views(self, exact: RoomsScene) -> None:
        frames = exact.frames([2, 5], SIZE)
        depth = frames["depth"]
        xyz, color = frames.cameras.unproject(depth)[0].reshape(-1, 3), frames.images[0].flatten(1).T
        pixel, expected = frames.cameras.project(xyz, torch.ones(len(xyz), dtype=torch.int64))
        inside = (pixel >= 0).all(1) & (pixel < torch.tensor(SIZE)).all(1)
        column, row = pixel[inside].long().unbind(1)
        error = (depth[1, row, column] - expected[inside]).abs()
        same = error < 0.02 * expected[inside] + 0.01
        assert same.float().mean() > 0.8
        assert (frames.images[1, :, row, column].T - color[inside])[same].abs().mean() < 0.06

    def test_sensor_noise_grows_with_depth(self, scenes: list[RoomsScene], exact: RoomsScene) -> None:
        assert exact.frames([0], SIZE)["depth"].min() > 0
        views = list(range(12))
        clean, noisy = exact.frames(views, SIZE)["depth"], scenes[0].frames(views, SIZE)["depth"]
        measured = noisy > 0
        assert 0.01 < 1 - measured.float().mean() < 0.3
        error = (noisy - clean).abs().clamp(max=0.2)
        near, far = measured & (clean < clean.quantile(0.2)), measured & (clean > clean.quantile(0.8))
        assert error[far].mean() > 1.5 * error[near].mean() > 0

    def test_instance_maps_match_the_surface(self, exact: RoomsScene) -> None:
        views = list(range(0, 12, 3))
        frames, labels = exact.frames(views, SIZE), exact.instance_labels[exact.instance_maps(views, SIZE)]
        low = exact.points().xyz[:, 2].max() - 0.1
        xyz = frames.cameras.unproject(frames["depth"])
        ground, ceiling = (xyz[labels == CLASSES.index(name)][:, 2] for name in ("floor", "ceiling"))
        assert labels.shape == (4, 60, 80) and len(ground) + len(ceiling) > 0
        assert (ground.abs() < 0.02).all() and (ceiling > low).all()


class TestCloud:
    def test_attributes(self, scenes: list[RoomsScene]) -> None:
        points = scenes[0].points()
        assert 3000 < len(points.xyz) <= SMALL.points and points.counts == (len(points.xyz),)
        assert points["color"].min() >= 0 and points["color"].max() <= 1 and points["color"].std() > 0.08
        torch.testing.assert_close(points["normal"].norm(dim=1), torch.ones(len(points.xyz)))
        assert points["label"].min() >= 0 and points["label"].max() < len(CLASSES)
        assert points["instance"].max() < len(scenes[0].instance_labels)
        assert torch.equal(points["label"], scenes[0].instance_labels[points["instance"]])
        assert len(points["label"].unique()) >= 8

    def test_floor_and_ceiling_are_level(self, exact: RoomsScene) -> None:
        points = exact.points()
        floor, ceiling = (points["label"] == CLASSES.index(name) for name in ("floor", "ceiling"))
        assert points.xyz[floor, 2].abs().max() < 0.012
        assert points.xyz[ceiling, 2].std() < 1e-3 and points.xyz[ceiling, 2].mean() > 2.3
        assert (points["normal"][ceiling, 2] < -0.99).all()

    def test_lies_on_the_mesh(self, scenes: list[RoomsScene]) -> None:
        points, surface = scenes[0].points(), scenes[0].mesh()
        solid = trimesh.Trimesh(surface.vertices.numpy(), surface.faces.numpy(), process=False)
        some = points.xyz[::40].double().numpy()
        _, distance, face = trimesh.proximity.closest_point_naive(solid, some)
        assert distance.max() < 0.02
        assert (surface.label[torch.as_tensor(face)] == points["label"][::40]).float().mean() > 0.9

    def test_mesh_has_labels_and_colours(self, scenes: list[RoomsScene]) -> None:
        surface = scenes[0].mesh()
        assert len(surface.faces) == len(surface.label) == len(surface.color) == len(surface.instance)
        assert surface.color.min() >= 0 and surface.color.max() <= 1


class TestBoxes:
    def test_contain_their_points(self, scenes: list[RoomsScene]) -> None:
        for scene in scenes:
            points, boxes = scene.points(), scene.boxes()
            for row in range(len(boxes.centers)):
                mine = points.xyz[points["instance"] == boxes["instance"][row]] - boxes.centers[row]
                c, s = boxes.yaws[row].cos(), boxes.yaws[row].sin()
                own = torch.stack([c * mine[:, 0] + s * mine[:, 1], c * mine[:, 1] - s * mine[:, 0], mine[:, 2]], 1)
                assert (own.abs() <= boxes.sizes[row] / 2 + 0.016).all()

    def test_only_things_have_boxes(self, scenes: list[RoomsScene]) -> None:
        boxes = scenes[0].boxes()
        assert boxes["label"].min() >= 3
        assert torch.equal(scenes[0].instance_labels[boxes["instance"]], boxes["label"])
        assert (boxes.sizes > 0).all() and boxes.yaws.abs().max() <= np.pi + 1e-5

    def test_large_pieces_do_not_interpenetrate(self) -> None:
        for index in range(3):
            room, _ = furnish(np.random.default_rng(100 + index), (3.0, 4.5))
            big = [p for p in room.objects if p.label in ("bed", "sofa", "cabinet", "bookshelf", "desk")]
            for i, first in enumerate(big):
                for second in big[i + 1 :]:
                    assert not _deeply_overlap(first.mesh, second.mesh)


def _deeply_overlap(first: mesh.Mesh, second: mesh.Mesh) -> bool:
    low = np.maximum(first.bounds[0], second.bounds[0])
    high = np.minimum(first.bounds[1], second.bounds[1])
    volume = np.prod(np.maximum(high - low, 0))
    return bool(volume > 0.03 * min(np.prod(np.ptp(m.bounds, axis=0)) for m in (first, second)))
