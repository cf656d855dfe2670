"""What a user could pick instead, in the same run. A part of splatting.py.

`reference` is `render`'s own plain-torch twin, which evaluates every tile again in the backward pass to save memory;
`tile batches` is torch_tiles.py. litesplat is a published splatter in plain torch (through Keras; Apache-2.0, PyPI
0.1.1): it has no tiles, evaluates every Gaussian at every pixel, and draws RGB alone, so it gets a small picture. Its
footprints are right where neither camera nor Gaussian is turned, so the small picture's Gaussians are not.
"""

import contextlib
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import Peak
from torch import Tensor
from torch_tiles import render_tiles
from workloads import WORKLOADS, Times, fresh, layers, pixel_cloud, table, timed

from splatlearn.splatting import RenderOptions, harmonics, render
from splatlearn.structures import Cameras, Gaussians

CPU, REFERENCE = RenderOptions(backend="cpu"), RenderOptions(backend="reference")
SMALL = (64, 48, 3072)
Draw = Callable[[Gaussians], tuple[Tensor, ...]]


def compare(calls: int, peak: Peak) -> None:
    """The small picture with all; workloads A, C and B with 64 channels with what can draw them; a GPU, if any."""
    table("Alternatives", "| scene | what draws | forward ms | backward ms | x `cpu` | note |")
    cloud, cameras = pixel_cloud(*SMALL)
    cloud = replace(cloud, quaternions=torch.eye(4)[:1].repeat(len(cloud), 1))
    scene = f"{SMALL[0]}x{SMALL[1]}, {SMALL[2]:,} Gaussians"
    ours = _show(scene, "`cpu`", timed(layers(cameras, CPU), cloud, calls))
    _show(scene, "`reference`", timed(layers(cameras, REFERENCE), cloud, calls), ours)
    _show(scene, "tile batches", timed(_tiles(cameras), cloud, calls), ours)
    if find_spec("litesplat") is None or find_spec("keras") is None:
        print(f"| {scene} | litesplat | | | | not installed: pip install litesplat |")
    else:
        draw, difference = litesplat(cloud, cameras)
        note = f"RGB alone; its picture differs by {difference:.3f} in the mean"
        _show(scene, "litesplat", timed(draw, cloud, calls), ours, note)
    for name in "AC":
        cloud, cameras = pixel_cloud(*WORKLOADS[name].size)
        ours = _show(name, "`cpu`", timed(layers(cameras, CPU), cloud, calls))
        if name == "A":
            _show(name, "`reference`", timed(layers(cameras, REFERENCE), cloud, 1, warm=0), ours, "one call")
        _show(name, "tile batches", timed(_tiles(cameras), cloud, 1), ours, "second call")
    cloud, cameras = pixel_cloud(*WORKLOADS["B"].size)
    rows = torch.randn(len(cloud), 64)
    ours = _show("B/64", "`cpu`", timed(layers(cameras, CPU, rows), cloud, calls))
    _show("B/64", "`reference`", timed(layers(cameras, REFERENCE, rows), cloud, 1, warm=0), ours, "one call")
    on_gpu(calls)


def _show(scene: str, what: str, times: Times, ours: Times | None = None, note: str = "") -> Times:
    ratio = "1" if ours is None else f"{times.total / ours.total:.1f}"
    print(f"| {scene} | {what} | {times.passes[0]:.1f} | {times.passes[1]:.1f} | {ratio} | {note} |", flush=True)
    return times


def _tiles(cameras: Cameras) -> Draw:
    return lambda cloud: (render_tiles(cloud, cameras, CPU),)


