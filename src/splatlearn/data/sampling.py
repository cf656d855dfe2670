"""What is drawn from scenes: splits, groups of nearby views, overlap, masks, crops of clouds.

Legend: V views, P groups of views, N points, H W pixels. Metres, world. Everything random comes from the generator
that is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.lazy_scenes import chosen
from splatlearn.data.scene import Rejected, Scene
from splatlearn.errors import BadData, MissingData
from splatlearn.structures import Boxes, Cameras, Frames, Points

HELD_OUT = 0.2
"""Share of scenes, or of the views of each recording, that are kept for validation (our default)."""
ENOUGH_SCENES = 5
"""From here on whole scenes are held out; below, the last part of each."""
OVERLAP_TOLERANCE = 0.05
"""Metres two depths may differ and still be the same surface (our default; Kinect noise at 4 m is about that)."""


def split_scenes(scenes: Sequence[Scene], split: str, *, seed: int = 0, share: float = HELD_OUT) -> Sequence[Scene]:
    """Scenes of one split; `train` and `val` have nothing in common.

    The source's own split is taken where every scene states one and both occur (`test` stands in for a missing
    `val`). Otherwise five scenes or more are split whole, at random by `seed`: all scenes of a drive together, and of a
    single drive the last fifth, as neighbours in time look alike. Of fewer scenes the last fifth of the views and of
    the floor area is held out (`ScenePart`); images, which have neither several views nor a cloud, cannot be cut so.

    Args:
        scenes: in a fixed order.
        split: `train` or `val`.
        seed: of the split, independent of the training's.
        share: held out.

    Raises:
        BadData: another split is asked for, or too few images to split.
    """
    if split not in ("train", "val"):
        raise BadData(f"split: train or val expected, got {split!r}")
    stated = {scene.split for scene in scenes}
    held_out_name = "val" if "val" in stated else "test"
    if "" not in stated and {"train", held_out_name} <= stated:
        wanted = split if split == "train" else held_out_name
        return chosen(scenes, np.flatnonzero([scene.split == wanted for scene in scenes]))
    if len(scenes) < ENOUGH_SCENES:
        if whole := [scene for scene in scenes if not _can_be_cut(scene, share)]:
            raise BadData(
                f"{len(whole)} images cannot be split for validation; {ENOUGH_SCENES} are needed, or folders train and "
                f"val; the first is {whole[0].name}"
            )
        return [ScenePart(scene, split, share) for scene in scenes]
    drives = [scene.drive or i for i, scene in enumerate(scenes)]
    names = list(dict.fromkeys(drives))
    if len(names) == 1:
        first = len(scenes) - max(1, round(share * len(scenes)))
        return scenes[first:] if split == "val" else scenes[:first]
    order = np.random.default_rng([seed, 0x5EED]).permutation(len(names))
    held_out = {names[i] for i in order[: max(1, round(share * len(names)))]}
    return chosen(scenes, np.flatnonzero([(drive in held_out) == (split == "val") for drive in drives]))


def _can_be_cut(scene: Scene, share: float) -> bool:
    """Whether it has a cloud, which is not read for this, or views enough for both parts."""
    return type(scene).points is not Scene.points or round(share * len(scene.cameras)) > 0


class ScenePart(Scene):
    """The first views, or the last ones, of a scene; its cloud is cut by an upright plane likewise.

    The plane stands across the longer of x and y, where `share` of the points lie beyond it.

    Args:
        scene: the whole.
        split: `train` for the first part, `val` for the last.
        share: of the views, and of the points, in the last part.
    """

    def __init__(self, scene: Scene, split: str, share: float = HELD_OUT) -> None:
        self.scene, self.share, self.split = scene, share, split
        self.name, self.group, self.up, self.metric = scene.name, scene.group, scene.up, scene.metric
        self.skipped, self.notes, self.drive = scene.skipped, scene.notes, scene.drive
        self.intensity_statistics, self.projection = scene.intensity_statistics, scene.projection
        self.camera_names = tuple(scene.camera_names[view] for view in self.views) if scene.camera_names else ()

    @cached_property
    def views(self) -> range:
        """The views of the whole scene that belong to this part."""
        total = len(self.scene.cameras)
        cut = total - round(self.share * total)
        return range(cut, total) if self.split == "val" else range(cut)

    @cached_property
    def cameras(self) -> Cameras:
        """Those of this part."""
        return self.scene.cameras.rows(torch.tensor(list(self.views), dtype=torch.int64))

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """As the scene's, counted within this part."""
        return self.scene.frames([self.views[view] for view in views], size)

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """As the scene's, counted within this part."""
        return self.scene.images([self.views[view] for view in views])

    def pixel_labels(self, views: Sequence[int]) -> list[Tensor]:
        """As the scene's, counted within this part."""
        return self.scene.pixel_labels([self.views[view] for view in views])

    def points(self) -> Points:
        """The points on this part's side of the plane."""
        points = self.scene.points()
        return points.rows(self._mine(points.xyz))

    def boxes(self) -> Boxes:
        """The boxes whose centre is on this part's side."""
        boxes = self.scene.boxes()
        return boxes.rows(self._mine(boxes.centers))

    def _mine(self, xyz: Tensor) -> Tensor:
        axis, value = self._plane
        beyond = xyz[:, axis] > value
        return beyond if self.split == "val" else ~beyond

    @cached_property
    def _plane(self) -> tuple[int, float]:
        xyz = self.scene.points().xyz[:, :2].double()
        axis = int((xyz.amax(0) - xyz.amin(0)).argmax())
        return axis, float(np.quantile(xyz[:, axis].numpy(), 1 - self.share))


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnViews:
    """Views of one scene that see much of the same.

    Args:
        frames: one item: the inputs in the order of the recording, then the view in between, where there is one.
        inputs: number of input views.
        name: scene and raw frame numbers.
    """

    frames: Frames
    inputs: int
    name: str


