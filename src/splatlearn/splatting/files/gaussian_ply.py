"""3DGS scenes in .ply files: the usual form, which is also written, and PlayCanvas' compressed form, which is read.

Legend: N Gaussians, C chunks of 256. Formats: graphdeco's gaussian-splatting, PlayCanvas' splat-transform.
"""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splatlearn.errors import BadData
from splatlearn.ply import PlyFile, columns_of, write_ply
from splatlearn.splatting.files.raw import NORMALS, RawGaussians, harmonics, logits, smallest_three

MEANS = ("x", "y", "z")
BASE = ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
NEEDED = (*MEANS, *BASE, "opacity", *SCALES, *ROTATION)
REST_COUNTS = (0, 9, 24, 45, 72)
"""Numbers of f_rest properties, by degree."""
CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_AXES = ("x", "y", "z", "scale_x", "scale_y", "scale_z")
_BOUNDS = tuple(f"{end}_{axis}" for end in ("min", "max") for axis in _AXES)
_COLOR_BOUNDS = tuple(f"{end}_{channel}" for end in ("min", "max") for channel in "rgb")


def is_compressed(file: PlyFile) -> bool:
    """Whether the vertices are packed as PlayCanvas does."""
    return "vertex" in file and _PACKED[0] in dict(file.element("vertex").properties)


def read(path: Path) -> RawGaussians:
    """Reads either form.

    Raises:
        BadData: a damaged file, a missing property or one of the wrong type, numbers that are not finite.
    """
    file = PlyFile(path)
    return (_read_compressed(file) if is_compressed(file) else _read_plain(file)).check(path)


def write(raw: RawGaussians, path: Path) -> None:
    """Writes the usual form, binary little-endian: every field and property as it is in the record."""
    rest = (
        raw.sh[:, 1:].transpose(0, 2, 1).reshape(len(raw), 3 * raw.sh.shape[1] - 3)
    )  # all of red, then green, then blue
    normals = [(name, raw.properties[name]) for name in NORMALS if name in raw.properties]
    others = [(name, values) for name, values in raw.properties.items() if name not in NORMALS]
    write_ply(
        path,
        [
            *zip(MEANS, raw.means.T),
            *normals,
            *zip(BASE, raw.sh[:, 0].T),
            *((f"f_rest_{number}", values) for number, values in enumerate(rest.T)),
            ("opacity", raw.logits),
            *zip(SCALES, raw.log_scales.T),
            *zip(ROTATION, raw.quaternions.T),
            *others,
        ],
    )


