"""`render`: Gaussians to pictures, differentiable in everything, on any backend.

Legend: V views of all items, N Gaussians of all items, H W pixels. Metres, world; pixel centres at half integers.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

from torch import Tensor, autocast, float32

from splatlearn.errors import UserError
from splatlearn.splatting import gsplat, harmonics, reference
from splatlearn.structures import Cameras, Gaussians

BACKENDS = ("auto", "reference", "cpu", "gsplat")
DEPTHS = ("expected", "normalized")


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How Gaussians become pixels. The defaults are those of gsplat 1.5.3 where it has the setting.

    Args:
        backend: `cpu` (Numba, float32 tensors on the CPU), `gsplat` (float32 tensors on a CUDA device, when that
            library is installed), `reference` (plain torch, any dtype and device), or `auto`: `cpu` or `gsplat` where
            they apply and work, else `reference`.
        low_pass: px^2, added to both variances of a footprint so that none falls between the pixels.
        antialiased: weaken each opacity by the area that `low_pass` adds, so that what is smaller than a pixel fades
            (Mip-Splatting; gsplat's mode of this name) instead of growing to a pixel.
        alpha_min: a footprint ends where its alpha falls below this; 0 draws every Gaussian at every pixel.
        alpha_max: cap of one Gaussian's alpha, below 1.
        transmittance_min: a pixel stops before the Gaussian that would leave less light than this; 0: never.
        near: metres; nearer Gaussians are not drawn.
        far: metres; farther Gaussians are not drawn.
        background: RGB behind every view (`render` also takes one a view).
        depth: `expected`: sum of weight times depth; `normalized`: that divided by alpha, 0 where nothing is.

    Raises:
        UserError: all values out of range, together.
    """

    backend: Literal["auto", "reference", "cpu", "gsplat"] = "auto"
    low_pass: float = 0.3
    antialiased: bool = False
    alpha_min: float = 1 / 255
    alpha_max: float = 0.999
    transmittance_min: float = 1e-4
    near: float = 0.01
    far: float = inf
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    depth: Literal["expected", "normalized"] = "expected"

    def __post_init__(self) -> None:
        rules = {
            f"backend is {self.backend!r}, not one of {', '.join(BACKENDS)}": self.backend in BACKENDS,
            f"low_pass is {self.low_pass}, must be >= 0 px^2": self.low_pass >= 0,
            f"alpha_min is {self.alpha_min}, must be in [0, 1)": 0 <= self.alpha_min < 1,
            f"alpha_max is {self.alpha_max}, must be in (0, 1)": 0 < self.alpha_max < 1,
            f"transmittance_min is {self.transmittance_min}, must be in [0, 1)": 0 <= self.transmittance_min < 1,
            f"near is {self.near} and far {self.far}, need 0 < near < far metres": 0 < self.near < self.far,
            f"background is {self.background}, must be three numbers": len(self.background) == 3,
            f"depth is {self.depth!r}, not one of {', '.join(DEPTHS)}": self.depth in DEPTHS,
        }
        wrong = [message for message, holds in rules.items() if not holds]
        if wrong:
            raise UserError("RenderOptions: " + "; ".join(wrong))


class Rendering(NamedTuple):
    """Pictures, one a view.

    Fields:
        color: (V 3 H W) RGB over the background, not clamped from above.
        features: (V C H W), as the colour is blended, over nothing; C = 0 where none were given.
        depth: (V 1 H W) metres along the optical axis, as `RenderOptions.depth` defines it.
        alpha: (V 1 H W) in [0, 1].
    """

    color: Tensor
    features: Tensor
    depth: Tensor
    alpha: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    features: Tensor | None = None,
    *,
    background: Tensor | None = None,
    options: RenderOptions = RenderOptions(),
) -> Rendering:
    """Renders item b of `gaussians` from every view of item b of `cameras`.

    Gradients reach means, scales, quaternions, opacities, sh, features, and the cameras' `world_to_camera` (as twelve
    free numbers; the bottom row gets none) and `intrinsics` (focal lengths and centre). A Gaussian with a value that is
    not finite makes every view of its item NaN, such a camera makes its view NaN, for the caller's guard to see.
    A zero quaternion is the identity rotation. The order of Gaussians does not matter; equal depths are drawn by
    row number. Autocast is not followed: pictures have the precision of the Gaussians.

    Args:
        gaussians: B items, metres, world.
        cameras: B items, all views of one size; an item may have several views, or none.
        features: (N C), blended beside the colour in the same call.
        background: (V 3) RGB behind each view, which gets gradients too; left out, that of `options` behind all.
        options: what a picture is and who makes it.

    Raises:
        UserError: item counts, shapes, dtypes or devices do not fit, the intrinsics have skew, or the backend
            cannot take the tensors.
    """
    check_scene(gaussians, cameras, features, background)
    with autocast(gaussians.device.type, enabled=False):
        backend = backend_of(gaussians, options)
        if backend == "cpu":
            from splatlearn.splatting import cpu

            rasterize = cpu.rasterize
        else:
            rasterize = gsplat.rasterize if backend == "gsplat" else reference.rasterize
        color, blended, depth, alpha = rasterize(gaussians, cameras, features, options)
    if options.depth == "normalized":
        depth = depth / alpha.clamp_min(1e-10)
    if background is None and any(options.background):
        background = color.new_tensor(options.background)[None]
    if background is not None:
        color = color + (1 - alpha) * background[:, :, None, None]
    return Rendering(color, blended, depth, alpha)


