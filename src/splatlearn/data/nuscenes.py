"""nuScenes: key frames by the data set's own tables, or by an info file of mmdetection3d.

Legend: N points, V views, M boxes. Metres; the world of a scan is its lidar's frame: x right, y forward, z up. Pixels
are taken as ScaLR's code takes them: (u, v) lies in the pixel floor(u), floor(v), so intrinsics are not shifted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from splatlearn.data.infos import Info, InfoFile, find_infos, looks_like, projection, read_infos, resolve
from splatlearn.data.nuscenes_tables import LIDAR, Annotation, KeyFrame, read_key_frames, tables_folder
from splatlearn.data.projection import ProjectionRule
from splatlearn.data.records import IGNORED, map_classes, motion, read_labels, read_records, read_splits
from splatlearn.data.scans import Intensity, LidarConfig, LidarReader, LidarScene, Returns, View
from splatlearn.data.scene import Skipped
from splatlearn.errors import MissingData
from splatlearn.registry import readers
from splatlearn.structures import Boxes

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
CLASSES = (
    *("barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone"),
    *("trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation"),
)
"""The 16 classes of the lidarseg challenge, in its order; boxes use the first ten."""
SIZE = (1600, 900)
"""Of every photograph."""
INTENSITY = Intensity(255, 18.742355, 22.04632)
"""ScaLR's numbers for the training scans."""
_RAW = {9: 0, 14: 1, 15: 2, 16: 2, 17: 3, 18: 4, 21: 5, 2: 6, 3: 6, 4: 6, 6: 6, 12: 7, 22: 8, 23: 9}
_RAW |= {24: 10, 25: 11, 26: 12, 27: 13, 28: 14, 30: 15}
LIDARSEG = {raw: _RAW.get(raw, IGNORED) for raw in range(32)}
"""The lidarseg challenge's map of the 32 raw classes; the others are ignored."""
CATEGORIES = {
    "movable_object.barrier": 0,
    "vehicle.bicycle": 1,
    "vehicle.bus.bendy": 2,
    "vehicle.bus.rigid": 2,
    "vehicle.car": 3,
    "vehicle.construction": 4,
    "vehicle.motorcycle": 5,
    "human.pedestrian.adult": 6,
    "human.pedestrian.child": 6,
    "human.pedestrian.construction_worker": 6,
    "human.pedestrian.police_officer": 6,
    "movable_object.trafficcone": 7,
    "vehicle.trailer": 8,
    "vehicle.truck": 9,
}
"""The detection challenge's map of categories; boxes of others are ignored."""
MINI_VAL = ("scene-0103", "scene-0916")
"""The official validation scenes of v1.0-mini."""
_RING, _RECORD = 4, 5


@dataclass(frozen=True, kw_only=True)
class NuScenesConfig(LidarConfig):
    """How to read nuScenes.

    Args:
        splits: JSON file `{"train": [names of scenes], "val": [...]}`; it may lie in the data set as splits.json.
            Without one, the two official scenes of v1.0-mini, and of other versions every fifth scene by name, are
            `val`.
    """

    splits: Path | None = None


class NuScenesScan(LidarScene):
    """What both forms of nuScenes have in common: the scan and its labels. Built as `LidarScene`, and

    Args:
        labels: file of point labels, or None.
    """

    projection = ProjectionRule(min_depth=1.0)

    def __init__(
        self,
        name: str,
        scan: Path,
        labels: Path | None,
        split: str,
        frame: int,
        cameras: Sequence[str],
        skipped: Sequence[Skipped],
    ) -> None:
        super().__init__(
            name,
            scan,
            intensity=INTENSITY,
            split=split,
            frame=frame,
            cameras=cameras,
            labels=labels,
            skipped=skipped,
        )

    def read(self) -> Returns:
        """The scan, its ring as `beam`."""
        rows = read_records(self.scan, _RECORD)
        label = None
        if self.labels is not None:
            label = map_classes(read_labels(self.labels, "u1", len(rows)), LIDARSEG, self.labels)
        return Returns(rows[:, :3], rows[:, 3], rows[:, _RING], label)


