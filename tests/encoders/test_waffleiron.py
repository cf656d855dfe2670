"""WaffleIron: what packing, thinning and taking turns on planes must not change, and what is refused."""

import pytest
import torch

from encoders.waffleiron_twin import Twin, pad
from splatlearn.encoders.base import stack_inputs
from splatlearn.encoders.layouts import LAYOUTS
from splatlearn.encoders.waffleiron import WaffleIron, WaffleIronConfig
from splatlearn.errors import ConfigError, UserError
from splatlearn.registry import encoders
from splatlearn.structures import Points

SMALL = WaffleIronConfig(depth=4, width=12, grids=((16, 16), (16, 4), (16, 4)), neighbors=6)


def scan(*counts, seed=0, size=(50.0, 50.0, 3.0)):
    """Points within the field of view, most of them near the origin."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randn(sum(counts), 3, generator=generator).clamp(-2, 2) / 2 * torch.tensor(size)
    reflectance = torch.randn(sum(counts), generator=generator)
    return Points(xyz=xyz, counts=counts, attributes={"reflectance": reflectance})


def make(config=SMALL, seed=0):
    """An encoder whose norms have seen data."""
    torch.manual_seed(seed)
    encoder = WaffleIron(config)
    encoder(scan(300, seed=7))
    return encoder.eval()


def twin_of(encoder):
    """The padded twin with the same weights."""
    twin, own = Twin(encoder.config).to(encoder.dtype), encoder.state_dict()
    layout = LAYOUTS["waffleiron"]
    for key, value in twin.state_dict().items():
        name, like = layout.convert(key, value)
        mine = (
            own[name].t() if name.endswith(("l.first.weight", "l.second.weight")) and "spatial" in name else own[name]
        )
        assert like.shape == own[name].shape
        value.copy_(mine.reshape(value.shape))
    return twin.train(encoder.training)


def padded(encoder, points, length):
    """The twin's features of the real rows."""
    inputs = stack_inputs(points, encoder.config.inputs)
    shapes = enumerate(encoder.config.grids)
    cells = torch.stack([encoder.cells(points, plane) @ torch.tensor([s[1], 1]) for plane, s in shapes], 1)
    parts = (inputs, points["neighbors"], cells, torch.ones(len(points), 1, dtype=inputs.dtype))
    fills = (0, length - 1, 0, 0)
    rows = [pad(part.split(points.counts), length, fill).transpose(1, 2) for part, fill in zip(parts, fills)]
    out = twin_of(encoder)(*rows[:3], rows[3][:, 0])
    return torch.cat([scan[:, :count].t() for scan, count in zip(out, points.counts)])


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_padding_would_change_nothing(norm, act):
    """Scans of mixed lengths: packed, padded, and padded further."""
    encoder = make(WaffleIronConfig(depth=3, width=12, grids=SMALL.grids, neighbors=6, norm=norm, act=act)).double()
    points = encoder.config.precompute(scan(90, 31, 7).in_precision(torch.float64))
    packed = encoder(points).dense()
    for length in (90, 140):
        torch.testing.assert_close(packed, padded(encoder, points, length), atol=1e-10, rtol=1e-10)


def test_train_mode_counts_real_points_alone():
    """One scan of the padded twin has no padding, so its statistics are those of packed rows."""
    encoder = make().double().train()
    points = encoder.config.precompute(scan(120).in_precision(torch.float64))
    torch.testing.assert_close(encoder(points).dense(), padded(encoder, points, 120), atol=1e-9, rtol=1e-9)


