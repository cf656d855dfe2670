"""`encode`: features of an encoder for every input point, or every patch of an image, on disk or for arrays.

What is written is planned by `encode_points` or `encode_images`, and written here, all or nothing.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from splatlearn.verbs import check_size

if TYPE_CHECKING:
    import numpy as np

    from splatlearn.data.scene import Scene
    from splatlearn.tasks.encoders import Resolved
    from splatlearn.verbs.encode_images import LoadedImageEncoder
    from splatlearn.verbs.encode_points import LoadedEncoder

Format = Literal["npy", "npz", "safetensors"]
Levels = Literal["finest", "all"]
MANIFEST = "encode.json"


@dataclass(frozen=True)
class Encoded:
    """What `encode` wrote.

    Args:
        files: file name -> rows (points, or tokens of an image's grid), in order.
        channels: C.
        folder: where they are.
        seconds: for all of it.
        skipped: file name -> why it was left out.
        order: what the rows are, in words.
        grids: file name -> (width, height) in tokens, of images.
    """

    files: Mapping[str, int]
    channels: int
    folder: Path
    seconds: float
    skipped: Mapping[str, str] = field(default_factory=dict)
    order: str = ""
    grids: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = sum(self.files.values())
        text = (
            f"{rows} rows of {self.channels} channels in {len(self.files)} files under {self.folder} "
            f"({self.seconds:.1f} s); {self.order}, {MANIFEST} lists them"
        )
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(self.skipped.items())[:5])
        return f"{text}\nleft out {len(self.skipped)} that cannot be read:{reasons}" if reasons else text


@dataclass(frozen=True)
class Job:
    """One output file.

    Args:
        name: of the file, without its suffix.
        arrays: gives what goes into it, `features` (N C) or (h w C) first; may raise `Rejected`.
    """

    name: str
    arrays: "Callable[[], dict[str, np.ndarray]]"


@dataclass(frozen=True)
class Plan:
    """All output files.

    Args:
        jobs: one a file.
        channels: C.
        facts: what the manifest says besides.
        order: what the rows are, in words.
        skipped: name -> why there is no job of it.
    """

    jobs: Sequence[Job]
    channels: int
    facts: Mapping[str, Any]
    order: str
    skipped: Mapping[str, str] = field(default_factory=dict)


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
    """Encode every cloud or scan, one row per input point, or every image, one row per patch.

    Points: a scene with a point cloud gives one file. A recording without one gives a file per frame, whose points are
    the pixels with depth in row-major order; npz and safetensors then hold `pixel` (y * width + x) too. No point is
    left out.

    Images: a file per photograph, or per view of a recording, with a grid of tokens (h w C); npz and safetensors then
    hold the `summary` (C), the `size` (width, height) that the image was resized to, its `native` size and the `patch`.

    No labels are needed, and a file that exists is never overwritten. A frame or image that cannot be read gives no
    file; `encode.json` lists it with the reason. Files appear when all are made, so that what was stopped can be
    repeated.

    Args:
        encoder: run folder, random:NAME, or teacher:NAME of an image model.
        data: name or path of the data.
        out: folder for one file a cloud, frame or image.
        format: npy (features alone), or npz or safetensors with `features` and where they are.
        levels: the finest level's features (of image encoders the last level's), or all levels side by side.
        size: width and height to which frames and images are resized; by default their own, and of images the nearest
            multiples of the encoder's patch.
        every: take each n-th frame or image only.
        seed: of random weights.
        device: auto, cpu, cuda...
        encoder_options: options of a random:NAME encoder or of a teacher; of a run, projector: a teacher's name.
        data_options: options of the data's reader.

    Raises:
        UserError: the data lack a channel that the encoder takes, the patch does not divide the size, nothing can be
            read, or an output exists; nothing is written then.
    """
    from splatlearn.data.scene import Source
    from splatlearn.encoders.base import Encoder, ImageEncoder
    from splatlearn.engine.checkpoint import replace_file
    from splatlearn.errors import Problems
    from splatlearn.tasks.encoders import pick_device, resolve_encoder
    from splatlearn.verbs.encode_images import plan_images
    from splatlearn.verbs.encode_points import plan_points

    source, out, problems = Source(name=data, options=dict(data_options or {})), Path(out).expanduser(), Problems()
    problems.require(every >= 1, f"--every: 1 or more is needed, got {every}")
    if size is not None:
        problems.catch(lambda: check_size(size))
    problems.require(not out.is_file(), f"--out {out}: this is a file; name a folder")
    problems.catch(lambda: pick_device(device))
    problems.catch(source.reader)
    found = problems.catch(lambda: resolve_encoder(encoder, encoder_options, seed=seed, kind=Encoder))
    problems.tell()
    assert found is not None
    module: Any = found.encoder.eval().requires_grad_(False).to(pick_device(device))
    make: Callable[..., Plan] = plan_images if isinstance(module, ImageEncoder) else plan_points
    plan = make(module, source, levels, size, every)
    named = dict(zip(_output_names(plan.jobs, format, out), plan.jobs, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".encode-", dir=out) as beside:
        result = replace(_encode_all(plan, named, format, Path(beside)), folder=out)
        for name in result.files:
            Path(beside, name).rename(out / name)
    about = {**_about_encoder(encoder, found, encoder_options, seed), **plan.facts, "levels": levels, "data": data}
    grids = {"grids": result.grids} if result.grids else {}
    facts = {**about, "channels": result.channels, "files": result.files, **grids, "skipped": result.skipped}
    replace_file(out / MANIFEST, json.dumps(facts, indent=2, default=str) + "\n")
    return result


def load(run: str | Path, *, device: str = "auto", seed: int = 0) -> "LoadedEncoder | LoadedImageEncoder":
    """The encoder of a run (or `random:NAME`), ready for arrays: `load("run").encode(xyz, color=...)` of points, or
    `load("run").encode(image)` of images."""
    from splatlearn.encoders.base import Encoder, ImageEncoder
    from splatlearn.tasks.encoders import resolve_encoder
    from splatlearn.verbs.encode_images import LoadedImageEncoder
    from splatlearn.verbs.encode_points import LoadedEncoder

    module: Any = resolve_encoder(str(run), seed=seed, kind=Encoder).encoder
    if isinstance(module, ImageEncoder):
        return LoadedImageEncoder(module, device)
    return LoadedEncoder(module, device)


def _about_encoder(name: str, found: "Resolved", options: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """What the features can be made again with: the encoder, its options, and its weights' digest or its seed."""
    from splatlearn.engine.checkpoint import encoder_digest

    about: dict[str, Any] = {"encoder": name, "encoder_options": dict(options or {})}
    if found.origin == "run":
        about["weights"] = encoder_digest(Path(name).expanduser())
    if found.origin == "teacher":
        about["weights"] = found.encoder.teacher.info.digest
    if found.origin == "random":
        about["seed"] = seed
    return about


