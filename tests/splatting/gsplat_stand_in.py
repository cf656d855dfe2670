"""A stand-in for gsplat on a CPU: its signature, and pictures by our reference renderer.

It shows that the adapter calls and unpacks it rightly; it says nothing about gsplat's kernels. Where gsplat defines
less than `render` does, so does this: intrinsics get no gradient, a quaternion of length zero is NaN, the cuts are
those that are compiled in.

Legend: V views, N Gaussians, D channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from splatlearn.splatting import RenderOptions, reference
from splatlearn.splatting import gsplat as adapter
from splatlearn.structures import Cameras, Gaussians


class StandIn(SimpleNamespace):
    """What `import gsplat` gives, and the arguments of every call of its `rasterization`."""

    __version__ = "1.5.3, a stand-in"

    def __init__(self) -> None:
        super().__init__(calls=[])

    def rasterization(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.01,
        far_plane: float = 1e10,
        radius_clip: float = 0.0,
        eps2d: float = 0.3,
        sh_degree: int | None = None,
        packed: bool = True,
        tile_size: int = 16,
        backgrounds: Tensor | None = None,
        render_mode: str = "RGB",
        sparse_grad: bool = False,
        absgrad: bool = False,
        rasterize_mode: str = "classic",
        channel_chunk: int = 32,
        distributed: bool = False,
        camera_model: str = "pinhole",
        segmented: bool = False,
        covars: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Colours (V H W D), alphas (V H W 1) and an empty record."""
        given = {name: value for name, value in locals().items() if name != "self"}
        self.calls.append(given)
        views, number = len(viewmats), len(means)
        shapes = {
            "means": (number, 3),
            "quats": (number, 4),
            "scales": (number, 3),
            "opacities": (number,),
            "colors": (views, number, colors.shape[-1]),
            "viewmats": (views, 4, 4),
            "Ks": (views, 3, 3),
        }
        for name, shape in shapes.items():
            value = given[name]
            assert value.shape == shape and value.dtype == torch.float32 and value.isfinite().all(), name
        assert number and views and colors.shape[-1] and channel_chunk <= 513
        assert render_mode == "RGB" and rasterize_mode in ("classic", "antialiased")
        defaults = (radius_clip, sh_degree, tile_size, backgrounds, sparse_grad, absgrad, distributed, camera_model)
        assert defaults == (0.0, None, 16, None, False, False, False, "pinhole") and covars is None and not segmented
        quats = quats / quats.norm(dim=1, keepdim=True)
        options = RenderOptions(
            near=near_plane, far=far_plane, low_pass=eps2d, antialiased=rasterize_mode == "antialiased"
        )
        cloud = Gaussians(
            means=means, scales=scales, quaternions=quats, opacities=opacities, sh=means.new_zeros(number, 1, 3)
        )
        pictures = []
        for pose, intrinsics, values in zip(viewmats, Ks.detach(), colors, strict=True):
            camera = Cameras(
                world_to_camera=pose[None], intrinsics=intrinsics[None], width=int(width), height=int(height)
            )
            pictures.append(reference.rasterize(cloud, camera, values, options))
        blended, alphas = (torch.cat([picture[i] for picture in pictures]).permute(0, 2, 3, 1) for i in (1, 3))
        return blended, alphas, {}


@contextmanager
def installed() -> Iterator[StandIn]:
    """The stand-in instead of gsplat, and the CPU instead of CUDA devices."""
    library = StandIn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "gsplat", library)
        patch.setattr(adapter, "DEVICE", "cpu")
        adapter.problem.cache_clear()
        yield library
    adapter.problem.cache_clear()
