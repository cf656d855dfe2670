"""The `gsplat` backend: what it hands to the library and how it reads the answer, and on a GPU the library itself.

Without a CUDA device only the adapter is tested, with a stand-in that draws by our reference renderer.
"""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from splatlearn.errors import UserError
from splatlearn.splatting import RenderOptions, lift, render
from splatlearn.splatting import gsplat as adapter
from splatlearn.splatting.reference import poison
from splatlearn.splatting.render import backend_of
from splatlearn.structures import Gaussians
from splatting.comparison import silhouette_band
from splatting.gsplat_stand_in import StandIn, installed
from splatting.scenes import INPUTS, assemble, random_cameras, random_gaussians, relative_error, tensors_of

GSPLAT, REFERENCE = RenderOptions(backend="gsplat"), RenderOptions(backend="reference")


@pytest.fixture
def library() -> Iterator[StandIn]:
    with installed() as stand_in:
        assert not adapter.problem(torch.device("cpu"))
        stand_in.calls.clear()
        yield stand_in


def random_features(count: int, channels: int) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(2))


def run(gaussians, cameras, channels: int, options: RenderOptions, device: str = "cpu") -> dict[str, Tensor]:
    """Pictures, and gradients of a random linear function of all of them by every input, on the CPU."""
    tensors = tensors_of(gaussians.to(device), cameras.to(device), torch.float32)
    features = random_features(len(gaussians), channels).to(device).requires_grad_()
    seen = render(*assemble(tensors, gaussians, cameras), features, options=options)
    draw = torch.Generator().manual_seed(5)
    loss = sum((layer * torch.randn(layer.shape, generator=draw).to(device)).sum() for layer in seen)
    loss.backward()
    gradients = {name: tensors[name].grad for name in INPUTS} | {"by_features": features.grad}
    return {name: value.detach().cpu() for name, value in (seen._asdict() | gradients).items()}


