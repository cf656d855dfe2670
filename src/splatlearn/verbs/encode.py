"""`encode`: features of an encoder for every input point, on disk or for arrays. Legend: N points, C channels."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from splatlearn.verbs import check_size, warn_idle

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
        skipped: file name -> why it was left out.
    """

    files: Mapping[str, int]
    channels: int
    folder: Path
    seconds: float
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = sum(self.files.values())
        text = (
            f"{rows} rows of {self.channels} channels in {len(self.files)} files under {self.folder} "
            f"({self.seconds:.1f} s); rows follow the input points, {MANIFEST} lists them"
        )
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(self.skipped.items())[:5])
        return f"{text}\nleft out {len(self.skipped)} that cannot be read:{reasons}" if reasons else text


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
    are needed, no point is left out, and a file that exists is never overwritten. A frame that cannot be read gives
    no file; `encode.json` lists it with the reason. Files appear when all are made, so that what was stopped can be
    repeated.

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
        UserError: the data lack a channel that the encoder takes, nothing can be read, or an output exists; nothing
            is written then.
    """
    from splatlearn.data.scene import Source
    from splatlearn.engine.checkpoint import replace_file
    from splatlearn.errors import BadData, Problems
    from splatlearn.tasks.encoders import pick_device, resolve_encoder
    from splatlearn.tasks.points import check_inputs

    source, out, problems = Source(name=data, options=dict(data_options or {})), Path(out).expanduser(), Problems()
    problems.require(every >= 1, f"--every: 1 or more is needed, got {every}")
    if size is not None:
        problems.catch(lambda: check_size(size))
    problems.require(not out.is_file(), f"--out {out}: this is a file; name a folder")
    problems.catch(lambda: pick_device(device))
    problems.catch(source.reader)
    if problems:
        problems.catch(lambda: resolve_encoder(encoder, encoder_options))
    problems.tell()
    parts = [_survey(scene, size, every) for scene in source.scenes()]
    usable = [(part.jobs[0], part.channels) for part in parts if part.channels is not None]
    if not usable:
        raise BadData(f"--data {data}: nothing can be read: {'; '.join(part.problem for part in parts[:4])}")
    module = resolve_encoder(encoder, encoder_options, available=usable[0][1].attributes, seed=seed).encoder
    module = module.eval().to(pick_device(device))
    for job, channels in usable:
        check_inputs(module, channels, f"--data {data} ({job.name})", job.scene.up)
    jobs = [job for part in parts for job in part.jobs]
    named = dict(zip(_output_names(jobs, format, out), jobs, strict=True))
    if all(job.view < 0 for job in jobs):
        warn_idle({"--size": size is not None, "--every": every != 1}, f"--data {data} has clouds, and no frames")
    out.mkdir(parents=True, exist_ok=True)
    about = {"encoder": encoder, "inputs": list(module.config.inputs), "levels": levels, "data": data}
    with TemporaryDirectory(prefix=".encode-", dir=out) as beside:
        result = replace(_encode_all(module, named, levels, format, Path(beside)), folder=out)
        for name in result.files:
            Path(beside, name).rename(out / name)
    facts = {**about, "channels": result.channels, "files": result.files, "skipped": result.skipped}
    replace_file(out / MANIFEST, json.dumps(facts, indent=2) + "\n")
    return result


def _encode_all(
    encoder: "PointEncoder", jobs: Mapping[str, "_Job"], levels: Levels, format: Format, out: Path
) -> Encoded:
    """Writes the file of every job that can be read."""
    from splatlearn.data.scene import Rejected
    from splatlearn.tasks.base import chosen_levels

    start, files, skipped = time.perf_counter(), {}, {}
    width = sum(encoder.channels[level] for level in chosen_levels(encoder, levels))
    for name, job in jobs.items():
        try:
            points = job.points()
        except Rejected as error:
            skipped[name] = str(error)
            continue
        features = encode_points(encoder, points, levels)
        _write(out / name, points, features, format)
        files[name] = len(features)
    return Encoded(files, width, out, time.perf_counter() - start, skipped)


class LoadedEncoder:
    """A frozen encoder for numpy arrays.

    Attributes:
        inputs: channels that it takes besides the coordinates (`color`, `normal`...).
        channels: width of each level, finest first.
    """

    def __init__(self, encoder: "PointEncoder", device: str = "auto") -> None:
        from splatlearn.tasks.encoders import pick_device

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
        from splatlearn.tasks.points import check_inputs

        arrays = {name: value for name, value in attributes.items() if value is not None}
        values = {name: _tensor(value, name, len(xyz)) for name, value in {"xyz": xyz, **arrays}.items()}
        points = Points(xyz=values.pop("xyz"), attributes=values)
        check_inputs(self.module, points, "the call")
        return encode_points(self.module, points, levels).numpy()


def load(run: str | Path, *, device: str = "auto", seed: int = 0) -> LoadedEncoder:
    """The encoder of a run (or `random:NAME`), ready for arrays: `load("run").encode(xyz, color=...)`."""
    from splatlearn.tasks.encoders import resolve_encoder

    return LoadedEncoder(resolve_encoder(str(run), seed=seed).encoder, device)


def encode_points(encoder: "PointEncoder", points: "Points", levels: Levels = "finest") -> "Tensor":
    """(N C) float32 features on the host, one row per input point in input order; no points give no rows."""
    from splatlearn.tasks.base import chosen_levels
    from splatlearn.tasks.encoders import device_of
    from splatlearn.tasks.points import dense

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
        if self.view < 0:
            return self.scene.points()
        from splatlearn.errors import BadData

        frames = self.scene.frames([self.view], self.size)
        if "depth" not in frames:
            raise BadData(f"{self.scene.name}: its frames have no depth, so they give no points to encode")
        return frames.to_points()


@dataclass(frozen=True)
class _Part:
    """The output files of a scene, and a cloud without points that has its channels.

    They are looked up in the first that can be read, and stand for the rest: nothing is written in vain. Where none
    can be read there are no `channels`, and `problem` says why.
    """

    jobs: list[_Job]
    channels: "Points | None" = None
    problem: str = ""


def _survey(scene: "Scene", size: tuple[int, int] | None, every: int) -> _Part:
    from splatlearn.data.scene import Rejected
    from splatlearn.errors import MissingData

    flat, problem = scene.name.strip("/").replace("/", "-"), ""
    try:
        return _Part([_Job(flat, scene)], _without_points(scene.points()))
    except MissingData:
        jobs = _frame_jobs(scene, flat, size, every)
    for job in jobs:
        try:
            return _Part(jobs, _without_points(job.points()))
        except Rejected as error:
            problem = str(error)
    return _Part(jobs, problem=problem)


def _frame_jobs(scene: "Scene", name: str, size: tuple[int, int] | None, every: int) -> list[_Job]:
    from splatlearn.errors import MissingData

    cameras = scene.cameras
    if not len(cameras):
        raise MissingData(f"{scene.name} has neither a point cloud nor posed frames")
    size = size or (cameras.width, cameras.height)
    views = range(0, len(cameras), every)
    return [_Job(f"{name}-{int(cameras['frame'][view]):06d}", scene, view, size) for view in views]


def _without_points(points: "Points") -> "Points":
    import torch

    return points.rows(torch.zeros(0, dtype=torch.int64))


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
    """Written anew."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {"features": features.numpy(), "xyz": points.xyz.cpu().numpy()}
    if "pixel" in points:
        arrays["pixel"] = points["pixel"].cpu().numpy()
    with path.open("wb") as file:
        if format == "npy":
            np.save(file, arrays["features"])
        elif format == "npz":
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        else:
            file.write(save(arrays))


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
        wanted = "(N, 3)" if name == "xyz" else shapes[-1]
        raise UserError(f"encode: {name} must be {wanted}, one row a point; got {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(f"encode: {name} has {int((~np.isfinite(array)).sum())} values that are not finite")
    if name == "color" and array.size and (array.min() < 0 or array.max() > 1):
        raise UserError(f"encode: color must lie in [0, 1] or be uint8; got {array.min():g} to {array.max():g}")
    return torch.from_numpy(array)
