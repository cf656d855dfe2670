"""Pictures for reports: feature colours, error and depth maps, epipolar lines, curves and bars.

Legend: N points, C channels, H W pixels, V views. Pictures are (3 H W) RGB in [0, 1]; charts are PNG bytes.
matplotlib is imported when a chart or a colour map is first needed, and never opens a window.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatlearn.structures import Frames, Points

INK, PALE = "#1f2933", "#d7dce2"
PALETTE = ("#2563eb", "#d97706", "#059669", "#c026d3", "#64748b", "#dc2626", "#0891b2")
NEAR, FAR = 0.2, 10.0
"""Metres: the part of a ray that an epipolar line shows (GS3's depth range as we read it)."""


def to_uint8(picture: Tensor) -> np.ndarray:
    """(H W 3) uint8 of a (3 H W) picture; what is not finite is black."""
    values = picture.detach().float().cpu().nan_to_num(0, 0, 0).clamp(0, 1)
    return (values.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def encode_png(picture: Tensor) -> bytes:
    """PNG file of a (3 H W) picture."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def pca_colors(features: Tensor, clip: float = 0.01) -> Tensor:
    """Three principal components of features as colours.

    Args:
        features: (N C).
        clip: share of the values cut off at both ends of each component.

    Returns:
        (N 3) in [0, 1], without gradient; the signs are fixed, so that equal features give equal colours; grey
        where all are equal.
    """
    values = features.detach().double().nan_to_num(0, 0, 0)
    values = values - values.mean(0, keepdim=True) if len(values) else values
    covariance = values.T @ values
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :3]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    components = torch.nn.functional.pad(values @ (axes * signs), (0, max(0, 3 - axes.shape[1])))
    return torch.stack([_stretch(column, clip) for column in components.T], 1).to(features.dtype)


def colormap(values: Tensor, name: str) -> Tensor:
    """(3 H W) colours of (H W) values in [0, 1] by matplotlib's map `name`."""
    from matplotlib import colormaps

    colors = colormaps[name](values.detach().float().cpu().clamp(0, 1).numpy())[..., :3]
    return torch.from_numpy(colors).permute(2, 0, 1).float()


def error_map(picture: Tensor, target: Tensor, full: float = 0.3) -> Tensor:
    """Mean absolute difference over the channels, black to yellow.

    Args:
        picture: (3 H W).
        target: (3 H W).
        full: difference that is drawn brightest.
    """
    return colormap((picture - target).abs().mean(0) / full, "inferno")


def depth_colors(depth: Tensor) -> Tensor:
    """Depth from near (red) to far (blue), stretched between its 2nd and 98th percentile; none is light grey.

    Args:
        depth: (H W) metres, 0 = none.
    """
    depth = depth.detach().float().cpu()
    some = depth > 0
    if not some.any():
        return torch.full((3, *depth.shape), 0.85)
    low, high = np.quantile(depth[some].numpy(), [0.02, 0.98])
    colors = colormap((depth - low) / max(high - low, 1e-6), "turbo_r")
    return torch.where(some, colors, torch.tensor(0.85))


def epipolar_pictures(frames: Frames, pairs: Any, points: int = 7, scale: int = 3) -> dict[str, Tensor]:
    """Some pixels of a view, and the lines in another view on which they must lie; crosses mark where they do.

    Args:
        frames: V views with `depth` (V H W) metres.
        pairs: has `view` and `other`, (P) rows of `frames`; the first pair is drawn.
        points: how many pixels to draw.
        scale: pixels drawn per pixel.
    """
    if not len(pairs.view):
        return {}
    first, other = int(pairs.view[0]), int(pairs.other[0])
    chosen = _spread_pixels(frames["depth"][first].cpu(), points)
    canvases = [_Canvas(frames.images[view], scale) for view in (first, other)]
    for number, (y, x) in enumerate(chosen):
        color = PALETTE[number % len(PALETTE)]
        canvases[0].dot((x + 0.5, y + 0.5), color)
        line, place = _epipolar_line(frames, first, other, y, x)
        canvases[1].line(line, color)
        canvases[1].cross(place, color)
    titles = f"epipolar lines/pixels of view {first + 1}", f"epipolar lines/their lines in view {other + 1}"
    return dict(zip(titles, (canvas.picture() for canvas in canvases)))


def points_on_image(image: Tensor, pixel: Tensor, colors: Tensor, radius: int = 1) -> Tensor:
    """The image with squares of 2 radius + 1 pixels where points fall, later ones on top.

    Args:
        image: (3 H W).
        pixel: (N) int64, y * W + x.
        colors: (N 3).
        radius: pixels.
    """
    height, width = image.shape[1:]
    picture, pixel, colors = image.detach().float().cpu().clone(), pixel.cpu(), colors.detach().float().cpu()
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            y, x = (pixel // width + down).clamp(0, height - 1), (pixel % width + right).clamp(0, width - 1)
            picture[:, y, x] = colors.T
    return picture


def value_colors(values: Tensor) -> Tensor:
    """(N 3) colours from small (red) to large (blue), stretched between the 2nd and 98th percentile."""
    return colormap(1 - _stretch(values.detach().float().cpu(), 0.02)[None], "turbo")[:, 0].T


def scan_picture(points: Points, full: float = 0.0, reach: float = 30.0, size: int = 480) -> Tensor:
    """A lidar scan from above, x to the right, and below it the strip |y| < 4 m from the side, 14 m high.

    Args:
        points: in the lidar's frame, with `color`, or `intensity`, by which they are coloured; those of label -1 are
            red.
        full: intensity that is drawn brightest; 0: the 97th percentile of this scan.
        reach: metres shown in each direction.
        size: W, pixels.
    """
    xyz, scale, classless = points.xyz.cpu(), size / (2 * reach), torch.zeros(len(points), dtype=torch.bool)
    color = points["color"].float().cpu() if "color" in points else _intensity_colors(points["intensity"].cpu(), full)
    if "label" in points:
        classless = points["label"].cpu() < 0
        color[classless] = color.new_tensor([0.86, 0.15, 0.15])
    strip = round(14 * scale)
    picture = torch.ones(size + strip + 4, size, 3)
    picture[size : size + 4] = 0.85
    column = ((xyz[:, 0] + reach) * scale).floor().long()
    above, beside = (((high - xyz[:, axis]) * scale).floor().long() for axis, high in ((1, reach), (2, 9.0)))
    within = (column >= 0) & (column < size)
    seen_above = within & (above >= 0) & (above < size)
    seen_beside = within & (xyz[:, 1].abs() < 4) & (beside >= 0) & (beside < strip)
    for last in (False, True):  # what has no class lies on top
        for line, seen in ((above, seen_above), (beside + size + 4, seen_beside)):
            rows = seen & (classless == last)
            picture[line[rows], column[rows]] = color[rows]
    return picture.permute(2, 0, 1)


def _intensity_colors(intensity: Tensor, full: float) -> Tensor:
    full = full or (float(np.quantile(intensity.numpy(), 0.97)) if len(intensity) else 1.0) or 1.0
    return colormap(intensity[None] / full, "viridis")[:, 0].T


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    log: bool = True,
    smooth: int = 0,
) -> bytes:
    """Line chart.

    Args:
        series: name -> (x, y).
        xlabel: under the axis.
        ylabel: beside it, with its unit.
        log: logarithmic y axis, where every value is positive.
        smooth: steps of a running mean that is drawn over the pale raw values; 0: an auto choice.
    """
    figure, axes = _figure()
    positive = all(value > 0 for _, y in series.values() for value in y if np.isfinite(value))
    for number, (name, (x, y)) in enumerate(series.items()):
        color, window = PALETTE[number % len(PALETTE)], smooth or max(1, len(y) // 40)
        if window > 1:
            axes.plot(x, y, color=color, alpha=0.22, linewidth=0.8)
        axes.plot(x, running_mean(y, window), color=color, label=name, linewidth=1.6)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log and positive else "linear")
    axes.grid(True, which="both", color=PALE, linewidth=0.5)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _png(figure)


def bars(values: Mapping[str, float], xlabel: str, highlight: Iterable[str] = ()) -> bytes:
    """Horizontal bar chart with the value at the end of each bar, in the order given.

    Args:
        values: name -> length.
        xlabel: what the lengths are, with their unit.
        highlight: names drawn in colour; the others are grey.
    """
    figure, axes = _figure(height=0.6 + 0.28 * len(values))
    marked = set(highlight)
    colors = [PALETTE[0] if name in marked else "#94a3b8" for name in values]
    drawn = axes.barh(list(values), list(values.values()), color=colors, height=0.66)
    axes.bar_label(drawn, fmt="%.2f", padding=4, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(xlabel)
    axes.tick_params(axis="y", length=0)
    return _png(figure)


def shares(values: Mapping[str, float]) -> bytes:
    """One stacked bar of parts of a whole, largest parts named with their share."""
    figure, axes = _figure(height=1.4)
    total, start = sum(values.values()) or 1.0, 0.0
    for number, (name, value) in enumerate(values.items()):
        color, width = PALETTE[number % len(PALETTE)], 100 * value / total
        axes.barh(0, width, left=start, color=color, label=f"{name} {width:.1f} %", height=0.8)
        start += width
    axes.set(xlim=(0, 100), yticks=[], xlabel="share of a step, %")
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 0.95))
    axes.spines["left"].set_visible(False)
    return _png(figure)


def heat_map(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """A square of correlations between names with their numbers, blue to red from -1 to 1; a dash is undefined.

    Args:
        matrix: (T T) in [-1, 1] or NaN.
        names: T of them.
    """
    figure, axes = _figure(height=0.9 + 0.42 * len(names))
    axes.imshow(np.nan_to_num(matrix), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        text, color = ("-", INK) if np.isnan(value) else (f"{value:.2f}", "white" if abs(value) > 0.6 else INK)
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    axes.set(xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names, rotation=20, ha="right")
    axes.set_yticklabels(names)
    axes.tick_params(length=0)
    return _png(figure)


def variance_curves(curves: Mapping[str, Tensor], dashed: Iterable[str] = (), plain: Iterable[str] = ()) -> bytes:
    """Share of the variance that the first components explain, over their number on a logarithmic axis.

    Args:
        curves: name -> (C) shares that rise to 1.
        dashed: names that are drawn dashed, in the colour of the one before.
        plain: names that are drawn in grey.
    """
    figure, axes = _figure(height=3.2)
    number, broken, grey = -1, set(dashed), set(plain)
    for name, curve in curves.items():
        number += name not in broken and name not in grey
        color = "#475569" if name in grey else PALETTE[number % len(PALETTE)]
        style = "--" if name in broken else "-"
        shares = curve.detach().cpu().numpy()
        axes.plot(range(1, len(shares) + 1), shares, style, color=color, label=name, linewidth=1.6)
    axes.axhline(0.9, color="#94a3b8", linewidth=0.8, linestyle=":")
    axes.set(xlabel="principal components", ylabel="explained variance", xscale="log", ylim=(0, 1.02))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(True, which="both", color=PALE, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def decode_png(png: bytes) -> Tensor:
    """(3 H W) picture of a PNG file, a chart for instance."""
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1).float() / 255


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last `window` values at every place (fewer at the start); what is not finite is left out."""
    array = np.asarray(values, dtype=np.float64)
    good = np.isfinite(array)
    sums = np.cumsum(np.where(good, array, 0.0))
    counts = np.cumsum(good)
    sums[window:] = sums[window:] - sums[:-window].copy()
    counts[window:] = counts[window:] - counts[:-window].copy()
    return np.divide(sums, counts, out=np.full(len(array), np.nan), where=counts > 0)


class _Canvas:
    """An enlarged photograph to draw on, in pixels of the original."""

    def __init__(self, image: Tensor, scale: int) -> None:
        from PIL import Image, ImageDraw

        height, width = image.shape[1:]
        self.scale, self.size = scale, (width, height)
        self.image = Image.fromarray(to_uint8(image)).resize((width * scale, height * scale))
        self.draw = ImageDraw.Draw(self.image)

    def dot(self, place: tuple[float, float], color: str, radius: float = 4.5) -> None:
        x, y = (value * self.scale for value in place)
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse(box, fill=color, outline="white", width=1)

    def cross(self, place: tuple[float, float], color: str, radius: float = 5) -> None:
        x, y = (value * self.scale for value in place)
        for width, ink in ((4, "white"), (2, color)):
            self.draw.line((x - radius, y - radius, x + radius, y + radius), fill=ink, width=width)
            self.draw.line((x - radius, y + radius, x + radius, y - radius), fill=ink, width=width)

    def line(self, places: Sequence[tuple[float, float]], color: str) -> None:
        self.draw.line([(x * self.scale, y * self.scale) for x, y in places], fill=color, width=2)

    def picture(self) -> Tensor:
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1).float() / 255


def _spread_pixels(depth: Tensor, count: int) -> list[tuple[int, int]]:
    """Up to `count` pixels with depth near evenly spread places, (y, x), left to right."""
    height, width = depth.shape
    found = torch.nonzero(depth > 0)
    if not len(found):
        return []
    columns = (torch.arange(count) + 0.5) / count * width
    rows = (0.25 + 0.5 * (torch.arange(count) * 0.618 % 1)) * height
    wanted = torch.stack([rows, columns], 1)
    nearest = torch.cdist(wanted, found.float()).argmin(1)
    return [(int(y), int(x)) for y, x in found[nearest]]


def _epipolar_line(
    frames: Frames, first: int, other: int, y: int, x: int
) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """The ray of pixel (y, x) between NEAR and FAR as it is seen by `other`, and the place of its point there."""
    cameras, depth = frames.cameras, frames["depth"][first, y, x]
    distances = torch.logspace(np.log10(NEAR), np.log10(FAR), 64).to(depth)
    distances = torch.cat([distances, depth[None]])
    pose = cameras.camera_to_world[first]
    ray = torch.linalg.inv(cameras.intrinsics[first]) @ distances.new_tensor([x + 0.5, y + 0.5, 1.0])
    world = (distances[:, None] * ray) @ pose[:3, :3].T + pose[:3, 3]
    pixels, z = cameras.project(world, torch.full((len(world),), other, device=world.device))
    seen = [(float(px), float(py)) for (px, py), near in zip(pixels[:-1], z[:-1]) if near > 0.05]
    return seen, (float(pixels[-1, 0]), float(pixels[-1, 1]))


def _stretch(values: Tensor, clip: float) -> Tensor:
    if not len(values):
        return values
    low, high = np.quantile(values.cpu().numpy(), [clip, 1 - clip])
    if high - low < 1e-12:
        return torch.full_like(values, 0.5)
    return ((values - low) / (high - low)).clamp(0, 1)


def _figure(width: float = 5.4, height: float = 2.6) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#94a3b8")
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180, facecolor="white")
    return buffer.getvalue()
