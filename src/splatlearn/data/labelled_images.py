"""Images with a class for every pixel: CamVid, ADE20K and Cityscapes folders. Legend: H W pixels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from splatlearn.config import require
from splatlearn.data.imagery import COLOR_SUFFIXES, UnreadableImage, read_upright
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
        ignore: ids that are no class, besides 255; with `classes`, it takes the place of the layout's.
        max_images: keep at most so many of each split, evenly spaced in the order of names; None keeps all.
    """

    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    max_images: int | None = None

    def __post_init__(self) -> None:
        few = self.max_images is not None and self.max_images < 1
        require({f"max_images: 1 or more, or none, expected, got {self.max_images}": not few})


class LabelledPhotograph(Scene):
    """One image and the classes of its pixels.

    Args:
        name: of the image below its split's folder, with the split before it.
        split: `train`, `val` or `test`.
        image, label: the files.
        classes: class of each id of the file (256), -1 where it is none, -2 where it may not occur.
    """

    def __init__(self, name: str, split: str, image: Path, label: Path, classes: Tensor) -> None:
        self.name, self.split, self._image, self._label, self._classes = name, split, image, label, classes

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """The image (3 H W) in [0, 1] at its native size, once for each of `views`.

        Raises:
            Rejected: the file cannot be decoded.
        """
        try:
            pixels = torch.tensor(read_upright(self._image)).permute(2, 0, 1)
        except UnreadableImage as error:
            raise Rejected("an image cannot be read", f"{self.name}: {error}") from error
        return [pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255 for _ in views]

    def pixel_labels(self, views: Sequence[int]) -> list[Tensor]:
        """(H W) int64 classes, -1 = ignored, once for each of `views`.

        Raises:
            Rejected: the file cannot be decoded.
            BadData: an id that is no class and is not ignored.
        """
        try:
            with Image.open(self._label) as image:
                array = np.array(image)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            raise Rejected("labels cannot be read", f"{self._label.name}: {error}") from error
        if array.ndim != 2 or array.dtype != np.uint8:
            raise BadData(f"{self._label}: one channel of 8 bits is expected, ids, got {array.dtype} {array.shape}")
        label = self._classes[torch.from_numpy(array).long()]
        if bool((label == -2).any()):
            found = sorted(np.unique(array[label.numpy() == -2]).tolist())
            raise BadData(
                f"{self._label}: ids {found[:5]} are no class; name them (--data.classes), or give --data.ignore"
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
        own = tuple(name for i, name in enumerate(config.classes) if i not in config.ignore)
        self.classes = own or self.layout.classes or tuple(f"class {i}" for i in self.layout.ids)

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Folders of a known layout."""
        return bool(_layout(path))

    def scenes(self) -> list[Scene]:
        """Every image with its labels, by split and name; images without are named in `skipped`.

        Raises:
            BadData: no image has labels.
        """
        table, found, without = self._table(), [], []
        for split, folder in self.layout.images.items():
            pairs = list(self._pairs(split, self.path / folder))
            missing = [image for image, label in pairs if not label.is_file()]
            without += [Skipped(f"{split}/{image.name}", "it has no labels") for image in missing]
            pairs = [pair for pair in pairs if pair[1].is_file()]
            most = self.config.max_images or len(pairs)
            if len(pairs) > most:
                pairs = [pairs[i * len(pairs) // most] for i in range(most)]
            found += [LabelledPhotograph(f"{split}/{image.name}", split, image, label, table) for image, label in pairs]
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

    def _table(self) -> Tensor:
        """(256) int64, class of each id."""
        table = torch.full((256,), -2)
        own = bool(self.config.classes)
        ids = range(len(self.config.classes)) if own else self.layout.ids or range(len(self.layout.classes))
        ignored = {*self.config.ignore, VOID, *(() if own else self.layout.ignore)}
        kept = [i for i in ids if i not in ignored]
        table[list(ignored)] = -1
        table[kept] = torch.arange(len(kept))
        return table


def _layout(path: Path) -> str:
    """Name of the layout that a folder has, or nothing."""
    for name, layout in LAYOUTS.items():
        if any((path / layout.images[s]).is_dir() and (path / layout.labels[s]).is_dir() for s in layout.images):
            return name
    return ""
