"""KITTI: the object benchmark's folders (or mmdetection3d's infos), and the drives of SemanticKITTI.

Legend: N points, V views, M boxes. Metres; the world of a scan is its lidar's frame: x forward, y left, z up. The
camera is the left colour one, `image_2`: rectified, so no lens bends; the fourth column of its P2 goes into the pose.
Pixels are taken as ScaLR's code takes them: (u, v) lies in the pixel floor(u), floor(v), so intrinsics are not shifted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from splatlearn.data.folders import GLANCE, walk
from splatlearn.data.imagery import UnreadableImage, probe
from splatlearn.data.infos import Info, find_infos, looks_like, projection, read_infos, resolve
from splatlearn.data.kitti_calibration import Calibration, find_calibration, read_calibration, rectified
from splatlearn.data.projection import ProjectionRule
from splatlearn.data.records import IGNORED, map_classes, numbers, read_labels, read_records, rigid_motion
from splatlearn.data.scans import Intensity, LidarConfig, LidarReader, LidarScene, Returns, Size, View
from splatlearn.data.scene import Skipped
from splatlearn.errors import BadData, MissingData
from splatlearn.registry import readers
from splatlearn.structures import Boxes

CAMERA = "image_2"
INTENSITY = Intensity(1, 0.28613698, 0.14090556)
"""ScaLR's numbers for SemanticKITTI; the same lidar took the object benchmark."""
OBJECTS = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")
"""Types of boxes, in the order of mmdetection3d's infos. `DontCare` is a region of the image, no box."""
CLASSES = (
    *("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road"),
    *("parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole"),
    "traffic-sign",
)
"""The 19 classes of SemanticKITTI."""
_RAW = {10: 1, 11: 2, 15: 3, 18: 4, 13: 5, 16: 5, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 60: 9, 44: 10, 48: 11, 49: 12}
_RAW |= {50: 13, 51: 14, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 0: 0, 1: 0, 52: 0, 99: 0}
_RAW |= {252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5, 258: 4, 259: 5}
LEARNING_MAP = {raw: number - 1 if number else IGNORED for raw, number in _RAW.items()}
"""The benchmark's map of raw classes (moving things count as what they are); 0 of it is ignored."""
TRAIN, VAL = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10), (8,)
RULE = ProjectionRule(min_depth=0.0, min_forward=1.0)
_COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class KittiConfig(LidarConfig):
    """How to read KITTI and SemanticKITTI."""


