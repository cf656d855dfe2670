"""Feature channels: rendering them beside colour, and lifting maps to Gaussians. A part of splatting.py.

`sparse` is what a user could do instead: the weights once as a sparse matrix of pixels by Gaussians, which torch
multiplies with the features; making that matrix is not counted. Memory is what a forward and a backward pass add to a
new process that has the inputs and outer gradients, against the bound of 2 (N + pixels) C numbers.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from machine import Peak
from torch import Tensor
from workloads import PROTOTYPE, WORKLOADS, Pair, fresh, layers, pixel_cloud, table, timed, verdict

from splatlearn.splatting import RenderOptions, cpu, lift, render
from splatlearn.structures import Cameras, Gaussians

CPU = RenderOptions(backend="cpu")
WIDE: dict[str, tuple[str, int, Pair]] = {
    "B/64": ("B", 64, (43, 93)),
    "B/256": ("B", 256, (84, 165)),
    "A/768": ("A", 768, (155, 281)),
    "C/64": ("C", 64, (129, 287)),
}
"""Workload, channels, and the milliseconds of the best prototype of each pass: of compositing alone, into buffers that
were there before."""


def features(calls: int, peak: Peak) -> None:
    """Rendering, lifting and memory of wide features."""
    table(
        "Feature channels",
        "| workload / channels | forward ms | backward ms | of which projection, binning and back | compositing "
        "| best prototype's compositing | ratio | MB added | bound | lift ms | lift from 1/8 ms | sparse product ms |",
    )
    scale = PROTOTYPE.flops / peak.flops
    for name, (scene, width, best) in WIDE.items():
        cloud, cameras = pixel_cloud(*WORKLOADS[scene].size)
        rows = torch.randn(len(cloud), width)
        times = timed(layers(cameras, CPU, rows), cloud, calls)
        alone = [whole - stage for whole, stage in zip(times.passes, times.stages, strict=True)]
        rival = [scale * ms for ms in best]
        bound = 2 * (len(cloud) + cameras.width * cameras.height) * width * 4 / 2**20
        lifts = [lifting(cloud, cameras, width, coarse, calls) for coarse in (1, 8)]
        other = sparse(cloud, cameras, rows, calls if calls > 3 else 1)
        print(
            f"| {name} | {times.passes[0]:.0f} | {times.passes[1]:.0f} | {times.stages[0]:.0f} + {times.stages[1]:.0f} "
            f"| {alone[0]:.0f} + {alone[1]:.0f} | {rival[0]:.0f} + {rival[1]:.0f} "
            f"| {verdict(sum(alone) / sum(rival), 1.3)} | {memory(name):.0f} | {bound:.0f} "
            f"| {lifts[0]:.0f} | {lifts[1]:.0f} | {other[0]:.0f} + {other[1]:.0f} |",
            flush=True,
        )


def sparse(cloud: Gaussians, cameras: Cameras, features: Tensor, calls: int) -> Pair:
    """Milliseconds with a sparse matrix of as many entries a pixel as are blended, at random Gaussians near by."""
    pixels, many = cameras.width * cameras.height, round(blended(cloud, cameras))
    near = torch.arange(pixels)[:, None] * len(cloud) // pixels + torch.randint(-400, 400, (pixels, many))
    index = torch.stack([torch.arange(pixels).repeat_interleave(many), near.flatten().clamp(0, len(cloud) - 1)])
    weights = torch.sparse_coo_tensor(index, torch.rand(index.shape[1]), (pixels, len(cloud))).coalesce()
    forward, backward = [], []
    for _ in range(calls + 1):
        rows = features.clone().requires_grad_()
        start = time.perf_counter()
        seen = torch.sparse.mm(weights, rows)
        forward.append(time.perf_counter() - start)
        start = time.perf_counter()
        seen.backward(seen.detach())
        backward.append(time.perf_counter() - start)
    return 1e3 * median(forward[1:]), 1e3 * median(backward[1:])


@torch.no_grad()
def blended(cloud: Gaussians, cameras: Cameras) -> float:
    """Gaussians that are blended at a pixel, in the mean, by the lists of weights that `cpu` makes."""
    layout, total = cpu._layout(cloud, cameras, CPU), 0
    tensors = (cloud.means, cloud.scales, cloud.quaternions, cloud.opacities, cloud.sh)
    with cpu._threads() as workers:
        arrays = cpu._arrays((*tensors, cameras.world_to_camera, cameras.intrinsics))
        drawn, _ = cpu._bin(layout, arrays, workers)
        for band in cpu._bands(layout, drawn, workers, cpu.ENTRIES, cpu._no_images()):
            begin, end = (drawn.tile_starts[tile] for tile in band.tiles)
            total += int(band.listed[0][begin:end].sum(dtype="int64"))
    return total / (len(cameras) * cameras.width * cameras.height)


def lifting(cloud: Gaussians, cameras: Cameras, channels: int, coarse: int, calls: int) -> float:
    """Median milliseconds of lifting maps that are `coarse` times coarser."""
    maps = torch.randn(1, channels, cameras.height // coarse, cameras.width // coarse)
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        lift(maps, cloud, cameras)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[1:])


def memory(name: str) -> float:
    """Megabytes that one forward and backward pass adds to a new process that has the inputs."""
    command = [sys.executable, str(Path(__file__).with_name("splatting.py")), "--memory", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def grown(name: str) -> float:
    """Peak growth in megabytes, in this process; a small call loads the kernels before."""
    scene, channels, _ = WIDE[name]
    width, height, number = WORKLOADS[scene].size
    small, seen = pixel_cloud(32, 32, 1000)
    timed(layers(seen, CPU, torch.randn(1000, 8)), small, 1)
    cloud, cameras = pixel_cloud(width, height, number)
    rows = torch.randn(number, channels, requires_grad=True)
    gradient = torch.randn(1, height, width, channels).permute(0, 3, 1, 2)
    leaves = fresh(cloud)
    before = resident()
    render(leaves, cameras, rows).features.backward(gradient)
    return resident() - before


def resident() -> float:
    """Largest resident megabytes of this process (Linux; `getrusage` would also count the process that started it)."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024
