"""Run folders and checkpoints: written whole or not at all, checked by digest, never unpickled.

A run folder holds `config.yaml`, `log.jsonl`, `summary.json` and `checkpoints/step-N/`; a checkpoint holds
`model.safetensors`, `optimizer.safetensors`, with averaging `average.safetensors`, for a recipe
`encoder.safetensors`, `encoder.json` and, where it has any, `projectors.safetensors`, then `state.json`, and
`manifest.json` with the SHA-256 digest of each, written last.
"""

import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import splatlearn
from splatlearn import registry
from splatlearn.config import changed, to_options
from splatlearn.encoders.base import Encoder
from splatlearn.encoders.weights import load_weights
from splatlearn.engine.config import RESULT_FREE
from splatlearn.engine.lock import LOCK, FolderLock
from splatlearn.errors import BadData, UserError, nearest
from splatlearn.heads.projectors import ImageProjector, projector_of

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
LOG = "log.jsonl"
SUMMARY = "summary.json"
PROJECTORS = "projectors.safetensors"
WITHIN = "/"
"""Stands between a teacher's name and a key of its projector."""
LIBRARIES = ("torch", "numpy", "numba", "lightning", "safetensors", "timm")


class Damaged(BadData):
    """A checkpoint that is not whole: a file is missing, half-written or altered."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from.

    Args:
        state: `step` (steps done) and what else is plain data.
        tensors: file stem (`model`, `optimizer`, `average`, `encoder`, `projectors`) -> name -> tensor.
        folder: where it lies.
    """

    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]
    folder: Path


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    encoder: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Writes `folder/step-N` from `state["step"]` and removes all but the newest `keep`.

    Args:
        folder: `RUN/checkpoints`.
        state: plain data.
        tensors: file stem -> name -> tensor, from any device.
        encoder: `describe_encoder` of the tensors named `encoder`.
        keep: checkpoints that stay.
    """
    final = folder / f"step-{state['step']:08d}"
    temporary = folder / f".{final.name}.tmp"
    _discard_leftovers(folder)
    temporary.mkdir(parents=True)
    for stem, values in tensors.items():
        own = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in values.items()}
        save_file(own, temporary / f"{stem}.safetensors")
    if encoder is not None:
        _write_json(temporary / "encoder.json", encoder)
    _write_json(temporary / "state.json", _plain(state))
    digests = {path.name: digest(path) for path in sorted(temporary.iterdir())}
    for path in temporary.iterdir():
        _sync(path)
    _write_json(temporary / MANIFEST, {"sha256": digests})
    _sync(temporary / MANIFEST)
    _sync(temporary)
    replaced = _hide(final) if final.exists() else None  # damaged, or of a step that is done or saved again
    temporary.rename(final)
    _sync(folder)
    if replaced:
        shutil.rmtree(replaced)
    done = [path for path in _checkpoints(folder) if path.name <= final.name]  # later ones are damaged ones
    for old in done[:-keep]:
        shutil.rmtree(_hide(old))
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads one checkpoint after comparing every digest.

    Raises:
        Damaged: names the file and what is wrong with it.
    """
    check(folder)
    files = sorted(folder.glob("*.safetensors"))
    state = json.loads((folder / "state.json").read_text())
    return Checkpoint(state, {path.stem: load_file(path) for path in files}, folder)


