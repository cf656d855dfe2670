"""Every registered teacher, built in or installed, passes the same checks on its `tiny` preset."""

import copy

import pytest
import torch
from torch import nn

from splatlearn.encoders.base import FeatureMaps
from splatlearn.errors import UserError
from splatlearn.registry import teachers
from splatlearn.structures import Images
from splatlearn.teachers.base import RANDOM, Teacher, create_teacher

FAMILIES = (*teachers.builtin, *teachers._installed())


def pictures(teacher: Teacher, views: int = 2, wide: int = 3, high: int = 2, seed: int = 0) -> Images:
    """Views of `wide` x `high` patches."""
    patch, generator = teacher.info.patch, torch.Generator().manual_seed(seed)
    return Images(images=torch.rand(views, 3, high * patch, wide * patch, generator=generator))


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest) -> Teacher:
    return create_teacher(f"{request.param}.tiny")


def same(first: FeatureMaps, second: FeatureMaps, tolerance: float = 1e-5) -> bool:
    pairs = zip((*first.levels, first.summary), (*second.levels, second.summary), strict=True)
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-4) for a, b in pairs)


def test_maps_are_as_the_info_says(teacher):
    maps = teacher(pictures(teacher))
    assert [level.shape[1] for level in maps.levels] == list(teacher.info.channels)
    assert maps.levels[-1].shape == (2, teacher.info.channels[-1], 2, 3)
    assert maps.summary.shape == (2, teacher.info.channels[-1])
    assert all(level.isfinite().all() for level in maps.levels)
    assert float(maps.levels[-1].std()) > 0
    if not teacher.info.has_summary:
        assert torch.allclose(maps.summary, maps.levels[-1].mean((2, 3)), atol=1e-6)


def test_views_do_not_see_each_other_and_no_views_are_none(teacher):
    images = pictures(teacher, views=3)
    together, alone = teacher(images), teacher(images.rows(torch.tensor([1])))
    assert torch.allclose(together.levels[-1][1:2], alone.levels[-1], atol=1e-4, rtol=1e-3)
    assert teacher(pictures(teacher, views=0)).levels[-1].shape == (0, teacher.info.channels[-1], 2, 3)


def test_frozen_for_ever(teacher):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.teacher = nn.Linear(2, 2), teacher

    holder = Holder()
    before = teacher(pictures(teacher))
    holder.train()
    assert not any(module.training for module in teacher.network.modules())
    assert set(holder.state_dict()) == {"own.weight", "own.bias"}
    assert [name for name, _ in holder.named_parameters()] == ["own.weight", "own.bias"]
    assert not list(holder.named_buffers())
    holder.load_state_dict(holder.state_dict())
    after = teacher(pictures(teacher))
    assert same(before, after, 0) and not after.levels[-1].requires_grad
    student = nn.Conv2d(teacher.info.channels[-1], 1, 1)
    student(after.levels[-1]).sum().backward()  # not of inference mode: autograd may keep what it gives
    assert student.weight.grad is not None


def test_images_of_no_gradient_get_none(teacher):
    images = Images(images=pictures(teacher).images.requires_grad_())
    assert not teacher(images).levels[-1].requires_grad


def test_moves_with_its_holder(teacher):
    double = nn.Sequential(copy.deepcopy(teacher)).double()[0]
    images = pictures(teacher)
    maps = double(images)
    assert maps.levels[-1].dtype == torch.float64
    assert torch.allclose(maps.levels[-1].float(), teacher(images).levels[-1], atol=1e-3, rtol=1e-2)


def test_a_grid_resizes_the_images(teacher):
    patch, images = teacher.info.patch, pictures(teacher)
    assert same(teacher(images, grid=(3, 2)), teacher(images), 0)
    odd = Images(images=torch.rand(1, 3, 2 * patch + 3, 3 * patch + 5))
    assert teacher(odd, grid=(4, 1)).levels[-1].shape[2:] == (1, 4)
    with pytest.raises(UserError, match=rf"nearest sizes that do: {3 * patch} or {4 * patch} wide, {2 * patch} or"):
        teacher(odd)


def test_prepared_maps_come_first(teacher):
    images, channels = pictures(teacher), teacher.info.channels[-1]
    maps = torch.randn(2, channels, 2, 3).half()
    given = images.with_attributes(**{f"maps/{teacher.name}": maps})
    assert torch.equal(teacher(given).levels[-1], maps.float())
    assert torch.allclose(teacher(given).summary, maps.float().mean((2, 3)))
    with_summary = given.with_attributes(**{f"summary/{teacher.name}": torch.ones(2, channels)})
    assert torch.equal(teacher(with_summary).summary, torch.ones(2, channels))
    with pytest.raises(UserError, match=rf"have 3x2 tokens of {channels} channels, needed are 5x5 tokens"):
        teacher(given, grid=(5, 5))


def test_random_weights_are_named_and_the_same_every_time(teacher, caplog):
    assert teacher.info.source == RANDOM
    with caplog.at_level("WARNING", "splatlearn"):
        again = create_teacher(teacher.name)
    assert "its weights are random, as was asked for" in caplog.text
    assert again.info == teacher.info and again.identity() == teacher.identity()
    assert same(again(pictures(teacher)), teacher(pictures(teacher)), 0)
    other = create_teacher(teacher.name, {"seed": 1})
    assert other.info.digest != teacher.info.digest
    assert not same(other(pictures(teacher)), teacher(pictures(teacher)))


def test_described_as_plain_data(teacher):
    facts = teacher.describe()
    assert {"source", "digest", "licence", "patch", "channels", "options"} <= set(facts)
    assert len(facts["digest"]) == 64
