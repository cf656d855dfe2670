"""Scenes that are made when they are asked for, so that millions of them cost little memory. Legend: N scenes."""

import copy
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload

import numpy as np

from splatlearn.data.scene import Scene


class SceneTable(ABC):
    """What scenes are made from; it travels to loader workers as a whole."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def scene(self, row: int) -> Scene:
        """A new scene of the row; cheap, opens nothing."""


class Scenes(Sequence[Scene], ABC):
    """A sequence of scenes that may be made anew each time."""

    @abstractmethod
    def at(self, index: int) -> Scene:
        """The scene of an index from 0 to N - 1."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> "Scenes":
        """The scenes of some indices, in their order."""

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> "Scenes": ...
    def __getitem__(self, index: int | slice) -> "Scene | Scenes":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self.at(range(len(self))[index])

    def __iter__(self) -> Iterator[Scene]:
        return map(self.at, range(len(self)))


class LazyScenes(Scenes):
    """Some rows of a table.

    Args:
        table: what they are made from.
        rows: (N) of the table; None takes all.
        group: of every scene; empty leaves it as it is made.
    """

    def __init__(self, table: SceneTable, rows: np.ndarray | None = None, group: str = "") -> None:
        self.table, self.group = table, group
        self.rows = np.arange(len(table), dtype=np.uint32) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: int) -> Scene:
        """The scene of an index from 0 to N - 1."""
        scene = self.table.scene(int(self.rows[index]))
        if self.group:
            scene.group = self.group
        return scene

    def take(self, rows: np.ndarray) -> "LazyScenes":
        """The scenes of some indices, in their order."""
        return LazyScenes(self.table, self.rows[rows], self.group)


class JoinedScenes(Scenes):
    """Several sequences, one after another.

    Args:
        parts: the sequences.
    """

    def __init__(self, parts: Sequence[Sequence[Scene]]) -> None:
        self.parts = tuple(parts)
        self.bounds = (0, *accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self.bounds[-1]

    def at(self, index: int) -> Scene:
        """The scene of an index from 0 to N - 1."""
        part = bisect_right(self.bounds, index) - 1
        return self.parts[part][index - self.bounds[part]]

    def take(self, rows: np.ndarray) -> "JoinedScenes":
        """The scenes of some indices, in their order; few parts where that rises or falls."""
        part = np.searchsorted(self.bounds, rows, side="right") - 1
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        runs = zip(part[starts], np.split(rows, starts)[1:], strict=True)
        return JoinedScenes([chosen(self.parts[n], run - self.bounds[n]) for n, run in runs])


def chosen(scenes: Sequence[Scene], rows: np.ndarray) -> Sequence[Scene]:
    """The scenes of some indices, in their order: a list of a list, lazy of lazy ones."""
    return scenes.take(rows) if isinstance(scenes, Scenes) else [scenes[row] for row in rows.tolist()]


def joined(parts: Sequence[Sequence[Scene]]) -> Sequence[Scene]:
    """One sequence of several: a list of lists, lazy where one of them is."""
    if not any(isinstance(part, Scenes) for part in parts):
        return [scene for part in parts for scene in part]
    return parts[0] if len(parts) == 1 else JoinedScenes(parts)


def in_group(scenes: Sequence[Scene], group: str) -> Sequence[Scene]:
    """The scenes as of a group; they may be in several, so others are left as they are."""
    if isinstance(scenes, LazyScenes):
        return LazyScenes(scenes.table, scenes.rows, group)
    if isinstance(scenes, JoinedScenes):
        return JoinedScenes([in_group(part, group) for part in scenes.parts])
    copies = [copy.copy(scene) for scene in scenes]
    for scene in copies:
        scene.group = group
    return copies