class TableScan(NuScenesScan):
    """A key frame of the tables.

    Args:
        root: of the data set.
        key: the key frame.
        cameras: channels whose photographs exist.
        labels: file of point labels, or None.
        split: of its scene.
        skipped: photographs that are missing.
    """

    def __init__(
        self,
        root: Path,
        key: KeyFrame,
        cameras: Sequence[str],
        labels: Path | None,
        split: str,
        skipped: Sequence[Skipped],
    ) -> None:
        scan = root / key.shots[LIDAR].data["filename"]
        super().__init__(f"{key.drive}/{key.number:03d}", scan, labels, split, key.number, cameras, skipped)
        self._root, self._key = root, key

    def views(self) -> list[View]:
        """lidar -> car at the scan's time -> world -> car at the photograph's time -> camera."""
        return [self._view(channel) for channel in self.camera_names]

    def boxes(self) -> Boxes:
        """The annotated boxes in the lidar's frame, `label` as of points."""
        if self._key.annotations is None:
            raise MissingData(f"{self.name} has no boxes: no sample_annotation.json")
        found = [_moved(a, self._lidar_from_global) for a in self._key.annotations]
        return _boxes(found, [CATEGORIES.get(a.category, IGNORED) for a in self._key.annotations])

    @property
    def _lidar_from_global(self) -> np.ndarray:
        return np.linalg.inv(self._key.shots[LIDAR].global_from_sensor)

    def _view(self, channel: str) -> View:
        shot = self._key.shots[channel]
        pose = np.linalg.inv(self._lidar_from_global @ shot.global_from_sensor)
        size = (int(shot.data.get("width") or SIZE[0]), int(shot.data.get("height") or SIZE[1]))
        return View(channel, self._root / shot.data["filename"], size, pose, shot.intrinsics)


class InfoScan(NuScenesScan):
    """A scan of an info file.

    Args:
        info: the scan's entry.
        file: the info file that it is of.
        scan: its file.
        frame: its number in the file.
        images: camera -> photograph, those that exist.
        labels: file of point labels, or None.
        skipped: photographs that are missing.
    """

    def __init__(
        self,
        info: Info,
        file: InfoFile,
        scan: Path,
        frame: int,
        images: dict[str, Path],
        labels: Path | None,
        skipped: Sequence[Skipped],
    ) -> None:
        super().__init__(info.name, scan, labels, file.split, frame, tuple(images), skipped)
        self._info, self._images, self._categories = info, images, file.categories
        self._lengths_first, self._file = file.lengths_first, file.path

    def views(self) -> list[View]:
        """`lidar2cam` has the car's motion between scan and photograph in it."""
        return [self._view(camera, image) for camera, image in self._images.items()]

    def boxes(self) -> Boxes:
        """The boxes in the lidar's frame, `label` as of points."""
        if not self._lengths_first:
            raise MissingData(f"{self.name} has no boxes: {self._file} is of a version that orders sizes otherwise")
        named = {index: CLASSES.index(name) for index, name in self._categories.items() if name in CLASSES}
        rows = [box["bbox_3d"] for box in self._info.instances]
        return _boxes(rows, [named.get(box["bbox_label_3d"], IGNORED) for box in self._info.instances])

    def _view(self, camera: str, image: Path) -> View:
        pose, matrix = projection(self._info.cameras[camera], f"{self._file}: {self._info.name}: {camera}")
        return View(camera, image, SIZE, pose, matrix)


