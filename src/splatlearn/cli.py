"""The command line: made from the verb functions' signatures and docstrings, errors turned into exit codes.

A parameter before `*` is a positional argument, which may be given as a flag all the same; one after it is a flag;
a mapping called `GROUP_options` takes `--GROUP.OPTION VALUE`: what the options are is the business of the part.
"""

import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from splatlearn import __version__
from splatlearn.config import check_value, merge
from splatlearn.errors import ConfigError, UserError, nearest
from splatlearn.verbs import VERBS, columns, verb

METAVARS = {"data": "NAME_OR_DIR", "encoder": "NAME_OR_RUN", "run": "DIR", "json": "FILE"}
"""What stands for a value in the help where the type alone says too little."""
COMMON = (
    ("--config FILE", "YAML file of the same settings (a run's config.yaml is one); flags win over it"),
    ("--debug", "show the traceback of an error"),
    ("-h, --help", "show this help"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 success, 2 a user's error, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        _show(run([word for word in words if word != "--debug"]))
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("splatlearn: interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        if debug or (isinstance(error, OSError) and error.filename is None):
            raise
        sys.stderr.write(_message(error))
        return 2
    return 0


def run(words: Sequence[str]) -> Any:
    """What the command returns: the verb's result, or a help text."""
    if not words or words[0] in ("-h", "--help"):
        return overview()
    if words[0] in ("-V", "--version"):
        return f"splatlearn {__version__}"
    name, rest = words[0], words[1:]
    if name not in VERBS:
        raise ConfigError(f"unknown verb {name!r}{nearest(name, VERBS)} (known: {', '.join(VERBS)})")
    function = verb(name)
    if "-h" in rest or "--help" in rest:
        return usage(name, function)
    positional, flags = parse(function, rest)
    return function(*positional, **flags)


def overview() -> str:
    """The help of `splatlearn` without a verb."""
    rows = [(name, explain(verb(name))[0]) for name in VERBS]
    return (
        f"splatlearn {__version__}: pre-train encoders without labels, and prove what they learnt\n\n"
        f"usage: splatlearn VERB ...\n\n{columns(rows)}\n\n`splatlearn VERB --help` explains a verb."
    )


@dataclass(frozen=True)
class Parameter:
    """One argument of a verb.

    Args:
        name: of the function's parameter.
        hint: its type; of one item when `repeated`.
        default: `inspect.Parameter.empty` when it must be given.
        positional: given by place, not by flag.
        repeated: takes every remaining positional word.
        group: `data` for `data_options`, else empty.
    """

    name: str
    hint: Any
    default: Any
    positional: bool
    repeated: bool
    group: str

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    @property
    def shown(self) -> str:
        """How it is written: `RECIPE`, `--steps`, `--data.OPTION`."""
        if self.group:
            return f"--{self.group}.OPTION"
        return self.name.upper() if self.positional else f"--{self.name.replace('_', '-')}"


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The arguments of a verb by name."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    hints = typing.get_type_hints(SimpleNamespace(__annotations__=annotations), function.__globals__)
    return {name: _parameter(p, hints[name]) for name, p in inspect.signature(function).parameters.items()}


def parse(function: Callable[..., Any], words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of `function` from the words of a command.

    Raises:
        ConfigError: every unknown flag, missing or invalid value, in one message.
    """
    known, problems = parameters(function), []
    given = _given(words, known, problems)
    if "config" in given and "config" not in known:
        given = merge(_from_file(given.pop("config"), known, problems), given)
    for name, parameter in known.items():
        if name in given:
            given[name] = _checked(given[name], parameter, problems)
        elif parameter.required:
            problems.append(f"{parameter.shown}: required")
    if problems:
        raise ConfigError("\n".join(problems))
    places = [p for p in known.values() if p.positional]
    words_of = [value for p in places for value in _spread(given.pop(p.name, p.default), p.repeated)]
    return words_of, given


def usage(name: str, function: Callable[..., Any]) -> str:
    """The help of one verb."""
    summary, described = explain(function)
    known = parameters(function)
    body = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0].partition("\n")[2].strip()
    first = [
        p.shown + ("..." if p.repeated else "") if p.required else f"[{p.shown}]"
        for p in known.values()
        if p.positional
    ]
    needed = [f"{p.shown} {_metavar(p)}" for p in known.values() if p.required and not p.positional]
    rows = [(_left(p), _right(p, described.get(p.name, ""))) for p in known.values()]
    sections = [
        f"usage: splatlearn {' '.join([name, *first, *needed])} [options]",
        summary,
        body,
        columns([*rows, *COMMON]),
    ]
    return "\n\n".join(section for section in sections if section)


def explain(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """First line of a docstring, and what it says of each argument."""
    from docstring_parser import parse as parse_docstring

    parsed = parse_docstring(function.__doc__ or "")
    return parsed.short_description or "", {
        p.arg_name: " ".join((p.description or "").split()) for p in parsed.params
    }


def _given(words: Sequence[str], known: Mapping[str, Parameter], problems: list[str]) -> dict[str, Any]:
    """Parameter -> text (or mapping of texts, or list of texts); unknown flags become problems."""
    given: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        free = [p for p in known.values() if p.positional and (p.repeated or p.name not in given)]
        if word.startswith("--"):
            _flag(word, queue, known, given, problems)
        elif free and free[0].repeated:
            given.setdefault(free[0].name, []).append(word)
        elif free:
            given[free[0].name] = word
        else:
            problems.append(f"{word}: one argument too many; options start with '--'")
    return given


def _flag(
    word: str, queue: list[str], known: Mapping[str, Parameter], given: dict[str, Any], problems: list[str]
) -> None:
    flag, equals, value = word[2:].partition("=")
    head, _, option = flag.replace("-", "_").partition(".")
    name = f"{head}_options" if option else head
    parameter = known.get(name)
    if not equals:
        value = _next_value(queue, parameter)
    if name == "config" or (parameter and bool(option) == bool(parameter.group)):
        if value is None:
            problems.append(f"--{flag}: needs a value")
        elif option:
            given[name] = merge(given.get(name, {}), {option: value})
        else:
            given[name] = value
    else:
        flags = [p.shown for p in known.values() if not p.positional]
        problems.append(f"--{flag}: unknown{nearest(f'--{flag}', flags)} (known: {', '.join(flags)})")


def _next_value(queue: list[str], parameter: Parameter | None) -> str | None:
    if parameter and parameter.hint is bool and (not queue or queue[0] not in ("true", "false")):
        return "true"
    return queue.pop(0) if queue and not queue[0].startswith("--") else None


def _from_file(path: str, known: Mapping[str, Parameter], problems: list[str]) -> dict[str, Any]:
    """Settings of a YAML file; parts may be nested as in a run's config.yaml, `data: {name: x, options: {}}`."""
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, Mapping):
        raise ConfigError(f"--config {path}: expected settings (`steps: 300`), got {type(settings).__name__}")
    given: dict[str, Any] = {}
    for key, value in settings.items():
        _setting(str(key), value, path, known, given, problems)
    return given


def _setting(
    key: str,
    value: Any,
    path: str,
    known: Mapping[str, Parameter],
    given: dict[str, Any],
    problems: list[str],
) -> None:
    head, _, option = key.partition(".")
    options = f"{head}_options"
    if option and options in known:
        given[options] = merge(given.get(options, {}), {option: value})
    elif isinstance(value, Mapping) and options in known:
        part = dict(value)
        if head in known and set(part) <= {"name", "options"}:
            given[head] = part.pop("name", None)
            part = part.get("options") or {}
        given[options] = merge(given.get(options, {}), part)
    elif key in known:
        given[key] = value
    else:
        names = [p.group or p.name for p in known.values()]
        problems.append(f"--config {path}: {key}: unknown{nearest(key, names)} (known: {', '.join(names)})")


def _checked(value: Any, parameter: Parameter, problems: list[str]) -> Any:
    where = parameter.shown
    if parameter.group:
        if not isinstance(value, Mapping):
            problems.append(f"{where}: a mapping expected, got {value!r}")
        return value
    if parameter.repeated:
        values = value if isinstance(value, list) else [value]
        return [check_value(item, parameter.hint, where, problems) for item in values]
    return check_value(value, parameter.hint, where, problems)


def _parameter(parameter: inspect.Parameter, hint: Any) -> Parameter:
    positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    repeated = parameter.kind is inspect.Parameter.VAR_POSITIONAL
    return Parameter(
        name=parameter.name,
        hint=hint,
        default=parameter.default,
        positional=positional,
        repeated=repeated,
        group=parameter.name.removesuffix("_options") if parameter.name.endswith("_options") else "",
    )


def _spread(value: Any, repeated: bool) -> list[Any]:
    return list(value) if repeated else [value]


def _left(parameter: Parameter) -> str:
    if parameter.positional:
        return parameter.shown
    return f"{parameter.shown} {'VALUE' if parameter.group else _metavar(parameter)}".rstrip()


def _right(parameter: Parameter, text: str) -> str:
    if parameter.required and not parameter.positional:
        return f"{text} (required)"
    if parameter.required or parameter.default in (None, False, (), "") or parameter.group:
        return text
    default = parameter.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def _metavar(parameter: Parameter) -> str:
    hint = parameter.hint
    if parameter.name in METAVARS:
        return METAVARS[parameter.name]
    if tuple in {typing.get_origin(choice) for choice in (hint, *typing.get_args(hint))}:
        return "N,N"
    choices = [arg for arg in typing.get_args(hint) if arg is not type(None)] or [hint]
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, choices))
    kinds = {bool: "", int: "N", float: "X", Path: "PATH", str: "TEXT"}
    return next((text for kind, text in kinds.items() if kind in choices), "VALUE")


def _message(error: Exception) -> str:
    """One problem on one line, several below each other."""
    lines = str(error).splitlines() or [type(error).__name__]
    return "splatlearn: error: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0]).lstrip(" ") + "\n"


def _show(result: Any) -> None:
    """Prints what a verb returned, once where several processes run."""
    if result is None or os.environ.get("RANK", "0") != "0":
        return
    if isinstance(result, Mapping):
        import json

        result = json.dumps(result, indent=2, default=str)
    sys.stdout.write(f"{result}\n")
