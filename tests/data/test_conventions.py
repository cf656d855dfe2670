"""A test behind each line of docs/conventions.md, and a check that it is so."""

import re
from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from data.photo_maker import write_colmap
from data.recording_maker import FOCAL, SIZE, tilted_world, write_scannet, write_seven_scenes, write_tum
from data.scan_maker import car, seen, write_kitti, write_nuscenes
from splatlearn.data.augment import transform_boxes
from splatlearn.data.kitti import KittiConfig, KittiReader
from splatlearn.data.nuscenes import NuScenesConfig, NuScenesReader
from splatlearn.data.photos import PhotosConfig, PhotosReader
from splatlearn.data.pointcept import PointceptConfig, PointceptReader
from splatlearn.data.projection import visible_points
from splatlearn.data.recordings import check_intrinsics
from splatlearn.data.rgbd import RgbdConfig, RgbdReader
from splatlearn.errors import BadData, MissingAttribute
from splatlearn.splatting.render import RenderOptions, render
from splatlearn.structures import SH_C0, Boxes, Cameras, Frames, Gaussians, Packed

PAGE = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    write_seven_scenes(folder, frames=6)
    return RgbdReader(RgbdConfig(up="known"), folder).scenes()[0]


def camera(world_to_camera: torch.Tensor | None = None) -> Cameras:
    """80x60, focal length 100, principal point in the middle."""
    return Cameras(
        world_to_camera=(torch.eye(4) if world_to_camera is None else world_to_camera)[None],
        intrinsics=torch.tensor([[[100.0, 0, 40], [0, 100, 30], [0, 0, 1]]]),
        width=80,
        height=60,
    )


def project(cameras: Cameras, *xyz: float) -> tuple[list[float], float]:
    pixels, depth = cameras.project(torch.tensor([xyz], dtype=torch.float32), torch.tensor([0]))
    return pixels[0].tolist(), float(depth)


