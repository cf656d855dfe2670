"""Numba kernels of `neighbors`: compiled on first use, cached where that can be written, one thread each, no lock."""

from pathlib import Path

import numpy as np

from splatlearn.ops.compilation import compiled

_compile = compiled(Path(__file__), nogil=True, boundscheck=False)


@_compile
def _box_distance(point, low, high):
    """Squared distance of a point to an axis-aligned box, shortened so that rounding never hides a point of it."""
    total = np.float32(0.0)
    for axis in range(3):
        gap = max(low[axis] - point[axis], point[axis] - high[axis], np.float32(0.0))
        total += gap * gap
    return total * np.float32(0.9999)


@_compile
def _lower(xyz, rows, point, distances, start, stop):
    """Shortens the distances of one bucket; returns its largest one and the place of it with the lowest row."""
    farthest, place = np.float32(-2.0), start
    for i in range(start, stop):
        dx = xyz[i, 0] - point[0]
        dy = xyz[i, 1] - point[1]
        dz = xyz[i, 2] - point[2]
        distances[i] = min(distances[i], dx * dx + dy * dy + dz * dz)
    for i in range(start, stop):
        d = distances[i]
        if d > farthest or (d == farthest and rows[i] < rows[place]):
            farthest, place = d, i
    return farthest, place


@_compile
def farthest_points(xyz, rows, first, samples, bucket):
    """Places of a farthest-point sampling of (N 3) float32 points, sorted so that neighbours lie close in memory.

    A bucket of `bucket` points whose box is farther from the new sample than its largest distance cannot change.
    `rows` are the points' original numbers: ties go to the lowest. `first` is the place of the first sample.
    """
    n = len(xyz)
    buckets = (n + bucket - 1) // bucket
    low = np.empty((buckets, 3), np.float32)
    high = np.empty((buckets, 3), np.float32)
    for b in range(buckets):
        start, stop = b * bucket, min(n, (b + 1) * bucket)
        for axis in range(3):
            low[b, axis] = xyz[start:stop, axis].min()
            high[b, axis] = xyz[start:stop, axis].max()
    distances = np.full(n, np.inf, np.float32)
    farthest = np.full(buckets, np.inf, np.float32)
    places = np.zeros(buckets, np.int64)
    chosen = np.empty(samples, np.int64)
    current = first
    for s in range(samples):
        chosen[s] = current
        distances[current] = -1.0  # a chosen point is never chosen again, duplicates of it may be
        point = xyz[current]
        best = 0
        for b in range(buckets):
            if _box_distance(point, low[b], high[b]) < farthest[b] or b == current // bucket:
                start, stop = b * bucket, min(n, (b + 1) * bucket)
                farthest[b], places[b] = _lower(xyz, rows, point, distances, start, stop)
            if farthest[b] > farthest[best] or (farthest[b] == farthest[best] and rows[places[b]] < rows[places[best]]):
                best = b
        current = places[best]
    return chosen


@_compile
def _insert(found, count, row):
    """Puts `row` into the ascending list `found[:count]`, dropping the largest when it is full."""
    limit = len(found)
    if count == limit:
        if row >= found[limit - 1]:
            return count
        count -= 1
    i = count
    while i > 0 and found[i - 1] > row:
        found[i] = found[i - 1]
        i -= 1
    found[i] = row
    return count + 1


@_compile
def ball_rows(centers, xyz, rows, cells, low, shape, radius, result):
    """Fills `result` (M k) with the k lowest rows within `radius` of each centre; the lowest fills what is left.

    `xyz` (N 3), `rows` and `cells` are sorted by cell, whose edge is `radius` or more; cell = (x sy + y) sz + z.
    A centre with nothing around takes its nearest point.
    """
    edge, reach = low[3], radius * radius
    for m in range(len(centers)):
        cx, cy, cz = centers[m, 0], centers[m, 1], centers[m, 2]
        ix, iy, iz = int((cx - low[0]) / edge), int((cy - low[1]) / edge), int((cz - low[2]) / edge)
        count = 0
        for x in range(max(ix - 1, 0), min(ix + 2, shape[0])):
            for y in range(max(iy - 1, 0), min(iy + 2, shape[1])):
                line = (x * shape[1] + y) * shape[2]
                start = np.searchsorted(cells, line + max(iz - 1, 0))
                stop = np.searchsorted(cells, line + min(iz + 2, shape[2]))
                for i in range(start, stop):
                    dx, dy, dz = xyz[i, 0] - cx, xyz[i, 1] - cy, xyz[i, 2] - cz
                    if dx * dx + dy * dy + dz * dz < reach:
                        count = _insert(result[m], count, rows[i])
        if count == 0:
            result[m, 0] = _nearest(centers[m], xyz, rows)
            count = 1
        result[m, count:] = result[m, 0]


@_compile
def _nearest(center, xyz, rows):
    best, row = np.float32(np.inf), rows[0]
    for i in range(len(xyz)):
        dx, dy, dz = xyz[i, 0] - center[0], xyz[i, 1] - center[1], xyz[i, 2] - center[2]
        d = dx * dx + dy * dy + dz * dz
        if d < best or (d == best and rows[i] < row):
            best, row = d, rows[i]
    return row
