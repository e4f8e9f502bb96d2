from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage

from fl_client.cohort import Cohort
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Intake
from fl_client.intake.labels import LabelMap
from fl_client.intake.sunnybrook import ContourRefused, admit_sunnybrook, fill, read_contour

FOLDER = Path(__file__).parents[2] / "data" / "sunnybrook"
KEY = b"sixteen bytes at least"
SOUND = ("SCD0000101", "SCD0000201", "SCD0000301", "SCD0000401")
DISPLACED = "SCD0000501"


def pseudonym(patient: str) -> str:
    return Deidentifier(KEY).pseudonym(patient)


@pytest.fixture(scope="module")
def admitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Intake, Cohort]:
    cohort = Cohort(tmp_path_factory.mktemp("sunnybrook"))
    return admit_sunnybrook(FOLDER, cohort, key=KEY, labels=LabelMap.load("sunnybrook")), cohort


def test_four_patients_come_in_and_the_displaced_contours_are_refused_with_their_percentages(
    admitted: tuple[Intake, Cohort],
) -> None:
    intake, cohort = admitted
    assert intake.expected == 5
    assert set(intake.admitted) == {pseudonym(patient) for patient in SOUND} == set(cohort.patients)
    assert intake.refused.keys() == {pseudonym(DISPLACED)}
    # the data set's README: 20 to 62 % of the cavity on every slice
    assert "on 9 of 9 slices 20% to 62% of the cavity lies outside the epicardium" in intake.refused[pseudonym(DISPLACED)]


def test_cavity_volumes_are_those_that_others_measured(admitted: tuple[Intake, Cohort]) -> None:
    _, cohort = admitted
    with open(FOLDER / "metadata.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["patient"] in SOUND]
    assert len(rows) == 8
    for row in rows:
        volume = cohort.case(pseudonym(row["patient"])).volume(f"cine_{row['phase'].lower()}")
        assert volume is not None
        assert volume.mask is not None
        assert volume.image.shape == (int(row["nz"]), int(row["ny"]), int(row["nx"]))
        assert volume.spacing_mm == pytest.approx((float(row["slice_mm"]), *[float(row["inplane_mm"])] * 2), rel=1e-3)
        cavity_ml = (volume.mask == 1).sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
        assert cavity_ml == pytest.approx(float(row["lv_ml"]), rel=0.01)


def test_end_systole_is_labelled_in_part_only(admitted: tuple[Intake, Cohort]) -> None:
    _, cohort = admitted
    for case in cohort:
        ed, es = case.volume("cine_ed"), case.volume("cine_es")
        assert ed is not None
        assert es is not None
        assert np.unique(np.asarray(ed.mask)).tolist() == [0, 1, 2]
        assert np.unique(np.asarray(es.mask)).tolist() == [0, 1]  # somebody drew on every one of these frames
        assert (ed.annotated, es.annotated) == ((1, 2), (1,))


def test_masks_agree_with_the_label_volumes_that_others_made(admitted: tuple[Intake, Cohort], shared_data: Path) -> None:
    source = shared_data / "scd"
    if not (source / "SCD0000101_ED_gt.nii.gz").exists():
        pytest.skip(f"no label volumes at {source}")
    _, cohort = admitted
    labels = LabelMap.load("sunnybrook")
    for patient in SOUND:
        for phase in ("ED", "ES"):
            volume = cohort.case(pseudonym(patient)).volume(f"cine_{phase.lower()}")
            assert volume is not None
            assert volume.mask is not None
            truth = sitk.ReadImage(str(source / f"{patient}_{phase}_gt.nii.gz"))
            corner = truth.TransformPhysicalPointToContinuousIndex(volume.affine[:3, 3].tolist())
            assert corner == pytest.approx(np.round(corner), abs=1e-3)
            array = labels.translate(sitk.GetArrayFromImage(truth))
            array = array[::-1] if round(corner[2]) else array  # their slices may run the other way
            for value in (1, 2) if phase == "ED" else (1,):
                ours, theirs = volume.mask == value, np.roll(array == value, (-1, -1), (1, 2))  # theirs count from zero
                assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > (0.99 if value == 1 else 0.98)


def test_contours_lie_where_the_blood_ends() -> None:
    with open(FOLDER / "link.csv", newline="") as file:
        originals = {row["patient_id"]: row["original_id"] for row in csv.DictReader(file)}
    steps = range(-2, 3)
    fall, frames = np.zeros((len(steps), len(steps))), 0
    for patient in SOUND[:2]:  # the two whom anybody may look at
        for path in sorted((FOLDER / "contours" / originals[patient] / "i-contours").iterdir()):
            frame = FOLDER / "dicom" / patient / path.name.replace("-icontour-manual.txt", ".dcm")
            image = pydicom.dcmread(frame).pixel_array.astype(float)
            contour = read_contour(path)
            outwards = contour - contour.mean(axis=0)
            outwards *= 1.5 / np.linalg.norm(outwards, axis=1, keepdims=True)  # pixels
            inside, outside = (
                np.array([[brightness(image, contour + side * outwards + (column, row)) for column in steps] for row in steps])
                for side in (-1, 1)
            )
            by_shift = np.clip((inside - outside) / np.median(inside[2, 2]), -0.5, 1).mean(axis=2)
            fall, frames = fall + by_shift / by_shift.max(), frames + 1
    assert frames == 36
    assert np.unravel_index(fall.argmax(), fall.shape) == (2, 2)  # a pixel further to no side it is steeper


def brightness(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(image, points.T[::-1], order=1)


def test_a_contour_file_counts_from_one(tmp_path: Path) -> None:
    (tmp_path / "contour.txt").write_text("1.00 1.00\n4.50 1.00\n4.50 3.00\n")
    assert read_contour(tmp_path / "contour.txt").tolist() == [[0, 0], [3.5, 0], [3.5, 2]]


def test_a_polygon_covers_the_pixels_that_it_covers_by_half_or_more() -> None:
    square = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]])  # corners on pixel centres, so a quarter covered
    inside = fill(square, (6, 6))
    assert np.argwhere(inside).tolist() == [[1, 2], [1, 3], [2, 1], [2, 2], [2, 3], [2, 4], [3, 2], [3, 3]]
    assert np.array_equal(fill(5 - square, (6, 6)), inside[::-1, ::-1])  # no side is preferred
    assert np.argwhere(fill(square + 0.5, (6, 6))).tolist() == [[2, 2], [2, 3], [2, 4], [3, 2], [3, 3], [3, 4]]


