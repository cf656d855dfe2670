"""The backend of `run_jobs` on a Ray cluster; the only file that knows Ray, which is imported late."""

import os
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from typing import Any

from splatlearn.engine.jobs import Reply, Work, attempt_at
from splatlearn.errors import UserError

INSTALL = "pip install 'splatlearn[ray]'"


class RayCluster:
    """Each attempt is a Ray task in a fresh process, with a GPU where the cluster has some and its share of the cores.

    The cluster is the one that the environment variable RAY_ADDRESS names, or else a new one on this machine. Its
    machines must see data and run folders under the same paths, and have splatlearn installed.

    Args:
        slots: attempts at the same time; by default as many as there are GPUs, or else cores.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, slots: int | None = None) -> None:
        try:
            self._ray: Any = import_module("ray")
        except ImportError as error:
            raise UserError(f"Ray cannot be imported ({error}): {INSTALL}") from error
        try:
            self._ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        except Exception as error:  # Ray has many
            address = os.environ.get("RAY_ADDRESS", "a new one on this machine")
            raise UserError(f"the Ray cluster ({address}) cannot be used: {type(error).__name__}: {error}") from error
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.slots, self.threads, self.gpus = divide(machines, slots)
        self._task = self._ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_calls=1, max_retries=0)(_attempt)
        self._running: dict[Future[Reply], Any] = {}

    def submit(self, work: Work, attempt: int) -> "Future[Reply]":
        """Hands the attempt to Ray, which begins it when a machine has room."""
        reference = self._task.remote(work, attempt, self.threads, str(Path.cwd()))
        future = reference.future()
        self._running[future] = reference
        future.add_done_callback(self._running.pop)
        return future

    def stop(self) -> None:
        """Cancels all; what was written since a run's last checkpoint is done again when it is continued."""
        for reference in [*self._running.values()]:
            self._ray.cancel(reference)


def divide(machines: list[dict[str, float]], slots: int | None) -> tuple[int, int, int]:
    """Attempts at the same time, and cores and GPUs of each.

    Args:
        machines: resources of each, by Ray's names.
        slots: wished for.

    Raises:
        UserError: no machine has a core.
    """
    gpu = any(machine.get("GPU", 0) >= 1 for machine in machines)
    usable = [m for m in machines if m.get("CPU", 0) >= 1 and (m.get("GPU", 0) >= 1 or not gpu)]
    if not usable:
        raise UserError("the Ray cluster has no machine with a free core")
    room = int(sum(machine["GPU" if gpu else "CPU"] for machine in usable))
    chosen = min(slots or room, room)
    most = int(min(machine["CPU"] for machine in usable))  # a task never spans machines
    return chosen, max(1, min(int(sum(m["CPU"] for m in usable)) // chosen, most)), int(gpu)


def _attempt(work: Work, attempt: int, threads: int, folder: str) -> Reply:
    os.chdir(folder)  # paths may be relative
    return attempt_at(work, attempt, threads)
