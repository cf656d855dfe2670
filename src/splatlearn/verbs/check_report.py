"""What `check` found, as plain values and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_SHOWN_NAMES = 6


@dataclass(frozen=True, kw_only=True)
class ViewsReport:
    """Posed frames of a scene, every one decoded.

    Args:
        count: usable views.
        native: width and height on disk.
        field_of_view: horizontal and vertical, degrees.
        path: metres from the first camera to the last, along the views.
        depth_share: of the pixels have depth.
        depth: metres, 1st, 50th and 99th percentile; empty without depth.
        overlap: least and mean share of a view that its partner at the gap sees with the same depth; empty
            without depth or pairs.
        pairs: pairs at the gap.
    """

    count: int
    native: tuple[int, int]
    field_of_view: tuple[float, float]
    path: float
    depth_share: float
    depth: tuple[float, ...]
    overlap: tuple[float, ...]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class PointsReport:
    """The cloud of a scene.

    Args:
        count: points.
        extent: metres along x, y, z.
        attributes: on disk.
        missing: of color, normal, label, instance.
        not_finite: attribute -> rows with NaN or infinity.
        labels: class id -> points; -1 is ignored.
        boxes: oriented boxes.
        seen: of lidar scans, camera -> points that it sees.
    """

    count: int
    extent: tuple[float, float, float]
    attributes: tuple[str, ...]
    missing: tuple[str, ...]
    not_finite: Mapping[str, int]
    labels: Mapping[int, int]
    boxes: int
    seen: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class LabelsReport:
    """Classes of the pixels of images, every file decoded.

    Args:
        count: images whose labels can be used.
        pixels: class id -> pixels; -1 is ignored.
        never: names of the classes that no pixel is of.
        wrong: what is wrong with the labels of other images: reason -> names.
    """

    count: int
    pixels: Mapping[int, int]
    never: tuple[str, ...]
    wrong: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ImagesReport:
    """Images without cameras, every one decoded. Sizes are upright, by their number of pixels.

    Args:
        count: images that can be used.
        kinds: format and mode -> images.
        smallest: width and height.
        median: width and height.
        largest: width and height.
        least: pixels below which a side is small.
        small: images with a side that is.
        same: names of images whose files are the same byte for byte, by file.
        labels: of their pixels, None where the source has none.
    """

    count: int
    kinds: Mapping[str, int]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    least: int
    small: int
    same: tuple[tuple[str, ...], ...]
    labels: LabelsReport | None = None


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """One scene; `views` or `points` is None where the scene has none."""

    name: str
    split: str
    up: str
    metric: str
    notes: tuple[str, ...]
    views: ViewsReport | None
    points: PointsReport | None
    skipped: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check` found; `str()` of it is a table, `to_dict()` is what `--json` writes.

    Args:
        data: as given.
        reader: that read it.
        classes: names of the class ids.
        gap: raw frames between the views whose overlap was measured.
        scenes: by name; none of images without cameras, which `images` sums up.
        skipped: whole scenes and images that were left out, damaged ones too: reason -> names.
        images: those without cameras, None where there are none.
    """

    data: str
    reader: str
    classes: tuple[str, ...]
    gap: int
    scenes: tuple[SceneReport, ...]
    skipped: Mapping[str, tuple[str, ...]]
    images: ImagesReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into JSON."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        count = f"{len(self.scenes)} scene(s)" if self.images is None else f"{self.images.count} image(s)"
        head = f"{self.data}: reader {self.reader}, {count}"
        tables = [_images_table(self), *(make(self.scenes) for make in (_views_table, _points_table))]
        lines = [*_label_lines(self), *_wrong_lines(self), *_seen_lines(self), *_same_lines(self), *_remarks(self)]
        parts = [head, *(t for t in tables if t.row_count), *lines]
        return Group(*parts)

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        console = Console(file=StringIO(), width=118, highlight=False, markup=False)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def by_reason(skipped: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Reason -> names, the commonest first, of pairs of name and reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped:
        reasons.setdefault(reason, []).append(name)
    return {reason: tuple(names) for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))}


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _images_table(report: CheckReport) -> Table:
    images = report.images
    least = f"below {images.least if images else 0} px"
    table = _table("Images", "images", "left out", "smallest", "median", "largest", least, "copies", "kinds")
    if images is not None:
        table.add_row(
            f"{images.count:,}",
            f"{sum(map(len, report.skipped.values())):,}",
            *(f"{width}x{height}" for width, height in (images.smallest, images.median, images.largest)),
            f"{images.small:,}",
            f"{sum(len(names) - 1 for names in images.same):,}",
            ", ".join(f"{kind} {count:,}" for kind, count in images.kinds.items()),
        )
    return table


