"""The `cpu` backend: Numba kernels behind one `torch.autograd.Function`.

Threads follow `torch.get_num_threads()`. Kernels run one at a time in a process, under one lock. Results are the
same bits from run to run, and for any number of threads. Do not render in forked processes: OpenMP does not
survive a fork (start loader workers by spawn).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatlearn.ops.compilation import config
from splatlearn.splatting.kernels import binning, channels, compositing, gradient, projection
from splatlearn.structures import Cameras, Gaussians

if TYPE_CHECKING:
    from splatlearn.splatting.render import RenderOptions

LOCK = threading.RLock()
ENTRIES = 1 << 20
"""Weights that are listed at a time, of nine bytes each."""
NOTHING = (np.empty((0, 0, 0), np.float32), np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.float32))
"""No channels beside colour and depth."""


class Layout(NamedTuple):
    """Which Gaussians each view sees, and how: everything about a call that is not a tensor.

    Fields:
        gaussians: (B + 1) first row of each item.
        views: (B + 1) first view of each item.
        pairs: (V + 1) first pair of each view.
        first: (V) first Gaussian of each view's item.
        size: width, height in pixels.
        limits: low_pass, alpha_min, near, far, antialiased.
        stops: (3) float32 alpha_min, alpha_max, transmittance_min.
    """

    gaussians: np.ndarray
    views: np.ndarray
    pairs: np.ndarray
    first: np.ndarray
    size: tuple[int, int]
    limits: tuple[float, float, float, float, bool]
    stops: np.ndarray

    @property
    def rows(self) -> tuple[np.ndarray, ...]:
        """What the kernels for channels take."""
        return (self.gaussians, self.views, self.pairs, self.first)


class Drawn(NamedTuple):
    """What later passes need of the first; each is explained in the kernel that makes it."""

    records: np.ndarray
    boxes: np.ndarray
    tiles: np.ndarray
    hits: np.ndarray
    tile_starts: np.ndarray
    slot_starts: np.ndarray

    @property
    def binned(self) -> tuple[np.ndarray, ...]:
        """Without `tiles`."""
        return (self.records, self.boxes, self.hits, self.tile_starts, self.slot_starts)


class Band(NamedTuple):
    """The weights of a range of tiles; see `kernels.channels`.

    Fields:
        tiles: first and past-last tile.
        hits: first and past-last hit.
        entries: entry_starts, places, weights and slot_hits.
    """

    tiles: tuple[int, int]
    hits: tuple[int, int]
    entries: tuple[np.ndarray, ...]


def rasterize(
    gaussians: Gaussians, cameras: Cameras, features: Tensor | None, options: "RenderOptions"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Premultiplied color (V 3 H W), features (V C H W), depth (V 1 H W) and alpha (V 1 H W) of float32 tensors on
    the CPU. Features lie channel by channel in a pixel (torch's `channels_last`)."""
    g, c = gaussians, cameras
    features = g.means.new_empty(len(g), 0) if features is None else features
    tensors = (g.means, g.scales, g.quaternions, g.opacities, g.sh, c.world_to_camera, c.intrinsics, features)
    return _Rasterize.apply(_layout(gaussians, cameras, options), *tensors)


def lift(maps: Tensor, gaussians: Gaussians, cameras: Cameras, options: "RenderOptions") -> tuple[Tensor, Tensor]:
    """Sums (N C) of maps (V C h w) over the pixels of a Gaussian, weighed as it is blended there, and sums (N) of
    these weights; float32 tensors on the CPU."""
    g, c = gaussians, cameras
    layout = _layout(gaussians, cameras, options)
    with torch.no_grad(), _threads() as workers:
        arrays = _arrays((g.means, g.scales, g.quaternions, g.opacities, g.sh, c.world_to_camera, c.intrinsics))
        (read,) = _arrays((maps.permute(0, 2, 3, 1),))
        drawn, _ = _bin(layout, arrays, workers)
        counts = _blend(layout, drawn, np.empty((len(g), 0), np.float32), np.empty(0, np.float32), workers)
        sums, weights = np.zeros((len(g), maps.shape[1]), np.float32), np.zeros(len(g))
        for band in _bands(layout, drawn, counts, workers):
            channels.lift(layout.rows, band.hits, drawn.binned, band.entries, layout.size, read, sums, weights)
    return torch.from_numpy(sums), torch.from_numpy(weights).float()


