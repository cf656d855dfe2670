"""The process that the loop runs in: devices and ranks, the random state, fixed orders of sums, signals."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.distributed as dist

from splatlearn.engine.config import TrainConfig
from splatlearn.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def launch(config: TrainConfig) -> "Fabric":
    """One process on one device, or this process's part of those that torchrun or SLURM started.

    Raises:
        UserError: there is no such device.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    accelerator = config.device
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("--train.device cuda: no usable CUDA device; `splatlearn doctor` says why")
    ranks, local, cluster = _ranks()
    if ranks == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, precision="32-true")
    else:
        # With unused parameters looked for, they keep no gradient, as in one process, and the buckets of the sum
        # over ranks stay as they are at first: a resumed run adds in the same order.
        strategy = DDPStrategy(find_unused_parameters=True, cluster_environment=cluster)
        nodes = ranks // local
        fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy=strategy, precision="32-true")
    fabric.launch()
    return fabric


def _ranks() -> tuple[int, int, Any]:
    """Processes of the run, of this machine, and what started them."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    given = os.environ
    if "WORLD_SIZE" in given and "RANK" in given:
        ranks = int(given["WORLD_SIZE"])
        return ranks, int(given.get("LOCAL_WORLD_SIZE", ranks)), TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        return int(given["SLURM_NTASKS"]), int(given.get("SLURM_NTASKS_PER_NODE", 1)), SLURMEnvironment()
    return 1, 1, None


def is_main() -> bool:
    """Whether this process is the only one, or the first of those that share a run: the one that writes and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_main(fabric: "Fabric", action: Callable[[], object]) -> None:
    """Does something on the first rank while the others wait; a `UserError` is raised on all."""
    problem: UserError | None = None
    if fabric.is_global_zero:
        try:
            action()
        except UserError as error:
            problem = error
    if problem := fabric.broadcast(problem):
        raise problem


def add_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Sums over ranks, so that all decide alike."""
    if not dist.is_initialized():
        return values
    sums = torch.tensor(values, dtype=torch.float32, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def gather_from_ranks(value: Any) -> list[Any]:
    """The value of every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def reseed(*key: int) -> None:
    """Sets torch's generators of all devices to a state that depends on `key` alone."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


@contextmanager
def deterministic(active: bool) -> Iterator[None]:
    """Kernels whose sums have a fixed order; gradients of indexing have none otherwise, on a CPU too.

    An operation that has no such kernel on a GPU warns.
    """
    if not active:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it before its first call
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs bandwidth
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        debugging.fill_uninitialized_memory = fill


class Termination:
    """Notes a SIGTERM instead of dying of it; a second one is fatal. Outside the main thread it does nothing.

    Attributes:
        received: whether it came.
    """

    def __init__(self) -> None:
        self.received = False
        self._watching = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._watching:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watching:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _: int, __: FrameType | None) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@contextmanager
def threads_of_children(count: int) -> Iterator[None]:
    """Processes that begin meanwhile have so many threads: they read variables when they load their libraries."""
    old = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
