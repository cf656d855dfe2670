"""How the kernels of this folder are compiled: options, and the files whose contents they take in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from splatlearn import structures
from splatlearn.ops.compilation import compiled

SOURCES = Path(__file__).parent
CONSTANTS = (
    SOURCES.parent / "harmonics.py",
    SOURCES.parent / "projection.py",
    Path(structures.__file__).parent / "gaussians.py",
)
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
INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **OPTIONS}
BORROWING: dict[str, Any] = {"_nrt": False, **INNER}


def helper(function: Callable[..., Any]) -> Any:
    """Compiles a function that only kernels call; it becomes part of each of them.

    It may neither make nor return arrays: those of its caller outlive it, so it counts no references to them. Counting
    took a third of the time of projection.
    """
    return numba.njit(**BORROWING)(function)


def allocating(function: Callable[..., Any]) -> Any:
    """A helper that makes or returns arrays."""
    return numba.njit(**INNER)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles a parallel function on its first call, or loads it from the cache of an earlier process."""
    return compiled(*sorted(SOURCES.glob("*.py")), *CONSTANTS, parallel=ONLY_PRANGE, **OPTIONS)(function)
