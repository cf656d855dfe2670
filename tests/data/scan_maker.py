"""Writes small data sets of driving, in the layouts of their sources, whose projections are known from the world alone.

A car drives through a field of posts. Points lie in a global frame; what a camera sees is worked out from its own pose
there, at its own time, and never through the lidar's frame.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from splatlearn.data.corruptions import CORRUPTIONS, SEVERITIES
from splatlearn.data.scans import LidarScene
from splatlearn.tasks.robustness import LAYOUTS

SIZE = (160, 90)
FOCAL = 120.0
POINTS = 600
K = np.array([[FOCAL, 0, 81.0], [0, FOCAL + 2, 44.0], [0, 0, 1]])
FORWARD = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
"""From axes x forward, y left, z up to those of a camera."""


@dataclass
class Truth:
    """What was written: (N 3) points in the lidar's frame, and camera -> (N 2) pixels and (N) depths."""

    xyz: np.ndarray
    intensity: np.ndarray
    raw: np.ndarray
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    depths: dict[str, np.ndarray] = field(default_factory=dict)


def pose(yaw: float, place: tuple[float, float, float], roll: float = 0.0) -> np.ndarray:
    """(4 4) of a turn about z (and a little about x), degrees, and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zx", [yaw, roll], degrees=True).as_matrix()
    matrix[:3, 3] = place
    return matrix


def car(time: float) -> np.ndarray:
    """(4 4) car to world, 10 m/s round a bend, far from the origin."""
    return pose(30 + 20 * time, (2000 + 10 * time, -1500 + 4 * time, 3), roll=2)


def camera_mount(yaw: float) -> np.ndarray:
    """(4 4) camera to car: 1.5 m high, looking where `yaw` says."""
    matrix = pose(yaw, (1.0, 0.2, 1.5))
    matrix[:3, :3] = matrix[:3, :3] @ FORWARD.T
    return matrix


def move(matrix: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(N 3) moved."""
    return xyz @ matrix[:3, :3].T + matrix[:3, 3]


def field_of_posts(seed: int = 0, count: int = POINTS) -> np.ndarray:
    """(N 3) about a car, x forward, y left, z up."""
    rng = np.random.default_rng(seed)
    angle, distance = rng.uniform(-np.pi, np.pi, count), rng.uniform(2, 40, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle), rng.uniform(-1.5, 3, count)], 1)


def see(xyz: np.ndarray, camera_from_world: np.ndarray, matrix: np.ndarray = K) -> tuple[np.ndarray, np.ndarray]:
    """(N 2) pixels and (N) depths of points of the world."""
    in_camera = move(camera_from_world, xyz)
    image = in_camera @ matrix.T
    return image[:, :2] / image[:, 2:], in_camera[:, 2]


def seen(truth: Truth, camera: str, size: tuple[int, int] = SIZE, depth: float = 1.0) -> np.ndarray:
    """(M) rows that the camera sees, by ScaLR's rule."""
    inside = (truth.pixels[camera] > 0) & (truth.pixels[camera] < np.array(size) - 1)
    return np.flatnonzero(inside.all(1) & (truth.depths[camera] > depth))


def photograph(file: Path, size: tuple[int, int] = SIZE) -> None:
    """A picture of a gradient."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([x, y, 0 * x + 60], -1).astype(np.uint8)).save(file)


def save(file: Path, array: np.ndarray, dtype: str) -> None:
    """Bare records."""
    file.parent.mkdir(parents=True, exist_ok=True)
    array.astype(dtype).tofile(file)


NUSCENES = {"CAM_FRONT": 0.0, "CAM_BACK": 180.0}


def write_nuscenes(root: Path, drives: int = 1, samples: int = 2, version: str = "v1.0-mini") -> dict[str, Truth]:
    """nuScenes' tables, scans, photographs and lidarseg labels: name of the key frame -> truth."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in NUSCENES_TABLES}
    lidar = pose(-90, (0.9, 0, 1.8))
    _sensor(tables, "LIDAR_TOP", lidar, [])
    for camera, yaw in NUSCENES.items():
        _sensor(tables, camera, camera_mount(yaw), K.tolist())
    tables["category"].append({"token": "car", "name": "vehicle.car"})
    tables["instance"].append({"token": "my_car", "category_token": "car"})
    truths = {}
    for d in range(drives):
        tables["scene"].append({"token": f"scene{d}", "name": f"scene-{d:04d}"})
        for s in range(samples):
            time = 100 * d + s
            token = f"sample{d}_{s}"
            tables["sample"].append({"token": token, "scene_token": f"scene{d}", "timestamp": 1e6 * time})
            truths[f"scene-{d:04d}/{s:03d}"] = _key_frame(root, version, tables, token, time, lidar)
    folder = root / version
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return truths


