"""The posed frames that a scene is fitted to: kept in memory, split into training and held-out views, drawn one by one.

Legend: V views, H W pixels. Metres, world.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.scene import Rejected, Scene
from splatlearn.errors import BadData, ConfigError
from splatlearn.structures import Batch, Cameras, Frames
from splatlearn.tasks.fit_splits import PARTS

LOOK_BACK = 8
"""Without held-out views every eighth training view is looked at instead."""
LEAST_SIDE = 11
"""Pixels of the shorter side of an image: the window of SSIM."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shots(Batch):
    """Views to render and to compare with.

    Args:
        frames: one view an item, `depth` where known; attribute `view` (V) int64, the row among the scene's cameras.
    """

    frames: Frames


class View(Scene):
    """One view of a scene, as what an epoch goes through.

    Args:
        scene: name of the whole.
        view: row among its cameras.
    """

    def __init__(self, scene: str, view: int) -> None:
        self.name, self.view = f"{scene}, view {view}", view


class Photographs:
    """A scene's frames at one size, read when first asked for and kept as bytes, as long as there is room.

    Args:
        scene: with posed frames.
        side: the longer side in pixels; images keep their proportions and are not enlarged.
        room: megabytes (2^20 bytes) to keep.

    Attributes:
        size: width, height in pixels.

    Raises:
        BadData: the scene has fewer than two posed frames, or they are too small.
    """

    def __init__(self, scene: Scene, side: int, room: float) -> None:
        self.scene, self.cameras = scene, scene.cameras
        if len(self.cameras) < 2:
            raise BadData(f"{scene.name}: two posed frames or more are needed for a fit, it has {len(self.cameras)}")
        native = self.cameras.width, self.cameras.height
        factor = min(1.0, side / max(native))
        self.size = max(1, round(native[0] * factor)), max(1, round(native[1] * factor))
        if min(self.size) < LEAST_SIDE:
            raise BadData(
                f"{scene.name}: images of {self.size[0]}x{self.size[1]} pixels are too small to fit to; "
                f"{LEAST_SIDE} or more on either side are needed, see --side"
            )
        self.cameras = self.cameras.resize(*self.size)
        self.room, self._kept, self._bytes = room * 2**20, {}, 0

    def __len__(self) -> int:
        """Views."""
        return len(self.cameras)

    def __getitem__(self, view: int) -> Frames:
        """One view, one item; colours are multiples of 1/255.

        Raises:
            Rejected: it cannot be decoded.
        """
        kept = self._kept.get(view) or self._read(view)
        images, attributes = kept
        return Frames(
            images=images.float() / 255,
            cameras=self.cameras.rows(torch.tensor([view])),
            attributes={**attributes, "view": torch.tensor([view])},
        )

    def try_all(self, views: Sequence[int]) -> dict[int, Frames]:
        """View -> frame of those that can be decoded.

        Raises:
            BadData: none can.
        """
        found, problem = {}, None
        for view in views:
            try:
                found[view] = self[view]
            except Rejected as error:
                problem = error
        if not found:
            raise self._unreadable(problem)
        return found

    def first(self, views: Iterable[int]) -> Frames:
        """The first of the views that can be decoded.

        Raises:
            BadData: none can.
        """
        problem = None
        for view in views:
            try:
                return self[view]
            except Rejected as error:
                problem = error
        raise self._unreadable(problem)

    def _unreadable(self, problem: Rejected | None) -> BadData:
        return BadData(f"{self.scene.name}: no frame to fit to can be read: {problem}")

    def _read(self, view: int) -> tuple[Tensor, dict[str, Tensor]]:
        frames = self.scene.frames([view], self.size)
        depth = {"depth": frames["depth"]} if "depth" in frames else {}
        kept = (frames.images * 255).round().to(torch.uint8), depth
        size = sum(t.nbytes for t in (kept[0], *depth.values()))
        if self._bytes + size <= self.room:
            self._kept[view], self._bytes = kept, self._bytes + size
        return kept

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_bytes": 0}


