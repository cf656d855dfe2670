"""Colour and depth images on disk: cheap checks, decoding, resizing.

Legend: H W pixels. A size is (width, height). Nothing here is differentiable.
"""

import struct
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from splatlearn.errors import BadData

COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
INVALID_DEPTH = 65535
"""7-Scenes writes 65535, the largest of 16 bits, for a missing measurement; wider integers have no such mark."""
_TAIL = 512
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    struct.error,
)


_ONE_HEADER = Lock()
"""Python parses the header of a .npy, and CPython 3.11 now and then fails where two threads do (SystemError)."""


class UnreadableImage(Exception):
    """One file cannot be decoded; the message says why, without its path."""


def probe(path: Path) -> tuple[int, int]:
    """The size from the header, after a look at the file's end; nothing is decoded (0.1 to 0.2 ms).

    Returns:
        (width, height), pixels.

    Raises:
        UnreadableImage: missing, empty, no image, or cut short.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage("the file is empty")
        if path.suffix == ".npy":
            return _npy_size(path)
        with path.open("rb") as file:
            image = Image.open(file)
            file.seek(-min(_TAIL, path.stat().st_size), 2)
            if _END_MARKS.get(image.format or "", b"") not in file.read():
                raise UnreadableImage(f"the {image.format} ends early (truncated)")
            return image.size
    except FileNotFoundError:
        raise UnreadableImage("the file is missing") from None
    except _FAILURES as error:
        raise UnreadableImage(f"no readable image ({_short(error)})") from error


def read_color(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A photograph, reduced by area averaging (JPEG partly in the cosine domain, 48 dB from exact averaging).

    Args:
        path: JPEG or PNG; grey of 8 or 16 bits, palette and CMYK images become RGB, an alpha channel is dropped.
        size: (width, height) wanted; None keeps the native size.

    Returns:
        (H W 3) uint8 RGB.

    Raises:
        UnreadableImage: missing or undecodable.
    """
    try:
        with Image.open(path) as image:
            drafted = None if size is None else image.draft("RGB", size)
            rgb = _rgb(image, _plain_ink(image))
            box = drafted[1] if drafted else (0, 0, *rgb.size)  # sides of a reduced JPEG are rounded up, its box is not
            return np.asarray(rgb if size is None or box == (0, 0, *size) else _resize(rgb, size, box))
    except _FAILURES as error:
        raise UnreadableImage(f"cannot be decoded ({_short(error)})") from error


def read_upright(file: Path | BinaryIO) -> np.ndarray:
    """A photograph at its native size, turned as its EXIF orientation says, and laid on white where it is transparent.

    As of `read_color` for the rest.

    Args:
        file: path, or a file that is open at its start.

    Returns:
        (H W 3) uint8 RGB.

    Raises:
        UnreadableImage: missing, undecodable, or larger than Pillow's limit (179 million pixels).
    """
    return _photograph(file, turn=True)


def read_stored(file: Path | BinaryIO) -> np.ndarray:
    """As `read_upright`, but not turned, whatever EXIF says: as files of labels or masks beside it are."""
    return _photograph(file, turn=False)


def kind_of(file: Path | BinaryIO) -> str:
    """Format and mode as the header says them (`JPEG RGB`, `PNG I;16`).

    Raises:
        UnreadableImage: missing, or no image.
    """
    try:
        with Image.open(file) as image:
            return f"{image.format} {image.mode}"
    except _FAILURES as error:
        raise UnreadableImage(f"no readable image ({_short(error)})") from error


def read_depth(path: Path, scale: float) -> np.ndarray:
    """A depth image at its native size.

    Args:
        path: 16- or 32-bit integer PNG or TIFF, float TIFF, or .npy. Floats are metres already.
        scale: metres per unit of an integer image.

    Returns:
        (H W) float32 metres along z; 0 where there is none (0, 65535 of 16 bits, negative and non-finite values).

    Raises:
        UnreadableImage: missing, undecodable, or not a one-channel image of 16 bits or more.
    """
    try:
        raw = _array(path) if path.suffix == ".npy" else _decode(path)
    except _FAILURES as error:
        raise UnreadableImage(f"cannot be decoded ({_short(error)})") from error
    if raw.ndim != 2 or raw.dtype.itemsize < 2:
        raise UnreadableImage(f"no depth image: one channel of 16 bits or more expected, got {raw.dtype} {raw.shape}")
    if raw.dtype.kind == "f":
        return np.where(np.isfinite(raw) & (raw > 0), raw, 0).astype(np.float32)
    marked = raw.dtype.kind == "u" and raw.dtype.itemsize == 2
    valid = (raw > 0) & (raw != INVALID_DEPTH) if marked else raw > 0
    return np.where(valid, raw, 0).astype(np.float32) * np.float32(scale)


