from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from pathlib import Path

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
