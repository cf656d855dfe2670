"""Projectors: widths, layers, rows that do not see each other."""

import pytest
import torch

from splatlearn.errors import ConfigError
from splatlearn.heads.projectors import Projector, ProjectorConfig


def parameters(projector: Projector) -> int:
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
