"""How fast Gaussians become pictures on this machine's CPU, forward and backward: all tables of docs/benchmarks.md.

Run: python benchmarks/splatting.py [--quick] [--only TABLE ...]

Prints markdown. Every figure is the median of several calls and includes projection, sorting and binning unless it
says otherwise. The machine's floor is measured in the same run: peak fused multiply-adds and copying speed, on as many
threads. The floor of a pass is the larger of its arithmetic (30 FLOP for each lane that is evaluated; 55 more for each
blended pair in the backward pass) and its memory traffic. Prototypes were measured on another machine of two cores;
their times are scaled by the two machines' peaks.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from math import sqrt
from statistics import median

import alternatives
import channels
import machine
import torch
from machine import Peak
from workloads import PROTOTYPE, WORKLOADS, layers, pixel_cloud, table, timed, verdict

from splatlearn.splatting import RenderOptions

CPU = RenderOptions(backend="cpu")
CURVE = (50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000)
DENSITY = 300_000 / (640 * 480)
"""Gaussians a pixel of workload C."""


def pictures(calls: int, peak: Peak) -> None:
    """RGB, depth and alpha of the three workloads."""
    table(
        "RGB, depth and alpha",
        "| workload | forward ms | backward ms | both ms | of which projection, binning and back | floor ms | x floor "
        "| x Numba prototype | x C++ prototype |",
    )
    scale = PROTOTYPE.flops / peak.flops
    for name, workload in WORKLOADS.items():
        width, height, number = workload.size
        cloud, cameras = pixel_cloud(*workload.size)
        times = timed(layers(cameras, CPU), cloud, calls)
        floor = sum(workload.floor(peak))
        rivals = [scale * (sum(composited) + sum(workload.stages)) for composited in (workload.numba, workload.cpp)]
        print(
            f"| {name}: {width}x{height}, {number:,} Gaussians | {times.passes[0]:.1f} | {times.passes[1]:.1f} "
            f"| {times.total:.1f} | {times.stages[0]:.1f} + {times.stages[1]:.1f} | {floor:.1f} "
            f"| {times.total / floor:.1f} | {verdict(times.total / rivals[0], 1.5)} | {times.total / rivals[1]:.2f} |",
            flush=True,
        )
    for views in (2, 8):
        cloud, cameras = pixel_cloud(160, 120, 19_200, views)
        times = timed(layers(cameras, CPU), cloud, calls)
        print(
            f"| {views} views of 160x120, 19,200 Gaussians | {times.passes[0]:.1f} | {times.passes[1]:.1f} "
            f"| {times.total:.1f} | {times.stages[0]:.1f} + {times.stages[1]:.1f} | | | | |"
        )
    first_call()
    print(f"\nFirst call in a new process, kernels in the cache: {median(first_call() for _ in range(3)):.2f} s.")


def threads(calls: int, peak: Peak) -> None:
    """Two threads against one, beside what a matrix product gains."""
    most = torch.get_num_threads()
    if most < 2:
        print("\nTwo threads against one: not measured, torch has one thread here.")
        return
    table("Two threads against one", "| | one thread ms | two threads ms | gain | share of the product's gain |")
    b, c = (pixel_cloud(*WORKLOADS[name].size) for name in "BC")
    wide = layers(b[1], CPU, torch.randn(len(b[0]), 64))
    runs: dict[str, Callable[[], float]] = {
        "2048 x 2048 matrix product": machine.matrix_product,
        "C": lambda: timed(layers(c[1], CPU), c[0], 1).total,
        "B, 64 channels": lambda: timed(wide, b[0], 1).total,
    }
    spent: dict[tuple[str, int], list[float]] = {(name, number): [] for name in runs for number in (1, 2)}
    for _ in range(calls):  # in turn, so that a slow moment of the machine meets all of them
        for (name, number), times in spent.items():
            torch.set_num_threads(number)
            times.append(runs[name]())
    torch.set_num_threads(most)
    base = 0.0
    for name in runs:
        one, two = (median(spent[name, number]) for number in (1, 2))
        base = base or one / two
        share = one / two / base
        note = "" if name.startswith("2048") else f"{share:.0%} ({'met' if share >= 0.9 else 'missed'}: goal 90%)"
        print(f"| {name} | {one:.1f} | {two:.1f} | {one / two:.2f} | {note} |", flush=True)


def curve(calls: int, peak: Peak) -> None:
    """Time per Gaussian as the picture grows with their number: as many a pixel, and as wide, as in workload C."""
    table(
        "Time per Gaussian, the picture growing with their number",
        "| Gaussians | picture | blended a pixel | forward ns | backward ns | both ns | of which projection, binning "
        "and back ns | both / those of 50,000 |",
    )
    first = 0.0
    for number in CURVE:
        height = round(sqrt(number / DENSITY * 3 / 4))
        cloud, cameras = pixel_cloud(round(height * 4 / 3), height, number)
        times = timed(layers(cameras, CPU), cloud, calls)
        forward, backward, stages = (1e6 * ms / number for ms in (*times.passes, sum(times.stages)))
        first = first or forward + backward
        print(
            f"| {number:,} | {cameras.width}x{cameras.height} | {channels.blended(cloud, cameras):.1f} | {forward:.0f} "
            f"| {backward:.0f} | {forward + backward:.0f} | {stages:.0f} | {(forward + backward) / first:.2f} |",
            flush=True,
        )


def first_call() -> float:
    """Seconds of the first forward and backward pass in a new process, imports of torch and splatlearn apart."""
    code = (
        "import time, torch, splatlearn.splatting; from workloads import fresh, pixel_cloud;"
        "cloud, cameras = pixel_cloud(64, 48, 2000); cloud = fresh(cloud); start = time.perf_counter();"
        "splatlearn.splatting.render(cloud, cameras).color.sum().backward(); print(time.perf_counter() - start)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0])
    return float(run.stdout)


TABLES = {
    "pictures": pictures,
    "features": channels.features,
    "alternatives": alternatives.compare,
    "threads": threads,
    "curve": curve,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="some of the tables")
    parser.add_argument("--memory", choices=channels.WIDE, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(channels.grown(given.memory))
        return
    peak = machine.peak()
    print(f"{machine.name()}; peak {peak.flops / 1e9:.0f} GFLOP/s, copy {peak.copied / 1e9:.1f} GB/s.")
    for name in given.only:
        TABLES[name](3 if given.quick else 9, peak)


if __name__ == "__main__":
    main()
