"""The throw-away decoder between any point encoder and the heads, and the way to the pixel grid and back.

Legend: N points, V views, C encoder channels, D decoder width, H W pixels.
"""

import torch
from torch import Tensor, nn

from splatlearn.errors import UserError
from splatlearn.structures import Packed


class FeatureDecoder(nn.Module):
    """Encoder features of every point to `width` channels, and from there to the pixels that they came from.

    Linear, layer norm, GELU, linear: the norm makes one learning rate fit encoders of any scale (our default: GS3
    states the width of 128 only). Nothing of it is kept after pre-training.

    Args:
        channels: width of the encoder's dense features, C.
        width: D; 128 in GS3.
    """

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(N C) to (N D)."""
        return self.layers(features)

    def to_grid(self, features: Tensor, rows: Packed, width: int, height: int) -> Tensor:
        """Features at their pixels; the learned mask token where there is no point (masked, or without depth).

        Args:
            features: (N D).
            rows: N rows, item v holding those of view v, with attribute `pixel` (N) int64 = y * W + x, each pixel
                at most once a view.
            width: W of every view.
            height: H of every view.

        Returns:
            (V D H W), in channels-last memory.

        Raises:
            UserError: another number of rows than of features, or a pixel outside the image.
        """
        index = _flat_pixels(features, rows, width, height)
        views = len(rows.counts)
        grid = self.mask_token.to(features.dtype).expand(views * height * width, -1)
        grid = grid.index_copy(0, index, features)
        return grid.view(views, height, width, -1).permute(0, 3, 1, 2)


def gather_pixels(grid: Tensor, rows: Packed) -> Tensor:
    """Features of the grid at the rows' pixels: the inverse of `FeatureDecoder.to_grid` at visible pixels.

    Args:
        grid: (V D H W).
        rows: N rows, item v holding those of view v, with attribute `pixel` (N) int64 = y * W + x.

    Returns:
        (N D).

    Raises:
        UserError: another number of items than of views.
    """
    views, channels, height, width = grid.shape
    if len(rows.counts) != views:
        raise UserError(f"gather_pixels: the grid has {views} views, the pixels {len(rows.counts)} items")
    flat = grid.permute(0, 2, 3, 1).reshape(-1, channels)
    return flat[rows.item * (height * width) + rows["pixel"]]


def _flat_pixels(features: Tensor, rows: Packed, width: int, height: int) -> Tensor:
    pixel = rows["pixel"]
    if len(features) != len(rows):
        raise UserError(f"to_grid: {len(features)} feature rows, but {len(rows)} pixels")
    if len(pixel) and not 0 <= int(pixel.min()) <= int(pixel.max()) < width * height:
        raise UserError(f"to_grid: pixels {int(pixel.min())} to {int(pixel.max())} do not fit into {width}x{height}")
    return rows.item * (height * width) + pixel
