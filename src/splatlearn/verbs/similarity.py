"""`view` with an encoder or a teacher: photographs, and how like each patch is to the one that was clicked.

Legend: V photographs, H W pixels, h w tokens of a grid, C channels. A size is (width, height); a place is the number of
a photograph, and x and y in pixels of its native size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.data.image_folders import SUFFIXES, Photograph
from splatlearn.data.scene import Rejected, Source
from splatlearn.encoders.base import Encoder, ImageEncoder
from splatlearn.errors import BadData, ConfigError, UserError, nearest
from splatlearn.structures import Images
from splatlearn.tasks.encoders import pick_device, resolve_encoder
from splatlearn.verbs.encode_images import View, check_multiple, nearest_multiple, views_of

if TYPE_CHECKING:
    from splatlearn.teachers.base import Teacher

Place = tuple[int, int, int]
Size = tuple[int, int]
SIDE = 448
"""Pixels of the longer side that networks see, where no size is given (our default)."""
RAMP = "turbo"
"""Matplotlib's colour map of similarities, lowest to highest."""
_SHOWN = 640
"""Pixels of the longer side of a photograph on the page."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph as it is shown.

    Args:
        name: for people.
        size: its native one.
        shown: (3 H W) in [0, 1], reduced.
    """

    name: str
    size: Size
    shown: Tensor


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network sees in the photographs.

    Args:
        title: of the network.
        grids: a (h w C) float32 a photograph, unit vectors.
    """

    title: str
    grids: list[Tensor] = field(default_factory=list)

    @cached_property
    def rows(self) -> Tensor:
        """All tokens of all photographs, one after another."""
        return torch.cat([grid.flatten(0, 1) for grid in self.grids])

    def split(self, rows: Tensor) -> list[Tensor]:
        """Values of `rows` as a grid (h w ...) a photograph."""
        parts = rows.split([grid.shape[0] * grid.shape[1] for grid in self.grids])
        return [part.unflatten(0, grid.shape[:2]) for part, grid in zip(parts, self.grids)]

    def token(self, place: Place, size: Size) -> tuple[int, int]:
        """Row and column of the token at a place of a photograph of a native size."""
        high, wide = self.grids[place[0]].shape[:2]
        return place[2] * high // size[1], place[1] * wide // size[0]

    def similarities(self, place: Place, size: Size) -> list[Tensor]:
        """(h w) a photograph: the cosine of each token's features and those of the token at a place."""
        row, column = self.token(place, size)
        return self.split(self.rows @ self.grids[place[0]][row, column])


@dataclass(frozen=True)
class Similarity:
    """What was shown.

    Args:
        photos: names of the photographs.
        networks: titles.
        where: the picture or page, or the page's address.
        notes: what was chosen and lost, in sentences for people.
    """

    photos: tuple[str, ...]
    networks: tuple[str, ...]
    where: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"{len(self.photos)} photographs as {' and '.join(self.networks)} see them: {self.where}"
        listed = (f"{number} {name}" for number, name in enumerate(self.photos))
        return "\n  ".join([first, *self.notes, f"photographs: {', '.join(listed)}"])


@dataclass(frozen=True, kw_only=True)
class Look:
    """Photographs as some networks see them.

    Args:
        photos: V of them.
        seen: one a network.
        notes: which photographs were taken, and which not.
    """

    photos: list[Photo]
    seen: list[Seen]
    notes: tuple[str, ...]

    def check(self, place: Place) -> None:
        """Raises: ConfigError: no such photograph, or the place is outside it."""
        number, x, y = place
        if not 0 <= number < len(self.photos):
            raise ConfigError(f"--at {number},{x},{y}: there are photographs 0 to {len(self.photos) - 1}")
        width, height = self.photos[number].size
        if not (0 <= x < width and 0 <= y < height):
            name = self.photos[number].name
            raise ConfigError(f"--at {number},{x},{y}: {name} has {width}x{height} pixels, from 0,0 on")


