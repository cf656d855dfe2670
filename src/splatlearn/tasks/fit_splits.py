"""Captures whose source states a split: the parts as one scene, so that one is fitted to and another is measured.

Legend: V views, H W pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from splatlearn.data.scene import Scene
from splatlearn.structures import Cameras, Frames, Points

PARTS = ("train", "val", "test")
"""What the numbers of a camera's attribute `split` mean."""


class Divided(Scene):
    """The parts of one capture, which share a world, a cloud and a size of images; its cameras have `split`.

    Args:
        name: of the capture.
        parts: split -> scene, `train` among them.
    """

    def __init__(self, name: str, parts: Mapping[str, Scene]) -> None:
        self.name, self.parts, train = name, dict(parts), parts["train"]
        self.group, self.up, self.metric, self.notes = train.group, train.up, train.metric, train.notes
        self.skipped = tuple(left for part in parts.values() for left in part.skipped)
        counts = ", ".join(f"{len(part.cameras)} {split}" for split, part in parts.items())
        self.note(f"the source states a split of its views: {counts}")

    @cached_property
    def cameras(self) -> Cameras:
        """Those of all parts, with `split` (V) int64, a row of `PARTS`."""
        cameras = [
            part.cameras.with_attributes(split=torch.full((len(part.cameras),), PARTS.index(split)))
            for split, part in self.parts.items()
        ]
        return Cameras.pack(cameras).regroup((sum(map(len, cameras)),))

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """The chosen views, numbered as `cameras`."""
        starts = np.cumsum([0, *(len(part.cameras) for part in self.parts.values())])
        parts, found = list(self.parts.values()), []
        for view in views:
            part = int(np.searchsorted(starts, view, side="right")) - 1
            found.append(parts[part].frames([view - int(starts[part])], size))
        return Frames.pack(found).regroup((len(views),))

    def points(self) -> Points:
        """The cloud that the parts share."""
        return self.parts["train"].points()


def joined(scenes: Iterable[Scene]) -> list[Scene]:
    """Scenes, in their order; those that are splits of one capture, `x/train` beside `x/test`, are one, `x`."""
    captures: dict[str, list[Scene]] = {}
    for scene in scenes:
        captures.setdefault(scene.name.removesuffix(f"/{scene.split}"), []).append(scene)
    return [one for name, parts in captures.items() for one in _join(name, parts)]


def _join(name: str, scenes: list[Scene]) -> list[Scene]:
    parts = {scene.split: scene for scene in scenes if scene.name == f"{name}/{scene.split}"}
    whole = len(parts) == len(scenes) > 1 and "train" in parts and parts.keys() <= set(PARTS)
    return [Divided(name, parts)] if whole else scenes
