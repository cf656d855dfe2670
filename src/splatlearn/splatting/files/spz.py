"""Reads Niantic's .spz, versions 1 to 3: a gzip stream of a 16-byte header and one array after another.

Legend: N Gaussians, K coefficients. Source: the library nianticlabs/spz (MIT). Axes are left as they are stored: the
library's own converter turns nothing either, and the file does not say.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splatlearn.errors import BadData
from splatlearn.splatting.files.raw import RawGaussians, logits, smallest_three

HEADER = struct.Struct("<4sIIBBBB")
_EXTENSIONS = 0x2
_LARGEST_EXTENSIONS = 1 << 20
_QUANTISED_HARMONICS = 0xADBE0001
COLOR_SCALE = 0.15
_READ, _INFLATE = 1 << 18, 1 << 22
"""Bytes at a time."""


@dataclass(frozen=True)
class Header:
    """The first 16 bytes.

    Args:
        version: 1 (positions are float16), 2 (rotations are 3 bytes) or 3.
        count: Gaussians.
        degree: of the spherical harmonics.
        fraction: bits after the point of a position.
        extended: records of extensions follow the arrays.
    """

    version: int
    count: int
    degree: int
    fraction: int
    extended: bool

    @property
    def arrays(self) -> dict[str, int]:
        """Name -> bytes a Gaussian, in the order of the file."""
        return {
            "positions": 6 if self.version == 1 else 9,
            "opacities": 1,
            "colors": 3,
            "scales": 3,
            "rotations": 4 if self.version == 3 else 3,
            "harmonics": 3 * ((self.degree + 1) ** 2 - 1),
        }

    @property
    def size(self) -> int:
        """Bytes up to the end of the arrays."""
        return HEADER.size + self.count * sum(self.arrays.values())


def read(path: Path) -> RawGaussians:
    """Reads a file.

    Raises:
        BadData: no gzip stream, a damaged one, a header that does not fit the data, another version.
    """
    header, data = _inflate(path)
    arrays, offset = {}, HEADER.size
    for name, width in header.arrays.items():
        part = np.frombuffer(data, np.uint8, header.count * width, offset)
        arrays[name] = part.reshape(header.count, width)
        offset += header.count * width
    base = ((arrays["colors"] / 255 - 0.5) / COLOR_SCALE).astype(np.float32)[:, None]
    bands = (arrays["harmonics"].reshape(header.count, (header.degree + 1) ** 2 - 1, 3).astype(np.float32) - 128) / 128
    return RawGaussians(
        means=_positions(arrays["positions"], header),
        logits=logits(arrays["opacities"][:, 0] / 255),
        log_scales=arrays["scales"].astype(np.float32) / 16 - 10,
        quaternions=_rotations(arrays["rotations"]),
        sh=np.concatenate([base, bands], 1),
        left_out=_extensions(data[offset:], path),
    ).check(path)


def _inflate(path: Path) -> tuple[Header, bytearray]:
    """The header and the whole stream, which never grows beyond what the header declares."""
    inflater, data, header, limit = zlib.decompressobj(31), bytearray(), None, HEADER.size
    with path.open("rb") as file:
        while not inflater.eof:
            compressed = inflater.unconsumed_tail or file.read(_READ)
            try:
                inflated = inflater.decompress(compressed, min(max(limit - len(data), 1), _INFLATE))
            except zlib.error as error:
                raise BadData(_no_stream(path, compressed, file.tell(), error)) from error
            data += inflated
            if header is None and len(data) >= HEADER.size:
                header = _parse(bytes(data[: HEADER.size]), path)
                limit = header.size + (_LARGEST_EXTENSIONS if header.extended else 0)
            if len(data) > limit:
                raise BadData(f"{path}: more data than the header's {limit} bytes (field numPoints or shDegree)")
            if not (compressed or inflated or inflater.eof):
                raise BadData(f"{path}: the gzip stream breaks off at offset {file.tell()}; the file is cut")
        if inflater.unused_data or file.read(1):
            raise BadData(f"{path}: data after the end of the gzip stream, before offset {file.tell()}")
    if header is None or len(data) < header.size:
        expected = header.size if header else HEADER.size
        raise BadData(f"{path}: {len(data)} bytes in the gzip stream, but {expected} bytes are declared (numPoints)")
    return header, data


def _no_stream(path: Path, compressed: bytes, offset: int, error: zlib.error) -> str:
    if compressed.startswith(b"NGSP"):
        return f"{path}: version 4 of .spz or later (no gzip stream), which is not read; save it as version 3"
    return f"{path}: no gzip stream or a damaged one, before offset {offset} ({error})"


def _parse(start: bytes, path: Path) -> Header:
    magic, version, count, degree, fraction, flags, _ = HEADER.unpack(start)
    if magic != b"NGSP":
        raise BadData(f"{path}: the gzip stream begins with {magic!r}; b'NGSP' expected (field magic)")
    for name, value, allowed in (("version", version, range(1, 4)), ("shDegree", degree, range(5))):
        if value not in allowed:
            raise BadData(f"{path}: {name} is {value}; {allowed[0]} to {allowed[-1]} expected")
    if fraction > 24:
        raise BadData(f"{path}: fractionalBits is {fraction}; 24 at most expected")
    header = Header(version, count, degree, fraction, bool(flags & _EXTENSIONS))
    if header.size > (largest := believed(path)):
        raise BadData(
            f"{path}: numPoints is {count}, which would inflate to {header.size} bytes; for a file of this size "
            f"{largest} at most are believed"
        )
    return header


def believed(path: Path) -> int:
    """Bytes that a file may claim to hold. Real scenes shrink to a half or a third; without a bound, a file of 1 MB
    could ask for 1 GB."""
    return (24 << 20) + 8 * path.stat().st_size


def _extensions(data: bytearray, path: Path) -> tuple[str, ...]:
    """Vendors' records (type, length, payload), which are skipped; one that changes what the arrays mean is refused."""
    found, offset = [], 0
    while offset < len(data):
        kind, length = struct.unpack_from("<II", data, offset) if len(data) - offset >= 8 else (0, len(data))
        if kind == _QUANTISED_HARMONICS:
            raise BadData(f"{path}: extension SPZ_ADOBE_sh_quantization is not read; save without it")
        offset += 8 + length
        if offset > len(data):
            raise BadData(f"{path}: the records of extensions after the arrays are damaged")
        found.append(f"extension {kind:#010x}")
    return tuple(dict.fromkeys(found))


def _positions(stored: npt.NDArray[np.uint8], header: Header) -> npt.NDArray[np.float32]:
    if header.version == 1:
        return np.frombuffer(stored.tobytes(), "<f2").reshape(-1, 3).astype(np.float32)
    low, middle, high = (stored[:, part::3].astype(np.int32) for part in range(3))
    signed = ((low | middle << 8 | high << 16) ^ 0x800000) - 0x800000  # 24 bits, two's complement
    return (signed / (1 << header.fraction)).astype(np.float32)


def _rotations(stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N 4) w x y z; the file has x y z, and w or whichever component is largest is left out."""
    if stored.shape[1] == 3:
        return smallest_three(np.zeros(len(stored), np.uint8), stored / 127.5 - 1)
    packed = np.frombuffer(stored.tobytes(), "<u4")
    parts = np.stack([packed >> shift for shift in (20, 10, 0)], 1)
    sizes = (parts & 511) / 511 * np.sqrt(0.5)
    xyzw = smallest_three(packed >> 30, np.where(parts & 512, -sizes, sizes))
    return np.roll(xyzw, 1, axis=1)
