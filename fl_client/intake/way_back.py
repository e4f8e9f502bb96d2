"""The way back from pseudonyms to patients and from new UIDs to the archive's: a small database in the identity zone.

Masks and reports go back to the archive under the patient's own identifiers, and a patient who withdraws is named by the
hospital's number. Nothing but the intake reads this file; it is of mode 0600 and belongs beside the originals. Whoever destroys
it and the key has cut the way back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pydicom.dataset import Dataset

from fl_client.intake.moments import Moment, moment_of
from fl_client.intake.pseudonyms import Pseudonyms, patient_number

_TABLES = """
CREATE TABLE IF NOT EXISTS patient (
    pseudonym TEXT PRIMARY KEY, patient_id TEXT NOT NULL, issuer TEXT NOT NULL, name TEXT NOT NULL, birth_date TEXT NOT NULL,
    sex TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS study (
    new TEXT, original TEXT NOT NULL, pseudonym TEXT NOT NULL REFERENCES patient, date TEXT NOT NULL, time TEXT NOT NULL,
    accession TEXT NOT NULL, study_id TEXT NOT NULL, PRIMARY KEY (new, pseudonym)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS series (
    new TEXT, original TEXT NOT NULL, study TEXT NOT NULL, frame_of_reference TEXT NOT NULL, pseudonym TEXT NOT NULL,
    PRIMARY KEY (new, pseudonym)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS instance (
    new TEXT PRIMARY KEY, original TEXT NOT NULL, series TEXT NOT NULL, pseudonym TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mask (
    new TEXT PRIMARY KEY, pseudonym TEXT NOT NULL, drawn TEXT NOT NULL, created TEXT NOT NULL, creator TEXT NOT NULL,
    arrived INTEGER NOT NULL) WITHOUT ROWID;
"""
# two patients can have one study or series UID, and when one withdraws the other's way back stays

_OLDER = """
ALTER TABLE study RENAME TO older_study;
ALTER TABLE series RENAME TO older_series;
ALTER TABLE instance RENAME TO older_instance;
{tables}
INSERT INTO study SELECT * FROM older_study;
INSERT INTO series SELECT r.new, r.original, r.study, r.frame_of_reference, s.pseudonym
    FROM older_series r JOIN older_study s ON s.new = r.study;
INSERT INTO instance SELECT i.new, i.original, i.series, s.pseudonym
    FROM older_instance i JOIN older_series r ON r.new = i.series JOIN older_study s ON s.new = r.study;
DROP TABLE older_instance;
DROP TABLE older_series;
DROP TABLE older_study;
"""
"""Databases in which series and instances didn't say whose they are."""

TWO_PEOPLE = {
    "issuer": "its PatientID is known from another issuer: two people may have the same number",
    "birth_date": "its PatientID is known with another birth date: two people may have the same number, or one date is wrong",
}
"""By what is said of a patient: why an image that says otherwise may be somebody else's."""


TWO_NUMBERS = "the same image is known under another PatientID: the numbers of one person were merged, or mixed up"


class TwoPeople(ValueError):
    """One number seems to be that of two people, or one image of two numbers; the text names nobody."""


@dataclass(frozen=True)
class Person:
    """A patient as the archive knows him. `name` is a DICOM person name."""

    patient_id: str
    issuer: str
    name: str
    birth_date: str
    sex: str


@dataclass(frozen=True)
class OriginalStudy:
    """A study as the archive knows it."""

    uid: str
    pseudonym: str
    date: str
    time: str
    accession: str
    study_id: str


@dataclass(frozen=True)
class Facts:
    """What is kept of one original."""

    texts: Mapping[str, str]  # by keyword
    moment: Moment | None  # of a mask


_TEXTS = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "StudyID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"),
)


def facts_of(original: Dataset, pseudonyms: Pseudonyms, *, arrived: int = 0) -> Facts:
    """What is to be kept of an original. May raise whatever a broken header raises."""
    texts = {name: str(original.get(name, "") or "").strip() for name in _TEXTS}
    return Facts({**texts, "PatientID": patient_number(original)}, moment_of(original, pseudonyms, arrived=arrived))


def _remember(database: sqlite3.Connection, facts: Facts, pseudonyms: Pseudonyms) -> None:
    texts = facts.texts
    pseudonym = pseudonyms.pseudonym(texts["PatientID"])
    study, series, instance = (texts[name] for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    person = [texts[name] for name in ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")]
    database.execute("INSERT OR IGNORE INTO patient VALUES (?, ?, ?, ?, ?, ?)", [pseudonym, *person])
    query = "SELECT issuer, birth_date FROM patient WHERE pseudonym = ?"
    known = dict(zip(("issuer", "birth_date"), database.execute(query, [pseudonym]).fetchone(), strict=True))
    said = {"issuer": texts["IssuerOfPatientID"], "birth_date": texts["PatientBirthDate"]}
    for column, reason in TWO_PEOPLE.items():
        if known[column] and said[column] and said[column] != known[column]:
            raise TwoPeople(reason)
        if said[column] and not known[column]:  # not every device says it, and the first one may not have
            database.execute(f"UPDATE patient SET {column} = ? WHERE pseudonym = ?", [said[column], pseudonym])
    holder = database.execute("SELECT pseudonym FROM instance WHERE new = ?", [pseudonyms.uid(instance)]).fetchone()
    if holder is not None and holder[0] not in ("", pseudonym):
        raise TwoPeople(TWO_NUMBERS)
    about = [texts[name] for name in ("StudyDate", "StudyTime", "AccessionNumber", "StudyID")]
    new = [pseudonyms.uid(study), study, pseudonym, *about]
    database.execute("INSERT OR IGNORE INTO study VALUES (?, ?, ?, ?, ?, ?, ?)", new)
    new = [pseudonyms.uid(series), series, pseudonyms.uid(study), texts["FrameOfReferenceUID"], pseudonym]
    database.execute("INSERT OR IGNORE INTO series VALUES (?, ?, ?, ?, ?)", new)
    new = [pseudonyms.uid(instance), instance, pseudonyms.uid(series), pseudonym]
    database.execute("INSERT OR IGNORE INTO instance VALUES (?, ?, ?, ?)", new)
    if (made := facts.moment) is not None:
        row = [pseudonyms.uid(instance), pseudonym, made.drawn, made.created, made.creator, made.arrived]
        database.execute("INSERT OR IGNORE INTO mask VALUES (?, ?, ?, ?, ?, ?)", row)


class WayBack:
    """The database at `path`, made with mode 0600 if it isn't there. Calls may come from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = Path(path), Lock()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.touch(mode=0o600)
        self.path.chmod(0o600)
        with self._told():
            # one connection for all threads, which take turns; the log beside the database inherits its mode
            self._database = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
            for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                self._database.execute(f"PRAGMA {setting}")
            self._database.execute("BEGIN IMMEDIATE")
            columns = [row[1] for row in self._database.execute("PRAGMA table_info(series)")]
            for statement in (_OLDER.format(tables=_TABLES) if columns and "pseudonym" not in columns else _TABLES).split(";"):
                self._database.execute(statement)
            self._database.commit()

    def close(self) -> None:
        """Close the database. Nothing is lost if nobody does."""
        self._database.close()

    def probe(self) -> None:
        """Whether the database can be written now. Raises `OSError`."""
        with self._lock, self._told():
            self._database.execute("BEGIN IMMEDIATE")
            self._database.rollback()

    def remember(self, original: Dataset, pseudonyms: Pseudonyms, *, arrived: int = 0) -> None:
        """Write down whose an original is and what its UIDs became. Once more changes nothing, and a kill loses nothing.

        `arrived` is when it came, in nanoseconds since 1970; of several masks of one day it may say which is the later.
        Raises as `remember_all`.
        """
        self.remember_all([facts_of(original, pseudonyms, arrived=arrived)], pseudonyms)

    def remember_all(self, originals: Iterable[Facts], pseudonyms: Pseudonyms) -> None:
        """The same for several originals: all of them are written down, or none.

        Raises `TwoPeople` if the number is known from another issuer or with another birth date, or if the instance is known
        under another number, as after a merge of two files of one person; `OSError` if the database can't be written.
        """
        with self._open() as database:
            for facts in originals:
                _remember(database, facts, pseudonyms)

    def moments(self, pseudonym: str) -> dict[str, Moment]:
        """When the patient's masks were drawn and came, by new instance UID."""
        with self._open() as database:
            query = "SELECT new, drawn, created, creator, arrived FROM mask WHERE pseudonym = ?"
            return {row[0]: Moment(*row[1:]) for row in database.execute(query, [pseudonym])}

    def person(self, pseudonym: str) -> Person | None:
        """Who stands behind a pseudonym."""
        with self._open() as database:
            query = "SELECT patient_id, issuer, name, birth_date, sex FROM patient WHERE pseudonym = ?"
            row = database.execute(query, [pseudonym]).fetchone()
        return None if row is None else Person(*row)

    def pseudonyms(self, patient_id: str) -> tuple[str, ...]:
        """Under which pseudonyms a hospital number is known: none, one, or under several keys several."""
        with self._open() as database:
            query = "SELECT pseudonym FROM patient WHERE patient_id = ? ORDER BY pseudonym"
            return tuple(row[0] for row in database.execute(query, [patient_id.strip()]))

    def study(self, new: str, pseudonym: str | None = None) -> OriginalStudy | None:
        """A study of the clean store as the archive knows it; None if two patients have it and nobody says whose is meant."""
        with self._open() as database:
            query = "SELECT original, pseudonym, date, time, accession, study_id FROM study WHERE new = ?1"
            rows = database.execute(f"{query} AND (?2 IS NULL OR pseudonym = ?2)", [new, pseudonym]).fetchall()
        return OriginalStudy(*rows[0]) if len(rows) == 1 else None

    def original_uid(self, new: str) -> str | None:
        """The archive's UID of a study, series or instance of the clean store."""
        with self._open() as database:
            for table in ("instance", "series", "study"):
                row = database.execute(f"SELECT original FROM {table} WHERE new = ?", [new]).fetchone()
                if row is not None:
                    return str(row[0])
        return None

    def frame_of_reference(self, new_series: str) -> str | None:
        """The archive's frame of reference of a series."""
        with self._open() as database:
            row = database.execute("SELECT frame_of_reference FROM series WHERE new = ?", [new_series]).fetchone()
        return None if row is None else str(row[0])

    def forget(self, pseudonym: str) -> None:
        """Remove all that is known of a patient."""
        with self._open() as database:
            for table in ("mask", "instance", "series", "study", "patient"):
                database.execute(f"DELETE FROM {table} WHERE pseudonym = ?", [pseudonym])
        with self._lock, self._told():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log still holds what was removed

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The connection for one transaction, which is on the disk when it ends."""
        with self._lock, self._told(), self._database:
            yield self._database

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the database as errors of the disk, in words."""
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(f"the way back {self.path.name} can't be read or written ({type(error).__name__})") from error
