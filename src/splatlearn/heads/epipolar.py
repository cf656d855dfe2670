"""Attention across views along epipolar lines (pixelSplat's epipolar transformer, which GS3 takes over).

Legend: V views, P ordered pairs of views of one item, R rays (one per low-resolution pixel), S samples on an
epipolar line, C channels, H W pixels of the input, h w of the low-resolution grid. Metres, world.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from splatlearn.config import require
from splatlearn.errors import UserError
from splatlearn.heads.attention import ImageAttention, ImageAttentionConfig, fourier_code
from splatlearn.heads.decoder import gather_pixels
from splatlearn.heads.epipolar_lines import epipolar_lines, relative_disparity, sample_features, view_pairs
from splatlearn.structures import Cameras, Packed


@dataclass(frozen=True, kw_only=True)
class EpipolarConfig:
    """Sizes of the epipolar transformer; the defaults are pixelSplat's (config/model/encoder/epipolar.yaml).

    Args:
        width: channels in and out.
        downscale: stride of the queries; image sides are multiples of `downscale * image.patch`.
        samples: points sampled on an epipolar line.
        layers: rounds of cross attention, each followed by attention inside the image.
        heads: attention heads across views.
        head_width: channels of a head.
        octaves: frequencies of the depth code.
        refinement_kernel: side of the two convolutions after upscaling, odd.
        views: most views of an item; above 2, embeddings tell the other views apart.
        near: nearest depth along a ray, metres. pixelSplat gives it per scene; 0.2 is our default indoors.
        far: farthest depth along a ray, metres; 10 is our default indoors.
        image: the attention inside an image.
    """

    width: int = 128
    downscale: int = 4
    samples: int = 32
    layers: int = 2
    heads: int = 4
    head_width: int = 128
    octaves: int = 10
    refinement_kernel: int = 7
    views: int = 2
    near: float = 0.2
    far: float = 10.0
    image: ImageAttentionConfig = field(default_factory=ImageAttentionConfig)

    def __post_init__(self) -> None:
        sizes = ("width", "downscale", "samples", "layers", "heads", "head_width", "octaves")
        given = {name: getattr(self, name) for name in sizes}
        kernel = self.refinement_kernel
        require(
            {
                **{f"{name}: 1 or more is needed, got {value}": value >= 1 for name, value in given.items()},
                f"refinement_kernel: an odd size is needed, got {kernel}": kernel >= 1 and kernel % 2 == 1,
                f"views: epipolar lines need 2 or more, got {self.views}": self.views >= 2,
                f"near, far: 0 < near < far is needed, got {self.near} and {self.far}": 0 < self.near < self.far,
            }
        )

    def misfit(self, width: int, height: int) -> str:
        """What is wrong with the sides of an image; empty where nothing is."""
        step = self.downscale * self.image.patch
        if not (width % step or height % step):
            return ""
        across, down = (max(step, round(side / step) * step) for side in (width, height))
        return (
            f"image sides must be multiples of downscale * image.patch = {step}, got {width}x{height}; the nearest is "
            f"{across}x{down}"
        )


class EpipolarTransformer(nn.Module):
    """Lets every pixel look along its epipolar lines in the other views of its item.

    Queries lie on a grid `downscale` times coarser. Memory: the samples, P R S C numbers, are the largest tensor;
    keys and values are never formed (the projections are moved to the single query of a ray, which gives the
    same sums at about a fifteenth of the arithmetic at pixelSplat's sizes).

    Args:
        config: sizes.
    """

    def __init__(self, config: EpipolarConfig) -> None:
        super().__init__()
        self.config = config
        width, stride = config.width, config.downscale
        self.downscale = nn.Conv2d(width, width, stride, stride)
        self.depth_code = nn.Linear(2 * config.octaves, width)
        self.view_code = nn.Embedding(config.views - 1, width) if config.views > 2 else None
        self.blocks = nn.ModuleList(EpipolarBlock(config) for _ in range(config.layers))
        self.upscale = nn.ConvTranspose2d(width, width, stride, stride)
        kernel = config.refinement_kernel
        self.refine = nn.Sequential(
            nn.Conv2d(width, 2 * width, kernel, padding=kernel // 2),
            nn.GELU(),
            nn.Conv2d(2 * width, width, kernel, padding=kernel // 2),
        )

    def forward(
        self,
        features: Tensor,
        cameras: Cameras,
        *,
        order: Tensor | None = None,
        bounds: Tensor | None = None,
        rows: Packed | None = None,
    ) -> Tensor:
        """Features that have seen the other views.

        Args:
            features: (V C H W).
            cameras: the same V views at H x W; items may have different numbers of views, 2 or more each.
            order: (V) int64, a random permutation of 0..n-1 within each item of n views; tells views apart. It
                is drawn with the sample. Needed when the config allows more than 2 views, not read otherwise.
            bounds: (V 2) near and far along the rays, metres; left out, those of the config.
            rows: the pixels that are wanted (`gather_pixels`); left out, all. With a refinement kernel of 1 no
                other pixel is refined, which saves most of the time where few are wanted.

        Returns:
            (V C H W), or (N C) of N rows.

        Raises:
            UserError: sizes that do not fit, an item with one view or too many, or no `order` for 3 views.

        Under autocast the geometry keeps the cameras' precision.
        """
        self._check(features, cameras, order)
        low = self.downscale(features)
        contexts = self._contexts(low, cameras, order, bounds)
        tokens = low.permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens = block(tokens, contexts)
        # Channels first in memory: the backward pass of large convolutions is then up to twice as fast on a CPU.
        high = self.upscale(tokens.permute(0, 3, 1, 2)).contiguous()
        if rows is not None and self.config.refinement_kernel == 1:
            wanted = gather_pixels(high, rows).t()[None, :, :, None]
            return (self.refine(wanted) + wanted)[0, :, :, 0].t()
        refined = self.refine(high) + high
        return refined if rows is None else gather_pixels(refined, rows)

    def _contexts(
        self, low: Tensor, cameras: Cameras, order: Tensor | None, bounds: Tensor | None
    ) -> "list[RayContext]":
        """What the rays attend to, for each number of views that occurs."""
        if bounds is None:
            bounds = cameras.intrinsics.new_tensor([[self.config.near, self.config.far]]).expand(len(cameras), 2)
        pairs = view_pairs(cameras.counts, low.device)
        lines = epipolar_lines(cameras.resize(low.shape[3], low.shape[2]), pairs, bounds, self.config.samples)
        near, far = bounds[pairs.view].T[:, :, None, None]
        depth = relative_disparity(lines.depths.maximum(near).minimum(far), near, far)
        code = fourier_code(depth[..., None], self.config.octaves)
        code = self.depth_code(code.to(self.depth_code.weight.dtype))
        seen = sample_features(low, lines, pairs) + code
        if self.view_code is not None and order is not None:
            mine, theirs = order[pairs.view], order[pairs.other]
            seen = seen + self.view_code(theirs - (theirs > mine).long())[:, None, None]
        return _by_view_count(seen, cameras.counts)

    def _check(self, features: Tensor, cameras: Cameras, order: Tensor | None) -> None:
        config, height, width = self.config, features.shape[2], features.shape[3]
        if (width, height) != (cameras.width, cameras.height) or len(features) != len(cameras):
            raise UserError(
                f"epipolar: {len(features)} feature maps of {width}x{height}, but {len(cameras)} cameras of "
                f"{cameras.width}x{cameras.height}"
            )
        if misfit := config.misfit(width, height):
            raise UserError(f"epipolar: {misfit}")
        most = max(cameras.counts, default=0)
        if most > config.views:
            raise UserError(f"epipolar: an item has {most} views; the config allows views={config.views}")
        if config.views > 2 and order is None:
            raise UserError("epipolar: views > 2 needs `order`, permutations of the views drawn with the sample")


class RayContext(NamedTuple):
    """What the rays of some views attend to."""

    views: Tensor | None  # (G) int64, None for all views
    seen: Tensor  # (G R M C), M = S times the number of other views


class EpipolarBlock(nn.Module):
    """One round: attention along epipolar lines, then inside each image; pre-norm, residual (pixelSplat code)."""

    def __init__(self, config: EpipolarConfig) -> None:
        super().__init__()
        self.ray_norm = nn.LayerNorm(config.width)
        self.ray_attention = RayAttention(config.width, config.heads, config.head_width)
        self.image_norm = nn.LayerNorm(config.width)
        self.image_attention = ImageAttention(config.image, config.width)

    def forward(self, tokens: Tensor, contexts: Sequence[RayContext]) -> Tensor:
        """(V h w C) to (V h w C)."""
        queries = self.ray_norm(tokens).flatten(1, 2)
        change = torch.zeros_like(queries) if len(contexts) > 1 else queries
        for views, seen in contexts:
            if views is None:
                change = self.ray_attention(queries, seen)
            else:
                found = self.ray_attention(queries[views], seen)
                change = change.index_copy(0, views, found.to(change.dtype))
        tokens = tokens + change.view_as(tokens)
        normal = self.image_norm(tokens)
        return tokens + normal + self.image_attention(normal)


class RayAttention(nn.Module):
    """Attention of one query a ray to the samples of its own epipolar lines.

    With one query, projecting the query back through the key weights and pooling samples before the value
    weights gives what keys and values for every sample would, without forming them.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key = nn.Linear(width, heads * head_width, bias=False)
        self.value = nn.Linear(width, heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, queries: Tensor, seen: Tensor) -> Tensor:
        """Queries (G R C) and what they attend to (G R M C), to (G R C)."""
        heads, width = self.heads, queries.shape[-1]
        key, value = (layer.weight.view(heads, -1, width) for layer in (self.key, self.value))
        query = self.query(queries).unflatten(-1, (heads, -1)) * key.shape[1] ** -0.5
        search = torch.einsum("grhd,hdc->grhc", query, key)
        attention = (search @ seen.transpose(-1, -2)).softmax(-1)
        pooled = torch.einsum("grhc,hdc->grhd", attention @ seen, value)
        return self.out(pooled.flatten(-2))


def _by_view_count(seen: Tensor, counts: Sequence[int]) -> list[RayContext]:
    """Samples (P R S C) of all pairs joined per view, one context for each number of views that occurs."""
    sizes = sorted(set(counts))
    if len(sizes) == 1:
        return [RayContext(None, _join_others(seen, sizes[0] - 1))]
    views = torch.tensor([count for count in counts for _ in range(count)], device=seen.device)
    of_pair = views.repeat_interleave(views - 1)
    return [
        RayContext((views == size).nonzero().squeeze(1), _join_others(seen[of_pair == size], size - 1))
        for size in sizes
    ]


def _join_others(seen: Tensor, others: int) -> Tensor:
    """(G*others R S C) to (G R S*others C)."""
    if others == 1:
        return seen
    return seen.unflatten(0, (-1, others)).permute(0, 2, 3, 1, 4).flatten(2, 3)
