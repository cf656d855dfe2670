"""The picture that `view` makes of photographs as networks see them.

Legend: H W pixels, h w tokens of a grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.engine.plots import colormap, pca_colors
from splatlearn.verbs.similarity import RAMP, Look, Place, resized

_CELL, _COLUMNS, _GAP = 320, 4, 6
"""Pixels of the longer side of a photograph, photographs in a row, and pixels between them."""


def similarity_picture(found: Look, place: Place | None) -> Tensor:
    """(3 H W) the photographs, and below each row what every network sees: similarities, or principal components.

    Args:
        found: the photographs.
        place: what is compared with, marked by a frame; None draws three principal components as colours.
    """
    layers = [[photo.shown for photo in found.photos]]
    for seen in found.seen:
        if place is None:
            colors = [grid.permute(2, 0, 1) for grid in seen.split(pca_colors(seen.rows))]
        else:
            colors = _ramp(seen.similarities(place, found.photos[place[0]].size))
        layers.append([_laid_over(photo.shown, color) for photo, color in zip(found.photos, colors)])
    if place is not None:
        frames = [seen.token(place, found.photos[place[0]].size) for seen in found.seen]
        shapes = [seen.grids[place[0]].shape for seen in found.seen]
        for layer, (row, column), (high, wide, _) in zip(layers, [frames[0], *frames], [shapes[0], *shapes]):
            layer[place[0]] = _framed(layer[place[0]], (column / wide, row / high), (1 / wide, 1 / high))
    rows = []
    for first in range(0, len(found.photos), _COLUMNS):
        rows += [_row(layer[first : first + _COLUMNS], min(_COLUMNS, len(layer))) for layer in layers]
    return torch.cat(rows, 1)


def _ramp(grids: Sequence[Tensor]) -> list[Tensor]:
    """(3 h w) colours of similarities, from the lowest to the highest of all."""
    values = torch.cat([grid.flatten() for grid in grids])
    low, high = float(values.min()), float(values.max())
    return [colormap((grid - low) / max(high - low, 1e-6), RAMP) for grid in grids]


def _laid_over(picture: Tensor, colors: Tensor, share: float = 0.7) -> Tensor:
    """Colours of tokens (3 h w) over a picture (3 H W)."""
    large = functional.interpolate(colors[None].float(), picture.shape[1:], mode="nearest")[0]
    return share * large + (1 - share) * picture


def _framed(picture: Tensor, corner: tuple[float, float], extent: tuple[float, float]) -> Tensor:
    """The picture with a white frame in a black one; corner and extent are shares of its width and height."""
    high, wide = picture.shape[1:]
    left, top = int(corner[0] * wide), int(corner[1] * high)
    right, bottom = int((corner[0] + extent[0]) * wide), int((corner[1] + extent[1]) * high)
    result = picture.clone()
    for grown, value in ((4, 0.0), (2, 1.0)):
        result[:, max(top - grown, 0) : bottom + grown, max(left - grown, 0) : right + grown] = value
    result[:, top:bottom, left:right] = picture[:, top:bottom, left:right]
    return result


def _row(pictures: Sequence[Tensor], columns: int) -> Tensor:
    """Pictures beside each other on white."""
    small = [resized(picture, _CELL) for picture in pictures]
    row = torch.ones(3, max(picture.shape[1] for picture in small) + _GAP, columns * (_CELL + _GAP))
    for number, picture in enumerate(small):
        left = number * (_CELL + _GAP) + (_CELL - picture.shape[2]) // 2
        row[:, : picture.shape[1], left : left + picture.shape[2]] = picture
    return row
