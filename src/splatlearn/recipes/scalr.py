"""ScaLR: teach an encoder of lidar scans the features that frozen image models see where its points fall (CVPR 2024).

The student sees the points that one camera of the rig sees, and a head gives each point a teacher's feature of the
pixel it falls on. Numbers are of ScaLR's released code, or of its branch ScaLR+ where that is said; what is ours says
so. Legend: B scans a batch, one view each, N points, C channels of a teacher, H W pixels.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from splatlearn.config import require
from splatlearn.data.augment import random_cloud_transform, transform_points
from splatlearn.data.projection import visible_points
from splatlearn.data.sampling import ENOUGH_SCENES, crop_nearest, split_scenes
from splatlearn.data.scene import Rejected, Scene, Source
from splatlearn.encoders.base import DERIVED, PointEncoder, PointEncoderConfig
from splatlearn.engine import plots
from splatlearn.engine.trainable import Progress, Recipe, Step, require_kind
from splatlearn.errors import BadData, ConfigError, nearest
from splatlearn.heads.projectors import Projector, ProjectorConfig
from splatlearn.losses.distillation import cosine_and_smooth_l1, cosine_distance, unit, unit_distance
from splatlearn.ops.reduce import global_sum
from splatlearn.ops.voxels import first_of_voxels
from splatlearn.registry import recipes
from splatlearn.structures import Batch, Cameras, Frames, Points
from splatlearn.teachers.base import Teacher, create_teacher
from splatlearn.teachers.prepared import PreparedMaps

log = logging.getLogger("splatlearn")
OF_SCANS = ("intensity", "reflectance")
"""Attributes of scans that an encoder may take as input."""
LOSSES = {"unit-l2": unit_distance, "cosine": cosine_distance, "cosine+smooth-l1": cosine_and_smooth_l1}


@dataclass(frozen=True, kw_only=True)
class ScaLRConfig:
    """Settings of ScaLR.

    Args:
        teachers: name of each teacher -> its options; each has a head of its own, and the losses add up (several at
            once are our extension).
        projector: the heads (ScaLR: one linear layer; ScaLR+: two).
        loss: `unit-l2` is ScaLR's: the distance of unit vectors, not squared. The others are ours.
        size: width and height that images are brought to, pixels (ScaLR: 448x224; ScaLR+: 896x448).
        corners: read features by ScaLR's rule, the outermost tokens on the outermost pixels; otherwise a token stands
            for the middle of its patch.
        voxel: one point of each voxel is kept, a random one in training, metres; 0 keeps all.
        points: most points of a sample, those nearest to a random one.
        spin: largest turn about the vertical, radians.
        flip: chance that x or y, by a coin, is mirrored.
        scale: smallest and largest factor of the coordinates.
        held_cameras: cameras that are kept for validation, by name; all scans are then in both splits. Left out,
            scans are split; where there are fewer than five, the last camera is kept.
        also: further data sets, name or path -> options of its reader; samples come from all by their number of scans.
        shares: share of each data set in the samples instead, by name or path.
        prepared: folders of `splatlearn prepare`, whose maps are read instead of asking those teachers.
        shuffle: give every point the feature of another point of its image: a control, from which nothing but the
            images' means can be learnt.
    """

    teachers: dict[str, dict[str, Any]] = field(default_factory=lambda: {"timm.dinov2-l": {}})
    projector: ProjectorConfig = ProjectorConfig()
    loss: Literal["unit-l2", "cosine", "cosine+smooth-l1"] = "unit-l2"
    size: tuple[int, int] = (448, 224)
    corners: bool = True
    voxel: float = 0.1
    points: int = 20000
    spin: float = float(np.pi)
    flip: float = 2 / 3
    scale: tuple[float, float] = (0.9, 1.1)
    held_cameras: tuple[str, ...] = ()
    also: dict[str, dict[str, Any]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    prepared: tuple[str, ...] = ()
    shuffle: bool = False

    def __post_init__(self) -> None:
        low, high = self.scale
        require(
            {
                "teachers: at least one is needed, timm.dinov2-s for instance": bool(self.teachers),
                f"size: at least 16x16 pixels are needed, got {self.size[0]}x{self.size[1]}": min(self.size) >= 16,
                f"voxel: zero or more is needed, got {self.voxel}": 0 <= self.voxel < np.inf,
                f"points: 1 or more are needed, got {self.points}": self.points >= 1,
                f"spin: an angle in [0, pi] is needed, got {self.spin}": 0 <= self.spin <= np.pi,
                f"flip: a chance in [0, 1] is needed, got {self.flip}": 0 <= self.flip <= 1,
                f"scale: two ascending factors above zero are needed, got {self.scale}": 0 < low <= high < np.inf,
                "prepared, also: maps are prepared of one data set, and do not go with several": (
                    not (self.prepared and self.also)
                ),
            }
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan(Batch):
    """Points that a camera sees, and its picture.

    Args:
        points: with `pixel` (N) int64 = y * W + x, and what the student takes.
        frames: one view a scan.
    """

    points: Points
    frames: Frames


@dataclass(frozen=True, kw_only=True)
class ScaLRData:
    """Scans with one camera each.

    Args:
        source: where the scans are.
        config: the recipe's settings.
        student: the student's config, for what a worker may do ahead.
        augment: whether to choose points at random and to turn, mirror and scale.
    """

    source: Source
    config: ScaLRConfig
    student: PointEncoderConfig
    augment: bool

    @cached_property
    def sources(self) -> dict[str, Source]:
        """All data sets by name."""
        also = {name: Source(name=name, options=options) for name, options in self.config.also.items()}
        return {self.source.name: self.source, **also}

    @cached_property
    def prepared(self) -> tuple[PreparedMaps, ...]:
        """Maps on disk."""
        return tuple(map(PreparedMaps.read, self.config.prepared))

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """Scans of `train` or `val` by data set: split by drive where the data say so, else at random."""
        if unknown := sorted(set(self.config.shares) - set(self.sources)):
            raise BadData(f"--recipe.shares: no data set {', '.join(unknown)}; there are {', '.join(self.sources)}")
        if self.config.held_cameras:
            self._check_held()
        groups = {name: self._scenes(source, split) for name, source in self.sources.items()}
        if not any(groups.values()):
            raise BadData(
                f"--data {self.source.name}: no camera is left for the split {split!r}; --recipe.held_cameras names "
                f"those for validation; by default it is the last of several, of fewer than {ENOUGH_SCENES} scans"
            )
        return {name: scenes for name, scenes in groups.items() if scenes}

    def shares(self) -> Mapping[str, float]:
        """As set, in training; else by size."""
        return self.config.shares if self.augment else {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Scan:
        """A random camera of a scan and the points it sees.

        Raises:
            Rejected: the camera sees no point.
        """
        config, cameras = self.config, scene.cameras
        view = int(rng.integers(len(cameras)))
        name = f"{scene.name}: {scene.camera_names[view] if scene.camera_names else f'camera {view}'}"
        points = self._thin(scene.points(), rng)
        seen = visible_points(points, cameras, view, scene.projection)
        width, height = config.size
        # ScaLR's code floors twice, at the photograph's size and at this one: a pixel's difference for one in seven.
        pixels = (seen.pixels * seen.pixels.new_tensor([width / cameras.width, height / cameras.height])).long()
        points = points.rows(seen.rows).with_attributes(pixel=pixels[:, 1] * width + pixels[:, 0])
        if len(points) > config.points:
            points = crop_nearest(points, config.points, rng)
        if self.augment:
            points = transform_points(points, self._transform(rng))
        points = points.rows(self.student.inside(points))
        if not len(points):
            raise Rejected("a camera that sees no point", name)
        wanted = {"pixel", *self.student.inputs} & set(points.attributes)
        points = replace(points, attributes={name: points[name] for name in sorted(wanted)})
        frames = scene.frames([view], config.size)
        for maps in self.prepared:
            frames = maps.attach(frames, scene.name, [scene.view_key(view)])
        return Scan(names=(name,), points=self.student.precompute(points), frames=frames)

    def _thin(self, points: Points, rng: np.random.Generator) -> Points:
        """One point a voxel: a random one in training, else the first."""
        if not self.config.voxel:
            return points
        order = torch.from_numpy(rng.permutation(len(points)) if self.augment else np.arange(len(points)))
        first = first_of_voxels(points.xyz[order], (len(order),), self.config.voxel)
        return points.rows(order[first].sort().values)

    def _check_held(self) -> None:
        names = {name for source in self.sources.values() for scene in source.scenes() for name in _cameras(scene)}
        if unknown := [name for name in self.config.held_cameras if name not in names]:
            raise BadData(
                f"--recipe.held_cameras: no camera {unknown[0]}{nearest(unknown[0], names)}; there are "
                f"{', '.join(sorted(names))}"
            )

    def _scenes(self, source: Source, split: str) -> Sequence[Scene]:
        scenes = source.scenes()
        if blind := [scene.name for scene in scenes if not _cameras(scene)]:
            if len(blind) == len(scenes):
                raise BadData(f"--data {source.name}: scalr needs scans with cameras; {blind[0]} has none")
            if split == "train":
                log.warning(
                    "%s: %d scans without photographs are left out, %s first", source.name, len(blind), blind[0]
                )
            scenes = [scene for scene in scenes if scene.name not in blind]
        if not self.config.held_cameras and len(scenes) >= ENOUGH_SCENES:
            return split_scenes(scenes, split)
        parts: list[Scene] = []
        for scene in scenes:
            names = _cameras(scene)
            held = self.config.held_cameras or names[1:][-1:]
            views = [view for view, name in enumerate(names) if (name in held) == (split == "val")]
            parts += [CameraSubset(scene, views)] if views else []
        return parts

    def _transform(self, rng: np.random.Generator) -> Tensor:
        config = self.config
        transform = random_cloud_transform(rng, tilt=0.0, spin=config.spin, scale=config.scale, flip=False)
        if rng.random() < config.flip:
            transform[int(rng.integers(2))] *= -1
        return transform

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("sources", "prepared")}


class CameraSubset(Scene):
    """A scan with some of its cameras, and all its points.

    Args:
        scene: the whole.
        views: of its cameras.
    """

    def __init__(self, scene: Scene, views: Sequence[int]) -> None:
        self.scene, self.views = scene, tuple(views)
        self.name, self.group, self.up, self.metric = scene.name, scene.group, scene.up, scene.metric
        self.split, self.drive, self.skipped, self.notes = scene.split, scene.drive, scene.skipped, scene.notes
        self.intensity_statistics, self.projection = scene.intensity_statistics, scene.projection
        self.camera_names = tuple(scene.camera_names[view] for view in views) if scene.camera_names else ()

    def view_key(self, view: int) -> int | str:
        """As the scene's."""
        return self.scene.view_key(self.views[view])

    @property
    def cameras(self) -> Cameras:
        """The chosen ones."""
        return self.scene.cameras.rows(torch.tensor(self.views))

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """As the scene's, counted among the chosen."""
        return self.scene.frames([self.views[view] for view in views], size)

    def points(self) -> Points:
        """As the scene's."""
        return self.scene.points()


