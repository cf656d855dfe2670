"""`encode` for points: one row per input point, of clouds on disk or of arrays. Legend: N points, C channels."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from splatlearn.verbs import warn_idle
from splatlearn.verbs.encode import Job, Levels, Plan, flat_name

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from splatlearn.data.scene import Scene, Source
    from splatlearn.encoders.base import PointEncoder
    from splatlearn.structures import Points


def plan_points(
    encoder: "PointEncoder", source: "Source", levels: Levels, size: tuple[int, int] | None, every: int
) -> Plan:
    """A file a cloud, or a file a frame of a recording without one.

    Raises:
        UserError: nothing can be read, or the data lack a channel that the encoder takes.
    """
    from splatlearn.errors import BadData
    from splatlearn.tasks.base import chosen_levels
    from splatlearn.tasks.encoders import RawInputs, resolve_encoder
    from splatlearn.tasks.points import check_inputs

    data = f"--data {source.name}"
    parts = [_survey(scene, size, every) for scene in source.scenes()]
    usable = [(part.clouds[0], part.channels) for part in parts if part.channels is not None]
    if not usable:
        raise BadData(f"{data}: nothing can be read: {'; '.join(part.problem for part in parts[:4])}")
    if isinstance(encoder, RawInputs):  # what it takes is what there is
        encoder = resolve_encoder(encoder.name, available=usable[0][1].attributes).encoder
    for cloud, channels in usable:
        check_inputs(encoder, channels, f"{data} ({cloud.name})", cloud.scene.up)
    clouds = [cloud for part in parts for cloud in part.clouds]
    if all(cloud.view < 0 for cloud in clouds):
        warn_idle({"--size": size is not None, "--every": every != 1}, f"{data} has clouds, and no frames")
    width = sum(encoder.channels[level] for level in chosen_levels(encoder, levels))
    jobs = [Job(cloud.name, partial(_arrays, encoder, cloud, levels)) for cloud in clouds]
    return Plan(jobs, width, {"inputs": list(encoder.config.inputs)}, "rows follow the input points")


def _arrays(encoder: "PointEncoder", cloud: "_Cloud", levels: Levels) -> dict[str, "np.ndarray"]:
    points = cloud.points()
    arrays = {"features": encode_points(encoder, points, levels).numpy(), "xyz": points.xyz.cpu().numpy()}
    return arrays | ({"pixel": points["pixel"].cpu().numpy()} if "pixel" in points else {})


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
class _Cloud:
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

    clouds: list[_Cloud]
    channels: "Points | None" = None
    problem: str = ""


def _survey(scene: "Scene", size: tuple[int, int] | None, every: int) -> _Part:
    from splatlearn.data.scene import Rejected
    from splatlearn.errors import MissingData

    flat, problem = flat_name(scene), ""
    try:
        return _Part([_Cloud(flat, scene)], _without_points(scene.points()))
    except MissingData:
        clouds = _frame_clouds(scene, flat, size, every)
    for cloud in clouds:
        try:
            return _Part(clouds, _without_points(cloud.points()))
        except Rejected as error:
            problem = str(error)
    return _Part(clouds, problem=problem)


def _frame_clouds(scene: "Scene", name: str, size: tuple[int, int] | None, every: int) -> list[_Cloud]:
    from splatlearn.errors import MissingData

    cameras = scene.cameras
    if not len(cameras):
        raise MissingData(f"{scene.name} has neither a point cloud nor posed frames")
    size = size or (cameras.width, cameras.height)
    views = range(0, len(cameras), every)
    return [_Cloud(f"{name}-{int(cameras['frame'][view]):06d}", scene, view, size) for view in views]


def _without_points(points: "Points") -> "Points":
    import torch

    return points.rows(torch.zeros(0, dtype=torch.int64))


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
