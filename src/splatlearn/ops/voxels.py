"""Voxels of packed points: integer keys, unique voxels, kernel maps between levels, means over voxels.

Legend: B items, N points, M voxels, K offsets of a kernel, C channels.

A voxel is one int64 key: item (12 bits), then x, y, z (17 bits each, coordinate + 65536). Voxels are kept sorted by
key, so items stay together and neighbours lie close in memory. A coordinate plus an offset of a kernel is one
addition on the key, and a look-up is one binary search. Nothing here is differentiable but `pool_mean`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splatlearn.errors import UserError

AXIS_BITS = 17
BIAS = 1 << (AXIS_BITS - 1)
LIMIT = BIAS - 8
"""Coordinates lie in [-LIMIT, LIMIT): the margin keeps every kernel offset inside its own bits."""
MAX_ITEMS = 1 << (63 - 3 * AXIS_BITS)
_SHIFTS = (2 * AXIS_BITS, AXIS_BITS, 0)
_FIELD = (1 << AXIS_BITS) - 1
_LOOKUP_ROWS = 1 << 21


@dataclass(frozen=True)
class Voxels:
    """The distinct voxels of a batch.

    Args:
        keys: (M) int64, ascending.
        counts: voxels per item, on the host.
    """

    keys: Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def item(self) -> Tensor:
        """(M) int64, the item of each voxel."""
        return self.keys >> (3 * AXIS_BITS)

    @property
    def coordinates(self) -> Tensor:
        """(M 3) int64 voxel coordinates within the item's grid."""
        return torch.stack([((self.keys >> shift) & _FIELD) - BIAS for shift in _SHIFTS], 1)


@dataclass(frozen=True)
class KernelMap:
    """Which input row meets which output row at each offset of a kernel.

    Args:
        sources: K tensors of input rows; a row appears at most once per offset.
        targets: K tensors of output rows, aligned with `sources`; a row appears at most once per offset.
        source_rows, target_rows: rows of the input and of the output.
        identity: the offset at which every row meets itself (its pairs are empty here), or None.
    """

    sources: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    source_rows: int
    target_rows: int
    identity: int | None = None

    @property
    def transposed(self) -> "KernelMap":
        """The same pairs from output to input, for the convolution that undoes a strided one."""
        return KernelMap(self.targets, self.sources, self.target_rows, self.source_rows, self.identity)


@dataclass(frozen=True)
class Grid:
    """Where an item's voxels lie: voxel c covers [origin + c size, origin + (c + 1) size).

    Args:
        origin: (B 3) metres, world: the least corner of each item, so that the grid moves with its cloud.
        size: edge of a voxel, metres.
    """

    origin: Tensor
    size: float

    @classmethod
    def fit(cls, xyz: Tensor, item: Tensor, items: int, size: float) -> "Grid":
        """The grid of packed points `xyz` (N 3), metres; `item` (N) says whose they are.

        Raises:
            UserError: coordinates that are not finite; more items than a key can tell apart.
        """
        if items > MAX_ITEMS:
            raise UserError(f"a batch has {items} clouds; voxels tell {MAX_ITEMS} apart")
        if not bool(torch.isfinite(xyz).all()):
            bad = int((~torch.isfinite(xyz).all(1)).sum())
            raise UserError(f"{bad} of {len(xyz)} points have coordinates that are not finite; drop them first")
        origin = xyz.new_full((items, 3), torch.inf).scatter_reduce(0, item[:, None].expand(-1, 3), xyz, "amin")
        return cls(origin, size)

    def keys(self, xyz: Tensor, item: Tensor) -> Tensor:
        """(N) int64, the voxel of each of the points (N 3), metres.

        Raises:
            UserError: a cloud spans more voxels than a key can hold.
        """
        coordinates = torch.floor((xyz - self.origin[item]) / self.size)
        if len(coordinates) and float(coordinates.abs().max()) >= LIMIT:
            span = float(coordinates.abs().max()) * self.size
            raise UserError(
                f"a cloud spans {span:.4g} m, more than {LIMIT} voxels of {self.size:g} m; "
                "use larger voxels or remove far-off points"
            )
        return pack_keys(coordinates.long(), item)

    def centers(self, voxels: Voxels) -> Tensor:
        """(M 3) metres, world: the middles of the voxels."""
        return self.origin[voxels.item] + (voxels.coordinates.to(self.origin) + 0.5) * self.size


def pack_keys(coordinates: Tensor, item: Tensor) -> Tensor:
    """(N) int64 keys of voxel coordinates (N 3) int64 in [-LIMIT, LIMIT) of items (N) int64."""
    key = item
    for axis in range(3):
        key = (key << AXIS_BITS) | (coordinates[:, axis] + BIAS)
    return key


def unique_voxels(keys: Tensor, items: int) -> tuple[Voxels, Tensor]:
    """The distinct voxels among `keys` (N), ascending, and the voxel row (N) of each key."""
    unique, rows = torch.unique(keys, return_inverse=True)
    counts = torch.bincount(unique >> (3 * AXIS_BITS), minlength=items).tolist()
    return Voxels(unique, tuple(counts)), rows