def check(folder: Path) -> None:
    """Compares every file with the manifest.

    Raises:
        Damaged: names the file and what is wrong with it.
    """
    try:
        digests = json.loads((folder / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"checkpoint {folder}: no readable {MANIFEST}, so it was not finished ({error})") from error
    for name, expected in digests.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"checkpoint {folder}: {name} is missing")
        if digest(path) != expected:
            raise Damaged(f"checkpoint {folder}: {name} is damaged (its SHA-256 differs from {MANIFEST})")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `RUN/checkpoints`; a damaged one is passed over with a warning.

    Raises:
        UserError: there are checkpoints, and none is whole.
    """
    problems = []
    for candidate in reversed(_checkpoints(folder)):
        try:
            check(candidate)
        except Damaged as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem}; {candidate.name} is used instead", stacklevel=2)
        return candidate
    if problems:
        raise UserError("\n".join(["no checkpoint is whole:", *problems]))
    return None


def recover(folder: Path) -> None:
    """Gives whole checkpoints their names back that a kill left hidden; only for the process that writes here.

    One of a step that is saved again is hidden before the new one has its name.
    """
    for hidden in sorted(folder.glob(".step-*.tmp"), reverse=True):  # of one step, the new one before the old one
        final = folder / hidden.name.split(".")[1]
        try:
            check(hidden)
        except Damaged:
            continue
        if not final.exists():
            hidden.rename(final)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _discard_leftovers(folder: Path) -> None:
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def _hide(folder: Path) -> Path:
    """Renames a checkpoint that is to be removed, so that a kill leaves no half of it under its name."""
    return folder.rename(folder.with_name(f".{folder.name}.old.tmp"))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    found = {"python": platform.python_version(), "splatlearn": splatlearn.__version__}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one configuration of one run.

    Args:
        path: the folder.
        settings: nested plain data, what `config.yaml` holds; its part `train` is the `TrainConfig`.
    """

    path: Path
    settings: Mapping[str, Any]

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @cached_property
    def lock(self) -> FolderLock:
        """What keeps other processes out."""
        return FolderLock(self.path)

    def claim(self, resume: Literal["auto", "never"]) -> None:
        """Locks the folder if it is there, brings back what a kill left hidden, and checks it.

        Raises:
            UserError: as `check`, or another process runs here.
        """
        if self.path.is_dir():
            self.lock.take()
            recover(self.checkpoints)
        self.check(resume)

    def check(self, resume: Literal["auto", "never"]) -> None:
        """Whether the run may start here or continue; writes nothing.

        A run that ended before its first step has left its `config.yaml` alone, and another may take its place.

        Raises:
            UserError: the folder is something else, is a run that must not be continued, has another config, or is
                a finished run without its checkpoints.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"--run {self.path}: this is a file; name a folder")
        there = sorted(p.name for p in self.path.iterdir() if p.name != LOCK and not p.name.endswith(".tmp"))
        if not there:
            return
        if CONFIG not in there:
            raise UserError(
                f"--run {self.path}: the folder exists and is no run (no {CONFIG}; it holds "
                f"{', '.join(there[:5])}); nothing is overwritten, name another folder"
            )
        stored = self._stored()
        if there == [CONFIG] and "train" in stored:
            return
        if resume == "never":
            raise UserError(
                f"--run {self.path}: the run exists and --resume is never; use --resume auto or another folder"
            )
        differences = changed(_relevant(stored), _relevant(self.settings))
        if differences:
            lines = "\n  ".join(differences)
            raise UserError(
                f"--run {self.path}: the run was started with another configuration; give the same, or "
                f"another folder (there -> here):\n  {lines}"
            )
        if SUMMARY in there and not _checkpoints(self.checkpoints):
            raise UserError(
                f"--run {self.path}: the run is finished, but its checkpoints are gone, so that its weights cannot be "
                "read; bring them back, name another folder, or remove this one to train again"
            )

    def begin(self) -> None:
        """Makes and locks the folder, if `claim` found none, and writes `config.yaml`, unless there is a log or a
        checkpoint to continue from.

        Raises:
            UserError: another process made the folder meanwhile.
        """
        if not self.lock.held:
            self.lock.take(new=True)
        if not (self.path / LOG).exists() and not _checkpoints(self.checkpoints):
            replace_file(self.path / CONFIG, yaml.safe_dump(_plain(self.settings), sort_keys=False))

    def _stored(self) -> Mapping[str, Any]:
        try:
            stored = yaml.safe_load((self.path / CONFIG).read_text())
        except yaml.YAMLError as error:
            raise BadData(f"{self.path / CONFIG}: not readable as YAML ({error})") from error
        if not isinstance(stored, Mapping):
            raise BadData(f"{self.path / CONFIG}: a mapping of settings is needed")
        return stored


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, paths as strings: what a file gives back."""
    return json.loads(json.dumps(settings, default=str))


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain = _plain(settings)
    training = plain.get("train")
    if isinstance(training, dict):
        plain["train"] = {key: value for key, value in training.items() if key not in RESULT_FREE}
    return plain


