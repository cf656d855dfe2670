"""Convolutional ImageNet networks that can stop after each stage. Legend: V views, C channels, h w features."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional


class Stages(nn.Module):
    """A network that can stop after each of its stages.

    Attributes:
        widths: channels after each stage.
        strides: pixels between the features after each stage.
        padded: whether its convolutions pad their input, so that the first feature stands at the first pixel; without,
            it stands where its window is.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    padded: bool = True

    @abstractmethod
    def forward(self, x: Tensor, stage: int) -> Tensor:
        """Features after a stage, of normalised images."""


class Norm(nn.Module):
    """Batch norm by stored statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, epsilon 1e-5."""
        return functional.batch_norm(
            x, self.get_buffer("running_mean"), self.get_buffer("running_var"), self.weight, self.bias
        )


class PreActivationStage(nn.Module):
    """Bottlenecks of ResNet v2: norm and ReLU before each convolution; the shortcut follows the first ReLU."""

    def __init__(self, before: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.stride, after = stride, 4 * width
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for block in range(blocks):
            inner = stride if block == 0 else 1
            self.convs.append(nn.Conv2d(before, width, 1, bias=False))
            self.convs.append(nn.Conv2d(width, width, 3, inner, 1, bias=False))
            self.convs.append(nn.Conv2d(width, after, 1, bias=False))
            if block == 0:
                self.convs.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.norms.extend([Norm(before), Norm(width), Norm(width)])
            before = after

    def forward(self, x: Tensor) -> Tensor:
        """(V C h w) to (V 4*width h/stride w/stride)."""
        for block in range(len(self.norms) // 3):
            first = 3 * block + (block > 0)  # the first block has the shortcut's convolution, too
            y = self.norms[3 * block](x).relu()
            shortcut = x if block else self.convs[3](y)
            for step in range(3):
                y = self.norms[3 * block + step](y).relu() if step else y
                y = self.convs[first + step](y)
            x = y + shortcut
        return x


class ResNet50V2(Stages):
    """ResNet-50 v2 up to its third stage, which the norm of the fourth closes."""

    strides = (4, 8, 16)

    def __init__(self, width: float) -> None:
        super().__init__()
        base = max(8, int(64 * width))
        self.widths = tuple(4 * base * 2**stage for stage in range(3))
        self.input_norm, self.stem = Norm(3), nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.stem_norm, self.final_norm = Norm(base), Norm(self.widths[-1])
        befores = (base, *self.widths)
        self.stages = nn.ModuleList(
            PreActivationStage(befores[stage], base * 2**stage, blocks, 1 if stage == 0 else 2)
            for stage, blocks in enumerate((3, 4, 6))
        )

    def forward(self, x: Tensor, stage: int) -> Tensor:
        """(V 3 H W) to (V C h w)."""
        x = self.stem_norm(self.stem(self.input_norm(x))).relu()
        x = functional.max_pool2d(x, 3, 2, 1)
        for number in range(stage + 1):
            x = self.stages[number](x)
        return self.final_norm(x) if stage == len(self.stages) - 1 else x


class Convolution(nn.Sequential):
    """A convolution with bias, and ReLU6."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(nn.Conv2d(before, after, size, stride, size // 2, groups=groups), nn.ReLU6())


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen (but in the first), depthwise, narrow."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: list[nn.Module] = [Convolution(before, inner, 1)] if expansion > 1 else []
        layers += [Convolution(inner, inner, 3, stride, inner), nn.Conv2d(inner, after, 1)]
        self.conv, self.residual = nn.Sequential(*layers), stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(V C h w) to (V after h/stride w/stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Stages):
    """MobileNetV2 whose batch norms are folded into its convolutions; names of parts are torchvision's."""

    strides = (2, 4, 8, 16, 32)
    ends = (2, 4, 7, 14, 19)
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    """Expansion, width, number and stride of the blocks (Sandler et al. 2018, table 2)."""

    def __init__(self, width: float) -> None:
        super().__init__()
        before, last = max(8, int(32 * width)), max(8, int(1280 * width))
        layers: list[nn.Module] = [Convolution(3, before, 3, 2)]
        widths = [before]
        for expansion, after, number, stride in self.blocks:
            for block in range(number):
                after_all = max(8, int(after * width))
                layers.append(InvertedResidual(before, after_all, stride if block == 0 else 1, expansion))
                before = after_all
                widths.append(before)
        self.features = nn.Sequential(*layers, Convolution(before, last, 1))
        self.widths = tuple([*widths, last][end - 1] for end in self.ends)

    def forward(self, x: Tensor, stage: int) -> Tensor:
        """(V 3 H W) to (V C h w)."""
        return self.features[: self.ends[stage]](x)


class Fire(nn.Module):
    """SqueezeNet's block: few channels, then many, by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, before: int, squeezed: int, half: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.expand1x1, self.expand3x3 = nn.Conv2d(squeezed, half, 1), nn.Conv2d(squeezed, half, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(V C h w) to (V 2*half h w)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class SqueezeNet(Stages):
    """SqueezeNet 1.1; names of parts are torchvision's."""

    strides = (4, 8, 16)
    padded = False
    ends = (5, 8, 13)
    fires = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    """Squeezed width, and half the width after it (Iandola et al. 2016, as torchvision's 1.1 has them)."""

    def __init__(self, width: float) -> None:
        super().__init__()
        before = max(8, int(64 * width))
        layers: list[nn.Module] = [nn.Conv2d(3, before, 3, 2), nn.ReLU(), _pool()]
        for number, (squeezed, half) in enumerate(self.fires):
            few, many = max(4, int(squeezed * width)), max(8, int(half * width))
            layers += [_pool()] if number in (2, 4) else []
            layers.append(Fire(before, few, many))
            before = 2 * many
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(before, 1000, 1), nn.ReLU())
        self.widths = tuple(2 * max(8, int(self.fires[last][1] * width)) for last in (1, 3, 7))

    def forward(self, x: Tensor, stage: int) -> Tensor:
        """(V 3 H W) to (V C h w)."""
        return self.features[: self.ends[stage]](x)

    def logits(self, x: Tensor) -> Tensor:
        """(V 1000) ImageNet classes of normalised images: the mean of the classifier's map."""
        return self.classifier(self.features(x)).mean((2, 3))


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)