class TestPreparation:
    def test_neighbours_are_rows_of_the_item(self):
        points = SMALL.precompute(scan(50, 40))
        alone = torch.cat([SMALL.precompute(item)["neighbors"] for item in points.rows(torch.arange(90)).split()])
        assert torch.equal(points["neighbors"], alone)
        distances = torch.cdist(points.xyz[50:], points.xyz[50:]).fill_diagonal_(torch.inf)
        assert torch.equal(points["neighbors"][50:, 0], distances.argmin(1))
        assert SMALL.precompute(points) is points

    def test_few_points_have_themselves_in_place_of_neighbours(self):
        points = WaffleIronConfig().precompute(scan(1, 3))
        assert points["neighbors"].shape == (4, 16) and not bool(points["neighbors"][0].any())
        assert points["neighbors"][1:, 2:].eq(torch.arange(3)[:, None]).all()
        assert bool(torch.isfinite(make(WaffleIronConfig(depth=1, width=4))(points).dense()).all())

    def test_one_point_a_voxel_and_none_outside(self):
        points = scan(200)
        near = Points(xyz=points.xyz, attributes={"reflectance": points["reflectance"] + 1})
        far = Points(xyz=points.xyz + 500, attributes=points.attributes)
        kept = SMALL.kept(Points.pack([points, near, far]).regroup((600,)))
        assert len(torch.unique(kept % 200)) == len(kept) and kept.max() < 400
        assert len(kept) > 150 and 0 < (kept < 200).sum() < len(kept), "either of two may be kept"

    def test_every_point_has_the_features_of_the_nearest_kept_one(self):
        encoder, points = make(), scan(200, 100)
        outside = points.xyz.clone()
        outside[0] = torch.tensor([90.0, 0.0, 0.0])
        points = Points(xyz=outside, counts=points.counts, attributes=points.attributes)
        kept = points.rows(encoder.config.kept(points))
        features = encoder(encoder.config.precompute(kept)).dense()
        split = torch.cdist(points.xyz[:200], kept.xyz[: kept.counts[0]]).argmin(1)
        dense = encoder(points).dense()
        assert len(dense) == 300 and len(kept) < 300
        torch.testing.assert_close(dense[:200], features[split])

    def test_precomputed_points_are_taken_as_they_are(self):
        encoder = make()
        points = scan(64)
        twice = Points(xyz=points.xyz.repeat(2, 1), attributes={"reflectance": points["reflectance"].repeat(2)})
        assert len(encoder(encoder.config.precompute(twice)).levels[0]) == 128
        assert len(encoder(twice).levels[0]) == 64
        outside = Points(xyz=points.xyz * 10, attributes=points.attributes)
        assert bool(torch.isfinite(encoder(encoder.config.precompute(outside)).dense()).all())

    def test_geometry_and_inputs_may_be_augmented_apart(self):
        encoder, points = make(), SMALL.precompute(scan(80))
        given = points.with_attributes(position=points.xyz, radius=points.xyz.norm(dim=1))
        turned = points.with_attributes(position=points.xyz[:, [1, 0, 2]], radius=points.xyz.norm(dim=1))
        assert torch.equal(encoder(points).dense(), encoder(given).dense())
        assert not torch.allclose(encoder(points).dense(), encoder(turned).dense())

    def test_an_empty_item(self):
        features = make()(scan(60, 0, 40))
        assert features.levels[0].counts[1] == 0 and not bool(features.summary[1].any())
        assert len(features.dense()) == 100

    def test_a_scan_outside_the_field_of_view(self):
        points = scan(20, 20)
        points.xyz[20:] += 1000
        with pytest.raises(UserError, match=r"no point of items \[1\] lies in the field of view.*set fov_min"):
            make()(points)
        points.xyz[0, 0] = torch.nan
        with pytest.raises(UserError, match="not finite; drop them first"):
            make()(points)


def test_drop_path_skips_items_and_keeps_the_mean():
    config = WaffleIronConfig(depth=1, width=12, grids=SMALL.grids, drop_path=0.5)
    encoder = make(config).train()
    mix, rows = encoder.blocks[0].channel, torch.randn(30, 12)
    item, draws = torch.arange(3).repeat_interleave(10), []
    whole = mix.eval()(rows, item, 3) - rows
    mix.train()
    for _ in range(400):
        change = mix(rows, item, 3) - rows
        dropped = [bool((change[10 * i : 10 * i + 10] == 0).all()) for i in range(3)]
        for i, gone in enumerate(dropped):
            expected = whole[10 * i : 10 * i + 10] * (0 if gone else 2)
            torch.testing.assert_close(change[10 * i : 10 * i + 10], expected, atol=1e-5, rtol=1e-4)
        draws.append(dropped)
    shares = torch.tensor(draws, dtype=torch.float32).mean(0)
    assert bool((shares - 0.5).abs().max() < 0.12), "every item draws for itself"


def test_autocast_is_close():
    encoder, points = make(), scan(200)
    expected = encoder(points).dense()
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(points).dense()
    found.float().square().mean().backward()
    assert torch.nn.functional.cosine_similarity(found.float(), expected, dim=1).min() > 0.99
    assert all(bool(torch.isfinite(p.grad).all()) for p in encoder.parameters())


def test_grids_hold_no_weights():
    encoder = make()
    other = WaffleIron(WaffleIronConfig(depth=4, width=12, planes=("xy",), grids=((9, 5),), neighbors=3))
    other.load_state_dict(encoder.state_dict())
    assert bool(torch.isfinite(other.eval()(scan(100)).dense()).all())


def test_presets():
    sizes = {name: encoders.config(f"waffleiron.{name}") for name in encoders.presets("waffleiron")}
    assert encoders.config("waffleiron") == sizes["12-128"]
    for name, config in sizes.items():
        if name != "tiny":
            assert name.startswith(f"{config.depth}-{config.width}")
            assert config.act == ("relu" if name.endswith("v1") else "gelu")
    small = sum(p.numel() for p in WaffleIron(sizes["tiny"]).parameters())
    assert small < 20_000 < 300_000 < sum(p.numel() for p in WaffleIron(sizes["12-128"]).parameters()) < 600_000


def test_config_problems_are_told_together():
    with pytest.raises(ConfigError) as caught:
        WaffleIronConfig(depth=0, drop_path=1.0, grids=((4, 4),), fov_min=(0, 0, 9), inputs=())
    for word in (
        "depth: 1 or more",
        r"drop_path: a share",
        "planes, grids: one shape",
        "a box is needed",
        "inputs: at",
    ):
        assert word in str(caught.value)


def test_what_is_kept_for_backward():
    """Three tensors of all rows a block, whatever the grids: two of the residual stream and a hidden layer."""
    encoder, points = make(WaffleIronConfig(depth=6, width=16)).train(), WaffleIronConfig().precompute(scan(3000))
    tokens, kept = encoder.embed(points), {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        encoder.encode(tokens, points)
    whole = [value for value in kept.values() if value.shape == (3000, 16)]
    assert len(whole) == 3 * 6 and max(value.numel() for value in kept.values()) == 3000 * 16
