"""Gaussian files written here by struct and numpy, independently of the readers under test.

Legend: N Gaussians, K coefficients.
"""

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from splatlearn.splatting.files import RawGaussians

Columns = list[tuple[str, npt.NDArray[Any]]]
NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int", "u4": "uint"}
FIELDS = ("means", "logits", "log_scales", "quaternions", "sh")


def cloud(count: int = 20, degree: int = 1, seed: int = 0, dtype: str = "f4") -> RawGaussians:
    """A random record of what scenes have: centimetres in a room, colours about [0, 1]."""
    rng = np.random.default_rng(seed)
    return RawGaussians(
        means=rng.uniform(-4, 4, (count, 3)).astype(dtype),
        logits=rng.normal(0, 4, count).astype(dtype),
        log_scales=rng.uniform(-8, 0, (count, 3)).astype(dtype),
        quaternions=rng.normal(size=(count, 4)).astype(dtype),
        sh=np.concatenate(
            [rng.uniform(-1.7, 1.7, (count, 1, 3)), rng.uniform(-0.9, 0.9, (count, (degree + 1) ** 2 - 1, 3))], 1
        ).astype(dtype),
    )


def columns(raw: RawGaussians, *, normals: bool = True) -> Columns:
    """Properties in the order of graphdeco's trainer."""
    zero = np.zeros(len(raw), raw.means.dtype)
    rest = [raw.sh[:, k, c] for c in range(3) for k in range(1, raw.sh.shape[1])]
    return [
        *zip("xyz", raw.means.T),
        *([(name, zero) for name in ("nx", "ny", "nz")] if normals else []),
        *((f"f_dc_{c}", raw.sh[:, 0, c]) for c in range(3)),
        *((f"f_rest_{i}", values) for i, values in enumerate(rest)),
        ("opacity", raw.logits),
        *((f"scale_{i}", raw.log_scales[:, i]) for i in range(3)),
        *((f"rot_{i}", raw.quaternions[:, i]) for i in range(4)),
    ]


def element(name: str, table: Columns, count: int | None = None) -> list[str]:
    lines = [f"property {NAMES[values.dtype.str[1:]]} {column}" for column, values in table]
    return [f"element {name} {len(table[0][1]) if count is None else count}", *lines]


def header(order: str, *elements: list[str], newline: str = "\n", comment: str = "made by a test") -> bytes:
    kind = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    lines = [
        "ply",
        f"format {kind} 1.0",
        f"comment {comment}",
        *(line for lines in elements for line in lines),
        "end_header",
        "",
    ]
    return newline.join(lines).encode()


def rows(table: Columns, order: str) -> bytes:
    """One Gaussian after another, binary or, for an empty order, as text."""
    if not order:
        return "".join(" ".join(repr(v.item()) for _, v in zip(table, row)) + "\n" for row in _rows(table)).encode()
    codes = {"f4": "f", "f8": "d", "u1": "B", "i4": "i", "u4": "I"}
    packer = struct.Struct(order + "".join(codes[values.dtype.str[1:]] for _, values in table))
    return b"".join(packer.pack(*row) for row in _rows(table))


def _rows(table: Columns) -> Any:
    return zip(*(values for _, values in table))


def plain_ply(raw: RawGaussians, order: str = "<") -> bytes:
    table = columns(raw)
    return header(order, element("vertex", table)) + rows(table, order)


def compressed_ply(raw: RawGaussians, *, colored: bool = True, order: str = "<") -> bytes:
    """PlayCanvas' form, quantised as splat-transform does; float32 bounds of 256 Gaussians each."""
    count = len(raw)
    color = 0.5 + 0.28209479177387814 * raw.sh[:, 0]
    parts = {"": ("xyz", raw.means), "scale_": ("xyz", raw.log_scales), "rgb": ("rgb", color)}
    if not colored:
        parts.pop("rgb")
    bounds: Columns = []
    shares = {}
    for prefix, (axes, values) in parts.items():
        low, high = _chunk_bounds(values)
        prefix = prefix.removeprefix("rgb")
        for end, table in (("min", low), ("max", high)):
            bounds += [(f"{end}_{prefix}{axis}", table[:, i]) for i, axis in enumerate(axes)]
        chunk = np.arange(count) // 256
        span = np.maximum(high - low, 1e-9)[chunk]
        shares[prefix + axes] = ((values - low[chunk]) / span).clip(0, 1)
    share_color = shares["rgb"] if colored else color.clip(0, 1)
    alpha = 1 / (1 + np.exp(-raw.logits.astype(np.float64)))
    packed: Columns = [
        ("packed_position", _pack(shares["xyz"], (11, 10, 11))),
        ("packed_rotation", _pack_rotation(raw.quaternions)),
        ("packed_scale", _pack(shares["scale_xyz"], (11, 10, 11))),
        ("packed_color", _pack(np.column_stack([share_color, alpha]), (8, 8, 8, 8))),
    ]
    elements = [element("chunk", bounds), element("vertex", packed)]
    data = rows(bounds, order) + rows(packed, order)
    if raw.degree:
        rest = [raw.sh[:, k, c] for c in range(3) for k in range(1, raw.sh.shape[1])]
        buckets: Columns = [
            (f"f_rest_{i}", ((v / 8 + 0.5) * 256).astype(int).clip(0, 255).astype("u1")) for i, v in enumerate(rest)
        ]
        elements.append(element("sh", buckets))
        data += rows(buckets, order)
    return header(order, *elements) + data


