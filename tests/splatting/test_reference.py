"""The reference backend: compositing by its definition, parity with gsplat, gradcheck."""

import json

import pytest
import torch
from safetensors.torch import load_file

from splatlearn.splatting import RenderOptions, render
from splatlearn.splatting.reference import composite
from splatting.scenes import INPUTS, assemble, random_cameras, random_gaussians, tensors_of

EXACT = RenderOptions(backend="reference", alpha_min=0, transmittance_min=0)


def stack(opacities: list[float], options: RenderOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Blends footprints that all lie on one pixel; the values are one-hot, so the result is the weights."""
    number = len(opacities)
    centers = torch.full((number, 2), 0.5, dtype=torch.float64)
    conics = torch.tensor([[1.0, 0, 1]], dtype=torch.float64).expand(number, 3)
    alphas = torch.tensor(opacities, dtype=torch.float64)
    pixel = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    blended, alpha = composite(centers, conics, alphas, torch.eye(number).double(), pixel, options)
    return blended[0], alpha[0]


def test_weights_and_transmittance():
    weights, alpha = stack([0.5, 0.5, 0.8], EXACT)
    assert torch.allclose(weights, weights.new_tensor([0.5, 0.25, 0.2]))
    assert alpha.item() == pytest.approx(0.95)
    assert weights.sum().item() == pytest.approx(alpha.item())


def test_cut_cap_and_stop():
    options = RenderOptions(alpha_min=0.1, alpha_max=0.9, transmittance_min=0.05)
    weights, alpha = stack([0.09, 1.0, 0.4, 0.6, 0.2], options)
    expected = [0, 0.9, 0.04, 0, 0]  # the fourth would leave 0.024: the pixel stops before it
    assert torch.allclose(weights, weights.new_tensor(expected))
    assert alpha.item() == pytest.approx(0.94)


def test_weights_sum_to_alpha_over_a_whole_image():
    cloud, cameras = random_gaussians(60, dtype=torch.float64), random_cameras(1, dtype=torch.float64)
    white = torch.zeros(60, 1, 3, dtype=torch.float64)
    white[:] = 0.5 / 0.28209479177387814
    tensors = tensors_of(cloud, cameras, torch.float64) | {"sh": white}
    seen = render(*assemble(tensors, cloud, cameras), options=RenderOptions(backend="reference"))
    assert torch.allclose(seen.color, seen.alpha.expand_as(seen.color), atol=1e-12)


def test_gradcheck_of_every_input():
    cloud = random_gaussians(5, degree=1, seed=2, dtype=torch.float64)
    cameras = random_cameras(1, width=7, height=5, dtype=torch.float64)
    tensors = tensors_of(cloud, cameras, torch.float64)
    with torch.no_grad():
        tensors["opacities"].mul_(0.9)

    used = torch.ones(3, 3, dtype=torch.float64)
    used[0, 1] = 0  # skew is refused

    def flat(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        changed = dict(zip(INPUTS, values, strict=True))
        changed["intrinsics"] = changed["intrinsics"] * used
        rendering = render(*assemble(changed, cloud, cameras), options=EXACT)
        return rendering.color, rendering.depth, rendering.alpha

    assert torch.autograd.gradcheck(flat, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("case", ["projection_and_sh_1_camera", "projection_and_sh_3_cameras"])
def test_parity_with_gsplat(shared_parity, case):
    folder = shared_parity / "gsplat" / case
    io, config = load_file(folder / "io.safetensors"), json.loads((folder / "case.json").read_text())["config"]
    width, height = config["width"], config["height"]
    pixels = random_cameras(1, width, height, dtype=torch.float64).pixel_grid().reshape(-1, 2)
    names = ("pinhole.means2d", "pinhole.conics")
    centers, conics = (io[f"out.{name}"].clone().requires_grad_() for name in names)
    colors, opacities = io["in.colors"].requires_grad_(), io["in.opacities"].expand(len(centers), -1)
    opacities = opacities.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for view in range(config["cameras"]):
        depth = io["out.pinhole.depths"][view]
        rows = io["out.pinhole.valid"][view].nonzero().squeeze(1)
        rows = rows[depth[rows].argsort()]
        parts = (centers[view][rows], conics[view][rows], opacities[view][rows], colors[view][rows])
        blended, alpha = composite(*parts, pixels, EXACT)
        assert torch.allclose(blended, io["out.render.colors"][view].reshape(-1, 4), rtol=1e-9, atol=1e-10)
        assert torch.allclose(alpha, io["out.render.alphas"][view].reshape(-1), rtol=1e-9, atol=1e-10)
        loss = loss + (blended * io["in.cotangent.render"][view].reshape(-1, 4)).sum()
        loss = loss + (alpha * io["in.cotangent.render_alphas"][view].reshape(-1)).sum()
    gradients = torch.autograd.grad(loss, [centers, conics, opacities, colors])
    for name, gradient in zip(("means2d", "conics", "opacities", "colors"), gradients, strict=True):
        expected = io[f"grad.render.{name}"]
        assert (gradient - expected).abs().max() < 1e-10 + 1e-9 * expected.abs().max()
