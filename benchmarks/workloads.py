"""The scenes that are drawn, what their prototypes took, and how a call is timed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from machine import Peak
from torch import Tensor

from splatlearn.splatting import RenderOptions, cpu, render
from splatlearn.structures import Cameras, Gaussians

LEAVES = ("means", "scales", "quaternions", "opacities", "sh")
PROTOTYPE = Peak(198e9, 14.8e9)
"""The machine of the prototypes, two cores like ours; their times are scaled by multiply-adds a second."""
Pair = tuple[float, float]
"""Of a forward and a backward pass."""


class Workload(NamedTuple):
    """A scene of one view, and the milliseconds of throw-away prototypes on it.

    Fields:
        size: width, height, Gaussians.
        lanes, blended: pixels that are evaluated and that are blended, over all Gaussians.
        traffic: bytes that are read and written at least.
        numba, cpp: compositing alone, by the Numba and by the C++ prototype.
        stages: projection and binning, and the gradient of projection, by the C++ prototype.
    """

    size: tuple[int, int, int]
    lanes: float
    blended: float
    traffic: Pair
    numba: Pair
    cpp: Pair
    stages: Pair

    def floor(self, peak: Peak) -> Pair:
        """Milliseconds by the peak: 30 FLOP a lane, 55 more for each that is blended in the backward pass."""
        flop = (30 * self.lanes, 30 * self.lanes + 55 * self.blended)
        forward, backward = (max(f / peak.flops, t / peak.copied) for f, t in zip(flop, self.traffic, strict=True))
        return 1e3 * forward, 1e3 * backward


WORKLOADS = {
    "A": Workload((320, 240, 76_800), 13.0e6, 4.54e6, (18e6, 28e6), (13.3, 27.5), (9.8, 17), (6.4, 2.3)),
    "B": Workload((320, 240, 153_600), 22.6e6, 4.86e6, (35e6, 50e6), (24, 54), (15, 27), (13.7, 4.6)),
    "C": Workload((640, 480, 300_000), 51.2e6, 18.9e6, (73e6, 109e6), (57, 118), (43, 74), (40.4, 9.6)),
}


class Times(NamedTuple):
    """Milliseconds, medians. Fields: passes, and what of them is projection and binning (`cpu` only)."""

    passes: Pair
    stages: Pair

    @property
    def total(self) -> float:
        return sum(self.passes)


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


def layers(
    cameras: Cameras, options: RenderOptions, features: Tensor | None = None
) -> Callable[[Gaussians], tuple[Tensor, ...]]:
    """A step to time: colour, depth, alpha and, where features are given, which get a gradient too, their picture."""

    def draw(cloud: Gaussians) -> tuple[Tensor, ...]:
        rows = None if features is None else features.detach().requires_grad_()
        seen = render(cloud, cameras, rows, options=options)
        return (seen.color, seen.depth, seen.alpha) if rows is None else tuple(seen)

    return draw


def timed(make: Callable[[Gaussians], tuple[Tensor, ...]], cloud: Gaussians, calls: int, warm: int = 1) -> Times:
    """Medians of that many calls after `warm` that are not counted; making gradients for the pictures is not timed."""
    forward, backward, gradients = [], [], []
    with _watched() as spent:
        for _ in range(warm + calls):
            leaves = fresh(cloud)
            start = time.perf_counter()
            pictures = make(leaves)
            forward.append(time.perf_counter() - start)
            gradients = gradients or [torch.randn_like(picture) for picture in pictures]
            start = time.perf_counter()
            torch.autograd.backward(pictures, gradients)
            backward.append(time.perf_counter() - start)
            del pictures, leaves
    passes, stages = (forward, backward), (spent["_bin"], spent["_backproject"])
    first, second = (tuple(1e3 * median(times[warm:] or [0.0]) for times in pair) for pair in (passes, stages))
    return Times(first, second)


@contextmanager
def _watched() -> Iterator[dict[str, list[float]]]:
    """Seconds of each call of the stages of `cpu` that are not compositing, measured where they are called."""
    spent: dict[str, list[float]] = {"_bin": [], "_backproject": []}
    originals: dict[str, Any] = {stage: getattr(cpu, stage) for stage in spent}

    def watch(stage: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return originals[stage](*arguments)
            finally:
                spent[stage].append(time.perf_counter() - start)

        return run

    for stage in spent:
        setattr(cpu, stage, watch(stage))
    try:
        yield spent
    finally:
        for stage, original in originals.items():
            setattr(cpu, stage, original)


def table(title: str, head: str) -> None:
    """The heading and the first two lines of a table in markdown."""
    print(f"\n### {title}\n\n{head}\n|{'---|' * head.strip('|').count('|')}---|", flush=True)


def verdict(ratio: float, goal: float) -> str:
    """The ratio beside its goal."""
    return f"{ratio:.2f} ({'met' if ratio <= goal else 'missed'}: goal {goal:g})"
