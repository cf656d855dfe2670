"""Where the Gaussians of a fit begin: on measured depth, on the scene's points, or anywhere that the cameras look.

Legend: V views, N points, H W pixels. Metres, world.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from splatlearn.errors import MissingData, UserError
from splatlearn.splatting.optimize import from_points
from splatlearn.structures import Cameras, Frames, Gaussians, Points
from splatlearn.tasks.fit_views import FitData

Way = Literal["auto", "depth", "points", "random"]
OPACITY = {"depth": 0.6, "points": 0.5, "random": 0.1}
"""Of the first Gaussians: what is measured may be dense at once (our default)."""
GUESSED_OPACITY = 0.1
"""Of a Gaussian in a pixel without depth, which borrows the depth of the nearest pixel that has some (our default)."""
DETAIL = 0.7
"""Share of the pixels that are drawn in proportion to the contrast around them, the others alike (our default)."""
SPREAD = 3.0
"""Random depths lie between the distance to where the cameras look, divided and multiplied by this (our default)."""


class Start(NamedTuple):
    """What a fit begins with.

    Fields:
        gaussians: one item.
        unit: metres, how far the cameras are from what they see (the median).
        way: how the places were found.
    """

    gaussians: Gaussians
    unit: float
    way: str


def start(data: FitData, way: Way, most: int, rng: np.random.Generator, *, at_random: int) -> Start:
    """The first Gaussians, from training views alone.

    Args:
        data: the views.
        way: `depth` back-projects pixels; `points` takes the scene's cloud; `random` puts pixels at random depths;
            `auto` is the first of them that the scene allows.
        most: Gaussians at most.
        rng: draws pixels and points.
        at_random: at most so many, too, where places are random.

    Raises:
        UserError: the scene lacks what was asked for.
    """
    frames = data.photographs.try_all(data.trained)
    has_depth = all("depth" in frame for frame in frames.values()) and any(
        bool(frame["depth"].any()) for frame in frames.values()
    )
    name = data.photographs.scene.name
    if way == "depth" and not has_depth:
        raise UserError(f"--fit.init depth: {name} has no measured depth; take points or random")
    cameras = data.photographs.cameras.rows(torch.tensor(list(frames)))
    chosen, points = way, None
    if way == "points" or (way == "auto" and not has_depth):
        points = _cloud(data, most, rng)
        if way == "points" and points is None:
            raise UserError(f"--fit.init points: {name} has no coloured points; take depth or random")
        chosen = "random" if points is None else "points"
    elif way == "auto":
        chosen = "depth"
    if points is None:
        number = most if chosen == "depth" else min(most, at_random)
        points = _from_pixels(list(frames.values()), cameras, chosen == "depth", number, rng)
    gaussians = from_points(points, opacity=OPACITY[chosen])
    return Start(gaussians, _distance(cameras, points.xyz, rng), chosen)


def _cloud(data: FitData, most: int, rng: np.random.Generator) -> Points | None:
    """The scene's coloured points, thinned at random; none where there are none."""
    try:
        points = data.photographs.scene.points()
    except MissingData:
        return None
    if "color" not in points or len(points) < 2:
        return None
    rows = np.sort(rng.permutation(len(points))[:most])
    return points.rows(torch.from_numpy(rows))


def _from_pixels(frames: list[Frames], cameras: Cameras, measured: bool, most: int, rng: np.random.Generator) -> Points:
    """Pixels drawn alike from all views, at measured depth or at random ones."""
    distances = None if measured else _looking_distances(cameras)
    parts = []
    for number, (frame, share) in enumerate(zip(frames, _shares(most, len(frames)))):
        pixels = torch.from_numpy(_draw_pixels(frame.images[0], share, rng))
        if distances is None:
            depth, known = _filled(frame["depth"][0])
            depth, opacity = (
                depth.flatten()[pixels],
                torch.where(known.flatten()[pixels], OPACITY["depth"], GUESSED_OPACITY),
            )
        else:
            spread = torch.from_numpy(rng.uniform(-1, 1, len(pixels)).astype(np.float32))
            depth, opacity = distances[number] * SPREAD**spread, torch.full((len(pixels),), OPACITY["random"])
        if not bool((depth > 0).any()):
            continue
        rays = frame.cameras.directions()[0].flatten(0, 1)[pixels] * depth[:, None]
        pose = frame.cameras.camera_to_world[0]
        parts.append(
            Points(
                xyz=rays @ pose[:3, :3].T + pose[:3, 3],
                attributes={"color": frame.images[0].flatten(1).T[pixels], "opacity": opacity[:, None]},
            )
        )
    points = Points.pack(parts)
    return points.regroup((len(points),))


def _draw_pixels(image: Tensor, number: int, rng: np.random.Generator) -> np.ndarray:
    """Pixels of a (3 H W) photograph, each at most once: edges and texture need more Gaussians than bare walls."""
    slopes = [np.abs(slope).sum(0) for slope in np.gradient(image.numpy(), axis=(1, 2))]
    contrast = np.hypot(*slopes).ravel() + 1e-6
    chances = DETAIL * contrast / contrast.sum() + (1 - DETAIL) / len(contrast)
    return rng.choice(len(contrast), size=min(number, len(contrast)), replace=False, p=chances)


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def _filled(depth: Tensor) -> tuple[Tensor, Tensor]:
    """(H W) depth with that of the nearest pixel where there is none, and (H W) whether it was measured."""
    from scipy.ndimage import distance_transform_edt

    known = depth > 0
    if not bool(known.any()):
        return depth, known
    nearest = distance_transform_edt(~known.numpy(), return_distances=False, return_indices=True)
    rows, columns = torch.from_numpy(np.asarray(nearest)).long()
    return depth[rows, columns], known


def _looking_distances(cameras: Cameras) -> Tensor:
    """(V) metres from each camera to the point that is nearest to all optical axes.

    Cameras that look apart have none before them; theirs is the median of the others, or else the extent of the path.
    """
    poses = cameras.camera_to_world.double()
    centers, axes = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
    total = across.sum(0) + 1e-6 * len(poses) * torch.eye(3, dtype=torch.float64)
    focus = torch.linalg.solve(total, (across @ centers[:, :, None]).sum(0) + 1e-6 * centers.sum(0)[:, None])[:, 0]
    ahead = ((focus - centers) * axes).sum(1)
    extent = float((centers - centers.mean(0)).norm(dim=1).max()) or 1.0
    good = ahead > 0.05 * extent
    usual = ahead[good].median() if bool(good.any()) else torch.tensor(extent, dtype=torch.float64)
    return torch.where(good, ahead, usual).float()


def _distance(cameras: Cameras, xyz: Tensor, rng: np.random.Generator) -> float:
    """Median metres between a camera and a point, over random pairs."""
    pairs = 4096
    centers = cameras.centers[torch.from_numpy(rng.integers(len(cameras), size=pairs))]
    return max(float((centers - xyz[torch.from_numpy(rng.integers(len(xyz), size=pairs))]).norm(dim=1).median()), 1e-6)
