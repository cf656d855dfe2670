"""Writes Niantic's .spz, version 3, the last one that is a gzip stream and that every reader of today takes.

Legend: N Gaussians. Source of the layout and of every step: the library nianticlabs/spz (MIT). Harmonics keep the 8
bits that the format has; the library's own writer rounds them further, for smaller files. The same record gives the
same bytes: the stream has neither a time nor a name.
"""

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splatlearn.errors import UserError
from splatlearn.splatting.files.raw import RawGaussians, bytes_of, opacities, other_properties, unit_quaternions
from splatlearn.splatting.files.spz import COLOR_SCALE, HEADER, Header, believed

VERSION = 3
FRACTION = 12
"""Bits after the point of a position, as Niantic's library writes; fewer where the scene is wider than 2048."""
LARGEST = (1 << 23) - 1
MOST = 10_000_000
"""Gaussians that Niantic's library reads."""


def write(raw: RawGaussians, path: Path) -> None:
    """Writes a file.

    Raises:
        UserError: a position beyond 8,388,607 in the scene's unit.
    """
    header = Header(VERSION, len(raw), raw.degree, _fraction(raw.means), extended=False)
    start = HEADER.pack(b"NGSP", header.version, header.count, header.degree, header.fraction, 0, 0)
    data = start + b"".join(part.tobytes() for part in _arrays(raw, header.fraction))
    for level in (6, 0):  # what shrinks beyond belief would not be read again
        with path.open("wb") as file, gzip.GzipFile("", "wb", level, file, mtime=0) as stream:
            stream.write(data)
        if header.size <= believed(path):
            return


def losses(raw: RawGaussians) -> list[str]:
    """What a file cannot hold of this record."""
    base, bands, scales = _base(raw), _bands(raw), _scales(raw)
    clipped = {
        "colours": (base.round() < 0) | (base.round() > 255),
        "scales (0.00005 to 379)": (scales.round() < 0) | (scales.round() > 255),
        "spherical harmonics (-1 to 0.99)": ((bands.round() < 0) | (bands.round() > 255)).any(2),
    }
    lost = [
        f"{what} beyond the range of the format, clipped in {int(wrong.any(1).sum())} Gaussians"
        for what, wrong in clipped.items()
        if wrong.any()
    ]
    steps = f"position to steps of 2^-{_fraction(raw.means)}, scale of 6 %, colour and opacity of 1/255"
    steps += ", rotation of 0.0014" + (", spherical harmonics of 1/128" if raw.degree else "")
    crowd = [f"Niantic's own library reads {MOST:,} Gaussians at most"] if len(raw) > MOST else []
    return [*other_properties(raw), *lost, *crowd, steps]


def _fraction(means: npt.NDArray[np.floating]) -> int:
    """Bits after the point with which every position fits into 24 bits with a sign."""
    largest = float(np.abs(means).max(initial=0))
    for bits in range(FRACTION, -1, -1):
        if round(largest * (1 << bits)) <= LARGEST:
            return bits
    raise UserError(f"a .spz file holds positions up to {LARGEST:,}; got {largest:g}; scale the scene, or write a .ply")


def _arrays(raw: RawGaussians, fraction: int) -> list[npt.NDArray[np.generic]]:
    """In the order of the file."""
    fixed = np.rint(raw.means.astype(np.float64) * (1 << fraction)).astype("<i4")
    positions = np.ascontiguousarray(fixed).view(np.uint8).reshape(-1, 3, 4)[:, :, :3]
    alphas = bytes_of(opacities(raw) * 255)
    parts = (_base(raw), _scales(raw), _bands(raw))
    base, scales, bands = (bytes_of(part) for part in parts)
    return [positions, alphas, base, scales, _rotations(raw), bands]


def _base(raw: RawGaussians) -> npt.NDArray[np.float64]:
    """(N 3) before rounding and clipping to a byte, as the two below."""
    return (raw.sh[:, 0].astype(np.float64) * COLOR_SCALE + 0.5) * 255


def _scales(raw: RawGaussians) -> npt.NDArray[np.float64]:
    return (raw.log_scales.astype(np.float64) + 10) * 16


def _bands(raw: RawGaussians) -> npt.NDArray[np.float64]:
    return raw.sh[:, 1:].astype(np.float64) * 128 + 128


def _rotations(raw: RawGaussians) -> npt.NDArray[np.uint32]:
    """(N) x y z w without the largest component, whose index has 2 bits; a sign and 9 bits for each of the others."""
    xyzw = np.roll(unit_quaternions(raw), -1, axis=1)
    rows = np.arange(len(raw))
    largest = np.abs(xyzw).argmax(1)
    xyzw = np.where(xyzw[rows, largest] < 0, -1, 1)[:, None] * xyzw
    others = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    three = xyzw[rows[:, None], others]
    sizes = np.floor(np.abs(three) / np.sqrt(0.5) * 511 + 0.5).clip(0, 511).astype(np.uint32)
    coded = sizes | (three < 0).astype(np.uint32) << 9
    return (largest.astype(np.uint32) << 30 | coded[:, 0] << 20 | coded[:, 1] << 10 | coded[:, 2]).astype("<u4")
