"""The geometry of epipolar lines: where the ray of a pixel is seen by another view, and at which depths.

Legend: V views, P ordered pairs of views of one item, R rays (one per pixel), S samples on an epipolar line,
C channels, h w pixels. Metres, world.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.errors import UserError
from splatlearn.structures import Cameras

PARALLEL = 1e-5
"""Rays whose directions have a cosine above 1 - PARALLEL meet at infinity (pixelSplat code)."""
TINY = 1e-10
"""Added to depths before they are inverted (pixelSplat code), and the least divisor."""


class ViewPairs(NamedTuple):
    """Ordered pairs of views of one item, grouped by the first, both ascending."""

    view: Tensor  # (P) int64, the view that a ray starts from
    other: Tensor  # (P) int64, the view that it is seen in


class EpipolarLines(NamedTuple):
    """Samples on the epipolar lines of every ray of every pair."""

    pixels: Tensor  # (P R S 2) pixels (x, y) of the other view; 0 where the line misses the image
    depths: Tensor  # (P R S) metres along the ray, from the first view's centre, not clamped
    valid: Tensor  # (P R) bool: the ray between near and far is seen by the other view


def view_pairs(counts: Sequence[int], device: torch.device | str = "cpu") -> ViewPairs:
    """All ordered pairs of different views of an item.

    Args:
        counts: views per item.
        device: where the indices lie.

    Raises:
        UserError: an item has a single view.
    """
    if any(count < 2 for count in counts):
        raise UserError(f"epipolar lines need 2 or more views an item; views per item: {tuple(counts)}")
    pairs, start = [], 0
    for count in counts:
        item = torch.arange(start, start + count)
        first, second = torch.meshgrid(item, item, indexing="ij")
        pairs.append(torch.stack([first, second])[:, first != second])
        start += count
    view, other = torch.cat(pairs, 1).to(device) if pairs else torch.zeros(2, 0, dtype=torch.long, device=device)
    return ViewPairs(view, other)


@torch.no_grad()
def epipolar_lines(cameras: Cameras, pairs: ViewPairs, bounds: Tensor, samples: int) -> EpipolarLines:
    """Evenly spaced samples, in image space, of the part of each ray that the other view sees.

    Rays of nearby views are almost parallel, which makes their meeting points sensitive to rounding: all of this is
    computed in float64.

    Args:
        cameras: V views; a ray starts at every pixel centre, row-major.
        pairs: views to relate.
        bounds: (V 2) nearest and farthest distance along a ray, metres.
        samples: S, at the middles of S equal parts of the segment.

    Returns:
        Lines without gradient, in the precision of the bounds: sampling places are constants of the network.
    """
    precision, bounds = bounds.dtype, bounds.double()
    pose, intrinsics = cameras.world_to_camera.double(), cameras.intrinsics.double()
    cameras = replace(cameras, world_to_camera=pose, intrinsics=intrinsics)
    with torch.autocast(bounds.device.type, enabled=False):
        origins, directions = cameras.centers, _to_world(cameras.directions().flatten(1, 2), cameras.camera_to_world)
        start, change = _image_motion(cameras, pairs, origins, directions)
        first, last, valid = _clip(start, change, bounds[pairs.view, None], cameras.width, cameras.height)
        ends = [_flatten_points(start + t[..., None] * change) * valid[..., None] for t in (first, last)]
        place = (torch.arange(samples, device=ends[0].device, dtype=ends[0].dtype) + 0.5) / samples
        pixels = ends[0][:, :, None] + place[:, None] * (ends[1] - ends[0])[:, :, None]
        depths = _triangulate(cameras, pairs, origins, directions, pixels)
        return EpipolarLines(pixels.to(precision), depths.to(precision), valid)


def relative_disparity(depth: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """0 at near, 1 at far, linear in 1 / depth (pixelSplat code); any broadcastable shapes, metres."""
    nearest, farthest = 1 / (near + TINY), 1 / (far + TINY)
    return 1 - (1 / (depth + TINY) - farthest) / (nearest - farthest + TINY)


def sample_features(features: Tensor, lines: EpipolarLines, pairs: ViewPairs) -> Tensor:
    """Bilinear features of the other view at the samples, zero outside the image and on missed lines.

    Args:
        features: (V C h w), of the cameras that the lines were made with.

    Returns:
        (P R S C) in the precision of the lines, or of the features where that is higher; differentiable in `features`.
    """
    height, width = features.shape[2:]
    size = lines.pixels.new_tensor([width, height])
    precision = torch.promote_types(features.dtype, lines.pixels.dtype)
    sampled = functional.grid_sample(
        features[pairs.other].to(precision),
        (2 * lines.pixels / size - 1).to(precision),
        padding_mode="zeros",
        align_corners=False,
    )
    return sampled.permute(0, 2, 3, 1) * lines.valid[:, :, None, None]


def _to_world(directions: Tensor, camera_to_world: Tensor) -> Tensor:
    """Directions (V R 3) of camera axes, made unit length there and then turned as the pose says (pixelSplat code)."""
    return functional.normalize(directions, dim=-1) @ camera_to_world[:, :3, :3].transpose(1, 2)


def _image_motion(cameras: Cameras, pairs: ViewPairs, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Homogeneous pixels of the point at distance t of a ray, start + t * change: (P 1 3) and (P R 3)."""
    pose, intrinsics = cameras.world_to_camera[pairs.other], cameras.intrinsics[pairs.other].transpose(1, 2)
    rotation = pose[:, :3, :3].transpose(1, 2)
    start = (origins[pairs.view, None] @ rotation + pose[:, None, :3, 3]) @ intrinsics
    return start, directions[pairs.view] @ rotation @ intrinsics


