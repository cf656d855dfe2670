"""Sparse convolutions against dense ones, which are the slow twin."""

import pytest
import torch
from torch.nn import functional

from splatlearn.errors import UserError
from splatlearn.ops.sparse_conv import SparseConv3d, sparse_convolution
from splatlearn.ops.voxels import coarsen, pack_keys, strided_map, submanifold_map, unique_voxels
from splatlearn.structures import Packed

SIDE = 8


@pytest.fixture
def voxels():
    torch.manual_seed(1)
    xyz = torch.randint(0, SIDE, (220, 3))
    return unique_voxels(pack_keys(xyz, Packed(counts=(120, 100)).item), 2)[0]


def _dense(features, voxels, side):
    grid = features.new_zeros(2, side, side, side, features.shape[1])
    grid = grid.index_put((voxels.item, *voxels.coordinates.unbind(1)), features)
    return grid.permute(0, 4, 1, 2, 3)


def _sample(grid, voxels):
    return grid.permute(0, 2, 3, 4, 1)[(voxels.item, *voxels.coordinates.unbind(1))]


def _cube(weight):
    """(k^3 I O) -> (O I k k k) of torch."""
    edge = round(len(weight) ** (1 / 3))
    return weight.reshape(edge, edge, edge, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def _random(rows, kernel, into=5, out=4):
    features = torch.randn(rows, into, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(kernel**3, into, out, dtype=torch.float64, requires_grad=True)
    return features, weight


def _same(sparse, dense, inputs):
    assert torch.allclose(sparse, dense, atol=1e-10)
    cotangent = torch.randn_like(sparse)
    for a, b in zip(torch.autograd.grad(sparse, inputs, cotangent), torch.autograd.grad(dense, inputs, cotangent)):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_submanifold_equals_dense(voxels, kernel):
    features, weight = _random(len(voxels), kernel)
    sparse = sparse_convolution(features, weight, submanifold_map(voxels, kernel))
    grid = functional.conv3d(_dense(features, voxels, SIDE), _cube(weight), padding=kernel // 2)
    _same(sparse, _sample(grid, voxels), (features, weight))


def test_strided_and_transposed_equal_dense(voxels):
    coarse, parent = coarsen(voxels)
    kernel_map = strided_map(voxels, coarse, parent)
    features, weight = _random(len(voxels), 2)
    grid = functional.conv3d(_dense(features, voxels, SIDE), _cube(weight), stride=2)
    _same(sparse_convolution(features, weight, kernel_map), _sample(grid, coarse), (features, weight))
    features, weight = _random(len(coarse), 2)
    up = _cube(weight).transpose(0, 1)
    grid = functional.conv_transpose3d(_dense(features, coarse, SIDE // 2), up, stride=2)
    _same(sparse_convolution(features, weight, kernel_map.transposed), _sample(grid, voxels), (features, weight))


def test_gradcheck(voxels):
    features, weight = _random(len(voxels), 3, 2, 2)
    kernel_map = submanifold_map(voxels)
    assert torch.autograd.gradcheck(
        lambda f, w: sparse_convolution(f, w, kernel_map), (features, weight), fast_mode=True
    )


def test_only_the_gradients_that_are_asked_for(voxels):
    kernel_map, conv = submanifold_map(voxels), SparseConv3d(3, 4, 3)
    conv(torch.randn(len(voxels), 3), kernel_map).sum().backward()
    assert conv.weight.grad is not None
    conv.weight.requires_grad_(False)
    features = torch.randn(len(voxels), 3, requires_grad=True)
    conv(features, kernel_map).sum().backward()
    assert features.grad is not None


def test_same_numbers_twice(voxels):
    kernel_map, conv = submanifold_map(voxels), SparseConv3d(16, 16, 3)
    features = torch.randn(len(voxels), 16, requires_grad=True)
    runs = []
    for _ in range(2):
        output = conv(features, kernel_map)
        runs.append((output, *torch.autograd.grad(output.square().sum(), (features, conv.weight))))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_autocast_runs_and_keeps_gradients_in_float32(voxels):
    kernel_map, conv = submanifold_map(voxels), SparseConv3d(8, 8, 3)
    features = torch.randn(len(voxels), 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = conv(features, kernel_map)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and conv.weight.grad.dtype == torch.float32
    assert torch.allclose(output.float(), conv(features, kernel_map), atol=0.1)


@pytest.mark.parametrize("change", ["same", "strided", "transposed"])
def test_half_precision_is_rounded_once(voxels, change):
    """Of the sum over offsets: rounding after every offset errs by more than the last bit."""
    coarse, parent = coarsen(voxels)
    stride = strided_map(voxels, coarse, parent)
    kernel_map = {"same": submanifold_map(voxels), "strided": stride, "transposed": stride.transposed}[change]
    weight = torch.ones(len(kernel_map.sources), 1, 1).bfloat16()
    features = (1 + torch.rand(kernel_map.source_rows, 1)).bfloat16().requires_grad_()
    output = sparse_convolution(features, weight, kernel_map)
    (gradient,) = torch.autograd.grad(output.sum(), features)
    exact = features.detach().double().requires_grad_()
    expected = sparse_convolution(exact, weight.double(), kernel_map)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert torch.equal(output, expected.bfloat16())
    assert torch.equal(gradient, wanted.bfloat16())


def test_wrong_shapes_are_refused(voxels):
    kernel_map = submanifold_map(voxels)
    with pytest.raises(UserError, match="do not fit a map of 27 offsets"):
        sparse_convolution(torch.randn(len(voxels), 3), torch.randn(8, 3, 4), kernel_map)
    with pytest.raises(UserError, match=f"from {len(voxels)} rows"):
        sparse_convolution(torch.randn(2, 3), torch.randn(27, 3, 4), kernel_map)


def test_one_voxel_and_none():
    keys = pack_keys(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    conv = SparseConv3d(3, 4, 3)
    one, none = unique_voxels(keys, 1)[0], unique_voxels(keys[:0], 1)[0]
    features = torch.randn(1, 3)
    assert torch.allclose(conv(features, submanifold_map(one)), features @ conv.weight[13])
    assert conv(features[:0], submanifold_map(none)).shape == (0, 4)
