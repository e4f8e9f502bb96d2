from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.labels import LabelMap
from simulation.dicom import Identity, write_patient
from tasks.case import Case, Volume

KEY = b"sixteen bytes at least"


def small(patient: str = "G1", *, image: np.ndarray | None = None) -> Case:
    affine = np.diag([8.0, 1.5, 1.25, 1.0])
    mask = np.zeros((3, 12, 10), np.uint8)
    mask[:, 3:9, 3:8], mask[:, 5:7, 4:6] = 2, 1
    values = np.arange(360, dtype=np.uint16).reshape(3, 12, 10) if image is None else image
    volumes = tuple(Volume(name, values, affine, mask) for name in ("cine_ed", "lge"))
    return Case(patient, volumes, {"event": 1}, {"manufacturer": "SIEMENS", "field_strength_t": 3.0})


@pytest.fixture(scope="module")
def generated() -> Case:
    from simulation.hospital_case import patient_case
    from simulation.reader import Reader
    from simulation.scanner import Scanner

    scanner = Scanner(matrix=96, pixel_mm=3.0, manufacturer="SIEMENS")
    return patient_case(5, scanner, Reader(), {"infarct": 1.0}, ("cine_ed", "cine_es", "lge"), oversampling=1, subslices=1)


def test_a_generated_patient_through_dicom_equals_the_one_handed_over(generated: Case, tmp_path: Path) -> None:
    direct = Cohort(tmp_path / "direct")
    direct.admit(generated)
    write_patient(generated, tmp_path / "archive")
    through = Cohort(tmp_path / "through")
    intake = admit_folder(tmp_path / "archive", through, key=KEY, labels=LabelMap.load("cardiac"))
    assert intake.refused == {}
    assert intake.left_out == {}
    read, handed = through.case(intake.admitted[0]), direct.case(generated.patient)
    for expected in handed.volumes:
        volume = read.volume(expected.series)
        assert volume is not None
        assert np.array_equal(volume.image, expected.image)
        assert volume.image.dtype == expected.image.dtype
        assert np.array_equal(volume.mask, expected.mask)
        assert np.abs(volume.affine - expected.affine).max() < 1e-8
    assert read.endpoints == handed.endpoints
    assert read.scanner["field_strength_t"] == handed.scanner["field_strength_t"]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
def test_what_is_written_is_valid_dicom(tmp_path: Path) -> None:
    write_patient(small(), tmp_path)
    files = [
        path for path in sorted(tmp_path.rglob("*.dcm")) if path.name in ("IM0001.dcm", "cine_ed-mask.dcm", "lge-mask.dcm")
    ]
    assert len(files) == 4
    for path in files:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")] == []


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize(
    ("series", "labels", "kind", "modality", "part"),
    [("t1", "hippocampus", "MRImage", "MR", "BRAIN"), ("ct", "nodule", "CTImage", "CT", "CHEST")],
)
def test_brains_and_lungs_are_written_as_what_they_are(tmp_path: Path, series, labels, kind, modality, part) -> None:
    meanings = LabelMap.load(labels)
    image = np.arange(360, dtype=np.int16).reshape(3, 12, 10) - 180  # Hounsfield units go below 0
    mask = np.zeros(image.shape, np.uint8)
    mask[:, 3:9, 3:8] = 1
    write_patient(Case("G1", (Volume(series, image, np.diag([2.0, 0.7, 0.7, 1.0]), mask),)), tmp_path, labels=meanings)
    (folder,) = (tmp_path / Identity.invent("G1").patient_id).glob(series)
    first = pydicom.dcmread(folder / "IM0001.dcm")
    assert (first.Modality, first.BodyPartExamined) == (modality, part)
    assert "HEART" not in str(first).upper()
    assert ("EchoTime" in first, "RescaleSlope" in first) == (modality == "MR", modality == "CT")
    assert np.array_equal(first.pixel_array, image[0])
    for path in (folder / "IM0001.dcm", folder.parent / f"{series}-mask.dcm"):
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert (kind if path.name == "IM0001.dcm" else "Segmentation") in lines
        assert [line for line in lines if line.startswith("Error")] == []


