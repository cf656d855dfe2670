"""What every encoder is: contracts of point encoders and their features, and of maps of features over images.

Legend: N points, M tokens of a level (of maps: points that are read out), C channels, B items, V views, h w tokens of
a map. Metres, world; pixels have their centres at half integers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from splatlearn.encoders.patches import IMAGENET_MEAN, IMAGENET_STD, fit_images, normalized, token_grid
from splatlearn.errors import UserError
from splatlearn.structures import Images, Points, Tokens


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


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMaps:
    """What image encoders and teachers return: token grids, each covering its whole image.

    Args:
        levels: (V C h w), shallow to deep.
        summary: (V C) class token, or the mean of the last level.
        summaries: (V C) the class token of every level, where the network gives them.
    """

    levels: tuple[Tensor, ...]
    summary: Tensor
    summaries: tuple[Tensor, ...] = ()

    def at(self, pixels: Tensor, view: Tensor, size: tuple[int, int], corners: bool = False, level: int = -1) -> Tensor:
        """Features at continuous pixels, bilinear between the four nearest tokens; no dense map is made.

        Beyond the outermost tokens' centres the nearest token counts. Differentiable in the maps and in `pixels`.
        Worked out in float32 at least.

        Args:
            pixels: (M 2) finite x and y, in pixels of an image of `size`.
            view: (M) int64, the view that each is in.
            size: (width, height) of that image.
            corners: False takes a token to stand for the middle of its patch, which is what upsampling with
                `align_corners=False` gives at pixel centres (half integers). True is the rule of ScaLR's code: the
                outermost tokens lie on the outermost pixels, and pixels are numbers of rows and columns from 0
                (`floor()` of continuous ones), which is what upsampling with `align_corners=True` gives there.
            level: of `levels`.

        Returns:
            (M C), in the precision of the maps.

        Raises:
            UserError: `pixels` and `view` do not fit each other.
        """
        if pixels.shape != (len(view), 2):
            raise UserError(f"FeatureMaps.at: (M 2) pixels of (M) views expected, got {pixels.shape} and {view.shape}")
        maps = self.levels[level]
        high, wide = maps.shape[2:]
        rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]).to(torch.promote_types(maps.dtype, torch.float32))
        left, right, across = _between(pixels[:, 0], size[0], wide, corners)
        upper, lower, down = _between(pixels[:, 1], size[1], high, corners)
        first = view * (high * wide)
        index = torch.stack([first + y * wide + x for y in (upper, lower) for x in (left, right)], 1)
        weights = torch.stack([v * u for v in (1 - down, down) for u in (1 - across, across)], 1)
        read = functional.embedding_bag(index, rows, mode="sum", per_sample_weights=weights.to(rows))
        return read.to(maps.dtype)


def _between(pixels: Tensor, extent: int, tokens: int, corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(M) the tokens before and after each pixel along one axis, and how far it is from the first to the second."""
    place = pixels * ((tokens - 1) / max(extent - 1, 1)) if corners else pixels * (tokens / extent) - 0.5
    place = place.clamp(0, tokens - 1)
    before = place.detach().floor()
    after = (before + 1).clamp(max=tokens - 1)
    return before.long(), after.long(), place - before


@dataclass(frozen=True, kw_only=True)
class PointEncoderConfig:
    """Base of every point encoder's config.

    Args:
        inputs: attributes stacked as input channels, in this order, besides what the encoder does with xyz;
            `height` means z above the item's 1st percentile, `position` and `radius` the coordinates and their
            distance from the origin; points may carry others in their place. Stored with the weights.
    """

    inputs: tuple[str, ...] = ("color",)

    def inside(self, points: Points) -> Tensor:
        """(N) bool, the points that the encoder can see where it has a field of view; by default all."""
        return torch.ones(len(points), dtype=torch.bool, device=points.device)

    def precompute(self, points: Points) -> Points:
        """What a loader's worker may do ahead: the points with attributes that `forward` else makes itself."""
        return points


INPUT_CHANNELS = {
    "color": 3,
    "normal": 3,
    "intensity": 1,
    "height": 1,
    "opacity": 1,
    "quaternion": 4,
    "scale": 3,
    "reflectance": 1,
    "position": 3,
    "radius": 1,
}
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
        value = DERIVED[name](points) if name in DERIVED and name not in points else points[name]
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


def radius(points: Points) -> Tensor:
    """(N) metres from the origin of the world, which is the sensor in a lidar scan."""
    return points.xyz.norm(dim=1)


DERIVED: Mapping[str, Callable[[Points], Tensor]] = {
    "height": height,
    "position": lambda points: points.xyz,
    "radius": radius,
}
"""Inputs that follow from the coordinates where the points do not carry them."""


class Encoder(nn.Module):
    """A network whose weights are worth keeping.

    Attributes:
        name: `family.preset` it was made from.
        channels: feature width of each level, finest first.
    """

    name: str = ""
    channels: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())


class PointEncoder(Encoder, ABC):
    """Points in, features for every input point out. Subclasses give `embed` and `encode`.

    The result does not depend on the order of the input points, but for rounding; repeated blocks live in
    modules called `blocks`, since layer-wise learning rates match on that name.
    """

    config: PointEncoderConfig

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


class ImageEncoder(Encoder, ABC):
    """Images in, token grids out. Subclasses give `look`; repeated blocks live in modules called `blocks`.

    Views do not see each other. Images are normalised here, so that students and teachers get the same ones.

    Attributes:
        channels: feature width of each level, shallow to deep.
        patch: pixels between tokens.
        mean, std: (R G B) of images in [0, 1], subtracted and divided by; ImageNet's.
    """

    patch: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def forward(self, images: Tensor | Images, grid: tuple[int, int] | None = None) -> FeatureMaps:
        """Features of every view, in the precision of the weights.

        Args:
            images: (V 3 H W) RGB in [0, 1].
            grid: (width, height) in tokens: the images are resized to so many patches. Left out, they keep their size.

        Raises:
            UserError: no grid is named and the patch does not divide the size.
        """
        pixels = (images.images if isinstance(images, Images) else images).to(self.dtype)
        height, width = pixels.shape[2:]
        grid = grid or token_grid((width, height), self.patch, self.name or type(self).__name__)
        return self.look(normalized(fit_images(pixels, grid, self.patch), self.mean, self.std))

    @abstractmethod
    def look(self, pixels: Tensor) -> FeatureMaps:
        """Features of normalised images (V 3 H W), whose sides are multiples of the patch."""

    def resize(self, size: int) -> None:
        """Gets ready to be trained on square images of another size, in pixels; by default nothing is to be done.

        It may make new parameters: call this before the optimiser is made.
        """


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