def test_an_areas_error_vanishes_with_size() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = 100 + 60 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.3
    assert fill(circle, (200, 200)).sum() == pytest.approx(np.pi * 60**2, rel=2e-3)


def test_contours_that_leave_the_image_or_are_no_contours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContourRefused, match="leaves the image of 5 x 6 pixels"):
        fill(np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 3.0]]), (5, 6))
    path = tmp_path / "contour.txt"
    for text in ("1 2\n3 4\n", "1 2\n3 x\n4 5\n", "", "1 2 3\n4 5 6\n7 8 9\n", "1 2\n3 4 5\n6 7\n", "1 2\nnan 3\n4 5\n"):
        path.write_text(text)
        with pytest.raises(ContourRefused, match="contour"):
            read_contour(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda folder: shutil.rmtree(folder / "contours/SC-HF-I-1/o-contours"),
            "no cine_ed: of 18 images none has an epicardial contour",
        ),
        (lambda folder: shutil.rmtree(folder / "dicom/SCD0000101"), "no DICOM images"),
        (lambda folder: (folder / "dicom/SCD0000101/IM-0001-0119.dcm").unlink(), "cine_ed: slices are missing"),
        # at an end of the stack, where nothing but the contour shows that a slice is missing
        (lambda folder: (folder / "dicom/SCD0000101/IM-0001-0208.dcm").unlink(), "1 of 27 contours were drawn on images"),
        (lambda folder: (folder / "dicom/SCD0000101/IM-0001-0119.dcm").write_bytes(b"x" * 400), "can't be understood"),
        (
            lambda folder: shutil.copy(folder / "dicom/SCD0000201/IM-0001-0047.dcm", folder / "dicom/SCD0000101/x.dcm"),
            "another patient",
        ),
    ],
)
def test_a_patient_whose_files_do_not_fit_is_refused(tmp_path: Path, spoil: object, reason: str) -> None:
    folder = tmp_path / "in"
    for patient, original in (("SCD0000101", "SC-HF-I-1"), ("SCD0000201", "SC-HF-I-2")):
        shutil.copytree(FOLDER / "dicom" / patient, folder / "dicom" / patient)
        shutil.copytree(FOLDER / "contours" / original, folder / "contours" / original)
    (folder / "link.csv").write_text("patient_id,original_id\nSCD0000101,SC-HF-I-1\n")
    spoil(folder)  # type: ignore[operator]
    cohort = Cohort(tmp_path / "cohort")
    intake = admit_sunnybrook(folder, cohort, key=KEY, labels=LabelMap.load("sunnybrook"))
    assert reason in intake.refused[pseudonym("SCD0000101")]
    assert len(cohort) == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"patient,original\na,b\n", "line 1: no column original_id and no column patient_id"),
        (b"", "line 1: no column"),
        (b"patient_id,original_id\na\n", "line 2: an empty patient_id or original_id"),
        (b"patient_id,original_id\na,b\na,c\n", "line 3: a patient that stands above already"),
        (b"patient_id,original_id\n\xff,b\n", "can't be read as comma-separated values"),
    ],
)
def test_a_link_table_that_cannot_be_read_is_told_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "link.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"link.csv.*{words}"):
        admit_sunnybrook(tmp_path, Cohort(tmp_path / "cohort"), key=KEY, labels=LabelMap.load("sunnybrook"))


def test_a_folder_of_another_layout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        admit_sunnybrook(tmp_path, Cohort(tmp_path / "cohort"), key=KEY, labels=LabelMap.load("sunnybrook"))
