from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom

from fl_client.cohort import Cohort
from fl_client.intake.door import Intake
from simulation.dicom import Identity, write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]


def only(reasons: Any) -> str:
    assert len(reasons) == 1, reasons
    return str(next(iter(reasons.values())))


def test_an_unmapped_label_refuses_the_patient_without_repeating_the_text(archive: Path, let_in: LetIn, edit: Edit) -> None:
    def rename(dataset: pydicom.Dataset) -> None:
        dataset.SegmentSequence[1].SegmentLabel = "Abendroth's lesion"
        dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "52988006"

    edit(next(archive.rglob("cine_es-mask.dcm")), rename)
    reason = only(let_in(archive)[0].refused)
    assert reason.startswith("the mask of cine_es: segment 2 has a label and a code that stand nowhere in the label map")
    assert "Abendroth" not in reason


def test_a_label_and_a_code_that_disagree_refuse_the_patient(archive: Path, let_in: LetIn, edit: Edit) -> None:
    edit(
        next(archive.rglob("cine_ed-mask.dcm")),
        lambda dataset: setattr(dataset.SegmentSequence[0], "SegmentLabel", "myocardium"),
    )
    assert "segment 1 is myocardium by its label and blood_pool by its code" in only(let_in(archive)[0].refused)


def test_a_mask_drawn_on_another_patient_is_refused(
    archive: Path, case: Case, let_in: LetIn, edit: Edit, tmp_path: Path
) -> None:
    other = Identity.invent("somebody else")
    write_patient(dataclasses.replace(case, patient="somebody else"), archive, identity=other)
    mine = Identity.invent(case.patient).patient_id
    edit(archive / other.patient_id / "cine_ed-mask.dcm", lambda dataset: setattr(dataset, "PatientID", mine))
    intake, _ = let_in(archive)
    assert "refers to images of another patient" in only(intake.refused)
    assert len(intake.admitted) == 1  # the other, whose mask is now missing, not wrong


def test_two_masks_of_one_series_are_refused(archive: Path, let_in: LetIn, edit: Edit) -> None:
    mask = next(archive.rglob("cine_ed-mask.dcm"))
    shutil.copy(mask, archive / "second.dcm")
    edit(archive / "second.dcm", lambda dataset: setattr(dataset, "SOPInstanceUID", "1.2.3.4"))
    assert "two masks for cine_ed" in only(let_in(archive)[0].refused)
