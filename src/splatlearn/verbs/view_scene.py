"""What `view` shows: a scene as Gaussians, what it can be coloured by, and from where it is seen.

Legend: N Gaussians or points, V cameras, C channels. Lengths in the unit of the scene.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from splatlearn.data.scene import Rejected, Scene, Source
from splatlearn.engine.plots import colormap, pca_colors
from splatlearn.errors import BadData, ConfigError, MissingData, UserError, nearest
from splatlearn.ops.neighbors import knn
from splatlearn.splatting.files import read_raw
from splatlearn.splatting.files.folder import WIDTHS
from splatlearn.splatting.files.raw import NORMALS
from splatlearn.structures import SH_C0, Cameras, Gaussians, Points

BUILT_IN = ("rgb", "depth", "height")
FEATURES = "features:"
GAUSSIAN_SUFFIXES = (".ply", ".splat", ".spz")
UPS = {sign + axis: (index, -1.0 if sign else 1.0) for sign in ("", "-") for index, axis in enumerate("xyz")}
FIELD_OF_VIEW = 60.0
"""Degrees across the shorter side of a picture, where no camera says otherwise (our default)."""
_FRAMES, _FRAME_WIDTH = 12, 160
"""A recording without a cloud is shown by so many of its frames, at this width."""
_GREY = 0.75


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A scene to look at.

    Args:
        name: for people.
        gaussians: one item; the points of a cloud are round opaque Gaussians of about their spacing.
        arrays: name -> (N) or (N C) that the scene can be coloured by.
        cameras: V views; V may be 0.
        colored: whether it has colours of its own.
        is_cloud: whether the Gaussians stand for points.
        is_rig: whether the cameras are those of a vehicle, amidst its scan.
        up: (3) unit vector.
        notes: what was chosen, in sentences for people.
    """

    name: str
    gaussians: Gaussians
    arrays: Mapping[str, Tensor]
    cameras: Cameras
    colored: bool
    is_cloud: bool
    is_rig: bool = False
    up: Tensor
    notes: tuple[str, ...] = ()
    features: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """(3) least and greatest coordinates without the outermost 2 %, so that strays do not count."""
        low, high = np.quantile(self.gaussians.means.numpy(), [0.02, 0.98], axis=0)
        return torch.from_numpy(low).float(), torch.from_numpy(high).float()

    @property
    def middle(self) -> Tensor:
        """(3) the scene's middle."""
        return (self.bounds[0] + self.bounds[1]) / 2

    @property
    def radius(self) -> float:
        """Half the diagonal of the scene."""
        return max(float((self.bounds[1] - self.bounds[0]).norm()) / 2, 1e-6)

    @property
    def choices(self) -> list[str]:
        """Everything that the scene can be coloured by, each once, but for feature files not yet named."""
        own = [name for name in BUILT_IN if name != "rgb" or self.colored]
        return list(dict.fromkeys([*own, *self.arrays, *self.features]))

    def colors(self, choice: str, view: Cameras) -> Tensor:
        """(N 3) colours in [0, 1].

        Args:
            choice: one of `choices`, or `features:FILE`.
            view: one camera, from which depth is measured.

        Raises:
            UserError: no such array, or the feature file does not fit.
        """
        if choice not in self.choices:
            choice = self.check_choice(choice)
        if choice == "rgb":
            return (0.5 + SH_C0 * self.gaussians.sh[:, 0]).clamp(0, 1)
        if choice == "depth":
            pose = view.world_to_camera[0]
            return scalar_colors(self.gaussians.means @ pose[2, :3] + pose[2, 3], "turbo_r")
        if choice == "height":
            return scalar_colors(self.gaussians.means @ self.up)
        values = self.features[choice] if choice in self.features else self.arrays[choice]
        return pca_colors(values.float()) if choice in self.features else array_colors(choice, values)

    def check_choice(self, choice: str) -> str:
        """The choice itself, its feature file read.

        Raises:
            UserError: as `colors`.
        """
        if choice.startswith(FEATURES) and choice not in self.features:
            self.features[choice] = read_features(choice.removeprefix(FEATURES), len(self.gaussians), self.name)
        if choice not in self.choices:
            known = ", ".join([*self.choices, f"{FEATURES}FILE"])
            raise UserError(f"--color {choice}: {self.name} has no such array{nearest(choice, self.choices)} ({known})")
        return choice

    def recolored(self, choice: str, view: Cameras) -> Gaussians:
        """The Gaussians in other colours; `rgb` leaves them as they are, view-dependent bands too."""
        if choice == "rgb":
            return self.gaussians
        return replace(self.gaussians, sh=((self.colors(choice, view) - 0.5) / SH_C0)[:, None])


