"""Pinhole cameras. Legend: V views, M pixels or points. Metres, world; OpenCV axes (x right, y down, z forward).

Pixel centres lie at half integers: the centre of the top-left pixel is (0.5, 0.5). Geometry keeps the precision of
the cameras, under autocast too.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from splatlearn.structures.packed import Packed


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras(Packed):
    """Posed pinhole cameras of one image size.

    Args:
        world_to_camera: (V 4 4) rigid, metres.
        intrinsics: (V 3 3) in pixels of `width` x `height`, pixel centres at half integers.
        width: pixels, shared by all views.
        height: pixels, shared by all views.

    Attributes in use: `frame` (V) int64, the raw index in the recording.
    """

    world_to_camera: Tensor
    intrinsics: Tensor
    width: int
    height: int

    @property
    def camera_to_world(self) -> Tensor:
        """(V 4 4), the inverse poses, differentiable.

        Inverted in float64 and as the general matrices that they are: recorded rotations are orthonormal to their
        last digit only, and epipolar geometry enlarges what a transpose leaves of that.
        """
        with self._exact():
            return torch.linalg.inv(self.world_to_camera.double()).to(self.world_to_camera.dtype)

    @property
    def centers(self) -> Tensor:
        """(V 3) camera positions, metres, world."""
        return self.camera_to_world[:, :3, 3]

    def resize(self, width: int, height: int) -> Self:
        """The same views at another pixel size; both axes scale on their own."""
        scale = self.intrinsics.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, intrinsics=self.intrinsics * scale[:, None], width=width, height=height)

    def pixel_grid(self) -> Tensor:
        """(H W 2) pixel centres (x, y), pixels."""
        like = self.intrinsics
        x = torch.arange(self.width, device=like.device, dtype=like.dtype) + 0.5
        y = torch.arange(self.height, device=like.device, dtype=like.dtype) + 0.5
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)

    def directions(self) -> Tensor:
        """(V H W 3) camera-frame directions through the pixel centres, with z = 1."""
        pixels = torch.nn.functional.pad(self.pixel_grid(), (0, 1), value=1.0)
        with self._exact():
            return torch.einsum("hwj,vij->vhwi", pixels, torch.linalg.inv(self.intrinsics))

    def unproject(self, depth: Tensor) -> Tensor:
        """World points of the pixel centres.

        Args:
            depth: (V H W) metres along z.

        Returns:
            (V H W 3) metres, world.
        """
        in_camera = self.directions() * depth[..., None]
        pose = self.camera_to_world
        with self._exact():
            return torch.einsum("vhwj,vij->vhwi", in_camera, pose[:, :3, :3]) + pose[:, None, None, :3, 3]

    def project(self, xyz: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels of world points.

        Args:
            xyz: (M 3) metres, world.
            view: (M) int64, the view each point is projected into.

        Returns:
            (M 2) pixels (x, y), and (M) depth along z in metres (pixels are meaningless where it is <= 0).
        """
        pose = self.world_to_camera[view]
        with self._exact():
            in_camera = torch.einsum("mij,mj->mi", pose[:, :3, :3], xyz) + pose[:, :3, 3]
            image = torch.einsum("mij,mj->mi", self.intrinsics[view], in_camera)
        return image[:, :2] / image[:, 2:].abs().clamp_min(1e-8), in_camera[:, 2]

    def _exact(self) -> torch.autocast:
        """A context without autocast, which would round products to half precision: millimetres, in a room."""
        return torch.autocast(self.world_to_camera.device.type, enabled=False)
