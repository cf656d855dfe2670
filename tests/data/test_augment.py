"""Random transforms: geometry, labels of boxes and normals, and every projection stay consistent."""

from dataclasses import replace
from math import pi

import numpy as np
import pytest
import torch

from data.recording_maker import SIZE, write_seven_scenes
from splatlearn.data.augment import (
    jitter_color,
    jitter_xyz,
    random_cloud_transform,
    random_rotation,
    rotate_frames,
    transform_boxes,
    transform_cameras,
    transform_points,
)
from splatlearn.data.rgbd import RgbdConfig, RgbdReader
from splatlearn.errors import MissingAttribute, UserError
from splatlearn.splatting.render import RenderOptions, render
from splatlearn.structures import SH_C0, Boxes, Frames, Gaussians, Points


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    write_seven_scenes(folder, frames=8)
    return RgbdReader(RgbdConfig(up="known"), folder).scenes()[0].frames([0, 5], SIZE)


@pytest.fixture
def cloud():
    rng = np.random.default_rng(0)
    xyz = torch.from_numpy(rng.normal(size=(200, 3)).astype(np.float32))
    normal = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 3)).astype(np.float32)), dim=1)
    normal[0] = 0
    return Points(xyz=xyz, attributes={"normal": normal, "color": torch.rand(200, 3)})


def angle_of(rotation: torch.Tensor) -> float:
    return float(((rotation.trace() - 1) / 2).clamp(-1, 1).arccos())


def to_gaussians(frames: Frames) -> Gaussians:
    points = frames.to_points().rows(torch.arange(0, 4800, 16))
    count = len(points)
    return Gaussians(
        means=points.xyz,
        scales=torch.full((count, 3), 0.06),
        quaternions=torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        opacities=torch.full((count,), 0.9),
        sh=((points["color"] - 0.5) / SH_C0)[:, None],
    )


class TestJointRotation:
    def test_cloud_follows_the_cameras(self, frames):
        moved = rotate_frames(frames, np.random.default_rng(0))
        points, after = frames.to_points(), moved.to_points()
        view = points.item
        before_pixels = frames.cameras.project(points.xyz, view)
        after_pixels = moved.cameras.project(after.xyz, view)
        assert (after.xyz - points.xyz).abs().max() > 0.1
        assert torch.allclose(before_pixels[0], after_pixels[0], atol=1e-3)
        assert torch.allclose(before_pixels[1], after_pixels[1], atol=1e-5)
        assert torch.equal(moved.images, frames.images)
        assert torch.equal(moved["depth"], frames["depth"])

    def test_one_motion_for_all_views(self, frames):
        transform = random_rotation(frames.cameras, np.random.default_rng(3))
        moved = replace(frames, cameras=transform_cameras(frames.cameras, transform))
        expected = transform_points(frames.to_points(), transform)
        assert torch.allclose(moved.to_points().xyz, expected.xyz, atol=1e-5)

    def test_rendering_is_unchanged(self, frames):
        one = frames.slice(0)
        moved = rotate_frames(one, np.random.default_rng(1))
        # Without the cut-offs: a Gaussian that ends a rounding error earlier would change a pixel by 1/255.
        options = RenderOptions(backend="reference", alpha_min=0, transmittance_min=0)
        before, after = (render(to_gaussians(f), f.cameras, options=options) for f in (one, moved))
        assert float(before.color.max()) > 0.5
        assert torch.allclose(before.color, after.color, atol=1e-4)
        assert torch.allclose(before.depth, after.depth, atol=1e-3)

    def test_angles(self, frames):
        rng = np.random.default_rng(0)
        tilts = [angle_of(random_rotation(frames.cameras, rng, spin=0)[:3, :3]) for _ in range(100)]
        assert 0 < max(tilts) <= np.sqrt(3) * pi / 64 * 1.001 and np.mean(tilts) > 0.02
        spins = [angle_of(random_rotation(frames.cameras, rng, tilt=0)[:3, :3]) for _ in range(100)]
        assert max(spins) > 0.9 * pi

    def test_spin_keeps_up_and_the_first_camera_stays(self, frames):
        transform = random_rotation(frames.cameras, np.random.default_rng(0), tilt=0)
        assert torch.allclose(transform[2, :3], torch.tensor([0, 0, 1.0], dtype=torch.float64), atol=1e-6)
        moved = transform_cameras(frames.cameras, transform)
        assert torch.allclose(moved.centers[0], frames.cameras.centers[0], atol=1e-5)

    def test_each_item_has_its_own(self, frames):
        four = Frames.pack([frames, frames])
        moved = rotate_frames(four, np.random.default_rng(0))
        assert moved.counts == (2, 2)
        assert not torch.allclose(moved.cameras.centers[1], moved.cameras.centers[3], atol=1e-3)

    def test_generator_decides(self, frames):
        first, second = (rotate_frames(frames, np.random.default_rng(5)).cameras for _ in range(2))
        assert torch.equal(first.world_to_camera, second.world_to_camera)

    def test_cameras_refuse_mirrors_and_scale(self, frames):
        for diagonal in ([-1.0, 1, 1, 1], [1.1, 1.1, 1.1, 1]):
            with pytest.raises(UserError, match="cameras follow rigid motions only"):
                transform_cameras(frames.cameras, torch.diag(torch.tensor(diagonal)))


