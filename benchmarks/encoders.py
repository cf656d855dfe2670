"""Times of sparse convolution and of the point encoders, beside plain autograd torch.

    python benchmarks/encoders.py [--views 2] [--size 160 120] [--kept 0.5] [--full]

Input: depth images of a box room with boxes in it, back-projected; a share of the pixels is kept.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from splatlearn.ops.neighbors import ball_query, farthest_point_sampling, three_nearest
from splatlearn.ops.sparse_conv import sparse_convolution
from splatlearn.ops.voxels import Grid, KernelMap, submanifold_map, unique_voxels
from splatlearn.registry import encoders
from splatlearn.structures import Points


def room_view(seed: int, size: tuple[int, int], kept: float) -> Points:
    """One depth image of a 5 x 5 x 2.6 m room with six boxes, as points with colours."""
    generator = torch.Generator().manual_seed(seed)
    width, height = size
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    rays = torch.stack([u * 0.55, torch.ones_like(u), -v * 0.42], -1).reshape(-1, 3)
    turn = torch.tensor(0.3 + 0.1 * seed)
    cos, sin = turn.cos(), turn.sin()
    rays = rays @ torch.tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    origin, room = torch.tensor([2.5, 1.0, 1.4]), torch.tensor([5.0, 5.0, 2.6])
    exits = torch.maximum((0 - origin) / rays, (room - origin) / rays).amin(1)
    boxes = torch.Generator().manual_seed(0)
    for _ in range(6):
        low = torch.rand(3, generator=boxes) * torch.tensor([3.5, 2.5, 0.0]) + torch.tensor([0.7, 2.2, 0.0])
        high = low + torch.rand(3, generator=boxes) * torch.tensor([0.8, 0.8, 1.0]) + 0.2
        a, b = (low - origin) / rays, (high - origin) / rays
        near, far = torch.minimum(a, b).amax(1), torch.maximum(a, b).amin(1)
        exits = torch.where((near < far) & (near > 0) & (near < exits), near, exits)
    xyz = origin + rays * exits[:, None] + torch.randn(len(rays), 3, generator=generator) * 0.004
    rows = (torch.rand(len(xyz), generator=generator) < kept).nonzero().squeeze(1)
    xyz = xyz[rows]
    return Points(xyz=xyz, attributes={"color": torch.rand(len(xyz), 3, generator=generator)})


def milliseconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median of `repeats` calls after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2] * 1e3


def plain_convolution(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """The same convolution left to autograd, which keeps every gathered row until backward."""
    assert kernel_map.identity is not None
    result = features @ weight[kernel_map.identity]
    for k, (sources, targets) in enumerate(zip(kernel_map.sources, kernel_map.targets)):
        if len(sources):
            result = result.index_add(0, targets, features[sources] @ weight[k])
    return result


def convolutions(points: Points, voxel: float) -> None:
    """Forward and forward + backward of one 3^3 layer at several widths."""
    grid = Grid.fit(points.xyz, points.item, len(points.counts), voxel)
    voxels, _ = unique_voxels(grid.keys(points.xyz, points.item), len(points.counts))
    kernel_map = submanifold_map(voxels)
    pairs = sum(map(len, kernel_map.sources)) / len(voxels) + 1
    print(f"\n{len(points)} points, {len(voxels)} voxels of {voxel} m, {pairs:.1f} pairs per voxel")
    print(f"kernel map 3^3 {milliseconds(lambda: submanifold_map(voxels)):.1f} ms, ", end="")
    print(f"5^3 {milliseconds(lambda: submanifold_map(voxels, 5)):.1f} ms")
    print("width   GFLOP   ours fwd   fwd+bwd   plain fwd   fwd+bwd   (ms)")
    for width in (32, 64, 128):
        features = torch.randn(len(voxels), width, requires_grad=True)
        weight = torch.randn(27, width, width, requires_grad=True)
        row = [f"{width:5}  {2e-9 * pairs * len(voxels) * width**2:6.2f}"]
        for convolution in (sparse_convolution, plain_convolution):

            def step(run=convolution, f=features, w=weight):
                return torch.autograd.grad(run(f, w, kernel_map).sum(), (f, w))

            def forward(run=convolution, f=features, w=weight):
                return run(f, w, kernel_map)

            row.append(f"{milliseconds(forward):9.1f} {milliseconds(step):9.1f}")
        print("  ".join(row))


def neighbours(points: Points) -> None:
    """PointNet++'s searches."""
    rows, counts = farthest_point_sampling(points.xyz, points.counts, 2048)
    centers = points.xyz[rows]
    searches = {
        "farthest points 2048": lambda: farthest_point_sampling(points.xyz, points.counts, 2048),
        "ball 0.2 m, first 64": lambda: ball_query(centers, counts, points.xyz, points.counts, 0.2, 64),
        "3 nearest of 2048": lambda: three_nearest(points.xyz, points.counts, centers, counts),
    }
    print(f"\n{len(points)} points: " + ", ".join(f"{k} {milliseconds(v):.0f} ms" for k, v in searches.items()))


def encoder_step(name: str, points: Points) -> None:
    """Parts of a training step, and the peak memory of this process."""
    encoder = encoders.create(name)
    best = [float("inf")] * 3
    for _ in range(3):
        start = time.perf_counter()
        tokens = encoder.embed(points)
        embedded = time.perf_counter()
        dense = encoder.encode(tokens, points).dense()
        encoded = time.perf_counter()
        dense.square().mean().backward()
        times = (embedded - start, encoded - embedded, time.perf_counter() - encoded)
        best = min(best, list(times), key=sum)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parts = "  ".join(f"{t:8.3f}" for t in (*best, sum(best)))
    print(f"{name:20} {len(points):8}  {parts}   {peak:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 120))
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--full", action="store_true", help="also the full-size encoders at 320x240, all pixels")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    points = Points.pack([room_view(i, tuple(options.size), options.kept) for i in range(options.views)])
    if options.only:
        encoder_step(options.only, points)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    convolutions(points, 0.04)
    neighbours(points)
    print("\nencoder                points     embed    encode  backward     total (s)   peak GiB")
    rows = [(name, options.size, options.kept) for name in encoders.names("*.small") + encoders.names("*.tiny")]
    if options.full:
        rows += [(name, (320, 240), 1.0) for name in ("sparse_unet.34c", "pointnet2.votenet")]
    for name, size, kept in rows:
        arguments = ["--size", *map(str, size), "--kept", str(kept), "--views", str(options.views), "--only", name]
        subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
