"""Settings: every problem in one message, nested mappings, round trip."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from splatlearn.config import changed, check_value, configure, merge, repeated_keys, to_options
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


def test_keys_that_are_no_words():
    with pytest.raises(ConfigError, match=r"recipe\.3: unknown"):
        configure(Outer, {3: 4}, "recipe")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "x", "inner.layers": 3}, r"recipe\.inner: has the value 'x' and options of its own \(layers\)"),
        ({"inner.layers": 3, "inner": "x"}, r"recipe\.inner: has the value 'x' and options of its own \(layers\)"),
        ({"inner": {"rate": 1}, "inner.rate.low": 3}, r"recipe\.inner\.rate: has the value 1 and options of its own"),
    ],
)
def test_a_value_and_options_of_one_thing(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        configure(Outer, {"sise": 3, **options}, "recipe")
    assert "recipe.sise: unknown" in str(caught.value)


def test_dotted_keys_inside_a_nested_mapping():
    @dataclass(frozen=True, kw_only=True)
    class Outermost:
        outer: Outer = Outer()

    built = configure(Outermost, {"outer": {"inner": {"rate": 0.5}, "inner.rate": 0.7, "inner.layers": 3}}, "recipe")
    assert built.outer.inner == Inner(layers=3, rate=0.7)
    with pytest.raises(ConfigError, match=r"recipe\.outer\.inner: has the value 'x' and options"):
        configure(Outermost, {"outer": {"inner": "x", "inner.rate": 0.7}}, "recipe")


def test_merge_drops_no_value_silently():
    with pytest.raises(ConfigError, match=r"a: has the value 'x' and options of its own \(b\)"):
        merge({"a": "x"}, {"a.b": 3})
    assert merge({"a": {"b": 3}}, {"a": "x"}) == {"a": "x"}
    assert merge({"a": None}, {"a.b": 3}) == {"a": {"b": 3}}
    assert merge({}, {"a.b.c": 1, "a.b": {"d": 2}}) == {"a": {"b": {"c": 1, "d": 2}}}


def test_names_with_dots_are_values_too():
    """As in `rates: {"student.*": 0.5}`, whose keys are no settings."""

    @dataclass(frozen=True, kw_only=True)
    class Rates:
        rates: dict[str, float] = field(default_factory=dict)

    merged = merge({"rates": {"student.*": 0.5, "head.*": 1}}, {"rates": {"student.*": 0.1}})
    assert configure(Rates, merged, "train").rates == {"student.*": 0.1, "head.*": 1}


@pytest.mark.parametrize("value", [".nan", float("nan"), "nan"])
def test_nan_is_no_setting(value):
    with pytest.raises(ConfigError, match=r"recipe\.inner\.rate: float expected, got"):
        configure(Outer, {"inner.rate": value}, "recipe")
    problems: list[str] = []
    check_value([1.0, float("nan")], tuple[float, ...], "inputs", problems)
    assert len(problems) == 1


@pytest.mark.parametrize("value", [None, "null"])
def test_nothing_is_no_value(value):
    with pytest.raises(ConfigError) as caught:
        configure(Outer, {"size": value, "mode": value, "inner": {"layers": value}}, "recipe")
    for setting in ("recipe.size: tuple", "recipe.mode: one of", "recipe.inner.layers: int"):
        assert setting in str(caught.value)
    with pytest.raises(ConfigError, match=r"recipe\.inner: Inner expected, got nothing"):
        configure(Outer, {"inner": None}, "recipe")
    problems: list[str] = []
    assert check_value(value, int | None, "steps", problems) is None
    assert not problems


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("{a: 1, b: {c: 1, c: 2}, a: 3}", ["a", "b.c"]),
        ("[{x.y: {}, x.y: 1}, {x.y: 1}]", ["0.x.y"]),
        ("{a: {b: 1}, b: 1}", []),
        ("1e-4", []),
        ("{a: 1, a", []),
    ],
)
def test_a_key_that_is_given_twice(text, twice):
    assert repeated_keys(text) == twice
    problems: list[str] = []
    check_value(text, dict[str, object] if text.startswith("{") else list[dict[str, object]], "--groups", problems)
    assert any("given twice" in problem for problem in problems) == bool(twice)
