"""What lies on disk (`Scene`), how it is found (`Reader`), and how samples are drawn from it (`Data`).

Legend: V views, H W pixels. Metres, world, +z up. An image size is (width, height) everywhere.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from splatlearn import registry
from splatlearn.config import to_options
from splatlearn.data.projection import ProjectionRule
from splatlearn.errors import BadData, MissingData, nearest
from splatlearn.structures import Batch, Boxes, Cameras, Frames, Gaussians, Points

B_co = TypeVar("B_co", bound=Batch, covariant=True)
Certainty = Literal["known", "estimated", "unknown"]
log = logging.getLogger("splatlearn")


class Rejected(Exception):
    """A sample that could not be drawn; its position is drawn again.

    Args:
        kind: what is wrong, the same words for every such sample: samples are counted by it.
        detail: where, and by how much (`SCENE: FILE: why`, numbers).
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


class Skipped(NamedTuple):
    """A file or frame that a reader left out, and why."""

    name: str
    reason: str


def reasons(skipped: Iterable[Skipped], most: int = 4) -> str:
    """`12 x no pose (first: frame-000000); ...`: the commonest reasons, each with its count and the first name.

    Args:
        skipped: what was left out.
        most: reasons that are named.
    """
    names: dict[str, list[str]] = {}
    for name, reason in skipped:
        names.setdefault(reason, []).append(name)
    commonest = sorted(names.items(), key=lambda item: -len(item[1]))[:most]
    return "; ".join(f"{len(of)} x {reason} (first: {of[0]})" for reason, of in commonest)


class Scene(ABC):
    """A recording, scan, splat scene, object or photograph on disk: lazy, picklable, knows no recipe.

    Attributes:
        name: unique within its source.
        group: data set or teacher domain it belongs to.
        up: whether +z is up by the source's word, by estimate, or unknown.
        metric: whether a unit is a metre, likewise.
        split: `train`, `val` or `test` where the source says so, else empty.
        drive: recording that it is a moment of, in the order of time; neighbours there look alike. Empty: of none.
        skipped: what was left out while reading, with reasons.
        notes: what the reader estimated or assumed, in sentences for people.
        camera_names: of every view where they are cameras of a rig; empty where they are moments of one camera.
        intensity_statistics: mean and standard deviation of the points' `intensity` (in [0, 1]) over the data set.
        projection: which of the scene's points a camera is taken to see.
    """

    name: str
    group: str = "all"
    up: Certainty = "known"
    metric: Certainty = "known"
    split: str = ""
    drive: str = ""
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    camera_names: tuple[str, ...] = ()
    intensity_statistics: tuple[float, float] = (0.0, 1.0)
    projection: ProjectionRule = ProjectionRule()

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Adds to `notes`, and tells the log."""
        self.notes = (*self.notes, text)
        log.log(level, "%s: %s", self.name, text)

    def view_key(self, view: int) -> int | str:
        """What is kept about a view is known by: its camera's name in a rig, of which a reader may take some, else
        its number."""
        return self.camera_names[view] if self.camera_names else view

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

    def pixel_labels(self, views: Sequence[int]) -> list[Tensor]:
        """(H W) int64 class of every pixel of `images`, -1 = ignored."""
        raise MissingData(f"{self.name} has no labels of pixels")

    def boxes(self) -> Boxes:
        """Oriented boxes with `label` and, where known, `instance`."""
        raise MissingData(f"{self.name} has no boxes")


class Reader(ABC):
    """Finds the scenes of one disk format. Built as `Reader(config, path)`; register it in `registry.readers`.

    Attributes:
        config: what it was built with.
        needs_path: whether it reads a folder or file; a world that makes itself does not, and gets `path=None`.
        classes: names of the label ids 0, 1, ...; empty where the data says none.
        skipped: scenes that could not be used, with reasons; complete after `scenes()`.
    """

    config: Any
    needs_path: bool = True
    classes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Whether the folder or file looks like this format; cheap, reads no images."""

    @abstractmethod
    def scenes(self) -> Sequence[Scene]:
        """Every scene, sorted by name; never empty. A list, but where they are so many that they are made when drawn.

        Raises:
            BadData: nothing usable, with what was looked for and what was found.
        """


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where data comes from: a reader's name (a world that makes itself) or a path, and the reader's options.

    Reader and scenes are found once and kept as long as the source; another source of the same name looks again.

    Args:
        name: `rooms`, `rooms.tiny`, or a path. A world's name comes before a folder of that name (`./rooms`).
        options: options of the reader's config; `reader` forces a reader for a path.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def reader(self) -> Reader:
        """The reader.

        Raises:
            BadData: no such name or path, or no reader takes the path.
        """
        return self._reader

    def scenes(self) -> Sequence[Scene]:
        """The scenes."""
        return self._scenes

    def resolved(self) -> dict[str, Any]:
        """The options with every default of the reader, as plain data; `reader` where it is forced."""
        forced = {"reader": self.options["reader"]} if self.options.get("reader") else {}
        return forced | to_options(self._chosen.config)

    @cached_property
    def memory(self) -> dict[Any, Any]:
        """What users of the scenes want to keep as long as the source, such as prepared clouds; one a process."""
        return {}

    @cached_property
    def _chosen(self) -> "_Chosen":
        return _choose(self.name, self.options)

    @cached_property
    def _reader(self) -> Reader:
        cls, config, path = self._chosen
        return cls(config, path)

    @cached_property
    def _scenes(self) -> Sequence[Scene]:
        return self._reader.scenes()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "options": self.options}


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


