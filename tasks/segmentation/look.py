"""Looking at an image: a box of given size, place and orientation, sampled at a given number of voxels.

Everything that changes grids goes through `sample`: the stored working grid, augmented training views, the wide and the
close look, and the way back to the original image. Positions are millimetres from the middle of the image along its own
axes, so the same lines serve 2D and 3D and any voxel spacing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Floats = npt.NDArray[np.floating]


def box(size_mm: Sequence[float]) -> Floats:
    """The matrix (d, d) of an upright box: takes the unit cube [-1, 1]^d to half its size in millimetres."""
    return np.diag(np.asarray(size_mm, np.float64) / 2)


def sample(
    source: torch.Tensor,
    *,
    source_mm: Sequence[float],
    centre_mm: Floats,
    matrix: Floats,
    shape: Sequence[int],
    nearest: bool = False,
) -> torch.Tensor:
    """Sample boxes from images: (rows, channels, *source) -> (rows, channels, *shape), zero outside the source.

    `source_mm` is the size of the source from border to border; `centre_mm` (d,) or (rows, d) is each box's middle and
    `matrix` (d, d) or (rows, d, d) its half axes (see `box`), both in millimetres along the source's own axes.
    """
    half = np.asarray(source_mm, np.float64) / 2
    matrix = np.asarray(matrix) / half[:, None]
    centre = np.asarray(centre_mm) / half
    (rows, channels), dims = source.shape[:2], len(half)
    boxes = 1 if matrix.ndim == 2 and centre.ndim == 1 else rows  # rows with one box in common: its grid is computed once
    theta = np.empty((boxes, dims, dims + 1), np.float32)
    theta[:, :, :dims] = matrix[..., ::-1, ::-1]  # torch lists the axes from the last to the first
    theta[:, :, dims] = centre[..., ::-1]
    images = source.reshape(boxes, rows * channels // boxes, *source.shape[2:])
    grid = F.affine_grid(torch.from_numpy(theta).to(source.device), [*images.shape[:2], *shape], align_corners=False)
    mode = "nearest" if nearest else "bilinear"
    found = F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return found.reshape(rows, channels, *shape)


def inside(
    shape: Sequence[int], *, size_mm: Sequence[float], centre_mm: Floats, box_mm: Sequence[float]
) -> npt.NDArray[np.bool_]:
    """Which voxels of an image (`shape`, `size_mm` from border to border) lie in an upright box: bool of that shape."""
    result = np.ones(tuple(shape), np.bool_)
    for axis, (n, size, centre, width) in enumerate(zip(shape, size_mm, centre_mm, box_mm, strict=True)):
        position = ((np.arange(n) + 0.5) / n - 0.5) * size
        along = [1] * len(shape)
        along[axis] = n
        result &= (np.abs(position - centre) <= width / 2).reshape(along)
    return result
