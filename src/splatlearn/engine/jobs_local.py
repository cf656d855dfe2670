"""Backends of `run_jobs` on this machine: this process, or a process an attempt."""

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor

from splatlearn.engine.jobs import Reply, Work, attempt_at
from splatlearn.engine.runtime import threads_of_children


class ThisProcess:
    """One attempt after another, right here."""

    slots = 1

    def submit(self, work: Work, attempt: int) -> "Future[Reply]":
        """Done when it returns."""
        future: Future[Reply] = Future()
        future.set_result(attempt_at(work, attempt))
        return future

    def stop(self) -> None:
        """Nothing: the signal meets whatever runs."""


class Processes:
    """Each attempt in a process of its own, so that memory is given back and a death is that of one attempt.

    Args:
        slots: attempts at the same time; each has its share of the cores.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.threads = max(1, cores() // slots)

    def submit(self, work: Work, attempt: int) -> "Future[Reply]":
        """Spawns: a fork would take locks of Numba and OpenMP with it."""
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        with threads_of_children(self.threads):
            future = pool.submit(attempt_at, work, attempt, self.threads)
        future.add_done_callback(lambda _: pool.shutdown(wait=False))
        return future

    def stop(self) -> None:
        """SIGTERM to all."""
        for child in multiprocessing.active_children():
            child.terminate()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
