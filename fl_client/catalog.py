"""The hospital's catalog: who is in the cohort, with which images, masks, clinical values and quality, as tables.

The cohort on disk stays the truth. `catalog.sqlite` is made of it and can be thrown away at any time: `refresh` reads those
cases anew that have changed, and what can't be read as a catalog is replaced. Write-ahead logging lets a second process read
while one writes. Nothing here names a person, and nothing here leaves the hospital.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
)
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from fl_client.cohort import CaseUnreadable, Cohort, is_test
from fl_client.sharing import file_mode
from fl_client.site import Site
from tasks.case import Case

VERSION = 1
"""Of the tables below; a catalog of another version is made anew."""

_meta = MetaData()
patients = Table(
    "patients",
    _meta,
    Column("patient", String, primary_key=True),
    Column("state", String, nullable=False),  # a digest of what the rows were made of
    Column("side", String, nullable=False),  # train or test
)
volumes = Table(
    "volumes",
    _meta,
    Column("patient", String, primary_key=True),
    Column("series", String, primary_key=True),
    Column("slices", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("slice_mm", Float, nullable=False),
    Column("row_mm", Float, nullable=False),
    Column("column_mm", Float, nullable=False),
    Column("has_mask", Boolean, nullable=False),
)


def _facts(name: str, *more: Column[Any]) -> Table:
    """A table of named facts of patients: a number or a text; what isn't known has no line."""
    key = Column("patient", String, primary_key=True)
    return Table(
        name, _meta, key, *more, Column("name", String, primary_key=True), Column("number", Float), Column("text", String)
    )


endpoints = _facts("endpoints")
scanner = _facts("scanner")
quality = _facts("quality", Column("series", String, primary_key=True))
refusals = Table(
    "refusals",
    _meta,
    Column("line", Integer, primary_key=True),
    Column("what", String, nullable=False),  # a pseudonym or a handle
    Column("reason", String, nullable=False),
)
_OF_A_PATIENT = (patients, volumes, endpoints, scanner, quality)


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did: patients read anew, patients that are gone, and who can't be read, with the reason."""

    read: int
    gone: int
    unreadable: Mapping[str, str] = field(default_factory=dict)


class Catalog:
    """`catalog.sqlite`, mode 0600. Making one touches nothing; `refresh` fills it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, site: Site) -> Catalog:
        """The site's catalog, fresh: equal to its cohort now. Raises `OSError` if the disk can't take it."""
        catalog = cls(site.folder / "catalog.sqlite")
        catalog.refresh(Cohort(site.cohort_folder), test_fraction=site.test_fraction)
        return catalog

    # -- following the cohort -----------------------------------------------------------------------------------------

    def refresh(self, cohort: Cohort, *, test_fraction: float) -> Refreshed:
        """Make the catalog equal to the cohort, reading only the cases that have changed.

        A case that can't be read is named in the answer and in no table. Raises `OSError` if the catalog can't be written.
        """
        try:
            return self._refresh(cohort, test_fraction)
        except (DatabaseError, sqlite3.DatabaseError) as error:  # cut short, or no database at all: the cohort has it all
            if isinstance(getattr(error, "orig", error), sqlite3.OperationalError):
                raise OSError(f"{self.path} can't be written: {error}") from None
            self._throw_away()
        return self._refresh(cohort, test_fraction)

    def _refresh(self, cohort: Cohort, test_fraction: float) -> Refreshed:
        with self.reading() as open_:
            known: dict[str, str] = {
                line.patient: line.state for line in open_.execute(select(patients.c.patient, patients.c.state))
            }
        fresh: dict[str, list[tuple[Table, dict[str, Any]]]] = {}
        unreadable: dict[str, str] = {}
        present = cohort.patients
        for patient in present:
            found = _quality_of(cohort, patient)
            side = "test" if is_test(patient, test_fraction) else "train"
            try:
                state = f"{cohort.state(patient)}.{_digest(found)}.{side}"
                if known.get(patient) != state:
                    fresh[patient] = _lines(patient, state, side, cohort.case(patient), found)
            except CaseUnreadable as damaged:
                unreadable[patient] = damaged.reason
            except KeyError:
                continue  # withdrawn meanwhile
            except (OverflowError, ValueError, TypeError) as error:  # nobody's odd value may stop the others
                unreadable[patient] = f"its values can't be put into a table ({type(error).__name__})"
        gone = (known.keys() - set(present)) | (known.keys() & unreadable.keys())
        refused = cohort.refused
        with self._writing() as open_:
            for patient in (*gone, *fresh):
                _remove(open_, patient)
            still = set(cohort.patients)  # whoever was withdrawn since then is not written back
            for patient, lines in fresh.items():
                for table, line in lines if patient in still else ():
                    open_.execute(insert(table).prefix_with("OR REPLACE"), [line])
            open_.execute(delete(refusals))
            if refused:
                told = [{"line": n, "what": line["what"], "reason": line["reason"]} for n, line in enumerate(refused, 1)]
                open_.execute(insert(refusals), told)
        return Refreshed(len(fresh), len(gone), unreadable)

    def forget(self, pseudonym: str) -> None:
        """Take everything about this patient out, and out of the file's bytes. The cohort must have lost the patient before.

        Raises `OSError` if the catalog can't be written; nobody may think then that the patient is forgotten.
        """
        if not self.path.exists():
            return
        try:
            with self._writing() as open_:
                _remove(open_, pseudonym)
                series = refusals.c.what.startswith(f"{pseudonym}-", autoescape=True)
                open_.execute(delete(refusals).where((refusals.c.what == pseudonym) | series))
            with closing(self._connect()) as raw:
                raw.execute("VACUUM")  # pages that nothing points to any more
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (DatabaseError, sqlite3.DatabaseError) as error:
            if isinstance(getattr(error, "orig", error), sqlite3.OperationalError):
                raise OSError(f"{self.path} can't be written, so {pseudonym} may still stand in it: {error}") from None
            self._throw_away()

    def _throw_away(self) -> None:
        for ending in ("", "-wal", "-shm"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)

    # -- asking -------------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the catalog, whatever others write meanwhile."""
        with self._engine().connect() as open_, open_.begin():
            yield open_

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine().connect().execution_options(konsil_writes=True) as open_, open_.begin():
            yield open_

    def _engine(self) -> Engine:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, file_mode(self.path.parent)))
        engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

        @event.listens_for(engine, "begin")
        def begin(open_: Connection) -> None:  # whoever writes has the lock from the start, not from the first line on
            open_.exec_driver_sql("BEGIN IMMEDIATE" if open_.get_execution_options().get("konsil_writes") else "BEGIN")

        with closing(self._connect()) as raw:
            made = _version(raw) == VERSION
        if not made:
            with engine.connect().execution_options(konsil_writes=True) as open_, open_.begin():
                if open_.exec_driver_sql("PRAGMA user_version").scalar() != VERSION:  # else another process was faster
                    _meta.drop_all(open_)
                    _meta.create_all(open_)
                    open_.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
        return engine

    def _connect(self) -> sqlite3.Connection:
        raw = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)  # transactions are begun by us
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = NORMAL")  # what a crash loses is read from the cohort again
        raw.execute("PRAGMA secure_delete = ON")  # what is taken out is written over
        return raw


