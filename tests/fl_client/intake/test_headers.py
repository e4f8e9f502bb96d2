from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from conftest import KEY

from fl_client.cohort import Cohort
from fl_client.intake.clean import Quarantined, deidentify_file
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.door import Intake
from fl_client.intake.way_back import WayBack
from simulation.dicom import write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]


def file_of(archive: Path, series: str, number: int) -> Path:
    return next(archive.rglob(f"{series}/IM{number:04d}.dcm"))


def test_a_slice_sent_twice_under_two_names_counts_once(archive: Path, let_in: LetIn) -> None:
    shutil.copy(file_of(archive, "lge", 2), archive / "again.dcm")
    intake, _ = let_in(archive)
    assert len(intake.admitted) == 1
    assert list(intake.left_out.values()) == ["a copy of another file, byte by byte"]


def test_files_that_are_nobodys_image_are_left_out_one_by_one(archive: Path, let_in: LetIn, edit: Edit) -> None:
    slice_2 = file_of(archive, "lge", 2)
    for name in ("report.dcm", "burned.dcm", "nobody.dcm", "cut.dcm"):
        shutil.copy(slice_2, archive / name)
    edit(archive / "report.dcm", lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.11"))
    edit(archive / "burned.dcm", lambda d: setattr(d, "BurnedInAnnotation", "YES"))
    edit(archive / "nobody.dcm", lambda d: setattr(d, "PatientID", ""))
    (archive / "cut.dcm").write_bytes(slice_2.read_bytes()[:300])
    (archive / "notes.txt").write_text("x")
    intake, _ = let_in(archive)
    assert len(intake.admitted) == 1
    named = {intake.where[handle].name: reason for handle, reason in intake.left_out.items()}
    assert named.keys() == {"report.dcm", "burned.dcm", "nobody.dcm", "cut.dcm", "notes.txt"}
    assert named["report.dcm"].startswith("Basic Text SR Storage is neither MR or CT images")
    assert "BurnedInAnnotation" in named["burned.dcm"]
    assert named["nobody.dcm"].startswith("no PatientID")
    assert named["notes.txt"] == "not a DICOM file"


def test_the_pixel_policy_holds_for_a_folder_too(archive: Path, let_in: LetIn, edit: Edit) -> None:
    for path in archive.rglob("*.dcm"):
        edit(path, lambda d: setattr(d, "StudyDescription", "MRT Schaedel"))
    intake, _ = let_in(archive)
    assert not intake.admitted
    assert any("a face can be made from it" in reason for reason in intake.left_out.values())
    intake, _ = let_in(archive, accept_faces=True)
    assert len(intake.admitted) == 1


def test_a_picture_of_a_screen_stays_outside(archive: Path, let_in: LetIn, edit: Edit) -> None:
    shutil.copy(file_of(archive, "lge", 2), archive / "screen.dcm")
    edit(archive / "screen.dcm", lambda d: setattr(d, "ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"]))
    intake, _ = let_in(archive)
    assert len(intake.admitted) == 1
    assert [intake.where[handle].name for handle in intake.left_out] == ["screen.dcm"]


def plant(archive: Path, edit: Edit, name: str, number: int, keyword: str, value: str) -> None:
    """A slice that says something else of its patient, and is read last."""
    shutil.copy(file_of(archive, "lge", number), archive / f"{name}.dcm")
    edit(archive / f"{name}.dcm", lambda d: setattr(d, keyword, value))


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("IssuerOfPatientID", "EAST", "its PatientID is known from another issuer: two people may have the same number"),
        ("PatientBirthDate", "19310101", "two people may have the same number, or one date is wrong"),
    ],
)
def test_a_number_whose_files_are_of_two_people_is_refused_and_the_files_are_told(
    archive: Path, let_in: LetIn, edit: Edit, keyword: str, value: str, reason: str
) -> None:
    for path in archive.rglob("*.dcm"):
        edit(path, lambda d: setattr(d, "IssuerOfPatientID", "WEST"))
    plant(archive, edit, "a", 1, keyword, value)  # read first: which one comes first decides nothing
    plant(archive, edit, "z", 2, keyword, value)
    intake, cohort = let_in(archive)
    assert (intake.admitted, len(intake.refused), len(cohort)) == ((), 1, 0)
    (told,) = intake.refused.values()
    assert told.startswith("its files may be of two people, and nobody here can tell which are whose: F")
    assert told.endswith(reason)
    assert set(re.findall("F[0-9A-F]{16}", told)) <= intake.where.keys()  # the screen says which they are
    stored = (cohort.folder / "refused.jsonl").read_text()
    assert [word for word in (value, "WEST", "z.dcm") if word in stored] == []


