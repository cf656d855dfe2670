"""`check`: what data holds, and what is wrong with it, before any training."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatlearn.errors import UserError
from splatlearn.verbs import check_size, output_file
from splatlearn.verbs.check_report import CheckReport, PointsReport, SceneReport, ViewsReport, by_reason

if TYPE_CHECKING:
    from splatlearn.data.scene import Scene, Skipped
    from splatlearn.structures import Points

FEW_OVERLAP = 0.3
"""Below this mean share seen by both views of a pair, there is little to learn from a pair (our default)."""
LIDAR_REACH = 600
"""Metres across beyond which a scan is taken not to be in metres: a lidar reaches 200 to 250 m (our default)."""
_OVERLAPS = 12
_PIXEL_STEP = 7
"""Each seventh depth is kept of a view: enough for percentiles, and long recordings fit into memory."""


def check(
    data: str,
    *,
    data_options: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (160, 120),
    gap: int = 5,
    small: int = 224,
    json: Path | None = None,
) -> CheckReport:
    """Counts, sizes, units, axes, up, depth, missing fields, broken files: read everything before any training.

    Every image is decoded and every cloud is read, so that broken files show now and not in the middle of a run; they
    are named, and the rest is looked at. Progress is shown.

    Args:
        data: a world's name, or a folder or file.
        data_options: options of its reader.
        size: width and height at which depth and overlap are measured.
        gap: raw frames between the views of a pair.
        small: pixels; images without cameras that have a side below it are counted.
        json: also write the report to this file.

    Returns:
        The report.

    Raises:
        UserError: nothing of the data can be used, or the report cannot be written; the message says why.
    """
    from splatlearn.data.image_folders import Photograph
    from splatlearn.data.progress import progress
    from splatlearn.data.scene import Source
    from splatlearn.errors import BadData, Problems
    from splatlearn.verbs.check_images import check_images

    source, problems = Source(name=data, options=data_options or {}), Problems()
    problems.require(gap >= 1, f"--gap: 1 or more is needed, got {gap}")
    problems.require(small >= 1, f"--small: 1 pixel or more is needed, got {small}")
    problems.catch(lambda: check_size(size))
    file = None if json is None else problems.catch(lambda: output_file(json, "--json"))
    problems.catch(source.reader)
    problems.tell()
    reader, scenes = source.reader(), source.scenes()
    blind = isinstance(scenes[0], Photograph)
    with progress(f"checking {data}", len(scenes) if blind else sum(map(_parts, scenes))) as tell:
        numbers = itertools.count(1)

        def tick() -> None:
            tell(next(numbers))

        look = functools.partial(_check_scene, size=size, gap=gap, classes=len(reader.classes), tick=tick)
        images, damaged = check_images(scenes, small, reader.classes, tick) if blind else (None, [])
        reports = [] if blind else _check_scenes(scenes, look, damaged)
    if not images and not any(report.views or report.points for report in reports):
        reasons = Counter(reason for report in reports for reason in report.skipped)
        reasons.update(reason for _, reason in damaged)
        why = "; ".join(reason for reason, _ in reasons.most_common(4)) or "neither two views nor a cloud"
        raise BadData(f"--data {data}: no {'image' if blind else 'scene'} can be used: {why}")
    report = CheckReport(
        data=data,
        reader=_family(reader),
        classes=tuple(reader.classes),
        gap=gap,
        scenes=tuple(reports),
        skipped=by_reason([*reader.skipped, *damaged]),
        images=images,
    )
    if file is not None:
        _write(file, report)
    return report


def _parts(scene: Scene) -> int:
    """Its views and its cloud; a damaged calibration is told when the scene is looked at."""
    try:
        return 1 + len(scene.cameras)
    except UserError:
        return 1


def _check_scenes(
    scenes: Sequence[Scene], look: Callable[[Scene], SceneReport], damaged: list[Skipped]
) -> list[SceneReport]:
    """What the scenes hold; those that cannot be read are added to `damaged`."""
    from splatlearn.data.scene import Skipped

    reports = []
    for scene in scenes:
        try:
            reports.append(look(scene))
        except UserError as error:
            damaged.append(Skipped(scene.name, str(error)))
    return reports


def _check_scene(scene: Scene, size: tuple[int, int], gap: int, classes: int, tick: Callable[[], None]) -> SceneReport:
    """What a scene holds; `tick` is called for each view and for the cloud."""
    broken: list[tuple[str, str]] = []
    views = _check_views(scene, size, gap, broken, tick) if len(scene.cameras) and not scene.camera_names else None
    if scene.camera_names:
        _sample_depth(scene, size, broken, tick)
    points = _check_points(scene)
    tick()
    return SceneReport(
        name=scene.name,
        split=scene.split,
        up=scene.up,
        metric=scene.metric,
        notes=scene.notes,
        views=views,
        points=points,
        skipped=by_reason([*scene.skipped, *broken]),
        warnings=(*_scene_warnings(scene), *_view_warnings(views, gap), *_point_warnings(points, classes)),
    )


def _check_views(
    scene: Scene, size: tuple[int, int], gap: int, broken: list[tuple[str, str]], tick: Callable[[], None]
) -> ViewsReport | None:
    import numpy as np

    cameras = scene.cameras
    depths = _sample_depth(scene, size, broken, tick)
    if len(depths) < 2:
        return None
    sample = np.concatenate([depth for depth in depths.values() if depth is not None] or [[]])
    valid = sample[sample > 0]
    focal = cameras.intrinsics[:, [0, 1], [0, 1]].double().numpy().mean(0)
    angles = 2 * np.degrees(np.arctan(np.array([cameras.width, cameras.height]) / 2 / focal))
    found, pairs = _overlaps(scene, sorted(depths), size, gap)
    return ViewsReport(
        count=len(depths),
        native=(cameras.width, cameras.height),
        field_of_view=(round(float(angles[0]), 1), round(float(angles[1]), 1)),
        path=round(float(cameras.centers.diff(dim=0).norm(dim=1).sum()), 2),
        depth_share=round(len(valid) / max(len(sample), 1), 3),
        depth=_rounded(np.percentile(valid, [1, 50, 99])) if len(valid) else (),
        overlap=_rounded([min(found), sum(found) / len(found)]) if found else (),
        pairs=pairs,
    )


def _sample_depth(
    scene: Scene, size: tuple[int, int], broken: list[tuple[str, str]], tick: Callable[[], None]
) -> dict[int, Any]:
    """Decodes every view: view -> some of its depth, metres, or None; what cannot be decoded is added to `broken`."""
    from concurrent.futures import ThreadPoolExecutor

    from splatlearn.data.scene import Rejected

    def read(view: int) -> Any:
        try:
            frames = scene.frames([view], size)
        except Rejected as error:
            return error
        return frames["depth"].numpy().ravel()[::_PIXEL_STEP].copy() if "depth" in frames else None

    # Decoding leaves Python's lock, so threads help; eight keep a slow disk busy.
    read_views = []
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read, range(len(scene.cameras))):
            read_views.append(found)
            tick()
    for error in read_views:
        if isinstance(error, Rejected):
            name, _, reason = error.detail.removeprefix(f"{scene.name}: ").partition(": ")
            broken.append((name, reason or error.kind))
    return {view: value for view, value in enumerate(read_views) if not isinstance(value, Rejected)}


def _overlaps(scene: Scene, views: list[int], size: tuple[int, int], gap: int) -> tuple[list[float], int]:
    """Overlap of some pairs spread over the recording, and the number of pairs."""
    import numpy as np
    import torch

    from splatlearn.data.sampling import overlap, pairs
    from splatlearn.errors import BadData

    try:
        groups = pairs(scene.cameras.rows(torch.tensor(views)), gap)
    except BadData:
        return [], 0
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(_OVERLAPS, len(groups))).round().astype(int))
    found = []
    for a, b in groups[chosen]:
        frames = scene.frames([views[a], views[b]], size)
        if "depth" in frames:
            found.append(overlap(frames, 0, 1))
    return found, len(groups)


def _check_points(scene: Scene) -> PointsReport | None:
    import torch

    from splatlearn.errors import MissingData

    try:
        points = scene.points()
    except MissingData:
        return None
    try:
        boxes = len(scene.boxes())
    except MissingData:
        boxes = 0
    rows = {"xyz": points.xyz, **points.attributes}
    bad = {name: int((~torch.isfinite(v).flatten(1).all(1)).sum()) for name, v in rows.items() if v.ndim > 1}
    labels = points["label"].unique(return_counts=True) if "label" in points else ([], [])
    x, y, z = _rounded((points.xyz.amax(0) - points.xyz.amin(0)).tolist())
    return PointsReport(
        count=len(points),
        extent=(x, y, z),
        attributes=tuple(sorted(points.attributes)),
        missing=tuple(name for name in ("color", "normal", "label", "instance") if name not in points),
        not_finite={name: count for name, count in bad.items() if count},
        labels={int(label): int(count) for label, count in zip(*labels)},
        boxes=boxes,
        seen=_seen(scene, points),
    )


def _seen(scene: Scene, points: Points) -> dict[str, int]:
    """Camera -> points that it sees, where the cameras are those of a lidar's rig."""
    from splatlearn.data.projection import visible_points

    rows = [visible_points(points, scene.cameras, v, scene.projection).rows for v in range(len(scene.camera_names))]
    return {camera: len(found) for camera, found in zip(scene.camera_names, rows)}


