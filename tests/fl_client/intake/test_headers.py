from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fl_client.cohort import Cohort
from fl_client.intake.door import Intake

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


def test_a_number_with_two_issuers_or_birth_dates_and_an_image_of_two_numbers_stay_outside(
    archive: Path, let_in: LetIn, edit: Edit
) -> None:
    changes = {
        "z1": ("IssuerOfPatientID", "EAST"),
        "z2": ("PatientBirthDate", "19310101"),
        "z3": ("PatientID", "another number"),
    }
    for path in archive.rglob("*.dcm"):
        edit(path, lambda d: setattr(d, "IssuerOfPatientID", "WEST"))
    for number, (name, (keyword, value)) in enumerate(changes.items(), 1):
        shutil.copy(file_of(archive, "lge", number), archive / f"{name}.dcm")
        edit(archive / f"{name}.dcm", lambda d, keyword=keyword, value=value: setattr(d, keyword, value))
    intake, _ = let_in(archive)
    assert len(intake.admitted) == 1
    reasons = {intake.where[handle].name: reason for handle, reason in intake.left_out.items()}
    assert "another issuer" in reasons["z1.dcm"]
    assert "another birth date" in reasons["z2.dcm"]
    assert "under another PatientID" in reasons["z3.dcm"]
    assert len(intake.refused) == 1  # the other number, of which no image is left
