"""Small made views for the tests of heads."""

import math

import torch
from torch import Tensor

from splatlearn.structures import Cameras, Frames, Points


def turn_about(axis: Tensor, angle: Tensor) -> Tensor:
    """(V 3 3) rotations by `angle` (V) radians about `axis` (V 3)."""
    x, y, z = torch.nn.functional.normalize(axis, dim=-1).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    return torch.linalg.matrix_exp(angle[:, None, None] * cross)


def cameras_around(
    counts: tuple[int, ...], width: int = 32, height: int = 24, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Cameras:
    """Views a few centimetres and degrees apart that look along +z."""
    generator = torch.Generator().manual_seed(seed)
    views = sum(counts)
    axis = torch.randn(views, 3, generator=generator, dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    pose[:, :3, :3] = turn_about(axis, torch.full((views,), math.radians(4), dtype=torch.float64))
    pose[:, :3, 3] = 0.1 * torch.randn(views, 3, generator=generator, dtype=torch.float64)
    focal = 0.9 * width
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, 1.1 * focal, height / 2 - 1], [0, 0, 1]])
    return Cameras(
        world_to_camera=pose.to(dtype),
        intrinsics=intrinsics.to(dtype).repeat(views, 1, 1),
        width=width,
        height=height,
        counts=counts,
    )


def masked_points(cameras: Cameras, seed: int = 0, keep: float = 0.5) -> tuple[Frames, Points]:
    """Frames of random colour and of depth between 1.5 and 2.5 m, and the cloud of their visible half."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(cameras), cameras.height, cameras.width)
    like = cameras.intrinsics
    images = torch.rand(size[0], 3, *size[1:], generator=generator, dtype=like.dtype)
    depth = 1.5 + torch.rand(size, generator=generator, dtype=like.dtype)
    visible = torch.rand(size, generator=generator) < keep
    frames = Frames(
        images=images,
        cameras=cameras,
        counts=cameras.counts,
        attributes={"depth": depth, "visible": visible},
    )
    return frames, frames.to_points()