def environment(teachers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What bit-for-bit continuation needs to be the same."""
    return {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "teachers": dict(teachers or {}),
    }


def warn_about_changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Says what of `environment` differs from the checkpoint's: the run continues, but not bit for bit."""
    keys = [key for key in now if key in stored]
    differences = changed(_plain({k: stored[k] for k in keys}), _plain({k: now[k] for k in keys}))
    if differences:
        warnings.warn(
            "continued, but not bit for bit as an uninterrupted run would: " + "; ".join(differences), stacklevel=2
        )


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """What `load_encoder` needs beside the weights.

    Raises:
        UserError: the encoder was not made by the registry, so that it has no name.
    """
    if not encoder.name:
        raise UserError(f"{type(encoder).__name__} has no name; make encoders by registry.encoders.create")
    config = getattr(encoder, "config", None)
    return {
        "name": encoder.name,
        "options": {} if config is None else to_options(config),
        "inputs": list(getattr(config, "inputs", ())),
        "channels": list(encoder.channels),
        "splatlearn": splatlearn.__version__,
    }


def load_encoder(run: Path) -> Encoder:
    """The encoder that a run learnt, from its newest whole checkpoint; the averaged weights where they were kept.

    Args:
        run: a run folder, a checkpoint, or any folder with `encoder.safetensors` and `encoder.json`.

    Returns:
        The encoder on the host, in eval mode.

    Raises:
        UserError: there is no encoder here, or what is here does not fit together.
    """
    description, weights = _encoder_files(run)
    try:
        facts = json.loads(description.read_text())
        name, options = str(facts["name"]), dict(facts["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{description}: not the description of an encoder ({error!r})") from error
    encoder: Encoder = registry.encoders.create(name, options)
    encoder.name = name
    load_weights(encoder, weights)
    return encoder.eval()


def load_projector(run: Path, teacher: str) -> ImageProjector:
    """The projector that a run learnt for a teacher, beside the encoder that `load_encoder` gives.

    Args:
        run: as for `load_encoder`.
        teacher: its name in the run.

    Returns:
        The projector on the host, in eval mode.

    Raises:
        UserError: there is no encoder here, or no projector for this teacher, or what is here does not fit together.
    """
    description, weights = _encoder_files(run)
    facts = json.loads(description.read_text()).get("projectors", {})
    file = weights.with_name(PROJECTORS)
    if teacher not in facts or not file.is_file():
        known = f"it has {', '.join(facts)}" if facts else "it has none"
        raise UserError(f"--encoder.projector {teacher}: no such projector in {run}{nearest(teacher, facts)} ({known})")
    projector = projector_of(facts[teacher])
    start = f"{teacher}{WITHIN}"
    state = {key.removeprefix(start): value for key, value in load_file(file).items() if key.startswith(start)}
    load_weights(projector, state)
    return projector.eval()


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of several projectors under one roof, as `load_projector` takes them apart."""
    return {f"{name}{WITHIN}{key}": value for name, state in parts.items() for key, value in state.items()}


def encoder_digest(run: Path) -> str:
    """SHA-256 of the weights that `load_encoder` reads, in hexadecimal; raises as that does."""
    return digest(_encoder_files(run)[1])


def encoder_origin(run: Path) -> dict[str, Any]:
    """What `encoder.json` says of where converted weights came from (origin, licence...); empty of a run's own."""
    try:
        return dict(json.loads(_encoder_files(run)[0].read_text()).get("source") or {})
    except (ValueError, TypeError, AttributeError) as error:
        raise BadData(f"{run}: encoder.json is not the description of an encoder ({error!r})") from error


def _encoder_files(run: Path) -> tuple[Path, Path]:
    """Description and weights of the encoder in a folder."""
    run = Path(run).expanduser()
    folder = (newest_checkpoint(run / "checkpoints") if (run / "checkpoints").is_dir() else run) or run
    description, weights = folder / "encoder.json", folder / "encoder.safetensors"
    if not (description.is_file() and weights.is_file()):
        raise UserError(f"--encoder {run}: no encoder here: no checkpoint of a recipe, and no {weights.name}")
    return description, weights


def single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, with float64 rounded to float32."""
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in state.items()}


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under `prefix.`, without it."""
    return {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}
