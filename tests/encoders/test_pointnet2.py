"""PointNet++: VoteNet's keys and sizes, its layers against a plain twin, exact invariance, errors."""

import json

import pytest
import torch

from splatlearn.encoders.pointnet2 import FeaturePropagation, SetAbstraction
from splatlearn.encoders.weights import load_weights, match_keys
from splatlearn.errors import ConfigError, UserError
from splatlearn.registry import encoders
from splatlearn.structures import Points, Tokens


def _points(counts=(300, 200)):
    torch.manual_seed(3)
    rows = sum(counts)
    return Points(xyz=torch.rand(rows, 3) * 2 - 1, counts=counts, attributes={"color": torch.rand(rows, 3)})


def _tokens(counts, channels=4):
    xyz = torch.rand(sum(counts), 3)
    return Tokens(counts=counts, xyz=xyz, features=torch.randn(len(xyz), channels, requires_grad=True))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return encoders.create("pointnet2.tiny")


def test_permuting_points_permutes_rows_bit_for_bit(encoder):
    points = _points()
    order = torch.cat([torch.randperm(300), 300 + torch.randperm(200)])
    with torch.no_grad():
        features, permuted = encoder.eval()(points), encoder(points.rows(order))
    for level in range(3):
        assert torch.equal(permuted.dense([level]), features.dense([level])[order])
    assert torch.equal(permuted.summary, features.summary)


def test_set_abstraction_equals_a_plain_loop():
    torch.manual_seed(0)
    tokens = _tokens((60, 40))
    stage = SetAbstraction(4, (8, 6), 10, 0.3, 5, 0.1).eval()
    coarse = stage(tokens)
    assert coarse.counts == (10, 10)
    for row in (0, 7, 12):
        item = slice(0, 60) if row < 10 else slice(60, 100)
        offsets = tokens.xyz[item] - coarse.xyz[row]
        hits = (offsets.square().sum(1) < 0.3**2).nonzero()[:5, 0]
        rows = torch.cat([offsets[hits] / 0.3, tokens.features[item][hits]], 1)
        for layer in stage.blocks:
            rows = layer(rows)
        assert torch.allclose(coarse.features[row], rows.amax(0), atol=1e-5)


def test_propagation_joins_interpolated_and_own_features():
    torch.manual_seed(0)
    fine, coarse = _tokens((30, 20), 2), _tokens((5, 2), 3)
    stage = FeaturePropagation(3, 2, (7,), 0.1, 1).eval()
    distance = torch.cdist(fine.xyz[:30], coarse.xyz[:5])
    near = distance.topk(3, largest=False)
    weights = 1 / (near.values + 1e-8)
    mixed = (coarse.features[near.indices] * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1)
    expected = stage.blocks[0](torch.cat([mixed, fine.features[:30]], 1))
    assert torch.allclose(stage(fine, coarse).features[:30], expected, atol=1e-5)


def test_levels_of_votenet():
    encoder = encoders.create("pointnet2.votenet", {"neighbors": (8, 8, 8, 8)}).eval()
    features = encoder(_points((2500, 700)))
    assert encoder.channels == (128, 128, 256, 256, 256)
    assert [level.counts for level in features.levels] == [
        (2500, 700),
        (2048, 700),
        (1024, 700),
        (512, 512),
        (256, 256),
    ]
    seeds = features.levels[2]
    assert torch.equal(seeds.xyz[:1024], features.levels[1].xyz[:1024])


@pytest.mark.parametrize("inputs", [(), ("height",)])
def test_votenet_manifests(shared_parity, inputs):
    name = f"votenet_pointnet2_backbone_features{len(inputs)}.json"
    manifest = json.loads((shared_parity / "manifests" / name).read_text())
    state = {f"backbone_net.{k}": torch.randn(v["shape"]) for k, v in manifest["keys"].items()}
    encoder = encoders.create("pointnet2.votenet", {"inputs": inputs})
    values, report = match_keys(encoder, state, "votenet")
    assert report.complete and len(values) == manifest["num_keys"]
    assert all(key.startswith(("up.2.", "up.3.")) for key in report.kept)
    taken = [p.numel() for n, p in encoder.named_parameters() if n in values]
    assert sum(taken) == manifest["num_parameters"]
    load_weights(encoder, state, "votenet")
    weight = state["backbone_net.sa2.mlp_module.layer1.conv.weight"]
    assert torch.equal(encoder.down[1].blocks[1].linear.weight, weight[:, :, 0, 0])


def test_height_is_measured_from_the_floor():
    encoder = encoders.create("pointnet2.tiny", {"inputs": ("height",)}).eval()
    points = _points()
    assert encoder(points).dense().shape == (500, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": (64,)}, "one entry per level is needed, got 1, 2, 2, 2, 2"),
        ({"samples": (64, 0)}, "samples: 1 or more are needed"),
        ({"neighbors": (-1, 8)}, "neighbors: 1 or more are needed"),
        ({"radii": (0.1, -1.0)}, "radii: metres above zero are needed"),
        ({"radii": (0.1, float("inf"))}, "radii: metres above zero are needed"),
        ({"power": 3}, "power: 1 or 2 is allowed, got 3"),
        ({"widths": ((), (8,))}, "widths: a layer or more"),
        ({"up_widths": ((8,), (-8,))}, "up_widths: a layer or more of 1 or more channels"),
        ({"norm_momentum": 0}, r"norm_momentum: a share in \(0, 1\]"),
        ({"power": 3, "norm_momentum": 2}, "power: .*; norm_momentum: "),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        encoders.create("pointnet2.tiny", options)


def test_coordinates_that_are_not_finite_are_refused(encoder):
    points = _points((3,))
    points.xyz[1, 2] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        encoder(points)