@recipes.register("scalr", ScaLRConfig, presets={"small": {}, "tiny": {}, "paper": {}, "plus": {}})
class ScaLR(Recipe[Scan]):
    """Teach a lidar encoder the features of image models where its points fall (ScaLR).

    Args:
        config: settings.
        student: the point encoder to pre-train.
        source: where the scans are.
    """

    student: PointEncoder

    def __init__(self, config: ScaLRConfig, *, student: PointEncoder, source: Source) -> None:
        super().__init__()
        require_kind(student, PointEncoder, "scalr", "points, waffleiron for instance")
        if lacking := sorted(set(student.config.inputs) - {*OF_SCANS, *DERIVED}):
            raise ConfigError(
                f"encoder {student.name!r} takes {', '.join(lacking)}, which scans lack: --encoder.inputs, of "
                f"{', '.join((*OF_SCANS, *DERIVED))}"
            )
        self.config = config
        self.data = ScaLRData(source=source, config=config, student=student.config, augment=True)
        self.validation = replace(self.data, augment=False)
        self.student = student
        self.teachers = nn.ModuleList(create_teacher(name, options) for name, options in config.teachers.items())
        infos = [cast(Teacher, teacher).info for teacher in self.teachers]
        for name, info in zip(config.teachers, infos, strict=True):
            check_size(name, info.patch, config.size)
        by_name = {cast(Teacher, teacher).name: cast(Teacher, teacher) for teacher in self.teachers}
        for maps in self.data.prepared:
            if maps.name not in by_name:
                raise ConfigError(
                    f"--recipe.prepared: {maps.folder} holds maps of {maps.name}, which does not teach here"
                )
            maps.check(by_name[maps.name], config.size)
        width = student.channels[0]
        self.heads = nn.ModuleList(Head(config.projector, width, info.channels[-1]) for info in infos)

    @property
    def taught(self) -> list[tuple[str, Teacher, "Head"]]:
        """Each teacher's name, the teacher, and the student's head for it."""
        parts = cast(Iterable[Teacher], self.teachers), cast(Iterable[Head], self.heads)
        return list(zip(self.config.teachers, *parts, strict=True))

    def setup(self, batches: Iterable[Scan]) -> None:
        """The mean direction of each teacher's features in training, which evaluation subtracts."""
        sums = [torch.zeros_like(head.mean) for _, _, head in self.taught]
        pairs = torch.zeros((), device=sums[0].device)
        for batch in batches:
            pairs += len(batch.points)
            for total, target in zip(sums, self.targets(batch), strict=True):
                total += unit(target.float()).sum(0)
        pairs = global_sum(pairs).clamp_min(1)
        for (_, _, head), total in zip(self.taught, sums, strict=True):
            head.mean.copy_(global_sum(total) / pairs)

    def targets(self, batch: Scan) -> list[Tensor]:
        """(N C) each teacher's feature at the pixel of every point."""
        width, height = self.config.size
        pixel, view = batch.points["pixel"], batch.points.item
        places = torch.stack([pixel % width, pixel // width], 1).to(batch.frames.images.dtype)
        places = places if self.config.corners else places + 0.5
        return [
            teacher(batch.frames).at(places, view, (width, height), corners=self.config.corners)
            for _, teacher, _ in self.taught
        ]

    def predict(self, batch: Scan) -> list[Tensor]:
        """(N C) what the heads make of the student's features, one for each teacher."""
        features = self.student(batch.points).dense()
        return [head(features) for _, _, head in self.taught]

    def forward(self, batch: Scan, progress: Progress) -> Step:
        """The loss of each teacher, a mean over all pairs of the batch."""
        distance = LOSSES[self.config.loss]
        targets = self.targets(batch)
        if self.config.shuffle:
            targets = [target[_shuffled(batch.points)] for target in targets]
        pairs = zip(self.config.teachers, self.predict(batch), targets, strict=True)
        losses = {name: distance(prediction, target) for name, prediction, target in pairs}
        finite = [target.isfinite().all().float() for target in targets]
        known = {f"finite/{name}": share for name, share in zip(self.config.teachers, finite, strict=True)}
        return Step(losses, {"points": torch.tensor(len(batch.points) / len(batch.names)), **known})

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Scan]) -> dict[str, float]:
        """Over all pairs of the validation scans: `val_distance` of unit vectors, `val_cosine`, `val_cosine_centred`
        after the training mean was subtracted from both, and `val_r2`, the share of the teacher's unit vectors'
        variance about that mean that is explained by the student's, whose distances from it are scaled by the one
        factor that suits them best, as no loss of directions sets them (negative where that factor is). Means over
        teachers, and each by name where there are several."""
        scores = [_Fit(head.mean) for _, _, head in self.taught]
        for batch in batches:
            for score, prediction, target in zip(scores, self.predict(batch), self.targets(batch), strict=True):
                score.add(prediction, target)
        each = {name: score.numbers() for name, score in zip(self.config.teachers, scores, strict=True)}
        found = {key: float(np.mean([numbers[key] for numbers in each.values()])) for key in scores[0].numbers()}
        if len(each) > 1:
            found |= {f"{key}/{name}": value for name, numbers in each.items() for key, value in numbers.items()}
        return found

    @torch.no_grad()
    def preview(self, batch: Scan) -> dict[str, Tensor]:
        """Pictures of the first scan: the pairs on the camera's image, and features of teacher and student there."""
        first = Scan(names=batch.names[:1], points=batch.points.slice(0), frames=batch.frames.slice(0))
        image, pixel = first.frames.images[0], first.points["pixel"]
        distance = first.points.xyz.norm(dim=1)
        pictures = {
            "pairs/photograph": image,
            "pairs/points by distance": plots.points_on_image(image, pixel, plots.value_colors(distance)),
        }
        dark = 0.25 * image
        for name, target, prediction in zip(
            self.config.teachers, self.targets(first), self.predict(first), strict=True
        ):
            colors = plots.pca_colors(torch.cat([unit(target.float()), unit(prediction.float())]))
            for who, part in zip(("teacher", "student"), colors.chunk(2)):
                pictures[f"features, PCA/{name}: {who}"] = plots.points_on_image(dark, pixel, part)
        features = plots.pca_colors(self.student(first.points).dense().float())
        seen = Points(xyz=first.points.xyz, attributes={"color": features})
        reach = max(5.0, float(seen.xyz[:, :2].abs().amax(1).quantile(0.98)))
        pictures["scan/student's features, PCA, from above and from the side"] = plots.scan_picture(seen, reach=reach)
        return pictures

    def describe(self) -> dict[str, Any]:
        """Who teaches, and with whose weights."""
        return {"teachers": {name: teacher.describe() for name, teacher, _ in self.taught}}


