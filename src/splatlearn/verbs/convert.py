"""`convert`: Gaussian scenes between file formats, published weights into encoders, encoders into
ONNX, PandaSet into folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splatlearn.data.pandaset import ConvertedScans
    from splatlearn.verbs.convert_encoder import ConvertedEncoder
    from splatlearn.verbs.convert_onnx import ExportedEncoder


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


def convert(
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    encoder_options: Mapping[str, Any] | None = None,
) -> Converted | ConvertedEncoder | ExportedEncoder | ConvertedScans:
    """Convert a Gaussian scene from one file format to another, weights into an encoder, one to ONNX, or PandaSet.

    In: .ply (usual and compressed), .splat, .spz, SceneSplat folders. Out: .ply, .splat, .spz, SceneSplat folders.
    Axes, unit and order of the Gaussians stay as they are. What the target cannot hold is printed.

    Weights of WaffleIron, ScaLR, ScaLR+, DUNE and UNIC (checkpoints, or their .tar.gz) become a folder that `--encoder`
    takes: safetensors and a description. Every key must fit; heads are left out. A segmentation network does not tell
    its activation: --encoder.act gelu (ScaLR+) or relu. Nothing of the file is run. DUNE's and UNIC's projectors
    are kept for --encoder.projector TEACHER of `evaluate`, or it is said why not. Their licences allow no commercial
    use.

    A run, or a folder of such an encoder, becomes a graph of ONNX where TARGET ends in .onnx: `vit` for any number of
    images and any multiples of the patch, `waffleiron` for one scan of any number of points. onnxruntime must give
    torch's numbers, or nothing is written. TARGET's .json says how the inputs are made. It needs the extra `[export]`.

    PandaSet's folder becomes two, TARGET/pandar64 and TARGET/pandargt, which `--data` then takes; its tables need
    pandas to be installed.

    Args:
        source: a .ply, .splat or .spz file, or a folder with coord.npy, color.npy, opacity.npy, quat.npy, scale.npy;
            or weights: .pth, .pt, .ckpt, .tar, .tar.gz, .safetensors; or a run or an encoder's folder; or PandaSet.
        target: a .ply, .splat or .spz file, or, without a suffix, a folder of such arrays; a folder for weights; a
            .onnx file for an encoder.
        overwrite: replace the target if it is there.
        dry_run: read and check weights, or export and check an encoder, and write nothing.
        encoder_options: options of the encoder that the file of weights does not hold (act, grids, fov_min...).

    Raises:
        UserError: the target is there or its format is not written; weights do not fit; an encoder
            cannot be exported.
        BadData: the source is no such file, or a damaged one.
    """
    from splatlearn.data.pandaset import convert_pandaset, is_pandaset
    from splatlearn.errors import ConfigError
    from splatlearn.splatting.files import check_target, read_raw, write_raw
    from splatlearn.verbs.convert_encoder import convert_encoder, is_weights

    source, target, options = Path(source).expanduser(), Path(target).expanduser(), dict(encoder_options or {})
    if target.suffix.lower() == ".onnx":
        return _to_onnx(source, target, overwrite, dry_run, options)
    if is_weights(source):
        return convert_encoder(source, target, overwrite=overwrite, dry_run=dry_run, options=options)
    if dry_run or options:
        raise ConfigError(f"{source}: --dry-run and --encoder.OPTION go with weights ({source.name} is none)")
    if is_pandaset(source):
        return convert_pandaset(source, target, overwrite=overwrite)
    if (source / "checkpoints").is_dir() or (source / "encoder.json").is_file():
        raise ConfigError(
            f"{target}: an encoder ({source}) is written as a graph of ONNX; name a file that ends in .onnx"
        )
    check_target(target, overwrite=overwrite)
    raw = read_raw(source)
    lost = write_raw(raw, target, overwrite=overwrite)
    return Converted(source, target, len(raw), raw.degree, lost)


def _to_onnx(source: Path, target: Path, overwrite: bool, dry_run: bool, options: Mapping[str, Any]) -> ExportedEncoder:
    from splatlearn.errors import ConfigError
    from splatlearn.verbs.convert_encoder import is_weights
    from splatlearn.verbs.convert_onnx import convert_onnx

    if is_weights(source) and not source.is_dir():
        raise ConfigError(
            f"{source}: weights become a folder first (`splatlearn convert {source.name} FOLDER`), then .onnx"
        )
    if options:
        raise ConfigError(f"{source}: --encoder.OPTION goes with weights; an encoder's options lie beside its own")
    return convert_onnx(source, target, overwrite=overwrite, dry_run=dry_run)
