from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from fl_client.intake.clean import Cleaned, deidentify_file
from fl_client.intake.deidentify import Deidentifier, Pseudonyms
from fl_client.intake.way_back import OriginalStudy, Person, TwoPeople, WayBack

KEY = b"sixteen bytes at least"
PSEUDONYMS = Pseudonyms(KEY)


@pytest.fixture
def way_back(tmp_path: Path) -> WayBack:
    return WayBack(tmp_path / "identity" / "map.sqlite")


def an_original(number: int = 1) -> Dataset:
    dataset = Dataset()
    dataset.PatientID, dataset.IssuerOfPatientID, dataset.PatientName = " MRN-1", "WEST", "Abendroth^Anna"
    dataset.PatientBirthDate, dataset.PatientSex = "19571103", "F"
    dataset.StudyInstanceUID, dataset.StudyDate, dataset.StudyTime = "1.2.3", "20240115", "101112"
    dataset.AccessionNumber, dataset.StudyID = "ACC-7", "S7"
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.2.3.4", f"1.2.3.4.{number}"
    dataset.FrameOfReferenceUID = "1.2.9"
    return dataset


def test_the_way_back_leads_to_the_patient_and_the_archives_uids(way_back: WayBack) -> None:
    way_back.remember(an_original(), PSEUDONYMS)
    pseudonym, study = PSEUDONYMS.pseudonym("MRN-1"), PSEUDONYMS.uid("1.2.3")
    assert way_back.person(pseudonym) == Person("MRN-1", "WEST", "Abendroth^Anna", "19571103", "F")
    assert way_back.pseudonyms("MRN-1 ") == (pseudonym,)
    assert way_back.study(study) == OriginalStudy("1.2.3", pseudonym, "20240115", "101112", "ACC-7", "S7")
    assert way_back.original_uid(study) == "1.2.3"
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4")) == "1.2.3.4"
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4.1")) == "1.2.3.4.1"
    assert way_back.frame_of_reference(PSEUDONYMS.uid("1.2.3.4")) == "1.2.9"
    assert way_back.person("P0") is way_back.study("2.25.1") is way_back.original_uid("2.25.1") is None


def test_once_more_changes_nothing(way_back: WayBack) -> None:
    for number in (1, 2, 1, 2):
        way_back.remember(an_original(number), PSEUDONYMS)
    with sqlite3.connect(way_back.path) as database:
        counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES]
    database.close()
    assert counts == [1, 1, 1, 2]


TABLES = ("patient", "study", "series", "instance")


def test_a_number_of_two_issuers_is_told_and_the_first_patient_stays(way_back: WayBack) -> None:
    way_back.remember(an_original(), PSEUDONYMS)
    other = an_original(2)
    other.IssuerOfPatientID, other.PatientName = "EAST", "Brunnthaler^B"
    with pytest.raises(TwoPeople, match="another issuer"):
        way_back.remember(other, PSEUDONYMS)
    person = way_back.person(PSEUDONYMS.pseudonym("MRN-1"))
    assert person is not None
    assert person.issuer == "WEST"
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4.2")) is None
    other.IssuerOfPatientID = ""  # not every device says who gave the number
    way_back.remember(other, PSEUDONYMS)


def test_an_issuer_that_the_first_file_did_not_say_is_learned_from_a_later_one(way_back: WayBack) -> None:
    for number, issuer in ((1, ""), (2, "WEST")):
        each = an_original(number)
        each.IssuerOfPatientID = issuer
        way_back.remember(each, PSEUDONYMS)
    person = way_back.person(PSEUDONYMS.pseudonym("MRN-1"))
    assert person is not None
    assert person.issuer == "WEST"
    other = an_original(3)
    other.IssuerOfPatientID = "EAST"
    with pytest.raises(TwoPeople, match="another issuer"):
        way_back.remember(other, PSEUDONYMS)


def test_a_number_with_two_birth_dates_is_told_and_a_missing_one_is_learned(way_back: WayBack) -> None:
    first, other = an_original(1), an_original(3)
    first.PatientBirthDate = ""
    other.PatientBirthDate = "19310101"
    way_back.remember(first, PSEUDONYMS)
    way_back.remember(an_original(2), PSEUDONYMS)
    with pytest.raises(TwoPeople, match="another birth date"):
        way_back.remember(other, PSEUDONYMS)
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4.3")) is None
    way_back.remember(first, PSEUDONYMS)


def test_an_image_that_is_known_under_another_number_is_told(way_back: WayBack) -> None:
    way_back.remember(an_original(), PSEUDONYMS)
    merged = an_original()
    merged.PatientID = "MRN-2"
    with pytest.raises(TwoPeople, match="another PatientID"):
        way_back.remember(merged, PSEUDONYMS)
    assert way_back.pseudonyms("MRN-2") == ()


def two_patients_of_one_study(way_back: WayBack) -> tuple[str, str]:
    other = an_original(2)
    other.PatientID, other.PatientName, other.AccessionNumber = "MRN-2", "Brunnthaler^B", "ACC-8"
    way_back.remember(an_original(1), PSEUDONYMS)
    way_back.remember(other, PSEUDONYMS)
    return PSEUDONYMS.pseudonym("MRN-1"), PSEUDONYMS.pseudonym("MRN-2")