class TestClouds:
    def test_normals_stay_normal_to_a_plane(self):
        """A mirrored, turned and scaled plane has the mirrored, turned normal."""
        flat = torch.rand(50, 2) * 2
        xyz = torch.cat([flat, (0.5 * flat[:, :1] - 0.2 * flat[:, 1:])], 1)
        normal = torch.nn.functional.normalize(torch.tensor([[-0.5, 0.2, 1.0]]), dim=1).expand(50, 3)
        for seed in range(8):
            transform = random_cloud_transform(np.random.default_rng(seed))
            moved = transform_points(Points(xyz=xyz, attributes={"normal": normal}), transform)
            along = (moved.xyz - moved.xyz[0]) @ moved["normal"][0]
            assert along.abs().max() < 1e-5
            assert torch.allclose(moved["normal"].norm(dim=1), torch.ones(50))

    def test_scale_flip_and_zero_normals(self, cloud):
        transform = random_cloud_transform(np.random.default_rng(0), scale=(1.1, 1.1))
        moved = transform_points(cloud, transform)
        before, after = ((c.xyz[1:] - c.xyz[0]).norm(dim=1) for c in (cloud, moved))
        assert torch.allclose(after, 1.1 * before, atol=1e-5)
        assert moved["normal"][0].eq(0).all()
        signs = {
            float(torch.linalg.det(random_cloud_transform(np.random.default_rng(s))[:3, :3]).sign()) for s in range(9)
        }
        assert signs == {-1.0, 1.0}
        still = random_cloud_transform(np.random.default_rng(0), tilt=0, spin=0, scale=(1, 1), flip=False)
        assert torch.equal(still, torch.eye(4, dtype=torch.float64))

    def test_boxes_hold_the_same_points(self, cloud):
        boxes = Boxes(
            centers=torch.tensor([[0.2, -0.1, 0.3]]),
            sizes=torch.tensor([[1.5, 0.7, 1.0]]),
            yaws=torch.tensor([0.4]),
        )
        for seed in range(6):
            transform = random_cloud_transform(np.random.default_rng(seed), tilt=0)
            after = inside(transform_points(cloud, transform).xyz, transform_boxes(boxes, transform))
            assert torch.equal(after, inside(cloud.xyz, boxes)) and after.any()

    def test_boxes_refuse_a_tilt(self):
        boxes = Boxes(centers=torch.zeros(1, 3), sizes=torch.ones(1, 3), yaws=torch.zeros(1))
        with pytest.raises(UserError, match="tilt=0"):
            transform_boxes(boxes, random_cloud_transform(np.random.default_rng(0)))

    def test_jitter(self, cloud):
        rng = np.random.default_rng(0)
        colored = jitter_color(cloud, rng)
        assert colored["color"].min() >= 0 and colored["color"].max() <= 1
        assert not torch.equal(colored["color"], cloud["color"]) and colored.xyz is cloud.xyz
        moved = jitter_xyz(cloud, rng)
        assert 0 < (moved.xyz - cloud.xyz).abs().max() <= 0.0201
        with pytest.raises(MissingAttribute, match="no attribute 'color'"):
            jitter_color(Points(xyz=cloud.xyz), rng)


def inside(xyz: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    cos, sin = boxes.yaws.cos(), boxes.yaws.sin()
    offset = xyz - boxes.centers
    local = torch.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]], 1)
    return (torch.cat([local, offset[:, 2:]], 1).abs() <= boxes.sizes / 2).all(1)
