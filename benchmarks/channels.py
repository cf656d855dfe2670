"""Feature channels: rendering them beside colour, and lifting maps to Gaussians, on this machine's CPU.

Run: python benchmarks/channels.py [--quick] [--processor]

Every figure is the median of several calls and includes projection, sorting and binning, colour and depth. `sparse`
is what a user could do instead: the weights once as a sparse matrix of pixels by Gaussians, which torch multiplies
with the features; making that matrix is not counted. `torch` is `render`'s reference in plain torch, called once.
Memory is what the process grows by, against the bound of 2 (N + pixels) C numbers. `--processor` is for a busy machine:
processor time of one thread; the prototype's figures, of two threads by the clock, are then left out.
"""

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from splatlearn.splatting import RenderOptions, lift, render
from splatlearn.structures import Cameras, Gaussians
from splatting import fresh, pixel_cloud

WORKLOADS = {
    "A, 768": (320, 240, 76_800, 768),
    "B, 64": (320, 240, 153_600, 64),
    "B, 256": (320, 240, 153_600, 256),
    "C, 64": (640, 480, 300_000, 64),
}
BEST = {"A, 768": (155, 281), "B, 64": (43, 93), "B, 256": (84, 165), "C, 64": (129, 287)}
"""Forward and backward milliseconds of the best prototype on its machine, of the same cores; raster pass alone."""


def clock() -> float:
    """Seconds, of this process alone with --processor."""
    return time.process_time() if "--processor" in sys.argv else time.perf_counter()


def timed(
    cloud: Gaussians, cameras: Cameras, features: Tensor, calls: int, backend: Literal["cpu", "reference"] = "cpu"
) -> tuple[float, float]:
    """Median milliseconds of a forward and a backward pass."""
    forward, backward, gradient, options = [], [], None, RenderOptions(backend=backend)
    for _ in range(calls + 1):
        leaves, rows = fresh(cloud), features.clone().requires_grad_()
        start = clock()
        seen = render(leaves, cameras, rows, options=options)
        forward.append(clock() - start)
        gradient = torch.randn_like(seen.features) if gradient is None else gradient
        start = clock()
        torch.autograd.backward([seen.color, seen.features], [torch.ones_like(seen.color), gradient])
        backward.append(clock() - start)
    return 1e3 * median(forward[1:]), 1e3 * median(backward[1:])


def sparse(cloud: Gaussians, cameras: Cameras, features: Tensor, calls: int) -> tuple[float, float]:
    """The same with a sparse matrix of as many entries a pixel as are blended, at random Gaussians near by."""
    pixels, many = cameras.width * cameras.height, 60
    near = torch.arange(pixels)[:, None] * len(cloud) // pixels + torch.randint(-400, 400, (pixels, many))
    index = torch.stack([torch.arange(pixels).repeat_interleave(many), near.flatten().clamp(0, len(cloud) - 1)])
    weights = torch.sparse_coo_tensor(index, torch.rand(index.shape[1]), (pixels, len(cloud))).coalesce()
    forward, backward = [], []
    for _ in range(calls + 1):
        rows = features.clone().requires_grad_()
        start = clock()
        seen = torch.sparse.mm(weights, rows)
        forward.append(clock() - start)
        start = clock()
        seen.backward(seen.detach())
        backward.append(clock() - start)
    return 1e3 * median(forward[1:]), 1e3 * median(backward[1:])


def lifting(cloud: Gaussians, cameras: Cameras, channels: int, coarse: int, calls: int) -> float:
    """Median milliseconds of lifting maps that are `coarse` times coarser."""
    maps = torch.randn(1, channels, cameras.height // coarse, cameras.width // coarse)
    times = []
    for _ in range(calls + 1):
        start = clock()
        lift(maps, cloud, cameras)
        times.append(clock() - start)
    return 1e3 * median(times[1:])


def memory(name: str) -> float:
    """Megabytes that one forward and backward pass adds to a new process that has the inputs."""
    run = subprocess.run(
        [sys.executable, __file__, "--memory", name], capture_output=True, text=True, check=True, cwd=sys.path[0]
    )
    return float(run.stdout)


def grown(name: str) -> float:
    """Peak growth in megabytes, in this process; a small call loads the kernels before."""
    width, height, number, channels = WORKLOADS[name]
    small, seen = pixel_cloud(32, 32, 1000)
    timed(small, seen, torch.randn(1000, 8), 1)
    cloud, cameras = pixel_cloud(width, height, number)
    features = torch.randn(number, channels, requires_grad=True)
    gradient = torch.randn(1, height, width, channels).permute(0, 3, 1, 2)
    leaves = fresh(cloud)
    before = peak()
    render(leaves, cameras, features).features.backward(gradient)
    return peak() - before


def peak() -> float:
    """Largest resident megabytes of this process (Linux; `getrusage` would also count the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    parser.add_argument("--processor", action="store_true", help="processor time of one thread")
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--memory", choices=WORKLOADS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(grown(given.memory))
        return
    calls = 3 if given.quick else 7
    if given.processor:
        torch.set_num_threads(1)
    print(f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(
        "| workload, channels | forward ms | backward ms | prototype | sparse matrix | torch | MB, bound "
        "| lift, from 1/8, ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (width, height, number, channels) in WORKLOADS.items():
        if given.only not in (None, name):
            continue
        cloud, cameras = pixel_cloud(width, height, number)
        features = torch.randn(number, channels)
        forward, backward = timed(cloud, cameras, features, calls)
        other = sparse(cloud, cameras, features, 1)
        twin = timed(cloud, cameras, features, 1, "reference")
        best = "" if given.processor else f"{BEST[name][0]} + {BEST[name][1]}"
        bound = 2 * (number + width * height) * channels * 4 / 2**20
        lifts = [lifting(cloud, cameras, channels, coarse, calls) for coarse in (1, 8)]
        print(
            f"| {name} | {forward:.0f} | {backward:.0f} | {best} | "
            f"{other[0]:.0f} + {other[1]:.0f} | {twin[0]:.0f} + {twin[1]:.0f} | {memory(name):.0f}, {bound:.0f} | "
            f"{lifts[0]:.0f}, {lifts[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
