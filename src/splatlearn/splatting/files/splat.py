"""antimatter15's .splat: rows of 32 bytes without a header. float32 position and scale, RGBA and w x y z as bytes.

Its viewer decodes a rotation byte b as (b - 128) / 128. Rows keep their order: the original converter sorts them.
"""

from pathlib import Path

import numpy as np

from splatlearn.errors import BadData, UserError
from splatlearn.splatting.files.raw import (
    RawGaussians,
    bytes_of,
    colors,
    harmonics,
    logarithms,
    logits,
    opacities,
    reduced,
    unit_quaternions,
)

ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def read(path: Path) -> RawGaussians:
    """Reads a file.

    Raises:
        BadData: an empty file, a row that is cut off, numbers that are not finite, negative scales.
    """
    size = path.stat().st_size
    if not size or size % ROW.itemsize:
        whole = size - size % ROW.itemsize
        raise BadData(f"{path}: rows of {ROW.itemsize} bytes expected, got {size - whole} bytes from offset {whole} on")
    rows = np.fromfile(path, ROW)
    bad = ~(np.isfinite(rows["scale"]) & (rows["scale"] >= 0)).all(1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise BadData(
            f"{path}: scale of Gaussian {row} (offset {row * ROW.itemsize + 12}) is {rows['scale'][row].tolist()}; "
            "finite lengths of 0 or more expected"
        )
    color = rows["color"] / 255
    return RawGaussians(
        means=rows["position"].astype(np.float32),
        logits=logits(color[:, 3]),
        log_scales=logarithms(rows["scale"].astype(np.float64)),
        quaternions=((rows["rotation"].astype(np.float32) - 128) / 128),
        sh=harmonics(color[:, :3]),
    ).check(path)


def write(raw: RawGaussians, path: Path) -> None:
    """Writes a file.

    Raises:
        UserError: no Gaussians: the file would be empty, and no reader takes that.
    """
    if not len(raw):
        raise UserError("a .splat file cannot hold a scene without Gaussians; a .ply file can")
    rows = np.empty(len(raw), ROW)
    rows["position"] = raw.means
    rows["scale"] = np.exp(raw.log_scales.astype(np.float64))
    rows["color"][:, :3] = colors(raw)
    rows["color"][:, 3] = bytes_of(opacities(raw) * 255)
    rows["rotation"] = bytes_of(unit_quaternions(raw) * 128 + 128)
    rows.tofile(path)


def losses(raw: RawGaussians) -> list[str]:
    """What a file cannot hold of this record."""
    return [*reduced(raw), "colour and opacity to steps of 1/255, rotation to steps of 1/128"]
