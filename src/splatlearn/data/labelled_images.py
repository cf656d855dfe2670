"""Images with a class for every pixel: CamVid, ADE20K and Cityscapes folders. Legend: H W pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.data.image_folders import Photograph
from splatlearn.data.imagery import COLOR_SUFFIXES, UnreadableImage, read_ids, read_stored
from splatlearn.data.scene import Reader, Rejected, Scene, Skipped, reasons
from splatlearn.errors import BadData
from splatlearn.registry import readers

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    "unlabelled",
)
CITYSCAPES: Mapping[str, int] = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""Names and ids (`labelIds`) of the nineteen classes that are scored."""
VOID = 255
"""An id that every layout ignores."""


@dataclass(frozen=True)
class Layout:
    """Where images and labels lie.

    Args:
        images: split -> folder of the images, whose first one that is there is taken.
        labels: split -> folder of the labels.
        image_end: what image files end in, before or with their suffix; empty is any image.
        label_end: what stands in place of `image_end` and the suffix in the label's name.
        classes: names by id, where the layout is of one data set.
        ignore: ids that are no class.
        ids: id of each class in the files, where they are not 0, 1, ...
    """

    images: Mapping[str, str]
    labels: Mapping[str, str]
    image_end: str = ""
    label_end: str = ".png"
    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()


SPLITS = ("train", "val", "test")
ADE_SPLITS = {"train": "training", "val": "validation"}
LAYOUTS: Mapping[str, Layout] = {
    "camvid": Layout(
        images={split: split for split in SPLITS},
        labels={split: f"{split}annot" for split in SPLITS},
        classes=CAMVID[:-1],
        ignore=(11,),
    ),
    "ade20k": Layout(
        images={split: f"images/{name}" for split, name in ADE_SPLITS.items()},
        labels={split: f"annotations/{name}" for split, name in ADE_SPLITS.items()},
        ids=tuple(range(1, 151)),
        ignore=(0,),
    ),
    "cityscapes": Layout(
        images={split: f"leftImg8bit/{split}" for split in SPLITS},
        labels={split: f"gtFine/{split}" for split in SPLITS},
        image_end="_leftImg8bit.png",
        label_end="_gtFine_labelIds.png",
        classes=tuple(CITYSCAPES),
        ids=tuple(CITYSCAPES.values()),
        ignore=tuple(i for i in range(34) if i not in CITYSCAPES.values()),
    ),
}


@dataclass(frozen=True, kw_only=True)
class LabelledImagesConfig:
    """How to read images with labels.

    Args:
        classes: names of the ids 0, 1, ... in the label files; empty takes the layout's (CamVid's 11, ADE20K's 150
            without names, Cityscapes' 19).
        ignore: ids, 0 to 255, that are no class, besides 255; with `classes`, it takes the place of the layout's. The
            classes are counted without them.
        max_images: keep at most so many of each split, evenly spaced in the order of names; None keeps all.
    """

    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    max_images: int | None = None

    def __post_init__(self) -> None:
        few = self.max_images is not None and self.max_images < 1
        outside = [i for i in self.ignore if not 0 <= i <= VOID]
        require(
            {
                f"classes: at most {VOID} names, of the ids 0 to {VOID - 1}, got {len(self.classes)}": (
                    len(self.classes) <= VOID
                ),
                f"ignore: ids from 0 to {VOID} expected, got {', '.join(map(str, outside))}": not outside,
                f"max_images: 1 or more, or none, expected, got {self.max_images}": not few,
            }
        )


