"""What the machine is, and what it can do at most: peak fused multiply-adds, copying speed, a matrix product."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic

from splatlearn.splatting.kernels.lanes import WIDTH, Lanes

BURST = 10 * 8 * 64
"""Multiply-adds of a round of the peak kernel."""


class Peak(NamedTuple):
    """FLOP and copied bytes (read and written) a second."""

    flops: float
    copied: float


def name() -> str:
    """The machine and what runs on it, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    return (
        f"{models[0] if models else platform.processor()} ({platform.machine()}), {cores} cores, {memory:.0f} GiB; "
        f"{torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"numba {numba.__version__}"
    )


def peak() -> Peak:
    """The best of several, on torch's number of threads."""
    multiply_add, workers = _peak_kernel(), torch.get_num_threads()
    numba.set_num_threads(min(workers, numba.config.NUMBA_NUM_THREADS))
    multiply_add(10, workers)
    source, target = torch.zeros(32 << 20), torch.zeros(32 << 20)
    flops, copied = [], []
    for _ in range(7):
        start = time.perf_counter()
        multiply_add(200_000, workers)
        flops.append(200_000 * 2 * BURST * workers / (time.perf_counter() - start))
        start = time.perf_counter()
        target.copy_(source)
        copied.append(2 * source.nbytes / (time.perf_counter() - start))
    return Peak(max(flops), max(copied))


def matrix_product(side: int = 2048, calls: int = 5) -> float:
    """Median milliseconds of a float32 product of two square matrices, on torch's number of threads."""
    left, right, times = torch.randn(side, side), torch.randn(side, side), []
    for _ in range(calls + 1):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[1:])


def _peak_kernel() -> Callable[[int, int], None]:
    """A kernel that does BURST multiply-adds a round and worker, in ten independent vector registers."""
    array = numba.types.Array(numba.float32, 1, "C")

    @intrinsic
    def burst(typing_context, values):
        def generate(context, builder, signature, arguments):
            data = context.make_array(array)(context, builder, arguments[0]).data
            places = [ir.Constant(ir.IntType(64), WIDTH * k) for k in range(10)]
            lanes = [Lanes.load(builder, data, place) for place in places]
            for _ in range(BURST // (10 * WIDTH)):
                lanes = [lane.times(lane.like(0.999), lane.like(0.001)) for lane in lanes]
            for lane, place in zip(lanes, places, strict=True):
                lane.store(data, place)
            return context.get_dummy_value()

        return numba.void(array), generate

    @numba.njit(parallel=True)
    def multiply_add(rounds: int, workers: int) -> None:
        for _worker in numba.prange(workers):
            values = np.ones(10 * WIDTH, np.float32)
            for _round in range(rounds):
                burst(values)

    return multiply_add
