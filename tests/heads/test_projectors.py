"""Projectors: widths, layers, rows that do not see each other."""

import pytest
import torch

from splatlearn.encoders.base import FeatureMaps
from splatlearn.errors import ConfigError
from splatlearn.heads.projectors import (
    LadderProjectorConfig,
    Projector,
    ProjectorConfig,
    SimpleProjectorConfig,
    TransformerProjectorConfig,
    create_projector,
)

IMAGE = {
    "transformer": TransformerProjectorConfig(heads=2, layer_scale=0.5),
    "simple": SimpleProjectorConfig(),
    "ladder": LadderProjectorConfig(hidden=12, last_hidden=20),
}


def parameters(projector: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in projector.parameters())


@pytest.mark.parametrize("hidden", [0, 12])
def test_rows_alone_and_no_rows(hidden):
    projector, rows = Projector(ProjectorConfig(hidden=hidden), 8, 5), torch.randn(7, 8)
    out = projector(rows)
    assert out.shape == (7, 5)
    assert torch.allclose(out[3:4], projector(rows[3:4]), atol=1e-6)
    assert projector(rows[:0]).shape == (0, 5)
    out.sum().backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in projector.parameters())


def test_as_large_as_the_published_heads():
    assert parameters(Projector(ProjectorConfig(), 768, 1024)) == 787_456
    assert parameters(Projector(ProjectorConfig(hidden=2048), 768, 1024)) == 3_673_088


def test_a_negative_width():
    with pytest.raises(ConfigError, match="hidden: 0 or more channels, got -1"):
        ProjectorConfig(hidden=-1)


def maps(views: int = 2) -> FeatureMaps:
    generator = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(views, 8, 2, 3, generator=generator) for _ in range(2))
    summaries = tuple(torch.randn(views, 8, generator=generator) for _ in range(2))
    return FeatureMaps(levels=levels, summary=summaries[-1], summaries=summaries)


@pytest.mark.parametrize("summary", [True, False], ids=["class-token", "patches-only"])
@pytest.mark.parametrize("kind", IMAGE)
class TestImageProjectors:
    def test_maps_in_the_teachers_width(self, kind, summary):
        projector = create_projector(IMAGE[kind], (8, 8), 5, summary)
        found = projector(maps())
        assert [tuple(level.shape) for level in found.levels] == [(2, 5, 2, 3)] and found.summary.shape == (2, 5)
        assert torch.allclose(found.summary, found.levels[0].mean((2, 3)), atol=1e-6) != summary
        assert projector(maps(0)).levels[0].shape == (0, 5, 2, 3)
        alone = projector(FeatureMaps(**{k: _first(v) for k, v in vars(maps()).items()}))
        assert torch.allclose(alone.levels[0], found.levels[0][:1], atol=1e-6)

    def test_every_parameter_gets_a_gradient(self, kind, summary):
        projector = create_projector(IMAGE[kind], (8, 8), 5, summary)
        found = projector(maps())
        (torch.randn(2, 5, 2, 3) * found.levels[0]).sum().backward()
        if summary:
            (torch.randn(2, 5) * projector(maps()).summary).sum().backward()
        for name, parameter in projector.named_parameters():
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name

    def test_who_sees_whom(self, kind, summary):
        """A patch sees the others in the transformer alone, and the shallow level in the ladder alone."""
        projector, before, deep, shallow = create_projector(IMAGE[kind], (8, 8), 5, summary), maps(), maps(), maps()
        with torch.no_grad():
            for parameter in projector.parameters():
                parameter.add_(torch.randn_like(parameter))
        deep.levels[1][:, :, 0, 0] = torch.randn(8)
        shallow.levels[0][:, :, 1, 1] = torch.randn(8)
        place = projector(before).levels[0][:, :, 1, 1]
        assert torch.allclose(place, projector(deep).levels[0][:, :, 1, 1], atol=1e-4) == (kind != "transformer")
        assert torch.allclose(place, projector(shallow).levels[0][:, :, 1, 1], atol=1e-4) == (kind != "ladder")


def _first(value):
    return tuple(part[:1] for part in value) if isinstance(value, tuple) else value[:1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerProjectorConfig(blocks=-1), "blocks: 0 or more"),
        (lambda: SimpleProjectorConfig(hidden=-1), "hidden: 0 or more"),
        (lambda: LadderProjectorConfig(hidden=0), "hidden: 1 or more"),
    ],
)
def test_numbers_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
