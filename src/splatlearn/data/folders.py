"""Finding scenes in folders of folders."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_DEPTH = 3
"""Folders below the given one in which scenes are looked for (data set / split or scene / sequence)."""
GLANCE = 32
"""Children a folder that a quick look at a path goes into."""


def walk(
    path: Path,
    match: Callable[[Path], bool],
    *,
    suffixes: tuple[str, ...] = (),
    depth: int = MAX_DEPTH,
    breadth: int | None = None,
) -> Iterator[Path]:
    """Paths that match, sorted; nothing inside a match is looked at.

    Args:
        path: where to start; it may match itself.
        match: tells a scene.
        suffixes: of files that may match; folders always may.
        depth: levels below `path`.
        breadth: look into the first so many children of each folder; None into all.
    """
    if match(path):
        yield path
    elif depth and path.is_dir():
        for child in _children(path, suffixes)[:breadth]:
            yield from walk(child, match, suffixes=suffixes, depth=depth - 1, breadth=breadth)


def _children(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    with os.scandir(folder) as entries:
        chosen = [e.name for e in entries if not e.name.startswith(".") and (e.is_dir() or e.name.endswith(suffixes))]
    return [folder / name for name in sorted(chosen)]
