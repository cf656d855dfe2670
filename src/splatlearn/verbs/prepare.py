"""`prepare`: a teacher's maps of all views, computed once and kept on disk."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatlearn.verbs import check_size

if TYPE_CHECKING:
    from splatlearn.data.scene import Scene
    from splatlearn.teachers.base import Teacher
    from splatlearn.teachers.prepared import PreparedMaps

Options = Mapping[str, Any]
RESERVE = 1.05
"""Free space asked for, as a multiple of the maps'."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Args:
        folder: of the maps.
        made: views computed now.
        kept: views that were there.
        skipped: `SCENE, view N` -> why it was left out.
        seconds: for all of it.
    """

    folder: Path
    made: int
    kept: int
    seconds: float
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.made} views made, {self.kept} were there: {self.folder} ({self.seconds:.1f} s)"
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(self.skipped.items())[:5])
        return f"{text}\nleft out {len(self.skipped)} views:{reasons}" if reasons else text


def prepare(
    data: str,
    *,
    teacher: str,
    out: Path,
    size: tuple[int, int] | None = None,
    layer: int | None = None,
    device: str = "auto",
    teacher_options: Options | None = None,
    data_options: Options | None = None,
) -> Prepared:
    """Compute a teacher's maps of all views once.

    Says first how much disk they take, and refuses where there is not enough. What is there is not computed again, so
    that the same command continues one that was stopped. A view that cannot be read is left out and named.

    Args:
        data: name or path of the data.
        teacher: FAMILY.PRESET, a preset of timm (dinov2-s), or timm's name of a model; random:NAME is never trained.
        out: folder of the maps, one file a view in float16, and maps.json about the teacher.
        size: width and height to which images are resized, multiples of the teacher's patch; by default their own.
        layer: the block or stage whose features are kept, from 0, or from the end by -1; the last by default.
        device: auto, cpu, cuda...
        teacher_options: options of the teacher: `splatlearn list teachers NAME`.
        data_options: options of the data's reader: `splatlearn list readers NAME`.

    Raises:
        ConfigError: unknown names and options, all in one message.
        UserError: no views, a size that does not fit, too little space, or a folder with other maps.
    """
    from splatlearn.data.scene import Source
    from splatlearn.errors import Problems
    from splatlearn.tasks.encoders import pick_device
    from splatlearn.teachers.base import create_teacher
    from splatlearn.teachers.prepared import PreparedMaps

    start, out, problems = time.perf_counter(), Path(out).expanduser(), Problems()
    source = Source(name=data, options=dict(data_options or {}))
    chosen = {**(teacher_options or {}), **({} if layer is None else {"layers": (layer,)})}
    if size is not None:
        problems.catch(lambda: check_size(size))
    problems.require(not out.is_file(), f"--out {out}: this is a file; name a folder")
    problems.catch(lambda: pick_device(device))
    problems.catch(source.reader)
    network = problems.catch(lambda: create_teacher(teacher, chosen))
    problems.tell()
    assert network is not None
    scenes = [scene for scene in source.scenes() if len(scene.cameras)]
    maps = PreparedMaps.of(network, size or _own_size(scenes, data), out)
    todo = [(scene, view) for scene in scenes for view in range(len(scene.cameras))]
    missing = [(scene, view) for scene, view in todo if not maps.path(scene.name, scene.view_key(view)).exists()]
    _estimate(maps, len(scenes), len(todo), len(missing))
    maps.begin()
    skipped = _make(network, maps, missing, pick_device(device))
    made, kept = len(missing) - len(skipped), len(todo) - len(missing)
    return Prepared(out, made, kept, time.perf_counter() - start, skipped)


def _own_size(scenes: Sequence["Scene"], data: str) -> tuple[int, int]:
    """The size that all scenes have."""
    from splatlearn.errors import BadData, UserError

    sizes = dict.fromkeys((scene.cameras.width, scene.cameras.height) for scene in scenes)
    if not sizes:
        raise BadData(f"--data {data}: no scene has views of known cameras, of which maps could be made")
    if len(sizes) > 1:
        raise UserError(f"--size: needed, as the scenes have images of several sizes: {', '.join(map(str, sizes))}")
    return next(iter(sizes))


def _estimate(maps: "PreparedMaps", scenes: int, views: int, missing: int) -> None:
    """Says how large the maps are.

    Raises:
        UserError: they do not fit on the disk.
    """
    from splatlearn.errors import UserError

    total, needed = views * maps.bytes_per_view, missing * maps.bytes_per_view
    grid = f"{maps.grid[0]}x{maps.grid[1]} tokens x {maps.channels} channels x 2 bytes"
    sys.stderr.write(
        f"{maps.name}: {scenes} scenes, {views} views x {grid} = {_readable(total)}; {_readable(needed)} to be made\n"
    )
    there = next(path for path in (maps.folder.absolute(), *maps.folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed * RESERVE > free:
        raise UserError(
            f"--out {maps.folder}: {_readable(needed)} are needed there and {_readable(free)} are free; take fewer "
            "views (options of the data's reader), a smaller --size or teacher, or another disk"
        )


def _make(
    teacher: "Teacher", maps: "PreparedMaps", views: Sequence[tuple["Scene", int]], device: str
) -> dict[str, str]:
    """Computes views and stores them; what was left out, and why.

    Raises:
        BadData: all of them.
    """
    from splatlearn.data.progress import progress
    from splatlearn.data.scene import Rejected
    from splatlearn.errors import BadData, UserError

    teacher.to(device)
    skipped: dict[str, str] = {}
    with progress(f"maps of {maps.name}", len(views)) as tell:
        for done, (scene, view) in enumerate(views):
            tell(done)
            try:
                frames = scene.frames([view], maps.size)
                seen = teacher(frames.to(device))
                maps.write(scene.name, scene.view_key(view), seen, int(frames.cameras["frame"][0]))
            except (Rejected, UserError) as error:
                skipped[f"{scene.name}, view {view}"] = str(error)
    if skipped and len(skipped) == len(views):
        raise BadData(f"{maps.folder}: no view could be prepared; {next(iter(skipped.values()))}")
    return skipped


def _readable(count: float) -> str:
    """Bytes in a unit that people read."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
