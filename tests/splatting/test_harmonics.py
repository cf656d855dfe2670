"""Spherical harmonics: order, signs, normalisation."""

import math

import pytest
import torch

from splatlearn.errors import UserError
from splatlearn.splatting import harmonics
from splatlearn.structures import SH_C0


def directions(number: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.nn.functional.normalize(torch.randn(number, 3, generator=draw, dtype=torch.float64), dim=1)


def test_first_bands_have_the_order_and_signs_of_3dgs_files():
    x, y, z = directions(20).unbind(1)
    values = harmonics.basis(directions(20), 2)
    assert values.shape == (20, 9)
    assert torch.allclose(values[:, 0], torch.tensor(SH_C0).double()) and math.sqrt(1 / (4 * math.pi)) == SH_C0
    expected = {1: -0.4886025119 * y, 2: 0.4886025119 * z, 3: -0.4886025119 * x, 4: 1.0925484306 * x * y}
    for column, value in expected.items():
        assert torch.allclose(values[:, column], value, atol=1e-9)


def test_addition_theorem_per_band():
    squares = harmonics.basis(directions(50), 4).square()
    for degree in range(5):
        band = squares[:, degree**2 : (degree + 1) ** 2].sum(1)
        assert torch.allclose(band, torch.full_like(band, (2 * degree + 1) / (4 * torch.pi)))


def test_basis_is_orthonormal():
    polar, weights = torch.tensor([[-0.9061798459, 0.2369268851], [-0.5384693101, 0.4786286705], [0, 0.5688888889]]).T
    z = torch.cat([polar, -polar[:2]]).double()
    weights = torch.cat([weights, weights[:2]]).double()
    turn = torch.arange(12, dtype=torch.float64) * (2 * torch.pi / 12)
    z, turn = torch.meshgrid(z, turn, indexing="ij")
    ring = (1 - z * z).sqrt()
    points = torch.stack([ring * turn.cos(), ring * turn.sin(), z], -1).reshape(-1, 3)
    area = weights.repeat_interleave(12) * 2 * torch.pi / 12
    gram = torch.einsum("p,pi,pj->ij", area, *[harmonics.basis(points, 4)] * 2)
    assert torch.allclose(gram, torch.eye(25, dtype=torch.float64), atol=1e-6)


def test_length_of_a_direction_does_not_matter_and_color_is_cut_at_zero():
    sh = torch.randn(20, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(harmonics.evaluate(sh, directions(20)), harmonics.evaluate(sh, 7 * directions(20)))
    color = harmonics.colors(3 * sh, directions(20))
    assert (color >= 0).all() and (color == 0).any() and (color > 0).any()


@pytest.mark.parametrize("coefficients", [0, 2, 5, 24, 36])
def test_wrong_number_of_coefficients_is_named(coefficients):
    with pytest.raises(UserError, match=f"{coefficients} coefficients.*1, 4, 9, 16 or 25"):
        harmonics.degree_of(coefficients)
