"""From features of pixels or points to 3D Gaussians: depth bins along the ray (GS3 eq. 3), or offsets from the
point (GS3 eq. 4-5), with pixelSplat's parameters of shape and colour.

Legend: N rows (visible pixels or points), k Gaussians a row, Z depth bins, K = (degree + 1)^2 coefficients,
V views, C channels. Metres, world, unless said otherwise.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.config import require
from splatlearn.errors import UserError
from splatlearn.heads.rotations import harmonic_rotations, matrix_to_quaternion, multiply_quaternions
from splatlearn.structures import SH_C0, Cameras, Gaussians, Packed, Points

FOOTPRINT = 0.1
"""Scale unit: this times (1/fx + 1/fy) times the depth, so about 0.2 pixel (pixelSplat code)."""
OPAQUE = 1 / (1 + math.exp(-2.0))
"""Opacity of a row's k Gaussians together at initialisation, 0.88: far above the cut of 1/255, and not so opaque
that what lies behind learns nothing (our default: not stated)."""
NEAREST = 1e-2
"""Depths are not taken below this when a scale is made from them, metres."""


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """What both heads share. GS3 states none of these numbers.

    Args:
        per_point: Gaussians a pixel or point, k (1: our default; pixelSplat has 3).
        sh_degree: 4 (pixelSplat).
        scale_min: smallest scale in units of about 0.2 pixel (pixelSplat).
        scale_max: largest scale in the same unit (pixelSplat).
        initial_pixels: standard deviation at initialisation, pixels (our default: not stated).
        color_gain: factor of all coefficients (pixelSplat: 1); 3.5, about 1 / Y_00, makes the layer predict RGB as
            such, which learns faster.
        rotate_sh: whether colours are predicted in the camera's axes and rotated to the world's (pixelSplat).
    """

    per_point: int = 1
    sh_degree: int = 4
    scale_min: float = 0.5
    scale_max: float = 15.0
    initial_pixels: float = 1.0
    color_gain: float = 1.0
    rotate_sh: bool = True

    def __post_init__(self) -> None:
        low, high = (2 * FOOTPRINT * unit for unit in (self.scale_min, self.scale_max))
        require(
            {
                f"per_point: 1 or more is needed, got {self.per_point}": self.per_point >= 1,
                f"sh_degree: 0 to 4 is allowed, got {self.sh_degree}": 0 <= self.sh_degree <= 4,
                f"scale_min: above zero is needed, got {self.scale_min}": self.scale_min > 0,
                f"initial_pixels: scale_min and scale_max allow {low:.3g} to {high:.3g}, got {self.initial_pixels}": (
                    self.scale_min < self.initial_scale < self.scale_max
                ),
                f"color_gain: above zero is needed, got {self.color_gain}": self.color_gain > 0,
            }
        )

    @property
    def initial_scale(self) -> float:
        """`initial_pixels` in the unit of `scale_min`, for fx = fy."""
        return self.initial_pixels / (2 * FOOTPRINT)

    @property
    def coefficients(self) -> int:
        """K."""
        return (self.sh_degree + 1) ** 2


@dataclass(frozen=True, kw_only=True)
class DepthConfig(GaussianConfig):
    """Gaussians on the pixel's ray, at one of Z depths plus an offset inside the bin.

    Args:
        bins: Z (pixelSplat: 32; GS3 does not state it).
        near: nearest depth along the ray, metres (our default: not stated).
        far: farthest depth along the ray, metres (our default: not stated).
        spacing: bins uniform in depth (GS3) or in 1 / depth (pixelSplat).
        selection: the k most probable bins (GS3), or bins drawn by their probability while training (pixelSplat).
        opacity: `normalized`: sigmoid(logit) times the bin's share of the chosen bins' probability. `mapped`:
            pixelSplat's `map_probability`, divided by k, which starts almost transparent.
        opacity_exponent: exponent of `mapped`; pixelSplat's shipped config has 1, the identity.
    """

    bins: int = 32
    near: float = 0.2
    far: float = 10.0
    spacing: Literal["linear", "disparity"] = "linear"
    selection: Literal["top", "sampled"] = "top"
    opacity: Literal["normalized", "mapped"] = "normalized"
    opacity_exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            {
                f"near, far: 0 < near < far is needed, got {self.near} and {self.far}": 0 < self.near < self.far,
                f"bins: at least per_point = {self.per_point} are needed, got {self.bins}": self.bins >= self.per_point,
                f"opacity_exponent: above zero is needed, got {self.opacity_exponent}": self.opacity_exponent > 0,
            }
        )


@dataclass(frozen=True, kw_only=True)
class OffsetConfig(GaussianConfig):
    """Gaussians near the measured point.

    Args:
        radius: largest offset along each axis, metres (our default, shared with UniPre3D: not stated in GS3).
        own_color: whether colours start from the point's own, as centres start from its place; renders then are sharp
            after few steps, but show less of what the encoder learnt (GS3 predicts them; pixelSplat's features of the
            raw image leak as much).
    """

    radius: float = 0.2
    own_color: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require({f"radius: metres above zero are needed, got {self.radius}": 0 < self.radius < math.inf})


class Field(NamedTuple):
    """A group of output channels of a head's last layer."""

    channels: int
    gain: float  # of the default initial weights
    bias: float | tuple[float, ...] = 0.0


