"""What every encoder is: contracts of point encoders and their features.

Legend: N points, M tokens of a level, C channels, B items. Metres, world.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from splatlearn.errors import UserError
from splatlearn.structures import Points, Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PointFeatures:
    """What a point encoder returns.

    Args:
        levels: token levels, finest first.
        summary: (B C) class token, or the mean of the coarsest level.
        upsample: maps level number to that level's features at every input point, (N C); set by the encoder,
            which alone knows how its levels came from the points (pooling index, 3-NN...).
    """

    levels: tuple[Tokens, ...]
    summary: Tensor
    upsample: Callable[[int], Tensor]

    def dense(self, levels: Sequence[int] = (0,)) -> Tensor:
        """(N C) features of EVERY input point, in input order, the chosen levels' channels side by side."""
        return torch.cat([self.upsample(level) for level in levels], dim=1)


@dataclass(frozen=True, kw_only=True)
class PointEncoderConfig:
    """Base of every point encoder's config.

    Args:
        inputs: attributes stacked as input channels, in this order, besides what the encoder does with xyz;
            `height` means z above the item's 1st percentile. Stored with the weights.
    """

    inputs: tuple[str, ...] = ("color",)


INPUT_CHANNELS = {"color": 3, "normal": 3, "intensity": 1, "height": 1, "opacity": 1, "quaternion": 4, "scale": 3}
"""Channels of the attributes that an encoder can take as input."""


def input_channels(inputs: Sequence[str]) -> int:
    """Width of `stack_inputs`.

    Raises:
        UserError: an input that no reader gives.
    """
    unknown = [name for name in inputs if name not in INPUT_CHANNELS]
    if unknown:
        raise UserError(f"encoder inputs {unknown} are unknown; known: {', '.join(INPUT_CHANNELS)}")
    return sum(INPUT_CHANNELS[name] for name in inputs)


def stack_inputs(points: Points, inputs: Sequence[str]) -> Tensor:
    """(N C) the named attributes side by side; colours are shifted to [-1, 1].

    Raises:
        MissingAttribute: an attribute that the points do not carry.
    """
    columns = []
    for name in inputs:
        value = height(points) if name == "height" and name not in points else points[name]
        value = value.flatten(1) if value.dim() > 1 else value[:, None]
        value = value.to(points.xyz.dtype)
        columns.append(value * 2 - 1 if name == "color" else value)
    return torch.cat(columns, 1) if columns else points.xyz.new_zeros(len(points), 0)


def height(points: Points) -> Tensor:
    """(N) metres above the floor, taken as the 1st percentile of z of each item (VoteNet's rule)."""
    result = torch.empty_like(points.xyz[:, 2])
    for start, stop in zip(points.offsets, points.offsets[1:], strict=False):
        z = points.xyz[start:stop, 2]
        if len(z):
            rank = max(1, round(0.01 * len(z)))
            result[start:stop] = z - z.kthvalue(rank).values
    return result


class Encoder(nn.Module):
    """A network whose weights are worth keeping.

    Attributes:
        name: `family.preset` it was made from.
        channels: feature width of each level, finest first.
    """

    name: str = ""
    channels: tuple[int, ...]


class PointEncoder(Encoder, ABC):
    """Points in, features for every input point out. Subclasses give `embed` and `encode`.

    The result does not depend on the order of the input points, but for rounding; repeated blocks live in
    modules called `blocks`, since layer-wise learning rates match on that name.
    """

    config: PointEncoderConfig

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())

    @abstractmethod
    def embed(self, points: Points) -> Tokens:
        """The stem: first tokens of the points. Extra tokens may be joined to them before `encode`."""

    @abstractmethod
    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        """Features from the stem's tokens; tokens beyond those of `points` map to no input point."""

    def forward(self, points: Points) -> PointFeatures:
        """Encodes packed clouds, taken to the precision of the weights; items do not see each other."""
        points = points.in_precision(self.dtype)
        return self.encode(self.embed(points), points)


def calibrate(encoder: PointEncoder, batches: Iterable[Points]) -> int:
    """Sets the batch-norm statistics to the mean over the batches, without gradient or labels.

    Returns:
        The number of batches that were used.
    """
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    was_training, used = encoder.training, 0
    encoder.train()
    with torch.no_grad():
        for points in batches:
            encoder(points)
            used += 1
    encoder.train(was_training)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return used
