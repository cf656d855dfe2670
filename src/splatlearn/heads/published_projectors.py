"""The projectors in DUNE's and UNIC's files: whose they are, of which kind, and which of them a student can use."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from splatlearn.encoders.vit import ViT
from splatlearn.encoders.weights import load_weights
from splatlearn.errors import UserError
from splatlearn.heads.projectors import (
    AnyProjectorConfig,
    ImageProjector,
    LadderProjectorConfig,
    TransformerProjectorConfig,
    create_projector,
    describe_projector,
    projector_layout,
)

BEGINNINGS = ("projectors.", "lp.")
"""Of the keys of projectors, without what several processes put before them."""
OF_TEACHER = re.compile(r"(?:projectors|lp\.heads)\.([^.]+)\.(.+)")
OF_LADDER = re.compile(r"(?:cls|patch)\.(\d+)\..+")


@dataclass(frozen=True)
class PublishedProjectors:
    """The projectors of a file.

    Args:
        found: teacher -> config and projector, with the file's weights and in eval mode.
        refused: teacher, or a key of none -> why the student cannot use it.
    """

    found: Mapping[str, tuple[AnyProjectorConfig, ImageProjector]]
    refused: Mapping[str, str]

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """`describe_projector` of each that was found."""
        return {teacher: describe_projector(*found) for teacher, found in self.found.items()}


def read_projectors(state: Mapping[str, Tensor], student: ViT, norm: bool) -> PublishedProjectors:
    """DUNE's transformer projectors or UNIC's ladders; every key of theirs is used, or named in why it is not.

    Args:
        state: published key, without the prefix of several processes -> tensor.
        student: the encoder of the same file, with the levels that it is to have.
        norm: whether the final norm was trained, so that the projectors learnt from levels after it.
    """
    found, refused = {}, {}
    for teacher, own in _by_teacher(state).items():
        try:
            if student.config.norm != norm:
                raise UserError(f"it learnt from levels with norm {norm}: leave --encoder.norm out")
            found[teacher] = _read(teacher, own, student, _has_summary(teacher, state))
        except UserError as error:
            refused[teacher] = str(error)
    return PublishedProjectors(found, refused)


def _by_teacher(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Teacher -> key below its name -> tensor; a key of no teacher stands alone."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(BEGINNINGS):
            teacher, rest = match.groups() if (match := OF_TEACHER.fullmatch(key)) else (key, key)
            parts.setdefault(teacher, {})[rest] = value
    return parts


def _has_summary(teacher: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the class token was taught: UNIC has weights for it, DUNE statistics; without any it is taken to be."""
    starts = (f"teacher_norms.{teacher}.normalizers.", f"lp.heads.{teacher}.")
    kinds = {key.removeprefix(start).split(".")[0] for key in state for start in starts if key.startswith(start)}
    return not kinds or "cls" in kinds


def _read(
    teacher: str, own: Mapping[str, Tensor], student: ViT, summary: bool
) -> tuple[AnyProjectorConfig, ImageProjector]:
    ladder = any(OF_LADDER.fullmatch(key) for key in own)
    config, out_channels = _ladder(own, student) if ladder else _transformer(own, student)
    projector = create_projector(config, student.channels, out_channels, summary)
    layout = replace(projector_layout(teacher, student.config.blocks), ignored=())
    start = f"lp.heads.{teacher}." if ladder else f"projectors.{teacher}."
    load_weights(projector, {f"{start}{key}": value for key, value in own.items()}, layout)
    return config, projector.eval()


def _transformer(own: Mapping[str, Tensor], student: ViT) -> tuple[TransformerProjectorConfig, int]:
    """Config and teacher's width."""
    last = student.config.depth - 1
    if student.config.blocks[-1] != last:
        raise UserError(f"it reads block {last}, the last, of which the encoder gives no level: add it to the levels")
    blocks = {key.split(".")[1] for key in own if key.startswith("blocks.")}
    scale = 1e-4 if any(key.endswith(".ls1.gamma") for key in own) else 0.0
    return TransformerProjectorConfig(blocks=len(blocks), layer_scale=scale), _rows(own, "linear.weight")


def _ladder(own: Mapping[str, Tensor], student: ViT) -> tuple[LadderProjectorConfig, int]:
    """Config and teacher's width."""
    needed = sorted({int(match[1]) for key in own if (match := OF_LADDER.fullmatch(key))})
    given = list(student.config.blocks)
    if needed != given:
        raise UserError(f"it reads the blocks {needed}, the encoder's levels are {given}: leave --encoder.levels out")
    first, last = (_rows(own, f"patch.{block}.layers.0.weight") for block in (needed[0], needed[-1]))
    return LadderProjectorConfig(hidden=first, last_hidden=last), _rows(own, f"patch.{needed[-1]}.layers.2.weight")


def _rows(own: Mapping[str, Tensor], key: str) -> int:
    if key not in own:
        raise UserError(f"no projector of DUNE or UNIC: {key} is expected, and there are {', '.join(own)}")
    return own[key].shape[0]
