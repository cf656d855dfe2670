"""SceneSplat's folders of .npy arrays: coord, color, opacity, quat, scale and, if there, normal. Activated values.

Legend: N Gaussians.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from splatlearn.errors import BadData
from splatlearn.splatting.files.raw import (
    NORMALS,
    RawGaussians,
    colors,
    harmonics,
    logarithms,
    logits,
    opacities,
    reduced,
    unit_quaternions,
)

WIDTHS = {"coord": 3, "color": 3, "opacity": 1, "quat": 4, "scale": 3}
"""Array -> columns; opacity is (N) or (N 1)."""
OPTIONAL = {"normal": 3}


def read(path: Path) -> RawGaussians:
    """Reads a folder.

    Raises:
        BadData: an array is missing, damaged, of another length or type, or out of range.
    """
    wanted = WIDTHS | {name: width for name, width in OPTIONAL.items() if (path / f"{name}.npy").is_file()}
    if missing := [f"{name}.npy" for name in wanted if not (path / f"{name}.npy").is_file()]:
        raise BadData(f"{path}: no SceneSplat folder: {', '.join(missing)} missing")
    arrays = {name: _load(path / f"{name}.npy", width) for name, width in wanted.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}.npy has {length}" for name, length in lengths.items())
        raise BadData(f"{path}: arrays of different lengths: {told}")
    opacity = _within(arrays["opacity"], 0, 1, path / "opacity.npy")[:, 0]
    scale = _within(arrays["scale"], 0, float(np.finfo(np.float32).max), path / "scale.npy")
    return RawGaussians(
        means=_single(arrays["coord"], path / "coord.npy"),
        logits=logits(opacity),
        log_scales=logarithms(scale),
        quaternions=_single(arrays["quat"], path / "quat.npy"),
        sh=harmonics(_unit_colors(arrays["color"], path / "color.npy")),
        properties=dict(zip(NORMALS, _single(arrays["normal"], path / "normal.npy").T)) if "normal" in arrays else {},
        left_out=tuple(sorted(file.name for file in path.glob("*.npy") if file.stem not in wanted)),
    ).check(path)


def write(raw: RawGaussians, path: Path) -> None:
    """Makes a folder; the quaternions become unit ones with w >= 0, as SceneSplat's are."""
    path.mkdir()
    np.save(path / "coord.npy", raw.means.astype(np.float32))
    np.save(path / "color.npy", colors(raw))
    np.save(path / "opacity.npy", opacities(raw).astype(np.float32))
    np.save(path / "scale.npy", np.exp(raw.log_scales.astype(np.float64)).astype(np.float32))
    np.save(path / "quat.npy", unit_quaternions(raw).astype(np.float32))
    if (normals := raw.normals) is not None:
        np.save(path / "normal.npy", normals.astype(np.float32))


def losses(raw: RawGaussians) -> list[str]:
    """What a folder cannot hold of this record."""
    return [*reduced(raw, keep=NORMALS), "colour to steps of 1/255"]


def strangers(path: Path) -> list[str]:
    """Names of what lies in a folder and is none of the arrays that are written."""
    own = {f"{name}.npy" for name in WIDTHS | OPTIONAL}
    return sorted(file.name for file in path.iterdir() if file.name not in own)


def _load(file: Path, width: int) -> npt.NDArray:
    """(N width) of numbers. Mapped, so that a header cannot ask for more memory than the file has."""
    _check_header(file)
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # the header is a Python literal that numpy evaluates: it may raise almost anything
        raise BadData(f"{file}: no readable array ({' '.join(str(error).split())[:200]})") from error
    if over := file.stat().st_size - array.offset - array.nbytes:
        raise BadData(f"{file}: {over} bytes more than the header's shape {array.shape} takes")
    table = array[:, None] if array.ndim == 1 and width == 1 else array
    if table.ndim != 2 or table.shape[1] != width or table.dtype.kind not in "fiu":
        raise BadData(f"{file}: (N, {width}) numbers expected, got {array.shape} of {array.dtype}")
    return table


def _check_header(file: Path) -> None:
    """Its length is a number of the file, up to 4 GB in versions 2 and 3, and numpy allocates that before it reads."""
    with file.open("rb") as opened:
        start = opened.read(12)
    length = int.from_bytes(start[8:10] if start[6:7] == b"\1" else start[8:12], "little")
    if length > file.stat().st_size:
        raise BadData(f"{file}: the header's length at offset 8 is {length}, more than the file has")


def _within(array: npt.NDArray, low: float, high: float, file: Path) -> npt.NDArray[np.float64]:
    wrong = ~((array >= low) & (array <= high))
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise BadData(f"{file}: row {row} has {array[row, column]}; numbers from {low:g} to {high:.3g} expected")
    return array.astype(np.float64)


def _single(array: npt.NDArray, file: Path) -> npt.NDArray[np.float32]:
    largest = float(np.finfo(np.float32).max)
    return _within(array, -largest, largest, file).astype(np.float32)


def _unit_colors(array: npt.NDArray, file: Path) -> npt.NDArray[np.float64]:
    """In [0, 1]: integers, and fractions that exceed 1.5, are taken as 0 to 255."""
    values = _within(array, 0, 255, file)
    bytes_ = array.dtype.kind in "iu" or (values.size and values.max() > 1.5)
    return values / 255 if bytes_ else values
