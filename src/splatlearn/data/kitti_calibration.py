"""Calibration files of KITTI: lines of a name and the numbers of a matrix. Metres, pixels."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from splatlearn.data.infos import fold
from splatlearn.data.recordings import check_intrinsics
from splatlearn.data.records import rigid_motion
from splatlearn.errors import BadData


class Calibration(NamedTuple):
    """Of one camera.

    Args:
        world_to_camera: (4 4) float64, from the lidar's frame.
        intrinsics: (3 3).
    """

    world_to_camera: np.ndarray
    intrinsics: np.ndarray


def read_calibration(file: Path) -> Calibration:
    """The left colour camera of a KITTI calibration file: P2 R0 Tr, the fourth column of P2 folded into the pose.

    Raises:
        BadData: P2 or Tr is missing or wrong.
    """
    rows = _matrices(file)
    if "P2" not in rows or rows["P2"].size != 12:
        raise BadData(f"{file}: a line `P2:` with 12 numbers expected")
    matrix = rows["P2"].reshape(3, 4)
    intrinsics = check_intrinsics(matrix[:, :3], f"{file}: P2")
    return Calibration(fold(matrix, rectified(file)), intrinsics)


def rectified(file: Path) -> np.ndarray:
    """(4 4) from the lidar's frame to that of the rectified cameras.

    Raises:
        BadData: a matrix is missing or no rigid motion.
    """
    rows = _matrices(file)
    name = next((name for name in ("Tr_velo_to_cam", "Tr_velo_cam", "Tr") if name in rows), None)
    if name is None or rows[name].size != 12:
        raise BadData(f"{file}: a line `Tr:` (or `Tr_velo_to_cam:`) with 12 numbers expected")
    turned = np.eye(4)
    turn = next((rows[name] for name in ("R0_rect", "R_rect") if name in rows), None)
    if turn is not None:
        if turn.size != 9:
            raise BadData(f"{file}: R0_rect: 9 numbers expected, got {turn.size}")
        turned[:3, :3] = turn.reshape(3, 3)
    return rigid_motion(turned, f"{file}: R0_rect") @ rigid_motion(rows[name].reshape(3, 4), f"{file}: {name}")


def _matrices(file: Path) -> dict[str, np.ndarray]:
    try:
        lines = [line.partition(":" if ":" in line else " ") for line in file.read_text().splitlines() if line.strip()]
        return {name.strip(): np.array(values.split(), np.float64) for name, _, values in lines}
    except (OSError, ValueError) as error:
        raise BadData(f"{file}: lines of a name and numbers expected ({error})") from error


def find_calibration(drive: Path) -> Path | None:
    """In the drive, or in a tree of calibrations beside the data set, as KITTI's odometry archives unpack."""
    name = drive.resolve().name
    trees = [drive / "../../../calib/dataset/sequences" / name, drive / "../../calib/sequences" / name]
    return next((file for folder in (drive, *trees) if (file := folder / "calib.txt").is_file()), None)
