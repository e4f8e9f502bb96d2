"""From what a delivery says of a patient to the values that a mapping asks for. Missing stays missing, and nothing is guessed.

Times are days from the patient's index day, so that no date reaches the cohort. A value that can't be right (another unit, two
values of one time, an event before the index day) refuses the patient with the variable's name and without the value.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from typing import TypeVar

from fl_client.intake.endpoints import Value, time_to_event
from fl_client.intake.fhir import Person
from fl_client.intake.mapping import Age, Category, ClinicalMapping, Days, Index, Number, Present, Sex, Source, Survival
from fl_client.intake.resources import Finding, Quantity
from fl_client.intake.units import converted, unit_of

OLDEST = 89
"""Ages above it are rare and identifying."""

T = TypeVar("T", float, str)
_SEXES = {"female": "F", "male": "M", "other": "O"}


def values_of(person: Person, mapping: ClinicalMapping, *, came: Collection[str]) -> dict[str, Value]:
    """The patient's values by name; what isn't known is not among them. `came` are the types of resources in the delivery.

    Raises `ValueError` naming the variable, and no value, for what can't be right.
    """
    index = _index_day(person, mapping.index)
    found: dict[str, Value] = {}
    for variable in mapping.variables:
        if isinstance(variable, Survival):
            if (pair := _survival(variable, person, index, came)) is not None:
                found[variable.time], found[variable.event] = pair
            continue
        try:
            if isinstance(variable, Number):
                value: Value = _number(variable, person, index)
            elif isinstance(variable, Category):
                value = _category(variable, person, index)
            elif isinstance(variable, Present):
                value = _present(variable, person, index, came)
            elif isinstance(variable, Age):
                value = _age(person.birth, index)
            elif isinstance(variable, Sex):
                value = _SEXES.get(person.gender or "")
            else:
                value = _days(variable, person, index)
        except ValueError as problem:
            raise ValueError(f"{variable.name}: {problem}") from None
        if value is not None:
            found[variable.name] = value
    return found


def _index_day(person: Person, index: Index | None) -> date | None:
    days = [] if index is None else _days_of(index, person)
    if not days:
        return None
    return max(days) if index is not None and index.which == "latest" else min(days)


def _found(source: Source, person: Person) -> list[Finding]:
    codes = set(source.codes)
    return [one for one in person.findings if one.resource == source.resource and one.codes & codes]


def _days_of(source: Source, person: Person) -> list[date]:
    return [one.day for one in _found(source, person) if one.day]


def is_undated(variable: Survival, person: Person) -> bool:
    """Whether the event happened on a day that nobody knows, be it only one of several: no time can be counted to it."""
    return isinstance(variable.of, Source) and any(one.day is None for one in _found(variable.of, person))


def _number(variable: Number, person: Person, index: date | None) -> float | None:
    measured: list[tuple[Finding, float]] = []
    for finding, value in _answers(variable, person, index):
        if not isinstance(value, Quantity):
            raise ValueError("the value is no quantity")
        if not value.exact:
            raise ValueError("a value is a bound (less or more than) and no number")
        unit = unit_of(system=value.system, code=value.code, written=value.written)
        number = None if unit is None else _in_unit(value.value, unit, variable)
        if number is None:
            raise ValueError(f"a value has no unit that can be converted into {variable.unit}")
        measured.append((finding, number))
    if variable.which in ("max", "min"):
        numbers = [number for _, number in measured]
        return (max(numbers) if variable.which == "max" else min(numbers)) if numbers else None
    return _one_of(measured, latest=variable.which == "latest")


def _in_unit(value: float, unit: str, variable: Number) -> float | None:
    if unit in variable.factors:
        return float(f"{value * variable.factors[unit]:.12g}")
    return converted(value, unit, variable.unit)


def _category(variable: Category, person: Person, index: date | None) -> str | None:
    words: list[tuple[Finding, str]] = []
    for finding, value in _answers(variable, person, index):
        found = {variable.values[code] for code in (value if isinstance(value, frozenset) else ()) if code in variable.values}
        if len(found) != 1:
            raise ValueError("an answer has " + ("two meanings" if found else "a code that the mapping doesn't name"))
        words.append((finding, found.pop()))
    return _one_of(words, latest=variable.which == "latest")


def _answers(
    variable: Number | Category, person: Person, index: date | None
) -> list[tuple[Finding, Quantity | frozenset[str]]]:
    """Every value of these codes, in time where a time is asked for."""
    codes, found = set(variable.codes), []
    component = variable.component if isinstance(variable, Number) else None
    for finding in person.findings:
        if (
            finding.resource != "Observation"
            or not finding.codes & codes
            or not _in_time(finding, variable.before_index, index)
        ):
            continue
        values = [finding.value] if component is None else [value for names, value in finding.components if component in names]
        found += [(finding, value) for value in values if value is not None]
    return found


def _in_time(finding: Finding, before: bool, index: date | None) -> bool:
    return not before or (index is not None and finding.day is not None and finding.day <= index)


def _one_of(found: list[tuple[Finding, T]], *, latest: bool) -> T | None:
    """The latest or earliest value. What has no day counts only if it is the only one."""
    if len({value for _, value in found}) == 1:
        return found[0][1]
    dated = [(_order(finding), value) for finding, value in found if finding.day is not None]
    if not dated:
        if found:
            raise ValueError("there are several values, and none has a full date")
        return None
    best = (max if latest else min)(order for order, _ in dated)
    values = {value for order, value in dated if order == best}
    if len(values) > 1:
        raise ValueError("there are two different values of one time")
    return values.pop()


def _order(finding: Finding) -> tuple[date, float]:
    """By day at the place of care, then by the moment; a day without a time comes first in it."""
    moment = finding.moment
    seconds = 0.0 if moment is None else moment.timestamp() if moment.tzinfo else _seconds(moment)
    return finding.day or date.min, seconds


def _seconds(moment: datetime) -> float:
    return moment.hour * 3600.0 + moment.minute * 60 + moment.second


def _present(variable: Present, person: Person, index: date | None, came: Collection[str]) -> int | None:
    codes = set(variable.codes)
    found = [one for one in person.findings if one.resource == variable.resource and one.codes & codes]
    if any(_in_time(one, variable.before_index, index) for one in found):
        return 1
    unclear = variable.before_index and (index is None or any(one.day is None for one in found))
    if unclear or variable.if_none == "missing" or variable.resource not in came:
        return None  # without a single resource of the type nobody knows that there are none
    return 0


def _age(birth: date | None, index: date | None) -> int | None:
    if birth is None or index is None:
        return None
    if index < birth:
        raise ValueError("the index day lies before the birth")
    years = index.year - birth.year - ((index.month, index.day) < (birth.month, birth.day))
    return min(years, OLDEST)


def _days(variable: Days, person: Person, index: date | None) -> int | None:
    days = _days_of(variable, person)
    if index is None or not days:
        return None
    return ((max if variable.which == "latest" else min)(days) - index).days


def _survival(variable: Survival, person: Person, index: date | None, came: Collection[str]) -> tuple[int, int] | None:
    """Days and event. Missing if the event came before the index day, or if nobody knows when it or the last visit was.

    Without a single resource of the event's type nobody knows that there was none.
    """
    seen = [one.day for one in person.findings if one.resource in variable.last_seen and one.day is not None]
    if isinstance(variable.of, Source):
        if variable.of.resource not in came or is_undated(variable, person):
            return None
        events = _days_of(variable.of, person)
        if index is not None and any(day <= index for day in events):
            return None  # not at risk any more
        at, last = (min(events) if events else None), [*seen, *([person.death] if person.death else [])]
    else:
        if person.died and person.death is None:
            return None
        at, last = person.death, seen
    try:
        return time_to_event(index=index, event=at, last_seen=max(last) if last else None)
    except ValueError as problem:
        raise ValueError(f"{variable.time}: {problem}") from None
