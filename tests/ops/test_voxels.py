"""Voxel keys, levels, kernel maps and pooling, against dictionaries of coordinates."""

import pytest
import torch

from splatlearn.errors import UserError
from splatlearn.ops.voxels import (
    LIMIT,
    MAX_ITEMS,
    Grid,
    coarsen,
    first_of_voxels,
    pack_keys,
    pool_mean,
    strided_map,
    submanifold_map,
    unique_voxels,
)
from splatlearn.structures import Packed


@pytest.fixture
def coordinates():
    torch.manual_seed(0)
    return torch.randint(-9, 9, (600, 3)), Packed(counts=(350, 0, 250)).item


@pytest.fixture
def voxels(coordinates):
    return unique_voxels(pack_keys(*coordinates), 3)[0]


def _sites(voxels):
    return {(int(b), *map(int, c)): row for row, (b, c) in enumerate(zip(voxels.item, voxels.coordinates))}


def test_keys_hold_item_and_coordinates(coordinates):
    xyz, item = coordinates
    voxels, rows = unique_voxels(pack_keys(xyz, item), 3)
    assert torch.equal(voxels.coordinates[rows], xyz)
    assert torch.equal(voxels.item[rows], item)
    assert voxels.counts[1] == 0 and sum(voxels.counts) == len(voxels)
    assert bool((voxels.keys.diff() > 0).all())


def test_extreme_coordinates_do_not_meet():
    edge = torch.tensor([[-LIMIT, 0, LIMIT - 1], [LIMIT - 1, 0, -LIMIT], [-LIMIT, 1, -LIMIT]])
    voxels, _ = unique_voxels(pack_keys(edge.repeat(2, 1), Packed(counts=(3, 3)).item), 2)
    pairs = submanifold_map(voxels, 5)
    assert len(voxels) == 6 and sum(map(len, pairs.sources)) == 0


@pytest.mark.parametrize("kernel", [3, 5])
def test_submanifold_map_is_every_neighbour(voxels, kernel):
    sites, half = _sites(voxels), kernel // 2
    kernel_map = submanifold_map(voxels, kernel)
    reach = range(-half, half + 1)
    for k, (dx, dy, dz) in enumerate((x, y, z) for x in reach for y in reach for z in reach):
        if k == kernel_map.identity:
            assert (dx, dy, dz) == (0, 0, 0)
            continue
        shifted = {(b, x - dx, y - dy, z - dz): row for (b, x, y, z), row in sites.items()}
        expected = {(row, sites[site]) for site, row in shifted.items() if site in sites}
        found = list(zip(kernel_map.sources[k].tolist(), kernel_map.targets[k].tolist()))
        assert set(found) == expected and len(found) == len(expected)


def test_strided_map_and_its_transpose(voxels):
    coarse, parent = coarsen(voxels)
    assert torch.equal(coarse.coordinates[parent], torch.div(voxels.coordinates, 2, rounding_mode="floor"))
    assert torch.equal(coarse.item[parent], voxels.item)
    kernel_map = strided_map(voxels, coarse, parent)
    seen = torch.cat(kernel_map.sources)
    assert torch.equal(seen.sort().values, torch.arange(len(voxels)))
    for k, (sources, targets) in enumerate(zip(kernel_map.sources, kernel_map.targets)):
        inside = voxels.coordinates[sources] - 2 * coarse.coordinates[targets]
        assert bool((inside == torch.tensor([k // 4, k // 2 % 2, k % 2])).all())
    back = kernel_map.transposed
    assert (back.source_rows, back.target_rows) == (len(coarse), len(voxels))


def test_grid_starts_at_each_items_corner():
    xyz = torch.tensor([[5.0, 5.0, 5.0], [5.3, 5.0, 5.0], [-1.0, 0.0, 0.0]])
    item = torch.tensor([0, 0, 1])
    grid = Grid.fit(xyz, item, 2, 0.1)
    voxels, rows = unique_voxels(grid.keys(xyz, item), 2)
    assert voxels.coordinates[rows].tolist() == [[0, 0, 0], [3, 0, 0], [0, 0, 0]]
    assert torch.allclose(grid.centers(voxels)[rows], xyz + 0.05, atol=1e-5)
    assert torch.equal(grid.keys(grid.centers(voxels), voxels.item), voxels.keys)


def test_errors_say_what_to_do():
    xyz, item = torch.tensor([[0.0, 0, 0], [float("nan"), 0, 0]]), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UserError, match="1 of 2 points have coordinates that are not finite"):
        Grid.fit(xyz, item, 1, 0.1)
    with pytest.raises(UserError, match="use larger voxels or remove far-off points"):
        far = torch.tensor([[0.0, 0, 0], [1e5, 0, 0]])
        Grid.fit(far, item, 1, 0.1).keys(far, item)
    with pytest.raises(UserError, match="voxels tell 4096 apart"):
        Grid.fit(xyz[:1], item[:1], MAX_ITEMS + 1, 0.1)


def test_pool_mean_is_the_mean_and_its_order_does_not_show():
    values, rows = torch.randn(5000, 7), torch.randint(0, 40, (5000,))
    order = torch.randperm(5000)
    pooled = pool_mean(values, rows, 41)
    assert torch.equal(pooled, pool_mean(values[order], rows[order], 41))
    assert torch.allclose(pooled[3], values[rows == 3].mean(0), atol=1e-6)
    assert bool((pooled[40] == 0).all())


def test_pool_mean_gradient():
    values = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.randint(0, 4, (12,))
    assert torch.autograd.gradcheck(lambda v: pool_mean(v, rows, 5), (values,))


def test_first_of_voxels_is_the_first_row_of_each():
    xyz = torch.tensor([[0.0, 0, 0], [0.31, 0, 0], [0.09, 0, 0], [0.35, 0, 0], [5.0, 5, 5], [5.05, 5, 5]])
    assert first_of_voxels(xyz, (4, 2), 0.1).tolist() == [0, 1, 4]
    assert first_of_voxels(xyz[:4].flip(0), (4,), 0.1).tolist() == [0, 1]
    assert first_of_voxels(xyz[:0], (0, 0), 0.1).shape == (0,)


def test_nothing_at_all():
    voxels, _ = unique_voxels(torch.empty(0, dtype=torch.long), 2)
    coarse, parent = coarsen(voxels)
    assert voxels.counts == (0, 0) and len(coarse) == 0
    assert submanifold_map(voxels).target_rows == 0
    assert strided_map(voxels, coarse, parent).target_rows == 0