NUSCENES_TABLES = (
    *("scene", "sample", "sample_data", "sensor", "calibrated_sensor", "ego_pose", "lidarseg"),
    *("category", "instance", "sample_annotation"),
)


def _sensor(tables: dict[str, Any], channel: str, mount: np.ndarray, matrix: list[Any]) -> None:
    tables["sensor"].append({"token": f"s{channel}", "channel": channel})
    row = {"token": f"c{channel}", "sensor_token": f"s{channel}", "camera_intrinsic": matrix}
    tables["calibrated_sensor"].append(row | _turn(mount))


def _turn(matrix: np.ndarray) -> dict[str, list[float]]:
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
    return {"translation": matrix[:3, 3].tolist(), "rotation": [w, x, y, z]}


def _key_frame(root: Path, version: str, tables: dict[str, Any], token: str, time: float, lidar: np.ndarray) -> Truth:
    world = move(car(time), field_of_posts(int(time)))
    rng = np.random.default_rng(int(time))
    xyz = move(np.linalg.inv(car(time) @ lidar), world)
    truth = Truth(xyz, rng.integers(0, 256, POINTS), rng.choice([0, 2, 17, 24, 30], POINTS))
    ring = np.arange(POINTS) % 32
    scan = f"samples/LIDAR_TOP/{token}.pcd.bin"
    save(root / scan, np.concatenate([xyz, truth.intensity[:, None], ring[:, None]], 1), "<f4")
    _shot(tables, token, "LIDAR_TOP", scan, time)
    save(root / f"lidarseg/{version}/{token}.bin", truth.raw, "u1")
    label = {"token": f"l{token}", "sample_data_token": f"{token}LIDAR_TOP"}
    tables["lidarseg"].append(label | {"filename": f"lidarseg/{version}/{token}.bin"})
    for i, (camera, yaw) in enumerate(NUSCENES.items()):
        later = time + 0.05 * (i + 1)
        image = f"samples/{camera}/{token}.jpg"
        photograph(root / image)
        _shot(tables, token, camera, image, later)
        camera_from_world = np.linalg.inv(car(later) @ camera_mount(yaw))
        truth.pixels[camera], truth.depths[camera] = see(world, camera_from_world)
    box = {"token": f"b{token}", "sample_token": token, "instance_token": "my_car", "size": [2.0, 4.0, 1.5]}
    tables["sample_annotation"].append(box | _turn(car(time) @ pose(10, (8, 0, 1))))
    return truth


def _shot(tables: dict[str, Any], sample: str, channel: str, file: str, time: float) -> None:
    token = f"{sample}{channel}"
    tables["ego_pose"].append({"token": f"e{token}"} | _turn(car(time)))
    row = {"token": token, "sample_token": sample, "ego_pose_token": f"e{token}", "filename": file}
    row |= {"calibrated_sensor_token": f"c{channel}", "is_key_frame": True}
    tables["sample_data"].append(row | {"width": SIZE[0] if channel != "LIDAR_TOP" else 0, "height": SIZE[1]})
    tables["sample_data"].append(row | {"token": f"{token}sweep", "is_key_frame": False, "filename": "sweeps/none"})


P2 = np.concatenate([K, K @ np.array([[0.06], [0.001], [0.003]])], 1)
TR = np.concatenate([FORWARD, [[0.02], [-0.07], [-0.27]]], 1)
RECT = Rotation.from_euler("xyz", [0.3, -0.2, 0.5], degrees=True).as_matrix()


def write_kitti_scan(scan: Path, image: Path, seed: int, rectified: bool = True) -> Truth:
    """A scan and its photograph."""
    xyz = field_of_posts(seed)
    rng = np.random.default_rng(seed)
    truth = Truth(xyz, rng.random(POINTS), rng.choice([0, 10, 252, 40, 81], POINTS))
    save(scan, np.concatenate([xyz, truth.intensity[:, None]], 1), "<f4")
    photograph(image)
    in_camera = (xyz @ TR[:, :3].T + TR[:, 3]) @ (RECT.T if rectified else np.eye(3))
    projected = np.concatenate([in_camera, np.ones((POINTS, 1))], 1) @ P2.T
    truth.pixels["image_2"], truth.depths["image_2"] = projected[:, :2] / projected[:, 2:], projected[:, 2]
    return truth