def litesplat(cloud: Gaussians, cameras: Cameras) -> tuple[Draw, float]:
    """Its renderer with this scene, and how its picture differs from ours under its rules (no cuts, no low-pass).

    It reads scenes from files, and puts pixel centres on whole numbers, the picture upside down.
    """
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}
    width, height, intrinsics = cameras.width, cameras.height, cameras.intrinsics[0].tolist()
    columns = {
        "position": cloud.means,
        "rotation": cloud.quaternions,
        "scale": cloud.scales,
        "opacity": cloud.opacities,
        "color": harmonics.colors(cloud.sh, cloud.means),
    }
    rows = zip(*(values.tolist() for values in columns.values()))
    camera = {
        "camera_id": 0,
        "model": "PINHOLE",
        "image_name": "",
        "width": width,
        "height": height,
        "rotation": torch.eye(3).tolist(),
        "translation": [0.0, 0.0, 0.0],
        **{name: intrinsics[i][j] for name, i, j in (("fx", 0, 0), ("fy", 1, 1), ("cx", 0, 2), ("cy", 1, 2))},
    }
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        from litesplat.core import CameraLayer, GaussianParameterLayer  # pyright: ignore[reportMissingImports]

        scene = [dict(zip(columns, row, strict=True)) for row in rows]
        Path(folder, "gaussians.json").write_text(json.dumps(scene))
        Path(folder, "camera.json").write_text(json.dumps([camera]))
        renderer: Any = CameraLayer(folder, GaussianParameterLayer(folder))

        def draw(_: Gaussians) -> tuple[Tensor, ...]:
            return (renderer(inputs=(height, width), batch_size=1024, render=False),)

        picture = draw(cloud)[0].detach()
    shift = torch.tensor([[0, 0, 0.5], [0, 0, -0.5], [0, 0, 0]])
    rules = RenderOptions(backend="reference", low_pass=0.0, alpha_min=0.0, transmittance_min=0.0)
    seen = render(cloud, replace(cameras, intrinsics=cameras.intrinsics + shift), options=rules).color[0]
    return draw, float((picture - seen.permute(1, 2, 0).flip(0)).abs().mean())


def on_gpu(calls: int) -> None:
    """gsplat on a CUDA device: its own call beside `render` through it, and features in one call against two."""
    if not torch.cuda.is_available():
        print("| C | gsplat | | | | skipped: no CUDA device |")
        return
    if find_spec("gsplat") is None:
        print("| C | gsplat | | | | not installed: pip install 'splatlearn[cuda]' |")
        return
    cloud, cameras = (part.to("cuda") for part in pixel_cloud(*WORKLOADS["C"].size))
    features, through = torch.randn(len(cloud), 64, device="cuda"), RenderOptions(backend="gsplat")
    for name, rows, goal in (("C", None, "goal 1.05"), ("C/64", features, "goal 1: gsplat takes two calls")):
        own = _on_device(_gsplat(cameras, rows), cloud, calls)
        _show(name, "gsplat", own, own, torch.cuda.get_device_name())
        times = _on_device(layers(cameras, through, rows), cloud, calls)
        print(f"| {name} | `render` through it | {times.passes[0]:.1f} | {times.passes[1]:.1f} | | {goal}: ", end="")
        print(f"{times.total / own.total:.2f} x gsplat |", flush=True)


def _gsplat(cameras: Cameras, features: Tensor | None) -> Draw:
    """gsplat called by hand: colour and depth, then features in a second call."""
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    view = {"viewmats": cameras.world_to_camera, "Ks": cameras.intrinsics}
    size = {"width": cameras.width, "height": cameras.height, "packed": False}

    def draw(cloud: Gaussians) -> tuple[Tensor, ...]:
        shape = {"means": cloud.means, "quats": cloud.quaternions, "scales": cloud.scales, "opacities": cloud.opacities}
        pictures = rasterization(**shape, colors=cloud.sh, sh_degree=0, render_mode="RGB+D", **view, **size)[:2]
        if features is None:
            return tuple(pictures)
        rows = features.detach().requires_grad_()
        return (*pictures, rasterization(**shape, colors=rows, **view, **size)[0])

    return draw


def _on_device(make: Draw, cloud: Gaussians, calls: int) -> Times:
    """`timed`, waiting for the device."""
    forward, backward = [], []
    for _ in range(calls + 3):
        leaves = fresh(cloud)
        torch.cuda.synchronize()
        start = time.perf_counter()
        pictures = make(leaves)
        torch.cuda.synchronize()
        drawn = time.perf_counter()
        torch.autograd.backward(pictures, [torch.ones_like(picture) for picture in pictures])
        torch.cuda.synchronize()
        forward.append(drawn - start)
        backward.append(time.perf_counter() - drawn)
    return Times((1e3 * median(forward[3:]), 1e3 * median(backward[3:])), (0.0, 0.0))
