"""Neighbours of packed points: farthest point sampling, ball query, k nearest, three-point interpolation.

Legend: B items, N sources, M queries, k neighbours, C channels. Metres. All work item by item; rows that come out
are rows of the whole packed batch. Positions get no gradient; `interpolate` is differentiable in the features.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from splatlearn.errors import UserError

_BUCKET = 256
_CHUNK = 1 << 25
"""Distances held at once on devices other than the CPU."""


def hashed_order(values: Tensor, item: Tensor) -> Tensor:
    """(N) rows in a pseudo-random order that depends on their contents alone, items ascending.

    Sorting by a hash of the bits of `values` gives the same order for any permutation of the rows, without the
    bias that sorting by place would put into rules like "the first k in the ball". Rows with equal bits keep
    their order.

    Args:
        values: (N C) floating point; compared as float32.
        item: (N) int64.
    """
    bits = values.detach().float().contiguous().view(torch.int32).long()
    state = torch.zeros_like(item)
    for column in bits.unbind(1):
        state = _mix(state ^ column)
    order = torch.argsort(state, stable=True)
    return order[torch.argsort(item[order], stable=True)]


def _mix(value: Tensor) -> Tensor:
    """A finaliser in the manner of splitmix64: products wrap, shifts are made logical by a mask."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1)) ^ 0x1E3779B97F4A7C15


def farthest_point_sampling(xyz: Tensor, counts: Sequence[int], samples: int) -> tuple[Tensor, tuple[int, ...]]:
    """Farthest point sampling of each item; exact, and the same on every device (it runs on the host).

    It starts at an item's first row and ties go to the lowest row, so an item that is itself such a sampling gives
    its own beginning. Chosen rows are distinct even among equal points. (VoteNet's kernel also skips points within
    3 cm of the origin; this does not.)

    Args:
        xyz: (N 3) metres.
        counts: points per item.
        samples: rows wanted of each item; an item with fewer points gives all of them.

    Returns:
        rows (sum of the new counts) int64, in the order of choice, and the new counts.
    """
    from splatlearn.ops._neighbor_kernels import farthest_points

    if samples < 1:
        raise UserError(f"farthest_point_sampling: samples must be at least 1, got {samples}")
    points = _host(xyz)
    chosen, sizes = [np.empty(0, np.int64)], []
    for start, stop in _ranges(counts):
        size = min(samples, stop - start)
        sizes.append(size)
        if size:
            part = points[start:stop]
            order = _curve_order(part)
            first = int(np.flatnonzero(order == 0)[0])
            places = farthest_points(np.ascontiguousarray(part[order]), order, first, size, _BUCKET)
            chosen.append(order[places] + start)
    return torch.from_numpy(np.concatenate(chosen)).to(xyz.device), tuple(sizes)


def _curve_order(points: np.ndarray) -> np.ndarray:
    """Rows along a Morton curve of 2^10 cells an axis."""
    low = points.min(0)
    edge = max(float((points.max(0) - low).max()), 1e-30)
    cells = np.minimum((points - low) / edge * 1024, 1023).astype(np.int64)
    for shift, mask in ((16, 0x30000FF), (8, 0x300F00F), (4, 0x30C30C3), (2, 0x9249249)):
        cells = (cells | (cells << shift)) & mask
    codes = (cells[:, 0] << 2) | (cells[:, 1] << 1) | cells[:, 2]
    return np.argsort(codes, kind="stable")


def ball_query(
    centers: Tensor, center_counts: Sequence[int], xyz: Tensor, counts: Sequence[int], radius: float, k: int
) -> Tensor:
    """(M k) int64: the first k rows, in row order, nearer than `radius` to each centre (VoteNet's rule).

    Slots that are left repeat the first hit; a centre with nothing around gets its nearest point.

    Args:
        centers: (M 3) metres.
        center_counts: centres per item.
        xyz: (N 3) metres.
        counts: points per item; an item with centres must have points.
        radius: metres.
        k: neighbours.
    """
    _check_items("ball_query", center_counts, counts)
    parts = [torch.empty(0, k, dtype=torch.long, device=xyz.device)]
    search = _ball_host if xyz.device.type == "cpu" else _ball_device
    for (a, b), (start, stop) in zip(_ranges(center_counts), _ranges(counts)):
        if b > a:
            parts.append(search(centers[a:b].detach(), xyz[start:stop].detach(), radius, k) + start)
    return torch.cat(parts)


def _ball_host(centers: Tensor, xyz: Tensor, radius: float, k: int) -> Tensor:
    from splatlearn.ops._neighbor_kernels import ball_rows

    queries, points = _host(centers), _host(xyz)
    corner = np.minimum(points.min(0), queries.min(0))
    span = np.maximum(points.max(0), queries.max(0)) - corner
    edge = max(radius * 1.0001, float(span.max()) / 2**20)
    shape = (span / edge).astype(np.int64) + 2
    cell = ((points - corner) / np.float32(edge)).astype(np.int64)
    cells = (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]
    order = np.argsort(cells, kind="stable")
    low = np.append(corner, edge).astype(np.float32)
    result = np.empty((len(queries), k), np.int64)
    ball_rows(queries, points[order], order, cells[order], low, shape, np.float32(radius), result)
    return torch.from_numpy(result)