def test_when_one_of_two_patients_with_one_study_withdraws_the_other_keeps_the_way_back(way_back: WayBack) -> None:
    one, other = two_patients_of_one_study(way_back)
    study = PSEUDONYMS.uid("1.2.3")
    assert way_back.study(study) is None  # whose, nobody said
    assert way_back.study(study, one) == OriginalStudy("1.2.3", one, "20240115", "101112", "ACC-7", "S7")
    way_back.forget(one)
    assert way_back.study(study) == OriginalStudy("1.2.3", other, "20240115", "101112", "ACC-8", "S7")
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4")) == "1.2.3.4"
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4.2")) == "1.2.3.4.2"
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4.1")) is None


OLDER = """
CREATE TABLE patient (pseudonym TEXT PRIMARY KEY, patient_id TEXT NOT NULL, issuer TEXT NOT NULL, name TEXT NOT NULL,
    birth_date TEXT NOT NULL, sex TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE study (new TEXT PRIMARY KEY, original TEXT NOT NULL, pseudonym TEXT NOT NULL REFERENCES patient,
    date TEXT NOT NULL,
    time TEXT NOT NULL, accession TEXT NOT NULL, study_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE series (new TEXT PRIMARY KEY, original TEXT NOT NULL, study TEXT NOT NULL REFERENCES study,
    frame_of_reference TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE instance (new TEXT PRIMARY KEY, original TEXT NOT NULL, series TEXT NOT NULL REFERENCES series) WITHOUT ROWID;
INSERT INTO patient VALUES ('P1', 'MRN-1', '', 'Abendroth^Anna', '', '');
INSERT INTO study VALUES ('2.25.1', '1.1', 'P1', '20240115', '', 'ACC-7', '');
INSERT INTO series VALUES ('2.25.2', '1.2', '2.25.1', '1.9');
INSERT INTO instance VALUES ('2.25.3', '1.3', '2.25.2');
"""


def test_a_database_of_before_is_taken_over(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "map.sqlite")
    database.executescript(OLDER)
    database.close()
    for _ in range(2):
        way_back = WayBack(tmp_path / "map.sqlite")
        assert way_back.study("2.25.1") == OriginalStudy("1.1", "P1", "20240115", "", "ACC-7", "")
        assert [way_back.original_uid(f"2.25.{number}") for number in (1, 2, 3)] == ["1.1", "1.2", "1.3"]
        assert way_back.frame_of_reference("2.25.2") == "1.9"
    way_back.forget("P1")
    assert [way_back.original_uid(f"2.25.{number}") for number in (1, 2, 3)] == [None] * 3


def test_a_database_that_is_none_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "map.sqlite").write_bytes(b"no database at all, but rather long" * 30)
    with pytest.raises(OSError, match=r"the way back map\.sqlite can't be read"):
        WayBack(tmp_path / "map.sqlite")


def test_only_the_intakes_user_can_read_it(way_back: WayBack) -> None:
    way_back.remember(an_original(), PSEUDONYMS)
    assert stat.S_IMODE(way_back.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(way_back.path.parent.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in way_back.path.parent.iterdir())


def test_a_forgotten_patient_is_in_no_byte_of_the_file_and_others_stay(way_back: WayBack) -> None:
    other = an_original(9)
    other.PatientID, other.PatientName, other.StudyInstanceUID = "MRN-2", "Brunnthaler^B", "1.2.5"
    other.SeriesInstanceUID, other.SOPInstanceUID = "1.2.5.6", "1.2.5.6.7"
    way_back.remember(an_original(), PSEUDONYMS)
    way_back.remember(other, PSEUDONYMS)
    way_back.forget(PSEUDONYMS.pseudonym("MRN-1"))
    assert way_back.pseudonyms("MRN-1") == ()
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.3.4.1")) is None
    assert way_back.original_uid(PSEUDONYMS.uid("1.2.5.6.7")) == "1.2.5.6.7"
    assert b"Abendroth" not in b"".join(path.read_bytes() for path in way_back.path.parent.iterdir())


def test_every_file_of_the_store_has_a_way_back(archive: Path, tmp_path: Path, way_back: WayBack) -> None:
    for source in archive.rglob("*.dcm"):
        result = deidentify_file(source, tmp_path / "clean", deidentify=Deidentifier(KEY), way_back=way_back)
        assert isinstance(result, Cleaned)
        before = pydicom.dcmread(source, stop_before_pixels=True)
        uids = (before.StudyInstanceUID, before.SeriesInstanceUID, before.SOPInstanceUID)
        assert tuple(map(way_back.original_uid, (result.study, result.series, result.instance))) == uids
        person = way_back.person(result.pseudonym)
        assert person is not None
        assert person.name == str(before.PatientName)


def test_a_kill_leaves_no_file_of_the_store_without_a_way_back(archive: Path, tmp_path: Path, way_back: WayBack) -> None:
    script = (
        "import sys; from pathlib import Path; from fl_client.intake.clean import *\n"
        "w, d = WayBack(Path(sys.argv[3])), Deidentifier(b'sixteen bytes at least')\n"
        "print('ready', flush=True)\n"
        "[deidentify_file(p, Path(sys.argv[2]), deidentify=d, way_back=w) for p in sorted(Path(sys.argv[1]).rglob('*.dcm'))]"
    )
    command = [sys.executable, "-c", script, archive, tmp_path / "clean", way_back.path]
    clean = set[Path]()
    for pause in (0.02, 0.06, 0.1):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
        clean |= set((tmp_path / "clean").rglob("*.dcm"))
        assert all(way_back.original_uid(path.stem) for path in clean)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    left = [path for path in (tmp_path / "clean").rglob("*.dcm") if way_back.original_uid(path.stem) is None]
    assert left == []
    assert len(list((tmp_path / "clean").rglob("*.dcm"))) == len(list(archive.rglob("*.dcm")))
