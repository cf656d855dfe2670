"""Images, with and without cameras. Legend: V views, H W pixels, C = 3 colours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splatlearn.structures.cameras import Cameras
from splatlearn.structures.packed import Packed
from splatlearn.structures.points import Points


@dataclass(frozen=True, kw_only=True, eq=False)
class Images(Packed):
    """RGB images of one size.

    Args:
        images: (V 3 H W) float32 RGB in [0, 1].
    """

    images: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames(Images):
    """Posed images.

    Args:
        cameras: the same V views, items and size as the images.

    Attributes in use: `depth` (V H W) metres along z, 0 = none; `visible` (V H W) bool, pixels that the encoder
    may see.
    """

    cameras: Cameras

    def to_points(self) -> Points:
        """The cloud of every view: pixels with depth (and `visible`, where given), back-projected.

        Returns:
            Points with one item per *view* (`regroup` joins views), in row-major pixel order; attributes
            `color` (N 3) in [0, 1] and `pixel` (N) int64 = y * W + x.

        Raises:
            MissingAttribute: the frames have no depth.
        """
        depth = self["depth"]
        keep = depth > 0
        if "visible" in self:
            keep = keep & self["visible"]
        keep = keep.flatten(1)
        xyz = self.cameras.unproject(depth).flatten(1, 2)[keep]
        color = self.images.flatten(2).transpose(1, 2)[keep]
        pixel = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)[keep]
        counts = tuple(keep.sum(1).tolist())
        return Points(xyz=xyz, counts=counts, attributes={"color": color, "pixel": pixel})
