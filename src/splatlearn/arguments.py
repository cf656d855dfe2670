"""A verb's arguments from the words of a command, and its help: made from the verb's signature and docstring.

A parameter before `*` is a positional argument, which may be given as a flag all the same; one after it is a flag;
a mapping called `GROUP_options` takes `--GROUP.OPTION VALUE`: what the options are is the business of the part.
argparse splits the words, jsonargparse reads the values: its own parser stops at the first error, takes no flags
between positional words, and cannot hold `--data NAME` beside `--data.OPTION`.
"""

import argparse
import functools
import inspect
import re
import shutil
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from splatlearn.config import check_value, merge, repeated_keys
from splatlearn.errors import ConfigError, nearest

METAVARS = {"data": "NAME_OR_DIR", "encoder": "NAME_OR_RUN", "teacher": "NAME", "run": "DIR", "json": "FILE"}
"""What stands for a value in the help where the type alone says too little."""


def explain(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """First line of a docstring, and what it says of each argument."""
    from docstring_parser import parse as parse_docstring

    parsed = parse_docstring(function.__doc__ or "")
    return parsed.short_description or "", {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a verb by name, with real types; what it returns may be a name for type checkers only."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    hints = typing.get_type_hints(SimpleNamespace(__annotations__=annotations), function.__globals__)
    signature = inspect.signature(function).parameters
    return {name: parameter.replace(annotation=hints[name]) for name, parameter in signature.items()}


def parse(function: Callable[..., Any], words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of `function` from the words of a command.

    Raises:
        ConfigError: every unknown flag, missing or invalid value, in one message.
    """
    known = parameters(function)
    parser = build_parser(function.__name__, function, words)
    found, surplus = parser.parse_known_intermixed_args(words, argparse.Namespace(problems=parser.problems))
    given = vars(found)
    problems: list[str] = given.pop("problems")
    problems += [f"{word}: one argument too many; options start with '--'" for word in surplus]
    problems += [
        f"--{name} and --train.{name}: give one of them"
        for name in given.get("train_options", {})
        if name in given and name in known
    ]
    if "config" in given:
        path = given.pop("config")
        given = _over(path, _from_file(path, known, problems), given, problems)
    for name, parameter in known.items():
        if name in given:
            given[name] = _checked(given[name], parameter, problems)
        elif parameter.default is Parameter.empty:
            problems.append(f"{_shown(parameter)}: required")
    if problems:
        raise ConfigError("\n".join(problems))
    positional: list[Any] = []
    for parameter in filter(_is_positional, known.values()):
        value = given.pop(parameter.name, parameter.default)
        positional += value if parameter.kind is Parameter.VAR_POSITIONAL else [value]
    return positional, given


class Layout(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, 110 characters at most; `--steps N`, though the parser bears a missing N."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(shutil.get_terminal_size((100, 24)).columns, 110))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar)


class CommandParser(argparse.ArgumentParser):
    """A parser whose own errors are `ConfigError`; `problems` are the unknown flags of the words it was made for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Layout, add_help=False, allow_abbrev=False, **settings)
        self._negative_number_matcher = re.compile(r"-\.?\d")  # Python 3.14's: older ones refuse `-1e-3` and `-1,2`
        self.problems: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Raises: ConfigError."""
        raise ConfigError(message)


class Store(argparse.Action):
    """Keeps the text of a flag, that of `--GROUP.OPTION` under its option; a missing one is a problem."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        group, _, option = (option_string or "").partition(".")
        option = option.replace("-", "_")
        if values is None:
            namespace.problems.append(f"{option_string}: needs a value")
        elif option:
            values = merge({group: getattr(namespace, self.dest, {})}, {f"{group}.{option}": values})[group]
        if values is not None:
            setattr(namespace, self.dest, values)


def build_parser(name: str, function: Callable[..., Any], words: Sequence[str] = ()) -> CommandParser:
    """The parser of a verb.

    Args:
        name: of the verb.
        function: the verb; its parameters are the arguments.
        words: of the command: their `--GROUP.OPTION` flags are added, and unknown flags as problems.
    """
    summary, described = explain(function)
    known = parameters(function).values()
    body = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0].partition("\n")[2].strip()
    needed = filter(None, map(_in_usage, sorted(known, key=_is_positional, reverse=True)))
    parser = CommandParser(
        prog=f"splatlearn {name}",
        usage=" ".join(["%(prog)s", *needed, "[options]"]),
        description=f"{summary}\n\n{body}".strip(),
    )
    given = dict.fromkeys(word.partition("=")[0] for word in words if re.match("--.", word))
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    actions = [action for p in known for action in _add(add, p, described.get(p.name, ""), given)]
    file = "YAML file of the same settings (a run's config.yaml is one); flags win over it"
    actions.append(add("--config", metavar="FILE", nargs="?", action=Store, help=file))
    add("--debug", action="store_true", help="show the traceback of an error")
    add("-h", "--help", action="store_true", help="show this help")
    flags = [_shown(p) for p in known if not _is_positional(p)]
    taken = {"--debug", "--help", *(flag for action in actions for flag in action.option_strings)}
    for flag in [flag for flag in given if flag not in taken]:
        add(flag, nargs="?", help=argparse.SUPPRESS)
        parser.problems.append(f"{flag}: unknown{nearest(flag, flags)} (known: {', '.join(flags)})")
    return parser


def _add(
    add: Callable[..., argparse.Action], parameter: Parameter, text: str, given: Iterable[str]
) -> list[argparse.Action]:
    """Adds one parameter. None is required of the parser: a file may give it too."""
    text = (text + _default(parameter)).replace("%", "%%")
    flag = f"--{parameter.name.replace('_', '-')}"
    if _is_positional(parameter):
        nargs = "*" if parameter.kind is Parameter.VAR_POSITIONAL else "?"
        return [
            add(parameter.name, metavar=_shown(parameter), nargs=nargs, help=text),
            add(flag, dest=parameter.name, nargs="?", action=Store, help=argparse.SUPPRESS),
        ]
    head, dot, _ = _shown(parameter).partition(".")
    options = [word for word in given if dot and word.startswith(f"{head}.")]
    names = dict.fromkeys([_shown(parameter), *options])
    const = "true" if parameter.annotation is bool else None
    shown = "VALUE" if dot else _metavar(parameter)
    return [add(*names, dest=parameter.name, metavar=shown, nargs="?", const=const, action=Store, help=text)]


def _shown(parameter: Parameter) -> str:
    """How an argument is written: `RECIPE`, `--steps`, `--data.OPTION`."""
    if _is_positional(parameter):
        return parameter.name.upper()
    group = parameter.name.removesuffix("_options")
    return f"--{group}.OPTION" if group != parameter.name else f"--{group.replace('_', '-')}"


def _is_positional(parameter: Parameter) -> bool:
    return parameter.kind is not Parameter.KEYWORD_ONLY


def _in_usage(parameter: Parameter) -> str:
    """What the usage line says of an argument, nothing of one that may be left out by its flag."""
    shown, needed = _shown(parameter), parameter.default is Parameter.empty
    if not _is_positional(parameter):
        return f"{shown} {_metavar(parameter)}" if needed else ""
    shown += "..." if parameter.kind is Parameter.VAR_POSITIONAL else ""
    return shown if needed else f"[{shown}]"


def _default(parameter: Parameter) -> str:
    default = parameter.default
    if default is Parameter.empty:
        return "" if _is_positional(parameter) else " (required)"
    if default in (None, False, (), ""):
        return ""
    return f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"


def _metavar(parameter: Parameter) -> str:
    hint = parameter.annotation
    if parameter.name in METAVARS:
        return METAVARS[parameter.name]
    choices = [arg for arg in typing.get_args(hint) if arg is not type(None)] or [hint]
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, choices))
    for choice in (hint, *choices):
        if typing.get_origin(choice) is tuple:
            return "TEXT,..." if str in typing.get_args(choice) else ",".join("N" * len(typing.get_args(choice)))
    kinds = {bool: "", int: "N", float: "X", Path: "PATH", str: "TEXT"}
    return next((text for kind, text in kinds.items() if kind in choices), "VALUE")


