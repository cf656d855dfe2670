"""Images for networks that look at patches: sizes that divide, and the usual colours. Legend: V views, H W pixels."""

from torch import Tensor
from torch.nn import functional

from splatlearn.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def token_grid(size: tuple[int, int], patch: int, name: str) -> tuple[int, int]:
    """(width, height) in tokens of images of a size (width, height).

    Args:
        size: in pixels.
        patch: pixels between tokens.
        name: whose patch it is, for the message.

    Raises:
        UserError: the patch does not divide that size.
    """
    width, height = size
    if width % patch or height % patch:
        raise UserError(
            f"{name}: images of {width}x{height} do not divide into patches of {patch} pixels; nearest "
            f"sizes that do: {_multiples(width, patch)} wide, {_multiples(height, patch)} high; or name a grid "
            "of tokens"
        )
    return width // patch, height // patch


def fit_images(images: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Images (V 3 H W) in [0, 1] of exactly `grid` (width, height) patches: bicubic, smoothed where they shrink."""
    size = (grid[1] * patch, grid[0] * patch)
    if size == tuple(images.shape[2:]):
        return images
    if not len(images):
        return images.new_zeros(0, 3, *size)
    return functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(V 3 H W) minus the mean and divided by the deviation of each colour."""
    subtracted, divided = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    return (images - subtracted) / divided


def _multiples(length: int, patch: int) -> str:
    below, above = length // patch * patch, (length // patch + 1) * patch
    return f"{below} or {above}" if below else str(above)
