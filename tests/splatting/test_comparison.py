"""The comparison of pictures refuses what it should, and lets pass what it should."""

import pytest
import torch

from splatting.comparison import assert_agree, compare, silhouette_band


@pytest.fixture
def disc():
    """A shaded disc (1 3 48 48) and its alpha (1 1 48 48)."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    alpha = (((x - 24) ** 2 + (y - 24) ** 2).sqrt() < 15).float()[None, None]
    shade = torch.stack([0.3 + x / 96, 0.5 + y / 96, 0.9 - x / 96])[None]
    return shade * alpha, alpha


def test_equal_pictures_agree(disc):
    image, alpha = disc
    assert_agree(image, image.clone(), alpha)
    assert compare(image, image, alpha).cosine == pytest.approx(1)


def test_band_follows_the_silhouette(disc):
    _, alpha = disc
    band = silhouette_band(alpha, 2)[0, 0]
    assert band[24, 9] and band[24, 39] and not band[24, 24] and not band[2, 2]
    assert 0.05 < band.float().mean() < 0.3
    assert not silhouette_band(torch.ones(1, 1, 9, 9)).any()


def test_one_wild_pixel_at_the_edge_passes_but_not_inside(disc):
    image, alpha = disc
    edge, inside = image.clone(), image.clone()
    edge[0, :, 24, 10] += 0.02
    inside[0, :, 24, 24] += 0.5
    assert_agree(edge, image, alpha)
    with pytest.raises(AssertionError, match="relative"):
        assert_agree(inside, image, alpha)


@pytest.mark.parametrize("change", ["brighter", "shifted", "swapped", "nan", "edge"])
def test_real_errors_are_refused(disc, change):
    image, alpha = disc
    ring = silhouette_band(alpha).float()
    wrong = {
        "brighter": image * 1.001,
        "shifted": image.roll(1, -1),
        "swapped": image.flip(1),
        "nan": image.clone().index_fill_(2, torch.tensor([3]), torch.nan),
        "edge": image * (1 - 0.3 * ring),
    }[change]
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_agree(wrong, image, alpha)


def test_empty_pictures_prove_nothing(disc):
    image, alpha = disc
    with pytest.raises(AssertionError, match="empty"):
        assert_agree(image * 0, image * 0, alpha * 0)