def _ball_device(centers: Tensor, xyz: Tensor, radius: float, k: int) -> Tensor:
    """All pairs, a chunk of centres at a time."""
    number, parts = torch.arange(len(xyz), device=xyz.device), []
    wanted = min(k, len(xyz))
    for chunk in centers.split(max(1, _CHUNK // len(xyz))):
        distance = _squared_distances(chunk, xyz)
        hits = torch.where(distance < radius**2, number, len(xyz))
        rows = hits.topk(wanted, dim=1, largest=False, sorted=True).values
        first = torch.where(rows[:, :1] < len(xyz), rows[:, :1], distance.argmin(1, keepdim=True))
        rows = torch.where(rows < len(xyz), rows, first)
        parts.append(torch.cat([rows, first.expand(-1, k - wanted)], 1))
    return torch.cat(parts)


def knn(
    queries: Tensor, query_counts: Sequence[int], xyz: Tensor, counts: Sequence[int], k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query within its item, nearest first.

    Where an item has fewer than k points, the rest has distance infinity and the row of the nearest.

    Args:
        queries: (M 3) metres.
        query_counts: queries per item.
        xyz: (N 3) metres.
        counts: points per item; an item with queries must have points.
        k: neighbours.

    Returns:
        distances (M k) metres, and rows (M k) int64. Not differentiable.
    """
    _check_items("knn", query_counts, counts)
    search = _nearest_host if xyz.device.type == "cpu" else _nearest_device
    distances, rows = [queries.new_empty(0, k)], [torch.empty(0, k, dtype=torch.long, device=xyz.device)]
    for (a, b), (start, stop) in zip(_ranges(query_counts), _ranges(counts)):
        if b > a:
            distance, row = search(queries[a:b].detach(), xyz[start:stop].detach(), min(k, stop - start))
            missing = k - row.shape[1]
            distances.append(torch.nn.functional.pad(distance, (0, missing), value=torch.inf))
            rows.append(torch.cat([row, row[:, :1].expand(-1, missing)], 1) + start)
    return torch.cat(distances), torch.cat(rows)


def _nearest_host(queries: Tensor, xyz: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from scipy.spatial import KDTree

    tree = KDTree(xyz.numpy())
    distance, row = tree.query(queries.numpy(), k=k, workers=torch.get_num_threads())
    shape = (len(queries), k)
    return torch.from_numpy(distance).to(queries.dtype).reshape(shape), torch.from_numpy(row).long().reshape(shape)


def _nearest_device(queries: Tensor, xyz: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All pairs, a chunk of queries at a time."""
    found = [
        _squared_distances(chunk, xyz).topk(k, dim=1, largest=False, sorted=True)
        for chunk in queries.split(max(1, _CHUNK // len(xyz)))
    ]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def interpolation_weights(distances: Tensor, power: int = 1) -> Tensor:
    """(M k) weights 1 / (distance^power + 1e-8) that add up to one; infinite distances get zero.

    Args:
        distances: (M k) metres, the nearest finite.
        power: 1 as in VoteNet's operators; 2 as in the pure-torch PointNet++ of Point-MAE and PointMLP.
    """
    weights = 1 / (distances**power + 1e-8)
    return weights / weights.sum(1, keepdim=True)


def interpolate(features: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """(M C) weighted sum of the features (N C) at `rows` (M k); differentiable in `features`."""
    result = features.index_select(0, rows[:, 0]) * weights[:, :1]
    for j in range(1, rows.shape[1]):
        result = result + features.index_select(0, rows[:, j]) * weights[:, j : j + 1]
    return result


def three_nearest(
    queries: Tensor, query_counts: Sequence[int], xyz: Tensor, counts: Sequence[int], power: int = 1
) -> tuple[Tensor, Tensor]:
    """Rows (M 3) and inverse-distance weights (M 3) for `interpolate`; arguments as in `knn`."""
    distances, rows = knn(queries, query_counts, xyz, counts, 3)
    return rows, interpolation_weights(distances, power)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """(M N), from differences: the expanded form loses the near ones."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square()


def _ranges(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    ends = list(accumulate(counts, initial=0))
    return pairwise(ends)


def _host(xyz: Tensor) -> np.ndarray:
    return np.ascontiguousarray(xyz.detach().cpu().float().numpy())


def _check_items(name: str, queries: Sequence[int], counts: Sequence[int]) -> None:
    if len(queries) != len(counts):
        raise UserError(f"{name}: {len(queries)} items of queries, {len(counts)} of points")
    empty = [i for i, (q, n) in enumerate(zip(queries, counts)) if q and not n]
    if empty:
        raise UserError(f"{name}: items {empty} have queries but no points")
