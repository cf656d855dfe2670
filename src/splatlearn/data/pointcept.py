"""Labelled clouds on disk: Pointcept folders of .npy files, and .npz files with the same arrays.

Legend: N points. Metres, +z up (ScanNet and S3DIS clouds are, though not turned to the walls).
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.folders import GLANCE, walk
from splatlearn.data.scene import Reader, Scene
from splatlearn.errors import BadData, ConfigError, nearest
from splatlearn.registry import readers
from splatlearn.structures import Points

COORDINATES = ("coord", "xyz")
COLORS = ("color", "rgb", "colors")
NORMALS = ("normal", "normals")
INSTANCES = ("instance", "instance_gt")
LABELS = ("segment", "segment20", "semantic", "label", "labels", "semantic_gt20", "segment200")
"""Names that `labels="auto"` looks for, in this order."""
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class PointceptConfig:
    """How to read labelled clouds.

    Args:
        labels: name of the array of class ids (`segment20`); `auto` takes the first that exists of segment,
            segment20, semantic, label..., `none` leaves labels out.
        classes: names of the class ids 0, 1, ...; empty reads classes.txt or classes.yaml beside the scenes.
        ignore: class ids that become -1, besides negative ones.
        up: whether the source is +z up.
        max_scenes: read at most the first n; None reads all.
    """

    labels: str = "auto"
    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    up: Literal["known", "unknown"] = "known"
    max_scenes: int | None = None

    def __post_init__(self) -> None:
        if self.max_scenes is not None and self.max_scenes < 1:
            raise ConfigError(f"max_scenes: 1 or more is needed, got {self.max_scenes}")


class CloudScene(Scene):
    """One cloud: a folder of .npy arrays, or a .npz file.

    Args:
        path: the folder or file.
        name: its name in the data set.
        split: `train`, `val`, `test`, or empty.
        labels: name of the label array, or empty for none.
        config: reading options.
        classes: number of known classes; 0 where they are not known.

    Raises:
        BadData: arrays of different lengths, without reading their values.
    """

    def __init__(self, path: Path, name: str, split: str, labels: str, config: PointceptConfig, classes: int) -> None:
        self.path, self.name, self.split, self.up = path, name, split, config.up
        self._labels, self._ignore, self._classes = labels, config.ignore, classes
        self._names = _array_names(path)
        self._check_lengths()

    def points(self) -> Points:
        """The cloud with those of `color`, `normal`, `label`, `instance` that are on disk.

        Raises:
            BadData: non-finite coordinates, wrong shapes, class ids that no class has, pickled arrays.
        """
        attributes: dict[str, Tensor] = {}
        if color := self._find(COLORS):
            attributes["color"] = _unit_color(self._rows(color, 3))
        if normal := self._find(NORMALS):
            attributes["normal"] = torch.nn.functional.normalize(self._floats(normal), dim=1)
        if self._labels:
            attributes["label"] = self._label()
        if instance := self._find(INSTANCES):
            attributes["instance"] = self._integers(instance).clamp_min(-1)
        return Points(xyz=self._coordinates(), attributes=attributes)

    def _find(self, candidates: tuple[str, ...]) -> str:
        return next((name for name in candidates if name in self._names), "")

    def _coordinates(self) -> Tensor:
        name = self._find(COORDINATES)
        xyz = self._floats(name)
        wrong = int((~torch.isfinite(xyz).all(1)).sum())
        if wrong or not len(xyz):
            what = f"{wrong} of {len(xyz)} points are not finite" if wrong else "no points"
            raise BadData(f"{_where(self.path, name)}: {what}; remove such rows from every array of the scene")
        return xyz

    def _label(self) -> Tensor:
        label = self._integers(self._labels)
        label[label < 0] = -1
        for ignored in self._ignore:
            label[label == ignored] = -1
        if self._classes and len(label) and int(label.max()) >= self._classes:
            raise BadData(
                f"{_where(self.path, self._labels)}: class id {int(label.max())}, but {self._classes} class names "
                f"(ids 0 to {self._classes - 1}); mend the names, or give --data.ignore {int(label.max())}"
            )
        return label

    def _floats(self, name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._rows(name, 3), dtype=np.float32))

    def _integers(self, name: str) -> Tensor:
        array = self._rows(name, 0)
        if array.dtype.kind not in "iu":
            raise BadData(f"{_where(self.path, name)}: whole numbers expected, got {array.dtype}")
        return torch.from_numpy(array.astype(np.int64))

    def _rows(self, name: str, columns: int) -> np.ndarray:
        array = _load(self.path, name)
        if columns == 0 and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        expected = (len(array), columns) if columns else (len(array),)
        if array.shape != expected:
            shape = "(N, 3)" if columns else "(N,)"
            raise BadData(f"{_where(self.path, name)}: {shape} expected, got {array.shape}")
        return array

    def _check_lengths(self) -> None:
        used = (COLORS, NORMALS, INSTANCES, (self._labels,))
        coordinates = self._find(COORDINATES)
        points = _length(self.path, coordinates)
        for name in filter(None, map(self._find, used)):
            if (rows := _length(self.path, name)) != points:
                raise BadData(
                    f"{_where(self.path, name)} has {rows} rows, but "
                    f"{_where(self.path, coordinates)} has {points}; every array of a scene needs one row a point"
                )


@readers.register("pointcept", PointceptConfig, presets={"default": {}, "tiny": {"max_scenes": 4}})
class PointceptReader(Reader):
    """Labelled clouds: folders of coord/color/normal/segment .npy files, or .npz files; train/ val/ test/ or not.

    Args:
        config: reading options.
        path: one scene, a folder of scenes, or a folder of splits.
    """

    def __init__(self, config: PointceptConfig, path: Path) -> None:
        self.config, self.path = config, path
        self.classes = config.classes or _read_classes(path)

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A cloud lies at the path or up to three folders below it."""
        return any(True for _ in walk(path, _is_cloud, suffixes=(".npz",), breadth=GLANCE))

    def scenes(self) -> list[Scene]:
        """Every cloud, sorted by name."""
        found = list(walk(self.path, _is_cloud, suffixes=(".npz",)))[: self.config.max_scenes]
        if not found:
            raise BadData(
                f"{self.path}: no cloud found; a folder with coord.npy (and color.npy, normal.npy, segment20.npy) "
                "or an .npz file with xyz or coord, expected"
            )
        return [self._scene(path) for path in found]

    def _scene(self, path: Path) -> CloudScene:
        at_root = path == self.path
        name = path.resolve().stem if at_root else path.relative_to(self.path).with_suffix("").as_posix()
        split = next((part for part in path.parts[-2:-1] if part in _SPLITS), "")
        return CloudScene(path, name, split, self._labels(path), self.config, len(self.classes))

    def _labels(self, path: Path) -> str:
        names, wanted = _array_names(path), self.config.labels
        if wanted == "none":
            return ""
        if wanted == "auto":
            return next((name for name in LABELS if name in names), "")
        if wanted not in names:
            raise BadData(
                f"{path}: no labels {wanted!r}{nearest(wanted, names)} (it holds: {', '.join(sorted(names))})"
            )
        return wanted


