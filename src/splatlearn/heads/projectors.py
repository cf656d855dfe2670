"""From a student's features to a teacher's width; thrown away after pre-training.

`Projector` takes rows, of points for instance. The others take a student's maps and give maps in the teacher's width:
class token to class token, patches to patches. Legend: N rows, V views, D student's channels, C teacher's, h w tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from splatlearn.config import configure, require, to_options
from splatlearn.encoders.base import FeatureMaps
from splatlearn.encoders.layouts import Layout
from splatlearn.encoders.vit import initialize, transformer_block


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """A linear layer, or two with a ReLU between them.

    Args:
        hidden: width between the two layers, 2048 in ScaLR+ (its code); 0 means one layer (ScaLR).
    """

    hidden: int = 0

    def __post_init__(self) -> None:
        require({f"hidden: 0 or more channels, got {self.hidden}": self.hidden >= 0})


class Projector(nn.Module):
    """Packed rows of a student to the width of a teacher.

    Args:
        config: its settings.
        channels: of the student's features.
        out_channels: of the teacher's.
    """

    def __init__(self, config: ProjectorConfig, channels: int, out_channels: int) -> None:
        super().__init__()
        width = config.hidden or out_channels
        self.layers = nn.Sequential(nn.Linear(channels, width))
        if config.hidden:
            self.layers.extend([nn.ReLU(), nn.Linear(width, out_channels)])

    def forward(self, features: Tensor) -> Tensor:
        """(N channels) to (N out_channels); a row does not see the others."""
        return self.layers(features)


@dataclass(frozen=True, kw_only=True)
class TransformerProjectorConfig:
    """Blocks in which patches and class token see each other, then a linear layer (DUNE's TP; its code's numbers).

    Args:
        blocks: how many.
        heads: of each attention, the student's number; 0 means one for every 64 channels, as all students have it.
        layer_scale: start of the factors of each channel; 0 means that there are none.
    """

    blocks: int = 1
    heads: int = 0
    layer_scale: float = 1e-4

    def __post_init__(self) -> None:
        require({f"{name}: 0 or more is needed, got {value}": value >= 0 for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class SimpleProjectorConfig:
    """Two linear layers with a GELU between them on every token, the same for both kinds (DUNE's SP).

    Args:
        hidden: width between them; 0 means four times the student's (our default: not stated).
    """

    hidden: int = 0

    def __post_init__(self) -> None:
        require({f"hidden: 0 or more channels, got {self.hidden}": self.hidden >= 0})


@dataclass(frozen=True, kw_only=True)
class LadderProjectorConfig:
    """Two linear layers with a GELU between them for each level and kind of token; levels are summed (UNIC's LP).

    Args:
        hidden: width between them at all levels but the last (UNIC code).
        last_hidden: width there at the last (UNIC code).
    """

    hidden: int = 768
    last_hidden: int = 3072

    def __post_init__(self) -> None:
        require({f"{name}: 1 or more channels, got {value}": value >= 1 for name, value in vars(self).items()})


class ImageProjector(nn.Module, ABC):
    """A student's maps to a teacher's width; the maps have one level. Subclasses take their config before the rest.

    Args:
        channels: of the student's levels, shallow to deep (`ImageEncoder.channels`).
        out_channels: of the teacher.
        summary: whether the teacher has a class token; without, the summary is the mean of the projected patches.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, summary: bool = True) -> None:
        super().__init__()
        self.channels, self.out_channels, self.summary = tuple(channels), out_channels, summary

    def forward(self, maps: FeatureMaps) -> FeatureMaps:
        """Levels (V D h w) and summary (V D) to one level (V C h w) and a summary (V C)."""
        patches, token = self.project(maps)
        level = patches.transpose(1, 2).unflatten(2, tuple(maps.levels[-1].shape[2:]))
        return FeatureMaps(levels=(level,), summary=token if self.summary else level.mean((2, 3)))

    @abstractmethod
    def project(self, maps: FeatureMaps) -> tuple[Tensor, Tensor]:
        """(V h*w C) patches and (V C) class token, which does not count where the teacher has none."""


class TransformerProjector(ImageProjector):
    """DUNE's projector of the last level."""

    def __init__(
        self, config: TransformerProjectorConfig, channels: Sequence[int], out_channels: int, summary: bool = True
    ) -> None:
        super().__init__(channels, out_channels, summary)
        width = channels[-1]
        heads = config.heads or max(width // 64, 1)
        blocks = (transformer_block(width, heads, config.layer_scale) for _ in range(config.blocks))
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width, out_channels)
        initialize(self)

    def project(self, maps: FeatureMaps) -> tuple[Tensor, Tensor]:
        """Class token and patches together."""
        tokens = self.linear(self.blocks(torch.cat([maps.summary[:, None], _rows(maps.levels[-1])], 1)))
        return tokens[:, 1:], tokens[:, 0]


class SimpleProjector(ImageProjector):
    """DUNE's projector for comparison: a token of the last level does not see the others."""

    def __init__(
        self, config: SimpleProjectorConfig, channels: Sequence[int], out_channels: int, summary: bool = True
    ) -> None:
        super().__init__(channels, out_channels, summary)
        self.rung = Rung(channels[-1], config.hidden or 4 * channels[-1], out_channels)
        initialize(self)

    def project(self, maps: FeatureMaps) -> tuple[Tensor, Tensor]:
        """Each token by itself."""
        return self.rung(_rows(maps.levels[-1])), self.rung(maps.summary)


class LadderProjector(ImageProjector):
    """UNIC's projector of all levels, which are to be all blocks (UNIC's number, `levels` of the encoder)."""

    def __init__(
        self, config: LadderProjectorConfig, channels: Sequence[int], out_channels: int, summary: bool = True
    ) -> None:
        super().__init__(channels, out_channels, summary)
        hidden = [config.hidden] * (len(channels) - 1) + [config.last_hidden]
        kinds = ("patch", "cls") if summary else ("patch",)
        self.kinds = nn.ModuleDict(
            {kind: nn.ModuleList(Rung(*widths, out_channels) for widths in zip(channels, hidden)) for kind in kinds}
        )
        initialize(self)

    def project(self, maps: FeatureMaps) -> tuple[Tensor, Tensor]:
        """Sums over the levels."""
        patches = self._sum("patch", [_rows(level) for level in maps.levels])
        return patches, self._sum("cls", maps.summaries) if self.summary else patches[:, 0]

    def _sum(self, kind: str, levels: Sequence[Tensor]) -> Tensor:
        rungs = cast(nn.ModuleList, self.kinds[kind])
        return reduce(torch.add, (rung(tokens) for rung, tokens in zip(rungs, levels, strict=True)))


class Rung(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """(... D) to (... C)."""
        return self.layers(tokens)


def _rows(level: Tensor) -> Tensor:
    """(V D h w) to (V h*w D)."""
    return level.flatten(2).transpose(1, 2)


AnyProjectorConfig = TransformerProjectorConfig | SimpleProjectorConfig | LadderProjectorConfig
PROJECTORS: dict[type, type[ImageProjector]] = {
    TransformerProjectorConfig: TransformerProjector,
    SimpleProjectorConfig: SimpleProjector,
    LadderProjectorConfig: LadderProjector,
}
"""The projector of each config."""


def create_projector(
    config: AnyProjectorConfig, channels: Sequence[int], out_channels: int, summary: bool = True
) -> ImageProjector:
    """The projector that a config is of; arguments as of `ImageProjector`."""
    make: type = PROJECTORS[type(config)]
    return make(config, channels, out_channels, summary)


KINDS: Mapping[str, type] = {
    "transformer": TransformerProjectorConfig,
    "simple": SimpleProjectorConfig,
    "ladder": LadderProjectorConfig,
}
"""The config of each kind, as it is chosen by name."""


def describe_projector(config: AnyProjectorConfig, projector: ImageProjector) -> dict[str, Any]:
    """What `projector_of` needs beside the weights, as plain data."""
    (kind,) = (name for name, cls in KINDS.items() if isinstance(config, cls))
    own = {"channels": list(projector.channels), "out_channels": projector.out_channels, "summary": projector.summary}
    return {"kind": kind, "options": to_options(config), **own}


def projector_of(facts: Mapping[str, Any]) -> ImageProjector:
    """A projector with new weights, of what `describe_projector` gave."""
    config = configure(KINDS[facts["kind"]], facts["options"], "projector")
    return create_projector(config, facts["channels"], facts["out_channels"], facts["summary"])


def projector_layout(teacher: str, blocks: Sequence[int] = ()) -> Layout:
    """Where DUNE's and UNIC's files keep the projector of a teacher, by the name they have for it.

    What else such a file holds may be left over.

    Args:
        teacher: its name.
        blocks: those that a ladder reads, one for each of the student's levels; all if none are named.
    """
    name = teacher.replace(".", r"\.")
    rungs = enumerate(blocks)
    return Layout(
        (
            *((rf"lp\.heads\.{name}\.(cls|patch)\.{b}\.(.+)", rf"kinds.\1.{level}.\2", None) for level, b in rungs),
            (rf"projectors\.{name}\.(.+)", r"\1", None),
            (rf"lp\.heads\.{name}\.(cls|patch)\.(.+)", r"kinds.\1.\2", None),
        ),
        prefixes=("module.", "_orig_mod."),
        ignored=("encoder.", "projectors.", "teacher_norms.", "lp."),
    )