def load_shown(data: str, scene: str, up: str, options: Mapping[str, Any]) -> Shown:
    """The scene that `view` was asked for.

    Args:
        data: a Gaussian scene file or folder, or what `--data` takes.
        scene: name of one scene of a data source; empty takes the first.
        up: `z`, `-y`...
        options: options of the data's reader.

    Raises:
        UserError: nothing there, no such scene, or nothing in it that can be shown.
    """
    path = Path(data).expanduser()
    axis, sign = UPS[up]
    upward = sign * torch.eye(3)[axis]
    if _is_gaussian_scene(path):
        if scene or options:
            raise ConfigError(f"{data}: a Gaussian scene is one scene; --scene and --data.OPTION are for data sources")
        return _shown_gaussians(path, upward)
    source = Source(name=data, options=options)
    scenes = {found.name: found for found in source.scenes()}
    if scene and scene not in scenes:
        names = ", ".join(list(scenes)[:8]) + (f" and {len(scenes) - 8} more" if len(scenes) > 8 else "")
        raise UserError(f"--scene {scene}: {data} has no such scene{nearest(scene, scenes)} (it has: {names})")
    chosen = scenes[scene] if scene else next(iter(scenes.values()))
    others = () if scene or len(scenes) == 1 else (f"the first of {len(scenes)} scenes; --scene NAME shows another",)
    return _shown_scene(chosen, upward, others)


def _is_gaussian_scene(path: Path) -> bool:
    if path.is_dir():
        return all((path / f"{name}.npy").is_file() for name in WIDTHS)
    return path.suffix.lower() in GAUSSIAN_SUFFIXES


def _shown_gaussians(path: Path, up: Tensor) -> Shown:
    raw = read_raw(path)
    if not len(raw):
        raise BadData(f"{path}: no Gaussians, nothing to show")
    gaussians = raw.to_gaussians()
    own = {name: _native(values) for name, values in raw.properties.items() if name not in NORMALS}
    arrays = {"opacity": gaussians.opacities, "size": gaussians.scales.log10().mean(1), **gaussians.attributes, **own}
    return Shown(
        name=str(path), gaussians=gaussians, arrays=arrays, cameras=_no_cameras(), colored=True, is_cloud=False, up=up
    )


def _native(values: np.ndarray) -> Tensor:
    """A copy in this machine's byte order; files have either."""
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))


def _shown_scene(scene: Scene, up: Tensor, notes: tuple[str, ...]) -> Shown:
    cameras = scene.cameras
    try:
        points = scene.points()
    except MissingData:
        points, told = _recorded_points(scene)
        notes = (*notes, told)
    if not len(points):
        raise BadData(f"{scene.name}: no points, nothing to show")
    arrays = {name: value for name, value in points.attributes.items() if name != "color"}
    return Shown(
        name=scene.name,
        gaussians=points_as_gaussians(points),
        arrays=arrays,
        cameras=cameras if len(cameras) else _no_cameras(),
        colored="color" in points,
        is_cloud=True,
        is_rig=bool(scene.camera_names),
        up=up,
        notes=notes,
    )


def _recorded_points(scene: Scene) -> tuple[Points, str]:
    """Some frames of a recording as one cloud, and what was taken."""
    cameras = scene.cameras
    if not len(cameras):
        raise MissingData(f"{scene.name} has neither a point cloud nor posed frames; there is nothing to show")
    width = min(cameras.width, _FRAME_WIDTH)
    views = sorted({round(v) for v in np.linspace(0, len(cameras) - 1, min(len(cameras), _FRAMES))})
    size = width, max(1, round(width * cameras.height / cameras.width))
    clouds, problem = [], ""
    for view in views:
        try:
            clouds.append(scene.frames([view], size).to_points())
        except Rejected as error:
            problem = str(error)
    if not clouds:
        raise BadData(f"{scene.name}: no frame can be read: {problem}")
    points = Points.pack(clouds)
    told = f"no cloud on disk: {len(clouds)} of {len(cameras)} frames are shown"
    left_out = f"; {len(views) - len(clouds)} that cannot be read are left out: {problem}" if problem else ""
    return points.regroup((len(points),)), told + left_out