def _views_table(scenes: Iterable[SceneReport]) -> Table:
    names = ("scene", "views", "left out", "size", "angles", "path m", "depth m, 1/50/99 %", "filled")
    table = _table("Posed frames", *names, "overlap, least/mean", "up", "metric")
    for scene in scenes:
        if (v := scene.views) is not None:
            table.add_row(
                scene.name,
                str(v.count),
                str(sum(map(len, scene.skipped.values()))),
                f"{v.native[0]}x{v.native[1]}",
                f"{v.field_of_view[0]:.0f}x{v.field_of_view[1]:.0f}",
                f"{v.path:g}",
                "/".join(f"{d:.2f}" for d in v.depth) or "none",
                f"{v.depth_share:.0%}",
                "/".join(f"{o:.0%}" for o in v.overlap) or "none",
                scene.up,
                scene.metric,
            )
    return table


def _points_table(scenes: Iterable[SceneReport]) -> Table:
    table = _table("Clouds", "scene", "split", "points", "extent m", "has", "lacks", "classes", "boxes", "up", "metric")
    for scene in scenes:
        if (p := scene.points) is not None:
            table.add_row(
                scene.name,
                scene.split,
                f"{p.count:,}",
                " x ".join(f"{e:.1f}" for e in p.extent),
                " ".join(p.attributes),
                " ".join(p.missing),
                str(len([label for label in p.labels if label >= 0])),
                str(p.boxes),
                scene.up,
                scene.metric,
            )
    return table


def _label_lines(report: CheckReport) -> list[str]:
    of_images = report.images.labels if report.images else None
    totals: Counter[int] = Counter(of_images.pixels if of_images else {})
    for scene in report.scenes:
        totals.update(scene.points.labels if scene.points else {})
    every = sum(totals.values())
    if not every:
        return []
    names = {-1: "ignored", **dict(enumerate(report.classes))}
    shares = [f"{names.get(label, label)} {totals[label] / every:.1%}" for label in sorted(totals)]
    return ["", "Labels: " + ", ".join(shares)]


def _wrong_lines(report: CheckReport) -> list[str]:
    """What labels of images lack."""
    labels = report.images.labels if report.images else None
    if labels is None:
        return []
    never = [f"classes that no pixel is of: {_listed(labels.never)}"] if labels.never else []
    return [*never, *(f"labels that cannot be used, {_listed(names)}: {why}" for why, names in labels.wrong.items())]


def _seen_lines(report: CheckReport) -> list[str]:
    """Points that each camera of a lidar sees: least, median and most of the scans."""
    found: dict[str, list[int]] = {}
    for scene in report.scenes:
        for camera, count in (scene.points.seen if scene.points else {}).items():
            found.setdefault(camera, []).append(count)
    if not found:
        return []
    rows = [f"{camera} {min(n):,}/{int(median(n)):,}/{max(n):,} in {len(n)}" for camera, n in found.items()]
    return ["", "Points seen, least/median/most, in so many scans: " + ", ".join(rows)]


def _same_lines(report: CheckReport) -> list[str]:
    """The first groups of images that are the same."""
    same = report.images.same if report.images else ()
    more = [f"and {len(same) - _SHOWN_NAMES} more that are there several times"] if len(same) > _SHOWN_NAMES else []
    return ["", *(f"the same: {_listed(names)}" for names in same[:_SHOWN_NAMES]), *more] if same else []


def _remarks(report: CheckReport) -> list[str]:
    lines: list[str] = []
    for scene in report.scenes:
        lines += [f"{scene.name}: {note}" for note in scene.notes]
        lines += [f"{scene.name}: warning: {warning}" for warning in scene.warnings]
        lines += [f"{scene.name}: left out {_listed(names)}: {why}" for why, names in scene.skipped.items()]
    what = "scene" if report.images is None else "image"
    lines += [f"{what} left out ({_listed(names)}): {why}" for why, names in report.skipped.items()]
    return ["", *lines] if lines else []


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN_NAMES])}{more})"
