"""Names, presets, overrides and their errors."""

from dataclasses import dataclass

import pytest

from splatlearn.errors import ConfigError
from splatlearn.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 8


@pytest.fixture
def registry() -> Registry:
    made: Registry = Registry("gadgets")

    @made.register("wheel", Config, {"base": {"width": 16}, "tiny": {}})
    class Wheel:
        """A wheel."""

        def __init__(self, config: Config, color: str = "red") -> None:
            self.config, self.color = config, color

    return made


def test_bare_family_is_the_first_preset(registry):
    assert registry.create("wheel").config.width == 16
    assert registry.create("wheel.tiny").config.width == 8


def test_overrides_and_parts(registry):
    wheel = registry.create("wheel.tiny", {"width": 3}, color="blue")
    assert (wheel.config.width, wheel.color) == (3, "blue")


def test_unknown_names_give_the_nearest(registry):
    with pytest.raises(ConfigError, match="gadgets: unknown name 'weel'; did you mean 'wheel'"):
        registry.create("weel")
    with pytest.raises(ConfigError, match="has no preset 'tinny'; did you mean 'tiny'"):
        registry.create("wheel.tinny")


def test_unknown_option_names_the_family(registry):
    with pytest.raises(ConfigError, match=r"wheel.wdth: unknown; did you mean 'width'"):
        registry.create("wheel", {"wdth": 1})


def test_tiny_is_required(registry):
    with pytest.raises(ConfigError, match="a preset 'tiny'"):
        registry.register("axle", Config, {"base": {}})


def test_names(registry):
    assert registry.names() == ["wheel.base", "wheel.tiny"]
    assert registry.names("*.tiny") == ["wheel.tiny"]
