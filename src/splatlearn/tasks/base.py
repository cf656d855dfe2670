"""What every task shares: an encoder under test, and a probe on what it gives.

A frozen encoder gets no gradients, stays in eval mode and is in no state dict; `finetune` trains it with the head.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

from torch import nn

from splatlearn.data.scene import Source
from splatlearn.encoders.base import Encoder, PointEncoder
from splatlearn.engine.trainable import B, Trainable

ProbeName = Literal["linear", "decoder", "finetune"]
Levels = Literal["finest", "all"]


class Task(Trainable[B]):
    """An encoder under test with a probe on its features.

    Args:
        encoder: the network under test; hidden from parameters and state dict unless `probe` is `finetune`.
        probe: `linear` or `decoder` on frozen features, or `finetune`: everything trains.
        levels: which of the encoder's levels the head sees: the finest (of images, the deepest), or all side by side.

    Attributes:
        encodes: the kind of encoder that it tests.
        headline: the number that methods are compared by, in percent, higher being better.
        probes: that it has.
        width: channels of the chosen levels.
    """

    encodes: ClassVar[type[Encoder]] = PointEncoder
    headline: ClassVar[str] = "miou"
    probes: ClassVar[tuple[ProbeName, ...]] = ("linear", "decoder", "finetune")
    encoder: Any
    probe: nn.Module

    def __init__(self, encoder: Encoder, probe: ProbeName, levels: Levels) -> None:
        super().__init__()
        self.frozen = probe != "finetune"
        if self.frozen:
            encoder.requires_grad_(False).eval()
            object.__setattr__(self, "encoder", encoder)
        else:
            self.encoder = encoder.requires_grad_(True)
        self.levels = chosen_levels(encoder, levels)
        self.width = sum(encoder.channels[level] for level in self.levels)

    @classmethod
    @abstractmethod
    def training(cls, config: Any, probe: ProbeName) -> dict[str, Any]:
        """Options of the loop's `TrainConfig` for a config and one of `probes`."""

    @classmethod
    @abstractmethod
    def hold(cls, config: Any, encoder: Any, source: Source) -> Any:
        """Features of a frozen encoder for the argument `held`; None where they would take too much memory."""

    @classmethod
    def available(cls, source: Source) -> tuple[str, ...]:
        """Attributes of the data that an encoder may take as input; of images, none."""
        return ()

    @classmethod
    def calibrated(cls, config: Any) -> frozenset[str]:
        """Origins of the frozen encoders whose batch-norm statistics are set on `unlabelled` first."""
        return frozenset()

    @classmethod
    def unlabelled(cls, config: Any, encoder: Any, source: Source, seed: int) -> Iterator[Any]:
        """Batches of training data without labels, to set batch-norm statistics on."""
        return iter(())

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "Task[B]":
        if self.frozen:  # a hidden encoder follows `.to(device)` all the same
            self.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)


def chosen_levels(encoder: Encoder, levels: Levels) -> tuple[int, ...]:
    """Numbers of the finest level, or of all; of image encoders, whose levels go from shallow to deep, of the last."""
    every = tuple(range(len(encoder.channels)))
    if levels == "all":
        return every
    return every[:1] if isinstance(encoder, PointEncoder) else every[-1:]
