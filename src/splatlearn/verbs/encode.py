"""`encode`: features of an encoder for every input point, on disk or for arrays. Legend: N points, C channels."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from splatlearn.data.scene import Scene
    from splatlearn.encoders.base import PointEncoder
    from splatlearn.structures import Points

Format = Literal["npy", "npz", "safetensors"]
Levels = Literal["finest", "all"]
MANIFEST = "encode.json"


@dataclass(frozen=True)
class Encoded:
    """What `encode` wrote.

    Args:
        files: file name -> rows, in order.
        channels: C.
        folder: where they are.
        seconds: for all of it.
    """

    files: Mapping[str, int]
    channels: int
    folder: Path
    seconds: float

    def __str__(self) -> str:
        rows = sum(self.files.values())
        return (
            f"{rows} rows of {self.channels} channels in {len(self.files)} files under {self.folder} "
            f"({self.seconds:.1f} s); rows follow the input points, {MANIFEST} lists them"
        )


def encode(
    *,
    encoder: str,
    data: str,
    out: Path,
    format: Format = "npy",
    levels: Levels = "finest",
    size: tuple[int, int] | None = None,
    every: int = 1,
    seed: int = 0,
    device: str = "auto",
    encoder_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> Encoded:
    """Encode every cloud or scan: one row per input point, in input order.

    A scene with a point cloud gives one file. A recording without one gives a file per frame, whose points are
    the pixels with depth in row-major order; npz and safetensors then hold `pixel` (y * width + x) too. No labels
    are needed, no point is left out, and a file that exists is never overwritten.

    Args:
        encoder: run folder, or random:NAME.
        data: name or path of the data.
        out: folder for one file a cloud.
        format: npy (features alone), or npz or safetensors with `features` and `xyz`.
        levels: the finest level's features, or all levels side by side.
        size: width and height to which frames are resized; by default their own.
        every: take each n-th frame only.
        seed: of random weights.
        device: auto, cpu, cuda...
        encoder_options: options of a random:NAME encoder.
        data_options: options of the data's reader.

    Raises:
        UserError: the data lack a channel that the encoder takes, or an output exists; nothing is written then.
    """
    from splatlearn.data.scene import Source
    from splatlearn.errors import ConfigError
    from splatlearn.tasks.base import check_inputs, pick_device, resolve_encoder

    if every < 1:
        raise ConfigError(f"--every: 1 or more is needed, got {every}")
    scenes = Source(name=data, options=dict(data_options or {})).scenes()
    jobs = [job for scene in scenes for job in _jobs(scene, size, every)]
    there = jobs[0].points().attributes
    module = resolve_encoder(encoder, encoder_options, available=there, seed=seed).encoder
    module = module.eval().to(pick_device(device))
    names = _output_names(jobs, format, out)
    for name, first in _first_of_each(jobs):
        check_inputs(module, first.points(), f"--data {data} ({name})", first.scene.up)
    out.mkdir(parents=True, exist_ok=True)
    start, files, width = time.perf_counter(), {}, 0
    for job, name in zip(jobs, names, strict=True):
        points = job.points()
        check_inputs(module, points, job.name)
        features = encode_points(module, points, levels)
        _write(out / name, points, features, format)
        files[name], width = len(features), features.shape[1]
    result = Encoded(files, width, out, time.perf_counter() - start)
    about = {"encoder": encoder, "inputs": list(module.config.inputs), "levels": levels, "data": data}
    (out / MANIFEST).write_text(json.dumps({**about, "channels": width, "files": files}, indent=2) + "\n")
    return result


class LoadedEncoder:
    """A frozen encoder for numpy arrays.

    Attributes:
        inputs: channels that it takes besides the coordinates (`color`, `normal`...).
        channels: width of each level, finest first.
    """

    def __init__(self, encoder: "PointEncoder", device: str = "auto") -> None:
        from splatlearn.tasks.base import pick_device

        self.module = encoder.eval().requires_grad_(False).to(pick_device(device))
        self.inputs, self.channels = encoder.config.inputs, encoder.channels

    def encode(self, xyz: "np.ndarray", levels: Levels = "finest", **attributes: "np.ndarray") -> "np.ndarray":
        """Features of one cloud.

        Args:
            xyz: (N 3) metres, +z up.
            levels: the finest level's features, or all levels side by side.
            attributes: one array a channel, N rows each: `color` (N 3) in [0, 1] or uint8, `normal` (N 3) unit,
                `intensity` (N)...

        Returns:
            (N C) float32, row by row for `xyz`.

        Raises:
            UserError: a channel is missing or unknown, lengths differ, or values are not finite or out of range.
        """
        from splatlearn.structures import Points
        from splatlearn.tasks.base import check_inputs

        arrays = {name: value for name, value in attributes.items() if value is not None}
        values = {name: _tensor(value, name, len(xyz)) for name, value in {"xyz": xyz, **arrays}.items()}
        points = Points(xyz=values.pop("xyz"), attributes=values)
        check_inputs(self.module, points, "the call")
        return encode_points(self.module, points, levels).numpy()


def load(run: str | Path, *, device: str = "auto", seed: int = 0) -> LoadedEncoder:
    """The encoder of a run (or `random:NAME`), ready for arrays: `load("run").encode(xyz, color=...)`."""
    from splatlearn.tasks.base import resolve_encoder

    return LoadedEncoder(resolve_encoder(str(run), seed=seed).encoder, device)


def encode_points(encoder: "PointEncoder", points: "Points", levels: Levels = "finest") -> "Tensor":
    """(N C) float32 features on the host, one row per input point in input order; no points give no rows."""
    from splatlearn.tasks.base import chosen_levels, dense, device_of

    chosen = chosen_levels(encoder, levels)
    if not len(points):
        return points.xyz.new_zeros(0, sum(encoder.channels[level] for level in chosen))
    return dense(encoder, points.to(device_of(encoder)), chosen).float().cpu()


@dataclass(frozen=True)
class _Job:
    """One output file: a scene's cloud (`view` < 0), or one of its frames."""

    name: str
    scene: "Scene"
    view: int = -1
    size: tuple[int, int] = (0, 0)

    def points(self) -> "Points":
        return self.scene.points() if self.view < 0 else self.scene.frames([self.view], self.size).to_points()


