"""The inner loop of shading, compiled: baked light and texture at every hit.

Legend: N hits, F triangles, T texels of all mip levels of all materials. One thread.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatlearn.ops.compilation import compiled

Single = NDArray[np.float32]


@compiled(Path(__file__), nogil=True)
def shade(
    face: NDArray[np.int32],
    u: Single,
    v: Single,
    footprint: Single,
    corner_values: Single,
    face_materials: NDArray[np.int64],
    texels: Single,
    level_starts: NDArray[np.int64],
    sizes: Single,
    glow: Single,
    side: int,
    exposure: float,
) -> Single:
    """Reflectance times light, plus glow, exposed.

    Args:
        face: (N) triangle of each hit.
        u: (N) weight of the triangle's second corner.
        v: (N) weight of its third corner.
        footprint: (N) metres on the surface that one pixel covers.
        corner_values: (F 3 5) texture coordinates in metres and irradiance at the corners.
        face_materials: (F).
        texels: (T 3) linear reflectance, all levels one after another, materials within a level, row-major.
        level_starts: first texel of each level.
        sizes: (materials 2) metres of one repeat.
        glow: (materials).
        side: texels along a side of level 0, a power of two.
        exposure: factor on reflected light.

    Returns:
        (N 3).
    """
    result = np.empty((face.shape[0], 3), np.float32)
    top = len(level_starts) - 1.001
    for n in range(face.shape[0]):
        corners = corner_values[face[n]]
        b, c = u[n], v[n]
        a = np.float32(1) - b - c
        material = face_materials[face[n]]
        size_u, size_v = sizes[material, 0], sizes[material, 1]
        place_u = (a * corners[0, 0] + b * corners[1, 0] + c * corners[2, 0]) / size_u
        place_v = (a * corners[0, 1] + b * corners[1, 1] + c * corners[2, 1]) / size_v
        texel = min(size_u, size_v) / side
        level = min(max(math.log2(max(footprint[n] / texel, 1.0)), 0.0), top)
        lower = int(level)
        blend = np.float32(level - lower)
        for k in range(3):
            result[n, k] = 0
        for step in range(2):
            weight = blend if step else np.float32(1) - blend
            at = lower + step
            width = side >> at
            base = level_starts[at] + material * width * width
            x = np.float32((place_u - math.floor(place_u)) * width - 0.5)
            y = np.float32((place_v - math.floor(place_v)) * width - 0.5)
            x0, y0 = math.floor(x), math.floor(y)
            fx, fy = x - np.float32(x0), y - np.float32(y0)
            for i in range(2):
                row = base + ((x0 + i) & (width - 1)) * width
                wx = weight * (fx if i else np.float32(1) - fx)
                for j in range(2):
                    w = wx * (fy if j else np.float32(1) - fy)
                    texture = texels[row + ((y0 + j) & (width - 1))]
                    for k in range(3):
                        result[n, k] += w * texture[k]
        for k in range(3):
            light = a * corners[0, 2 + k] + b * corners[1, 2 + k] + c * corners[2, 2 + k]
            result[n, k] = result[n, k] * np.float32(light * exposure + glow[material])
    return result
