"""Small random scenes, and one pass through `render` with all its gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from splatlearn.splatting import Rendering, RenderOptions, render
from splatlearn.splatting.projection import rotations
from splatlearn.structures import Cameras, Gaussians

INPUTS = ("means", "scales", "quaternions", "opacities", "sh", "world_to_camera", "intrinsics")


def random_gaussians(
    number: int, items: int = 1, degree: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Gaussians:
    """A cloud some three metres ahead of the origin, wide enough that a part lies outside the views."""
    draw = torch.Generator().manual_seed(seed)
    rows = number * items
    spread = torch.tensor([1.2, 0.9, 0.8])
    values = {
        "means": torch.randn(rows, 3, generator=draw) * spread + torch.tensor([0.0, 0.0, 3.0]),
        "scales": torch.exp(torch.randn(rows, 3, generator=draw) * 0.6 - 2.3),
        "quaternions": torch.randn(rows, 4, generator=draw),
        "opacities": torch.rand(rows, generator=draw) * 0.98 + 0.02,
        "sh": torch.randn(rows, (degree + 1) ** 2, 3, generator=draw) * 0.3,
    }
    values["opacities"][: rows // 20] = 1.0
    return Gaussians(**{name: value.to(dtype) for name, value in values.items()}, counts=(number,) * items)


def random_cameras(
    views: int,
    width: int = 44,
    height: int = 28,
    items: int = 1,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Cameras:
    """Views near the origin that look along +z, each turned a little; the principal point is off the middle."""
    draw = torch.Generator().manual_seed(seed)
    rows = views * items
    turn = torch.cat([torch.full((rows, 1), 6.0), torch.randn(rows, 3, generator=draw) * 0.4], 1)
    pose = torch.eye(4).repeat(rows, 1, 1)
    pose[:, :3, :3] = rotations(turn)
    pose[:, :3, 3] = torch.randn(rows, 3, generator=draw) * 0.2
    intrinsics = torch.eye(3).repeat(rows, 1, 1)
    intrinsics[:, 0] = torch.tensor([0.9 * width, 0.0, 0.5 * width + 1])
    intrinsics[:, 1] = torch.tensor([0.0, 0.95 * width, 0.5 * height - 1])
    return Cameras(
        world_to_camera=pose.to(dtype),
        intrinsics=intrinsics.to(dtype),
        width=width,
        height=height,
        counts=(views,) * items,
    )


def tensors_of(gaussians: Gaussians, cameras: Cameras, dtype: torch.dtype) -> dict[str, Tensor]:
    """Fresh leaves of all inputs by name, as `dtype`."""
    values = {name: getattr(gaussians, name) for name in INPUTS[:5]}
    values |= {name: getattr(cameras, name) for name in INPUTS[5:]}
    return {name: value.detach().to(dtype).clone().requires_grad_() for name, value in values.items()}


def assemble(tensors: dict[str, Tensor], gaussians: Gaussians, cameras: Cameras) -> tuple[Gaussians, Cameras]:
    """The same structures around other tensors."""
    cloud = Gaussians(**{name: tensors[name] for name in INPUTS[:5]}, counts=gaussians.counts)
    seen = {name: tensors[name] for name in INPUTS[5:]}
    return cloud, Cameras(**seen, width=cameras.width, height=cameras.height, counts=cameras.counts)


def differentiate(
    gaussians: Gaussians, cameras: Cameras, options: RenderOptions, dtype: torch.dtype
) -> tuple[Rendering, dict[str, Tensor]]:
    """Renders as `dtype`, and the gradients of a random linear function of the picture by every input."""
    tensors = tensors_of(gaussians, cameras, dtype)
    rendering = render(*assemble(tensors, gaussians, cameras), options=options)
    draw = torch.Generator().manual_seed(5)
    loss = torch.zeros((), dtype=dtype)
    for layer in (rendering.color, rendering.depth, rendering.alpha):
        loss = loss + (layer * torch.randn(layer.shape, generator=draw, dtype=torch.float64).to(dtype)).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    return rendering, dict(zip(tensors, gradients, strict=True))


def drawn(seeds: Sequence[int]) -> Tensor:
    """(V 3 H W) pictures of one scene a seed; a function that loader workers can be sent."""
    return torch.cat([render(random_gaussians(100, seed=seed), random_cameras(1)).color for seed in seeds])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of `expected`."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
