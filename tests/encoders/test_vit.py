"""Vision transformers: positions at other sizes, levels, the final norm, drop path, what is refused."""

import pytest
import torch
from torch.nn.functional import interpolate

from splatlearn.encoders.vit import ViT, ViTConfig, resize_positions
from splatlearn.errors import ConfigError

SMALL = {"size": 56, "width": 16, "heads": 2, "depth": 3}


def make(**options) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**SMALL, "levels": (-1,), **options})).eval()


def pictures(wide=4, high=4):
    return torch.rand(2, 3, 14 * high, 14 * wide, generator=torch.Generator().manual_seed(0))


def test_positions_are_their_own_where_the_grid_is_and_between_them_elsewhere():
    positions = torch.randn(1, 17, 5)
    assert resize_positions(positions, (4, 4)) is positions
    wide = resize_positions(positions, (7, 3))
    assert wide.shape == (1, 22, 5) and torch.equal(wide[:, 0], positions[:, 0])
    grid = positions[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    plain = interpolate(grid, (3, 7), mode="bicubic").flatten(2).transpose(1, 2)
    assert float((wide[:, 1:] - plain).abs().max()) > 1e-3  # the offset of a tenth of a token is seen
    columns = torch.arange(4.0).repeat(4).view(1, 16, 1)
    read = resize_positions(torch.cat([torch.zeros(1, 1, 1), columns], 1), (8, 2))[0, 1:, 0].view(2, 8)
    assert torch.allclose(read[0], read[1], atol=1e-5) and bool((read[0].diff() > 0).sum() >= 6)


def test_a_patch_has_its_place():
    encoder, images = make(), pictures()
    one = encoder(images).levels[0]
    other = encoder(images.roll(14, 3)).levels[0]
    assert not torch.allclose(one, other.roll(-1, 3), atol=1e-4)


def test_levels_are_shallow_to_deep_each_once():
    encoder = make(levels=(-1, 0, 2))
    maps, last = encoder(pictures()), make()(pictures())
    assert encoder.channels == (16, 16) and len(maps.levels) == len(maps.summaries) == 2
    assert torch.equal(maps.levels[1], last.levels[0]) and torch.equal(maps.summary, last.summary)
    assert torch.equal(maps.levels[0], make(levels=(0,))(pictures()).levels[0])


def test_the_final_norm_follows_every_level_or_none():
    images = pictures()
    raw, normed = make(levels=(0, 2)), make(levels=(0, 2), norm=True)
    assert not any(name.startswith("norm") for name in raw.state_dict())
    normed.load_state_dict(raw.state_dict(), strict=False)
    for before, after in zip(raw(images).levels, normed(images).levels):
        expected = torch.nn.functional.layer_norm(before.movedim(1, -1), (16,), eps=1e-6).movedim(-1, 1)
        assert torch.allclose(after, expected, atol=1e-5)


def test_stored_positions_are_resized_for_a_later_stage():
    encoder = make()
    before = encoder(pictures(6, 6)).levels[0]
    encoder.resize(84)
    assert encoder.config.size == 84 and encoder.positions.shape == (1, 37, 16)
    assert torch.allclose(encoder(pictures(6, 6)).levels[0], before, atol=1e-6)
    assert ViT(encoder.config).load_state_dict(encoder.state_dict())
    with pytest.raises(ConfigError, match="a multiple of the patch of 14 is needed, got 85"):
        encoder.resize(85)


def test_drop_path_only_in_train_mode():
    encoder = make(drop_path=0.9, layer_scale=0.0)
    images = pictures()
    assert torch.equal(encoder(images).levels[0], encoder(images).levels[0])
    encoder.train()
    assert not torch.equal(encoder(images).levels[0], encoder(images).levels[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (3,)}, r"levels: \[3\] are none of the 3 blocks"),
        ({"levels": ()}, "levels: name one at least"),
        ({"heads": 3}, "heads: they share 16 channels evenly, which 3 cannot"),
        ({"size": 57}, "size: a multiple of the patch of 14"),
        ({"depth": 0}, "depth: 1 or more is needed, got 0"),
        ({"drop_path": 1.0}, r"drop_path: a share in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
