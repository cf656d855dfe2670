"""`lift`: features of pictures to the Gaussians that make them, by the weights with which they are blended."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from splatlearn.errors import UserError
from splatlearn.splatting import reference
from splatlearn.splatting.render import RenderOptions, check_scene, cpu_takes
from splatlearn.structures import Cameras, Gaussians

VARIANTS = ("exact", "projected")


class Lifted(NamedTuple):
    """Sums over views. Add those of further views (`+` of the fields), then take `mean`.

    Fields:
        sums: (N C) features times weights.
        weights: (N) sums of the weights; 0 for a Gaussian that no pixel shows.
    """

    sums: Tensor
    weights: Tensor

    @property
    def seen(self) -> Tensor:
        """(N) bool: shown by a pixel of a view."""
        return self.weights > 0

    def mean(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N C) weighted means, 0 for Gaussians that were not seen. `torch.float16` halves what a scene takes."""
        return (self.sums / self.weights.clamp_min(torch.finfo(self.weights.dtype).tiny)[:, None]).to(dtype)


@torch.no_grad()
def lift(
    maps: Tensor,
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    variant: Literal["exact", "projected"] = "exact",
    options: RenderOptions = RenderOptions(),
) -> Lifted:
    """Features of every Gaussian from maps of the views that see it.

    `exact` is the adjoint of `render(gaussians, cameras, features)`: each pixel gives its feature with the weight that
    the Gaussian has there (LUDVIG's form, as Chorus uses it). A coarse map is read bilinearly at the pixels, without
    being enlarged: memory does not grow with C times the pixels. `projected` (Occam's LGS) reads one pixel a view,
    that of the projected mean, clamped to the image, and weighs it with the sum of the Gaussian's weights in the view.

    Nothing is differentiated. Time grows with views times pixels times C. Float32 tensors on the CPU take the `cpu`
    backend; all others, on a CUDA device too, take plain torch, which enlarges the maps: gsplat does not lift.

    Args:
        maps: (V C h w), one a camera; h and w at most the cameras', of any ratio.
        gaussians: B items, metres, world.
        cameras: B items; their size is the resolution at which weights are computed.
        variant: which pixels a Gaussian reads.
        options: as in `render`; background and depth are not used.

    Raises:
        UserError: as `render`, or maps of another count, dtype or device, or larger than the cameras' pictures.
    """
    check_scene(gaussians, cameras)
    _check_maps(maps, gaussians, cameras, variant)
    if variant == "exact":
        return Lifted(*_adjoint(maps, gaussians, cameras, options))
    parts, first = [], 0
    for item, seen in zip(gaussians.split(), cameras.split(), strict=True):
        parts.append(_projected(maps[first : first + len(seen)], item, seen, options))
        first += len(seen)
    sums, weights = zip(*parts) if parts else ([maps.new_zeros(0, maps.shape[1])], [maps.new_zeros(0)])
    return Lifted(torch.cat(list(sums)), torch.cat(list(weights)))


def _adjoint(maps: Tensor, gaussians: Gaussians, cameras: Cameras, options: RenderOptions) -> tuple[Tensor, Tensor]:
    if cpu_takes(gaussians, options):
        from splatlearn.splatting import cpu

        return cpu.lift(maps, gaussians, cameras, options)
    return reference.lift(maps, gaussians, cameras, options)


def _projected(maps: Tensor, item: Gaussians, cameras: Cameras, options: RenderOptions) -> tuple[Tensor, Tensor]:
    sums, total = maps.new_zeros(len(item), maps.shape[1]), maps.new_zeros(len(item))
    height, width = maps.shape[2:]
    for view, camera in enumerate(cameras.regroup((1,) * len(cameras)).split()):
        weights = _adjoint(maps[view : view + 1, :0], item, camera, options)[1]
        pixel, _ = camera.project(item.means, torch.zeros(len(item), dtype=torch.long, device=maps.device))
        place = pixel / pixel.new_tensor([camera.width, camera.height]) * pixel.new_tensor([width, height])
        x, y = place.nan_to_num(0.0).floor().long().unbind(-1)
        read = maps[view][:, y.clamp(0, height - 1), x.clamp(0, width - 1)].T
        sums += torch.where(weights[:, None] > 0, weights[:, None] * read, 0)
        total += weights
    return sums, total


def _check_maps(maps: Tensor, gaussians: Gaussians, cameras: Cameras, variant: str) -> None:
    like = gaussians.means
    if variant not in VARIANTS:
        raise UserError(f"lift: variant is {variant!r}, not one of {', '.join(VARIANTS)}")
    if maps.ndim != 4 or len(maps) != len(cameras) or min(maps.shape[2:], default=0) < 1:
        raise UserError(f"lift: maps have shape {tuple(maps.shape)}, expected ({len(cameras)}, C, h, w)")
    if maps.dtype != like.dtype or maps.device != like.device:
        raise UserError(f"lift: maps are {maps.dtype} on {maps.device}, means are {like.dtype} on {like.device}")
    if maps.shape[2] > cameras.height or maps.shape[3] > cameras.width:
        raise UserError(
            f"lift: maps of {maps.shape[3]}x{maps.shape[2]} are larger than the pictures of {cameras.width}x"
            f"{cameras.height}, in which weights are computed; use `cameras.resize`"
        )