def write_kitti(root: Path, scans: int = 3) -> dict[str, Truth]:
    """The object benchmark's training folder: name -> truth."""
    part, truths = root / "training", {}
    for i in range(scans):
        name = f"{i:06d}"
        truths[f"training/{name}"] = write_kitti_scan(
            part / f"velodyne/{name}.bin", part / f"image_2/{name}.png", seed=i
        )
        write_lines(part / f"calib/{name}.txt", {"P0": P2, "P2": P2, "R0_rect": RECT, "Tr_velo_to_cam": TR})
        corner = RECT @ (TR[:, :3] @ np.array([10.0, 2, -1.5]) + TR[:, 3])
        (part / "label_2").mkdir(exist_ok=True)
        lines = ["Car 0 0 0 0 0 9 9 1.5 1.8 4.2 " + " ".join(map(str, corner)) + " -1.57", "DontCare" + " -1" * 14]
        (part / f"label_2/{name}.txt").write_text("\n".join(lines) + "\n")
    return truths


def write_semantic_kitti(root: Path, drives: tuple[int, ...] = (0, 8), apart: bool = False) -> dict[str, Truth]:
    """Drives of SemanticKITTI; with `apart`, calib.txt lies in a tree of its own."""
    truths = {}
    for drive in drives:
        folder = root / f"dataset/sequences/{drive:02d}"
        calibration = root / f"calib/dataset/sequences/{drive:02d}" if apart else folder
        write_lines(calibration / "calib.txt", {"P2": P2, "Tr": TR})
        for i in range(2):
            name = f"{i:06d}"
            scan, image = folder / f"velodyne/{name}.bin", folder / f"image_2/{name}.png"
            truth = write_kitti_scan(scan, image, seed=drive + i, rectified=False)
            instance = np.arange(POINTS) << 16
            save(folder / f"labels/{name}.label", truth.raw + instance, "<u4")
            truths[f"{drive:02d}/{name}"] = truth
    return truths


def write_lines(file: Path, rows: dict[str, np.ndarray]) -> None:
    """A calibration file of KITTI."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name}: {' '.join(map(str, row.ravel()))}\n" for name, row in rows.items()) + "\n")


def write_calibrated(root: Path, scans: int = 3, **changed: Any) -> dict[str, Truth]:
    """The plain folder, with two cameras; `changed` replaces parts of calibration.json (None leaves one out)."""
    truths = {}
    mounts = {"front": camera_mount(0), "left": camera_mount(70)}
    for i in range(scans):
        xyz = field_of_posts(i)
        rng = np.random.default_rng(i)
        truth = Truth(xyz, rng.integers(0, 256, POINTS), rng.choice([0, 1, 2, 9], POINTS))
        save(root / f"scans/drive/{i:03d}.bin", np.concatenate([xyz, truth.intensity[:, None]], 1), "<f4")
        save(root / f"labels/drive/{i:03d}.label", truth.raw, "<u4")
        for camera, mount in mounts.items():
            photograph(root / f"images/{camera}/drive/{i:03d}.jpg")
            truth.pixels[camera], truth.depths[camera] = see(xyz, np.linalg.inv(mount))
        truths[f"drive/{i:03d}"] = truth
    cameras = {c: {"K": K.tolist(), "lidar_to_camera": np.linalg.inv(m).tolist()} for c, m in mounts.items()}
    table = {"cameras": cameras, "intensity": {"full": 255}, "classes": ["a", "b", "c"], "ignore": [9]} | changed
    table = {key: value for key, value in table.items() if value is not None}
    (root / "calibration.json").write_text(json.dumps(table))
    return truths


def write_range_images(root: Path, beams: int = 64, splits: tuple[str, ...] = ("train", "val")) -> np.ndarray:
    """Range images of 16 steps with a hole: the (H W 6) array of all of them."""
    rng = np.random.default_rng(0)
    image = rng.uniform(1, 20, (beams, 16, 6)).astype(np.float32)
    image[..., 3] = rng.random((beams, 16))
    image[..., 5] = rng.integers(0, 10, (beams, 16))
    image[0, 3] = 0
    for split in splits:
        (root / split).mkdir(parents=True, exist_ok=True)
        np.savez(root / split / "0.npz", scan=image)
    return image


def write_corrupted(root: Path, kind: str, scenes: Sequence[LidarScene]) -> None:
    """One of Robo3D's sets: the first 100 points of each scan, all of a class, and none labelled in fog."""
    kitti = kind == "SemanticKITTI-C"
    record, raw, dtype = (16, 40, "<u4") if kitti else (20, 24, "u1")
    for (number, name), severity in product(enumerate(CORRUPTIONS), SEVERITIES):
        scans, labels = (root / name / severity / part for part in LAYOUTS[kind][1:3])
        scans.mkdir(parents=True)
        for scene in scenes:
            (scans / scene.scan.name).write_bytes(scene.scan.read_bytes()[: 100 * record])
            assert scene.labels is not None
            save(labels / scene.labels.name, np.full(100, raw if number else 0), dtype)
