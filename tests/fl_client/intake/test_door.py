from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.door import Intake
from simulation.dicom import write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Snapshot = Callable[[Cohort], dict[str, bytes]]


def file_of(archive: Path, series: str, number: int) -> Path:
    return next(archive.rglob(f"{series}/IM{number:04d}.dcm"))


def test_the_same_folder_twice_gives_the_same_cohort(archive: Path, let_in: LetIn, snapshot: Snapshot) -> None:
    (archive / "note.txt").write_text("not DICOM")
    file_of(archive, "lge", 2).rename(archive / "moved")
    first, cohort = let_in(archive)
    before = snapshot(cohort)
    second, cohort = let_in(archive)
    assert (first.admitted, first.refused, first.left_out) == (second.admitted, second.refused, second.left_out)
    assert snapshot(cohort) == before


def test_a_later_folder_adds_to_the_one_case_of_the_patient(case: Case, let_in: LetIn, tmp_path: Path) -> None:
    write_patient(dataclasses.replace(case, volumes=case.volumes[:2]), tmp_path / "monday")
    write_patient(dataclasses.replace(case, volumes=case.volumes[2:], endpoints={"event": 0}), tmp_path / "friday")
    let_in(tmp_path / "monday")
    _, cohort = let_in(tmp_path / "friday")
    assert len(cohort) == 1
    merged = cohort.case(cohort.patients[0])
    assert [volume.series for volume in merged.volumes] == ["cine_ed", "cine_es", "lge"]
    assert (merged.endpoints["event"], merged.endpoints["ef"]) == (0, 0.4321)


def ed_alone(case: Case, **changes: Any) -> Case:
    """The patient's end-diastole and nothing else, changed."""
    return dataclasses.replace(case, volumes=(dataclasses.replace(case.volumes[0], **changes),), endpoints={})


def test_the_same_image_once_more_without_its_mask_leaves_the_mask(case: Case, let_in: LetIn, tmp_path: Path) -> None:
    write_patient(ed_alone(case), tmp_path / "monday")
    write_patient(ed_alone(case, mask=None), tmp_path / "friday")
    let_in(tmp_path / "monday")
    intake, cohort = let_in(tmp_path / "friday")
    (volume,) = cohort.case(intake.admitted[0]).volumes
    assert np.array_equal(volume.image, case.volumes[0].image)
    assert np.array_equal(volume.mask, case.volumes[0].mask)
    assert not intake.left_out
    assert not cohort.refused


@pytest.mark.parametrize("what", ["values", "place"])
def test_another_image_without_a_mask_replaces_the_old_one_and_its_mask_is_told_of(
    case: Case, let_in: LetIn, tmp_path: Path, what: str
) -> None:
    image, affine = case.volumes[0].image, case.volumes[0].affine.copy()
    if what == "values":
        image = image // 2
    else:
        affine[0, 3] += 1  # mm
    write_patient(ed_alone(case), tmp_path / "monday")
    write_patient(ed_alone(case, image=image, affine=affine, mask=None), tmp_path / "friday")
    let_in(tmp_path / "monday")
    intake, cohort = let_in(tmp_path / "friday")
    (patient,) = intake.admitted
    (volume,) = cohort.case(patient).volumes
    assert volume.mask is None
    assert np.array_equal(volume.image, image)
    assert np.abs(volume.affine - affine).max() < 1e-8
    reason = "cine_ed: a newer image without a mask replaces the older one, and the older one's mask no longer applies"
    assert intake.left_out == {f"{patient}-cine_ed-mask": reason}
    assert cohort.refused == [{"what": f"{patient}-cine_ed-mask", "reason": reason}]


def test_a_patient_whose_stored_case_is_damaged_is_refused_and_the_others_come_in(
    case: Case, let_in: LetIn, tmp_path: Path, snapshot: Snapshot
) -> None:
    write_patient(dataclasses.replace(case, volumes=case.volumes[:2]), tmp_path / "monday")
    intake, cohort = let_in(tmp_path / "monday")
    (patient,) = intake.admitted
    place = cohort.folder / "cases" / patient
    (place / "cine_es.image.npy").unlink()
    before = snapshot(cohort)
    write_patient(dataclasses.replace(case, volumes=case.volumes[2:]), tmp_path / "friday")
    write_patient(dataclasses.replace(case, patient="patient-2"), tmp_path / "friday")
    intake, cohort = let_in(tmp_path / "friday")
    assert intake.refused == {
        patient: "what the cohort has of this patient can't be read (cine_es.image.npy is missing), and what came now would "
        "replace it; move the patient's folder from cases/ to damaged/, then admit all images of this patient again"
    }
    assert (intake.expected, len(intake.admitted)) == (2, 1)
    assert snapshot(cohort).items() >= before.items()
    assert cohort.refused[-1]["what"] == patient

    place.rename(cohort.folder / "damaged" / patient)  # what the reason asks for
    intake, cohort = let_in(tmp_path / "monday")
    assert intake.admitted == (patient,)
    assert len(cohort.case(patient).volumes) == 2


def test_a_full_disk_leaves_the_cohort_as_it_was(archive: Path, let_in: LetIn, snapshot: Snapshot, case: Case) -> None:
    _, cohort = let_in(archive)
    before = snapshot(cohort)
    write_patient(dataclasses.replace(case, patient="second"), archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # a volume has 21 kB: the write fails in the middle
    try:
        with pytest.raises(OSError, match="written"):
            let_in(archive)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(cohort) == before
    intake, cohort = let_in(archive)
    assert len(cohort) == len(intake.admitted) == 2


def test_quality_is_recorded_beside_the_case(archive: Path, let_in: LetIn) -> None:
    intake, cohort = let_in(archive)
    text = json.loads((cohort.folder / "quality" / f"{intake.admitted[0]}.json").read_text())
    assert text["volumes"].keys() == {"cine_ed", "cine_es", "lge"}
    assert text["mask_resampled/cine_ed"] is False