def parse_holdout(rule: str) -> tuple[str, int]:
    """Kind and number of `every:N` (the first of every N views), `block:N` (N in a row, in the middle) or `none`.

    `auto` is `every:8`, where the source states no split.

    Raises:
        ConfigError: no such rule.
    """
    kind, _, number = ("every:8" if rule == "auto" else rule).partition(":")
    least = {"every": 2, "block": 1}.get(kind)
    if rule == "none":
        return "none", 0
    if least is None or not number.isdecimal() or int(number) < least:
        raise ConfigError(f"holdout: auto, every:N (N >= 2), block:N (N >= 1) or none is needed, got {rule!r}")
    return kind, int(number)


def held_out(rule: str, views: int) -> np.ndarray:
    """(V) bool, which views are kept from the fit.

    Args:
        rule: as `parse_holdout` reads it.
        views: V.

    Raises:
        ConfigError: no such rule.
        BadData: fewer than two views would be left.
    """
    kind, number = parse_holdout(rule)
    chosen = np.zeros(views, dtype=bool)
    if kind == "every":
        chosen[::number] = True
    first = max(0, (views - number) // 2)
    if kind == "block":
        chosen[first : first + number] = True
    left = int(views - chosen.sum())
    if left < 2:
        raise BadData(f"--holdout {rule} leaves {left} of {views} views to fit to; two or more are needed")
    return chosen


def divide(rule: str, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Which views are fitted to, and which are measured.

    Args:
        rule: as `parse_holdout` reads it; `auto` follows `split` where the cameras have it: `test` is measured, and
            `val` is left out, or measured where there is no `test`.
        cameras: V views.

    Returns:
        (V) bool each.

    Raises:
        ConfigError: no such rule.
        BadData: fewer than two views would be left to fit to.
    """
    if rule != "auto" or "split" not in cameras:
        held = held_out(rule, len(cameras))
        return ~held, held
    train, val, test = (cameras["split"].numpy() == part for part in range(len(PARTS)))
    if train.sum() < 2:
        raise BadData(f"--holdout auto: the source's split has {train.sum()} view to fit to; two or more are needed")
    return train, test if test.any() else val


@dataclass(frozen=True, kw_only=True)
class FitData:
    """Single views of one scene.

    Args:
        photographs: the frames.
        holdout: rule of `divide`.
    """

    photographs: Photographs
    holdout: str

    @cached_property
    def trained(self) -> list[int]:
        """Views that are fitted to."""
        return np.flatnonzero(divide(self.holdout, self.photographs.cameras)[0]).tolist()

    @cached_property
    def held_out(self) -> list[int]:
        """Views that are measured and not fitted to."""
        return np.flatnonzero(divide(self.holdout, self.photographs.cameras)[1]).tolist()

    @cached_property
    def validated(self) -> list[int]:
        """Views that are measured: those held out, or some that are fitted to where none is."""
        return self.held_out or self.trained[::LOOK_BACK]

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """A scene a view."""
        views = self.trained if split == "train" else self.validated
        return {"all": [View(self.photographs.scene.name, view) for view in views]}

    def shares(self) -> Mapping[str, float]:
        """By size."""
        return {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Shots:
        """The view that a scene of `scenes` is."""
        assert isinstance(scene, View)
        return Shots(names=(scene.name,), frames=self.photographs[scene.view])

    def nearest(self, view: int, unit: float) -> list[int]:
        """The training views, that of the nearest camera first: distance in `unit` metres plus angle in radians."""
        poses, others = self.photographs.cameras.camera_to_world.double(), torch.tensor(self.trained)
        away = (poses[others, :3, 3] - poses[view, :3, 3]).norm(dim=1) / unit
        cosines = (poses[others, :3, 2] @ poses[view, :3, 2]).clamp(-1, 1)
        return others[(away + cosines.acos()).argsort(stable=True)].tolist()
