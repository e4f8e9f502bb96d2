"""Folders of NIfTI or NRRD files: one image and one mask per patient, with equal names.

Research collections come this way. There is no header to de-identify, but file names may name people: the stem is the patient
identifier, and becomes a pseudonym. Images are read by SimpleITK, whose coordinates are LPS as in DICOM.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Door, Intake, Progress
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused, check_mask
from fl_client.intake.volume import GeometryRefused, same_grid
from tasks.case import Case, Volume
from tasks.nifti import problem

Voxels = npt.NDArray[np.integer] | npt.NDArray[np.floating]
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha")


def admit_pairs(
    images: Path,
    masks: Path,
    cohort: Cohort,
    *,
    key: bytes,
    labels: LabelMap,
    series_name: str,
    patient_of: Callable[[str], str] = str,
    progress: Progress | None = None,
) -> Intake:
    """Let in `images/<stem>.<suffix>` with `masks/<stem>.<suffix>` as the series `series_name`, one patient per stem.

    `patient_of` gives the patient identifier of a stem; two stems of one patient are refused. A stem without image or
    without mask is refused. Raises `NotADirectoryError`, and `OSError` if the cohort can't be written.
    """
    images, masks = Path(images), Path(masks)
    for folder in (images, masks):
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder; the intake reads a folder of images and one of masks")
    door = Door(cohort, Deidentifier(key))
    found, drawn = _by_stem(images, door), _by_stem(masks, door)
    stems: dict[str, list[str]] = {}
    for stem in sorted(found.keys() | drawn.keys()):
        stems.setdefault(door.deidentify.pseudonym(patient_of(stem)), []).append(stem)
    for done, (pseudonym, names) in enumerate(sorted(stems.items()), 1):
        try:
            case = _case(
                pseudonym, [found.get(name) for name in names], [drawn.get(name) for name in names], labels, series_name
            )
        except (GeometryRefused, MaskRefused, UnmappedLabel) as reason:
            door.refuse(pseudonym, str(reason))
        except Exception as error:  # a file that breaks an assumption is a reason, and the next patient's turn
            door.refuse(pseudonym, f"its files can't be understood ({type(error).__name__})")
        else:
            door.admit(case)
        if progress:
            progress(done, len(stems))
    return door.summary(len(stems))


def _by_stem(folder: Path, door: Door) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        handle = door.deidentify.handle(f"{folder.name}/{path.name}")
        if suffix is None:
            door.leave_out(handle, f"neither NIfTI nor NRRD: the name ends in none of {', '.join(SUFFIXES)}", path)
        elif path.name.removesuffix(suffix) in files:
            door.leave_out(handle, "a second file with this stem", path)
        else:
            files[path.name.removesuffix(suffix)] = path
    return files


def _case(pseudonym: str, images: list[Path | None], masks: list[Path | None], labels: LabelMap, series: str) -> Case:
    if len(images) > 1:
        raise GeometryRefused(f"{len(images)} images of one patient; this intake reads one per patient")
    image_path, mask_path = images[0], masks[0]
    if image_path is None:
        raise GeometryRefused("a mask without an image")
    if mask_path is None:
        raise MaskRefused("an image without a mask")
    image, affine = read_grid(image_path, "image")
    values, mask_affine = read_grid(mask_path, "mask")
    if values.shape != image.shape:
        raise MaskRefused(f"the mask has shape {values.shape}, the image {image.shape}")
    if not same_grid(affine, mask_affine):
        offset = float(np.abs(mask_affine - affine)[:3, 3].max())
        raise MaskRefused(f"the mask lies on another grid than the image (origins {offset:.4g} mm apart)")
    mask = labels.translate(values)
    volume = Volume(series, _as_stored(image), affine, mask)
    check_mask(mask, volume.spacing_mm, labels)
    return Case(pseudonym, (volume,))


def read_grid(path: Path, what: str) -> tuple[Voxels, npt.NDArray[np.float64]]:
    """Voxels (slices, rows, columns) and the affine index → LPS mm. Raises `GeometryRefused`; texts of ITK name paths."""
    if path.name.endswith((".nii", ".nii.gz")) and (silent := problem(path)):
        raise GeometryRefused(f"the {what} {silent}")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        raise GeometryRefused(f"the {what} can't be read: corrupt, cut short, or another format than its name says") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise GeometryRefused(
            f"the {what} has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values per voxel; "
            "3 and 1 are right"
        )
    array: Voxels = sitk.GetArrayFromImage(image)
    if not np.isfinite(array).all():
        raise GeometryRefused(f"the {what} holds values that are not finite numbers")
    affine = np.eye(4)
    steps = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3] = steps[:, ::-1]
    affine[:3, 3] = image.GetOrigin()
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryRefused(f"the {what} has no usable voxel size or direction")
    return array, affine


def _as_stored(image: Voxels) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Whole numbers of 16 bits stay whole, for half the memory; everything else becomes float32."""
    if image.min() == image.max():
        raise GeometryRefused(f"every voxel has the same value, {float(image.max()):g}")
    if np.can_cast(image.dtype, np.uint16):
        return image.astype(np.uint16)
    if np.can_cast(image.dtype, np.int16):
        return image.astype(np.int16)
    return image.astype(np.float32)
