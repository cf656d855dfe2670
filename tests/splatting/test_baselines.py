"""Predictions without learning: what they are on scenes where the answer is known."""

import torch

from splatlearn.splatting.baselines import (
    BASELINES,
    copy,
    depth_warp,
    mean_color,
    nearest_other,
    own_color,
)
from splatlearn.structures import Cameras, Frames


def plane(shifts: list[float], frames: list[int]) -> Frames:
    """Cameras shifted along x (metres) before a textured wall 2 m away; pixels are 2 cm there, so 0.2 m is 10 px."""
    views = len(shifts)
    x = torch.arange(64) + 0.5
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = -torch.tensor(shifts)
    pattern = [(torch.sin((x - 32) * 0.02 * 9 + shift * 9) + 1) / 2 for shift in shifts]
    images = torch.stack(pattern)[:, None, None, :].expand(views, 3, 32, 64).contiguous()
    intrinsics = torch.tensor([[100.0, 0, 32], [0, 100.0, 16], [0, 0, 1]]).expand(views, 3, 3)
    cameras = Cameras(
        world_to_camera=poses, intrinsics=intrinsics, width=64, height=32, attributes={"frame": torch.tensor(frames)}
    )
    return Frames(images=images, cameras=cameras, attributes={"depth": torch.full((views, 32, 64), 2.0)})


def test_copy_takes_the_nearest_other_view():
    inputs, targets = plane([0.0, 0.1], [0, 5]), plane([0.0, 0.1, 0.02], [0, 5, 1])
    assert nearest_other(inputs, targets).tolist() == [1, 0, 0]
    assert torch.equal(copy(inputs, targets)[0], inputs.images[1])


def test_items_do_not_mix():
    inputs = Frames.pack([plane([0.0, 0.1], [0, 5]), plane([0.3, 0.4], [0, 5])])
    targets = Frames.pack([plane([0.0], [0]), plane([0.4], [5])])
    assert nearest_other(inputs, targets).tolist() == [1, 2]


def test_depth_warp_is_right_where_both_see():
    inputs, targets = plane([0.0, 0.1], [0, 5]), plane([0.0], [0])
    error = (depth_warp(inputs, targets) - targets.images).abs()[..., 8:]
    assert error.max() < 0.01
    assert (copy(inputs, targets) - targets.images).abs().mean() > 0.1


def test_own_color_paints_the_view_again():
    inputs = plane([0.0, 0.1], [0, 5])
    painted = own_color(inputs, inputs)
    assert (painted - inputs.images).abs()[:, :, 2:-2, 2:-2].mean() < 0.06


def test_mean_color_is_flat():
    inputs = plane([0.0, 0.1], [0, 5])
    assert torch.allclose(mean_color(inputs, inputs)[0, :, 0, 0], inputs.images.mean((0, 2, 3)))


def test_names_that_reports_use():
    assert set(BASELINES) == {"mean_colour", "copy", "depth_warp", "own_colour"}
