"""The `gsplat` backend: float32 tensors on a CUDA device, drawn by the library of that name, which is imported late.

One call an item, with all its views: colour, depth and features are channels of one rasterisation, in this order. The
library draws them in chunks of `CHUNK` (it projects and sorts once, and composites once a chunk). What it leaves open
or does otherwise than `render` defines is settled here: harmonics, depth, zero quaternions, items without Gaussians or
views, numbers that are not finite, and gradients of the intrinsics, which it does not have.

Where it still differs from `reference` (release 1.5.3, by its source): it always cuts at alpha 1/255, caps at 0.999 and
stops at a transmittance of 1e-4, so that other options go to `reference`; these comparisons are made with fast
exponentials, so single pixels at the edge of a footprint differ; a determinant is taken in float32 with cancellation,
so that a needle's conic is less exact, and one whose determinant is not positive is not drawn; the sums of a gradient
are added in any order, so that its last bits change from run to run. Tiles of 16 px, and no cut by radius. The library
does not lift: `lift` takes plain torch on a CUDA device.

Legend: V views of one item, N Gaussians, C features, H W pixels.
"""

import inspect
from functools import cache
from importlib import import_module
from math import isclose
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import Tensor

from splatlearn.errors import UserError
from splatlearn.splatting import harmonics
from splatlearn.splatting.projection import unit
from splatlearn.splatting.reference import poison
from splatlearn.splatting.trial import EXPECTED, SIZE, one_gaussian
from splatlearn.structures import Cameras, Gaussians

if TYPE_CHECKING:
    from splatlearn.splatting.render import RenderOptions

DEVICE = "cuda"
CHUNK = 32
"""Channels that are composited at a time: gsplat's own default, and the width its kernels are made for."""
FIXED = {"alpha_min": 1 / 255, "alpha_max": 0.999, "transmittance_min": 1e-4}
"""What is compiled into its kernels."""
INSTALL = "pip install 'splatlearn[cuda]'"
ARGUMENTS = (
    *("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height"),
    *("near_plane", "far_plane", "eps2d", "packed", "render_mode", "rasterize_mode", "channel_chunk"),
)
"""Of `gsplat.rasterization`, as it is called here."""


