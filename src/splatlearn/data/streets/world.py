"""A street at one moment: mesh, light, objects and boxes.

Legend: V vertices, F triangles, N hits, M objects. Map: metres, +z up.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.light import Caster, Hits, Single
from splatlearn.data.procedural.mesh import Array, Mesh, ball, join, length, yaw_matrix
from splatlearn.data.procedural.shading import shade
from splatlearn.data.procedural.textures import SIDE, Sampler
from splatlearn.data.streets.classes import BOXED, IGNORED, LABELS, SKY
from splatlearn.data.streets.layout import Street, Thing

DOME = 300.0
"""Radius of the sky, metres: beyond the reach of any lidar."""
SHADOW = 60.0
"""Metres within which things cast shadows."""


@dataclass(frozen=True)
class ObjectBoxes:
    """Upright boxes of some objects.

    Args:
        centers: (M 3) map.
        sizes: (M 3) along the object's own axes.
        yaws: (M) radians about +z.
        labels: (M) class ids.
        instances: (M) object of each.
    """

    centers: Array
    sizes: Array
    yaws: Array
    labels: NDArray[np.int64]
    instances: NDArray[np.int64]


@dataclass(frozen=True)
class Weather:
    """Where light comes from.

    Args:
        toward: (3 3) unit vectors to the sun, and to two parts of the sky.
        power: (3 3) linear RGB from each.
        ambient: (3) linear RGB from everywhere.
    """

    toward: Array
    power: Array
    ambient: Array


def draw_weather(rng: np.random.Generator) -> Weather:
    """Sunny to overcast."""
    azimuth, height, clear = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.2), rng.uniform(0.1, 1.0)
    angles = azimuth + np.array([0, 2.2, 4.1])
    up = np.array([height, 1.0, 0.7])
    toward = np.stack([np.cos(angles) * np.cos(up), np.sin(angles) * np.cos(up), np.sin(up)], 1)
    warm, blue = np.array([1.0, 0.93, 0.82]), np.array([0.85, 0.93, 1.05])
    power = np.stack([1.6 * clear * warm, 0.45 * blue, 0.35 * blue])
    return Weather(toward, power, 0.3 * blue)


class Casters(Caster):
    """Embree over what stands still and over what moves, as over one mesh of both.

    Args:
        still: casts at the first triangles.
        moving: casts at the others.
        first_moving: number of triangles that stand still.
    """

    def __init__(self, still: Caster, moving: Caster, first_moving: int) -> None:
        self._still, self._moving, self._first_moving = still, moving, first_moving

    def first(self, origins: NDArray[Any], directions: NDArray[Any]) -> Hits:
        """The nearest hit of each ray; origins and directions (N 3)."""
        far, near = self._still.first(origins, directions), self._moving.first(origins, directions)
        moved = (near.face >= 0) & (near.distance < far.distance)
        return Hits(
            np.where(moved, near.distance, far.distance),
            np.where(moved, near.face + np.int32(self._first_moving), far.face),
            np.where(moved, near.u, far.u),
            np.where(moved, near.v, far.v),
        )

    def blocked(self, origins: NDArray[Any], directions: NDArray[Any], reach: float = 1.0) -> NDArray[np.bool_]:
        """(N) whether anything lies between an origin and origin + reach * direction."""
        found = self._still.blocked(origins, directions, reach)
        rest = np.flatnonzero(~found)
        found[rest] = self._moving.blocked(origins[rest], directions[rest], reach)
        return found


class Stage:
    """A street without what moves, made once for a drive.

    Args:
        street: laid out.
        weather: its light.
    """

    def __init__(self, street: Street, weather: Weather) -> None:
        self.street, self.weather = street, weather
        self.mesh = _unmoving(street)
        self.caster = Caster(self.mesh)
        self.sampler = street.finishes.materials.sampler()
        self.corners = Corners(self.mesh)
        self.labels = instance_labels(street)


class Corners:
    """What shading asks of the corners of triangles.

    Attributes:
        values: (F 3 5) texture coordinates, and light of 1.
        normals: (F 3 3) float32, for smooth shading.
        face_normals: (F 3) unit.
    """

    def __init__(self, mesh: Mesh) -> None:
        corners = mesh.corners
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.face_normals = normals / length(normals)
        lit = np.ones((len(mesh.vertices), 3))
        self.values: Single = np.concatenate([mesh.uv, lit], 1).astype(np.float32)[mesh.faces]
        self.normals: Single = mesh.normals.astype(np.float32)[mesh.faces]


class World:
    """A street as it stands at one moment.

    Args:
        stage: what does not move.
        time: seconds.
        exposure: factor on light, from the first pictures of a drive.
    """

    def __init__(self, stage: Stage, time: float, exposure: float = 1.0) -> None:
        street = stage.street
        first = len(street.surfaces) + 1
        moving = join([_placed(street, thing, time).owned_by(first + row) for row, thing in street.moving(time)])
        own = Corners(moving)
        self.mesh: Mesh = join([stage.mesh, moving])
        self.caster: Caster = Casters(stage.caster, Caster(moving), len(stage.mesh.faces))
        self.sampler: Sampler = stage.sampler
        self.weather = stage.weather
        self.exposure = exposure
        self.labels = stage.labels
        self.face_normals: Array = np.concatenate([stage.corners.face_normals, own.face_normals])
        self._values = np.concatenate([stage.corners.values, own.values])
        self._normals = np.concatenate([stage.corners.normals, own.normals])
        self.echo = np.array(street.finishes.echo)
        self._no_glow = np.zeros_like(self.sampler.glow)

    def reflectance(self, hits: Hits, footprint: Single) -> Single:
        """(N 3) linear colour of surfaces, without light; `footprint` (N) metres that one look covers."""
        return shade(
            hits.face,
            hits.u,
            hits.v,
            footprint,
            self._values,
            self.mesh.materials,
            self.sampler.texels,
            self.sampler.starts,
            self.sampler.size,
            self._no_glow,
            SIDE,
            1.0,
        )

    def color(self, hits: Hits, footprint: Single) -> Single:
        """(N 3) exposed linear radiance of N hits; `footprint` (N) metres that one pixel covers."""
        normals = _blend(hits, self._normals[hits.face])
        normals /= length(normals)
        points = _blend(hits, self.mesh.corners_of(hits.face))
        glow = self.sampler.glow[self.mesh.materials[hits.face]]
        light = self.weather.ambient * (0.75 + 0.25 * normals[:, 2:])
        for toward, power in zip(self.weather.toward, self.weather.power, strict=True):
            cosine = np.maximum(normals @ toward, 0)
            rows = np.flatnonzero((cosine > 0.01) & (glow == 0))
            starts = points[rows] + 0.02 * normals[rows] + 0.01 * toward
            open_ = ~self.caster.blocked(starts, np.broadcast_to(SHADOW * toward, starts.shape))
            light[rows] += power * (cosine[rows] * open_)[:, None]
        light = np.where(glow[:, None] > 0, glow[:, None], light * self.exposure)
        return (self.reflectance(hits, footprint) * light).astype(np.float32)


def _blend(hits: Hits, corners: NDArray[Any]) -> NDArray[Any]:
    """(N 3) values at N hits, from those at the corners (N 3 3) of their triangles."""
    first = corners[:, 0]
    return first + hits.u[:, None] * (corners[:, 1] - first) + hits.v[:, None] * (corners[:, 2] - first)


def _numbered(street: Street) -> list[tuple[int, Thing]]:
    """Things with their instance numbers, which come after those of the surfaces and the sky."""
    return list(enumerate(street.things, len(street.surfaces) + 1))


def _unmoving(street: Street) -> Mesh:
    """Ground, sky, and all things that stand still; instance i is row i of `instance_labels`."""
    parts = [mesh.owned_by(index) for index, mesh in enumerate(street.surfaces.values())]
    route = street.ride.route
    sky = ball(DOME, street.finishes.sky(), 32, 24).transform(np.eye(3), route.place(route.s.mean(), 0.0))
    parts.append(sky.owned_by(len(street.surfaces)))
    parts += [_placed(street, thing, 0.0).owned_by(index) for index, thing in _numbered(street) if not thing.speed]
    return join(parts)


def instance_labels(street: Street) -> NDArray[np.int64]:
    """(M) class of every instance: surfaces, the sky, things."""
    names = [*street.surfaces, SKY, *(thing.label for thing in street.things)]
    return np.array([LABELS.get(name, IGNORED) for name in names])


def _pose(street: Street, thing: Thing, time: float) -> tuple[Array, float]:
    """Position (3) and yaw of a thing on the map."""
    route, s = street.ride.route, thing.s_at(time)
    at = route.place(s, thing.t, street.ground.height(thing.t) if not street.crosses(s) else 0.0)
    return at, float(route.yaw(s)) + thing.turn


def _placed(street: Street, thing: Thing, time: float) -> Mesh:
    """A thing's mesh on the map at `time` seconds."""
    at, yaw = _pose(street, thing, time)
    return thing.mesh.transform(yaw_matrix(yaw), at)


def boxes_at(street: Street, time: float) -> ObjectBoxes:
    """Tight boxes of what moves or could, along each thing's own axes."""
    rows = [(index, thing) for index, thing in _numbered(street) if thing.label in BOXED]
    centers, sizes, yaws = [], [], []
    for _, thing in rows:
        at, yaw = _pose(street, thing, time)
        low, high = thing.mesh.bounds
        centers.append(at + yaw_matrix(yaw) @ ((low + high) / 2))
        sizes.append(high - low)
        yaws.append(yaw)
    labels = np.array([LABELS[thing.label] for _, thing in rows], dtype=np.int64)
    instances = np.array([index for index, _ in rows], dtype=np.int64)
    return ObjectBoxes(
        np.array(centers).reshape(-1, 3), np.array(sizes).reshape(-1, 3), np.array(yaws), labels, instances
    )
