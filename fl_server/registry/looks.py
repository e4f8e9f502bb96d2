"""A segmentation task's geometry without konsil's settings: what the inference of an exported bundle reads of them.

This file is copied into bundles, where konsil and pydantic may not be installed. Names and meanings are those of
`tasks.segmentation.settings.Settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Looks:
    """Lengths are in mm, in the order of the image's axes: (rows, columns) in 2D, (slices, rows, columns) in 3D."""

    spatial_dims: int
    structures: dict[str, int]  # name -> value in the masks
    voxels: tuple[int, ...]  # the network's input
    field_mm: tuple[float, ...]  # the wide look
    roi_mm: tuple[float, ...] | None  # the close look; None: the wide look alone
    located: tuple[int, ...]  # classes that the close look is centred on
    working_voxels: tuple[int, ...]
    working_mm: tuple[float, ...]
    working_field_mm: tuple[float, ...]
    test_time_rotations: int = 0
    keep_largest: bool = False  # left to the steps after inference
    series: tuple[str, ...] = ("image",)
