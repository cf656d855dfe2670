"""Which points of a lidar scan a camera sees, by the rule of the data set.

Legend: N points of a scan, M those that are seen, V views. Metres; pixels (x, y) with centres at half integers. Nothing
here is differentiable, and nothing is hidden by what stands before it: lidar and cameras sit close to each other.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.structures import Cameras, Points


@dataclass(frozen=True, kw_only=True)
class ProjectionRule:
    """When a point counts as seen.

    Args:
        min_depth: metres along the camera's z axis that a point must exceed (1: ScaLR's nuScenes code).
        min_forward: metres along the scan's own +x axis that a point must exceed; None asks nothing (1: ScaLR's
            KITTI code, whose x points forward, and which asks for no depth).
        border: pixels left free at the right and lower border. ScaLR's code wants 0 < u < W - 1 and 0 < v < H - 1
            of the native image, and takes the pixel that contains (u, v).
    """

    min_depth: float = 1.0
    min_forward: float | None = None
    border: float = 1.0

    def __post_init__(self) -> None:
        require(
            {
                f"min_depth: 0 or more expected, got {self.min_depth}": self.min_depth >= 0,
                f"border: 0 or more expected, got {self.border}": self.border >= 0,
            }
        )


class Visible(NamedTuple):
    """The points that a view sees.

    Args:
        rows: (M) int64, rows of the scan, ascending.
        pixels: (M 2) float32 continuous (x, y) in the view's size; `floor` gives the pixel that contains it.
    """

    rows: Tensor
    pixels: Tensor


def visible_points(points: Points, cameras: Cameras, view: int, rule: ProjectionRule | None = None) -> Visible:
    """The points that one view sees, and where.

    Args:
        points: a scan as the scene gives it, N points, not yet turned or scaled.
        cameras: of the same scene. The official rules speak of the native size: project into that, and scale pixels
            to the size of the image that is read.
        view: which of them.
        rule: of the data set (`Scene.projection`); None is the default rule.
    """
    rule, xyz = rule or ProjectionRule(), points.xyz
    pose, matrix = cameras.world_to_camera[view], cameras.intrinsics[view]
    in_camera = xyz @ pose[:3, :3].T + pose[:3, 3]
    depth = in_camera[:, 2]
    pixels = in_camera[:, :2] / depth[:, None] * matrix[[0, 1], [0, 1]] + matrix[:2, 2]
    size = xyz.new_tensor([cameras.width, cameras.height])
    seen = (depth > rule.min_depth) & ((pixels > 0) & (pixels < size - rule.border)).all(1)
    if rule.min_forward is not None:
        seen &= xyz[:, 0] > rule.min_forward
    rows = torch.nonzero(seen)[:, 0]
    return Visible(rows, pixels[rows])
