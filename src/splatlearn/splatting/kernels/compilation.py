"""How kernels are compiled, and where their machine code is kept from one process to the next.

Numba itself notices only changes of the file a kernel stands in, not of what it calls from other files. The folder
of the cache is therefore named after the contents of all kernel files.
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

config: Any = _config  # its settings are made at run time
SOURCES = Path(__file__).parent
CONSTANTS = (SOURCES.parent / "harmonics.py", SOURCES.parent / "projection.py")
"""Files outside this folder whose constants are compiled in."""
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
ONLY_PRANGE: Any = {
    "prange": True,
    "comprehension": False,
    "fusion": False,
    "inplace_binop": False,
    "numpy": False,
    "reduction": False,
    "setitem": False,
    "stencil": False,
}
"""Numba would also make tasks of every small array operation, which takes seconds to compile and gains nothing."""


def helper(function: Callable[..., Any]) -> Any:
    """Compiles a function that only kernels call; it becomes part of each of them."""
    inner: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**inner, **OPTIONS)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a parallel function on its first call, or loads it from the cache of an earlier process."""
    folder = cache_folder()
    if folder is None:
        return numba.njit(parallel=ONLY_PRANGE, **OPTIONS)(function)
    with _cache_in(folder):
        return numba.njit(parallel=ONLY_PRANGE, cache=True, **OPTIONS)(function)


@cache
def cache_folder() -> Path | None:
    """The first of NUMBA_CACHE_DIR, the installed package and the user's cache that can be written, else None."""
    digest = hashlib.sha256()
    for path in (*sorted(SOURCES.glob("*.py")), *CONSTANTS):
        digest.update(path.read_bytes())
    name = f"splatlearn-{digest.hexdigest()[:16]}"
    places = [SOURCES / "__pycache__", Path.home() / ".cache" / "splatlearn" / "kernels"]
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