def _scene_warnings(scene: Scene) -> Iterable[str]:
    if scene.up == "unknown":
        yield "up is unknown: recipes that need gravity will refuse; give --data.up x,y,z or --data.up estimate"
    if scene.metric == "unknown":
        yield "the scale is unknown: recipes that need metres will refuse"


def _view_warnings(views: ViewsReport | None, gap: int) -> Iterable[str]:
    if views is None:
        return
    if not views.depth:
        yield "no depth: recipes that back-project frames cannot use this"
    elif not 0.1 < views.depth[1] < 30:
        yield f"median depth is {views.depth[1]:g} m: is --data.depth_scale (metres per unit) right?"
    if not all(15 < angle < 140 for angle in views.field_of_view):
        yield f"fields of view are {views.field_of_view} degrees: do the intrinsics belong to {views.native}?"
    if not views.pairs:
        yield f"no two views about {gap} raw frames apart: choose another gap"
    elif views.overlap and views.overlap[1] < FEW_OVERLAP:
        yield (
            f"views {gap} raw frames apart share {views.overlap[1]:.0%} only: a smaller gap, or poses that are not "
            "camera-to-world with x right, y down, z forward"
        )


def _point_warnings(points: PointsReport | None, classes: int) -> Iterable[str]:
    if points is None:
        return
    for name, count in points.not_finite.items():
        yield f"{name}: {count} rows are not finite"
    if points.labels and set(points.labels) == {-1}:
        yield "every label is -1: nothing to learn from"
    if classes and points.labels and max(points.labels) >= classes:
        yield f"class id {max(points.labels)}, but {classes} class names"
    yield from (f"{camera} sees none of the points" for camera, count in points.seen.items() if not count)
    if max(points.extent) > (LIDAR_REACH if "intensity" in points.attributes else 200):
        yield f"the cloud is {max(points.extent):.0f} m long: is it in metres?"


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)


def _family(reader: object) -> str:
    """Its name in the registry."""
    from splatlearn.registry import readers

    known = (name for name in readers.families() if readers.family(name).cls is type(reader))
    return next(known, type(reader).__name__)


def _write(path: Path, report: CheckReport) -> None:
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
