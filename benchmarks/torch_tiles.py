"""A tile-batched renderer in plain torch: what one would write without kernels. Only the benchmark uses it.

All tiles with about the same number of Gaussians are evaluated together as one (tiles, pixels, Gaussians) block, so
that torch sees few large operations; autograd keeps what it needs. Memory is what it costs: see the table.

Legend: N Gaussians, T tiles of a batch, P pixels of a tile, M Gaussians of the fullest tile of the batch.
"""

import torch
from torch import Tensor

from splatlearn.splatting import RenderOptions, harmonics
from splatlearn.splatting.projection import project
from splatlearn.structures import Cameras, Gaussians

TILE = 8
CELLS = 8_000_000
"""(tile, pixel, Gaussian) cells evaluated at once."""


def render_tiles(gaussians: Gaussians, cameras: Cameras, options: RenderOptions) -> Tensor:
    """(5 H W): color, depth and alpha of the first view, every Gaussian in front of the camera."""
    pose, size = cameras.world_to_camera[0], (cameras.width, cameras.height)
    g, intrinsics = gaussians, cameras.intrinsics[0]
    seen = project(g.means, g.scales, g.quaternions, pose, intrinsics, size, options.low_pass)
    color = harmonics.colors(g.sh, g.means + pose[:3, :3].T @ pose[:3, 3])
    table = torch.cat([seen.centers, seen.conics, g.opacities[:, None], color, seen.depths[:, None]], 1)
    across, down = -(-size[0] // TILE), -(-size[1] // TILE)
    with torch.no_grad():
        reach = (2 * (g.opacities / options.alpha_min).log().clamp_min(0)[:, None] * seen.covariances[:, ::2]).sqrt()
        rows, starts, counts = _bin(seen.centers, reach, seen.depths, across, down)
    pictures = torch.zeros(across * down, 5, TILE * TILE)
    order = counts.argsort(descending=True)
    begin, parts = 0, []
    while begin < len(order):
        most = max(int(counts[order[begin]]), 1)
        tiles = order[begin : begin + max(CELLS // (most * TILE * TILE), 1)]
        parts.append(_blend(table, rows, starts[tiles], counts[tiles], tiles, across, most, options))
        begin += len(tiles)
    pictures = torch.zeros_like(pictures).index_copy(0, order, torch.cat(parts))
    image = pictures.reshape(down, across, 5, TILE, TILE).permute(2, 0, 3, 1, 4)
    return image.reshape(5, down * TILE, across * TILE)[:, : size[1], : size[0]]


def _bin(centers: Tensor, reach: Tensor, depths: Tensor, across: int, down: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians of every tile by depth: row numbers, the first of each tile, and how many it has."""
    limit = torch.tensor([across, down])
    low = ((centers - reach) / TILE).floor().long().clamp_min(0)
    high = torch.minimum(((centers + reach) / TILE).floor().long() + 1, limit)
    sides = (high - low).clamp_min(0)
    hits = sides[:, 0] * sides[:, 1]
    row = torch.repeat_interleave(torch.arange(len(hits)), hits)
    local = torch.arange(len(row)) - torch.repeat_interleave(hits.cumsum(0) - hits, hits)
    tile = (low[row, 1] + local // sides[row, 0]) * across + low[row, 0] + local % sides[row, 0]
    by_depth = depths[row].argsort(stable=True)
    by_tile = by_depth[tile[by_depth].argsort(stable=True)]
    counts = torch.bincount(tile, minlength=across * down)
    return row[by_tile], counts.cumsum(0) - counts, counts


def _blend(
    table: Tensor,
    rows: Tensor,
    starts: Tensor,
    counts: Tensor,
    tiles: Tensor,
    across: int,
    most: int,
    options: RenderOptions,
) -> Tensor:
    """(T 5 P) of a batch of tiles, padded to `most` Gaussians."""
    slot = torch.arange(most)
    filled = slot < counts[:, None]
    index = rows[(starts[:, None] + slot).clamp_max(max(len(rows) - 1, 0))] if len(rows) else slot * 0
    values = table[index]
    pixel = torch.arange(TILE * TILE)
    x = (tiles % across * TILE)[:, None] + pixel % TILE + 0.5
    y = (tiles // across * TILE)[:, None] + pixel // TILE + 0.5
    dx, dy = x[:, :, None] - values[:, None, :, 0], y[:, :, None] - values[:, None, :, 1]
    xx, xy, yy, opacity = values[:, None, :, 2:6].unbind(-1)
    alpha = opacity * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
    alpha = alpha.clamp_max(options.alpha_max)
    alpha = torch.where((alpha >= options.alpha_min) & filled[:, None], alpha, 0)
    behind = (1 - alpha).cumprod(2)
    before = torch.nn.functional.pad(behind[:, :, :-1], (1, 0), value=1.0)
    weight = torch.where(behind > options.transmittance_min, alpha * before, 0)
    blended = weight @ values[:, :, 6:]
    return torch.cat([blended, weight.sum(2, keepdim=True)], 2).transpose(1, 2)
