"""DUNE's teachers beside DINOv2: MASt3R's encoder, and the backbone of Multi-HMR; from files of weights, on no hub.

Both give patch features after their final norm, and no class token. Legend: V views, T tokens, C channels, h w tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional

from splatlearn import registry
from splatlearn.config import require
from splatlearn.encoders.base import FeatureMaps
from splatlearn.encoders.hub import find_weights
from splatlearn.encoders.layouts import LAYOUTS, Layout
from splatlearn.encoders.vit import ViT, ViTConfig, initialize
from splatlearn.encoders.weights import load_weights
from splatlearn.teachers.base import RANDOM, Teacher, TeacherInfo, tensors_digest

Network = TypeVar("Network", bound=nn.Module)
FREQUENCY = 100.0
"""Base of the rotations' frequencies (CroCo's RoPE100)."""
PATCH = 16
HALF = (0.5, 0.5, 0.5)
MAST3R_LICENCE = "CC BY-NC-SA 4.0: non-commercial, shared alike, with attribution (naver/mast3r)"
MULTIHMR_LICENCE = "Multi-HMR's, for non-commercial use only (naver/multi-hmr)"
MAST3R = Layout(
    (
        (r"patch_embed\.proj\.(weight|bias)", r"patches.\1", None),
        (r"enc_blocks\.(\d+)\.attn\.(qkv|proj)\.(.+)", r"blocks.\1.\2.\3", None),
        (r"enc_blocks\.(\d+)\.(norm1|norm2|mlp)\.(.+)", r"blocks.\1.\2.\3", None),
        (r"enc_norm\.(weight|bias)", r"norm.\1", None),
    ),
    prefixes=("module.",),
    ignored=(
        "decoder_embed.",
        "dec_blocks.",
        "dec_blocks2.",
        "dec_norm.",
        "downstream_head",
        "mask_token",
        "prediction",
    ),
)
"""MASt3R's and DUSt3R's files, of whose network the decoder and its heads are left out."""
MULTIHMR = Layout(
    LAYOUTS["vit"].rules,
    prefixes=("module.", "backbone.encoder."),
    ignored=("mask_token", "camera.", "mlp_classif.", "mlp_offset.", "smpl_layer.", "x_attention_head.", "fovn"),
)
"""Multi-HMR's files, of whose network all but the backbone is left out."""


@dataclass(frozen=True, kw_only=True)
class Mast3rConfig:
    """MASt3R's encoder. The defaults are the published ViT-L/16's.

    Args:
        weights: a file, MASt3R's own checkpoint or safetensors of it; `random` for weights that were never trained,
            which has to be asked for.
        width: channels of a token.
        depth: blocks.
        heads: of each attention.
        seed: of random weights.
    """

    weights: str = ""
    width: int = 1024
    depth: int = 24
    heads: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        per_head = f"heads: the channels of each are a multiple of 4, got {self.width} for {self.heads}"
        require(
            {
                f"depth: 1 or more is needed, got {self.depth}": self.depth >= 1,
                f"heads: 1 or more is needed, got {self.heads}": self.heads >= 1,
                per_head: self.heads < 1 or self.width % (4 * self.heads) == 0,
            }
        )


@dataclass(frozen=True, kw_only=True)
class MultiHmrConfig:
    """Multi-HMR's backbone, a DINOv2 without registers. The defaults are the published ViT-L/14's.

    Args:
        weights: a file, Multi-HMR's own checkpoint or safetensors of it; `random` for weights that were never
            trained, which has to be asked for.
        size: side of the square images that position embeddings are stored for, pixels (37 patches, as DINOv2's).
        width: channels of a token.
        depth: blocks.
        heads: of each attention.
        seed: of random weights.
    """

    weights: str = ""
    size: int = 518
    width: int = 1024
    depth: int = 24
    heads: int = 16
    seed: int = 0

    def network(self) -> ViTConfig:
        """The backbone's own config: one level, after the final norm."""
        shape = {"size": self.size, "width": self.width, "depth": self.depth, "heads": self.heads}
        return ViTConfig(**shape, registers=0, norm=True, levels=(-1,))

    def __post_init__(self) -> None:
        self.network()