class LabelledPhotograph(Photograph):
    """One image and the classes of its pixels, both as they are stored: EXIF turns neither.

    Args:
        name: path of the image below its split's folder, with the split before it.
        split: `train`, `val` or `test`.
        image, label: the files.
        classes: class of each id of the file (256), -1 where it is none, -2 where it may not occur.
    """

    def __init__(self, name: str, split: str, image: Path, label: Path, classes: Tensor) -> None:
        super().__init__(image.parent, image.name)
        self.name, self.split, self.label, self._classes = name, split, label, classes
        self._image = image

    def source(self) -> Path:
        """The image's file."""
        return self._image

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return str(self._image)

    def decode(self, file: Path | BinaryIO) -> np.ndarray:
        """(H W 3) uint8 of its file; raises `UnreadableImage`."""
        return read_stored(file)

    def pixel_labels(self, views: Sequence[int]) -> list[Tensor]:
        """(H W) int64 classes, -1 = ignored, once for each of `views`.

        Raises:
            Rejected: the file cannot be decoded.
            BadData: no image of ids, or an id that is no class and is not ignored.
        """
        try:
            array = read_ids(self.label)
        except UnreadableImage as error:
            raise Rejected("labels cannot be read", f"{self.name}: {error}") from error
        label = self._classes[torch.tensor(array).long()]
        if bool((label == -2).any()):
            found = sorted(np.unique(array[label.numpy() == -2]).tolist())
            raise BadData(
                f"{self.label}: ids {found[:5]} are no class; name them (--data.classes), or give --data.ignore"
            )
        return [label for _ in views]


@readers.register("labelled_images", LabelledImagesConfig, presets={"default": {}, "tiny": {"max_images": 4}})
class LabelledImagesReader(Reader):
    """Images with classes of pixels (CamVid, ADE20K, Cityscapes).

    `train/` and `trainannot/` with files of the same names (CamVid in SegNet's form), `images/training` and
    `annotations/training` (ADE20K), `leftImg8bit/train/CITY` and `gtFine/train/CITY` (Cityscapes).

    Args:
        config: reading options.
        path: the folder.
    """

    def __init__(self, config: LabelledImagesConfig, path: Path) -> None:
        self.config, self.path = config, path
        self.layout = LAYOUTS[_layout(path) or "camvid"]
        named, ignored = _named(config, self.layout)
        self.classes = tuple(named.values())
        self._table = torch.full((256,), -2)
        self._table[list(ignored)] = -1
        self._table[list(named)] = torch.arange(len(named))

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Folders of a known layout."""
        return bool(_layout(path))

    def scenes(self) -> list[Scene]:
        """Every image with its labels, by split and name; images without are named in `skipped`.

        Raises:
            BadData: no image has labels, or every class is ignored.
        """
        if not self.classes:
            raise BadData(f"{self.path}: every class is ignored (--data.ignore)")
        found: list[Scene] = []
        without: list[Skipped] = []
        for split, folder in self.layout.images.items():
            root = self.path / folder
            pairs = []
            for image, label in self._pairs(split, root):
                name = f"{split}/{image.relative_to(root).as_posix()}"
                if label.is_file():
                    pairs.append(LabelledPhotograph(name, split, image, label, self._table))
                else:
                    without.append(Skipped(name, "it has no labels"))
            most = self.config.max_images or len(pairs)
            found += [pairs[i * len(pairs) // most] for i in range(most)] if len(pairs) > most else pairs
        self.skipped = tuple(without)
        if not found:
            raise BadData(f"{self.path}: no image has labels: {reasons(without) or 'there are no images'}")
        return found

    def _pairs(self, split: str, folder: Path) -> Iterator[tuple[Path, Path]]:
        """Images in the order of their names, each with the file that its labels should be in."""
        target, end = self.path / self.layout.labels[split], self.layout.image_end
        for image in sorted(path for path in folder.rglob("*") if path.suffix.lower() in COLOR_SUFFIXES):
            if image.name.endswith(end):
                stem = image.name.removesuffix(end) if end else image.stem
                yield image, target / image.parent.relative_to(folder) / f"{stem}{self.layout.label_end}"


def _named(config: LabelledImagesConfig, layout: Layout) -> tuple[dict[int, str], set[int]]:
    """Id -> name of every class, in their order; and the ids that are none."""
    if config.classes:
        named, ignored = dict(enumerate(config.classes)), {*config.ignore, VOID}
    else:
        ids = layout.ids or range(len(layout.classes))
        named = dict(zip(ids, layout.classes or (f"class {i}" for i in ids), strict=True))
        ignored = {*config.ignore, VOID, *layout.ignore}
    return {i: name for i, name in named.items() if i not in ignored}, ignored


def _layout(path: Path) -> str:
    """Name of the layout that a folder has, or nothing."""
    for name, layout in LAYOUTS.items():
        if any((path / layout.images[s]).is_dir() and (path / layout.labels[s]).is_dir() for s in layout.images):
            return name
    return ""