def _no_cameras() -> Cameras:
    return Cameras(world_to_camera=torch.zeros(0, 4, 4), intrinsics=torch.zeros(0, 3, 3), width=1, height=1)


def points_as_gaussians(points: Points) -> Gaussians:
    """Opaque round Gaussians; a standard deviation is 0.6 of the points' spacing, so that surfaces close.

    Args:
        points: one item; `color` (N 3), grey where it is absent or not finite.
    """
    grey = torch.full((len(points), 3), _GREY)
    color = points["color"].nan_to_num(_GREY, _GREY, _GREY) if "color" in points else grey
    return round_gaussians(points.xyz, color, 0.6 * spacing(points.xyz))


def round_gaussians(means: Tensor, color: Tensor, deviation: float) -> Gaussians:
    """Opaque Gaussians of one size.

    Args:
        means: (N 3).
        color: (N 3) in [0, 1].
        deviation: standard deviation.
    """
    return Gaussians(
        means=means,
        scales=torch.full_like(means, deviation),
        quaternions=means.new_tensor([1.0, 0, 0, 0]).repeat(len(means), 1),
        opacities=torch.ones_like(means[:, 0]),
        sh=((color - 0.5) / SH_C0)[:, None],
    )


def spacing(xyz: Tensor, sample: int = 2000) -> float:
    """Spacing of points on surfaces: the median distance to the fourth nearest, which is one cell of a grid, and about
    1 / sqrt(points per area) of random points too. A thousandth of the extent where all coincide.

    Args:
        xyz: (N 3).
        sample: points that are asked, evenly over the rows.
    """
    chosen = xyz[:: max(1, len(xyz) // sample)]
    distances, _ = knn(chosen, (len(chosen),), xyz, (len(xyz),), min(5, len(xyz)))
    apart = distances[:, -1][distances[:, -1] > 0]
    if len(apart):
        return float(apart.median())
    return max(1e-3 * float((xyz.amax(0) - xyz.amin(0)).norm()), 1e-3)


def array_colors(name: str, values: Tensor) -> Tensor:
    """(N 3) colours of an array: labels get a hue each, unit vectors their direction, numbers a ramp, the rest PCA."""
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.ndim == 1 and not flat.dtype.is_floating_point:
        return label_colors(flat.long())
    if flat.ndim == 1:
        return scalar_colors(flat)
    if name == "normal":
        return (normalize(flat.float(), dim=1) + 1) / 2
    return pca_colors(flat.flatten(1).float())


def label_colors(labels: Tensor) -> Tensor:
    """(N 3) a colour for each id, always the same; negative ids are grey.

    Args:
        labels: (N) int64.
    """
    from matplotlib.colors import hsv_to_rgb

    ids = labels.clamp_min(0).double().numpy()
    hue = ids * 0.61803398875 % 1
    value = 0.95 - 0.25 * (ids % 3) / 2
    colors = torch.from_numpy(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.72), value], 1))).float()
    return colors.where((labels >= 0)[:, None], torch.tensor(_GREY))


def scalar_colors(values: Tensor, ramp: str = "viridis") -> Tensor:
    """(N 3) colours from the 2nd to the 98th percentile; grey where not finite.

    Args:
        values: (N).
        ramp: matplotlib's name of a colour map.
    """
    values = values.double()
    finite = torch.isfinite(values)
    if not finite.any():
        return torch.full((len(values), 3), _GREY)
    low, high = np.quantile(values[finite].numpy(), [0.02, 0.98])
    share = (values.nan_to_num(low, high, low) - low) / max(high - low, 1e-12)
    return colormap(share[None], ramp)[:, 0].T.where(finite[:, None], torch.tensor(_GREY))


