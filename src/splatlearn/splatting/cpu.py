"""The `cpu` backend: Numba kernels behind one `torch.autograd.Function`.

Threads follow `torch.get_num_threads()`. Kernels run one at a time in a process, under one lock. Results are the
same bits from run to run, and for any number of threads. Do not render in forked processes: OpenMP does not
survive a fork (start loader workers by spawn).
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
"""Weights that are listed at a time, where they are not kept."""
ENTRY = 6
"""Bytes of a weight and its pixel."""
NO_CELLS = (0, 0)
NO_SUMS = np.empty(0)


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
    def shifts(self) -> np.ndarray:
        """(V) what added to a pair's number gives its Gaussian."""
        return self.first - self.pairs[:-1]


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
        """What the kernels for channels take."""
        return (self.records, self.hits, self.tile_starts)


class Band(NamedTuple):
    """The weights of a range of tiles.

    Fields:
        tiles: first and past-last tile.
        listed: of `kernels.channels.list_weights`.
    """

    tiles: tuple[int, int]
    listed: tuple[np.ndarray, ...]


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
        coarse = NO_CELLS if maps.shape[2:] == (c.height, c.width) else (maps.shape[3], maps.shape[2])
        sums, by_hit = np.zeros((len(g), maps.shape[1]), np.float32), np.zeros(len(drawn.hits))
        known = (layout.shifts, layout.views)
        for band in _bands(layout, drawn, workers, ENTRIES, _no_images(), coarse, by_hit):
            seen = (known, drawn.binned, layout.size, workers, coarse, band.listed)
            channels.gather(band.tiles, *seen, read, sums)
        weights = np.bincount(_owners(layout, drawn), by_hit, len(g))
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
        threads = torch.get_num_threads()
        before = numba.get_num_threads()
        workers = min(threads, config.NUMBA_NUM_THREADS)
        numba.set_num_threads(workers)
        try:
            yield workers
        finally:
            numba.set_num_threads(before)
            if torch.get_num_threads() != threads:  # Numba's first call sets OpenMP's number, which is torch's
                torch.set_num_threads(threads)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, *tensors: Tensor) -> tuple[Tensor, ...]:
        with _threads() as workers:
            (color, blended, depth, alpha), ctx.drawn, ctx.kept = _draw(layout, _arrays(tensors), workers)
        ctx.layout = layout
        outputs = tuple(torch.from_numpy(image) for image in (color, blended, depth, alpha))
        ctx.save_for_backward(outputs[0], *outputs[2:], *tensors)
        return outputs[0], outputs[1].permute(0, 3, 1, 2), *outputs[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        gradients = (gradients[0], gradients[1].permute(0, 2, 3, 1), *gradients[2:])
        with _threads() as workers:
            outgoing = _differentiate(
                ctx.layout, ctx.drawn, ctx.kept, _arrays(tensors), _arrays(images), _arrays(gradients), workers
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
) -> tuple[tuple[np.ndarray, ...], Drawn, Band | None]:
    """Color, features (V H W C), depth and alpha; what they were made with; all weights, where kept for later."""
    views, (width, height), features = len(layout.first), layout.size, arrays[7]
    drawn, spoilt = _bin(layout, arrays, workers)
    color = np.empty((views, 3, height, width), np.float32)
    depth, alpha = np.empty((2, views, 1, height, width), np.float32)
    blended, bands = np.empty((views, height, width, features.shape[1]), np.float32), []
    images = (color, depth, alpha)
    if features.shape[1]:
        for band in _bands(layout, drawn, workers, _room(features, blended), images):
            seen = (layout.shifts, drawn.binned, layout.size, workers, band.listed)
            channels.blend(band.tiles, *seen, features, blended)
            bands.append(band)
        for item, begin, end in zip(range(len(layout.views) - 1), layout.gaussians, layout.gaussians[1:]):
            if not torch.from_numpy(features[begin:end]).sum().isfinite():
                spoilt[layout.views[item] : layout.views[item + 1]] = True
    else:
        compositing.draw(drawn.records, drawn.hits, drawn.tile_starts, layout.stops, workers, images)
    for image in (color, blended, depth, alpha):
        image[spoilt] = np.nan
    return (color, blended, depth, alpha), drawn, bands[0] if len(bands) == 1 else None


def _room(features: np.ndarray, picture: np.ndarray) -> int:
    """Entries that may be kept: they take a little more than half of what features and their pictures take."""
    return max(ENTRIES, (features.size + picture.size) * 4 * 3 // 5 // ENTRY)


def _no_images() -> tuple[np.ndarray, ...]:
    return tuple(np.empty((0, 0, 0, 0), np.float32) for _ in range(3))


def _owners(layout: Layout, drawn: Drawn) -> np.ndarray:
    """(I) the Gaussian of each hit."""
    views = len(layout.first)
    by_view = drawn.tile_starts[:: max((len(drawn.tile_starts) - 1) // max(views, 1), 1)]
    return drawn.hits + np.repeat(layout.shifts, np.diff(by_view)[:views])


def _bands(
    layout: Layout,
    drawn: Drawn,
    workers: int,
    room: int,
    images: tuple[np.ndarray, ...],
    coarse: tuple[int, int] = NO_CELLS,
    sums: np.ndarray = NO_SUMS,
) -> Iterator[Band]:
    """Lists all weights, about `room` at a time, and draws `images`; each band overwrites the one before."""
    tiles, begin = len(drawn.tile_starts) - 1, 0
    counts, firsts = np.zeros(len(drawn.hits), np.int16), np.zeros(tiles, np.int64)
    room = min(room, len(drawn.hits) * channels.MOST) + workers * channels.MOST
    places, values = np.empty(room, np.uint16), np.empty(room, np.float32)
    while begin < tiles:
        listed = (counts, firsts, places, values)
        known = (drawn.binned, layout.stops, layout.size, workers)
        end = int(channels.list_weights(begin, *known, images, coarse, listed, sums))
        if end == begin:
            places, values = np.empty(2 * len(places), np.uint16), np.empty(2 * len(places), np.float32)
            continue
        yield Band((begin, end), listed)
        begin = end


def _differentiate(
    layout: Layout,
    drawn: Drawn,
    kept: Band | None,
    arrays: tuple[np.ndarray, ...],
    images: tuple[np.ndarray, ...],
    gradients: tuple[np.ndarray, ...],
    workers: int,
) -> list[np.ndarray]:
    """Gradients of the eight tensors, in their order."""
    features = arrays[7]
    slots = np.empty((len(drawn.hits), compositing.MOMENTS), np.float32)
    by_features = np.zeros(features.shape, np.float32)  # takes memory where it is first added to
    cloud = (drawn.records, drawn.boxes, drawn.hits, drawn.tile_starts, drawn.slot_starts)
    outer = (layout.stops, workers, images, (gradients[0], *gradients[2:]))

    def gather(band: Band) -> None:
        seen = ((layout.shifts, layout.views), drawn.binned, layout.size, workers, NO_CELLS, band.listed)
        channels.gather(band.tiles, *seen, gradients[1], by_features)

    for band in _backward_bands(layout, drawn, kept, features, workers):
        further = (layout.shifts, features, gradients[1], *band.listed)
        compositing.differentiate(band.tiles, *cloud, *outer, further, slots)
        if kept is None and features.shape[1]:
            gather(band)
    outgoing = _backproject(layout, drawn, arrays, slots)
    del slots
    if kept is not None:  # last, so that the gradient of wide features is never in memory beside the slots
        gather(kept)
    return [*outgoing, by_features]


def _backward_bands(
    layout: Layout, drawn: Drawn, kept: Band | None, features: np.ndarray, workers: int
) -> Iterable[Band]:
    if features.shape[1] and kept is None:
        return _bands(layout, drawn, workers, ENTRIES, _no_images())
    nothing = (np.empty(0, np.int16), np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.float32))
    return [kept or Band((0, len(drawn.tile_starts) - 1), nothing)]


def _backproject(
    layout: Layout, drawn: Drawn, arrays: tuple[np.ndarray, ...], slots: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Gradients of the first seven tensors."""
    poses, intrinsics = arrays[5:7]
    outputs = tuple(np.zeros_like(array) for array in arrays[:5])
    rows = (layout.gaussians, layout.views, layout.pairs)
    smoothing = layout.limits[0], layout.limits[4]
    cloud = (arrays[:5], poses, intrinsics, *rows, layout.size, smoothing, drawn.records, drawn.tiles)
    seen = gradient.backproject(*cloud, drawn.slot_starts, slots, outputs)
    by_pose, by_intrinsics = np.zeros_like(poses), np.zeros_like(intrinsics)
    by_pose[:, :3, :3], by_pose[:, :3, 3] = seen[:, :9].reshape(-1, 3, 3), seen[:, 9:12]
    by_intrinsics[:, 0, 0], by_intrinsics[:, 1, 1] = seen[:, 12], seen[:, 13]
    by_intrinsics[:, 0, 2], by_intrinsics[:, 1, 2] = seen[:, 14], seen[:, 15]
    return (*outputs, by_pose, by_intrinsics)
