"""Rotations of quaternions and of spherical harmonics."""

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from splatlearn.heads.rotations import harmonic_rotations, matrix_to_quaternion, multiply_quaternions
from splatlearn.splatting.harmonics import evaluate


def turns(count: int = 50) -> Tensor:
    special = [[180, 0, 0], [0, 180, 0], [0, 0, 180], [0, 0, 0], [90, 0, 0]]
    rotation = Rotation.concatenate(
        [Rotation.random(count, random_state=0), Rotation.from_euler("xyz", special, degrees=True)]
    )
    return torch.from_numpy(rotation.as_matrix())


def to_matrix(quaternions: Tensor) -> Tensor:
    return torch.from_numpy(Rotation.from_quat(quaternions[:, [1, 2, 3, 0]].numpy()).as_matrix())


class TestQuaternions:
    def test_round_trip(self) -> None:
        assert torch.allclose(to_matrix(matrix_to_quaternion(turns())), turns(), atol=1e-12)

    def test_product_is_composition(self) -> None:
        first, second = matrix_to_quaternion(turns()), matrix_to_quaternion(turns().flip(0))
        product = to_matrix(multiply_quaternions(first, second))
        assert torch.allclose(product, turns() @ turns().flip(0), atol=1e-12)


@pytest.mark.parametrize("degree", range(5))
class TestHarmonics:
    def test_turned_function(self, degree: int) -> None:
        generator = torch.Generator().manual_seed(degree)
        sh = torch.randn(1, (degree + 1) ** 2, 3, generator=generator, dtype=torch.float64)
        directions = torch.randn(20, 3, generator=generator, dtype=torch.float64)
        turn = turns(1)[:1]
        turned = harmonic_rotations(turn, degree) @ sh
        before = evaluate(sh.expand(20, -1, -1), directions)
        after = evaluate(turned.expand(20, -1, -1), directions @ turn[0].T)
        assert torch.allclose(before, after, atol=1e-12)

    def test_orthogonal_and_banded(self, degree: int) -> None:
        matrices = harmonic_rotations(turns(), degree)
        identity = torch.eye(matrices.shape[1], dtype=torch.float64)
        assert torch.allclose(matrices @ matrices.transpose(1, 2), identity.expand_as(matrices), atol=1e-12)
        band = torch.tensor([band for band in range(degree + 1) for _ in range(2 * band + 1)])
        assert matrices[:, band[:, None] != band].abs().sum() < 1e-9

    def test_composition(self, degree: int) -> None:
        first, second = turns(), turns().flip(0)
        product = harmonic_rotations(first, degree) @ harmonic_rotations(second, degree)
        assert torch.allclose(harmonic_rotations(first @ second, degree), product, atol=1e-11)