def rotate(values: Tensor, places: Tensor) -> Tensor:
    """Rotates pairs of channels by angles that grow with a token's place, so that products tell differences of places.

    The first half of the channels goes by the row, the second by the column. Inside each, channel c is paired with
    the one half a half further, and turned by place * FREQUENCY^(-2c/half) (CroCo's code).

    Args:
        values: (V heads T c), c a multiple of 4.
        places: (T 2) row and column, in tokens.

    Returns:
        The same shape.
    """
    half = values.shape[-1] // 2
    steps = torch.arange(0, half, 2, device=values.device, dtype=torch.float64)
    angles = places.to(steps)[:, :, None] * FREQUENCY ** (-steps / half)  # (T 2 half/2)
    cosine, sine = angles.cos().to(values), angles.sin().to(values)
    first, second = values.unflatten(-1, (2, 2, half // 2)).unbind(-2)
    turned = torch.stack([first * cosine - second * sine, second * cosine + first * sine], -2)
    return turned.flatten(-3)


class RotaryBlock(nn.Module):
    """A pre-norm transformer block whose queries and keys are rotated by place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(V T C) tokens at (T 2) rows and columns to (V T C)."""
        parts = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = functional.scaled_dot_product_attention(rotate(query, places), rotate(key, places), value)
        tokens = tokens + self.proj(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))


class RotaryViT(nn.Module):
    """CroCo's encoder: patches of 16, rotations for positions, no class token."""

    def __init__(self, config: Mast3rConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, config.width, PATCH, PATCH)
        self.blocks = nn.ModuleList(RotaryBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images (V 3 H W) to (V C h w) after the final norm."""
        maps = self.patches(pixels)
        shape = tuple(maps.shape[2:])
        sides = (torch.arange(side, device=pixels.device) for side in shape)
        places = torch.cartesian_prod(*sides).view(-1, 2)
        tokens = maps.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, places)
        return self.norm(tokens).transpose(1, 2).unflatten(2, shape)


@registry.teachers.register(
    "mast3r", Mast3rConfig, {"default": {}, "tiny": {"weights": RANDOM, "width": 32, "depth": 2, "heads": 2}}
)
class Mast3rTeacher(Teacher):
    """MASt3R's encoder (ViT-L/16 with rotary positions), which DUNE distils; not for commercial use."""

    def __init__(self, config: Mast3rConfig) -> None:
        network, origin = _load(config, partial(RotaryViT, config), MAST3R, "mast3r", MAST3R_LICENCE)
        info = TeacherInfo(channels=(config.width,), patch=PATCH, has_summary=False, **origin)
        super().__init__(config, network, info, HALF, HALF)

    def look(self, pixels: Tensor) -> FeatureMaps:
        """The final norm's output; the summary is its mean."""
        maps = self.network(pixels)
        return FeatureMaps(levels=(maps,), summary=maps.mean((2, 3)))

    def _fitted(self, images: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Resized with the outermost pixels on each other, unsmoothed; colours may leave [0, 1] (DUNE code)."""
        size = None if grid is None else (grid[1] * PATCH, grid[0] * PATCH)
        if size is None or size == tuple(images.shape[2:]) or not len(images):
            return super()._fitted(images, grid)
        return functional.interpolate(images, size, mode="bicubic", align_corners=True)


@registry.teachers.register(
    "multihmr",
    MultiHmrConfig,
    {"default": {}, "tiny": {"weights": RANDOM, "size": 56, "width": 32, "depth": 2, "heads": 2}},
)
class MultiHmrTeacher(Teacher):
    """Multi-HMR's backbone (DINOv2 ViT-L/14 tuned to bodies), which DUNE distils; not for commercial use."""

    def __init__(self, config: MultiHmrConfig) -> None:
        network, origin = _load(config, partial(ViT, config.network()), MULTIHMR, "multihmr", MULTIHMR_LICENCE)
        info = TeacherInfo(channels=(config.width,), patch=network.patch, has_summary=False, **origin)
        super().__init__(config, network, info)

    def look(self, pixels: Tensor) -> FeatureMaps:
        """The final norm's patches; the summary is their mean, since the class token was not tuned."""
        level = self.network.look(pixels).levels[-1]
        return FeatureMaps(levels=(level,), summary=level.mean((2, 3)))


def _load(
    config: Any, make: Callable[[], Network], layout: Layout, title: str, licence: str
) -> tuple[Network, dict[str, str]]:
    """The network with its weights, and their licence, source and digest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = make()
    if config.weights == RANDOM:
        return network, {"licence": "none", "source": RANDOM, "digest": tensors_digest(network)}
    file = find_weights(
        config.weights,
        "",
        need=f"teacher {title} needs its weights",
        advice="Name a file of them (the teacher's option weights), or ask for random weights",
    )
    load_weights(network, file.path, layout)
    return network, {"licence": licence, "source": file.source, "digest": file.digest}
