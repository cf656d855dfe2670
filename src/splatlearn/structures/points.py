"""Point clouds, tokens and boxes. Legend: N points, M tokens or boxes, C channels. Metres, world."""

from dataclasses import dataclass

from torch import Tensor

from splatlearn.structures.packed import Packed


@dataclass(frozen=True, kw_only=True, eq=False)
class Points(Packed):
    """Point clouds.

    Args:
        xyz: (N 3) float32 metres, world.

    Attributes in use: `color` (N 3) in [0, 1], `normal` (N 3) unit, `intensity` (N), `label` (N) int64 with
    -1 = ignore, `instance` (N) int64 with -1 = none, `pixel` (N) int64 = y * W + x in the view it came from.
    """

    xyz: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens(Packed):
    """One level of a point encoder.

    Args:
        xyz: (M 3) metres, world.
        features: (M C).
    """

    xyz: Tensor
    features: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes(Packed):
    """Boxes that stand upright (rotated about +z only).

    Args:
        centers: (M 3) metres, world.
        sizes: (M 3) full extents along the box's own x, y, z, metres.
        yaws: (M) radians, counter-clockwise about +z from the world's x to the box's x.

    Attributes in use: `label` (M) int64, `score` (M), `instance` (M) int64.
    """

    centers: Tensor
    sizes: Tensor
    yaws: Tensor
