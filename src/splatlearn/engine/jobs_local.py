"""Backends of `run_jobs` on this machine: this process, or processes beside it."""

import gc
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

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
    """Each attempt in a process that has nothing else to do, so that a death is that of one attempt.

    Args:
        slots: attempts at the same time; each has its share of the cores.
        keep: whether a process serves later attempts, too, and goes with this object; one that died is replaced. That
            saves seconds of loading libraries a job, but the peak memory of a process is then that of all its jobs.
    """

    def __init__(self, slots: int, *, keep: bool = False) -> None:
        self.slots, self.keep = slots, keep
        self.threads = max(1, cores() // slots)
        self._latest: dict[ProcessPoolExecutor, Future[Reply]] = {}

    def submit(self, work: Work, attempt: int) -> "Future[Reply]":
        """In a kept process that is free, or else a new one."""
        for pool, latest in [*self._latest.items()]:
            if latest.done():
                try:
                    return self._begin(pool, work, attempt)
                except BrokenProcessPool:
                    del self._latest[pool]
        # spawned: a fork would take locks of Numba and OpenMP with it
        spawned = multiprocessing.get_context("spawn")
        return self._begin(ProcessPoolExecutor(1, mp_context=spawned, initializer=_follow_parent), work, attempt)

    def stop(self) -> None:
        """SIGTERM to all."""
        for child in multiprocessing.active_children():
            child.terminate()

    def _begin(self, pool: ProcessPoolExecutor, work: Work, attempt: int) -> "Future[Reply]":
        with threads_of_children(self.threads):
            future = pool.submit(_in_turn, work, attempt, self.threads)
        if self.keep:
            self._latest[pool] = future
        else:
            future.add_done_callback(lambda _: pool.shutdown(wait=False))
        return future


def _follow_parent() -> None:
    """SIGTERM to this process when the one that began it is gone, however it ended: nobody would get what it makes."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _in_turn(work: Work, attempt: int, threads: int) -> Reply:
    """One attempt of several in a process: leaves no garbage, and Ctrl-C ends a process that waits without a word."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return attempt_at(work, attempt, threads)
    finally:
        gc.collect()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
