"""The reference backend: plain torch, any floating dtype, any device. Slow, short, and the oracle of the others.

Legend: V views, N Gaussians, P pixels of one tile, M Gaussians that touch it, C channels.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from splatlearn.splatting import harmonics
from splatlearn.splatting.projection import (
    MAX_DETERMINANT,
    MIN_DETERMINANT,
    TILE,
    Footprints,
    project,
    to_camera,
)
from splatlearn.structures import Cameras, Gaussians

if TYPE_CHECKING:
    from splatlearn.splatting.render import RenderOptions


def rasterize(
    gaussians: Gaussians, cameras: Cameras, features: Tensor | None, options: "RenderOptions"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Premultiplied color (V 3 H W), features (V C H W), depth (V 1 H W) and alpha (V 1 H W), view by view.

    Memory is that of one tile: every tile is evaluated again in the backward pass.
    """
    size = (cameras.width, cameras.height)
    rows = gaussians.means.new_zeros(len(gaussians), 0) if features is None else features
    views = [
        _view(item, part, seen.world_to_camera[v], seen.intrinsics[v], size, options)
        for item, part, seen in zip(gaussians.split(), rows.split(gaussians.counts), cameras.split(), strict=True)
        for v in range(len(seen))
    ]
    empty = gaussians.means.new_zeros(0, 5 + rows.shape[1], cameras.height, cameras.width)
    layers = torch.stack(views) if views else empty
    color, depth, blended, alpha = layers.split([3, 1, rows.shape[1], 1], 1)
    return color, blended, depth, alpha


def lift(maps: Tensor, gaussians: Gaussians, cameras: Cameras, options: "RenderOptions") -> tuple[Tensor, Tensor]:
    """Sums (N C) of maps (V C h w) over the pixels of a Gaussian, weighed as it is blended there, and sums (N) of
    these weights: the gradient of rendering features of which the loss is their product with the enlarged maps."""
    size = (cameras.height, cameras.width)
    by_output = maps.new_ones(len(maps), 1, *size)
    if maps.shape[1]:
        large = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
        by_output = torch.cat([large, by_output], 1)
    features = gaussians.means.new_zeros(len(gaussians), by_output.shape[1]).requires_grad_()
    with torch.enable_grad():
        blended = rasterize(gaussians, cameras, features, options)[1]
    if not blended.requires_grad:
        return features.detach()[:, :-1], features.detach()[:, -1]
    (sums,) = torch.autograd.grad(blended, features, by_output)
    return sums[:, :-1], sums[:, -1]


def composite(
    centers: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, pixels: Tensor, options: "RenderOptions"
) -> tuple[Tensor, Tensor]:
    """Front-to-back alpha compositing of depth-sorted footprints.

    Args:
        centers: (M 2) pixels.
        conics: (M 3) inverse covariances xx, xy, yy.
        opacities: (M).
        values: (M C) what is blended.
        pixels: (P 2) pixel centres.
        options: alpha_min, alpha_max and transmittance_min are used.

    Returns:
        (P C) blended values, not divided by alpha, and (P) alpha.
    """
    dx, dy = (pixels[:, None, :] - centers[None, :, :]).unbind(-1)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp_max(options.alpha_max)
    alpha = torch.where(alpha >= options.alpha_min, alpha, 0)
    reached = (1 - alpha).cumprod(1) > options.transmittance_min
    alpha = torch.where(reached, alpha, 0)
    behind = (1 - alpha).cumprod(1)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
    return (alpha * before) @ values, 1 - behind[:, -1]


def _view(
    item: Gaussians,
    features: Tensor,
    pose: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    options: "RenderOptions",
) -> Tensor:
    """(3 + 1 + C + 1 H W): color, depth, features and alpha of one view."""
    inputs = (item.means, item.scales, item.quaternions, item.opacities, item.sh, features, pose, intrinsics)
    shown = _visible(item, pose, intrinsics, size, options)
    means, scales, quaternions = item.means[shown], item.scales[shown], item.quaternions[shown]
    footprints = project(means, scales, quaternions, pose, intrinsics, size, options.low_pass)
    color = harmonics.colors(item.sh[shown], means + pose[:3, :3].T @ pose[:3, 3])
    values = torch.cat([color, footprints.depths[:, None], features[shown]], 1)
    opacities = _drawn_opacities(footprints, item.opacities[shown], options)
    tiles = _tiles(footprints, opacities, values, size, options)
    rows = [torch.cat(list(row), 2) for row in tiles]
    return torch.cat(rows, 1) + poison(*inputs)


