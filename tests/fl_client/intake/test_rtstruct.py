from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.clean import Cleaned, deidentify_file
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Intake
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import MaskRefused
from fl_client.intake.rtstruct import read_rtstruct
from fl_client.intake.series import SeriesRules
from fl_client.intake.write_back import write_nifti
from simulation.dicom import Identity
from tasks.case import Case, Volume

FRAME = "1.2.3.4.5"
KEY = b"sixteen bytes at least"
Contour = tuple[float, np.ndarray]  # slice, and (n, 2) rows and columns
LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]


def circle(row: float, column: float, radius: float, points: int = 180) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([row + radius * np.sin(angles), column + radius * np.cos(angles)], axis=1)


def structure_set(image: Volume, drawn: dict[str, Iterable[Contour]], *, frame: str = FRAME) -> Dataset:
    """A structure set as PS3.3 A.19 has it: names in one sequence, contours in another, millimetres in strings."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid(), "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(drawn.items(), 11):
        roi, shown = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        shown.ReferencedROINumber, shown.ContourSequence = number, []
        for plane, points in contours:
            index = np.column_stack([np.full(len(points), plane), points, np.ones(len(points))])
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            item.ContourData = [f"{value:.4f}" for value in (index @ image.affine.T)[:, :3].ravel()]
            shown.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(shown)
    return dataset


@pytest.fixture
def image(case: Case) -> Volume:
    return Volume("x", np.zeros((6, 64, 72), np.uint16), case.volumes[0].affine)


def read(image: Volume, drawn: dict[str, Sequence[Contour]], labels: LabelMap, *, frame: str = FRAME) -> np.ndarray:
    return read_rtstruct(structure_set(image, drawn, frame=frame), image, labels, frame_of_reference=FRAME).mask


@pytest.mark.parametrize("radius", [8.0, 13.3, 27.9])
def test_a_circle_and_an_annulus_have_the_area_that_geometry_says(image: Volume, labels: LabelMap, radius: float) -> None:
    middles = [(31 + 0.37 * plane, 35 - 0.21 * plane) for plane in range(6)]  # elsewhere among the pixels each time
    discs = read(image, {"LV cavity": [(plane, circle(*middle, radius)) for plane, middle in enumerate(middles)]}, labels)
    assert (discs == 1).sum() == pytest.approx(6 * np.pi * radius**2, rel=0.01)
    both = [(plane, circle(*middle, size)) for plane, middle in enumerate(middles) for size in (radius, 0.6 * radius)]
    rings = read(image, {"LV myocardium": both}, labels)
    assert (rings == 2).sum() == pytest.approx(6 * np.pi * radius**2 * (1 - 0.36), rel=0.01)
    assert not any(rings[plane, round(row), round(column)] for plane, (row, column) in enumerate(middles))


def test_a_keyhole_encloses_what_two_contours_enclose(image: Volume, labels: LabelMap) -> None:
    outer, inner = circle(31.2, 35.1, 20), circle(31.2, 35.1, 11)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner[-1:], inner[:-1], inner[-1:], outer[:1]])
    one = read(image, {"myocardium": [(2, keyhole)]}, labels)
    two = read(image, {"myocardium": [(2, outer), (2, inner)]}, labels)
    assert (one != two).sum() <= 2
    assert (one == 2).sum() == pytest.approx(np.pi * (20**2 - 11**2), rel=0.01)


def test_any_outline_is_filled_as_matplotlib_fills_it(image: Volume, labels: LabelMap) -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:640, :720] / 10 - 0.45  # ten by ten points in each pixel
    for plane in range(6):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 25))
        radius = rng.uniform(8, 25, 25)
        points = np.stack([31 + radius * np.sin(angles), 35 + radius * np.cos(angles)], axis=1)
        inside = Outline(points[:, ::-1], closed=False).contains_points(np.column_stack([columns.ravel(), rows.ravel()]))
        share = inside.reshape(64, 10, 72, 10).mean(axis=(1, 3))
        mask = read(image, {"LV cavity": [(plane, points)]}, labels)[plane]
        assert mask[share > 0.65].all()
        assert not mask[share < 0.35].any()
        assert (mask > 0).sum() == pytest.approx(share.sum(), rel=0.01)


def test_an_outline_of_the_whole_heart_loses_the_cavity_to_the_label_maps_priority(image: Volume, labels: LabelMap) -> None:
    drawn = {"LV myocardium": [(2, circle(31.2, 35.4, 20))], "LV endocardium": [(2, circle(31.2, 35.4, 12))]}
    mask = read(image, drawn, labels)
    assert (mask == 1).sum() == pytest.approx(np.pi * 12**2, rel=0.01)
    assert (mask == 2).sum() == pytest.approx(np.pi * (20**2 - 12**2), rel=0.01)


def test_neighbours_that_touch_share_no_pixel_and_leave_no_gap(image: Volume, labels: LabelMap) -> None:
    left, right = np.array([[10, 10], [10, 30.2], [30, 30.2], [30, 10]]), np.array([[10, 30.2], [10, 50], [30, 50], [30, 30.2]])
    mask = read(image, {"LV cavity": [(1, left)], "RV blood pool": [(1, right)]}, labels)[1]
    assert (mask[12:29, 12:30] == 1).all()
    assert (mask[12:29, 31:49] == 3).all()
    assert (mask[12:29, 30] == 1).all()


def test_structures_that_overlap_without_a_priority_are_refused(image: Volume, labels: LabelMap) -> None:
    with pytest.raises(MaskRefused, match=r"structures overlap: blood_pool and right_ventricle share 1?\d% of the smaller"):
        read(image, {"LV cavity": [(1, circle(30, 30, 10))], "RV blood pool": [(1, circle(30, 45, 8))]}, labels)


def test_images_that_the_reader_skipped_are_unknown_and_those_beyond_are_background(image: Volume, labels: LabelMap) -> None:
    drawn = {"LV cavity": [(1, circle(31, 35, 9)), (3, circle(31, 35, 9)), (4, circle(31, 35, 9))]}
    drawing = read_rtstruct(structure_set(image, drawn), image, labels, frame_of_reference=FRAME)
    assert [np.unique(plane).tolist() for plane in drawing.mask] == [[0], [0, 1], [255], [0, 1], [0, 1], [0]]
    assert drawing.notes == {"slices_left_out": 1.0}


def test_an_uncertain_structure_is_unknown_wherever_it_lies(image: Volume, labels: LabelMap) -> None:
    mask = read(image, {"LV cavity": [(1, circle(31, 35, 12))], "uncertain": [(1, circle(31, 46, 6))]}, labels)[1]
    assert mask[31, 46] == mask[31, 44] == 255
    assert mask[31, 35] == 1


TILTED = np.array([[20.0, 20.0], [20.0, 40.0], [40.0, 40.0]])


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        ([(2.2, circle(31, 35, 9))], r"1\.66 mm off the plane of the nearest image.*at most 0\.50 mm may be"),
        ([(2, circle(31, 35, 9)), (8, circle(31, 35, 9))], "a contour outside the image"),
        ([(2, circle(31, 70, 9))], "a contour outside the image"),
        ([(2, circle(31, 35, 9)), (2, circle(31, 41, 9))], "two contours of blood_pool in one plane cross each other"),
        ([(2, circle(31, 35, 9)[:2])], "a contour of 6 coordinates; three points or more"),
        ([], "the mask is empty"),
    ],
)
def test_contours_that_say_nothing_sure_are_refused(image: Volume, labels: LabelMap, drawn: list[Contour], reason: str) -> None:
    with pytest.raises(MaskRefused, match=reason):
        read(image, {"LV cavity": drawn}, labels)


def test_points_lines_and_other_frames_of_reference_are_refused(image: Volume, labels: LabelMap) -> None:
    dataset = structure_set(image, {"LV cavity": [(2, circle(31, 35, 9))]})
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"
    with pytest.raises(MaskRefused, match="structure 11 has a contour of kind POINT; only closed planar contours"):
        read_rtstruct(dataset, image, labels, frame_of_reference=FRAME)
    with pytest.raises(MaskRefused, match="frame of reference is not that of the images"):
        read(image, {"LV cavity": [(2, circle(31, 35, 9))]}, labels, frame="1.2.3.4.6")


def test_a_name_outside_the_label_map_is_an_error_that_does_not_repeat_it(image: Volume, labels: LabelMap) -> None:
    with pytest.raises(UnmappedLabel, match="structure 11 has a label and a code that stand nowhere in the label map") as error:
        read(image, {"Abendroth GTV": [(2, circle(31, 35, 9))]}, labels)
    assert "Abendroth" not in str(error.value)


def as_file(path: Path, dataset: Dataset, images: list[pydicom.Dataset], *, refer: bool) -> None:
    """With patient and study of the images, and references to all of them."""
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        setattr(dataset, keyword, images[0][keyword].value)
    dataset.SeriesInstanceUID = generate_uid()
    if refer:
        frame, study, series = Dataset(), Dataset(), Dataset()
        frame.FrameOfReferenceUID = images[0].FrameOfReferenceUID
        series.SeriesInstanceUID = images[0].SeriesInstanceUID
        series.ContourImageSequence = []
        for image in images:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
            series.ContourImageSequence.append(item)
        study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", images[0].StudyInstanceUID
        study.RTReferencedSeriesSequence = [series]
        frame.RTReferencedStudySequence = [study]
        dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def drawn_again(case: Case, archive: Path, *, refer: bool) -> None:
    """The end-diastolic SEG of the archive gives way to a structure set of a cavity in its wall."""
    volume = case.volumes[0]
    next(archive.rglob("cine_ed-mask.dcm")).unlink()
    images = [pydicom.dcmread(path) for path in sorted(archive.rglob("cine_ed/*.dcm"))]
    planes = range(1, 5)
    drawn = {
        "LV myocardium": [(plane, circle(20, 21, 12)) for plane in planes],
        "LV cavity": [(plane, circle(20, 21, 8)) for plane in planes],
    }
    dataset = structure_set(volume, drawn, frame=str(images[0].FrameOfReferenceUID))
    as_file(archive / "structures.dcm", dataset, images, refer=refer)


def test_a_structure_set_in_a_folder_of_dicom_comes_in_with_its_images(archive: Path, case: Case, let_in: LetIn) -> None:
    drawn_again(case, archive, refer=True)
    intake, cohort = let_in(archive)
    assert not intake.refused
    volume = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert volume is not None
    assert volume.mask is not None
    expected = np.where(case.volumes[0].mask == 3, 0, case.volumes[0].mask)
    assert (volume.mask != expected).mean() < 0.01
    assert (volume.mask == 1).sum() == (expected == 1).sum()
    assert volume.annotated == (1, 2)  # nobody drew the right ventricle


def test_a_structure_set_without_references_belongs_to_the_series_of_its_frame_of_reference(
    archive: Path, case: Case, let_in: LetIn
) -> None:
    drawn_again(case, archive, refer=False)
    intake, cohort = let_in(archive)
    assert not intake.refused
    text = json.loads((cohort.folder / "quality" / f"{intake.admitted[0]}.json").read_text())
    assert text["mask_by_geometry/cine_ed"] is True
    assert "mask_by_geometry/cine_es" not in text  # a SEG that names its images


def test_where_it_fits_two_series_its_description_decides_or_it_is_refused(
    archive: Path, case: Case, let_in: LetIn, edit: Edit
) -> None:
    drawn_again(case, archive, refer=False)
    frame = pydicom.dcmread(next(archive.rglob("cine_ed/*.dcm"))).FrameOfReferenceUID
    for path in [*archive.rglob("cine_es/*.dcm"), *archive.rglob("cine_es-mask.dcm")]:
        edit(path, lambda dataset: setattr(dataset, "FrameOfReferenceUID", frame))
    (reason,) = let_in(archive)[0].refused.values()
    assert "it fits cine_ed and cine_es alike; the name of one of them in its own name would say which" in reason
    edit(archive / "structures.dcm", lambda dataset: setattr(dataset, "SeriesDescription", "Contours CINE ED"))
    assert not let_in(archive)[0].refused


def test_the_structures_of_a_planning_system_have_the_area_of_their_outlines(shared_data: Path, labels: LabelMap) -> None:
    path = shared_data / "dicom_files/rt-utils/tests/empty/dummy_rt.dcm"  # exported by MIM
    if not path.is_file():
        pytest.skip(f"no structure set at {path}")
    dataset = pydicom.dcmread(path)
    outlines = [
        np.array(item.ContourData, float).reshape(-1, 3)
        for structure in dataset.ROIContourSequence
        for item in structure.ContourSequence
    ]
    every = np.concatenate(outlines)
    heights = np.unique(every[:, 2])
    low, high = every.min(axis=0) - 5, every.max(axis=0) + 5
    affine = np.array([[0, 0, 1, low[0]], [0, 1, 0, low[1]], [heights[1] - heights[0], 0, 0, heights[0]], [0, 0, 0, 1.0]])
    size = (len(heights), int(high[1] - low[1]) + 1, int(high[0] - low[0]) + 1)
    image = Volume("x", np.zeros(size, np.uint16), affine)
    frame = str(dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID)
    for number, structure in enumerate(dataset.ROIContourSequence):
        dataset.StructureSetROISequence[number].ROIName = "LV cavity"
        alone = Dataset()
        alone.StructureSetROISequence = [dataset.StructureSetROISequence[number]]
        alone.ROIContourSequence = [structure]
        mask = read_rtstruct(alone, image, labels, frame_of_reference=frame).mask
        area = sum(shoelace(np.array(item.ContourData, float).reshape(-1, 3)) for item in structure.ContourSequence)
        assert (mask == 1).sum() == pytest.approx(area, rel=0.01)


def shoelace(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def test_structures_and_files_of_masks_find_the_images_of_the_clean_store(
    archive: Path, case: Case, labels: LabelMap, tmp_path: Path
) -> None:
    drawn_again(case, archive, refer=True)
    next(archive.rglob("cine_es-mask.dcm")).unlink()
    deidentify = Deidentifier(KEY, words=SeriesRules().words | labels.words)
    for path in archive.rglob("*.dcm"):
        assert isinstance(deidentify_file(path, tmp_path / "clean", deidentify=deidentify), Cleaned)
    number = Identity.invent(case.patient).patient_id
    assert case.volumes[1].mask is not None
    (tmp_path / "masks").mkdir()
    write_nifti(case.volumes[1].mask, case.volumes[1], tmp_path / "masks" / f"{number} cine es.nii.gz")
    cohort = Cohort(tmp_path / "cohort")
    intake = admit_folder(
        tmp_path / "clean" / deidentify.pseudonym(number),
        cohort,
        key=None,
        labels=labels,
        masks=tmp_path / "masks",
        names=deidentify,
    )
    assert (intake.refused, intake.left_out) == ({}, {})
    inside = cohort.case(deidentify.pseudonym(number))
    assert np.array_equal(inside.volume("cine_es").mask, case.volumes[1].mask)  # type: ignore[union-attr]
    assert (inside.volume("cine_ed").mask == 1).sum() == 772  # type: ignore[union-attr]
