"""Settings: every problem in one message, nested mappings, round trip."""

from dataclasses import dataclass
from typing import Literal

import pytest

from splatlearn.config import changed, check_value, configure, merge, to_options
from splatlearn.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    layers: int = 2
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: tuple[int, int] = (160, 120)
    mode: Literal["offset", "depth"] = "offset"
    inner: Inner = Inner(layers=7)
    name: str = ""

    def __post_init__(self) -> None:
        if self.size[0] <= 0:
            raise ValueError(f"size must be positive, got {self.size}")


def test_strings_are_read_as_yaml():
    outer = configure(Outer, {"size": "320,240", "inner.rate": "1e-4"}, "recipe")
    assert outer.size == (320, 240)
    assert outer.inner.rate == 1e-4


def test_nested_defaults_come_from_the_outer_field():
    assert configure(Outer, {"inner": {"rate": 0.5}}, "recipe").inner == Inner(layers=7, rate=0.5)


def test_all_problems_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        configure(Outer, {"sise": 3, "mode": "offse", "inner": {"layers": "many", "lr": 1}}, "recipe")
    message = str(caught.value)
    assert "recipe.sise: unknown; did you mean 'size'?" in message
    assert "recipe.mode: one of offset, depth expected, got 'offse'" in message
    assert "recipe.inner.layers: int expected, got 'many'" in message
    assert "recipe.inner.lr: unknown" in message


def test_the_dataclass_own_rules():
    with pytest.raises(ConfigError, match="recipe: size must be positive"):
        configure(Outer, {"size": [0, 1]}, "recipe")


def test_round_trip():
    outer = configure(Outer, {"size": "4,5", "name": "x"}, "recipe")
    assert configure(Outer, to_options(outer), "recipe") == outer


def test_merge_reaches_into_nested_mappings():
    assert merge({"a": {"b": 1, "c": 2}}, {"a.b": 3}) == {"a": {"b": 3, "c": 2}}


def test_changed_lists_dotted_keys():
    assert changed({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 -> 3"]


def test_an_optional_or_either_way_sequence():
    problems: list[str] = []
    assert check_value("160,120", tuple[int, int] | None, "size", problems) == (160, 120)
    assert check_value("auto", str | tuple[float, float, float], "up", problems) == "auto"
    assert check_value("color,normal", tuple[str, ...], "inputs", problems) == ("color", "normal")
    assert not problems
    assert check_value("1x", tuple[int, int] | None, "size", problems) is None
    assert problems == ["size: tuple[int, int] expected, got '1x'"]
