"""Spherical harmonics to degree 4 for one direction: the twin of `splatlearn.splatting.harmonics`."""

import numpy as np

from splatlearn.splatting.harmonics import C1, C2, C3, C4
from splatlearn.splatting.kernels.compilation import helper
from splatlearn.structures.gaussians import SH_C0

(C20, C21, C22), (C30, C31, C32, C33, C34) = C2, C3
C40, C41, C42, C43, C44, C45, C46 = C4


@helper
def fill_basis(x: float, y: float, z: float, coefficients: int, out: np.ndarray) -> None:
    """Writes the first 1, 4, 9, 16 or 25 basis functions at a unit direction."""
    xx, yy, zz = x * x, y * y, z * z
    out[0] = SH_C0
    if coefficients > 1:
        out[1], out[2], out[3] = -C1 * y, C1 * z, -C1 * x
    if coefficients > 4:
        out[4], out[5], out[7] = C20 * x * y, -C20 * y * z, -C20 * x * z
        out[6], out[8] = C21 * (3 * zz - 1), C22 * (xx - yy)
    if coefficients > 9:
        out[9], out[15] = -C30 * y * (3 * xx - yy), -C30 * x * (xx - 3 * yy)
        out[10], out[14] = C31 * x * y * z, C34 * z * (xx - yy)
        out[11], out[13] = -C32 * y * (5 * zz - 1), -C32 * x * (5 * zz - 1)
        out[12] = C33 * z * (5 * zz - 3)
    if coefficients > 16:
        out[16], out[24] = C40 * x * y * (xx - yy), C46 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy))
        out[17], out[23] = -C41 * y * z * (3 * xx - yy), -C41 * x * z * (xx - 3 * yy)
        out[18], out[22] = C42 * x * y * (7 * zz - 1), C45 * (xx - yy) * (7 * zz - 1)
        out[19], out[21] = -C43 * y * z * (7 * zz - 3), -C43 * x * z * (7 * zz - 3)
        out[20] = C44 * (zz * (35 * zz - 30) + 3)


@helper
def basis_gradient(x: float, y: float, z: float, coefficients: int, c: np.ndarray) -> tuple[float, float, float]:
    """Gradient of sum_k c[k] Y_k by the direction, as polynomials; its radial part is meaningless."""
    xx, yy, zz = x * x, y * y, z * z
    gx, gy, gz = 0.0, 0.0, 0.0
    if coefficients > 1:
        gx, gy, gz = -C1 * c[3], -C1 * c[1], C1 * c[2]
    if coefficients > 4:
        gx += C20 * (y * c[4] - z * c[7]) + 2 * C22 * x * c[8]
        gy += C20 * (x * c[4] - z * c[5]) - 2 * C22 * y * c[8]
        gz += -C20 * (y * c[5] + x * c[7]) + 6 * C21 * z * c[6]
    if coefficients > 9:
        gx += -6 * C30 * x * y * c[9] - 3 * C30 * (xx - yy) * c[15] + C31 * y * z * c[10]
        gx += 2 * C34 * x * z * c[14] - C32 * (5 * zz - 1) * c[13]
        gy += -3 * C30 * (xx - yy) * c[9] + 6 * C30 * x * y * c[15] + C31 * x * z * c[10]
        gy += -2 * C34 * y * z * c[14] - C32 * (5 * zz - 1) * c[11]
        gz += C31 * x * y * c[10] + C34 * (xx - yy) * c[14] - 10 * C32 * z * (y * c[11] + x * c[13])
        gz += C33 * (15 * zz - 3) * c[12]
    if coefficients > 16:
        seven1, seven3 = 7 * zz - 1, 7 * zz - 3
        gx += C40 * y * (3 * xx - yy) * c[16] + 4 * C46 * x * (xx - 3 * yy) * c[24]
        gx += -6 * C41 * x * y * z * c[17] - 3 * C41 * z * (xx - yy) * c[23]
        gx += C42 * y * seven1 * c[18] + 2 * C45 * x * seven1 * c[22] - C43 * z * seven3 * c[21]
        gy += C40 * x * (xx - 3 * yy) * c[16] - 4 * C46 * y * (3 * xx - yy) * c[24]
        gy += -3 * C41 * z * (xx - yy) * c[17] + 6 * C41 * x * y * z * c[23]
        gy += C42 * x * seven1 * c[18] - 2 * C45 * y * seven1 * c[22] - C43 * z * seven3 * c[19]
        gz += -C41 * y * (3 * xx - yy) * c[17] - C41 * x * (xx - 3 * yy) * c[23]
        gz += 14 * z * (C42 * x * y * c[18] + C45 * (xx - yy) * c[22])
        gz += -C43 * (21 * zz - 3) * (y * c[19] + x * c[21]) + C44 * z * (140 * zz - 60) * c[20]
    return gx, gy, gz
