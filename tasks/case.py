"""One patient as a task sees them: images, what was drawn on them, and clinical endpoints.

A `Case` is de-identified by the time it exists; nothing in it names a person, a file or a hospital. All of a patient's
volumes stand in one case, because the patient is the unit of privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

UNKNOWN = 255
"""Mask value of a voxel nobody labelled: neither object nor background. Losses and scores leave it out."""


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image of a patient and what a reader drew on it.

    `image` and `mask` have shape (slices, rows, columns). `affine` (4, 4) takes the index (slice, row, column, 1) to
    patient coordinates in millimetres, LPS (the DICOM convention; highdicom's `Volume` uses the same). Where the mask is 0
    none of the `annotated` structures is; of a structure that the reader didn't look for, it says nothing.
    """

    series: str  # what kind of image this is: cine_ed, cine_es, lge, t1
    image: npt.NDArray[np.float32] | npt.NDArray[np.int16] | npt.NDArray[np.uint16]
    affine: npt.NDArray[np.float64]
    mask: npt.NDArray[np.uint8] | None = None
    annotated: tuple[int, ...] | None = None  # mask values that the reader looked for; None: all that a study may ask for

    def __post_init__(self) -> None:
        if self.image.ndim != 3:
            raise ValueError(f"a volume has three axes (slices, rows, columns); {self.series} has shape {self.image.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError(f"the affine of {self.series} must be a finite 4 x 4 matrix, not {self.affine.tolist()}")
        if self.mask is not None and self.mask.shape != self.image.shape:
            raise ValueError(f"mask {self.mask.shape} and image {self.image.shape} of {self.series} differ in shape")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along (slices, rows, columns)."""
        dz, dy, dx = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(dz), float(dy), float(dx)


@dataclass(frozen=True, eq=False)
class Case:
    """One de-identified patient: pseudonym, volumes, clinical endpoints, and which scanner made the images."""

    patient: str
    volumes: tuple[Volume, ...]
    endpoints: Mapping[str, float | int | str | None] = field(default_factory=dict)
    scanner: Mapping[str, float | str] = field(default_factory=dict)  # manufacturer, field_strength_t

    def volume(self, series: str) -> Volume | None:
        """The patient's volume of this series, or None."""
        return next((volume for volume in self.volumes if volume.series == series), None)