def pairs(cameras: Cameras, gap: int, views: int = 2) -> np.ndarray:
    """Groups of views whose raw frame numbers are `gap` apart.

    Where a recording was exported with a stride, the multiple of its step (the median difference) that is nearest
    to `gap` is taken instead. Where the partner itself was dropped, the nearest later frame stands in, when it is
    off by half that gap at most.

    Args:
        cameras: of one recording, attribute `frame`.
        gap: raw frames between neighbours, >= 1.
        views: 2 or more.

    Returns:
        (P views) int64 rows of `cameras`, ascending in raw frame number.

    Raises:
        BadData: there is no such group.
    """
    order = np.argsort(cameras["frame"].numpy(), kind="stable")
    frame = cameras["frame"].numpy()[order]
    step = int(np.median(np.diff(frame))) if len(frame) > 1 else 0
    gap_there = max(1, round(gap / step)) * step if step else gap
    groups = np.arange(len(frame))[:, None]
    for _ in range(views - 1):
        start = groups[:, -1]
        wanted = frame[start] + gap_there
        partner = _nearest_later(frame, start, wanted)
        near = (partner > start) & (np.abs(frame[partner] - wanted) <= gap_there / 2)
        groups = np.concatenate([groups, partner[:, None]], 1)[near & (wanted <= frame[-1])]
    if not len(groups):
        there = f"raw frames {frame[0]} to {frame[-1]}, step {step}" if len(frame) else "none at all"
        raise BadData(
            f"no {views} views about {gap} raw frames apart among {len(frame)} ({there}); "
            "give more frames or another gap"
        )
    return order[groups]


