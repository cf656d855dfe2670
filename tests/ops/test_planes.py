"""Points on grids: the numbers of dense, padded convolutions, and gradients."""

import pytest
import torch
from torch.nn import functional

from splatlearn.ops import planes
from splatlearn.ops.planes import Plane, mix_on_plane

SHAPE, COUNTS, WIDTH = (7, 5), (40, 3, 25), 6


def _cells(counts=COUNTS, shape=SHAPE):
    """Corners and rims are occupied, and most cells are empty."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(sum(counts), 2, generator=generator) ** 3 * torch.tensor(shape)
    cells[::5] = torch.tensor(shape) - 1.0
    return cells.long(), torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def _weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sizes = ((9, WIDTH), (WIDTH,), (9, WIDTH), (WIDTH,))
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def _plain(rows, first, first_bias, second, second_bias, cells, item, act, shape=SHAPE):
    results = []
    for number in range(int(item.max()) + 1):
        own, (i, j) = rows[item == number], cells[item == number].unbind(1)
        flat = i * shape[1] + j
        counts = torch.bincount(flat, minlength=shape[0] * shape[1]).clamp_min(1)[:, None]
        means = own.new_zeros(shape[0] * shape[1], WIDTH).index_add(0, flat, own) / counts
        grid = means.t().reshape(1, WIDTH, *shape)
        for kernel, bias, last in ((first, first_bias, False), (second, second_bias, True)):
            kernel = kernel.t().reshape(WIDTH, 1, 3, 3)
            grid = functional.conv2d(grid, kernel, bias, padding=1, groups=WIDTH)
            grid = grid if last else act(grid)
        results.append(grid[0, :, i, j].t())
    return torch.cat(results)


@pytest.mark.parametrize("block", [1, planes.BLOCK], ids=["blocks", "whole"])
@pytest.mark.parametrize("act", [torch.relu, functional.gelu], ids=["relu", "gelu"])
def test_dense_convolutions(act, block, monkeypatch, device):
    monkeypatch.setattr(planes, "BLOCK", block)
    cells, item = _cells()
    rows, weights = torch.randn(len(item), WIDTH, dtype=torch.float64).requires_grad_(), _weights()
    expected = _plain(rows, *weights, cells, item, act)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * cotangent).sum(), (rows, *weights))
    there = [value.detach().to(device).requires_grad_() for value in (rows, *weights)]
    plane = Plane.fit(cells.to(device), item.to(device), len(COUNTS), SHAPE)
    result = mix_on_plane(there[0], (there[1], there[2]), (there[3], there[4]), plane, act)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-10, rtol=1e-10)
    found = torch.autograd.grad((result * cotangent.to(device)).sum(), there)
    for mine, theirs in zip(found, wanted):
        torch.testing.assert_close(mine.cpu(), theirs, atol=1e-10, rtol=1e-10)


def test_gradcheck():
    cells, item = _cells((9, 4), (4, 3))
    plane = Plane.fit(cells, item, 2, (4, 3))
    rows = torch.randn(len(item), WIDTH, dtype=torch.float64).requires_grad_()

    def mixed(rows, a, b, c, d):
        return mix_on_plane(rows, (a, b), (c, d), plane, functional.gelu)

    assert torch.autograd.gradcheck(mixed, (rows, *_weights()))


def test_only_cells_that_reach_a_point_are_computed():
    cells = torch.tensor([[0, 0], [0, 0], [100, 50]])
    plane = Plane.fit(cells, torch.tensor([0, 0, 0]), 1, (200, 100))
    assert plane.sizes[:, 0].tolist() == [2, 1]
    assert plane.reach.shape == (9, 4 + 9) and plane.near.shape == (9, 2)
    assert (plane.near[:, 0] == 13).sum() == 5, "five neighbours of a corner lie beyond the rim"
    assert (plane.near[:, 1] == 13).sum() == 0


def test_items_have_grids_of_their_own():
    """The last row of one grid does not touch the first of the next."""
    cells, item = torch.tensor([[3, 1], [0, 1]]), torch.tensor([0, 1])
    together = Plane.fit(cells, item, 2, (4, 3))
    alone = [Plane.fit(cells[i : i + 1], item[:1], 1, (4, 3)) for i in range(2)]
    assert together.reach.shape[1] == sum(plane.reach.shape[1] for plane in alone)


def test_autocast_sums_in_float32():
    """Thousands of points of large values in a cell: half precision would overflow."""
    rows, weights = torch.full((5000, WIDTH), 100.0), _weights(torch.float32)
    plane = Plane.fit(torch.zeros(5000, 2, dtype=torch.long), torch.zeros(5000, dtype=torch.long), 1, (4, 4))
    expected = mix_on_plane(rows, (weights[0], weights[1]), (weights[2], weights[3]), plane, torch.relu)
    with torch.autocast("cpu", torch.bfloat16):
        found = mix_on_plane(rows.bfloat16(), (weights[0], weights[1]), (weights[2], weights[3]), plane, torch.relu)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
