"""The pooled perceptron: the numbers of the plain expression, and gradients."""

import pytest
import torch

from splatlearn.ops import pairs
from splatlearn.ops.pairs import pooled_perceptron


def _inputs(points=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((points, 4, 3), (6, 3), (6,), (6, 6))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _plain(rows, first, bias, second):
    return ((rows @ first.t() + bias).relu() @ second.t()).amax(1)


@pytest.mark.parametrize("block", [1, 100, pairs.BLOCK])
def test_plain_expression(block, monkeypatch, device):
    monkeypatch.setattr(pairs, "BLOCK", block)
    monkeypatch.setattr(pairs, "DEVICE_BLOCK", block)
    inputs = _inputs()
    expected = _plain(*inputs)
    cotangent = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * cotangent).sum(), inputs)
    there = [value.detach().to(device).requires_grad_() for value in inputs]
    result = pooled_perceptron(*there)
    torch.testing.assert_close(result.cpu(), expected)
    for mine, theirs in zip(torch.autograd.grad((result * cotangent.to(device)).sum(), there), wanted):
        torch.testing.assert_close(mine.cpu(), theirs)


def test_gradcheck():
    assert torch.autograd.gradcheck(pooled_perceptron, _inputs(5))


def test_no_points():
    inputs = _inputs(0)
    result = pooled_perceptron(*inputs)
    result.sum().backward()
    assert result.shape == (0, 6) and not bool(inputs[3].grad.any())


def test_autocast_keeps_the_inputs_precision():
    inputs = _inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = pooled_perceptron(*inputs)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, _plain(*inputs), atol=0.1, rtol=0.02)
    result.sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in inputs)
