"""The command line: one verb a command; errors are turned into exit codes."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from splatlearn import __version__
from splatlearn.arguments import build_parser, explain, parse
from splatlearn.errors import ConfigError, UserError, nearest
from splatlearn.verbs import VERBS, columns, verb


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
        return build_parser(name, function).format_help().rstrip()
    positional, flags = parse(function, rest)
    return function(*positional, **flags)


def overview() -> str:
    """The help of `splatlearn` without a verb."""
    rows = [(name, explain(verb(name))[0]) for name in VERBS]
    return (
        f"splatlearn {__version__}: pre-train encoders without labels, and prove what they learnt\n\n"
        f"usage: splatlearn VERB ...\n\n{columns(rows)}\n\n`splatlearn VERB --help` explains a verb."
    )


def _message(error: Exception) -> str:
    """One problem on one line, several below each other."""
    lines = str(error).splitlines() or [type(error).__name__]
    return "splatlearn: error: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0]).lstrip(" ") + "\n"


def _show(result: Any) -> None:
    """Prints what a verb returned, once where several processes run."""
    runtime = sys.modules.get("splatlearn.engine.runtime")  # not imported, so no other process shares the run
    if result is None or (runtime is not None and not runtime.is_main()):
        return
    if isinstance(result, Mapping):
        import json

        result = json.dumps(result, indent=2, default=str)
    sys.stdout.write(f"{result}\n")
