"""`check` of images without cameras: what they are, which are damaged, small, or there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

from splatlearn.data.image_folders import Photograph
from splatlearn.data.imagery import UnreadableImage, kind_of, read_upright
from splatlearn.data.scene import Scene, Skipped
from splatlearn.verbs.check_report import ImagesReport

_CHUNK = 1024
_THREADS = 8
"""Decoding leaves Python's lock, so threads help; eight keep a slow disk busy."""


@dataclass(frozen=True)
class _Looked:
    """What one image is."""

    kind: str
    size: tuple[int, int]
    digest: bytes


def check_images(
    scenes: Sequence[Scene], small: int, tick: Callable[[], None]
) -> tuple[ImagesReport | None, list[Skipped]]:
    """Reads and decodes every image.

    Args:
        scenes: images, each a `Photograph`.
        small: pixels; images with a side below it are counted.
        tick: called for each image.

    Returns:
        The report, None where no image can be decoded; and those that cannot, with reasons.
    """
    kinds: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    same: dict[bytes, list[str]] = {}
    damaged: list[Skipped] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(scenes), _CHUNK):
            chunk = list(scenes[first : first + _CHUNK])
            for scene, found in zip(chunk, pool.map(_look, chunk), strict=True):
                tick()
                if isinstance(found, str):
                    damaged.append(Skipped(scene.name, found))
                    continue
                kinds[found.kind] += 1
                sizes.append(found.size)
                same.setdefault(found.digest, []).append(scene.name)
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
    )
    return report, damaged


def _look(scene: Scene) -> _Looked | str:
    """What an image is, or why it cannot be read."""
    assert isinstance(scene, Photograph)
    try:
        source = scene.source()
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        if not data:
            return "the file is empty"
        height, width, _ = read_upright(BytesIO(data)).shape
        return _Looked(kind_of(BytesIO(data)), (width, height), blake2b(data, digest_size=16).digest())
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return f"the file cannot be read ({error.strerror or error})"