def flat_name(scene: "Scene") -> str:
    """The scene's name without folders."""
    return scene.name.strip("/").replace("/", "-")


def _encode_all(plan: Plan, named: Mapping[str, Job], format: Format, out: Path) -> Encoded:
    """Writes the file of every job that can be read."""
    from splatlearn.data.scene import Rejected

    start, files, grids = time.perf_counter(), {}, {}
    skipped = {f"{name}.{format}": reason for name, reason in plan.skipped.items()}
    for name, job in named.items():
        try:
            arrays = job.arrays()
        except Rejected as error:
            skipped[name] = str(error)
            continue
        _write(out / name, arrays, format)
        *rows, _ = arrays["features"].shape
        files[name] = math.prod(rows)
        if len(rows) == 2:
            grids[name] = (rows[1], rows[0])
    return Encoded(files, plan.channels, out, time.perf_counter() - start, skipped, plan.order, grids)


def _output_names(jobs: Iterable[Job], suffix: str, out: Path) -> list[str]:
    from splatlearn.errors import UserError

    names = [f"{job.name}.{suffix}" for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"encode: several inputs would be written to {', '.join(twice[:5])}")
    there = [name for name in [*names, MANIFEST] if (out / name).exists()]
    if there:
        shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
        raise UserError(f"--out {out}: {shown} exist and are not overwritten; choose another folder")
    return names


def _write(path: Path, arrays: "Mapping[str, np.ndarray]", format: Format) -> None:
    """Written anew."""
    import numpy as np
    from safetensors.numpy import save

    with path.open("wb") as file:
        if format == "npy":
            np.save(file, arrays["features"])
        elif format == "npz":
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        else:
            file.write(save(dict(arrays)))
