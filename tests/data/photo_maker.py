"""Writes small captures of the box-shaped room: photographs through a lens, transforms.json, COLMAP models."""

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from data.recording_maker import ROOM, camera_path, render_room, write_depth
from splatlearn.data.lenses import MODELS, Lens

SIZE = (96, 72)
FOCAL = 80.0
OPENGL = np.diag([1.0, -1, -1, 1])
OPENCV = {"fx": FOCAL, "fy": 82.0, "cx": 49.0, "cy": 35.0, "k1": 0.08, "k2": -0.1, "p1": 0.004, "p2": -0.003}
"""A lens that bends a little, as that of a telephone."""


def lens(model: str = "OPENCV", size: tuple[int, int] = SIZE, **values: float) -> Lens:
    """A lens, by default that of `OPENCV`."""
    made = Lens.of(model, size, values or OPENCV)
    assert isinstance(made, Lens), made
    return made


@cache
def slopes_of(camera: Lens, rounds: int = 12) -> np.ndarray:
    """(H W 2) the ray x/z, y/z behind every pixel of a photograph: the lens turned round by Newton's rule."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    pixels = np.stack([x, y], -1)
    slopes = (pixels - camera.centre) / camera.focal
    for _ in range(rounds):
        step = 1e-6
        gap = camera.project(slopes) - pixels
        columns = [(camera.project(slopes + step * e) - camera.project(slopes - step * e)) / (2 * step) for e in EYE]
        slopes = slopes - np.linalg.solve(np.stack(columns, -1), gap[..., None])[..., 0]
    return slopes


EYE = np.eye(2)


def photograph(pose: np.ndarray, camera: Lens) -> tuple[np.ndarray, np.ndarray]:
    """(H W 3) uint8 colour and (H W) depth along z of the room, as the lens sees it."""
    slopes = slopes_of(camera)
    rays = np.concatenate([slopes, np.ones_like(slopes[..., :1])], -1) @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        depth = ((np.where(rays > 0, ROOM, 0) - pose[:3, 3]) / rays).min(-1)
    xyz = pose[:3, 3] + rays * depth[..., None]
    return (127.5 + 90 * np.sin(2.5 * xyz + np.array([0, 1, 2]))).round().astype(np.uint8), depth


def truth(pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What an ideal pinhole sees: (3 H W) in [0, 1] and (H W) depth."""
    color, depth = render_room(pose, intrinsics, size)
    return color.transpose(2, 0, 1) / 255, depth


def write_transforms(
    folder: Path, frames: int = 4, camera: Lens | None = None, depth: bool = False, **table: Any
) -> dict[str, Any]:
    """A nerfstudio capture; returns its table, for `save` after a change."""
    camera = camera or lens()
    for part in ("images", "depths"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    listed = []
    for number, pose in enumerate(camera_path(frames), 1):
        color, z = photograph(pose, camera)
        Image.fromarray(color).save(folder / f"images/{number:04d}.png")
        listed.append({"file_path": f"images/{number:04d}.png", "transform_matrix": (pose @ OPENGL).tolist()})
        if depth:
            write_depth(folder / f"depths/{number:04d}.png", z)
            listed[-1]["depth_file_path"] = f"depths/{number:04d}.png"
    (fx, fy), (cx, cy) = camera.focal, camera.centre
    bend = {key: value for key, value in camera.bend._asdict().items() if value}
    intrinsics = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": camera.width, "h": camera.height}
    return save(folder, {**intrinsics, **bend, "frames": listed, **table})


def save(folder: Path, table: dict[str, Any], name: str = "transforms.json") -> dict[str, Any]:
    """Writes the table."""
    (folder / name).write_text(json.dumps(table))
    return table


Camera = tuple[int, str, int, int, tuple[float, ...]]
View = tuple[str, np.ndarray, int]
"""File name, camera-to-world, camera."""


def colmap_camera(number: int, camera: Lens) -> Camera:
    """A row of cameras.bin or cameras.txt."""
    values = {**camera.bend._asdict(), "fx": camera.focal[0], "fy": camera.focal[1], "f": camera.focal[0]}
    values |= {"cx": camera.centre[0], "cy": camera.centre[1]}
    return number, camera.model, *camera.size, tuple(values[name] for name in MODELS[camera.model].parameters)


def write_colmap(
    folder: Path, frames: int = 4, camera: Lens | None = None, kind: str = "bin", place: str = "sparse/0"
) -> np.ndarray:
    """A capture with a model of one camera and six points; returns the points."""
    camera = camera or lens()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    views = []
    for number, pose in enumerate(camera_path(frames), 1):
        Image.fromarray(photograph(pose, camera)[0]).save(folder / f"images/v{number}.png")
        views.append((f"v{number}.png", pose, 1))
    points = np.array([[4, 1, 1], [4, 2, 1], [3.5, 3, 1], [3, 2, 0], [2.5, 1, 0], [4, 1.5, 0.5]])
    write_model(folder / place, [colmap_camera(1, camera)], views, points, kind)
    return points


def write_model(model: Path, cameras: list[Camera], views: list[View], points: np.ndarray, kind: str) -> None:
    """cameras, images and points3D; point i has colour (40 i, 0, 255), error i / 10 and i + 2 features."""
    model.mkdir(parents=True, exist_ok=True)
    write = _write_binary if kind == "bin" else _write_text
    write(model, cameras, [(name, *_world_to_camera(pose), camera) for name, pose, camera in views], points)


def _world_to_camera(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inverse = np.linalg.inv(pose)
    x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
    return np.array([w, x, y, z]), inverse[:3, 3]


def _write_binary(model: Path, cameras: list[Camera], views: list[Any], points: np.ndarray) -> None:
    data = struct.pack("<Q", len(cameras))
    for number, name, width, height, parameters in cameras:
        data += struct.pack("<IiQQ", number, MODELS[name].number, width, height)
        data += struct.pack(f"<{len(parameters)}d", *parameters)
    (model / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(views))
    for i, (name, quaternion, translation, camera) in enumerate(views, 1):
        data += struct.pack("<I7dI", i, *quaternion, *translation, camera) + name.encode() + b"\0"
        data += struct.pack("<Q", i) + struct.pack("<ddQ", 1.5, 2.5, 7) * i
    (model / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for i, xyz in enumerate(points):
        data += struct.pack("<Q3d3BdQ", i + 1, *xyz, 40 * i, 0, 255, i / 10, i + 2) + struct.pack("<II", 1, 0) * (i + 2)
    (model / "points3D.bin").write_bytes(data)


def _write_text(model: Path, cameras: list[Camera], views: list[Any], points: np.ndarray) -> None:
    rows = [[number, name, width, height, *parameters] for number, name, width, height, parameters in cameras]
    _save(model / "cameras.txt", "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]", rows)
    rows = []
    for i, (name, quaternion, translation, camera) in enumerate(views, 1):
        rows += [[i, *quaternion, *translation, camera, name], [1.5, 2.5, 7] * (i - 1)]
    _save(model / "images.txt", "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", rows)
    rows = [[i + 1, *xyz, 40 * i, 0, 255, i / 10, *[1, 0] * (i + 2)] for i, xyz in enumerate(points)]
    _save(model / "points3D.txt", "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]", rows)


def _save(path: Path, comment: str, rows: list[list[Any]]) -> None:
    path.write_text(comment + "\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows))
