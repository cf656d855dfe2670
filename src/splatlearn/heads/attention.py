"""Attention inside an image, and sine codes of numbers in [0, 1] (pixelSplat's image self-attention).

Legend: V images, T tokens, C channels, h w pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.config import require


@dataclass(frozen=True, kw_only=True)
class ImageAttentionConfig:
    """Attention among patches of one image; the defaults are pixelSplat's.

    Args:
        patch: side of a patch, pixels of the (already downscaled) grid.
        octaves: frequencies of the position code.
        layers: transformer layers.
        heads: attention heads.
        head_width: channels of a head.
        width: channels of a token.
        hidden: channels inside the feed-forward part.
    """

    patch: int = 4
    octaves: int = 10
    layers: int = 2
    heads: int = 4
    head_width: int = 128
    width: int = 128
    hidden: int = 256

    def __post_init__(self) -> None:
        require({f"{name}: 1 or more is needed, got {value}": value >= 1 for name, value in vars(self).items()})


def fourier_code(values: Tensor, octaves: int) -> Tensor:
    """Sine and cosine of 2 pi 2^k x for k < octaves.

    Args:
        values: (... D) in [0, 1].

    Returns:
        (... D*octaves*2), ordered by dimension, frequency, then sine before cosine.
    """
    frequencies = 2 * torch.pi * 2.0 ** torch.arange(octaves, device=values.device, dtype=values.dtype)
    angles = values[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


class ImageAttention(nn.Module):
    """Patches become tokens, attend to each other, and are spread over their pixels again.

    Args:
        config: sizes.
        channels: channels in and out.
    """

    def __init__(self, config: ImageAttentionConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv2d(channels, config.width, config.patch, config.patch)
        self.position = nn.Linear(4 * config.octaves, config.width)
        self.blocks = nn.ModuleList(TokenBlock(config) for _ in range(config.layers))
        self.spread = nn.ConvTranspose2d(config.width, channels, config.patch, config.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """(V h w C) to (V h w C); h and w are multiples of the patch."""
        tokens = self.embed(pixels.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
        height, width = tokens.shape[1:3]
        tokens = (tokens + self.position(self._positions(tokens))).flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.spread(tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _positions(self, tokens: Tensor) -> Tensor:
        """(h w 4*octaves) code of the patch centres (x, y), as fractions of the image.

        In float32 at least: half precision cannot tell the places apart that the highest octaves do.
        """
        height, width = tokens.shape[1:3]
        precision = torch.promote_types(tokens.dtype, torch.float32)
        x, y = ((torch.arange(side, device=tokens.device, dtype=precision) + 0.5) / side for side in (width, height))
        code = fourier_code(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1), self.config.octaves)
        return code.to(tokens.dtype)


class TokenBlock(nn.Module):
    """A pre-norm transformer layer over (V T C)."""

    def __init__(self, config: ImageAttentionConfig) -> None:
        super().__init__()
        width, inner = config.width, config.heads * config.head_width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(V T C) to (V T C)."""
        query, key, value = self.qkv(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(-2))
        return tokens + self.mlp(self.mlp_norm(tokens))
