"""Depth bins, adapter and opacities against numbers of the official pixelSplat code, in float64.

The network around them (backbone projection, image skip) is put together here.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from heads.pixelsplat_case import CASES, Case, close, covariances, official_harmonics, ours
from splatlearn.heads.gaussians import DepthConfig, DepthHead
from splatlearn.structures import Packed


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared_parity: Path) -> Case:
    return Case(shared_parity / "pixelsplat" / request.param)


def attribute_rows(coefficients: int) -> Tensor:
    """Where our rows of the last layer are in the official one: w x y z, coefficient-major colours."""
    sh = torch.arange(3 * coefficients).view(3, coefficients).T.flatten() + 9
    return torch.cat([torch.tensor([0, 1, 2, 3, 4, 8, 5, 6, 7]), sh])


def depth_rows(bins: int) -> Tensor:
    """Logits, then offsets; the official layer has them in turn."""
    return torch.arange(2 * bins).view(bins, 2).T.flatten()


class Network(nn.Module):
    """Backbone projection, epipolar transformer, image skip and depth head with the stored weights."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, config, weights = case, case.config, case.weights
        degree = config["gaussian_adapter"]["sh_degree"]
        self.deterministic = config["deterministic"]
        mapping = config["opacity_mapping"]
        progress = min(config["global_step"] / mapping["warm_up"], 1)
        exponent = 2 ** (mapping["initial"] + progress * (mapping["final"] - mapping["initial"]))
        self.epipolar = case.transformer()
        self.projection = nn.Linear(config["backbone_d_out"], config["d_feature"])
        self.skip = nn.Conv2d(3, config["d_feature"], 7, padding=3)
        head = DepthConfig(
            per_point=1 if self.deterministic else config["gaussians_per_pixel"],
            sh_degree=degree,
            scale_min=config["gaussian_adapter"]["gaussian_scale_min"],
            scale_max=config["gaussian_adapter"]["gaussian_scale_max"],
            bins=config["num_monocular_samples"],
            spacing="disparity",
            selection="top" if self.deterministic else "sampled",
            opacity="mapped",
            opacity_exponent=exponent,
            rotate_sh=False,
        )
        self.head = DepthHead(head, config["d_feature"])
        self.double()
        self.maps = {
            "depth_predictor.projection.1": (self.head.depth, depth_rows(head.bins)),
            "to_gaussians.1": (self.head.attributes, attribute_rows(head.coefficients)),
            "backbone_projection.1": (self.projection, slice(None)),
            "high_resolution_skip.0": (self.skip, slice(None)),
        }
        with torch.no_grad():
            for name, (layer, rows) in self.maps.items():
                layer.weight.copy_(weights[f"{name}.weight"][rows])
                layer.bias.copy_(weights[f"{name}.bias"][rows])

    def features(self, backbone: Tensor, image: Tensor) -> Tensor:
        projected = self.projection(backbone.permute(0, 2, 3, 1).relu()).permute(0, 3, 1, 2)
        fused = self.epipolar(projected, self.case.cameras, order=self.case.order, bounds=self.case.bounds)
        return (fused + self.skip(image).relu()).flatten(2).transpose(1, 2).flatten(0, 1)

    def forward(self, backbone: Tensor, image: Tensor):
        return self.from_features(self.features(backbone, image))

    def from_features(self, features: Tensor):
        case = self.case
        pixels = case.config["width"] * case.config["height"]
        views = len(case.cameras)
        rows = Packed(counts=(pixels,) * views, attributes={"pixel": torch.arange(pixels).repeat(views)})
        uniform = case["in.uniform"].flatten(0, 2).flatten(1)
        return self.head(features, rows, case.cameras, bounds=case.bounds, uniform=uniform)

    def official(self, gaussians) -> dict[str, Tensor]:
        """The four official outputs of our Gaussians, (B G ...)."""
        batch, views = self.case.config["batch"], len(self.case.cameras)
        turn = self.case.views("in.extrinsics")[:, :3, :3]
        sh = official_harmonics(gaussians.sh.unflatten(0, (views, -1)), turn)
        unproduced = self.case.config["gaussians_per_pixel"] if self.deterministic else 1
        return {
            "means": gaussians.means.view(batch, -1, 3),
            "covariances": covariances(gaussians).view(batch, -1, 3, 3),
            "harmonics": sh.flatten(0, 1).unflatten(0, (batch, -1)).transpose(2, 3),
            "opacities": gaussians.opacities.view(batch, -1) / unproduced,
        }


class TestHead:
    def test_whole_network(self, case: Case) -> None:
        network = Network(case)
        backbone, image = (case.views(name).requires_grad_() for name in ("in.features", "in.image"))
        outputs = network.official(network(backbone, image))
        for name, value in outputs.items():
            close(value, case[f"out.{name}"], name)
        loss = sum((case[f"in.cotangent.{name}"] * value).sum() for name, value in outputs.items())
        assert isinstance(loss, Tensor)
        close(loss[None], case["out.loss"])
        loss.backward()
        assert backbone.grad is not None and image.grad is not None
        close(backbone.grad, case.views("grad.in.features"), "features")
        close(image.grad, case.views("grad.in.image"), "image")
        self.check_weights(case, network)

    def check_weights(self, case: Case, network: Network) -> None:
        prefix, checked = "grad.w.", 0
        stored = {key.removeprefix(prefix): case[key] for key in case.tensors if key.startswith(prefix)}
        named = dict(network.epipolar.named_parameters())
        for name, expected in ours(stored, network.epipolar.config).items():
            gradient = named[name].grad
            assert gradient is not None
            close(gradient, expected, name)
            checked += 1
        for name, (layer, rows) in network.maps.items():
            for kind in ("weight", "bias"):
                if f"{name}.{kind}" in stored:
                    close(getattr(layer, kind).grad, stored[f"{name}.{kind}"][rows], name)
                    checked += 1
        assert checked >= len(stored)

    def test_scale_unit(self, case: Case) -> None:
        inverse = torch.linalg.inv(case.cameras.intrinsics[:, :2, :2])
        close(0.1 * inverse.sum((1, 2)), case.views("mid.scale_multiplier"))

    def test_scales(self, case: Case) -> None:
        network = Network(case)
        gaussians = network(case.views("in.features"), case.views("in.image"))
        close(gaussians.scales, case["out.adapter.scales"].flatten(0, 4))
