"""Every registered image encoder, built in or installed, passes the same checks on its `tiny` preset."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from splatlearn.encoders.base import FeatureMaps, ImageEncoder
from splatlearn.errors import UserError
from splatlearn.registry import encoders
from splatlearn.structures import Images
from splatlearn.tasks.encoders import resolve_encoder

SHIPPED = (*encoders.builtin, *encoders._installed())  # not what other tests register for themselves
FAMILIES = [name for name in SHIPPED if issubclass(encoders.family(name).cls, ImageEncoder)]


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def make(family: str, seed: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    encoder = encoders.create(f"{family}.tiny").eval()
    with torch.no_grad():  # what begins near zero is to count
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def pictures(encoder: ImageEncoder, views: int = 2, wide: int = 3, high: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(views, 3, high * encoder.patch, wide * encoder.patch, generator=generator)


def everything(maps: FeatureMaps) -> torch.Tensor:
    return torch.cat([*(level.flatten(1) for level in maps.levels), maps.summary, *maps.summaries], 1)


def test_maps_have_the_channels_that_are_named(family):
    encoder = make(family)
    maps = encoder(pictures(encoder))
    assert [tuple(level.shape) for level in maps.levels] == [(2, width, 2, 3) for width in encoder.channels]
    assert maps.summary.shape == (2, encoder.channels[-1]) and bool(everything(maps).isfinite().all())
    assert torch.equal(everything(encoder(Images(images=pictures(encoder)))), everything(maps))
    assert any("blocks" in name.split(".") for name, _ in encoder.named_parameters())


def test_views_do_not_see_each_other_and_no_views_are_none(family):
    encoder = make(family)
    images = pictures(encoder, views=3)
    assert torch.allclose(everything(encoder(images))[1:2], everything(encoder(images[1:2])), atol=1e-4, rtol=1e-3)
    assert encoder(images[:0]).levels[-1].shape == (0, encoder.channels[-1], 2, 3)


def test_every_parameter_gets_a_gradient(family):
    encoder = make(family).train()
    output = everything(encoder(pictures(encoder)))
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
        assert bool(parameter.grad.isfinite().all()), name


def test_a_grid_resizes_the_images_and_one_colour_is_no_trouble(family):
    encoder = make(family)
    images = pictures(encoder)
    assert torch.equal(everything(encoder(images, grid=(3, 2))), everything(encoder(images)))
    odd = torch.full((1, 3, 2 * encoder.patch + 3, 3 * encoder.patch + 5), 0.5)
    maps = encoder(odd, grid=(4, 1))
    assert maps.levels[-1].shape[2:] == (1, 4) and bool(everything(maps).isfinite().all())
    assert encoder(odd, grid=(1, 1)).levels[-1].shape[2:] == (1, 1)
    with pytest.raises(UserError, match="or name a grid of tokens"):
        encoder(odd)


def test_save_and_load(family, tmp_path):
    first, second = make(family), make(family, seed=1)
    images = pictures(first)
    assert not torch.equal(everything(first(images)), everything(second(images)))
    save_file({name: value.contiguous() for name, value in first.state_dict().items()}, tmp_path / "w.safetensors")
    second.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(everything(first(images)), everything(second(images)))


@pytest.mark.parametrize("name", [name for name in encoders.names() if name.partition(".")[0] in FAMILIES])
def test_every_preset_can_be_built(name):
    with torch.device("meta"):
        assert encoders.create(name).channels


def test_tasks_of_points_refuse_them(family):
    with pytest.raises(UserError, match=rf"random:{family}\.tiny: '{family}\.tiny' does not encode points"):
        resolve_encoder(f"random:{family}.tiny")
