"""Hadamard matrices: entries 1 and -1, orthogonal rows. Orders are products of powers of two and of Paley's orders."""

from functools import lru_cache

import torch
from torch import Tensor

from splatlearn.errors import UserError


def hadamard(order: int) -> Tensor:
    """(order order) float64 with H H^T = order I: the Kronecker product of Sylvester's and Paley's matrices.

    Args:
        order: 1, 2, or a multiple of 4 that such a product reaches: 384 = 12 x 32, 1152 = 12 x 12 x 8, 1408 = 44 x 32.

    Raises:
        UserError: there is no such product.
    """
    from scipy import linalg

    factors = _factors(order)
    if not factors:
        raise UserError(f"no Hadamard matrix of order {order} is known here: it has to be 1, 2 or a multiple of 4")
    product = torch.from_numpy(linalg.hadamard(factors[-1])).double()
    for factor in factors[:-1]:
        product = torch.kron(_paley(factor), product)
    return product


@lru_cache
def _factors(order: int) -> tuple[int, ...]:
    """Paley's orders, the smallest first, and a power of two at the end; none where `order` is no such product."""
    if order > 0 and order & (order - 1) == 0:
        return (order,)
    for factor in range(12, order + 1, 4):
        if order % factor == 0 and _prime(factor) and (rest := _factors(order // factor)):
            return (factor, *rest)
    return ()


def _prime(order: int) -> int:
    """The prime q of Paley's construction of an order: q + 1 where q = 3 mod 4, 2 (q + 1) where q = 1; 0 for none."""
    for q, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if q % 4 == remainder and q > 2 and all(q % divisor for divisor in range(2, int(q**0.5) + 1)):
            return q
    return 0


def _paley(order: int) -> Tensor:
    q = _prime(order)
    squares = torch.zeros(q, dtype=torch.float64) - 1
    squares[torch.arange(1, q) ** 2 % q] = 1
    squares[0] = 0
    numbers = torch.arange(q)
    conference = torch.ones(q + 1, q + 1, dtype=torch.float64)
    conference[0, 0] = 0
    conference[1:, 1:] = squares[(numbers[:, None] - numbers) % q]
    if q % 4 == 3:
        conference[1:, 0] = -1
        return conference + torch.eye(q + 1)
    sums, differences = conference.new_tensor([[1, 1], [1, -1]]), conference.new_tensor([[1, -1], [-1, -1]])
    return torch.kron(conference, sums) + torch.kron(torch.eye(q + 1, dtype=torch.float64), differences)
