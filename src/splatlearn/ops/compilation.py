"""How Numba functions are compiled, and where their machine code is kept from one process to the next.

Numba itself refuses to compile where it finds no place for its cache, and notices only changes of the file a function
stands in, not of what it calls from other files. So a cache is left out where nothing can be written, and its folder is
named after the contents of all the files that end up in the machine code.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config

from splatlearn.config import user_cache

config: Any = _config  # its settings are made at run time


def compiled(*sources: Path, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compiles a function on its first call, or loads it from the cache of an earlier process.

    Args:
        sources: the file of the function, then every other file whose code or constants it takes in.
        options: of `numba.njit`.
    """
    folder = cache_folder(*sources)

    def decorate(function: Callable[..., Any]) -> Any:
        if folder is None:
            return numba.njit(**options)(function)
        with _cache_in(folder):
            return numba.njit(cache=True, **options)(function)

    return decorate


@cache
def cache_folder(*sources: Path) -> Path | None:
    """The first that can be written of NUMBA_CACHE_DIR, the first source's folder and the user's cache, else None."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    name = f"splatlearn-{digest.hexdigest()[:16]}"
    places = [sources[0].parent / "__pycache__", user_cache() / "kernels"]
    if config.CACHE_DIR:
        places = [Path(config.CACHE_DIR)]
    return next((place / name for place in places if writable(place / name)), None)


def writable(folder: Path) -> bool:
    """Whether a file can be made in the folder, which is created where possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before