class TestAdapter:
    @pytest.mark.parametrize("degree", [0, 1, 4])
    @pytest.mark.parametrize("channels", [0, 7])
    def test_pictures_and_gradients_of_every_input(self, library, degree, channels):
        cloud, cameras = random_gaussians(50, items=2, degree=degree), random_cameras(2, 21, 19, items=2)
        for options in (GSPLAT, replace(GSPLAT, antialiased=True, low_pass=0.1, near=2.0, far=4.0)):
            found = run(cloud, cameras, channels, options)
            expected = run(cloud, cameras, channels, replace(options, backend="reference"))
            for name, value in expected.items():
                assert found[name].shape == value.shape
                if value.any():
                    assert relative_error(found[name], value) < 1e-4, name
                else:
                    assert not found[name].any(), name
            assert expected["intrinsics"][:, 0, 2].any()

    def test_one_call_an_item_with_all_its_views(self, library):
        cloud = Gaussians.pack([random_gaussians(n, seed=n) for n in (30, 0, 20, 10)])
        cameras = random_cameras(6).regroup((3, 1, 0, 2))
        seen = render(cloud, cameras, random_features(60, 5), options=GSPLAT)
        assert [(len(call["means"]), len(call["viewmats"])) for call in library.calls] == [(30, 3), (10, 2)]
        assert torch.equal(library.calls[1]["means"], cloud.means[50:])
        assert torch.equal(library.calls[1]["viewmats"], cameras.world_to_camera[4:])
        assert not seen.alpha[3].any() and not seen.features[3].any()
        assert seen.features.shape == (6, 5, 28, 44)

    def test_the_arguments_it_receives(self, library):
        options = RenderOptions(backend="gsplat", low_pass=0.2, near=0.5, far=7.0, background=(1.0, 0.5, 0.0))
        cloud, cameras = random_gaussians(20), random_cameras(2, 44, 28)
        render(cloud, cameras, options=options)
        render(cloud, cameras, options=replace(options, antialiased=True, far=float("inf")))
        first, second = library.calls
        for name, value in {"near_plane": 0.5, "far_plane": 7.0, "eps2d": 0.2, "rasterize_mode": "classic"}.items():
            assert first[name] == value
        assert (first["width"], first["height"], first["packed"], first["channel_chunk"]) == (44, 28, False, 32)
        assert second["rasterize_mode"] == "antialiased" and 1e10 < second["far_plane"] < float("inf")
        for name, value in {"means": cloud.means, "scales": cloud.scales, "opacities": cloud.opacities}.items():
            assert torch.equal(first[name], value)
        assert torch.equal(first["viewmats"], cameras.world_to_camera)
        assert torch.equal(first["Ks"], cameras.intrinsics) and not first["Ks"].requires_grad
        torch.testing.assert_close(first["quats"], torch.nn.functional.normalize(cloud.quaternions, dim=1))

    def test_channels_are_colour_then_depth_then_features(self, library):
        cloud, cameras, features = random_gaussians(20, degree=0), random_cameras(2), random_features(20, 40)
        seen = render(cloud, cameras, features, options=GSPLAT)
        colors = library.calls[0]["colors"]
        assert len(library.calls) == 1 and colors.shape == (2, 20, 44)
        assert torch.allclose(colors[1, :, :3], (cloud.sh[:, 0] * 0.28209479 + 0.5).clamp_min(0), atol=1e-6)
        assert torch.allclose(colors[1, :, 3], cameras.project(cloud.means, torch.ones(20, dtype=torch.long))[1])
        assert torch.equal(colors[0, :, 4:], features)
        expected = render(cloud, cameras, features, options=REFERENCE)
        for name, value in expected._asdict().items():
            torch.testing.assert_close(getattr(seen, name), value, rtol=1e-4, atol=1e-5)

    def test_background_is_behind_the_colour_only(self, library):
        cloud, cameras, features = random_gaussians(20), random_cameras(1), random_features(20, 3)
        options = replace(GSPLAT, background=(0.0, 0.25, 1.0), depth="normalized")
        black, blue = (render(cloud, cameras, features, options=o) for o in (GSPLAT, options))
        expected = black.color + (1 - black.alpha) * torch.tensor([0.0, 0.25, 1.0])[:, None, None]
        assert torch.allclose(blue.color, expected)
        assert torch.equal(blue.features, black.features)
        assert torch.allclose(blue.depth, black.depth / black.alpha.clamp_min(1e-10))

    def test_the_pose_is_handed_on_bit_by_bit_though_it_carries_the_intrinsics(self, library):
        cameras = random_cameras(2)
        cameras = replace(cameras, intrinsics=cameras.intrinsics.clone().requires_grad_())
        render(random_gaussians(5), cameras, options=GSPLAT)
        call = library.calls[0]
        assert torch.equal(call["viewmats"], cameras.world_to_camera) and call["viewmats"].requires_grad

    def test_what_is_not_finite_never_reaches_the_library(self, library):
        cloud, cameras = random_gaussians(20, items=2), random_cameras(2, items=2)
        cloud.means[3, 1], cloud.sh[4, 0, 2], cloud.scales[5, 0] = torch.nan, torch.inf, -torch.inf
        cameras.intrinsics[3, 0, 0] = torch.inf
        color = render(cloud, cameras, options=GSPLAT).color  # the stand-in asserts that its inputs are finite
        assert color[[0, 1, 3]].isnan().all() and color[2].isfinite().all()

    def test_inputs_are_searched_once_whatever_the_number_of_views(self, library, monkeypatch):
        searched = []
        monkeypatch.setattr(adapter, "poison", lambda *inputs: searched.append(len(inputs)) or poison(*inputs))
        render(random_gaussians(20), random_cameras(3), random_features(20, 5), options=GSPLAT)
        assert sorted(searched) == [2, 2, 2, 6]

    def test_lift_takes_plain_torch(self, library):
        cloud, cameras = random_gaussians(40), random_cameras(2)
        maps = torch.randn(2, 3, 7, 11, generator=torch.Generator().manual_seed(0))
        found, expected = (lift(maps, cloud, cameras, options=options) for options in (GSPLAT, REFERENCE))
        assert not library.calls
        assert torch.equal(found.sums, expected.sums) and torch.equal(found.weights, expected.weights)


class TestChoice:
    def test_auto_on_its_device(self, library):
        double = random_gaussians(5, dtype=torch.float64)
        assert backend_of(random_gaussians(5), RenderOptions()) == "cpu"  # both would do here
        assert backend_of(double, RenderOptions()) == "reference"
        assert backend_of(random_gaussians(5), GSPLAT) == "gsplat"

    def test_auto_elsewhere(self, library, monkeypatch):
        """A device that is neither the CPU nor gsplat's; nothing is computed there."""
        cloud = random_gaussians(5).to(torch.device("meta"))
        assert backend_of(cloud, RenderOptions()) == "reference"
        monkeypatch.setattr(adapter, "DEVICE", "meta")
        monkeypatch.setattr(adapter, "problem", lambda device: "")
        assert backend_of(cloud, RenderOptions()) == "gsplat"
        assert backend_of(cloud, RenderOptions(alpha_min=0)) == "reference"
        monkeypatch.setattr(adapter, "problem", lambda device: "it is on holiday")
        assert backend_of(cloud, RenderOptions()) == "reference"
        with pytest.raises(UserError, match=r"'gsplat' cannot render this: it is on holiday\. Use 'reference'"):
            backend_of(cloud, GSPLAT)

    def test_tensors_and_options_that_it_refuses(self, library, monkeypatch):
        with pytest.raises(UserError, match=r"float32 tensors on a cpu device; got torch\.float64"):
            backend_of(random_gaussians(5, dtype=torch.float64), GSPLAT)
        with pytest.raises(UserError, match=r"alpha_max is 0\.99, compiled into gsplat is 0\.999; transmittance_min"):
            backend_of(random_gaussians(5), replace(GSPLAT, alpha_max=0.99, transmittance_min=0))
        monkeypatch.setattr(adapter, "DEVICE", "cuda")
        with pytest.raises(UserError, match=r"on a cuda device; got torch\.float32 on cpu"):
            backend_of(random_gaussians(5), GSPLAT)


