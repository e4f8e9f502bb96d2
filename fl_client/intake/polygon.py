"""How much of each pixel a closed outline covers: polygons on a finer grid, by the even-odd rule.

Whoever asks only whether a pixel's centre is inside decides the pixels of an outline that runs through centres by the side
they are on. Several polygons of one plane, and a polygon that cuts a hole by a double edge (a keyhole), follow the same rule:
a point is inside if a ray from it crosses an odd number of edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def inside(polygons: Sequence[Points], shape: Sequence[int], *, fine: int) -> Flags:
    """Points of the grid with `fine` x `fine` points per pixel, (rows x fine, columns x fine), inside the polygons.

    A polygon is (vertices, 2): row and column in pixels, whole numbers at pixel centres, closed from the last vertex to the
    first. What lies outside the image is cut off.
    """
    rows, columns = shape
    crossings = np.zeros((rows * fine, columns * fine + 1), np.int32)
    for points in polygons:
        y0, x0 = ((points + 0.5) * fine - 0.5).T  # the finer grid's own pixel centres are whole numbers again
        y1, x1 = np.roll(y0, -1), np.roll(x0, -1)
        for row in range(max(0, int(np.ceil(y0.min()))), min(len(crossings) - 1, int(np.floor(y0.max()))) + 1):
            crosses = (np.minimum(y0, y1) <= row) & (row < np.maximum(y0, y1))
            at = x0[crosses] + (row - y0[crosses]) * (x1 - x0)[crosses] / (y1 - y0)[crosses]
            np.add.at(crossings[row], np.clip(np.ceil(at), 0, columns * fine).astype(int), 1)
    odd: Flags = np.cumsum(crossings[:, :-1], axis=1) % 2 == 1
    return odd


def covered(polygons: Sequence[Points], shape: Sequence[int], *, fine: int) -> npt.NDArray[np.int64]:
    """How many of the fine x fine points of each pixel (rows, columns) lie inside the polygons."""
    return per_pixel(inside(polygons, shape, fine=fine), fine=fine)


def per_pixel(points: Flags, *, fine: int) -> npt.NDArray[np.int64]:
    """Points per pixel, (rows, columns), of a grid of (rows x fine, columns x fine)."""
    rows, columns = points.shape[0] // fine, points.shape[1] // fine
    counts: npt.NDArray[np.int64] = points.reshape(rows, fine, columns, fine).sum(axis=(1, 3))
    return counts
