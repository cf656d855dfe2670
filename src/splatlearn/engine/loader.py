"""Which sample belongs to which position, and batches of them, drawn in worker processes or in this one.

A position is one sample of the whole run; step s of global batch B takes the positions [s B, (s+1) B). Scene and
randomness are functions of (seed, position), so a run starts anywhere and its samples do not depend on who draws
them.
"""

import os
import pickle
import signal
import sys
import threading
import time
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from splatlearn.data.lazy_scenes import Scenes, joined
from splatlearn.data.scene import Data, Rejected, Scene
from splatlearn.engine.runtime import threads_of_children
from splatlearn.errors import BadData, ConfigError, UserError
from splatlearn.structures import Batch

B = TypeVar("B", bound=Batch)
ATTEMPTS = 50
"""Redraws of one position before the data are given up."""
LOYAL_ATTEMPTS = 4
"""Attempts that stay with the position's scene; later ones may turn to another, as a scene may have no sample."""


class Order:
    """Position -> (scene number, generator): a pure function, so a checkpoint needs one integer.

    Args:
        sizes: scenes per group; scene numbers run through the groups.
        shares: share of each group in the samples (any scale), its scenes equally likely; groups of equal shares take
            turns, each through its scenes in an order of its own each epoch; empty takes every scene once an epoch.
        seed: 0 or more.

    Raises:
        ConfigError: shares do not fit the sizes.
        BadData: there is no scene.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self.bounds = (0, *accumulate(sizes))
        self.seed = seed
        if shares and (len(shares) != len(sizes) or min(shares) < 0 or sum(shares) <= 0):
            raise ConfigError(f"shares {list(shares)} do not fit {len(sizes)} groups: one of 0 or more a group")
        if not self.bounds[-1]:
            raise BadData("there is no scene to draw samples from")
        empty = [i for i, (size, share) in enumerate(zip(sizes, shares)) if share and not size]
        if empty:
            raise ConfigError(f"groups {empty} have a share of the samples but no scene")
        self.shares = tuple(np.cumsum(shares) / np.sum(shares)) if shares else ()
        takers = [group for group, share in enumerate(shares) if share]
        self.takers = takers if len({shares[group] for group in takers}) == 1 else []

    def __getitem__(self, position: int) -> tuple[int, np.random.Generator]:
        return self.draw(position, 0)

    def draw(self, position: int, attempt: int) -> tuple[int, np.random.Generator]:
        """The scene and the generator of a position, for the attempt 0, 1, ... at it."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, position, attempt]))
        decider = attempt if attempt >= LOYAL_ATTEMPTS else 0
        chooser = np.random.default_rng(np.random.SeedSequence([self.seed, position, decider], spawn_key=(0, 0)))
        if self.takers:
            turn, taker = divmod(position, len(self.takers))
            group = self.takers[taker]
            first, size = self.bounds[group], self.bounds[group + 1] - self.bounds[group]
            if attempt >= LOYAL_ATTEMPTS:
                return first + int(chooser.integers(size)), rng
            epoch, place = divmod(turn, size)
            return first + int(_permutation(self.seed, epoch, size, group)[place]), rng
        if self.shares:
            group = min(bisect_right(self.shares, chooser.random()), len(self.shares) - 1)
            return int(chooser.integers(self.bounds[group], self.bounds[group + 1])), rng
        if attempt >= LOYAL_ATTEMPTS:
            return int(chooser.integers(self.bounds[-1])), rng
        epoch, place = divmod(position, self.bounds[-1])
        return int(_permutation(self.seed, epoch, self.bounds[-1])[place]), rng


@lru_cache(maxsize=16)
def _permutation(seed: int, epoch: int, size: int, *group: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(1, *group))).permutation(size)


