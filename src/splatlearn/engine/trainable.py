"""All that the engine knows of a recipe or a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from splatlearn.data.scene import Data
from splatlearn.encoders.base import Encoder
from splatlearn.errors import ConfigError
from splatlearn.ops.reduce import global_mean
from splatlearn.structures import Batch

__all__ = ["Progress", "Recipe", "Step", "Trainable", "global_mean"]

B = TypeVar("B", bound=Batch)


class Progress(NamedTuple):
    """Where training stands: `step` of `steps`, the first step being 0."""

    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """`step` / `steps`, in [0, 1)."""
        return self.step / max(self.steps, 1)


@dataclass
class Step:
    """What one forward pass gives.

    Args:
        losses: scalars, already weighted; the total is their sum. Means over the global batch (`global_mean`).
        metrics: scalars for the log, without gradient.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Trainable(nn.Module, ABC, Generic[B]):
    """What the loop runs. Frozen networks belong outside its parameters and state dict.

    Attributes:
        data: samples to train on (split `train`).
        validation: samples to evaluate on (split `val`); without augmentation.
        previewed: validation samples that `preview` is given as a batch.
    """

    data: Data[B]
    validation: Data[B]
    previewed: int = 1

    def setup(self, batches: Iterable[B]) -> None:
        """Statistics gathered once before step 0; results are buffers. By default nothing."""

    @abstractmethod
    def forward(self, batch: B, progress: Progress) -> Step:
        """Losses of one batch."""

    def after_step(self, optimizer: Optimizer, progress: Progress) -> None:
        """What changes weights, buffers and optimiser state beside the gradient, such as relocating Gaussians.

        Called after every step that was not skipped. Torch's generator then depends on the seed of the run and the
        step alone, and is the same on every rank, so that ranks stay alike and a resumed run too. By default nothing.
        """

    def evaluate(self, batches: Iterable[B]) -> dict[str, float]:
        """Numbers for the summary (`val_psnr`, `miou`...), over whole batches. By default none."""
        return {}

    def preview(self, batch: B) -> dict[str, Tensor]:
        """Pictures for the report: title -> (3 H W) in [0, 1]. By default none."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts for the summary that are not metrics (Gaussians per sample...). By default none."""
        return {}


class Recipe(Trainable[B]):
    """A way to pre-train: a `Trainable` whose `student` is what is kept and exported."""

    student: Encoder

    def projectors(self) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """Projectors that are kept beside the student: teacher's name -> where the module lies, and its
        `describe_projector`. By default none."""
        return {}


def require_kind(student: Encoder, kind: type[Encoder], recipe: str, wanted: str) -> None:
    """Whether a recipe can teach an encoder.

    Args:
        student: the encoder.
        kind: that it must be of.
        recipe: its name.
        wanted: what such encoders encode, for the message.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(student, kind):
        name = getattr(student, "name", "") or type(student).__name__
        raise ConfigError(f"--encoder {name}: {recipe} teaches encoders of {wanted}")
