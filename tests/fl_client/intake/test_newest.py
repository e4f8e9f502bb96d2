"""Whichever folder comes first: of two examinations the later counts, and it is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fl_client.cohort import Cohort
from fl_client.intake.admit import admit_folder
from fl_client.intake.door import Intake
from fl_client.intake.newest import Choice, newest
from fl_client.refused import RefusedList
from simulation.dicom import write_patient
from tasks.case import Case

LetIn = Callable[..., tuple[Intake, Cohort]]
Written = Callable[..., Path]
MONDAY, FRIDAY = "20240108", "20240112"


@pytest.mark.parametrize(
    ("inside", "coming", "stays", "goes", "replaced"),
    [
        ({}, {"lge": "2"}, [], [], []),
        ({"lge": "1"}, {"lge": "2"}, [], [], ["lge"]),
        ({"lge": "2"}, {"lge": "1"}, ["lge"], [], []),
        ({"lge": "2"}, {"lge": "2"}, [], [], []),
        ({"lge": ""}, {"lge": "1"}, [], [], []),  # nobody knows: as by hand
        ({"lge": "2"}, {"lge": ""}, [], [], []),
        ({"lge": "2"}, {"cine_ed": "1"}, [], [], []),
        ({"c_ed": "2", "c_es": "2"}, {"c_ed": "1", "c_es": "1"}, ["c_ed", "c_es"], [], []),
        ({"c_ed": "1", "c_es": "1"}, {"c_ed": "2", "c_es": "2"}, [], [], ["c_ed", "c_es"]),
        ({"c_ed": "1", "c_es": "1"}, {"c_ed": "2"}, ["c_ed"], [], []),  # a lone phase doesn't part two
        ({"c_ed": "2"}, {"c_ed": "1", "c_es": "1"}, [], [], ["c_ed"]),
        ({"c_es": "1"}, {"c_ed": "2"}, [], ["c_es"], []),  # the later phase alone
        ({"c_es": "2"}, {"c_ed": "1"}, ["c_ed"], [], []),
        ({"c_es": "1"}, {"c_ed": "1"}, [], [], []),  # two folders, one examination
        ({"c_ed": "1", "c_es": "1"}, {"lge": "3"}, [], [], []),
    ],
)
def test_the_later_day_counts_and_two_phases_are_of_one(
    inside: dict[str, str], coming: dict[str, str], stays: list[str], goes: list[str], replaced: list[str]
) -> None:
    found = newest(inside, coming)
    assert (list(found.stays), list(found.goes), list(found.replaced)) == (stays, goes, replaced)


def test_nothing_is_said_of_series_that_do_not_meet() -> None:
    assert newest({"lge": "1"}, {"perfusion": "2"}) == Choice({}, {}, {}, frozenset({"perfusion"}))


@pytest.fixture
def written(case: Case, tmp_path: Path) -> Written:
    """A folder with the patient's `lge`, of this day, with values that many times as large."""

    def write(day: str, *, times: int = 1) -> Path:
        lge = dataclasses.replace(case.volumes[2], image=case.volumes[2].image * times)
        folder = tmp_path / f"of {day} times {times}"
        write_patient(dataclasses.replace(case, volumes=(lge,), endpoints={}), folder)
        for path in folder.rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            dataset.StudyDate = dataset.AcquisitionDate = day
            dataset.save_as(path)
        return folder

    return write


def lge(cohort: Cohort) -> np.ndarray:
    (volume,) = cohort.case(cohort.patients[0]).volumes
    return np.asarray(volume.image)


def test_an_older_examination_that_is_brought_later_does_not_replace_the_newer_one(
    written: Written, let_in: LetIn, case: Case, snapshot: Callable[[Cohort], dict[str, bytes]]
) -> None:
    let_in(written(FRIDAY))
    before = snapshot(Cohort(let_in(written(FRIDAY))[1].folder))
    intake, cohort = let_in(written(MONDAY, times=2))
    assert np.array_equal(lge(cohort), case.volumes[2].image)
    assert list(intake.left_out.values()) == ["lge: of an earlier day than what is inside, which stays"]
    after = snapshot(cohort)
    assert {name for name in after if before.get(name) != after[name]} == {"refused.jsonl"}
    assert [line["reason"] for line in cohort.refused] == list(intake.left_out.values())


