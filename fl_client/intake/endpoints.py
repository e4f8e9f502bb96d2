"""Clinical endpoints from `endpoints.csv`: one row per patient, columns admitted by name.

The rules are a positive list, as for DICOM headers: a column that isn't declared stays outside, because a table exported from
a hospital's system holds names, addresses and remarks beside what the study asked for. Dates move by the same days as the
patient's DICOM dates.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from conf.study import Frozen
from fl_client.intake.deidentify import Deidentifier

FILE = "endpoints.csv"
Value = float | int | str | None


SEGMENTS = tuple(f"{what}_{number:02d}" for number in range(1, 18) for what in ("segment", "call", "certainty"))
"""Readings of the 17 AHA segments: what is there, what the reader called, how certain the reader was (1 to 5)."""


class EndpointRules(Frozen):
    """Which columns may pass. `patient_id` is the column with the identifier that the DICOM headers carry as PatientID."""

    patient_id: str = "patient_id"
    numbers: tuple[str, ...] = ("ef", "edv_ml", "esv_ml", "mass_g", "time_months", "time_days", "event", *SEGMENTS)
    capped: dict[str, float] = Field(default={"age": 89.0})  # numbers that become rare and identifying above a value
    categories: dict[str, tuple[str, ...]] = Field(
        default={"disease": ("normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid"), "sex": ("F", "M", "O")}
    )
    dates: tuple[str, ...] = ()  # YYYYMMDD or YYYY-MM-DD


class EndpointsUnreadable(ValueError):
    """The table as a whole can't be read; no row of it counts."""


class Row:
    """One patient's endpoints, or the reason why they can't be taken."""

    def __init__(self, values: Mapping[str, Value], problem: str | None = None) -> None:
        self.values = dict(values)
        self.problem = problem


def read_endpoints(path: Path, rules: EndpointRules, deidentify: Deidentifier) -> tuple[dict[str, Row], list[str]]:
    """Rows by pseudonym, and sentences on what was left out. Raises `EndpointsUnreadable`, in words without cell contents."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except UnicodeDecodeError:
        raise EndpointsUnreadable(f"{FILE} is not UTF-8 text; save it as CSV UTF-8") from None
    except (csv.Error, OSError) as error:
        raise EndpointsUnreadable(f"{FILE} can't be read as comma-separated values ({type(error).__name__})") from None
    if not rows or rules.patient_id not in rows[0]:
        raise EndpointsUnreadable(f"{FILE} has no column '{rules.patient_id}' in its first line")
    header = rows[0]
    if len(set(header)) != len(header):
        raise EndpointsUnreadable(f"{FILE} names a column twice")
    allowed = {rules.patient_id, *rules.numbers, *rules.capped, *rules.categories, *rules.dates}
    outside = [str(number) for number, column in enumerate(header, 1) if column not in allowed]
    notes = [f"columns number {', '.join(outside)} of {FILE} are not declared in the endpoint rules"] if outside else []
    result: dict[str, Row] = {}
    for line, cells in enumerate(rows[1:], 2):
        if not any(cells):
            continue
        if len(cells) != len(header):
            notes.append(f"line {line} of {FILE} has {len(cells)} cells, its first line {len(header)}")
            continue
        raw = dict(zip(header, cells, strict=True))
        patient_id = raw[rules.patient_id].strip()
        if not patient_id:
            notes.append(f"line {line} of {FILE} names no patient")
            continue
        pseudonym = deidentify.pseudonym(patient_id)
        try:
            row = Row(
                {
                    column: _value(column, raw[column].strip(), rules, deidentify, patient_id)
                    for column in header
                    if column in allowed - {rules.patient_id}
                }
            )
        except ValueError as problem:
            row = Row({}, f"line {line} of {FILE}: {problem}")
        if pseudonym in result and result[pseudonym].values != row.values:
            row = Row({}, f"{FILE} holds two different rows for this patient, the second on line {line}")
        result[pseudonym] = row
    return result, notes


def _value(column: str, text: str, rules: EndpointRules, deidentify: Deidentifier, patient_id: str) -> Value:
    """One cell. Errors name the column and never the contents."""
    if text == "":
        return None
    if column in rules.categories:
        if text not in rules.categories[column]:
            raise ValueError(f"{column} is none of {', '.join(rules.categories[column])}")
        return text
    if column in rules.dates:
        shifted = deidentify.date(text.replace("-", ""), patient_id)
        if not shifted:
            raise ValueError(f"{column} is no date YYYY-MM-DD")
        return shifted
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{column} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{column} is not a finite number")
    number = min(number, rules.capped.get(column, number))
    return int(number) if number.is_integer() and "." not in text and "e" not in text.lower() else number