@readers.register("nuscenes", NuScenesConfig, presets={"default": {}, "tiny": {"max_scans": 4}})
class NuScenesReader(LidarReader):
    """nuScenes: lidar key frames with six cameras; the data set's folder, or info files of mmdetection3d."""

    config: NuScenesConfig
    expects = "v1.0-*/sample_data.json with samples/LIDAR_TOP, or an info .pkl of mmdetection3d beside its scans"
    classes = CLASSES

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """It has tables, or an info file that names nuScenes' cameras."""
        if path.is_file():
            return looks_like(path, b"CAM_FRONT")
        return tables_folder(path) is not None or bool(find_infos(path, b"CAM_FRONT"))

    def find(self, left_out: list[Skipped]) -> list[LidarScene]:
        """Key frames whose scan exists."""
        folder = tables_folder(self.path)
        if folder is not None:
            return self._of_tables(folder, left_out)
        return [scene for file in find_infos(self.path, b"CAM_FRONT") for scene in self._of_infos(file, left_out)]

    def _of_tables(self, folder: Path, left_out: list[Skipped]) -> list[LidarScene]:
        root = folder.parent if folder.name.startswith("v1.0-") else folder
        keys = read_key_frames(folder)
        splits = self._splits(root, folder.name, sorted({key.drive for key in keys}))
        channels = self.chosen([c for c in CAMERAS if any(c in key.shots for key in keys)])
        scenes: list[LidarScene] = []
        for key in keys:
            name = f"{key.drive}/{key.number:03d}"
            if key.drive not in splits:
                left_out.append(Skipped(name, "its scene is in no split"))
            elif root / key.shots[LIDAR].data["filename"] not in self.files:
                left_out.append(Skipped(name, "its scan is missing"))
            else:
                there = [c for c in channels if c in key.shots]
                kept = [c for c in there if root / key.shots[c].data["filename"] in self.files]
                absent = [Skipped(c, "the image is missing") for c in there if c not in kept]
                labels = self._existing(root / key.labels) if key.labels else None
                scenes.append(TableScan(root, key, kept, labels, splits[key.drive], absent))
        return scenes

    def _of_infos(self, path: Path, left_out: list[Skipped]) -> list[LidarScene]:
        file = read_infos(path)
        channels = self.chosen([c for c in CAMERAS if any(c in info.cameras for info in file.infos)])
        scenes: list[LidarScene] = []
        for number, info in enumerate(file.infos):
            scan = resolve(path.parent, info.scan, (f"samples/{LIDAR}",), self.files)
            if scan is None:
                left_out.append(Skipped(info.name, "its scan is missing"))
                continue
            found = {
                c: resolve(path.parent, info.images[c], (f"samples/{c}",), self.files)
                for c in channels
                if c in info.images
            }
            images = {camera: image for camera, image in found.items() if image is not None}
            absent = [Skipped(camera, "the image is missing") for camera in found if camera not in images]
            labels = resolve(path.parent, info.labels, (), self.files) if info.labels and self.config.labels else None
            scenes.append(InfoScan(info, file, scan, number, images, labels, absent))
        return scenes

    def _existing(self, labels: Path) -> Path | None:
        return labels if self.config.labels and labels in self.files else None

    def _splits(self, root: Path, version: str, drives: list[str]) -> dict[str, str]:
        """Scene -> split."""
        file = self.config.splits or root / "splits.json"
        if file.is_file() or self.config.splits:
            return read_splits(file)
        if version.endswith("test"):
            return dict.fromkeys(drives, "test")
        held_out = MINI_VAL if version.endswith("mini") else drives[4::5]
        return {drive: "val" if drive in held_out else "train" for drive in drives}


def _moved(annotation: Annotation, lidar_from_global: np.ndarray) -> list[float]:
    """x y z, length width height, yaw: in the lidar's frame, which leans by less than a degree or two."""
    record = annotation.record
    pose = lidar_from_global @ motion(record["rotation"], record["translation"], f"sample_annotation {record['token']}")
    width, length, height = record["size"]
    yaw = float(Rotation.from_matrix(pose[:3, :3]).as_euler("ZYX")[0])
    return [*pose[:3, 3].tolist(), length, width, height, yaw]


def _boxes(rows: Sequence[Sequence[float]], labels: Sequence[int]) -> Boxes:
    """Of rows x y z, length width height, yaw."""
    table = torch.tensor(np.array(rows, np.float64).reshape(-1, 7), dtype=torch.float32)
    return Boxes(
        centers=table[:, :3],
        sizes=table[:, 3:6],
        yaws=table[:, 6],
        attributes={"label": torch.tensor(list(labels), dtype=torch.int64)},
    )
