"""How far a rendered picture is from the photograph. Legend: V views, H W pixels; colours in [0, 1].

Every loss is a mean over the global batch (`ops.reduce.global_mean`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.errors import UserError
from splatlearn.losses.vgg import VGG16Weights, resolve_linear, resolve_vgg16
from splatlearn.ops.reduce import global_mean

WINDOW = 11
"""Side of SSIM's Gaussian window (Wang et al. 2004)."""
SIGMA = 1.5
"""Standard deviation of that window, pixels (Wang et al. 2004)."""
STABILIZERS = (0.01**2, 0.03**2)
"""SSIM's C1 and C2 for colours in [0, 1] (Wang et al. 2004)."""


def mse(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error over all pixels and colours (GS3 eq. 6).

    Args:
        prediction: (V 3 H W).
        target: (V 3 H W).
        weights: broadcast to the pictures, (V 1 H W) say; left out, all pixels count alike.

    Returns:
        Scalar, the mean over the global batch.
    """
    _check(prediction, target)
    return global_mean((prediction - target).square(), weights)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each view.

    Args:
        prediction: (V 3 H W); clamp it first when it is to count as a picture.
        target: (V 3 H W).

    Returns:
        (V) decibels, at most 100.
    """
    _check(prediction, target)
    return -10 * (prediction - target).square().flatten(1).mean(1).clamp_min(1e-10).log10()


def ssim_map(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity at each pixel and colour, with zeros beyond the border (graphdeco code).

    Args:
        prediction: (V 3 H W).
        target: (V 3 H W).

    Returns:
        (V 3 H W), at most 1.
    """
    _check(prediction, target)
    views = len(prediction)
    products = [prediction, target, prediction.square(), target.square(), prediction * target]
    first, second, first_square, second_square, product = _blur(torch.cat(products)).split(views)
    c1, c2 = STABILIZERS
    mean_product = first * second
    means = first.square() + second.square()
    variances = first_square + second_square - means
    return (2 * mean_product + c1) * (2 * (product - mean_product) + c2) / ((means + c1) * (variances + c2))


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity over the global batch; the loss is 1 minus it.

    Args:
        prediction: (V 3 H W).
        target: (V 3 H W).

    Returns:
        Scalar, at most 1.
    """
    return global_mean(ssim_map(prediction, target))


class LPIPS(nn.Module):
    """Learned perceptual distance on VGG16 (Zhang et al. 2018, version 0.1; GS3 eq. 7).

    Frozen: its weights move with the module, but are neither parameters nor buffers, which are copied every step, sent
    between processes and saved. The linear layers come with torchmetrics.

    Args:
        weights: a file with VGG16's `features.*` as torchvision names them (safetensors, or a pth of tensors);
            empty for the Hugging Face cache, then the hub (timm/vgg16.tv_in1k, BSD-3-Clause).

    Attributes:
        origin: `source`, `digest` (SHA-256) and `licence` of the VGG16 weights, for the record of a run.

    Raises:
        UserError: the weights are nowhere, or are not those of VGG16; says what to do.
    """

    def __init__(self, weights: str | Path = "") -> None:
        super().__init__()
        backbone: VGG16Weights = resolve_vgg16(weights)
        self.origin = {"source": backbone.source, "digest": backbone.digest, "licence": backbone.licence}
        self.slices = backbone.slices
        # The published shift and scale are for colours in [-1, 1].
        shift, scale = (
            torch.tensor(colour)[:, None, None] for colour in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
        )
        self.frozen = {**backbone.tensors, **resolve_linear(), "shift": shift, "scale": scale}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `double`... do to tensors, done to the frozen ones too."""
        super()._apply(fn, recurse)
        self.frozen = {name: fn(value) for name, value in self.frozen.items()}
        return self

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean distance over the global batch.

        Args:
            prediction: (V 3 H W), 16 pixels or more a side.
            target: (V 3 H W); receives no gradient.

        Returns:
            Scalar.
        """
        return global_mean(self.distances(prediction, target))

    def distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(V) distance of each view, 0 for equal pictures."""
        _check(prediction, target)
        with torch.autocast(prediction.device.type, enabled=False):
            with torch.no_grad():
                expected = self._features(target)
            total = prediction.new_zeros(len(prediction))
            for level, (mine, theirs) in enumerate(zip(self._features(prediction), expected)):
                linear = self.frozen[f"linear.{level}"]
                total = total + functional.conv2d((mine - theirs).square(), linear).mean((1, 2, 3))
            return total

    def _features(self, images: Tensor) -> list[Tensor]:
        """Unit-length features after the last convolution of each of the five stages."""
        x = (2 * images - 1 - self.frozen["shift"]) / self.frozen["scale"]
        levels = []
        for number, names in enumerate(self.slices):
            x = functional.max_pool2d(x, 2) if number else x
            for name in names:
                weight, bias = self.frozen[f"{name}.weight"], self.frozen[f"{name}.bias"]
                x = functional.conv2d(x, weight, bias, padding=1).relu()
            levels.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return levels


def _blur(images: Tensor) -> Tensor:
    """SSIM's Gaussian window over each channel, as two one-dimensional passes."""
    reach = torch.arange(WINDOW, device=images.device, dtype=images.dtype) - WINDOW // 2
    window = torch.exp(-reach.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(images.shape[1], 1, 1, -1)
    rows = functional.conv2d(images, window, padding=(0, WINDOW // 2), groups=images.shape[1])
    return functional.conv2d(rows, window.transpose(2, 3), padding=(WINDOW // 2, 0), groups=images.shape[1])


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise UserError(f"pictures to compare differ in shape: {tuple(prediction.shape)} and {tuple(target.shape)}")