class TestProblem:
    @pytest.fixture(autouse=True)
    def _forget(self) -> Iterator[None]:
        adapter.problem.cache_clear()
        yield
        adapter.problem.cache_clear()

    def reason(self) -> str:
        with pytest.warns(UserWarning, match="plain torch renders slowly"):
            return adapter.problem(torch.device("cpu"))

    def test_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "gsplat", None)
        assert "splatlearn[cuda]" in self.reason()

    def test_another_release(self, monkeypatch):
        with installed() as library:
            monkeypatch.setattr(library, "rasterization", lambda means, quats, **rest: None)
            reason = self.reason()
        assert "gsplat 1.5.3" in reason and "no argument scales, opacities" in reason

    def test_no_kernels(self, monkeypatch):
        def fail(**given):
            raise AttributeError("'NoneType' object has no attribute 'projection'")

        with installed() as library:
            signature = inspect.signature(library.rasterization)
            fail.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
            monkeypatch.setattr(library, "rasterization", fail)
            assert "no CUDA toolkit" in self.reason()

    def test_a_wrong_picture(self, monkeypatch):
        with installed() as library:
            right = library.rasterization

            def wrong(**given):
                picture, alpha, _ = right(**given)
                return picture.flip(-1), alpha, {}

            wrong.__signature__ = inspect.signature(right)  # pyright: ignore[reportFunctionMemberAccess]
            monkeypatch.setattr(library, "rasterization", wrong)
            assert "it draws colour, depth and alpha" in self.reason()


def test_the_signature_is_that_of_the_library():
    """Every name that the adapter uses, and every default of the stand-in, is the installed library's."""
    pytest.importorskip("gsplat", reason="gsplat is absent: pip install 'splatlearn[cuda]'")
    theirs = inspect.signature(__import__("gsplat").rasterization).parameters
    assert set(adapter.ARGUMENTS) <= set(theirs)
    for name, ours in inspect.signature(StandIn().rasterization).parameters.items():
        assert theirs[name].default == ours.default, name


@pytest.mark.gpu
class TestOnCuda:
    """The library itself against plain torch on the same device."""

    @pytest.fixture(autouse=True)
    def _there(self) -> None:
        if not torch.cuda.is_available() or importlib.util.find_spec("gsplat") is None:
            pytest.skip("needs a CUDA device and gsplat")

    @pytest.mark.parametrize("degree", [0, 4])
    @pytest.mark.parametrize("channels", [0, 1, 29, 70])
    @pytest.mark.parametrize("antialiased", [False, True])
    def test_pictures_and_gradients(self, degree, channels, antialiased):
        cloud, cameras = random_gaussians(400, items=2, degree=degree), random_cameras(2, 90, 61, items=2)
        options = RenderOptions(antialiased=antialiased, background=(0.2, 0.4, 0.6))
        found, expected = (
            run(cloud, cameras, channels, replace(options, backend=name), "cuda") for name in ("gsplat", "reference")
        )
        band = silhouette_band(expected["alpha"])
        assert band.float().mean() < 0.9
        for name in ("color", "features", "alpha"):
            away = (found[name] - expected[name]).masked_select(~band)
            assert away.abs().max().item() < 1e-3 if len(away) else channels == 0, name
            assert relative_error(found[name], expected[name]) < 0.01 if found[name].numel() else True
        for name in (*INPUTS, "by_features"):
            if not expected[name].numel():
                continue
            a, b = found[name].double().flatten(), expected[name].double().flatten()
            assert float(a @ b / (a.norm() * b.norm())) > 0.999, name
            assert relative_error(a, b) < 0.05, name

    def test_auto_takes_it(self):
        assert backend_of(random_gaussians(5).to(torch.device("cuda")), RenderOptions()) == "gsplat"
        assert backend_of(random_gaussians(5), RenderOptions()) == "cpu"

    def test_edges_are_defined_the_same(self):
        """Nothing to see, opacities of 0 and 1, a quaternion of length 0, scales of 0 and of kilometres."""
        cloud, cameras = random_gaussians(40), random_cameras(2)
        cloud.opacities[:4] = torch.tensor([0.0, 1.0, 0.0039, 1.0])
        cloud.quaternions[4:8], cloud.scales[8:12], cloud.scales[12] = 0, 0, 1e4
        behind = replace(cloud, means=cloud.means * torch.tensor([1.0, 1.0, -1.0]))
        for scene in (cloud, behind, random_gaussians(0)):
            found, expected = (run(scene, cameras, 3, options, "cuda") for options in (GSPLAT, REFERENCE))
            for name, value in expected.items():
                assert found[name].isfinite().all(), name
                if not value.any():
                    assert not found[name].any(), name
            assert float((found["color"] - expected["color"]).abs().mean()) < 1e-3