class KittiScan(LidarScene):
    """A scan of KITTI with the left colour photograph.

    Args:
        name: its name.
        scan: its file.
        split: `train`, `val`, `test`, or empty.
        frame: raw index in the drive.
        drive: its number; empty for the object benchmark's frames, which are of many drives in no order.
        image: its photograph and that one's size; None where there is none.
        calibration: file or files of the camera, or an info.
        labels: file of point labels, or None.
        boxes: file of boxes, or None.
        skipped: photographs that are missing.
    """

    projection = RULE

    def __init__(
        self,
        name: str,
        scan: Path,
        *,
        split: str,
        frame: int,
        drive: str = "",
        image: tuple[Path, Size] | None,
        calibration: Path | Info | None,
        labels: Path | None = None,
        boxes: Path | None = None,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        super().__init__(
            name,
            scan,
            intensity=INTENSITY,
            split=split,
            frame=frame,
            drive=drive,
            cameras=(CAMERA,) if image else (),
            labels=labels,
            skipped=skipped,
        )
        self._image, self._calibration, self._boxes = image, calibration, boxes

    def read(self) -> Returns:
        """The scan."""
        rows = read_records(self.scan, _COLUMNS)
        label = None
        if self.labels is not None:
            raw = read_labels(self.labels, "<u4", len(rows)) & 0xFFFF
            label = map_classes(raw, LEARNING_MAP, self.labels)
        return Returns(rows[:, :3], rows[:, 3], label=label)

    def views(self) -> list[View]:
        """The left colour camera."""
        if self._image is None:
            return []
        found = self._camera()
        return [View(CAMERA, *self._image, found.world_to_camera, found.intrinsics)]

    def boxes(self) -> Boxes:
        """The annotated boxes in the lidar's frame, `label` as in `OBJECTS`."""
        if isinstance(self._calibration, Info):
            return self._boxes_of(self._calibration)
        if self._boxes is None or self._calibration is None:
            raise MissingData(f"{self.name} has no boxes: no label_2 file")
        rows = [line.split() for line in self._boxes.read_text().splitlines() if line.strip()]
        kept = [row for row in rows if row[0] != "DontCare"]
        if wrong := [row for row in kept if len(row) < 15 or row[0] not in OBJECTS]:
            raise BadData(f"{self._boxes}: a type of {', '.join(OBJECTS)} and 14 numbers expected, got {wrong[0]}")
        table = numbers([row[8:15] for row in kept], self._boxes).reshape(-1, 7)
        return _boxes(table, np.linalg.inv(rectified(self._calibration)), [OBJECTS.index(row[0]) for row in kept])

    def _boxes_of(self, info: Info) -> Boxes:
        """Infos give x, y, z, length, height, width and the turn, in the rectified camera's frame."""
        kept = [box for box in info.instances if 0 <= box["bbox_label_3d"] < len(OBJECTS)]
        table = numbers([box["bbox_3d"] for box in kept], self.scan).reshape(-1, 7)[:, [4, 5, 3, 0, 1, 2, 6]]
        lidar_from_camera = np.linalg.inv(rigid_motion(info.cameras["CAM2"]["lidar2cam"], f"{self.name}: lidar2cam"))
        return _boxes(table, lidar_from_camera, [int(box["bbox_label_3d"]) for box in kept])

    def _camera(self) -> Calibration:
        if isinstance(self._calibration, Info):
            return Calibration(*projection(self._calibration.cameras["CAM2"], f"{self.name}: CAM2"))
        assert self._calibration is not None
        return read_calibration(self._calibration)


@readers.register("kitti", KittiConfig, presets={"default": {}, "tiny": {"max_scans": 4}})
class KittiReader(LidarReader):
    """KITTI object folders (velodyne, image_2, calib, label_2 in training/ and testing/), or infos of mmdetection3d."""

    expects = "training/velodyne/*.bin with training/calib, or an info .pkl of mmdetection3d beside its scans"
    classes = OBJECTS

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """It has velodyne and calib folders, or an info file that names KITTI's cameras and no other data set's."""
        return bool(_parts(path)) or bool(_infos(path))

    def find(self, left_out: list[Skipped]) -> list[LidarScene]:
        """Scans whose file exists; `ImageSets/train.txt` and `val.txt` tell the splits, where they are."""
        self.chosen((CAMERA,))
        found: list[LidarScene] = [
            self._scan(part, file) for part in _parts(self.path) for file in sorted(part.glob("velodyne/*.bin"))
        ]
        return found or [scene for file in _infos(self.path) for scene in self._of_infos(file, left_out)]

    def _scan(self, part: Path, scan: Path) -> KittiScan:
        name, calibration = scan.stem, part / "calib" / f"{scan.stem}.txt"
        image, skipped = self._image(part / CAMERA / f"{name}.png")
        if image and calibration not in self.files:
            image, skipped = None, (Skipped(CAMERA, f"its calib/{name}.txt is missing"),)
        labels = part / "label_2" / f"{name}.txt"
        boxes = labels if labels in self.files and calibration in self.files else None
        return KittiScan(
            scan.relative_to(self.path).parent.parent.joinpath(name).as_posix(),
            scan,
            split="test" if part.name == "testing" else self._listed(part.parent).get(name, ""),
            frame=int(name) if name.isdigit() else 0,
            image=image,
            calibration=calibration,
            boxes=boxes,
            skipped=skipped,
        )

    def _listed(self, root: Path) -> dict[str, str]:
        """Name -> split, by the lists that people keep beside the data."""
        if root not in self._lists:
            files = [(split, root / "ImageSets" / f"{split}.txt") for split in ("train", "val")]
            pairs = [(name, split) for split, file in files if file.is_file() for name in file.read_text().split()]
            self._lists[root] = dict(pairs)
        return self._lists[root]

    def __init__(self, config: KittiConfig, path: Path) -> None:
        super().__init__(config, path)
        self._lists: dict[Path, dict[str, str]] = {}

    def _of_infos(self, path: Path, left_out: list[Skipped]) -> list[KittiScan]:
        file, scenes = read_infos(path), []
        for number, info in enumerate(file.infos):
            scan = resolve(path.parent, info.scan, ("training/velodyne", "training/velodyne_reduced"), self.files)
            if scan is None:
                left_out.append(Skipped(info.name, "its scan is missing"))
                continue
            named = info.images.get("CAM2", f"{info.name}.png")
            photograph = resolve(path.parent, named, ("training/image_2",), self.files)
            image, skipped = self._image(photograph or path.parent / named)
            scenes.append(
                KittiScan(
                    info.name, scan, split=file.split, frame=number, image=image, calibration=info, skipped=skipped
                )
            )
        return scenes

    def _image(self, path: Path) -> tuple[tuple[Path, Size] | None, tuple[Skipped, ...]]:
        """A photograph and its size, which differs from drive to drive; or why there is none."""
        if path not in self.files:
            return None, (Skipped(CAMERA, "the image is missing"),)
        try:
            return (path, probe(path)), ()
        except UnreadableImage as error:
            return None, (Skipped(CAMERA, str(error)),)


@readers.register("semantickitti", KittiConfig, presets={"default": {}, "tiny": {"max_scans": 4}})
class SemanticKittiReader(LidarReader):
    """SemanticKITTI drives: sequences/NN with velodyne, labels, image_2, and calib.txt there or in calib/dataset/..."""

    expects = "dataset/sequences/00/velodyne/*.bin (sequences 00 to 10 with labels), image_2 and calib.txt"
    classes = CLASSES

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A drive lies at the path or up to three folders below it."""
        return any(True for _ in walk(path, _is_drive, breadth=GLANCE))

    def find(self, left_out: list[Skipped]) -> list[LidarScene]:
        """Every scan of every drive."""
        self.chosen((CAMERA,))
        return [scene for drive in walk(self.path, _is_drive) for scene in self._drive(drive)]

    def _drive(self, drive: Path) -> list[KittiScan]:
        scans = sorted((drive / "velodyne").glob("*.bin"))
        photographs = [drive / CAMERA / f"{scan.stem}.png" for scan in scans]
        calibration = find_calibration(drive)
        size, reason = self._size([path for path in photographs if path in self.files])
        if calibration is None:
            reason = "no calib.txt, in the drive or in calib/dataset/sequences"
        name = drive.resolve().name
        number = int(name)
        split = "train" if number in TRAIN else "val" if number in VAL else "test"
        scenes = []
        for i, (scan, photograph) in enumerate(zip(scans, photographs)):
            there = photograph in self.files
            used = there and not reason and size is not None
            labels = drive / "labels" / f"{scan.stem}.label"
            scenes.append(
                KittiScan(
                    f"{name}/{scan.stem}",
                    scan,
                    split=split,
                    frame=int(scan.stem) if scan.stem.isdigit() else i,
                    drive=name,
                    image=(photograph, size) if used and size else None,
                    calibration=calibration,
                    labels=labels if self.config.labels and labels in self.files else None,
                    skipped=() if used else (Skipped(CAMERA, reason if there else "the image is missing"),),
                )
            )
        return scenes

    def _size(self, photographs: Sequence[Path]) -> tuple[Size | None, str]:
        """Of the first photograph of a drive that can be read: all of a drive have one."""
        reason = ""
        for path in photographs:
            try:
                return probe(path), ""
            except UnreadableImage as error:
                reason = str(error)
        return None, reason


def _is_drive(path: Path) -> bool:
    return bool(re.fullmatch(r"\d\d", path.resolve().name)) and (path / "velodyne").is_dir()


def _parts(path: Path) -> list[Path]:
    parts = [path, path / "training", path / "testing"]
    return [part for part in parts if (part / "velodyne").is_dir() and (part / "calib").is_dir()]


def _infos(path: Path) -> list[Path]:
    return [file for file in find_infos(path, b"CAM2") if not looks_like(file, b"CAM_FRONT")]


def _boxes(table: np.ndarray, lidar_from_camera: np.ndarray, labels: Sequence[int]) -> Boxes:
    """Of rows height, width, length, x, y, z of the bottom's middle, and the turn about the camera's y."""
    height, width, length, turn = table[:, 0], table[:, 1], table[:, 2], table[:, 6]
    middle = table[:, 3:6] - np.stack([0 * height, height / 2, 0 * height], 1)
    ahead = np.stack([np.cos(turn), 0 * turn, -np.sin(turn)], 1) @ lidar_from_camera[:3, :3].T
    return Boxes(
        centers=_float32(middle @ lidar_from_camera[:3, :3].T + lidar_from_camera[:3, 3]),
        sizes=_float32(np.stack([length, width, height], 1)),
        yaws=_float32(np.arctan2(ahead[:, 1], ahead[:, 0])),
        attributes={"label": torch.tensor(list(labels), dtype=torch.int64)},
    )


def _float32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
