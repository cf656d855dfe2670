"""Packed rows: the rows of B items one after another. The base of every noun, and the only collation.

Legend: B items, R rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from splatlearn.errors import MissingAttribute, UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Rows of B items, one item after another; a sample is a batch of one.

    Subclasses add required row-aligned fields (tensors, or other `Packed`) and static fields (numbers that
    all items share). Optional row-aligned tensors live in `attributes`.

    Args:
        counts: rows per item, on the host. Left out, all rows belong to one item.
        attributes: name -> tensor whose first dimension is the row.

    Raises:
        UserError: row counts of fields, attributes and `counts` differ, or an attribute is named like a field.
    """

    counts: tuple[int, ...] = ()
    attributes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if clash := sorted({f.name for f in fields(self)} & set(self.attributes)):
            raise UserError(f"{type(self).__name__}: no attribute can be called {', '.join(clash)}: a field is")
        lengths = {name: len(value) for name, value in self._row_values().items()}
        rows = next(iter(lengths.values()), 0)
        if not self.counts:
            object.__setattr__(self, "counts", (rows,))
        wrong = {name: length for name, length in lengths.items() if length != sum(self.counts)}
        if wrong:
            raise UserError(
                f"{type(self).__name__}: counts add up to {sum(self.counts)} rows, but "
                + ", ".join(f"{name} has {length}" for name, length in wrong.items())
            )

    def __len__(self) -> int:
        """Rows over all items."""
        return sum(self.counts)

    def __getitem__(self, name: str) -> Tensor:
        """The attribute `name`, row-aligned.

        Raises:
            MissingAttribute: names the structure, the attribute, and what is there.
        """
        if name not in self.attributes:
            raise MissingAttribute(name, type(self).__name__, self.attributes)
        return self.attributes[name]

    def __contains__(self, name: object) -> bool:
        return name in self.attributes

    def with_attributes(self, **values: Tensor) -> Self:
        """A copy with attributes added or replaced; tensors are shared."""
        return replace(self, attributes={**self.attributes, **values})

    def rows(self, index: Tensor) -> Self:
        """A subset or permutation of rows within their items; every field and attribute follows.

        Args:
            index: (K) row numbers, grouped by item in ascending item order, or an (R) boolean mask.
        """
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        chosen = self.item[index]
        if len(chosen) > 1 and bool((chosen.diff() < 0).any()):
            raise UserError(f"{type(self).__name__}.rows: the index mixes rows of different items")
        counts = tuple(torch.bincount(chosen, minlength=len(self.counts)).tolist())
        return self._map(lambda value: value[index], counts)

    def regroup(self, counts: Sequence[int]) -> Self:
        """The same rows under other item boundaries (two views into one pair); nothing is copied."""
        return self._map(lambda value: value, tuple(counts))

    def join(self, sizes: Sequence[int]) -> Self:
        """The same rows with consecutive items made one: counts (3, 4, 5) joined by (2, 1) are (7, 5).

        Args:
            sizes: items of each new item.

        Raises:
            UserError: `sizes` do not add up to the items there are.
        """
        if sum(sizes) != len(self.counts):
            raise UserError(f"{type(self).__name__}.join: {len(self.counts)} items cannot be {sum(sizes)}")
        ends = accumulate(sizes, initial=0)
        return self.regroup([sum(self.counts[start:stop]) for start, stop in pairwise(ends)])

    def split(self) -> list[Self]:
        """One structure per item; tensors are views of this one's."""
        return [self.slice(i) for i in range(len(self.counts))]

    def slice(self, item: int) -> Self:
        """Item number `item` alone, as a batch of one."""
        start, stop = self.offsets[item], self.offsets[item + 1]
        return self._map(lambda value: value[start:stop], (stop - start,))

    @classmethod
    def pack(cls, items: Sequence[Self]) -> Self:
        """Concatenates the rows of `items`; their counts follow one another.

        Raises:
            UserError: the items differ in attributes or in a static field (the image size, say).
        """
        if not items:
            raise UserError(f"{cls.__name__}.pack: nothing to pack")
        first = items[0]
        for other in items[1:]:
            first._check_like(other)
        values = {name: [item._row_values()[name] for item in items] for name in first._row_values()}
        packed = {name: _concatenate(parts) for name, parts in values.items()}
        names = tuple(first.attributes)
        attributes = {name: packed.pop(name) for name in names}
        counts = tuple(count for item in items for count in item.counts)
        return replace(first, counts=counts, attributes=attributes, **packed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy on `device`; counts stay on the host."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking), self.counts)

    def in_precision(self, dtype: torch.dtype) -> Self:
        """The same with every floating-point tensor as `dtype`."""
        return self._map(lambda value: value.to(dtype) if value.is_floating_point() else value, self.counts)

    def pin_memory(self) -> Self:
        """A copy in page-locked host memory."""
        return self._map(lambda value: value.pin_memory(), self.counts)

    def detach(self) -> Self:
        """The same tensors without gradient history."""
        return self._map(lambda value: value.detach(), self.counts)

    @property
    def offsets(self) -> tuple[int, ...]:
        """B + 1 cumulated counts, from 0."""
        return tuple(accumulate(self.counts, initial=0))

    @cached_property
    def item(self) -> Tensor:
        """(R) int64, the item of each row."""
        counts = torch.tensor(self.counts, device=self.device)
        items = torch.arange(len(self.counts), device=self.device)
        return torch.repeat_interleave(items, counts, output_size=len(self))

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        for value in self._row_values().values():
            return value.device
        return torch.device("cpu")

    def _row_values(self) -> dict[str, Any]:
        """Row-aligned fields and attributes by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("counts", "attributes")}
        return {k: v for k, v in own.items() if isinstance(v, Tensor | Packed)} | dict(self.attributes)

    def _map(self, change: Callable[[Tensor], Tensor], counts: tuple[int, ...]) -> Self:
        changed = {
            name: value._map(change, counts) if isinstance(value, Packed) else change(value)
            for name, value in self._row_values().items()
        }
        attributes = {name: changed.pop(name) for name in self.attributes}
        return replace(self, counts=counts, attributes=attributes, **changed)

    def _check_like(self, other: Self) -> None:
        name = type(self).__name__
        if set(self.attributes) != set(other.attributes):
            raise UserError(
                f"{name}.pack: all items of a batch carry the same attributes; "
                f"one has {sorted(self.attributes)}, another {sorted(other.attributes)}"
            )
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, int | float | str | bool) and mine != theirs:
                raise UserError(f"{name}.pack: {f.name} is shared by a batch; got {mine!r} and {theirs!r}")
        for key, mine in self._row_values().items():
            theirs = other._row_values()[key]
            if isinstance(mine, Tensor) and mine.shape[1:] != theirs.shape[1:]:
                raise UserError(
                    f"{name}.pack: {key} has rows of shape {tuple(mine.shape[1:])} in one item "
                    f"and {tuple(theirs.shape[1:])} in another"
                )


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], Packed):
        return type(parts[0]).pack(parts)
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one step consumes: named fields that are `Packed`. Subclass it per kind of step.

    Args:
        names: one per sample, where each came from (scene and views), for logs and skip lists.
    """

    names: tuple[str, ...] = ()

    @classmethod
    def pack(cls, items: Sequence[Self]) -> Self:
        """Packs field by field; the names follow one another."""
        packed = {f.name: _concatenate([getattr(i, f.name) for i in items]) for f in cls._packed_fields()}
        return cls(names=tuple(name for item in items for name in item.names), **packed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy on `device`."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking) for f in self._packed_fields()}
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """A copy in page-locked host memory."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in self._packed_fields()})

    @classmethod
    def _packed_fields(cls) -> list[Any]:
        return [f for f in fields(cls) if f.name != "names"]
