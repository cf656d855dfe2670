"""A linear layer on what is made again: the numbers of the plain expression, and what is kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from splatlearn.ops import linear
from splatlearn.ops.linear import linear_of


def _parts(rows=13, dtype=torch.float64):
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(6).to(dtype), nn.Linear(6, 4).to(dtype)
    nn.init.normal_(norm.weight)
    return norm, layer, torch.randn(rows, 6, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("block", [1, linear.BLOCK])
def test_plain_expression(block, monkeypatch):
    monkeypatch.setattr(linear, "BLOCK", block)
    norm, layer, rows = _parts(200)
    expected, leaves = layer(norm(rows)), (rows, layer.weight, layer.bias, norm.weight, norm.bias)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * cotangent).sum(), leaves)
    result = linear_of(norm, *leaves)
    torch.testing.assert_close(result, expected)
    for mine, theirs in zip(torch.autograd.grad((result * cotangent).sum(), leaves), wanted):
        torch.testing.assert_close(mine, theirs)


def test_gradcheck_of_an_activation():
    _, layer, rows = _parts()
    assert torch.autograd.gradcheck(lambda *leaves: linear_of(functional.gelu, *leaves), (rows, *layer.parameters()))


def test_nothing_of_the_cheap_part_is_kept():
    norm, layer, rows = _parts()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        linear_of(norm, rows, layer.weight, layer.bias, norm.weight, norm.bias)
    assert sorted(value.numel() for value in kept) == [6, 6, 24, rows.numel()]


def test_autocast():
    norm, layer, rows = _parts(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_of(norm, rows, layer.weight, layer.bias, norm.weight, norm.bias)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert rows.grad.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(result.float(), layer(norm(rows)), atol=0.05, rtol=0.02)
