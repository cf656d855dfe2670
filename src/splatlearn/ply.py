"""The .ply container: a text header that declares elements and their properties, then rows, binary or text.

Sizes are checked against the file before anything is allocated. plyfile, the usual library, is GPL.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from splatlearn.errors import BadData

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
"""Name in a header -> numpy's kind and size; the first name of each is written."""
_NAMES = {kind: name for name, kind in reversed(TYPES.items())}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_LONGEST_LINE = 4096
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class Element:
    """One table of a file.

    Args:
        name: `vertex`, `chunk`...
        count: its rows.
        properties: name and kind (`f4`) of each column; the kind of a list is `list`.
    """

    name: str
    count: int
    properties: tuple[tuple[str, str], ...]

    def dtype(self, order: str) -> np.dtype:
        """Of a binary row; `order` is `<` or `>`."""
        return np.dtype([(name, order + kind) for name, kind in self.properties])

    @property
    def has_lists(self) -> bool:
        """Rows of varying length."""
        return any(kind == "list" for _, kind in self.properties)


class PlyFile:
    """A .ply file whose header has been read and whose size fits it.

    Args:
        path: the file.

    Raises:
        BadData: no .ply header, or rows missing or left over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._order, self.elements = _read_header(file, path)
            self._start = file.tell()
            self._check_size(os.fstat(file.fileno()).st_size, file.peek(256)[:256])

    def __contains__(self, name: object) -> bool:
        return any(element.name == name for element in self.elements)

    def element(self, name: str) -> Element:
        """The declaration of a table.

        Raises:
            BadData: the file has none of that name.
        """
        for element in self.elements:
            if element.name == name:
                return element
        names = ", ".join(element.name for element in self.elements) or "none"
        raise BadData(f"{self.path}: no element {name!r} in the header (elements: {names})")

    def rows(self, name: str) -> npt.NDArray:
        """(count) structured array of one table, in the machine's byte order.

        Raises:
            BadData: no such table, a list in it or before it, text that is no number.
        """
        wanted = self.element(name)
        before = self.elements[: self.elements.index(wanted)]
        for element in (*before, wanted):
            if element.has_lists:
                raise BadData(f"{self.path}: element {element.name} has a list property, which is not read")
        if not self._order:
            return self._text_rows(wanted, sum(element.count for element in before))
        with self.path.open("rb") as file:
            file.seek(self._start + sum(_bytes(element) for element in before))
            rows = np.fromfile(file, wanted.dtype(self._order), wanted.count)
        if len(rows) < wanted.count:
            raise BadData(f"{self.path}: changed while it was read")
        return rows.astype(wanted.dtype("="), copy=False)

    def _text_rows(self, element: Element, skipped: int) -> npt.NDArray:
        single = all(kind == "f4" for _, kind in element.properties)
        with self.path.open(encoding="latin-1") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of empty lines: the count of rows tells
            file.seek(self._start)
            lines = islice(file, skipped, skipped + element.count)
            try:
                table = np.loadtxt(lines, np.float32 if single else np.float64, comments=None, ndmin=2)
            except (ValueError, OverflowError) as error:
                raise BadData(f"{self.path}: element {element.name}: {' '.join(str(error).split())[:200]}") from error
            if element is self.elements[-1] and any(map(str.strip, file)):
                raise BadData(f"{self.path}: more than the {element.count} rows that the header declares")
        if table.shape[0] == 0 == element.count:
            return np.empty(0, element.dtype("="))
        if table.shape != (element.count, len(element.properties)):
            raise BadData(
                f"{self.path}: element {element.name} has {table.shape[0]} rows of {table.shape[1]} numbers, but the "
                f"header declares {element.count} rows of {len(element.properties)}"
            )
        return self._typed(table, element)

    def _typed(self, table: npt.NDArray, element: Element) -> npt.NDArray:
        rows = np.empty(len(table), element.dtype("="))
        for column, (name, kind) in enumerate(element.properties):
            with np.errstate(all="ignore"):
                rows[name] = table[:, column]
            if kind[0] != "f" and not np.array_equal(rows[name], table[:, column]):
                raise BadData(f"{self.path}: property {name} of element {element.name} is not all {_NAMES[kind]}")
        return rows

    def _check_size(self, size: int, sample: bytes) -> None:
        """The rows against the bytes that are there; in text, a number takes two bytes at least."""
        there = size - self._start
        if any(element.has_lists for element in self.elements):
            fixed = self.elements[: next(i for i, element in enumerate(self.elements) if element.has_lists)]
            exact = False
        else:
            fixed, exact = self.elements, bool(self._order)
        if self._order:
            needed = sum(_bytes(element) for element in fixed)
        else:
            needed = sum(element.count * max(2 * len(element.properties), 1) for element in fixed) - 1
        if there < needed or (exact and there > needed):
            counts = ", ".join(f"{element.count} {element.name}" for element in fixed)
            text = bool(self._order) and _is_text(sample)
            raise BadData(
                f"{self.path}: {there} bytes of data from offset {self._start} on, but the header declares {counts}: "
                f"{'' if self._order else 'at least '}{max(needed, 0)} bytes"
                + (" (the data are text, though the header says binary)" if text else "")
            )


def write_ply(path: Path, columns: Sequence[tuple[str, npt.NDArray[np.generic]]]) -> None:
    """Writes a binary little-endian file of one element, `vertex`.

    Args:
        path: where; replaced if it is there.
        columns: name and (N) values of each property, in order; their types are kept.
    """
    count = len(columns[0][1])
    rows = np.empty(count, [(name, values.dtype.newbyteorder("<")) for name, values in columns])
    lines = [f"property {_NAMES[values.dtype.str[1:]]} {name}" for name, values in columns]
    for name, values in columns:
        rows[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *lines, "end_header", ""]
    with path.open("wb") as file:
        file.write("\n".join(header).encode("utf-8"))
        file.flush()
        rows.tofile(file)


def _bytes(element: Element) -> int:
    return element.count * element.dtype("<").itemsize


def _is_text(sample: bytes) -> bool:
    return bool(sample) and not sample.strip(b"0123456789+-.eE \t\r\nnaif")


def _read_header(file: IO[bytes], path: Path) -> tuple[str, tuple[Element, ...]]:
    if file.readline(_LONGEST_LINE).strip() != b"ply":
        raise BadData(f"{path}: no .ply file: its first line is not 'ply'")
    order: str | None = None
    counts: dict[str, int] = {}
    properties: dict[str, dict[str, str]] = {}
    last: dict[str, str] = {}
    for number in range(2, _LONGEST_HEADER):
        line = file.readline(_LONGEST_LINE)
        words = line.decode("utf-8", "replace").split()
        if not line or file.tell() > _LONGEST_HEADER:
            raise BadData(f"{path}: the header has no line 'end_header' (looked up to offset {file.tell()})")
        match words:
            case ["end_header"]:
                break
            case [] | ["comment" | "obj_info", *_]:
                continue
            case ["format", kind, "1.0"] if kind in _ORDERS and order is None:
                order = _ORDERS[kind]
            case ["element", name, count] if _is_count(count) and name not in counts:
                counts[name], properties[name] = int(count), (last := {})
            case ["property", kind, name] if counts and kind in TYPES and name not in last:
                last[name] = TYPES[kind]
            case ["property", "list", size, kind, name] if counts and {size, kind} <= set(TYPES) and name not in last:
                last[name] = "list"
            case _:
                shown = " ".join(words)[:80]
                raise BadData(f"{path}: header line {number} is not understood or repeats a name: {shown!r}")
    if order is None:
        raise BadData(f"{path}: the header has no line 'format'")
    return order, tuple(Element(name, count, tuple(properties[name].items())) for name, count in counts.items())


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 18


def columns_of(rows: npt.NDArray, names: Sequence[str]) -> Any:
    """(N len(names)) of a structured array, in the type that holds all of them.

    One pass over the rows where all properties share a type: they are 248 bytes apart in a scene of degree 3.
    """
    kinds = {rows.dtype[name] for name in rows.dtype.names or ()}
    if len(kinds) == 1 and len(rows):
        index = [(rows.dtype.names or ()).index(name) for name in names]
        return rows.view(kinds.pop()).reshape(len(rows), -1)[:, index]
    return np.stack([rows[name] for name in names], 1) if names else np.empty((len(rows), 0), np.float32)
