"""Gaussian scenes in files: .ply, PlayCanvas' compressed .ply, .splat, .spz and SceneSplat's folders of .npy arrays.

`read_gaussians` and `write_gaussians` are for everybody; `read_raw` and `write_raw` keep the record as the file has it,
so that .ply to .ply loses no bit. The formats are described in docs/formats.md.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from splatlearn.errors import BadData, UserError, nearest
from splatlearn.splatting.files import folder, gaussian_ply, splat, spz, spz_writer
from splatlearn.splatting.files.raw import RawGaussians
from splatlearn.structures import Gaussians

__all__ = ["RawGaussians", "check_target", "read_gaussians", "read_raw", "write_gaussians", "write_raw"]


@dataclass(frozen=True)
class Format:
    """How one kind of file is read and written.

    Args:
        name: for people.
        read: a checked record of a path.
        write: makes a file or folder at a path where nothing is.
        losses: what of a record the format cannot hold.
    """

    name: str
    read: Callable[[Path], RawGaussians]
    write: Callable[[RawGaussians, Path], None]
    losses: Callable[[RawGaussians], list[str]] = lambda raw: []


FOLDER = Format("a SceneSplat folder", folder.read, folder.write, folder.losses)
FORMATS = {
    ".ply": Format(".ply", gaussian_ply.read, gaussian_ply.write),
    ".splat": Format(".splat", splat.read, splat.write, splat.losses),
    ".spz": Format(".spz", spz.read, spz_writer.write, spz_writer.losses),
}
"""Suffix -> format of a file."""


def read_gaussians(path: str | os.PathLike[str]) -> Gaussians:
    """The scene of a file or folder, activated float32 values on the CPU, one item; axes and unit are the file's.

    Args:
        path: .ply (usual or compressed), .splat, .spz, or a SceneSplat folder.

    Raises:
        BadData: nothing there, another kind of file, or a damaged one; names the file and the field or offset.
    """
    return read_raw(path).to_gaussians()


def write_gaussians(gaussians: Gaussians, path: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[str, ...]:
    """Writes one scene; the suffix says how: .ply, .splat, .spz, or none for a SceneSplat folder.

    Args:
        gaussians: one item; of the attributes, `normal` is kept.
        path: the file or folder; its parents are made.
        overwrite: replace what is there.

    Returns:
        What the format cannot hold.

    Raises:
        UserError: it exists, the format is not written, or the Gaussians are no such scene.
    """
    return write_raw(RawGaussians.from_gaussians(gaussians), path, overwrite=overwrite)


def read_raw(path: str | os.PathLike[str]) -> RawGaussians:
    """The record as the file has it; quantised formats are unpacked to float32.

    Raises:
        BadData: as `read_gaussians`.
    """
    path = Path(path)
    if path.is_dir():
        return folder.read(path)
    if not path.is_file():
        raise BadData(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise BadData(f"{path}: no format has the suffix {suffix!r}{nearest(suffix, FORMATS)} ({_known()})")
    return FORMATS[suffix].read(path)


def write_raw(raw: RawGaussians, path: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[str, ...]:
    """Writes a record, whole or not at all. Arguments, result and errors are those of `write_gaussians`."""
    path = Path(path)
    chosen = check_target(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        chosen.write(raw, temporary)
        if path.is_dir():  # moved away first, as removing it may stop half-way
            path.replace(old)
        temporary.replace(path)
    finally:
        for place in (temporary, old):
            shutil.rmtree(place, ignore_errors=True)
        temporary.unlink(missing_ok=True)
    return (*raw.left_out, *chosen.losses(raw))


def check_target(path: Path, *, overwrite: bool = False) -> Format:
    """The format that a path would be written in; asked before the work, so that nothing is done in vain.

    Raises:
        UserError: as `write_gaussians`.
    """
    suffix = path.suffix.lower()
    chosen = FORMATS.get(suffix) or FOLDER
    if chosen is FOLDER and suffix and not path.is_dir():
        raise UserError(f"{path}: no format has the suffix {suffix!r}{nearest(suffix, FORMATS)} ({_known()})")
    if path.name.lower().endswith(".compressed.ply"):
        raise UserError(f"{path}: this format is read, but not written; name a .ply, .splat, .spz or a folder")
    if chosen is not FOLDER and path.is_dir():
        raise UserError(f"{path}: this is a folder, where a {suffix} file was to be written")
    if chosen is FOLDER and path.exists() and not path.is_dir():
        raise UserError(f"{path}: this is a file, where a folder was to be made; name another")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: already there; name another, or give --overwrite (overwrite=True) to replace it")
    if path.is_dir() and (others := folder.strangers(path)):
        raise UserError(f"{path}: the folder also holds {others[0]}; it is not replaced, name another")
    return chosen


def _known() -> str:
    return f"known: {', '.join(FORMATS)}, and folders of coord.npy, color.npy, opacity.npy, quat.npy, scale.npy"