def _is_cloud(path: Path) -> bool:
    if path.suffix == ".npz" and path.is_file():
        try:
            return any(name in _array_names(path) for name in COORDINATES)
        except BadData:
            return False
    return any((path / f"{name}.npy").is_file() for name in COORDINATES)


def _array_names(path: Path) -> set[str]:
    if path.is_dir():
        return {file.stem for file in path.glob("*.npy")}
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise BadData(f"{path}: no readable .npz file ({error})") from error


def _where(path: Path, name: str) -> str:
    return str(path / f"{name}.npy") if path.is_dir() else f"{path}[{name}]"


def _load(path: Path, name: str) -> np.ndarray:
    try:
        if path.is_dir():
            return np.load(path / f"{name}.npy", allow_pickle=False)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        hint = " (pickled objects are never read)" if "pickle" in str(error) else ""
        raise BadData(f"{_where(path, name)}: no readable array{hint}: {error}") from error


def _length(path: Path, name: str) -> int:
    """Rows, from the header alone."""
    try:
        if path.is_dir():
            shape: tuple[int, ...] = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False).shape
        else:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0
                shape = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)[0]
    except (ValueError, OSError, EOFError) as error:
        return len(_load(path, name)) if "mmap" in str(error) else _raise(path, name, error)
    return shape[0] if shape else 0


def _raise(path: Path, name: str, error: Exception) -> int:
    hint = " (pickled objects are never read)" if "pickle" in str(error) or "object" in str(error) else ""
    raise BadData(f"{_where(path, name)}: no readable array{hint}: {error}") from error


def _unit_color(color: np.ndarray) -> Tensor:
    """(N 3) in [0, 1]: integers, and floats that exceed 1.5, are taken as 0 to 255. What is not finite is NaN."""
    values = torch.from_numpy(color.astype(np.float32))
    finite = torch.isfinite(values)
    scaled = color.dtype.kind in "iu" or bool((values[finite] > 1.5).any())
    return (values / 255 if scaled else values).clamp(0, 1).where(finite, torch.nan)


def _read_classes(path: Path) -> tuple[str, ...]:
    """Names from classes.txt (one a line) or classes.yaml (a list, or id: name), in the folder or the one above."""
    for folder in (path if path.is_dir() else path.parent, path.parent):
        for name in ("classes.txt", "classes.yaml", "classes.yml"):
            if (file := folder / name).is_file():
                return _parse_classes(file)
    return ()


def _parse_classes(file: Path) -> tuple[str, ...]:
    import yaml

    text = file.read_text()
    if file.suffix == ".txt":
        return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadData(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    value = value.get("classes", value.get("names", value)) if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and set(value) == set(range(len(value))):
        return tuple(str(value[i]) for i in range(len(value)))
    if isinstance(value, list) and value:
        return tuple(map(str, value))
    raise BadData(f"{file}: a list of names, or ids 0, 1, ... with names, expected")