def test_an_image_that_stands_under_two_numbers_refuses_both(archive: Path, let_in: LetIn, edit: Edit) -> None:
    plant(archive, edit, "z", 3, "PatientID", "another number")
    intake, _ = let_in(archive)
    assert (intake.admitted, len(intake.refused)) == ((), 2)
    assert all("under another PatientID" in reason for reason in intake.refused.values())
    assert [intake.where[handle].name for handle in intake.left_out] == ["z.dcm"]


def test_other_patients_of_the_folder_come_in(archive: Path, case: Case, let_in: LetIn, edit: Edit) -> None:
    write_patient(dataclasses.replace(case, patient="somebody else"), archive)
    plant(archive, edit, "z", 1, "PatientBirthDate", "19310101")
    intake, _ = let_in(archive)
    assert (len(intake.admitted), len(intake.refused)) == (1, 1)


@pytest.fixture
def way_back(tmp_path: Path) -> WayBack:
    return WayBack(tmp_path / "identity" / "map.sqlite")


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("PatientBirthDate", "19310101", "known with another birth date"),
        ("PatientID", "another number", "the same image is known under another PatientID"),
    ],
)
def test_whoever_is_known_otherwise_from_the_door_is_refused_by_hand(
    archive: Path, let_in: LetIn, edit: Edit, tmp_path: Path, way_back: WayBack, keyword: str, value: str, reason: str
) -> None:
    for path in archive.rglob("*.dcm"):  # as the door does
        deidentify_file(path, tmp_path / "clean", deidentify=Deidentifier(KEY), way_back=way_back)
    for path in archive.rglob("*.dcm"):
        edit(path, lambda d: setattr(d, keyword, value))
    (archive / "endpoints.csv").unlink()
    intake, cohort = let_in(archive, way_back=way_back)
    (told,) = intake.refused.values()
    assert reason in told
    assert told.endswith("so says what has been let in here before")
    assert len(cohort) == 0
    assert way_back.pseudonyms("another number") == ()


def test_whoever_was_let_in_by_hand_is_known_to_the_door(
    archive: Path, let_in: LetIn, edit: Edit, tmp_path: Path, way_back: WayBack
) -> None:
    for _ in range(2):
        intake, _ = let_in(archive, way_back=way_back)
        assert len(intake.admitted) == 1
    person = way_back.person(intake.admitted[0])
    slice_1 = file_of(archive, "lge", 1)
    assert person is not None
    assert person.patient_id == pydicom.dcmread(slice_1).PatientID
    edit(slice_1, lambda d: setattr(d, "PatientBirthDate", "19310101"))
    became = deidentify_file(slice_1, tmp_path / "clean", deidentify=Deidentifier(KEY), way_back=way_back)
    assert isinstance(became, Quarantined)
    assert "another birth date" in became.reason


def test_nothing_is_written_down_of_who_has_withdrawn(archive: Path, let_in: LetIn, way_back: WayBack) -> None:
    intake, cohort = let_in(archive)
    cohort.withdraw(intake.admitted[0])
    intake, _ = let_in(archive, way_back=way_back)
    assert "has withdrawn" in next(iter(intake.refused.values()))
    assert way_back.person(next(iter(intake.refused))) is None


def test_a_way_back_that_can_not_be_written_refuses_nobody(archive: Path, let_in: LetIn, way_back: WayBack) -> None:
    way_back.close()
    with pytest.raises(OSError, match="way back"):
        let_in(archive, way_back=way_back)
    assert let_in(archive)[1].refused == []