def test_headers_hold_the_scanner_the_sequence_and_an_invented_person(tmp_path: Path) -> None:
    case = small()
    write_patient(case, tmp_path, inversion_time_ms=285, trigger_times_ms={"cine_ed": 12.5})
    person = Identity.invent("G1")
    assert person == Identity.invent("G1") != Identity.invent("G2")
    cine = pydicom.dcmread(tmp_path / person.patient_id / "cine_ed" / "IM0002.dcm")
    lge = pydicom.dcmread(tmp_path / person.patient_id / "lge" / "IM0001.dcm")
    assert (cine.PatientName, cine.PatientID, cine.Manufacturer, cine.MagneticFieldStrength) == (
        person.name,
        person.patient_id,
        "SIEMENS",
        3,
    )
    assert (cine.TriggerTime, lge.InversionTime) == (12.5, 285)
    assert cine.ImagePositionPatient == [8, 0, 0]
    assert cine.PixelSpacing == [1.5, 1.25]
    assert cine.ImageOrientationPatient == [0, 0, 1, 0, 1, 0]
    assert cine.RequestAttributesSequence
    assert cine.private_block(0x0019, "KONSIL REHEARSAL")[0x01].value.startswith(person.name)


@pytest.mark.parametrize("mm", [9.999999999999998, 1 / 3, 1.0000000000000002])
def test_a_spacing_that_needs_many_digits_fits_a_decimal_string(tmp_path: Path, mm: float) -> None:
    volume = small().volumes[0]
    write_patient(Case("G1", (Volume("cine_ed", volume.image, np.diag([mm, mm, mm, 1.0])),)), tmp_path)
    header = pydicom.dcmread(next(tmp_path.rglob("IM0003.dcm")))
    assert header.SliceThickness == pytest.approx(mm, rel=1e-10)
    assert header.ImagePositionPatient == pytest.approx([2 * mm, 0, 0], rel=1e-10)


def test_patients_share_one_table_of_endpoints_and_writing_again_replaces_a_row(tmp_path: Path) -> None:
    write_patient(small("G1"), tmp_path)
    write_patient(Case("G2", small().volumes[:1], {"ef": 0.25, "sex": None}), tmp_path)
    write_patient(small("G1"), tmp_path)
    with open(tmp_path / "endpoints.csv", newline="") as file:
        rows = {row["patient_id"]: row for row in csv.DictReader(file)}
    first, second = (rows[Identity.invent(patient).patient_id] for patient in ("G1", "G2"))
    assert (first["event"], first["ef"], second["ef"], second["sex"]) == ("1", "", "0.25", "")


def test_whole_numbers_in_other_types_are_written_and_anything_else_is_refused(tmp_path: Path) -> None:
    write_patient(small(image=np.full((3, 12, 10), 7, np.float32) + np.eye(12, 10, dtype=np.float32)), tmp_path / "float")
    stored = pydicom.dcmread(next((tmp_path / "float").rglob("IM0001.dcm"))).pixel_array
    assert (stored == 7 + np.eye(12, 10)).all()
    with pytest.raises(ValueError, match="whole numbers of 16 bits"):
        write_patient(small(image=np.full((3, 12, 10), 0.5, np.float32)), tmp_path)
    with pytest.raises(ValueError, match="ranges from 0 to 70000"):
        write_patient(small(image=np.linspace(0, 70000, 360, dtype=np.float32).reshape(3, 12, 10)), tmp_path)


def test_a_sheared_stack_is_no_dicom_series(tmp_path: Path) -> None:
    volume = small().volumes[0]
    affine = volume.affine.copy()
    affine[1, 0] = 3.0
    with pytest.raises(ValueError, match="sheared"):
        write_patient(Case("G1", (Volume("cine_ed", volume.image, affine),)), tmp_path)
