"""Clinical endpoints from a table, `endpoints.csv` beside images or one by itself: a row per patient, columns by name.

The rules are a positive list, as for DICOM headers: a column that isn't declared stays outside, because a table exported from
a hospital's system holds names, addresses and remarks beside what the study asked for. Dates move by the same days as the
patient's DICOM dates, or become days from an index day, which is how times to an event should be told: no date stays in them.
What stands for a missing value beside an empty cell is declared too, and never guessed.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from conf.study import Frozen
from fl_client.intake.deidentify import Deidentifier

FILE = "endpoints.csv"
Value = float | int | str | None
NO_VALUE = frozenset({"", "?", "na", "n/a"})
"""Cells, in lower case, that hold no value in any table; a category of this name comes first."""
EVERY_COLUMN = "every column"
_DATE = re.compile(r"[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}")  # without its zeros, 2020-1-11 could be read as 1 November

SEGMENTS = tuple(f"{what}_{number:02d}" for number in range(1, 18) for what in ("segment", "call", "certainty"))
"""Readings of the 17 AHA segments: what is there, what the reader called, how certain the reader was (1 to 5)."""


class TimeToEvent(Frozen):
    """Two columns of dates that become days from the index day and 1, if the event happened, or 0 on the day last seen."""

    event_on: str  # empty where nothing happened
    last_seen: str
    time: str = "time_days"
    event: str = "event"


class EndpointRules(Frozen):
    """Which columns may pass, and how the table is written.

    `patient_id` is the column with the identifier that the DICOM headers carry as PatientID; empty means the first column.
    `index` is a column with the day from which times are counted; `days` (name of the value: column of dates) and `survival`
    are counted from it, and their columns don't pass themselves.
    `missing` names, by column or for `every column`, what stands for a value that nobody has: codes such as -9, or a
    cholesterol of 0. Numbers are compared as numbers (0 is also 0.0), words to the letter.
    """

    patient_id: str = "patient_id"
    numbers: tuple[str, ...] = (
        "ef",
        "edv_ml",
        "esv_ml",
        "mass_g",
        "height_cm",
        "weight_kg",
        "time_months",
        "time_days",
        "event",
        *SEGMENTS,
    )
    capped: dict[str, float] = Field(default={"age": 89.0})  # numbers that become rare and identifying above a value
    categories: dict[str, tuple[str, ...]] = Field(
        default={"disease": ("normal", "myocarditis", "infarct", "hcm", "dcm", "amyloid", "ph", "arvc"), "sex": ("F", "M", "O")}
    )
    dates: tuple[str, ...] = ()  # YYYYMMDD or YYYY-MM-DD
    index: str = ""
    days: dict[str, str] = Field(default={})
    survival: tuple[TimeToEvent, ...] = ()
    missing: dict[str, tuple[float | str, ...]] = Field(default={})
    separator: Literal[",", ";", "\t"] = ","
    decimal: Literal[".", ","] = "."

    @classmethod
    def only(cls, declared: Mapping[str, Any]) -> Self:
        """Rules under which no column passes but those declared here; where `age` is one, it is capped as usual.

        Without `patient_id` the first column is the identifier. Raises `pydantic.ValidationError`.
        """
        numbers = declared.get("numbers")
        capped = {"age": 89.0} if isinstance(numbers, Iterable) and "age" in numbers else {}
        return cls.model_validate({"patient_id": "", "numbers": (), "capped": capped, "categories": {}, **declared})

    @property
    def columns(self) -> frozenset[str]:
        """All columns that may pass as values."""
        return frozenset({*self.numbers, *self.capped, *self.categories, *self.dates})

    @property
    def counted(self) -> frozenset[str]:
        """Columns of dates that become days, and don't pass themselves."""
        pairs = {column for one in self.survival for column in (one.event_on, one.last_seen)}
        return frozenset({*self.days.values(), *pairs, *({self.index} if self.index else ())})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        made = [*self.days, *(name for one in self.survival for name in (one.time, one.event))]
        if made and not self.index:
            raise ValueError(f"{', '.join(sorted(made))} is counted from an index day, and 'index' names no column")
        if twice := sorted({name for name in made if made.count(name) > 1 or name in self.columns}):
            raise ValueError(f"{', '.join(twice)} is given twice: counted in days, and as a column or another time")
        if strange := sorted(set(self.missing) - self.columns - self.counted - {EVERY_COLUMN}):
            raise ValueError(f"missing names {', '.join(strange)}, which is no declared column; for all: '{EVERY_COLUMN}'")
        declared = [*{*self.numbers, *self.capped}, *self.categories, *self.dates]
        if twice := sorted({column for column in declared if declared.count(column) > 1}):
            raise ValueError(f"{', '.join(twice)} can be only one of number, category and date")
        if self.patient_id in self.columns:
            raise ValueError(f"'{self.patient_id}' is the patients' identifier and can't be a value, too")
        if self.decimal == self.separator:
            raise ValueError(f"'{self.decimal}' can't both part the cells and stand in numbers")
        return self