def draw_views(
    scene: Scene,
    *,
    views: int,
    gap: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    in_between: bool = True,
    min_overlap: float = 0.0,
) -> DrawnViews:
    """A random group of neighbouring views, read at `size`.

    Args:
        scene: with posed frames.
        views: 2 or 3 inputs.
        gap: raw frames between neighbours; see `pairs`.
        size: (width, height).
        rng: draws the group, then the view in between.
        in_between: add a view strictly between the first and last input that is no input, where there is one.
        min_overlap: least share of one input that the next one sees, both ways; needs `depth` when above 0.

    Raises:
        BadData: no group of views is that far apart.
        MissingData: the scene has no posed frames.
        Rejected: too little overlap, or a file that cannot be decoded.
    """
    cameras = scene.cameras
    if not len(cameras):
        raise MissingData(f"{scene.name} has no posed frames")
    groups = _groups_of(scene, cameras, gap, views)
    inputs = groups[rng.integers(len(groups))]
    frame = cameras["frame"].numpy()
    chosen = inputs.tolist()
    if in_between:
        between = (frame > frame[inputs[0]]) & (frame < frame[inputs[-1]])
        between[inputs] = False
        candidates = np.flatnonzero(between)
        if len(candidates):
            chosen.append(int(rng.choice(candidates)))
    name = f"{scene.name}:{'+'.join(str(frame[view]) for view in chosen)}"
    frames = scene.frames(chosen, size)
    if min_overlap > 0:
        require_overlap(frames, views, min_overlap, name)
    return DrawnViews(frames=frames, inputs=views, name=name)


def overlap(frames: Frames, a: int, b: int, tolerance: float = OVERLAP_TOLERANCE) -> float:
    """Share of view a's depth points that land inside view b and agree with its depth.

    Points that land on a pixel of b without depth tell nothing and do not count.

    Args:
        frames: with `depth`, one item.
        a: row of the view whose points are projected.
        b: row of the view they are compared with.
        tolerance: metres.
    """
    depth = frames["depth"]
    xyz = frames.cameras.rows(torch.tensor([a])).unproject(depth[a : a + 1])[0][depth[a] > 0]
    if not len(xyz):
        return 0.0
    pixels, z = frames.cameras.project(xyz, torch.full((len(xyz),), b))
    height, width = depth.shape[1:]
    x, y = pixels.floor().long().unbind(1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    there = depth[b][y.clamp(0, height - 1), x.clamp(0, width - 1)]
    judged = ~inside | (there > 0)
    agree = inside & (there > 0) & ((there - z).abs() < tolerance)
    return float(agree.sum() / judged.sum().clamp_min(1))


def require_overlap(frames: Frames, inputs: int, minimum: float, name: str) -> None:
    """Checks neighbouring input views both ways.

    Raises:
        Rejected: less than `minimum` is shared.
    """
    for a, b in pairwise(range(inputs)):
        shared = min(overlap(frames, a, b), overlap(frames, b, a))
        if shared < minimum:
            raise Rejected("too little overlap", f"{name}: {shared:.0%}, at least {minimum:.0%} expected")


def draw_mask(valid: Tensor, ratio: float, rng: np.random.Generator) -> Tensor:
    """Keeps exactly `1 - ratio` of the valid pixels of every view, at random (GS3 3.4).

    Args:
        valid: (V H W) bool.
        ratio: share to hide.

    Returns:
        (V H W) bool.
    """
    score = torch.from_numpy(rng.random(valid.shape, dtype=np.float32)).masked_fill(~valid, 2.0).flatten(1)
    keep = ((1 - ratio) * valid.flatten(1).sum(1)).round().long()
    rank = score.argsort(1).argsort(1)
    return (rank < keep[:, None]).view(valid.shape)


def crop_nearest(points: Points, count: int, rng: np.random.Generator) -> Points:
    """The `count` points nearest to a random point (a sphere crop), in their order; one item.

    Args:
        points: of one item.
        count: kept at most.
    """
    if len(points) <= count:
        return points
    centre = points.xyz[int(rng.integers(len(points)))]
    distance = (points.xyz - centre).square().sum(1)
    return points.rows(distance.topk(count, largest=False).indices.sort().values)


def _nearest_later(frame: np.ndarray, start: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the frame nearest to `wanted` and after `start`; of two equally near, the earlier."""
    right = np.clip(np.searchsorted(frame, wanted), 0, len(frame) - 1)
    left = np.maximum(right - 1, 0)
    nearer_left = (wanted - frame[left] <= np.abs(frame[right] - wanted)) & (left > start)
    return np.where(nearer_left, left, right)


def _groups_of(scene: Scene, cameras: Cameras, gap: int, views: int) -> np.ndarray:
    try:
        return pairs(cameras, gap, views)
    except BadData as error:
        raise BadData(f"{scene.name}: {error}") from None
