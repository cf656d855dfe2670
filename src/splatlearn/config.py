"""Settings: frozen keyword-only dataclasses are the only truth; mappings (YAML, flags) are checked against them."""

import dataclasses
import math
import os
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from splatlearn.errors import ConfigError, nearest

T = TypeVar("T")


def configure(config: type[T], options: Mapping[str, Any], where: str) -> T:
    """Builds `config` from `options`, checking every key and value before it complains once about all of them.

    Args:
        config: a dataclass whose fields all have defaults, or are given.
        options: field name -> value; a string value is read as YAML would (`"1e-4"`, `"[160, 120]"`, `"160,120"`).
            A field that is a dataclass takes a mapping, and dotted keys (`"epipolar.layers"`) reach into it.
        where: what is configured, for messages (`"--encoder"`).

    Raises:
        ConfigError: every unknown key (with the nearest name) and invalid value (with what is allowed).
    """
    problems: list[str] = []
    built = _build(config, _nest(options, f"{where}.", problems), where, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return typing.cast(T, built)


def require(rules: Mapping[str, bool]) -> None:
    """For the checks of a config: complains once about everything that does not hold.

    Args:
        rules: message -> whether the rule holds. A comparison with NaN does not.

    Raises:
        ConfigError: some rule does not hold.
    """
    broken = [message for message, holds in rules.items() if not holds]
    if broken:
        raise ConfigError("; ".join(broken))


def to_options(config: Any) -> dict[str, Any]:
    """The nested plain mapping of a dataclass; `configure` reads it back. Tuples become lists, paths strings."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def changed(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `dotted.key: old -> new` where two nested mappings differ."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _build(config: type, options: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(config)
    known = {f.name: f for f in dataclasses.fields(config) if f.init}
    values, before = {}, len(problems)
    for key, value in options.items():
        dotted = f"{where}.{key}"
        if key not in known:
            problems.append(f"{dotted}: unknown{nearest(key, known)} (known: {', '.join(known)})")
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            values[key] = _build_nested(known[key], hints[key], value, dotted, problems)
        else:
            values[key] = check_value(value, hints[key], dotted, problems)
    for name, f in known.items():
        if name not in options and f.default is f.default_factory is dataclasses.MISSING:
            problems.append(f"{where}.{name}: required")
    if len(problems) > before:
        return None
    try:
        return config(**values)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None


def _build_nested(
    field: dataclasses.Field[Any], config: Any, options: Mapping[str, Any], where: str, problems: list[str]
) -> Any:
    """A nested dataclass: what is not named keeps the outer field's default, not the class's."""
    if field.default_factory is not dataclasses.MISSING:
        default = to_options(field.default_factory())
    elif field.default is not dataclasses.MISSING:
        default = to_options(field.default)
    else:
        default = {}
    return _build(config, _merge(default, options, f"{where}.", problems), where, problems)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` on top, nested mappings merged; dotted keys of `over` reach into them.

    Raises:
        ConfigError: options of something that has a plain value, in `base` or in `over`.
    """
    problems: list[str] = []
    merged = _merge(base, over, "", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return merged


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    return _join(base, _nest(over, where, problems), where, problems, replace=True)


def _nest(options: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Dotted keys as nested mappings; those of the values stay, since a value may be a mapping of such names."""
    nested: dict[str, Any] = {}
    for key, value in options.items():
        head, *parts = str(key).split(".")  # YAML has keys that are numbers
        for part in reversed(parts):
            value = {part: value}
        nested = _join(nested, {head: value}, where, problems, replace=False)
    return nested


def _join(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str, problems: list[str], replace: bool
) -> dict[str, Any]:
    """`new` on top of `old`; a problem where options meet a plain value, unless it is new and may replace them."""
    joined = dict(old)
    for key, value in new.items():
        before, dotted = joined.get(key), f"{where}{key}"
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            joined[key] = _join(before, value, f"{dotted}.", problems, replace)
            continue
        if isinstance(value, Mapping) and before is not None:
            problems.append(_both(dotted, before, value))
        elif isinstance(before, Mapping) and not replace:
            problems.append(_both(dotted, value, before))
        joined[key] = value
    return joined


def _both(key: str, plain: Any, parts: Mapping[str, Any]) -> str:
    return (
        f"{key}: has the value {plain!r} and options of its own ({', '.join(map(str, parts))}); give one or the other"
    )


def check_value(value: Any, hint: Any, where: str, problems: list[str]) -> Any:
    """`value` as `hint` has it, a string read as YAML would; a problem and None where it does not fit.

    Nothing (an empty YAML value) fits only where the hint allows None, NaN nowhere.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, str) and str not in choices and (twice := repeated_keys(value)):
        problems.append(f"{where}: {', '.join(twice)} given twice, of which only the last would count; name it once")
        return None
    sequence = str not in choices and {tuple, list} & {typing.get_origin(choice) for choice in choices}
    read = value
    if sequence and isinstance(value, str) and not value.startswith("["):
        read = f"[{value}]"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        found = parser.parse_object({"value": read})["value"]
    except (ArgumentError, TypeError, ValueError):
        found = math.nan
    if _is_nan(found) or (found is None and not {type(None), Any} & set(choices)):
        problems.append(f"{where}: {type_name(hint)} expected, got {'nothing' if value is None else repr(value)}")
        return None
    return found


def repeated_keys(text: str) -> list[str]:
    """Keys, dotted, that a YAML mapping has twice: readers take the last without a word. None of what is no YAML."""
    import yaml

    def walk(node: yaml.Node | None, where: str) -> Iterator[str]:
        if isinstance(node, yaml.MappingNode):
            keys = [f"{where}{key.value}" for key, _ in node.value]
            yield from (key for key, count in Counter(keys).items() if count > 1)
            for key, (_, value) in zip(keys, node.value):
                yield from walk(value, f"{key}.")
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                yield from walk(value, f"{where}{number}.")

    try:
        return list(walk(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    except yaml.YAMLError:
        return []


def _is_nan(value: Any) -> bool:
    """Whether a value is, or holds, what is not a number."""
    if isinstance(value, list | tuple):
        return any(map(_is_nan, value))
    return isinstance(value, float) and math.isnan(value)


def type_name(hint: Any) -> str:
    """A type in words that a user reads: `one of auto, never`, `int`, `tuple[int, int]`."""
    choices = [choice for choice in typing.get_args(hint) if choice is not type(None)]
    if type(None) in typing.get_args(hint):
        return " or ".join(map(type_name, choices))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_options(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/splatlearn`, else `~/.cache/splatlearn`: what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "splatlearn"
