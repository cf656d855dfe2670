"""The verbs of the command line, one typed function each. Their modules import nothing heavy at the top."""

import shutil
import textwrap
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

VERBS = {
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "check": "check:check",
    "pretrain": "pretrain:pretrain",
    "evaluate": "evaluate:evaluate",
    "encode": "encode:encode",
    "compare": "compare:compare",
    "list": "doctor:list_names",
}
"""Verb -> `module:function` in this room, in the order of the help."""


def verb(name: str) -> Callable[..., Any]:
    """The function of a verb, its module imported now."""
    module, _, function = VERBS[name].partition(":")
    return getattr(import_module(f"splatlearn.verbs.{module}"), function)


def columns(rows: Iterable[tuple[str, str]], left: int = 30, width: int = 0) -> str:
    """Two-column text: names, and explanations wrapped beside them.

    Args:
        rows: name and explanation.
        left: characters for the names at most; a longer name gets a line of its own.
        width: characters a line; 0 means the terminal's width, 110 at most.
    """
    rows = list(rows)
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 110)
    left = min(left, max((len(name) for name, _ in rows), default=0) + 2)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, max(width - left - 2, 30)) or [""]
        if len(name) > left - 2:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:{left}}{wrapped.pop(0)}".rstrip())
        lines += [f"  {'':{left}}{line}" for line in wrapped]
    return "\n".join(lines)
