from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake import admit
from fl_client.intake.door import Intake
from fl_client.intake.series import SeriesRule, SeriesRules
from simulation.dicom import Identity
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]
Snapshot = Callable[[Cohort], dict[str, bytes]]


def only(reasons: Any) -> str:
    assert len(reasons) == 1, reasons
    return str(next(iter(reasons.values())))


def file_of(archive: Path, series: str, number: int) -> Path:
    return next(archive.rglob(f"{series}/IM{number:04d}.dcm"))


def test_a_patient_through_dicom_is_the_case_handed_over_directly(
    archive: Path, case: Case, let_in: LetIn, tmp_path: Path
) -> None:
    direct = Cohort(tmp_path / "direct")
    direct.admit(case)
    intake, cohort = let_in(archive)
    assert (intake.expected, len(intake.admitted), intake.refused, intake.left_out) == (1, 1, {}, {})
    through, handed = cohort.case(intake.admitted[0]), direct.case(case.patient)
    assert {volume.series for volume in through.volumes} == {volume.series for volume in handed.volumes}
    for expected in handed.volumes:
        volume = through.volume(expected.series)
        assert volume is not None
        assert volume.image.dtype == expected.image.dtype
        assert np.array_equal(volume.image, expected.image)
        # a decimal string has 16 characters: at least 10 digits of a coordinate in mm
        assert np.abs(volume.affine - expected.affine).max() < 1e-8
        assert (volume.mask is None) == (expected.mask is None)
        if expected.mask is not None:
            assert np.array_equal(volume.mask, expected.mask)
    assert through.endpoints == handed.endpoints
    assert through.scanner == handed.scanner


def test_nothing_that_names_the_person_reaches_the_cohort(
    archive: Path, case: Case, let_in: LetIn, snapshot: Snapshot, caplog: Any, capfd: Any
) -> None:
    person = Identity.invent(case.patient)
    planted = {value for name, value in dataclasses.asdict(person).items() if name not in ("sex", "study_time")}
    planted |= {part for value in (person.name, person.physician, person.operator) for part in value.split("^")}
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in archive.rglob("*.dcm")}
    stray = archive / person.name / f"{person.patient_id}.txt"  # a name in a path, too
    stray.parent.mkdir()
    stray.write_text(person.name)
    file_of(archive, "lge", 3).unlink()
    caplog.set_level(logging.DEBUG)
    original = b"".join(path.read_bytes() for path in archive.rglob("*") if path.is_file())
    assert [text for text in planted if text.encode() not in original] == []  # what is looked for is really there
    intake, cohort = let_in(archive)
    assert intake.refused
    shutil.rmtree(stray.parent)
    shutil.rmtree(archive.parent / "archive" / person.patient_id / "lge")
    intake, cohort = let_in(archive)
    assert intake.admitted
    written = b"".join([*snapshot(cohort).values(), *(name.encode() for name in snapshot(cohort))])
    screen = "".join(capfd.readouterr()) + caplog.text + repr(intake)
    assert [text for text in planted | uids if text.lower().encode() in written.lower()] == []
    assert [text for text in planted | uids if text.lower() in screen.lower()] == []


def test_two_hospitals_with_different_keys_share_no_pseudonym(archive: Path, let_in: LetIn) -> None:
    ours, _ = let_in(archive)
    theirs, cohort = let_in(archive, key=b"the key of another hospital")
    assert set(ours.admitted).isdisjoint(theirs.admitted)
    assert len(cohort) == 2