def _tiles(
    footprints: Footprints, opacities: Tensor, values: Tensor, size: tuple[int, int], options: "RenderOptions"
) -> Iterator[list[Tensor]]:
    """Rows of tiles (values and alpha, h w)."""
    reach = _reach(footprints, opacities.detach(), options)
    low, high = footprints.centers.detach() - reach, footprints.centers.detach() + reach
    conics = footprints.conics
    for top in range(0, size[1], TILE):
        row = []
        for left in range(0, size[0], TILE):
            right, bottom = min(left + TILE, size[0]), min(top + TILE, size[1])
            hits = (low[:, 0] <= right) & (high[:, 0] >= left) & (low[:, 1] <= bottom) & (high[:, 1] >= top)
            chosen = hits.nonzero().squeeze(1)
            box = (left, top, right, bottom)
            parts = (footprints.centers[chosen], conics[chosen], opacities[chosen], values[chosen])
            row.append(checkpoint(_tile, *parts, box, options, use_reentrant=False, preserve_rng_state=False))
        yield row


def _tile(
    centers: Tensor,
    conics: Tensor,
    opacities: Tensor,
    values: Tensor,
    box: tuple[int, int, int, int],
    options: "RenderOptions",
) -> Tensor:
    """(values and alpha, h w) of the pixels in `box` = left, top, right, bottom."""
    left, top, right, bottom = box
    if len(centers) == 0:
        return centers.new_zeros(values.shape[1] + 1, bottom - top, right - left)
    x = torch.arange(left, right, device=centers.device, dtype=centers.dtype) + 0.5
    y = torch.arange(top, bottom, device=centers.device, dtype=centers.dtype) + 0.5
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    blended, alpha = composite(centers, conics, opacities, values, pixels, options)
    return torch.cat([blended, alpha[:, None]], 1).T.reshape(-1, bottom - top, right - left)


@torch.no_grad()
def _visible(
    item: Gaussians, pose: Tensor, intrinsics: Tensor, size: tuple[int, int], options: "RenderOptions"
) -> Tensor:
    """Row numbers of the Gaussians that can reach a pixel, nearest first, ties by row number.

    Chosen before the differentiable pass, so that nothing infinite ever enters it.
    """
    depth = to_camera(item.means, pose)[:, 2]
    rows = ((depth >= options.near) & (depth <= options.far)).nonzero().squeeze(1)
    near = project(
        item.means[rows], item.scales[rows], item.quaternions[rows], pose, intrinsics, size, options.low_pass
    )
    opacities = _drawn_opacities(near, item.opacities[rows], options)
    reach = _reach(near, opacities, options)
    low, high = near.centers - reach, near.centers + reach
    keep = (near.determinants > MIN_DETERMINANT) & (near.determinants < MAX_DETERMINANT)
    keep &= (opacities >= options.alpha_min) & (opacities > 0)
    keep &= (high >= 0).all(1) & (low <= low.new_tensor(size)).all(1)
    rows, depth = rows[keep], near.depths[keep]
    return rows[depth.argsort(stable=True)]


def _drawn_opacities(footprints: Footprints, opacities: Tensor, options: "RenderOptions") -> Tensor:
    """(N) opacities, weakened where antialiasing is on."""
    return opacities * footprints.compensations if options.antialiased else opacities


def _reach(footprints: Footprints, opacities: Tensor, options: "RenderOptions") -> Tensor:
    """(N 2) half extents in pixels of the region where alpha can reach `alpha_min`."""
    variances = footprints.covariances.detach()[:, ::2]
    if options.alpha_min == 0:
        return torch.full_like(variances, torch.inf)
    return (2 * (opacities / options.alpha_min).log().clamp_min(0)[:, None] * variances).sqrt()


def poison(*inputs: Tensor) -> Tensor:
    """0, or NaN where any input is not finite: a view must not look right by chance. Part of every input's graph, so
    that a view of nothing has a gradient too, of zeros."""
    finite = torch.stack([values.isfinite().all() for values in inputs]).all()
    none = torch.stack([values.flatten()[:0].sum() for values in inputs]).sum()
    return torch.where(finite, 0.0, torch.nan).to(none.dtype) + none