def _chunk_bounds(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    parts = [values[start : start + 256] for start in range(0, len(values), 256)]
    return tuple(np.stack([end(part, axis=0) for part in parts]).astype("f4") for end in (np.min, np.max))  # type: ignore[return-value]


def _pack(shares: npt.NDArray[Any], bits: Sequence[int]) -> npt.NDArray[np.uint32]:
    packed = np.zeros(len(shares), np.uint32)
    for column, width in enumerate(bits):
        packed = packed << np.uint32(width) | np.round(shares[:, column] * ((1 << width) - 1)).astype(np.uint32)
    return packed


def _pack_rotation(quaternions: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    packed = []
    for q in quaternions.astype(float):
        q = q / np.linalg.norm(q)
        largest = int(np.abs(q).argmax())
        q = q * np.sign(q[largest])
        value = largest
        for other in (i for i in range(4) if i != largest):
            value = value << 10 | round((q[other] * np.sqrt(0.5) + 0.5) * 1023)
        packed.append(value)
    return np.array(packed, np.uint32)


def splat(raw: RawGaussians) -> bytes:
    """antimatter15's rows, as its converter writes them but for the order."""
    out = []
    for i in range(len(raw)):
        q = raw.quaternions[i].astype(float) / np.linalg.norm(raw.quaternions[i])
        color = (0.5 + 0.28209479177387814 * raw.sh[i, 0]).clip(0, 1)
        alpha = 1 / (1 + np.exp(-float(raw.logits[i])))
        out.append(struct.pack("<3f", *raw.means[i]) + struct.pack("<3f", *np.exp(raw.log_scales[i])))
        out.append(bytes(round(255 * float(v)) for v in (*color, alpha)))
        out.append(bytes(min(max(round(128 * v + 128), 0), 255) for v in q))
    return b"".join(out)


def spz_payload(raw: RawGaussians, version: int = 3, fraction: int = 12, flags: int = 0, extra: bytes = b"") -> bytes:
    """What is in the gzip stream, quantised as Niantic's library does."""
    start = struct.pack("<4sIIBBBB", b"NGSP", version, len(raw), raw.degree, fraction, flags, 0)
    if version == 1:
        positions = raw.means.astype("<f2").tobytes()
    else:
        fixed = np.round(raw.means.astype(float) * (1 << fraction)).astype("<i4")
        positions = b"".join(int(v).to_bytes(4, "little", signed=True)[:3] for v in fixed.ravel())
    alpha = 255 / (1 + np.exp(-raw.logits.astype(float)))
    base = raw.sh[:, 0] * 0.15 * 255 + 127.5
    rest = (raw.sh[:, 1:] * 128).round() + 128
    scales = (raw.log_scales + 10) * 16
    parts = [_bytes(alpha), _bytes(base), _bytes(scales), _spz_rotation(raw.quaternions, version), _bytes(rest)]
    return start + positions + b"".join(parts) + extra


def spz(raw: RawGaussians, version: int = 3, **options: Any) -> bytes:
    return gzip.compress(spz_payload(raw, version, **options), mtime=0)


def _bytes(values: npt.NDArray[Any]) -> bytes:
    return values.round().clip(0, 255).astype("u1").tobytes()


def _spz_rotation(quaternions: npt.NDArray[Any], version: int) -> bytes:
    out = []
    for w, x, y, z in quaternions.astype(float) / np.linalg.norm(quaternions, axis=1, keepdims=True):
        q = np.array([x, y, z, w])
        if version < 3:
            out.append(_bytes(q[:3] * (-127.5 if w < 0 else 127.5) + 127.5))
            continue
        largest = int(np.abs(q).argmax())
        q = q * np.sign(q[largest])
        value = largest
        for other in (i for i in range(4) if i != largest):
            value = value << 10 | int(q[other] < 0) << 9 | int(511 * abs(q[other]) / np.sqrt(0.5) + 0.5)
        out.append(struct.pack("<I", value))
    return b"".join(out)


def folder(raw: RawGaussians, path: Path, *, normals: bool = False) -> Path:
    """A SceneSplat folder."""
    path.mkdir(parents=True)
    quaternions = raw.quaternions / np.linalg.norm(raw.quaternions, axis=1, keepdims=True)
    color = (255 * (0.5 + 0.28209479177387814 * raw.sh[:, 0])).round().clip(0, 255).astype("u1")
    arrays = {"coord": raw.means, "color": color, "quat": quaternions, "scale": np.exp(raw.log_scales)}
    arrays["opacity"] = 1 / (1 + np.exp(-raw.logits.astype(float)))
    if normals:
        arrays["normal"] = np.tile(np.float32([0, 0.6, 0.8]), (len(raw), 1))
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array.astype("u1" if name == "color" else "f4"))
    return path


FILES: dict[str, tuple[str, Callable[[RawGaussians], bytes]]] = {
    "plain": (".ply", plain_ply),
    "big_endian": (".ply", lambda raw: plain_ply(raw, ">")),
    "ascii": (".ply", lambda raw: plain_ply(raw, "")),
    "compressed": (".compressed.ply", compressed_ply),
    "splat": (".splat", splat),
    "spz1": (".spz", lambda raw: spz(raw, 1)),
    "spz2": (".spz", lambda raw: spz(raw, 2)),
    "spz3": (".spz", spz),
}
"""Kind -> suffix, and the bytes of a record."""


def make(kind: str, raw: RawGaussians, folder: Path) -> Path:
    """A file of one kind."""
    suffix, write = FILES[kind]
    path = folder / f"{kind}{suffix}"
    path.write_bytes(write(raw))
    return path


def angles(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(N) radians between the rotations of quaternions, accurate near 0."""
    a, b = (q.astype(float) / np.linalg.norm(q.astype(float), axis=1, keepdims=True) for q in (a, b))
    apart = np.minimum(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))
    return 4 * np.arcsin((apart / 2).clip(0, 1))