def read_features(file: str, rows: int, owner: str) -> Tensor:
    """(N C) features of a file as `encode` writes them.

    Args:
        file: .npy, .npz or .safetensors; of the latter two the array `features`.
        rows: N.
        owner: what the features are to belong to, for messages.

    Raises:
        UserError: no such file, another format, or other shapes.
    """
    path = Path(file).expanduser()
    where = f"--color {FEATURES}{file}"
    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": lambda path: np.load(path, allow_pickle=False),
        ".npz": _features_of_npz,
        ".safetensors": _features_of_safetensors,
    }
    if not path.is_file():
        raise UserError(f"{where}: no such file")
    if path.suffix not in readers:
        raise UserError(f"{where}: {', '.join(readers)} expected, as `splatlearn encode` writes them")
    try:
        array = np.asarray(readers[path.suffix](path))
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and safetensors have a dozen errors for a damaged file
        raise BadData(f"{where}: no readable array of features: {error}") from error
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.shape[1]:
        raise BadData(f"{where}: (N, C) numbers expected, got {array.dtype} of shape {array.shape}")
    if len(array) != rows:
        raise UserError(
            f"{where}: {len(array)} rows, but {owner} has {rows}; features need one row a point or Gaussian, in order"
        )
    return torch.from_numpy(array.astype(np.float32))


def _features_of_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        return _named_features(path, arrays)


def _features_of_safetensors(path: Path) -> Any:
    from safetensors.numpy import load_file

    return _named_features(path, load_file(path))


def _named_features(path: Path, arrays: Mapping[str, Any]) -> Any:
    if "features" not in arrays:
        raise BadData(f"--color {FEATURES}{path}: no array `features` (it holds: {', '.join(arrays) or 'nothing'})")
    return arrays["features"]


def choose_view(shown: Shown, size: tuple[int, int], camera: int | None) -> Cameras:
    """One camera of (width, height): view `camera` itself; else one that looks at the middle of the scene from the
    place of its first camera, or from a corner above it where there is none, or where the cameras are a rig's.

    Raises:
        ConfigError: there is no view `camera`.
    """
    views = len(shown.cameras)
    if camera is not None and not 0 <= camera < views:
        known = f"0 to {views - 1}" if views else "none: the default view needs no camera"
        raise ConfigError(f"--camera {camera}: {shown.name} has no such camera (known: {known})")
    if camera is not None:
        return _fit(shown.cameras.rows(torch.tensor([camera])), size)
    focal = min(size) / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
    eye = shown.cameras.centers[0].float() if views else _corner(shown)
    if shown.is_rig or (eye - shown.middle).norm() < 1e-3 * shown.radius:  # from amidst a scan nothing stands out
        eye = _corner(shown)
    return Cameras(
        world_to_camera=look_at(eye, shown.middle, shown.up)[None],
        intrinsics=torch.tensor([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]]).float()[None],
        width=size[0],
        height=size[1],
    )


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """(4 4) world_to_camera of a camera at `eye` that looks at `target`, all (3)."""
    forward = normalize((target - eye).double(), dim=0)
    side = torch.linalg.cross(forward, up.double())
    if side.norm() < 1e-4:  # straight up or down: any side will do
        side = torch.linalg.cross(forward, up.double().roll(1))
    right = normalize(side, dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    pose = pad(rotation, (0, 1, 0, 1))
    pose[:3, 3], pose[3, 3] = -rotation @ eye.double(), 1
    return pose.float()


def _corner(shown: Shown) -> Tensor:
    """(3) a place outside, above a corner, from which all is seen."""
    side = shown.up.roll(1)
    direction = normalize(side + torch.linalg.cross(side, shown.up) + 0.8 * shown.up, dim=0)
    return shown.middle + direction * 1.15 * shown.radius / np.sin(np.radians(FIELD_OF_VIEW) / 2)


def _fit(camera: Cameras, size: tuple[int, int]) -> Cameras:
    """The camera with square pixels kept: the whole of its picture lies inside the new one."""
    scale = min(size[0] / camera.width, size[1] / camera.height)
    intrinsics = camera.intrinsics.float() * torch.tensor([scale, scale, 1])[:, None]
    intrinsics[:, 0, 2] += (size[0] - scale * camera.width) / 2
    intrinsics[:, 1, 2] += (size[1] - scale * camera.height) / 2
    pose = camera.world_to_camera.float()
    return Cameras(world_to_camera=pose, intrinsics=intrinsics, width=size[0], height=size[1])
