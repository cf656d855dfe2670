"""Times and memory of WaffleIron, beside a padded twin with dense grids that keeps all that autograd keeps.

    python benchmarks/waffleiron.py [--sizes 12-128 12-256] [--points 20000] [--growth] [--mixed]

Input: lidar scans of a street seen by one camera of 120 degrees: ground and walls along 64 beams, one point a
voxel of 0.1 m. The twin needs about 17 GiB for 48-256 at 20,000 points; `--ours` leaves it out. Every line is a
process of its own, so that its peak memory is its own too.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from splatlearn.encoders.waffleiron import WaffleIron, WaffleIronConfig
from splatlearn.ops.planes import Plane
from splatlearn.ops.voxels import first_of_voxels
from splatlearn.structures import Points

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "encoders"))
from waffleiron_twin import Twin, pad

Step = tuple[float, float, float]


def scan(points: int, seed: int) -> Points:
    """A scan of that many points, those around one of them, with reflectances."""
    generator = torch.Generator().manual_seed(seed)
    rays = 40 * points
    turn = torch.rand(rays, generator=generator) * 2.1 - 1.05
    rise = torch.linspace(-0.42, 0.05, 64)[torch.randint(64, (rays,), generator=generator)]
    sectors = 5 + 55 * torch.rand(24, generator=generator)  # metres to what stands in each direction
    far = sectors[((turn + 1.05) / 2.1 * 24).long().clamp_max(23)]
    ground = 1.8 / (-rise).clamp_min(1e-3).sin()
    distance = torch.minimum(far / rise.cos(), ground) + torch.randn(rays, generator=generator) * 0.02
    xyz = torch.stack([turn.cos() * rise.cos(), turn.sin() * rise.cos(), rise.sin()], 1) * distance[:, None]
    xyz = xyz[first_of_voxels(xyz, (rays,), 0.1)]
    middle = xyz[torch.randint(len(xyz), (1,), generator=generator)]
    xyz = xyz[(xyz - middle).norm(dim=1).argsort()[:points]]
    return Points(xyz=xyz, attributes={"reflectance": torch.randn(len(xyz), generator=generator)})


def ours(config: WaffleIronConfig, points: Points) -> Step:
    """Seconds of the stem, of the blocks and of backward."""
    encoder = WaffleIron(config)
    start = time.perf_counter()
    tokens = encoder.embed(points)
    embedded = time.perf_counter()
    dense = encoder.encode(tokens, points).dense()
    encoded = time.perf_counter()
    dense.square().mean().backward()
    return embedded - start, encoded - embedded, time.perf_counter() - encoded


def padded(config: WaffleIronConfig, points: Points) -> Step:
    """The same of the twin, all scans as long as the longest."""
    twin, encoder, length = Twin(config), WaffleIron(config), max(points.counts)
    inputs = torch.cat([points["reflectance"][:, None], points.xyz, points.xyz.norm(dim=1, keepdim=True)], 1)
    cells = [encoder.cells(points, plane) @ torch.tensor([shape[1], 1]) for plane, shape in enumerate(config.grids)]

    def batched(rows: Tensor, value: int = 0) -> Tensor:
        return pad(rows.split(points.counts), length, value).transpose(1, 2)

    values, neighbors = batched(inputs), batched(points["neighbors"], length - 1)
    where, real = batched(torch.stack(cells, 1)), batched(torch.ones(len(points), 1))[:, 0]
    start = time.perf_counter()
    twin.embed(values, neighbors)
    embedded = time.perf_counter()
    features = twin(values, neighbors, where, real)
    encoded = time.perf_counter()
    features.square().mean().backward()
    embed = embedded - start
    return embed, encoded - embedded - embed, time.perf_counter() - encoded


def line(kind: str, size: str, counts: list[int], repeats: int) -> None:
    """The fastest of several steps, its parts, CPU seconds of all threads a step, and the peak above idling."""
    depth, width = map(int, size.split("-"))
    config = WaffleIronConfig(depth=depth, width=width)
    points = config.precompute(Points.pack([scan(count, seed) for seed, count in enumerate(counts)]))
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = ours if kind == "ours" else padded
    busy = time.process_time()
    best = min((step(config, points) for _ in range(repeats)), key=sum)
    busy = (time.process_time() - busy) / repeats
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) / 2**20
    parts = "  ".join(f"{seconds:8.2f}" for seconds in (*best, sum(best), busy))
    print(f"{size:8} {'+'.join(map(str, counts)):24} {kind:7} {parts}  {peak:9.2f}", flush=True)


def preparation(points: int) -> None:
    """What a loader's worker does, and what is made once a forward."""
    cloud, config = scan(points, 0), WaffleIronConfig(width=8, depth=1)
    encoder, start = WaffleIron(config), time.perf_counter()
    config.precompute(cloud)
    searched = time.perf_counter()
    planes = [Plane.fit(encoder.cells(cloud, n), cloud.item, 1, shape) for n, shape in enumerate(config.grids)]
    fitted = time.perf_counter()
    cells = ", ".join(
        f"{len(plane.sizes)} occupied and {plane.reach.shape[1]} computed of {shape[0] * shape[1]}"
        for plane, shape in zip(planes, config.grids)
    )
    print(f"{points} points: neighbours {searched - start:.3f} s, planes {fitted - searched:.3f} s; cells: {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["12-128", "12-256"])
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ours", action="store_true", help="without the twin")
    parser.add_argument("--growth", action="store_true", help="also 1/4, 1/2 and twice the points")
    parser.add_argument("--mixed", action="store_true", help="also four scans of 1, 1/2, 1/4 and 1/8 of the points")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, size, *counts = options.only
        line(kind, size, list(map(int, counts)), options.repeats)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    preparation(options.points)
    jobs = [[options.points]]
    if options.growth:
        jobs += [[options.points // 4], [options.points // 2], [options.points * 2]]
    if options.mixed:
        jobs.append([options.points // divisor for divisor in (1, 2, 4, 8)])
    print("size     points                   kind        stem    blocks  backward     total  CPU (s)   peak GiB")
    for size in options.sizes:
        for counts in jobs:
            for kind in ("ours",) if options.ours else ("ours", "padded"):
                words = ["--repeats", str(options.repeats), "--only", kind, size, *map(str, counts)]
                subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
