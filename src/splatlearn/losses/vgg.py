"""Where LPIPS gets its weights: VGG16's convolutions, and the linear layers of version 0.1."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from splatlearn.encoders.hub import find_weights
from splatlearn.encoders.weights import read_weights
from splatlearn.errors import BadData, UserError

REPOSITORY = "timm/vgg16.tv_in1k"
"""torchvision's ImageNet weights, as the hub has them in safetensors."""
LICENCE = "BSD-3-Clause"
"""Of these weights, as the hub states it."""
NEED = "LPIPS needs VGG16 weights"
ADVICE = (
    "Name a file of torchvision's vgg16, safetensors or pth (--recipe.lpips_weights), run once with a network, or "
    "leave LPIPS out with weight 0 (--recipe.lpips 0)"
)
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of VGG16's convolutions in `features`; LPIPS reads the end of each group (Zhang et al. 2018)."""
WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each group."""


@dataclass(frozen=True)
class VGG16Weights:
    """Convolutions of VGG16.

    Args:
        tensors: `features.N.weight` and `.bias`.
        source: file or hub repository.
        digest: SHA-256 of the file.
        licence: of the hub's file, or `unknown`.
    """

    tensors: dict[str, Tensor]
    source: str
    digest: str
    licence: str

    @property
    def slices(self) -> tuple[tuple[str, ...], ...]:
        """Names of the convolutions of each group."""
        return tuple(tuple(f"features.{number}" for number in group) for group in SLICES)


def resolve_vgg16(weights: str | Path = "") -> VGG16Weights:
    """VGG16 from a local file, else from the hub's cache, else from the hub. Never random.

    Args:
        weights: safetensors, or a pth that holds tensors only; empty for the cache and the hub.

    Raises:
        UserError: nothing was found, or it is not VGG16; says what to do.
    """
    file = find_weights(weights, REPOSITORY, need=NEED, advice=ADVICE, licence=LICENCE)
    found = read_weights(file.path)
    tensors, wrong = {}, []
    for name, shape in _expected().items():
        tensor = found.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            wrong.append(f"{name} {'absent' if tensor is None else tuple(tensor.shape)}, expected {shape}")
        else:
            tensors[name] = tensor.float()
    if wrong:
        raise BadData(
            f"{file.source}: not VGG16 as torchvision names it (features.0.weight ...): {len(wrong)} of "
            f"{len(_expected())} tensors do not fit; first: {wrong[0]}"
        )
    return VGG16Weights(tensors, file.source, file.digest, file.licence)


def resolve_linear() -> dict[str, Tensor]:
    """`linear.0` ... `linear.4`, (1 C 1 1): how much each channel counts, from torchmetrics."""
    package = find_spec("torchmetrics")
    if package is None or package.origin is None:
        raise UserError("LPIPS needs the package torchmetrics, which carries its linear layers")
    stored = read_weights(Path(package.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth")
    return {f"linear.{level}": stored[f"lin{level}.model.1.weight"] for level in range(len(SLICES))}


def _expected() -> dict[str, tuple[int, ...]]:
    shapes, before = {}, 3
    for group, width in zip(SLICES, WIDTHS):
        for number in group:
            shapes[f"features.{number}.weight"] = (width, before, 3, 3)
            shapes[f"features.{number}.bias"] = (width,)
            before = width
    return shapes
