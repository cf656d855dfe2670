"""`convert`: a Gaussian scene from one file format to another, and PandaSet into folders that are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatlearn.data.pandaset import ConvertedScans


@dataclass(frozen=True)
class Converted:
    """What was converted.

    Args:
        source: file or folder that was read.
        target: file or folder that was written.
        gaussians: how many.
        degree: of the spherical harmonics in the source.
        lost: what the target does not hold.
    """

    source: Path
    target: Path
    gaussians: int
    degree: int
    lost: tuple[str, ...]

    def __str__(self) -> str:
        count = f"{self.gaussians:,} Gaussians, spherical harmonics of degree {self.degree}"
        lost = "\n".join(f"  lost: {what}" for what in self.lost) or "  nothing is lost"
        return f"{self.source} -> {self.target}: {count}\n{lost}"


def convert(source: Path, target: Path, *, overwrite: bool = False) -> Converted | ConvertedScans:
    """Convert a Gaussian scene from one file format to another, or PandaSet into calibrated lidar folders.

    In: .ply (usual and compressed), .splat, .spz, SceneSplat folders. Out: .ply, .splat, .spz, SceneSplat folders.
    Axes, unit and order of the Gaussians stay as they are. What the target cannot hold is printed.

    PandaSet's folder becomes two, TARGET/pandar64 and TARGET/pandargt, which `--data` then takes; its tables need
    pandas to be installed.

    Args:
        source: a .ply, .splat or .spz file, or a folder with coord.npy, color.npy, opacity.npy, quat.npy, scale.npy;
            or PandaSet.
        target: a .ply, .splat or .spz file, or, without a suffix, a folder of such arrays.
        overwrite: replace the target if it is there.

    Raises:
        UserError: the target is there or its format is not written.
        BadData: the source is no such file, or a damaged one.
    """
    from splatlearn.data.pandaset import convert_pandaset, is_pandaset
    from splatlearn.splatting.files import check_target, read_raw, write_raw

    source, target = Path(source).expanduser(), Path(target).expanduser()
    if is_pandaset(source):
        return convert_pandaset(source, target, overwrite=overwrite)
    check_target(target, overwrite=overwrite)
    raw = read_raw(source)
    lost = write_raw(raw, target, overwrite=overwrite)
    return Converted(source, target, len(raw), raw.degree, lost)