def _layout(gaussians: Gaussians, cameras: Cameras, options: "RenderOptions") -> Layout:
    o = options
    per_view = np.repeat(np.array(gaussians.counts, np.int64), cameras.counts)
    return Layout(
        gaussians=np.array(gaussians.offsets, np.int64),
        views=np.array(cameras.offsets, np.int64),
        pairs=np.array([*accumulate(per_view.tolist(), initial=0)], np.int64),
        first=np.repeat(np.array(gaussians.offsets[:-1], np.int64), cameras.counts),
        size=(cameras.width, cameras.height),
        limits=(float(o.low_pass), float(o.alpha_min), float(o.near), float(o.far), bool(o.antialiased)),
        stops=np.array([o.alpha_min, o.alpha_max, o.transmittance_min], np.float32),
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
            (color, blended, depth, alpha), ctx.drawn, ctx.counts = _draw(layout, _arrays(tensors), workers)
        ctx.layout = layout
        outputs = tuple(torch.from_numpy(image) for image in (color, blended, depth, alpha))
        ctx.save_for_backward(*outputs, *tensors)
        return outputs[0], outputs[1].permute(0, 3, 1, 2), *outputs[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, tensors = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        gradients = (gradients[0], gradients[1].permute(0, 2, 3, 1), *gradients[2:])
        with _threads() as workers:
            outgoing = _differentiate(
                ctx.layout, ctx.drawn, ctx.counts, _arrays(tensors), _arrays(images), _arrays(gradients), workers
            )
        return (None, *(torch.from_numpy(values) for values in outgoing))


def _arrays(tensors: tuple[Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _bin(layout: Layout, arrays: tuple[np.ndarray, ...], workers: int) -> tuple[Drawn, np.ndarray]:
    """What each tile shows, and (V) which views are spoilt by numbers that are not finite."""
    pairs, views, (width, height) = int(layout.pairs[-1]), len(layout.first), layout.size
    records, boxes = np.empty((pairs, projection.RECORD), np.float32), np.empty((pairs, 4), np.int32)
    tiles, spoilt = np.empty(pairs, np.int32), np.zeros(views, np.bool_)
    seen = (arrays[5], arrays[6], layout.first, layout.pairs, layout.size, layout.limits)
    projection.project(arrays[:5], *seen, records, boxes, tiles, spoilt)
    grid = (-(-width // projection.TILE), -(-height // projection.TILE))
    return Drawn(records, boxes, tiles, *binning.bin_pairs(records, boxes, tiles, layout.pairs, *grid, workers)), spoilt


def _draw(
    layout: Layout, arrays: tuple[np.ndarray, ...], workers: int
) -> tuple[tuple[np.ndarray, ...], Drawn, np.ndarray]:
    """Color, features (V H W C), depth and alpha; what they were made with; pixels of each hit, with features only."""
    views, (width, height), features = len(layout.first), layout.size, arrays[7]
    drawn, spoilt = _bin(layout, arrays, workers)
    color = np.empty((views, 3, height, width), np.float32)
    depth, alpha = np.empty((2, views, 1, height, width), np.float32)
    compositing.draw(drawn.records, drawn.hits, drawn.tile_starts, layout.stops, workers, (color, depth, alpha))
    blended, counts = np.zeros((views, height, width, features.shape[1]), np.float32), np.empty(0, np.int16)
    if features.shape[1]:
        counts = _blend(layout, drawn, features, blended, workers)
        for item, begin, end in zip(range(len(layout.views) - 1), layout.gaussians, layout.gaussians[1:]):
            if not np.isfinite(features[begin:end].sum()):
                spoilt[layout.views[item] : layout.views[item + 1]] = True
    for image in (color, blended, depth, alpha):
        image[spoilt] = np.nan
    return (color, blended, depth, alpha), drawn, counts


def _blend(layout: Layout, drawn: Drawn, features: np.ndarray, output: np.ndarray, workers: int) -> np.ndarray:
    """Adds blended features to `output` (V H W C); returns (I) int16, the pixels that each hit lights."""
    counts = np.empty(len(drawn.hits), np.int16)
    channels.blend(layout.rows, drawn.binned, layout.stops, layout.size, workers, features, output, counts)
    return counts


def _bands(layout: Layout, drawn: Drawn, counts: np.ndarray, workers: int) -> Iterator[Band]:
    """Lists all weights, about `ENTRIES` at a time; each band overwrites the one before."""
    before = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=before[1:])
    by_tile = before[drawn.tile_starts]
    slot_hits, begin, last = np.full(len(counts), -1, np.int64), 0, len(by_tile) - 1
    while begin < last:
        end = max(begin + 1, int(np.searchsorted(by_tile, by_tile[begin] + ENTRIES, "right")) - 1)
        hits = int(drawn.tile_starts[begin]), int(drawn.tile_starts[end])
        starts = before[hits[0] : hits[1] + 1] - before[hits[0]]
        room = int(starts[-1])
        entries = (starts, np.empty(room, np.uint8), np.empty(room, np.float32), slot_hits)
        channels.list_weights((begin, end), drawn.binned, layout.stops, layout.size, workers, entries)
        yield Band((begin, end), hits, entries)
        begin = end


def _differentiate(
    layout: Layout,
    drawn: Drawn,
    counts: np.ndarray,
    arrays: tuple[np.ndarray, ...],
    images: tuple[np.ndarray, ...],
    gradients: tuple[np.ndarray, ...],
    workers: int,
) -> list[np.ndarray]:
    """Gradients of the eight tensors, in their order."""
    *_, poses, intrinsics, features = arrays
    slots, by_features = np.empty((len(drawn.hits), compositing.MOMENTS), np.float32), np.zeros_like(features)
    outer = ((images[0], *images[2:]), (gradients[0], *gradients[2:]))
    tiles = (0, len(drawn.tile_starts) - 1)
    treat = partial(_treat_tiles, layout, drawn, workers, *outer, slots=slots)
    if features.shape[1]:
        further = np.einsum("vhwc,vhwc->vhw", images[1], gradients[1])
        for band in _bands(layout, drawn, counts, workers):
            starts, places, weights, _ = band.entries
            gains = np.empty_like(weights)
            seen = (drawn.binned, band.entries, layout.size, features, gradients[1], by_features, gains)
            channels.gather(layout.rows, band.hits, *seen)
            treat(band.tiles, (further, starts, places, gains))
    else:
        treat(tiles, NOTHING)
    outputs = tuple(np.zeros_like(array) for array in arrays[:5])
    rows = (layout.gaussians, layout.views, layout.pairs)
    smoothing = layout.limits[0], layout.limits[4]
    cloud = (arrays[:5], poses, intrinsics, *rows, layout.size, smoothing, drawn.records, drawn.tiles)
    seen = gradient.backproject(*cloud, drawn.slot_starts, slots, outputs)
    by_pose, by_intrinsics = np.zeros_like(poses), np.zeros_like(intrinsics)
    by_pose[:, :3, :3], by_pose[:, :3, 3] = seen[:, :9].reshape(-1, 3, 3), seen[:, 9:12]
    by_intrinsics[:, 0, 0], by_intrinsics[:, 1, 1] = seen[:, 12], seen[:, 13]
    by_intrinsics[:, 0, 2], by_intrinsics[:, 1, 2] = seen[:, 14], seen[:, 15]
    return [*outputs, by_pose, by_intrinsics, by_features]


def _treat_tiles(
    layout: Layout,
    drawn: Drawn,
    workers: int,
    images: tuple[np.ndarray, ...],
    gradients: tuple[np.ndarray, ...],
    tiles: tuple[int, int],
    further: tuple[np.ndarray, ...],
    slots: np.ndarray,
) -> None:
    """Fills the slots of a range of tiles."""
    binned = (drawn.records, drawn.boxes, drawn.hits, drawn.tile_starts, drawn.slot_starts)
    compositing.differentiate(tiles, *binned, layout.stops, workers, images, gradients, further, slots)
