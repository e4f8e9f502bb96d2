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
        within = np.arange(max(0, int(np.ceil(y0.min()))), min(len(crossings) - 1, int(np.floor(y0.max()))) + 1)[:, None]
        row, edge = np.nonzero((np.minimum(y0, y1) <= within) & (within < np.maximum(y0, y1)))
        row = within[row, 0]
        at = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
        np.add.at(crossings, (row, np.clip(np.ceil(at), 0, columns * fine).astype(int)), 1)
    crossed = np.flatnonzero(crossings.any(axis=1))
    odd = np.zeros((rows * fine, columns * fine), bool)
    odd[crossed] = np.cumsum(crossings[crossed, :-1], axis=1) % 2 == 1
    return odd


def covered(polygons: Sequence[Points], shape: Sequence[int], *, fine: int) -> npt.NDArray[np.int64]:
    """How many of the fine x fine points of each pixel (rows, columns) lie inside the polygons."""
    return per_pixel(inside(polygons, shape, fine=fine), fine=fine)


def per_pixel(points: Flags, *, fine: int) -> npt.NDArray[np.int64]:
    """Points per pixel, (rows, columns), of a grid of (rows x fine, columns x fine)."""
    counts = np.zeros((points.shape[0] // fine, points.shape[1] // fine), np.int64)
    for down in range(fine):
        for right in range(fine):
            counts += points[down::fine, right::fine]
    return counts
