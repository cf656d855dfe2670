"""Images in WebDataset shards: tar files that are read at random, each image a scene of its own. Legend: N images."""

import logging
import re
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from pathlib import Path

import numpy as np

from splatlearn import registry
from splatlearn.data.image_folders import (
    SPLITS,
    SUFFIXES,
    THREADS,
    Photograph,
    files_below,
    holds,
    require_choice,
    taken_by_another,
)
from splatlearn.data.lazy_scenes import LazyScenes, SceneTable
from splatlearn.data.progress import progress
from splatlearn.data.scene import Reader, Skipped, reasons
from splatlearn.data.shard_index import ShardIndex, compressed, index_of, is_remote, read_range
from splatlearn.errors import BadData

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LISTING_START = 4096
log = logging.getLogger("splatlearn")


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """How to read shards.

    Args:
        pattern: only images whose name, SHARD.tar/MEMBER, fits it (`*.jpg`, `train-000*`), `*` being anything.
        max_images: keep at most so many, evenly spaced; None keeps all.
    """

    pattern: str = "*"
    max_images: int | None = None

    def __post_init__(self) -> None:
        require_choice(self.pattern, self.max_images)


class ShardImage(Photograph):
    """One image in a shard.

    Args:
        shard: path or address of the tar file.
        name: of the scene, SHARD.tar/MEMBER.
        span: its first byte in the tar file, and how many there are.
        split: that the shard is of, or empty.
    """

    def __init__(self, shard: str, name: str, span: tuple[int, int], split: str) -> None:
        self.shard, self.name, self.span, self.split = shard, name, span, split

    def source(self) -> BytesIO:
        """The file, in memory."""
        return BytesIO(read_range(self.shard, *self.span))

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self.name


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        label: what it is called within the source.
        address: path or URL.
    """

    label: str
    address: str

    @cached_property
    def split(self) -> str:
        """`train`, `val` or `test` where a folder above it is called so, the nearest counting; else empty."""
        return next((part for part in reversed(self.label.split("/")[:-1]) if part in SPLITS), "")


class ShardTable(SceneTable):
    """Where every image is, in arrays: 24 bytes an image and the letters of its name.

    Args:
        shards: the tar files.
        indices: of each, what it holds.
    """

    def __init__(self, shards: list[Shard], indices: list[ShardIndex]) -> None:
        self.shards = shards
        self.first = [0, *accumulate(len(index.names) for index in indices)]
        self.offsets = np.concatenate([index.offsets for index in indices])
        self.sizes = np.concatenate([index.sizes for index in indices])
        encoded = [name.encode("utf-8", "surrogateescape") for index in indices for name in index.names]
        self.ends = np.cumsum([0, *map(len, encoded)])
        self.letters = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, row: int) -> str:
        """SHARD.tar/MEMBER."""
        return self._name(self._shard(row), row)

    def scene(self, row: int) -> ShardImage:
        """The image of a row."""
        shard, span = self._shard(row), (int(self.offsets[row]), int(self.sizes[row]))
        return ShardImage(shard.address, self._name(shard, row), span, shard.split)

    def _name(self, shard: Shard, row: int) -> str:
        member = self.letters[self.ends[row] : self.ends[row + 1]]
        return f"{shard.label}/{member.decode('utf-8', 'surrogateescape')}"

    def _shard(self, row: int) -> Shard:
        return self.shards[bisect_right(self.first, row) - 1]


@registry.readers.register("shards", ShardsConfig, presets={"default": {}, "tiny": {"max_images": 64}})
class ShardsReader(Reader):
    """WebDataset shards: tar files of images, on disk or remote, without cameras.

    The `webdataset` package streams shards in their order and shuffles within a buffer, so a run cannot go on where it
    stopped; here every image has a number, and is read by one seek.

    Args:
        config: reading options.
        path: a folder of `.tar` files, nested in any way, one of them, or a `.txt` that lists paths or URLs of them.
    """

    def __init__(self, config: ShardsConfig, path: Path) -> None:
        self.config, self.path = config, path

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A tar file, a list of them, or a folder of them where no images lie and that no other reader takes."""
        if path.is_file():
            return path.name.lower().endswith((".tar", *PACKED)) or (path.suffix == ".txt" and _lists_shards(path))
        # Archives of other data sets lie beside what was unpacked from them.
        if not holds(path, (".tar", *PACKED)) or holds(path, SUFFIXES):
            return False
        return not taken_by_another(path, "images", "shards")

    def scenes(self) -> LazyScenes:
        """Every image, by the names of the shards and in their order; what is left out is in `skipped` and in the log.

        Raises:
            BadData: no shard, one that is compressed or cannot be opened, or no image in any.
        """
        shards = sorted(self._shards(), key=lambda shard: shard.label)
        if not shards:
            raise BadData(f"{self.path}: no .tar file found")
        with progress(f"indexing shards of {self.path}", len(shards)) as tell, ThreadPoolExecutor(THREADS) as pool:
            indices = []
            for index in pool.map(lambda shard: index_of(shard.address), shards):
                indices.append(index)
                tell(len(indices))
        table = ShardTable(shards, indices)
        self.skipped = tuple(skip for pair in zip(shards, indices, strict=True) for skip in _skipped(*pair))
        rows = self._rows(table)
        told = reasons(self.skipped)
        if not len(rows):
            looked = f"{len(shards)} shard(s) hold {len(table)} images of {', '.join(SUFFIXES)}"
            fitting = f", none of which fits {self.config.pattern!r}" if len(table) else ""
            raise BadData(f"{self.path}: no image found: {looked}{fitting}{f'; {told}' if told else ''}")
        if told:
            log.warning("%s: some is left out: %s", self.path, told)
        return LazyScenes(table, rows)

    def _rows(self, table: ShardTable) -> np.ndarray:
        rows = np.arange(len(table), dtype=np.uint32)
        if self.config.pattern != "*":
            rows = rows[[fnmatch(table.name(row), self.config.pattern) for row in range(len(table))]]
        if (most := self.config.max_images) and len(rows) > most:
            rows = rows[np.arange(most) * len(rows) // most]
        return rows

    def _shards(self) -> list[Shard]:
        if self.path.is_dir():
            names = sorted(files_below(self.path, (".tar", *PACKED)))
            found = [Shard(name, str(self.path / name)) for name in names]
        elif self.path.suffix == ".txt":
            found = list(_listed(self.path))
        else:
            found = [Shard(self.path.name, str(self.path))]
        for shard in found:
            if shard.label.lower().endswith(PACKED):
                raise BadData(compressed(shard.address, shard.label.rpartition(".")[2]))
        return found


def expand(text: str) -> list[str]:
    """`a-{008..011}.tar` as the names that it stands for, with zeros as in the first number; other text as it is."""
    if not (found := re.search(r"\{(\d+)\.\.(\d+)\}", text)):
        return [text]
    first, last = found.groups()
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in expand(text[: found.start()] + number + text[found.end() :])]


def _listed(path: Path) -> Iterator[Shard]:
    """The shards of a list, one a line; paths are relative to its folder, lines that begin with # are left out."""
    try:
        lines = dict.fromkeys(line.strip() for line in path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: a list of .tar files, one a line, expected: {error}") from error
    for line in lines:
        if line and not line.startswith("#"):
            for name in expand(line):
                yield Shard(name, name if is_remote(name) else str(path.parent / name))


def _lists_shards(path: Path) -> bool:
    with path.open("rb") as file:
        lines = file.read(_LISTING_START).decode("utf-8", "replace").splitlines()
    stated = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return bool(stated) and stated[0].lower().endswith((".tar", *PACKED))


def _skipped(shard: Shard, index: ShardIndex) -> Iterator[Skipped]:
    if index.damage:
        yield Skipped(shard.label, f"damaged shard, {len(index.names)} images of it are kept: {index.damage}")
    elif not index.names:
        yield Skipped(shard.label, "no image in the shard")
    for name in index.twice:
        yield Skipped(f"{shard.label}/{name}", "a name that its shard has twice; the first is taken")