class DepthHead(nn.Module):
    """Depth logits, offsets, shape, colour and opacity of k Gaussians on each pixel's ray (GS3 eq. 3).

    The k Gaussians of a pixel differ in depth and opacity only (pixelSplat code). Top-k selection gives the
    logits no gradient by itself: the opacity carries it, as a share of the probability. With k = 1 that share is
    constant, and the expected depth passes its gradient to the chosen one (straight through).

    Args:
        config: sizes and rules.
        channels: width of the features.
    """

    def __init__(self, config: DepthConfig, channels: int = 128) -> None:
        super().__init__()
        self.config = config
        self.depth = nn.Linear(channels, 2 * config.bins)
        self.fields = {"pixel": Field(2, 0.1), **_shape_fields(config)}
        if config.opacity == "normalized":
            self.fields["opacity"] = _opacity_field(1)
        self.attributes = _initialised(channels, list(self.fields.values()))

    def forward(
        self,
        features: Tensor,
        rows: Packed,
        cameras: Cameras,
        *,
        bounds: Tensor | None = None,
        uniform: Tensor | None = None,
    ) -> Gaussians:
        """Gaussians of the given pixels.

        Args:
            features: (N C).
            rows: N rows, item v holding those of view v, with attribute `pixel` (N) int64 = y * W + x.
            cameras: V views.
            bounds: (V 2) near and far along the ray, metres; left out, those of the config.
            uniform: (N k) in [0, 1), what bins are drawn with when `selection` is `sampled`; left out, it comes
                from torch's generator.

        Returns:
            N*k Gaussians, k after k in row order, one item a view (`regroup` joins views).

        Raises:
            UserError: rows that are not grouped by view.

        Under autocast everything behind the last layers keeps the cameras' precision.
        """
        _check(features, rows, cameras)
        hidden, precision = features.relu(), cameras.intrinsics.dtype
        attributes, depths = self.attributes(hidden).to(precision), self.depth(hidden).to(precision)
        with torch.autocast(features.device.type, enabled=False):
            raw = _split(attributes, self.fields)
            depth, share = self._depths(depths, rows.item, bounds, uniform)
            opacity = share * raw["opacity"].sigmoid() if "opacity" in raw else share
            origin, direction = self._rays(rows["pixel"], raw["pixel"], cameras, rows.item)
            means = origin[:, None] + depth[..., None] * direction[:, None]
            repeated = {name: value[:, None].expand(-1, depth.shape[1], -1) for name, value in raw.items()}
            return _assemble(means, depth, opacity, repeated, rows.counts, cameras, self.config)

    def _depths(
        self, raw: Tensor, view: Tensor, bounds: Tensor | None, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Depths along the ray (N k), and the opacity that the probabilities give (N k)."""
        config = self.config
        logits, offsets = raw.chunk(2, 1)
        probability, offsets = logits.softmax(1), offsets.sigmoid()
        index = self._choose(probability, uniform)
        chosen = probability.gather(1, index)
        place = index + offsets.gather(1, index)
        if config.opacity == "mapped":
            share = map_probability(chosen, config.opacity_exponent) / config.per_point
        else:
            share = chosen / chosen.sum(1, keepdim=True)
            if config.per_point == 1:
                bins = torch.arange(config.bins, device=raw.device, dtype=raw.dtype)
                expected = (probability * (bins + offsets.detach())).sum(1, keepdim=True)
                place = place + expected - expected.detach()
        near, far = (config.near, config.far) if bounds is None else bounds[view].T[:, :, None]
        return place_to_depth(place / config.bins, near, far, config.spacing), share

    def _choose(self, probability: Tensor, uniform: Tensor | None) -> Tensor:
        """(N k) chosen bins."""
        k = self.config.per_point
        if self.config.selection == "top" or not self.training:
            return probability.detach().topk(k, 1).indices
        if uniform is None:
            uniform = torch.rand(len(probability), k, device=probability.device, dtype=probability.dtype)
        cumulated = probability.detach().cumsum(1)
        return torch.searchsorted(cumulated, uniform, right=True).clamp(max=self.config.bins - 1)

    def _rays(self, pixel: Tensor, shift: Tensor, cameras: Cameras, view: Tensor) -> tuple[Tensor, Tensor]:
        """Origins (N 3) and unit directions (N 3) through the pixels, moved by up to half a pixel."""
        centre = torch.stack([pixel % cameras.width, pixel // cameras.width], 1) + 0.5
        place = functional.pad(centre + shift.sigmoid() - 0.5, (0, 1), value=1.0)
        pose = cameras.camera_to_world
        to_world = pose[:, :3, :3] @ torch.linalg.inv(cameras.intrinsics)
        direction = functional.normalize(torch.einsum("nij,nj->ni", to_world[view], place), dim=1)
        return pose[view, :3, 3], direction


class OffsetHead(nn.Module):
    """k Gaussians around each measured point, at p + radius * tanh(offset) (GS3 eq. 4-5).

    Args:
        config: sizes and rules.
        channels: width of the features.
    """

    def __init__(self, config: OffsetConfig, channels: int = 128) -> None:
        super().__init__()
        self.config = config
        self.fields = {
            "offset": Field(3, 0.01),
            **_shape_fields(config),
            "opacity": _opacity_field(config.per_point),
        }
        if config.own_color:
            self.fields["sh"] = self.fields["sh"]._replace(gain=0.1)
        self.attributes = _initialised(channels, list(self.fields.values()) * config.per_point)

    def forward(self, features: Tensor, rows: Points, cameras: Cameras) -> Gaussians:
        """Gaussians of the given points.

        Args:
            features: (N C).
            rows: N points, item v holding those seen by view v, which scales and turns them; with attribute `color`
                when the config says `own_color`.
            cameras: V views.

        Returns:
            N*k Gaussians, k after k in row order, one item a view (`regroup` joins views).

        Raises:
            UserError: points that are not grouped by view.
            MissingAttribute: `own_color` of points without `color`.
        """
        _check(features, rows, cameras)
        attributes = self.attributes(features.relu()).to(rows.xyz.dtype)
        with torch.autocast(features.device.type, enabled=False):
            raw = _split(attributes.unflatten(1, (self.config.per_point, -1)), self.fields)
            means = rows.xyz[:, None] + self.config.radius * raw["offset"].tanh()
            depth = cameras.project(rows.xyz, rows.item)[1][:, None].expand(means.shape[:2])
            opacity = raw["opacity"].sigmoid().squeeze(-1)
            gaussians = _assemble(means, depth, opacity, raw, rows.counts, cameras, self.config)
            if not self.config.own_color:
                return gaussians
            own = ((rows["color"] - 0.5) / SH_C0).repeat_interleave(self.config.per_point, 0)
            return replace(gaussians, sh=torch.cat([gaussians.sh[:, :1] + own[:, None], gaussians.sh[:, 1:]], 1))


def map_probability(probability: Tensor, exponent: float) -> Tensor:
    """pixelSplat's opacity of a bin: 0.5 (1 - (1-p)^e + p^(1/e)); the identity for e = 1, more opaque above."""
    return 0.5 * (1 - (1 - probability) ** exponent + probability ** (1 / exponent))


def place_to_depth(
    place: Tensor, near: Tensor | float, far: Tensor | float, spacing: Literal["linear", "disparity"]
) -> Tensor:
    """Depth at a fraction of the way from near to far.

    Args:
        place: any shape, 0 at near, 1 at far.
        near: metres, broadcast.
        far: metres, broadcast.
        spacing: linear in depth, or in 1 / depth.
    """
    if spacing == "linear":
        return near + place * (far - near)
    return 1 / ((1 - place) * (1 / near - 1 / far) + 1 / far)


def _shape_fields(config: GaussianConfig) -> dict[str, Field]:
    """Scales start at `initial_pixels`, rotations at the camera's axes, colours around grey."""
    part = (config.initial_scale - config.scale_min) / (config.scale_max - config.scale_min)
    return {
        "scale": Field(3, 0.1, math.log(part / (1 - part))),
        "quaternion": Field(4, 0.1, (1.0, 0.0, 0.0, 0.0)),
        "sh": Field(3 * config.coefficients, 1.0),
    }


def _opacity_field(count: int) -> Field:
    """A logit whose Gaussians, `count` behind one another, are `OPAQUE` together."""
    single = 1 - (1 - OPAQUE) ** (1 / count)
    return Field(1, 0.1, math.log(single / (1 - single)))


def _initialised(channels: int, fields: list[Field]) -> nn.Linear:
    """A linear layer whose groups of outputs start at their bias, with weights of their gain."""
    layer = nn.Linear(channels, sum(field.channels for field in fields))
    with torch.no_grad():
        gains = torch.cat([torch.full((field.channels,), field.gain) for field in fields])
        layer.weight.mul_(gains[:, None])
        layer.bias.copy_(torch.cat([torch.tensor(field.bias).expand(field.channels) for field in fields]))
    return layer


def _split(raw: Tensor, fields: dict[str, Field]) -> dict[str, Tensor]:
    parts = raw.split([field.channels for field in fields.values()], -1)
    return dict(zip(fields, parts))


def _assemble(
    means: Tensor,
    depth: Tensor,
    opacity: Tensor,
    raw: dict[str, Tensor],
    counts: tuple[int, ...],
    cameras: Cameras,
    config: GaussianConfig,
) -> Gaussians:
    """Gaussians from centres (N k 3), depths (N k), opacities (N k) and raw shape and colour (N k *)."""
    k, sizes = means.shape[1], [count * means.shape[1] for count in counts]
    view = torch.repeat_interleave(
        torch.arange(len(counts), device=means.device),
        torch.tensor(sizes, device=means.device),
        output_size=len(means) * k,
    )
    turn = cameras.camera_to_world[:, :3, :3]
    local = functional.normalize(raw["quaternion"].flatten(0, 1), dim=1, eps=1e-8)
    unit = FOOTPRINT * torch.linalg.inv(cameras.intrinsics[:, :2, :2]).sum((1, 2))
    reach = (depth.flatten().clamp_min(NEAREST) * unit[view])[:, None]
    span = config.scale_max - config.scale_min
    return Gaussians(
        means=means.flatten(0, 1),
        scales=(config.scale_min + span * raw["scale"].flatten(0, 1).sigmoid()) * reach,
        quaternions=multiply_quaternions(matrix_to_quaternion(turn)[view], local),
        opacities=opacity.flatten(),
        sh=_harmonics(raw["sh"].flatten(0, 1), sizes, turn, config),
        counts=tuple(sizes),
    )


def _harmonics(raw: Tensor, counts: list[int], turn: Tensor, config: GaussianConfig) -> Tensor:
    """(N K 3) coefficients in world axes; band l is weighed by 0.1 * 0.25^l, so that views start to agree."""
    sh = raw.view(len(raw), config.coefficients, 3)
    bands = [1.0] + [0.1 * 0.25**band for band in range(1, config.sh_degree + 1) for _ in range(2 * band + 1)]
    sh = sh * (config.color_gain * sh.new_tensor(bands))[:, None]
    if not config.rotate_sh or config.sh_degree == 0:
        return sh
    rotations = harmonic_rotations(turn, config.sh_degree)
    return torch.cat([matrix @ part for matrix, part in zip(rotations, sh.split(counts))])


def _check(features: Tensor, rows: Packed, cameras: Cameras) -> None:
    if len(features) != len(rows) or len(rows.counts) != len(cameras):
        raise UserError(
            f"Gaussian head: {len(features)} feature rows for {len(rows)} pixels or points, {len(rows.counts)} "
            f"items for {len(cameras)} views; one row of features each and one item a view are needed"
        )