def read_ids(path: Path) -> np.ndarray:
    """An image whose values are ids, as it is stored.

    Args:
        path: one channel of 8 bits; of a palette image the indices are taken.

    Returns:
        (H W) uint8.

    Raises:
        UnreadableImage: missing or undecodable.
        BadData: an image of another kind, such as one of colours.
    """
    try:
        ids = _decode(path)
    except _FAILURES as error:
        raise UnreadableImage(f"cannot be decoded ({_short(error)})") from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise BadData(f"{path}: one channel of 8 bits is expected, ids, got {ids.dtype} {ids.shape}")
    return ids


def resample_indices(source: np.ndarray, target: np.ndarray, native: tuple[int, int], size: tuple[int, int]):
    """Rows and columns of a depth image that are nearest to the pixels of another pinhole at the same place.

    Pinholes with one centre and one orientation differ by a scale and a shift per axis: the map is separable.

    Args:
        source: (3 3) intrinsics of the depth camera at `native`, half-integer pixel centres.
        target: (3 3) intrinsics wanted, at `size`.
        native: (width, height) of the depth image.
        size: (width, height) wanted.

    Returns:
        Rows (H) and columns (W), int64, -1 where the depth image does not reach.
    """
    columns = _nearest(source[0, 0], source[0, 2], target[0, 0], target[0, 2], native[0], size[0])
    rows = _nearest(source[1, 1], source[1, 2], target[1, 1], target[1, 2], native[1], size[1])
    return rows, columns


def gather_depth(depth: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(H W) the depth at `rows` x `columns`; 0 where an index is -1. Zero stays zero: nothing is interpolated."""
    picked = depth[np.ix_(rows, columns)]
    if (rows < 0).any() or (columns < 0).any():
        picked = np.where((rows < 0)[:, None] | (columns < 0)[None, :], np.float32(0), picked)
    return picked


def _nearest(f_from: float, c_from: float, f_to: float, c_to: float, native: int, wanted: int) -> np.ndarray:
    centres = (np.arange(wanted) + 0.5 - c_to) / f_to * f_from + c_from
    # The rounding keeps 2.9999999 (a scale that is not a binary fraction) in the pixel that 3.0 belongs to.
    index = np.floor(np.round(centres, 6)).astype(np.int64)
    return np.where((index >= 0) & (index < native), index, -1)


def _plain_ink(image: Image.Image) -> bool:
    """A CMYK JPEG without Adobe's mark: its values are ink (libjpeg's manual), and Pillow has turned them round."""
    return image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info


def _on_white(image: Image.Image) -> Image.Image:
    """What is seen through an alpha channel or a transparent colour becomes white; grey of 16 bits is left alone."""
    if image.mode.startswith(("I", "F")) or not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _rgb(image: Image.Image, plain_ink: bool = False) -> Image.Image:
    """Eight bits a channel; grey of 16 is divided by 257, where Pillow itself would cut it off at 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return (ImageChops.invert(image) if plain_ink else image).convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("8 or 16 bits a channel expected, got wider numbers, whose range nobody knows")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    larger = size[0] > image.width or size[1] > image.height
    return image.resize(size, Image.Resampling.BILINEAR if larger else Image.Resampling.BOX, box)


def _photograph(file: Path | BinaryIO, turn: bool) -> np.ndarray:
    try:
        with Image.open(file) as image:
            ink = _plain_ink(image)
            return np.asarray(_rgb(_on_white(ImageOps.exif_transpose(image) if turn else image), ink))
    except _FAILURES as error:
        raise UnreadableImage(f"cannot be decoded ({_short(error)})") from error


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _array(path: Path, mapped: Literal["r"] | None = None) -> np.ndarray:
    with _ONE_HEADER:
        return np.load(path, mmap_mode=mapped, allow_pickle=False)


def _npy_size(path: Path) -> tuple[int, int]:
    shape = _array(path, "r").shape
    if len(shape) != 2:
        raise UnreadableImage(f"(H W) expected, got an array of shape {shape}")
    return shape[1], shape[0]


def _short(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return (str(error) or type(error).__name__).split("\n")[0][:100]