def backend_of(gaussians: Gaussians, options: RenderOptions) -> str:
    """The backend that takes these Gaussians.

    Raises:
        UserError: the one that was asked for does not.
    """
    if options.backend == "reference":
        return "reference"
    if cpu_takes(gaussians, options):
        return "cpu"
    refusal = gsplat.refusal(gaussians.means, options)
    if refusal and options.backend == "gsplat":
        raise UserError(f"backend 'gsplat' cannot render this: {refusal}. Use 'reference', or 'auto'")
    return "reference" if refusal else "gsplat"


def cpu_takes(gaussians: Gaussians, options: RenderOptions) -> bool:
    """Whether `cpu` is chosen for these Gaussians.

    Raises:
        UserError: it was asked for, and does not take them.
    """
    means = gaussians.means
    fits = means.device.type == "cpu" and means.dtype == float32
    if options.backend == "cpu" and not fits:
        raise UserError(
            f"backend 'cpu' renders float32 tensors on the CPU; got {means.dtype} on {means.device}. "
            "Use 'reference', or move the Gaussians and cameras"
        )
    return fits and options.backend in ("auto", "cpu")


def check_scene(
    gaussians: Gaussians, cameras: Cameras, features: Tensor | None = None, background: Tensor | None = None
) -> None:
    """Refuses what does not fit together: the errors of `render`."""
    if len(gaussians.counts) != len(cameras.counts):
        raise UserError(
            f"render: {len(gaussians.counts)} items of Gaussians and {len(cameras.counts)} of cameras; "
            "item b of the Gaussians is seen by item b of the cameras (see Packed.regroup)"
        )
    n, v = len(gaussians), len(cameras)
    expected = {
        "means": (gaussians.means, (n, 3)),
        "scales": (gaussians.scales, (n, 3)),
        "quaternions": (gaussians.quaternions, (n, 4)),
        "opacities": (gaussians.opacities, (n,)),
        "sh": (gaussians.sh, (n, gaussians.sh.shape[1] if gaussians.sh.ndim > 1 else 1, 3)),
        "world_to_camera": (cameras.world_to_camera, (v, 4, 4)),
        "intrinsics": (cameras.intrinsics, (v, 3, 3)),
    }
    if features is not None:
        expected["features"] = (features, (n, features.shape[-1] if features.ndim else 0))
    if background is not None:
        expected["background"] = (background, (v, 3))
    like = gaussians.means
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise UserError(f"render: {name} has shape {tuple(value.shape)}, expected {shape}")
        if value.dtype != like.dtype or value.device != like.device:
            raise UserError(
                f"render: {name} is {value.dtype} on {value.device}, means are {like.dtype} on {like.device}"
            )
    if not like.dtype.is_floating_point:
        raise UserError(f"render: the Gaussians are {like.dtype}, expected a floating dtype")
    if v and bool((cameras.intrinsics.detach()[:, 0, 1].abs() > 0).any()):  # NaN is no skew, and spoils its view
        raise UserError("render: intrinsics with skew (entry 0, 1) are not supported; rectify the images")
    if min(cameras.width, cameras.height) < 1:
        raise UserError(f"render: the image is {cameras.width} x {cameras.height} pixels")
    harmonics.degree_of(gaussians.sh.shape[1])
