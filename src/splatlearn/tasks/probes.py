"""What is trained on an encoder's features: linear layers, and small decoders.

Legend: N rows, C channels, K outputs, h w tokens of a map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.ops.norm import PackedBatchNorm


class LinearProbe(nn.Module):
    """Standardised features and linear layers, one a learning rate; the task chooses the layer that is used.

    Features of few channels (raw inputs) want a higher rate than those of many, so a single one would favour some
    method; this is the same tuning for every method. The layers share nothing.

    Args:
        channels: C.
        outputs: K.
        heads: number of layers; the loop gives each its rate by its name, `heads.0`...
    """

    best: Tensor

    def __init__(self, channels: int, outputs: int, heads: int = 1) -> None:
        super().__init__()
        self.norm = PackedBatchNorm(channels).requires_grad_(False)
        self.heads = nn.ModuleList(nn.Linear(channels, outputs) for _ in range(heads))
        self.register_buffer("best", torch.zeros((), dtype=torch.int64))

    def each(self, features: Tensor) -> list[Tensor]:
        """(N K) outputs of every layer, from one matrix product: K is small, and C is read once."""
        weight, bias = (torch.cat([getattr(head, name) for head in self.heads]) for name in ("weight", "bias"))
        outputs = functional.linear(self.norm(features), weight, bias)
        return [*outputs.chunk(len(self.heads), 1)]

    def forward(self, features: Tensor) -> Tensor:
        """(N C) -> (N K) by the chosen layer."""
        return self.heads[int(self.best)](self.norm(features))


class TrainedHead(nn.Sequential):
    """Batch norm and one linear layer on an encoder that trains too, (N C) -> (N K)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(PackedBatchNorm(channels), nn.Linear(channels, outputs))


class DecoderProbe(nn.Sequential):
    """A perceptron with one hidden layer on each point's features, (N C) -> (N K).

    It mixes the levels of a point without linearity's limit, and sees no neighbours but through the encoder.
    """

    def __init__(self, channels: int, outputs: int, hidden: int = 128) -> None:
        first = PackedBatchNorm(channels), nn.Linear(channels, hidden, bias=False)
        super().__init__(*first, PackedBatchNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs))


class MapDecoder(nn.Module):
    """A small convolutional decoder of one image's tokens, four times as fine as they are.

    It sees the neighbours of a token. Tokens are standardised, brought to one width, and twice enlarged and convolved;
    nothing in it depends on the other images of a batch but the standardisation.

    Args:
        channels: C, all levels side by side.
        outputs: K.
        hidden: width in between (our default).
    """

    def __init__(self, channels: int, outputs: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = PackedBatchNorm(channels)
        self.first = nn.Linear(channels, hidden)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1), nn.GroupNorm(8, hidden), nn.GELU()) for _ in range(2)
        )
        self.last = nn.Conv2d(hidden, outputs, 1)

    def forward(self, tokens: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """(N C) tokens of images, row by row, one image after another, and each one's (w, h): (K 4h 4w) of each."""
        rows, found = self.first(self.norm(tokens)), []
        for part, (width, height) in zip(rows.split([w * h for w, h in grids]), grids, strict=True):
            maps = part.t().unflatten(1, (height, width))[None]
            for step in self.steps:
                maps = step(functional.interpolate(maps, scale_factor=2, mode="bilinear"))
            found.append(self.last(maps)[0])
        return found
