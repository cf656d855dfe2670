"""The one door for pickled data: an unpickler that makes numbers, text and containers, and runs nothing else.

Some data sets ship pickles (mmdetection3d's info files). A pickle is a program; here it may only name the few
functions that rebuild arrays, scalars and plain containers.
"""

import gzip
import pickle
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from splatlearn.errors import BadData, UserError

_DAMAGED = (EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, MemoryError)
_DAMAGED = (*_DAMAGED, struct.error, zlib.error, pickle.UnpicklingError)
_TABLE = {
    *("DataFrame", "BlockManager", "SingleBlockManager", "_unpickle_block", "new_block", "make_block"),
    *("Index", "RangeIndex", "Int64Index", "Float64Index", "_new_Index"),
    *("StringDtype", "StringArray", "__pyx_unpickle_NDArrayBacked"),
}
"""What makes up a table of numbers in pandas, 0.25 to 3."""


_PLAIN = re.compile(r"[<>|=]?(b1|[iufc]\d+|[SU]\d*|O8?)")
"""Data types of numbers and text, and arrays of other plain values."""


class _Refused(Exception):
    """A name that is not on the list; the message is the name."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 2 protocols write bytes; no other codec is looked up."""
    if encoding != "latin1":
        raise _Refused(f"the codec {encoding!r}")
    return text.encode("latin1")


class _Kind:
    """Stands for numpy's data types, whose own state could call any bytes an object: plain ones alone can be made."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not _PLAIN.fullmatch(code):
            raise _Refused(f"the data type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if any(part is not None for part in parts[:3]) or len(parts) > 6:
            raise _Refused(f"a data type with parts of its own, {parts[:3]}")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that the pickle fills. Called by name it makes none: numpy would take an address from a buffer."""

    def __new__(cls, *given: Any, **named: Any) -> Any:
        raise _Refused("numpy.ndarray as a function")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, fortran, values = state
        super().__setstate__((version, shape, kind.dtype, fortran, values))


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    if kind is not _Array:
        raise _Refused(f"an array of {kind}")
    return np.empty(0, np.int8).view(_Array)


def _from_buffer(buffer: bytes, kind: _Kind, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """How protocol 5 writes arrays."""
    return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)


def _scalar(kind: _Kind, value: bytes = b"") -> Any:
    return np.frombuffer(value, kind.dtype, 1)[0]


def _allowed() -> Mapping[tuple[str, str], Any]:
    import collections

    known: dict[tuple[str, str], Any] = {("_codecs", "encode"): _latin1, ("numpy", "dtype"): _Kind}
    known["numpy._core.numeric", "_frombuffer"] = known["numpy.core.numeric", "_frombuffer"] = _from_buffer
    known["numpy", "ndarray"], known["collections", "OrderedDict"] = _Array, collections.OrderedDict
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[module, "scalar"], known[module, "_reconstruct"] = _scalar, _empty_array
    plain = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, slice)
    return known | {(module, kind.__name__): kind for kind in plain for module in ("builtins", "__builtin__")}


class PlainUnpickler(pickle.Unpickler):
    """Refuses every name that is not on the list."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._known = _allowed()

    def find_class(self, module: str, name: str, /) -> Any:
        """What the list has under the name; nothing is imported."""
        try:
            return self._known[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """The plain data in a pickle.

    Raises:
        BadData: it names anything but arrays, numbers, text and containers (nothing of it is run), or is damaged.
    """
    return _read(path, lambda: path.open("rb"), PlainUnpickler)


def read_table(path: Path) -> np.ndarray:
    """(rows columns) float64 of a pickled table of pandas, packed by gzip.

    Raises:
        UserError: pandas is not installed.
        BadData: as of `read_pickle`; a table of pandas may be named, too.
    """
    return _read(path, lambda: gzip.open(path), _table_unpickler()).to_numpy(np.float64)


def _table_unpickler() -> Any:
    try:
        from pandas.compat import pickle_compat  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"PandaSet ships tables of pandas: `pip install pandas`, for this conversion ({error})"
        ) from error

    class TableUnpickler(pickle_compat.Unpickler):  # type: ignore[misc]
        """As `PlainUnpickler`, and the parts of a table; pandas finds what its older versions called otherwise."""

        def find_class(self, module: str, name: str) -> Any:
            """What the lists have under the name."""
            if module.partition(".")[0] == "pandas" and name in _TABLE:
                return super().find_class(module, name)
            known = _allowed()
            if (module, name) not in known:
                raise _Refused(f"{module}.{name}")
            return known[module, name]

    return TableUnpickler


def _read(path: Path, start: Callable[[], Any], unpickler: Any) -> Any:
    try:
        with start() as file:
            return unpickler(file).load()
    except FileNotFoundError:
        raise BadData(f"{path}: no such file") from None
    except _Refused as error:
        raise BadData(
            f"{path}: refused: a pickle of plain data (numbers, text, arrays, lists, dicts) expected, but it asks for "
            f"{error}; nothing of it was run. Get the file from a source you trust, or make it anew"
        ) from error
    except _DAMAGED as error:
        raise BadData(f"{path}: no readable pickle ({type(error).__name__}: {error}); is it cut short?") from error
