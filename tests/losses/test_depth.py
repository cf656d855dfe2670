"""Losses of depth: what they forgive, and what they do not see."""

import math

import torch

from splatlearn.losses.depth import gradient_difference, scale_invariant


def depth(seed: int = 0) -> torch.Tensor:
    return 1 + 4 * torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(seed))


def test_the_truth_costs_nothing():
    assert float(scale_invariant(depth(), depth()).max()) <= 1e-4 + 1e-9
    assert float(gradient_difference(depth(), depth()).max()) == 0


def test_a_factor_is_mostly_forgiven():
    found = scale_invariant(2 * depth(), depth())
    assert torch.allclose(found, torch.full((2,), math.log(2) * math.sqrt(1 - 0.85)), atol=1e-5)
    assert float(gradient_difference(2 * depth(), depth()).max()) < 1e-5


def test_each_image_by_itself():
    both = torch.stack([depth()[0], 3 * depth()[1]])
    assert torch.equal(scale_invariant(both, depth())[0], scale_invariant(depth()[:1], depth()[:1])[0])


def test_unknown_pixels_count_for_nothing():
    true, wrong = depth(), depth()
    true[:, :8] = 0
    wrong[:, :8] = 77
    assert float(scale_invariant(wrong, true).max()) <= 1e-4 + 1e-9
    assert float(gradient_difference(wrong, true).max()) == 0
    assert float(scale_invariant(wrong, torch.zeros_like(true)).max()) <= 1e-4 + 1e-9


def test_a_step_is_seen_at_every_size():
    true = torch.ones(1, 16, 16)
    step = true.clone()
    step[:, :, 8:] = math.e
    # One of 15, 7, 3, 1 pairs of neighbouring columns differs by 1 at the four sizes; rows do not.
    assert torch.allclose(gradient_difference(step, true), torch.tensor([1 / 15 + 1 / 7 + 1 / 3 + 1.0]))


def test_gradients_are_finite():
    prediction = depth(1).requires_grad_()
    true = depth()
    true[0] = 0
    (scale_invariant(prediction, true).sum() + gradient_difference(prediction, true).sum()).backward()
    assert bool(prediction.grad.isfinite().all()) and float(prediction.grad[0].abs().max()) == 0
