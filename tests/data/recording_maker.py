"""Writes small RGB-D recordings of a box-shaped room whose geometry is known exactly."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOM = np.array([4.0, 3.0, 2.5])
"""Metres along x, y, z; a corner at the origin, the floor at z = 0."""
SIZE = (80, 60)
FOCAL = 70.0


@dataclass
class Truth:
    """Camera-to-world poses (V 4 4) in the z-up room, and what takes that world to the files' one."""

    poses: np.ndarray
    source_from_room: np.ndarray


def camera_path(frames: int) -> np.ndarray:
    """(V 4 4) camera-to-world, OpenCV axes: 1.4 m high, looking 25 degrees down, turning slowly."""
    poses = np.tile(np.eye(4), (frames, 1, 1))
    for i in range(frames):
        yaw, pitch = 0.2 + 0.03 * i, np.radians(25)
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0])
        poses[i, :3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        poses[i, :3, 3] = (0.6 + 0.01 * i, 1.2, 1.4)
    return poses


def render_room(pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(H W 3) uint8 colour and (H W) depth in metres of the box, pixel centres at half integers."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        walls = (np.where(rays > 0, ROOM, 0) - pose[:3, 3]) / rays
    depth = walls.min(-1)
    xyz = pose[:3, 3] + rays * depth[..., None]
    color = 127.5 + 90 * np.sin(2.5 * xyz + np.array([0, 1, 2]))
    return color.round().astype(np.uint8), depth


def matrix(focal: float, size: tuple[int, int], center: float = 0.0) -> np.ndarray:
    """(3 3) with the principal point in the middle; `center` = 0.5 writes it for integer pixel centres."""
    return np.array([[focal, 0, size[0] / 2 - center], [0, focal, size[1] / 2 - center], [0, 0, 1]])


def write_seven_scenes(
    folder: Path, frames: int = 12, stride: int = 1, source_from_room: np.ndarray | None = None
) -> Truth:
    """The 7-Scenes layout with `camera-intrinsics.txt`, JPEG colour."""
    folder.mkdir(parents=True, exist_ok=True)
    source = np.eye(4) if source_from_room is None else source_from_room
    poses, intrinsics = camera_path(frames), matrix(FOCAL, SIZE)
    np.savetxt(folder / "camera-intrinsics.txt", intrinsics)
    for i, pose in enumerate(poses):
        color, depth = render_room(pose, intrinsics, SIZE)
        stem = f"frame-{i * stride:06d}"
        Image.fromarray(color).save(folder / f"{stem}.color.jpg", quality=95)
        write_depth(folder / f"{stem}.depth.png", depth)
        np.savetxt(folder / f"{stem}.pose.txt", source @ pose)
    return Truth(poses, source)


def write_scannet(folder: Path, frames: int = 6, stride: int = 20) -> Truth:
    """The ScanNet export: colour 130x97 and depth 80x60 with cameras of their own, integer pixel centres."""
    for part in ("color", "depth", "pose", "intrinsic"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    large, poses = (130, 97), camera_path(frames)
    for kind, focal, size in (("color", 115.0, large), ("depth", FOCAL, SIZE)):
        four = np.eye(4)
        four[:3, :3] = matrix(focal, size, center=0.5)
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", four)
    for i, pose in enumerate(poses):
        Image.fromarray(render_room(pose, matrix(115.0, large), large)[0]).save(folder / "color" / f"{i * stride}.jpg")
        write_depth(folder / "depth" / f"{i * stride}.png", render_room(pose, matrix(FOCAL, SIZE), SIZE)[1])
        np.savetxt(folder / "pose" / f"{i * stride}.txt", pose)
    return Truth(poses, np.eye(4))


def write_tum(folder: Path, frames: int = 6) -> Truth:
    """The TUM layout: three lists whose time stamps differ by a few milliseconds, PNG colour, depth x 5000."""
    from scipy.spatial.transform import Rotation

    for part in ("rgb", "depth"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    poses = camera_path(frames)
    lines: dict[str, list[str]] = {"rgb": [], "depth": [], "groundtruth": []}
    for i, pose in enumerate(poses):
        color, depth = render_room(pose, matrix(FOCAL, SIZE), SIZE)
        time = 100 + i / 30
        Image.fromarray(color).save(folder / f"rgb/{time:.6f}.png")
        write_depth(folder / f"depth/{time:.6f}.png", depth, scale=1 / 5000)
        lines["rgb"].append(f"{time:.6f} rgb/{time:.6f}.png")
        lines["depth"].append(f"{time + 0.006:.6f} depth/{time:.6f}.png")
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
        lines["groundtruth"].append(" ".join(f"{v:.9f}" for v in (time - 0.004, *pose[:3, 3], *quaternion)))
    for name, rows in lines.items():
        (folder / f"{name}.txt").write_text("# timestamp ...\n" + "\n".join(rows) + "\n")
    return Truth(poses, np.eye(4))


def write_depth(path: Path, depth: np.ndarray, scale: float = 0.001) -> None:
    """A 16-bit PNG."""
    Image.fromarray((depth / scale).round().astype(np.uint16)).save(path)


def tilted_world() -> np.ndarray:
    """(4 4) a source world whose up is about -y, as that of the 7-Scenes recordings."""
    pitch, roll = np.radians(-75), np.radians(8)
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = np.diag([1, -1, -1]) @ about_x @ about_z, (0.3, -0.2, 0.5)
    return world