def _jobs(scene: "Scene", size: tuple[int, int] | None, every: int) -> Iterator[_Job]:
    from splatlearn.errors import MissingData

    flat = scene.name.strip("/").replace("/", "-")
    try:
        scene.points()
    except MissingData:
        cameras = scene.cameras
        if not len(cameras):
            raise MissingData(f"{scene.name} has neither a point cloud nor posed frames") from None
        size = size or (cameras.width, cameras.height)
        for view in range(0, len(cameras), every):
            yield _Job(f"{flat}-{int(cameras['frame'][view]):06d}", scene, view, size)
        return
    yield _Job(flat, scene)


def _first_of_each(jobs: list[_Job]) -> Iterator[tuple[str, _Job]]:
    """The first job of every scene: its channels stand for the rest, so that nothing is written in vain."""
    seen = set()
    for job in jobs:
        if id(job.scene) not in seen:
            seen.add(id(job.scene))
            yield job.name, job


def _output_names(jobs: list[_Job], suffix: str, out: Path) -> list[str]:
    from splatlearn.errors import UserError

    names = [f"{job.name}.{suffix}" for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"encode: several clouds would be written to {', '.join(twice[:5])}")
    there = [name for name in [*names, MANIFEST] if (out / name).exists()]
    if there:
        shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
        raise UserError(f"--out {out}: {shown} exist and are not overwritten; choose another folder")
    return names


def _write(path: Path, points: "Points", features: "Tensor", format: Format) -> None:
    """Written beside its place and renamed, so that a file that is there is whole."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {"features": features.numpy(), "xyz": points.xyz.cpu().numpy()}
    if "pixel" in points:
        arrays["pixel"] = points["pixel"].cpu().numpy()
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        if format == "npy":
            np.save(file, arrays["features"])
        elif format == "npz":
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        else:
            file.write(save(arrays))
    partial.rename(path)


def _tensor(value: Any, name: str, rows: int) -> "Tensor":
    import numpy as np
    import torch

    from splatlearn.encoders.base import INPUT_CHANNELS
    from splatlearn.errors import UserError, nearest

    known = {"xyz": 3, **INPUT_CHANNELS}
    if name not in known:
        raise UserError(f"encode: unknown channel {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    array = np.asarray(value)
    if array.dtype == np.uint8 and name == "color":
        array = array / 255
    array = np.ascontiguousarray(array, dtype=np.float32)
    width = known[name]
    shapes = [(rows, width)] + ([(rows,)] if width == 1 else [])
    if array.shape not in shapes:
        raise UserError(f"encode: {name} must be {shapes[-1]}, one row a point; got {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"encode: {name} has {int((~np.isfinite(array)).sum())} values that are not finite")
    if name == "color" and array.size and (array.min() < 0 or array.max() > 1):
        raise UserError(f"encode: color must lie in [0, 1] or be uint8; got {array.min():g} to {array.max():g}")
    return torch.from_numpy(array)
