"""Masks on their way back to the people who read images: NIfTI and DICOM SEG on the original image grid.

These files stay in the hospital. A DICOM SEG carries the patient's own identifiers again, copied from the images it belongs
to, because it has to find its study in the archive. It is marked as made for research.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import UID, generate_uid

from fl_client.intake.deidentify import discreet
from fl_client.intake.labels import LabelMap
from fl_client.intake.multiframe import Chosen
from fl_client.intake.volume import Frame, stack
from tasks.case import Volume

ANATOMICAL_STRUCTURE = DicomCode("91723000", "SCT", "Anatomical Structure")  # category, DICOM CID 7150
NOTE = "Research use only, not for diagnosis"
# type 2 attributes (present, possibly empty) that highdicom copies from the images and real archives leave out
COPIED = (
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def sitk_image(array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> sitk.Image:
    """A SimpleITK image of (slices, rows, columns) on the grid of an affine index (slice, row, column, 1) → LPS mm."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    steps = affine[:3, 2::-1]  # SimpleITK counts (column, row, slice)
    spacing = np.linalg.norm(steps, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((steps / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def write_nifti(mask: npt.NDArray[np.integer | np.floating], volume: Volume, path: Path | str) -> None:
    """Write a mask with the shape of `volume.image` as NIfTI on the volume's grid (`path` ends in .nii or .nii.gz).

    Numbers that aren't whole are written as 32-bit floating point. Raises `ValueError` for another shape.
    """
    if mask.shape != volume.image.shape:
        raise ValueError(
            f"the mask has shape {mask.shape}, the image {volume.image.shape}; a mask goes back on its own image's grid"
        )
    kind = np.float32 if np.issubdtype(mask.dtype, np.floating) else np.uint8
    sitk.WriteImage(sitk_image(mask.astype(kind), volume.affine), str(path))


def write_seg(
    mask: npt.NDArray[np.integer],
    source: Path | Sequence[Dataset] | Chosen,
    path: Path | str,
    labels: LabelMap,
    *,
    algorithm: str | None = "konsil",
) -> None:
    """Write a mask as DICOM SEG, as `make_seg` makes it."""
    with discreet():
        make_seg(mask, source, labels, algorithm=algorithm).save_as(path)


def make_seg(
    mask: npt.NDArray[np.integer],
    source: Path | Sequence[Dataset] | Chosen,
    labels: LabelMap,
    *,
    algorithm: str | None = "konsil",
) -> hd.seg.Segmentation:
    """A mask as DICOM SEG (binary, one segment per structure present) that refers to the images it was made on.

    `mask` is (slices, rows, columns) in the slice order of the intake. `source` is the folder of exactly one series, or its
    datasets, or frames of a multi-frame image. `algorithm` None means that a person drew it. Raises `ValueError` for a shape
    that isn't the series', an empty mask, and a value that the label map doesn't know.
    """
    with discreet():
        images, places = images_of(source, mask.shape, "mask")
        values = [int(value) for value in np.unique(mask) if value != 0]
        if not values:
            raise ValueError("the mask is empty; a DICOM SEG needs at least one segment")
        segments = np.zeros(mask.shape, np.uint8)
        for number, value in enumerate(values, 1):
            segments[mask == value] = number
        descriptions = [_segment(number, value, labels, algorithm) for number, value in enumerate(values, 1)]
        entropy = [
            str(images[0].SeriesInstanceUID),
            labels.model_dump_json(),
            str(algorithm),
            mask.astype(np.uint8).tobytes().hex(),
            *([str(source.numbers)] if isinstance(source, Chosen) else []),
        ]
        seg = hd.seg.Segmentation(
            source_images=images,
            pixel_array=segments,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(entropy_srcs=["series", *entropy]),
            series_description=("mask by " + (algorithm or "a reader"))[:64],  # what viewers list
            series_number=int(images[0].get("SeriesNumber") or 0) + 100,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *entropy]),
            instance_number=1,
            manufacturer="konsil",
            manufacturer_model_name="konsil",
            software_versions=version("konsil"),
            device_serial_number="none",
            content_description=NOTE,
            content_label="MASK",
            plane_positions=places,
        )
        if isinstance(source, Chosen):
            name_frames(seg, source)
    return seg


def images_of(
    source: Path | Sequence[Dataset] | Chosen, shape: tuple[int, ...], what: str
) -> tuple[list[Dataset], list[hd.PlanePositionSequence] | None]:
    """The images that `what` (slices, rows, columns) belongs to, and for frames of a multi-frame image where each lies.

    Raises `ValueError` for another shape than theirs.
    """
    images = [filled(source.image)] if isinstance(source, Chosen) else _in_order(source)
    count = len(source.numbers) if isinstance(source, Chosen) else len(images)
    own = (count, int(images[0].Rows), int(images[0].Columns))
    if shape != own:
        raise ValueError(f"the {what} has shape {shape}, the series {own}; a {what} goes back on its own images' grid")
    if not isinstance(source, Chosen):
        return images, None
    return images, [hd.PlanePositionSequence("PATIENT", position) for position in source.positions.tolist()]


def name_frames(made: Dataset, source: Chosen) -> None:
    """Refer to the chosen frames alone: highdicom names all frames at a position, such as every phase of a cine."""
    positions = source.positions
    for groups in made.PerFrameFunctionalGroupsSequence:
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        number = source.numbers[int(np.linalg.norm(positions - place, axis=1).argmin())]
        for derivation in groups.DerivationImageSequence:
            derivation.SourceImageSequence = [derivation.SourceImageSequence[0]]
            derivation.SourceImageSequence[0].ReferencedFrameNumber = number


def _segment(number: int, value: int, labels: LabelMap, algorithm: str | None) -> hd.seg.SegmentDescription:
    try:
        name = labels.name(value)
    except KeyError as error:
        raise ValueError(f"the mask holds {error.args[0]}") from None
    code = labels.structures[name].code
    identification = None
    if algorithm is not None:
        family = DicomCode("123110", "DCM", "Artificial Intelligence")
        identification = hd.AlgorithmIdentificationSequence(name=algorithm, family=family, version=version("konsil"))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=ANATOMICAL_STRUCTURE,
        segmented_property_type=DicomCode(code.value, code.scheme, code.meaning),
        algorithm_type="MANUAL" if algorithm is None else "AUTOMATIC",
        algorithm_identification=identification,
    )