def _read_plain(file: PlyFile) -> RawGaussians:
    kinds = dict(file.element("vertex").properties)
    rest = sorted((name for name in kinds if re.fullmatch(r"f_rest_\d+", name)), key=lambda name: int(name[7:]))
    _require(file, "vertex", (*NEEDED, *rest), ("f4", "f8"))
    if len(rest) not in REST_COUNTS or rest != [f"f_rest_{number}" for number in range(len(rest))]:
        raise BadData(
            f"{file.path}: {len(rest)} properties f_rest (to {rest[-1]}); f_rest_0 and on expected, "
            f"{', '.join(map(str, REST_COUNTS))} of them"
        )
    rows = file.rows("vertex")
    bands = columns_of(rows, rest).reshape(len(rows), 3, len(rest) // 3).transpose(0, 2, 1)
    return RawGaussians(
        means=columns_of(rows, MEANS),
        logits=np.ascontiguousarray(rows["opacity"]),
        log_scales=columns_of(rows, SCALES),
        quaternions=columns_of(rows, ROTATION),
        sh=np.concatenate([columns_of(rows, BASE)[:, None], bands], 1),
        properties={name: np.ascontiguousarray(rows[name]) for name in kinds if name not in {*NEEDED, *rest}},
        left_out=tuple(f"element {element.name}" for element in file.elements if element.name != "vertex"),
    )


def _read_compressed(file: PlyFile) -> RawGaussians:
    count, chunks = file.element("vertex").count, file.element("chunk")
    colored = _COLOR_BOUNDS[0] in dict(chunks.properties)
    _require(file, "vertex", _PACKED, ("u4",))
    _require(file, "chunk", (*_BOUNDS, *(_COLOR_BOUNDS if colored else ())), ("f4",))
    if chunks.count != -(-count // CHUNK):
        raise BadData(f"{file.path}: {chunks.count} chunks for {count} Gaussians; one for every {CHUNK} expected")
    bounds = file.rows("chunk")
    _check_bounds(file, bounds)
    rows = file.rows("vertex")
    color = np.stack([_unit(rows["packed_color"], shift, 8) for shift in (24, 16, 8)], 1)
    base = harmonics(_between(bounds, color, ("r", "g", "b")) if colored else color)
    rotation = rows["packed_rotation"]
    three = np.stack([_unit(rotation, shift, 10) - 0.5 for shift in (20, 10, 0)], 1) * np.sqrt(2)
    others = [element.name for element in file.elements if element.name not in ("vertex", "chunk", "sh")]
    return RawGaussians(
        means=_between(bounds, _thirds(rows["packed_position"]), _AXES[:3]).astype(np.float32),
        logits=logits(_unit(rows["packed_color"], 0, 8)),
        log_scales=_between(bounds, _thirds(rows["packed_scale"]), _AXES[3:]).astype(np.float32),
        quaternions=smallest_three(rotation >> 30, three),
        sh=np.concatenate([base, _packed_harmonics(file, count)], 1) if "sh" in file else base,
        left_out=tuple(f"element {name}" for name in others),
    )


def _require(file: PlyFile, element: str, names: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    """Raises: BadData: a property is missing or has another type."""
    found = dict(file.element(element).properties)
    if missing := [name for name in names if name not in found]:
        raise BadData(
            f"{file.path}: element {element} lacks {', '.join(missing)}, so this is no Gaussian scene "
            f"(it has: {', '.join(found) or 'no property'})"
        )
    if wrong := [f"{name} ({found[name]})" for name in names if found[name] not in kinds]:
        raise BadData(f"{file.path}: properties of the wrong type: {', '.join(wrong)}; {' or '.join(kinds)} expected")


def _check_bounds(file: PlyFile, bounds: npt.NDArray) -> None:
    """Before anything is unpacked: what lies between finite bounds is finite."""
    for name in bounds.dtype.names or ():
        wrong = np.flatnonzero(~np.isfinite(bounds[name]))
        if len(wrong):
            raise BadData(
                f"{file.path}: {name} of chunk {wrong[0]} is {bounds[name][wrong[0]]}; a finite number expected"
            )


def _unit(packed: npt.NDArray[np.uint32], shift: int, bits: int) -> npt.NDArray[np.float64]:
    """The `bits` from `shift` on, as a number from 0 to 1."""
    largest = (1 << bits) - 1
    return ((packed >> np.uint32(shift)) & np.uint32(largest)) / largest


def _thirds(packed: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """(N 3) of 11, 10 and 11 bits."""
    return np.stack([_unit(packed, 21, 11), _unit(packed, 11, 10), _unit(packed, 0, 11)], 1)


def _between(bounds: npt.NDArray, share: npt.NDArray[np.float64], axes: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """(N 3) linear between the bounds of each row's chunk."""
    for column, axis in enumerate(axes):
        low, high = (np.repeat(bounds[f"{end}_{axis}"], CHUNK)[: len(share)].astype(float) for end in ("min", "max"))
        share[:, column] = low * (1 - share[:, column]) + high * share[:, column]
    return share


def _packed_harmonics(file: PlyFile, count: int) -> npt.NDArray[np.float32]:
    """(N K-1 3) of bytes from -4 to 4: buckets of 1/32, of which 0 and 255 mean their outer ends."""
    element = file.element("sh")
    names = tuple(f"f_rest_{number}" for number in range(len(element.properties)))
    _require(file, "sh", names, ("u1",))
    if element.count != count or len(names) not in REST_COUNTS[1:]:
        raise BadData(
            f"{file.path}: element sh has {element.count} rows of {len(names)} numbers; {count} rows of 9, 24, 45 "
            "or 72 expected"
        )
    values = ((np.arange(256) + 0.5) / 256 - 0.5) * 8
    values[[0, 255]] = -4, 4
    packed = columns_of(file.rows("sh"), names).reshape(count, 3, len(names) // 3).transpose(0, 2, 1)
    return values.astype(np.float32)[packed]