def coarsen(voxels: Voxels) -> tuple[Voxels, Tensor]:
    """Voxels of twice the size (coordinate floored by 2), and the coarse row (M) of each fine voxel."""
    keys = voxels.item
    for shift in _SHIFTS:
        # half the bias is a whole number of cells at every level, so that flooring keeps cells aligned
        field = ((((voxels.keys >> shift) & _FIELD) - BIAS) >> 1) + BIAS
        keys = (keys << AXIS_BITS) | field
    return unique_voxels(keys, len(voxels.counts))


def strided_map(fine: Voxels, coarse: Voxels, parent: Tensor) -> KernelMap:
    """The kernel map of a 2^3 convolution with stride 2; offset number = 4 (x mod 2) + 2 (y mod 2) + z mod 2.

    Args:
        fine, coarse, parent: a level, and what `coarsen` gave for it.
    """
    odd = fine.coordinates & 1
    slot = odd[:, 0] * 4 + odd[:, 1] * 2 + odd[:, 2]
    order = torch.argsort(slot, stable=True)
    sources = order.split(torch.bincount(slot, minlength=8).tolist())
    targets = tuple(parent[rows] for rows in sources)
    return KernelMap(tuple(sources), targets, len(fine), len(coarse))


def submanifold_map(voxels: Voxels, kernel: int = 3) -> KernelMap:
    """The kernel map of a convolution with an odd `kernel` whose output sites are its input sites.

    Offsets run over x slowest, z fastest; at offset d output row p meets the input row at p + d. Only half of the
    offsets are searched: the pairs of -d are those of d the other way round.
    """
    half = kernel // 2
    reach = torch.arange(-half, half + 1, device=voxels.keys.device)
    offsets = torch.cartesian_prod(reach, reach, reach)[kernel**3 // 2 + 1 :]
    steps = (offsets[:, 0] << _SHIFTS[0]) + (offsets[:, 1] << _SHIFTS[1]) + offsets[:, 2]
    near: list[Tensor] = []
    far: list[Tensor] = []
    for chunk in steps.split(max(1, _LOOKUP_ROWS // max(1, len(voxels)))):
        for p, q in _pairs(voxels.keys, chunk):
            near.append(p)
            far.append(q)
    none = voxels.keys.new_empty(0)
    sources = (*reversed(near), none, *far)
    targets = (*reversed(far), none, *near)
    return KernelMap(sources, targets, len(voxels), len(voxels), identity=kernel**3 // 2)


def _pairs(keys: Tensor, steps: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each key step: rows p and q with keys[q] = keys[p] + step, p ascending."""
    wanted = keys + steps[:, None]
    found = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    hit = keys[found] == wanted
    rows = hit.nonzero()[:, 1]
    counts = hit.sum(1).tolist()
    return list(zip(rows.split(counts), found[hit].split(counts)))


class _PoolMean(torch.autograd.Function):
    """Mean of rows per group, summed in float64: the order of the rows does not show in float32."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, groups: int) -> Tensor:
        sizes = torch.bincount(rows, minlength=groups).clamp_(min=1)[:, None]
        sums = values.new_zeros((groups, values.shape[1]), dtype=torch.float64)
        sums.index_add_(0, rows, values.double())
        ctx.save_for_backward(rows, sizes)
        return (sums / sizes).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, sizes = ctx.saved_tensors
        return (gradients[0] / sizes).index_select(0, rows), None, None


def pool_mean(values: Tensor, rows: Tensor, groups: int) -> Tensor:
    """(G C) mean of the rows of each group, differentiable; zero for a group without rows.

    Sums run in float64, so any order of the rows gives the same float32 values (but for ties at the last bit).

    Args:
        values: (N C).
        rows: (N) int64, the group of each row.
        groups: G.
    """
    result: Tensor = _PoolMean.apply(values, rows, groups)  # pyright: ignore[reportAssignmentType]
    return result


def first_of_voxels(xyz: Tensor, counts: Sequence[int], size: float) -> Tensor:
    """(M) rows, ascending: the first point of each voxel of each item, in the order of the rows.

    Args:
        xyz: (N 3) metres; the grid starts at each item's least corner.
        counts: points per item.
        size: edge of a voxel, metres.

    Raises:
        UserError: coordinates that are not finite, or a cloud that spans too many voxels.
    """
    sizes = torch.tensor(counts, device=xyz.device)
    item = torch.repeat_interleave(torch.arange(len(counts), device=xyz.device), sizes, output_size=len(xyz))
    voxels, rows = unique_voxels(Grid.fit(xyz, item, len(counts), size).keys(xyz, item), len(counts))
    first = rows.new_full((len(voxels),), len(xyz))
    first.scatter_reduce_(0, rows, torch.arange(len(xyz), device=xyz.device), "amin")
    return first.sort().values
