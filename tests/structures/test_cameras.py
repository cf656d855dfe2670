"""Cameras, frames and what they back-project to."""

from dataclasses import replace

import pytest
import torch

from splatlearn.errors import MissingAttribute
from splatlearn.structures import SH_C0, Cameras, Frames, Gaussians


def camera(width: int = 8, height: int = 6) -> Cameras:
    """One camera at (1, 2, 3) that looks along world +x, with z down in the image."""
    rotation = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    pose = torch.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = -rotation @ torch.tensor([1.0, 2, 3])
    intrinsics = torch.tensor([[10.0, 0, width / 2], [0, 12.0, height / 2], [0, 0, 1]])
    return Cameras(world_to_camera=pose[None], intrinsics=intrinsics[None], width=width, height=height)


def test_center_and_inverse_pose():
    cameras = camera()
    assert torch.allclose(cameras.centers, torch.tensor([[1.0, 2, 3]]))
    assert torch.allclose(cameras.camera_to_world @ cameras.world_to_camera, torch.eye(4)[None], atol=1e-6)


def test_inverse_of_a_rotation_that_is_not_quite_one():
    pose = camera().world_to_camera + 1e-3 * torch.eye(4)
    cameras = replace(camera(), world_to_camera=pose)
    assert torch.allclose(cameras.camera_to_world @ pose, torch.eye(4)[None], atol=1e-6)


def test_autocast_leaves_geometry_alone():
    cameras, depth = camera(), torch.rand(1, 6, 8) + 0.5
    view = torch.zeros(48, dtype=torch.long)

    def geometry() -> list[torch.Tensor]:
        xyz = cameras.unproject(depth)
        back = cameras.project(xyz.view(-1, 3), view)
        return [cameras.camera_to_world, cameras.centers, cameras.directions(), xyz, *back]

    exact = geometry()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, geometry(), exact))


def test_unproject_and_project_are_inverse():
    cameras = camera()
    depth = torch.rand(1, 6, 8) + 0.5
    xyz = cameras.unproject(depth).flatten(1, 2)[0]
    pixels, z = cameras.project(xyz, torch.zeros(len(xyz), dtype=torch.long))
    assert torch.allclose(pixels, cameras.pixel_grid().flatten(0, 1), atol=1e-4)
    assert torch.allclose(z, depth.flatten(), atol=1e-5)


def test_a_point_ahead_lands_on_the_principal_point():
    pixels, z = camera().project(torch.tensor([[4.0, 2, 3]]), torch.tensor([0]))
    assert torch.allclose(pixels, torch.tensor([[4.0, 3.0]]))
    assert z.item() == pytest.approx(3.0)


def test_resize_keeps_rays():
    small, large = camera().resize(16, 24), camera()
    xyz = torch.tensor([[4.0, 2.5, 3.2]])
    low, _ = large.project(xyz, torch.tensor([0]))
    high, _ = small.project(xyz, torch.tensor([0]))
    assert torch.allclose(high, low * torch.tensor([2.0, 4.0]), atol=1e-4)


class TestFrames:
    def frames(self) -> Frames:
        depth = torch.full((1, 6, 8), 2.0)
        depth[0, 0, :3] = 0
        return Frames(images=torch.rand(1, 3, 6, 8), cameras=camera(), attributes={"depth": depth})

    def test_points_of_pixels_with_depth(self):
        frames = self.frames()
        points = frames.to_points()
        assert points.counts == (45,)
        assert points["pixel"][0].item() == 3
        assert torch.equal(points["color"][0], frames.images[0, :, 0, 3])

    def test_only_visible_pixels(self):
        frames = self.frames()
        visible = torch.zeros(1, 6, 8, dtype=torch.bool)
        visible[0, 5, 7] = True
        points = frames.with_attributes(visible=visible).to_points()
        assert points["pixel"].tolist() == [47]

    def test_no_depth(self):
        with pytest.raises(MissingAttribute, match="Frames has no attribute 'depth'"):
            Frames(images=torch.rand(1, 3, 6, 8), cameras=camera()).to_points()


def test_gaussians_as_points():
    gaussians = Gaussians(
        means=torch.randn(4, 3),
        scales=torch.rand(4, 3),
        quaternions=torch.randn(4, 4),
        opacities=torch.rand(4),
        sh=torch.full((4, 1, 3), 0.1 / SH_C0),
    )
    points = gaussians.to_points()
    assert torch.allclose(points["color"], torch.full((4, 3), 0.6))
    assert points["opacity"].shape == (4, 1)