def _from_file(path: str, known: Mapping[str, Parameter], problems: list[str]) -> dict[str, Any]:
    """Settings of a YAML file; parts may be nested as in a run's config.yaml, `data: {name: x, options: {}}`."""
    import yaml

    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read: {error.strerror}; give a YAML file of settings") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, Mapping):
        raise ConfigError(f"--config {path}: expected settings (`steps: 300`), got {type(settings).__name__}")
    if twice := repeated_keys(text):
        problems.append(f"--config {path}: {', '.join(twice)} given twice, of which only the last would count")
    given: dict[str, Any] = {}
    for key, value in settings.items():
        head, _, option = str(key).partition(".")
        options = f"{head}_options"
        if options in known and option:
            given = merge(given, {options: {option: value}})
        elif options in known and isinstance(value, Mapping):
            if head in known and set(value) <= {"name", "options", "weights"}:  # weights: what lay there then
                given[head], value = value.get("name"), value.get("options") or {}
            given = merge(given, {options: value})
        elif key in known:
            given[key] = value
        else:
            names = [name.removesuffix("_options") for name in known]
            problems.append(f"--config {path}: {key}: unknown{nearest(str(key), names)} (known: {', '.join(names)})")
    return given


def _over(path: str, file: Mapping[str, Any], flags: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Flags over a file. What a flag replaces goes: the options of a part that gets another name, and `seed` or
    `steps` of the file where a flag sets that of the training loop, or the other way round."""
    if "preset" in file and flags.get("preset", file["preset"]) != file["preset"]:
        problems.append(
            f"--preset {flags['preset']}: --config {path} is of the preset {file['preset']} and holds its settings; "
            "leave one of them out"
        )
    renamed = {f"{name}_options" for name, value in flags.items() if name in file and value != file[name]}
    replaced = renamed | set(flags.get("train_options", {}))
    kept = {name: value for name, value in file.items() if name not in replaced}
    if isinstance(training := kept.get("train_options"), Mapping):
        kept["train_options"] = {name: value for name, value in training.items() if name not in flags}
    return merge(kept, flags)


def _checked(value: Any, parameter: Parameter, problems: list[str]) -> Any:
    where, hint = _shown(parameter), parameter.annotation
    if where.endswith(".OPTION"):
        if not isinstance(value, Mapping):
            problems.append(f"{where}: a mapping expected, got {value!r}")
        return value
    if parameter.kind is Parameter.VAR_POSITIONAL:
        values = value if isinstance(value, list) else [value]
        return [check_value(item, hint, where, problems) for item in values]
    checked = check_value(value, hint, where, problems)
    return checked.expanduser() if isinstance(checked, Path) else checked