class TestGeometry:
    def test_metres(self, recording):
        assert recording.metric == "known"
        assert torch.allclose(recording.cameras.centers[:, 2], torch.tensor(1.4), atol=1e-5)

    def test_up_is_z(self, recording, tmp_path):
        assert recording.up == "known"
        floor = recording.frames([0], SIZE).to_points().xyz[:, 2].min()
        assert abs(float(floor)) < 0.01
        write_seven_scenes(tmp_path, source_from_room=tilted_world())
        (estimated,) = RgbdReader(RgbdConfig(), tmp_path).scenes()
        assert estimated.up == "estimated"
        assert -estimated.cameras.camera_to_world[:, 2, 1].mean() > 0.8, "images' down is the world's down"

    def test_camera_axes(self):
        ahead, depth = project(camera(), 0, 0, 2)
        assert ahead == [40, 30] and depth == 2
        assert project(camera(), 1, 0, 2)[0] == [90, 30], "x is to the right"
        assert project(camera(), 0, 1, 2)[0] == [40, 80], "y is down"

    def test_world_to_camera(self):
        pose = torch.eye(4)
        pose[:3, 3] = torch.tensor([0.0, 0, 5])
        assert project(camera(pose), 0, 0, 0)[1] == 5
        assert camera(pose).centers.tolist() == [[0, 0, -5]]

    def test_pixel_centres(self):
        grid = camera().pixel_grid()
        assert grid[0, 0].tolist() == [0.5, 0.5] and grid[-1, -1].tolist() == [79.5, 59.5]

    def test_pixel_centres_of_scannet(self, tmp_path):
        write_scannet(tmp_path)
        (scene,) = RgbdReader(RgbdConfig(), tmp_path).scenes()
        on_disk = np.loadtxt(tmp_path / "intrinsic/intrinsic_color.txt")
        assert np.allclose(scene.cameras.intrinsics[0, :2, 2].numpy(), on_disk[:2, 2] + 0.5)

    def test_intrinsics_scale(self, recording):
        half = recording.cameras.resize(40, 30)
        assert torch.allclose(half.intrinsics[:, :2], recording.cameras.intrinsics[:, :2] / 2)
        assert torch.equal(recording.frames([1], (40, 30)).cameras.intrinsics[0], half.intrinsics[1])

    def test_size_order(self, recording):
        frames = recording.frames([0], (40, 20))
        assert (frames.cameras.width, frames.cameras.height) == (40, 20)
        assert frames.images.shape == (1, 3, 20, 40) and frames["depth"].shape == (1, 20, 40)

    def test_depth_along_z(self):
        xyz = camera().unproject(torch.full((1, 60, 80), 2.0))
        assert xyz[..., 2].eq(2).all() and xyz[0, 0, 0].norm() > 2.1

    def test_quaternion_order(self):
        """A long thin Gaussian turned by 90 degrees about z lies along y; scipy's order is x y z w."""
        x, y, z, w = Rotation.from_euler("z", 90, degrees=True).as_quat()
        pose = torch.eye(4)
        pose[2, 3] = 5
        options = RenderOptions(backend="reference")
        for length in (1.0, 3.0):
            gaussian = Gaussians(
                means=torch.zeros(1, 3),
                scales=torch.tensor([[0.5, 0.02, 0.02]]),
                quaternions=length * torch.tensor([[w, x, y, z]], dtype=torch.float32),
                opacities=torch.ones(1),
                sh=torch.ones(1, 1, 3),
            )
            rows, columns = render(gaussian, camera(pose), options=options).alpha[0, 0].gt(0.5).nonzero().T
            assert len(rows.unique()) > 3 * len(columns.unique())

    def test_box_yaw(self):
        box = Boxes(centers=torch.zeros(1, 3), sizes=torch.ones(1, 3), yaws=torch.zeros(1))
        quarter = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        assert float(transform_boxes(box, quarter).yaws) == pytest.approx(pi / 2), "x to y is counter-clockwise"

    def test_origin(self, tmp_path):
        source = tilted_world()
        source[:3, 3] += 5000
        write_seven_scenes(tmp_path, source_from_room=source)
        (scene,) = RgbdReader(RgbdConfig(), tmp_path).scenes()
        assert scene.cameras.world_to_camera.dtype == torch.float32
        points = scene.frames([0], SIZE).to_points().xyz
        assert points.dtype == torch.float32 and points.abs().max() < 5 and abs(float(points[:, 2].min())) < 0.03
        assert scene.cameras.centers.mean(0)[:2].abs().max() < 1e-4
        assert scene.world_from_source.dtype == np.float64 and np.abs(scene.world_from_source[:3, 3]).max() > 4000

    def test_world_of_a_scan(self, tmp_path):
        """A camera whose picture is 0.05 s later stands half a metre further on; points are as on disk."""
        truth = write_nuscenes(tmp_path)["scene-0000/001"]
        scene = NuScenesReader(NuScenesConfig(), tmp_path).scenes()[1]
        assert (scene.up, scene.metric) == ("known", "known")
        assert np.allclose(scene.points().xyz, truth.xyz, atol=1e-5)
        front, back = scene.cameras.centers.double().numpy()
        assert np.linalg.norm(back - front) == pytest.approx(np.linalg.norm((car(1.1) - car(1.05))[:3, 3]), rel=0.1)
        rows, pixels = visible_points(scene.points(), scene.cameras, 1, scene.projection)
        assert rows.tolist() == seen(truth, "CAM_BACK").tolist()
        assert np.abs(pixels.numpy() - truth.pixels["CAM_BACK"][rows]).max() < 0.01

    def test_pinholes_only(self, tmp_path):
        """What the readers do with a source that says of its lens that it bends, or whose matrix is skewed."""
        write_tum(tmp_path / "rgbd_dataset_freiburg1_xyz")
        config = RgbdConfig(intrinsics=(FOCAL, FOCAL, 39.5, 29.5))
        (scene,) = RgbdReader(config, tmp_path).scenes()
        assert any("lens distortion is not removed" in note for note in scene.notes)
        skewed = np.array([[FOCAL, 0.3, 40], [0, FOCAL, 30], [0, 0, 1]])
        with pytest.raises(BadData, match="no pinhole matrix"):
            check_intrinsics(skewed, "camera-intrinsics.txt")
        write_colmap(tmp_path / "photos", frames=2)
        (photos,) = PhotosReader(PhotosConfig(), tmp_path / "photos").scenes()
        assert any("distortion is removed" in note for note in photos.notes)


