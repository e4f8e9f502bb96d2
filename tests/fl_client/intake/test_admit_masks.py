from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.door import Intake
from simulation.dicom import Identity, write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Edit = Callable[..., None]
Change = Callable[[pydicom.Dataset], object]


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
    mine = Identity.invent(case.patient)
    for keyword, value in (("PatientID", mine.patient_id), ("PatientBirthDate", mine.birth_date)):
        edit(
            archive / other.patient_id / "cine_ed-mask.dcm", lambda d, keyword=keyword, value=value: setattr(d, keyword, value)
        )
    intake, _ = let_in(archive)
    assert "refers to images of another patient" in only(intake.refused)
    assert len(intake.admitted) == 1  # the other, whose mask is now missing, not wrong


@pytest.fixture
def corrected(archive: Path, edit: Edit) -> Callable[..., Path]:
    """The archive with a second mask of `cine_ed`, drawn on another day; `corrected(first=..., second=...)` edits the two."""

    def write(*, day: str = "20240106", first: Change = lambda seg: None, second: Change = lambda seg: None) -> Path:
        mask = next(archive.rglob("cine_ed-mask.dcm"))
        shutil.copy(mask, archive / "A second.dcm")  # read before the first
        edit(mask, lambda seg: (setattr(seg, "ContentDate", "20240105"), first(seg)))
        edit(
            archive / "A second.dcm",
            lambda seg: (setattr(seg, "SOPInstanceUID", "1.2.3.4"), setattr(seg, "ContentDate", day), second(seg)),
        )
        return archive

    return write


def fewer(seg: pydicom.Dataset) -> None:
    """One voxel less: the first that any segment has."""
    pixels = bytearray(seg.PixelData)
    at = next(number for number, byte in enumerate(pixels) if byte)
    pixels[at] &= pixels[at] - 1
    seg.PixelData = bytes(pixels)


def with_a_program(seg: pydicom.Dataset) -> None:
    for segment in seg.SegmentSequence:
        segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "SEMIAUTOMATIC", "a program"


def unreadable(seg: pydicom.Dataset) -> None:
    seg.SegmentSequence[0].SegmentLabel = "lesion"
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "52988006"


def test_of_a_mask_and_its_correction_on_a_later_day_the_correction_counts(
    corrected: Callable[..., Path], case: Case, let_in: LetIn
) -> None:
    intake, cohort = let_in(corrected(second=fewer))
    assert only(intake.left_out) == "cine_ed: a mask of a later day takes its place"
    volume = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert volume is not None
    assert (volume.mask != case.volumes[0].mask).sum() == 1


def test_a_correction_of_a_mask_that_could_not_be_read_lets_the_patient_in(
    corrected: Callable[..., Path], case: Case, let_in: LetIn
) -> None:
    intake, cohort = let_in(corrected(first=unreadable))
    assert only(intake.left_out) == "cine_ed: a mask of a later day takes its place"
    assert np.array_equal(cohort.case(intake.admitted[0]).volume("cine_ed").mask, case.volumes[0].mask)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"second": with_a_program}, "two masks for cine_ed; one of them has to go"),
        ({"day": "20240105"}, "two masks for cine_ed; one of them has to go"),
        ({"day": ""}, "two masks for cine_ed; one of them has to go"),
        ({"second": lambda seg: setattr(seg, "PixelData", bytes(len(seg.PixelData)))}, "lacks a structure of the earlier"),
        ({"second": unreadable}, "the mask of cine_ed: segment 1 has a label and a code that stand nowhere"),
    ],
)
def test_a_second_mask_that_may_be_no_correction_refuses_the_patient(
    corrected: Callable[..., Path], let_in: LetIn, more: dict[str, Any], reason: str
) -> None:
    assert reason in only(let_in(corrected(**more))[0].refused)


def at(time: str, reader: str = "") -> Change:
    def change(seg: pydicom.Dataset) -> None:
        seg.ContentTime, seg.ContentCreatorName = time, reader

    return change


@pytest.mark.parametrize(("first", "second", "counts"), [("101500", "1016", "second"), ("101501.5", "101500.75", "first")])
def test_of_a_mask_and_its_correction_on_the_same_day_the_one_drawn_later_counts(
    corrected: Callable[..., Path], case: Case, let_in: LetIn, first: str, second: str, counts: str
) -> None:
    def smaller(seg: pydicom.Dataset) -> None:
        fewer(seg)
        at(second, "Dr. Alpha")(seg)

    intake, cohort = let_in(corrected(day="20240105", first=at(first, "Dr. Alpha"), second=smaller))
    assert only(intake.left_out) == "cine_ed: a mask drawn later on the same day takes its place"
    volume = cohort.case(intake.admitted[0]).volume("cine_ed")
    assert volume is not None
    assert (volume.mask != case.volumes[0].mask).sum() == (counts == "second")
    assert intake.left_out.items() <= {(line["what"], line["reason"]) for line in cohort.refused}


def test_masks_of_two_readers_on_one_day_are_refused(corrected: Callable[..., Path], let_in: LetIn) -> None:
    archive = corrected(day="20240105", first=at("101500", "Dr. Alpha"), second=at("111500", "Dr. Beta"))
    reason = only(let_in(archive)[0].refused)
    assert reason == "two masks for cine_ed of one day, not by the same reader; one of them has to go"


def test_where_the_contents_have_one_time_the_instances_decide(corrected: Callable[..., Path], let_in: LetIn) -> None:
    def created(time: str) -> Change:
        return lambda seg: seg.update({"InstanceCreationDate": "20240105", "InstanceCreationTime": time})

    intake, _ = let_in(corrected(day="20240105", first=created("120000"), second=created("130000")))
    assert only(intake.left_out) == "cine_ed: a mask drawn later on the same day takes its place"


def test_two_masks_of_one_series_are_refused(archive: Path, let_in: LetIn, edit: Edit) -> None:
    mask = next(archive.rglob("cine_ed-mask.dcm"))
    shutil.copy(mask, archive / "second.dcm")
    edit(archive / "second.dcm", lambda dataset: setattr(dataset, "SOPInstanceUID", "1.2.3.4"))
    assert "two masks for cine_ed" in only(let_in(archive)[0].refused)