class Head(Projector):
    """A projector to a teacher's width that keeps the mean direction of that teacher's features in training."""

    mean: Tensor

    def __init__(self, config: ProjectorConfig, channels: int, out_channels: int) -> None:
        super().__init__(config, channels, out_channels)
        self.register_buffer("mean", torch.zeros(out_channels))


class _Fit:
    """Sums over pairs: how well unit vectors are predicted, beside the training mean."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean
        self.pairs, self.sums = 0, torch.zeros(6, dtype=torch.float64)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        found, true = unit(prediction.float()), unit(target.float())
        moved, spread = found - self.mean, true - self.mean
        columns = [
            (found - true).norm(dim=1),
            (found * true).sum(1),
            (unit(moved) * unit(spread)).sum(1),
            (moved * spread).sum(1),
            moved.square().sum(1),
            spread.square().sum(1),
        ]
        self.sums += torch.stack([column.double().sum() for column in columns]).cpu()
        self.pairs += len(target)

    def numbers(self) -> dict[str, float]:
        distance, cosine, centred, together, moved, spread = self.sums.tolist()
        pairs = max(self.pairs, 1)
        return {
            "val_distance": distance / pairs,
            "val_cosine": cosine / pairs,
            "val_cosine_centred": centred / pairs,
            "val_r2": together * abs(together) / (moved * spread) if moved * spread else 0.0,
        }


def check_size(teacher: str, patch: int, size: tuple[int, int]) -> None:
    """Whether images divide into a teacher's patches.

    Raises:
        ConfigError: they do not; the nearest size that does is named.
    """
    if any(side % patch for side in size):
        fitting = "x".join(str(max(1, round(side / patch)) * patch) for side in size)
        raise ConfigError(
            f"--recipe.size: {size[0]}x{size[1]} does not divide into the patches of {teacher}, {patch} pixels wide; "
            f"{fitting} would"
        )


def _cameras(scene: Scene) -> tuple[str, ...]:
    """Names of the views: of the cameras, or their numbers."""
    return scene.camera_names or tuple(str(view) for view in range(len(scene.cameras)))


def _shuffled(points: Points) -> Tensor:
    """(N) rows in random order within each item, by the noise of the step."""
    noise = torch.rand(len(points), device=points.device, dtype=torch.float64)
    return (points.item + noise).argsort()