class TestValues:
    def test_images(self, recording):
        images = recording.frames([0], SIZE).images
        assert images.dtype == torch.float32 and images.shape[1] == 3
        assert images.min() >= 0 and 0.5 < images.max() <= 1

    def test_depth_zero(self, tmp_path):
        write_seven_scenes(tmp_path, frames=2)
        (tmp_path / "frame-000000.depth.png").unlink()
        depth = np.full((60, 80), 2.0, np.float32)
        depth[::2] = 0
        np.save(tmp_path / "frame-000000.depth.npy", depth)
        (scene,) = RgbdReader(RgbdConfig(up="known"), tmp_path).scenes()
        for size in (SIZE, (33, 17), (160, 120)):
            assert set(scene.frames([0], size)["depth"].unique().tolist()) <= {0.0, 2.0}
        frames = scene.frames([0], SIZE)
        assert len(frames.to_points()) == int((frames["depth"] > 0).sum()) == 2400

    def test_label_minus_one(self, tmp_path):
        np.savez(tmp_path / "a.npz", xyz=np.zeros((3, 3)), label=[-1, 0, 2], instance=[-5, 0, 1])
        points = PointceptReader(PointceptConfig(), tmp_path).scenes()[0].points()
        assert points["label"].tolist() == [-1, 0, 2] and points["instance"].tolist() == [-1, 0, 1]
        assert points["label"].dtype == points["instance"].dtype == torch.int64

    def test_missing_attribute(self, recording):
        with pytest.raises(MissingAttribute, match="Frames has no attribute 'normal'; it has: depth"):
            recording.frames([0], SIZE)["normal"]

    def test_no_views(self, tmp_path):
        np.savez(tmp_path / "a.npz", xyz=np.zeros((3, 3)))
        cameras = PointceptReader(PointceptConfig(), tmp_path).scenes()[0].cameras
        assert len(cameras) == 0 and cameras["frame"].dtype == torch.int64

    def test_reflectance(self, tmp_path):
        write_nuscenes(tmp_path)
        scene = NuScenesReader(NuScenesConfig(), tmp_path).scenes()[0]
        points, (mean, deviation) = scene.points(), scene.intensity_statistics
        assert 0 <= points["intensity"].min() < points["intensity"].max() <= 1
        assert torch.allclose(points["reflectance"] * deviation + mean, points["intensity"], atol=1e-6)
        assert (mean * 255, deviation * 255) == (pytest.approx(18.742355), pytest.approx(22.04632))

    def test_file_order(self, tmp_path):
        truth = write_kitti(tmp_path, scans=1)["training/000000"]
        scan = tmp_path / "training/velodyne/000000.bin"
        rows = np.fromfile(scan, "<f4").reshape(-1, 4)
        rows[7, 2] = np.inf
        rows.tofile(scan)
        (scene,) = KittiReader(KittiConfig(), tmp_path).scenes()
        assert np.allclose(scene.points().xyz, np.delete(truth.xyz, 7, 0), atol=1e-5)
        assert scene.notes == ("1 of 600 points are not finite and left out",)

    def test_harmonics(self):
        gaussian = Gaussians(
            means=torch.zeros(1, 3),
            scales=torch.ones(1, 3),
            quaternions=torch.tensor([[1.0, 0, 0, 0]]),
            opacities=torch.ones(1),
            sh=torch.tensor([[[0.0, 1, -1]]]),
        )
        expected = [0.5, 0.5 + SH_C0, 0.5 - SH_C0]
        assert torch.allclose(gaussian.to_points()["color"], torch.tensor([expected]))

    def test_raw_frame_numbers(self, tmp_path):
        write_scannet(tmp_path, stride=20)
        (scene,) = RgbdReader(RgbdConfig(), tmp_path).scenes()
        assert scene.cameras["frame"].tolist() == [0, 20, 40, 60, 80, 100]
        assert scene.frames([3], SIZE).cameras["frame"].tolist() == [60]


def reserved() -> dict[str, tuple[set[str], int, torch.dtype]]:
    """Attribute -> structures, dimensions, type, from the page's table."""
    types = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([A-Z0-9 ]+) \| (\w+) \|", PAGE, re.M)
    return {name: (set(of.split(", ")), len(shape.split()), types[kind]) for name, of, shape, kind in rows}


class TestPage:
    def test_reserved_attributes(self, recording, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {"xyz": rng.normal(size=(5, 3)), "color": rng.random((5, 3)), "normal": rng.normal(size=(5, 3))}
        np.savez(tmp_path / "a.npz", **arrays, label=np.arange(5), instance=np.arange(5))
        frames: Frames = recording.frames([0, 1], SIZE)
        points = PointceptReader(PointceptConfig(), tmp_path).scenes()[0].points()
        gaussians = Gaussians(
            means=points.xyz,
            scales=torch.ones(5, 3),
            quaternions=torch.ones(5, 4),
            opacities=torch.ones(5),
            sh=torch.ones(5, 1, 3),
        )
        write_colmap(tmp_path / "photos", frames=2)
        (photos,) = PhotosReader(PhotosConfig(), tmp_path / "photos").scenes()
        structures: list[Packed] = [frames, frames.cameras, frames.to_points(), points, gaussians.to_points()]
        structures += [photos.frames([0], SIZE), photos.cameras, photos.points()]
        write_nuscenes(tmp_path / "scans")
        scan = NuScenesReader(NuScenesConfig(), tmp_path / "scans").scenes()[0]
        structures += [scan.points(), scan.cameras, scan.frames([0], SIZE), scan.boxes()]
        table = reserved()
        for structure in structures:
            for name, value in structure.attributes.items():
                owners, dimensions, dtype = table[name]
                assert type(structure).__name__ in owners, name
                assert (value.ndim, value.dtype) == (dimensions, dtype), name

    def test_every_rule_has_its_test(self):
        named = set(re.findall(r"`(test_\w+)`", PAGE)) - {"test_conventions"}
        here = {name for cls in (TestGeometry, TestValues, TestPage) for name in vars(cls) if name.startswith("test_")}
        assert named <= here
        assert len(named) >= 20
        rules = [line for line in PAGE.split("## What each")[0].splitlines() if line.startswith("| ")]
        without = [line for line in rules if "`test_" not in line and "rule" not in line]
        assert not without
