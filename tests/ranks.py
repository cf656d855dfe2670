"""Two processes that share a run, for tests of what must not depend on how many there are."""

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(work: Callable[[int], dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """What `work(rank)`, a function of a module, gives on each of two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_rank, args=(work, rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found: dict[int, Any] = dict(queue.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    return [{name: torch.from_numpy(value) for name, value in found[rank].items()} for rank in range(2)]


def _rank(work: Callable[[int], dict[str, torch.Tensor]], rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        queue.put((rank, {name: value.detach().numpy() for name, value in work(rank).items()}))
    finally:
        dist.destroy_process_group()