def _version(raw: sqlite3.Connection) -> int:
    return int(raw.execute("PRAGMA user_version").fetchone()[0])


def _remove(open_: Connection, patient: str) -> None:
    for table in _OF_A_PATIENT:
        open_.execute(delete(table).where(table.c.patient == patient))


def _lines(patient: str, state: str, side: str, case: Case, found: Mapping[str, Any]) -> list[tuple[Table, dict[str, Any]]]:
    """Every line of a patient, with its table. Raises `ValueError`, `TypeError` or `OverflowError` for odd values."""
    lines: list[tuple[Table, dict[str, Any]]] = [(patients, {"patient": patient, "state": state, "side": side})]
    for volume in case.volumes:
        size = dict(zip(("slices", "rows", "columns"), volume.image.shape, strict=True))
        spacing = dict(zip(("slice_mm", "row_mm", "column_mm"), volume.spacing_mm, strict=True))
        seen = {"patient": patient, "series": volume.series, "has_mask": volume.mask is not None}
        lines.append((volumes, {**seen, **size, **spacing}))
    for table, facts in ((endpoints, case.endpoints), (scanner, case.scanner)):
        lines += [(table, {"patient": patient, **fact}) for fact in _known(facts)]
    for series, parameters in found.items():
        if isinstance(parameters, dict):
            lines += [(quality, {"patient": patient, "series": series, **fact}) for fact in _known(parameters)]
    return lines


def _known(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Numbers and texts by name; what is missing, or not finite, has no line."""
    lines = []
    for name, value in facts.items():
        number = float(value) if isinstance(value, (bool, int, float)) else None
        text = value if isinstance(value, str) else None
        f"{name}{text}".encode()  # lone surrogates, which no database takes, are told here
        if text is not None or (number is not None and math.isfinite(number)):
            lines.append({"name": name, "number": number, "text": text})
    return lines


def _quality_of(cohort: Cohort, patient: str) -> dict[str, Any]:
    """The quality parameters by series, as the intake wrote them; empty if there are none that can be read."""
    try:
        found = json.loads((cohort.folder / "quality" / f"{patient}.json").read_text())["volumes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(found: Mapping[str, Any]) -> str:
    """A short digest of what was found."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
