"""What every teacher is. Legend: V views, C channels, h w tokens, H W pixels."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from splatlearn import registry
from splatlearn.config import to_options
from splatlearn.encoders.base import FeatureMaps
from splatlearn.encoders.patches import IMAGENET_MEAN, IMAGENET_STD, fit_images, normalized, token_grid
from splatlearn.errors import UserError
from splatlearn.structures import Images

RANDOM = "random"
"""What `weights` and `TeacherInfo.source` say of weights that were never trained."""
log = logging.getLogger("splatlearn")


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """What a teacher is and where its weights come from, for the record of what was learnt from it.

    Args:
        channels: of each level, shallow to deep.
        patch: pixels between the tokens of the last level; images are multiples of it.
        has_summary: whether `summary` is a class token, and not a mean.
        licence: of the weights; `unknown` of a named file.
        source: file or hub repository of the weights; `random` where they were never trained.
        digest: SHA-256 of the file, or of the tensors of random weights.
    """

    channels: tuple[int, ...]
    patch: int
    has_summary: bool
    licence: str
    source: str
    digest: str


class Teacher(nn.Module, ABC):
    """A frozen network: images in, token grids out. Subclasses give `look`.

    It is in evaluation mode for ever, computes no gradients, and is in no state dict: to the module that holds it,
    it has neither parameters nor buffers, and moves with it all the same. A teacher whose features are not finite
    makes the loss so, and such a step is skipped; recipes log which teacher it was.

    Args:
        config: its settings.
        network: what looks.
        info: about it.
        mean: (R G B) subtracted from images in [0, 1].
        std: (R G B) that divides them then.

    Attributes:
        name: `family.preset` it was made from, or timm's name of the model.
    """

    name: str = ""

    def __init__(
        self,
        config: Any,
        network: nn.Module,
        info: TeacherInfo,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.config, self.info, self.mean, self.std = config, info, mean, std
        self._frozen = (network.eval().requires_grad_(False),)  # in a tuple, it is no part of the module

    @property
    def network(self) -> Any:
        """The frozen network."""
        return self._frozen[0]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of the maps."""
        return next(self.network.parameters()).dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `double`... do to tensors, done to the frozen network, too."""
        super()._apply(fn, recurse)
        self.network._apply(fn)
        return self

    @torch.no_grad()
    def forward(self, images: Images, grid: tuple[int, int] | None = None) -> FeatureMaps:
        """Features of every view: prepared ones (attribute `maps/NAME`) where the images carry them.

        Args:
            images: V views of one size.
            grid: (width, height) in tokens: the images are resized to so many patches. Left out, they keep their size.

        Raises:
            UserError: the size is no multiple of the patch, or prepared maps have another grid.
        """
        if f"maps/{self.name}" in images:
            return self._prepared(images, grid)
        pixels = self._fitted(images.images.to(self.dtype), grid)
        if len(pixels):
            return self.look(normalized(pixels, self.mean, self.std))
        maps = self.look(pixels.new_zeros(1, *pixels.shape[1:]))  # networks cannot do with no views
        return FeatureMaps(levels=tuple(level[:0] for level in maps.levels), summary=maps.summary[:0])

    @abstractmethod
    def look(self, pixels: Tensor) -> FeatureMaps:
        """Features of normalised images (V 3 H W), whose sides are multiples of the patch."""

    def identity(self) -> dict[str, Any]:
        """What its features follow from: prepared maps are those of a teacher with the same."""
        options = {name: value for name, value in to_options(self.config).items() if name != "weights"}
        return {"name": self.name, "digest": self.info.digest, "options": options}

    def describe(self) -> dict[str, Any]:
        """`info` and settings as plain data, for a run's record."""
        return {**asdict(self.info), "channels": list(self.info.channels), "options": to_options(self.config)}

    def tokens(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the last level's grid for images of a size (width, height).

        Raises:
            UserError: the patch does not divide that size.
        """
        return token_grid(size, self.info.patch, self.name)

    def _fitted(self, images: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Images of a size that the patch divides."""
        height, width = images.shape[2:]
        return fit_images(images, grid or self.tokens((width, height)), self.info.patch)

    def _prepared(self, images: Images, grid: tuple[int, int] | None) -> FeatureMaps:
        maps = images[f"maps/{self.name}"].to(self.dtype)
        there = (maps.shape[3], maps.shape[2])
        if maps.shape[1] != self.info.channels[-1] or grid not in (None, there):
            raise UserError(
                f"{self.name}: the prepared maps have {there[0]}x{there[1]} tokens of {maps.shape[1]} channels, needed "
                f"are {'any' if grid is None else f'{grid[0]}x{grid[1]}'} tokens of {self.info.channels[-1]}; prepare "
                "them anew"
            )
        key = f"summary/{self.name}"
        summary = images[key].to(maps.dtype) if key in images else maps.mean((2, 3))
        return FeatureMaps(levels=(maps,), summary=summary)


def create_teacher(name: str, options: Mapping[str, Any] | None = None) -> Teacher:
    """The teacher of a name; the log says its weights' source and licence.

    Args:
        name: `family` or `family.preset` of `registry.teachers`, a preset of `timm` (`dinov2-s`), or a model that
            timm has; with `random:` before it, never trained.
        options: of its config.

    Raises:
        ConfigError: no such name, or options that do not fit.
        BadData: its weights are nowhere.
    """
    bare = full_name(name)
    given = dict(options or {}) | ({"weights": RANDOM} if name.startswith(f"{RANDOM}:") else {})
    if bare.partition(".")[0] not in registry.teachers.families() and _is_timm_model(bare):
        teacher: Teacher = registry.teachers.create("timm", {"model": bare, **given})
    else:
        teacher = registry.teachers.create(bare, given)
    teacher.name = bare
    if teacher.info.source == RANDOM:
        log.warning("teacher %s: its weights are random, as was asked for; it knows nothing", teacher.name)
    else:
        log.info("teacher %s: weights of %s, licence: %s", teacher.name, teacher.info.source, teacher.info.licence)
    return teacher


def full_name(name: str) -> str:
    """`FAMILY.PRESET` of a family or of a preset of timm, without `random:`; other names as they are."""
    bare = name.removeprefix(f"{RANDOM}:")
    known = registry.teachers.families()
    if bare.partition(".")[0] not in known and bare in registry.teachers.presets("timm"):
        return f"timm.{bare}"
    return f"{bare}.{registry.teachers.presets(bare)[0]}" if bare in known else bare


def tensors_digest(network: nn.Module) -> str:
    """SHA-256 of a state dict, name by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_timm_model(name: str) -> bool:
    import timm

    return timm.is_model(name.partition(".")[0])
