"""Hospitals of real patients without images: each brings a table, whose rows come in through the intake.

A public table has no column that says whose row it is. Then, and in rehearsals alone, a row's line stands for its patient; a
real hospital has to name its column of identifiers. As in life every hospital has a key of its own, so that line 2 of one table
and line 2 of another are two people.
"""

from __future__ import annotations

import hashlib
import shutil
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
    """Let a table in; returns how many patients it speaks of."""
    try:
        return admit_table(file, cohort, key=KEY + name.encode(), rules=rules, by_line=not rules.patient_id).expected
    except EndpointsUnreadable as error:
        raise ValueError(f"{file} ({name}): {error}") from None


def _key(name: str, file: Path, rules: EndpointRules) -> str:
    facts = f"{name}\0{rules.model_dump_json()}\0".encode() + file.read_bytes()
    return hashlib.sha256(facts + source_text(*SOURCES)).hexdigest()[:16]