@dataclass(frozen=True)
class Drawn(Generic[B]):
    """A batch and how it came about.

    Args:
        batch: the samples of this process.
        rejected: kind of reason -> how many draws were rejected for it.
        error: what the user can mend, instead of a batch.
    """

    batch: B | None
    rejected: Counter[str]
    error: str = ""

    def pin_memory(self) -> "Drawn[B]":
        """A copy whose tensors are page-locked."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class Samples(Dataset, Generic[B]):
    """Samples by (split, position); all that travels to a worker.

    Args:
        data: split -> what draws its samples.
        seeds: split -> seed.
    """

    def __init__(self, data: Mapping[str, Data[B]], seeds: Mapping[str, int]) -> None:
        self.data = data
        self.scenes: dict[str, Sequence[Scene]] = {}
        self.orders: dict[str, Order] = {}
        for split in data:
            groups, shares = data[split].scenes(split), data[split].shares()
            unknown = sorted(set(shares) - set(groups))
            if unknown:
                raise ConfigError(f"shares name unknown groups {unknown}; the groups are {sorted(groups)}")
            self.scenes[split] = joined([groups[name] for name in sorted(groups)])
            if not self.scenes[split]:
                raise BadData(f"no scene in the split {split!r}")
            sizes = [len(groups[name]) for name in sorted(groups)]
            weights = [shares.get(name, 0.0) for name in sorted(groups)] if shares else []
            self.orders[split] = Order(sizes, weights, seeds[split])

    def __getitem__(self, index: tuple[str, int]) -> Drawn[B]:
        split, position = index
        rejected: Counter[str] = Counter()
        last: dict[str, Rejected] = {}
        for attempt in range(ATTEMPTS):
            number, rng = self.orders[split].draw(position, attempt)
            scene = self.scenes[split][number]
            try:
                return Drawn(self.data[split].sample(scene, rng), rejected)
            except Rejected as reason:
                rejected[reason.kind] += 1
                last[reason.kind] = reason
            except UserError as error:
                return Drawn(None, rejected, f"split {split}: {_naming(scene, error)}")
        reasons = ", ".join(f"{last[kind]} ({count} times)" for kind, count in rejected.most_common())
        return Drawn(
            None,
            rejected,
            f"no sample could be drawn in {ATTEMPTS} attempts, the last from {scene.name}: {reasons}",
        )


def _naming(scene: Scene, error: UserError) -> str:
    return str(error) if scene.name in str(error) else f"{scene.name}: {error}"


class _Positions:
    """The index lists of a stream of batches; changed between streams, so that the workers stay."""

    def __init__(self) -> None:
        self.stream: list[list[tuple[str, int]]] | Iterator[list[tuple[str, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        return iter(self.stream)


class Loader(Generic[B]):
    """Streams of batches; one set of persistent workers serves all splits.

    Args:
        data: split -> what draws its samples.
        seeds: split -> seed of order and randomness.
        batch: global batch.
        workers: processes, each with one thread; 0 draws here, with one thread, and gives the same bits.
        rank: of this process among `ranks`; it gets its contiguous slice of every batch.
        ranks: processes that share a global batch.
        pin: copy to page-locked memory, for a GPU.

    Raises:
        ConfigError: the global batch cannot be shared by the ranks.
        UserError: the data cannot travel to workers.
    """

    def __init__(
        self,
        data: Mapping[str, Data[B]],
        seeds: Mapping[str, int],
        *,
        batch: int,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
    ) -> None:
        if batch % ranks:
            raise ConfigError(f"a global batch of {batch} cannot be shared equally by {ranks} processes")
        self.batch, self.rank, self.ranks = batch, rank, ranks
        self.samples = Samples(data, seeds)
        self.workers = _usable_workers(workers, self.samples)
        self.waited = 0.0
        self.rejected: Counter[str] = Counter()
        self._positions = _Positions()
        self._loader = self._make_loader(pin)

    def size(self, split: str) -> int:
        """Scenes of a split."""
        return len(self.samples.scenes[split])

    def steps(self, split: str, start: int, stop: int) -> Iterator[B]:
        """This rank's slices of the global batches of steps `start` to `stop`. A new stream ends the one before."""
        share = self.batch // self.ranks
        firsts = range(start * self.batch + self.rank * share, stop * self.batch, self.batch)
        return self._stream([(split, p) for p in range(first, first + share)] for first in firsts)

    def whole(self, split: str, samples: int) -> Iterator[B]:
        """Batches of the positions 0 to `samples`, the same on every rank; the last may be smaller."""
        share = max(1, self.batch // self.ranks)
        firsts = range(0, samples, share)
        return self._stream([(split, p) for p in range(f, min(f + share, samples))] for f in firsts)

    def _stream(self, positions: Iterator[list[tuple[str, int]]]) -> Iterator[B]:
        """Yields batches, with the seconds waited in `waited` and the draws rejected for it in `rejected`."""
        self._positions.stream = positions
        begun = time.perf_counter()
        with threads_of_children(1) if self.workers else nullcontext():
            drawn_batches = iter(self._loader)
        while True:
            with _single_thread(not self.workers):
                drawn = next(drawn_batches, None)
            if drawn is None:
                return
            if drawn.batch is None:
                raise UserError(drawn.error)
            self.waited, self.rejected = time.perf_counter() - begun, drawn.rejected
            yield drawn.batch
            begun = time.perf_counter()

    def _make_loader(self, pin: bool) -> DataLoader[Drawn[B]]:
        spawned: dict[str, Any] = {}
        if self.workers:
            spawned = {
                "multiprocessing_context": "spawn",
                "persistent_workers": True,
                "worker_init_fn": _start_worker,
            }
        return DataLoader(
            self.samples,
            batch_sampler=self._positions,  # type: ignore[arg-type]
            collate_fn=_collate,
            num_workers=self.workers,
            pin_memory=pin,
            generator=torch.Generator(),
            **spawned,
        )


def _collate(drawn: Sequence[Drawn[B]]) -> Drawn[B]:
    rejected = sum((d.rejected for d in drawn), Counter())
    for failed in drawn:
        if failed.batch is None:
            return Drawn(None, rejected, failed.error)
    batches = [d.batch for d in drawn if d.batch is not None]
    try:
        return Drawn(type(batches[0]).pack(batches), rejected)
    except UserError as error:
        return Drawn(None, rejected, f"{error} (samples {', '.join(n for b in batches for n in b.names)})")


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_parent_only, args=(os.getppid(),), daemon=True).start()


