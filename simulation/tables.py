"""Hospitals of real patients without images: each brings a table, whose rows come in through the intake.

A public table has no column that says whose row it is. Then, and in rehearsals alone, a row's number stands for its patient; a
real hospital has to name its column of identifiers. As in life every hospital has a key of its own, so that row 1 of one table
and row 1 of another are two people.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from conf.study import words
from fl_client.cohort import Cohort
from fl_client.intake.endpoints import EndpointRules, EndpointsUnreadable
from fl_client.intake.table import admit_table
from simulation.hospital import KEY, Advance, Hospital
from simulation.settings import TableHospitals
from simulation.sources import source_text

SOURCES = ("simulation/tables.py", "fl_client/intake", "fl_client/cohort.py", "tasks/case.py")
ROW = "number of the row"


def column_rules(settings: TableHospitals) -> EndpointRules:
    """Which columns pass, at every hospital. Raises `ValueError` in words for what can't be right."""
    try:
        return EndpointRules.only(settings.columns)
    except ValidationError as error:
        raise ValueError("\n".join(f"hospitals.columns.{line}" for line in words(error).splitlines())) from None


def listed(settings: TableHospitals, *, cache: Path, advance: Advance) -> tuple[dict[str, Hospital], dict[str, Hospital]]:
    """The hospitals that learn and those held out, their rows let in, or found in the cache.

    Raises `ValueError` for column rules or a table that can't be read, and `OSError` for a file that isn't there.
    """
    rules = column_rules(settings)
    files = {**settings.sites, **settings.held_out}
    hospitals = {}
    for done, (name, file) in enumerate(files.items(), 1):
        place = cache / "hospitals" / _key(name, Path(file), rules)
        if not (place / "done").exists():
            shutil.rmtree(place, ignore_errors=True)
            (place / "done").write_text(str(_admit(name, Path(file), rules, Cohort(place / "cohort"))))
        refused = {entry["what"]: entry["reason"] for entry in Cohort(place / "cohort").refused}
        expected = int((place / "done").read_text())
        hospitals[name] = Hospital(name, place / "cohort", settings.test_fraction, "no scanner", expected, refused)
        advance(done, len(files))
    return {name: hospitals[name] for name in settings.sites}, {name: hospitals[name] for name in settings.held_out}


def _admit(name: str, file: Path, rules: EndpointRules, cohort: Cohort) -> int:
    """Let a table in; returns of how many patients it speaks."""
    key = KEY + name.encode()
    try:
        if rules.patient_id:
            return admit_table(file, cohort, key=key, rules=rules).expected
        with tempfile.TemporaryDirectory() as folder:
            numbered = _numbered(file, rules, Path(folder) / "numbered.csv")
            return admit_table(numbered, cohort, key=key, rules=rules.model_copy(update={"patient_id": ROW})).expected
    except EndpointsUnreadable as error:
        raise ValueError(f"{file} ({name}): {error}") from None


def _numbered(file: Path, rules: EndpointRules, copy: Path) -> Path:
    """A copy of the table with the number of each row before it."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as source, open(copy, "w", newline="", encoding="utf-8") as target:
            writer = csv.writer(target, delimiter=rules.separator)
            for number, cells in enumerate(csv.reader(source, delimiter=rules.separator)):
                writer.writerow([number if number else ROW, *cells] if cells else [])
    except (UnicodeDecodeError, csv.Error):
        shutil.copy(file, copy)  # the intake says what is wrong with it
    return copy


def _key(name: str, file: Path, rules: EndpointRules) -> str:
    facts = f"{name}\0{rules.model_dump_json()}\0".encode() + file.read_bytes()
    return hashlib.sha256(facts + source_text(*SOURCES)).hexdigest()[:16]
