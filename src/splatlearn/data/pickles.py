"""The one door for pickled data: an unpickler that makes numbers, text and containers, and runs nothing else.

Some data sets ship pickles (mmdetection3d's info files). A pickle is a program; here it may only name the few
functions that rebuild arrays, scalars and plain containers.
"""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from splatlearn.errors import BadData


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 2 protocols write bytes; no other codec is looked up."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _allowed() -> Mapping[tuple[str, str], Any]:
    import collections

    import numpy as np
    from numpy._core import multiarray

    known: dict[tuple[str, str], Any] = {("_codecs", "encode"): _latin1, ("numpy", "dtype"): np.dtype}
    known["numpy", "ndarray"], known["collections", "OrderedDict"] = np.ndarray, collections.OrderedDict
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[module, "scalar"] = multiarray.scalar
        known[module, "_reconstruct"] = multiarray._reconstruct
    plain = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, slice)
    return known | {(module, kind.__name__): kind for kind in plain for module in ("builtins", "__builtin__")}


class PlainUnpickler(pickle.Unpickler):
    """Refuses every name that is not on the list.

    Args:
        file: open, binary.
        extra: (module, name) -> what else may be named, for a caller that knows its format.
    """

    def __init__(self, file: IO[bytes], extra: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(file)
        self._known = {**_allowed(), **(extra or {})}

    def find_class(self, module: str, name: str, /) -> Any:
        """What the list has under the name; nothing is imported."""
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """The plain data in a pickle.

    Raises:
        BadData: it names anything but arrays, numbers, text and containers (nothing of it is run), or is damaged.
    """
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file).load()
    except FileNotFoundError:
        raise BadData(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise BadData(
            f"{path}: refused: a pickle of plain data (numbers, text, arrays, lists, dicts) expected, but it asks for "
            f"{error}; nothing of it was run. Get the file from a source you trust, or make it anew"
        ) from error
    except (EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError, MemoryError, struct.error) as error:
        raise BadData(f"{path}: no readable pickle ({type(error).__name__}: {error}); is it cut short?") from error
