"""Crops and colours of photographs: each change against its closed form, and what chance decides."""

import colorsys
from math import erf, sqrt

import numpy as np
import pytest
import torch

from splatlearn.data import photo_augment
from splatlearn.data.photo_augment import (
    PhotoAugmentation,
    augment_photo,
    blur,
    centre_photo,
    crop_box,
    grey,
    jitter,
    resized,
    solarize,
    turn_hue,
)
from splatlearn.errors import ConfigError

OFF = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0}
WHOLE = {"crop": (1.0, 1.0), "aspect": (1.0, 1.0)}


def photo(height: int = 24, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def augmented(image: torch.Tensor, size=(24, 24), seed: int = 0, **options) -> torch.Tensor:
    return augment_photo(image, size, PhotoAugmentation(**{**OFF, **options}), np.random.default_rng(seed))


def ramp(height: int, width: int) -> torch.Tensor:
    """A photograph whose red and green are the places of its pixels, across and down, as parts of its sides."""
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return torch.stack([across.expand(height, -1), down[:, None].expand(-1, width), torch.full((height, width), 0.5)])


class TestCrop:
    def test_the_whole_as_it_is(self):
        assert torch.equal(augmented(photo(), **WHOLE), photo())

    @pytest.mark.parametrize(("box", "size"), [((10, 5, 40, 20), (40, 20)), ((10, 5, 40, 20), (20, 10))])
    def test_the_box_lands_on_the_whole_of_the_result(self, box, size):
        image = ramp(60, 90)
        left, top, width, height = box
        out = resized(image, box, size)[:, 2:-2, 2:-2]
        expected = ramp(size[1], size[0])[:, 2:-2, 2:-2]
        assert torch.allclose(out[0], (left + expected[0] * width) / 90, atol=1e-3)
        assert torch.allclose(out[1], (top + expected[1] * height) / 60, atol=1e-3)

    def test_made_smaller_pixels_are_averaged(self):
        stripes = (torch.arange(128) % 2).float().expand(3, 128, -1).contiguous()
        assert torch.allclose(resized(stripes, (0, 0, 128, 128), (16, 16)), torch.full((3, 16, 16), 0.5), atol=0.02)

    def test_area_and_proportions(self):
        config, rng = PhotoAugmentation(), np.random.default_rng(0)
        boxes = np.array([crop_box(torch.zeros(3, 300, 400), config, rng) for _ in range(2000)])
        area, aspect = boxes[:, 2] * boxes[:, 3] / 120_000, boxes[:, 2] / boxes[:, 3]
        assert area.min() >= 0.39 and area.max() <= 1 and aspect.min() >= 0.74 and aspect.max() <= 1.35
        assert (
            (boxes >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= 400).all() and (boxes[:, 1] + boxes[:, 3] <= 300).all()
        )
        slack = boxes[:, 2] < 300
        assert (boxes[slack, 0] / (400 - boxes[slack, 2])).mean() == pytest.approx(0.5, abs=0.05)

    def test_areas_are_uniform(self):
        config, rng = PhotoAugmentation(aspect=(4 / 3, 4 / 3)), np.random.default_rng(0)
        boxes = np.array([crop_box(torch.zeros(3, 300, 400), config, rng) for _ in range(2000)])
        parts = np.quantile(boxes[:, 2] * boxes[:, 3] / 120_000, [0.25, 0.5, 0.75])
        assert parts == pytest.approx([0.55, 0.7, 0.85], abs=0.03)

    def test_no_box_fits(self):
        wide = torch.zeros(3, 10, 100)
        assert crop_box(wide, PhotoAugmentation(crop=(1.0, 1.0)), np.random.default_rng(0)) == (43, 0, 13, 10)

    def test_small_photographs_are_enlarged(self):
        assert augmented(photo(7, 5), (32, 20)).shape == (3, 20, 32)
        assert augmented(photo(1, 1), (32, 20)).flatten(1).std(1).max() < 1e-6

    def test_the_middle(self):
        assert torch.equal(centre_photo(photo(24, 40), (24, 24)), photo(24, 40)[:, :, 8:32])
        assert centre_photo(photo(100, 7), (32, 20)).shape == (3, 20, 32)


class TestColor:
    def test_mirrored(self):
        assert torch.equal(augmented(photo(), flip=1.0, **WHOLE), photo().flip(2))

    def test_grey(self):
        out = augmented(photo(), grey=1.0, **WHOLE)
        red, green, blue = photo()
        assert torch.allclose(out, (0.2989 * red + 0.587 * green + 0.114 * blue).expand(3, -1, -1))

    def test_solarized(self):
        values = torch.tensor([0.0, 0.2, 0.5, 0.75, 1.0])
        assert solarize(values).tolist() == pytest.approx([0, 0.2, 0.5, 0.25, 0])
        assert torch.equal(augmented(photo(), solarize=1.0, **WHOLE), solarize(photo()))

    @pytest.mark.parametrize("turn", [0.0, 0.1, -0.1, 0.37, 0.5])
    def test_hue_is_colorsys(self, turn):
        image = torch.cat([photo(4, 4), torch.eye(3)[:, :, None].expand(3, 3, 4), torch.full((3, 1, 4), 0.3)], 1)
        out = turn_hue(image, turn)
        for before, after in zip(image.flatten(1).t().tolist(), out.flatten(1).t().tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-5)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("which", range(3))
    def test_brightness_contrast_saturation(self, which, seed):
        strength = [0.0, 0.0, 0.0, 0.0]
        strength[which] = 0.4
        factor = np.random.default_rng(seed).uniform(1 - np.array(strength[:3]), 1 + np.array(strength[:3]))[which]
        image = photo()
        other = (torch.zeros_like(image), grey(image).mean().expand_as(image), grey(image).expand_as(image))[which]
        expected = (factor * image + (1 - factor) * other).clamp(0, 1)
        found = jitter(image, tuple(strength), np.random.default_rng(seed))
        assert torch.allclose(found, expected.float(), atol=1e-5)

    @pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
    def test_a_blurred_edge_is_the_integral_of_the_gaussian(self, sigma):
        edge = (torch.arange(40) >= 20).double().expand(3, 40, -1).contiguous()
        out = blur(edge, sigma)
        assert torch.allclose(out, out[:1, :1]), "alike in all rows and channels"
        ideal = [0.5 + 0.5 * erf((x + 0.5 - 20) / (sigma * sqrt(2))) for x in range(40)]
        assert torch.allclose(out[0, 0], torch.tensor(ideal, dtype=torch.float64), atol=0.03)
        assert torch.allclose(blur(edge.transpose(1, 2), sigma), out.transpose(1, 2))
        assert torch.allclose(blur(torch.full((3, 12, 9), 0.4), 5.0), torch.tensor(0.4)), "nothing is lost at the edges"


class TestChance:
    def test_the_generator_decides_alone(self):
        config = PhotoAugmentation()
        runs = [augment_photo(photo(40, 50), (24, 24), config, np.random.default_rng(3)) for _ in range(2)]
        other = augment_photo(photo(40, 50), (24, 24), config, np.random.default_rng(4))
        assert torch.equal(*runs) and not torch.equal(runs[0], other)

    def test_results_stay_within_0_and_1(self):
        rng = np.random.default_rng(0)
        for seed in range(60):
            out = augment_photo(photo(30, 40, seed).round(), (24, 24), PhotoAugmentation(), rng)
            assert out.shape == (3, 24, 24) and out.dtype == torch.float32
            assert float(out.min()) >= 0 and float(out.max()) <= 1

    @pytest.mark.parametrize(
        ("name", "change", "chance"),
        [("jitter", "jitter", 0.8), ("blur", "blur", 0.2), ("solarize", "solarize", 0.2), ("grey", "grey", 0.2)],
    )
    def test_chances(self, monkeypatch, name, change, chance):
        calls = []
        monkeypatch.setattr(photo_augment, change, lambda image, *_: (calls.append(1), image[:1])[1].expand(3, -1, -1))
        rng, config = np.random.default_rng(1), PhotoAugmentation(**{**OFF, name: getattr(PhotoAugmentation(), name)})
        for _ in range(1500):
            augment_photo(torch.zeros(3, 4, 4), (4, 4), config, rng)
        assert len(calls) / 1500 == pytest.approx(chance, abs=0.04)

    def test_errors(self):
        with pytest.raises(
            ConfigError, match=r"crop: two ascending parts .* got \(0.5, 1.2\); flip: a chance .* got 2"
        ):
            PhotoAugmentation(crop=(0.5, 1.2), flip=2)
        with pytest.raises(ConfigError, match="strength: four within 0 and 1"):
            PhotoAugmentation(strength=(0.4, 0.4, 0.2, 0.6))
