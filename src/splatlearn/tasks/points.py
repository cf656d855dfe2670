"""Tasks on points: features of every point, and whether the points carry what an encoder takes.

Legend: N points, C channels. Metres, world.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from splatlearn.encoders.base import DERIVED, INPUT_CHANNELS, PointEncoder
from splatlearn.engine.trainable import B
from splatlearn.errors import UserError
from splatlearn.structures import Points
from splatlearn.tasks.base import Levels, ProbeName, Task
from splatlearn.tasks.probes import DecoderProbe, LinearProbe, TrainedHead


class PointTask(Task[B]):
    """A probe on the features of every point.

    Args:
        encoder: see `Task`.
        probe: `linear` or `decoder` on frozen features, or `finetune`: everything trains, with a linear head.
        outputs: K.
        levels: see `Task`.
        heads: layers of a linear probe, one a learning rate.
    """

    encoder: PointEncoder

    def __init__(self, encoder: PointEncoder, probe: ProbeName, outputs: int, levels: Levels, heads: int = 1) -> None:
        super().__init__(encoder, probe, levels)
        if probe == "linear":
            self.probe = LinearProbe(self.width, outputs, heads)
        else:
            self.probe = (DecoderProbe if probe == "decoder" else TrainedHead)(self.width, outputs)

    def features(self, points: Points) -> Tensor:
        """(N C) what the probe sees: the attribute `feature` where it was computed before, or the encoder's."""
        if "feature" in points:
            return points["feature"]
        return dense(self.encoder, points, self.levels, gradient=not self.frozen)


def dense(encoder: PointEncoder, points: Points, levels: Sequence[int], gradient: bool = False) -> Tensor:
    """(N C) features of every point at the chosen levels.

    Raises:
        UserError: the encoder broke its contract of one row per input point.
    """
    with torch.set_grad_enabled(gradient):
        features = encoder(points).dense(levels)
    if len(features) != len(points):
        raise UserError(f"encoder {encoder.name!r} gave {len(features)} rows for {len(points)} points")
    return features


def check_inputs(encoder: PointEncoder, points: Points, where: str, up: str = "known") -> None:
    """Whether the points carry all that the encoder takes.

    Raises:
        UserError: attributes are missing, or the encoder needs the height where nobody knows what is up.
    """
    wanted = encoder.config.inputs
    missing = [name for name in wanted if name not in DERIVED and name not in points]
    if missing:
        there = ", ".join(sorted(name for name in points.attributes if name in INPUT_CHANNELS)) or "none"
        raise UserError(
            f"encoder {encoder.name!r} takes {', '.join(missing)}, which {where} does not have "
            f"(it has: {there}); use data with it, or an encoder that was made without (--encoder.inputs of a new one)"
        )
    if "height" in wanted and up == "unknown":
        raise UserError(f"encoder {encoder.name!r} takes the height, but the up axis of {where} is unknown: --data.up")