def rasterize(
    gaussians: Gaussians, cameras: Cameras, features: Tensor | None, options: "RenderOptions"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Premultiplied color (V 3 H W), features (V C H W), depth (V 1 H W) and alpha (V 1 H W).

    Features lie channel by channel in a pixel (torch's `channels_last`).

    Raises:
        UserError: gsplat cannot be imported, or takes other arguments than it is given here.
    """
    rows = gaussians.means.new_zeros(len(gaussians), 0) if features is None else features
    parts = zip(gaussians.split(), rows.split(gaussians.counts), cameras.split(), strict=True)
    drawn = [_item(item, part, seen, options) for item, part, seen in parts]
    empty = gaussians.means.new_zeros(0, cameras.height, cameras.width, 5 + rows.shape[1])
    layers = torch.cat([empty, *drawn]).permute(0, 3, 1, 2)
    color, depth, blended, alpha = layers.split([3, 1, rows.shape[1], 1], 1)
    return color.contiguous(), blended, depth.contiguous(), alpha.contiguous()


def refusal(means: Tensor, options: "RenderOptions") -> str:
    """Why gsplat does not render these Gaussians, or an empty string.

    The first call for a device draws one Gaussian on it, for which gsplat may first compile its kernels: minutes.
    """
    if means.device.type != DEVICE or means.dtype != torch.float32:
        return f"it renders float32 tensors on a {DEVICE} device; got {means.dtype} on {means.device}"
    other = [
        f"{name} is {getattr(options, name):g}, compiled into gsplat is {value:g}"
        for name, value in FIXED.items()
        if not isclose(getattr(options, name), value, rel_tol=1e-6)
    ]
    return "; ".join(other) or problem(means.device)


@cache
def problem(device: torch.device) -> str:
    """What keeps gsplat from rendering on this device, or an empty string; tried once a process."""
    try:
        found = _trial(device)
    except ModuleNotFoundError as error:
        found = f"it is not installed: {INSTALL}" if error.name == "gsplat" else f"it does not import: {error}"
    except Exception as error:  # a compiler that is missing, kernels for another GPU: whatever it says is the reason
        found = f"it is installed, but fails: {type(error).__name__}: {error}"
        if "'NoneType' object has no attribute" in str(error):
            found += "; this is how it says that it found no CUDA toolkit to compile its kernels with"
    if found:
        warn(f"gsplat cannot be used on {device}, and plain torch renders slowly: {found}", stacklevel=2)
    return found


def _trial(device: torch.device) -> str:
    """Draws one Gaussian; what is wrong with the picture, or an empty string."""
    from splatlearn.splatting.render import RenderOptions

    color, _, depth, alpha = rasterize(*one_gaussian(device), None, RenderOptions())
    seen = [float(layer[0, 0, SIZE // 2, SIZE // 2]) for layer in (color, depth, alpha)]
    right = all(isclose(a, b, rel_tol=1e-3) for a, b in zip(seen, EXPECTED, strict=True))
    return "" if right else f"it draws colour, depth and alpha {seen} where {list(EXPECTED)} is right"


def _rasterization() -> Any:
    """gsplat's function of this name.

    Raises:
        UserError: it does not have the arguments that are used here.
    """
    library = import_module("gsplat")
    function = library.rasterization
    known = inspect.signature(function).parameters
    absent = [name for name in ARGUMENTS if name not in known]
    if absent:
        version = getattr(library, "__version__", "of unknown version")
        raise UserError(f"gsplat {version} has no argument {', '.join(absent)}; 1.5.3 is what this was written for")
    return function


def _item(item: Gaussians, features: Tensor, cameras: Cameras, options: "RenderOptions") -> Tensor:
    """(V H W 3 + 1 + C + 1): color, depth, features and alpha of all views of one item."""
    height, width = cameras.height, cameras.width
    inputs = (item.means, item.scales, item.quaternions, item.opacities, item.sh, features)
    views, own = zip(cameras.world_to_camera, cameras.intrinsics, strict=True), poison(*inputs)
    spoilt = [own + poison(pose, intrinsics) for pose, intrinsics in views]
    if not len(item) or not len(cameras):
        layers = item.means.new_zeros(len(cameras), height, width, 5 + features.shape[1])
    else:
        means, scales, quaternions, opacities, sh, rows = (values.nan_to_num(0.0, 0.0, 0.0) for values in inputs)
        poses, intrinsics = _finite_cameras(cameras)
        picture, alpha = _rasterization()(
            means=means,
            quats=unit(quaternions),  # gsplat would divide one of length zero by zero
            scales=scales,
            opacities=opacities,
            colors=_channels(means, sh, rows, poses),
            viewmats=_absorbed(poses, intrinsics),
            Ks=intrinsics.detach(),
            width=width,
            height=height,
            near_plane=options.near,
            far_plane=min(options.far, torch.finfo(torch.float32).max),
            eps2d=options.low_pass,
            packed=False,
            render_mode="RGB",
            rasterize_mode="antialiased" if options.antialiased else "classic",
            channel_chunk=CHUNK,
        )[:2]
        layers = torch.cat([picture, alpha], -1)
    return layers + torch.stack(spoilt)[:, None, None, None] if spoilt else layers


def _channels(means: Tensor, sh: Tensor, features: Tensor, poses: Tensor) -> Tensor:
    """(V N 3 + 1 + C): color, depth and features as each view blends them.

    Products are written out: torch may be told to round those of matrices, on a GPU, to ten bits.
    """
    views = []
    for pose in poses:
        center = (pose[:3, :3] * pose[:3, 3:]).sum(0)  # minus the camera's position
        depth = (means * pose[2, :3]).sum(1) + pose[2, 3]
        views.append(torch.cat([harmonics.colors(sh, means + center), depth[:, None], features], 1))
    return torch.stack(views)


def _finite_cameras(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """(V 4 4) poses and (V 3 3) intrinsics; the identity where one of them is not finite."""
    poses, intrinsics = cameras.world_to_camera, cameras.intrinsics
    usable = (poses.isfinite().all((1, 2)) & intrinsics.isfinite().all((1, 2)))[:, None, None]
    eye = torch.eye(4, dtype=poses.dtype, device=poses.device)
    return torch.where(usable, poses, eye), torch.where(usable, intrinsics, eye[:3, :3])


def _absorbed(poses: Tensor, intrinsics: Tensor) -> Tensor:
    """(V 4 4) the poses themselves, through which the intrinsics get their gradients.

    With K0 the same intrinsics as constants, K times the pose is K0 times (K0^-1 K times the pose). The matrix in
    brackets is the identity in value, not in its derivative; gsplat differentiates the pose that it is given as twelve
    free numbers.
    """
    constant = intrinsics.detach()
    across, down, forward, bottom = poses.unbind(1)
    moved = []
    for axis, row in enumerate((across, down)):
        focal = constant[:, axis, axis]
        focal = torch.where(focal == 0, 1, focal)
        stretch = 1 + (intrinsics[:, axis, axis] - constant[:, axis, axis]) / focal
        shift = (intrinsics[:, axis, 2] - constant[:, axis, 2]) / focal
        moved.append(stretch[:, None] * row + shift[:, None] * forward)
    return torch.stack([*moved, forward, bottom], 1)
