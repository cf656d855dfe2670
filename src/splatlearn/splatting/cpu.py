"""The `cpu` backend: Numba kernels behind one `torch.autograd.Function`.

Threads follow `torch.get_num_threads()`. Kernels run one at a time in a process, under one lock. Results are the
same bits from run to run, and for any number of threads. Do not render in forked processes: OpenMP does not
survive a fork (start loader workers by spawn).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatlearn.splatting.kernels import binning, compositing, gradient, projection
from splatlearn.splatting.kernels.compilation import config
from splatlearn.structures import Cameras, Gaussians

if TYPE_CHECKING:
    from splatlearn.splatting.render import RenderOptions

LOCK = threading.RLock()


class Layout(NamedTuple):
    """Which Gaussians each view sees, and how: everything about a call that is not a tensor.

    Fields:
        gaussians: (B + 1) first row of each item.
        views: (B + 1) first view of each item.
        pairs: (V + 1) first pair of each view.
        first: (V) first Gaussian of each view's item.
        size: width, height in pixels.
        limits: low_pass, alpha_min, near, far.
        stops: (3) float32 alpha_min, alpha_max, transmittance_min.
    """

    gaussians: np.ndarray
    views: np.ndarray
    pairs: np.ndarray
    first: np.ndarray
    size: tuple[int, int]
    limits: tuple[float, float, float, float]
    stops: np.ndarray


class Drawn(NamedTuple):
    """What the backward pass needs of the forward pass; each is explained in the kernel that makes it."""

    records: np.ndarray
    boxes: np.ndarray
    tiles: np.ndarray
    hits: np.ndarray
    tile_starts: np.ndarray
    slot_starts: np.ndarray


def rasterize(gaussians: Gaussians, cameras: Cameras, options: "RenderOptions") -> tuple[Tensor, Tensor, Tensor]:
    """Premultiplied color (V 3 H W), depth (V 1 H W) and alpha (V 1 H W) of float32 tensors on the CPU."""
    g, c = gaussians, cameras
    tensors = (g.means, g.scales, g.quaternions, g.opacities, g.sh, c.world_to_camera, c.intrinsics)
    return _Rasterize.apply(_layout(gaussians, cameras, options), *tensors)


def _layout(gaussians: Gaussians, cameras: Cameras, options: "RenderOptions") -> Layout:
    per_view = np.repeat(np.array(gaussians.counts, np.int64), cameras.counts)
    return Layout(
        gaussians=np.array(gaussians.offsets, np.int64),
        views=np.array(cameras.offsets, np.int64),
        pairs=np.array([*accumulate(per_view.tolist(), initial=0)], np.int64),
        first=np.repeat(np.array(gaussians.offsets[:-1], np.int64), cameras.counts),
        size=(cameras.width, cameras.height),
        limits=(float(options.low_pass), float(options.alpha_min), float(options.near), float(options.far)),
        stops=np.array([options.alpha_min, options.alpha_max, options.transmittance_min], np.float32),
    )


@contextmanager
def _threads() -> Iterator[int]:
    """Holds the lock and gives Numba as many threads as torch has."""
    with LOCK:
        before = numba.get_num_threads()
        workers = min(torch.get_num_threads(), config.NUMBA_NUM_THREADS)
        numba.set_num_threads(workers)
        try:
            yield workers
        finally:
            numba.set_num_threads(before)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        with _threads() as workers:
            images, ctx.drawn = _draw(layout, _arrays(tensors), workers)
        ctx.layout = layout
        outputs = tuple(torch.from_numpy(image) for image in images)
        ctx.save_for_backward(*outputs, *tensors)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        with _threads() as workers:
            outgoing = _differentiate(
                ctx.layout, ctx.drawn, _arrays(tensors), _arrays(images), _arrays(gradients), workers
            )
        return (None, *(torch.from_numpy(values) for values in outgoing))


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _draw(
    layout: Layout, arrays: tuple[np.ndarray, ...], workers: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Drawn]:
    pairs, views, (width, height) = int(layout.pairs[-1]), len(layout.first), layout.size
    records, boxes = np.empty((pairs, projection.RECORD), np.float32), np.empty((pairs, 4), np.int32)
    tiles, spoilt = np.empty(pairs, np.int32), np.zeros(views, np.bool_)
    seen = (arrays[5], arrays[6], layout.first, layout.pairs, layout.size, layout.limits)
    projection.project(arrays[:5], *seen, records, boxes, tiles, spoilt)
    grid = (-(-width // projection.TILE), -(-height // projection.TILE))
    binned = binning.bin_pairs(records, boxes, tiles, layout.pairs, *grid, workers)
    color = np.empty((views, 3, height, width), np.float32)
    depth, alpha = np.empty((2, views, 1, height, width), np.float32)
    compositing.draw(records, *binned[:2], layout.stops, workers, (color, depth, alpha))
    for image in (color, depth, alpha):
        image[spoilt] = np.nan
    return (color, depth, alpha), Drawn(records, boxes, tiles, *binned)


def _differentiate(
    layout: Layout,
    drawn: Drawn,
    arrays: tuple[np.ndarray, ...],
    images: tuple[np.ndarray, ...],
    gradients: tuple[np.ndarray, ...],
    workers: int,
) -> list[np.ndarray]:
    """Gradients of the seven tensors, in their order."""
    *_, poses, intrinsics = arrays
    records, boxes, tiles, hits, tile_starts, slot_starts = drawn
    slots = np.empty((len(hits), compositing.MOMENTS), np.float32)
    binned = (hits, tile_starts, slot_starts)
    compositing.differentiate(records, boxes, *binned, layout.stops, workers, images, gradients, slots)
    outputs = tuple(np.zeros_like(array) for array in arrays[:5])
    rows = (layout.gaussians, layout.views, layout.pairs)
    seen = gradient.backproject(
        arrays[:5], poses, intrinsics, *rows, layout.size, records, tiles, slot_starts, slots, outputs
    )
    by_pose, by_intrinsics = np.zeros_like(poses), np.zeros_like(intrinsics)
    by_pose[:, :3, :3], by_pose[:, :3, 3] = seen[:, :9].reshape(-1, 3, 3), seen[:, 9:12]
    by_intrinsics[:, 0, 0], by_intrinsics[:, 1, 1] = seen[:, 12], seen[:, 13]
    by_intrinsics[:, 0, 2], by_intrinsics[:, 1, 2] = seen[:, 14], seen[:, 15]
    return [*outputs, by_pose, by_intrinsics]