def look(
    data: str,
    *,
    encoder: str = "",
    teacher: str = "",
    scene: str = "",
    size: Size | None = None,
    images: int,
    device: str = "auto",
    encoder_options: Mapping[str, Any] | None = None,
    teacher_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> Look:
    """Shows photographs to an encoder, a teacher, or both; the arguments are those of `view`.

    Raises:
        UserError: as `view`.
    """
    if images < 1:
        raise ConfigError(f"--images: 1 or more is needed, got {images}")
    device = pick_device(device)
    views, notes = _taken(_views(data, scene, dict(data_options or {})), images)
    networks: dict[str, ImageEncoder | Teacher] = {}
    if encoder:
        networks[encoder] = _encoder(encoder, encoder_options).to(device)
    if teacher:
        from splatlearn.teachers.base import create_teacher

        networks[f"teacher {teacher}"] = create_teacher(teacher, teacher_options).to(device)
    if size is not None:
        patches = [_patch(network) for network in networks.values()]
        owner = " and ".join(networks) + (" together" if len(set(patches)) > 1 else "")
        check_multiple(size, lcm(*patches), owner, "--size")
    result = Look(photos=[], seen=[Seen(title=title) for title in networks], notes=())
    for view in views:
        try:
            pixels = view.read()
        except Rejected as error:
            notes.append(f"left out: {view.name}: {error}")
            continue
        result.photos.append(_photo(view.name, pixels))
        for seen, network in zip(result.seen, networks.values()):
            seen.grids.append(_unit_grid(network, pixels, size, device))
    if not result.photos:
        raise BadData(f"{data}: no image can be read; {'; '.join(notes[-4:])}")
    return Look(photos=result.photos, seen=result.seen, notes=tuple(notes))


def _views(data: str, scene: str, options: Mapping[str, Any]) -> list[View]:
    """Every image of a file, a folder, or other data."""
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return views_of([Photograph(path.parent, path.name)])
    scenes = Source(name=data, options=options).scenes()
    chosen = [found for found in scenes if scene in ("", found.name)]
    if not chosen:
        raise UserError(f"--scene {scene}: {data} has no such scene{nearest(scene, [found.name for found in scenes])}")
    return views_of(chosen)


def _taken(views: list[View], most: int) -> tuple[list[View], list[str]]:
    """At most so many, evenly spaced, and a note of it."""
    if len(views) <= most:
        return views, []
    taken = [views[number * len(views) // most] for number in range(most)]
    return taken, [f"{most} of {len(views)} photographs, evenly spaced; --images N takes more"]


def _encoder(name: str, options: Mapping[str, Any] | None) -> ImageEncoder:
    encoder = resolve_encoder(name, options, kind=Encoder).encoder
    if not isinstance(encoder, ImageEncoder):
        raise UserError(f"--encoder {name}: {encoder.name!r} encodes points, and no images")
    return encoder.eval().requires_grad_(False)


def _patch(network: "ImageEncoder | Teacher") -> int:
    return network.patch if isinstance(network, ImageEncoder) else network.info.patch


def _photo(name: str, pixels: Tensor) -> Photo:
    size = (pixels.shape[2], pixels.shape[1])
    return Photo(name=name, size=size, shown=resized(pixels, _SHOWN) if max(size) > _SHOWN else pixels)


@torch.no_grad()
def _unit_grid(network: "ImageEncoder | Teacher", pixels: Tensor, size: Size | None, device: str) -> Tensor:
    """(h w C) unit vectors of the last level."""
    patch, own = _patch(network), (pixels.shape[2], pixels.shape[1])
    scale = SIDE / max(own)
    width, height = size or nearest_multiple((own[0] * scale, own[1] * scale), patch)
    maps = network(Images(images=pixels[None].to(device)), (width // patch, height // patch))
    return functional.normalize(maps.levels[-1][0].float().cpu().permute(1, 2, 0), dim=-1)


def resized(picture: Tensor, side: int) -> Tensor:
    """(3 H W) whose longer side is so many pixels."""
    scale = side / max(picture.shape[1:])
    shape = [max(1, round(extent * scale)) for extent in picture.shape[1:]]
    return functional.interpolate(picture[None], shape, mode="bilinear", antialias=True)[0]