class EndpointsUnreadable(ValueError):
    """The table as a whole can't be read; no row of it counts."""


class Row:
    """One patient's endpoints, or the reason why they can't be taken."""

    def __init__(self, values: Mapping[str, Value], problem: str | None = None) -> None:
        self.values = dict(values)
        self.problem = problem


def read_endpoints(
    path: Path, rules: EndpointRules, deidentify: Deidentifier, *, called: str = FILE, by_line: bool = False
) -> tuple[dict[str, Row], list[str]]:
    """Rows by pseudonym, and sentences on what was left out; they speak of the table as `called`.

    `by_line` takes the number of a row's line for the identifier, for public tables that have none.
    Raises `EndpointsUnreadable`, in words without cell contents, if the table as a whole can't be read.
    """
    header, lines = _lines(path, rules, called)
    key = None if by_line else _identifier(header, rules, called)
    allowed = rules.columns
    if called != FILE and not (allowed | rules.counted) & set(header):  # beside images it merely adds nothing
        raise EndpointsUnreadable(f"{called} has no column that is declared; which may pass stands in a YAML file (--columns)")
    outside = [str(number) for number, column in enumerate(header, 1) if column not in allowed | rules.counted | {key}]
    if absent := sorted(rules.counted - set(header)):
        raise EndpointsUnreadable(f"{called} has no column {', '.join(absent)}, from which the rules count days")
    notes = [f"columns number {', '.join(outside)} of {called} are not declared in the endpoint rules"] if outside else []
    result: dict[str, Row] = {}
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) != len(header):
            notes.append(f"line {line} of {called} has {len(cells)} cells, its first line {len(header)}")
            continue
        raw = dict(zip(header, cells, strict=True))
        patient_id = f"line {line}" if key is None else raw[key].strip()
        if not patient_id:
            notes.append(f"line {line} of {called} names no patient")
            continue
        pseudonym = deidentify.pseudonym(patient_id)
        try:
            row = Row(
                {
                    column: _value(column, raw[column].strip(), rules, deidentify, patient_id)
                    for column in header
                    if column in allowed
                }
                | _times(raw, rules)
            )
        except ValueError as problem:
            row = Row({}, f"line {line} of {called}: {problem}")
        if pseudonym in result and result[pseudonym].values != row.values:
            row = Row({}, f"{called} holds two different rows for this patient, the second on line {line}")
        result[pseudonym] = row
    return result, notes


