from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import discreet
from fl_client.intake.door import Intake
from fl_client.intake.labels import LabelMap
from fl_client.intake.write_back import write_nifti, write_seg
from tasks.case import Case

FOLDER = Path(__file__).parents[2] / "data" / "sunnybrook"


def by_hand(seg: pydicom.Dataset, images: list[pydicom.Dataset]) -> dict[str, np.ndarray]:
    """Segments of a SEG by label, frame by frame from bits and positions: no use of the library that wrote it."""
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    frames = bits[: seg.NumberOfFrames * seg.Rows * seg.Columns].reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    names = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
    places = [tuple(map(float, image.ImagePositionPatient)) for image in images]
    result = {name: np.zeros((len(images), seg.Rows, seg.Columns), bool) for name in names.values()}
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        place = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        named = group if "SegmentIdentificationSequence" in group else seg.SharedFunctionalGroupsSequence[0]
        result[names[named.SegmentIdentificationSequence[0].ReferencedSegmentNumber]][places.index(place)] = frame == 1
    return result


def test_a_nifti_mask_lies_on_the_dicom_images(archive: Path, case: Case, tmp_path: Path) -> None:
    volume = case.volumes[0]
    assert volume.mask is not None
    write_nifti(volume.mask, volume, tmp_path / "mask.nii.gz")
    images = sitk.ReadImage([str(path) for path in sorted(next(archive.rglob("cine_ed")).glob("*.dcm"))])
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    for index in ((0, 0, 0), (43, 39, 5), (20, 10, 3)):
        assert mask.TransformIndexToPhysicalPoint(index) == pytest.approx(images.TransformIndexToPhysicalPoint(index), abs=1e-3)
    assert np.array_equal(sitk.GetArrayFromImage(mask), volume.mask)


@pytest.mark.parametrize("stacked", [1, -1], ids=["right-handed", "left-handed"])
def test_a_nifti_mask_lies_where_the_affine_of_the_image_says(case: Case, tmp_path: Path, stacked: int) -> None:
    volume = case.volumes[0]
    assert volume.mask is not None
    affine = volume.affine @ np.diag([stacked, 1, 1, 1])  # slice 0 may lie at either end
    write_nifti(volume.mask, replace(volume, affine=affine), tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), volume.mask)
    for index in ((0, 0, 0), (5, 0, 0), (2, 35, 11)):
        point = mask.TransformIndexToPhysicalPoint(index[::-1])
        assert point == pytest.approx((affine @ [*index, 1])[:3], abs=1e-3)


def test_a_seg_holds_the_same_voxels_when_read_by_hand(archive: Path, case: Case, labels: LabelMap, tmp_path: Path) -> None:
    volume = case.volumes[0]
    assert volume.mask is not None
    source = next(archive.rglob("cine_ed"))
    write_seg(volume.mask, source, tmp_path / "mask.dcm", labels)
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(source.glob("*.dcm"))]
    seg = pydicom.dcmread(tmp_path / "mask.dcm")
    segments = by_hand(seg, images)
    assert segments.keys() == {"blood_pool", "myocardium", "right_ventricle"}
    for value, name in ((1, "blood_pool"), (2, "myocardium"), (3, "right_ventricle")):
        assert np.array_equal(segments[name], volume.mask == value)
    assert (seg.PatientID, seg.StudyInstanceUID) == (images[0].PatientID, images[0].StudyInstanceUID)
    assert seg.ContentDescription == "Research use only, not for diagnosis"
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_a_written_mask_comes_in_again_as_it_was(
    archive: Path, case: Case, let_in: Callable[..., tuple[Intake, Cohort]], labels: LabelMap
) -> None:
    old = next(archive.rglob("cine_ed-mask.dcm"))
    volume = case.volumes[0]
    assert volume.mask is not None
    changed = np.roll(volume.mask, 1, axis=2)
    write_seg(changed, old.with_name("cine_ed"), old, labels, algorithm=None)
    intake, cohort = let_in(archive)
    read = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert read is not None
    assert np.array_equal(read.mask, changed)


def test_a_mask_that_our_own_model_drew_is_left_out_beside_a_reader_s(
    archive: Path, case: Case, let_in: Callable[..., tuple[Intake, Cohort]], labels: LabelMap
) -> None:
    reader = next(archive.rglob("cine_ed-mask.dcm"))
    mask = case.volumes[0].mask
    assert mask is not None
    write_seg(np.roll(mask, 1, axis=2), reader.with_name("cine_ed"), archive / "sent back.dcm", labels)
    intake, cohort = let_in(archive)
    assert list(intake.left_out.values()) == ["a model of konsil drew this mask, and no other learns from it"]
    read = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert read is not None
    assert np.array_equal(read.mask, mask)


def test_masks_find_back_to_real_images(labels: LabelMap, tmp_path: Path) -> None:
    source = sorted((FOLDER / "dicom/SCD0000101").glob("*.dcm"))[1::2]  # the end-diastolic frames
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in source]
    mask = np.zeros((9, 256, 256), np.uint8)
    mask[:, 100:120, 90:130] = 1
    # what the collection's publishers did to the identifiers can't be referred to, and is refused
    with pytest.raises(ValueError, match="9 frames of reference"):
        write_seg(mask, images, tmp_path / "mask.dcm", labels)
    for image in images:
        image.FrameOfReferenceUID = images[0].FrameOfReferenceUID
    with pytest.raises(ValueError, match="StudyInstanceUID of the source images is no valid UID"):
        write_seg(mask, images, tmp_path / "mask.dcm", labels)
    with discreet():  # the published UIDs make pydicom warn
        for image in images:
            image.StudyInstanceUID = "1.2.3"
    write_seg(mask, images, tmp_path / "mask.dcm", labels)
    ordered = sorted(images, key=lambda image: int(image.InstanceNumber))
    assert np.array_equal(by_hand(pydicom.dcmread(tmp_path / "mask.dcm"), ordered)["blood_pool"], mask == 1)


def test_a_mask_of_another_shape_an_empty_one_and_a_stranger_are_refused(
    archive: Path, case: Case, labels: LabelMap, tmp_path: Path
) -> None:
    source, mask = next(archive.rglob("cine_ed")), np.ones((6, 40, 44), np.uint8)
    with pytest.raises(ValueError, match=r"shape \(5, 40, 44\), the series \(6, 40, 44\)"):
        write_seg(mask[1:], source, tmp_path / "mask.dcm", labels)
    with pytest.raises(ValueError, match="empty"):
        write_seg(mask * 0, source, tmp_path / "mask.dcm", labels)
    with pytest.raises(ValueError, match="no structure has value 9"):
        write_seg(mask * 9, source, tmp_path / "mask.dcm", labels)
    with pytest.raises(ValueError, match="the source holds 3"):
        write_seg(mask, archive, tmp_path / "mask.dcm", labels)
    with pytest.raises(ValueError, match=r"shape \(5, 40, 44\), the image \(6, 40, 44\); a mask goes back on its own image's"):
        write_nifti(mask[1:], case.volumes[0], tmp_path / "mask.nii.gz")
