"""The same numbers on every device as on the CPU in float64, or but for rounding: outputs, gradients, statistics."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from registry.encoder_checks import cloud, everything
from splatlearn.engine.trainable import Progress
from splatlearn.ops.neighbors import ball_query, farthest_point_sampling, hashed_order, knn, three_nearest
from splatlearn.ops.norm import PackedBatchNorm
from splatlearn.ops.sparse_conv import sparse_convolution
from splatlearn.ops.voxels import Voxels, coarsen, pack_keys, strided_map, submanifold_map, unique_voxels
from splatlearn.recipes.gs3 import Views
from splatlearn.registry import encoders
from splatlearn.splatting import RenderOptions, lift, render
from splatlearn.structures import Packed
from splatlearn.verbs.pretrain import plan
from splatting.scenes import random_cameras, random_gaussians


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Relative difference of the whole tensors."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * (float(expected.norm()) + 1e-6)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result, and the gradients of a weighed sum of it."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).to(result).view_as(result)
    return [result, *torch.autograd.grad((result * weights).sum(), leaves)]


@pytest.mark.parametrize("kind", ["same", "strided", "transposed"])
def test_sparse_convolution(device, kind):
    generator = torch.Generator().manual_seed(0)
    xyz = torch.randint(0, 8, (220, 3), generator=generator)
    keys = pack_keys(xyz, Packed(counts=(120, 100)).item)

    def convolve(voxels: Voxels, features: Tensor, weight: Tensor) -> list[Tensor]:
        stride = strided_map(voxels, *coarsen(voxels))
        maps = {"same": submanifold_map(voxels), "strided": stride, "transposed": stride.transposed}
        rows = maps[kind].source_rows
        return with_gradients(lambda f, w: sparse_convolution(f, w, maps[kind]), features[:rows], weight)

    features = torch.randn(220, 5, generator=generator)
    weight = torch.randn(27 if kind == "same" else 8, 5, 4, generator=generator)
    expected = convolve(unique_voxels(keys, 2)[0], features.double(), weight.double())
    found = convolve(unique_voxels(keys.to(device), 2)[0], features.to(device), weight.to(device))
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs, 1e-5)


def test_batch_norm(device):
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    exact, norm = PackedBatchNorm(6).double(), PackedBatchNorm(6).to(device)
    expected, found = with_gradients(exact, rows.double()), with_gradients(norm, rows.to(device))
    for mine, theirs in zip((*found, *norm.buffers()), (*expected, *exact.buffers()), strict=True):
        same(mine, theirs)


def test_neighbours(device):
    xyz, counts = cloud((400, 250)).xyz, (400, 250)
    moved, item = xyz.to(device), Packed(counts=counts).item
    assert torch.equal(hashed_order(moved, item.to(device)).cpu(), hashed_order(xyz, item))
    rows, sizes = farthest_point_sampling(moved, counts, 60)
    expected, _ = farthest_point_sampling(xyz, counts, 60)
    assert torch.equal(rows.cpu(), expected)
    centers = xyz[expected]
    balls = ball_query(moved[rows], sizes, moved, counts, 0.4, 8).cpu()
    assert (balls == ball_query(centers, sizes, xyz, counts, 0.4, 8)).float().mean() > 0.999
    same(knn(moved[rows], sizes, moved, counts, 4)[0], knn(centers, sizes, xyz, counts, 4)[0])
    same(three_nearest(moved[rows], sizes, moved, counts)[1], three_nearest(centers, sizes, xyz, counts)[1])


@pytest.mark.parametrize("family", ["sparse_unet", "pointnet2", "waffleiron"])
def test_encoders(device, family):
    torch.manual_seed(0)
    encoder, points = encoders.create(f"{family}.tiny"), cloud((400, 250))
    moved = deepcopy(encoder).to(device)

    def run(network: nn.Module, where: torch.device | str) -> list[Tensor]:
        result = everything(network(points.to(where)))
        result.square().mean().backward()
        gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        return [result, gradients, *(value.float() for value in network.buffers())]

    for mine, theirs in zip(run(moved, device), run(encoder, "cpu"), strict=True):
        same(mine, theirs, 1e-3)


def test_render(device):
    scene, cameras = random_gaussians(60, items=2), random_cameras(2, items=2)
    names = ("means", "scales", "quaternions", "opacities", "sh")

    def pictures(where: torch.device | str, backend: str) -> list[Tensor]:
        def draw(*values: Tensor) -> Tensor:
            changed = replace(scene.to(where), **dict(zip(names, values)))
            return torch.cat(render(changed, cameras.to(where), options=RenderOptions(backend=backend))[::2], 1)

        return with_gradients(draw, *(getattr(scene, name).to(where) for name in names))

    for mine, theirs in zip(pictures(device, "reference"), pictures("cpu", "cpu"), strict=True):
        same(mine, theirs, 2e-3)


@pytest.mark.parametrize("variant", ["exact", "projected"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_lift(device, variant, backend):
    scene, cameras = random_gaussians(60, items=2), random_cameras(2, items=2)
    maps = torch.randn(4, 3, 7, 11, generator=torch.Generator().manual_seed(0))
    expected = lift(maps, scene, cameras, variant=variant, options=RenderOptions(backend="cpu"))
    moved = maps.to(device), scene.to(device), cameras.to(device)
    found = lift(*moved, variant=variant, options=RenderOptions(backend=backend))
    assert found.sums.device.type == device.type
    for mine, theirs in zip(found, expected, strict=True):
        same(mine, theirs, 2e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_a_step_of_gs3(device, precision):
    recipe = plan("gs3", preset="tiny").build()
    scenes = recipe.data.scenes("train")["all"]
    batch = Views.pack([recipe.data.sample(scenes[i], np.random.default_rng(i)) for i in range(2)])
    expected = recipe(batch, Progress(0, 1)).losses["mse"]
    moved = deepcopy(recipe).to(device)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        loss = moved(batch.to(device), Progress(0, 1)).losses["mse"]
    loss.backward()
    same(loss, expected, 0.02)
    assert all(bool(torch.isfinite(p.grad).all()) for p in moved.parameters() if p.grad is not None)
