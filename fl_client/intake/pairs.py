"""Folders of NIfTI or NRRD files: one image and one mask per patient, with equal names.

Research collections come this way. There is no header to de-identify, but file names may name people: the stem is the patient
identifier, and becomes a pseudonym. A mask may be a `.seg.nrrd` of 3D Slicer, or come with ITK-SNAP's label descriptions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Door, Intake, Progress
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused, Notes
from fl_client.intake.mask_file import all_descriptions, read_mask_file
from fl_client.intake.placement import place
from fl_client.intake.volume import GeometryRefused
from fl_client.intake.volume_file import SUFFIXES, Voxels, read_grid, stem_of, suffix_of
from tasks.case import Case, Volume


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
            case, notes = _case(
                pseudonym, [found.get(name) for name in names], [drawn.get(name) for name in names], labels, series_name
            )
        except (GeometryRefused, MaskRefused, UnmappedLabel) as reason:
            door.refuse(pseudonym, str(reason))
        except Exception as error:  # a file that breaks an assumption is a reason, and the next patient's turn
            door.refuse(pseudonym, f"its files can't be understood ({type(error).__name__})")
        else:
            door.admit(case, notes)
        if progress:
            progress(done, len(stems))
    return door.summary(len(stems))


def _by_stem(folder: Path, door: Door) -> dict[str, Path]:
    files: dict[str, Path] = {}
    there = sorted(entry for entry in folder.iterdir() if entry.is_file())
    described = all_descriptions([path for path in there if suffix_of(path)])
    for path in there:
        handle = door.deidentify.handle(f"{folder.name}/{path.name}")
        if path in described:
            continue
        if suffix_of(path) is None:
            door.leave_out(handle, f"neither NIfTI nor NRRD: the name ends in none of {', '.join(SUFFIXES)}", path)
        elif stem_of(path) in files:
            door.leave_out(handle, "a second file with this stem", path)
        else:
            files[stem_of(path)] = path
    return files


def _case(
    pseudonym: str, images: list[Path | None], masks: list[Path | None], labels: LabelMap, series: str
) -> tuple[Case, Notes]:
    if len(images) > 1:
        raise GeometryRefused(f"{len(images)} images of one patient; this intake reads one per patient")
    image_path, mask_path = images[0], masks[0]
    if image_path is None:
        raise GeometryRefused("a mask without an image")
    if mask_path is None:
        raise MaskRefused("an image without a mask")
    image, affine = read_grid(image_path, "image")
    volume, notes = place(Volume(series, _as_stored(image), affine), read_mask_file(mask_path, labels), labels)
    return Case(pseudonym, (volume,)), notes


def _as_stored(image: Voxels) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Whole numbers of 16 bits stay whole, for half the memory; everything else becomes float32."""
    if image.min() == image.max():
        raise GeometryRefused(f"every voxel has the same value, {float(image.max()):g}")
    if np.can_cast(image.dtype, np.uint16):
        return image.astype(np.uint16)
    if np.can_cast(image.dtype, np.int16):
        return image.astype(np.int16)
    return image.astype(np.float32)