def _obey_parent_only(parent: int) -> None:
    """Outlives a SIGTERM to the whole process group: the main process must still save, and ends its workers."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def _single_thread(active: bool) -> Iterator[None]:
    """Sampling with one thread, as in a worker: sums over a tensor have the same order then."""
    threads = torch.get_num_threads()
    if not active or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _usable_workers(workers: int, samples: Samples) -> int:
    if not workers:
        return 0
    named = {**{f"the data of split {s!r}": d for s, d in samples.data.items()}}
    for split, scenes in samples.scenes.items():
        lazy = isinstance(scenes, Scenes)
        named |= {f"the scenes of split {split!r}": scenes} if lazy else {f"scene {s.name!r}": s for s in scenes}
    file = getattr(sys.modules["__main__"], "__file__", None)
    typed_in = file is not None and not os.path.exists(file)  # a program on standard input
    for what, thing in named.items():
        if typed_in or (file is None and type(thing).__module__ == "__main__"):
            warnings.warn(
                f"{what} belongs to an interactive session, which worker processes cannot import: "
                "samples are drawn in this process (put the program into a file to use workers)",
                stacklevel=2,
            )
            return 0
        try:
            pickle.dumps(thing)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"{what} ({type(thing).__name__}) cannot travel to worker processes: {error}. Use a class of a "
                "module with plain fields (paths instead of open files), or --train.workers 0"
            ) from error
    return workers
