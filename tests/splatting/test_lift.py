"""`lift`: the adjoint of `render`, constants, coarse maps, and the projected variant."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from splatlearn.errors import UserError
from splatlearn.splatting import RenderOptions, lift, render
from splatlearn.splatting import cpu as cpu_backend
from splatting.scenes import random_cameras, random_gaussians, relative_error

BOTH = pytest.mark.parametrize("backend", ["cpu", "reference"])


def random_maps(views: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(views, channels, height, width, generator=torch.Generator().manual_seed(3))


@BOTH
@pytest.mark.parametrize("size", [(28, 44), (27, 44), (27, 43), (7, 11), (5, 13), (1, 1)])
def test_adjoint_of_render(backend, size):
    """<render(f), enlarged maps> = <f, lift(maps)>, with maps of any size."""
    options = RenderOptions(backend=backend)
    cloud, cameras, maps = random_gaussians(150), random_cameras(2), random_maps(2, 6, *size)
    features = torch.randn(150, 6, generator=torch.Generator().manual_seed(1))
    seen = render(cloud, cameras, features, options=options).features.double()
    large = functional.interpolate(maps, (28, 44), mode="bilinear", align_corners=False).double()
    lifted = lift(maps, cloud, cameras, options=options)
    left, right = (seen * large).sum(), (features.double() * lifted.sums.double()).sum()
    scale = seen.norm() * large.norm()
    assert float((left - right).abs() / scale) < 1e-6
    assert float(left) == pytest.approx(float(right), rel=1e-4, abs=1e-5 * float(scale))


@BOTH
def test_weights_are_what_is_blended(backend):
    cloud, cameras = random_gaussians(150), random_cameras(3)
    lifted = lift(random_maps(3, 2, 7, 11), cloud, cameras, options=RenderOptions(backend=backend))
    assert float(lifted.weights.sum()) == pytest.approx(float(render(cloud, cameras).alpha.sum()), rel=1e-5)


@BOTH
@pytest.mark.parametrize("variant", ["exact", "projected"])
def test_a_constant_lifts_to_the_constant(backend, variant):
    cloud, cameras = random_gaussians(150), random_cameras(2)
    maps = torch.tensor([2.5, -1.0])[None, :, None, None].expand(2, 2, 7, 11)
    lifted = lift(maps, cloud, cameras, variant=variant, options=RenderOptions(backend=backend))
    assert 0 < int(lifted.seen.sum()) < 150
    torch.testing.assert_close(lifted.mean()[lifted.seen], maps[0, :, 0, 0].expand(int(lifted.seen.sum()), 2))
    assert not lifted.mean()[~lifted.seen].any()


@pytest.mark.parametrize("variant", ["exact", "projected"])
def test_backends_agree(variant):
    cloud, cameras = random_gaussians(80, items=2), random_cameras(2, items=2)
    maps = random_maps(4, 33, 9, 12)
    seen = lift(maps, cloud, cameras, variant=variant, options=RenderOptions(backend="cpu"))
    precise = replace(
        cloud, **{n: getattr(cloud, n).double() for n in ("means", "scales", "quaternions", "opacities", "sh")}
    )
    cameras = replace(cameras, world_to_camera=cameras.world_to_camera.double(), intrinsics=cameras.intrinsics.double())
    oracle = lift(maps.double(), precise, cameras, variant=variant)
    assert relative_error(seen.sums, oracle.sums) < 1e-5
    assert relative_error(seen.weights, oracle.weights) < 1e-5


def test_views_may_come_one_after_another():
    cloud, cameras, maps = random_gaussians(100), random_cameras(3), random_maps(3, 5, 7, 11)
    whole = lift(maps, cloud, cameras)
    parts = [lift(maps[v : v + 1], cloud, camera) for v, camera in enumerate(cameras.regroup((1, 1, 1)).split())]
    torch.testing.assert_close(sum(part.sums for part in parts), whole.sums)
    torch.testing.assert_close(sum(part.weights for part in parts), whole.weights)


def test_many_bands_give_the_same(monkeypatch):
    cloud, cameras, maps = random_gaussians(300), random_cameras(2), random_maps(2, 5, 7, 11)
    once = lift(maps, cloud, cameras)
    monkeypatch.setattr(cpu_backend, "ENTRIES", 300)
    often = lift(maps, cloud, cameras)
    assert torch.equal(often.sums, once.sums)
    assert torch.equal(often.weights, once.weights)


def test_projected_reads_the_pixel_of_the_mean():
    cloud, cameras = random_gaussians(1, degree=0), random_cameras(1)
    centre = cameras.camera_to_world[0] @ torch.tensor([0.1, -0.2, 3.0, 1.0])
    cloud = replace(cloud, means=centre[None, :3])
    maps = torch.arange(28.0 * 44).view(1, 1, 28, 44)
    pixel, _ = cameras.project(cloud.means, torch.zeros(1, dtype=torch.long))
    lifted = lift(maps, cloud, cameras, variant="projected")
    assert float(lifted.mean()[0, 0]) == float(pixel[0, 1].floor() * 44 + pixel[0, 0].floor())


def test_half_precision_and_nothing_to_see():
    cloud, cameras = random_gaussians(20), random_cameras(1)
    behind = replace(cloud, means=-cloud.means)
    lifted = lift(random_maps(1, 4, 7, 11), behind, cameras)
    assert not lifted.seen.any()
    assert lifted.mean(torch.float16).dtype == torch.float16
    assert not lifted.mean(torch.float16).any()


@BOTH
def test_no_gaussians_and_no_views(backend):
    options = RenderOptions(backend=backend)
    assert lift(random_maps(1, 4, 7, 11), random_gaussians(0), random_cameras(1), options=options).sums.shape == (0, 4)
    lifted = lift(random_maps(0, 4, 7, 11), random_gaussians(5), random_cameras(0), options=options)
    assert lifted.sums.shape == (5, 4) and not lifted.weights.any()


def test_errors():
    cloud, cameras = random_gaussians(5), random_cameras(1)
    with pytest.raises(UserError, match=r"maps have shape \(2, 3, 7, 11\), expected \(1, C, h, w\)"):
        lift(random_maps(2, 3, 7, 11), cloud, cameras)
    with pytest.raises(UserError, match="larger than the pictures of 44x28"):
        lift(random_maps(1, 3, 30, 44), cloud, cameras)
    with pytest.raises(UserError, match=r"maps are torch\.float64"):
        lift(random_maps(1, 3, 7, 11).double(), cloud, cameras)
    with pytest.raises(UserError, match="variant is 'nearest'"):
        lift(random_maps(1, 3, 7, 11), cloud, cameras, variant="nearest")  # type: ignore[arg-type]
