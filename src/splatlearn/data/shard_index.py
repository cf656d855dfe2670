"""Where the images lie within tar files: found once by reading the headers, kept in the cache.

Legend: N images.
"""

import hashlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from splatlearn.data.image_folders import SUFFIXES
from splatlearn.data.procedural.cache import cache_root
from splatlearn.errors import BadData, UserError

VERSION = 2
"""Raised whenever the same shard gives another index."""
_BLOCK = tarfile.BLOCKSIZE
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The images of one tar file, in its order.

    Args:
        names: of the members.
        offsets: (N) int64, bytes from the start of the file to the image.
        sizes: (N) int64, bytes.
        twice: members that have the name of an earlier one, and are left out.
        damage: what is wrong with the tar file from some byte on; empty where it is whole.
    """

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    twice: list[str]
    damage: str


def is_remote(shard: str) -> bool:
    """Whether it is the address of something that fsspec opens (`s3://`, `https://`)."""
    return "://" in shard


def index_of(shard: str) -> ShardIndex:
    """The index of a shard, from the cache where the file has the size and the time that it had.

    Raises:
        BadData: the shard is missing, compressed, or cannot be read.
        UserError: the cache cannot be written.
    """
    with _told(shard, "the shard cannot be read"):
        state = _state(shard)
        text = "\n".join(map(str, (VERSION, shard, *state)))
        kept = cache_root() / "shards" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
        if (index := _load(kept)) is None:
            with _opened(shard) as file:
                index = _make(shard, file, state[0])
            _save(kept, index)
        return index


def read_range(shard: str, offset: int, size: int) -> bytes:
    """Some bytes of a shard: one seek and one read, or one request of a range.

    Raises:
        BadData: it is not there any more, or ends before them.
    """
    with _told(shard, "the shard cannot be read any more"):
        if is_remote(shard):
            system, path = _remote(shard)
            data = cast(bytes, system.cat_file(path, start=offset, end=offset + size))
        else:
            with open(shard, "rb") as file:
                file.seek(offset)
                data = file.read(size)
    if len(data) != size:
        raise BadData(f"{shard}: {len(data)} of {size} bytes from byte {offset} on: it was changed meanwhile")
    return data


@contextmanager
def _told(shard: str, what: str) -> Iterator[None]:
    """What goes wrong with a file, as one message; remote file systems raise whatever they like."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(shard) and not isinstance(error, OSError):
            raise
        raise BadData(f"{shard}: {what}: {error}") from error


def _make(shard: str, file: BinaryIO, length: int) -> ShardIndex:
    start = file.read(8)
    file.seek(0)
    for mark, kind in _PACKED.items():
        if start.startswith(mark):
            raise BadData(compressed(shard, kind))
    names: dict[str, tuple[int, int]] = {}
    twice: list[str] = []
    damage = "" if length else "the file is empty"
    for member in _members(file) if length else ():
        if isinstance(member, str):
            damage = damage or member
        elif member.offset_data + member.size > length:
            damage = f"it ends within {member.name}"
        elif not _is_image(member):
            continue
        elif "\0" in member.name:
            damage = damage or f"the name {member.name!r} holds a zero byte"
        elif member.name in names:
            twice.append(member.name)
        else:
            names[member.name] = (member.offset_data, member.size)
    places = np.array(list(names.values()), np.int64).reshape(-1, 2)
    return ShardIndex(names=list(names), offsets=places[:, 0], sizes=places[:, 1], twice=twice, damage=damage)


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo | str]:
    """The members, and last what is wrong, where the archive does not end as it should."""
    last = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                last = member.name
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them, a kilobyte each
                yield member
            file.seek(tar.offset)
            end = file.read(_BLOCK)
            if end != bytes(_BLOCK):
                yield f"it is {'damaged' if len(end) == _BLOCK else 'cut short'} at byte {tar.offset}, after {last}"
    except (tarfile.TarError, ValueError, OverflowError) as error:
        yield f"{error}, after {last}" if last else f"no tar file ({error})"


def _is_image(member: tarfile.TarInfo) -> bool:
    hidden = member.name.rpartition("/")[2].startswith(".")
    return member.isreg() and not member.issparse() and not hidden and member.name.lower().endswith(SUFFIXES)


def compressed(shard: str, kind: str) -> str:
    """What is said of a shard that is compressed."""
    return (
        f"{shard}: compressed by {kind}, so no image in it can be reached alone; unpack it to .tar "
        "(`gunzip`, `unzstd`...): images in it are compressed already"
    )


def _state(shard: str) -> tuple[Any, ...]:
    """Size in bytes, and what changes when the file does."""
    if is_remote(shard):
        system, path = _remote(shard)
        return int(system.size(path) or 0), system.ukey(path)
    stat = os.stat(shard)
    return stat.st_size, stat.st_mtime_ns


def _opened(shard: str) -> BinaryIO:
    if not is_remote(shard):
        return open(shard, "rb")
    system, path = _remote(shard)
    return cast(BinaryIO, system.open(path, "rb"))


def _remote(shard: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(shard)


def _load(path: Path) -> ShardIndex | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            index = ShardIndex(
                names=_lines(file["names"]),
                offsets=file["offsets"],
                sizes=file["sizes"],
                twice=_lines(file["twice"]),
                damage=str(file["damage"]),
            )
        return index if len(index.names) == len(index.offsets) == len(index.sizes) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # damaged: made anew


def _save(path: Path, index: ShardIndex) -> None:
    """Written beside, then renamed: whole or not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(
                file,
                names=_bytes(index.names),
                offsets=index.offsets,
                sizes=index.sizes,
                twice=_bytes(index.twice),
                damage=np.array(index.damage),
            )
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {path.parent}: {error}; set SPLATLEARN_CACHE to another folder"
        ) from error


def _bytes(names: list[str]) -> np.ndarray:
    """Names as one array of bytes, each followed by a zero byte, which none of them holds."""
    return np.frombuffer("".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape"), np.uint8)


def _lines(text: np.ndarray) -> list[str]:
    return text.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