def _in_order(source: Path | Sequence[Dataset]) -> list[Dataset]:
    """Headers of one series in the intake's slice order, with the attributes that highdicom copies."""
    headers = _headers(Path(source)) if isinstance(source, (str, Path)) else list(source)
    if len({str(header.SeriesInstanceUID) for header in headers}) != 1:
        raise ValueError(f"a mask belongs to one series; the source holds {len({str(h.SeriesInstanceUID) for h in headers})}")
    return [filled(frame.header) for frame in stack([Frame(Path(), header) for header in headers])[0]]


def filled(header: Dataset) -> Dataset:
    """A copy in which nothing lacks that highdicom copies. Raises `ValueError` for a StudyInstanceUID that is none."""
    header = copy.deepcopy(header)
    for name in COPIED:
        if name not in header or (name.endswith("Date") and not _is_date(str(header[name].value))):
            setattr(header, name, "")
    if not UID(str(header.StudyInstanceUID)).is_valid:
        raise ValueError("StudyInstanceUID of the source images is no valid UID; a SEG can't refer to it")
    return header


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:  # such as 20120000, which some anonymisers leave
        return False
    return True


def _headers(folder: Path) -> list[Dataset]:
    """Headers of the single-frame images below a folder; masks and other files are passed over."""
    headers: list[Dataset] = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if header.get("SOPClassUID") is not None and "Rows" in header and "SegmentSequence" not in header:
            headers.append(header)
    return headers
