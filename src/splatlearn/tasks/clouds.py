"""Labelled clouds: what tasks on points train on, one point a voxel, and how predictions come back to all points.

Legend: N points of the cloud, M kept points (one a voxel). Metres, world.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar, cast
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.augment import jitter_color, jitter_xyz, random_cloud_transform, transform_points
from splatlearn.data.sampling import crop_nearest, split_scenes
from splatlearn.data.scene import Rejected, Scene, Source
from splatlearn.encoders.base import DERIVED, PointEncoderConfig
from splatlearn.errors import BadData, UserError
from splatlearn.ops.neighbors import knn
from splatlearn.structures import Batch, Points

Augmentation = Literal["none", "indoor", "lidar"]
LabelUnit = Literal["points", "clouds"]
S = TypeVar("S", bound=Scene)
IGNORE = -1
ENOUGH_TO_TUNE = 5
REMEMBERED = 256
"""Thinned clouds of a source that a process keeps in memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud(Batch):
    """Kept points, and the cloud that they stand for.

    Args:
        points: (M) with `label` (M) int64, -1 = ignored.
        full: (N) every point of the cloud, with `label` and `kept` (N) int64, the row of `points` standing for it
            (counted within the item); zero rows while training.
    """

    points: Points
    full: Points


@dataclass(frozen=True, kw_only=True)
class CloudData:
    """Labelled clouds thinned to one point a voxel, whole or in crops.

    Args:
        source: where the clouds are.
        encoder: whose inputs are carried; `height` is measured on the whole cloud. Points that it cannot see are not
            kept, and what a worker may do for it ahead is done.
        voxel: edge of the voxels, metres; 0 keeps every point.
        nearest: the kept point that stands for a point is the nearest one, and not the one of its voxel.
        labels: share of the labels that is used.
        unit: of what: of the labelled kept points of each cloud, the rest of which become -1, or of the clouds.
        seed: chooses these points or clouds; the same for every method.
        crop: most points of a training sample, those nearest to a random one; 0 for the whole cloud.
        augment: what training samples go through (`distort`, `distort_scan`).
        whole: validation: whole clouds, unchanged, with all their labels.
        classes: number of classes that labels are checked against; 0 checks nothing.
        tuning: share of the training clouds that is kept for choosing settings, the split `tune`.
    """

    source: Source
    encoder: PointEncoderConfig = PointEncoderConfig(inputs=())
    voxel: float = 0.05
    nearest: bool = False
    labels: float = 1.0
    unit: LabelUnit = "points"
    seed: int = 0
    crop: int = 0
    augment: Augmentation = "none"
    whole: bool = False
    classes: int = 0
    tuning: float = 0.0

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """Clouds of `train`, `tune` or `val`."""
        if split == "val":
            return {"all": split_scenes(self.source.scenes(), split)}
        labelled: Sequence[Scene] = split_scenes(self.source.scenes(), "train")
        if self.unit == "clouds":
            labelled = keep_clouds(labelled, self.labels, self.seed)
        train, tune = keep_for_tuning(labelled, self.tuning)
        return {"all": tune if split == "tune" else train}

    def shares(self) -> Mapping[str, float]:
        """By size."""
        return {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Cloud:
        """A cloud, or a crop of one.

        Raises:
            Rejected: no point of the crop is labelled.
        """
        thinned = self.thin(scene)
        if self.whole:
            return self.ready(thinned)
        points = self._labelled(thinned.points, scene)
        points = crop_nearest(points, self.crop, rng) if self.crop else points
        if not bool((points["label"] >= 0).any()):
            raise Rejected("no labelled point in the crop")
        if self.augment != "none":
            points = (distort if self.augment == "indoor" else distort_scan)(points, rng)
            points = points.rows(self.encoder.inside(points))
        return self.ready(Cloud(names=(scene.name,), points=points, full=thinned.full.rows(torch.arange(0))))

    def each(self, split: str) -> Iterator[Cloud]:
        """Every cloud of a split once, thinned and whole, in order; those of `tune` with their share of labels."""
        for scene in self.scenes(split)["all"]:
            cloud = self.thin(scene)
            if split == "tune":
                cloud = replace(cloud, points=self._labelled(cloud.points, scene))
            yield self.ready(cloud)

    def ready(self, cloud: Cloud) -> Cloud:
        """The cloud with what its encoder would else compute itself."""
        return replace(cloud, points=self.encoder.precompute(cloud.points))

    def _labelled(self, points: Points, scene: Scene) -> Points:
        return keep_labels(points, self.labels, scene.name, self.seed) if self.unit == "points" else points

    def thin(self, scene: Scene) -> Cloud:
        """The kept points of a scene, whole and without augmentation; the last few scenes are remembered."""
        remembered = self.source.memory.setdefault("thinned", {})
        key = scene.name, scene.split, self.voxel, self.nearest, self.encoder, self.classes
        if key not in remembered:
            remembered[key] = self._thin(scene)
            if len(remembered) > REMEMBERED:
                del remembered[next(iter(remembered))]
        return remembered[key]

    def _thin(self, scene: Scene) -> Cloud:
        points = scene.points()
        if not len(points):
            raise BadData(f"{scene.name}: the cloud has no points")
        if "label" not in points:
            raise BadData(f"{scene.name}: the cloud has no labels; label it, or take it out of the data")
        label = checked_labels(points["label"], self.classes, scene.name)
        carried = {
            name: DERIVED[name](points) if name in DERIVED and name not in points else points[name]
            for name in self.encoder.inputs
        }
        kept, stands_for = thin_rows(points.xyz, self.voxel)
        thinned = Points(xyz=points.xyz, attributes={**carried, "label": label}).rows(kept)
        inside = self.encoder.inside(thinned)
        if not bool(inside.any()):
            raise BadData(f"{scene.name}: the encoder sees none of its points; they lie out of its field of view")
        if self.nearest or not bool(inside.all()):
            thinned = thinned.rows(inside)
            stands_for = knn(points.xyz, points.counts, thinned.xyz, thinned.counts, 1)[1][:, 0]
        full = Points(xyz=points.xyz, attributes={"label": label, "kept": stands_for})
        return Cloud(names=(scene.name,), points=thinned, full=full)


def thin_rows(xyz: Tensor, voxel: float) -> tuple[Tensor, Tensor]:
    """One point a voxel: the point nearest to the mean of the voxel's points, the first of equals.

    Args:
        xyz: (N 3) metres, of one cloud.
        voxel: edge, metres; 0 keeps every point.

    Returns:
        (M) rows that are kept, ascending, and (N) the kept row, counted among the M, that stands for each point.
    """
    if voxel <= 0:
        every = torch.arange(len(xyz), device=xyz.device)
        return every, every
    cells = ((xyz - xyz.amin(0)) / voxel).floor().long()
    sides = cells.amax(0) + 1
    keys = (cells[:, 0] * sides[1] + cells[:, 1]) * sides[2] + cells[:, 2]
    _, cell, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    means = torch.zeros(len(counts), 3, dtype=torch.float64, device=xyz.device)
    means = means.index_add_(0, cell, xyz.double()) / counts[:, None]
    distance = (xyz - means[cell]).square().sum(1).cpu().numpy()
    order = torch.from_numpy(np.lexsort((distance, cell.cpu().numpy()))).to(xyz.device)
    first = order[counts.cumsum(0) - counts]
    kept, place = first.sort()
    rank = torch.empty_like(place)
    rank[place] = torch.arange(len(place), device=xyz.device)
    return kept, rank[cell]


def keep_clouds(scenes: Sequence[S], share: float, seed: int) -> Sequence[S]:
    """A share of the clouds, chosen by the seed, in their order; one at least.

    Raises:
        UserError: a share outside (0, 1].
    """
    check_share(share)
    chosen = np.random.default_rng([seed, len(scenes)]).permutation(len(scenes))
    kept = set(chosen[: max(1, round(share * len(scenes)))].tolist())
    return [scene for number, scene in enumerate(scenes) if number in kept]


def check_share(share: float) -> None:
    """Raises: UserError: a share of the labels outside (0, 1]."""
    if not 0 < share <= 1:
        raise UserError(f"--labels: a share in (0, 1] is needed, got {share}")


def keep_for_tuning(scenes: Sequence[S], share: float) -> tuple[Sequence[S], Sequence[S]]:
    """Scenes to train on, and about a share of them, evenly spread, to choose settings on; of fewer than five scenes
    all are in both."""
    kept = round(share * len(scenes))
    if not kept or len(scenes) < ENOUGH_TO_TUNE:
        return scenes, scenes
    chosen = {(2 * i + 1) * len(scenes) // (2 * kept) for i in range(kept)}
    return [s for i, s in enumerate(scenes) if i not in chosen], [s for i, s in enumerate(scenes) if i in chosen]


def checked_labels(label: Tensor, classes: int, name: str) -> Tensor:
    """(N) int64 labels, all of them -1 or a class.

    Raises:
        BadData: a label below -1, or beyond the classes.
    """
    label = label.long()
    if len(label) and (int(label.min()) < IGNORE or (classes and int(label.max()) >= classes)):
        allowed = f"0 to {classes - 1}" if classes else "0 and up"
        raise BadData(
            f"{name}: labels from {int(label.min())} to {int(label.max())}; -1 (ignored) and {allowed} are allowed"
        )
    return label


def keep_labels(points: Points, share: float, name: str, seed: int) -> Points:
    """Ignores all labels but a share, which depends on the cloud's name and the seed alone; one at least is kept.

    Raises:
        UserError: a share outside (0, 1].
    """
    check_share(share)
    labelled = (points["label"] >= 0).nonzero().squeeze(1)
    if share == 1 or not len(labelled):
        return points
    rng = np.random.default_rng([seed, crc32(name.encode())])
    chosen = rng.permutation(len(labelled))[: max(1, round(share * len(labelled)))]
    label = torch.full_like(points["label"], IGNORE)
    rows = labelled[torch.from_numpy(chosen).to(labelled.device)]
    label[rows] = points["label"][rows]
    return points.with_attributes(label=label)


def distort(points: Points, rng: np.random.Generator) -> Points:
    """One draw of augmentation as in Pointcept's ScanNet recipes, without its elastic part."""
    points = jitter_xyz(transform_points(points, random_cloud_transform(rng)), rng)
    return jitter_color(points, rng) if "color" in points else points


def distort_scan(points: Points, rng: np.random.Generator) -> Points:
    """One draw of augmentation of lidar scans, as ScaLR's code has it: coordinates are turned about the vertical and,
    two times in three, mirrored; their copy among the inputs is turned by an angle of its own and, with the radius,
    scaled by up to a tenth."""
    turn, other = (random_cloud_transform(rng, tilt=0.0, scale=(1.0, 1.0), flip=False) for _ in range(2))
    factor = rng.uniform(0.9, 1.1)
    if rng.random() < 2 / 3:
        turn[int(rng.integers(2))] *= -1
    attributes = {}
    if "position" in points:
        attributes["position"] = factor * points["position"] @ other[:3, :3].to(points.xyz).T
    if "radius" in points:
        attributes["radius"] = factor * points["radius"]
    return transform_points(points, turn).with_attributes(**attributes)


class Held(Scene):
    """A thinned cloud in memory, its features computed before.

    Args:
        cloud: its points carry `feature` and `label`.
    """

    def __init__(self, cloud: Cloud) -> None:
        self.cloud, self.name = cloud, cloud.names[0]


@dataclass(frozen=True, kw_only=True)
class HeldData:
    """Clouds in memory; a sample is a random subset of one cloud's labelled points.

    Args:
        train: clouds to sample from.
        val: clouds to evaluate on.
        rows: most points of a training sample.
        whole: give whole clouds.
        tune: clouds to choose settings on.
    """

    train: tuple[Held, ...]
    val: tuple[Held, ...]
    rows: int
    whole: bool = False
    tune: tuple[Held, ...] = ()
    in_memory = True

    def scenes(self, split: str) -> Mapping[str, Sequence[Held]]:
        """The clouds of `train`, `tune` or `val`."""
        return {"all": {"train": self.train, "tune": self.tune, "val": self.val}[split]}

    def shares(self) -> Mapping[str, float]:
        """By size."""
        return {}

    def each(self, split: str) -> Iterator[Cloud]:
        """Every cloud of a split once, whole, in order."""
        for scene in self.scenes(split)["all"]:
            yield scene.cloud

    def with_labels(self, share: float, seed: int, unit: LabelUnit = "points") -> Self:
        """The same features with a share of the training labels, as `keep_labels` or `keep_clouds` chooses them."""
        if unit == "clouds":
            return replace(self, train=tuple(keep_clouds(self.train, share, seed)))
        clouds = [held.cloud for held in self.train]
        limited = [replace(c, points=keep_labels(c.points, share, c.names[0], seed)) for c in clouds]
        return replace(self, train=tuple(map(Held, limited)))

    def for_tuning(self, share: float) -> Self:
        """The same with a share of the training clouds moved to `tune`, as `keep_for_tuning` chooses them."""
        train, tune = keep_for_tuning(self.train, share)
        return replace(self, train=tuple(train), tune=tuple(tune))

    def sample(self, scene: Scene, rng: np.random.Generator) -> Cloud:
        """A whole cloud, or `rows` of its labelled points, drawn without repetition.

        Raises:
            Rejected: no point of the cloud is labelled.
        """
        cloud = cast(Held, scene).cloud
        if self.whole:
            return cloud
        labelled = (cloud.points["label"] >= 0).nonzero().squeeze(1)
        if not len(labelled):
            raise Rejected("no labelled point in the cloud")
        chosen = np.sort(rng.permutation(len(labelled))[: self.rows])
        points = cloud.points.rows(labelled[torch.from_numpy(chosen)])
        return Cloud(names=cloud.names, points=points, full=cloud.full.rows(torch.arange(0)))
