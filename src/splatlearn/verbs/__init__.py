"""The verbs of the command line, one typed function each. Their modules import nothing heavy at the top."""

import json
import os
import shutil
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from splatlearn.errors import ConfigError, UserError

VERBS = {
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "check": "check:check",
    "fit": "fit:fit",
    "prepare": "prepare:prepare",
    "pretrain": "pretrain:pretrain",
    "sweep": "sweep:sweep",
    "evaluate": "evaluate:evaluate",
    "encode": "encode:encode",
    "compare": "compare:compare",
    "convert": "convert:convert",
    "view": "view:view",
    "list": "doctor:list_names",
}
"""Verb -> `module:function` in this room, in the order of the help."""


def verb(name: str) -> Callable[..., Any]:
    """The function of a verb, its module imported now."""
    module, _, function = VERBS[name].partition(":")
    return getattr(import_module(f"splatlearn.verbs.{module}"), function)


def check_size(size: tuple[int, int]) -> None:
    """Raises: ConfigError: `--size` is no width and height of 1 or more."""
    if min(size) < 1:
        raise ConfigError(f"--size: a width and height of 1 or more are needed, got {size[0]},{size[1]}")


def warn_idle(given: Mapping[str, bool], reason: str) -> None:
    """One warning about the flags that were given and have no effect, if there are any.

    Args:
        given: flag -> whether it was.
        reason: why they have none.
    """
    if flags := [flag for flag, there in given.items() if there]:
        warnings.warn(f"{' and '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect: {reason}", stacklevel=3)


def output_file(path: Path, flag: str) -> Path:
    """A file that a verb is to write, `~` expanded; asked before the work, so that nothing is done in vain.

    Args:
        path: as given.
        flag: that gave it, for the message (`--json`).

    Raises:
        UserError: it is a folder, or no file can be made there.
    """
    path = Path(path).expanduser()
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if path.is_dir():
        raise UserError(f"{flag} {path}: this is a folder; name a file")
    if there != path.absolute() and not there.is_dir():
        raise UserError(f"{flag} {path}: {there} is a file, so there can be no file below it")
    if not os.access(there, os.W_OK):
        raise UserError(f"{flag} {path}: {there} is not writable")
    return path


def check_parent(path: Path, flag: str, runs: Mapping[str, Path]) -> None:
    """Whether runs may be put, or continued, in a folder; writes nothing.

    Args:
        path: the folder.
        flag: that gave it, for the message (`--run`).
        runs: name -> folder of those that it is for; `status.json` knows them by these names.

    Raises:
        UserError: it is a file or a run itself, or holds something and none of the runs.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag} {path}: this is a file; name a folder")
    there = sorted(p.name for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
    if "config.yaml" in there:
        raise UserError(f"{flag} {path}: this is the folder of one run, and here are {len(runs)}; name another folder")
    ours = any(run.is_dir() for run in runs.values()) or not runs.keys().isdisjoint(_recorded(path))
    if there and not ours:
        shown = ", ".join(there[:5])
        raise UserError(
            f"{flag} {path}: the folder exists and holds none of these {len(runs)} runs, but {shown}; nothing is "
            "put among other things, name another folder"
        )


def _recorded(folder: Path) -> set[str]:
    """Names of the runs in a folder's `status.json`, or in those of all shares."""
    try:
        return {status["name"] for file in folder.glob("status*.json") for status in json.loads(file.read_bytes())}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


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