def _clip(start: Tensor, change: Tensor, bounds: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distances between which a ray is inside the image (Liang and Barsky), and whether it ever is.

    The inside of the four image sides is start' + t * change' >= 0 for four linear functions of homogeneous
    pixels; their intersection is an interval of t.
    """
    sides = start.new_tensor([[1, 0, 0], [-1, 0, width], [0, 1, 0], [0, -1, height]]).T
    constant, slope = (start @ sides).expand(*change.shape[:2], 4), change @ sides
    crossing = -constant / slope
    infinite = torch.full_like(crossing, torch.inf)
    enters = torch.where(slope > 0, crossing, -infinite).amax(-1).maximum(bounds[..., 0])
    leaves = torch.where(slope < 0, crossing, infinite).amin(-1).minimum(bounds[..., 1])
    outside = ((slope == 0) & (constant < 0)).any(-1)
    valid = (enters <= leaves) & ~outside
    return enters.where(valid, bounds[..., 0]), leaves.where(valid, bounds[..., 0]), valid


def _flatten_points(points: Tensor) -> Tensor:
    """Homogeneous pixels (... 3) to pixels (... 2)."""
    return points[..., :2] / points[..., 2:].clamp_min(1e-8)


def _triangulate(cameras: Cameras, pairs: ViewPairs, origins: Tensor, directions: Tensor, pixels: Tensor) -> Tensor:
    """(P R S) distance from the first view's centre to the least-squares meeting point of two rays, metres.

    As in pixelSplat's code, x solves (n n' + m m' - 2) x = (m m' - 1) b for ray n, line of sight m and baseline b,
    with n and m as long as recorded rotations leave them. The inverse is that of a rank-two change of -2 (Woodbury).
    """
    sight = functional.pad(pixels, (0, 1), value=1.0).flatten(1, 2)
    sight = sight @ torch.linalg.inv(cameras.intrinsics[pairs.other]).transpose(1, 2)
    sight = _to_world(sight, cameras.camera_to_world[pairs.other]).view(*pixels.shape[:3], 3)
    ray = directions[pairs.view][:, :, None]
    baseline = (origins[pairs.other] - origins[pairs.view])[:, None, None]
    right = _dot(sight, baseline) * sight - baseline
    cosine, short_ray, short_sight = _dot(ray, sight), 2 - _dot(ray, ray), 2 - _dot(sight, sight)
    on_ray, on_sight = _dot(ray, right), _dot(sight, right)
    determinant = (short_ray * short_sight - cosine.square()).clamp_min(TINY)  # small for rays towards each other
    along_ray = (short_sight * on_ray + cosine * on_sight) / determinant
    along_sight = (cosine * on_ray + short_ray * on_sight) / determinant
    meeting = (right + along_ray * ray + along_sight * sight) / -2
    return meeting.norm(dim=-1).masked_fill(cosine[..., 0] > 1 - PARALLEL, torch.inf)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """(... 1) inner products."""
    return (left * right).sum(-1, keepdim=True)