def _lines(path: Path, rules: EndpointRules, called: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and every row with the number of the line on which it ends."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=rules.separator, strict=True)
            lines = [(reader.line_num, cells) for cells in reader]
    except UnicodeDecodeError:
        raise EndpointsUnreadable(f"{called} is not UTF-8 text; save it as CSV UTF-8") from None
    except (csv.Error, OSError) as error:
        raise EndpointsUnreadable(f"{called} can't be read as comma-separated values ({type(error).__name__})") from None
    header = lines[0][1] if lines else []
    if other := next((sign for sign in ",;\t" if len(header) == 1 and sign in header[0]), None):
        raise EndpointsUnreadable(
            f"the cells of {called} seem to be parted by {other!r}, and the rules say {rules.separator!r}"
        )
    if len(set(header)) != len(header):
        raise EndpointsUnreadable(f"{called} names a column twice")
    return header, lines[1:]


def _identifier(header: list[str], rules: EndpointRules, called: str) -> str:
    """The column that says whose row it is."""
    if not header or (rules.patient_id and rules.patient_id not in header):
        raise EndpointsUnreadable(f"{called} has no column '{rules.patient_id}' in its first line")
    if not rules.patient_id and header[0] in rules.columns:
        raise EndpointsUnreadable(
            f"the first column of {called}, '{header[0]}', is declared as a value; name the column that says whose row it is"
        )
    return rules.patient_id or header[0]


def _value(column: str, text: str, rules: EndpointRules, deidentify: Deidentifier, patient_id: str) -> Value:
    """One cell. Errors name the column and never the contents."""
    if text in rules.categories.get(column, ()):
        return text
    if text.lower() in NO_VALUE or _is_missing(text, column, rules):
        return None
    if column in rules.categories:
        raise ValueError(f"{column} is none of {', '.join(rules.categories[column])}")
    if column in rules.dates:
        shifted = deidentify.date(text.replace("-", ""), patient_id) if _DATE.fullmatch(text) else ""
        if not shifted:
            raise ValueError(f"{column} is no date YYYY-MM-DD")
        return shifted
    number = _number(text, rules)
    if number is None:
        raise ValueError(f"{column} is no number")
    if not math.isfinite(number):
        raise ValueError(f"{column} is not a finite number")
    number = min(number, rules.capped.get(column, number))
    return int(number) if number.is_integer() and rules.decimal not in text and "e" not in text.lower() else number


def _times(raw: Mapping[str, str], rules: EndpointRules) -> dict[str, Value]:
    """What is counted in days from the index day; None where a day isn't known. Errors name the column alone."""
    day = {column: _day(column, raw.get(column, "").strip(), rules) for column in rules.counted}
    index = day.get(rules.index)
    found: dict[str, Value] = {}
    for name, column in rules.days.items():
        at = day[column]
        found[name] = None if index is None or at is None else (at - index).days
    for one in rules.survival:
        try:
            pair = time_to_event(index=index, event=day[one.event_on], last_seen=day[one.last_seen])
        except ValueError as problem:
            raise ValueError(f"{one.event_on}: {problem}") from None
        found[one.time], found[one.event] = pair or (None, None)
    return found


def time_to_event(*, index: date | None, event: date | None, last_seen: date | None) -> tuple[int, int] | None:
    """Days from the index day, and 1 for the event or 0 for the day last seen; None if either end isn't known.

    Raises `ValueError` for an event before the index day: one of the two is wrong.
    """
    if index is None:
        return None
    if event is not None:
        if event < index:
            raise ValueError("the event lies before the index day")
        return (event - index).days, 1
    return None if last_seen is None or last_seen < index else ((last_seen - index).days, 0)


def _day(column: str, text: str, rules: EndpointRules) -> date | None:
    if text.lower() in NO_VALUE or _is_missing(text, column, rules):
        return None
    try:
        if _DATE.fullmatch(text):
            return datetime.strptime(text.replace("-", ""), "%Y%m%d").date()
    except ValueError:
        pass  # no day of the calendar
    raise ValueError(f"{column} is no date YYYY-MM-DD")


def _number(text: str, rules: EndpointRules) -> float | None:
    if "_" in text or (rules.decimal == "," and "." in text):  # 1_000 is Python's; 1.000 may be a thousand
        return None
    try:
        return float(text.replace(rules.decimal, "."))
    except ValueError:
        return None


def _is_missing(text: str, column: str, rules: EndpointRules) -> bool:
    codes = (*rules.missing.get(column, ()), *rules.missing.get(EVERY_COLUMN, ()))
    return any(text == code if isinstance(code, str) else _number(text, rules) == code for code in codes)
