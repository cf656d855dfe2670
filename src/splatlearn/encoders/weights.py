"""Published weights: files of tensors, and a report that names every key.

A layout translates published keys and axis orders into ours (`layouts`). Loading is strict: whatever does not fit is
listed in one error, and nothing is loaded then.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from splatlearn.encoders.layouts import LAYOUTS, Layout
from splatlearn.errors import BadData, ConfigError, UserError, nearest

TORCH_FILES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
"""Endings of files that `torch.save` wrote; whatever else, but for `.npz`, is safetensors."""
PLAIN = (Namespace,)
"""What a checkpoint may hold beside tensors and containers: settings of a command line (DUNE, UNIC, MASt3R). torch's
reader makes these and sets their values; it runs no code of the file."""
NESTED = ("state_dict", "model_state_dict", "model", "model_point", "model_points", "net")
"""Where training code puts the state dict inside a checkpoint (Pointcept, VoteNet, others; ScaLR, WaffleIron)."""


@dataclass(frozen=True)
class KeyReport:
    """What became of each key of a file.

    Args:
        loaded: our keys that got a value.
        missing: our keys that the file lacks.
        unexpected: keys of the file (as published) that no part of the network takes.
        mismatched: `key: shape found, shape expected`.
        unused: keys of the file that the layout allows to be left over (a classifier, the rest of a detector).
        kept: our keys that the layout allows to be absent from the file; they keep their values.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every key found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} keys loaded"]
        for kind in ("missing", "unexpected", "mismatched", "unused", "kept"):
            if keys := getattr(self, kind):
                parts.append(f"{len(keys)} {kind}: {', '.join(keys)}")
        return "; ".join(parts)


def load_weights(
    module: nn.Module, source: str | Path | Mapping[str, Tensor], layout: str | Layout = "splatlearn"
) -> KeyReport:
    """Loads a state dict, or a file of one, into `module`.

    Args:
        module: the network.
        source: file, or key -> tensor.
        layout: name in `LAYOUTS`, or one of its own.

    Raises:
        BadData: no such file, or not one of tensors.
        ConfigError: no such layout.
        UserError: keys or shapes do not fit; all of them are listed, and nothing was loaded.
    """
    state = read_weights(source) if isinstance(source, str | Path) else source
    name = source if isinstance(source, str | Path) else "the state dict"
    values, report = match_keys(module, state, layout)
    if not report.complete:
        how = f" in layout {layout!r}" if isinstance(layout, str) else ""
        raise UserError(f"{name} does not fit {type(module).__name__}{how}: {report}")
    if reason := find_layout(layout).refuses(module, state):
        raise UserError(f"{name}: the keys fit {type(module).__name__}, but {reason}")
    module.load_state_dict(values, strict=False)
    return report


def find_layout(layout: str | Layout) -> Layout:
    """The published layout of a name; one that is given is taken as it is.

    Raises:
        ConfigError: no such layout.
    """
    if isinstance(layout, str) and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}{nearest(layout, LAYOUTS)} (known: {', '.join(LAYOUTS)})")
    return LAYOUTS[layout] if isinstance(layout, str) else layout


def match_keys(
    module: nn.Module, state: Mapping[str, Tensor], layout: str | Layout = "splatlearn"
) -> tuple[dict[str, Tensor], KeyReport]:
    """What of `state` fits `module`, under our keys, and the report of the rest; nothing is loaded.

    Raises:
        ConfigError: no such layout.
    """
    rules, own = find_layout(layout), module.state_dict()
    values: dict[str, Tensor] = {}
    lists: dict[str, list[str]] = {"unexpected": [], "mismatched": [], "unused": [], "missing": [], "kept": []}
    for published, value in state.items():
        key, value = rules.convert(published, value)
        if key is None or key not in own:
            lists["unused" if rules.excuses(published, key) else "unexpected"].append(published)
        elif value.shape != own[key].shape:
            lists["mismatched"].append(f"{key}: {tuple(value.shape)} found, {tuple(own[key].shape)} expected")
            values[key] = value
        else:
            values[key] = value
    for key in own.keys() - values.keys():
        lists["kept" if key.startswith(rules.kept) else "missing"].append(key)
    fitting = tuple(key for key, value in values.items() if value.shape == own[key].shape)
    report = KeyReport(loaded=fitting, **{kind: tuple(sorted(keys)) for kind, keys in lists.items()})
    return values, report


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Key -> tensor of a file, on the host: safetensors, `.npz`, or what `torch.save` wrote; no code of it is run.

    Raises:
        BadData: no such file, or it holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BadData(f"weights {path}: no such file")
    if path.suffix in TORCH_FILES:
        return read_torch_file(path)
    if path.suffix == ".npz":
        return _read_arrays(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadData(f"weights {path}: not a readable safetensors file ({error})") from error


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise BadData(f"weights {path}: not a readable npz file of arrays ({error})") from error


def read_torch_file(path: Path, file: IO[bytes] | None = None) -> dict[str, Tensor]:
    """The state dict of what `torch.save` wrote, which may be an entry of a checkpoint.

    Args:
        path: the file, or what it is called in messages.
        file: what is read in its place.

    Raises:
        BadData: it holds anything but named tensors.
    """
    try:
        with torch.serialization.safe_globals(list(PLAIN)):
            state = torch.load(file or path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds, which all mean this
        raise BadData(f"weights {path}: not a file of tensors ({type(error).__name__})") from error
    if isinstance(state, Mapping):
        state = next((state[name] for name in NESTED if isinstance(state.get(name), Mapping)), state)
    if not isinstance(state, Mapping):
        raise BadData(f"weights {path}: named tensors expected, got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise BadData(f"weights {path}: named tensors expected, but {name!r} is of type {type(value).__name__}")
    return dict(state)
