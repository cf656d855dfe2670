"""How fast Gaussians become pictures on this machine's CPU, forward and backward.

Run: python benchmarks/splatting.py [--quick]

Every figure is the median of several calls and includes projection, sorting and binning. The machine's floor is
measured in the same run: peak fused multiply-adds and copying speed, on as many threads. The floor of a pass is
the larger of arithmetic (30 FLOP for each of 51.2 M lanes forward; the same and 55 for each of 18.9 M blended pairs
backward) and traffic (73 and 109 MB). The prototype that set the goal took 225 ms forward and backward, projection
and binning included, with a floor of 20.8 ms on its machine for the same workload.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch_tiles import render_tiles

from splatlearn.splatting import RenderOptions, render
from splatlearn.structures import Cameras, Gaussians

FLOP = (51.2e6 * 30, 51.2e6 * 30 + 18.9e6 * 55)
BYTES = (73e6, 109e6)
PROTOTYPE = 225.0 / 20.8
"""Time over floor, forward and backward together: (57 + 118 + 5.4 + 35 + 9.6) ms over (7.8 + 13.0) ms."""
BURST = 10 * 8 * 64
LEAVES = ("means", "scales", "quaternions", "opacities", "sh")


def pixel_cloud(width: int, height: int, number: int, views: int = 1) -> tuple[Gaussians, Cameras]:
    """Back-projected pixels of a wavy wall with a box before it: one to two pixels wide, any turn and opacity.

    More Gaussians than pixels are further layers of the same.
    """
    draw = torch.Generator().manual_seed(0)
    layers = -(-number // (width * height))
    order = torch.cat([torch.randperm(width * height, generator=draw) for _ in range(layers)])
    pixel = order[:number].sort().values
    x, y, focal = pixel % width + 0.5, pixel // width + 0.5, 0.9 * width
    depth = 2.5 + 0.5 * torch.sin(6 * x / width) + 0.4 * torch.cos(5 * y / height)
    box = ((x - 0.5 * width).abs() < 0.15 * width) & ((y - 0.55 * height).abs() < 0.2 * height)
    depth = torch.where(box, 1.6, depth) * (1 + 0.004 * torch.randn(number, generator=draw))
    cloud = Gaussians(
        means=torch.stack([(x - width / 2) / focal * depth, (y - height / 2) / focal * depth, depth], 1),
        scales=depth[:, None] / focal * (1 + torch.rand(number, 3, generator=draw)),
        quaternions=torch.randn(number, 4, generator=draw),
        opacities=0.05 + 0.9 * torch.rand(number, generator=draw),
        sh=0.5 * torch.randn(number, 1, 3, generator=draw),
    )
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    pose = torch.eye(4).repeat(views, 1, 1)
    return cloud, Cameras(world_to_camera=pose, intrinsics=intrinsics.repeat(views, 1, 1), width=width, height=height)


def fresh(cloud: Gaussians) -> Gaussians:
    """The cloud with new leaves."""
    return replace(cloud, **{name: getattr(cloud, name).clone().requires_grad_() for name in LEAVES})


def timed(make: Callable[[Gaussians], tuple[Tensor, ...]], cloud: Gaussians, calls: int) -> tuple[float, float]:
    """Median milliseconds of the forward and of the backward pass, after one call to warm up."""
    forward, backward = [], []
    for _ in range(calls + 1):
        leaves = fresh(cloud)
        start = time.perf_counter()
        layers = make(leaves)
        forward.append(time.perf_counter() - start)
        gradients = [torch.randn_like(layer) for layer in layers]
        start = time.perf_counter()
        torch.autograd.backward(layers, gradients)
        backward.append(time.perf_counter() - start)
    return 1e3 * median(forward[1:]), 1e3 * median(backward[1:])


def peak_kernel() -> Callable[[int, int], None]:
    """A kernel that does BURST multiply-adds a round and worker, in ten independent vector registers."""
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    from splatlearn.splatting.kernels.lanes import WIDTH, Lanes

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

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    return multiply_add


def floor_speeds() -> tuple[float, float]:
    """Peak FLOP and copied bytes (read and written) a second, best of several, on torch's number of threads."""
    multiply_add, workers = peak_kernel(), torch.get_num_threads()
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
    return max(flops), max(copied)


def first_call() -> float:
    """Seconds of the first forward and backward pass in a new process, imports of torch and splatlearn apart."""
    code = (
        "import time, torch, splatlearn.splatting; from splatting import fresh, pixel_cloud;"
        "cloud, cameras = pixel_cloud(64, 48, 2000); cloud = fresh(cloud); start = time.perf_counter();"
        "splatlearn.splatting.render(cloud, cameras).color.sum().backward(); print(time.perf_counter() - start)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0])
    return float(run.stdout)


def row(name: str, forward: float, backward: float, note: str = "") -> None:
    print(f"| {name} | {forward:.1f} | {backward:.1f} | {forward + backward:.1f} | {note} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    calls = 3 if parser.parse_args().quick else 9
    options = RenderOptions(backend="cpu")
    print(f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    flops, copied = floor_speeds()
    floors = [1e3 * max(flop / flops, size / copied) for flop, size in zip(FLOP, BYTES, strict=True)]
    print(f"peak {flops / 1e9:.0f} GFLOP/s, copy {copied / 1e9:.1f} GB/s\n")
    print("| workload | forward ms | backward ms | both ms | note |\n|---|---|---|---|---|")
    large, seen = pixel_cloud(640, 480, 300_000)
    ours = timed(lambda cloud: _layers(cloud, seen, options), large, calls)
    ratio = sum(ours) / sum(floors)
    row("floor, 640x480, 300,000 Gaussians", *floors, "RGB + depth + alpha")
    row("`cpu`, the same", *ours, f"{ratio:.1f} floors; prototype {PROTOTYPE:.1f}; goal below {1.5 * PROTOTYPE:.1f}")
    for views in (2, 8):
        cloud, cameras = pixel_cloud(160, 120, 19_200, views)
        times = timed(lambda cloud, to=cameras: _layers(cloud, to, options), cloud, calls)
        row(f"`cpu`, {views} views of 160x120, 19,200 Gaussians", *times)
    tiles = timed(lambda cloud: (render_tiles(cloud, seen, options),), large, 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row("torch, tile batches, 640x480", *tiles, f"{sum(tiles) / sum(ours):.0f} x `cpu`; peak memory {memory:.1f} GB")
    first_call()
    print(f"\nfirst call in a new process: {median(first_call() for _ in range(3)):.2f} s")


def _layers(cloud: Gaussians, cameras: Cameras, options: RenderOptions) -> tuple[Tensor, ...]:
    seen = render(cloud, cameras, options=options)
    return seen.color, seen.depth, seen.alpha


if __name__ == "__main__":
    main()
