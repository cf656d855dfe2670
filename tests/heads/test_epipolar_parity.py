"""The epipolar transformer against numbers of the official pixelSplat code, in float64.

The stored poses are orthonormal to 6e-7 only (float32), and the least-squares intersection of rays divides by down to
1e-5: the depths agree only where that rounding is treated as the official code does.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads.pixelsplat_case import CASES, Case, close, ours
from splatlearn.heads.attention import fourier_code
from splatlearn.heads.epipolar_lines import epipolar_lines, relative_disparity, sample_features, view_pairs


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared_parity: Path) -> Case:
    return Case(shared_parity / "pixelsplat" / request.param)


def by_pair(case: Case, name: str) -> Tensor:
    """A stored (B V other ...) as (P ...)."""
    return case[name].flatten(0, 2)


def low_cameras(case: Case):
    low = case["mid.epipolar_transformer.downscaler"]
    return case.cameras.resize(low.shape[3], low.shape[2])


class TestSampler:
    def lines(self, case: Case):
        cameras = low_cameras(case)
        pairs = view_pairs(cameras.counts)
        samples = case.config["epipolar_transformer"]["num_samples"]
        return pairs, epipolar_lines(cameras, pairs, case.bounds, samples)

    def test_visible_segments(self, case: Case) -> None:
        _, lines = self.lines(case)
        assert torch.equal(lines.valid, by_pair(case, "out.sampling.valid"))

    def test_samples(self, case: Case) -> None:
        _, lines = self.lines(case)
        cameras = low_cameras(case)
        size = lines.pixels.new_tensor([cameras.width, cameras.height])
        close(lines.pixels / size, by_pair(case, "out.sampling.xy_sample"))

    def test_depths(self, case: Case) -> None:
        _, lines = self.lines(case)
        close(lines.depths, by_pair(case, "mid.depths_raw"))

    def test_features(self, case: Case) -> None:
        pairs, lines = self.lines(case)
        sampled = sample_features(case["mid.epipolar_transformer.downscaler"], lines, pairs)
        close(sampled, by_pair(case, "out.sampling.features"))

    def test_depth_code(self, case: Case) -> None:
        depths, pairs = by_pair(case, "mid.depths_raw"), view_pairs(case.cameras.counts)
        near, far = case.bounds[pairs.view].T[:, :, None, None]
        disparity = relative_disparity(depths.clamp(near, far), near, far)
        code = case.transformer().depth_code
        octaves = case.config["epipolar_transformer"]["num_octaves"]
        raw = fourier_code(disparity[..., None], octaves)
        close(raw, by_pair(case, "mid.epipolar_transformer.depth_encoding.0"))
        close(code(raw), by_pair(case, "mid.epipolar_transformer.depth_encoding"))


class TestTransformer:
    def test_forward_and_gradients(self, case: Case) -> None:
        network = case.transformer()
        backbone = case.views("in.features").requires_grad_()
        weight, bias = (
            case.weights["backbone_projection.1.weight"],
            case.weights["backbone_projection.1.bias"],
        )
        features = torch.einsum("vchw,dc->vdhw", backbone.relu(), weight) + bias[:, None, None]
        out = network(features, case.cameras, order=case.order, bounds=case.bounds)
        close(out, case.views("out.epipolar_features"))
        loss = (out * case.views("in.cotangent.epipolar_features")).sum()
        close(loss[None], case["epipolar.out.loss"])
        loss.backward()
        assert backbone.grad is not None
        close(backbone.grad, case.views("epipolar.grad.in.features"))
        prefix = "epipolar.grad.w."
        stored = {key.removeprefix(prefix): case[key] for key in case.tensors if key.startswith(prefix)}
        mine = dict(network.named_parameters())
        for name, expected in ours(stored, network.config).items():
            gradient = mine[name].grad
            assert gradient is not None, name
            close(gradient, expected, name)
