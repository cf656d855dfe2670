"""Every registered point encoder, built in or installed, passes the same checks on its `tiny` preset."""

import pytest
from encoder_checks import CHECKS, check_save_and_load

from splatlearn.encoders.base import PointEncoder
from splatlearn.registry import encoders

SHIPPED = (*encoders.builtin, *encoders._installed())  # not what other tests register for themselves
FAMILIES = [name for name in SHIPPED if issubclass(encoders.family(name).cls, PointEncoder)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder(family, check):
    check(encoders, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family, tmp_path):
    check_save_and_load(encoders, family, str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("name", [name for name in encoders.names() if name.partition(".")[0] in FAMILIES])
def test_every_preset_can_be_built(name):
    assert encoders.create(name).channels
