"""Vision transformers as image students: those of DUNE (class token, registers, patches of 14) and of UNIC.

Blocks are timm's. Legend: V views, C channels, h w tokens of a map, H W pixels.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.config import require
from splatlearn.encoders.base import FeatureMaps, ImageEncoder
from splatlearn.registry import encoders

OFFSET = 0.1
"""Tokens added to a side when position embeddings are resized, which moves where they are read (DINOv2's code)."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Config of `ViT`. The defaults are DUNE's ViT-B/14 at 336 (its code).

    Args:
        patch: side of a patch, pixels.
        size: side of the square images that position embeddings are stored for, pixels; others read between them.
        width: channels of a token.
        depth: blocks.
        heads: of each attention.
        registers: tokens beside the class token that belong to no patch, and have no position.
        layer_scale: start of the factors of each channel after attention and perceptron; 0 means that there are none.
        drop_path: share of views that skip the last block's halves in train mode, rising linearly from 0 at the
            first; 0.1 in UNIC.
        norm: whether the final LayerNorm follows every level, class token included. One rule for all heads: they get
            levels as they are. DUNE and UNIC train without it; what is built on DUNE's encoder alone has it, untrained.
        levels: which blocks give the levels, shallow to deep, from 0; negative ones count from the end. A
            transformer's third, sixth, ninth and twelfth, for dense heads; projectors take the last.
    """

    patch: int = 14
    size: int = 336
    width: int = 768
    depth: int = 12
    heads: int = 12
    registers: int = 4
    layer_scale: float = 1e-4
    drop_path: float = 0.0
    norm: bool = False
    levels: tuple[int, ...] = (2, 5, 8, 11)

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("patch", "size", "width", "depth", "heads")}
        wrong = [level for level in self.levels if not -self.depth <= level < self.depth]
        require(
            {
                **{f"{name}: 1 or more is needed, got {value}": value >= 1 for name, value in sizes.items()},
                f"size: a multiple of the patch of {self.patch} is needed, got {self.size}": (
                    self.patch < 1 or self.size % self.patch == 0
                ),
                f"heads: they share {self.width} channels evenly, which {self.heads} cannot": (
                    self.heads < 1 or self.width % self.heads == 0
                ),
                f"registers: 0 or more are needed, got {self.registers}": self.registers >= 0,
                f"layer_scale: 0 or more is needed, got {self.layer_scale}": self.layer_scale >= 0,
                f"drop_path: a share in [0, 1) is needed, got {self.drop_path}": 0 <= self.drop_path < 1,
                "levels: name one at least": len(self.levels) > 0,
                f"levels: {wrong} are none of the {self.depth} blocks": not wrong,
            }
        )

    @property
    def blocks(self) -> tuple[int, ...]:
        """Numbers of the blocks that give levels, from 0, each once, shallow to deep."""
        return tuple(sorted({level % self.depth for level in self.levels}))


def transformer_block(width: int, heads: int, layer_scale: float, drop_path: float = 0.0) -> Block:
    """timm's pre-norm block as DINOv2 has it: biases everywhere, perceptron of 4 times the width, epsilon 1e-6."""
    norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6))
    return Block(width, heads, qkv_bias=True, init_values=layer_scale or None, drop_path=drop_path, norm_layer=norm)


def initialize(module: nn.Module) -> None:
    """Linear layers begin with a deviation of 0.02, cut at 2, and no bias (DINOv2's and UNIC's code)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of a class token and a square of patches, for another grid.

    Bicubic without smoothing, in float32, read where a grid larger by `OFFSET` would be (DINOv2's code); left as they
    are where the grid is theirs.

    Args:
        positions: (1 1+n*n C).
        grid: (width, height) in tokens.

    Returns:
        (1 1+width*height C).
    """
    edge = isqrt(positions.shape[1] - 1)
    if grid == (edge, edge):
        return positions
    maps = positions[:, 1:].float().unflatten(1, (edge, edge)).permute(0, 3, 1, 2)
    scale = [(tokens + OFFSET) / edge for tokens in reversed(grid)]
    maps = functional.interpolate(maps, scale_factor=scale, mode="bicubic")
    assert maps.shape[2:] == (grid[1], grid[0])
    return torch.cat([positions[:, :1], maps.flatten(2).transpose(1, 2).to(positions.dtype)], 1)


SMALL = {"width": 384, "heads": 6}


@encoders.register(
    "vit",
    ViTConfig,
    {
        "s14-336": SMALL,
        "tiny": {"size": 56, "width": 32, "heads": 2, "depth": 3, "levels": (0, 1, 2)},
        "b14-336": {},
        "s14-448": {**SMALL, "size": 448},
        "b14-448": {"size": 448},
        "b16-224": {  # UNIC
            "patch": 16,
            "size": 224,
            "registers": 0,
            "layer_scale": 0.0,
            "drop_path": 0.1,
            "levels": tuple(range(12)),
        },
    },
)
class ViT(ImageEncoder):
    """Vision transformers with registers (DUNE), or without (UNIC).

    Images of any multiple of the patch, square or not. Registers are dropped from what is returned; the class token is
    the summary, and that of every level is kept.

    Args:
        config: see `ViTConfig`.
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config, self.patch, width = config, config.patch, config.width
        tokens = (config.size // config.patch) ** 2
        self.patches = nn.Conv2d(3, width, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.registers = nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        self.positions = nn.Parameter(torch.empty(1, 1 + tokens, width))
        shares = [config.drop_path * block / max(config.depth - 1, 1) for block in range(config.depth)]
        blocks = (transformer_block(width, config.heads, config.layer_scale, share) for share in shares)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6) if config.norm else nn.Identity()
        self.channels = (width,) * len(config.blocks)
        self._initialize()

    def look(self, pixels: Tensor) -> FeatureMaps:
        """Token grids and class tokens of the chosen blocks; no deeper block is run."""
        tokens, taken = self.embed(pixels), []
        for number, block in enumerate(self.blocks[: self.config.blocks[-1] + 1]):
            tokens = block(tokens)
            if number in self.config.blocks:
                taken.append(self.norm(tokens))
        shape = (pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
        first = 1 + self.config.registers
        levels = tuple(level[:, first:].transpose(1, 2).unflatten(2, shape) for level in taken)
        summaries = tuple(level[:, 0] for level in taken)
        return FeatureMaps(levels=levels, summary=summaries[-1], summaries=summaries)

    def embed(self, pixels: Tensor) -> Tensor:
        """(V 1+registers+h*w C) tokens of normalised images before the first block."""
        patches = self.patches(pixels)
        views, _, high, wide = patches.shape
        tokens = torch.cat([self.class_token.expand(views, -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + resize_positions(self.positions, (wide, high))
        if self.registers is None:
            return tokens
        return torch.cat([tokens[:, :1], self.registers.expand(views, -1, -1).to(tokens), tokens[:, 1:]], 1)

    @torch.no_grad()
    def resize(self, size: int) -> None:
        """Stores position embeddings for square images of another size, in pixels: the start of a stage at that size.

        The parameter is a new one: call this before the optimiser is made.
        """
        self.config = replace(self.config, size=size)
        tokens = size // self.patch
        self.positions = nn.Parameter(resize_positions(self.positions, (tokens, tokens)).clone())

    @torch.no_grad()
    def _initialize(self) -> None:
        """As DINOv2's code: the convolution keeps torch's start."""
        initialize(self)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.normal_(self.class_token, std=1e-6)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=1e-6)
