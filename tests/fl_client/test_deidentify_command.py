from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fl_client.__main__ import main
from simulation.dicom import Identity, write_patient
from tasks.case import Case, Volume


def a_small_case() -> Case:
    image = np.arange(3 * 8 * 9, dtype=np.uint16).reshape(3, 8, 9)
    return Case("patient-1", (Volume("lge", image, np.diag([8.0, 1.5, 1.5, 1.0])),), {}, {"manufacturer": "Siemens"})


@pytest.fixture
def clinic(tmp_path: Path) -> list[str]:
    site = tmp_path / "clinic" / "site.yaml"
    site.parent.mkdir()
    assert main(["--site", str(site), "init", "--name", "clinic", "--declared-size", "10"]) == 0
    return ["--site", str(site)]


def test_of_a_patient_who_has_withdrawn_nothing_is_copied(
    clinic: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    case = a_small_case()
    write_patient(case, archive)
    assert main([*clinic, "withdraw", Identity.invent(case.patient).patient_id]) == 0
    assert main([*clinic, "deidentify", str(archive), "--out", str(out), "--other-key"]) == 1
    assert list(out.rglob("*.dcm")) == []
    assert "its patient has withdrawn" in capsys.readouterr().out


def test_copies_hold_nothing_of_the_person_and_the_tables_say_what_was_taken(
    clinic: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    case = a_small_case()
    write_patient(case, archive)
    (archive / "letter.txt").write_text("Dear colleague")
    assert main([*clinic, "deidentify", str(archive), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    copies = list(out.rglob("*.dcm"))
    originals = list(archive.rglob("*.dcm"))
    assert len(copies) == len(originals) > 0
    assert f"{len(copies)} of {len(originals) + 2} files copied, of 1 patients; 2 not, 1 reasons" in said  # and endpoints.csv
    rows = list(csv.DictReader((out / "files.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["outcome"] for row in rows} == {"copied", "not copied"}
    assert [row["copy or reason"] for row in rows if row["outcome"] == "not copied"] == ["not a DICOM file"] * 2
    dropped = {
        row["attribute"]: int(row["times"])
        for row in csv.DictReader((out / "dropped.csv").read_text(encoding="utf-8").splitlines())
    }
    assert dropped["PatientBirthDate"] == len(originals)
    person = Identity.invent(case.patient)
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert person.patient_id.encode() not in everything
    assert person.name.split("^")[0].encode() not in everything


def test_another_key_gives_pseudonyms_that_nobody_can_link(clinic: list[str], tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write_patient(a_small_case(), archive)
    for name, more in (("one", []), ("two", ["--other-key"]), ("three", ["--other-key"])):
        assert main([*clinic, "deidentify", str(archive), "--out", str(tmp_path / name), *more]) == 0
    patients = [{path.parts[-4] for path in (tmp_path / name).rglob("*.dcm")} for name in ("one", "two", "three")]
    assert len(set.union(*patients)) == 3


def test_the_site_says_what_is_retained_and_an_option_overrides_it(clinic: list[str], tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write_patient(a_small_case(), archive)
    assert main([*clinic, "deidentify", str(archive), "--out", str(tmp_path / "one")]) == 0
    assert main([*clinic, "deidentify", str(archive), "--out", str(tmp_path / "two"), "--retain", "characteristics"]) == 0
    one, two = (pydicom.dcmread(next((tmp_path / name).rglob("*.dcm"))) for name in ("one", "two"))
    assert one.StudyDate
    assert not one.PatientSex
    assert not two.StudyDate
    assert two.PatientSex in ("F", "M")


def test_a_folder_that_holds_something_is_left_alone(
    clinic: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main([*clinic, "deidentify", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds something already" in capsys.readouterr().err
    assert main([*clinic, "deidentify", str(tmp_path), "--out", str(tmp_path / "new")]) == 1
    assert "lies inside" in capsys.readouterr().err
