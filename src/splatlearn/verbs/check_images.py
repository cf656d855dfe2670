"""`check` of images without cameras: what they are, which are damaged, small, or there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np

from splatlearn.data.image_folders import Photograph
from splatlearn.data.imagery import UnreadableImage, kind_of
from splatlearn.data.labelled_images import LabelledPhotograph
from splatlearn.data.scene import Rejected, Scene, Skipped
from splatlearn.errors import BadData
from splatlearn.verbs.check_report import ImagesReport, LabelsReport, by_reason

_CHUNK = 1024
_THREADS = 8
"""Decoding leaves Python's lock, so threads help; eight keep a slow disk busy."""


@dataclass(frozen=True)
class _Looked:
    """What one image is."""

    kind: str
    size: tuple[int, int]
    digest: bytes
    labels: np.ndarray | str | None
    """Pixels that are ignored, and those of every class; or what is wrong with them."""


def check_images(
    scenes: Sequence[Scene], small: int, classes: Sequence[str], tick: Callable[[], None]
) -> tuple[ImagesReport | None, list[Skipped]]:
    """Reads and decodes every image, and the labels of its pixels where it has them.

    Args:
        scenes: images, each a `Photograph`.
        small: pixels; images with a side below it are counted.
        classes: names of the classes of labels.
        tick: called for each image.

    Returns:
        The report, None where no image can be decoded; and those that cannot, with reasons.
    """
    kinds: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    same: dict[bytes, list[str]] = {}
    damaged: list[Skipped] = []
    labels: list[tuple[str, np.ndarray | str]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(scenes), _CHUNK):
            chunk = list(scenes[first : first + _CHUNK])
            for scene, found in zip(chunk, pool.map(lambda scene: _look(scene, len(classes)), chunk), strict=True):
                tick()
                if isinstance(found, str):
                    damaged.append(Skipped(scene.name, found))
                    continue
                kinds[found.kind] += 1
                sizes.append(found.size)
                same.setdefault(found.digest, []).append(scene.name)
                if found.labels is not None:
                    labels.append((scene.name, found.labels))
    if not sizes:
        return None, damaged
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    report = ImagesReport(
        count=len(sizes),
        kinds=dict(kinds.most_common()),
        smallest=by_area[0],
        median=by_area[len(by_area) // 2],
        largest=by_area[-1],
        least=small,
        small=sum(min(size) < small for size in sizes),
        same=tuple(tuple(names) for names in same.values() if len(names) > 1),
        labels=_sum_up(labels, classes) if labels else None,
    )
    return report, damaged


def _sum_up(labels: Sequence[tuple[str, np.ndarray | str]], classes: Sequence[str]) -> LabelsReport:
    total, wrong = np.zeros(1 + len(classes), np.int64), []
    for name, found in labels:
        if isinstance(found, str):
            wrong.append((name, found))
        else:
            total += found
    return LabelsReport(
        count=len(labels) - len(wrong),
        pixels={number - 1: int(count) for number, count in enumerate(total) if count},
        never=tuple(name for name, count in zip(classes, total[1:], strict=True) if not count),
        wrong=by_reason(wrong),
    )


def _look(scene: Scene, classes: int) -> _Looked | str:
    """What an image is, or why it cannot be read."""
    assert isinstance(scene, Photograph)
    try:
        source = scene.source()
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        if not data:
            return "the file is empty"
        height, width, _ = scene.decode(BytesIO(data)).shape
        labels = _look_at_labels(scene, (width, height), classes) if isinstance(scene, LabelledPhotograph) else None
        return _Looked(kind_of(BytesIO(data)), (width, height), blake2b(data, digest_size=16).digest(), labels)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return f"the file cannot be read ({error.strerror or error})"


def _look_at_labels(scene: LabelledPhotograph, size: tuple[int, int], classes: int) -> np.ndarray | str:
    """(1 + classes) pixels that are ignored, and those of every class; or what is wrong with them."""
    try:
        (labels,) = scene.pixel_labels([0])
    except Rejected as error:
        return error.detail.removeprefix(f"{scene.name}: ")
    except BadData as error:
        return str(error).removeprefix(f"{scene.label}: ")
    height, width = labels.shape
    if (width, height) != size:
        return f"they are of {width}x{height} pixels, the image of {size[0]}x{size[1]}"
    return np.bincount(labels.numpy().ravel() + 1, minlength=1 + classes)
