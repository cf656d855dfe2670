"""Projection in plain torch: its conventions."""

import pytest
import torch

from splatlearn.splatting.projection import project, rotations
from splatting.scenes import random_cameras, random_gaussians


def ahead(**changes):
    """Arguments of `project` for one round Gaussian of 0.1 m, two metres ahead of a camera at the origin."""
    arguments = {
        "means": torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64),
        "scales": torch.full((1, 3), 0.1, dtype=torch.float64),
        "quaternions": torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64),
        "world_to_camera": torch.eye(4, dtype=torch.float64),
        "intrinsics": torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]], dtype=torch.float64),
        "size": (64, 48),
        "low_pass": 0.0,
    }
    return arguments | changes


def test_round_gaussian_on_the_axis():
    seen = project(**ahead())
    assert seen.centers[0].tolist() == [32, 24]
    assert seen.depths.item() == 2
    assert torch.allclose(seen.covariances, torch.tensor([[25.0, 0, 25]], dtype=torch.float64))
    assert seen.determinants.item() == pytest.approx(625)
    assert seen.compensations.item() == pytest.approx(1)


def test_low_pass_widens_and_compensation_tells_by_how_much():
    seen = project(**ahead(low_pass=0.3))
    assert torch.allclose(seen.covariances, torch.tensor([[25.3, 0, 25.3]], dtype=torch.float64))
    assert seen.compensations.item() == pytest.approx(25 / 25.3)


def test_quaternions_of_any_length_and_zero():
    turn = torch.tensor([[0.5, 0.5, 0.5, 0.5], [3.0, 3, 3, 3], [0, 0, 0, 0]], dtype=torch.float64)
    turn.requires_grad_()
    matrices = rotations(turn)
    assert torch.allclose(matrices[0], matrices[1])
    assert torch.allclose(matrices[0] @ torch.tensor([1.0, 0, 0], dtype=torch.float64), matrices.new_tensor([0, 1, 0]))
    assert torch.equal(matrices[2], torch.eye(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((matrices * torch.randn_like(matrices)).sum(), turn)
    assert gradient.isfinite().all() and not gradient[2].any()


def test_determinant_of_a_needle_is_exact_in_float32():
    turn = torch.tensor([[1.0, 0.2, -0.3, 0.7]])
    needle = {"scales": torch.tensor([[1e3, 1e-4, 1e-4]]), "quaternions": turn, "low_pass": 0.3}
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in ahead(**needle).items()}
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in single.items()}
    assert project(**single).determinants.item() == pytest.approx(project(**double).determinants.item(), rel=1e-5)


def test_far_outside_the_image_only_depth_moves_the_footprint():
    means = torch.tensor([[9.0, 0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(project(**ahead(means=means)).covariances.sum(), means)
    assert gradient[0, 0] == 0 and gradient[0, 2] != 0


def test_gradcheck():
    cloud, cameras = random_gaussians(4, dtype=torch.float64), random_cameras(1, dtype=torch.float64)
    inputs = (cloud.means, cloud.scales, cloud.quaternions, cameras.world_to_camera[0], cameras.intrinsics[0])

    def flat(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen = project(*values, (44, 28), 0.3)
        return seen.centers, seen.depths, seen.conics, seen.compensations

    assert torch.autograd.gradcheck(flat, tuple(value.clone().requires_grad_() for value in inputs))
