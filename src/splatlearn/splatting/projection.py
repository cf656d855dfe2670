"""Perspective projection of Gaussians (EWA splatting) in plain torch: what the reference backend differentiates.

Legend: N Gaussians seen by one view. Metres and world axes in, pixels out; pixel centres at half integers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 16
"""Side in pixels of the squares that pictures are drawn in."""
BORDER = 0.3
"""The Jacobian is linearised no further than this share of half the field of view beyond the image (gsplat)."""
MIN_DETERMINANT = 1e-10
MAX_DETERMINANT = 1e38
"""px^4. A footprint outside this range is a line, a point or numerically infinite, and is not drawn."""
ZERO_QUATERNION = 1e-12
"""A quaternion shorter than this is the identity rotation and gets no gradient."""


class Footprints(NamedTuple):
    """What Gaussians look like from one view.

    Fields:
        centers: (N 2) pixels, x then y.
        depths: (N) metres along the optical axis.
        covariances: (N 3) px^2, entries xx, xy, yy with the low-pass filter added.
        determinants: (N) px^4, of `covariances`, free of cancellation.
        sharp_determinants: (N) px^4, before the low-pass filter.
    """

    centers: Tensor
    depths: Tensor
    covariances: Tensor
    determinants: Tensor
    sharp_determinants: Tensor

    @property
    def conics(self) -> Tensor:
        """(N 3) inverse covariances xx, xy, yy, 1/px^2."""
        xx, xy, yy = self.covariances.unbind(-1)
        return torch.stack([yy, -xy, xx], -1) / self.determinants[:, None]

    @property
    def compensations(self) -> Tensor:
        """(N) in [0, 1]: how much the low-pass filter enlarged each footprint (gsplat's antialiasing factor)."""
        return (self.sharp_determinants / self.determinants).clamp_min(0).sqrt()


def unit(quaternions: Tensor) -> Tensor:
    """(N 4) of length 1; one shorter than `ZERO_QUATERNION` becomes the identity, without a gradient.

    They are first divided by their largest component, as squares of float32 overflow from 2e19 on.
    """
    largest = quaternions.detach().abs().amax(-1, keepdim=True).clamp_min(ZERO_QUATERNION)
    scaled = quaternions / largest
    usable = scaled.detach().norm(dim=-1, keepdim=True) * largest > ZERO_QUATERNION
    identity = quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    return torch.nn.functional.normalize(torch.where(usable, scaled, identity), dim=-1)


def rotations(quaternions: Tensor) -> Tensor:
    """(N 3 3) rotation matrices of (N 4) w x y z quaternions of any length; zero gives the identity."""
    w, x, y, z = unit(quaternions).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def to_camera(means: Tensor, world_to_camera: Tensor) -> Tensor:
    """(N 3) world points in the axes of one camera (4 4)."""
    return means @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]


def project(
    means: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    world_to_camera: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    low_pass: float,
) -> Footprints:
    """Projects Gaussians through the linearised pinhole camera.

    Args:
        means: (N 3) metres, world, in front of the camera.
        scales: (N 3) metres.
        quaternions: (N 4) w x y z.
        world_to_camera: (4 4).
        intrinsics: (3 3) pixels, without skew.
        size: width and height of the image, pixels.
        low_pass: px^2, added to both variances.

    All inputs get gradients. Conventions of gsplat 1.5.3.
    """
    camera = to_camera(means, world_to_camera)
    depth = camera[:, 2]
    center = camera[:, :2] / depth[:, None] * intrinsics.diagonal()[:2] + intrinsics[:2, 2]
    jacobian = _jacobian(camera, intrinsics, size)
    axes = world_to_camera[:3, :3] @ rotations(quaternions) * scales[:, None, :]
    first, second = (jacobian @ axes).unbind(-2)
    xx, xy, yy = (first * first).sum(-1), (first * second).sum(-1), (second * second).sum(-1)
    sharp = torch.linalg.cross(first, second).square().sum(-1)
    covariances = torch.stack([xx + low_pass, xy, yy + low_pass], -1)
    return Footprints(center, depth, covariances, sharp + low_pass * (xx + yy) + low_pass**2, sharp)


def _jacobian(camera: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """(N 2 3) derivative of the pixel by the camera-frame position, held constant far outside the image."""
    width, height = size
    x, y, z = camera.unbind(-1)
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    slope_x = _clamped(x / z, -(cx + BORDER / 2 * width) / fx, ((1 + BORDER / 2) * width - cx) / fx)
    slope_y = _clamped(y / z, -(cy + BORDER / 2 * height) / fy, ((1 + BORDER / 2) * height - cy) / fy)
    zero = torch.zeros_like(z)
    rows = [
        torch.stack([fx / z, zero, -fx * slope_x / z], -1),
        torch.stack([zero, fy / z, -fy * slope_y / z], -1),
    ]
    return torch.stack(rows, -2)


def _clamped(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(value, low), high)
