"""The sparse U-Net's own promises: voxels, levels, exact invariance, sizes, errors."""

import pytest
import torch

from splatlearn.encoders.sparse_unet import SparseUNet, SparseUNetConfig
from splatlearn.errors import ConfigError, UserError
from splatlearn.registry import encoders
from splatlearn.structures import Points, Tokens


def _points(counts=(300, 200)):
    torch.manual_seed(3)
    rows = sum(counts)
    return Points(xyz=torch.rand(rows, 3) * 2 - 5, counts=counts, attributes={"color": torch.rand(rows, 3)})


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return encoders.create("sparse_unet.tiny")


def test_permuting_points_permutes_rows_bit_for_bit(encoder):
    points = _points()
    order = torch.cat([torch.randperm(300), 300 + torch.randperm(200)])
    assert torch.equal(encoder(points.rows(order)).dense((0, 1, 2)), encoder(points).dense((0, 1, 2))[order])


def test_points_of_a_voxel_share_a_row(encoder):
    points = _points()
    dense = encoder.eval()(points).dense()
    corner = points.xyz[:300].amin(0)
    cells = torch.floor((points.xyz[:300] - corner) / encoder.config.voxel)
    _, groups = torch.unique(cells, dim=0, return_inverse=True)
    _, rows = torch.unique(dense[:300], dim=0, return_inverse=True)
    assert int(groups.max()) < 299
    assert torch.equal(groups[:, None] == groups, rows[:, None] == rows)


def test_moving_a_cloud_by_whole_metres_changes_nothing_but_rounding():
    points = _points()
    moved = Points(xyz=points.xyz + 4, counts=points.counts, attributes=points.attributes)
    # a quarter metre, so that the corners fall alike in float32
    encoder = encoders.create("sparse_unet.tiny", {"voxel": 0.25}).eval()
    assert torch.allclose(encoder(points).dense(), encoder(moved).dense(), atol=1e-4)


def test_levels_double_the_voxel_and_cover_the_points(encoder):
    points = _points()
    features = encoder(points)
    assert [len(level) for level in features.levels] == sorted((len(v) for v in features.levels), reverse=True)
    for s, level in enumerate(features.levels):
        size = encoder.config.voxel * 2**s
        nearest = torch.cdist(points.xyz[:300], level.xyz[: level.counts[0]]).amin(1)
        assert float(nearest.max()) <= size * 0.87 + 1e-4


def test_added_tokens_in_known_voxels_are_averaged(encoder):
    points = _points((50,))
    encoder.eval()
    tokens = encoder.embed(points)
    twice = Tokens.pack([tokens, tokens]).regroup((2 * len(tokens),))
    assert torch.allclose(encoder.encode(twice, points).dense(), encoder(points).dense(), atol=1e-6)


def test_tokens_of_other_points_are_refused(encoder):
    points = _points((50,))
    with pytest.raises(UserError, match="lie in voxels without a token"):
        encoder.encode(encoder.embed(points).rows(torch.arange(5)), points)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"inputs": ("color", "normal")}, 39_155_904),  # SpUNet, features only
        ({"inputs": ("color", "normal"), "out_channels": 20}, 39_157_844),
        ({"widen": "block", "out_channels": 20}, 37_856_052),  # MinkUNet34C in 3, 20 classes
    ],
)
def test_parameter_counts_of_published_networks(options, parameters):
    encoder = encoders.create("sparse_unet.34c", options)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_the_network_of_pointcontrast():
    """Its stem has a kernel of 3, not 5, and GS3 asks for 128 channels out."""
    encoder = encoders.create("sparse_unet.res16unet34c")
    taller = encoders.create("sparse_unet.34c", {"widen": "block", "out_channels": 128})
    stem = 3 * 32 * (5**3 - 3**3)
    assert encoder.channels[0] == 128
    assert sum(p.numel() for p in taller.parameters()) - sum(p.numel() for p in encoder.parameters()) == stem


def test_output_layer_sets_the_width():
    encoder = encoders.create("sparse_unet.tiny", {"out_channels": 128})
    assert encoder.channels[0] == 128
    assert encoder(_points()).dense().shape == (500, 128)


def test_runs_in_float64():
    points = _points()
    doubled = Points(xyz=points.xyz.double(), counts=points.counts, attributes=points.attributes)
    assert encoders.create("sparse_unet.tiny").double()(doubled).dense().dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (32, 64, 32)}, "one entry per level is needed, as many up as down; got 3 and 4"),
        ({"channels": (), "layers": ()}, "as many up as down; got 0 and 0"),
        ({"channels": (16, 0, 24, 16)}, "channels: 1 or more are needed"),
        ({"layers": (1, 1, 1, 0)}, "layers: 1 or more are needed"),
        ({"stem": -3}, "stem: 1 or more is needed, got -3"),
        ({"voxel": 0.0}, "voxel: metres above zero are needed"),
        ({"voxel": float("inf")}, "voxel: metres above zero are needed"),
        ({"stem_kernel": 4}, "stem_kernel: an odd size is needed, got 4"),
        ({"stem_kernel": -1}, "stem_kernel: an odd size is needed, got -1"),
        ({"out_channels": -1}, "out_channels: zero or more"),
        ({"norm_eps": -1.0}, "norm_eps: above zero"),
        ({"norm_momentum": 1.5}, r"norm_momentum: a share in \(0, 1\]"),
        ({"stem": 0, "voxel": -1}, "voxel: .*; stem: "),
        ({"inputs": ()}, "at least one attribute"),
        ({"widen": "both"}, "one of down, block expected"),
        ({"voxle": 0.1}, "did you mean 'voxel'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        encoders.create("sparse_unet.tiny", options)


def test_unknown_input_is_refused():
    with pytest.raises(UserError, match="'colour'"):
        SparseUNet(SparseUNetConfig(inputs=("colour",)))


def test_coordinates_that_are_not_finite_are_refused(encoder):
    points = _points((3,))
    points.xyz[1, 2] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        encoder(points)
