"""Volumes in one file, NIfTI, NRRD or MetaImage, read by SimpleITK, whose coordinates are LPS as in DICOM.

There is no header to de-identify, but file names and the texts of ITK's exceptions may name people: neither is repeated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from fl_client.intake.volume import GeometryRefused
from tasks.nifti import problem

Voxels = npt.NDArray[np.integer] | npt.NDArray[np.floating]
SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha")


def suffix_of(path: Path) -> str | None:
    """The suffix of a file that may hold a volume, or None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """The name without the suffix of a volume."""
    return path.name[: -len(suffix_of(path) or "")] or path.name


def read_grid(path: Path, what: str) -> tuple[Voxels, npt.NDArray[np.float64]]:
    """Voxels (slices, rows, columns) and the affine index → LPS mm. Raises `GeometryRefused`."""
    image = opened(path, what)
    array: Voxels = sitk.GetArrayFromImage(image)
    if not np.isfinite(array).all():
        raise GeometryRefused(f"the {what} holds values that are not finite numbers")
    return array, affine_of(image, what)


def opened(path: Path, what: str, *, layers: bool = False) -> sitk.Image:
    """A volume of three axes as SimpleITK has it; with `layers` it may have several values per voxel.

    Raises `GeometryRefused` for what can't be read.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")) and (silent := problem(path)):
        raise GeometryRefused(f"the {what} {silent}")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        raise GeometryRefused(f"the {what} can't be read: corrupt, cut short, or another format than its name says") from None
    if image.GetDimension() != 3 or (image.GetNumberOfComponentsPerPixel() != 1 and not layers):
        raise GeometryRefused(
            f"the {what} has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values per voxel; "
            "3 and 1 are right"
        )
    return image


def affine_of(image: sitk.Image, what: str = "mask") -> npt.NDArray[np.float64]:
    """Index (slice, row, column, 1) → LPS mm. Raises `GeometryRefused` for a grid without size or direction."""
    affine = np.eye(4)
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3] = steps[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryRefused(f"the {what} has no usable voxel size or direction")
    return affine
