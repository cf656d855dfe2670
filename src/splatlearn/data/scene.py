"""What lies on disk (`Scene`), how it is found (`Reader`), and how samples are drawn from it (`Data`).

Legend: V views, H W pixels. Metres, world, +z up. An image size is (width, height) everywhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from splatlearn import registry
from splatlearn.errors import BadData, MissingData, nearest
from splatlearn.structures import Batch, Boxes, Cameras, Frames, Gaussians, Points

B_co = TypeVar("B_co", bound=Batch, covariant=True)
Certainty = Literal["known", "estimated", "unknown"]


class Rejected(Exception):
    """A sample that could not be drawn (too little overlap, no depth...); its position is drawn again."""


class Skipped(NamedTuple):
    """A file or frame that a reader left out, and why."""

    name: str
    reason: str


class Scene(ABC):
    """A recording, scan, splat scene, object or photograph on disk: lazy, picklable, knows no recipe.

    Attributes:
        name: unique within its source.
        group: data set or teacher domain it belongs to.
        up: whether +z is up by the source's word, by estimate, or unknown.
        metric: whether a unit is a metre, likewise.
        split: `train`, `val` or `test` where the source says so, else empty.
        skipped: what was left out while reading, with reasons.
        notes: what the reader estimated or assumed, in sentences for people.
    """

    name: str
    group: str = "all"
    up: Certainty = "known"
    metric: Certainty = "known"
    split: str = ""
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cameras(self) -> Cameras:
        """All V views at their native size (V may be 0), attribute `frame` (V) int64 = raw index."""
        empty = torch.zeros(0, 4, 4), torch.zeros(0, 3, 3), torch.zeros(0, dtype=torch.int64)
        return Cameras(world_to_camera=empty[0], intrinsics=empty[1], width=1, height=1, attributes={"frame": empty[2]})

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """The chosen views, images and intrinsics resized together to (width, height); `depth` where known."""
        raise MissingData(f"{self.name} has no posed frames")

    def points(self) -> Points:
        """The cloud with every attribute that is on disk."""
        raise MissingData(f"{self.name} has no point cloud")

    def gaussians(self) -> Gaussians:
        """The scene's Gaussians."""
        raise MissingData(f"{self.name} has no Gaussians")

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """Photographs (3 H W) in [0, 1] at their native sizes; no camera needed."""
        raise MissingData(f"{self.name} has no images")

    def boxes(self) -> Boxes:
        """Oriented boxes with `label` and, where known, `instance`."""
        raise MissingData(f"{self.name} has no boxes")


class Reader(ABC):
    """Finds the scenes of one disk format. Built as `Reader(config, path)`; register it in `registry.readers`.

    Attributes:
        classes: names of the label ids 0, 1, ...; empty where the data says none.
        skipped: scenes that could not be used, with reasons; complete after `scenes()`.
    """

    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Whether the folder or file looks like this format; cheap, reads no images."""

    @abstractmethod
    def scenes(self) -> list[Scene]:
        """Every scene, sorted by name; never empty.

        Raises:
            BadData: nothing usable, with what was looked for and what was found.
        """


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where data comes from: a reader's name (a world that makes itself) or a path, and the reader's options.

    Args:
        name: `rooms`, `rooms.tiny`, or a path.
        options: options of the reader's config; `reader` forces a reader for a path.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def reader(self) -> Reader:
        """The reader, made once per process.

        Raises:
            BadData: no such name or path, or no reader takes the path.
        """
        return _open(self.name, _freeze(self.options))

    def scenes(self) -> list[Scene]:
        """The scenes, found once per process."""
        return _scenes(self.name, _freeze(self.options))


class Data(Protocol[B_co]):
    """A recipe's or task's frozen data config; it travels to loader workers as it is."""

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """Scenes of `train` or `val` by group."""
        ...

    def shares(self) -> Mapping[str, float]:
        """Share of every group in the samples; empty means by size."""
        ...

    def sample(self, scene: Scene, rng: np.random.Generator) -> B_co:
        """A batch of one: ALL randomness of a step is drawn here. Raises `Rejected` to be drawn again."""
        ...


def _freeze(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in sorted(options.items()))


@lru_cache(maxsize=8)
def _scenes(name: str, options: tuple[tuple[str, Any], ...]) -> list[Scene]:
    return _open(name, options).scenes()


@lru_cache(maxsize=8)
def _open(name: str, options: tuple[tuple[str, Any], ...]) -> Reader:
    rest = dict(options)
    reader, path = rest.pop("reader", None), Path(name).expanduser()
    if not path.exists():
        if name.partition(".")[0] in registry.readers.families():
            config = registry.readers.config(name, rest, where="data")
            return registry.readers.family(name).cls(config, None)
        known = registry.readers.families()
        raise BadData(
            f"--data {name}: no such file or folder, and no world of that name{nearest(name, known)} "
            f"(names: {', '.join(known)})"
        )
    family = reader or _detect(path)
    return registry.readers.family(family).cls(registry.readers.config(family, rest, where="data"), path)


def _detect(path: Path) -> str:
    families = registry.readers.families()
    taking = [name for name in families if registry.readers.family(name).cls.accepts(path)]
    if len(taking) == 1:
        return taking[0]
    if not taking:
        inside = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else []
        raise BadData(
            f"--data {path}: no reader takes this ({', '.join(families)} were tried; "
            f"it holds: {', '.join(inside) or 'nothing'}); `splatlearn list readers` says what each expects"
        )
    raise BadData(f"--data {path}: {' and '.join(taking)} both take this; choose one with --data.reader")