def test_a_newer_examination_replaces_the_older_one_and_says_so(written: Written, let_in: LetIn, case: Case) -> None:
    let_in(written(MONDAY))
    intake, cohort = let_in(written(FRIDAY, times=2))
    assert np.array_equal(lge(cohort), case.volumes[2].image * 2)
    assert list(intake.left_out.values()) == ["lge: one of an earlier day was inside; what came now takes its place"]
    assert not let_in(written(FRIDAY, times=2))[0].left_out  # once more says nothing more


def test_where_the_days_are_not_known_what_came_last_counts_and_it_is_told(written: Written, let_in: LetIn, case: Case) -> None:
    let_in(written(FRIDAY), keep_days=False)
    intake, cohort = let_in(written(MONDAY, times=2), keep_days=False)
    assert np.array_equal(lge(cohort), case.volumes[2].image * 2)
    assert list(intake.left_out.values()) == [
        "lge: another one was inside, and nobody knows which is of the later day; what came now takes its place"
    ]
    assert "day" not in json.loads(next(cohort.folder.rglob("case.json")).read_text())["volumes"][0]


def test_a_day_in_the_cohort_is_moved_as_all_the_patients_dates_are(written: Written, let_in: LetIn) -> None:
    _, cohort = let_in(written(FRIDAY))
    (day,) = cohort.days(cohort.patients[0]).values()
    assert len(day) == 8
    assert day < FRIDAY
    text = b"".join(path.read_bytes() for path in cohort.folder.rglob("*") if path.is_file())
    assert FRIDAY.encode() not in text


def test_the_list_of_refusals_is_read_once_however_many_patients_come(
    case: Case, tmp_path: Path, labels: Any, monkeypatch: Any
) -> None:
    cohort = Cohort(tmp_path / "cohort")
    for number in range(2000):
        cohort.refuse(f"F{number:016X}", "not a DICOM file")
    read: list[int] = []
    real = json.loads

    def counted(text: Any, *args: Any, **settings: Any) -> Any:
        read.append(len(text))
        return real(text, *args, **settings)

    for number in range(3):
        write_patient(dataclasses.replace(case, patient=f"p{number}", volumes=case.volumes[2:]), tmp_path / f"p{number}")
    monkeypatch.setattr("fl_client.refused.json.loads", counted)
    for number in range(3):
        admit_folder(tmp_path / f"p{number}", cohort, key=b"a key of the hospital, 32 bytes.", labels=labels, measure=False)
        (tmp_path / f"p{number}" / "note.txt").write_text("x")
        admit_folder(tmp_path / f"p{number}", cohort, key=b"a key of the hospital, 32 bytes.", labels=labels, measure=False)
    assert len(cohort) == 3
    assert 2000 <= len(read) < 2100


def test_lines_that_others_add_or_take_away_are_seen(tmp_path: Path) -> None:
    ours, theirs = RefusedList(tmp_path / "refused.jsonl"), RefusedList(tmp_path / "refused.jsonl")
    assert (ours.lines, ours.knows("P1", "a")) == ([], False)
    theirs.add("P1", "a")
    assert ours.knows("P1", "a")
    theirs.add("P2", "b")
    assert ours.lines == [{"what": "P1", "reason": "a"}, {"what": "P2", "reason": "b"}]
    (tmp_path / "new").write_text(json.dumps({"what": "P2", "reason": "b"}) + "\n")
    (tmp_path / "new").rename(tmp_path / "refused.jsonl")
    assert ours.lines == [{"what": "P2", "reason": "b"}]
    assert not ours.knows("P1", "a")
    with open(tmp_path / "refused.jsonl", "a") as file:
        file.write('{"what": "P3", "rea')  # cut short by a full disk
    ours.add("P4", "d")
    assert [line["what"] for line in theirs.lines] == ["P2", "P4"]
    (tmp_path / "refused.jsonl").unlink()
    assert ours.lines == []