def change(pattern: str, **elements: object) -> Callable[[Path, Edit], None]:
    """Set elements in all files of this pattern."""

    def spoil(archive: Path, edit: Edit) -> None:
        for path in archive.rglob(pattern):
            edit(path, lambda dataset: dataset.update(elements))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a, edit: file_of(a, "cine_ed", 3).unlink(), "cine_ed: slices are missing"),
        (lambda a, edit: file_of(a, "cine_ed", 6).unlink(), "mask 1 refers to 6 images, of which 1 are not here"),
        (change("lge/IM0002.dcm", ImagePositionPatient=[0, 0, 0]), "lge: "),
        (change("lge/IM0002.dcm", PixelData=b"12"), "lge: the pixel data of image 2 of 6"),
        (change("IM*.dcm", Modality="OT"), "no usable series"),
        (change("cine_ed-mask.dcm", FrameOfReferenceUID="1.2.3"), "frame of reference"),
    ],
)
def test_a_patient_whose_images_or_mask_are_wrong_is_refused(
    archive: Path, let_in: LetIn, edit: Edit, spoil: Any, reason: str
) -> None:
    spoil(archive, edit)
    intake, cohort = let_in(archive)
    assert reason in only(intake.refused)
    assert len(cohort) == 0
    assert cohort.refused[-1]["what"] == next(iter(intake.refused))


def test_a_second_slice_at_the_same_place_is_refused(archive: Path, let_in: LetIn, edit: Edit) -> None:
    shutil.copy(file_of(archive, "lge", 2), archive / "again.dcm")
    edit(archive / "again.dcm", lambda dataset: setattr(dataset, "SOPInstanceUID", "1.2.3.4"))
    assert "lge: 7 images at 6 positions" in only(let_in(archive)[0].refused)


def test_endpoints_without_images_and_bad_cells_are_refusals(archive: Path, let_in: LetIn, case: Case) -> None:
    table = archive / "endpoints.csv"
    mine = Identity.invent(case.patient).patient_id
    table.write_text(f"patient_id,event\n{mine},maybe\nMRN-7,1\n")
    intake, cohort = let_in(archive)
    assert intake.expected == 2
    assert sorted(intake.refused.values()) == [
        "line 2 of endpoints.csv: event is no number",
        "stands in endpoints.csv, but there are no images",
    ]
    assert len(cohort) == 0


def test_an_unreadable_endpoint_table_is_left_out_with_the_reason(archive: Path, let_in: LetIn) -> None:
    (archive / "endpoints.csv").write_bytes(b"\xff\xfe1;2")
    intake, cohort = let_in(archive)
    assert "not UTF-8" in only(intake.left_out)
    assert not cohort.case(intake.admitted[0]).endpoints


def test_progress_counts_files_and_then_patients(archive: Path, let_in: LetIn) -> None:
    seen: list[tuple[int, int]] = []
    let_in(archive, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 20) for number in range(1, 21)] + [(1, 1)]


def test_a_folder_that_is_not_there_is_an_error(let_in: LetIn, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        let_in(tmp_path / "nowhere")


ANYTHING = SeriesRules(rules=(SeriesRule(name="mr"), SeriesRule(name="ct", modality="CT")))


@pytest.mark.parametrize(("rules", "inside"), [(None, []), (ANYTHING, ["ct", "mr"])], ids=["hearts", "anything"])
def test_every_file_of_other_projects_ends_as_a_case_or_a_reason(
    shared_data: Path, let_in: LetIn, snapshot: Snapshot, rules: SeriesRules | None, inside: list[str]
) -> None:
    folder = shared_data / "dicom_files"
    if not folder.is_dir():
        pytest.skip(f"no collection of DICOM files at {folder}")
    intake, cohort = let_in(folder, series=rules)
    assert intake.expected == len(intake.admitted) + len(intake.refused)
    assert len(cohort) == len(intake.admitted)
    assert sorted(volume.series for case in cohort for volume in case.volumes) == inside  # one whole series each
    assert intake.expected > 20
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    assert files > 80
    names = subprocess.run(
        ["cut", "-d,", "-f13", folder / "manifest.csv"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[1:]
    written = b"".join(snapshot(cohort).values())
    assert [name for name in names if len(name) > 5 and "^" in name and name.encode() in written] == []


def test_an_unforeseen_error_is_a_refusal_that_repeats_no_text(archive: Path, let_in: LetIn, monkeypatch: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Abendroth")

    monkeypatch.setattr(admit, "to_volume", fail)
    assert only(let_in(archive)[0].refused) == "its files can't be understood (RuntimeError)"
