"""Feature channels in `render`: every backend, gradients, fixed sums, and what is defined at the edges."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from splatlearn.errors import UserError
from splatlearn.splatting import RenderOptions, render
from splatlearn.splatting import cpu as cpu_backend
from splatting.gsplat_stand_in import installed
from splatting.scenes import INPUTS, assemble, random_cameras, random_gaussians, relative_error, tensors_of

CPU, REFERENCE = RenderOptions(backend="cpu"), RenderOptions(backend="reference")


def random_features(count: int, channels: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def run(gaussians, cameras, channels: int, options: RenderOptions, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Pictures and gradients of a random linear function of all of them."""
    tensors = tensors_of(gaussians, cameras, dtype)
    features = random_features(len(gaussians), channels).to(dtype).requires_grad_()
    rendering = render(*assemble(tensors, gaussians, cameras), features, options=options)
    draw = torch.Generator().manual_seed(5)
    loss = sum((layer * torch.randn(layer.shape, generator=draw).to(dtype)).sum() for layer in rendering)
    loss.backward()
    found = {name: tensors[name].grad for name in INPUTS} | {"by_features": features.grad}
    return {"color": rendering.color.detach(), "features": rendering.features.detach(), **found}


@pytest.mark.parametrize("channels", [1, 5, 32, 64, 110])
def test_gradients_of_every_input(channels):
    cloud, cameras = random_gaussians(120, degree=1), random_cameras(2)
    seen, oracle = (
        run(cloud, cameras, channels, CPU, torch.float32),
        run(cloud, cameras, channels, REFERENCE, torch.float64),
    )
    errors = {name: relative_error(seen[name], oracle[name]) for name in oracle}
    assert all(error < 1e-4 for error in errors.values()), errors


def test_items_that_share_nothing():
    cloud, cameras = random_gaussians(60, items=2, seed=4), random_cameras(2, 21, 19, items=2)
    seen, oracle = (
        run(cloud, cameras, 9, CPU, torch.float32),
        run(cloud, cameras, 9, REFERENCE, torch.float64),
    )
    errors = {name: relative_error(seen[name], oracle[name]) for name in oracle}
    assert all(error < 1e-4 for error in errors.values()), errors


def test_many_bands_give_the_same(monkeypatch):
    cloud, cameras = random_gaussians(300, degree=0), random_cameras(2)
    once = run(cloud, cameras, 16, CPU, torch.float32)
    monkeypatch.setattr(cpu_backend, "ENTRIES", 500)
    monkeypatch.setattr(cpu_backend, "_room", lambda features, picture: 500)
    often = run(cloud, cameras, 16, CPU, torch.float32)
    assert all(torch.equal(often[name], once[name]) for name in once)


def test_lists_are_made_band_by_band_and_kept_where_one_is_enough(monkeypatch):
    """What the tests of many bands rely on: how many bands there are, and that each tile is in one."""
    ranges = []

    def noted(*given):
        for band in listed(*given):
            ranges.append(band.tiles)
            yield band

    listed = cpu_backend._bands
    monkeypatch.setattr(cpu_backend, "_bands", noted)
    cloud, cameras = random_gaussians(300, degree=0), random_cameras(2)
    run(cloud, cameras, 16, CPU, torch.float32)
    assert ranges == [(0, 12)]
    ranges.clear()
    monkeypatch.setattr(cpu_backend, "ENTRIES", 500)
    monkeypatch.setattr(cpu_backend, "_room", lambda features, picture: 500)
    run(cloud, cameras, 16, CPU, torch.float32)
    forward = ranges[: len(ranges) // 2]
    assert len(forward) > 3
    assert ranges == forward * 2
    assert [0, *(end for _, end in forward)] == [*(begin for begin, _ in forward), 12]


def test_the_gradient_may_be_taken_twice():
    cloud, cameras = random_gaussians(100, degree=0), random_cameras(1)
    features = random_features(100, 12).requires_grad_()
    seen = render(cloud, cameras, features, options=CPU).features
    (once,) = torch.autograd.grad(seen.square().sum(), features, retain_graph=True)
    (again,) = torch.autograd.grad(seen.square().sum(), features)
    assert torch.equal(once, again)


def test_features_change_nothing_else():
    cloud, cameras = random_gaussians(200), random_cameras(1)
    plain, wide = render(cloud, cameras), render(cloud, cameras, random_features(200, 12))
    assert plain.features.shape == (1, 0, 28, 44)
    assert torch.equal(plain.color, wide.color)
    assert torch.equal(plain.depth, wide.depth)


def test_features_equal_to_colour_look_like_it():
    cloud, cameras = random_gaussians(200, degree=0), random_cameras(2)
    color = (cloud.sh[:, 0] * 0.28209479177387814 + 0.5).clamp_min(0)
    rendering = render(cloud, cameras, color)
    torch.testing.assert_close(rendering.features, rendering.color, rtol=1e-5, atol=1e-6)


class TestEdges:
    @pytest.fixture(params=["cpu", "reference", "gsplat"])
    def options(self, request):
        with installed() if request.param == "gsplat" else nullcontext():
            yield RenderOptions(backend=request.param)

    def test_no_gaussians(self, options):
        seen = render(random_gaussians(0), random_cameras(2), torch.zeros(0, 7), options=options)
        assert seen.features.shape == (2, 7, 28, 44)
        assert not seen.features.any()

    def test_no_views(self, options):
        cloud, cameras = random_gaussians(5), random_cameras(0)
        assert render(cloud, cameras, torch.ones(5, 7), options=options).features.shape == (0, 7, 28, 44)

    def test_a_view_of_nothing(self, options):
        cloud = random_gaussians(30)
        behind = replace(cloud, means=cloud.means * torch.tensor([1.0, 1.0, -1.0]))
        features = torch.ones(30, 3, requires_grad=True)
        render(behind, random_cameras(1), features, options=options).features.sum().backward()
        assert features.grad is not None and not features.grad.any()

    def test_a_feature_that_is_not_finite_spoils_its_item(self, options):
        cloud, features = random_gaussians(20, items=2), torch.ones(40, 3)
        features[3, 1] = torch.inf
        seen = render(cloud, random_cameras(1, items=2), features, options=options)
        assert seen.features[0].isnan().all() and seen.color[0].isnan().all()
        assert seen.features[1].isfinite().all()

    def test_wrong_shapes_and_dtypes(self, options):
        cloud, cameras = random_gaussians(5), random_cameras(1)
        with pytest.raises(UserError, match=r"features has shape \(4, 3\), expected \(5, 3\)"):
            render(cloud, cameras, torch.ones(4, 3), options=options)
        with pytest.raises(UserError, match=r"features is torch\.float64"):
            render(cloud, cameras, torch.ones(5, 3).double(), options=options)