def require_known(scenes: Sequence[Scene], quantity: Literal["up", "metric"], why: str) -> None:
    """Refuses scenes whose up axis or unit nobody knows.

    Args:
        scenes: what is to be used.
        quantity: what is needed of them.
        why: who needs it, for the message.

    Raises:
        BadData: it is unknown of some scene, with what to do.
    """
    unknown = [scene.name for scene in scenes if getattr(scene, quantity) == "unknown"]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what, advice = {
            "up": ("the up axis", "give --data.up x,y,z (the source's vector that points up), or --data.up known"),
            "metric": ("the unit", "give data in metres, or, of photographs, --data.scale METRES"),
        }[quantity]
        raise BadData(f"{why}, but {what} of {', '.join(unknown[:3])}{more} is unknown; {advice}")


class _Chosen(NamedTuple):
    """The class that reads a source, and what it is built with."""

    cls: Any
    config: Any
    path: Path | None


def _choose(name: str, options: Mapping[str, Any]) -> _Chosen:
    rest = dict(options)
    family, path = rest.pop("reader", None), Path(name).expanduser()
    world = not family and _is_world(name, path)
    if not world and not path.exists():
        raise _absent(name)
    if world and path.exists():
        log.warning("--data %s: the world of this name is taken; the folder is ./%s", name, name)
    family = name if world else family or _detect(path)
    config = registry.readers.config(family, rest, where="data")
    return _Chosen(registry.readers.family(family).cls, config, None if world else path)


def _is_world(name: str, path: Path) -> bool:
    """A world's name, with a preset that it has; one that it lacks may still be the name of a folder."""
    family, _, preset = name.partition(".")
    if family not in registry.readers.families() or registry.readers.family(family).cls.needs_path:
        return False
    return not preset or preset in registry.readers.presets(family) or not path.exists()


def _absent(name: str) -> BadData:
    families = registry.readers.families()
    worlds = [family for family in families if not registry.readers.family(family).cls.needs_path]
    if (family := name.partition(".")[0]) in families:
        return BadData(f"--data {name}: {family} reads files: give their path (and --data.reader {family} to force it)")
    return BadData(
        f"--data {name}: no such file or folder, and no world of that name{nearest(name, worlds)} "
        f"(worlds: {', '.join(worlds)})"
    )


def _detect(path: Path) -> str:
    families = registry.readers.families()
    taking = [name for name in families if registry.readers.family(name).cls.accepts(path)]
    if len(taking) == 1:
        return taking[0]
    if not taking:
        inside = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else []
        held = f"it holds: {', '.join(inside) or 'nothing'}" if path.is_dir() else "it is a single file"
        scenes = "; Gaussian scenes are for `view` and `convert`" if path.suffix in (".ply", ".splat", ".spz") else ""
        raise BadData(
            f"--data {path}: no reader takes this ({', '.join(families)} were tried; {held}); "
            f"`splatlearn list readers NAME` and docs/ say what each takes{scenes}"
        )
    raise BadData(f"--data {path}: {' and '.join(taking)} both take this; choose one with --data.reader")
